# What is known to do harm in an order of layers, or to cost more than it has to.
#
# Rule 1: every warning says what comes of it and what to write instead; one that nobody can mend
# is a note in the tree, not a warning.
# Rule 2: each rule is a function of one layer, with what stands outside of it and inside.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from starlette.middleware.base import BaseHTTPMiddleware

from httpmw._order import HARM, kind_of

from ._cost import cost_of_base
from ._gate import lets_preflights_pass, refuses
from ._model import Node, Remark

_Rule = Callable[[Node, Sequence[Node]], Iterator[Remark]]

# What answers whatever is raised further in.
_ANSWERING: Final = frozenset({"problem_details"})
_FRAME: Final = frozenset({"exceptions", "server_errors"})
_LISTED: Final = 3


def warnings_of(root: Node) -> tuple[Remark, ...]:
    """
    Look at all layers of a tree, by what is the worst, then the outermost first.
    """
    layers = [each for each in _with_outer(root, ()) if each[0].kind == "layer"]
    found: dict[Remark, None] = {}
    for rule in _RULES:
        for node, outer in layers:
            found |= dict.fromkeys(rule(node, outer))
    return tuple(found)


def _with_outer(node: Node, outer: tuple[Node, ...]) -> Iterator[tuple[Node, tuple[Node, ...]]]:
    yield node, outer
    for child in node.children:
        yield from _with_outer(child, (*outer, node))


def _inner_layers(node: Node) -> Iterator[Node]:
    """
    Give the layers inside of one, as far as every request meets them.
    """
    while len(node.children) == 1:
        node = node.children[0]
        if node.kind == "layer":
            yield node


# ---------------------------------------------------------------------- the rules


def _base_http(node: Node, _: Sequence[Node]) -> Iterator[Remark]:
    if node.style != "base":
        return
    base, ours = cost_of_base()
    # A function that was registered by a decorator, or as `dispatch`.
    is_function = type(node.subject) is BaseHTTPMiddleware
    patch = "call `httpmw.compat.patch_starlette()` at start-up"
    yield Remark(
        "base-http",
        node.name,
        node.where,
        f"It stands on Starlette's BaseHTTPMiddleware: measured just now, that takes "
        f"{base * 1e6:.0f} µs of each request, where an httpmw layer takes {ours * 1e6:.1f} µs; "
        "and context variables that are set further in, by the endpoint, are not seen further out.",
        f"Run `httpmw migrate --write` over its file, or {patch}."
        if is_function
        else "Run `httpmw migrate --write` over its file, or import `BaseHTTPMiddleware` from "
        f"`httpmw.compat`. If the class is not yours: {patch}.",
    )


def _split_run(node: Node, outer: Sequence[Node]) -> Iterator[Remark]:
    around = outer[-1] if outer else None
    if node.style == "httpmw" or around is None or not _is_ours(around) or not node.children:
        return
    between = [node]
    while between[-1].children and not _is_ours(between[-1].children[0]):
        between.append(between[-1].children[0])
    # Those stand where Starlette puts them.
    if any(each.kind != "layer" or each.role in _FRAME for each in between):
        return
    if not between[-1].children or any(map(_belongs_there, between)):
        return
    inner = between[-1].children[0]
    names = " and ".join(each.name for each in between)
    stand, them = ("stands", "it") if len(between) == 1 else ("stand", "them")
    yield Remark(
        "split-run",
        node.name,
        node.where,
        f"{names} {stand} between {around.name} and {inner.name}, which would be one adapter "
        "otherwise: now each request goes through two.",
        f"Register {them} outside of {around.name} or inside of {inner.name}, where the order of "
        "what they do allows it.",
    )


def _is_ours(node: Node) -> bool:
    return node.kind == "layer" and node.style == "httpmw"


def _belongs_there(node: Node) -> bool:
    """
    Whether a layer stands where it stands for a reason: to move it would be another warning.
    """
    return node.role == "cors" and any(each.role in _ANSWERING for each in _inner_layers(node))


def _cors_inside(node: Node, outer: Sequence[Node]) -> Iterator[Remark]:
    if node.role != "cors" or any(each.role == "cors" for each in outer):
        return
    gate = next((each for each in outer if _refuses_preflights(each)), None)
    if gate is not None:
        yield Remark(
            "cors-inside",
            node.name,
            node.where,
            f"It stands inside of {gate.name}, which refuses requests: a preflight (OPTIONS) has "
            "no credentials and is refused, and no refusal has CORS headers, so a browser keeps "
            "pages of other origins out altogether.",
            f"Add it after {gate.name}: what `add_middleware` is told last stands outermost.",
        )
    answering = [each for each in outer if each.role in _ANSWERING]
    errors = [each for each in outer if each.role == "server_errors"]
    covered = any(each.role in _ANSWERING for each in _inner_layers(node))
    if answering:
        yield Remark(
            "cors-inside",
            node.name,
            node.where,
            f"It stands inside of {answering[-1].name}, which answers exceptions: those answers "
            "have no CORS headers, so a browser hides them from the page.",
            f"Register it outside of {answering[-1].name}.",
        )
    elif errors and not covered:
        yield Remark(
            "cors-inside",
            node.name,
            node.where,
            f"It stands inside of ServerErrorMiddleware, which answers unhandled exceptions: a 500"
            f"{_but_of_mounts(node)} has no CORS headers, so a browser hides it from the page.",
            "In place of its `add_middleware`, put it around the whole application, behind all "
            "else: `app = CORSMiddleware(app, ...)`; or write `MiddlewareStack.install(app).add("
            "Middleware(CORSMiddleware, ...), outside_errors=True)`, with `MiddlewareStack` of "
            "`httpmw`. Or have exceptions answered inside of it: `add_middleware("
            "ProblemDetailsMiddleware)`, of `httpmw.middleware`, before CORS is added.",
        )


def _refuses_preflights(node: Node) -> bool:
    if node.kind != "layer" or not refuses(node):
        return False
    return not lets_preflights_pass(node)


def _but_of_mounts(node: Node) -> str:
    """
    A mounted application answers for itself, inside of what is around it.
    """
    mounted = any(each.role == "server_errors" for each in node.walk())
    return " of what is not mounted" if mounted else ""


def _compression_outside_etag(node: Node, _: Sequence[Node]) -> Iterator[Remark]:
    # httpmw's own gives what it codes a tag of its own.
    if node.role != "compression" or getattr(type(node.subject), "kind", "") == "compression":
        return
    for inner in _inner_layers(node):
        if inner.role == "etag":
            yield Remark(
                "compression-outside-etag",
                node.name,
                node.where,
                f"It stands outside of {inner.name}: the tag is made of the body before it is "
                "compressed, so two different bodies have one strong ETag (RFC 9110 section "
                "8.8.3.3), and caches mix them up.",
                "Use `httpmw.middleware.CompressionMiddleware` in its place, which gives what it "
                "codes a tag of its own.",
            )


def _http_only_gate(node: Node, _: Sequence[Node]) -> Iterator[Remark]:
    if node.scopes != "http":
        return
    sockets = [str(each.path) for each in node.walk() if each.kind == "websocket"]
    if not sockets or not refuses(node):
        return
    listed = ", ".join(sockets[:_LISTED])
    if len(sockets) > _LISTED:
        listed += f" and {len(sockets) - _LISTED} more"
    if node.style == "httpmw" and hasattr(node.subject, "dispatch_func"):  # of `httpmw.compat`
        remedy = (
            "Run `httpmw migrate --write` over it and register it with `websocket=True`: in the "
            "`call_next` style it is HTTP only. Or guard the WebSocket routes with a dependency."
        )
    elif node.style == "httpmw":
        remedy = "Register it with `websocket=True`: the same function then runs around handshakes."
    elif node.style == "base":
        remedy = (
            "Run `httpmw migrate --write` over it and register it with `websocket=True`, or guard "
            "the WebSocket routes with a dependency."
        )
    else:
        remedy = (
            'Have it look at `scope["type"] == "websocket"` too, and refuse with '
            "`websocket.close`; or guard those routes."
        )
    what = f"routes {listed} are" if len(sockets) > 1 else f"route {listed} is"
    yield Remark(
        "http-only-gate",
        node.name,
        node.where,
        f"It refuses requests and sees HTTP only: the WebSocket {what} open to those whom it "
        "refuses.",
        remedy,
    )


def _order(node: Node, _: Sequence[Node]) -> Iterator[Remark]:
    # By classes that are known, not by names.
    kind = kind_of(node.subject)
    for inner in _inner_layers(node):
        inner_kind = kind_of(inner.subject)
        harm = HARM.get((kind or "", inner_kind or ""))
        if harm is None or (kind in _ANSWERING and inner_kind == "cors"):  # said above
            continue
        if kind == inner_kind == "metrics" and type(node.subject) is not type(inner.subject):
            continue  # for Prometheus and for OpenTelemetry
        remedy = f"Register {inner.name} outside of it; `recommended()` gives the order."
        if kind == inner_kind:
            remedy = "Register one of them."
        yield Remark(
            "order", node.name, node.where, f"It stands outside of {inner.name}: {harm}.", remedy
        )


# In the order of `CODES`.
_RULES: Final[tuple[_Rule, ...]] = (
    _http_only_gate,
    _cors_inside,
    _compression_outside_etag,
    _order,
    _split_run,
    _base_http,
)
