"""Each kind of output: how much is kept, and the loss of distillation."""

import pytest
import torch
from torch.nn import functional as F

from edgecompress.errors import ParityError
from edgecompress.network.channels import choose_channel_axis
from edgecompress.network.fidelity import describe_loss, measure_fidelity
from edgecompress.network.output_kinds import KINDS
from edgecompress.network.outputs import divergence
from edgecompress.network.parity import measure_parity, worst_sqnr_db
from edgecompress.records.outputs import OUTPUT_KINDS, OutputSpec


def spec(kind, **given):
    return OutputSpec(kind=kind, name="y", **given)


def kept(kind, output, reference, **given):
    return measure_fidelity((output,), (reference,), (spec(kind, **given),)).outputs[0]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_kind_has_a_row():
    assert set(KINDS) == set(OUTPUT_KINDS)


REFERENCES = {
    "logits": draw(64, 5),
    "probabilities": draw(64, 5).softmax(1),
    "independent": draw(64, 12).sigmoid(),
    "class_map": draw(8, 4, 6, 6),
    "classes": torch.randint(5, (8, 6, 6), generator=torch.Generator().manual_seed(0)),
    "values": draw(64, 3),
    "embedding": F.normalize(draw(64, 16)),
    "state": draw(64, 8),
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_an_equal_output_is_kept_whole_and_a_permuted_one_is_not(kind):
    reference = REFERENCES[kind]
    assert kept(kind, reference, reference).kept == pytest.approx(1, abs=1e-6)
    permuted = reference.roll(1, 0 if kind == "classes" else 1)
    assert kept(kind, permuted, reference).kept < KINDS[kind].min_kept


@pytest.mark.parametrize("kind", [k for k in REFERENCES if k != "classes"])
def test_the_divergence_is_zero_at_the_teacher_and_has_a_gradient_elsewhere(kind):
    reference = REFERENCES[kind]
    assert float(divergence((reference,), (reference,), specs=(spec(kind),))) == pytest.approx(0, abs=1e-5)
    student = (0.8 * reference + 0.2 * reference.roll(1, 1)).requires_grad_()
    loss = divergence((student,), (reference,), specs=(spec(kind),))
    loss.backward()
    assert float(loss.detach()) > 1e-4
    assert float(student.grad.abs().max()) > 0


def test_probabilities_are_distilled_through_their_logarithm():
    logits, wanted = draw(16, 4), draw(16, 4, seed=1)
    direct = divergence((logits,), (wanted,), specs=(spec("logits"),), temperature=4.0)
    behind = divergence((logits.softmax(1),), (wanted.softmax(1),), specs=(spec("probabilities"),), temperature=4.0)
    assert float(behind) == pytest.approx(float(direct), rel=1e-3)


def test_a_bad_channel_of_values_is_found_and_named():
    reference = torch.cat([draw(32, 4, 20) * 300 + 320, draw(32, 6, 20).sigmoid()], 1)  # boxes in pixels beside scores
    output = reference.clone()
    output[:, 7] = 0
    found = kept("values", output, reference)
    assert (found.channel_axis, found.channel) == (1, 7)
    assert found.kept < 0.1
    transposed = kept("values", output.transpose(1, 2), reference.transpose(1, 2))
    assert (transposed.channel_axis, transposed.channel) == (2, 7)
    assert transposed.kept == pytest.approx(found.kept)


def test_columns_of_an_image_are_no_channels():
    blob = torch.exp(-(torch.linspace(-3, 3, 32).square()[:, None] + torch.linspace(-3, 3, 32).square()[None]))
    assert choose_channel_axis(blob.expand(4, 1, 32, 32)) is None


@pytest.mark.parametrize(("cells", "axis"), [((200, 4), 1), ((4, 200), 2)], ids=["(cells, 4)", "(4, cells)"])
def test_cells_of_boxes_are_no_channels(cells, axis):
    left = torch.linspace(1, 600, 200)  # in pixels, so cells on the left have small coordinates
    boxes = torch.stack([left, left / 2 + 150, left + 30, left / 2 + 190], 1) + draw(16, 200, 4)
    boxes = boxes if cells[1] == 4 else boxes.transpose(1, 2)
    assert choose_channel_axis(boxes) != axis
    scores = draw(16, 200, 1).sigmoid() if cells[1] == 4 else draw(16, 1, 200).sigmoid()
    assert choose_channel_axis(torch.cat([boxes, scores], 3 - axis)) == 3 - axis


def test_moments_of_a_wave_are_no_channels():
    wave = draw(8, 1, 400)
    wave[..., :200] *= 0.01  # a silent start
    assert choose_channel_axis(wave) is None


def test_twenty_decibels_of_values_are_nine_tenths():
    reference = draw(10_000, 1)
    noise = 0.1 * draw(10_000, 1, seed=1)
    found = kept("values", reference + noise, reference)
    assert found.kept == pytest.approx(0.9, abs=0.01)
    assert found.sqnr_db == pytest.approx(20, abs=0.2)


def test_a_level_does_not_hide_the_loss_of_what_varies():
    reference = 0.5 + 0.05 * draw(1000, 1)
    assert kept("values", torch.full_like(reference, 0.5), reference).kept < 0.1


def test_a_tolerance_counts_the_values_within_it():
    reference = draw(1000, 2)
    output = reference.clone()
    output[:100] += 1.0
    assert kept("values", output, reference, tolerance=0.5).kept == pytest.approx(0.9)


def test_a_scale_divides_the_error():
    reference = draw(1000, 1)
    assert kept("values", reference + 0.5, reference, scale=10.0).kept == pytest.approx(0.95, abs=1e-6)


def test_an_embedding_is_judged_by_neighbours_and_cosine():
    reference = draw(200, 32)
    noisy = reference + 2 * draw(200, 32, seed=1)
    found = kept("embedding", noisy, reference)
    assert found.neighbours < 0.6
    assert found.cosine < 0.6
    assert found.kept < 0.2
    assert kept("embedding", 3 * reference, reference).kept == pytest.approx(1)  # only directions count


def test_independent_logits_are_recognised_by_their_reference():
    reference = draw(64, 12)
    assert kept("independent", reference, reference).kept == 1
    assert kept("independent", -reference, reference).kept < 0.8


def test_probabilities_near_zero_answer_nothing():
    reference = torch.full((64, 360), 1e-4)
    reference[:, 5] = 0.9
    moved = reference.roll(20, 1)
    assert kept("independent", reference + 1e-3, reference).kept > 0.99
    assert kept("independent", moved, reference).kept < 0.5


def test_an_ignored_output_is_left_out_and_nan_keeps_nothing():
    reference = draw(8, 3)
    assert measure_fidelity((reference * torch.nan,), (reference,), (spec("ignore"),)).outputs == ()
    lost = measure_fidelity((reference * torch.nan,), (reference,), (spec("values"),))
    assert lost.outputs[0].kept == 0
    assert "y (values) keeps 0.0%" in describe_loss(lost)


def test_another_bound_may_be_asked_for():
    reference = draw(64, 5)
    output = reference + draw(64, 5, seed=1)
    assert not measure_fidelity((output,), (reference,), (spec("logits"),)).holds
    assert measure_fidelity((output,), (reference,), (spec("logits"),), min_kept=0.1).holds


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ParityError, match="shape"):
        measure_fidelity((draw(4, 3),), (draw(4, 2),), (spec("values"),))
    with pytest.raises(ParityError, match="dense network's own outputs"):
        measure_fidelity((draw(4, 3),), (draw(4, 3) / 0,), (spec("values"),))


@pytest.mark.parametrize("kind", ["logits", "probabilities", "independent", "class_map", "values", "embedding", "state"])
def test_an_output_with_a_channel_that_became_constant_keeps_nothing_though_the_answers_agree(kind):
    reference = F.one_hot(torch.arange(60) % 3, 3) * 10.0 - 5 + 0.1 * draw(60, 3)
    output = reference.clone()
    output[:, 1] = 0  # the largest where it was the largest, for the others are below zero there
    lost = measure_fidelity((output,), (reference,), (spec(kind),))
    assert lost.outputs[0].kept == 0
    assert lost.outputs[0].channel == 1
    assert measure_parity((output,), (reference,), (spec(kind),)).worst_channel == "channel 1 of axis 1 of y, which is constant in the file"


def test_a_channel_that_hardly_varies_may_become_constant():
    reference = torch.cat([10 * draw(60, 2), 0.1 * draw(60, 1) - 30], 1)
    output = reference.clone()
    output[:, 2] = -30
    assert measure_fidelity((output,), (reference,), (spec("logits"),)).outputs[0].kept == 1
    assert measure_parity((output,), (reference,), (spec("logits"),)).values_sqnr_db is None


def test_integers_have_no_noise():
    numbers, classes = draw(20, 4), torch.arange(20)
    assert worst_sqnr_db((numbers, classes + 1), (numbers, classes)) == 200
    assert worst_sqnr_db((classes + 1,), (classes,)) < 40
