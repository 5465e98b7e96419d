"""Fine-tuning on real digits recovers accuracy, is deterministic, and resumes a killed run bit for bit."""

import copy
import re

import msgspec
import pytest
import torch
from support.networks import Net, digits, trained
from torch import nn
from torch.utils.data import TensorDataset

from edgecompress.data import Samples
from edgecompress.errors import ConfigError
from edgecompress.factorizations.decompose import decompose
from edgecompress.network.analyze import analyze
from edgecompress.network.batchnorm import record_statistics, reestimate_batchnorm
from edgecompress.network.weights import fingerprint
from edgecompress.planning.plan import plan
from edgecompress.progress import track_silently
from edgecompress.recovery.evaluation import choose_eval_batch, measure_top1
from edgecompress.recovery.finetune import FinetuneOptions, finetune
from edgecompress.recovery.schedule import learning_rate_fraction

IMAGE = (torch.zeros(1, 1, 8, 8),)
SHORT = FinetuneOptions(epochs=3, samples=256, batch_size=32)


@pytest.fixture(scope="module")
def dense():
    return trained(Net())


@pytest.fixture(scope="module")
def compact(dense):
    made = plan(dense, analyze(dense, IMAGE, measure=False), macs_ratio=0.3, rank_multiple=2)
    return decompose(dense, made)[0].eval()


class KilledError(Exception):
    """Stands for a kill in the middle of an epoch."""


def kill_in(title):
    """Return a track that raises after two batches of the loop named `title`."""

    def track(iterable, description, total=None):
        for i, item in enumerate(iterable):
            if description == title and i == 2:
                raise KilledError
            yield item

    return track


def test_accuracy_is_recovered(dense, compact):
    train, held_out = digits()
    options = FinetuneOptions(epochs=6, samples=1400, learning_rate=0.02)
    model, result = finetune(compact, train, teacher=dense, eval_data=held_out, options=options)
    assert result.dense_top1 == pytest.approx(measure_top1(dense, held_out))
    assert result.dense_top1 > 0.9
    assert measure_top1(copy.deepcopy(compact), held_out) < result.dense_top1 - 0.1  # the decomposition did hurt
    assert result.top1 >= result.dense_top1 - 0.02
    assert result.top1 == pytest.approx(measure_top1(model, held_out))
    assert not model.training
    assert [e.epoch for e in result.epochs] == [0, 1, 2, 3, 4, 5, 6]
    assert (result.train_samples, result.eval_samples, result.data) == (1400, 397, "digits, train")


def test_batchnorm_reestimation_alone_helps(dense):
    train, held_out = digits()
    hurt = decompose(dense, plan(dense, analyze(dense, IMAGE, measure=False), macs_ratio=0.25, rank_multiple=2))[0].eval()
    _, result = finetune(hurt, train, teacher=dense, eval_data=held_out, options=FinetuneOptions(epochs=0))
    assert result.top1 == result.before_top1
    assert result.top1 > measure_top1(copy.deepcopy(hurt), held_out) + 0.1


def test_a_dense_model_keeps_its_statistics(dense):
    """No layer was replaced, so that no statistics are re-estimated."""
    model, _ = finetune(dense, digits()[0], teacher=dense, options=FinetuneOptions(epochs=0))
    assert fingerprint(model) == fingerprint(dense)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_same_seed_gives_the_same_bits_and_the_callers_generator_stays_unchanged(dense, compact, optimizer):
    options = msgspec.structs.replace(SHORT, optimizer=optimizer, epochs=2)
    prints = []
    for noise, seed in ((1, 0), (7, 0), (1, 5)):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        model, _ = finetune(compact, digits()[0], teacher=dense, options=msgspec.structs.replace(options, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is left alone
        prints.append(fingerprint(model))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_killed_run_resumes_bit_for_bit(dense, compact, tmp_path, optimizer, epoch):
    train, held_out = digits()
    options = msgspec.structs.replace(SHORT, optimizer=optimizer)
    call = {"teacher": dense, "eval_data": held_out, "options": options}
    whole, expected = finetune(compact, train, **call)
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        finetune(compact, train, **call, checkpoint_path=path, track=kill_in(f"epoch {epoch}/3"))
    assert path.exists() == (epoch > 1)
    seen = []

    def track(iterable, description, total=None):
        seen.append(description)
        return track_silently(iterable, description, total)

    resumed, result = finetune(compact, train, **call, checkpoint_path=path, track=track)
    assert fingerprint(resumed) == fingerprint(whole)
    assert [(e.loss, e.top1, e.learning_rate) for e in result.epochs] == [(e.loss, e.top1, e.learning_rate) for e in expected.epochs]
    assert [d for d in seen if d.startswith("epoch")] == [f"epoch {i}/3" for i in range(epoch, 4)]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("change", ["options", "model", "data", "labels"])
def test_a_checkpoint_of_another_start_is_not_continued(dense, compact, tmp_path, change):
    train, _ = digits()
    path = tmp_path / "checkpoint.safetensors"
    finetune(compact, train, teacher=dense, options=SHORT, checkpoint_path=path)
    model, data, options = copy.deepcopy(compact), train, SHORT
    if change == "options":
        options = msgspec.structs.replace(SHORT, learning_rate=0.01)
    elif change == "model":
        with torch.no_grad():
            model.head.bias.add_(1e-3) if isinstance(model.head, nn.Linear) else model.head[-1].bias.add_(1e-3)
    elif change == "data":
        data = Samples(train.inputs[:700], train.labels[:700], source="half of the digits")
    else:
        data = Samples(train.inputs, train.labels.roll(1), source=train.source)
    fresh, _ = finetune(model, data, teacher=dense, options=options)
    again, _ = finetune(model, data, teacher=dense, options=options, checkpoint_path=path)
    assert fingerprint(again) == fingerprint(fresh)


def test_a_finished_checkpoint_is_not_trained_further(dense, compact, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    first, _ = finetune(compact, digits()[0], teacher=dense, options=SHORT, checkpoint_path=path)
    again, result = finetune(compact, digits()[0], teacher=dense, options=SHORT, checkpoint_path=path, track=kill_in("epoch 3/3"))
    assert fingerprint(again) == fingerprint(first)
    assert len(result.epochs) == 4


def test_a_damaged_checkpoint_is_refused(dense, compact, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))}: damaged checkpoint .*; remove it and run the step again"):
        finetune(compact, digits()[0], teacher=dense, options=SHORT, checkpoint_path=path)


def test_the_callers_models_stay_unchanged(dense, compact):
    before = fingerprint(dense), fingerprint(compact)
    student, teacher = compact.train(), dense.train()
    finetune(student, digits()[0], teacher=teacher, options=msgspec.structs.replace(SHORT, epochs=1))
    assert (fingerprint(dense), fingerprint(compact)) == before
    assert student.training
    assert teacher.training
    assert all(p.grad is None for p in (*student.parameters(), *teacher.parameters()))
    student.eval(), teacher.eval()


def test_without_labels_the_model_learns_from_the_teacher(dense, compact):
    train, held_out = digits()
    unlabelled = Samples(train.inputs, None, source="digits without labels")
    _, result = finetune(compact, unlabelled, teacher=dense, eval_data=held_out, options=FinetuneOptions(epochs=3, samples=1400))
    assert result.top1 - result.before_top1 > 0.5 * (result.dense_top1 - result.before_top1) > 0  # most of what was lost is back
    _, silent_result = finetune(compact, unlabelled, teacher=dense, eval_data=unlabelled, options=msgspec.structs.replace(SHORT, epochs=1))
    assert (silent_result.dense_top1, silent_result.top1) == (None, None)


def test_items_with_one_element_are_inputs(dense, compact):
    data = TensorDataset(digits()[0].inputs[:100])
    _, result = finetune(compact, data, teacher=dense, options=msgspec.structs.replace(SHORT, epochs=1))
    assert result.epochs[1].loss > 0


@pytest.mark.parametrize("n", [2, 33, 65])
def test_a_last_batch_of_one_does_not_break_batchnorm(n):
    torch.manual_seed(0)
    net = lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))  # noqa: E731
    data = Samples(torch.randn(n, 6), None, source="noise")
    _, result = finetune(net(), data, teacher=net(), options=FinetuneOptions(epochs=1, batch_size=32))
    assert len(result.epochs) == 2


def test_a_model_with_several_outputs_learns_all_of_them():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 2)

        def forward(self, x):
            return self.a(x), self.b(x)

    torch.manual_seed(0)
    teacher, data = Two(), TensorDataset(torch.randn(64, 6), torch.zeros(64, dtype=torch.long))
    _, result = finetune(Two(), data, teacher=teacher, eval_data=data, options=FinetuneOptions(epochs=8, batch_size=16, learning_rate=0.1))
    assert result.epochs[-1].loss < result.epochs[1].loss / 2
    assert result.top1 is None


def test_nothing_to_train_needs_no_data(dense):
    model, result = finetune(dense, None, teacher=dense, options=FinetuneOptions(epochs=0))
    assert fingerprint(model) == fingerprint(dense)
    assert (result.train_samples, result.data) == (0, "no data")


def test_a_loss_that_is_not_finite_is_refused_and_leaves_the_last_good_checkpoint(dense, compact, tmp_path):
    options = msgspec.structs.replace(SHORT, learning_rate=1e30)
    with pytest.raises(ConfigError, match=r"fine-tuning: the loss became \w+ in epoch \d/3; lower --learning-rate"):
        finetune(compact, digits()[0], teacher=dense, options=options, checkpoint_path=tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; choose from sgd, adamw"),
        ({"epochs": -1}, "epochs must be ≥ 0"),
        ({"samples": 1}, "samples ≥ 2"),
        ({"batch_size": 1}, "batch size ≥ 2"),
        ({"learning_rate": -1.0}, "learning rate ≥ 0"),
        ({"learning_rate": float("nan")}, "learning rate ≥ 0"),
    ],
)
def test_options_out_of_range_are_refused(dense, compact, change, message):
    with pytest.raises(ConfigError, match=message):
        finetune(compact, digits()[0], teacher=dense, options=msgspec.structs.replace(SHORT, **change))


@pytest.mark.parametrize("data", [None, Samples(torch.zeros(1, 1, 8, 8), None, source="one"), []])
def test_too_little_data_is_refused(dense, compact, data):
    with pytest.raises(ConfigError, match=r"fewer than two training samples; give train_data\(\) or --data"):
        finetune(compact, data, teacher=dense, options=SHORT)


@pytest.mark.parametrize("label", [10, -1])
def test_a_label_beyond_the_classes_is_refused(dense, compact, label):
    data = Samples(digits()[0].inputs[:64], torch.full((64,), label), source="odd labels")
    for call in (lambda: finetune(compact, data, teacher=dense, options=SHORT), lambda: measure_top1(copy.deepcopy(dense), data)):
        with pytest.raises(ConfigError, match=r"odd labels: labels from .* class indices must be 0 … 9"):
            call()


def test_a_run_that_is_killed_after_its_best_epoch_resumes_bit_for_bit(dense, compact, tmp_path):
    """The best state is in the checkpoint, together with the rate that was found."""
    options = msgspec.structs.replace(SHORT, epochs=4, learning_rate=0.06)
    whole, expected = finetune(compact, digits()[0], teacher=dense, options=options)
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        finetune(compact, digits()[0], teacher=dense, options=options, checkpoint_path=path, track=kill_in("epoch 4/4"))
    resumed, result = finetune(compact, digits()[0], teacher=dense, options=options, checkpoint_path=path)
    assert fingerprint(resumed) == fingerprint(whole)
    timeless = [
        msgspec.structs.replace(r, epochs=tuple(msgspec.structs.replace(e, seconds=0) for e in r.epochs)) for r in (result, expected)
    ]
    assert timeless[0] == timeless[1]
    assert result.best_epoch < 3


def test_schedule_warms_up_and_ends_at_zero():
    points = [learning_rate_fraction(i / 1000) for i in range(1001)]
    assert points[0] == 0
    assert max(points) == pytest.approx(1)
    assert points[-1] == pytest.approx(0)
    assert points.index(max(points)) == 150


def test_reestimation_finds_the_statistics_of_the_data_and_restores_the_modes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5)).train()
    model[1].eval()
    x = torch.randn(400, 4) * 3 + 2
    reestimate_batchnorm(model, ((part,) for part in x.split(100)))
    torch.testing.assert_close(model[0].running_mean, x.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model[0].running_var, torch.stack([b.var(0) for b in x.split(100)]).mean(0), rtol=1e-4, atol=1e-4)
    assert (model[0].momentum, model.training, model[0].training, model[1].training) == (0.3, True, True, False)


def zeros_only():
    """Return a few images of zeros, unlike all ten digits together."""
    train = digits()[0]
    return [(train.inputs[train.labels == 0][:32],)]


def test_statistics_stay_unchanged_where_no_layer_was_replaced(dense):
    model = copy.deepcopy(dense)
    reestimate_batchnorm(model, zeros_only(), since=record_statistics(dense, zeros_only()))
    for name, buffer in dense.named_buffers():
        if "running" in name:
            assert torch.equal(model.get_buffer(name), buffer), name


def test_inputs_unlike_the_training_data_correct_the_shift_of_replaced_layers(dense):
    hurt = decompose(dense, plan(dense, analyze(dense, IMAGE, measure=False), macs_ratio=0.25, rank_multiple=2))[0].eval()
    plainly, moved = copy.deepcopy(hurt), copy.deepcopy(hurt)
    reestimate_batchnorm(plainly, zeros_only())
    state = copy.deepcopy(dense.state_dict())
    reestimate_batchnorm(moved, zeros_only(), since=record_statistics(dense, zeros_only()))
    torch.testing.assert_close(dense.state_dict(), state, rtol=0, atol=0)
    found = {name: measure_top1(model, digits()[1]) for name, model in (("as it is", hurt), ("plainly", plainly), ("moved", moved))}
    assert found["moved"] > max(found["as it is"], found["plainly"]) + 0.05, found


def test_frozen_parameters_are_trained_in_the_copy():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).requires_grad_(False)
    data = Samples(torch.rand(32, 4), torch.arange(32) % 2, source="drawn")
    tuned, _ = finetune(net, data, teacher=net, options=FinetuneOptions(epochs=1, batch_size=8))
    assert all(p.requires_grad for p in tuned.parameters())
    assert not any(p.requires_grad for p in net.parameters())


def test_memory_bounds_the_samples_of_an_evaluation():
    assert choose_eval_batch((torch.zeros(1, 3, 32, 32),)) == 250
    assert choose_eval_batch((torch.zeros(1, 3, 256, 256),)) == 20
    assert choose_eval_batch((torch.zeros(1, 3, 2048, 2048),)) == 4
    assert choose_eval_batch(()) == 250
