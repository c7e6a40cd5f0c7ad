"""
Run test suites of other projects twice, as they are and with a pytest plugin, and compare.

Nothing of theirs is kept here: a suite is run where it was unpacked, in an environment of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = Path(__file__).parent
ROOT = TOOLS.parent
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")

# How often each outcome was seen, by the name of the test; names are not always unique.
Outcomes = dict[str, Counter[str]]


@dataclass(frozen=True)
class Suite:
    """
    The test suite of another project.

    *install* is what pip gets, in the folder of the suite; *tests* and *arguments* go to pytest.
    *meant* are the tests that the plugin is meant to change, by the beginning of their names, with
    the reason.
    """

    name: str
    install: tuple[str, ...]
    tests: tuple[str, ...] = ("tests",)
    arguments: tuple[str, ...] = ()
    meant: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """
    What became of a suite without the plugin and with it.
    """

    suite: Suite
    plain: Outcomes
    changed: Outcomes

    @property
    def differences(self) -> list[str]:
        """
        The tests that did not end in the same way, apart from those that are meant.
        """
        return [test for test in self._changed() if self._reason(test) is None]

    def _changed(self) -> list[str]:
        tests = sorted(self.plain.keys() | self.changed.keys())
        return [test for test in tests if self.plain.get(test) != self.changed.get(test)]

    def _reason(self, test: str) -> str | None:
        reasons = (why for name, why in self.suite.meant.items() if test.startswith(name))
        return next(reasons, None)

    def __str__(self) -> str:
        plain, changed = words(total(self.plain)), words(total(self.changed))
        title = f"{self.suite.name}: {plain} without, {changed} with"
        return "\n  ".join([title, *map(self._line, self._changed()), self._last_line()])

    def _line(self, test: str) -> str:
        plain, changed = words(self.plain.get(test)), words(self.changed.get(test))
        reason = self._reason(test)
        return f"{test}: {plain} without, {changed} with{f'; {reason}' if reason else ''}"

    def _last_line(self) -> str:
        found = len(self.differences)
        return f"{found} differences, and {len(self._changed()) - found} that are meant"


def run_twice(suite: Suite, source: Path, work: Path, plugin: str) -> Result:
    """
    Run *suite*, unpacked in *source*, without and with *plugin*, a module of this folder.

    Args:
        suite: What to install, and what to run.
        source: Where the suite was unpacked; what it writes while it runs is written there.
        work: A folder for the environment, which is kept, and for the outcomes.
        plugin: The name of the module.

    Returns:
        What became of each test.
    """
    python = environment(work / suite.name, suite.install, cwd=source)
    return Result(
        suite,
        plain=outcomes(suite, source, python, work / suite.name / "plain.xml", ()),
        changed=outcomes(suite, source, python, work / suite.name / "changed.xml", ("-p", plugin)),
    )


def report(results: Iterable[Result]) -> None:
    """
    Print what became of the suites.

    Raises:
        SystemExit: A suite makes a difference, or none of its tests passed.
    """
    failed = False
    for result in results:
        print(result, flush=True)
        failed |= bool(result.differences) or not total(result.plain)["passed"]
    if failed:
        raise SystemExit(1)


def environment(folder: Path, packages: Sequence[str], cwd: Path | None = None) -> Path:
    """
    Make an environment in *folder*, once, with what pip is told in *cwd*, and httpmw as it is now.
    """
    python = folder / "venv" / "bin" / "python"
    if not (folder / "installed").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run(sys.executable, "-m", "venv", "--clear", str(folder / "venv"))
        _run(python, *PIP, "install", "--upgrade", "pip>=25.1")
        _run(python, *PIP, "install", *packages, cwd=cwd)
        (folder / "installed").touch()
    # A copy, not a link: the folder with our own `tests` must not be on the path of theirs.
    _run(python, *PIP, "install", "--force-reinstall", "--no-deps", str(ROOT))
    return python


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True)


def outcomes(
    suite: Suite, source: Path, python: Path, xml: Path, plugin: tuple[str, ...]
) -> Outcomes:
    xml.unlink(missing_ok=True)
    output = xml.with_suffix(".log")
    options = [*plugin, *suite.arguments, f"--junitxml={xml}", *suite.tests]
    command: list[str | Path] = [python, "-m", "pytest", *options]
    # In `src` is what a suite has not installed.
    path = os.pathsep.join((str(TOOLS), str(source / "src")))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    with output.open("w") as file:
        # A suite with failures of its own is compared all the same.
        subprocess.run(  # noqa: PLW1510 - its exit code says nothing that the outcomes do not
            command, cwd=source, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    if not xml.exists():
        message = f"{suite.name} did not run, see {output}"
        raise SystemExit(message)
    outcomes: Outcomes = {}
    for test, outcome in _read(xml):
        outcomes.setdefault(test, Counter())[outcome] += 1
    return outcomes


def _read(xml: Path) -> Iterator[tuple[str, str]]:
    for case in ET.parse(xml).iter("testcase"):  # noqa: S314 - written by our own pytest
        kinds = {child.tag for child in case} & {"error", "failure", "skipped"}
        yield f"{case.get('classname')}::{case.get('name')}", min(kinds, default="passed")


def total(outcomes: Outcomes) -> Counter[str]:
    return sum(outcomes.values(), Counter())


def words(outcomes: Counter[str] | None) -> str:
    if not outcomes:
        return "not run"
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
