"""
Draw and explain real applications that are not ours, and compare with what is seen to happen.

    python -m tools.show_apps             all of them, in a venv of their own
    python -m tools.show_apps datasette   one

The packages stand in `show_apps.txt`. For each application:

* `httpmw.show.tree` draws it, and `httpmw.show.explain` sends it a request;
* a recorder, which knows nothing of either, notes by `sys.setprofile` in which order ASGI apps are
  called in the same request without probes;
* each app that it has seen, and that is in the tree, has to stand inside of the one before, and
  each layer that was explained has to have been seen;
* the own times have to add up to the whole within 5 percent.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".cache" / "show-apps"
REQUIREMENTS = ROOT / "tools" / "show_apps.txt"
WITHIN = 0.05
# Nobody asks the network for anything.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1"}

Built = tuple[Any, str]
APPS: dict[str, Callable[[], Built]] = {}


def app(build: Callable[[], Built]) -> Callable[[], Built]:
    APPS[build.__name__.replace("_", "-")] = build
    return build


def module(name: str) -> Any:
    # They are in another environment than the one that checks this file.
    return importlib.import_module(name)


@app
def mcp() -> Built:
    server = module("mcp.server").MCPServer("tools")
    server.tool()(add)
    return server.streamable_http_app(), "/mcp"


@app
def fastmcp() -> Built:
    server = module("fastmcp").FastMCP("tools")
    server.tool(add)
    return server.http_app(), "/mcp"


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@app
def nicegui() -> Built:
    ui = module("nicegui").ui
    site = module("fastapi").FastAPI()

    @ui.page("/")
    def page() -> None:
        ui.label("hello")

    ui.run_with(site, storage_secret="not-a-secret")  # noqa: S106
    return site, "/"


@app
def gradio() -> Built:
    gr = module("gradio")
    demo = gr.Interface(str.upper, "text", "text")
    return gr.mount_gradio_app(module("fastapi").FastAPI(), demo, path="/ui"), "/ui/config"


@app
def datasette() -> Built:
    return module("datasette.app").Datasette(memory=True).app(), "/_memory.json?sql=select+1"


def sqlite() -> tuple[Any, Any]:
    """Give an engine in memory and a model in it."""
    sqlalchemy, orm = module("sqlalchemy"), module("sqlalchemy.orm")
    base = orm.declarative_base()
    user = type(
        "User",
        (base,),
        {
            "__tablename__": "users",
            "id": sqlalchemy.Column(sqlalchemy.Integer, primary_key=True),
            "name": sqlalchemy.Column(sqlalchemy.String),
        },
    )
    engine = sqlalchemy.create_engine(
        "sqlite://",
        connect_args={"check_same_thread": False},
        poolclass=module("sqlalchemy.pool").StaticPool,
    )
    base.metadata.create_all(engine)
    return engine, user


@app
def starlette_admin() -> Built:
    engine, user = sqlite()
    contrib = module("starlette_admin.contrib.sqla")
    site = module("starlette.applications").Starlette()
    admin = contrib.Admin(engine)
    admin.add_view(contrib.ModelView(user))
    admin.mount_to(site)
    return site, "/admin/user/list"


@app
def sqladmin() -> Built:
    engine, user = sqlite()
    package = module("sqladmin")
    site = module("fastapi").FastAPI()
    admin = package.Admin(site, engine)
    admin.add_view(type("UserAdmin", (package.ModelView,), {}, model=user))
    return site, "/admin/user/list"


@app
def piccolo_admin() -> Built:
    engine = module("piccolo.engine.sqlite").SQLiteEngine(path=str(Path.cwd() / "piccolo.sqlite"))
    table, columns = module("piccolo.table"), module("piccolo.columns")
    movie = type("Movie", (table.Table,), {"name": columns.Varchar()}, db=engine)
    return module("piccolo_admin.endpoints").create_admin([movie]), "/"


@app
def litestar() -> Built:
    package = module("litestar")
    config = module("litestar.config.cors").CORSConfig(allow_origins=["*"])
    compression = module("litestar.config.compression").CompressionConfig(backend="gzip")

    @package.get("/")
    async def index() -> dict[str, str]:
        return {"hello": "world"}

    return package.Litestar([index], cors_config=config, compression_config=compression), "/"


@app
def django() -> Built:
    conf = module("django.conf")
    conf.settings.configure(
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="not-a-secret",  # noqa: S106
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    )
    global urlpatterns  # noqa: PLW0603 - where Django looks for them
    response = module("django.http").HttpResponse
    urlpatterns = [module("django.urls").path("", lambda request: response("hello"))]  # noqa: ARG005
    return module("django.core.asgi").get_asgi_application(), "/"


urlpatterns: list[Any] = []


@app
def quart() -> Built:
    site = module("quart").Quart("site")

    @site.get("/")
    async def index() -> str:
        return "hello"

    return site, "/"


@app
def connexion() -> Built:
    (Path.cwd() / "api.yaml").write_text(
        "openapi: 3.0.0\ninfo: {title: t, version: '1'}\npaths:\n  /hello:\n    get:\n"
        f"      operationId: {__name__}.hello\n      responses: {{'200': {{description: ok}}}}\n"
    )
    site = module("connexion").AsyncApp(__name__, specification_dir=str(Path.cwd()))
    site.add_api("api.yaml")
    return site, "/hello"


def hello() -> str:
    return "hello"


@app
def fasthtml() -> Built:
    package = module("fasthtml.common")
    site = package.FastHTML(secret_key="not-a-secret")  # noqa: S106

    @site.route("/")
    def get() -> Any:
        return package.P("hello")

    return site, "/"


@app
def marimo() -> Built:
    (Path.cwd() / "notebook.py").write_text(
        "import marimo\napp = marimo.App()\n\n@app.cell\ndef _():\n    return\n"
    )
    server = module("marimo").create_asgi_app()
    return server.with_app(path="/", root=str(Path.cwd() / "notebook.py")).build(), "/"


@app
def shiny() -> Built:
    package = module("shiny")
    return package.App(package.ui.page_fluid("hello"), lambda input: None), "/"  # noqa: A006, ARG005


@app
def ariadne() -> Built:
    package = module("ariadne")
    query = package.QueryType()
    query.set_field("hello", lambda *_: "world")
    schema = package.make_executable_schema("type Query { hello: String! }", query)
    return module("ariadne.asgi").GraphQL(schema), "/"


@app
def socketio() -> Built:
    package = module("socketio")
    inner = module("fastapi").FastAPI()
    return package.ASGIApp(package.AsyncServer(async_mode="asgi"), inner), "/openapi.json"


@app
def falcon() -> Built:
    class Hello:
        async def on_get(self, request: Any, response: Any) -> None:  # noqa: ARG002 - Falcon's
            response.media = {"hello": "world"}

    site = module("falcon.asgi").App()
    site.add_route("/", Hello())
    return site, "/"


@app
def blacksheep() -> Built:
    package = module("blacksheep")
    site = package.Application()
    site.router.add_get("/", lambda: "hello")
    return site, "/"


# ---------------------------------------------------------------------- one application


class Recorder:
    """
    Notes in which order ASGI apps are called, by their frames.
    """

    def __init__(self) -> None:
        # The object, or the code of a function.
        self.called: list[Any] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount]
        if event != "call" or names[-3:] != ("scope", "receive", "send"):
            return
        if frame.f_locals.get("scope", {}).get("type") != "http":
            return
        who = frame.f_locals.get(names[0]) if code.co_name == "__call__" else code
        if not any(who is each for each in self.called):
            self.called.append(who)


def matches(node: Any, who: Any) -> bool:
    subject = node.subject
    code = subject.__code__ if isinstance(subject, FunctionType) else None
    return subject is who or (code is not None and code is who)


async def look(name: str) -> dict[str, Any]:
    from httpmw.show import explain, tree  # noqa: PLC0415 - of the environment of the applications
    from httpmw.show._client import Exchange, lifespan  # noqa: PLC0415
    from httpmw.show._read import read  # noqa: PLC0415

    built, path = APPS[name]()
    faults = []
    async with lifespan(built) as state:
        found = tree(built)
        drawn = str(found)
        recorder = Recorder()
        exchange = Exchange("GET", path, [], b"", state)
        sys.setprofile(recorder)
        try:
            raised = await exchange.run(built)
        finally:
            sys.setprofile(None)
        explained = await explain(built, "GET", path, run_lifespan=False)

    nodes = list(read(built).walk())
    seen = [
        node
        for who in recorder.called
        for node in nodes
        if matches(node, who) and node.notes != ["again"]
    ]
    for outer, inner in itertools.pairwise(seen):
        if inner not in list(outer.walk()):
            faults.append(f"{inner.name} was called after {outer.name}, and is not drawn inside")
    names = [each.name for each in seen]
    layers = [each.name for each in explained.steps if each.kind == "layer"]
    if layers != [each for each in names if each in layers]:
        faults.append(f"explained {layers}, called {names}")
    own = sum(each.own for each in explained.steps) + explained.client_seconds
    if abs(own - explained.seconds) > WITHIN * explained.seconds:
        faults.append(f"own times are {own}, the whole is {explained.seconds}")
    if (raised is None) is not (explained.exception is None):
        faults.append(f"raised {raised!r} without probes, {explained.exception} with them")
    elif explained.status != exchange.status:
        faults.append(f"{exchange.status} without probes, {explained.status} with them")
    return {
        "name": name,
        "status": explained.status,
        "layers": len(layers),
        "nodes": len(nodes),
        "warnings": [each.code for each in found.warnings],
        "own": own / explained.seconds,
        "drawn": drawn,
        "explained": str(explained),
        "faults": faults,
    }


def one(name: str) -> None:
    import anyio  # noqa: PLC0415 - of the environment of the applications

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        found = anyio.run(look, name)
    print(json.dumps(found), flush=True)
    os._exit(0)  # past threads that some of them leave behind


# ---------------------------------------------------------------------- all of them


def environment() -> Path:
    python = FOLDER / "bin" / "python"
    made = FOLDER / "made"
    wanted = REQUIREMENTS.read_text()
    if not made.exists() or made.read_text() != wanted:
        FOLDER.mkdir(parents=True, exist_ok=True)
        venv.create(FOLDER, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-r", REQUIREMENTS], check=True)
        subprocess.run([*install, "--no-deps", "--editable", ROOT], check=True)
        made.write_text(wanted)
    return python


def run(python: Path, name: str, seconds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            finished = subprocess.run(
                [python, "-m", "tools.show_apps", "--one", name],
                cwd=folder,
                env={**os.environ, **QUIET, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"name": name, "faults": [f"not over after {seconds} seconds"]}
    try:
        found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"name": name, "faults": [finished.stderr.strip()[-2000:]]}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(APPS)}")
    parser.add_argument("--python", type=Path, help="an environment that has the packages")
    parser.add_argument("--draw", action="store_true", help="print what is drawn and explained")
    parser.add_argument("--seconds", type=int, default=300, help="how long one may take")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one)
        return 0
    python = options.python or environment()
    failed = 0
    print(f"{'':<18}{'status':>7}{'layers':>8}{'nodes':>7}{'own times':>11}  warnings")
    for name in options.names or APPS:
        found = run(python, name, options.seconds)
        if "own" in found:
            print(
                f"{name:<18}{found['status']!s:>7}{found['layers']:>8}{found['nodes']:>7}"
                f"{found['own']:>10.1%}  {', '.join(found['warnings'])}"
            )
            if options.draw:
                print(found["drawn"], found["explained"], sep="\n\n")
        for fault in found["faults"]:
            print(f"{name}: {fault}")
        failed += bool(found["faults"])
    print(f"{len(options.names or APPS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
