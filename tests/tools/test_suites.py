"""How the runs of other projects' test suites are compared."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tools import suites
from tools.suites import Outcomes, Result, Suite, report

SUITE = Suite("theirs", (), meant={"test_a[": "it has to be so"})


def outcomes(**names: str) -> Outcomes:
    return {name: Counter([outcome]) for name, outcome in names.items()}


def test_same_outcomes_are_no_differences(capsys: pytest.CaptureFixture[str]) -> None:
    """Failures that a suite has anyway are none of ours."""
    same = outcomes(test_a="passed", test_b="failure")
    report([Result(SUITE, same, dict(same))])

    assert capsys.readouterr().out == (
        "theirs: 1 failure, 1 passed without, 1 failure, 1 passed with\n"
        "  0 differences, and 0 that are meant\n"
    )


def test_difference_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A test that ends in another way is named, with both ends."""
    plain, changed = outcomes(test_a="passed"), outcomes(test_a="failure")
    with pytest.raises(SystemExit):
        report([Result(SUITE, plain, changed)])

    assert "test_a: 1 passed without, 1 failure with\n" in capsys.readouterr().out


def test_test_that_did_not_run_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A test that was not even collected is a difference, too."""
    with pytest.raises(SystemExit):
        report([Result(SUITE, outcomes(test_a="passed"), {})])

    assert "test_a: 1 passed without, not run with\n" in capsys.readouterr().out


def test_suite_without_a_pass_is_an_error() -> None:
    """A suite that did not work at all proves nothing."""
    with pytest.raises(SystemExit):
        report([Result(SUITE, {}, {})])


def test_meant_difference_is_reported_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """A difference that is meant is no error."""
    plain = {"test_a[1]": Counter(["passed"]), "test_b": Counter(["passed"])}
    changed = plain | {"test_a[1]": Counter(["failure"])}
    report([Result(SUITE, plain, changed)])

    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  test_a[1]: 1 passed without, 1 failure with; it has to be so"
    assert lines[2] == "  0 differences, and 1 that are meant"


def test_outcomes_are_read_of_what_pytest_writes(tmp_path: Path) -> None:
    """Each outcome is counted under the name of its test."""
    xml = tmp_path / "out.xml"
    xml.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="m" name="a"/>'
        '<testcase classname="m" name="b"><failure/></testcase>'
        '<testcase classname="m" name="c"><skipped/></testcase>'
        '<testcase classname="m" name="d"><error/></testcase>'
        "</testsuite></testsuites>"
    )

    assert dict(suites._read(xml)) == {
        "m::a": "passed",
        "m::b": "failure",
        "m::c": "skipped",
        "m::d": "error",
    }
