"""Gaussian process regression with a length for each feature (Rasmussen and Williams 2006).

The kernel is Matern's with nu = 2.5 (eq. 4.17), its lengths, its amplitude and the noise are those
of the largest marginal likelihood (eq. 5.8). A few hundred observations take a tenth of a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_LENGTHS, _AMPLITUDES, _NOISES = (0.05, 50.0), (0.02, 50.0), (1e-4, 4.0)
_FIRST_NOISE = 0.3
_STEPS = 30  # of L-BFGS
_JITTER = 1e-8
_AT_ONCE = 4096  # rows, for the memory of their distances


@dataclasses.dataclass(frozen=True)
class GaussianProcess:
    """A process that knows some observations.

    Attributes:
      x: what was observed [observations, features].
      mean: of the observations.
      scale: their standard deviation; amplitude and noise are in its squares.
      lengths: how far a feature moves until the function is another [features].
      amplitude: variance of the function.
      noise: variance of one observation around it.
      factor: lower Cholesky factor of the observations' covariance [observations, observations].
      weights: covariance^-1 times the scaled observations [observations].
    """

    x: Floats
    mean: float
    scale: float
    lengths: Floats
    amplitude: float
    noise: float
    factor: Floats
    weights: Floats

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of one observation around the function."""
        return self.scale * float(np.sqrt(self.noise))

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """The function's mean and standard deviation at x [rows, features], both [rows]."""
        starts = range(0, max(len(x), 1), _AT_ONCE)
        means, deviations = zip(*(self._predict(x[i : i + _AT_ONCE]) for i in starts), strict=True)
        return np.concatenate(means), np.concatenate(deviations)

    def _predict(self, x: Floats) -> tuple[Floats, Floats]:
        from scipy import linalg

        shared = self.amplitude * _matern(_distances(x / self.lengths, self.x / self.lengths))
        told = linalg.solve_triangular(self.factor, shared.T, lower=True, check_finite=False)
        variance = np.maximum(self.amplitude - np.einsum("or,or->r", told, told), 0.0)
        return self.mean + self.scale * (shared @ self.weights), self.scale * np.sqrt(variance)

    def left_out(self) -> tuple[Floats, Floats]:
        """What the others tell of each observation, noise included: mean and deviation (eq. 5.12).

        Both [observations]; the means are less what was observed, so they are errors.
        """
        precision = np.diag(_inverse(self.factor))
        return -self.scale * self.weights / precision, self.scale / np.sqrt(precision)


def fit(x: Floats, y: Floats, tuned: npt.NDArray[np.int64]) -> GaussianProcess:
    """The process of the observations.

    Args:
      x: what was observed [observations, features].
      y: what was seen there [observations].
      tuned: rows that lengths, amplitude and noise are fitted to. All are known afterwards, but
        what `left_out` tells of these rows is too good: with many features, much too good.
    """
    from scipy import linalg, optimize

    mean, scale = float(y.mean()), float(max(y.std(), 1e-9))
    scaled = (y - mean) / scale
    features = x.shape[1]
    bounds = np.log([_LENGTHS] * features + [_AMPLITUDES, _NOISES])
    start = np.zeros(features + 2)
    start[-1] = np.log(_FIRST_NOISE)
    found = optimize.minimize(
        _negative_log_likelihood,
        start,
        (x[tuned], scaled[tuned]),
        "L-BFGS-B",
        jac=True,
        bounds=bounds,
        options={"maxiter": _STEPS},
    )
    lengths, amplitude, noise = _parts(found.x)
    covariance = amplitude * _matern(_distances(x / lengths, x / lengths))
    covariance[np.diag_indices(len(x))] += noise + _JITTER
    factor = linalg.cholesky(covariance, lower=True, check_finite=False)
    weights = linalg.cho_solve((factor, True), scaled, check_finite=False)
    return GaussianProcess(x, mean, scale, lengths, amplitude, noise, factor, weights)


def one_thread() -> contextlib.AbstractContextManager[object]:
    """Matrices of hundreds: more threads only wait for each other, and for trainings."""
    return _libraries().limit(limits=1, user_api="blas")


@functools.cache
def _libraries() -> Any:
    """The process's BLAS libraries, looked for once: that takes as long as a process's answer."""
    import threadpoolctl
    from scipy import linalg  # noqa: F401  only what is loaded is found, and it brings its own

    return threadpoolctl.ThreadpoolController()


def _inverse(factor: Floats) -> Floats:
    """(L L^T)^-1 of a lower factor L, in half the time of solving for every unit vector."""
    from scipy import linalg

    lower, _ = linalg.lapack.dpotri(factor, lower=True)
    both = lower + lower.T  # above the diagonal a factor is 0
    both[np.diag_indices(len(both))] /= 2.0
    return np.asarray(both)


def _parts(logarithms: Floats) -> tuple[Floats, float, float]:
    """Lengths, amplitude and noise."""
    values = np.exp(logarithms)
    return values[:-2], float(values[-2]), float(values[-1])


def _distances(a: Floats, b: Floats) -> Floats:
    """sqrt(5) times the distance of each row of a from each of b [rows of a, rows of b]."""
    squares = np.einsum("rf,rf->r", a, a)[:, None] + np.einsum("rf,rf->r", b, b) - 2.0 * (a @ b.T)
    return np.sqrt(5.0 * np.maximum(squares, 0.0))


def _matern(distances: Floats) -> Floats:
    """Eq. 4.17 of distances times sqrt(5)."""
    return np.asarray((1.0 + distances + distances**2 / 3.0) * np.exp(-distances))


def _negative_log_likelihood(logarithms: Floats, x: Floats, y: Floats) -> tuple[float, Floats]:
    """Eq. 5.8 without its constant, and its gradient (eq. 5.9)."""
    from scipy import linalg

    lengths, amplitude, noise = _parts(logarithms)
    at = x / lengths
    distances = _distances(at, at)
    covariance = amplitude * _matern(distances)
    whole = covariance + (noise + _JITTER) * np.eye(len(y))
    factor = linalg.cholesky(whole, lower=True, check_finite=False)
    weights = linalg.cho_solve((factor, True), y, check_finite=False)
    slope = _inverse(factor) - np.outer(weights, weights)  # 2 d(value) / d(covariance)
    # d(covariance) / d(log length) = amplitude 5/3 (1 + r) exp(-r) (difference / length)^2
    pulled = slope * (amplitude * 5.0 / 3.0 * (1.0 + distances) * np.exp(-distances))
    gradient = np.empty_like(logarithms)
    gradient[:-2] = pulled.sum(axis=1) @ at**2 - np.einsum("of,of->f", at, pulled @ at)
    gradient[-2] = 0.5 * np.sum(slope * covariance)
    gradient[-1] = 0.5 * noise * np.trace(slope)
    value = 0.5 * y @ weights + np.log(np.diag(factor)).sum()
    return float(value), gradient
