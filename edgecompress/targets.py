"""Presets of what a run exports: targets, file formats, and the quantization schemes, each described by one record."""

from typing import Final, NamedTuple

import msgspec


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that an artifact's outputs must keep, compared with those of the PyTorch model.

    Attributes:
        max_rel: Largest difference as a fraction of the output range; None for no limit.
        min_agreement: Smallest top-1 agreement of an output that holds class scores; None for no limit.
        min_sqnr_db: Smallest SQNR of every other output, where `min_agreement` is given.
    """

    max_rel: float | None = None
    min_agreement: float | None = None
    min_sqnr_db: float = 20.0


class Scheme(msgspec.Struct, frozen=True, kw_only=True):
    """A quantization scheme: the number formats of weights and activations, and the gate of its artifacts.

    Attributes:
        name: How options, records and file names call the scheme.
        gate: Limits that every artifact of the scheme must keep.
        formats: File formats whose converters write the scheme.
        weight_bits: 32 and 16 are floating point, 8 and fewer are integers.
        activation_bits: 32 is floating point, fewer bits are integers.
        dynamic: Integer activations take their ranges while the artifact runs, rather than from calibration data.
        per_channel: Integer weights have one scale for each output channel, rather than one for the tensor.
        calibrated: Conversion reads calibration inputs, for ranges of activations or to compensate rounding errors of weights.
        device_tolerance: Largest difference between the outputs on two machines, as a fraction of their range; None where another measure
            decides, e.g. one quantization step.
    """

    name: str
    gate: Gate
    formats: tuple[str, ...]
    weight_bits: int = 32
    activation_bits: int = 32
    dynamic: bool = False
    per_channel: bool = False
    calibrated: bool = False
    device_tolerance: float | None = None

    @property
    def weight_bytes(self) -> float:
        """Bytes that one weight takes in a file."""
        return self.weight_bits / 8

    @property
    def has_integer_weights(self) -> bool:
        return self.weight_bits <= 8

    @property
    def has_static_activations(self) -> bool:
        """Whether activations are integers whose ranges come from calibration data."""
        return self.activation_bits < 32 and not self.dynamic

    @property
    def is_int8(self) -> bool:
        """Whether both weights and activations have 8 bits."""
        return self.weight_bits == self.activation_bits == 8

    @property
    def can_have_int8_io(self) -> bool:
        """Whether artifacts may take and give int8 instead of float32."""
        return self.is_int8 and self.has_static_activations


class Format(NamedTuple):
    """A file format and the suffix of its files' names; `converters/to_NAME.py` writes them."""

    name: str
    suffix: str

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes that the format's converter can write, in order of preference."""
        return tuple(scheme.name for scheme in SCHEMES.values() if self.name in scheme.formats)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A preset for a kind of device.

    Attributes:
        outputs: (format, scheme) pairs to export, in order of preference; all others are exported only when named.
        rank_multiple: Ranks are rounded to multiples of it, because kernels are fast at such numbers of channels.
        device: An example of a device URL of this kind.
        threads: Threads of measured runs.
    """

    outputs: tuple[tuple[str, str], ...]
    rank_multiple: int
    device: str
    threads: int = 1


FLOAT32: Final = "fp32"
FLOAT_TAIL: Final = "float_tail"  # the module around ops that stay float (`edgecompress.quantization.float_tail`), as records call it
INT8_STATIC: Final = "int8-static"  # the one scheme in which layers may stay in float by choice, and whose weights can be trained

# All schemes, the preferred ones first. A float file is held to its numbers, since only the order of additions may differ; a quantized one
# to its answers, since its numbers differ by design: top-1 agreement of each output that holds class scores, SQNR of every other. A gate
# holds on the evaluation data, and with two standard errors of allowance on the first of the calibration data. A quantized file fails as
# well when it is mostly noise (below 10 dB) and its scheme, simulated in PyTorch, is not (`edgecompress.artifacts.gate`).
SCHEMES: Final = {
    scheme.name: scheme
    for scheme in (
        # 8 bits leave 40 to 47 dB of a small network; only close calls change, and 2% of the answers may.
        Scheme(
            name=INT8_STATIC,
            gate=Gate(min_agreement=0.98),
            formats=("tflite", "torchscript", "onnx", "executorch"),
            weight_bits=8,
            activation_bits=8,
            per_channel=True,
            calibrated=True,
        ),
        Scheme(
            name="int8-dynamic",
            gate=Gate(min_agreement=0.98),
            formats=("tflite", "torchscript", "onnx", "executorch"),
            weight_bits=8,
            activation_bits=8,
            dynamic=True,
            per_channel=True,
            calibrated=True,
        ),
        # int16 activations lose nothing that int8 weights have not lost already: 53 dB remain where int8-static leaves 41.
        Scheme(
            name="int16x8",
            gate=Gate(min_agreement=0.98, min_sqnr_db=30.0),
            formats=("tflite",),
            weight_bits=8,
            activation_bits=16,
            per_channel=True,
            calibrated=True,
        ),
        # 4 bits leave 27 dB where 8 leave 47; who asks for the smallest file accepts some changed answers.
        Scheme(
            name="int4-weights",
            gate=Gate(min_agreement=0.95, min_sqnr_db=15.0),
            formats=("tflite",),
            weight_bits=4,
            per_channel=True,
            calibrated=True,
        ),
        # A mantissa of 11 bits leaves 65 to 70 dB, some 1e-3 of the range; sums in half precision may cost ten times that, and some
        # processors compute fp16 files in fp16.
        Scheme(
            name="fp16",
            gate=Gate(max_rel=1e-2, min_agreement=0.99),
            formats=("tflite", "onnx"),
            weight_bits=16,
            device_tolerance=1e-3,
        ),
        # Networks of the tests lie at 3e-7; 1e-4 leaves room for depth and a fast kernel's other sums, and none for a wrong op.
        Scheme(
            name=FLOAT32,
            gate=Gate(max_rel=1e-4),
            formats=("tflite", "torchscript", "onnx", "executorch"),
            device_tolerance=1e-5,
        ),
    )
}

FORMATS: Final = {
    form.name: form
    for form in (
        Format("tflite", ".tflite"),
        Format("torchscript", ".ptl"),
        Format("onnx", ".onnx"),
        Format("executorch", ".pte"),
    )
}
SUFFIXES: Final = {form.suffix: name for name, form in FORMATS.items()}

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
