"""
What the project's code finds under `httpmw migrate --verify`, what it cannot do, and the tools.
"""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from httpmw.migrate._model import Converted
from httpmw.migrate.verifying._judge import Matrix, Module, Verdict, judge
from httpmw.migrate.verifying._matrix import REQUESTS
from httpmw.migrate.verifying._modules import Importer
from httpmw.migrate.verifying._stubs import Stub, StubError, World, described
from httpmw.migrate.verifying._verify import verify
from tests.migrate.verifying.test_verify import quiet_loop
from tools.migrate_fuzz import check, source

PASSING = """
async def mw(request, call_next):
    return await call_next(request)
"""
PASSED = """
async def mw(conn):
    yield
"""
MW = Converted("function", "mw", 2, "elsewhere")
TINY = Matrix(
    apps=("json", "ValueError", "stream"),
    requests=REQUESTS[1:3],
    paths=0,
    failures=1,
    failing_apps=("json",),
    failing_requests=REQUESTS[:1],
    seconds=60,
)


def verified(old: str, new: str, *targets: Converted, **options: Any) -> list[Verdict]:
    """Run two sources in a process of its own."""
    return verify(old, new, targets or [MW], **options)


# -------------------------------------------------------------------------- nothing real is touched


def test_nothing_outside_is_touched(tmp_path: Path) -> None:
    """What would write, delete, connect or start something is a stub or is refused."""
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    effects = f"""
import io, os, pathlib, shutil, socket, sqlite3, subprocess
folder = pathlib.Path({str(tmp_path)!r})
tried = []
def attempt(what):
    try:
        what()
    except PermissionError:
        tried.append("refused")
    except Exception:
        tried.append("failed")
def all_of_it():
    attempt(lambda: (folder / "made").write_text("x"))
    attempt(lambda: io.open(folder / "kept", "a").write("x"))
    attempt(lambda: os.open(folder / "made", os.O_WRONLY | os.O_CREAT))
    attempt(lambda: (folder / "kept").unlink())
    attempt(lambda: os.rename(folder / "kept", folder / "gone"))
    attempt(lambda: os.mkdir(folder / "sub"))
    attempt(lambda: os.system("touch " + str(folder / "made")))
    attempt(lambda: os.posix_spawn("/bin/touch", ["touch", str(folder / "made")], {{}}))
    attempt(lambda: open(folder / "made", "w").write("x"))
    attempt(lambda: shutil.rmtree(folder))
    attempt(lambda: subprocess.run(["touch", str(folder / "made")]))
    attempt(lambda: sqlite3.connect(folder / "made"))
    attempt(lambda: socket.create_connection(("127.0.0.1", 9)))
    attempt(lambda: __import__("_socket").socket().connect(("127.0.0.1", 9)))
    attempt(lambda: os.kill(os.getppid(), 15))
at_import = all_of_it()
"""
    old = f"{effects}async def mw(request, call_next):\n    all_of_it()\n"
    old += "    response = await call_next(request)\n"
    old += "    response.headers['x-tried'] = ' '.join(tried)\n    return response\n"
    new = old.replace("request, call_next", "conn").replace("await call_next(request)", "yield")
    new = new.replace("\n    return response", "")
    line = old[: old.index("async def")].count("\n") + 1

    (verdict,) = verified(old, new, Converted("function", "mw", line, "elsewhere"))

    assert ("", 0) == (verdict.problem, verdict.differing)
    assert verdict.identical > 100
    assert ["kept"] == [each.name for each in tmp_path.iterdir()]
    assert "as it was" == kept.read_text()


def test_the_modules_of_the_project_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that lies beside the file is a stub all the same."""
    (tmp_path / "project.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path)!r}, 'imported').touch()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    head = "import project\nfrom project import thing\nfrom .other import more\nproject.start()\n"

    (verdict,) = verified(
        head + PASSING, head + PASSED, Converted("function", "mw", 6, "elsewhere")
    )

    assert ("", 0) == (verdict.problem, verdict.differing)
    assert not (tmp_path / "imported").exists()


# ------------------------------------------------------------------------------- time and failures


def test_code_that_does_not_end_is_ended() -> None:
    """An endless loop is neither the same nor a difference: it could not be run."""
    endless = "async def mw({}):\n    while True:\n        try:\n            pass\n"
    endless += "        except:\n            pass\n    {}\n"

    (verdict,) = verified(
        endless.format("request, call_next", "return await call_next(request)"),
        endless.format("conn", "yield"),
        Converted("function", "mw", 1, "elsewhere"),
        run_seconds=0.05,
    )

    assert "it does not end" in verdict.problem


def test_a_version_that_hangs_is_a_difference() -> None:
    """Where only one of the two waits for ever they differ, and soon no more is run."""
    waiting = "import anyio\nasync def mw(conn):\n    await anyio.sleep_forever()\n    yield\n"

    (verdict,) = verified(f"\n\n{PASSING}", waiting, Converted("", "mw", 4, ""), run_seconds=0.5)

    assert verdict.differing == verdict.pairs > 0


def test_the_time_limit_for_a_file_holds() -> None:
    """What was not reached in time is said to be so."""
    (verdict,) = verified(PASSING, PASSED, seconds=0.01)

    assert "it was not reached" == verdict.problem


NOT_RUN = {
    "gone": (PASSING, "async def other(conn):\n    yield\n", "only one of the versions"),
    "undefinable": (
        PASSING.replace("call_next):", "call_next, limit=1 / 0):"),
        PASSED,
        "it cannot be defined: ZeroDivisionError",
    ),
    "elsewhere": (
        """
from project import helper
async def mw(request, call_next):
    return await helper(request, call_next)
""",
        "from project import helper\nasync def mw(conn):\n    yield helper(conn)\n",
        "`call_next` is handed to something that is in another file",
    ),
}


@pytest.mark.parametrize("name", NOT_RUN)
def test_what_cannot_be_run_is_told_apart(name: str, loop: asyncio.AbstractEventLoop) -> None:
    """It has no pairs, and the reason."""
    old, new, reason = NOT_RUN[name]

    verdict = judge(Module(old, "starlette"), Module(new, "generator"), "mw", 2, loop)

    assert reason in verdict.problem
    assert 0 == verdict.differing


def test_a_function_that_is_not_there_is_told(loop: asyncio.AbstractEventLoop) -> None:
    """A name that the old source does not have is a problem of its own."""
    verdict = judge(Module("", "starlette"), Module("", "generator"), "mw", 1, loop)

    assert "it is not in the source" == verdict.problem


def test_functions_of_the_same_name_are_told_apart(loop: asyncio.AbstractEventLoop) -> None:
    """`@app.middleware("http")` functions are often all called the same."""
    old = PASSING + "\nasync def mw(request, call_next):\n    return PlainTextResponse('no')\n"
    old = "from starlette.responses import PlainTextResponse\n" + old
    new = "from starlette.responses import PlainTextResponse\n" + PASSED
    new += "\nasync def mw(conn):\n    yield PlainTextResponse('no')\n"
    modules = Module(old, "starlette"), Module(new, "generator")

    for line in (3, 6):
        verdict = judge(*modules, "mw", line, loop, Matrix(requests=REQUESTS[:1]))
        assert ("", 0) == (verdict.problem, verdict.differing)


def test_a_base_class_of_another_file_does_nothing(loop: asyncio.AbstractEventLoop) -> None:
    """A class of the project may derive from one that is not known."""
    old = """
from project import Base

class Mine(Base):
    async def dispatch(self, request, call_next):
        response = await super().dispatch(request, call_next)
        response.headers["x-mine"] = self.name
        return response
"""
    new = old.replace("request, call_next", "conn").replace("await super()", "yield super()")
    new = new.replace("        return response\n", "")

    verdict = judge(
        Module(old, "starlette"), Module(new, "generator"), "Mine.dispatch", 5, loop, Matrix()
    )

    assert ("", 0) == (verdict.problem, verdict.differing), verdict.differences


# ------------------------------------------------------------------------------------- the stubs


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop of all runs in this file."""
    with quiet_loop() as loop:
        yield loop


def world(*, truthy: bool = True, raised: frozenset[str] = frozenset()) -> World:
    """Make a world in which a run is under way."""
    made = World(truthy=truthy, raised=raised)
    made.loading = False
    return made


def use(act: Callable[[Any], object]) -> list[str]:
    """Do something with a stub, and give the trace."""
    made = world()
    act(Stub(made, "it"))
    return made.trace


def set_attribute(it: Any) -> None:
    it.name = "x"
    assert "x" == it.name


def set_item(it: Any) -> None:
    it["key"] = [1]
    assert [1] == it["key"]


def enter(it: Any) -> None:
    with it("a") as inside, pytest.raises(LookupError):
        assert "<it().__enter__()>" == str(inside)
        with it.lock:
            raise LookupError


TRACES: dict[str, tuple[Callable[[Any], object], list[str]]] = {
    "a call": (lambda it: it.save(1, key="v"), ["it.save(1, key='v')"]),
    "a call of what was returned": (lambda it: it()("a"), ["it()", "it()('a')"]),
    "an attribute that is read": (lambda it: it.name.more, []),
    "an attribute that is set": (set_attribute, ["it.name = 'x'"]),
    "an item that is set": (set_item, ["it['key'] = list(1)"]),
    "contexts": (
        enter,
        ["it('a')", "enter it()", "enter it.lock", "exit it.lock: LookupError", "exit it(): None"],
    ),
}


@pytest.mark.parametrize("name", TRACES)
def test_the_trace_tells(name: str) -> None:
    """Calls, contexts and assignments are told, reading is not."""
    act, trace = TRACES[name]

    assert trace == use(act)


def test_a_stub_is_whatever_is_wanted() -> None:
    """It is text, a number, a sequence of the wanted length, a base class, JSON, a response."""
    it = Stub(world(), "it")
    first, second, third = it.triple()

    class Derived(it):  # type: ignore[misc,valid-type]
        pass

    assert isinstance(it, Response)
    assert isinstance(3, it)  # type: ignore[arg-type]
    assert [True] * 4 == [it > 3, it == "x", "x" in it, bool(it)]
    assert ("<it>", '"<it>"', "<it> 7") == (str(it), json.dumps(it), f"{it:>3} {int(it)}")
    assert ("<it.triple()[0]>", "<it.triple()[2]>") == (str(first), str(third))
    assert second is not None
    assert Derived(1, option=2) is not None
    assert b"<it>" == it.encode("latin-1")


def test_a_false_stub_is_false_and_empty() -> None:
    """In the second world every branch that depends on the project goes the other way."""
    it = Stub(world(truthy=False), "it")

    assert [False] * 4 == [it > 3, it == "x", "x" in it, bool(it)]
    assert [] == list(it)
    assert 0 == len(it) == int(it)


def test_a_name_that_is_caught_is_an_exception() -> None:
    """What stands in an `except` clause can be raised, with any arguments and attributes."""
    made = world(raised=frozenset({"Denied"}))
    denied = made.named("errors.Denied")

    with pytest.raises(denied) as caught:
        raise denied("no", status=403)

    assert denied is made.named("Denied")
    assert (403, "<error.detail>") == (caught.value.status, str(caught.value.detail))  # type: ignore[attr-defined]


def test_the_call_that_shall_fail_fails() -> None:
    """One call after the other is made to fail."""
    made = world()
    made.raise_at = 1
    it = Stub(made, "it")

    it()
    with pytest.raises(StubError):
        it()
    it()

    assert 3 == made.calls


REPEATABLE = """
import time, uuid, secrets, random, os
from datetime import datetime, timezone
told = [time.time(), time.perf_counter(), str(uuid.uuid4()), secrets.token_hex(4), random.random(),
        datetime.now(timezone.utc).isoformat(), datetime.utcnow().isoformat(), os.urandom(2).hex(),
        random.choice([1, 2, 3]), str(os.environ["HOME"]), str(os.getenv("X"))]
"""


def test_time_and_chance_are_repeatable() -> None:
    """Both versions see the same clock, ids and random numbers."""
    told = []
    for _ in range(2):
        made = world()
        names: dict[str, Any] = {"__builtins__": {"__import__": Importer(made, {}), "str": str}}
        exec(REPEATABLE, names)  # noqa: S102 - it is our own
        told.append(names["told"])

    assert told[0] == told[1]
    assert ["<environ.HOME>", "<environ.X>"] == told[0][-2:]


def test_fastapi_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has from Starlette is Starlette's then, and the rest are stubs."""
    monkeypatch.setattr(
        "httpmw.migrate.verifying._modules._imported", lambda name: not name.startswith("fastapi")
    )
    find = Importer(world(), {})

    fastapi = find("fastapi", fromlist=("Request", "FastAPI"))
    responses = find("fastapi.responses", fromlist=("PlainTextResponse",))

    assert (Request, PlainTextResponse) == (fastapi.Request, responses.PlainTextResponse)
    assert 404 == fastapi.status.HTTP_404_NOT_FOUND
    assert "<FastAPI>" == str(fastapi.FastAPI)


def test_values_are_told_without_addresses() -> None:
    """A line of the trace is the same in both versions."""
    request = Request({"type": "http", "method": "GET", "path": "/x", "headers": []})
    response = PlainTextResponse("x", headers={"a": "1"})

    assert "request GET /x" == described(request)
    assert described(response).startswith("response 200 [(b'a', b'1')")
    assert "{'k': list(1, None)}" == described({"k": [1, None]})
    assert "object" == described(object())
    assert "ValueError: at 0x" == described(ValueError(f"at {id(request):#x}"))


# ------------------------------------------------------------------------------------- the tools


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_generated_middleware_behaves_the_same(first: int, loop: asyncio.AbstractEventLoop) -> None:
    """`tools/migrate_fuzz.py` finds no difference."""
    converted = 0
    for seed in range(first, first + 20):
        result = check(source(seed), loop, TINY)
        converted += bool(result.verdicts)
        assert [] == result.wrong, source(seed)

    assert converted >= 15


def test_the_corpus_tool_prints_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes a folder with an index, and compares the drop-in and the rewrite."""
    (tmp_path / "a.py").write_text(
        "from starlette.middleware.base import BaseHTTPMiddleware\n"
        "class A(BaseHTTPMiddleware):\n"
        "    async def dispatch(self, request, call_next):\n"
        "        return await call_next(request)\n"
    )
    row = {"id": "a1", "file": "a.py", "qualname": "A.dispatch", "line": 3, "sample": "ours"}
    (tmp_path / "index.json").write_text(json.dumps([row]))
    monkeypatch.setattr(sys, "argv", ["corpus.py", str(tmp_path), "--json", str(tmp_path / "out")])

    with pytest.raises(SystemExit) as ended:
        runpy.run_path("tools/corpus.py", run_name="__main__")

    told = capsys.readouterr().out
    assert 0 == ended.value.code
    assert "drop-in, ours: 1 functions, {'run': 1}" in told
    assert "rewrite, ours: 1 functions, {'converted': 1}" in told
    assert {"drop-in", "rewrite"} == json.loads((tmp_path / "out").read_text()).keys()
