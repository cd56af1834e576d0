"""What a delivered file costs and scores, read from the file and the recipe beside it."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import errors, workdir
from tfgen.cost import cost_model
from tfgen.deployment import arena, benchmark, tflite_file, tflite_writer
from tfgen.space.layers import INPUT, LayerSpec, slots_of
from tfgen.training.datasets import Dataset, Split

_ENDS = ("QUANTIZE", "DEQUANTIZE")  # ops between floats outside and integers inside


def costs(path: pathlib.Path, recipe: pathlib.Path) -> dict[str, float]:
    """Every metric that is counted from layers, recomputed from the file's own ops and shapes.

    Bits are the recipe's, after a look at the stored levels: none may need more. The arena is read
    off the interpreter.

    Args:
      path: the .tflite.
      recipe: the recipe.json that was delivered with it.

    Raises:
      CorruptFileError: the file is damaged, or is not what the recipe says.
      TfgenError: the interpreter takes too long, or does not start.
    """
    promised = {
        layer.name: layer for layer in map(LayerSpec.from_json, workdir.read_json(recipe)["layers"])
    }
    with tflite_file.reading(path) as content:
        layers = list(_layers(path, tflite_file.parse(content), promised))
    for layer in layers:
        if layer != promised.pop(layer.name):
            raise errors.CorruptFileError(f"{path}: {layer.name!r} is not as in {recipe.name}")
    if promised:
        raise errors.CorruptFileError(f"{path}: lacks layers of {recipe.name}: {[*promised]}")
    (arena_bytes,) = arena.measure(path)
    counted = {m: float(v[0]) for m, v in cost_model.count(slots_of(layers)).items()}
    return {**counted, "peak_ram_kb": arena_bytes / 1000}


def score(path: pathlib.Path, dataset: Dataset, split: Split) -> float:
    """The task's metric of the file's own answers on a split."""
    return dataset.task.score(split.y, benchmark.predict(path, split.x))


def _layers(
    path: pathlib.Path, model: Any, promised: Mapping[str, LayerSpec]
) -> Iterator[LayerSpec]:
    """The file's ops as layers, of the promised bits and normalisation, which a file has not."""
    graph = model.subgraphs[0]
    ops = {file_op: op for op, file_op in tflite_file.FILE_OPS.items()}
    names = {int(graph.inputs[0]): INPUT}
    for op in graph.operators:
        kind = tflite_file.op_name(model, op)
        source, output = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
        if kind in _ENDS:
            names[int(op.outputs[0])] = names[int(op.inputs[0])]
            continue
        name = output.name.decode()
        if kind not in ops or name not in promised:
            raise errors.CorruptFileError(f"{path}: {kind} {name!r} is not in the recipe")
        constants = [
            graph.tensors[i]
            for i in op.inputs
            if model.buffers[graph.tensors[i].buffer].data is not None
        ]
        layer = LayerSpec(
            name=name,
            op=ops[kind],
            inputs=tuple(names[int(i)] for i in op.inputs[: len(op.inputs) - len(constants)]),
            in_channels=int(source.shape[-1]),
            out_channels=int(output.shape[-1]),
            in_size=tuple(map(int, source.shape[1:-1])),
            out_size=tuple(map(int, output.shape[1:-1])),
            kernel=_kernel(ops[kind], op.builtinOptions, constants),
            stride=_stride(ops[kind], op.builtinOptions, source, output),
            valid=tflite_file.is_valid(op.builtinOptions),
            weight_bits=promised[name].weight_bits,
            activation_bits=_activation_bits(output),
            activation=tflite_file.fused_activation(op.builtinOptions),
            batch_norm=promised[name].batch_norm,
            offset=_offset(ops[kind], model, constants),
        )
        if layer.weighted:
            kernel, bias = constants
            levels, _ = tflite_file.unpack(model, kernel)
            wanted = (tflite_writer.kernel_shape(layer), (layer.out_channels,))
            if (levels.shape, tuple(bias.shape)) != wanted:
                raise errors.CorruptFileError(f"{path}: {name!r} has constants of odd sizes")
            if np.abs(levels).max() >= 2 ** (layer.weight_bits - 1):
                raise errors.CorruptFileError(
                    f"{path}: {name!r} stores weights of more than {layer.weight_bits} bits"
                )
        names[int(op.outputs[0])] = name
        yield layer


def _kernel(op: str, options: Any, constants: Sequence[Any]) -> int:
    """Side of the kernel or of the pooling window."""
    if op in ("conv", "depthwise"):
        return int(constants[0].shape[1])
    return int(getattr(options, "filterHeight", 1))


def _stride(op: str, options: Any, source: Any, output: Any) -> int:
    """Of the windows; of a resize, how many times larger it makes the image."""
    if op == "resize":
        return int(output.shape[1]) // int(source.shape[1])
    return int(getattr(options, "strideH", 1))


def _offset(op: str, model: Any, constants: Sequence[Any]) -> int:
    """The first channel of a slice, the zeros of a pad."""
    readers = {"pad": tflite_file.pad_offset, "slice": tflite_file.slice_offset}
    return readers[op](model, constants[0]) if op in readers else 0


def _activation_bits(tensor: Any) -> int:
    from ai_edge_litert import schema_py_generated as schema

    widths = {schema.TensorType.INT8: 8, schema.TensorType.INT16: 16}
    if tensor.type not in widths:
        raise ValueError(f"{tensor.name!r} is of type {tensor.type}")
    return widths[tensor.type]
