"""A float Keras network -> a float .tflite whose ops and tensors have the layers' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import errors
from tfgen.deployment import tflite_file
from tfgen.nets import rounding
from tfgen.nets.keras_compat import keras, tf
from tfgen.space.layers import INPUT, POOLS, LayerSpec


def convert(
    twin: keras.Model, layers: Sequence[LayerSpec], biases: Mapping[str, np.ndarray]
) -> bytes:
    """The float file of a network for one example at a time; its tensors are named after layers.

    A layer's output is <layer>, its weights <layer>/kernel and <layer>/bias: the quantizer's recipe
    and every reader of the file find a layer by name.

    Args:
      twin: float, without batch normalisation, every bias 0.
      layers: what it was built from.
      biases: by name of a weighted layer [out]. They are put in here: the converter drops those of
        zeros, and leaves some beside their layer as additions.

    Raises:
      ExportMismatchError: the converter's ops are not the layers.
    """
    example = tf.TensorSpec([1, *twin.input_shape[1:]], tf.float32)
    forward = tf.function(lambda x: twin(x, training=False), [example])
    concrete = forward.get_concrete_function()
    owner = tf.Module()  # of the variables alone: a Keras model would be saved, layer by layer
    owner.variables_of_twin = list(twin.variables)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], owner)
    return _named(converter.convert(), twin, layers, biases)


def file_order(kernel: np.ndarray, op: str) -> np.ndarray:
    """Values [..., out] of a kernel as the file stores them.

    Dense [out, in], convolution [out, side, side, in], depthwise [1, side, side, out].
    """
    return kernel[np.newaxis] if op == "depthwise" else np.moveaxis(kernel, -1, 0)


def _named(
    content: bytes,
    twin: keras.Model,
    layers: Sequence[LayerSpec],
    biases: Mapping[str, np.ndarray],
) -> bytes:
    """The file with its tensors renamed; every op becomes one layer's, by its kind and inputs."""
    model = tflite_file.parse(content)
    graph = model.subgraphs[0]
    names = {int(graph.inputs[0]): INPUT}
    constants = _Constants(model)
    waiting = list(layers)
    for op in graph.operators:
        kind = tflite_file.op_name(model, op)
        layer = next((x for x in waiting if _is_layer(model, op, kind, names, twin, x)), None)
        if layer is None:
            raise errors.ExportMismatchError(f"the converter made an op that no layer has: {kind}")
        waiting.remove(layer)
        names[int(op.outputs[0])] = layer.name
        if layer.weighted:
            kernel_name = layer.name + tflite_file.KERNEL_SUFFIX
            kernel = constants.own(int(op.inputs[1]), kernel_name, _kernel(twin, layer))
            bias = constants.add(layer.name + tflite_file.BIAS_SUFFIX, biases[layer.name])
            op.inputs = np.array([op.inputs[0], kernel, bias], np.int32)
    if waiting:
        raise errors.ExportMismatchError(
            f"the converter dropped {', '.join(layer.name for layer in waiting)}"
        )
    for index, name in names.items():
        graph.tensors[index].name = name.encode()
    return tflite_file.serialize(model)


def _kernel(twin: keras.Model, layer: LayerSpec) -> np.ndarray:
    """The layer's kernel in the file's order."""
    kernel = twin.get_layer(layer.name).get_weights()[0]
    return file_order(rounding.by_channel(kernel, layer.op), layer.op)


def _is_layer(
    model: Any, op: Any, kind: str, names: dict[int, str], twin: keras.Model, layer: LayerSpec
) -> bool:
    """Whether an op of the file, whose inputs are named, can be this layer's."""
    tensors = model.subgraphs[0].tensors
    inputs = sorted(names[int(i)] for i in op.inputs if int(i) in names)
    if kind != tflite_file.FILE_OPS[layer.op] or inputs != sorted(layer.inputs):
        return False
    if tflite_file.fused_activation(op.builtinOptions) != layer.activation:
        return False
    if layer.weighted:
        kernel, _ = tflite_file.unpack(model, tensors[op.inputs[1]])
        return np.array_equal(_kernel(twin, layer), kernel)
    if layer.op in ("pad", "resize"):
        return tuple(tensors[op.outputs[0]].shape[1:-1]) == layer.out_size
    if layer.op in POOLS:
        options = op.builtinOptions
        return (options.filterHeight, options.strideH) == (layer.kernel, layer.stride)
    if layer.op == "slice":
        offset = tflite_file.slice_offset(model, tensors[op.inputs[1]])
        channels = tensors[op.outputs[0]].shape[-1]
        return (offset, channels) == (layer.offset, layer.out_channels)
    return True


class _Constants:
    """Gives each layer constants of its own: the converter shares equal ones."""

    def __init__(self, model: Any):
        self._model = model
        self._taken: set[int] = set()

    def own(self, index: int, name: str, values: np.ndarray) -> int:
        """The tensor `index` under this name, or a new one where another layer has it."""
        if index in self._taken:
            return self.add(name, values)
        self._taken.add(index)
        self._model.subgraphs[0].tensors[index].name = name.encode()
        return index

    def add(self, name: str, values: np.ndarray) -> int:
        """A new tensor with these float32 values."""
        from ai_edge_litert import schema_py_generated as schema

        graph = self._model.subgraphs[0]
        tensor, buffer = schema.TensorT(), schema.BufferT()
        tensor.name, tensor.type = name.encode(), schema.TensorType.FLOAT32
        tensor.shape = np.array(values.shape, np.int32)
        tensor.buffer = len(self._model.buffers)
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1
