"""
Run old and new version of each converted function side by side (`httpmw migrate --verify`).
"""

# Rule 1: the code of the project runs in a process of its own, in which its imports are stubs and
# what would reach out is refused (`_safety`).
# Rule 2: that process has a time limit, and so has every run in it.
# Rule 3: a verdict comes over a descriptor of its own, bears the secret of the run and fits the
# schema; whatever else the process says or does harms nobody.

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from httpmw.migrate._model import Converted

from ._judge import FULL, Difference, Matrix, Module, TooLong, Verdict, judge
from ._load import Style
from ._safety import keep_in

__all__ = ["Difference", "Verdict", "verify"]

# More than all verdicts of a file take.
_MOST: Final = 32 << 20
# What of the environment the process gets: what Python needs to start, and no passwords.
_ENVIRONMENT: Final = frozenset(
    {"HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TMPDIR", "VIRTUAL_ENV"}
)
_START: Final = (
    "import sys; sys.path += sys.argv[1:]; "
    "from httpmw.migrate.verifying._verify import main; main()"
)


def verify(  # noqa: PLR0913 - two of them are limits
    old: str,
    new: str,
    conversions: Iterable[Converted],
    *,
    styles: tuple[Style, Style] = ("starlette", "generator"),
    seconds: float = 120.0,
    run_seconds: float = FULL.seconds,
) -> list[Verdict]:
    """
    Run old and new version of each converted function against the same apps and requests.

    Args:
        old: The source before.
        new: The source afterwards.
        conversions: The functions to run.
        styles: Whose class each of the two stands on.
        seconds: The time limit for all of them together.
        run_seconds: The time limit for one run.

    Returns:
        A verdict for each, in their order.
    """
    targets = [(each.qualname, each.line, each.forgets, each.managers) for each in conversions]
    secret = secrets.token_hex(16)
    job = {"old": old, "new": new, "targets": targets, "styles": styles, "seconds": run_seconds}
    verdicts = [
        Verdict(qualname, line, problem="it was not reached") for qualname, line, *_ in targets
    ]
    # One line for each function, as soon as it is done: what is done before the process is ended
    # counts.
    for line in _said({**job, "secret": secret}, seconds).split(b"\n"):
        mark, _, told = line.partition(b" ")
        if mark == secret.encode():
            _take(told, verdicts)
    return verdicts


def _said(job: dict[str, Any], seconds: float) -> bytes:
    """
    Run a process, and give what came over the descriptor of the verdicts.
    """
    said = bytearray()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(  # noqa: S603 - this very module
            # The path of this process stands behind the standard library: a project that has a
            # module of the same name is not imported.
            [sys.executable, "-P", "-B", "-W", "ignore", "-c", _START, *_path()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={
                **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                "PYTHONHASHSEED": "0",
            },
        )
        assert process.stdin is not None
        assert process.stdout is not None
        out = process.stdout

        def read() -> None:
            while chunk := os.read(out.fileno(), 1 << 16):
                said.extend(chunk)
                if len(said) > _MOST:
                    process.kill()
                    return

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
            process.wait(seconds)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass  # what is there counts
        finally:
            process.kill()
            process.wait()
            reader.join()
            out.close()
    return bytes(said)


def _path() -> list[str]:
    package = str(Path(__file__).resolve().parents[2])
    return [package, *(str(Path(each).resolve()) for each in sys.path if each)]


def _take(told: bytes, verdicts: list[Verdict]) -> None:
    # Nobody but us knows the secret; where somebody has found it out all the same, the command
    # goes on, and the function counts as not run.
    try:
        said = json.loads(told)
        index, fields = said["index"], said["verdict"]
        verdicts[index] = _checked(fields, verdicts[index])
    except (LookupError, TypeError, ValueError, AttributeError):
        for each in verdicts:
            each.problem = each.problem or "its process told what is no verdict"


def _checked(fields: dict[str, Any], expected: Verdict) -> Verdict:
    differences = [Difference(**each) for each in fields["differences"]]
    values: dict[str, Any] = {**fields, "differences": differences}
    verdict = Verdict(**values)
    counts = (verdict.pairs, verdict.identical, verdict.differing, *verdict.improvements.values())
    texts = (
        verdict.problem,
        *verdict.improvements,
        *(getattr(each, name) for each in differences for name in each.__slots__),
    )
    if (
        (verdict.qualname, verdict.line) != (expected.qualname, expected.line)
        or any(type(each) is not int or each < 0 for each in counts)
        or any(type(each) is not str for each in texts)
        or bool(verdict.differing) != bool(differences)
    ):
        raise ValueError("no verdict")
    return verdict


def main() -> None:
    """
    Read a job from the standard input, and write a verdict for each of its functions.
    """
    job = json.load(sys.stdin)
    tell = _teller(job.pop("secret"))
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # noqa: ARG005 - nobody reads it
    old = Module(job["old"], job["styles"][0])
    new = Module(job["new"], job["styles"][1])
    matrix = Matrix(seconds=job["seconds"])
    keep_in()
    for index, (qualname, line, forgets, managers) in enumerate(job["targets"]):
        known = {"forgets": forgets, "managers": frozenset(managers)}
        try:
            verdict = judge(old, new, qualname, line, loop, matrix, alarm=True, **known)
        except TooLong:
            verdict = Verdict(qualname, line, problem="it does not end")
        tell(index, verdict)
    os._exit(0)  # threads and generators of the project's code are nobody's any more


def _teller(secret: str) -> Callable[[int, Verdict], None]:
    # What is printed, by whatever way, goes nowhere: the verdicts have a descriptor of their own.
    sys.dont_write_bytecode = True
    channel = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    sys.stdout = sys.stderr

    def tell(index: int, verdict: Verdict) -> None:
        told = json.dumps({"index": index, "verdict": dataclasses.asdict(verdict)})
        # A line of its own, whatever was written before.
        todo = f"\n{secret} {told}\n".encode()
        while todo:
            todo = todo[os.write(channel, todo) :]

    return tell
