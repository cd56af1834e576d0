"""SGNAS: a convolutional generator from a target cost to a map of architecture parameters.

Huang and Chu, "Searching by Generating: Flexible and Efficient One-Shot NAS with Architecture
Generator", CVPR 2021, section 3.2. G reads the target C and a random prior B, the one-hot map of
an architecture drawn once, and writes the map alpha = G(C, B), as large as B, from which every
decision takes its most likely value. An expansion layer lifts the target to the map's size;
convolutions of stride 1 and 32 channels with residuals follow. How G is trained: `sgnas_training`.

Where the paper is silent or we depart from it:
  * A row of the map is what one sub-block of a unified block does (3, 5, 7 or skip: the paper's),
    or any other decision of the space. A block's value is as likely as its sub-blocks together;
    only sorted ones exist (forced sampling, section 3.3.2).
  * The target is a vector, read as overlapping hats (`Targets`). With one number G bends its map
    evenly, and decisions change at the same targets.
  * Convolutions share their weights over the map; each place of it has a bias of its own.
  * An answer over the budget lowers its target by the overshoot, at most five times. Further draws
    are samples of softmax(alpha), also at higher temperatures, for targets from the budget
    downwards. A budget that limits no cost that G reads is drawn for targets over the whole range
    of the first such cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import errors, seeds
from tfgen.cost.cost_model import LATENCY
from tfgen.generators.base import Asked, Count, Drawing, Draws, Evidence, in_float64
from tfgen.generators.targets import Targets
from tfgen.space.search_space import SearchSpace

# What a target may limit, in this order; latency on one device, which was profiled before the fit.
COSTS = ("macs", "params", "storage_kb", "energy_uj", LATENCY)
SUPERNET, ENCODER = "supernet", "encoder"
TEACHERS = (SUPERNET, ENCODER)
KNOTS = 33  # over the range of a cost
CONVOLUTIONS = 4
_LADDER = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8)  # shares of the budget that draws are made for
_TEMPERATURES = (1.0, 2.0, 4.0)  # of draws: a trained map is sure of nearly all decisions
_LOWERINGS, _LEAST_LOWERING = 5, 1.01  # how often, and by which factor at least
_SWEEP = 16  # targets for a budget without one


@dataclasses.dataclass(frozen=True)
class SgnasConfig:
    """How the generator is trained.

    Attributes:
      costs: of COSTS, those that targets may limit.
      steps: of gradient descent.
      batch_size: targets a step.
      teacher: of TEACHERS, what tells L_val: the supernet, as in the paper; or the encoder that was
        fitted to scores of its networks, by which a step is many times as fast and tells of all its
        targets, not of one. Where there is no supernet it is the encoder.
      images: a step, through the supernet.
      learning_rate: Adam's, which falls along a half cosine.
      constraint_weight: lambda, of L_C beside L_val. Both are relative: a share of the target, and
        a share of the range of L_val.
      overshoot_weight: of a cost over its target, where one below it weighs 1.
      start_temperature: tau of the Gumbel softmax at first (appendix A.3).
      end_temperature: at the end.
      several_share: of the targets, how many limit more than one cost.
      channels: of the convolutions.
    """

    costs: tuple[str, ...] = ("macs", "params", "storage_kb", "energy_uj")
    steps: int = 3_000
    batch_size: int = 64
    teacher: str = SUPERNET
    images: int = 64
    learning_rate: float = 3e-3
    constraint_weight: float = 3.0
    overshoot_weight: float = 1.2
    start_temperature: float = 5.0
    end_temperature: float = 0.4
    several_share: float = 0.3
    channels: int = 32

    def __post_init__(self) -> None:
        if not self.costs or not set(self.costs) <= set(COSTS):
            raise ValueError(f"SGNAS takes targets of {', '.join(COSTS)}, got {self.costs}")
        if self.teacher not in TEACHERS:
            raise ValueError(f"SGNAS has a teacher of {', '.join(TEACHERS)}, got {self.teacher!r}")
        if min(self.steps, self.batch_size, self.images, self.channels) < 1:
            raise ValueError(f"SGNAS needs positive sizes: {self}")
        if min(self.learning_rate, self.start_temperature, self.end_temperature) <= 0:
            raise ValueError(f"SGNAS needs positive rates and temperatures: {self}")
        if not 0 <= self.several_share <= 1 or self.constraint_weight < 0:
            raise ValueError(f"SGNAS needs a share in 0..1 and a weight of at least 0: {self}")


# --- the map --------------------------------------------------------------------------------------


class ParameterMap:
    """Where each decision of a space lies in the map.

    Attributes:
      space: whose decisions.
      rows: of the map.
      columns: of the map.
      readings: of each decision, its first row, its number of rows, and what its values read of
        them [rows * columns, values].
    """

    def __init__(self, space: SearchSpace):
        self.space = space
        unified = space.unified
        operations = {
            d.name: sorted(set("".join(map(str, d.values)))) for d in space.decisions
            if d.name in unified
        }  # fmt: skip
        self.columns = max(
            len(operations[d.name]) + 1 if d.name in unified else len(d.values)
            for d in space.decisions
        )
        self.rows = 0
        self.readings: list[tuple[int, int, np.ndarray]] = []
        for decision in space.decisions:
            if decision.name in unified:
                reading = _sub_block_reading(
                    [str(value) for value in decision.values],
                    operations[decision.name],
                    self.columns,
                )
            else:
                reading = np.eye(self.columns, len(decision.values), dtype=np.float32)
            rows = len(reading) // self.columns
            self.readings.append((self.rows, rows, reading))
            self.rows += rows

    def logits(self, xp: Any, alpha: Any) -> list[Any]:
        """Of each decision's values, from maps [batch, rows, columns]; each [batch, values]."""
        return [
            xp.matmul(xp.reshape(alpha[:, row : row + rows], (-1, rows * self.columns)), reading)
            for row, rows, reading in self.readings
        ]

    def one_hot(self, choices: np.ndarray) -> np.ndarray:
        """The map of one architecture [rows, columns]."""
        parts = [
            reading[:, choice].reshape(rows, self.columns)
            for (_, rows, reading), choice in zip(self.readings, choices, strict=True)
        ]
        return np.concatenate(parts)


def _sub_block_reading(values: Sequence[str], operations: Sequence[str], columns: int) -> Any:
    """Which operation each sub-block has, a skip last [rows * columns, values]."""
    longest = max(map(len, values))
    reading = np.zeros((longest, columns, len(values)), np.float32)
    for number, value in enumerate(values):
        for sub_block in range(longest):
            there = sub_block < len(value)
            column = operations.index(value[sub_block]) if there else len(operations)
            reading[sub_block, column, number] = 1.0
    return reading.reshape(longest * columns, len(values))


# --- G --------------------------------------------------------------------------------------------


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A 3x3 convolution of stride 1, padded with zeros [batch, rows, columns, channels]."""
    rows, columns = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [
        padded[:, row : row + rows, column : column + columns] @ kernel[row, column]
        for row in range(3)
        for column in range(3)
    ]
    return np.asarray(sum(windows[1:], windows[0]))


def generate(
    xp: Any,
    state: Mapping[str, Any],
    prior: np.ndarray,
    features: Any,
    convolve: Callable[[Any, Any], Any] = convolved,
) -> Any:
    """G: the map alpha of each target [batch, rows, columns].

    Args:
      xp: NumPy or TensorFlow.
      state: G's kernels and biases.
      prior: B, the map of one architecture [rows, columns].
      features: of the targets, see `Targets.features`.
      convolve: `convolved`, of arrays of xp.
    """
    expanded = xp.reshape(xp.matmul(features, state["expansion"]), (-1, *prior.shape))
    lifted = convolve(expanded[..., None], state["kernel_0"][:, :, :1])
    lifted = lifted + convolve(prior[None, ..., None], state["kernel_0"][:, :, 1:])
    hidden = lifted + state["place"]  # [batch, rows, columns, channels]
    for layer in range(1, CONVOLUTIONS - 1):
        hidden = hidden + convolve(xp.maximum(hidden, 0.0), state[f"kernel_{layer}"])
    last = convolve(xp.maximum(hidden, 0.0), state[f"kernel_{CONVOLUTIONS - 1}"])
    return last[..., 0] + expanded + prior


class SgnasGenerator(Drawing):
    """G as NumPy arrays, with its prior."""

    def __init__(self, space: SearchSpace, state: Mapping[str, np.ndarray]):
        super().__init__(space)
        self._space = space
        self._map = ParameterMap(space)
        self._state = dict(state)
        self._weights = in_float64(state)
        shape = (self._map.rows, self._map.columns)
        self._targets = Targets.restored(COSTS, KNOTS, state)
        if state["prior"].shape != shape:
            raise ValueError(
                f"the generator is of another space or version: its map must be {shape}"
            )

    def answers(self, targets: Any, xp: Any = np) -> Any:
        """The most likely network of each target, canonical [targets, decisions].

        Args:
          targets: limits in the order of COSTS; 0 for a cost that is free [targets, costs].
          xp: NumPy or `nets.tensors`.
        """
        choices = [xp.argmax(scores, axis=1) for scores in self._logits(xp, targets)]
        return self._space.settled(xp, xp.stack(choices, axis=1))

    def draws(self, xp: Any, asked: Asked, count: int, costs: Count) -> Draws:
        targets = self._targets.of_asked(xp, asked)  # [budgets, costs]
        limited = xp.any(targets > 0, axis=-1)
        swept = self._targets.sweep(_SWEEP)
        first = self._kept(xp, xp.where(limited[:, None], targets, swept[:1]), asked, costs)
        if count == 1:
            return Draws(first[:, None])
        drawn = self._drawn(xp, targets, limited, swept, count - 1, asked.key)
        return Draws(xp.concatenate([first[:, None], drawn], axis=1))

    def _kept(self, xp: Any, targets: Any, asked: Asked, costs: Count) -> Any:
        """Answers to targets, of which each that is missed is lowered, five times at most.

        Args:
          xp: NumPy or `nets.tensors`.
          targets: [budgets, costs].
          asked: the budgets.
          costs: counts networks.

        Returns:
          Canonical [budgets, decisions].
        """
        answers = self.answers(targets, xp)
        for _ in range(_LOWERINGS):
            # A latency is selection's to tell.
            told = {m: cost for m, cost in costs(answers).items() if m != LATENCY}
            shares = self._targets.shares(self._targets.of_asked(xp, asked), told, xp)
            lowered = xp.any(shares > 1.0, axis=-1)[:, None]
            if xp is np and not lowered.any():
                break
            lower = targets / xp.maximum(shares, _LEAST_LOWERING)
            targets = xp.where(shares > 1.0, lower, targets)
            answers = xp.where(lowered, self.answers(targets, xp), answers)
        return answers

    def _drawn(
        self, xp: Any, targets: Any, limited: Any, swept: np.ndarray, count: int, key: seeds.Key
    ) -> Any:
        """Samples of softmax(alpha / temperature) [budgets, count, decisions].

        The targets of a ladder take turns, at one temperature after the other.

        Args:
          xp: NumPy or `nets.tensors`.
          targets: of the budgets [budgets, costs].
          limited: whether they limit anything; others are drawn for what is swept [budgets].
          swept: targets over the range of a cost [targets, costs].
          count: for each budget.
          key: of the noise [budgets].
        """
        decisions = len(self._space.decisions)
        uniform = seeds.counter_uniform(xp, seeds.fork(xp, key, "sgnas"), count, decisions)
        ladder = np.multiply.outer(_LADDER, np.ones(targets.shape[1]))  # [rungs, costs]
        rungs = xp.reshape(targets[:, None] * ladder, (-1, targets.shape[1]))
        everywhere = self._logits(np, swept)
        columns = []
        for decision, logits in enumerate(self._logits(xp, rungs)):
            by_budget = xp.reshape(logits, (-1, len(_LADDER), logits.shape[1]))
            own = _turns(xp, by_budget, count)
            any_ = _turns(np, everywhere[decision][None], count)
            cumulated = xp.where(limited[:, None, None], own, any_)  # [budgets, count, values]
            passed = cumulated < uniform[..., decision, None] * cumulated[..., -1:]
            columns.append(xp.sum(xp.astype(passed, xp.int64), axis=-1))
        return self._space.settled(xp, xp.stack(columns, axis=-1))

    def _logits(self, xp: Any, targets: Any) -> list[Any]:
        """Of each decision's values [targets, values]."""
        features = self._targets.features(targets, xp)
        convolve = convolved if xp is np else xp.convolve
        alpha = generate(xp, self._weights, self._weights["prior"], features, convolve)
        return self._map.logits(xp, alpha)

    def state(self) -> Mapping[str, np.ndarray]:
        return dict(self._state)


def _turns(xp: Any, logits: Any, count: int) -> Any:
    """Cumulated weights of values, by the draws' turns [budgets, count, values].

    Args:
      xp: NumPy or `nets.tensors`.
      logits: of the targets of each budget [budgets, targets, values].
      count: draws of each budget.
    """
    scores = xp.concatenate([logits / temperature for temperature in _TEMPERATURES], axis=1)
    weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    cumulated = xp.matmul(weights, np.triu(np.ones((logits.shape[2],) * 2)))
    turns = np.arange(count) % (logits.shape[1] * len(_TEMPERATURES))
    return xp.take(cumulated, turns, axis=1)


class Sgnas:
    """The method: needs a supernet and examples, or an encoder in their place."""

    name = "sgnas"
    needs: frozenset[str] = frozenset()  # one of two; checked by `fit`
    config = SgnasConfig

    def fit(self, evidence: Evidence, config: SgnasConfig, seed: int) -> SgnasGenerator:
        taught = config.teacher == SUPERNET and evidence.supernet is not None
        if not taught and evidence.surrogate is None:
            needed = "surrogate" if config.teacher == ENCODER else "supernet or surrogate"
            raise errors.UsageError(f"method 'sgnas' needs {needed} in its evidence")
        if not taught:
            evidence = dataclasses.replace(evidence, supernet=None)
        from tfgen.generators import sgnas_training  # TensorFlow: only fits need it

        return SgnasGenerator(evidence.space, sgnas_training.train(evidence, config, seed))

    def restore(self, space: SearchSpace, state: Mapping[str, np.ndarray]) -> SgnasGenerator:
        return SgnasGenerator(space, state)
