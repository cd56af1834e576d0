"""Keras -> packed mixed-bit .tflite; refuses a file that disagrees with its source.

The quantization-aware network is stripped to a float twin whose kernels lie on the trained grid;
the TFLite converter makes a float file of it; the AI Edge quantizer packs that, given the ranges of
weights and activations that training ended with, so that it calibrates nothing. The file is then
unpacked and run: every stored level must be the trained one, and its answers those of the network.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import errors
from tfgen.deployment import benchmark, tflite_file
from tfgen.nets import network
from tfgen.nets.keras_compat import keras, quiet, tf
from tfgen.space import bits
from tfgen.space.layers import LayerSpec
from tfgen.training import quantize_aware, trainer

INPUT_OUTPUT = ("float", "int8")
COMPARED = 1000  # examples
MIN_AGREEMENT = 0.99  # of the classes chosen
_LAYER_OPS = {"dense": "FULLY_CONNECTED"}
_INPUT_TENSOR = "input"
_INT32_MAX = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that was compared with the network it was made from.

    Attributes:
      content: the .tflite.
      recipe_json: the AI Edge quantizer's recipe; its regexes are layer names.
      compared: examples that both ran.
      agreement: share of them whose largest output is the same unit; None for a single output.
      max_steps: largest difference of an output, in steps of the int8 output.
      mean_steps: mean absolute difference, in the same steps.
    """

    content: bytes
    recipe_json: str
    compared: int
    agreement: float | None
    max_steps: float
    mean_steps: float


def container_bits(op: str, weight_bits: int) -> int:
    """Width in the file of one weight: the narrowest that the runtime's kernel of the op reads."""
    del op  # dense only, so far
    return next(width for width in (2, 4, 8) if weight_bits <= width)


def check_bits(layers: Sequence[LayerSpec], policy: str | bits.BitPolicy) -> None:
    """Raises UsageError unless the policy's runtime executes every layer at its bits.

    Args:
      layers: the network.
      policy: a `BitPolicy`, or the name of one as a search space gives it.
    """
    if policy == bits.SIMULATED:
        raise errors.UsageError(
            "the space's bits are simulated: no runtime executes them, so nothing is exported"
        )
    policy = bits.load(policy) if isinstance(policy, str) else policy
    for layer in layers:
        widths = (layer.op, layer.weight_bits, layer.activation_bits)
        if layer.op not in _LAYER_OPS or not policy.executes(*widths):
            raise errors.UsageError(
                f"layer {layer.name!r}: {policy.name} does not execute {layer.op} with "
                f"{layer.weight_bits}-bit weights and {layer.activation_bits}-bit activations; "
                f"weights may have {policy.weight_bits(layer.op, layer.activation_bits)} bits"
            )


def export(
    model: keras.Model,
    layers: Sequence[LayerSpec],
    examples: np.ndarray,
    policy: str | bits.BitPolicy,
    *,
    io: str = "float",
) -> Exported:
    """Makes the .tflite of a trained network; equal arguments give equal bytes.

    Args:
      model: as `trainer.train` returns it.
      layers: what it was built from.
      examples: real inputs, float32 [examples, *input shape]; the first 1,000 are compared.
      policy: the search space's bit policy, or its name.
      io: "float", or "int8" for a file whose input and output are int8 tensors.

    Raises:
      UsageError: the policy's runtime does not execute the layers' bits.
      ExportMismatchError: the file disagrees with the network.
    """
    check_bits(layers, policy)
    if io not in INPUT_OUTPUT:
        raise errors.UsageError(f"io must be one of {INPUT_OUTPUT}, got {io!r}")
    twin, grids = _strip(model, layers)
    with quiet():
        floats = _name_tensors(_convert(twin), twin, layers)
    ranges = {layer.name: quantize_aware.activation_range(model, layer.name) for layer in layers}
    ranges[_INPUT_TENSOR] = quantize_aware.activation_range(model, network.INPUT)
    with quiet():
        content, recipe_json = _quantize(floats, layers, grids, ranges, io)
    _compare_levels(content, layers, grids)
    step = float(quantize_aware.activation_step(model, layers[-1].name))
    compared = examples[:COMPARED]
    agreement, largest, mean = _compare_outputs(model, content, compared, step)
    return Exported(content, recipe_json, len(compared), agreement, largest, mean)


@dataclasses.dataclass(frozen=True)
class _Grid:
    """A layer's weights as integers [..., out] and the scale [out] of each channel."""

    levels: np.ndarray
    scales: np.ndarray


def _strip(model: keras.Model, layers: Sequence[LayerSpec]) -> tuple[keras.Model, dict[str, _Grid]]:
    """The float network with the kernels that the trained one computes with, and their grids."""
    twin = network.build(layers, model.input_shape[1:])
    grids = {}
    for layer in layers:
        variables = quantize_aware.variables(model, layer.name)
        kernel, bias = variables["kernel"].numpy(), variables["bias"].numpy()
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise errors.ExportMismatchError(f"layer {layer.name!r}: weights are not finite")
        levels, scales = quantize_aware.weight_levels(kernel, layer.weight_bits)
        twin.get_layer(layer.name).set_weights([levels.astype(np.float32) * scales, bias])
        grids[layer.name] = _Grid(levels, scales)
    return twin, grids


def _convert(twin: keras.Model) -> bytes:
    """The float .tflite for one example at a time."""
    example = tf.TensorSpec([1, *twin.input_shape[1:]], tf.float32)
    forward = tf.function(lambda x: twin(x, training=False), [example])
    concrete = forward.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], twin)
    return converter.convert()


def _name_tensors(content: bytes, twin: keras.Model, layers: Sequence[LayerSpec]) -> bytes:
    """The float file with its tensors named after layers: <layer>/kernel, <layer>/bias, <layer>.

    The quantizer's recipe and every reader of the file find a layer by name then. An op belongs to
    the first layer still without one that has the op's kernel.
    """
    model = tflite_file.parse(content)
    graph = model.subgraphs[0]
    waiting = list(layers)
    named: set[int] = set()

    def name(op: Any, position: int, text: str) -> None:
        """Names an input; the converter shares equal constants, each op gets its own here."""
        index = op.inputs[position]
        if index in named:
            graph.tensors.append(copy.copy(graph.tensors[index]))
            model.buffers.append(copy.copy(model.buffers[graph.tensors[index].buffer]))
            index = op.inputs[position] = len(graph.tensors) - 1
            graph.tensors[index].buffer = len(model.buffers) - 1
        named.add(index)
        graph.tensors[index].name = text.encode()

    graph.tensors[graph.inputs[0]].name = _INPUT_TENSOR.encode()
    for op in graph.operators:
        kind = tflite_file.op_name(model, op)
        kernel = None
        if kind in _LAYER_OPS.values():
            kernel, _ = tflite_file.unpack(model, graph.tensors[op.inputs[1]])
        layer = next((spec for spec in waiting if _is_kernel(twin, spec, kind, kernel)), None)
        if layer is None:
            raise errors.ExportMismatchError(f"the converter made an op that no layer has: {kind}")
        waiting.remove(layer)
        name(op, 1, layer.name + tflite_file.KERNEL_SUFFIX)
        if len(op.inputs) > 2 and op.inputs[2] >= 0:
            name(op, 2, layer.name + tflite_file.BIAS_SUFFIX)
        graph.tensors[op.outputs[0]].name = layer.name.encode()
    if waiting:
        raise errors.ExportMismatchError(
            f"the converter dropped {', '.join(layer.name for layer in waiting)}"
        )
    return tflite_file.serialize(model)


def _is_kernel(twin: keras.Model, layer: LayerSpec, kind: str, kernel: Any) -> bool:
    wanted = _file_order(twin.get_layer(layer.name).get_weights()[0])
    return _LAYER_OPS[layer.op] == kind and np.array_equal(wanted, kernel)


def _file_order(kernel: np.ndarray) -> np.ndarray:
    """A Keras kernel [in, out] as the file stores it [out, in]."""
    return np.moveaxis(kernel, -1, 0)


def _quantize(
    floats: bytes,
    layers: Sequence[LayerSpec],
    grids: Mapping[str, _Grid],
    ranges: Mapping[str, tuple[float, float]],
    io: str,
) -> tuple[bytes, str]:
    """Packs the named float file by a recipe with one entry a layer; the file and the recipe."""
    from ai_edge_quantizer import qtyping, quantizer

    def config(layer: LayerSpec) -> qtyping.OpQuantizationConfig:
        return qtyping.OpQuantizationConfig(
            activation_tensor_config=qtyping.TensorQuantizationConfig(
                num_bits=layer.activation_bits, symmetric=False
            ),
            weight_tensor_config=qtyping.TensorQuantizationConfig(
                num_bits=container_bits(layer.op, layer.weight_bits),
                granularity=qtyping.QuantGranularity.CHANNELWISE,
            ),
            compute_precision=qtyping.ComputePrecision.INTEGER,
            # The quantizer's own list lacks ops that the runtime executes (2-bit dense); ours is
            # the bit policy, and the file is run before it is delivered.
            skip_checks=True,
        )

    calibration = {}
    for name, (low, high) in ranges.items():
        calibration[name] = {"min": _scalar(low), "max": _scalar(high)}
    packer = quantizer.Quantizer(bytearray(floats))
    for layer in layers:
        operation = qtyping.TFLOperationName(_LAYER_OPS[layer.op])
        packer.update_quantization_recipe(f"^{re.escape(layer.name)};?$", operation, config(layer))
        top = quantize_aware.top_level(container_bits(layer.op, layer.weight_bits))
        bound = _file_order(grids[layer.name].scales[np.newaxis, :] * np.float32(top))
        calibration[layer.name + tflite_file.KERNEL_SUFFIX] = {"min": -bound, "max": bound}
    if io == "int8":
        for end, layer in (("INPUT", layers[0]), ("OUTPUT", layers[-1])):
            operation = qtyping.TFLOperationName(end)
            packer.update_quantization_recipe(".*", operation, config(layer))
    result = packer.quantize(calibration, enable_progress_report=False)
    return bytes(result.quantized_model), json.dumps(result.recipe, indent=1, sort_keys=True) + "\n"


def _scalar(value: float) -> np.ndarray:
    return np.full([1, 1], value, np.float32)


def _compare_levels(
    content: bytes, layers: Sequence[LayerSpec], grids: Mapping[str, _Grid]
) -> None:
    """Raises ExportMismatchError unless the file stores the trained levels, packed as promised."""
    stored = {op.name: op for op in tflite_file.read(content).ops}
    for layer in layers:
        op = stored.pop(layer.name, None)
        levels = _file_order(grids[layer.name].levels)
        if op is None or not np.array_equal(op.levels, levels):
            wrong = "no levels" if op is None else f"{(op.levels != levels).sum()} other levels"
            raise errors.ExportMismatchError(f"layer {layer.name!r}: the file has {wrong}")
        promised = container_bits(layer.op, layer.weight_bits)
        if op.container_bits != promised:
            raise errors.ExportMismatchError(
                f"layer {layer.name!r}: {op.container_bits} bits a weight, {promised} promised"
            )
    if stored:
        raise errors.ExportMismatchError(f"the file has more layers: {', '.join(stored)}")


def _compare_outputs(
    model: keras.Model, content: bytes, examples: np.ndarray, step: float
) -> tuple[float | None, float, float]:
    """Runs network and file on real inputs; raises ExportMismatchError where they disagree.

    The runtime's integer arithmetic and float32 round alike but for near halves: measured, up to
    0.02 % of a layer's outputs differ by one step. What that becomes further on depends on the
    weights behind it, so the largest difference is bounded per layer and the mean tightly.
    """
    expected = trainer.predict(model, examples)
    with tempfile.TemporaryDirectory(prefix="tfgen-") as folder:
        path = pathlib.Path(folder) / "model.tflite"
        path.write_bytes(content)
        given = benchmark.predict(path, examples)
    steps = np.abs(given.astype(np.float64) - expected) / step
    agreement = None
    if expected.shape[-1] > 1:
        agreement = float((given.argmax(-1) == expected.argmax(-1)).mean())
    return agreement, float(steps.max()), float(steps.mean())
