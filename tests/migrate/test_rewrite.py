"""What a middleware looks like before and after, and that both versions do the same."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

import pytest
from starlette.middleware.base import BaseHTTPMiddleware

from httpmw import HTTPMiddleware
from httpmw.migrate import Conversion, convert
from httpmw.migrate.verifying._verify import verify
from tests.harness import request

IMPORTS = "from starlette.middleware.base import BaseHTTPMiddleware\n"


def migrate(source: str) -> Conversion:
    """Convert a piece of source, written with an indent."""
    return convert(textwrap.dedent(source).lstrip("\n"))


def text(source: str) -> str:
    return textwrap.dedent(source).lstrip("\n")


def function(body: str) -> str:
    """Put a body into a middleware function."""
    indented = textwrap.indent(text(body), "    ")
    return f'@app.middleware("http")\nasync def mw(request, call_next):\n{indented}'


def rewritten(body: str) -> str:
    """Give the body of the converted middleware function."""
    conversion = convert(f"{function(body)}")
    assert [each.qualname for each in conversion.conversions] == ["mw"], conversion.diagnostics
    head = (
        "from httpmw import Connection, Flow, http_middleware\n"
        "@http_middleware(app)\nasync def mw(request: Connection) -> Flow:\n"
    )
    assert conversion.code.startswith(head), conversion.code
    return textwrap.dedent(conversion.code.removeprefix(head))


SHAPES = {
    "the received response": (
        """
        response = await call_next(request)
        response.headers["a"] = "b"
        return response
        """,
        """
        response = yield
        response.headers["a"] = "b"
        """,
    ),
    "annotated": (
        """
        response: Response = await call_next(request)
        return response
        """,
        """
        yield
        """,
    ),
    "annotated and bound again": (
        """
        response: Response = await call_next(request)
        if response.status_code == 404:
            response = JSONResponse({})
        return response
        """,
        """
        response: Response = yield
        if response.status_code == 404:
            response = JSONResponse({})
        yield response
        """,
    ),
    "nothing but the call": ("return await call_next(request)\n", "yield\n"),
    "a call in a branch": (
        """
        if request.url.path == "/health":  # quiet
            return await call_next(request)
        log(request)
        return await call_next(request)
        """,
        """
        if request.url.path == "/health":  # quiet
            yield
            return
        log(request)
        yield
        """,
    ),
    "a call as a statement": (
        """
        await call_next(request)
        return JSONResponse({})
        """,
        """
        yield
        yield JSONResponse({})
        """,
    ),
    "an early answer": (
        """
        if "x" not in request.headers:
            return JSONResponse({"error": "no"}, 403)  # not a member
        return await call_next(request)
        """,
        """
        if "x" not in request.headers:
            yield JSONResponse({"error": "no"}, 403)  # not a member
            return
        yield
        """,
    ),
    "an answer on one line": (
        """
        if bad(request): return PlainTextResponse("no")  # why
        return await call_next(request)
        """,
        """
        if bad(request):  # why
            yield PlainTextResponse("no")
            return
        yield
        """,
    ),
    "statements on one line": (
        """
        response = await call_next(request); done(); return response
        """,
        """
        yield; done()
        """,
    ),
    "an answer to an exception": (
        """
        try:
            response = await call_next(request)
        except ValueError as exc:
            return JSONResponse({"error": str(exc)}, 400)
        return response
        """,
        """
        try:
            yield
        except ValueError as exc:
            yield JSONResponse({"error": str(exc)}, 400)
            return
        """,
    ),
    "either response": (
        """
        try:
            response = await call_next(request)
        except ValueError:
            response = JSONResponse({}, 400)
        response.headers["a"] = "b"
        return response
        """,
        """
        try:
            response = yield
        except ValueError:
            response = JSONResponse({}, 400)
        response.headers["a"] = "b"
        yield response
        """,
    ),
    "the received response out of a finally": (
        """
        try:
            response = await call_next(request)
            return response
        finally:
            done()
        """,
        """
        try:
            yield
        finally:
            done()
        """,
    ),
    "an answer in a try with finally": (
        """
        try:
            if bad(request):
                return JSONResponse({}, 400)
            return await call_next(request)
        finally:
            done()
        """,
        """
        try:
            if bad(request):
                answer = JSONResponse({}, 400)
            else:
                yield
                return
        finally:
            done()
        yield answer
        """,
    ),
    "an answer in a try with except": (
        """
        try:
            if bad(request):
                return JSONResponse({}, 400)
            check(request)
        except KeyError:
            return JSONResponse({}, 401)
        return await call_next(request)
        """,
        """
        answer = None
        try:
            if bad(request):
                answer = JSONResponse({}, 400)
            else:
                check(request)
        except KeyError:
            yield JSONResponse({}, 401)
            return
        if answer is not None:
            yield answer
            return
        yield
        """,
    ),
    "an answer in a with": (
        """
        with span():
            response = await call_next(request)
            if response.status_code == 404:
                return JSONResponse({}, 404)
            return response
        """,
        """
        with span():
            response = yield
            if response.status_code == 404:
                answer = JSONResponse({}, 404)
            else:
                return
        yield answer
        """,
    ),
    "an answer in a with before more code": (
        """
        with span():
            return JSONResponse({}, 404)
        return await call_next(request)
        """,
        """
        answer = None
        with span():
            answer = JSONResponse({}, 404)
        if answer is not None:
            yield answer
            return
        yield
        """,
    ),
    "an answer in a loop in a try": (
        """
        try:
            for each in rules:
                for one in each:
                    if one(request):
                        return JSONResponse({}, 400)
            return await call_next(request)
        finally:
            done()
        """,
        """
        answer = None
        try:
            for each in rules:
                for one in each:
                    if one(request):
                        answer = JSONResponse({}, 400)
                        break
                if answer is not None:
                    break
            if answer is None:
                yield
                return
        finally:
            done()
        yield answer
        """,
    ),
    "an answer in a try with else": (
        """
        try:
            if bad(request):
                return JSONResponse({}, 400)
        except KeyError:
            pass
        else:
            log("good")
        return await call_next(request)
        """,
        """
        answer = None
        try:
            if bad(request):
                answer = JSONResponse({}, 400)
        except KeyError:
            pass
        else:
            if answer is None:
                log("good")
        if answer is not None:
            yield answer
            return
        yield
        """,
    ),
    "a variable of that name is there already": (
        """
        answer = 42
        with span():
            return JSONResponse(answer)
        """,
        """
        answer = 42
        with span():
            answer_ = JSONResponse(answer)
        yield answer_
        """,
    ),
    "a call in an expression": (
        """
        return decorate(await call_next(request))
        """,
        """
        yield decorate((yield))
        """,
    ),
    "a call in a walrus": (
        """
        if (response := await call_next(request)).status_code == 404:
            return JSONResponse({}, 404)
        return response
        """,
        """
        if (response := (yield)).status_code == 404:
            yield JSONResponse({}, 404)
            return
        """,
    ),
    "a conditional expression": (
        """
        return await call_next(request) if good(request) else JSONResponse({}, 400)
        """,
        """
        if good(request):
            yield
        else:
            yield JSONResponse({}, 400)
        """,
    ),
    "a time limit": (
        """
        import asyncio

        try:
            return await asyncio.wait_for(call_next(request), timeout=3)
        except TimeoutError:
            return JSONResponse({}, 504)
        """,
        """
        import asyncio

        try:
            async with asyncio.timeout(3):
                yield
        except TimeoutError:
            yield JSONResponse({}, 504)
        """,
    ),
    "a body that is read": (
        """
        response = await call_next(request)
        body = b""
        async for chunk in response.body_iterator:
            body += chunk
        log(body)
        return Response(
            content=body, status_code=response.status_code, headers=dict(response.headers)
        )
        """,
        """
        response = yield
        body = await response.read()
        log(body)
        """,
    ),
    "a body that is changed": (
        """
        response = await call_next(request)
        body = b"".join([chunk async for chunk in response.body_iterator])
        new = body.upper()
        return Response(
            new, status_code=response.status_code, headers=dict(response.headers)
        )
        """,
        """
        response = yield
        body = await response.read()
        new = body.upper()
        response.body = new
        """,
    ),
    "a body that is put back": (
        """
        response = await call_next(request)
        chunks = [chunk async for chunk in response.body_iterator]
        response.body_iterator = iterate_in_threadpool(iter(chunks))
        log(b"".join(chunks))
        return response
        """,
        """
        response = yield
        chunks = [chunk async for chunk in response.body_iterator]
        log(b"".join(chunks))
        """,
    ),
    "a body that a generator puts back": (
        """
        response = await call_next(request)
        body = b""
        async for chunk in response.body_iterator:
            body += chunk
        log(body)

        async def again():
            yield body

        response.body_iterator = again()
        return response
        """,
        """
        response = yield
        body = await response.read()
        log(body)
        """,
    ),
    "a body that a generator puts back in its parts": (
        """
        response = await call_next(request)
        chunks = []
        size = 0
        async for chunk in response.body_iterator:
            chunks.append(chunk)
            size += len(chunk)

        async def replay(parts):
            for part in parts:
                yield part

        log(size)
        response.body_iterator = replay(chunks)
        return response
        """,
        """
        response = yield
        chunks = []
        size = 0
        async for chunk in response.body_iterator:
            chunks.append(chunk)
            size += len(chunk)

        log(size)
        """,
    ),
    "a body that a generator puts back changed": (
        """
        response = await call_next(request)
        body = b"".join([chunk async for chunk in response.body_iterator])

        async def again(data):
            yield data

        response.body_iterator = again(body.upper())
        return response
        """,
        """
        response = yield
        body = await response.read()

        response.body = body.upper()
        """,
    ),
    "a body that is streamed again": (
        """
        response = await call_next(request)
        body = b"".join([chunk async for chunk in response.body_iterator])

        async def again():
            yield body

        return StreamingResponse(
            again(), status_code=response.status_code, headers=dict(response.headers)
        )
        """,
        """
        response = yield
        body = await response.read()
        """,
    ),
    "a body of which not all may be put back": (
        """
        response = await call_next(request)
        body = b""
        async for chunk in response.body_iterator:
            body += chunk
            if len(body) > 1000:
                break

        async def again():
            yield body

        response.body_iterator = again()
        return response
        """,
        """
        response = yield
        body = b""
        async for chunk in response.body_iterator:
            body += chunk
            if len(body) > 1000:
                break

        response.body = body
        """,
    ),
    "another name of call_next": (
        """
        handler = call_next
        if request.url.path == "/":
            return await handler(request)
        response = await handler(request)
        response.headers["a"] = "b"
        return response
        """,
        """
        if request.url.path == "/":
            yield
            return
        response = yield
        response.headers["a"] = "b"
        """,
    ),
    "a name of another name": (
        """
        first: Handler = call_next
        second = first
        return await second(request)
        """,
        """
        yield
        """,
    ),
    "a coroutine that is awaited later": (
        """
        coroutine = call_next(request)
        log()
        response = await coroutine
        tell(response)
        return response
        """,
        """
        log()
        response = yield
        tell(response)
        """,
    ),
    "a coroutine that is awaited on one path": (
        """
        coroutine = call_next(request)
        if bad:
            return JSONResponse({})
        try:
            return await coroutine
        finally:
            log()
        """,
        """
        if bad:
            yield JSONResponse({})
            return
        try:
            yield
        finally:
            log()
        """,
    ),
    "a coroutine with a time limit": (
        """
        import asyncio

        coroutine = call_next(request)
        response = await asyncio.wait_for(coroutine, 3)
        return response
        """,
        """
        import asyncio

        async with asyncio.timeout(3):
            yield
        """,
    ),
    "a body that is wrapped": (
        """
        response = await call_next(request)
        response.body_iterator = upper(response.body_iterator)
        return response
        """,
        """
        response = yield
        response.body_iterator = upper(response.body_iterator)
        """,
    ),
    "a request body that is put back": (
        """
        body = await request.body()

        async def receive():
            return {"type": "http.request", "body": body}

        request._receive = receive
        return await call_next(request)
        """,
        """
        body = await request.body()

        async def receive():
            return {"type": "http.request", "body": body}

        yield
        """,
    ),
    "a request body that is replaced": (
        """
        request._body = (await request.body()).upper()
        return await call_next(request)
        """,
        """
        request.replace_body((await request.body()).upper())
        yield
        """,
    ),
    "another request for the app": (
        """
        return await call_next(Request(request.scope, receive))
        """,
        """
        yield
        """,
    ),
    "nothing but an exception": (
        """
        raise RuntimeError("never")
        """,
        """
        raise RuntimeError("never")
        yield
        """,
    ),
    "comments at a return that goes": (
        """
        response = await call_next(request)
        # all is well
        return response
        """,
        """
        yield
        # all is well
        return
        """,
    ),
    "a function inside of a try": (
        """
        try:
            def key():
                return 1
            if bad(request):
                return JSONResponse({})
            return await call_next(request)
        finally:
            done()
        """,
        """
        try:
            def key():
                return 1
            if bad(request):
                answer = JSONResponse({})
            else:
                yield
                return
        finally:
            done()
        yield answer
        """,
    ),
    "a loop over rules": (
        """
        for prefix in public:
            if request.url.path.startswith(prefix):
                return await call_next(request)
        return JSONResponse({}, 401)
        """,
        """
        for prefix in public:
            if request.url.path.startswith(prefix):
                yield
                return
        yield JSONResponse({}, 401)
        """,
    ),
}


@pytest.mark.parametrize(("before", "after"), SHAPES.values(), ids=list(SHAPES))
def test_shape(before: str, after: str) -> None:
    """Each shape of the table becomes what the table says."""
    assert rewritten(before) == text(after)


@pytest.mark.parametrize("before", [pair[0] for pair in SHAPES.values()], ids=list(SHAPES))
def test_second_run_changes_nothing(before: str) -> None:
    """What has been converted is left alone."""
    once = convert(function(before)).code

    again = convert(once)

    assert (again.code, again.conversions, again.diagnostics) == (once, [], [])


def test_class_keeps_its_constructor() -> None:
    """A subclass gets another base; its options, docstrings and string styles stay."""
    conversion = migrate(
        """
        from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
        from starlette.requests import Request
        from starlette.responses import Response


        class Header(BaseHTTPMiddleware):
            '''Adds a header.'''

            def __init__(self, app, *, name = 'x-a'):
                super().__init__(app)
                self.name = name

            async def dispatch(
                self,
                request: Request,
                call_next: RequestResponseEndpoint,
            ) -> Response:
                response = await call_next(request)
                response.headers[self.name] = 'b'
                return response
        """
    )

    assert conversion.code == text(
        """
        from httpmw import Connection, Flow, HTTPMiddleware


        class Header(HTTPMiddleware):
            '''Adds a header.'''

            def __init__(self, app, *, name = 'x-a'):
                super().__init__(app)
                self.name = name

            async def dispatch(
                self,
                request: Connection,
            ) -> Flow:
                response = yield
                response.headers[self.name] = 'b'
        """
    )


def test_imports_that_are_still_used_stay() -> None:
    """Only what nobody uses any more is dropped, and a comment above a group of imports stays."""
    conversion = migrate(
        """
        # Third party
        from starlette.middleware.base import BaseHTTPMiddleware
        from starlette.requests import Request
        from starlette.responses import JSONResponse, Response


        class M(BaseHTTPMiddleware):
            async def dispatch(self, request: Request, call_next) -> Response:
                return await call_next(request)


        def other() -> "Response":
            return JSONResponse({})
        """
    )

    assert conversion.code.startswith(
        text(
            """
            # Third party
            from httpmw import Connection, Flow, HTTPMiddleware
            from starlette.responses import JSONResponse, Response


            """
        )
    )


def test_names_that_are_taken() -> None:
    """A module with a `Flow` of its own gets httpmw's names with their prefix."""
    conversion = migrate(
        """
        from prefect import Flow
        from starlette.middleware.base import BaseHTTPMiddleware

        flow = Flow()


        class M(BaseHTTPMiddleware):
            async def dispatch(self, request, call_next):
                return await call_next(request)
        """
    )

    assert "class M(httpmw.HTTPMiddleware):" in conversion.code
    assert "request: httpmw.Connection) -> httpmw.Flow:" in conversion.code
    assert "\nimport httpmw\n" in conversion.code


def test_imports_inside_of_a_function() -> None:
    """Where Starlette is imported in the function that makes the class, httpmw is as well."""
    conversion = migrate(
        """
        def install(app):
            from starlette.middleware.base import BaseHTTPMiddleware

            class M(BaseHTTPMiddleware):
                async def dispatch(self, request, call_next):
                    return await call_next(request)

            app.add_middleware(M)
        """
    )

    assert conversion.code == text(
        """
        def install(app):
            from httpmw import Connection, Flow, HTTPMiddleware

            class M(HTTPMiddleware):
                async def dispatch(self, request: Connection) -> Flow:
                    yield

            app.add_middleware(M)
        """
    )


@pytest.mark.parametrize(
    ("registration", "after"),
    [
        ('app.middleware("http")(mw)', "http_middleware(app)(mw)"),
        (
            "app.add_middleware(BaseHTTPMiddleware, dispatch=mw)",
            "app.add_middleware(HTTPMiddleware, dispatch=mw)",
        ),
        (
            "x = [Middleware(BaseHTTPMiddleware, dispatch=mw)]",
            "x = [Middleware(HTTPMiddleware, dispatch=mw)]",
        ),
        ("app = BaseHTTPMiddleware(app, mw)", "app = HTTPMiddleware(app, mw)"),
        ("app = base.BaseHTTPMiddleware(app, mw)", "app = HTTPMiddleware(app, mw)"),
    ],
)
def test_registration(registration: str, after: str) -> None:
    """A registration is rewritten with the function that it registers."""
    conversion = migrate(
        f"""
        from starlette.middleware import base
        from starlette.middleware.base import BaseHTTPMiddleware

        async def mw(request, call_next):
            return await call_next(request)

        {registration}
        """
    )

    assert conversion.code.endswith(f"\n{after}\n")
    assert conversion.diagnostics == []


def test_callable_object() -> None:
    """An object with `__call__` is converted with the place that registers it."""
    conversion = migrate(
        """
        class Trace:
            async def __call__(self, request, call_next):
                return await call_next(request)

        app.middleware("http")(Trace())
        """
    )

    assert "async def __call__(self, request: Connection) -> Flow:\n        yield\n" in (
        conversion.code
    )
    assert conversion.code.endswith("http_middleware(app)(Trace())\n")
    assert [(each.kind, each.registered) for each in conversion.conversions] == [
        ("object", 'app.middleware("http")(fn)')
    ]


def test_function_that_returns_a_middleware() -> None:
    """A factory is followed to the function that it returns."""
    conversion = migrate(
        """
        def limit(size):
            async def mw(request, call_next):
                return await call_next(request)
            return mw

        app.middleware("http")(limit(3))
        """
    )

    assert "    async def mw(request: Connection) -> Flow:\n        yield\n" in conversion.code
    assert conversion.code.endswith("http_middleware(app)(limit(3))\n")


def test_helper_that_gets_call_next() -> None:
    """A helper becomes a middleware function, and its caller delegates to it."""
    conversion = migrate(
        """
        from starlette.middleware.base import BaseHTTPMiddleware

        class M(BaseHTTPMiddleware):
            async def dispatch(self, request, call_next):
                response = await self._run(request, "x", call_next)
                response.headers["a"] = "b"
                return response

            async def _run(self, request, name, call_next):
                if not name:
                    return JSONResponse({})
                return await call_next(request)
        """
    )

    assert conversion.code == text(
        """
        from httpmw import Connection, Flow, HTTPMiddleware

        class M(HTTPMiddleware):
            async def dispatch(self, request: Connection) -> Flow:
                response = yield self._run(request, "x")
                response.headers["a"] = "b"

            async def _run(self, request, name) -> Flow:
                if not name:
                    yield JSONResponse({})
                    return
                yield
        """
    )


def test_super_dispatch() -> None:
    """A subclass that calls its base delegates to it."""
    conversion = migrate(
        """
        from starlette.middleware.base import BaseHTTPMiddleware

        class A(BaseHTTPMiddleware):
            async def dispatch(self, request, call_next):
                return await call_next(request)

        class B(A):
            async def dispatch(self, request, call_next):
                return await super().dispatch(request, call_next)
        """
    )

    assert conversion.code.endswith(
        text(
            """
            class B(A):
                async def dispatch(self, request: Connection) -> Flow:
                    yield super().dispatch(request)
            """
        )
    )


def test_mixin() -> None:
    """A dispatch that comes from a class beside the base is converted with both."""
    conversion = migrate(
        """
        from starlette.middleware.base import BaseHTTPMiddleware

        class Mixin:
            async def dispatch(self, request, call_next):
                return await call_next(request)

        class M(Mixin, BaseHTTPMiddleware):
            pass
        """
    )

    assert "class M(Mixin, HTTPMiddleware):" in conversion.code
    assert "async def dispatch(self, request: Connection) -> Flow:" in conversion.code


def test_dispatch_given_to_the_base() -> None:
    """A method that the constructor gives to the base is the middleware function."""
    conversion = migrate(
        """
        from starlette.middleware.base import BaseHTTPMiddleware

        class M(BaseHTTPMiddleware):
            def __init__(self, app):
                super().__init__(app, dispatch=self.handle)

            async def handle(self, request, suivant):
                return await suivant(request)
        """
    )

    assert "super().__init__(app, dispatch=self.handle)" in conversion.code
    assert "async def handle(self, request: Connection) -> Flow:\n        yield" in conversion.code


def test_function_that_returns_the_coroutine() -> None:
    """A plain `def` becomes an `async def`, and what it returns is awaited."""
    conversion = migrate(
        """
        @app.middleware("http")
        def mw(request, call_next):
            if bad(request):
                return refuse(request)
            return call_next(request)
        """
    )

    assert conversion.code.endswith(
        text(
            """
            @http_middleware(app)
            async def mw(request: Connection) -> Flow:
                if bad(request):
                    answer = await refuse(request)
                    if answer is None:
                        raise TypeError("no response")
                    yield answer
                    return
                yield
            """
        )
    )


@pytest.mark.parametrize(
    "body",
    [
        "coroutine = call_next(request)\n    return coroutine",
        "handler = call_next\n    return handler(request)",
    ],
)
def test_function_that_returns_the_coroutine_by_a_name(body: str) -> None:
    """The same with a variable in between."""
    source = f"def mw(request, call_next):\n    {body}\napp.middleware('http')(mw)\n"
    conversion = convert(source)

    assert "async def mw(request: Connection) -> Flow:\n    yield\n" in conversion.code
    assert conversion.diagnostics == []


@pytest.mark.parametrize(
    "body",
    [
        "coroutine = call_next(request)\n    await coroutine\n    return await coroutine",
        "coroutine = call_next(request)\n    for _ in items:\n        await coroutine",
        "if a:\n        coroutine = call_next(request)\n    return await coroutine",
        "coroutine = call_next(request)\n    coroutine = wrap(coroutine)\n    await coroutine",
        "handler = call_next\n    if a:\n        handler = other\n    await handler(request)",
        "if a:\n        handler = call_next\n    return await handler(request)",
        "coroutine = call_next(request)\n    return coroutine",
        "coroutine = call_next(request)\n    tell(coroutine)",
    ],
)
def test_a_name_that_is_not_certain_is_left(body: str) -> None:
    """What may be bound to something else, or awaited twice, is left."""
    source = f'@app.middleware("http")\nasync def mw(request, call_next):\n    {body}\n'

    conversion = convert(source)

    assert conversion.code == source
    assert {each.code for each in conversion.diagnostics} == {"HM101"}


CONSTRUCTORS = {
    "repeated": (
        (
            "    def __init__(self, app, size=3):\n        self.app = app\n"
            "        self.size = size\n        self.dispatch_func = self.dispatch\n"
        ),
        (
            "    def __init__(self, app, size=3):\n        super().__init__(app)\n"
            "        self.size = size\n"
        ),
    ),
    "repeated with its option": (
        (
            "    def __init__(self, app, dispatch=None):\n        self.app = app\n"
            "        self.dispatch_func = self.dispatch if dispatch is None else dispatch\n"
        ),
        "    def __init__(self, app, dispatch=None):\n        super().__init__(app, dispatch)\n",
    ),
    "of a dataclass": (
        (
            "    app: ASGIApp\n    size: int = 3\n\n    def __post_init__(self):\n"
            "        self.dispatch_func = self.dispatch\n"
        ),
        (
            "    app: ASGIApp\n    size: int = 3\n\n    def __post_init__(self):\n"
            "        super().__init__(self.app)\n"
        ),
    ),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_constructor_that_repeats_starlettes(name: str) -> None:
    """It calls that of the base instead, and the two versions do the same."""
    before, after = CONSTRUCTORS[name]
    dataclass = "@dataclass\n" if name == "of a dataclass" else ""
    dispatch = (
        "\n    async def dispatch(self, request, call_next):\n"
        "        response = await call_next(request)\n"
        "        response.headers['size'] = str(getattr(self, 'size', 0))\n"
        "        return response\n"
    )
    head = f"from dataclasses import dataclass\nfrom starlette.types import ASGIApp\n{IMPORTS}"
    source = f"{head}{dataclass}class M(BaseHTTPMiddleware):\n{before}{dispatch}"

    conversion = convert(source)

    assert f"class M(HTTPMiddleware):\n{after}\n" in conversion.code
    assert conversion.diagnostics == []
    (verdict,) = verify(source, conversion.code, conversion.conversions)
    assert (verdict.problem, verdict.differences) == ("", [])


def test_a_constructor_that_does_something_else_with_the_function() -> None:
    """What is more than Starlette's constructor is left."""
    source = (
        f"{IMPORTS}class M(BaseHTTPMiddleware):\n    def __init__(self, app):\n"
        "        self.app = app\n        self.dispatch_func = traced(self.dispatch)\n"
        "    async def dispatch(self, request, call_next):\n"
        "        return await call_next(request)\n"
    )

    conversion = convert(source)

    assert conversion.code == source
    assert [each.code for each in conversion.diagnostics] == ["HM118"]


def test_abstract_dispatch() -> None:
    """A dispatch without content becomes a plain `def`, as its overrides are generators."""
    conversion = migrate(
        """
        from starlette.middleware.base import BaseHTTPMiddleware

        class Base(BaseHTTPMiddleware):
            @abstractmethod
            async def dispatch(self, request, call_next):
                ...

        class M(Base):
            async def dispatch(self, request, call_next):
                return await call_next(request)
        """
    )

    assert "    def dispatch(self, request: Connection) -> Flow:\n        ...\n" in conversion.code


def test_limit_of_anyio_around_the_call() -> None:
    """`with anyio.fail_after(...)` around nothing but the call becomes `fail_after`."""
    conversion = migrate(
        """
        import anyio

        @app.middleware("http")
        async def mw(request, call_next):
            # not for ever
            with anyio.fail_after(3):
                response = await call_next(request)
            return response
        """
    )

    assert conversion.code.endswith(
        text(
            """
            async def mw(request: Connection) -> Flow:
                # not for ever
                request.fail_after(3)
                yield
            """
        )
    )


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("indent", ["  ", "\t", "    "])
def test_layout_stays(ending: str, indent: str) -> None:
    """Line ends and indents are those of the file."""
    source = (
        'app = App()\n\n@app.middleware("http")\nasync def mw(request, call_next):\n'
        "\ttry:\n\t\tif bad(request): return JSONResponse({})\n\t\tcheck()\n"
        "\tfinally:\n\t\tdone()\n"
        "\treturn await call_next(request)\n"
    )
    source = source.replace("\t", indent).replace("\n", ending)

    code = convert(source).code

    assert f"{indent}{indent}else:{ending}{indent * 3}check(){ending}" in code
    assert code.count("\n") == code.count(ending)
    compile(code, "module", "exec")


# ------------------------------------------------------------------- the two versions run

APP = """
from starlette.responses import PlainTextResponse
events = []

def note(what):
    events.append(what)

class noted:
    def __enter__(self):
        note("enter")
    def __exit__(self, kind, exc, traceback):
        note(f"exit {kind and kind.__name__}")
"""

BEHAVIOURS = {
    "a header that is set in a finally": """
        response = None
        try:
            response = await call_next(request)
            return response
        finally:
            note("finally")
            if response is not None:
                response.headers["late"] = "yes"
    """,
    "a header of an answer that is set in a finally": """
        response = PlainTextResponse("early")
        try:
            if request.method == "GET":
                return response
            return await call_next(request)
        finally:
            note("finally")
            response.headers["late"] = "yes"
    """,
    "an answer in a with": """
        with noted():
            response = await call_next(request)
            if response.status_code == 200:
                return PlainTextResponse("other")
            return response
    """,
    "an answer in a try that catches all": """
        try:
            response = await call_next(request)
            if response.status_code == 200:
                return PlainTextResponse("other")
            return response
        except Exception as exc:
            note(f"caught {exc}")
            return PlainTextResponse("caught", 500)
        finally:
            note("finally")
    """,
    "code after the response": """
        response = await call_next(request)
        note("after the start")
        return response
    """,
    "an answer out of two loops": """
        try:
            for a in range(3):
                for b in range(3):
                    note(f"{a} {b}")
                    if a == 1 and b == 1:
                        return PlainTextResponse("found")
                else:
                    note("else")
        finally:
            note("finally")
        return await call_next(request)
    """,
}


async def inner(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/fails":
        raise ValueError("planned")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b"hello ", "more_body": True})
    scope["note"]("between")
    await send({"type": "http.response.body", "body": b"world"})


async def what_happens(source: str, layer: type[Any], path: str) -> Any:
    """Run a version, and give all that can be seen of it."""
    namespace: dict[str, Any] = {}
    exec(APP + source, namespace)  # noqa: S102
    events = namespace["events"]

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        async def noted(message: Any) -> None:
            events.append(message["type"])
            await send(message)

        await app({**scope, "note": events.append}, receive, noted)

    app = layer(inner, dispatch=namespace["mw"])
    server = await request(noting, path=path, keep_error=True)
    seen = [each for each in events if each not in {"between", "http.response.body"}]
    return repr(server.error), server.sent and (server.status, server.headers, server.body), seen


@pytest.mark.parametrize("path", ["/", "/fails"])
@pytest.mark.parametrize("body", BEHAVIOURS.values(), ids=list(BEHAVIOURS))
async def test_both_versions_do_the_same(body: str, path: str) -> None:
    """Status, headers, body, exceptions and the order of side effects stay."""
    indented = textwrap.indent(text(body), "    ")
    source = f"{IMPORTS}async def mw(request, call_next):\n{indented}"
    conversion = convert(source)
    assert conversion.conversions

    old = await what_happens(source, BaseHTTPMiddleware, path)
    new = await what_happens(conversion.code, HTTPMiddleware, path)

    assert new == old


def test_class_that_is_imported_from_nowhere() -> None:
    """In an excerpt without imports the name means Starlette's class."""
    conversion = migrate(
        """
        class M(BaseHTTPMiddleware):
            async def dispatch(self, request, call_next):
                return await call_next(request)
        """
    )

    assert "class M(HTTPMiddleware):" in conversion.code


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("log(request)\n", "log(request)\nreturn\nyield\n"),
        ("if bad():\n    raise KeyError\n", "if bad():\n    raise KeyError\nreturn\nyield\n"),
        ("raise KeyError\n", "raise KeyError\nyield\n"),
        ("return None\n", "return\nyield\n"),
    ],
)
def test_function_that_never_lets_through_stays_closed(before: str, after: str) -> None:
    """Where the app was never called and nothing answered, the new version fails as well."""
    assert rewritten(before) == after


LAZY = """
lazy from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
lazy from starlette.requests import Request
lazy import os

async def mw(request: Request, call_next: RequestResponseEndpoint):
    response = await call_next(request)
    response.headers["at"] = os.getcwd()
    return response

app.add_middleware(BaseHTTPMiddleware, dispatch=mw)
"""

with_lazy_imports = pytest.mark.skipif(
    sys.version_info < (3, 15), reason="`lazy import` (PEP 810) is new in Python 3.15"
)


@with_lazy_imports
def test_lazy_imports_that_are_not_needed_any_more_go() -> None:
    """They are dropped as others are, and what comes in their place is as lazy."""
    conversion = migrate(LAZY)

    assert conversion.code.startswith(
        "lazy from httpmw import Connection, Flow, HTTPMiddleware\nlazy import os\n\nasync def mw("
    )
    assert "Request:" not in conversion.code


@with_lazy_imports
def test_lazy_import_leads_to_the_drop_in() -> None:
    """`--to drop-in` finds Starlette's class behind it, and leaves it lazy."""
    conversion = convert(LAZY.lstrip(), to="drop-in")

    assert conversion.code.startswith(
        "lazy from httpmw.compat import BaseHTTPMiddleware, RequestResponseEndpoint\n"
    )


@with_lazy_imports
def test_lazy_import_tells_whose_class_it_is() -> None:
    """A base class of another library stays what it is."""
    source = """
    lazy from fastmcp.server.middleware import Middleware as BaseHTTPMiddleware

    class M(BaseHTTPMiddleware):
        async def dispatch(self, request, call_next):
            return await call_next(request)
    """

    assert migrate(source).code == text(source)
