"""
Run old and new version of each converted function side by side (`httpmw migrate --verify`).
"""

# Rule 1: the code of the project runs in a process of its own, in which nothing real can be
# touched: its imports are stubs, and what would write, connect or start something is refused
# (`_refuse`).
# Rule 2: that process has a time limit, and so has every run in it.

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ._model import Converted
from ._verify_judge import FULL, Difference, Matrix, Module, TooLong, Verdict, judge
from ._verify_load import Style

__all__ = ["Difference", "Verdict", "verify"]


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
    job = {"old": old, "new": new, "targets": targets, "styles": styles, "seconds": run_seconds}
    verdicts = [
        Verdict(qualname, line, problem="it was not reached") for qualname, line, *_ in targets
    ]
    for index, verdict in enumerate(_answers(job, seconds)):
        differences = [Difference(**each) for each in verdict.pop("differences")]
        verdicts[index] = Verdict(**verdict, differences=differences)
    return verdicts


def _answers(job: dict[str, Any], seconds: float) -> Iterator[dict[str, Any]]:
    # One line of JSON for each function, as soon as it is done: what is done before the process
    # is ended counts.
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(  # noqa: S603 - this very module
                [sys.executable, "-P", "-B", "-W", "ignore", "-m", __spec__.name],
                input=json.dumps(job).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
                timeout=seconds,
                check=False,
            ).stdout
        except subprocess.TimeoutExpired as expired:
            done = expired.stdout or b""
    for line in done.split(b"\n"):
        if line.startswith(b"{") and line.endswith(b"}"):
            yield json.loads(line)


_REFUSED: Final = {
    "ftplib": {"connect"},
    "http.client": {"connect"},
    "os": {
        "chmod",
        "chown",
        "exec",
        "fork",
        "forkpty",
        "kill",
        "killpg",
        "link",
        "mkdir",
        "posix_spawn",
        "putenv",
        "remove",
        "removexattr",
        "rename",
        "rmdir",
        "setxattr",
        "spawn",
        "startfile",
        "symlink",
        "system",
        "truncate",
        "utime",
    },
    "pty": {"spawn"},
    "shutil": {"chown", "copyfile", "move", "rmtree"},
    "smtplib": {"connect"},
    "socket": {"bind", "connect", "getaddrinfo", "gethostbyname", "sendto"},
    "sqlite3": {"connect"},
    "subprocess": {"Popen"},
    "tempfile": {"mkdtemp", "mkstemp"},
    "webbrowser": {"open"},
}
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    # An audit hook: it cannot be taken away again.
    family, _, action = event.rpartition(".")
    if action in _REFUSED.get(family, ()):
        raise PermissionError(f"refused while verifying: {event}")
    if event == "open":
        _, mode, flags = args
        if (isinstance(mode, str) and set(mode) & set("wax+")) or flags & _WRITING:
            raise PermissionError("refused while verifying: open for writing")


def main() -> None:
    """
    Read a job from the standard input, and write a verdict for each of its functions.
    """
    job = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout = sys.stderr
    sys.dont_write_bytecode = True
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # noqa: ARG005 - nobody reads it
    old = Module(job["old"], job["styles"][0])
    new = Module(job["new"], job["styles"][1])
    matrix = Matrix(seconds=job["seconds"])
    sys.addaudithook(_refuse)
    for qualname, line, forgets, managers in job["targets"]:
        known = {"forgets": forgets, "managers": frozenset(managers)}
        try:
            verdict = judge(old, new, qualname, line, loop, matrix, alarm=True, **known)
        except TooLong:
            verdict = Verdict(qualname, line, problem="it does not end")
        out.write(json.dumps(dataclasses.asdict(verdict)) + "\n")
        out.flush()
    out.close()
    os._exit(0)  # threads and generators of the project's code are nobody's any more


if __name__ == "__main__":
    main()
