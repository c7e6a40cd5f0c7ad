"""
Run `httpmw migrate` over whole public trees, and count what must not happen.

    python -m tools.migrate_trees MIRROR [--pointers FILE] [--only NAME ...] [--json FILE]

The pointers (tools/migrate_trees.txt) are lines of `owner/name commit`; no code of others is kept
here. MIRROR holds their git directories, as `owner+name/repo`, `owner+name.git` or `owner+name`;
`git clone --bare https://github.com/OWNER/NAME MIRROR/OWNER+NAME.git` makes one.

Of each tree the Python files and what configures a formatter are taken out into a temporary
folder, and the command is run there with `--write` and once more with `--check`. Told are

* crashes: another exit code than 0 or 3, or HM195;
* broken: files that do not compile afterwards, and did before;
* again: files that a second run would change;
* not HTTP: functions that were converted in a file that never speaks of Starlette or FastAPI, to
  be looked at by a person;
* unclean: changed files that were clean under the project's ruff, black or isort, and are not now.

The exit status is 1 where one of these is not 0.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from httpmw.migrate._tools import Tools

Row = dict[str, Any]
_HTTP = re.compile(
    r"starlette|fastapi|BaseHTTPMiddleware|RequestResponseEndpoint|httpmw", re.IGNORECASE
)
_WANTED = re.compile(
    r"\.py$|(?:^|/)(?:pyproject\.toml|\.?ruff\.toml|\.isort\.cfg|setup\.cfg|tox\.ini)$"
)
_CHECKS = {
    "ruff": (("check", "--quiet", "--select", "I,F401,F841"), ("format", "--quiet", "--check")),
    "isort": (("--quiet", "--check-only"),),
    "black": (("--quiet", "--check"),),
}
_BAD = ("crashes", "broken", "again", "not_http", "unclean")


def main() -> int:
    """
    Run over the trees that were asked for, and print what came of them.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("mirror", type=Path)
    parser.add_argument(
        "--pointers", type=Path, default=Path(__file__).with_name("migrate_trees.txt")
    )
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name, commit in _pointers(options.pointers):
        if options.only and name not in options.only:
            continue
        row = _run(name, commit, options.mirror)
        rows.append(row)
        print(f"{name}: {_told(row)}", flush=True)
    total: Counter[str] = Counter()
    for row in rows:
        total.update({key: value for key, value in row.items() if isinstance(value, int)})
        total.update({key: len(row.get(key, ())) for key in _BAD})
    missing = sum("missing" in row for row in rows)
    print(f"\n{len(rows) - missing} trees, {missing} not there: {dict(total)}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), "utf-8")
    return int(any(total[key] for key in _BAD))


def _pointers(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, commit = line.split()
            yield name, commit


def _told(row: Row) -> str:
    if "missing" in row:
        return f"not there: {row['missing']}"
    bad = "; ".join(f"{key}: {row[key]}" for key in _BAD if row[key])
    return (
        f"{row['files']} files, {row['functions']} functions in {row['changed']} converted, "
        f"{row['left']} left, {row['clean']} files were clean{f'; {bad}' if bad else ''}"
    )


def _run(name: str, commit: str, mirror: Path) -> Row:
    folder = name.replace("/", "+")
    places = (mirror / folder / "repo", mirror / f"{folder}.git", mirror / folder)
    git = next((each for each in places if (each / "HEAD").exists()), None)
    if git is None:
        return {"name": name, "missing": "no git directory"}
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary, "tree")
        (tree / ".git").mkdir(parents=True)  # where a project ends
        if not _taken_out(git, commit, tree):
            return {"name": name, "missing": f"no commit {commit}"}
        return {"name": name, "commit": commit, **_converted(tree)}


def _taken_out(git: Path, commit: str, tree: Path) -> bool:
    # Not `git archive`, which ends where a snapshot lacks one of its larger files.
    at = ["git", "--git-dir", str(git)]
    listed = subprocess.run([*at, "ls-tree", "-r", "-z", commit], capture_output=True, check=False)
    wanted = []
    for line in listed.stdout.decode("utf-8", "replace").split("\0"):
        entry, _, path = line.partition("\t")
        if entry.startswith("100") and _WANTED.search(path):
            wanted.append((entry.split()[2], path))
    objects = "".join(f"{name}\n" for name, _ in wanted).encode()
    contents = subprocess.run(
        [*at, "cat-file", "--batch"], input=objects, capture_output=True, check=False
    ).stdout
    start = 0
    for _, path in wanted:
        end = contents.index(b"\n", start)
        head = contents[start:end].decode().split()
        start = end + 1
        if head[-1] != "missing":
            size = int(head[-1])
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(contents[start : start + size])
            start += size + 1
    return bool(wanted)


def _converted(tree: Path) -> Row:
    before = _command(tree)
    row: Row = {key: [] for key in _BAD}
    row |= {"files": 0, "functions": 0, "changed": 0, "left": 0, "clean": 0}
    if before is None:
        return row | {"crashes": ["the first run"]}
    changed = [each for each in before["files"] if each["changed"]]
    sources = {each["path"]: (tree / each["path"]).read_bytes() for each in changed}
    clean = {path for path in sources if _is_clean(tree, path)}
    done = _command(tree, "--write")
    again = _command(tree)
    if done is None or again is None:
        return row | {"crashes": ["a later run"]}
    said = done["diagnostics"]
    row["files"] = int(done["summary"].split()[0])
    row["functions"] = sum(len(each["conversions"]) for each in changed)
    row["changed"] = len(changed)
    row["left"] = len({(d["path"], d["function"]) for d in said if d["severity"] == "error"})
    row["clean"] = len(clean)
    row["crashes"] = [f"{d['path']}: {d['message']}" for d in said if d["code"] == "HM195"]
    row["broken"] = [path for path in sources if not _compiles(tree / path)]
    row["again"] = [each["path"] for each in again["files"] if each["changed"]]
    row["not_http"] = [
        f"{each['path']}:{one['line']} {one['qualname']}"
        for each in changed
        for one in each["conversions"]
        if not _HTTP.search(sources[each["path"]].decode("utf-8", "replace"))
        and one["registered"] == "elsewhere"
    ]
    row["unclean"] = [path for path in sorted(clean) if not _is_clean(tree, path)]
    return row


def _command(tree: Path, *options: str) -> dict[str, Any] | None:
    done = subprocess.run(
        [sys.executable, "-m", "httpmw", "migrate", "--json", *options, "."],
        cwd=tree,
        capture_output=True,
        check=False,
    )
    if done.returncode not in {0, 3}:
        print(done.stderr.decode("utf-8", "replace")[-2000:], file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _compiles(path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            return False
    return True


def _is_clean(tree: Path, path: str) -> bool:
    # Under all that the project configures, each asked for itself.
    names = Tools().configured(tree / path)
    commands = [
        [sys.executable, "-m", name, *check, str(tree / path)]
        for name in names
        for check in _CHECKS[name]
    ]
    return bool(commands) and all(
        subprocess.run(each, cwd=(tree / path).parent, capture_output=True, check=False).returncode
        == 0
        for each in commands
    )


if __name__ == "__main__":
    sys.exit(main())
