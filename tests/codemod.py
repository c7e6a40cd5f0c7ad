"""What the tests of the codemod have in common."""

from __future__ import annotations

import textwrap

from httpmw.migrate import Conversion, Project, convert


def run(**files: str) -> dict[str, Conversion]:
    """Convert some files together; a double underscore in a name is a folder."""
    project = Project()
    sources = {
        f"{name.replace('__', '/')}.py": textwrap.dedent(source).lstrip("\n")
        for name, source in files.items()
    }
    for path, source in sources.items():
        project.add(path, source)
    return {
        path.removesuffix(".py"): convert(source, path=path, project=project)
        for path, source in sources.items()
    }
