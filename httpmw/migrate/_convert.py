# From source to source: one file, or the files of one run.

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from typing import Literal

import libcst as cst

from ._codes import CODES
from ._model import Conversion, Converted, Diagnostic
from ._project import Project
from .reading._module import Module, Unit
from .reading._problem import Problem
from .writing._apply import apply
from .writing._dropin import drop_in, refused

__all__ = [
    "CONCERNED",
    "Project",
    "Target",
    "alone",
    "conversion",
    "convert",
    "diagnostic",
    "parse",
]

_FAILED = {"HM190", "HM195"}
Target = Literal["generator", "drop-in"]
CONCERNED = re.compile(
    r"BaseHTTPMiddleware|RequestResponseEndpoint|call_next|def\s+dispatch\b"
    r"|middleware\(\s*[\"']http"
)
"""
A file in whose text this is not found has nothing to convert, and is not parsed.
"""


def convert(
    source: str,
    *,
    path: str = "<string>",
    to: Target = "generator",
    project: Project | None = None,
) -> Conversion:
    """
    Convert the middleware of one file.

    Args:
        source: The source.
        path: The name of the file, for the diagnostics.
        to: `"generator"`, or `"drop-in"` to swap imports to `httpmw.compat` only.
        project: The files of the run that the file belongs to; without it nothing is known of
            other files.

    Returns:
        The new source, which is the old one where nothing was converted, what was converted,
        and what a person should know. A source that cannot be parsed is a diagnostic.
    """
    if project is None:
        project = Project()
    if path not in project.modules:
        if CONCERNED.search(source) is None:
            return Conversion(path, source, source)
        failed = parse(project, path, source)
        if failed is not None:
            return Conversion(path, source, source, [], [failed])
    return conversion(project, project.modules[path], to)


def parse(project: Project, path: str, source: str) -> Diagnostic | None:
    """
    Add a file to a project; give what is wrong with it, if anything.
    """
    try:
        project.add(path, source)
    except cst.ParserSyntaxError as exc:
        what = " ".join(exc.message.split())
        return diagnostic(path, "HM190", exc.raw_line, exc.raw_column + 1, what=what)
    except BaseException as exc:
        # A panic of libcst's parser is no Exception.
        if isinstance(exc, (KeyboardInterrupt, SystemExit)):
            raise
        return _failed(path, exc)
    return None


def alone(path: str, source: str, to: Target) -> Diagnostic | None:
    """
    Say whether a file makes the codemod fail by itself, and how.
    """
    project = Project()
    failed = parse(project, path, source)
    if failed is not None:
        return failed
    try:
        project.resolve()
    except Exception as exc:  # noqa: BLE001 - one file must not stop the others
        return _failed(path, exc)
    found = conversion(project, project.modules[path], to).diagnostics
    return next((each for each in found if each.code in _FAILED and not each.function), None)


def _failed(path: str, exc: BaseException) -> Diagnostic:
    if isinstance(exc, RecursionError):
        return diagnostic(path, "HM190", what="nested too deeply")
    return diagnostic(path, "HM195", what=_named(exc))


def _named(exc: BaseException) -> str:
    too_deep = isinstance(exc, RecursionError)
    return "nested too deeply" if too_deep else f"{type(exc).__name__}: {exc}"


def conversion(project: Project, module: Module, to: Target) -> Conversion:
    """
    Convert a file of a project.
    """
    project.resolve()
    try:
        return _dropped_in(project, module) if to == "drop-in" else _rewritten(project, module)
    except Exception as exc:  # noqa: BLE001 - one file must not stop the others
        # Not even the lines are known of what is to be said.
        project.reject(module, "", "HM195", _named(exc))
        return Conversion(
            module.path, module.source, module.source, [], [_failed(module.path, exc)]
        )


def _rewritten(project: Project, module: Module) -> Conversion:
    code = module.source
    try:
        code = apply(module, project.versions)
        mistake = _mistake(code, module) if code != module.source else None
    except Exception as exc:  # noqa: BLE001 - one file must not stop the others
        mistake = _named(exc)
    if mistake is not None:
        project.reject(module, "", "HM195", mistake)
        code = module.source
    result = Conversion(module.path, module.source, code)
    module.locate(
        [
            *(unit.node for unit in module.units.values()),
            *(problem.node for unit in module.units.values() for problem in unit.problems),
            *(problem.node for problem, _ in module.problems),
        ]
    )
    for unit in module.units.values():
        if unit.converts():
            line, _ = module.position(unit.node)
            known = project.forgets(unit), project.versions[unit].held.managers
            result.conversions.append(
                Converted(unit.kind, unit.qualname, line, unit.registered, *known)
            )
        result.diagnostics += _of_unit(module, unit)
    for problem, qualname in module.problems:
        result.diagnostics.append(_diagnostic(module, problem, qualname))
    result.conversions.sort(key=lambda each: each.line)
    result.diagnostics = sorted(set(result.diagnostics))
    return result


def _dropped_in(project: Project, module: Module) -> Conversion:
    try:
        code, swapped, problems = drop_in(module)
        _compiled(code, module.path)
    except Exception as exc:  # noqa: BLE001 - one file must not stop the others
        return Conversion(
            module.path, module.source, module.source, [], [_failed(module.path, exc)]
        )
    result = Conversion(module.path, module.source, code)
    for node in swapped:
        line, _ = module.position(node)
        result.conversions.append(Converted("import", "", line, "import"))
    found = [_diagnostic(module, each, "") for each in problems]
    for unit in module.units.values():
        found += [
            _diagnostic(module, each, unit.qualname) for each in refused(project.functions[unit])
        ]
    result.diagnostics = sorted(set(found))
    return result


def _compiled(code: str, path: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile(code, path, "exec", dont_inherit=True)
        return ast.parse(code, path)


def _of_unit(module: Module, unit: Unit) -> list[Diagnostic]:
    # Of what was left only the reasons are said, not what a conversion would have changed.
    problems = unit.errors() or unit.problems
    found = [_diagnostic(module, each, unit.qualname, unit.request) for each in problems]
    if unit.registered == "elsewhere" and unit.converts():
        problem = Problem("HM207", unit.node, {"name": unit.qualname})
        found.append(_diagnostic(module, problem, unit.qualname))
    return found


def _diagnostic(module: Module, problem: Problem, qualname: str, request: str = "") -> Diagnostic:
    line, column = module.position(problem.node)
    # What was converted keeps the name of its request; what is left is written anew by hand.
    kept = request if CODES[problem.code].severity == "notice" else ""
    details = {"conn": kept or "conn", **problem.details}
    return diagnostic(module.path, problem.code, line, column, function=qualname, **details)


def diagnostic(
    path: str, code: str, line: int = 1, column: int = 1, function: str = "", **details: str
) -> Diagnostic:
    """
    Fill in what the table of codes says.
    """
    entry = CODES[code]
    message = entry.message.format(**details)
    remedy = entry.remedy.format(**{"conn": "conn", **details}).strip()
    return Diagnostic(path, line, column, code, message, remedy, entry.severity, function)


def _mistake(code: str, module: Module) -> str | None:
    """
    Look over what was written: it compiles, and no function in it is half converted.
    """
    try:
        tree = _compiled(code, module.path)
    except (SyntaxError, ValueError) as exc:
        return str(exc)
    takes = Counter(
        (node.name, each.arg)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for each in (*node.args.args, *node.args.kwonlyargs)
    )
    for unit in module.units.values():
        if not unit.converts():
            takes[unit.node.name.value, unit.expects()] -= 1
    for unit in module.units.values():
        if unit.converts() and takes[unit.node.name.value, unit.call_next] > 0:
            return f"`{unit.qualname}` was converted by half"
    return None
