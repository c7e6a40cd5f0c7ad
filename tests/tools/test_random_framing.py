"""
A sample of `make framing`: random layers, framed as the model of HTTP has it.

`make framing` compares 100,000 connections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tools.framing import PIECE, App, Case, Layer, Request, Step, compared, piece, run


@pytest.mark.parametrize("first", [0, PIECE], ids=["asyncio", "trio"])
def test_random_layers_are_framed_as_http_wants_it(first: int) -> None:
    """Status, body, length and the fate of the connection are those of the model."""
    counts, found = piece(first, first + 250)

    assert found == []
    assert counts["answers"] > 250
    assert counts["refused"] > 10


GET = Request("GET", "1.1", "")
CASE = Case("2.3", App(200, (b"abc",), "length", hands_over=True), (), (GET, GET))


def closing(data: bytes) -> bytes:
    """Let the last answer say that it is the last."""
    before, head, rest = data.rpartition(b"200 -\r\n")
    return before + head + b"connection: close\r\n" + rest


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda data: data.replace(b"200", b"204"), "content-length with a 204"),
        (lambda data: data.replace(b"200", b"203"), "status: 203, not 200"),
        (lambda data: data.replace(b"abc", b"abd"), "body: b'abd', not b'abc'"),
        (lambda data: data.replace(b"abc", b"abcd"), "not the beginning of an answer"),
        (lambda data: data + b"abc", "bytes that belong to no answer: b'abc'"),
        (lambda data: data[: len(data) // 2], "the connection ended"),
        (closing, "persistent: False, not True"),
    ],
)
async def test_fault_of_framing_is_a_difference(
    change: Callable[[bytes], bytes], difference: str
) -> None:
    """What goes out otherwise than HTTP has it does not pass."""
    data, errors = await run(CASE)

    assert compared(CASE, data, errors) == []
    assert difference in compared(CASE, change(data), errors)[0]


async def test_layer_that_sends_something_else_is_a_difference() -> None:
    """The model tells what a layer does from what it should have done."""
    step = Step("body", 200, b"another", "twice")
    layer = Layer((step,), waits=False, call_next=False, apart=False)
    meant = replace(CASE, layers=(layer,))
    data, errors = await run(CASE)

    assert "body: b'abc', not b'another'" in compared(meant, data, errors)
    assert "content-length: b'3', not b'7'" in compared(meant, data, errors)
