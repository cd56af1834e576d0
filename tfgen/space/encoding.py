"""Architecture <-> arrays that networks read and write; masks for inactive decisions; batched.

A decision of few or unordered values is a one-hot row. A long ordered one, such as a width of 1 to
128, is a position between its first and last value on a logarithmic scale, read by overlapping
hats: neighbours look alike, a few thousand records teach all widths, and a network that writes a
position gets a gradient that says which way to go.

Functions that training needs as well take the array module `xp`, NumPy or TensorFlow, and use only
what both spell alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen.space.search_space import Choices, Decision, SearchSpace

_KNOTS = 8  # for widths up to 128: one an octave
_NEVER = -1e9  # a logit that no softmax gives a share
_FAR = 1e4  # beyond every position before a sigmoid
Float = npt.NDArray[np.float32]


class Encoding:
    """How the architectures of one space are read and written.

    Attributes:
      space: whose architectures are encoded.
      knots: length of a decision's row.
      long: 1 for decisions that are positions, 0 for those that are one-hot [decisions].
      positions: which decisions are positions.
    """

    def __init__(self, space: SearchSpace):
        self.space = space
        decisions = space.decisions
        counts = [len(d.values) for d in decisions]
        is_long = [d.ordinal and n > _KNOTS for d, n in zip(decisions, counts, strict=True)]
        self.long: Float = np.array(is_long, np.float32)
        self.positions = np.flatnonzero(self.long)
        short = [n for n, long in zip(counts, is_long, strict=True) if not long]
        self.knots = max([_KNOTS, *short])
        rows, columns = len(decisions), max(counts)
        self.mask: Float = np.zeros((rows, columns), np.float32)
        # Position of each choice in 0..1 [decisions, choices]; 0 for short decisions.
        self._positions: Float = np.zeros((rows, columns), np.float32)
        # Halfway to the next choice [decisions, choices - 1]; 2 where there is none.
        self._midpoints: Float = np.full((rows, columns - 1), 2.0, np.float32)
        # 0 where a one-hot row has that knot [decisions, knots].
        self._absent: Float = np.full((rows, self.knots), _NEVER, np.float32)
        # The parent's choices that switch a decision on [decisions, knots].
        self._allowed: Float = np.zeros((rows, self.knots), np.float32)
        self._parents: list[int | None] = []
        for row, decision in enumerate(decisions):
            count = counts[row]
            self.mask[row, :count] = 1.0
            if is_long[row]:
                positions = _positions(decision)
                self._positions[row, :count] = positions
                self._midpoints[row, : count - 1] = (positions[1:] + positions[:-1]) / 2
            else:
                self._absent[row, :count] = 0.0
            parent = None
            if decision.when is not None:
                parent = space.index[decision.when.decision]
                if is_long[parent]:
                    raise ValueError(
                        f"decision {decision.name!r} depends on {decision.when.decision!r}, which "
                        "has too many values to switch anything"
                    )
                for choice, value in enumerate(decisions[parent].values):
                    self._allowed[row, choice] = float(value in decision.when.values)
            self._parents.append(parent)

    @property
    def features_count(self) -> int:
        """Length of a feature vector."""
        return len(self.long) * self.knots

    def one_hot(self, choices: Choices) -> Float:
        """The grid of canonical choices: rows of inactive decisions are 0.

        Returns:
          float32 [architectures, decisions, choices].
        """
        columns = np.arange(self.mask.shape[1])
        grid = (choices[:, :, None] == columns).astype(np.float32)
        return np.asarray(grid * self.space.active(choices)[:, :, None], np.float32)

    def decode(self, grid: npt.ArrayLike) -> Choices:
        """The canonical choices with the largest entry of each row [architectures, decisions]."""
        scores = np.where(self.mask > 0, np.asarray(grid, np.float32), -np.inf)
        return self.space.canonical(scores.argmax(axis=2))

    def features_of(self, choices: Choices) -> Float:
        """What networks read of canonical choices [architectures, decisions * knots]."""
        rows = np.arange(len(self.long))
        hats = self.hats(np, self._positions[rows, choices])
        one_hot = choices[:, :, None] == np.arange(self.knots)
        read = np.where(self.long[:, None] > 0, hats, one_hot)
        active = self.space.active(choices)[:, :, None]
        return np.asarray((read * active).reshape(len(choices), -1), np.float32)

    def features(self, xp: Any, rows: Any) -> Any:
        """What networks read of rows, those of inactive decisions set to 0.

        Args:
          xp: NumPy or TensorFlow.
          rows: each decision's row: one-hot, or hats [architectures, decisions, knots].
        """
        active = self.activity(xp, rows)
        return xp.reshape(rows * active[:, :, None], (-1, self.features_count))

    def hats(self, xp: Any, positions: Any) -> Any:
        """Rows of positions in 0..1 [architectures, decisions, knots]; each sums to 1."""
        knots = np.arange(_KNOTS, dtype=np.float32)
        hats = xp.maximum(1.0 - xp.abs(positions[:, :, None] * (_KNOTS - 1.0) - knots), 0.0)
        if self.knots == _KNOTS:
            return hats
        # Knots beyond the hats belong to longer one-hot rows.
        return xp.pad(hats, [[0, 0], [0, 0], [0, self.knots - _KNOTS]])

    def logits(self, scores: Any) -> Any:
        """Scores of one-hot rows with knots that do not exist ruled out; the shape of `scores`."""
        return scores + self._absent

    def passed(self, positions: Any) -> Any:
        """Which midpoints between choices lie below each position [.., decisions, choices - 1].

        Their number is the index of the nearest choice.
        """
        return positions[:, :, None] > self._midpoints

    def snapped(self, xp: Any, positions: Any) -> Any:
        """The position of the choice nearest to each position, the shape of `positions`."""
        passed = xp.where(self.passed(positions), 1.0, 0.0)
        steps = self._positions[:, 1:] - self._positions[:, :-1]
        return xp.einsum("ndc,dc->nd", passed, np.maximum(steps, 0.0))

    def shares(self, xp: Any, middle: Any, scale: Any) -> Any:
        """How likely each choice of a long decision is nearest to a position that is drawn.

        Args:
          xp: NumPy or TensorFlow.
          middle: of the logistic distribution of the position before a sigmoid
            [architectures, positions].
          scale: of that distribution [architectures, positions].

        Returns:
          [architectures, positions, choices].
        """
        midpoints = self._midpoints[self.positions]
        ends = np.clip(midpoints, 1e-6, 1.0 - 1e-6)
        edges = np.where(midpoints < 1.0, np.log(ends / (1.0 - ends)), _FAR)
        x = (edges.astype(np.float32) - middle[:, :, None]) / scale[:, :, None]
        below = 0.5 + 0.5 * xp.tanh(0.5 * x)  # the sigmoid
        nothing = xp.zeros_like(below[:, :, :1])
        return xp.concat([below, nothing + 1.0], axis=2) - xp.concat([nothing, below], axis=2)

    def activity(self, xp: Any, rows: Any) -> Any:
        """How active each decision is [architectures, decisions].

        1 or 0 for one-hot rows; differentiable, so that a generator learns what its depth does.
        """
        columns: list[Any] = []
        for row, parent in enumerate(self._parents):
            if parent is None:
                columns.append(xp.ones_like(rows[:, row, 0]))
            else:
                allowed = xp.einsum("nk,k->n", rows[:, parent], self._allowed[row])
                columns.append(columns[parent] * allowed)
        return xp.stack(columns, axis=1)


def _positions(decision: Decision) -> npt.NDArray[np.float64]:
    """Where the values of a long decision lie in 0..1, by logarithm where all are above 0."""
    values = np.array(decision.values, np.float64)
    scale = np.log(values) if values[0] > 0 else values
    return np.asarray((scale - scale[0]) / (scale[-1] - scale[0]))
