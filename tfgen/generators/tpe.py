"""Tree-structured Parzen estimator: Optuna's TPESampler."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfgen import seeds
from tfgen.cost.budget import Budget
from tfgen.generators.base import Evidence, Found
from tfgen.generators.searching import Run, extra
from tfgen.space.search_space import Choices, Decision, SearchSpace

_MAX_SEED = 2**31
_ASKS = 8  # for each network wanted, before draws of the space make up for the rest


@dataclasses.dataclass(frozen=True)
class TpeConfig:
    """How the sampler is asked.

    Attributes:
      initial: networks drawn at random before the first estimate, at most a quarter of all.
      batch: networks trained at a time.
      candidates: draws of the good networks' density of which the likeliest is asked for.
    """

    initial: int = 32
    batch: int = 8
    candidates: int = 24

    def __post_init__(self) -> None:
        if min(self.initial, self.batch, self.candidates) < 1:
            raise ValueError(f"numbers of networks must be at least 1: {self}")


class Tpe:
    """Bergstra et al. 2011, as Optuna has it: multivariate, with a density for each active set.

    A network over a limit is told as a failed trial, which the densities leave out: they are fitted
    to trained networks alone, and the sampler is asked again. Networks in training count as bad
    ones (the constant liar), so that a batch's networks differ.
    """

    name = "tpe"
    needs = frozenset({"evaluate"})
    config = TpeConfig

    def search(
        self,
        evidence: Evidence,
        budget: Budget,
        max_evaluations: int,
        config: TpeConfig,
        seed: int,
    ) -> Found:
        run = Run(self.name, evidence, budget, max_evaluations, seed)
        with _quiet() as optuna:
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=1,
                n_ei_candidates=config.candidates,
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=seeds.derive(seed, "sampler") % _MAX_SEED,
            )
            study = optuna.create_study(direction="maximize", sampler=sampler)
            distributions = _distributions(run.space)
            start = run.draw(min(config.initial, max(max_evaluations // 4, 1)))
            for choices, metric in zip(start, run.train(start), strict=True):
                study.add_trial(_ended(run.space, distributions, choices, metric))
            while run.remaining:
                count = min(config.batch, run.remaining)
                asked: list[Any] = []
                batch: Choices = run.choices[:0]
                for _ in range(_ASKS * count):
                    trial = study.ask()
                    choices = _suggested(run.space, distributions, trial)
                    if len(run.fresh(choices, batch)):
                        asked.append(trial)
                        batch = np.concatenate([batch, choices])
                    else:
                        study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    if len(batch) == count:
                        break
                drawn = run.draw(count - len(batch), batch)
                if not len(batch) + len(drawn):
                    break  # the space is exhausted
                metrics = run.train(np.concatenate([batch, drawn]))
                for trial, metric in zip(asked, metrics, strict=False):
                    study.tell(trial, float(metric))
                for choices, metric in zip(drawn, metrics[len(batch) :], strict=True):
                    study.add_trial(_ended(run.space, distributions, choices, metric))
        return run.found()


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Optuna without its log of every trial and its warnings of experimental options."""
    optuna = extra("optuna")
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield optuna
    finally:
        optuna.logging.set_verbosity(verbosity)


def _first(decision: Decision) -> int:
    """The number of a decision's first choice: 1 where numbers are compared by logarithm."""
    return int(decision.ordinal and decision.sampling == "log_uniform")


def _distributions(space: SearchSpace) -> dict[str, Any]:
    """Name of a decision -> Optuna's distribution of the numbers of its choices."""
    distributions = extra("optuna").distributions
    found: dict[str, Any] = {}
    for decision in space.decisions:
        count, first = len(decision.values), _first(decision)
        if decision.ordinal:
            found[decision.name] = distributions.IntDistribution(
                first, first + count - 1, log=bool(first)
            )
        else:
            found[decision.name] = distributions.CategoricalDistribution(range(count))
    return found


def _suggested(space: SearchSpace, distributions: dict[str, Any], trial: Any) -> Choices:
    """The network of a trial: active decisions are asked for in turn [1, decisions]."""
    choices = np.zeros((1, len(space.decisions)), np.int64)
    for number, decision in enumerate(space.decisions):
        if not space.holds(decision.when, choices)[0]:
            continue
        if decision.ordinal:
            asked = distributions[decision.name]
            value = trial.suggest_int(decision.name, asked.low, asked.high, log=asked.log)
        else:
            value = trial.suggest_categorical(decision.name, range(len(decision.values)))
        choices[0, number] = value - _first(decision)
    return choices


def _ended(space: SearchSpace, distributions: dict[str, Any], choices: Any, metric: float) -> Any:
    """The trial of a network that was drawn, not asked for."""
    active = space.active(choices[None])[0]
    numbers = {
        decision.name: int(choice) + _first(decision)
        for decision, choice, on in zip(space.decisions, choices, active, strict=True)
        if on
    }
    return extra("optuna").trial.create_trial(
        params=numbers,
        distributions={name: distributions[name] for name in numbers},
        value=float(metric),
    )
