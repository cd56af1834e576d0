"""A new device from about ten measured networks, given tables of known devices.

A latency is taken to be a sum: what each feature of a network costs, times how often the network
has it. Known devices say what features cost and how much devices differ in that; the measured
networks of the new device then correct it (Bayesian linear regression, in closed form).

What a device executes of a network is not known either: one computes what leads nowhere, another
leaves it out. So features come in several readings of the same networks, and the measurements also
say which reading holds, each weighed by its evidence. Because what an op costs does not depend on
which ops are executed, the costs of known devices serve every reading.

Nothing here knows a space; `space/nasbench201_readings.py` has the features of one.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from tfgen import errors
from tfgen.cost.latency import Floats

_RIDGE = 1e-3  # against features that no known device tells apart; a share of a feature's scale
# In units of the device's mean latency. How far a cost may lie from all that known devices show:
# little, or as much as a tenth for what occurs a standard deviation more often than in the mean.
_SLACKS = np.array([0.03, 0.1])
_NOISES = np.array([0.02, 0.04, 0.08, 0.16, 0.32])  # from a quiet accelerator to a busy phone
_LEAST = 0.05  # latencies below this share of the mean are not taken from the sum as they are


@dataclasses.dataclass(frozen=True)
class Adapted:
    """Latencies on the new device, each [architectures].

    Attributes:
      ms: the expected value, above 0.
      sigma: standard deviation of the logarithm of what would be measured, its noise included.
      evidence: the probability of each reading [readings].
    """

    ms: Floats
    sigma: Floats
    evidence: Floats


@dataclasses.dataclass(frozen=True)
class NewDevice:
    """What features cost on a device of which some networks were measured; by `DevicePrior.learn`.

    Attributes:
      scale: of each feature that costs are told for, the constant first [features].
      evidence: the probability of each reading [readings].
      costs_ms: the expected costs of a unit of scale [readings, features].
      covariance: of the costs, in ms**2 [readings, features, features].
      noise: variance of a measurement about its sum of costs, in ms**2 [readings].
      least_ms: below this, sums are not taken as they are.
    """

    scale: Floats
    evidence: Floats
    costs_ms: Floats
    covariance: Floats
    noise: Floats
    least_ms: float

    def latencies(self, readings: Floats) -> Adapted:
        """Latencies of architectures by their features [readings, architectures, features]."""
        features = _with_constant(readings, self.scale)
        sums = np.einsum("raf,rf->ra", features, self.costs_ms)
        variance = ((features @ self.covariance) * features).sum(axis=2) + self.noise[:, None]
        mean = self.evidence @ sums  # [architectures]
        variance = self.evidence @ (variance + np.square(sums - mean))
        sigma = np.sqrt(variance) / np.maximum(mean, self.least_ms)
        return Adapted(_above_zero(mean, self.least_ms), sigma, self.evidence)


@dataclasses.dataclass(frozen=True)
class DevicePrior:
    """What known devices say of an unknown one; made by `fit`.

    Attributes:
      features: that it was fitted to [readings, architectures, features].
      scale: of each feature, after that of a constant [1 + features].
      mean: of the costs of a unit of scale, in units of a device's mean latency [1 + features].
      covariance: of the costs over devices [1 + features, 1 + features].
    """

    features: Floats
    scale: Floats
    mean: Floats
    covariance: Floats

    @classmethod
    def fit(cls, known_ms: npt.ArrayLike, readings: npt.ArrayLike) -> DevicePrior:
        """Learns what features cost.

        Args:
          known_ms: of known devices, above 0, NaN where not measured [architectures, devices].
          readings: features of the architectures, the same ones in each reading
            [readings, architectures, features].

        Raises:
          UsageError: shapes that do not agree, latencies that are not above 0, features that are
            not finite, fewer than two devices, or one that has no latency.
        """
        latencies = np.asarray(known_ms, np.float64)
        features = np.asarray(readings, np.float64)
        if latencies.ndim != 2 or features.ndim != 3 or features.shape[1] != len(latencies):
            raise errors.UsageError(
                f"latencies {latencies.shape} and features {features.shape} must be "
                "[architectures, devices] and [readings, architectures, features]"
            )
        measured = ~np.isnan(latencies)
        if latencies.shape[1] < 2 or not measured.any(axis=0).all():
            raise errors.UsageError("give two known devices or more, each with a latency")
        _check_ms(latencies[measured])
        if not np.isfinite(features).all():
            raise errors.UsageError("features must be finite; leave out what is not known")
        spread = features.std(axis=(0, 1))
        scale = np.concatenate([[1.0], np.where(spread > 0, spread, 1.0)])
        scaled = _with_constant(features, scale)
        costs = np.stack(
            [
                _costs(scaled, latencies[rows, device], rows)
                for device, rows in enumerate(measured.T)
            ]
        )  # [devices, 1 + features]
        return cls(features, scale, costs.mean(axis=0), np.cov(costs, rowvar=False, ddof=0))

    def adapt(self, rows: npt.ArrayLike, measured_ms: npt.ArrayLike) -> Adapted:
        """Latencies of all architectures on a device of which some were measured.

        Args:
          rows: which architectures were measured [networks].
          measured_ms: their latencies, above 0 [networks].

        Raises:
          UsageError: no network, shapes that do not agree, a row that does not exist, or a latency
            that is not above 0.
        """
        chosen = np.asarray(rows, np.int64)
        if not ((chosen >= 0) & (chosen < self.features.shape[1])).all():
            raise errors.UsageError(f"rows must lie in 0..{self.features.shape[1] - 1}")
        return self.learn(self.features[:, chosen], measured_ms).latencies(self.features)

    def learn(self, readings: npt.ArrayLike, measured_ms: npt.ArrayLike) -> NewDevice:
        """What features cost on a device of which some networks were measured.

        Args:
          readings: features of the measured networks [readings, networks, features].
          measured_ms: their latencies, above 0 [networks].

        Raises:
          UsageError: no network, shapes that do not agree, or a latency that is not above 0.
        """
        measured = np.asarray(measured_ms, np.float64)
        features = np.asarray(readings, np.float64)
        if measured.ndim != 1 or not len(measured) or features.shape[1:-1] != measured.shape:
            raise errors.UsageError(
                f"give one latency for each network, got {measured.shape} latencies for "
                f"{features.shape[1:-1]} networks"
            )
        _check_ms(measured)
        x = _with_constant(features, self.scale)  # [readings, networks, features]
        usual = x @ self.mean  # [readings, networks]
        level_ms = measured.mean() / np.maximum(usual.mean(axis=1), _LEAST)  # [readings]
        surprise = measured / level_ms[:, None] - usual

        # Candidates: each reading with each slack and each noise [readings, slacks, noises, ...].
        slack = np.square(_SLACKS)[:, None, None] * np.eye(len(self.mean))
        prior = self.covariance + slack  # [slacks, features, features]
        gain = x[:, None] @ prior  # [readings, slacks, networks, features]
        noise = np.square(_NOISES)[:, None, None] * np.eye(len(measured))
        kernel = (gain @ x[:, None].swapaxes(2, 3))[:, :, None] + noise
        targets = surprise[:, None, None, :, None]
        solved = np.linalg.solve(kernel, np.broadcast_to(targets, (*kernel.shape[:-1], 1)))
        fit = (targets * solved).sum(axis=(3, 4))
        log_evidence = -0.5 * (fit + np.linalg.slogdet(kernel)[1])
        log_evidence -= len(measured) * np.log(level_ms)[:, None, None]
        weights = np.exp(log_evidence - log_evidence.max())
        weights /= weights.sum()  # [readings, slacks, noises]

        gain = gain[:, :, None].swapaxes(3, 4)  # [readings, slacks, 1, features, networks]
        costs = self.mean + (gain @ solved)[..., 0]
        doubt = prior[:, None] - gain @ np.linalg.solve(kernel, gain.swapaxes(3, 4))
        return self._mixed(weights, level_ms, costs, doubt)

    def _mixed(self, weights: Floats, level_ms: Floats, costs: Floats, doubt: Floats) -> NewDevice:
        """Each reading's candidates as one: their mean and variance."""
        evidence = weights.sum(axis=(1, 2))  # [readings]
        share = weights / np.maximum(evidence, np.finfo(np.float64).tiny)[:, None, None]
        cost = np.einsum("rsn,rsnf->rf", share, costs)
        apart = costs - cost[:, None, None]
        within = np.einsum("rsn,rsnfg->rfg", share, doubt + apart[..., None] * apart[..., None, :])
        noise = np.einsum("rsn,n->r", share, np.square(_NOISES))
        return NewDevice(
            scale=self.scale,
            evidence=evidence,
            costs_ms=cost * level_ms[:, None],
            covariance=within * np.square(level_ms)[:, None, None],
            noise=noise * np.square(level_ms),
            least_ms=_LEAST * float(evidence @ level_ms),
        )


def principal_components(known_ms: npt.ArrayLike, count: int) -> Floats:
    """Features where none are known but the latencies of devices [architectures, count].

    The first principal components of the logarithms, of the devices that have every architecture;
    each of variance one.

    Args:
      known_ms: of known devices, above 0, NaN where not measured [architectures, devices].
      count: at most as many as there are such devices; raises UsageError otherwise.
    """
    latencies = np.asarray(known_ms, np.float64)
    complete = latencies[:, np.isfinite(latencies).all(axis=0)]
    if not 0 < count <= complete.shape[1]:
        raise errors.UsageError(
            f"{count} components of {complete.shape[1]} devices that have every architecture"
        )
    logs = np.log(complete)
    logs = (logs - logs.mean(axis=0)) / logs.std(axis=0)
    left = np.linalg.svd(logs, full_matrices=False)[0]
    return np.asarray(left[:, :count] * np.sqrt(len(left)))


def _costs(features: Floats, ms: Floats, rows: npt.NDArray[np.bool_]) -> Floats:
    """A known device's costs under the reading that fits it best [features].

    Args:
      features: [readings, architectures, features].
      ms: of the measured architectures [measured].
      rows: which were measured [architectures].
    """
    x, y = features[:, rows], ms / ms.mean()
    gram = x.swapaxes(1, 2) @ x / len(y) + _RIDGE * np.eye(x.shape[2])
    costs = np.linalg.solve(gram, (x.swapaxes(1, 2) @ y / len(y))[..., None])[..., 0]
    squares = np.square((x @ costs[..., None])[..., 0] - y).sum(axis=1)
    best = int(np.argmin(squares))
    # A mean of 1 over all architectures, whichever of them were measured.
    return np.asarray(costs[best] / max(np.mean(features[best] @ costs[best]), _LEAST))


def _with_constant(features: Floats, scale: Floats) -> Floats:
    """A constant and the features, in units of scale [..., 1 + features]."""
    constant = np.ones((*features.shape[:-1], 1))
    return np.concatenate([constant, features], axis=-1) / scale


def _check_ms(ms: Floats) -> None:
    if not (np.isfinite(ms).all() and (ms > 0).all()):
        raise errors.UsageError("latencies must be finite and above 0")


def _above_zero(values: Floats, least: float) -> Floats:
    """The values; those below `least` bent so that they stay above 0 in the same order."""
    bent = least * np.exp(np.minimum(values / least - 1, 0.0))
    return np.where(values > least, values, bent)
