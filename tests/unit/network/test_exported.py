"""An exported program computes what the model computes, without BatchNorm, dropout, mutation or anything of the user's code."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgecompress.errors import ConfigError, EdgeCompressError, UnsupportedError
from edgecompress.network.exported import example_inputs, example_outputs, read_program, to_program, write_program


class Strided(nn.Module):
    """A convolution and a linear layer whose weights are strided views, as factors of a decomposition are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)
        self.conv.weight = nn.Parameter(torch.randn(6, 3, 3, 3).permute(0, 1, 3, 2))
        self.fc.weight = nn.Parameter(torch.randn(6, 5).T)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


class Shared(nn.Module):
    """One convolution called twice with one norm, and a norm whose input is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = self.norm(self.conv(x))
        y = self.conv(x)
        return self.other(y) + y


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = before = self.norm(self.conv(x))
        y = self.dropout(self.relu(y))
        y += 1
        return y + before


IMAGE = (1, 3, 8, 8)
# Name: (model, input shape, BatchNorm ops that must remain).
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)), IMAGE, 0),
    "conv-no-bias-groups": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, groups=3, bias=False), nn.BatchNorm2d(6)), IMAGE, 0),
    "conv-reflect": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, dilation=2, padding_mode="reflect"), nn.BatchNorm2d(4)), IMAGE, 0),
    "conv-same": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4, affine=False)), IMAGE, 0),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (1, 3, 9), 0),
    "conv-transpose": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 5, 3, stride=2), nn.BatchNorm2d(5)), IMAGE, 0),
    "conv-transpose-groups": (lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)), (1, 6, 5, 5), 0),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)), (1, 6), 0),
    "linear-over-a-sequence": (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(5)), (1, 5, 6), 1),
    "norm-first": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), IMAGE, 1),
    "activation-between": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), IMAGE, 1),
    "chain": (lambda: nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)), IMAGE, 0),
    "strided": (Strided, IMAGE, 0),
    "shared": (Shared, IMAGE, 1),
    "in-place": (InPlace, IMAGE, 0),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def with_trained_statistics(model: nn.Module) -> nn.Module:
    """Give BatchNorm the statistics of a trained network, so that folding has something to fold."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.1, 3)
            if norm.affine:
                nn.init.uniform_(norm.weight, -1.5, 1.5)
                nn.init.normal_(norm.bias)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_program_equals_model_without_batch_norm(name: str) -> None:
    build, shape, remaining = MODELS[name]
    model = with_trained_statistics(build()).eval()
    x = torch.randn(shape)
    program = to_program(model, (x,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum("batch_norm" in target for target in targets) == remaining
    assert not any("dropout" in target for target in targets)
    assert all(t.is_contiguous() for t in (*program.state_dict.values(), *program.constants.values()))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-5)


def test_the_model_stays_unchanged() -> None:
    model = with_trained_statistics(MODELS["in-place"][0]()).train()
    before = copy.deepcopy(model.state_dict())
    to_program(model, (torch.randn(IMAGE),))
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_a_layer_called_twice_is_stored_once() -> None:
    program = to_program(with_trained_statistics(Shared()), (torch.randn(IMAGE),))
    assert len(program.state_dict) == 2 + 2 + 4  # folded conv, conv, the norm that stays


def test_outputs_in_a_dict_become_a_tuple_in_its_order() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
            return {"b": x * 2, "a": [x + 1, x.sum((2, 3))]}

    x = torch.randn(IMAGE)
    program = to_program(Two(), (x,))
    torch.testing.assert_close(program.module()(x), (x * 2, x + 1, x.sum((2, 3))))
    assert [tuple(y.shape) for y in example_outputs(program)] == [IMAGE, IMAGE, (1, 3)]


def test_a_program_that_is_written_and_read_computes_the_same(tmp_path: Path) -> None:
    x = torch.randn(IMAGE)
    program = to_program(with_trained_statistics(MODELS["conv"][0]()), (x,))
    write_program(program, tmp_path / "a.pt2")
    again = read_program(tmp_path / "a.pt2")
    torch.testing.assert_close(again.module()(x), program.module()(x), rtol=0, atol=0)
    assert [(y.shape, y.dtype) for y in example_inputs(again)] == [(x.shape, x.dtype)]


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else x * 2


class Nonzero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x * self.seen


class WritesInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x[:, :1] = 0
        return x * 2


class Number(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x * 2, 3


def with_value(value: float) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert model[1].running_var is not None
    model[1].running_var[2] = value
    return model


def with_mask(value: float) -> nn.Module:
    model = nn.Conv2d(3, 4, 3)
    model.register_buffer("mask", torch.full((2,), value))
    return model


def test_only_buffers_such_as_masks_may_hold_infinity() -> None:
    to_program(with_mask(-torch.inf), (torch.zeros(1, 3, 8, 8),))


BAD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], type[EdgeCompressError], str]] = {
    "nan": (lambda: with_value(torch.nan), IMAGE, ConfigError, "net: 1.running_var holds NaN or inf; "),
    "inf": (lambda: with_value(torch.inf), IMAGE, ConfigError, "net: 1.running_var holds NaN or inf; "),
    "nan-mask": (lambda: with_mask(torch.nan), IMAGE, ConfigError, "net: mask holds NaN or inf; "),
    "half": (lambda: nn.Conv2d(3, 4, 3).half(), IMAGE, ConfigError, r"net: weight is float16; .*model\.float\(\)"),
    "batch": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 8, 8), ConfigError, r"input 0 has shape \(2, 3, 8, 8\), .*batch 1; give x\[:1\]"),
    "wrong-shape": (
        lambda: nn.Conv2d(3, 4, 3),
        (1, 4, 8, 8),
        ConfigError,
        r"forward\(\) of Conv2d .* \(1, 4, 8, 8\) fails with .*channels",
    ),
    "branch": (Branch, IMAGE, UnsupportedError, r"values of its input \(test_exported.py:\d+: return x if x.sum.*torch.where"),
    "nonzero": (Nonzero, IMAGE, UnsupportedError, "net: aten.index.Tensor makes a shape that depends on the input's values; use a mask"),
    "state": (Counter, IMAGE, UnsupportedError, "net: forward changes the buffer seen; "),
    "writes-input": (WritesInput, IMAGE, UnsupportedError, "net: forward writes into its input x; clone it first"),
    "number": (Number, IMAGE, UnsupportedError, "net: output 1 is 3 and not a tensor; "),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_models_are_refused_in_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    build, shape, kind, message = BAD[name]
    with pytest.raises(kind, match=message) as caught:
        to_program(build(), (torch.randn(shape),), name="net")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    path.write_bytes(b"PK\3\4 not a zip")
    with pytest.raises(ConfigError, match=r"a.pt2: not a readable exported program: .*; run the step"):
        read_program(path)
    with pytest.raises(ConfigError, match=r"b\.pt2"):
        read_program(tmp_path / "b.pt2")


class ReadsConstants(nn.Module):
    """Numbers read from a buffer in every way, as networks converted to PyTorch read them; `sign` makes a read depend on the input."""

    def __init__(self, *, sign: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.sign = sign
        self.register_buffer("scales", torch.tensor([1.0, 1.0, 2.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        scales = self.scales.tolist()
        if self.scales[0] == 1 and (self.scales > 1).any():
            scales = scales[2:]
        y = self.conv(x) * float(self.scales[2]) + int(self.scales[1]) + self.scales[3].item()
        if self.sign:
            view = y.flatten()[:1].clone()
            scales = scales if view.sum() > -9e9 else scales[:1]  # true of every input that a test could try
        return nn.functional.interpolate(y, scale_factor=scales, mode="nearest")


def test_numbers_read_from_constants_are_constants_of_the_program() -> None:
    model, x = ReadsConstants().eval(), torch.randn(IMAGE)
    program = to_program(model, (x,))
    assert "conv.weight" in program.state_dict
    assert "forward" not in vars(model)
    other = torch.randn(IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(other), model(other), rtol=1e-5, atol=1e-5)


def test_a_number_that_depends_on_the_input_is_refused_with_its_line() -> None:
    with pytest.raises(UnsupportedError, match=r"depends on the values of its input \(test_exported.py:\d+\);") as refused:
        to_program(ReadsConstants(sign=True).eval(), (torch.randn(IMAGE),), name="net")
    line = int(str(refused.value).partition("test_exported.py:")[2].partition(")")[0])
    assert "view.sum()" in Path(__file__).read_text().splitlines()[line - 1]


def test_a_number_set_from_the_input_depends_on_it() -> None:
    class Sets(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept = torch.zeros(2)
            kept[0] = x.mean()
            return x * 2 if kept.sum() > -9e9 else x

    with pytest.raises(UnsupportedError, match="depends on the values of its input"):
        to_program(Sets(), (torch.randn(IMAGE),))
