"""
Draw the pictures of the docs: `python -m tools.pictures` writes them into `docs/img`.

Like the plots of `benchmarks/svg.py`, from which the colours come, a picture has a ground of its
own and follows the reader's colour scheme. The plots in the same folder are not drawn here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.svg import COLOURS, FAINT, GROUND, INK, drawing, ground, on_both, text

FOLDER = Path(__file__).parent.parent / "docs" / "img"
WIDTH = 640
# Their fills, very light and very dark, on which text can be read.
TINTS = {
    "bare": ("#f1f3f6", "#23272e"),
    "asgi": ("#e6f0fb", "#16283c"),
    "httpmw": ("#e3f4ec", "#12301f"),
    "drop-in": ("#faf0dc", "#352910"),
    "BaseHTTP": ("#fbe6e4", "#3a1917"),
}


HEAD = (
    '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
    'markerHeight="7" orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>'
)


def picture(title: str, height: float, parts: Sequence[str]) -> str:
    return drawing(title, WIDTH, height, STYLE, [HEAD, ground(WIDTH, height), *parts])


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect class="box {colour}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" rx="8"/>'
    )


def path(points: str, kind: str = "line") -> str:
    return f'<path class="{kind}" d="{points}"/>'


def style(scheme: int) -> str:
    rules = [
        f".ground {{ fill: {GROUND[scheme]}; }}",
        f"text {{ fill: {INK[scheme]}; }}",
        f".line {{ stroke: {INK[scheme]}; }}",
        f".head {{ fill: {INK[scheme]}; }}",
        f".life {{ stroke: {FAINT[scheme]}; }}",
    ]
    rules += [
        f".{name} {{ fill: {tints[scheme]}; stroke: {COLOURS[name][scheme]}; }}"
        for name, tints in TINTS.items()
    ]
    return "\n".join(rules)


STYLE = f"""text {{ font: 14px system-ui, sans-serif; }}
.code {{ font: 13px ui-monospace, monospace; }}
.strong {{ font-weight: 600; }}
.middle {{ text-anchor: middle; }}
.end {{ text-anchor: end; }}
.box {{ stroke-width: 1.5; }}
.line {{ fill: none; stroke-width: 1.5; marker-end: url(#head); }}
.back {{ stroke-dasharray: 5 4; }}
.life {{ stroke-width: 1.5; }}
{on_both(style)}"""


# ---------------------------------------------------------------------- one function


def moments() -> str:
    """
    The three moments of a flow, beside its code.
    """
    rows = [
        ("async def mw(conn):", "", ""),
        ("    ...", "1  the request is here", "read it, change it, or answer early"),
        ("    response = yield", "the inner app runs", ""),
        ("    ...", "2  it has answered, nothing is sent", "edit the response, or give another"),
        ("    yield response", "the response goes out", ""),
        ("    ...", "3  everything is over", "log, count, clean up"),
    ]
    parts = [box(16, 16, 212, 292, "bare")]
    for at, (code, words, more) in enumerate(rows):
        y = 46 + at * 48
        parts.append(f'<text class="code" x="30" y="{y}" xml:space="preserve">{code}</text>')
        if more:
            parts += [
                box(312, y - 24, 312, 46, "httpmw"),
                text(326, y - 5, words, "strong"),
                text(346, y + 14, more),
                path(f"M306 {y - 2}L236 {y - 2}"),
            ]
        elif words:
            parts.append(text(326, y + 4, words))
            parts.append(path(f"M236 {y}L306 {y}", "line back"))
    return picture("The three moments of a middleware function", 324, parts)


# ---------------------------------------------------------------------- layers

# Name, colour, what it does on the way in, and on the way out.
ONION = [
    ("access_log", "asgi", "", "waits until all is over, and logs"),
    ("nosniff", "httpmw", "", "sets a header"),
    ("shop_hours", "drop-in", "", "answers an exception"),
    ("members_only", "BaseHTTP", "turns strangers back", ""),
    ("shout", "httpmw", "", "transforms the body"),
]


def onion() -> str:
    """
    The five layers of the tutorial around the application.
    """
    strip, inset, margin, top = 34, 14, 30, 44
    early = WIDTH - 16 - int(3.5 * margin)  # past the layers inside of the one that turns back
    height = strip * (2 * len(ONION) + 2)
    bottom = top + height
    parts = [
        text(390, 26, "request", "strong end"),
        text(390, bottom + 28, "response", "strong end"),
    ]
    for at, (name, colour, inward, outward) in enumerate(ONION):
        x, y = 16 + at * inset, top + at * strip
        parts += [
            box(x, y, WIDTH - 16 - at * margin - x, height - 2 * at * strip, colour),
            text(x + 14, y + 23, name, "code strong"),
            text(x + 134, y + 23, inward),
            text(x + 14, bottom - at * strip - 12, outward),
        ]
        if inward:
            parts.append(path(f"M400 {y + 18}L{early} {y + 18}L{early} {bottom + 32}", "line back"))
            parts.append(text(early + 8, bottom + 28, "early answer", "strong"))
    x, y = 16 + len(ONION) * inset, top + len(ONION) * strip
    parts += [
        box(x, y, WIDTH - 16 - len(ONION) * margin - x, 2 * strip, "bare"),
        text(x + 14, y + strip + 5, "the application", "strong"),
        path(f"M400 12L400 {y + 14}"),
        path(f"M400 {y + 2 * strip - 14}L400 {bottom + 32}"),
    ]
    return picture("Five layers around an application", bottom + 44, parts)


# ---------------------------------------------------------------------- who does what, when

Step = tuple[str, str, str]


def sequence(title: str, lanes: Sequence[tuple[str, str]], steps: Sequence[Step]) -> str:
    """
    Draw what passes between some parties, from the top down.

    Args:
        title: What it shows.
        lanes: The parties, each with a colour.
        steps: From, to and the words; from and to are the numbers of lanes, "0" to the first.
            Where both are the same it is something that this party does; a "-" before the first
            makes the arrow dashed.
    """
    gap = (WIDTH - 32) / len(lanes)
    centre = [16 + gap * (at + 0.5) for at in range(len(lanes))]
    top, step, head = 16, 36, 40
    bottom = top + head + step * (len(steps) + 0.6)
    parts = [path(f"M{x:.1f} {top + head}L{x:.1f} {bottom:.1f}", "life") for x in centre]
    for x, (name, colour) in zip(centre, lanes, strict=True):
        parts.append(box(x - gap / 2 + 6, top, gap - 12, head, colour))
        parts.append(text(x, top + 25, name, "strong middle"))
    for at, (giver, taker, words) in enumerate(steps):
        y = top + head + step * (at + 1)
        kind = "line back" if giver.startswith("-") else "line"
        start, end = centre[int(giver.lstrip("-"))], centre[int(taker)]
        if start == end:
            width = 7.4 * len(words) + 24
            left = min(max(start - width / 2, 20), WIDTH - 20 - width)
            parts.append(box(left, y - 16, width, 26, lanes[int(taker)][1]))
            parts.append(text(left + width / 2, y + 2, words, "middle"))
        else:
            inset = 6 if end > start else -6
            parts.append(path(f"M{start:.1f} {y}L{end - inset:.1f} {y}", kind))
            parts.append(text((start + end) / 2, y - 7, words, "code middle"))
    return picture(title, bottom + 16, parts)


def inversion() -> str:
    """
    How `await response.read()` waits for an app that runs in the same task.
    """
    return sequence(
        "A middleware function reads the body while the app produces it, in one task",
        [("inner app", "bare"), ("httpmw", "asgi"), ("the function", "httpmw"), ("server", "bare")],
        [
            ("0", "1", "send(start)"),
            ("1", "2", "response"),
            ("2", "2", "await response.read()"),
            ("-2", "1", "the marker"),
            ("-1", "0", "send returns"),
            ("0", "0", "produces its body"),
            ("0", "1", "send(body)"),
            ("1", "2", "the bytes"),
            ("2", "2", "read() gives the body; sets a header"),
            ("-2", "1", "the end"),
            ("1", "3", "start, body"),
            ("-1", "0", "send returns"),
        ],
    )


def discarded() -> str:
    """
    What becomes of an app whose response is replaced.
    """
    return sequence(
        "The app whose response was replaced sees a client that left",
        [("inner app", "bare"), ("httpmw", "asgi"), ("the function", "httpmw"), ("server", "bare")],
        [
            ("0", "1", "send(start)"),
            ("1", "2", "response"),
            ("-2", "1", "yield other"),
            ("1", "3", "other's start, body"),
            ("-1", "0", "send returns"),
            ("0", "1", "send(body)"),
            ("1", "1", "drops it"),
            ("0", "1", "receive()"),
            ("-1", "0", "disconnect"),
            ("0", "0", "cleans up, returns"),
            ("1", "1", "other's background task"),
            ("1", "2", "all is over"),
        ],
    )


def tasks() -> str:
    """
    Which task runs what, for a response that is streamed from a child task.
    """
    return sequence(
        "A streamed response: the app sends from a child task",
        [
            ("the request's task", "asgi"),
            ("a child task of the app", "drop-in"),
            ("server", "bare"),
        ],
        [
            ("0", "0", "the function, up to its yield"),
            ("0", "0", "the inner app begins"),
            ("0", "1", "starts it, and waits"),
            ("1", "1", "send(start): the function, after response = yield"),
            ("1", "2", "start"),
            ("1", "2", "body"),
            ("1", "2", "body, the last one"),
            ("-1", "0", "ends"),
            ("0", "0", "the inner app returns"),
            ("0", "0", "the function, after yield response"),
        ],
    )


def scopes() -> str:
    """
    Why a scope that is held across the yield breaks.
    """
    bars = [
        ("the function's scope", "BaseHTTP", 40, 320),
        ("a scope of the app, opened later", "asgi", 90, 600),
        ("and one inside of it", "asgi", 140, 480),
    ]
    parts = [text(40, 30, "time"), path("M80 26L600 26")]
    for at, (words, colour, start, end) in enumerate(bars):
        y = 44 + at * 42
        parts.append(box(start, y, end - start, 32, colour))
        parts.append(text(start + 10, y + 21, words))
    parts += [
        path("M320 192L320 80"),
        text(320, 210, "the response starts: the function goes on, and closes its scope", "middle"),
        text(320, 230, "while two that were opened later are still open", "middle"),
    ]
    return picture("A scope that is closed before those inside of it", 248, parts)


PICTURES: dict[str, Callable[[], str]] = {
    "discarded.svg": discarded,
    "inversion.svg": inversion,
    "moments.svg": moments,
    "onion.svg": onion,
    "scopes.svg": scopes,
    "tasks.svg": tasks,
}


def main() -> None:
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw())


if __name__ == "__main__":
    main()
