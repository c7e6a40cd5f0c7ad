# What the process in which `--verify` runs the code of a project cannot do.
#
# Rule 1: each line of the list in docs/migrate-verify.md is a test; what is not in the list is
# not kept out. It is no sandbox against code that means harm: that needs a container.
# Rule 2: nothing of it is taken back, and all of it holds before the first line of the project.
# Rule 3: where the interpreter tells of it (PEP 578) it is refused there, whatever the way to
# it; a function of which it does not tell is replaced, and a module that is one such function
# after the other cannot be imported.

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final, NoReturn

__all__ = ["keep_in"]

# Events of which all are refused, and others by their names.
_FAMILIES: Final = frozenset(
    {
        *("ctypes", "fcntl", "ftplib", "http.client", "imaplib", "msvcrt", "nntplib"),
        *("poplib", "pty", "resource", "shutil", "smtplib", "socket", "sqlite3", "subprocess"),
        *("syslog", "telnetlib", "tempfile", "urllib", "webbrowser", "winreg", "_winapi"),
    }
)
_EVENTS: Final = frozenset(
    {f"os.{name}" for name in (
        *("chdir", "chflags", "chmod", "chown", "exec", "fork", "forkpty", "kill", "killpg"),
        *("link", "lockf", "mkdir", "posix_spawn", "putenv", "remove", "removexattr", "rename"),
        *("rmdir", "setxattr", "spawn", "startfile", "startfile/2", "symlink", "system"),
        *("truncate", "unsetenv", "utime"),
    )}
    | {"gc.get_objects", "gc.get_referrers"}
    | {"signal.pthread_kill", "sys._current_exceptions", "sys._current_frames"}
)  # fmt: skip
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# Of these the interpreter does not tell.
_REPLACED: Final = {
    "os": (
        *("chroot", "copy_file_range", "mkfifo", "mknod", "nice", "openpty", "pidfd_open"),
        *("posix_fallocate", "pwrite", "pwritev", "sched_setaffinity", "sched_setparam"),
        *("sched_setscheduler", "sendfile", "setegid", "seteuid", "setgid", "setgroups", "setns"),
        *("setpgid", "setpriority", "setregid", "setresgid", "setresuid", "setreuid", "setsid"),
        *("setuid", "splice", "tcsetpgrp", "unshare"),
    ),
    "_posixsubprocess": ("fork_exec",),
    "_posixshmem": ("shm_open", "shm_unlink"),
    "_multiprocessing": ("SemLock", "sem_unlink"),
}
_NOT_IMPORTED: Final = frozenset(
    {
        *("_ctypes", "_curses", "_dbm", "_gdbm", "_sqlite3", "_testcapi", "_tkinter", "ctypes"),
        *("faulthandler", "nis", "ossaudiodev", "readline", "syslog"),
    }
)
# What the frameworks import as they run.
_NEEDED: Final = frozenset(
    {
        *("annotated_doc", "annotated_types", "anyio", "dns", "email_validator", "fastapi"),
        *("httpmw", "idna", "itsdangerous", "jinja2", "markupsafe", "multipart", "orjson"),
        *("pydantic", "pydantic_core", "python_multipart", "sniffio", "starlette"),
        *("typing_extensions", "typing_inspection", "ujson", "zoneinfo", "tzdata"),
    }
)


def keep_in() -> None:
    """
    Refuse, in this process and for good, what would reach out of it.
    """
    for name, functions in _REPLACED.items():
        for module in filter(None, (sys.modules.get(name), _under(name))):
            for function in functions:
                if hasattr(module, function):
                    setattr(module, function, _refused(f"{name}.{function}"))
    sys.meta_path.insert(0, _Finder())
    _limit()
    sys.addaudithook(_refuse)


def _under(name: str) -> ModuleType | None:
    # `os` has its functions from another module, in which they can be found as well.
    return sys.modules.get("nt" if os.name == "nt" else "posix") if name == "os" else None


def _refused(what: str) -> Any:
    def function(*_: object, **__: object) -> NoReturn:
        raise PermissionError(f"refused while verifying: {what}")

    return function


def _limit() -> None:
    # No file grows, whoever writes it, and nothing that ends badly leaves its memory in one.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415 - Windows has none

        for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            resource.setrlimit(limit, (0, 0))


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    # An audit hook: it cannot be taken away again.
    if event in _EVENTS or event.rpartition(".")[0] in _FAMILIES:
        raise PermissionError(f"refused while verifying: {event}")
    if event == "open":
        _, mode, flags = args
        if (isinstance(mode, str) and set(mode) & set("wax+")) or flags & _WRITING:
            raise PermissionError("refused while verifying: open for writing")


class _Finder:
    # `importlib`, `pkgutil.resolve_name()`, the `()` of `logging.config`: whoever imports.

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: object = None,  # noqa: ARG002
    ) -> None:
        top = name.partition(".")[0]
        if top in _NEEDED or (top in sys.stdlib_module_names and top not in _NOT_IMPORTED):
            return  # the others find it
        raise ModuleNotFoundError(f"refused while verifying: import of {name!r}", name=name)
