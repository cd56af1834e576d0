"""The mean cost of networks whose decisions are drawn by shares (SGNAS paper, eq. 9).

A counted cost is a sum of entries of tables (`layer_tables`); where decisions are drawn
independently, the mean is each table's contraction with their shares. It is exact, and
differentiable by the shares. Eq. 9, which has one decision a layer, is the case of tables with one
axis.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import errors
from tfgen.cost.cost_model import COUNTED, LATENCY, CostModel
from tfgen.cost.latency import LatencyModel, LayerLatency
from tfgen.cost.layer_tables import LayerTable, LayerTables
from tfgen.space.layers import LayerSlots
from tfgen.space.lowering import ACTIVATION_BITS
from tfgen.space.search_space import SearchSpace

Floats = npt.NDArray[np.float64]
# Sums over layers; peak RAM and the size of a file are none.
METRICS = ("energy_uj", "macs", "params", "storage_kb")


class ExpectedCost:
    """The mean of one metric over one space.

    Attributes:
      tables: whose contractions add up, with a column each.
    """

    def __init__(
        self,
        space: SearchSpace,
        metric: str,
        activation_bits: int = ACTIVATION_BITS,
        latency: LatencyModel | None = None,
    ):
        """Counts every combination that matters to a layer: seconds.

        Args:
          space: whose decisions are drawn.
          metric: of METRICS, or LATENCY.
          activation_bits: of every network.
          latency: tells LATENCY; one whose expected latencies are sums over layers.

        Raises:
          UsageError: the metric is no sum over layers, or a layer depends on too many decisions
            for a table.
        """
        self._space = space
        self._outside = 0.0
        if not space.stages:
            self.tables, self._outside = by_decision(space, metric)
            return
        count: Callable[[Sequence[LayerSlots]], Floats]
        if metric == LATENCY and isinstance(latency, LayerLatency):
            count, self._outside = latency.layers_ms, latency.outside_ms
        elif metric in METRICS:
            count = COUNTED[metric]
        else:
            raise errors.UsageError(
                f"{metric} is no sum over layers; a mean is known of: {', '.join(METRICS)}, and of "
                f"{LATENCY} on a profiled device"
            )
        self.tables = LayerTables(space, activation_bits, lambda s: count(s)[:, None]).tables

    def __call__(self, xp: Any, shares: Sequence[Any]) -> Any:
        """The mean cost [batch].

        Args:
          xp: NumPy or TensorFlow.
          shares: of each decision, in the space's order, each [batch, values].
        """
        total: Any = self._outside
        for table in self.tables:
            axes = string.ascii_lowercase[: len(table.decisions)]
            mean: Any = self._as(xp, table.values[..., 0])
            for axis in range(len(axes) - 1, -1, -1):
                left, batch = axes[: axis + 1], "" if axis == len(axes) - 1 else "Z"
                mean = xp.einsum(
                    f"{batch}{left},Z{left[-1]}->Z{left[:-1]}", mean, shares[table.decisions[axis]]
                )
            for decision, allowed in table.allowed(self._space):
                mean = mean * xp.einsum("Za,a->Z", shares[decision], self._as(xp, allowed))
            total = total + mean
        return total

    def _as(self, xp: Any, values: Floats) -> Any:
        """An array of the type that shares have."""
        return values if xp is np else values.astype(np.float32)


def by_decision(space: SearchSpace, metric: str) -> tuple[list[LayerTable], float]:
    """Tables of a space without layers, whose costs must be sums over decisions; and a constant."""
    model = CostModel(space)
    if metric not in model.metrics:
        raise errors.UsageError(f"{metric} of {space.name!r} is not counted")
    smallest = space.canonical(np.zeros(len(space.decisions), np.int64))
    outside = float(model.counted(smallest)[metric][0])
    tables = []
    for number, decision in enumerate(space.decisions):
        changed = np.repeat(smallest, len(decision.values), axis=0)
        changed[:, number] = np.arange(len(decision.values))
        values = model.counted(changed)[metric] - outside
        tables.append(LayerTable((), (number,), values[:, None]))
    return tables, outside
