"""Drawing at random: what any generator and any search must beat."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tfgen import seeds
from tfgen.cost.budget import Budget
from tfgen.generators.base import Evidence, Found, Proposals
from tfgen.generators.searching import Run
from tfgen.space.search_space import SearchSpace


@dataclasses.dataclass(frozen=True)
class RandomConfig:
    """Random drawing has nothing to set."""


class RandomGenerator:
    """Monte-Carlo draws of the space, whatever the budget."""

    def __init__(self, space: SearchSpace):
        self._space = space

    def propose(self, budgets: Sequence[Budget], count: int, seed: int) -> list[Proposals]:
        choices = self._space.sample(count, seeds.stream(seed, "random"))
        return [Proposals(choices) for _ in budgets]

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
