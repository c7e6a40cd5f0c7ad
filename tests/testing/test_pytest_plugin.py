"""The fixtures of `httpmw.pytest_plugin`, in a run of pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import ROOT

TESTS = """
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from httpmw.testing import step

loops = []


async def served_by(conn):
    response = yield
    response.headers["x-served-by"] = "mine"


def test_run(run_middleware, middleware_loop):
    loops.append(middleware_loop)
    result = run_middleware(served_by, PlainTextResponse("data"), path="/x")
    assert result.headers["x-served-by"] == "mine"
    assert result.request.url.path == "/x"


def test_step(on_loop):
    async def scenario(status, *, data):
        async with step(served_by) as flow:
            await flow.respond(status)
            await flow.finish(data)
        return flow

    flow = on_loop(scenario, 201, data=b"data")
    assert (flow.status, flow.body) == (201, b"data")


def test_both_loops():
    assert loops == ["asyncio", "trio"]


def test_checked(checked_app):
    app = checked_app(PlainTextResponse("data"))
    assert TestClient(app).get("/").text == "data"


def test_broken(checked_app):
    async def app(scope, receive, send):
        headers = [(b"Server", b"mine")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    assert TestClient(checked_app(app)).get("/").status_code == 200
"""


def run_tests(folder: Path, *options: str) -> str:
    """Run the tests above, and give what pytest prints."""
    (folder / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "httpmw.pytest_plugin", "-rA", *options]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    ).stdout


def test_fixtures(tmp_path: Path) -> None:
    """They run on both loops, without a plugin for async tests; what the checker finds fails."""
    output = run_tests(tmp_path)

    assert "7 passed, 1 error" in output, output
    assert "ERROR test_it.py::test_broken" in output
    assert "H06: The name of a header is a token in lower case" in output
    assert "b'Server'" in output


def test_without_trio(tmp_path: Path) -> None:
    """Where there is no trio its half is skipped."""
    (tmp_path / "conftest.py").write_text(
        "import importlib.util, httpmw.pytest_plugin as plugin\n"
        "plugin.find_spec = lambda name: None if name == 'trio' else object()\n"
    )
    output = run_tests(tmp_path, "-k", "run or step")

    assert "2 passed, 2 skipped" in output, output
    assert "trio is not installed" in output
