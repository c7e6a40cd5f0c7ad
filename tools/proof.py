"""
Run every proof for its share of some minutes: `make proof MINUTES=n`, `python -m tools.proof`.

    python -m tools.proof --minutes 2
    python -m tools.proof --minutes 60 --keep     what came of it becomes docs/proof.md's
    python -m tools.proof --only framing leaks

A proof is a command of its own that draws requests, schedules or functions, as many as it is asked
for. Each is run a little first, to see how many there are in a second here, and then for the rest
of its share. What came of all is one JSON file with its date in `.cache/proof/`; with `--keep` it
is `tools/proof.json`, of which the table in `docs/proof.md` is made.
The seeds are the same each time: a run of more minutes goes further, and begins with the same.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "tools" / "proof.json"
RUNS = ROOT / ".cache" / "proof"
PAGE = ROOT / "docs" / "proof.md"
TABLE = re.compile(r"(<!-- proof -->\n).*?(<!-- end -->)", re.DOTALL)
PACKAGES = ("anyio", "starlette", "trio")
HANG = 600  # seconds longer than its share that no proof takes


class Proof(NamedTuple):
    """A proof: its section of the page, its command, and how much of it is run first."""

    says: str
    # `{count}` is how many of *what* are asked for; without it the command does all there is.
    command: str
    what: str
    first: int = 0
    # Its figures come in steps of so many.
    step: int = 1
    # The lines that say what came of it.
    lines: str = r"\d+ (?:differences|failures|things wrong)|all right"


def schedules(option: str, what: str, says: str = "random-schedules") -> Proof:
    counts = "--asyncio {count} --trio {count} --workers 1 --state {state}/{count}"
    return Proof(says, f"-m tools.soak {option} {counts}", f"{what} on each event loop", 200)


PROOFS: Mapping[str, Proof] = {
    "soak": schedules("", "schedules"),
    "handshakes": schedules("--handshakes", "schedules of a handshake"),
    "ready": schedules("--ready", "schedules of all ready-made layers"),
    "unseen": schedules("--unseen", "schedules with and without layers", "with-and-without"),
    "mutate": Proof(
        "planted-faults", "-m tools.mutate --check", "planted faults", lines="complaints"
    ),
    "framing": Proof("framing", "-m tools.framing --workers 1 --cases {count}", "connections", 100),
    "answers": Proof(
        "answers", "-m tools.answers --headers {count} --bodies {count}", "requests and bodies", 200
    ),
    "attack": Proof("attack", "-m tools.attack --requests {count}", "requests to each server", 100),
    "leaks": Proof(
        "what-stays-behind",
        "-m tools.leaks --requests {count}",
        "requests",
        10_000,
        10_000,
        r"^(?:memory|alive)",
    ),
    "load": Proof("load", "tools/load.py --minutes {minutes}", "seconds"),
    "migrate-fuzz": Proof(
        "the-codemod",
        "-m tools.migrate_fuzz --count {count}",
        "generated files",
        5,
        lines="wrong:",
    ),
}


class Ran(NamedTuple):
    """What came of one command."""

    code: int
    seconds: float
    says: str


def run(command: str, limit: float, lines: str) -> Ran:
    """Run a command of ours to its end, and keep the lines that say what came of it."""
    started = time.monotonic()
    words = [sys.executable, *shlex.split(command)]
    try:
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit + HANG
        )
    except subprocess.TimeoutExpired:
        return Ran(1, time.monotonic() - started, f"no end within {limit + HANG:.0f} s")
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
    said = [line.strip() for line in done.stdout.splitlines() if re.search(lines, line)]
    return Ran(done.returncode, time.monotonic() - started, "; ".join(said))


def prove(proof: Proof, share: float) -> dict[str, Any]:
    """Run a proof for its share of the time, in seconds; give what came of it."""
    started = time.monotonic()
    count = proof.first
    if "{minutes}" in proof.command:
        count = max(5, int(share))
    with tempfile.TemporaryDirectory() as state:

        def ran(count: int) -> Ran:
            command = proof.command.format(count=count, minutes=f"{count / 60:.3f}", state=state)
            return run(command, share, proof.lines)

        found = ran(count)
        # Twice more at most: the first one is little more than the start of an interpreter.
        for _ in range(2):
            left = share - (time.monotonic() - started)
            more = int(count * left / found.seconds) // proof.step * proof.step
            if not proof.first or found.code or more <= count:
                break
            count = more
            found = ran(count)
    return {
        "count": count,
        "what": proof.what,
        "seconds": round(time.monotonic() - started, 1),
        "holds": found.code == 0,
        "says": found.says,
    }


def document(minutes: float, proofs: Mapping[str, Any]) -> dict[str, Any]:
    """Say when and with what it was run."""
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "minutes": minutes,
        "proofs": dict(proofs),
    }


def table(found: Mapping[str, Any]) -> str:
    """Write a run down, as the page has it."""
    lines = ["| what | how many | what came of it | s |", "| --- | ---: | --- | ---: |"]
    for name, each in found["proofs"].items():
        link = f"[{name}](#{PROOFS[name].says})"
        count = f"{each['count']:,} {each['what']}" if each["count"] else f"all {each['what']}"
        holds = "holds" if each["holds"] else "FAILED"
        said = each["says"].replace("|", "\\|")
        lines.append(f"| {link} | {count} | {holds}: {said} | {each['seconds']:.0f} |")
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines.append(
        f"\n`make proof MINUTES={found['minutes']:g}`, {found['date']}, "
        f"CPython {found['python']}, {versions}, {found['cores']} cores."
    )
    return "\n".join(lines)


def page(text: str, found: Mapping[str, Any]) -> str:
    """Put a run into the page."""
    return TABLE.sub(lambda match: f"{match[1]}{table(found)}\n{match[2]}", text)


def main() -> int:
    """Run what is asked for; give 1 when something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="for all of them together")
    parser.add_argument("--only", nargs="+", choices=PROOFS, default=list(PROOFS))
    parser.add_argument("--keep", action="store_true", help="put it into docs/proof.md")
    options = parser.parse_args()
    share = options.minutes * 60 / len(options.only)
    proofs = {}
    for name in options.only:
        proofs[name] = prove(PROOFS[name], share)
        print(
            f"{name}: {'holds' if proofs[name]['holds'] else 'FAILED'}, {proofs[name]}", flush=True
        )
    found = document(options.minutes, proofs)
    RUNS.mkdir(parents=True, exist_ok=True)
    file = KEPT if options.keep else RUNS / f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H%M%SZ}.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    if options.keep:
        PAGE.write_text(page(PAGE.read_text(), found))
    print(f"{file.relative_to(ROOT)} has it.")
    return 0 if all(each["holds"] for each in proofs.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
