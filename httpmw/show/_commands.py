# The commands `httpmw show` and `httpmw explain`.

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final

_EXIT_WARNINGS: Final = 1
_EXIT_USAGE: Final = 2

_SHOW_EPILOG: Final = """
exit codes:
  0  it was shown
  1  with --check: there is a warning
  2  the command line is wrong, or there is no such application
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
    parser.set_defaults(command=_show, interrupted="interrupted")


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
    from ._load import LoadError  # noqa: PLC0415 - see above
    from ._tree import tree  # noqa: PLC0415 - see above

    try:
        found = tree(_loaded(options))
    except LoadError as exc:
        print(exc, file=sys.stderr)
        return _EXIT_USAGE
    print(json.dumps(found.as_json(), indent=2) if options.json else found)
    return _EXIT_WARNINGS if options.check and found.warnings else 0
