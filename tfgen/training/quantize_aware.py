"""tfmot QuantizeConfigs with per-layer bit-widths: what is trained is what the file computes.

Weights: as `nets.rounding` has them, gradient straight through. tfmot's own LastValueQuantizer
keeps the range of the step before in a variable, so that the last step's weights and their grid
disagree; here the grid is a function of the kernel.
Activations: one range per tensor, a moving average that starts from the first batch. Training
watches it before it rounds: a range that lags behind cuts off what exceeds it, gradient and all,
and networks that pass through one or two units stopped there for good.
Batch normalisation follows the rounded weights; `fold` makes it part of them without moving a
level, since a channel's levels do not change when its scale does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfgen.nets import blocks, network, rounding
from tfgen.nets.keras_compat import keras, tf, tfmot
from tfgen.space.layers import INPUT, LayerSpec, range_owners

_MIN_RANGE = 1e-3  # a dead layer still has a range; below, int32 biases of the next layer overflow
_DECAY = 0.99
_INT32_MAX = 2**31 - 1
_PREFIX = "quantized_"


class WeightQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds a kernel [..., out] to its levels; the gradient goes straight through.

    In training it rounds only while its variable `rounding` is not 0.
    """

    def __init__(self, bits: int):
        self.bits = bits

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        del tensor_shape
        rounding = layer.add_weight(name=f"{name}_rounding", initializer="ones", trainable=False)
        return {"rounding": rounding}

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> tf.Tensor:
        del kwargs
        kernel = tf.convert_to_tensor(inputs)
        rounded = rounding.rounded(kernel, rounding.top_level(self.bits))
        return tf.where(weights["rounding"] > 0, rounded, kernel) if training else rounded

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits}


class DepthwiseQuantizer(WeightQuantizer):
    """The same for a kernel [side, side, channels, 1]."""

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> tf.Tensor:
        kernel = tf.convert_to_tensor(inputs)[..., 0]
        return super().__call__(kernel, training, weights, **kwargs)[..., tf.newaxis]


class RangeQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds activations to 2**bits levels over a moving average of the batches' ranges.

    16 bits are symmetric around 0, as runtimes have them. In training it rounds only while its
    variable `rounding` is not 0; until then it watches.
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
            batch_low = tf.minimum(tf.reduce_min(inputs), 0.0)
            batch_high = tf.maximum(tf.reduce_max(inputs), 0.0)
            if self.bits == 16:
                batch_high = tf.maximum(batch_high, -batch_low)
                batch_low = -batch_high
            # Nothing seen yet, or zeros only: take this batch's range as it is.
            decay = tf.where(tf.equal(low, high), 0.0, _DECAY)
            low = low.assign(decay * low + (1 - decay) * batch_low)
            high = high.assign(decay * high + (1 - decay) * batch_high)
        high = tf.maximum(high, low + _MIN_RANGE)

        def rounded() -> tf.Tensor:
            return tf.quantization.fake_quant_with_min_max_vars(
                inputs, low, high, self.bits, narrow_range=self.bits == 16
            )

        if not training:
            return rounded()
        # A choice of each number, forward and back, would take a quarter of the training.
        return tf.cond(weights["rounding"] > 0, rounded, lambda: inputs)

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits}


class SigmoidQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds a sigmoid as runtimes do, over a range of their own: steps of 2**-8, or of 2**-15."""

    def __init__(self, bits: int):
        self.bits = bits

    def build(self, tensor_shape: Any, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        del tensor_shape, name, layer
        return {}

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> tf.Tensor:
        del training, weights, kwargs
        low, high = sigmoid_range(self.bits)
        return tf.quantization.fake_quant_with_min_max_args(
            inputs, low, high, self.bits, narrow_range=self.bits == 16
        )

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits}


def sigmoid_range(bits: int) -> tuple[float, float]:
    """The range that runtimes round a sigmoid over."""
    return (-32767 / 32768, 32767 / 32768) if bits == 16 else (0.0, 255 / 256)


@keras.saving.register_keras_serializable(package="tfgen")
class LayerBits(tfmot.quantization.keras.QuantizeConfig):
    """Bits of a layer's kernel and of its output; None leaves that part alone."""

    def __init__(self, weight_bits: int | None = None, activation_bits: int | None = None):
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits

    def get_weights_and_quantizers(self, layer: keras.layers.Layer) -> list[tuple[Any, Any]]:
        if not self.weight_bits:
            return []
        quantizer = DepthwiseQuantizer if _kernel(layer) == "depthwise_kernel" else WeightQuantizer
        return [(getattr(layer, _kernel(layer)), quantizer(self.weight_bits))]

    def set_quantize_weights(
        self, layer: keras.layers.Layer, quantize_weights: Sequence[Any]
    ) -> None:
        for weight in quantize_weights:
            setattr(layer, _kernel(layer), weight)

    def get_activations_and_quantizers(self, layer: keras.layers.Layer) -> list[tuple[Any, Any]]:
        return []  # the activation is fused: what the file stores is the layer's output

    def set_quantize_activations(
        self, layer: keras.layers.Layer, quantize_activations: Sequence[Any]
    ) -> None:
        pass

    def get_output_quantizers(self, layer: keras.layers.Layer) -> list[Any]:
        if not self.activation_bits:
            return []
        sigmoid = getattr(layer, "activation", None) is keras.activations.sigmoid
        return [(SigmoidQuantizer if sigmoid else RangeQuantizer)(self.activation_bits)]

    def get_config(self) -> dict[str, Any]:
        return {"weight_bits": self.weight_bits, "activation_bits": self.activation_bits}


def _kernel(layer: keras.layers.Layer) -> str:
    """The attribute that holds a layer's kernel."""
    return "depthwise_kernel" if isinstance(layer, keras.layers.DepthwiseConv2D) else "kernel"


@keras.saving.register_keras_serializable(package="tfgen")
class Quantized(tfmot.quantization.keras.QuantizeWrapperV2):
    """tfmot's wrapper under a registered name: a saved model loads without custom objects."""


def wrap(
    layer: keras.layers.Layer, *, weight_bits: int | None, activation_bits: int | None
) -> keras.layers.Layer:
    """The `blocks.Wrap` of quantization-aware training."""
    if not weight_bits and not activation_bits:
        return layer
    return Quantized(layer, LayerBits(weight_bits, activation_bits), name_prefix=_PREFIX)


def build(layers: Sequence[LayerSpec], input_shape: Sequence[int]) -> keras.Model:
    """The network that is trained: `network.build` with quantizers."""
    return network.build(layers, input_shape, wrap)


def variables(model: keras.Model, layer_name: str) -> Mapping[str, tf.Variable]:
    """The variables of a layer as LayerSpecs name it.

    `kernel` and `bias`, or `kernel`, `gamma`, `beta`, `moving_mean` and `moving_variance`;
    `output_min` and `output_max` where the output has a range that training learns.
    """
    found = {}
    names = {_PREFIX + layer_name, layer_name + blocks.NORM_SUFFIX}
    names.add(_PREFIX + layer_name + blocks.OUTPUT_SUFFIX)
    for layer in model.layers:
        if layer.name in names:
            # The wrapped layer's own `kernel` is the quantized tensor of its last call.
            for variable in layer.variables:
                name = variable.name.rpartition("/")[2].partition(":")[0]
                found[name.removeprefix("depthwise_")] = variable
    return found


def set_rounding(model: keras.Model, *, weights: bool, activations: bool) -> None:
    """Whether training rounds weights, and activations, from now on."""
    rounding = {"kernel_rounding": weights, "output_rounding": activations}
    for variable in model.variables:
        name = variable.name.rpartition("/")[2].partition(":")[0].removeprefix("depthwise_")
        if name in rounding:
            variable.assign(float(rounding[name]))


def activation_ranges(
    model: keras.Model, layers: Sequence[LayerSpec]
) -> dict[str, tuple[float, float]]:
    """Name of a tensor, INPUT among them -> the range, 0 within it, that it is rounded over."""
    owners = range_owners(layers)
    found = {name: _range(model, layers, name) for name in dict.fromkeys(owners.values())}
    return {name: found[owner] for name, owner in owners.items()}


def _range(model: keras.Model, layers: Sequence[LayerSpec], owner: str) -> tuple[float, float]:
    """The range of the tensor `owner`, which has one of its own."""
    sigmoids = [
        layer.activation_bits for layer in layers if (layer.name, layer.op) == (owner, "sigmoid")
    ]
    if sigmoids:
        return sigmoid_range(sigmoids[0])
    ends = variables(model, owner)
    low, high = (np.float32(ends[f"output_{end}"].numpy()) for end in ("min", "max"))
    return float(low), float(np.maximum(high, low + np.float32(_MIN_RANGE)))


def step(ends: tuple[float, float], bits: int) -> np.float32:
    """The difference of two neighbouring levels of a tensor with this range."""
    return np.float32((ends[1] - ends[0]) / (2**bits - (2 if bits == 16 else 1)))


def fold(
    model: keras.Model, layers: Sequence[LayerSpec]
) -> tuple[keras.Model, tuple[LayerSpec, ...]]:
    """The network without batch normalisation that computes the same; its layers.

    Kernels become their levels times the folded scales: rounding them again changes nothing. A
    network without batch normalisation is returned as it is.
    """
    if not any(layer.batch_norm for layer in layers):
        return model, tuple(layers)
    folded = tuple(dataclasses.replace(layer, batch_norm=False) for layer in layers)
    result = build(folded, model.input_shape[1:])
    for layer in layers:
        old, new = variables(model, layer.name), variables(result, layer.name)
        for name in ("output_min", "output_max", "output_rounding"):
            if name in old:
                new[name].assign(old[name])
        if not layer.weighted:
            continue
        kernel = rounding.by_channel(old["kernel"].numpy(), layer.op)
        if not layer.batch_norm:
            new["kernel"].assign(old["kernel"])
            new["bias"].assign(old["bias"])
            continue
        levels, scales = rounding.weight_levels(kernel, layer.weight_bits)
        spread = np.sqrt(old["moving_variance"].numpy() + np.float32(blocks.NORM_EPSILON))
        factor = old["gamma"].numpy() / spread  # [out]
        kernel = levels.astype(np.float32) * (scales * factor)
        new["kernel"].assign(kernel.reshape(new["kernel"].shape))
        new["bias"].assign(old["beta"].numpy() - old["moving_mean"].numpy() * factor)
    ends, taken = variables(result, INPUT), variables(model, INPUT)
    for name, variable in ends.items():
        variable.assign(taken[name])
    return result, folded


def settle(model: keras.Model, layers: Sequence[LayerSpec]) -> None:
    """Ends training: makes the network one that integers compute; its metric is the file's then.

    Every kernel becomes its levels times its scales. Training draws weights to where two levels
    meet, and there one graph rounds up and another, which divides otherwise, down.
    Every bias becomes an integer multiple of input step * weight scale, a grid that 2-bit weights
    make about as coarse as the layer's outputs. Where weights are so small that their grid cannot
    hold the bias in 32 bits, the bias is the channel: its weights become zeros. The output range of
    a layer that (almost) never fires becomes at least one such step: the runtime takes no output
    step below 1/256 of it.

    Args:
      model: without batch normalisation, see `fold`.
      layers: what it was built from.
    """
    owners = range_owners(layers)
    for layer in layers:
        if not layer.weighted:
            continue
        found = variables(model, layer.name)
        kernel = rounding.by_channel(found["kernel"].numpy(), layer.op)
        levels, scales = rounding.weight_levels(kernel, layer.weight_bits)
        source = _range(model, layers, owners[layer.inputs[0]])
        grid = step(source, layer.activation_bits) * scales  # [out]
        bias = found["bias"].numpy()
        levels = np.where(np.abs(bias) > _INT32_MAX * grid, 0, levels)
        rounded = levels.astype(np.float32) * scales
        found["kernel"].assign(rounded.reshape(found["kernel"].shape))
        ends = variables(model, owners[layer.name])
        low, high = ends["output_min"].numpy(), ends["output_max"].numpy()
        if layer.activation_bits == 16:
            high = max(high, grid.max())
            ends["output_min"].assign(-high)
            ends["output_max"].assign(high)
        else:
            ends["output_max"].assign(max(high, low + grid.max()))
        # Export picks the scale of a channel of zeros by its bias.
        zeros = ~levels.any(axis=tuple(range(levels.ndim - 1)))
        found["bias"].assign(np.where(zeros, bias, np.rint(bias / grid) * grid).astype(np.float32))
