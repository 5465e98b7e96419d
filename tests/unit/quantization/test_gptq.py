"""GPTQ rounds weights to integer grids with smaller output errors than rounding to nearest."""

import pytest
import torch
from torch import Tensor, nn

from edgecompress.network.exported import to_program
from edgecompress.quantization.fake_quantize import fake_quantize_symmetric, largest_integer, row_peaks
from edgecompress.quantization.gptq import round_weights


class CalledTwice(nn.Module):
    """One layer called twice, without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.conv(x)))


NETS = {
    "convolutions": lambda: nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6(), nn.Conv2d(16, 5, (3, 1), dilation=2)),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU6(), nn.Conv2d(12, 12, 5, groups=12), nn.ReLU6(), nn.Conv2d(12, 4, 1)),
    "grouped": lambda: nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3, groups=4, bias=False)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 32), nn.ReLU(), nn.Linear(32, 10, bias=False)),
    "too wide": lambda: nn.Sequential(nn.Conv2d(3, 240, 1), nn.ReLU6(), nn.Conv2d(240, 4, 3)),
    "folded": lambda: nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 4, 1)),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random_images(n: int) -> list[tuple[Tensor, ...]]:
    """Return smooth, positive images, as photographs are."""
    return [(nn.functional.interpolate(torch.rand(1, 3, 4, 4), 12, mode="bilinear"),) for _ in range(n)]


def round_to_nearest(w: Tensor, bits: int = 8) -> Tensor:
    return fake_quantize_symmetric(w, row_peaks(w), bits)


def weights_of(program: torch.export.ExportedProgram) -> list[Tensor]:
    return [t.detach() for t in program.state_dict.values() if t.ndim > 1]


@torch.no_grad()
def squared_error(module: nn.Module, reference: nn.Module, samples: list[tuple[Tensor, ...]]) -> float:
    return sum(float((module(*x) - reference(*x)).square().sum()) for x in samples)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NETS)
def test_rounded_weights_are_on_the_grid_of_their_peaks(name: str, bits: int) -> None:
    program = to_program(NETS[name]().eval(), random_images(1)[0])
    for weight in weights_of(round_weights(program, random_images(8), bits_of=lambda _: bits)):
        torch.testing.assert_close(round_to_nearest(weight, bits), weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NETS)
def test_output_errors_are_smaller_than_with_rounding_to_nearest(name: str, bits: int) -> None:
    net = NETS[name]().eval()
    program = to_program(net, random_images(1)[0])
    plain = to_program(net, random_images(1)[0])
    with torch.no_grad():
        for tensor in plain.state_dict.values():
            if tensor.ndim > 1:
                tensor.copy_(round_to_nearest(tensor, bits))
    held_out = random_images(16)
    rounded = round_weights(program, random_images(32), bits_of=lambda _: bits).module()
    assert squared_error(rounded, program.module(), held_out) < 0.7 * squared_error(plain.module(), program.module(), held_out)


def test_the_original_program_stays_unchanged() -> None:
    program = to_program(NETS["folded"]().eval(), random_images(1)[0])
    before = {key: value.clone() for key, value in program.state_dict.items()}
    round_weights(program, random_images(4))
    torch.testing.assert_close(dict(program.state_dict), before, rtol=0, atol=0)


def test_a_layer_that_is_skipped_keeps_its_weight() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    program = to_program(net, random_images(1)[0])
    first, last = weights_of(round_weights(program, random_images(4), bits_of=lambda node: None if node.name == "conv2d" else 8))
    assert first.equal(weights_of(program)[0])
    assert not last.equal(weights_of(program)[1])


def test_a_layer_called_twice_stays_one_layer() -> None:
    x = torch.rand(1, 6, 8, 8)
    program = to_program(CalledTwice().eval(), (x,))
    rounded = round_weights(program, [(x,)])
    assert len(weights_of(rounded)) == 1
    torch.testing.assert_close(rounded.module()(x), program.module()(x), rtol=0, atol=0.02)


def test_the_same_samples_give_the_same_weights() -> None:
    program, samples = to_program(NETS["depthwise"]().eval(), random_images(1)[0]), random_images(8)
    first, again = round_weights(program, samples), round_weights(program, samples)
    assert all(a.equal(b) for a, b in zip(weights_of(first), weights_of(again), strict=True))


def test_a_dead_channel_keeps_its_bias_within_int32() -> None:
    conv = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        conv.weight[0] = 1e-9
        conv.bias[0] = 7.0  # type: ignore[index]
    program = to_program(conv.eval(), random_images(1)[0])
    rounded = round_weights(program, random_images(4))
    scale = weights_of(rounded)[0][0].abs().max() / largest_integer(8)
    assert 7.0 / (scale * 0.005) < 2**31  # steps of a small input scale
    assert squared_error(rounded.module(), program.module(), random_images(4)) / (4 * 2 * 144) < 1e-4


def test_weights_are_rounded_to_nearest_where_float32_cannot_hold_the_covariance() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    x = 1e9 + torch.randn(8, 3, 12, 12)
    program = to_program(net, (x[:1],))
    rounded = round_weights(program, [(one,) for one in x.split(1)], bits_of=lambda _: 8)
    weight = next(value for name, value in rounded.state_dict.items() if value.shape == net[0].weight.shape)
    scale = net[0].weight.abs().amax((1, 2, 3), keepdim=True) / largest_integer(8)
    torch.testing.assert_close(weight, (net[0].weight / scale).round() * scale)
