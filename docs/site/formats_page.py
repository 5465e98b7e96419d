"""The page of files: what a run folder, a search and a latency table hold, and the formats and schemes of artifacts."""

from typing import Final, NamedTuple

from record_docs import modules, records_of, summary
from records_page import escape

from edgecompress.pipeline.steps import STEPS
from edgecompress.targets import FORMATS, SCHEMES, Scheme

HEAD = """# Files

Every JSON file is one [record](records.md). A file whose `schema` is not the one of this edgecompress is refused with a line that names the
step to run again.

This page is written from the code by `docs/site/generate.py`.
"""


class File(NamedTuple):
    """A file pattern, the record that it holds, and the command that writes it."""

    pattern: str
    record: str
    command: str


RUN_FILES: Final = (
    File("run.json", "RunRecord", "every command"),
    *(File(step.files[0], step.record.__name__, step.name) for step in STEPS.values()),
    File("artifacts/FILE.json", "Artifact", "export"),
    File("results/DEVICE/*.json", "BenchmarkResult", "bench"),
    File("results/DEVICE/accuracy/*.json", "Evaluation", "evaluate"),
    File("report.json", "Report", "report"),
)
OTHER_FILES: Final = (
    File("searches/NAME/search.json", "SearchResult", "search"),
    File("a latency table", "CostTable", "profile"),
)
TENSOR_FILES: Final = {
    "decomposed.safetensors": "the weights after `decompose`",
    "weights.safetensors": "the weights after `finetune`",
    "qat.safetensors": "the weights after `qat`, on the integer grid",
    "calibration.safetensors": "the calibration inputs, `input_0`, `input_1`, …",
    "artifacts/reference.safetensors": (
        "some inputs with the outputs of the dense and the compressed model, by which `verify` and `evaluate` prove a file anywhere"
    ),
}


def render() -> str:
    """Return the page.

    Raises:
        ValueError: A step writes tensors that this page does not describe.
    """
    written = {file for step in STEPS.values() for file in step.files[1:]}
    if missing := written - TENSOR_FILES.keys():
        raise ValueError(f"{', '.join(sorted(missing))}: not in TENSOR_FILES; describe the file")
    tensors = "\n".join(f"| `{name}` | {text} |" for name, text in TENSOR_FILES.items())
    return "\n".join(
        [
            HEAD,
            "## A run folder\n",
            table(RUN_FILES),
            "\nWith several stages, those before the last lie under `stages/1/`, `stages/2/` and so on, with files of the same names.\n",
            f"| tensors | content |\n|---|---|\n{tensors}\n",
            "`report.html` is the report for people; `artifacts/logs/` holds the logs of the converters; `….rejected` is a file that "
            "failed the gate, with its manifest.\n",
            "## Other files\n",
            table(OTHER_FILES),
            "\n## Formats of artifacts\n",
            "| format | suffix | schemes, in order of preference |\n|---|---|---|",
            *(f"| `{name}` | `{known.suffix}` | {', '.join(known.schemes)} |" for name, known in FORMATS.items()),
            "\n## Schemes and their gates\n",
            "A file is published when its outputs keep these limits, compared with those of the PyTorch model.\n",
            "| scheme | bits of weights | bits of activations | calibrated | largest difference over the range | top-1 agreement | "
            "SQNR of other outputs |",
            "|---|---|---|---|---|---|---|",
            *(scheme_row(scheme) for scheme in SCHEMES.values()),
            "",
        ]
    )


def table(files: tuple[File, ...]) -> str:
    """Return the files as Markdown, each with the first sentence about its record."""
    known = {record.__name__: record for module in modules() for record in records_of(module)}
    lines = ["| file | record | written by | content |", "|---|---|---|---|"]
    for file in files:
        text = escape(summary(known[file.record])).partition("\n\n")[0]
        pattern = f"`{file.pattern}`" if " " not in file.pattern else file.pattern
        command = f"`{file.command}`" if " " not in file.command else file.command
        link = f"[{file.record}](records.md#{file.record.lower()})"
        lines.append(f"| {pattern} | {link} | {command} | {text} |")
    return "\n".join(lines)


def scheme_row(scheme: Scheme) -> str:
    gate = scheme.gate
    cells = (
        scheme.name,
        bits(scheme.weight_bits),
        bits(scheme.activation_bits) + (", dynamic" if scheme.dynamic else ""),
        "yes" if scheme.calibrated else "no",
        "–" if gate.max_rel is None else f"≤ {gate.max_rel:g}",
        "–" if gate.min_agreement is None else f"≥ {gate.min_agreement:.0%}",
        "–" if gate.min_agreement is None else f"≥ {gate.min_sqnr_db:g} dB",
    )
    return f"| {' | '.join(cells)} |"


def bits(number: int) -> str:
    return "32 (float)" if number == 32 else str(number)
