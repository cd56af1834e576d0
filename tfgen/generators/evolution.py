"""Evolutionary searches: the genetic algorithm of the NAGAN paper, and regularized evolution."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfgen.cost.budget import Budget
from tfgen.generators.base import Evidence, Found
from tfgen.generators.searching import Floats, Run, crossover, population_size
from tfgen.space.search_space import Choices

_BREEDING_ROUNDS = 32  # before draws of the space fill up a generation
_LEAST_HEADROOM = 1e-3  # a network exactly at its limit keeps it, and has a finite barrier


@dataclasses.dataclass(frozen=True)
class GeneticConfig:
    """How the genetic algorithm runs.

    Attributes:
      population: networks that survive a generation, and children born in it.
      tournament: networks of which the fittest becomes a parent.
      crossover_rate: share of children of two parents.
      barrier: weight of the barrier in the first generation, as a share of the range of the first
        generation's metrics.
      barrier_decay: factor of that weight from one generation to the next.
    """

    population: int = 24
    tournament: int = 3
    crossover_rate: float = 0.7
    barrier: float = 0.02
    barrier_decay: float = 0.8

    def __post_init__(self) -> None:
        if min(self.population, self.tournament) < 1:
            raise ValueError(f"population and tournament must be at least 1: {self}")
        if not 0 <= self.crossover_rate <= 1:
            raise ValueError(f"crossover_rate must lie in 0..1: {self}")
        if not (self.barrier >= 0 and 0 < self.barrier_decay <= 1):
            raise ValueError(f"barrier must be at least 0, its decay in 0..1: {self}")


class Genetic:
    """Genetic algorithm whose fitness holds the constraints by the interior penalty method.

    NAGAN paper, section 5.2: "a GA in which the algorithm attempts to maximize the accuracy ...
    The constraint is incorporated into the fitness of each design point using the interior penalty
    method"; it gives no formula. Ours is the logarithmic barrier (Fiacco and McCormick, Nonlinear
    Programming: Sequential Unconstrained Minimization Techniques, 1968). In generation g

        fitness(x) = metric(x) + mu_g * sum over limits of log(1 - cost(x) / limit)
        mu_g = barrier * (range of the first generation's metrics) * barrier_decay**g

    and minus infinity over a limit. As that is known before training, such children are bred again
    instead of trained. Survivors are the fittest of parents and children together.
    """

    name = "genetic"
    needs = frozenset({"evaluate"})
    config = GeneticConfig

    def search(
        self,
        evidence: Evidence,
        budget: Budget,
        max_evaluations: int,
        config: GeneticConfig,
        seed: int,
    ) -> Found:
        run = Run(self.name, evidence, budget, max_evaluations, seed)
        size = population_size(config.population, max_evaluations)
        population = run.draw(size)
        metrics = run.train(population)
        finite = metrics[np.isfinite(metrics)]
        weight = config.barrier * float(np.ptp(finite)) if len(finite) else 0.0
        while run.remaining:
            fitness = metrics + weight * log_barrier(run, population)
            children = _brood(run, population, fitness, min(size, run.remaining), config)
            if not len(children):
                break  # the space is exhausted
            metrics = np.concatenate([metrics, run.train(children)])
            population = np.concatenate([population, children])
            weight *= config.barrier_decay
            fitness = metrics + weight * log_barrier(run, population)
            kept = np.argsort(-fitness, kind="stable")[:size]
            population, metrics = population[kept], metrics[kept]
        return run.found()


def log_barrier(run: Run, choices: Choices) -> Floats:
    """Sum over limits of log(1 - cost / limit), minus infinity over a limit [architectures]."""
    shares = run.shares(choices)
    headroom = np.where(shares <= 1.0, np.maximum(1.0 - shares, _LEAST_HEADROOM), 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(headroom).sum(axis=1))


def _brood(
    run: Run, population: Choices, fitness: Floats, count: int, config: GeneticConfig
) -> Choices:
    """Children within the limits: of two parents or one, mutated [at most count, decisions]."""
    children: Choices = population[:0]
    for _ in range(_BREEDING_ROUNDS):
        first = population[_tournament(run, fitness, 2 * count, config.tournament)]
        second = population[_tournament(run, fitness, 2 * count, config.tournament)]
        both = run.random.random(2 * count) < config.crossover_rate
        second = np.where(both[:, None], second, first)
        crossed = crossover(run.space, first, second, run.random)
        children = np.concatenate(
            [children, run.fresh(run.space.mutate(crossed, run.random), children)]
        )
        if len(children) >= count:
            return children[:count]
    return np.concatenate([children, run.draw(count - len(children), children)])


def _tournament(run: Run, fitness: Floats, count: int, size: int) -> np.ndarray:
    """Rows of winners: each the fittest of `size` rows drawn at random [count]."""
    rivals = run.random.integers(len(fitness), size=(count, size))
    return rivals[np.arange(count), fitness[rivals].argmax(axis=1)]


@dataclasses.dataclass(frozen=True)
class RegularizedEvolutionConfig:
    """How regularized evolution runs.

    Attributes:
      population: networks alive.
      sample: networks of which the best becomes a parent.
      batch: children trained at a time, all of the population before them.
    """

    population: int = 32
    sample: int = 10
    batch: int = 8

    def __post_init__(self) -> None:
        if min(self.population, self.sample, self.batch) < 1:
            raise ValueError(f"population, sample and batch must be at least 1: {self}")


class RegularizedEvolution:
    """Real et al. 2019, Regularized Evolution for Image Classifier Architecture Search, alg. 1.

    A parent is the best of a sample of the population; its child is a mutant of it; each child
    takes the place of the oldest network. As with the paper's workers, several children are trained
    at a time. Children over a limit are never trained: another sample is drawn for another child.
    The paper's population of 100 and sample of 25 were for 20,000 trainings, ours are for hundreds.
    """

    name = "regularized_evolution"
    needs = frozenset({"evaluate"})
    config = RegularizedEvolutionConfig

    def search(
        self,
        evidence: Evidence,
        budget: Budget,
        max_evaluations: int,
        config: RegularizedEvolutionConfig,
        seed: int,
    ) -> Found:
        run = Run(self.name, evidence, budget, max_evaluations, seed)
        size = population_size(config.population, max_evaluations)
        run.train(run.draw(size))
        while run.remaining:
            # The youngest are the last that were trained: the oldest die by being left out.
            population, metrics = run.choices[-size:], run.metrics[-size:]
            count = min(config.batch, size, run.remaining)
            children: Choices = population[:0]
            for _ in range(_BREEDING_ROUNDS):
                parents = population[_sampled_best(run, metrics, 2 * count, config.sample)]
                mutants = run.space.mutate(parents, run.random)
                children = np.concatenate([children, run.fresh(mutants, children)])
                if len(children) >= count:
                    break
            children = children[:count]
            if len(children) < count:
                filling = run.draw(count - len(children), children)
                children = np.concatenate([children, filling])
            if not len(children):
                break  # the space is exhausted
            run.train(children)
        return run.found()


def _sampled_best(run: Run, metrics: Floats, count: int, size: int) -> np.ndarray:
    """Rows of the best of samples without replacement, as the paper draws them [count]."""
    order = run.random.random((count, len(metrics))).argsort(axis=1)
    samples = order[:, : min(size, len(metrics))]
    return samples[np.arange(count), metrics[samples].argmax(axis=1)]
