# From a source and the name of a function in it to a layer that can be run.
# One way, from top to bottom: the module, the function in it, what is around it, the layer.
#
# Rule 1: a module is executed statement by statement, and only what defines something: imports,
# functions, classes, assignments. What fails leaves stubs under the names it would have bound.
# Rule 2: the functions around a nested function are not called: what they define is executed at
# the module's level, and their parameters are stubs.
# Rule 3: decorators of a middleware function are left out; they register it, or they are among
# those of which the codemod knows that they do nothing.

from __future__ import annotations
import __future__

import ast
import builtins
import contextvars
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any, Final, Literal, TypeAlias

from starlette.middleware import base as starlette_base
from starlette.types import ASGIApp

from httpmw import compat
from httpmw._adapter import HTTPMiddleware

from ._modules import Importer
from ._stubs import Stub, World

__all__ = ["Layer", "Module", "NotRunnable", "Style"]

Style: TypeAlias = Literal["starlette", "drop-in", "generator"]

_BASES: Final[dict[Style, Any]] = {
    "starlette": starlette_base.BaseHTTPMiddleware,
    "drop-in": compat.BaseHTTPMiddleware,
    "generator": HTTPMiddleware,
}


class _Unknown(starlette_base.BaseHTTPMiddleware):
    def __init__(self, app: ASGIApp, *args: Any, **options: Any) -> None:  # noqa: ARG002
        super().__init__(app)

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


class _UnknownDropIn(compat.BaseHTTPMiddleware):
    def __init__(self, app: ASGIApp, *args: Any, **options: Any) -> None:  # noqa: ARG002
        super().__init__(app)

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


class _UnknownGenerator(HTTPMiddleware):
    def __init__(self, app: ASGIApp, *args: Any, **options: Any) -> None:  # noqa: ARG002
        super().__init__(app)


# A middleware class of another file: one that does nothing.
_UNKNOWN_BASES: Final[dict[Style, type]] = {
    "starlette": _Unknown,
    "drop-in": _UnknownDropIn,
    "generator": _UnknownGenerator,
}

_LINES: Final = frozenset({"co_firstlineno", "f_lineno", "tb_lineno"})
_FLAGS: Final = __future__.annotations.compiler_flag
_BUILTINS: Final = frozenset(vars(builtins))
_FILE: Final = "<verified>"

_Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_KEPT: Final = (
    *(*_FUNCTIONS, ast.ClassDef),
    *(ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.If, ast.Try),
)


class NotRunnable(Exception):  # noqa: N818 - it says what is the case, nobody handles it
    """
    The function cannot be run by itself; the message says why.
    """


@dataclass(frozen=True, slots=True)
class Layer:
    """
    A middleware that can be put around an app.

    Attributes:
        make: Puts it around an app.
        variables: The context variables that its module defines.
    """

    make: Callable[[ASGIApp], ASGIApp]
    variables: Mapping[str, contextvars.ContextVar[Any]]


class Module:
    """
    One version of a file.

    Args:
        source: Its source.
        style: Whose class its middleware stand on.
    """

    def __init__(self, source: str, style: Style) -> None:
        self.source = source
        self.style = style
        self._tree = ast.parse(source)
        if style == "drop-in":
            self._tree = ast.fix_missing_locations(_DropIn().visit(self._tree))
        self._raised = frozenset(_raised_names(self._tree)) - _BUILTINS - {""}
        self._replaced: dict[str, ModuleType] = {}
        if style == "drop-in":
            self._replaced["starlette.middleware.base"] = compat
        self._compiled: dict[tuple[int, bool], CodeType] = {}
        self._definitions = list(_definitions(self._tree, "", ()))
        self._names = {node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)}

    def find(self, qualname: str, line: int | None = None) -> int | None:
        """
        Say which of the definitions of that name stands at *line*, counted from 0.
        """
        found = list(self._paths(qualname))
        for index, path in enumerate(found):
            if line is None or line in _lines_of(path[-1]):
                return index
        return 0 if found else None

    def function(self, qualname: str, index: int) -> ast.AST:
        """
        Give the definition itself.
        """
        return list(self._paths(qualname))[index][-1]

    def text(self, qualname: str, index: int) -> str:
        """
        Give the source of the definition, and of all in this file that it names.
        """
        by_name: dict[str, list[ast.AST]] = {}
        for name, path in self._definitions:
            by_name.setdefault(name.rpartition(".")[2], []).append(path[-1])
        todo = [self.function(qualname, index)]
        texts: dict[int, str] = {}
        while todo:
            node = todo.pop()
            if id(node) in texts:
                continue
            texts[id(node)] = ast.unparse(node)
            for each in ast.walk(node):
                if isinstance(each, (ast.Name, ast.Attribute)):
                    todo += by_name.get(each.id if isinstance(each, ast.Name) else each.attr, [])
        return "\n".join(texts.values())

    def called(self, qualname: str, index: int) -> tuple[frozenset[str], frozenset[str]]:
        """
        Give the names of functions of other files that the definition, or what it names, calls.

        First those whose answer is returned, then all; a response class always gives a response.
        """
        tree = ast.parse(self.text(qualname, index))
        ours = {name.rpartition(".")[2] for name, _ in self._definitions}
        every = {_last_name(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        unknown = {name for name in every - ours if not name.endswith("Response")}
        return frozenset(unknown & set(_answering(tree))), frozenset(unknown)

    def world(self, **options: Any) -> World:
        """
        Make a world for this file, with the other arguments of `World`.
        """
        return World(raised=self._raised, **options)

    def load(self, qualname: str, index: int, world: World) -> Layer:
        """
        Execute the file in *world*, and give the middleware of that name.

        Raises:
            NotRunnable: It is not there, or making it failed.
        """
        paths = list(self._paths(qualname))
        if index >= len(paths):
            raise NotRunnable(f"there is no {qualname!r} any more")
        names = self._namespace(world)
        self._execute(self._tree.body, names, world)
        path = paths[index]
        target = path[-1]
        method = None
        if len(path) > 1 and isinstance(path[-2], ast.ClassDef) and isinstance(target, _FUNCTIONS):
            method, path = target.name, path[:-1]
            target = path[-1]
        for outer in path[:-1]:
            if isinstance(outer, _FUNCTIONS):
                _bind_parameters(outer, names, world)
            self._execute(outer.body, names, world)
        value = self._define(target, names, world)
        make = self._maker(value, method, world)
        variables = {k: v for k, v in names.items() if isinstance(v, contextvars.ContextVar)}
        return Layer(make, variables)

    def _paths(self, qualname: str) -> Iterator[tuple[_Definition, ...]]:
        for name, path in self._definitions:
            if name == qualname:
                yield path

    def _namespace(self, world: World) -> dict[str, Any]:
        names: dict[str, Any] = {
            "__name__": "verified",
            "__builtins__": {
                **vars(builtins),
                "__import__": Importer(world, self._replaced),
                **{name: Stub(world, name) for name in ("print", "open", "input", "exit", "quit")},
                "id": world.id_of,
            },
        }
        for name in self._names - _BUILTINS:
            names[name] = world.named(name)
        if self.style == "drop-in":
            names["BaseHTTPMiddleware"] = compat.BaseHTTPMiddleware
        return names

    def _execute(self, statements: list[ast.stmt], names: dict[str, Any], world: World) -> None:
        for statement in statements:
            try:
                for node in _defining([statement]):
                    exec(self._code(statement, node), names)  # noqa: S102 - stubs are around it
            except Exception:  # noqa: BLE001 - whatever the project's code does with stubs
                for each in ast.walk(statement):
                    if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                        names[each.id] = world.named(each.id)
                if isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
                    names[statement.name] = world.named(statement.name)

    def _code(self, of: ast.stmt, node: ast.stmt) -> CodeType:
        # A file is executed in many worlds, and compiled once.
        key = (id(of), node is of)
        if key not in self._compiled:
            tree = ast.fix_missing_locations(ast.Module([_Level().visit(node)], []))
            self._compiled[key] = compile(tree, _FILE, "exec", flags=_FLAGS, dont_inherit=True)
        return self._compiled[key]

    def _define(self, target: _Definition, names: dict[str, Any], world: World) -> Any:
        any_base = world.base
        if any(getattr(each, "name", "") == "dispatch" for each in target.body):
            world.base = _UNKNOWN_BASES[self.style]
        try:
            exec(self._code(target, _without_decorators(target)), names)  # noqa: S102
        except Exception as error:
            raise NotRunnable(f"it cannot be defined: {type(error).__name__}: {error}") from error
        finally:
            world.base = any_base
        return names[target.name]

    def _maker(self, value: Any, method: str | None, world: World) -> Callable[[ASGIApp], ASGIApp]:
        base = _BASES[self.style]
        if isinstance(value, type) and issubclass(value, base):
            return lambda app: _made(value, world, app)
        if isinstance(value, type):
            if method is None:
                raise NotRunnable("the class does not derive from the middleware class")
            value = getattr(_made(value, world), method)
        elif method is not None:
            raise NotRunnable("its class cannot be made")
        return lambda app: base(app, dispatch=value)


def _made(kind: type, world: World, *args: Any) -> Any:
    try:
        parameters = list(inspect.signature(kind).parameters.values())[len(args) :]
    except (TypeError, ValueError):
        parameters = []
    options = {
        each.name: world.named(each.name)
        for each in parameters
        if each.default is each.empty
        and each.kind in {each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY}
    }
    try:
        return kind(*args, **options)
    except Exception as error:
        raise NotRunnable(f"it cannot be made: {type(error).__name__}: {error}") from error


# ------------------------------------------------------------------------------- the syntax tree


def _definitions(
    node: ast.AST, prefix: str, path: tuple[_Definition, ...]
) -> Iterator[tuple[str, tuple[_Definition, ...]]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
            name = f"{prefix}{child.name}"
            here = (*path, child)
            yield name, here
            inner = f"{name}." if isinstance(child, ast.ClassDef) else f"{name}.<locals>."
            yield from _definitions(child, inner, here)
        else:
            yield from _definitions(child, prefix, path)


def _lines_of(node: _Definition) -> range:
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    return range(first, node.body[0].lineno + 1)


def _answering(tree: ast.AST) -> Iterator[str]:
    """
    Give the names of the functions whose answer is returned, by itself or by way of a variable.
    """
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    variables: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                variables.setdefault(_last_name(target), []).append(node.value)
        elif isinstance(node, ast.NamedExpr):
            variables.setdefault(node.target.id, []).append(node.value)
    while values:
        value = values.pop()
        if isinstance(value, ast.Call):
            yield _last_name(value.func)
        elif isinstance(value, ast.Name):
            values += variables.pop(value.id, [])
        elif isinstance(value, (ast.Await, ast.BoolOp, ast.IfExp, ast.NamedExpr)):
            values += [each for each in ast.iter_child_nodes(value) if isinstance(each, ast.expr)]


def _raised_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            several = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            yield from map(_class_name, several)
        elif isinstance(node, ast.Raise) and node.exc is not None:
            yield _class_name(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)


def _class_name(node: ast.AST) -> str:
    # A name in small letters is a variable that is raised again.
    return "" if isinstance(node, ast.Name) and node.id.islower() else _last_name(node)


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _without_decorators(node: _Definition) -> _Definition:
    copy: Any = type(node)(**{name: getattr(node, name) for name in node._fields})
    copy.decorator_list = []
    return ast.copy_location(copy, node)  # type: ignore[no-any-return]


class _DropIn(ast.NodeTransformer):
    # `starlette.middleware.base.BaseHTTPMiddleware`, spelt out.

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr == "BaseHTTPMiddleware":
            return ast.copy_location(ast.Name(node.attr, ast.Load()), node)
        return node


class _Level(ast.NodeTransformer):
    # The names of a function around it are those of the module here.

    def __init__(self) -> None:
        self._bound: list[set[str]] = []

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        # On which line something stands is another thing afterwards.
        if node.attr in _LINES and isinstance(node.ctx, ast.Load):
            return ast.copy_location(ast.Constant(1), node)
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: Any) -> ast.AST:
        self._bound.append(set(_bound_names(node)))
        self.generic_visit(node)
        self._bound.pop()
        return node  # type: ignore[no-any-return]

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - the name ast wants

    def visit_Nonlocal(self, node: ast.Nonlocal) -> Any:
        inside = {name for name in node.names if any(name in each for each in self._bound[:-1])}
        outside = [name for name in node.names if name not in inside]
        kinds = ((ast.Nonlocal, sorted(inside)), (ast.Global, outside))
        return [ast.copy_location(kind(names), node) for kind, names in kinds if names]


def _bound_names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    arguments = function.args
    some = [arguments.vararg, arguments.kwarg]
    for each in (
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        *filter(None, some),
    ):
        yield each.arg
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            yield node.name
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        todo += ast.iter_child_nodes(node)


def _defining(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in statements:
        if isinstance(node, ast.If):
            body: list[ast.stmt] = list(_defining(node.body))
            body = body or [ast.copy_location(ast.Pass(), node)]
            yield ast.copy_location(ast.If(node.test, body, list(_defining(node.orelse))), node)
        elif isinstance(node, ast.Try):
            nothing: list[ast.stmt] = [ast.copy_location(ast.Pass(), node)]
            handlers = [
                ast.copy_location(
                    ast.ExceptHandler(each.type, each.name, list(_defining(each.body)) or nothing),
                    each,
                )
                for each in node.handlers
            ]
            body = list(_defining(node.body)) or nothing
            orelse = list(_defining(node.orelse)) if handlers else []
            final = list(_defining(node.finalbody)) or ([] if handlers else nothing)
            yield ast.copy_location(ast.Try(body, handlers, orelse, final), node)
        elif isinstance(node, _KEPT) and not _is_future(node):
            yield node


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _bind_parameters(
    function: ast.FunctionDef | ast.AsyncFunctionDef, names: dict[str, Any], world: World
) -> None:
    arguments = function.args
    for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        names[each.arg] = world.named(each.arg)
