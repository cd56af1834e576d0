"""What a delivered file costs and scores, read from the file and the recipe beside it."""

from __future__ import annotations

import pathlib

import numpy as np

from tfgen import errors, workdir
from tfgen.cost import cost_model
from tfgen.deployment import benchmark, tflite_file
from tfgen.space.layers import LayerSpec, slots_of
from tfgen.training.datasets import Dataset, Split

_OPS = {"FULLY_CONNECTED": "dense"}


def costs(path: pathlib.Path, recipe: pathlib.Path) -> dict[str, float]:
    """Every counted metric, recomputed from the shapes of the file's unpacked tensors.

    Bits are the recipe's, after a look at the stored levels: none may need more.

    Args:
      path: the .tflite.
      recipe: the recipe.json that was delivered with it.

    Raises:
      CorruptFileError: the file is damaged, or is not what the recipe says.
    """
    promised = {
        layer.name: layer for layer in map(LayerSpec.from_json, workdir.read_json(recipe)["layers"])
    }
    layers = []
    for op in tflite_file.read(path).ops:
        layer = promised.get(op.name)
        if layer is None or _OPS.get(op.op) != layer.op:
            raise errors.CorruptFileError(f"{path}: {op.op} {op.name!r} is not in {recipe.name}")
        outputs, inputs = op.levels.shape
        if op.bias_elements != outputs or op.output_elements != outputs:
            raise errors.CorruptFileError(f"{path}: {op.name!r} has a bias or output of odd size")
        if np.abs(op.levels).max() >= 2 ** (layer.weight_bits - 1):
            raise errors.CorruptFileError(
                f"{path}: {op.name!r} stores weights of more than {layer.weight_bits} bits"
            )
        bits = (layer.weight_bits, layer.activation_bits)
        size = (1, 1)
        layers.append(
            LayerSpec(op.name, layer.op, 1, 1, inputs, outputs, size, size, *bits, layer.activation)
        )
    if {layer.name for layer in layers} != set(promised):
        raise errors.CorruptFileError(f"{path}: lacks layers of {recipe.name}")
    return {m: float(v[0]) for m, v in cost_model.count(slots_of(layers)).items()}


def score(path: pathlib.Path, dataset: Dataset, split: Split) -> float:
    """The task's metric of the file's own answers on a split."""
    return dataset.task.score(split.y, benchmark.predict(path, split.x))
