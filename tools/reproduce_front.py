"""NAG against what begins anew for every budget, on NAS-Bench-201: tables 1, 3, 4, figures 3, 5.

On the same revealed cells (`reproduce_nag`) and one device at a time:

  nag                  one policy, trained once, that answers all budgets; where too many of its
                       samples would exceed a budget it is asked for less
  nag, refined         the same; selection tries neighbours of its best draws, as `generate` does
  independent policy   the same, trained for one budget alone: repeated independent search (table 3)
  multi-objective      such a policy, taught by MnasNet's reward: OFA-MO of table 1
  evolution            regularized evolution by what the evaluator expects: OFA of table 1

The policies of one budget share the steps of the one for all budgets. All have one evaluator, which
evolution asks too. Policies draw 1,000 networks for an answer, of which the different ones within
the budget are told; evolution looks at 1,000 such, or at all there are. Raw samples are those for
the budget itself, of all policies alike. What each seed and device gave lies in
WORK_DIR/nasbench201_nag, so that a stopped run goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

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
from tools.reproduce_setting import different, digest

NAG, INDEPENDENT, MULTI, EVOLUTION = "nag", "independent policy", "multi-objective", "evolution"
REFINED = "nag, refined"
METHODS = (NAG, REFINED, INDEPENDENT, MULTI, EVOLUTION)
DEVICES = ("pixel3", "gold_6240", "1080ti_batch_1")  # a phone, a CPU, a GPU
_VERSION = 3  # of what is asked and kept
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
      within: of raw samples for the budget itself, the share within it; None for evolution.
      held: of those that the policy is asked for less to keep it; None for other methods.
      looked: different networks within the budget, of those that were drawn.
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
    held: float | None
    looked: int
    seconds: float
    prepared_seconds: float


@dataclasses.dataclass(frozen=True)
class Mean:
    """Of what seeds gave.

    Attributes:
      value: the mean over all, NaN of none.
      low: the least mean of a seed.
      high: the largest.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, rows: Sequence[Front], read: Callable[[Front], float | None]) -> Mean:
        """Of what is read of rows; None is left out."""
        told = [(row.seed, value) for row in rows if (value := read(row)) is not None]
        if not told:
            return cls(math.nan, math.nan, math.nan)
        of_seeds = [float(np.mean([v for s, v in told if s == seed])) for seed, _ in told]
        return cls(float(np.mean([v for _, v in told])), min(of_seeds), max(of_seeds))

    def text(self, told: Callable[[float], str]) -> str:
        """The mean, and the ends where they differ."""
        if math.isnan(self.value):
            return "-"
        ends = tuple(map(told, (self.low, self.high)))
        return told(self.value) + ("" if ends[0] == ends[1] else f" ({ends[0]}–{ends[1]})")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A method's answers to one budget.

    Attributes:
      limit_ms: the budget.
      latency_ms: of the answers.
      accuracy: of the answers, per cent.
    """

    limit_ms: float
    latency_ms: Mean
    accuracy: Mean


@dataclasses.dataclass(frozen=True)
class Summary:
    """One method on one device.

    Attributes:
      device: by name.
      method: of Front.
      budgets: what was answered to each.
      regret: points.
      over: answers above their budget.
      unanswered: budgets for which nothing was found.
      within: of Front.
      held: of Front.
      looked: of Front.
      prepared_seconds: of each seed.
      seconds: of each answer.
    """

    device: str
    method: str
    budgets: tuple[Asked, ...]
    regret: Mean
    over: int
    unanswered: int
    within: Mean
    held: Mean
    looked: Mean
    prepared_seconds: tuple[float, ...]
    seconds: tuple[float, ...]


def _spread(seconds: Sequence[float]) -> str:
    """The median of times, the least and the largest."""
    told = duration(float(np.median(seconds)))
    return f"{told} ({duration(min(seconds))}–{duration(max(seconds))})"


TABLE_1 = (
    Column("device", lambda s: s.device),
    Column("method", lambda s: s.method),
    Column("regret, points", lambda s: s.regret.text("{:.3f}".format)),
    Column("over budget", lambda s: f"{s.over}"),
    Column("unanswered", lambda s: f"{s.unanswered}"),
    Column("raw samples within, %", lambda s: s.within.text(percent)),
    Column("within, once asked for less, %", lambda s: s.held.text(percent)),
    Column("different draws within", lambda s: s.looked.text("{:,.0f}".format)),
)
TABLE_4 = (
    Column("device", lambda s: s.device),
    Column("method", lambda s: s.method),
    Column("before any budget", lambda s: _spread(s.prepared_seconds)),
    Column("for each budget", lambda s: _spread(s.seconds)),
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
      names: of devices; table 3 is about the first.
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
    raw: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    summaries: list[Summary] = []
    for number in range(sizes.seeds):
        own, kept = reproduce_nag.place(bench, work, sizes, seed, number)
        records = reproduce_nag.revealed(bench, tables, sizes, own, kept, say)
        for device in names:
            found, samples = _kept(bench, judge, records, sizes, device, number, own, kept, say)
            rows += found
            for place, ms in samples.items():
                raw[device].setdefault(place, []).extend(ms)
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
    made_of = [_VERSION, device, sizes.budgets, METHODS, sizes.refinements]
    path = kept / f"front-{digest(made_of)}.json"
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
    evaluator = Nag().evaluator(evidence, sizes.config, seed)
    ranked = time.perf_counter() - since
    since = time.perf_counter()
    whole = Nag().fit(evidence, sizes.config, seed, evaluator)
    prepared = ranked + time.perf_counter() - since

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
        limit = budget.limits[LATENCY]
        target = generator.platform.targets.asked(budget)
        raw = generator.draw(np.repeat(target[None], reproduce_nag.RAW, axis=0), seed)
        raw_ms = bench.models[device].costs(raw)[LATENCY]
        within = float((raw_ms <= limit).mean())
        own = seeds.forked(seed, "round", 0)  # selection's draws
        (drawn,) = generator.propose([budget], _EXPECTATIONS, own)
        kept = bench.models[device].costs(drawn.choices)[LATENCY] <= limit
        looked = len(different(drawn.choices[kept]))
        held = float(kept.mean()) if generator is whole else None
        return row(method, budget, found, within, held, looked, seconds, before), raw_ms

    def row(
        method: str,
        budget: Budget,
        architecture: Architecture | None,
        within: float | None,
        held: float | None,
        looked: int,
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
            held,
            looked,
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
            alone = Nag().fit_budget(evidence, budget, config, seed, evaluator)
            yield answered(method, budget, alone, since, ranked)
    for budget in budgets:
        since = time.perf_counter()
        best, looked = None, 0
        with contextlib.suppress(errors.InfeasibleBudgetError):
            best, looked = _evolved(bench, whole, records, device, budget, seed)
        seconds = time.perf_counter() - since
        yield row(EVOLUTION, budget, best, None, None, looked, seconds, ranked), np.zeros(0)


def _evolved(
    bench: Bench,
    generator: NagGenerator,
    records: Sequence[Record],
    device: str,
    budget: Budget,
    seed: int,
) -> tuple[Architecture, int]:
    """The best that evolution finds among the paper's 1,000 networks, by what is expected.

    And how many it looked at: where fewer keep the budget, those.
    """
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
    return found.best(1)[0].architecture, len(found.records)


# --- results --------------------------------------------------------------------------------------


def summarise(rows: Sequence[Front]) -> list[Summary]:
    """One summary for each device and method."""
    summaries = []
    for device in dict.fromkeys(row.device for row in rows):
        for method in METHODS:
            own = [row for row in rows if (row.device, row.method) == (device, method)]
            answered = [row for row in own if row.regret is not None]
            summaries.append(
                Summary(
                    device,
                    method,
                    tuple(
                        _answered(limit, [row for row in own if row.limit_ms == limit])
                        for limit in sorted({row.limit_ms for row in own})
                    ),
                    Mean.of(answered, lambda row: row.regret),
                    sum((row.latency_ms or 0.0) > row.limit_ms for row in answered),
                    len(own) - len(answered),
                    Mean.of(own, lambda row: row.within),
                    Mean.of(own, lambda row: row.held),
                    Mean.of(own, lambda row: row.looked),
                    tuple({row.seed: row.prepared_seconds for row in own}.values()),
                    tuple(row.seconds for row in own),
                )
            )
    return summaries


def _answered(limit_ms: float, rows: Sequence[Front]) -> Asked:
    return Asked(
        limit_ms, Mean.of(rows, lambda row: row.latency_ms), Mean.of(rows, lambda row: row.accuracy)
    )


def _write(
    bench: Bench,
    judge: reproduce_nag.Judge,
    rows: Sequence[Front],
    summaries: Sequence[Summary],
    raw: Mapping[str, Mapping[str, list[float]]],
    names: Sequence[str],
    seeds_done: int,
    sizes: Sizes,
    folder: pathlib.Path,
) -> None:
    first = names[0]
    asked = (
        f"{sizes.revealed} cells revealed, {sizes.budgets} budgets a device, {seeds_done} seeds; "
        f"{_EXPECTATIONS:,} draws for each answer, more where refined. A policy for all budgets "
        f"has {sizes.config.steps:,} steps, one for a single budget a share of them."
    )
    means = "Means over seeds, and the least and the largest of a seed."
    reports.write_csv(folder / "nag_front.csv", rows)
    told = [f"{asked} {means}", reports.markdown(TABLE_1, summaries)]
    for name in names:
        own = [s for s in summaries if s.device == name]
        told += [
            f"On {name}, milliseconds and per cent of c10_valid, by budget, means over seeds:",
            reports.markdown(_by_budget(own, _taken), own),
        ]
    reports.write_markdown(folder / "nag1.md", *told)
    own = [s for s in summaries if s.device == first]
    reports.write_markdown(
        folder / "nag3.md",
        f"c10_valid of the answers on {first}, per cent. {asked} {means}",
        reports.markdown(_by_budget(own, lambda a: a.accuracy.text("{:.2f}".format)), own),
    )
    reports.write_markdown(
        folder / "nag4.md",
        f"{asked} Times are medians over seeds or, for each budget, over all answers, with the "
        "least and the largest. Before any budget all train the evaluator, and nag its policy.",
        reports.markdown(TABLE_4, summaries),
    )
    for name in names:
        limits = sorted({row.limit_ms for row in rows if row.device == name})
        _histogram(bench, raw[name], limits, name, folder)
        series = [
            charts.Series(
                s.method,
                [asked.latency_ms.value for asked in s.budgets],
                [asked.accuracy.value for asked in s.budgets],
                "line",
            )
            for s in summaries
            if s.device == name
        ]
        best = charts.Series("best cell", *judge.front(name, limits), "line")
        chart = charts.Chart(
            f"Answers on {name}, means of seeds", "latency, ms", "c10_valid, %", [best, *series]
        )
        charts.write(chart, folder, f"nag5_{name}")


def _by_budget(summaries: Sequence[Summary], told: Callable[[Asked], str]) -> list[Column]:
    """A column for each budget of one device."""
    return [
        Column("method", lambda s: s.method),
        *(
            Column(f"{asked.limit_ms:.2f} ms", lambda s, place=place: told(s.budgets[place]))
            for place, asked in enumerate(summaries[0].budgets)
        ),
    ]


def _taken(asked: Asked) -> str:
    """What answers to a budget take, and what they are worth."""
    latency_ms, accuracy = asked.latency_ms.value, asked.accuracy.value
    return "-" if math.isnan(accuracy) else f"{latency_ms:.2f}, {accuracy:.2f}"


def _histogram(
    bench: Bench,
    raw: Mapping[str, list[float]],
    limits: Sequence[float],
    device: str,
    folder: pathlib.Path,
) -> None:
    """Figure 3: latencies of random cells, and of all seeds' raw samples for two budgets."""
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
    charts.write(chart, folder, f"nag3_{device}")
