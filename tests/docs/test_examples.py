"""
The sample application and its demo, as a user runs them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import httpx2
import pytest
from starlette.applications import Starlette

from examples import demo
from tests import ROOT


def test_the_demo_ends_by_itself_with_everything_as_it_should_be():
    """
    `python -m examples.demo` exits with 0, and writes nothing to standard error.
    """
    result = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (0, "") == (result.returncode, result.stderr), result.stdout


def test_the_demo_fits_two_screens(capsys: pytest.CaptureFixture[str]):
    """
    The demo prints at most 75 lines, none longer than 100 columns.
    """
    demo.main()

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 75
    assert max(map(len, lines)) <= 100


def test_the_demo_says_what_is_not_as_it_should_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """
    Around an application without the middleware the demo exits with 1 and names the difference.
    """
    monkeypatch.setattr(demo, "app", Starlette())
    monkeypatch.setattr(demo, "STEPS", demo.STEPS[:1])
    monkeypatch.setattr(demo, "READY", [])
    monkeypatch.setattr(demo, "TIMEOUT", 1)

    code = demo.main()

    assert 1 == code
    assert "GET /hello: status is 404, expected 200" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to another process")
def test_the_server_stays_up_until_it_is_interrupted():
    """
    With SERVE=1 the demo prints its address, answers there, and ends at Ctrl-C with 0.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env={**os.environ, "SERVE": "1", "PORT": "0"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            first_line = process.stdout.readline()
            url = first_line.split()[2].rstrip(",")
            answer = httpx2.get(f"{url}/hello", trust_env=False)
            process.send_signal(signal.SIGINT)
            code = process.wait(timeout=30)
        finally:
            process.kill()

    assert {"data": {"hello": "world"}} == answer.json()
    assert 0 == code
