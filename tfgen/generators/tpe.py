"""Tree-structured Parzen estimator: Optuna's TPESampler."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfgen import seeds
from tfgen.cost.budget import Budget
from tfgen.generators.base import Evidence, Found
from tfgen.generators.searching import Floats, Run, extra, population_size
from tfgen.space.search_space import Choices, Decision, SearchSpace

_MAX_SEED = 2**31
_EXCESS = "excess"  # by which share each limit is exceeded; 0 or less within it
_WORST = -1e9  # of networks over a limit and of trainings that diverged
_ASKS = 8  # for each network wanted, before draws of the space make up for the rest


@dataclasses.dataclass(frozen=True)
class TpeConfig:
    """How the sampler is asked.

    Attributes:
      initial: networks drawn at random before the first estimate; fewer where trainings are few.
      batch: networks trained at a time.
      candidates: draws of the good networks' density of which the likeliest is asked for.
      max_observations: trials, the best and the latest, that are left when there are twice as many:
        a density is the sum of one kernel for each, and is evaluated for every ask.
    """

    initial: int = 32
    batch: int = 8
    candidates: int = 24
    max_observations: int = 384

    def __post_init__(self) -> None:
        if min(self.initial, self.batch, self.candidates, self.max_observations) < 1:
            raise ValueError(f"numbers of networks must be at least 1: {self}")


class Tpe:
    """Bergstra et al. 2011, as Optuna has it, with one density over all decisions together.

    Inactive decisions are asked for too, and left out: a density for each depth would know less.
    A network over a limit is told with its excess and without a training: the sampler counts it
    among the bad ones, and is asked again. Networks in training count as bad too (the constant
    liar), so that a batch's networks differ; one that comes up again is a failed trial.
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
            study = _study(optuna, (), config.candidates, seeds.derive(seed, "sampler", 0))
            first = run.draw(population_size(config.initial, max_evaluations))
            trials = [_given(study, run.space, choices) for choices in first]
            _tell(study, trials, run.train(first))
            while run.remaining:
                trials, batch = _ask(study, run, min(config.batch, run.remaining))
                if not trials:
                    break  # the space is exhausted
                _tell(study, trials, run.train(batch))
                if len(study.trials) > 2 * config.max_observations:
                    kept = _kept(optuna, study, config.max_observations)
                    own = seeds.derive(seed, "sampler", len(run.choices))
                    study = _study(optuna, kept, config.candidates, own)
        return run.found()


def _study(optuna: Any, trials: Sequence[Any], candidates: int, seed: int) -> Any:
    """A study in memory that knows these trials."""
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=1,
        n_ei_candidates=candidates,
        multivariate=True,
        constant_liar=True,
        constraints_func=lambda trial: trial.user_attrs[_EXCESS],
        seed=seed % _MAX_SEED,
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(trials)
    return study


def _kept(optuna: Any, study: Any, count: int) -> list[Any]:
    """The best half and the latest half of the trials that ended."""
    ended = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    latest = ended[-(count // 2) :]
    others = sorted(ended[: -len(latest)], key=lambda trial: -trial.value)
    return others[: count - len(latest)] + latest


def _ask(study: Any, run: Run, count: int) -> tuple[list[Any], Choices]:
    """Trials of networks to train, and the networks [at most count, decisions].

    Draws of the space make up for what the sampler does not find in `_ASKS` asks a network.
    """
    trials: list[Any] = []
    batch: Choices = run.choices[:0]
    for _ in range(_ASKS * count):
        trial = study.ask()
        choices = _suggested(run.space, trial)
        excess = run.shares(choices)[0] - 1.0
        trial.set_user_attr(_EXCESS, excess.tolist())
        if (excess > 0).any():
            study.tell(trial, _WORST)
        elif not len(run.fresh(choices, batch)):
            study.tell(trial, state=extra("optuna").trial.TrialState.FAIL)
        else:
            trials.append(trial)
            batch = np.concatenate([batch, choices])
        if len(batch) == count:
            break
    drawn = run.draw(count - len(batch), batch)
    trials += [_given(study, run.space, choices) for choices in drawn]
    return trials, np.concatenate([batch, drawn])


def _given(study: Any, space: SearchSpace, choices: Any) -> Any:
    """The trial of a network that was drawn [decisions]."""
    numbers = {
        decision.name: int(choice) + _first(decision)
        for decision, choice in zip(space.decisions, choices, strict=True)
    }
    study.enqueue_trial(numbers)
    trial = study.ask()
    _suggested(space, trial)
    trial.set_user_attr(_EXCESS, [-1.0])
    return trial


def _tell(study: Any, trials: Sequence[Any], metrics: Floats) -> None:
    """Ends trials with their results."""
    for trial, metric in zip(trials, metrics, strict=True):
        study.tell(trial, max(float(metric), _WORST))


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


def _suggested(space: SearchSpace, trial: Any) -> Choices:
    """The network of a trial [1, decisions]."""
    choices = np.zeros((1, len(space.decisions)), np.int64)
    for number, decision in enumerate(space.decisions):
        count, first = len(decision.values), _first(decision)
        if decision.ordinal:
            number_of_choice = trial.suggest_int(
                decision.name, first, first + count - 1, log=bool(first)
            )
        else:
            number_of_choice = trial.suggest_categorical(decision.name, range(count))
        choices[0, number] = number_of_choice - first
    return space.canonical(choices)
