"""Keras models of others, read in a process of their own into a graph and arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfgen import child_process, errors, workdir
from tfgen.nets import _keras_child

_SUFFIXES = (".keras", ".h5", ".hdf5")


@dataclasses.dataclass(frozen=True)
class Node:
    """One layer of a model.

    Attributes:
      name: unique; a layer of a nested model has that one's name before it.
      kind: Keras's class.
      config: as Keras tells it, plain values.
      inputs: names of the nodes that it reads, INPUT_NODE for the model's input.
      arrays: its weights in Keras's order.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    inputs: tuple[str, ...]
    arrays: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class KerasGraph:
    """A model.

    Attributes:
      input_shape: of one example.
      nodes: in the order in which they run.
      output: name of the node that is the output.
    """

    input_shape: tuple[int, ...]
    nodes: tuple[Node, ...]
    output: str

    @property
    def digest(self) -> str:
        """sha256 of all that it computes by, in hex."""
        found = hashlib.sha256(f"{self.input_shape} {self.output}".encode())
        for node in self.nodes:
            found.update(f"{node.name} {node.kind} {node.config} {node.inputs}".encode())
            for array in node.arrays:
                found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


def file_of(source: str | os.PathLike[str]) -> pathlib.Path:
    """The file of a source as `read` takes it; raises what `read` does where it is none."""
    text = os.fspath(source)
    path = text
    if ".py:" in text:
        path, _, _ = text.rpartition(":")
    elif not text.endswith(_SUFFIXES):
        raise errors.UsageError(
            f"{text}: give a {', '.join(_SUFFIXES)} file, or FILE.py:FUNCTION that returns a model"
        )
    file = workdir.user_path(path)
    if file.is_dir():
        raise errors.CorruptFileError(f"{file}: is a folder, no file with a model")
    if not file.is_file():
        raise errors.CorruptFileError(f"{file}: file is missing")
    return file


def read(
    source: str | os.PathLike[str],
    *,
    timeout_seconds: float = child_process.TIMEOUT_SECONDS,
    memory_bytes: int = 2 * child_process.MEMORY_BYTES,
) -> KerasGraph:
    """Reads a model.

    Args:
      source: a .keras or .h5 file of Keras 2 or 3; or FILE.py:FUNCTION, a function without
        arguments that returns a model, which runs with the rights of the user.
      timeout_seconds: for all of it.
      memory_bytes: address space that the reading process may take.

    Raises:
      UsageError: the source is neither.
      CorruptFileError: the file is missing, or no model that can be read; says why.
      TfgenError: it took too long.
    """
    file = file_of(source)
    factory = os.fspath(source).rpartition(":")[2] if file.suffix == ".py" else None
    with tempfile.TemporaryDirectory(prefix="tfgen-") as name:
        folder = pathlib.Path(name)
        ended = child_process.run(
            _keras_child.__name__,
            folder,
            {"model": str(file), "factory": factory},
            timeout_seconds=timeout_seconds,
            memory_bytes=memory_bytes,
            threads=os.cpu_count() or 1,
        )
        if ended.code is None:
            raise errors.TfgenError(f"{file}: was not read within {timeout_seconds:g} s")
        if ended.code or not (folder / _keras_child.GRAPH).is_file():
            reason = ended.signal or ended.last_words
            raise errors.CorruptFileError(f"{file}: reading it failed ({reason})")
        answer = json.loads((folder / _keras_child.GRAPH).read_text())
        if "error" in answer:
            raise errors.CorruptFileError(f"{file}: {answer['error']}")
        with np.load(folder / _keras_child.ARRAYS, allow_pickle=False) as arrays:
            nodes = tuple(
                Node(
                    node["name"],
                    node["class"],
                    node["config"],
                    tuple(node["inputs"]),
                    tuple(arrays[f"{number}_{n}"] for n in range(node["arrays"])),
                )
                for number, node in enumerate(answer["nodes"])
            )
        return KerasGraph(tuple(answer["input_shape"]), nodes, answer["output"])
