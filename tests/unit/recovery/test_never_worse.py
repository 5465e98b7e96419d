"""Training never makes a network worse: the best epoch is kept, the network before training included, and rates that harm are refused."""

import msgspec
import pytest
import torch
from support.networks import Net, digits, trained
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from edgecompress.data import Samples
from edgecompress.data.metrics import make_metric
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations.decompose import decompose
from edgecompress.network.analyze import analyze
from edgecompress.network.weights import fingerprint
from edgecompress.planning.plan import plan
from edgecompress.recovery import distillation
from edgecompress.recovery import finetune as finetuning
from edgecompress.recovery.finetune import FinetuneOptions, finetune

IMAGE = (torch.zeros(1, 1, 8, 8),)
REPAIR = FinetuneOptions(epochs=0)
SHORT = FinetuneOptions(epochs=3, samples=256, batch_size=32)
RUINOUS = 0.1  # a learning rate; above 0.15 the loss is no number


class Mobile(nn.Module):
    """Inverted bottlenecks with a BatchNorm after each convolution, as in MobileNetV2."""

    def __init__(self, width=8, blocks=2):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())
        self.blocks = nn.ModuleList(self.make_block(width) for _ in range(blocks))
        self.head = nn.Linear(4 * width, 10)

    @staticmethod
    def make_block(width):
        wide = 4 * width
        return nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


def compress(dense, ratio):
    return decompose(dense, plan(dense, analyze(dense, IMAGE, measure=False), macs_ratio=ratio, rank_multiple=2))[0].eval()


@pytest.fixture(scope="module")
def mobile():
    """Return a MobileNet-like network that knows the digits, and the same network after decomposition."""
    dense = trained(Mobile())
    return dense, compress(dense, 0.5)


@pytest.fixture(scope="module")
def net():
    dense = trained(Net())
    return dense, compress(dense, 0.3)


def others(n, kind):
    """Return images unlike the digits with labels of another kind."""
    generator = torch.Generator().manual_seed(1)
    inputs = {"inverted": (1 - digits()[0].inputs[:n]).roll(3, -1), "noise": torch.rand(n, 1, 8, 8, generator=generator)}[kind]
    return Samples(inputs, torch.randint(10, (n,), generator=generator), source=f"{kind} images")


@pytest.mark.parametrize("kind", ["inverted", "noise"])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_few_hundred_images_of_other_classes_leave_no_less_than_the_repaired_network(mobile, kind, labelled):
    dense, compact = mobile
    held_out = digits()[1]
    judged_on = held_out if labelled else Samples(held_out.inputs, None, source="digits without labels")
    call = {"teacher": dense, "eval_data": judged_on}
    repaired, start = finetune(compact, others(300, kind), **call, options=REPAIR)
    tuned, result = finetune(compact, others(300, kind), **call, options=msgspec.structs.replace(SHORT, epochs=6))
    name = "top-1" if labelled else "divergence"
    worse = result.metrics[name] < start.metrics[name] if labelled else result.metrics[name] > start.metrics[name]
    assert not worse
    if labelled:
        assert result.top1 >= start.top1
        assert "labels were not used, since the dense network predicts them worse than a guess does" in result.note
    if result.best_epoch == 0:
        assert fingerprint(tuned) == fingerprint(repaired)
        assert "no epoch was better than the network before training" in result.note


def test_default_options_on_little_data_end_above_the_repaired_network(mobile):
    dense, compact = mobile
    train, held_out = digits()
    few = Samples(train.inputs[:200], train.labels[:200], source="few digits")
    _, result = finetune(compact, few, teacher=dense, eval_data=held_out)
    assert result.top1 > result.before_top1 + 0.2
    assert result.best_epoch > 0


@pytest.mark.parametrize("with_eval", [True, False])
def test_a_ruinous_learning_rate_returns_the_network_before_training(net, with_eval):
    dense, compact = net
    train, held_out = digits()
    repaired, _ = finetune(compact, train, teacher=dense, options=REPAIR)
    options = msgspec.structs.replace(SHORT, learning_rate=RUINOUS)
    tuned, result = finetune(compact, train, teacher=dense, eval_data=held_out if with_eval else None, options=options)
    assert (result.best_epoch, result.learning_rate, result.rate_reason) == (0, RUINOUS, "as asked")
    assert fingerprint(tuned) == fingerprint(repaired)
    assert result.top1 == result.before_top1
    assert result.epochs[-1].divergence > result.epochs[0].divergence


def test_a_usual_rate_that_harms_is_lowered(net, monkeypatch):
    dense, compact = net
    monkeypatch.setitem(finetuning.USUAL_RATE, "sgd", 3.0)
    _, result = finetune(compact, digits()[0], teacher=dense, options=SHORT)
    assert result.learning_rate in (0.9, 0.3, 0.09, 0.03)
    assert result.rate_reason.startswith("the highest that improved the network in a short test; 3")
    assert result.best_epoch > 0
    assert max(epoch.learning_rate for epoch in result.epochs) <= result.learning_rate


@pytest.mark.parametrize("killed", [False, True])
def test_a_loss_that_is_not_finite_ends_training_at_a_rate_that_nobody_asked_for(net, monkeypatch, tmp_path, killed):
    """What was reached before is kept; a run that was killed ends in the same way."""
    dense, compact = net
    data = digits()[0]
    monkeypatch.setattr(distillation, "find_learning_rate", lambda *_: (0.05, "for this test"))
    bad = finetuning.run_epochs.__globals__
    steps, usual = [], bad["distillation_loss"]

    def spoil_in_epoch_3(*args, **options):
        steps.append(1)
        return usual(*args, **options) * (float("nan") if len(steps) > 16 else 1.0)

    monkeypatch.setitem(bad, "distillation_loss", spoil_in_epoch_3)
    path = tmp_path / "checkpoint.safetensors"
    for _ in range(2 if killed else 1):
        model, result = finetune(compact, data, teacher=dense, options=SHORT, checkpoint_path=path)
    assert [epoch.epoch for epoch in result.epochs] == [0, 1, 2]
    assert result.note.startswith("fine-tuning: the loss became nan in epoch 3/3, which ended it")
    repaired, _ = finetune(compact, data, teacher=dense, options=REPAIR)
    assert (fingerprint(model) == fingerprint(repaired)) == (result.best_epoch == 0)


def test_the_test_of_a_rate_leaves_no_trace(net):
    """The usual rate passes the test, and training with it is what it would have been without the test."""
    dense, compact = net
    found, result = finetune(compact, digits()[0], teacher=dense, options=SHORT)
    asked, _ = finetune(compact, digits()[0], teacher=dense, options=msgspec.structs.replace(SHORT, learning_rate=0.01))
    assert (result.learning_rate, result.rate_reason) == (0.01, "the usual one, which improved the network in a short test")
    assert fingerprint(found) == fingerprint(asked)


def test_statistics_that_did_worse_after_re_estimation_are_put_back(net, monkeypatch):
    dense, compact = net

    def spoil(model, inputs, **_):
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.add_(3.0)

    monkeypatch.setattr(distillation, "reestimate_batchnorm", spoil)
    for held_out in (None, digits()[1]):
        model, result = finetune(compact, digits()[0], teacher=dense, eval_data=held_out, options=REPAIR)
        assert fingerprint(model) == fingerprint(compact)
        assert result.note == "re-estimated BatchNorm statistics did worse than the old ones, which are kept"


class Spy(Dataset):
    """Counts how often each sample is read."""

    source = "spied digits"

    def __init__(self, n):
        self.samples = digits()[0]
        self.reads = [0] * n

    def __len__(self):
        return len(self.reads)

    def __getitem__(self, index):
        self.reads[index] += 1
        return self.samples[index]


def test_a_part_of_the_training_data_is_never_trained_on(net):
    dense, compact = net
    reads = []
    for epochs in (1, 3):
        data = Spy(400)
        _, result = finetune(compact, data, teacher=dense, example_inputs=IMAGE, options=FinetuneOptions(epochs=epochs, batch_size=32))
        reads.append(data.reads)
    assert sum(few == many for few, many in zip(*reads, strict=True)) == 50  # read before training, and in no epoch
    assert result.validation == "top-1, then divergence from the dense network on 50 training samples that were held out"
    assert result.train_samples == 400


def test_too_few_samples_to_hold_any_out_are_told(net):
    dense, compact = net
    train, held_out = digits()
    few = Samples(train.inputs[:30], train.labels[:30], source="very few digits")
    options = msgspec.structs.replace(SHORT, epochs=1)
    _, alone = finetune(compact, few, teacher=dense, options=options)
    assert alone.validation.endswith("on 30 samples that are trained on, since 30 training samples are too few to hold any out")
    _, beside = finetune(compact, few, teacher=dense, eval_data=held_out, options=options)
    assert beside.validation.endswith("on 397 evaluation samples, since 30 training samples are too few to hold any out")


def test_the_users_metric_chooses_the_epoch_and_its_direction_counts(net):
    dense, compact = net
    train, held_out = digits()
    for name, better in (("accuracy", True), ("error", False)):

        def judge(outputs, targets, name=name):
            right = float((outputs.argmax(1) == targets).double().mean())
            return {name: right if name == "accuracy" else 1 - right}

        _, result = finetune(compact, train, teacher=dense, eval_data=held_out, metric=make_metric(judge), options=SHORT)
        assert list(result.metrics) == [name]
        assert (result.metrics[name] > result.before_metrics[name]) == better
        assert result.validation.startswith(f"{name}, then divergence")
        assert result.top1 is None


def test_the_users_loss_replaces_the_one_by_labels(net):
    dense, compact = net
    seen = []

    def loss(outputs, targets):
        seen.append((outputs.shape, targets.dtype))
        return F.cross_entropy(outputs, targets)

    options = msgspec.structs.replace(SHORT, epochs=1)
    own, _ = finetune(compact, digits()[0], teacher=dense, loss=loss, options=options)
    usual, _ = finetune(compact, digits()[0], teacher=dense, options=options)
    assert (torch.Size([32, 10]), torch.int64) in seen
    for a, b in zip(own.parameters(), usual.parameters(), strict=True):  # clipping of gradients aside, the same loss
        torch.testing.assert_close(a, b, rtol=0.2, atol=0.05)
    unlabelled = Samples(digits()[0].inputs, None, source="digits without labels")
    _, result = finetune(compact, unlabelled, teacher=dense, loss=loss, options=options)
    assert "loss() was not used, since the training data have no targets" in result.note


def no_gradient(outputs, targets):
    return (outputs.argmax(1) != targets).float().mean()


def not_a_number(outputs, targets):
    return outputs.sum() * float("nan")


def no_scalar(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def fails(outputs, targets):
    return outputs["scores"].sum()


@pytest.mark.parametrize(
    ("loss", "fact"),
    [
        (no_gradient, "has no gradient"),
        (not_a_number, "is nan"),
        (no_scalar, r"returns a tensor of shape \(8,\)"),
        (fails, "fails with"),
    ],
)
def test_a_faulty_loss_is_refused_in_one_line_before_training(net, loss, fact):
    dense, compact = net
    titles = []

    def track(iterable, description, total=None):
        titles.append(description)
        return iter(iterable)

    with pytest.raises(ConfigError, match=rf"test_never_worse.py:\d+: loss\(\):? {fact}.*; ") as caught:
        finetune(compact, digits()[0], teacher=dense, loss=loss, options=SHORT, track=track)
    assert "\n" not in str(caught.value)
    assert titles == []


class Auxiliary(nn.Module):
    """A classifier with a head that only training mode returns, as GoogLeNet has."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head, self.aux = nn.Linear(16, 10), nn.Linear(16, 10)

    def forward(self, x):
        features = self.body(x)
        return (self.head(features), self.aux(features)) if self.training else self.head(features)


def test_a_network_with_other_outputs_in_training_mode_learns_those_of_eval_mode():
    torch.manual_seed(0)
    teacher, student = Auxiliary(), Auxiliary()
    few = Samples(digits()[0].inputs[:200], None, source="few digits")
    model, result = finetune(student, few, teacher=teacher, options=msgspec.structs.replace(SHORT, learning_rate=0.1))
    assert result.epochs[-1].divergence < result.epochs[0].divergence / 2
    assert bool((model.body[2].running_mean != student.body[2].running_mean).any())  # BatchNorm was in training mode


def test_a_module_whose_leaves_return_other_outputs_in_training_mode_is_refused():
    class Leaf(nn.Module):
        def forward(self, x):
            return (x, x) if self.training else x

    few = Samples(torch.randn(64, 6), None, source="noise")
    net = nn.Sequential(nn.Linear(6, 4), Leaf())
    with pytest.raises(UnsupportedError, match="returns other outputs in training mode; let forward return those of eval mode"):
        finetune(net, few, teacher=net, options=SHORT)
