"""LayerSpec, and lower(space, architecture) -> LayerSpec...: the one walk over a network.

The walk is array code over a batch of architectures: each stage fills a fixed number of layer
slots, a slot is present or absent in each row. Counting reads the slots as arrays; Keras, the
population trainer and export read one row of them as `LayerSpec`s. There is no second walk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen.space.architecture import Architecture
from tfgen.space.search_space import Choices, SearchSpace, Stage

OPS = ("dense", "conv", "depthwise")
ACTIVATIONS = ("linear", "relu")
Column = npt.NDArray[np.int64]  # [architectures]


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One weighted layer of a network.

    Attributes:
      name: unique in its network; the name of the Keras layer and the recipe's key.
      op: one of OPS.
      kernel: side of the kernel, 1 for dense.
      stride: 1 or more.
      in_channels: input features of a dense layer.
      out_channels: output features of a dense layer.
      in_size: (height, width) of the input, (1, 1) for dense.
      out_size: (height, width) of the output.
      weight_bits: width of one weight.
      activation_bits: width of one element of the output.
      activation: one of ACTIVATIONS.
    """

    name: str
    op: str
    kernel: int
    stride: int
    in_channels: int
    out_channels: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    weight_bits: int
    activation_bits: int
    activation: str

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"layer {self.name!r}: op must be one of {OPS}, got {self.op!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"layer {self.name!r}: activation must be one of {ACTIVATIONS}")
        numbers = (self.kernel, self.stride, self.in_channels, self.out_channels, self.weight_bits)
        if min(*numbers, self.activation_bits, *self.in_size, *self.out_size) < 1:
            raise ValueError(f"layer {self.name!r}: sizes and bits must be at least 1: {self}")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerSpec:
        sizes = {"in_size": tuple(data["in_size"]), "out_size": tuple(data["out_size"])}
        return cls(**{**data, **sizes})


@dataclasses.dataclass(frozen=True)
class LayerSlots:
    """One layer slot of a batch of architectures; integers are [architectures].

    The fields of `LayerSpec`, and `present`: whether the row has the layer at all.
    """

    name: str
    op: str
    activation: str
    present: npt.NDArray[np.bool_]
    kernel: Column
    stride: Column
    in_channels: Column
    out_channels: Column
    in_height: Column
    in_width: Column
    out_height: Column
    out_width: Column
    weight_bits: Column
    activation_bits: Column

    def row(self, row: int) -> LayerSpec:
        """The layer of one architecture."""
        return LayerSpec(
            self.name,
            self.op,
            int(self.kernel[row]),
            int(self.stride[row]),
            int(self.in_channels[row]),
            int(self.out_channels[row]),
            (int(self.in_height[row]), int(self.in_width[row])),
            (int(self.out_height[row]), int(self.out_width[row])),
            int(self.weight_bits[row]),
            int(self.activation_bits[row]),
            self.activation,
        )


@dataclasses.dataclass
class _Signal:
    """What flows between stages: the size of the data at this point of each network."""

    channels: Column
    height: Column
    width: Column


Block = Callable[[SearchSpace, Stage, Choices, _Signal], list[LayerSlots]]


def lower(space: SearchSpace, architecture: Architecture) -> tuple[LayerSpec, ...]:
    """The architecture's weighted layers in order."""
    slots = lower_batch(space, space.choices([architecture]))
    return tuple(slot.row(0) for slot in slots if slot.present[0])


def lower_batch(space: SearchSpace, choices: Choices) -> list[LayerSlots]:
    """The layer slots of canonical `choices` [architectures, decisions], in order."""
    signal = _input(space, len(choices))
    slots: list[LayerSlots] = []
    for stage in space.stages:
        if stage.block not in BLOCKS:
            raise ValueError(
                f"stage {stage.name!r}: block must be one of {sorted(BLOCKS)}, got {stage.block!r}"
            )
        slots += BLOCKS[stage.block](space, stage, choices, signal)
    return slots


def slots_of(layers: Sequence[LayerSpec]) -> list[LayerSlots]:
    """The layers of one network as slots of one row, so that counting reads them too."""

    def column(value: int) -> Column:
        return np.array([value], np.int64)

    return [
        LayerSlots(
            layer.name,
            layer.op,
            layer.activation,
            np.ones(1, np.bool_),
            column(layer.kernel),
            column(layer.stride),
            column(layer.in_channels),
            column(layer.out_channels),
            column(layer.in_size[0]),
            column(layer.in_size[1]),
            column(layer.out_size[0]),
            column(layer.out_size[1]),
            column(layer.weight_bits),
            column(layer.activation_bits),
        )
        for layer in layers
    ]


def _input(space: SearchSpace, count: int) -> _Signal:
    if len(space.input_shape) == 1:
        height, width, channels = 1, 1, space.input_shape[0]
    else:
        height, width, channels = space.input_shape
    full = [np.full(count, size, np.int64) for size in (channels, height, width)]
    return _Signal(*full)


def _dense(space: SearchSpace, stage: Stage, choices: Choices, signal: _Signal) -> list[LayerSlots]:
    """A fully connected layer over all features. Options: units, weight_bits, activation_bits,
    activation."""
    present = space.holds(stage.when, choices)
    one = np.ones(len(choices), np.int64)
    options = stage.options
    units = space.column(options["units"], choices).astype(np.int64)
    slot = LayerSlots(
        name=stage.name,
        op="dense",
        activation=str(options["activation"]),
        present=present,
        kernel=one,
        stride=one,
        in_channels=signal.channels * signal.height * signal.width,
        out_channels=units,
        in_height=one,
        in_width=one,
        out_height=one,
        out_width=one,
        weight_bits=space.column(options["weight_bits"], choices).astype(np.int64),
        activation_bits=space.column(options["activation_bits"], choices).astype(np.int64),
    )
    signal.channels = np.where(present, units, signal.channels)
    signal.height = np.where(present, 1, signal.height)
    signal.width = np.where(present, 1, signal.width)
    return [slot]


BLOCKS: Mapping[str, Block] = {"dense": _dense}
