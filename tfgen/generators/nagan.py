"""NAGAN: a conditional GAN whose condition is the performance that is asked for.

Kao, Ramamurthy, Williams, Krishna, "Conditional Neural Architecture Search", 2020.

A generator G(c, z) maps a condition c in 0..1 (normalised performance) and noise z to an
architecture with its bit-widths. Beside it are a discriminator and a frozen encoder, which teach
it: see `nagan_training`.

Where the paper is silent or we depart from it:
  * Architectures are discrete, and one decision depends on another: the paper's G writes all at
    once. Ours writes them one after the other, each from the condition and from those before it,
    as shares of knots (`Encoding`), and z is a uniform number for each that picks its value. So G
    knows how likely it is to write a network, and can be taught by likelihood.
  * G reads its condition as hats over eleven knots, not as one number: neighbours are alike and
    others apart, where a single number would have to bend through the layers to fit every one.
  * The draws for a budget spread over a ladder of conditions, from the highest down to the budget's
    lower limit, which the paper's workflow visits one after the other (section 4.1). Selection
    verifies every draw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfgen import seeds
from tfgen.cost.metrics import PerformanceScale
from tfgen.generators.base import Asked, Count, Drawing, Draws, Evidence, how_many_below, in_float64
from tfgen.space.encoding import Encoding
from tfgen.space.search_space import Choices, SearchSpace

CONDITION_KNOTS = 11
LAYERS = 3
_CONDITION_LEVELS = 11


@dataclasses.dataclass(frozen=True)
class NaganConfig:
    """How NAGAN is trained.

    Attributes:
      units: of each of G's hidden layers, for each decision.
      teaching_temperature: T of the networks that G is taught with (`evidence.posterior`).
      teaching_repeats: share of such networks, for neighbouring conditions, that may be repeated;
        where it is more, T rises.
      teaching_chains: how many Markov chains draw them.
      teaching_kept: networks of each chain.
      teaching_steps: of likelihood; 0 for none.
      teaching_batch: networks in such a step.
      teaching_rate: Adam's learning rate in them.
      steps: iterations of algorithm 1; 0 for none.
      batch_size: m of algorithm 1.
      discriminator_rate: Adam's learning rate of D.
      generator_rate: Adam's learning rate of G in algorithm 1.
      adversarial_weight: w_a, of V(G) beside V(E).
      condition_weight: w_c.
      scatter_weight: w_s.
      entropy_weight: w_h; a choice that costs this much more distance is drawn e times less.
      least_entropy: H_least, in nats; 1,000 draws of e**7 equally likely networks are some
        660 different ones.
      shortfall_weight: w_l, what a nat below is charged.
      temperature: of the Gumbel-softmax.
      straight_through: whether networks that G writes are rounded on their way to D and E; without
        it they read shares of knots.
      diversity_weight: w_d, of how far two draws of one condition lie apart.
      spectral_norm: whether D's kernels are divided by their largest singular values.
      condition_noise: deviation of what is added to the conditions of positive examples.
    """

    units: int = 64
    teaching_temperature: float = 0.003
    teaching_repeats: float = 0.25
    teaching_chains: int = 6_000
    teaching_kept: int = 15
    teaching_steps: int = 5_000
    teaching_batch: int = 256
    teaching_rate: float = 4e-3
    steps: int = 0
    batch_size: int = 128
    discriminator_rate: float = 2e-4
    generator_rate: float = 1e-4
    adversarial_weight: float = 0.01
    condition_weight: float = 1.0
    scatter_weight: float = 1.0
    entropy_weight: float = 0.001
    least_entropy: float = 7.0
    shortfall_weight: float = 0.02
    temperature: float = 0.5
    straight_through: bool = True
    diversity_weight: float = 0.0
    spectral_norm: bool = False
    condition_noise: float = 0.0

    def __post_init__(self) -> None:
        sizes = (self.units, self.teaching_chains, self.teaching_kept, self.teaching_batch)
        if min(*sizes, self.batch_size) < 1 or min(self.steps, self.teaching_steps) < 0:
            raise ValueError(f"NAGAN needs positive sizes: {self}")
        if not self.steps + self.teaching_steps:
            raise ValueError("NAGAN needs steps of teaching or of algorithm 1: it learns nothing")
        rates = (self.teaching_rate, self.discriminator_rate, self.generator_rate)
        if min(self.temperature, self.teaching_temperature, *rates) <= 0:
            raise ValueError(f"NAGAN needs positive temperatures and rates: {self}")
        if not 0 <= self.teaching_repeats <= 1 or (self.diversity_weight and self.batch_size < 2):
            raise ValueError(f"a share of repeats lies in 0..1, diversity needs two draws: {self}")


# --- G ------------------------------------------------------------------------------------------
#
# Each decision has a network of three layers. Kernels are stacked over decisions: the first is
# [decisions, features + CONDITION_KNOTS, units], of which decision d reads the features of the
# decisions before it.


def condition_row(xp: Any, conditions: Any) -> Any:
    """What G reads of conditions [draws]: overlapping hats [draws, CONDITION_KNOTS].

    A condition beyond 0..1 is the nearer end: no hat reaches there.
    """
    knots = np.arange(CONDITION_KNOTS, dtype=np.float32)
    within = xp.minimum(xp.maximum(conditions, 0.0), 1.0)[:, None]
    return xp.maximum(1.0 - xp.abs(within * (CONDITION_KNOTS - 1.0) - knots), 0.0)


def logits(
    xp: Any, encoding: Encoding, state: Mapping[str, Any], decision: int, row: Any, before: Any
) -> Any:
    """G's logits of one decision's knots [draws, knots].

    Args:
      xp: NumPy or TensorFlow.
      encoding: of the space.
      state: G's kernels and biases.
      decision: its number.
      row: of the condition [draws, CONDITION_KNOTS].
      before: rows of the decisions before it, 0 where they are inactive; each [draws, knots].
    """
    kernel = state["generator_kernel_0"][decision]
    hidden = xp.matmul(row, kernel[encoding.features_count :]) + state["generator_bias_0"][decision]
    if before:
        read = xp.reshape(xp.stack(before, axis=1), (-1, decision * encoding.knots))
        hidden = hidden + xp.matmul(read, kernel[: decision * encoding.knots])
    for layer in range(1, LAYERS):
        hidden = xp.maximum(hidden, 0.0)
        hidden = xp.matmul(hidden, state[f"generator_kernel_{layer}"][decision])
        hidden = hidden + state[f"generator_bias_{layer}"][decision]
    return hidden + encoding.absent[decision]


def draw(
    xp: Any, encoding: Encoding, state: Mapping[str, Any], conditions: Any, uniform: Any
) -> Any:
    """One choice for each decision, int [draws, decisions]; inactive ones are not yet set to 0.

    Args:
      xp: NumPy or TensorFlow's NumPy.
      encoding: of the space.
      state: G's kernels and biases.
      conditions: c [draws]; beyond 0..1 the nearer end.
      uniform: z in 0..1 [draws, decisions].
    """
    last = [len(decision.values) - 1 for decision in encoding.space.decisions]
    row = condition_row(xp, conditions)
    rows: list[Any] = []
    activities: list[Any] = []
    choices = []
    for decision in range(len(encoding.long)):
        scores = logits(xp, encoding, state, decision, row, rows)
        weights = xp.exp(scores - xp.max(scores, axis=1, keepdims=True))
        cumulated = xp.matmul(weights, encoding.cumulated[decision])
        place = uniform[:, decision, None] * cumulated[:, -1:]
        drawn = xp.minimum(how_many_below(xp, cumulated, place), last[decision])
        activity = encoding.activity(xp, decision, rows, activities) * xp.ones_like(conditions)
        written = xp.take(xp.asarray(encoding.rows[decision]), drawn, axis=0)
        rows.append(written * activity[:, None])
        activities.append(activity)
        choices.append(drawn)
    return xp.stack(choices, axis=1)


class NaganGenerator(Drawing):
    """G as NumPy arrays."""

    def __init__(self, space: SearchSpace, state: Mapping[str, np.ndarray]):
        super().__init__(space)
        self._space = space
        self._encoding = Encoding(space, np.float64)
        self._state = dict(state)
        self._weights = in_float64(state)
        decisions, inputs = len(space.decisions), self._encoding.features_count + CONDITION_KNOTS
        if state["generator_kernel_0"].shape[:2] != (decisions, inputs):
            raise ValueError(
                f"the generator was fitted by another version: it must read {inputs} features for "
                f"each of {decisions} decisions"
            )
        low, high = (float(v) for v in state["scale"])
        self._scale = PerformanceScale(low, high)

    def draws(self, xp: Any, asked: Asked, count: int, costs: Count) -> Draws:
        del costs
        scale = self._scale
        least = (asked.least - scale.low) / (scale.high - scale.low)
        least = xp.where(asked.has_least, xp.minimum(xp.maximum(least, 0.0), 1.0), 0.0)
        # From the highest condition down to the budget's own limit, never below it.
        down = np.linspace(0.0, 1.0, _CONDITION_LEVELS)[np.arange(count) % _CONDITION_LEVELS]
        conditions = 1.0 - (1.0 - least[:, None]) * down
        return Draws(self._drawn(xp, conditions, asked.key), conditions)

    def draw(self, conditions: np.ndarray, seed: int) -> Choices:
        """Architectures at conditions [draws] -> canonical [draws, decisions]."""
        rows = np.asarray(conditions, np.float64)[None]
        return np.asarray(self._drawn(np, rows, seeds.key_of(seed))[0])

    def _drawn(self, xp: Any, conditions: Any, key: seeds.Key) -> Any:
        """The same for each key [keys, draws] -> [keys, draws, decisions]."""
        count, decisions = conditions.shape[1], len(self._space.decisions)
        own = seeds.fork(xp, key, "nagan")
        uniform = seeds.counter_uniform(xp, own, count, decisions)
        flat = xp.reshape(conditions, (-1,)), xp.reshape(uniform, (-1, decisions))
        choices = draw(xp, self._encoding, self._weights, *flat)
        return self._space.settled(xp, xp.reshape(choices, (-1, count, decisions)))

    def state(self) -> Mapping[str, np.ndarray]:
        return dict(self._state)


class Nagan:
    """The method: needs records and the encoder that was fitted to them."""

    name = "nagan"
    needs = frozenset({"records", "surrogate"})
    config = NaganConfig

    def fit(self, evidence: Evidence, config: NaganConfig, seed: int) -> NaganGenerator:
        evidence.check(self.name, self.needs)
        assert evidence.records is not None and evidence.surrogate is not None
        from tfgen.generators import nagan_training  # TensorFlow: only fits need it

        choices = evidence.space.choices([r.architecture for r in evidence.records])
        scale = evidence.surrogate.scale
        conditions = scale.normalise([r.metric for r in evidence.records]).astype(np.float32)
        state = nagan_training.train(evidence.surrogate, choices, conditions, config, seed)
        state["scale"] = np.array([scale.low, scale.high])
        return NaganGenerator(evidence.space, state)

    def restore(self, space: SearchSpace, state: Mapping[str, np.ndarray]) -> NaganGenerator:
        return NaganGenerator(space, state)
