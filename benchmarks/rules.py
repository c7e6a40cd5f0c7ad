"""
What single rules of httpmw cost in every request: `python -m benchmarks.rules`.

For each rule of `RULES` a copy of httpmw is made in which the lines that keep it are taken out, and
one without any of them. They answer these requests, and are good for nothing else. Five layers with
one yield are measured in each copy and in httpmw as it is, in processes of their own that are
started anew in each round, in an order that is shuffled.
The floor beside them is five bare generators, which keep no rule at all: `benchmarks.styles`.

A request is one as on a server, a task of uvloop that ends in a JSON route of Starlette. Between
two requests, and when the body is sent, a document is written and read and a byte goes through a
pipe, as on a server there is other work between two requests, which makes layers dearer.

µs are what the layers add to such a request. "Saved" is what they add less without the rule, in
samples of the same round: the median over the rounds, with the quartiles.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from starlette.types import Message

from benchmarks.document import ROOT, Row, document, options, write
from benchmarks.measure import ASYNCIO, UVLOOP, Figure, added, clock, interleaved, measure
from benchmarks.served import make
from benchmarks.styles import App, receive, request_scope

LAYERS = 5
STYLES = ("asgi", "one yield", "bare generator")
AS_IT_IS, ALL_TOGETHER = "as it is", "all of them together"


class Edit(NamedTuple):
    """
    What is taken out of a file of httpmw, and what is left in its place.
    """

    file: str
    old: str
    new: str


class Rule(NamedTuple):
    says: str
    edits: Sequence[Edit]


EXCHANGE, TRAVEL = "_exchange.py", "_travel.py"
RULES = [
    Rule(
        "the messages of the inner app stay as they are",
        [
            Edit(TRAVEL, "headers._list = [*given]", "headers._list = given"),
            Edit(TRAVEL, "start = {**message}  #", "start = message  #"),
        ],
    ),
    Rule(
        "each layer knows the headers that it received",
        [
            Edit(
                TRAVEL,
                "                    response._received = raw.copy()\n",
                "                    pass\n",
            )
        ],
    ),
    Rule(
        "a function goes on in the context in which it began, whoever sends",
        [
            Edit(EXCHANGE, "exchange.loop = loop = running_loop()", "exchange.loop = loop = None"),
            Edit(
                EXCHANGE,
                "            exchange.loop = None\n"
                "            task = trio_task()\n"
                "            states = _context.trio_states if task is not None else None\n",
                "            pass\n",
            ),
            Edit(
                TRAVEL, "if (trio_task() if loop is None else task_of(loop)) is task:", "if True:"
            ),
        ],
    ),
    Rule(
        "the event loop hears of the async generators that functions begin",
        [
            Edit(EXCHANGE, "incoming = hook = None", "incoming = None"),
            Edit(
                EXCHANGE,
                "            rest = iter(functions)\n",
                "            hook = (_get_hooks().firstiter,)\n"
                "            _set_hooks(*_NO_HOOK)\n"
                "            rest = iter(functions)\n",
            ),
            Edit(
                EXCHANGE,
                "                        _set_hooks(*_NO_HOOK)\n"
                "                        step = flow.asend(None)\n"
                "                        _set_hooks(*hook)\n",
                "                        step = flow.asend(None)\n",
            ),
            Edit(
                EXCHANGE,
                "                    exchange.state = WAITING\n                    inner = ",
                "                    _set_hooks(*hook)\n"
                "                    exchange.state = WAITING\n"
                "                    inner = ",
            ),
        ],
    ),
]


def copies(folder: Path) -> dict[str, Path]:
    """
    Make the copies: as it is, without each rule, and without any of them.
    """
    edits: dict[str, Sequence[Edit]] = {AS_IT_IS: []}
    edits |= {rule.says: rule.edits for rule in RULES}
    edits[ALL_TOGETHER] = [edit for rule in RULES for edit in rule.edits]
    made = {}
    for number, (name, of_copy) in enumerate(edits.items()):
        made[name] = tree = folder / str(number)
        for package in ("httpmw", "benchmarks"):
            shutil.copytree(
                ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__")
            )
        for edit in of_copy:
            file = tree / "httpmw" / edit.file
            text = file.read_text()
            if text.count(edit.old) != 1:
                msg = f"{edit.file} has {edit.old!r} {text.count(edit.old)} times"
                raise LookupError(msg)
            file.write_text(text.replace(edit.old, edit.new))
    return made


async def beside_other_work(app: App, requests: int) -> float:
    """
    Time requests that each come after other work.
    """
    reading, writing = os.pipe()

    def other_work() -> None:
        json.loads(json.dumps({"items": [1, 2, 3, {"name": "value"}] * 3}))
        os.write(writing, b"x")
        os.read(reading, 1)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            b"".join([b"%s: %s\r\n" % pair for pair in message["headers"]])
        else:
            other_work()

    started = clock()
    for _ in range(requests):
        scope = {**request_scope(), "path": "/json", "raw_path": b"/json"}
        await asyncio.create_task(app(scope, receive, send))
        other_work()
    taken = clock() - started
    os.close(reading)
    os.close(writing)
    return taken


def in_this_copy(rounds: int) -> dict[str, float]:
    """
    Measure, in this process, the µs that the layers of each style add to a request.
    """
    apps: dict[str, App] = {"bare": make("starlette", "asgi", 0)}
    apps |= {style: make("starlette", style, LAYERS) for style in STYLES}
    driver = replace(UVLOOP or ASYNCIO, take=beside_other_work)
    samples = measure(apps, driver, rounds=rounds, seconds=0.01)
    return {style: added(samples, style, "bare").median for style in STYLES}


def in_all_copies(rounds: int, samples: int) -> dict[str, list[dict[str, float]]]:
    """
    Measure each copy once in each round.
    """
    with tempfile.TemporaryDirectory() as folder:
        trees = copies(Path(folder))
        found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for order in interleaved(trees, rounds):
            for name in order:
                command = [sys.executable, "-m", "benchmarks.rules", "--samples", str(samples)]
                done = subprocess.run(  # noqa: S603
                    command,
                    cwd=trees[name],
                    env={**os.environ, "PYTHONPATH": str(trees[name])},
                    check=True,
                    capture_output=True,
                    text=True,
                )
                found[name].append(json.loads(done.stdout))
    return found


def rows(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Row]:
    """
    Work out what is saved without each rule.
    """
    whole = found[AS_IT_IS]
    result: list[Row] = [
        {"what": style, "us": Figure.of(each[style] for each in whole).rounded(2)}
        for style in STYLES
    ]
    for name, of_copy in found.items():
        if name != AS_IT_IS:
            saved = Figure.of(
                one["one yield"] - other["one yield"]
                for one, other in zip(whole, of_copy, strict=True)
            )
            result.append({"what": name, "saved us": saved.rounded(2)})
    return result


def table(result: Sequence[Row]) -> str:
    lines = [f"µs that {LAYERS} layers add to a request, and what is saved without a rule"]
    for row in result:
        figure = row.get("us") or row["saved us"]
        spread = f"[{figure['low']:.1f} {figure['high']:.1f}]"
        sign = "" if "us" in row else "saved "
        lines.append(f"{row['what']:<70}{sign + format(figure['median'], '.1f'):>12}{spread:>16}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__, "rules")
    parser.add_argument("--samples", type=int, help="measure this copy only, print JSON")
    chosen = parser.parse_args(arguments)
    if chosen.samples:
        print(json.dumps(in_this_copy(chosen.samples)))
        return 0
    result = rows(in_all_copies(*((2, 5) if chosen.quick else (15, 15))))
    print(table(result))
    if chosen.json:
        write(chosen.json, document(result, ["uvloop"] * bool(UVLOOP)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
