"""What a delivered file costs and scores, read from the file itself and from nothing else."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from tfgen import errors
from tfgen.cost import cost_model
from tfgen.deployment import benchmark, tflite_file
from tfgen.space.layers import LayerSpec, slots_of
from tfgen.training.datasets import Dataset

_OPS = {"FULLY_CONNECTED": "dense"}


def costs(path: pathlib.Path, bits: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Every counted metric, recomputed from the shapes of the file's unpacked tensors.

    Args:
      path: the .tflite.
      bits: (weight bits, activation bits) by layer, as the recipe says.

    Raises:
      CorruptFileError: the file is damaged, or holds other layers than the recipe.
    """
    layers = []
    for op in tflite_file.read(path).ops:
        if op.name not in bits or op.op not in _OPS:
            raise errors.CorruptFileError(f"{path}: {op.op} {op.name!r} is not in the recipe")
        outputs, inputs = op.levels.shape
        if op.bias_elements != outputs or op.output_elements != outputs:
            raise errors.CorruptFileError(f"{path}: {op.name!r} has a bias or output of odd size")
        weight_bits, activation_bits = bits[op.name]
        layers.append(
            LayerSpec(
                op.name, _OPS[op.op], 1, 1, inputs, outputs, (1, 1), (1, 1),
                weight_bits, activation_bits, "linear",
            )
        )  # fmt: skip
    if {layer.name for layer in layers} != set(bits):
        raise errors.CorruptFileError(f"{path}: holds other layers than its recipe")
    return {m: float(v[0]) for m, v in cost_model.count(slots_of(layers)).items()}


def score(path: pathlib.Path, dataset: Dataset) -> float:
    """The task's metric of the file's own answers on the test split."""
    return dataset.task.score(dataset.test.y, benchmark.predict(path, dataset.test.x))
