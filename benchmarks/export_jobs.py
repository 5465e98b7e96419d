"""One export of ResNet-20 to fp32 TFLite in a fresh process, `export_jobs.py JOB FOLDER`; prints the seconds a user waits for it.

`bare` is litert-torch called by hand: importing it and converting. `convert` and `export` are a step of a run, where torch and the model
are there already: the file alone, and the file proved on the evaluation images and published with its manifest.
"""

import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
SAMPLES = 500


def bare(folder: Path) -> float:
    import litert_torch
    import torch
    from safetensors.torch import load_file

    from edgecompress import programs

    sys.path.insert(0, str(programs.example()))
    from network import ResNet20

    model = ResNet20()
    model.load_state_dict(load_file(programs.example() / "weights.safetensors"))
    litert_torch.convert(model.eval(), (torch.zeros(1, 1, 28, 28),)).export(str(folder / "bare.tflite"))
    return time.perf_counter() - STARTED


def convert(folder: Path) -> float:
    from edgecompress.conversion import convert
    from edgecompress.program import to_program, write_program
    from edgecompress.records import ConversionRequest

    recipe = loaded()
    model = recipe.model().eval()
    started = time.perf_counter()
    write_program(to_program(model, recipe.example_inputs), folder / "program.pt2")
    request = ConversionRequest(program=str(folder / "program.pt2"), output=str(folder / "convert.tflite"), scheme="fp32")
    convert("tflite", request)
    return time.perf_counter() - started


def export(folder: Path) -> float:
    from edgecompress.data import fetch
    from edgecompress.models import forward
    from edgecompress.records import QuantSpec
    from edgecompress.targets import SCHEMES
    from edgecompress.verbs.export import Evidence, export

    recipe = loaded()
    model = recipe.model().eval()
    inputs, labels = fetch(recipe.eval_data(), SAMPLES)
    reference = forward(model, inputs)  # a run has it from the step before
    started = time.perf_counter()
    export(
        model,
        recipe.example_inputs,
        folder=folder,
        name="export",
        variant="dense",
        format="tflite",
        quant=QuantSpec(scheme="fp32"),
        limits=SCHEMES["fp32"],
        evidence=Evidence(inputs=inputs, labels=labels),
        reference=reference,
    )
    return time.perf_counter() - started


def loaded() -> Any:
    from edgecompress import programs
    from edgecompress.recipe import load

    return load(str(programs.example()))


if __name__ == "__main__":
    print(f"\n{ {'bare': bare, 'convert': convert, 'export': export}[sys.argv[1]](Path(sys.argv[2])) }")
