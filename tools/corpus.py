"""
Run real `call_next` middleware side by side: before and after.

    python tools/corpus.py FOLDER [--drop-in] [--rewrite] [--only ID ...] [--json FILE]

FOLDER holds Python files and an `index.json`: a list of objects with `id`, `file` (its path in
the folder), `qualname` and `line` of the function or `dispatch` method, and `sample`.

`--drop-in` compares Starlette's class with `httpmw.compat.BaseHTTPMiddleware`, `--rewrite` the
original under Starlette with what `httpmw migrate` makes of it; without either, both.
The exit status is 1 where a pair differs in a way that is not a listed improvement.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from httpmw.migrate import convert
from httpmw.migrate._model import Conversion, Converted
from httpmw.migrate.verifying._verify import Verdict, verify

Row = dict[str, Any]


def main() -> int:
    """
    Run the rows that were asked for, and print what came of them.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("folder", type=Path)
    parser.add_argument("--drop-in", action="store_true")
    parser.add_argument("--rewrite", action="store_true")
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = json.loads((options.folder / "index.json").read_text("utf-8"))
    rows = [row for row in rows if not options.only or row["id"] in options.only]
    both = options.drop_in == options.rewrite
    results: dict[str, list[Row]] = {}
    for name, run in {"drop-in": drop_in, "rewrite": rewrite}.items():
        if both or getattr(options, name.replace("-", "_")):
            results[name] = [_told(row, run(row, options.folder)) for row in rows]
            _print_figures(name, results[name])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), "utf-8")
    return int(any(row["differing"] for rows in results.values() for row in rows))


def drop_in(row: Row, folder: Path) -> Row:
    """
    Run the function on Starlette's class and on the drop-in.
    """
    source = (folder / row["file"]).read_text("utf-8")
    target = Converted("", row["qualname"], row["line"], "")
    (verdict,) = verify(source, source, [target], styles=("starlette", "drop-in"))
    return {"state": "run", **_fields(verdict)}


def rewrite(row: Row, folder: Path) -> Row:
    """
    Convert the file, and run the function before and afterwards.
    """
    source = (folder / row["file"]).read_text("utf-8")
    conversion = convert(source, path=row["file"])
    converted = [each for each in conversion.conversions if _is_the_row(each, row)]
    if not converted:
        return {"state": "diagnosed", "codes": _codes(conversion, row), **_fields(Verdict("", 0))}
    compile(conversion.code, row["file"], "exec", dont_inherit=True)
    (verdict,) = verify(source, conversion.code, converted[:1])
    return {"state": "converted", "codes": _codes(conversion, row), **_fields(verdict)}


def _is_the_row(each: Converted, row: Row) -> bool:
    # The line of a definition may be that of its first decorator.
    return each.qualname == row["qualname"] and abs(each.line - row["line"]) <= 5


def _codes(conversion: Conversion, row: Row) -> list[str]:
    last = row["qualname"].split(".")[-1]
    about = {row["qualname"], row["qualname"].removesuffix(f".{last}")}
    return sorted({each.code for each in conversion.diagnostics if each.function in about})


def _fields(verdict: Verdict) -> Row:
    return {
        "pairs": verdict.pairs,
        "identical": verdict.identical,
        "improvements": verdict.improvements,
        "differing": verdict.differing,
        "differences": [str(each) for each in verdict.differences],
        "problem": verdict.problem,
    }


def _told(row: Row, result: Row) -> Row:
    if result["state"] == "diagnosed" or result["problem"] or result["differing"]:
        print(f"{row['id']} {row['qualname']}: {result['state']} {result.get('codes', '')}", end="")
        print(f" {result['identical']} of {result['pairs']} identical; {result['problem']}")
        for each in result["differences"][:3]:
            print(f"    {each[:400]}")
        sys.stdout.flush()
    return {"id": row["id"], "sample": row.get("sample", ""), **result}


def _print_figures(name: str, results: list[Row]) -> None:
    samples = {"all": results}
    for row in results:
        samples.setdefault(row["sample"], []).append(row)
    for sample, rows in samples.items():
        states = Counter(row["state"] for row in rows)
        improvements: Counter[str] = Counter()
        for row in rows:
            improvements.update(row["improvements"])
        print(f"{name}, {sample}: {len(rows)} functions, {dict(states)}")
        print(f"    not run: {sum(bool(row['problem']) for row in rows)}")
        print(f"    with differences: {sum(bool(row['differing']) for row in rows)}")
        sums = {key: sum(row[key] for row in rows) for key in ("pairs", "identical", "differing")}
        print(f"    pairs: {sums}; improvements: {dict(improvements)}")


if __name__ == "__main__":
    sys.exit(main())
