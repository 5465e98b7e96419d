"""Run the conversion matrix: each network, under each factorization, in each format and scheme.

Every cell is converted, run in its own runtime and judged by the gate. Each result is added to a file as one line of JSON
(conversion_matrix.jsonl beside this program by default). Cells with a result are not run again, so the program may be ended at any time;
dense networks come first. The exit status is 1 when a cell neither passes nor is refused with a reason.

    conversion_matrix.py                                   all of it: hours
    conversion_matrix.py --method dense --format onnx      a part
    conversion_matrix.py --quick                           a part in which each network, factorization and output occurs
    conversion_matrix.py --table                           write the table of docs/results/conversion_matrix.md, run nothing
"""

import argparse
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(Path(__file__).parent)]

from conversion_table import write_table  # noqa: E402
from support.conversion_matrix import OUTPUTS, VARIANTS, Cell, Matrix, Result, every, parts, quick  # noqa: E402
from support.matrix_networks import NETWORKS  # noqa: E402

from edgecompress.records import from_json  # noqa: E402

RESULTS = Path(__file__).with_suffix(".jsonl")
PAGE = REPOSITORY / "docs" / "results" / "conversion_matrix.md"


def main() -> None:
    options = parse()
    known = {result.cell: result for path in options.results if path.exists() for result in read(path)}
    if not options.table:
        kept = options.results[0]
        cells = [cell for cell in (quick() if options.quick else every()) if is_chosen(cell, options) and cell not in known]
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder, kept.open("ab") as lines:

            def keep(result: Result) -> None:
                known[result.cell] = result
                lines.write(msgspec.json.encode(result) + b"\n")
                lines.flush()
                print(describe(result), flush=True)

            matrix = Matrix(Path(folder))
            for part in parts(cells):
                matrix.run(part, keep)
    if options.table:
        write_table(PAGE, list(known.values()), datetime.now(UTC).date())
    sys.exit(any(result.outcome in ("wrong", "broken") for result in known.values()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, values in (
        ("network", NETWORKS),
        ("method", VARIANTS),
        ("format", {output.format for output in OUTPUTS}),
        ("route", {output.route for output in OUTPUTS if output.route}),
        ("scheme", {output.scheme for output in OUTPUTS}),
    ):
        parser.add_argument(f"--{name}", action="append", choices=sorted(values), help=f"run only this {name}; repeatable")
    parser.add_argument("--quick", action="store_true", help="run a part in which each network, factorization and output occurs")
    parser.add_argument("--table", action="store_true", help=f"write the table of {PAGE.name} from the results, run nothing")
    parser.add_argument("--results", type=Path, nargs="+", default=[RESULTS], help="files of results; new ones are added to the first")
    return parser.parse_args()


def is_chosen(cell: Cell, options: argparse.Namespace) -> bool:
    asked = {"network": cell.network, "method": cell.method, **cell.output._asdict()}
    return all(getattr(options, name) is None or value in getattr(options, name) for name, value in asked.items())


def read(path: Path) -> list[Result]:
    return [from_json(line, Result, source=str(path)) for line in path.read_bytes().splitlines()]


def describe(result: Result) -> str:
    named = " ".join(filter(None, result.cell[:2] + result.cell.output))
    return f"{named}: {result.outcome}{f', {result.reason}' if result.reason else ''} ({result.seconds:.1f} s)"


if __name__ == "__main__":
    main()
