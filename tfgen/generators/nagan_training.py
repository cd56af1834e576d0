"""How NAGAN's generator is taught, with TensorFlow.

First by likelihood (not in the paper): G is shown networks that the encoder expects to keep their
condition (`evidence.posterior`) and ascends log G(x | c). A generator that only descends V(E)
settles on the first networks that the encoder likes; one that must explain examples covers them.

Then by algorithm 1 of the paper. A discriminator D has two tasks: D1(x) tells generated from real
architectures, D2(x) reconstructs the condition (AC-GAN, Odena et al. 2017). With G(c, z) as x,

  V(D) = log D1(real) + log(1 - D1(x)) - w_c [(D2(real) - c)^2 + (D2(x) - c)^2]
  V(G) = -log D1(x) + w_c (D2(x) - c)^2
  V(E) = expected |P - c| where P ~ Normal(E_mean(x), (w_s E_std(x))^2)
         - w_h H + w_l max(0, H_least - H), H the entropy of G along x

An iteration lets D ascend V(D), then G descend V(E) + w_a V(G). D's first layers start as the
encoder's (section 3.1).

Departures from algorithm 1:
  * Gradients pass straight through the draws, by the Gumbel-softmax (Jang et al. 2017); the paper
    does not say how they do.
  * One batch of generated networks serves D and both of G's losses, which have one optimizer.
  * V(E) is the distance that is expected of a real training, not of the encoder's mean: of two
    networks with the same mean, G prefers the one whose training keeps to it. `scatter_weight=0` is
    the paper's.
  * V(E) rewards the entropy of decisions that are active, and charges more where it is low. Without
    it the encoder drives each decision to the one value that it likes best.
  * Records crowd where random networks perform alike. Positive examples are drawn so that their
    conditions are uniform on 0..1, as the generator's are; otherwise D1 could tell the two apart
    by the condition alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import seeds
from tfgen.evidence import posterior
from tfgen.evidence.surrogate import Surrogate, moments
from tfgen.generators.nagan import CONDITION_KNOTS, LAYERS, NaganConfig, condition_row, logits
from tfgen.nets.keras_compat import keras, tf
from tfgen.space.encoding import Encoding
from tfgen.space.search_space import Choices

_CONDITION_BINS = 20
_LEAST_SHARE = 1e-9


def train(
    encoder: Surrogate,
    choices: Choices,
    conditions: np.ndarray,
    config: NaganConfig,
    seed: int,
) -> dict[str, np.ndarray]:
    """Teaches a generator; returns its kernels and biases.

    Args:
      encoder: fitted to the records.
      choices: of the records [records, decisions].
      conditions: normalised performance of the records [records].
      config: how.
      seed: of weights, examples and batches.
    """
    initial = _initial_generator(encoder.encoding, config, seed)
    generator = {name: tf.Variable(value) for name, value in initial.items()}
    if config.teaching_steps:
        _teach(encoder, generator, config, seed)
    if config.steps:
        _play(encoder, generator, choices, conditions, config, seed)
    return {name: variable.numpy() for name, variable in generator.items()}


def _optimizer(rate: float, steps: int, variables: Sequence[Any], **options: float) -> Any:
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps, alpha=0.05)
    optimizer = keras.optimizers.Adam(schedule, **options)
    optimizer.build(variables)
    return optimizer


# --- likelihood ---------------------------------------------------------------------------------


def _teach(
    encoder: Surrogate, generator: Mapping[str, Any], config: NaganConfig, seed: int
) -> None:
    """Ascends the mean log-likelihood of networks that keep their condition."""
    encoding = encoder.encoding
    choices, conditions = posterior.sample(
        encoder,
        config.teaching_temperature,
        config.teaching_repeats,
        config.teaching_chains,
        config.teaching_kept,
        seed,
    )
    rows = condition_row(np, conditions).astype(np.float32)
    variables = list(generator.values())
    optimizer = _optimizer(config.teaching_rate, config.teaching_steps, variables)
    earlier = tf.constant(_earlier(encoding))

    @tf.function(jit_compile=True)
    def step(features, row, active, chosen):  # type: ignore[no-untyped-def]
        read = tf.concat([features, row], axis=1)
        with tf.GradientTape() as tape:
            hidden = read
            for layer in range(LAYERS):
                if layer:
                    hidden = tf.nn.relu(hidden)
                kernel = generator[f"generator_kernel_{layer}"]
                kernel = kernel * earlier if layer == 0 else kernel
                bias = generator[f"generator_bias_{layer}"][:, None]
                hidden = tf.matmul(hidden, kernel) + bias  # [decisions, networks, units]
            shares = tf.nn.softmax(hidden + encoding.absent[:, None], axis=2)
            likelihood = tf.einsum("dnk,ndk->nd", shares, chosen)
            logs = tf.math.log(likelihood + _LEAST_SHARE) * active
            loss = -tf.reduce_mean(tf.reduce_sum(logs, axis=1))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    random = seeds.stream(seed, "nagan", "teaching")
    decisions = np.arange(len(encoding.long))
    for _ in range(config.teaching_steps):
        batch = random.integers(len(choices), size=config.teaching_batch)
        written = choices[batch]
        chosen = encoding.spread[decisions, :, written]  # [networks, decisions, knots]
        active = encoder.space.active(written).astype(np.float32)
        step(*map(tf.constant, (encoding.features_of(written), rows[batch], active, chosen)))
    # What a decision must not read has had no gradient, and is not what sampling reads.
    kernel = generator["generator_kernel_0"]
    kernel.assign(kernel * earlier)


def _earlier(encoding: Encoding) -> np.ndarray:
    """1 where a decision reads: those before it and the condition [decisions, inputs, 1]."""
    decisions = len(encoding.long)
    number = np.concatenate(
        [np.repeat(np.arange(decisions), encoding.knots), np.full(CONDITION_KNOTS, -1)]
    )
    return (number[None, :, None] < np.arange(decisions)[:, None, None]).astype(np.float32)


# --- algorithm 1 --------------------------------------------------------------------------------


def _play(
    encoder: Surrogate,
    generator: Mapping[str, Any],
    choices: Choices,
    conditions: np.ndarray,
    config: NaganConfig,
    seed: int,
) -> None:
    """Algorithm 1: D, G and the frozen encoder."""
    encoding = encoder.encoding
    decisions = len(encoding.long)
    frozen = {k: tf.constant(v) for k, v in encoder.state().items() if v.dtype == np.float32}
    discriminator = {
        name: tf.Variable(value) for name, value in _initial_discriminator(encoder, seed).items()
    }
    directions = [tf.Variable(value) for value in _initial_directions(discriminator, seed)]
    g_variables, d_variables = list(generator.values()), list(discriminator.values())
    g_optimizer = _optimizer(config.generator_rate, config.steps, g_variables, beta_1=0.5)
    d_optimizer = _optimizer(config.discriminator_rate, config.steps, d_variables, beta_1=0.5)
    cumulated = tf.constant(np.cumsum(encoding.spread, axis=2)[:, :, :-1])
    readings = tf.constant(encoding.rows)
    # What networks read, on average, of a knot [decisions, knots, knots].
    expected = tf.constant(np.einsum("dkc,dcr->dkr", encoding.spread, encoding.rows))

    def write(decision, scores, gumbel, uniform):  # type: ignore[no-untyped-def]
        """The row of a drawn choice, with the gradient of the knots' shares [networks, knots]."""
        soft = tf.nn.softmax((scores + gumbel) / config.temperature, axis=1)
        soft = soft @ expected[decision]
        if not config.straight_through:
            return soft
        knot = tf.argmax(scores + gumbel, axis=1)
        passed = tf.gather(cumulated[decision], knot) < uniform[:, None]
        choice = tf.reduce_sum(tf.cast(passed, tf.int32), axis=1)
        return soft + tf.stop_gradient(tf.gather(readings[decision], choice) - soft)

    def generate(c, gumbel, uniform):  # type: ignore[no-untyped-def]
        """Features of drawn networks, and the entropy of G's choices along them, in nats."""
        row = condition_row(tf, c)
        rows, activities, entropy = [], [], 0.0
        for decision in range(decisions):
            scores = logits(tf, encoding, generator, decision, row, rows)
            shares = tf.nn.softmax(scores, axis=1) @ encoding.spread[decision]
            own = -tf.reduce_sum(shares * tf.math.log(shares + _LEAST_SHARE), axis=1)
            activity = encoding.activity(tf, decision, rows, activities) * tf.ones_like(c)
            entropy += activity * own
            written = write(decision, scores, gumbel[:, decision], uniform[:, decision])
            rows.append(written * activity[:, None])
            activities.append(activity)
        return tf.concat(rows, axis=1), entropy

    def largest_singular_value(kernel, direction):  # type: ignore[no-untyped-def]
        """By a step of power iteration from the last one's (Miyato et al. 2018, algorithm 1)."""
        left = tf.stop_gradient(tf.linalg.l2_normalize(kernel @ direction))
        right = tf.stop_gradient(tf.linalg.l2_normalize(tf.transpose(kernel) @ left))
        direction.assign(right)
        return tf.reduce_sum(left * (kernel @ right))

    def discriminate(features):  # type: ignore[no-untyped-def]
        hidden = features
        for layer in range(LAYERS):
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
        return tf.reduce_sum(difference) / (half * decisions)

    def expected_distance(error, deviation):  # type: ignore[no-untyped-def]
        """Mean of a folded normal distribution."""
        share = error / (deviation + 1e-3)
        folded = np.sqrt(2.0 / np.pi) * tf.exp(-0.5 * tf.square(share))
        return deviation * folded + error * tf.math.erf(share / np.sqrt(2.0))

    def judged(logit, real):  # type: ignore[no-untyped-def]
        labels = tf.ones_like(logit) if real else tf.zeros_like(logit)
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logit))

    def missed(reconstructed, c):  # type: ignore[no-untyped-def]
        return config.condition_weight * tf.reduce_mean(tf.square(reconstructed - c))

    @tf.function(jit_compile=True)
    def iterate(real, real_c, gumbel, uniform):  # type: ignore[no-untyped-def]
        c = real_c
        if config.diversity_weight:  # two draws for each condition
            c = tf.tile(c[: config.batch_size // 2], [2])
        with tf.GradientTape() as g_tape:
            generated, entropy = generate(c, gumbel, uniform)
            with tf.GradientTape() as d_tape:  # V(D), ascended
                real_logit, real_back = discriminate(real)
                logit, back = discriminate(tf.stop_gradient(generated))
                d_loss = judged(real_logit, True) + judged(logit, False)
                d_loss += missed(real_back, real_c) + missed(back, c)
            gradients = d_tape.gradient(d_loss, d_variables)
            d_optimizer.apply_gradients(zip(gradients, d_variables, strict=True))
            logit, back = discriminate(generated)  # V(G), descended
            loss = config.adversarial_weight * (judged(logit, True) + missed(back, c))
            mean, scatter = moments(tf, frozen, generated)  # V(E), descended; E itself is fixed
            error = tf.clip_by_value(mean, 0.0, 1.0) - c
            distance = expected_distance(error, config.scatter_weight * scatter)
            shortfall = tf.nn.relu(config.least_entropy - entropy)
            distance += config.shortfall_weight * shortfall - config.entropy_weight * entropy
            loss += tf.reduce_mean(distance)
            if config.diversity_weight:
                loss -= config.diversity_weight * apart(generated)
        gradients = g_tape.gradient(loss, g_variables)
        g_optimizer.apply_gradients(zip(gradients, g_variables, strict=True))

    random = seeds.stream(seed, "nagan", "training")
    features = encoding.features_of(choices)
    order, starts, ends = _bins(conditions)
    drawn = 2 * (config.batch_size // 2) if config.diversity_weight else config.batch_size
    for _ in range(config.steps):
        chosen = random.integers(len(starts), size=config.batch_size)
        rows = order[random.integers(starts[chosen], ends[chosen])]
        c = conditions[rows]
        if config.condition_noise:
            jitter = random.normal(0.0, config.condition_noise, len(c))
            c = np.clip(c + jitter, 0.0, 1.0).astype(np.float32)
        gumbel = random.gumbel(size=(drawn, decisions, encoding.knots)).astype(np.float32)
        uniform = random.random((drawn, decisions), np.float32)
        iterate(*map(tf.constant, (features[rows], c, gumbel, uniform)))


def _initial_generator(encoding: Encoding, config: NaganConfig, seed: int) -> dict[str, np.ndarray]:
    random = seeds.stream(seed, "nagan", "generator")
    decisions = len(encoding.long)
    inputs = encoding.features_count + CONDITION_KNOTS
    sizes = (inputs, config.units, config.units, encoding.knots)
    state = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        # A row of knots sums to 1: half the decisions' rows, on average, and the condition's.
        fan_in = decisions / 2 + 1 if layer == 0 else inputs
        kernel = random.normal(0.0, np.sqrt(2.0 / fan_in), (decisions, inputs, outputs))
        if layer == 0:
            kernel = kernel * _earlier(encoding)
        elif layer == LAYERS - 1:
            kernel = np.zeros_like(kernel)  # every knot is as likely at first
        state[f"generator_kernel_{layer}"] = kernel.astype(np.float32)
        state[f"generator_bias_{layer}"] = np.zeros((decisions, outputs), np.float32)
    return state


def _initial_discriminator(encoder: Surrogate, seed: int) -> dict[str, np.ndarray]:
    """D's first layers are those of the encoder's first member (section 3.1)."""
    taught = encoder.state()
    state = {}
    for layer in range(LAYERS - 1):
        state[f"kernel_{layer}"] = taught[f"kernel_{layer}"][0]
        state[f"bias_{layer}"] = taught[f"bias_{layer}"][0, 0]
    inputs = state[f"kernel_{LAYERS - 2}"].shape[1]
    head = seeds.stream(seed, "nagan", "discriminator").normal(0.0, inputs**-0.5, (inputs, 2))
    state[f"kernel_{LAYERS - 1}"] = head.astype(np.float32)
    state[f"bias_{LAYERS - 1}"] = np.zeros(2, np.float32)
    return state


def _initial_directions(discriminator: Mapping[str, np.ndarray], seed: int) -> list[np.ndarray]:
    """Where the power iteration of each of D's kernels starts [out, 1], by layer."""
    random = seeds.stream(seed, "nagan", "spectral norm")
    widths = [discriminator[f"kernel_{layer}"].shape[1] for layer in range(LAYERS)]
    return [random.normal(size=(width, 1)).astype(np.float32) for width in widths]


def _bins(conditions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Records by condition in bins of equal width.

    Returns:
      Rows of the records in the order of their bins, and where each bin that is not empty starts
      and ends in it.
    """
    number = np.minimum((conditions * _CONDITION_BINS).astype(int), _CONDITION_BINS - 1)
    _, starts = np.unique(np.sort(number), return_index=True)
    return np.argsort(number, kind="stable"), starts, np.append(starts[1:], len(number))
