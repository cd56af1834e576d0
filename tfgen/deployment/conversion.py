"""A float Keras network -> a float .tflite whose ops and tensors have the layers' names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfgen import errors
from tfgen.deployment import tflite_file
from tfgen.nets.keras_compat import keras, tf
from tfgen.space.layers import INPUT, LayerSpec
from tfgen.training import quantize_aware

FILE_OPS = {
    "add": "ADD",
    "concat": "CONCATENATION",
    "conv": "CONV_2D",
    "dense": "FULLY_CONNECTED",
    "depthwise": "DEPTHWISE_CONV_2D",
    "flatten": "RESHAPE",
    "hard_swish": "HARD_SWISH",
    "max_pool": "MAX_POOL_2D",
    "mean": "MEAN",
    "multiply": "MUL",
    "sigmoid": "LOGISTIC",
    "slice": "STRIDED_SLICE",
}


def convert(twin: keras.Model, layers: Sequence[LayerSpec]) -> bytes:
    """The float file of a network for one example at a time; its tensors are named after layers.

    A layer's output is <layer>, its weights <layer>/kernel and <layer>/bias: the quantizer's recipe
    and every reader of the file find a layer by name.

    Args:
      twin: float, without batch normalisation.
      layers: what it was built from.

    Raises:
      ExportMismatchError: the converter's ops are not the layers.
    """
    example = tf.TensorSpec([1, *twin.input_shape[1:]], tf.float32)
    forward = tf.function(lambda x: twin(x, training=False), [example])
    concrete = forward.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], twin)
    return _named(converter.convert(), twin, layers)


def file_order(kernel: np.ndarray, op: str) -> np.ndarray:
    """Values [..., out] of a kernel as the file stores them.

    Dense [out, in], convolution [out, side, side, in], depthwise [1, side, side, out].
    """
    return kernel[np.newaxis] if op == "depthwise" else np.moveaxis(kernel, -1, 0)


def _named(content: bytes, twin: keras.Model, layers: Sequence[LayerSpec]) -> bytes:
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
            kernel, bias = _weights(twin, layer)
            # The converter drops a bias of zeros; the architecture counts it.
            source, kernel_index, bias_index = (*op.inputs, -1)[:3]
            kernel_index = constants.own(
                kernel_index, layer.name + tflite_file.KERNEL_SUFFIX, kernel
            )
            bias_index = constants.own(bias_index, layer.name + tflite_file.BIAS_SUFFIX, bias)
            op.inputs = np.array([source, kernel_index, bias_index], np.int32)
    if waiting:
        raise errors.ExportMismatchError(
            f"the converter dropped {', '.join(layer.name for layer in waiting)}"
        )
    for index, name in names.items():
        graph.tensors[index].name = name.encode()
    return tflite_file.serialize(model)


def _weights(twin: keras.Model, layer: LayerSpec) -> tuple[np.ndarray, np.ndarray]:
    """Kernel in the file's order, and bias."""
    kernel, bias = twin.get_layer(layer.name).get_weights()
    return file_order(quantize_aware.by_channel(kernel, layer.op), layer.op), bias


def _is_layer(
    model: Any, op: Any, kind: str, names: dict[int, str], twin: keras.Model, layer: LayerSpec
) -> bool:
    """Whether an op of the file, whose inputs are named, can be this layer's."""
    tensors = model.subgraphs[0].tensors
    inputs = sorted(names[int(i)] for i in op.inputs if int(i) in names)
    if kind != FILE_OPS[layer.op] or inputs != sorted(layer.inputs):
        return False
    if layer.weighted:
        kernel, _ = tflite_file.unpack(model, tensors[op.inputs[1]])
        return np.array_equal(_weights(twin, layer)[0], kernel)
    if layer.op == "slice":
        begin = np.asarray(model.buffers[tensors[op.inputs[1]].buffer].data, np.uint8)
        channels = tensors[op.outputs[0]].shape[-1]
        return (begin.view(np.int32)[-1], channels) == (layer.offset, layer.out_channels)
    return True


class _Constants:
    """Gives each layer constants of its own: the converter shares equal ones."""

    def __init__(self, model: Any):
        self._model = model
        self._taken: set[int] = set()

    def own(self, index: int, name: str, values: np.ndarray) -> int:
        """The tensor `index`, or a new one with its values, under this name."""
        from ai_edge_litert import schema_py_generated as schema

        graph = self._model.subgraphs[0]
        if index < 0 or index in self._taken:
            tensor, buffer = schema.TensorT(), schema.BufferT()
            tensor.type, tensor.shape = schema.TensorType.FLOAT32, np.array(values.shape, np.int32)
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            tensor.buffer, index = len(self._model.buffers), len(graph.tensors)
            self._model.buffers.append(buffer)
            graph.tensors.append(tensor)
        self._taken.add(int(index))
        graph.tensors[index].name = name.encode()
        return int(index)
