"""
The command `httpmw`; `python -m httpmw` is the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130

_EPILOG = """
exit codes:
  0  nothing to change, or it was changed or shown
  1  with --check: something would be changed
  2  the command line is wrong, or the extra `migrate` is not installed
  3  some files could not be read, parsed or written; the others were done
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        arguments: The command line without the name of the command; None: that of the process.

    Returns:
        The exit code; the help of each command lists them.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    missing = [path for path in options.paths if not Path(path).exists()]
    if missing:
        parser.error(f"there is no {missing[0]!r}")
    if options.write and options.check:
        parser.error("--write and --check exclude each other")
    try:
        from .migrate._run import Options, run  # noqa: PLC0415 - libcst is an extra
    except ImportError as exc:
        print(exc, file=sys.stderr)
        return _EXIT_USAGE
    try:
        return run(
            Options(
                paths=options.paths,
                write=options.write,
                check=options.check,
                to=options.to,
                as_json=options.json,
                verify=options.verify,
                max_bytes=options.max_bytes,
            ),
            sys.stdout,
            sys.stderr,
        )
    except KeyboardInterrupt:
        print("interrupted; every file is in its old or in its new version", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # `httpmw migrate . | head`: what is left to print has no reader.
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    from . import __version__  # noqa: PLC0415 - `httpmw.cli` is loaded by nobody else

    parser = argparse.ArgumentParser(prog="httpmw", description="Tools for httpmw.")
    parser.add_argument("--version", action="version", version=f"httpmw {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    migrate = commands.add_parser(
        "migrate",
        help="rewrite `call_next` middleware into generators",
        description="Rewrite `call_next` middleware into generators. Without an option nothing "
        "is written: the changes are printed as a diff.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    migrate.add_argument("paths", nargs="+", metavar="PATH", help="a file or a folder")
    migrate.add_argument("--write", action="store_true", help="change the files")
    migrate.add_argument(
        "--check", action="store_true", help="exit with 1 when something would be changed"
    )
    migrate.add_argument(
        "--to",
        choices=["generator", "drop-in"],
        default="generator",
        help="`drop-in` swaps imports to httpmw.compat only (default: generator)",
    )
    migrate.add_argument("--json", action="store_true", help="print JSON")
    migrate.add_argument(
        "--verify",
        action="store_true",
        help="run old and new version side by side, and leave what differs as it was",
    )
    migrate.add_argument(
        "--max-bytes",
        type=int,
        default=4_000_000,
        metavar="N",
        help="leave larger files out (default: 4000000)",
    )
    return parser
