"""ProfiledLatency: from a device's table to the latency of a space's networks, with an interval.

A latency is a sum over ops of what each kernel does times what that costs on the device (see
`latency_features`). The costs, none below 0, are fitted to all that was timed, ops and whole
networks together: ops tell the kernels apart, networks say what ops cost in company. By how much
networks then exceed what is expected is read off some that were chosen for their latency.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import errors
from tfgen.cost.latency import Floats, Interval
from tfgen.cost.latency_features import CALL, Features, features, stack
from tfgen.cost.latency_table import LatencyTable, NetworkTiming
from tfgen.space import bits
from tfgen.space.layers import LayerSlots, slots_of
from tfgen.space.lowering import ACTIVATION_BITS, lower_batch
from tfgen.space.search_space import Choices, SearchSpace

FEWEST_NETWORKS = 20  # timed whole, to fit to
_ENOUGH = 50  # quiet ones, so that doubtful ones are left out
_OP_WEIGHT = 0.2  # of an op's relative error, where a network's counts 1
_RIDGE = 0.05  # pulls costs that the timings do not tell to 0
_FOLDS = 10
_CHUNK = 4096  # architectures whose columns stay in the processor's cache
_CERTAINTY = 0.9  # that a margin holds for as many networks as it says


class ProfiledLatency:
    """Predicts latencies on a device that was profiled.

    Attributes:
      table: what was timed.
      space: whose networks are predicted.
      activation_bits: of every network; 32 for networks of float32.
      io: "float", or "int8" for integer input and output.
    """

    def __init__(
        self,
        table: LatencyTable,
        space: SearchSpace,
        activation_bits: int = ACTIVATION_BITS,
        io: str = "float",
    ):
        """Fits to the table's timings.

        Raises:
          UsageError: the table has too few of this space.
        """
        self.table = table
        self.space = space
        self.activation_bits = activation_bits
        self.io = io
        if space.bit_policy == bits.SIMULATED:
            raise errors.UsageError(f"networks of {space.name} come to no file: nothing to predict")
        self._policy = bits.load(space.bit_policy)
        random = self._networks("random")
        if len(random) < FEWEST_NETWORKS:
            raise errors.UsageError(
                f"device {self.device!r} was not profiled for {self._kind}: it has {len(random)} "
                f"of its networks, {FEWEST_NETWORKS} are needed; run profile_device "
                f"--device={self.device} --space={space.name}"
            )
        ops = [t for t in table.ops if t.activation_bits == activation_bits]
        parts = [features(slots_of(t.layers), self._policy, "int8") for t in ops]
        timed = stack([*parts, self._features(random)])
        self._names = timed.names
        self._timings = _Timings(
            timed.values,
            np.array([*(t.latency_ms for t in ops), *(t.latency_ms for t in random)]),
            np.repeat([False, True], [len(ops), len(random)]),
        )
        self._model = _fit(self._timings)
        used = set(self._model.used.tolist())
        self._free = frozenset(n for i, n in enumerate(self._names) if i not in used)

    @property
    def device(self) -> str:
        return self.table.device.name

    @property
    def call_ms(self) -> float:
        """What one run of the interpreter takes beside its ops."""
        costs = dict(zip(self._model.used.tolist(), self._model.costs.tolist(), strict=True))
        return float(costs.get(self._names.index(CALL), 0.0))

    @functools.cached_property
    def outside_ms(self) -> float:
        """What one inference takes beside its layers: the call, and the ends of the file."""
        smallest = self.space.canonical(np.zeros(len(self.space.decisions), np.int64))
        layers = self.layers_ms(lower_batch(self.space, smallest, self.activation_bits))
        return float(self.expected_ms(smallest)[0] - layers[0])

    def layers_ms(self, slots: Sequence[LayerSlots]) -> Floats:
        """What these layers take, without what is outside them [architectures]."""
        found = features(slots, self._policy, "int8", without=self._free)  # without ends
        used = found.columns(self._names)[:, self._model.used]
        return np.asarray(used @ self._model.costs - self.call_ms)

    def layer_rows(self, slots: Sequence[LayerSlots]) -> Floats:
        """What these layers add to what a latency is predicted by.

        Returns:
          The features that cost anything, without what is outside layers, and how many layers have
          a kernel that nobody timed [architectures, columns].
        """
        found = features(slots, self._policy, "int8", without=self._free)  # without ends
        used = found.columns(self._names)[:, self._model.used]
        used = used - (np.array(self._names)[self._model.used] == CALL)
        return np.concatenate([used, ~found.known(self._names)[:, None]], axis=1)

    @functools.cached_property
    def outside_row(self) -> Floats:
        """What a network has beside its layers, as `layer_rows` [columns]."""
        smallest = self.space.canonical(np.zeros(len(self.space.decisions), np.int64))
        slots = lower_batch(self.space, smallest, self.activation_bits)
        found = features(slots, self._policy, self.io, without=self._free)
        whole = np.append(found.columns(self._names)[0, self._model.used], 0.0)
        layers = self.layer_rows(slots)[0]
        layers[-1] = 0.0
        return np.asarray(whole - layers)

    def interval(self, xp: Any, rows: Any, confidence: float) -> tuple[Any, Any]:
        """What `predict` tells, by sums of `layer_rows` and `outside_row`.

        Args:
          xp: NumPy or `nets.tensors`.
          rows: [architectures, columns].
          confidence: of the upper ends.

        Returns:
          Expected latencies and upper ends [architectures].
        """
        margin = max(self.margin(confidence), 0.0)
        ms, scale = self._model.predict_used(xp, rows[:, :-1])
        return ms, xp.where(rows[:, -1] < 0.5, ms * xp.exp(margin * scale), np.inf)

    @property
    def relative_error(self) -> float:
        """Standard deviation of a random network's relative error, as a share."""
        return math.sqrt(self._model.variance)

    @property
    def remark(self) -> str:
        if len(self._networks("selected")) < FEWEST_NETWORKS:
            return (
                f"intervals on {self.device!r} are of random networks, not of chosen ones, which "
                "may take longer"
            )
        if self.io not in {t.io for t in self.table.networks}:
            return f"no network with {self.io} ends was timed on {self.device!r}"
        return ""

    @property
    def _kind(self) -> str:
        return f"{self.space.name} with {self.activation_bits}-bit activations"

    def predict(self, choices: Choices, confidence: float) -> Interval:
        """Latencies of canonical choices [architectures, decisions].

        A network with a kernel that was not timed has no upper end: infinity.

        Raises:
          UsageError: too few networks were timed to tell an interval of this confidence.
        """
        ms, scale = self._expected(choices)
        margin = max(self.margin(confidence), 0.0)
        sure = np.isfinite(scale)
        return Interval(ms, np.where(sure, ms * np.exp(margin * np.where(sure, scale, 0)), np.inf))

    def expected_ms(self, choices: Choices) -> Floats:
        """The expected latencies alone [architectures]."""
        return self._expected(choices)[0]

    def margin(self, confidence: float) -> float:
        """By how much, in units of the model's own uncertainty, networks exceed what is expected.

        Split-conformal, of networks that were chosen for their latency (of random ones, each
        predicted without itself, where there are too few). An order statistic that, with a
        probability of 0.9 over what was timed, covers at least `confidence` of networks: the plain
        conformal quantile covers it on average over tables, which half of all tables do not reach.

        Raises:
          UsageError: too few networks were timed.
        """
        residuals = self._chosen_residuals
        if len(residuals) < FEWEST_NETWORKS:
            residuals = self._random_residuals
        rank = _rank(len(residuals), confidence)
        if rank is not None:
            return float(np.sort(residuals)[rank])
        most = len(residuals)
        raise errors.UsageError(
            f"device {self.device!r} has {most} networks of {self._kind}: they tell intervals up "
            f"to a confidence of {highest_confidence(most):g}, {confidence:g} is asked; "
            "run profile_device again with more --networks, or lower --confidence"
        )

    @functools.cached_property
    def _chosen_residuals(self) -> Floats:
        chosen = self._networks("selected")
        if not chosen:
            return np.empty(0)
        ms, scale = self._model.predict(self._features(chosen).columns(self._names))
        return _residuals(np.array([t.latency_ms for t in chosen]), ms, scale)

    @functools.cached_property
    def _random_residuals(self) -> Floats:
        """Of each random network, from a fit without it."""
        networks = np.flatnonzero(self._timings.whole)
        found = []
        for fold in range(_FOLDS):
            held = np.isin(np.arange(len(self._timings.ms)), networks[fold::_FOLDS])
            model, left_out = _fit(self._timings.rows(~held)), self._timings.rows(held)
            found.append(_residuals(left_out.ms, *model.predict(left_out.features)))
        return np.concatenate(found)

    def _networks(self, origin: str) -> list[NetworkTiming]:
        """Timed networks of this space and width; those with integer ends last."""
        found = self.table.timed(self.space, self.activation_bits, origin)
        # Times from a busy hour count only where there are few others.
        quiet = [timing for timing in found if timing.quiet_windows > 0]
        return sorted(quiet if len(quiet) >= _ENOUGH else found, key=lambda timing: timing.io)

    def _features(self, networks: Sequence[NetworkTiming]) -> Features:
        """Of timed networks, those with integer ends last."""
        parts = []
        for io in ("float", "int8"):
            choices = self.space.choices([t.architecture for t in networks if t.io == io])
            if len(choices):
                slots = lower_batch(self.space, choices, self.activation_bits)
                parts.append(features(slots, self._policy, io))
        return stack(parts)

    def _expected(self, choices: Choices) -> tuple[Floats, Floats]:
        """Expected latencies and the standard deviation of their logarithm [architectures]."""
        starts = range(0, max(len(choices), 1), _CHUNK)
        told = [self._told(choices[at : at + _CHUNK]) for at in starts]
        return np.concatenate([ms for ms, _ in told]), np.concatenate([sd for _, sd in told])

    def _told(self, choices: Choices) -> tuple[Floats, Floats]:
        """The same, of a few architectures; a network with a kernel that nobody timed is unsure."""
        slots = lower_batch(self.space, choices, self.activation_bits)
        found = features(slots, self._policy, self.io, without=self._free)
        ms, scale = self._model.predict(found.columns(self._names))
        return ms, np.where(found.known(self._names), scale, np.inf)


@dataclasses.dataclass(frozen=True)
class _Timings:
    """Files that were timed: what they do [files, features], their latency [files].

    Attributes:
      whole: which of them are networks; the others are ops [files].
    """

    features: Floats
    ms: Floats
    whole: npt.NDArray[np.bool_]

    def rows(self, taken: npt.NDArray[np.bool_]) -> _Timings:
        return _Timings(self.features[taken], self.ms[taken], self.whole[taken])


@dataclasses.dataclass(frozen=True)
class _Model:
    """A linear model of latency.

    Attributes:
      used: the features that cost anything [used].
      costs: milliseconds of one unit of each [used].
      covariance: of the costs [used, used].
      variance: of the relative errors of networks.
    """

    used: npt.NDArray[np.int64]
    costs: Floats
    covariance: Floats
    variance: float

    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        """Expected latency and standard deviation of its logarithm, each [networks]."""
        ms, scale = self.predict_used(np, rows[:, self.used])
        return np.asarray(ms), np.asarray(scale)

    def predict_used(self, xp: Any, rows: Any) -> tuple[Any, Any]:
        """The same of the features that cost anything [networks, used]."""
        ms = xp.matmul(rows, self.costs[:, None])[:, 0]
        relative = rows / ms[:, None]
        unsure = xp.sum(xp.matmul(relative, self.covariance) * relative, axis=1)
        return ms, xp.sqrt(self.variance + unsure)


def _fit(timings: _Timings) -> _Model:
    """Non-negative least squares of relative errors."""
    from scipy import optimize

    relative = timings.features / timings.ms[:, None]
    unit = np.sqrt((relative**2).mean(axis=0))  # of each feature: then one ridge fits all
    unit = np.where(unit > 0, unit, 1.0)
    weights = np.where(timings.whole, 1.0, _OP_WEIGHT)
    design = relative / unit * weights[:, None]  # [files, features]
    ridge = _RIDGE * np.eye(design.shape[1])
    wanted = np.concatenate([weights, np.zeros(len(ridge))])
    costs, _ = optimize.nnls(np.concatenate([design, ridge]), wanted)
    used = np.flatnonzero(costs)
    errors_ = (design @ costs)[timings.whole] - 1.0
    # Ops tell most costs, so that networks lose fewer degrees of freedom than there are costs.
    freedom = max(timings.whole.sum() - len(used) / 2, timings.whole.sum() / 4)
    variance = float((errors_**2).sum() / freedom)
    precision = (design.T @ design + ridge @ ridge)[np.ix_(used, used)]
    covariance = variance * np.linalg.inv(precision) / np.outer(unit[used], unit[used])
    return _Model(used, costs[used] / unit[used], covariance, variance)


def _residuals(measured_ms: Floats, ms: Floats, scale: Floats) -> Floats:
    return np.asarray(np.log(measured_ms / ms) / scale)


def highest_confidence(networks: int) -> float:
    """The most that so many networks tell, rounded down: the largest residual covers it."""
    return math.floor(math.pow(1.0 - _CERTAINTY, 1.0 / networks) * 1000) / 1000


def _rank(count: int, confidence: float) -> int | None:
    """The least residual, counted from 0, that bounds enough; None where no residual does.

    The share of networks below the residual of rank r (from 0) of n is Beta(r + 1, n - r): it is at
    least c with the probability that of n draws with chance c at most r succeed.
    """
    logs = [math.lgamma(k + 1) for k in range(count + 1)]
    below = 0.0
    for rank in range(count):
        log = logs[count] - logs[rank] - logs[count - rank]
        log += rank * math.log(confidence) + (count - rank) * math.log1p(-confidence)
        below += math.exp(log)
        if below >= _CERTAINTY:
            return rank
    return None
