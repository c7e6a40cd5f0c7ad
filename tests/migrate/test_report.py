"""`httpmw migrate --report`: one page for a reviewer."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from httpmw.cli import main
from tests.migrate.test_cli import LEFT, OLD

SOURCE = '''\
from starlette.responses import PlainTextResponse

TITLE = "<script>alert(1)</script>"


@app.middleware("http")
async def mw(request, call_next):
    """Uses call_next."""
    if "x" in request.headers:
        return PlainTextResponse("</td>")
    return await call_next(request)
'''


class Reader(HTMLParser):
    """Checks that what is opened is closed, and keeps ids and links."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self.seen.add(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [value for name, value in attrs if name in {"href", "src"}]
        if tag not in {"meta", "col", "br"}:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


@pytest.fixture
def page(tmp_path: Path) -> str:
    """The report over a file that changes and one that is left."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "mw.py").write_text(SOURCE)
    (tmp_path / "src" / "left.py").write_text(LEFT)
    assert main(["migrate", "--report", str(tmp_path / "r.html"), str(tmp_path / "src")]) == 0
    return (tmp_path / "r.html").read_text(encoding="utf-8")


def test_it_is_one_whole_page(page: str) -> None:
    """All that is opened is closed, every link leads to a place in it, and nothing is loaded."""
    reader = Reader()
    reader.feed(page)

    assert reader.stack == []
    assert len(set(reader.ids)) == len(reader.ids)
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.ids)
    assert all(link.startswith("#") for link in reader.links)
    assert not reader.seen & {"script", "link", "img", "iframe"}
    assert "default-src 'none'" in page


def test_what_changes_stands_side_by_side(page: str) -> None:
    """Before and after are in one row, and what did not change is not marked."""
    row = re.search(r"<tr class=change>.*?async def mw\(request, call_next\):.*?</tr>", page)

    assert row is not None
    assert "async def mw(request: Connection) -&gt; Flow:" in row[0]
    assert re.search(r"<tr class=same>[^\n]*PlainTextResponse</td>", page)


def test_a_notice_stands_below_its_line_with_its_remedy(page: str) -> None:
    """So does its code, which is explained at the end."""
    place = page.index("async def mw(request, call_next)")
    notice = page.index("Say in the docstring what the function does", place)

    assert page.count("</tr>", place, notice) == 1
    assert "<dt id=HM222>" in page


def test_what_was_left_is_told_with_its_reason(page: str) -> None:
    """With file, line, function and remedy, before all else."""
    left = page[page.index("<section id=left>") : page.index("<section id=notices>")]

    assert "left.py:3" in left
    assert "<code>mw</code>" in left
    assert "<code>conn.fail_after(seconds)</code>" in left


def test_what_comes_from_the_project_is_no_markup(page: str) -> None:
    """Source, paths and messages are text."""
    assert "<script" not in page
    assert "PlainTextResponse(&quot;&lt;/td&gt;&quot;)" in page


def test_the_pairs_that_were_run(tmp_path: Path) -> None:
    """With `--verify` each function has its pairs; without it the page says so."""
    (tmp_path / "mw.py").write_text(OLD)
    report = tmp_path / "r.html"
    assert main(["migrate", "--report", str(report), str(tmp_path)]) == 0
    assert "without <code>--verify</code>" in report.read_text()

    assert main(["migrate", "--verify", "--report", str(report), str(tmp_path)]) == 0

    pairs = re.search(
        r"<td><code>mw</code>.*?</td><td>(\d+)</td><td>(\d+)</td>", report.read_text()
    )
    assert pairs is not None
    assert int(pairs[1]) >= int(pairs[2]) > 100


def test_nothing_to_tell(tmp_path: Path) -> None:
    """A tree without middleware has a page as well."""
    (tmp_path / "x.py").write_text("x = 1\n")

    assert main(["migrate", "--report", str(tmp_path / "r.html"), str(tmp_path)]) == 0
    assert "Nothing changes." in (tmp_path / "r.html").read_text()


def test_a_report_that_cannot_be_written(tmp_path: Path, capsys: Any) -> None:
    """It is a fault, and all else is done."""
    (tmp_path / "mw.py").write_text(OLD)

    assert main(["migrate", "--write", "--report", str(tmp_path / "no" / "r"), str(tmp_path)]) == 3
    assert "HM192 cannot write it: No such file or directory" in capsys.readouterr().err
    assert "yield" in (tmp_path / "mw.py").read_text()
