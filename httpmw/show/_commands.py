# The commands `httpmw show` and `httpmw explain`.

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import Any, Final

_EXIT_WARNINGS: Final = 1
_EXIT_USAGE: Final = 2

_SHOW_EPILOG: Final = """
exit codes:
  0  it was shown
  1  with --check: there is a warning
  2  the command line is wrong, there is no such application, or a layer cannot be made
"""


def add_show(commands: Any) -> None:
    """
    Add `show` to the commands of a parser.
    """
    parser = commands.add_parser(
        "show",
        help="draw an application: its layers, the outermost first, and its routes",
        description="Draw an application: its layers, the outermost first, its routers and "
        "routes, and warnings of what is known to do harm. No request is sent.",
        epilog=_SHOW_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_application(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="exit with 1 when there is a warning")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="CODE",
        help="leave out warnings of this code, such as http-only-gate, that you have looked at",
    )
    parser.set_defaults(command=_show, interrupted="interrupted")


_EXPLAIN_EPILOG: Final = """
examples:
  httpmw explain main:app GET /users/7
  httpmw explain main:app POST /users -H "content-type: application/json" -d '{"name": "Ann"}'
  httpmw explain main:app WEBSOCKET /chat
  httpmw explain main:app GET / --repeat 100 --html report.html

exit codes:
  0  the application has answered
  1  it has raised, or given no response
  2  the command line is wrong, or there is no such application, or it cannot start
"""


def add_explain(commands: Any) -> None:
    """
    Add `explain` to the commands of a parser.
    """
    parser = commands.add_parser(
        "explain",
        help="send one request through an application, and tell what happens at each layer",
        description="Send one request through an application in this process, without a server, "
        "and tell what happens at each layer, with its own time. The application is started "
        "before and shut down afterwards.",
        epilog=_EXPLAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_application(parser)
    parser.add_argument(
        "method", metavar="METHOD", help="GET, POST, ...; WEBSOCKET for a handshake"
    )
    parser.add_argument("path", metavar="PATH", help="the path, with a query string")
    parser.add_argument(
        "-H", "--header", action="append", default=[], metavar="'NAME: VALUE'", help="a header"
    )
    parser.add_argument("-d", "--data", default="", help="the body; @FILE reads it from a file")
    parser.add_argument(
        "--repeat",
        type=int,
        default=1,
        metavar="N",
        help="send it N times and tell of the run whose time is the median",
    )
    parser.add_argument("--html", metavar="FILE", help="write one page with a waterfall")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--no-lifespan", action="store_true", help="do not start and shut down the application"
    )
    parser.set_defaults(command=_explain, interrupted="interrupted")


def _explain(options: argparse.Namespace) -> int:
    import functools  # noqa: PLC0415 - as those below
    from pathlib import Path  # noqa: PLC0415

    import anyio  # noqa: PLC0415

    from ._client import StartupError  # noqa: PLC0415
    from ._explain import explain  # noqa: PLC0415
    from ._load import LoadError  # noqa: PLC0415
    from ._page import explained_page  # noqa: PLC0415

    try:
        headers = [_header(each) for each in options.header]
        data = options.data
        body = Path(data[1:]).read_bytes() if data.startswith("@") else data.encode()
        if options.repeat < 1:
            raise LoadError("--repeat takes a number from 1 on")
        if not options.path.startswith("/"):
            raise LoadError(f"a path begins with a slash, not as {options.path!r}")
        app = _loaded(options)
        found = anyio.run(
            functools.partial(
                explain,
                app,
                options.method.upper(),
                options.path,
                headers=headers,
                body=body,
                repeat=options.repeat,
                run_lifespan=not options.no_lifespan,
            )
        )
    except (LoadError, OSError) as exc:
        print(exc, file=sys.stderr)
        return _EXIT_USAGE
    except StartupError as exc:
        print(
            f"the application could not start: {exc}\n--no-lifespan leaves that out",
            file=sys.stderr,
        )
        return _EXIT_USAGE
    if options.html:
        Path(options.html).write_text(explained_page(found), encoding="utf-8")
    print(json.dumps(found.as_json(), indent=2) if options.json else found)
    return _EXIT_WARNINGS if found.exception or found.status is None else 0


def _header(text: str) -> tuple[str, str]:
    from ._load import LoadError  # noqa: PLC0415 - see above

    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise LoadError(f"a header is 'NAME: VALUE', not {text!r}")
    return name.strip(), value.strip()


def _add_application(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "app",
        metavar="APP",
        help="module:app or file.py:app, as for uvicorn; ':app' may be left out",
    )
    parser.add_argument(
        "--factory", action="store_true", help="the name is that of a function that makes the app"
    )
    parser.add_argument(
        "--app-dir", metavar="DIR", help="look for modules there first (default: this folder)"
    )


def _loaded(options: argparse.Namespace) -> Any:
    from ._load import load  # noqa: PLC0415 - only the command that needs it

    return load(options.app, folder=options.app_dir, factory=options.factory)


def _show(options: argparse.Namespace) -> int:
    from ._load import LoadError, traced  # noqa: PLC0415 - see above
    from ._model import CODES  # noqa: PLC0415 - see above
    from ._tree import tree  # noqa: PLC0415 - see above

    try:
        if unknown := set(options.ignore).difference(CODES):
            raise LoadError(f"--ignore takes one of {', '.join(CODES)}, not {min(unknown)!r}")
        app = _loaded(options)
        try:
            found = tree(app)
        except Exception as exc:
            raise LoadError(f"{traced(exc)}\na layer could not be made") from exc
    except LoadError as exc:
        print(exc, file=sys.stderr)
        return _EXIT_USAGE
    kept = [each for each in found.warnings if each.code not in options.ignore]
    found = replace(found, warnings=tuple(kept))
    print(json.dumps(found.as_json(), indent=2) if options.json else found)
    return _EXIT_WARNINGS if options.check and found.warnings else 0
