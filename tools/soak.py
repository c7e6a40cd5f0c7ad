"""
Run the engine through millions of random schedules, and say which seeds failed.

    python -m tools.soak                        2,000,000 on asyncio and 500,000 on trio
    python -m tools.soak --asyncio 100000 --trio 0
    python -m tools.soak --replay asyncio 1234567
    python -m tools.soak --handshakes           the same of WebSocket handshakes, with 500,000
                                                on asyncio and 100,000 on trio
    python -m tools.soak --ready                the same of all layers that are ready to import,
                                                with 200,000 and 50,000
    python -m tools.soak --unseen               of apps without layers and in empty ones, with
                                                100,000 and 25,000

What is done is written down after each piece of work, in a file that belongs to exactly this
engine and these scenarios: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from httpmw.testing import World, explore
from httpmw.testing.exploring._schedule import runs
from tests.handshake_scenario import handshake
from tests.ready_scenario import quiet, ready
from tests.scenarios import engine, unseen

ROOT = Path(__file__).parent.parent
# `make test` has the seeds below.
FIRST = 1_000_000
PIECE = 5_000  # schedules
HANG = 120  # seconds that no schedule takes
PACKAGES = ("anyio", "starlette", "trio")


class Kind(NamedTuple):
    """What is drawn at random, the file that it stands in, and how many schedules of it are run."""

    scenario: Callable[[World], Awaitable[None]]
    file: str
    asyncio: int
    trio: int
    # What is done first in each process.
    prepare: Callable[[], None] = lambda: None


KINDS = {
    "requests": Kind(engine, "tests/scenarios.py", 2_000_000, 500_000),
    "unseen": Kind(unseen, "tests/scenarios.py", 100_000, 25_000),
    "handshakes": Kind(handshake, "tests/handshake_scenario.py", 500_000, 100_000),
    "ready": Kind(ready, "tests/ready_scenario.py", 200_000, 50_000, quiet),
}


def run_piece(kind: str, piece: tuple[str, int, int]) -> dict[str, Any]:
    """Run the schedules of one piece; give what went wrong, on purpose and otherwise."""
    backend, first, count = piece
    KINDS[kind].prepare()
    struck: Counter[str] = Counter()
    failures = []
    started = time.process_time()

    def alarm(*_: Any) -> None:
        raise TimeoutError(f"no end within {HANG} seconds")

    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(HANG)
    for seed, world, error in runs(KINDS[kind].scenario, range(first, first + count), backend):
        signal.alarm(HANG)
        fault = world.conditions.fault
        struck[fault.kind if fault is not None and world.struck else "nothing"] += 1
        if error is not None:
            failures.append((seed, str(world.conditions), f"{type(error).__name__}: {error}"))
    signal.alarm(0)
    return {
        "backend": backend,
        "first": first,
        "count": count,
        "struck": struck,
        "failures": failures,
        "seconds": time.process_time() - started,
    }


def fingerprint(kind: str) -> str:
    """Name what is being run: another engine or another scenario starts from the beginning."""
    digest = hashlib.sha256(sys.version.encode())
    files = [*(ROOT / "httpmw").rglob("*.py"), ROOT / KINDS[kind].file]
    for path in sorted(files):
        digest.update(path.read_bytes())
    for package in PACKAGES:
        digest.update(version(package).encode())
    return digest.hexdigest()[:12]


def pieces(wanted: dict[str, int], done: list[dict[str, Any]]) -> Iterator[tuple[str, int, int]]:
    """Give what is left to do, the two event loops in turn."""
    known = {(piece["backend"], piece["first"], piece["count"]) for piece in done}
    left = {
        backend: [
            (backend, FIRST + offset, min(PIECE, total - offset))
            for offset in range(0, total, PIECE)
            if (backend, FIRST + offset, min(PIECE, total - offset)) not in known
        ]
        for backend, total in wanted.items()
    }
    longest = max(map(len, left.values()), default=0)
    for index in range(longest):
        for each in left.values():
            yield from each[index * len(each) // longest : (index + 1) * len(each) // longest]


def summary(done: list[dict[str, Any]], seconds: float) -> str:
    """Say what was run, and what came of it."""
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    lines = [f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores"]
    for backend in sorted({piece["backend"] for piece in done}):
        own = [piece for piece in done if piece["backend"] == backend]
        count = sum(piece["count"] for piece in own)
        cpu = sum(piece["seconds"] for piece in own)
        struck: Counter[str] = Counter()
        for piece in own:
            struck.update(piece["struck"])
        failures = sum(len(piece["failures"]) for piece in own)
        faults = ", ".join(f"{kind} {number:,}" for kind, number in sorted(struck.items()))
        lines.append(
            f"{backend}: {count:,} schedules ({faults}), {failures} failures, "
            f"{cpu:,.0f} s of CPU, {count / max(cpu, 0.001):,.0f} per second and core"
        )
    lines.append(f"{seconds:,.0f} s in this run")
    return "\n".join(lines)


def show(piece: dict[str, Any]) -> None:
    """Print what failed."""
    for seed, conditions, text in piece["failures"]:
        print(f"FAILED {piece['backend']} {seed} ({conditions}): {text}")


def main() -> int:
    """Run what is asked for; give 1 when something failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--handshakes", action="store_true", help="of WebSockets, not requests")
    which.add_argument("--ready", action="store_true", help="of the ready-made layers")
    which.add_argument("--unseen", action="store_true", help="of apps in empty layers and in none")
    parser.add_argument("--asyncio", type=int, help="schedules on asyncio")
    parser.add_argument("--trio", type=int, help="schedules on trio")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--state", type=Path, default=ROOT / ".cache/soak")
    parser.add_argument("--replay", nargs=2, metavar=("BACKEND", "SEED"))
    options = parser.parse_args()
    name = next((name for name in KINDS if getattr(options, name, False)), "requests")
    kind = KINDS[name]
    if options.replay:
        backend, seed = options.replay
        kind.prepare()
        print(explore(kind.scenario, seeds=[int(seed)], backend=backend))
        return 0

    options.state.mkdir(parents=True, exist_ok=True)
    state = options.state / f"{fingerprint(name)}.jsonl"
    done = [json.loads(line) for line in state.read_text().splitlines()] if state.exists() else []
    for piece in done:
        show(piece)
    wanted = {
        backend: getattr(kind, backend) if asked is None else asked
        for backend, asked in (("asyncio", options.asyncio), ("trio", options.trio))
    }
    started = shown = time.monotonic()
    left = list(pieces(wanted, done))
    # A worker is renewed now and then, so that nothing it keeps can slow it down.
    fresh = multiprocessing.get_context("spawn")
    with fresh.Pool(options.workers, maxtasksperchild=20) as pool, state.open("a") as file:
        for piece in pool.imap_unordered(partial(run_piece, name), left):
            done.append(piece)
            file.write(json.dumps(piece) + "\n")
            file.flush()
            show(piece)
            if time.monotonic() - shown > 60:
                shown = time.monotonic()
                print(summary(done, shown - started), flush=True)
    print(summary(done, time.monotonic() - started))
    return 1 if any(piece["failures"] for piece in done) else 0


if __name__ == "__main__":
    sys.exit(main())
