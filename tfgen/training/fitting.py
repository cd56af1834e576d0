"""Whether a network fits a data set: what every trainer asks before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from tfgen import errors
from tfgen.space.layers import LayerSpec, Size, check_network
from tfgen.training import boxes
from tfgen.training.datasets import Dataset


def check(layers: Sequence[LayerSpec], dataset: Dataset, who: str = "the network") -> None:
    """Raises UsageError unless the layers are a network for the data set's inputs and targets."""
    try:
        check_network(layers, dataset.train.x.shape[1:])
    except ValueError as error:
        raise errors.UsageError(f"{who} does not fit data set {dataset.name!r}: {error}") from None
    last, y, task = layers[-1], dataset.train.y, dataset.task.name
    exact = task == "regression"
    outputs = y.shape[1] if exact else int(y.max()) + 1
    size = tuple(y.shape[1:]) if task == "segmentation" else ()
    fits, where = last.out_size == size, _at_each(size)
    if task == "detection":
        outputs = int(y[..., 0].max()) + 1 + boxes.PLACE
        fits, where = bool(last.out_size), " at each cell of a grid"
    enough = last.out_channels == outputs if exact else last.out_channels >= outputs
    if not (fits and enough):
        raise errors.UsageError(
            f"{who} has {last.out_channels} outputs{_at_each(last.out_size)}; data set "
            f"{dataset.name!r} needs {'' if exact else 'at least '}{outputs} outputs{where}"
        )


def _at_each(size: Size) -> str:
    return f" at each of {size[0]}x{size[1]} pixels" if size else ""
