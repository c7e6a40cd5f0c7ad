# Problem details (RFC 9457) for what goes wrong inside.
#
# Rule 1: what the application says itself is never hidden. A response of its own passes, unless it
# is the bare form that FastAPI and Starlette have for want of anything better; and an unknown
# exception is its own, where it has a handler for `Exception` or 500, or shows tracebacks.
# Rule 2: nothing of an unknown exception, and nothing of what the client has sent, is shown.
# Rule 3: an unknown exception goes on to the server, to Sentry and to the log, after the answer.
# Rule 4: what is made here cannot fail: the answer is needed most where something is broken.
# Rule 5: once the response has begun there is nothing to say: the flow is over then.

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from http import HTTPStatus
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from httpmw._adapter import Flow, Predicate
from httpmw._connection import Connection
from httpmw._handlers import is_async
from httpmw._response import AppResponse

from ._draining import Drain, Draining
from ._ids import request_id, trace_id
from ._ready import Exclude, Ready, view_of

Handler: TypeAlias = Callable[[Connection[Any], Any], Any]
Member: TypeAlias = Literal["request_id", "trace_id"]

_log: Final = logging.getLogger("httpmw")

_MEDIA_TYPE: Final = "application/problem+json"
_LARGEST: Final = 64 * 1024
_VARIABLES: Final = {"request_id": request_id, "trace_id": trace_id}

# RFC 9457 section 4: "SHOULD start with a letter", and so on.
_EXTENSION: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{2,}")

# As RFC 9110 has them; Python does from 3.13 on.
_PHRASES: Final = {413: "Content Too Large", 422: "Unprocessable Content"}


class Problem(Exception):  # noqa: N818 - what it is called in RFC 9457
    """
    A problem detail: to raise in an endpoint, or to return from a handler.

    Inside of a `ProblemDetailsMiddleware` it becomes the response, and is not raised on. A subclass
    can fix what all of its problems have in common.

    Args:
        status: The status of the response, 400 to 599.
        detail: What went wrong this time, for a person to read.
        title: What kind of problem it is; None: the phrase of the status.
        type: The URI that identifies the kind of problem; None: made of *code*, or `about:blank`.
        code: A short name of the kind of problem. It is a member of its own, and is put behind the
            layer's `type_base`.
        instance: An absolute URI of this occurrence.
        headers: Header fields of the response, such as `retry-after`.
        extensions: Further members. Their names have at least three letters, digits or `_`, and
            start with a letter (RFC 9457 section 4).

    Raises:
        ValueError: *status* is not that of an error, *type* or *instance* is no absolute URI, or an
            extension has a name that it should not have.
    """

    def __init__(
        self,
        status: int,
        detail: str | None = None,
        *,
        title: str | None = None,
        type: str | None = None,  # noqa: A002 - the name of the member
        code: str | None = None,
        instance: str | None = None,
        headers: Mapping[str, str] | None = None,
        **extensions: Any,
    ) -> None:
        if not _is_error(status):
            raise ValueError(f"The status of a problem is 400 to 599, not {status!r}.")
        for name, uri in (("type", type), ("instance", instance)):
            if uri is not None and not _is_absolute(uri):
                raise ValueError(
                    f"{name}={uri!r} is not an absolute URI, and a relative one means another thing"
                    " at each path (RFC 9457 section 3.1). For a short name there is code=."
                )
        for name in extensions:
            if not _EXTENSION.fullmatch(name):
                raise ValueError(
                    f"{name!r} cannot be the name of a member: it takes a letter and then two or"
                    " more letters, digits or _ (RFC 9457 section 4)."
                )
        super().__init__(detail if detail is not None else title or phrase(status))
        self.status = status
        self.detail = detail
        self.title = title
        self.type = type
        self.code = code
        self.instance = instance
        self.headers = headers
        self.extensions = extensions

    def members(self, type_base: str | None = None) -> dict[str, Any]:
        """
        Return the members of the document, in the order of RFC 9457 section 3.1.

        Args:
            type_base: What *code* is put behind, where there is no *type*.

        Returns:
            A dictionary.
        """
        kind = self.type
        if kind is None:
            kind = "about:blank"
            if type_base is not None and self.code is not None:
                kind = type_base + quote(self.code)
        given = {"detail": self.detail, "instance": self.instance, "code": self.code}
        return {
            "type": kind,
            "title": self.title if self.title is not None else phrase(self.status),
            "status": self.status,
            **{name: value for name, value in given.items() if value is not None},
            **self.extensions,
        }


class ProblemDetailsMiddleware(Ready):
    """
    Answer errors with problem details: `application/problem+json`, as RFC 9457 has it.

    * A `Problem` that was raised, or an exception of a class in *handlers*, becomes the response.
    * FastAPI's and Starlette's own error responses are converted, with status and headers kept.
    * An unknown exception is answered with a 500 that says nothing of it, and raised on to the
      server. Where the application has a handler for `Exception` or 500, or `debug` is on, it is
      left to the application.
    * Who prefers HTML to JSON gets a short page of it.
    * The refusal of a WebSocket handshake is a response like others.

    Args:
        app: The inner app.
        handlers: What becomes of exceptions, by class; the nearest base class counts. A handler
            takes the connection and the exception, may be `async def`, and returns a `Problem`, a
            response or a status. One that is a plain `def` runs in a thread, as Starlette's do.
            What a handler of another class than `Exception` answers is not raised on.
        convert: Whether responses with status 400 to 599 are converted: those whose body is JSON
            and exactly `{"detail": ...}`, up to 64 KiB, and Starlette's, whose text is the phrase
            of the status.
        echo_input: Whether the errors of a validation repeat what the client has sent.
        negotiate: Whether `Accept` decides between JSON and HTML.
        type_base: What the `code` of a problem is put behind to make its `type`, such as
            `https://example.com/problems/`.
        instance: A function of the connection that returns the `instance` of the problem, an
            absolute URI such as `urn:uuid:...`, or None.
        include: Which of `request_id` and `trace_id` become members, where they are known.
        reraise: Whether an unknown exception, or the failure of a handler, is raised on when the
            answer is out; else the logger `httpmw` has it.
        drain: Whether what the application has not read of the body is received before an error is
            answered, and up to which bounds; a mapping has `max_size` (bytes, by default 1 MiB) and
            `seconds` (by default 1). Without it a proxy may answer a large upload with a 502.
        when: As in `HTTPMiddleware`.
        exclude: Paths for which it is not there, or a predicate.
        websocket: As in `HTTPMiddleware`; by default True.

    Raises:
        TypeError: An option is not what it has to be, or *handlers* has a class that can never
            arrive here.
    """

    kind = "problem_details"
    websocket = True

    def __init__(
        self,
        app: ASGIApp,
        *,
        handlers: Mapping[type[Exception], Handler] | None = None,
        convert: bool = True,
        echo_input: bool = False,
        negotiate: bool = True,
        type_base: str | None = None,
        instance: Callable[[Connection[Any]], str | None] | None = None,
        include: Sequence[Member] = ("request_id",),
        reraise: bool = True,
        drain: Drain = True,
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = None,
    ) -> None:
        super().__init__(app, when=when, exclude=exclude, websocket=websocket)
        self._check_flags(
            convert=convert, echo_input=echo_input, negotiate=negotiate, reraise=reraise
        )
        self._check_callables(instance=instance)
        if type_base is not None and not _is_absolute(type_base):
            raise self._bad(
                "type_base", type_base, "an absolute URI, such as 'https://example.com/problems/'"
            )
        if isinstance(include, str) or not set(include) <= set(_VARIABLES):
            raise self._bad("include", include, f"a collection of some of {[*_VARIABLES]}")
        self._handlers = self._checked(handlers)
        self._convert = convert
        self._echo_input = echo_input
        self._negotiate = negotiate
        self._type_base = type_base
        self._instance = instance
        self._include = tuple(include)
        self._reraise = reraise
        self._draining = Draining(type(self), drain)

    @classmethod
    def _checked(cls, handlers: Any) -> dict[type, Handler]:
        if handlers is None:
            return {}
        if not isinstance(handlers, Mapping):
            raise cls._bad("handlers", handlers, "a mapping of classes of exceptions to functions")
        for kind, handler in handlers.items():
            if not isinstance(kind, type) or not issubclass(kind, Exception):
                raise cls._bad(
                    "handlers",
                    handlers,
                    f"a mapping of classes of exceptions, not of {kind!r};"
                    " what becomes of a status is said by the application's `exception_handlers`",
                )
            if issubclass(kind, HTTPException):
                raise cls._bad(
                    "handlers",
                    handlers,
                    f"without {kind.__name__}, which never arrives here: the application makes a"
                    " response of it. Give the handler to the application's `exception_handlers`,"
                    " or leave it out to have that response converted",
                )
            if not callable(handler):
                raise cls._bad("handlers", handlers, f"a mapping to functions, not to {handler!r}")
        return dict(handlers)

    async def dispatch(self, conn: Connection[Any], /) -> Flow:
        """
        Answer what goes wrong, or convert the answer that there is.
        """
        # The one around this layer: one that is mounted writes itself in there.
        application = view_of(conn).get("app")
        try:
            response = yield
        except ClientDisconnect:
            raise
        except Exception as exc:
            answer = await self._answer(conn, exc, application)
            if answer is None:
                raise
            made, failure = answer
            if not await self._draining.drain(conn):
                made = copy.copy(made)  # a handler may give the same one to all
                made.raw_headers = [*made.raw_headers, (b"connection", b"close")]
            yield made
            if failure is exc:
                raise
            if failure is not None:
                raise failure  # noqa: B904 - it has its context
            return
        if self._convert and _is_error(response.status_code):
            await self._converted(conn, response)

    # ------------------------------------------------------------------ exceptions

    async def _answer(
        self, conn: Connection[Any], raised: Exception, application: Any
    ) -> tuple[Response, Exception | None] | None:
        """
        Return the response to an exception and what is raised on; None leaves it alone.
        """
        exc = _leaf(raised)
        if isinstance(exc, ClientDisconnect):
            return None
        if isinstance(exc, Problem):
            return self._response(conn, exc), None
        if isinstance(exc, HTTPException):  # of an ASGI app without Starlette's handlers
            if not _is_error(exc.status_code):
                return Response(status_code=exc.status_code, headers=exc.headers), None
            members = _from_detail(exc.detail, echo_input=self._echo_input)
            return self._response(conn, _made(exc.status_code, members, exc.headers)), None
        kind = next((kind for kind in type(exc).__mro__ if kind in self._handlers), None)
        is_unknown = kind is None or kind is Exception
        if is_unknown and _is_its_own(application):
            return None
        failure = raised if is_unknown else None
        response = None
        if kind is not None:
            handler = self._handlers[kind]
            try:
                if is_async(handler):
                    result = await handler(conn, exc)
                else:
                    result = await run_in_threadpool(handler, conn, exc)
                response = self._made_by(handler, result, conn)
            except Exception as its_own:
                failure = its_own  # with what it was to handle as its context
        if response is None:
            response = self._response(conn, Problem(500))
        if failure is not None and not self._reraise:
            _log.error("%s %s failed", conn.method, _path(conn), exc_info=failure)
            failure = None
        return response, failure

    def _made_by(self, handler: Handler, result: Any, conn: Connection[Any]) -> Response:
        if isinstance(result, Response):
            return result
        if isinstance(result, bool) or not isinstance(result, (int, Problem)):
            raise TypeError(
                f"The handler {handler!r} of ProblemDetailsMiddleware returned {result!r}: it"
                " should return a Problem, a response or a status."
            )
        return self._response(conn, result if isinstance(result, Problem) else Problem(result))

    def _response(self, conn: Connection[Any], problem: Problem) -> Response:
        body, media_type = self._rendered(conn, problem.members(self._type_base))
        response = Response(body, problem.status, problem.headers)
        response.headers["content-type"] = media_type
        if self._negotiate:
            response.headers.add_vary_header("Accept")
        return response

    # ------------------------------------------------------------------ responses

    async def _converted(self, conn: Connection[Any], response: AppResponse) -> None:
        """
        Make a problem of the response, if it is none and says nothing else.
        """
        headers = response.headers
        length = headers.get("content-length", "")
        # Without a length it is a stream: to wait for its end would hold it back.
        if not length.isdecimal() or int(length) > _LARGEST or "content-encoding" in headers:
            return
        media_type = (response.media_type or "").lower()
        if media_type not in {"application/json", "text/plain"}:
            return
        members = _given(await response.read(), media_type, response.status_code, self._echo_input)
        if members is None:
            return
        problem = _made(response.status_code, members)
        body, media_type = self._rendered(conn, problem.members(self._type_base))
        response.body = body
        headers["content-type"] = media_type
        if self._negotiate:
            headers.add_vary_header("Accept")
        # The application has sent all of its answer: it will not read any more.
        if not await self._draining.drain(conn):
            headers["connection"] = "close"

    # ------------------------------------------------------------------ documents

    def _rendered(self, conn: Connection[Any], members: dict[str, Any]) -> tuple[bytes, str]:
        for name in self._include:
            value = _VARIABLES[name].get()
            if value is not None:
                members.setdefault(name, value)
        if self._instance is not None and "instance" not in members:
            try:
                instance = self._instance(conn)
                if instance is not None:
                    if not _is_absolute(instance):
                        raise ValueError(f"{instance!r} is not an absolute URI")
                    members["instance"] = instance
            except Exception as failure:
                _log.error("instance= of ProblemDetailsMiddleware failed", exc_info=failure)
        if self._negotiate and _prefers_html(conn.headers.getlist("accept")):
            return _page(members).encode(), "text/html; charset=utf-8"
        return _document(members), _MEDIA_TYPE


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """
    Return what `responses=` of FastAPI takes, so that OpenAPI has the problems of these statuses.

    Args:
        statuses: 400 to 599; 422 has the errors of a validation.

    Returns:
        A dictionary for `FastAPI(responses=...)`, a router or a route.

    Raises:
        ValueError: A status is not that of an error.
    """
    return {
        status: {
            "description": Problem(status).members()["title"],
            "content": {_MEDIA_TYPE: {"schema": _schema(status)}},
        }
        for status in statuses
    }


def _schema(status: int) -> dict[str, Any]:
    text = {"type": "string"}
    uri = {"type": "string", "format": "uri-reference"}
    properties: dict[str, Any] = {
        "type": {**uri, "default": "about:blank"},
        "title": text,
        "status": {"type": "integer", "const": status},
        "detail": text,
        "instance": uri,
        "code": text,
        "request_id": text,
    }
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        of_one = {"detail": text, "pointer": text, "parameter": text, "type": text}
        error = {"type": "object", "properties": of_one, "required": ["detail"]}
        properties["errors"] = {"type": "array", "items": error}
    return {
        "title": "Problem",
        "type": "object",
        "properties": properties,
        "required": ["type", "title", "status"],
    }


def phrase(status: int) -> str:
    """
    Return the phrase of a status as RFC 9110 has it.
    """
    try:
        return _PHRASES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return "Client Error" if status < 500 else "Server Error"  # noqa: PLR2004


def _is_error(status: Any) -> bool:
    return isinstance(status, int) and 400 <= status <= 599  # noqa: PLR2004


def _is_absolute(uri: Any) -> bool:
    if not isinstance(uri, str):
        return False
    try:
        return bool(urlsplit(uri).scheme) and not re.search(r"[\x00-\x20\x7f]", uri)
    except ValueError:
        return False


def _leaf(exc: Exception) -> Exception:
    """
    Return what a group stands for that has a single exception in it, as task groups make them.
    """
    while isinstance(exc, ExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def _is_its_own(application: Any) -> bool:
    """
    Say whether the application has its own answer to unknown exceptions.
    """
    handlers = getattr(application, "exception_handlers", None)
    if getattr(application, "debug", False) is True:
        return True
    return isinstance(handlers, Mapping) and (Exception in handlers or 500 in handlers)  # noqa: PLR2004


def _path(conn: Connection[Any]) -> str:
    return ascii(view_of(conn).get("path", ""))[1:-1]


def _given(body: bytes, media_type: str, status: int, echo_input: bool) -> dict[str, Any] | None:  # noqa: FBT001
    """
    Return the members that a response without a form of its own has; None where it has one.
    """
    if media_type == "text/plain":
        try:
            is_bare = body.decode() in {phrase(status), HTTPStatus(status).phrase}
        except ValueError:
            is_bare = False
        return {} if is_bare else None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.keys() != {"detail"}:
        return None
    return _from_detail(document["detail"], echo_input=echo_input)


def _made(
    status: int, members: dict[str, Any], headers: Mapping[str, str] | None = None
) -> Problem:
    detail = members.pop("detail", None)
    return Problem(status, detail, headers=headers, **members)


def _from_detail(detail: Any, *, echo_input: bool) -> dict[str, Any]:
    # RFC 9457 section 3.1.4: the member `detail` is a text.
    if detail is None:
        return {}
    if isinstance(detail, str):
        return {"detail": detail}
    if isinstance(detail, list):
        return {"errors": [_error(each, echo_input=echo_input) for each in detail]}
    return {"data": detail}


def _error(error: Any, *, echo_input: bool) -> Any:
    """
    Return one error of a validation as RFC 9457 section 3 shows it: a detail and where it is.
    """
    if isinstance(error, str):
        return {"detail": error}
    if not isinstance(error, dict) or "msg" not in error:
        return error
    made = {"detail": error["msg"]}
    match error.get("loc"):
        case ["body", *_] if error.get("type") == "json_invalid":
            pass  # FastAPI has the position in the text there
        case ["body", *path]:
            made["pointer"] = "#" + "".join(f"/{_token(each)}" for each in path)
        case [_, name, *_]:
            made["parameter"] = str(name)
    if "type" in error:
        made["type"] = error["type"]
    if echo_input:
        made |= {name: error[name] for name in ("input", "ctx") if name in error}
    return made


def _token(key: object) -> str:
    # RFC 6901 sections 3 and 6.
    return quote(str(key).replace("~", "~0").replace("/", "~1"), safe="~!$&'()*+,;=:@")


def _document(members: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(members, ensure_ascii=False, allow_nan=False, default=str)
        return text.encode()
    except Exception as failure:
        _log.error("A member of a problem cannot be written as JSON", exc_info=failure)
        safe = {key: members[key] for key in ("type", "title", "status") if key in members}
        return json.dumps(safe).encode()


def _page(members: dict[str, Any]) -> str:
    title = escape(f"{members['status']} {members['title']}")
    rest = [escape(str(members[name])) for name in ("detail", "request_id") if name in members]
    paragraphs = "".join(f"<p>{each}</p>" for each in rest)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<h1>{title}</h1>{paragraphs}</html>"
    )


def _prefers_html(accept: list[str]) -> bool:
    """
    Say whether HTML is named with a higher weight than JSON, or anything (RFC 9110 section 12.5.1).
    """
    html = other = 0.0
    for item in ",".join(accept).split(","):
        media_range, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        if media_range == "text/html":
            html = max(html, weight)
        elif media_range in {"*/*", "application/*", "application/json"} or (
            media_range.startswith("application/") and media_range.endswith("+json")
        ):
            other = max(other, weight)
    return html > other
