"""Take each architecture of tests/support/architectures.py the whole way: analyzed, planned at 0.7 of its MACs, decomposed, converted.

Each runs in a process of its own with a time limit, and its result is added to a file as one line of JSON (architectures.jsonl beside this
program by default). Architectures with a result are not run again. timm and torchvision must be installed. The exit status is 1 when an
architecture ends in anything but files that pass, a file that its scheme alone spoils, or a refusal.

    architectures.py                          all of them: an hour on two cores
    architectures.py --only levit --again     those whose name contains a text, also where they have a result
    architectures.py --no-files               up to the program that converters start from: seconds each
    architectures.py --format tflite          files in one format, where each architecture has one of three
    architectures.py --table                  write the table of docs/results/architectures.md, run nothing
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(Path(__file__).parent)]

from architecture_table import write_table  # noqa: E402
from support.architectures import ARCHITECTURES, ArchitectureResult, run_architecture  # noqa: E402

from edgecompress.records import from_json  # noqa: E402

RESULTS = Path(__file__).with_suffix(".jsonl")
PAGE = REPOSITORY / "docs" / "results" / "architectures.md"
FORMATS = ("tflite", "torchscript", "onnx")  # taken in turn
TIMEOUT_S = 900


def main() -> None:
    options = parse()
    if options.one:
        run_one(options.one, options.formats)
        return
    known = read(options.results)
    for i, source in enumerate(ARCHITECTURES):
        if options.table or options.only not in source or (source in known and not options.again):
            continue
        formats = () if options.no_files else (options.format or FORMATS[i % len(FORMATS)],)
        known[source] = run_apart(source, formats)
        with options.results.open("ab") as lines:
            lines.write(msgspec.json.encode(known[source]) + b"\n")
        print(describe(known[source]), flush=True)
    if options.table:
        write_table(PAGE, [known[source] for source in ARCHITECTURES if source in known], datetime.now(UTC).date())
    sys.exit(any(is_fault(result) for result in known.values()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="run architectures whose name contains this")
    parser.add_argument("--again", action="store_true", help="run those too that have a result")
    parser.add_argument("--no-files", action="store_true", help="convert nothing")
    parser.add_argument("--format", choices=FORMATS, help="convert to this format")
    parser.add_argument("--table", action="store_true", help=f"write the table of {PAGE.name} from the results, run nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--formats", nargs="*", default=(), help=argparse.SUPPRESS)
    return parser.parse_args()


def run_one(source: str, formats: Sequence[str]) -> None:
    """Print the result of one architecture; the program's own process for it runs this."""
    with tempfile.TemporaryDirectory() as folder:
        result = run_architecture(source, formats, Path(folder))
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")


def run_apart(source: str, formats: Sequence[str]) -> ArchitectureResult:
    """Run an architecture in a process of its own; what that ends in without a result is its crash."""
    argv = [sys.executable, __file__, "--one", source, "--formats", *formats]
    try:
        ended = subprocess.run(argv, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return ArchitectureResult(source=source, crash=f"took more than {TIMEOUT_S} s")
    if ended.returncode:
        lines = [line.strip() for line in ended.stderr.decode(errors="replace").splitlines() if line.strip()]
        place = next((line for line in reversed(lines) if line.startswith('File "') and "edgecompress/" in line), "")
        return ArchitectureResult(source=source, crash=f"{lines[-1] if lines else f'exit status {ended.returncode}'} {place}".strip())
    return from_json(ended.stdout.splitlines()[-1], ArchitectureResult, source=source)


def read(path: Path) -> dict[str, ArchitectureResult]:
    """Return the last result of each architecture."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return {result.source: result for result in (from_json(line, ArchitectureResult, source=str(path)) for line in lines)}


def is_fault(result: ArchitectureResult) -> bool:
    return bool(result.crash) or any(file.outcome in ("wrong", "broken") for file in result.files)


def describe(result: ArchitectureResult) -> str:
    if text := result.crash or result.refusal:
        return f"{result.source}: {'CRASH ' if result.crash else ''}{text}"
    files = ", ".join(f"{file.format} {file.scheme} {file.outcome} {file.reason}".rstrip() for file in result.files)
    return (
        f"{result.source}: ratio {result.macs_ratio:.2f}, {result.factorized} of {result.layers} layers, "
        f"int8 simulated {result.simulated_db:.1f} dB, {result.seconds}; {files}"
    )


if __name__ == "__main__":
    main()
