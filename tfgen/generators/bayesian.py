"""Bayesian optimisation: the Gaussian process of KerasTuner's BayesianOptimizationOracle."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from typing import Any

import numpy as np

from tfgen import seeds
from tfgen.cost.budget import Budget
from tfgen.evidence.gaussian_process import one_thread
from tfgen.generators.base import Evidence, Found
from tfgen.generators.searching import Floats, Run, crossover, extra, population_size
from tfgen.space.search_space import Choices, Decision, SearchSpace, Value

_METRIC = "metric"
_MAX_SEED = 2**31
_REFIT_GROWTH = 1.1  # times as many trainings as at the last fit of the kernel


@dataclasses.dataclass(frozen=True)
class BayesianConfig:
    """How the oracle is asked.

    Attributes:
      initial: networks drawn at random before the first fit; the oracle's own default is three
        times the number of decisions.
      batch: networks trained at a time.
      beta: how many standard deviations a candidate's bound lies above its mean; the oracle's own.
      max_observations: trainings that the process is fitted to, the best and the latest of all: a
        fit takes time and memory of the cube and the square of their number.
      candidates: networks among which the bound is maximised.
    """

    initial: int = 32
    batch: int = 8
    beta: float = 2.6
    max_observations: int = 256
    candidates: int = 1024

    def __post_init__(self) -> None:
        if min(self.initial, self.batch, self.max_observations, self.candidates) < 1:
            raise ValueError(f"numbers of networks must be at least 1: {self}")
        if not self.beta >= 0:
            raise ValueError(f"beta must be at least 0: {self}")


class Bayesian:
    """NAGAN paper, section 5.2: Bayesian optimisation, the constraint in the target function.

    The oracle keeps the trials, fits its Gaussian process (Matern kernel, nu 2.5) and hallucinates
    a pessimistic result for networks in training, so that a batch's networks differ. Costs are
    known before a training, so the constraint needs no penalty that the process would have to
    learn: the bound is minus infinity over a limit. Departures from the oracle:

    * It maximises the bound by 50 runs of L-BFGS-B over a box and rounds: 3.5 s a trial at 100
      trials, 6.5 s at 300, 22 s at 800 on one core for the nine decisions of an MLP. Here the bound
      is taken at candidates within the limits: draws of the space, and offspring of the best.
    * The kernel has a length for each decision and a noise of its own, which the oracle fixes at
      1e-4: two trainings of one network differ by far more.
    * Metrics worse than the median by more than the best is better are told as that much worse: a
      few failed trainings would take all of the process's scale.
    * It is fitted to `max_observations` trainings at most, its kernel's lengths and noise only when
      a tenth more have ended than at the last time: after every batch that took most of a search.
    """

    name = "bayesian"
    needs = frozenset({"evaluate"})
    config = BayesianConfig

    def search(
        self,
        evidence: Evidence,
        budget: Budget,
        max_evaluations: int,
        config: BayesianConfig,
        seed: int,
    ) -> Found:
        run = Run(self.name, evidence, budget, max_evaluations, seed)
        oracle = _oracle_class()(run.space, config, seeds.derive(seed, "oracle") % _MAX_SEED)
        start = run.draw(population_size(config.initial, max_evaluations))
        for choices, metric in zip(start, run.train(start), strict=True):
            oracle.tell(oracle.suggest(choices[None]), metric)
        while run.remaining:
            candidates = _candidates(run, config.candidates)
            trials: list[Any] = []
            rows: list[int] = []
            for _ in range(min(config.batch, run.remaining, len(candidates))):
                left = np.delete(candidates, rows, axis=0)
                trials.append(oracle.suggest(left))
                rows.append(int((candidates == oracle.suggested).all(axis=1).argmax()))
            if not trials:
                break  # the space is exhausted
            for trial, metric in zip(trials, run.train(candidates[rows]), strict=True):
                oracle.tell(trial, metric)
        return run.found()


def _candidates(run: Run, count: int) -> Choices:
    """Draws of the space, and mutants and crossings of the best, that may be trained."""
    best = run.choices[np.argsort(-run.metrics, kind="stable")[:32]]
    parents = best[run.random.integers(len(best), size=(2, count))]  # [2, count, decisions]
    near = run.space.mutate(parents[0], run.random)
    crossed = crossover(run.space, parents[0], parents[1], run.random)
    near = run.fresh(np.concatenate([near, run.space.mutate(crossed, run.random)]))[: count // 2]
    return np.concatenate([near, run.draw(count - len(near), near)])


def _keras_tuner() -> Any:
    """KerasTuner, which brings a Keras of its own: the project's choice is made before that."""
    from tfgen.nets import keras_compat

    with keras_compat.quiet():
        return extra("keras_tuner")


def _value(decision: Decision, choice: int) -> Value:
    """What the oracle calls a choice."""
    return decision.values[choice] if _is_scale(decision) else choice


def _is_scale(decision: Decision) -> bool:
    """Whether the values are all integers between two, by logarithm: what `Int` can express."""
    first, last = decision.values[0], decision.values[-1]
    if decision.sampling != "log_uniform" or not isinstance(first, int):
        return False
    return decision.values == tuple(range(first, int(last) + 1))


def _hyperparameters(space: SearchSpace) -> Any:
    """The space as KerasTuner's hyperparameters, conditions included."""
    hyperparameters = _keras_tuner().HyperParameters()
    for decision in space.decisions:
        with contextlib.ExitStack() as scopes:
            ancestors = []
            when = decision.when
            while when is not None:  # conditions look back, so this ends
                parent = space.decisions[space.index[when.decision]]
                allowed = [_value(parent, parent.values.index(v)) for v in when.values]
                ancestors.append((parent.name, allowed))
                when = parent.when
            for name, allowed in reversed(ancestors):
                scopes.enter_context(hyperparameters.conditional_scope(name, allowed))
            if _is_scale(decision):
                first, last = decision.values[0], decision.values[-1]
                hyperparameters.Int(decision.name, first, last, sampling="log")
            else:
                hyperparameters.Choice(decision.name, list(range(len(decision.values))))
    return hyperparameters


@functools.cache
def _oracle_class() -> Any:
    """The oracle's subclass, made when KerasTuner is needed: importing it takes seconds."""
    keras_tuner = _keras_tuner()
    process = extra("sklearn.gaussian_process")
    exceptions = extra("sklearn.exceptions")

    class Oracle(keras_tuner.oracles.BayesianOptimizationOracle):
        """The oracle, asked for the best of given candidates.

        Attributes:
          suggested: the candidate of the last suggestion [decisions].
        """

        def __init__(self, space: SearchSpace, config: BayesianConfig, seed: int):
            super().__init__(
                objective=keras_tuner.Objective(_METRIC, "max"),
                max_trials=None,
                hyperparameters=_hyperparameters(space),
                allow_new_entries=False,
                beta=config.beta,
                seed=seed,
            )
            self.verbose = 0
            self._space = space
            self._config = config
            self._candidates: Choices = np.zeros((0, len(space.decisions)), np.int64)
            self._refit_at = 0.0  # trainings that must have ended
            # The position of every choice in 0..1, as the oracle has it [decisions][choices].
            self._positions = [
                np.array([hp.value_to_prob(_value(d, c)) for c in range(len(d.values))])
                for hp, d in zip(self.hyperparameters.space, space.decisions, strict=True)
            ]
            self.suggested = self._candidates

        def suggest(self, candidates: Choices) -> Any:
            """A new trial of the candidate with the largest bound."""
            self._candidates = candidates
            with one_thread():
                return self.create_trial(f"worker_{len(self.ongoing_trials)}")

        def tell(self, trial: Any, metric: float) -> None:
            """Ends a trial with its result."""
            self.update_trial(trial.trial_id, {_METRIC: float(metric)})
            trial.status = "COMPLETED"
            self.end_trial(trial)

        def populate_space(self, trial_id: str) -> dict[str, Any]:
            row = 0
            if len(self._candidates) > 1:
                self._fit()
                mean, deviation = self.gpr.predict(self._vectors(), return_std=True)
                row = int((mean - self.beta * deviation).argmin())  # of the negative metric
            self.suggested = self._candidates[row]
            active = self._space.active(self.suggested[None])[0]
            values = {
                d.name: _value(d, int(c))
                for d, c, on in zip(self._space.decisions, self.suggested, active, strict=True)
                if on
            }
            return {"status": "RUNNING", "values": values}

        def _fit(self) -> None:
            """Fits lengths and noise where it is time, on real results; else the process only."""
            x, y = self._vectorize_trials()
            ended = len(self.trials) - len(self.ongoing_trials)
            refit = ended >= self._refit_at and not self.ongoing_trials
            self.gpr.optimizer = "fmin_l_bfgs_b" if refit else None
            if refit:
                self._refit_at = _REFIT_GROWTH * ended
            with warnings.catch_warnings():
                # A decision that does not matter has a length at its bound.
                warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
                self.gpr.fit(x, y)
            self.gpr.kernel = self.gpr.kernel_  # where the next fit starts

        def _vectors(self) -> Floats:
            # An inactive decision is at its first choice, as the oracle has it too.
            columns = zip(self._positions, self._candidates.T, strict=True)
            return np.stack([positions[column] for positions, column in columns], axis=1)

        def _vectorize_trials(self) -> tuple[Floats, Floats]:
            everything = self.trials
            ended = [t for t in everything.values() if t.status == "COMPLETED"]
            latest = ended[-(self._config.max_observations // 2) :]
            others = sorted(ended[: -len(latest)], key=lambda t: -t.score)
            kept = others[: self._config.max_observations - len(latest)] + latest
            kept += self.ongoing_trials.values()
            self.trials = {trial.trial_id: trial for trial in kept}
            try:
                x, y = super()._vectorize_trials()
            finally:
                self.trials = everything
            finite = y[np.isfinite(y)]  # others diverged
            worst = 2 * np.median(finite) - finite.min() if len(finite) else 0.0
            return x, np.minimum(y, worst)

        def _make_gpr(self) -> Any:
            lengths = np.ones(len(self.hyperparameters.space))
            matern = process.kernels.Matern(lengths, (0.05, 50.0), nu=2.5)
            noise = process.kernels.WhiteKernel(0.1, (1e-4, 1.0))
            return process.GaussianProcessRegressor(
                matern + noise, normalize_y=True, n_restarts_optimizer=0, random_state=self.seed
            )

        def save(self) -> None:
            """Writes no file: a stopped search asks for its trainings again, which are stored."""

        def _save_trial(self, trial: Any) -> None:
            """Writes no file."""

    return Oracle
