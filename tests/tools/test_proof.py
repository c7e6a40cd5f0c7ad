"""`make proof`: each proof gets its share of the time, and the page shows the run that was kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools import proof
from tools.proof import PROOFS, Proof, Ran, prove

KEPT = json.loads(proof.KEPT.read_text())


def test_the_page_shows_the_run_that_was_kept() -> None:
    """Every figure of the table is one of the JSON file: `make proof ARGS=--keep` writes both."""
    text = proof.PAGE.read_text()

    assert text == proof.page(text, KEPT)
    assert proof.TABLE.search(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", KEPT["date"])


def test_the_run_that_was_kept_is_whole_and_holds() -> None:
    """No proof was left out, and none failed."""
    assert KEPT["proofs"].keys() == PROOFS.keys()
    assert all(each["holds"] for each in KEPT["proofs"].values())


@pytest.mark.parametrize("name", PROOFS)
def test_a_proof_has_its_section_and_its_tool(name: str) -> None:
    """The table leads to what the proof does, and its command is one of the tools."""
    headings = re.findall(r"^## (.+)$", proof.PAGE.read_text(), re.MULTILINE)
    tool = PROOFS[name].command.split("-m ")[-1].split()[0]

    assert PROOFS[name].says in {re.sub(r"[^a-z]+", "-", each.lower()) for each in headings}
    assert (proof.ROOT / f"{tool.replace('.', '/').removesuffix('/py')}.py").exists()


def counts(monkeypatch: Any, seconds: float, share: float, **fields: Any) -> list[int]:
    """Run a proof of which one takes *seconds*, and give how many were asked for each time."""
    asked: list[int] = []
    clock = [0.0]

    def run(command: str, limit: float, lines: str) -> Ran:
        asked.append(int(command))
        clock[0] += seconds * asked[-1]
        return Ran(fields.get("code", 0), seconds * asked[-1], "")

    monkeypatch.setattr(proof, "run", run)
    monkeypatch.setattr(proof.time, "monotonic", lambda: clock[0])
    found = prove(Proof("", "{count}", "things", 10, fields.get("step", 1)), share)
    assert found["count"] == asked[-1]
    return asked


def test_a_proof_is_run_for_its_share(monkeypatch: Any) -> None:
    """After a few it is known how many there are in the time that is left."""
    assert counts(monkeypatch, 0.1, 60) == [10, 590]


def test_a_proof_whose_first_piece_takes_its_share_is_run_once(monkeypatch: Any) -> None:
    """There is nothing to gain by beginning again."""
    assert counts(monkeypatch, 5, 60) == [10]


def test_a_failure_ends_a_proof(monkeypatch: Any) -> None:
    """What failed is not run until it passes."""
    assert counts(monkeypatch, 0.1, 60, code=1) == [10]


def test_figures_that_come_in_steps_are_asked_for_in_steps(monkeypatch: Any) -> None:
    """As those of `make leaks`, which looks after each 10,000 requests."""
    assert counts(monkeypatch, 0.1, 60, step=100) == [10, 500]


def test_what_a_command_says_is_found(tmp_path: Path) -> None:
    """The lines are those that the proof names, and a failure of the command is one of it."""
    (tmp_path / "fails.py").write_text("print('noise')\nprint('3 failures')\nraise SystemExit(1)\n")

    ran = proof.run(str(tmp_path / "fails.py"), 10, r"\d failures")

    assert (ran.code, ran.says) == (1, "3 failures")
