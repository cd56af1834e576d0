"""Where networks run: what they cost there, and which is the better answer to a budget.

The rule is NAG's Pareto dominance (Guo et al. 2021, section 3.4, eq. 6).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import errors, seeds
from tfgen.cost.cost_model import CONFIDENCE, LATENCY, CostModel, Costs
from tfgen.generators.targets import Targets
from tfgen.space.search_space import Choices

_SAMPLED = 4096  # networks, whose costs are those of random ones
# Of these, how many lie beyond each end of a latency's range. The fastest network of a space may be
# a thousand times as fast as a common one: most of ten embeddings would be of nearly nothing.
_END = 0.02
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Platform:
    """Where networks run: what they cost there, and what the policy reads of it.

    Attributes:
      cost_model: with its latency, where budgets limit one.
      targets: the budgets of its range.
      features: how reference networks compare on the device [references]; none for a policy of one
        device.
      sampled: costs of random networks, by metric [networks].
      only: the one target of training; None for all of the range [costs].
    """

    cost_model: CostModel
    targets: Targets
    features: Floats
    sampled: Costs
    only: Floats | None = None

    @classmethod
    def of(
        cls,
        cost_model: CostModel,
        costs: Sequence[str],
        knots: int,
        references: Choices | None = None,
    ) -> Platform:
        """Where a cost model's networks run.

        Args:
          cost_model: with its latency, where budgets limit one.
          costs: that budgets may limit.
          knots: see `Targets`.
          references: networks whose latencies tell a device to a policy of many; None for a policy
            of one [networks, decisions].

        Raises:
          UsageError: a cost is not known, or none differs between networks.
        """
        unknown = sorted(set(costs) - set(cost_model.metrics))
        if unknown:
            raise errors.UsageError(
                f"{unknown[0]} is not known of networks of {cost_model.space.name!r}; costs may be "
                f"{', '.join(cost_model.metrics)}"
            )
        random = cost_model.space.sample(_SAMPLED, seeds.stream(0, "platform"))
        _, sampled = cost_model.bounds(random, CONFIDENCE, costs)
        targets = Targets.of(cost_model, tuple(costs), costs, sampled, knots, _END)
        if not targets.limited:
            raise errors.UsageError(
                f"{', '.join(costs)}: the same for all networks of {cost_model.space.name!r}"
            )
        features = np.zeros(0)
        if references is not None:
            features = device_features(cost_model.costs(references)[LATENCY])
        return cls(cost_model, targets, features, sampled)

    def draw(self, count: int, several_share: float, random: np.random.Generator) -> Floats:
        """Targets to train with [count, costs]; see `Targets.draw`."""
        if self.only is not None:
            return np.repeat(self.only[None], count, axis=0)
        return self.targets.draw(count, self.sampled, several_share, random)

    @property
    def inputs(self) -> int:
        """How many numbers are read of a target."""
        return self.targets.features_count + len(self.features)

    @property
    def unlimited(self) -> Floats:
        """The target that limits nothing [1, costs]."""
        return np.zeros((1, len(self.targets.costs)))

    def conditions(self, targets: Any, xp: Any = np) -> Any:
        """What the policy and the evaluator read of targets [batch, costs].

        Returns:
          float64 [batch, inputs].
        """
        read = self.targets.features(targets, xp)
        own = xp.ones_like(read[:, :1]) * self.features
        return xp.concatenate([read, own], axis=1)

    def costs(self, choices: Choices) -> Floats:
        """Of networks, the costs that targets may limit, 0 for others [networks, costs].

        A predicted cost is the upper end of its interval: what selection compares with a budget.
        """
        limited = self.targets.limited
        _, found = self.cost_model.bounds(choices, CONFIDENCE, limited)
        none = np.zeros(len(choices))
        return np.stack([found[m] if m in limited else none for m in self.targets.costs], axis=1)


def overshoot(costs: Floats, targets: Floats) -> Floats:
    """The largest share of a limit that a network costs; above 1 it is over.

    Args:
      costs: [..., costs].
      targets: 0 where a cost is free [..., costs].
    """
    shares = np.divide(costs, targets, out=np.zeros(np.broadcast(costs, targets).shape),
                       where=targets > 0)  # fmt: skip
    return np.asarray(shares.max(axis=-1))


def dominance(quality: Floats, over: Floats, by_quality: bool = True) -> Floats:
    """Which of two networks is the better answer to a budget (eq. 6) [..., networks, networks].

    1 where the first dominates the second, -1 where the second does, 0 where they are equal: eq. 6
    gives 1 both ways there.

    Args:
      quality: accuracy, or what ranks as it does [..., networks].
      over: see `overshoot`; with several limits the largest stands for the cost [..., networks].
      by_quality: whether networks within the budget are compared by quality, as eq. 6 does; else
        the cheaper one is better everywhere (the ablation of table 2).
    """
    by_cost = np.sign(over[..., None, :] - over[..., :, None])
    if not by_quality:
        return by_cost
    within = over <= 1.0
    both = within[..., None, :] & within[..., :, None]
    return np.where(both, np.sign(quality[..., :, None] - quality[..., None, :]), by_cost)


def device_features(reference_ms: Floats) -> Floats:
    """What a policy of many devices reads of one: how reference networks compare on it.

    Args:
      reference_ms: latencies of the references, above 0 [references].

    Returns:
      Their logarithms, without what all have in common: a device that is twice as fast at
      everything is the same device to a policy whose budgets are places in its range [references].
    """
    logs = np.log(reference_ms)
    return np.asarray(logs - logs.mean())
