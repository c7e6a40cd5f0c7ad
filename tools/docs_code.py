"""
Copy the code of docs_src into the pages that show it: `python -m tools.docs_code`.

A page reads as Markdown in a plain checkout, so the code stands in it, and tests/docs/test_docs.py
keeps it equal to the file that the suite runs. A line above the block says which file that is, or
which section of it, between lines `# --8<-- [start:NAME]` and `# --8<-- [end:NAME]`:

    <!-- code: docs_src/migrated/patterns_after.py:header -->
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent

COPY = re.compile(
    r"^<!-- code: (?P<path>[^\s:]+)(?::(?P<section>\w+))? -->\n\n"
    r"(?P<open>```.*\n)(?P<code>(?:(?!```).*\n)*)(?P<close>```\n)",
    re.MULTILINE,
)


def code(path: str, section: str | None) -> str:
    """Return the text of the file *path*, or of one *section* of it."""
    text = (ROOT / path).read_text()
    if section:
        marks = rf"^ *# --8<-- \[(?:start|end):{section}\]\n"
        _, text, _ = re.split(marks, text, flags=re.MULTILINE)
    return textwrap.dedent(text)


def filled(page: str) -> str:
    """Return the text of a page with each block as its file is now."""

    def block(match: re.Match[str]) -> str:
        head, _, _ = match[0].partition(match["open"])
        return f"{head}{match['open']}{code(match['path'], match['section'])}{match['close']}"

    return COPY.sub(block, page)


def main() -> None:
    for page in sorted((ROOT / "docs").glob("**/*.md")):
        before = page.read_text()
        after = filled(before)
        if after != before:
            page.write_text(after)
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
