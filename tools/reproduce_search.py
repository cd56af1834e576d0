"""INAG against searches that start anew for every constraint: table 3 of the NAGAN paper.

All get the same space, costs, recipe and training code. A method's answer to a constraint is, of
all that it trained within the limits, the network whose training scored best on validation data;
its performance is what that very training scores on test data. INAG's records and its generator are
made once and answer every constraint: for each, ten candidates are trained once, the last five
chosen when the first are known. A search is compared
  * with as many trainings as INAG's records plus its ten;
  * with a tenth of them, for each of many constraints;
  * stopped when it has spent the seconds that INAG's records and fits took.
The best of many trainings owes some of its score to luck. What the network itself is worth is told
too: the mean test score of new trainings of it.
Trainings lie in stores and each answer in a file of its own, so a stopped run goes on, and several
may search for different seeds at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np

from tfgen import errors, generators, seeds, workdir
from tfgen.cost import metrics
from tfgen.cost.budget import Budget
from tfgen.evidence.collect import Evaluator
from tfgen.evidence.local_surrogate import LocalSurrogate, near
from tfgen.evidence.record import Record
from tfgen.experiment import Experiment
from tfgen.generators.base import Evidence
from tfgen.selection import Selector
from tfgen.space.lowering import lower
from tfgen.training import population
from tools import charts, reports
from tools.reports import Column, duration, percent
from tools.reproduce_setting import METHOD, Fit, Metered, OutOfTime, Setting, digest

INAG = "inag"
EQUAL_TRAININGS, A_TENTH, EQUAL_TIME = "equal trainings", "a tenth of them", "equal time"
CANDIDATES = 10  # that INAG trains for a constraint
_PORTIONS = 2  # in which it does: the second half is chosen when the first is known
_ROUNDS, _ROUND_PORTIONS = 3, 8
_LEAST_RECORDS = 40  # an encoder and a scale of a quarter of them
_NEW_TRAININGS = 5  # of an answer, to tell the network from its luck
_TIME_FACTOR = 4  # a search stopped by the clock makes at most so many times INAG's trainings
_PAPER = {
    INAG: "95 %, 0.19, 0.19, 5 s",
    "genetic": "97.3 %, 0.21, 0.21, 6 h",
    "bayesian": "97.7 %, 0.20, 0.213, 13 h",
}
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Constraint:
    """The most normalised storage and energy (eq. 2 and 3) that a network may have.

    Attributes:
      storage: share of the space's maximum.
      energy: share of the space's maximum.
      tuned: False for constraints that were written down after all else was settled.
    """

    storage: float
    energy: float
    tuned: bool = True

    def seed(self, seed: int) -> int:
        """Of what is done for this constraint."""
        return seeds.derive(seed, "constraint", str(self.storage), str(self.energy))


PAPERS = Constraint(0.21, 0.21)
TEN = (
    Constraint(0.002, 0.002),
    Constraint(0.0034, 0.0034),
    Constraint(0.0056, 0.0056),
    Constraint(0.0095, 0.0095),
    Constraint(0.016, 0.016),
    Constraint(0.027, 0.027),
    Constraint(0.045, 0.045),
    Constraint(0.075, 0.075),
    Constraint(0.125, 0.125),
    PAPERS,
)
UNTUNED = (  # two between those above, with unequal shares; one beyond them
    Constraint(0.012, 0.031, tuned=False),
    Constraint(0.1, 0.06, tuned=False),
    Constraint(0.4, 0.3, tuned=False),
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a search is given.

    Attributes:
      part: of the table.
      constraint: that its answer keeps.
      evaluations: trainings.
      seconds: trainings and its own work.
    """

    part: str
    constraint: Constraint
    evaluations: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is searched.

    Attributes:
      seeds: numbers of every method's seeds.
      searchers: names of generators.SEARCHERS.
      evaluations: trainings of a search; None for as many as INAG's records and candidates.
      max_seconds: of one search, by which slow ones end earlier; their rows say how many trainings
        they made.
      further_seeds: seeds of lower numbers also search at equal time and for constraints that
        nobody tuned for.
    """

    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    searchers: Sequence[str] = ("genetic", "bayesian")
    evaluations: int | None = None
    max_seconds: float = 7200.0
    further_seeds: int = 5


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a method answered to a constraint; None where it had no answer.

    Attributes:
      part: EQUAL_TRAININGS, A_TENTH or EQUAL_TIME.
      method: INAG or a searcher.
      seed: number of the seed.
      storage_limit: normalised.
      energy_limit: normalised.
      tuned: see Constraint.
      trainings: that were made for the answer; INAG's records count for each.
      prepared_seconds: before any constraint was known.
      answer_seconds: from the constraint to the candidates; a search's trainings lie in it.
      confirm_seconds: of training INAG's candidates.
      validation: the answer's score on validation data.
      test: the same training's on test data.
      again: mean score on test data of new trainings of the answer.
      storage: normalised.
      energy: normalised.
      holds: whether every network that was trained for the answer keeps both limits.
      process_error: of the process near the constraint (`evidence.local_surrogate`).
      encoder_error: the encoder's of the same records.
    """

    part: str
    method: str
    seed: int
    storage_limit: float
    energy_limit: float
    tuned: bool
    trainings: int
    prepared_seconds: float
    answer_seconds: float
    confirm_seconds: float
    validation: float | None = None
    test: float | None = None
    again: float | None = None
    storage: float | None = None
    energy: float | None = None
    holds: bool = False
    process_error: float | None = None
    encoder_error: float | None = None

    @property
    def seconds(self) -> float:
        """To the first answer."""
        return self.prepared_seconds + self.new_seconds

    @property
    def new_seconds(self) -> float:
        """To the answer to one more constraint."""
        return self.answer_seconds + self.confirm_seconds


class _Answers:
    """The answers so far, each in a file of a folder.

    Attributes:
      changed: set when an answer was made.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self.changed = False
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str, make: Callable[[], Answer]) -> Answer:
        """The answer of that key, made and written where it is not there."""
        path = self._folder / f"{digest(key)}.json"
        if path.is_file():
            return Answer(**workdir.read_json(path)["answer"])
        answer = make()
        self.changed = True
        workdir.write_json(path, {"key": key, "answer": dataclasses.asdict(answer)})
        return answer


def budget_of(setting: Setting, constraint: Constraint) -> Budget:
    """The constraint in kB and uJ."""
    return Budget(
        {
            "storage_kb": constraint.storage * setting.costs.maximum("storage_kb"),
            "energy_uj": constraint.energy * setting.costs.maximum("energy_uj"),
        }
    )


def table_3(
    setting: Setting, sizes: Sizes, seed: int, folder: pathlib.Path, say: Say = print
) -> None:
    """Compares INAG with the searches; what is done is written after each answer.

    Raises:
      UsageError: a searcher is not known.
    """
    for name in sizes.searchers:
        generators.get_searcher(name)
    if setting.experiment.records < _LEAST_RECORDS:
        raise errors.UsageError(
            f"nagan3 needs at least {_LEAST_RECORDS} records, got {setting.experiment.records}"
        )
    answers = _Answers(setting.folder / "answers")
    rows: list[Answer] = []

    def told(answer: Answer) -> None:
        rows.append(answer)
        say(
            f"{answer.part}, {answer.method}, seed {answer.seed}, storage < "
            f"{answer.storage_limit}: {percent(answer.test, 2)} % in {duration(answer.new_seconds)}"
        )
        if answers.changed:
            answers.changed = False
            _write(rows, sizes, setting, folder)

    def search(own: _Prepared, limits: Sequence[Limits]) -> None:
        for limit, name in itertools.product(limits, sizes.searchers):
            make = functools.partial(search_answer, setting, name, limit, own.number, own.seed)
            told(answers.get(f"{name} {limit} {own.made_of}", make))

    prepared = []
    for number in sizes.seeds:
        own = _prepared(setting, sizes, seed, number)
        for constraint in own.constraints:
            found = answers.get(
                f"{INAG} {constraint} {own.made_of} {len(own.fit.records)} {own.fit.seconds}",
                functools.partial(inag_answer, setting, own.fit, constraint, number, own.seed),
            )
            told(found)
            if constraint == PAPERS:
                told(dataclasses.replace(found, part=EQUAL_TRAININGS))
                if own.further:
                    told(dataclasses.replace(found, part=EQUAL_TIME))
        tenth = -(-own.evaluations // 10)
        search(own, [Limits(A_TENTH, c, tenth, sizes.max_seconds) for c in own.constraints])
        prepared.append(own)
    # What takes longest comes last: the ten constraints of all seeds are there before.
    for own in prepared:
        search(own, [Limits(EQUAL_TRAININGS, PAPERS, own.evaluations, sizes.max_seconds)])
    for own in prepared:
        if own.further:
            most = _TIME_FACTOR * own.evaluations
            search(own, [Limits(EQUAL_TIME, PAPERS, most, own.fit.seconds)])
    _write(rows, sizes, setting, folder)
    say((folder / "nagan3.md").read_text())


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A seed whose records are collected and learned from.

    Attributes:
      number: of the seed.
      seed: of its draws, trainings and searches.
      made_of: what all of its answers depend on.
      fit: INAG's.
      evaluations: trainings of a search that has as many as INAG.
      further: see `Sizes`.
    """

    number: int
    seed: int
    made_of: str
    fit: Fit
    evaluations: int
    further: bool

    @property
    def constraints(self) -> Sequence[Constraint]:
        return (*TEN, *UNTUNED) if self.further else TEN


def _prepared(setting: Setting, sizes: Sizes, seed: int, number: int) -> _Prepared:
    """Collects a seed's records and learns from them, where that is not done."""
    own = seeds.derive(seed, "search", number)
    experiment = inag_experiment(setting.experiment, number)
    fit = setting.fit(experiment, experiment.seed, setting.collected(experiment))
    recipe, data = experiment.recipe.fingerprint, setting.dataset.fingerprint
    return _Prepared(
        number,
        own,
        f"{recipe} {data} {setting.processes} {own}",
        fit,
        sizes.evaluations or len(fit.records) + CANDIDATES,
        number < sizes.further_seeds,
    )


def inag_experiment(experiment: Experiment, number: int = 0) -> Experiment:
    """INAG's trainings before any constraint is known: random networks, then its own answers.

    They are as many as the experiment's records. Three quarters are answers to budgets from small
    to large, in three rounds of eight portions; configs/quartic_mlp_answers.py has the same.
    Another number is another seed: of the random networks, fits and draws.
    """
    quarter = experiment.records // (_ROUNDS + 1)
    return dataclasses.replace(
        experiment,
        records=experiment.records - _ROUNDS * quarter,
        rounds=_ROUNDS,
        round_networks=quarter,
        round_portions=min(_ROUND_PORTIONS, quarter),
        answer_share=1.0,
        seed=experiment.seed + number,
    )


def inag_answer(
    setting: Setting, fit: Fit, constraint: Constraint, number: int, seed: int
) -> Answer:
    """Trains each candidate once; of these and of what was trained before, the best validates."""
    budget = budget_of(setting, constraint)
    seed = constraint.seed(seed)
    empty = Answer(
        A_TENTH,
        INAG,
        number,
        constraint.storage,
        constraint.energy,
        constraint.tuned,
        len(fit.records),
        fit.seconds,
        0.0,
        0.0,
    )
    before = [r for r, kept in zip(fit.records, _within(setting, fit.records, budget), strict=True)
              if kept]  # fmt: skip
    trained: list[Record] = []  # failures too: they are trainings
    seconds = 0.0
    for portion in range(_PORTIONS):
        start = time.perf_counter()
        learned = [record for record in trained if record.failure is None]
        predictor = near(fit.surrogate.knowing(learned), setting.costs, budget)
        try:
            # The best of them is kept, so they are ranked by what is expected, not by a lower end.
            candidates = Selector(count=CANDIDATES // _PORTIONS, confidence=0.5).select(
                setting.space,
                fit.generator,
                predictor,
                setting.costs,
                budget,
                METHOD,
                seeds.derive(seed, "portion", portion),
            )
        except errors.InfeasibleBudgetError:
            candidates = []
        seconds += time.perf_counter() - start
        trained += setting.train(
            [candidate.architecture for candidate in candidates],
            seeds.derive(seed, "candidates", portion),
        )
    answer = dataclasses.replace(
        empty,
        trainings=len(fit.records) + len(trained),
        answer_seconds=seconds,
        confirm_seconds=sum(record.seconds for record in trained) / setting.processes,
    )
    if isinstance(predictor, LocalSurrogate):
        told = predictor.error, predictor.encoder_error
        answer = dataclasses.replace(answer, process_error=told[0], encoder_error=told[1])
    return _scored(setting, answer, budget, [*before, *trained], seed)


def search_answer(setting: Setting, name: str, limit: Limits, number: int, seed: int) -> Answer:
    """Searches within limits; the answer is the best of what was trained by then."""
    constraint = limit.constraint
    budget = budget_of(setting, constraint)
    searcher, own = generators.get_searcher(name), constraint.seed(seed)
    stem = f"search/{name}-{constraint.storage:g}-{constraint.energy:g}-{number}"
    with setting.store(stem) as store:
        evaluate = Metered(Evaluator(store, setting.workers), setting.processes, limit.seconds)
        evidence = Evidence(setting.space, setting.costs, evaluate=evaluate)
        try:
            searcher.search(evidence, budget, limit.evaluations, searcher.config(), own)
            seconds = evaluate.total_seconds()
        except OutOfTime:
            seconds = limit.seconds
        except errors.InfeasibleBudgetError:
            seconds = evaluate.total_seconds()
    done = [r for r, at in zip(evaluate.records, evaluate.seconds, strict=True) if at <= seconds]
    answer = Answer(
        limit.part,
        name,
        number,
        constraint.storage,
        constraint.energy,
        constraint.tuned,
        len(done),
        0.0,
        seconds,
        0.0,
    )
    return _scored(setting, answer, budget, done, own)


def _scored(
    setting: Setting, answer: Answer, budget: Budget, records: Sequence[Record], seed: int
) -> Answer:
    """The answer with the record within the budget that validates best, scored on test data."""
    if not records:
        return answer
    kept = _within(setting, records, budget)
    ended = np.array([record.failure is None for record in records])
    scores = np.where(kept & ended, [record.metric for record in records], -np.inf)
    row = int(np.argmax(scores))
    if not np.isfinite(scores[row]):
        return answer
    best = records[row]
    layers = lower(setting.space, best.architecture)
    others = [seeds.derive(seed, "new training", number) for number in range(_NEW_TRAININGS)]
    with population.Workers(
        setting.dataset, setting.experiment.recipe, processes=setting.processes, split="test"
    ) as workers:
        outcomes = workers.train([population.Member(layers, s) for s in (best.seed, *others)])
        test, *again = (o.metric for o in sorted(outcomes, key=lambda o: o.index))
    costs = setting.costs.costs(setting.space.choices([best.architecture]))
    storage, energy = (
        float(setting.costs.normalised(metric, costs[metric][0]))
        for metric in ("storage_kb", "energy_uj")
    )
    return dataclasses.replace(
        answer,
        validation=best.metric,
        test=test,
        again=float(np.mean(again)),
        storage=storage,
        energy=energy,
        holds=bool(kept.all()),
    )


def _within(setting: Setting, records: Sequence[Record], budget: Budget) -> np.ndarray:
    """Which records' networks keep every limit [records]."""
    choices = setting.space.choices([record.architecture for record in records])
    costs = setting.costs.costs(choices)
    return np.logical_and.reduce([costs[m] <= limit for m, limit in budget.limits.items()])


# --- tables ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Summary:
    """A method's answers over seeds, to one constraint or to several.

    Attributes:
      part: of Answer.
      method: of Answer.
      storage_limit: normalised; NaN for several.
      energy_limit: normalised; NaN for several.
      tuned: see Constraint.
      answers: that were given, of all that were asked for.
      asked: for.
      test: mean score.
      low: lower end of the 95 % bootstrap interval over answers.
      high: upper end.
      again: mean score of new trainings of the answers.
      storage: mean, normalised.
      energy: mean, normalised.
      trainings: mean.
      first_seconds: mean time to the first answer.
      new_seconds: mean time to the answer to one more constraint.
      select_seconds: the longest time from a constraint to candidates.
      holds: whether every answer keeps both limits.
      behind: INAG's mean test score less this one; None for INAG.
    """

    part: str
    method: str
    storage_limit: float
    energy_limit: float
    tuned: bool
    answers: int
    asked: int
    test: float | None
    low: float | None
    high: float | None
    again: float | None
    storage: float | None
    energy: float | None
    trainings: float
    first_seconds: float
    new_seconds: float
    select_seconds: float
    holds: bool
    behind: float | None = None


def summarise(rows: Sequence[Answer], seed: int = 0) -> list[Summary]:
    """A summary for each part, constraint and method, in the order of their first rows."""
    groups: dict[tuple[str, float, float, str], list[Answer]] = {}
    for row in rows:
        key = (row.part, row.storage_limit, row.energy_limit, row.method)
        groups.setdefault(key, []).append(row)
    summaries = []
    for (part, storage_limit, energy_limit, method), group in groups.items():
        given = [answer for answer in group if answer.test is not None]
        scores = [answer.test for answer in given if answer.test is not None]
        low, high = metrics.bootstrap_interval(scores, seed) if scores else (None, None)
        summary = Summary(
            part,
            method,
            storage_limit,
            energy_limit,
            group[0].tuned,
            len(given),
            len(group),
            _mean(scores),
            low,
            high,
            _mean([answer.again for answer in given if answer.again is not None]),
            _mean([answer.storage for answer in given if answer.storage is not None]),
            _mean([answer.energy for answer in given if answer.energy is not None]),
            float(np.mean([answer.trainings for answer in group])),
            float(np.mean([answer.seconds for answer in group])),
            float(np.mean([answer.new_seconds for answer in group])),
            max(answer.answer_seconds for answer in group),
            bool(given) and all(answer.holds for answer in given),
        )
        ours = groups.get((part, storage_limit, energy_limit, INAG), [])
        reference = _mean([answer.test for answer in ours if answer.test is not None])
        if method != INAG and summary.test is not None and reference is not None:
            summary = dataclasses.replace(summary, behind=reference - summary.test)
        summaries.append(summary)
    return summaries


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


_SCORES = (
    Column("test score, %", lambda s: percent(s.test, 2)),
    Column(
        "95 % interval",
        lambda s: "-" if s.low is None else f"{percent(s.low, 2)}–{percent(s.high, 2)}",
    ),
    Column("INAG less this", lambda s: "" if s.behind is None else f"{100 * s.behind:+.2f}"),
    Column("trained again, %", lambda s: percent(s.again, 2)),
    Column("storage", lambda s: _share(s.storage)),
    Column("energy", lambda s: _share(s.energy)),
    Column("trainings", lambda s: f"{s.trainings:,.0f}"),
)
_END = (
    Column("answers", lambda s: f"{s.answers} of {s.asked}"),
    Column("limits held", lambda s: "yes" if s.holds else "no"),
)


def _write(rows: Sequence[Answer], sizes: Sizes, setting: Setting, folder: pathlib.Path) -> None:
    """nagan3.csv, its summary, nagan3.md and the picture."""
    reports.write_csv(folder / "nagan3.csv", rows)
    summaries = summarise(rows)
    reports.write_csv(folder / "nagan3_summary.csv", summaries)
    ten = {method: ten_seconds(rows, method) for method in (INAG, *sizes.searchers)}
    main_columns = (
        Column("method", lambda s: s.method),
        *_SCORES,
        Column("first answer", lambda s: duration(s.first_seconds)),
        Column("one more", lambda s: duration(s.new_seconds)),
        Column("ten (a tenth each)", lambda s: duration(ten[s.method])),
        *_END,
        Column("paper (score, storage, energy, time)", lambda s: _PAPER.get(s.method, "-")),
    )
    columns = (
        Column("storage <", lambda s: f"{s.storage_limit:g}"),
        Column("energy <", lambda s: f"{s.energy_limit:g}"),
        Column("method", lambda s: s.method if s.tuned else f"{s.method} (untuned for)"),
        *_SCORES,
        Column("to candidates, at most", lambda s: duration(s.select_seconds)),
        Column("one more", lambda s: duration(s.new_seconds)),
        *_END,
    )
    parts: list[str] = [f"On {setting.label}; costs are shares of the space's maximum."]
    for part, own in ((EQUAL_TRAININGS, main_columns), (EQUAL_TIME, main_columns),
                      (A_TENTH, columns)):  # fmt: skip
        chosen = [summary for summary in summaries if summary.part == part]
        if chosen:
            chosen.sort(key=lambda s: (not s.tuned, s.storage_limit))
            parts += [f"## Storage and energy, {part}", reports.markdown(own, chosen)]
    reports.write_markdown(folder / "nagan3.md", *parts)
    charts.write(_chart(summaries, setting.label), folder, "nagan3")


def ten_seconds(rows: Sequence[Answer], method: str) -> float | None:
    """Mean time to answers to all of TEN, from nothing; searches with a tenth of the trainings.

    None while some are missing.
    """
    own = [row for row in rows if (row.part, row.method, row.tuned) == (A_TENTH, method, True)]
    by_seed: dict[int, list[Answer]] = {}
    for row in own:
        by_seed.setdefault(row.seed, []).append(row)
    whole = [
        max(row.prepared_seconds for row in group) + sum(row.new_seconds for row in group)
        for group in by_seed.values()
        if len(group) == len(TEN)
    ]
    return _mean(whole)


def _chart(summaries: Sequence[Summary], label: str) -> charts.Chart:
    given = sorted(
        (s for s in summaries if s.part == A_TENTH and s.test is not None),
        key=lambda s: s.storage_limit,
    )
    series = []
    for method in dict.fromkeys(summary.method for summary in given):
        own = [summary for summary in given if summary.method == method]
        series.append(
            charts.Series(
                method,
                [s.storage_limit for s in own],
                [100 * (s.test or 0.0) for s in own],
                "line",
                [100 * (s.low or 0.0) for s in own],
                [100 * (s.high or 0.0) for s in own],
            )
        )
    return charts.Chart(
        f"{label}: searches with a tenth of INAG's trainings",
        "limit of storage, share of the space's maximum",
        "test score, %",
        tuple(series),
        x_log=True,
    )
