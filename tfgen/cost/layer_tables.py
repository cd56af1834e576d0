"""Sums over layers as tables: what the walk counts, for code that cannot walk.

Some costs are sums over layers, and a layer's part depends on a few decisions: its own and the
width before it. A table for each such set of decisions holds the part of every combination. Where a
layer depends on more than a table can hold, as the last one of an MLP of several depths does, each
choice of a decision that switches others on has tables of its own: at one depth that layer depends
on one width. A layer that reads many tensors side by side, as those of densely connected networks
do, has a table for each of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import errors, seeds
from tfgen.space.layers import LayerSlots
from tfgen.space.lowering import lower_batch
from tfgen.space.search_space import Choices, SearchSpace

Floats = npt.NDArray[np.float64]
Count = Callable[[Sequence[LayerSlots]], Floats]  # layers -> [architectures, columns]
_PROBED = 64  # networks of which every decision is changed, to see what a layer depends on
_CHECKED = 256
_SPLIT = 4_096  # entries, above which a table is split where that is possible
_WIDE = 65_536  # entries, above which a layer's inputs are looked at one by one
_LARGEST = 2_000_000
_AT_ONCE = 20_000
_PAIRED = 16  # networks in which a pair of decisions is changed
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class LayerTable:
    """What some layers add to the sums.

    Attributes:
      when: choices of other decisions where they add anything, by number of the decision.
      decisions: that it depends on, by number.
      values: of every combination of their choices [*choices, columns].
    """

    when: tuple[tuple[int, tuple[int, ...]], ...]
    decisions: tuple[int, ...]
    values: Floats

    def allowed(self, space: SearchSpace) -> list[tuple[int, Floats]]:
        """`when` as a 1 or 0 for each choice of its decisions."""
        return [
            (d, np.isin(np.arange(len(space.decisions[d].values)), own).astype(np.float64))
            for d, own in self.when
        ]


class LayerTables:
    """The tables of one space.

    Attributes:
      space: whose decisions are read.
      tables: whose entries add up.
    """

    def __init__(self, space: SearchSpace, activation_bits: int, count: Count):
        """Counts every combination that matters to a layer: seconds.

        Args:
          space: with layers.
          activation_bits: of every network.
          count: what a layer adds to each column.

        Raises:
          UsageError: a layer depends on too many decisions for a table.
        """
        self.space = space
        self._bits = activation_bits
        self._count = count
        switches = {d.when.decision for d in space.decisions if d.when is not None}
        switches |= {stage.when.decision for stage in space.stages if stage.when is not None}
        self._switches = {space.index[name] for name in switches}
        parts: dict[tuple[Any, tuple[int, ...]], Floats] = {}
        for found in self._tabulated({}).values():
            for table in found:
                key = (table.when, table.decisions)
                parts[key] = parts.get(key, np.zeros(1)) + table.values
        self.tables = [LayerTable(*key, values) for key, values in parts.items() if values.any()]
        self._check()

    def __call__(self, xp: Any, choices: Any) -> Any:
        """The sums of networks, float64 [architectures, columns].

        Args:
          xp: NumPy or `nets.tensors`.
          choices: of every decision, active or not [architectures, decisions].
        """
        total: Any = 0.0
        for table in self.tables:
            *sizes, columns = table.values.shape
            index = xp.zeros_like(choices[:, 0])
            for decision, size in zip(table.decisions, sizes, strict=True):
                index = index * size + choices[:, decision]
            part = xp.take(xp.asarray(table.values.reshape(-1, columns)), index, axis=0)
            for decision, allowed in table.allowed(self.space):
                part = part * xp.take(xp.asarray(allowed), choices[:, decision], axis=0)[:, None]
            total = total + part
        return total

    def _tabulated(
        self, when: Mapping[int, int], names: frozenset[str] | None = None
    ) -> dict[str, list[LayerTable]]:
        """Tables of each layer, or of these, for networks with such choices."""
        found: dict[str, list[LayerTable]] = {}
        split: dict[int, set[str]] = {}
        for name, decisions in self._dependencies(when).items():
            if names is not None and name not in names:
                continue
            size = math.prod(len(self.space.decisions[d].values) for d in decisions)
            switches = [d for d in decisions if d in self._switches]
            if size > _SPLIT and switches:
                split.setdefault(switches[0], set()).add(name)
                continue
            apart = self._apart(name, decisions, when) if size > _WIDE else None
            if apart is not None:
                found[name] = apart
                continue
            if size > _LARGEST:
                named = ", ".join(self.space.decisions[d].name for d in decisions)
                raise errors.UsageError(
                    f"costs of space {self.space.name!r} are no tables: layer {name!r} depends on "
                    f"too much for one ({named})"
                )
            found[name] = [LayerTable((), decisions, self._table(name, decisions, when))]
        for decision, own in split.items():
            choices = range(len(self.space.decisions[decision].values))
            parts = [self._tabulated({**when, decision: c}, frozenset(own)) for c in choices]
            for name in sorted(own):
                found[name] = _merged(decision, [part.get(name, []) for part in parts])
        return found

    def _apart(
        self, name: str, decisions: tuple[int, ...], when: Mapping[int, int]
    ) -> list[LayerTable] | None:
        """Tables of a layer that reads many tensors side by side; None where they are too wide.

        What one of these tensors adds does not depend on the others' widths. So a layer's part is
        that of a base, where all of them are at their first values, and for each the difference
        that its own value makes.
        """
        joined = self._joined(name, decisions, when)
        alone: list[int] = []  # positions, no two of which are joined
        for p in map(int, np.argsort(joined.sum(axis=1), kind="stable")):
            if not joined[p, alone].any():
                alone.append(p)
        rest = [p for p in range(len(decisions)) if p not in alone]
        sets = [rest, *(sorted([p, *(q for q in rest if joined[p, q])]) for p in alone)]
        values_of = [len(self.space.decisions[d].values) for d in decisions]
        if max(math.prod(values_of[p] for p in own) for own in sets) > _WIDE:
            return None
        tables = []
        ends: list[int | None] = [None, *alone]
        for position, own in zip(ends, sets, strict=True):
            numbers = tuple(decisions[p] for p in own)
            values = self._table(name, numbers, when)
            if position is not None:
                values = values - values.take([0], axis=own.index(position))
            tables.append(LayerTable((), numbers, values))
        return tables

    def _joined(
        self, name: str, decisions: tuple[int, ...], when: Mapping[int, int]
    ) -> npt.NDArray[np.bool_]:
        """Which pairs of decisions change what a layer adds by more than the sum of both."""
        random = seeds.stream(0, "expected cost", "pairs", name)
        pairs = list(itertools.combinations(range(len(decisions)), 2))
        joined = np.zeros((len(decisions), len(decisions)), np.bool_)
        each = max(1, _AT_ONCE // (4 * _PAIRED))
        for begin in range(0, len(pairs), each):
            some = pairs[begin : begin + each]
            base = _raw(self.space, len(some) * _PAIRED, random)
            base[:, list(when)] = list(when.values())
            first, second = (
                np.repeat([decisions[pair[end]] for pair in some], _PAIRED) for end in (0, 1)
            )
            left = self._changed(base, first, random)
            right = self._changed(base, second, random)
            both = left.copy()
            rows = np.arange(len(base))
            both[rows, second] = right[rows, second]
            told = self._layer(name, np.concatenate([both, left, right, base]))
            told = told.reshape(4, len(some), _PAIRED, -1)
            more = np.abs(told[0] - told[1] - told[2] + told[3]).max(axis=(1, 2))
            for (p, q), by in zip(some, more, strict=True):
                joined[p, q] = joined[q, p] = by > _ROUNDING * np.abs(told).max()
        return joined

    def _changed(
        self, choices: Choices, columns: npt.NDArray[np.int64], random: np.random.Generator
    ) -> Choices:
        """The same with another value at one decision of each network, `columns` [networks]."""
        rows = np.arange(len(choices))
        sizes = np.array([len(decision.values) for decision in self.space.decisions])[columns]
        changed = choices.copy()
        steps = 1 + random.integers(np.maximum(sizes - 1, 1))
        changed[rows, columns] = (choices[rows, columns] + steps) % sizes
        return changed

    def _layer(self, name: str, choices: Choices) -> Floats:
        """What one layer adds to each network [architectures, columns]."""
        slots = lower_batch(self.space, self.space.canonical(choices), self._bits)
        own = [slot for slot in slots if slot.name == name]
        return self._count(own) if own else np.zeros((len(choices), 1))

    def _layers(self, choices: Choices) -> dict[str, Floats]:
        """What each layer adds to each network, by layer [architectures, columns]."""
        slots = lower_batch(self.space, self.space.canonical(choices), self._bits)
        return {slot.name: self._count([slot]) for slot in slots}

    def _dependencies(self, when: Mapping[int, int]) -> dict[str, tuple[int, ...]]:
        """By layer, the decisions that change what it adds."""
        bases = _raw(self.space, _PROBED, seeds.stream(0, "expected cost", "probes"))
        bases[:, list(when)] = list(when.values())
        before = self._layers(bases)
        found: dict[str, set[int]] = {name: set() for name in before}
        for number, decision in enumerate(self.space.decisions):
            if number in when:
                continue
            changed = np.repeat(bases, len(decision.values), axis=0)
            changed[:, number] = np.tile(np.arange(len(decision.values)), len(bases))
            after = self._layers(changed)
            for name in {**before, **after}:
                ours, theirs = before.get(name), after.get(name)
                ours = np.zeros((len(bases), 1)) if ours is None else ours
                theirs = np.zeros((len(changed), 1)) if theirs is None else theirs
                if not (np.repeat(ours, len(decision.values), axis=0) == theirs).all():
                    found.setdefault(name, set()).add(number)
        return {name: tuple(sorted(numbers)) for name, numbers in found.items()}

    def _table(self, name: str, numbers: tuple[int, ...], when: Mapping[int, int]) -> Floats:
        """What a layer adds for every combination of these decisions [*choices, columns]."""
        sizes = [len(self.space.decisions[number].values) for number in numbers]
        grid = np.indices(sizes).reshape(len(sizes), -1).T if sizes else np.zeros((1, 0), np.int64)
        counted = []
        for begin in range(0, len(grid), _AT_ONCE):
            part = grid[begin : begin + _AT_ONCE]
            choices = np.zeros((len(part), len(self.space.decisions)), np.int64)
            choices[:, list(when)] = list(when.values())
            choices[:, numbers] = part
            counted.append(self._layer(name, choices))
        columns = max(part.shape[1] for part in counted)
        whole = np.concatenate([np.broadcast_to(p, (len(p), columns)) for p in counted])
        return whole.reshape(*sizes, columns)

    def _check(self) -> None:
        """The sums are those of the walk: no dependency was missed."""
        choices = _raw(self.space, _CHECKED, seeds.stream(0, "expected cost", "check"))
        layers = self._layers(choices).values()
        if not np.allclose(self(np, choices), sum(layers), rtol=1e-9):
            raise AssertionError(f"costs of space {self.space.name!r} depend on more than probed")


def _raw(space: SearchSpace, count: int, random: np.random.Generator) -> Choices:
    """Choices of every decision, active or not."""
    columns = [random.integers(len(d.values), size=count) for d in space.decisions]
    return np.stack(columns, axis=1)


def _merged(decision: int, by_choice: Sequence[Sequence[LayerTable]]) -> list[LayerTable]:
    """A layer's tables for each choice of a decision as tables for some of its choices."""
    found: list[tuple[LayerTable, list[int]]] = []
    for choice, tables in enumerate(by_choice):
        for table in tables:
            for known, choices in found:
                same = (known.when, known.decisions) == (table.when, table.decisions)
                if same and np.array_equal(known.values, table.values):
                    choices.append(choice)
                    break
            else:
                found.append((table, [choice]))
    everywhere = list(range(len(by_choice)))
    return [
        table
        if choices == everywhere
        else dataclasses.replace(table, when=(*table.when, (decision, tuple(choices))))
        for table, choices in found
    ]
