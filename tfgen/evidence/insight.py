"""Insight: what a prototype's networks are expected to score, from what they lose of it.

What the inquisitor of generative synthesis learns (`generators.inquisitor`), as numbers: of each
decision's values the log-odds of the metric that they cost, and what any cut costs beside. It knows
a space of a dozen decisions from some thirty networks, where an encoder that begins with nothing
needs hundreds.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen.cost.cost_model import CONFIDENCE
from tfgen.cost.metrics import PerformanceScale
from tfgen.evidence.reactions import Floats
from tfgen.evidence.surrogate import Prediction
from tfgen.space.search_space import Choices, SearchSpace

_ENDS = (0.005, 0.995)  # of a metric whose log-odds are taken
_SMALL = 0.1  # of what random networks are strained: where half of what any cut costs is lost
_GAIN, _SCORED, _SCORES, _SURPRISES = "gain", "scored", "scores", "surprises"
# What a network scores beyond what was expected says something of its neighbours: a Gaussian
# process. Left out one in ten, networks of three prototypes were expected 15 to 32 % better by it.
_REACH = 0.8  # of a decision's menu from its first value to its last
_DEVIATION, _NOISE = 0.15, 0.08  # log-odds
# By what equal trainings of a network differ, log-odds: 0.5 points at 88 %, 0.8 at 80. Measured on
# deliveries of three prototypes: 0.02 (CIFAR-10), 0.06 (CamVid), 0.07 (BCCD).
_SCATTER = 0.05


def log_odds(metric: npt.ArrayLike) -> Floats:
    """Of a metric in 0..1, not quite to its ends."""
    share = np.clip(np.asarray(metric, np.float64), *_ENDS)
    return np.asarray(np.log(share / (1.0 - share)))


def _metric_at(xp: Any, odds: Any) -> Any:
    """Of log-odds, what has them."""
    return 1.0 / (1.0 + xp.exp(-odds))


def summed(values: Sequence[Floats], choices: Choices) -> Floats:
    """The sum over decisions of what each value has [networks]."""
    own = [v[column] for v, column in zip(values, choices.T, strict=True)]
    return np.asarray(np.sum(own, axis=0))


def begun(strain: Any) -> Any:
    """How far networks have lost what any cut costs, 0..1: of numbers, arrays or tensors.

    The first cuts cost the most: weights that were trained for each other no longer are.
    """
    return strain / (strain + _SMALL)


@dataclasses.dataclass(frozen=True)
class Insight:
    """What networks lose.

    Attributes:
      top: log-odds of the prototype's metric.
      costs: of each decision, log-odds that each value loses [decisions][values].
      strains: of each decision, how much each value takes away, whatever that costs; random
        networks have 1 in all [decisions][values].
      any_cut: log-odds that a network loses beside, as far as it has `begun` to.
    """

    top: float
    costs: tuple[Floats, ...]
    strains: tuple[Floats, ...]
    any_cut: float

    def log_odds(self, choices: Choices) -> Floats:
        """Of what canonical networks are expected to score [networks]."""
        beside = self.any_cut * begun(summed(self.strains, choices))
        return np.asarray(self.top - summed(self.costs, choices) - beside)

    def state(self) -> dict[str, np.ndarray]:
        """As plain arrays."""
        return {
            "costs": np.concatenate(self.costs),
            "strains": np.concatenate(self.strains),
            "top": np.array(self.top),
            "any_cut": np.array(self.any_cut),
        }

    @classmethod
    def restored(cls, space: SearchSpace, state: Mapping[str, np.ndarray]) -> Insight:
        """Of such arrays; raises ValueError where they are of another space."""
        sizes = [len(d.values) for d in space.decisions]
        ends = np.cumsum(sizes)
        costs = state["costs"]
        strains = state.get("strains", np.zeros_like(costs))  # older ones know of none
        if {costs.shape, strains.shape} != {(ends[-1],)}:
            raise ValueError("the insight is of another space")
        parts = (tuple(np.split(one, ends[:-1])) for one in (costs, strains))
        return cls(float(state["top"]), *parts, float(state.get("any_cut", 0.0)))


class InsightSurrogate:
    """Predicts as the encoder does (`evidence.surrogate`), by an insight.

    Its intervals are by what it expected of networks before it saw them, and by what trainings
    differ where networks are trained further. Of a network that was scored it knows the score, and
    its neighbours are expected to surprise as it did.
    """

    def __init__(self, space: SearchSpace, state: Mapping[str, np.ndarray]):
        """Reads what `of` made; raises ValueError where it is of another space."""
        self.space = space
        self.insight = Insight.restored(space, state)
        self.scale = PerformanceScale(*map(float, state["scale"]))
        self._residuals = np.asarray(state["residuals"], np.float64)
        self._state = dict(state)

    @classmethod
    def of(
        cls, space: SearchSpace, insight: Insight, residuals: Floats, scale: PerformanceScale
    ) -> InsightSurrogate:
        """Puts one together.

        Args:
          space: whose networks.
          insight: of all that was seen.
          residuals: log-odds of what networks scored, less those that were expected [networks].
          scale: of performance.
        """
        told = {"residuals": residuals, "scale": np.array([scale.low, scale.high])}
        return cls(space, {**insight.state(), **told})

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `InsightSurrogate(space, state)` needs, as plain arrays."""
        return dict(self._state)

    def predict(self, choices: Choices, confidence: float = CONFIDENCE) -> Prediction:
        """Predicts canonical choices [architectures, decisions]; see `Surrogate.predict`."""
        return self.predict_in(np, choices, confidence)

    def predict_in(
        self, xp: Any, choices: Any, confidence: float, dtype: npt.DTypeLike = np.float64
    ) -> Prediction:
        """The same in NumPy or in a graph.

        Args:
          xp: NumPy or `nets.tensors`.
          choices: canonical, int64 [architectures, decisions].
          confidence: see `predict`.
          dtype: float64 always.
        """
        del dtype
        lost: Any = 0.0
        strain: Any = 0.0
        for number, own in enumerate(zip(self.insight.costs, self.insight.strains, strict=True)):
            cost, strained = (xp.take(xp.asarray(v), choices[:, number], axis=0) for v in own)
            lost, strain = lost + cost, strain + strained
        lost = lost + self.insight.any_cut * begun(strain)
        if _SURPRISES in self._state:  # older ones know none
            alike = self._alike(xp, choices)
            lost = lost - xp.matmul(alike, self._state[_SURPRISES][:, None])[:, 0]
        ends = np.quantile(self._residuals, [1.0 - confidence, 0.5, confidence])
        losses = [lost - end for end in ends]
        # Nothing is expected to gain by a loss, whatever surprised where little was known.
        losses[:2] = [xp.maximum(loss, 0.0) for loss in losses[:2]]
        low, metric, high = self._known(xp, choices, [self.insight.top - loss for loss in losses])
        span = self.scale.high - self.scale.low
        performance, scatter = (metric - self.scale.low) / span, 0.5 * (high - low) / span
        low, metric, high = (self._reached(xp, value) for value in (low, metric, high))
        if self.tuned:
            low, high = _scattered(xp, low, metric, high, confidence)
        return Prediction(performance, scatter, metric, low, high)

    def _known(self, xp: Any, choices: Any, expected: Sequence[Any]) -> list[Any]:
        """Metrics of these log-odds, and for a network that was scored its score."""
        metrics = [_metric_at(xp, odds) for odds in expected]
        if self.scored is None:
            return metrics
        same = xp.astype(choices[:, None] == xp.asarray(self.scored), xp.int64)
        same = xp.sum(same, axis=-1) == len(self.space.decisions)  # [architectures, scored]
        own = xp.matmul(xp.astype(same, xp.float64), self._state[_SCORES][:, None])[:, 0]
        return [xp.where(xp.any(same, axis=-1), own, metric) for metric in metrics]

    @property
    def tuned(self) -> bool:
        """Whether it predicts networks that are trained further than what was scored."""
        return _GAIN in self._state

    def _reached(self, xp: Any, scored: Any) -> Any:
        """What networks with such scores reach when they are trained to their end."""
        if not self.tuned:
            return scored
        places, reached = self._state[_GAIN].T
        within = reached[0]  # a sum of rises, each over its own part of the scores
        for begin, end, up in zip(places, places[1:], np.diff(reached), strict=False):
            if end > begin:
                part = xp.minimum(xp.maximum(scored - begin, 0.0), end - begin)
                within = within + part * (up / (end - begin))
            else:
                within = within + up * xp.astype(scored >= begin, xp.float64)
        # Below the least it reaches in proportion; above the most it gains as much.
        below = xp.minimum(scored / max(places[0], _ENDS[0]), 1.0)
        above = xp.maximum(scored - places[-1], 0.0)
        return xp.minimum(within * below + above, 1.0)

    def knowing(self, choices: Choices, metrics: Floats) -> InsightSurrogate:
        """The same with what some networks scored.

        Args:
          choices: canonical, each once [networks, decisions].
          metrics: their scores [networks].
        """
        order = np.lexsort(choices.T[::-1])  # stored records and fresh ones come in another
        choices, metrics = np.asarray(choices, np.int64)[order], np.asarray(metrics)[order]
        told = {_SCORED: choices, _SCORES: metrics.astype(np.float64)}
        beyond = log_odds(metrics) - self.insight.log_odds(choices)
        fresh = InsightSurrogate(self.space, {**self._state, **told, _SURPRISES: beyond})
        covariance = fresh._alike(np, choices) + _NOISE**2 * np.eye(len(beyond))
        surprises = np.linalg.solve(covariance, beyond)
        return InsightSurrogate(self.space, {**fresh._state, _SURPRISES: surprises})

    def _alike(self, xp: Any, choices: Any) -> Any:
        """Covariance of what networks score beyond expectations [architectures, scored]."""
        steps = np.array([max(len(d.values) - 1, 1) for d in self.space.decisions], np.float64)
        own, known = xp.astype(choices, xp.float64) / steps, self.scored / steps
        apart = xp.sum(xp.square(own), axis=1)[:, None] + (known**2).sum(axis=1)
        apart = xp.maximum(apart - 2.0 * xp.matmul(own, known.T), 0.0)
        return _DEVIATION**2 * xp.exp(-apart / (2.0 * _REACH**2))

    @property
    def scored(self) -> Choices | None:
        """The networks whose scores it knows [networks, decisions]; None for none."""
        return self._state.get(_SCORED)

    def with_gain(self, gain: np.ndarray) -> InsightSurrogate:
        """The same for deliveries that are trained further than what was scored.

        Args:
          gain: of some networks, what they scored and what they reached [networks, 2]. In between
            it is interpolated. What scores more does not reach less: where trainings say otherwise,
            their mean counts.
        """
        from scipy import optimize  # only fits need it

        ordered = np.asarray(gain, np.float64)[np.argsort(gain[:, 0], kind="stable")]
        ordered[:, 1] = optimize.isotonic_regression(ordered[:, 1]).x
        return InsightSurrogate(self.space, {**self._state, _GAIN: ordered})


def _scattered(xp: Any, low: Any, metric: Any, high: Any, confidence: float) -> tuple[Any, Any]:
    """An interval's ends, with what trainings differ by."""
    spread = statistics.NormalDist().inv_cdf(confidence) * _SCATTER

    def odds(value: Any) -> Any:
        share = xp.minimum(xp.maximum(value, _ENDS[0]), _ENDS[1])
        return xp.log(share / (1.0 - share))

    middle = odds(metric)
    below = xp.sqrt(xp.square(middle - odds(low)) + spread**2)
    above = xp.sqrt(xp.square(odds(high) - middle) + spread**2)
    return (
        xp.minimum(metric, _metric_at(xp, middle - below)),
        xp.maximum(metric, _metric_at(xp, middle + above)),
    )
