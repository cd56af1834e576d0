"""LayerSpec -> Keras layers that quantize well.

One function per op builds both the quantization-aware layer and its float twin: what differs is the
`Wrap` it is given. Each spec ends in one Keras layer whose output is the op's tensor in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tfgen.nets.keras_compat import keras, tf
from tfgen.space.layers import LayerSpec

# A spec with batch normalisation, or a sum with an activation, is several Keras layers.
NORM_SUFFIX = "_norm"
OUTPUT_SUFFIX = "_output"
# Statistics follow the weights within a hundred steps: small networks train for a few thousand.
_NORM_MOMENTUM = 0.97
NORM_EPSILON = 1e-3


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


def hard_swish(x: tf.Tensor) -> tf.Tensor:
    """x * relu6(x + 3) / 6, in the form that the converter makes one op of."""
    return x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


@keras.saving.register_keras_serializable(package="tfgen")
class HardSwish(keras.layers.Layer):
    """`hard_swish` as a layer."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return hard_swish(inputs)


@keras.saving.register_keras_serializable(package="tfgen")
class ChannelSlice(keras.layers.Layer):
    """The channels offset .. offset + channels - 1 of an image."""

    def __init__(self, offset: int, channels: int, **kwargs: object):
        super().__init__(**kwargs)
        self.offset = offset
        self.channels = channels

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if training:  # the same op in another spelling, whose gradient is ten times as fast
            begin = [0] * (inputs.shape.rank - 1) + [self.offset]
            size = [-1] * (inputs.shape.rank - 1) + [self.channels]
            return tf.slice(inputs, begin, size)
        return inputs[..., self.offset : self.offset + self.channels]

    def get_config(self) -> dict[str, object]:
        return {**super().get_config(), "offset": self.offset, "channels": self.channels}


def _padding(spec: LayerSpec) -> str:
    return "valid" if spec.valid else "same"


def _weighted(spec: LayerSpec, x: tf.Tensor, wrap: Wrap, bits: int | None) -> tf.Tensor:
    """A weighted op; without batch normalisation it has a bias."""
    options = {"name": spec.name, "use_bias": not spec.batch_norm}
    alone = not spec.batch_norm and spec.activation != "relu6"
    if alone:
        options["activation"] = spec.activation
    window = {"strides": spec.stride, "padding": _padding(spec)}
    if spec.op == "dense":
        layer = keras.layers.Dense(spec.out_channels, **options)
    elif spec.op == "conv":
        layer = keras.layers.Conv2D(spec.out_channels, spec.kernel, **window, **options)
    else:
        layer = keras.layers.DepthwiseConv2D(spec.kernel, **window, **options)
    x = wrap(layer, weight_bits=spec.weight_bits, activation_bits=bits if alone else None)(x)
    if spec.batch_norm:
        x = keras.layers.BatchNormalization(
            momentum=_NORM_MOMENTUM, epsilon=NORM_EPSILON, name=spec.name + NORM_SUFFIX
        )(x)
    return x if alone else _output(spec, x, wrap, bits)


def _output(spec: LayerSpec, x: tf.Tensor, wrap: Wrap, bits: int | None) -> tf.Tensor:
    """The spec's activation and its output's quantizer as a layer of their own."""
    name = spec.name + OUTPUT_SUFFIX
    if spec.activation == "relu6":
        layer = keras.layers.ReLU(6.0, name=name)
    else:
        layer = keras.layers.Activation(spec.activation, name=name)
    return wrap(layer, weight_bits=None, activation_bits=bits)(x)


def _add(spec: LayerSpec, x: Sequence[tf.Tensor], wrap: Wrap, bits: int | None) -> tf.Tensor:
    added = keras.layers.Add(name=spec.name)
    if spec.activation == "linear":
        return wrap(added, weight_bits=None, activation_bits=bits)(list(x))
    return _output(spec, added(list(x)), wrap, bits)


_SIMPLE: Mapping[str, Callable[[LayerSpec], keras.layers.Layer]] = {
    "average_pool": lambda spec: keras.layers.AveragePooling2D(
        spec.kernel, spec.stride, _padding(spec), name=spec.name
    ),
    "concat": lambda spec: keras.layers.Concatenate(name=spec.name),
    "flatten": lambda spec: keras.layers.Flatten(name=spec.name),
    "hard_swish": lambda spec: HardSwish(name=spec.name),
    "max_pool": lambda spec: keras.layers.MaxPooling2D(
        spec.kernel, spec.stride, _padding(spec), name=spec.name
    ),
    "mean": lambda spec: keras.layers.GlobalAveragePooling2D(
        keepdims=bool(spec.out_size), name=spec.name
    ),
    "multiply": lambda spec: keras.layers.Multiply(name=spec.name),
    "pad": lambda spec: keras.layers.ZeroPadding2D(spec.offset, name=spec.name),
    "resize": lambda spec: keras.layers.UpSampling2D(
        spec.stride, interpolation="nearest", name=spec.name
    ),
    "sigmoid": lambda spec: keras.layers.Activation("sigmoid", name=spec.name),
    "slice": lambda spec: ChannelSlice(spec.offset, spec.out_channels, name=spec.name),
}


def apply(
    spec: LayerSpec, inputs: Sequence[tf.Tensor], wrap: Wrap, activation_bits: int | None
) -> tf.Tensor:
    """The op's output.

    Args:
      spec: the op.
      inputs: its inputs, [batch, *size, channels] each.
      wrap: makes layers quantization-aware, or not.
      activation_bits: of the output; None for a tensor that another one's range rounds.
    """
    if spec.weighted:
        return _weighted(spec, inputs[0], wrap, activation_bits)
    if spec.op == "add":
        return _add(spec, inputs, wrap, activation_bits)
    layer = wrap(_SIMPLE[spec.op](spec), weight_bits=None, activation_bits=activation_bits)
    return layer(inputs[0] if len(inputs) == 1 else list(inputs))
