"""Where artifacts go. A target is a preset that stands here whole: what is exported, how ranks are rounded, where it is measured."""

from typing import Final, NamedTuple

import msgspec


class Scheme(msgspec.Struct, frozen=True, kw_only=True):
    """A quantization scheme and its gate.

    Attributes:
        calibrated: Needs calibration data.
        per_channel: Convolution weights have one scale an output channel.
        max_rel: Largest allowed difference over the output range; None when agreement decides.
        min_agreement: Smallest allowed top-1 agreement with the eager model; None when `max_rel` decides.
        min_sqnr_db: What decides in place of agreement for each output that is no vector of scores.
    """

    calibrated: bool = False
    per_channel: bool = False
    max_rel: float | None = None
    min_agreement: float | None = None
    min_sqnr_db: float = 20.0


class Format(NamedTuple):
    """A file format: how its files' names end, and the schemes that `converters/to_FORMAT.py` can write, in order of preference."""

    suffix: str
    schemes: tuple[str, ...]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A preset.

    Attributes:
        outputs: (format, scheme) in order of preference; others are exported by name only.
        rank_multiple: Keeps channels where kernels are fast.
    """

    outputs: tuple[tuple[str, str], ...]
    rank_multiple: int
    device: str
    threads: int = 1


# The gate of every scheme. A float file is held to its numbers, since only the order of additions may differ; a quantized one to its
# answers, since its numbers differ by design: top-1 agreement of each output that is a vector of scores, SQNR of each other. Limits hold
# on the evaluation data, and with two standard errors of allowance on the first of the calibration data. Beyond them a quantized file
# fails that is mostly noise (below 10 dB) where its scheme, simulated in PyTorch, is not (`edgecompress.artifacts.gate`).
SCHEMES: Final = {
    # Networks of the tests lie at 3e-7; 1e-4 leaves room for depth and a fast kernel's other sums, and none for a wrong op.
    "fp32": Scheme(max_rel=1e-4),
    # 11 bits of mantissa: 65 to 70 dB, some 1e-3 of the range; sums in half precision may cost ten times that.
    "fp16": Scheme(max_rel=1e-2, min_agreement=0.99),
    # 8 bits leave 40 to 47 dB of a small network; what then changes is close calls, of which 2% may.
    "int8-dynamic": Scheme(per_channel=True, calibrated=True, min_agreement=0.98),
    "int8-static": Scheme(per_channel=True, calibrated=True, min_agreement=0.98),
    # int16 activations lose nothing that int8 weights have not lost already: 53 dB where int8-static has 41.
    "int16x8": Scheme(per_channel=True, calibrated=True, min_agreement=0.98, min_sqnr_db=30.0),
    # 4 bits leave 27 dB where 8 leave 47; who asks for the smallest file accepts some changed answers.
    "int4-weights": Scheme(per_channel=True, calibrated=True, min_agreement=0.95, min_sqnr_db=15.0),
}

FORMATS: Final = {
    "tflite": Format(".tflite", ("int8-static", "int8-dynamic", "int16x8", "int4-weights", "fp16", "fp32")),
    "torchscript": Format(".ptl", ("int8-static", "int8-dynamic", "fp32")),
    "onnx": Format(".onnx", ("int8-static", "int8-dynamic", "fp16", "fp32")),
    "executorch": Format(".pte", ("int8-static", "int8-dynamic", "fp32")),
}
SUFFIXES: Final = {known.suffix: name for name, known in FORMATS.items()}

TFLITE: Final = tuple(("tflite", scheme) for scheme in ("int8-static", "int8-dynamic", "fp16", "fp32"))
TORCHSCRIPT: Final = (("torchscript", "int8-static"), ("torchscript", "fp32"))

TARGETS: Final = {
    "android": Target(outputs=TFLITE + TORCHSCRIPT, rank_multiple=8, device="adb://SERIAL"),
    "raspberry-pi": Target(outputs=TFLITE, rank_multiple=8, device="ssh://pi@raspberrypi.local"),
}
TFLITE_TOOLCHAINS: Final = ("litert-torch", "onnx2tf")  # in order of preference
TFLITE_ROUTES: Final = ("auto", *TFLITE_TOOLCHAINS, "fastest")
LAYOUTS: Final = ("NHWC", "NCHW")
IO_TYPES: Final = ("float32", "int8")
ALLOCATORS: Final = ("latency", "minmax", "energy", "vbmf", "uniform")
OPTIMIZERS: Final = ("sgd", "adamw")
SAMPLERS: Final = ("tpe", "nsga2")
