"""Quantization-aware training (QAT): train weights with fake quantization, where rounding alone makes int8 lose accuracy.

The network learns to answer as the float network does, because the gate holds the file to that; labels have the same small weight as in
fine-tuning. Training starts from the weights that GPTQ rounds. The epoch that is nearest to the float network on samples held out of the
training data is kept, the rounded weights included, so that training which did not help changes nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from edgecompress.data import check_labels, count_items, describe_dataset, fetch_pairs, is_class_index
from edgecompress.data.code import digest_code
from edgecompress.data.content import digest_dataset
from edgecompress.data.losses import Loss, make_loss
from edgecompress.errors import ConfigError
from edgecompress.network import batches
from edgecompress.network.batches import Batch, structure_of
from edgecompress.network.exported import to_program
from edgecompress.network.output_kinds import guess_specs
from edgecompress.network.outputs import Specs, scores_of, top1
from edgecompress.network.parity import top1_agreement, worst_sqnr_db
from edgecompress.network.surgery import forward
from edgecompress.network.threads import use_threads
from edgecompress.progress import Track, track_silently
from edgecompress.quantization.float_tail import keep_tail_float
from edgecompress.quantization.qat_module import FakeQuantizedModule
from edgecompress.quantization.simulation import round_integer_weights
from edgecompress.records import Epoch, QatResult, QuantSpec, Record
from edgecompress.recovery.checkpoint import make_key
from edgecompress.recovery.loop import Assessment, TrainingTask, run_epochs
from edgecompress.recovery.losses import LABEL_LOSSES, choose_target_loss, use_loss
from edgecompress.recovery.schedule import chunks
from edgecompress.recovery.selection import Chooser
from edgecompress.recovery.validation import Validation, hold_out
from edgecompress.targets import INT8_STATIC

VALIDATION_SAMPLES: Final = 500  # a simulation is several times slower than the network
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
    specs: Specs | None = None,
    loss: Loss | Callable[[Any, Any], Any] | None = None,
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
        specs: The kinds of the outputs; None guesses them from the shapes.
        loss: `loss(outputs, targets)`, which replaces the loss by labels.
        checkpoint_path: Written after each epoch; an existing checkpoint of the same start and options is continued.

    Raises:
        ConfigError: Options are out of range, data are missing, the user's loss is faulty, or the loss became NaN.
        UnsupportedError: The model cannot be exported, or has no layer to train.
    """
    options, quant = options or QatOptions(), quant or QuantSpec(scheme=INT8_STATIC)
    _check_options(options, train_data)
    assert train_data is not None
    given = loss if loss is None or isinstance(loss, Loss) else make_loss(loss)
    with use_threads(options.threads):
        specs = specs or guess_specs(forward(model, example_inputs))
        program, quant, _ = keep_tail_float(to_program(model, tuple(x[:1] for x in example_inputs)), quant, calibration)
        program = round_integer_weights(program, quant, calibration)
        student = FakeQuantizedModule(program, quant, calibration)
        start = {name: value.detach() for name, value in student.quantized_constants().items()}
        task, notes = _make_task(student, model, train_data, eval_data, example=example_inputs, specs=specs, loss=given, options=options)
        seen = batches.take_samples(calibration, slice(EVAL_SAMPLES))
        before = _compare(student, model, eval_data, seen, example_inputs, specs, track)
        read = (digest_dataset(train_data), digest_dataset(eval_data), digest_code(given and given.function))
        key = make_key(student, options, read, specs)
        progress = run_epochs(task, options=options, key=key, checkpoint_path=checkpoint_path, track=track)
        best, after = progress.best, before
        if best:
            student.observe_ranges()
            after = _compare(student, model, eval_data, seen, example_inputs, specs, track)
            if after.is_worse_than(before):
                best, after = 0, before
    constants = {name: value.detach() for name, value in student.quantized_constants().items()} if best else start
    if not best:
        notes.append(f"training brought int8 no closer to the float network on {task.validation.words}; the rounded weights stay")
    return constants, QatResult(
        scheme=quant.scheme,
        before_top1=before.top1,
        top1=after.top1,
        before_agreement=before.agreement,
        agreement=after.agreement,
        before_sqnr_db=before.sqnr_db,
        sqnr_db=after.sqnr_db,
        epochs=tuple(progress.epochs),
        train_samples=count_items(train_data),
        eval_samples=before.samples,
        data=describe_dataset(train_data),
        seed=options.seed,
        note="; ".join(notes),
        best_epoch=best,
        validation=task.validation.criterion,
    )


class QatTask(TrainingTask):
    """Distillation of the float network into its own fake-quantized program."""

    name = "quantization-aware training"
    title = "int8 epoch"
    remedy = "fine-tune longer before it"

    def __init__(
        self, student: FakeQuantizedModule, teacher: nn.Module, data: "Dataset[Any]", validation: Validation, options: QatOptions
    ) -> None:
        self.model: FakeQuantizedModule = student
        self.teacher, self.data, self.validation, self.options = teacher, data, validation, options
        self.optimizer = torch.optim.Adam(student.parameters(), options.learning_rate)

    def measure_start(self, notes: list[str]) -> Assessment:
        return Assessment(**self.validation.measure(self.model)._asdict())

    def choose_rate(self, start: Epoch) -> tuple[float, str]:
        return self.options.learning_rate, "as asked"

    def start_epoch(self) -> None:
        self.model.observe_ranges()

    def compute_outputs(self, x: Batch) -> tuple[Batch, Batch]:
        with torch.no_grad():
            wanted = batches.run_model(self.teacher, x)
        return self.model(*x), wanted

    def finish_epoch(self) -> Assessment:
        self.model.observe_ranges()
        return Assessment(**self.validation.measure(self.model)._asdict())


def _make_task(
    student: FakeQuantizedModule,
    teacher: nn.Module,
    data: "Dataset[Any]",
    eval_data: "Dataset[Any] | None",
    *,
    example: Batch,
    specs: Specs,
    loss: Loss | None,
    options: QatOptions,
) -> tuple[QatTask, list[str]]:
    """Return the task of training, and remarks for the record."""
    wants_targets = loss is not None or any(spec.kind in LABEL_LOSSES for spec in specs)
    indices, validation = hold_out(
        teacher, data, eval_data, example=example, specs=specs, with_targets=wants_targets, most=VALIDATION_SAMPLES
    )
    if loss is not None:
        target_loss, note = use_loss(loss, validation.wanted, validation.targets, structure_of(teacher, example))
    else:
        target_loss, note = choose_target_loss(validation.wanted, validation.targets, specs, describe_dataset(data))
    task = QatTask(student, teacher, data, validation, options)
    task.indices, task.example, task.specs, task.target_loss = indices, example, specs, target_loss
    task.chooser = Chooser(None, validation.samples)
    return task, [note] if note else []


class Closeness(NamedTuple):
    """Accuracy of a fake-quantized network, and how close its outputs are to the float network's, on so many samples."""

    top1: float | None
    agreement: float | None
    sqnr_db: float
    samples: int

    def is_worse_than(self, other: "Closeness") -> bool:
        """Whether fewer answers agree with the float network; where outputs are no answers, whether they are further away."""
        if self.agreement is not None and other.agreement is not None:
            return self.agreement < other.agreement
        return self.sqnr_db < other.sqnr_db


@torch.no_grad()
def _compare(
    student: FakeQuantizedModule,
    model: nn.Module,
    data: "Dataset[Any] | None",
    inputs: Batch,
    example: Batch,
    specs: Specs,
    track: Track,
) -> Closeness:
    """Compare a fake-quantized network with the float one, on evaluation data where some are given, otherwise on `inputs`."""
    targets = None
    if data is not None:
        has_scores = scores_of(forward(model, example), specs) is not None
        inputs, targets = fetch_pairs(data, range(min(EVAL_SAMPLES, count_items(data))), example=example, with_targets=has_scores)
    outputs = _run_in_batches(student, inputs, track)
    wanted = forward(model, inputs)
    scores = scores_of(outputs, specs)
    accuracy = top1(scores, check_labels(targets, "labels")) if scores is not None and is_class_index(targets) else None
    return Closeness(accuracy, top1_agreement(outputs, wanted, specs), worst_sqnr_db(outputs, wanted), len(inputs[0]))


def _run_in_batches(student: FakeQuantizedModule, inputs: Batch, track: Track = track_silently) -> Batch:
    order = chunks(range(batches.count_samples(inputs)), EVAL_BATCH)
    parts = [student(*(x[indices] for x in inputs)) for indices in track(order, "simulating int8", len(order))]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _check_options(options: QatOptions, data: "Dataset[Any] | None") -> None:
    if options.epochs < 1 or options.samples < 2 or options.batch_size < 2 or not options.learning_rate > 0:
        raise ConfigError("quantization-aware training: epochs must be ≥ 1, samples ≥ 2, batch size ≥ 2, learning rate > 0")
    if data is None or count_items(data) < 2:
        raise ConfigError("quantization-aware training: fewer than two training samples; give train_data() or --data")
