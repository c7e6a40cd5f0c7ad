# What happened to one request, as text.

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

from ._explain import Explanation, Step
from ._record import PHASES

_NAME: Final = 34
_WHAT: Final = 36
_WIDTH: Final = 100


def table(found: Explanation) -> str:
    """
    Write an explanation down: a line for each layer, what it changed below it.
    """
    return "\n".join(_lines(found))


def _lines(found: Explanation) -> Iterator[str]:
    status = found.exception or "no response" if found.status is None else str(found.status)
    head = f"{found.method} {found.path} → {status}"
    if found.status is not None and found.exception is not None:
        head += f", then {found.exception}"
    yield f"{head}, {_bytes(found.bytes_sent)}, {_ms(found.seconds)} ms{_times(found)}"
    if found.route:
        yield f"route {found.route}"
    elif any(each.kind == "router" for each in found.steps):
        yield "no route was matched"
    else:
        yield "no route was asked for"
    yield ""
    names = [each.name for each in found.steps]
    name = min(max([len(each) for each in [*names, "in the client"]]), _NAME)
    what = min(max([len(each.happened) for each in found.steps], default=0), _WHAT)
    numbers = "".join(f"{each:>9}" for each in (*PHASES, "own ms"))
    yield f"{'':<{name}}  {'':<{what}}{numbers}"
    for each in found.steps:
        yield from _step(each, name, what)
    blank = f"{'':<{what}}" + " " * 9 * len(PHASES)
    yield f"{'in the client':<{name}}  {blank}{_ms(found.client_seconds):>9}"
    yield f"{'in all':<{name}}  {blank}{_ms(found.seconds):>9}"
    if found.not_reached:
        yield f"\nnot reached: {', '.join(found.not_reached)}"
    if found.merged:
        yield f"\npart of the layer around them: {', '.join(found.merged)}"


def _step(step: Step, name: int, what: int) -> Iterator[str]:
    times = "".join(f"{_ms(step.seconds[each]):>9}" for each in PHASES)
    said = f"{_cut(step.name, name):<{name}}  {_cut(step.happened, what):<{what}}"
    yield f"{said}{times}{_ms(step.own):>9}"
    notes = list(step.changed)
    if len(step.happened) > what:
        notes.insert(0, step.happened)
    if step.kind == "layer":
        for title, (before, after) in (
            ("request", step.request_bytes),
            ("response", step.response_bytes),
        ):
            if before != after and before:
                notes.append(f"{title} {before} → {_bytes(after)}")
    if notes:
        yield from textwrap.wrap(
            "; ".join(notes), _WIDTH, initial_indent="    ", subsequent_indent="    "
        )


def _times(found: Explanation) -> str:
    return f", median of {found.repeated}" if found.repeated > 1 else ""


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _bytes(number: int) -> str:
    return "1 byte" if number == 1 else f"{number} bytes"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3f}"
