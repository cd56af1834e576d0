"""The inquisitor of generative synthesis: from reactions and scores to what a cut costs.

Its parameters theta_I are what one unit of lost information costs at each decision. A network loses

  y = sum over d of theta_d x_d + a x / (x + 0.1),  x = sum over d of x_d,  x_d = -s_d log(1 - l_d)

in log-odds of the metric against the prototype's, a what any cut costs. The strain x_d is of the
sensitivity s_d of what decision d is about, and of the share l_d of its information that is lost
(`evidence.reactions`): to halve what is left costs the same each time, so that no part of a network
is starved for others.
theta and a are found by least squares and are at least 0: no network gains by losing
information. A theta that few networks tell of stays near what all have in common.

The paper calls I a function that learns from the reactions Y, the performance function U and the
requirement 1_r, and says no more of it; all of the above is ours. Sensitivities are means over all
networks that were probed, so they come from where the generator is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfgen import seeds
from tfgen.evidence.insight import Insight, begun, log_odds, summed
from tfgen.evidence.reactions import Floats, Reactions
from tfgen.space.search_space import Choices, SearchSpace

_SCATTER = 0.1  # log-odds by which scores of equal networks differ
_DEVIATION = 1.0  # of a theta around the common one and of a, as a share of the common one
_SWEEPS = 500
_LEAST_LEFT = 0.01  # of a vertex's information
_SAMPLED = 1024  # networks, whose mean strain is the unit


class Inquisitor:
    """Learns from networks that were scored, of which some were probed."""

    def __init__(self, space: SearchSpace, prototype: Reactions, metric: float):
        """Before any network but the prototype was seen.

        Args:
          space: whose networks.
          prototype: how it reacts.
          metric: what it scores.
        """
        self._space = space
        self._lost = prototype.lost
        self._sensitivities = [_relative(prototype.sensitivity)]
        self._top = float(log_odds(metric))
        self._choices: list[Choices] = []
        self._losses: list[Floats] = []
        self._residuals: list[Floats] = []

    @property
    def residuals(self) -> Floats:
        """Log-odds of what networks scored, less those expected before they were seen [networks].

        Of the later half, when there was most to expect by; a single cycle is expected by the
        prototype alone.
        """
        found = np.concatenate(self._residuals) if self._residuals else np.zeros(1)
        return found[len(found) // 2 :]

    def observe(
        self, choices: Choices, metrics: Sequence[float], reactions: Sequence[Reactions]
    ) -> None:
        """Takes in networks.

        Args:
          choices: canonical [networks, decisions].
          metrics: their scores [networks].
          reactions: of those that were probed.
        """
        self._residuals.append(log_odds(metrics) - self.insight().log_odds(choices))
        self._choices.append(choices)
        self._losses.append(self._top - log_odds(metrics))
        self._sensitivities += [_relative(own.sensitivity) for own in reactions]

    def insight(self) -> Insight:
        """theta_I of everything that was observed."""
        strains = self._strains()
        if not self._choices:
            return Insight(self._top, strains, strains, 0.0)
        choices = np.concatenate(self._choices)
        losses = np.maximum(np.concatenate(self._losses), 0.0)
        own = np.stack(
            [values[column] for values, column in zip(strains, choices.T, strict=True)], axis=1
        )  # [networks, decisions]
        total = own.sum(axis=1)
        common = max(float(losses @ total / max(total @ total, 1e-12)), 1e-3)
        theta, any_cut = _least_squares(own, begun(total), losses, common)
        costs = tuple(t * x for t, x in zip(theta, strains, strict=True))
        return Insight(self._top, costs, strains, any_cut)

    def _strains(self) -> tuple[Floats, ...]:
        """Of each decision's values, in units of what random networks have in all."""
        sensitivity = np.mean(self._sensitivities, axis=0)
        raw = tuple(
            -s * np.log(np.maximum(1.0 - lost, _LEAST_LEFT))
            for s, lost in zip(sensitivity, self._lost, strict=True)
        )
        sampled = self._space.sample(_SAMPLED, seeds.stream(0, "inquisitor"))
        unit = max(float(summed(raw, sampled).mean()), 1e-12)
        return tuple(values / unit for values in raw)


def _relative(sensitivity: Floats) -> Floats:
    """As shares of the mean over decisions that are about something."""
    told = sensitivity > 0
    return np.asarray(sensitivity / sensitivity[told].mean() if told.any() else sensitivity)


def _least_squares(
    strains: Floats, share: Floats, losses: Floats, common: float
) -> tuple[Floats, float]:
    """The most likely theta and a of at least 0, theta around a common one and a around none.

    By coordinate descent. The common one explains all losses by itself: what can be told apart
    neither from it nor from a is its.

    Args:
      strains: of the decisions [networks, decisions].
      share: how far networks have lost what any cut costs [networks].
      losses: log-odds [networks].
      common: theta.
    """
    columns = np.column_stack([strains, share])
    expected = np.array([common] * strains.shape[1] + [0.0])
    weights = np.full(len(expected), 1.0 / (_DEVIATION * common) ** 2)
    precision = columns.T @ columns / _SCATTER**2 + np.diag(weights)
    pull = columns.T @ losses / _SCATTER**2 + weights * expected
    found = expected.copy()
    for _ in range(_SWEEPS):
        before = found.copy()
        for place in range(len(found)):
            others = precision[place] @ found - precision[place, place] * found[place]
            found[place] = max((pull[place] - others) / precision[place, place], 0.0)
        if np.allclose(found, before, rtol=1e-9, atol=1e-12):
            break
    return found[:-1], float(found[-1])
