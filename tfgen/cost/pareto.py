"""Fronts: networks that no other one beats in both cost and quality, and how much they cover."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def front(cost: Floats, quality: Floats) -> npt.NDArray[np.int64]:
    """Rows, from cheap to dear, that no other row beats or equals in both.

    Args:
      cost: the less the better [networks].
      quality: the more the better [networks].
    """
    order = np.lexsort((-quality, cost))
    best = np.maximum.accumulate(quality[order])
    before = np.concatenate([[-np.inf], best[:-1]])
    return np.asarray(order[quality[order] > before])


def hypervolume(cost: Floats, quality: Floats, most: float, least: float) -> float:
    """The area of costs and qualities that some network is at least as good as.

    Fronts of several methods are compared by it (Zitzler and Thiele 1999).

    Args:
      cost: [networks].
      quality: [networks].
      most: cost where the area ends; what costs as much or more covers none of it.
      least: quality where it begins.
    """
    inside = (cost < most) & (quality > least)
    if not inside.any():
        return 0.0
    cost, quality = cost[inside], quality[inside]
    rows = front(cost, quality)
    widths = np.diff(np.append(cost[rows], most))  # until the next network is better
    return float(np.sum(widths * (quality[rows] - least)))
