"""TensorFlow's C API on a SavedModel: the loader that TF Serving calls, without Python's."""

from __future__ import annotations

import ctypes
import pathlib
from collections.abc import Mapping

import numpy as np

from tfgen.nets.keras_compat import tf

_OK = 0


class Output(ctypes.Structure):
    """TF_Output: an operation and the number of its output."""

    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class Buffer(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    ]


class LoadError(Exception):
    """The loader's code and words."""


def _library() -> ctypes.CDLL:
    """libtensorflow_cc, whose functions return pointers where they are named."""
    (path,) = pathlib.Path(tf.__file__).parent.glob("libtensorflow_cc.so.*")
    library = ctypes.CDLL(str(path))
    for name in (
        "TF_AllocateTensor", "TF_GraphOperationByName", "TF_LoadSessionFromSavedModel",
        "TF_NewBuffer", "TF_NewGraph", "TF_NewSessionOptions", "TF_NewStatus", "TF_TensorData",
    ):  # fmt: skip
        getattr(library, name).restype = ctypes.c_void_p
    library.TF_Message.restype = ctypes.c_char_p
    library.TF_Dim.restype = ctypes.c_int64
    return library


class Session:
    """A SavedModel in a C session."""

    def __init__(self, folder: pathlib.Path):
        """Loads it; raises LoadError."""
        self._c = _library()
        self._status = ctypes.c_void_p(self._c.TF_NewStatus())
        self._graph = ctypes.c_void_p(self._c.TF_NewGraph())
        meta = ctypes.cast(self._c.TF_NewBuffer(), ctypes.POINTER(Buffer))
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = ctypes.c_void_p(
            self._c.TF_LoadSessionFromSavedModel(
                ctypes.c_void_p(self._c.TF_NewSessionOptions()),
                None,
                str(folder).encode(),
                tags,
                1,
                self._graph,
                meta,
                self._status,
            )
        )
        self._check()
        text = ctypes.string_at(meta.contents.data, meta.contents.length)
        message = tf.compat.v1.MetaGraphDef.FromString(text)
        self.signatures = message.signature_def

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the signature answers, by name; outputs that are texts are left out."""
        known = self.signatures[signature]
        names = [n for n, i in known.outputs.items() if tf.as_dtype(i.dtype) != tf.string]
        fed = [self._output(known.inputs[name].name) for name in inputs]
        fetched = [self._output(known.outputs[name].name) for name in names]
        tensors = [self._tensor(value) for value in inputs.values()]
        values = (ctypes.c_void_p * len(tensors))(*tensors)
        found = (ctypes.c_void_p * len(names))()
        self._c.TF_SessionRun(
            self._session, None, (Output * len(fed))(*fed), values, len(fed),
            (Output * len(fetched))(*fetched), found, len(fetched), None, 0, None, self._status,
        )  # fmt: skip
        self._check()
        return {name: self._array(tensor) for name, tensor in zip(names, found, strict=True)}

    def _output(self, name: str) -> Output:
        operation, _, index = name.partition(":")
        found = self._c.TF_GraphOperationByName(self._graph, operation.encode())
        return Output(found, int(index))

    def _tensor(self, value: np.ndarray) -> int:
        value = np.ascontiguousarray(value)
        shape = (ctypes.c_int64 * value.ndim)(*value.shape)
        kind = tf.as_dtype(value.dtype).as_datatype_enum
        tensor = self._c.TF_AllocateTensor(kind, shape, value.ndim, ctypes.c_size_t(value.nbytes))
        at = self._c.TF_TensorData(ctypes.c_void_p(tensor))
        ctypes.memmove(at, value.ctypes.data, value.nbytes)
        return tensor

    def _array(self, tensor: int) -> np.ndarray:
        pointer = ctypes.c_void_p(tensor)
        dimensions = range(self._c.TF_NumDims(pointer))
        shape = tuple(self._c.TF_Dim(pointer, n) for n in dimensions)
        kind = np.dtype(tf.as_dtype(self._c.TF_TensorType(pointer)).as_numpy_dtype)
        size = int(np.prod(shape)) * kind.itemsize
        text = ctypes.string_at(self._c.TF_TensorData(pointer), size)
        return np.frombuffer(text, kind).reshape(shape)

    def _check(self) -> None:
        if self._c.TF_GetCode(self._status) != _OK:
            raise LoadError(self._c.TF_Message(self._status).decode())
