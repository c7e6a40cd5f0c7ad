"""
What type-checks of the codemod. Checked by mypy and pyrefly, never run.
"""

from __future__ import annotations

from typing import Any, assert_type

from httpmw.cli import main
from httpmw.migrate import CODES, Code, Conversion, Converted, Diagnostic, Project, convert

conversion = convert("x = 1\n")
assert_type(conversion, Conversion)
assert_type(conversion.code, str)
assert_type(conversion.changed, bool)
assert_type(conversion.conversions, list[Converted])
assert_type(conversion.diagnostics, list[Diagnostic])
assert_type(conversion.diagnostics[0].as_dict(), dict[str, Any])

convert("x = 1\n", path="x.py", to="drop-in", project=Project())
convert("x = 1\n", to="plain")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]

assert_type(CODES["HM101"], Code)
assert_type(main(["migrate", "src"]), int)
