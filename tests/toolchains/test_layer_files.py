"""Files of single layers: what is measured is what the converter makes, on a device and into a table."""

from importlib.metadata import version

import msgspec
import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from support.layer_forms import LAYERS, form_of_layer
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
from edgecompress.planning.latency_tables.measured_table import NetworkToMeasure, open_cost_table
from edgecompress.planning.latency_tables.measurement import SMALLEST_MODEL
from edgecompress.planning.latency_tables.table import LatencyQuery
from edgecompress.planning.profile import profile
from edgecompress.planning.reduced_network import form_pairs, reduce_network
from edgecompress.records import ConversionRequest, LayerForm

IMAGE = (torch.zeros(1, 1, 8, 8),)


FORMS = {"plain": [("tucker2", (4, 4)), ("cp3", (6,)), ("spatial_svd", (4,))], "strided": [("tucker2", (4, 4)), ("cp3", (6,))]}


FORMS |= {"strided-odd": [("channel_svd", (4,))], "linear": [("svd", (4,))], "pointwise": [("svd", (4,))]}


CASES = [(name, "dense", ()) for name in LAYERS] + [(name, method, rank) for name, chosen in FORMS.items() for method, rank in chosen]


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


CONVERTED = [
    ("plain", "tucker2", (4, 4)),
    pytest.param(("linear", "svd", (4,)), marks=pytest.mark.slow),
    pytest.param(("strided", "cp3", (6,)), marks=pytest.mark.slow),
    pytest.param(("strided-odd", "dense", ()), marks=pytest.mark.slow),
]


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


def network_of(net, tmp_path):
    stats = analyze(net, IMAGE, measure=False)

    def write(paths, scheme):
        for path, model in zip(paths, (net, reduce_network(net, stats)), strict=True):
            program = path.with_suffix(".pt2")
            write_program(to_program(model, IMAGE), program)
            run_converter("tflite", ConversionRequest(program=str(program), output=str(path), scheme=scheme))

    return NetworkToMeasure("net", "0" * 64, 1000, form_pairs(net, stats), write)


@pytest.mark.slow
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
    assert 0.02 < whole.layers_ms / whole.ms < 50.0  # how near it is on an idle machine is a matter of benchmarks
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
    assert 0.1 < twice.ms / once.ms < 10.0  # in turns with the dense layer, so that a busy machine slows both
    assert not tables.find_cost(tables.load_table(path), dense).again


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


def test_a_busy_machine_is_refused(tmp_path):
    path = tmp_path / "costs.json"
    source = open_cost_table(device="local://", table=path, threads=1)
    with (
        busy(),
        pytest.raises(DeviceError, match=r"processors.* in each of 3 runs; a table measured now would be wrong"),
    ):
        source.measure_missing([LatencyQuery(form_of_layer("linear"), "fp32", 240)])
    assert not path.exists() or not tables.load_table(path).layers
