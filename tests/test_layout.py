"""The rooms of the code, which may import which, and that no files stand in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import ROOT

# The engine's modules that still know one another; a name goes when its module stands apart.
ENGINE = {
    *("_body", "_call_next", "_connection", "_exchange", "_handlers", "_handshake", "_limit"),
    *("_observe", "_response", "_scope", "_travel"),
}
FILES = sorted((ROOT / "httpmw").rglob("*.py"))


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(file): file for file in FILES}


def imported(file: Path) -> set[str]:
    """Give the modules of httpmw that a file imports, wherever in it the import stands."""
    name = name_of(file)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(around if node.level else ()), *filter(None, [node.module])])
            for each in node.names:
                inner = f"{base}.{each.name}"
                found.add(inner if inner in NAMES else base)
    return (found & NAMES.keys()) - {name}


IMPORTS = {name: imported(file) for name, file in NAMES.items()}


def circles(arrows: dict[str, set[str]]) -> Iterator[set[str]]:
    """Give the names that can be come back to, those of one circle together."""
    behind: dict[str, set[str]] = {}
    for name in arrows:
        reached: set[str] = set()
        waiting = [name]
        while waiting:
            new = arrows[waiting.pop()] - reached
            reached |= new
            waiting += new
        behind[name] = reached
    seen: set[str] = set()
    for name, reached in behind.items():
        if name in reached and name not in seen:
            circle = {other for other in reached if name in behind[other]}
            seen |= circle
            yield circle


def test_circles_are_found() -> None:
    """Of two files, of three, and none where the arrows run one way."""
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d", "f"}, "f": set()}

    assert list(circles(arrows)) == [{"a", "b", "c"}, {"d", "e"}]
    assert list(circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})) == []


def test_imports_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    """Those in functions, and those for the type checkers, count as well."""
    arrows = IMPORTS["httpmw.stack"]

    assert {"httpmw._chain", "httpmw._installed"} <= arrows  # the second for types, in a function


def test_no_files_stand_in_a_circle() -> None:
    """Neither at run time, nor for the type checkers, nor by way of imports in functions."""
    left = {f"httpmw.{name}" for name in ENGINE}
    arrows = {name: to - left if name in left else to for name, to in IMPORTS.items()}

    assert list(circles(arrows)) == []


LONG = 400  # lines


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if len(file.read_text(encoding="utf-8").splitlines()) > LONG],
    ids=lambda file: file.relative_to(ROOT).as_posix(),
)
def test_a_long_file_opens_with_what_it_is(file: Path) -> None:
    """A comment, or what the module says of itself, stands before the first line of code."""
    if file.stem in {"_connection", "_response"} and file.parent.name == "httpmw":
        pytest.skip("its classes say it, each for itself")

    assert file.read_text(encoding="utf-8").startswith(("# ", '"""')), "say why it is one thing"


class Room(NamedTuple):
    """A row of the table in CONTRIBUTING."""

    name: str
    files: list[str]
    may_import: set[str]


def rooms() -> list[Room]:
    """Read the table."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = []
    table = text.partition("| may import |")[2].partition("\n\n")[0]
    for line in re.findall(r"^\| (`.+) \|$", table, re.MULTILINE):
        files, name, may_import = line.split(" | ")
        allowed = set() if may_import == "nothing" else set(may_import.split(", "))
        found.append(Room(name, re.findall(r"`([^`]+)`", files), allowed))
    return found


ROOMS = rooms()


def room_of(file: Path) -> Room | None:
    """Give the first room that a file belongs to; `*` stands for a part of a name."""
    path = file.relative_to(ROOT).as_posix()
    for room in ROOMS:
        for pattern in room.files:
            if path.startswith(pattern) if pattern.endswith("/") else _is_like(path, pattern):
                return room
    return None


def _is_like(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_file_imports_what_its_room_may(file: Path) -> None:
    """Each file is in a room of the table, and takes from no other than the table says."""
    room = room_of(file)
    assert room is not None, "the table in CONTRIBUTING.md has no room for it"
    others = {other: room_of(NAMES[other]) for other in IMPORTS[name_of(file)]}
    wrong = [
        other
        for other, there in others.items()
        if there is not None and there is not room and there.name not in room.may_import
    ]

    assert wrong == [], f"{room.name} may import {', '.join(room.may_import) or 'nothing'}"


def test_the_page_names_modules_that_are_there() -> None:
    """What the paragraphs of the rooms lead to is a file."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    page = text.partition("## How the code is laid out\n")[2].partition("\n## ")[0]
    names = set(re.findall(r"`(_[a-z_]+)`", page))

    assert len(names) > 30
    assert names - {file.stem for file in FILES} == set()


def test_the_table_runs_one_way() -> None:
    """A room may import those that stand above it in the table, so that no rooms are a circle."""
    above: set[str] = set()
    for room in ROOMS:
        assert room.may_import <= above, room.name
        above.add(room.name)


def test_the_table_says_nothing_that_is_not_so() -> None:
    """Each room has a file, and each arrow of the table is one of the code."""
    used: dict[str, set[str]] = {}
    for file in FILES:
        here = room_of(file)
        assert here is not None
        others: Iterable[Room | None] = (room_of(NAMES[each]) for each in IMPORTS[name_of(file)])
        used.setdefault(here.name, set()).update(each.name for each in others if each is not None)

    for room in ROOMS:
        assert room.may_import <= used[room.name], f"the table has too much for {room.name}"
