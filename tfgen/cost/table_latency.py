"""Latencies that tables tell: of networks measured whole, fitted to those, or sums of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tfgen import errors, seeds
from tfgen.cost.latency import Floats, Interval
from tfgen.space.search_space import Choices, SearchSpace, Value

# What terms are read from and multiplied by, of choices [architectures, decisions]: others of the
# same shape, and numbers [architectures].
Part = Callable[[Choices], tuple[Choices, Floats]]

_FITTED_SHARE = 0.75  # of a sample's networks; the others calibrate the upper end
_RIDGE = 1.0


class Terms:
    """A latency as a sum with one term for each group of decisions, chosen by their values.

    A group whose decisions are not all active has one term for that, the first.

    Attributes:
      space: whose decisions they are.
      groups: names of decisions.
      count: the number of different terms.
    """

    def __init__(self, space: SearchSpace, groups: Sequence[tuple[str, ...]]):
        self.space = space
        self.groups = tuple(groups)
        self._columns = [[space.index[name] for name in group] for group in self.groups]
        self._sizes = [
            tuple(len(space.decisions[c].values) for c in columns) for columns in self._columns
        ]
        optional = [any(space.decisions[c].when for c in columns) for columns in self._columns]
        self._optional = [int(o) for o in optional]
        counts = [o + math.prod(s) for o, s in zip(self._optional, self._sizes, strict=True)]
        self._offsets = np.cumsum([0, *counts])
        self.count = int(self._offsets[-1])

    def positions(self, choices: Choices) -> npt.NDArray[np.int64]:
        """Which term each group has [architectures, groups]."""
        active = self.space.active(choices)
        found = np.empty((len(choices), len(self.groups)), np.int64)
        for group, columns in enumerate(self._columns):
            code = np.ravel_multi_index(tuple(choices[:, columns].T), self._sizes[group])
            if self._optional[group]:
                code = np.where(active[:, columns].all(axis=1), code + 1, 0)
            found[:, group] = code + self._offsets[group]
        return found

    def split(self, term_values: Floats) -> list[Floats]:
        """A number for each term -> those of each group."""
        return np.split(term_values, self._offsets[1:-1])

    def settings(self) -> Iterator[tuple[int, int, tuple[Value, ...]]]:
        """(position, group, its decisions' values) of every term but those of inactive groups."""
        for group, columns in enumerate(self._columns):
            first = int(self._offsets[group]) + self._optional[group]
            for code, chosen in enumerate(np.ndindex(self._sizes[group])):
                values = tuple(
                    self.space.decisions[c].values[i] for c, i in zip(columns, chosen, strict=True)
                )
                yield first + code, group, values


class Fit:
    """Latencies fitted to a sample of networks: a sum of terms in milliseconds.

    Least squares of relative errors, so that small networks count as much as large ones.
    """

    def __init__(self, terms: Terms, parts: Sequence[Part], choices: Choices, ms: Floats):
        """Fits.

        Args:
          terms: what a latency is a sum of, once for each part.
          parts: see `Part`.
          choices: of the sample, canonical [networks, decisions].
          ms: of the sample [networks].
        """
        self._terms = terms
        self._parts = tuple(parts)
        self._least_ms = float(ms.min()) / 2  # nothing is predicted to take less
        self._typical_ms = float(np.median(ms))
        design = self._design(choices)
        self._counts = np.split((design != 0).sum(axis=0), len(self._parts))  # each [terms]
        relative = self._typical_ms / ms
        relative /= math.sqrt(np.mean(relative**2))
        weights = relative**2 / np.sum(relative**2)
        means, mean = weights @ design, float(weights @ ms)
        centred = (design - means) * relative[:, None]
        gram = centred.T @ centred
        gram[np.diag_indices_from(gram)] += _RIDGE
        found = np.linalg.solve(gram, centred.T @ ((ms - mean) * relative))
        self._constant_ms = mean - float(means @ found)
        self._term_ms = np.split(found, len(self._parts))  # each [terms]

    def predict(self, choices: Choices) -> tuple[Floats, Floats]:
        """Latency and doubt, both ms, of canonical choices [architectures, decisions].

        Doubt [architectures] is what a network's error is taken to be in proportion to. It grows
        with the latency, but not in proportion (small networks are off by more of theirs), and
        where the sample has few networks with the same terms.
        """
        ms = np.full(len(choices), self._constant_ms)
        rarity = np.zeros(len(choices))
        for part, term_ms, counts in zip(self._parts, self._term_ms, self._counts, strict=True):
            read, scale = part(choices)
            positions = self._terms.positions(read)
            ms += scale * term_ms[positions].sum(axis=1)
            rarity += (1.0 / (1 + counts))[positions].sum(axis=1)
        ms = np.maximum(ms, self._least_ms)
        return ms, np.sqrt(rarity) * (ms + self._typical_ms)

    def _design(self, choices: Choices) -> Floats:
        """Each part's scale of its terms, 0 for those that a network has not [networks, terms]."""
        blocks = []
        for part in self._parts:
            read, scale = part(choices)
            block = np.zeros((len(choices), self._terms.count))
            np.put_along_axis(block, self._terms.positions(read), scale[:, None], axis=1)
            blocks.append(block)
        return np.hstack(blocks)


class NetworkTable:
    """Networks that were measured whole; where the table has not all, a fit tells the others.

    A network in the table has its measured latency, which is also its upper end: that is what the
    table says, though who measures again may find another. For the others three quarters of the
    table are fitted, and the rest give a split-conformal upper end, which holds for networks drawn
    as the table's were.

    Attributes:
      device: the name that budgets use.
      remark: what a user should know of these latencies.
    """

    def __init__(
        self,
        device: str,
        choices: Choices,
        ms: Floats,
        terms: Terms,
        parts: Sequence[Part],
        seed: int = 0,
    ):
        """Reads, and fits where networks are missing.

        Args:
          device: the name that budgets use.
          choices: of the measured networks, canonical and distinct [networks, decisions].
          ms: what was measured, above 0 [networks].
          terms: of the fit.
          parts: of the fit.
          seed: of the split into fitted and calibrating networks.
        """
        self.device = device
        self._space = terms.space
        self._ms = ms
        if not (len(ms) and np.isfinite(ms).all() and (ms > 0).all()):
            raise ValueError("latencies must be finite and above 0, and at least one")
        self._rows = {key: row for row, key in enumerate(_keys(choices))}
        if len(self._rows) != len(ms):
            raise ValueError(f"{len(ms)} latencies for {len(self._rows)} different networks")
        self._fit: Fit | None = None
        if len(ms) == self._space.size():
            self.remark = f"measured: the table has every network of {self._space.name}"
            return
        self.remark = (
            f"{len(ms):,} networks of {self._space.name} were measured; others are fitted to them"
        )
        order = seeds.stream(seed, "table", device, self._space.name).permutation(len(ms))
        fitted, rest = np.split(order, [int(_FITTED_SHARE * len(ms))])
        self._fit = Fit(terms, parts, choices[fitted], ms[fitted])
        expected, doubt = self._fit.predict(choices[rest])
        self._excess = np.sort((ms[rest] - expected) / doubt)

    def predict(self, choices: Choices, confidence: float) -> Interval:
        """Latencies of canonical choices [architectures, decisions]; see `LatencyModel`."""
        rows = np.array([self._rows.get(key, -1) for key in _keys(choices)], np.int64)
        measured = self._ms[rows]
        if self._fit is None:
            return Interval(measured, measured)
        fitted, doubt = self._fit.predict(choices)
        high = fitted + max(upper_end(self._excess, confidence), 0.0) * doubt
        known = rows >= 0
        return Interval(np.where(known, measured, fitted), np.where(known, measured, high))


class BlockTable:
    """Blocks that were measured one by one: a network's latency is their sum.

    No network was measured whole, so nothing calibrates an upper end: it is the sum, at every
    confidence. Of a network with a block that the table has not, nothing is promised: its upper
    end is infinite, and the largest network of the table stands for its latency.

    Attributes:
      device: the name that budgets use.
      remark: what a user should know of these latencies.
    """

    def __init__(self, device: str, terms: Terms, term_ms: Floats, rest_ms: float = 0.0):
        """Reads.

        Args:
          device: the name that budgets use.
          terms: the blocks.
          term_ms: of each term, NaN where the table has none [terms].
          rest_ms: of what every network has.
        """
        self.device = device
        self.remark = (
            "sums of blocks that were measured one by one: no network was measured whole, so the "
            "confidence is not calibrated"
        )
        self._terms = terms
        self._term_ms = term_ms
        self._rest_ms = rest_ms
        # At most: each group's largest term.
        self._largest_ms = rest_ms + sum(np.nanmax(part) for part in terms.split(term_ms))

    def predict(self, choices: Choices, confidence: float) -> Interval:
        """Latencies of canonical choices [architectures, decisions]; see `LatencyModel`."""
        del confidence  # nothing was measured that could tell
        total = self._rest_ms + self._term_ms[self._terms.positions(choices)].sum(axis=1)
        unknown = np.isnan(total)
        return Interval(
            np.where(unknown, self._largest_ms, total), np.where(unknown, np.inf, total)
        )


def upper_end(excess: Floats, confidence: float) -> float:
    """What a new excess does not exceed with that probability; infinite where too few are known.

    The split-conformal quantile: of n known values the ceil((n + 1) * confidence)-th, so that a new
    value, exchangeable with them, is one of n + 1 equally likely ranks.

    Args:
      excess: known values in ascending order [networks].
      confidence: above 0 and below 1; raises UsageError otherwise.
    """
    if not 0 < confidence < 1:
        raise errors.UsageError(f"confidence must lie above 0 and below 1, got {confidence:g}")
    rank = math.ceil((len(excess) + 1) * confidence - 1e-9)
    return float(excess[rank - 1]) if rank <= len(excess) else math.inf


def _keys(choices: Choices) -> list[bytes]:
    """One hashable key for each architecture."""
    rows = np.ascontiguousarray(choices, np.int16)
    data, width = rows.tobytes(), rows.shape[1] * rows.itemsize
    return [data[start : start + width] for start in range(0, len(data), width)]
