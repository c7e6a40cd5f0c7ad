"""
A FastAPI router with layers of its own.
"""

# FastAPI has changed what it does with a router that is included, and may do so again:
#
# * from 0.137 on the router stays what it is, and a request that matches something in it goes
#   through its `handle`. That is where the layers stand: around whatever is in there, and comes
#   later;
# * before that its routes are made anew for the router that includes it, by their class, their
#   function or not at all. There the layers stand around each route that keeps its class, and all
#   others are refused.
#
# Rule 1: what would be reached without the layers is refused where it is defined, and if it cannot
# be seen there, by the request.
# Rule 2: what is private to FastAPI is read in this file only, and `_check` tries out, before the
# first router is made, that requests come by. So a FastAPI that is not understood is an error at
# start-up.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import fastapi
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from . import _errors
from ._adapter import Dispatch, HTTPMiddleware
from ._errors import MiddlewareError
from ._exchange import Adapter

__all__ = ["MiddlewareRouter"]

# Whether a router that is included stays what it is.
_STAYS: Final = hasattr(fastapi.APIRouter, "handle")


class MiddlewareRouter(fastapi.APIRouter):
    """
    An `APIRouter` with layers around everything that is in it.

        members = MiddlewareRouter(prefix="/members", middleware=[only_members])

        @members.get("/news")
        async def news() -> list[str]: ...

        app.include_router(members)

    They stand around its routes, those of routers that are included into it, applications that are
    mounted in it, and what is added later. A request that matches none of those does not meet them.

    Refused is what they could not stand around:

    * WebSocket routes, as long as one of the layers sees HTTP only (see *websocket*); in a mounted
      application, where they cannot be seen, the handshake is an error;
    * `frontend()`, which FastAPI serves past its routers;
    * before FastAPI 0.137 everything but path operations, in it and in routers that it includes.

    Args:
        middleware: Middleware functions, or `Middleware` objects of any ASGI middleware, the
            outermost first. They are made once, and before FastAPI 0.137 for each route.
        websocket: Whether the functions among *middleware* run around WebSocket handshakes, too, as
            `HTTPMiddleware` has it; a `Middleware` object says it for itself.
        options: Those of `APIRouter`.

    Raises:
        TypeError: One of *middleware* is no middleware, or something is added that cannot be
            covered.
        RuntimeError: This FastAPI is not understood.
    """

    def __init__(
        self,
        *,
        middleware: Sequence[Middleware | Dispatch],
        websocket: bool = False,
        **options: Any,
    ) -> None:
        _check()
        self._httpmw_routes: list[BaseRoute] = []
        self._httpmw_classes: dict[type[APIRoute], type[APIRoute]] = {}
        self._httpmw_middleware = [_layer(each, websocket) for each in middleware]
        super().__init__(**options)
        inside: ASGIApp = super().handle if _STAYS else _nothing
        self._httpmw_app = self.around(inside)
        if _STAYS:
            # Where it is mounted, or served by itself.
            self.middleware_stack = self._httpmw_app

    def around(self, app: ASGIApp) -> Any:
        """
        Make the layers, around *app*.
        """
        covers = True
        for cls, args, kwargs in reversed(self._httpmw_middleware):
            app = cls(app, *args, **kwargs)
            sees_http_only = isinstance(app, Adapter) and not getattr(app, "websocket", False)
            covers = covers and not sees_http_only
        self._httpmw_covers = covers
        return app

    # ------------------------------------------------------------------ from 0.137 on

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Run what matches in this router, inside of the layers.
        """
        if scope["type"] == "websocket" and not self._httpmw_covers:
            raise _errors.reached_uncovered(self, "a WebSocket route", _HANDSHAKES)
        await self._httpmw_app(scope, receive, send)

    @property
    def _low_priority_routes(self) -> list[BaseRoute]:
        # FastAPI asks for them before it looks at those of the routers within.
        for router in _routers_in(self):
            if _has_frontend(router):
                raise _errors.reached_uncovered(self, "a frontend", _FRONTENDS)
        return []

    @_low_priority_routes.setter
    def _low_priority_routes(self, routes: list[BaseRoute]) -> None:
        pass

    # ------------------------------------------------------------------ before that

    @property
    def routes(self) -> list[BaseRoute]:
        """
        The routes; before FastAPI 0.137 an error if one is there that cannot be covered.
        """
        if not _STAYS:
            for each in self._httpmw_routes:
                if getattr(each, "_httpmw_router", None) is not self:
                    raise _errors.uncovered(self, f"{each!r}", _BEFORE)
        return self._httpmw_routes

    @routes.setter
    def routes(self, routes: list[BaseRoute]) -> None:
        self._httpmw_routes = routes

    def add_api_route(self, *args: Any, **options: Any) -> None:
        """
        As in `APIRouter`.
        """
        if not _STAYS:
            cls = options.get("route_class_override") or self.route_class
            if cls not in self._httpmw_classes:
                self._httpmw_classes[cls] = _with_layers(cls, self)
            options["route_class_override"] = self._httpmw_classes[cls]
        super().add_api_route(*args, **options)

    def add_route(self, *args: Any, **options: Any) -> None:
        """
        As in `APIRouter`.
        """
        if not _STAYS:
            raise _errors.uncovered(self, f"a route of Starlette, {args[:1]!r}", _BEFORE)
        super().add_route(*args, **options)

    def mount(self, *args: Any, **options: Any) -> None:
        """
        As in `APIRouter`.
        """
        if not _STAYS:
            raise _errors.uncovered(self, f"a mounted application, {args[:1]!r}", _BEFORE)
        super().mount(*args, **options)

    # ------------------------------------------------------------------ what is refused

    def add_websocket_route(self, *args: Any, **options: Any) -> None:
        """
        As in `APIRouter`.
        """
        self._refuse_websockets(args)
        super().add_websocket_route(*args, **options)

    def add_api_websocket_route(self, *args: Any, **options: Any) -> None:
        """
        As in `APIRouter`.
        """
        self._refuse_websockets(args)
        super().add_api_websocket_route(*args, **options)

    def frontend(self, *args: Any, **_: Any) -> None:
        """
        Refused: FastAPI serves it past its routers.
        """
        raise _errors.uncovered(self, f"a frontend, {args[:1]!r}", _FRONTENDS)

    def include_router(self, router: fastapi.APIRouter, *args: Any, **options: Any) -> None:
        """
        As in `APIRouter`; what is in *router* is looked at.
        """
        if _STAYS:
            for each in [router, *_routers_in(router)]:
                if _has_frontend(each):
                    raise _errors.uncovered(self, "a frontend", _FRONTENDS)
                for route in each.routes:
                    if isinstance(route, WebSocketRoute):
                        self._refuse_websockets((route.path,))
        super().include_router(router, *args, **options)

    def _refuse_websockets(self, args: tuple[Any, ...]) -> None:
        if not (_STAYS and self._httpmw_covers):
            remedy = _HANDSHAKES if _STAYS else _BEFORE
            raise _errors.uncovered(self, f"a WebSocket route, {args[:1]!r}", remedy)


_HANDSHAKES: Final = (
    "Give the router `websocket=True`, or write `Middleware(HTTPMiddleware, dispatch=mw, "
    "websocket=True)`, where the functions are to run around handshakes as well; or put it into a "
    "router of its own, and guard it there with a dependency or an ASGI middleware."
)
_FRONTENDS: Final = (
    "FastAPI serves frontends past its routers. Call `frontend` on the application, with the "
    "layers around that."
)
_BEFORE: Final = (
    "Before FastAPI 0.137 a router that is included keeps path operations only. Put it into an "
    "application of its own, add the layers there, and mount that."
)


def _layer(middleware: Any, websocket: bool) -> Middleware:  # noqa: FBT001 - as it was given
    if isinstance(middleware, Middleware):
        return middleware
    if isinstance(middleware, type) or not callable(middleware):
        raise _errors.not_a_layer(middleware)
    return Middleware(HTTPMiddleware, dispatch=middleware, websocket=websocket)


def _routers_in(router: Any) -> Iterator[Any]:
    """
    Give the routers that are included in one, as FastAPI keeps them from 0.137 on.
    """
    for route in router.routes:
        within = getattr(route, "original_router", None)
        if within is not None:
            yield within
            yield from _routers_in(within)


def _has_frontend(router: Any) -> bool:
    return bool(getattr(router, "_low_priority_routes", ()))


async def _nothing(*_: object) -> None:
    raise AssertionError


def _with_layers(cls: type[APIRoute], router: MiddlewareRouter) -> type[APIRoute]:
    """
    Give the class of routes that run inside of the layers of *router*, wherever they are.
    """

    class Layered(cls):  # type: ignore[misc, valid-type]
        _httpmw_router = router

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            # That of the instance: a router within has put its layers there already.
            self.__dict__["handle"] = router.around(self.handle)

    Layered.__name__, Layered.__qualname__ = cls.__name__, cls.__qualname__
    return Layered


# ---------------------------------------------------------------------- does it hold?

# None: it has not been tried out.
_holds: bool | None = None


def _check() -> None:
    """
    Try out, once, that no request comes into a router past its layers.
    """
    global _holds  # noqa: PLW0603 - one FastAPI for the process
    if _holds is None:
        _holds = True  # for the routers of the trial itself
        try:
            _holds = _try_out()
        except Exception:  # noqa: BLE001 - whatever is not as it was
            _holds = False
    if not _holds:
        raise _errors.unknown_fastapi(fastapi.__version__)


class _Met(Exception):  # noqa: N818 - what the trial hopes for
    pass


class _Layer:
    def __init__(self, app: ASGIApp) -> None:
        pass

    def __call__(self, *_: object) -> Any:
        raise _Met


def _try_out() -> bool:
    def endpoint() -> None:
        pass

    outer, inner = fastapi.APIRouter(), fastapi.APIRouter()
    router = MiddlewareRouter(middleware=[Middleware(_Layer)], prefix="/in")
    router.add_api_route("/route", endpoint)
    inner.add_api_route("/nested", endpoint)
    router.include_router(inner)
    outer.include_router(router, prefix="/out")
    asked = [("http", "/out/in/route"), ("http", "/out/in/nested")]
    if _STAYS:
        router.add_api_route("/late", endpoint)
        router.mount("/mounted", _nothing)
        inner.add_api_websocket_route("/socket", endpoint)
        asked += [("http", "/out/in/late"), ("http", "/out/mounted/x")]
        asked += [("websocket", "/out/in/socket")]
    if not all(_raised(outer, *each) is _Met for each in asked):
        return False
    if not hasattr(inner, "frontend"):
        return True
    inner.frontend("/", directory=".", check_dir=False)
    return _raised(outer, "http", "/out/in/a-file") is MiddlewareError


def _raised(app: ASGIApp, kind: str, path: str) -> type[BaseException] | None:
    scope = {"type": kind, "method": "GET", "path": path, "root_path": "", "headers": []}
    nothing: Any = _nothing
    asking: Any = app({**scope, "query_string": b""}, nothing, nothing)
    try:
        asking.send(None)
    except BaseException as exc:  # noqa: BLE001 - its kind is what is asked for
        return type(exc)
    finally:
        asking.close()
    return None
