# Old and new version of one function, run side by side.
#
# Rule 1: both versions are given the same apps and requests, in the same order, in worlds that
# answer the same; a function keeps its module's state from one request to the next.
# Rule 2: a function that could not be run is told apart from one that behaves the same.

from __future__ import annotations

import ast
import asyncio
import re
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ._compare import Facts, compare
from ._load import Layer, Module, NotRunnable
from ._matrix import APPS, REQUESTS, Asked
from ._runs import Outcome, Runner
from ._stubs import StubError, World

if TYPE_CHECKING:
    from typing import Self

__all__ = ["FULL", "Difference", "Matrix", "Module", "TooLong", "Verdict", "judge"]

# Differences of one function that are kept; the first ones say what there is to say.
_KEPT: Final = 20
# Runs in which one version hangs, until the rest is not worth waiting for.
_PATIENCE: Final = 2


@dataclass(frozen=True, slots=True)
class Matrix:
    """
    What a function is run against.

    Attributes:
        apps: The inner apps, by name.
        requests: The requests.
        paths: How many requests are made from the paths in the function's source.
        failures: How many calls of stubs fail, one after the other.
        failing_apps: The inner apps for that.
        failing_requests: The requests for that.
        seconds: The time limit for one run; none of ours takes a hundredth of it.
    """

    apps: tuple[str, ...] = tuple(APPS)
    requests: tuple[Asked, ...] = REQUESTS
    paths: int = 6
    failures: int = 6
    failing_apps: tuple[str, ...] = ("json", "ValueError", "stream")
    failing_requests: tuple[Asked, ...] = REQUESTS[:3]
    seconds: float = 10.0


FULL: Final = Matrix()


@dataclass(frozen=True, slots=True)
class Difference:
    """
    One run in which the two versions differ.

    Attributes:
        app: The inner app.
        request: The request.
        world: What the stubs were like.
        what: What differs.
    """

    app: str
    request: str
    world: str
    what: str

    def __str__(self) -> str:
        return f"{self.what} (app `{self.app}`, request `{self.request}`, stubs {self.world})"


@dataclass(slots=True)
class Verdict:
    """
    What became of one function.

    Attributes:
        qualname: Its qualified name.
        line: Its line in the old source.
        pairs: How many pairs were run.
        identical: How many of them were the same.
        improvements: How many had a listed improvement and were the same otherwise, by its name.
        differences: The first pairs that differ in another way.
        differing: How many there are.
        problem: Why it could not be run; empty where it was.
    """

    qualname: str
    line: int
    pairs: int = 0
    identical: int = 0
    improvements: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    differing: int = 0
    problem: str = ""


def judge(  # noqa: PLR0913, PLR0917 - the two versions, and what to do with them
    old: Module,
    new: Module,
    qualname: str,
    line: int,
    loop: asyncio.AbstractEventLoop,
    matrix: Matrix = FULL,
    *,
    alarm: bool = False,
    forgets: bool = False,
    managers: frozenset[str] = frozenset(),
) -> Verdict:
    """
    Run the two versions of one function in this process.

    Args:
        old: The module before.
        new: The module afterwards.
        qualname: The function.
        line: Its line before.
        loop: The event loop to run on.
        matrix: What to run them against.
        alarm: Whether the alarm clock of the process may be used, for code that never awaits.
        forgets: Whether it is known to take context variables back at the response start.
        managers: The context managers of other files that take back context variables.
    """
    verdict = Verdict(qualname, line)
    index = old.find(qualname, line)
    if index is None:
        verdict.problem = "it is not in the source"
        return verdict
    function = old.function(qualname, index)
    style = new.style == "drop-in"
    facts = Facts.of(old.text(qualname, index), forgets=forgets, drop_in=style)
    target = _Target((old, new), qualname, index, managers)
    requests = (*matrix.requests, *_of_the_source(function, matrix.paths))
    try:
        for truthy in (False, True):
            limit = _Limit(matrix.seconds, alarm=alarm)
            pair = _Pair(target, limit, truthy=truthy)
            run = pair.run(verdict, facts, matrix.apps, requests)
            calls = loop.run_until_complete(run)
        for which in range(min(calls, matrix.failures)):
            pair.fail(which)
            run = pair.run(verdict, facts, matrix.failing_apps, matrix.failing_requests)
            loop.run_until_complete(run)
        for nothing in filter(None, old.called(qualname, index)):
            for truthy in (False, True):
                pair = _Pair(target, limit, truthy=truthy, nothing=nothing)
                run = pair.run(verdict, facts, matrix.failing_apps, matrix.failing_requests)
                loop.run_until_complete(run)
    except _Enough:
        pass
    except NotRunnable as problem:
        verdict.problem = str(problem)
    return verdict


@dataclass(frozen=True, slots=True)
class _Target:
    modules: tuple[Module, Module]
    qualname: str
    index: int
    managers: frozenset[str]


class _Pair:
    def __init__(
        self,
        target: _Target,
        limit: _Limit,
        *,
        truthy: bool,
        nothing: frozenset[str] = frozenset(),
    ) -> None:
        self.name = "true" if truthy else "false"
        if nothing:
            self.name += f", {', '.join(sorted(nothing))} give None"
        self._limit = limit
        self._hanging = 0
        self._is_rewritten = target.modules[1].style == "generator"
        self._worlds: list[World] = []
        self._runners: list[Runner] = []
        problems: list[str] = []
        for module in target.modules:
            world = module.world(truthy=truthy, nothing=nothing, managers=target.managers)
            self._worlds.append(world)
            try:
                with limit:
                    layer: Layer = module.load(target.qualname, target.index, world)
                    self._runners.append(Runner(layer.make, world, layer.variables))
            except NotRunnable as problem:
                problems.append(str(problem))
        if problems:
            which = "" if len(problems) > 1 else "only one of the versions can be run: "
            raise NotRunnable(which + problems[0])

    def fail(self, which: int) -> None:
        """
        Let that call of a stub fail, counted from 0 in each run.
        """
        self.name = f"true, call {which + 1} fails"
        for world in self._worlds:
            world.raise_at = which
            known = [world.named(name) for name in sorted(world.raised)]
            world.raise_class = known[which % len(known)] if known else StubError

    async def run(
        self,
        verdict: Verdict,
        facts: Facts,
        apps: Iterable[str],
        requests: Iterable[Asked],
    ) -> int:
        """
        Run all pairs, and give the largest number of calls of stubs in one run.
        """
        calls = 0
        for asked in requests:
            for app in apps:
                outcomes = [await self._run(runner, app, asked) for runner in self._runners]
                if self._worlds[0].handed_on and self._is_rewritten:
                    raise NotRunnable("`call_next` is handed to something that is in another file")
                if all(each.hangs for each in outcomes):
                    raise NotRunnable(f"it does not end (app `{app}`, request `{asked.name}`)")
                calls = max(calls, self._worlds[0].calls)
                differences, improvements = compare(outcomes[0], outcomes[1], facts)
                difference = Difference(app, asked.name, self.name, "; ".join(differences))
                _count(verdict, difference, improvements)
                self._hanging += any(each.hangs for each in outcomes)
                if self._hanging > _PATIENCE:
                    raise _Enough
        return calls

    async def _run(self, runner: Runner, app: str, asked: Asked) -> Outcome:
        with self._limit as limit:
            outcome = await runner.run(APPS[app], asked, limit.seconds)
        if limit.over:
            outcome.hangs = True
            outcome.error = ("", "it does not end", False)
        return outcome


def _count(verdict: Verdict, difference: Difference, improvements: list[str]) -> None:
    verdict.pairs += 1
    if difference.what:
        verdict.differing += 1
        if len(verdict.differences) < _KEPT:
            verdict.differences.append(difference)
    elif improvements:
        counted = Counter(verdict.improvements)
        counted.update(improvements)
        verdict.improvements = dict(counted)
    else:
        verdict.identical += 1


def _of_the_source(function: ast.AST, count: int) -> Iterator[Asked]:
    # Requests for the paths that the function compares with, with the headers, cookies and
    # parameters that it looks up.
    texts = [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    names = sorted({each for each in texts if re.fullmatch(r"[A-Za-z][\w-]{2,40}", each)})
    known = {"content-type", "content-length", "transfer-encoding"}
    names = [each for each in names if each.lower() not in known]
    cookies = "; ".join(f"{name}=cookie-1" for name in names)
    headers = [(name.lower(), "value-1") for name in names if "_" not in name]
    if cookies:
        headers.append(("cookie", cookies))
    query = "&".join(f"{name}=parameter-1" for name in names)
    paths = sorted({each for each in texts if re.fullmatch(r"/[\w./-]{1,60}", each)})[:count]
    if names and count:
        yield Asked("GET /, all names", "GET", "/", query, tuple(headers))
    for path in paths:
        yield Asked(f"GET {path}", "GET", path)
        if "POST" in texts:
            body = (b'{"prompt": "x"}',)
            yield Asked(f"POST {path}", "POST", path, query, tuple(headers), body)


class TooLong(BaseException):
    """
    Raised in code that goes on behind its time limit.
    """


class _Enough(Exception):  # noqa: N818 - it is no error
    pass


class _Limit:
    # Code that never awaits is not ended by a time limit of the event loop, and a bare `except`
    # swallows whatever is raised in it: so it is raised again and again. Such code burns time of
    # the processor, and that is what is counted: a busy machine ends nothing.

    def __init__(self, seconds: float, *, alarm: bool) -> None:
        self.seconds = seconds
        self.over = False
        self._alarm = alarm and hasattr(signal, "setitimer")

    def __enter__(self) -> Self:
        self.over = False
        if self._alarm:
            signal.signal(signal.SIGPROF, self._raise)
            signal.setitimer(signal.ITIMER_PROF, self.seconds + 0.2, 0.1)
        return self

    def __exit__(self, *error: object) -> None:
        if self._alarm:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _raise(self, *signal_and_frame: object) -> None:  # noqa: ARG002 - it is always the alarm
        self.over = True
        raise TooLong
