"""
Starlette's and FastAPI's own tests with empty layers of httpmw around every application.

The suites come from the source distributions of the releases that are asked for, or from folders:

    python tools/upstream.py WORK
    python tools/upstream.py WORK --starlette FOLDER --fastapi FOLDER

WORK is a folder outside of the project; environments and outcomes are kept there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from suites import PIP, Suite, report, run_twice

SUITES = {
    # The test group of each holds more than tests need, hence the lists.
    "starlette": Suite(
        "starlette",
        # The plugin looks for FastAPI, too. What is measured is the code of the folder.
        (
            *("fastapi", ".[full]", "httpx2[zstd]", "blockbuster", "importlib-metadata"),
            *("opentelemetry-sdk", "pytest", "trio"),
        ),
        arguments=("-q", "-p", "no:cacheprovider"),
        meant={
            f"tests.test_testclient::test_invalid_trailer_sequence[{loop}-messages0-": (
                "an app that sends nothing is a NoResponseError"
            )
            for loop in ("asyncio", "trio")
        },
    ),
    "fastapi": Suite(
        "fastapi",
        (".[all]", "--group", "tests"),
        # Its own time limit is for a machine that does nothing else.
        arguments=("-q", "-p", "no:cacheprovider", "-p", "no:sugar", "--timeout=200"),
    ),
}


def unpacked(name: str, work: Path) -> Path:
    """
    Get the source distribution of the release that is installed here; it holds the tests.
    """
    release = f"{name}-{version(name)}"
    folder = work / name / release
    if not folder.exists():
        download = ("download", "--no-deps", "--no-binary", name, "--dest", work / name)
        requirement = f"{name}=={version(name)}"
        subprocess.run([sys.executable, *PIP, *download, requirement], check=True)
        with tarfile.open(work / name / f"{release}.tar.gz") as archive:
            archive.extractall(work / name, filter="data")
    return folder


def main() -> None:
    """
    Run the suites that the command line asks for.
    """
    parser = argparse.ArgumentParser(description="Starlette's and FastAPI's tests, with layers.")
    parser.add_argument("work", type=Path, help="a folder outside of the project, kept")
    for name in SUITES:
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help="an unpacked copy")
    parser.add_argument("--only", choices=SUITES, help="run one of them")
    options = parser.parse_args()
    work = options.work.resolve()
    report(
        run_twice(suite, getattr(options, name) or unpacked(name, work), work, "empty_layers")
        for name, suite in SUITES.items()
        if options.only in {None, name}
    )


if __name__ == "__main__":
    main()
