"""Cost tables: measured files equal those of the converter, tables store and return latencies, and bad tables are refused."""

from importlib.metadata import version

import msgspec
import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given
from hypothesis import strategies as st
from support.networks import Net, trained
from support.processes import busy
from torch import nn

from edgecompress import toolchains
from edgecompress.artifacts.converter_process import run_converter
from edgecompress.artifacts.inspect import inspect
from edgecompress.errors import ConfigError, DeviceError
from edgecompress.factorizations import factorize
from edgecompress.network.analyze import analyze
from edgecompress.network.exported import to_program, write_program
from edgecompress.planning.latency_tables import table as tables
from edgecompress.planning.latency_tables.layer_files import write_layers
from edgecompress.planning.latency_tables.layer_forms import layer_form
from edgecompress.planning.latency_tables.layer_fraction import solve_layer_fraction
from edgecompress.planning.latency_tables.measured_table import NetworkToMeasure, open_cost_table
from edgecompress.planning.latency_tables.measurement import SMALLEST_MODEL
from edgecompress.planning.latency_tables.table import LatencyQuery
from edgecompress.planning.profile import profile
from edgecompress.planning.reduced_network import form_pairs, reduce_network
from edgecompress.records import ConversionRequest, Cost, CostTable, LayerForm, from_json, to_json

IMAGE = (torch.zeros(1, 1, 8, 8),)
HERE = CostTable(device="board, arm64-v8a", runtime="ai-edge-litert 2.3.0", threads=1)
LAYERS = {
    "plain": (nn.Conv2d(8, 12, 3, padding=1), (8, 10, 14)),
    "strided": (nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), (8, 10, 14)),
    "strided-odd": (nn.Conv2d(8, 12, 3, stride=2, padding=1), (8, 9, 13)),
    "large": (nn.Conv2d(3, 8, 7, stride=2, padding=3), (3, 32, 32)),
    "unpadded": (nn.Conv2d(8, 12, 3), (8, 10, 14)),
    "dilated": (nn.Conv2d(8, 12, 3, padding=2, dilation=2), (8, 10, 14)),
    "pointwise": (nn.Conv2d(8, 12, 1), (8, 10, 14)),
    "depthwise": (nn.Conv2d(8, 16, 3, padding=1, groups=8), (8, 10, 14)),
    "linear": (nn.Linear(20, 12), (20,)),
    "sequence": (nn.Linear(20, 12), (5, 20)),
    "audio": (nn.Conv1d(4, 8, 3, padding=1), (4, 32)),
}
FORMS = {"plain": [("tucker2", (4, 4)), ("cp3", (6,)), ("spatial_svd", (4,))], "strided": [("tucker2", (4, 4)), ("cp3", (6,))]}
FORMS |= {"strided-odd": [("channel_svd", (4,))], "linear": [("svd", (4,))], "pointwise": [("svd", (4,))]}
CASES = [(name, "dense", ()) for name in LAYERS] + [(name, method, rank) for name, chosen in FORMS.items() for method, rank in chosen]


def stats_of(layer, shape):
    return analyze(nn.Sequential(layer), (torch.zeros(1, *shape),), measure=False).layers[0]


def form_of_layer(name, method="dense", rank=()):
    layer, shape = LAYERS[name]
    return layer_form(stats_of(layer, shape), layer, method, rank)


def run_tflite(path, x):
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (read,), (written,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.set_tensor(read["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(written["index"])


def to_nhwc(x):
    return x.movedim(1, -1).contiguous() if x.ndim == 4 else x


@pytest.fixture(scope="module")
def written_files(tmp_path_factory):
    """Return the files of all cases in all schemes, written by one start of the program."""
    folder = tmp_path_factory.mktemp("layers")
    files = {
        (case, scheme): folder / f"{i}-{scheme}.tflite"
        for i, case in enumerate(CASES)
        for scheme in ("fp32", "int8-static", "int8-dynamic")
    }
    write_layers([(form_of_layer(*case), scheme, path) for (case, scheme), path in files.items()])
    return files


@pytest.fixture(scope="module")
def converted_files(tmp_path_factory):
    """Return a function that converts a case with the same values by the converter of artifacts."""
    folder = tmp_path_factory.mktemp("converted")

    def by_converter(case):
        name, method, rank = case
        torch.manual_seed(0)
        layer, shape = LAYERS[name]
        layer = getattr(nn, type(layer).__name__)(**form_of_layer(name).arguments)
        module = layer
        if method != "dense":
            module = factorize(layer, method, rank, fit=False)
            for p in module.parameters():
                nn.init.normal_(p, std=0.1)
        path = folder / f"{name}-{method}.tflite"
        program = path.with_suffix(".pt2")
        network = nn.Sequential(module, nn.ReLU()).eval()
        write_program(to_program(network, (torch.zeros(1, *shape),)), program)
        run_converter("tflite", ConversionRequest(program=str(program), output=str(path), scheme="fp32", route="litert-torch"))
        return path, network

    return by_converter


CONVERTED = [("plain", "tucker2", (4, 4)), ("strided", "cp3", (6,)), ("strided-odd", "dense", ()), ("linear", "svd", (4,))]


@pytest.mark.parametrize("case", CONVERTED, ids=str)
def test_measured_files_have_the_same_ops_as_converted_ones(written_files, converted_files, case):
    path, network = converted_files(case)
    ours, theirs = inspect(written_files[case, "fp32"]), inspect(path)
    assert ours.ops == theirs.ops
    x = torch.rand(1, *LAYERS[case[0]][1])
    given_ = to_nhwc(x).numpy()
    with torch.no_grad():
        expected = to_nhwc(network(x)).numpy()
    for file in (written_files[case, "fp32"], path):
        np.testing.assert_allclose(run_tflite(file, given_), expected, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_files_of_each_scheme_have_its_data_types(written_files, case):
    static, dynamic = inspect(written_files[case, "int8-static"]), inspect(written_files[case, "int8-dynamic"])
    assert {t.dtype for t in (*static.inputs, *static.outputs)} == {"int8"}
    assert {t.dtype for t in (*dynamic.inputs, *dynamic.outputs)} == {"float32"}
    assert all(c.dtype in ("int8", "int32", "int64") for c in static.constants)
    assert any(c.dtype == "int8" for c in dynamic.constants) or case[0] in ("sequence", "audio")


def test_layers_of_one_shape_share_a_key_whatever_their_names_and_weights():
    a, b = (
        layer_form(stats_of(nn.Conv2d(8, 12, 3, padding=1), (8, 10, 14)), nn.Conv2d(8, 12, 3, padding=1), "svd", (4,)) for _ in range(2)
    )
    assert (a.geometry, a.form) == (b.geometry, b.form) == ("Conv2d 8→12 3×3 /1×1 @10×14", "svd 4")
    assert len({form_of_layer(name).geometry for name in LAYERS}) == len(LAYERS)
    assert from_json(to_json(a), LayerForm, source="here").geometry == a.geometry  # also after a round trip through JSON


# Tables


def make_cost(ms, macs=100):
    return Cost(ms=ms, spread=0.01, macs=macs, measured_at="2026-01-01T12:00:00+00:00")


def table_with_points(points, method="svd", layer="linear"):
    """Return a table with the costs of ranks, whose MACs equal the rank."""
    return tables.add_layers(HERE, {(form_of_layer(layer).geometry, f"{method} {r}", "fp32"): make_cost(ms, r) for r, ms in points.items()})


@given(st.dictionaries(st.integers(1, 50), st.floats(0.01, 10), min_size=2, max_size=8), st.integers(1, 60))
def test_latencies_are_interpolated_between_measured_ranks(points, rank):
    table = table_with_points(points)
    found = tables.estimate_ms(table, form_of_layer("linear", "svd", (rank,)), rank, "fp32")
    below, above = [r for r in points if r <= rank], [r for r in points if r >= rank]
    if rank in points:
        assert found == points[rank]
    elif below and above:
        ends = points[max(below)], points[min(above)]
        assert min(ends) - 1e-9 <= found <= max(ends) + 1e-9
    elif above:
        assert found == pytest.approx(points[min(above)] * rank / min(above))
    else:
        assert found == pytest.approx(points[max(below)] * rank / max(below))


def test_latencies_are_not_estimated_from_another_method_scheme_or_layer():
    table = table_with_points({4: 1.0, 8: 2.0})
    assert tables.estimate_ms(table, form_of_layer("linear", "svd", (6,)), 6, "int8-static") is None
    assert tables.estimate_ms(table, form_of_layer("linear", "tensor_train", (2, 2)), 6, "fp32") is None
    assert tables.estimate_ms(table, form_of_layer("pointwise", "svd", (6,)), 6, "fp32") is None


def test_entries_added_by_two_processes_are_both_kept(tmp_path):
    path = tmp_path / "costs" / "board.json"
    tables.save_table(table_with_points({4: 1.0}), path)
    tables.save_table(table_with_points({8: 2.0}, layer="pointwise"), path)
    tables.save_table(table_with_points({4: 3.0}), path)
    kept = tables.load_table(path)
    assert kept.layers[form_of_layer("linear").geometry]["svd 4"]["fp32"].ms == 3.0
    assert kept.layers[form_of_layer("pointwise").geometry]["svd 8"]["fp32"].ms == 2.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"device": "another board"}, "its device is another board, here it is board, arm64-v8a"),
        ({"runtime": "ai-edge-litert 1.0"}, "its runtime is ai-edge-litert 1.0, here it is ai-edge-litert 2.3.0"),
        ({"threads": 4}, "its number of threads is 4, here it is 1"),
        ({"cpu_mask": "f0"}, "its CPU mask is f0, here it is none"),
    ],
)
def test_a_table_of_other_conditions_is_refused(tmp_path, change, said):
    path = tmp_path / "board.json"
    path.write_bytes(to_json(msgspec.structs.replace(HERE, **change)))
    with pytest.raises(ConfigError, match=f"board.json: {said}; name another file"):
        tables.load_table(path, conditions=HERE)


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 1}', to_json(make_cost(1.0))])
def test_a_file_that_is_no_table_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "board.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"board\.json"):
        tables.load_table(path)


# Measuring


def network_of(net, tmp_path):
    stats = analyze(net, IMAGE, measure=False)

    def write(paths, scheme):
        for path, model in zip(paths, (net, reduce_network(net, stats)), strict=True):
            program = path.with_suffix(".pt2")
            write_program(to_program(model, IMAGE), program)
            run_converter("tflite", ConversionRequest(program=str(program), output=str(path), scheme=scheme))

    return NetworkToMeasure("net", "0" * 64, 1000, form_pairs(net, stats), write)


def test_a_profile_measures_each_form_once_and_all_that_plans_need(tmp_path):
    net = trained(Net(), epochs=1)
    stats = analyze(net, IMAGE, measure=False)
    path = tmp_path / "costs.json"
    source = open_cost_table(device="local://", table=path, threads=1, noisy=True)
    found = profile(net, stats, source, network_of(net, tmp_path), schemes=("fp32",), rank_multiple=4)
    assert {layer.split()[0] for layer in found.layers} == {"Conv2d", "Linear"}
    assert all({"fp32"} == set(costs) and costs["fp32"].ms > 0 for forms in found.layers.values() for costs in forms.values())
    assert all("dense" in forms and len(forms) > 1 for forms in found.layers.values())
    whole = found.networks["0" * 64]["fp32"]
    assert whole.ms > 0
    assert 0.2 < whole.layers_ms / whole.ms < 5.0
    again = open_cost_table(device="local://", table=path, threads=1)
    assert profile(net, stats, again, network_of(net, tmp_path), schemes=("fp32",), rank_multiple=4) == found
    fresh = open_cost_table(device="local://", table=path, threads=1, refresh=True, noisy=True)
    anew = profile(net, stats, fresh, network_of(net, tmp_path), schemes=("fp32",), rank_multiple=4)
    assert anew.layers.keys() == found.layers.keys()
    assert all(anew.layers[layer][name] != costs for layer, forms in found.layers.items() for name, costs in forms.items())
    alone = open_cost_table(device="", table=path, threads=1)
    wanted = LatencyQuery(layer_form(stats.layers[0], net.stem, "dense", ()), "fp32", stats.layers[0].macs)
    assert alone.latencies_of([wanted]) == [anew.layers[wanted.form.geometry]["dense"]["fp32"].ms]
    with pytest.raises(ConfigError, match="net as a whole was not measured in int8-static; run `edgecompress profile` with --device"):
        alone.network_cost(network_of(net, tmp_path), "int8-static")


def test_remeasuring_measures_each_form_once_more_and_only_once(tmp_path):
    layer = nn.Conv2d(8, 16, 3, padding=1)
    stats = analyze(nn.Sequential(layer), (torch.zeros(1, 8, 12, 12),), measure=False).layers[0]
    dense, chosen = (
        LatencyQuery(layer_form(stats, layer, *form), "fp32", macs) for form, macs in ((("dense", ()), 2), (("tucker2", (4, 4)), 1))
    )
    path = tmp_path / "costs.json"
    source = open_cost_table(device="local://", table=path, threads=1, noisy=True)
    source.latencies_of([dense, chosen])
    once = tables.find_cost(tables.load_table(path), chosen)
    assert not open_cost_table(device="", table=path, threads=1).remeasure([chosen])
    assert source.remeasure([chosen])
    assert not source.remeasure([chosen])
    twice = tables.find_cost(tables.load_table(path), chosen)
    assert (once.again, twice.again) == (False, True)
    assert twice.ms == pytest.approx(once.ms, rel=0.9)
    assert not tables.find_cost(tables.load_table(path), dense).again


@given(st.floats(0.0, 0.5), st.floats(0.8, 1.2), st.floats(0.3, 0.6))
def test_the_layer_fraction_is_solved_from_two_networks(rest, slope, kept):
    before = (1 - rest) / slope
    share = solve_layer_fraction(before, kept * before, rest + slope * kept * before)
    assert share == pytest.approx(1 - rest, abs=0.16)  # as near as the prior, layers taking as long as alone, permits
    assert solve_layer_fraction(1 - rest, kept * (1 - rest), rest + kept * (1 - rest)) == pytest.approx(1 - rest)


def test_if_the_reduced_network_is_dense_layers_count_as_measured_alone():
    assert solve_layer_fraction(0.9, 0.9, 1.0) == pytest.approx(0.9, abs=0.01)
    assert solve_layer_fraction(1.3, 1.3, 1.0) == 1.0


def test_the_reduced_network_consists_of_the_forms_in_form_pairs():
    net = trained(Net(), epochs=1)
    stats = analyze(net, IMAGE, measure=False)
    small = reduce_network(net, stats)
    assert torch.isfinite(small(*IMAGE)).all()
    replaced = 0
    for layer, (dense, form, calls) in zip(stats.layers, form_pairs(net, stats), strict=True):
        assert (dense.method, dense.geometry, calls) == ("dense", form.geometry, 1.0)
        params = sum(p.numel() for p in small.get_submodule(layer.name).parameters())
        if form.method == "dense":
            assert params == layer.params
        else:
            replaced += 1
            alike = factorize(net.get_submodule(layer.name), form.method, form.rank)
            assert params == sum(p.numel() for p in alike.parameters()) < layer.params
    assert replaced


def test_the_runtime_of_a_device_is_found_without_starting_a_converter(tmp_path, monkeypatch):
    monkeypatch.setattr(toolchains, "layer_writer", lambda: pytest.fail("a converter was started"))
    path = tmp_path / "costs.json"
    source = open_cost_table(device="local://", table=path, threads=1)
    assert source.table.runtime == f"ai-edge-litert {version('ai-edge-litert')}"
    tables.save_table(msgspec.structs.replace(source.table, runtime="ai-edge-litert 1.0"), path)
    with pytest.raises(ConfigError, match=r"costs\.json: its runtime is ai-edge-litert 1\.0, here it is ai-edge-litert"):
        open_cost_table(device="local://", table=path, threads=1)


def test_the_stored_smallest_model_equals_the_one_that_is_written(tmp_path):
    smallest = LayerForm(kind="Linear", arguments={"in_features": 4, "out_features": 4, "bias": True}, input_shape=(4,))
    write_layers([(smallest, "fp32", tmp_path / "a.tflite")])
    assert (tmp_path / "a.tflite").read_bytes() == SMALLEST_MODEL.read_bytes()


def test_a_table_of_other_threads_is_refused_without_a_device_too(tmp_path):
    path = tmp_path / "costs.json"
    tables.save_table(HERE, path)
    with pytest.raises(ConfigError, match=r"its threads are 1, here they are 2; give --threads 1"):
        open_cost_table(device="", table=path, threads=2)


def test_a_busy_machine_is_refused(tmp_path):
    path = tmp_path / "costs.json"
    source = open_cost_table(device="local://", table=path, threads=1)
    with (
        busy(),
        pytest.raises(DeviceError, match=r"processors.* in each of 3 runs; a table measured now would be wrong"),
    ):
        source.measure_missing([LatencyQuery(form_of_layer("linear"), "fp32", 240)])
    assert not path.exists() or not tables.load_table(path).layers
