"""NAGAN: a conditional GAN whose condition is the performance that is asked for.

Kao, Ramamurthy, Williams, Krishna, "Conditional Neural Architecture Search", 2020.

A generator G(c, z) maps a condition c in 0..1 (normalised performance) and Gaussian noise z to an
architecture x with its bit-widths. A discriminator D has two tasks: D1(x) tells generated from real
architectures, D2(x) reconstructs the condition. A frozen, pre-trained encoder E teaches G
(section 3.2, algorithm 1; the value functions are those of AC-GAN, Odena et al. 2017):

  V(D) = log D1(x) + log(1 - D1(G(c, z))) - w_c [(D2(x) - c)^2 + (D2(G(c, z)) - c)^2]
  V(G) = -log D1(G(c, z)) + w_c (D2(G(c, z)) - c)^2
  V(E) = expected |P - c| where P ~ Normal(E_mean(G(c, z)), (w_s E_std(G(c, z)))^2)
         - w_h H + w_l max(0, H_least - H), H the entropy of G's distributions

An iteration lets D ascend V(D), then G descend V(G), then G descend V(E). D's first layers start as
the encoder's.

Where the paper is silent or we depart from it:
  * Architectures are discrete and the paper does not say how gradients pass. G writes a width as a
    logistic distribution of positions between the first and the last; what is drawn is rounded to
    the nearest width. Other decisions are drawn from a categorical distribution. Gradients pass
    straight through the rounding, and through the draws by reparameterisation, of categories by
    the Gumbel-softmax (Jang et al. 2017).
  * G is asked twice: for the short decisions, such as depth and bits, and then, given these, for
    the widths. One pass could not fit widths to a depth that it does not know.
  * V(E) is the distance that is expected of a real training, not of the encoder's mean: of two
    networks with the same mean, G prefers the one whose training keeps to it. `scatter_weight=0` is
    the paper's.
  * V(E) rewards the entropy of the decisions that are active, and charges more where it is low.
    Without it the encoder drives each decision to the one value that it likes best early on, and
    the networks of a condition become one network.
  * Records crowd where random networks perform alike. Positive examples are drawn so that their
    conditions are uniform on 0..1, as the generator's are; otherwise D1 could tell the two apart
    by the condition alone.
  * G reads its condition as hats over eleven knots, not as one number.
  * The draws for a budget spread over a ladder of conditions, from the highest down to the budget's
    lower limit, which the paper's workflow visits one after the other (section 4.1). Three of four
    are drawn at higher temperatures and stand for no condition: G writes for each one the networks
    that keep to it best, and a small budget may want others. Selection verifies every draw.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import seeds
from tfgen.cost.budget import Budget
from tfgen.cost.metrics import PerformanceScale
from tfgen.evidence import surrogate
from tfgen.generators.base import Evidence, Proposals
from tfgen.space.encoding import Encoding
from tfgen.space.search_space import Choices, SearchSpace

NOISE = 10  # dimensions of z, section 3.2
_LAYERS = 3
_LOG_SCALE_CENTRE, _LOG_SCALE_REACH = -2.5, 2.5  # scales of 0.007, less than a width, to 1
_CONDITION_KNOTS = 11
_READ = NOISE + _CONDITION_KNOTS  # of G's inputs, those before the drawn rows
_CONDITION_LEVELS = 11
_TEMPERATURES = (1.0, 2.0, 8.0, 64.0)  # of the draws for a budget
_CONDITION_BINS = 20


@dataclasses.dataclass(frozen=True)
class NaganConfig:
    """How NAGAN is trained.

    Attributes:
      units: of each of the generator's hidden layers.
      steps: iterations of algorithm 1.
      batch_size: m of algorithm 1.
      discriminator_rate: Adam's learning rate of D.
      generator_rate: Adam's learning rate of G under V(G).
      encoder_rate: Adam's learning rate of G under V(E); its ratio to the one above is what weighs
        keeping to the condition against looking like the records.
      condition_weight: w_c.
      scatter_weight: w_s.
      entropy_weight: w_h; a choice that costs this much more distance is drawn e times less.
      least_entropy: H_least, in nats; 1,000 draws of e**7 equally likely networks are some
        660 different ones.
      shortfall_weight: w_l, what a nat below is charged.
      temperature: of the Gumbel-softmax.
      straight_through: whether networks that G writes are rounded on their way to D and E; without
        it they read soft rows and positions between widths.
      diversity_weight: w_d, of how far two draws of one condition lie apart.
      spectral_norm: whether D's kernels are divided by their largest singular values.
      condition_noise: deviation of what is added to the conditions of positive examples.
    """

    units: int = 128
    steps: int = 4_000
    batch_size: int = 128
    discriminator_rate: float = 2e-4
    generator_rate: float = 2e-5
    encoder_rate: float = 3e-3
    condition_weight: float = 1.0
    scatter_weight: float = 1.0
    entropy_weight: float = 0.003
    least_entropy: float = 7.0
    shortfall_weight: float = 0.02
    temperature: float = 0.5
    straight_through: bool = True
    diversity_weight: float = 0.0
    spectral_norm: bool = False
    condition_noise: float = 0.0

    def __post_init__(self) -> None:
        if min(self.units, self.steps, self.batch_size) < 1 or self.temperature <= 0:
            raise ValueError(f"NAGAN needs positive sizes and temperature: {self}")


# --- networks -----------------------------------------------------------------------------------


def generator_scores(
    xp: Any,
    encoding: Encoding,
    state: Mapping[str, Any],
    conditions: Any,
    noise: Any,
    drawn: Any,
) -> Any:
    """G: a row of scores for each decision [draws, decisions, knots].

    A long decision's first scores are the middle and the log scale of its position before the
    sigmoid; a short one's are logits.

    Args:
      xp: NumPy or TensorFlow.
      encoding: of the space.
      state: G's kernels and biases.
      conditions: c in 0..1 [draws].
      noise: z [draws, NOISE].
      drawn: one-hot rows of the short decisions, once they are drawn, else 0
        [draws, decisions, knots].
    """
    kernel = state["generator_kernel_0"]
    hidden = xp.matmul(noise, kernel[:NOISE]) + state["generator_bias_0"]
    hidden = hidden + xp.matmul(_condition_row(xp, conditions), kernel[NOISE:_READ])
    rows = xp.reshape(drawn, (-1, encoding.features_count))
    hidden = hidden + xp.matmul(rows, kernel[_READ:])
    for layer in range(1, _LAYERS):
        hidden = xp.maximum(hidden, 0.0)
        hidden = xp.matmul(hidden, state[f"generator_kernel_{layer}"])
        hidden = hidden + state[f"generator_bias_{layer}"]
    return xp.reshape(hidden, (-1, len(encoding.long), encoding.knots))


def _condition_row(xp: Any, conditions: Any) -> Any:
    """What G reads of c: overlapping hats, so that neighbours are alike and others apart.

    A single number would have to bend through two layers to fit every condition.

    Returns:
      [draws, knots].
    """
    knots = np.arange(_CONDITION_KNOTS, dtype=np.float32)
    return xp.maximum(1.0 - xp.abs(conditions[:, None] * (_CONDITION_KNOTS - 1.0) - knots), 0.0)


def draw(
    xp: Any,
    encoding: Encoding,
    state: Mapping[str, Any],
    conditions: Any,
    temperatures: Any,
    noise: Any,
    uniform: Any,
) -> Any:
    """One choice for each decision, int [draws, decisions]; inactive ones are not yet set to 0.

    Args:
      xp: NumPy or TensorFlow's NumPy.
      encoding: of the space.
      state: G's kernels and biases.
      conditions: c in 0..1 [draws].
      temperatures: of the draws; at 1 they are as trained, above they stray [draws].
      noise: z [draws, NOISE].
      uniform: in 0..1, ends excluded [draws, decisions].
    """
    nothing = xp.zeros((len(encoding.long), encoding.knots), dtype=xp.float32)
    logits = encoding.logits(generator_scores(xp, encoding, state, conditions, noise, nothing))
    logits = (logits - xp.max(logits, axis=2, keepdims=True)) / temperatures[:, None, None]
    weights = xp.exp(logits)
    cumulated = xp.cumsum(weights, axis=2)
    # Never past the last choice that exists: its cumulated weight is the total.
    passed = cumulated < uniform[:, :, None] * cumulated[:, :, -1:]
    drawn = xp.sum(xp.astype(passed, xp.int64), axis=2)
    one_hot = drawn[:, :, None] == xp.asarray(np.arange(encoding.knots))
    rows = xp.astype(one_hot, xp.float32) * (1.0 - encoding.long[:, None])
    scores = generator_scores(xp, encoding, state, conditions, noise, rows)
    logistic = (xp.log(uniform) - xp.log(1.0 - uniform)) * temperatures[:, None]
    passed = encoding.passed(_position(xp, scores, logistic))
    nearest = xp.sum(xp.astype(passed, xp.int64), axis=2)
    return xp.where(encoding.long > 0, nearest, drawn)


def _position(xp: Any, scores: Any, logistic: Any) -> Any:
    """Where each long decision falls in 0..1 [draws, decisions].

    Args:
      xp: NumPy or TensorFlow.
      scores: [draws, decisions, knots].
      logistic: noise of the standard logistic distribution [draws, decisions].
    """
    x = scores[:, :, 0] + xp.exp(_log_scale(xp, scores)) * logistic
    return 0.5 + 0.5 * xp.tanh(0.5 * x)  # the sigmoid


def _log_scale(xp: Any, scores: Any) -> Any:
    """Of each long decision's distribution, kept within bounds smoothly [draws, decisions]."""
    return _LOG_SCALE_CENTRE + _LOG_SCALE_REACH * xp.tanh(scores[:, :, 1])


class NaganGenerator:
    """G as NumPy arrays."""

    def __init__(self, space: SearchSpace, state: Mapping[str, np.ndarray]):
        self._space = space
        self._encoding = Encoding(space)
        self._state = dict(state)
        inputs = _READ + self._encoding.features_count
        if len(state["generator_kernel_0"]) != inputs:
            raise ValueError(f"the generator was fitted by another version: it must read {inputs}")
        low, high = (float(v) for v in state["scale"])
        self._scale = PerformanceScale(low, high)

    def propose(self, budgets: Sequence[Budget], count: int, seed: int) -> list[Proposals]:
        return [self._propose(budget, count, seed) for budget in budgets]

    def _propose(self, budget: Budget, count: int, seed: int) -> Proposals:
        # From the highest condition down to the budget's own limit, never below it.
        least = float(self._scale.normalise(budget.quality[1])) if budget.quality else 0.0
        ladder = np.linspace(1.0, least, _CONDITION_LEVELS)
        level, turn = np.arange(count) % _CONDITION_LEVELS, np.arange(count) // _CONDITION_LEVELS
        temperatures = np.array(_TEMPERATURES)[turn % len(_TEMPERATURES)]
        choices = self.draw(ladder[level], seed, temperatures)
        return Proposals(choices, np.where(temperatures > 1.0, np.nan, ladder[level]))

    def draw(
        self, conditions: np.ndarray, seed: int, temperatures: np.ndarray | None = None
    ) -> Choices:
        """Architectures at these conditions [draws] -> canonical [draws, decisions].

        Args:
          conditions: c in 0..1 [draws].
          seed: of the draws.
          temperatures: None for 1 everywhere, as G was trained [draws].
        """
        rows = np.arange(len(conditions), dtype=np.uint32)
        noise = seeds.counter_normal(np, seeds.derive(seed, "nagan", "noise"), rows, NOISE)
        decisions = len(self._space.decisions)
        words = seeds.counter_words(np, seeds.derive(seed, "nagan", "draw"), rows, decisions)
        # With its half, 23 bits are what a float32 holds: no draw is rounded to 1.
        uniform = ((words >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) / np.float32(2**23)
        c = np.asarray(conditions, np.float32)
        t = np.asarray(np.ones(len(c)) if temperatures is None else temperatures, np.float32)
        return self._space.canonical(draw(np, self._encoding, self._state, c, t, noise, uniform))

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
        choices = evidence.space.choices([r.architecture for r in evidence.records])
        scale = evidence.surrogate.scale
        conditions = scale.normalise([r.metric for r in evidence.records]).astype(np.float32)
        state = _train(evidence.surrogate, choices, conditions, config, seed)
        state["scale"] = np.array([scale.low, scale.high])
        return NaganGenerator(evidence.space, state)

    def restore(self, space: SearchSpace, state: Mapping[str, np.ndarray]) -> NaganGenerator:
        return NaganGenerator(space, state)


# --- training -----------------------------------------------------------------------------------


def _train(
    encoder: surrogate.Surrogate,
    choices: Choices,
    conditions: np.ndarray,
    config: NaganConfig,
    seed: int,
) -> dict[str, np.ndarray]:
    """Algorithm 1; returns G's weights."""
    from tfgen.nets.keras_compat import keras, tf

    encoding = encoder.encoding
    frozen = {k: tf.constant(v) for k, v in encoder.state().items() if v.dtype == np.float32}
    generator = {
        name: tf.Variable(value)
        for name, value in _initial_generator(encoding, config, seed).items()
    }
    discriminator = {
        name: tf.Variable(value) for name, value in _initial_discriminator(encoder, seed).items()
    }
    directions = [
        tf.Variable(value) for value in _initial_directions(list(discriminator.values())[::2], seed)
    ]
    g_variables, d_variables = list(generator.values()), list(discriminator.values())
    d_optimizer, g_optimizer, e_optimizer = (
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(rate, config.steps, alpha=0.05), beta_1=0.5
        )
        for rate in (config.discriminator_rate, config.generator_rate, config.encoder_rate)
    )
    d_optimizer.build(d_variables)
    g_optimizer.build(g_variables)
    e_optimizer.build(g_variables)

    def draw_rows(scores, gumbel):  # type: ignore[no-untyped-def]
        logits = encoding.logits(scores) + gumbel
        soft = tf.nn.softmax(logits / config.temperature, axis=2)
        if not config.straight_through:
            return soft
        hard = tf.one_hot(tf.argmax(logits, axis=2), encoding.knots)
        return soft + tf.stop_gradient(hard - soft)

    def entropy_of_draws(scores):  # type: ignore[no-untyped-def]
        """Of the short decisions' distributions, in nats [draws, decisions]."""
        logs = tf.nn.log_softmax(encoding.logits(scores), axis=2)
        return -tf.reduce_sum(tf.exp(logs) * logs, axis=2) * (1.0 - encoding.long)

    def entropy_of_positions(scores):  # type: ignore[no-untyped-def]
        """Of the long decisions' choices, in nats [draws, positions]."""
        written = tf.gather(scores, encoding.positions, axis=1)
        shares = encoding.shares(tf, written[:, :, 0], tf.exp(_log_scale(tf, written)))
        return -tf.reduce_sum(shares * tf.math.log(shares + 1e-6), axis=2)

    def generate(c, noise, gumbel):  # type: ignore[no-untyped-def]
        """Features of drawn networks, and what V(E) credits them for variety [draws]."""
        nothing = tf.zeros_like(gumbel)
        long = encoding.long[:, None]
        first = generator_scores(tf, encoding, generator, c, noise, nothing)
        drawn = draw_rows(first, gumbel) * (1.0 - long)
        scores = generator_scores(tf, encoding, generator, c, noise, drawn)
        # The difference of two Gumbel draws is a logistic one.
        position = _position(tf, scores, gumbel[:, :, 0] - gumbel[:, :, 1])
        hats = encoding.hats(tf, position)
        if config.straight_through:
            snapped = encoding.hats(tf, encoding.snapped(tf, position))
            hats = hats + tf.stop_gradient(snapped - hats)
        rows = drawn + long * hats
        short, long = entropy_of_draws(first), entropy_of_positions(scores)
        # Choices that do not matter are no variety; rewarding those that do would reward depth.
        active = encoding.activity(tf, rows)
        matters = tf.reduce_sum(short * active, axis=1)
        matters += tf.reduce_sum(long * tf.gather(active, encoding.positions, axis=1), axis=1)
        shortfall = tf.nn.relu(config.least_entropy - matters)
        rewarded = config.entropy_weight * (
            tf.reduce_sum(short, axis=1) + tf.reduce_sum(long, axis=1)
        )
        variety = rewarded - config.shortfall_weight * shortfall
        return encoding.features(tf, rows), variety

    def largest_singular_value(kernel, direction):  # type: ignore[no-untyped-def]
        """By a step of power iteration from the last one's (Miyato et al. 2018, algorithm 1)."""
        left = tf.stop_gradient(tf.linalg.l2_normalize(kernel @ direction))
        right = tf.stop_gradient(tf.linalg.l2_normalize(tf.transpose(kernel) @ left))
        direction.assign(right)
        return tf.reduce_sum(left * (kernel @ right))

    def discriminate(features):  # type: ignore[no-untyped-def]
        hidden = features
        for layer in range(_LAYERS):
            if layer:
                hidden = tf.nn.leaky_relu(hidden)
            kernel = discriminator[f"kernel_{layer}"]
            if config.spectral_norm:
                kernel = kernel / largest_singular_value(kernel, directions[layer])
            hidden = hidden @ kernel + discriminator[f"bias_{layer}"]
        return hidden[:, 0], hidden[:, 1]  # real or generated, condition

    def apart(features):  # type: ignore[no-untyped-def]
        """Mean distance of the two draws of a condition, by decision."""
        half = config.batch_size // 2
        difference = tf.abs(features[:half] - features[half : 2 * half])
        return tf.reduce_sum(difference) / (half * len(encoding.long))

    def expected_distance(error, deviation):  # type: ignore[no-untyped-def]
        """Mean of a folded normal distribution."""
        share = error / (deviation + 1e-3)
        folded = np.sqrt(2.0 / np.pi) * tf.exp(-0.5 * tf.square(share))
        return deviation * folded + error * tf.math.erf(share / np.sqrt(2.0))

    def judged(logit, real):  # type: ignore[no-untyped-def]
        labels = tf.ones_like(logit) if real else tf.zeros_like(logit)
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logit))

    @tf.function(jit_compile=True)
    def iterate(x, c, noise, gumbel):  # type: ignore[no-untyped-def]
        generated, _ = generate(c, noise[0], gumbel[0])
        with tf.GradientTape() as tape:  # V(D), ascended
            real_logit, real_c = discriminate(x)
            fake_logit, fake_c = discriminate(tf.stop_gradient(generated))
            d_loss = judged(real_logit, True) + judged(fake_logit, False)
            d_loss += config.condition_weight * tf.reduce_mean(
                tf.square(real_c - c) + tf.square(fake_c - c)
            )
        gradients = tape.gradient(d_loss, d_variables)
        d_optimizer.apply_gradients(zip(gradients, d_variables, strict=True))
        with tf.GradientTape() as tape:  # V(G), descended
            generated, _ = generate(c, noise[1], gumbel[1])
            logit, back = discriminate(generated)
            g_loss = judged(logit, True)
            g_loss += config.condition_weight * tf.reduce_mean(tf.square(back - c))
        gradients = tape.gradient(g_loss, g_variables)
        g_optimizer.apply_gradients(zip(gradients, g_variables, strict=True))
        with tf.GradientTape() as tape:  # V(E), descended; the encoder itself is fixed
            if config.diversity_weight:  # two draws for each condition
                c = tf.tile(c[: config.batch_size // 2], [2])
            generated, variety = generate(c, noise[2], gumbel[2])
            mean, scatter = surrogate.moments(tf, frozen, generated)
            error = tf.clip_by_value(mean, 0.0, 1.0) - c
            distance = expected_distance(error, config.scatter_weight * scatter)
            e_loss = tf.reduce_mean(distance - variety)
            if config.diversity_weight:
                e_loss -= config.diversity_weight * apart(generated)
        gradients = tape.gradient(e_loss, g_variables)
        e_optimizer.apply_gradients(zip(gradients, g_variables, strict=True))
        return d_loss, g_loss, e_loss

    random = seeds.stream(seed, "nagan", "training")
    features = encoding.features_of(choices)
    order, starts, ends = _bins(conditions)
    size = (3, config.batch_size)  # fresh noise for each of the three updates
    for _ in range(config.steps):
        chosen = random.integers(len(starts), size=config.batch_size)
        rows = order[random.integers(starts[chosen], ends[chosen])]
        noise = random.standard_normal((*size, NOISE), np.float32)
        gumbel = random.gumbel(size=(*size, len(encoding.long), encoding.knots))
        c = conditions[rows]
        if config.condition_noise:
            jitter = random.normal(0.0, config.condition_noise, len(c))
            c = np.clip(c + jitter, 0.0, 1.0).astype(np.float32)
        batch = (features[rows], c, noise, gumbel.astype(np.float32))
        iterate(*map(tf.constant, batch))
    return {name: variable.numpy() for name, variable in generator.items()}


def _initial_generator(encoding: Encoding, config: NaganConfig, seed: int) -> dict[str, np.ndarray]:
    random = seeds.stream(seed, "nagan", "generator")
    inputs = _READ + encoding.features_count
    sizes = (inputs, config.units, config.units, encoding.features_count)
    state = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        # A drawn row and a condition's have a single 1.
        fan_in = NOISE + 1 + int((1 - encoding.long).sum()) if layer == 0 else inputs
        kernel = random.normal(0.0, np.sqrt(2.0 / fan_in), (inputs, outputs))
        state[f"generator_kernel_{layer}"] = kernel.astype(np.float32)
        state[f"generator_bias_{layer}"] = np.zeros(outputs, np.float32)
    return state


def _initial_discriminator(encoder: surrogate.Surrogate, seed: int) -> dict[str, np.ndarray]:
    """D's first layers are those of the encoder's first member (section 3.1)."""
    taught = encoder.state()
    state = {}
    for layer in range(_LAYERS - 1):
        state[f"kernel_{layer}"] = taught[f"kernel_{layer}"][0]
        state[f"bias_{layer}"] = taught[f"bias_{layer}"][0, 0]
    inputs = state[f"kernel_{_LAYERS - 2}"].shape[1]
    head = seeds.stream(seed, "nagan", "discriminator").normal(0.0, inputs**-0.5, (inputs, 2))
    state[f"kernel_{_LAYERS - 1}"] = head.astype(np.float32)
    state[f"bias_{_LAYERS - 1}"] = np.zeros(2, np.float32)
    return state


def _initial_directions(kernels: Sequence[Any], seed: int) -> list[np.ndarray]:
    """Where the power iteration of each kernel starts, [out, 1]."""
    random = seeds.stream(seed, "nagan", "spectral norm")
    return [random.normal(size=(kernel.shape[1], 1)).astype(np.float32) for kernel in kernels]


def _bins(conditions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Records by condition in bins of equal width.

    Returns:
      Rows of the records in the order of their bins, and where each bin that is not empty starts
      and ends in it.
    """
    number = np.minimum((conditions * _CONDITION_BINS).astype(int), _CONDITION_BINS - 1)
    _, starts = np.unique(np.sort(number), return_index=True)
    return np.argsort(number, kind="stable"), starts, np.append(starts[1:], len(number))
