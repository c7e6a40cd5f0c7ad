"""
Make `docs/performance.md` out of the last runs: `python -m benchmarks.report`.

1. What the page needs of the last runs, in `.cache/benchmarks/`, becomes the summary in
   `benchmarks/results/`, which is kept with the code. A benchmark that was not run keeps its own.
2. The parts of the page between `<!-- figures: NAME -->` and `<!-- end -->` are made of the
   summary, and of nothing else: see `benchmarks.page`. The rest is prose without a figure in it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

from benchmarks.__main__ import NAMES
from benchmarks.document import ROOT, RUNS, Document, Row, read, run_file, write
from benchmarks.page import PARTS, Results
from benchmarks.targets import TARGETS, table

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
FIGURES = re.compile(r"(<!-- figures: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def collect() -> None:
    """
    Make the summary of the runs that are there.
    """
    for name in NAMES:
        run = read(run_file(name))
        if run is not None:
            rows = run["rows"] if name != "grid" else [slim(r) for r in run["rows"] if is_shown(r)]
            write(RESULTS / f"{name}.json", {**run, "rows": rows})
    grids = {folder.name: read(run_file("grid", folder.name)) for folder in RUNS.glob("3.*")}
    rows = of_pythons({python: grid for python, grid in grids.items() if grid is not None})
    if rows:
        write(RESULTS / "pythons.json", {"about": {}, "rows": rows})


def is_shown(row: Row) -> bool:
    """
    Whether a row of the grid is on the page.
    """
    if row["series"] == "by hand":
        return row["body"] == "one message" or row["layers"] in {0, 1, 5}
    if row["series"] == "jobs":
        return row["layers"] == 1
    return row["layers"] in {0, 1, 5} and row["body"] != "1,000 chunks"


def slim(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "us"}


def of_pythons(grids: Mapping[str, Document]) -> list[Row]:
    """
    Collect the figures that the targets bound, for each Python.
    """
    return [
        {
            "python": grids[python]["about"]["python"],
            "figure": target.says,
            "measured": round(measured, 3),
        }
        for python in sorted(grids)
        for target in TARGETS
        if target.benchmark == "grid"
        and (measured := target.measured({"grid": grids[python]})) is not None
    ]


def summary() -> dict[str, Document]:
    documents = {name: read(RESULTS / f"{name}.json") for name in (*NAMES, "pythons")}
    return {name: document for name, document in documents.items() if document is not None}


def page(text: str, results: Results) -> str:
    """
    Put the figures into the page.
    """

    def figures(match: re.Match[str]) -> str:
        needed, part = PARTS[match["name"]]
        return f"{match[1]}{part(results)}\n{match[3]}" if needed in results else match[0]

    return FIGURES.sub(figures, text)


def main() -> int:
    collect()
    results = summary()
    PAGE.write_text(page(PAGE.read_text(), results))
    print(table(results, TARGETS)[1])
    print(f"\n{PAGE.relative_to(ROOT)} is made of this.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
