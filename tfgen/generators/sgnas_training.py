"""How SGNAS's generator is trained, with TensorFlow (section 3.2.3, algorithm 1).

  L_G = L_val(w*, alpha) + lambda L_C(alpha, C)                                        (eq. 10)

L_val is the cross-entropy of the frozen supernet on a batch of images, asked for the shares
m = softmax((alpha + g) / tau) of a sampled target (`SoftNetwork`, eq. 2 and 12); g is Gumbel noise
and tau is annealed. Where there is no supernet it is the encoder's performance of the shares,
for all targets of the step. Either is told as a share of the range that random networks span.

L_C departs from eq. 8, the squared distance of the mean cost of the shares. What counts is the cost
of the network that the map's arg max is, and neither eq. 8 nor a straight-through gradient gets
there: on `mnist_mobile` both end 5 to 12 % off, since all decisions are pushed at once and the
dearest the most. Ours is a local expectation (Titsias and Lazaro-Gredilla 2015): with all other
decisions at their arg max, one decision d drawn from its own shares p costs

  L_C = sum over d of E_{v ~ p_d} rho(Cost(arg max with d = v) / C),  rho(r) = w |r - 1|,

w = `overshoot_weight` above 1 and 1 below. It pushes each decision towards just the values that
bring this network nearer to the target, so small changes make up for what large ones miss. It is
exact: costs are linear in the shares of a decision, so one gradient of `ExpectedCost` tells all
single changes. Where several costs are limited, r is the largest Cost / C: none may be over, and
the tightest is met.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfgen import errors, seeds
from tfgen.cost.expected_cost import ExpectedCost
from tfgen.evidence.surrogate import moments
from tfgen.generators.base import Evidence
from tfgen.generators.sgnas import (
    CONVOLUTIONS,
    COSTS,
    KNOTS,
    ParameterMap,
    SgnasConfig,
    generate,
)
from tfgen.generators.single_changes import single_changes
from tfgen.generators.targets import Targets
from tfgen.nets.cell_supernet import CellSupernet
from tfgen.nets.keras_compat import keras, tf
from tfgen.nets.soft_network import SoftNetwork

_SAMPLED = 4096  # networks, whose costs several limits at once are near
_CLIPPED_NORM = 1.0  # of a step's gradient: early maps are far off
_EXPLORED = 16  # random networks that tell the range of L_val
# L_val of shares of choices, each [targets, values]; a scalar.
Quality = Callable[[Sequence[Any]], Any]


def train(evidence: Evidence, config: SgnasConfig, seed: int) -> dict[str, np.ndarray]:
    """Trains a generator; returns its state.

    Args:
      evidence: a supernet and examples, or an encoder; costs are counted.
      config: how.
      seed: of weights, prior, targets, images and noise.

    Raises:
      UsageError: the space has no supernet of shares, there are no examples for it, or a cost is
        not known by shares.
    """
    space, places = evidence.space, ParameterMap(evidence.space)
    latency = evidence.cost_model.latency
    bits = evidence.cost_model.activation_bits
    means = [(COSTS.index(m), ExpectedCost(space, m, bits, latency)) for m in config.costs]
    random = seeds.stream(seed, "sgnas", "training")
    sampled = space.sample(_SAMPLED, seeds.stream(seed, "sgnas", "costs"))
    costs = evidence.cost_model.costs(sampled)
    targets = Targets.of(evidence.cost_model, COSTS, config.costs, costs, KNOTS)

    prior = places.one_hot(space.sample(1, seeds.stream(seed, "sgnas", "prior"))[0])
    initial = _initial(places, targets, config, seed)
    state = {name: tf.Variable(value) for name, value in initial.items()}
    variables = list(state.values())
    schedule = keras.optimizers.schedules.CosineDecay(
        config.learning_rate, config.steps, alpha=0.02
    )
    optimizer = keras.optimizers.Adam(schedule, beta_1=0.5)  # the paper's momenta
    optimizer.build(variables)
    quality = _quality(evidence, config, seed)

    def constraint_loss(logits, limits):  # type: ignore[no-untyped-def]
        """L_C; limits [batch, costs], infinity where a cost is free."""
        chosen = [tf.one_hot(tf.argmax(x, axis=1), x.shape[1]) for x in logits]
        changes = [
            single_changes(functools.partial(mean, tf), chosen)[1] for _, mean in means
        ]  # [costs][decisions]
        total = 0.0
        for decision, scores in enumerate(logits):
            ratios = [
                changed[decision] / limits[:, column, None]
                for (column, _), changed in zip(means, changes, strict=True)
            ]
            off = tf.reduce_max(tf.stack(ratios), axis=0) - 1.0  # [batch, values]
            rho = tf.abs(off) * tf.where(off > 0.0, config.overshoot_weight, 1.0)
            shares = tf.nn.softmax(scores, axis=1)
            total += tf.reduce_mean(tf.reduce_sum(shares * tf.stop_gradient(rho), axis=1))
        return total

    # Compiled, a step is three times as fast, but convolutions of images ten times as slow.
    @tf.function(jit_compile=evidence.supernet is None)
    def step(features, limits, gumbel, temperature):  # type: ignore[no-untyped-def]
        with tf.GradientTape() as tape:
            alpha = generate(tf, state, prior, features, _convolved)
            logits = places.logits(tf, alpha)
            noise = tf.split(gumbel, [x.shape[1] for x in logits], axis=1)
            shares = [
                tf.nn.softmax((x + g) / temperature) for x, g in zip(logits, noise, strict=True)
            ]
            loss = quality(shares) + config.constraint_weight * constraint_loss(logits, limits)
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, variables), _CLIPPED_NORM)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    values = sum(len(d.values) for d in space.decisions)
    for number in range(config.steps):
        progress = number / config.steps
        temperature = config.start_temperature * (
            (config.end_temperature / config.start_temperature) ** progress
        )
        wanted = targets.draw(config.batch_size, costs, config.several_share, random)
        gumbel = random.gumbel(size=(config.batch_size, values))
        step(
            tf.constant(targets.features(wanted), tf.float32),
            tf.constant(np.where(wanted > 0, wanted, np.inf), tf.float32),
            tf.constant(gumbel, tf.float32),
            tf.constant(temperature, tf.float32),
        )
    arrays = {name: variable.numpy() for name, variable in state.items()}
    return {**arrays, "prior": prior, **targets.state()}


def _convolved(x: Any, kernel: Any) -> Any:
    return tf.nn.conv2d(x, kernel, 1, "SAME")


def _initial(
    places: ParameterMap, targets: Targets, config: SgnasConfig, seed: int
) -> dict[str, np.ndarray]:
    random = seeds.stream(seed, "sgnas", "weights")
    size, channels = places.rows * places.columns, config.channels
    widths = [2, *[channels] * (CONVOLUTIONS - 1), 1]
    state = {
        "expansion": random.normal(0.0, 0.3, (targets.features_count, size)),
        "place": random.normal(0.0, 0.3, (places.rows, places.columns, channels)),
    }
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        # The last one starts small: the map begins near the prior and the expanded target.
        scale = 0.05 if outputs == 1 else np.sqrt(2.0 / (9 * inputs))
        state[f"kernel_{layer}"] = random.normal(0.0, scale, (3, 3, inputs, outputs))
    return {name: value.astype(np.float32) for name, value in state.items()}


# --- L_val ----------------------------------------------------------------------------------------


def _quality(evidence: Evidence, config: SgnasConfig, seed: int) -> Quality:
    if evidence.supernet is None:
        return _encoder_quality(evidence)
    if evidence.examples is None:
        raise errors.UsageError("method 'sgnas' needs examples beside its supernet")
    return _supernet_quality(evidence, config, seed)


def _encoder_quality(evidence: Evidence) -> Quality:
    """Less performance, which is normalised already: 0..1 is what random networks span."""
    encoder = evidence.surrogate
    assert encoder is not None
    encoding = encoder.encoding
    frozen = {k: tf.constant(v) for k, v in encoder.state().items() if v.dtype == np.float32}

    def quality(shares: Sequence[Any]) -> Any:
        rows: list[Any] = []
        activities: list[Any] = []
        for decision, share in enumerate(shares):
            row = share @ encoding.rows[decision, : share.shape[1]]
            activity = encoding.activity(tf, decision, rows, activities) * tf.ones_like(row[:, 0])
            rows.append(row * activity[:, None])
            activities.append(activity)
        mean, _ = moments(tf, frozen, tf.concat(rows, axis=1))
        # Beyond 0..1 there are networks too; far beyond it the encoder guesses.
        return -tf.reduce_mean(tf.clip_by_value(mean, -1.0, 2.0))

    return quality


def _supernet_quality(evidence: Evidence, config: SgnasConfig, seed: int) -> Quality:
    """Cross-entropy of the first target's shares on a batch of examples, its weights rounded."""
    examples, space = evidence.examples, evidence.space
    assert examples is not None and evidence.supernet is not None
    supernet = evidence.supernet
    if isinstance(supernet, CellSupernet):
        outputs, quantized = supernet.soft_outputs, False
    else:
        outputs, quantized = SoftNetwork(supernet).outputs, True
    x, y = tf.constant(examples.x), tf.constant(examples.y, tf.int32)
    generator = tf.random.Generator.from_seed(seeds.derive(seed, "sgnas", "images") % 2**31)

    def loss(shares: Sequence[Any]) -> Any:
        rows = generator.uniform([config.images], 0, len(examples), tf.int32)
        one = {d.name: s[0] for d, s in zip(space.decisions, shares, strict=True)}
        logits = outputs(tf.gather(x, rows), one, quantized=quantized)
        return tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(tf.gather(y, rows), logits)
        )

    sampled = space.sample(_EXPLORED, seeds.stream(seed, "sgnas", "range"))
    traced = tf.function(loss)
    losses = [
        float(
            traced(
                [
                    tf.one_hot([choice], len(d.values))
                    for d, choice in zip(space.decisions, row, strict=True)
                ]
            )
        )
        for row in sampled
    ]
    spread = max(max(losses) - min(losses), 1e-3)
    return lambda shares: loss(shares) / spread
