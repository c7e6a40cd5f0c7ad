"""
The benchmarks run, and their arms do the work that they claim to do; no time is asserted.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys

import anyio
import pytest
import trio
from starlette.testclient import TestClient

from benchmarks import (
    bodies,
    budget,
    grid,
    handshakes,
    import_time,
    jobs,
    memory,
    report,
    served,
    servers,
    targets,
)
from benchmarks.__main__ import main as run_benchmarks
from benchmarks.document import ROOT, document, find, read, write
from benchmarks.measure import (
    ANYIO,
    ASYNCIO,
    TRIO,
    UVLOOP,
    Figure,
    added,
    by_hand,
    measure,
    ratio,
    step,
)
from benchmarks.page import PARTS
from benchmarks.styles import ASIDE, BODIES, JOBS, STYLES, at_work, layered, receive, request_scope

needs_uvloop = pytest.mark.skipif(UVLOOP is None, reason="uvloop is not installed")


@pytest.fixture
def anyio_backend():
    """
    The benchmarks are taken on asyncio, where they do not name another loop.
    """
    return "asyncio"


async def response_of(app):
    """
    Ask *app* once; give its start and the bytes of its body.
    """
    messages = []

    async def record(message):
        messages.append(message)

    await asyncio.create_task(app(request_scope(), receive, record))
    return messages[0], b"".join(message["body"] for message in messages[1:])


# ---------------------------------------------------------------------- styles


@pytest.mark.parametrize("style", [style for style in STYLES if style not in ASIDE])
@pytest.mark.parametrize("body", BODIES)
async def test_every_style_sets_its_header_and_leaves_the_rest(style, body):
    """
    With any style around it an application sends its own messages and the one header more.
    """
    bare, bare_body = await response_of(BODIES[body])
    styled, styled_body = await response_of(layered(BODIES[body], style, 2))

    assert [*bare["headers"], (b"x-layer", b"1")] == styled["headers"]
    assert bare_body == styled_body


@pytest.mark.parametrize("style", ASIDE)
async def test_a_style_that_steps_aside_leaves_everything(style):
    """
    A layer that steps aside sets no header.
    """
    bare = await response_of(BODIES["20 chunks"])

    assert bare == await response_of(layered(BODIES["20 chunks"], style, 5))


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("body", ["one message", "20 chunks"])
async def test_a_job_is_the_same_by_hand_and_with_httpmw(job, body):
    """
    Both kinds of a job answer alike, and otherwise than the application alone.
    """
    found = []
    for kind in ("asgi", "httpmw"):
        start, sent = await response_of(at_work(BODIES[body], job, kind, 2))
        assert (b"x-layer", b"1") in start["headers"]
        found.append((start["status"], sorted(start["headers"]), sent))
    bare, bare_sent = await response_of(layered(BODIES[body], "asgi", 1))

    assert found[0] == found[1]
    assert found[0] != (bare["status"], sorted(bare["headers"]), bare_sent)


# ---------------------------------------------------------------------- measuring


async def test_a_coroutine_that_suspends_cannot_be_stepped():
    """
    `step` fails when the event loop would have been needed.
    """
    with pytest.raises(AssertionError, match="suspended"):
        step(asyncio.sleep(0))


async def test_what_is_stepped_by_hand_never_suspends():
    """
    Every arm of that series runs a whole request in one step.
    """
    for arm in grid.SERIES["by hand"].arms():
        assert await by_hand(grid.application(arm), requests=1) >= 0


@pytest.mark.parametrize(
    "driver",
    [
        pytest.param(ASYNCIO, id="asyncio"),
        pytest.param(ANYIO, id="anyio"),
        pytest.param(UVLOOP, id="uvloop", marks=needs_uvloop),
        pytest.param(TRIO, id="trio"),
    ],
)
def test_a_sample_is_taken_in_its_loop(driver):
    """
    Every request of a sample runs to its end, on the loop that the driver names.
    """
    loops = []

    async def app(scope, receive, send):
        await anyio.lowlevel.checkpoint()
        if trio.lowlevel.in_trio_run():
            loops.append("trio")
        else:
            loops.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])

    samples = measure({"app": app}, driver, rounds=2, seconds=1e-5)

    expected = "trio" if driver is TRIO else "uvloop" if driver is UVLOOP else "asyncio"
    assert {expected} == set(loops)
    assert len(samples["app"]) == 2


def test_a_ratio_compares_what_the_layers_add():
    """
    The time of the bare application is taken off both sides, round by round.
    """
    samples = {"bare": [1.0, 2.0, 1.0], "asgi": [2.0, 3.0, 2.0], "httpmw": [3.0, 4.0, 3.0]}

    assert Figure(2.0, 2.0, 2.0) == ratio(samples, "httpmw", "asgi", "bare")
    assert Figure(2e6, 2e6, 2e6) == added(samples, "httpmw", "bare")


def test_a_ratio_without_a_bare_arm_compares_whole_requests():
    """
    Where the layers answer themselves there is nothing to take off.
    """
    samples = {"bare": [1.0, 1.0], "asgi": [2.0, 2.0], "httpmw": [3.0, 3.0]}

    assert Figure(1.5, 1.5, 1.5) == ratio(samples, "httpmw", "asgi", None)


# ---------------------------------------------------------------------- the grid and its targets


def test_the_grid_measures_what_every_target_needs(tmp_path):
    """
    A quick run of what the targets need finds a figure for each, and `--json` keeps them.
    """
    file = tmp_path / "grid.json"

    code = grid.main(["--quick", "--targets", "--json", str(file)])

    found = read(file)
    of_grid = [target for target in targets.TARGETS if target.benchmark == "grid"]
    assert 0 == code
    assert of_grid
    assert all(target.measured({"grid": found}) is not None for target in of_grid)
    loops = {"trio", "uvloop"} if UVLOOP else {"trio"}
    assert {"httpmw", "starlette", "anyio", *loops} == set(found["about"]["versions"])


def test_the_benchmarks_run_without_uvloop(tmp_path):
    """
    Where uvloop is not installed its series is left out, and the others are measured.
    """
    file = tmp_path / "grid.json"
    code = f"""
import sys
sys.modules["uvloop"] = None
from benchmarks import grid
sys.exit(grid.main(["--quick", "--targets", "--json", {str(file)!r}]))
"""

    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)

    about, rows = read(file)["about"], read(file)["rows"]
    assert {"httpmw", "starlette", "anyio", "trio"} == set(about["versions"])
    assert "asyncio" in {row["series"] for row in rows}


def test_every_other_benchmark_has_the_figures_of_its_targets():
    """
    A target that does not rest on the grid finds its figure in what was measured last.
    """
    summary = report.summary()
    others = [target for target in targets.TARGETS if target.benchmark != "grid"]

    assert {"jobs", "stack", "budget", "memory", "servers", "handshakes"} == {
        target.benchmark for target in others
    }
    assert [] == [target.says for target in others if target.measured(summary) is None]


def test_every_series_has_the_arms_of_its_targets():
    """
    What the targets need is a part of the whole grid.
    """
    for name, series in grid.SERIES.items():
        assert set(grid.in_targets(name)) <= set(series.arms())


@pytest.mark.parametrize(("limit", "code"), [(-1e9, 1), (1e9, 0)])
def test_a_missed_target_fails_the_check(monkeypatch, tmp_path, capfd, limit, code):
    """
    `--check` exits with 1 when a target is missed, and with 0 when all hold.
    """
    monkeypatch.setattr("benchmarks.document.RUNS", tmp_path)
    monkeypatch.setattr(targets, "TARGETS", [targets.layers("the one", 1, limit)])

    assert code == run_benchmarks(["--quick", "--targets", "--check", "grid"])
    assert ("MISSED  the one" if code else "ok      the one") in capfd.readouterr().out


@pytest.mark.parametrize(
    ("bounds", "kept", "words"),
    [
        ({"at_most": 2.0}, True, "at most 2 x"),
        ({"at_most": 1.0}, False, "at most 1 x"),
        ({"at_least": 1.0}, True, "at least 1 x"),
        ({"at_least": 2.0}, False, "at least 2 x"),
    ],
)
def test_a_target_is_held_against_its_figure(bounds, kept, words):
    """
    The table says for each target what was measured, its bound, and whether it holds.
    """
    target = targets.Target("it", "memory", {"style": "s"}, ("times", "asgi"), **bounds)
    documents = {"memory": {"rows": [{"style": "s", "times": {"asgi": 1.5}}]}}

    found, text = targets.table(documents, [target])

    assert kept == found
    assert text.splitlines()[1].split() == [
        "ok" if kept else "MISSED",
        "it",
        "1.50",
        *words.split(),
    ]


def test_a_target_that_was_not_run_is_not_missed():
    """
    A target without a figure is named as one.
    """
    kept, text = targets.table({}, targets.TARGETS)

    assert kept
    assert len(targets.TARGETS) == text.count("not run")


def test_an_unknown_benchmark_is_refused(capsys):
    """
    The message says which there are.
    """
    with pytest.raises(SystemExit):
        run_benchmarks(["nonsense"])

    assert "nonsense: choose from jobs, grid, stack, budget" in capsys.readouterr().err


def test_a_run_leaves_its_figures(monkeypatch, tmp_path, capfd):
    """
    A benchmark runs in a process of its own and keeps its rows: one for each layer and phase.
    """
    monkeypatch.setattr("benchmarks.document.RUNS", tmp_path)

    code = run_benchmarks(["--quick", "budget"])

    [file] = tmp_path.glob("quick/3.*/*.json")
    assert (0, "budget.json") == (code, file.name)
    assert "over 20 chunks" in capfd.readouterr().out
    assert [(layer, phase) for layer in budget.LAYERS for phase in budget.PHASES] == [
        (row["layer"], row["phase"]) for row in read(file)["rows"]
    ]


# ---------------------------------------------------------------------- jobs


@pytest.mark.parametrize("job", jobs.JOBS)
@pytest.mark.parametrize("size", jobs.SIZES)
async def test_every_job_of_the_table_is_the_same_by_hand_and_with_httpmw(job, size):
    """
    Both send the same to the server, hand the same to the application, and log the same.
    """
    done = {}
    for kind in jobs.KINDS:
        sent = []

        async def keep(message, sent=sent):
            sent.append(message)

        jobs.log()
        await jobs.application(jobs.Arm(job, kind, size))(request_scope(), receive, keep)
        head, *rest = sent
        body = b"".join(each["body"] for each in rest)
        line = tuple(each for each in jobs.last if not isinstance(each, float))
        done[kind] = head["status"], sorted(head["headers"]), body, line

    assert done["by hand"] == done["httpmw"] != done["bare"]


def test_the_jobs_have_a_row_for_each_size(monkeypatch, tmp_path, capsys):
    """
    A run leaves what was added by each, how they compare, and the goal.
    """
    took = {"bare": 1e-6, "by hand": 2e-6, "httpmw": 4e-6}
    measured = {arm: [took[arm.kind]] * 3 for arm in jobs.ARMS}
    monkeypatch.setattr(jobs, "measure", lambda apps, *_, **__: measured)
    file = tmp_path / "jobs.json"

    assert jobs.main(["--quick", "--json", str(file)]) == 0

    rows = read(file)["rows"]
    assert [(job, size) for job in jobs.JOBS for size in jobs.SIZES] == [
        (row["job"], row["size"]) for row in rows
    ]
    assert {(row["httpmw us"]["median"], row["times"]["median"]) for row in rows} == {(3.0, 3.0)}
    assert "goal 1.85" in capsys.readouterr().out


# ---------------------------------------------------------------------- memory and bodies


@pytest.mark.parametrize(
    ("style", "tasks"), [("bare", 0), ("asgi", 0), ("one yield", 0), ("two yields", 0)]
)
def test_no_task_is_created(style, tasks):
    """
    The count of tasks leaves the request's own out, and httpmw creates none.
    """
    assert {"tasks": tasks} == asyncio.run(memory.counted(style))


def test_base_http_creates_tasks():
    """
    The count sees what `BaseHTTPMiddleware` creates: at least one for each layer.
    """
    assert asyncio.run(memory.counted("BaseHTTP"))["tasks"] >= memory.LAYERS


def test_an_open_stream_holds_memory():
    """
    Blocks and bytes are those of the streams that are open, and grow with the layers.
    """
    bare, layers = (asyncio.run(memory.traced(style, 20)) for style in ("bare", "asgi"))

    assert 0 < bare["bytes"] < layers["bytes"]
    assert 0 < bare["blocks"] < layers["blocks"]


def test_memory_is_counted_for_one_layer():
    """
    What a stream without middleware holds is taken off, and the rest divided by the layers.
    """
    found = {
        "bare": {"bytes": 100.0, "blocks": 1.0, "tasks": 0.0},
        "asgi": {"bytes": 600.0, "blocks": 6.0, "tasks": 0.0},
        "one yield": {"bytes": 350.0, "blocks": 6.0, "tasks": 5.0},
    }

    row = find(memory.rows(found), style="one yield")

    assert {"bytes": 50.0, "blocks": 1.0, "tasks": 1.0} == row["layer"]
    assert {"asgi": 0.5} == row["times"]


SIZE = 4 * bodies.CHUNK


@pytest.mark.parametrize(
    "arm", bodies.ARMS, ids=lambda arm: "-".join(map(str, (*arm.body, arm[1])))
)
async def test_a_body_arrives_and_is_looked_at(arm):
    """
    Every byte comes through, and each layer that looks at them has seen them all.
    """
    seen = bodies.seen

    await bodies.taken(arm, SIZE)  # fails when it did not arrive whole

    looks = arm.body.way in {"observe", "read"}
    assert bodies.seen - seen == (SIZE * arm.layers if looks else 0)


async def test_a_body_that_is_read_is_in_memory():
    """
    The most memory of a body that is read is at least its size, of one that is passed on less.
    """
    read_whole, passed = [
        await bodies.most_memory(bodies.Arm(bodies.Body("down", way, "httpmw"), 1), SIZE)
        for way in ("read", "pass")
    ]

    assert passed < SIZE / bodies.MIB <= read_whole


# ---------------------------------------------------------------------- on a real server


@pytest.mark.parametrize("framework", servers.FRAMEWORKS)
@pytest.mark.parametrize("style", servers.STYLES)
def test_what_is_served_answers_under_its_layers(framework, style):
    """
    Both routes answer the same under every style, with the header of its layers.
    """
    with TestClient(served.make(framework, style, 2)) as client:
        answers = [client.get(f"/{route}") for route in servers.ROUTES]

    assert [{"hello": "world"}] * 2 == [answer.json() for answer in answers]
    assert ["1", "1"] == [answer.headers["x-layer"] for answer in answers]


def test_a_layer_is_there_in_a_handshake_that_is_measured():
    """
    The application accepts, and the layer sets its header on the acceptance.
    """
    sent = []

    async def collect(message):
        sent.append(message)

    app = handshakes.Opening(handshakes.layered(handshakes.accepts, 1))
    step(app(request_scope(), None, collect))

    assert ["websocket.accept"] == [message["type"] for message in sent]
    assert b"x-layer" in dict(sent[0]["headers"])


def test_servers_are_compared_round_by_round():
    """
    The requests per second are divided by those of the same round, and by no layer's own.
    """
    asgi, httpmw = servers.Arm("asgi", 5), servers.Arm("one yield", 5)
    of = {servers.BARE: [200.0, 400.0], asgi: [100.0, 200.0], httpmw: [50.0, 100.0]}
    samples = {
        arm: [servers.Sample(number, 1.0, 2.0, 3.0) for number in numbers]
        for arm, numbers in of.items()
    }

    rows = servers.rows("starlette", "json", samples)

    row = find(rows, style="one yield", layers=5)
    assert {"bare": 0.25, "asgi": 0.5} == {k: v["median"] for k, v in row["times"].items()}
    assert {} == find(rows, style="bare")["times"]
    assert rows
    assert servers.table(rows).count("\n") == len(rows)


def test_an_import_is_what_comes_on_top():
    """
    What is loaded already costs no modules, and httpmw's own come on top of Starlette's.
    """
    modules = {name: import_time.taken(name, os.environ)[1] for name in ("json", "httpmw")}

    assert modules["json"] == 0
    assert modules["httpmw"] > 5


# ---------------------------------------------------------------------- the page


def test_the_page_shows_the_summary():
    """
    Every figure on the page is the one in `benchmarks/results/`: `make bench-page` puts it there.
    """
    text = report.PAGE.read_text()

    assert sorted(PARTS) == sorted(match["name"] for match in report.FIGURES.finditer(text))
    assert text == report.page(text, report.summary())


def test_prose_of_the_page_claims_no_figure():
    """
    A time, a ratio or a number of bytes stands only where it is put by the report.
    """
    prose = report.FIGURES.sub("", report.PAGE.read_text())
    prose = re.sub(r"```.*?```", "", prose, flags=re.DOTALL)

    assert not re.search(r"\d\s*(µs|%|times|bytes)", prose)


def test_a_part_without_results_stays_as_it_is():
    """
    What was never measured leaves no hole, and says nothing new.
    """
    text = "<!-- figures: memory -->\nas it was\n<!-- end -->\n"

    assert text == report.page(text, {})


def test_the_summary_keeps_what_the_page_shows(monkeypatch, tmp_path):
    """
    A run becomes a summary without the rows and the times of the grid that are not shown.
    """
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(report, "run_file", lambda name, python="3.11": tmp_path / f"{name}.json")
    shown = {"series": "asyncio", "style": "asgi", "layers": 5, "body": "20 chunks"}
    rows = [{**shown, "us": 1}, {**shown, "layers": 10, "us": 1}]
    write(tmp_path / "grid.json", document(rows))

    report.collect()

    assert ["grid.json"] == [file.name for file in (tmp_path / "results").iterdir()]
    assert [shown] == read(tmp_path / "results" / "grid.json")["rows"]


def test_the_machine_is_described_by_its_cores():
    """
    A document says when and on what it was made, and no more of the machine than its cores.
    """
    about = document([])["about"]

    assert {"date", "python", "versions", "machine"} == set(about)
    assert re.fullmatch(r"\d+ cores", about["machine"])
