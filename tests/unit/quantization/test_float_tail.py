"""The float tail: what joins ranges that integers cannot hold together stays in float, and nothing else does."""

import pytest
import torch
from support.detectors import ALIKE, MIXED, channel_sqnr_db, detector_and_data
from torch import Tensor, nn

from edgecompress.network.exported import read_program, to_program, write_program
from edgecompress.network.subgraph import enclosing_modules, graph_of
from edgecompress.quantization.float_tail import TailOp, find_tail, keep_tail_float
from edgecompress.quantization.mixed_precision import plan_precision
from edgecompress.quantization.qat_module import FakeQuantizedModule
from edgecompress.quantization.simulation import Simulation
from edgecompress.records import QuantSpec
from edgecompress.targets import FLOAT_TAIL, SCHEMES, Gate

INT8 = QuantSpec(scheme="int8-static")


def outputs_of(model, x):
    with torch.no_grad():
        given = model(x)
    return given if isinstance(given, tuple) else (given,)


def float_nodes(program):
    return [node.name for node in graph_of(program).graph.nodes if FLOAT_TAIL in enclosing_modules(node)]


def tail_of(model, x, scheme="int8-static"):
    program, quant, said = keep_tail_float(to_program(model.eval(), (x[:1],)), QuantSpec(scheme=scheme), (x,))
    assert (FLOAT_TAIL in quant.layers) == bool(said) == bool(float_nodes(program))
    return float_nodes(program)


@pytest.mark.parametrize("join", MIXED)
def test_every_channel_keeps_its_values_where_the_tail_is_float(join):
    model, x = detector_and_data(join)
    program = to_program(model, (x[:1],))
    marked, quant, said = keep_tail_float(program, INT8, (x,))
    assert quant.layers == {FLOAT_TAIL: "fp32"}
    assert "float32" in said
    exact = outputs_of(model, x)
    plain = channel_sqnr_db(Simulation(program, INT8, (x,), format="onnx").run((x,)), exact, join)
    kept = channel_sqnr_db(Simulation(marked, quant, (x,), format="onnx").run((x,)), exact, join)
    assert min(plain) < 17
    assert min(kept) > 25


@pytest.mark.parametrize("join", ALIKE)
def test_a_network_whose_ranges_are_alike_is_left_as_it_is(join):
    model, x = detector_and_data(join)
    program = to_program(model, (x[:1],))
    assert keep_tail_float(program, INT8, (x,)) == (program, INT8, "")


def test_layers_stay_integers_and_what_follows_them_does_not():
    model, x = detector_and_data("cat")
    assert float_nodes(keep_tail_float(to_program(model, (x[:1],)), INT8, (x,))[0]) == [
        "flatten", "mul", "add", "clamp", "flatten_1", "sigmoid", "cat",
    ]  # fmt: skip


def test_what_another_output_reads_alone_stays_in_integers():
    model, x = detector_and_data("shared")
    names = tail_of(model, x)
    assert "cat" in names
    assert not {"sigmoid", "amax"} & set(names)


def test_marks_outlast_a_file(tmp_path):
    model, x = detector_and_data("cat")
    program, _, _ = keep_tail_float(to_program(model, (x[:1],)), INT8, (x,))
    write_program(program, tmp_path / "program.pt2")
    assert float_nodes(read_program(tmp_path / "program.pt2")) == float_nodes(program)


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "int8-static"])
def test_no_other_scheme_needs_a_tail(scheme):
    model, x = detector_and_data("cat")
    assert tail_of(model, x, scheme) == []


def test_sixteen_bits_hold_what_eight_do_not_but_not_everything():
    model, x = detector_and_data("cat")
    model.centres *= 1000
    model.forward = lambda x: torch.cat([model.centres.expand(len(x), -1, -1), model.score(model.middle(model.stem(x))).flatten(2)], 1)
    assert tail_of(model, x, "int16x8") != []


def test_a_join_that_a_layer_reads_is_no_tail():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(7, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([x * 100, self.conv(x)], 1))

    assert tail_of(Joined(), torch.rand(8, 3, 6, 6)) == []


def test_a_residual_trunk_before_a_join_stays_in_integers():
    class Trunk(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x)
            second = first + self.b(first.sigmoid())
            return torch.cat([second.mean((2, 3)), 100 * first.amax((2, 3))], 1)

    names = tail_of(Trunk(), torch.rand(8, 3, 6, 6))
    assert "cat" in names
    assert "sigmoid" not in names


def test_class_scores_and_softmax_of_a_classifier_are_alike():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 40))
    x = torch.randn(32, 3, 8, 8)
    assert tail_of(body, x) == []
    assert tail_of(nn.Sequential(body, nn.Softmax(1)), x) == []


def test_class_scores_of_many_classes_are_no_ranges_of_their_own():
    body = nn.Sequential(nn.Flatten(), nn.Linear(48, 100))
    with torch.no_grad():
        body[1].weight[7], body[1].bias[7] = 0, 0.01
    assert tail_of(body, torch.randn(16, 3, 4, 4)) == []


def test_positions_of_an_anchor_grid_are_no_channels():
    """Boxes alone reach from 20 to 620 pixels along their positions, and all four coordinates have the same range."""

    class Boxes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("centres", torch.linspace(4, 636, 64).expand(1, 4, 64).clone())

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).flatten(2) + self.centres

    assert tail_of(Boxes(), torch.rand(8, 3, 8, 8)) == []


@pytest.mark.parametrize(("ratio", "mixed"), [(3.9, False), (4.1, True)])
def test_a_part_that_keeps_six_of_eight_bits_may_be_joined(ratio, mixed):
    names = ("a", "b", "zeros")
    ops = [TailOp("a", (), "layer", 1), TailOp("b", (), "layer", 1), TailOp("zeros", ()), TailOp("join", names, "join", parts=names)]
    peaks = {"a": torch.ones(3), "b": torch.full((3,), ratio), "zeros": torch.zeros(3)}
    tail, _ = find_tail(ops, ["join"], lambda asked: {each: peaks[each[0]].amax() if each[1] is None else peaks[each[0]] for each in asked})
    assert tail == ({"join", "zeros"} if mixed else set())


def test_training_under_rounding_counts_on_the_tail():
    model, x = detector_and_data("cat")
    program, quant, _ = keep_tail_float(to_program(model, (x[:1],)), INT8, (x,))
    student = FakeQuantizedModule(program, quant, (x,))
    with torch.no_grad():
        assert min(channel_sqnr_db(student(x), outputs_of(model, x), "cat")) > 25


def test_mixed_precision_counts_on_the_tail():
    model, x = detector_and_data("cat")
    plan = plan_precision(to_program(model, (x[:1],)), (x,), scheme="int8-static", limits=Gate(min_agreement=0.98))
    assert {layer.layer for layer in plan.layers} == {"stem", "middle", "box", "score"}
    assert plan.schemes == {}
    assert plan.before.sqnr_db > 40
