"""
Run `httpmw migrate` over whole public trees, and count what must not happen.

    python -m tools.migrate_trees MIRROR [--verify] [--only NAME ...] [--json FILE]

The pointers (tools/migrate_trees.txt) are lines of `owner/name commit`; no code of others is kept
here. MIRROR holds their git directories, as `owner+name/repo`, `owner+name.git` or `owner+name`;
`git clone --bare https://github.com/OWNER/NAME MIRROR/OWNER+NAME.git` makes one.

Of each tree the Python files and what configures a formatter are taken out into a temporary
folder, and the command is run there with `--write` and once more. Told are

* crashes: another exit code than 0 or 3, or HM195;
* broken: files that do not compile afterwards, and did before;
* again: files that a second run would change;
* torn: functions that are not registered in the way they are written, found by names alone and
  so without the codemod's own eyes: a generator that Starlette's class gets, or a function with
  `call_next` that httpmw gets;
* not HTTP: functions that were converted in a file that never speaks of Starlette or FastAPI;
* unclean: changed files that were clean under the project's ruff, black or isort, and are not now.

With `--verify` the functions are run in pairs as well, which takes a second for each, and told are

* differ: functions whose versions differ (HM180), true or not.

The exit status is 1 where one of these is not 0. What a person has looked at and found right, HTTP
after all or a true difference, is named in tools/migrate_judged.txt and only counted.
"""

import argparse
import ast
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from httpmw.migrate._run import Options, run
from httpmw.migrate.writing._formatters import Tools

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
_BAD = ("crashes", "broken", "again", "torn", "not_http", "unclean", "differ")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_REGISTERS = re.compile(rb"HTTPMiddleware|middleware\(")
_HERE = Path(__file__).parent


def main() -> int:
    """
    Run over the trees that were asked for, and print what came of them.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("mirror", type=Path)
    parser.add_argument("--pointers", type=Path, default=_HERE / "migrate_trees.txt")
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verify", action="store_true", help="run the functions in pairs, too")
    options = parser.parse_args()
    judged = set(_lines(_HERE / "migrate_judged.txt"))
    rows = []
    for name, commit in _pointers(options.pointers):
        if options.only and name not in options.only:
            continue
        row = _run(name, commit, options.mirror, judged, verify=options.verify)
        rows.append(row)
        print(f"{name}: {_told(row)}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1), "utf-8")
    total: Counter[str] = Counter()
    for row in rows:
        total.update({key: value for key, value in row.items() if isinstance(value, int)})
        total.update({key: len(row.get(key, ())) for key in _BAD})
    missing = sum("missing" in row for row in rows)
    print(f"\n{len(rows) - missing} trees, {missing} not there: {dict(total)}")
    return int(any(total[key] for key in _BAD))


def _pointers(path: Path) -> Iterator[tuple[str, str]]:
    for line in _lines(path):
        name, commit = line.split()
        yield name, commit


def _lines(path: Path) -> Iterator[str]:
    for line in path.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            yield line


def _told(row: Row) -> str:
    if "missing" in row:
        return f"not there: {row['missing']}"
    bad = "; ".join(f"{key}: {row[key]}" for key in _BAD if row[key])
    return (
        f"{row['files']} files, {row['functions']} functions in {row['changed']} converted, "
        f"{row['left']} left, {row['clean']} files were clean{f'; {bad}' if bad else ''}"
    )


def _run(name: str, commit: str, mirror: Path, judged: set[str], *, verify: bool) -> Row:
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
        row = {"name": name, "commit": commit, **_converted(tree, verify=verify)}
    for kind in ("not_http", "differ"):
        told = row[kind]
        row[kind] = [each for each in told if f"{name} {each.partition(': ')[0]}" not in judged]
        row[f"{kind}_judged"] = len(told) - len(row[kind])
    return row


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


def _converted(tree: Path, *, verify: bool) -> Row:
    row: Row = {key: [] for key in _BAD}
    row |= {"files": 0, "functions": 0, "changed": 0, "left": 0, "clean": 0}
    row |= {"run": 0, "pairs": 0, "not_run": 0}
    if verify:
        row |= _verified(tree)
    before = {path: path.read_bytes() for path in tree.rglob("*.py")}
    done = _command(tree, write=True)
    again = _command(tree)
    if done is None or again is None:
        return row | {"crashes": [*row["crashes"], "at all"]}
    changed = [each for each in done["files"] if each["changed"]]
    sources = {each["path"]: before[tree / each["path"]] for each in changed}
    clean, unclean = _cleanness(tree, sources)
    said = done["diagnostics"]
    row["files"] = int(done["summary"].split()[0])
    row["functions"] = sum(len(each["conversions"]) for each in changed)
    row["changed"] = len(changed)
    row["left"] = len({(d["path"], d["function"]) for d in said if d["severity"] == "error"})
    row["clean"], row["unclean"] = clean, unclean
    row["crashes"] += [f"{d['path']}: {d['message']}" for d in said if d["code"] == "HM195"]
    row["broken"] = [path for path in sources if not _compiles(tree / path)]
    row["again"] = [each["path"] for each in again["files"] if each["changed"]]
    row["torn"] = sorted(_torn(tree, changed))
    row["not_http"] = [
        f"{each['path']} {one['qualname']}"
        for each in changed
        for one in each["conversions"]
        if not _HTTP.search(sources[each["path"]].decode("utf-8", "replace"))
        and one["registered"] == "elsewhere"
    ]
    return row


def _cleanness(tree: Path, sources: dict[str, bytes]) -> tuple[int, list[str]]:
    """
    Count the changed files that were clean, and name those that are not any more.
    """
    clean, unclean = 0, []
    for path, source in sources.items():
        now = (tree / path).read_bytes()
        (tree / path).write_bytes(source)
        was_clean = _is_clean(tree, path)
        (tree / path).write_bytes(now)
        clean += was_clean
        if was_clean and not _is_clean(tree, path):
            unclean.append(path)
    return clean, unclean


def _verified(tree: Path) -> Row:
    done = _command(tree, verify=True)
    if done is None:
        return {"crashes": ["with --verify"]}
    differ = [each for each in done["diagnostics"] if each["code"] == "HM180"]
    return {
        "run": done["verified"]["functions"],
        "pairs": done["verified"]["pairs"],
        "not_run": sum(each["code"] == "HM215" for each in done["diagnostics"]),
        "differ": [f"{each['path']} {each['function']}: {each['message']}" for each in differ],
    }


def _torn(tree: Path, changed: list[Row]) -> Iterator[str]:
    # In all files: what was not changed can be wrong as well.
    converted = {one["qualname"].rpartition(".")[2] for one in _conversions(changed)}
    files = {path.relative_to(tree): _parsed(path) for path in sorted(tree.rglob("*.py"))}
    every = [node for file in files.values() for node in ast.walk(file)]
    functions = [node for node in every if isinstance(node, _FUNCTIONS)]
    old = {each.name for each in functions if _is_old(each)}
    new = {each.name for each in functions if _is_new(each) and each.name in converted}
    wrong = {"starlette": new - old, "httpmw": old - new}
    for path, file in files.items():
        for node in ast.walk(file):
            for kind, registered in _registered(node):
                if isinstance(registered, _FUNCTIONS):
                    is_wrong = _is_new(registered) if kind == "starlette" else _is_old(registered)
                    name = registered.name
                else:
                    name = _name(registered)
                    is_wrong = name in wrong[kind]
                if is_wrong:
                    yield f"{path}:{registered.lineno} {name} with {kind}"


def _conversions(changed: list[Row]) -> Iterator[Row]:
    for each in changed:
        yield from each["conversions"]


def _parsed(path: Path) -> ast.Module:
    text = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text if _REGISTERS.search(text) else b"")
        except (SyntaxError, ValueError, RecursionError):
            return ast.parse(b"")


def _is_old(function: Any) -> bool:
    arguments = function.args.args
    calls = (each.func for each in ast.walk(function) if isinstance(each, ast.Call))
    return len(arguments) > 1 and arguments[-1].arg in {_name(each) for each in calls}


def _is_new(function: Any) -> bool:
    return isinstance(function, ast.AsyncFunctionDef) and any(
        isinstance(each, ast.Yield) for each in ast.walk(function)
    )


def _registered(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """
    Give what is registered here, and with whose class.
    """
    if isinstance(node, _FUNCTIONS):
        kinds = [_kind(each) for each in node.decorator_list]
        found: list[Any] = [node]
    elif isinstance(node, ast.ClassDef):
        kinds = [_kind(each) for each in node.bases]
        found = [each for each in node.body if getattr(each, "name", "") == "dispatch"]
    elif isinstance(node, ast.Call):
        kinds = [_kind(each) for each in (node.func, *node.args)]
        named = [each.value for each in node.keywords if each.arg == "dispatch"]
        found = [each for each in (*node.args, *named) if _name(each)]
    else:
        return
    for kind in {*kinds} - {""}:
        yield from ((kind, each) for each in found)


def _kind(node: ast.expr) -> str:
    """
    Say whose class registers, where one does.
    """
    if isinstance(node, ast.Call) and _name(node.func) in {"middleware", "http_middleware"}:
        http = any(isinstance(each, ast.Constant) and each.value == "http" for each in node.args)
        return "httpmw" if _name(node.func) == "http_middleware" else "starlette" if http else ""
    return {"BaseHTTPMiddleware": "starlette", "HTTPMiddleware": "httpmw"}.get(_name(node), "")


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _command(tree: Path, *, write: bool = False, verify: bool = False) -> Row | None:
    # In this process: starting it anew for each of three runs was most of the time.
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(tree):
        try:
            options = Options(paths=["."], as_json=True, write=write, verify=verify)
            status = run(options, out, err)
        except Exception:  # noqa: BLE001 - what the command would end with
            traceback.print_exc()
            return None
    found: Row = json.loads(out.getvalue())
    return found if status in {0, 3} else None


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
        [sys.executable, "-P", "-m", name, *check, str(tree / path)]
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
