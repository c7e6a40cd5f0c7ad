"""What the package is from outside: its names, its version, what importing it costs."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib

import pytest

import httpmw
from tests import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def loaded_by(statement: str) -> set[str]:
    """Tell which modules a fresh interpreter has loaded after *statement*."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(output.stdout.split())


def test_all_is_every_public_name() -> None:
    """`httpmw.__all__` holds the names without an underscore, and no module."""
    public = {
        name
        for name, value in vars(httpmw).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }

    assert public == set(httpmw.__all__)


def test_all_is_sorted() -> None:
    """`httpmw.__all__` is in the order in which `sorted` puts it."""
    assert sorted(httpmw.__all__) == httpmw.__all__


@pytest.mark.parametrize("name", httpmw.__all__)
def test_public_names_are_documented(name: str) -> None:
    """Every public name has an entry in the reference and a fragment or a line in the changelog."""
    reference = (ROOT / "docs" / "reference.md").read_text()
    changes = [*(ROOT / "changelog.d").glob("*.md"), *ROOT.glob("CHANGELOG.md")]

    assert f"::: httpmw.{name}\n" in reference
    assert any(f"`httpmw.{name}" in path.read_text() for path in changes)


# A type that has a name has its words behind it, where only readers of the source find them.
TYPES = {"Dispatch", "Flow", "Outcome", "Predicate", "Target"}


@pytest.mark.parametrize("name", sorted(set(httpmw.__all__) - TYPES))
def test_public_names_have_docstrings(name: str) -> None:
    """Every public class and function says what it is."""
    assert getattr(httpmw, name).__doc__


def test_version_is_that_of_the_metadata() -> None:
    """`httpmw.__version__` is the version of the distribution."""
    assert importlib.metadata.version("httpmw") == httpmw.__version__


def test_import_loads_no_tools() -> None:
    """`import httpmw` loads nothing that an application does not need at run time."""
    modules = loaded_by("import httpmw")

    assert modules.isdisjoint({"httpmw.testing", "httpmw.migrate", "httpmw.cli"})
    assert modules.isdisjoint({"trio", "fastapi", "libcst", "pytest"})


def test_imports_only_its_dependencies() -> None:
    """What the core imports is the standard library, httpmw, or a declared dependency."""
    imported = set()
    for path in (ROOT / "httpmw").glob("*.py"):
        if path.name == "fastapi.py":  # for those who have it, as the name says
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                imported.add(node.module.split(".")[0])
    extras = PYPROJECT["project"]["optional-dependencies"]
    declared = {
        requirement.partition(">=")[0].replace("-", "_")
        for requirement in [*PYPROJECT["project"]["dependencies"], *extras["pytest"]]
    }

    assert imported - sys.stdlib_module_names - {"httpmw"} <= declared


def test_docs_are_installed() -> None:
    """All that the README links to is in the wheel, beside it."""
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())

    assert links
    for name in {"README.md", *(link.split("/")[0] for link in links)}:
        assert wheel["shared-data"][name] == f"share/doc/httpmw/{name}"


def test_typed() -> None:
    """The package says that it is typed."""
    assert (ROOT / "httpmw" / "py.typed").exists()


def test_lower_bounds_are_tested() -> None:
    """Every dependency has a plain lower bound, to which `make test-lowest` pins it."""
    output = subprocess.run(
        [sys.executable, "tools/lowest.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert output.stdout.split() == [
        requirement.partition(";")[0].replace(">=", "==")
        for requirement in PYPROJECT["project"]["dependencies"]
    ]
