"""Objects in images: as targets, as a detector's grid of outputs, and how well the two agree.

An object is a row (class, centre y, centre x, height, width), all but the class in shares of the
image; one of class -1 is none. A detector writes a grid [rows, columns, classes + 4], as DetectNet
does: in each cell a logit of each class, that the cell shows an object of it, and of this object
the centre's distance from the cell's (y, x) and the logarithms of height and width, all in cells.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FIELDS = 5  # of a row
PLACE = 4  # of these, and of a cell's outputs, those that tell where
LARGEST = 8.0  # logarithm of a side in cells, beyond which it is cut off
_MATCH = 0.5  # intersection over union, from which on a box is right
_OVERLAP = 0.5  # two boxes of a class that share more are of one object
_SURE = math.log(0.01 / 0.99)  # logit from which on a cell is listened to
_MOST = 100  # boxes of a class in an image


class Found(NamedTuple):
    """Boxes of one class in one image, the surest first.

    Attributes:
      scores: logits [boxes].
      corners: top, left, bottom, right [boxes, 4].
    """

    scores: Floats
    corners: Floats


def corners(places: npt.ArrayLike) -> Floats:
    """(centre y, centre x, height, width) [.., 4] as top, left, bottom, right."""
    centre, size = np.split(np.asarray(places, np.float64), 2, axis=-1)
    return np.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def overlaps(one: Floats, other: Floats) -> Floats:
    """Intersection over union of corners [a, 4] and [b, 4]: [a, b]."""
    a, b = one[:, None], other[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.maximum(sides, 0.0).prod(axis=-1)
    areas = [(c[..., 2:] - c[..., :2]).prod(axis=-1) for c in (a, b)]
    return np.asarray(shared / np.maximum(areas[0] + areas[1] - shared, 1e-12))


def read(outputs: npt.NDArray[np.float32]) -> list[Found]:
    """What a grid of outputs [rows, columns, classes + 4] shows, by class.

    Of boxes of a class that overlap only the surest is kept.
    """
    rows, columns, channels = outputs.shape
    grid = np.array([rows, columns])
    cells = np.stack(np.mgrid[:rows, :columns], axis=-1) + 0.5
    told = outputs[..., -PLACE:].astype(np.float64)
    centre = (cells + told[..., :2]) / grid
    size = np.exp(np.clip(told[..., 2:], -LARGEST, LARGEST)) / grid
    places = np.concatenate([centre, size], axis=-1).reshape(-1, PLACE)
    logits = outputs[..., :-PLACE].reshape(-1, channels - PLACE).astype(np.float64)
    return [_surest(column, corners(places)) for column in logits.T]


def _surest(scores: Floats, places: Floats) -> Found:
    """Those that are sure enough and overlap no surer one."""
    order = np.argsort(-scores, kind="stable")[:_MOST]
    order = order[scores[order] >= _SURE]
    crowd = overlaps(places[order], places[order]) > _OVERLAP
    open_ = np.ones(len(order), np.bool_)
    for position in range(len(order)):
        if open_[position]:
            open_[position + 1 :] &= ~crowd[position, position + 1 :]
    return Found(scores[order[open_]], places[order[open_]])


def mean_average_precision(
    targets: npt.NDArray[np.float32], outputs: npt.NDArray[np.float32]
) -> float:
    """mAP@0.5: the mean over classes of the area under precision by recall.

    As PASCAL VOC has it since 2010: a box is right if it is the surest of those that overlap an
    object by half of their union or more, precision is made to fall with recall, and the area is
    exact. Classes that no target has are left out.

    Args:
      targets: objects [images, rows, FIELDS].
      outputs: grids [images, rows, columns, classes + 4].
    """
    found = [read(grid) for grid in outputs]
    areas = []
    for kind in range(outputs.shape[-1] - PLACE):
        objects = [corners(rows[rows[:, 0] == kind, 1:]) for rows in targets]
        if any(map(len, objects)):
            areas.append(average_precision(objects, [image[kind] for image in found]))
    return float(np.mean(areas)) if areas else 0.0


def average_precision(objects: list[Floats], found: list[Found]) -> float:
    """Of one class.

    Args:
      objects: corners, by image.
      found: boxes, by image.
    """
    scores = np.concatenate([image.scores for image in found])
    right = np.concatenate([_right(*pair) for pair in zip(objects, found, strict=True)])
    right = right[np.argsort(-scores, kind="stable")]
    if not right.any():
        return 0.0
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(precision[right].sum() / sum(map(len, objects)))


def _right(objects: Floats, found: Found) -> npt.NDArray[np.bool_]:
    """Which boxes are an object's, that is no surer one's [boxes]."""
    right = np.zeros(len(found.scores), np.bool_)
    if not len(objects):
        return right
    shares = overlaps(found.corners, objects)
    taken = set()
    for box, nearest in enumerate(shares.argmax(axis=1).tolist()):
        if shares[box, nearest] >= _MATCH and nearest not in taken:
            taken.add(nearest)
            right[box] = True
    return right
