"""LayerSpecs -> stand-alone keras.Model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from tfgen import errors
from tfgen.nets import blocks
from tfgen.nets.keras_compat import keras, tf
from tfgen.space.layers import INPUT, LayerSpec, check_network, range_owners

EXAMPLES = "examples"  # the name of the Keras layer that is what a network reads
KERNEL, BIAS = "kernel", "bias"
GAMMA, BETA, MEAN, VARIANCE = "gamma", "beta", "mean", "variance"
# Parts of batch normalisation -> what Keras calls them.
NORM_PARTS = {GAMMA: "gamma", BETA: "beta", MEAN: "moving_mean", VARIANCE: "moving_variance"}
# By layer and part, as Keras has them: a kernel, and a bias or what batch normalisation has.
Weights = Mapping[str, Mapping[str, np.ndarray]]


def build(
    layers: Sequence[LayerSpec], input_shape: Sequence[int], wrap: blocks.Wrap = blocks.plain
) -> keras.Model:
    """The network of `layers`, weights at random; its output is the last layer's.

    Args:
      layers: in the order of execution.
      input_shape: of one example, without the batch.
      wrap: `blocks.plain` makes the float network, `quantize_aware.wrap` the one that is trained.

    Raises:
      UsageError: the layers are no network, or none for this input.
    """
    try:
        check_network(layers, input_shape)
        owners = range_owners(layers)
    except ValueError as error:
        raise errors.UsageError(f"these layers are no network: {error}") from None
    inputs = keras.Input(tuple(input_shape), name=EXAMPLES)
    identity = keras.layers.Activation("linear", name=INPUT)
    bits = layers[0].activation_bits
    tensors = {INPUT: wrap(identity, weight_bits=None, activation_bits=bits)(inputs)}
    for layer in layers:
        sources = [tensors[name] for name in layer.inputs]
        bits_out = layer.activation_bits if owners[layer.name] == layer.name else None
        tensors[layer.name] = blocks.apply(layer, sources, wrap, bits_out)
    return keras.Model(inputs, tensors[layers[-1].name], name="network")


def weights_of(model: keras.Model, layers: Sequence[LayerSpec]) -> dict[str, dict[str, np.ndarray]]:
    """What `with_weights` gave a float network, as it is now."""
    return {
        layer.name: {part: _variable(model, layer.name, part).numpy() for part in _parts(layer)}
        for layer in layers
        if layer.weighted
    }


def _parts(layer: LayerSpec) -> tuple[str, ...]:
    return (KERNEL, *NORM_PARTS) if layer.batch_norm else (KERNEL, BIAS)


def _variable(model: keras.Model, layer_name: str, part: str) -> tf.Variable:
    """A part of a layer of a float network."""
    if part in NORM_PARTS:
        return getattr(model.get_layer(layer_name + blocks.NORM_SUFFIX), NORM_PARTS[part])
    return model.get_layer(layer_name).weights[(KERNEL, BIAS).index(part)]


def digest(weights: Weights) -> str:
    """sha256 of the arrays, in the order of their names, in hex."""
    found = hashlib.sha256()
    for name in sorted(weights):
        for part in sorted(weights[name]):
            found.update(np.ascontiguousarray(weights[name][part]).tobytes())
    return found.hexdigest()


def with_weights(
    layers: Sequence[LayerSpec], input_shape: Sequence[int], weights: Weights
) -> keras.Model:
    """The float network of `layers` with these weights.

    Raises:
      UsageError: the layers are no network, or none for this input.
    """
    model = build(layers, input_shape)
    for layer in layers:
        if layer.weighted:
            own = weights[layer.name]
            assign(model, layer.name, {part: own[part] for part in _parts(layer)})
    return model


def assign(model: keras.Model, layer_name: str, weights: Mapping[str, np.ndarray]) -> None:
    """Gives a layer of a float network some of its parts; raises ValueError for another shape."""
    for part, value in weights.items():
        _variable(model, layer_name, part).assign(value)
