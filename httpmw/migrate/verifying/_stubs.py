# What a function under `--verify` finds where the names of its project were.
# A stub, its world and its trace are one: what the one does the others say.
#
# Rule 1: nothing here touches anything real: a stub is text with a name, and every call of it,
# every context it is used as and everything that is set on it is one line in the trace.
# Rule 2: a line of the trace says the same before and after a conversion: it has no addresses
# and no types of ours, a response is its status and headers, a request its method and path.
# Rule 3: a world is repeatable: its clock, its random numbers and its ids are counters.

from __future__ import annotations

import asyncio
import dis
import itertools
import opcode
import random
import re
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response

from ._variables import Variables

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Stub", "StubError", "World", "described", "is_stub"]

_UNPACK: Final = opcode.opmap["UNPACK_SEQUENCE"]
_ADDRESS: Final = re.compile(r"0x[0-9a-f]{6,}")
# Of a stub that is sent as a response.
_STATUS: Final = 418
# What it is, and what the engine remembers that was sent.
_OF_STATUS: Final = frozenset({"status_code", "_sent_status"})
# What the received response is an instance of, before and now.
_RECEIVED: Final = re.compile(r"(?:\b[\w.]+\.)?\b(?:_StreamingResponse|AppResponse)\b")
_LONGEST: Final = 160
# A stub is no generator: one that a middleware function yields would be run as another one.
_OF_GENERATORS: Final = frozenset({"asend", "athrow", "ag_code", "ag_frame"})


class World:
    """
    What one version of a function sees around it, and the trace of what it does there.

    Args:
        truthy: Whether stubs count as true, are equal to everything and have one item.
        nothing: The last parts of the names of stubs whose calls give None.
        raised: The last parts of the names that stand in `except` and `raise`: where such a
            name is unknown it is an exception class and no stub.
        managers: The last parts of the names of context managers of other files that take back
            context variables, and do no more.
    """

    def __init__(
        self,
        *,
        truthy: bool,
        raised: frozenset[str],
        nothing: frozenset[str] = frozenset(),
        managers: frozenset[str] = frozenset(),
    ) -> None:
        self.truthy = truthy
        self.nothing = nothing
        self.raised = raised
        self.variables = Variables(managers)
        self.loading = True
        # Whether a stub was given `call_next`.
        self.handed_on = False
        self.base: type = _AnyBase
        self.raise_at = -1
        self.raise_class: type[Exception] | None = None
        self._classes: dict[str, type[StubError]] = {}
        self.reset()

    def reset(self) -> None:
        """
        Begin a run: an empty trace, and the clock at its beginning.
        """
        self.trace: list[str] = []
        # What happens in tasks beside the request, whose moments are nobody's.
        self.others: list[str] = []
        self.beside: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._objects: dict[int, tuple[int, object]] = {}
        self.calls = 0
        self.ticks = itertools.count(1)
        self.ids = itertools.count(1)
        self.random = random.Random(0)  # noqa: S311 - repeatable is what it has to be

    def record(self, what: str) -> None:
        """
        Add a line to the trace.
        """
        if self.loading:
            return
        what = _RECEIVED.sub("Response", _ADDRESS.sub("0x", what))[: _LONGEST * 8]
        (self.others if self.is_beside() else self.trace).append(what)

    def is_beside(self) -> bool:
        """
        Say whether it happens in a task that the function has started, and in its own time.
        """
        try:
            return asyncio.current_task() in self.beside
        except RuntimeError:  # no loop runs
            return False

    def named(self, name: str) -> Any:
        """
        Give what stands for the unknown *name*: a stub, or an exception class.
        """
        last = name.rpartition(".")[2]
        if last not in self.raised:
            return Stub(self, name)
        if last not in self._classes:
            self._classes[last] = type(last, (StubError,), {"world": self})
        return self._classes[last]

    def called(self, what: str) -> None:
        """
        Record a call, and raise where it is the one that shall fail.
        """
        self.record(what)
        if self.loading or self.is_beside():
            return
        self.calls += 1
        if self.calls - 1 == self.raise_at:
            raise (self.raise_class or StubError)("the stub fails")

    def id_of(self, value: object) -> int:
        """
        Give a number for an object, counted from 1.
        """
        return self._objects.setdefault(id(value), (len(self._objects) + 1, value))[0]

    def now(self) -> float:
        """
        Give the next time, in seconds; each look at the clock takes a millisecond.
        """
        return 1_700_000_000 + next(self.ticks) / 1000


class StubError(Exception):
    """
    The exceptions of the project: any arguments, any attributes.
    """

    world: World | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*(described(each) for each in args))
        self.__dict__.update(options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.world is None:
            raise AttributeError(name)
        return self.world.named(f"error.{name}")


class _AnyBase:
    """
    A class that the project's classes may derive from.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __init_subclass__(cls, **options: Any) -> None:
        pass


# Text, so that it can be a header, a part of JSON, a path. A response, so that what a helper
# gives back can be returned from a dispatch function.
class Stub(str, Response):  # noqa: SLOT000 - it has a dictionary, as responses have
    """
    Anything that the project would have brought, by its name.
    """

    def __new__(cls, world: World, label: str) -> Self:
        if len(label) > _LONGEST:
            label = f"{label[:_LONGEST]}~"
        self = str.__new__(cls, f"<{label}>")
        object.__setattr__(self, "__dict__", {"_world": world, "_label": label, "_known": {}})
        return self

    def __init__(self, world: World, label: str) -> None:
        pass

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        if name in _OF_GENERATORS:
            raise AttributeError(name)
        own = object.__getattribute__(self, "__dict__")
        if name in own:
            return own[name]
        if name in _OF_TEXT and _framework_asks(sys._getframe(1)):  # noqa: SLF001
            return getattr(f"<{own['_label']}>", name)
        if name in _OF_STATUS and _framework_asks(sys._getframe(1)):  # noqa: SLF001
            status = own["_known"].get("status_code")
            return status if type(status) is int else _STATUS
        if name in own["_known"]:
            return own["_known"][name]
        if name in _READ_BY_THE_ENGINE:
            return _READ_BY_THE_ENGINE[name](own["_label"])
        child = own["_world"].named(f"{own['_label']}.{name}")
        own["_known"][name] = child
        return child

    def __setattr__(self, name: str, value: Any) -> None:
        self._known[name] = value
        self._world.record(f"{self._label}.{name} = {described(value)}")

    def __delattr__(self, name: str) -> None:
        self._known.pop(name, None)
        self._world.record(f"del {self._label}.{name}")

    def __call__(self, *args: Any, **options: Any) -> Any:
        if len(args) == 3 and isinstance(args[0], Mapping) and "type" in args[0]:  # noqa: PLR2004
            return PlainTextResponse(f"response {self._label}", _STATUS)(*args)
        world = self._world
        if world.loading and len(args) == 1 and not options and _is_definition(args[0]):
            return args[0]  # a decorator
        if not world.loading and world.variables.take_back(self._label, args):
            return None
        world.called(f"{self._label}({_arguments(args, options)})")
        if world.loading:
            return Stub(world, f"{self._label}()")
        for request, each in itertools.pairwise(args):
            if isinstance(request, HTTPConnection) and callable(each) and not is_stub(each):
                world.handed_on = True
                return _calling_next(each, request)
        is_nothing = self._label.rpartition(".")[2] in world.nothing
        if is_nothing and not world.variables.concerns(self._label, args):
            return _none_later() if _is_awaited(sys._getframe(1)) else None  # noqa: SLF001
        given = Stub(world, f"{self._label}()")
        world.variables.note(self._label, args, _arguments(args, options), given)
        return given

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        # Of several unknown bases the first one stands for all.
        base = self._world.base
        first = next(each for each in bases if is_stub(each))
        return (base,) if first is self and all(each is not base for each in bases) else ()

    def __instancecheck__(self, instance: object) -> bool:
        return bool(self._world.truthy)

    def __subclasscheck__(self, subclass: type) -> bool:
        return bool(self._world.truthy)

    # awaited, entered, iterated

    def __await__(self) -> Generator[Any, Any, Any]:
        yield  # to the event loop, once
        return Stub(self._world, f"{self._label}")

    def __enter__(self) -> Any:
        self._world.called(f"enter {self._label}")
        self._world.variables.enter(self, self._label)
        return Stub(self._world, f"{self._label}.__enter__()")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._world.variables.leave(self, self._label):
            self._world.record(f"exit {self._label}: {kind and kind.__name__}")

    async def __aenter__(self) -> Any:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __iter__(self) -> Iterator[Any]:
        wanted = _unpacked(sys._getframe(1))  # noqa: SLF001 - how many are wanted is written there
        count = int(self._world.truthy) if wanted is None else wanted
        return iter([Stub(self._world, f"{self._label}[{index}]") for index in range(count)])

    async def __aiter__(self) -> AsyncIterator[Any]:
        for each in self:
            yield each

    def __next__(self) -> Any:
        return Stub(self._world, f"next({self._label})")

    # compared, measured, indexed

    def __bool__(self) -> bool:
        return bool(self._world.truthy)

    def __len__(self) -> int:
        return int(self._world.truthy)

    def __int__(self) -> int:
        return 7 if self._world.truthy else 0

    __index__ = __int__

    def __float__(self) -> float:
        return float(self.__int__())

    def __hash__(self) -> int:
        return str.__hash__(self)

    def __eq__(self, other: object) -> bool:
        return self is other or bool(self._world.truthy)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __contains__(self, item: object) -> bool:
        return bool(self._world.truthy)

    def __getitem__(self, key: Any) -> Any:
        known = self._known
        name = f"[{described(key)}]"
        if name not in known:
            known[name] = Stub(self._world, f"{self._label}{name}")
        return known[name]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._known[f"[{described(key)}]"] = value
        self._world.record(f"{self._label}[{described(key)}] = {described(value)}")

    def __delitem__(self, key: Any) -> None:
        self._world.record(f"del {self._label}[{described(key)}]")

    def __round__(self, digits: int = 0) -> Any:
        return self

    def __str__(self) -> str:
        return f"<{object.__getattribute__(self, '__dict__')['_label']}>"

    __repr__ = __str__

    def __format__(self, how: str) -> str:
        return str(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (str, (str(self),))


def _truth(self: Stub, other: object) -> bool:  # noqa: ARG001
    return bool(self._world.truthy)


def _same(self: Stub, *others: object) -> Any:  # noqa: ARG001
    return self


for _name in ("lt", "le", "gt", "ge"):
    setattr(Stub, f"__{_name}__", _truth)
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(Stub, f"__{_name}__", _same)
    setattr(Stub, f"__r{_name}__", _same)
for _name in ("neg", "pos", "abs", "invert"):
    setattr(Stub, f"__{_name}__", _same)

# A stub that is sent as a response is looked at by Starlette and by httpmw.
_READ_BY_THE_ENGINE: Final[dict[str, Callable[[str], Any]]] = {
    "background": lambda label: None,  # noqa: ARG005
    "encode": lambda label: lambda *how: f"<{label}>".encode("ascii", "backslashreplace"),  # noqa: ARG005
}


_OF_TEXT: Final = frozenset(each for each in dir(str) if not each.startswith("_")) - {"encode"}
_FRAMEWORKS: Final = frozenset(
    {"anyio", "email", "fastapi", "http", "httpmw", "starlette", "urllib"}
)


def _framework_asks(frame: FrameType) -> bool:
    # Where a stub is the name of a header it is text: how often that is looked at is no effect.
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in _FRAMEWORKS


def is_stub(value: object) -> bool:
    """
    Say whether *value* is a stub; `isinstance` cannot be asked, as a stub may stand for a class.
    """
    return issubclass(type(value), Stub)


def _is_definition(value: object) -> bool:
    return isinstance(value, type) or hasattr(value, "__code__")


async def _calling_next(call_next: Any, request: Any) -> Any:
    return await call_next(request)


async def _none_later() -> None:
    return None


def _is_awaited(frame: FrameType) -> bool:
    # What a call gives is awaited if that is what comes next.
    instructions = dis.get_instructions(frame.f_code)
    names = (each.opname for each in instructions if each.offset > frame.f_lasti)
    return next(names, "") == "GET_AWAITABLE"


def _unpacked(frame: FrameType) -> int | None:
    code = frame.f_code.co_code
    if code[frame.f_lasti] != _UNPACK:
        return None
    return code[frame.f_lasti + 1]


# --------------------------------------------------------------------------- how values are told


def _arguments(args: tuple[Any, ...], options: Mapping[str, Any]) -> str:
    named = (f"{name}={described(value)}" for name, value in options.items())
    return ", ".join([*map(described, args), *named])


def described(value: Any, depth: int = 3) -> str:
    """
    Say what *value* is, in words that are the same before and after a conversion.
    """
    kind = type(value)
    if issubclass(kind, Stub):
        return str(value)
    if kind in {str, bytes, int, float, bool, type(None), complex}:
        return repr(value)
    if issubclass(kind, HTTPConnection):
        return f"request {value.scope.get('method')} {value.scope['path']}"
    if depth and issubclass(kind, Mapping):
        items = (f"{described(k, 0)}: {described(v, depth - 1)}" for k, v in value.items())
        return "{" + ", ".join(items) + "}"
    if depth and kind in {list, tuple, set, frozenset}:
        items = (described(each, depth - 1) for each in value)
        return f"{kind.__name__}({', '.join(sorted(items) if kind in {set, frozenset} else items)})"
    if issubclass(kind, BaseException):
        return f"{kind.__name__}: {_ADDRESS.sub('0x', str(value))}"
    if issubclass(kind, Response):
        return f"response {value.status_code} {value.raw_headers}"
    if issubclass(kind, type) or hasattr(value, "__code__"):
        return f"{value.__name__}"
    return kind.__name__
