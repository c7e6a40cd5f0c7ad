"""
Conditional requests as RFC 9110 has them, written from its text alone.

Nothing of `httpmw` is used here, nor looked at. Sections are those of RFC 9110. Fields are lists of
lines; an absent field is an empty list.
"""

from __future__ import annotations

import calendar
import email.utils

# 8.8.3: etagc = %x21 / %x23-7E / obs-text
ETAGC = {0x21, *range(0x23, 0x7F), *range(0x80, 0x100)}

EntityTag = tuple[bool, str]  # weak, opaque


def entity_tags(value: str) -> list[EntityTag] | None:
    """Read `#entity-tag` character by character (5.6.1.2); None where it is malformed."""
    tags: list[EntityTag] = []
    state = "before"  # an element; within: its opaque part; after: it
    weak, opaque = False, ""
    index = 0
    while index < len(value):
        character = value[index]
        if state == "before":
            if value.startswith('W/"', index):
                weak, opaque, state = True, "", "within"
                index += 2
            elif character == '"':
                weak, opaque, state = False, "", "within"
            elif character not in " \t,":
                return None
        elif state == "within":
            if character == '"':
                tags.append((weak, opaque))
                state = "after"
            elif ord(character) in ETAGC:
                opaque += character
            else:
                return None
        elif character == ",":
            state = "before"
        elif character not in " \t":
            return None
        index += 1
    return None if state == "within" else tags


def seconds(lines: list[str]) -> int | None:
    """Read an IMF-fixdate (5.6.7), the only form that the table has."""
    if len(lines) != 1:
        return None
    parsed = email.utils.parsedate(lines[0])
    return None if parsed is None else calendar.timegm(parsed)


def if_match(lines: list[str], tag: EntityTag | None, *, exists: bool) -> bool:
    """13.1.1."""
    value = ", ".join(lines)
    if value.strip() == "*":
        return exists  # "false if the origin server does not have a current representation"
    # "true if any of the listed tags match the entity tag of the selected representation",
    # with the strong comparison function (8.8.3.2).
    return any(
        tag is not None and not weak and not tag[0] and opaque == tag[1]
        for weak, opaque in entity_tags(value) or []
    )


def if_none_match(lines: list[str], tag: EntityTag | None, *, exists: bool) -> bool:
    """13.1.2."""
    value = ", ".join(lines)
    if value.strip() == "*":
        return not exists
    return not any(tag is not None and opaque == tag[1] for _, opaque in entity_tags(value) or [])


def decide(
    method: str,
    fields: dict[str, list[str]],
    *,
    tag: EntityTag | None,
    last_modified: str | None,
    exists: bool = True,
) -> int:
    """13.2.2, steps 1 to 4, as an origin server does them; 200 is "perform the method"."""
    modified = None if last_modified is None else seconds([last_modified])
    is_read = method in {"GET", "HEAD"}
    # 1. When recipient is the origin server and If-Match is present
    if fields["if-match"]:
        if not if_match(fields["if-match"], tag, exists=exists):
            return 412
    # 2. ... If-Match is not present, and If-Unmodified-Since is present; ignored where it is no
    # date, or where there is no modification date (13.1.4)
    elif fields["if-unmodified-since"]:
        since = seconds(fields["if-unmodified-since"])
        if since is not None and modified is not None and not modified <= since:
            return 412
    # 3. When If-None-Match is present
    if fields["if-none-match"]:
        if not if_none_match(fields["if-none-match"], tag, exists=exists):
            return 304 if is_read else 412
    # 4. When the method is GET or HEAD, If-None-Match is not present, and If-Modified-Since is
    elif is_read and fields["if-modified-since"]:
        since = seconds(fields["if-modified-since"])
        if since is not None and modified is not None and modified <= since:
            return 304
    return 200
