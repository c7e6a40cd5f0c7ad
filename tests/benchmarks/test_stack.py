"""The benchmark of stacks runs, and both sides of it do the same work; no time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import stack
from benchmarks.styles import NAME, VALUE
from tests.harness import request


@pytest.mark.parametrize("application", stack.APPLICATIONS)
@pytest.mark.parametrize("kind", stack.KINDS)
async def test_both_sides_answer_alike(application: str, kind: str) -> None:
    """With and without a stack the same messages are sent, with the header that the layers set."""
    arm = stack.Arm(application, kind, 5, stack=True)
    with_stack = await request(arm.app())
    without = await request(arm._replace(stack=False).app())

    assert with_stack.sent == without.sent
    assert (with_stack.headers.get(NAME) == VALUE) is (kind != "no-op")


def test_the_benchmark_prints_and_writes_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quick run has a line and a row for each application, kind and number of layers."""
    monkeypatch.setattr(stack, "LAYERS", (0, 2))
    file = tmp_path / "stack.json"

    assert stack.main(["--quick", "--json", str(file)]) == 0

    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == len(stack.compared()) == 18
    assert len(capsys.readouterr().out.splitlines()) == 19
