"""tfmot QuantizeConfigs with per-layer bit-widths: what is trained is what the file computes.

Weights: per output channel, symmetric, 2**bits - 1 levels, scale = max|w| / (2**(bits-1) - 1) of
the weights as they are, gradient straight through; the same arithmetic as the population trainer's.
tfmot's own LastValueQuantizer keeps the range of the step before in a variable, so that the last
step's weights and their grid disagree; here the grid is a function of the kernel.
Activations: one range per tensor, a moving average that starts from the first batch. Training
watches it before it rounds: a range that lags behind cuts off what exceeds it, gradient and all,
and networks that pass through one or two units stopped there for good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfgen.nets import network
from tfgen.nets.keras_compat import keras, tf, tfmot
from tfgen.space.layers import LayerSpec

_MIN_WEIGHT = 1e-8  # a channel of zeros still has a scale
_MIN_RANGE = 1e-3  # a dead layer still has a range; below, int32 biases of the next layer overflow
_DECAY = 0.99
_INT32_MAX = 2**31 - 1
_PREFIX = "quantized_"


def top_level(bits: int) -> int:
    """The largest level of a weight: levels are -top_level .. top_level."""
    return 2 ** (bits - 1) - 1


def weight_levels(kernel: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels [..., out] int64 of a kernel [..., out]; scale [out] float32 of each channel."""
    top = np.float32(top_level(bits))
    largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    scale = np.maximum(largest, np.float32(_MIN_WEIGHT)) / top
    return np.rint(kernel / scale).astype(np.int64), scale


class WeightQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds a kernel [..., out] to the levels of `weight_levels`; gradient straight through."""

    def __init__(self, bits: int):
        self.bits = bits

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        del tensor_shape, name, layer
        return {}

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> tf.Tensor:
        del training, weights, kwargs
        kernel = tf.convert_to_tensor(inputs)
        axes = list(range(kernel.shape.rank - 1))
        scale = tf.maximum(tf.reduce_max(tf.abs(kernel), axes), _MIN_WEIGHT) / top_level(self.bits)
        return kernel + tf.stop_gradient(tf.round(kernel / scale) * scale - kernel)

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits}


class RangeQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds activations to 2**bits levels over a moving average of the batches' ranges.

    In training it rounds only while its variable `rounding` is 1; until then it watches.
    """

    def __init__(self, bits: int):
        self.bits = bits

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        del tensor_shape
        return {
            end: layer.add_weight(name=f"{name}_{end}", initializer="zeros", trainable=False)
            for end in ("min", "max", "rounding")
        }

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> tf.Tensor:
        del kwargs
        low, high = weights["min"], weights["max"]
        if training:
            # Nothing seen yet, or zeros only: take this batch's range as it is.
            decay = tf.where(tf.equal(low, high), 0.0, _DECAY)
            batch_low = tf.minimum(tf.reduce_min(inputs), 0.0)
            batch_high = tf.maximum(tf.reduce_max(inputs), 0.0)
            low = low.assign(decay * low + (1 - decay) * batch_low)
            high = high.assign(decay * high + (1 - decay) * batch_high)
        high = tf.maximum(high, low + _MIN_RANGE)
        rounded = tf.quantization.fake_quant_with_min_max_vars(inputs, low, high, self.bits)
        return tf.where(weights["rounding"] > 0, rounded, inputs) if training else rounded

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits}


@keras.saving.register_keras_serializable(package="tfgen")
class LayerBits(tfmot.quantization.keras.QuantizeConfig):
    """Bits of a layer's kernel and of its output; None leaves that part alone."""

    def __init__(self, weight_bits: int | None = None, activation_bits: int | None = None):
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits

    def get_weights_and_quantizers(self, layer: keras.layers.Layer) -> list[tuple[Any, Any]]:
        return [(layer.kernel, WeightQuantizer(self.weight_bits))] if self.weight_bits else []

    def set_quantize_weights(
        self, layer: keras.layers.Layer, quantize_weights: Sequence[Any]
    ) -> None:
        for weight in quantize_weights:
            layer.kernel = weight

    def get_activations_and_quantizers(self, layer: keras.layers.Layer) -> list[tuple[Any, Any]]:
        return []  # the activation is fused: what the file stores is the layer's output

    def set_quantize_activations(
        self, layer: keras.layers.Layer, quantize_activations: Sequence[Any]
    ) -> None:
        pass

    def get_output_quantizers(self, layer: keras.layers.Layer) -> list[Any]:
        return [RangeQuantizer(self.activation_bits)] if self.activation_bits else []

    def get_config(self) -> dict[str, Any]:
        return {"weight_bits": self.weight_bits, "activation_bits": self.activation_bits}


@keras.saving.register_keras_serializable(package="tfgen")
class Quantized(tfmot.quantization.keras.QuantizeWrapperV2):
    """tfmot's wrapper under a registered name: a saved model loads without custom objects."""


def wrap(
    layer: keras.layers.Layer, *, weight_bits: int | None, activation_bits: int | None
) -> keras.layers.Layer:
    """The `blocks.Wrap` of quantization-aware training."""
    return Quantized(layer, LayerBits(weight_bits, activation_bits), name_prefix=_PREFIX)


def build(layers: Sequence[LayerSpec], input_shape: Sequence[int]) -> keras.Model:
    """The network that is trained: `network.build` with quantizers."""
    return network.build(layers, input_shape, wrap)


def variables(model: keras.Model, layer_name: str) -> Mapping[str, tf.Variable]:
    """The variables of a layer as LayerSpecs name it: kernel, bias, output_min, output_max."""
    layer = model.get_layer(_PREFIX + layer_name)
    # The wrapped layer's own `kernel` is the quantized tensor of its last call.
    return {v.name.rpartition("/")[2].partition(":")[0]: v for v in layer.variables}


def round_activations(model: keras.Model, rounding: bool) -> None:
    """Whether training rounds activations from now on, or only watches their ranges."""
    for variable in model.variables:
        if variable.name.rpartition("/")[2].startswith("output_rounding"):
            variable.assign(float(rounding))


def activation_range(model: keras.Model, layer_name: str) -> tuple[float, float]:
    """The range, 0 within it, that the layer's output is rounded over."""
    found = variables(model, layer_name)
    low, high = (np.float32(found[f"output_{end}"].numpy()) for end in ("min", "max"))
    return float(low), float(np.maximum(high, low + np.float32(_MIN_RANGE)))


def activation_step(model: keras.Model, layer_name: str) -> np.float32:
    """The difference of two neighbouring levels of the layer's output."""
    low, high = activation_range(model, layer_name)
    config = model.get_layer(_PREFIX + layer_name).quantize_config
    return np.float32((high - low) / (2**config.activation_bits - 1))


def settle(model: keras.Model, layers: Sequence[LayerSpec]) -> None:
    """Ends training: makes the network one that integers compute; its metric is the file's then.

    Every bias becomes an int32 multiple of input step * weight scale, a grid that 2-bit weights
    make about as coarse as the layer's outputs. The output range of a layer that (almost) never
    fires becomes at least one such step: the runtime takes no output step below 1/256 of it.
    """
    source = network.INPUT
    for layer in layers:
        found = variables(model, layer.name)
        levels, scales = weight_levels(found["kernel"].numpy(), layer.weight_bits)
        grid = activation_step(model, source) * scales  # [out]
        low, high = found["output_min"].numpy(), found["output_max"].numpy()
        found["output_max"].assign(max(high, low + grid.max()))
        bias = found["bias"].numpy()
        integers = np.clip(np.rint(bias / grid), -_INT32_MAX, _INT32_MAX)
        # Export picks the scale of a channel of zeros by its bias.
        zeros = ~levels.any(axis=tuple(range(levels.ndim - 1)))
        found["bias"].assign(np.where(zeros, bias, integers * grid).astype(np.float32))
        source = layer.name
