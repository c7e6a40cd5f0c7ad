"""
Starlette's own tests of `BaseHTTPMiddleware`, with nothing but the import replaced.

The file comes from the source distribution of the Starlette that is installed, or from a folder
into which one was unpacked:

    python tools/upstream_base.py WORK
    python tools/upstream_base.py WORK --starlette FOLDER

WORK is a folder outside of the project.
Every test runs on asyncio and on trio, once with `httpmw.compat.BaseHTTPMiddleware` and once as it
is under `patch_starlette()`.
The tests of `DEVIATIONS` must fail, at the place that is named; all others must pass.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from suites import ROOT, TOOLS
from upstream import unpacked

TESTS = Path("tests/middleware/test_base.py")
NEEDED = (
    "tests/__init__.py",
    "tests/conftest.py",
    "tests/types.py",
    "tests/middleware/__init__.py",
)
# Starlette's own settings, but for those that belong to its repository.
SETTINGS = '[pytest]\naddopts = "-rXs --strict-config --strict-markers"\nfilterwarnings = error\n'


class Deviation(NamedTuple):
    """
    A test that expects what httpmw does otherwise on purpose.
    """

    reason: str
    # What stands in the failed assertion.
    fails_with: str


FRAMES = Deviation(
    "expects a body in other messages than the app sent: each chunk with `more_body`, and an "
    "empty one at the end; here they stay as they are",
    "'http.response.body'",
)
DEVIATIONS = {
    "test_do_not_block_on_background_tasks": FRAMES,
    "test_read_request_stream_in_dispatch_wrapping_app_calls_body": FRAMES,
    "test_multiple_middlewares_stacked_client_disconnected": FRAMES,
    "test_poll_for_disconnect_repeated": FRAMES,
    "test_background_task_runs_after_response_sent_with_middleware": Deviation(
        "expects two messages where the app sent one", "'http.response.body'"
    ),
    "test_error_context_propagation": Deviation(
        "expects that the exception of the app was given another context, and a cause that it "
        "did not have; here it is handed on as it is",
        "__context__ is not None",
    ),
}
# Starlette marks it as one that must fail, with its own class.
EXPECTED_TO_FAIL = "test_contextvars"


class Case(NamedTuple):
    """
    What became of one test.
    """

    name: str
    kind: str
    message: str

    @property
    def function(self) -> str:
        """
        The name without its parameters.
        """
        return self.name.partition("[")[0]


def prepare(source: Path, folder: Path, *, replace: bool) -> None:
    """
    Lay out what the tests need in *folder*, with the import replaced or patched.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name in NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    text = (source / TESTS).read_text()
    module = "from starlette.middleware.base import "
    if text.count(module) != 1:
        message = f"{source / TESTS} imports BaseHTTPMiddleware in some other way"
        raise SystemExit(message)
    if replace:
        text = text.replace(module, "from httpmw.compat import ")
    (folder / TESTS).write_text(text)
    (folder / "pytest.ini").write_text(SETTINGS)
    # Ours alone: the tests of this project would stand in the way of theirs.
    (folder / "packages").mkdir()
    (folder / "packages" / "httpmw").symlink_to(ROOT / "httpmw")


def run(folder: Path, *plugin: str) -> list[Case]:
    """
    Run the tests in *folder*.
    """
    python: Path | str = sys.executable
    xml = folder / "outcomes.xml"
    path = os.pathsep.join(map(str, (folder / "packages", TOOLS)))
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", *plugin]
    command += [f"--junitxml={xml}", str(TESTS)]
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "output.log").open("w") as output:
        subprocess.run(  # noqa: PLW1510 - its exit code says nothing that the outcomes do not
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    if not xml.exists():
        message = f"the tests did not run, see {folder / 'output.log'}"
        raise SystemExit(message)
    return list(_read(xml))


def _read(xml: Path) -> Iterator[Case]:
    for case in ET.parse(xml).iter("testcase"):  # noqa: S314 - written by our own pytest
        outcome = next((each for each in case if each.tag in {"error", "failure", "skipped"}), None)
        name = case.get("name", "")
        if outcome is None:
            yield Case(name, "passed", "")
        else:
            yield Case(name, outcome.tag, f"{outcome.get('message')}\n{outcome.text}")


def unexpected(cases: list[Case]) -> Iterator[str]:
    """
    Give a line for each outcome that is not the expected one.
    """
    found = {case.function for case in cases}
    if not {EXPECTED_TO_FAIL, "test_custom_middleware"} <= found:
        yield "the tests were not found"
    for backend in ("asyncio", "trio"):
        if not any(backend in case.name for case in cases):
            yield f"nothing was run on {backend}"
    for case in cases:
        deviation = DEVIATIONS.get(case.function)
        if deviation is None:
            if case.kind != "passed":
                yield f"{case.name}: {case.kind}: {case.message}"
        elif case.kind != "failure":
            yield f"{case.name}: {case.kind}, but it should deviate: {deviation.reason}"
        elif deviation.fails_with not in case.message:
            yield f"{case.name}: fails in some other way: {case.message}"


def main() -> None:
    """
    Run Starlette's tests on the engine of httpmw, and say what deviates.
    """
    parser = argparse.ArgumentParser(description="Starlette's test_base.py on this engine.")
    parser.add_argument("work", type=Path, help="a folder outside of the project, kept")
    parser.add_argument("--starlette", type=Path, metavar="FOLDER", help="an unpacked copy")
    options = parser.parse_args()
    work = options.work.resolve()
    source = (options.starlette or unpacked("starlette", work)).resolve()
    ways: Mapping[str, tuple[bool, tuple[str, ...]]] = {
        "import replaced": (True, ()),
        "patched": (False, ("-p", "patched_starlette")),
    }
    failed = False
    for way, (replace, plugin) in ways.items():
        folder = work / "test_base" / way.replace(" ", "_")
        prepare(source, folder, replace=replace)
        cases = run(folder, *plugin)
        passed = sum(case.kind == "passed" for case in cases)
        print(f"{way}: {passed} of {len(cases)} passed")
        for name in sorted({case.function for case in cases} & DEVIATIONS.keys()):
            print(f"  deviates as it should: {name} {DEVIATIONS[name].reason}")
        for line in unexpected(cases):
            failed = True
            print(f"  UNEXPECTED: {line}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
