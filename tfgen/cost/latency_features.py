"""What of a network takes time on a device: a sum over its ops of numbers that kernels depend on.

A kernel's time is close to a sum of what it does: calls, rows of output, padded multiplications,
bytes it reads and writes. Each kernel (op, width of its weights in the file, whether it works on an
image) has features of its own, so that a linear model has a coefficient for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tfgen.cost.latency import Floats
from tfgen.space.bits import FLOAT_ACTIVATIONS, BitPolicy
from tfgen.space.layers import NONE, WEIGHTED_OPS, Column, LayerSlots

Mask = npt.NDArray[np.bool_]

CALL = "call"  # one run of the interpreter: what every network takes
ENDS = "ends"  # what is quantized on the way in and dequantized on the way out


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of networks.

    Attributes:
      names: of the features, as `kernel.feature`.
      values: of each network [architectures, features].
    """

    names: tuple[str, ...]
    values: Floats

    def columns(self, names: Sequence[str]) -> Floats:
        """The features of these names; 0 where no network here has one [architectures, names]."""
        place = {name: position for position, name in enumerate(names)}
        aligned = np.zeros((len(self.values), len(names)))
        for name, column in zip(self.names, self.values.T, strict=True):
            if name in place:
                aligned[:, place[name]] = column
        return aligned

    def known(self, names: Sequence[str]) -> Mask:
        """Which networks have none but these features [architectures]."""
        others = [name not in names for name in self.names]
        return np.asarray(~self.values[:, others].any(axis=1))


def stack(parts: Sequence[Features]) -> Features:
    """The networks of all parts, in order."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    return Features(names, np.concatenate([part.columns(names) for part in parts]))


def features(
    slots: Sequence[LayerSlots],
    policy: BitPolicy,
    io: str,
    without: frozenset[str] = frozenset(),
) -> Features:
    """Features of a batch of networks.

    Args:
      slots: the layers.
      policy: says in which containers weights lie; unless activations have 32 bits, which are
        networks of float32.
      io: "float", or "int8" for files whose input and output are integers.
      without: names of features that nobody needs.

    Raises:
      UsageError: the runtime does not execute a layer.
    """
    rows = len(slots[0].present)
    ends = np.zeros(rows, np.int64)
    if io == "float" and slots[0].activation_bits[0] != FLOAT_ACTIVATIONS:
        ends = _elements(slots[0].in_height, slots[0].in_width, slots[0].in_channels)
        made = np.zeros(rows, np.int64)
        for slot in slots:
            output = _elements(slot.out_height, slot.out_width, slot.out_channels)
            made = np.where(slot.present, output, made)
        ends = ends + made
    sums = {
        CALL: np.ones(rows),
        f"{ENDS}.calls": 2.0 * (ends > 0),
        f"{ENDS}.elements": ends.astype(np.float64),
    }
    for slot in slots:
        terms = [(name, values.astype(np.float64)) for name, values in _terms(slot)]
        for kernel, mask in _kernels(slot, policy):
            for name, values in terms:
                key = f"{kernel}.{name}"
                if key in without:
                    continue
                if key not in sums:
                    sums[key] = np.zeros(rows)
                sums[key] += values if mask is None else values * mask
    return Features(tuple(sums), np.stack(list(sums.values())).T)


def _kernels(slot: LayerSlots, policy: BitPolicy) -> Iterator[tuple[str, Mask | None]]:
    """The kernels that run a slot, each with the rows where it does; None for all rows."""
    kinds = {slot.op: slot.present}
    if slot.op == "concat":
        inputs = (slot.inputs != NONE).sum(axis=1)
        kinds = {
            f"concat_{count}": slot.present & (inputs == count)
            for count in _distinct(np.where(slot.present, inputs, 0))
        }
    elif slot.op == "depthwise":  # each side and stride has code of its own
        kinds = {
            f"depthwise_{kernel}x{kernel}_{stride}": slot.present
            & (slot.kernel == kernel)
            & (slot.stride == stride)
            for kernel in _distinct(slot.kernel)
            for stride in _distinct(slot.stride)
        }
    elif slot.op in WEIGHTED_OPS:
        kinds = {f"{slot.op}_{'vector' if slot.in_vector else 'image'}": slot.present}
    for kind, here in kinds.items():
        for width, mask in _containers(slot, here, policy):
            yield f"{kind}@{width}", None if mask.all() else mask


def _containers(slot: LayerSlots, here: Mask, policy: BitPolicy) -> Iterator[tuple[str, Mask]]:
    """Widths of weights in the file and of activations, as text, and the rows that have them."""
    if not here.any():
        return
    activation_bits = int(slot.activation_bits[0])
    if activation_bits == FLOAT_ACTIVATIONS:
        yield f"{FLOAT_ACTIVATIONS}/{activation_bits}", here
        return
    if slot.op not in WEIGHTED_OPS:
        yield f"0/{activation_bits}", here
        return
    found = np.zeros(len(here), np.int64)
    for bits in _distinct(np.where(here, slot.weight_bits, 0)):
        if bits:
            widths = policy.containers(slot.op, bits, activation_bits, slot.in_channels)
            found = np.where(here & (slot.weight_bits == bits), widths, found)
    for width in _distinct(found):
        if width:
            yield f"{width}/{activation_bits}", found == width


def _terms(slot: LayerSlots) -> Iterator[tuple[str, Column]]:
    """What a kernel does for one op [architectures]."""
    pixels = slot.out_height * slot.out_width
    one = np.ones(len(pixels), np.int64)
    yield "calls", one
    if slot.op == "depthwise":
        yield "pixels", pixels
        yield "outputs", pixels * slot.out_channels
        yield "outputs_of_16", pixels * _rounded(slot.out_channels, 16)
        yield "outputs_of_32", pixels * _rounded(slot.out_channels, 32)
        yield "rows", slot.out_height
        yield "rows_of_16", slot.out_height * _rounded(slot.out_channels, 16)
        yield "inputs", _elements(slot.in_height, slot.in_width, slot.in_channels)
    elif slot.op in WEIGHTED_OPS:
        depth = slot.kernel * slot.kernel * slot.in_channels
        rows = -(-pixels // 4) * 4
        yield "pixels", pixels
        yield "macs", pixels * depth * slot.out_channels
        yield "macs_of_16", rows * _rounded(depth, 4) * _rounded(slot.out_channels, 16)
        yield "macs_of_64", pixels * depth * _rounded(slot.out_channels, 64)
        yield "rows_of_8", _rounded(pixels, 8) * depth * _rounded(slot.out_channels, 16)
        yield "macs_of_32", rows * _rounded(depth, 8) * _rounded(slot.out_channels, 32)
        yield "outputs", pixels * slot.out_channels
        yield "outputs_of_16", rows * _rounded(slot.out_channels, 16)
        yield "inputs", pixels * depth
        yield "weights", depth * slot.out_channels
    else:
        yield "pixels", pixels
        yield "outputs", pixels * slot.out_channels
        yield "inputs", _elements(slot.in_height, slot.in_width, slot.in_channels)


def _distinct(values: Column) -> list[int]:
    """The different values of a column of small numbers."""
    return [int(value) for value in np.flatnonzero(np.bincount(values))]


def _elements(height: Column, width: Column, channels: Column) -> Column:
    return np.asarray(height * width * channels)


def _rounded(values: Column, multiple: int) -> Column:
    return np.asarray(-(-values // multiple) * multiple)
