"""Networks that ask a layer for more than its outputs: factors answer, or the layer stays as it is, with the reason."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompress.errors import UnsupportedError
from edgecompress.factorizations import METHODS, Factors, factorize
from edgecompress.factorizations.decompose import decompose
from edgecompress.network.analyze import analyze
from edgecompress.network.containers import READS_WEIGHT
from edgecompress.network.surgery import replace_module
from edgecompress.planning.plan import plan

EXAMPLE = (torch.linspace(-1, 1, 24)[None],)


class Asking(nn.Module):
    """Asks the Linear `plain` for nothing, `asked` for sizes and types, `used` for its values, and `judged` for its class."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plain, self.asked, self.used, self.judged = (nn.Linear(24, 24) for _ in range(4))
        self.asked.scale = 0.5  # an attribute that its owner gave it

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(x)
        weight = self.asked.weight
        x = x.to(weight.device, weight.dtype).reshape(-1, weight.shape[1], self.asked.in_features // 24)[..., 0] * self.asked.scale
        x = torch.tanh(self.asked(x))
        x = self.used(x) + F.linear(x, self.used.weight[:1])
        return self.judged(x) if isinstance(self.judged, nn.Linear) else x


@pytest.fixture(scope="module")
def stats():
    return analyze(Asking().eval(), EXAMPLE, measure=False)


def test_layers_that_the_network_needs_as_they_are_are_found_and_stay_dense(stats):
    assert {layer.name: layer.irreplaceable for layer in stats.layers} == {
        "plain": "", "asked": "", "used": READS_WEIGHT, "judged": READS_WEIGHT,
    }  # fmt: skip
    made = plan(Asking().eval(), stats, macs_ratio=0.75)
    assert {layer.layer for layer in made.layers} == {"plain", "asked"}
    assert {each.layer: each.reason for each in made.skipped} == {"used": READS_WEIGHT, "judged": READS_WEIGHT}


def test_the_decomposed_network_runs_and_exports(stats):
    network, _ = decompose(Asking().eval(), plan(Asking().eval(), stats, macs_ratio=0.75))
    assert torch.equal(torch.export.export(network, EXAMPLE).module()(*EXAMPLE), network(*EXAMPLE))
    assert network(*EXAMPLE).isfinite().all()


def test_a_layer_that_must_stay_cannot_be_factorized_by_hand_either(stats):
    with pytest.raises(UnsupportedError, match=f"^used: {READS_WEIGHT}; leave it dense"):
        plan(Asking().eval(), stats, layers={"used": ("svd", (4,))})


def test_a_layer_whose_replacement_fails_is_told_with_the_error():
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            assert type(self.layers[3]) is nn.Linear, "layer 3 must be linear"
            for layer in self.layers:
                x = layer(x)
            return x

    found = {layer.name: layer.irreplaceable for layer in analyze(Strict().eval(), EXAMPLE, measure=False).layers}
    assert [name for name, reason in found.items() if reason] == ["layers.3"]
    assert found["layers.3"] == "the network takes no other layer in its place: layer 3 must be linear"


def test_a_network_that_draws_random_numbers_loses_no_layer_to_them():
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(24, 24)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + torch.rand(())

    assert analyze(Random().eval(), EXAMPLE, measure=False).layers[0].irreplaceable == ""


def test_the_search_leaves_the_network_as_it_was():
    model = Asking().eval()
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    analyze(model, EXAMPLE, measure=False)
    assert dict(model.named_modules()) == modules
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_factors_answer_for_the_attributes_of_their_dense_layer_and_hold_none_of_them(method):
    dense = nn.Linear(24, 36) if METHODS[method].reject(nn.Linear(24, 36)) is None else nn.Conv2d(12, 16, 3, stride=2, padding=1)
    rank = tuple(max(1, n // 4) for n in METHODS[method].max_rank(dense, METHODS[method].Options()))
    compact = factorize(dense, method, rank, fit=False)
    assert not hasattr(compact, "in_channels")
    state = list(compact.state_dict())
    holder = nn.ModuleDict({"layer": dense})
    replace_module(holder, "layer", compact)
    assert isinstance(holder["layer"], Factors)
    names = [name for name in vars(dense) if not name.startswith("_") and name != "training"]
    assert {name: getattr(compact, name) for name in names} == {name: getattr(dense, name) for name in names}
    assert (compact.weight.shape, compact.weight.dtype, compact.weight.isnan().all()) == (dense.weight.shape, torch.float32, True)
    assert compact.bias.shape == dense.bias.shape
    assert list(compact.state_dict()) == state
    assert torch.equal(copy.deepcopy(compact).weight.isnan(), compact.weight.isnan())
