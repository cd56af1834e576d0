"""SearchSpace: decisions and stages as data; validate, sample, mutate, enumerate, size."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import errors
from tfgen.space.architecture import Architecture

Choices = npt.NDArray[np.int64]  # [architectures, decisions]
Value = int | float | str

# How Monte-Carlo sampling weighs the values of a decision.
_SAMPLING = ("uniform", "log_uniform")
# Enumerating more points than this is a mistake, not a wish.
_MAX_ENUMERATED = 2_000_000
# More than any network has; of a space that others wrote, memory and time follow from these.
MOST_DECISIONS = MOST_STAGES = 4_000
MOST_VALUES = 1_024
MOST_CONDITIONS = 32  # that stand upon one another


def _is_value(value: object) -> bool:
    """Whether a decision may take it, or a stage's option have it."""
    finite = isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, str) or (finite and not isinstance(value, bool))


@dataclasses.dataclass(frozen=True)
class When:
    """A condition: the decision of that name takes one of the values (and is itself active)."""

    decision: str
    values: tuple[Value, ...]

    def to_json(self) -> dict[str, Any]:
        return {"decision": self.decision, "values": list(self.values)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> When:
        return cls(data["decision"], tuple(data["values"]))


@dataclasses.dataclass(frozen=True)
class Decision:
    """One question that an architecture answers.

    Attributes:
      name: unique in its space.
      values: what can be answered; numbers in ascending order mean that order matters.
      when: the decision is active only then; None means always.
      sampling: how Monte-Carlo sampling weighs the values: each alike, or each width by 1 / value.
    """

    name: str
    values: tuple[Value, ...]
    when: When | None = None
    sampling: str = "uniform"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not all(map(_is_value, self.values)):
            raise ValueError(f"decision {self.name!r}: values are numbers or texts")
        if not self.values or len(set(self.values)) != len(self.values):
            raise ValueError(f"decision {self.name!r}: values must be distinct and at least one")
        if len(self.values) > MOST_VALUES:
            raise ValueError(
                f"decision {self.name!r}: {len(self.values):,} values, {MOST_VALUES:,} are allowed"
            )
        if self.sampling not in _SAMPLING:
            raise ValueError(f"decision {self.name!r}: sampling must be one of {_SAMPLING}")
        if self.sampling == "log_uniform" and not (self.ordinal and float(self.values[0]) > 0):
            raise ValueError(f"decision {self.name!r}: log_uniform needs ascending values above 0")

    @property
    def ordinal(self) -> bool:
        """Whether the values are numbers in ascending order."""
        numbers = [v for v in self.values if not isinstance(v, str)]
        return len(numbers) == len(self.values) and numbers == sorted(numbers)

    @functools.cached_property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Monte-Carlo probability of each value [choices]."""
        weights = np.ones(len(self.values))
        if self.sampling == "log_uniform":
            weights = 1.0 / np.array(self.values, np.float64)
        return np.asarray(weights / weights.sum())

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"name": self.name, "values": list(self.values)}
        if self.when:
            data["when"] = self.when.to_json()
        if self.sampling != "uniform":
            data["sampling"] = self.sampling
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        when = When.from_json(data["when"]) if "when" in data else None
        return cls(data["name"], tuple(data["values"]), when, data.get("sampling", "uniform"))


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A stage's option whose value is the answer to the decision of that name."""

    decision: str


@dataclasses.dataclass(frozen=True)
class Stage:
    """One block of the network as data; `layers.py` knows how each block becomes layers.

    Attributes:
      name: prefix of its layers' names.
      block: the kind of block.
      options: the block's options: plain values, or `Chosen` for values that a decision sets.
      when: the stage is present only then; None means always.
    """

    name: str
    block: str
    options: Mapping[str, Value | Chosen]
    when: When | None = None

    def to_json(self) -> dict[str, Any]:
        options = {
            k: {"chosen": v.decision} if isinstance(v, Chosen) else v
            for k, v in self.options.items()
        }
        data: dict[str, Any] = {"name": self.name, "block": self.block, "options": options}
        if self.when:
            data["when"] = self.when.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stage:
        options = {
            k: Chosen(v["chosen"]) if isinstance(v, Mapping) else v
            for k, v in data["options"].items()
        }
        when = When.from_json(data["when"]) if "when" in data else None
        return cls(data["name"], data["block"], options, when)


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """All networks that may be answered, as data.

    Attributes:
      name: the catalogue's name.
      input_shape: of one example, without the batch.
      decisions: a decision's condition names an earlier decision only.
      stages: in the order of the data's way through the network.
      bit_policy: name of the runtime whose bit-widths are offered, or "simulated", which no runtime
        executes and which export refuses.
    """

    name: str
    input_shape: tuple[int, ...]
    decisions: tuple[Decision, ...]
    stages: tuple[Stage, ...]
    bit_policy: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.bit_policy, str):
            raise ValueError(f"space {self.name!r}: name and bit policy are texts")
        if len(self.input_shape) not in (1, 3) or not all(
            isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in self.input_shape
        ):
            raise ValueError(
                f"space {self.name!r}: an example has features, or height, width and channels, got "
                f"{self.input_shape}"
            )
        if len(self.decisions) > MOST_DECISIONS or len(self.stages) > MOST_STAGES:
            raise ValueError(
                f"space {self.name!r}: {len(self.decisions):,} decisions and {len(self.stages):,} "
                f"stages, {MOST_DECISIONS:,} and {MOST_STAGES:,} are allowed"
            )
        known: dict[str, Decision] = {}
        conditions: dict[str, int] = {}
        for decision in self.decisions:
            if decision.name in known:
                raise ValueError(f"space {self.name!r}: decision {decision.name!r} occurs twice")
            self._check_when(decision.when, known, decision.name)
            known[decision.name] = decision
            above = 0 if decision.when is None else conditions[decision.when.decision] + 1
            if above > MOST_CONDITIONS:
                raise ValueError(
                    f"decision {decision.name!r}: stands upon {above} conditions, "
                    f"{MOST_CONDITIONS} are allowed"
                )
            conditions[decision.name] = above
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"space {self.name!r}: stage names must be unique")
        for stage in self.stages:
            self._check_when(stage.when, known, stage.name)
            for option, value in stage.options.items():
                if not (isinstance(value, Chosen) or _is_value(value)):
                    raise ValueError(f"stage {stage.name!r}: option {option!r} is {value!r}")
                if isinstance(value, Chosen) and value.decision not in known:
                    raise ValueError(
                        f"stage {stage.name!r}: option {option!r} names an unknown decision "
                        f"{value.decision!r}"
                    )

    def _check_when(self, when: When | None, known: Mapping[str, Decision], who: str) -> None:
        if when is None:
            return
        if when.decision not in known:
            raise ValueError(f"{who!r}: condition names {when.decision!r}, not an earlier decision")
        strangers = [v for v in when.values if v not in known[when.decision].values]
        if strangers or not when.values:
            raise ValueError(f"{who!r}: condition needs values of {when.decision!r}: {strangers}")

    # --- the shape of a point -------------------------------------------------------------------

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Name of a decision -> its position."""
        return {d.name: i for i, d in enumerate(self.decisions)}

    def holds(self, when: When | None, choices: Any, xp: Any = np) -> Any:
        """Whether the condition holds for each architecture [...] of choices [..., decisions].

        Args:
          when: the condition; None always holds.
          choices: of any number of dimensions.
          xp: NumPy or `nets.tensors`.
        """
        if when is None:
            return xp.ones_like(choices[..., 0], dtype=xp.bool_)
        position = self.index[when.decision]
        decision = self.decisions[position]
        allowed = np.array([value in when.values for value in decision.values])
        own = xp.take(xp.asarray(allowed), choices[..., position], axis=0)
        return self.holds(decision.when, choices, xp) & own

    def active(self, choices: Any, xp: Any = np) -> Any:
        """Which decisions matter to each architecture, shaped as choices [..., decisions]."""
        return xp.stack([self.holds(d.when, choices, xp) for d in self.decisions], axis=-1)

    def settled(self, xp: Any, choices: Any) -> Any:
        """Canonical choices of such as lie in range [..., decisions], in NumPy or in a graph."""
        return choices * xp.astype(self.active(choices, xp), xp.int64)

    def canonical(self, choices: npt.ArrayLike) -> Choices:
        """Sets inactive decisions to 0, so that equal rows are equal networks.

        Raises:
          UsageError: a row has the wrong length or an index out of range.
        """
        try:
            given = np.asarray(choices)
        except ValueError as error:  # rows of several lengths
            raise errors.UsageError(f"space {self.name!r}: choices are no table: {error}") from None
        if given.size and given.dtype.kind not in "iu":
            raise errors.UsageError(
                f"space {self.name!r}: choices are whole numbers below 2**63, got {given.dtype}"
            )
        array = np.atleast_2d(given).astype(np.int64, copy=False)
        if array.ndim != 2 or array.shape[1] != len(self.decisions):
            raise errors.UsageError(
                f"space {self.name!r} has {len(self.decisions)} decisions, got {array.shape[1]}"
            )
        counts = np.array([len(d.values) for d in self.decisions])
        wrong = (array < 0) | (array >= counts)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise errors.UsageError(
                f"decision {self.decisions[column].name!r} of space {self.name!r}: index "
                f"{array[row, column]} is not in 0..{counts[column] - 1}"
            )
        return np.asarray(self.settled(np, array))

    def architecture(self, choices: Sequence[int] | Choices) -> Architecture:
        """The canonical architecture with these choices [decisions]; raises UsageError."""
        row = self.canonical(np.asarray(choices))[0]
        return Architecture(self.name, tuple(int(c) for c in row))

    def point(self, values: Mapping[str, Value]) -> Architecture:
        """The architecture with these values; decisions that are not named take their last one.

        Raises:
          UsageError: a decision or a value is not of this space.
        """
        unknown = sorted(set(values) - set(self.index))
        if unknown:
            raise errors.UsageError(f"space {self.name!r} has no decision {unknown[0]!r}")
        last = {decision.name: decision.values[-1] for decision in self.decisions}
        chosen = {**last, **values}
        for decision in self.decisions:
            if chosen[decision.name] not in decision.values:
                raise errors.UsageError(
                    f"decision {decision.name!r} of space {self.name!r} takes "
                    f"{', '.join(map(str, decision.values))}, got {chosen[decision.name]!r}"
                )
        return self.architecture([d.values.index(chosen[d.name]) for d in self.decisions])

    def choices(self, architectures: Sequence[Architecture]) -> Choices:
        """The architectures as one array; raises UsageError for points of another space."""
        for architecture in architectures:
            if architecture.space != self.name:
                raise errors.UsageError(
                    f"architecture of space {architecture.space!r} given to {self.name!r}"
                )
        if not architectures:
            return np.zeros((0, len(self.decisions)), np.int64)
        return self.canonical([a.choices for a in architectures])

    def values(self, architecture: Architecture) -> dict[str, Value]:
        """Name -> value of each active decision, in order."""
        choices = self.choices([architecture])
        active = self.active(choices)[0]
        return {
            d.name: d.values[c]
            for d, c, on in zip(self.decisions, choices[0], active, strict=True)
            if on
        }

    def column(self, value: Value | Chosen, choices: Choices) -> npt.NDArray[Any]:
        """A stage option's value for each architecture [architectures]."""
        if not isinstance(value, Chosen):
            return np.full(len(choices), value)
        position = self.index[value.decision]
        return np.asarray(self.decisions[position].values)[choices[:, position]]

    @functools.cached_property
    def unified(self) -> frozenset[str]:
        """Names of the decisions about the sub-blocks of unified blocks."""
        options = [stage.options["sub_blocks"] for stage in self.stages if stage.block == "unified"]
        return frozenset(option.decision for option in options if isinstance(option, Chosen))

    def menu(self, option: Value | Chosen) -> tuple[Value, ...]:
        """The values that a stage's option may have."""
        if not isinstance(option, Chosen):
            return (option,)
        return self.decisions[self.index[option.decision]].values

    # --- drawing points -------------------------------------------------------------------------

    def sample(self, count: int, random: np.random.Generator) -> Choices:
        """Monte-Carlo sampling: each decision drawn by its own `sampling` [count, decisions]."""
        return self.canonical(self.draw(count, random))

    def draw(self, count: int, random: np.random.Generator) -> Choices:
        """The same with decisions that are not active drawn too [count, decisions]."""
        columns = [
            random.choice(len(d.values), size=count, p=d.probabilities) for d in self.decisions
        ]
        return np.stack(columns, axis=1)

    def sample_points(self, count: int, random: np.random.Generator) -> Choices:
        """Sampling where each network of the space is equally likely [count, decisions]."""
        columns = []
        for decision in self.decisions:
            subtrees = [self._points_below(decision, v, self._points) for v in decision.values]
            total = sum(subtrees)
            weights = np.array([s / total for s in subtrees])
            columns.append(random.choice(len(weights), size=count, p=weights / weights.sum()))
        return self.canonical(np.stack(columns, axis=1))

    def mutate(
        self, choices: Choices, random: np.random.Generator, rate: float | None = None
    ) -> Choices:
        """Redraws each active decision with probability `rate`, at least one of them.

        The default rate changes one active decision on average. Decisions that a change switches
        on are drawn too: at their first value, a new layer would have one unit.
        """
        active = self.active(choices)
        if rate is None:
            rate = 1.0 / float(np.maximum(active.sum(1), 1).mean())
        scores = np.where(active, random.random(active.shape), np.inf)
        change = scores < rate
        change[np.arange(len(choices)), scores.argmin(1)] = True
        fresh = self.draw(len(choices), random)
        return self.canonical(np.where(change | ~active, fresh, choices))

    # --- counting points ------------------------------------------------------------------------

    def size(self) -> int:
        """The exact number of different networks (inactive decisions count once)."""
        return math.prod(self._points[d.name] for d in self.decisions if d.when is None)

    @functools.cached_property
    def _points(self) -> dict[str, int]:
        """Of each decision, the points of itself and of those that its values switch on."""
        points: dict[str, int] = {}
        for decision in reversed(self.decisions):  # those that it switches on come later
            below = [self._points_below(decision, value, points) for value in decision.values]
            points[decision.name] = sum(below)
        return points

    def _points_below(self, decision: Decision, value: Value, points: Mapping[str, int]) -> int:
        """Points of the decisions that `value` switches on, and of those below them."""
        switched = self._switched.get(decision.name, ())
        return math.prod(points[d.name] for d in switched if d.when and value in d.when.values)

    @functools.cached_property
    def _switched(self) -> dict[str, list[Decision]]:
        """Name of a decision -> those whose condition names it."""
        switched: dict[str, list[Decision]] = {}
        for decision in self.decisions:
            if decision.when is not None:
                switched.setdefault(decision.when.decision, []).append(decision)
        return switched

    def enumerate(self) -> Iterator[Architecture]:
        """Every network once; raises UsageError for a space too large to walk."""
        if self.size() > _MAX_ENUMERATED:
            raise errors.UsageError(
                f"space {self.name!r} has {self.size():,} points; enumerate takes at most "
                f"{_MAX_ENUMERATED:,}"
            )
        yield from (Architecture(self.name, choices) for choices in self._enumerate(0, ()))

    def _enumerate(self, position: int, prefix: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if position == len(self.decisions):
            yield prefix
            return
        # A decision's condition looks back only, so the prefix settles whether it is active.
        row = np.zeros((1, len(self.decisions)), np.int64)
        row[0, :position] = prefix
        decision = self.decisions[position]
        count = len(decision.values) if self.holds(decision.when, row)[0] else 1
        yield from itertools.chain.from_iterable(
            self._enumerate(position + 1, (*prefix, choice)) for choice in range(count)
        )

    # --- JSON -----------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "decisions": [d.to_json() for d in self.decisions],
            "stages": [s.to_json() for s in self.stages],
            "bit_policy": self.bit_policy,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchSpace:
        return cls(
            data["name"],
            tuple(data["input_shape"]),
            tuple(Decision.from_json(d) for d in data["decisions"]),
            tuple(Stage.from_json(s) for s in data["stages"]),
            data["bit_policy"],
        )
