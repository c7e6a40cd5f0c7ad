"""Where `tools/fetch_pythons.py` looks for Pythons, and what it says where there are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tools.fetch_pythons import NotHereError, sources

DEB822 = """\
Types: deb deb-src
# as it was on a day
URIs: https://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""

OURS = """\
Types: deb
Uris: https://mirror.example/debian
Suites: sid
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def found(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return sources("bookworm", (folder / "missing.list", folder))


def test_source_of_the_distribution_is_taken(tmp_path: Path) -> None:
    """The archive and its key stay, the suite becomes that of the newest packages."""
    assert found(tmp_path, "debian.sources", DEB822) == OURS


def test_source_in_one_line_is_taken(tmp_path: Path) -> None:
    """The older format means the same."""
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    line = f"deb [arch=amd64 signed-by={key}] https://mirror.example/debian bookworm main contrib"
    text = f"# deb-src https://mirror.example/debian bookworm main\n{line}\n"

    assert found(tmp_path, "debian.list", text) == OURS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("other.sources", DEB822.replace("Suites: bookworm bookworm-updates", "Suites: trixie")),
        ("off.sources", DEB822.replace("contrib", "contrib\nEnabled: no")),
        ("vendor.list", "deb https://vendor.example/apt bookworm stable\n"),
        ("trusted.list", "deb [trusted=yes] https://mirror.example/debian bookworm main\n"),
        ("debian.sources.disabled", DEB822),
    ],
)
def test_other_source_is_left(tmp_path: Path, name: str, text: str) -> None:
    """Another release, one switched off, a vendor's, and one whose signature nobody checks."""
    with pytest.raises(NotHereError, match="no apt source of bookworm main"):
        found(tmp_path, name, text)


def test_machine_without_apt_goes_on_without(tmp_path: Path) -> None:
    """It says why there is none, and that is no failure."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools/fetch_pythons.py", "3.99"],
        env={"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.startswith("no Python 3.99 from Debian sid: ")
    assert not (tmp_path / "cache").exists()
