"""
Plant faults in the engine, one at a time, and see what notices.

    python -m tools.mutate               all of them, on as many cores as there are
    python -m tools.mutate --only gate   those with "gate" in their name
    python -m tools.mutate --check       only whether each still applies

The faults are in `tools/mutations.py`. Each is applied to a copy of the project, which is then put
through some schedules, all of them before the next step; through the tests that should notice,
and then the engine's part of the suite; and, if it is still alive, through the rest of 50,000
schedules.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parent.parent
COPIED = ("httpmw", "tests", "tools", "pyproject.toml")
SUITE = [
    f"tests/engine/test_{name}.py"
    for name in (
        *("every_fault", "schedules", "discarded", "events", "request_body", "connection"),
        *("response", "rules", "tasks_and_contexts", "fusing", "errors"),
    )
]
# Event loop, first seed and number of the schedules before and after the suite.
BEFORE = [("asyncio", 0, 8_000), ("trio", 0, 1_000)]
AFTER = [("asyncio", 8_000, 34_000), ("trio", 1_000, 7_000)]
SECONDS = 1800  # that nothing takes


def check() -> list[str]:
    """Say which faults can not be planted, and why."""
    complaints = []
    for mutation in MUTATIONS:
        count = (ROOT / mutation.file).read_text().count(mutation.old)
        if count != 1:
            complaints.append(
                f"{mutation.name!r}: its text is {count} times in {mutation.file}, not once. "
                "Bring tools/mutations.py up to date."
            )
        if mutation.old == mutation.new:
            complaints.append(f"{mutation.name!r} changes nothing")
        file, _, test = mutation.tests.partition("::")
        if test and f"def {test}(" not in (ROOT / file).read_text():
            complaints.append(f"{mutation.name!r}: there is no {mutation.tests}")
    names = Counter(mutation.name for mutation in MUTATIONS)
    complaints += [f"{name!r} is there {count} times" for name, count in names.items() if count > 1]
    return complaints


def run_schedules(backend: str, first: int, count: int) -> int:
    """Run schedules until one fails; give 1 then, and say which."""
    from httpmw.testing.exploring._schedule import runs  # noqa: PLC0415 - of the copy that is mutated
    from tests.scenarios import engine  # noqa: PLC0415

    def alarm(*_: Any) -> None:
        raise TimeoutError("it hangs")

    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(60)
    for seed, _, error in runs(engine, range(first, first + count), backend):
        signal.alarm(60)
        if error is not None:
            print(f"schedule {seed} on {backend}: {type(error).__name__}")
            return 1
    return 0


STEPS: list[Callable[[Path, Mutation | None], str | None]] = [
    lambda tree, _: _schedules(tree, BEFORE),
    lambda tree, mutation: _suite(
        tree, [each.tests for each in MUTATIONS if each.tests and mutation in (None, each)]
    ),
    lambda tree, _: _suite(tree, SUITE),
    lambda tree, _: _schedules(tree, AFTER),
]


def plant(names: list[str], workers: int) -> dict[str, str | None] | None:
    """Take every fault through the steps; give what has noticed it, None if that needs no fault."""
    outcome: dict[str, str | None] = dict.fromkeys(names)
    fresh = multiprocessing.get_context("spawn")
    with fresh.Pool(workers, maxtasksperchild=1) as pool:
        for step in range(len(STEPS)):
            left = [name for name in names if outcome[name] is None]
            if not left:
                break
            print(f"step {step + 1} of {len(STEPS)}: {len(left)} are alive", flush=True)
            # The first one is no fault at all: nothing may notice it.
            tasks = [(name, step) for name in ["", *left]]
            for name, noticed, seconds in pool.imap_unordered(survey, tasks):
                if noticed and not name:
                    print(f"without any fault this fails already: {noticed}")
                    return None
                if noticed:
                    outcome[name] = noticed
                    print(f"{noticed:60} {name} ({seconds:.0f} s)", flush=True)
    return outcome


def survey(task: tuple[str, int]) -> tuple[str, str | None, float]:
    """Plant a fault and take one step; give what has noticed it, None when nothing has."""
    name, step = task
    mutation = next((each for each in MUTATIONS if each.name == name), None)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for each in COPIED:
            source = ROOT / each
            if source.is_dir():
                shutil.copytree(source, tree / each, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tree / each)
        if mutation is not None:
            path = tree / mutation.file
            path.write_text(path.read_text().replace(mutation.old, mutation.new))
        noticed = STEPS[step](tree, mutation)
    return name, noticed, time.monotonic() - started


def _schedules(tree: Path, pieces: list[tuple[str, int, int]]) -> str | None:
    for piece in pieces:
        done = _run(tree, "-m", "tools.mutate", "--schedules", *map(str, piece))
        if done.returncode:
            found = re.search(r"^schedule .*", done.stdout, re.MULTILINE)
            return found[0] if found else f"schedules: {done.stderr.strip().splitlines()[-1:]}"
    return None


def _suite(tree: Path, files: list[str]) -> str | None:
    if not files:
        return None
    done = _run(
        tree,
        *("-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"),
        *("--deselect", "tests/engine/test_schedules.py::test_random_schedules"),
        *files,
    )
    if not done.returncode:
        return None
    found = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else f"the suite: {done.stdout.strip().splitlines()[-1:]}"


def _run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            check=False,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(arguments, 1, f"schedule? no end in {SECONDS} s", "")


def main() -> int:
    """Plant what is asked for; give 1 when a fault survives that is not known to be equivalent."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", type=Path, help="where to write the outcome to")
    parser.add_argument("--schedules", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.schedules:
        backend, first, count = options.schedules
        return run_schedules(backend, int(first), int(count))
    complaints = check()
    for complaint in complaints:
        print(complaint)
    if options.check or complaints:
        print(f"{len(MUTATIONS)} faults, {len(complaints)} complaints")
        return 1 if complaints else 0

    outcome = plant([each.name for each in MUTATIONS if options.only in each.name], options.workers)
    if outcome is None:
        return 1
    alive = [each for each in MUTATIONS if outcome.get(each.name, "not asked for") is None]
    unexplained = [each for each in alive if not each.equivalent]
    print(f"{len(outcome)} faults, {len(outcome) - len(alive)} killed, {len(alive)} survived:")
    for each in alive:
        print(f"  {each.name}: {each.equivalent or 'NO REASON IS KNOWN'}")
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1) + "\n")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
