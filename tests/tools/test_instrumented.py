"""Stacks under real instrumentation; `tools/instrumented.py` says what is looked at."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests import ROOT


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("sentry", "sentry_sdk"),
        ("opentelemetry-asgi", "opentelemetry.instrumentation.asgi"),
        ("opentelemetry-classes", "opentelemetry.instrumentation.fastapi"),
        ("opentelemetry-fastapi", "opentelemetry.instrumentation.fastapi"),
        ("opentelemetry-starlette", "opentelemetry.instrumentation.starlette"),
    ],
)
def test_a_stack_under(name: str, module: str, order: str) -> None:
    """Requests, edits and `uninstall` are as in an instrumented application without one."""
    pytest.importorskip(module.partition(".")[0])
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    command = [sys.executable, "-m", "tools.instrumented", name, "--order", order]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "as without a stack" in done.stdout
