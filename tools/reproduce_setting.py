"""What tables and figures are measured on: configs; an experiment of NAGAN with its records.

Fits and trainings that a measurement needs lie in WORK_DIR/reproduce, so a stopped run goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
import runpy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfgen import errors, generators, learning, pipeline, workdir
from tfgen.cost.cost_model import CostModel
from tfgen.cost.metrics import PerformanceScale
from tfgen.evidence import collect as collecting
from tfgen.evidence import surrogate as surrogates
from tfgen.evidence.collect import Evaluator
from tfgen.evidence.record import Record, RecordStore
from tfgen.experiment import Experiment
from tfgen.generators.base import Evaluate
from tfgen.space import catalog
from tfgen.space.architecture import Architecture
from tfgen.space.search_space import Choices, SearchSpace
from tfgen.training import datasets, population

METHOD = "nagan"
_WRITTEN_AT_ONCE = 50  # scores
_PORTION = 64  # trainings between two looks at the limit


@dataclasses.dataclass(frozen=True)
class Published:
    """One of the paper's six experiments (tables 2 and 4).

    Attributes:
      config: ours of it, in configs/.
      mdist_f: the paper's, as a share of the range of performance.
      mdist_r: the paper's.
      reach: the mDist_r that we aim at.
    """

    config: str
    mdist_f: float
    mdist_r: float
    reach: float


EXPERIMENTS = {
    "Reg.A": Published("quartic_mlp", 0.003, 0.120, 0.04),
    "Reg.B": Published("septic_mlp", 0.012, 0.062, 0.03),
    "Reg.C": Published("california_housing_mlp", 0.005, 0.113, 0.05),
    "Cls.A": Published("mnist14_mlp", 0.003, 0.081, 0.04),
    "Cls.B": Published("cifar10_mlp", 0.004, 0.117, 0.05),
    "Cls.C": Published("cifar10_cnn", 0.048, 0.087, 0.045),
}


def published(label: str) -> Published:
    """The experiment of that label; raises UsageError that names the known ones."""
    if label not in EXPERIMENTS:
        raise errors.UsageError(f"unknown experiment {label!r}; known: {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[label]


def configured(name: str) -> Experiment:
    """What a file of configs/ describes; raises UsageError where there is none of that name."""
    path = workdir.package_root() / "configs" / f"{name}.py"
    if not path.is_file():
        raise errors.UsageError(f"{path}: there is no such config")
    config = runpy.run_path(str(path))["get_config"]()
    return Experiment.from_config(config.to_dict())


def digest(made_of: Any) -> str:
    """Twelve hex digits for what a result is made of, of plain values: they name its folder."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]


def different(choices: Choices) -> Choices:
    """Each network once, in the order of its first [networks, decisions]."""
    return choices[np.sort(np.unique(choices, axis=0, return_index=True)[1])]


def work_dir(root: pathlib.Path, label: str) -> workdir.WorkDir:
    """Where an experiment's records lie; raises UsageError where they do not."""
    work = workdir.WorkDir(root / published(label).config)
    if not work.records.is_file():
        raise errors.UsageError(
            f"{work.records}: no records; run collect first, with "
            f"--config=configs/{published(label).config}.py --work_dir={work.root}"
        )
    return work


class KeptScores:
    """Scores of networks that take long to tell, kept in a file."""

    def __init__(self, path: pathlib.Path, score: Callable[[np.ndarray], float]):
        self._path = path
        self._score = score
        known = workdir.read_json(path) if path.is_file() else {}
        self._known: dict[str, float] = dict(known)

    def __call__(self, choices: Choices) -> np.ndarray:
        """The score of each network [networks]."""
        keys = ["-".join(map(str, row)) for row in choices.tolist()]
        missing = [(key, row) for key, row in zip(keys, choices, strict=True)
                   if key not in self._known]  # fmt: skip
        for number, (key, row) in enumerate(missing, start=1):
            self._known[key] = self._score(row)
            if number % _WRITTEN_AT_ONCE == 0 or number == len(missing):
                workdir.write_json(self._path, self._known)
        return np.array([self._known[key] for key in keys])


class OutOfTime(Exception):
    """A search has used the time that it was given."""


class Metered:
    """An evaluator that notes what its user has spent after each training.

    A training counts with the seconds of its worker, shared by the processes: one that is read from
    a store costs what it cost when it was made. What its user does in between counts by the clock.

    Attributes:
      records: every training, in order.
      seconds: what was spent when each was done [trainings].
    """

    def __init__(self, evaluate: Evaluate, processes: int, limit_seconds: float = math.inf):
        self._evaluate = evaluate
        self._processes = processes
        self._limit_seconds = limit_seconds
        self._spent = 0.0
        self._since = time.perf_counter()
        self.records: list[Record] = []
        self.seconds: list[float] = []

    def __call__(self, architectures: Sequence[Architecture], seed: int) -> list[Record]:
        """Trains as the evaluator does; raises OutOfTime when the limit is passed."""
        self._spent += time.perf_counter() - self._since
        before = len(self.records)
        for start in range(0, len(architectures), _PORTION):
            for record in self._evaluate(architectures[start : start + _PORTION], seed):
                self._spent += record.seconds / self._processes
                self.records.append(record)
                self.seconds.append(self._spent)
            if self._spent > self._limit_seconds:
                raise OutOfTime
        self._since = time.perf_counter()
        return self.records[before:]

    def total_seconds(self) -> float:
        """What is spent by now."""
        return self._spent + time.perf_counter() - self._since


@dataclasses.dataclass(frozen=True)
class Fit:
    """What was learned from an experiment's records.

    Attributes:
      surrogate: the encoder.
      generator: NAGAN's.
      records: that it was learned from, those of its own rounds too.
      seconds: collecting these records and fitting.
    """

    surrogate: surrogates.Surrogate
    generator: Any
    records: Sequence[Record]
    seconds: float


class Setting:
    """An experiment with its data, records and workers; a context manager that ends the workers.

    Attributes:
      label: of EXPERIMENTS.
      experiment: what its config says.
      space: whose networks are generated.
      dataset: what they are trained on.
      records: of the config's plan.
      scale: of these records; every distance is told in it.
      costs: of networks.
      folder: where fits and trainings of the measurements lie.
      processes: trainings at a time.
    """

    def __init__(
        self,
        label: str,
        root: pathlib.Path,
        data_dir: str | None,
        processes: int,
        records: int | None = None,
    ):
        """Reads the records; `records` takes the first so many of the plan.

        Raises:
          UsageError: the label or the data set is not known, or records are missing.
        """
        self.label = label
        self._work = work_dir(root, label)
        experiment = configured(published(label).config)
        if records is not None:
            experiment = dataclasses.replace(experiment, records=records)
        self.experiment = experiment
        self.space: SearchSpace = catalog.get(experiment.space)
        self.dataset = datasets.load(experiment.dataset, data_dir)
        self.records = self.planned(experiment)
        self.scale = PerformanceScale.of([r.metric for r in self.records])
        self.costs = CostModel(self.space)
        self.folder = self._work.root / "reproduce"
        self.processes = processes
        self._stack = contextlib.ExitStack()
        self.workers = self._stack.enter_context(
            population.Workers(self.dataset, experiment.recipe, processes=processes)
        )

    def __enter__(self) -> Setting:
        return self

    def __exit__(self, *unused: object) -> None:
        self._stack.close()

    def planned(self, experiment: Experiment) -> list[Record]:
        """The records of a plan, which may be shorter than the config's."""
        return pipeline.planned_records(experiment, self._work, self.dataset)

    def store(self, name: str = "trainings") -> RecordStore:
        """A store of its own for trainings that a measurement makes."""
        return RecordStore(self.folder / f"{name}.db", self.space)

    def train(self, architectures: Sequence[Architecture], seed: int) -> list[Record]:
        """Trains each once; what was trained before with this seed is read."""
        with self.store() as store:
            return Evaluator(store, self.workers)(architectures, seed)

    def collected(self, experiment: Experiment) -> list[Record]:
        """The records of an experiment's plan, trained by this setting where they are not stored.

        Unlike `planned`, which reads what `collect` made: the seed may be any, and their seconds
        are of this setting's workers.
        """
        plan = collecting.plan(self.space, experiment.records, experiment.seed)
        with self.store("collected") as store:
            for _ in collecting.collect(store, plan, self.workers):
                pass
            wanted = {(training.architecture, training.seed) for training in plan}
            of = self.dataset.fingerprint, experiment.recipe.fingerprint
            return [r for r in store.read(*of) if (r.architecture, r.seed) in wanted]

    def fit(
        self, experiment: Experiment, seed: int, records: Sequence[Record] | None = None
    ) -> Fit:
        """Learns from the records of a variant of the experiment, or reads what was learned.

        Kept under a name made of the variant, the seed, the records and, for their seconds, the
        processes. A change of the code does not change the name: delete the folders `fits` and
        `proposals` then.

        Args:
          experiment: what is fitted, and how.
          seed: of fits and draws.
          records: to learn from; by default those of the experiment's plan.

        Raises:
          UsageError: the experiment has no generator.
        """
        if METHOD not in experiment.methods:
            raise errors.UsageError(f"config {experiment.name!r} has no method {METHOD!r}")
        if records is None:
            records = self.planned(experiment)
        told_apart = [(*r.key, r.metric) for r in records]
        made_of = [experiment.to_json(), seed, self.processes, told_apart]
        name = digest(made_of)
        folder = self.folder / "fits" / name
        own = self.folder / "proposals" / name
        own.mkdir(parents=True, exist_ok=True)
        with workdir.owning(own):  # another program may be at the same fit
            if not folder.is_dir():
                self._learn(experiment, records, seed, folder, own / learning.PROPOSALS)
        told = workdir.read_json(folder / "fit.json")
        state = workdir.read_arrays(folder / "generator.npz")
        columns = workdir.read_arrays(folder / "records.npz")
        learned_from = [
            dataclasses.replace(
                records[0],
                architecture=self.space.architecture(choices),
                seed=int(own),
                metric=float(metric),
                seconds=float(seconds),
            )
            for choices, own, metric, seconds in zip(
                *(columns[name] for name in ("choices", "seed", "metric", "seconds")), strict=True
            )
        ]
        return Fit(
            surrogates.Surrogate(self.space, workdir.read_arrays(folder / "surrogate.npz")),
            generators.get(METHOD).restore(self.space, state),
            learned_from,
            told["seconds"],
        )

    def _learn(
        self,
        experiment: Experiment,
        records: Sequence[Record],
        seed: int,
        folder: pathlib.Path,
        proposals: pathlib.Path,
    ) -> None:
        only = {METHOD: experiment.methods[METHOD]}
        with self.store("rounds") as store:
            evaluate = Metered(Evaluator(store, self.workers), self.processes)
            learned = learning.learn(
                dataclasses.replace(experiment, methods=only),
                records,
                self.dataset.task.metric,
                evaluate,
                seed,
                lambda _: None,
                proposals,
            )
        collected = sum(record.seconds for record in records) / self.processes
        told = {"seconds": collected + learned.read_seconds + evaluate.total_seconds()}
        columns = {
            "choices": self.space.choices([r.architecture for r in learned.records]),
            "seed": np.array([r.seed for r in learned.records]),
            "metric": np.array([r.metric for r in learned.records]),
            "seconds": np.array([r.seconds for r in learned.records]),
        }
        with workdir.writing_folder(folder) as fresh:
            workdir.write_arrays(fresh / "surrogate.npz", learned.surrogate.state())
            workdir.write_arrays(fresh / "generator.npz", learned.generators[METHOD].state())
            workdir.write_arrays(fresh / "records.npz", columns)
            workdir.write_json(fresh / "fit.json", told)
