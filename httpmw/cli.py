"""
The command `httpmw`; `python -m httpmw` is the same.
"""

from __future__ import annotations

import argparse
import codecs
import io
import os
import sys
import traceback
from collections.abc import Sequence

__all__ = ["main"]

_EXIT_USAGE = 2
_EXIT_FAILED = 4
_EXIT_INTERRUPTED = 130

_EPILOG = """
exit codes:
  0  nothing to change, or it was changed or shown
  1  with --check: something would be changed, and there was no fault
  2  the command line is wrong, or the extra `migrate` is not installed
  3  some files or folders could not be listed, read, parsed or written, or made the codemod
     fail; the others were done
  4  the command itself failed: its traceback was printed, and nothing more was written
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
    for stream in (sys.stdout, sys.stderr):
        # The name of a file, and what stands in it, need not fit the encoding of the terminal.
        if isinstance(stream, io.TextIOWrapper):
            utf8 = codecs.lookup(stream.encoding).name == "utf-8"
            stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    try:
        return int(options.command(options))
    except KeyboardInterrupt:
        print(options.interrupted, file=sys.stderr)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # `httpmw migrate . | head`: what is left to print has no reader.
        sys.stderr.close()
        return 0
    except Exception:  # noqa: BLE001 - Python's own exit code for it is that of `--check`
        traceback.print_exc()
        return _EXIT_FAILED


def _migrate(options: argparse.Namespace) -> int:
    # Not that of `pathlib`, which raises for a path that is too long or may not be looked at.
    missing = [path for path in options.paths if not os.path.exists(path)]  # noqa: PTH110
    if missing:
        options.parser.error(f"there is no {missing[0]!r}")
    if options.write and options.check:
        options.parser.error("--write and --check exclude each other")
    try:
        from .migrate._run import Options, run  # noqa: PLC0415 - libcst is an extra
    except ImportError as exc:
        print(exc, file=sys.stderr)
        return _EXIT_USAGE
    return run(
        Options(
            paths=options.paths,
            write=options.write,
            check=options.check,
            to=options.to,
            as_json=options.json,
            verify=options.verify,
            max_bytes=options.max_bytes,
            report=options.report,
        ),
        sys.stdout,
        sys.stderr,
    )


def _parser() -> argparse.ArgumentParser:
    from . import __version__  # noqa: PLC0415 - `httpmw.cli` is loaded by nobody else
    from .show._commands import add_explain, add_show  # noqa: PLC0415 - see above

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
        "--report",
        metavar="FILE",
        help="write one HTML page for a reviewer: what changes side by side, and all that is said",
    )
    migrate.add_argument(
        "--max-bytes",
        type=int,
        default=4_000_000,
        metavar="N",
        help="leave larger files out (default: 4000000)",
    )
    migrate.set_defaults(
        command=_migrate,
        parser=parser,
        interrupted="interrupted; every file is in its old or in its new version",
    )
    add_show(commands)
    add_explain(commands)
    return parser
