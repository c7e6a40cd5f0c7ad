# The page: one file of HTML with all that it needs, for `httpmw explain --html` and the inspector.
#
# Rule 1: nothing is loaded from elsewhere; a policy says so to the browser, by the hashes of the
# one style and the one script.
# Rule 2: what comes from requests is data to the script, which makes text of it, never markup.

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import re
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._explanation import Explanation


@functools.cache
def _template() -> str:
    return resources.files("httpmw.show").joinpath("page.html").read_text(encoding="utf-8")


@functools.cache
def policy() -> str:
    """
    Give the page's `Content-Security-Policy`.
    """
    text = _template()
    hashes = [_hash(text, tag) for tag in ("style", "script")]
    return (
        f"default-src 'none'; style-src-elem {hashes[0]}; style-src-attr 'unsafe-inline'; "
        f"script-src {hashes[1]}; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(text: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert found is not None  # noqa: S101 - the file is ours
    digest = hashlib.sha256(found[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def page(title: str, data: dict[str, Any], *, standalone: bool = False) -> str:
    """
    Write the page.

    Args:
        title: What it is about.
        data: What the script draws: a "request", or where its "events" come from.
        standalone: Whether it is a file, which has to say its own policy.
    """
    written = json.dumps({"title": title, **data}).replace("<", "\\u003c")
    text = _template().replace("@TITLE@", html.escape(title)).replace("@DATA@", written)
    if standalone:
        said = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy())}">'
        text = text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{said}', 1)
    return text


def explained_page(found: Explanation) -> str:
    """
    Write the page of one explanation.
    """
    title = f"{found.method} {found.path} → {found.status or found.exception or 'no response'}"
    return page(title, {"request": found.as_json()}, standalone=True)
