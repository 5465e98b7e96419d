"""The choice between TFLite's two toolchains keeps its rules."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from support.converter_models import Meaned

from edgecompress.artifacts.gate import Divergence
from edgecompress.artifacts.publish import ConversionOptions, Description, Evidence, export_artifact
from edgecompress.artifacts.routes import FIRST, SECOND, SECOND_IS_MISSING, export_by_route
from edgecompress.devices.bench import bench
from edgecompress.devices.manifests import manifest_path
from edgecompress.errors import EdgeCompressError, ParityError, ToolchainError, UnsupportedError
from edgecompress.files import hash_file
from edgecompress.records import Artifact, Departure, QuantSpec, read_record, to_json
from edgecompress.targets import SCHEMES

NAME = "net-fp32.tflite"


def publisher(asked: list[str], **errors: EdgeCompressError) -> Callable[[str, Path], Artifact]:
    """Return a function that publishes a file holding its route's name, or raises the error given for the route."""

    def make(route: str, folder: Path) -> Artifact:
        asked.append(route)
        if error := errors.get(route.replace("-", "_")):
            raise error
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NAME).write_text(route)
        nothing = dict.fromkeys(("name", "model", "format", "plan_sha256", "weights_sha256"), "")
        artifact = Artifact(
            path=NAME,
            route=route,
            sha256=hash_file(folder / NAME),
            size_bytes=len(route),
            quant=QuantSpec(scheme="fp32"),
            inputs=(),
            outputs=(),
            preprocessing=None,
            labels=(),
            toolchain={},
            **nothing,
        )
        manifest_path(folder / NAME).write_bytes(to_json(artifact))
        return artifact

    return make


def never(paths: Sequence[Path]) -> list[float]:
    raise AssertionError(f"measured {paths}")


def published(folder: Path) -> tuple[str, Artifact]:
    assert sorted(path.name for path in folder.iterdir()) == [NAME, f"{NAME}.json"]
    return (folder / NAME).read_text(), read_record(manifest_path(folder / NAME), Artifact)


@pytest.mark.parametrize("route", [FIRST, SECOND, ""])
def test_a_named_route_is_the_only_one_tried(tmp_path: Path, route: str) -> None:
    asked: list[str] = []
    made = export_by_route(route, publisher(asked), folder=tmp_path, medians=never, second=True)
    assert asked == [made.route] == [route]


def test_auto_takes_the_first_that_passes_and_tries_no_other(tmp_path: Path) -> None:
    asked: list[str] = []
    export_by_route("auto", publisher(asked), folder=tmp_path, medians=never, second=True)
    assert asked == [FIRST]
    assert published(tmp_path)[0] == FIRST


def test_auto_takes_the_second_where_the_first_fails_and_says_why(tmp_path: Path) -> None:
    make = publisher([], litert_torch=UnsupportedError("no aten.erfinv"))
    made = export_by_route("auto", make, folder=tmp_path, medians=never, second=True)
    content, manifest = published(tmp_path)
    assert (content, manifest) == (SECOND, made)
    assert manifest.route == SECOND
    assert manifest.notes == (f"route {SECOND}, because {FIRST} gave no file that passes: no aten.erfinv",)


def test_a_scheme_at_fault_is_not_tried_by_the_second_route(tmp_path: Path) -> None:
    asked: list[str] = []
    place = {"expected": 1.0, "found": 2.0, "index": (0,), "sample": 0, "max_rel": 1.0, "sqnr_db": 1.0}
    error = Divergence("the scheme hurts", Departure(layer="conv", op="conv2d", scheme_alone=True, **place))
    with pytest.raises(ParityError, match=r"^the scheme hurts$"):
        export_by_route("auto", publisher(asked, litert_torch=error), folder=tmp_path, medians=never, second=True)
    assert asked == [FIRST]


@pytest.mark.parametrize("asked", ["auto", "fastest"])
def test_the_error_has_both_reasons_where_no_route_passes(tmp_path: Path, asked: str) -> None:
    make = publisher([], litert_torch=ToolchainError("one crashed"), onnx2tf=ParityError("two departs"))
    with pytest.raises(ToolchainError, match="one crashed; onnx2tf as well: two departs"):
        export_by_route(asked, make, folder=tmp_path, medians=never, second=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("tflite: a: litert-torch has no x; replace that op or take route onnx2tf; its log is a.log",
         "tflite: onnx2tf failed: y; take route litert-torch; its log is b.log",
         "tflite: a: litert-torch has no x; onnx2tf as well: tflite: onnx2tf failed: y; replace that op; its log is a.log"),
        ("tflite: litert-torch failed: x; take route onnx2tf", "tflite: onnx2tf has no y; replace that op or take route litert-torch",
         "tflite: litert-torch failed: x; onnx2tf as well: tflite: onnx2tf has no y; replace that op"),
        ("tflite: litert-torch failed: x; take route onnx2tf", "tflite: onnx2tf failed: y; take route litert-torch",
         "tflite: litert-torch failed: x; onnx2tf as well: tflite: onnx2tf failed: y"),
        ("tflite: the same; do that", "tflite: the same; do that", "tflite: the same; do that"),
    ],
)  # fmt: skip
def test_where_both_routes_fail_neither_is_the_remedy(tmp_path: Path, first: str, second: str, message: str) -> None:
    make = publisher([], litert_torch=UnsupportedError(first), onnx2tf=ToolchainError(second))
    with pytest.raises(UnsupportedError) as caught:
        export_by_route("auto", make, folder=tmp_path, medians=never, second=True)
    assert str(caught.value) == message


@pytest.mark.parametrize(("times", "best"), [({FIRST: 2.0, SECOND: 3.0}, FIRST), ({FIRST: 3.0, SECOND: 2.0}, SECOND)])
def test_the_faster_of_two_that_pass_is_published(tmp_path: Path, times: dict[str, float], best: str) -> None:
    def medians(paths: Sequence[Path]) -> list[float]:
        return [times[path.read_text()] for path in paths]

    export_by_route("fastest", publisher([]), folder=tmp_path, medians=medians, second=True)
    content, manifest = published(tmp_path)
    assert content == manifest.route == best
    assert f"route {best}: 2 ms" in manifest.notes[0]


def test_the_only_file_that_passes_is_published_without_measurement(tmp_path: Path) -> None:
    make = publisher([], litert_torch=ParityError("it departs"))
    export_by_route("fastest", make, folder=tmp_path, medians=never, second=True)
    content, manifest = published(tmp_path)
    assert content == SECOND
    assert manifest.notes == (f"route {SECOND}, because the other gave no file that passes: it departs",)


def test_a_note_says_that_the_second_toolchain_is_not_installed(tmp_path: Path) -> None:
    asked: list[str] = []
    made = export_by_route("fastest", publisher(asked), folder=tmp_path, medians=never, second=False)
    assert asked == [FIRST]
    assert made.notes == (SECOND_IS_MISSING,)


@pytest.mark.slow
def test_both_toolchains_race_and_the_faster_file_passes_the_gate(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 12, 16)
    make = partial(
        export_artifact,
        Meaned().eval(),
        (x[:1],),
        about=Description(name="net", variant="compressed"),
        format="tflite",
        quant=QuantSpec(scheme="fp32"),
        limits=SCHEMES["fp32"].gate,
        evidence=Evidence(inputs=(x,)),
    )

    def medians(paths: Sequence[Path]) -> list[float]:
        return [float(torch.tensor(result.latency_ms).median()) for result in bench(paths, repetitions=20)]

    made = export_by_route(
        "fastest", lambda route, folder: make(options=ConversionOptions(route=route), folder=folder), folder=tmp_path, medians=medians
    )
    assert made.parity is not None
    assert made.parity.max_rel < 1e-4
    assert hash_file(tmp_path / NAME) == made.sha256
    assert "interleaved on this machine" in made.notes[-1]
    assert "transpose" not in {op.lower() for op in made.ops}
