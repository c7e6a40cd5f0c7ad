"""
The plots of `benchmarks.report`: bars and lines as SVG, readable on a light and on a dark page.

A plot draws its own ground and follows the reader's colour scheme, so that its text stands out
wherever it is shown. Every bar and every line carries its name and its figure as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

SPACE = "http://www.w3.org/2000/svg"
WIDTH = 760
MARGIN = 16
NAMES = 150  # the column of names
FIGURES = 96  # the column of figures
BAR, GAP, BETWEEN = 16, 6, 18
HEAD = 64

# The colours of what is compared: the same in every plot, with a light and a dark ground.
COLOURS = {
    "bare": ("#8a919e", "#8a919e"),
    "asgi": ("#2f6fb4", "#6aa5e6"),
    "httpmw": ("#1d8a5c", "#45c08b"),
    "two": ("#6aa84f", "#93d07c"),
    "drop-in": ("#b07a10", "#e0ad45"),
    "BaseHTTP": ("#c0453c", "#ef7f76"),
}
GROUND, INK, FAINT = ("#ffffff", "#16181c"), ("#1f2430", "#e7e9ee"), ("#c9ced8", "#414754")


class Bar(NamedTuple):
    """
    A figure.

    Args:
        name: What it is of.
        colour: A name in `COLOURS`.
        value: The figure.
        label: The figure in words.
        low: The lower quartile.
        high: The upper quartile.
    """

    name: str
    colour: str
    value: float
    label: str
    low: float | None = None
    high: float | None = None


class Line(NamedTuple):
    """
    A figure for each place on the x axis.
    """

    name: str
    colour: str
    values: Sequence[float]


def bars(title: str, unit: str, groups: Mapping[str, Sequence[Bar]]) -> str:
    """
    Draw groups of horizontal bars on one scale that begins at zero.
    """
    most = max(each.high or each.value for group in groups.values() for each in group)
    scale = (WIDTH - 2 * MARGIN - NAMES - FIGURES) / most
    left = MARGIN + NAMES
    parts: list[str] = []
    y = HEAD
    for group, of_group in groups.items():
        if group:
            parts.append(text(MARGIN, y + 12, group, "strong"))
            y += BAR + GAP
        for each in of_group:
            middle = y + BAR / 2
            length = max(each.value * scale, 1)
            parts.append(text(left - 8, middle + 4, each.name, "name"))
            parts.append(
                f'<rect class="{each.colour}" x="{left}" y="{y}" width="{length:.1f}" '
                f'height="{BAR}" rx="2"/>'
            )
            end = left + length
            if each.low is not None and each.high is not None:
                low, high = left + each.low * scale, left + each.high * scale
                if high - low > 2:  # noqa: PLR2004 - pixels: less cannot be seen
                    parts.append(line(low, middle, high, middle, "spread"))
                end = max(end, high)
            parts.append(text(end + 6, middle + 4, each.label, "figure"))
            y += BAR + GAP
        y += BETWEEN
    return picture(title, unit, y, parts)


def lines(title: str, unit: str, places: Sequence[str], of_lines: Sequence[Line]) -> str:
    """
    Draw lines over places, on a scale that begins at zero.
    """
    height, left, right = 260, MARGIN + 40, WIDTH - MARGIN - NAMES
    most = max(value for each in of_lines for value in each.values) * 1.05
    bottom = HEAD + height
    step = (right - left) / (len(places) - 1)
    parts: list[str] = []
    for mark in range(int(most) + 1):
        y = bottom - mark / most * height
        parts.append(line(left, y, right, y, "faint"))
        parts.append(text(left - 8, y + 4, f"{mark}", "name"))
    for at, place in enumerate(places):
        parts.append(text(left + at * step, bottom + 20, place, "place"))
    names: list[float] = []
    for each in sorted(of_lines, key=lambda one: one.values[-1]):
        points = [
            (left + at * step, bottom - value / most * height)
            for at, value in enumerate(each.values)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line {each.colour}" points="{path}"/>')
        parts += [
            f'<circle class="{each.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points
        ]
        y = points[-1][1]
        if names:
            y = min(y, names[-1] - 15)  # no name on another one
        names.append(y)
        parts.append(text(right + 8, y + 4, f"{each.name} {each.values[-1]:.2f}", "figure"))
    return picture(title, unit, bottom + 36, parts)


def picture(title: str, unit: str, height: float, parts: Sequence[str]) -> str:
    head = [text(MARGIN, 26, title, "title"), text(MARGIN, 46, unit, "figure")]
    return drawing(title, WIDTH, height, STYLE, [ground(WIDTH, height), *head, *parts])


def drawing(title: str, width: float, height: float, style: str, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="{SPACE}" viewBox="0 0 {width} {height:.0f}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{style}\n</style>",
            *parts,
            "</svg>\n",
        ]
    )


def ground(width: float, height: float) -> str:
    return f'<rect class="ground" width="{width}" height="{height:.0f}" rx="8"/>'


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def style(scheme: int) -> str:
    rules = [
        f".ground {{ fill: {GROUND[scheme]}; }}",
        f"text {{ fill: {INK[scheme]}; }}",
        f".faint {{ stroke: {FAINT[scheme]}; }}",
        f".spread {{ stroke: {INK[scheme]}; }}",
    ]
    for name, colours in COLOURS.items():
        rules += [
            f".{name} {{ fill: {colours[scheme]}; }}",
            f".line.{name} {{ fill: none; stroke: {colours[scheme]}; }}",
        ]
    return "\n".join(rules)


def on_both(style: Callable[[int], str]) -> str:
    """
    Give the rules of a style on a light and on a dark page.
    """
    return f"{style(0)}\n@media (prefers-color-scheme: dark) {{\n{style(1)}\n}}"


STYLE = f"""text {{ font: 13px system-ui, sans-serif; }}
.title {{ font-size: 16px; font-weight: 600; }}
.strong {{ font-weight: 600; }}
.name {{ text-anchor: end; }}
.place {{ text-anchor: middle; }}
.line {{ stroke-width: 2.5; }}
{on_both(style)}"""
