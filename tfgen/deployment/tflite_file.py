"""What a .tflite holds, and the one layout in which it is written; without TensorFlow.

A small network's file is mostly layout: `canonical` leaves out what no runtime reads, `serialize`
writes once what several tensors share. `cost.file_size` counts the bytes of exactly this layout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import errors
from tfgen.space.layers import execution_order

IDENTIFIER = b"TFL3"
KERNEL_SUFFIX = "/kernel"  # export names a layer's weights so
BIAS_SUFFIX = "/bias"
_BUFFER_ALIGNMENT = 16
WEIGHTED_OPS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
FUSED = {"linear": "NONE", "relu": "RELU", "relu6": "RELU6"}  # of a LayerSpec -> of the file
FILE_OPS = {  # op of a LayerSpec -> op of the file
    "add": "ADD",
    "average_pool": "AVERAGE_POOL_2D",
    "concat": "CONCATENATION",
    "conv": "CONV_2D",
    "dense": "FULLY_CONNECTED",
    "depthwise": "DEPTHWISE_CONV_2D",
    "flatten": "RESHAPE",
    "hard_swish": "HARD_SWISH",
    "max_pool": "MAX_POOL_2D",
    "mean": "MEAN",
    "multiply": "MUL",
    "pad": "PAD",
    "resize": "RESIZE_NEAREST_NEIGHBOR",
    "sigmoid": "LOGISTIC",
    "slice": "STRIDED_SLICE",
}
# Everything that a malformed flatbuffer makes the schema's pure Python code raise.
_MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclasses.dataclass(frozen=True)
class WeightedOp:
    """An op with a constant kernel.

    Attributes:
      name: the layer, if tfgen wrote the file; otherwise the output tensor's name.
      op: one of WEIGHTED_OPS.
      levels: the stored integers int64, or the float32 weights; [out, in] for FULLY_CONNECTED.
      container_bits: width that one weight takes in the file.
      scales: of each output channel, or of all; empty for float weights.
      bias_elements: 0 without bias.
      output_elements: of one example.
    """

    name: str
    op: str
    levels: np.ndarray
    container_bits: int
    scales: np.ndarray
    bias_elements: int
    output_elements: int


@dataclasses.dataclass(frozen=True)
class TfliteFile:
    """The weighted ops of a .tflite in the order of execution, and its size in bytes."""

    ops: tuple[WeightedOp, ...]
    file_bytes: int

    @property
    def payload_bits(self) -> int:
        """What the kernels' containers take."""
        return sum(op.levels.size * op.container_bits for op in self.ops)


def read(source: str | os.PathLike[str] | bytes) -> TfliteFile:
    """Reads a .tflite.

    The schema's Python code checks every access against the buffer, so a malformed file raises; it
    cannot crash the process as the runtime can.

    Args:
      source: a path, or the file's content.

    Raises:
      CorruptFileError: missing, truncated or not a .tflite; names the file.
    """
    with reading(source) as content:
        return TfliteFile(tuple(_weighted_ops(parse(content))), len(content))


@contextlib.contextmanager
def reading(source: str | os.PathLike[str] | bytes) -> Iterator[bytes]:
    """The content of a .tflite; what its malformed parts raise on the way becomes one error.

    Args:
      source: a path, or the file's content.

    Raises:
      CorruptFileError: missing, or one of `_MALFORMED` was raised; names the file.
    """
    if isinstance(source, bytes):
        name, content = "model", source
    else:
        name = os.fspath(source)
        try:
            content = pathlib.Path(source).read_bytes()
        except OSError as error:
            raise errors.CorruptFileError(f"{name}: {error.strerror or error}") from None
    try:
        yield content
    except _MALFORMED as error:
        raise errors.CorruptFileError(f"{name}: not a whole .tflite file ({error})") from error


def parse(content: bytes) -> Any:
    """The file as the schema's object tree (`ModelT`), with all its constants.

    Large files have them behind the tree, at places that a buffer tells (the quantizer's from
    256 KiB on); from there they are brought in.
    """
    from ai_edge_litert import schema_py_generated as schema

    if content[4:8] != IDENTIFIER:
        raise ValueError(f"no {IDENTIFIER.decode()} identifier")
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for number, buffer in enumerate(model.buffers or ()):
        if buffer.offset > 1 and buffer.data is None:  # 0 and 1 stand for none
            end = buffer.offset + buffer.size
            if end > len(content):
                raise ValueError(f"buffer {number} ends at byte {end} of {len(content)}")
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def serialize(model: Any) -> bytes:
    """The file's content of an object tree; equal trees give equal bytes.

    An array object that stands at several places of the tree is written once. Constants come first
    (at the file's end), as the format demands at multiples of 16 bytes, then zero points, at
    multiples of 8: everything else takes multiples of 4, so nothing is lost between.
    """
    builder = _builder()
    for buffer in model.buffers:
        if buffer.data is not None:
            builder.write(buffer.data, _BUFFER_ALIGNMENT)
    for tensor in model.subgraphs[0].tensors:
        if tensor.quantization is not None and tensor.quantization.zeroPoint is not None:
            builder.write(tensor.quantization.zeroPoint, tensor.quantization.zeroPoint.itemsize)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _builder() -> Any:
    import flatbuffers

    class SharingBuilder(flatbuffers.Builder):
        """Writes an array object once, however often the schema's code asks for it."""

        def __init__(self) -> None:
            super().__init__(1024)
            self._written: dict[int, tuple[np.ndarray, int]] = {}

        def StartObject(self, numfields: int) -> None:
            # A table behind a vtable of odd length would count the gap as its own, and so need a
            # vtable of its own.
            self.Prep(4, 0)
            super().StartObject(numfields)

        def CreateNumpyVector(self, x: np.ndarray) -> int:
            return self.write(x, x.itemsize)

        def write(self, array: np.ndarray, alignment: int) -> int:
            # The array is kept, so that no other one gets its id.
            if id(array) not in self._written:
                content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
                self.StartVector(array.itemsize, array.size, alignment)
                self.head -= len(content)
                self.Bytes[self.head : self.head + len(content)] = content
                self._written[id(array)] = array, self.EndVector()
            return self._written[id(array)][1]

    return SharingBuilder()


def canonical(model: Any) -> Any:
    """The same network in the layout of every file that tfgen writes.

    What is left out no runtime reads: metadata, the names of constants, kinds of data that the file
    has not; and ops that change nothing. Ops stand in the order in which walking back from the
    output meets them, tensors and constants in the order in which ops use them. Zero points that
    the format or the op fixes are one array for all tensors, and equal parameters (axes, offsets)
    one tensor.

    Args:
      model: one graph, without control flow and custom ops.

    Raises:
      ValueError: the model has more than one graph, or an op that `_VERSIONS` does not know.
    """
    return _Layout(model).model


# Least version of each op that knows float32, int8 and int16 activations; a runtime refuses what it
# does not know. Dense layers with leading dimensions came with version 5.
_VERSIONS = {
    "ADD": (1, 2, 3),
    "AVERAGE_POOL_2D": (1, 2, 3),
    "CONCATENATION": (1, 2, 3),
    "CONV_2D": (1, 3, 4),
    "DEPTHWISE_CONV_2D": (1, 3, 5),
    "DEQUANTIZE": (1, 2, 3),
    "FULLY_CONNECTED": (5, 5, 7),
    "HARD_SWISH": (1, 1, 1),
    "LOGISTIC": (1, 2, 3),
    "MAX_POOL_2D": (1, 2, 3),
    "MEAN": (1, 2, 3),
    "MUL": (1, 3, 4),
    "PAD": (1, 2, 3),
    "QUANTIZE": (1, 1, 2),
    "RESHAPE": (1, 1, 1),
    "RESIZE_NEAREST_NEIGHBOR": (3, 3, 4),  # with pixels' centres at halves
    "STRIDED_SLICE": (1, 2, 4),
}
# The same with a kernel in INT4 and INT2.
_LOW_BIT_VERSIONS = {
    "CONV_2D": (7, 8),
    "DEPTHWISE_CONV_2D": (7, 7),
    "FULLY_CONNECTED": (10, 14),
}
_NOT_NEGATIVE = ("RELU", "RELU6")


class _Layout:
    """Builds the canonical tree of a model; equal networks give equal trees."""

    def __init__(self, model: Any):
        from ai_edge_litert import schema_py_generated as schema

        if len(model.subgraphs) != 1:
            raise ValueError(f"one graph is needed, the file has {len(model.subgraphs)}")
        self._schema = schema
        self._source = model
        self._positions: dict[int, int] = {}  # old tensor -> new one
        self._parameters: dict[bytes, int] = {}  # content -> new tensor
        self._zero_points: dict[tuple[int, int], np.ndarray] = {}  # by value and length
        self.model = schema.ModelT()
        self.model.version = model.version
        self.model.operatorCodes, self.model.buffers = [], [schema.BufferT()]
        graph, self._graph = model.subgraphs[0], schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self.model.subgraphs = [self._graph]
        for index in graph.inputs:
            self._add_tensor(int(index), named=True)
        for op in _execution_order(graph):
            if self._is_nothing(op):
                self._positions[int(op.outputs[0])] = self._positions[int(op.inputs[0])]
            else:
                self._add_op(op)
        self._graph.inputs = self._new(graph.inputs)
        self._graph.outputs = self._new(graph.outputs)
        self.model.signatureDefs = model.signatureDefs and [
            self._signature(signature) for signature in model.signatureDefs
        ]

    def _is_nothing(self, op: Any) -> bool:
        """Whether an op within the graph rounds a tensor to the steps that it has."""
        graph = self._source.subgraphs[0]
        if op_name(self._source, op) != "QUANTIZE" or op.outputs[0] in graph.outputs:
            return False
        before, after = (graph.tensors[int(ends[0])] for ends in (op.inputs, op.outputs))
        told = before.quantization, after.quantization
        if before.type != after.type or any(q is None or q.scale is None for q in told):
            return False
        return all(np.array_equal(*(getattr(q, part) for q in told))
                   for part in ("scale", "zeroPoint"))  # fmt: skip

    def _new(self, indices: Sequence[int]) -> np.ndarray:
        return np.array([self._positions[int(i)] if i >= 0 else -1 for i in indices], np.int32)

    def _add_op(self, op: Any) -> None:
        kind = op_name(self._source, op)
        tensors = self._source.subgraphs[0].tensors
        fused = getattr(op.builtinOptions, "fusedActivationFunction", 0)
        lowest = kind == "LOGISTIC" or fused in [
            getattr(self._schema.ActivationFunctionType, name) for name in _NOT_NEGATIVE
        ]
        for index in op.inputs:
            if index >= 0 and int(index) not in self._positions:
                self._add_tensor(int(index))
        for index in op.outputs:
            self._add_tensor(int(index), named=kind != "QUANTIZE", lowest=lowest)
        made = self._schema.OperatorT()
        types = [tensors[i].type for i in (*op.inputs[:2], *op.outputs) if i >= 0]
        made.opcodeIndex = self._code(kind, types)
        made.inputs, made.outputs = self._new(op.inputs), self._new(op.outputs)
        made.builtinOptionsType, made.builtinOptions = op.builtinOptionsType, op.builtinOptions
        self._graph.operators.append(made)

    def _code(self, kind: str, types: Sequence[int]) -> int:
        """Index of the op's code, made where it is new; of a version that knows the types."""
        if kind not in _VERSIONS:
            raise ValueError(f"no version is known of {kind}")
        known = self._schema.TensorType
        version = max(
            least
            for least, type_ in zip(
                (*_VERSIONS[kind], *_LOW_BIT_VERSIONS.get(kind, ())),
                (known.FLOAT32, known.INT8, known.INT16, known.INT4, known.INT2),
                strict=False,
            )
            if type_ in types
        )
        number = getattr(self._schema.BuiltinOperator, kind)
        codes = self.model.operatorCodes
        for index, code in enumerate(codes):
            if code.builtinCode == number:
                code.version = max(code.version, version)
                return index
        code = self._schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = number
        code.version = version
        codes.append(code)
        return len(codes) - 1

    def _add_tensor(self, index: int, *, named: bool = False, lowest: bool = False) -> None:
        """Adds a tensor.

        Args:
          index: of the old one.
          named: whether the name is kept.
          lowest: whether the op that makes it gives nothing below zero.
        """
        old = self._source.subgraphs[0].tensors[index]
        data = self._source.buffers[old.buffer].data
        tensor = self._schema.TensorT()
        tensor.shape, tensor.type = old.shape, old.type
        tensor.name = old.name if named else None
        if old.quantization is not None and old.quantization.scale is not None:
            tensor.quantization = self._quantization(old, data is not None, lowest)
        elif data is not None and old.type == self._schema.TensorType.INT32:
            content = old.shape.tobytes() + data.tobytes()
            if content in self._parameters:
                self._positions[index] = self._parameters[content]
                return
            self._parameters[content] = len(self._graph.tensors)
        if data is not None:
            tensor.buffer = len(self.model.buffers)
            buffer = self._schema.BufferT()
            buffer.data = data
            self.model.buffers.append(buffer)
        self._positions[index] = len(self._graph.tensors)
        self._graph.tensors.append(tensor)

    def _quantization(self, tensor: Any, constant: bool, lowest: bool) -> Any:
        made = self._schema.QuantizationParametersT()
        made.scale, made.zeroPoint = tensor.quantization.scale, tensor.quantization.zeroPoint
        made.quantizedDimension = tensor.quantization.quantizedDimension
        symmetric = constant or tensor.type == self._schema.TensorType.INT16
        if symmetric or lowest:
            fixed = 0 if symmetric else np.iinfo(np.int8).min
            if (made.zeroPoint == fixed).all():
                key = fixed, len(made.zeroPoint)
                made.zeroPoint = self._zero_points.setdefault(key, made.zeroPoint)
        return made

    def _signature(self, signature: Any) -> Any:
        made = self._schema.SignatureDefT()
        made.signatureKey = signature.signatureKey
        made.inputs, made.outputs = (
            [self._tensor_map(item) for item in items]
            for items in (signature.inputs, signature.outputs)
        )
        return made

    def _tensor_map(self, item: Any) -> Any:
        made = self._schema.TensorMapT()
        made.name, made.tensorIndex = item.name, self._positions[item.tensorIndex]
        return made


def _execution_order(graph: Any) -> list[Any]:
    """The ops that the outputs need: each after those it reads, first inputs first."""
    makers = {int(index): op for op in graph.operators for index in op.outputs}
    ends = [int(index) for index in graph.outputs]
    reads = {index: [int(source) for source in op.inputs] for index, op in makers.items()}
    return [makers[index] for index in execution_order(ends, reads)]


def op_name(model: Any, op: Any) -> str:
    """The builtin operator's name, as in the schema."""
    code = model.operatorCodes[op.opcodeIndex]
    # Codes above 127 stand in the second field only, old files use the first only.
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    names = _builtin_operators()
    if number not in names:
        raise ValueError(f"no operator has the code {number}")
    return names[number]


@functools.cache
def _builtin_operators() -> Mapping[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(schema.BuiltinOperator).items()}


def _weighted_ops(model: Any) -> list[WeightedOp]:
    graph = model.subgraphs[0]
    found = []
    for op in graph.operators:
        kind = op_name(model, op)
        if kind not in WEIGHTED_OPS:
            continue
        kernel = graph.tensors[op.inputs[1]]
        output = graph.tensors[op.outputs[0]]
        bias = graph.tensors[op.inputs[2]] if len(op.inputs) > 2 and op.inputs[2] >= 0 else None
        kernel_name = "" if kernel.name is None else kernel.name.decode()
        named = kernel_name.endswith(KERNEL_SUFFIX)
        levels, container_bits = unpack(model, kernel)
        scales = () if kernel.quantization is None else kernel.quantization.scale
        found.append(
            WeightedOp(
                name=kernel_name.removesuffix(KERNEL_SUFFIX) if named else output.name.decode(),
                op=kind,
                levels=levels,
                container_bits=container_bits,
                scales=np.asarray(() if scales is None else scales, np.float32),
                bias_elements=0 if bias is None else int(np.prod(bias.shape, dtype=np.int64)),
                output_elements=int(np.prod(output.shape[1:], dtype=np.int64)),
            )
        )
    return found


def fused_activation(options: Any) -> str:
    """What an op with these options applies to its result: one of FUSED."""
    from ai_edge_litert import schema_py_generated as schema

    fused = getattr(options, "fusedActivationFunction", schema.ActivationFunctionType.NONE)
    return {getattr(schema.ActivationFunctionType, v): k for k, v in FUSED.items()}[fused]


def is_valid(options: Any) -> bool:
    """Whether the windows of an op with these options stay within the image."""
    from ai_edge_litert import schema_py_generated as schema

    return bool(getattr(options, "padding", schema.Padding.SAME) == schema.Padding.VALID)


def slice_offset(model: Any, begin: Any) -> int:
    """The first channel that a slice takes, from the tensor of its begins."""
    return int(_integers(model, begin)[-1])


def pad_offset(model: Any, paddings: Any) -> int:
    """The zeros that a pad puts on each side of an image; raises ValueError where they differ."""
    found = _integers(model, paddings)
    zeros = int(found[2]) if len(found) == 8 else 0
    if zeros < 1 or found.tolist() != [0, 0, zeros, zeros, zeros, zeros, 0, 0]:
        raise ValueError(f"a pad by {found.tolist()} is not alike on each side of an image")
    return zeros


def _integers(model: Any, tensor: Any) -> np.ndarray:
    """What a constant that tells an op what to do holds."""
    return np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(np.int32)


def unpack(model: Any, tensor: Any) -> tuple[np.ndarray, int]:
    """A constant's elements in its shape, and the bits that each one takes."""
    from ai_edge_litert import schema_py_generated as schema

    data = model.buffers[tensor.buffer].data
    if data is None:
        raise ValueError(f"tensor {tensor.name!r} has no data")
    data = np.asarray(data, np.uint8)
    floats = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16}
    integers = {schema.TensorType.INT2: 2, schema.TensorType.INT4: 4, schema.TensorType.INT8: 8}
    count = int(np.prod(tensor.shape, dtype=np.int64))
    if tensor.type in floats:
        values = data.view(floats[tensor.type]).astype(np.float32)
        return values.reshape(tensor.shape), data.itemsize * 8 * len(data) // max(count, 1)
    if tensor.type not in integers:
        raise ValueError(f"tensor {tensor.name!r} has weights of type {tensor.type}")
    bits = integers[tensor.type]
    if len(data) != -(-count * bits // 8):
        raise ValueError(f"tensor {tensor.name!r} has {len(data)} bytes for {count} weights")
    # The first element lies in the lowest bits of the first byte.
    fields = (data[:, None] >> np.arange(0, 8, bits, dtype=np.uint8)) & (2**bits - 1)
    levels = fields.reshape(-1)[:count].astype(np.int64)
    levels[levels >= 2 ** (bits - 1)] -= 2**bits
    return levels.reshape(tensor.shape), bits
