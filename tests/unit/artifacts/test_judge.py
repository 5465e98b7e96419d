"""A network is held to the dense one by its metric, and by fidelity in every output that the metric does not see."""

import torch
from torch.utils import _pytree

from edgecompress.artifacts.judge import Judge
from edgecompress.data.metrics import make_builtin, make_metric
from edgecompress.records.outputs import OutputSpec

SPECS = (OutputSpec(kind="logits", name="scores"), OutputSpec(kind="embedding", name="direction"))
STRUCTURE = _pytree.tree_flatten({"scores": 0, "direction": 0})[1]


def outputs():
    torch.manual_seed(0)
    return 3 * torch.randn(200, 4), torch.randn(200, 16)


def accuracy(given, targets):
    return {"accuracy": float((given["scores"].argmax(1) == targets).double().mean())}


def judge(metric=None, **bounds):
    dense = outputs()
    targets = None if metric is None else dense[0].argmax(1)
    return Judge(SPECS, dense, metric, targets, STRUCTURE, **bounds)


def shortfall(judge, scores=False, direction=False):
    kept = outputs()
    found = judge.judge((kept[0].roll(1, 0) if scores else kept[0], kept[1].roll(1, 1) if direction else kept[1]))
    return judge.describe_shortfall(found)


def test_the_dense_network_itself_keeps_every_bound():
    assert [shortfall(judge(metric)) for metric in (None, make_builtin("top-1"), make_metric(accuracy))] == ["", "", ""]


def test_without_a_metric_every_output_is_held():
    assert shortfall(judge(), scores=True).startswith("scores (logits) keeps ")
    assert shortfall(judge(), direction=True).startswith("direction (embedding) keeps 0.0%")


def test_outputs_beside_that_of_the_usual_metric_are_held_by_fidelity():
    usual = judge(make_builtin("top-1"))
    assert shortfall(usual, scores=True).startswith("top-1 went from 100.00% to ")
    assert shortfall(usual, direction=True).startswith("direction (embedding) keeps 0.0%")
    assert shortfall(judge(make_builtin("top-1"), min_fidelity=0.0), direction=True) == ""


def test_the_users_metric_gets_all_outputs_and_alone_decides():
    assert shortfall(judge(make_metric(accuracy)), scores=True).startswith("accuracy went from 100.00% to ")
    assert shortfall(judge(make_metric(accuracy)), direction=True) == ""
    assert shortfall(judge(make_metric(accuracy), max_loss=100.0), scores=True) == ""


def test_only_a_metric_that_sees_all_outputs_allows_noise():
    scores, direction = outputs()
    noisy = (scores + 0.01, direction + 0.1)
    assert judge(make_metric(accuracy)).allows_noise(noisy)
    assert not judge(make_metric(accuracy)).allows_noise((scores.roll(1, 0), direction))
    assert not judge(make_builtin("top-1")).allows_noise(noisy)
    assert not judge().allows_noise(noisy)
