"""SGNAS on NAS-Bench-201: table 3 and figure 5 of the paper (section 4.3).

A small supernet of the space is trained by uniform sampling on CIFAR-10; nothing else is trained.
For each of ten targets the answer is chosen by the supernet's accuracy on validation images alone,
and then looked up: `regret` is what it lacks to the best cell within the target, in points of the
accuracy after 200 epochs (c10_valid). Answers are chosen

  * from the generator's draws for the target ("sgnas"), and its arg max, unseen ("sgnas, arg max");
  * among random cells of the space that keep the target, ranked by the same supernet ("random");
  * by the most MACs within the target, without a supernet ("most MACs"): the mean over ties.

Trained supernets and scores lie in WORK_DIR/nasbench201, under a name made of all that decides
them, so that a stopped run goes on with the seed that it was at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tfgen import errors, seeds, workdir
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.evidence.tabular import NasBench201
from tfgen.generators.base import Evidence
from tfgen.generators.sgnas import Sgnas, SgnasConfig
from tfgen.space import catalog
from tfgen.training import datasets
from tfgen.training.recipe import SupernetRecipe
from tools import charts, reports
from tools.reports import Column, duration
from tools.reproduce_setting import KeptScores, different, digest

TABLE = "nasbench201.csv.gz"
TARGETS = tuple(20e6 * n for n in range(1, 11))  # MACs
VALID = "c10_valid"
ACCURACIES = (VALID, "c10_test", "c100_valid", "c100_test", "in16_valid", "in16_test")
SGNAS, ARG_MAX, RANDOM, MOST = "sgnas", "sgnas, arg max", "random", "most MACs"
_DATASET = "cifar10_16x16"
_VERSION = 2  # of how supernets are trained and kept
_DRAWN = 1_000  # of the generator, for a target
_RECIPE = SupernetRecipe(epochs=24, batch_size=128, learning_rate=0.05)
_GENERATOR = SgnasConfig(costs=("macs",), steps=1_500, images=64)
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is trained and asked.

    Attributes:
      seeds: of supernet, generator and random cells.
      recipe: of the supernet.
      channels: of its first stage.
      cells: of a stage.
      images: of the search split, by which cells are compared.
      candidates: of the generator, that the supernet scores for a target.
      random: cells, scored once for all targets.
      generator: how the generator is trained.
    """

    seeds: int = 3
    recipe: SupernetRecipe = _RECIPE
    channels: int = 16
    cells: int = 1
    images: int = 1_000
    candidates: int = 30
    random: int = 1_000
    generator: SgnasConfig = _GENERATOR


@dataclasses.dataclass(frozen=True)
class Answer:
    """A method's answer to one target; accuracies in per cent, after 200 epochs.

    Attributes:
      seed: number of the seed.
      method: SGNAS, ARG_MAX, RANDOM or MOST.
      target_macs: that it keeps; an arg max may be over it.
      macs: of the answer.
      score: by the supernet, a share; NaN where none was asked.
      regret: points of VALID below the best cell within the target.
      c10_valid: looked up; the others too.
    """

    seed: int
    method: str
    target_macs: float
    macs: float
    score: float
    regret: float
    c10_valid: float
    c10_test: float
    c100_valid: float
    c100_test: float
    in16_valid: float
    in16_test: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """A method over targets and seeds.

    Attributes:
      method: of Answer.
      regret: mean over targets and seeds.
      low: least mean over targets of a seed.
      high: largest.
      best: each of ACCURACIES at the target whose answer scored best, or has the most MACs where
        none was scored; the means over seeds.
    """

    method: str
    regret: float
    low: float
    high: float
    best: tuple[float, ...]


class Truth:
    """The table, with what each cell costs."""

    def __init__(self, tables: pathlib.Path):
        self.table = NasBench201(tables / TABLE, ACCURACIES)
        self.macs = CostModel(catalog.get("nasbench201")).costs(self.table.choices)["macs"]

    def best(self, target: float) -> float:
        """The most VALID within a target."""
        return float(self.table.accuracies[VALID][self.macs <= target].max())

    def most_macs(self, target: float) -> np.ndarray:
        """Rows of the cells with the most MACs within a target."""
        within = self.macs <= target
        return np.flatnonzero(self.macs == self.macs[within].max())

    def answer(
        self, seed: int, method: str, target: float, rows: np.ndarray, score: float = np.nan
    ) -> Answer:
        """The answer that these rows are, on average."""
        found = {name: float(values[rows].mean()) for name, values in self.table.accuracies.items()}
        macs = float(self.macs[rows].mean())
        regret = self.best(target) - found[VALID]
        return Answer(seed, method, target, macs, score, regret, **found)


def table_3(
    tables: pathlib.Path,
    work: pathlib.Path,
    data_dir: str | None,
    sizes: Sizes,
    seed: int,
    folder: pathlib.Path,
    say: Say = print,
) -> None:
    """Trains, searches and looks up; writes sgnas3.csv, sgnas3.md and the pictures of figure 5.

    Raises:
      UsageError: the table or the data set is missing.
    """
    truth = Truth(tables)
    dataset = datasets.load(_DATASET, data_dir)
    answers: list[Answer] = []
    taus, seconds = [], []
    for number in range(sizes.seeds):
        tau, spent, found = _searched(truth, dataset, work, sizes, seed, number, say)
        taus.append(tau)
        seconds.append(spent)
        answers += found
        _write(answers, taus, seconds, sizes, truth, folder)
    say((folder / "sgnas3.md").read_text())


def _searched(
    truth: Truth,
    dataset: datasets.Dataset,
    work: pathlib.Path,
    sizes: Sizes,
    base: int,
    number: int,
    say: Say,
) -> tuple[float, dict[str, float], list[Answer]]:
    """One seed: Kendall's tau of the supernet, seconds of each part, and the answers."""
    from scipy import stats

    from tfgen.nets.cell_supernet import CellSupernet
    from tfgen.training import cell_training, kept

    seed = seeds.derive(base, "nasbench201", number)
    space = catalog.get("nasbench201")
    supernet = CellSupernet(space, seed, channels=sizes.channels, cells=sizes.cells)
    made_of = [_VERSION, seed, sizes.recipe.to_json(), sizes.channels, sizes.cells, sizes.images]
    own = work / f"seed_{number}-{digest([*made_of, dataset.fingerprint])}"
    clock = _Clock(own / "seconds.json")
    training = cell_training.CellTraining(supernet, dataset, sizes.recipe, seed)
    data = {dataset.name: dataset.fingerprint}
    place = kept.Kept(own / "supernet", sizes.recipe.to_json(), seed, data)
    place.restore(training)
    since = time.perf_counter()
    for loss in kept.epochs(training, sizes.recipe.epochs, place):
        say(f"seed {number}, epoch {training.epoch}: loss {loss:.3f}")
        since = clock.add("supernet", since)
    validation = dataset.validation
    examples = datasets.Split(validation.x[: sizes.images], validation.y[: sizes.images])
    scores = KeptScores(own / "scores.json", cell_training.scorer(supernet, examples))

    random = different(space.sample(4 * sizes.random, seeds.stream(seed, "random")))
    random = random[: sizes.random]
    with clock.of("random"):
        random_scores = scores(random)
    looked_up = truth.table.accuracies[VALID][truth.table.rows(random)]
    tau = float(stats.kendalltau(random_scores, looked_up).statistic)
    say(f"seed {number}: Kendall's tau of {len(random):,} random cells {tau:.3f}")

    costs = CostModel(space)
    with clock.of("generator"):
        evidence = Evidence(space, costs, supernet=supernet, examples=examples)
        generator = Sgnas().fit(evidence, sizes.generator, seed)
    answers = []
    for target in TARGETS:
        within = costs.costs(random)["macs"] <= target
        if within.any():
            best = int(np.argmax(np.where(within, random_scores, -1.0)))
            rows = truth.table.rows(random[best : best + 1])
            answers.append(truth.answer(number, RANDOM, target, rows, random_scores[best]))
        answers.append(truth.answer(number, MOST, target, truth.most_macs(target)))
        with clock.of(f"answer to {target:g}"):
            (proposed,) = generator.propose([Budget({"macs": target})], _DRAWN, seed)
            drawn = different(proposed.choices)
            fitting = drawn[costs.costs(drawn)["macs"] <= target][: sizes.candidates]
            if not len(fitting):
                raise errors.TfgenError(f"the generator drew no cell of at most {target:g} MACs")
            found = scores(fitting)
        first = truth.table.rows(proposed.choices[:1])
        answers.append(truth.answer(number, ARG_MAX, target, first))
        best = int(np.argmax(found))
        rows = truth.table.rows(fitting[best : best + 1])
        answers.append(truth.answer(number, SGNAS, target, rows, found[best]))
    return tau, clock.seconds, answers


class _Clock:
    """Seconds of each part, kept in a file: what is read again costs what it cost.

    Attributes:
      seconds: by part.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.seconds: dict[str, float] = workdir.read_json(path) if path.is_file() else {}

    def add(self, part: str, since: float) -> float:
        """Adds the seconds since then to a part that goes on; returns now."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - since
        workdir.write_json(self._path, self.seconds)
        return now

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Times its block; of a part that was timed before the longer time is kept."""
        since = time.perf_counter()
        yield
        spent = time.perf_counter() - since
        self.seconds[part] = max(self.seconds.get(part, 0.0), spent)
        workdir.write_json(self._path, self.seconds)


# --- tables ---------------------------------------------------------------------------------------


def summarise(answers: Sequence[Answer]) -> list[Summary]:
    """A summary of each method, in the order of their first answers."""
    summaries = []
    for method in (SGNAS, ARG_MAX, RANDOM, MOST):
        own = [answer for answer in answers if answer.method == method]
        if not own:
            continue
        numbers = sorted({answer.seed for answer in own})
        by_seed = [np.mean([a.regret for a in own if a.seed == number]) for number in numbers]
        best = []
        for number in numbers:
            mine = [answer for answer in own if answer.seed == number]
            chosen = max(mine, key=lambda a: (np.nan_to_num(a.score, nan=-1.0), a.macs))
            best.append([getattr(chosen, name) for name in ACCURACIES])
        summaries.append(
            Summary(
                method,
                float(np.mean([answer.regret for answer in own])),
                float(min(by_seed)),
                float(max(by_seed)),
                tuple(np.mean(best, axis=0).tolist()),
            )
        )
    return summaries


_SUMMARY = (
    Column("method", lambda s: s.method),
    Column("mean regret, points", lambda s: f"{s.regret:.2f}"),
    Column("seeds", lambda s: f"{s.low:.2f}–{s.high:.2f}"),
    *(
        Column(name, lambda s, n=n: f"{s.best[n]:.2f}")
        for n, name in enumerate(ACCURACIES)
    ),
)  # fmt: skip


def _write(
    answers: Sequence[Answer],
    taus: Sequence[float],
    seconds: Sequence[dict[str, float]],
    sizes: Sizes,
    truth: Truth,
    folder: pathlib.Path,
) -> None:
    """sgnas3.csv, sgnas3.md and a picture for each data set."""
    reports.write_csv(folder / "sgnas3.csv", answers)
    by_target = [
        Column("target, million MACs", lambda t: f"{t / 1e6:g}"),
        Column("best", lambda t: f"{truth.best(t):.2f}"),
        *(
            Column(method, lambda t, m=method: _mean_of(answers, m, t))
            for method in (SGNAS, ARG_MAX, RANDOM, MOST)
        ),
    ]
    told = {
        part: duration(float(np.mean([_spent(s, part) for s in seconds])))
        for part in ("supernet", "generator", "answer", "random")
    }
    reports.write_markdown(
        folder / "sgnas3.md",
        f"{len(taus)} seeds; a supernet of {sizes.channels} channels and {sizes.cells} cells a "
        f"stage on 16x16 pixels, {sizes.recipe.epochs} epochs; {sizes.images:,} images compare. "
        "Kendall's tau of the supernet and c10_valid: "
        + ", ".join(f"{tau:.3f}" for tau in taus)
        + ".",
        f"A seed takes {told['supernet']} for the supernet, {told['generator']} for the generator "
        f"and {told['answer']} for ten answers; scoring {sizes.random:,} random cells takes "
        f"{told['random']}.",
        "What was scored for another target or at random is not scored again for an answer. "
        "Accuracies are those of the answer that scored best, among all targets.",
        reports.markdown(_SUMMARY, summarise(answers)),
        "c10_valid by target, the mean of the seeds:",
        reports.markdown(by_target, TARGETS),
    )
    for name in (VALID, "c100_valid", "in16_valid"):
        charts.write(_chart(answers, truth, name), folder, f"sgnas5_{name.partition('_')[0]}")


def _spent(seconds: Mapping[str, float], part: str) -> float:
    return sum(spent for name, spent in seconds.items() if name.split()[0] == part)


def _mean_of(answers: Sequence[Answer], method: str, target: float) -> str:
    own = [a.c10_valid for a in answers if (a.method, a.target_macs) == (method, target)]
    return f"{np.mean(own):.2f}" if own else "-"


def _chart(answers: Sequence[Answer], truth: Truth, name: str) -> charts.Chart:
    own = [answer for answer in answers if answer.method == SGNAS]
    every = slice(None, None, 5)  # of 15,625 dots
    return charts.Chart(
        f"NAS-Bench-201, {name}: cells that were generated",
        "million MACs",
        "accuracy, %",
        (
            charts.Series(
                "all cells (one in five)",
                (truth.macs[every] / 1e6).tolist(),
                truth.table.accuracies[name][every].tolist(),
                "dots",
            ),
            charts.Series(
                "generated",
                [answer.macs / 1e6 for answer in own],
                [getattr(answer, name) for answer in own],
            ),
        ),
    )
