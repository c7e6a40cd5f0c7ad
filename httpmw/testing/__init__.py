"""
Tools to test a middleware with; none of them needs pytest.
"""

from ._call_next import as_call_next
from ._checker import ASGIChecker
from ._faults import every_fault
from ._overhead import Overhead, Phase, overhead
from ._rules import ASGIViolation, Rule
from ._run import Result, run
from ._schedule import ScenarioFailure, explore
from ._server import Server
from ._step import step
from ._stores import check_idempotency_store, check_rate_store
from ._transparent import TransparencyReport, TransparencyRow, check_transparent
from ._world import InjectedError, World

__all__ = [
    "ASGIChecker",
    "ASGIViolation",
    "InjectedError",
    "Overhead",
    "Phase",
    "Result",
    "Rule",
    "ScenarioFailure",
    "Server",
    "TransparencyReport",
    "TransparencyRow",
    "World",
    "as_call_next",
    "check_idempotency_store",
    "check_rate_store",
    "check_transparent",
    "every_fault",
    "explore",
    "overhead",
    "run",
    "step",
]
