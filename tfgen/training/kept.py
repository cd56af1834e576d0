"""A training that is kept after each whole epoch, and gone on from."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from tfgen import errors, workdir

CHECKPOINT = "checkpoint.npz"


class Training(Protocol):
    """What can be stopped after any epoch."""

    @property
    def epoch(self) -> int:
        """How many are done."""
        ...

    def run_epoch(self) -> float:
        """Trains for one epoch; returns its mean loss."""
        ...

    def state(self) -> Mapping[str, np.ndarray]:
        """Everything that `restore` needs."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on where `state` was taken; raises CorruptFileError for another's."""
        ...


def check_shapes(training: Training, state: Mapping[str, np.ndarray], message: str) -> None:
    """Raises CorruptFileError with this message unless the state has the training's own arrays."""
    shapes = {name: value.shape for name, value in state.items()}
    if shapes != {name: value.shape for name, value in training.state().items()}:
        raise errors.CorruptFileError(message)


@dataclasses.dataclass(frozen=True)
class Kept:
    """A folder that has a training after its last whole epoch.

    Attributes:
      folder: which; what it holds of another training is replaced.
      config: what tells the training from others, as JSON can.
      seed: its seed.
      data: name of the data set -> its fingerprint.
    """

    folder: pathlib.Path
    config: Mapping[str, Any]
    seed: int
    data: Mapping[str, str]

    def restore(self, training: Training) -> None:
        """Lets the training go on from what is there, if it is its own.

        Raises:
          CorruptFileError: it is damaged.
        """
        workdir.recover(self.folder)
        if not (self.folder / workdir.MANIFEST).is_file():
            return
        known = workdir.read_manifest(self.folder)
        if workdir.is_made_by(known, config=self.config, seed=self.seed, data=self.data):
            training.restore(workdir.read_arrays(self.folder / CHECKPOINT))

    def save(self, training: Training) -> None:
        """Writes the training as it is."""
        with workdir.writing_folder(self.folder) as fresh:
            workdir.write_arrays(fresh / CHECKPOINT, training.state())
            workdir.write_manifest(
                fresh, config=self.config, seed=self.seed, data=self.data, parents={}
            )


def epochs(training: Training, last: int, kept: Kept | None) -> Iterator[float]:
    """Trains up to epoch `last`, and yields the mean loss of each epoch.

    Args:
      training: whatever was done of it before.
      last: how many epochs are done at the end.
      kept: where each whole epoch is kept; None keeps nothing.

    Raises:
      TrainingFailedError: it diverged.
    """
    while training.epoch < last:
        loss = training.run_epoch()
        if not np.isfinite(loss):
            raise errors.TrainingFailedError(f"epoch {training.epoch} diverged")
        if kept is not None:
            kept.save(training)
        yield loss
