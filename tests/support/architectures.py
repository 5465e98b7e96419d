"""Architectures of timm and torchvision that people put on phones, by name, with random weights and small inputs.

Each is taken the whole way without training: analyzed, planned at 0.7 of its MACs, decomposed, exported as a program, and converted in fp32
and int8. It is asked whether every step takes the network and whether files compute what the network computes. How much a network of
random weights loses says nothing, so no bound on fidelity applies.
"""

import importlib
import importlib.util
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _BatchNorm

from edgecompress.artifacts.gate import Divergence
from edgecompress.artifacts.publish import Description, Evidence, export_artifact
from edgecompress.data.recipe import load_recipe
from edgecompress.errors import EdgeCompressError, ToolchainError, UnsupportedError
from edgecompress.factorizations.decompose import decompose
from edgecompress.network.analyze import analyze
from edgecompress.network.attention import unfuse_attention
from edgecompress.network.batches import Batch
from edgecompress.network.checks import as_error, find_all
from edgecompress.network.exported import to_program
from edgecompress.network.parity import worst_sqnr_db
from edgecompress.network.probe import Probe
from edgecompress.network.surgery import forward
from edgecompress.options import Options, gate_of
from edgecompress.planning.plan import plan
from edgecompress.quantization.quantize import quant_spec
from edgecompress.quantization.simulation import Simulation
from edgecompress.records import Record
from edgecompress.targets import FLOAT32

TIMM: Final = (
    "mobilenetv1_100@1x3x96x96", "mobilenetv2_050@1x3x96x96", "mobilenetv3_small_050@1x3x96x96", "mobilenetv3_large_075@1x3x96x96",
    "mobilenetv4_conv_small_050@1x3x96x96", "mobilenetv4_hybrid_medium_075@1x3x96x96", "efficientformer_l1@1x3x224x224",
    "efficientformerv2_s0@1x3x128x128", "swiftformer_xs@1x3x128x128", "ghostnetv2_100@1x3x96x96", "mobileone_s0@1x3x96x96",
    "repvit_m0_9@1x3x96x96", "fastvit_t8@1x3x128x128", "edgenext_xx_small@1x3x96x96", "mobilevit_xxs@1x3x128x128",
    "mobilevitv2_050@1x3x128x128", "convnext_atto@1x3x96x96", "convnextv2_atto@1x3x96x96", "tiny_vit_5m_224@1x3x224x224",
    "levit_128s@1x3x224x224", "deit_tiny_patch16_224@1x3x96x96", "poolformer_s12@1x3x96x96", "pvt_v2_b0@1x3x96x96",
    "xcit_nano_12_p16_224@1x3x96x96", "efficientvit_b0@1x3x128x128", "efficientvit_m0@1x3x224x224", "shvit_s1@1x3x128x128",
)  # fmt: skip
TORCHVISION: Final = (
    "shufflenet_v2_x0_5@1x3x96x96", "lraspp_mobilenet_v3_large@1x3x96x96", "deeplabv3_mobilenet_v3_large@1x3x96x96",
)  # fmt: skip
ARCHITECTURES: Final = (*(f"timm:{name}" for name in TIMM), *(f"torchvision:{name}" for name in TORCHVISION))

SCHEMES: Final = (FLOAT32, "int8-static")
MACS_RATIO: Final = 0.7
SAMPLES: Final = 8  # calibrate, and show what a file computes
# Close calls of a thousand classes that a network of random weights cannot tell apart show nothing; noise of the simulated scheme does.
OPTIONS: Final = Options(min_int8_agreement=1e-9)


class FileResult(Record, frozen=True, kw_only=True):
    """What became of a file.

    Attributes:
        outcome: "passed" the gate; "unsupported" by the format; "scheme": refused, and the scheme simulated in PyTorch loses as much;
            "wrong": refused, and the converter is at fault; "broken": the toolchain failed.
        max_rel: Largest difference from the network, over the output range.
    """

    format: str
    scheme: str
    outcome: Literal["passed", "unsupported", "scheme", "wrong", "broken"]
    seconds: float
    reason: str = ""
    max_rel: float | None = None
    sqnr_db: float | None = None


class ArchitectureResult(Record, frozen=True, kw_only=True):
    """What became of an architecture.

    Attributes:
        refusal: Why it was refused before any file was made, as a command says it; "" where it was not.
        crash: What it ended in that is neither a result nor a refusal; "" where it did not.
        macs_ratio: After over before.
        factorized: Number of its layers that are.
        irreplaceable: Number of its layers that the network needs as they are.
        seconds: Of each step.
        simulated_db: SQNR of int8-static simulated in PyTorch, of the decomposed network.
    """

    source: str
    refusal: str = ""
    crash: str = ""
    params: int = 0
    macs: int = 0
    macs_ratio: float = 1.0
    layers: int = 0
    factorized: int = 0
    irreplaceable: int = 0
    seconds: dict[str, float] = {}
    simulated_db: float | None = None
    files: tuple[FileResult, ...] = ()


class Compressed(NamedTuple):
    """A decomposed network with what its files are made from and held to."""

    name: str
    network: nn.Module
    program: ExportedProgram
    example: Batch
    samples: Batch
    reference: Batch


def run_architecture(source: str, formats: Sequence[str] = (), folder: Path = Path()) -> ArchitectureResult:
    """Take an architecture the whole way, to files in `folder`; what is refused is in the result, and any other error is raised."""
    seconds: dict[str, float] = {}
    try:
        with stopwatch(seconds, "load"):
            model, example, samples = load_network(source)
        with stopwatch(seconds, "analyze"):
            stats = analyze(model, example, name=source, measure=False)
        with stopwatch(seconds, "plan"):
            made = plan(model, stats, macs_ratio=MACS_RATIO)
        with stopwatch(seconds, "decompose"):
            network = decompose(model, made)[0].eval()
        with stopwatch(seconds, "program"):
            program = to_program(network, example, name=source)
    except EdgeCompressError as error:
        return ArchitectureResult(source=source, refusal=f"{type(error).__name__}: {error}", seconds=seconds)
    found = Compressed(source.partition(":")[2].partition("@")[0], network, program, example, samples, forward(network, samples))
    with stopwatch(seconds, "simulate"):
        simulated = Simulation(program, quant_spec("int8-static", SAMPLES), samples, format="tflite").run(samples)
    return ArchitectureResult(
        source=source,
        params=stats.params,
        macs=stats.macs,
        macs_ratio=made.macs / max(1, made.macs_before),
        layers=len(stats.layers),
        factorized=len(made.layers),
        irreplaceable=sum(bool(layer.irreplaceable) for layer in stats.layers),
        seconds=seconds,
        simulated_db=worst_sqnr_db(simulated, found.reference),
        files=tuple(make_file(found, form, scheme, folder) for form in formats for scheme in SCHEMES),
    )


@cache
def import_torchvision() -> torch.library.Library | None:
    """Import torchvision also where its library, which is built for CUDA, cannot be loaded by a torch without CUDA.

    Two of its ops must then be declared beforehand. The networks listed here call none of them, detectors do.
    """
    found = importlib.util.find_spec("torchvision")
    folder = Path(next(iter(found.submodule_search_locations or ()))) if found else Path()
    library = None
    try:
        torch.ops.load_library(folder / "_C.so")
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its readers of images, which are of that library too
        importlib.import_module("torchvision")
    return library


def load_network(source: str) -> tuple[nn.Module, Batch, Batch]:
    """Return a network in eval mode, its example inputs and a few samples, once the probe has found no fault with it.

    Weights that start as zeros or ones, as those of norms and layer scales do, are drawn, since they hide what a wrong layer computes.
    BatchNorm has the statistics of the samples, without which feature maps shrink or grow with each layer.
    """
    import_torchvision()
    recipe = load_recipe(source)
    network = recipe.model().eval()
    probe = Probe(network, recipe.example_inputs, export=lambda: to_program(network, recipe.example_inputs, name=recipe.name))
    for finding in find_all(probe, recipe.name).errors:
        raise as_error(finding, recipe.name)
    generator = torch.Generator().manual_seed(0)
    samples = tuple(torch.randn((SAMPLES, *x.shape[1:]), generator=generator) for x in recipe.example_inputs)
    with torch.no_grad():
        for weight in network.parameters():
            if float(weight.max() - weight.min()) == 0:
                low, high = (-0.1, 0.1) if float(weight.max()) == 0 else (0.5, 1.5)
                weight.copy_(torch.rand(weight.shape, generator=generator) * (high - low) + low)
        for norm in [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        network(*samples)
    return unfuse_attention(network.eval()), recipe.example_inputs, samples


def make_file(made: Compressed, form: str, scheme: str, folder: Path) -> FileResult:
    """Convert a network, and compare the file with it."""
    spent: dict[str, float] = {}
    outcome, reason, parity = "passed", "", None
    try:
        with stopwatch(spent, "file"):
            parity = export_artifact(
                made.network,
                made.example,
                folder=folder,
                about=Description(name=made.name, variant="compressed"),
                format=form,
                quant=quant_spec(scheme, SAMPLES),
                limits=gate_of(scheme, OPTIONS),
                evidence=Evidence(inputs=made.samples),
                program=made.program,
                reference=made.reference,
                calibration=None if scheme == FLOAT32 else made.samples,
            ).parity
    except Divergence as error:
        outcome, reason = "scheme" if "so the scheme hurts" in str(error) else "wrong", str(error)
    except UnsupportedError as error:
        outcome, reason = "unsupported", str(error)
    except ToolchainError as error:
        outcome, reason = "broken", str(error)
    numbers = {} if parity is None else {"max_rel": parity.max_rel, "sqnr_db": parity.sqnr_db}
    return FileResult(format=form, scheme=scheme, outcome=outcome, seconds=spent["file"], reason=reason, **numbers)


@contextmanager
def stopwatch(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = round(time.perf_counter() - started, 2)
