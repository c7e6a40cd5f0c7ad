"""What all layers of `httpmw.middleware` have in common."""

from __future__ import annotations

import inspect
import pkgutil
import re
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

import httpmw.middleware
from httpmw import HTTPMiddleware
from httpmw._exchange import runs_as_adapter
from httpmw.middleware import MemoryStore, RequestIDMiddleware
from httpmw.testing import run
from tests import ROOT
from tests.harness import request
from tests.test_project import loaded_by

NAMES = httpmw.middleware.__all__
KINDS = [name for name in NAMES if name.endswith("Middleware")]
# What a kind cannot be made without.
REQUIRED: dict[str, dict[str, Any]] = {
    "ConcurrencyLimitMiddleware": {"limit": 100},
    "IdempotencyMiddleware": {"store": MemoryStore(), "partition": lambda conn: "somebody"},
    "InspectorMiddleware": {"enabled": True},  # no application is there that could be debugged
    "RateLimitMiddleware": {"limit": "100/minute"},
}

# What several kinds are made with, and what asks for all of them.
SHARED = {
    "_recommended",
    *("_codings", "_conditions", "_draining", "_ids", "_metrics", "_ready", "_refuse", "_route"),
    *("_gcra", "_gradient", "_idempotency_store", "_memory_store", "_rate_fields", "_stores"),
}

ok = PlainTextResponse("ok")


def make(name: str, app: Any = ok, **options: Any) -> Any:
    return getattr(httpmw.middleware, name)(app, **REQUIRED.get(name, {}), **options)


# -- the package -----------------------------------------------------------------------------


def test_httpmw_loads_none_of_it() -> None:
    """`import httpmw` does not load the package."""
    assert "httpmw.middleware" not in loaded_by("import httpmw")


def test_the_package_loads_no_kind() -> None:
    """`import httpmw.middleware` loads no module of it."""
    modules = loaded_by("import httpmw.middleware")

    assert not [name for name in modules if name.startswith("httpmw.middleware.")]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_loads_its_own_kind_only(name: str) -> None:
    """To import a name loads its module, what all share, and nothing that not everybody has."""
    modules = loaded_by(f"from httpmw.middleware import {name}")
    kinds = {
        module.rpartition(".")[2] for module in modules if module.startswith("httpmw.middleware.")
    } - SHARED
    module = inspect.getmodule(getattr(httpmw.middleware, name))

    assert len(kinds) <= 1
    if name in KINDS:
        assert module is not None
        assert kinds == {module.__name__.rpartition(".")[2]}
    needed = {"OpenTelemetryMetricsMiddleware": {"opentelemetry"}}.get(name, set())
    others = {"structlog", "sentry_sdk", "fastapi", "trio", "opentelemetry"} - needed
    assert modules.isdisjoint(others)


def test_dir() -> None:
    """`dir` shows what is not loaded yet, too."""
    assert set(NAMES) <= set(dir(httpmw.middleware))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that is not there is an `AttributeError` as of any module."""
    with pytest.raises(AttributeError, match=r"'httpmw\.middleware' has no attribute 'Nothing'"):
        _ = httpmw.middleware.Nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_documented(name: str) -> None:
    """Every name has an entry in the reference, and a line in the changelog."""
    reference = (ROOT / "docs" / "reference.md").read_text()
    changes = [*(ROOT / "changelog.d").glob("*.md"), *ROOT.glob("CHANGELOG.md")]

    assert f"::: httpmw.middleware.{name}\n" in reference
    assert any(f"`httpmw.middleware.{name}" in path.read_text() for path in changes)


def test_every_kind_is_public() -> None:
    """There is no class of a layer that is not exported, and one in each module at most."""
    found = []
    for module in pkgutil.iter_modules(httpmw.middleware.__path__):
        text = (ROOT / "httpmw" / "middleware" / f"{module.name}.py").read_text()
        classes = re.findall(r"^class (\w+Middleware)\b", text, re.MULTILINE)
        assert len(classes) <= 1
        found += classes

    assert sorted(found) == KINDS


# -- each kind -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_is_fused(name: str) -> None:
    """It is a layer without a `__call__` of its own, and is taken over by its neighbours."""
    inner = make(name)
    outer = HTTPMiddleware(inner, dispatch=inner.dispatch)

    assert isinstance(inner, HTTPMiddleware)
    assert runs_as_adapter(inner)
    functions, app, _ = outer._httpmw
    assert len(functions) == 2
    assert app is not inner


@pytest.mark.parametrize("name", KINDS)
def test_every_option_is_documented(name: str) -> None:
    """Every option is a keyword, has a default unless it cannot, and is in the docstring."""
    kind = getattr(httpmw.middleware, name)
    app, *options = inspect.signature(kind).parameters.values()

    assert app.name == "app"
    for option in options:
        assert option.kind is option.KEYWORD_ONLY
        # Without the indent, which Python takes off itself from 3.13 on.
        assert f"\n    {option.name}: " in inspect.getdoc(kind)
        assert option.default is not option.empty or option.name in REQUIRED[name]


@pytest.mark.parametrize("name", KINDS)
async def test_when(name: str) -> None:
    """With `when=` that is false the layer is not there: the response is what it was."""
    plain = await run(None, ok)
    layer = make(name, when=lambda conn: False)
    server = await request(layer)

    assert server.sent == plain.sent


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("exclude", [["/health"], lambda conn: conn["path"] == "/health"])
async def test_exclude(name: str, exclude: Any) -> None:
    """What is excluded, by its exact path or by a predicate, does not meet the layer."""
    met = []

    def asked(conn: Any) -> bool:
        met.append(conn["path"])
        return True

    layer = make(name, when=asked, exclude=exclude)
    for path in ("/health", "/health/x", "/"):
        await request(layer, path=path)

    assert met == ["/health/x", "/"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exclude": "/health"}, 'paths, as in `exclude=["/health"]`'),
        ({"exclude": ["health"]}, "begin with a slash, not 'health'"),
        ({"exclude": 3}, 'paths, as in `exclude=["/health"]`'),
        ({"when": True}, "plain function that takes the connection"),
        ({"websocket": "yes"}, "not a bool"),
    ],
)
def test_common_options_are_checked(name: str, options: Any, words: str) -> None:
    """A wrong option is refused where the layer is made."""
    with pytest.raises(TypeError, match=re.escape(words)):
        make(name, **options)


def test_the_error_of_an_option_names_the_class() -> None:
    """The error says which option of which class has which value."""
    with pytest.raises(TypeError, match=r"RequestIDMiddleware\(exclude=3\): `exclude` must be"):
        RequestIDMiddleware(ok, exclude=3)  # type: ignore[arg-type]
