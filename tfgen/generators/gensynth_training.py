"""How generative synthesis learns, with TensorFlow: the cycles of its section 2.

A network that G writes is worth

  U(metric, costs) - w max(0, r - metric) + taste                                       [points]

by what the inquisitor expects of its metric; r is the requirement that G read. What is best by
expectations is overrated by them, and G does not quite follow its inquisitor: so with caution, a
network is taken to lose twice what is expected, up to what three of four of those that G wrote
before would have needed to keep what was required of them.

Of each decision the scores are pulled towards those values with which, all others left as they are,
the network would be worth more: a local expectation, as SGNAS's cost has here (`single_changes`).
So what is improved is the network that is written, which has to meet the requirement, not a mixture
of networks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfgen import errors, seeds
from tfgen.cost.expected_cost import ExpectedCost
from tfgen.cost.netscore import netscore
from tfgen.evidence.insight import Insight, begun, log_odds
from tfgen.evidence.reactions import Floats
from tfgen.generators.base import Evidence
from tfgen.generators.gensynth import (
    COSTS,
    KNOTS,
    SEED_NUMBERS,
    GensynthConfig,
    generate,
    hats,
    seed_numbers,
    written,
)
from tfgen.generators.inquisitor import Inquisitor
from tfgen.generators.single_changes import single_changes
from tfgen.nets.keras_compat import keras, tf
from tfgen.space.search_space import Choices, SearchSpace

_FIRST = 3  # times the steps in the first cycle, when G knows nothing
_REDRAWN = 0.3  # of the decisions of every second network
_KEEPING = 0.75  # of the networks that G wrote, those that would have kept what was required
_TRIED = 16  # draws for each network of a cycle, since some are known already
_SPREAD = 10.0  # points: what a single change is worth counts up to there
_LEAST_METRIC = 0.01
_FLAT = 1e-3  # weight of the scores' squares: a sure generator would not follow its inquisitor
_CLIPPED_NORM = 1.0  # of a step's gradient


def train(evidence: Evidence, config: GensynthConfig, seed: int) -> dict[str, np.ndarray]:
    """Runs the cycles; returns the generator's state.

    Args:
      evidence: scores networks, probes them, and counts what they cost.
      config: how.
      seed: of weights, seeds, requirements and scores.

    Raises:
      UsageError: a cost is not known by shares, or the prototype's metric is not in 0..1.
    """
    space, evaluate, probe = evidence.space, evidence.evaluate, evidence.probe
    assert evaluate is not None and probe is not None  # `fit` checked
    whole = space.point({})
    (record,) = evaluate([whole], seeds.derive(seed, "prototype"))
    if not _LEAST_METRIC < record.metric <= 1.0:
        raise errors.UsageError(f"the prototype scores {record.metric:.4f}: nothing to learn from")
    inquisitor = Inquisitor(space, probe([whole])[0], record.metric)
    low = max(record.metric - config.reach, _LEAST_METRIC)
    updates = _Updates(evidence, config, seed, low, record.metric)
    known = {whole}
    caution, needed = 0.0, np.zeros(0)
    for cycle in range(config.cycles):
        insight = inquisitor.insight()
        updates.run(insight, caution, config.steps * (1 if cycle else _FIRST))
        networks, required = [], []
        for row, asked in zip(*updates.networks(cycle), strict=True):
            architecture = space.architecture(row)
            if architecture not in known and len(networks) < config.networks:
                networks.append(architecture)
                required.append(asked)
                known.add(architecture)
        if not networks:
            continue  # all that it writes is known: the next insight is the same
        scored = evaluate(networks, seeds.derive(seed, "cycle", cycle))
        choices, metrics = space.choices(networks), [r.metric for r in scored]
        inquisitor.observe(choices, metrics, probe(networks[: config.probed]))
        if cycle:  # before, only the prototype had told what to expect
            own = needed_caution(insight, caution, choices, metrics, required)
            needed = np.concatenate([needed, own])
        if needed.size:  # small cycles may have none that is as G wrote it
            caution = max(float(np.quantile(needed[len(needed) // 2 :], _KEEPING)), 0.0)
    insight = inquisitor.insight()
    updates.run(insight, caution, _FIRST * config.steps)
    return {**updates.state(), **insight.state(), "residuals": inquisitor.residuals}


def needed_caution(
    insight: Insight,
    caution: float,
    choices: Choices,
    metrics: Sequence[float],
    required: Sequence[float],
) -> Floats:
    """With what caution each network would have just kept its requirement, log-odds [networks].

    Args:
      insight: by which G wrote them.
      caution: with which.
      choices: canonical [networks, decisions].
      metrics: their scores [networks].
      required: of each; NaN for one that G did not write as it is, which is left out.
    """
    lost = insight.top - insight.log_odds(choices)
    missed = log_odds(required) - log_odds(metrics)
    found = np.minimum(lost, caution) + missed
    return found[~np.isnan(required)]


class _Updates:
    """G in training."""

    def __init__(
        self, evidence: Evidence, config: GensynthConfig, seed: int, low: float, high: float
    ):
        self._space, self._config, self._seed = evidence.space, config, seed
        self._range = (low, high)
        self._random = seeds.stream(seed, "gensynth", "training")
        values = sum(len(d.values) for d in self._space.decisions)
        bits = evidence.cost_model.activation_bits
        costs = {metric: ExpectedCost(self._space, metric, bits) for metric in COSTS}
        weights = seeds.stream(seed, "gensynth", "weights")
        widths = [SEED_NUMBERS + KNOTS, config.units, config.units, values]
        state = {}
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            scale = 0.1 if layer == 2 else np.sqrt(2.0 / inputs)
            state[f"kernel_{layer}"] = weights.normal(0.0, 1.0, (inputs, outputs)) * scale
            state[f"bias_{layer}"] = np.zeros(outputs)
        state["kernel_2"] /= np.sqrt(config.units)
        self._state = {n: tf.Variable(v.astype(np.float32)) for n, v in state.items()}
        tastes = weights.normal(0.0, config.taste, (SEED_NUMBERS, values)) / np.sqrt(SEED_NUMBERS)
        self._step = _step(self._space, costs, self._state, config, tastes.astype(np.float32))

    def run(self, insight: Insight, caution: float, steps: int) -> None:
        """Delta theta_G: follows an insight with caution, in log-odds."""
        tables = [np.concatenate(table) for table in (insight.costs, insight.strains)]
        costs, strains = (tf.constant(table, tf.float32) for table in tables)
        top = tf.constant(insight.top, tf.float32)
        any_cut = tf.constant(insight.any_cut, tf.float32)
        beyond = tf.constant(caution, tf.float32)
        batch = self._config.batch_size
        values = self._state["bias_2"].shape[0]
        for number in range(steps):
            required = self._random.uniform(*self._range, batch)
            numbers = seed_numbers(int(self._random.integers(2**62)), batch)
            noise = self._random.gumbel(size=(batch, values)) * (1.0 - number / steps)
            self._step(
                tf.constant(numbers, tf.float32),
                tf.constant(hats(required, *self._range), tf.float32),
                tf.constant(required, tf.float32),
                tf.constant(noise, tf.float32),
                costs,
                strains,
                top,
                any_cut,
                beyond,
            )

    def networks(self, cycle: int) -> tuple[Choices, Floats]:
        """What a cycle's seeds become, for requirements all over the range, and for which each.

        Some decisions of every second one are drawn anew: what all networks have alike tells the
        inquisitor nothing.

        Returns:
          [draws, decisions], and the requirements [draws], NaN where decisions were drawn.
        """
        count = _TRIED * self._config.networks
        own = seeds.derive(self._seed, "cycle", cycle)
        random = seeds.stream(own, "networks")
        required = random.uniform(*self._range, count)
        read = hats(required, *self._range)
        state = {name: variable.numpy() for name, variable in self._state.items()}
        networks = written(self._space, generate(np, state, seed_numbers(own, count), read))
        networks[1::2] = self._space.mutate(networks[1::2], random, _REDRAWN)
        required[1::2] = np.nan
        return networks, required

    def state(self) -> dict[str, np.ndarray]:
        """The generator's."""
        arrays = {name: variable.numpy() for name, variable in self._state.items()}
        return {**arrays, "range": np.array(self._range)}


def _step(
    space: SearchSpace,
    costs: dict[str, ExpectedCost],
    state: dict[str, Any],
    config: GensynthConfig,
    tastes: np.ndarray,
) -> Callable[..., Any]:
    """A traced step of gradient descent on theta_G."""
    sizes = [len(d.values) for d in space.decisions]
    variables = list(state.values())
    optimizer = keras.optimizers.Adam(config.learning_rate)
    optimizer.build(variables)

    def summed(table: Any) -> Callable[[Sequence[Any]], Any]:
        """The mean of what decisions' values have in a table [values]."""
        parts = tf.split(table, sizes)

        def mean(shares: Sequence[Any]) -> Any:
            total: Any = 0.0
            for part, share, active in zip(parts, shares, _activities(space, shares), strict=True):
                # A decision that is not active has its first value.
                total += active * tf.linalg.matvec(share, part) + (1.0 - active) * part[0]
            return total

        return mean

    @tf.function(jit_compile=True)
    def step(numbers, hats_, required, noise, lost, strained, top, any_cut, caution):  # type: ignore[no-untyped-def]
        with tf.GradientTape() as tape:
            scores = tf.split(generate(tf, state, numbers, hats_), sizes, axis=1)
            noisy = [s + n for s, n in zip(scores, tf.split(noise, sizes, axis=1), strict=True)]
            chosen = [tf.one_hot(tf.argmax(s, axis=1), s.shape[1]) for s in noisy]
            params, macs = (
                single_changes(functools.partial(costs[metric], tf), chosen)[1] for metric in COSTS
            )
            losses, strains = (
                single_changes(summed(table), chosen)[1] for table in (lost, strained)
            )
            taste = tf.split(tf.matmul(numbers, tastes), sizes, axis=1)
            total = 0.0
            told = zip(params, macs, losses, strains, taste, chosen, scores, strict=True)
            for size, count, cost, strain, liked, pick, score in told:
                loss = cost + any_cut * begun(strain)
                odds = top - loss - tf.minimum(loss, caution)
                metric = tf.maximum(tf.sigmoid(odds), _LEAST_METRIC)
                worth = netscore(tf, metric, size, count) + liked
                short = tf.nn.relu(required[:, None] - metric)
                worth -= config.shortfall * 100.0 * short
                gain = worth - tf.reduce_sum(worth * pick, axis=1, keepdims=True)
                gain = tf.stop_gradient(tf.clip_by_value(gain, -_SPREAD, _SPREAD))
                shares = tf.nn.softmax(score, axis=1)
                total -= tf.reduce_mean(tf.reduce_sum(shares * gain, axis=1))
                total += _FLAT * tf.reduce_mean(tf.reduce_sum(score**2, axis=1))
        gradients, _ = tf.clip_by_global_norm(tape.gradient(total, variables), _CLIPPED_NORM)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return total

    return step


def _activities(space: SearchSpace, shares: Sequence[Any]) -> list[Any]:
    """Of each decision, the share of networks in which it is active; each [batch]."""
    found: list[Any] = []
    for decision, share in zip(space.decisions, shares, strict=True):
        active = tf.ones_like(share[:, 0])
        if decision.when is not None:
            parent = space.index[decision.when.decision]
            held = [
                float(value in decision.when.values) for value in space.decisions[parent].values
            ]
            active = found[parent] * tf.linalg.matvec(shares[parent], tf.constant(held))
        found.append(active)
    return found
