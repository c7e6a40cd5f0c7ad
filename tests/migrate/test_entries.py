"""No entry of a folder ends or holds up a run of `httpmw migrate`, whatever it is."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from httpmw.cli import main
from httpmw.migrate import _files, _project, _run
from httpmw.migrate._files import MAX_BYTES
from httpmw.migrate.writing import _apply
from tests import ROOT
from tests.migrate.test_cli import NEW, OLD

HEAD = "async def deep(request, call_next):\n"
TAIL = "    return await call_next(request)\n"
DEEP = {
    "arms": "    if a:\n        pass\n" + "    elif a:\n        pass\n" * 800,
    "attributes": f"    a{'.b' * 800}\n",
    "calls": f"    a{'.b()' * 400}\n",
    "subscripts": f"    a{'[0]' * 800}\n",
    "sum": f"    x = {'1 + ' * 800}1\n",
    "strings": "    x = " + "'a' " * 800 + "\n",
    "and": f"    x = {'a and ' * 2500}a\n",
    "not": f"    x = {'not ' * 800}a\n",
}


@pytest.mark.parametrize("to", ["generator", "drop-in"])
@pytest.mark.parametrize("name", DEEP)
def test_deep_nesting_is_named(tmp_path: Path, capsys: Any, name: str, to: str) -> None:
    """What is nested too deeply to be converted is named, and the others are converted."""
    source = "from starlette.middleware.base import BaseHTTPMiddleware\n"
    source += HEAD + DEEP[name] + TAIL
    source += f"class Deep(BaseHTTPMiddleware):\n    async def dispatch{HEAD[14:]}    {TAIL}"
    (tmp_path / "deep.py").write_text(source)
    other = OLD if to == "generator" else source[source.index("class") :]
    other = "from starlette.middleware.base import BaseHTTPMiddleware\n" + other
    (tmp_path / "mw.py").write_text(other)

    code = main(["migrate", "--write", "--to", to, str(tmp_path)])

    error = capsys.readouterr().err
    assert "httpmw" in (tmp_path / "mw.py").read_text()
    if code == 0:  # it could be done
        compile((tmp_path / "deep.py").read_text(), "deep.py", "exec")
        assert "deep.py:1:1" not in error
    else:
        assert code == 3
        assert f"{tmp_path / 'deep.py'}:1:1: HM190 the file cannot be parsed: nested too" in error
        assert (tmp_path / "deep.py").read_text() == source


def test_a_failure_over_all_files_is_laid_at_the_right_one(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Where finding out what belongs together fails, the file that brings it is left out."""
    (tmp_path / "bad.py").write_text(OLD.replace(" mw(", " bad("))
    (tmp_path / "mw.py").write_text(OLD)
    real = _project.find_decorated

    def fail(units: Any, module: Any) -> None:
        if module.path.endswith("bad.py"):
            raise LookupError("no such thing")
        real(units, module)

    monkeypatch.setattr(_project, "find_decorated", fail)

    assert main(["migrate", "--write", str(tmp_path)]) == 3

    assert "bad.py:1:1: HM195 the conversion failed: LookupError" in capsys.readouterr().err
    assert (tmp_path / "mw.py").read_text() == NEW


def test_what_fails_late_takes_along_what_belongs_to_it(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """A file that cannot be written anew leaves a caller in a file that was done before."""
    caller = "from b import helper\n@app.middleware('http')\nasync def mw(request, call_next):\n"
    caller += "    return await helper(request, call_next)\n"
    helper = f"async def helper(request, call_next):\n{TAIL}"
    (tmp_path / "a.py").write_text(caller)
    (tmp_path / "b.py").write_text(helper)
    real = _apply.apply

    def fail(module: Any, versions: Any) -> str:
        if module.path.endswith("b.py"):
            raise RecursionError
        return real(module, versions)

    monkeypatch.setattr("httpmw.migrate._convert.apply", fail)

    assert main(["migrate", "--write", str(tmp_path)]) == 3

    assert "a.py:3:11: HM115 [mw] it belongs together with `helper`" in capsys.readouterr().err
    assert (tmp_path / "a.py").read_text() == caller


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


ENTRIES: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "a named pipe": (os.mkfifo, "HM192 cannot read it: it is a named pipe", 3),
    "a socket": (_socket, "HM192 cannot read it: it is a socket", 3),
    "a link to nothing": (lambda at: at.symlink_to("gone"), "HM214 it is a symbolic link to go", 0),
    "a link to itself": (lambda at: at.symlink_to(at.name), "HM214 it is a symbolic link to x", 0),
    "a link to a device": (
        lambda at: at.symlink_to("/dev/zero"),
        "HM214 it is a symbolic link to /dev/zero",
        0,
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_what_is_no_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str
) -> None:
    """It is not opened, which may never end, and the others are converted."""
    monkeypatch.chdir(tmp_path)
    make, said, code = ENTRIES[name]
    make(tmp_path / "x.py")
    (tmp_path / "mw.py").write_text(OLD)

    # Another process, because the run would hold up this one.
    done = subprocess.run(
        [sys.executable, "-m", "httpmw", "migrate", "--write", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == code, done.stderr
    assert f"{tmp_path / 'x.py'}:1:1: {said}" in done.stderr
    assert (tmp_path / "mw.py").read_text() == NEW


def test_a_device_that_is_given_by_name(capsys: Any) -> None:
    """A device is not read, which would never end."""
    assert main(["migrate", "/dev/zero"]) == 3
    assert "/dev/zero:1:1: HM192 cannot read it: it is a device." in capsys.readouterr().err


def test_a_folder_that_has_the_name_of_a_file(tmp_path: Path) -> None:
    """A folder `x.py` is a folder."""
    (tmp_path / "x.py").mkdir()
    (tmp_path / "x.py" / "mw.py").write_text(OLD)

    assert main(["migrate", "--write", str(tmp_path)]) == 0
    assert (tmp_path / "x.py" / "mw.py").read_text() == NEW


def as_a_stranger(tmp_path: Path, folder: str, mode: int) -> subprocess.CompletedProcess[str]:
    """Run the command over a folder as a user who is not root."""
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "in.py").write_text(OLD)
    (tmp_path / folder / "further").mkdir()
    (tmp_path / "mw.py").write_text(OLD)
    (tmp_path / folder).chmod(mode)
    tmp_path.chmod(0o755)
    # From inside: the folders of pytest are shut for others, and so is what is imported late (from
    # Python 3.15 on by difflib too, which has lazy imports).
    command = (
        "import sys, os, difflib, libcst, httpmw.migrate._run, httpmw.show._commands, httpmw.cli\n"
        "list(difflib.unified_diff(['a'], ['b']))\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "os.geteuid() or os.setresuid(65534, 65534, 65534)\n"
        "sys.exit(httpmw.cli.main(['migrate', '.']))"
    )
    try:
        return subprocess.run(
            [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
        )
    finally:
        (tmp_path / folder).chmod(0o755)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o011, r"\./shut:1:1: HM192 cannot list it: Permission denied\."),
        (0o644, r"\./shut/in\.py:1:1: HM192 cannot read it: Permission denied\."),
    ],
    ids=["not to be listed", "not to be entered"],
)
def test_a_folder_that_is_shut_is_named(tmp_path: Path, mode: int, said: str) -> None:
    """It is said what could not be looked at, and the others are converted."""
    done = as_a_stranger(tmp_path, "shut", mode)

    assert done.returncode == 3, done.stderr
    assert re.search(said, done.stderr)
    assert "b/" in done.stdout
    assert "+async def mw(request: Connection) -> Flow:" in done.stdout


def test_a_path_that_is_too_long_is_named(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """What lies deeper than a path can say is named, and the others are converted."""
    (tmp_path / "mw.py").write_text(OLD)
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        Path("d" * 250).mkdir()
        os.chdir("d" * 250)
    monkeypatch.chdir(ROOT)

    assert main(["migrate", "--write", str(tmp_path)]) == 3

    assert "HM192 cannot list it: File name too long." in capsys.readouterr().err
    assert (tmp_path / "mw.py").read_text() == NEW
    monkeypatch.chdir(tmp_path)
    subprocess.run(["/bin/rm", "-rf", "d" * 250], check=True)
    monkeypatch.chdir(ROOT)


def test_a_path_that_is_too_long_to_be_given(capsys: Any) -> None:
    """On the command line it is a path that is not there."""
    with pytest.raises(SystemExit) as excinfo:
        main(["migrate", "d" * 5000])

    assert excinfo.value.code == 2
    assert "there is no" in capsys.readouterr().err


def test_folders_in_folders_in_folders(tmp_path: Path) -> None:
    """A thousand folders in each other are looked through."""
    deep = str(tmp_path) + "/d" * 1200
    subprocess.run(["/bin/mkdir", "-p", deep], check=True)
    Path(deep, "mw.py").write_text(OLD)

    assert list(_files.discover([str(tmp_path)])) == [f"{deep}/mw.py"]
    subprocess.run(["/bin/rm", "-rf", str(tmp_path / "d")], check=True)


@pytest.mark.parametrize("options", [["--check"], ["--json"], []], ids=str)
def test_a_name_that_is_no_text(tmp_path: Path, options: list[str]) -> None:
    """A name of bytes that are no UTF-8 is printed as it is."""
    Path(os.fsdecode(bytes(tmp_path) + b"/m\xffw.py")).write_text(OLD)

    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-m", "httpmw", "migrate", *options, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )

    assert done.returncode == (1 if options == ["--check"] else 0), done.stderr
    assert (b"m\\udcffw.py" if options == ["--json"] else b"m\xffw.py") in done.stdout


def test_a_terminal_that_cannot_say_it(tmp_path: Path) -> None:
    """A diff is printed where the encoding of the output has not all of its characters."""
    (tmp_path / "mw.py").write_text(f"name = 'é'\n{OLD}", encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-m", "httpmw", "migrate", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert rb"name = '\xe9'" in done.stdout


def test_check_tells_a_fault_from_a_finding(tmp_path: Path, capsys: Any) -> None:
    """With a file that cannot be parsed it is 3, also where another would be changed."""
    (tmp_path / "mw.py").write_text(OLD)
    assert main(["migrate", "--check", str(tmp_path)]) == 1
    (tmp_path / "bad.py").write_text("async def mw(request, call_next:\n")

    assert main(["migrate", "--check", str(tmp_path)]) == 3
    assert "would convert" in capsys.readouterr().out


def test_a_failure_of_the_command_is_no_finding(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Python's own exit code for an exception is 1, which `--check` says for something else."""
    (tmp_path / "mw.py").write_text(OLD)

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(_run, "_print", fail)

    assert main(["migrate", "--check", str(tmp_path)]) == 4
    assert "OSError: no space left" in capsys.readouterr().err


def test_the_size_is_looked_at_before_the_file_is_read(tmp_path: Path, capsys: Any) -> None:
    """A file of many gigabytes without content is left out by its size."""
    with (tmp_path / "huge.py").open("wb") as file:
        file.truncate(1 << 36)

    assert MAX_BYTES < 1 << 36
    assert main(["migrate", str(tmp_path)]) == 3
    assert "huge.py:1:1: HM193" in capsys.readouterr().err
