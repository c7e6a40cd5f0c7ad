# One function that takes `call_next`, what is known about it, and its new version.

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import libcst as cst

from httpmw.migrate.reading._module import Place
from httpmw.migrate.reading._names import dotted, find, is_http_decorator, last_name, own_scope
from httpmw.migrate.reading._parameters import own_parameters
from httpmw.migrate.writing._build import first_line, with_first_line, without
from httpmw.migrate.writing._late_resets import Held, hold
from httpmw.migrate.writing._rewrite import Rewriter, Spelling
from httpmw.migrate.writing._tidy import is_type, tidied, without_type

from . import _call_sites as _scan
from . import _flow, _state
from ._call_sites import Problem, Site, snippet
from ._never_none import Certain

if TYPE_CHECKING:
    from httpmw.migrate.reading._lookup import Lookup
    from httpmw.migrate.reading._module import Class, Module, Registration
    from httpmw.migrate.reading._objects import Objects

__all__ = ["Unit"]

# Decorators that leave the function what it is.
_HARMLESS = {"abstractmethod", "final", "no_type_check", "override", "staticmethod"}
_SCOPES = {
    f"{library}.{name}"
    for library in ("anyio", "trio")
    for name in (
        "CancelScope",
        "create_task_group",
        "fail_after",
        "fail_at",
        "move_on_after",
        "move_on_at",
        "open_nursery",
    )
} | {"asyncio.TaskGroup"}


# What a function is called that sets a context variable, or takes it back.
_SETS = re.compile(
    r"_?(?:bind|clear|detach|pop|push|put|remove|reset|restore|set|store|unbind|unset|use)(?:_|$)"
)


class Unit:
    """
    One function.
    """

    def __init__(
        self,
        module: Module,
        node: cst.FunctionDef,
        qualname: str,
        owner: Class | None,
        kind: str,
    ) -> None:
        self.module = module
        self.node = node
        self.qualname = qualname
        self.owner = owner
        self.kind = kind
        self.registered = "elsewhere"
        self.registrations: list[Registration] = []
        # The ids of the names by which it is registered or delegated to.
        self.uses: set[int] = set()
        # Module level names of its instances.
        self.aliases: set[str] = set()
        self.links: list[Unit] = []
        self.callers: list[Unit] = []
        self.problems: list[Problem] = []
        self.analysed = False
        # The parameter that a caller hands `call_next` over in.
        self.handed: str | None = None
        self.request = ""
        self.call_next = ""
        self.found = _scan.Scan()
        self.flow = _state.Flow()
        self.limited: set[int] = set()
        self.held = Held(node)

    def say(self, code: str, node: cst.CSTNode, **details: str) -> None:
        self.problems.append(Problem(code, node, details))

    def inside(self) -> Place:
        """
        Give the place of what stands in it.
        """
        around = self.module.places[id(self.node)]
        return Place(self.module, around.owner, (*around.scopes, self.node))

    def errors(self) -> list[Problem]:
        return [each for each in self.problems if each.code.startswith("HM1")]

    def link(self, other: Unit) -> None:
        self.links.append(other)
        other.links.append(self)

    def delegations(self) -> list[Site]:
        return [site for site in self.found.sites.values() if site.kind == "delegate"]

    def raises_http(self) -> bool:
        return any(
            isinstance(each, cst.Raise)
            and each.exc is not None
            and last_name(each.exc.func if isinstance(each.exc, cst.Call) else each.exc)
            == "HTTPException"
            for each in own_scope(self.node.body)
        )

    def is_abstract(self) -> bool:
        """
        Whether there is nothing in it: a docstring, `...`, `pass`.
        """
        return all(
            isinstance(small, cst.Pass)
            or (
                isinstance(small, cst.Expr)
                and isinstance(small.value, (cst.Ellipsis, cst.SimpleString))
            )
            for each in self.node.body.body
            for small in (each.body if isinstance(each, cst.SimpleStatementLine) else [each])
        )

    # ------------------------------------------------------------------ analysis

    def parameter_of(self, site: Site) -> str | None:
        """
        Give the name of the parameter that a delegation hands `call_next` over in.
        """
        assert site.handed is not None
        if site.handed.keyword is not None:
            return site.handed.keyword.value
        position = next(i for i, each in enumerate(site.call.args) if each is site.handed)
        if any(each.star or each.keyword for each in site.call.args[:position]):
            return None
        parameters = own_parameters(self.node)
        return parameters[position].name.value if position < len(parameters) else None

    def expects(self) -> str:
        """
        Give the name of its parameter for `call_next`.
        """
        if self.handed is not None or self.call_next:
            return self.handed or self.call_next
        parameters = own_parameters(self.node)
        return parameters[1].name.value if len(parameters) > 1 else ""

    def analyse(self, objects: Objects) -> None:
        self.analysed = True
        parameters = own_parameters(self.node)
        names = [each.name.value for each in parameters]
        if self.handed is not None:
            if self.handed not in [*names, *(p.name.value for p in self.node.params.kwonly_params)]:
                self._bad_parameters()
                return
            self.call_next = self.handed
            self.request = self._request_of_a_helper(names)
        else:
            if len(names) != 2 or not self._plain_parameters(parameters):  # noqa: PLR2004
                self._bad_parameters()
                return
            self.request, self.call_next = names
        self._decorators()
        self.found = _scan.scan(self.node, self.call_next, self.module.names)
        self.flow = _flow.follow(
            self.node,
            self.request,
            self.call_next,
            self.found,
            Certain(self.module, self.owner, lambda func: objects.function(self.inside(), func)[0]),
        )
        self.problems += self.found.problems
        self.problems += self.flow.problems
        if self.errors():
            return
        self._arguments()
        self._answers()
        self._scopes()
        self._described()
        if any(site.kind == "timed" for site in self.found.sites.values()):
            self.say("HM203", self.node)

    def _described(self) -> None:
        of_it: list[cst.FunctionDef | cst.ClassDef] = [self.node]
        if self.owner is not None and self.kind == "class":
            of_it.append(self.owner.node)
        for node in of_it:
            if self.call_next in (node.get_docstring() or ""):
                self.say("HM222", self.node, name=self.call_next)
                return

    def _request_of_a_helper(self, names: list[str]) -> str:
        # What it gives to `call_next`, where that is one of its parameters.
        for call in find(self.node.body, cst.Call):
            if isinstance(call.func, cst.Name) and call.func.value == self.call_next:
                given = dotted(call.args[0].value) if call.args else ""
                if given in names:
                    return given
        return ""

    def _bad_parameters(self) -> None:
        what = snippet(self.node.params)
        self.say("HM105", self.node, what=what)

    def _plain_parameters(self, parameters: list[cst.Param]) -> bool:
        params = self.node.params
        return (
            not params.kwonly_params
            and not isinstance(params.star_arg, cst.Param)
            and params.star_kwarg is None
            and all(each.default is None for each in parameters)
        )

    def _decorators(self) -> None:
        for each in self.node.decorators:
            decorator = each.decorator
            if is_http_decorator(decorator) and self.kind == "decorator":
                continue
            name = decorator.func if isinstance(decorator, cst.Call) else decorator
            if last_name(name) not in _HARMLESS:
                self.say("HM106", each, what=snippet(decorator))

    def _arguments(self) -> None:
        for site in self.found.sites.values():
            if site.kind == "delegate":
                continue
            for arg in site.call.args:
                value = arg.value
                if isinstance(value, cst.Name) and value.value == self.request:
                    if value.value in self.flow.rebound:
                        self._dropped(value)
                    continue
                name = last_name(value.func) if isinstance(value, cst.Call) else ""
                if (name and not name.endswith("Request")) or any(
                    isinstance(each, (cst.Await, cst.NamedExpr)) for each in own_scope(value)
                ):
                    self.say("HM121", value, name=self.call_next, what=snippet(value))
                else:
                    self._dropped(value)

    def _dropped(self, value: cst.BaseExpression) -> None:
        self.say("HM201", value, name=self.call_next, what=snippet(value))

    def _answers(self) -> None:
        returns = [each for each in own_scope(self.node.body) if isinstance(each, cst.Return)]
        for node in returns:
            for value in _leaves(node.value, self):
                info = self.flow.returned.get(id(node if value is None else value))
                if info is None:
                    continue
                # A helper that gives None says so to its caller; a generator cannot.
                helper = self.registered == "delegation"
                if helper and info.tags & _state.NO_RESPONSE:
                    what = f"`{snippet(node)}` does not return a response"
                    self.say("HM101", node, name=self.call_next, what=what)
                elif info.is_none:
                    self._none(node, helper=helper)
                elif _state.NONE in info.tags and _state.NOT in info.calls:
                    self.say("HM110", node, what=snippet(node))
                elif info.may_let_through:
                    self.say("HM217", node, what=snippet(node))
        if self.flow.ending and not self.is_abstract():
            self._none(self.node, helper=self.registered == "delegation")

    def _none(self, node: cst.CSTNode, *, helper: bool) -> None:
        if helper:
            what = "the function can end without a response"
            self.say("HM101", node, name=self.call_next, what=what)
        else:
            self.say("HM206", node)

    def _scopes(self) -> None:
        for node in own_scope(self.node.body):
            if not isinstance(node, cst.With) or not self.runs_app(node.body):
                continue
            for item in node.items:
                call = item.item
                if not self.is_scope(call):
                    continue
                if self._becomes_a_limit(node):
                    self.limited.add(id(node))
                    self.say("HM213", node, what=snippet(call))
                else:
                    self.say("HM107", node, what=snippet(call))

    def is_scope(self, item: cst.CSTNode) -> bool:
        """
        Tell whether what is entered is a scope or a lock that belongs to a task.
        """
        name = self.module.names.qualified(item.func if isinstance(item, cst.Call) else item)
        return name in _SCOPES or last_name(item) in self.module.locks()

    def runs_app(self, node: cst.CSTNode) -> bool:
        """
        Tell whether the app is called in there.
        """
        return any(id(each) in self.found.sites for each in own_scope(node))

    def hold(self, lookup: Lookup) -> None:
        """
        Rearrange it, so that context variables are taken back behind `yield response`.
        """
        self.held = hold(self, lookup)
        if self.held.lost is not None:
            node, taken = self.held.lost
            what = taken.items[0].item if isinstance(taken, cst.With) else taken
            self.say("HM218", node, what=snippet(what))

    def entered(self) -> set[str]:
        """
        Give the names of the context managers in which the app is called.
        """
        return {
            last_name(item.item.func)
            for node in own_scope(self.node.body)
            if isinstance(node, cst.With) and self.runs_app(node.body)
            for item in node.items
            if isinstance(item.item, cst.Call)
        } - {""}

    def called_back(self) -> set[str]:
        """
        Give the names of the functions that are called in it, and may do that to a variable.
        """
        return {
            last_name(node.func)
            for node in own_scope(self.node.body)
            if isinstance(node, cst.Call) and _SETS.match(last_name(node.func))
        }

    def given_request(self) -> set[str]:
        """
        Give the names of the functions that the request is handed to.
        """
        return {
            last_name(node.func)
            for node in own_scope(self.node.body)
            if isinstance(node, cst.Call)
            and any(dotted(each.value) == self.request for each in node.args)
        } - {"", self.call_next}

    def _becomes_a_limit(self, node: cst.With) -> bool:
        call: Any = node.items[0].item
        if (
            not isinstance(call, cst.Call)
            or self.module.names.qualified(call.func) != "anyio.fail_after"
            or len(node.items) != 1
            or node.items[0].asname is not None
            or len(call.args) != 1
            or call.args[0].keyword is not None
            or self.request in self.flow.rebound
            or self.limited
            or len(node.body.body) != 1
        ):
            return False
        line = node.body.body[0]
        small: Any = line
        if isinstance(line, cst.SimpleStatementLine):
            if len(line.body) != 1:
                return False
            small = line.body[0]
        return isinstance(small, (cst.Assign, cst.Expr, cst.Return)) and (
            id(small.value) in self.found.sites
        )

    # ------------------------------------------------------------------ the new version

    def rewritten(self, spelling: Spelling) -> cst.FunctionDef:
        changes: dict[str, Any] = {
            "params": self._parameters(spelling),
            "returns": cst.Annotation(spelling("Flow")),
        }
        if self.node.returns is not None:
            changes["returns"] = self.node.returns.with_changes(annotation=spelling("Flow"))
        if self.is_abstract():
            changes["asynchronous"] = None
        else:
            rewriter = Rewriter(self.held, self.request, self.found, self.flow, self.limited)
            changes["body"] = rewriter.body()
            if self.node.asynchronous is None:
                changes["asynchronous"] = cst.Asynchronous()
        return tidied(self.node.with_changes(**changes))

    def _parameters(self, spelling: Spelling) -> cst.Parameters:
        params = self.node.params
        changes: dict[str, Any] = {}
        for group in ("posonly_params", "params", "kwonly_params"):
            members = list(getattr(params, group))
            # First, while the comment behind the request is the request's.
            members = [
                self._as_connection(each, spelling) if each.name.value == self.request else each
                for each in members
            ]
            changed = members
            for position, each in enumerate(members):
                if each.name.value == self.call_next:
                    changed = without(members, position)
                    break
            changes[group] = changed
        was_last = params.kwonly_params and not changes["kwonly_params"]
        if was_last and not isinstance(params.star_arg, cst.Param):
            changes["star_arg"] = cst.MaybeSentinel.DEFAULT
        return params.with_changes(**changes)

    def _as_connection(self, param: cst.Param, spelling: Spelling) -> cst.Param:
        annotation = param.annotation
        connection = spelling("Connection")
        line = first_line(param)
        is_typed = line is not None and is_type(line.comment)
        if line is not None and is_typed:
            param = with_first_line(param, without_type(line))
        if annotation is None:
            if self.registered == "delegation" and not is_typed:
                return param
            return param.with_changes(annotation=cst.Annotation(connection))
        if not _is_request(annotation.annotation):
            return param
        return param.with_changes(annotation=annotation.with_changes(annotation=connection))


def _is_request(annotation: cst.BaseExpression) -> bool:
    if isinstance(annotation, cst.SimpleString):
        text = annotation.evaluated_value
        return isinstance(text, str) and text.split("[")[0].rpartition(".")[2].endswith("Request")
    if isinstance(annotation, cst.Subscript):
        annotation = annotation.value
    return last_name(annotation) in {"Request", "_CachedRequest", "HTTPConnection", "Any"}


def _leaves(value: cst.BaseExpression | None, unit: Unit) -> list[cst.BaseExpression | None]:
    if isinstance(value, cst.IfExp) and any(
        id(each) in unit.found.sites for each in find(value, cst.BaseExpression)
    ):
        return [*_leaves(value.body, unit), *_leaves(value.orelse, unit)]
    return [value]
