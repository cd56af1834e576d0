"""What methods are: Generator and Method, Searcher, and the Evidence that they learn from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfgen import errors, seeds
from tfgen.cost.budget import COST_METRICS, Budget
from tfgen.cost.cost_model import CostModel
from tfgen.evidence.reactions import Reactions
from tfgen.evidence.record import Record
from tfgen.evidence.surrogate import Surrogate
from tfgen.space.architecture import Architecture
from tfgen.space.search_space import Choices, SearchSpace

if TYPE_CHECKING:  # answers do not import TensorFlow
    from tfgen.nets.cell_supernet import CellSupernet
    from tfgen.nets.supernet import Supernet
    from tfgen.training.datasets import Split

Evaluate = Callable[[Sequence[Architecture], int], Sequence[Record]]
Probe = Callable[[Sequence[Architecture]], Sequence[Reactions]]
Count = Callable[[Any], Mapping[str, Any]]  # canonical choices [n, decisions] -> by metric [n]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a method may learn from; a part that is not there is None.

    Attributes:
      space: what is generated.
      cost_model: what networks cost.
      records: trainings that were made.
      surrogate: the encoder fitted to them.
      evaluate: trains architectures, stores and returns the records, and counts them.
      supernet: the trained weights that all networks of the space share.
      examples: of the search split, on which networks of the supernet are compared.
      probe: shows stimuli to networks of a prototype's space; how each reacts.
    """

    space: SearchSpace
    cost_model: CostModel
    records: Sequence[Record] | None = None
    surrogate: Surrogate | None = None
    evaluate: Evaluate | None = None
    supernet: Supernet | CellSupernet | None = None
    examples: Split | None = None
    probe: Probe | None = None

    def check(self, method: str, needs: frozenset[str]) -> None:
        """Raises UsageError where a part that the method needs is missing."""
        missing = sorted(name for name in needs if getattr(self, name) is None)
        if missing:
            raise errors.UsageError(f"method {method!r} needs {', '.join(missing)} in its evidence")


@dataclasses.dataclass(frozen=True)
class Proposals:
    """What a generator drew for one budget.

    Attributes:
      choices: canonical [draws, decisions].
      conditions: the normalised performance that each draw was asked for [draws]; None for a
        generator that takes no such condition.
    """

    choices: Choices
    conditions: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.conditions is not None and len(self.conditions) != len(self.choices):
            raise ValueError("each draw needs its condition")


@dataclasses.dataclass(frozen=True)
class Asked:
    """Budgets as arrays, for draws in NumPy or in a graph.

    Attributes:
      limits: in the order of COST_METRICS, 0 where a cost is free, float64 [budgets, metrics].
      least: of the task's metric, float64 [budgets].
      has_least: whether it is asked, bool [budgets].
      key: of each budget's noise (`seeds`), uint32 [budgets] each.
      device: whose latency is limited; None where none is.
    """

    limits: Any
    least: Any
    has_least: Any
    key: seeds.Key
    device: str | None = None

    @classmethod
    def of(cls, budget: Budget, seed: int) -> Asked:
        """One budget."""
        limits = np.array([[budget.limits.get(metric, 0.0) for metric in COST_METRICS]])
        least = np.array([0.0 if budget.quality is None else budget.quality[1]])
        has_least = np.array([budget.quality is not None])
        return cls(limits, least, has_least, seeds.key_of(seed), budget.device)

    def limit(self, metric: str) -> Any:
        """Of one cost [budgets]."""
        return self.limits[:, COST_METRICS.index(metric)]


@dataclasses.dataclass(frozen=True)
class Draws:
    """What a generator drew for several budgets.

    Attributes:
      choices: canonical, int64 [budgets, draws, decisions].
      conditions: see `Proposals`, float64 [budgets, draws]; None where there are none.
    """

    choices: Any
    conditions: Any = None


class Generator(Protocol):
    """A trained map from budgets to architectures; runs without TensorFlow."""

    def propose(self, budgets: Sequence[Budget], count: int, seed: int) -> list[Proposals]:
        """Draws `count` architectures a budget; an answer depends on its own budget alone."""
        ...

    def draws(self, xp: Any, asked: Asked, count: int, costs: Count) -> Draws:
        """The same of budgets as arrays: the one piece of code that answers, here and served.

        All that decides a draw is computed in float64: the sums of two libraries differ in their
        last bits, and a float32 draw in a thousand answers would fall on the other side.

        Args:
          xp: NumPy or `nets.tensors`.
          asked: the budgets.
          count: of draws for each; a Python integer, in a graph too.
          costs: counts what networks cost, with arrays of xp.
        """
        ...

    def state(self) -> Mapping[str, np.ndarray]:
        """Everything that `Method.restore` needs, as plain arrays."""
        ...


def how_many_below(xp: Any, ascending: Any, place: Any) -> Any:
    """How many numbers of each row lie below a place, int64 [rows].

    Args:
      xp: NumPy or `nets.tensors`.
      ascending: numbers [rows, numbers].
      place: [rows, 1].
    """
    if xp is np:
        return (ascending < place).sum(axis=1)
    return xp.searchsorted(ascending, place)[:, 0]


def in_float64(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A generator's arrays as its draws read them."""
    return {n: v.astype(np.float64) if v.dtype.kind == "f" else v for n, v in state.items()}


class Drawing:
    """A generator whose proposals are its draws in NumPy."""

    def __init__(self, space: SearchSpace):
        self._costs = CostModel(space)

    def propose(self, budgets: Sequence[Budget], count: int, seed: int) -> list[Proposals]:
        found = []
        for budget in budgets:
            drawn = self.draws(np, Asked.of(budget, seed), count, self._costs.counted)
            conditions = None if drawn.conditions is None else drawn.conditions[0]
            found.append(Proposals(drawn.choices[0], conditions))
        return found

    def draws(self, xp: Any, asked: Asked, count: int, costs: Count) -> Draws:
        raise NotImplementedError


class Method(Protocol):
    """How one paper obtains a Generator. Stateless; one per module.

    Attributes:
      name: the folder's name and the flag's value.
      needs: which fields of Evidence it uses, checked before any work.
      config: the class of its configuration; its defaults are the method's own.
    """

    name: str
    needs: frozenset[str]
    config: type[Any]

    def fit(self, evidence: Evidence, config: Any, seed: int) -> Generator:
        """Learns from the evidence; raises UsageError where a part is missing."""
        ...

    def restore(self, space: SearchSpace, state: Mapping[str, np.ndarray]) -> Generator:
        """The generator whose `state()` this is."""
        ...


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search trained.

    Attributes:
      records: every training, in the order in which they were asked for.
      feasible: which of them keep the budget's limits on costs [records].
    """

    records: tuple[Record, ...]
    feasible: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.records) != len(self.feasible):
            raise ValueError("each record is feasible or not")
        if not any(self.feasible):
            raise ValueError("a search that found nothing feasible raises InfeasibleBudgetError")

    def best(self, count: int) -> list[Record]:
        """At most `count` feasible records, by metric, best first; of equal ones the earlier.

        Trainings that diverged are left out.
        """
        pairs = zip(self.records, self.feasible, strict=True)
        kept = [r for r, feasible in pairs if feasible and math.isfinite(r.metric)]
        return sorted(kept, key=lambda record: -record.metric)[:count]


class Searcher(Protocol):
    """A search that starts anew for every budget. Stateless.

    Attributes:
      name: the flag's value.
      needs: which fields of Evidence it uses, checked before any work.
      config: the class of its configuration; its defaults are the searcher's own.
    """

    name: str
    needs: frozenset[str]
    config: type[Any]

    def search(
        self, evidence: Evidence, budget: Budget, max_evaluations: int, config: Any, seed: int
    ) -> Found:
        """Looks for the networks of the best metric within a budget's limits on costs.

        A budget's least quality changes nothing: the search goes for the best metric anyway.

        Args:
          evidence: `evaluate` trains; it is never asked for more than `max_evaluations` networks.
          budget: its limits are kept.
          max_evaluations: trainings that may be made.
          config: of the class `self.config`.
          seed: of everything; equal seeds ask for equal trainings.

        Raises:
          UsageError: a part of the evidence or an extra package is missing, or a limit is on a
            metric that is not known before a file is built.
          InfeasibleBudgetError: no network within the limits was found; carries the nearest budget.
        """
        ...
