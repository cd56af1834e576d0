"""NAG: a recurrent policy that writes networks for any budget, taught by Pareto dominance.

Guo, Chen, Zheng, Chen, Zhao, Chen, Huang, Tan, "Pareto-Frontier-aware Neural Architecture
Generation for Diverse Budgets", 2021.

The policy pi(alpha | B) is an LSTM: it reads the embedding of the budget and the value that it has
just chosen, and writes one decision after the other (section 3.1). A budget between two of the K
that have embeddings is a linear interpolation of theirs (section 3.2). An evaluator R(beta | B)
tells which of two networks is the better answer (section 3.3, `nag_evaluator`); the policy is
trained by REINFORCE (`nag_training`). Draws are samples of the policy; selection looks for those
within the budget, draws again where there are none, and takes the best predicted (section 3.5).

Where the paper is silent or we depart from it:
  * Budgets are vectors: a limit on each of several costs, or none (`Targets`). The paper has one
    cost, by whose range the K budgets divide evenly; ours divide it evenly by logarithm.
  * A policy may be one for many devices: it then reads, beside the budget, what some reference
    networks take on the device (`Platform`), so that a new device needs no training.
  * A predicted latency is the upper end of its interval, which selection compares with a budget.
  * A budget that limits no cost that the policy reads is drawn for budgets over the whole range of
    its first cost.
  * Where too many draws for a budget would exceed it, the policy is asked for a lower one.
  * A budget beyond the range of training is read as its nearest end. Where nothing keeps it,
    selection refuses and names the nearest that something does; where nothing is left to gain, the
    cost model says that the limit is none. Of latencies only the first is said.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import errors, seeds
from tfgen.cost.budget import COST_METRICS, Budget
from tfgen.cost.cost_model import CONFIDENCE, LATENCY, CostModel
from tfgen.generators.base import Asked, Count, Drawing, Draws, Evidence, how_many_below, in_float64
from tfgen.generators.nag_evaluator import Evaluator
from tfgen.generators.platform import Platform
from tfgen.generators.targets import Targets
from tfgen.space.encoding import Encoding
from tfgen.space.search_space import Choices, SearchSpace

PARETO, LEARNED, CHEAPEST = "pareto", "learned", "cheapest"
MULTI_OBJECTIVE, ABSOLUTE = "multi_objective", "absolute"
REWARDS = (PARETO, LEARNED, CHEAPEST, MULTI_OBJECTIVE, ABSOLUTE)
# Of so many draws for a budget such a share keeps it, or its target is lowered so often.
_PILOTS, _ENOUGH, _LOWERINGS = 32, 0.95, 4
_SWEEP = 16  # budgets for a budget that limits nothing the policy reads
_DEVICE_REFERENCES = 10  # networks that tell one device from another
# In the state, the last two of some policies alone.
_COSTS, _FEATURES, _REFERENCES, _ONLY = "costs", "platform", "references", "only"
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class NagConfig:
    """How NAG is trained.

    Attributes:
      costs: metrics of the cost model that budgets may limit.
      budgets: K, embeddings over the range of each cost.
      embedding: length of a budget's embedding.
      units: of the LSTM.
      reward: by which the policy is taught (table 2): "pareto", the dominance of eq. 6 over the
        other samples of the same budget, by the evaluator among those within it and by the known
        costs elsewhere; "learned", the evaluator's R alone, as in the paper; "cheapest", dominance
        without the accuracy constraint; "multi_objective" (MnasNet) and "absolute" (TuNAS).
      steps: of the policy's training.
      step_budgets: budgets in such a step.
      samples: N, networks that are written for each of them.
      learning_rate: Adam's, of the policy.
      start_entropy: lambda of eq. 3 at first: all of the space is tried.
      end_entropy: lambda at the end.
      several_share: of the budgets in training, how many limit more than one cost.
      evaluator_members: networks in the evaluator's ensemble.
      evaluator_units: of each of its layers.
      evaluator_steps: of its training.
      evaluator_records: records in such a step, each compared with all others.
      evaluator_rate: Adam's learning rate in them.
      weight_decay: of the evaluator, decoupled, per step and learning rate.
      held_out_share: of the records, on which its ranking is tested.
    """

    costs: tuple[str, ...] = ("macs", "params", "storage_kb", "energy_uj")
    budgets: int = 10
    embedding: int = 64
    units: int = 64
    reward: str = PARETO
    steps: int = 2_000
    step_budgets: int = 10
    samples: int = 32
    learning_rate: float = 3e-3
    start_entropy: float = 1.0
    end_entropy: float = 0.05
    several_share: float = 0.3
    evaluator_members: int = 4
    evaluator_units: int = 128
    evaluator_steps: int = 1_000
    evaluator_records: int = 64
    evaluator_rate: float = 2e-3
    weight_decay: float = 0.02
    held_out_share: float = 0.1

    def __post_init__(self) -> None:
        sizes = (self.embedding, self.units, self.steps, self.step_budgets, self.evaluator_members)
        if min(*sizes, self.evaluator_units, self.evaluator_steps) < 1 or not self.costs:
            raise ValueError(f"NAG needs positive sizes and a cost: {self}")
        if min(self.budgets, self.samples, self.evaluator_records) < 2:
            raise ValueError(f"NAG compares two and more budgets, samples and records: {self}")
        if isinstance(self.costs, str) or not set(self.costs) <= set(COST_METRICS):
            raise ValueError(f"NAG's costs are of {', '.join(COST_METRICS)}, got {self.costs}")
        object.__setattr__(self, "costs", tuple(self.costs))  # a manifest has a list
        if len(set(self.costs)) < len(self.costs):
            raise ValueError(f"NAG's costs differ from each other, got {self.costs}")
        if self.reward not in REWARDS:
            raise ValueError(f"NAG's reward is one of {', '.join(REWARDS)}, got {self.reward!r}")
        rates = (self.learning_rate, self.evaluator_rate, self.start_entropy, self.end_entropy)
        if not all(0 < rate < math.inf for rate in rates) or not 0 <= self.weight_decay < 1:
            raise ValueError(f"NAG needs positive rates and weights: {self}")
        if not (0 <= self.several_share <= 1 and 0 < self.held_out_share < 1):
            raise ValueError(f"shares lie in 0..1: {self}")


# --- the policy -----------------------------------------------------------------------------------

# Chooses a decision's value by its shares [networks, choices] -> [networks].
Choose = Callable[[int, Any], Any]


@dataclasses.dataclass(frozen=True)
class Written:
    """What the policy did at one decision.

    Attributes:
      choice: of each network [networks].
      shares: how likely each choice was [networks, choices].
      active: 1 where the decision is one of the network's, else 0 [networks].
    """

    choice: Any
    shares: Any
    active: Any


def write(
    xp: Any, encoding: Encoding, state: Mapping[str, Any], conditions: Any, choose: Choose
) -> list[Written]:
    """The policy: writes networks, one decision after the other.

    Args:
      xp: NumPy or TensorFlow's NumPy.
      encoding: of the space.
      state: the policy's kernels and biases.
      conditions: of budgets, see `Platform.conditions` [networks, inputs].
      choose: how a value is chosen by the shares.
    """
    embedded = xp.matmul(conditions, state["budget"])  # [networks, embedding]
    from_budget = xp.matmul(embedded, state["budget_kernel"]) + state["bias"]
    hidden = cell = xp.zeros_like(from_budget[:, : state["recurrent_kernel"].shape[0]])
    rows: list[Any] = []
    activities: list[Any] = []
    written = []
    for decision in range(len(encoding.long)):
        read = from_budget + state["place"][decision]
        if rows:
            read = read + xp.matmul(rows[-1], state["value"][decision - 1])
        gates = read + xp.matmul(hidden, state["recurrent_kernel"])  # [networks, 4 units]
        enter, keep, leave, new = xp.split(gates, 4, axis=1)
        cell = _sigmoid(xp, keep) * cell + _sigmoid(xp, enter) * xp.tanh(new)
        hidden = _sigmoid(xp, leave) * xp.tanh(cell)
        scores = xp.matmul(hidden, state["head"][decision]) + state["head_bias"][decision]
        scores = scores + encoding.absent[decision]
        weights = xp.exp(scores - xp.max(scores, axis=1, keepdims=True))
        weights = weights / xp.sum(weights, axis=1, keepdims=True)
        shares = xp.matmul(weights, encoding.spread[decision])
        choice = choose(decision, shares)
        active = encoding.activity(xp, decision, rows, activities) * xp.ones_like(shares[:, 0])
        row = xp.take(xp.asarray(encoding.rows[decision]), choice, axis=0)
        rows.append(row * active[:, None])
        activities.append(active)
        written.append(Written(choice, shares, active))
    return written


def drawn_by(xp: Any, space: SearchSpace, uniform: Any) -> Choose:
    """Chooses each value as often as its share says.

    Args:
      xp: NumPy or `nets.tensors`.
      space: whose decisions.
      uniform: numbers in 0..1 [networks, decisions].
    """

    def choose(decision: int, shares: Any) -> Any:
        values = len(space.decisions[decision].values)
        cumulated = xp.matmul(shares[:, :values], np.triu(np.ones((values, values))))
        place = uniform[:, decision, None] * cumulated[:, -1:]
        return xp.minimum(how_many_below(xp, cumulated, place), values - 1)

    return choose


def _sigmoid(xp: Any, x: Any) -> Any:
    return xp.tanh(x * 0.5) * 0.5 + 0.5


class NagGenerator(Drawing):
    """The policy as NumPy arrays, on one device.

    Attributes:
      platform: the device; of a restored generator without its latency and its random networks.
    """

    def __init__(
        self,
        space: SearchSpace,
        state: Mapping[str, np.ndarray],
        platform: Platform | None = None,
    ):
        super().__init__(space)
        self._space = space
        self._encoding = Encoding(space, np.float64)
        self._state = dict(state)
        self._weights = in_float64(state)
        costs = tuple(state[_COSTS].tobytes().decode().split())
        knots = int(state["knots"])
        targets = Targets.restored(costs, knots, state)
        self.platform = platform or Platform(
            CostModel(space), targets, state[_FEATURES], {}, state.get(_ONLY)
        )
        inputs = self.platform.inputs
        if (len(state["head"]), len(state["budget"])) != (len(space.decisions), inputs):
            raise ValueError(
                f"the generator is of another space or version: it must write "
                f"{len(space.decisions)} decisions and read {inputs} numbers of a budget"
            )

    @property
    def evaluator(self) -> Evaluator:
        """R, that taught the policy."""
        return Evaluator.restored(self._encoding, self._state)

    @property
    def references(self) -> Choices | None:
        """Networks whose latencies tell a policy of many devices what device it is on."""
        return self._state.get(_REFERENCES)

    def on(self, cost_model: CostModel) -> NagGenerator:
        """The same policy on another device; nothing is trained.

        Args:
          cost_model: with the device's latency, of which a few reference networks and the range
            are read.

        Raises:
          UsageError: the policy is one of another single device.
        """
        targets, references = self.platform.targets, self.references
        device = "" if cost_model.latency is None else cost_model.latency.device
        if references is None and device != targets.device:
            own = targets.device or "none"
            raise errors.UsageError(f"this generator was trained for one device, {own}")
        platform = Platform.of(cost_model, targets.costs, targets.knots, references)
        platform = dataclasses.replace(platform, only=self.platform.only)
        changed = {_FEATURES: platform.features, **platform.targets.state()}
        return NagGenerator(self._space, {**self._state, **changed}, platform)

    def draws(self, xp: Any, asked: Asked, count: int, costs: Count) -> Draws:
        targets = self.platform.targets
        own = targets.of_asked(xp, asked)  # [budgets, costs]
        swept = targets.sweep(_SWEEP)[np.arange(count) % _SWEEP]  # [draws, costs]
        limited = xp.any(own > 0, axis=-1)[:, None, None]
        held = self._held(xp, own, asked, costs)
        return Draws(self._drawn(xp, xp.where(limited, held[:, None], swept[None]), asked.key))

    def _held(self, xp: Any, own: Any, asked: Asked, costs: Count) -> Any:
        """Targets within which nearly all that the policy writes keeps the budget [budgets, costs].

        Within a few per cent of cost the policy changes from one network to the next, and writes
        both: a target there is lowered by its overshoot, a few times at most. A latency is lowered
        where the platform has one: a bundle's generator leaves it to selection, here and served. A
        policy of one budget knows no other.
        """
        targets, decisions = self.platform.targets, len(self._space.decisions)
        if self.platform.only is not None or (xp is np and not own.any()):
            return own
        key = seeds.fork(xp, asked.key, "nag", "pilot")
        pilots = np.ones((_PILOTS, 1))
        held = own
        for _ in range(_LOWERINGS):
            drawn = self._drawn(xp, held[:, None] * pilots, key)
            told = self._told(xp, xp.reshape(drawn, (-1, decisions)), costs)
            most = {
                metric: xp.sort(xp.reshape(cost, (-1, _PILOTS)), axis=1)[:, int(_ENOUGH * _PILOTS)]
                for metric, cost in told.items()
            }
            over = xp.maximum(targets.shares(own, most, xp), 1.0)
            if xp is np and not (over > 1.0).any():
                break
            held = held / over
        return held

    def _told(self, xp: Any, choices: Any, costs: Count) -> Mapping[str, Any]:
        """Costs of networks that targets limit and that can be told, by metric [networks]."""
        limited, model = self.platform.targets.limited, self.platform.cost_model
        if xp is np and model.latency is not None:
            return model.bounds(choices, CONFIDENCE, limited)[1]
        counted = costs(choices)
        told = [metric for metric in limited if metric in counted and metric != LATENCY]
        return {metric: counted[metric] for metric in told}

    def draw(self, targets: Floats, seed: int) -> Choices:
        """A sample of the policy for each target [draws, costs] -> canonical [draws, decisions]."""
        return np.asarray(self._drawn(np, targets[None], seeds.key_of(seed))[0])

    def _drawn(self, xp: Any, targets: Any, key: seeds.Key) -> Any:
        """The same for each key [keys, draws, costs] -> [keys, draws, decisions]."""
        count, decisions = targets.shape[1], len(self._space.decisions)
        own = seeds.fork(xp, key, "nag")
        uniform = seeds.counter_uniform(xp, own, count, decisions)
        conditions = self.platform.conditions(xp.reshape(targets, (-1, targets.shape[2])), xp)
        choose = drawn_by(xp, self._space, xp.reshape(uniform, (-1, decisions)))
        found = write(xp, self._encoding, self._weights, conditions, choose)
        choices = xp.stack([written.choice for written in found], axis=1)
        return self._space.settled(xp, xp.reshape(choices, (-1, count, decisions)))

    def state(self) -> Mapping[str, np.ndarray]:
        return dict(self._state)


class Nag:
    """The method: needs records; costs are the cost model's."""

    name = "nag"
    needs = frozenset({"records"})
    config = NagConfig

    def fit(
        self,
        evidence: Evidence,
        config: NagConfig,
        seed: int,
        evaluator: Evaluator | None = None,
    ) -> NagGenerator:
        evidence.check(self.name, self.needs)
        platform = Platform.of(evidence.cost_model, config.costs, config.budgets)
        return self._fit(evidence, [platform], None, config, seed, evaluator)

    def evaluator(self, evidence: Evidence, config: NagConfig, seed: int) -> Evaluator:
        """R by itself, as `fit` has it with the same arguments."""
        from tfgen.generators import nag_training

        evidence.check(self.name, self.needs)
        records = evidence.records or ()
        return nag_training.fit_evaluator(
            [Platform.of(evidence.cost_model, config.costs, config.budgets)],
            evidence.space.choices([record.architecture for record in records]),
            np.array([record.metric for record in records]),
            Encoding(evidence.space),
            config,
            seed,
        )

    def fit_budget(
        self,
        evidence: Evidence,
        budget: Budget,
        config: NagConfig,
        seed: int,
        evaluator: Evaluator | None = None,
    ) -> NagGenerator:
        """A policy for one budget alone: repeated independent search (section 4.2, table 3).

        Args:
          evidence: as `fit` reads it.
          budget: the one.
          config: how.
          seed: of everything.
          evaluator: that all such searches share; None to fit one for this budget.

        Raises:
          UsageError: the budget limits none of the config's costs.
        """
        evidence.check(self.name, self.needs)
        platform = Platform.of(evidence.cost_model, config.costs, config.budgets)
        asked = platform.targets.asked(budget)
        if not asked.any():
            raise errors.UsageError(f"the budget limits none of {', '.join(config.costs)}")
        only = dataclasses.replace(platform, only=asked)
        return self._fit(evidence, [only], None, config, seed, evaluator)

    def fit_devices(
        self, evidence: Evidence, devices: Sequence[CostModel], config: NagConfig, seed: int
    ) -> NagGenerator:
        """One policy for several devices; see `NagGenerator.on`.

        Args:
          evidence: records; its cost model is not read.
          devices: each with its latency.
          config: how; its costs have a latency.
          seed: of everything.
        """
        if not devices:
            raise errors.UsageError("a policy of several devices needs at least one")
        if LATENCY not in config.costs:
            raise errors.UsageError(f"a policy of several devices needs {LATENCY} in its costs")
        random = seeds.stream(seed, "nag", "references")
        references = evidence.space.sample(_DEVICE_REFERENCES, random)
        evidence.check(self.name, self.needs)
        platforms = [Platform.of(own, config.costs, config.budgets, references) for own in devices]
        return self._fit(evidence, platforms, references, config, seed)

    def _fit(
        self,
        evidence: Evidence,
        platforms: Sequence[Platform],
        references: Choices | None,
        config: NagConfig,
        seed: int,
        evaluator: Evaluator | None = None,
    ) -> NagGenerator:
        from tfgen.generators import nag_training  # TensorFlow: only fits need it

        state = nag_training.train(platforms, evidence, config, seed, evaluator)
        if references is not None:
            state[_REFERENCES] = references
        if platforms[0].only is not None:
            state[_ONLY] = platforms[0].only
        return NagGenerator(evidence.space, state, platforms[0])

    def restore(self, space: SearchSpace, state: Mapping[str, np.ndarray]) -> NagGenerator:
        return NagGenerator(space, state)
