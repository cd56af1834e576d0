"""AdaptedLatency: latencies on a device of which a few networks were measured, by known devices.

Where it is known what runtimes execute of a network, latencies are sums over that (see
`space/nasbench201_readings.py`). Of other spaces only the known devices' latencies are known: a new
device's are taken to be a sum of their principal components.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfgen import errors, seeds
from tfgen.cost.adaptation import Adapted, DevicePrior
from tfgen.cost.latency import Floats, Interval, LatencyModel
from tfgen.space.nasbench201_readings import nasbench201_readings
from tfgen.space.search_space import Choices, SearchSpace

FEWEST_NETWORKS = 3  # measured on the new device
# Features of all networks of a space, in the order of the benchmark that numbers them.
READINGS: Mapping[str, Callable[[Choices], Floats]] = {"nasbench201": nasbench201_readings}

_Describe = Callable[[Choices], Floats]  # choices -> [readings, architectures, features]

_REFERENCE = 2_000  # networks of a space that is not numbered, on which devices are compared
_COMPONENTS = 3
_LEAST_COMPONENT = 1e-6  # of the largest; less is rounding
_BATCH = 10_000  # architectures described at a time


class AdaptedLatency:
    """Latencies on a new device.

    Upper ends rest on how known devices differ: a few measured networks are too few to keep some
    back and calibrate on them.

    Attributes:
      device: the name that budgets use.
      remark: what a user should know of these latencies.
      sigma: of the logarithm of a latency, the median over the space's networks.
    """

    def __init__(
        self,
        device: str,
        space: SearchSpace,
        known: Mapping[str, LatencyModel],
        choices: Choices,
        ms: Floats,
        numbered: Choices | None = None,
    ):
        """Learns.

        Args:
          device: the name that budgets use.
          space: of the networks.
          known: devices whose latencies are known, by name.
          choices: canonical, of the networks measured on the new device [networks, decisions].
          ms: what they took [networks].
          numbered: all networks of a space of READINGS in the order of its benchmark's numbers
            [architectures, decisions]; None where they have none.

        Raises:
          UsageError: fewer than two known devices, or one that does not tell every network; fewer
            than FEWEST_NETWORKS were measured, or a latency is not above 0.
        """
        if len(known) < 2:
            raise errors.UsageError(f"give two known devices or more, got {len(known)}")
        if len(choices) < FEWEST_NETWORKS:
            raise errors.UsageError(f"measure {FEWEST_NETWORKS} networks, got {len(choices)}")
        self.device = device
        self.remark = (
            f"predicted from {len(ms)} networks measured on {device} and {len(known)} known "
            "devices; the confidence rests on how those differ and is not checked on this one"
        )
        if numbered is not None and space.name in READINGS:
            reference = numbered
            known_ms = _known_ms(space, known, reference)
            self._describe = _by_number(space, numbered)
        else:
            reference = _reference(space)
            known_ms = _known_ms(space, known, reference)
            self._describe = _by_components(tuple(known.values()), known_ms)
        prior = DevicePrior.fit(known_ms, self._describe(reference))
        self._new = prior.learn(self._describe(choices), ms)
        self.sigma = float(np.median(self._new.latencies(prior.features).sigma))

    def predict(self, choices: Choices, confidence: float) -> Interval:
        """Latencies of canonical choices [architectures, decisions]; see `LatencyModel`."""
        if not 0 < confidence < 1:
            raise errors.UsageError(f"confidence must lie above 0 and below 1, got {confidence:g}")
        told = [
            self._told(choices[start : start + _BATCH])
            for start in range(0, max(len(choices), 1), _BATCH)
        ]
        ms = np.concatenate([part.ms for part in told])
        sigma = np.concatenate([part.sigma for part in told])
        quantile = max(statistics.NormalDist().inv_cdf(confidence), 0.0)
        return Interval(ms, ms * np.exp(quantile * sigma))

    def _told(self, choices: Choices) -> Adapted:
        return self._new.latencies(self._describe(choices))


def tells_all(space: SearchSpace, model: LatencyModel) -> bool:
    """Whether a device's latencies cover a space, so that they can serve for others."""
    return bool(np.isfinite(model.predict(_reference(space), 0.5).high_ms).all())


def _reference(space: SearchSpace) -> Choices:
    return space.sample(_REFERENCE, seeds.stream(0, "reference", space.name))


def _known_ms(space: SearchSpace, known: Mapping[str, LatencyModel], reference: Choices) -> Floats:
    """What networks take on known devices [architectures, devices]."""
    columns = []
    for name, model in known.items():
        interval = model.predict(reference, 0.5)
        if not np.isfinite(interval.high_ms).all():
            raise errors.UsageError(f"device {name!r} does not tell every network of {space.name}")
        columns.append(interval.ms)
    return np.stack(columns, axis=1)


def _by_number(space: SearchSpace, numbered: Choices) -> _Describe:
    features = READINGS[space.name](numbered)
    sizes = tuple(len(decision.values) for decision in space.decisions)
    rows = np.zeros(math.prod(sizes), np.int64)
    rows[np.ravel_multi_index(tuple(numbered.T), sizes)] = np.arange(len(numbered))
    return lambda choices: features[:, rows[np.ravel_multi_index(tuple(choices.T), sizes)]]


def _by_components(known: Sequence[LatencyModel], known_ms: Floats) -> _Describe:
    """Principal components of what networks take on known devices."""
    mean, spread = known_ms.mean(axis=0), known_ms.std(axis=0)
    if not (spread > 0).all():
        raise errors.UsageError("on a known device all networks take the same time: leave it out")
    _, sizes, directions = np.linalg.svd((known_ms - mean) / spread, full_matrices=False)
    kept = directions[:_COMPONENTS][sizes[:_COMPONENTS] > _LEAST_COMPONENT * sizes[0]]

    def describe(choices: Choices) -> Floats:
        ms = np.stack([model.predict(choices, 0.5).ms for model in known], axis=1)
        return np.asarray(((ms - mean) / spread @ kept.T)[None])

    return describe
