"""lower(space, architecture) -> LayerSpec...: the one walk over a network.

The walk is array code over a batch of architectures: each stage fills a fixed number of layer
slots, a slot is present or absent in each row. Counting reads the slots as arrays; Keras, the
population trainer and export read one row of them as `LayerSpec`s. There is no second walk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tfgen.space.architecture import Architecture
from tfgen.space.layers import FUSED_ACTIVATIONS, NETWORK, NONE, Column, LayerSlots, LayerSpec, layers_of
from tfgen.space.search_space import Choices, SearchSpace, Stage

Mask = npt.NDArray[np.bool_]  # [architectures]

ACTIVATION_BITS = 8  # of every layer, unless the caller takes a slower width
KERNELS = (3, 5, 7)  # of a unified block's sub-blocks
_SQUEEZE = 4  # channels of a unified block for each channel of its squeeze-and-excitation
# Low-bit kernels read channels in fours.
_CHANNEL_STEP = 4


def lower(
    space: SearchSpace, architecture: Architecture, activation_bits: int = ACTIVATION_BITS
) -> tuple[LayerSpec, ...]:
    """The architecture's layers in the order of execution."""
    return layers_of(lower_batch(space, space.choices([architecture]), activation_bits), 0)


def lower_batch(
    space: SearchSpace, choices: Choices, activation_bits: int = ACTIVATION_BITS
) -> list[LayerSlots]:
    """The layer slots of canonical `choices` [architectures, decisions], in order."""
    walk = _Walk(space, choices, activation_bits)
    signal = walk.input
    for stage in space.stages:
        if stage.block not in BLOCKS:
            raise ValueError(
                f"stage {stage.name!r}: block must be one of {sorted(BLOCKS)}, got {stage.block!r}"
            )
        signal = BLOCKS[stage.block](walk, stage, signal)
    return walk.slots


@dataclasses.dataclass(frozen=True)
class _Signal:
    """A tensor at one point of each network: which slot makes it, and its size."""

    slot: Column
    channels: Column
    height: Column
    width: Column
    vector: bool

    def where(self, mask: Mask, other: _Signal) -> _Signal:
        """This signal in the rows of the mask, the other one elsewhere."""
        return _Signal(
            np.where(mask, self.slot, other.slot),
            np.where(mask, self.channels, other.channels),
            np.where(mask, self.height, other.height),
            np.where(mask, self.width, other.width),
            self.vector,
        )


class _Walk:
    """The slots so far, and how a block adds one."""

    def __init__(self, space: SearchSpace, choices: Choices, activation_bits: int):
        self.space = space
        self.choices = choices
        self.slots: list[LayerSlots] = []
        self._activation_bits = self.column(activation_bits)
        *size, channels = space.input_shape
        height, width = size or (1, 1)
        self.input = _Signal(
            self.column(NETWORK),
            self.column(channels),
            self.column(height),
            self.column(width),
            vector=not size,
        )

    def column(self, value: int | Column) -> Column:
        return np.broadcast_to(np.asarray(value, np.int64), (len(self.choices),))

    def option(self, stage: Stage, name: str) -> Column:
        """A stage's numeric option [architectures]."""
        return self.space.column(stage.options[name], self.choices).astype(np.int64)

    def present(self, stage: Stage) -> Mask:
        return self.space.holds(stage.when, self.choices)

    def add(
        self,
        name: str,
        op: str,
        x: _Signal,
        present: Mask,
        *,
        others: Sequence[tuple[_Signal, Mask]] = (),
        channels: Column | None = None,
        kernel: int | Column = 1,
        stride: int | Column = 1,
        weight_bits: int | Column = 0,
        activation: str = "linear",
        batch_norm: bool = False,
        offset: int | Column = 0,
        vector: bool | None = None,
    ) -> _Signal:
        """Adds a slot that reads x; returns its output where present, x elsewhere.

        Args:
          name: the slot's.
          op: one of OPS.
          x: the first input.
          present: which rows have it.
          others: more inputs, each with the rows that have it.
          channels: of the output; None for x's.
          kernel: as in LayerSpec.
          stride: as in LayerSpec.
          weight_bits: as in LayerSpec.
          activation: as in LayerSpec.
          batch_norm: as in LayerSpec.
          offset: as in LayerSpec.
          vector: whether the output is a vector; None for x's kind.
        """
        vector = x.vector if vector is None else vector
        steps = self.column(stride)
        one = self.column(1)
        height = one if vector or op == "mean" else -(-x.height // steps)
        width = one if vector or op == "mean" else -(-x.width // steps)
        out = _Signal(
            self.column(len(self.slots)),
            x.channels if channels is None else channels,
            height,
            width,
            vector,
        )
        sources = [x.slot]
        sources += [np.where(has, signal.slot, NONE) for signal, has in others]
        self.slots.append(
            LayerSlots(
                name=name,
                op=op,
                activation=activation,
                batch_norm=batch_norm,
                in_vector=x.vector,
                out_vector=vector,
                present=present,
                inputs=np.stack(sources, axis=1),
                in_channels=x.channels,
                out_channels=out.channels,
                in_height=x.height,
                in_width=x.width,
                out_height=height,
                out_width=width,
                kernel=self.column(kernel),
                stride=steps,
                weight_bits=self.column(weight_bits),
                activation_bits=self._activation_bits,
                offset=self.column(offset),
            )
        )
        if vector == x.vector:
            return out.where(present, x)
        if not present.all():
            raise ValueError(f"layer {name!r} makes a vector of an image: it cannot be optional")
        return out

    def normalised(
        self,
        name: str,
        op: str,
        x: _Signal,
        present: Mask,
        activation: str,
        *,
        channels: Column,
        weight_bits: Column,
        kernel: int | Column = 1,
        stride: int | Column = 1,
    ) -> _Signal:
        """Adds a weighted op, batch normalisation and the activation.

        An activation that no op applies by itself becomes an op of its own.
        """
        fused = activation in FUSED_ACTIVATIONS
        x = self.add(
            name,
            op,
            x,
            present,
            channels=channels,
            kernel=kernel,
            stride=stride,
            weight_bits=weight_bits,
            activation=activation if fused else "linear",
            batch_norm=True,
        )
        return x if fused else self.add(f"{name}_{activation}", activation, x, present)


Block = Callable[[_Walk, Stage, _Signal], _Signal]


def _dense(walk: _Walk, stage: Stage, x: _Signal) -> _Signal:
    """A fully connected layer over all features. Options: units, weight_bits, activation."""
    present = walk.present(stage)
    if not x.vector:
        features = x.channels * x.height * x.width
        x = walk.add(f"{stage.name}_flatten", "flatten", x, present, channels=features, vector=True)
    return walk.add(
        stage.name,
        "dense",
        x,
        present,
        channels=walk.option(stage, "units"),
        weight_bits=walk.option(stage, "weight_bits"),
        activation=str(stage.options["activation"]),
    )


def _conv(walk: _Walk, stage: Stage, x: _Signal) -> _Signal:
    """A convolution, batch normalisation, activation.

    Options: kernel, stride, channels, weight_bits, activation.
    """
    return walk.normalised(
        stage.name,
        "conv",
        x,
        walk.present(stage),
        str(stage.options["activation"]),
        channels=walk.option(stage, "channels"),
        kernel=walk.option(stage, "kernel"),
        stride=walk.option(stage, "stride"),
        weight_bits=walk.option(stage, "weight_bits"),
    )


def _pointwise(walk: _Walk, stage: Stage, x: _Signal) -> _Signal:
    """A 1x1 convolution as a dense layer at each position, batch normalisation, activation.

    Options: channels, weight_bits, activation.
    """
    return walk.normalised(
        stage.name,
        "dense",
        x,
        walk.present(stage),
        str(stage.options["activation"]),
        channels=walk.option(stage, "channels"),
        weight_bits=walk.option(stage, "weight_bits"),
    )


def _max_pool(walk: _Walk, stage: Stage, x: _Signal) -> _Signal:
    """The largest value of each window. Options: kernel, stride."""
    return walk.add(
        stage.name,
        "max_pool",
        x,
        walk.present(stage),
        kernel=walk.option(stage, "kernel"),
        stride=walk.option(stage, "stride"),
    )


def _mean(walk: _Walk, stage: Stage, x: _Signal) -> _Signal:
    """The mean of each channel over the image: a vector."""
    return walk.add(stage.name, "mean", x, walk.present(stage), vector=True)


def _unified(walk: _Walk, stage: Stage, x: _Signal) -> _Signal:
    """The unified block of SGNAS, section 3.3 and eq. 11, as its stand-alone network.

    Options:
      sub_blocks: a digit for each sub-block that is no skip, its kernel's side, ascending: "335" is
        expansion 3, two thirds of the channels through 3x3 and one third through 5x5. Equal kernels
        merge into one depthwise layer. A single sub-block is no expansion.
      channels: of the output; a residual is added where stride is 1 and channels do not change.
      stride: of the depthwise layers.
      activation: relu, relu6 or hard_swish, after expansion and depthwise layers.
      squeeze_excite: 1 for squeeze-and-excitation after the depthwise layers, 0 for none.
      expand_bits, depthwise_bits, project_bits: of the weights; squeeze-and-excitation has those of
        the projection.

    Departure: the gate of squeeze-and-excitation is a sigmoid, which runtimes have as one op, where
    MobileNetV3 has a hard sigmoid, which they have not.
    """
    name, present = stage.name, walk.present(stage)
    activation = str(stage.options["activation"])
    sub_blocks = walk.space.column(stage.options["sub_blocks"], walk.choices).astype(np.str_)
    counts = [np.char.count(sub_blocks, str(kernel)).astype(np.int64) for kernel in KERNELS]
    stride = walk.option(stage, "stride")
    channels = walk.option(stage, "channels")
    start = x

    expansion = np.sum(counts, axis=0)
    expanded = walk.normalised(
        f"{name}_expand",
        "dense",
        x,
        present & (expansion > 1),
        activation,
        channels=start.channels * expansion,
        weight_bits=walk.option(stage, "expand_bits"),
    )

    mixed = present & (np.sum([count > 0 for count in counts], axis=0) > 1)
    fused = activation if activation != "hard_swish" else "linear"
    first: _Signal | None = None
    others: list[tuple[_Signal, Mask]] = []
    made = np.zeros_like(present)  # whether a smaller kernel has made a part
    offset = 0 * expansion
    for kernel, count in zip(KERNELS, counts, strict=True):
        has = present & (count > 0)
        size = start.channels * count
        part = walk.add(
            f"{name}_slice_{kernel}", "slice", expanded, has & mixed, channels=size, offset=offset
        )
        part = walk.add(
            f"{name}_depthwise_{kernel}",
            "depthwise",
            part,
            has,
            channels=size,
            kernel=kernel,
            stride=stride,
            weight_bits=walk.option(stage, "depthwise_bits"),
            activation=fused,
            batch_norm=True,
        )
        first = part if first is None else first.where(made, part)
        others.append((part, has & made))
        made = made | has
        offset = offset + size
    assert first is not None
    x = walk.add(
        f"{name}_concat", "concat", first, mixed, others=others[1:], channels=expanded.channels
    )
    if fused != activation:
        x = walk.add(f"{name}_{activation}", activation, x, present)

    squeeze = present & (walk.option(stage, "squeeze_excite") > 0)
    squeezed = -(-x.channels // (_SQUEEZE * _CHANNEL_STEP)) * _CHANNEL_STEP
    bits = walk.option(stage, "project_bits")
    gate = walk.add(f"{name}_squeeze", "mean", x, squeeze)
    gate = walk.add(
        f"{name}_reduce",
        "dense",
        gate,
        squeeze,
        channels=squeezed,
        weight_bits=bits,
        activation="relu",
    )
    gate = walk.add(f"{name}_excite", "dense", gate, squeeze, channels=x.channels, weight_bits=bits)
    gate = walk.add(f"{name}_gate", "sigmoid", gate, squeeze)
    x = walk.add(f"{name}_scale", "multiply", x, squeeze, others=[(gate, squeeze)])

    x = walk.add(
        f"{name}_project",
        "dense",
        x,
        present,
        channels=channels,
        weight_bits=walk.option(stage, "project_bits"),
        batch_norm=True,
    )
    residual = present & (stride == 1) & (channels == start.channels)
    return walk.add(f"{name}_add", "add", x, residual, others=[(start, present)])


BLOCKS: Mapping[str, Block] = {
    "conv": _conv,
    "dense": _dense,
    "max_pool": _max_pool,
    "mean": _mean,
    "pointwise": _pointwise,
    "unified": _unified,
}
