# What a client is told of rate limits, as draft-ietf-httpapi-ratelimit-headers has it; all that
# could change with its next version is here.

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Final

from starlette.datastructures import MutableHeaders

from ._gcra import RateLevel, RatePolicy

# The version in 2025, repository ietf-wg-httpapi/ratelimit-headers.
PROBLEM_TYPE: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
VIOLATED: Final = "violated-policies"

Standing = tuple[RatePolicy, RateLevel]


def seconds(value: float) -> int:
    """
    Give whole seconds, rounded up: who comes back then is not too early.
    """
    return max(math.ceil(value), 1)


def retry_after(standings: Sequence[Standing]) -> int | None:
    """
    Say when a refused request would pass; None: never.
    """
    wait = max(level.wait for _, level in standings)
    return None if math.isinf(wait) else seconds(wait)


def violated(standings: Sequence[Standing]) -> list[Standing]:
    """
    Give those that have refused a request: a client waits for no other.
    """
    return [each for each in standings if each[1].wait > 0]


def problem_members(standings: Sequence[Standing]) -> dict[str, Any]:
    """
    Give the members of the problem document that says so.
    """
    return {VIOLATED: [policy.name for policy, _ in violated(standings)]}


def put(headers: MutableHeaders, standings: Sequence[Standing], status: int) -> None:
    """
    Add the fields to those of a response, behind what layers further in have said.
    """
    known = [each for each in standings if each[1].remaining is not None]
    redirects = 300 <= status < 400  # noqa: PLR2004 - the client would follow it at once
    if redirects and any(level.remaining == 0 for _, level in known):
        known = []
    policies = (f'"{policy.name}";q={policy.quota};w={policy.window}' for policy, _ in standings)
    _add(headers, "ratelimit-policy", policies)
    _add(headers, "ratelimit", (_item(policy, level) for policy, level in known))


def _item(policy: RatePolicy, level: RateLevel) -> str:
    until = level.wait if 0 < level.wait < math.inf else level.reset
    return f'"{policy.name}";r={level.remaining};t={math.ceil(until)}'


def _add(headers: MutableHeaders, name: str, items: Any) -> None:
    value = ", ".join(items)
    if value:
        before = headers.get(name)
        headers[name] = f"{before}, {value}" if before else value


def put_legacy(headers: MutableHeaders, standings: Sequence[Standing]) -> None:
    """
    Add the three fields that many clients know, of the policy that is nearest to its end.
    """
    known = [each for each in standings if each[1].remaining is not None]
    if known:
        policy, level = min(known, key=lambda each: each[1].remaining or 0)
        until = level.wait if 0 < level.wait < math.inf else level.reset
        headers["x-ratelimit-limit"] = str(policy.quota)
        headers["x-ratelimit-remaining"] = str(level.remaining)
        headers["x-ratelimit-reset"] = str(math.ceil(time.time() + until))
