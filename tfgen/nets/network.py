"""LayerSpecs -> stand-alone keras.Model."""

from __future__ import annotations

from collections.abc import Sequence

from tfgen import errors
from tfgen.nets import blocks
from tfgen.nets.keras_compat import keras
from tfgen.space.layers import LayerSpec

INPUT = "input"  # name of the layer whose output is the quantized input
INPUT_BITS = 8


def build(
    layers: Sequence[LayerSpec], input_shape: Sequence[int], wrap: blocks.Wrap = blocks.plain
) -> keras.Model:
    """The network of `layers`, weights at random.

    Args:
      layers: in the order of the data flow, the last one without activation.
      input_shape: of one example, without the batch.
      wrap: `blocks.plain` makes the float network, `quantize_aware.wrap` the one that is trained.

    Raises:
      UsageError: a layer's op has no block, or the input is not what the first layer takes.
    """
    unknown = sorted({layer.op for layer in layers} - set(blocks.BLOCKS))
    if not layers or unknown:
        raise errors.UsageError(
            f"a network needs layers of the ops {sorted(blocks.BLOCKS)}, got {unknown or 'none'}"
        )
    if layers[0].op == "dense" and tuple(input_shape) != (layers[0].in_channels,):
        raise errors.UsageError(
            f"layer {layers[0].name!r} takes inputs of shape ({layers[0].in_channels},), "
            f"got {tuple(input_shape)}"
        )
    inputs = keras.Input(tuple(input_shape), name="examples")
    identity = keras.layers.Activation("linear", name=INPUT)
    x = wrap(identity, weight_bits=None, activation_bits=INPUT_BITS)(inputs)
    for layer in layers:
        x = blocks.BLOCKS[layer.op](layer, x, wrap)
    return keras.Model(inputs, x, name="network")
