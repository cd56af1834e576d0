"""Drawing at random: what any generator and any search must beat."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfgen import seeds
from tfgen.cost.budget import Budget
from tfgen.generators.base import Asked, Count, Drawing, Draws, Evidence, Found
from tfgen.generators.searching import Run
from tfgen.space.search_space import SearchSpace


@dataclasses.dataclass(frozen=True)
class RandomConfig:
    """Random drawing has nothing to set."""


class RandomGenerator(Drawing):
    """Monte-Carlo draws of the space, whatever the budget."""

    def __init__(self, space: SearchSpace):
        super().__init__(space)
        self._space = space

    def draws(self, xp: Any, asked: Asked, count: int, costs: Count) -> Draws:
        del costs
        decisions = self._space.decisions
        key = seeds.fork(xp, asked.key, "random")
        uniform = seeds.counter_uniform(xp, key, count, len(decisions))
        columns = []
        for number, decision in enumerate(decisions):
            passed = np.cumsum(decision.probabilities)[:-1] < uniform[..., number, None]
            columns.append(xp.sum(xp.astype(passed, xp.int64), axis=-1))
        return Draws(self._space.settled(xp, xp.stack(columns, axis=-1)))

    def state(self) -> Mapping[str, np.ndarray]:
        return {}


class Random:
    """The baseline that any generator must beat: the same selection on random draws."""

    name = "random"
    needs: frozenset[str] = frozenset()
    config = RandomConfig

    def fit(self, evidence: Evidence, config: RandomConfig, seed: int) -> RandomGenerator:
        del config, seed
        return RandomGenerator(evidence.space)

    def restore(self, space: SearchSpace, state: Mapping[str, np.ndarray]) -> RandomGenerator:
        del state
        return RandomGenerator(space)


class RandomSearch:
    """Trains Monte-Carlo draws of the space that keep the limits; draws over a limit cost nothing.

    The first n trainings of a longer search are those of a search of n.
    """

    name = "random_search"
    needs = frozenset({"evaluate"})
    config = RandomConfig

    def search(
        self,
        evidence: Evidence,
        budget: Budget,
        max_evaluations: int,
        config: RandomConfig,
        seed: int,
    ) -> Found:
        del config
        run = Run(self.name, evidence, budget, max_evaluations, seed)
        run.train(run.draw(max_evaluations))
        return run.found()
