"""A Keras model as LayerSpecs with weights: what it computes, in the ops that files are made of.

  * Batch normalisation after a convolution or dense layer that nothing else reads is that layer's
    own. Elsewhere in images it is a depthwise layer, as are a rescaling and an average over
    windows; of a vector it becomes a part of the dense layer that reads it.
  * Dropout and noise are left out, and so is a softmax at the end: outputs are logits.
  * A 1x1 convolution is a dense layer at each position.
  * Zeros around an image are part of the convolution that reads it where a file has such windows;
    elsewhere a pad adds them, as many on each side.

What has no such form is refused, and the layer named. A network of these layers with these weights
computes what the model does (tested to 1e-4 of its outputs).
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import errors
from tfgen.nets import blocks
from tfgen.nets.keras_file import KerasGraph, Node
from tfgen.nets.keras_kinds import INPUT_NODE, SKIPPED
from tfgen.nets.network import BETA, BIAS, EXAMPLES, GAMMA, KERNEL, MEAN, VARIANCE, Weights
from tfgen.space.layers import (
    INPUT,
    LayerSpec,
    Size,
    check_network,
    in_file_order,
    lent_range,
)

_BITS = 8
_MOST_ARRAYS = {"BatchNormalization": 4, "Normalization": 3, "SeparableConv2D": 3}  # 2 elsewhere
_COUNTS = ("Normalization",)  # whose last array is a number of examples
_LEAST_DEVIATION = 1e-7  # Keras's epsilon, below which no deviation is divided by
_FUSED = ("relu", "relu6")
_APART = {"sigmoid": "sigmoid", "hard_silu": "hard_swish", "hard_swish": "hard_swish"}


@dataclasses.dataclass(frozen=True)
class PrototypeNetwork:
    """A model, read.

    Attributes:
      layers: of the network.
      input_shape: of one example.
      weights: of its layers: a kernel; and a bias, or what batch normalisation has.
      remarks: what was left out or changed.
    """

    layers: tuple[LayerSpec, ...]
    input_shape: tuple[int, ...]
    weights: Weights
    remarks: tuple[str, ...]


def read(graph: KerasGraph, source: str) -> PrototypeNetwork:
    """Makes layers of a graph.

    Args:
      graph: of one input and one output.
      source: what errors name.

    Raises:
      CorruptFileError: a layer has no such form; names it.
    """
    if len(graph.input_shape) == 2 and _reshaped_first(graph):
        graph = dataclasses.replace(graph, input_shape=(*graph.input_shape, 1))
    if len(graph.input_shape) not in (1, 3):
        raise errors.CorruptFileError(
            f"{source}: its inputs are {graph.input_shape}; images [height, width, channels] and "
            "vectors are read"
        )
    reader = _Reader(graph)
    for node in graph.nodes:
        try:
            reader.add(node)
        except _NoForm as error:
            raise errors.CorruptFileError(
                f"{source}: layer {node.name!r} ({node.kind}): {error}"
            ) from None
    try:
        layers = reader.finished(graph.output)
        check_network(layers, graph.input_shape)
    except ValueError as error:
        raise errors.CorruptFileError(f"{source}: {error}") from error
    ordered, remarks = in_file_order(layers), tuple(reader.remarks)
    return PrototypeNetwork(ordered, graph.input_shape, reader.weights, remarks)


def _reshaped_first(graph: KerasGraph) -> bool:
    """Whether a model of matrices takes them for images or vectors before it computes anything."""
    matrices = {INPUT_NODE}
    for node in graph.nodes:
        if matrices.isdisjoint(node.inputs) or node.kind in _RESHAPING:
            continue
        if node.kind not in SKIPPED:
            return False
        matrices.add(node.name)
    return True


# Of normalised vectors.
_ABSORBING = ("BatchNormalization", "Dense", "Flatten", "Normalization", "Rescaling")
_RESHAPING = ("Flatten", "Reshape")
_OF_VECTORS = ("dense", "hard_swish", "mean", "sigmoid")


class _NoForm(Exception):
    """Why a layer has no form."""


_NO_ZEROS = (0, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """What a node made.

    Attributes:
      layer: that makes it, or INPUT.
      channels: of it.
      size: of the image, () of a vector.
      padding: zeros around it that are still to be added: top, bottom, left, right.
      affine: of a vector, what its channels are still to be multiplied by and what is added then,
        each [channels]; the dense layer that reads it does both.
    """

    layer: str
    channels: int
    size: Size
    padding: tuple[int, int, int, int] = _NO_ZEROS
    affine: tuple[np.ndarray, np.ndarray] | None = dataclasses.field(default=None, compare=False)


class _Reader:
    """The layers so far."""

    def __init__(self, graph: KerasGraph):
        *size, channels = graph.input_shape
        self.weights: dict[str, dict[str, np.ndarray]] = {}
        self.remarks: list[str] = []
        self._layers: list[LayerSpec] = []
        self._tensors = {INPUT_NODE: _Tensor(INPUT, channels, tuple(size))}
        self._output = graph.output
        # How many nodes read a node, and by layer how many read what it makes.
        self._readers = collections.Counter(name for node in graph.nodes for name in node.inputs)
        self._readers[graph.output] += 1
        self._after = self._passing(graph)
        self._uses: dict[str, int] = {}
        self._makers: dict[str, str] = {}  # by layer, the node that it is of
        self._pads: dict[tuple[str, int], _Tensor] = {}  # by what they are around, and how many

    def _passing(self, graph: KerasGraph) -> dict[str, set[str]]:
        """The nodes behind which numbers stay as they are, each with the classes behind it."""
        by_name = {node.name: node for node in graph.nodes}
        name, found = graph.output, {graph.output: set[str]()}
        while name in by_name:
            node = by_name[name]
            linear = node.kind == "Activation" and _activation(node.config) == "linear"
            if not (linear or node.kind in (*SKIPPED, *_RESHAPING)):
                break
            behind, (name,) = found[name] | {node.kind}, node.inputs
            if self._readers[name] != 1:
                break
            found[name] = behind
        return found

    def add(self, node: Node) -> None:
        """Adds a node's layers; raises _NoForm."""
        inputs = [self._tensors[name] for name in node.inputs]
        if node.kind in SKIPPED:
            self._tensors[node.name] = self.same(node, inputs[0])
            return
        if node.kind not in _FORMS:
            raise _NoForm("such layers are not read")
        if node.config.get("data_format") == "channels_first":
            raise _NoForm("channels come first")
        weights = node.arrays[: -1 if node.kind in _COUNTS else None]
        if any(array.dtype.kind != "f" for array in weights):
            raise _NoForm("weights that are no floats are not read")
        if len(node.arrays) > _MOST_ARRAYS.get(node.kind, 2):
            raise _NoForm(f"it has {len(node.arrays)} arrays of weights")
        if node.kind not in _PADDED:
            inputs = [self.padded(node, tensor) for tensor in inputs]
        if any(tensor.affine for tensor in inputs) and node.kind not in _ABSORBING:
            raise _NoForm("it reads a normalised vector, as dense layers alone do")
        self._tensors[node.name] = _FORMS[node.kind](self, node, inputs)

    def finished(self, output: str) -> tuple[LayerSpec, ...]:
        """The layers, of which the last one makes the output; raises ValueError."""
        last = self._tensors[output]
        if last.affine:
            raise ValueError(
                f"its output, of {output!r}, is normalised, and no dense layer follows"
            )
        if not self._layers or self._layers[-1].name != last.layer or any(last.padding):
            raise ValueError(f"its output, of {output!r}, is not made by the last layer")
        for name in [layer.name for layer in self._layers if layer.op == "concat"]:
            self._join_nested(name)
        for layer in [layer for layer in self._layers if layer.op == "concat"]:
            self._own_ranges(layer)
        return tuple(self._layers)

    def _join_nested(self, name: str) -> None:
        """Makes concatenations that this one alone reads a part of it."""
        concat = self._found(name)
        assert concat is not None
        inputs: list[str] = []
        for read in concat.inputs:
            made = self._found(read)
            if made is not None and made.op == "concat" and self._times_read(read) == 1:
                inputs += made.inputs
                self._layers.remove(made)
            else:
                inputs.append(read)
        if len(inputs) > len(concat.inputs):
            self.replace(concat, inputs=tuple(inputs), in_channels=self._channels(inputs[0]))

    def _times_read(self, name: str) -> int:
        return sum(layer.inputs.count(name) for layer in self._layers)

    def _channels(self, name: str) -> int:
        """Of what a layer makes, or of the input."""
        made = self._found(name)
        return self._tensors[INPUT_NODE].channels if made is None else made.out_channels

    def _own_ranges(self, concat: LayerSpec) -> None:
        """Copies what a concatenation reads where that cannot take the range of the whole."""
        inputs = list(concat.inputs)
        for place, name in enumerate(inputs):
            lent = lent_range(self._layers, concat, name)
            maker = self._found(lent[-1]) if lent else None
            if maker is not None and maker.op != "sigmoid":  # whose range is 0..1 in all runtimes
                continue
            made = self._found(name)
            if concat.out_size:
                added = [self._copy(f"{concat.name}_copy_{place}", name, concat.out_size)]
            elif made is not None and made.op == "flatten":  # of a copy of its image
                copy = self._copy(f"{concat.name}_copy_{place}", made.inputs[0], made.in_size)
                flat = self._name(f"{concat.name}_flat_{place}")
                added = [copy, dataclasses.replace(made, name=flat, inputs=(copy.name,))]
                if self._times_read(name) == 1:
                    self._layers.remove(made)
            else:
                raise ValueError(
                    f"layer {concat.name!r} (Concatenate): joins {name!r}, a vector with a range "
                    "by itself: of a sigmoid, of the model's input, or since others read it too"
                )
            at = self._layers.index(concat)
            self._layers[at:at] = added
            inputs[place] = added[-1].name
            self.remarks.append(f"{concat.name}: joins a copy of {name!r}, which has another range")
        self.replace(concat, inputs=tuple(inputs))

    def _copy(self, name: str, read: str, size: Size) -> LayerSpec:
        """A layer that copies an image."""
        channels = self._channels(read)
        copy = LayerSpec(
            name=self._name(name),
            op="depthwise",
            inputs=(read,),
            in_channels=channels,
            out_channels=channels,
            in_size=size,
            out_size=size,
            weight_bits=_BITS,
        )
        self.weights[copy.name] = _copying(channels)
        return copy

    def _found(self, name: str) -> LayerSpec | None:
        return next((layer for layer in self._layers if layer.name == name), None)

    # --- what forms use -------------------------------------------------------------------------

    def layer(
        self,
        node: Node,
        op: str,
        inputs: Sequence[_Tensor],
        *,
        suffix: str = "",
        weights: Mapping[str, np.ndarray] | None = None,
        size: Size | None = None,
        channels: int | None = None,
        **fields: Any,
    ) -> _Tensor:
        """Adds one layer; sizes and channels are the first input's unless they are given."""
        name = self._name(f"{node.name}{suffix}")
        first = inputs[0]
        out = _Tensor(
            name,
            first.channels if channels is None else channels,
            first.size if size is None else size,
        )
        spec = LayerSpec(
            name=name,
            op=op,
            inputs=tuple(tensor.layer for tensor in inputs),
            in_channels=first.channels,
            out_channels=out.channels,
            in_size=first.size,
            out_size=out.size,
            weight_bits=_BITS if weights is not None else 0,
            **fields,
        )
        self._layers.append(spec)
        self._makers[name] = node.name
        self._uses[name] = self._readers[node.name]
        if weights is not None:
            self.weights[name] = {k: np.asarray(v, np.float32) for k, v in weights.items()}
        return out

    def window(self, node: Node, x: _Tensor, kernel: int) -> tuple[_Tensor, _Window]:
        """What windows read of x, and how they lie there; raises _NoForm.

        Zeros around x are those of a file's windows, or a pad's.
        """
        found = _window(node.config, x, kernel)
        if found is None:
            x = self.padded(node, x)
            found = _window(node.config, x, kernel)
            assert found is not None  # nothing is around x
        return dataclasses.replace(x, padding=_NO_ZEROS), found

    def padded(self, node: Node, x: _Tensor) -> _Tensor:
        """x with its zeros around it, which a pad adds; raises _NoForm."""
        if not any(x.padding):
            return x
        if len(set(x.padding)) > 1:
            sides = ", ".join(map(str, x.padding))
            raise _NoForm(
                "it reads an image with other zeros before it than behind (top, bottom, left, "
                f"right: {sides}), which are read of convolutions alone, and not of all"
            )
        zeros = x.padding[0]
        if (x.layer, zeros) not in self._pads:  # the converter makes one of equal ones
            size = tuple(side + 2 * zeros for side in x.size)
            made = self.layer(node, "pad", [x], suffix="_pad", size=size, offset=zeros)
            self._pads[x.layer, zeros] = made
        return self._pads[x.layer, zeros]

    def activated(self, node: Node, x: _Tensor, activation: str) -> _Tensor:
        """Applies an activation: as part of the op that makes x, or as an op of its own."""
        if activation == "linear":
            return self.same(node, x)
        if activation in _FUSED:
            made = self.maker(x)
            fusing = made is not None and (made.weighted or made.op == "add")
            if made is not None and fusing and made.activation == "linear" and self.alone(node, x):
                self.replace(made, activation=activation)
                return self.same(node, x)
            if not x.size:
                raise _NoForm(f"{activation} of a vector follows what does not apply one")
            # A depthwise layer of ones applies it, where others read what it is applied to.
            self.remarks.append(f"{node.name}: its {activation} is a depthwise layer of ones")
            return self.layer(
                node,
                "depthwise",
                [x],
                suffix=f"_{activation}",
                weights=_copying(x.channels),
                activation=activation,
            )
        if activation in _APART:
            suffix = "" if node.kind in ("Activation", "ReLU") else f"_{activation}"
            return self.layer(node, _APART[activation], [x], suffix=suffix)
        if activation in ("silu", "swish"):
            gate = self.layer(node, "sigmoid", [x], suffix="_sigmoid")
            return self.layer(node, "multiply", [x, gate], suffix="_multiply")
        if activation == "softmax" and self._says_all(node, x):
            self.remarks.append(f"{node.name}: outputs are logits, the softmax is left out")
            return self.same(node, x)
        raise _NoForm(f"activation {activation!r} is not read")

    def same(self, node: Node, x: _Tensor) -> _Tensor:
        """x as what the node makes, too: who reads the node reads x."""
        if self._makers.get(x.layer) != node.name:
            self._uses[x.layer] = self._uses.get(x.layer, 0) - 1 + self._readers.get(node.name, 0)
        return x

    def alone(self, node: Node, x: _Tensor) -> bool:
        """Whether nothing but the node reads x."""
        return self._makers.get(x.layer) == node.name or self._uses.get(x.layer, 0) == 1

    def ends_in(self, node: Node) -> bool:
        """Whether the node makes the model's output."""
        return node.name == self._output

    def _says_all(self, node: Node, x: _Tensor) -> bool:
        """Whether what the node makes of x is the output, if in another shape of one pixel."""
        after = self._after.get(node.name)
        return after is not None and (x.size in ((), (1, 1)) or not after & set(_RESHAPING))

    def since_mean(self, node: Node, x: _Tensor) -> list[LayerSpec]:
        """The mean of an image and the layers from it to x, of which each reads the one before.

        None of them where another than the next layer, or at the end the node, reads one.
        """
        found: list[LayerSpec] = []
        made = self.maker(x) if self.alone(node, x) else None
        while made is not None and made.op in _OF_VECTORS and len(made.inputs) == 1:
            found.append(made)
            if made.op == "mean":
                return found
            (read,) = made.inputs
            made = self._found(read) if self._uses.get(read, 0) == 1 else None
        return []

    def maker(self, x: _Tensor) -> LayerSpec | None:
        """The layer that makes x; None for the input."""
        return self._found(x.layer)

    def replace(self, layer: LayerSpec, **fields: Any) -> None:
        """Changes a layer that was added."""
        place = self._layers.index(layer)
        self._layers[place] = dataclasses.replace(layer, **fields)

    def _name(self, name: str) -> str:
        """A name that no layer has, nor any of the Keras layers that a layer becomes."""
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)  # TensorFlow's scopes have no others
        plain = free = plain if plain[0].isalnum() else f"layer{plain}"
        suffixes = ("", blocks.NORM_SUFFIX, blocks.OUTPUT_SUFFIX)
        taken = {INPUT, EXAMPLES} | {layer.name + s for layer in self._layers for s in suffixes}
        number = len(self._layers)
        while taken & {free + suffix for suffix in suffixes}:
            free = f"{plain}_{number}"
            number += 1
        return free


# --- layers with weights --------------------------------------------------------------------------


def _conv(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    (x,) = inputs
    config, kernel = node.config, node.arrays[0]
    kernel_size = _square(config["kernel_size"], "kernel")
    x, window = reader.window(node, x, kernel_size)
    groups = int(config.get("groups", 1))
    bias = _bias(node, kernel.shape[-1])
    if groups == x.channels and kernel.shape[-1] == groups:
        weights = {KERNEL: np.swapaxes(kernel, 2, 3), BIAS: bias}
        y = reader.layer(node, "depthwise", [x], weights=weights, **window.fields())
    elif groups != 1:
        raise _NoForm(f"convolutions in {groups} groups are not read")
    elif window.kernel == 1 and window.stride == 1:
        y = _pointwise(reader, node, x, kernel[0, 0], bias)
    else:
        y = reader.layer(
            node,
            "conv",
            [x],
            weights={KERNEL: kernel, BIAS: bias},
            channels=kernel.shape[-1],
            **window.fields(),
        )
    return reader.activated(node, y, _activation(config))


def _pointwise(
    reader: _Reader, node: Node, x: _Tensor, kernel: np.ndarray, bias: np.ndarray
) -> _Tensor:
    """A dense layer of each pixel, or of a vector.

    Of an image of a single channel that is a product to the converter; there it is a convolution.
    """
    if x.size and x.channels == 1:
        op, kernel = "conv", kernel[np.newaxis, np.newaxis]
    else:
        op = "dense"
    weights = {KERNEL: kernel, BIAS: bias}
    return reader.layer(node, op, [x], weights=weights, channels=kernel.shape[-1])


def _depthwise(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    (x,) = inputs
    kernel = node.arrays[0]
    if kernel.shape[-1] != 1:
        raise _NoForm(f"a depth multiplier of {kernel.shape[-1]} is not read")
    kernel_size = _square(node.config["kernel_size"], "kernel")
    x, window = reader.window(node, x, kernel_size)
    weights = {KERNEL: kernel, BIAS: _bias(node, x.channels)}
    y = reader.layer(node, "depthwise", [x], weights=weights, **window.fields())
    return reader.activated(node, y, _activation(node.config))


def _separable(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    (x,) = inputs
    depthwise, pointwise, *rest = node.arrays
    if depthwise.shape[-1] != 1:
        raise _NoForm(f"a depth multiplier of {depthwise.shape[-1]} is not read")
    kernel_size = _square(node.config["kernel_size"], "kernel")
    x, window = reader.window(node, x, kernel_size)
    y = reader.layer(
        node,
        "depthwise",
        [x],
        suffix="_depthwise",
        weights={KERNEL: depthwise, BIAS: np.zeros(x.channels)},
        **window.fields(),
    )
    bias = rest[0] if rest else np.zeros(pointwise.shape[-1])
    y = _pointwise(reader, node, y, pointwise[0, 0], bias)
    return reader.activated(node, y, _activation(node.config))


def _dense(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    (x,) = inputs
    kernel = node.arrays[0]
    if kernel.shape[:-1] != (x.channels,):
        raise _NoForm(f"its kernel is {kernel.shape}, its input has {x.channels} channels")
    bias = _bias(node, kernel.shape[-1])
    if x.affine:
        scale, offset = x.affine
        bias, kernel = bias + offset @ kernel, scale[:, None] * kernel
    y = _pointwise(reader, node, x, kernel, bias)
    return reader.activated(node, y, _activation(node.config))


def _batch_norm(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    (x,) = inputs
    if _axis(node.config.get("axis", -1)) not in (-1, len(x.size) + 1):
        raise _NoForm("normalisation of another axis than the channels is not read")
    arrays = list(node.arrays)
    gamma = arrays.pop(0) if node.config.get("scale", True) else np.ones(x.channels)
    beta = arrays.pop(0) if node.config.get("center", True) else np.zeros(x.channels)
    mean, variance = arrays
    epsilon = float(node.config["epsilon"])
    made = reader.maker(x)
    # What was scaled since it was made is no longer what the layer makes.
    bare = made is not None and made.activation == "linear" and not (made.batch_norm or x.affine)
    if made is not None and bare and made.weighted and reader.alone(node, x):
        # Ours has an epsilon of its own: the scale makes up for the difference.
        gamma = gamma * np.sqrt((variance + blocks.NORM_EPSILON) / (variance + epsilon))
        own = reader.weights[made.name]
        own[MEAN] = np.asarray(mean - own.pop(BIAS), np.float32)
        for name, value in ((GAMMA, gamma), (BETA, beta), (VARIANCE, variance)):
            own[name] = np.asarray(value, np.float32)
        reader.replace(made, batch_norm=True)
        return reader.same(node, x)
    scale = gamma / np.sqrt(variance + epsilon)
    return _scaled(reader, node, x, scale, beta - mean * scale)


def _rescaling(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    (x,) = inputs
    scale, offset = (
        np.broadcast_to(np.asarray(node.config[name], np.float64), (x.channels,))
        for name in ("scale", "offset")
    )
    return _scaled(reader, node, x, scale, offset)


def _normalization(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    """By moments of the data, which Keras keeps in the config or, once adapted, as weights."""
    (x,) = inputs
    config = node.config
    if list(np.atleast_1d(config.get("axis", -1))) not in ([], [-1], [len(x.size) + 1]):
        raise _NoForm("normalisation of another axis than the channels is not read")
    moments = node.arrays[:2] or (config.get("mean"), config.get("variance"))
    mean, variance = (
        np.broadcast_to(np.asarray(moment, np.float64).ravel(), (x.channels,)) for moment in moments
    )
    deviation = np.maximum(np.sqrt(variance), _LEAST_DEVIATION)
    if config.get("invert"):
        return _scaled(reader, node, x, deviation, mean)
    return _scaled(reader, node, x, 1.0 / deviation, -mean / deviation)


def _scaled(
    reader: _Reader, node: Node, x: _Tensor, scale: np.ndarray, offset: np.ndarray
) -> _Tensor:
    """x times a number and plus another, of each channel.

    A part of the layer with weights that makes x for this one alone. Else of an image a 1x1
    depthwise layer, of a vector a part of the dense layer that reads it.
    """
    made = reader.maker(x)
    linear = made is not None and made.weighted and made.activation == "linear"
    if made is not None and linear and not x.affine and reader.alone(node, x):
        own = reader.weights[made.name]
        last = (slice(None), None) if made.op == "depthwise" else slice(None)
        for part, by in ((GAMMA, scale), (BETA, scale), (KERNEL, scale[last]), (BIAS, scale)):
            if part in own and not (part == KERNEL and made.batch_norm):
                own[part] = np.asarray(own[part] * by, np.float32)
        added = BETA if made.batch_norm else BIAS
        own[added] = np.asarray(own[added] + offset, np.float32)
        return reader.same(node, x)
    if not x.size:
        if x.affine:
            scale, offset = scale * x.affine[0], scale * x.affine[1] + offset
        return reader.same(node, dataclasses.replace(x, affine=(scale, offset)))
    return reader.layer(
        node, "depthwise", [x], weights={KERNEL: scale[None, None, :, None], BIAS: offset}
    )


def _average(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    """A depthwise layer of equal weights; a pool where windows reach beyond the image, uncounted.

    XNNPACK has the depthwise layer, and takes a quarter of the time of the runtime's own pool.
    """
    (around,) = inputs
    side = _square(node.config["pool_size"], "window")
    x, window = reader.window(node, around, side)
    if (side, side) == x.size and window.size == (1, 1):
        return reader.layer(node, "mean", [x], size=(1, 1))
    ends = [(out - 1) * window.stride + side for out in window.size]
    beyond = any(end > given for end, given in zip(ends, x.size, strict=True))
    counted = any(around.padding) and x.layer == around.layer  # else a pad brought the zeros
    if beyond and not counted:
        return reader.layer(node, "average_pool", [x], **window.fields())
    weights = {
        KERNEL: np.full((side, side, x.channels, 1), 1.0 / side**2),
        BIAS: np.zeros(x.channels),
    }
    reader.remarks.append(f"{node.name}: averages are a depthwise layer of equal weights")
    return reader.layer(node, "depthwise", [x], weights=weights, **window.fields())


# --- layers without -------------------------------------------------------------------------------


def _max_pool(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    (x,) = inputs
    side = _square(node.config["pool_size"], "window")
    x, window = reader.window(node, x, side)
    return reader.layer(node, "max_pool", [x], **window.fields())


def _resize(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    (x,) = inputs
    interpolation = node.config.get("interpolation", "nearest")
    if interpolation != "nearest":
        raise _NoForm(f"{interpolation} interpolation is not read, only that of the nearest pixel")
    factor = _square(node.config["size"], "factor")
    if factor == 1:
        return reader.same(node, x)
    size = tuple(side * factor for side in x.size)
    return reader.layer(node, "resize", [x], size=size, stride=factor)


def _global_mean(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    size: Size = (1, 1) if node.config.get("keepdims") else ()
    return reader.layer(node, "mean", inputs, size=size)


def _global_max(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    """A max pool of one window, the whole image."""
    (x,) = inputs
    if len(set(x.size)) != 1:
        raise _NoForm("the maximum of an image that is not square is not read")
    (side,) = set(x.size)
    most = reader.layer(node, "max_pool", [x], size=(1, 1), kernel=side, stride=side)
    if node.config.get("keepdims"):
        return most
    return reader.layer(node, "mean", [most], suffix="_vector", size=())


def _flatten(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    (x,) = inputs
    if not x.size:
        return reader.same(node, x)
    if x.size == (1, 1):  # the converter makes one op of such a flattening and what reads it
        made = reader.maker(x)
        if made is not None and made.op == "mean" and reader.alone(node, x):
            reader.replace(made, out_size=())
            return reader.same(node, dataclasses.replace(x, size=()))
        return reader.layer(node, "mean", [x], size=())
    features = x.channels * x.size[0] * x.size[1]
    return reader.layer(node, "flatten", [x], size=(), channels=features)


def _reshape(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    (x,) = inputs
    target = tuple(node.config["target_shape"])
    features = x.channels * int(np.prod(x.size or (1, 1)))
    if len(target) == 1 and target[0] in (-1, features):
        return _flatten(reader, node, inputs)
    if target == (*x.size, x.channels):
        return reader.same(node, x)
    if not x.size and target in ((1, 1, x.channels), (1, 1, -1)):
        chain = reader.since_mean(node, x)
        for layer in chain:
            read = layer.in_size if layer.op == "mean" else (1, 1)
            reader.replace(layer, in_size=read, out_size=(1, 1))
        if chain:
            return reader.same(node, dataclasses.replace(x, size=(1, 1)))
    raise _NoForm(f"a change of shape to {target} is not read")


def _zero_padding(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    (x,) = inputs
    (top, bottom), (left, right) = node.config["padding"]
    around = reader.same(node, dataclasses.replace(x, padding=(top, bottom, left, right)))
    return reader.padded(node, around) if reader.ends_in(node) else around


def _add(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    return _chained(reader, node, inputs, "add")


def _multiply(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    gates_last = sorted(inputs, key=lambda tensor: tensor.size == (1, 1))
    return _chained(reader, node, gates_last, "multiply")


def _chained(reader: _Reader, node: Node, inputs: Sequence[_Tensor], op: str) -> _Tensor:
    """Sums and products of two, one after the other."""
    first, *others = inputs
    for number, other in enumerate(others, 1):
        gate = op == "multiply" and bool(first.size) and other.size == (1, 1)
        if other.channels != first.channels or not (other.size == first.size or gate):
            raise _NoForm("its inputs differ in shape")
        suffix = "" if number == len(others) else f"_{number}"
        first = reader.layer(node, op, [first, other], suffix=suffix)
    return first


def _concatenate(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    if _axis(node.config.get("axis", -1)) not in (-1, len(inputs[0].size) + 1):
        raise _NoForm("another axis than the channels is not read")
    if len(inputs) == 1:
        return reader.same(node, inputs[0])
    if len({tensor.size for tensor in inputs}) > 1:
        raise _NoForm("its inputs differ in size")
    channels = sum(tensor.channels for tensor in inputs)
    return reader.layer(node, "concat", inputs, channels=channels)


def _activate(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    return reader.activated(node, inputs[0], _activation(node.config))


def _relu(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    return reader.activated(node, inputs[0], _relu_of(node.config))


def _softmax(reader: _Reader, node: Node, inputs: Sequence[_Tensor]) -> _Tensor:
    if _axis(node.config.get("axis", -1)) not in (-1, len(inputs[0].size) + 1):
        raise _NoForm("a softmax over another axis than the channels is not read")
    return reader.activated(node, inputs[0], "softmax")


_Form = Callable[[_Reader, Node, Sequence[_Tensor]], _Tensor]
_FORMS: Mapping[str, _Form] = {
    "Activation": _activate,
    "Add": _add,
    "AveragePooling2D": _average,
    "BatchNormalization": _batch_norm,
    "Concatenate": _concatenate,
    "Conv2D": _conv,
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise,
    "Flatten": _flatten,
    "GlobalAveragePooling2D": _global_mean,
    "GlobalMaxPooling2D": _global_max,
    "MaxPooling2D": _max_pool,
    "Multiply": _multiply,
    "Normalization": _normalization,
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "SeparableConv2D": _separable,
    "Softmax": _softmax,
    "UpSampling2D": _resize,
    "ZeroPadding2D": _zero_padding,
}
# What counts zeros around an image as the convolutions of files do.
_PADDED = ("AveragePooling2D", "Conv2D", "DepthwiseConv2D", "SeparableConv2D")


def _copying(channels: int) -> dict[str, np.ndarray]:
    """Weights of a 1x1 depthwise layer that changes nothing."""
    ones = np.ones((1, 1, channels, 1), np.float32)
    return {KERNEL: ones, BIAS: np.zeros(channels, np.float32)}


# --- configs --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Window:
    """How the windows of a layer lie.

    Attributes:
      stride: of them.
      size: of what comes out.
      valid: whether they stay within the image.
      kernel: their side.
    """

    stride: int
    size: Size
    valid: bool
    kernel: int

    def fields(self) -> dict[str, Any]:
        """As a LayerSpec has them."""
        return dataclasses.asdict(self)


def _window(config: Mapping[str, Any], x: _Tensor, kernel: int) -> _Window | None:
    """How windows lie; None where none of a file's do so; raises _NoForm where none can.

    Files pad so that out = ceil(in / stride), or not at all.

    Args:
      config: of the layer.
      x: what it reads.
      kernel: its side.
    """
    if len(x.size) != 2:
        raise _NoForm("it reads no image")
    if _square(config.get("dilation_rate", 1), "dilation") != 1:
        raise _NoForm("a dilated kernel is not read")
    stride = _square(config.get("strides") or kernel, "stride")
    same = tuple(-(-given // stride) for given in x.size)
    if config.get("padding", "valid") == "same":
        return None if any(x.padding) else _Window(stride, same, False, kernel)
    pads = (x.padding[:2], x.padding[2:])
    size = tuple(
        (given + sum(zeros) - kernel) // stride + 1
        for given, zeros in zip(x.size, pads, strict=True)
    )
    if min(size) < 1:
        raise _NoForm("its windows are larger than the image")
    # Zeros before the image, of those that a file adds.
    before = [
        max((out - 1) * stride + kernel - given, 0) // 2
        for out, given in zip(same, x.size, strict=True)
    ]
    if size == same and before == [zeros for zeros, _ in pads]:
        return _Window(stride, same, False, kernel)
    return None if any(x.padding) else _Window(stride, size, True, kernel)


def _square(value: Any, what: str) -> int:
    sides = {int(side) for side in (value if isinstance(value, list | tuple) else [value])}
    if len(sides) != 1:
        raise _NoForm(f"a {what} that is not square is not read: {value}")
    return sides.pop()


def _axis(value: Any) -> int:
    return int(value[0] if isinstance(value, list | tuple) else value)


def _bias(node: Node, channels: int) -> np.ndarray:
    return node.arrays[1] if node.config.get("use_bias", True) else np.zeros(channels)


def _activation(config: Mapping[str, Any]) -> str:
    """Name of an activation, which Keras writes as a name or as a registered object."""
    value = config.get("activation", "linear")
    if isinstance(value, Mapping):
        if value.get("class_name") == "ReLU":  # a layer
            return _relu_of(value.get("config", {}))
        value = value.get("config" if value.get("class_name") == "function" else "class_name")
    return str(value or "linear").rsplit(".", 1)[-1]


def _relu_of(config: Mapping[str, Any]) -> str:
    """Which activation a ReLU layer is; raises _NoForm."""
    if config.get("negative_slope") or config.get("threshold"):
        raise _NoForm("a ReLU with a slope or a threshold is not read")
    largest = config.get("max_value")
    if largest not in (None, 6, 6.0):
        raise _NoForm(f"a ReLU that ends at {largest} is not read")
    return "relu" if largest is None else "relu6"
