"""TensorFlow under NumPy's names: what code that runs on either is called with as `xp`.

Only what such code uses. A name means what it means in NumPy 2; arrays of other types do not mix,
as TensorFlow has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfgen.nets.keras_compat import tf

bool_, float32, float64, int64, uint32 = tf.bool, tf.float32, tf.float64, tf.int64, tf.uint32

abs = tf.abs
einsum = tf.einsum
exp = tf.exp
left_shift = tf.bitwise.left_shift
log = tf.math.log
matmul = tf.linalg.matmul
maximum = tf.maximum
minimum = tf.minimum
ones_like = tf.ones_like
reshape = tf.reshape
right_shift = tf.bitwise.right_shift
sqrt = tf.sqrt
square = tf.square
stack = tf.stack
tanh = tf.tanh
where = tf.where
zeros_like = tf.zeros_like


def asarray(x: Any, dtype: Any = None) -> Any:
    """A tensor; of a NumPy array its own type unless another is named."""
    return tf.cast(x, dtype) if tf.is_tensor(x) and dtype else tf.convert_to_tensor(x, dtype)


def astype(x: Any, dtype: Any) -> Any:
    return tf.cast(x, dtype)


def concatenate(arrays: Sequence[Any], axis: int = 0) -> Any:
    return tf.concat(arrays, axis)


def convolve(x: Any, kernel: Any) -> Any:
    """A convolution of stride 1, padded with zeros [batch, rows, columns, channels]."""
    return tf.nn.conv2d(x, kernel, 1, "SAME")


def searchsorted(ascending: Any, places: Any) -> Any:
    """Row by row, how many numbers lie below each place, int64 [rows, places]."""
    return tf.searchsorted(ascending, places, out_type=tf.int64)


def split(x: Any, parts: int, axis: int = 0) -> Any:
    return tf.split(x, parts, axis)


def take(x: Any, indices: Any, axis: int = 0) -> Any:
    return tf.gather(x, indices, axis=axis)


def take_along_axis(x: Any, indices: Any, axis: int) -> Any:
    """For indices of as many dimensions as x, whose first ones up to the axis are equal."""
    return tf.gather(x, indices, axis=axis, batch_dims=axis)


def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return tf.reduce_sum(x, axis, keepdims)


def max(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return tf.reduce_max(x, axis, keepdims)


def any(x: Any, axis: Any = None) -> Any:
    return tf.reduce_any(x, axis)


def argmax(x: Any, axis: int) -> Any:
    return tf.argmax(x, axis, output_type=tf.int64)


def sort(x: Any, axis: int = -1) -> Any:
    """From the least."""
    return tf.sort(x, axis)


def argsort(x: Any, axis: int = -1) -> Any:
    """Stable, from the least."""
    return tf.argsort(x, axis, stable=True)
