# What `IdempotencyMiddleware` needs of a store, and how an answer is kept in it.

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from starlette.responses import Response

ClaimState: TypeAlias = Literal["mine", "running", "done", "unknown", "other"]


class Claim(NamedTuple):
    """
    What came of a claim.

    Attributes:
        state: `"mine"`, the request is to be run; `"running"`, somebody else has the key; `"done"`,
            there is an answer; `"unknown"`, a run has ended without one; `"other"`, the key was
            used for another request.
        token: Of one that is mine: a number that is greater with each claim of the key.
        answer: Of one that is done: what was stored.
    """

    state: ClaimState
    token: int = 0
    answer: str = ""


class IdempotencyStore(Protocol):
    """
    What `IdempotencyMiddleware` needs of a store.

    Whatever it raises is an outage. A store whose attribute `asyncio_only` is true is never asked
    on trio, and has its leases renewed. The suite of tests for one is
    `httpmw.testing.check_idempotency_store`.

    Arguments that several have in common: *key* is at most 64 characters of ASCII, *claim* names
    the one who claims, *deadline* is when the layer will have given up, in seconds of
    `time.monotonic()`.
    """

    async def claim(
        self,
        key: str,
        claim: str,
        fingerprint: str,
        *,
        lease: float,
        expires: float,
        rerun: bool,
        deadline: float,
    ) -> Claim:
        """
        Claim a key, in one step. What is claimed after *deadline* is claimed for nobody.

        Who has claimed it already has it still, with the same token: a client repeats commands.

        Args:
            key: The key.
            claim: Who claims it.
            fingerprint: Of the request, to be compared with that of who had the key first.
            lease: For how long it is held unless it is renewed, in seconds.
            expires: When all is forgotten, in seconds from now.
            rerun: Whether one is given whose lease has ended without an answer.
            deadline: See above.
        """

    async def renew(self, key: str, claim: str, *, lease: float, deadline: float) -> bool:
        """
        Hold a key for another *lease* seconds; False where it is not this claim's any more.
        """

    async def complete(
        self, key: str, claim: str, answer: str, *, expires: float, deadline: float
    ) -> bool:
        """
        Store the answer, ASCII; False where the key is not this claim's any more.
        """

    async def release(self, key: str, claim: str, *, deadline: float) -> None:
        """
        Forget a key that is still this claim's.
        """

    def abandon(self, key: str, claim: str) -> None:
        """
        Take note that a run has ended without an answer; where leases end by themselves: nothing.
        """


# ---------------------------------------------------------------------- answers

# RFC 9110 section 7.6.1, and what is of one connection, one moment or one client.
DROPPED: Final = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"),
        *(b"trailer", b"transfer-encoding", b"upgrade", b"date", b"age", b"set-cookie"),
        b"content-length",
    )
)


def encoded(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> str:
    """
    Give an answer as text in ASCII, which every client hands on as it is.
    """
    kept = [
        [name.decode("latin-1"), value.decode("latin-1")]
        for name, value in headers
        if name.lower() not in DROPPED
    ]
    return json.dumps([status, kept, base64.b64encode(body).decode()])


def not_replayable(status: int) -> str:
    """
    Say that there was an answer which cannot be given again.
    """
    return json.dumps([status])


def decoded(answer: str) -> Response | None:
    """
    Give the response that was stored; None where it cannot be given again.
    """
    parts: list[Any] = json.loads(answer)
    if len(parts) == 1:
        return None
    status, headers, body = parts
    data = base64.b64decode(body)
    response = Response(data, status)
    response.raw_headers[:] = [
        *((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers),
        *_length(status, data),
        (b"idempotent-replayed", b"true"),
    ]
    return response


def _length(status: int, data: bytes) -> list[tuple[bytes, bytes]]:
    bodiless = status == 204 or status == 304  # noqa: PLR1714, PLR2004 - RFC 9110 section 8.6
    return [] if bodiless else [(b"content-length", b"%d" % len(data))]
