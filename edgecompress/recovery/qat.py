"""Train the weights of an int8 file under its own rounding, against the float network: for networks that lose when they are only rounded.

What is learnt is to answer as the float network does, because that is what the gate holds the file to; labels, where there are some, have
the same small share as in fine-tuning. The start is the best that rounding alone gives, and the end is compared with it on calibration
inputs, so that training which did not help changes nothing.
"""

import time
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from edgecompress.data import describe_dataset, fetch_samples
from edgecompress.errors import ConfigError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.exported import to_program
from edgecompress.network.outputs import divergence, scores_of, top1
from edgecompress.network.parity import top1_agreement, worst_sqnr_db
from edgecompress.network.surgery import forward
from edgecompress.network.threads import use_threads
from edgecompress.progress import Track, track_silently
from edgecompress.quantization.qat_module import FakeQuantizedModule
from edgecompress.quantization.simulation import round_integer_weights
from edgecompress.records import Epoch, QatResult, QuantSpec, Record
from edgecompress.recovery import checkpoint
from edgecompress.recovery.schedule import MAX_GRAD_NORM, chunks, distillation_loss, epoch_seed, learning_rate_fraction, shuffled_batches
from edgecompress.targets import INT8_STATIC

EVAL_SAMPLES: Final = 2000  # the simulation is several times slower than the network
EVAL_BATCH: Final = 64


class QatOptions(Record, frozen=True, kw_only=True):
    """How to train.

    Attributes:
        samples: Training samples an epoch; a larger set is drawn from anew each epoch.
        learning_rate: Of Adam, at the peak of the schedule, in parts of each channel's largest weight; a step of int8 is 1/127 of it.
        distill: Weight of the distillation loss; the rest is cross-entropy with the labels.
        threads: 0 for torch's own number.
    """

    epochs: int = 3
    samples: int = 10_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    temperature: float = 4.0
    distill: float = 0.9
    threads: int = 0
    seed: int = 0


def qat(
    model: nn.Module,
    train_data: "Dataset[Any] | None",
    *,
    example_inputs: Batch,
    calibration: Batch,
    quant: QuantSpec | None = None,
    eval_data: "Dataset[Any] | None" = None,
    options: QatOptions | None = None,
    checkpoint_path: Path | None = None,
    track: Track = track_silently,
) -> tuple[dict[str, Tensor], QatResult]:
    """Return the trained constants of the model's program, on their integer grids, and how far int8 was and is from the model.

    Args:
        model: The fine-tuned float network: start and teacher; left untouched.
        train_data: Items as `edgecompress.data.recipe` says; labels are not needed.
        calibration: Each `(samples, …)`; activation ranges come from them, before every epoch anew.
        quant: int8-static; its `layers` may keep some in float.
        checkpoint_path: Written after each epoch; an existing one of the same start and options is continued.

    Raises:
        ConfigError: Options out of range, no data, or the loss became NaN.
        UnsupportedError: The model cannot be exported, or has no layer to train.
    """
    options, quant = options or QatOptions(), quant or QuantSpec(scheme=INT8_STATIC)
    _check(options, train_data)
    assert train_data is not None
    with use_threads(options.threads):
        program = round_integer_weights(to_program(model, tuple(x[:1] for x in example_inputs)), quant, calibration)
        student = FakeQuantizedModule(program, quant, calibration)
        start = {name: value.detach() for name, value in student.quantized_constants().items()}
        seen = batches.take_samples(calibration, slice(EVAL_SAMPLES))
        wanted = forward(model, seen)
        before_loss, before = _loss(student, seen, wanted), _scored(student, model, eval_data, calibration, example_inputs, track)
        epochs = _train(student, model, train_data, example_inputs, options, checkpoint_path, track)
        student.observe_ranges()
        better = _loss(student, seen, wanted) < before_loss
        after = _scored(student, model, eval_data, calibration, example_inputs, track) if better else before
    constants = {name: value.detach() for name, value in student.quantized_constants().items()} if better else start
    return constants, QatResult(
        scheme=quant.scheme,
        before_top1=before[0],
        top1=after[0],
        before_agreement=before[1],
        agreement=after[1],
        before_sqnr_db=before[2],
        sqnr_db=after[2],
        epochs=tuple(epochs),
        train_samples=len(train_data),  # type: ignore[arg-type]
        eval_samples=before[3],
        data=describe_dataset(train_data),
        seed=options.seed,
        note="" if better else "training brought int8 no closer to the float network on calibration inputs; the rounded weights stay",
    )


def _train(
    student: FakeQuantizedModule,
    teacher: nn.Module,
    data: "Dataset[Any]",
    example: Batch,
    options: QatOptions,
    checkpoint_path: Path | None,
    track: Track,
) -> list[Epoch]:
    optimizer = torch.optim.Adam(student.parameters(), options.learning_rate)
    key = checkpoint.key_of(student, options, describe_dataset(data))
    epochs = list(checkpoint.resume(checkpoint_path, key, student, optimizer)) if checkpoint_path else []
    with torch.random.fork_rng(devices=[]):
        for number in range(len(epochs) + 1, options.epochs + 1):
            started = time.perf_counter()
            torch.manual_seed(epoch_seed(options.seed, number))
            student.observe_ranges()
            loss = _epoch(student, teacher, data, example, optimizer, options, number, track)
            rate = float(optimizer.param_groups[0]["lr"])
            epochs.append(Epoch(epoch=number, loss=loss, top1=None, learning_rate=rate, seconds=time.perf_counter() - started))
            if checkpoint_path:
                checkpoint.save(checkpoint_path, key, student, optimizer, epochs)
    return epochs


def _epoch(
    student: FakeQuantizedModule,
    teacher: nn.Module,
    data: "Dataset[Any]",
    example: Batch,
    optimizer: torch.optim.Optimizer,
    options: QatOptions,
    number: int,
    track: Track,
) -> float:
    """Train for one epoch, the first being 1; return the mean loss."""
    scores = scores_of(forward(teacher, example))
    classes = None if scores is None else scores.shape[1]
    losses = []
    title = f"int8 epoch {number}/{options.epochs}"
    orders = shuffled_batches(len(data), options.samples, options.batch_size)  # type: ignore[arg-type]
    for step, indices in enumerate(track(orders, title, len(orders))):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * learning_rate_fraction((number - 1 + (step + 1) / len(orders)) / options.epochs)
        x, labels = fetch_samples(data, indices, example=example, labelled=classes is not None, classes=classes)
        with torch.no_grad():
            wanted = batches.run_model(teacher, x)
        loss = distillation_loss(student(*x), wanted, labels, temperature=options.temperature, distill=options.distill)
        if not bool(loss.isfinite()):
            raise ConfigError(f"quantization-aware training: the loss became {float(loss.detach())} in {title}; fine-tune longer before it")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(student.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


@torch.no_grad()
def _loss(student: FakeQuantizedModule, inputs: Batch, wanted: Batch) -> float:
    return float(divergence(_run(student, inputs), wanted))


@torch.no_grad()
def _scored(
    student: FakeQuantizedModule, model: nn.Module, data: "Dataset[Any] | None", calibration: Batch, example: Batch, track: Track
) -> tuple[float | None, float | None, float, int]:
    """Return accuracy, agreement with the model, SQNR in dB and on how many samples, of evaluation data where there is some."""
    inputs, labels = batches.take_samples(calibration, slice(EVAL_SAMPLES)), None
    if data is not None:
        scored = scores_of(forward(model, example))
        n = min(EVAL_SAMPLES, len(data))  # type: ignore[arg-type]
        inputs, labels = fetch_samples(data, range(n), example=example, labelled=scored is not None)
    outputs = _run(student, inputs, track)
    wanted = forward(model, inputs)
    scores = scores_of(outputs)
    accuracy = top1(scores, labels) if scores is not None and labels is not None else None
    return accuracy, top1_agreement(outputs, wanted), worst_sqnr_db(outputs, wanted), len(inputs[0])


def _run(student: FakeQuantizedModule, inputs: Batch, track: Track = track_silently) -> Batch:
    orders = chunks(range(batches.count_samples(inputs)), EVAL_BATCH)
    parts = [student(*(x[order] for x in inputs)) for order in track(orders, "simulating int8", len(orders))]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _check(options: QatOptions, data: "Dataset[Any] | None") -> None:
    if options.epochs < 1 or options.samples < 2 or options.batch_size < 2 or not options.learning_rate > 0:
        raise ConfigError("quantization-aware training: epochs must be ≥ 1, samples ≥ 2, batch size ≥ 2, learning rate > 0")
    if data is None or len(data) < 2:  # type: ignore[arg-type]
        raise ConfigError("quantization-aware training: fewer than two training samples; give train_data() or --data")
