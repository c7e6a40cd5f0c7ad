"""
Tools to test a middleware with; none of them needs pytest.
"""

from .checking._checker import ASGIChecker
from .checking.rules._rule import ASGIViolation, Rule
from .comparing._transparent import TransparencyReport, TransparencyRow, check_transparent
from .driving._call_next import as_call_next
from .driving._run import Result, run
from .driving._server import Server
from .driving._step import step
from .exploring._faults import every_fault
from .exploring._schedule import ScenarioFailure, explore
from .exploring._world import InjectedError, World
from .measuring._overhead import Overhead, Phase, overhead
from .storing._stores import check_idempotency_store, check_rate_store

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
