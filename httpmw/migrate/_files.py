# Files: which ones, what is in them, and how they are written.
#
# Rule 1: whatever is wrong with one file is said about that file; the others go on.
# Rule 2: a file is there in its old or in its new version, never in between: the new one is
# written beside it and put in its place.
# Rule 3: encoding, byte order mark, line ends and permissions stay.

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import stat
import tempfile
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ._convert import CONCERNED, diagnostic
from ._model import Diagnostic

__all__ = ["MAX_BYTES", "File", "Unusable", "decoded", "discover", "load", "store", "unwritable"]

MAX_BYTES = 4_000_000
_CONCERNED = re.compile(CONCERNED.pattern.encode())
_MANY = 2000
_SKIPPED = {"__pycache__", "node_modules", "site-packages"}


class Unusable(Exception):  # noqa: N818 - it says what the file is
    """
    A file that cannot be worked with.
    """

    def __init__(self, found: Diagnostic) -> None:
        super().__init__(found.message)
        self.diagnostic = found


@dataclass(frozen=True, slots=True)
class File:
    """
    A file as it was read: the *source* has no byte order mark.
    """

    path: str
    data: bytes
    source: str
    encoding: str


def discover(paths: Iterable[str]) -> Iterator[str | Diagnostic]:
    """
    Give the Python files of some paths, each once, and a word on what cannot be looked into.

    Args:
        paths: Files, which are taken as they are, and folders; a symbolic link in a folder is
            only named.
    """
    seen: set[str] = set()
    for path in paths:
        # Not those of `pathlib`, which raise where a folder may not be entered.
        for found in _in_folder(path) if os.path.isdir(path) else [path]:  # noqa: PTH112
            if isinstance(found, str):
                real = os.path.realpath(found)
                if real in seen:
                    continue
                seen.add(real)
            yield found


def _in_folder(folder: str) -> Iterator[str | Diagnostic]:
    # Not `os.walk`: on Python 3.11 it calls itself for each folder in a folder.
    waiting = [folder]
    while waiting:
        where = waiting.pop()
        try:
            with os.scandir(where) as entries:
                inside = sorted(entries, key=lambda each: each.name)
        except OSError as exc:
            yield diagnostic(where, "HM192", what=f"cannot list it: {_reason(exc)}")
            continue
        folders = []
        for each in inside:
            if _is_folder(each):
                if _may_be_source(each):
                    folders.append(each.path)
            elif not each.name.endswith(".py"):
                continue
            elif each.is_symlink():
                yield diagnostic(each.path, "HM214", what=_leads_to(each.path))
            else:
                yield each.path
        waiting += reversed(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False  # gone, or not to be told: as a file it gets its word


def _may_be_source(folder: os.DirEntry[str]) -> bool:
    if folder.name.startswith(".") or folder.name in _SKIPPED:
        return False
    return not os.path.exists(os.path.join(folder.path, "pyvenv.cfg"))  # noqa: PTH110, PTH118


def _leads_to(link: str) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115 - the text as it is
    except OSError as exc:
        return f"somewhere ({_reason(exc)})"


def load(path: str, max_bytes: int) -> File | None:
    """
    Read a file; None where it cannot have anything to do with `call_next`.

    Raises:
        Unusable: It cannot be read, decoded or parsed.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - a name that is none is a ValueError here, too
        if not stat.S_ISREG(status.st_mode):
            what = f"cannot read it: it is {_kind(status.st_mode)}"
            raise Unusable(diagnostic(path, "HM192", what=what))
        if status.st_size > max_bytes:
            raise Unusable(diagnostic(path, "HM193", what=str(status.st_size)))
        data = Path(path).read_bytes()
    except OSError as exc:
        raise Unusable(diagnostic(path, "HM192", what=f"cannot read it: {_reason(exc)}")) from exc
    if _CONCERNED.search(data) is None:
        return None
    return decoded(path, data)


def decoded(path: str, data: bytes) -> File:
    """
    Decode and check the content of a file.

    Raises:
        Unusable: It cannot be decoded, or is no Python.
    """
    try:
        # From Python 3.14 on a NUL byte is an error here too; it says nothing of the encoding.
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data.replace(b"\0", b" ")).readline)
        source = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError) as exc:
        raise Unusable(diagnostic(path, "HM191", what=str(exc))) from exc
    try:
        # Python's own parser first: it says best what is wrong, and it stops where nesting
        # without end would bring down another one.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, path)
    except SyntaxError as exc:
        line, column = exc.lineno or 1, exc.offset or 1
        raise Unusable(diagnostic(path, "HM190", line, column, what=exc.msg)) from exc
    except (ValueError, RecursionError, MemoryError) as exc:
        raise Unusable(diagnostic(path, "HM190", what=str(exc) or "nested too deeply")) from exc
    if _is_long(source, tree):
        raise Unusable(diagnostic(path, "HM190", what="nested too deeply"))
    return File(path, data, source, encoding)


def _is_long(source: str, tree: ast.AST) -> bool:
    # `a and b and ...` is one node here, and one in the other for libcst, whose parser ends the
    # process where that goes too far.
    if max(source.count("and"), source.count("or")) < _MANY:
        return False
    return any(isinstance(each, ast.BoolOp) and len(each.values) > _MANY for each in ast.walk(tree))


def _kind(mode: int) -> str:
    # Who opens one of these may wait for ever, or do something.
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "no regular file")


def unwritable(path: str) -> str | None:
    """
    Say why a file cannot be written, None where it can.
    """
    real = Path(path).resolve()
    try:
        mode = real.stat().st_mode
    except OSError as exc:
        return f"cannot write it: {_reason(exc)}"
    # The bits as well: for root everything is writable, and a read-only file is so on purpose.
    if not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) or not os.access(real, os.W_OK):
        return "cannot write it: it is read-only"
    if not os.access(real.parent, os.W_OK):
        return "cannot write it: its folder is read-only"
    return None


def store(file: File, code: str) -> None:
    """
    Put a new version in the place of a file.

    Raises:
        Unusable: It could not be written, or has changed since it was read.
    """
    target = Path(file.path).resolve()
    temporary: str | None = None
    try:
        if target.read_bytes() != file.data:
            what = "cannot write it: it has changed since it was read"
            raise Unusable(diagnostic(file.path, "HM192", what=what))
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".httpmw-")
        with os.fdopen(handle, "wb") as stream:
            stream.write(code.encode(file.encoding))
            stream.flush()
            os.fsync(stream.fileno())
        status = target.stat()
        Path(temporary).chmod(stat.S_IMODE(status.st_mode))
        if hasattr(os, "chown"):
            with contextlib.suppress(OSError):
                os.chown(temporary, status.st_uid, status.st_gid)
        Path(temporary).replace(target)
        temporary = None
    except OSError as exc:
        raise Unusable(
            diagnostic(file.path, "HM192", what=f"cannot write it: {_reason(exc)}")
        ) from exc
    except UnicodeEncodeError as exc:
        raise Unusable(diagnostic(file.path, "HM191", what=str(exc))) from exc
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _reason(exc: OSError) -> str:
    return exc.strerror or str(exc)
