"""
The checks of the Makefile under nox, for those who have it: `nox`, `nox -s tests-3.13`.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False

PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """
    Run the suite with the newest dependencies.
    """
    session.install("--editable", ".", "--group", "test")
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """
    Run the suite with every run-time dependency at its lower bound.
    """
    constraints = Path(session.create_tmp()) / "lowest.txt"
    output = session.run("python", "tools/lowest.py", silent=True)
    constraints.write_text(str(output))
    session.install("--editable", ".", "--group", "lowest", "--constraint", str(constraints))
    session.run("python", "-m", "pytest", "-n", "2", "-p", "tools.lowest_pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """
    Check style, format and types.
    """
    session.install("--editable", ".", "--group", "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("pyrefly", "check")


@nox.session
def docs(session: nox.Session) -> None:
    """
    Build the documentation, and check it as strictly as there is.
    """
    session.install("--editable", ".", "--group", "docs")
    session.run("zensical", "build", "--strict")
    session.run("mkdocs", "build", "--strict", "--theme", "mkdocs", "--site-dir", ".cache/mkdocs")
