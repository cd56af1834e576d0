"""Training images moved by some pixels, mirrored, scaled and lit otherwise, each at random.

What is drawn are plain numbers, by NumPy, for a batch or for all batches of a training; an image is
moved by two look-ups, of rows and of columns, in NumPy or in a graph.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfgen.training.recipe import LARGEST_ZOOM
from tfgen.training.tasks import VOID


@dataclasses.dataclass(frozen=True)
class Moves:
    """Where images go; arrays of any equal shape.

    Attributes:
      down: first row that is seen, of an image with a border of zeros as wide as the largest shift;
        where it is scaled, by how much its middle goes.
      right: first column.
      mirrored: whether columns are seen from right to left.
      scale: pixels of the image for one that is seen, float32: above 1 things look smaller. None
        where all keep their size.
    """

    down: np.ndarray
    right: np.ndarray
    mirrored: np.ndarray
    scale: np.ndarray | None = None


def draw(
    shift: int,
    flip: bool,
    shape: tuple[int, ...],
    random: np.random.Generator,
    zoom: float = 0.0,
) -> Moves:
    """Draws moves.

    Args:
      shift: pixels by which an image is moved at most, in each direction.
      flip: whether half of the images are mirrored.
      shape: of the arrays.
      random: that draws.
      zoom: by how much things look larger or smaller at most, a share.
    """
    down = right = np.zeros(shape, np.int8)
    mirrored = np.zeros(shape, bool)
    if shift:
        down, right = random.integers(2 * shift + 1, size=(2, *shape)).astype(np.int8)
    if flip:
        mirrored = random.random(shape) < 0.5
    scale = None
    if zoom:
        scale = np.exp(np.log1p(zoom) * random.uniform(-1.0, 1.0, shape)).astype(np.float32)
    return Moves(down, right, mirrored, scale)


def draw_light(
    light: float, shape: tuple[int, ...], channels: int, random: np.random.Generator
) -> np.ndarray:
    """Draws by how much images are lit: a factor for each channel, float32 [*shape, channels].

    An image's light and the colour of it: all channels are scaled by up to `light`, and each by up
    to a third of that more.

    Args:
      light: see `Recipe`.
      shape: of images.
      channels: of an image.
      random: that draws.
    """
    whole = 1.0 + light * random.uniform(-1.0, 1.0, (*shape, 1))
    own = 1.0 + light / 3.0 * random.uniform(-1.0, 1.0, (*shape, channels))
    return (whole * own).astype(np.float32)


def lit(xp: Any, x: Any, factors: Any, ends: tuple[float, float]) -> Any:
    """Images [batch, height, width, channels] lit by factors [batch, channels].

    Args:
      xp: NumPy or TensorFlow.
      x: the images.
      factors: of light.
      ends: black and white; what is too bright is white, as in a photograph.
    """
    black, white = ends
    return xp.minimum((x - black) * factors[:, None, None] + black, white)


def examples(
    x: np.ndarray,
    y: np.ndarray,
    shift: int,
    flip: bool,
    random: np.random.Generator,
    zoom: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """A batch of images moved, mirrored and scaled at random, with targets that belong to them.

    Args:
      x: [batch, height, width, channels].
      y: [batch, ..]; integers for each pixel and floats for each object (`boxes`) are moved too.
      shift: see `draw`.
      flip: see `draw`.
      random: that draws.
      zoom: see `draw`.
    """
    moves = draw(shift, flip, (len(x),), random, zoom)
    if y.ndim < 3:
        return moved(x, moves, shift), y
    if y.dtype.kind == "f":
        return moved(x, moves, shift), moved_objects(y, moves, shift, x.shape[1:3])
    return moved(x, moves, shift), moved_classes(y, moves, shift)


def moved_classes(y: np.ndarray, moves: Moves, shift: int) -> np.ndarray:
    """Classes of pixels [batch, height, width] as `moved`; the border has none."""
    return moved((y - VOID)[..., None], moves, shift)[..., 0].astype(y.dtype) + VOID


def moved_objects(y: np.ndarray, moves: Moves, shift: int, size: tuple[int, int]) -> np.ndarray:
    """Objects [batch, objects, FIELDS] of images of this size as `moved`.

    What is left in the image of an object is its box; one whose centre has left it is none.
    """
    by = [np.float32(shift - way) / side for way, side in zip(_ways(moves), size, strict=True)]
    return np.asarray(_shifted(np, y, by, moves), y.dtype)


def moved(x: np.ndarray, moves: Moves, shift: int) -> np.ndarray:
    """Images [batch, height, width, channels] as their moves [batch] show them."""
    border = _border(x.shape, moves, shift)
    rows, columns = _places(np, x.shape, moves, shift, border)
    padded = np.pad(x, _around(border))
    return np.asarray(
        padded[np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None]], np.float32
    )


def moved_in_graph(tf: Any, x: Any, moves: Moves, shift: int) -> Any:
    """`moved` of tensors; the moves are tensors too, of int32, bool and float32 [batch]."""
    border = _border(x.shape, moves, shift)
    rows, columns = _places(tf, x.shape, moves, shift, border)
    x = tf.gather(tf.pad(x, _around(border)), rows, axis=1, batch_dims=1)
    return tf.gather(x, columns, axis=2, batch_dims=1)


def examples_in_graph(tf: Any, x: Any, y: Any, moves: Moves, shift: int) -> tuple[Any, Any]:
    """Tensors of a batch and its targets, moved as those of `examples` are."""
    x, size = moved_in_graph(tf, x, moves, shift), x.shape[1:3]
    if y.shape.rank < 3:
        return x, y
    if y.dtype.is_floating:
        ways = zip(_ways(moves), size, strict=True)
        by = [tf.cast(shift - way, y.dtype) / side for way, side in ways]
        return x, _shifted(tf, y, by, moves)
    return x, moved_in_graph(tf, (y - VOID)[..., None], moves, shift)[..., 0] + VOID


def _ways(moves: Moves) -> tuple[Any, Any]:
    return moves.down, moves.right


def _shifted(xp: Any, y: Any, by: Sequence[Any], moves: Moves) -> Any:
    """Objects moved down and to the right by shares of the image, scaled, then mirrored."""
    middles, ends = [], []
    for axis, share in enumerate(by):
        middle, half = y[..., 1 + axis] + share[:, None], y[..., 3 + axis] / 2
        if moves.scale is not None:
            scale = moves.scale[:, None]
            middle, half = (middle - 0.5) / scale + 0.5, half / scale
        if axis:
            middle = xp.where(moves.mirrored[:, None], 1 - middle, middle)
        middles.append(middle)
        ends.append((xp.maximum(middle - half, 0), xp.minimum(middle + half, 1)))
    seen = (xp.abs(middles[0] - 0.5) < 0.5) & (xp.abs(middles[1] - 0.5) < 0.5)
    (top, bottom), (left, right) = ends
    rows = (y[..., 0], (top + bottom) / 2, (left + right) / 2, bottom - top, right - left)
    none = (VOID, 0.0, 0.0, 0.0, 0.0)
    return xp.stack([xp.where(seen, *pair) for pair in zip(rows, none, strict=True)], axis=-1)


def _border(shape: Any, moves: Moves, shift: int) -> int:
    """Pixels around an image that moves may show."""
    if moves.scale is None:
        return shift
    return shift + math.ceil(LARGEST_ZOOM * max(shape[1:3]) / 2) + 1


def _around(border: int) -> list[list[int]]:
    return [[0, 0], [border, border], [border, border], [0, 0]]


def _places(xp: Any, shape: Any, moves: Moves, shift: int, border: int) -> tuple[Any, Any]:
    """Rows [batch, height] and columns [batch, width] of the bordered image that are seen."""
    _, height, width, _ = shape
    ahead = np.arange(width, dtype=np.int32)
    seen = xp.where(moves.mirrored[:, None], ahead[::-1], ahead)
    if moves.scale is None:
        rows = moves.down[:, None] + np.arange(height, dtype=np.int32)
        return rows, moves.right[:, None] + seen
    found = []
    for way, size, ahead_ in (
        (moves.down, height, np.arange(height, dtype=np.int32)),
        (moves.right, width, seen),
    ):
        middle = np.float32((size - 1) / 2)
        offsets = _float(xp, ahead_) - middle
        nearest = _whole(xp, xp.round(middle + offsets * moves.scale[:, None]))
        found.append(_whole(xp, way)[:, None] + nearest + (border - shift))
    rows, columns = found
    return rows, columns


def _whole(xp: Any, values: Any) -> Any:
    return np.asarray(values, np.int32) if xp is np else xp.cast(values, xp.int32)


def _float(xp: Any, values: Any) -> Any:
    return np.asarray(values, np.float32) if xp is np else xp.cast(values, xp.float32)
