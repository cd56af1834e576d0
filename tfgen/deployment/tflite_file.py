"""What a .tflite holds, read without TensorFlow: weight levels, containers, shapes."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfgen import errors

IDENTIFIER = b"TFL3"
KERNEL_SUFFIX = "/kernel"  # export names a layer's weights so
BIAS_SUFFIX = "/bias"
WEIGHTED_OPS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
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
    if isinstance(source, bytes):
        name, content = "model", source
    else:
        name = os.fspath(source)
        try:
            content = pathlib.Path(source).read_bytes()
        except OSError as error:
            raise errors.CorruptFileError(f"{name}: {error.strerror or error}") from None
    try:
        return TfliteFile(tuple(_weighted_ops(parse(content))), len(content))
    except _MALFORMED as error:
        raise errors.CorruptFileError(f"{name}: not a whole .tflite file ({error})") from error


def parse(content: bytes) -> Any:
    """The file as the schema's object tree (`ModelT`)."""
    from ai_edge_litert import schema_py_generated as schema

    if content[4:8] != IDENTIFIER:
        raise ValueError(f"no {IDENTIFIER.decode()} identifier")
    return schema.ModelT.InitFromPackedBuf(content, 0)


def serialize(model: Any) -> bytes:
    """The file's content of an object tree; equal trees give equal bytes."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def op_name(model: Any, op: Any) -> str:
    """The builtin operator's name, as in the schema."""
    from ai_edge_litert import schema_py_generated as schema

    code = model.operatorCodes[op.opcodeIndex]
    # Codes above 127 stand in the second field only, old files use the first only.
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    if number not in names:
        raise ValueError(f"no operator has the code {number}")
    return names[number]


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
        kernel_name = kernel.name.decode()
        ours = kernel_name.endswith(KERNEL_SUFFIX)
        levels, container_bits = unpack(model, kernel)
        scales = () if kernel.quantization is None else kernel.quantization.scale
        found.append(
            WeightedOp(
                name=kernel_name.removesuffix(KERNEL_SUFFIX) if ours else output.name.decode(),
                op=kind,
                levels=levels,
                container_bits=container_bits,
                scales=np.asarray(() if scales is None else scales, np.float32),
                bias_elements=0 if bias is None else int(np.prod(bias.shape, dtype=np.int64)),
                output_elements=int(np.prod(output.shape[1:], dtype=np.int64)),
            )
        )
    return found


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


def storage_bits(file: TfliteFile, weight_bits: Mapping[str, int]) -> int:
    """The paper's storage (eq. 2): sum over layers of (parameters + outputs) * weight bits.

    Args:
      file: a file that tfgen exported.
      weight_bits: layer name -> the bits it was trained at; the file's containers may be wider.

    Raises:
      UsageError: the file's layers are not those of `weight_bits`.
    """
    names = [op.name for op in file.ops]
    if sorted(names) != sorted(weight_bits):
        raise errors.UsageError(f"the file has layers {names}, the bits are for {[*weight_bits]}")
    return sum(
        (op.levels.size + op.bias_elements + op.output_elements) * weight_bits[op.name]
        for op in file.ops
    )
