"""How well a generator keeps to its condition: the NAGAN paper's normalised distances."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import seeds

_LOW_QUANTILE, _HIGH_QUANTILE = 0.01, 0.99


@dataclasses.dataclass(frozen=True)
class PerformanceScale:
    """The map from a metric P to the normalised performance p that conditions speak of.

    p = clip((P - low) / (high - low), 0, 1); low and high are the 1 % and 99 % quantiles of the
    records, frozen before anything is fitted. No rank transform.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"scale needs low < high, got {self.low} and {self.high}")

    @classmethod
    def of(cls, metrics: npt.ArrayLike) -> PerformanceScale:
        """The scale of the records' metrics [records]."""
        low, high = np.quantile(np.asarray(metrics, np.float64), [_LOW_QUANTILE, _HIGH_QUANTILE])
        return cls(float(low), float(high))

    def normalise(self, metric: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """P -> p in 0..1."""
        share = (np.asarray(metric, np.float64) - self.low) / (self.high - self.low)
        return np.asarray(np.clip(share, 0.0, 1.0))

    def metric(self, performance: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """p -> P."""
        return np.asarray(self.low + np.asarray(performance, np.float64) * (self.high - self.low))

    def to_json(self) -> dict[str, float]:
        return {"low": self.low, "high": self.high}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PerformanceScale:
        return cls(data["low"], data["high"])


def mean_distance(performances: npt.ArrayLike, conditions: npt.ArrayLike) -> float:
    """mDist: the mean of |p - c| over generated networks (NAGAN paper, section 5.1).

    The paper's formula lacks the absolute value that its eq. 1 has; without it errors cancel.
    """
    distance = np.abs(np.asarray(performances, np.float64) - np.asarray(conditions, np.float64))
    return float(distance.mean())


def bootstrap_interval(
    values: Sequence[float] | npt.NDArray[np.float64],
    seed: int,
    level: float = 0.95,
    resamples: int = 10_000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`."""
    array = np.asarray(values, np.float64)
    random = seeds.stream(seed, "bootstrap")
    rows = random.integers(len(array), size=(resamples, len(array)))
    low, high = np.quantile(array[rows].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
