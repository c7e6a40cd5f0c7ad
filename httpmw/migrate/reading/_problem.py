# What there is to say about one place in a file, as long as it is no diagnostic yet.

from __future__ import annotations

from dataclasses import dataclass, field

import libcst as cst

__all__ = ["Problem", "snippet"]

_EMPTY = cst.Module([])
_SHOWN = 60  # characters


def snippet(node: cst.CSTNode) -> str:
    """
    Give the source of a node for a message: one line, not too long.
    """
    text = " ".join(_EMPTY.code_for_node(node).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


@dataclass(frozen=True)
class Problem:
    """
    A code, where, and what its message is filled in with.
    """

    code: str
    node: cst.CSTNode
    details: dict[str, str] = field(default_factory=dict)
