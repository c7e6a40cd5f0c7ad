# One page for a reviewer: `httpmw migrate --report FILE.html`.
#
# Rule 1: it is one file, asks for nothing from anywhere and runs no script: it can be mailed,
# attached to a pull request, and opened in ten years.
# Rule 2: all that comes from the project goes through `escape`.

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import PurePath
from urllib.parse import quote

from ._codes import CODES
from ._model import Conversion, Diagnostic

__all__ = ["Page", "report"]

_AROUND = 3  # lines that are shown around a change


@dataclass(slots=True)
class Page:
    """
    What a report tells.

    Attributes:
        summary: The run in one line.
        conversions: What became of the files.
        diagnostics: What is to be said, of all files.
        verified: What was run in pairs, in one line; None where nothing was.
        pairs: The functions that were run, as path, qualified name, pairs, the same, better.
    """

    summary: str
    conversions: Sequence[Conversion]
    diagnostics: Sequence[Diagnostic]
    verified: str | None = None
    pairs: Sequence[tuple[str, str, int, int, str]] = field(default_factory=tuple)


def report(page: Page) -> str:
    """
    Give the page as HTML.
    """
    changed = [each for each in page.conversions if each.changed]
    left = [each for each in page.diagnostics if each.severity == "error"]
    notices = [each for each in page.diagnostics if each.severity == "notice"]
    body = [
        "<header><h1>httpmw migrate</h1>",
        f"<p class=summary>{escape(page.summary)}</p>",
        "<nav>",
        f"<a href='#changed'>{len(changed)} changed</a>",
        f"<a href='#left'>{len(left)} left</a>",
        f"<a href='#notices'>{len(notices)} notice{'s' * (len(notices) != 1)}</a>",
        "<a href='#pairs'>paired runs</a></nav></header><main>",
        *_left(left),
        *_all_notices(notices, changed),
        *_changed(changed, page.diagnostics),
        *_pairs(page),
        *_codes(page.diagnostics),
        "</main>",
    ]
    return _FRAME.format(style=_STYLE, body="\n".join(filter(None, body)))


def _left(left: Sequence[Diagnostic]) -> Iterator[str]:
    yield "<section id=left><h2>Left to a person</h2>"
    if not left:
        yield "<p class=none>Nothing was left.</p>"
    for each in left:
        yield _told(each, named=True)
    yield "</section>"


def _all_notices(notices: Sequence[Diagnostic], changed: Sequence[Conversion]) -> Iterator[str]:
    paths = {each.path for each in changed}
    other = [each for each in notices if each.path not in paths]
    yield "<section id=notices><h2>Notices</h2>"
    if not notices:
        yield "<p class=none>There is none.</p>"
    elif len(other) < len(notices):
        yield "<p>Each stands at its line, in the files below."
        counts: dict[str, int] = {}
        for each in notices:
            counts[each.code] = counts.get(each.code, 0) + 1
        yield " ".join(f"{_code(code)}&nbsp;&times;&nbsp;{n}" for code, n in sorted(counts.items()))
        yield "</p>"
    for each in other:
        yield _told(each, named=True)
    yield "</section>"


def _changed(changed: Sequence[Conversion], diagnostics: Sequence[Diagnostic]) -> Iterator[str]:
    yield "<section id=changed><h2>What changes</h2>"
    if not changed:
        yield "<p class=none>Nothing changes.</p>"
    for each in changed:
        own = [d for d in diagnostics if d.path == each.path]
        functions = ", ".join(
            f"<code>{escape(one.qualname or one.kind)}</code>" for one in each.conversions
        )
        yield f"<details open id='{_anchor(each.path)}'>"
        yield f"<summary><b>{escape(each.path)}</b> {functions}</summary>"
        yield from _side_by_side(each, own)
        yield "</details>"
    yield "</section>"


def _side_by_side(each: Conversion, own: Sequence[Diagnostic]) -> Iterator[str]:
    before, now = each.source.splitlines(), each.code.splitlines()
    told: dict[int, list[Diagnostic]] = {}
    for one in own:
        told.setdefault(one.line, []).append(one)
    yield "<table class=diff><colgroup><col class=n><col><col class=n><col></colgroup><thead>"
    yield "<tr><th colspan=2>before</th><th colspan=2>now</th></tr></thead><tbody>"
    shown = _shown(before, now, told)
    last = None
    for left, right, kind in shown:
        if last is not None and left is not None and last + 1 < left:
            yield "<tr class=gap><td colspan=4>⋯</td></tr>"
        last = left if left is not None else last
        yield (f"<tr class={kind}>{_cell(before, left, 'old')}{_cell(now, right, 'new')}</tr>")
        if left is not None:
            for one in told.pop(left + 1, ()):
                yield f"<tr class=notice><td colspan=4>{_told(one)}</td></tr>"
    yield "</tbody></table>"


def _shown(
    before: Sequence[str], now: Sequence[str], told: Iterable[int]
) -> list[tuple[int | None, int | None, str]]:
    lines: list[tuple[int | None, int | None, str]] = []
    matcher = difflib.SequenceMatcher(None, before, now, autojunk=False)
    near: set[int] = set()
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            lines += [(a + i, c + i, "same") for i in range(b - a)]
            continue
        near |= set(range(a - _AROUND, b + _AROUND))
        for i in range(max(b - a, d - c)):
            left = a + i if a + i < b else None
            right = c + i if c + i < d else None
            lines.append((left, right, "change"))
    near |= {line - 1 + i for line in told for i in range(-1, 2)}
    return [each for each in lines if each[2] == "change" or each[0] in near]


def _cell(lines: Sequence[str], index: int | None, side: str) -> str:
    if index is None:
        return f"<td class=n></td><td class='{side} empty'></td>"
    text = escape(lines[index]) or "&nbsp;"
    return f"<td class=n>{index + 1}</td><td class={side}>{text}</td>"


def _told(each: Diagnostic, *, named: bool = False) -> str:
    function = f"<code>{escape(each.function)}</code> " if each.function else ""
    where = f"<span class=where>{escape(each.path)}:{each.line}</span> " if named else ""
    return (
        f"<div class='told {each.severity}'><p>{_code(each.code)} {where}{function}"
        f"{_text(each.message)}</p><p class=remedy>{_text(each.remedy)}</p></div>"
    )


def _text(text: str) -> str:
    # What stands between backticks is code, as it is in the diagnostics.
    parts = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))


def _code(code: str) -> str:
    return f"<a class=code href='#{code}'>{code}</a>"


def _codes(diagnostics: Sequence[Diagnostic]) -> Iterator[str]:
    codes = sorted({each.code for each in diagnostics})
    if codes:
        yield "<section id=codes><h2>What the codes mean</h2><dl>"
        for code in codes:
            entry = CODES[code]
            yield f"<dt id={code}><b>{code}</b> {_text(entry.title)}</dt>"
            yield f"<dd>{_text(entry.why)}</dd>"
        yield "</dl></section>"


def _anchor(path: str) -> str:
    return quote(PurePath(path).as_posix(), safe="/")


def _pairs(page: Page) -> Iterator[str]:
    yield "<section id=pairs><h2>Paired runs</h2>"
    if page.verified is None:
        yield "<p class=none>None: the command was run without <code>--verify</code>.</p>"
    else:
        yield f"<p>{escape(page.verified)}</p>"
        yield "<div class=wide><table class=pairs><thead><tr><th>function</th><th>pairs</th>"
        yield "<th>the same</th><th>better</th></tr></thead><tbody>"
        for path, name, pairs, same, better in page.pairs:
            yield (
                f"<tr><td><code>{escape(name)}</code><br><small>{escape(path)}</small></td>"
                f"<td>{pairs}</td><td>{same}</td><td>{escape(better) or '&ndash;'}</td></tr>"
            )
        yield "</tbody></table></div>"
    yield "</section>"


_FRAME = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>httpmw migrate</title>
<style>{style}</style></head>
<body>
{body}
</body></html>
"""
_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2128; --quiet: #59636e; --line: #d1d9e0;
  --soft: #f6f8fa; --old: #ffebe9; --new: #dafbe1; --link: #0550ae; --error: #b3261e;
  --notice: #7a5200; --empty: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --text: #e6edf3; --quiet: #9aa4af;
  --line: #30363d; --soft: #161b22; --old: #3d1a1d; --new: #12321d; --link: #79b8ff;
  --error: #ff8a80; --notice: #e3b341; --empty: #12161c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
header, main { max-width: 1500px; margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 2rem); }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .75rem; }
a { color: var(--link); } a:focus-visible, summary:focus-visible { outline: 2px solid var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .5rem; }
nav a { border: 1px solid var(--line); border-radius: 1rem; padding: .15rem .75rem;
  text-decoration: none; background: var(--soft); }
code, .diff td { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .85rem; }
.summary { font-size: 1.05rem; } .none, .where, small, .n { color: var(--quiet); }
.told { border-left: 4px solid var(--notice); background: var(--soft); padding: .5rem .75rem;
  margin: .5rem 0; font: .9rem/1.45 system-ui, sans-serif; white-space: normal; }
.told.error { border-color: var(--error); } .told p { margin: 0; }
.told .remedy { color: var(--quiet); margin-top: .25rem; }
.code { font-weight: 600; color: var(--notice); } .error .code { color: var(--error); }
details { border: 1px solid var(--line); border-radius: .5rem; margin: 0 0 1rem; overflow: hidden; }
summary { cursor: pointer; padding: .5rem .75rem; background: var(--soft); }
.diff { width: 100%; border-collapse: collapse; table-layout: fixed; }
.diff th { text-align: left; font-size: .8rem; font-weight: 600; color: var(--quiet);
  padding: .25rem .75rem; border-top: 1px solid var(--line); }
.diff td { vertical-align: top; padding: 0 .5rem; white-space: pre-wrap; }
.diff col.n { width: 3rem; }
.diff td.n { text-align: right; user-select: none; padding: 0 .25rem; }
.change .old { background: var(--old); } .change .new { background: var(--new); }
.change .empty { background: var(--empty); }
.gap td { text-align: center; color: var(--quiet); background: var(--soft); }
.wide { overflow-x: auto; }
.pairs { border-collapse: collapse; width: 100%; }
.pairs th, .pairs td { text-align: left; padding: .35rem .75rem;
  border-bottom: 1px solid var(--line); vertical-align: top; }
@media (max-width: 760px) {
  .diff thead { display: none; }
  .diff, .diff tbody, .diff tr, .diff td { display: block; width: auto; }
  .diff .n, .diff colgroup { display: none; }
  .diff td.empty, .same .new { display: none; }
  .diff td { padding: 0 .6rem; }
  .same .old::before { content: "  "; }
  .change .old::before { content: "- "; } .change .new::before { content: "+ "; }
}
dt { margin-top: 1rem; } dd { margin: .25rem 0 0; color: var(--quiet); }
@media print { details { break-inside: avoid; } nav { display: none; } }
"""
