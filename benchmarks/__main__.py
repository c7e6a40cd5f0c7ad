"""
Run benchmarks, and hold their figures against the targets: `python -m benchmarks [NAME ...]`.

Each runs in a process of its own and leaves its figures in `.cache/benchmarks/VERSION/NAME.json`.
Without a name all are run but `servers`, which needs wrk and two cores, and `handshakes`, which
needs a WebSocket client. (`ready` needs an
environment of its own: `make bench-ready`.) The table at the end is
of what was run; with `--check` a target that is missed makes the exit code 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import targets
from benchmarks.document import ROOT, read, run_file

IN_PROCESS = ("jobs", "grid", "stack", "budget", "memory", "bodies", "import_time")
NAMES = (*IN_PROCESS, "servers", "handshakes")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="short samples, rough figures")
    parser.add_argument("--targets", action="store_true", help="only what the targets need of grid")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    chosen = parser.parse_args(arguments)
    names = chosen.names or IN_PROCESS
    for name in names:
        if name not in NAMES:
            parser.error(f"{name}: choose from {', '.join(NAMES)}")

    documents = {}
    for name in names:
        file = run_file(name, quick=chosen.quick)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(file)]
        command += ["--quick"] * chosen.quick
        command += ["--targets"] * (chosen.targets and name == "grid")
        print(f"\n==> benchmarks/{name}.py", flush=True)
        code = subprocess.run(command, cwd=ROOT, check=False).returncode  # noqa: S603
        if code:
            return code
        documents[name] = read(file)

    of_run = [each for each in targets.TARGETS if each.benchmark in documents]
    kept, text = targets.table(documents, of_run)
    if of_run:
        print(f"\n==> targets\n{text}")
    return 1 if chosen.check and not kept else 0


if __name__ == "__main__":
    sys.exit(main())
