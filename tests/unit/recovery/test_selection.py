"""The rule that chooses the best epoch, the schedule, and the split of the training data."""

import msgspec
import pytest

from edgecompress.records import Epoch, FinetuneResult, from_json, to_json
from edgecompress.records.metrics import MetricSpec
from edgecompress.recovery.schedule import WARM_UP, learning_rate_fraction
from edgecompress.recovery.selection import PATIENCE, Chooser, is_over
from edgecompress.recovery.validation import split_indices

TOP1 = MetricSpec(name="top-1", higher_is_better=True, is_accuracy=True)
ERROR = MetricSpec(name="mae", higher_is_better=False, is_accuracy=False)


def epoch(divergence, score=None, number=1, **metrics):
    return Epoch(epoch=number, loss=1.0, top1=None, learning_rate=0.1, seconds=1.0, metrics=metrics, score=score, divergence=divergence)


@pytest.mark.parametrize(
    ("metric", "new", "best", "preferred"),
    [
        (None, epoch(0.1), epoch(0.2), True),
        (None, epoch(0.2), epoch(0.2), False),
        (None, epoch(None), epoch(0.2), False),  # outputs that are not finite
        (None, epoch(9.0), epoch(None), True),
        (TOP1, epoch(0.2, 0.90), epoch(0.1, 0.80), True),  # a metric goes first,
        (TOP1, epoch(0.1, 0.80), epoch(0.2, 0.90), False),
        (TOP1, epoch(0.1, 0.89), epoch(0.2, 0.90), True),  # and what is chance in it does not count
        (TOP1, epoch(0.2, 0.90), epoch(0.1, 0.89), False),
        (TOP1, epoch(0.1, 0.995), epoch(0.2, 1.00), True),  # although no error of all samples has no variance
        (ERROR, epoch(0.2, 1.0), epoch(0.1, 1.1), True),
        (ERROR, epoch(0.1, 1.1), epoch(0.2, 1.0), False),
        (ERROR, epoch(0.1, 1.0), epoch(0.2, 1.0), True),
    ],
)
def test_the_better_epoch_is_preferred(metric, new, best, preferred):
    assert Chooser(metric, samples=200).prefers(new, best, [best]) is preferred


def test_many_small_losses_within_chance_do_not_add_up():
    chooser = Chooser(TOP1, samples=1000)
    seen = [epoch(1.0, 0.90, 0)]
    best = seen[0]
    for number in range(1, 30):
        new = epoch(1.0 - 0.01 * number, 0.90 - 0.002 * number, number)
        best = new if chooser.prefers(new, best, seen) else best
        seen.append(new)
    assert best.score > 0.88


def test_an_epoch_below_the_start_on_evaluation_data_is_never_preferred():
    chooser = Chooser(None, samples=100, evaluated=TOP1)
    start = epoch(0.5, **{"top-1": 0.80})
    below, equal = epoch(0.1, **{"top-1": 0.79}), epoch(0.2, **{"top-1": 0.80})
    assert not chooser.prefers(below, start, [start])
    assert chooser.prefers(equal, start, [start, below])
    assert chooser.is_worse(below, start)
    assert not chooser.is_worse(equal, start)


def test_training_ends_early_only_when_the_rate_is_nearly_spent():
    run = [epoch(1.0, number=n) for n in range(41)]
    ends = [n for n in range(1, 41) if is_over(run[: n + 1], 0, 40)]
    assert ends == list(range(ends[0], 41))
    assert 0.7 < ends[0] / 40 < 0.9
    assert learning_rate_fraction(ends[0] / 40) < 0.1
    assert not is_over(run[:40], 40 - PATIENCE, 40)  # there was an improvement of late
    assert not any(is_over(run[: n + 1], 0, 8) for n in range(1, 7))


def test_the_learning_rate_never_rises_again():
    points = [learning_rate_fraction(i / 1000) for i in range(1001)]
    assert all(b <= a for a, b in zip(points[int(1000 * WARM_UP) :], points[int(1000 * WARM_UP) + 1 :], strict=False))


@pytest.mark.parametrize(("total", "held_out"), [(2, 0), (39, 0), (40, 8), (100, 20), (300, 50), (1000, 50), (10_000, 500), (60_000, 1000)])
def test_a_part_of_the_samples_is_held_out(total, held_out):
    indices, others = split_indices(total, sample_bytes=1000)
    assert len(others) == held_out
    assert sorted([*indices, *others]) == list(range(total))
    assert split_indices(total, sample_bytes=1000) == (indices, others)


def test_samples_that_are_held_out_fit_the_memory():
    assert len(split_indices(10_000, sample_bytes=10**6)[1]) == 256
    assert len(split_indices(10_000, sample_bytes=10**9)[1]) == 8


def test_records_of_older_versions_are_read():
    """Epoch 0 had a loss of 0 then, and the last epoch was kept."""
    old = b"""{"schema": 1,
        "dense_top1": 0.9, "before_top1": 0.5, "top1": 0.8, "train_samples": 9, "eval_samples": 9, "data": "d", "seed": 0,
        "epochs": [{"epoch": 0, "loss": 0.0, "top1": 0.5, "learning_rate": 0.0, "seconds": 1.0}]}"""
    found = from_json(old, FinetuneResult, source="finetune.json")
    assert (found.best_epoch, found.epochs[0].loss, found.epochs[0].divergence) == (None, 0.0, None)
    new = msgspec.structs.replace(found, epochs=(msgspec.structs.replace(found.epochs[0], loss=None),), best_epoch=0)
    assert from_json(to_json(new), FinetuneResult, source="finetune.json") == new
