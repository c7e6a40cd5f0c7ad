# Finding an application by its name, as servers do: `module:app`.

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import FunctionType
from typing import Any

from ._read import is_asgi


class LoadError(Exception):
    """
    There is no application under this name; the message says what to write instead.
    """


def load(name: str, *, folder: str | None = None, factory: bool = False) -> Any:
    """
    Import an application.

    Args:
        name: `package.module:attribute`, or `file.py:attribute`; the attribute may be followed by
            others, as in `module:site.app`, and is `app` where it is left out.
        folder: Where modules are looked for first; None: the current folder.
        factory: Whether the attribute is a function that makes the application.

    Raises:
        LoadError: It cannot be imported, has no such attribute, or that is no ASGI app.
    """
    module_name, _, attribute = name.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        module_name, found = _module_of(Path(module_name))
        folder = folder or found
    sys.path.insert(0, str(Path(folder or ".").resolve()))
    app = _attribute(_imported(module_name), attribute or "app", name)
    return _made(app, name) if factory else _checked(app, name)


def _module_of(path: Path) -> tuple[str, str]:
    """
    Say as what a file is imported, and from where: below the outermost folder that is a package.
    """
    path = path.resolve()
    if not path.is_file():
        raise LoadError(f"there is no file {path.name!r} in {path.parent}")
    parts = [] if path.name == "__init__.py" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), str(folder)


def _imported(module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except BaseException as exc:
        if isinstance(exc, KeyboardInterrupt):
            raise
        missing = exc.name if isinstance(exc, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise LoadError(
                f"there is no module {module_name!r}; is this the folder to import it from? "
                "Else name that with --app-dir."
            ) from None
        raise LoadError(f"{traced(exc)}\n{module_name!r} could not be imported") from exc


def traced(exc: BaseException) -> str:
    """
    Write an exception down as Python does, without the frames of this file and of the import.
    """
    return "".join(traceback.format_exception(exc.with_traceback(_below(exc))))


def _below(exc: BaseException) -> Any:
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        file = trace.tb_frame.f_code.co_filename
        if file != __file__ and "importlib" not in file:
            break
        trace = trace.tb_next
    return trace


def _attribute(module: Any, path: str, name: str) -> Any:
    found = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            others = [key for key, each in vars(module).items() if is_asgi(each)]
            hint = f"; ASGI apps in it: {', '.join(others)}" if others else ""
            raise LoadError(
                f"{name!r}: there is no {part!r} in {module.__name__!r}{hint}"
            ) from None
    return found


def _made(factory: Any, name: str) -> Any:
    if not callable(factory):
        raise LoadError(f"{name!r} is no function that makes an application")
    try:
        made = factory()
    except Exception as exc:
        raise LoadError(f"{traced(exc)}\n{name!r} could not make its application") from exc
    return _checked(made, name)


def _checked(app: Any, name: str) -> Any:
    if not callable(app):
        raise LoadError(f"{name!r} is {type(app).__name__}, no ASGI app")
    # A function says by its parameters what it is.
    if isinstance(app, FunctionType) and app.__code__.co_argcount != 3:  # noqa: PLR2004 - of ASGI
        raise LoadError(
            f"{name!r} is a function that is no ASGI app; does it make one? Add --factory"
        )
    return app
