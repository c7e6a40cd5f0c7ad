import json
import logging
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers

from httpmw import Connection, Flow

log = logging.getLogger("bodies")

LARGEST = (
    100_000  # bytes: what is larger, or of no known length, is not looked at
)
SHOWN = 1_000  # characters
SECRET = ("authorization", "card", "password", "secret", "token")


def is_secret(name: str) -> bool:
    return any(word in name.lower() for word in SECRET)


def redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: "***" if is_secret(name) else redacted(each)
            for name, each in value.items()
        }
    return (
        [redacted(each) for each in value] if isinstance(value, list) else value
    )


def shown(body: bytes, headers: Headers) -> str:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if not body:
            text = "nothing"
        elif kind == "application/json" or kind.endswith("+json"):
            text = json.dumps(redacted(json.loads(body)))
        elif kind == "application/x-www-form-urlencoded":
            pairs = parse_qsl(body.decode(), keep_blank_values=True)
            hidden = (
                (name, "***" if is_secret(name) else it) for name, it in pairs
            )
            text = urlencode(list(hidden), safe="*")
        else:  # there is no telling what is secret in it
            text = f"{len(body)} bytes of {kind!r}"
    except (ValueError, RecursionError):
        text = f"{len(body)} bytes that are not {kind!r}"
    # Redacted before, as half a document cannot be read.
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... of {len(text)}"


def is_readable(headers: Headers) -> bool:
    length = headers.get("content-length", "")
    is_small = length.isdecimal() and int(length) <= LARGEST
    return is_small and "content-encoding" not in headers


async def log_bodies(conn: Connection) -> Flow:
    asked = f"{conn.method} {conn.url.path}"
    if is_readable(conn.headers):
        body = await conn.body(max_size=LARGEST)
        log.info("%s < %s", asked, shown(body, conn.headers))
    response = yield
    if is_readable(response.headers):
        body = await response.read(max_size=LARGEST)
        what = shown(body, response.headers)
        log.info("%s > %d %s", asked, response.status_code, what)
