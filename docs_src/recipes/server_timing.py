import time
from collections.abc import Iterator
from contextlib import contextmanager

from httpmw import Connection, Flow


class Timings:
    """
    How many milliseconds each named part of one request took.
    """

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - started) * 1000
            self.parts[name] = self.parts.get(name, 0.0) + spent


async def server_timing(conn: Connection) -> Flow:
    timings = conn.state.timings = Timings()
    with timings.measure("total"):
        response = yield
    response.headers["x-process-time"] = f"{timings.parts['total'] / 1000:.6f}"
    for name, milliseconds in timings.parts.items():
        response.headers.append("server-timing", f"{name};dur={milliseconds:.3f}")
