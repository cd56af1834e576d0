"""Keras -> packed mixed-bit .tflite; refuses a file that disagrees with its source.

The quantization-aware network is stripped to a float twin whose kernels lie on the trained grid;
the TFLite converter makes a float file of it; the AI Edge quantizer packs that, given the ranges of
weights and activations that training ended with, so that it calibrates nothing. The file is then
unpacked and run: every stored level must be the trained one, and its answers those of the network.
"""

from __future__ import annotations

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
MIN_AGREEMENT = 0.99  # share of equal decisions
# Sound files differ by up to 4 output steps (random networks of 2 to 5 layers, where a builtin
# kernel runs); kernels that are broken, and levels on another grid, by 16 and more.
MAX_STEPS_PER_LAYER = 2.0
_LAYER_OPS = {"dense": "FULLY_CONNECTED"}
_INPUT_TENSOR = "input"


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
    # Written so that NaN fails.
    if not largest <= MAX_STEPS_PER_LAYER * len(layers):
        raise errors.ExportMismatchError(
            f"an output of the file is {largest:.1f} steps from the network's; at most "
            f"{MAX_STEPS_PER_LAYER:g} a layer are allowed, and there are {len(layers)} layers"
        )
    if agreement is not None and not agreement >= MIN_AGREEMENT:
        raise errors.ExportMismatchError(
            f"file and network agree on {agreement:.1%} of {len(compared)} decisions; "
            f"at least {MIN_AGREEMENT:.0%} are required"
        )
    return Exported(content, recipe_json, len(compared), agreement, largest, mean)


@dataclasses.dataclass(frozen=True)
class _Grid:
    """A layer's weights as the file shall hold them.

    Attributes:
      levels: int64 [..., out].
      scales: of each output channel, float32 [out].
    """

    levels: np.ndarray
    scales: np.ndarray


def _strip(model: keras.Model, layers: Sequence[LayerSpec]) -> tuple[keras.Model, dict[str, _Grid]]:
    """The float network with the kernels that the trained one computes with, and their grids."""
    twin = network.build(layers, model.input_shape[1:])
    grids = {}
    source = network.INPUT
    for layer in layers:
        variables = quantize_aware.variables(model, layer.name)
        kernel, bias = variables["kernel"].numpy(), variables["bias"].numpy()
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise errors.ExportMismatchError(f"layer {layer.name!r}: weights are not finite")
        levels, scales = quantize_aware.weight_levels(kernel, layer.weight_bits)
        twin.get_layer(layer.name).set_weights([levels.astype(np.float32) * scales, bias])
        # Zeros are zeros at any scale: one at which int32 holds 20 bits of the bias, or of the
        # output step where that is more.
        zeros = ~levels.any(axis=tuple(range(levels.ndim - 1)))
        steps = [quantize_aware.activation_step(model, name) for name in (source, layer.name)]
        held = np.maximum(np.abs(bias), steps[1] * 2**10) / (steps[0] * 2**20)
        scales = np.where(zeros, held, scales).astype(np.float32)
        grids[layer.name] = _Grid(levels, scales)
        source = layer.name
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
    from ai_edge_litert import schema_py_generated as schema

    model = tflite_file.parse(content)
    graph = model.subgraphs[0]
    waiting = list(layers)
    named: set[int] = set()

    def own(index: int, name: str, values: np.ndarray) -> int:
        """The constant under a name of its own: the converter shares equal constants."""
        if index < 0 or index in named:
            tensor, buffer = schema.TensorT(), schema.BufferT()
            tensor.type, tensor.shape = schema.TensorType.FLOAT32, np.array(values.shape, np.int32)
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            tensor.buffer, index = len(model.buffers), len(graph.tensors)
            model.buffers.append(buffer)
            graph.tensors.append(tensor)
        named.add(index)
        graph.tensors[index].name = name.encode()
        return index

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
        # The converter drops a bias of zeros; the architecture counts it.
        source, kernel_index, bias_index = (*op.inputs, -1)[:3]
        bias = twin.get_layer(layer.name).get_weights()[1]
        kernel_index = own(kernel_index, layer.name + tflite_file.KERNEL_SUFFIX, kernel)
        bias_index = own(bias_index, layer.name + tflite_file.BIAS_SUFFIX, bias)
        op.inputs = np.array([source, kernel_index, bias_index], np.int32)
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
    """Agreement of decisions, largest and mean difference in steps, of file and network.

    XNNPACK's kernels round as the network does. The builtin ones, which run a layer of odd width in
    INT4 or of a width that 4 does not divide in INT2, round up to a quarter of the outputs up.
    """
    expected = trainer.predict(model, examples)
    with tempfile.TemporaryDirectory(prefix="tfgen-") as folder:
        path = pathlib.Path(folder) / "model.tflite"
        path.write_bytes(content)
        try:
            given = benchmark.predict(path, examples)
        except errors.CorruptFileError as error:
            raise errors.ExportMismatchError(f"the runtime does not run it: {error}") from error
    steps = np.abs(given.astype(np.float64) - expected) / step
    agreement = None
    if expected.shape[-1] > 1:
        agreement = float((given.argmax(-1) == expected.argmax(-1)).mean())
    return agreement, float(steps.max()), float(steps.mean())
