"""Training images moved by some pixels, mirrored and lit otherwise, each at random.

What is drawn are plain numbers, by NumPy, for a batch or for all batches of a training; an image is
moved by two look-ups, of rows and of columns, in NumPy or in a graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfgen.training.tasks import VOID


@dataclasses.dataclass(frozen=True)
class Moves:
    """Where images go; arrays of any equal shape.

    Attributes:
      down: first row that is seen, of an image with a border of zeros.
      right: first column.
      mirrored: whether columns are seen from right to left.
    """

    down: np.ndarray
    right: np.ndarray
    mirrored: np.ndarray


def draw(shift: int, flip: bool, shape: tuple[int, ...], random: np.random.Generator) -> Moves:
    """Draws moves.

    Args:
      shift: pixels by which an image is moved at most, in each direction; the border's width.
      flip: whether half of the images are mirrored.
      shape: of the arrays.
      random: that draws.
    """
    down = right = np.zeros(shape, np.int8)
    mirrored = np.zeros(shape, bool)
    if shift:
        down, right = random.integers(2 * shift + 1, size=(2, *shape)).astype(np.int8)
    if flip:
        mirrored = random.random(shape) < 0.5
    return Moves(down, right, mirrored)


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
    """Images [batch, height, width, channels] times factors [batch, channels], within `ends`.

    Numbers are of light: 0 is black. What is too bright is white, as in a photograph.
    """
    scaled = x * factors[:, None, None]
    return xp.minimum(xp.maximum(scaled, ends[0]), ends[1])


def examples(
    x: np.ndarray, y: np.ndarray, shift: int, flip: bool, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A batch of images moved and mirrored at random, with targets that belong to them.

    Args:
      x: [batch, height, width, channels].
      y: [batch, ..]; integers for each pixel and floats for each object (`boxes`) are moved too.
      shift: see `draw`.
      flip: see `draw`.
      random: that draws.
    """
    moves = draw(shift, flip, (len(x),), random)
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
    return np.asarray(_shifted(np, y, by, moves.mirrored), y.dtype)


def moved(x: np.ndarray, moves: Moves, shift: int) -> np.ndarray:
    """Images [batch, height, width, channels] as their moves [batch] show them."""
    rows, columns = _places(np, x.shape, moves)
    padded = np.pad(x, _border(shift))
    return np.asarray(
        padded[np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None]], np.float32
    )


def moved_in_graph(tf: Any, x: Any, moves: Moves, shift: int) -> Any:
    """`moved` of tensors; the moves are tensors too, of int32 and bool [batch]."""
    rows, columns = _places(tf, x.shape, moves)
    x = tf.gather(tf.pad(x, _border(shift)), rows, axis=1, batch_dims=1)
    return tf.gather(x, columns, axis=2, batch_dims=1)


def examples_in_graph(tf: Any, x: Any, y: Any, moves: Moves, shift: int) -> tuple[Any, Any]:
    """Tensors of a batch and its targets, moved as those of `examples` are."""
    x, size = moved_in_graph(tf, x, moves, shift), x.shape[1:3]
    if y.shape.rank < 3:
        return x, y
    if y.dtype.is_floating:
        ways = zip(_ways(moves), size, strict=True)
        by = [tf.cast(shift - way, y.dtype) / side for way, side in ways]
        return x, _shifted(tf, y, by, moves.mirrored)
    return x, moved_in_graph(tf, (y - VOID)[..., None], moves, shift)[..., 0] + VOID


def _ways(moves: Moves) -> tuple[Any, Any]:
    return moves.down, moves.right


def _shifted(xp: Any, y: Any, by: Sequence[Any], mirrored: Any) -> Any:
    """Objects moved down and to the right by shares of the image, then mirrored."""
    middles, ends = [], []
    for axis, share in enumerate(by):
        middle, half = y[..., 1 + axis] + share[:, None], y[..., 3 + axis] / 2
        if axis:
            middle = xp.where(mirrored[:, None], 1 - middle, middle)
        middles.append(middle)
        ends.append((xp.maximum(middle - half, 0), xp.minimum(middle + half, 1)))
    seen = (xp.abs(middles[0] - 0.5) < 0.5) & (xp.abs(middles[1] - 0.5) < 0.5)
    (top, bottom), (left, right) = ends
    rows = (y[..., 0], (top + bottom) / 2, (left + right) / 2, bottom - top, right - left)
    none = (VOID, 0.0, 0.0, 0.0, 0.0)
    return xp.stack([xp.where(seen, *pair) for pair in zip(rows, none, strict=True)], axis=-1)


def _border(shift: int) -> list[list[int]]:
    return [[0, 0], [shift, shift], [shift, shift], [0, 0]]


def _places(xp: Any, shape: Any, moves: Moves) -> tuple[Any, Any]:
    """Rows [batch, height] and columns [batch, width] of the bordered image that are seen."""
    _, height, width, _ = shape
    ahead = np.arange(width, dtype=np.int32)
    rows = moves.down[:, None] + np.arange(height, dtype=np.int32)
    seen = xp.where(moves.mirrored[:, None], ahead[::-1], ahead)
    return rows, moves.right[:, None] + seen
