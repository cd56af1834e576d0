"""Probing: how a network of a prototype's space reacts to stimuli (gensynth, section 2).

How much the loss hangs on a layer is the sum over its channels of |g w|: the first-order change of
the loss if the channel were zero (Molchanov et al. 2017), told by the scales and shifts of its
normalisation, else by its weights. What a group of channels tells is the information of their
activations, of which a narrower group has the first channels; what weights of fewer bits lose is
told by the noise that rounding adds to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tfgen.evidence.reactions import Floats, Reactions, information, rounded_information
from tfgen.nets import blocks, rounding
from tfgen.nets.keras_compat import keras, tf
from tfgen.nets.supernet import BIAS, KERNEL, SCALE, SHIFT, Statistics, Supernet
from tfgen.space.layers import LayerSpec
from tfgen.space.search_space import Chosen, SearchSpace, Value
from tfgen.training import losses
from tfgen.training.datasets import Split
from tfgen.training.tasks import Task

_OPTIONS = ("channels", "weight_bits")  # of stages, that a prototype's decisions set
_PLACES = 4096  # of a layer's images, of which the covariance is taken


def probe(
    supernet: Supernet,
    layers: Sequence[LayerSpec],
    stimuli: Split,
    task: Task,
    lost: tuple[Floats, ...] | None = None,
) -> Reactions:
    """Shows stimuli to a network.

    Args:
      supernet: of a prototype's space.
      layers: of the network.
      stimuli: a few hundred examples of the training split.
      task: whose loss is meant.
      lost: what values lose, of another network of the space; None to find it anew.
    """
    space = supernet.space
    hangs = _sensitivities(supernet, layers, stimuli, task)
    names = [decision.name for decision in space.decisions]
    sensitivity = np.array(
        [sum(hangs[layer] for option in _OPTIONS for layer in _about(space, option, name))
         for name in names], np.float64,
    )  # fmt: skip
    if lost is None:
        lost = _lost(supernet, layers, stimuli.x)
    return Reactions(sensitivity, lost)


def _lost(supernet: Supernet, layers: Sequence[LayerSpec], x: np.ndarray) -> tuple[Floats, ...]:
    """Of each decision, the share of information that each value loses."""
    space = supernet.space
    statistics = supernet.statistics(layers, [x], quantized=True)
    told = _covariances(supernet, layers, x, statistics)
    weights, ops = supernet.weights(layers), {layer.name: layer.op for layer in layers}
    lost = []
    for decision in space.decisions:
        cut, rounded = (_about(space, option, decision.name) for option in _OPTIONS)
        losing = [_cut(told[name], decision.values) for name in cut]
        losing += [_rounded(weights[n]["kernel"], ops[n], decision.values) for n in rounded]
        lost.append(np.mean(losing, axis=0) if losing else np.zeros(len(decision.values)))
    return tuple(lost)


def _about(space: SearchSpace, option: str, decision: str) -> list[str]:
    """The layers whose option a decision sets."""
    chosen = Chosen(decision)
    return [stage.name for stage in space.stages if stage.options[option] == chosen]


def _sensitivities(
    supernet: Supernet, layers: Sequence[LayerSpec], stimuli: Split, task: Task
) -> dict[str, float]:
    """By layer with weights, how much the loss hangs on its channels."""
    loss_of, variables = losses.of(task), supernet.variables
    with tf.GradientTape() as tape:
        outputs = supernet.outputs(layers, tf.constant(stimuli.x), quantized=True)
        loss = loss_of(tf.constant(stimuli.y), outputs)
    gradients = tape.gradient(loss, variables)
    found = {}
    for layer in layers:
        if not layer.weighted:
            continue
        parts = (SCALE, SHIFT) if layer.batch_norm else (KERNEL, BIAS)
        change = 0.0
        for part in parts:
            name = f"{layer.name}/{part}"
            product = (tf.convert_to_tensor(gradients[name]) * variables[name]).numpy()
            last = -2 if part == KERNEL and layer.op == "depthwise" else -1
            change = change + np.moveaxis(product, last, -1).reshape(-1, product.shape[last]).sum(0)
        found[layer.name] = float(np.abs(change).sum())
    return found


def _covariances(
    supernet: Supernet, layers: Sequence[LayerSpec], x: np.ndarray, statistics: Statistics
) -> dict[str, Floats]:
    """By layer with weights, the covariance of its output's channels over images and places."""
    model = supernet.stand_alone(layers, statistics)
    names = [layer.name for layer in layers if layer.weighted]
    known = {layer.name for layer in model.layers}
    tensors = [
        model.get_layer(own if (own := name + blocks.OUTPUT_SUFFIX) in known else name).output
        for name in names
    ]
    watched = keras.Model(model.inputs, tensors)(tf.constant(x), training=False)
    found = {}
    for name, tensor in zip(names, watched if len(names) > 1 else [watched], strict=True):
        rows = tensor.numpy().reshape(-1, tensor.shape[-1]).astype(np.float64)
        rows = rows[:: -(-len(rows) // _PLACES)]
        found[name] = np.atleast_2d(np.cov(rows, rowvar=False))
    return found


def _cut(covariance: Floats, menu: Sequence[Value]) -> Floats:
    """What is lost with the channels behind the first ones [values].

    A width that the probed network does not have loses nothing of what it tells.
    """
    widths = np.minimum([int(value) for value in menu], len(covariance))
    *bits, whole = information(covariance, [*widths, len(covariance)])
    return 1.0 - np.array(bits) / whole if whole > 0 else np.zeros(len(widths))


def _rounded(kernel: npt.NDArray[np.float32], op: str, menu: Sequence[Value]) -> Floats:
    """What is lost by weights of fewer bits [values]."""
    own = rounding.by_channel(kernel, op).astype(np.float64)
    noise = []
    for bits in menu:
        levels, scales = rounding.weight_levels(own, int(bits))
        noise.append(((levels * scales - own) ** 2).sum() / max((own**2).sum(), 1e-12))
    return np.asarray(np.clip(1.0 - rounded_information(noise), 0.0, 1.0))
