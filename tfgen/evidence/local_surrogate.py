"""Exact near a budget: a Gaussian process of the records that lie there.

The encoder learned from all records and is right on average; among the few networks that are best
within a budget it is off by more than they differ. A process of some hundred records near the
budget tells those apart. It sees log(1 / (1 - metric)), in which the step from 0.98 to 0.99 counts
as much as that from 0.8 to 0.9.
"""

from __future__ import annotations

import contextlib

import numpy as np
import numpy.typing as npt

from tfgen import seeds
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.evidence import gaussian_process
from tfgen.evidence.gaussian_process import GaussianProcess
from tfgen.evidence.insight import InsightSurrogate
from tfgen.evidence.surrogate import Prediction, Surrogate, conformal, ends
from tfgen.space.search_space import Choices

Floats = npt.NDArray[np.float64]
_RECORDS = 512  # that a process knows
_BEST = 0.5  # share of these that are the best; the others tell it what is bad
_FITTED = 256  # that its lengths are fitted to
_LEAST, _LEAST_UNSEEN = 64, 16
_BEYOND = 1.5  # times a limit: what is a little too large tells what is good, too
_NEAREST_TO_1 = 1e-4


def near(
    surrogate: Surrogate | InsightSurrogate,
    costs: CostModel,
    budget: Budget,
    optimism: float = 0.0,
) -> LocalSurrogate | Surrogate | InsightSurrogate:
    """Who predicts best what lies within the limits of a budget.

    The process, if it tells those records that the encoder has not learned from, each left out,
    better than the encoder does. Else, and where nothing is limited or too few records lie within
    the limits or little beyond, the encoder itself.

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
    choices, metrics = known.choices, known.metrics
    if len(metrics) < _LEAST:
        return surrogate
    told = costs.bounds(choices, 0.5, budget.limits)[0]
    within = [told[metric] <= _BEYOND * limit for metric, limit in budget.limits.items()]
    rows = np.flatnonzero(np.logical_and.reduce(within))
    if len(rows) < _LEAST:
        return surrogate
    random = seeds.stream(0, "local surrogate")
    # By what is expected of them: the best by their scores owe these to luck, too.
    expected = surrogate.predict(choices[rows]).metric
    rows = rows[np.argsort(-expected, kind="stable")]
    best = int(_BEST * _RECORDS)
    rows = np.concatenate([rows[:best], random.permutation(rows[best:])[: _RECORDS - best]])
    seen, at = _logarithms(metrics[rows]), surrogate.encoding.coordinates(choices[rows])
    with _one_thread():
        process = gaussian_process.fit(at, seen, _FITTED, random)
        off, deviations = process.left_out()
    unseen = known.unseen[rows]
    encoder = _logarithms(surrogate.predict(choices[rows]).metric) - seen
    if unseen.sum() < _LEAST_UNSEEN:
        return surrogate
    error, encoders = _root_mean_square(off[unseen]), _root_mean_square(encoder[unseen])
    if error > encoders:
        return surrogate
    residuals = conformal(-off / deviations)
    return LocalSurrogate(surrogate, process, residuals, optimism, error, encoders)


def _logarithms(metrics: Floats) -> Floats:
    """log(1 / (1 - metric))."""
    return -np.log(np.maximum(1.0 - metrics, _NEAREST_TO_1))


def _one_thread() -> contextlib.AbstractContextManager[object]:
    """Matrices of hundreds: more threads only wait for each other, and for trainings."""
    import threadpoolctl

    return threadpoolctl.threadpool_limits(1, user_api="blas")


def _root_mean_square(values: Floats) -> float:
    return float(np.sqrt(np.square(values).mean()))


class LocalSurrogate:
    """Predicts as the encoder does (`evidence.surrogate`), by a process of records near a budget.

    Its intervals are conformal, of each record's residual where it was left out.

    Attributes:
      error: root mean square error of records that the encoder has not learned from, each left out,
        in log(1 / (1 - metric)).
      encoder_error: the encoder's of the same records.
    """

    def __init__(
        self,
        encoder: Surrogate,
        process: GaussianProcess,
        residuals: Floats,
        optimism: float,
        error: float,
        encoder_error: float,
    ):
        self.error = error
        self.encoder_error = encoder_error
        self._encoder = encoder
        self._process = process
        self._residuals = residuals
        self._optimism = optimism

    def predict(self, choices: Choices, confidence: float = 0.95) -> Prediction:
        """Predicts canonical choices [architectures, decisions]; see `Surrogate.predict`."""
        encoder, scale = self._encoder, self._encoder.scale
        with _one_thread():
            expected, unsure = self._process.predict(encoder.encoding.coordinates(choices))
        expected = expected + self._optimism * unsure
        deviation = np.hypot(unsure, self._process.noise_deviation)
        below, above = ends(self._residuals, confidence)
        metric, low, high = (
            1.0 - np.exp(-(expected + end * deviation)) for end in (0.0, below, above)
        )
        spread = (1.0 - metric) * deviation  # to first order
        gap_below, gap_above = encoder.gap(confidence)
        return Prediction(
            performance=(metric - scale.low) / (scale.high - scale.low),
            scatter=spread / (scale.high - scale.low),
            metric=metric,
            low=low + gap_below * spread,
            high=high + gap_above * spread,
        )
