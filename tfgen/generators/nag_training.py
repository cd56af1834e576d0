"""How NAG's policy is trained, with TensorFlow (algorithm 1).

First the evaluator learns from records (`nag_evaluator`). Then, at each step, budgets are drawn
from their range, the policy writes N networks for each, and follows the policy gradient (eq. 4):

  mean over budgets and networks of grad log pi(alpha | B) A(alpha | B) + lambda grad H(pi(. | B))

H is the entropy of each decision, given those before it, summed along what was written.

Departures:
  * The advantage A of a network is the mean of its dominance (eq. 6) over the N - 1 others that
    were written for its budget, the evaluator standing for accuracy. What networks cost is known,
    so it need not be learned. There is no other baseline: what one network of a pair gains the
    other loses. `reward="learned"` is the paper's R, less the mean of the N and divided by their
    deviation, as are the rewards that table 2 compares.
  * Budgets of a step are any of the range, not only the K that have embeddings: so what lies
    between two of them is trained too.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence

import numpy as np

from tfgen import errors, seeds
from tfgen.generators.base import Evidence
from tfgen.generators.nag import CHEAPEST, LEARNED, MULTI_OBJECTIVE, PARETO, NagConfig, write
from tfgen.generators.nag_evaluator import (
    LAYERS,
    Evaluator,
    ExpectedAccuracies,
    network_features,
    rewards,
)
from tfgen.generators.platform import Floats, Platform, dominance, overshoot
from tfgen.nets.keras_compat import keras, tf
from tfgen.space.encoding import Encoding
from tfgen.space.search_space import Choices, SearchSpace

_TESTED_BUDGETS = 50  # of each platform, for the ranking accuracy
_CLIPPED_NORM = 1.0
_LEAST_SHARE = 1e-9
_COMPILED = 4  # kinds of fits of which the steps are kept
_EXPONENT = 0.07  # of MnasNet's soft constraint, and TuNAS's weight of the absolute one


def train(
    platforms: Sequence[Platform],
    evidence: Evidence,
    config: NagConfig,
    seed: int,
    evaluator: Evaluator | None = None,
) -> dict[str, np.ndarray]:
    """Trains evaluator and policy; returns their state, for the first platform.

    Args:
      platforms: where networks may run, with features of equal length; a step is about one of them.
      evidence: records; its costs are not read.
      config: how.
      seed: of weights, batches, budgets and samples.
      evaluator: that was fitted to these records, with the same costs, their ranges and K; None to
        fit one.

    Raises:
      UsageError: there are too few records.
    """
    space, encoding = evidence.space, Encoding(evidence.space)
    assert evidence.records is not None
    choices = space.choices([record.architecture for record in evidence.records])
    accuracies = np.array([record.metric for record in evidence.records])
    if evaluator is None:
        evaluator = fit_evaluator(platforms, choices, accuracies, encoding, config, seed)
    expected = [
        ExpectedAccuracies(evaluator, platform, choices, accuracies) for platform in platforms
    ]
    first = platforms[0]
    policy = _policy(json.dumps(space.to_json(), sort_keys=True), first.inputs, config)
    policy.start(_initial(encoding, first.inputs, config, seed))
    random = seeds.stream(seed, "nag", "policy")
    for step in range(config.steps):
        number = random.integers(len(platforms))
        platform = platforms[number]
        budgets = platform.draw(config.step_budgets, config.several_share, random)
        targets = np.repeat(budgets, config.samples, axis=0)  # [networks, costs]
        conditions = platform.conditions(targets).astype(np.float32)
        uniform = random.random((len(targets), len(space.decisions)), np.float32)
        written = policy.sample(conditions, uniform)
        networks = space.canonical(written)
        costs = platform.costs(networks)
        if config.reward == LEARNED:
            quality = evaluator.rewards(platform, networks, costs, budgets).mean(axis=0)
        else:
            quality = expected[number].of(networks, costs)[0].reshape(len(budgets), -1)
        over = overshoot(costs, targets).reshape(quality.shape)
        gained = advantages(config.reward, quality, over)
        entropy_weight = config.start_entropy * (
            (config.end_entropy / config.start_entropy) ** (step / config.steps)
        )
        policy.follow(conditions, written, gained.ravel(), entropy_weight)
    return {
        **policy.arrays(),
        **evaluator.state(),
        **first.targets.state(),
        "knots": np.array(first.targets.knots),
        "costs": np.frombuffer(" ".join(first.targets.costs).encode(), np.uint8),
        "platform": first.features,
    }


# --- the evaluator --------------------------------------------------------------------------------


def fit_evaluator(
    platforms: Sequence[Platform],
    choices: Choices,
    accuracies: Floats,
    encoding: Encoding,
    config: NagConfig,
    seed: int,
) -> Evaluator:
    """Fits the evaluator to records.

    Args:
      platforms: where they may run; a step is about one of them.
      choices: of the records [records, decisions].
      accuracies: of the records [records].
      encoding: of the space.
      config: how.
      seed: of weights, batches and held-out records.

    Raises:
      UsageError: there are too few records.
    """
    order = seeds.stream(seed, "nag", "held out").permutation(len(choices))
    held_out = order[: max(2, int(config.held_out_share * len(order)))]
    fitted = order[len(held_out) :]
    if len(fitted) < config.evaluator_records:
        raise errors.UsageError(
            f"method 'nag' has {len(fitted)} records to learn from beside {len(held_out)} to test "
            f"it, and {config.evaluator_records} are compared in a step"
        )
    costs = [platform.costs(choices) for platform in platforms]
    features = [
        network_features(encoding, platform, choices, own)
        for platform, own in zip(platforms, costs, strict=True)
    ]
    learner = _evaluator_learner(features[0].shape[1], platforms[0].inputs, config)
    learner.start(_initial_evaluator(features[0].shape[1], platforms[0].inputs, config, seed))
    random = seeds.stream(seed, "nag", "evaluator")
    for _ in range(config.evaluator_steps):
        number = random.integers(len(platforms))
        platform = platforms[number]
        rows = random.choice(fitted, config.evaluator_records, replace=False)
        targets = np.concatenate(
            [platform.draw(config.step_budgets, config.several_share, random), platform.unlimited]
        )
        better = _better(accuracies[rows], costs[number][rows], targets)
        learner.step(
            tf.constant(features[number][rows]),
            tf.constant(platform.conditions(targets), tf.float32),
            tf.constant(better, tf.float32),
        )
    taught = learner.arrays()
    rankings = [
        _ranked(taught, platform, targets, read[held_out], accuracies[held_out], own[held_out])
        for platform, own, read in zip(platforms, costs, features, strict=True)
        for targets in (
            platform.draw(_TESTED_BUDGETS, config.several_share, random),
            platform.unlimited,
        )
    ]
    return Evaluator(
        encoding, taught, float(np.mean(rankings[::2])), float(np.mean(rankings[1::2]))
    )


class _Learner:
    """Variables and their optimizer, which start anew for each fit of a compiled step."""

    def __init__(
        self,
        initial: Mapping[str, np.ndarray],
        schedule: keras.optimizers.schedules.LearningRateSchedule,
    ):
        self.weights = {name: tf.Variable(value) for name, value in initial.items()}
        self.optimizer = keras.optimizers.Adam(schedule)
        self.optimizer.build(list(self.weights.values()))

    def start(self, initial: Mapping[str, np.ndarray]) -> None:
        """Forgets all that was learned."""
        for variable in self.optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        for name, value in initial.items():
            self.weights[name].assign(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """The variables as they are."""
        return {name: variable.numpy() for name, variable in self.weights.items()}


class _EvaluatorLearner(_Learner):
    """The evaluator's variables, and a step along the gradient of eq. 5."""

    def __init__(self, features: int, inputs: int, config: NagConfig):
        schedule = keras.optimizers.schedules.CosineDecay(
            config.evaluator_rate, config.evaluator_steps
        )
        super().__init__(_initial_evaluator(features, inputs, config, 0), schedule)
        weights, optimizer = self.weights, self.optimizer
        variables = list(weights.values())

        @tf.function(jit_compile=True)
        def step(networks, conditions, better):  # type: ignore[no-untyped-def]
            """networks [records, ..], conditions [budgets, ..], better [budgets, records, ..]."""
            with tf.GradientTape() as tape:
                found = rewards(tf, weights, networks[None], conditions)
                difference = found[..., :, None] - found[..., None, :]
                hinge = tf.nn.relu(1.0 - better * difference) * tf.abs(better)
                # The last budget is none, by which the policy is taught: it has half of the weight.
                share = tf.concat([tf.ones(better.shape[0] - 1), [config.step_budgets]], axis=0)
                pairs = tf.reduce_sum(tf.abs(better), axis=(1, 2))
                mean = tf.reduce_sum(hinge, axis=(2, 3)) / tf.maximum(pairs, 1.0)
                loss = tf.reduce_sum(mean * share) / (2.0 * config.step_budgets)
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            decay = 1.0 - config.weight_decay * tf.cast(optimizer.learning_rate, tf.float32)
            for name, variable in weights.items():
                if not name.startswith("bias"):
                    variable.assign(variable * decay)

        self.step = step


# Compiling takes as long as hundreds of steps, and repeated searches fit alike again and again. One
# fit at a time: these learners are the process's own.
@functools.lru_cache(maxsize=_COMPILED)
def _evaluator_learner(features: int, inputs: int, config: NagConfig) -> _EvaluatorLearner:
    return _EvaluatorLearner(features, inputs, config)


def _ranked(
    weights: Mapping[str, np.ndarray],
    platform: Platform,
    targets: Floats,
    networks: np.ndarray,
    accuracies: Floats,
    costs: Floats,
) -> float:
    """Share of pairs of networks that R ranks as eq. 6 does; 1 where there is none."""
    better = _better(accuracies, costs, targets)
    asked = platform.conditions(targets).astype(np.float32)
    found = rewards(np, weights, networks[None], asked).mean(axis=0)
    right = np.sign(found[..., :, None] - found[..., None, :]) == better
    return float(right[better != 0].mean()) if better.any() else 1.0


def _better(accuracies: Floats, costs: Floats, targets: Floats) -> Floats:
    """d of eq. 6 for each budget and pair [budgets, records, records]."""
    over = overshoot(costs[None], targets[:, None])  # [budgets, records]
    return dominance(np.broadcast_to(accuracies, over.shape), over)


def _initial_evaluator(
    features: int, inputs: int, config: NagConfig, seed: int
) -> dict[str, np.ndarray]:
    random = seeds.stream(seed, "nag", "evaluator weights")
    members, units = config.evaluator_members, config.evaluator_units

    def drawn(fan_in: int, outputs: int, gain: float) -> np.ndarray:
        shape = (members, fan_in, outputs)
        return random.normal(0.0, np.sqrt(gain / fan_in), shape).astype(np.float32)

    state = {
        "network": drawn(features, units, 1.0),
        "budget": drawn(inputs, config.embedding, 1.0),
    }
    sizes = [units + config.embedding, *[units] * (LAYERS - 1), 1]
    for layer, (fan_in, outputs) in enumerate(itertools.pairwise(sizes)):
        state[f"kernel_{layer}"] = drawn(fan_in, outputs, 2.0)
        state[f"bias_{layer}"] = np.zeros((members, 1, outputs), np.float32)
    return state


# --- the policy -----------------------------------------------------------------------------------


def advantages(reward: str, quality: Floats, over: Floats) -> Floats:
    """How much better each network is than the others of its budget [budgets, samples].

    Args:
      reward: one of REWARDS.
      quality: the expected accuracy; the evaluator's R where that is the reward
        [budgets, samples].
      over: the largest share of a limit [budgets, samples].
    """
    if reward in (PARETO, CHEAPEST):
        better = dominance(quality, over, by_quality=reward == PARETO)
        return np.asarray(better.sum(axis=-1) / (quality.shape[-1] - 1))
    if reward == LEARNED:
        told = quality
    elif reward == MULTI_OBJECTIVE:  # Tan et al. 2019, eq. 2, with its soft exponents
        told = quality * np.maximum(over, _LEAST_SHARE) ** -_EXPONENT
    else:  # Bender et al. 2020, section 3.4
        told = quality - _EXPONENT * np.abs(over - 1.0)
    centred = told - told.mean(axis=-1, keepdims=True)
    return np.asarray(centred / (told.std(axis=-1, keepdims=True) + _LEAST_SHARE))


class _Policy(_Learner):
    """The policy's variables, and the two things that training does with them."""

    def __init__(self, encoding: Encoding, inputs: int, config: NagConfig):
        schedule = keras.optimizers.schedules.CosineDecay(
            config.learning_rate, config.steps, alpha=0.05
        )
        super().__init__(_initial(encoding, inputs, config, 0), schedule)
        optimizer, variables = self.optimizer, list(self.weights.values())
        xp = tf.experimental.numpy

        @tf.function(jit_compile=True)
        def sample(conditions, uniform):  # type: ignore[no-untyped-def]
            def choose(decision, shares):  # type: ignore[no-untyped-def]
                cumulated = tf.cumsum(shares, axis=1)
                passed = cumulated < uniform[:, decision, None] * cumulated[:, -1:]
                return tf.reduce_sum(tf.cast(passed, tf.int32), axis=1)

            found = write(xp, encoding, self.weights, conditions, choose)
            return tf.stack([w.choice for w in found], axis=1)

        @tf.function(jit_compile=True)
        def follow(conditions, choices, gained, entropy_weight):  # type: ignore[no-untyped-def]
            with tf.GradientTape() as tape:
                found = write(xp, encoding, self.weights, conditions, lambda d, _: choices[:, d])
                likelihood, entropy = 0.0, 0.0
                for w in found:
                    own = tf.gather(w.shares, w.choice, batch_dims=1)
                    likelihood += w.active * tf.math.log(own + _LEAST_SHARE)
                    logs = tf.math.log(w.shares + _LEAST_SHARE)
                    entropy -= w.active * tf.reduce_sum(w.shares * logs, axis=1)
                loss = -tf.reduce_mean(gained * likelihood + entropy_weight * entropy)
            gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, variables), _CLIPPED_NORM)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))

        self._sample, self._follow = sample, follow

    def sample(self, conditions: np.ndarray, uniform: np.ndarray) -> Choices:
        """A network for each condition, not yet canonical [networks, decisions]."""
        found = self._sample(tf.constant(conditions), tf.constant(uniform))
        return np.asarray(found.numpy(), np.int64)

    def follow(
        self, conditions: np.ndarray, choices: Choices, gained: Floats, entropy_weight: float
    ) -> None:
        """A step along the policy gradient, of what `sample` wrote [networks]."""
        self._follow(
            tf.constant(conditions),
            tf.constant(choices, tf.int32),
            tf.constant(gained, tf.float32),
            tf.constant(entropy_weight, tf.float32),
        )


@functools.lru_cache(maxsize=_COMPILED)
def _policy(space: str, inputs: int, config: NagConfig) -> _Policy:
    """Of a space as JSON: a text can be looked up."""
    return _Policy(Encoding(SearchSpace.from_json(json.loads(space))), inputs, config)


def _initial(
    encoding: Encoding, inputs: int, config: NagConfig, seed: int
) -> dict[str, np.ndarray]:
    random = seeds.stream(seed, "nag", "policy weights")
    decisions, units = len(encoding.long), config.units

    def drawn(shape: tuple[int, ...], deviation: float) -> np.ndarray:
        return random.normal(0.0, deviation, shape).astype(np.float32)

    bias = np.zeros(4 * units, np.float32)
    bias[units : 2 * units] = 1.0  # cells keep what they hold at first (Jozefowicz et al. 2015)
    return {
        "budget": drawn((inputs, config.embedding), 0.3),
        "budget_kernel": drawn((config.embedding, 4 * units), config.embedding**-0.5),
        "bias": bias,
        "place": drawn((decisions, 4 * units), 0.3),
        "value": drawn((decisions - 1, encoding.knots, 4 * units), 0.3),
        "recurrent_kernel": drawn((units, 4 * units), units**-0.5),
        # Every knot is as likely at first.
        "head": np.zeros((decisions, units, encoding.knots), np.float32),
        "head_bias": np.zeros((decisions, encoding.knots), np.float32),
    }
