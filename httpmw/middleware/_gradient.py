# How many requests at once are good: the limit that follows the time to the response.
#
# Netflix' Gradient2 (concurrency-limits, Gradient2Limit.java): while the last answers take as long
# as answers do in the long run the limit grows by a few; where they take longer, work queues up
# inside, and it shrinks in that proportion.

from __future__ import annotations

from typing import Final

from httpmw import _errors

from ._gcra import is_count
from ._stores import is_seconds

_WARM_UP: Final = 10
_LONG: Final = 600  # samples
_SMOOTHING: Final = 0.2
_ROOM: Final = 4
_STEEPEST: Final = 0.5
_RECOVERY: Final = 0.95


class AdaptiveLimit:
    """
    A limit of concurrency that follows the time to the response: Gradient2.

    Args:
        min: The least number of requests at once.
        max: The greatest.
        initial: With how many it begins.
        tolerance: How many times as long as in the long run an answer may take before the limit
            shrinks.

    Raises:
        TypeError: They are no numbers above 0 in this order, or *tolerance* is below 1.
    """

    def __init__(
        self,
        *,
        min: int = 4,  # noqa: A002 - what it is
        max: int = 200,  # noqa: A002 - what it is
        initial: int = 20,
        tolerance: float = 1.5,
    ) -> None:
        given = min, initial, max
        if not all(is_count(each, least=1) for each in given) or not min <= initial <= max:
            expected = "at least 1, with `initial` between `min` and `max`"
            raise _errors.bad_option(type(self), "min, initial, max", given, expected)
        if not is_seconds(tolerance) or tolerance < 1:
            raise _errors.bad_option(type(self), "tolerance", tolerance, "1 or more")
        self.min = min
        self.max = max
        self.initial = initial
        self.tolerance = tolerance


class Gradient:
    # What is known for one limit.

    def __init__(self, options: AdaptiveLimit) -> None:
        self._options = options
        self.limit = float(options.initial)
        self._long = 0.0
        self._count = 0

    def sample(self, seconds: float, in_flight: int) -> None:
        """
        Take note of an answer, and of how many were in flight when it was asked for.
        """
        seconds = max(seconds, 1e-6)
        self._count += 1
        if self._count <= _WARM_UP:
            self._long += (seconds - self._long) / self._count
        else:
            self._long += (seconds - self._long) * 2 / (_LONG + 1)
        long = self._long
        if long / seconds > 2:  # noqa: PLR2004 - as there
            self._long *= _RECOVERY  # the load was heavy for a while, and is no more
        if in_flight < self.limit / 2:
            return  # it is not the limit that holds anybody back
        gradient = max(_STEEPEST, min(1.0, self._options.tolerance * long / seconds))
        self._move(self.limit * gradient + _ROOM)

    def drop(self) -> None:
        """
        Take note of a request that took too long.
        """
        self._move(self.limit * _STEEPEST)

    def _move(self, limit: float) -> None:
        limit = self.limit * (1 - _SMOOTHING) + limit * _SMOOTHING
        self.limit = max(self._options.min, min(self._options.max, limit))
