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
    Give the Python files of some paths, each once; a symbolic link in a folder is only named.

    Args:
        paths: Files, which are taken as they are, and folders.
    """
    seen: set[str] = set()
    for path in paths:
        for found in _in_folder(path) if Path(path).is_dir() else [path]:
            if isinstance(found, str):
                real = os.path.realpath(found)
                if real in seen:
                    continue
                seen.add(real)
            yield found


def _in_folder(folder: str) -> Iterator[str | Diagnostic]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(
            each
            for each in folders
            if not each.startswith(".")
            and each not in _SKIPPED
            and not Path(where, each, "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            if not name.endswith(".py"):
                continue
            path = str(Path(where, name))
            if Path(path).is_symlink():
                yield diagnostic(path, "HM214", what=str(Path(path).readlink()))
            else:
                yield path


def load(path: str, max_bytes: int) -> File | None:
    """
    Read a file; None where it cannot have anything to do with `call_next`.

    Raises:
        Unusable: It cannot be read, decoded or parsed.
    """
    try:
        size = Path(path).stat().st_size
        if size > max_bytes:
            raise Unusable(diagnostic(path, "HM193", what=str(size)))
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
            ast.parse(source, path)
    except SyntaxError as exc:
        line, column = exc.lineno or 1, exc.offset or 1
        raise Unusable(diagnostic(path, "HM190", line, column, what=exc.msg)) from exc
    except (ValueError, RecursionError, MemoryError) as exc:
        raise Unusable(diagnostic(path, "HM190", what=str(exc) or "nested too deeply")) from exc
    return File(path, data, source, encoding)


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
