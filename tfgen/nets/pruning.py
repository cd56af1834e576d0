"""Which channels of a prototype matter, and its weights with the others cut out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tfgen.nets.blocks import NORM_EPSILON
from tfgen.nets.network import BETA, BIAS, GAMMA, KERNEL, MEAN, VARIANCE, Weights
from tfgen.space.layers import LayerSpec
from tfgen.space.prototype import Prototype

_BY_CHANNEL = (BIAS, GAMMA, BETA, MEAN, VARIANCE)


def importance(prototype: Prototype, weights: Weights) -> dict[str, np.ndarray]:
    """By group, its channels, the most important one first, as `Prototype.kept` reads them.

    A channel is worth the Euclidean norm of the weights that make it, in all layers that do; where
    the layer is normalised, of the weights with the normalisation folded into them.
    """
    normalised = {layer.name for layer in prototype.layers if layer.batch_norm}
    order = {}
    for group in prototype.groups:
        worth = np.zeros(group.channels)
        for name in group.layers:
            own = weights[name]
            norms = np.sqrt((own[KERNEL].astype(np.float64) ** 2).sum(axis=_inner(own[KERNEL])))
            if name in normalised:
                norms = norms * np.abs(own[GAMMA]) / np.sqrt(own[VARIANCE] + NORM_EPSILON)
            worth += norms
        order[group.name] = np.argsort(-worth, kind="stable")
    return order


def _inner(kernel: np.ndarray) -> tuple[int, ...]:
    """All axes but that of the outputs."""
    return tuple(range(kernel.ndim - 1))


def pruned(
    prototype: Prototype,
    weights: Weights,
    layers: Sequence[LayerSpec],
    order: Mapping[str, np.ndarray],
) -> dict[str, dict[str, np.ndarray]]:
    """The weights of a network of the prototype's space, channels by their importance.

    The largest network's are the prototype's own, in another order.

    Args:
      prototype: whose weights they are.
      weights: of all of it.
      layers: of the network.
      order: see `importance`.
    """
    kept = prototype.kept(layers, order)
    found = {}
    for layer in layers:
        if not layer.weighted:
            continue
        own, read, written = weights[layer.name], kept[layer.inputs[0]], kept[layer.name]
        kernel = np.take(own[KERNEL], read, axis=own[KERNEL].ndim - 2)
        if layer.op != "depthwise":
            kernel = np.take(kernel, written, axis=-1)
        found[layer.name] = {KERNEL: kernel} | {
            part: own[part][written] for part in _BY_CHANNEL if part in own
        }
    return found
