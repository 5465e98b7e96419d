"""Laws of layers made of tensor trains, and of the choice between the chain and the dense run mode."""

import copy
import math
import pickle
from itertools import product

import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from edgecompress.artifacts.converter_process import run_converter
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import factorize, refactorize, relative_error
from edgecompress.factorizations.methods import tensor_train
from edgecompress.factorizations.methods.tensor_train import (
    Options,
    balanced_modes,
    faster_run_mode,
    max_rank,
    ranks_within_error,
    reconstruct,
    skeleton,
)
from edgecompress.factorizations.timing import median_ms
from edgecompress.network.counting import cost_of
from edgecompress.network.exported import to_program, write_program
from edgecompress.records import ConversionRequest

RUNS = ("chain", "dense")
LAYERS = {
    "linear": lambda: (nn.Linear(12, 10), (12,)),
    "linear-no-bias-tokens": lambda: (nn.Linear(8, 6, bias=False), (3, 8)),
    "linear-prime-outputs-many-axes": lambda: (nn.Linear(16, 7), (2, 3, 16)),
    "3x3-strided": lambda: (nn.Conv2d(6, 8, 3, stride=2, padding=1), (6, 7, 7)),
    "3x2-dilated-reflect": lambda: (
        nn.Conv2d(4, 5, (3, 2), dilation=(1, 2), padding=(1, 2), padding_mode="reflect", bias=False),
        (4, 6, 7),
    ),
    "one-input": lambda: (nn.Conv2d(1, 6, 3), (1, 6, 6)),
    "1x3-strided": lambda: (nn.Conv2d(5, 6, (1, 3), stride=(2, 3), padding=(0, 1)), (5, 5, 8)),
    "grouped": lambda: (nn.Conv2d(6, 8, 3, groups=2), (6, 5, 5)),
    "depthwise": lambda: (nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5)),
    "conv1d": lambda: (nn.Conv1d(4, 6, 3), (4, 8)),
    "conv3d": lambda: (nn.Conv3d(3, 4, (2, 3, 2)), (3, 3, 4, 4)),
    "transposed-grouped": lambda: (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), (4, 4, 4)),
}
cases = pytest.mark.parametrize(("name", "run"), list(product(LAYERS, RUNS)))


def build_layer(name, dtype=torch.float64):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]()
    return layer.to(dtype).eval(), torch.randn(2, *shape, dtype=dtype), shape


def half_ranks(limit):
    return tuple(max(1, n // 2) for n in limit)


def factorized_at_half_rank(name, run, dtype=torch.float64):
    layer, x, shape = build_layer(name, dtype)
    return factorize(layer, "tensor_train", half_ranks(max_rank(layer, Options())), options={"run": run}), x, shape


@cases
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_a_layer_is_exact_at_max_rank(name, run, dtype, tolerance):
    layer, x, _ = build_layer(name, dtype)
    compact = factorize(layer, "tensor_train", max_rank(layer, Options()), options={"run": run})
    assert relative_error(layer, "tensor_train", compact) <= tolerance
    torch.testing.assert_close(compact(x), layer(x), rtol=0, atol=tolerance * 10)


@cases
def test_the_output_equals_that_of_the_layer_with_the_reconstructed_weight(name, run):
    layer, x, _ = build_layer(name)
    compact, _, _ = factorized_at_half_rank(name, run)
    assert relative_error(layer, "tensor_train", compact) > 0.1
    with torch.no_grad():
        layer.weight.copy_(reconstruct(compact))
        torch.testing.assert_close(compact(x), layer(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_both_run_modes_compute_the_same(name):
    (chained, x, _), (dense, _, _) = (factorized_at_half_rank(name, run) for run in RUNS)
    torch.testing.assert_close(dense(x), chained(x))
    assert sum(p.numel() for p in dense.parameters()) == sum(p.numel() for p in chained.parameters())


@pytest.mark.parametrize("shape", [(12,), (1, 12), (0, 12), (2, 0, 12), (5, 12), (2, 3, 4, 12)])
def test_a_linear_takes_any_leading_axes(shape):
    compact, _, _ = factorized_at_half_rank("linear", "chain")
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        expected = x @ reconstruct(compact).T + compact.bias
    torch.testing.assert_close(compact(x), expected)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(n=st.integers(1, 24), m=st.integers(1, 24), cores=st.integers(2, 5), epsilon=st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.7]))
def test_error_of_a_linear_is_at_most_epsilon(n, m, cores, epsilon):
    torch.manual_seed(n * 100 + m)
    layer = nn.Linear(n, m, dtype=torch.float64)
    if tensor_train.reject(layer) is None:
        options = Options(cores=cores)
        rank = ranks_within_error(layer, epsilon, options)
        compact = factorize(layer, "tensor_train", rank, options={"cores": cores})
        assert relative_error(layer, "tensor_train", compact) <= epsilon + 1e-12


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("epsilon", [0.05, 0.3, 0.6])
def test_error_of_a_layer_is_at_most_epsilon(name, epsilon):
    layer, _, _ = build_layer(name)
    compact = factorize(layer, "tensor_train", ranks_within_error(layer, epsilon, Options()))
    assert relative_error(layer, "tensor_train", compact) <= epsilon + 1e-12


@cases
def test_gradients_are_those_of_the_function(name, run):
    compact, x, _ = factorized_at_half_rank(name, run)
    names, values = zip(*compact.named_parameters(), strict=True)
    x = x[:1].requires_grad_()

    def call(x, *values):
        return torch.func.functional_call(compact, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)


@cases
def test_state_copies_and_pickles_round_trip_bit_for_bit(name, run):
    compact, x, _ = factorized_at_half_rank(name, run, torch.float32)
    layer, _, _ = build_layer(name, torch.float32)
    empty = factorize(layer, "tensor_train", half_ranks(max_rank(layer, Options())), options={"run": run}, fit=False)
    empty.load_state_dict(compact.state_dict(), strict=True)
    for other in (empty, copy.deepcopy(compact), pickle.loads(pickle.dumps(compact))):
        assert torch.equal(other(x), compact(x))
        assert {p.data_ptr() for p in other.parameters()}.isdisjoint(p.data_ptr() for p in compact.parameters())
        assert all(p.is_contiguous() for p in other.parameters())
        assert not other.training
    assert sum(v.numel() for v in compact.state_dict().values()) == sum(p.numel() for p in compact.parameters())


@cases
def test_the_exported_program_computes_the_same_and_the_model_stays_unchanged(name, run):
    compact, x, _ = factorized_at_half_rank(name, run, torch.float32)
    before = compact(x[:1])
    program = to_program(compact, (x[:1],))
    torch.testing.assert_close(program.module()(x[:1]), before)
    assert torch.equal(compact(x[:1]), before)
    layer, _, _ = build_layer(name, torch.float32)
    held = sorted(tuple(v.shape) for v in program.state_dict.values())
    if run == "dense":
        assert held == sorted(tuple(p.shape) for p in layer.parameters())
    else:
        assert held == sorted(tuple(p.shape) for p in compact.parameters())


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrized_weight_of_the_user_is_a_constant_in_the_program(wrap):
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(6, 4)), nn.ReLU()).eval()
    x = torch.randn(1, 6)
    program = to_program(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    assert sorted(tuple(v.shape) for v in program.state_dict.values()) == [(4,), (4, 6)]
    assert "parametrizations" in dict(model[0].named_children())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning")
def test_tflite_computes_the_same_as_both_run_modes(tmp_path):
    torch.manual_seed(0)
    layers = [nn.Linear(32, 24), nn.Linear(24, 16)]
    made = [factorize(layer, "tensor_train", (3, 3), options={"run": run}) for layer, run in zip(layers, RUNS, strict=True)]
    model = nn.Sequential(made[0], nn.ReLU(), made[1]).eval()
    x = torch.randn(1, 5, 32)
    write_program(to_program(model, (x,)), tmp_path / "model.pt2")
    request = ConversionRequest(program=str(tmp_path / "model.pt2"), output=str(tmp_path / "model.tflite"), scheme="fp32")
    reply = run_converter("tflite", request)
    runner = Interpreter(request.output, num_threads=1).get_signature_runner()
    found = torch.from_numpy(runner(**{reply.inputs[0].name: x.numpy()})[reply.outputs[0].name])
    torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("rank", "params"), [(1, 144), (2, 528), (4, 2016)])
def test_counts_of_the_first_linear_of_vgg16(run, rank, params):
    """Parameters are Σ r_{k−1} m_k n_k r_k, plus a bias for each output."""
    options = Options(in_modes=(2, 7, 8, 8, 7, 4), out_modes=(4,) * 6, run=run)
    with torch.device("meta"):
        found = cost_of(skeleton(nn.Linear(25088, 4096), (rank,) * 5, options), (25088,))
    assert found[0] == params + 4096
    assert (found[1] == 25088 * 4096) == (run == "dense")


def test_macs_of_a_chain_count_its_matrix_products_at_every_token():
    layer = nn.Linear(12, 10)
    with torch.device("meta"):
        chained = skeleton(layer, (2, 3), Options(in_modes=(3, 2, 2), out_modes=(1, 2, 5)))
    _, macs = cost_of(chained, (7, 12))
    assert macs == 7 * ((3 * 1 * 2) * 4 + (2 * 2 * 2 * 3) * 2 * 1 + (3 * 2 * 5) * 1 * 2)


@pytest.mark.parametrize(
    ("n", "d", "modes"), [(512, 3, (8, 8, 8)), (72, 2, (9, 8)), (7, 3, (7, 1, 1)), (1, 2, (1, 1)), (25088, 3, (32, 28, 28)), (12, 1, (12,))]
)
def test_modes_are_balanced(n, d, modes):
    assert balanced_modes(n, d) == modes


def test_cores_of_one_value_are_left_out():
    assert max_rank(nn.Linear(4, 1), Options(cores=9)) == (2,)


def test_a_pointwise_factor_at_full_rank_is_left_out():
    layer = build_layer("3x3-strided")[0]
    parts = {rank: list(dict(skeleton(layer, rank, Options()).named_children())) for rank in [(3, 5, 4), (6, 5, 4), (6, 8, 8)]}
    assert parts == {
        (3, 5, 4): ["squeeze", "axis0", "axis1", "expand"],
        (6, 5, 4): ["axis0", "axis1", "expand"],
        (6, 8, 8): ["axis0", "axis1"],
    }


@pytest.mark.parametrize(("times", "form"), [((1.0, 2.0), "chain"), ((2.0, 1.0), "dense"), ((1.0, 1.0), "dense")])
def test_the_run_mode_with_the_lower_latency_is_chosen(times, form):
    def measured(layers, shape):
        assert ([type(one).__name__ for one in layers], shape) == (["TensorTrainLinear", "Linear"], (4, 12))
        return times

    assert faster_run_mode(nn.Linear(12, 10), (1, 1), (4, 12), options=Options(), latency=measured) == form


@pytest.mark.parametrize(("features", "form"), [(4, "dense"), (4096, "chain")])
def test_this_machine_runs_a_huge_matrix_faster_as_a_chain_and_a_tiny_one_dense(features, form):
    layer = nn.Linear(features, features, bias=False)
    state = torch.random.get_rng_state()
    assert faster_run_mode(layer, (1, 1), (features,), options=Options()) == form
    assert torch.equal(torch.random.get_rng_state(), state)


def test_latencies_are_interleaved_medians():
    calls = []

    class Counted(nn.Module):
        def forward(self, x):
            calls.append(self)
            return x

    modules = [Counted(), Counted()]
    assert all(0 <= ms < math.inf for ms in median_ms(modules, torch.zeros(1), repetitions=5))
    assert calls == modules * (len(calls) // 2)


REJECTED = {
    "neither 7 inputs nor 5 outputs can be split": lambda: nn.Linear(7, 5),
    "one position only, tensor_train would be svd": lambda: nn.Conv2d(4, 6, 1),
    "depthwise kernel along one axis": lambda: nn.Conv2d(4, 4, (1, 3), groups=4),
    "ReLU is neither": nn.ReLU,
}


@pytest.mark.parametrize("why", REJECTED)
def test_a_layer_that_cannot_be_split_is_refused_with_the_reason(why):
    with pytest.raises(UnsupportedError, match=f"fc: .*{why}.*; leave it out or use another method"):
        factorize(REJECTED[why](), "tensor_train", (1, 1), name="fc")


OPTIONS = {
    "one-core": ({"cores": 1}, "cores=1: a train has 2 or more; give more, or take svd"),
    "one-mode": ({"in_modes": (12,)}, "cores=1: a train has 2 or more"),
    "product": ({"in_modes": (3, 5)}, r"in_modes=\(3, 5\): the product is not 12, .*; give factors of that"),
    "outputs": ({"out_modes": (2, 2, 2)}, r"out_modes=\(2, 2, 2\): the product is not 10"),
    "negative": ({"in_modes": (-3, -4)}, r"in_modes=\(-3, -4\): the product is not 12"),
    "lengths": ({"in_modes": (3, 4), "out_modes": (1, 2, 5)}, r"their lengths differ; fill up with 1"),
    "run": ({"run": "sparse"}, r"tensor_train: .*sparse.*\$\.run.*; its defaults are"),
    "type": ({"cores": 2.5}, r"tensor_train: .*\$\.cores"),
    "unknown": ({"modes": (3, 4)}, "unknown option 'modes'; choose from cores, in_modes, out_modes, run"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_do_not_fit_are_refused(name):
    options, message = OPTIONS[name]
    with pytest.raises(ConfigError, match=f"fc: .*{message}"):
        factorize(nn.Linear(12, 10), "tensor_train", (1, 1), name="fc", options=options)


def test_modes_of_a_convolution_are_refused():
    with pytest.raises(ConfigError, match=r"conv: in_modes=\(2, 3\), .*: a convolution is split along its axes; leave them out"):
        factorize(nn.Conv2d(6, 4, 3), "tensor_train", (1, 1, 1), name="conv", options={"in_modes": (2, 3)})


@pytest.mark.parametrize("epsilon", [-0.1, 1.0, math.nan])
def test_an_epsilon_outside_its_range_is_refused(epsilon):
    with pytest.raises(ConfigError, match=f"epsilon={epsilon}: .*; give one between"):
        ranks_within_error(nn.Linear(4, 4), epsilon, Options())


def test_ranks_of_a_weight_that_is_not_finite_are_refused():
    layer = nn.Linear(4, 4)
    nn.init.constant_(layer.weight, math.inf)
    with pytest.raises(ConfigError, match="weights hold NaN or infinity; retrain or repair the checkpoint"):
        ranks_within_error(layer, 0.1, Options())


@pytest.mark.parametrize("rank", [(0, 1), (1, 99), (1,), (1, 1, 1)])
def test_a_rank_that_does_not_fit_is_refused(rank):
    layer = nn.Linear(12, 10)
    calls = (
        lambda: factorize(layer, "tensor_train", rank, name="fc"),
        lambda: faster_run_mode(layer, rank, (12,), options=Options(), name="fc"),
    )
    for call in calls:
        with pytest.raises(ConfigError, match=r"fc: rank .* for tensor_train; each must be between 1 and"):
            call()


def test_a_layer_whose_latency_cannot_be_measured_is_refused():
    with pytest.raises(ConfigError, match=r"fc: does not take inputs of shape \(13,\); give theirs, without the batch axis"):
        faster_run_mode(nn.Linear(12, 10), (1, 1), (13,), options=Options(), name="fc")
    with pytest.raises(ConfigError, match="fc: it is on the meta device, where nothing takes time; load its weights first"):
        faster_run_mode(nn.Linear(12, 10, device="meta"), (1, 1), (12,), options=Options(), name="fc")


@pytest.mark.parametrize("run", RUNS)
def test_a_tensor_train_is_not_refactorized_as_a_chain_of_matrices(run):
    compact = factorize(nn.Linear(16, 16), "tensor_train", (4, 4), options={"run": run})
    with pytest.raises(UnsupportedError, match=r"fc: .* among its factors; decompose the dense layer instead"):
        refactorize(compact, "svd", (1,), name="fc")


def test_the_weight_of_a_contracted_layer_cannot_be_set():
    compact = factorize(nn.Linear(12, 10), "tensor_train", (2, 2), options={"run": "dense"})
    with pytest.raises(UnsupportedError, match="weight: it is contracted from a tensor train; factorize the dense layer again"):
        compact[0].weight = torch.zeros(10, 12)
