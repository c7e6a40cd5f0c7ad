"""
What one layer costs in each phase of a request: `python -m benchmarks.budget`.

The phases are those of `httpmw.testing.overhead`: before the application is called, while it sends
its response start, while it sends one message of the body, after it has returned. Next to each
figure stands that of a layer written by hand that wraps `send` and does nothing.
One layer of each style sets one header; in the last one it reads the body.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.document import Row, document, options, write
from benchmarks.styles import JOBS, STYLES
from httpmw.testing import Overhead, overhead

LAYERS = {
    **{name: STYLES[name] for name in ("asgi", "one yield", "two yields", "drop-in", "BaseHTTP")},
    "body read": JOBS["body read"].httpmw,
}
PHASES = ("before", "start", "chunk", "after", "whole")


def rows(layer: str, result: Overhead) -> list[Row]:
    phases = {name: getattr(result, name) for name in PHASES}
    return [
        {
            "layer": layer,
            "phase": name,
            "us": round(phase.seconds * 1e6, 3),
            "no-op us": round(phase.noop_seconds * 1e6, 3),
            "extra us": round(phase.extra_seconds * 1e6, 3),
            "times": round(phase.times, 3),
            "blocks": phase.blocks,
            "no-op blocks": phase.noop_blocks,
            "peak bytes": phase.peak_bytes,
            "no-op peak bytes": phase.noop_peak_bytes,
        }
        for name, phase in phases.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = options(__doc__, "budget").parse_args(arguments)
    found: list[Row] = []
    for layer, style in LAYERS.items():
        result = overhead(style, requests=50 if chosen.quick else 2000)
        print(f"{layer}\n{result}\n")
        found += rows(layer, result)
    if chosen.json:
        write(chosen.json, document(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
