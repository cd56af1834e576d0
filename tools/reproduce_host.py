"""NAG on this machine: five budgets of latency, files measured, against independent search.

One policy answers all budgets; independent policies, taught by the same records and by the same
evaluator, share its steps and have one budget each (section 4.2, table 3): of latency alone, where
the one for all knows other costs too. Candidates are what policies draw; "refined" are those that
`generate` answers with, for which neighbours of the best draws are tried. Of each the first is
delivered whose untrained file keeps the budget here, as `generate` does, with inherited weights:
what is compared are measured latencies and accuracies on the test split, by budget and by the area
that each front covers. Policies of single budgets lie in ROOT/cifar10_once_for_all/reproduce.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfgen import bundle as bundles
from tfgen import errors, pipeline, seeds, supernets, workdir
from tfgen.cost import pareto
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import LATENCY, CostModel
from tfgen.deployment import devices
from tfgen.evidence.record import Record, RecordStore
from tfgen.generators.base import Evidence
from tfgen.generators.nag import Nag, NagConfig, NagGenerator
from tfgen.generators.nag_evaluator import Evaluator
from tfgen.selection import Candidate, Selector
from tfgen.space import catalog
from tfgen.training import datasets
from tfgen.training.datasets import Dataset
from tools import charts, reports
from tools.reports import Column, duration, percent
from tools.reproduce_setting import configured, digest

CONFIG = "cifar10_once_for_all"
NAG, REFINED, INDEPENDENT = METHODS = ("nag", "nag, refined", "independent policy")
_NAG = "nag"  # the method by its name in a bundle
_QUANTILES = (0.1, 0.9)  # of random networks' latencies, between which budgets lie
_DRAWN = 4_000  # networks, of which latencies are looked at
_TOLD = 32  # networks, whose latencies tell one profile from another
_CANDIDATES = 10  # of a budget, that are timed untrained
_CHANCE = 0.1  # accuracy of guesses, where the area of a front begins
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Delivered:
    """A method's answer to one budget; None for what no candidate reached.

    Attributes:
      method: one of METHODS.
      limit_ms: the budget.
      predicted_ms: of the answer.
      latency_ms: of its file, measured.
      predicted: its accuracy.
      accuracy: of its file on the test split.
      prepared_seconds: of training its policy; None for the bundle's, which `train` made.
      seconds: from the budget to the candidates.
    """

    method: str
    limit_ms: float
    predicted_ms: float | None
    latency_ms: float | None
    predicted: float | None
    accuracy: float | None
    prepared_seconds: float | None
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether there is a file, within its budget."""
        return self.latency_ms is not None and self.latency_ms <= self.limit_ms


def _told(value: float | None, text: Callable[[float], str]) -> str:
    return "-" if value is None else text(value)


TABLE = (
    Column("method", lambda d: d.method),
    Column("budget, ms", lambda d: f"{d.limit_ms:.3f}"),
    Column("predicted, ms", lambda d: _told(d.predicted_ms, "{:.3f}".format)),
    Column("measured, ms", lambda d: _told(d.latency_ms, "{:.3f}".format)),
    Column("within", lambda d: "yes" if d.holds else "no"),
    Column("predicted, %", lambda d: _told(d.predicted, percent)),
    Column("test split, %", lambda d: _told(d.accuracy, lambda x: percent(x, 2))),
    Column("policy trained in", lambda d: _told(d.prepared_seconds, duration)),
    Column("to the candidates", lambda d: f"{d.seconds:.2f} s"),
)


@dataclasses.dataclass(frozen=True)
class Lab:
    """What answers and delivers.

    Attributes:
      bundle: of the config, fitted for this machine.
      records: that taught it.
      dataset: on which files are tested.
      work: where deployments and policies lie.
      config: of the policy.
    """

    bundle: bundles.Bundle
    records: Sequence[Record]
    dataset: Dataset
    work: workdir.WorkDir
    config: NagConfig

    def costs(self) -> CostModel:
        """With what networks take on this machine."""
        latency = devices.latency_model(devices.HOST, self.bundle.space)
        return CostModel(self.bundle.space, latency=latency)

    def evaluator(self) -> Evaluator:
        """What taught the bundle's policy."""
        generator = self.bundle.generator(_NAG)
        assert isinstance(generator, NagGenerator)  # the config's
        return generator.evaluator

    def independent(
        self, costs: CostModel, budget: Budget, config: NagConfig, seed: int
    ) -> tuple[NagGenerator, float]:
        """A policy of one budget, and the seconds that its training took, the evaluator's aside."""
        from tfgen.nets import network

        taught_by = [(*record.key, record.metric) for record in self.records]
        evaluator = network.digest({"evaluator": self.evaluator().state()})
        some = self.bundle.space.sample(_TOLD, seeds.stream(0, "latencies"))
        latencies = costs.costs(some)[LATENCY].tolist()  # a machine may be profiled again
        made_of = [repr(budget), dataclasses.asdict(config), seed, taught_by, evaluator, latencies]
        folder = self.work.root / "reproduce" / f"nag-{digest(made_of)}"
        if not folder.is_dir():
            evidence = Evidence(self.bundle.space, costs, self.records)
            since = time.perf_counter()
            state = Nag().fit_budget(evidence, budget, config, seed, self.evaluator()).state()
            with workdir.writing_folder(folder) as fresh:
                workdir.write_arrays(fresh / "generator.npz", state)
                workdir.write_json(fresh / "fit.json", {"seconds": time.perf_counter() - since})
        state = workdir.read_arrays(folder / "generator.npz")
        seconds = workdir.read_json(folder / "fit.json")["seconds"]
        return Nag().restore(self.bundle.space, state), seconds

    def deliver(self, candidate: Candidate, seed: int) -> tuple[float, float]:
        """Latency of the file, ms, and its accuracy on the test split; weights are inherited."""
        made = pipeline.deliver(
            self.bundle, candidate, self.work, self.dataset, seed=seed, start=pipeline.INHERIT
        )
        measured = {term.metric: term.measured for term in made.contract.terms}
        accuracy = measured[self.bundle.task.metric]
        return made.timed.latency_ms, accuracy


def lab(root: pathlib.Path, data_dir: str | None) -> Lab:
    """The config's; raises UsageError where its bundle or its records are missing."""
    experiment = configured(CONFIG)
    work = workdir.WorkDir(root / CONFIG)
    if not (work.bundle / workdir.MANIFEST).is_file():
        raise errors.UsageError(
            f"{work.bundle}: no bundle; run train_supernet, collect and train first, with "
            f"--config=configs/{CONFIG}.py --work_dir={work.root}"
        )
    dataset = datasets.load(experiment.dataset, data_dir)
    config = experiment.methods["nag"]
    assert isinstance(config, NagConfig)  # the config's
    with RecordStore(work.records, catalog.get(experiment.space)) as store:
        supernet = supernets.load(experiment, work, dataset)
        known = supernets.evaluator(experiment, supernet, dataset, store).known
        records = pipeline.inherited_records(experiment, work, known)
    return Lab(bundles.load(work.bundle), records, dataset, work, config)


def host(
    lab: Lab, budgets: int, seed: int, folder: pathlib.Path, say: Say = print
) -> list[Delivered]:
    """Answers and delivers; writes nag_host.csv, nag_host.md and the picture.

    Args:
      lab: what answers.
      budgets: how many, none of which training has seen.
      seed: of policies, draws and deliveries.
      folder: for the results.
      say: told what was delivered.
    """
    costs = lab.costs()
    random = seeds.stream(seed, "host")
    drawn_ms = costs.costs(lab.bundle.space.sample(_DRAWN, random))[LATENCY]
    limits = np.quantile(drawn_ms, np.linspace(*_QUANTILES, budgets))
    few = dataclasses.replace(lab.config, steps=max(1, lab.config.steps // budgets))
    refining = Selector(count=_CANDIDATES)
    drawing = dataclasses.replace(refining, refinements=0)
    rows: list[Delivered] = []
    for limit in map(float, limits):
        budget = Budget({LATENCY: limit}, None, devices.HOST)
        alone, trained = lab.independent(costs, budget, few, seed)
        for method, generators, prepared, selector in (
            (NAG, lab.bundle.generators, None, drawing),
            (REFINED, lab.bundle.generators, None, refining),
            (INDEPENDENT, {_NAG: alone}, trained, drawing),
        ):
            answering = dataclasses.replace(lab.bundle, generators=generators)
            rows.append(_delivered(lab, answering, costs, budget, method, selector, seed, prepared))
            say(f"{limit:.3f} ms, {method}: {rows[-1]}")
    _write(rows, folder)
    say((folder / "nag_host.md").read_text())
    return rows


def _delivered(
    lab: Lab,
    answering: bundles.Bundle,
    costs: CostModel,
    budget: Budget,
    method: str,
    selector: Selector,
    seed: int,
    prepared: float | None,
) -> Delivered:
    limit = budget.limits[LATENCY]
    since = time.perf_counter()
    try:
        found = pipeline.answer(answering, budget, costs, _NAG, selector, seed, lambda text: None)
    except errors.InfeasibleBudgetError:
        found = []
    seconds = time.perf_counter() - since
    kept = pipeline.keeping_latency(answering, found, 1)[0] if found else []
    if not kept:
        return Delivered(method, limit, None, None, None, None, prepared, seconds)
    best = kept[0]
    latency_ms, accuracy = lab.deliver(best, seed)
    return Delivered(
        method, limit, best.cost[LATENCY], latency_ms, best.metric, accuracy, prepared, seconds
    )


def covered(rows: Sequence[Delivered]) -> Mapping[str, float]:
    """The area of latencies and accuracies that each method's files are at least as good as.

    Up to the largest budget, as a share of its latency times 100 %; files over their budget cover
    nothing.
    """
    most = max(row.limit_ms for row in rows)
    areas = {}
    for method in METHODS:
        own = [row for row in rows if row.method == method and row.holds]
        latency = np.array([row.latency_ms for row in own], np.float64)
        accuracy = np.array([row.accuracy for row in own], np.float64)
        areas[method] = pareto.hypervolume(latency, accuracy, most, _CHANCE) / most
    return areas


def _write(rows: Sequence[Delivered], folder: pathlib.Path) -> None:
    reports.write_csv(folder / "nag_host.csv", rows)
    areas = ", ".join(f"{method} {percent(area, 2)}" for method, area in covered(rows).items())
    reports.write_markdown(
        folder / "nag_host.md",
        "Files with inherited weights, measured on one thread of this machine and on the test "
        f"split. Area that a front covers, % of the largest budget times 100 %: {areas}.",
        reports.markdown(TABLE, rows),
    )
    series = []
    for method in METHODS:
        own = [row for row in rows if row.method == method and row.accuracy is not None]
        series.append(
            charts.Series(
                method,
                [row.latency_ms or 0.0 for row in own],
                [100 * (row.accuracy or 0.0) for row in own],
                style="line",
            )
        )
    chart = charts.Chart(
        "Files within latencies of this machine", "latency, ms", "accuracy, %", series
    )
    charts.write(chart, folder, "nag_host")
