from httpmw import Connection, Flow

HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "strict-origin-when-cross-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
TWO_YEARS = "max-age=63072000; includeSubDomains"


async def security_headers(conn: Connection) -> Flow:
    response = yield
    for name, value in HEADERS.items():
        # A page may have a policy of its own.
        response.headers.setdefault(name, value)
    # RFC 6797 section 7.2: not over plain HTTP.
    if conn.url.scheme == "https":
        response.headers.setdefault("strict-transport-security", TWO_YEARS)
