"""Architecture <-> one-hot grid [decisions, choices]; masks for inactive decisions; batched.

Networks read a grid through a fixed basis: a decision of few or unordered values keeps its one-hot
row; a long ordered one (a width of 1 to 128) is read by overlapping hats over the logarithm of its
values, so that neighbours look alike and a few thousand records teach all 128 widths.

Functions that training needs as well take the array module `xp`, NumPy or TensorFlow, and use only
what both spell alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen.space.search_space import Choices, Decision, SearchSpace

_KNOTS = 8  # for widths up to 128: one an octave
Float = npt.NDArray[np.float32]


class Encoding:
    """The grid of one space.

    Attributes:
      space: whose architectures are encoded.
      mask: 1 where a decision has that choice [decisions, choices].
      basis: how a row of the grid is read [decisions, choices, knots].
      log_prior: logarithm of the Monte-Carlo probability; -1e9 where there is no such choice
        [decisions, choices].
    """

    def __init__(self, space: SearchSpace):
        self.space = space
        decisions = space.decisions
        shape = (len(decisions), max(len(d.values) for d in decisions))
        self.mask: Float = np.zeros(shape, np.float32)
        self.log_prior: Float = np.full(shape, -1e9, np.float32)
        bases = [_basis(decision) for decision in decisions]
        knots = max(b.shape[1] for b in bases)
        self.basis: Float = np.zeros((*shape, knots), np.float32)
        # The parent's choices that switch a decision on [decisions, choices]; all 0 for roots.
        self._allowed: Float = np.zeros(shape, np.float32)
        self._parents: list[int | None] = []
        for row, (decision, basis) in enumerate(zip(decisions, bases, strict=True)):
            count = len(decision.values)
            self.mask[row, :count] = 1.0
            self.log_prior[row, :count] = np.log(decision.probabilities)
            self.basis[row, :count, : basis.shape[1]] = basis
            if decision.when is None:
                self._parents.append(None)
                continue
            parent = space.index[decision.when.decision]
            self._parents.append(parent)
            for choice, value in enumerate(decisions[parent].values):
                self._allowed[row, choice] = float(value in decision.when.values)

    @property
    def features_count(self) -> int:
        """Length of a feature vector."""
        return int(self.basis.shape[0] * self.basis.shape[2])

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

    def activity(self, xp: Any, grid: Any) -> Any:
        """How active each decision is, from rows that each sum to 1 [architectures, decisions].

        1 or 0 for a one-hot grid; differentiable, so that a generator learns what its depth does.
        """
        columns: list[Any] = []
        for row, parent in enumerate(self._parents):
            if parent is None:
                columns.append(xp.ones_like(grid[:, row, 0]))
            else:
                allowed = xp.einsum("nc,c->n", grid[:, parent], self._allowed[row])
                columns.append(columns[parent] * allowed)
        return xp.stack(columns, axis=1)

    def features(self, xp: Any, grid: Any) -> Any:
        """What networks read of a grid with inactive rows 0 [architectures, decisions * knots]."""
        read = xp.einsum("ndc,dck->ndk", grid, self.basis)
        return xp.reshape(read, (-1, self.features_count))

    def features_of(self, choices: Choices) -> Float:
        """`features(one_hot(choices))` without making the grid."""
        rows = np.arange(self.basis.shape[0])
        read = self.basis[rows, choices] * self.space.active(choices)[:, :, None]
        return np.asarray(read.reshape(len(choices), -1), np.float32)

    def logits(self, xp: Any, coefficients: Any) -> Any:
        """Scores of every choice from coefficients of the basis, on top of the Monte-Carlo prior.

        Args:
          xp: NumPy or TensorFlow.
          coefficients: [architectures, decisions, knots].

        Returns:
          [architectures, decisions, choices]; -1e9 where there is no such choice.
        """
        return xp.einsum("ndk,dck->ndc", coefficients, self.basis) + self.log_prior


def _basis(decision: Decision) -> npt.NDArray[np.float64]:
    """One decision's basis [choices, knots]; each row sums to 1."""
    count = len(decision.values)
    if count <= _KNOTS or not decision.ordinal:
        return np.eye(count)
    values = np.array(decision.values, np.float64)
    position = np.log(values) if values[0] > 0 else values
    knots = np.linspace(position[0], position[-1], _KNOTS)
    spacing = (position[-1] - position[0]) / (_KNOTS - 1)
    assert math.isfinite(spacing) and spacing > 0
    hats = 1.0 - np.abs(position[:, None] - knots) / spacing
    return np.asarray(np.maximum(hats, 0.0))
