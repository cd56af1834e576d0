"""NAG on NAS-Bench-201: one policy for many devices, from a few hundred revealed cells.

  nag_devices  answers to unseen budgets on every device whose latencies are known for all cells
  nag2         the rewards of table 2, by what is generated
  nag5         the number K of budgets that have embeddings (table 5)

Cells are revealed in rounds, some at random and then those that the policy and its evaluator would
answer to budgets on the devices for training; all devices share them. Nothing else of the table of
accuracies is told before answers are judged. Three families of devices (`_KEPT_OUT`) are kept out
of rounds and training. They are asked twice: once with the latencies of all cells, of which the
policy reads ten and the range, while selection compares every candidate; and once where these ten
were measured and all else is predicted (`cost.adapted_latency`), so an answer may be over its
budget. Answers are selected from the revealed cells, the policy's draws and neighbours of the
best of both, by what the evaluator expects; a cell that was revealed is expected to be what it is.
`regret` is what an answer lacks to the best cell within the budget, in points of c10_valid.

What was revealed, and the policies, lie in WORK_DIR/nasbench201_nag, under a name made of all that
decides them, so that a stopped run goes on with the round or the policy that it was at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tfgen import errors, seeds, workdir
from tfgen.cost.adapted_latency import AdaptedLatency
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import LATENCY, CostModel
from tfgen.cost.latency import Interval
from tfgen.deployment import devices
from tfgen.evidence.record import Record
from tfgen.evidence.tabular import NasBench201
from tfgen.generators.base import Evidence
from tfgen.generators.nag import REWARDS, Nag, NagConfig, NagGenerator
from tfgen.generators.nag_evaluator import ExpectedAccuracies
from tfgen.selection import Selector
from tfgen.space import catalog
from tfgen.space.search_space import Choices, SearchSpace
from tools import reports
from tools.reports import Column, duration, percent
from tools.reproduce_cells import TABLE, VALID
from tools.reproduce_setting import different, digest

NAG, REVEALED, RANDOM = "nag", "best revealed", "best of 1,000 random"
MEASURED, ALONE = "nag, ten cells measured", "nag, one for each device"
# Families whose every device is for tests alone: a device whose sibling was trained for is not new.
_KEPT_OUT = {
    "phones of one maker": r"pixel\w*",
    "server processors": r"(gold|silver)_\w+",
    "one generation of graphics cards": r"(2080ti|titan_rtx)_\w+",
}
_ENOUGH = 0.9  # of raw samples within a budget
_RISING = 0.95  # of a budget: where the best cell uses as much, accuracy still rises with cost
QUANTILES = (0.05, 0.95)  # of a device's latencies, between which budgets lie
RAW = 1_000  # samples of the policy, of which the share within the budget is told
_RANDOM = 1_000
_OPTIMISM = 0.5  # deviations of the evaluator's members: for what is revealed next,
CAUTION = 2.0  # and for answers: the best of many expectations is an overrated one
_ROUND_CONFIG = NagConfig(costs=(LATENCY,), steps=500, evaluator_steps=800, evaluator_records=48)
_CONFIG = NagConfig(costs=(LATENCY,), steps=3_000, evaluator_steps=1_500, evaluator_records=48)
_ALONE_CONFIG = dataclasses.replace(_CONFIG, steps=1_000)
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is revealed, trained and asked.

    Attributes:
      seeds: of everything.
      first: cells that are revealed at random.
      rounds: after that.
      revealed: cells in all.
      round_budgets: of each device in a round.
      budgets: of each device, for answers.
      round_config: how policies of rounds are trained.
      config: how the last one is.
      alone_config: how a policy of one device is.
      alone_seeds: seeds for which such a policy is fitted for each device.
      draws: of the policy, for what a budget of a round would be answered.
      answer_draws: of the policy, for an answer.
      refinements: steps in which neighbours of an answer's best candidates are tried.
    """

    seeds: int = 3
    first: int = 60
    rounds: int = 6
    revealed: int = 300
    round_budgets: int = 10
    budgets: int = 20
    round_config: NagConfig = _ROUND_CONFIG
    config: NagConfig = _CONFIG
    alone_config: NagConfig = _ALONE_CONFIG
    alone_seeds: int = 1
    draws: int = 512
    answer_draws: int = 128
    refinements: int = 1

    def to_json(self) -> list[object]:
        """What decides what is revealed and fitted."""
        data = dataclasses.asdict(self)
        return [data[n] for n in ("first", "rounds", "revealed", "round_budgets", "round_config",
                                  "config", "draws")]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Answer:
    """A method's answer to one budget on one device.

    Attributes:
      seed: number of the seed.
      method: NAG, ALONE, MEASURED, REVEALED or RANDOM.
      device: by name.
      trained: whether the policy was trained for it.
      limit_ms: the budget.
      latency_ms: of the answer.
      best_ms: of the best cell within the budget.
      accuracy: of the answer, per cent.
      regret: points below the best cell within the budget; NaN where the answer is over it.
      within: of raw samples of the policy, the share within the budget; NaN for other methods.
    """

    seed: int
    method: str
    device: str
    trained: bool
    limit_ms: float
    latency_ms: float
    best_ms: float
    accuracy: float
    regret: float
    within: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """Answers of one method on devices of one kind.

    Attributes:
      method: of Answer.
      devices: which.
      answers: how many.
      unanswered: budgets for which nothing was found.
      over: answers above their budget, of which no regret is told.
      regret: mean over answers within their budgets, points.
      low: least mean of a seed.
      high: largest mean of a seed.
      worst: largest mean of a device.
      used: mean share of the budget that answers use.
      best_used: the same of the best cells.
      rising: share of the budgets of which the best cell uses 95 % and more.
      rising_used: mean share that answers use of these; NaN where there are none.
      within: mean share of raw samples within the budget.
      least_within: the least of a budget.
      enough_within: share of the budgets with 90 % and more.
    """

    method: str
    devices: str
    answers: int
    unanswered: int
    over: int
    regret: float
    low: float
    high: float
    worst: float
    used: float
    best_used: float
    rising: float
    rising_used: float
    within: float
    least_within: float
    enough_within: float


def _share(value: float) -> str:
    return "-" if np.isnan(value) else percent(value)


REGRETS = (
    Column("mean regret, points", lambda s: f"{s.regret:.3f}"),
    Column("least–largest seed", lambda s: f"{s.low:.3f}–{s.high:.3f}"),
)
SUMMARY = (
    Column("method", lambda s: s.method),
    Column("devices", lambda s: s.devices),
    Column("answers", lambda s: f"{s.answers:,}"),
    Column("unanswered", lambda s: f"{s.unanswered}"),
    Column("over budget", lambda s: f"{s.over}"),
    *REGRETS,
    Column("worst device", lambda s: f"{s.worst:.3f}"),
    Column("budget used, %", lambda s: percent(s.used)),
    Column("by the best cell, %", lambda s: percent(s.best_used)),
    Column("used where it uses 95, %", lambda s: _share(s.rising_used)),
    Column("which is so, % of budgets", lambda s: percent(s.rising, 0)),
    Column("raw samples within, %", lambda s: _share(s.within)),
    Column("least", lambda s: _share(s.least_within)),
    Column("90 % within, % of budgets", lambda s: _share(s.enough_within)),
)


class Bench:
    """The cells and what they take on devices; it knows no accuracies.

    Attributes:
      space: NAS-Bench-201.
      cells: all of it [cells, decisions].
      models: by device, what cells cost there.
      trained: devices that policies are trained for.
    """

    def __init__(self, tables: pathlib.Path):
        self.space = catalog.get("nasbench201")
        self.cells = self.space.choices(list(self.space.enumerate()))
        self._numbers = {tuple(cell): row for row, cell in enumerate(self.cells.tolist())}
        self.models: dict[str, CostModel] = {}
        self._latencies: dict[str, np.ndarray] = {}
        for name in devices.known_on(self.space, tables):
            latency = devices.latency_model(name, self.space, tables_dir=tables)
            told = latency.predict(self.cells, 0.9)
            if np.array_equal(told.ms, told.high_ms):  # all were measured, none is fitted
                self.models[name] = CostModel(self.space, latency=latency)
                self._latencies[name] = told.ms
        kept_out = re.compile("|".join(_KEPT_OUT.values()))
        self.trained = [name for name in self.models if not kept_out.fullmatch(name)]
        if not self.trained:
            raise errors.UsageError(f"{tables}: no device's latencies are known for all cells")

    def rows(self, choices: Choices) -> np.ndarray:
        """Where these cells are among all [cells]."""
        return np.array([self._numbers[tuple(cell)] for cell in choices.tolist()])

    def latencies(self, device: str) -> np.ndarray:
        """Of all cells on a device, ms [cells]."""
        return self._latencies[device]

    def limits(self, device: str, quantiles: np.ndarray) -> np.ndarray:
        """Budgets at these quantiles of a device's latencies, ms."""
        return np.quantile(self._latencies[device], quantiles)

    def asked(self, names: Iterable[str], budgets: int) -> Iterator[tuple[str, float]]:
        """Devices and limits, ms: so many budgets of each, evenly between QUANTILES."""
        for name in names:
            for limit in self.limits(name, np.linspace(*QUANTILES, budgets)):
                yield name, float(limit)

    def measured(self, device: str, tables: pathlib.Path, cells: Choices) -> CostModel:
        """The cost model of a device of which these cells were measured, and no others."""
        known = {name: devices.latency_model(name, self.space, tables_dir=tables)
                 for name in self.trained}  # fmt: skip
        adapted = AdaptedLatency(
            f"{device}, {len(cells)} cells measured",
            self.space,
            known,
            cells,
            self._latencies[device][self.rows(cells)],
            devices.numbered(self.space, tables),
        )
        ms = self._latencies[device][self.rows(cells)]
        return CostModel(self.space, latency=_TenMeasured(adapted, cells, ms))


class _TenMeasured:
    """A device's latencies as predicted; of cells that were measured, what was measured."""

    remark = ""

    def __init__(self, predicted: AdaptedLatency, cells: Choices, ms: np.ndarray):
        self.device = predicted.device
        self._predicted = predicted
        self._ms = {tuple(cell): float(own) for cell, own in zip(cells.tolist(), ms, strict=True)}

    def predict(self, choices: Choices, confidence: float) -> Interval:
        """As `cost.latency.LatencyModel` has it."""
        told = self._predicted.predict(choices, confidence)
        ms, high_ms = told.ms.copy(), told.high_ms.copy()
        for row, cell in enumerate(choices.tolist()):
            ms[row] = self._ms.get(tuple(cell), ms[row])
            high_ms[row] = self._ms.get(tuple(cell), high_ms[row])
        return Interval(ms, high_ms)


class Revealer:
    """Tells accuracies of cells, of so many different ones and no more."""

    def __init__(self, tables: pathlib.Path, space: SearchSpace, most: int):
        self._table = NasBench201(tables / TABLE, (VALID,))
        self._space = space
        self._most = most
        self._told: set[tuple[int, ...]] = set()

    def __call__(self, choices: Choices) -> list[Record]:
        """Records of cells [cells, decisions]; metrics are shares.

        Raises:
          TfgenError: more cells would be known than may be; none of these is told.
        """
        told = self._told | set(map(tuple, choices.tolist()))
        if len(told) > self._most:
            raise errors.TfgenError(f"{len(told)} cells asked for, {self._most} may be revealed")
        self._told = told
        found = self._table.accuracies[VALID][self._table.rows(choices)] / 100
        return [
            Record(self._space.architecture(row), VALID, "table", 0, float(metric), 0.0)
            for row, metric in zip(choices, found, strict=True)
        ]


class Judge:
    """What answers are worth: the only one who reads all accuracies."""

    def __init__(self, bench: Bench, tables: pathlib.Path):
        self._bench = bench
        table = NasBench201(tables / TABLE, (VALID,))
        # In the order of the bench's cells [cells].
        self._accuracies = table.accuracies[VALID][table.rows(bench.cells)]

    def answer(
        self, seed: int, method: str, device: str, limit_ms: float, cell: Choices, within: float
    ) -> Answer:
        """The answer that a cell [1, decisions] is."""
        ms = self._bench.latencies(device)
        best = int(np.argmax(np.where(ms <= limit_ms, self._accuracies, -1.0)))
        (row,) = self._bench.rows(cell)
        accuracy = float(self._accuracies[row])
        kept = ms[row] <= limit_ms
        return Answer(
            seed,
            method,
            device,
            device in self._bench.trained,
            limit_ms,
            float(ms[row]),
            float(ms[best]),
            accuracy,
            float(self._accuracies[best]) - accuracy if kept else float("nan"),
            within,
        )

    def front(self, device: str, limits: Sequence[float]) -> tuple[list[float], list[float]]:
        """What the best cell within each budget takes, ms, and its accuracy, per cent."""
        ms = self._bench.latencies(device)
        best = [int(np.argmax(np.where(ms <= limit, self._accuracies, -1.0))) for limit in limits]
        return ms[best].tolist(), self._accuracies[best].tolist()

    def best_of(self, device: str, limit_ms: float, choices: Choices) -> Choices | None:
        """The best of some cells within a budget [1, decisions]; None where none is."""
        rows = self._bench.rows(choices)
        rows = rows[self._bench.latencies(device)[rows] <= limit_ms]
        if not len(rows):
            return None
        return self._bench.cells[[rows[np.argmax(self._accuracies[rows])]]]


class _Prediction(NamedTuple):
    """What selection reads of a predictor, each [networks]."""

    performance: np.ndarray
    metric: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Expected:
    """The evaluator as selection's predictor; what was revealed is what it is."""

    def __init__(self, generator: NagGenerator, records: Sequence[Record], deviations: float):
        """Reads the evaluator.

        Args:
          generator: on the device.
          records: that were revealed.
          deviations: of its members that are added to the mean where nothing was revealed.
        """
        self._platform = generator.platform
        space = generator.platform.cost_model.space
        choices = space.choices([record.architecture for record in records])
        accuracies = np.array([record.metric for record in records])
        self._expected = ExpectedAccuracies(
            generator.evaluator, generator.platform, choices, accuracies
        )
        self._deviations = deviations
        self._known = {tuple(row): m for row, m in zip(choices.tolist(), accuracies, strict=True)}

    def predict(self, choices: Choices, confidence: float) -> _Prediction:
        """Expected accuracies; the interval is one number."""
        del confidence
        mean, deviation = self._expected.of(choices, self._platform.costs(choices))
        told = mean + self._deviations * deviation
        for row, cell in enumerate(choices.tolist()):
            told[row] = self._known.get(tuple(cell), told[row])
        return _Prediction(told, told, told, told)

    def is_known(self, cell: Sequence[int]) -> bool:
        """Whether a cell was revealed."""
        return tuple(cell) in self._known


def revealed_in_rounds(
    bench: Bench, reveal: Revealer, sizes: Sizes, seed: int, path: pathlib.Path, say: Say
) -> list[Record]:
    """The cells that the method chooses to have revealed, round by round.

    Args:
      bench: the cells.
      reveal: tells accuracies.
      sizes: how many, and how policies of rounds are trained.
      seed: of everything.
      path: JSON file that keeps what was chosen.
      say: told how far it is.
    """
    known = workdir.read_json(path) if path.is_file() else []
    if not known:
        random = bench.space.sample(4 * sizes.first, seeds.stream(seed, "first"))
        known = different(random)[: sizes.first].tolist()
        workdir.write_json(path, known)
    a_round = -(-(sizes.revealed - sizes.first) // max(sizes.rounds, 1))
    while len(known) < sizes.revealed:
        own = seeds.derive(seed, "round", len(known))
        records = reveal(np.array(known))
        generator = fitted(bench, records, sizes.round_config, own)
        gains = _gains(bench, generator, records, sizes, own)
        wanted = min(a_round, sizes.revealed - len(known))
        best = sorted(gains, key=lambda cell: -gains[cell])[:wanted]
        if not best:
            raise errors.TfgenError("the policy writes nothing that was not revealed")
        known += [list(cell) for cell in best]
        workdir.write_json(path, known)
        say(f"{len(known)} cells revealed")
    return reveal(np.array(known))


def fitted(bench: Bench, records: Sequence[Record], config: NagConfig, seed: int) -> NagGenerator:
    """One policy for the devices of training."""
    evidence = Evidence(bench.space, CostModel(bench.space), records)
    models = [bench.models[name] for name in bench.trained]
    return Nag().fit_devices(evidence, models, config, seed)


def _gains(
    bench: Bench, generator: NagGenerator, records: Sequence[Record], sizes: Sizes, seed: int
) -> dict[tuple[int, ...], float]:
    """Of cells that are not known, what they may add to the answers to budgets, all together."""
    selector = Selector(count=4, draws=sizes.draws, refinements=8)
    random = seeds.stream(seed, "gains")
    known = bench.space.choices([record.architecture for record in records])
    accuracies = np.array([record.metric for record in records])
    gains: dict[tuple[int, ...], float] = {}
    for device in bench.trained:
        own, model = generator.on(bench.models[device]), bench.models[device]
        expected = Expected(own, records, _OPTIMISM)
        known_ms = model.costs(known)[LATENCY]
        for limit in bench.limits(device, random.uniform(*QUANTILES, sizes.round_budgets)):
            budget = Budget({LATENCY: float(limit)}, None, device)
            best = accuracies[known_ms <= limit].max(initial=0.0)
            with contextlib.suppress(errors.InfeasibleBudgetError):
                found = selector.select(bench.space, own, expected, model, budget, "nag", seed)
                for candidate in found:
                    cell = tuple(candidate.architecture.choices)
                    if not expected.is_known(cell):
                        # A little for what gains nothing here, so that a round is always full.
                        gain = max(candidate.metric - best, 1e-6)
                        gains[cell] = gains.get(cell, 0.0) + gain
    return gains


def nag_devices(
    tables: pathlib.Path,
    work: pathlib.Path,
    sizes: Sizes,
    seed: int,
    folder: pathlib.Path,
    say: Say = print,
) -> list[Summary]:
    """Reveals, trains and answers, seed by seed; writes nag_devices.csv and .md after each.

    Args:
      tables: the folder of public tables.
      work: where fits lie.
      sizes: how much.
      seed: of everything.
      folder: for the results.
      say: told how far it is.

    Raises:
      UsageError: a table is missing.
    """
    bench = Bench(tables)
    judge = Judge(bench, tables)
    answers: list[Answer] = []
    seconds: list[float] = []
    rankings: list[tuple[float, float]] = []
    summaries: list[Summary] = []
    for number in range(sizes.seeds):
        own, kept = place(bench, work, sizes, seed, number)
        since = time.perf_counter()
        records = revealed(bench, tables, sizes, own, kept, say)
        fit = functools.partial(fitted, bench, records, sizes.config, own)
        generator = _kept_fit(bench, kept / "generator.npz", fit)
        say(f"seed {number}: ready in {duration(time.perf_counter() - since)}")
        evaluator = generator.evaluator
        rankings.append((evaluator.ranking_accuracy, evaluator.accuracy_ranking))
        of = {device: generator.on(model) for device, model in bench.models.items()}
        found, spent = _answers(bench, judge, NAG, of, records, sizes, own, number)
        answers += [*found, *_looked_up(bench, judge, records, sizes, own, number)]
        if number < sizes.alone_seeds:
            alone = {
                device: _alone(bench, device, records, sizes, own, kept) for device in bench.models
            }
            answers += _answers(bench, judge, ALONE, alone, records, sizes, own, number)[0]
        answers += _measured_answers(bench, judge, tables, generator, records, sizes, own, number)
        seconds.append(spent)
        summaries = summarise(answers, sizes.budgets)
        reports.write_csv(folder / "nag_devices.csv", answers)
        reports.write_markdown(
            folder / "nag_devices.md",
            f"{len(bench.models)} devices, {len(bench.trained)} of them for training, kept out "
            f"{', '.join(_KEPT_OUT)}; "
            f"{sizes.revealed} cells revealed, {sizes.first} of them at random; {number + 1} "
            f"seeds; {sizes.budgets} budgets a device.",
            f"An answer takes {1000 * np.mean(seconds):.0f} ms: {sizes.answer_draws} draws, "
            f"selection and {sizes.refinements} step of refinement. Of pairs of held-out records "
            "the evaluator ranks "
            + ", ".join(percent(budget) for budget, _ in rankings)
            + " % rightly for budgets, "
            + ", ".join(percent(none) for _, none in rankings)
            + " % by accuracy alone.",
            reports.markdown(SUMMARY, summaries),
        )
    say((folder / "nag_devices.md").read_text())
    return summaries


def _kept_fit(bench: Bench, path: pathlib.Path, fit: Callable[[], NagGenerator]) -> NagGenerator:
    """A policy from its file where it is there, else fitted and kept."""
    if path.is_file():
        return Nag().restore(bench.space, workdir.read_arrays(path))
    generator = fit()
    workdir.write_arrays(path, generator.state())
    return generator


def place(
    bench: Bench, work: pathlib.Path, sizes: Sizes, seed: int, number: int
) -> tuple[int, pathlib.Path]:
    """One seed's own seed, and where its cells and fits lie."""
    own = seeds.derive(seed, "nag", number)
    return own, work / f"seed_{number}-{digest([own, sizes.to_json(), bench.trained])}"


def revealed(
    bench: Bench, tables: pathlib.Path, sizes: Sizes, seed: int, kept: pathlib.Path, say: Say
) -> list[Record]:
    """The cells of a seed, from its folder where they were chosen before."""
    reveal = Revealer(tables, bench.space, sizes.revealed)
    return revealed_in_rounds(bench, reveal, sizes, seed, kept / "revealed.json", say)


def _selected(
    sizes: Sizes,
    generator: NagGenerator,
    records: Sequence[Record],
    limit_ms: float,
    seed: int,
) -> Choices | None:
    """The cell that is expected best within a budget [1, decisions]; None where none is found."""
    model = generator.platform.cost_model
    assert model.latency is not None
    selector = Selector(count=1, draws=sizes.answer_draws, refinements=sizes.refinements)
    known = model.space.choices([record.architecture for record in records])
    budget = Budget({LATENCY: limit_ms}, None, model.latency.device)
    try:
        (found,) = selector.select(
            model.space,
            generator,
            Expected(generator, records, -CAUTION),
            model,
            budget,
            "nag",
            seed,
            known,
        )
    except errors.InfeasibleBudgetError:
        return None
    return model.space.choices([found.architecture])


def _measured_answers(
    bench: Bench,
    judge: Judge,
    tables: pathlib.Path,
    generator: NagGenerator,
    records: Sequence[Record],
    sizes: Sizes,
    seed: int,
    number: int,
) -> list[Answer]:
    """NAG's answers on devices that were kept out, of which the policy's ten were measured."""
    kept_out = [device for device in bench.models if device not in bench.trained]
    ten = generator.references
    assert ten is not None  # it is a policy of many devices
    own = {device: generator.on(bench.measured(device, tables, ten)) for device in kept_out}
    answers = []
    for device, limit in bench.asked(kept_out, sizes.budgets):
        cell = _selected(sizes, own[device], records, limit, seed)
        if cell is not None:
            answers.append(judge.answer(number, MEASURED, device, limit, cell, np.nan))
    return answers


def _alone(
    bench: Bench,
    device: str,
    records: Sequence[Record],
    sizes: Sizes,
    seed: int,
    kept: pathlib.Path,
) -> NagGenerator:
    """A policy of one device, taught by the same cells as that of all."""
    evidence = Evidence(bench.space, bench.models[device], records)
    path = kept / f"alone-{digest([device, dataclasses.asdict(sizes.alone_config)])}.npz"
    fit = functools.partial(Nag().fit, evidence, sizes.alone_config, seed)
    return _kept_fit(bench, path, fit).on(bench.models[device])


def _answers(
    bench: Bench,
    judge: Judge,
    method: str,
    generators: Mapping[str, NagGenerator],
    records: Sequence[Record],
    sizes: Sizes,
    seed: int,
    number: int,
) -> tuple[list[Answer], float]:
    """The answers of policies, by device, and the seconds that one of them takes."""
    answers: list[Answer] = []
    spent = 0.0
    for device, limit in bench.asked(generators, sizes.budgets):
        own = generators[device]
        since = time.perf_counter()
        cell = _selected(sizes, own, records, limit, seed)
        spent += time.perf_counter() - since
        (raw,) = own.propose([Budget({LATENCY: limit}, None, device)], RAW, seed)
        within = float((bench.models[device].costs(raw.choices)[LATENCY] <= limit).mean())
        if cell is not None:
            answers.append(judge.answer(number, method, device, limit, cell, within))
    return answers, spent / (len(generators) * sizes.budgets)


def _looked_up(
    bench: Bench,
    judge: Judge,
    records: Sequence[Record],
    sizes: Sizes,
    seed: int,
    number: int,
) -> list[Answer]:
    """The best of what was revealed, and of random cells."""
    known = bench.space.choices([record.architecture for record in records])
    random = bench.space.sample(_RANDOM, seeds.stream(seed, "random"))
    answers = []
    for device, limit in bench.asked(bench.models, sizes.budgets):
        for method, cells in ((REVEALED, known), (RANDOM, random)):
            best = judge.best_of(device, limit, cells)
            if best is not None:
                answers.append(judge.answer(number, method, device, limit, best, np.nan))
    return answers


def summarise(answers: Sequence[Answer], budgets: int) -> list[Summary]:
    """A summary for each method, of devices for training and of those kept out of that for all.

    Args:
      answers: to all budgets of a device.
      budgets: of each device.
    """
    summaries = []
    for method in dict.fromkeys(answer.method for answer in answers):
        for trained, name in ((True, "trained for"), (False, "kept out")):
            own = [a for a in answers if (a.method, a.trained) == (method, trained)]
            if own:
                seen = {a.seed for a in own}
                asked = {(a.seed, a.device) for a in answers if a.trained == trained}
                of_these = budgets * sum(seed in seen for seed, _ in asked)
                summaries.append(_summary(method, name, own, of_these - len(own)))
    return summaries


def _summary(method: str, name: str, own: Sequence[Answer], unanswered: int) -> Summary:
    by_seed = _means(own, lambda a: a.seed)
    by_device = _means(own, lambda a: a.device)
    rising = [a.latency_ms / a.limit_ms for a in own if a.best_ms >= _RISING * a.limit_ms]
    return Summary(
        method,
        name,
        len(own),
        unanswered,
        sum(a.latency_ms > a.limit_ms for a in own),
        float(np.nanmean([a.regret for a in own])),
        float(np.nanmin(list(by_seed.values()))),
        float(np.nanmax(list(by_seed.values()))),
        float(np.nanmax(list(by_device.values()))),
        float(np.mean([a.latency_ms / a.limit_ms for a in own])),
        float(np.mean([a.best_ms / a.limit_ms for a in own])),
        len(rising) / len(own),
        float(np.mean(rising)) if rising else float("nan"),
        float(np.mean([a.within for a in own])),
        float(np.min([a.within for a in own])),
        float(np.mean([np.nan if np.isnan(a.within) else a.within >= _ENOUGH for a in own])),
    )


def _means(answers: Sequence[Answer], key: Callable[[Answer], object]) -> Mapping[object, float]:
    """Mean regret by key."""
    return {
        value: float(np.nanmean([a.regret for a in answers if key(a) == value]))
        for value in {key(answer) for answer in answers}
    }


# --- tables 2 and 5 -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a policy writes for one budget, without refinement.

    Attributes:
      variant: how the policy was trained.
      seed: number of the seed.
      limit_ms: the budget.
      latency_ms: mean of the samples.
      within: share of the samples within the budget.
      accuracy: of the answer, the sample within the budget that the evaluator expects most of, per
        cent; NaN where none is within.
      regret: points below the best cell within the budget; NaN where no sample is.
    """

    variant: str
    seed: int
    limit_ms: float
    latency_ms: float
    within: float
    accuracy: float
    regret: float


@dataclasses.dataclass(frozen=True)
class VariantSummary:
    """One variant over budgets and seeds.

    Attributes:
      variant: of Drawn.
      accuracy: mean of the answers, per cent.
      regret: their mean, points.
      low: least mean of a seed.
      high: largest mean of a seed.
      used: mean share of the budget that samples take.
      within: mean share of samples within the budget.
      unanswered: budgets for which no sample is within.
    """

    variant: str
    accuracy: float
    regret: float
    low: float
    high: float
    used: float
    within: float
    unanswered: int


VARIANTS = (
    Column("policy", lambda s: s.variant),
    Column("mean accuracy, %", lambda s: f"{s.accuracy:.2f}"),
    *REGRETS,
    Column("samples' share of the budget, %", lambda s: percent(s.used)),
    Column("samples within, %", lambda s: percent(s.within)),
    Column("budgets without an answer", lambda s: f"{s.unanswered}"),
)


def rewards_compared(config: NagConfig) -> dict[str, NagConfig]:
    """Table 2: a policy for each reward."""
    return {reward: dataclasses.replace(config, reward=reward) for reward in REWARDS}


def budgets_compared(config: NagConfig) -> dict[str, NagConfig]:
    """Table 5: a policy for each K."""
    return {f"K = {k}": dataclasses.replace(config, budgets=k) for k in (2, 5, 10, 30)}


def nag_variants(
    name: str,
    variants: Mapping[str, NagConfig],
    tables: pathlib.Path,
    work: pathlib.Path,
    sizes: Sizes,
    device: str,
    seed: int,
    folder: pathlib.Path,
    say: Say = print,
) -> list[VariantSummary]:
    """Trains policies of one device on the same revealed cells; writes NAME.csv and NAME.md.

    Args:
      name: of the table.
      variants: by name, how policies are trained.
      tables: the folder of public tables.
      work: where revealed cells lie.
      sizes: how many cells, budgets and seeds.
      device: whose latency budgets limit.
      seed: of everything.
      folder: for the results.
      say: told how far it is.

    Raises:
      UsageError: a table is missing, or the device is not one of them.
    """
    bench = Bench(tables)
    judge = Judge(bench, tables)
    if device not in bench.models:
        raise errors.UsageError(f"device {device!r} is none of {', '.join(bench.models)}")
    drawn: list[Drawn] = []
    summaries: list[VariantSummary] = []
    for number in range(sizes.seeds):
        own, kept = place(bench, work, sizes, seed, number)
        records = revealed(bench, tables, sizes, own, kept, say)
        evidence = Evidence(bench.space, bench.models[device], records)
        for variant, config in variants.items():
            path = kept / f"policy-{digest([device, dataclasses.asdict(config)])}.npz"
            fit = functools.partial(Nag().fit, evidence, config, own)
            generator = _kept_fit(bench, path, fit).on(bench.models[device])
            drawn += _drawn(bench, judge, generator, records, sizes, device, variant, number, own)
            say(f"seed {number}: {variant}")
        summaries = _variant_summaries(drawn)
        reports.write_csv(folder / f"{name}.csv", drawn)
        reports.write_markdown(
            folder / f"{name}.md",
            f"Policies of one device, {device}, taught by the same {sizes.revealed} cells; "
            f"{number + 1} seeds, {sizes.budgets} budgets, {RAW:,} samples each, no refinement.",
            reports.markdown(VARIANTS, summaries),
        )
    say((folder / f"{name}.md").read_text())
    return summaries


def _drawn(
    bench: Bench,
    judge: Judge,
    generator: NagGenerator,
    records: Sequence[Record],
    sizes: Sizes,
    device: str,
    variant: str,
    number: int,
    seed: int,
) -> list[Drawn]:
    """What a policy writes for each budget, asked for just that: what it keeps is compared."""
    expected = Expected(generator, records, -CAUTION)
    found = []
    for limit in map(float, bench.limits(device, np.linspace(*QUANTILES, sizes.budgets))):
        target = generator.platform.targets.asked(Budget({LATENCY: limit}, None, device))
        raw = generator.draw(np.repeat(target[None], RAW, axis=0), seed)
        ms = bench.models[device].costs(raw)[LATENCY]
        accuracy = regret = np.nan
        if (ms <= limit).any():
            cells = raw[ms <= limit]
            best = cells[[int(np.argmax(expected.predict(cells, 0.5).metric))]]
            answer = judge.answer(number, NAG, device, limit, best, np.nan)
            accuracy, regret = answer.accuracy, answer.regret
        within = float((ms <= limit).mean())
        found.append(Drawn(variant, number, limit, float(ms.mean()), within, accuracy, regret))
    return found


def _variant_summaries(drawn: Sequence[Drawn]) -> list[VariantSummary]:
    summaries = []
    for variant in dict.fromkeys(d.variant for d in drawn):
        own = [d for d in drawn if d.variant == variant]
        by_seed = [
            float(np.nanmean([d.regret for d in own if d.seed == number]))
            for number in {d.seed for d in own}
        ]
        summaries.append(
            VariantSummary(
                variant,
                float(np.nanmean([d.accuracy for d in own])),
                float(np.nanmean([d.regret for d in own])),
                min(by_seed),
                max(by_seed),
                float(np.mean([d.latency_ms / d.limit_ms for d in own])),
                float(np.mean([d.within for d in own])),
                sum(np.isnan(d.regret) for d in own),
            )
        )
    return summaries
