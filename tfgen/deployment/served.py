"""Many budgets answered at once, as array code: what a served graph computes.

It answers as `selection.Selector` does with one round of draws and no refinements, and to equal
seeds alike; tests compare the two. There a pool of thousands is sorted and merged over rounds; here
each budget has a few dozen draws, and every step is a comparison of them with each other.

Two differences: where a bundle knows its records, `generate` predicts by a process of those near a
budget (`evidence.local_surrogate`); here the encoder predicts. And `generate` looks at the networks
of a prototype that were scored, beside its draws.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import errors, seeds
from tfgen.cost.budget import COST_METRICS, QUALITY_METRICS, Budget
from tfgen.cost.cost_model import CostModel, Costs
from tfgen.cost.netscore import netscore
from tfgen.cost.tabulated_cost import TabulatedCost
from tfgen.evidence.insight import InsightSurrogate
from tfgen.evidence.surrogate import Surrogate
from tfgen.generators.base import Asked, Generator
from tfgen.selection import (
    BYTE_METRICS,
    LEAST_METRIC,
    NETSCORE,
    SCORED,
    Selector,
    confidence_distance,
)
from tfgen.space.search_space import Choices, SearchSpace

_WORD = 2**62  # choices side by side in an integer, of which several tell a network
_SHORTLISTED = 4  # times the answers, that are predicted in float64
_SLACK = 1e-12  # of a limit: sums in another order differ in their last bits


@dataclasses.dataclass(frozen=True)
class Requests:
    """Budgets as a client sends them.

    Attributes:
      limit: in the order of `Answerer.metrics`: the most of a cost, the least of the task's metric;
        what is not limited may be any number, float64 [budgets, metrics].
      has_limit: which are limits, bool [budgets, metrics].
      seed: int64 [budgets].
    """

    limit: Any
    has_limit: Any
    seed: Any

    @property
    def inputs(self) -> dict[str, Any]:
        """The arrays, by the names that a signature has for them."""
        return {"limit": self.limit, "has_limit": self.has_limit, "seed": self.seed}

    @classmethod
    def of(cls, metrics: Sequence[str], budgets: Sequence[Budget], seed: Sequence[int]) -> Requests:
        """Budgets as arrays; raises UsageError where one limits something else."""
        limit = np.zeros((len(budgets), len(metrics)))
        has_limit = np.zeros(limit.shape, np.bool_)
        for row, budget in enumerate(budgets):
            limits = dict(budget.limits)
            if budget.quality is not None:
                limits[budget.quality[0]] = budget.quality[1]
            for metric, value in limits.items():
                if metric not in metrics:
                    raise errors.UsageError(
                        f"budget {budget}: {metric} is not served; budgets may limit: "
                        f"{', '.join(metrics)}"
                    )
                limit[row, metrics.index(metric)] = value
                has_limit[row, metrics.index(metric)] = True
        return cls(limit, has_limit, np.asarray(seed, np.int64))


@dataclasses.dataclass(frozen=True)
class Answers:
    """What is answered, best first.

    Attributes:
      choices: canonical, 0 where there is no answer, int64 [budgets, count, decisions].
      cost: expected, in the order of `Answerer.costs`, float64 [budgets, count, costs].
      cost_high: the upper ends of its intervals, shaped alike.
      metric: the task's, expected, float64 [budgets, count].
      metric_low: the lower end of its interval, shaped alike.
      metric_high: its upper end.
      valid: whether there is an answer, which is predicted to keep the budget, bool
        [budgets, count].
    """

    choices: Any
    cost: Any
    cost_high: Any
    metric: Any
    metric_low: Any
    metric_high: Any
    valid: Any


class Answerer:
    """Answers budgets of one space with one generator.

    Attributes:
      space: whose networks are answered.
      metrics: what a budget may limit: costs, and the task's metric last.
      selector: how candidates are judged.
    """

    def __init__(
        self,
        space: SearchSpace,
        generator: Generator,
        surrogate: Surrogate | InsightSurrogate,
        costs: CostModel,
        quality: str,
        selector: Selector,
    ):
        """Tabulates what networks cost: seconds.

        Raises:
          UsageError: the selector has rounds or refinements or orders by a cost that is not
            served, or costs of the space are no tables.
        """
        if selector.max_rounds != 1 or selector.refinements:
            raise errors.UsageError("what is served has one round of draws and no refinements")
        if selector.count > selector.draws:
            raise errors.UsageError(
                f"{selector.count} answers cannot be chosen from {selector.draws} draws"
            )
        if quality not in QUALITY_METRICS:
            raise errors.UsageError(f"{quality!r} is no metric of a task")
        self.space = space
        self.selector = selector
        self._generator = generator
        self._surrogate = surrogate
        self._tables = TabulatedCost(costs, selector.confidence)
        self._device = None if costs.latency is None else costs.latency.device
        self.metrics = (*self._tables.metrics, quality)
        strangers = set(selector.ranking.read) & set(COST_METRICS) - set(self.costs)
        if strangers:
            raise errors.UsageError(
                f"ranking by {selector.ranking.by} needs {min(strangers)}, which is not served; "
                f"costs are {', '.join(self.costs)}"
            )
        self._words = _words([len(d.values) for d in space.decisions])

    @property
    def costs(self) -> tuple[str, ...]:
        """The costs that are told."""
        return self._tables.metrics

    def costs_of(self, choices: Choices) -> Costs:
        """Of canonical choices, by metric [architectures]."""
        return self._tables.bounds(np, self._tables.rows(np, choices))[0]

    def counted(self, xp: Any, choices: Any) -> Any:
        """What tables hold of canonical choices [architectures, columns]; see `__call__`."""
        return self._tables.rows(xp, choices)

    def __call__(
        self, xp: Any, requests: Requests, counted: Callable[[Any], Any] | None = None
    ) -> Answers:
        """Answers each request by itself.

        Args:
          xp: NumPy or `nets.tensors`.
          requests: checked already.
          counted: `counted` as a function of a graph, which is there once however often it is
            called; megabytes of tables are not written several times.
        """
        if counted is None:
            counted = functools.partial(self.counted, xp)
        draws, decisions = self.selector.draws, len(self.space.decisions)
        asked = self._asked(xp, requests)
        drawn = self._generator.draws(
            xp, asked, draws, lambda c: self._tables.bounds(xp, counted(c))[0]
        )
        choices = xp.reshape(drawn.choices, (-1, decisions))
        rows = counted(choices)
        pool = _Pool(
            [drawn.choices[..., d] for d in range(decisions)],
            [xp.reshape(rows[:, c], (-1, draws)) for c in range(rows.shape[1])],
            [xp.reshape(word, (-1, draws)) for word in self._lexicographic(xp, choices)],
            drawn.conditions,
        )
        # Twice: a float32 prediction tells which few may be answers, a float64 one their order.
        rough = self._judged(xp, requests, pool, np.float32)
        first = rough.kept & ~_again(xp, pool, rough.distance)
        order = _best_first(xp, first, [*rough.keys, *pool.words])
        order = order[:, : min(draws, _SHORTLISTED * self.selector.count)]
        pool, first = pool.at(xp, order), xp.take_along_axis(first, order, axis=1)
        found = self._judged(xp, requests, pool, np.float64)
        valid = found.kept & first
        best = _best_first(xp, valid, [*found.keys, *pool.words])[:, : self.selector.count]

        def picked(values: Any) -> Any:
            return xp.take_along_axis(values, best, axis=1)

        valid = picked(valid)

        def told(values: Any) -> Any:
            own = picked(values)
            return xp.where(valid, own, xp.zeros_like(own))

        return Answers(
            choices=xp.stack([told(column) for column in pool.columns], axis=-1),
            cost=xp.stack([told(found.costs[m]) for m in self.costs], axis=-1),
            cost_high=xp.stack([told(found.upper[m]) for m in self.costs], axis=-1),
            metric=told(found.metric),
            metric_low=told(found.low),
            metric_high=told(found.high),
            valid=valid,
        )

    def _judged(self, xp: Any, requests: Requests, pool: _Pool, dtype: npt.DTypeLike) -> _Judged:
        """What is told of a pool's networks, and which of them keep their budgets."""
        many = pool.columns[0].shape[1]

        def flat(arrays: Sequence[Any]) -> Any:
            return xp.stack([xp.reshape(array, (-1,)) for array in arrays], axis=1)

        def by_budget(values: Any) -> Any:
            return xp.reshape(values, (-1, many))

        confidence = self.selector.confidence
        told = self._surrogate.predict_in(xp, flat(pool.columns), confidence, dtype)
        rows = flat(pool.rows)
        costs, upper = (
            {metric: by_budget(values) for metric, values in found.items()}
            for found in self._tables.bounds(xp, rows)
        )
        metric, low, high = map(by_budget, (told.metric, told.low, told.high))
        distance = None
        if pool.conditions is not None:
            distance = confidence_distance(by_budget(told.performance), pool.conditions, xp)
        kept = self._kept(requests, upper, low, distance)
        if self._tables.policy is not None:
            kept = kept & (by_budget(self._tables.accelerated(rows)) | self._bytes(requests))
        keys = self._keys(xp, requests, costs, metric, low, distance)
        return _Judged(costs, upper, metric, low, high, distance, kept, keys)

    def _asked(self, xp: Any, requests: Requests) -> Asked:
        """What the generator is asked: the first round of a selection."""
        limits = xp.where(requests.has_limit, requests.limit, xp.zeros_like(requests.limit))
        none = xp.zeros_like(limits[:, 0])
        columns = [
            limits[:, self.metrics.index(m)] if m in self.costs else none for m in COST_METRICS
        ]
        low = xp.astype(requests.seed & 0xFFFFFFFF, xp.uint32)
        high = xp.right_shift(requests.seed, xp.asarray(32, dtype=xp.int64)) & 0xFFFFFFFF
        key = seeds.fork(xp, (low, xp.astype(high, xp.uint32)), "round", 0)
        limit, has_limit = limits[:, -1], requests.has_limit[:, -1]
        return Asked(xp.stack(columns, axis=-1), limit, has_limit, key, self._device)

    def _kept(self, requests: Requests, upper: Mapping[str, Any], low: Any, distance: Any) -> Any:
        """Draws that pass the stages on what was asked [budgets, draws]."""
        kept = (low >= requests.limit[:, -1:]) | ~requests.has_limit[:, -1:]
        for number, metric in enumerate(self.costs):
            within = upper[metric] <= requests.limit[:, number, None] * (1.0 + _SLACK)
            kept = kept & (within | ~requests.has_limit[:, number, None])
        if distance is not None:
            kept = kept & ~(distance > self.selector.max_distance)
        return kept

    def _bytes(self, requests: Requests) -> Any:
        """Budgets on bytes, which admit slow kernels [budgets, 1]."""
        columns = [requests.has_limit[:, self.costs.index(m)] for m in BYTE_METRICS
                   if m in self.costs]  # fmt: skip
        found = requests.has_limit[:, -1] & False
        for column in columns:
            found = found | column
        return found[:, None]

    def _keys(
        self,
        xp: Any,
        requests: Requests,
        costs: Mapping[str, Any],
        metric: Any,
        low: Any,
        distance: Any,
    ) -> list[Any]:
        """By what draws are ordered, least first: as `Ranking.order` does [budgets, draws]."""
        by = self.selector.ranking.by
        smaller = costs.get("storage_kb", xp.zeros_like(low))
        key = -low
        if by == "auto" and "storage_kb" in costs:
            any_cost = requests.has_limit[:, 0]
            for number in range(1, len(self.costs)):
                any_cost = any_cost | requests.has_limit[:, number]
            key = xp.where(any_cost[:, None], -low, smaller)
        elif by == "distance" and distance is not None:
            key = distance
        elif by == NETSCORE:
            reached = xp.maximum(metric, LEAST_METRIC)
            key = -netscore(xp, reached, *(costs[name] for name in SCORED))
        elif by in costs:
            key = costs[by]
        return [key, smaller]

    def _lexicographic(self, xp: Any, choices: Any) -> list[Any]:
        """Integers that order networks as their choices do [architectures] each."""
        return [
            xp.sum(choices[:, begin:end] * np.array(weights, np.int64), axis=1)
            for begin, end, weights in self._words
        ]


@dataclasses.dataclass(frozen=True)
class _Pool:
    """Draws of each budget, as columns.

    Attributes:
      columns: of each decision, the choices [budgets, draws].
      rows: of each column of the tables, its numbers [budgets, draws].
      words: integers that order networks as their choices do [budgets, draws].
      conditions: that they were drawn for; None where there are none [budgets, draws].
    """

    columns: Sequence[Any]
    rows: Sequence[Any]
    words: Sequence[Any]
    conditions: Any

    def at(self, xp: Any, places: Any) -> _Pool:
        """The draws at these places [budgets, places]."""

        def picked(arrays: Sequence[Any]) -> list[Any]:
            return [xp.take_along_axis(array, places, axis=1) for array in arrays]

        conditions = None if self.conditions is None else picked([self.conditions])[0]
        return _Pool(picked(self.columns), picked(self.rows), picked(self.words), conditions)


@dataclasses.dataclass(frozen=True)
class _Judged:
    """What is told of a pool's networks, each [budgets, draws]; `keys` order them."""

    costs: Mapping[str, Any]
    upper: Mapping[str, Any]
    metric: Any
    low: Any
    high: Any
    distance: Any
    kept: Any
    keys: Sequence[Any]


def _again(xp: Any, pool: _Pool, distance: Any) -> Any:
    """Draws of a network of which another draw is nearer to its condition, or earlier."""
    same = True
    for word in pool.words:
        same = same & (word[:, :, None] == word[:, None])  # [budgets, draws, others]
    numbers = np.arange(pool.words[0].shape[1])
    before = numbers[None, :] < numbers[:, None]
    if distance is not None:
        near, nearer = distance[:, :, None], distance[:, None]
        before = (nearer < near) | ((nearer == near) & before)
    return xp.any(same & before, axis=2)


def _words(sizes: Sequence[int]) -> list[tuple[int, int, tuple[int, ...]]]:
    """Runs of decisions whose choices fit in an integer: begin, end, and the weight of each."""
    found, begin = [], 0
    while begin < len(sizes):
        end = begin + 1
        while end < len(sizes) and math.prod(sizes[begin : end + 1]) <= _WORD:
            end += 1
        weights = tuple(math.prod(sizes[d + 1 : end]) for d in range(begin, end))
        found.append((begin, end, weights))
        begin = end
    return found


def _best_first(xp: Any, kept: Any, keys: Sequence[Any]) -> Any:
    """Places of draws, those that are kept first, by their keys [budgets, draws]."""
    less, equal = False, True
    for key in keys:
        ours, theirs = key[:, :, None], key[:, None]
        less = less | (equal & (theirs < ours))
        equal = equal & (theirs == ours)
    others = kept[:, None]  # [budgets, 1, others]
    rank = xp.sum(xp.astype(less & others, xp.int64), axis=2)
    count = kept.shape[1]
    return xp.argsort(xp.where(kept, rank, xp.zeros_like(rank) + count), axis=1)
