"""Records of networks that inherit their weights from a supernet: no training, a second each.

A network of a trained supernet is worth what it scores with its part of the shared weights, rounded
to its bits, after the statistics of its normalisations were estimated on a few hundred images
(SGNAS, sections 3.1 and 5.2). Such a score stands where a training's would: the encoder learns from
it and searches ask for it, and it is stored like any other record.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np

from tfgen.evidence.record import Record, RecordStore
from tfgen.nets.supernet import Supernet
from tfgen.space.architecture import Architecture
from tfgen.space.lowering import lower
from tfgen.training import supernet_training
from tfgen.training.datasets import Split
from tfgen.training.tasks import Task

_SEED = 0  # nothing is random


def fingerprint(supernet: Supernet, examples: Split, calibration: np.ndarray) -> str:
    """Twelve hex digits that stand for a recipe: of the weights and of the images."""
    digest = hashlib.sha256(f"{len(examples)}".encode())
    digest.update(np.ascontiguousarray(calibration).data)
    _add_weights(digest, supernet)
    return digest.hexdigest()[:12]


def of_weights(supernet: Supernet) -> str:
    """Twelve hex digits that stand for what trainings start from: the weights alone."""
    digest = hashlib.sha256()
    _add_weights(digest, supernet)
    return digest.hexdigest()[:12]


def _add_weights(digest: hashlib._Hash, supernet: Supernet) -> None:
    for name, variable in sorted(supernet.variables.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(variable.numpy()).data)


class Inheritance:
    """Scores networks with inherited weights, stores the records, and counts the evaluations.

    An `Evaluate` as `evidence.collect.Evaluator` is.

    Attributes:
      trainings: how many were asked for; what "equal trainings" is read from.
      recipe: what its records have in a recipe's place.
      known: by architecture, the record of each that was scored, stored ones in the store's order.
    """

    def __init__(
        self,
        store: RecordStore,
        supernet: Supernet,
        dataset_fingerprint: str,
        task: Task,
        examples: Split,
        calibration: np.ndarray,
    ):
        """Reads what is stored already.

        Args:
          store: of the supernet's space.
          supernet: trained.
          dataset_fingerprint: of the data that examples are of.
          task: whose metric is the score.
          examples: of the search split; the more, the longer an evaluation takes.
          calibration: images of the training split, moved as in training
            [images, height, width, channels].
        """
        self._store = store
        self._supernet = supernet
        self._dataset = dataset_fingerprint
        self._task = task
        self._examples = examples
        self._calibration = calibration
        self.recipe = fingerprint(supernet, examples, calibration)
        self.trainings = 0
        stored = store.read(dataset_fingerprint, self.recipe)
        self.known = {record.architecture: record for record in stored}

    def __call__(self, architectures: Sequence[Architecture], seed: int = _SEED) -> list[Record]:
        """Scores each architecture, once whatever the seed; records in the given order."""
        del seed
        self.trainings += len(architectures)
        for architecture in dict.fromkeys(architectures):
            if architecture not in self.known:
                record = self._scored(architecture)
                self._store.append([record])
                self.known[architecture] = record
        return [self.known[architecture] for architecture in architectures]

    def _scored(self, architecture: Architecture) -> Record:
        begin = time.perf_counter()
        metric = supernet_training.score(
            self._supernet,
            lower(self._supernet.space, architecture),
            self._task,
            self._examples,
            self._calibration,
        )
        seconds = time.perf_counter() - begin
        return Record(architecture, self._dataset, self.recipe, _SEED, metric, seconds)
