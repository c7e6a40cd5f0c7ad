# Which modules a function under `--verify` can import, and what they are.
#
# Rule 1: a module of the project, or of another library, is a stub; it is never looked for.
# Rule 2: what reaches out of the process is a stub, and what is different each time is a counter.

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import importlib
import logging
import os
import random
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from ._verify_stubs import Stub, World, is_stub

__all__ = ["Importer"]

# What is the real thing: the frameworks, and the standard library but for what would reach out
# of the process.
_FRAMEWORKS: Final = frozenset(
    {"anyio", "fastapi", "httpmw", "pydantic", "starlette", "typing_extensions"}
)
_REACHING_OUT: Final = frozenset(
    {
        "cProfile",
        "ctypes",
        "faulthandler",
        "fcntl",
        "ftplib",
        "gc",
        "getpass",
        "importlib",
        "imaplib",
        "mmap",
        "multiprocessing",
        "nntplib",
        "pdb",
        "poplib",
        "profile",
        "pstats",
        "pty",
        "resource",
        "runpy",
        "sched",
        "select",
        "selectors",
        "shutil",
        "signal",
        "smtplib",
        "socket",
        "socketserver",
        "sqlite3",
        "ssl",
        "subprocess",
        "syslog",
        "telnetlib",
        "tempfile",
        "tkinter",
        "tracemalloc",
        "webbrowser",
        "xmlrpc",
    }
)
_REACHING_OUT_MODULES: Final = frozenset(
    {"concurrent.futures", "http.client", "http.server", "logging.handlers", "urllib.request"}
)


class Importer:
    """
    What stands for `__import__` in a world.

    Args:
        world: The world.
        replaced: Modules that stand for others, by their names.
    """

    def __init__(self, world: World, replaced: Mapping[str, ModuleType]) -> None:
        self._world = world
        self._modules: dict[str, ModuleType] = {**_fakes(world), **replaced}

    def __call__(
        self,
        name: str,
        globals_: Mapping[str, Any] | None = None,  # noqa: ARG002
        locals_: Mapping[str, Any] | None = None,  # noqa: ARG002
        fromlist: tuple[str, ...] | None = (),
        level: int = 0,
    ) -> Any:
        top = name.partition(".")[0]
        if level or not _is_real(name, top):
            return _StubModule(self._world, "" if fromlist else top)
        wanted = name if fromlist else top
        if not _imported(name):
            if top != "fastapi":
                return _StubModule(self._world, "" if fromlist else top)
            return _Starlette(self._world)
        for each in fromlist or ():
            _imported(f"{name}.{each}")  # a submodule, or an attribute
        if fromlist and name in self._modules:
            return self._modules[name]
        return self._modules.get(wanted) or sys.modules[wanted]


def _is_real(name: str, top: str) -> bool:
    if top in _FRAMEWORKS or name == "__future__":
        return True
    if top.startswith("_") or top in _REACHING_OUT or name in _REACHING_OUT_MODULES:
        return False
    return top in sys.stdlib_module_names


@functools.cache
def _imported(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


class _StubModule(ModuleType):
    def __init__(self, world: World, name: str) -> None:
        super().__init__(name or "stub")
        self.__dict__.update({"_world": world, "_name": name, "__path__": []})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = self._world.named(f"{self._name}.{name}" if self._name else name)
        self.__dict__[name] = value
        return value


class _Starlette(ModuleType):
    # `fastapi` where it is not installed: what it has from Starlette is Starlette's.

    def __init__(self, world: World) -> None:
        super().__init__("fastapi")
        self.__dict__["_world"] = world

    def __getattr__(self, name: str) -> Any:
        if name in {"responses", "requests", "exceptions", "concurrency", "middleware"}:
            return self
        for module in ("responses", "requests", "exceptions", "concurrency", "background"):
            found = getattr(importlib.import_module(f"starlette.{module}"), name, None)
            if found is not None:
                return found
        if name == "status":
            return importlib.import_module("starlette.status")
        if name.startswith("__"):
            raise AttributeError(name)
        return self._world.named(name)


# ---------------------------------------------------------------- the modules that are repeatable


class _Fake(ModuleType):
    def __init__(self, real: ModuleType, **others: Any) -> None:
        super().__init__(real.__name__, real.__doc__)
        self.__dict__["_real"] = real
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


_LOGGING: Final = (
    *("getLogger", "basicConfig", "FileHandler", "log"),
    *("debug", "info", "warning", "error", "exception", "critical"),
)


def _fakes(world: World) -> dict[str, ModuleType]:
    def stub(name: str) -> Stub:
        return Stub(world, name)

    def new_id(*_node_and_clock: object) -> uuid.UUID:
        return uuid.UUID(int=next(world.ids), version=4)

    names = ("time", "monotonic", "perf_counter", "process_time")
    seconds = dict.fromkeys(names, world.now)
    nanoseconds = {f"{name}_ns": lambda: int(world.now() * 1e9) for name in seconds}
    return {
        "time": _Fake(time, **seconds, **nanoseconds, sleep=stub("time.sleep")),
        "datetime": _Fake(dt, datetime=_clocked(world)),
        "uuid": _Fake(uuid, uuid1=new_id, uuid4=new_id, uuid7=new_id),
        "secrets": _Fake(
            secrets,
            token_hex=lambda n=32: f"{next(world.ids):0{n * 2}x}",
            token_urlsafe=lambda n=32: f"token-{next(world.ids)}-{n}",
            token_bytes=lambda n=32: next(world.ids).to_bytes(n, "big"),
            randbelow=lambda n: next(world.ids) % n,
            choice=lambda items: items[next(world.ids) % len(items)],
        ),
        "random": _FakeRandom(world),
        "os": _Fake(
            os,
            environ=_Environment(world),
            getenv=lambda name, default=None: _Environment(world).get(name, default),
            urandom=lambda n: next(world.ids).to_bytes(n, "big"),
            getpid=lambda: 1,
        ),
        "logging": _Fake(
            logging,
            **{name: stub(f"logging.{name}") for name in _LOGGING},
        ),
        "asyncio": _Fake(
            asyncio,
            sleep=stub("asyncio.sleep"),
            wait_for=lambda awaitable, timeout=None: asyncio.wait_for(awaitable, _limit(timeout)),
            timeout=lambda delay: asyncio.timeout(_limit(delay)),
        ),
        "asyncio.log": _Fake(importlib.import_module("asyncio.log"), logger=stub("logger")),
        "threading": _Fake(threading, Thread=stub("threading.Thread")),
    }


def _limit(seconds: Any) -> Any:
    return 30.0 if is_stub(seconds) else seconds


def _clocked(world: World) -> type[dt.datetime]:
    class clocked(dt.datetime):  # noqa: N801 - it stands for `datetime.datetime`
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return cls.fromtimestamp(world.now(), tz or dt.UTC).replace(tzinfo=tz)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now()

        @classmethod
        def today(cls) -> Any:
            return cls.now()

    return clocked


class _FakeRandom(ModuleType):
    def __init__(self, world: World) -> None:
        super().__init__("random")
        self.__dict__["_world"] = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world.random, name, None) or getattr(random, name)


class _Environment(dict[str, str]):
    # Where stubs count as true every variable is set.

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def __missing__(self, name: str) -> Any:
        if not self._world.truthy:
            raise KeyError(name)
        return Stub(self._world, f"environ.{name}")

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if self._world.truthy and default is None else default
