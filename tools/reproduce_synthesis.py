"""Generative synthesis: what its networks reach, and whether its generator is worth learning.

Figure 1 compares delivered networks with the prototype and with other Keras models that were
trained on the same data. Beside it is a comparison at equal evaluations: of the networks that the
cycles scored and that the generator, when it has learned, answers to each requirement; of as many
random points of the space; and of uniform multipliers of its widths: which has the best NetScore
and keeps a requirement? A third table is of seeds alone: which share of what the generator makes of
them for a requirement keeps it, where nothing predicts or chooses?
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfgen import bundle as bundles
from tfgen import errors, prototypes, seeds, supernets, workdir
from tfgen.cost.budget import QUALITY_METRICS, Budget
from tfgen.cost.cost_model import CostModel, count
from tfgen.cost.netscore import information_density, netscore
from tfgen.evidence.record import RecordStore
from tfgen.experiment import Experiment
from tfgen.generators.gensynth import GensynthGenerator, seed_numbers
from tfgen.learning import Say
from tfgen.selection import NETSCORE, Ranking, Selector
from tfgen.space.layers import LayerSlots, slots_of
from tfgen.space.lowering import lower
from tfgen.space.search_space import Choices, Chosen, SearchSpace
from tfgen.training import datasets
from tools import charts, reports
from tools.reports import Column, percent

if TYPE_CHECKING:
    from tfgen.evidence.inherited import Inheritance

CYCLES, RANDOM, UNIFORM = "generative synthesis", "random points", "uniform multiplier"
_STEPS = 32  # of a uniform multiplier
_REQUIREMENTS = 5
_ANSWERS = 10  # of the learned generator, to each requirement
_SEEDS = 20  # of the learned generator, for each requirement
_NEAR, _FAR = 0.02, 0.2  # below the largest network's score, where requirements begin and end
_METRICS = "metrics.json"
_MODEL = "model.keras"
_LEAST = 1e-3


@dataclasses.dataclass(frozen=True)
class Compared:
    """A network and what it takes.

    Attributes:
      network: its name.
      kind: "generated", "prototype" or "other".
      metric: on the test split; of the file for generated ones, else of the float model.
      params: of kernels and biases.
      macs: of one inference.
      netscore: of these.
      density: percent of the metric for each million parameters.
      energy: of one inference at 8 bits, in microjoules (`counting.energy_pj`).
      asked: of the metric, of a generated network; NaN for others.
      holds: whether its contract was kept; None for others.
    """

    network: str
    kind: str
    metric: float
    params: float
    macs: float
    netscore: float
    density: float
    energy: float
    asked: float = math.nan
    holds: bool | None = None

    @classmethod
    def of(
        cls,
        network: str,
        kind: str,
        metric: float,
        costs: Mapping[str, float],
        asked: float = math.nan,
        holds: bool | None = None,
    ) -> Compared:
        params, macs = costs["params"], costs["macs"]
        score = float(netscore(np, max(metric, _LEAST), params, macs))
        density = information_density(metric, params)
        energy = costs["energy_uj"]
        return cls(network, kind, metric, params, macs, score, density, energy, asked, holds)


@dataclasses.dataclass(frozen=True)
class Searched:
    """What one way of choosing networks found for one requirement, with inherited weights.

    Attributes:
      required: the least metric, on the search split.
      method: CYCLES, RANDOM or UNIFORM.
      evaluations: networks that were scored.
      metric: of the best by NetScore that keep it, on the search split; NaN where none does.
      tested: the same network's on the test split.
      netscore: by the latter.
    """

    required: float
    method: str
    evaluations: int
    metric: float
    tested: float
    netscore: float


@dataclasses.dataclass(frozen=True)
class Seeds:
    """What the generator, when it has learned, makes of seeds alone: nothing chooses among them.

    Attributes:
      required: the least metric, on the search split.
      seeds: how many.
      networks: different ones that they gave.
      metric: mean over seeds, with inherited weights.
      keeping: share of the seeds whose networks keep the requirement.
      random_keeping: the same of random points of the space.
      macs: mean over seeds.
    """

    required: float
    seeds: int
    networks: int
    metric: float
    keeping: float
    random_keeping: float
    macs: float


def figure(number: int, root: pathlib.Path, data_dir: str | None, seed: int,
           folder: pathlib.Path, say: Say) -> None:  # fmt: skip
    """Writes figure `number` of the paper and the comparison at equal evaluations.

    Where nothing was delivered (`generate --stop_after=candidates`) there is the comparison alone.

    Args:
      number: of the paper's figure.
      root: has `generate`'s output directory as gensynth1, and beside it folders of
        `train_prototype`, whose models are the others.
      data_dir: TFDS directory.
      seed: of random points.
      folder: where results go.
      say: told what is done.

    Raises:
      UsageError: `generate --prototype` was not run there, or not to its end.
    """
    work = workdir.WorkDir(root / f"gensynth{number}")
    if not (work.bundle / workdir.MANIFEST).is_file():
        raise errors.UsageError(f"{work.bundle}: no bundle; run generate --prototype first")
    generated = _generated(work)
    found, of_seeds = searched(work, data_dir, seed, say)
    folder.mkdir(parents=True, exist_ok=True)
    reports.write_csv(folder / f"gensynth{number}_seeds.csv", of_seeds)
    reports.write_markdown(
        folder / f"gensynth{number}_seeds.md",
        "What the learned generator makes of seeds alone, weights inherited.",
        reports.markdown(_OF_SEEDS, of_seeds),
    )
    reports.write_csv(folder / f"gensynth{number}_searched.csv", found)
    reports.write_markdown(
        folder / f"gensynth{number}_searched.md",
        "At equal evaluations, weights inherited: the best NetScore that keeps a requirement.",
        reports.markdown(_SEARCHED, found),
    )
    if not generated:
        say(f"{work.root}: nothing was delivered, so there is no figure")
        return
    compared = [*generated, *_models(root, work)]
    for row in compared:
        say(f"{row.network}: {percent(row.metric)} %, NetScore {row.netscore:.1f}")
    reports.write_csv(folder / f"gensynth{number}.csv", compared)
    reports.write_markdown(
        folder / f"gensynth{number}.md",
        "Networks and what they take.",
        reports.markdown(_COMPARED, compared),
    )
    charts.write(_chart(compared), folder, f"gensynth{number}")


# --- networks -------------------------------------------------------------------------------------


def _generated(work: workdir.WorkDir) -> list[Compared]:
    """What was delivered, best NetScore first."""
    rows = []
    for path in sorted(work.root.glob("deployments/*/contract.json")):
        contract = workdir.read_json(path)
        terms = {t["metric"]: t["measured"] for t in contract["terms"]}
        (term,) = (t for t in contract["terms"] if t["metric"] in QUALITY_METRICS)
        name = path.parent.name.split("-")[0]
        asked = math.nan if term["asked"] is None else term["asked"]
        holds = bool(contract["holds"])
        rows.append(Compared.of(name, "generated", term["measured"], terms, asked, holds))
    return sorted(rows, key=lambda row: -row.netscore)


def _models(root: pathlib.Path, work: workdir.WorkDir) -> list[Compared]:
    """Keras models of `train_prototype` on the same data, the prototype among them."""
    source = workdir.read_manifest(work.prototype)["config"]["sha256"]
    (dataset,) = workdir.read_manifest(work.bundle)["data"].values()
    rows = []
    for path in sorted(root.glob(f"*/{_METRICS}")):
        told = workdir.read_json(path)
        model = path.parent / _MODEL
        if told.get("dataset") != dataset or not model.is_file():
            continue
        kind = "prototype" if workdir.sha256(model) == source else "other"
        costs = {metric: float(values[0]) for metric, values in count(_slots(model)).items()}
        rows.append(Compared.of(path.parent.name, kind, told["test"], costs))
    return rows


def _slots(model: pathlib.Path) -> Sequence[LayerSlots]:
    from tfgen.nets import keras_file, prototype_network

    return slots_of(prototype_network.read(keras_file.read(model), str(model)).layers)


# --- equal evaluations ----------------------------------------------------------------------------


def searched(
    work: workdir.WorkDir, data_dir: str | None, seed: int, say: Say
) -> tuple[list[Searched], list[Seeds]]:
    """The comparison at equal evaluations, and what seeds give without any choice.

    What is scored is kept beside the run's records.
    """
    from tfgen.training import supernet_training

    config = workdir.read_manifest(work.bundle)["config"]
    experiment = Experiment.from_config({k: v for k, v in config.items() if k != "answers"})
    dataset = datasets.load(experiment.dataset, data_dir)
    calibration = supernets.calibration(experiment, dataset).x
    supernet = supernets.load(experiment, work, dataset)
    space = supernet.space
    with RecordStore(work.records, space) as store:
        known = supernets.evaluator(experiment, supernet, dataset, store).known
    metrics = np.array([record.metric for record in known.values()])
    pools = {CYCLES: (space.choices(list(known)), metrics)}
    if space.point({}) not in known:
        raise errors.UsageError(
            f"{work.root}: an older tfgen scored its networks; run generate --prototype again"
        )
    whole = known[space.point({})].metric
    requirements = [float(r) for r in np.linspace(whole - _NEAR, whole - _FAR, _REQUIREMENTS)]
    bundle = bundles.load(work.bundle)
    answers = [_answers(bundle, *pools[CYCLES], required, seed) for required in requirements]
    new = [architecture for architecture in map(space.architecture, np.concatenate(answers))
           if architecture not in known]  # fmt: skip
    with RecordStore(work.root / "reproduce" / "records.db", space) as store:
        score = supernets.evaluator(experiment, supernet, dataset, store)
        if new:
            scored = _scored(space, score, space.choices(new), say)
            pools[CYCLES] = tuple(map(np.concatenate, zip(pools[CYCLES], scored, strict=True)))
        evaluations = len(pools[CYCLES][1])
        drawn = space.sample(evaluations, seeds.stream(seed, "random points"))
        pools[RANDOM] = _scored(space, score, drawn, say)
        pools[UNIFORM] = _scored(space, score, _uniform(space), say)
        low, _ = _generator(bundle).range
        of_seeds = [
            _of_seeds(bundle, required, score, pools[RANDOM][1], seed)
            for required in requirements
            if required >= low  # a lower one would be asked as this
        ]
    rows = []
    for required in requirements:
        for method, (choices, scores) in pools.items():
            row = Searched(required, method, len(scores), math.nan, math.nan, math.nan)
            kept = np.flatnonzero(scores >= required)
            if not len(kept):
                rows.append(row)
                continue
            best = kept[_netscores(space, choices[kept], scores[kept]).argmax()]
            tested = supernet_training.score(
                supernet,
                lower(space, space.architecture(choices[best])),
                dataset.task,
                dataset.test,
                calibration,
            )
            (reached,) = _netscores(space, choices[best][None], np.array([tested]))
            rows.append(
                dataclasses.replace(
                    row, metric=float(scores[best]), tested=tested, netscore=float(reached)
                )
            )
        say(f"required {percent(required)} %: compared")
    return rows, of_seeds


def _answers(
    bundle: bundles.Bundle, scored: Choices, metrics: np.ndarray, required: float, seed: int
) -> Choices:
    """What the generator answers to a requirement on inherited weights [networks, decisions].

    Args:
      bundle: of the generator.
      scored: the networks of the cycles [networks, decisions].
      metrics: what they scored [networks].
      required: of the metric.
      seed: of draws.
    """
    generator, costs = _generator(bundle), CostModel(bundle.space)
    selector = Selector(count=_ANSWERS, confidence=0.5, ranking=Ranking(NETSCORE))
    try:
        found = selector.select(
            bundle.space,
            generator,
            # Of inherited weights: without gains.
            generator.surrogate(bundle.surrogate.scale).knowing(scored, metrics),
            costs,
            Budget({}, (bundle.task.metric, required)),
            prototypes.METHOD,
            seed,
        )
    except errors.InfeasibleBudgetError:
        return bundle.space.sample(0, seeds.stream(seed, "none"))
    return bundle.space.choices([candidate.architecture for candidate in found])


def _generator(bundle: bundles.Bundle) -> GensynthGenerator:
    generator = bundle.generator(prototypes.METHOD)
    assert isinstance(generator, GensynthGenerator)  # a prototype's bundle
    return generator


def _of_seeds(
    bundle: bundles.Bundle,
    required: float,
    score: Inheritance,
    random_metrics: np.ndarray,
    seed: int,
) -> Seeds:
    """The networks of seeds for one requirement, each scored."""
    numbers = seed_numbers(seeds.derive(seed, "seeds alone"), _SEEDS)
    choices = _generator(bundle).networks(numbers, np.full(_SEEDS, required))
    records = score([bundle.space.architecture(row) for row in choices])
    metrics = np.array([record.metric for record in records])
    return Seeds(
        required,
        _SEEDS,
        len(np.unique(choices, axis=0)),
        float(metrics.mean()),
        float((metrics >= required).mean()),
        float((random_metrics >= required).mean()),
        float(CostModel(bundle.space).costs(choices)["macs"].mean()),
    )


def _scored(
    space: SearchSpace, score: Inheritance, choices: Choices, say: Say
) -> tuple[Choices, np.ndarray]:
    choices = np.unique(choices, axis=0)
    metrics = []
    for number, row in enumerate(choices, start=1):
        (record,) = score([space.architecture(row)])
        metrics.append(record.metric)
        if number % 20 == 0:
            say(f"{number} of {len(choices)} are scored")
    return choices, np.array(metrics)


def _uniform(space: SearchSpace) -> Choices:
    """Networks whose widths are all at the same place of their menus, bits the widest."""
    widths = {
        stage.options["channels"].decision
        for stage in space.stages
        if isinstance(stage.options["channels"], Chosen)
    }
    sizes = np.array([len(d.values) for d in space.decisions])
    cut = np.array([d.name in widths for d in space.decisions])
    steps = np.arange(1, _STEPS + 1)[:, None]
    places = np.where(cut, np.ceil(sizes * steps / _STEPS).astype(np.int64), sizes) - 1
    return np.unique(space.canonical(places), axis=0)


def _netscores(space: SearchSpace, choices: Choices, metrics: np.ndarray) -> np.ndarray:
    found = CostModel(space).costs(choices)
    reached = np.maximum(metrics, _LEAST)
    return np.asarray(netscore(np, reached, found["params"], found["macs"]))


_COMPARED = (
    Column("network", lambda row: row.network),
    Column("kind", lambda row: row.kind),
    Column("asked, %", lambda row: _number(100 * row.asked, 1)),
    Column("metric, %", lambda row: percent(row.metric)),
    Column("kept", lambda row: {True: "yes", False: "no", None: "-"}[row.holds]),
    Column("parameters", lambda row: f"{row.params:,.0f}"),
    Column("million MACs", lambda row: f"{row.macs / 1e6:.2f}"),
    Column("NetScore", lambda row: f"{row.netscore:.1f}"),
    Column("% / million parameters", lambda row: f"{row.density:.0f}"),
    Column("µJ by the model", lambda row: f"{row.energy:.1f}"),
)
_SEARCHED = (
    Column("required, %", lambda row: percent(row.required)),
    Column("method", lambda row: row.method),
    Column("evaluations", lambda row: str(row.evaluations)),
    Column("metric, %", lambda row: _number(100 * row.metric, 1)),
    Column("on test, %", lambda row: _number(100 * row.tested, 1)),
    Column("NetScore", lambda row: _number(row.netscore, 2)),
)
_OF_SEEDS = (
    Column("required, %", lambda row: percent(row.required)),
    Column("seeds", lambda row: str(row.seeds)),
    Column("different networks", lambda row: str(row.networks)),
    Column("mean metric, %", lambda row: percent(row.metric)),
    Column("keep the requirement, %", lambda row: percent(row.keeping, 0)),
    Column("random points that do, %", lambda row: percent(row.random_keeping, 0)),
    Column("million MACs", lambda row: f"{row.macs / 1e6:.2f}"),
)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _chart(rows: Sequence[Compared]) -> charts.Chart:
    kinds = dict.fromkeys(row.kind for row in rows)
    return charts.Chart(
        "Networks of generative synthesis, their prototype and others",
        "million MACs",
        "metric on the test split, %",
        [
            charts.Series(
                kind,
                [row.macs / 1e6 for row in rows if row.kind == kind],
                [100 * row.metric for row in rows if row.kind == kind],
            )
            for kind in kinds
        ],
        x_log=True,
    )
