"""The mean cost of networks whose decisions are drawn by shares (SGNAS paper, eq. 9).

A counted cost is a sum over layers, and a layer's part depends on a few decisions: its own and the
width before it. A table for each such set of decisions holds the cost of every combination; where
decisions are drawn independently, the mean is the table's contraction with their shares. It is
exact, and differentiable by the shares. Eq. 9, which has one decision a layer, is the case of
tables with one axis.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import errors, seeds
from tfgen.cost.cost_model import COUNTED, LATENCY, CostModel
from tfgen.cost.latency import LatencyModel, LayerLatency
from tfgen.space.layers import LayerSlots
from tfgen.space.lowering import ACTIVATION_BITS, lower_batch
from tfgen.space.search_space import Choices, SearchSpace

Floats = npt.NDArray[np.float64]
# Sums over layers; peak RAM and the size of a file are none.
METRICS = ("energy_uj", "macs", "params", "storage_kb")
_PROBED = 64  # networks of which every decision is changed, to see what a layer depends on
_CHECKED = 256
_MAX_TABLE = 2_000_000
_AT_ONCE = 20_000


class ExpectedCost:
    """Tables of one metric over one space."""

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
            for a table, as those of MLPs do.
        """
        self._space = space
        self.tables: dict[tuple[int, ...], Floats] = {}  # by numbers of decisions
        self._outside = 0.0
        if not space.stages:
            self._tabulate(metric)
            return
        self._count: Callable[[Sequence[LayerSlots]], Any]
        if metric == LATENCY and isinstance(latency, LayerLatency):
            self._count, self._outside = latency.layers_ms, latency.outside_ms
        elif metric in METRICS:
            self._count = COUNTED[metric]
        else:
            raise errors.UsageError(
                f"{metric} is no sum over layers; a mean is known of: {', '.join(METRICS)}, and of "
                f"{LATENCY} on a profiled device"
            )
        self._activation_bits = activation_bits
        for name, decisions in self._dependencies().items():
            table = self._table(name, decisions)
            self.tables[decisions] = self.tables.get(decisions, 0.0) + table
        self._check()

    def __call__(self, xp: Any, shares: Sequence[Any]) -> Any:
        """The mean cost [batch].

        Args:
          xp: NumPy or TensorFlow.
          shares: of each decision, in the space's order, each [batch, values].
        """
        total: Any = self._outside
        for decisions, table in self.tables.items():
            axes = string.ascii_lowercase[: len(decisions)]
            mean = table.astype(np.float32) if xp is not np else table
            for axis in range(len(decisions) - 1, -1, -1):
                left, batch = axes[: axis + 1], "" if axis == len(decisions) - 1 else "Z"
                mean = xp.einsum(
                    f"{batch}{left},Z{left[-1]}->Z{left[:-1]}", mean, shares[decisions[axis]]
                )
            total = total + mean
        return total

    def _tabulate(self, metric: str) -> None:
        """The same for a space without layers, whose costs must be sums over decisions."""
        model = CostModel(self._space)
        if metric not in model.metrics:
            raise errors.UsageError(f"{metric} of {self._space.name!r} is not counted")
        smallest = self._space.canonical(np.zeros(len(self._space.decisions), np.int64))
        self._outside = float(model.counted(smallest)[metric][0])
        for number, decision in enumerate(self._space.decisions):
            changed = np.repeat(smallest, len(decision.values), axis=0)
            changed[:, number] = np.arange(len(decision.values))
            self.tables[number,] = model.counted(changed)[metric] - self._outside
        choices = self._raw(_CHECKED, seeds.stream(0, "expected cost", "check"))
        self._compare(choices, model.counted(choices)[metric])

    def _layer_costs(self, choices: Choices) -> dict[str, Floats]:
        """What each layer adds to the cost of each network, by layer [networks]."""
        slots = lower_batch(self._space, self._space.canonical(choices), self._activation_bits)
        return {slot.name: self._count([slot]) for slot in slots}

    def _dependencies(self) -> dict[str, tuple[int, ...]]:
        """By layer, the decisions that change what it costs."""
        decisions = self._space.decisions
        bases = self._raw(_PROBED, seeds.stream(0, "expected cost", "probes"))
        before = self._layer_costs(bases)
        found: dict[str, set[int]] = {name: set() for name in before}
        for number, decision in enumerate(decisions):
            for value in range(len(decision.values)):
                changed = bases.copy()
                changed[:, number] = value
                after = self._layer_costs(changed)
                for name in {**before, **after}:
                    ours, theirs = before.get(name, 0.0), after.get(name, 0.0)
                    if not np.array_equal(ours, theirs):
                        found.setdefault(name, set()).add(number)
        return {name: tuple(sorted(numbers)) for name, numbers in found.items() if numbers} | {
            name: (0,) for name, numbers in found.items() if not numbers
        }

    def _table(self, name: str, numbers: tuple[int, ...]) -> Floats:
        """The layer's cost for every combination of these decisions."""
        sizes = [len(self._space.decisions[number].values) for number in numbers]
        if math.prod(sizes) > _MAX_TABLE:
            names = ", ".join(self._space.decisions[number].name for number in numbers)
            raise errors.UsageError(
                f"space {self._space.name!r} has no mean cost by shares: layer {name!r} depends on "
                f"too much for a table ({names})"
            )
        grid = np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=1)
        costs = []
        for begin in range(0, len(grid), _AT_ONCE):
            part = grid[begin : begin + _AT_ONCE]
            choices = np.zeros((len(part), len(self._space.decisions)), np.int64)
            choices[:, numbers] = part
            layer = self._layer_costs(choices).get(name, np.zeros(len(part)))
            costs.append(np.broadcast_to(layer, len(part)))
        return np.concatenate(costs).reshape(sizes)

    def _raw(self, count: int, random: np.random.Generator) -> Choices:
        """Choices of every decision, active or not: what is drawn by shares."""
        columns = [random.integers(len(d.values), size=count) for d in self._space.decisions]
        return np.stack(columns, axis=1)

    def _check(self) -> None:
        """Every decision of a network known, its mean is its cost: no dependency was missed."""
        choices = self._raw(_CHECKED, seeds.stream(0, "expected cost", "check"))
        slots = lower_batch(self._space, self._space.canonical(choices), self._activation_bits)
        self._compare(choices, self._count(slots) + self._outside)

    def _compare(self, choices: Choices, costs: Floats) -> None:
        shares = [
            np.eye(len(d.values))[column]
            for d, column in zip(self._space.decisions, choices.T, strict=True)
        ]
        if not np.allclose(self(np, shares), costs, rtol=1e-9):
            raise AssertionError(f"costs of space {self._space.name!r} depend on more than probed")
