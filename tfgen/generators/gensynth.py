"""Generative synthesis: a generator of networks around a prototype, and an inquisitor.

Wong, Shafiee, Chwyl and Li, "FermiNets: Learning generative machines to generate efficient neural
networks via generative synthesis", 2018, section 2. How its symbols are realised:

  N = {V, E}            a network: its layers and what flows between them (`LayerSpec`)
  phi, the prototype    the largest network of the space (`space.prototype` makes one of any model)
  G(s; theta_G)         `generate`: two hidden layers from a seed's numbers to scores of every
                        decision's values, of which the largest is taken
  s                     the number of a draw; it becomes uniform numbers by counters
  U                     NetScore (Wong 2018), Omega = 20 log10(a^2 / (p^1/2 m^1/2)), a in %, p in
                        M parameters, m in G MACs; it knows nothing of bits, which are for budgets
                        on bytes and for selection
  1_r                   a least metric: what G reads beside the seed
  X                     examples of the training split, put in at the input
  Y                     `Reactions` of all V that have channels to lose; edges are not probed
  I(G; theta_I)         `Inquisitor`; with its insight, gradient descent on theta_G is Delta theta_G

G_0 is at random; I_0 knows the prototype's own reactions. Cycle k generates networks, scores and
probes them, updates theta_I, and lets it update theta_G.

Where the paper is silent or we depart from it:
  * Its 1_r is one requirement. Our G reads one of a range, as overlapping hats, so another
    requirement needs no other G.
  * Its I learns from Y, U and 1_r. Ours learns from networks, their scores and Y what a cut costs;
    U and 1_r enter where that becomes Delta theta_G.
  * Its seeds need not matter. Each of ours has a taste, fixed at random: what it would rather keep.
  * G is not taught by the gradient of U, which shares of choices would have, but by what each
    single change of the network that it writes would be worth (`gensynth_training`).
  * What is best by I's expectations is overrated by them. So G follows I with caution, which grows
    until its networks keep what is required of them (`gensynth_training`).
  * A budget's least metric is of a network that is trained to its end, and what G learns from are
    scores of inherited weights, which are lower. So draws for a budget are for requirements from
    its own downwards, and selection, which knows the difference, takes the best that keeps it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import seeds
from tfgen.cost.metrics import PerformanceScale
from tfgen.evidence.insight import Insight, InsightSurrogate
from tfgen.generators.base import Asked, Count, Drawing, Draws, Evidence, in_float64
from tfgen.space.search_space import Choices, SearchSpace

SEED_NUMBERS = 16  # of a seed
KNOTS = 9  # over the range of requirements
COSTS = ("params", "macs")  # of U
_BELOW = 0.6  # of the range of requirements, how far they go below a budget's
_EDGE = 3.0**0.5  # uniform numbers of variance 1 end there


@dataclasses.dataclass(frozen=True)
class GensynthConfig:
    """How generator and inquisitor learn.

    Attributes:
      cycles: of generating, probing, observing and updating.
      networks: generated and scored in a cycle.
      probed: of these, how many are probed.
      steps: by which a cycle updates G.
      batch_size: seeds in a step.
      learning_rate: Adam's.
      units: of each of G's hidden layers.
      reach: how far below the prototype's metric requirements go.
      shortfall: points of NetScore that a percent below the requirement costs.
      taste: points of NetScore that a seed's taste moves a decision by, as a deviation.
    """

    cycles: int = 12
    networks: int = 10
    probed: int = 2
    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 3e-3
    units: int = 64
    reach: float = 0.25
    shortfall: float = 8.0
    taste: float = 0.3

    def __post_init__(self) -> None:
        sizes = (self.cycles, self.networks, self.steps, self.batch_size, self.units)
        if min(sizes) < 1 or not 0 <= self.probed <= self.networks:
            raise ValueError(f"generative synthesis needs positive sizes: {self}")
        if min(self.learning_rate, self.reach, self.shortfall) <= 0 or self.taste < 0:
            raise ValueError(f"generative synthesis needs positive rates: {self}")


def seed_numbers(seed: int, count: int) -> npt.NDArray[np.float64]:
    """What G reads of draws 0 .. count - 1 of a seed, of mean 0 and variance 1 [count, numbers]."""
    return np.asarray(_numbers(np, seeds.key_of(seed), count)[0])


def _numbers(xp: Any, key: seeds.Key, count: int) -> Any:
    """The same of each key [keys, count, numbers]."""
    own = seeds.fork(xp, key, "gensynth")
    return _EDGE * (2.0 * seeds.counter_uniform(xp, own, count, SEED_NUMBERS) - 1.0)


def hats(requirements: Any, low: float, high: float, xp: Any = np) -> Any:
    """Requirements as overlapping hats over their range, float64 [draws, KNOTS]."""
    place = (xp.asarray(requirements, dtype=xp.float64) - low) / (high - low)
    place = xp.minimum(xp.maximum(place, 0.0), 1.0)[:, None] * (KNOTS - 1.0)
    return xp.maximum(1.0 - xp.abs(place - np.arange(KNOTS, dtype=np.float64)), 0.0)


def generate(xp: Any, state: Mapping[str, Any], numbers: Any, required: Any) -> Any:
    """G: scores of all decisions' values, side by side [draws, values].

    Args:
      xp: NumPy or TensorFlow.
      state: theta_G.
      numbers: of the seeds [draws, SEED_NUMBERS].
      required: hats of requirements [draws, KNOTS].
    """
    join = xp.concat if hasattr(xp, "concat") else xp.concatenate
    x = join([numbers, required], axis=1)
    for layer in range(2):
        x = xp.maximum(xp.matmul(x, state[f"kernel_{layer}"]) + state[f"bias_{layer}"], 0.0)
    return xp.matmul(x, state["kernel_2"]) + state["bias_2"]


def written(space: SearchSpace, scores: Any, xp: Any = np) -> Any:
    """The networks whose values have the largest scores, canonical [draws, decisions]."""
    ends = np.cumsum([len(d.values) for d in space.decisions]).tolist()
    parts = [scores[:, begin:end] for begin, end in itertools.pairwise([0, *ends])]
    return space.settled(xp, xp.stack([xp.argmax(part, axis=1) for part in parts], axis=1))


class GensynthGenerator(Drawing):
    """G as NumPy arrays."""

    def __init__(self, space: SearchSpace, state: Mapping[str, np.ndarray]):
        super().__init__(space)
        self._space = space
        self._state = dict(state)
        self._weights = in_float64(state)
        self._low, self._high = (float(v) for v in state["range"])
        values = sum(len(d.values) for d in space.decisions)
        inputs = SEED_NUMBERS + KNOTS
        if len(state["kernel_0"]) != inputs or state["bias_2"].shape != (values,):
            raise ValueError("the generator is of another space or version")
        if not self._low < self._high:
            raise ValueError("the generator has no range of requirements")

    @property
    def range(self) -> tuple[float, float]:
        """Of the requirements that it knows."""
        return self._low, self._high

    def surrogate(self, scale: PerformanceScale) -> InsightSurrogate:
        """What the inquisitor expects of networks, as selection reads it."""
        insight = Insight.restored(self._space, self._state)
        return InsightSurrogate.of(self._space, insight, self._state["residuals"], scale)

    def draws(self, xp: Any, asked: Asked, count: int, costs: Count) -> Draws:
        del costs
        numbers = xp.reshape(_numbers(xp, asked.key, count), (-1, SEED_NUMBERS))
        own = seeds.fork(xp, asked.key, "gensynth", "requirements")
        below = seeds.counter_uniform(xp, own, count, 1)[..., 0]  # [budgets, draws]
        required = xp.reshape(self._required(xp, asked, below), (-1,))
        chosen = self.networks(numbers, required, xp)
        return Draws(xp.reshape(chosen, (-1, count, len(self._space.decisions))))

    def sample(self, places: npt.NDArray[np.float64], seed: int) -> Choices:
        """Networks for requirements at places in the range, 0 its lower end [places, decisions]."""
        required = self._low + places * (self._high - self._low)
        return self.networks(seed_numbers(seed, len(places)), required)

    def networks(self, numbers: Any, requirements: Any, xp: Any = np) -> Any:
        """G(s) for each requirement, canonical [draws, decisions]."""
        required = hats(requirements, self._low, self._high, xp)
        return written(self._space, generate(xp, self._weights, numbers, required), xp)

    def _required(self, xp: Any, asked: Asked, below: Any) -> Any:
        """The requirements of budgets' draws, so far below their highest [budgets, draws]."""
        low, high = self._low, self._high
        own = xp.minimum(xp.maximum(asked.least, low), high)
        top = xp.where(asked.has_least, own, high)
        reach = xp.maximum(top - _BELOW * (high - low), low)
        bottom = xp.where(asked.has_least, reach, low)
        return top[:, None] - below * (top - bottom)[:, None]

    def state(self) -> Mapping[str, np.ndarray]:
        return dict(self._state)


class Gensynth:
    """The method: needs networks of a prototype to be scored and probed."""

    name = "gensynth"
    needs = frozenset({"evaluate", "probe"})
    config = GensynthConfig

    def fit(self, evidence: Evidence, config: GensynthConfig, seed: int) -> GensynthGenerator:
        evidence.check(self.name, self.needs)
        from tfgen.generators import gensynth_training  # TensorFlow: only fits need it

        return GensynthGenerator(evidence.space, gensynth_training.train(evidence, config, seed))

    def restore(self, space: SearchSpace, state: Mapping[str, np.ndarray]) -> GensynthGenerator:
        return GensynthGenerator(space, state)
