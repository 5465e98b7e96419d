"""Quantization-aware training (QAT): train weights with fake quantization, where rounding alone makes int8 lose accuracy.

The network learns to answer as the float network does, because the gate holds the file to that; labels have the same small weight as in
fine-tuning. Training starts from the weights that GPTQ rounds, and its result is compared with them on calibration inputs, so that training
which did not help changes nothing.
"""

from pathlib import Path
from typing import Any, Final, NamedTuple

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
from edgecompress.quantization.float_tail import keep_tail_float
from edgecompress.quantization.qat_module import FakeQuantizedModule
from edgecompress.quantization.simulation import round_integer_weights
from edgecompress.records import QatResult, QuantSpec, Record
from edgecompress.recovery.loop import TrainingTask, run_epochs
from edgecompress.recovery.schedule import chunks
from edgecompress.targets import INT8_STATIC

EVAL_SAMPLES: Final = 2000  # a simulation is several times slower than the network
EVAL_BATCH: Final = 64  # bounds the memory of a simulation


class QatOptions(Record, frozen=True, kw_only=True):
    """How to train.

    Attributes:
        samples: Training samples per epoch; from a larger set each epoch draws others.
        learning_rate: Adam's rate at the peak of the schedule, as a fraction of each channel's largest weight, of which int8 has 127 steps.
        distill: Weight of the distillation loss; the rest is cross-entropy with the labels.
        threads: Threads that torch uses; 0 for its own number.
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
    """Return the trained constants of the model's program, fake-quantized, and the record of what training gained.

    Args:
        model: The fine-tuned float network, both start and teacher; stays unchanged.
        train_data: Items as `edgecompress.data.recipe` describes them; labels are not needed.
        calibration: Each `(samples, …)`; gives the activation ranges anew before every epoch.
        quant: The scheme int8-static; its `layers` may keep some layers in float.
        checkpoint_path: Written after each epoch; an existing checkpoint of the same start and options is continued.

    Raises:
        ConfigError: Options are out of range, data are missing, or the loss became NaN.
        UnsupportedError: The model cannot be exported, or has no layer to train.
    """
    options, quant = options or QatOptions(), quant or QuantSpec(scheme=INT8_STATIC)
    _check_options(options, train_data)
    assert train_data is not None
    with use_threads(options.threads):
        program, quant, _ = keep_tail_float(to_program(model, tuple(x[:1] for x in example_inputs)), quant, calibration)
        program = round_integer_weights(program, quant, calibration)
        student = FakeQuantizedModule(program, quant, calibration)
        start = {name: value.detach() for name, value in student.quantized_constants().items()}
        seen = batches.take_samples(calibration, slice(EVAL_SAMPLES))
        wanted = forward(model, seen)
        before_loss, before = _measure_loss(student, seen, wanted), _compare(student, model, eval_data, seen, example_inputs, track)
        task = QatTask(student, model, example_inputs, options)
        epochs = run_epochs(task, train_data, example=example_inputs, options=options, checkpoint_path=checkpoint_path, track=track)
        student.observe_ranges()
        better = _measure_loss(student, seen, wanted) < before_loss
        after = _compare(student, model, eval_data, seen, example_inputs, track) if better else before
    constants = {name: value.detach() for name, value in student.quantized_constants().items()} if better else start
    return constants, QatResult(
        scheme=quant.scheme,
        before_top1=before.top1,
        top1=after.top1,
        before_agreement=before.agreement,
        agreement=after.agreement,
        before_sqnr_db=before.sqnr_db,
        sqnr_db=after.sqnr_db,
        epochs=tuple(epochs),
        train_samples=len(train_data),  # type: ignore[arg-type]
        eval_samples=before.samples,
        data=describe_dataset(train_data),
        seed=options.seed,
        note="" if better else "training brought int8 no closer to the float network on calibration inputs; the rounded weights stay",
    )


class QatTask(TrainingTask):
    """Distillation of the float network into its own fake-quantized program."""

    name = "quantization-aware training"
    title = "int8 epoch"
    remedy = "fine-tune longer before it"

    def __init__(self, student: FakeQuantizedModule, teacher: nn.Module, example: Batch, options: QatOptions) -> None:
        self.model: FakeQuantizedModule = student
        self.teacher, self.example = teacher, example
        self.optimizer = torch.optim.Adam(student.parameters(), options.learning_rate)
        self.peak_rate = options.learning_rate

    def start_epoch(self) -> int | None:
        self.model.observe_ranges()
        scores = scores_of(forward(self.teacher, self.example))
        return None if scores is None else scores.shape[1]

    def compute_outputs(self, x: Batch) -> tuple[Batch, Batch]:
        with torch.no_grad():
            wanted = batches.run_model(self.teacher, x)
        return self.model(*x), wanted


class Closeness(NamedTuple):
    """Accuracy of a fake-quantized network, and how close its outputs are to the float network's, on so many samples."""

    top1: float | None
    agreement: float | None
    sqnr_db: float
    samples: int


@torch.no_grad()
def _measure_loss(student: FakeQuantizedModule, inputs: Batch, wanted: Batch) -> float:
    return float(divergence(_run_in_batches(student, inputs), wanted))


@torch.no_grad()
def _compare(
    student: FakeQuantizedModule, model: nn.Module, data: "Dataset[Any] | None", inputs: Batch, example: Batch, track: Track
) -> Closeness:
    """Compare a fake-quantized network with the float one, on evaluation data where some are given, otherwise on `inputs`."""
    labels = None
    if data is not None:
        has_scores = scores_of(forward(model, example)) is not None
        n = min(EVAL_SAMPLES, len(data))  # type: ignore[arg-type]
        inputs, labels = fetch_samples(data, range(n), example=example, labelled=has_scores)
    outputs = _run_in_batches(student, inputs, track)
    wanted = forward(model, inputs)
    scores = scores_of(outputs)
    accuracy = top1(scores, labels) if scores is not None and labels is not None else None
    return Closeness(accuracy, top1_agreement(outputs, wanted), worst_sqnr_db(outputs, wanted), len(inputs[0]))


def _run_in_batches(student: FakeQuantizedModule, inputs: Batch, track: Track = track_silently) -> Batch:
    order = chunks(range(batches.count_samples(inputs)), EVAL_BATCH)
    parts = [student(*(x[indices] for x in inputs)) for indices in track(order, "simulating int8", len(order))]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _check_options(options: QatOptions, data: "Dataset[Any] | None") -> None:
    if options.epochs < 1 or options.samples < 2 or options.batch_size < 2 or not options.learning_rate > 0:
        raise ConfigError("quantization-aware training: epochs must be ≥ 1, samples ≥ 2, batch size ≥ 2, learning rate > 0")
    if data is None or len(data) < 2:  # type: ignore[arg-type]
        raise ConfigError("quantization-aware training: fewer than two training samples; give train_data() or --data")
