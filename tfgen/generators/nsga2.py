"""NSGA-II: the front of performance against the limited costs, by pymoo."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfgen import seeds
from tfgen.cost.budget import Budget
from tfgen.generators.base import Evidence, Found
from tfgen.generators.searching import Run, crossover, extra, population_size

_MAX_SEED = 2**31
_WORST = 1e9
_FRONT = "storage_kb"  # the front of a budget without limits
_MAX_IDLE = 4  # generations without a new network within the limits, before some are drawn
_MATINGS = 8  # to fill a generation with children that differ from all alive


@dataclasses.dataclass(frozen=True)
class Nsga2Config:
    """How NSGA-II runs.

    Attributes:
      population: of every generation; smaller where trainings are few.
    """

    population: int = 24

    def __post_init__(self) -> None:
        if self.population < 1:
            raise ValueError(f"population must be at least 1: {self}")


class Nsga2:
    """Deb et al. 2002, by pymoo's ask and tell.

    Objectives are the metric and each limited cost (storage where none is), so that the survivors
    are the front below the limits, of which the best metric is the answer.
    Constraints are the limits: pymoo ranks networks over one below all others, by their excess.
    They are not trained. A network that comes up again keeps the metric that it has. Where several
    generations bring nothing new, draws of the space take their place.
    """

    name = "nsga2"
    needs = frozenset({"evaluate"})
    config = Nsga2Config

    def search(
        self,
        evidence: Evidence,
        budget: Budget,
        max_evaluations: int,
        config: Nsga2Config,
        seed: int,
    ) -> Found:
        run = Run(self.name, evidence, budget, max_evaluations, seed)
        size = population_size(config.population, max_evaluations)
        metrics = list(budget.limits) or [m for m in (_FRONT,) if m in evidence.cost_model.metrics]
        algorithm = _algorithm(run, size, len(metrics), seed)
        known: dict[bytes, float] = {}
        idle = 0
        while run.remaining:
            asked = algorithm.ask()
            if asked is None or idle >= _MAX_IDLE:
                asked = extra("pymoo.core.population").Population.new(X=run.draw(size))
            if not len(asked):
                break  # the space is exhausted
            choices = asked.get("X").astype(np.int64)
            new = run.fresh(choices)[: run.remaining]
            known.update(zip((row.tobytes() for row in new), run.train(new), strict=True))
            idle = 0 if len(new) else idle + 1
            # Over a limit no metric counts: pymoo compares the excess alone.
            told = [max(known.get(row.tobytes(), -_WORST), -_WORST) for row in choices]
            costs = evidence.cost_model.costs(choices)
            objectives = [-np.array(told), *(costs[m] for m in metrics)]
            asked.set("F", np.stack(objectives, axis=1), "G", run.shares(choices) - 1.0)
            asked.apply(lambda individual: individual.evaluated.update(("F", "G", "H")))
            algorithm.tell(infills=asked)
        return run.found()


def _algorithm(run: Run, size: int, costs: int, seed: int) -> Any:
    """pymoo's NSGA-II over canonical choices, with the other searches' mutation and crossover."""
    nsga2 = extra("pymoo.algorithms.moo.nsga2")
    crossovers = extra("pymoo.core.crossover")
    mutations = extra("pymoo.core.mutation")
    problems = extra("pymoo.core.problem")
    terminations = extra("pymoo.core.termination")
    space = run.space

    class UniformCrossover(crossovers.Crossover):
        def __init__(self) -> None:
            super().__init__(n_parents=2, n_offsprings=1)

        def _do(self, problem: Any, X: Any, *args: Any, random_state: Any, **kwargs: Any) -> Any:
            return crossover(space, X[0], X[1], random_state)[None]

    class Redraw(mutations.Mutation):
        def _do(self, problem: Any, X: Any, *args: Any, random_state: Any, **kwargs: Any) -> Any:
            return space.mutate(X, random_state)

    counts = np.array([len(d.values) for d in space.decisions])
    problem = problems.Problem(
        n_var=len(counts), n_obj=1 + costs, n_ieq_constr=run.limits, xl=0, xu=counts - 1, vtype=int
    )
    algorithm = nsga2.NSGA2(
        pop_size=size,
        sampling=run.draw(size),
        crossover=UniformCrossover(),
        mutation=Redraw(),
    )
    algorithm.mating.n_max_iterations = _MATINGS
    return algorithm.setup(
        problem,
        seed=seeds.derive(seed, "pymoo") % _MAX_SEED,
        termination=terminations.NoTermination(),
    )
