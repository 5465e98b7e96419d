"""Export ResNet-20 to fp32 TFLite once and print the seconds since the start of the process: `export_jobs.py JOB FOLDER`.

The job `bare` calls litert-torch by hand. `convert` writes the file only; `export` also reads evaluation images, proves the file on them
and publishes it with its manifest.
"""

import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
SAMPLES = 500


def bare(folder: Path) -> None:
    import litert_torch
    import torch
    from safetensors.torch import load_file

    from edgecompress import toolchains

    sys.path.insert(0, str(toolchains.example()))
    from network import ResNet20

    model = ResNet20()
    model.load_state_dict(load_file(toolchains.example() / "weights.safetensors"))
    litert_torch.convert(model.eval(), (torch.zeros(1, 1, 28, 28),)).export(str(folder / "bare.tflite"))


def convert(folder: Path) -> None:
    from edgecompress.artifacts.converter_process import start_converter
    from edgecompress.records import ConversionRequest

    with start_converter("tflite", ahead="litert-torch") as convert:
        from edgecompress.network.exported import to_program, write_program

        recipe = load_recipe()
        write_program(to_program(recipe.model().eval(), recipe.example_inputs), folder / "program.pt2")
        convert(ConversionRequest(program=str(folder / "program.pt2"), output=str(folder / "convert.tflite"), scheme="fp32"))


def export(folder: Path) -> None:
    from edgecompress.artifacts.publish import Description, Evidence, export_artifact
    from edgecompress.data import fetch_samples
    from edgecompress.records import QuantSpec
    from edgecompress.targets import SCHEMES

    recipe = load_recipe()
    inputs, labels = fetch_samples(recipe.eval_data(), SAMPLES)
    export_artifact(
        recipe.model().eval(),
        recipe.example_inputs,
        folder=folder,
        about=Description(name="export", variant="dense"),
        format="tflite",
        quant=QuantSpec(scheme="fp32"),
        limits=SCHEMES["fp32"].gate,
        evidence=Evidence(inputs=inputs, labels=labels),
    )


def load_recipe() -> Any:
    from edgecompress import toolchains
    from edgecompress.data.recipe import load_recipe

    return load_recipe(str(toolchains.example()))


if __name__ == "__main__":
    {"bare": bare, "convert": convert, "export": export}[sys.argv[1]](Path(sys.argv[2]))
    print(f"\n{time.perf_counter() - STARTED}")
