# One run over files and folders: what the command does, and what it prints.
# Its steps stand here in their order, from the options to the exit code, and each is short.
#
# Rule: nothing is written before everything has been converted, so that a run that is
# interrupted has changed no file, or some files wholly.

from __future__ import annotations

import difflib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ._convert import Project, Target, alone, conversion, diagnostic, parse
from ._files import MAX_BYTES, File, Unusable, decoded, discover, load, store, unwritable
from ._model import Conversion, Diagnostic
from ._report import Page, report
from .writing._formatters import Tools

if TYPE_CHECKING:
    from .verifying._judge import Verdict

__all__ = ["EXIT_CHANGES", "EXIT_FILES", "Options", "Result", "run"]

EXIT_CHANGES = 1
EXIT_FILES = 3
_SHOWN_FROM = 100  # files: below this a progress bar would only flicker
_FILE_CODES = {"HM190", "HM191", "HM192", "HM193", "HM195"}


@dataclass(frozen=True, slots=True)
class Options:
    """
    What the command line says.
    """

    paths: Sequence[str]
    write: bool = False
    check: bool = False
    to: Target = "generator"
    as_json: bool = False
    verify: bool = False
    max_bytes: int = MAX_BYTES
    report: str | None = None


@dataclass(slots=True)
class Verified:
    """
    What was run in pairs, of the functions that stay converted.
    """

    functions: int = 0
    pairs: int = 0
    identical: int = 0
    # How many had a listed improvement, and were the same otherwise.
    improved: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        self.functions += 1
        self.pairs += verdict.pairs
        self.identical += verdict.identical
        self.improved.update(verdict.improvements)

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        names = ", ".join(f"{name} {count}" for name, count in self.improved.most_common())
        better = self.pairs - self.identical
        return (
            f"{_count(self.functions, 'function')} run in {_count(self.pairs, 'pair')}: "
            f"{self.identical} the same, {better} better{f' ({names})' if names else ''}."
        )


@dataclass(slots=True)
class Result:
    """
    What became of all files.
    """

    conversions: list[Conversion] = field(default_factory=list)
    # What is said of files that could not be used.
    unusable: list[Diagnostic] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    files: int = 0
    verified: Verified | None = None
    tools: Tools = field(default_factory=Tools)
    # What was run in pairs: path, function, pairs, the same, what is better.
    pairs: list[tuple[str, str, int, int, str]] = field(default_factory=list)

    def diagnostics(self) -> list[Diagnostic]:
        every = [each for one in self.conversions for each in one.diagnostics]
        return sorted({*every, *self.unusable})

    def changed(self) -> list[Conversion]:
        return [each for each in self.conversions if each.changed]


def run(options: Options, out: TextIO, err: TextIO) -> int:
    """
    Convert the files, print what there is to say, and give the exit code.
    """
    result = Result()
    progress = _Progress(err)
    files = _load(options, result, progress)
    _convert(options, files, result, progress)
    progress.done()
    if options.write:
        _write(files, result)
    if options.report is not None:
        _report(options, options.report, result)
    if options.as_json:
        _print_json(options, result, out)
    else:
        _print(options, result, out, err)
    # A fault first: who looks for what is to be done shall not take it for that.
    if any(each.code in _FILE_CODES for each in result.diagnostics()):
        return EXIT_FILES
    return EXIT_CHANGES if options.check and result.changed() else 0


def _load(options: Options, result: Result, progress: _Progress) -> dict[str, File | None]:
    # A file without `call_next` is None: it is read again where a function may be used in it.
    files: dict[str, File | None] = {}
    found = []
    for each in discover(options.paths):
        if isinstance(each, Diagnostic):
            result.unusable.append(each)
        else:
            found.append(each)
    result.files = len(found)
    for path in progress.over(found, "reading"):
        try:
            files[path] = load(path, options.max_bytes)
        except Unusable as exc:
            result.unusable.append(exc.diagnostic)
    return files


def _convert(
    options: Options, files: dict[str, File | None], result: Result, progress: _Progress
) -> None:
    project = _project(options, files, result, progress)
    result.conversions = _conversions(project, options, progress)
    if options.verify and options.to == "generator":
        _verify(project, options, result, progress)
    for each in progress.over(result.changed(), "formatting"):
        each.code = result.tools.formatted(each.path, each.source, each.code)


def _project(
    options: Options, files: dict[str, File | None], result: Result, progress: _Progress
) -> Project:
    """
    Put the files together, but for those that make the codemod fail.
    """
    project = Project()
    project.know(files)
    candidates = [each for each in files.values() if each is not None]
    for file in progress.over(candidates, "parsing"):
        _add(project, file, result)
        if options.write and (what := unwritable(file.path)) is not None:
            project.freeze(file.path, what)
    try:
        if options.to == "generator":
            _add_others(project, files, result)
        project.resolve()
    except Exception as exc:  # noqa: BLE001 - one file must not stop the others
        # Which one it was is found by giving each its own run.
        each_alone = (
            alone(module.path, module.source, options.to) for module in project.modules.values()
        )
        found = [each for each in each_alone if each is not None]
        what = f"{type(exc).__name__}: {exc}"
        for each in found or [diagnostic(path, "HM195", what=what) for path in project.modules]:
            result.unusable.append(each)
            del files[each.path]
        return _project(options, files, result, progress)
    return project


def _conversions(project: Project, options: Options, progress: _Progress) -> list[Conversion]:
    # What fails takes with it what it belongs together with, also in files that were done before.
    while True:
        before = project.rejected
        modules = list(project.modules.values())
        done = [
            conversion(project, each, options.to) for each in progress.over(modules, "converting")
        ]
        if project.rejected == before:
            return done


def _add(project: Project, file: File, result: Result) -> None:
    failed = parse(project, file.path, file.source)
    if failed is not None:
        result.unusable.append(failed)


def _add_others(project: Project, files: dict[str, File | None], result: Result) -> None:
    """
    Parse the other files in which a function that is to be converted is named.

    And those in which a context manager is defined in which it calls the app, or a function that
    sets a context variable for it, or gives its request another `receive`.
    """
    patterns = []
    if names := project.wanted():
        patterns.append((_any_of(rb"\b(?:%s)\b", names), b"import"))
    if names := project.entered():
        patterns.append((_any_of(rb"\b(?:def|class)\s+(?:%s)\b", names), b""))
    if names := project.called_back():
        patterns.append((_any_of(rb"\bdef\s+(?:%s)\b", names), b"ContextVar"))
    if names := project.given_request():
        patterns.append((_any_of(rb"\bdef\s+(?:%s)\b", names), b"._receive"))
    if not patterns:
        return
    for path, file in files.items():
        if file is not None:
            continue
        try:
            data = Path(path).read_bytes()
            if any(text in data and pattern.search(data) for pattern, text in patterns):
                files[path] = other = decoded(path, data)
                _add(project, other, result)
        except (OSError, Unusable):
            continue  # a file that has nothing to do with it


def _any_of(pattern: bytes, names: set[str]) -> re.Pattern[bytes]:
    return re.compile(pattern % b"|".join(re.escape(each.encode()) for each in names))


def _verify(project: Project, options: Options, result: Result, progress: _Progress) -> None:
    # Half a package that few runs need.
    from .verifying._compare import remedy  # noqa: PLC0415
    from .verifying._verify import verify  # noqa: PLC0415

    notes: dict[str, list[Diagnostic]] = {}
    result.verified = Verified()
    for each in progress.over(result.changed(), "verifying"):
        module = project.modules[each.path]
        for verdict in verify(each.source, each.code, each.conversions):
            if verdict.differing:
                first = verdict.differences[0]
                project.reject(module, verdict.qualname, "HM180", str(first), remedy(first.what))
            elif verdict.problem:
                notes.setdefault(each.path, []).append(
                    _not_run(each.path, verdict.line, verdict.qualname, verdict.problem)
                )
            else:
                result.verified.add(verdict)
                better = Counter(verdict.improvements).most_common()
                better_text = ", ".join(f"{name} {count}" for name, count in better)
                counts = verdict.pairs, verdict.identical
                result.pairs.append((each.path, verdict.qualname, *counts, better_text))
    result.conversions = _conversions(project, options, progress)
    for each in result.conversions:
        converted = {one.qualname for one in each.conversions}
        found = [note for note in notes.get(each.path, []) if note.function in converted]
        each.diagnostics = sorted([*each.diagnostics, *found])


def _not_run(path: str, line: int, qualname: str, what: str) -> Diagnostic:
    return diagnostic(path, "HM215", line, function=qualname, what=what)


def _write(files: dict[str, File | None], result: Result) -> None:
    for each in result.changed():
        file = files[each.path]
        assert file is not None
        try:
            store(file, each.code)
        except Unusable as exc:
            result.unusable.append(exc.diagnostic)
        else:
            result.written.append(each.path)


def _report(options: Options, path: str, result: Result) -> None:
    text = report(
        Page(
            summary(options, result),
            result.conversions,
            result.diagnostics(),
            None if result.verified is None else str(result.verified),
            result.pairs,
        )
    )
    try:
        Path(path).write_text(text, encoding="utf-8", errors="replace")
    except OSError as exc:
        what = f"cannot write it: {exc.strerror}"
        result.unusable.append(diagnostic(path, "HM192", what=what))


# ---------------------------------------------------------------------- what is printed


def _print(options: Options, result: Result, out: TextIO, err: TextIO) -> None:
    for each in result.changed():
        if options.write:
            if each.path in result.written:
                print(f"converted {each.path}", file=out)
        elif options.check:
            print(f"would convert {each.path}", file=out)
        else:
            out.write(diff(each))
    for found in result.diagnostics():
        print(
            f"{found.path}:{found.line}:{found.column}: {found.code} "
            f"{f'[{found.function}] ' if found.function else ''}{found.message}\n"
            f"    {found.remedy}",
            file=err,
        )
    print(summary(options, result), file=err)
    if result.verified is not None:
        print(result.verified, file=err)
    for name in sorted(result.tools.missing):
        print(f"{name} is configured and not installed here; run it over the changes.", file=err)


def summary(options: Options, result: Result) -> str:
    """
    Say in one line what became of it all.
    """
    changed = result.changed()
    functions = sum(len(each.conversions) for each in changed)
    diagnostics = result.diagnostics()
    left = {(d.path, d.function) for d in diagnostics if d.severity == "error"}
    notices = sum(each.severity == "notice" for each in diagnostics)
    verb = "converted" if options.write else "to convert"
    return (
        f"{_count(result.files, 'file')} read; {_count(functions, 'function')} in "
        f"{_count(len(changed), 'file')} {verb}, {len(left)} left to a person, "
        f"{_count(notices, 'notice')}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def diff(each: Conversion) -> str:
    """
    Give a conversion as a unified diff.
    """
    path = each.path.replace(os.sep, "/").lstrip("/")
    lines = difflib.unified_diff(
        _lines(each.source),
        _lines(each.code),
        f"a/{path}",
        f"b/{path}",
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _lines(text: str) -> list[str]:
    # As `patch` counts them: a form feed or a line separator of Unicode ends none.
    return list(io.StringIO(text, newline="\n"))


def _print_json(options: Options, result: Result, out: TextIO) -> None:
    document: dict[str, Any] = {
        "files": [
            {
                "path": each.path,
                "changed": each.changed,
                "written": each.path in result.written,
                "conversions": [
                    {name: getattr(one, name) for name in one.__slots__} for one in each.conversions
                ],
                "diff": diff(each) if each.changed else "",
            }
            for each in result.conversions
        ],
        "diagnostics": [each.as_dict() for each in result.diagnostics()],
        "summary": summary(options, result),
        "verified": result.verified and result.verified.as_dict(),
    }
    json.dump(document, out, indent=2)
    out.write("\n")


class _Progress:
    """
    A bar on a terminal, and nothing elsewhere.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.shown = False
        self.wanted = stream.isatty()

    def over(self, items: Sequence[Any], what: str) -> Iterator[Any]:
        """
        Go over some items, and show how far.
        """
        total = len(items)
        step = max(1, total // 100)
        for count, item in enumerate(items):
            if self.wanted and total >= _SHOWN_FROM and count % step == 0:
                filled = 30 * count // total
                bar = "#" * filled + "." * (30 - filled)
                self.stream.write(f"\r{what:<10} [{bar}] {count}/{total}")
                self.stream.flush()
                self.shown = True
            yield item

    def done(self) -> None:
        """
        Wipe the bar away.
        """
        if self.shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
