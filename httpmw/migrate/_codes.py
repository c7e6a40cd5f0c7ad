# Every code that `httpmw migrate` reports, and the one place where its words are written.
#
# Rule 1: HM1xx is an error: the function, or the file, was left exactly as it was.
# Rule 2: HM2xx is a notice: it was converted, and something changed or is left to do by hand.
# Rule 3: a code is never used again for something else.
#
# A code is said by `unit.say("HM2xx", node, ...)` where its cause is seen: what a variable holds in
# `following/_values`, a path in `following/_flow`, the function as a whole in
# `following/_function`, what only the drop-in does in `writing/_dropin`; of files and the project
# in `_convert`, `_files` and `_project`.
#
# docs/migrate-codes.md is generated from this table by `python -m tools.migrate_codes`.

from __future__ import annotations

from dataclasses import dataclass

from ._model import Severity

__all__ = ["CODES", "Code"]


@dataclass(frozen=True, slots=True)
class Code:
    """
    One thing that can be said about a function or a file.

    Attributes:
        code: Such as `HM101`.
        title: A few words.
        message: What is the case; `{...}` is filled in.
        remedy: What to write instead.
        why: Why it is not converted, or what changed; a paragraph for the docs.
    """

    code: str
    title: str
    message: str
    remedy: str
    why: str

    @property
    def severity(self) -> Severity:
        return "error" if self.code.startswith("HM1") else "notice"


_ALL = (
    Code(
        "HM101",
        "call_next leaves the function",
        "`{name}` is used as a value here: {what}.",
        "Make the callee a middleware function too and delegate to it "
        "(`response = yield callee({conn})`), or write its code in here.",
        "A generator has no `call_next` that it could hand on. Where the callee is a function in "
        "the same run it is converted as well; here it is not, or what happens to `call_next` "
        "there is not known. An engine that wraps `call_next` is better split into a check "
        "before and a check after, or kept as plain ASGI.",
    ),
    Code(
        "HM102",
        "The app is run in a task of its own",
        "`{name}(...)` is not awaited in place but given to `{what}`.",
        "For a time limit write `{conn}.fail_after(seconds)` before the yield; to run something "
        "beside the app start a task for that, and end it after `yield response`.",
        "The inner app runs in the request's own task. Racing it against something else, "
        "shielding it or starting it in a task group has no counterpart.",
    ),
    Code(
        "HM103",
        "The app is called again",
        "`{name}` can be called a second time here, after it was called already.",
        "Call the app once; retry in the client, in the endpoint or in the proxy.",
        "Starlette runs the endpoint again but never gives its second response: it raises an "
        "`AssertionError`, or the first exception once more. httpmw runs the app once.",
    ),
    Code(
        "HM104",
        "call_next in a nested function",
        "`{name}` is used inside of {what}.",
        "Call the app in the middleware function itself: yield there, and hand the response to "
        "the nested function.",
        "A yield belongs to the function it stands in. A nested function, a lambda or a "
        "comprehension that calls the app cannot yield for the function around it.",
    ),
    Code(
        "HM105",
        "The parameters are not (request, call_next)",
        "the function has the parameters ({what}), where (request, call_next) was expected.",
        "Give it these two parameters, or convert it by hand.",
        "The parameters are found by their position. With `*args`, defaults or more parameters "
        "it is not known which of them are the request and `call_next`.",
    ),
    Code(
        "HM106",
        "A decorator that expects a coroutine function",
        "the decorator `{what}` would get an async generator function.",
        "Do what the decorator does in the middleware function itself, or in a middleware "
        "function of its own.",
        "A decorator that awaits what it decorates fails with an async generator. Decorators "
        "that are known to leave the function alone, such as `typing.override`, are kept.",
    ),
    Code(
        "HM107",
        "A scope or a lock is held across the call",
        "`{what}` is held open while the app runs.",
        "For a time limit write `{conn}.fail_after(seconds)` before the yield, or use "
        "`asyncio.timeout`; open other scopes in the app, or close them before the yield.",
        "Scopes and task groups of anyio and trio, and locks that belong to a task, cannot be "
        "held across a yield; see the page about limits.",
    ),
    Code(
        "HM108",
        "The request is given another `receive`",
        "`{what}` replaces what the app reads, and the body was not read before.",
        "Write `{conn}.body_iterator = transform({conn}.body_iterator)` or "
        "`{conn}.replace_body(data)` before the yield.",
        "Starlette honours `request._receive = ...` where the body was not read before. httpmw "
        "has a public way to change the request body.",
    ),
    Code(
        "HM109",
        "The moment of a return cannot be kept",
        "the response is returned {what}.",
        "Put the response into a variable, leave the `try` or `with` statement, and yield it "
        "there.",
        "`yield response` comes back when everything is over. Where a `finally` block or a "
        "context manager has to run between the `return` and the response, the codemod keeps "
        "that order by yielding after the statement; here it cannot.",
    ),
    Code(
        "HM110",
        "The answer may be None",
        "`{what}` may be None here, before the app was called.",
        "Return a response on every path.",
        "Starlette answers 500 where `dispatch` returns None. A generator that yields None runs "
        "the app: the request would get through.",
    ),
    Code(
        "HM111",
        "The class has a `__call__` of its own",
        "the class overrides `__call__`, so it is plain ASGI already.",
        "Leave it, or write a `dispatch` and drop `__call__`.",
        "What stands in `__call__` of a subclass of `BaseHTTPMiddleware` is an ASGI app; there "
        "is no `call_next` in it.",
    ),
    Code(
        "HM112",
        "The base class is not in this run",
        "the base class `{what}` is not in the files that were given.",
        "Give the files of the base class as well, or register the base class beside a "
        "middleware function of your own.",
        "A class and the classes it derives from are converted together or not at all.",
    ),
    Code(
        "HM113",
        "The function is used in another way as well",
        "`{name}` is also used at {what}.",
        "Convert the other use first, or keep two functions.",
        "A function that became a generator cannot be awaited any more. Each use of it in the "
        "files of this run has to be a registration or a delegation.",
    ),
    Code(
        "HM114",
        "A registration that is not understood",
        "what is registered here is not known: `{what}`.",
        "Write `HTTPMiddleware` and pass a middleware function, when the function has been "
        "converted.",
        "The codemod follows names, imports, variables, annotations, attributes and what "
        "functions return. It found nothing here, or two things. What the registration could "
        "mean is left with it.",
    ),
    Code(
        "HM115",
        "It belongs to something that was left",
        "it belongs together with `{name}`, which was left: {what}.",
        "Mend that one first.",
        "Functions that call each other, classes that derive from each other, and a registration "
        "with what it registers are converted together or not at all.",
    ),
    Code(
        "HM116",
        "The received response is called",
        "`{name}` is called as an ASGI app.",
        "Send it with `yield {name}`, or by ending the function.",
        "The response that a yield gives is sent by httpmw.",
    ),
    Code(
        "HM117",
        "It is a generator already",
        "the function has a `yield` of its own.",
        "Convert it by hand.",
        "The yields of the function would be taken for those of a middleware function.",
    ),
    Code(
        "HM118",
        "It leans on the insides of Starlette's class",
        "`{what}` belongs to the insides of `BaseHTTPMiddleware`.",
        "Use what `HTTPMiddleware` and `AppResponse` offer.",
        "`dispatch_func`, the private `_StreamingResponse` and the like have no counterpart.",
    ),
    Code(
        "HM119",
        "The import is conditional",
        "`BaseHTTPMiddleware` is imported with a fallback.",
        "Import it in one way, or convert by hand.",
        "Where Starlette may be missing the fallback would have to be converted as well.",
    ),
    Code(
        "HM120",
        "The response body is wrapped in a way that is not understood",
        "the response is read or replaced in a way that is not understood: {what}.",
        "Read it with `await response.read()`, change it with `response.body = data` or "
        "`response.body_iterator = transform(response.body_iterator)`, and put what shall run "
        "after the last byte after `yield response`.",
        "What was received is the response of the app while it is being produced.",
    ),
    Code(
        "HM121",
        "The arguments do more than to name the request",
        "the arguments of `{name}` are ignored, but `{what}` does something when it is evaluated.",
        "Do it in a statement of its own before the call.",
        "Starlette ignores what `call_next` is given since 0.28, so the argument is dropped. "
        "Dropping this one would drop a call as well.",
    ),
    Code(
        "HM122",
        "It may not be HTTP",
        "`{name}` takes `call_next`, but is not known to be HTTP middleware: {what}.",
        "Where it is, give the files in which it is registered, or annotate its first parameter "
        "with `starlette.requests.Request`; where it is not, there is nothing to do.",
        "The name `call_next` is used by middleware of other kinds as well: of MCP servers such "
        "as FastMCP, of message queues, of RPC. A function that is registered nowhere in the run "
        "is converted only if its first parameter is a request by its name or its annotation, "
        "and never as a method of a class whose base is not in the run.",
    ),
    Code(
        "HM180",
        "The paired runs differ",
        "old and new version differ: {what}.",
        "{remedy} Convert it by hand, and report it where the codemod is wrong.",
        "`--verify` runs both versions against the same apps and requests. A difference leaves "
        "the function as it was. What differs is said first, then with which app and request, "
        "and whether what the project brings counts as true; after that what to look at.",
    ),
    Code(
        "HM190",
        "Not Python",
        "the file cannot be parsed: {what}.",
        "Mend the syntax, run the command with the Python that the file is for, or leave it out.",
        "A file that is no Python, or newer Python than the one that runs the command or the "
        "installed libcst knows, is left. So is one that is nested too deeply for the codemod: a "
        "chain of hundreds of `elif`, attributes, calls or operators.",
    ),
    Code(
        "HM191",
        "Not text",
        "the file cannot be decoded: {what}.",
        "Mend the encoding, or name it in a comment in the first two lines (PEP 263).",
        "The encoding is that of the byte order mark or of the PEP 263 comment, UTF-8 otherwise.",
    ),
    Code(
        "HM192",
        "It cannot be listed, read or written",
        "{what}.",
        "Mend the permissions, or leave it out.",
        "The file or the folder was left as it was. The rest of the run went on. What is no "
        "regular file, such as a named pipe or a device, is not opened: reading it may never end.",
    ),
    Code(
        "HM193",
        "Too large",
        "the file has {what} bytes, more than the limit.",
        "Raise the limit with `--max-bytes`, or leave the file out.",
        "A generated file of many megabytes would hold up the run.",
    ),
    Code(
        "HM195",
        "The codemod failed",
        "the conversion failed: {what}.",
        "Convert the file by hand, and report it.",
        "What the codemod writes is compiled before it is given out. A file that does not "
        "compile, or that makes the codemod fail, is left as it was.",
    ),
    Code(
        "HM201",
        "The argument of call_next was dropped",
        "`{what}` was given to `{name}` and had no effect.",
        "To change the request for the app edit `{conn}.scope`, or use "
        "`{conn}.replace_body(data)` or `{conn}.body_iterator`.",
        "Starlette ignores the argument since 0.28: size limits and changed bodies written this "
        "way do nothing. It goes on doing nothing.",
    ),
    Code(
        "HM202",
        "A dead assignment to the request was dropped",
        "`{what}` had no effect after the body was read.",
        "Nothing: what a middleware reads of the body is still delivered to the app.",
        "Starlette ignores `request._receive = ...` after `await request.body()` since 0.28, and "
        "`request._body = body` puts back what is there already.",
    ),
    Code(
        "HM203",
        "The time limit stops the app",
        "`asyncio.wait_for` became `asyncio.timeout`: when it is over the app is cancelled.",
        "Nothing, where that is what was meant; it needs asyncio. `{conn}.fail_after(seconds)` "
        "works on trio as well.",
        "In Starlette the endpoint went on running after the client had its 504.",
    ),
    Code(
        "HM204",
        "HTTPException answers",
        "`HTTPException` is raised here; Starlette answered 500, now it answers as it says.",
        "Nothing, where that is what was meant.",
        "An `HTTPException` that a middleware raises becomes the response that the application's "
        "handlers make of it.",
    ),
    Code(
        "HM205",
        "The app may have run already",
        "on one path the app was called already when `{name}` is reached.",
        "Move the first call out of the `try`, so that its exceptions are not swallowed.",
        "If the app raises at the first call, and an `except` swallows it, the second call "
        "raises: in Starlette the first exception again, after running the endpoint twice; here "
        "a `MiddlewareError` that has it as its cause. Both answer 500.",
    ),
    Code(
        "HM206",
        "A path without a response",
        "on one path the function returned None, which Starlette answered with 500.",
        "Answer there with `yield some_response`, where no response is meant to be an error.",
        "After the app has run, ending the function sends the received response. Before, it is "
        "an error as it was.",
    ),
    Code(
        "HM207",
        "Registered elsewhere",
        "`{name}` is not registered in the files of this run.",
        "Where it is registered write `HTTPMiddleware` for `BaseHTTPMiddleware`, and "
        '`http_middleware(app)` for `app.middleware("http")`.',
        "A function that became a generator cannot be registered with Starlette's class. "
        "Registrations in the files that are given are rewritten.",
    ),
    Code(
        "HM208",
        "The body is read or set in a better way",
        "{what}.",
        "Nothing.",
        "`response.body = data` corrects the content-length and keeps repeated headers such as "
        "`set-cookie`, of which `headers=dict(response.headers)` loses all but one.",
    ),
    Code(
        "HM209",
        "media_type is known now",
        "`{what}` was always None on the received response; now it is the real one.",
        "Look whether code behind it begins to work.",
        "Starlette's received response does not know its media type.",
    ),
    Code(
        "HM210",
        "What is read of a stream is still delivered",
        "the request stream is read here, which left the app without a body; now it gets it.",
        "Nothing, where that is what was meant.",
        "In Starlette the app got an empty body after `request.stream()` was read to its end.",
    ),
    Code(
        "HM211",
        "The request body is replaced",
        "`{what}` became `replace_body`, which corrects the content-length as well.",
        "Nothing.",
        "The headers that the app sees fit the body it reads.",
    ),
    Code(
        "HM212",
        "dispatch is called by hand",
        "`{what}` may call a function that is a generator now.",
        "In tests wrap it: `as_call_next(middleware.dispatch)(request, call_next)`, with "
        "`as_call_next` from `httpmw.testing`.",
        "`as_call_next` gives back a coroutine function with the old signature. Where it is plain "
        "of which class the middleware is, and the file is one of tests, the codemod writes it.",
    ),
    Code(
        "HM213",
        "The time limit is kept by httpmw",
        "`{what}` around the call became `fail_after`.",
        "Nothing: `TimeoutError` is raised at the yield, as before.",
        "A scope of anyio cannot be held across a yield; `conn.fail_after` does the same.",
    ),
    Code(
        "HM214",
        "A symbolic link",
        "it is a symbolic link to {what}.",
        "Give the file it leads to.",
        "A link is not followed inside of a folder, and never replaced by a file.",
    ),
    Code(
        "HM215",
        "The paired runs could not be made",
        "old and new version were not compared: {what}.",
        "Read the conversion, and run the tests of the project.",
        "`--verify` runs functions without their project, in a process of their own. Some cannot "
        "be run that way.",
    ),
    Code(
        "HM216",
        "The decorator still stands on Starlette's class",
        "`{what}` registers with the class of Starlette.",
        "Call `httpmw.compat.patch_starlette()` at start-up, or register it with "
        "`app.add_middleware(BaseHTTPMiddleware, dispatch=...)`.",
        "`--to drop-in` swaps imports only.",
    ),
    Code(
        "HM217",
        "An answer that may be None is checked",
        "`{what}` may be None, so it is compared before it is yielded.",
        "Drop the comparison where it is always a response.",
        "Starlette answers 500 where `dispatch` returns None. A generator that yields None runs "
        "the app, so the request would get through. What this file does not show to be a response "
        "is compared: a `TypeError` answers 500 as before. It is shown by a call of a response "
        "class, by a function of the file that returns one on every path, and by a comparison "
        "with None around the `return`.",
    ),
    Code(
        "HM218",
        "Context variables are taken back at the response start",
        "what `{what}` takes back is gone for the app behind its response start.",
        "Where streams or background tasks need it, write `yield response` before it is taken "
        "back.",
        "Starlette's class runs the app in a context of its own, in which what was set before the "
        "call stays. A middleware function shares the context of the app. So the codemod writes "
        "`yield response`, which comes back when everything is over, into the `try` or `with` "
        "that takes variables back. It does not where something else would lose its moment, or is "
        "not known: a context manager that is not defined in this run or does more, a `try` or "
        "`with` around it, a log line behind it, another response that is returned after the "
        "call, a function that others delegate to.",
    ),
    Code(
        "HM219",
        "The drop-in refuses a task of its own",
        "`{name}(...)` is given to `{what}`, which the drop-in refuses when it runs.",
        "For a time limit write `async with asyncio.timeout(seconds)` around "
        "`await call_next(request)`.",
        "The drop-in runs the app in the task of the request. `asyncio.wait_for` makes a task of "
        "its own on Python 3.11, and none from 3.12 on.",
    ),
    Code(
        "HM220",
        "The drop-in refuses a second call",
        "`{name}` can be called here after it gave a response, which the drop-in refuses when it "
        "runs.",
        "Call the app once; retry in the client, in the endpoint or in the proxy.",
        "Starlette runs the endpoint again and fails then; the drop-in runs it once, and says so "
        "with a `MiddlewareError`. After a call that raised it raises the same exception again, "
        "as Starlette does.",
    ),
    Code(
        "HM221",
        "The drop-in refuses a scope or a lock around the call",
        "`{what}` is held open while the app runs, which the drop-in refuses when it runs.",
        "For a time limit write `async with asyncio.timeout(seconds)`; for a lock take that of "
        "asyncio.",
        "Scopes and task groups of anyio cannot be held across the call, and a lock that belongs "
        "to a task cannot be released where the app sends a stream from another one.",
    ),
    Code(
        "HM222",
        "The docstring still describes call_next",
        "the docstring speaks of `{name}`, which is a `yield` now.",
        "Say in the docstring what the function does, and not how the app is called.",
        "Text is not rewritten: only a person can say what it means.",
    ),
)

CODES: dict[str, Code] = {each.code: each for each in _ALL}
"""
Every code, by its name.
"""
