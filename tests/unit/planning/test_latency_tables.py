"""Cost tables: measured files equal those of the converter, tables store and return latencies, and bad tables are refused."""

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.layer_forms import LAYERS, form_of_layer, stats_of
from support.networks import Net, trained
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations import factorize
from edgecompress.network.analyze import analyze
from edgecompress.planning.latency_tables import table as tables
from edgecompress.planning.latency_tables.layer_forms import layer_form
from edgecompress.planning.latency_tables.layer_fraction import solve_layer_fraction
from edgecompress.planning.latency_tables.measured_table import open_cost_table
from edgecompress.planning.reduced_network import form_pairs, reduce_network
from edgecompress.records import Cost, CostTable, LayerForm, from_json, to_json

IMAGE = (torch.zeros(1, 1, 8, 8),)
HERE = CostTable(device="board, arm64-v8a", runtime="ai-edge-litert 2.3.0", threads=1)


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


def test_a_table_of_other_threads_is_refused_without_a_device_too(tmp_path):
    path = tmp_path / "costs.json"
    tables.save_table(HERE, path)
    with pytest.raises(ConfigError, match=r"its threads are 1, here they are 2; give --threads 1"):
        open_cost_table(device="", table=path, threads=2)
