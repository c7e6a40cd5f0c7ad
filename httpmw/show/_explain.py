# What a record says, in words and numbers.
#
# Rule 1: what happened in a layer is told from what passed in and out of it, and where it is
# httpmw's from the steps of its function as well.
# Rule 2: of headers only names are told, and of bodies only lengths.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from starlette.types import ASGIApp

from ._client import Exchange, lifespan
from ._explanation import Explanation, Step
from ._probe import Probes
from ._read import read
from ._record import CURRENT, PHASES, Line, Pairs, Passage, Record


async def explain(  # noqa: PLR0913 - what a request has, each with a default
    app: ASGIApp,
    method: str = "GET",
    path: str = "/",
    *,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    body: bytes | str = b"",
    repeat: int = 1,
    run_lifespan: bool = True,
) -> Explanation:
    """
    Send one request through an application, and tell what happened at each layer.

        print(await explain(app, "GET", "/users/7"))

    There is no server: it runs in this process, in the running event loop. While it runs, fused
    layers are run one by one, so that each has its own time.

    Args:
        app: The application: Starlette, FastAPI, or any ASGI app.
        method: The HTTP method; "WEBSOCKET" opens a WebSocket, and closes it.
        path: The path, which a query string may follow.
        headers: The headers, as a mapping or as pairs.
        body: The body.
        repeat: How often it is sent; what is told is the run whose time is the median.
        run_lifespan: Whether the application is started before, and shut down afterwards.

    Returns:
        What happened, layer by layer.

    Raises:
        StartupError: The application says that it cannot start.
        ValueError: *repeat* is less than one.
    """
    if repeat < 1:
        raise ValueError(f"repeat is a number from 1 on, not {repeat!r}")
    given: Any = headers
    pairs: list[tuple[str, str]] = list(given.items() if isinstance(given, Mapping) else given)
    data = body.encode() if isinstance(body, str) else body
    if run_lifespan:
        async with lifespan(app) as state:
            return await _explain(app, method, path, pairs, data, repeat, state)
    return await _explain(app, method, path, pairs, data, repeat, {})


async def _explain(  # noqa: PLR0913, PLR0917 - see above
    app: ASGIApp,
    method: str,
    path: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    repeat: int,
    state: Mapping[str, Any],
) -> Explanation:
    root = read(app)
    probes = Probes(root)
    probed = probes.put()
    asked: list[tuple[Record, Exchange, BaseException | None]] = []
    try:
        for _ in range(repeat):
            exchange, record = Exchange(method, path, headers, body, state), Record()
            token = CURRENT.set(record)
            try:
                raised = await exchange.run(probed)
            finally:
                CURRENT.reset(token)
            record.end()
            asked.append((record, exchange, raised))
    finally:
        probes.remove()
    # The run in the middle, and not the median of each time: these would not add up to the whole.
    by_time = sorted(asked, key=lambda each: each[0].took or 0.0)
    record, last, raised = by_time[len(by_time) // 2]
    lines = list(record.lines.values())
    return Explanation(
        method=method,
        path=path,
        status=last.status,
        exception=None if raised is None else _brief(raised),
        bytes_sent=last.bytes_sent,
        route=route_of(lines),
        seconds=record.took or 0.0,
        client_seconds=sum(record.client.times),
        steps=tuple(step(each) for each in lines),
        not_reached=tuple(not_reached(lines)),
        merged=tuple(each.name for each in probes.merged),
        spans=tuple(spans_of(record, lines)),
        repeated=len(asked),
    )


def spans_of(record: Record, lines: Sequence[Line]) -> list[tuple[int, str, float, float]]:
    """
    Give the waterfall of a record: numbers of *lines*, and -1 for what is none of them.
    """
    numbers = {id(each): number for number, each in enumerate(lines)}
    return [
        (numbers.get(id(line), -1), PHASES[phase], begin, end)
        for line, phase, begin, end in record.spans
    ]


def step(line: Line, *, messages: bool = True) -> Step:
    """
    Say what one line tells; of exceptions with their *messages*, or their types only.
    """
    node = line.node
    assert node is not None  # noqa: S101 - the client's line is no step
    around, inner = line.without, line.within
    name = node.name
    if node.kind in {"route", "websocket"}:
        name = f"{node.verbs} {name}"
    return Step(
        name=name,
        kind=node.kind,
        where=node.where,
        happened=happened(line, messages=messages),
        changed=tuple(_changed(around, inner)),
        seconds=dict(zip(PHASES, line.times, strict=True)),
        request_bytes=(around.body_in if around else 0, inner.body_in if inner else 0),
        response_bytes=(inner.body_out if inner else 0, around.body_out if around else 0),
    )


def happened(line: Line, *, messages: bool = True) -> str:
    """
    Say what a layer did.
    """
    around, inner = line.without, line.within
    if line.aside == "when":
        return "stood aside: its predicate is false"
    if line.aside == "none":
        return "stood aside: its function gave None"
    is_socket = around is not None and around.scope["type"] == "websocket"
    if is_socket and line.node is not None and line.node.scopes == "http":
        return "was passed by: it sees HTTP only"
    status = around.start[0] if around is not None and around.start is not None else None
    failed = None if inner is None else inner.inner.raised
    if line.raised is not None and line.raised is line.threw:
        return f"raised {_brief(line.raised) if messages else type(line.raised).__name__}"
    if status is None:
        if line.raised is not None:
            return f"{type(line.raised).__name__} passed"
        return "gave no response"
    after = ", then raised on" if line.raised is not None else ""
    if inner is None:
        return f"answered {status}"
    if failed is not None and inner.start is None:
        return f"answered {status} for {type(failed).__name__}{after}"
    if line.said == "answered" or inner.start is None:
        return f"answered {status}{after}"
    if line.said == "replaced":
        return f"replaced {inner.start[0]} by {status}"
    if failed is not None:
        return f"ran; {type(failed).__name__} passed"
    return "ran"


def _brief(exc: BaseException) -> str:
    text = str(exc).partition("\n")[0]
    return f"{type(exc).__name__}: {text}"[:120] if text else type(exc).__name__


def _changed(around: Passage | None, inner: Passage | None) -> Iterable[str]:
    if around is None or inner is None:
        return
    yield from (f"request {each}" for each in _differences(around.headers, inner.headers))
    for key in ("path", "method", "root_path", "query_string"):
        if around.scope is not inner.scope and around.scope.get(key) != inner.scope.get(key):
            yield f"request {key}"
    if around.start is None or inner.start is None:
        return
    if around.start[0] != inner.start[0]:
        yield f"status {inner.start[0]} → {around.start[0]}"
    yield from (f"response {each}" for each in _differences(inner.start[1], around.start[1]))


def _differences(before: Pairs, after: Pairs) -> Iterable[str]:
    old, new = _by_name(before), _by_name(after)
    for name in new:
        if name not in old:
            yield f"+{name}"
        elif old[name] != new[name]:
            yield f"~{name}"
    for name in old:
        if name not in new:
            yield f"-{name}"


def _by_name(pairs: Pairs) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for name, value in pairs:
        found.setdefault(name.decode("latin-1").lower(), []).append(value)
    return found


def route_of(lines: Sequence[Line]) -> str | None:
    """
    Say which route was matched.
    """
    paths = (each.node.path for each in reversed(lines) if each.node is not None)
    return next((each for each in paths if each is not None), None)


def not_reached(lines: Sequence[Line]) -> Iterable[str]:
    """
    Name the layers inside of the last one that was reached.
    """
    node = lines[-1].node if lines else None
    while node is not None and len(node.children) == 1 and node.kind != "router":
        node = node.children[0]
        if node.kind == "layer":
            yield node.name
