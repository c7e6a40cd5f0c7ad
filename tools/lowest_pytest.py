"""
A pytest plugin for `make test-lowest`: what the suite needs with the oldest dependencies.

1. anyio knows `anyio_mode = "auto"` from 4.11 on.
2. Before anyio 4.16 and Starlette 1.10 a `FileResponse` that is cancelled while it opens its
   file leaves the file open, with or without httpmw.
3. Tests that need more of Starlette than its oldest supported version has are skipped; NEWER
   says which, and why.
"""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import TYPE_CHECKING

import pytest
from starlette.requests import Request

if TYPE_CHECKING:
    from _pytest.python import PyCollector

RAISES_AGAIN = (
    "this Starlette's BaseHTTPMiddleware raises what its dispatch caught once more, "
    "so that no middleware that catches behaves the same on httpmw"
)
# Why tests are skipped on a Starlette without `Request.send_early_hints()`: a file, and what its
# tests of that kind have in their names.
NEWER = {
    ("engine/test_connection", "early_hints_go_out_at_once"): "no Request.send_early_hints()",
    ("compat/test_port", "pathsend_passes"): "no FileResponse that leaves its file to the server",
    ("migrate/test_rewrite", "an answer in a try that catches"): RAISES_AGAIN,
    ("migrate/verifying/test_verify", "[Errors.dispatch]"): RAISES_AGAIN,
    ("migrate/verifying/test_verify", "is_named[app-not-cancelled]"): (
        "this Starlette's BaseHTTPMiddleware lets the app end before a background task begins"
    ),
    ("migrate/verifying/test_verify", "test_the_drop_in_behaves_the_same"): RAISES_AGAIN,
    ("migrate/verifying/test_alarms", "[a traceback in a log and in a body]"): RAISES_AGAIN,
    ("migrate/verifying/test_alarms", "[the frames of a traceback]"): RAISES_AGAIN,
    ("migrate/verifying/test_safety", "test_generated_middleware_behaves_the_same"): RAISES_AGAIN,
    ("engine/test_tasks_and_contexts", "file_response_sends_from_the_task"): (
        "this Starlette's FileResponse has no task of its own"
    ),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """
    Make the setting known.
    """
    parser.addini("anyio_mode", "taken as auto", default="auto")


def pytest_configure(config: pytest.Config) -> None:
    """
    Let the open files pass.
    """
    config.addinivalue_line("filterwarnings", "ignore:unclosed file:ResourceWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: PyCollector, name: str, obj: object) -> None:
    """
    Mark every coroutine test, as the setting does.
    """
    if collector.istestfunction(obj, name) and iscoroutinefunction(obj):
        pytest.mark.usefixtures("anyio_backend")(obj)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Skip what the oldest Starlette does not have.
    """
    if hasattr(Request, "send_early_hints"):
        return
    for item in items:
        for (file, part), reason in NEWER.items():
            if item.nodeid.startswith(f"tests/{file}.py::") and part in item.name:
                item.add_marker(pytest.mark.skip(reason=reason))
