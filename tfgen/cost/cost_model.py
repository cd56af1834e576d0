"""CostModel: the costs of architectures of one space, batched, and their range over the space."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tfgen import errors
from tfgen.cost import arena, counting, file_size
from tfgen.cost.budget import Budget, Cost, Quantity, rounded_up
from tfgen.cost.latency import LatencyModel
from tfgen.cost.tabulated_counting import COUNTS
from tfgen.space import bits
from tfgen.space.architecture import Architecture
from tfgen.space.layers import LayerSlots
from tfgen.space.lowering import ACTIVATION_BITS, lower_batch
from tfgen.space.search_space import Choices, SearchSpace

Costs = dict[str, npt.NDArray[np.float64]]  # metric -> [architectures]

_Counter = Callable[[Sequence[LayerSlots]], npt.NDArray[np.float64]]  # -> [architectures]

COUNTED: Mapping[str, _Counter] = {
    "params": lambda slots: counting.params(slots).astype(np.float64),
    "macs": lambda slots: counting.macs(slots).astype(np.float64),
    "storage_kb": lambda slots: counting.storage_bits(slots) / 8_000,
    "energy_uj": lambda slots: counting.energy_pj(slots) / 1e6,
    "peak_ram_kb": lambda slots: counting.peak_ram_bits(slots) / 8_000,
}
LATENCY = "latency_ms"
CONFIDENCE = 0.95  # of each end of a predicted interval, by default
_MAX_CHANGES = 4  # of one decision, on the way to an extreme


def count(slots: Sequence[LayerSlots]) -> Costs:
    """Every metric that follows from layers alone, whoever describes them."""
    return {metric: counter(slots) for metric, counter in COUNTED.items()}


def source(metric: str) -> str:
    """Where the number comes from that a cost model tells of a metric: one of SOURCES."""
    return "predicted" if metric == LATENCY else "counted"


class CostModel:
    """Costs that follow from the architecture, and from the kind of file that is made of it.

    Attributes:
      space: whose architectures are counted.
      activation_bits: of every network.
      io: "float", or "int8" for files whose input and output are integers.
      latency: what predicts latency, on one device; None where none is asked.
    """

    def __init__(
        self,
        space: SearchSpace,
        activation_bits: int = ACTIVATION_BITS,
        io: str = "float",
        latency: LatencyModel | None = None,
    ):
        self.space = space
        self.activation_bits = activation_bits
        self.io = io
        self.latency = latency
        self._extremes: dict[tuple[str, float], float] = {}
        self._counters = dict(COUNTED) if space.stages else {}  # a table has no layers
        self._tabulated = {} if space.stages else COUNTS.get(space.name, {})
        if space.bit_policy != bits.SIMULATED:  # simulated bits come to no file
            policy = bits.load(space.bit_policy)
            self._counters["file_kb"] = lambda slots: (
                file_size.file_bytes(slots, policy, io) / 1_000
            )
            self._counters["peak_ram_kb"] = lambda slots: arena.arena_bytes(slots, io) / 1_000

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that can be told before anything is built."""
        return (*self._counters, *self._tabulated, *([LATENCY] if self.latency else []))

    def costs(self, choices: Choices) -> Costs:
        """Every metric of canonical choices [architectures, decisions] -> [architectures]."""
        return self.bounds(choices, 0.5)[0]

    def bounds(
        self, choices: Choices, confidence: float, only: Collection[str] | None = None
    ) -> tuple[Costs, Costs]:
        """Every metric of canonical choices, and the upper end of its one-sided interval.

        Args:
          choices: [architectures, decisions].
          confidence: of the upper ends of predicted metrics; counted ones are exact.
          only: leaves other metrics out; some take longer to count than all others together.

        Returns:
          Expected values and upper ends, by metric [architectures].
        """
        costs = self.counted(choices, only)
        upper = dict(costs)
        if self.latency is not None and (only is None or LATENCY in only):
            interval = self.latency.predict(choices, confidence)
            costs[LATENCY], upper[LATENCY] = interval.ms, interval.high_ms
        return costs, upper

    def counted(self, choices: Choices, only: Collection[str] | None = None) -> Costs:
        """Every metric that is counted, of canonical choices [architectures, decisions]."""
        slots = self._lower(choices)
        costs = {
            metric: counter(slots)
            for metric, counter in self._counters.items()
            if only is None or metric in only
        }
        return costs | {
            metric: counter(choices)
            for metric, counter in self._tabulated.items()
            if only is None or metric in only
        }

    def _lower(self, choices: Choices) -> list[LayerSlots]:
        if not self.space.stages:
            return []
        return lower_batch(self.space, choices, self.activation_bits)

    def cost(self, architecture: Architecture) -> Cost:
        """The cost of one architecture."""
        costs = self.costs(self.space.choices([architecture]))
        return Cost({m: Quantity(float(v[0]), source(m)) for m, v in costs.items()})

    def minimum(self, metric: str) -> float:
        """The least of a counted metric over the space; raises KeyError for any other."""
        return self._extreme(metric, -1.0)

    def maximum(self, metric: str) -> float:
        """The most of a counted metric over the space: what eq. 2 and 3 are normalised by."""
        return self._extreme(metric, 1.0)

    def normalised(self, metric: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Values of a metric as a share of the space's maximum."""
        return np.asarray(np.asarray(values, np.float64) / self.maximum(metric))

    def check(self, budget: Budget) -> list[str]:
        """Compares a budget with the space's range.

        Returns:
          Remarks for the user on limits that limit nothing.

        Raises:
          KeyError: a limit is on a metric that this model does not tell.
          InfeasibleBudgetError: a limit is below the space's minimum; carries the nearest budget.
        """
        remarks = []
        nearest = dict(budget.limits)
        for metric, limit in budget.limits.items():
            if metric == LATENCY:
                continue  # its extremes are not known as counted ones are: draws decide
            if limit < self.minimum(metric):
                nearest[metric] = rounded_up(self.minimum(metric))
            elif limit >= self.maximum(metric):
                remarks.append(
                    f"{metric}={limit:g} is no limit: the largest network of {self.space.name} has "
                    f"{self.maximum(metric):.6g}"
                )
        if nearest != dict(budget.limits):
            least = ", ".join(f"{m} {v:.6g}" for m, v in nearest.items() if v > budget.limits[m])
            raise errors.InfeasibleBudgetError(
                f"budget {budget}: no network of {self.space.name} has less than {least}",
                nearest=Budget(nearest, budget.quality, budget.device),
            )
        return remarks

    def _count(self, metric: str, choices: Choices) -> npt.NDArray[np.float64]:
        """One counted metric [architectures]."""
        if metric in self._tabulated:
            return self._tabulated[metric](choices)
        return self._counters[metric](self._lower(choices))

    def _extreme(self, metric: str, sign: float) -> float:
        """The largest (sign 1) or smallest (-1) value of a metric over the space.

        Steepest ascent: of all changes of one decision, the best one, until none is better. Exact
        where the metric never falls when one decision grows, as with every counted metric of a
        chain of layers; tested against enumeration. A file's size falls where layers become equally
        wide and share zero points, so its largest value is found to within a percent; an arena's
        is no better known.
        """
        if (metric, sign) in self._extremes:
            return self._extremes[metric, sign]
        decisions = self.space.decisions
        best = self.space.canonical([len(d.values) - 1 if sign > 0 else 0 for d in decisions])
        value = sign * self._count(metric, best)[0]
        changes = [(i, option) for i, d in enumerate(decisions) for option in range(len(d.values))]
        positions, options = np.array(changes).T
        for _ in range(_MAX_CHANGES * len(decisions)):
            tried = np.repeat(best, len(changes), axis=0)
            tried[np.arange(len(changes)), positions] = options
            tried = self.space.canonical(tried)
            values = sign * self._count(metric, tried)
            if values.max() <= value:
                break
            best, value = tried[[values.argmax()]], values.max()
        self._extremes[metric, sign] = float(sign * value)
        return self._extremes[metric, sign]
