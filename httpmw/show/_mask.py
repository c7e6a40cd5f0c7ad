# Options as text, without what nobody but the application may know.
#
# Rule 1: a value is shown where it is one of a few plain kinds; of everything else, whose `repr`
# is somebody else's, its type or its name is.
# Rule 2: what has the name of a secret, or looks like one, is masked whole; of a URL the
# password is, and what its query says.

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

MASK: Final = "'***'"
_LONGEST: Final = 60
_MOST: Final = 4

# Of what is compared in lower case, without what joins words.
_SECRET_NAME: Final = re.compile(
    r"secret|passw|passphrase|token|apikey|accesskey|privatekey|signingkey|encryptionkey"
    r"|credential|dsn|salt|pepper|private|signature|^key$|keys$|^auth$|^authorization$|^cookie$"
)
# Whose values name things: a cookie, a header, a field.
_NAMES_A_THING: Final = re.compile(
    r"name$|header$|headers$|url$|path$|field$|param(eter)?$|prefix$"
)
# A JWT, the keys of well-known services, and what is long and nothing but letters and digits.
_LOOKS_SECRET: Final = re.compile(
    r"^(eyJ[\w-]+\.|sk[-_]|pk[-_]|gh[pousr]_|xox[abprs]-|AKIA|AIza|glpat-|Bearer |Basic )"
    r"|^(?=.*\d)[A-Za-z0-9+/_=-]{24,}$"
)


def masked(options: Mapping[str, Any]) -> dict[str, str]:
    """
    Write options down.
    """
    return {name: shown(value, name) for name, value in options.items()}


def shown(value: Any, name: str = "") -> str:
    """
    Write the value of an option down.

    Args:
        value: The value.
        name: The name of the option, by which a secret is known.
    """
    if value is None or isinstance(value, bool):
        return repr(value)
    if _is_secret(name):
        return MASK
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, (int, float, timedelta)):
        return str(value) if isinstance(value, timedelta) else repr(value)
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value)} bytes"
    if isinstance(value, PurePath):
        return _text(str(value))
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, re.Pattern):
        return f"re.compile({_cut(repr(value.pattern))})"
    if isinstance(value, Mapping):
        items = [f"{_key(key)}: {shown(each, str(key))}" for key, each in _few(value.items())]
        return "{" + _joined(items, len(value)) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        left, right = "()" if isinstance(value, tuple) else "[]"
        ordered = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        return left + _joined([shown(each) for each in _few(ordered)], len(value)) + right
    if isinstance(value, type):
        return value.__name__
    named = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if isinstance(named, str):
        return named.removeprefix("<locals>.").rpartition("<locals>.")[2]
    return f"<{type(value).__name__}>"


def _is_secret(name: str) -> bool:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return bool(_SECRET_NAME.search(plain)) and not _NAMES_A_THING.search(plain)


def _text(text: str) -> str:
    if "://" in text:
        return _cut(repr(_without_password(text)))
    return MASK if _LOOKS_SECRET.search(text) else _cut(repr(text))


def _without_password(text: str) -> str:
    try:
        url = urlsplit(text)
        has_password = url.password is not None
    except ValueError:
        return "***"
    netloc = url.netloc
    if has_password:
        netloc = f"{url.username or ''}:***@{netloc.rpartition('@')[2]}"
    elif "@" in netloc:  # a DSN: the user is the key
        netloc = f"***@{netloc.rpartition('@')[2]}"
    return urlunsplit(url._replace(netloc=netloc, query="***" if url.query else ""))


def _key(key: Any) -> str:
    return _text(key) if isinstance(key, str) else shown(key)


def _few(values: Any) -> list[Any]:
    return list(values)[:_MOST]


def _joined(items: list[str], number: int) -> str:
    more = [f"… {number - _MOST} more"] if number > _MOST else []
    return ", ".join([*items, *more])


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]}…{text[0]}"
