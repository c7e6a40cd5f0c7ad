import hashlib

from starlette.responses import Response

from httpmw import Connection, Flow, ResponseTooLarge

LARGEST = 1_000_000  # bytes

# RFC 9110 section 15.4.5: a 304 does not describe a body.
OF_THE_BODY = {
    b"content-encoding",
    b"content-language",
    b"content-length",
    b"content-type",
}


def matches(if_none_match: str, etag: str) -> bool:
    """
    Compare weakly, as RFC 9110 section 13.1.2 says.
    """
    candidates = [
        each.strip().removeprefix("W/") for each in if_none_match.split(",")
    ]
    return "*" in candidates or etag.removeprefix("W/") in candidates


async def etag(conn: Connection) -> Flow:
    response = yield
    if conn.method not in ("GET", "HEAD") or response.status_code != 200:
        return
    # A stream has no length: it stays a stream. The body of a HEAD is not there.
    has_body = conn.method == "GET" and "content-length" in response.headers
    if has_body and "etag" not in response.headers:
        try:
            body = await response.read(max_size=LARGEST)
        except ResponseTooLarge:
            pass
        else:
            tag = hashlib.sha256(body).hexdigest()[:32]
            response.headers["etag"] = f'"{tag}"'
    current = response.headers.get("etag")
    if current and matches(conn.headers.get("if-none-match", ""), current):
        not_modified = Response(status_code=304)
        not_modified.raw_headers = [
            (name, value)
            for name, value in response.raw_headers
            if name not in OF_THE_BODY
        ]
        yield not_modified
