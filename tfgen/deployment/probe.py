"""A .tflite of an untrained network, which has the trained one's size and latency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tfgen import seeds
from tfgen.deployment import tflite_writer
from tfgen.space.bits import BitPolicy
from tfgen.space.layers import INPUT, LayerSpec, range_owners

_LOW, _HIGH = -3.0, 3.0  # of activations: of a normal distribution as wide as a normalised one


def write_probe(
    layers: Sequence[LayerSpec],
    input_shape: Sequence[int],
    policy: BitPolicy | None,
    *,
    containers: Mapping[str, int] | None = None,
    io: str = "float",
    seed: int = 0,
) -> bytes:
    """The file of a network with random levels and plausible ranges.

    No kernel's time depends on the numbers; whether XNNPACK takes an op depends on its scales,
    which are those of a trained network of unit variance.

    Args:
      layers: the network.
      input_shape: of one example.
      policy: the runtime's; says in which containers weights lie. None for a network of float32
        weights and activations.
      containers: by layer, a container instead of the policy's, whether or not a runtime takes it.
      io: "float", or "int8" for integer ends.
      seed: of the numbers.

    Raises:
      UsageError: the runtime does not execute a layer at its bits.
    """
    random = seeds.stream(seed, "probe")
    steps = _steps(layers)
    owners = range_owners(layers)
    weights = {}
    for layer in layers:
        if not layer.weighted:
            continue
        bits, step = layer.weight_bits, steps[owners[layer.inputs[0]]][0]
        if policy is None:
            weights[layer.name] = _float_weights(*_weights(layer, step, 8, random))
            continue
        container = (containers or {}).get(layer.name)
        if container is None:
            container = policy.container_bits(
                layer.op, bits, layer.activation_bits, layer.in_channels
            )
        numbers = _weights(layer, step, min(container, bits), random)
        weights[layer.name] = tflite_writer.Weights(*numbers, container)
    return tflite_writer.write(
        layers, input_shape, weights, None if policy is None else steps, io=io
    )


def _weights(
    layer: LayerSpec, step: float, bits: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels, biases and scales of a layer that keeps the variance, whose input has this step."""
    shape = tflite_writer.kernel_shape(layer)
    fan_in = math.prod(shape) // layer.out_channels
    top = 2 ** (bits - 1) - 1
    levels = random.integers(-top, top, shape, np.int8, endpoint=True)
    # Uniform over -bound .. bound has a third of its variance.
    scales = np.full(layer.out_channels, math.sqrt(3 / fan_in) / top, np.float32)
    bias = random.uniform(-0.1, 0.1, layer.out_channels) / (step * scales)
    return levels, np.rint(bias).astype(np.int64), scales


def _float_weights(
    levels: np.ndarray, bias: np.ndarray, scales: np.ndarray
) -> tflite_writer.Weights:
    """Float weights of the same size and variance; their biases are 0."""
    kernel = levels.astype(np.float32) * scales[0]  # the scales are equal
    none = np.empty(0, np.float32)
    return tflite_writer.Weights(kernel, 0 * bias, none, tflite_writer.FLOAT_BITS)


def _steps(layers: Sequence[LayerSpec]) -> dict[str, tflite_writer.Step]:
    """Scale and zero point of each tensor that has a range of its own."""
    wide = layers[0].activation_bits == 16
    steps = {INPUT: _step(_LOW, wide)}
    positive: set[str] = set()
    for layer in layers:
        sources = positive.issuperset(layer.inputs) and layer.op == "concat"
        if layer.activation != "linear" or sources:
            positive.add(layer.name)
        steps[layer.name] = _step(0.0 if layer.name in positive else _LOW, wide)
        if layer.op == "sigmoid":  # the kernels know no other
            steps[layer.name] = (2.0**-15, 0) if wide else (2.0**-8, -128)
    return steps


def _step(low: float, wide: bool) -> tflite_writer.Step:
    """Scale and zero point of a range from `low` to _HIGH."""
    if wide:
        return _HIGH / (2**15 - 1), 0
    scale = (_HIGH - low) / 255
    return scale, round(-128 - low / scale)
