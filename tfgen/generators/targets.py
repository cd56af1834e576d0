"""Targets: the limits on costs that a generator is asked for, and what its networks read of them.

A target is a vector with a limit for each cost, 0 for one that is free. Networks read each limit as
its place on a logarithmic scale between the least and the largest of training, as overlapping hats,
and whether there is one at all. A linear layer on such hats is an embedding of each knot and the
linear interpolation between two of them: what NAG has for its K budgets (its section 3.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import LATENCY, CostModel, Costs
from tfgen.generators.base import Asked

END = 1e-3  # of sampled networks, how many are beyond each end of a latency's range
_TIGHTER, _LOOSER = -0.1, 0.4  # logarithms of what targets allow a network that they are drawn by
_RANGES, _DEVICE = "ranges", "device"  # in a generator's state
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Targets:
    """The targets of one generator.

    Attributes:
      costs: metrics, in the order of a target's limits.
      ranges: logarithms of the least and the largest limit of each; equal for a cost that targets
        never limit [costs, 2].
      knots: hats over a range.
      device: whose latency is limited; empty for none.
    """

    costs: tuple[str, ...]
    ranges: Floats
    knots: int
    device: str = ""

    def __post_init__(self) -> None:
        if self.ranges.shape != (len(self.costs), 2) or self.knots < 2:
            raise ValueError(f"targets of {self.costs} need as many ranges and two knots")

    @classmethod
    def of(
        cls,
        cost_model: CostModel,
        costs: tuple[str, ...],
        limited: Sequence[str],
        sampled: Costs,
        knots: int,
        end: float = END,
    ) -> Targets:
        """The targets between the extremes of a space.

        Args:
          cost_model: of the space; a latency's extremes are not known, so those of its sampled
            networks stand for them.
          costs: that targets tell.
          limited: of these, which they may limit.
          sampled: costs of random networks, by metric [networks].
          knots: hats over a range.
          end: share of the sampled networks beyond each end of a latency's range.
        """
        ranges = np.zeros((len(costs), 2))
        for metric in limited:
            if metric == LATENCY:
                ends = np.quantile(sampled[metric], [end, 1.0 - end])
            else:
                ends = np.array([cost_model.minimum(metric), cost_model.maximum(metric)])
            ranges[costs.index(metric)] = np.log(ends)
        latency = cost_model.latency
        device = latency.device if latency is not None and LATENCY in limited else ""
        return cls(costs, ranges, knots, device)

    @classmethod
    def restored(
        cls, costs: tuple[str, ...], knots: int, state: Mapping[str, npt.NDArray[np.generic]]
    ) -> Targets:
        """Those of a generator's state; raises ValueError where it is of another version."""
        ranges = np.asarray(state[_RANGES], np.float64)
        return cls(costs, ranges, knots, state[_DEVICE].tobytes().decode())

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """What `restored` needs, as arrays of a generator's state."""
        return {_RANGES: self.ranges, _DEVICE: np.frombuffer(self.device.encode(), np.uint8)}

    @property
    def limited(self) -> tuple[str, ...]:
        """The metrics that targets may limit."""
        return tuple(
            m for m, (low, high) in zip(self.costs, self.ranges, strict=True) if high > low
        )

    @property
    def features_count(self) -> int:
        """Length of a target's features."""
        return len(self.costs) * (self.knots + 1)

    def asked(self, budget: Budget) -> Floats:
        """A budget's target: the limits that a generator reads [costs]."""
        return np.asarray(self.of_asked(np, Asked.of(budget, 0))[0])

    def of_asked(self, xp: Any, asked: Asked) -> Any:
        """The same of budgets as arrays of xp [budgets, costs]."""
        read = [m for m in self.limited if m != LATENCY or asked.device == self.device]
        none = xp.zeros_like(asked.least)
        return xp.stack([asked.limit(m) if m in read else none for m in self.costs], axis=-1)

    def shares(self, limits: Any, costs: Mapping[str, Any], xp: Any = np) -> Any:
        """What networks cost, as shares of limits [budgets, costs].

        Args:
          limits: 0 where a cost is free [budgets, costs].
          costs: of a network for each budget, by metric; those that are not told are free
            [budgets].
          xp: NumPy or `nets.tensors`.
        """
        free = xp.zeros_like(limits[:, 0])
        shares = []
        for column, metric in enumerate(self.costs):
            share = free
            if metric in self.limited and metric in costs:
                limit = limits[:, column]
                told = costs[metric] / xp.where(limit > 0, limit, xp.ones_like(limit))
                share = xp.where(limit > 0, told, free)
            shares.append(share)
        return xp.stack(shares, axis=-1)

    def sweep(self, count: int) -> Floats:
        """Targets for the first cost alone, from its largest limit down [count, costs].

        For budgets that limit nothing that a generator reads.
        """
        targets = np.zeros((count, len(self.costs)))
        column = self.costs.index(self.limited[0])
        targets[:, column] = np.exp(np.linspace(*self.ranges[column, ::-1], count))
        return targets

    def places(self, values: Any, xp: Any = np) -> Any:
        """Where values lie in the ranges, by logarithm: 0 and 1 are the ends [batch, costs].

        Values of 0 are taken for 1; what lies beyond the range is below 0 or above 1.
        """
        low, high = self.ranges.T
        spread = np.where(high > low, high - low, 1.0)  # none where a cost is not read
        return (xp.log(xp.where(values > 0, values, xp.ones_like(values))) - low) / spread

    def features(self, targets: Any, xp: Any = np) -> Any:
        """What networks read of targets [batch, costs] -> float64 [batch, features_count]."""
        limited = xp.astype(targets > 0, xp.float64)
        place = xp.minimum(xp.maximum(self.places(targets, xp), 0.0), 1.0)
        place = place[..., None] * (self.knots - 1.0)
        hats = xp.maximum(1.0 - xp.abs(place - np.arange(self.knots, dtype=np.float64)), 0.0)
        read = xp.concatenate([hats, xp.ones_like(place)], axis=-1) * limited[..., None]
        return xp.reshape(read, (-1, self.features_count))

    def draw(
        self, count: int, sampled: Costs, several_share: float, random: np.random.Generator
    ) -> Floats:
        """Targets to train with [count, costs].

        One cost: half evenly and half evenly by logarithm over its range. Several: those of a
        random network, some tighter and some looser than it.

        Args:
          count: how many.
          sampled: costs of random networks, by metric [networks].
          several_share: how many limit more than one cost.
          random: the source.
        """
        columns = [self.costs.index(metric) for metric in self.limited]
        points = np.stack([sampled[metric] for metric in self.limited], axis=1)
        ranges = self.ranges[columns]
        share = random.random((2, count))
        one = random.integers(len(ranges), size=count)
        low, high = np.exp(ranges[one].T)
        evenly, by_ratio = low + share[0] * (high - low), low * (high / low) ** share[0]
        drawn = np.zeros((count, len(ranges)))
        drawn[np.arange(count), one] = np.where(share[1] < 0.5, evenly, by_ratio)
        if len(ranges) > 1:
            several = random.random(count) < several_share
            network = points[random.integers(len(points), size=count)]
            looser = np.exp(random.uniform(_TIGHTER, _LOOSER, (count, len(ranges))))
            limited = random.random((count, len(ranges))) < 0.5
            limited[np.arange(count), one] = True
            vector = np.where(limited, network * looser, 0.0)
            drawn = np.where(several[:, None], vector, drawn)
        targets = np.zeros((count, len(self.costs)))
        targets[:, columns] = drawn
        return targets
