"""A function and its registration are converted together or not at all."""

from __future__ import annotations

import textwrap

import pytest

from httpmw.migrate import Conversion
from tests.codemod import run

BASE = "from starlette.middleware.base import BaseHTTPMiddleware\n"
GATE = """\
class Gate:
    async def dispatch(self, request, call_next):
        return await call_next(request)

    async def __call__(self, request, call_next):
        return await call_next(request)
"""
# With a second class of the same methods, the name of the method alone says nothing.
OTHER = GATE.replace("Gate", "Other")


def codes(conversion: Conversion) -> set[str]:
    return {each.code for each in conversion.diagnostics}


# By the lines of a file that has `Gate` and `Other`, and registers a method of the first.
FOUND = {
    "a module-level name": """
        gate = Gate()
        app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "a module-level name with an annotation": """
        gate: Gate = make()
        app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "an annotation alone": """
        gate: "Gate"
        app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "a name that is None at first": """
        gate: Gate | None = None
        gate = Gate()
        app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "another name of it": """
        first = Gate()
        gate = first
        app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "a variable of a function": """
        def setup(app):
            gate = Gate()
            app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "a variable of the function around": """
        def setup(app):
            gate = Gate()
            def inner():
                app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
            inner()
        """,
    "a parameter": """
        def setup(app, gate: Gate):
            app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "a parameter that may be None": """
        def setup(app, gate: "Optional[Gate]" = None):
            app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "a factory": """
        def make(strict):
            if strict:
                return Gate(strict=True)
            return Gate()
        app.add_middleware(BaseHTTPMiddleware, dispatch=make(True).dispatch)
        """,
    "a factory by its annotation": """
        def make() -> "Gate":
            return registry["gate"]
        gate = make()
        app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "a coroutine function that makes it": """
        async def make():
            return Gate()
        async def setup(app):
            gate = await make()
            app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "a class method": """
        class Strict(Gate):
            @classmethod
            def create(cls):
                return cls()
        gate = Strict.create()
        app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "an attribute of self": """
        class Server:
            def __init__(self, app):
                self.gate = Gate()
                app.add_middleware(BaseHTTPMiddleware, dispatch=self.gate.dispatch)
        """,
    "an attribute of self, set from a parameter": """
        class Server:
            def __init__(self, app, gate: Gate):
                self.gate = gate

            def setup(self):
                self.app.add_middleware(BaseHTTPMiddleware, dispatch=self.gate.dispatch)
        """,
    "an attribute of a class": """
        class Settings:
            gate = Gate()
        app.add_middleware(BaseHTTPMiddleware, dispatch=Settings.gate.dispatch)
        """,
    "a field of an object": """
        class Settings:
            gate: Gate
        settings = Settings()
        app.add_middleware(BaseHTTPMiddleware, dispatch=settings.gate.dispatch)
        """,
    "one of two objects of the class": """
        app.add_middleware(BaseHTTPMiddleware, dispatch=(Gate(1) if x else Gate(2)).dispatch)
        """,
    "a global that a function makes": """
        gate = None
        def init():
            global gate
            gate = Gate()
            app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
}


@pytest.mark.parametrize("call", ["dispatch", "__call__"])
@pytest.mark.parametrize("rest", FOUND.values(), ids=list(FOUND))
def test_the_object_is_found(rest: str, call: str) -> None:
    """What a registration names is followed to its class, and both are converted."""
    rest = textwrap.dedent(rest)
    if call == "__call__":
        rest = rest.replace(".dispatch", "")
    done = run(app=BASE + GATE + OTHER + rest)["app"]

    assert "add_middleware(HTTPMiddleware, dispatch=" in done.code
    assert codes(done) == {"HM207"}
    registered = {each.qualname: each.registered for each in done.conversions}
    assert registered[f"Gate.{call}"] == "dispatch="
    assert registered[f"Other.{call}"] == "elsewhere"


def test_the_object_is_found_in_another_file() -> None:
    """An object that a third file makes is followed through the imports."""
    done = run(
        app__gates=GATE + OTHER,
        app__objects="from .gates import Gate\n\ngate = Gate()\n",
        app__main=(
            f"{BASE}from app.objects import gate\nfrom app import objects\n"
            "app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)\n"
            "app.add_middleware(BaseHTTPMiddleware, dispatch=objects.gate)\n"
        ),
    )

    assert done["app/main"].code.count("add_middleware(HTTPMiddleware, dispatch=") == 2
    registered = {each.qualname: each.registered for each in done["app/gates"].conversions}
    assert registered["Gate.dispatch"] == registered["Gate.__call__"] == "dispatch="


# By the lines of a file that has `Gate` and `Other`: what is registered is not known.
UNKNOWN = {
    "a parameter without a type": """
        def setup(app, gate):
            app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "an item": """
        gates = {"gate": Gate()}
        app.add_middleware(BaseHTTPMiddleware, dispatch=gates["gate"].dispatch)
        """,
    "one class or the other": """
        gate = Gate() if strict else Other()
        app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "one class on one way, the other on another": """
        if strict:
            gate = Gate()
        else:
            gate = Other()
        app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "a lambda": """
        app.add_middleware(
            BaseHTTPMiddleware, dispatch=lambda request, after: gate.dispatch(request, after)
        )
        """,
    "a protocol": """
        class Layer(Protocol):
            async def dispatch(self, request, call_next): ...
        def setup(app, gate: Layer):
            app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "a loop": """
        for gate in (Gate(), Other()):
            app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)
        """,
    "options": """
        app.add_middleware(BaseHTTPMiddleware, **options)
        """,
    "a variable": """
        def setup(app, fn):
            app.add_middleware(BaseHTTPMiddleware, dispatch=fn)
        """,
    "a partial function": """
        app.add_middleware(BaseHTTPMiddleware, dispatch=partial(gate.dispatch, 3))
        """,
}


@pytest.mark.parametrize("rest", UNKNOWN.values(), ids=list(UNKNOWN))
def test_what_an_unknown_registration_may_mean_is_left(rest: str) -> None:
    """While a registration could mean a method, the method is left with it."""
    source = BASE + GATE.partition("\n    async def __call__")[0]
    source += OTHER.partition("\n    async def __call__")[0] + textwrap.dedent(rest)
    done = run(app=source)["app"]

    assert done.code == source
    assert codes(done) == {"HM114", "HM115"}


def test_an_unknown_registration_of_a_library_holds_nothing_back() -> None:
    """What a library brings is nothing of the run."""
    done = run(
        app=f"{BASE}from vendor import limit\n{GATE}"
        "app.add_middleware(BaseHTTPMiddleware, dispatch=limit)\n"
    )["app"]

    assert codes(done) == {"HM114", "HM207"}
    assert {each.qualname for each in done.conversions} == {"Gate.dispatch", "Gate.__call__"}


def test_a_method_that_is_overridden_is_converted_with_the_others() -> None:
    """What may be called in the place of a registered method is converted with it."""
    done = run(
        app=f"{BASE}{GATE}class Strict(Gate):\n"
        "    async def dispatch(self, request, call_next):\n"
        "        return await asyncio.shield(call_next(request))\n"
        "def setup(app, gate: Gate):\n"
        "    app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)\n"
    )["app"]

    assert "dispatch=gate.dispatch" in done.code
    assert "add_middleware(BaseHTTPMiddleware" in done.code
    assert {each.qualname for each in done.conversions} == {"Gate.__call__"}
    assert codes(done) == {"HM102", "HM115", "HM207"}


def test_a_helper_that_is_overridden_is_converted_with_the_others() -> None:
    """The same holds for a method that `call_next` is handed to."""
    source = (
        f"{BASE}class A(BaseHTTPMiddleware):\n"
        "    async def dispatch(self, request, call_next):\n"
        "        return await self.handle(request, call_next)\n"
        "    async def handle(self, request, call_next):\n"
        "        return await call_next(request)\n"
        "class B(A):\n"
        "    async def handle(self, request, call_next):\n"
        "        return await asyncio.shield(call_next(request))\n"
    )

    done = run(app=source)["app"]

    assert done.code == source
    assert codes(done) == {"HM102", "HM115"}


def test_a_method_that_is_handed_on_is_left() -> None:
    """A bound method that goes somewhere else is not converted with one of its registrations."""
    source = (
        (
            f"{BASE}{GATE}gate = Gate()\nhooks.append(gate.dispatch)\n"
            "app.add_middleware(BaseHTTPMiddleware, dispatch=gate.dispatch)\n"
        )
        .replace("dispatch(", "check(")
        .replace("gate.dispatch", "gate.check")
    )

    done = run(app=source)["app"]

    assert "add_middleware(BaseHTTPMiddleware, dispatch=gate.check)" in done.code
    assert "HM113" in codes(done)


LOCAL = """
def test_a():
    async def mw(request, call_next):
        return await call_next(request)
    app.add_middleware(BaseHTTPMiddleware, dispatch=mw)

def test_b():
    async def mw(request, call_next):
        response = await call_next(request)
        response.headers["a"] = "b"
        return response
    app.middleware("http")(mw)
"""


def test_two_local_functions_of_one_name() -> None:
    """Each function is converted with the registration beside it."""
    done = run(test_app=BASE + LOCAL)["test_app"]

    assert codes(done) == set()
    assert done.code.count("-> Flow:") == 2
    assert "app.add_middleware(HTTPMiddleware, dispatch=mw)" in done.code
    assert "http_middleware(app)(mw)" in done.code


def test_two_local_functions_of_one_name_of_which_one_is_left() -> None:
    """What is left takes nothing with it but its own registration."""
    source = BASE + LOCAL.replace("return await call_next", "return await shield(call_next", 1)
    done = run(test_app=source.replace("shield(call_next(request)", "shield(call_next(request))"))

    code = done["test_app"].code
    assert codes(done["test_app"]) == {"HM102"}
    assert "app.add_middleware(BaseHTTPMiddleware, dispatch=mw)" in code
    assert "http_middleware(app)(mw)" in code


def test_a_local_function_and_one_of_the_file() -> None:
    """The function that is nearest is meant."""
    done = run(
        app=f"{BASE}async def mw(request, call_next):\n    return await call_next(request)\n"
        'app.middleware("http")(mw)\n' + LOCAL
    )["app"]

    assert codes(done) == set()
    assert done.code.count("-> Flow:") == 3
    assert "BaseHTTPMiddleware" not in done.code


def test_two_functions_of_one_name_on_two_ways() -> None:
    """Where one of two functions is meant, neither of them is converted."""
    source = (
        f"{BASE}if fast:\n    async def mw(request, call_next):\n"
        "        return await call_next(request)\n"
        "else:\n    async def mw(request, call_next):\n"
        "        return await shield(call_next(request))\n"
        'app.middleware("http")(mw)\n'
    )

    done = run(app=source)["app"]

    assert done.code == source
    assert codes(done) == {"HM102", "HM114", "HM115"}


def test_decorated_functions_of_one_name() -> None:
    """What a decorator registers needs no name."""
    one = '@app.middleware("http")\nasync def mw(request, call_next):\n'
    body = "    return await call_next(request)\n"
    done = run(app=(one + body) * 2)["app"]

    assert codes(done) == set()
    assert done.code.count("-> Flow:") == 2
