# What differs between two runs, and which of it is a listed improvement.
# A difference and the rule that explains it are read together, so they stand together.
#
# Rule 1: the messages of a body are not compared one by one, only its parts that are not empty:
# Starlette's class sends each part with `more_body` and an empty one at the end, httpmw passes on
# what the app sends.
# Rule 2: an improvement has a name and a rule that recognises it; what no rule explains is a
# difference. A rule looks at what was observed, never at which function it was.

from __future__ import annotations

import ast
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from starlette.exceptions import HTTPException

from httpmw._errors import HTTPMWError

from ._runs import Outcome

__all__ = ["IMPROVEMENTS", "Facts", "compare", "remedy"]

_MOMENT: Final = re.compile(r"- the (app|response) .* -")
_HEADERS: Final = re.compile(r"(?<=response \d{3} )\[.*?\)\]")
# So long may a text be that is told whole.
_EXCERPT: Final = 160
_NO_BODY: Final = frozenset({204, 205, 304})


@dataclass(frozen=True, slots=True)
class Facts:
    """
    What the old version of a function does, as far as it can be read off its source.

    Attributes:
        other_request: It gives `call_next` something else than its request, or sets the
            request's private `_receive` or `_body`.
        reads_stream: It reads `request.stream()`.
        rebuilds_headers: It makes a dictionary of a response's headers.
        sets_body: It replaces the body of a response, or reads it, or a helper beside it does.
        reads_media_type: It looks at the media type of a response.
        own_task: It runs `call_next` in a task of its own.
        delegates: It hands `call_next` to another function.
        forgets: The new version is known to take context variables back at the response start.
        drop_in: The new version stands on the drop-in.
        sets_background: It may set a background task on a response.
    """

    other_request: bool = False
    reads_stream: bool = False
    rebuilds_headers: bool = False
    sets_body: bool = False
    reads_media_type: bool = False
    own_task: bool = False
    delegates: bool = False
    forgets: bool = False
    drop_in: bool = False
    sets_background: bool = False

    @classmethod
    def of(cls, text: str, *, forgets: bool = False, drop_in: bool = False) -> Facts:
        """
        Read them off the source of the function and of what it calls.
        """
        return cls(
            other_request=bool(
                re.search(r"\w\((\w+\.)*Request\(", text)
                or re.search(r"\b(request|req|conn)\._(receive|body)\b", text)
                or re.search(r"^\s*\w+ = (\w+\.)*Request\(", text, re.MULTILINE)
            ),
            reads_stream=".stream()" in text or "receive()" in text,
            rebuilds_headers="dict(" in text and ".headers" in text,
            sets_body="body" in text,
            reads_media_type="media_type" in text,
            own_task=bool(re.search(r"(create_task|ensure_future|gather|shield)\(", text)),
            delegates=_delegates(text),
            forgets=forgets,
            drop_in=drop_in,
            sets_background="background" in text,
        )


def _delegates(text: str) -> bool:
    function = ast.parse(text).body[0]
    names = [each.arg for each in ast.walk(function) if isinstance(each, ast.arg)]
    return any(
        isinstance(arg, ast.Name) and arg.id in names[1:3] and len(node.args) > 1
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        for arg in node.args[-1:]
    )


Rule = Callable[[Outcome, Outcome, Facts, set[str]], set[str]]


def _http_exception_answers(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:
    # Starlette answers an HTTPException of a middleware with 500. One of a middleware function
    # that is delegated to answers as well: the outer function goes on with that response.
    error = old.raised
    if not isinstance(error, HTTPException) or old.status is not None:
        return set()
    before, now = _without_moments(old.trace), _without_moments(new.trace)
    if facts.delegates:
        return differ - {"seen"} if before == now[: len(before)] else set()
    if new.error is not None and not new.error[2]:  # that of a discarded app is raised as well
        return set()
    if new.status != error.status_code:
        return set()
    return {"status", "headers", "body", "end", "error", *(["trace"] if before == now else [])}


def _no_invented_end(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:
    # An app that breaks off in mid-body: Starlette's class sends a proper last message all the
    # same, so that the client takes the half for the whole; and so does who reads the body.
    if not old.broke_off:
        return set()
    if facts.sets_body:
        return differ - {"seen"}
    explained = {"end"} if old.complete and not new.complete and new.error else set()
    before, now = _without_moments(old.trace), _without_moments(new.trace)
    if explained and before == now:
        explained.add("trace")
    return explained


def _no_task_behind_a_half(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:  # noqa: ARG001
    # The same: a background task that is set on the response runs behind it as if all was well.
    ended = "- the response ends -"
    if not (old.broke_off and old.complete and not new.complete and new.error):
        return set()
    if ended not in old.trace:
        return set()
    before = _without_moments(old.trace[: old.trace.index(ended)])
    return {"trace", "end"} if before == _without_moments(new.trace) else set()


def _app_not_cancelled(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:
    # What goes wrong in a background task that is set on the response cancels the app around it,
    # with its own background task, in Starlette; now the app has ended by then.
    if not facts.sets_background or not old.error or "error" in differ:
        return set()
    return {"later"} if old.later == new.later[: len(old.later)] else set()


def _content_length(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:  # noqa: ARG001
    wrong = [v for v in old.header("content-length") if v != str(len(old.body))]
    right = all(v == str(len(new.body)) for v in new.header("content-length"))
    if "body" in differ or not wrong or not right or old.status in _NO_BODY:
        return set()
    return (
        {"headers"} if _others(old, "content-length") == _others(new, "content-length") else set()
    )


def _headers_kept(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:  # noqa: ARG001
    # `headers=dict(response.headers)` keeps one of several headers of the same name.
    if not facts.rebuilds_headers:
        return set()
    fewer, more = (
        Counter(pair for pair in each.headers if pair[0] != "content-length") for each in (old, new)
    )
    lost = more - fewer
    repeated = Counter(name for name, _ in new.headers)
    if fewer - more or any(repeated[name] < 2 for name, _ in lost):  # noqa: PLR2004 - repeated
        return set()
    return {"headers", *_headers_in_trace(old, new)}


def _stale_headers(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:
    # An etag or a digest that belongs to the body that was replaced, and the length of one that
    # is replaced as it streams.
    stale = {"etag", "content-md5", "digest", "content-digest", "repr-digest", "content-length"}
    if not facts.sets_body or _others(old, *stale) != _others(new, *stale):
        return set()
    added = {pair for pair in new.headers if pair[0] in stale} - set(old.headers)
    # In answer to HEAD it is the length of the body that is not sent.
    if added - {("content-length", str(len(each.body))) for each in (old, new)}:
        return set()
    if _loses_its_length(old, new):
        return set()
    return {"headers", *_headers_in_trace(old, new)} if "body" not in differ else set()


def _loses_its_length(old: Outcome, new: Outcome) -> bool:
    right = old.header("content-length") == [str(len(old.body))]
    return right and old.unchanged and not new.header("content-length")


def _length_unknown(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:
    # Not an improvement but a listed limit: a body that an iterator gives has no length.
    if not facts.sets_body or not _loses_its_length(old, new) or "body" in differ:
        return set()
    stale = {"etag", "content-md5", "digest", "content-digest", "repr-digest", "content-length"}
    if _others(old, *stale) != _others(new, *stale):
        return set()
    return {"headers", *_headers_in_trace(old, new)}


def _headers_in_trace(old: Outcome, new: Outcome) -> set[str]:
    # Where a response was told to somebody, its headers stand in the trace.
    before, now = ([_HEADERS.sub("", line) for line in each.trace] for each in (old, new))
    return {"trace"} if before == now else set()


def _chunks_kept(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:  # noqa: ARG001
    # A body that was read goes on in the parts in which the app sent it, and the parts of a body
    # that no client sees are not transformed.
    if not facts.sets_body or old.body != new.body:
        return set()
    unseen = old.method == "HEAD" or old.status in _NO_BODY
    return {"body"} if unseen or len(new.chunks) > len(old.chunks) else set()


def _none_allowed(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:  # noqa: ARG001
    # A response to HEAD and one with status 204 or 304 has no body, whatever is assigned.
    if not facts.sets_body or not (old.method == "HEAD" or old.status in _NO_BODY) or new.body:
        return set()
    same = _others(old, "content-length") == _others(new, "content-length")
    return {"body", "headers"} if same else {"body"}


def _never_stolen(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:  # noqa: ARG001
    # What a middleware reads of a response is lost for the client in Starlette.
    if not facts.sets_body or old.body or not new.body or old.status != new.status:
        return set()
    return (
        {"body", "headers"}
        if _others(old, "content-length") == _others(new, "content-length")
        else set()
    )


def _media_type(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:  # noqa: ARG001
    # `response.media_type` is always None in Starlette.
    if not facts.reads_media_type or old.body != new.body:
        return set()
    return {"body", "headers"}


def _request_honoured(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:
    # `call_next(other_request)`: Starlette ignores the argument.
    if not facts.drop_in or not facts.other_request:
        return set()
    if not ("seen" in differ or (old.error and not new.error)):
        return set()
    return {"seen", "status", "headers", "body", "error", "trace", "end"}


def _patched_receive(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:
    # One that gives the body time and again makes streamed responses fail behind their start.
    if not facts.other_request or "seen" in differ or new.error:
        return set()
    if not old.error:
        return {"later"} if old.later == new.later[: len(old.later)] else set()
    explained = {"status", "headers", "body", "error", "end", "later"}
    if _without_moments(old.trace) == _without_moments(new.trace):
        explained.add("trace")
    return explained


def _stream_delivered(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:
    # What a middleware read of `request.stream()` is lost for the app in Starlette.
    if not facts.reads_stream or len("".join(old.seen)) >= len("".join(new.seen)):
        return set()
    return differ & {"seen", "body", "headers"}


def _clear_error(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:  # noqa: ARG001
    # The contract was broken in both; httpmw says so, Starlette fails on the way.
    checked = isinstance(new.raised, TypeError) and str(new.raised) == "no response"
    if old.raised is None or not (checked or isinstance(new.raised, HTTPMWError)):
        return set()
    if isinstance(old.raised, HTTPMWError) or old.status is not None or new.status is not None:
        return set()
    if len(old.seen) > len(new.seen) and _without_moments(old.trace) == _without_moments(new.trace):
        return {"error", "seen", "trace"}  # the app was run a second time
    return {"error"}


def _discarded_app(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:  # noqa: ARG001
    # An app whose response nobody wants any more is told so in its `send`; with Starlette it
    # runs on behind the answer, and what it raises then is raised.
    if not old.broke_off or new.broke_off or new.error or not (old.error and old.error[2]):
        return set()
    return {"error"}


def _own_response(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:  # noqa: ARG001
    # What another middleware function answered can be read like what the app answered.
    if not isinstance(old.raised, AttributeError) or "body_iterator" not in str(old.raised):
        return set()
    return differ if facts.sets_body else set()


def _variables_reset(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:  # noqa: ARG001
    # What goes wrong in a `finally` before a variable is reset there left it set.
    return {"left"} if old.error and new.left.keys() <= old.left.keys() else set()


def _own_task(old: Outcome, new: Outcome, facts: Facts, differ: set[str]) -> set[str]:  # noqa: ARG001
    # Not an improvement but a listed limit: it is refused with an error.
    return differ if facts.own_task and facts.drop_in else set()


# The rules about bodies come before those about the headers that describe them.
_RULES: Final[dict[str, Rule]] = {
    "http-exception-answers": _http_exception_answers,
    "no-invented-end": _no_invented_end,
    "no-task-behind-a-half": _no_task_behind_a_half,
    "app-not-cancelled": _app_not_cancelled,
    "patched-receive-harmless": _patched_receive,
    "no-body-where-none-may-be": _none_allowed,
    "reading-never-steals": _never_stolen,
    "chunks-kept": _chunks_kept,
    "media-type-known": _media_type,
    "content-length-corrected": _content_length,
    "repeated-headers-kept": _headers_kept,
    "stale-headers-dropped": _stale_headers,
    "length-unknown": _length_unknown,
    "stream-delivered": _stream_delivered,
    "clear-error": _clear_error,
    "discarded-app-is-told": _discarded_app,
    "own-response-readable": _own_response,
    "other-request-honoured": _request_honoured,
    "variables-reset": _variables_reset,
    "task-of-its-own-refused": _own_task,
}

IMPROVEMENTS: Final = tuple(_RULES)
"""
The names of the improvements that are recognised.
"""


def compare(old: Outcome, new: Outcome, facts: Facts) -> tuple[list[str], list[str]]:
    """
    Compare two runs.

    Args:
        old: The run before.
        new: The run afterwards.
        facts: What the function does.

    Returns:
        What differs, in words, and the names of the improvements.
    """
    told = dict(_told(old, new, facts))
    left = set(told)
    improvements = []
    for name, rule in _RULES.items():
        if not left:
            break
        explained = rule(old, new, facts, left) & left
        if explained:
            improvements.append(name)
            left -= explained
    return [told[each] for each in told if each in left], improvements


def _told(old: Outcome, new: Outcome, facts: Facts) -> Iterator[tuple[str, str]]:
    if old.error != new.error:
        yield "error", f"raised {_error(old)} before, {_error(new)} now"
    if old.status != new.status:
        yield "status", f"status {old.status} before, {new.status} now"
    if old.headers != new.headers:
        before = [pair for pair in old.headers if pair not in new.headers]
        now = [pair for pair in new.headers if pair not in old.headers]
        what = f"{before} before, {now} now" if before or now else "in another order"
        yield "headers", f"headers {what}"
    if old.chunks != new.chunks:
        yield "body", f"body {_excerpt(repr(old.chunks))} before, {_excerpt(repr(new.chunks))} now"
    if old.complete != new.complete:
        what = f"last message sent: {old.complete} before, {new.complete} now"
        if old.broke_off and old.complete:
            what = f"{_INVENTED} ({what})"
        yield "end", what
    if old.seen != new.seen:
        yield "seen", f"the app saw {_first(old.seen, new.seen)}"
    if old.trace != new.trace:
        yield "trace", f"side effects: {_first(old.trace, new.trace)}"
    if old.beside != new.beside:
        yield "beside", f"side effects in other tasks: {_first(old.beside, new.beside)}"
    # An app whose response is not wanted is told so, and what it does then is its own affair.
    if old.own and not facts.forgets and old.later != new.later:
        yield "later", f"behind its call the app saw {_first(old.later, new.later)}"
    # A context manager may choose to leave a variable set where there is an exception.
    if old.left != new.left and not new.broke_off:
        yield "left", f"context variables left set: {old.left} before, {new.left} now"


_INVENTED: Final = (
    "after the last chunk Starlette's class says that the body is complete although the app had "
    "failed; httpmw does not"
)
_REMEDIES: Final = {
    "raised": "Look at what raises there, and whether the new version should raise it.",
    "status": "Compare what both versions return for that request.",
    "headers": "Compare what both versions set on the response for that request.",
    "body": "Compare what both versions do with the body of the response for that request.",
    "after the last chunk": "Nothing has to be done for that: a body that broke off looks broken "
    "off.",
    "last message": "Look which version sends the whole body.",
    "the app saw": "Change what the app shall see before the `yield`: `conn.scope`, "
    "`conn.replace_body(data)`, `conn.state`.",
    "side effects in other": "Await the task, or start it before the `yield`.",
    "side effects": "Something is called in another order, or not at all. What shall run before "
    "the response is sent stands before `yield response`, and what shall run behind it "
    "stands behind.",
    "behind its call": "Write `yield response` before what was set is taken back.",
    "context variables": "Take back in a `finally` what was set.",
}


def remedy(what: str) -> str:
    """
    Say what to do about a difference.
    """
    return next((each for start, each in _REMEDIES.items() if what.startswith(start)), "")


def _first(old: list[str], new: list[str]) -> str:
    for index in range(max(len(old), len(new))):
        before = old[index] if index < len(old) else "(nothing more)"
        now = new[index] if index < len(new) else "(nothing more)"
        if before != now:
            same = (a == b for a, b in zip(before, now, strict=False))
            start = max(0, sum(itertools.takewhile(bool, same)) - _EXCERPT // 3)
            before, now = (_excerpt(each, start) for each in (before, now))
            return f"`{before}` before, `{now}` now (the {index + 1}. of {len(old)})"
    return ""


def _excerpt(text: str, start: int = 0) -> str:
    if len(text) <= _EXCERPT:
        return text
    end = start + _EXCERPT
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"


def _error(outcome: Outcome) -> str:
    if outcome.error is None:
        return "nothing"
    return f"{outcome.error[1]!r}{' (the object that the app raised)' if outcome.error[2] else ''}"


def _others(outcome: Outcome, *names: str) -> list[tuple[str, str]]:
    return [pair for pair in outcome.headers if pair[0].lower() not in names]


def _without_moments(trace: list[str]) -> list[str]:
    return [line for line in trace if not _MOMENT.fullmatch(line)]
