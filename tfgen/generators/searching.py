"""What all searches share: free costs before every training, and a count of the trainings left.

Costs follow from the architecture, so whether a network keeps a budget's limits is known before it
is trained. No search here spends a training on a network over a limit, nor trains a network twice:
each draws again until it has enough candidates, within bounds. Searches differ in what they draw.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import errors, seeds
from tfgen.cost.budget import Budget, rounded_up
from tfgen.cost.cost_model import CONFIDENCE, CostModel
from tfgen.evidence.record import Record
from tfgen.generators.base import Evidence, Found
from tfgen.space.search_space import Choices, SearchSpace

Floats = npt.NDArray[np.float64]

_GENERATIONS = 6  # that any search has at least: fewer leave too little to it
_CHUNK = 2048  # architectures whose costs are counted at once
_DRAW_ROUNDS = 64  # chunks drawn for one request before known networks are mutated instead
_WALK_ROUNDS = 64  # chunks of mutants for one request
_DESCENT_ROUNDS = 64  # of the search for a first network within the limits
_DESCENT_KEPT = 128  # networks nearest to the limits that are mutated in each of them


def extra(module: str) -> Any:
    """A module of the extra `baselines`; raises UsageError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise errors.UsageError(
            f"this search needs {module.partition('.')[0]} ({error}): pip install tfgen[baselines]"
        ) from error


def check_limits(cost_model: CostModel, budget: Budget) -> None:
    """Raises UsageError for a limit on a cost that is not known before a training."""
    strangers = [metric for metric in budget.limits if metric not in cost_model.metrics]
    if strangers:
        raise errors.UsageError(
            f"{strangers[0]} cannot be told before the file is built; searches of "
            f"{cost_model.space.name} may limit: {', '.join(cost_model.metrics)}"
        )


class Run:
    """One search under way.

    Attributes:
      space: what is searched.
      random: the search's own stream.
      choices: what was trained, in order [trained, decisions].
      metrics: what came of it; minus infinity for a training that diverged [trained].
      remaining: trainings that may still be made.
    """

    def __init__(
        self,
        name: str,
        evidence: Evidence,
        budget: Budget,
        max_evaluations: int,
        seed: int,
    ):
        """Finds a first network within the limits, so that what follows starts from one.

        Raises:
          UsageError: nothing can be trained, or a limit is on a metric that cannot be counted.
          InfeasibleBudgetError: no such network was found.
        """
        evidence.check(name, frozenset({"evaluate"}))
        if max_evaluations < 1:
            raise errors.UsageError(f"max_evaluations must be at least 1, got {max_evaluations}")
        check_limits(evidence.cost_model, budget)
        self.space = evidence.space
        self.random = seeds.stream(seed, name)
        self.choices: Choices = np.zeros((0, len(self.space.decisions)), np.int64)
        self.metrics: Floats = np.zeros(0)
        self.remaining = max_evaluations
        self._evidence = evidence
        self._budget = budget
        self._seed = seeds.derive(seed, name, "trainings")
        self._records: list[Record] = []
        self._trained: set[bytes] = set()
        self._within = self._first_within()

    @property
    def limits(self) -> int:
        """How many costs are limited."""
        return len(self._budget.limits)

    # --- costs, which are free ------------------------------------------------------------------

    def shares(self, choices: Choices) -> Floats:
        """Each limited cost as a share of its limit [architectures, limits]."""
        if not self._budget.limits:
            return np.zeros((len(choices), 0))
        _, upper = self._evidence.cost_model.bounds(choices, CONFIDENCE)
        return np.stack([upper[m] / limit for m, limit in self._budget.limits.items()], axis=1)

    def within(self, choices: Choices) -> npt.NDArray[np.bool_]:
        """Which architectures keep every limit [architectures]."""
        return np.asarray((self.shares(choices) <= 1.0).all(axis=1))

    def fresh(self, choices: Choices, taken: Choices | None = None) -> Choices:
        """Those within the limits that are neither trained nor `taken`, each once, in order."""
        seen = set(self._trained)
        if taken is not None:
            seen.update(row.tobytes() for row in taken)
        rows = []
        for number, row in enumerate(choices):
            key = row.tobytes()
            if key not in seen:
                seen.add(key)
                rows.append(number)
        candidates = choices[rows]
        return candidates[self.within(candidates)] if len(candidates) else candidates

    def draw(self, count: int, taken: Choices | None = None) -> Choices:
        """Monte-Carlo draws of the space that are `fresh` [at most count, decisions].

        Where too few draws keep the limits, a random walk makes up for them: mutants of networks
        that do. Fewer than `count` where the space holds no more, or next to none. A space of few
        networks is gone through in random order.
        """
        found: Choices = self.choices[:0]
        for drawn in self._drawing():
            others = found if taken is None else np.concatenate([taken, found])
            found = np.concatenate([found, self.fresh(drawn, others)])
            if len(found) >= count:
                break
        return found[:count]

    def _drawing(self) -> Iterator[Choices]:
        if self.space.size() <= _CHUNK:
            everything = self.space.choices(list(self.space.enumerate()))
            yield self.random.permutation(everything)
            return
        for _ in range(_DRAW_ROUNDS):
            yield self.space.sample(_CHUNK, self.random)
        walkers = self._within
        for _ in range(_WALK_ROUNDS):
            chosen = self.random.integers(len(walkers), size=_CHUNK)
            children = self.space.mutate(walkers[chosen], self.random)
            yield children
            walkers = np.concatenate([children[self.within(children)], walkers])[:_CHUNK]

    def _first_within(self) -> Choices:
        """Some networks within the limits: draws, or what mutation of the nearest draws leads to.

        Raises:
          InfeasibleBudgetError: none was found; `nearest` admits the network of the least excess.
        """
        smallest = self.space.canonical(np.zeros(len(self.space.decisions), np.int64))
        near = np.concatenate([smallest, self.space.sample(_CHUNK, self.random)])
        for _ in range(_DESCENT_ROUNDS):
            excess = self.shares(near).max(axis=1, initial=0.0)
            order = np.argsort(excess, kind="stable")
            if excess[order[0]] <= 1.0:
                return near[excess <= 1.0]
            near = near[order[:_DESCENT_KEPT]]
            parents = np.repeat(near, _CHUNK // len(near), axis=0)
            near = np.unique(
                np.concatenate([near, self.space.mutate(parents, self.random)]), axis=0
            )
        shares = self.shares(near)
        least = shares[shares.max(axis=1).argmin()]
        limits = {
            metric: limit if share <= 1.0 else rounded_up(float(limit * share))
            for (metric, limit), share in zip(self._budget.limits.items(), least, strict=True)
        }
        raise errors.InfeasibleBudgetError(
            f"budget {self._budget}: no network of {self.space.name} was found within it",
            nearest=Budget(limits, self._budget.quality, self._budget.device),
        )

    # --- trainings, which are not ---------------------------------------------------------------

    def train(self, choices: Choices) -> Floats:
        """Trains each network, which must be `fresh` [networks]; at most `remaining` of them."""
        if len(choices) > self.remaining:
            raise ValueError(f"{len(choices)} trainings asked for, {self.remaining} are left")
        if not len(choices):
            return np.zeros(0)
        architectures = [self.space.architecture(row) for row in choices]
        assert self._evidence.evaluate is not None  # checked when built
        records = self._evidence.evaluate(architectures, self._seed)
        metrics = np.nan_to_num([r.metric for r in records], nan=-np.inf)
        self.remaining -= len(choices)
        self._records += records
        self._trained.update(row.tobytes() for row in choices)
        self.choices = np.concatenate([self.choices, choices])
        self.metrics = np.concatenate([self.metrics, metrics])
        return metrics

    def found(self) -> Found:
        """What the search returns."""
        return Found(tuple(self._records), tuple(map(bool, self.within(self.choices))))


def population_size(wanted: int, max_evaluations: int) -> int:
    """The size of a population, or of a first draw, that leaves most trainings to the search."""
    return min(wanted, max(max_evaluations // _GENERATIONS, 1))


def crossover(
    space: SearchSpace, first: Choices, second: Choices, random: np.random.Generator
) -> Choices:
    """Uniform crossover: each decision from either parent, if it is active in both.

    A decision that is active in one parent only comes from that one: the other has no value for it.

    Args:
      space: of the parents.
      first: canonical [children, decisions].
      second: canonical [children, decisions].
      random: which parent.
    """
    active_first, active_second = space.active(first), space.active(second)
    from_first = random.random(first.shape) < 0.5
    from_first = np.where(active_first == active_second, from_first, active_first)
    return space.canonical(np.where(from_first, first, second))
