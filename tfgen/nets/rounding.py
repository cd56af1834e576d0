"""Rounding of weights: per output channel, symmetric, 2**bits - 1 levels.

A channel's scale is max|w| / (2**(bits-1) - 1) of the weights as they are; the same arithmetic as
the population trainer's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfgen.nets.keras_compat import tf

_MIN_WEIGHT = 1e-8  # a channel of zeros still has a scale


def top_level(bits: int) -> int:
    """The largest level of a weight: levels are -top_level .. top_level."""
    return 2 ** (bits - 1) - 1


def by_channel(kernel: Any, op: str) -> Any:
    """A Keras kernel with its output channels last: a depthwise one without its last axis of 1."""
    return kernel[..., 0] if op == "depthwise" else kernel


def weight_levels(kernel: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels [..., out] int64 of a kernel [..., out]; scale [out] float32 of each channel."""
    top = np.float32(top_level(bits))
    largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    scale = np.maximum(largest, np.float32(_MIN_WEIGHT)) / top
    return np.rint(kernel / scale).astype(np.int64), scale


def rounded(kernel: tf.Tensor, top: Any) -> tf.Tensor:
    """A kernel [..., out] on its levels -top .. top; the gradient goes straight through."""
    axes = list(range(kernel.shape.rank - 1))
    scale = tf.maximum(tf.reduce_max(tf.abs(kernel), axes), _MIN_WEIGHT) / top
    return kernel + tf.stop_gradient(tf.round(kernel / scale) * scale - kernel)
