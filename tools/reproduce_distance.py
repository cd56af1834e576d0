"""How well generated networks keep to their condition: table 4 and figure 4 of the NAGAN paper.

For each condition 0.1, 0.2 .. 1.0 networks straight from the generator, without any selection, are
trained once and with a new seed each. Distances are |p - c|, p the normalised performance clipped
to 0..1 (`PerformanceScale` of the records). Beside them:
  * the look-up floor: the records nearest to each condition, trained again. It is made of training
    noise and of what the nearest record owed to luck;
  * what part is training noise: some of the networks are trained a second time (`training_noise`);
  * the expected distance: what the encoder, which knows that trainings scatter, says of the same
    networks. mDist_f compares its mean alone, as the paper does.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import errors, seeds
from tfgen.cost import metrics, pareto
from tfgen.experiment import Experiment
from tfgen.space.search_space import Choices
from tools import charts, reports
from tools.reports import Column, percent
from tools.reproduce_setting import METHOD, Fit, Published, Setting, configured, published

SWEEP = np.arange(1, 11) / 10
BETWEEN = np.arange(1, 20, 2) / 20  # 0.05, 0.15 .. 0.95
BEYOND = np.array([-0.1, 1.1])  # counted to 0 and 1, the nearest that a performance can be
BAG = 1_000
SPREAD = (0.05, 0.95)
RECORD_COUNTS = (100, 200, 500, 1000, 2000, 4000, 8000)  # figure 4(a)
FRONT_SWEEP = np.arange(21) / 20  # figure 4(b)
FRONT_BAG = 100
FRONT_TRAINED = 5
_MAX_BACKGROUND = 2_000  # records drawn behind figure 4(b)
Say = Callable[[str], None]

_ALONE = {"teaching_steps": 0, "steps": 3_000, "generator_rate": 3e-3, "entropy_weight": 3e-3}

# Ablation rows: by name, what differs from the experiment's config.
VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "as configured": {},
    "one round of proposals": {"experiment": {"rounds": 1, "round_networks": 1_000}},
    "two rounds": {"experiment": {"rounds": 2, "round_networks": 1_000}},
    "encoder of one network": {"surrogate": {"members": 1}},
    "teacher half as warm": {METHOD: {"teaching_temperature": 0.0015}},
    "teacher twice as warm": {METHOD: {"teaching_temperature": 0.006}},
    "then algorithm 1": {METHOD: {"steps": 1_000}},
    "algorithm 1 alone": {METHOD: _ALONE},
    "alone, V(E) of the encoder's mean": {METHOD: {**_ALONE, "scatter_weight": 0.0}},
    "alone, no entropy reward": {
        METHOD: {**_ALONE, "entropy_weight": 0.0, "shortfall_weight": 0.0}
    },
    "alone, diversity reward": {METHOD: {**_ALONE, "diversity_weight": 0.05}},
    "alone, Gumbel-softmax not rounded": {METHOD: {**_ALONE, "straight_through": False}},
    "alone, V(G) ten times as heavy": {METHOD: {**_ALONE, "adversarial_weight": 0.1}},
    "the same with spectral normalisation": {
        METHOD: {**_ALONE, "adversarial_weight": 0.1, "spectral_norm": True}
    },
    "alone, condition noise": {METHOD: {**_ALONE, "condition_noise": 0.05}},
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is trained.

    Attributes:
      generators: seeds of the encoder and the generator.
      networks: for each condition and generator.
      repeated: of these networks, how many are trained twice.
      floor_networks: records for each condition.
    """

    generators: int = 3
    networks: int = 20
    repeated: int = 5
    floor_networks: int = 10


@dataclasses.dataclass(frozen=True)
class Asked:
    """Networks and what they were asked for; each field [networks].

    Attributes:
      conditions: on the experiment's scale.
      choices: [networks, decisions].
      performance: normalised, of one training each.
      told: distance of the encoder's mean.
      expected: distance that the encoder expects of one training.
      real: distance of the training.
    """

    conditions: np.ndarray
    choices: Choices
    performance: np.ndarray
    told: np.ndarray
    expected: np.ndarray
    real: np.ndarray


@dataclasses.dataclass(frozen=True)
class Noise:
    """How much of a distance is training noise.

    Attributes:
      distance: mean |p - E p| over networks: the mDist_r of a generator whose every network has the
        asked performance on average.
      share: of the mean squared distance, which is the sum of noise and of missed conditions.
    """

    distance: float
    share: float


def training_noise(first: np.ndarray, second: np.ndarray, conditions: np.ndarray) -> Noise:
    """Splits distances by two trainings of each network, of different seeds; arguments [networks].

    For one network E|p1 - E p| = E|p1 - p2| / sqrt(2) where trainings are normal (and within 6 %
    of it where they are Laplace), and E(p1 - p2)^2 / 2 is exactly their variance, of whatever
    distribution; E(p - c)^2 = (E p - c)^2 + variance.
    """
    apart = np.abs(first - second)
    squared = (np.square(first - conditions) + np.square(second - conditions)) / 2
    return Noise(
        float(apart.mean() / np.sqrt(2)),
        float(np.square(apart).mean() / 2 / max(squared.mean(), 1e-12)),
    )


def own_conditions(setting: Setting, fit: Fit, conditions: np.ndarray) -> np.ndarray:
    """Conditions of the experiment's scale on the fit's own: of fewer records it is another."""
    own = fit.surrogate.scale
    if own == setting.scale:
        return conditions
    return np.asarray((setting.scale.metric(conditions) - own.low) / (own.high - own.low))


def draw(setting: Setting, fit: Fit, conditions: np.ndarray, seed: int) -> Choices:
    """Networks at conditions of the experiment's scale [networks, decisions]."""
    return np.asarray(fit.generator.draw(own_conditions(setting, fit, conditions), seed))


def expected_distances(
    setting: Setting, fit: Fit, choices: Choices, conditions: np.ndarray
) -> np.ndarray:
    """What the encoder expects |p - c| of one training to be, on the experiment's scale."""
    own = fit.surrogate.scale
    told = fit.surrogate.expected_distance(choices, own_conditions(setting, fit, conditions))
    return np.asarray(told * (own.high - own.low) / (setting.scale.high - setting.scale.low))


def ask(setting: Setting, fit: Fit, conditions: np.ndarray, networks: int, seed: int) -> Asked:
    """Draws networks for each condition and trains them."""
    wanted = np.repeat(conditions, networks)
    choices = draw(setting, fit, wanted, seeds.derive(seed, "draw"))
    goals = np.clip(wanted, 0, 1)
    prediction = fit.surrogate.predict(choices)
    performance = _performance(setting, choices, seeds.derive(seed, "train"))
    return Asked(
        wanted,
        choices,
        performance,
        np.abs(setting.scale.normalise(prediction.metric) - goals),
        expected_distances(setting, fit, choices, goals),
        np.abs(performance - goals),
    )


def _performance(setting: Setting, choices: Choices, seed: int) -> np.ndarray:
    """Normalised performance of one training of each network."""
    architectures = [setting.space.architecture(row) for row in choices]
    records = setting.train(architectures, seed)
    return np.asarray(setting.scale.normalise([record.metric for record in records]))


def floor(setting: Setting, networks: int, seed: int) -> np.ndarray:
    """Distances of the records nearest to each condition of the sweep, trained again.

    Of records that are equally near, as all beyond the scale are to 1, any.
    """
    performance = setting.scale.normalise([r.metric for r in setting.records])
    ties = seeds.stream(seed, "floor", "ties").permutation(len(performance))
    nearest = [np.lexsort((ties, np.abs(performance - c)))[:networks] for c in SWEEP]
    rows = np.concatenate(nearest)
    conditions = np.concatenate([np.full(len(n), c) for n, c in zip(nearest, SWEEP, strict=True)])
    choices = setting.space.choices([setting.records[row].architecture for row in rows])
    return np.abs(_performance(setting, choices, seeds.derive(seed, "floor")) - conditions)


@dataclasses.dataclass(frozen=True)
class Bag:
    """How different the networks of one condition are.

    Attributes:
      distinct: networks among BAG draws.
      storage: normalised storage at the quantiles of SPREAD.
      energy: normalised energy at them.
    """

    distinct: int
    storage: tuple[float, float]
    energy: tuple[float, float]


def bag(setting: Setting, fit: Fit, condition: float, seed: int) -> Bag:
    """Draws BAG networks for one condition and counts them."""
    choices = draw(setting, fit, np.full(BAG, condition), seeds.derive(seed, "bag"))
    costs = setting.costs.costs(choices)

    def spread(metric: str) -> tuple[float, float]:
        low, high = np.quantile(setting.costs.normalised(metric, costs[metric]), SPREAD)
        return float(low), float(high)

    return Bag(len(np.unique(choices, axis=0)), spread("storage_kb"), spread("energy_uj"))


# --- table 4 --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """An experiment in table 4, or a variant in the ablation; distances are shares of 1.

    Attributes:
      name: of the experiment or variant.
      trained: networks behind mdist_r.
      mdist_f: mean distance of the encoder's mean.
      expected: mean distance that the encoder expects of a training.
      mdist_r: mean distance of real trainings.
      low: lower end of its 95 % bootstrap interval over networks.
      high: upper end.
      seed_low: mdist_r of the best generator seed.
      seed_high: of the worst.
      between: mdist_r at conditions between those of the sweep.
      floor: look-up floor.
      floor_low: lower end of its 95 % bootstrap interval over records.
      floor_high: upper end.
      noise: `Noise.distance`.
      noise_share: `Noise.share`.
      distinct: networks in a bag, the least over the sweep's conditions and generators.
      distinct_between: the same over the conditions between them.
      beyond: mdist_r at conditions beyond the scale, to its nearer end.
      storage_spread: between the quantiles of SPREAD, the mean over conditions.
      energy_spread: as storage_spread.
      metric_low: where the scale of performance begins.
      metric_high: where it ends.
      metric_best: of the records.
    """

    name: str
    trained: int
    mdist_f: float
    expected: float
    mdist_r: float
    low: float
    high: float
    seed_low: float
    seed_high: float
    between: float
    beyond: float
    floor: float
    floor_low: float
    floor_high: float
    noise: float
    noise_share: float
    distinct: int
    distinct_between: int
    storage_spread: float
    energy_spread: float
    metric_low: float
    metric_high: float
    metric_best: float

    def aim(self, paper: Published) -> float:
        """The mDist_r to reach: the bar, or a point above the floor where that is more."""
        return max(paper.reach, self.floor + 0.01)


@dataclasses.dataclass(frozen=True)
class ConditionRow:
    """An experiment at one condition.

    Attributes:
      name: of the experiment.
      kind: "sweep", "between" or "beyond".
      condition: that was asked for.
      trained: networks.
      mdist_f: see Row; the next two too.
      expected: mean distance that the encoder expects.
      mdist_r: mean distance of trainings.
      distinct: networks in a bag of the first generator.
      storage_low: normalised storage of that bag at the first quantile of SPREAD.
      storage_high: at the second.
      energy_low: normalised energy.
      energy_high: normalised energy.
    """

    name: str
    kind: str
    condition: float
    trained: int
    mdist_f: float
    expected: float
    mdist_r: float
    distinct: int
    storage_low: float
    storage_high: float
    energy_low: float
    energy_high: float


def measure(
    setting: Setting,
    experiment: Experiment,
    name: str,
    sizes: Sizes,
    seed: int,
    say: Say = print,
) -> tuple[Row, list[ConditionRow]]:
    """All that table 4 tells of one experiment, or of one variant of it."""
    swept, between, beyond, bags, outer, pairs = [], [], [], [], [], []
    for number in range(sizes.generators):
        fit = setting.fit(experiment, experiment.seed + number)
        own = seeds.derive(seed, "generator", number)
        swept.append(ask(setting, fit, SWEEP, sizes.networks, own))
        say(f"{name}, generator {number}: mDist_r {percent(float(swept[-1].real.mean()))} %")
        other = seeds.derive(own, "others")
        between.append(ask(setting, fit, BETWEEN, sizes.repeated, other))
        beyond.append(ask(setting, fit, BEYOND, sizes.repeated, seeds.derive(own, "beyond")))
        bags.append([bag(setting, fit, c, own) for c in SWEEP])
        pairs.append(_pairs(setting, swept[-1], sizes, own))
        outer.append([bag(setting, fit, c, own) for c in (*BETWEEN, *BEYOND)])
    everything, others = _joined(swept), _joined([*between, *beyond])
    first, second, conditions = (np.concatenate(column) for column in zip(*pairs, strict=True))
    noise = training_noise(first, second, conditions)
    low, high = metrics.bootstrap_interval(everything.real, seed)
    by_seed = [float(asked.real.mean()) for asked in swept]
    floors = floor(setting, sizes.floor_networks, seed)
    floor_low, floor_high = metrics.bootstrap_interval(floors, seed)
    row = Row(
        name=name,
        trained=len(everything.real),
        mdist_f=float(everything.told.mean()),
        expected=float(everything.expected.mean()),
        mdist_r=float(everything.real.mean()),
        low=low,
        high=high,
        seed_low=min(by_seed),
        seed_high=max(by_seed),
        between=float(_joined(between).real.mean()),
        beyond=float(_joined(beyond).real.mean()),
        floor=float(floors.mean()),
        floor_low=floor_low,
        floor_high=floor_high,
        noise=noise.distance,
        noise_share=noise.share,
        distinct=min(b.distinct for row in bags for b in row),
        distinct_between=min(b.distinct for row in outer for b in row[: len(BETWEEN)]),
        storage_spread=float(np.mean([b.storage[1] - b.storage[0] for row in bags for b in row])),
        energy_spread=float(np.mean([b.energy[1] - b.energy[0] for row in bags for b in row])),
        metric_low=setting.scale.low,
        metric_high=setting.scale.high,
        metric_best=max(record.metric for record in setting.records),
    )
    details = [
        _condition_row(name, kind, condition, asked, b)
        for kind, asked, grid, own_bags in (
            ("sweep", everything, SWEEP, bags[0]),
            ("between", others, BETWEEN, outer[0][: len(BETWEEN)]),
            ("beyond", others, BEYOND, outer[0][len(BETWEEN) :]),
        )
        for condition, b in zip(grid, own_bags, strict=True)
    ]
    return row, details


def _pairs(
    setting: Setting, asked: Asked, sizes: Sizes, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trains the first networks of each condition again.

    Returns:
      Normalised performance of the first and the second training, and the condition [networks].
    """
    rows = np.arange(len(asked.conditions)).reshape(len(SWEEP), -1)[:, : sizes.repeated].ravel()
    again = _performance(setting, asked.choices[rows], seeds.derive(seed, "train again"))
    return asked.performance[rows], again, asked.conditions[rows]


def _joined(parts: Sequence[Asked]) -> Asked:
    fields = [field.name for field in dataclasses.fields(Asked)]
    return Asked(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def _condition_row(name: str, kind: str, condition: float, asked: Asked, bag_: Bag) -> ConditionRow:
    own = asked.conditions == condition
    return ConditionRow(
        name,
        kind,
        float(condition),
        int(own.sum()),
        *(float(column[own].mean()) for column in (asked.told, asked.expected, asked.real)),
        bag_.distinct,
        *bag_.storage,
        *bag_.energy,
    )


_DISTANCES = (
    Column("mDist_f", lambda r: percent(r.mdist_f)),
    Column("expected", lambda r: percent(r.expected)),
    Column("mDist_r", lambda r: percent(r.mdist_r)),
    Column("95 % interval", lambda r: reports.interval(r.low, r.high)),
    Column("generator seeds", lambda r: reports.interval(r.seed_low, r.seed_high)),
    Column("floor", lambda r: percent(r.floor)),
    Column("its interval", lambda r: reports.interval(r.floor_low, r.floor_high)),
)
_BAGS = (
    Column("distinct of 1,000", lambda r: f"{r.distinct:,}"),
    Column("between conditions", lambda r: f"{r.distinct_between:,}"),
    Column("spread of storage", lambda r: percent(r.storage_spread)),
    Column("spread of energy", lambda r: percent(r.energy_spread)),
)
_NAME = (Column("", lambda r: r.name),)
TABLE_4 = (
    *_NAME,
    *_DISTANCES,
    Column("aim", lambda r: percent(r.aim(published(r.name)))),
    Column("paper's mDist_f", lambda r: percent(published(r.name).mdist_f)),
    Column("paper's mDist_r", lambda r: percent(published(r.name).mdist_r)),
)
TABLE_4_MORE = (
    *_NAME,
    Column("trained", lambda r: f"{r.trained:,}"),
    Column("training noise", lambda r: percent(r.noise)),
    Column("its share of the squared distance", lambda r: percent(r.noise_share, 0)),
    Column("mDist_r between conditions", lambda r: percent(r.between)),
    Column("beyond the scale", lambda r: percent(r.beyond)),
    *_BAGS,
)
_RECIPE = (
    *_NAME,
    Column("starts", lambda r: str(configured(published(r.name).config).recipe.starts)),
    Column("steps", lambda r: f"{configured(published(r.name).config).recipe.steps:,}"),
    Column("batch", lambda r: str(configured(published(r.name).config).recipe.batch_size)),
    Column("metric at 0 %", lambda r: f"{r.metric_low:.4f}"),
    Column("at 100 %", lambda r: f"{r.metric_high:.4f}"),
    Column("of the best record", lambda r: f"{r.metric_best:.4f}"),
)
ABLATION = (*_NAME, *_DISTANCES, *_BAGS)
_UNITS = "All in % of the range of performance (costs: of the space's maximum) unless said."


def table_4(
    settings: Mapping[str, Callable[[], Setting]],
    sizes: Sizes,
    seed: int,
    folder: pathlib.Path,
    say: Say = print,
) -> None:
    """Measures the experiments one by one; what is measured is written after each.

    Args:
      settings: by label, what reads the experiment.
      sizes: how much is trained.
      seed: of draws and trainings.
      folder: where nagan4.csv and the others go.
      say: told how far it is.
    """
    rows, details, series = [], [], []
    for label, read in settings.items():
        with read() as setting:
            row, more = measure(setting, setting.experiment, label, sizes, seed, say)
        rows.append(row)
        details += more
        own = [detail for detail in more if detail.kind == "sweep"]
        series.append(
            charts.Series(
                label,
                [detail.condition for detail in own],
                [100 * detail.mdist_r for detail in own],
                "line",
            )
        )
        reports.write_csv(folder / "nagan4.csv", rows)
        reports.write_csv(folder / "nagan4_conditions.csv", details)
        text = [reports.markdown(columns, rows) for columns in (TABLE_4, TABLE_4_MORE, _RECIPE)]
        reports.write_markdown(folder / "nagan4.md", _UNITS, *text)
        chart = charts.Chart(
            "Distance of really trained networks", "condition", "mDist_r, %", tuple(series)
        )
        charts.write(chart, folder, "nagan4")
    say("\n".join(text))


# --- ablation -------------------------------------------------------------------------------------


def variant(experiment: Experiment, overrides: Mapping[str, Mapping[str, Any]]) -> Experiment:
    """The experiment with some values changed.

    Args:
      experiment: as configured.
      overrides: by part ("experiment", "surrogate" or a method's name), field -> value.

    Raises:
      UsageError: a part or field is not known, or a value is not allowed.
    """
    try:
        for part, values in overrides.items():
            if part == "experiment":
                experiment = dataclasses.replace(experiment, **values)
            elif part == "surrogate":
                changed = dataclasses.replace(experiment.surrogate, **values)
                experiment = dataclasses.replace(experiment, surrogate=changed)
            else:
                method = dataclasses.replace(experiment.methods[part], **values)
                methods = {**experiment.methods, part: method}
                experiment = dataclasses.replace(experiment, methods=methods)
    except (KeyError, TypeError, ValueError) as error:
        raise errors.UsageError(f"variant {dict(overrides)}: {error}") from error
    return experiment


def known_variant(name: str) -> str:
    """The name of a row of VARIANTS; raises UsageError that names the known ones."""
    if name not in VARIANTS:
        raise errors.UsageError(
            f"unknown variant {name!r}; known: {', '.join(map(repr, VARIANTS))}"
        )
    return name


def ablation(
    setting: Setting,
    sizes: Sizes,
    seed: int,
    folder: pathlib.Path,
    say: Say = print,
    names: Sequence[str] = tuple(VARIANTS),
) -> None:
    """Measures rows of VARIANTS on one experiment."""
    rows = []
    for name in names:
        experiment = variant(setting.experiment, VARIANTS[name])
        rows.append(measure(setting, experiment, name, sizes, seed, say)[0])
        reports.write_csv(folder / "ablation.csv", rows)
        text = reports.markdown(ABLATION, rows)
        reports.write_markdown(folder / "ablation.md", f"On {setting.label}. {_UNITS}", text)
    say(text)


# --- figure 4 -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CountRow:
    """A point of figure 4(a).

    Attributes:
      records: that the encoder and the generator were fitted to.
      generator: number of the seed.
      trained: networks behind mdist_r.
      mdist_f: see Row; the others too.
      expected: mean distance that the encoder expects.
      mdist_r: mean distance of trainings.
      low: lower end of its interval.
      high: upper end.
    """

    records: int
    generator: int
    trained: int
    mdist_f: float
    expected: float
    mdist_r: float
    low: float
    high: float


COUNTS = (
    Column("records", lambda r: f"{r.records:,}"),
    Column("generator", lambda r: str(r.generator)),
    Column("mDist_f", lambda r: percent(r.mdist_f)),
    Column("expected", lambda r: percent(r.expected)),
    Column("mDist_r", lambda r: percent(r.mdist_r)),
    Column("95 % interval", lambda r: reports.interval(r.low, r.high)),
)


def figure_4a(
    setting: Setting,
    counts: Sequence[int],
    sizes: Sizes,
    seed: int,
    folder: pathlib.Path,
    say: Say = print,
) -> None:
    """mDist_r against the number of records: prefixes of the plan, all on the whole plan's scale.

    Raises:
      UsageError: a count is more than the experiment has.
    """
    most = setting.experiment.records
    if not counts or not all(1 <= count <= most for count in counts):
        raise errors.UsageError(f"record counts must lie in 1..{most:,}, got {list(counts)}")
    rows: list[CountRow] = []
    for count in counts:
        experiment = dataclasses.replace(setting.experiment, records=count)
        for number in range(sizes.generators):
            fit = setting.fit(experiment, experiment.seed + number)
            own = seeds.derive(seed, "count", count, number)
            asked = ask(setting, fit, SWEEP, sizes.networks, own)
            told, expected, real = (
                float(column.mean()) for column in (asked.told, asked.expected, asked.real)
            )
            ends = metrics.bootstrap_interval(asked.real, seed)
            rows.append(CountRow(count, number, len(asked.real), told, expected, real, *ends))
            say(f"{count:,} records, generator {number}: mDist_r {percent(real)} %")
            reports.write_csv(folder / "nagan4a.csv", rows)
            text = reports.markdown(COUNTS, rows)
            reports.write_markdown(folder / "nagan4a.md", f"On {setting.label}. {_UNITS}", text)
            _draw_counts(rows, setting.label, folder)
    say(text)


def _draw_counts(rows: Sequence[CountRow], label: str, folder: pathlib.Path) -> None:
    counts = list(dict.fromkeys(row.records for row in rows))
    lines = [
        charts.Series(name, counts, [100 * _mean(rows, count, name) for count in counts], "line")
        for name in ("mdist_r", "expected", "mdist_f")
    ]
    points = charts.Series(
        "mdist_r, each generator, 95 %",
        [row.records for row in rows],
        [100 * row.mdist_r for row in rows],
        low=[100 * row.low for row in rows],
        high=[100 * row.high for row in rows],
    )
    chart = charts.Chart(
        f"{label}: distance and number of records", "records", "%", (*lines, points), x_log=True
    )
    charts.write(chart, folder, "nagan4a")


def _mean(rows: Sequence[CountRow], count: int, name: str) -> float:
    return float(np.mean([getattr(row, name) for row in rows if row.records == count]))


@dataclasses.dataclass(frozen=True)
class FrontRow:
    """A network of figure 4(b).

    Attributes:
      condition: that was asked for.
      storage: normalised.
      energy: normalised.
      predicted: normalised performance, the encoder's.
      trained: normalised performance of a training; None for a network that was not trained.
    """

    condition: float
    storage: float
    energy: float
    predicted: float
    trained: float | None


FRONT = (
    Column("storage", lambda r: percent(r.storage)),
    Column("energy", lambda r: percent(r.energy)),
    Column("condition", lambda r: f"{r.condition:g}"),
    Column("predicted", lambda r: percent(r.predicted)),
    Column("trained", lambda r: percent(r.trained)),
)


def figure_4b(setting: Setting, seed: int, folder: pathlib.Path, say: Say = print) -> None:
    """Performance against storage while the condition sweeps 0..1; records in the background."""
    fit = setting.fit(setting.experiment, setting.experiment.seed)
    conditions = np.repeat(FRONT_SWEEP, FRONT_BAG)
    choices = draw(setting, fit, conditions, seeds.derive(seed, "front"))
    predicted = setting.scale.normalise(fit.surrogate.predict(choices).metric)
    storage, energy = _normalised(setting, choices)
    trained = np.arange(len(conditions)) % FRONT_BAG < FRONT_TRAINED
    own = seeds.derive(seed, "front trainings")
    real = np.full(len(conditions), np.nan)
    real[trained] = _performance(setting, choices[trained], own)
    rows = [
        FrontRow(c, s, e, p, float(r) if np.isfinite(r) else None)
        for c, s, e, p, r in zip(
            *(column.tolist() for column in (conditions, storage, energy, predicted, real)),
            strict=True,
        )
    ]
    reports.write_csv(folder / "nagan4b.csv", rows)
    behind = setting.records[:: -(-len(setting.records) // _MAX_BACKGROUND)]
    behind_storage, _ = _normalised(
        setting, setting.space.choices([record.architecture for record in behind])
    )
    behind_real = setting.scale.normalise([record.metric for record in behind])
    ends = {
        "front, predicted": (storage, predicted),
        "front, trained": (storage[trained], real[trained]),
    }
    series = [
        charts.Series("records", behind_storage.tolist(), behind_real.tolist(), "dots"),
        charts.Series("generated, trained", storage[trained].tolist(), real[trained].tolist()),
    ]
    for name, (x, y) in ends.items():
        best = pareto.front(x, y)
        series.append(charts.Series(name, x[best].tolist(), y[best].tolist(), "line"))
    chart = charts.Chart(
        f"{setting.label}: performance and storage as the condition sweeps 0..1",
        "storage, share of the space's maximum",
        "normalised performance",
        tuple(series),
        x_log=True,
    )
    charts.write(chart, folder, "nagan4b")
    told = [row for row in rows if row.trained is not None]
    best = [told[row] for row in pareto.front(storage[trained], real[trained])]
    text = reports.markdown(FRONT, best)
    reports.write_markdown(folder / "nagan4b.md", f"Front on {setting.label}. {_UNITS}", text)
    say(f"{len(rows):,} networks, {int(trained.sum())} of them trained")


def _normalised(setting: Setting, choices: Choices) -> tuple[np.ndarray, np.ndarray]:
    """Storage and energy as shares of the space's maximum."""
    costs = setting.costs.costs(choices)
    storage, energy = (setting.costs.normalised(m, costs[m]) for m in ("storage_kb", "energy_uj"))
    return storage, energy
