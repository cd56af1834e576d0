"""The encoder: architecture -> normalised performance, with calibrated intervals.

NAGAN's encoder (section 3.1) is a regression. Ours predicts, beside the mean, how much a training
scatters around it: a width of 1 may die or live, and no mean tells that. A small ensemble of
networks, each with a mean and a scale, is fitted by the Gaussian likelihood; its scale is then
calibrated on held-out records by split-conformal prediction (Papadopoulos et al. 2002; Lei et al.
2018), which is valid whatever the residuals' distribution.

Prediction is NumPy alone; fitting imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import seeds
from tfgen.cost.cost_model import CONFIDENCE
from tfgen.cost.metrics import PerformanceScale
from tfgen.evidence.record import Record
from tfgen.space.encoding import Encoding
from tfgen.space.search_space import Choices, SearchSpace

_QUANTILES = np.linspace(0.0, 1.0, 1001)
_DRAWN = 100  # of the quantiles, for a mean over them
_PARTS = "parts"
_KNOWN = "known"
_OWN_DECAY = 50.0  # of what features have of their own, beside their parts
_LAYERS = 3
# Scores below this many scale lengths under the worst regular record tell nothing more.
_FLOOR = -0.1
_JOINT = 1_024  # combinations of choices that are looked up at once
_LOG_SCALE_CENTRE, _LOG_SCALE_REACH = -3.0, 3.0  # standard deviations of 0.0025 to 1


@dataclasses.dataclass(frozen=True)
class SurrogateConfig:
    """How the encoder is fitted.

    Attributes:
      members: networks in the ensemble.
      units: of each of the two hidden layers.
      steps: gradient steps.
      batch_size: records a step.
      learning_rate: peak of Adam's cosine schedule.
      weight_decay: decoupled, per step and learning rate.
      calibration_share: part of the records that is held out for the intervals.
    """

    members: int = 4
    units: int = 128
    steps: int = 6000
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    calibration_share: float = 0.2

    def __post_init__(self) -> None:
        if min(self.members, self.units, self.steps, self.batch_size) < 1:
            raise ValueError(f"surrogate needs positive sizes: {self}")
        if not 0 < self.calibration_share < 1:
            raise ValueError(f"calibration_share must lie between 0 and 1: {self}")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What is expected of architectures, each field [architectures].

    Attributes:
      performance: normalised, the encoder's mean; may leave 0..1 a little.
      scatter: the encoder's standard deviation of one training, in normalised performance.
      metric: the mean in the task's metric.
      low: lower end of the interval for the delivered file's metric.
      high: its upper end.
    """

    performance: np.ndarray
    scatter: np.ndarray
    metric: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True)
class Known:
    """Records that an encoder comes with.

    Attributes:
      choices: their networks, canonical [records, decisions].
      metrics: what they scored [records].
      unseen: whether the encoder has not learned from them [records].
    """

    choices: Choices
    metrics: np.ndarray
    unseen: np.ndarray

    def state(self) -> dict[str, np.ndarray]:
        """As plain arrays, the choices as narrow as they fit."""
        narrow = np.min_scalar_type(int(self.choices.max(initial=0)))
        return {
            _KNOWN: self.choices.astype(narrow),
            f"{_KNOWN}_metrics": np.asarray(self.metrics, np.float64),
            f"{_KNOWN}_unseen": self.unseen,
        }


class Surrogate:
    """A fitted encoder."""

    def __init__(self, space: SearchSpace, state: Mapping[str, np.ndarray]):
        self.space = space
        self.encoding = Encoding(space)
        self._state = dict(state)
        low, high = (float(v) for v in state["scale"])
        self.scale = PerformanceScale(low, high)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `Surrogate(space, state)` needs, as plain arrays."""
        return dict(self._state)

    def predict(self, choices: Choices, confidence: float = CONFIDENCE) -> Prediction:
        """Predicts canonical choices [architectures, decisions].

        Args:
          choices: what to predict.
          confidence: with this probability a delivered file's metric is above `low`, and with this
            probability it is below `high`; each end for itself.
        """
        return self.predict_in(np, choices, confidence)

    def predict_in(
        self, xp: Any, choices: Any, confidence: float, dtype: npt.DTypeLike = np.float32
    ) -> Prediction:
        """The same in NumPy or in a graph.

        Args:
          xp: NumPy or `nets.tensors`.
          choices: canonical, int64 [architectures, decisions].
          confidence: see `predict`.
          dtype: of all sums; in float64 two libraries rank alike.
        """
        active = xp.astype(self.space.active(choices, xp), xp.int64)
        above = {n: v for n, v in self._state.items() if n.startswith(("kernel_", "bias_"))}
        del above["kernel_0"]
        state = {name: value.astype(dtype, copy=False) for name, value in above.items()}
        hidden: Any = 0.0
        for decisions, read in self._first_layer:
            entry = xp.zeros_like(choices[:, 0])
            for decision in decisions:
                own = (choices[:, decision] + 1) * active[:, decision]  # 0: not active
                entry = entry * (len(self.space.decisions[decision].values) + 1) + own
            table = xp.asarray(read.astype(dtype, copy=False))
            hidden = hidden + xp.take(table, entry, axis=0)
        members = len(self._state["kernel_0"])
        hidden = xp.stack(xp.split(hidden, members, axis=1), axis=0)  # [members, n, units]
        mean, scatter = _mixture(xp, *_above(xp, state, hidden + state["bias_0"]))
        mean, scatter = xp.astype(mean, xp.float64), xp.astype(scatter, xp.float64)
        below, above = self._ends(confidence)
        low, span = self.scale.low, self.scale.high - self.scale.low
        metric, least, most = (low + (mean + end * scatter) * span for end in (0.0, below, above))
        return Prediction(mean, scatter, metric, least, most)

    @functools.cached_property
    def _first_layer(self) -> list[tuple[list[int], np.ndarray]]:
        """What choices add to the first layer's sums: many times fewer numbers than features.

        Returns:
          Decisions side by side, and a row for each combination of their choices, of which the
          first one stands for a decision that is not active [combinations, members * units].
        """
        kernel, knots = self._state["kernel_0"], self.encoding.knots
        tables: list[tuple[list[int], np.ndarray]] = []
        for number, read in enumerate(self.encoding.rows):
            values = len(self.space.decisions[number].values)
            own = kernel[:, number * knots :][:, :knots]
            rows = np.concatenate([np.zeros_like(read[:1]), read[:values]])
            table = np.einsum("ck,mku->cmu", rows, own).reshape(len(rows), -1)
            if tables and len(tables[-1][1]) * len(table) <= _JOINT:
                decisions, before = tables.pop()
                both = before[:, None] + table[None]
                tables.append(([*decisions, number], both.reshape(-1, table.shape[1])))
            else:
                tables.append(([number], table))
        return tables

    def _ends(self, confidence: float) -> tuple[float, float]:
        """Of an interval, in scatters."""
        pairs = zip(ends(self._state["residuals"], confidence), self.gap(confidence), strict=True)
        below, above = (end + gap for end, gap in pairs)
        return below, above

    def expected_distance(self, choices: Choices, conditions: np.ndarray) -> np.ndarray:
        """What |p - c| of one training is expected to be: eq. 1 of the NAGAN paper, honestly.

        The paper compares the encoder's mean with the condition, which a training that scatters
        around the mean cannot reach. Here p follows the encoder's mean, its scatter and the
        residuals of held-out records.

        Args:
          choices: canonical [architectures, decisions].
          conditions: c in 0..1 [architectures].
        """
        mean, scatter = moments(np, self._state, self.encoding.features_of(choices))
        residuals = self._state["residuals"][:: len(_QUANTILES) // _DRAWN]
        performance = np.clip(mean[:, None] + scatter[:, None] * residuals, 0.0, 1.0)
        return np.abs(performance - np.asarray(conditions)[:, None]).mean(axis=1)

    def gap(self, confidence: float) -> tuple[float, float]:
        """How far a file lies below and above its record, in scatters: at most 0 and at least 0."""
        below, above = np.quantile(self._state["gap"], [1 - confidence, confidence])
        return min(float(below), 0.0), max(float(above), 0.0)

    @property
    def floor(self) -> float:
        """The least metric that tells anything: how bad a failed training is says nothing."""
        return float(self.scale.metric(np.array(_FLOOR)))

    @property
    def known(self) -> Known:
        """The records that it knows; older bundles have none."""
        if _KNOWN not in self._state:
            none = np.zeros(0)
            return Known(np.zeros((0, len(self.space.decisions)), np.int64), none, none > 0)
        return Known(
            self._state[_KNOWN].astype(np.int64),
            self._state[f"{_KNOWN}_metrics"],
            self._state[f"{_KNOWN}_unseen"],
        )

    def knowing(self, records: Sequence[Record]) -> Surrogate:
        """The same encoder, which knows of further records without having learned from them."""
        before = self.known
        choices = self.space.choices([record.architecture for record in records])
        known = Known(
            np.concatenate([before.choices, choices]),
            np.concatenate([before.metrics, [record.metric for record in records]]),
            np.concatenate([before.unseen, np.ones(len(records), np.bool_)]),
        )
        return Surrogate(self.space, {**self._state, **known.state()})

    def with_gap(self, gap: np.ndarray) -> Surrogate:
        """The same encoder, its intervals widened by the gaps between files and their records.

        Args:
          gap: delivered file on test less record on validation, each divided by the scatter that
            the encoder predicts for its network [networks].
        """
        return Surrogate(self.space, {**self._state, "gap": np.asarray(gap, np.float64)})


def moments(xp: Any, state: Mapping[str, Any], features: Any) -> tuple[Any, Any]:
    """Mean and standard deviation of the ensemble's mixture, both [architectures].

    Args:
      xp: NumPy or TensorFlow.
      state: the ensemble's kernels and biases.
      features: [architectures, features].
    """
    return _mixture(xp, *heads(xp, state, features))


def _mixture(xp: Any, means: Any, log_scales: Any) -> tuple[Any, Any]:
    """The same of what each member tells [members, architectures]."""
    members = int(means.shape[0])
    mean = xp.einsum("en->n", means) / members
    spread = xp.einsum("en->n", xp.square(means - mean)) / members
    noise = xp.einsum("en->n", xp.exp(2.0 * log_scales)) / members
    return mean, xp.sqrt(spread + noise)


def heads(xp: Any, state: Mapping[str, Any], features: Any) -> tuple[Any, Any]:
    """Each member's mean and log scale, both [members, architectures]."""
    # A kernel is [members, in, out], a bias [members, 1, out].
    return _above(xp, state, xp.matmul(features, state["kernel_0"]) + state["bias_0"])


def _above(xp: Any, state: Mapping[str, Any], hidden: Any) -> tuple[Any, Any]:
    """The same from the first layer's sums on [members, architectures, units]."""
    for layer in range(1, _LAYERS):
        hidden = xp.maximum(hidden, 0.0)
        hidden = xp.matmul(hidden, state[f"kernel_{layer}"]) + state[f"bias_{layer}"]
    # Bounded smoothly: a hard bound has no gradient and would hold a member where it started.
    return hidden[:, :, 0], _LOG_SCALE_CENTRE + _LOG_SCALE_REACH * xp.tanh(hidden[:, :, 1])


def fit(
    space: SearchSpace,
    records: Sequence[Record],
    scale: PerformanceScale,
    config: SurrogateConfig,
    seed: int,
) -> Surrogate:
    """Fits the ensemble to records and calibrates its intervals on the held-out part."""
    encoding = Encoding(space)
    choices = space.choices([r.architecture for r in records])
    features = encoding.features_of(choices)
    metrics = np.array([r.metric for r in records])
    # Clipped from below only: how bad a failed training is says nothing.
    targets = np.maximum((metrics - scale.low) / (scale.high - scale.low), _FLOOR)
    order = seeds.stream(seed, "surrogate", "split").permutation(len(records))
    held_out = order[: max(1, int(len(order) * config.calibration_share))]
    fitted = order[len(held_out) :]
    state = _train(features[fitted], targets[fitted].astype(np.float32), encoding, config, seed)
    mean, scatter = moments(np, state, features[held_out])
    residuals = (targets[held_out] - mean) / scatter
    state["residuals"] = conformal(residuals)
    state["scale"] = np.array([scale.low, scale.high])
    state["gap"] = np.zeros(1)
    unseen = np.isin(np.arange(len(records)), held_out)
    state |= Known(choices, metrics, unseen).state()
    return Surrogate(space, state)


def ends(residuals: np.ndarray, confidence: float) -> tuple[float, float]:
    """Lower and upper end of what `conformal` made, each for itself."""
    below, above = np.interp([1 - confidence, confidence], _QUANTILES, residuals)
    return float(below), float(above)


def conformal(residuals: np.ndarray) -> np.ndarray:
    """Quantiles of signed residuals, widened at both ends by the finite sample's correction."""
    count = len(residuals)
    ordered = np.sort(residuals)
    # Rank ceil((n + 1) q) above the median and its mirror image below it.
    upper = np.clip(np.ceil((count + 1) * _QUANTILES).astype(int) - 1, 0, count - 1)
    lower = np.clip(np.floor((count + 1) * _QUANTILES).astype(int) - 1, 0, count - 1)
    return np.where(_QUANTILES >= 0.5, ordered[upper], ordered[lower])


def _train(
    features: np.ndarray,
    targets: np.ndarray,
    encoding: Encoding,
    config: SurrogateConfig,
    seed: int,
) -> dict[str, np.ndarray]:
    """The ensemble's weights after Gaussian maximum likelihood.

    The first layer's kernel is one of the features' parts, if they have any, plus one of their own,
    which then begins at nothing and decays faster: 80 values of a decision are too many to learn
    one by one. What is common does not decay.

    Args:
      features: of the records [records, features].
      targets: their performance [records].
      encoding: of the space. Features that only pad rows to the length of the longest get no
        weights, and a bundle that packs them gets small.
      config: how.
      seed: of weights and batches.
    """
    from tfgen.nets.keras_compat import keras, tf

    random = seeds.stream(seed, "surrogate", "weights")
    sizes = [features.shape[1], config.units, config.units, 2]
    weights = {}
    parts = encoding.parts()
    if parts.shape[1]:
        shape = (config.members, parts.shape[1], config.units)
        common = random.normal(0.0, np.sqrt(2.0 / parts.shape[1]), shape).astype(np.float32)
        weights[_PARTS] = tf.Variable(common)
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        shape = (config.members, inputs, outputs)
        kernel = random.normal(0.0, np.sqrt(2.0 / inputs), shape).astype(np.float32)
        if not layer:
            # Where features have parts, what is their own begins at nothing.
            kernel *= (encoding.absent.ravel() == 0.0)[:, None] & (parts.shape[1] == 0)
        weights[f"kernel_{layer}"] = tf.Variable(kernel)
        weights[f"bias_{layer}"] = tf.Variable(np.zeros((config.members, 1, outputs), np.float32))
    variables = list(weights.values())
    schedule = keras.optimizers.schedules.CosineDecay(config.learning_rate, config.steps)
    optimizer = keras.optimizers.Adam(schedule)
    optimizer.build(variables)

    def whole() -> dict[str, Any]:
        """The weights as `heads` reads them."""
        own = dict(weights)
        if _PARTS in own:
            own["kernel_0"] = own["kernel_0"] + tf.linalg.matmul(parts, own.pop(_PARTS))
        return own

    x, y = tf.constant(features), tf.constant(targets)
    batches = seeds.stream(seed, "surrogate", "batches").integers(
        len(targets), size=(config.steps, config.batch_size), dtype=np.int32
    )

    @tf.function
    def step(rows):  # type: ignore[no-untyped-def]
        with tf.GradientTape() as tape:
            means, log_scales = heads(tf, whole(), tf.gather(x, rows))
            error = (tf.gather(y, rows) - means) * tf.exp(-log_scales)
            loss = tf.reduce_mean(tf.reduce_sum(log_scales + 0.5 * error * error, axis=0))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        decay = config.weight_decay * tf.cast(optimizer.learning_rate, tf.float32)
        for name, variable in weights.items():
            if name.startswith("kernel"):
                faster = _OWN_DECAY if name == "kernel_0" and _PARTS in weights else 1.0
                variable.assign(variable * (1.0 - faster * decay))
        return loss

    for rows in batches:
        step(tf.constant(rows))
    return {name: np.asarray(value) for name, value in whole().items()}
