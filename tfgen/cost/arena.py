"""Bytes of the interpreter's arena before a file is written: its planner's rule, over batches.

All tensors but constants lie in one block of memory, the arena: what goes in and comes out, what
ops make for each other, what an op needs while it runs. TensorFlow Lite places them from the
largest to the smallest, each in the smallest gap between those that are needed at the same time,
or else behind them. Built-in kernels are counted; a delegate such as XNNPACK has memory of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tfgen.cost import counting
from tfgen.space.layers import NETWORK, LayerSlots

Counts = npt.NDArray[np.int64]  # [architectures]
_Table = npt.NDArray[np.int64]  # [tensors, architectures]
_Places = npt.NDArray[np.int32]  # [tensors, architectures]

_ALIGNMENT = 64  # bytes, of every tensor's place
_FLOAT_BITS = 32
_WORD = 4  # bytes of a float, of an accumulator and of a number in a shape
_SCALAR = 4  # bytes; so small a tensor is not written over
_NEVER = 1 << 30  # bytes, more than any gap
_ROWS = 1_000  # architectures that are placed at once: their tensors fit the processor's cache


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensors:
    """The tensors of a batch of networks that have places of their own.

    Attributes:
      sizes: in bytes, 0 where a network lacks the tensor [tensors, architectures].
      first: the op that makes each one [tensors].
      last: the op that reads it last [tensors, architectures].
    """

    sizes: _Table
    first: npt.NDArray[np.int64]
    last: _Table


def arena_bytes(slots: Sequence[LayerSlots], io: str = "float") -> Counts:
    """Bytes of the arena, without delegates [architectures].

    Args:
      slots: of the networks; those whose activations have 32 bits are networks of floats.
      io: "float", or "int8" for files whose input and output are integers.
    """
    tensors = _tensors(slots, io)
    sizes, first, last = tensors.sizes, tensors.first, tensors.last
    # The planner's order: what lives from the first op to the end, then by size, then by time.
    ever = (sizes > 0) & (first == 0)[:, None] & (last == len(slots) + 2)
    keys = first[:, None] - np.where(ever, _NEVER, sizes) * (len(slots) + 3)
    order = np.argsort(keys, axis=0, kind="stable")
    counts = (sizes > 0).sum(axis=0)
    found = np.zeros(len(counts), np.int64)
    # Networks of as many tensors together: the time is quadratic in their number.
    for rows in np.array_split(np.argsort(counts), len(counts) // _ROWS + 1):
        chosen = order[: counts[rows].max(initial=0), rows]
        placed = (sizes[chosen, rows], first[chosen], last[chosen, rows])
        found[rows] = _end(*(table.astype(np.int32) for table in placed))
    return found


def _tensors(slots: Sequence[LayerSlots], io: str) -> _Tensors:
    """Op 0 is QUANTIZE, op i + 1 is that of slot i, then comes DEQUANTIZE.

    What the user sets and gets is kept to the end.
    """
    bits = slots[0].activation_bits
    wrapped = (bits < _FLOAT_BITS) & (io == "float")  # in QUANTIZE and DEQUANTIZE
    rows, end = np.arange(len(bits)), len(slots) + 1
    # Tensor 0 is the network's input, tensor i + 1 is what slot i makes.
    elements = np.stack(
        [
            counting.input_elements(slots[0]),
            *(np.where(s.present, counting.output_elements(s), 0) for s in slots),
        ]
    )
    result = np.max([np.where(s.present, i, 0) for i, s in enumerate(slots, 1)], axis=0)
    sizes = elements * bits // 8
    owners, last = _lifetimes(slots, sizes, result, wrapped)
    sizes[owners != np.arange(end)[:, None]] = 0
    floats = np.stack([elements[0], elements[result, rows]]) * _WORD * wrapped
    inside = [(i, size) for i, s in enumerate(slots, 1) for size in _temporaries(s)]
    ops = np.array([op for op, _ in inside], np.int64)
    return _Tensors(
        np.concatenate([sizes, floats, *(size[None] for _, size in inside)]),
        np.concatenate([np.arange(end), [0, end], ops]),
        np.concatenate(
            [last, np.full_like(floats, end + 1), np.repeat(ops[:, None], len(rows), axis=1)]
        ),
    )


def _lifetimes(
    slots: Sequence[LayerSlots],
    sizes: _Table,
    result: npt.NDArray[np.int64],
    wrapped: npt.NDArray[np.bool_],
) -> tuple[_Table, _Table]:
    """In whose place each tensor lies, and the op that reads that place last.

    A flattened tensor is its input. A sum or product is written over an input of its size that
    nobody else reads. What the user sets or gets takes no part in this.
    """
    rows, end = np.arange(sizes.shape[1]), len(slots) + 1
    readers = np.zeros_like(sizes)
    readers[0] = ~wrapped  # the user
    for slot in slots:
        for source in slot.inputs.T:
            readers[source + 1, rows] += slot.present & (source >= NETWORK)
    readers[result, rows] += 1
    owners = np.repeat(np.arange(end)[:, None], len(rows), axis=1)
    last = np.zeros_like(sizes)
    last[0] = (end + 1) * ~wrapped
    for tensor, slot in enumerate(slots, 1):
        alone = ~slot.present | ((result == tensor) & ~wrapped)
        for source in slot.inputs.T + 1:
            owner = owners[source, rows]
            read = slot.present & (source > NETWORK)
            last[owner[read], rows[read]] = np.maximum(last[owner[read], rows[read]], tensor)
            if slot.op == "flatten":
                taken = ~alone & ((source > 0) | wrapped)
            elif slot.op in ("add", "multiply"):
                taken = ~alone & (sizes[source, rows] == sizes[tensor]) & (sizes[tensor] > _SCALAR)
                taken &= (readers[source, rows] == 1) & (readers[owner, rows] == 1)
            else:
                continue
            owners[tensor] = np.where(taken, owner, owners[tensor])
            alone |= taken
    last[owners[result, rows], rows] = np.where(wrapped, end, end + 1)
    return owners, last


def _temporaries(slot: LayerSlots) -> list[Counts]:
    """Bytes of what an op needs while it runs [architectures]."""
    if slot.op == "conv":  # the input's patches, unless each is one position
        patches = slot.present & ((slot.kernel > 1) | (slot.stride > 1))
        elements = slot.out_height * slot.out_width * slot.kernel**2 * slot.in_channels
        return [elements * slot.activation_bits // 8 * patches]
    if slot.op == "mean":  # the input's shape, two axes, a sum for each channel
        return [numbers * _WORD * slot.present for numbers in (4, 2, slot.out_channels)]
    return []


def _end(sizes: _Places, first: _Places, last: _Places) -> Counts:
    """Where the arena ends when tensors are placed in this order [architectures].

    Products with masks stand for `np.where`, which takes ten times as long on small tables.
    """
    count, rows = sizes.shape
    row = np.arange(rows)
    end = np.zeros(rows, np.int64)
    # Start, end, first and last op of what is placed, in the order of starts.
    placed = np.zeros((4, count, rows), np.int32)
    for number, (size, made, read) in enumerate(zip(sizes, first, last, strict=True)):
        starts, ends, firsts, lasts = placed[:, :number]
        near = (firsts <= read) & (lasts >= made)
        free = np.zeros((number + 1, rows), np.int32)  # before each one, and behind all
        np.maximum.accumulate(ends * near, axis=0, out=free[1:])
        free += _ALIGNMENT - 1
        free &= -_ALIGNMENT
        gaps = starts - free[:-1]
        gaps += _NEVER * (~near | (gaps < size))
        least = gaps.min(axis=0, initial=_NEVER)
        # The first of the smallest gaps; behind all where none is large enough.
        free[:-1] += _NEVER * ((gaps > least) | (least >= _NEVER // 2))
        place = free.min(axis=0)
        np.maximum(end, (place + size) * (size > 0), out=end)
        above = starts > place
        placed[:, 1 : number + 1] += (placed[:, :number] - placed[:, 1 : number + 1]) * above
        position = number - above.sum(axis=0, dtype=np.int32)
        placed[:, position, row] = place, place + size, made, np.where(size > 0, read, -1)
    return end
