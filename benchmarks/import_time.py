"""
What `import httpmw` costs: `python -m benchmarks.import_time`.

Fresh interpreters import asyncio and Starlette's applications, then one more module, and take the
CPU time of that import: what a program pays that runs Starlette already. `json`, which is loaded
by then, is the control arm, and the first row is the import of Starlette itself. The median over
interleaved rounds, with the quartiles, in ms, and how many modules came with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from benchmarks.document import ROOT, Row, document, options, write
from benchmarks.measure import Figure, interleaved

STARLETTE = "starlette.applications"
MODULES = (STARLETTE, "json", "httpmw", "httpmw.compat", "httpmw.testing", "fastapi")

PROGRAM = """
import sys, time
{before}
modules = len(sys.modules)
started = time.process_time()
import {module}
print([time.process_time() - started, len(sys.modules) - modules])
"""


def taken(module: str, environment: Mapping[str, str]) -> list[float]:
    """
    Take the seconds of one import, and the number of modules.
    """
    before = "import asyncio" if module == STARLETTE else f"import asyncio, {STARLETTE}"
    program = PROGRAM.format(before=before, module=module)
    done = subprocess.run(  # noqa: S603 - a fresh interpreter is what is measured
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def measure(rounds: int) -> list[Row]:
    samples: dict[str, list[list[float]]] = {module: [] for module in MODULES}
    with tempfile.TemporaryDirectory() as folder:
        # Byte code as after an installation, whatever this environment says about it.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}
        for module in MODULES:
            taken(module, environment)
        for order in interleaved(MODULES, rounds):
            for module in order:
                samples[module].append(taken(module, environment))
    return [
        {
            "module": module,
            "ms": asdict(Figure.of(round(seconds * 1e3, 2) for seconds, _ in samples[module])),
            "modules": int(samples[module][0][1]),
        }
        for module in MODULES
    ]


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'':<26}{'CPU time':>12}{'quartiles':>18}{'modules':>10}"]
    for row in rows:
        ms = row["ms"]
        spread = f"[{ms['low']:.1f} {ms['high']:.1f}]"
        lines.append(f"{row['module']:<26}{ms['median']:>9.1f} ms{spread:>18}{row['modules']:>10}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = options(__doc__, "import_time").parse_args(arguments)
    rows = measure(2 if chosen.quick else 15)
    print(table(rows))
    if chosen.json:
        write(chosen.json, document(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
