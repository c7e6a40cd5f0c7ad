"""
Run test suites of other projects before and after `httpmw migrate`, and compare.

    python -m tools.migrate_suites WORK MIRROR [--only NAME ...]

WORK, outside of the project, gets an environment that all suites share, and a folder for each;
MIRROR is a folder of git directories as for tools/migrate_trees.py. Of each project the pinned
commit is taken out and its suite is run four times: as it is, after `httpmw migrate --write` over
the whole tree with its tests, after `--to drop-in`, and as it is under `patch_starlette()`.

The exit status is 1 where a test does not end in the same way.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from suites import Outcomes, Suite, environment, outcomes, total, words

# The last versions that all of these suites work with by themselves: Starlette 1.0 took
# `app.route()` away, which some of them are written with.
_INSTALLED = (
    *("starlette<1", "fastapi<0.126", "pytest<9", "pytest-asyncio", "pytest-cov", "pytest-timeout"),
    *("httpx", "python-multipart", "requests", "setuptools<81", "PyYAML", "structlog"),
    *("asgi-correlation-id", "prometheus-client", "limits", "hiro", "mock"),
    *("django", "emoji", "flask", "jinja2"),
    *("sentry-sdk", "redis"),
)
_QUIET = ("-q", "-p", "no:cacheprovider", "-o", "addopts=", "--timeout=60")
_SUITES = {
    "tomwojcik/starlette-context 386a4a05d22c052707608c0b96979a5d3ad26832": ("tests",),
    "laurentS/slowapi 5e2b9c108f79471fc96a5152bb69774894660cd1": ("tests",),
    "perdy/starlette-prometheus 3d2f82e136116c78c66db653b6f6a0b262ad6d89": ("tests",),
    "bigbag/starlette-i18n 069260f31b7739b2f7916c359c03763ff15af480": ("tests",),
    "lst4rk/auditry 594b05e92b55fec32b89ef92322762a69b541fc0": ("tests",),
    "HydroX-labs/gt8004-sdk f2a1067972a13ce5eff3ea25c918afe15b6590a1": ("tests",),
    "watchingwhileusleep/x-request-id-middleware 11df4cc42d68e50b7b748d0487c742db0b51b6cf": (
        "tests",
    ),
    "Kathan-Naik/pypolite 0c775c1bd093bd134102a3eae26ff0fe1e47b889": ("tests",),
}
_WAYS = {
    "native": ("--write",),
    "drop-in": ("--write", "--to", "drop-in"),
    "patched": (),
}


def main() -> int:
    """
    Run the suites, and print what became of them.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("mirror", type=Path)
    parser.add_argument("--only", nargs="*", default=())
    options = parser.parse_args()
    work = options.work.resolve()
    python = environment(work, _INSTALLED)
    wrong = 0
    for pointer, tests in _SUITES.items():
        name, commit = pointer.split()
        if options.only and name not in options.only:
            continue
        suite = Suite(name.replace("/", "+"), (), tests, _QUIET)
        source = work / suite.name / "source"
        git = next(options.mirror.glob(f"{suite.name}/repo")).resolve()
        _take_out(git, commit, source)
        before = _ended(suite, source, python, "plain")
        print(f"{name}: {words(total(before))}", flush=True)
        for way, arguments in _WAYS.items():
            _take_out(git, commit, source)
            changed = _convert(source, arguments) if arguments else 0
            after = _ended(suite, source, python, way)
            every = sorted(before | after)
            differ = [each for each in every if before.get(each) != after.get(each)]
            wrong += len(differ)
            print(f"  {way}: {changed} files changed, {len(differ)} differences", flush=True)
            for each in differ:
                print(f"    {each}: {words(before.get(each))}, {words(after.get(each))}")
    return int(wrong > 0)


def _take_out(git: Path, commit: str, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = ["git", "--git-dir", str(git), "archive", "--format=tar", commit]
    packed = subprocess.run(archive, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        files.extractall(folder, filter="data")


def _convert(source: Path, options: Sequence[str]) -> int:
    command = [sys.executable, "-P", "-m", "httpmw", "migrate", *options, "."]
    done = subprocess.run(command, cwd=source, stdout=subprocess.PIPE, check=True)
    return len(done.stdout.splitlines())


def _ended(suite: Suite, source: Path, python: Path, way: str) -> Outcomes:
    plugin = ("-p", "patched_starlette") if way == "patched" else ()
    return outcomes(suite, source, python, source.parent / f"{way}.xml", plugin)


if __name__ == "__main__":
    sys.exit(main())
