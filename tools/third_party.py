"""
The suites of packages that stand on `BaseHTTPMiddleware`, with and without `patch_starlette()`.

    python tools/third_party.py WORK COPIES

WORK is a folder outside of the project for environments and outcomes.
COPIES holds a folder for each suite, unpacked from its repository:

    cashews                             Krukov/cashews
    mcp-context-forge                   IBM/mcp-context-forge
    piccolo_api                         piccolo-orm/piccolo_api
    prometheus-fastapi-instrumentator   trallnag/prometheus-fastapi-instrumentator
    slowapi                             laurentS/slowapi
    starlette-admin                     jowilf/starlette-admin
    starlette-context                   tomwojcik/starlette-context

A suite of which there is no copy is left out, and that is said.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from suites import Suite, report, run_twice

CLIENTS = ("httpx", "httpx2", "python-multipart", "requests")
QUIET = ("-q", "-p", "no:cacheprovider", "-p", "no:randomly")

# The pins of the projects themselves are years apart; what is tested is their code on the
# newest Starlette, without and with the patch.
SUITES = [
    Suite(
        "starlette-context",
        (".", *CLIENTS, "pytest<9", "pytest-asyncio"),
        arguments=QUIET,
    ),
    Suite(
        "slowapi",
        (".", *CLIENTS, "fastapi", "hiro", "mock", "pytest", "setuptools<81"),
        arguments=QUIET,
    ),
    Suite(
        "cashews",
        (".[tests,redis,diskcache,speedup,dill]", *CLIENTS, "fastapi", "prometheus-client"),
        tests=("tests/test_intergations/test_fastapi.py",),
        # The others need a server that runs.
        arguments=(*QUIET, "-k", "not redis"),
    ),
    Suite(
        "piccolo_api",
        (".[all]", *CLIENTS, "piccolo[sqlite]", "pytest", "pyotp"),
        tests=("tests/csp", "tests/csrf", "tests/rate_limiting"),
        arguments=QUIET,
    ),
    Suite(
        "prometheus-fastapi-instrumentator",
        (".", *CLIENTS, "asgiref", "devtools", "fastapi", "pytest", "pytest-asyncio"),
        arguments=QUIET,
    ),
    Suite(
        "starlette-admin",
        (".", "--group", "test"),
        tests=("tests/integration/core", "tests/unit"),
        arguments=QUIET,
    ),
    Suite(
        "mcp-context-forge",
        (
            *(".", *CLIENTS, "fakeredis[lua]", "hypothesis", "pytest", "pytest-asyncio"),
            *("pytest-env", "pytest-httpx", "pytest-timeout", "pytest-xdist", "aiohttp"),
        ),
        tests=("tests/unit/mcpgateway/middleware",),
        arguments=QUIET,
    ),
]


def main() -> None:
    """
    Run the suites of which there are copies.
    """
    parser = argparse.ArgumentParser(description="Third-party suites under patch_starlette().")
    parser.add_argument("work", type=Path, help="a folder outside of the project, kept")
    parser.add_argument("copies", type=Path, help="a folder with the copies")
    parser.add_argument("--only", help="run one of them", choices=[each.name for each in SUITES])
    options = parser.parse_args()
    chosen = [suite for suite in SUITES if options.only in {None, suite.name}]
    copies = options.copies.resolve()
    for suite in chosen:
        if not (copies / suite.name).exists():
            print(f"{suite.name}: no copy in {copies}")
    report(
        run_twice(suite, copies / suite.name, options.work.resolve(), "patched_starlette")
        for suite in chosen
        if (copies / suite.name).exists()
    )


if __name__ == "__main__":
    main()
