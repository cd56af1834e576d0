"""From draws to candidates: INAG's selecting stages, as functions over a pool. Knows no method.

A generator proposes; this code verifies. `select` draws, removes duplicates, counts costs, asks the
encoder, applies the stages and ranks, in a bounded number of rounds (NAGAN paper, section 4). Then,
beyond the paper, it tries neighbours of the best draws: a draw knows the condition, not the budget,
and a budget's best network is rarely one of a few thousand draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tfgen import errors, seeds
from tfgen.cost import kernels
from tfgen.cost.budget import COST_METRICS, Budget, Cost, Quantity, rounded_up
from tfgen.cost.cost_model import CONFIDENCE, CostModel, Costs, source
from tfgen.cost.netscore import netscore
from tfgen.space import bits
from tfgen.space.architecture import Architecture
from tfgen.space.lowering import ACTIVATION_BITS, lower_batch
from tfgen.space.search_space import Choices, SearchSpace

Floats = npt.NDArray[np.float64]
_VERIFICATIONS = 3  # of the nearest feasible budget
_PARENTS, _CHILDREN = 64, 16  # in a step of refinement
_MAX_DRAWS = 200_000  # some 2 GB of scores
BYTE_METRICS = ("storage_kb", "file_kb")
NETSCORE, SCORED = "netscore", ("params", "macs")
LEAST_METRIC = 1e-3
_MAX_CONFIDENCE = 0.99  # what a few hundred held-out records and fifty files can tell


class Drawn(Protocol):
    """Draws and what they were asked for; None where the generator takes no condition."""

    @property
    def choices(self) -> Choices: ...
    @property
    def conditions(self) -> Floats | None: ...


class Proposer(Protocol):
    """The part of a generator that selection uses."""

    def propose(self, budgets: Sequence[Budget], count: int, seed: int) -> Sequence[Drawn]: ...


class Predicted(Protocol):
    """The part of a prediction that selection uses; each [architectures]."""

    @property
    def performance(self) -> Floats: ...
    @property
    def metric(self) -> Floats: ...
    @property
    def low(self) -> Floats: ...
    @property
    def high(self) -> Floats: ...


class Predictor(Protocol):
    """The part of the encoder that selection uses."""

    def predict(self, choices: Choices, confidence: float) -> Predicted: ...


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network that is predicted to keep a budget.

    Attributes:
      architecture: what to train.
      budget: what was asked.
      cost: what was counted or predicted.
      upper: of predicted metrics, the upper end of the interval.
      metric: the expected value of the task's metric.
      low: lower end of its interval.
      high: upper end of its interval.
      distance: between the predicted performance and the condition of the draw (eq. 1); None for a
        network that was drawn for no condition.
      method: which method's generator drew it.
      seed: the seed of the selection.
    """

    architecture: Architecture
    budget: Budget
    cost: Cost
    upper: Mapping[str, float]
    metric: float
    low: float
    high: float
    distance: float | None
    method: str
    seed: int

    def to_json(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture.to_json(),
            "fingerprint": self.architecture.fingerprint,
            "budget": self.budget.to_json(),
            "cost": self.cost.to_json(),
            "upper": dict(self.upper),
            "metric": self.metric,
            "low": self.low,
            "high": self.high,
            "distance": self.distance,
            "method": self.method,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        return cls(
            Architecture.from_json(data["architecture"]),
            Budget.from_json(data["budget"]),
            Cost.from_json(data["cost"]),
            data["upper"],
            data["metric"],
            data["low"],
            data["high"],
            data["distance"],
            data["method"],
            data["seed"],
        )


@dataclasses.dataclass(frozen=True)
class Pool:
    """Different networks under one roof, each field [architectures].

    Attributes:
      costs: what is expected.
      upper: the upper ends of their intervals: what budgets are compared with.
      distance: of eq. 1, NaN for a network that was drawn for no condition; None where all were.
    """

    choices: Choices
    costs: Costs
    upper: Costs
    metric: Floats
    low: Floats
    high: Floats
    distance: Floats | None

    def __len__(self) -> int:
        return len(self.choices)

    def rows(self, rows: npt.NDArray[np.int64]) -> Pool:
        """The pool of these rows, in their order."""
        return Pool(
            self.choices[rows],
            {m: v[rows] for m, v in self.costs.items()},
            {m: v[rows] for m, v in self.upper.items()},
            self.metric[rows],
            self.low[rows],
            self.high[rows],
            None if self.distance is None else self.distance[rows],
        )


Stage = Callable[[Pool], npt.NDArray[np.bool_]]


def confidence_distance(performance: Any, conditions: Any, xp: Any = np) -> Any:
    """Dist_f of eq. 1: between predicted performance and the condition of the draw."""
    return xp.abs(xp.minimum(xp.maximum(performance, 0.0), 1.0) - conditions)


def confidence_stage(max_distance: float) -> Stage:
    """Keeps draws whose predicted performance is near the condition they were drawn for (eq. 1)."""

    def keep(pool: Pool) -> npt.NDArray[np.bool_]:
        if pool.distance is None:
            return np.ones(len(pool), np.bool_)
        return np.asarray(~(pool.distance > max_distance))  # NaN: drawn for no condition

    return keep


def kernel_stage(space: SearchSpace) -> Stage:
    """Keeps networks whose layers with weights the space's runtime executes with fast kernels."""
    if space.bit_policy == bits.SIMULATED:
        return lambda pool: np.ones(len(pool), np.bool_)
    policy = bits.load(space.bit_policy)
    return lambda pool: kernels.accelerated(lower_batch(space, pool.choices), policy)


def limit_stage(metric: str, limit: float) -> Stage:
    """Keeps networks of at most this cost: storage (eq. 2), energy (eq. 3), any other."""
    return lambda pool: np.asarray(pool.upper[metric] <= limit)


def quality_stage(least: float) -> Stage:
    """Keeps networks whose interval lies above the least value of the task's metric."""
    return lambda pool: np.asarray(pool.low >= least)


def network_stages(cost_model: CostModel, budget: Budget, max_distance: float) -> list[Stage]:
    """The stages that judge a network whatever the budget's numbers are.

    Low-bit convolutions save bytes and cost time: only a budget on bytes admits their slow kernels.
    With 16-bit activations every kernel is slow.
    """
    stages = [confidence_stage(max_distance)]
    fast = cost_model.activation_bits == ACTIVATION_BITS
    if fast and not set(BYTE_METRICS) & set(budget.limits):
        stages.insert(0, kernel_stage(cost_model.space))
    return stages


def budget_stages(budget: Budget) -> list[Stage]:
    """The stages that keep a budget's limits."""
    stages = [limit_stage(metric, limit) for metric, limit in budget.limits.items()]
    if budget.quality is not None:
        stages.append(quality_stage(budget.quality[1]))
    return stages


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The output selector: by which number candidates are ordered.

    Attributes:
      by: "quality" (the lower end of the metric, highest first), "distance" (eq. 1, least first),
        "netscore" (highest first), a cost metric (least first), or "auto": quality where a cost is
        limited, else storage.
    """

    by: str = "auto"

    def __post_init__(self) -> None:
        known = ("auto", "quality", "distance", NETSCORE, *COST_METRICS)
        if self.by not in known:
            raise errors.UsageError(f"unknown ranking {self.by!r}; known: {', '.join(known)}")

    @property
    def read(self) -> tuple[str, ...]:
        """The costs that it may order by."""
        return SCORED if self.by == NETSCORE else (self.by,)

    def order(self, pool: Pool, budget: Budget) -> npt.NDArray[np.int64]:
        """Rows of the pool, best first; ties go to the smaller network."""
        by = self.by
        if by == "auto":
            by = "quality" if budget.limits or "storage_kb" not in pool.costs else "storage_kb"
        if by == "quality":
            key = -pool.low
        elif by == "distance":
            key = pool.distance if pool.distance is not None else -pool.low
        elif by == NETSCORE and set(SCORED) <= set(pool.costs):
            reached = np.clip(pool.metric, LEAST_METRIC, None)
            key = -netscore(np, reached, *(pool.costs[metric] for metric in SCORED))
        elif by in pool.costs:
            key = pool.costs[by]
        else:
            raise errors.UsageError(f"{by} cannot be told before the file is built")
        smaller = pool.costs.get("storage_kb", np.zeros(len(pool)))  # a table tells no sizes
        return np.lexsort((smaller, key))


@dataclasses.dataclass(frozen=True)
class Selector:
    """How hard to look, and how candidates are judged.

    Attributes:
      count: candidates to return, at most.
      draws: networks drawn in a round.
      max_rounds: rounds before giving up.
      refinements: steps in which neighbours of the best networks so far are tried; 0 for draws
        alone.
      confidence: of each end of the predicted interval.
      max_distance: of the confidence stage, for draws; a neighbour stands for no condition.
      ranking: the output selector.
    """

    count: int = 10
    draws: int = 4096
    max_rounds: int = 4
    refinements: int = 10
    confidence: float = CONFIDENCE
    max_distance: float = 0.1
    ranking: Ranking = dataclasses.field(default_factory=Ranking)

    def __post_init__(self) -> None:
        if min(self.count, self.draws, self.max_rounds) < 1:
            raise errors.UsageError("count, draws and rounds must be at least 1")
        if self.refinements < 0:
            raise errors.UsageError(f"refinements must be at least 0, got {self.refinements}")
        if self.draws > _MAX_DRAWS:
            raise errors.UsageError(f"draws must be at most {_MAX_DRAWS:,}, got {self.draws:,}")
        if not 0.5 <= self.confidence <= _MAX_CONFIDENCE:
            raise errors.UsageError(
                f"confidence must lie in 0.5..{_MAX_CONFIDENCE:g}, got {self.confidence:g}"
            )
        if not self.max_distance > 0:
            raise errors.UsageError(f"max_distance must be above 0, got {self.max_distance:g}")

    def select(
        self,
        space: SearchSpace,
        proposer: Proposer,
        predictor: Predictor | Callable[[Budget], Predictor],
        cost_model: CostModel,
        budget: Budget,
        method: str,
        seed: int,
        known: Choices | None = None,
    ) -> list[Candidate]:
        """The best candidates for one budget, best first; at least one.

        Args:
          space: whose networks.
          proposer: draws.
          predictor: of their performance, or who predicts for a budget: a nearest feasible budget
            is verified by its own.
          cost_model: of the space.
          budget: what is asked.
          method: the proposer's, for the candidates.
          seed: of draws and refinements.
          known: canonical networks that are looked at beside the draws, such as those that were
            trained before [networks, decisions].

        Raises:
          InfeasibleBudgetError: no network passed every stage; carries the nearest feasible budget.
        """

        def search(asked: Budget) -> list[Candidate]:
            own = predictor(asked) if callable(predictor) else predictor
            return self._search(space, proposer, own, cost_model, asked, method, seed, known)

        try:
            return search(budget)
        except errors.InfeasibleBudgetError as error:
            # Another budget gets other draws: what is named as feasible was asked for and answered.
            nearest = error.nearest
            for _ in range(_VERIFICATIONS):
                if not isinstance(nearest, Budget):
                    break  # no network's interval has an end
                try:
                    search(nearest)
                    break
                except errors.InfeasibleBudgetError as missed:
                    nearest = missed.nearest
            else:
                nearest = None  # nothing that was named could be found again
            raise errors.InfeasibleBudgetError(str(error), nearest=nearest) from None

    def _search(
        self,
        space: SearchSpace,
        proposer: Proposer,
        predictor: Predictor,
        cost_model: CostModel,
        budget: Budget,
        method: str,
        seed: int,
        known: Choices | None,
    ) -> list[Candidate]:
        """One bounded search; raises InfeasibleBudgetError with the nearest budget of its draws."""
        stages = network_stages(cost_model, budget, self.max_distance)
        limits = budget_stages(budget)
        # What stages and ranking read; a candidate's other costs are told at the end.
        read = {*budget.limits, "storage_kb", *self.ranking.read}

        def pool_of(choices: Choices, conditions: Floats | None) -> Pool:
            return self._pool(choices, conditions, predictor, cost_model, read)

        def passes(pool: Pool) -> npt.NDArray[np.bool_]:
            return np.asarray(np.logical_and.reduce([stage(pool) for stage in (*stages, *limits)]))

        def best_first(pool: Pool) -> npt.NDArray[np.int64]:
            kept = passes(pool)
            if kept.any():
                order = self.ranking.order(pool, budget)
                return order[kept[order]]
            rows = _nearest_rows(pool, stages)
            return rows[np.argsort(_misses(pool, budget)[rows], kind="stable")]

        seen: Pool | None = None
        for round_ in range(self.max_rounds):
            (drawn,) = proposer.propose([budget], self.draws, seeds.forked(seed, "round", round_))
            seen = _merge(seen, pool_of(drawn.choices, drawn.conditions))
            if round_ == 0 and known is not None and len(known):
                seen = _merge(seen, pool_of(known, _no_conditions(seen, len(known))))
            if passes(seen).sum() >= self.count:
                break
        assert seen is not None
        looked_at = len(seen)
        random = seeds.stream(seed, "refinements")
        for _ in range(self.refinements):
            parents = seen.rows(best_first(seen)[: max(_PARENTS, self.count)])
            children = space.mutate(np.repeat(parents.choices, _CHILDREN, axis=0), random)
            seen = _merge(parents, pool_of(children, _no_conditions(seen, len(children))))
            looked_at += len(seen) - len(parents)
        if not passes(seen).any():
            raise _infeasible(seen, budget, looked_at, stages)
        best = seen.rows(best_first(seen)[: self.count])
        costs, upper = cost_model.bounds(best.choices, self.confidence)
        best = dataclasses.replace(best, costs=costs, upper=upper)
        return [_candidate(space, best, row, budget, method, seed) for row in range(len(best))]

    def _pool(
        self,
        choices: Choices,
        conditions: Floats | None,
        predictor: Predictor,
        cost_model: CostModel,
        read: Collection[str],
    ) -> Pool:
        prediction = predictor.predict(choices, self.confidence)
        distance = None
        if conditions is not None:
            distance = confidence_distance(prediction.performance, conditions)
        costs, upper = cost_model.bounds(choices, self.confidence, read)
        return Pool(
            choices,
            costs,
            upper,
            prediction.metric,
            prediction.low,
            prediction.high,
            distance,
        )


def _no_conditions(pool: Pool, count: int) -> Floats | None:
    """The conditions of networks that join a pool without having been drawn for one."""
    return None if pool.distance is None else np.full(count, np.nan)


def _merge(old: Pool | None, new: Pool) -> Pool:
    """Both pools with each network once, not as drawn or as the draw nearest to its condition."""
    if old is None:
        both = new
    else:
        distance = None
        if old.distance is not None and new.distance is not None:
            distance = np.concatenate([old.distance, new.distance])
        both = Pool(
            np.concatenate([old.choices, new.choices]),
            _joined(old.costs, new.costs),
            _joined(old.upper, new.upper),
            np.concatenate([old.metric, new.metric]),
            np.concatenate([old.low, new.low]),
            np.concatenate([old.high, new.high]),
            distance,
        )
    if both.distance is None:
        nearest = np.arange(len(both))
    else:  # one that stands for no condition is refused by none
        nearest = np.argsort(np.nan_to_num(both.distance, nan=-1.0), kind="stable")
    _, first = np.unique(both.choices[nearest], axis=0, return_index=True)
    return both.rows(nearest[first])


def _joined(old: Costs, new: Costs) -> Costs:
    return {metric: np.concatenate([values, new[metric]]) for metric, values in old.items()}


def _candidate(
    space: SearchSpace, pool: Pool, row: int, budget: Budget, method: str, seed: int
) -> Candidate:
    return Candidate(
        space.architecture(pool.choices[row]),
        budget,
        Cost({m: Quantity(float(v[row]), source(m)) for m, v in pool.costs.items()}),
        {m: float(v[row]) for m, v in pool.upper.items() if source(m) == "predicted"},
        float(pool.metric[row]),
        float(pool.low[row]),
        float(pool.high[row]),
        _distance(pool, row),
        method,
        seed,
    )


def _distance(pool: Pool, row: int) -> float | None:
    """To the condition of the draw, if it had one."""
    if pool.distance is None or np.isnan(pool.distance[row]):
        return None
    return float(pool.distance[row])


def _misses(pool: Pool, budget: Budget) -> Floats:
    """The largest share of a limit by which each network misses one [architectures]."""
    misses = [pool.upper[m] / limit - 1.0 for m, limit in budget.limits.items()]
    if budget.quality is not None:
        misses.append(1.0 - pool.low / max(budget.quality[1], 1e-9))
    return np.asarray(np.maximum.reduce(misses))


def _nearest_rows(pool: Pool, stages: Sequence[Stage]) -> npt.NDArray[np.int64]:
    """Networks that pass `stages`, which no relaxation helps; others where none is left."""
    rows = np.arange(len(pool))
    for stage in stages:
        passed = rows[stage(pool)[rows]]
        rows = passed if len(passed) else rows
    return rows


def _infeasible(
    pool: Pool, budget: Budget, looked_at: int, stages: Sequence[Stage]
) -> errors.InfeasibleBudgetError:
    """The error that names the budget which the least relaxation makes feasible."""
    rows, misses = _nearest_rows(pool, stages), _misses(pool, budget)
    row = rows[misses[rows].argmin()]
    message = (
        f"budget {budget}: none of {looked_at:,} networks that were drawn or lie near the best of "
        "these is predicted to keep it"
    )
    if not np.isfinite(misses[row]):
        return errors.InfeasibleBudgetError(message)
    limits = {
        m: max(limit, rounded_up(float(pool.upper[m][row]))) for m, limit in budget.limits.items()
    }
    quality = budget.quality
    if quality is not None:
        quality = (quality[0], min(quality[1], max(_down(pool.low[row]), 0.0)))
    nearest = Budget(limits, quality, budget.device)
    return errors.InfeasibleBudgetError(message, nearest=nearest)


def _down(value: float) -> float:
    """The value rounded down to four decimals."""
    return float(np.floor(value * 1e4) / 1e4)
