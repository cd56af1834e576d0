"""Passes of image layers for `population_network`: convolution, max pool, mean over the image.

Activations are [starts, channels, height, width, batch]: examples last, so that every copy and sum
moves whole rows of examples, and a convolution's output is its matrix product as it is. A
convolution gathers its windows once (im2col): the product of the matrix with the windows makes the
outputs, that of the windows with the outputs' gradient the matrix's gradient.

Each pass owns its buffers; what it returns is overwritten by its next call.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tfgen.space.layers import LayerSpec
from tfgen.training.buffers import aligned

_ZERO = np.float32(0)


def _windows(layer: LayerSpec) -> Iterator[tuple[int, int, tuple[slice, ...], tuple[slice, ...]]]:
    """The positions of a kernel: row, column, what it reads there, and for which outputs.

    Slices are of height and width. Padding is TensorFlow's SAME: half of what the last window
    lacks, rounded down, comes before the image.
    """
    ends = []  # for height and width, by position: what is read, and for which outputs
    for size, out in zip(layer.in_size, layer.out_size, strict=True):
        lacking = max((out - 1) * layer.stride + layer.kernel - size, 0)
        axis = []
        for position in range(layer.kernel):
            shift = position - lacking // 2  # of the first window's
            first = max(-(shift // layer.stride), 0)
            last = min((size - 1 - shift) // layer.stride, out - 1)
            begin = first * layer.stride + shift
            read = slice(begin, begin + (last - first) * layer.stride + 1, layer.stride)
            axis.append((read, slice(first, last + 1)) if last >= first else None)
        ends.append(axis)
    for row, vertical in enumerate(ends[0]):
        for column, horizontal in enumerate(ends[1]):
            if vertical is not None and horizontal is not None:
                yield row, column, (vertical[0], horizontal[0]), (vertical[1], horizontal[1])


class ConvPass:
    """A convolution with bias and ReLU; a `WeightedPass`.

    The rows of its matrix are those of Keras's kernel [side, side, in, out], then the bias. On a
    small image some positions of the kernel see padding alone: their rows are left out.
    """

    def __init__(self, layer: LayerSpec, starts: int, batch: int):
        channels, out = layer.in_channels, layer.out_channels
        windows = list(_windows(layer))
        rows, columns = len(windows) * channels, layer.out_size[0] * layer.out_size[1] * batch
        image = (starts, channels, *layer.in_size, batch)
        patches, below, made, delta = aligned(
            starts * (rows + 1) * columns,
            starts * rows * columns,
            starts * out * columns,
            int(np.prod(image)),
        )
        self._patches = patches.reshape(starts, rows + 1, columns)
        self._patches[:, -1] = 1
        self._below = below.reshape(starts, rows, columns)  # the gradient by the patches
        self._units = made.reshape(starts, out, columns)
        self._outputs = made.reshape(starts, out, *layer.out_size, batch)
        self._alive = np.empty(self._units.shape, np.bool_)
        self._delta = delta.reshape(image)
        # What windows beyond the image read stays 0.
        self._gathered = []  # (where in the image, patches, gradients) by position of the kernel
        window = (starts, len(windows), channels, *layer.out_size, batch)
        patches_of, below_of = (x.reshape(window) for x in (self._patches[:, :-1], self._below))
        for number, (_, _, (y, x), (to_y, to_x)) in enumerate(windows):
            there = (slice(None), number, slice(None), to_y, to_x)
            where = (slice(None), slice(None), y, x)
            self._gathered.append((where, patches_of[there], below_of[there]))
        self._rows: np.ndarray | None = None  # of the matrix; None for all
        if len(windows) < layer.kernel**2:
            positions = [row * layer.kernel + column for row, column, *_ in windows]
            every = np.arange(layer.kernel**2 * channels).reshape(-1, channels)
            self._rows = np.append(every[positions], every.size)

    def forward(self, x: np.ndarray, matrix_t: np.ndarray) -> np.ndarray:
        for where, patches, _ in self._gathered:
            np.copyto(patches, x[where])
        if self._rows is not None:
            matrix_t = matrix_t.transpose(0, 2, 1)[:, self._rows].transpose(0, 2, 1)
        np.matmul(matrix_t, self._patches, out=self._units)
        np.maximum(self._units, _ZERO, out=self._units)
        return self._outputs

    def backward(
        self, delta: np.ndarray, kernel: np.ndarray, gradient: np.ndarray, need_input: bool
    ) -> np.ndarray | None:
        delta = delta.reshape(self._units.shape)
        np.greater(self._units, _ZERO, out=self._alive)
        np.multiply(delta, self._alive, out=delta)
        delta_t = delta.transpose(0, 2, 1)
        if self._rows is None:
            np.matmul(self._patches, delta_t, out=gradient)
        else:
            gradient.fill(0)
            gradient[:, self._rows] = np.matmul(self._patches, delta_t)
            kernel = kernel[:, self._rows[:-1]]
        if not need_input:
            return None
        np.matmul(kernel, delta, out=self._below)
        self._delta.fill(0)
        for where, _, below in self._gathered:
            np.add(self._delta[where], below, out=self._delta[where])
        return self._delta


class MaxPoolPass:
    """The largest of each window; windows do not overlap. Of equals, the first has the gradient."""

    def __init__(self, layer: LayerSpec, starts: int, batch: int):
        image, out = (
            (starts, layer.in_channels, *size, batch) for size in (layer.in_size, layer.out_size)
        )
        made, delta = aligned(int(np.prod(out)), int(np.prod(image)))
        self._outputs, self._delta = made.reshape(out), delta.reshape(image)
        self._free, self._chosen = (np.empty(out, np.bool_) for _ in range(2))
        self._positions = [
            ((slice(None), slice(None), y, x), (slice(None), slice(None), to_y, to_x))
            for _, _, (y, x), (to_y, to_x) in _windows(layer)
        ]
        self._x: np.ndarray | None = None

    def forward(self, x: np.ndarray) -> np.ndarray:
        self._x = x
        self._outputs.fill(-np.inf)
        for where, to in self._positions:
            np.maximum(self._outputs[to], x[where], out=self._outputs[to])
        return self._outputs

    def backward(self, delta: np.ndarray) -> np.ndarray:
        """The loss's gradient by x."""
        self._free.fill(True)
        for where, to in self._positions:
            free, chosen = self._free[to], self._chosen[to]
            np.equal(self._x[where], self._outputs[to], out=chosen)
            np.logical_and(chosen, free, out=chosen)
            np.logical_xor(free, chosen, out=free)
            np.multiply(delta[to], chosen, out=self._delta[where])
        return self._delta


class MeanPass:
    """The mean of each channel [starts, channels + 1, batch]; a last row of ones is for a bias."""

    def __init__(self, layer: LayerSpec, starts: int, batch: int):
        channels = layer.in_channels
        image = (starts, channels, *layer.in_size, batch)
        made, delta = aligned(starts * (channels + 1) * batch, int(np.prod(image)))
        self._outputs = made.reshape(starts, channels + 1, batch)
        self._outputs[:, -1] = 1
        self._delta = delta.reshape(image)
        self._share = np.float32(1 / (layer.in_size[0] * layer.in_size[1]))

    def forward(self, x: np.ndarray) -> np.ndarray:
        means = self._outputs[:, :-1]
        np.add.reduce(x, axis=(2, 3), out=means)
        np.multiply(means, self._share, out=means)
        return self._outputs

    def backward(self, delta: np.ndarray) -> np.ndarray:
        """The loss's gradient by x."""
        np.multiply(delta[:, :, None, None], self._share, out=self._delta)
        return self._delta
