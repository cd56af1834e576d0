"""Architecture <-> arrays that networks read and write; masks for inactive decisions; batched.

A decision of few or unordered values is a one-hot row. A long ordered one, such as a width of 1 to
128, is a position between its first and last value on a logarithmic scale, read by overlapping
hats: neighbours look alike, and a few thousand records teach all widths. Networks write either kind
as shares of knots; a knot of a long decision stands for the choices under its hat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen.space.search_space import Choices, Decision, SearchSpace

_KNOTS = 8  # for widths up to 128: one an octave
_MOST_NUMBERS = 2**25  # that a row for each choice of each decision takes
_NEVER = -1e9  # a logit that no softmax gives a share
Float = npt.NDArray[np.floating[Any]]


class Encoding:
    """How the architectures of one space are read and written.

    Attributes:
      space: whose architectures are encoded.
      knots: length of a decision's row.
      long: 1 for decisions that are positions, 0 for those that are one-hot [decisions].
      rows: what networks read of each choice [decisions, choices, knots].
      spread: how likely each choice is where a network writes a knot; for a one-hot row it is the
        knot's own choice [decisions, knots, choices].
      cumulated: `spread`, summed over the choices up to each [decisions, knots, choices].
      absent: 0 where a row has that knot, else a logit that no softmax gives a share
        [decisions, knots].
    """

    def __init__(self, space: SearchSpace, dtype: npt.DTypeLike = np.float32):
        """Reads the space.

        Args:
          space: whose architectures are encoded.
          dtype: of all arrays; float64 where draws must be the same on every machine.
        """
        self.space = space
        self.dtype = np.dtype(dtype)
        decisions = space.decisions
        counts = [len(d.values) for d in decisions]
        is_long = [d.ordinal and n > _KNOTS for d, n in zip(decisions, counts, strict=True)]
        self.long: Float = np.array(is_long, dtype)
        short = [n for n, long in zip(counts, is_long, strict=True) if not long]
        self.knots = max([_KNOTS, *short])
        shape = len(decisions), max(counts), self.knots
        if math.prod(shape) > _MOST_NUMBERS:
            raise ValueError(
                f"space {space.name!r} is too large to be encoded: {shape[0]:,} decisions of up "
                f"to {shape[1]:,} choices with {shape[2]:,} knots"
            )
        self.rows: Float = np.zeros(shape, dtype)
        self.spread: Float = np.zeros((shape[0], shape[2], shape[1]), dtype)
        self.absent: Float = np.full((shape[0], shape[2]), _NEVER, dtype)
        # The parent's choices that switch a decision on [decisions, knots].
        self._allowed: Float = np.zeros((shape[0], shape[2]), dtype)
        self._parents: list[int | None] = []
        for number, decision in enumerate(decisions):
            count, knots = counts[number], _KNOTS if is_long[number] else counts[number]
            rows = _hats(_positions(decision)) if is_long[number] else np.eye(count)
            self.rows[number, :count, :knots] = rows
            self.spread[number, :knots, :count] = _spread(rows, np.array(decision.probabilities))
            self.absent[number, :knots] = 0.0
            parent = None
            if decision.when is not None:
                parent = space.index[decision.when.decision]
                if is_long[parent]:
                    raise ValueError(
                        f"decision {decision.name!r} depends on {decision.when.decision!r}, which "
                        "has too many values to switch anything"
                    )
                for choice, value in enumerate(decisions[parent].values):
                    self._allowed[number, choice] = float(value in decision.when.values)
            self._parents.append(parent)
        self.cumulated: Float = np.cumsum(self.spread, axis=2)

    @property
    def features_count(self) -> int:
        """Length of a feature vector."""
        return len(self.long) * self.knots

    def parts(self) -> Float:
        """What features of one-hot rows have in common [features, parts].

        A unified block's value is its number of sub-blocks and how many have each kernel; any other
        number is where it lies among its decision's values. Spaces without unified blocks have no
        parts: their rows tell neighbours already.
        """
        unified = self.space.unified
        columns: list[Float] = []
        for number, decision in enumerate(self.space.decisions if unified else ()):
            if decision.name in unified:
                texts = [str(value) for value in decision.values]
                longest = max(map(len, texts))
                kinds = sorted(set("".join(texts)))
                told = [[len(t), *(t.count(kind) for kind in kinds)] for t in texts]
                values: Float = np.asarray(np.array(told) / longest, np.float32)
            elif decision.ordinal and not self.long[number] and len(decision.values) > 1:
                values = _positions(decision).astype(np.float32)[:, None]
            else:
                continue
            for column in values.T:
                whole = np.zeros((len(self.long), self.knots), np.float32)
                whole[number, : len(column)] = column
                columns.append(whole.ravel())
        if not columns:
            return np.zeros((self.features_count, 0), np.float32)
        return np.stack(columns, axis=1)

    def features_of(self, choices: Choices) -> Float:
        """What networks read of canonical choices [architectures, decisions * knots]."""
        read = self.rows[np.arange(len(self.long)), choices]
        read = read * self.space.active(choices)[:, :, None]
        return np.asarray(read.reshape(len(choices), -1), self.dtype)

    def coordinates(self, choices: Choices) -> npt.NDArray[np.float64]:
        """What a distance between canonical choices is measured in [architectures, coordinates].

        A number lies between its decision's first and last value, by logarithm where all are above
        0; other values have a coordinate each, and so has whether a decision is active.
        """
        active = self.space.active(choices)
        columns = []
        for number, decision in enumerate(self.space.decisions):
            if decision.ordinal and len(decision.values) > 1:
                told = _positions(decision)[:, None]
            else:
                told = np.eye(len(decision.values))
            columns.append(told[choices[:, number]] * active[:, [number]])
            if decision.when is not None:
                columns.append(active[:, [number]].astype(np.float64))
        return np.concatenate(columns, axis=1)

    def activity(self, xp: Any, decision: int, rows: Sequence[Any], before: Sequence[Any]) -> Any:
        """1 where a decision is active, 0 where it is not [architectures].

        Differentiable, so that a generator learns what its depth does.

        Args:
          xp: NumPy or TensorFlow.
          decision: its number.
          rows: of the decisions before it; a parent lies before its children
            [architectures, knots].
          before: their activity.
        """
        parent = self._parents[decision]
        if parent is None:
            return 1.0
        return before[parent] * xp.einsum("nk,k->n", rows[parent], self._allowed[decision])


def _hats(positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows of positions in 0..1 [positions, knots]; each sums to 1."""
    return np.maximum(1.0 - np.abs(positions[:, None] * (_KNOTS - 1.0) - np.arange(_KNOTS)), 0.0)


def _spread(
    rows: npt.NDArray[np.float64], probabilities: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Each knot's choices, as often as sampling draws them [knots, choices].

    A knot that no choice reaches stands for the one nearest to it.
    """
    weights = rows.T * probabilities
    for knot in np.flatnonzero(weights.sum(axis=1) == 0):
        middle = rows @ np.arange(rows.shape[1])
        weights[knot, np.abs(middle - knot).argmin()] = 1.0
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _positions(decision: Decision) -> npt.NDArray[np.float64]:
    """Where the values of a long decision lie in 0..1, by logarithm where all are above 0."""
    values = np.array(decision.values, np.float64)
    scale = np.log(values) if values[0] > 0 else values
    return np.asarray((scale - scale[0]) / (scale[-1] - scale[0]))
