"""
Rewrite `call_next` middleware into generators: what `httpmw migrate` does, as functions.
"""

from __future__ import annotations

try:
    import libcst as _libcst  # noqa: F401
except ImportError as exc:
    raise ImportError(
        "httpmw.migrate needs libcst, which is not installed.\n"
        "Install the extra: `pip install 'httpmw[migrate]'`."
    ) from exc

from ._codes import CODES, Code
from ._convert import Project, convert
from ._model import Conversion, Converted, Diagnostic

__all__ = ["CODES", "Code", "Conversion", "Converted", "Diagnostic", "Project", "convert"]
