"""Defects planted into real files are caught for every kind of output, in each format, as float32 and int8; undamaged files pass."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec import structs
from support.converter_session import ConverterSessions
from support.many_outputs import DECLARED, KINDS, clear_inputs, draw_scenes, trained_network, with_stale_statistics
from torch import Tensor

from edgecompress.artifacts import gate, publish
from edgecompress.artifacts.execution import run_artifact
from edgecompress.artifacts.format_session import FormatSession
from edgecompress.artifacts.gate import Divergence, gate_failure
from edgecompress.artifacts.judge import Judge
from edgecompress.artifacts.publish import Description, Evidence, export_artifact
from edgecompress.devices.manifests import manifest_path
from edgecompress.errors import ParityError
from edgecompress.network.batches import Batch, output_names
from edgecompress.network.exported import to_program
from edgecompress.network.output_kinds import class_axis
from edgecompress.network.output_reading import read_specs
from edgecompress.network.parity import measure_parity
from edgecompress.network.surgery import forward
from edgecompress.quantization.quantize import quant_spec
from edgecompress.records import Artifact, OutputSpec, read_record
from edgecompress.targets import FORMATS as FILE_FORMATS
from edgecompress.targets import SCHEMES

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning"),
]
FORMATS = ("tflite", "onnx", "executorch", "torchscript")
SCHEME_NAMES = ("fp32", "int8-static", "int8-dynamic")


def list_files(*quick: str) -> list[Any]:
    """Return each format with each scheme; those of TFLite with one of the schemes `quick` are among the quick tests."""
    return [
        pytest.param(form, scheme, marks=() if form == "tflite" and scheme in quick else pytest.mark.slow, id=f"{form}-{scheme}")
        for form in FORMATS
        for scheme in SCHEME_NAMES
    ]


FILES = list_files("int8-static")
CALIBRATED = 64


class File(NamedTuple):
    """A published file of the undamaged network, and its outputs on the evidence."""

    artifact: Artifact
    outputs: Batch


class Exports:
    """Real files of the network with outputs of every kind; each is converted when a test first asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = trained_network()
        self.example = (clear_inputs()[:1],)
        self.evidence = Evidence(inputs=(clear_inputs(),))
        self.dense = forward(self.model, self.evidence.inputs)
        program = to_program(self.model, self.example)
        self.specs = read_specs(program, names=output_names(self.model, self.example), declared=DECLARED)
        self.judge = Judge(self.specs, self.dense)
        self.files: dict[tuple[str, str], File] = {}

    def export(self, form: str, scheme: str, **changed: Any) -> Artifact:
        quantized = SCHEMES[scheme]
        calibration = (draw_scenes(CALIBRATED, 4)[0],) if quantized.calibrated else None
        return export_artifact(
            self.model,
            self.example,
            folder=self.folder,
            format=form,
            quant=quant_spec(scheme, CALIBRATED if calibration else 0, {}),
            limits=quantized.gate,
            evidence=self.evidence,
            judge=self.judge,
            calibration=calibration,
            **({"about": Description(name="sound", variant="compressed")} | changed),
        )

    def __getitem__(self, key: tuple[str, str]) -> File:
        if key not in self.files:
            artifact = self.export(*key)
            outputs, _ = run_artifact(self.folder / artifact.path, artifact.inputs, artifact.outputs, self.evidence.inputs)
            self.files[key] = File(artifact, outputs)
        return self.files[key]

    def is_caught_by_gate(self, scheme: str, outputs: Batch) -> bool:
        """Whether conversion's check refuses a file of the scheme with such outputs."""
        try:
            parity = measure_parity(outputs, self.dense, self.specs)
        except ParityError:
            return True
        return gate_failure(parity, SCHEMES[scheme].gate) != ""

    def refused_outputs(self, outputs: Batch) -> set[str]:
        """Return the names of the outputs of which the judge says that too little is kept."""
        found = self.judge.judge(outputs)
        told = self.judge.describe_shortfall(found)
        return {spec.name for spec in self.specs if f"{spec.name} ({spec.kind})" in told}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, converter_sessions: ConverterSessions) -> Iterator[Exports]:
    folder, scratch = tmp_path_factory.mktemp("exports"), tmp_path_factory.mktemp("conversions")
    count = 0

    class Session(FormatSession):
        """The same converters, in processes that stay."""

        def start(self, route: str) -> None:
            pass

        def convert(self, request: Any, **_: object) -> Any:
            nonlocal count
            count += 1
            output = scratch / f"{count}.file"
            reply = converter_sessions.convert(self.format, structs.replace(request, output=str(output)))
            Path(request.output).write_bytes(output.read_bytes())
            return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "FormatSession", Session)
        patch.setattr(gate, "find_first_departure", lambda *_, **__: None)  # the place of a defect takes a conversion a layer
        yield Exports(folder)


def zero_channel(output: Tensor, spec: OutputSpec) -> Tensor:
    """Zero the channel, or the row of integers, that matters most."""
    damaged = output.clone()
    axis = class_axis(spec)
    if spec.kind in {"logits", "probabilities", "class_map"}:
        channel = int(output.argmax(axis).flatten().mode().values)
    else:
        channel = int(output.double().movedim(axis, 0).flatten(1).std(1).argmax())
    damaged.movedim(axis, 0)[channel] = 0
    return damaged


def permute_classes(output: Tensor, spec: OutputSpec) -> Tensor:
    """Give every channel, or every class of integers, the place of the next one."""
    return (output + 1) % 3 if spec.kind == "classes" else output.roll(1, class_axis(spec))


DAMAGES = {"zeroed-channel": zero_channel, "permuted-classes": permute_classes}


def test_the_network_has_outputs_of_every_kind_that_counts(exports: Exports) -> None:
    assert {spec.name: spec.kind for spec in exports.specs} == {f"{kind}_{which}": kind for kind in KINDS for which in "ab"}


@pytest.mark.parametrize(("form", "scheme"), FILES)
def test_an_undamaged_file_is_published_with_every_output_measured(exports: Exports, form: str, scheme: str) -> None:
    made, outputs = exports[form, scheme]
    assert (exports.folder / made.path).exists()
    assert made.fidelity is not None
    assert [each.name for each in made.fidelity.outputs] == [spec.name for spec in exports.specs]
    assert made.fidelity.holds
    assert not exports.is_caught_by_gate(scheme, outputs)
    assert exports.refused_outputs(outputs) == set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize(("form", "scheme"), FILES)
def test_a_damaged_output_is_caught_by_both_proofs(exports: Exports, form: str, scheme: str, how: str, kind: str) -> None:
    outputs = exports[form, scheme].outputs
    name = f"{kind}_a"
    damaged = tuple(DAMAGES[how](y, spec) if spec.name == name else y for y, spec in zip(outputs, exports.specs, strict=True))
    assert exports.is_caught_by_gate(scheme, damaged)
    assert exports.refused_outputs(damaged) == {name}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("form", "scheme"), FILES)
def test_swapped_outputs_are_caught_by_both_proofs(exports: Exports, form: str, scheme: str, kind: str) -> None:
    outputs = dict(zip((spec.name for spec in exports.specs), exports[form, scheme].outputs, strict=True))
    pair = {f"{kind}_a": f"{kind}_b", f"{kind}_b": f"{kind}_a"}
    swapped = tuple(outputs[pair.get(name, name)] for name in outputs)
    assert exports.is_caught_by_gate(scheme, swapped)
    assert exports.refused_outputs(swapped) == set(pair)


@pytest.mark.parametrize(("form", "scheme"), FILES)
def test_outputs_of_other_shapes_in_the_wrong_places_are_caught(exports: Exports, form: str, scheme: str) -> None:
    swapped = exports[form, scheme].outputs[::-1]
    assert exports.is_caught_by_gate(scheme, swapped)
    with pytest.raises(ParityError, match="the converter changed the layout"):
        exports.judge.judge(swapped)


@pytest.mark.parametrize(("form", "scheme"), list_files("int8-static"))
def test_a_file_with_stale_statistics_is_refused_by_both_proofs(exports: Exports, form: str, scheme: str) -> None:
    stale = with_stale_statistics(exports.model)
    about = Description(name="stale", variant="compressed")
    with pytest.raises(Divergence, match="departs from the model"):
        exports.export(form, scheme, program=to_program(stale, exports.example), about=about)
    kept = list(exports.folder.glob(f"stale-{scheme}.*.rejected"))
    manifest = next(read_record(manifest_path(path), Artifact) for path in kept if FILE_FORMATS[form].suffix in path.suffixes)
    assert manifest.fidelity is not None
    lost = {each.name for each in manifest.fidelity.outputs if each.kept < each.min_kept}
    assert lost == {spec.name for spec in exports.specs}
    assert not list(exports.folder.glob(f"stale-{scheme}{FILE_FORMATS[form].suffix}"))
