"""Bytes of a network's .tflite before it is written: the file's layout, counted over batches.

The file is a FlatBuffer as `deployment.tflite_file` lays it out: tables with offsets to their
parts, each kind with a vtable that says where its fields stand. Constants stand at multiples of 16
bytes, zero points of 8, all else of 4.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tfgen.cost import counting
from tfgen.space.bits import BitPolicy
from tfgen.space.layers import INPUT, NETWORK, POOLS, WEIGHTED_OPS, LayerSlots

Counts = npt.NDArray[np.int64]  # [architectures]
Mask = npt.NDArray[np.bool_]  # [architectures]
_Bytes = TypeVar("_Bytes", int, Counts)

_OFFSET = 4  # bytes of an offset, and of a vector's length
_ALIGNMENT = 16
_SIGNATURE_STRINGS = ("serving_default", "x", "output_0")
_DEQUANTIZED = "_dequant"  # what the float output's name adds to the last layer's


def _rounded(size: _Bytes, unit: int) -> _Bytes:
    """A size rounded up to a multiple of a power of two."""
    return (size + (unit - 1)) & -unit


def _vector(elements: _Bytes) -> _Bytes:
    """Bytes of a vector of numbers of four bytes."""
    return _OFFSET + 4 * elements


def _string(length: _Bytes) -> _Bytes:
    """Bytes of a text, which ends in a zero."""
    return _OFFSET + _rounded(length + 1, 4)


def _shape(vector: bool) -> int:
    """Bytes of an activation's shape, [1, units] or [1, height, width, channels]."""
    return _vector(2 if vector else 4)


@dataclasses.dataclass(frozen=True)
class _Table:
    """What one table takes.

    Attributes:
      size: its bytes.
      vtable: its bytes and where each field stands; equal vtables are written once.
    """

    size: int
    vtable: tuple[int, ...]


@functools.cache
def _table(*fields: tuple[int, int]) -> _Table:
    """A table of (number of the field in the schema, its bytes), in the order of writing.

    Written from its end to its start, every field at a multiple of its size.
    """
    written = 0
    ends = {}
    for number, size in fields:
        written = _rounded(written, size) + size
        ends[number] = written
    written = _rounded(written, _OFFSET) + _OFFSET  # the offset of the vtable comes first
    places = [written - ends[i] if i in ends else 0 for i in range(max(ends, default=-1) + 1)]
    return _Table(written, (written, *places))


# Fields as (number, bytes), in the order in which the schema's code writes them.
_EMPTY = _table()
_MODEL = _table(
    (0, 4), (1, 4), (2, 4), (4, 4), (7, 4)
)  # version, codes, graphs, buffers, signatures
_GRAPH = _table((0, 4), (1, 4), (2, 4), (3, 4))  # tensors, inputs, outputs, operators
_SIGNATURE = _table((0, 4), (1, 4), (2, 4))  # inputs, outputs, key
_SIGNATURE_INPUT = _table((0, 4))  # name; the tensor is number 0, which is not written
_SIGNATURE_OUTPUT = _table((0, 4), (1, 4))  # name, tensor
_CODE = _table((0, 1), (2, 4), (3, 4))  # old code, version, code
_CODE_OF_VERSION_1 = _table((0, 1), (3, 4))
_CODE_0 = _table((2, 4))  # ADD: its code is 0, which is not written
_BUFFER = _table((0, 4))  # data
_FLOAT_TENSOR = _table((0, 4), (3, 4))  # shape, name; float is type 0
_NAMED_TENSOR = _table((0, 4), (1, 1), (3, 4), (4, 4))  # shape, type, name, quantization
_UNNAMED_TENSOR = _table((0, 4), (1, 1), (4, 4))
_CONSTANT_TENSOR = _table((0, 4), (1, 1), (2, 4), (4, 4))  # shape, type, buffer, quantization
_PARAMETER_TENSOR = _table((0, 4), (1, 1), (2, 4))  # shape, type, buffer
_QUANTIZATION = _table((2, 4), (3, 4))  # scales, zero points
_QUANTIZATION_OF_LAST = _table((2, 4), (3, 4), (6, 4))  # and the dimension of the channels
_OPERATOR_0 = _table((1, 4), (2, 4))  # inputs, outputs; code number 0 is not written
_OPERATOR = _table((0, 4), (1, 4), (2, 4))  # code, inputs, outputs
_OPERATOR_WITH_OPTIONS = _table((0, 4), (1, 4), (2, 4), (3, 1), (4, 4))
_OPERATOR_0_WITH_OPTIONS = _table((1, 4), (2, 4), (3, 1), (4, 4))
_CODES = {
    "add": _CODE_0,
    "flatten": _CODE_OF_VERSION_1,
    "hard_swish": _CODE_OF_VERSION_1,
    "quantize": _CODE_OF_VERSION_1,
}
# Constant inputs of ops without weights; of some, one of two numbers.
_PARAMETERS = {"flatten": 1, "mean": 1, "pad": 1, "resize": 1, "slice": 3}
_PAIRS, _PAIR = ("flatten", "mean", "resize"), 1 << 15
_PADDINGS = 32  # bytes of a pad's, two numbers for each of four dimensions


def _options(slot: LayerSlots) -> _Table | None:
    """The table of an op's options, without what is 0; None for an op without options."""
    fused = slot.activation != "linear"
    image = not slot.out_vector
    valid = [(0, 1)] * slot.valid  # padding is written where windows stay within the image
    return {
        "add": _table(*[(0, 1)] * fused),
        # Padding, strides, window.
        **dict.fromkeys(POOLS, _table(*valid, (1, 4), (2, 4), (3, 4), (4, 4))),
        "concat": _table((0, 4)),  # axis
        # Padding, strides, activation.
        "conv": _table(*valid, (1, 4), (2, 4), *[(3, 1)] * fused),
        # Activation, whether leading dimensions are kept.
        "dense": _table(*[(0, 1)] * fused, *[(2, 1)] * image),
        # Padding, strides, depth multiplier, activation.
        "depthwise": _table(*valid, (1, 4), (2, 4), (3, 4), *[(4, 1)] * fused),
        "mean": _table(*[(0, 1)] * image),  # whether the image's dimensions are kept
        "multiply": _EMPTY,
        "pad": _EMPTY,
        "resize": _table((1, 1)),  # that pixels' centres lie at halves
        "slice": _table((0, 4), (1, 4)),  # masks of begin and end
    }.get(slot.op)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Tables that stand together in a batch of files.

    Attributes:
      times: how often a file has them [architectures].
      tables: one of each.
      parts: bytes of the vectors and texts that they point to, and of the offsets to them.
    """

    times: npt.NDArray[np.bool_ | np.int64]
    tables: tuple[_Table, ...]
    parts: Counts | int = 0


def file_bytes(slots: Sequence[LayerSlots], policy: BitPolicy, io: str = "float") -> Counts:
    """Bytes of the file [architectures].

    A trained file is as large as counted unless a ReLU's range does not start at 0, which costs 16
    bytes.

    Args:
      slots: the networks, each with one width of activations.
      policy: the runtime's; says in which containers weights lie.
      io: "float", or "int8" for a file whose input and output are integers.

    Raises:
      UsageError: the runtime does not execute a layer at its bits.
    """
    parts = [*_frame(slots), *_ends(slots, io), *_codes(slots, io), *_parameters(slots)]
    first = _first_op(slots) if io == "int8" else None
    for slot in slots:
        numbered_0 = np.zeros_like(slot.present) if first is None else first == slot.op
        parts.append(_layer(slot, slot.present & ~numbered_0, _OPERATOR, _OPERATOR_WITH_OPTIONS))
        if numbered_0.any():
            tables = (_OPERATOR_0, _OPERATOR_0_WITH_OPTIONS)
            parts.append(_layer(slot, slot.present & numbered_0, *tables))
    total = _constants(slots, policy) + _zero_points(slots)
    vtables: dict[tuple[int, ...], Mask] = {}
    for part in parts:
        total += part.times * (sum(table.size for table in part.tables) + part.parts)
        for table in part.tables:
            vtables[table.vtable] = (part.times > 0) | vtables.get(table.vtable, False)
    for vtable, present in vtables.items():
        total += present * _rounded(2 * len(vtable) + 2, 4)
    return _rounded(total + 2 * _OFFSET, _ALIGNMENT)  # the first table's offset, "TFL3"


def _frame(slots: Sequence[LayerSlots]) -> Iterator[_Part]:
    """What every file has: a graph, a signature, and a first buffer without data."""
    tables = (_MODEL, _GRAPH, _SIGNATURE, _SIGNATURE_INPUT, _SIGNATURE_OUTPUT, _EMPTY)
    one = _vector(1)
    parts = 2 * _vector(0) + 2 * one  # codes and buffers; one graph, one signature
    parts += 2 * _vector(0) + 2 * one  # tensors and ops; one input, one output
    parts += 2 * one + sum(_string(len(text)) for text in _SIGNATURE_STRINGS)
    yield _Part(np.ones_like(slots[0].present), tables, parts + _OFFSET)


def _first_op(slots: Sequence[LayerSlots]) -> npt.NDArray[np.str_]:
    """The op that stands first in each file [architectures]: its code is number 0."""
    first = np.argmax(np.stack([slot.present for slot in slots]), axis=0)
    return np.asarray(np.array([slot.op for slot in slots], np.str_)[first])


def _ends(slots: Sequence[LayerSlots], io: str) -> Iterator[_Part]:
    """The input, and between float ends and the integers, ops and the output."""
    always = np.ones_like(slots[0].present)
    last: Counts = np.zeros(len(always), np.int64)
    for slot in slots:
        last = np.where(slot.present, len(slot.name), last)
    shape = _shape(slots[0].in_vector)
    operator = _OFFSET + 2 * _vector(1)
    parts = _OFFSET + shape + _string(len(INPUT)) + _vector(1)
    if io == "int8":
        yield _Part(always, (_NAMED_TENSOR, _QUANTIZATION), parts)
        return
    parts += operator + _OFFSET + shape
    yield _Part(always, (_FLOAT_TENSOR, _OPERATOR_0, _UNNAMED_TENSOR, _QUANTIZATION), parts)
    texts = _string(last + len(_DEQUANTIZED))
    parts = operator + _OFFSET + _shape(slots[-1].out_vector)
    yield _Part(always, (_OPERATOR, _FLOAT_TENSOR), parts + texts)


def _codes(slots: Sequence[LayerSlots], io: str) -> Iterator[_Part]:
    """One code for each op that a file has."""
    present: dict[str, Mask] = {}
    if io == "float":
        wide = slots[0].activation_bits == 16
        present = {"quantize": ~wide, "wide_quantize": wide, "dequantize": np.ones_like(wide)}
    for slot in slots:
        present[slot.op] = slot.present | present.get(slot.op, False)
    for op, times in present.items():
        yield _Part(times, (_CODES.get(op, _CODE),), _OFFSET)


def _layer(slot: LayerSlots, times: Mask, operator: _Table, with_options: _Table) -> _Part:
    """An op, its output and its weights."""
    weighted = slot.op in WEIGHTED_OPS
    constants = 2 if weighted else _PARAMETERS.get(slot.op, 0)
    inputs: Counts = 4 * np.count_nonzero(slot.inputs >= NETWORK, axis=1)
    parts = _OFFSET + _vector(constants) + _vector(1)  # to the op; its inputs and output
    parts += _OFFSET + _shape(slot.out_vector) + _string(len(slot.name)) + _vector(1)
    options = _options(slot)
    tables = [_NAMED_TENSOR, _QUANTIZATION]
    tables += [operator] if options is None else [with_options, options]
    if not weighted:
        return _Part(times, tuple(tables), parts + inputs)
    tables += [_CONSTANT_TENSOR, _BUFFER, _CONSTANT_TENSOR, _BUFFER, _QUANTIZATION]
    tables += [_QUANTIZATION_OF_LAST if slot.op == "depthwise" else _QUANTIZATION]
    parts += 4 * _OFFSET + _vector(2 if slot.op == "dense" else 4) + _vector(1)  # shapes
    scales = 2 * _vector(slot.out_channels)
    return _Part(times, tuple(tables), parts + inputs + scales)


def _parameters(slots: Sequence[LayerSlots]) -> Iterator[_Part]:
    """The constants that tell ops what to do; equal ones are one tensor."""
    for times, size in _parameter_sizes(slots):
        shape = _vector(2 if size == _PADDINGS else 1)
        yield _Part(times, (_PARAMETER_TENSOR, _BUFFER), 2 * _OFFSET + shape)


def _parameter_sizes(slots: Sequence[LayerSlots]) -> Iterator[tuple[Counts, int]]:
    """How many parameters of a kind a file has [architectures], and the bytes of one."""
    if pads := [np.where(s.present, s.offset, 0) for s in slots if s.op == "pad"]:
        yield np.count_nonzero(_distinct(pads), axis=1), _PADDINGS
    pairs = [np.where(s.present, _pair(s), 0) for s in slots if s.op in _PAIRS]
    if pairs:
        yield np.count_nonzero(_distinct(pairs), axis=1), 8
    if slices := [s for s in slots if s.op == "slice"]:
        # Begins and ends of the same place are one; a place is counted from 1. The strides.
        places = [np.where(s.present, s.offset + 1, 0) for s in slices]
        places += [np.where(s.present, s.offset + s.out_channels + 1, 0) for s in slices]
        strides = np.any([s.present for s in slices], axis=0)
        yield np.count_nonzero(_distinct(places), axis=1) + strides, 16


def _pair(slot: LayerSlots) -> Counts:
    """The two numbers that are the parameter of an op in _PAIRS, as one [architectures]."""
    if slot.op == "flatten":  # -1 and the features
        return -slot.out_channels
    if slot.op == "resize":
        return np.asarray(slot.out_height * _PAIR + slot.out_width)
    return np.full_like(slot.out_height, _PAIR + 2)  # the mean's axes


def _constants(slots: Sequence[LayerSlots], policy: BitPolicy) -> Counts:
    """Bytes of the constants' data, each at a multiple of 16, with their lengths."""
    total: Counts = np.zeros(len(slots[0].present), np.int64)
    first: Counts = np.zeros_like(total)  # data of the file's first constant
    for slot in reversed(slots):
        if slot.op in WEIGHTED_OPS:
            wide = slot.activation_bits == 16
            kernel = -(-counting.kernel_elements(slot) * _containers(slot, policy) // 8)
            for data in (kernel, slot.out_channels * np.where(wide, 8, 4)):
                total += np.where(slot.present, _rounded(data + _OFFSET, _ALIGNMENT), 0)
            first = np.where(slot.present, kernel, first)
        elif slot.op in _PARAMETERS:
            size = {"pad": _PADDINGS, "slice": 16}.get(slot.op, 8)
            first = np.where(slot.present, size, first)
    for times, size in _parameter_sizes(slots):
        total += times * _rounded(size + _OFFSET, _ALIGNMENT)
    # Behind the first constant's data, which end the file, stands no length.
    return total + _OFFSET - _rounded(first + _OFFSET, _ALIGNMENT) + _rounded(first, _ALIGNMENT)


def _containers(slot: LayerSlots, policy: BitPolicy) -> Counts:
    """Width of one weight in the file [architectures]; 0 where the layer is absent."""
    widths = np.zeros_like(slot.weight_bits)
    for wide, activation_bits in (
        (slot.activation_bits == 16, 16),
        (slot.activation_bits != 16, 8),
    ):
        chosen = slot.present & wide
        for weight_bits in np.flatnonzero(np.bincount(slot.weight_bits[chosen])):
            here = chosen & (slot.weight_bits == weight_bits)
            widths[here] = policy.containers(
                slot.op, int(weight_bits), activation_bits, slot.in_channels[here]
            )
    return widths


def _zero_points(slots: Sequence[LayerSlots]) -> Counts:
    """Bytes of the zero points with their lengths, each at a multiple of 8.

    Constants of as many channels share theirs; so do the activations whose zero point is fixed: all
    of 16 bits, with the constants of one channel, and those of 8 bits that are nowhere below 0.
    """
    wide = slots[0].activation_bits == 16
    channels = [np.where(s.present, s.out_channels, 0) for s in slots if s.op in WEIGHTED_OPS]
    distinct = _distinct([*channels, wide.astype(np.int64)])
    shared = 8 * distinct.sum(axis=1) + 8 * np.count_nonzero(distinct, axis=1)
    own = np.ones(len(wide), np.int64)  # the input's
    fixed = np.zeros_like(wide)
    for slot in slots:
        if slot.activation != "linear" or slot.op == "sigmoid":
            fixed = fixed | slot.present
        else:
            own += slot.present
    return np.asarray(shared + np.where(wide, 0, 16 * (own + fixed)))


def _distinct(values: Sequence[Counts]) -> npt.NDArray[np.int32]:
    """Each row's values, repeated ones as 0 [architectures, values]."""
    ordered = np.sort(np.stack(values, axis=1).astype(np.int32), axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = 0
    return ordered
