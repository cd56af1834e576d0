"""What networks cost, as array code without the walk over layers: for served graphs.

Costs that are sums over layers are read off tables (`layer_tables`), and so is a profiled latency
with its interval, whose features are such sums. The networks of a small space are listed one by
one, whatever tells their costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import errors
from tfgen.cost import kernels
from tfgen.cost.cost_model import COUNTED, LATENCY, CostModel
from tfgen.cost.expected_cost import METRICS
from tfgen.cost.layer_tables import LayerTables
from tfgen.cost.profiled_latency import ProfiledLatency
from tfgen.space import bits
from tfgen.space.layers import LayerSlots
from tfgen.space.lowering import ACTIVATION_BITS, lower_batch

Floats = npt.NDArray[np.float64]
_LISTED = 65_536  # combinations of choices
_AT_ONCE = 4_096
_UNITS = {"storage_kb": 8_000.0}  # bits, whose sums are exact: a network at its limit stays there


class TabulatedCost:
    """The costs of one space, as tables.

    Attributes:
      metrics: that it tells, in the cost model's order.
      policy: whose fast kernels `accelerated` is about; None where there are none.
    """

    def __init__(self, model: CostModel, confidence: float):
        """Counts what the tables hold: seconds.

        Args:
          model: whose costs they are.
          confidence: of the upper ends of a predicted latency.

        Raises:
          UsageError: the model's latency is neither of a profiled device nor of a small space, or
            its costs are no tables.
        """
        self._space = model.space
        self._confidence = confidence
        self.policy = None
        if model.space.bit_policy != bits.SIMULATED and model.activation_bits == ACTIVATION_BITS:
            self.policy = bits.load(model.space.bit_policy)
        self._latency: ProfiledLatency | None = None
        self._listed: Floats | None = None
        if math.prod(len(d.values) for d in model.space.decisions) <= _LISTED:
            self.metrics = model.metrics
            self._listed = self._list(model)
            return
        if model.latency is not None:
            if not isinstance(model.latency, ProfiledLatency):
                raise errors.UsageError(
                    f"latencies on {model.latency.device!r} cannot be served for "
                    f"{model.space.name!r}: profile the device with profile_device"
                )
            self._latency = model.latency
        told = (*METRICS, *([LATENCY] if self._latency else []))
        self.metrics = tuple(metric for metric in model.metrics if metric in told)
        self._counted = [metric for metric in self.metrics if metric != LATENCY]
        self._tables = LayerTables(model.space, model.activation_bits, self._columns)

    def rows(self, xp: Any, choices: Any) -> Any:
        """What the tables hold of networks; the other methods read it [architectures, columns].

        Args:
          xp: NumPy or `nets.tensors`.
          choices: canonical, int64 [architectures, decisions].
        """
        if self._listed is None:
            return self._tables(xp, choices)
        index = xp.zeros_like(choices[:, 0])
        for number, decision in enumerate(self._space.decisions):
            index = index * len(decision.values) + choices[:, number]
        return xp.take(xp.asarray(self._listed), index, axis=0)

    def bounds(self, xp: Any, rows: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Expected values and upper ends, as `CostModel.bounds` [architectures]."""
        if self._listed is not None:
            count = len(self.metrics)
            costs = {m: rows[:, 1 + i] for i, m in enumerate(self.metrics)}
            return costs, {m: rows[:, 1 + count + i] for i, m in enumerate(self.metrics)}
        costs = {m: rows[:, 1 + i] / _UNITS.get(m, 1.0) for i, m in enumerate(self._counted)}
        upper = dict(costs)
        if self._latency is not None:
            sums = rows[:, 1 + len(self._counted) :] + self._latency.outside_row
            costs[LATENCY], upper[LATENCY] = self._latency.interval(xp, sums, self._confidence)
        return costs, upper

    def accelerated(self, rows: Any) -> Any:
        """Whether the runtime has fast kernels for all layers with weights [architectures].

        True where no runtime is meant, and where no width of activations has any.
        """
        return rows[:, 0] < 0.5

    def _list(self, model: CostModel) -> Floats:
        """Slow layers, costs and their upper ends of all combinations of choices."""
        sizes = [len(d.values) for d in model.space.decisions]
        grid = np.indices(sizes).reshape(len(sizes), -1).T
        parts = []
        for begin in range(0, len(grid), _AT_ONCE):
            choices = model.space.canonical(grid[begin : begin + _AT_ONCE])
            both = model.bounds(choices, self._confidence)
            slow = np.zeros(len(choices))
            if model.space.stages:
                slow = self._slow(lower_batch(model.space, choices, model.activation_bits))
            told = [costs[metric] for costs in both for metric in self.metrics]
            parts.append(np.stack([slow, *told], axis=1))
        return np.concatenate(parts)

    def _columns(self, slots: Sequence[LayerSlots]) -> Floats:
        """Slow layers, counted costs, and what a latency is predicted by."""
        told = {metric: COUNTED[metric](slots) for metric in self._counted}
        told |= {m: np.rint(told[m] * unit) for m, unit in _UNITS.items() if m in told}
        columns = np.stack([self._slow(slots), *told.values()], axis=1)
        if self._latency is None:
            return columns
        return np.concatenate([columns, self._latency.layer_rows(slots)], axis=1)

    def _slow(self, slots: Sequence[LayerSlots]) -> Floats:
        """1 where a layer has no fast kernel [architectures]."""
        if self.policy is None:
            return np.zeros(len(slots[0].present))
        return np.asarray(1.0 - kernels.accelerated(slots, self.policy))
