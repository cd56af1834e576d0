"""LayerSpec -> Keras layers that quantize well.

One function per op builds both the quantization-aware layer and its float twin: what differs is the
`Wrap` it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from tfgen.nets.keras_compat import keras, tf
from tfgen.space.layers import LayerSpec


class Wrap(Protocol):
    """Puts quantizers around a layer; None means that weights or outputs stay as they are."""

    def __call__(
        self, layer: keras.layers.Layer, *, weight_bits: int | None, activation_bits: int | None
    ) -> keras.layers.Layer: ...


def plain(
    layer: keras.layers.Layer, *, weight_bits: int | None, activation_bits: int | None
) -> keras.layers.Layer:
    """The `Wrap` of a float network."""
    del weight_bits, activation_bits
    return layer


def dense(spec: LayerSpec, x: tf.Tensor, wrap: Wrap) -> tf.Tensor:
    """A fully connected layer, its activation fused: only the output is quantized."""
    layer = keras.layers.Dense(spec.out_channels, activation=spec.activation, name=spec.name)
    wrapped = wrap(layer, weight_bits=spec.weight_bits, activation_bits=spec.activation_bits)
    return wrapped(x)  # [batch, out_channels]


BLOCKS: Mapping[str, Callable[[LayerSpec, tf.Tensor, Wrap], tf.Tensor]] = {"dense": dense}
