"""The command: what it prints, what it writes, and what it does about files it cannot use."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from httpmw.cli import main
from httpmw.migrate import _files, _run
from tests import ROOT

OLD = """\
@app.middleware("http")
async def mw(request, call_next):
    return await call_next(request)
"""
NEW = """\
from httpmw import Connection, Flow, http_middleware
@http_middleware(app)
async def mw(request: Connection) -> Flow:
    yield
"""
LEFT = """\
@app.middleware("http")
async def mw(request, call_next):
    return await asyncio.create_task(call_next(request))
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with one file to convert, and one without middleware."""
    (tmp_path / "mw.py").write_text(OLD)
    (tmp_path / "other.py").write_text("x = 1\n")
    return tmp_path


def test_without_an_option_it_prints_a_diff(old: Path, capsys: Any) -> None:
    """The diff goes to standard output, the summary to the other one, and nothing is written."""
    assert main(["migrate", str(old)]) == 0

    output = capsys.readouterr()
    assert "+async def mw(request: Connection) -> Flow:\n" in output.out
    assert output.err == (
        "2 files read; 1 function in 1 file to convert, 0 left to a person, 0 notices.\n"
    )
    assert (old / "mw.py").read_text() == OLD


def test_the_diff_is_a_patch(old: Path, capsys: Any) -> None:
    """`patch` understands what is printed."""
    main(["migrate", str(old / "mw.py")])
    path = str(old / "mw.py").lstrip("/")

    assert capsys.readouterr().out.startswith(f"--- a/{path}\n+++ b/{path}\n@@ ")


@pytest.mark.parametrize("separator", ["\f", "\v", "\x1c", "\x85", "\u2028"])
def test_the_diff_is_a_patch_with_other_separators(
    tmp_path: Path, capsys: Any, separator: str
) -> None:
    """What Python counts as the end of a line and `patch` does not stays in its line."""
    source = f"# a{separator}b\n{OLD}# c{separator}d\n"
    if separator == "\f":
        source = f"{separator}\n{source}"
    (tmp_path / "mw.py").write_bytes(source.encode())

    main(["migrate", str(tmp_path)])
    patch = capsys.readouterr().out
    main(["migrate", "--write", str(tmp_path)])
    written = (tmp_path / "mw.py").read_bytes()

    (tmp_path / "mw.py").write_bytes(source.encode())
    git = shutil.which("git")
    if git is None:
        pytest.skip("there is no git here")
    strip = f"-p{len(tmp_path.parts)}"
    subprocess.run([git, "apply", strip], input=patch.encode(), cwd=tmp_path, check=True)
    assert (tmp_path / "mw.py").read_bytes() == written


def test_write(old: Path, capsys: Any) -> None:
    """`--write` changes the files, and a second run finds nothing to do."""
    assert main(["migrate", "--write", str(old)]) == 0
    assert (old / "mw.py").read_text() == NEW
    assert capsys.readouterr().out == f"converted {old / 'mw.py'}\n"

    assert main(["migrate", "--check", str(old)]) == 0
    assert capsys.readouterr().out == ""


def test_check(old: Path, capsys: Any) -> None:
    """`--check` exits with 1 and names the file."""
    assert main(["migrate", "--check", str(old)]) == 1
    assert capsys.readouterr().out == f"would convert {old / 'mw.py'}\n"
    assert (old / "mw.py").read_text() == OLD


def test_json(old: Path, capsys: Any) -> None:
    """`--json` prints one document and nothing else."""
    (old / "left.py").write_text(LEFT)

    assert main(["migrate", "--json", str(old)]) == 0

    output = capsys.readouterr()
    document = json.loads(output.out)
    assert output.err == ""
    files = {Path(each["path"]).name: each for each in document["files"]}
    assert files["mw.py"]["conversions"] == [
        {
            "kind": "decorator",
            "line": 2,
            "qualname": "mw",
            "registered": "decorator",
            "forgets": False,
            "managers": [],
        }
    ]
    assert files["mw.py"]["changed"]
    assert [each["code"] for each in document["diagnostics"]] == ["HM102"]
    assert document["summary"].startswith("3 files read; 1 function in 1 file to convert")


def test_diagnostics_are_printed(tmp_path: Path, capsys: Any) -> None:
    """A diagnostic has file, line, column, code and remedy; it is no failure of the command."""
    (tmp_path / "left.py").write_text(LEFT)

    assert main(["migrate", str(tmp_path)]) == 0

    error = capsys.readouterr().err
    assert error.startswith(f"{tmp_path / 'left.py'}:3:38: HM102 [mw] `call_next(...)` is not")
    assert "\n    For a time limit write `conn.fail_after(seconds)`" in error
    assert "1 left to a person" in error


def test_drop_in(tmp_path: Path, capsys: Any) -> None:
    """`--to drop-in` swaps imports, and names the decorators that it leaves."""
    (tmp_path / "mw.py").write_text(
        "import starlette.middleware.base\n"
        "from starlette.middleware.base import (\n"
        "    BaseHTTPMiddleware,\n"
        "    _StreamingResponse,\n"
        ")\n"
        "class A(BaseHTTPMiddleware): ...\n"
        "class B(starlette.middleware.base.BaseHTTPMiddleware): ...\n" + OLD
    )

    main(["migrate", "--to", "drop-in", "--write", str(tmp_path)])

    code = (tmp_path / "mw.py").read_text()
    assert "from httpmw.compat import BaseHTTPMiddleware\n" in code
    assert "from starlette.middleware.base import (\n    _StreamingResponse,\n)\n" in code
    assert "import httpmw.compat\n" in code
    assert "class B(httpmw.compat.BaseHTTPMiddleware): ..." in code
    assert code.endswith(OLD)
    assert "HM216" in capsys.readouterr().err
    compile(code, "mw.py", "exec")
    main(["migrate", "--to", "drop-in", "--write", str(tmp_path)])
    assert (tmp_path / "mw.py").read_text() == code


def test_drop_in_can_be_converted_later(tmp_path: Path) -> None:
    """What stands on the drop-in is converted as what stands on Starlette's class."""
    (tmp_path / "mw.py").write_text(
        "from httpmw.compat import BaseHTTPMiddleware\n"
        "class A(BaseHTTPMiddleware):\n"
        "    async def dispatch(self, request, call_next):\n"
        "        return await call_next(request)\n"
    )

    main(["migrate", "--write", str(tmp_path)])

    assert "class A(HTTPMiddleware):" in (tmp_path / "mw.py").read_text()


def test_verify(old: Path, capsys: Any) -> None:
    """`--verify` lets a conversion pass that behaves the same."""
    assert main(["migrate", "--verify", "--check", str(old / "mw.py")]) == 1
    assert "HM180" not in capsys.readouterr().err


def test_verify_counts_what_was_run(tmp_path: Path, capsys: Any) -> None:
    """The last line says how many pairs were run, and which improvements were met how often."""
    (tmp_path / "typed.py").write_text(
        "from starlette.middleware.base import BaseHTTPMiddleware\n\n\n"
        "class Typed(BaseHTTPMiddleware):\n"
        "    async def dispatch(self, request, call_next):\n"
        "        response = await call_next(request)\n"
        "        response.headers['x-type'] = str(response.media_type)\n"
        "        return response\n"
    )
    assert main(["migrate", "--verify", "--json", str(tmp_path)]) == 0
    verified = json.loads(capsys.readouterr().out)["verified"]
    assert verified["functions"] == 1
    assert 0 < verified["identical"] < verified["pairs"]
    assert verified["improved"]["media-type-known"] > 0

    assert main(["migrate", "--verify", str(tmp_path)]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    better = verified["pairs"] - verified["identical"]
    assert last.startswith(f"1 function run in {verified['pairs']} pairs: ")
    assert f" the same, {better} better (media-type-known " in last


def test_verify_leaves_what_differs(old: Path, capsys: Any, monkeypatch: Any) -> None:
    """A function whose two versions differ is left, with what differs."""
    real = _run.conversion

    def wrong(project: Any, module: Any, to: Any) -> Any:
        done = real(project, module, to)
        if done.changed:
            done.code = done.code.replace("yield", 'yield Response("other")')
            done.code = "from starlette.responses import Response\n" + done.code
        return done

    monkeypatch.setattr(_run, "conversion", wrong)

    assert main(["migrate", "--verify", "--write", str(old)]) == 0
    assert "HM180 [mw] old and new version differ" in capsys.readouterr().err
    assert (old / "mw.py").read_text() == OLD


# ------------------------------------------------------------------- files of every kind


def one_among_others(folder: Path, name: str, data: bytes) -> Path:
    """Put a file beside one that is to be converted."""
    (folder / "mw.py").write_text(OLD)
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"async def mw(request, call_next:\n", "HM190"),
        (b"call_next = " + b"(" * 5000 + b")" * 5000 + b"\n", "HM190"),
        (b"call_next = '\0'\n", "HM190"),
        (b"# -*- coding: nonsense -*-\ncall_next = 1\n", "HM191"),
        (b"call_next = '\xff'\n", "HM191"),
        (b"# call_next\n" + b"x = 1\n" * 2000, "HM193"),
    ],
    ids=["syntax", "nesting", "null", "unknown encoding", "wrong encoding", "size"],
)
def test_bad_file_does_not_stop_the_others(
    tmp_path: Path, capsys: Any, data: bytes, code: str
) -> None:
    """It is named, the others are converted, and the exit code says that something was wrong."""
    path = one_among_others(tmp_path, "bad.py", data)

    assert main(["migrate", "--write", "--max-bytes", "11000", str(tmp_path)]) == 3

    assert f"{path}:1:" in (error := capsys.readouterr().err)
    assert f": {code} " in error
    assert (tmp_path / "mw.py").read_text() == NEW
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("\ufeff", "utf-8"),
        ("# -*- coding: latin-1 -*-\n", "latin-1"),
        ("# vim: set fileencoding=cp1252 :\n", "cp1252"),
    ],
    ids=["byte order mark", "latin-1", "cp1252"],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_encoding_and_line_ends_stay(tmp_path: Path, head: str, encoding: str, ending: str) -> None:
    """A file is written in the encoding, and with the line ends, that it has."""
    source = f'{head}name = "é"\n{OLD}'.replace("\n", ending)
    (tmp_path / "mw.py").write_bytes(source.encode(encoding))

    main(["migrate", "--write", str(tmp_path)])

    written = (tmp_path / "mw.py").read_bytes().decode(encoding)
    assert written.startswith(head.replace("\n", ending))
    assert f'name = "é"{ending}' in written
    assert "-> Flow:" in written
    assert written.count("\n") == written.count(ending)


def test_read_only_file(tmp_path: Path, capsys: Any) -> None:
    """A read-only file is left, and what belongs to it as well."""
    path = one_among_others(tmp_path, "locked.py", OLD.encode())
    path.chmod(stat.S_IRUSR)

    assert main(["migrate", "--write", str(tmp_path)]) == 3

    assert "locked.py:2:11: HM192 [mw] cannot write it: it is read-only" in capsys.readouterr().err
    assert path.read_text() == OLD
    assert (tmp_path / "mw.py").read_text() == NEW


def test_symbolic_links(tmp_path: Path, capsys: Any) -> None:
    """A link in a folder is named and not followed; what it leads to is converted once."""
    (tmp_path / "mw.py").write_text(OLD)
    link = tmp_path / "link.py"
    link.symlink_to(tmp_path / "mw.py")
    (tmp_path / "loop").symlink_to(tmp_path)

    assert main(["migrate", "--write", str(tmp_path)]) == 0

    assert f"{link}:1:1: HM214" in capsys.readouterr().err
    assert link.is_symlink()
    assert (tmp_path / "mw.py").read_text() == NEW


def test_link_that_is_given_by_name(tmp_path: Path) -> None:
    """A link that is named itself stays a link; the file behind it is changed."""
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "mw.py"
    target.write_text(OLD)
    link = tmp_path / "link.py"
    link.symlink_to(target)

    main(["migrate", "--write", str(link)])

    assert link.is_symlink()
    assert target.read_text() == NEW


def test_permissions_stay(old: Path) -> None:
    """The new version has the permissions of the old one, and nothing is left beside it."""
    path = old / "mw.py"
    path.chmod(0o754)

    main(["migrate", "--write", str(old)])

    assert stat.S_IMODE(path.stat().st_mode) == 0o754
    assert sorted(each.name for each in old.iterdir()) == ["mw.py", "other.py"]


def test_interrupted_while_writing(old: Path, monkeypatch: Any, capsys: Any) -> None:
    """A run that is interrupted leaves each file in its old or in its new version."""
    (old / "second.py").write_text(OLD)
    real = os.fsync

    def interrupt(handle: int) -> None:
        real(handle)
        if (old / "mw.py").read_text() == NEW:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)

    assert main(["migrate", "--write", str(old)]) == 130

    assert (old / "mw.py").read_text() == NEW
    assert (old / "second.py").read_text() == OLD
    assert sorted(each.name for each in old.iterdir()) == ["mw.py", "other.py", "second.py"]
    assert "interrupted" in capsys.readouterr().err


def test_file_that_changes_meanwhile(old: Path, monkeypatch: Any, capsys: Any) -> None:
    """What somebody else has written in the meantime is not overwritten."""
    real = _run._write

    def late(files: Any, result: Any) -> None:
        (old / "mw.py").write_text("x = 2\n")
        real(files, result)

    monkeypatch.setattr(_run, "_write", late)

    assert main(["migrate", "--write", str(old)]) == 3
    assert (old / "mw.py").read_text() == "x = 2\n"
    assert "it has changed since it was read" in capsys.readouterr().err


def test_file_that_cannot_be_read(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """An error of the file system is said about that file only."""
    one_among_others(tmp_path, "gone.py", OLD.encode())
    real = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "gone.py":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", fail)

    assert main(["migrate", str(tmp_path)]) == 3
    assert "gone.py:1:1: HM192 cannot read it: Permission denied" in capsys.readouterr().err


def test_failure_of_the_codemod(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """What the codemod itself gets wrong is said, and the file is left as it was."""
    (tmp_path / "mw.py").write_text(OLD)
    monkeypatch.setattr("httpmw.migrate._convert.apply", lambda *_: "def broken(:\n")

    assert main(["migrate", "--write", str(tmp_path)]) == 3
    assert "HM195" in capsys.readouterr().err
    assert (tmp_path / "mw.py").read_text() == OLD


def test_folders_that_are_nobodys_source(tmp_path: Path) -> None:
    """Hidden folders, environments and caches are not looked into."""
    for name in (".venv", "node_modules", "__pycache__", "env"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mw.py").write_text(OLD)
    (tmp_path / "env" / "pyvenv.cfg").write_text("")

    assert list(_files.discover([str(tmp_path)])) == []


def test_files_are_taken_once(old: Path) -> None:
    """A file that is named twice is converted once."""
    path = str(old / "mw.py")

    assert list(_files.discover([path, str(old), path])) == [path, str(old / "other.py")]


# ------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "arguments",
    [["migrate"], [], ["migrate", "nowhere.py"], ["migrate", "--write", "--check", "."]],
)
def test_wrong_command_line(arguments: list[str], capsys: Any) -> None:
    """A mistake in the command line exits with 2 and says what is wrong."""
    with pytest.raises(SystemExit) as excinfo:
        main(arguments)

    assert excinfo.value.code == 2
    assert "httpmw" in capsys.readouterr().err


def test_help_lists_the_exit_codes(capsys: Any) -> None:
    """`--help` names every option and every exit code."""
    with pytest.raises(SystemExit):
        main(["migrate", "--help"])

    output = capsys.readouterr().out
    assert "exit codes:" in output
    assert all(f"--{name}" in output for name in ("write", "check", "to", "json", "verify"))


class Terminal:
    """A stream that says that it is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_progress_bar(tmp_path: Path) -> None:
    """A large tree shows a bar on a terminal, which is wiped away."""
    for index in range(120):
        (tmp_path / f"m{index}.py").write_text("x = 1\n")
    out, err = Terminal(), Terminal()

    _run.run(_run.Options([str(tmp_path)]), out, err)  # type: ignore[arg-type]

    assert "\rreading    [" in err.text
    assert "] 60/120" in err.text
    assert "\r\x1b[K120 files read" in err.text
    assert out.text == ""


def test_without_the_extra(old: Path) -> None:
    """Without libcst the command says what to install."""
    code = (
        "import sys; sys.modules['libcst'] = None\n"
        f"from httpmw.cli import main\nsys.exit(main(['migrate', {str(old)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "pip install 'httpmw[migrate]'" in done.stderr


def test_as_a_module(old: Path) -> None:
    """`python -m httpmw` is the command."""
    done = subprocess.run(
        [sys.executable, "-m", "httpmw", "migrate", "--check", str(old)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "would convert" in done.stdout


def test_reader_that_has_enough(old: Path) -> None:
    """`httpmw migrate . | head` ends without a traceback."""
    (old / "mw.py").write_text("\n".join(OLD.replace(" mw(", f" mw{n}(") for n in range(300)))
    command = f"{sys.executable} -m httpmw migrate {old} | head -n 1"
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert "Traceback" not in done.stderr
