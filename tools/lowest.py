"""
Print a constraint for each run-time dependency: exactly its lower bound in pyproject.toml.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

for requirement in tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]:
    bound = re.fullmatch(r"([\w-]+)>=([\w.]+)(?:; .*)?", requirement)
    if bound is None:
        message = f"{requirement!r} in pyproject.toml has no plain lower bound"
        raise SystemExit(message)
    print("{}=={}".format(*bound.groups()))
