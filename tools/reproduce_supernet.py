"""SGNAS on the CIFAR-10 supernet: table 1, figures 6b and 7, and what inherited scores tell.

All is asked of networks that inherit their weights from ROOT/cifar10/supernet, scored on the 2,000
images of the search split; scores lie in ROOT/cifar10/records.db and generators in
ROOT/cifar10/reproduce, so that a stopped run goes on.

  sgnas1   under the same limits on MACs: generated, the best of random networks, evolution
  sgnas6b  parameters of supernets by the number of choices a layer, counted exactly
  sgnas7   what is generated for targets that training has not seen, from four random priors
  bits     the same networks at 8 bits, at 4 and at the fewest
  tuned    random networks of mixed bits before and after fine-tuning
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfgen import errors, generators, learning, seeds, supernets, workdir
from tfgen.cost import counting
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import LATENCY, CostModel
from tfgen.cost.metrics import PerformanceScale
from tfgen.deployment import devices
from tfgen.evidence import collect as collecting
from tfgen.evidence import surrogate as surrogates
from tfgen.evidence.record import Record, RecordStore
from tfgen.experiment import Experiment
from tfgen.generators.base import Evidence
from tfgen.generators.sgnas import COSTS, ENCODER, Sgnas, SgnasConfig, SgnasGenerator
from tfgen.space import catalog, published
from tfgen.space.architecture import Architecture
from tfgen.space.lowering import lower, lower_batch
from tfgen.space.search_space import Choices, Chosen, SearchSpace
from tfgen.training import datasets
from tools import charts, reports
from tools.reports import Column, duration, percent
from tools.reproduce_setting import configured, different, digest

if TYPE_CHECKING:  # TensorFlow is imported where it is needed
    from tfgen.evidence.inherited import Inheritance

CONFIG = "cifar10"
SGNAS, RANDOM, EVOLUTION = "sgnas", "random", "evolution"
_SEARCHER = "regularized_evolution"
_DRAWN = 4_000  # networks, of which costs are looked at
_ENDS = (0.001, 0.999)  # quantiles of their costs, between which targets lie
_POOL = 200  # draws of the generator for a budget, of which the first different ones are scored
Say = Callable[[str], None]


class Lab:
    """A trained supernet and what asks it; a context manager, which holds the store of records.

    Attributes:
      experiment: of the config.
      space: of the networks.
      costs: of its networks, counted.
      dataset: that the supernet was trained on.
      supernet: trained.
      evaluate: scores networks on the search split.
      folder: where generators lie.
    """

    def __init__(self, root: pathlib.Path, data_dir: str | None, experiment: Experiment):
        """Reads the supernet; raises UsageError where epochs are missing."""
        self._work = work = workdir.WorkDir(root / CONFIG)
        self.experiment = experiment
        self.space = catalog.get(experiment.space)
        self.costs = CostModel(self.space)
        self.dataset = datasets.load(experiment.dataset, data_dir)
        self.supernet = supernets.load(experiment, work, self.dataset)
        self.folder = work.root / "reproduce"
        self._stack = contextlib.ExitStack()
        store = self._stack.enter_context(RecordStore(work.records, self.space))
        self.evaluate: Inheritance = supernets.evaluator(
            experiment, self.supernet, self.dataset, store
        )

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *unused: object) -> None:
        self._stack.close()

    def scores(self, choices: Choices) -> np.ndarray:
        """Accuracy on the search split with inherited weights [networks]."""
        return np.array([record.metric for record in self.records(choices)])

    def records(self, choices: Choices) -> list[Record]:
        """The record of each network: its score, and the seconds that it took when it was made."""
        return self.evaluate(self._architectures(choices))

    def tested(self, choices: Choices) -> np.ndarray:
        """Accuracy on the whole test split with inherited weights [networks]."""
        from tfgen.training import supernet_training

        calibration = supernets.calibration(self.experiment, self.dataset).x
        return np.array(
            [
                supernet_training.score(
                    self.supernet,
                    lower(self.space, own),
                    self.dataset.task,
                    self.dataset.test,
                    calibration,
                )
                for own in self._architectures(choices)
            ]
        )

    def generator(
        self, config: SgnasConfig, seed: int, device: str | None = None
    ) -> tuple[SgnasGenerator, float]:
        """A generator taught as its config says, and the seconds that its training took.

        Args:
          config: how it is trained.
          seed: of its prior and everything else.
          device: that was profiled, where targets limit its latency.
        """
        records, planned = self._collected() if config.teacher == ENCODER else ([], 0)
        taught_by = [(*record.key, record.metric) for record in records]
        encoder = [dataclasses.asdict(self.experiment.surrogate), self.experiment.seed, taught_by]
        made_of = [dataclasses.asdict(config), seed, device, self.evaluate.recipe, encoder]
        folder = self.folder / f"sgnas-{digest(made_of)}"
        if not folder.is_dir():
            latency = None if device is None else devices.latency_model(device, self.space)
            evidence = Evidence(
                self.space,
                CostModel(self.space, latency=latency),
                surrogate=self._encoder(records, planned) if records else None,
                supernet=self.supernet,
                examples=supernets.searched(self.dataset),
            )
            since = time.perf_counter()
            state = Sgnas().fit(evidence, config, seed).state()
            with workdir.writing_folder(folder) as fresh:
                workdir.write_arrays(fresh / "generator.npz", state)
                workdir.write_json(fresh / "fit.json", {"seconds": time.perf_counter() - since})
        state = workdir.read_arrays(folder / "generator.npz")
        seconds = workdir.read_json(folder / "fit.json")["seconds"]
        return Sgnas().restore(self.space, state), seconds

    def _collected(self) -> tuple[list[Record], int]:
        """The records of the config's plan, then those of networks that `train` proposed.

        And how many are of the plan.
        """
        plan = collecting.plan(self.space, self.experiment.records, self.experiment.seed)
        wanted = dict.fromkeys(training.architecture for training in plan)
        planned = len(wanted)
        path = self._work.root / learning.PROPOSALS
        for proposed in (workdir.read_json(path) if path.is_file() else {}).values():
            networks = proposed["networks"] if isinstance(proposed, dict) else proposed
            wanted |= dict.fromkeys(self.space.architecture(np.array(row)) for row in networks)
        known = self.evaluate.known
        found = [known[architecture] for architecture in wanted if architecture in known]
        missing = sum(architecture not in known for architecture in list(wanted)[:planned])
        if missing:
            raise errors.UsageError(
                f"{self._work.records}: {missing:,} of the config's {planned:,} records, by which "
                "an encoder teaches, are missing; run collect first"
            )
        return found, planned

    def _encoder(self, records: Sequence[Record], planned: int) -> surrogates.Surrogate:
        """The encoder that teaches, on the scale of the plan's records as `train` has it."""
        return surrogates.fit(
            self.space,
            records,
            PerformanceScale.of([record.metric for record in records[:planned]]),
            self.experiment.surrogate,
            self.experiment.seed,
        )

    def _architectures(self, choices: Choices) -> list[Architecture]:
        return [self.space.architecture(row) for row in choices]


def experiment() -> Experiment:
    """The config's."""
    return configured(CONFIG)


# --- table 1 --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Search:
    """The best network that one method found under one limit.

    Attributes:
      limit_macs: that it keeps.
      method: SGNAS, RANDOM or EVOLUTION.
      macs: of the network.
      evaluations: networks that were scored.
      seconds: of their evaluations; SGNAS's own draws included.
      searched: accuracy on the search split, by which it was chosen.
      tested: accuracy on the test split; weights inherited.
    """

    limit_macs: float
    method: str
    macs: float
    evaluations: int
    seconds: float
    searched: float
    tested: float


TABLE_1 = (
    Column("limit, million MACs", lambda s: f"{s.limit_macs / 1e6:.1f}"),
    Column("method", lambda s: s.method),
    Column("MACs", lambda s: f"{s.macs / 1e6:.2f}"),
    Column("networks scored", lambda s: f"{s.evaluations:,}"),
    Column("time", lambda s: duration(s.seconds)),
    Column("search split, %", lambda s: percent(s.searched, 2)),
    Column("test split, %", lambda s: percent(s.tested, 2)),
)


def limits(lab: Lab, count: int) -> np.ndarray:
    """Limits on MACs, evenly spread over most random networks [count]."""
    macs = lab.costs.costs(lab.space.sample(_DRAWN, seeds.stream(0, "limits")))["macs"]
    return np.linspace(*np.quantile(macs, [0.1, 0.99]), count)


def table_1(
    lab: Lab,
    evaluations: int,
    candidates: int,
    budgets: int,
    seed: int,
    folder: pathlib.Path,
    say: Say = print,
) -> list[Search]:
    """Searches under each limit; writes sgnas1.csv and sgnas1.md after each.

    Args:
      lab: the supernet.
      evaluations: networks that random search and evolution score for a limit.
      candidates: networks that are scored of those that the generator draws for it.
      budgets: how many limits.
      seed: of all searches.
      folder: for the results.
      say: told what was found.
    """
    config = lab.experiment.methods["sgnas"]
    generator, fitted = lab.generator(config, seed)
    rows: list[Search] = []
    for limit in limits(lab, budgets):
        budget = Budget({"macs": float(limit)})
        since = time.perf_counter()
        (drawn,) = generator.propose([budget], _POOL, seed)
        kept = different(drawn.choices)
        kept = kept[lab.costs.costs(kept)["macs"] <= limit][:candidates]
        own = time.perf_counter() - since
        if not len(kept):
            raise errors.TfgenError(f"the generator drew no network of at most {limit:g} MACs")
        rows.append(_best(lab, float(limit), SGNAS, kept, own))
        random = _random(lab, float(limit), evaluations, seed)
        rows.append(_best(lab, float(limit), RANDOM, random, 0.0))
        evidence = Evidence(lab.space, lab.costs, evaluate=lab.evaluate)
        searcher = generators.get_searcher(_SEARCHER)
        found = searcher.search(evidence, budget, evaluations, searcher.config(), seed)
        trained = lab.space.choices([record.architecture for record in found.records])
        rows.append(_best(lab, float(limit), EVOLUTION, trained, 0.0))
        for row in rows[-3:]:
            say(
                f"{row.limit_macs / 1e6:.1f} M, {row.method}: {row.tested:.4f}, {row.seconds:.0f} s"
            )
        reports.write_csv(folder / "sgnas1.csv", rows)
        reports.write_markdown(
            folder / "sgnas1.md",
            f"Networks are chosen on {len(supernets.searched(lab.dataset).y):,} images of the "
            "search split and compared on the test split, all with inherited weights. Time is that "
            "of scoring networks; the generator was trained once, for all limits, in "
            f"{duration(fitted)}.",
            reports.markdown(TABLE_1, rows),
        )
    return rows


def _best(lab: Lab, limit: float, method: str, choices: Choices, own_seconds: float) -> Search:
    records = lab.records(choices)
    scores = np.array([record.metric for record in records])
    best = choices[[int(scores.argmax())]]
    return Search(
        limit,
        method,
        float(lab.costs.costs(best)["macs"][0]),
        len(choices),
        sum(record.seconds for record in records) + own_seconds,
        float(scores.max()),
        float(lab.tested(best)[0]),
    )


def _random(lab: Lab, limit: float, count: int, seed: int) -> Choices:
    """Different random networks within a limit [at most count, decisions]."""
    random = seeds.stream(seed, "random", int(limit))
    kept: Choices = lab.space.sample(0, random)
    for _ in range(64):
        drawn = lab.space.sample(_DRAWN, random)
        kept = different(np.concatenate([kept, drawn[lab.costs.costs(drawn)["macs"] <= limit]]))
        if len(kept) >= count:
            break
    return kept[:count]


# --- figure 6b ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shared:
    """Parameters of a supernet whose layers have so many choices.

    Attributes:
      choices: of a layer.
      unified: parameters where they share one unified block.
      single_path: parameters where each choice is a block of its own.
    """

    choices: int
    unified: int
    single_path: int


def figure_6b(folder: pathlib.Path, say: Say = print) -> list[Shared]:
    """Counts supernets of the ImageNet space's layers; writes sgnas6b.csv, .md and pictures.

    A layer's choices are the first of its menu, from small to large. A unified block is as large as
    its largest layers; a single-path one has a block for each choice.
    """
    space = published.sgnas_imagenet()
    unified = tuple(
        f"{stage.name}_"
        for stage in space.stages
        if isinstance(stage.options.get("sub_blocks"), Chosen)
    )
    choices = max(len(decision.values) for decision in space.decisions)
    rows = np.zeros((choices, len(space.decisions)), np.int64)
    for column, decision in enumerate(space.decisions):
        if len(decision.values) == choices:
            rows[:, column] = np.arange(choices)
    fixed, largest, together = 0, np.zeros(choices, np.int64), np.zeros(choices, np.int64)
    for slot in lower_batch(space, rows):
        own = np.where(slot.present, counting.trained_elements(slot), 0)  # [choices]
        if slot.name.startswith(unified):
            largest += np.maximum.accumulate(own)
            together += np.cumsum(own)
        else:
            fixed += int(own[0])
    found = [
        Shared(number + 1, fixed + int(largest[number]), fixed + int(together[number]))
        for number in range(choices)
    ]
    reports.write_csv(folder / "sgnas6b.csv", found)
    shown = [found[number - 1] for number in (1, 6, 13, 25, 50, 60, choices)]
    text = reports.markdown(FIGURE_6B, shown)
    reports.write_markdown(
        folder / "sgnas6b.md",
        f"Trained numbers of supernets of {space.name}, 19 layers with a choice, counted.",
        text,
    )
    charts.write(
        charts.Chart(
            "Parameters of a supernet",
            "choices of a layer",
            "million parameters",
            (
                charts.Series(
                    "a block for each choice",
                    [row.choices for row in found],
                    [row.single_path / 1e6 for row in found],
                    "line",
                ),
                charts.Series(
                    "unified blocks",
                    [row.choices for row in found],
                    [row.unified / 1e6 for row in found],
                    "line",
                ),
            ),
        ),
        folder,
        "sgnas6b",
    )
    say(text)
    return found


FIGURE_6B = (
    Column("choices of a layer", lambda s: f"{s.choices}"),
    Column("unified blocks, million", lambda s: f"{s.unified / 1e6:.2f}"),
    Column("a block for each choice, million", lambda s: f"{s.single_path / 1e6:.2f}"),
    Column("ratio", lambda s: f"{s.single_path / s.unified:.1f}"),
)


# --- figure 7 -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Generated:
    """What one generator answered to one target: the arg max, taken as it is.

    Attributes:
      prior: number of the generator's prior.
      metric: of the target.
      target: that it was asked for.
      cost: of the answer.
      searched: accuracy on the search split with inherited weights; NaN where none was scored.
    """

    prior: int
    metric: str
    target: float
    cost: float
    searched: float


@dataclasses.dataclass(frozen=True)
class Meeting:
    """How well the targets of one cost are met by one generator.

    Attributes:
      prior: number of the generator's prior.
      metric: of the targets.
      tau: Kendall's, of target and cost.
      pearson: correlation of the two.
      error: mean |cost / target - 1|.
      worst: the largest.
      different: networks among the answers.
      seconds: that the generator's training took.
    """

    prior: int
    metric: str
    tau: float
    pearson: float
    error: float
    worst: float
    different: int
    seconds: float


FIGURE_7 = (
    Column("prior", lambda m: f"{m.prior}"),
    Column("target", lambda m: m.metric),
    Column("Kendall's tau", lambda m: f"{m.tau:.4f}"),
    Column("Pearson", lambda m: f"{m.pearson:.4f}"),
    Column("mean error, %", lambda m: percent(m.error, 2)),
    Column("largest, %", lambda m: percent(m.worst)),
    Column("different networks", lambda m: f"{m.different}"),
    Column("training", lambda m: duration(m.seconds)),
)


def figure_7(
    lab: Lab,
    priors: int,
    targets: int,
    scored: int,
    device: str | None,
    seed: int,
    folder: pathlib.Path,
    say: Say = print,
) -> list[Meeting]:
    """Asks generators for targets that training has not seen; writes sgnas7.csv, .md and pictures.

    Args:
      lab: the supernet.
      priors: how many generators, each with a random prior of its own.
      targets: evenly spaced, of each cost.
      scored: of a generator's answers to MACs, evenly, whose accuracy is measured.
      device: that was profiled, to ask for its latency too.
      seed: of the generators.
      folder: for the results.
      say: told how targets were met.
    """
    config = lab.experiment.methods["sgnas"]
    metrics = ["macs"]
    costs = lab.costs
    if device is not None:
        metrics.append(LATENCY)
        config = dataclasses.replace(config, costs=(*config.costs, LATENCY))
        costs = CostModel(lab.space, latency=devices.latency_model(device, lab.space))
    random = costs.costs(lab.space.sample(_DRAWN, seeds.stream(0, "limits")))
    answers: list[Generated] = []
    meetings: list[Meeting] = []
    for prior in range(priors):
        own_seed = seeds.derive(seed, "prior", prior) if prior else seed
        generator, seconds = lab.generator(config, own_seed, device)
        for metric in metrics:
            asked = np.linspace(*np.quantile(random[metric], _ENDS), targets)
            vectors = np.zeros((targets, len(COSTS)))
            vectors[:, COSTS.index(metric)] = asked
            choices = generator.answers(vectors)
            found = costs.costs(choices)[metric]
            meetings.append(_met(prior, metric, asked, found, choices, seconds))
            accuracies = np.full(targets, np.nan)
            if metric == "macs" and scored:
                looked_at = np.linspace(0, targets - 1, scored).astype(int)
                accuracies[looked_at] = lab.scores(choices[looked_at])
            answers += [
                Generated(prior, metric, *map(float, row))
                for row in zip(asked, found, accuracies, strict=True)
            ]
    reports.write_csv(folder / "sgnas7.csv", answers)
    text = reports.markdown(FIGURE_7, meetings)
    reports.write_markdown(
        folder / "sgnas7.md",
        f"{targets} targets spread evenly between the {percent(_ENDS[0])} % and {percent(_ENDS[1])}"
        f" % quantiles of random networks of {lab.space.name}; the arg max, without a second look.",
        text,
    )
    for metric in metrics:
        charts.write(_chart_7a(answers, metric), folder, f"sgnas7a_{metric}")
    if scored:
        charts.write(_chart_7b(lab, answers), folder, "sgnas7b")
    say(text)
    return meetings


def _met(
    prior: int,
    metric: str,
    asked: np.ndarray,
    found: np.ndarray,
    choices: Choices,
    seconds: float,
) -> Meeting:
    from scipy import stats

    off = np.abs(found / asked - 1.0)
    return Meeting(
        prior,
        metric,
        float(stats.kendalltau(asked, found).statistic),
        float(np.corrcoef(asked, found)[0, 1]),
        float(off.mean()),
        float(off.max()),
        len(np.unique(choices, axis=0)),
        seconds,
    )


def _chart_7a(answers: Sequence[Generated], metric: str) -> charts.Chart:
    own = [answer for answer in answers if answer.metric == metric]
    return charts.Chart(
        "What is generated for a target",
        f"target, {metric}",
        f"generated, {metric}",
        tuple(
            charts.Series(
                f"prior {prior}",
                [a.target for a in own if a.prior == prior],
                [a.cost for a in own if a.prior == prior],
            )
            for prior in sorted({answer.prior for answer in own})
        ),
    )


def _chart_7b(lab: Lab, answers: Sequence[Generated]) -> charts.Chart:
    own = [answer for answer in answers if np.isfinite(answer.searched)]
    known = list(lab.evaluate.known.values())
    macs = lab.costs.costs(lab.space.choices([record.architecture for record in known]))["macs"]
    generated = tuple(
        charts.Series(
            f"prior {prior}",
            [a.cost / 1e6 for a in own if a.prior == prior],
            [100 * a.searched for a in own if a.prior == prior],
        )
        for prior in sorted({answer.prior for answer in own})
    )
    return charts.Chart(
        "Networks with inherited weights",
        "million MACs",
        "accuracy on the search split, %",
        (
            charts.Series(
                "all that were scored",
                (macs / 1e6).tolist(),
                [100 * record.metric for record in known],
                "dots",
            ),
            *generated,
        ),
    )


# --- bits -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BitsScores:
    """The same random networks at other bits, with inherited weights.

    Attributes:
      bits: of every layer that is offered them, else the fewest above.
      accuracy: mean on the search split.
      least: the least of the networks.
      file_kb: mean.
      drop: mean of what a network lacks to itself at 8 bits.
      falling: share of the networks that are no better than at 8 bits.
    """

    bits: int
    accuracy: float
    least: float
    file_kb: float
    drop: float
    falling: float


BITS = (
    Column("bits", lambda b: f"{b.bits}"),
    Column("accuracy, %", lambda b: percent(b.accuracy, 2)),
    Column("least, %", lambda b: percent(b.least, 2)),
    Column("file_kb", lambda b: f"{b.file_kb:.1f}"),
    Column("less than at 8 bits, points", lambda b: percent(b.drop, 2)),
    Column("networks no better than at 8 bits, %", lambda b: percent(b.falling, 0)),
)


def bits(
    lab: Lab, networks: int, seed: int, folder: pathlib.Path, say: Say = print
) -> list[BitsScores]:
    """Scores networks at all-8, all-4 and the fewest bits; writes sgnas_bits.csv and .md."""
    drawn = lab.space.sample(networks, seeds.stream(seed, "bits"))
    at = {width: at_bits(lab.space, drawn, width) for width in (8, 4, 2)}
    scores = {width: lab.scores(choices) for width, choices in at.items()}
    rows = [
        BitsScores(
            width,
            float(own.mean()),
            float(own.min()),
            float(lab.costs.costs(at[width])["file_kb"].mean()),
            float((scores[8] - own).mean()),
            float((own <= scores[8]).mean()),
        )
        for width, own in scores.items()
    ]
    reports.write_csv(folder / "sgnas_bits.csv", rows)
    text = reports.markdown(BITS, rows)
    reports.write_markdown(
        folder / "sgnas_bits.md",
        f"{networks} random networks, each at three widths of weights: of every layer these, or "
        "the fewest above that the runtime executes.",
        text,
    )
    say(text)
    return rows


def at_bits(space: SearchSpace, choices: Choices, width: int) -> Choices:
    """The same networks with these weight bits everywhere, or the fewest above that are offered."""
    changed = choices.copy()
    if "convolutions" in space.index:  # only compact ones may choose
        decision = space.decisions[space.index["convolutions"]]
        changed[:, space.index["convolutions"]] = decision.values.index("compact")
    for column, decision in enumerate(space.decisions):
        if decision.name.startswith("bits_"):
            offered = [int(value) for value in decision.values]
            changed[:, column] = offered.index(min(b for b in offered if b >= width))
    return space.canonical(changed)


# --- fine-tuning ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A random network of mixed bits, before and after its fine-tuning.

    Attributes:
      fingerprint: of the network.
      macs: of one inference.
      file_kb: of its file.
      inherited: accuracy on the search split with inherited weights.
      tuned: after fine-tuning, on the whole validation split.
    """

    fingerprint: str
    macs: float
    file_kb: float
    inherited: float
    tuned: float


TUNED = (
    Column("network", lambda t: t.fingerprint),
    Column("million MACs", lambda t: f"{t.macs / 1e6:.2f}"),
    Column("file_kb", lambda t: f"{t.file_kb:.1f}"),
    Column("inherited, %", lambda t: percent(t.inherited, 2)),
    Column("fine-tuned, %", lambda t: percent(t.tuned, 2)),
)


def tuned(
    lab: Lab, networks: int, seed: int, folder: pathlib.Path, say: Say = print
) -> tuple[float, list[Tuned]]:
    """Fine-tunes random networks of mixed bits; writes sgnas_tuned.csv and .md.

    What was fine-tuned is kept in ROOT/cifar10/reproduce/tuned.json.

    Returns:
      Spearman's correlation of accuracy with inherited and with fine-tuned weights, and the rows.
    """
    from scipy import stats

    choices = lab.space.sample(networks, seeds.stream(seed, "tuned"))
    inherited = lab.scores(choices)
    costs = lab.costs.costs(choices)
    rows = []
    for number, choice in enumerate(choices):
        architecture = lab.space.architecture(choice)
        rows.append(
            Tuned(
                architecture.fingerprint,
                float(costs["macs"][number]),
                float(costs["file_kb"][number]),
                float(inherited[number]),
                _fine_tuned(lab, architecture, seed),
            )
        )
        say(f"{number + 1}/{networks}: {rows[-1].inherited:.4f} -> {rows[-1].tuned:.4f}")
    correlation = float(
        stats.spearmanr([row.inherited for row in rows], [row.tuned for row in rows]).statistic
    )
    reports.write_csv(folder / "sgnas_tuned.csv", rows)
    reports.write_markdown(
        folder / "sgnas_tuned.md",
        f"Spearman's correlation of inherited and fine-tuned accuracy over {networks} random "
        f"networks of mixed bits: {correlation:.3f}.",
        reports.markdown(TUNED, rows),
    )
    say(f"Spearman's correlation {correlation:.3f}")
    return correlation, rows


def _fine_tuned(lab: Lab, architecture: Architecture, seed: int) -> float:
    """Accuracy on the validation split after the config's fine-tuning."""
    from tfgen.evidence import inherited
    from tfgen.training import trainer

    recipe = lab.experiment.fine_tuning
    assert recipe is not None  # an experiment with a supernet has one
    path = lab.folder / "tuned.json"
    known = workdir.read_json(path) if path.is_file() else {}
    start = inherited.of_weights(lab.supernet)
    key = f"{architecture.fingerprint}-{start}-{recipe.fingerprint}-{trainer.VERSION}-{seed}"
    if key not in known:
        layers = lower(lab.space, architecture)
        weights = lab.supernet.weights(layers)
        result = trainer.train(
            layers,
            lab.dataset,
            recipe,
            seed,
            weights=weights,
            teacher=supernets.largest_of(lab.supernet),
        )
        known[key] = result.metric
        workdir.write_json(path, known)
    return float(known[key])
