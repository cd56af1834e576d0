"""Keras -> packed mixed-bit .tflite; refuses a file that disagrees with its source.

The quantization-aware network is stripped to a float twin whose kernels lie on the trained grid;
the TFLite converter makes a float file of it; the AI Edge quantizer packs that, given the ranges of
weights and activations that training ended with, so that it calibrates nothing. The file is laid
out as every file of ours, unpacked and run: each stored level must be the trained one, and its
answers those of the network.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np

from tfgen import errors
from tfgen.deployment import benchmark, conversion, tflite_file
from tfgen.nets import network, rounding
from tfgen.nets.keras_compat import keras, quiet
from tfgen.space import bits
from tfgen.space.layers import INPUT, LayerSpec
from tfgen.training import quantize_aware, trainer

INPUT_OUTPUT = ("float", "int8")
COMPARED = 1000  # examples; images of so many decisions, at least _FEWEST_COMPARED
_FEWEST_COMPARED = 20
MIN_AGREEMENT = 0.99  # share of equal decisions, close ones left out
# Of the network's margin: each of the two outputs may be a step off, which built-in kernels round
# otherwise. Networks that inherit their weights make one decision in ten as closely as that.
CLOSE_STEPS = 2.0
FEWEST_CLEAR = 0.1  # share of the decisions; of fewer, outputs themselves are compared
# Sound files differ by up to a step a layer, where built-in kernels run (4-bit convolutions,
# hard-swish); kernels that are broken, and levels on another grid, by 16 and more. That is the
# bound of a network that decides nothing, whose outputs are all there is to compare.
MAX_STEPS_PER_LAYER = 2.0
MAX_STEPS = 15.0


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that was compared with the network it was made from.

    Attributes:
      content: the .tflite.
      recipe_json: the AI Edge quantizer's recipe; its regexes are layer names.
      compared: examples that both ran.
      agreement: share of them whose largest output is the same unit, at each position of an image;
        None for a single output.
        The file is refused by those alone that are not close, see CLOSE_STEPS.
      max_steps: largest difference of an output, in steps of the int8 output.
      mean_steps: mean absolute difference, in the same steps.
    """

    content: bytes
    recipe_json: str
    compared: int
    agreement: float | None
    max_steps: float
    mean_steps: float


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
        try:
            _container_bits(policy, layer)
        except errors.UsageError as error:
            raise errors.UsageError(f"layer {layer.name!r}: {error}") from None
        if layer.op == "dense" and layer.in_size and layer.in_channels == 1:
            raise errors.UsageError(
                f"layer {layer.name!r}: a dense layer on an image of one channel is a product to "
                "the converter; make it a convolution with kernel 1"
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
      model: as `trainer.train` returns it; batch normalisation is folded here if it is still there.
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
    policy = bits.load(policy) if isinstance(policy, str) else policy
    if any(layer.batch_norm for layer in layers):
        model, layers = quantize_aware.fold(model, layers)
        quantize_aware.settle(model, layers)
    ranges = quantize_aware.activation_ranges(model, layers)
    twin, grids = _strip(model, layers, ranges)
    with quiet():
        biases = {name: grid.bias for name, grid in grids.items()}
        floats = conversion.convert(twin, layers, biases)
        packed, recipe_json = _quantize(floats, layers, grids, ranges, policy, io)
    content = tflite_file.serialize(tflite_file.canonical(tflite_file.parse(packed)))
    _compare_levels(content, layers, grids, policy)
    step = float(quantize_aware.step(ranges[layers[-1].name], layers[-1].activation_bits))
    positions = math.prod(layers[-1].out_size)  # each is a decision
    compared = examples[: max(COMPARED // positions, _FEWEST_COMPARED)]
    expected, given = _outputs(model, content, compared)
    steps = np.abs(given.astype(np.float64) - expected) / step
    agreement, clear = _agreements(expected, given, step)
    largest, mean = float(steps.max()), float(steps.mean())
    allowed = MAX_STEPS_PER_LAYER * len(layers)
    if clear is None:
        allowed = min(allowed, MAX_STEPS)
    # Written so that NaN fails.
    if not largest <= allowed:
        raise errors.ExportMismatchError(
            f"an output of the file is {largest:.1f} steps from the network's; at most "
            f"{allowed:g} are allowed"
        )
    if clear is not None and not clear >= MIN_AGREEMENT:
        raise errors.ExportMismatchError(
            f"file and network agree on {clear:.1%} of those of {len(compared) * positions} "
            f"decisions that are not close; at least {MIN_AGREEMENT:.0%} are required"
        )
    return Exported(content, recipe_json, len(compared), agreement, largest, mean)


@dataclasses.dataclass(frozen=True)
class _Grid:
    """A layer's weights as the file shall hold them.

    Attributes:
      levels: int64 [..., out].
      scales: of each output channel, float32 [out].
      bias: float32 [out].
    """

    levels: np.ndarray
    scales: np.ndarray
    bias: np.ndarray


def _strip(
    model: keras.Model,
    layers: Sequence[LayerSpec],
    ranges: Mapping[str, tuple[float, float]],
) -> tuple[keras.Model, dict[str, _Grid]]:
    """The float network with the kernels that the trained one computes with; every grid.

    Its biases are 0, see `conversion.convert`.
    """
    twin = network.build(layers, model.input_shape[1:])
    grids = {}
    for layer in layers:
        if not layer.weighted:
            continue
        variables = quantize_aware.variables(model, layer.name)
        kernel, bias = variables["kernel"].numpy(), variables["bias"].numpy()
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise errors.ExportMismatchError(f"layer {layer.name!r}: weights are not finite")
        levels, scales = rounding.weight_levels(
            rounding.by_channel(kernel, layer.op), layer.weight_bits
        )
        rounded = (levels.astype(np.float32) * scales).reshape(kernel.shape)
        twin.get_layer(layer.name).set_weights([rounded, np.zeros_like(bias)])
        # Zeros are zeros at any scale: one at which int32 holds 20 bits of the bias, or of the
        # output step where that is more.
        zeros = ~levels.any(axis=tuple(range(levels.ndim - 1)))
        ends = (layer.inputs[0], layer.name)
        step_in, step_out = (quantize_aware.step(ranges[n], layer.activation_bits) for n in ends)
        held = np.maximum(np.abs(bias), step_out * 2**10) / (step_in * 2**20)
        scales = np.where(zeros, held, scales).astype(np.float32)
        grids[layer.name] = _Grid(levels, scales, bias)
    return twin, grids


def _quantize(
    floats: bytes,
    layers: Sequence[LayerSpec],
    grids: Mapping[str, _Grid],
    ranges: Mapping[str, tuple[float, float]],
    policy: bits.BitPolicy,
    io: str,
) -> tuple[bytes, str]:
    """Packs the named float file by a recipe with one entry a layer; the file and the recipe."""
    from ai_edge_quantizer import qtyping, quantizer

    def config(layer: LayerSpec) -> qtyping.OpQuantizationConfig:
        weights = None
        if layer.weighted:
            weights = qtyping.TensorQuantizationConfig(
                num_bits=_container_bits(policy, layer),
                granularity=qtyping.QuantGranularity.CHANNELWISE,
            )
        return qtyping.OpQuantizationConfig(
            activation_tensor_config=qtyping.TensorQuantizationConfig(
                num_bits=layer.activation_bits, symmetric=layer.activation_bits == 16
            ),
            weight_tensor_config=weights,
            compute_precision=qtyping.ComputePrecision.INTEGER,
            # The quantizer's own list lacks ops that the runtime executes (2-bit dense); ours is
            # the bit policy, and the file is run before it is delivered.
            skip_checks=True,
        )

    ranks = {layer.name: len(layer.out_size) + 2 for layer in layers}
    ranks[INPUT] = len(layers[0].in_size) + 2
    calibration = {
        name: {"min": np.full([1] * ranks[name], low, np.float32),
               "max": np.full([1] * ranks[name], high, np.float32)}
        for name, (low, high) in ranges.items()
    }  # fmt: skip
    packer = quantizer.Quantizer(bytearray(floats))
    for layer in layers:
        operation = qtyping.TFLOperationName(tflite_file.FILE_OPS[layer.op])
        packer.update_quantization_recipe(f"^{re.escape(layer.name)};?$", operation, config(layer))
        if not layer.weighted:
            continue
        top = rounding.top_level(_container_bits(policy, layer))
        scales = grids[layer.name].scales
        one_each = scales.reshape(*[1] * (grids[layer.name].levels.ndim - 1), -1)
        bound = conversion.file_order(one_each * np.float32(top), layer.op)
        calibration[layer.name + tflite_file.KERNEL_SUFFIX] = {"min": -bound, "max": bound}
    if io == "int8":
        for end, layer in (("INPUT", layers[0]), ("OUTPUT", layers[-1])):
            operation = qtyping.TFLOperationName(end)
            packer.update_quantization_recipe(".*", operation, config(layer))
    result = packer.quantize(calibration, enable_progress_report=False)
    return bytes(result.quantized_model), json.dumps(result.recipe, indent=1, sort_keys=True) + "\n"


def _container_bits(policy: bits.BitPolicy, layer: LayerSpec) -> int:
    widths = (layer.weight_bits, layer.activation_bits)
    return policy.container_bits(layer.op, *widths, layer.in_channels)


def _compare_levels(
    content: bytes,
    layers: Sequence[LayerSpec],
    grids: Mapping[str, _Grid],
    policy: bits.BitPolicy,
) -> None:
    """Raises ExportMismatchError unless the file stores the trained levels, packed as promised."""
    stored = {op.name: op for op in tflite_file.read(content).ops}
    for layer in layers:
        if not layer.weighted:
            continue
        op = stored.pop(layer.name, None)
        levels = conversion.file_order(grids[layer.name].levels, layer.op)
        if op is None or not np.array_equal(op.levels, levels):
            wrong = "no levels" if op is None else f"{(op.levels != levels).sum()} other levels"
            raise errors.ExportMismatchError(f"layer {layer.name!r}: the file has {wrong}")
        promised = _container_bits(policy, layer)
        if op.container_bits != promised:
            raise errors.ExportMismatchError(
                f"layer {layer.name!r}: {op.container_bits} bits a weight, {promised} promised"
            )
    if stored:
        raise errors.ExportMismatchError(f"the file has more layers: {', '.join(stored)}")


def _outputs(
    model: keras.Model, content: bytes, examples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of the network and of its file, each [examples, units].

    XNNPACK's kernels round as the network does. The built-in ones, which run 4-bit convolutions,
    hard-swish and whatever has 16-bit activations, round up to a quarter of the outputs up.
    """
    expected = trainer.predict(model, examples)
    with tempfile.TemporaryDirectory(prefix="tfgen-") as folder:
        path = pathlib.Path(folder) / "model.tflite"
        path.write_bytes(content)
        try:
            return expected, benchmark.predict(path, examples)
        except errors.CorruptFileError as error:
            raise errors.ExportMismatchError(f"the runtime does not run it: {error}") from error


def _agreements(
    expected: np.ndarray, given: np.ndarray, step: float
) -> tuple[float | None, float | None]:
    """Share of equal decisions: of all, and of those that are not close.

    A decision is close where the network's two largest outputs differ by CLOSE_STEPS at most. None
    stands for a single output, and where fewer than FEWEST_CLEAR decisions are not close.
    """
    if expected.shape[-1] == 1:
        return None, None
    equal = expected.argmax(-1) == given.argmax(-1)
    second, first = np.moveaxis(np.sort(expected, axis=-1)[..., -2:], -1, 0)
    clear = first - second > CLOSE_STEPS * step * (1 + 1e-6)
    share = float(equal[clear].mean()) if clear.sum() >= FEWEST_CLEAR * clear.size else None
    return float(equal.mean()), share
