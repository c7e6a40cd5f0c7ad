# The import statements of a module: those that nothing needs any more, and those of httpmw.

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import libcst as cst

from httpmw.migrate.reading._module import ORIGINS, Module, imports_base
from httpmw.migrate.reading._names import (
    IMPORT_FROM,
    IMPORTS,
    children,
    dotted,
    find,
    is_lazy,
    last_name,
)
from httpmw.migrate.reading._replaced import replaced

from ._build import without
from ._rewrite import Spelling

__all__ = ["IN_TESTS", "PUBLIC", "edit_imports", "used_names"]

PUBLIC = ("Connection", "Flow", "HTTPMiddleware", "http_middleware")
# What lets a test go on calling `dispatch(request, call_next)`.
IN_TESTS = "as_call_next"
_EXPRESSION = re.compile(r"[\w.\[\], |'\"]{1,120}")
_GENERIC = {"dict", "frozenset", "list", "set", "tuple", "type"}
_IDENTIFIER = re.compile(r"[^\W\d]\w*")


def edit_imports(
    module: Module,
    nodes: Sequence[cst.CSTNode],
    spelling: Spelling,
    mapping: dict[int, Any],
) -> list[Any]:
    """
    Drop imports and add others; give those that have no other place than the top of the file.
    """
    before, after = used_names(module.tree), used_names(replaced(module.tree, mapping))
    gone = {name for name in before if not after[name]}
    empty = _emptied(module.tree, gone)
    after.subtract(dotted(each.test).partition(".")[0] for each in empty)
    gone |= {name for name in before if not after[name]}
    for block in (module.tree, *find(module.tree, cst.IndentedBlock)):
        _drop_gone(block.body, gone, mapping)
    mapping.update((id(each), []) for each in empty)
    home = _home(module, nodes)
    body = module.tree.body if home is None else home.body.body
    anchor = _anchor(body)
    lazy = anchor is not None and any(is_lazy(each) for each in anchor.body)
    new = _new_imports(module, after, spelling, "lazy " * lazy)
    if not new:
        return []
    if anchor is None:
        return new
    kept = mapping.get(id(anchor), anchor)
    if kept == []:
        new[0] = new[0].with_changes(
            leading_lines=anchor.leading_lines, trailing_whitespace=anchor.trailing_whitespace
        )
        _give_back(body, anchor, mapping)
        mapping[id(anchor)] = new
    else:
        if _is_of_python(anchor):
            new[0] = new[0].with_changes(leading_lines=[cst.EmptyLine(indent=False)])
        mapping[id(anchor)] = [kept, *new]
    return []


def _give_back(body: Sequence[Any], anchor: Any, mapping: dict[int, Any]) -> None:
    # The place of the anchor is taken, with its comment: what follows does not get it as well.
    for line in body[body.index(anchor) + 1 :]:
        changed = mapping.get(id(line), line)
        if changed == []:
            continue
        above = list(getattr(changed, "leading_lines", ()))
        taken = {id(each) for each in anchor.leading_lines}
        rest = [each for each in above if id(each) not in taken]
        if len(rest) < len(above):
            mapping[id(line)] = changed.with_changes(leading_lines=rest)
        return


def _anchor(body: Sequence[Any]) -> Any:
    """
    Find the statement that the new imports follow, or whose place they take.
    """
    imports = [
        line
        for line in body
        if isinstance(line, cst.SimpleStatementLine)
        and any(isinstance(small, IMPORTS) for small in line.body)
    ]
    for line in imports:
        if any(isinstance(each, IMPORT_FROM) and imports_base(each) for each in line.body):
            return line
    for line in reversed(imports):
        if any(_comes_from_a_framework(each) for each in line.body):
            return line
    if imports:
        return imports[-1]
    first = body[0] if body else None
    if isinstance(first, cst.SimpleStatementLine) and _is_docstring(first):
        return first
    return None


def _is_of_python(line: Any) -> bool:
    # The group of the standard library ends here, and another one begins.
    imports = [each for each in line.body if isinstance(each, IMPORTS)]
    names = [
        dotted(each.module) if isinstance(each, IMPORT_FROM) else dotted(each.names[0].name)
        for each in imports
        if not getattr(each, "relative", ())
    ]
    return bool(imports) and all(n.partition(".")[0] in sys.stdlib_module_names for n in names)


def _comes_from_a_framework(node: cst.CSTNode) -> bool:
    return (
        isinstance(node, IMPORT_FROM)
        and not node.relative
        and (dotted(node.module).partition(".")[0] in ORIGINS)
    )


def _is_docstring(line: cst.SimpleStatementLine) -> bool:
    small = line.body[0]
    return isinstance(small, cst.Expr) and isinstance(small.value, cst.SimpleString)


def _new_imports(module: Module, after: Counter[str], spelling: Spelling, how: str) -> list[Any]:
    imports = module.names.imports
    new: list[Any] = []
    if after["asyncio"] and "asyncio" not in imports:
        new.append(cst.parse_statement(f"{how}import asyncio"))
    if after[IN_TESTS] and IN_TESTS not in imports:
        new.append(cst.parse_statement(f"{how}from httpmw.testing import {IN_TESTS}"))
    if spelling.prefix:
        if "httpmw" not in imports and after["httpmw"]:
            new.append(cst.parse_statement(f"{how}import httpmw"))
        return new
    names = [name for name in PUBLIC if after[name] and name not in imports]
    if names:
        new.append(cst.parse_statement(f"{how}from httpmw import {', '.join(names)}"))
    return new


_MAY_BE_TYPING: Final = frozenset(
    {cst.Annotation, cst.Assign, cst.AnnAssign, cst.AugAssign, cst.Subscript, cst.Call}
)


def used_names(tree: cst.CSTNode) -> Counter[str]:
    """
    Count the uses of every name, also in the strings of annotations and of `__all__`.

    Any other string is no name: "Connection" is a header more often than a class.
    """
    counter: Counter[str] = Counter()
    stack: list[tuple[Any, bool]] = [(tree, False)]
    while stack:
        node, typed = stack.pop()
        # By the type itself: all nodes of a module come here.
        kind = type(node)
        if kind is cst.Name:
            counter[node.value] += 1
        elif kind in IMPORTS:
            continue
        elif kind is cst.Attribute or kind is cst.Arg:
            stack.append((node.value, typed))
        elif kind is cst.SimpleString:
            text = node.raw_value
            if typed and _EXPRESSION.fullmatch(text):
                counter.update(_IDENTIFIER.findall(text))
        else:
            inside = typed or (kind in _MAY_BE_TYPING and _is_typing(node))
            stack.extend([(each, inside) for each in children(node)])
    return counter


def _is_typing(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.Annotation):
        return True
    if isinstance(node, cst.Assign):
        return any(dotted(each.target) == "__all__" for each in node.targets)
    if isinstance(node, (cst.AnnAssign, cst.AugAssign)):
        annotation = node.annotation.annotation if isinstance(node, cst.AnnAssign) else None
        alias = annotation is not None and last_name(annotation) == "TypeAlias"
        return alias or dotted(node.target) == "__all__"
    if isinstance(node, cst.Subscript):
        # `Optional["Request"]` and `list["Request"]`, not `headers["Connection"]`.
        name = last_name(node.value)
        return name in _GENERIC or (name[:1].isupper() and not name.isupper())
    return isinstance(node, cst.Call) and last_name(node.func) in {"cast", "TypeVar", "NewType"}


def _emptied(tree: cst.Module, gone: set[str]) -> list[cst.If]:
    """
    Find the `if TYPE_CHECKING:` of which nothing is left.
    """
    return [
        node
        for node in find(tree, cst.If)
        if last_name(node.test) == "TYPE_CHECKING"
        and node.orelse is None
        and not any(each.comment for each in node.leading_lines)
        and all(
            isinstance(line, cst.SimpleStatementLine)
            and all(_without_gone(small, gone) is None for small in line.body)
            for line in node.body.body
        )
    ]


def _drop_gone(body: Sequence[Any], gone: set[str], mapping: dict[int, Any]) -> None:
    # What stands above a statement that goes, often the comment of a whole group, is for the
    # next one.
    above: list[cst.EmptyLine] = []
    for line in body:
        smalls = list(getattr(line, "body", ())) if _is_line(line) else []
        kept = [_without_gone(small, gone) for small in smalls]
        changed = any(one is not other for one, other in zip(kept, smalls, strict=True))
        kept = [each for each in kept if each is not None]
        if smalls and not kept:
            mapping[id(line)] = []
            if any(each.comment is not None for each in line.leading_lines):
                above = [*above, *line.leading_lines]
            elif not above:
                above = list(line.leading_lines)
            continue
        commented = any(each.comment is not None for each in above)
        moved = above if commented or not getattr(line, "leading_lines", True) else []
        above = []
        if changed or moved:
            new = line.with_changes(body=kept) if changed else replaced(line, mapping)
            if moved and hasattr(line, "leading_lines"):
                new = new.with_changes(leading_lines=[*moved, *line.leading_lines])
            mapping[id(line)] = new


def _is_line(line: Any) -> bool:
    return isinstance(line, cst.SimpleStatementLine)


def _without_gone(node: Any, gone: set[str]) -> Any:
    if not isinstance(node, IMPORTS) or isinstance(node.names, cst.ImportStar):
        return node
    if isinstance(node, IMPORT_FROM) and dotted(node.module) == "__future__":
        return node
    names = list(node.names)
    for alias in node.names:
        here = dotted(alias.name if alias.asname is None else alias.asname.name)
        if here.partition(".")[0] in gone:
            names = without(
                names, next(i for i, each in enumerate(names) if each.name is alias.name)
            )
    if len(names) == len(node.names):
        return node
    return node.with_changes(names=names) if names else None


def _home(module: Module, nodes: Sequence[cst.CSTNode]) -> cst.FunctionDef | None:
    """
    Find the function in which Starlette's class is imported and everything is defined, if any.
    """
    for function in module.functions.values():
        if not any(imports_base(each) for each in find(function.body, *IMPORT_FROM)):
            continue
        inside = {id(each) for each in find(function.body, cst.CSTNode)}
        if all(id(each) in inside for each in nodes):
            return function
    return None
