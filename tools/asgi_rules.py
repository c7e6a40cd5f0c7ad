"""
Print the page `docs/asgi-rules.md`, which is made from the rules of the checker.

    python -m tools.asgi_rules > docs/asgi-rules.md
"""

from __future__ import annotations

from httpmw.testing.checking._checker import rules

GROUPS = {
    "A": "All protocols",
    "S": "The scope",
    "H": "HTTP",
    "X": "Extensions of HTTP",
    "W": "Websockets",
    "L": "Lifespan",
}

HEAD = """\
# The rules of ASGI

These are the rules that [`ASGIChecker`](testing.md#the-checker) and the fake server of `httpmw.testing` check, each in one sentence, with the part of the [ASGI specification](https://asgi.readthedocs.io/) (or the RFC) that it comes from.
An app has to keep those of the side "app".
Whoever calls an app has to keep those of the side "server": a server, and every middleware, which is an app to the outside and a server to the inside.

The page is generated from the checker's code by `python -m tools.asgi_rules`.
"""  # noqa: E501 - one sentence per line


def page() -> str:
    """
    Make the page.
    """
    parts = [HEAD]
    for letter, title in GROUPS.items():
        parts.append(f"\n## {title}\n\n| id | side | rule | source |\n| --- | --- | --- | --- |\n")
        parts.extend(
            f"| {rule.id} | {rule.side} | {rule.sentence} | {rule.source} |\n"
            for rule in rules()
            if rule.id.startswith(letter)
        )
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
