"""Reactions: what probing a network tells about the decisions of its space.

Generative synthesis (Wong et al. 2018, section 2) probes the vertices of a network with stimuli and
observes how they react. Here a vertex is what one decision is about, the channels of a group or the
weights of a layer, and its reaction is two things: how much the loss hangs on it, and how much of
its information each of the decision's values would lose.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

NOISE = 0.01  # of a vertex, as a share of its signal's power: 20 dB
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Reactions:
    """How one network reacted.

    Attributes:
      sensitivity: how much the loss hangs on what each decision is about, at least 0; 0 for a
        decision that is about nothing in the network [decisions].
      lost: of each decision, the share of information that each value loses [values].
    """

    sensitivity: Floats
    lost: tuple[Floats, ...]

    def __post_init__(self) -> None:
        if self.sensitivity.shape != (len(self.lost),):
            raise ValueError("each decision has a sensitivity and what its values lose")
        told = np.concatenate([self.sensitivity, *self.lost])
        if not np.isfinite(told).all() or told.min() < 0 or max(map(np.max, self.lost)) > 1:
            raise ValueError("sensitivities are at least 0, losses lie in 0..1")


def information(covariance: Floats, counts: npt.ArrayLike) -> Floats:
    """Bits that the first channels tell, as Gaussian ones with noise [counts].

    1/2 log2 det(I + S / n) of the covariance S of these channels: what they tell together, so that
    channels which say the same count once. n is `NOISE` of the mean variance of all of them.

    Args:
      covariance: of all channels [channels, channels].
      counts: how many channels each time, at least 1.
    """
    power = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    scaled = np.eye(len(covariance)) + covariance / (NOISE * power)
    # The leading minors of a positive definite matrix are those of its Cholesky factor.
    bits = np.cumsum(np.log2(np.diag(np.linalg.cholesky(scaled))))
    return np.asarray(bits[np.asarray(counts) - 1])


def rounded_information(noise: npt.ArrayLike) -> Floats:
    """The share of information that is left of a signal to which rounding adds noise.

    Args:
      noise: power of what is added, as shares of the signal's.
    """
    told = np.log2(1.0 + 1.0 / (np.asarray(noise, np.float64) + NOISE))
    return np.asarray(told / np.log2(1.0 + 1.0 / NOISE))
