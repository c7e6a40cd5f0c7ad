"""
Run the tests of `httpmw.fastapi` on old and new versions of FastAPI.

    python -m tools.fastapis [VERSION ...]

Each version has an environment of its own in `.cache/fastapis`. By default they are the last one
that made routes anew, the first ones that keep routers, and one from before Starlette 1.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = ("0.115.14", "0.136.3", "0.137.0", "0.137.1", "0.137.2", "0.143.0")
NEEDED = ("anyio", "httpx", "httpx2", "pytest>=9", "python-multipart", "trio")
# Old versions use what a new Starlette warns of.
TESTS = ("-q", "-n", "0", "-W", "ignore::DeprecationWarning", "tests/fastapi/test_fastapi.py")


def main() -> int:
    failed = []
    for version in sys.argv[1:] or VERSIONS:
        folder = ROOT / ".cache" / "fastapis" / version
        python = folder / "bin" / "python"
        if not python.exists():
            venv.create(folder, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wanted = [f"fastapi=={version}", "pytest-xdist", *NEEDED]
        subprocess.run([*install, "--editable", ROOT, *wanted], check=True)
        print(f"FastAPI {version}:", flush=True)
        if subprocess.run([python, "-m", "pytest", *TESTS], cwd=ROOT, check=False).returncode:
            failed.append(version)
    print(f"failed: {', '.join(failed)}" if failed else "all is right")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
