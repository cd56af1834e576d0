"""Exact near a budget: a Gaussian process of the records that lie there.

The encoder learned from all records and is right on average; among the few networks that are best
within a budget it is off by more than they differ. A process of some hundred records near the
budget tells those apart. It sees log(1 / (1 - metric)), in which the step from 0.98 to 0.99 counts
as much as that from 0.8 to 0.9.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from tfgen import seeds
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CONFIDENCE, CostModel
from tfgen.evidence import gaussian_process
from tfgen.evidence.gaussian_process import GaussianProcess
from tfgen.evidence.insight import InsightSurrogate
from tfgen.evidence.surrogate import Prediction, Surrogate, conformal, ends
from tfgen.space.search_space import Choices

Floats = npt.NDArray[np.float64]
_RECORDS = 512  # that a process knows
_BEST = 0.5  # share of these that are the best; the others tell it what is bad
# Half of the records are what its lengths are fitted to. By the others it is judged: enough of them
# for ends that a hundredth lies beyond, and some that are new to the encoder.
_LEAST, _LEAST_UNSEEN = 200, 16
_BEYOND = 1.5  # times a limit: what is a little too large tells what is good, too
_NEAREST_TO_1 = 1e-4


def near(
    surrogate: Surrogate | InsightSurrogate,
    costs: CostModel,
    budget: Budget,
    optimism: float = 0.0,
) -> LocalSurrogate | Surrogate | InsightSurrogate:
    """Who predicts best what lies within the limits of a budget.

    The encoder itself where nothing is limited, where fewer than 200 records lie within the limits
    or little beyond, and where it tells records better, by more than one standard error, than a
    process does: records that neither has learned from, each left out, none of those that the
    process's lengths were fitted to. Else the process.

    Args:
      surrogate: that of the space, with its records.
      costs: of the space's networks.
      budget: what is asked.
      optimism: how many standard deviations of what the process is not sure of are added to what it
        predicts; above 0 for networks that will be trained to learn from.
    """
    if isinstance(surrogate, InsightSurrogate) or not budget.limits:
        return surrogate
    known = surrogate.known
    choices, metrics = known.choices, np.maximum(known.metrics, surrogate.floor)
    if len(metrics) < _LEAST:
        return surrogate
    told = costs.bounds(choices, 0.5, budget.limits)[0]
    within = [told[metric] <= _BEYOND * limit for metric, limit in budget.limits.items()]
    rows = np.flatnonzero(np.logical_and.reduce(within))
    if len(rows) < _LEAST:
        return surrogate
    random = seeds.stream(0, "local surrogate")
    # By what is expected of them: the best by their scores owe these to luck, too.
    expected = np.minimum(surrogate.predict(choices[rows]).metric, metrics[rows].max())
    order = np.argsort(-expected, kind="stable")
    best = int(_BEST * _RECORDS)
    order = np.concatenate([order[:best], random.permutation(order[best:])[: _RECORDS - best]])
    rows, expected = rows[order], expected[order]
    tuned = random.permutation(len(rows))[: len(rows) // 2]
    new = np.ones(len(rows), np.bool_)
    new[tuned] = False
    unseen = new & known.unseen[rows]
    if unseen.sum() < _LEAST_UNSEEN:
        return surrogate
    seen, at = _logarithms(metrics[rows]), surrogate.encoding.coordinates(choices[rows])
    with gaussian_process.one_thread():
        process = gaussian_process.fit(at, seen, tuned)
        off, deviations = process.left_out()
    own, encoders = np.square(off)[unseen], np.square(_logarithms(expected) - seen)[unseen]
    worse = own - encoders
    # Where some fifty records cannot tell, the process: it does not run away from what it knows.
    if worse.mean() > worse.std(ddof=1) / np.sqrt(len(worse)):
        return surrogate
    residuals = conformal((-off / deviations)[new])
    errors = (float(np.sqrt(squares.mean())) for squares in (own, encoders))
    return LocalSurrogate(surrogate, process, residuals, optimism, *errors)


def _logarithms(metrics: Floats) -> Floats:
    """log(1 / (1 - metric))."""
    return -np.log(np.maximum(1.0 - metrics, _NEAREST_TO_1))


@dataclasses.dataclass(frozen=True)
class LocalSurrogate:
    """Predicts as the encoder does (`evidence.surrogate`), by a process of records near a budget.

    Its intervals are conformal, of the residuals of records where each was left out, none of those
    that its lengths were fitted to.

    Attributes:
      encoder: in whose scale it predicts.
      process: of log(1 / (1 - metric)).
      residuals: quantiles, as `conformal` makes them.
      optimism: see `near`.
      error: root mean square error of such records that are new to the encoder too, in
        log(1 / (1 - metric)).
      encoder_error: the encoder's of the same records.
    """

    encoder: Surrogate
    process: GaussianProcess
    residuals: Floats
    optimism: float
    error: float
    encoder_error: float

    def predict(self, choices: Choices, confidence: float = CONFIDENCE) -> Prediction:
        """Predicts canonical choices [architectures, decisions]; see `Surrogate.predict`."""
        encoder, scale = self.encoder, self.encoder.scale
        with gaussian_process.one_thread():
            expected, unsure = self.process.predict(encoder.encoding.coordinates(choices))
        expected = expected + self.optimism * unsure
        deviation = np.hypot(unsure, self.process.noise_deviation)
        below, above = ends(self.residuals, confidence)
        metric, low, high = (
            1.0 - np.exp(-(expected + end * deviation)) for end in (0.0, below, above)
        )
        span = scale.high - scale.low
        gaps = encoder.gap(confidence)
        if any(gaps):  # in the encoder's scatters, as they were measured
            scatter = encoder.predict(choices).scatter * span
            low, high = low + gaps[0] * scatter, high + gaps[1] * scatter
        return Prediction(
            performance=(metric - scale.low) / span,
            scatter=(1.0 - metric) * deviation / span,  # to first order
            metric=metric,
            low=low,
            high=high,
        )
