"""
Print the page `docs/migrate-codes.md`, which is made from the codes of the codemod.

    python -m tools.migrate_codes > docs/migrate-codes.md
"""

from __future__ import annotations

import re

from httpmw.migrate import CODES, Code

HEAD = """\
# What `httpmw migrate` says

Each code stands for one thing that [`httpmw migrate`](migrate.md) says about a function or a file.
What begins with `HM1` is an error: the function, or the file, was left exactly as it was.
What begins with `HM2` is a notice: it was converted, and something changed, or is left to do by hand.

The page is generated from the code by `python -m tools.migrate_codes`.
"""  # noqa: E501 - one sentence per line


def page() -> str:
    """
    Make the page.
    """
    return HEAD + "".join(map(section, CODES.values()))


def section(code: Code) -> str:
    """
    Make the section of one code.
    """
    message = re.sub(r"\{\w+\}", "…", code.message)
    sentences = re.sub(r"(?<=[.!?]) (?=[A-Z`])", "\n", code.why)
    remedy = re.sub(r"\{\w+\}", "response", code.remedy.replace("{conn}", "conn"))
    remedy = remedy.removeprefix("response ") if "{remedy}" in code.remedy else remedy
    return (
        f"\n## {code.code}\n\n**{code.title}.**\n\n> {message[0].upper()}{message[1:]}\n\n"
        f"{sentences}\n\nInstead: {remedy}\n"
    )


if __name__ == "__main__":
    print(page(), end="")
