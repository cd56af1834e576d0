"""A network whose channels are multiples of 16, and which computes and learns what another does.

In bfloat16 oneDNN normalises other numbers of channels by a kernel that is ten times as slow: a
ResNet-20 with some of its channels took longer than all of it. What is added to a network here is
made of weights that are zero and read by weights that are zero. So it is zero in every example and
so are its gradients: descent leaves it where it is, and the rest goes its own way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tfgen.nets.network import KERNEL, VARIANCE, Weights
from tfgen.space.layers import INPUT, LayerSpec

_MULTIPLE = 16
Places = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor of the wider network.

    Attributes:
      channels: that it has.
      places: where those of the network's own tensor are among them [channels of that].
    """

    channels: int
    places: Places

    @classmethod
    def same(cls, channels: int) -> _Tensor:
        return cls(channels, np.arange(channels))

    @property
    def is_same(self) -> bool:
        return self.channels == len(self.places)


@dataclasses.dataclass(frozen=True)
class Aligned:
    """A network and the wider one that stands for it.

    Attributes:
      own: the network.
      layers: the wider one; the same where its tensors do not fit together.
      tensors: by layer, of the wider one.
    """

    own: tuple[LayerSpec, ...]
    layers: tuple[LayerSpec, ...]
    tensors: Mapping[str, _Tensor]

    @property
    def told(self) -> dict[str, list[int]]:
        """What tells a training of the wider network from one of the network itself, as JSON."""
        if self.layers == self.own:
            return {}
        return {"channels": [layer.out_channels for layer in self.layers]}

    def widened(self, weights: Weights) -> dict[str, dict[str, np.ndarray]]:
        """The wider network's weights, of any parts of the network's own."""
        found = {}
        for layer in self._weighted(weights):
            read, written = self.tensors[layer.inputs[0]], self.tensors[layer.name]
            own = {}
            for part, value in weights[layer.name].items():
                if part == KERNEL:
                    outputs = _Tensor.same(1) if layer.op == "depthwise" else written
                    wide = _spread(_spread(value, read, value.ndim - 2), outputs, value.ndim - 1)
                else:
                    wide = _spread(value, written, 0, 1.0 if part == VARIANCE else 0.0)
                own[part] = wide
            found[layer.name] = own
        return found

    def narrowed(self, weights: Weights) -> dict[str, dict[str, np.ndarray]]:
        """The network's own weights, of the wider one's."""
        found = {}
        for layer in self._weighted(weights):
            read, written = (self.tensors[n].places for n in (layer.inputs[0], layer.name))
            own = {}
            for part, value in weights[layer.name].items():
                if part != KERNEL:
                    own[part] = value[written]
                    continue
                kernel = np.take(value, read, axis=value.ndim - 2)
                own[part] = kernel if layer.op == "depthwise" else kernel[..., written]
            found[layer.name] = own
        return found

    def _weighted(self, weights: Weights) -> list[LayerSpec]:
        return [layer for layer in self.own if layer.name in weights]


def aligned(layers: Sequence[LayerSpec]) -> Aligned:
    """Widens what normalised layers make to the next multiple of 16.

    A network of which tensors would be added, multiplied or sliced that no longer have their
    channels at the same places is left as it is; so is one whose output would be wider.
    """
    own = tuple(layers)
    tensors = {INPUT: _Tensor.same(own[0].in_channels)}
    for layer in own:
        made = _made(layer, [tensors[name] for name in layer.inputs])
        if made is None:
            return as_it_is(own)
        tensors[layer.name] = made
    if not tensors[own[-1].name].is_same:
        return as_it_is(own)
    wide = tuple(_wide(layer, tensors) for layer in own)
    return Aligned(own, wide, tensors)


def as_it_is(layers: Sequence[LayerSpec]) -> Aligned:
    """A network that stands for itself."""
    own = tuple(layers)
    made = {layer.name: _Tensor.same(layer.out_channels) for layer in own}
    return Aligned(own, own, {INPUT: _Tensor.same(own[0].in_channels), **made})


def _made(layer: LayerSpec, read: Sequence[_Tensor]) -> _Tensor | None:
    """What a layer makes of wider tensors; None where it cannot."""
    first = read[0]
    if layer.op in ("conv", "dense") and layer.batch_norm:
        channels = -(-layer.out_channels // _MULTIPLE) * _MULTIPLE
        return _Tensor(channels, np.arange(layer.out_channels))
    if layer.op in ("conv", "dense"):
        return _Tensor.same(layer.out_channels)
    if layer.op == "sigmoid" and not first.is_same:
        return None  # of zero it is none
    if layer.op in ("add", "multiply"):
        alike = all(
            tensor.channels == first.channels and np.array_equal(tensor.places, first.places)
            for tensor in read
        )
        return first if alike else None
    if layer.op == "concat":
        begins = np.cumsum([0, *(tensor.channels for tensor in read)])
        places = [begin + tensor.places for begin, tensor in zip(begins, read, strict=False)]
        return _Tensor(int(begins[-1]), np.concatenate(places))
    if layer.op == "flatten":
        pixels = layer.out_channels // layer.in_channels
        places = np.add.outer(np.arange(pixels) * first.channels, first.places).ravel()
        return _Tensor(pixels * first.channels, places)
    if layer.op == "slice":
        own = first.places[layer.offset : layer.offset + layer.out_channels]
        return _Tensor.same(len(own)) if (np.diff(own) == 1).all() else None
    return first


def _wide(layer: LayerSpec, tensors: Mapping[str, _Tensor]) -> LayerSpec:
    read = tensors[layer.inputs[0]]
    offset = int(read.places[layer.offset]) if layer.op == "slice" else layer.offset
    return dataclasses.replace(
        layer,
        in_channels=read.channels,
        out_channels=tensors[layer.name].channels,
        offset=offset,
    )


def _spread(value: np.ndarray, tensor: _Tensor, axis: int, between: float = 0.0) -> np.ndarray:
    """An array with more along an axis, its own numbers at the places of a tensor."""
    shape = list(value.shape)
    shape[axis] = tensor.channels
    wide = np.full(shape, between, value.dtype)
    wide[(slice(None),) * axis + (tensor.places,)] = value
    return wide
