"""NAG's evaluator R(beta | B; w): which of two networks is the better answer to a budget.

Three fully connected layers over the embeddings of a network and of a budget (section 3.3), taught
by pairs of records. Eq. 5 as the copy at hand prints it adds d and the difference of R, which ranks
nothing; the hinge is on their product:

  L(w) = mean over budgets and pairs of max(0, 1 - d(b_i, b_j, B) [R(b_i | B) - R(b_j | B)])

Pairs for which eq. 6 gives 1 both ways are left out.

Departures: R is the mean of a small ensemble; a network's embedding reads, beside its decisions,
its costs and its space's traits (`evidence.traits`). Half of the loss is about no budget at all:
R(beta | none) ranks by accuracy alone. Near a budget R is of little use for that, since it falls
there: what is just within it ranks below what is far within.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfgen.evidence import traits
from tfgen.generators.platform import Floats, Platform
from tfgen.space.encoding import Encoding
from tfgen.space.search_space import Choices

LAYERS = 3
_BEYOND = 1e-3  # of the range of accuracies, for each unit of R that no record reaches
_PREFIX = "evaluator_"  # of its weights in a generator's state


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A fitted evaluator.

    Attributes:
      encoding: of the space.
      weights: by name, those of all members.
      ranking_accuracy: share of pairs of held-out records that are ranked as eq. 6 does, for
        budgets of training's range.
      accuracy_ranking: the same where nothing is limited: by accuracy alone.
    """

    encoding: Encoding
    weights: Mapping[str, np.ndarray]
    ranking_accuracy: float
    accuracy_ranking: float

    def state(self) -> dict[str, np.ndarray]:
        """Its part of a generator's state."""
        return {
            "ranking": np.array([self.ranking_accuracy, self.accuracy_ranking]),
            **{_PREFIX + name: value for name, value in self.weights.items()},
        }

    @classmethod
    def restored(cls, encoding: Encoding, state: Mapping[str, np.ndarray]) -> Evaluator:
        """That of a generator's state."""
        own = {
            name.removeprefix(_PREFIX): value
            for name, value in state.items()
            if name.startswith(_PREFIX)
        }
        return cls(encoding, own, *map(float, state["ranking"]))

    def rewards(
        self, platform: Platform, choices: Choices, costs: Floats, targets: Floats
    ) -> Floats:
        """R of networks by member [members, targets, networks].

        Args:
          platform: where.
          choices: canonical; as many for each target, one target's after the other's
            [targets * networks, decisions].
          costs: of them [targets * networks, costs].
          targets: [targets, costs].
        """
        networks = network_features(self.encoding, platform, choices, costs)
        by_target = networks.reshape(len(targets), -1, networks.shape[1])
        asked = platform.conditions(targets).astype(np.float32)
        return np.asarray(rewards(np, self.weights, by_target, asked))


def network_features(
    encoding: Encoding, platform: Platform, choices: Choices, costs: Floats
) -> np.ndarray:
    """What the evaluator reads of networks, float32 [networks, features].

    Args:
      encoding: of the space.
      platform: where the costs are from.
      choices: canonical [networks, decisions].
      costs: of them [networks, costs].
    """
    parts = [
        encoding.features_of(choices),
        traits.of(encoding.space, choices),
        platform.targets.places(costs),
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def rewards(xp: Any, weights: Mapping[str, Any], networks: Any, conditions: Any) -> Any:
    """R by member [members, budgets, networks].

    Args:
      xp: NumPy or TensorFlow.
      weights: of all members.
      networks: features of those that are compared for each budget [budgets, networks, features];
        [1, networks, features] where they are the same for all.
      conditions: of the budgets [budgets, inputs].
    """
    sets, count, features = networks.shape
    units = weights["kernel_1"].shape[1]
    embedded = xp.matmul(xp.reshape(networks, (-1, features)), weights["network"])
    asked = xp.matmul(conditions, weights["budget"])
    # The first layer reads both embeddings side by side.
    hidden = xp.matmul(embedded, weights["kernel_0"][:, :units])
    hidden = xp.reshape(hidden, (-1, sets, count, units))
    budget = xp.matmul(asked, weights["kernel_0"][:, units:]) + weights["bias_0"]
    hidden = xp.reshape(hidden + budget[:, :, None], (-1, conditions.shape[0] * count, units))
    for layer in range(1, LAYERS):
        hidden = xp.matmul(xp.maximum(hidden, 0.0), weights[f"kernel_{layer}"])
        hidden = hidden + weights[f"bias_{layer}"]
    return xp.reshape(hidden, (-1, conditions.shape[0], count))


class ExpectedAccuracies:
    """What accuracy the evaluator expects.

    R ranks. Where nothing is limited it ranks by accuracy alone; a network that ranks as a record
    does is expected to have that record's accuracy, or 0 if that is less (R2 may be far below).
    Beyond the best record and the worst one accuracy goes on by rank alone, so that none are taken
    for equal.
    """

    def __init__(
        self, evaluator: Evaluator, platform: Platform, choices: Choices, accuracies: Floats
    ):
        """Reads what the records rank as.

        Args:
          evaluator: that was fitted to them.
          platform: whose costs it reads.
          choices: of the records [records, decisions].
          accuracies: of the records [records].
        """
        self._evaluator = evaluator
        self._platform = platform
        self._ranked = np.sort(self._rank(choices, platform.costs(choices)), axis=1)
        self._accuracies = np.sort(np.maximum(accuracies, 0.0))

    def of(self, choices: Choices, costs: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation over the evaluator's members, each [networks].

        Args:
          choices: canonical [networks, decisions].
          costs: of them [networks, costs].
        """
        beyond = _BEYOND * max(float(np.ptp(self._accuracies)), 1e-9)
        members = [
            np.interp(own, ranked, self._accuracies)
            + beyond * (own - np.clip(own, ranked[0], ranked[-1]))
            for own, ranked in zip(self._rank(choices, costs), self._ranked, strict=True)
        ]
        return np.mean(members, axis=0), np.std(members, axis=0)

    def _rank(self, choices: Choices, costs: Floats) -> Floats:
        """R where nothing is limited [members, networks]."""
        budget = self._platform.unlimited
        found = self._evaluator.rewards(self._platform, choices, costs, budget)
        return np.asarray(found[:, 0], np.float64)
