"""
The tests of Starlette, FastAPI and packages on `BaseHTTPMiddleware`, without and with httpmw.

    python tools/upstream.py WORK
    python tools/upstream.py WORK --only starlette --copies FOLDER

WORK is a folder outside of the project; environments and outcomes are kept there. The suites of
Starlette and FastAPI come from the source distributions of the releases that are installed here;
those of others, and of other versions of these, from FOLDER, with a folder for each suite that
was unpacked from its repository. A suite that is not there is left out, and that is said.

What a suite is run with is a pytest plugin of this folder:

* `empty_layers` puts layers that do nothing around every application.
* `patched_starlette` puts every `BaseHTTPMiddleware` on the engine of httpmw.
* `replaced_starlette` puts that of `httpmw.compat` in its place, as if it had been imported.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from suites import PIP, Result, Suite, report, run_twice

CLIENTS = ("httpx", "httpx2", "python-multipart", "requests")
QUIET = ("-q", "-p", "no:cacheprovider")
CALM = (*QUIET, "-p", "no:randomly")
# The test group of each holds more than tests need. The plugin looks for FastAPI, too. What is
# measured is the code of the folder.
OF_STARLETTE = (
    *("fastapi", ".[full]", "httpx2[zstd]", "blockbuster", "importlib-metadata"),
    *("opentelemetry-sdk", "pytest", "trio"),
)
FRAMES = (
    "expects a body in other messages than the app sent: each chunk with `more_body`, and an "
    "empty one at the end; here they stay as they are"
)
# What tests/compat/test_port.py asks of the drop-in in their place.
DEVIATIONS = {
    f"tests.middleware.test_base::{test}": reason
    for test, reason in (
        ("test_do_not_block_on_background_tasks", FRAMES),
        ("test_read_request_stream_in_dispatch_wrapping_app_calls_body", FRAMES),
        ("test_multiple_middlewares_stacked_client_disconnected", FRAMES),
        ("test_poll_for_disconnect_repeated", FRAMES),
        ("test_background_task_runs_after_response_sent_with_middleware", FRAMES),
        (
            "test_error_context_propagation",
            "expects that the exception of the app was given a cause; here it stays as it is",
        ),
        ("test_contextvars", "is expected to fail, and passes"),
    )
}
BASE = ("tests/middleware/test_base.py",)

# Each with its plugin. The pins of the others are years apart; what is tested is their code on
# the newest Starlette.
SUITES = {
    "starlette": (
        "empty_layers",
        Suite(
            "starlette",
            OF_STARLETTE,
            arguments=QUIET,
            meant={
                f"tests.test_testclient::test_invalid_trailer_sequence[{loop}-messages0-": (
                    "an app that sends nothing is a NoResponseError"
                )
                for loop in ("asyncio", "trio")
            },
        ),
    ),
    "fastapi": (
        "empty_layers",
        # Its own time limit is for a machine that does nothing else.
        Suite(
            "fastapi",
            (".[all]", "--group", "tests"),
            arguments=(*QUIET, "-p", "no:sugar", "--timeout=200"),
        ),
    ),
    "base-patched": (
        "patched_starlette",
        Suite("starlette", OF_STARLETTE, BASE, QUIET, DEVIATIONS),
    ),
    "base-replaced": (
        "replaced_starlette",
        Suite("starlette", OF_STARLETTE, BASE, QUIET, DEVIATIONS),
    ),
    **{
        suite.name: ("patched_starlette", suite)
        for suite in (
            # tomwojcik/starlette-context
            Suite(
                "starlette-context",
                (".", *CLIENTS, "pytest<9", "pytest-asyncio"),
                arguments=CALM,
            ),
            # laurentS/slowapi
            Suite(
                "slowapi",
                (".", *CLIENTS, "fastapi", "hiro", "mock", "pytest", "setuptools<81"),
                arguments=CALM,
            ),
            # Krukov/cashews; its other tests need a server that runs
            Suite(
                "cashews",
                (".[tests,redis,diskcache,speedup,dill]", *CLIENTS, "fastapi", "prometheus-client"),
                ("tests/test_intergations/test_fastapi.py",),
                (*CALM, "-k", "not redis"),
            ),
            # piccolo-orm/piccolo_api
            Suite(
                "piccolo_api",
                (".[all]", *CLIENTS, "piccolo[sqlite]", "pytest", "pyotp"),
                ("tests/csp", "tests/csrf", "tests/rate_limiting"),
                CALM,
            ),
            # trallnag/prometheus-fastapi-instrumentator
            Suite(
                "prometheus-fastapi-instrumentator",
                (".", *CLIENTS, "asgiref", "devtools", "fastapi", "pytest", "pytest-asyncio"),
                arguments=CALM,
            ),
            # jowilf/starlette-admin
            Suite(
                "starlette-admin",
                (".", "--group", "test"),
                ("tests/integration/core", "tests/unit"),
                CALM,
            ),
            # IBM/mcp-context-forge
            Suite(
                "mcp-context-forge",
                (
                    *(".", *CLIENTS, "fakeredis[lua]", "hypothesis", "pytest", "pytest-asyncio"),
                    *("pytest-env", "pytest-httpx", "pytest-timeout", "pytest-xdist", "aiohttp"),
                ),
                ("tests/unit/mcpgateway/middleware",),
                CALM,
            ),
        )
    },
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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("work", type=Path, help="a folder outside of the project, kept")
    parser.add_argument("--copies", type=Path, help="a folder with unpacked copies")
    parser.add_argument("--only", nargs="+", choices=SUITES, help="run some of them")
    options = parser.parse_args()
    work = options.work.resolve()
    report(run(options.only or SUITES, work, options.copies))


def run(names: Iterable[str], work: Path, copies: Path | None) -> Iterator[Result]:
    """
    Run the suites of which there is a copy.
    """
    for name in names:
        plugin, suite = SUITES[name]
        source = None if copies is None else copies.resolve() / suite.name
        if source is None or not source.exists():
            if suite.name not in {"starlette", "fastapi"}:
                print(f"{suite.name}: there is no copy of it")
                continue
            source = unpacked(suite.name, work)
        yield run_twice(suite, source, work, plugin)


if __name__ == "__main__":
    main()
