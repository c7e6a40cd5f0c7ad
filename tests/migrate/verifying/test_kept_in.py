"""What `httpmw migrate --verify` keeps out, each line of the list in its page, and the verdicts."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

import pytest

from httpmw.migrate._model import Converted
from httpmw.migrate.verifying import _verify
from httpmw.migrate.verifying._judge import Verdict
from httpmw.migrate.verifying._verify import verify
from tests import ROOT

# Each is tried as a file of the project would do it, and by way of the modules behind the modules.
# `{0}` is a folder, `{1}` the number of a socket's port.
TRIED = {
    "a file that is written": [
        "io.open({0!r} + '/made', 'w')",
        "real('_io').FileIO({0!r} + '/made', 'w')",
    ],
    "a file that is opened by its number": [
        "os.open({0!r} + '/made', os.O_CREAT | os.O_WRONLY)",
        "real('posix').open({0!r} + '/made', 65)",
    ],
    "a file that is changed": [
        "os.remove({0!r} + '/kept')",
        "os.rename({0!r} + '/kept', {0!r} + '/made')",
        "os.truncate({0!r} + '/kept', 0)",
        "os.chmod({0!r} + '/kept', 0)",
        "real('shutil').rmtree({0!r})",
    ],
    "a folder, a link": [
        "os.mkdir({0!r} + '/made')",
        "os.symlink('x', {0!r} + '/made')",
        "os.link({0!r} + '/kept', {0!r} + '/made')",
        "real('tempfile').mkdtemp(dir={0!r})",
    ],
    "a named pipe, a node": [
        "os.mkfifo({0!r} + '/made')",
        "os.mknod({0!r} + '/made')",
        "real('posix').mkfifo({0!r} + '/made')",
        "real('posix').mknod({0!r} + '/made')",
    ],
    "a file that a library in C writes": [
        "imported('readline').write_history_file({0!r} + '/made')",
        "imported('_dbm').open({0!r} + '/made', 'c')",
        "imported('_gdbm').open({0!r} + '/made', 'c')",
        "imported('_sqlite3').connect({0!r} + '/made')",
        "imported('dbm.dumb').open({0!r} + '/made', 'c')",
    ],
    "a process": [
        "os.system('touch ' + {0!r} + '/made')",
        "os.fork() or os._exit(0)",
        "real('subprocess').run(['touch', {0!r} + '/made'])",
        "os.posix_spawn('/bin/touch', ['touch', {0!r} + '/made'], {{}})",
        "os.execv('/bin/touch', ['touch', {0!r} + '/made'])",
        "real('_posixsubprocess').fork_exec()",
    ],
    "a signal": ["os.kill(os.getppid(), 15)", "os.killpg(0, 15)"],
    "a connection": [
        "real('socket').create_connection(('127.0.0.1', {1}))",
        "real('_socket').socket().connect(('127.0.0.1', {1}))",
        "imported('http.client').HTTPConnection('127.0.0.1', {1}).request('GET', '/')",
    ],
    "a datagram": [
        "real('_socket').socket(2, 2).sendto(b'x', ('127.0.0.1', {1}))",
        "real('socket').socket(2, 2).sendmsg([b'x'], [], 0, ('127.0.0.1', {1}))",
    ],
    "a name that is looked up": ["real('socket').getaddrinfo('localhost', 80)"],
    "code that is not Python": [
        "imported('ctypes').CDLL(None)",
        "imported('_ctypes').dlopen(None, 0)",
    ],
    "a module of the project": [
        "imported('project')",
        "logging.config.dictConfig({{'version': 1, 'formatters': {{'a': {{'()': 'project.f'}}}}}})",
        "pkgutil.resolve_name('project:f')",
        "imported('runpy').run_module('project')",
    ],
    "the user and the place of the process": ["os.setuid(1)", "os.chdir({0!r})", "os.chroot('/')"],
    "the environment": ["os.putenv('A', 'b')", "real('os').environ['SECRET']"],
}
HEAD = """
import io, json, logging, logging.config, os, pkgutil, runpy, sys
def real(name):
    found = logging.sys.modules.get(name)
    return found if found is not None else imported(name)
def imported(name):
    return logging.sys.modules["importlib"].import_module(name)
tried = []
def attempt(what):
    try:
        what()
    except BaseException as exc:
        tried.append(type(exc).__name__)
    else:
        tried.append("DONE")
def all_of_it():
"""


def ran(head: str, monkeypatch: pytest.MonkeyPatch) -> Verdict:
    """Run it a few times only; the command runs it hundreds of times."""
    start = "import httpmw.migrate.verifying._verify as v; "
    start += "from httpmw.migrate.verifying._matrix import REQUESTS"
    start += "; real = v.Matrix; v.Matrix = lambda seconds: real(apps=('json',), "
    start += "requests=REQUESTS[:1], paths=0, failures=0, seconds=seconds); v.main()"
    monkeypatch.setattr(_verify, "_START", f"import sys; sys.path += sys.argv[1:]; {start}")
    old = f"{head}async def mw(request, call_next):\n    all_of_it()\n"
    old += "    response = await call_next(request)\n"
    old += "    response.headers['x-old'] = ' '.join(tried)\n    return response\n"
    new = old.replace("request, call_next", "conn").replace("await call_next(request)", "yield")
    new = new.replace("\n    return response", "").replace("x-old", "x-new")
    line = old[: old.index("async def")].count("\n") + 1
    (verdict,) = verify(old, new, [Converted("function", "mw", line, "elsewhere")])
    return verdict


@pytest.mark.skipif(sys.platform == "win32", reason="the list is tried as POSIX has it")
@pytest.mark.parametrize("kind", TRIED)
def test_it_is_kept_out(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page lists does not happen, at import and in the function, whatever the way."""
    folder, site = tmp_path / "folder", tmp_path / "site"
    folder.mkdir()
    site.mkdir()
    (folder / "kept").write_text("as it was")
    (site / "project.py").write_text(f"open({str(folder / 'made')!r}, 'w')\nf = dict\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("SECRET", "x")
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 0))
    listener.setblocking(False)
    code = "".join(
        f"    attempt(lambda: {each.format(str(folder), listener.getsockname()[1])})\n"
        for each in TRIED[kind]
    )

    verdict = ran(f"{HEAD}{code}at_import = all_of_it()\n", monkeypatch)

    with listener, pytest.raises(BlockingIOError):
        listener.recv(10)
    assert "" == verdict.problem
    # The two versions tell it in headers of other names, so that it is a difference.
    happened = re.findall(r"'x-(?:old|new)', '(.*?)'", verdict.differences[0].what)
    assert 2 == len(happened)
    assert {
        "PermissionError",
        "ModuleNotFoundError",
        "ImportError",
        "ValueError",
        "KeyError",
    } >= set(" ".join(happened).split())
    assert ["kept"] == [each.name for each in folder.iterdir()]
    assert "as it was" == (folder / "kept").read_text()


def test_the_page_has_each_line() -> None:
    """What is tried is the list of the page, in its words."""
    page = (ROOT / "docs" / "migrate-verify.md").read_text()
    table = page[page.index("## What is kept out") : page.index("## What it cannot see")]

    assert list(TRIED) == re.findall(r"^\| (.*?) \|", table, re.MULTILINE)[2:]


# ------------------------------------------------------------------------------------ the verdicts

FORGED = {
    "printed": "print({0!r}, flush=True)",
    "on the standard output": "logging.sys.__stdout__.write({0!r}); logging.sys.__stdout__.flush()",
    "on every descriptor": "[write(each, {0!r}.encode()) for each in range(64)]",
    "no JSON": "[write(each, b'{{}}\\n{{\\n[1]\\n') for each in range(64)]",
    "no end": "[write(each, b'x' * 65536) for each in range(64) for _ in range(600)]",
    "closed": "[logging.os.close(each) for each in range(64)]",
}
WRITE = """
def write(number, data):
    try:
        logging.os.write(number, data)
    except OSError:
        pass
"""
VERDICT = """\n{"qualname": "mw", "line": 1, "pairs": 1, "identical": 1, "improvements": {}, """
VERDICT += """"differences": [], "differing": 0, "problem": ""}\n{"index": 0, "verdict": {}}\n"""


@pytest.mark.parametrize("way", FORGED)
def test_a_verdict_cannot_be_written(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the code under test writes, a function that differs is not taken for the same."""
    code = f"{HEAD}    {FORGED[way].format(VERDICT)}\n{WRITE}"

    verdict = ran(code, monkeypatch)

    assert verdict.differing or verdict.problem == "it was not reached"


@pytest.mark.parametrize(
    "told",
    [
        b"[]",
        b"{",
        b"\xff",
        b'{"index": 9, "verdict": {}}',
        b'{"index": 0, "verdict": {"qualname": "mw"}}',
        b'{"index": 0, "verdict": {"qualname": "other", "line": 1, "differences": []}}',
        b'{"index": 0, "verdict": {"qualname": "mw", "line": 1, "pairs": "1", "differences": []}}',
        b'{"index": 0, "verdict": {"qualname": "mw", "line": 1, "pairs": -1, "differences": []}}',
        b'{"index": 0, "verdict": {"qualname": "mw", "line": 1, "differing": 1, "differences":[]}}',
        b'{"index": 0, "verdict": {"qualname": "mw", "line": 1, "improvements": {"x": "1"}}}',
    ],
)
def test_what_is_no_verdict_is_none(told: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit the schema is no verdict, also where somebody knows the secret."""
    monkeypatch.setattr(_verify, "_said", lambda job, _: job["secret"].encode() + b" " + told)

    (verdict,) = verify("", "", [Converted("function", "mw", 1, "elsewhere")])

    assert ("mw", 1, 0) == (verdict.qualname, verdict.line, verdict.identical)
    assert verdict.problem
