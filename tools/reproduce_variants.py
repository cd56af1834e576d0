"""SGNAS's ablations: figure 6a and table 5 of the paper, and table 2's blocks.

  sgnas6a  supernets trained without forced sampling, without switchable normalisation, without
           either, with both, and with both and the blocks of MobileNetV3; a quarter of the config's
           epochs each. Of each the same random networks are scored with inherited weights.
  sgnas5   what a step of the generator's training takes, time and memory, on the unified supernet
           and on a plain single-path one

Supernets and scores lie in ROOT/cifar10/reproduce/variants, under a name made of what decides them,
so that a stopped run goes on.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import multiprocessing
import pathlib
import resource
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfgen import seeds, supernets, workdir
from tfgen.cost.cost_model import CostModel
from tfgen.experiment import Experiment
from tfgen.space import catalog
from tfgen.space.lowering import lower
from tfgen.space.search_space import SearchSpace
from tfgen.training import datasets
from tools import charts, reports
from tools.reports import Column, percent
from tools.reproduce_setting import KeptScores, digest

if TYPE_CHECKING:  # TensorFlow is imported where it is needed
    from tfgen.nets.supernet import Supernet

Say = Callable[[str], None]


# --- figure 6a ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train a supernet.

    Attributes:
      name: in tables.
      forced: see `SupernetRecipe`.
      switchable: see `SupernetRecipe`.
      space: other than the config's; None for that.
    """

    name: str
    forced: bool
    switchable: bool
    space: str | None = None


VARIANTS = (
    Variant("baseline", forced=False, switchable=False),
    Variant("forced sampling", forced=True, switchable=False),
    Variant("switchable normalisation", forced=False, switchable=True),
    Variant("both", forced=True, switchable=True),
    Variant("both, MobileNetV3's blocks", True, True, "cifar10_mobile_v3"),
)


@dataclasses.dataclass(frozen=True)
class Scored:
    """A random network of a supernet.

    Attributes:
      variant: of the supernet.
      fingerprint: of the network.
      macs: of one inference.
      accuracy: on the search split, with inherited weights.
    """

    variant: str
    fingerprint: str
    macs: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Spread:
    """The accuracies of one supernet's random networks.

    Attributes:
      variant: of the supernet.
      macs: their mean.
      mean: of the accuracies.
      deviation: their standard deviation.
      least: of them.
      most: of them.
    """

    variant: str
    macs: float
    mean: float
    deviation: float
    least: float
    most: float


FIGURE_6A = (
    Column("supernet", lambda s: s.variant),
    Column("million MACs", lambda s: f"{s.macs / 1e6:.2f}"),
    Column("mean accuracy, %", lambda s: percent(s.mean, 2)),
    Column("standard deviation", lambda s: percent(s.deviation, 2)),
    Column("least", lambda s: percent(s.least)),
    Column("best", lambda s: percent(s.most)),
)


def figure_6a(
    experiment: Experiment,
    root: pathlib.Path,
    dataset: datasets.Dataset,
    networks: int,
    seed: int,
    folder: pathlib.Path,
    say: Say = print,
    variants: Sequence[Variant] = VARIANTS,
) -> list[Spread]:
    """Trains the supernets and scores networks; writes sgnas6a.csv, .md and pictures after each.

    Args:
      experiment: whose supernet is varied.
      root: where supernets and scores lie.
      dataset: that they are trained on.
      networks: that are scored of each.
      seed: of the networks; supernets have the experiment's.
      folder: for the results.
      say: told how far it is.
      variants: which.
    """
    assert experiment.supernet is not None
    epochs = math.ceil(experiment.supernet.epochs / 4)
    scored: list[Scored] = []
    spreads: list[Spread] = []
    for variant in variants:
        recipe = dataclasses.replace(
            experiment.supernet,
            epochs=epochs,
            forced=variant.forced,
            switchable=variant.switchable,
        )
        own = dataclasses.replace(
            experiment, space=variant.space or experiment.space, supernet=recipe
        )
        say(f"{variant.name}:")
        found = _scored(own, variant, root, dataset, networks, seed, say)
        scored += found
        accuracies = np.array([row.accuracy for row in found])
        spreads.append(
            Spread(
                variant.name,
                float(np.mean([row.macs for row in found])),
                float(accuracies.mean()),
                float(accuracies.std()),
                float(accuracies.min()),
                float(accuracies.max()),
            )
        )
        reports.write_csv(folder / "sgnas6a.csv", scored)
        reports.write_markdown(
            folder / "sgnas6a.md",
            f"{networks} random networks of each supernet, with inherited weights; {epochs} epochs "
            "each.",
            reports.markdown(FIGURE_6A, spreads),
        )
        charts.write(_chart(scored), folder, "sgnas6a")
    say((folder / "sgnas6a.md").read_text())
    return spreads


def _scored(
    experiment: Experiment,
    variant: Variant,
    root: pathlib.Path,
    dataset: datasets.Dataset,
    networks: int,
    seed: int,
    say: Say,
) -> list[Scored]:
    from tfgen.evidence import inherited

    own = root / digest([experiment.supernet_json(), dataset.fingerprint])
    work = workdir.WorkDir(own)
    supernets.train(experiment, work, dataset, None, say)
    supernet = supernets.load(experiment, work, dataset)
    calibration = supernets.calibration(experiment, dataset).x
    score = functools.partial(_score, supernet, dataset, calibration, variant.forced)
    space = supernet.space
    choices = space.sample(networks, seeds.stream(seed, "variants"))
    recipe = inherited.fingerprint(supernet, supernets.searched(dataset), calibration)
    accuracies = KeptScores(own / f"scores-{recipe}.json", score)(choices)
    macs = CostModel(space).costs(choices)["macs"]
    return [
        Scored(variant.name, space.architecture(row).fingerprint, float(cost), float(accuracy))
        for row, cost, accuracy in zip(choices, macs, accuracies, strict=True)
    ]


def _score(
    supernet: Supernet,
    dataset: datasets.Dataset,
    calibration: np.ndarray,
    forced: bool,
    choices: np.ndarray,
) -> float:
    """Of one network; where it was not forced in training it takes any sub-blocks here too."""
    from tfgen.training import supernet_training

    architecture = supernet.space.architecture(choices)
    random = seeds.stream(0, "taken", architecture.fingerprint)
    return supernet_training.score(
        supernet,
        lower(supernet.space, architecture),
        dataset.task,
        supernets.searched(dataset),
        calibration,
        taken=None if forced else supernet_training.any_sub_blocks(supernet, random),
    )


def _chart(scored: Sequence[Scored]) -> charts.Chart:
    names = dict.fromkeys(row.variant for row in scored)
    return charts.Chart(
        "Random networks of supernets that were trained in other ways",
        "million MACs",
        "accuracy on the search split, %",
        tuple(
            charts.Series(
                name,
                [row.macs / 1e6 for row in scored if row.variant == name],
                [100 * row.accuracy for row in scored if row.variant == name],
            )
            for name in names
        ),
    )


# --- table 5 --------------------------------------------------------------------------------------

UNIFIED, SINGLE_PATH = "unified", "single path"
_TIMED = 5  # steps, of which the median counts


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step of a generator's training takes that asks a supernet for shares.

    Attributes:
      supernet: UNIFIED or SINGLE_PATH.
      choices: of a layer.
      batch_size: images.
      seconds: of a step, the median.
      peak_mb: that its process takes more at the most than before the first step.
    """

    supernet: str
    choices: int
    batch_size: int
    seconds: float
    peak_mb: float


TABLE_5 = (
    Column("supernet", lambda s: s.supernet),
    Column("choices of a layer", lambda s: f"{s.choices}"),
    Column("batch", lambda s: f"{s.batch_size}"),
    Column("a step, s", lambda s: f"{s.seconds:.2f}"),
    Column("memory, MB", lambda s: f"{s.peak_mb:,.0f}"),
)


def table_5(
    space: str, batches: Sequence[int], folder: pathlib.Path, say: Say = print
) -> list[Step]:
    """Steps of both supernets, each in a process of its own; writes sgnas5_memory.csv and .md.

    Args:
      space: of `image_spaces.mobile`.
      batches: sizes.
      folder: for the results.
      say: told what was measured.
    """
    rows = []
    for batch in batches:
        for kind in (SINGLE_PATH, UNIFIED):
            with concurrent.futures.ProcessPoolExecutor(
                1, mp_context=multiprocessing.get_context("spawn")
            ) as pool:
                rows.append(pool.submit(step, kind, space, batch).result())
    reports.write_csv(folder / "sgnas5_memory.csv", rows)
    text = reports.markdown(TABLE_5, rows)
    reports.write_markdown(
        folder / "sgnas5_memory.md",
        f"Forward and backward through all choices of {space}, weights in float, by shares alone; "
        "memory is what the process takes beyond the supernet.",
        text,
    )
    say(text)
    return rows


def step(kind: str, space_name: str, batch: int) -> Step:
    """Measures in this process, which should do nothing else."""
    from tfgen.nets.keras_compat import tf

    space = catalog.get(space_name)
    random = seeds.stream(1, "images")
    x = tf.constant(random.normal(size=(batch, *space.input_shape)).astype(np.float32))
    y = tf.constant(random.integers(2, size=batch))
    outputs, counts = _soft(kind, space)
    scores = [tf.Variable(tf.zeros([count])) for count in counts]

    @tf.function
    def once() -> Any:
        with tf.GradientTape() as tape:
            logits = outputs(x, [tf.nn.softmax(own) for own in scores])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
            loss = tf.reduce_mean(losses)
        return tape.gradient(loss, scores, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    before = _peak_mb()
    seconds = []
    for _ in range(_TIMED + 1):
        since = time.perf_counter()
        once()[0].numpy()
        seconds.append(time.perf_counter() - since)
    return Step(kind, max(counts), batch, float(np.median(seconds[1:])), _peak_mb() - before)


def _soft(kind: str, space: SearchSpace) -> tuple[Callable[..., Any], list[int]]:
    """A supernet's outputs for shares, and how many values each share is of."""
    if kind == SINGLE_PATH:
        from tools.single_path import SinglePath

        plain = SinglePath(space, 1)
        return plain.outputs, plain.choices
    from tfgen.nets.soft_network import SoftNetwork
    from tfgen.nets.supernet import Supernet

    soft = SoftNetwork(Supernet(space, 1))

    def outputs(x: Any, shares: Sequence[Any]) -> Any:
        named = {d.name: own for d, own in zip(space.decisions, shares, strict=True)}
        return soft.outputs(x, named, quantized=False)

    return outputs, [len(decision.values) for decision in space.decisions]


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
