"""Whether a network fits a data set: what every trainer asks before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from tfgen import errors
from tfgen.space.layers import LayerSpec, check_network
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
    if last.out_size or last.out_channels < outputs or (exact and last.out_channels != outputs):
        raise errors.UsageError(
            f"{who} has {last.out_channels} outputs; data set {dataset.name!r} needs "
            f"{'' if exact else 'at least '}{outputs}"
        )
