"""NAG against what begins anew for every budget, on NAS-Bench-201: tables 1, 3, 4, figures 3, 5.

On the same revealed cells (`reproduce_nag`) and one device at a time:

  nag                  one policy, trained once, that answers all budgets
  nag, refined         the same; selection tries neighbours of its best draws, as `generate` does
  independent policy   the same, trained for one budget alone: repeated independent search (table 3)
  multi-objective      such a policy, taught by MnasNet's reward: OFA-MO of table 1
  evolution            regularized evolution by what the evaluator expects: OFA of table 1

The policies of one budget share the steps of the one for all budgets. All look at 1,000 networks
for an answer, but for what is refined. What each seed and device gave lies in
WORK_DIR/nasbench201_nag, so that a stopped run goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tfgen import errors, seeds, workdir
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import LATENCY
from tfgen.evidence.record import Record
from tfgen.generators.base import Evidence
from tfgen.generators.evolution import RegularizedEvolution, RegularizedEvolutionConfig
from tfgen.generators.nag import MULTI_OBJECTIVE, Nag, NagGenerator
from tfgen.selection import Selector
from tfgen.space.architecture import Architecture
from tools import charts, reports, reproduce_nag
from tools.reports import Column, duration, percent
from tools.reproduce_nag import Bench, Expected, Sizes
from tools.reproduce_setting import digest

NAG, INDEPENDENT, MULTI, EVOLUTION = "nag", "independent policy", "multi-objective", "evolution"
REFINED = "nag, refined"
METHODS = (NAG, REFINED, INDEPENDENT, MULTI, EVOLUTION)
DEVICES = ("pixel3", "gold_6240", "1080ti_batch_1")  # a phone, a CPU, a GPU
_EXPECTATIONS = 1_000  # of the evaluator, for an answer: the paper's evolution has as many
_HISTOGRAMS = (1, 3)  # which of five budgets figure 3 is about
_BINS = 40
_SAMPLED = 16_000  # cells of figure 3a: the paper's
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Front:
    """A method's answer to one budget.

    Attributes:
      seed: number of the seed.
      device: by name.
      method: one of METHODS.
      limit_ms: the budget.
      latency_ms: of the answer.
      accuracy: of the answer, per cent.
      regret: points below the best cell within the budget.
      within: of raw samples, the share within the budget; None for evolution.
      seconds: from the budget to the answer, training for it included.
      prepared_seconds: of what was trained before any budget was known.
    """

    seed: int
    device: str
    method: str
    limit_ms: float
    latency_ms: float | None
    accuracy: float | None
    regret: float | None
    within: float | None
    seconds: float
    prepared_seconds: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """One method on one device.

    Attributes:
      device: by name.
      method: of Front.
      accuracies: mean over seeds, for each budget, per cent.
      regret: mean over budgets and seeds, points.
      low: least mean of a seed.
      high: largest mean of a seed.
      over: answers above their budget.
      unanswered: budgets for which nothing was found.
      within: mean share of raw samples within the budget; None for evolution.
      prepared_seconds: median.
      seconds: median, of one budget.
    """

    device: str
    method: str
    accuracies: tuple[float, ...]
    regret: float
    low: float
    high: float
    over: int
    unanswered: int
    within: float | None
    prepared_seconds: float
    seconds: float


TABLE_1 = (
    Column("device", lambda s: s.device),
    Column("method", lambda s: s.method),
    *reproduce_nag.REGRETS,
    Column("over budget", lambda s: f"{s.over}"),
    Column("unanswered", lambda s: f"{s.unanswered}"),
    Column("raw samples within, %", lambda s: percent(s.within)),
)
TABLE_4 = (
    Column("device", lambda s: s.device),
    Column("method", lambda s: s.method),
    Column("before any budget", lambda s: duration(s.prepared_seconds)),
    Column("for each budget", lambda s: duration(s.seconds)),
)


def front(
    tables: pathlib.Path,
    work: pathlib.Path,
    sizes: Sizes,
    names: Sequence[str],
    seed: int,
    folder: pathlib.Path,
    say: Say = print,
) -> list[Summary]:
    """Trains and asks every method; writes nag1, nag3 and nag4 (.md), nag_front.csv and pictures.

    Args:
      tables: the folder of public tables.
      work: where fits lie.
      sizes: how much; five budgets.
      names: of devices; tables 3 and 4 and the figures are about the first.
      seed: of everything.
      folder: for the results.
      say: told how far it is.

    Raises:
      UsageError: a table is missing, or a device is not one of them.
    """
    bench = Bench(tables)
    judge = reproduce_nag.Judge(bench, tables)
    for name in names:
        if name not in bench.models:
            raise errors.UsageError(f"device {name!r} is none of {', '.join(bench.models)}")
    rows: list[Front] = []
    raw: dict[str, list[float]] = {}
    summaries: list[Summary] = []
    for number in range(sizes.seeds):
        own, kept = reproduce_nag.place(bench, work, sizes, seed, number)
        records = reproduce_nag.revealed(bench, tables, sizes, own, kept, say)
        for device in names:
            found, samples = _kept(bench, judge, records, sizes, device, number, own, kept, say)
            rows += found
            if not raw:
                raw = samples
        summaries = summarise(rows)
        _write(bench, judge, rows, summaries, raw, names, number + 1, sizes, folder)
    for name in ("nag1", "nag3", "nag4"):
        say((folder / f"{name}.md").read_text())
    return summaries


def _kept(
    bench: Bench,
    judge: reproduce_nag.Judge,
    records: Sequence[Record],
    sizes: Sizes,
    device: str,
    number: int,
    seed: int,
    kept: pathlib.Path,
    say: Say,
) -> tuple[list[Front], dict[str, list[float]]]:
    """What all methods gave for one device, from its file where it is there."""
    path = kept / f"front-{digest([device, sizes.budgets, METHODS, sizes.refinements])}.json"
    if not path.is_file():
        rows: list[Front] = []
        raw: dict[str, list[float]] = {}
        for row, samples in _asked(bench, judge, records, sizes, device, number, seed):
            rows.append(row)
            if len(samples):
                place = f"{row.method} {sum(r.method == row.method for r in rows) - 1}"
                raw[place] = np.round(samples, 4).tolist()
            say(f"seed {number}, {device}, {row.method}: {row.limit_ms:.2f} ms")
        data = {"rows": [dataclasses.asdict(row) for row in rows], "raw": raw}
        workdir.write_json(path, json.loads(json.dumps(data)))
    data = workdir.read_json(path)
    return [Front(**row) for row in data["rows"]], data["raw"]


def _asked(
    bench: Bench,
    judge: reproduce_nag.Judge,
    records: Sequence[Record],
    sizes: Sizes,
    device: str,
    number: int,
    seed: int,
) -> Iterator[tuple[Front, np.ndarray]]:
    """Each method's answer to each budget, and the latencies of its raw samples."""
    evidence = Evidence(bench.space, bench.models[device], records)
    few = dataclasses.replace(sizes.config, steps=max(1, sizes.config.steps // sizes.budgets))
    limits = bench.limits(device, np.linspace(*reproduce_nag.QUANTILES, sizes.budgets))
    budgets = [Budget({LATENCY: float(limit)}, None, device) for limit in limits]
    since = time.perf_counter()
    whole = Nag().fit(evidence, sizes.config, seed)
    prepared = time.perf_counter() - since

    def answered(
        method: str,
        budget: Budget,
        generator: NagGenerator,
        since: float,
        before: float,
        refinements: int = 0,
    ) -> tuple[Front, np.ndarray]:
        # As many expectations as evolution has, but for what is refined.
        selector = Selector(count=1, draws=_EXPECTATIONS, max_rounds=1, refinements=refinements)
        expected = Expected(generator, records, -reproduce_nag.CAUTION)
        found = None
        with contextlib.suppress(errors.InfeasibleBudgetError):
            (candidate,) = selector.select(
                bench.space, generator, expected, bench.models[device], budget, "nag", seed
            )
            found = candidate.architecture
        seconds = time.perf_counter() - since
        (drawn,) = generator.propose([budget], reproduce_nag.RAW, seed)
        ms = bench.models[device].costs(drawn.choices)[LATENCY]
        within = float((ms <= budget.limits[LATENCY]).mean())
        return row(method, budget, found, within, seconds, before), ms

    def row(
        method: str,
        budget: Budget,
        architecture: Architecture | None,
        within: float | None,
        seconds: float,
        before: float,
    ) -> Front:
        limit = budget.limits[LATENCY]
        told: tuple[float | None, ...] = (None, None, None)
        if architecture is not None:
            cell = bench.space.choices([architecture])
            answer = judge.answer(number, method, device, limit, cell, np.nan)
            told = answer.latency_ms, answer.accuracy, answer.regret
        return Front(
            number,
            device,
            method,
            limit,
            *told,
            within,
            seconds,
            before,
        )

    for budget in budgets:
        yield answered(NAG, budget, whole, time.perf_counter(), prepared)
        since = time.perf_counter()
        yield answered(REFINED, budget, whole, since, prepared, sizes.refinements)
    multi = dataclasses.replace(few, reward=MULTI_OBJECTIVE)
    for method, config in ((INDEPENDENT, few), (MULTI, multi)):
        for budget in budgets:
            since = time.perf_counter()
            alone = Nag().fit_budget(evidence, budget, config, seed)
            yield answered(method, budget, alone, since, 0.0)
    for budget in budgets:
        since = time.perf_counter()
        best = None
        with contextlib.suppress(errors.InfeasibleBudgetError):
            best = _evolved(bench, whole, records, device, budget, seed)
        seconds = time.perf_counter() - since
        # The evaluator is the policy's: a search of its own would train it first.
        yield row(EVOLUTION, budget, best, None, seconds, prepared), np.zeros(0)


def _evolved(
    bench: Bench,
    generator: NagGenerator,
    records: Sequence[Record],
    device: str,
    budget: Budget,
    seed: int,
) -> Architecture:
    """The best that evolution finds among the paper's 1,000 networks, by what is expected."""
    expected = Expected(generator, records, -reproduce_nag.CAUTION)

    def evaluate(architectures: Sequence[Architecture], unused_seed: int) -> list[Record]:
        told = expected.predict(bench.space.choices(architectures), 0.5).metric
        return [
            Record(one, "expected", "evaluator", 0, float(metric), 0.0)
            for one, metric in zip(architectures, told, strict=True)
        ]

    evidence = Evidence(bench.space, bench.models[device], evaluate=evaluate)
    config = RegularizedEvolutionConfig(population=100, sample=25, batch=25)
    own = seeds.derive(seed, "evolution")
    found = RegularizedEvolution().search(evidence, budget, _EXPECTATIONS, config, own)
    return found.best(1)[0].architecture


# --- results --------------------------------------------------------------------------------------


def summarise(rows: Sequence[Front]) -> list[Summary]:
    """One summary for each device and method."""
    summaries = []
    for device in dict.fromkeys(row.device for row in rows):
        for method in METHODS:
            own = [row for row in rows if (row.device, row.method) == (device, method)]
            limits = sorted({row.limit_ms for row in own})
            answered = [row for row in own if row.regret is not None]
            by_seed = [
                _mean([row.regret for row in answered if row.seed == number])
                for number in sorted({row.seed for row in answered})
            ]
            summaries.append(
                Summary(
                    device,
                    method,
                    tuple(
                        _mean([row.accuracy for row in answered if row.limit_ms == limit])
                        for limit in limits
                    ),
                    _mean([row.regret for row in answered]),
                    min(by_seed, default=np.nan),
                    max(by_seed, default=np.nan),
                    sum((row.latency_ms or 0.0) > row.limit_ms for row in answered),
                    len(own) - len(answered),
                    None if method == EVOLUTION else _mean([row.within for row in own]),
                    float(np.median([row.prepared_seconds for row in own])),
                    float(np.median([row.seconds for row in own])),
                )
            )
    return summaries


def _mean(values: Sequence[float | None]) -> float:
    """NaN of none."""
    return float(np.mean(np.array(values, np.float64))) if values else np.nan


def _write(
    bench: Bench,
    judge: reproduce_nag.Judge,
    rows: Sequence[Front],
    summaries: Sequence[Summary],
    raw: dict[str, list[float]],
    names: Sequence[str],
    seeds_done: int,
    sizes: Sizes,
    folder: pathlib.Path,
) -> None:
    first = names[0]
    asked = (
        f"{sizes.revealed} cells revealed, {sizes.budgets} budgets a device, {seeds_done} seeds; "
        f"{_EXPECTATIONS:,} expectations of the evaluator for each answer, more where refined. "
        f"A policy for all budgets has {sizes.config.steps:,} steps, one for a single budget a "
        "share of them."
    )
    reports.write_csv(folder / "nag_front.csv", rows)
    reports.write_markdown(folder / "nag1.md", asked, reports.markdown(TABLE_1, summaries))
    own = [s for s in summaries if s.device == first]
    limits = sorted({row.limit_ms for row in rows if row.device == first})
    table_3 = [
        Column("search", lambda s: s.method),
        *(
            Column(f"{limit:.2f} ms", lambda s, place=place: f"{s.accuracies[place]:.2f}")
            for place, limit in enumerate(limits)
        ),
    ]
    reports.write_markdown(
        folder / "nag3.md",
        f"c10_valid of the answers on {first}, per cent, mean over seeds. {asked}",
        reports.markdown(table_3, own),
    )
    reports.write_markdown(
        folder / "nag4.md",
        f"{asked} Evolution asks the evaluator of the policy for all budgets: what it needs before "
        "any budget is a part of what is told.",
        reports.markdown(TABLE_4, summaries),
    )
    _histogram(bench, raw, limits, first, folder)
    series = [charts.Series(s.method, limits, s.accuracies, "line") for s in own]
    best = [judge.best_accuracy(first, limit) for limit in limits]
    charts.write(
        charts.Chart(
            f"Answers on {first}",
            "latency budget, ms",
            "c10_valid, %",
            [charts.Series("best cell", limits, best, "line"), *series],
        ),
        folder,
        "nag5",
    )


def _histogram(
    bench: Bench,
    raw: dict[str, list[float]],
    limits: Sequence[float],
    device: str,
    folder: pathlib.Path,
) -> None:
    """Figure 3: latencies of random cells, and of raw samples for two budgets."""
    random = bench.space.sample(_SAMPLED, seeds.stream(0, "figure 3"))
    everywhere = bench.models[device].costs(random)[LATENCY]
    edges = np.linspace(everywhere.min(), everywhere.max(), _BINS + 1)
    centres = ((edges[1:] + edges[:-1]) / 2).tolist()

    def shares(name: str, ms: Sequence[float] | np.ndarray) -> charts.Series:
        counts, _ = np.histogram(np.clip(ms, edges[0], edges[-1]), edges)
        return charts.Series(name, centres, (100 * counts / len(ms)).tolist(), "line")

    series = [shares("random cells", everywhere)]
    for place in _HISTOGRAMS:
        for method in (NAG, MULTI):
            own = raw.get(f"{method} {place}")
            if own:
                series.append(shares(f"{method}, at most {limits[place]:.2f} ms", own))
    chart = charts.Chart(f"Raw samples on {device}", "latency, ms", "share of samples, %", series)
    charts.write(chart, folder, "nag3")
