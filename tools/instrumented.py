"""
Edit the layers of applications under real instrumentation, and compare with applications without.

    python -m tools.instrumented            all that are installed; `make instrumented` installs all
    python -m tools.instrumented sentry     some of them

Each is initialised before `MiddlewareStack.install()` and after it, in a process of its own, for
Starlette and FastAPI, in an application that is new and in one that has started. HTTP, WebSocket
handshakes and lifespan, edits while serving and `uninstall()`; and what the endpoint sees of the
instrumentation is what it sees in an application without a stack that is instrumented likewise.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

ORDERS: Final = ("before", "after")


class Instrumentation:
    """
    What an instrumentation is initialised by.
    """

    package = ""
    is_there = False
    frameworks: tuple[str, ...] = ("Starlette", "FastAPI")

    def first(self) -> None:
        """What has to be done before Starlette is imported."""

    def globally(self) -> None:
        """What is done once for all applications."""

    def one(self, app: Any) -> None:
        """What is done to an application."""

    def undo(self, app: Any) -> None:
        """What takes that back."""

    def traces(self) -> bool:
        """Whether the running code is being traced."""
        raise NotImplementedError


class Sentry(Instrumentation):
    package = "sentry-sdk"

    def globally(self) -> None:
        import sentry_sdk

        def dropped(*_: Any) -> None:
            return None

        sentry_sdk.init(
            "http://key@127.0.0.1:9/1",
            traces_sample_rate=1.0,
            auto_session_tracking=False,
            before_send=dropped,
            before_send_transaction=dropped,
        )

    def traces(self) -> bool:
        import sentry_sdk

        return sentry_sdk.get_current_span() is not None


class OpenTelemetry(Instrumentation):
    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def globally(self) -> None:
        from opentelemetry.sdk.trace import TracerProvider

        self.options = {"tracer_provider": TracerProvider()}

    def traces(self) -> bool:
        from opentelemetry import trace

        return trace.get_current_span().get_span_context().is_valid


class OpenTelemetryFastAPI(OpenTelemetry):
    package = "opentelemetry-instrumentation-fastapi"
    frameworks = ("FastAPI",)

    def one(self, app: Any) -> None:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        FastAPIInstrumentor.instrument_app(app, **self.options)

    def undo(self, app: Any) -> None:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        FastAPIInstrumentor.uninstrument_app(app)


class OpenTelemetryStarlette(OpenTelemetry):
    package = "opentelemetry-instrumentation-starlette"
    frameworks = ("Starlette",)

    def one(self, app: Any) -> None:
        from opentelemetry.instrumentation.starlette import StarletteInstrumentor

        StarletteInstrumentor.instrument_app(app, **self.options)

    def undo(self, app: Any) -> None:
        from opentelemetry.instrumentation.starlette import StarletteInstrumentor

        StarletteInstrumentor.uninstrument_app(app)


class OpenTelemetryClasses(OpenTelemetry):
    # Puts other classes in the place of `FastAPI` and `Starlette`.
    package = "opentelemetry-instrumentation-fastapi"

    def globally(self) -> None:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.instrumentation.starlette import StarletteInstrumentor

        super().globally()
        FastAPIInstrumentor().instrument(**self.options)
        StarletteInstrumentor().instrument(**self.options)


class OpenTelemetryASGI(OpenTelemetry):
    package = "opentelemetry-instrumentation-asgi"

    def one(self, app: Any) -> None:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        app.add_middleware(OpenTelemetryMiddleware, **self.options)


class DDTrace(Instrumentation):
    package = "ddtrace"

    def first(self) -> None:
        os.environ.update(
            DD_TRACE_STARTUP_LOGS="false",
            DD_INSTRUMENTATION_TELEMETRY_ENABLED="false",
            DD_REMOTE_CONFIGURATION_ENABLED="false",
            DD_TRACE_AGENT_URL="http://127.0.0.1:9",
        )

    def globally(self) -> None:
        import logging

        from ddtrace import patch

        logging.getLogger("ddtrace").setLevel(logging.CRITICAL)
        patch(starlette=True, fastapi=True)

    def traces(self) -> bool:
        from ddtrace.trace import tracer

        return tracer.current_span() is not None


class NewRelic(Instrumentation):
    package = "newrelic"

    def first(self) -> None:
        os.environ.update(
            NEW_RELIC_DEVELOPER_MODE="true",
            NEW_RELIC_LICENSE_KEY="0" * 40,
            NEW_RELIC_APP_NAME="test",
            NEW_RELIC_LOG_LEVEL="critical",
        )

    def globally(self) -> None:
        from newrelic import agent

        agent.initialize()
        agent.register_application(timeout=5)

    def traces(self) -> bool:
        from newrelic import agent

        return agent.current_transaction() is not None


class ElasticAPM(Instrumentation):
    package = "elastic-apm"

    def __init__(self) -> None:
        self.client: Any = None

    def first(self) -> None:
        os.environ["ELASTIC_APM_DISABLE_SEND"] = "true"
        os.environ["ELASTIC_APM_CLOUD_PROVIDER"] = "none"

    def globally(self) -> None:
        from elasticapm.contrib.starlette import make_apm_client

        self.client = make_apm_client({"SERVICE_NAME": "test", "CENTRAL_CONFIG": False})

    def one(self, app: Any) -> None:
        from elasticapm.contrib.starlette import ElasticAPM as Layer

        app.add_middleware(Layer, client=self.client)

    def traces(self) -> bool:
        from elasticapm.traces import execution_context

        return execution_context.get_transaction() is not None


class ElasticAPMAutomatic(ElasticAPM):
    # As `elasticapm-run` has it.

    def globally(self) -> None:
        import elasticapm
        from elasticapm.instrumentation.register import register_wrapper_instrumentations

        register_wrapper_instrumentations()
        super().globally()
        elasticapm.instrument()

    def one(self, app: Any) -> None:
        pass


class Logfire(OpenTelemetry):
    package = "logfire"

    def globally(self) -> None:
        import logfire

        logfire.configure(send_to_logfire=False, console=False)

    def one(self, app: Any) -> None:
        import logfire
        from fastapi import FastAPI

        if isinstance(app, FastAPI):
            logfire.instrument_fastapi(app)
        else:
            logfire.instrument_starlette(app)


ALL: Final[dict[str, type[Instrumentation]]] = {
    "sentry": Sentry,
    "opentelemetry-fastapi": OpenTelemetryFastAPI,
    "opentelemetry-starlette": OpenTelemetryStarlette,
    "opentelemetry-classes": OpenTelemetryClasses,
    "opentelemetry-asgi": OpenTelemetryASGI,
    "ddtrace": DDTrace,
    "newrelic": NewRelic,
    "elastic": ElasticAPM,
    "elastic-automatic": ElasticAPMAutomatic,
    "logfire": Logfire,
}


# ---------------------------------------------------------------------- in a process of its own


def run(name: str, order: str) -> None:
    instrumentation = ALL[name]()
    instrumentation.first()
    if order == "before":
        instrumentation.globally()
    for framework in instrumentation.frameworks:
        for started in (False, True):
            check(instrumentation, order, framework, started=started)


def check(instrumentation: Instrumentation, order: str, framework: str, *, started: bool) -> None:
    from starlette.middleware import Middleware

    from httpmw import HTTPMiddleware, MiddlewareStack

    lifespan: list[str] = []
    layers = [Middleware(mark, name="a"), Middleware(HTTPMiddleware, dispatch=marking("b"))]
    make = application(framework, lifespan, instrumentation.traces)
    app, plain = make(layers), make(layers)
    if order == "before":
        instrumentation.one(app)
        instrumentation.one(plain)
    if started:
        for each in (app, plain):
            each.middleware_stack = each.build_middleware_stack()
    stack = MiddlewareStack.install(app)
    if order == "after":
        if not instrumentation.is_there:
            instrumentation.is_there = True
            instrumentation.globally()
        instrumentation.one(app)
        try:
            instrumentation.one(plain)
        except RuntimeError:  # without a stack it takes no layer after the start
            plain = make(layers)
            instrumentation.one(plain)
    expected = seen_by(plain)
    assert expected["marks"] == ["a", "b"], expected
    edit(app, stack, expected)
    if order == "after":
        instrumentation.undo(app)
        assert seen_by(app)["marks"] == ["e", "c", "a", "b"]
    stack.uninstall()
    assert seen_by(app)["marks"] == ["e", "c", "a", "b"]
    if order == "before":
        assert seen_by(app) == {**expected, "marks": ["e", "c", "a", "b"], "handshake": ["c", "a"]}
        instrumentation.undo(app)
        assert seen_by(app)["marks"] == ["e", "c", "a", "b"]
    assert lifespan == ["begins", "ends"] * (len(lifespan) // 2), lifespan
    traced = " and ".join(key for key in ("http", "websocket") if expected[key]) or "nothing"
    print(f"  {framework}, {'started' if started else 'new'}: as without a stack, {traced} traced")


def mark(app: Any, name: str) -> Any:
    """
    A layer of plain ASGI.
    """

    async def layer(scope: Any, receive: Any, send: Any) -> None:
        async def send_marked(message: Any) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                message["headers"] = [*message.get("headers", ()), (b"x-mark", name.encode())]
            await send(message)

        await app(scope, receive, send_marked)

    return layer


def marking(name: str) -> Any:
    """
    A layer of httpmw.
    """

    async def layer(conn: Any) -> Any:
        response = yield
        response.headers.append("x-mark", name)

    layer.__name__ = name
    return layer


def application(framework: str, events: list[str], traces: Callable[[], bool]) -> Any:
    """
    Give what makes an application that tells what it sees.
    """
    import fastapi
    import starlette.applications
    from starlette.responses import JSONResponse
    from starlette.routing import Route, WebSocketRoute

    async def hello(_: Any) -> JSONResponse:
        return JSONResponse(traces())

    async def broken(_: Any) -> None:
        raise RuntimeError

    async def socket(websocket: Any) -> None:
        await websocket.accept()
        await websocket.send_json(traces())
        await websocket.close()

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        events.append("begins")
        yield
        events.append("ends")

    def make(layers: list[Any]) -> Any:
        cls = fastapi.FastAPI if framework == "FastAPI" else starlette.applications.Starlette
        app = cls(middleware=list(layers), lifespan=lifespan)
        app.router.routes.append(Route("/", hello))
        app.router.routes.append(Route("/broken", broken))
        app.router.routes.append(WebSocketRoute("/socket", socket))
        return app

    return make


def seen_by(app: Any) -> dict[str, Any]:
    from starlette.testclient import TestClient

    with TestClient(app, raise_server_exceptions=False) as client:
        return ask(client)


def ask(client: Any, path: str = "/") -> dict[str, Any]:
    """
    Ask, and tell which layers were there, and whether it was traced.
    """
    response = client.get(path)
    marks = response.headers.get_list("x-mark")[::-1]
    if path != "/":
        return {"status": response.status_code, "marks": marks}
    with client.websocket_connect("/socket") as connection:
        outermost_first = [value.decode() for key, value in connection.extra_headers or ()][::-1]
        return {
            "status": response.status_code,
            "marks": marks,
            "http": response.json(),
            "handshake": outermost_first,
            "websocket": connection.receive_json(),
        }


def edit(app: Any, stack: Any, expected: dict[str, Any]) -> None:
    """
    Edit in all ways while the application serves.
    """
    from starlette.testclient import TestClient

    def compare(*marks: str) -> None:
        handshake = [each for each in marks if each in ("a", "c")]
        got = ask(client)
        assert got == {**expected, "marks": [*marks], "handshake": handshake}, (got, expected)

    with TestClient(app, raise_server_exceptions=False) as client:
        compare("a", "b")
        app.add_middleware(mark, name="c")
        added = stack.add(marking("d"))
        compare("d", "c", "a", "b")
        stack.remove(added)
        stack.add(marking("e"), outside_errors=True)
        assert ask(client, "/broken") == {"status": 500, "marks": ["e"]}
        compare("e", "c", "a", "b")


# ---------------------------------------------------------------------- all of them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ALL))
    parser.add_argument("--order", choices=ORDERS, help="run one of them, here")
    options = parser.parse_args()
    if options.order:
        run(options.names[0], options.order)
        return 0
    failed = []
    for name in options.names or ALL:
        try:
            version = importlib.metadata.version(ALL[name].package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: {ALL[name].package} is not installed")
            continue
        for order in ORDERS:
            print(f"{name} {version}, {order} install:", flush=True)
            command = [sys.executable, "-m", "tools.instrumented", name, "--order", order]
            if subprocess.run(command, check=False).returncode:
                failed.append(f"{name} {order}")
    print(f"failed: {', '.join(failed)}" if failed else "all is right")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
