"""
Convert generated `call_next` middleware, and run old and new version in pairs.

    python -m tools.migrate_fuzz [--count N] [--seed N] [--keep-going N] [--variables]

A middleware is made of what real ones are made of: branches, early answers, `try`, `with`, loops,
edits of the request and the response, bodies that are read or wrapped, exceptions, helpers.
With `--variables` each one sets a context variable around its call.
Every difference that is not a listed improvement is printed, and the exit status is 1 then.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from httpmw.migrate import convert
from httpmw.migrate.verifying._judge import Matrix, Module, Verdict, judge
from httpmw.migrate.verifying._matrix import REQUESTS

# Small, so that there is time for many functions.
QUICK = Matrix(
    apps=("json", "ValueError", "stream", "breaks off"),
    requests=REQUESTS[1:3],
    paths=0,
    failures=2,
    failing_apps=("json", "ValueError"),
    failing_requests=REQUESTS[1:2],
    seconds=60.0,
)

HEAD = """\
import asyncio
import contextlib
import contextvars
import logging
import time

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import iterate_in_threadpool
from starlette.middleware.base import BaseHTTPMiddleware

from project import Denied, context, settings, store, tell

app = FastAPI()
logger = logging.getLogger(__name__)
current = contextvars.ContextVar("current", default="")
active = 0


@contextlib.contextmanager
def keeping(value):
    token = current.set(value)
    try:
        yield
    finally:
        current.reset(token)
"""

Lines = list[str]


@dataclass
class State:
    """
    Where in a middleware the generator is.

    Attributes:
        called: Whether the app has been called on this path.
        response: The variable that holds the response, empty where none does.
        depth: How deep the statements are nested.
    """

    called: bool = False
    response: str = ""
    depth: int = 0

    def deeper(self, **changes: object) -> "State":
        """
        Give the state one level further in.
        """
        return State(**{**vars(self), "depth": self.depth + 1, **changes})


_RESPONSES = (
    'JSONResponse({{"n": {n}}}, status_code={status})',
    'PlainTextResponse("text {n}", {status})',
    "Response(status_code={status})",
    'tell.response("r{n}")',
)


@dataclass
class Maker:
    """
    Makes one middleware.

    Args:
        rng: The source of chance.
        variables: Whether a context variable is set around everything.
    """

    rng: random.Random
    variables: bool = False
    request: str = "request"
    call_next: str = "call_next"
    responses: tuple[str, ...] = _RESPONSES
    nested: bool = False
    ends: bool = True
    declared: set[str] = field(default_factory=set)
    names: Iterator[int] = field(default_factory=lambda: iter(range(10_000)))

    def make(self, name: str) -> Lines:
        """
        Give the source of a middleware, in one of the shapes in which they are registered.
        """
        self.request = self.rng.choice(["request"] * 4 + ["req", "r"])
        self.call_next = self.rng.choice(["call_next"] * 4 + ["next_", "handler"])
        shapes = [self._decorated, self._subclass, self._subclass, self._nested, self._dispatch]
        shapes += [self._object, self._delegating, self._derived]
        return self.rng.choice(shapes)(name)

    # ----------------------------------------------------------------------------- the shapes

    def _function(self, name: str, *, method: bool = False) -> Lines:
        self.declared.clear()
        self_ = "self, " if method else ""
        head = self.rng.choice(
            [
                f"async def {name}({self_}{self.request}, {self.call_next}):",
                f"async def {name}({self_}{self.request}: Request, {self.call_next}) -> Response:",
            ]
        )
        doc = ['    """Say what it does; call_next is mentioned here."""'] * (
            self.rng.random() < 0.2
        )
        return [head, *doc, *_indented(self.path(State()))]

    def _decorated(self, name: str) -> Lines:
        return ['@app.middleware("http")', *self._function(name)]

    def _subclass(self, name: str) -> Lines:
        lines = [f"class {name}(BaseHTTPMiddleware):"]
        if self.rng.random() < 0.3:
            lines += [
                "    def __init__(self, app, limit=3):",
                "        super().__init__(app)",
                "        self.limit = limit",
                "",
            ]
        return [
            *lines,
            *_indented(self._function("dispatch", method=True)),
            "",
            f"app.add_middleware({name})",
        ]

    def _nested(self, name: str) -> Lines:
        self.nested = True
        lines = [f"def install_{name}(app, prefix):", '    counted = {"n": 0}', ""]
        lines += ['    @app.middleware("http")', *_indented(self._function(name))]
        return [*lines, "", f"install_{name}(app, '/api')"]

    def _dispatch(self, name: str) -> Lines:
        how = self.rng.choice(
            [
                f"app.add_middleware(BaseHTTPMiddleware, dispatch={name})",
                f'app.middleware("http")({name})',
            ]
        )
        return [*self._function(name), "", how]

    def _object(self, name: str) -> Lines:
        lines = [f"class {name}:", "    def __init__(self):", "        self.limit = 3", ""]
        lines += _indented(self._function("__call__", method=True))
        return [*lines, "", f"app.add_middleware(BaseHTTPMiddleware, dispatch={name}())"]

    def _delegating(self, name: str) -> Lines:
        # A stub cannot stand for a response that the outer function looks at. A body that is
        # wrapped in here is run where the outer function sends another response.
        self.responses = _RESPONSES[:-1]
        self.ends = False
        helper = self._function(f"help_{name}")
        lines = [f"async def {name}({self.request}, {self.call_next}):"]
        if self.rng.random() < 0.5:
            lines += _indented([self._tell()])
        if self.rng.random() < 0.5:
            lines += [f"    if {self._condition(State())}:"]
            lines += _indented(_indented(self._last()))
        call = f"await help_{name}({self.request}, {self.call_next})"
        if self.rng.random() < 0.3:
            kind = self.rng.choice(["ValueError", "Exception", "HTTPException"])
            lines += ["    try:", f"        response = {call}", f"    except {kind} as exc:"]
            lines += _indented(_indented(self._handler()))
            lines += _indented(self._after(State(called=True, response="response")))
        elif self.rng.random() < 0.5:
            lines += [f"    return {call}"]
        else:
            lines += [
                f"    response = {call}",
                *_indented(self._after(State(called=True, response="response"))),
            ]
        return [
            *helper,
            "",
            "",
            *lines,
            "",
            f"app.add_middleware(BaseHTTPMiddleware, dispatch={name})",
        ]

    def _derived(self, name: str) -> Lines:
        base = [f"class Base{name}(BaseHTTPMiddleware):"]
        base += _indented(self._function("dispatch", method=True))
        lines = [f"class {name}(Base{name}):"]
        lines += [f"    async def dispatch(self, {self.request}, {self.call_next}):"]
        if self.rng.random() < 0.6:
            lines += [f"        if {self._condition(State())}:"]
            lines += [f"            return await {self.call_next}({self.request})"]
        lines += [f"        return await super().dispatch({self.request}, {self.call_next})"]
        return [*base, "", "", *lines, "", f"app.add_middleware({name})"]

    # ------------------------------------------------------------------------------ the paths

    def path(self, state: State) -> Lines:
        """
        Give statements that end the function on every path.
        """
        if state.called:
            return self._after(state)
        lines: Lines = []
        for _ in range(self.rng.choice([0, 0, 1, 1, 2])):
            lines += self._before(state)
        if self.variables and not state.depth:
            return lines + self._keeping(state)
        if state.depth > 3 or self.rng.random() < 0.25:
            return lines + self._last()
        compound = [self._if_else, self._try, self._try_finally, self._with, self._call_then]
        compound += [self._call_then, self._call_then, self._call_in_try, self._call_in_try]
        compound += [self._call_in_with, self._call_in_branch, self._loop_then, self._match]
        compound += [self._suppressed, self._token, self._while, self._inline, self._conditional]
        compound += [self._keeping] * 3
        return lines + self.rng.choice(compound)(state)

    def _last(self) -> Lines:
        request, call_next = self.request, self.call_next
        rng = self.rng
        choices: list[Callable[[], Lines]] = [
            lambda: [f"return await {call_next}({request})"],
            lambda: [f"return await {call_next}({request})"],
            lambda: [f"response = await {call_next}({request})", "return response"],
            self._early,
            self._early,
            lambda: [self._raise()],
            lambda: [f"return marked(await {call_next}({request}))"],
        ]
        return rng.choice(choices)()

    def _early(self) -> Lines:
        response = self._response()
        if self.rng.random() < 0.4:
            name = self.rng.choice(["early", "response", "denied"])
            edit = f'{name}.headers["x-early"] = "{next(self.names)}"'
            return [f"{name} = {response}", edit, f"return {name}"]
        return [f"return {response}"]

    def _response(self) -> str:
        status = self.rng.choice([200, 401, 403, 429, 503])
        return self.rng.choice(self.responses).format(n=next(self.names), status=status)

    def _raise(self) -> str:
        return self.rng.choice(
            [
                f'raise Denied("d{next(self.names)}")',
                f'raise ValueError("v{next(self.names)}")',
                'raise HTTPException(403, "forbidden")',
            ]
        )

    def _if_else(self, state: State) -> Lines:
        lines = [f"if {self._condition(state)}:", *_indented(self.path(state.deeper()))]
        if self.rng.random() < 0.3:
            lines += [f"elif {self._condition(state)}:", *_indented(self.path(state.deeper()))]
        if self.rng.random() < 0.5:
            return lines + self.path(state.deeper())
        return [*lines, "else:", *_indented(self.path(state.deeper()))]

    def _try(self, state: State) -> Lines:
        kind = self.rng.choice(["ValueError", "Exception", "(ValueError, Denied)", "HTTPException"])
        lines = ["try:", *_indented(self.path(state.deeper()))]
        lines += [f"except {kind} as exc:", *_indented(self._handler())]
        if self.rng.random() < 0.25:
            lines += ["finally:", *_indented([self._tell()])]
        return lines

    def _handler(self) -> Lines:
        lines = ['logger.warning("failed: %s", exc)'] * (self.rng.random() < 0.6)
        return (
            lines
            + self.rng.choice(
                [
                    lambda: ["raise"],
                    lambda: [f'raise RuntimeError("again {next(self.names)}") from exc'],
                    self._early,
                    self._early,
                    self._early,
                ]
            )()
        )

    def _try_finally(self, state: State) -> Lines:
        lines = ["try:", *_indented(self.path(state.deeper()))]
        end = [self._tell() for _ in range(self.rng.choice([1, 1, 2]))]
        if self.rng.random() < 0.3:
            end = [f"if {self._condition(State())}:", *_indented(end)]
        return [*lines, "finally:", *_indented(end)]

    def _with(self, state: State) -> Lines:
        return [self._context(), *_indented(self.path(state.deeper()))]

    def _context(self) -> str:
        number = next(self.names)
        return self.rng.choice(
            [
                f'with context("c{number}"):',
                f'with context("c{number}") as held, store.lock({number}):',
                f'async with store.session("s{number}"):',
                f'async with store.session("s{number}") as session:',
            ]
        )

    def _loop_then(self, state: State) -> Lines:
        lines = [f"for item in {self.rng.choice(['(1, 2, 3)', 'store.items()', 'range(2)'])}:"]
        lines += _indented([f"if {self._condition(state)}:"])
        lines += _indented(_indented(self._early() if self.rng.random() < 0.6 else ["break"]))
        lines += _indented([f"tell.item(item, {next(self.names)})"])
        return lines + self.path(state.deeper())

    def _match(self, state: State) -> Lines:
        lines = [f"match {self.request}.method:"]
        lines += _indented(['case "POST":', *_indented(self.path(state.deeper()))])
        lines += _indented(["case _:", *_indented(self.path(state.deeper()))])
        return lines

    def _suppressed(self, state: State) -> Lines:
        lines = ["with contextlib.suppress(ValueError):"]
        if self.rng.random() < 0.5:
            return [*lines, *_indented([f"return {self._call()}"]), *self._early()]
        name = "response"
        lines = [f"{name} = {self._response()}", *lines, f"    {name} = {self._call()}"]
        return lines + self._after(state.deeper(called=True, response=name))

    def _token(self, state: State) -> Lines:
        # Context variables and counters that are put back.
        number = next(self.names)
        if self.rng.random() < 0.5:
            lines = [f'token = current.set("v{number}")']
            end = ["current.reset(token)"]
        else:
            lines = ["global active", "active += 1"] if not self.nested else ['counted["n"] += 1']
            end = ["active -= 1", "tell(active)"] if not self.nested else ['counted["n"] -= 1']
            if lines[0] in self.declared:
                lines = lines[1:]
            self.declared.add("global active")
        return [*lines, "try:", *_indented(self.path(state.deeper())), "finally:", *_indented(end)]

    def _keeping(self, state: State) -> Lines:
        # A context variable that is set around the call.
        rng, number, name = self.rng, next(self.names), "response"
        lines, back = [f'token{number} = current.set("v{number}")'], f"current.reset(token{number})"
        if rng.random() < 0.2:
            lines = [f"old{number} = current.get()", f'current.set("v{number}")']
            back = f"current.set(old{number})"
        inner = state.deeper()
        called = inner.deeper(called=True, response=name)
        call = [f"{name} = {self._call()}", *(self._edit(name) if rng.random() < 0.5 else [])]
        rest = self._edit(name) if rng.random() < 0.5 else []
        rest = self._after(called) if rng.random() < 0.2 else [*rest, f"return {name}"]
        kind = rng.choice(["manager", "call", "call", "last", "path", "path", "handler", "handler"])
        if kind == "manager":
            inside = self.path(inner) if rng.random() < 0.5 else call
            after = rest if inside is call else []
            return [f'with keeping("v{number}"):', *_indented(inside), *after]
        if kind == "last":
            return [*lines, *call, back, *rest]
        if kind == "path":
            call, rest = self.path(inner), []
        elif rng.random() < 0.5:
            call = [*call, f"return {name}"]
        lines += ["try:", *_indented(call)]
        falls = not call[-1].startswith("return") and kind != "path"
        if kind == "handler":
            lines += ["except (ValueError, Denied) as exc:"]
            if rng.random() < 0.3:
                lines += _indented([f"{name} = {self._response()}"])
                falls = True
            else:
                lines += _indented(self._handler())
        lines += ["finally:", *_indented([self._tell()] * (rng.random() < 0.3))]
        lines += _indented([back, *([self._tell()] * (rng.random() < 0.1))])
        return lines + rest if falls else lines

    def _while(self, state: State) -> Lines:
        number = next(self.names)
        lines = [f"left{number} = 3", f"while left{number}:", f"    left{number} -= 1"]
        lines += _indented([f"if {self._condition(state)}:", *_indented(self._last())])
        return [*lines, *_indented([self._tell()]), *self.path(state.deeper())]

    def _inline(self, state: State) -> Lines:
        name = "response"
        test = self.rng.choice(
            [
                f"if ({name} := {self._call()}).status_code >= 400:",
                f"if ({name} := marked({self._call()})).status_code >= 400:",
            ]
        )
        lines = [test, *_indented(self._edit(name))]
        return lines + self._after(state.deeper(called=True, response=name))

    def _conditional(self, state: State) -> Lines:
        name = "response"
        lines = [f"{name} = {self._call()} if {self._condition(state)} else {self._response()}"]
        return lines + self._after(state.deeper(called=True, response=name))

    # ---------------------------------------------------------------------- calls and what follows

    def _call(self) -> str:
        return self.rng.choice(
            [f"await {self.call_next}({self.request})"] * 12
            + [f"await asyncio.wait_for({self.call_next}({self.request}), timeout=30)"]
            + [f"await {self.call_next}(Request({self.request}.scope, {self.request}.receive))"]
            + [f"await {self.call_next}({self.request}=None)".replace("=None", "")]
        )

    def _call_then(self, state: State) -> Lines:
        name = self.rng.choice(["response", "response", "resp", "res"])
        annotated = f"{name}: Response" if self.rng.random() < 0.1 else name
        return [
            f"{annotated} = {self._call()}",
            *self._after(state.deeper(called=True, response=name)),
        ]

    def _call_in_try(self, state: State) -> Lines:
        name = self.rng.choice(["response", "resp"])
        kind = self.rng.choice(["ValueError", "Exception", "(ValueError, Denied)"])
        preset = [f"{name} = None"] * (self.rng.random() < 0.2)
        lines = [*preset, "try:", f"    {name} = {self._call()}"]
        if self.rng.random() < 0.3:
            lines += _indented(self._edit(name))
        if self.rng.random() < 0.2:
            lines += _indented([f"return {name}"])
            lines += [f"except {kind} as exc:", *_indented(self._handler())]
            if self.rng.random() < 0.6:
                lines += ["finally:", *_indented(self._final(name, preset))]
            return lines
        lines += [f"except {kind} as exc:"]
        if self.rng.random() < 0.4:
            lines += _indented([f"{name} = {self._response()}"])
        else:
            lines += _indented(self._handler())
        if self.rng.random() < 0.2:
            lines += ["else:", *_indented([self._tell()])]
        if self.rng.random() < 0.3:
            lines += ["finally:", *_indented(self._final(name, preset))]
        return lines + self._after(state.deeper(called=True, response=name))

    def _final(self, name: str, preset: Lines) -> Lines:
        if preset and self.rng.random() < 0.6:
            return [f"if {name} is not None:", *_indented(self._edit(name)), self._tell()]
        return [self._tell()]

    def _call_in_with(self, state: State) -> Lines:
        name = "response"
        lines = [self._context(), f"    {name} = {self._call()}"]
        if self.rng.random() < 0.3:
            lines += _indented(self._edit(name))
        return lines + self._after(state.deeper(called=True, response=name))

    def _call_in_branch(self, state: State) -> Lines:
        name = "response"
        lines = [f"if {self._condition(state)}:", f"    {name} = {self._response()}"]
        lines += ["else:", f"    {name} = {self._call()}"]
        if self.rng.random() < 0.3:
            lines[-2:] = [
                f"elif {self._condition(state)}:",
                f"    {name} = {self._call()}",
                *lines[-2:],
            ]
        return lines + self._after(state.deeper(called=True, response=name))

    def _after(self, state: State) -> Lines:
        name = state.response
        lines: Lines = []
        for _ in range(self.rng.choice([0, 1, 1, 2])):
            lines += self._behind(name)
        if state.depth > 3 or self.rng.random() < 0.55:
            return lines + self._ending(name)
        inner = state.deeper()
        kind = self.rng.choice(["if", "if", "try", "finally", "with", "else"])
        if kind == "if":
            lines += [f"if {self._condition(state)}:", *_indented(self._ending(name))]
            return lines + self._after(inner)
        if kind == "else":
            lines += [f"if {self._condition(state)}:", *_indented(self._after(inner))]
            return [*lines, "else:", *_indented(self._after(inner))]
        if kind == "with":
            return [*lines, self._context(), *_indented(self._after(inner))]
        if kind == "finally":
            lines += ["try:", *_indented(self._after(inner))]
            return [*lines, "finally:", *_indented([self._tell()])]
        lines += ["try:", *_indented(self._behind(name) or ["pass"])]
        lines += ["except Denied as exc:", *_indented(self._handler())]
        return lines + self._after(inner)

    def _ending(self, name: str) -> Lines:
        return self.rng.choice(
            [
                lambda: [f"return {name}"],
                lambda: [f"return {name}"],
                lambda: [f"return {name}"],
                lambda: [f"return {self._response()}"],
                lambda: [self._raise()],
                lambda: self._body(name),
                lambda: self._wrapped(name),
                lambda: [f"return {name} if {self._condition(State())} else {self._response()}"],
                lambda: [f"return marked({name})"],
            ]
        )()

    def _body(self, name: str) -> Lines:
        length = [f'{name}.headers["x-length"] = str(len(body))'] * (self.rng.random() < 0.5)
        read = self.rng.choice(
            [
                ['body = b""', f"async for chunk in {name}.body_iterator:", "    body += chunk"],
                [f'body = b"".join([chunk async for chunk in {name}.body_iterator])'],
                [
                    "chunks = []",
                    f"async for chunk in {name}.body_iterator:",
                    "    chunks.append(chunk)",
                    'body = b"".join(chunks)',
                ],
            ]
        )
        options = f"status_code={name}.status_code, headers=dict({name}.headers)"
        back = self.rng.choice(
            [
                [f"return Response(content=body, {options}, media_type={name}.media_type)"],
                [f"return Response(body, {options})"],
                [f"{name}.body_iterator = iterate_in_threadpool(iter([body]))", f"return {name}"],
            ]
        )
        return [*read, *length, self._tell(), *back]

    def _wrapped(self, name: str) -> Lines:
        number = next(self.names)
        # Behind a helper that reads the body the chunks are others, and better.
        change = self.rng.choice(["chunk", "chunk.upper()", *["chunk + b'.'"] * self.ends])
        lines = [f"async def each{number}(chunks):", "    async for chunk in chunks:"]
        lines += [f"        yield {change}"]
        lines += _indented([f'tell("after the last byte", {number})']) * (
            self.ends and self.rng.random() < 0.4
        )
        iterator = f"each{number}({name}.body_iterator)"
        if self.rng.random() < 0.6:
            return [*lines, f"{name}.body_iterator = {iterator}", f"return {name}"]
        options = f"status_code={name}.status_code, headers=dict({name}.headers)"
        return [*lines, f"return StreamingResponse({iterator}, {options})"]

    # ------------------------------------------------------------------------- simple statements

    def _tell(self) -> str:
        return self.rng.choice(
            [
                f'tell("t{next(self.names)}")',
                f'logger.info("l{next(self.names)}")',
                f'await store.save("s{next(self.names)}")',
            ]
        )

    def _condition(self, state: State) -> str:
        request = self.request
        conditions = [
            f'{request}.method == "POST"',
            f'{request}.url.path.startswith("/api")',
            f'"x-api-key" in {request}.headers',
            f'{request}.cookies.get("session")',
            f"settings.flag_{self.rng.randint(1, 3)}",
            f'not {request}.query_params.get("id")',
        ]
        if state.response:
            conditions += [f"{state.response}.status_code >= 400"] * 3
        return self.rng.choice(conditions)

    def _before(self, state: State) -> Lines:
        request = self.request
        number = next(self.names)
        return self.rng.choice(
            [
                lambda: [self._tell()],
                lambda: [self._tell()],
                lambda: ["start = time.perf_counter()"],
                lambda: [f'{request}.state.value = "{number}"'],
                lambda: [f'{request}.scope["path"] = "/moved/{number}"'],
                lambda: [f"body = await {request}.body()", 'tell("body", body)'],
                lambda: [f'token = {request}.headers.get("authorization")', 'tell("token", token)'],
                lambda: [f"if {self._condition(state)}:", *_indented([self._tell()])],
                lambda: [f"if {self._condition(state)}:", *_indented(self._last())],
                lambda: [f"if {self._condition(state)}:", *_indented(self._early())],
                lambda: [self._context(), *_indented([self._tell()])],
                lambda: [
                    "try:",
                    *_indented([self._tell()]),
                    "except Denied as exc:",
                    *_indented(self._handler()),
                ],
                lambda: ["for item in (1, 2):", *_indented([f"tell(item, {number})"])],
                lambda: [
                    "def marked(given):",
                    '    given.headers["x-marked"] = "1"',
                    "    return given",
                ],
                lambda: [f"if (user := store.user({number})) is None:", *_indented(self._early())],
            ]
        )()

    def _behind(self, name: str) -> Lines:
        number = next(self.names)
        return self.rng.choice(
            [
                lambda: [self._tell()],
                lambda: self._edit(name),
                lambda: self._edit(name),
                lambda: [f'tell("status", {name}.status_code)'],
                lambda: [f"if {name}.status_code >= 400:", *_indented(self._edit(name))],
                lambda: [self._context(), *_indented([self._tell()])],
                lambda: [f'tell("seconds", time.perf_counter(), {number})'],
                lambda: [f"tell({name})"],
            ]
        )()

    def _edit(self, name: str) -> Lines:
        number = next(self.names)
        return [
            self.rng.choice(
                [
                    f'{name}.headers["x-n"] = "{number}"',
                    f'{name}.headers.setdefault("x-app", "{number}")',
                    f'{name}.set_cookie("c{number}", "v")',
                    f'{name}.headers["cache-control"] = f"max-age={{{number}}}"',
                    f"{name}.status_code = 20{number % 3}",
                    f'{name}.headers.update({{"x-u": "{number}"}})',
                ]
            )
        ]


def _indented(lines: Lines) -> Lines:
    return [f"    {line}" if line else line for line in lines]


MARKED = """
def marked(given):
    given.headers["x-marked"] = "module"
    return given
"""


def source(seed: int, *, variables: bool = False) -> str:
    """
    Give the source of a file with the middleware of *seed*.
    """
    made = Maker(random.Random(seed), variables).make(f"mw{seed}")
    return "\n".join([HEAD, MARKED, "", *made, ""])


# ------------------------------------------------------------------------------------- the pairs


@dataclass
class Result:
    """
    What came of one file.

    Attributes:
        verdicts: Those of the converted functions.
        codes: Of the errors, where a function was left.
    """

    verdicts: list[Verdict]
    codes: list[str]

    @property
    def wrong(self) -> list[str]:
        """
        The differences, and why a converted function could not be run.
        """
        told = [str(each) for verdict in self.verdicts for each in verdict.differences]
        told += [code for code in self.codes if code == "HM195"]  # the codemod failed
        return told + [verdict.problem for verdict in self.verdicts if verdict.problem]


def check(text: str, loop: asyncio.AbstractEventLoop, matrix: Matrix = QUICK) -> Result:
    """
    Convert a file, and run what was converted in pairs.
    """
    conversion = convert(text, path="fuzz.py")
    codes = [each.code for each in conversion.diagnostics if each.severity == "error"]
    if not conversion.changed:
        return Result([], codes)
    old, new = Module(text, "starlette"), Module(conversion.code, "generator")
    verdicts = [
        judge(old, new, each.qualname, each.line, loop, matrix, forgets=each.forgets)
        for each in conversion.conversions
        if each.kind != "helper"
    ]
    return Result(verdicts, codes)


def main() -> int:
    """
    Run as many as were asked for.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-going", type=int, default=5, help="stop after so many differences")
    parser.add_argument("--variables", action="store_true", help="set a context variable in each")
    options = parser.parse_args()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # noqa: ARG005 - discarded apps
    sums: Counter[str] = Counter()
    improvements: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    wrong = 0
    started = time.perf_counter()
    for seed in range(options.seed, options.seed + options.count):
        text = source(seed, variables=options.variables)
        try:
            result = check(text, loop)
        except Exception as error:  # noqa: BLE001 - the codemod failed
            result = Result([], [])
            wrong += 1
            print(f"seed {seed}: {type(error).__name__}: {error}")
        sums["files"] += 1
        sums["left"] += not result.verdicts
        codes.update(set(result.codes))
        for verdict in result.verdicts:
            sums["functions"] += 1
            sums["pairs"] += verdict.pairs
            sums["identical"] += verdict.identical
            sums["improved"] += verdict.pairs - verdict.identical - verdict.differing
            improvements.update(verdict.improvements)
        if not sums["files"] % 500:
            print(f"{dict(sums)}, wrong: {wrong}", file=sys.stderr, flush=True)
        if result.wrong:
            wrong += 1
            print(f"seed {seed}: {result.wrong[0][:600]}")
            print(text, "  becomes", convert(text, path="fuzz.py").code, sep="\n\n", flush=True)
            if wrong >= options.keep_going:
                break
    seconds = time.perf_counter() - started
    print(f"{dict(sums)}, wrong: {wrong}, {seconds:.0f} seconds")
    print(f"left: {dict(codes)}")
    print(f"improvements: {dict(improvements)}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
