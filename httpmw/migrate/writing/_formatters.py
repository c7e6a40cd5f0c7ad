# The project's own formatter over what was written.
#
# Rule 1: a formatter runs where the project configures it and the file was clean under it before,
# so that nothing changes but what was written. It is never installed, and never written by us.
# Rule 2: what it gives is taken if it compiles; where it fails, what was written stays.

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["Tools"]

_SECONDS = 30
# What each is called by, and what is in a file that configures it.
_CHECK = ("check", "--quiet", "--fix", "--select")
_BOTH: tuple[str, ...] = (*_CHECK, "I,F401", "--stdin-filename")
_COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "ruff": (_BOTH, ("format", "--quiet", "--stdin-filename")),
    "isort": (("--quiet", "--filename"),),
    "black": (("--quiet", "--stdin-filename"),),
}
# Where a file was not clean under all, what may be tried of it: each run takes a process.
_PARTS = {_BOTH: tuple((*_CHECK, each, "--stdin-filename") for each in ("I", "F401"))}
_FILES = {"ruff.toml": "ruff", ".ruff.toml": "ruff", ".isort.cfg": "isort"}
_SECTIONS = {
    "pyproject.toml": {"ruff": "[tool.ruff", "isort": "[tool.isort]", "black": "[tool.black]"},
    "setup.cfg": {"isort": "[isort]"},
    "tox.ini": {"isort": "[isort]"},
}
_ORDER = ("isort", "black", "ruff")


class Tools:
    """
    The formatters that the projects of a run configure.
    """

    def __init__(self) -> None:
        self._configured: dict[Path, frozenset[str]] = {}
        # Those that are configured, and not there: their names.
        self.missing: set[str] = set()

    def formatted(self, path: str, before: str, code: str) -> str:
        """
        Format what was written, where the file was formatted before.
        """
        absolute = Path(path).absolute()
        for name in self.configured(absolute):
            program = _program(name)
            if program is None:
                self.missing.add(name)
                continue
            left = [*_COMMANDS[name]]
            while left:
                options = left.pop(0)
                command = [program, *options, str(absolute), "-"]
                if _run(command, absolute.parent, before) != before:
                    left = [*_PARTS.get(options, ()), *left]
                    continue
                done = _run(command, absolute.parent, code)
                if done and done != code and _compiles(done):
                    code = done
        return code

    def configured(self, path: Path) -> list[str]:
        """
        Give the names of the formatters that are configured for a file, in the order to run them.
        """
        return sorted(self._of(path.parent), key=_ORDER.index)

    def _of(self, folder: Path) -> frozenset[str]:
        if folder not in self._configured:
            found = frozenset(_configured(folder))
            up = folder.parent
            # The nearest file that says something counts for each, and the project ends where
            # its repository does.
            ends = up == folder or _is_there(folder / ".git")
            self._configured[folder] = found if ends else found | self._of(up)
        return self._configured[folder]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # nobody may look
        return False


def _configured(folder: Path) -> Iterator[str]:
    for name, tool in _FILES.items():
        if _is_there(folder / name):
            yield tool
    for name, sections in _SECTIONS.items():
        try:
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        yield from (tool for tool, section in sections.items() if section in text)


def _program(name: str) -> str | None:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)


def _run(command: Sequence[str], folder: Path, source: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - a formatter that the project names
            command,
            input=source.encode("utf-8", "surrogatepass"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            timeout=_SECONDS,
            check=False,
        )
        # `ruff check --fix` says with its exit code that something else is left to do.
        return done.stdout.decode() if done.stdout or not done.returncode else None
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None


def _compiles(code: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True
