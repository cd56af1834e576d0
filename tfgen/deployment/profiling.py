"""Which files to time so that a few hundred tell what all networks of a space take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tfgen.cost import latency_features
from tfgen.space.bits import BitPolicy
from tfgen.space.layers import INPUT, LayerSpec, layers_of, slots_of
from tfgen.space.lowering import lower_batch
from tfgen.space.search_space import SearchSpace

_SAMPLED = 400  # networks whose layers are looked at
_FEWEST = 3  # layers of a kernel, where it has so many


@dataclasses.dataclass(frozen=True)
class Fragment:
    """A part of a network that reads one tensor: an op, with what makes its other inputs.

    Attributes:
      layers: the part, as a network of its own.
      input_shape: of the tensor that it reads.
    """

    layers: tuple[LayerSpec, ...]
    input_shape: tuple[int, ...]


def fragment(layers: Sequence[LayerSpec], position: int) -> Fragment:
    """The smallest part of a network that ends in one of its layers and reads one tensor."""
    places = {layer.name: place for place, layer in enumerate(layers)}
    taken = {position}
    while True:
        read = {name for place in taken for name in layers[place].inputs}
        outside = read - {layers[place].name for place in taken}
        if len(outside) == 1:
            break
        # The network's input is made before everything else.
        taken.add(max(places[name] for name in outside if name != INPUT))
    (source,) = outside
    part = [layers[place] for place in sorted(taken)]
    reader = next(layer for layer in part if layer.inputs[0] == source)
    renamed = [
        dataclasses.replace(
            layer, inputs=tuple(INPUT if name == source else name for name in layer.inputs)
        )
        for layer in part
    ]
    return Fragment(tuple(renamed), (*reader.in_size, reader.in_channels))


def choose(
    space: SearchSpace,
    policy: BitPolicy,
    activation_bits: int,
    count: int,
    random: np.random.Generator,
) -> list[Fragment]:
    """Parts of a space's networks, spread over what each of its kernels is asked to do.

    Args:
      space: whose layers are meant.
      policy: of the runtime.
      activation_bits: of the networks; 32 for networks of float32.
      count: of parts, about.
      random: what networks are looked at.
    """
    slots = lower_batch(space, space.sample(_SAMPLED, random), activation_bits)
    found: dict[str, dict[tuple[float, ...], Fragment]] = {}
    for row in range(_SAMPLED):
        layers = layers_of(slots, row)
        for position, layer in enumerate(layers):
            kernel, numbers = _work(layer, policy)
            if numbers not in found.setdefault(kernel, {}):
                found[kernel][numbers] = fragment(layers, position)
    return [
        part for kernel, share in _shares(found, count) for part in _spread(found[kernel], share)
    ]


def _work(layer: LayerSpec, policy: BitPolicy) -> tuple[str, tuple[float, ...]]:
    """The kernel that runs a layer and what it does."""
    alone = dataclasses.replace(layer, inputs=(INPUT,) * len(layer.inputs))
    described = latency_features.features(slots_of([alone]), policy, "int8")
    own = [
        (name, value)
        for name, value in zip(described.names, described.values[0].tolist(), strict=True)
        if "." in name
    ]
    return own[0][0].split(".")[0], tuple(value for _, value in own)


def _shares(
    found: Mapping[str, Mapping[tuple[float, ...], Fragment]], count: int
) -> list[tuple[str, int]]:
    """How many layers of each kernel: more of those that are of many kinds."""
    weights = {kernel: np.sqrt(len(layers)) for kernel, layers in found.items()}
    unit = count / sum(weights.values())
    return [
        (kernel, min(len(found[kernel]), max(_FEWEST, round(unit * weight))))
        for kernel, weight in weights.items()
    ]


def _spread(layers: Mapping[tuple[float, ...], Fragment], count: int) -> list[Fragment]:
    """Layers that lie far from each other: the most work, then always the farthest from all."""
    points = np.log1p(np.array(list(layers)))  # [layers, features]
    chosen = [int(points.sum(axis=1).argmax())]
    distance = np.full(len(points), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, np.abs(points - points[chosen[-1]]).sum(axis=1))
        chosen.append(int(distance.argmax()))
    parts = list(layers.values())
    return [parts[row] for row in chosen]
