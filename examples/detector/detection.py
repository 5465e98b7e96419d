"""The loss of the detector, suppression of double detections, and mean average precision at IoU 0.5."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .network import CLASSES, positions

Targets = Mapping[str, Tensor]

LARGE = 26.0  # pixels of a box's longer side from which the map of stride 16 finds it
NEAR = 1.0  # strides from an object's centre within which positions learn to find it
BOX_WEIGHT = 2.0
GAMMA = 2.0  # of the focal loss: T.-Y. Lin et al. Focal loss for dense object detection. ICCV 2017
ALPHA = 0.4  # weight of positions with an object
TINY = 1e-6
CANDIDATES = 60  # detections of an image that are looked at, the best ones
MIN_SCORE = 0.03
MAX_IOU = 0.5  # of two detections of a class that both stay
MATCH_IOU = 0.5  # of a detection and the object that it finds


def loss(outputs: Tensor, targets: Targets) -> Tensor:
    """Return the focal loss of the scores and the generalized IoU loss of the boxes, over the number of positions with an object.

    Args:
        outputs: `(n, 4 + classes, positions)`.
        targets: "boxes" `(n, objects, 4)` and "classes" `(n, objects)`, −1 for no object.
    """
    boxes, scores = outputs[:, :4].transpose(1, 2), outputs[:, 4:].transpose(1, 2).clamp(TINY, 1 - TINY)  # (n, positions, …)
    which = assign(targets)  # (n, positions)
    is_object = which >= 0
    wanted = targets["boxes"].gather(1, which.clamp_min(0)[..., None].expand(-1, -1, 4))
    classes = targets["classes"].gather(1, which.clamp_min(0))
    one_hot = torch.nn.functional.one_hot(classes.clamp_min(0), len(CLASSES)) * is_object[..., None]
    right = torch.where(one_hot > 0, scores, 1 - scores)
    focal = torch.where(one_hot > 0, ALPHA, 1 - ALPHA) * (1 - right) ** GAMMA * -right.log()
    box_loss = 1 - _generalized_iou(boxes, wanted)
    count = is_object.sum().clamp_min(1)
    return (focal.sum() + BOX_WEIGHT * box_loss[is_object].sum()) / count


def assign(targets: Targets) -> Tensor:
    """Return the object that each position learns to find, `(n, positions)`; −1 for none. Of several the smallest."""
    boxes, classes = targets["boxes"], targets["classes"]  # (n, objects, 4), (n, objects)
    centres, strides = (x.to(boxes.device) for x in positions())
    sizes = boxes[..., 2:] - boxes[..., :2]
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    away = (centres[None, :, None] - middle[:, None]).abs().amax(-1)  # (n, positions, objects)
    fits = (sizes.amax(-1)[:, None] >= LARGE) == (strides[:, None] > strides.min())
    fits &= (away <= NEAR * strides[:, None]) & (classes >= 0)[:, None]
    area = torch.where(fits, sizes.prod(-1)[:, None], torch.inf)
    least, which = area.min(-1)
    return torch.where(least.isfinite(), which, -1)


def _generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the generalized IoU of pairs of boxes, `(…, 4)` → `(…)`."""
    both = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    around = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    union = _area(a) + _area(b) - both
    return both / union.clamp_min(TINY) - (around - union) / around.clamp_min(TINY)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of each box of `a` with each of `b`, `(…, k, 4)`, `(…, m, 4)` → `(…, k, m)`."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    both = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    return both / (_area(a) + _area(b) - both).clamp_min(TINY)


def detect(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes `(n, k, 4)`, scores `(n, k)` and classes `(n, k)` after suppression, the best first; a score of 0 is no detection."""
    flat = outputs[:, 4:].flatten(1)  # (n, classes · positions)
    scores, order = flat.topk(min(CANDIDATES, flat.shape[1]), dim=1)
    count = outputs.shape[2]
    classes, where = order // count, order % count
    boxes = outputs[:, :4].transpose(1, 2).gather(1, where[..., None].expand(-1, -1, 4))
    double = (iou(boxes, boxes) > MAX_IOU) & (classes[:, :, None] == classes[:, None])
    stays = scores > MIN_SCORE
    for i in range(1, scores.shape[1]):  # a better detection that stays suppresses the later ones
        stays[:, i] &= ~(double[:, i, :i] & stays[:, :i]).any(1)
    return boxes, scores * stays, classes


class MeanAveragePrecision:
    """Mean over the classes of the area under the curve of precision over recall, with objects found at IoU 0.5."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.scores: list[Tensor] = []
        self.found: list[Tensor] = []
        self.classes: list[Tensor] = []
        self.objects = torch.zeros(len(CLASSES), dtype=torch.long)

    def update(self, outputs: Tensor, targets: Targets) -> None:
        outputs, boxes, classes = outputs.float().cpu(), targets["boxes"].cpu(), targets["classes"].cpu()
        found, scores, guesses = detect(outputs)
        good = (iou(found, boxes) * (guesses[:, :, None] == classes[:, None])).clone()  # (n, k, objects)
        right = torch.zeros_like(scores, dtype=torch.bool)
        for i in range(scores.shape[1]):  # the best detection takes an object, and later ones of it are wrong
            best, which = good[:, i].max(1)
            right[:, i] = (best >= MATCH_IOU) & (scores[:, i] > 0)
            good[right[:, i], :, which[right[:, i]]] = 0
        seen = scores > 0
        self.scores.append(scores[seen])
        self.found.append(right[seen])
        self.classes.append(guesses[seen])
        self.objects += torch.bincount(classes[classes >= 0], minlength=len(CLASSES))

    def compute(self) -> dict[str, float]:
        scores, found, classes = (torch.cat(parts) for parts in (self.scores, self.found, self.classes))
        areas = [
            average_precision(scores[classes == c], found[classes == c], int(count)) for c, count in enumerate(self.objects) if count > 0
        ]
        return {"mAP50": sum(areas) / len(areas) if areas else 0.0}


def average_precision(scores: Tensor, found: Tensor, objects: int) -> float:
    """Return the area under precision over recall, where precision never falls with recall.

    Args:
        scores: Of the detections of one class.
        found: Whether each detection found an object.
        objects: Number of objects of the class.
    """
    hits = found[scores.argsort(descending=True, stable=True)].double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    envelope = precision.flip(0).cummax(0).values.flip(0)
    recall = torch.cat([hits.new_zeros(1), hits / objects])
    return float((recall.diff() * envelope).sum())
