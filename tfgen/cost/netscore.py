"""NetScore and information density: how much a network reaches with what it takes."""

from __future__ import annotations

from typing import Any

import numpy as np

_MILLION, _BILLION = 1e6, 1e9


def netscore(xp: Any, metric: Any, params: Any, macs: Any) -> Any:
    """Omega = 20 log10(a^2 / (p^1/2 m^1/2)) (Wong 2018, eq. 1, with alpha 2, beta = gamma 1/2).

    Args:
      xp: NumPy or TensorFlow.
      metric: above 0, of which 1 is 100 %: a is in %.
      params: p is in millions.
      macs: m is in billions.
    """
    logarithm = xp.log if hasattr(xp, "log") else xp.math.log
    reached = 2.0 * logarithm(100.0 * metric)
    taken = 0.5 * (logarithm(params / _MILLION) + logarithm(macs / _BILLION))
    return (20.0 / np.log(10.0)) * (reached - taken)


def information_density(metric: float, params: float) -> float:
    """Percent of the metric for each million parameters (Canziani et al. 2016)."""
    return 100.0 * metric / (params / _MILLION)
