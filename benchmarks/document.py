"""
What every benchmark writes: when, on what, and its rows.

A document is `{"about": {...}, "rows": [...]}`; a row is a flat description of an arm and its
figures. `.cache/benchmarks/VERSION/NAME.json` is the last run of a benchmark on a Python version,
and those of `--quick` are kept apart from it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpmw

Document = dict[str, Any]
Row = dict[str, Any]

ROOT = Path(__file__).parent.parent
RUNS = ROOT / ".cache" / "benchmarks"
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


def document(rows: Sequence[Row], packages: Sequence[str] = ()) -> Document:
    """
    Put rows together with what they were measured on.

    Args:
        rows: The figures.
        packages: The distributions, beside Starlette and anyio, whose versions matter.
    """
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {
            "httpmw": httpmw.__version__,
            **{name: version(name) for name in ("starlette", "anyio", *packages)},
        },
        "machine": f"{os.cpu_count()} cores",
    }
    return {"about": about, "rows": list(rows)}


def write(file: Path, content: Mapping[str, Any]) -> None:
    """
    Write a document with one row in a line, so that two runs can be compared.
    """
    rows = ",\n".join(f"  {json.dumps(row)}" for row in content["rows"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{{"about": {json.dumps(content["about"])},\n "rows": [\n{rows}\n]}}\n')


def run_file(name: str, python: str = PYTHON, *, quick: bool = False) -> Path:
    """
    Name the file of the last run of a benchmark.
    """
    return RUNS / ("quick" if quick else "") / python / f"{name}.json"


def read(file: Path) -> Document | None:
    """
    Read a document; None where there is none.
    """
    return json.loads(file.read_text()) if file.exists() else None


def find(rows: Sequence[Row], **where: Any) -> Row | None:
    """
    Find the row that has these values.
    """
    for row in rows:
        if all(row.get(key) == value for key, value in where.items()):
            return row
    return None


def options(doc: str | None, name: str) -> argparse.ArgumentParser:
    """
    Make the parser of the options that every benchmark has.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="short samples, rough figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    return parser
