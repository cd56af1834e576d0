"""lower(space, architecture) -> LayerSpec...: the one walk over a network.

The walk is array code over a batch of architectures: each stage fills layer slots, a slot is
present or absent in each row, and one that no row has is left out. Counting reads the slots as
arrays; Keras, the population trainer and export read one row of them as `LayerSpec`s. There is no
second walk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tfgen.space.architecture import Architecture
from tfgen.space.layers import (
    FUSED_ACTIVATIONS,
    INPUT,
    NETWORK,
    NONE,
    Column,
    LayerSlots,
    LayerSpec,
    layers_of,
)
from tfgen.space.search_space import Choices, Chosen, SearchSpace, Stage, Value

Mask = npt.NDArray[np.bool_]  # [architectures]

ACTIVATION_BITS = 8  # of every layer, unless the caller takes a slower width
KERNELS = (3, 5, 7)  # of a unified block's sub-blocks
_SQUEEZE = 4  # channels of a unified block for each channel of its squeeze-and-excitation
_CHANNEL_STEP = 4  # low-bit kernels read channels in fours
Count = TypeVar("Count", int, Column)


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
        if mask.all():
            return self

        def mixed(ours: Column, theirs: Column) -> Column:
            return ours if ours is theirs else np.where(mask, ours, theirs)

        return _Signal(
            mixed(self.slot, other.slot),
            mixed(self.channels, other.channels),
            mixed(self.height, other.height),
            mixed(self.width, other.width),
            self.vector,
        )


class _Walk:
    """The slots so far, and how a block adds one."""

    def __init__(self, space: SearchSpace, choices: Choices, activation_bits: int):
        self.space = space
        self.choices = np.asfortranarray(choices)  # decisions are read one at a time
        self.slots: list[LayerSlots] = []
        self.tensors: dict[str, _Signal] = {}  # that blocks name for later ones
        self._constants: dict[int, Column] = {}
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
        self.tensors[INPUT] = self.input

    def column(self, value: int | Column) -> Column:
        if not isinstance(value, int):
            return value
        if value not in self._constants:
            self._constants[value] = np.broadcast_to(np.int64(value), (len(self.choices),))
        return self._constants[value]

    def option(self, stage: Stage, name: str, number: Callable[[Value], int] = int) -> Column:
        """A number read off a stage's option, by default the option itself [architectures]."""
        option = stage.options[name]
        if not isinstance(option, Chosen):
            return self.column(number(option))
        position = self.space.index[option.decision]
        numbers = [number(value) for value in self.space.decisions[position].values]
        return np.array(numbers, np.int64)[self.choices[:, position]]

    def present(self, stage: Stage) -> Mask:
        return np.asarray(self.space.holds(stage.when, self.choices))

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
        valid: bool = False,
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
          valid: as in LayerSpec.
          vector: whether the output is a vector; None for x's kind.

        Raises:
          ValueError: a vector is made of an image, but not in every row.
        """
        vector = x.vector if vector is None else vector
        if vector != x.vector and not present.all():
            raise ValueError(f"layer {name!r} makes a vector of an image: it cannot be optional")
        if len(present) and not present.any():
            return x
        steps = self.column(stride)
        if vector or op == "mean":
            height = width = self.column(1)
        elif op == "resize":
            height, width = x.height * steps, x.width * steps
        elif op == "pad":
            height, width = (n + 2 * self.column(offset) for n in (x.height, x.width))
        elif valid:
            height, width = ((n - self.column(kernel)) // steps + 1 for n in (x.height, x.width))
        elif isinstance(stride, int) and stride == 1:
            height, width = x.height, x.width
        else:
            height, width = -(-x.height // steps), -(-x.width // steps)
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
                valid=valid,
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
        return out.where(present, x)

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
        batch_norm: bool = True,
    ) -> _Signal:
        """Adds a weighted op, batch normalisation or a bias, and the activation.

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
            batch_norm=batch_norm,
        )
        return x if fused else self.add(f"{name}_{activation}", activation, x, present)


Block = Callable[[_Walk, Stage, _Signal], _Signal]
Filtered = Callable[[_Walk, Stage, _Signal, Column], _Signal]


def _dense(walk: _Walk, stage: Stage, x: _Signal) -> _Signal:
    """A fully connected layer over all features. Options: units, weight_bits, activation."""
    present = walk.present(stage)
    if not x.vector:
        features = x.channels * x.height * x.width
        x = walk.add(f"{stage.name}_flatten", "flatten", x, present, channels=features, vector=True)
    return walk.normalised(
        stage.name,
        "dense",
        x,
        present,
        str(stage.options["activation"]),
        channels=walk.option(stage, "units"),
        weight_bits=walk.option(stage, "weight_bits"),
        batch_norm=False,
    )


def _conv(walk: _Walk, stage: Stage, x: _Signal) -> _Signal:
    """A convolution, batch normalisation, activation.

    Options: kernel, stride, channels, weight_bits, activation; batch_norm, 0 for a bias in place of
    the normalisation.
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
        batch_norm=bool(stage.options.get("batch_norm", 1)),
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


def _layer(walk: _Walk, stage: Stage, x: _Signal) -> _Signal:
    """One op that reads any earlier ones of this block; the others ignore what came before.

    Options: op; inputs, names of such stages or `INPUT` with a space between two; kernel, stride,
    valid, activation, batch_norm, weight_bits and offset as in LayerSpec; channels of the output,
    read by dense, conv and slice; vector, whether the output is one.
    """
    del x
    op = str(stage.options["op"])
    first, *others = (walk.tensors[name] for name in str(stage.options["inputs"]).split())
    channels = first.channels
    if op in ("dense", "conv", "slice"):
        channels = walk.option(stage, "channels")
    elif op == "concat":
        channels = sum((other.channels for other in others), first.channels)
    elif op == "flatten":
        channels = first.channels * first.height * first.width
    present = walk.present(stage)
    walk.tensors[stage.name] = walk.add(
        stage.name,
        op,
        first,
        present,
        others=[(other, present) for other in others],
        channels=channels,
        kernel=walk.option(stage, "kernel"),
        stride=walk.option(stage, "stride"),
        weight_bits=walk.option(stage, "weight_bits"),
        activation=str(stage.options["activation"]),
        batch_norm=bool(stage.options["batch_norm"]),
        offset=walk.option(stage, "offset"),
        valid=bool(stage.options.get("valid", 0)),
        vector=bool(stage.options["vector"]),
    )
    return walk.tensors[stage.name]


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


def _residual(walk: _Walk, stage: Stage, x: _Signal) -> _Signal:
    """Two convolutions, added to the input, activation: the basic block of ResNet.

    Options: kernel, stride (of the first convolution), channels, weight_bits, activation, one of
    FUSED_ACTIVATIONS. Where the shape changes a 1x1 convolution without normalisation takes the
    input to the new one.
    """
    name, present = stage.name, walk.present(stage)
    stride, channels = walk.option(stage, "stride"), walk.option(stage, "channels")
    kernel, bits = walk.option(stage, "kernel"), walk.option(stage, "weight_bits")
    activation = str(stage.options["activation"])
    start = x
    for number, steps, applied in ((1, stride, activation), (2, walk.column(1), "linear")):
        x = walk.normalised(
            f"{name}_conv_{number}",
            "conv",
            x,
            present,
            applied,
            channels=channels,
            kernel=kernel,
            stride=steps,
            weight_bits=bits,
        )
    shortcut = walk.add(
        f"{name}_shortcut",
        "conv",
        start,
        present & ((stride > 1) | (channels != start.channels)),
        channels=channels,
        stride=stride,
        weight_bits=bits,
    )
    return walk.add(
        f"{name}_add", "add", x, present, others=[(shortcut, present)], activation=activation
    )


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
    """
    return _bottleneck(walk, stage, x, walk.option(stage, "sub_blocks", _expansion), _sub_blocks)


def _inverted(walk: _Walk, stage: Stage, x: _Signal) -> _Signal:
    """The inverted residual block of MobileNetV3 (Howard et al. 2019), one depthwise kernel.

    Options: those of a unified block, but for `sub_blocks`
      kernel: side of the depthwise kernel.
      expansion: expanded channels for each channel of the input; 1 is no expansion.
    """
    return _bottleneck(walk, stage, x, walk.option(stage, "expansion"), _one_depthwise)


def _bottleneck(
    walk: _Walk, stage: Stage, x: _Signal, expansion: Column, filtered: Filtered
) -> _Signal:
    """Expansion, depthwise layers, squeeze-and-excitation, projection, residual.

    Args:
      walk: the walk.
      stage: of the block.
      x: its input.
      expansion: expanded channels for each channel of the input [architectures].
      filtered: adds the depthwise layers and their activation.
    """
    name, present = stage.name, walk.present(stage)
    stride, channels = walk.option(stage, "stride"), walk.option(stage, "channels")
    start = x
    x = walk.normalised(
        f"{name}_expand",
        "dense",
        x,
        present & (expansion > 1),
        str(stage.options["activation"]),
        channels=start.channels * expansion,
        weight_bits=walk.option(stage, "expand_bits"),
    )
    x = filtered(walk, stage, x, start.channels)
    x = _squeeze_excite(walk, stage, x)
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
    return walk.add(f"{name}_add", "add", x, residual, others=[(start, residual)])


def _expansion(sub_blocks: Value) -> int:
    kernels = list(map(int, str(sub_blocks)))
    if kernels != sorted(kernels) or not set(kernels) <= set(KERNELS):
        raise ValueError(f"sub_blocks are digits of {KERNELS}, ascending, got {sub_blocks!r}")
    return len(kernels)


def _one_depthwise(walk: _Walk, stage: Stage, x: _Signal, channels: Column) -> _Signal:
    """The depthwise layer of an inverted block."""
    del channels  # before the expansion
    return walk.normalised(
        f"{stage.name}_depthwise",
        "depthwise",
        x,
        walk.present(stage),
        str(stage.options["activation"]),
        channels=x.channels,
        kernel=walk.option(stage, "kernel"),
        stride=walk.option(stage, "stride"),
        weight_bits=walk.option(stage, "depthwise_bits"),
    )


def _sub_blocks(walk: _Walk, stage: Stage, x: _Signal, channels: Column) -> _Signal:
    """The depthwise layers of a unified block: one for each kernel, each on its own channels.

    Args:
      walk: the walk.
      stage: of the unified block.
      x: what is split, where there are several kernels.
      channels: of one sub-block.
    """
    name, present = stage.name, walk.present(stage)
    activation = str(stage.options["activation"])
    fused = activation if activation in FUSED_ACTIVATIONS else "linear"
    counts = [walk.option(stage, "sub_blocks", _occurrences(kernel)) for kernel in KERNELS]
    mixed = present & (np.sum([count > 0 for count in counts], axis=0) > 1)
    parts: list[tuple[_Signal, Mask]] = []
    offset = walk.column(0)
    for kernel, count in zip(KERNELS, counts, strict=True):
        has, size = present & (count > 0), channels * count
        part = walk.add(
            f"{name}_slice_{kernel}", "slice", x, has & mixed, channels=size, offset=offset
        )
        part = walk.add(
            f"{name}_depthwise_{kernel}",
            "depthwise",
            part,
            has,
            channels=size,
            kernel=kernel,
            stride=walk.option(stage, "stride"),
            weight_bits=walk.option(stage, "depthwise_bits"),
            activation=fused,
            batch_norm=True,
        )
        parts.append((part, has))
        offset = offset + size
    # The smallest kernel's part is the first input.
    first, taken = parts[0]
    others: list[tuple[_Signal, Mask]] = []
    for part, has in parts[1:]:
        others.append((part, has & taken))
        first, taken = first.where(taken, part), taken | has
    y = walk.add(f"{name}_concat", "concat", first, mixed, others=others, channels=x.channels)
    return y if fused == activation else walk.add(f"{name}_{activation}", activation, y, present)


def _occurrences(kernel: int) -> Callable[[Value], int]:
    return lambda sub_blocks: str(sub_blocks).count(str(kernel))


def squeezed_channels(channels: Count) -> Count:
    """Channels between the two layers of squeeze-and-excitation, of an integer or a column."""
    return -(-channels // (_SQUEEZE * _CHANNEL_STEP)) * _CHANNEL_STEP


def _squeeze_excite(walk: _Walk, stage: Stage, x: _Signal) -> _Signal:
    """Weighs each channel by a small network's opinion of all channels' means.

    Departure: the gate is a sigmoid, which runtimes have as one op, where MobileNetV3 has a hard
    sigmoid, which they have not.
    """
    name = stage.name
    present = walk.present(stage) & (walk.option(stage, "squeeze_excite") > 0)
    bits = walk.option(stage, "project_bits")
    squeezed = squeezed_channels(x.channels)
    gate = walk.add(f"{name}_squeeze", "mean", x, present)
    gate = walk.add(
        f"{name}_reduce",
        "dense",
        gate,
        present,
        channels=squeezed,
        weight_bits=bits,
        activation="relu",
    )
    gate = walk.add(f"{name}_excite", "dense", gate, present, channels=x.channels, weight_bits=bits)
    gate = walk.add(f"{name}_gate", "sigmoid", gate, present)
    return walk.add(f"{name}_scale", "multiply", x, present, others=[(gate, present)])


BLOCKS: Mapping[str, Block] = {
    "conv": _conv,
    "dense": _dense,
    "inverted": _inverted,
    "layer": _layer,
    "max_pool": _max_pool,
    "mean": _mean,
    "pointwise": _pointwise,
    "residual": _residual,
    "unified": _unified,
}
