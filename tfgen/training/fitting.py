"""Whether a network fits a data set: what every trainer asks before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from tfgen import errors
from tfgen.space.layers import LayerSpec, Size, check_network
from tfgen.training.datasets import Dataset


def check(layers: Sequence[LayerSpec], dataset: Dataset, who: str = "the network") -> None:
    """Raises UsageError unless the layers are a network for the data set's inputs and targets."""
    try:
        check_network(layers, dataset.train.x.shape[1:])
    except ValueError as error:
        raise errors.UsageError(f"{who} does not fit data set {dataset.name!r}: {error}") from None
    last, y = layers[-1], dataset.train.y
    exact = dataset.task.name == "regression"
    outputs = y.shape[1] if exact else int(y.max()) + 1
    size = tuple(y.shape[1:]) if dataset.task.name == "segmentation" else ()
    enough = last.out_channels == outputs if exact else last.out_channels >= outputs
    if last.out_size != size or not enough:
        needed = f"{'' if exact else 'at least '}{outputs}"
        raise errors.UsageError(
            f"{who} has {_told(last.out_channels, last.out_size)}; data set {dataset.name!r} needs "
            f"{_told(needed, size)}"
        )


def _told(outputs: int | str, size: Size) -> str:
    return f"{outputs} outputs" + (f" at each of {size[0]}x{size[1]} pixels" if size else "")
