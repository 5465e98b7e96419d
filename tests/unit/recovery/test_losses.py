"""The part of the loss by labels, for each kind of output."""

import math

import pytest
import torch
from torch.nn import functional as F

from edgecompress.errors import ConfigError
from edgecompress.records import OutputSpec
from edgecompress.recovery.losses import choose_target_loss, distillation_loss, label_loss, labels_inform


def specs(*kinds):
    return tuple(OutputSpec(kind=kind, name=f"output_{i}") for i, kind in enumerate(kinds))


def scores(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_logits_have_cross_entropy():
    y, labels = scores(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(label_loss((y,), (y,), labels, specs=specs("logits")), F.cross_entropy(y, labels))


def test_probabilities_have_the_loss_of_their_logits_and_zero_stays_finite():
    y, labels = scores(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    p = y.softmax(1)
    torch.testing.assert_close(label_loss((p,), (p,), labels, specs=specs("probabilities")), F.cross_entropy(y, labels))
    sure = F.one_hot(torch.tensor([1, 1]), 3).float().requires_grad_()
    loss = label_loss((sure,), (sure,), torch.tensor([0, 1]), specs=specs("probabilities"))
    (slope,) = torch.autograd.grad(loss, sure)
    assert bool(loss.isfinite())
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize("axis", [1, -1])
def test_pixels_without_a_label_do_not_count(axis):
    y = scores(2, 3, 4, 5)
    labels = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    labels[0, 0], labels[1, 1] = -1, 255
    counted = (labels >= 0) & (labels < 3)
    expected = F.cross_entropy(y.movedim(1, -1)[counted], labels[counted])
    given = y if axis == 1 else y.movedim(1, -1)
    spec = (OutputSpec(kind="class_map", axis=axis),)
    torch.testing.assert_close(label_loss((given,), (given,), labels, specs=spec), expected)
    nothing = label_loss((given.requires_grad_(),), (given,), torch.full_like(labels, -1), specs=spec)
    assert float(nothing.detach()) == 0
    assert label_loss((given,), (given,), labels[:, :2], specs=spec) is None


def test_independent_events_have_binary_cross_entropy_whether_sigmoid_was_applied_or_not():
    y, events = 3 * scores(5, 7), (scores(5, 7, seed=1) > 0).float()
    expected = F.binary_cross_entropy_with_logits(y, events, reduction="sum") / 5
    torch.testing.assert_close(label_loss((y,), (y,), events, specs=specs("independent")), expected)
    p = y.sigmoid()
    torch.testing.assert_close(label_loss((p,), (p,), events.long(), specs=specs("independent")), expected)
    for misfit in (events[:, :3], torch.tensor([0, 1, 2, 3, 4]), 2 * events):
        assert label_loss((p,), (p,), misfit, specs=specs("independent")) is None


@pytest.mark.parametrize("kind", ["values", "embedding", "state", "ignore"])
def test_other_kinds_have_no_loss_by_labels(kind):
    y = scores(6, 4)
    assert label_loss((y,), (y,), torch.tensor([0, 1, 2, 3, 0, 1]), specs=specs(kind)) is None


def test_targets_that_are_no_labels_and_two_outputs_of_scores_are_left_alone():
    y, labels = scores(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    for targets in (labels.float(), {"boxes": labels}, [labels] * 6, scores(6, 4)):
        assert label_loss((y,), (y,), targets, specs=specs("logits")) is None
    assert label_loss((y, y), (y, y), labels, specs=specs("logits", "logits")) is None
    assert label_loss((y, y), (y, y), labels, specs=specs("embedding", "logits")) is not None


def test_a_label_beyond_the_classes_is_named():
    y = scores(2, 4)
    with pytest.raises(ConfigError, match="my set: labels from 0 to 4; class indices must be 0 … 3"):
        label_loss((y,), (y,), torch.tensor([0, 4]), specs=specs("logits"), source="my set")


def test_labels_that_the_dense_network_does_not_know_teach_nothing():
    y = 5 * scores(200, 4)
    known, others = y.argmax(1), (y.argmax(1) + 1) % 4
    assert labels_inform((y,), known, specs=specs("logits"))
    assert not labels_inform((y,), others, specs=specs("logits"))
    assert choose_target_loss((y,), known, specs("logits"), "a set")[0] is not None
    assert choose_target_loss((y,), others, specs("logits"), "a set") == (
        None,
        "a set: labels were not used, since the dense network predicts them worse than a guess does",
    )
    p, events = y.sigmoid(), (y > 0).float()
    assert labels_inform((p,), events, specs=specs("independent"))
    assert not labels_inform((p,), 1 - events, specs=specs("independent"))


def test_a_network_that_answers_as_its_teacher_does_has_no_loss_but_that_by_labels():
    y, labels = scores(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    loss, _ = choose_target_loss((y,), y.argmax(1), specs("logits"), "a set")
    about = {"specs": specs("logits"), "temperature": 4.0, "distill": 0.9}
    assert float(distillation_loss((y,), (y,), labels, target_loss=None, **about)) == pytest.approx(0, abs=1e-6)
    found = distillation_loss((y,), (y,), labels, target_loss=loss, **about)
    assert float(found) == pytest.approx(0.1 * float(F.cross_entropy(y, labels)), rel=1e-4)
    assert math.isclose(float(distillation_loss((y,), (y,), None, target_loss=loss, **about)), 0, abs_tol=1e-6)
