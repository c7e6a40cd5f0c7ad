# Reading an application into a tree.
# It is one walk, in which each kind of thing that an application is made of leads to the others.
#
# Rule 1: nothing of the application is run but `build_middleware_stack`, which the first event
# would call as well; what was built is left where the application looks for it.
# Rule 2: what Starlette, FastAPI and httpmw are made of is known by their attributes. Anything
# else is asked for the one thing in it that is an ASGI app: an attribute, or a variable that a
# function has closed over. Where there are several, those that lead to others are the nearer ones.
# Rule 3: an object that cannot be looked at is a leaf, never an error; what is met again further
# in is named and not followed.
# Rule 4: probes are looked through: the tree of an application is the same with them.

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, Final

from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute

from httpmw._adapter import HTTPMiddleware
from httpmw._exchange import Adapter, runs_as_adapter
from httpmw.stack import MiddlewareStack

from ._mask import masked
from ._model import Kind, Link, Node, Scopes
from ._where import unwrapped, where

# By which names the inner app goes, the likeliest first.
_NAMES: Final = (
    "app", "_app", "asgi_app", "_asgi_app", "application", "wrapped_app", "inner_app", "wrapped",
    "inner", "next_app", "next", "asgi", "_asgi", "other_asgi_app", "asgi_handler", "_next",
)  # fmt: skip
_MOST_DEEP: Final = 100
_LISTED: Final = 3

# What those of Starlette are in the rules of order.
_ROLES: Final = {
    "starlette.middleware.cors.CORSMiddleware": "cors",
    "starlette.middleware.errors.ServerErrorMiddleware": "server_errors",
    "starlette.middleware.exceptions.ExceptionMiddleware": "exceptions",
}
_NOTES: Final = {
    "server_errors": "answers unhandled exceptions with 500; no layer further in sees that answer",
    "exceptions": "answers HTTPException, and what has an exception handler",
}
_EDITABLE: Final = "its layers can be edited while it serves"
# FastAPI's and Starlette's own, which nobody has put there.
_OWN: Final = ("starlette.", "fastapi.")


def read(app: Any) -> Node:
    """
    Read *app* into a tree, and number the runs of fused layers.
    """
    root = _Reader().read(app)
    _number_runs(root)
    _name_paths(root, "", None)
    return root


def looked_through(app: Any) -> Any:
    """
    Give what is behind a probe.
    """
    while (behind := _probed(app)) is not None:
        app = behind
    return app


def _probed(app: Any) -> Any:
    # Of a probe's own class: everything else about it is what is behind it.
    return app.behind if getattr(type(app), "is_httpmw_probe", False) else None


class _Reader:
    def __init__(self) -> None:
        # What is being read, outermost first.
        self._path: list[Any] = []
        # How those layers were registered that are met next.
        self._specs: list[Middleware] = []

    def read(self, app: Any) -> Node:
        app = looked_through(app)
        if any(app is each for each in self._path) or len(self._path) > _MOST_DEEP:
            return Node("app", _name(app), where(app), notes=["again"], subject=app)
        self._path.append(app)
        try:
            return self._read(app)
        finally:
            self._path.pop()

    def _read(self, app: Any) -> Node:
        if isinstance(app, MiddlewareStack):
            return self._read_stack(app)
        if isinstance(app, FunctionType) and getattr(app, "stack", None) is not None:
            core: Any = app  # of an installed stack: here its layers begin
            if isinstance(core.stack, MiddlewareStack):
                return self._read_slots(core.stack, outside=False, inner=core.inner)
        if _is_application(app):
            return self._read_application(app)
        if isinstance(app, Router):
            return self._read_router(app)
        if isinstance(app, MethodType) and isinstance(app.__self__, Router):
            if any(app.__self__ is each for each in self._path):  # inside of its own layers
                return self._read_routes(app.__self__)
            return self._read_router(app.__self__)
        if isinstance(app, MethodType) and isinstance(app.__self__, Route):
            return self._read_handle(app.__self__)
        return self._read_any(app)

    # ------------------------------------------------------------------ applications

    def _read_application(self, app: Any) -> Node:
        node = Node("application", _title(app), where(type(app)), subject=app)
        lifespan = _lifespan(app.router)
        if lifespan is not None:
            node.notes.append(f"lifespan {lifespan}")
        if getattr(app, "debug", False):
            node.notes.append("debug")
        if app.middleware_stack is None:
            app.middleware_stack = app.build_middleware_stack()
        built = app.middleware_stack  # what an installed stack has made of it
        if "_httpmw_installation" in vars(app):
            node.notes.append(_EDITABLE)
        before, self._specs = self._specs, list(app.user_middleware)
        try:
            self._add(node, built, lambda other: setattr(app, "middleware_stack", other))
        finally:
            self._specs = before
        return node

    def _read_stack(self, stack: MiddlewareStack) -> Node:
        if stack._installation is not None:
            return self._read_slots(stack, outside=True, inner=stack._frame)
        node = Node("application", "MiddlewareStack", where(type(stack)), subject=stack)
        node.children.append(self._read_slots(stack, outside=None, inner=stack._inner))
        node.notes.append(_EDITABLE)
        return node

    def _read_slots(self, stack: MiddlewareStack, *, outside: bool | None, inner: Any) -> Node:
        """
        Read some of the layers of a stack, and what they are around.
        """
        nodes: list[Node] = []
        for slot in stack._read():
            if outside in {None, slot.outside}:
                node = self._layer(slot.instance, slot.spec)
                node.slot, node.stack = slot, stack
                if slot.layer.name != node.name:
                    node.notes.append(f"named {slot.layer.name!r}")
                nodes.append(node)
        node = self.read(inner)
        for outer in reversed(nodes):
            outer.children.append(node)
            node = outer
        return node

    # ------------------------------------------------------------------ routes

    def _read_router(self, router: Router) -> Node:
        first = looked_through(router.middleware_stack)
        if isinstance(first, MethodType) and first.__self__ is router:
            return self._read_routes(router)
        node = Node("router", type(router).__name__, where(type(router)), subject=router)
        self._add(node, first, lambda other: setattr(router, "middleware_stack", other))
        return node

    def _read_routes(self, router: Router) -> Node:
        node = Node("router", type(router).__name__, where(type(router)), subject=router)
        for route in router.routes:
            node.children.append(self._read_route(route))
        return node

    def _read_route(self, route: Any) -> Node:
        included = getattr(route, "original_router", None)
        if included is not None:
            return self._read_included(route, included)
        path = str(getattr(route, "path", "") or getattr(route, "host", ""))
        kind, name = _kind_of_route(route), path
        methods = tuple(sorted(getattr(route, "methods", None) or ()))
        subject = getattr(route, "endpoint", None)
        node = Node(kind, name, where(subject or type(route)), methods=methods, subject=route)
        if kind in {"mount", "host"} and (life := _lifespan_within(route.app)) is not None:
            node.notes.append(f"its lifespan {life} is not run by the application that mounts it")
        if subject is not None and kind in {"route", "websocket"}:
            node.notes.append(_name(subject))
        app = looked_through(_in_attributes(route, "app"))
        handle = vars(route).get("handle") if hasattr(route, "__dict__") else None
        if handle is not None and not _is_own(handle):  # `httpmw.fastapi`, before FastAPI 0.137
            self._add(node, handle, lambda other: setattr(route, "handle", other))
        elif app is not None and (kind in {"mount", "host"} or not _is_end(app)):
            self._add(node, app, lambda other: setattr(route, "app", other))
            end = _inside_of_layers(node.children[0])
            if end.kind == "app" and subject is not None and _is_end(end.subject):
                end.name, end.where = _name(subject), where(subject)
        elif app is not None:
            node.links.append(Link(app, lambda other: setattr(route, "app", other)))
        return node

    def _read_handle(self, route: Route) -> Node:
        """
        Read what is left of a route inside of the layers that `httpmw.fastapi` has put around it.
        """
        node = Node("route", route.path, where(route.endpoint), subject=route)
        node.methods = tuple(sorted(route.methods or ()))
        node.links.append(Link(route.app, lambda other: setattr(route, "app", other)))
        return node

    def _read_included(self, route: Any, router: Any) -> Node:
        """
        Read a router that FastAPI, from 0.137 on, keeps where it was included.
        """
        prefix = getattr(getattr(route, "include_context", None), "prefix", "")
        node = Node("router", type(router).__name__, where(type(router)), subject=route)
        if prefix:
            node.notes.append(f"included at {prefix}")
        inner = node
        layers = getattr(router, "_httpmw_app", None)
        if layers is not None:
            self._path.append(router)
            outermost = self.read(layers)
            self._path.pop()
            node.children.append(outermost)
            node.links.append(Link(layers, lambda other: setattr(router, "_httpmw_app", other)))
            inner = _inside_of_layers(outermost)
            # The method of the router that the layers are around.
            inner.kind, inner.name, inner.where, inner.notes = "router", "routes", None, []
            inner.children, inner.links = [], []
        try:
            candidates = list(route.effective_candidates())
        except Exception:  # noqa: BLE001 - private to FastAPI, and it may be another one
            candidates = list(router.routes)
        for each in candidates:
            inner.children.append(self._read_candidate(each))
        return node

    def _read_candidate(self, candidate: Any) -> Node:
        starlette_route = getattr(candidate, "starlette_route", None)
        if starlette_route is not None:
            return self._read_route(starlette_route)
        return self._read_route(candidate)

    # ------------------------------------------------------------------ layers and other apps

    def _read_any(self, app: Any) -> Node:
        links = _links(app)
        if len(links) != 1:
            node = Node("app", _name(app), where(app), subject=app)
            node.options = _options(app)
            for each in links:
                self._add(node, each.app, each.put)
            if node.children:
                node.notes.append("leads to one of these")
            return node
        node = self._layer(app, self._spec(app))
        self._add(node, links[0].app, links[0].put)
        return node

    def _add(self, node: Node, app: Any, put: Callable[[Any], None]) -> None:
        node.links.append(Link(app, put))
        node.children.append(self.read(app))

    def _spec(self, app: Any) -> Middleware | None:
        """
        Find how a layer was registered: they are built in the order of the list.
        """
        for place, spec in enumerate(self._specs):
            made = unwrapped(spec.cls)
            if isinstance(app, FunctionType):  # what a factory has given
                name = app.__qualname__.partition(".<locals>")[0]
                found = getattr(made, "__qualname__", None) == name
            else:
                found = isinstance(made, type) and isinstance(app, made)
            if found:
                del self._specs[: place + 1]
                return spec
        return None

    def _layer(self, app: Any, spec: Middleware | None) -> Node:
        function = _function_of(app)
        # A class of its own counts, and a function where the class is only what runs it.
        subject = app if function is None else function
        node = Node("layer", _name(subject), where(subject), subject=app)
        node.role = _role(app)
        node.options = masked(_given(spec)) if spec is not None else _options(app)
        node.style = _style(app)
        node.scopes = _scopes(app, node.style)
        if node.role in _NOTES:
            node.notes.append(_NOTES[node.role])
        return node


# ---------------------------------------------------------------------- what things are


def _is_application(app: Any) -> bool:
    names = ("build_middleware_stack", "user_middleware", "router")
    return all(_get(app, name) is not None for name in names)


def _get(subject: Any, name: str) -> Any:
    try:
        return getattr(subject, name, None)
    except Exception:  # noqa: BLE001 - whatever is behind it, a proxy without a request, say
        return None


def _title(app: Any) -> str:
    name, title = type(app).__name__, getattr(app, "title", None)
    package = sys.modules.get(type(app).__module__.partition(".")[0])
    version = getattr(package, "__version__", None)
    named = f"{name} {version}" if version and name in {"FastAPI", "Starlette"} else name
    return f"{named} {title!r}" if isinstance(title, str) and title != name else named


def _name(subject: Any) -> str:
    subject = unwrapped(subject)
    if isinstance(subject, FunctionType):
        outer, _, inner = subject.__qualname__.rpartition(".<locals>.")
        # A function in a function: the outer one is what people know.
        return outer.rpartition(".<locals>.")[2] if outer and inner in _INNER else inner or outer
    return subject.__name__ if isinstance(subject, type) else type(subject).__name__


# What a function is called that a factory returns.
_INNER: Final = frozenset({
    "app", "asgi", "wrapper", "wrapped", "middleware", "inner", "handler", "call", "_app", "core",
    "dispatch", "asgi_app", "wrapped_app", "func", "_wrapper", "__call__",
})  # fmt: skip


def _function_of(app: Any) -> Any:
    """
    Give the function that a layer runs, where its class is one of ours or Starlette's.
    """
    if isinstance(app, HTTPMiddleware):
        return vars(app).get("dispatch")
    dispatch = vars(app).get("dispatch_func") if hasattr(app, "__dict__") else None
    if dispatch is None or getattr(dispatch, "__self__", None) is app:
        return None
    return dispatch


def _style(app: Any) -> Any:
    if isinstance(app, Adapter) and runs_as_adapter(app):
        return "httpmw"
    if isinstance(app, BaseHTTPMiddleware):
        return "httpmw" if is_patched(app) else "base"
    return "asgi"


def is_patched(app: Any) -> bool:
    call: Any = getattr(type(app), "__call__", None)  # noqa: B004 - which one it is
    return getattr(call, "__module__", None) == "httpmw.compat"


def _role(app: Any) -> str | None:
    for cls in type(app).__mro__:
        role = _ROLES.get(f"{cls.__module__}.{cls.__qualname__}")
        if role is not None:
            return role
    kind = getattr(type(app), "kind", None)
    if isinstance(kind, str) and isinstance(app, HTTPMiddleware):
        return kind
    name = _name(_function_of(app) or app).lower().replace("_", "")
    if any(word in name for word in ("gzip", "brotli", "compress", "zstd", "deflate")):
        return "compression"
    if "etag" in name or "conditionalget" in name:
        return "etag"
    return "cors" if "cors" in name else None


def _scopes(app: Any, style: str) -> Scopes:
    if style == "httpmw":
        return "http, websocket" if getattr(app, "websocket", False) else "http"
    if style == "base":
        return "http"
    words = set(_words(_code_of(app)))
    if "http" in words and "websocket" not in words:
        return "http"
    return "http, websocket" if "websocket" in words else "all"


def _code_of(app: Any) -> CodeType | None:
    call = app if isinstance(app, (FunctionType, MethodType)) else getattr(type(app), "__call__")  # noqa: B004, B009
    return getattr(unwrapped(call), "__code__", None)


def _words(code: CodeType | None) -> Iterator[str]:
    """
    Give the names of kinds of scopes that a function has in it.
    """
    constants = list(code.co_consts) if code is not None else []
    while constants:
        each = constants.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, (tuple, frozenset)):
            constants += each
        elif isinstance(each, CodeType):
            constants += each.co_consts


def _kind_of_route(route: Any) -> Kind:
    route = getattr(route, "original_route", route)
    if isinstance(route, WebSocketRoute):
        return "websocket"
    if isinstance(route, Mount):
        return "mount"
    if isinstance(route, Host):
        return "host"
    return "route" if isinstance(route, (Route, BaseRoute)) else "app"


def _is_end(app: Any) -> bool:
    """
    Whether *app* is what Starlette or FastAPI make of an endpoint, with nothing around it.
    """
    app = unwrapped(app)
    if isinstance(app, type):
        return True
    return isinstance(app, FunctionType) and _is_own(app)


def _is_own(function: Any) -> bool:
    return str(getattr(unwrapped(function), "__module__", "")).startswith(_OWN)


def _lifespan(router: Any) -> str | None:
    context = getattr(router, "lifespan_context", None)
    context = unwrapped(context)
    if context is None or (_is_own(context) and not isinstance(context, FunctionType)):
        return None
    if _is_own(context) or str(getattr(type(context), "__module__", "")).startswith(_OWN):
        started = getattr(router, "on_startup", None) or getattr(router, "on_shutdown", None)
        return "by on_startup" if started else None
    place = where(context)
    return _name(context) + (f" ({place})" if place else "")


def _lifespan_within(app: Any) -> str | None:
    app = looked_through(app)
    for _ in range(_MOST_DEEP):
        if _is_application(app):
            return _lifespan(app.router)
        links = _links(app)
        if len(links) != 1:
            return None
        app = looked_through(links[0].app)
    return None


def _inside_of_layers(node: Node) -> Node:
    while node.kind == "layer" and node.children:
        node = node.children[0]
    return node


# ---------------------------------------------------------------------- options


def _given(spec: Middleware) -> dict[str, Any]:
    """
    Give the options of a registration by their names.
    """
    cls, args, kwargs = spec
    try:
        bound = inspect.signature(cls).bind(None, *args, **kwargs).arguments
    except (TypeError, ValueError):
        return {**{f"secret {n}": each for n, each in enumerate(args)}, **kwargs}
    options = dict(list(bound.items())[1:])
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and name in options:
            options |= options.pop(name)
    function = options.get("dispatch")
    if callable(function):  # that is the layer's name
        del options["dispatch"]
    return {name: each for name, each in options.items() if each is not None}


def _options(app: Any) -> dict[str, str]:
    """
    Give the options that an instance has kept under their names, and that are no defaults.
    """
    if isinstance(app, (FunctionType, MethodType, functools.partial)) or _role(app) in _NOTES:
        return {}
    try:
        parameters = inspect.signature(type(app)).parameters.values()
        kept = vars(app)
    except (TypeError, ValueError):
        return {}
    found = {}
    for each in parameters:
        for name in (each.name, f"_{each.name}"):
            value = kept.get(name)
            if name in kept and value is not None and not _same(value, each.default):
                if not is_asgi(value) and each.name not in _NAMES and each.name != "dispatch":
                    found[each.name] = value
                break
    return masked(found)


def _same(one: Any, other: Any) -> bool:
    try:
        return one is other or bool(one == other) or (not one and not other)
    except Exception:  # noqa: BLE001 - an array, say
        return False


# ---------------------------------------------------------------------- the way inward


def _links(app: Any) -> list[Link]:
    """
    Find the ASGI apps that something has in it.
    """
    try:
        found = _found_in(app)
    except Exception:  # noqa: BLE001 - whatever its attributes do when they are read
        return []
    if len(found) < 2:  # noqa: PLR2004 - there is nothing to choose
        return found
    return _nearest(found)


def _found_in(app: Any) -> list[Link]:
    if isinstance(app, functools.partial):
        given = [*app.args, *app.keywords.values()]
        inner = [each for each in given if is_asgi(each)]
        return [Link(each, _refuse) for each in inner] or [Link(app.func, _refuse)]
    if isinstance(app, MethodType):
        return [] if isinstance(app.__self__, type) else _of_instance(app.__self__)
    if isinstance(app, FunctionType):
        return list(_of_closure(app))
    return _of_instance(app)


def _of_instance(app: Any) -> list[Link]:
    if isinstance(app, type):
        return []
    for name in _NAMES:
        inner = _in_attributes(app, name)
        if inner is not None and callable(inner) and not isinstance(inner, type):
            return [Link(inner, functools.partial(_set, app, name))]
    return [
        Link(value, functools.partial(_set, app, name))
        for name, value in getattr(app, "__dict__", {}).items()
        if is_asgi(value)
    ]


def _in_attributes(app: Any, name: str) -> Any:
    if name in getattr(app, "__dict__", {}):
        return vars(app)[name]
    slot = getattr(type(app), name, None)
    return getattr(app, name, None) if inspect.ismemberdescriptor(slot) else None


def _of_closure(function: FunctionType) -> Iterator[Link]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # it is empty
            continue
        if value is function:
            continue
        if is_asgi(value) or (name in _NAMES and callable(value) and not isinstance(value, type)):
            yield Link(value, functools.partial(_fill, cell))


def _nearest(links: list[Link]) -> list[Link]:
    """
    Leave out what another one leads to.
    """
    within: list[Any] = []
    for each in links:
        seen = looked_through(each.app)
        for _ in range(_MOST_DEEP):
            further = _found_in(seen)
            if len(further) != 1:
                within += [looked_through(one.app) for one in further]
                break
            seen = looked_through(further[0].app)
            if any(seen is one for one in within):
                break
            within.append(seen)
    nearer: list[Link] = []
    for each in links:
        app = looked_through(each.app)
        known = [*within, *(looked_through(one.app) for one in nearer)]
        if not any(app is one or app == one for one in known):
            nearer.append(each)
    return nearer[:_LISTED]


def is_asgi(value: Any) -> bool:
    """
    Whether *value* takes what an ASGI app takes.
    """
    if isinstance(value, type) or not callable(value):
        return False
    if isinstance(value, (Adapter, Router, MiddlewareStack)) or _is_application(value):
        return True
    call = value if inspect.isroutine(value) else getattr(type(value), "__call__", None)  # noqa: B004
    code = getattr(unwrapped(call), "__code__", None)
    if code is None:
        return False
    names = [each for each in code.co_varnames[: code.co_argcount] if each not in {"self", "cls"}]
    return [each.strip("_") for each in names[:3]] == ["scope", "receive", "send"]


def _set(app: Any, name: str, value: Any) -> None:
    try:
        setattr(app, name, value)
    except AttributeError:
        object.__setattr__(app, name, value)  # a frozen dataclass


def _fill(cell: CellType, value: Any) -> None:
    cell.cell_contents = value


def _refuse(_: Any) -> None:
    raise TypeError


# ---------------------------------------------------------------------- paths and runs


def _name_paths(node: Node, prefix: str, path: str | None) -> None:
    """
    Say of all that belongs to a route what its whole path is.
    """
    if node.kind == "mount":
        prefix += node.name
        path = f"{prefix}/*"
    elif node.kind in {"route", "websocket"}:
        path = prefix + node.name
    node.path = path
    for child in node.children:
        _name_paths(child, prefix, path)


def _number_runs(root: Node) -> None:
    number = 0
    for node in root.walk():
        if node.run is not None or not _can_fuse(node):
            continue
        run = [node]
        while (inner := _fused_with(run[-1])) is not None:
            run.append(inner)
        if len(run) > 1:
            number += 1
            for each in run:
                each.run = number


def _can_fuse(node: Node) -> bool:
    return node.kind == "layer" and node.style == "httpmw"


def _fused_with(node: Node) -> Node | None:
    inner = node.children[0] if node.children else None
    if inner is None or not _can_fuse(inner) or node.stack is not inner.stack:
        return None
    if is_patched(inner.subject) and not is_patched(node.subject):
        return None  # `HTTPMiddleware` does not take those over, whose class is not httpmw's
    if node.slot is None:
        return inner
    alike = node.slot.outside == inner.slot.outside
    return inner if alike and node.slot.functions and inner.slot.functions else None
