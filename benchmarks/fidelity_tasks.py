"""The five tasks: a network, its data, its loss, its metric, and the training of the dense network in seconds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from fidelity_data import NO_OBJECT, Data, make_detections, make_maps, make_poses, make_sentences, make_tones
from fidelity_networks import BIN_CENTS, BINS, CELL, POSE_SPREAD, SCENE_SIDE, SHAPES, Detector, Embedder, PitchTracker, PoseRegressor, UNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

CELLS = SCENE_SIDE // CELL


class Sizes(NamedTuple):
    """The sizes of a task.

    Attributes:
        samples: Numbers of training and held-out samples.
        width: Of the network.
        epochs, batch, rate: Of the training of the dense network.
    """

    samples: tuple[int, int]
    width: int
    epochs: int
    batch: int
    rate: float


class Task(NamedTuple):
    """A task.

    Attributes:
        network: Makes the dense network of a width.
        data: Makes training and held-out data of so many samples.
        loss: Of the outputs and the targets of a batch.
        metric: Of the outputs and the targets of a batch; 1 is perfect.
        full, quick: The sizes of the two forms of the benchmark.
        chance: The metric of an answer that does not look at the input.
        least: The metric that the trained network must reach.
        labelled: Whether `export` gets the targets.
        given: What `export` gets beside the data: the user's metric and loss, by name.
    """

    network: Callable[[int], nn.Module]
    data: Callable[[int, int], Data]
    loss: Callable[[Any, Any], Tensor]
    metric: Callable[[Any, Any], dict[str, float]]
    full: Sizes
    quick: Sizes
    chance: float
    least: float
    labelled: bool = True
    given: tuple[str, ...] = ()


def contrast(outputs: Tensor, topics: Tensor) -> Tensor:
    """Draw sentences of one topic together and others apart: P. Khosla et al. Supervised Contrastive Learning. 2020, equation 2."""
    others = ~torch.eye(len(topics), dtype=torch.bool)
    near = (outputs @ outputs.T / 0.1).masked_fill(~others, -1e4).log_softmax(1)
    same = (topics[:, None] == topics) & others
    return -((near * same).sum(1) / same.sum(1).clamp_min(1)).mean()


def retrieve(outputs: Tensor, topics: Tensor) -> dict[str, float]:
    """Return the fraction of sentences whose nearest neighbour has their topic."""
    near = (outputs @ outputs.T).fill_diagonal_(-2.0).argmax(1)
    return {"retrieval": float((topics[near] == topics).double().mean())}


def segment(outputs: Tensor, masks: Tensor) -> Tensor:
    return F.cross_entropy(outputs, masks)


def measure_iou(outputs: Tensor, masks: Tensor) -> dict[str, float]:
    """Return the mean over classes of intersection over union."""
    found = outputs.argmax(1)
    ious = [((found == c) & (masks == c)).sum() / ((found == c) | (masks == c)).sum().clamp_min(1) for c in range(1 + SHAPES)]
    return {"miou": float(torch.stack(ious).double().mean())}


def detect(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Return binary cross entropy of the scores, and the distance of boxes in the cells that hold the centre of an object."""
    n, k = (targets["shapes"] != NO_OBJECT).nonzero(as_tuple=True)
    boxes, shapes = targets["boxes"][n, k], targets["shapes"][n, k]
    column, row = (boxes[:, :2] / CELL).long().T
    cell = row * CELLS + column
    wanted = torch.zeros_like(outputs["scores"])
    wanted[n, cell, shapes] = 1.0
    scores = F.binary_cross_entropy(outputs["scores"].clamp(1e-6, 1 - 1e-6), wanted, reduction="sum") / len(n)
    return scores + F.smooth_l1_loss(outputs["boxes"][n, cell], boxes) * 0.5


def measure_f1(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, float]:
    """Return the mean over images of the F1 of detections above 0.5 whose box overlaps that of an object of their shape by half."""
    scores, shapes = outputs["scores"].max(2)
    found = []
    for i in range(len(scores)):
        kept = scores[i] > 0.5
        real = targets["shapes"][i] != NO_OBJECT
        overlap = overlaps(outputs["boxes"][i][kept], targets["boxes"][i][real])  # (detections, objects)
        hits = (overlap > 0.5) & (shapes[i][kept][:, None] == targets["shapes"][i][real])
        found.append(2 * float(hits.any(0).sum()) / float(kept.sum() + real.sum()))
    return {"f1": sum(found) / len(found)}


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Return intersection over union `(len(a), len(b))` of boxes given by centre and size."""
    low = torch.maximum((a[:, :2] - a[:, 2:] / 2)[:, None], b[:, :2] - b[:, 2:] / 2)
    high = torch.minimum((a[:, :2] + a[:, 2:] / 2)[:, None], b[:, :2] + b[:, 2:] / 2)
    common = (high - low).clamp_min(0).prod(2)
    return common / (a[:, 2:].prod(1)[:, None] + b[:, 2:].prod(1) - common)


def blur(outputs: Tensor, cents: Tensor) -> Tensor:
    """Return binary cross entropy with bumps, half a bin wide, at the pitches: J. W. Kim et al. CREPE. 2018, equation 3."""
    centres = (torch.arange(BINS) + 0.5) * BIN_CENTS
    wanted = torch.exp(-((centres - cents[:, None]) ** 2) / (2 * (0.5 * BIN_CENTS) ** 2))
    return F.binary_cross_entropy(outputs.clamp(1e-6, 1 - 1e-6), wanted, reduction="sum") / len(cents)


def measure_pitch(outputs: Tensor, cents: Tensor) -> dict[str, float]:
    """Return the fraction of tones whose pitch is found within half a semitone."""
    found = (outputs.argmax(1) + 0.5) * BIN_CENTS
    return {"pitch": float(((found - cents).abs() <= 50).double().mean())}


def regress(outputs: Tensor, poses: Tensor) -> Tensor:
    return ((outputs - poses) / torch.tensor(POSE_SPREAD)).square().mean()


def explain(outputs: Tensor, poses: Tensor) -> dict[str, float]:
    """Return the mean over the four values of the explained part of their variance."""
    return {"r2": float(1 - ((outputs - poses) / torch.tensor(POSE_SPREAD)).square().mean())}


TASKS = {
    "embedder": Task(
        Embedder, make_sentences, contrast, retrieve, chance=0.1, least=0.2, labelled=False,
        full=Sizes((2500, 400), width=96, epochs=8, batch=64, rate=3e-3),
        quick=Sizes((1500, 200), width=64, epochs=4, batch=32, rate=3e-3),
    ),
    "unet": Task(
        UNet, make_maps, segment, measure_iou, chance=0.2, least=0.4,
        full=Sizes((1500, 400), width=12, epochs=5, batch=8, rate=2e-2),
        quick=Sizes((700, 100), width=8, epochs=5, batch=8, rate=2e-2),
    ),
    "detector": Task(
        Detector, make_detections, detect, measure_f1, chance=0.0, least=0.5, given=("metric", "loss"),
        full=Sizes((2000, 400), width=16, epochs=9, batch=32, rate=3e-3),
        quick=Sizes((800, 300), width=8, epochs=8, batch=8, rate=1e-2),
    ),
    "pitch": Task(
        PitchTracker, make_tones, blur, measure_pitch, chance=0.017, least=0.7, labelled=False,
        full=Sizes((4000, 500), width=32, epochs=5, batch=16, rate=3e-3),
        quick=Sizes((800, 200), width=16, epochs=4, batch=16, rate=5e-3),
    ),
    "pose": Task(
        PoseRegressor, make_poses, regress, explain, chance=0.0, least=0.7, given=("metric",),
        full=Sizes((4000, 500), width=16, epochs=5, batch=16, rate=3e-3),
        quick=Sizes((800, 200), width=8, epochs=4, batch=16, rate=5e-3),
    ),
}  # fmt: skip


def train(task: Task, sizes: Sizes, data: Data) -> nn.Module:
    """Train the dense network of a task, always in the same way, and return it in eval mode.

    Raises:
        RuntimeError: The network did not learn its task.
    """
    torch.manual_seed(0)
    model = task.network(sizes.width).train()
    inputs, targets = data.train.inputs, data.train.targets
    steps = len(inputs) // sizes.batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=sizes.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, sizes.rate, total_steps=sizes.epochs * steps, pct_start=0.2)
    for _ in range(sizes.epochs):
        for chosen in torch.randperm(len(inputs))[: steps * sizes.batch].split(sizes.batch):
            loss = task.loss(model(inputs[chosen]), tree_map(lambda column, chosen=chosen: column[chosen], targets))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        ((name, reached),) = task.metric(model.eval()(data.held_out.inputs), data.held_out.targets).items()
    if reached < task.least:
        raise RuntimeError(f"{name} is {reached:.3f} after training; at least {task.least} is expected, {task.chance} is chance")
    return model
