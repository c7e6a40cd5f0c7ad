# Which modules a function under `--verify` can import, and what they are.
# It is long because it is a list: what of the standard library is left, replaced or refused.
#
# Rule 1: a module of the project, or of another library, is a stub; it is never looked for.
# Rule 2: what reaches out of the process is a stub, and what is different each time is a counter.

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import importlib
import inspect
import logging
import os
import random
import secrets
import sys
import threading
import time
import timeit
import traceback
import uuid
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from ._stubs import Stub, World, is_stub

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
        "curses",
        "dbm",
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
        "readline",
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
    # Long because it is the list of what is replaced, and all of it counts in one world.
    def stub(name: str) -> Stub:
        return Stub(world, name)

    def new_id(*_node_and_clock: object) -> uuid.UUID:
        return uuid.UUID(int=next(world.ids), version=4)

    names = ("time", "monotonic", "perf_counter", "process_time")
    seconds = dict.fromkeys(names, world.now)
    loops = _Loops(world)
    utils = importlib.import_module("email.utils")
    email_utils = _Fake(
        utils,
        formatdate=lambda *args, **options: utils.formatdate(*(args or (world.now(),)), **options),
        localtime=lambda *_: dt.datetime.fromtimestamp(world.now(), dt.UTC),
        make_msgid=lambda *_, **__: f"<{next(world.ids)}@testserver>",
    )
    nanoseconds = {f"{name}_ns": lambda: int(world.now() * 1e9) for name in seconds}
    return {
        "time": _Fake(time, **seconds, **nanoseconds, **_calendar(world), sleep=stub("time.sleep")),
        "timeit": _Fake(
            timeit, default_timer=world.now, timeit=stub("timeit.timeit"), repeat=stub("repeat")
        ),
        "datetime": _Fake(dt, datetime=_clocked(world), date=_dated(world)),
        # `import email.utils` gives the package, which has the module as an attribute.
        "email": _Fake(importlib.import_module("email"), utils=email_utils),
        "email.utils": email_utils,
        "traceback": _told(world),
        "inspect": _Fake(inspect, currentframe=stub("frame"), stack=list, trace=list),
        "uuid": _Fake(uuid, uuid1=new_id, uuid4=new_id, uuid7=new_id),
        "secrets": _Fake(
            secrets,
            token_hex=lambda n=32: f"{next(world.ids):0{n * 2}x}",
            token_urlsafe=lambda n=32: f"token-{next(world.ids)}-{n}",
            token_bytes=lambda n=32: next(world.ids).to_bytes(n, "big"),
            randbelow=lambda n: next(world.ids) % n,
            SystemRandom=lambda: world.random,
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
            create_task=loops.create_task,
            ensure_future=loops.ensure_future,
            get_event_loop=loops.running,
            get_running_loop=loops.running,
            to_thread=loops.to_thread,
            wait_for=lambda awaitable, timeout=None: asyncio.wait_for(awaitable, _limit(timeout)),
            timeout=lambda delay: asyncio.timeout(_limit(delay)),
        ),
        "sys": _Fake(
            sys, modules={}, path=[], argv=["app"], exit=stub("sys.exit"), _getframe=stub("frame")
        ),
        "asyncio.log": _Fake(importlib.import_module("asyncio.log"), logger=stub("logger")),
        "threading": _Fake(threading, Thread=stub("threading.Thread")),
    }


class _Loops:
    # What a function starts beside the request has no moment; what it gives to a thread is done
    # at once.

    def __init__(self, world: World) -> None:
        self._world = world

    def _beside(self, task: Any) -> Any:
        if isinstance(task, asyncio.Task):
            self._world.beside.add(task)
        return task

    def create_task(self, coroutine: Any, **options: Any) -> Any:
        return self._beside(asyncio.create_task(_awaited(coroutine), **options))

    def ensure_future(self, awaitable: Any, **options: Any) -> Any:
        if isinstance(awaitable, asyncio.Future):
            return awaitable
        return self._beside(asyncio.ensure_future(_awaited(awaitable), **options))

    async def to_thread(self, function: Any, /, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args, **options)

    def running(self) -> Any:
        return _Loop(self, asyncio.get_running_loop(), self._world)


class _Loop:
    def __init__(self, loops: _Loops, real: asyncio.AbstractEventLoop, world: World) -> None:
        self._real = real
        self.time = world.now
        self.create_task = loops.create_task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def run_in_executor(self, executor: Any, function: Any, *args: Any) -> Any:  # noqa: ARG002
        done = self._real.create_future()
        try:
            done.set_result(function(*args))
        except Exception as error:  # noqa: BLE001 - who awaits it is told
            done.set_exception(error)
            done.exception()  # and nobody else
        return done


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def _told(world: World) -> ModuleType:
    # Where a traceback leads is another thing before and afterwards: what was raised stays.
    def lines(*args: Any, **_: Any) -> list[str]:
        given = next((each for each in args if isinstance(each, BaseException)), None)
        error = given or sys.exception()
        head = "Traceback (most recent call last):\n"
        return [head, *traceback.format_exception_only(error)] if error else ["NoneType: None\n"]

    printing = ("print_exc", "print_exception", "print_last", "print_stack", "print_tb")
    empty = ("extract_stack", "extract_tb", "format_list", "format_stack", "format_tb", "walk_tb")
    return _Fake(
        traceback,
        format_exc=lambda *_, **__: "".join(lines()),
        format_exception=lines,
        **{name: Stub(world, f"traceback.{name}") for name in printing},
        **{name: lambda *_, **__: _Frames() for name in empty},
    )


class _Frames(list[Any]):
    def __getitem__(self, index: Any) -> Any:
        return _Frames() if isinstance(index, slice) else traceback.FrameSummary("mw.py", 1, "mw")


def _calendar(world: World) -> dict[str, Any]:
    # Without an argument they ask the clock.
    def of_seconds(name: str) -> Any:
        real = getattr(time, name)
        return lambda *args: real(*(args or (world.now(),)))

    def of_parts(name: str, count: int) -> Any:
        real = getattr(time, name)
        return lambda *args: real(*args, *([time.gmtime(world.now())] * (count > len(args))))

    seconds = {name: of_seconds(name) for name in ("ctime", "gmtime", "localtime")}
    return {**seconds, "asctime": of_parts("asctime", 1), "strftime": of_parts("strftime", 2)}


def _dated(world: World) -> type[dt.date]:
    class dated(dt.date):  # noqa: N801 - it stands for `datetime.date`
        @classmethod
        def today(cls) -> Any:
            return cls.fromtimestamp(world.now())

    return dated


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
        if name in {"Random", "SystemRandom"}:
            return lambda *seed: random.Random(*(seed or (next(self._world.ids),)))  # noqa: S311
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
