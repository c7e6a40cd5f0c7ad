# Conditional requests, as RFC 9110 section 13 has them: entity tags, dates, and their order.
#
# Functions of texts alone: nothing here knows of requests and responses.

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

Verdict: TypeAlias = Literal[200, 304, 412]

# Section 8.8.3: W/ is case-sensitive; of what is in between no comma ends it.
_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_MEMBER: Final = re.compile(r'[ \t]*(?:(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*)?(?:,|$)')
# What Apache, and compression of ours, put behind the tag of what they have coded.
_CODING: Final = re.compile(r"[-;](?:gzip|br|zstd)$")


class Tag(NamedTuple):
    """An entity tag."""

    opaque: str
    is_weak: bool = False

    def __str__(self) -> str:
        return f'W/"{self.opaque}"' if self.is_weak else f'"{self.opaque}"'


class Conditions(NamedTuple):
    """The fields of a conditional request, each with its lines."""

    if_match: Sequence[str] = ()
    if_none_match: Sequence[str] = ()
    if_modified_since: Sequence[str] = ()
    if_unmodified_since: Sequence[str] = ()

    @classmethod
    def of(cls, fields: Mapping[bytes, Sequence[str]]) -> Conditions:
        """Take the fields from those of a request, by their names in lower case."""
        return cls(
            fields.get(b"if-match", ()),
            fields.get(b"if-none-match", ()),
            fields.get(b"if-modified-since", ()),
            fields.get(b"if-unmodified-since", ()),
        )


def tag_of(text: str | None) -> Tag | None:
    """Read one entity tag; None where it is none."""
    match = _TAG.fullmatch(text.strip(" \t")) if text is not None else None
    return Tag(match[2], match[1] is not None) if match is not None else None


def tags_of(lines: Sequence[str]) -> list[Tag] | Literal["*"]:
    """Read a list of entity tags; what follows something that is none is left out."""
    text = ", ".join(lines).strip(" \t")
    if text == "*":
        return "*"
    tags = []
    place = 0
    while place < len(text):
        match = _MEMBER.match(text, place)
        if match is None:
            break
        if match[2] is not None:
            tags.append(Tag(match[2], match[1] is not None))
        place = match.end()
    return tags


def verdict(
    conditions: Conditions,
    *,
    is_get: bool,
    tag: Tag | None,
    last_modified: str | None = None,
    exists: bool = True,
) -> Verdict:
    """
    Evaluate preconditions in the order of RFC 9110 section 13.2.2; `If-Range` is not among them.

    Args:
        conditions: The fields of the request.
        is_get: Whether the method is GET or HEAD.
        tag: The entity tag of the current representation.
        last_modified: The value of its `Last-Modified`.
        exists: Whether there is a current representation.

    Returns:
        200 where the method is to be done, else 304 or 412.
    """
    modified = date_of([last_modified]) if last_modified is not None else None
    if conditions.if_match:
        if not _is_matched(conditions.if_match, tag, exists=exists, is_strong=True):
            return 412
    elif (
        modified is not None
        and (since := date_of(conditions.if_unmodified_since)) is not None
        and modified > since
    ):
        return 412
    if conditions.if_none_match:
        if _is_matched(conditions.if_none_match, tag, exists=exists, is_strong=False):
            return 304 if is_get else 412
    elif (
        is_get
        and modified is not None
        and (since := date_of(conditions.if_modified_since)) is not None
        and modified <= since
    ):
        return 304
    return 200


def _is_matched(lines: Sequence[str], tag: Tag | None, *, exists: bool, is_strong: bool) -> bool:
    listed = tags_of(lines)
    if listed == "*":
        return exists
    if tag is None or (is_strong and tag.is_weak):
        return False
    return any(
        _is_same(each.opaque, tag.opaque) and not (is_strong and each.is_weak) for each in listed
    )


def _is_same(listed: str, opaque: str) -> bool:
    # Behind Apache's compression the client has another tag, that of the same representation.
    return listed == opaque or _CODING.sub("", listed) == opaque


# ---------------------------------------------------------------------- dates

_MONTHS: Final = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)
_MONTH: Final = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME: Final = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
# Section 5.6.7: the form of today, and the two of old; all of them case-sensitive.
_DATES: Final = (
    re.compile(
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",
        re.ASCII,
    ),
    re.compile(
        r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, "
        rf"(?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",
        re.ASCII,
    ),
    re.compile(
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) {_MONTH} (?P<day>\d\d| \d) {_TIME} (?P<year>\d{{4}})",
        re.ASCII,
    ),
)
_LEAP_SECOND: Final = 60
_CENTURY: Final = 100


def date_of(lines: Sequence[str]) -> dt.datetime | None:
    """Read the one HTTP-date of a field; None where it is none, or where there are several."""
    if len(lines) != 1:
        return None
    for form in _DATES:
        match = form.fullmatch(lines[0].strip(" \t"))
        if match is not None:
            break
    else:
        return None
    year, second = int(match["year"]), int(match["second"])
    if year < _CENTURY and len(match["year"]) == 2:  # noqa: PLR2004 - its digits
        year = _full_year(year)
    try:
        date = dt.datetime(
            year,
            _MONTHS.index(match["month"]) + 1,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            min(second, _LEAP_SECOND - 1),
            tzinfo=dt.UTC,
        )
        return date + dt.timedelta(seconds=1) if second == _LEAP_SECOND else date
    except (ValueError, OverflowError):
        return None


def _full_year(year: int) -> int:
    # One that would be more than fifty years ahead is the last that ended in these digits.
    this = dt.datetime.now(dt.UTC).year
    year += this - this % _CENTURY
    return year - _CENTURY if year > this + 50 else year
