"""Steps of whole runs, each in a process of its own: `export_runs.py prepare|export|plan FOLDER`.

The run of `prepare` and `export` has a convolutional network of 400,000 parameters with generated kernels, whose output is a vector of
values, and eight files of three formats. `prepare` leaves the run before its last step, and beside it `NUMBER-FORMAT.request` for each
file: what a converter program reads. `plan` plans a network of 22 million parameters.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edgecompress.data.recipe import Recipe
    from edgecompress.pipeline.context import RunContext

FORMATS: Final = ("tflite", "torchscript", "executorch")
SCHEMES: Final = ("int8-static", "fp16")  # fp16 is TFLite's alone
SAMPLES: Final = 500
OPTIONS: Final[dict[str, Any]] = {
    "format": FORMATS,
    "scheme": SCHEMES,
    "macs_ratio": 0.6,
    "epochs": 0,
    "calibration_samples": 64,
    "verify_samples": SAMPLES,
    "min_fidelity": 0.0,
}
CHANNELS: Final = ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 96, 1), (96, 32, 1))
SIDE: Final = 64
PLANNED_SAMPLES: Final = 64


def small_recipe() -> "Recipe":
    """Return the recipe of the network of 400,000 parameters."""
    import torch
    from kernels import trained_like
    from torch import nn

    from edgecompress.data import Samples
    from edgecompress.data.recipe import recipe_from_model

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, o, stride in CHANNELS:
        layers += [nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS[-1][1], 16))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_(trained_like(*layer.weight.shape) * (2 / layer.weight[0].numel()) ** 0.5)
    drawn = torch.Generator().manual_seed(0)
    scales, means = torch.rand(SAMPLES, 3, 1, 1, generator=drawn) + 0.1, torch.randn(SAMPLES, 3, 1, 1, generator=drawn)
    inputs = torch.randn(SAMPLES, 3, SIDE, SIDE, generator=drawn) * scales + means  # outputs that hardly differ would be noise in int8
    data = Samples(inputs, None, source="random numbers")
    return recipe_from_model(model.eval(), (torch.zeros(1, 3, SIDE, SIDE),), name="small", eval_data=data, outputs="values")


def large_recipe() -> "Recipe":
    """Return the recipe of ResNet-34 (K. He et al. 2016, table 1) with generated kernels and 64 calibration inputs."""
    import torch
    from networks import resnet34

    from edgecompress.data import Samples
    from edgecompress.data.recipe import recipe_from_model

    inputs = torch.randn(PLANNED_SAMPLES, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    data = Samples(inputs, None, source="random numbers")
    return recipe_from_model(resnet34(), (torch.zeros(1, 3, 224, 224),), name="large", calibration_data=data)


@contextmanager
def open_context(folder: Path, recipe: "Recipe", options: dict[str, Any]) -> "Iterator[RunContext]":
    from edgecompress.options import Options, update_options
    from edgecompress.pipeline import context
    from edgecompress.runs import open_run, use_options

    with open_run(folder, name=recipe.name, recipe=recipe.source) as run, use_options(run, update_options(Options(), options)):
        yield context.open_context(run, recipe)


def prepare(folder: Path) -> None:
    """Carry out all steps but the last, and write the request of each file."""
    import msgspec

    from edgecompress.network.exported import to_program, write_program
    from edgecompress.pipeline.make_artifacts import list_jobs
    from edgecompress.pipeline.networks import load_compressed
    from edgecompress.pipeline.runner import run
    from edgecompress.records import ConversionRequest

    with open_context(folder / "run", small_recipe(), OPTIONS) as context:
        run(context, "quantize")
        for variant, model in (("dense", context.dense), ("compressed", load_compressed(context))):
            write_program(to_program(model, context.recipe.example_inputs), folder / f"{variant}.pt2")
        for i, (variant, form, scheme) in enumerate(list_jobs(context)):
            calibration = folder / "run" / "calibration.safetensors" if scheme == "int8-static" else ""
            request = ConversionRequest(
                program=str(folder / f"{variant}.pt2"), output=str(folder / f"{i}.file"), scheme=scheme, calibration=str(calibration)
            )
            (folder / f"{i}-{form}.request").write_bytes(msgspec.json.encode(request))


def export(folder: Path) -> None:
    """Carry out the last step: convert, prove and publish all files."""
    from edgecompress.pipeline.runner import run

    with open_context(folder / "run", small_recipe(), OPTIONS) as context:
        made = run(context, "export")
        assert not made.refused, made.refused  # type: ignore[attr-defined]


def plan(folder: Path) -> None:
    from edgecompress.pipeline.runner import run

    with open_context(folder / "run", large_recipe(), {"sensitivity_samples": PLANNED_SAMPLES, "macs_ratio": 0.5}) as context:
        run(context, "plan")


if __name__ == "__main__":
    {"prepare": prepare, "export": export, "plan": plan}[sys.argv[1]](Path(sys.argv[2]))
