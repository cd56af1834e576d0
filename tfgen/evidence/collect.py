"""Sample -> train -> append: makes records, resumes where it was stopped.

A training that failed is stored as that: it is done, has no metric, and nothing learns from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from tfgen import errors, seeds
from tfgen.evidence.record import Record, RecordStore
from tfgen.space.architecture import Architecture
from tfgen.space.lowering import lower
from tfgen.space.search_space import SearchSpace
from tfgen.training import population
from tfgen.training.datasets import Dataset
from tfgen.training.recipe import Recipe

_PORTION = 8192  # networks whose layers are in memory at a time


@dataclasses.dataclass(frozen=True)
class Training:
    """One training to do: an architecture and the seed of its weights and batches."""

    architecture: Architecture
    seed: int


def plan(space: SearchSpace, count: int, seed: int) -> list[Training]:
    """Monte-Carlo sampling of the space: the first `count` trainings of this seed.

    A longer plan starts with the shorter one, so a collection can be extended.
    """
    if count < 1:
        raise errors.UsageError(f"count must be at least 1, got {count}")
    trainings: list[Training] = []
    chunk = 256
    while len(trainings) < count:
        random = seeds.stream(seed, "collect", len(trainings))
        trainings += [
            Training(space.architecture(row), seeds.derive(seed, "training", len(trainings) + i))
            for i, row in enumerate(space.sample(chunk, random))
        ]
    return trainings[:count]


def collect(
    store: RecordStore, trainings: Sequence[Training], workers: population.Trainer
) -> Iterator[Record]:
    """Trains what the store does not hold yet; yields each record when it is safely stored.

    Killed at any moment and started again with the same arguments, it ends with the same records.
    """
    return train(store, pending(store, trainings, workers.dataset, workers.recipe), workers)


def train(
    store: RecordStore, trainings: Sequence[Training], workers: population.Trainer
) -> Iterator[Record]:
    """Trains all of these; yields each record when it is safely stored.

    Raises:
      TfgenError: too many trainings failed in a row; records and failures so far are stored.
    """
    dataset, recipe = workers.dataset.fingerprint, workers.recipe.fingerprint
    for first in range(0, len(trainings), _PORTION):
        portion = trainings[first : first + _PORTION]
        members = [population.Member(lower(store.space, t.architecture), t.seed) for t in portion]
        for outcome in workers.train(members):
            training = portion[outcome.index]
            record = Record(
                training.architecture,
                dataset,
                recipe,
                training.seed,
                outcome.metric,
                outcome.seconds,
                failure=outcome.failure,
            )
            store.append([record])
            yield record


def pending(
    store: RecordStore,
    trainings: Sequence[Training],
    dataset: Dataset,
    recipe: Recipe,
    *,
    retry_failed: bool = False,
) -> list[Training]:
    """The trainings that the store has no record of, in order, each once.

    Args:
      store: of records and failures.
      trainings: that are wanted.
      dataset: what they are trained on.
      recipe: how.
      retry_failed: whether those that failed are missing too.
    """
    known = store.keys(failed=not retry_failed)
    missing = {}
    for training in trainings:
        key = Record(
            training.architecture, dataset.fingerprint, recipe.fingerprint, training.seed, 0.0, 0.0
        ).key
        if key not in known:
            missing[key] = training
    return list(missing.values())


class Evaluator:
    """Trains architectures on demand, stores the records, and counts the trainings.

    Attributes:
      trainings: how many were asked for; what "equal trainings" is read from.
    """

    def __init__(self, store: RecordStore, workers: population.Trainer):
        self._store = store
        self._workers = workers
        of = workers.dataset.fingerprint, workers.recipe.fingerprint
        stored = [*store.read(*of), *store.failed(*of)]
        self._known = {(r.architecture, r.seed): r for r in stored}
        self.trainings = 0

    def __call__(self, architectures: Sequence[Architecture], seed: int) -> list[Record]:
        """Trains each architecture once with a seed of its own; records in the given order.

        One that failed has the metric 0 and says so, see `Record.failure`.

        The n-th training of an evaluator has the same seed in every run, so that what is stored is
        not trained again.
        """
        trainings = [
            Training(a, seeds.derive(seed, "evaluate", self.trainings + i))
            for i, a in enumerate(architectures)
        ]
        self.trainings += len(trainings)
        missing = [t for t in trainings if (t.architecture, t.seed) not in self._known]
        for record in train(self._store, missing, self._workers):
            self._known[record.architecture, record.seed] = record
        return [self._known[t.architecture, t.seed] for t in trainings]
