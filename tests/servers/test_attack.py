"""
A sample of `make attack`: gates and bodies on a real server, over raw connections.

`make attack` sends 50,000 requests, to each of the servers a part of them.
"""

from __future__ import annotations

import random

import pytest

from tests.wire import WireError, get, parse
from tools.attack import Asked, Attack, attacked


@pytest.mark.xdist_group("attack")
@pytest.mark.parametrize("name", ["uvicorn-h11", "hypercorn"])
def test_attack_reaches_nothing(name: str) -> None:
    """Nobody without a key reaches the app, each gets its own bytes, and nothing is kept."""
    attack = attacked(name, 200, seed=1)

    assert attack.wrong == []
    assert sum(attack.done.values()) >= 200


@pytest.mark.parametrize(
    "body",
    [b"secret x", b"denied y", b"", b"denied x and more"],
    ids=["app", "other", "none", "more"],
)
def test_answer_that_is_not_its_own_is_wrong(body: bytes) -> None:
    """An answer is compared to the last byte."""
    asked = Asked("x", get("/"), 403, b"denied x", allowed=False)
    head = b"HTTP/1.1 403 -\r\ncontent-length: %d\r\n\r\n"
    [answer] = parse(head % len(body) + body, asked.data)

    with pytest.raises(WireError, match=r"^x: "):
        asked.check(answer)


def test_request_hidden_in_a_body_is_nobody_that_may_come() -> None:
    """Its name is none of those that the app may see."""
    attack = Attack(("127.0.0.1", 1), 1)
    chance = random.Random(1)

    asked = [attack.at_gate(chance, "answers", allowed=False) for _ in range(50)]

    assert any(b"x-id: hidden-" in each.data for each in asked)
    assert attack.allowed == set()
