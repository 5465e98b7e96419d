"""Networks of several inputs and outputs, of indices, of no images, and of images out: through every step, and what their bad data get."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.odd_networks import SAMPLES, case, example, sets, trained
from support.paths import TESTS
from support.runs import command
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import edgecompress
from edgecompress.artifacts.publish import Description, Evidence
from edgecompress.artifacts.publish import export_artifact as export_one
from edgecompress.data import Samples, fetch_samples, load_data
from edgecompress.errors import ConfigError, EdgeCompressError, UnsupportedError
from edgecompress.network import batches
from edgecompress.network.exported import to_program
from edgecompress.network.outputs import divergence, scores_of
from edgecompress.network.parity import measure_parity, top1_agreement
from edgecompress.network.reference import read_reference, write_reference
from edgecompress.network.surgery import forward
from edgecompress.quantization.calibration import read_calibration
from edgecompress.quantization.quantize import quant_spec
from edgecompress.recovery.finetune import FinetuneOptions
from edgecompress.targets import SCHEMES

NETWORKS = ("two", "tokens", "audio", "unet")
GIVEN = {
    "epochs": 1,
    "epoch_samples": 400,
    "verify_samples": 100,
    "sensitivity_samples": 64,
    "calibration_samples": 64,
    "repetitions": 3,
    "macs_ratio": 0.6,
    "min_int8_agreement": 0.9,  # of the smallest networks that learn anything
    "min_fidelity": 0.0,  # one epoch leaves little of a second output; what is tested here is that inputs come through
}
BOTH = ("fp32", "int8-static")
ALL = [
    pytest.param(name, form, BOTH, marks=pytest.mark.slow, id=f"{name}-{form}") for form in ("torchscript", "tflite") for name in NETWORKS
]


@pytest.mark.parametrize(("name", "format_name", "schemes"), [pytest.param("two", "torchscript", BOTH[1:], id="quick"), *ALL])
def test_the_whole_job_from_python(name, format_name, schemes, tmp_path, monkeypatch):
    gate = msgspec.structs.replace(SCHEMES["int8-static"].gate, min_sqnr_db=10.0)  # of a network so small 8 bits leave 17 dB of the number
    monkeypatch.setitem(SCHEMES, "int8-static", msgspec.structs.replace(SCHEMES["int8-static"], gate=gate))
    train, held_out = sets(name)
    given = GIVEN | {"format": (format_name,), "scheme": schemes}
    made = edgecompress.export(trained(name), example(name), name=name, run=tmp_path, train_data=train, eval_data=held_out, **given)
    compared = {("dense", "int8-static")}  # made to compare with, and refused where int8 alone costs the dense network too much
    published = {(a.model, a.quant.scheme) for a in made.artifacts}
    assert published - compared == {("dense", "fp32"), *(("compressed", scheme) for scheme in schemes)}
    calibration = load_file(tmp_path / "calibration.safetensors")
    assert {key: (len(x), x.dtype) for key, x in calibration.items()} == {f"input_{i}": (64, x.dtype) for i, x in enumerate(example(name))}
    for artifact in made.artifacts:
        assert len(artifact.inputs) == len(example(name))
        assert (artifact.top1 is None) == (name == "unet")
    path = tmp_path / "artifacts" / made.artifacts[-1].path
    assert edgecompress.verify(path).parity.max_rel <= max(1e-4, 2 * made.artifacts[-1].parity.max_rel)
    if name != "unet":
        (record,) = edgecompress.evaluate([path], data=held_out, samples=40)
        assert (record.samples, record.top1, record.problem) == (40, record.host_top1, "")


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("torchscript", "int64"),
        pytest.param("onnx", "int64", marks=pytest.mark.slow),
        pytest.param("executorch", "int64", marks=pytest.mark.slow),
        pytest.param("tflite", "int32", marks=pytest.mark.slow),
    ],
)
def test_indices_reach_an_artifact_as_they_are(tmp_path, form, dtype):
    inputs = tuple(x[SAMPLES : SAMPLES + 30] for x in case("tokens").inputs)
    made = export_one(
        trained("tokens"),
        example("tokens"),
        folder=tmp_path,
        about=Description(name="tokens", variant="dense"),
        format=form,
        quant=quant_spec("fp32", 0),
        limits=SCHEMES["fp32"].gate,
        evidence=Evidence(inputs=inputs),
    )
    assert [(x.shape, x.dtype) for x in made.inputs] == [((1, 12), dtype)]
    (measured,) = edgecompress.bench([tmp_path / made.path], repetitions=2)
    assert len(measured.latency_ms) == 2


@pytest.mark.slow
def test_the_whole_job_from_a_recipe_and_an_archive(tmp_path):
    recipe = written(tmp_path, "two")
    said = command(
        "export", recipe, "--data", "two.npz", "--run", "r", "--format", "torchscript", "--scheme", "fp32", "--epochs", "1", cwd=tmp_path
    )
    assert said.code == 0, said.err
    assert (tmp_path / "r" / "artifacts" / "two-fp32.ptl").is_file()


def test_steps_take_a_recipe_of_two_inputs_with_an_archive_of_four_arrays(tmp_path):
    said = command(
        "quantize",
        written(tmp_path, "two"),
        "--data",
        "two.npz",
        "--run",
        "r",
        "--scheme",
        "int8-static",
        "--calibration-samples",
        "20",
        cwd=tmp_path,
    )
    assert said.code == 0, said.err
    kept = load_file(tmp_path / "r" / "calibration.safetensors")
    assert {key: tuple(x.shape) for key, x in kept.items()} == {"input_0": (20, 1, 8, 8), "input_1": (20, 4)}


def written(folder: Path, name: str) -> Path:
    """A recipe without data, and its data as an archive."""
    made = case(name)
    (folder / "networks.py").write_text((TESTS / "support").joinpath("odd_networks.py").read_text())
    save_file(trained(name).state_dict(), folder / "weights.safetensors")
    shapes = [tuple(x.shape) for x in example(name)]
    (folder / f"{name}.py").write_text(
        "from pathlib import Path\n\nimport torch\nfrom safetensors.torch import load_file\n\n"
        f"from .networks import {made.network.__name__} as Network\n\n\n"
        "def model():\n    net = Network()\n    net.load_state_dict(load_file(Path(__file__).with_name('weights.safetensors')))\n"
        "    return net\n\n\n"
        f"def example_inputs():\n    return tuple(torch.zeros(*shape) for shape in {shapes})\n"
    )
    arrays = {f"x_{split}_{i}": x[part].numpy() for split, part in PARTS.items() for i, x in enumerate(made.inputs)}
    np.savez(folder / f"{name}.npz", **arrays, **{f"y_{split}": made.labels[part].numpy() for split, part in PARTS.items()})
    return folder / f"{name}.py"


PARTS = {"train": slice(SAMPLES), "test": slice(SAMPLES, None)}


RATIOS = {"two": 0.5, "tokens": 0.2, "audio": 0.3, "unet": 0.5}  # at which each loses something


@pytest.mark.parametrize("name", NETWORKS)
def test_fine_tuning_comes_nearer_to_the_dense_network(name):
    net, (train, held_out) = trained(name), sets(name)
    stats = edgecompress.analyze(net, example(name), measure=False)
    seen = tuple(x[:64] for x in case(name).inputs)
    plan = edgecompress.plan(net, stats, macs_ratio=RATIOS[name], inputs=seen, rank_multiple=2)
    assert plan.macs <= RATIOS[name] * stats.macs
    compact, _ = edgecompress.decompose(net, plan)
    tuned, result = edgecompress.finetune(
        compact, train, teacher=net, eval_data=held_out, options=FinetuneOptions(epochs=2, samples=SAMPLES, optimizer="adamw")
    )
    assert (result.top1 is None) == (name == "unet")
    x, _ = fetch_samples(held_out, labelled=False)
    wanted = forward(net, x)
    assert divergence(forward(tuned, x), wanted) < 0.8 * divergence(forward(compact.eval(), x), wanted)


# Several outputs


def test_a_wide_output_does_not_hide_the_errors_of_a_small_one():
    large, small = 1000 * torch.eye(4)[:, None], torch.linspace(0, 1, 4)[:, None]
    parity = measure_parity((large, small + 0.1), (large, small))
    assert parity.max_rel == pytest.approx(0.1)
    assert parity.sqnr_db == pytest.approx(10 * np.log10(float(small.square().sum()) / 0.04), abs=1e-4)


def test_agreement_is_of_the_scores_that_agree_least_and_accuracy_of_the_only_ones():
    a, b, number = torch.eye(4), torch.eye(4)[[1, 0, 2, 3]], torch.ones(4, 1)
    assert top1_agreement((a, a, number), (a, b, number)) == 0.5
    assert top1_agreement((number,), (number,)) is None
    assert scores_of((a, number)) is a
    assert scores_of((a, b)) is None


def test_the_loss_is_the_sum_over_the_outputs():
    a, b = torch.randn(5, 3), torch.tensor([-1.0, 1.0]).repeat(5, 2, 1)
    whole = divergence((a + 1e-1 * a**2, b * 1.1), (a, b))
    assert whole == divergence((a + 1e-1 * a**2,), (a,)) + divergence((b * 1.1,), (b,))
    assert divergence((b * 1.1,), (b,)) == pytest.approx(0.01, rel=1e-4)


class Gives(nn.Module):
    def __init__(self, given):
        super().__init__()
        self.given = given

    def forward(self, x):
        return self.given(x)


def test_outputs_stand_in_the_order_that_an_exported_program_has():
    model = Gives(lambda x: {"b": x + 1, "a": (x + 2, [x + 3])}).eval()
    x = torch.zeros(1, 2)
    eager = forward(model, (x,))
    assert [float(y[0, 0]) for y in eager] == [1, 2, 3]
    assert [torch.equal(y, z) for y, z in zip(eager, to_program(model, (x,)).module()(x), strict=True)] == [True] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [(lambda x: (x, None), "output 1 is None and not a tensor"), (lambda x: x.sum(), r"output 0 has shape \(\) for 3")],
)
def test_outputs_that_are_no_batch_of_tensors_are_refused(given, message):
    with pytest.raises(UnsupportedError, match=message):
        forward(Gives(given), (torch.zeros(3, 2),))


def test_the_reference_keeps_each_input_and_output(tmp_path):
    inputs = tuple(x[:10] for x in case("two").inputs)
    write_reference(tmp_path, inputs, {"dense": trained("two")})
    x, y = read_reference(tmp_path, "dense")
    assert [torch.equal(a, b) for a, b in zip(x + y, inputs + forward(trained("two"), inputs), strict=True)] == [True] * 4
    with pytest.raises(ConfigError, match="no outputs of the compressed model; export again"):
        read_reference(tmp_path, "compressed")


# Data


class Fixed(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


A, B = torch.ones(2), torch.zeros(3)
TWO = (A[None], B[None])


@pytest.mark.parametrize("item", [((A, B), 1), [[A, B], 1], ((A, B),), ([A, B],)], ids=str)
def test_items_of_two_inputs(item):
    (a, b), labels = fetch_samples(Fixed(item, item), example=TWO)
    assert (a.shape, b.shape) == ((2, 2), (2, 3))
    assert (labels is None) == (len(item) == 1)


def with_value(inputs, sample, value):
    spoilt = inputs.clone()
    spoilt[sample] = value
    return spoilt


INDICES = (torch.zeros(1, 12, dtype=torch.int64),)
BAD = {
    "two inputs without a label": (Fixed((A, B)), TWO, r"sample 0: 1 inputs, the model takes 2; yield .*\(\(input_0, input_1\),\)"),
    "two inputs beside their label": (TensorDataset(A[None], B[None], torch.ones(1)), TWO, r"yields 3 values a sample; yield"),
    "one input too many": (Fixed(((A, B), 1)), (A[None],), "sample 0: 2 inputs, the model takes 1"),
    "no inputs": (Fixed(((), 1)), TWO, "yields no inputs"),
    "second of another shape": (
        Fixed(((A, B), 1), ((A, A), 1)),
        TWO,
        r"sample 1: input 1: its shape is \(2,\), the model's input is \(3,\)",
    ),
    "NaN in the second": (Fixed(((A, B), 1), ((A, B * torch.nan), 1)), TWO, "input 1: 1 samples hold NaN or infinity, first 1"),
    "numbers for indices": (Fixed(torch.zeros(12)), INDICES, "is float32, the model takes int64"),
    "indices for numbers": (Fixed(torch.zeros(2, dtype=torch.int64)), (A[None],), "is int64, the model takes float32"),
}


@pytest.mark.parametrize("name", BAD)
def test_items_that_do_not_fit_are_refused(name):
    dataset, model, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        fetch_samples(dataset, example=model)


def test_inputs_of_differing_lengths_are_refused():
    with pytest.raises(ConfigError, match="3 and 4 samples; give every input the same number"):
        Samples((torch.zeros(4, 2), torch.zeros(3, 2)), None, source="s")


def test_the_first_sample_that_is_not_finite_is_named_as_the_set_has_it():
    with pytest.raises(ConfigError, match="1 samples hold NaN or infinity, first 7"):
        fetch_samples(Samples(with_value(torch.zeros(9, 2), 7, torch.inf), None, source="s"), [8, 7])


def archive(folder, **arrays):
    np.savez(folder / "x.npz", **arrays)
    return folder / "x.npz"


ZEROS = np.zeros((5, 2), np.float32)
ARCHIVES = {
    "one array missing": ({"x_train_0": ZEROS}, TWO, "no array x_train_1, it holds x_train_0"),
    "another name": ({"x": ZEROS}, TWO, "no array x_train_0 or inputs_0"),
    "differing lengths": ({"x_train_0": ZEROS, "x_train_1": np.zeros((4, 3), np.float32)}, TWO, "its inputs have 4 and 5 samples"),
    "a shape": ({"x_train_0": ZEROS, "x_train_1": ZEROS}, TWO, r"its shape is \(2,\), the model's input is \(3,\)"),
    "float indices": ({"x_train": np.zeros((5, 12))}, INDICES, "inputs are float64, the model takes int64; give integers"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_do_not_fit_are_refused(name, tmp_path):
    arrays, model, message = ARCHIVES[name]
    with pytest.raises(ConfigError, match=message):
        load_data(archive(tmp_path, **arrays), "train", preprocessing=None, example=model)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_indices_of_any_width_are_read(dtype, tmp_path):
    path = archive(tmp_path, inputs=np.arange(120, dtype=dtype).reshape(10, 12))
    (x,), labels = fetch_samples(load_data(path, "eval", preprocessing=None, example=INDICES), example=INDICES)
    assert (x.dtype, x[0, 0], labels) == (torch.int64, 4 * 12, None)


def test_images_in_files_are_no_input_of_several(tmp_path):
    (tmp_path / "images" / "ant").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"images alone, the model takes 2 inputs; give all of them in an \.npz"):
        load_data(tmp_path / "images", "train", preprocessing=None, example=TWO)


# What becomes of bad data in a run


def refusal(name, tmp_path, data):
    """Run the whole job on bad data; what is left is options and finished steps, no half of one."""
    with pytest.raises(EdgeCompressError) as caught:
        edgecompress.export(
            trained(name), example(name), name=name, run=tmp_path, train_data=data, format=("torchscript",), scheme=BOTH, **GIVEN
        )
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.ptl*"))
    return str(caught.value)


@pytest.mark.parametrize("index", [20, -1])
def test_an_index_beyond_its_embedding_names_the_embedding(index, tmp_path):
    bad = Samples(with_value(case("tokens").inputs[0][:64], 40, index), case("tokens").labels[:64], source="s")
    assert f"embed: index {index} in an embedding of 20 rows; give indices from 0 to 19" in refusal("tokens", tmp_path, bad)


def test_nan_in_one_input_of_two_names_sample_and_input(tmp_path):
    image, vector = (x[:64] for x in case("two").inputs)
    bad = Samples((image, with_value(vector, 40, torch.nan)), case("two").labels[:64], source="s")
    assert "s: input 1: 1 samples hold NaN or infinity, first 40; remove or mend them" in refusal("two", tmp_path, bad)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a, b: {"input_0": a}, "input_1 has no samples"),
        (lambda a, b: {"input_0": a[:0], "input_1": b[:0]}, "input_0 has no samples"),
        (lambda a, b: {"input_0": a, "input_1": b[:3]}, "its inputs have 5, 3 samples"),
        (lambda a, b: {"input_0": a, "input_1": b[:, :2].contiguous()}, r"input_1 has samples of shape \(2,\), the model takes \(4,\)"),
        (lambda a, b: {"input_0": a, "input_1": b.long()}, "input_1 is int64, the model takes float32"),
        (lambda a, b: {"input_0": a, "input_1": with_value(b, 3, torch.nan)}, "input_1 holds NaN or inf in 1 samples, first 3"),
    ],
)
def test_calibration_files_that_do_not_fit_are_refused(spoil, message, tmp_path):
    a, b = (x[:5] for x in case("two").inputs)
    save_file(spoil(a.contiguous(), b.contiguous()), tmp_path / "c.safetensors")
    with pytest.raises(ConfigError, match=message):
        read_calibration(str(tmp_path / "c.safetensors"), to_program(trained("two"), example("two")))


@pytest.mark.parametrize("inputs", [torch.zeros(4, 1, 8, 8), (torch.zeros(4, 2), torch.zeros(3, 2)), ()])
def test_what_is_no_batch_is_refused_and_never_taken_apart(inputs):
    net = trained("two")
    plan = edgecompress.plan(net, edgecompress.analyze(net, example("two"), measure=False), macs_ratio=0.6)
    with pytest.raises(ConfigError, match=r"tuple|same number"):
        edgecompress.decompose(net, plan, inputs=inputs)


def test_chunks_are_even_and_in_order():
    x = (torch.arange(130), torch.arange(130)[:, None])
    parts = list(batches.split_evenly(x))
    assert [len(a) for a, _ in parts] == [44, 44, 42]
    assert torch.equal(torch.cat([b for _, b in parts]), x[1])
