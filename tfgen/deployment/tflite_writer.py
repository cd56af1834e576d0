"""LayerSpecs and their numbers -> a .tflite, written with the runtime's schema in milliseconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfgen.deployment import tflite_file
from tfgen.space.layers import INPUT, POOLS, LayerSpec, check_network, range_owners

INPUT_OUTPUT = ("float", "int8")
FLOAT_BITS = 32
SIGNATURE = "serving_default"
SIGNATURE_INPUT, SIGNATURE_OUTPUT = "x", "output_0"
_INTEGERS = {2: "INT2", 4: "INT4", 8: "INT8", 16: "INT16"}
_IMAGE_AXES = (1, 2)  # of [batch, height, width, channels]

Step = tuple[float, int]  # scale and zero point
Parameter = Sequence[int] | Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """The constants of a weighted layer as the file holds them.

    Attributes:
      kernel: integer levels, or float32 weights: dense [out, in], convolution
        [out, side, side, in], depthwise [1, side, side, out].
      bias: integers of the accumulator, or float32 [out].
      scales: of each output channel, float32 [out]; empty for float weights.
      container_bits: width of one weight in the file, 2, 4 or 8; FLOAT_BITS for float weights.
    """

    kernel: np.ndarray
    bias: np.ndarray
    scales: np.ndarray
    container_bits: int

    def __post_init__(self) -> None:
        integers = self.container_bits in (2, 4, 8)
        channels = self.bias.shape
        if not integers and self.container_bits != FLOAT_BITS:
            raise ValueError(f"container_bits must be 2, 4, 8 or {FLOAT_BITS}: {self}")
        if len(channels) != 1 or self.scales.shape != (channels if integers else (0,)):
            raise ValueError(f"{self.scales.shape} scales for a bias of {channels}")
        if integers and self.kernel.size:
            low, high = int(self.kernel.min()), int(self.kernel.max())
            top = 2 ** (self.container_bits - 1)
            if low < -top or high >= top:
                raise ValueError(f"levels {low} .. {high} in {self.container_bits} bits")


def write(
    layers: Sequence[LayerSpec],
    input_shape: Sequence[int],
    weights: Mapping[str, Weights],
    steps: Mapping[str, Step] | None,
    *,
    io: str = "float",
) -> bytes:
    """The file of a network, in the layout of `tflite_file.canonical`.

    Containers are written as they are asked for, also where no runtime executes them.

    Args:
      layers: the network; all its activations have one width.
      input_shape: of one example.
      weights: of every weighted layer, by its name.
      steps: scale and zero point of every tensor that `range_owners` names; None for a network of
        float32 weights and activations.
      io: "float", or "int8" for a network whose ends are integers of the activations' width.

    Raises:
      ValueError: the layers are no network, or the numbers do not fit them.
      KeyError: numbers of a layer are missing.
    """
    check_network(layers, input_shape)
    if io not in INPUT_OUTPUT:
        raise ValueError(f"io must be one of {INPUT_OUTPUT}, got {io!r}")
    widths = sorted({layer.activation_bits for layer in layers})
    if steps is not None and widths not in ([8], [16]):
        raise ValueError(f"all activations need 8 bits, or all 16; they have {widths}")
    graph = _Graph(FLOAT_BITS if steps is None else widths[0])
    quantized = {}
    if steps is not None:
        quantized = {name: steps[owner] for name, owner in range_owners(layers).items()}
    made = {INPUT: graph.input((1, *input_shape), quantized.get(INPUT), io)}
    for layer in layers:
        inputs = [made[name] for name in layer.inputs]
        shape = (1, *layer.out_size, layer.out_channels)
        output = graph.activation(layer.name, shape, quantized.get(layer.name))
        if layer.weighted:
            scale = quantized[layer.inputs[0]][0] if quantized else None
            inputs += graph.weights(layer, weights[layer.name], scale)
        inputs += [graph.parameter(values) for values in _parameters(layer)]
        graph.op(tflite_file.FILE_OPS[layer.op], inputs, output, *_options(graph.schema, layer))
        made[layer.name] = output
    last = layers[-1]
    output = graph.output(last.name, made[last.name], io if quantized else "int8")
    return tflite_file.serialize(tflite_file.canonical(graph.model(output)))


def kernel_shape(layer: LayerSpec) -> tuple[int, ...]:
    """Shape of a weighted layer's kernel in the file."""
    side = layer.kernel
    return {
        "dense": (layer.out_channels, layer.in_channels),
        "conv": (layer.out_channels, side, side, layer.in_channels),
        "depthwise": (1, side, side, layer.out_channels),
    }[layer.op]


def pack(levels: np.ndarray, container_bits: int) -> np.ndarray:
    """Integers as the file's bytes: the first element in the lowest bits of the first byte."""
    per_byte = 8 // container_bits
    fields = levels.reshape(-1).astype(np.int8).view(np.uint8) & (2**container_bits - 1)
    fields = np.pad(fields, (0, -len(fields) % per_byte)).reshape(-1, per_byte)
    shifts = np.arange(0, 8, container_bits, dtype=np.uint8)
    return np.bitwise_or.reduce(fields << shifts, axis=1).astype(np.uint8)


class _Graph:
    """The schema's objects of one network, as they are made."""

    def __init__(self, activation_bits: int):
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self._type = schema.TensorType.FLOAT32
        if activation_bits != FLOAT_BITS:
            self._type = self._integer(activation_bits)
        self._wide = activation_bits == 16
        self._graph = schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.subgraphs = [self._graph]
        self._model.buffers, self._model.operatorCodes = [schema.BufferT()], []
        self._input = 0

    def input(self, shape: Sequence[int], step: Step | None, io: str) -> int:
        """The network's input as integers; the tensor that the user sets may be float."""
        if step is None or io == "int8":
            return self.activation(INPUT, shape, step)
        floats = self._tensor(shape, self.schema.TensorType.FLOAT32, INPUT)
        integers = self.activation("", shape, step)
        self.op("QUANTIZE", [floats], integers)
        return integers

    def output(self, name: str, index: int, io: str) -> int:
        """What the user gets of the last layer's tensor."""
        if io == "int8":
            return index
        shape = self._graph.tensors[index].shape
        floats = self._tensor(shape, self.schema.TensorType.FLOAT32, f"{name}_dequant")
        self.op("DEQUANTIZE", [index], floats)
        return floats

    def activation(self, name: str, shape: Sequence[int], step: Step | None) -> int:
        """A tensor that an op makes."""
        scales, zero_points = ([step[0]], [step[1]]) if step else ((), ())
        return self._tensor(shape, self._type, name, scales, zero_points)

    def weights(self, layer: LayerSpec, weights: Weights, scale: float | None) -> list[int]:
        """Kernel and bias; `scale` is the input's."""
        shape, channels = kernel_shape(layer), layer.out_channels
        if weights.kernel.shape != shape or len(weights.bias) != channels:
            raise ValueError(f"layer {layer.name!r}: weights {weights.kernel.shape}, not {shape}")
        if (scale is None) != (weights.container_bits == FLOAT_BITS):
            raise ValueError(f"layer {layer.name!r}: float weights need float activations")
        if scale is None:
            floats = self.schema.TensorType.FLOAT32
            return [
                self._tensor(values.shape, floats, "", data=values.astype(np.float32))
                for values in (weights.kernel, weights.bias)
            ]
        kernel = self._tensor(
            shape,
            self._integer(weights.container_bits),
            "",
            weights.scales,
            np.zeros(channels),
            len(shape) - 1 if layer.op == "depthwise" else 0,
            pack(weights.kernel, weights.container_bits),
        )
        types = self.schema.TensorType
        bias = self._tensor(
            (channels,),
            types.INT64 if self._wide else types.INT32,
            "",
            # XNNPACK takes no layer whose bias has no scales.
            np.float32(scale) * weights.scales.astype(np.float32),
            np.zeros(channels),
            data=weights.bias.astype(np.int64 if self._wide else np.int32),
        )
        return [kernel, bias]

    def parameter(self, values: Parameter) -> int:
        """A constant that tells an op what to do."""
        data = np.array(values, np.int32)
        return self._tensor(data.shape, self.schema.TensorType.INT32, "", data=data)

    def op(
        self,
        kind: str,
        inputs: Sequence[int],
        output: int,
        options: Any = None,
        options_name: str = "NONE",
    ) -> None:
        made, code = self.schema.OperatorT(), self.schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(self.schema.BuiltinOperator, kind)
        made.opcodeIndex = len(self._model.operatorCodes)
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        made.builtinOptions = options
        made.builtinOptionsType = getattr(self.schema.BuiltinOptions, options_name)
        self._model.operatorCodes.append(code)
        self._graph.operators.append(made)

    def model(self, output: int) -> Any:
        """The finished tree; the input is the first tensor."""
        self._graph.inputs, self._graph.outputs = (
            np.zeros(1, np.int32),
            np.array([output], np.int32),
        )
        signature = self.schema.SignatureDefT()
        signature.signatureKey = SIGNATURE.encode()
        signature.inputs = [self._tensor_map(SIGNATURE_INPUT, 0)]
        signature.outputs = [self._tensor_map(SIGNATURE_OUTPUT, output)]
        self._model.signatureDefs = [signature]
        return self._model

    def _integer(self, bits: int) -> int:
        return getattr(self.schema.TensorType, _INTEGERS[bits])

    def _tensor_map(self, name: str, index: int) -> Any:
        made = self.schema.TensorMapT()
        made.name, made.tensorIndex = name.encode(), index
        return made

    def _tensor(
        self,
        shape: Sequence[int],
        type_: int,
        name: str,
        scales: Sequence[float] | np.ndarray = (),
        zero_points: Sequence[int] | np.ndarray = (),
        channel_dimension: int = 0,
        data: np.ndarray | None = None,
    ) -> int:
        tensor = self.schema.TensorT()
        tensor.shape, tensor.type = np.array(shape, np.int32), type_
        tensor.name = name.encode()
        if len(scales):
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = np.asarray(scales, np.float32)
            tensor.quantization.zeroPoint = np.asarray(zero_points, np.int64)
            tensor.quantization.quantizedDimension = channel_dimension
        if data is not None:
            tensor.buffer = len(self._model.buffers)
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            self._model.buffers.append(buffer)
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1


def _parameters(layer: LayerSpec) -> list[Parameter]:
    """The constant inputs of an op without weights."""
    if layer.op == "flatten":
        return [(-1, layer.out_channels)]
    if layer.op == "mean":
        return [_IMAGE_AXES]
    if layer.op == "pad":  # zeros before and behind, of each dimension
        return [((0, 0), *[(layer.offset, layer.offset)] * 2, (0, 0))]
    if layer.op == "resize":
        return [layer.out_size]
    if layer.op == "slice":
        # Begin, end and stride of each dimension; the options say that only the last one counts.
        begin, end = layer.offset, layer.offset + layer.out_channels
        return [(0, 0, 0, begin), (0, 0, 0, end), (1, 1, 1, 1)]
    return []


def _options(schema: Any, layer: LayerSpec) -> tuple[Any, str]:
    """The op's options and their name in the schema."""
    made: Any = None
    if layer.op == "conv":
        made = schema.Conv2DOptionsT()
        made.strideH = made.strideW = layer.stride
    elif layer.op == "depthwise":
        made = schema.DepthwiseConv2DOptionsT()
        made.strideH = made.strideW = layer.stride
        made.depthMultiplier = 1
    elif layer.op == "dense":
        made = schema.FullyConnectedOptionsT()
        made.keepNumDims = bool(layer.out_size)
    elif layer.op in POOLS:
        made = schema.Pool2DOptionsT()
        made.strideH = made.strideW = layer.stride
        made.filterHeight = made.filterWidth = layer.kernel
    elif layer.op == "add":
        made = schema.AddOptionsT()
    elif layer.op == "multiply":
        made = schema.MulOptionsT()
    elif layer.op == "concat":
        made = schema.ConcatenationOptionsT()
        made.axis = len(layer.out_size) + 1
    elif layer.op == "mean":
        made = schema.ReducerOptionsT()
        made.keepDims = bool(layer.out_size)
    elif layer.op == "resize":
        made = schema.ResizeNearestNeighborOptionsT()
        made.halfPixelCenters = True  # else (n / size * factor) is a little below n for some
    elif layer.op == "pad":
        made = schema.PadOptionsT()
    elif layer.op == "slice":
        made = schema.StridedSliceOptionsT()
        made.beginMask = made.endMask = 0b0111
    if made is None:
        return None, "NONE"
    if layer.valid:
        made.padding = schema.Padding.VALID
    if layer.op in ("conv", "depthwise", "dense", "add"):
        fused = tflite_file.FUSED[layer.activation]
        made.fusedActivationFunction = getattr(schema.ActivationFunctionType, fused)
    return made, type(made).__name__.removesuffix("T")
