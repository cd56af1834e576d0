"""LayerSpec: one op of a network; LayerSlots: the same for a batch of architectures.

A network is a list of `LayerSpec`s in the order of execution, each naming its inputs: one spec is
one Keras layer, one op of the file and one output tensor. `lowering.py` makes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

WEIGHTED_OPS = ("dense", "conv", "depthwise")
# Ops whose output is its input's numbers, moved, and zeros, or averages of them: the tensor has the
# input's range.
SAME_RANGE_OPS = ("average_pool", "flatten", "max_pool", "pad", "resize", "slice")
POOLS = ("average_pool", "max_pool")
WINDOWED_OPS = ("conv", "depthwise", *POOLS)
OPS = (*WEIGHTED_OPS, *SAME_RANGE_OPS, "add", "concat", "hard_swish", "mean", "multiply", "sigmoid")
# Activations that an op applies by itself; the others are ops of their own.
FUSED_ACTIVATIONS = ("linear", "relu", "relu6")
_FUSING_OPS = (*WEIGHTED_OPS, "add")
INPUT = "input"  # the name by which layers take the network's input

_LARGEST = 2**31  # a number of a layer that others wrote is below
Size = tuple[int, ...]  # (height, width) of an image, () of a vector
Key = TypeVar("Key")
Column = npt.NDArray[np.int64]  # [architectures]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One op of a network.

    Attributes:
      name: unique in its network; the name of the Keras layer and the recipe's key.
      op: one of OPS. A dense layer on an image runs at each of its positions: a 1x1 convolution.
      inputs: names of the layers it reads, INPUT for the network's input.
      kernel: side of the kernel or of the pooling window, otherwise 1.
      stride: 1 or more; convolutions and pools pad so that out_size = ceil(in_size / stride). An
        average is of the pixels that a window has of the image. A resize repeats each pixel so
        often in both directions: out_size = in_size * stride.
      valid: whether windows stay within the image instead: floor((in_size - kernel) / stride) + 1.
      in_channels: of the first input.
      out_channels: of the output.
      in_size: of the first input.
      out_size: of the output.
      weight_bits: width of one weight; 0 without weights.
      activation_bits: width of one element of the output.
      activation: what the op applies to its result, one of FUSED_ACTIVATIONS.
      batch_norm: whether batch normalisation stands between a weighted op and its activation.
      offset: of a slice, the first channel it takes; of a pad, the zeros on each side of the image.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    in_channels: int
    out_channels: int
    in_size: Size = ()
    out_size: Size = ()
    kernel: int = 1
    stride: int = 1
    weight_bits: int = 0
    activation_bits: int = 8
    activation: str = "linear"
    batch_norm: bool = False
    offset: int = 0
    valid: bool = False

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"layer {self.name!r}: op must be one of {OPS}, got {self.op!r}")
        if self.activation not in FUSED_ACTIVATIONS:
            raise ValueError(f"layer {self.name!r}: activation must be one of {FUSED_ACTIVATIONS}")
        if self.activation != "linear" and self.op not in _FUSING_OPS:
            raise ValueError(f"layer {self.name!r}: {self.op} applies no activation")
        sizes = (*self.in_size, *self.out_size)
        if {len(self.in_size), len(self.out_size)} - {0, 2} or min(sizes, default=1) < 1:
            raise ValueError(f"layer {self.name!r}: a size is (height, width) or (): {self}")
        numbers = (self.kernel, self.stride, self.in_channels, self.out_channels)
        if min(*numbers, self.activation_bits) < 1 or self.offset < 0:
            raise ValueError(f"layer {self.name!r}: sizes and bits must be at least 1: {self}")
        weighted = self.op in WEIGHTED_OPS
        if weighted != (self.weight_bits > 0) or (self.batch_norm and not weighted):
            raise ValueError(f"layer {self.name!r}: weights belong to {WEIGHTED_OPS}: {self}")
        if self.valid and self.op not in WINDOWED_OPS:
            raise ValueError(f"layer {self.name!r}: {self.op} has no windows")
        if self.op == "pad" and not self.offset:
            raise ValueError(f"layer {self.name!r}: a pad adds zeros: {self}")
        larger = {
            "pad": tuple(side + 2 * self.offset for side in self.in_size),
            "resize": tuple(side * self.stride for side in self.in_size),
        }.get(self.op)
        if larger is not None and (not self.in_size or self.out_size != larger):
            raise ValueError(f"layer {self.name!r}: its size must be {larger}: {self}")
        least = 2 if self.op in ("add", "concat", "multiply") else 1
        if len(self.inputs) < least or (len(self.inputs) > least and self.op != "concat"):
            raise ValueError(f"layer {self.name!r}: {self.op} with inputs {self.inputs}")

    @property
    def weighted(self) -> bool:
        return self.op in WEIGHTED_OPS

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerSpec:
        """Reads what `to_json` wrote; raises one of `errors.MALFORMED` for another thing."""
        tuples = {k: tuple(data[k]) for k in ("inputs", "in_size", "out_size")}
        layer = cls(**{**data, **tuples})
        texts = (layer.name, *layer.inputs)
        sizes = (layer.in_channels, layer.out_channels, *layer.in_size, *layer.out_size)
        widths = (layer.weight_bits, layer.activation_bits)
        numbers = (*sizes, *widths, layer.kernel, layer.stride, layer.offset)
        flags = (layer.batch_norm, layer.valid)
        if (
            not all(isinstance(text, str) for text in texts)
            or not all(type(number) is int and number < _LARGEST for number in numbers)
            or not all(isinstance(flag, bool) for flag in flags)
        ):
            raise ValueError(f"layer {layer.name!r}: a field is of another kind: {layer}")
        return layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSlots:
    """One layer slot of a batch of architectures; the fields of `LayerSpec` as columns.

    Attributes:
      present: whether the row has the layer at all [architectures]; its numbers mean nothing
        elsewhere.
      inputs: position of the slot that each input comes from, `NETWORK` for the network's input,
        `NONE` for an input that the row does not have [architectures, inputs].
    """

    name: str
    op: str
    activation: str
    batch_norm: bool
    valid: bool
    in_vector: bool
    out_vector: bool
    present: npt.NDArray[np.bool_]
    inputs: npt.NDArray[np.int64]
    in_channels: Column
    out_channels: Column
    in_height: Column
    in_width: Column
    out_height: Column
    out_width: Column
    kernel: Column
    stride: Column
    weight_bits: Column
    activation_bits: Column
    offset: Column

    def row(self, row: int, names: Sequence[str]) -> LayerSpec:
        """The layer of one architecture; `names` are those of all slots, in order."""

        def size(vector: bool, height: Column, width: Column) -> Size:
            return () if vector else (int(height[row]), int(width[row]))

        sources = [int(i) for i in self.inputs[row] if i != NONE]
        return LayerSpec(
            name=self.name,
            op=self.op,
            inputs=tuple(INPUT if i == NETWORK else names[i] for i in sources),
            in_channels=int(self.in_channels[row]),
            out_channels=int(self.out_channels[row]),
            in_size=size(self.in_vector, self.in_height, self.in_width),
            out_size=size(self.out_vector, self.out_height, self.out_width),
            kernel=int(self.kernel[row]),
            stride=int(self.stride[row]),
            weight_bits=int(self.weight_bits[row]),
            activation_bits=int(self.activation_bits[row]),
            activation=self.activation,
            batch_norm=self.batch_norm,
            offset=int(self.offset[row]),
            valid=self.valid,
        )


NETWORK, NONE = -1, -2


def layers_of(slots: Sequence[LayerSlots], row: int) -> tuple[LayerSpec, ...]:
    """The layers that one architecture has, in the order of execution."""
    names = [slot.name for slot in slots]
    return tuple(slot.row(row, names) for slot in slots if slot.present[row])


def slots_of(layers: Sequence[LayerSpec]) -> list[LayerSlots]:
    """The layers of one network as slots of one row, so that counting reads them too."""
    position = {INPUT: NETWORK, **{layer.name: i for i, layer in enumerate(layers)}}

    def column(value: int) -> Column:
        return np.array([value], np.int64)

    return [
        LayerSlots(
            name=layer.name,
            op=layer.op,
            activation=layer.activation,
            batch_norm=layer.batch_norm,
            valid=layer.valid,
            in_vector=not layer.in_size,
            out_vector=not layer.out_size,
            present=np.ones(1, np.bool_),
            inputs=np.array([[position[name] for name in layer.inputs]], np.int64),
            in_height=column((layer.in_size or (1, 1))[0]),
            in_width=column((layer.in_size or (1, 1))[1]),
            out_height=column((layer.out_size or (1, 1))[0]),
            out_width=column((layer.out_size or (1, 1))[1]),
            in_channels=column(layer.in_channels),
            out_channels=column(layer.out_channels),
            kernel=column(layer.kernel),
            stride=column(layer.stride),
            weight_bits=column(layer.weight_bits),
            activation_bits=column(layer.activation_bits),
            offset=column(layer.offset),
        )
        for layer in layers
    ]


def check_network(layers: Sequence[LayerSpec], input_shape: Sequence[int]) -> None:
    """Raises ValueError unless the layers are one network that takes `input_shape`.

    Every input is an earlier layer of the channels and size that the layer says, and every layer
    but the last is read.
    """
    *size, channels = input_shape
    made: dict[str, tuple[int, Size]] = {INPUT: (channels, tuple(size))}
    read: set[str] = set()
    for layer in layers:
        if layer.name in made:
            raise ValueError(f"layer {layer.name!r} occurs twice")
        missing = [name for name in layer.inputs if name not in made]
        if missing:
            raise ValueError(f"layer {layer.name!r} reads {missing}, which no earlier layer makes")
        taken = (layer.in_channels, layer.in_size)
        if made[layer.inputs[0]] != taken:
            raise ValueError(
                f"layer {layer.name!r} takes {_described(*taken)}, {layer.inputs[0]!r} makes "
                f"{_described(*made[layer.inputs[0]])}"
            )
        others = [made[name] for name in layer.inputs]
        if layer.op == "add" and len(set(others)) > 1:
            raise ValueError(f"layer {layer.name!r} adds {others}")
        if layer.op == "concat" and sum(c for c, _ in others) != layer.out_channels:
            raise ValueError(f"layer {layer.name!r} makes {layer.out_channels} of {others}")
        read.update(layer.inputs)
        made[layer.name] = (layer.out_channels, layer.out_size)
    unread = [layer.name for layer in layers[:-1] if layer.name not in read]
    if not layers or unread:
        raise ValueError(f"layers that nothing reads: {unread}" if layers else "no layers")


def _described(channels: int, size: Size) -> str:
    return "x".join(map(str, (*size, channels))) + ("" if size else " features")


def execution_order(ends: Sequence[Key], reads: Mapping[Key, Sequence[Key]]) -> list[Key]:
    """What the ends need of what reads others: each behind what it reads, first reads first."""
    order: list[Key] = []
    met: set[Key] = set()
    waiting = [(end, False) for end in reversed(ends)]
    while waiting:
        one, made = waiting.pop()
        if made:
            order.append(one)
        elif one in reads and one not in met:
            met.add(one)
            waiting.append((one, True))
            waiting += [(read, False) for read in reversed(reads[one])]
    return order


def in_file_order(layers: Sequence[LayerSpec]) -> tuple[LayerSpec, ...]:
    """What the last layer needs, as a file holds it."""
    by_name = {layer.name: layer for layer in layers}
    order = execution_order([layers[-1].name], {layer.name: layer.inputs for layer in layers})
    return tuple(by_name[name] for name in order)


def range_owners(layers: Sequence[LayerSpec]) -> dict[str, str]:
    """Name of a tensor -> name of the tensor by whose range it is rounded.

    What an op of SAME_RANGE_OPS makes has its input's range. What is concatenated has the range of
    the whole, and so has what it is moved from; nothing else reads these.

    Raises:
      ValueError: a tensor that is concatenated has a range of its own.
    """
    owners = {INPUT: INPUT}
    for layer in layers:
        owners[layer.name] = owners[layer.inputs[0]] if layer.op in SAME_RANGE_OPS else layer.name
    for layer in layers:
        if layer.op != "concat":
            continue
        for name in layer.inputs:
            lent = lent_range(layers, layer, name)
            if not lent:
                raise ValueError(f"layer {layer.name!r} cannot give {name!r} its range")
            owners.update(dict.fromkeys(lent, layer.name))
    return owners


def lent_range(layers: Sequence[LayerSpec], concat: LayerSpec, name: str) -> tuple[str, ...]:
    """The tensors to which a concatenation gives its range: an input, and what it is moved from.

    None where another layer reads one of them, or one is itself a concatenation.
    """
    by_name = {layer.name: layer for layer in layers}
    found: list[str] = []
    reader = concat.name
    while name in by_name:  # the network's input is not
        made = by_name[name]
        readers = [other.name for other in layers for read in other.inputs if read == name]
        if readers != [reader] or made.op == "concat":
            return ()
        found.append(name)
        if made.op not in SAME_RANGE_OPS:
            return tuple(found)
        reader, (name,) = name, made.inputs
    return ()
