"""A detector on a backbone of a bundle's supernet, beside the same one that begins with nothing.

    transfer --bundle=cifar10 --macs=4e6 --dataset=bccd --data_dir=TFDS --output_dir=DIR

After SGNAS, section 4.3 (table 4): a network of the space is cut before its mean over the image,
runs on larger images and ends in a head that detects. Both begin with the same head. DIR/transfer
gets the numbers of every run, as CSV and Markdown.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from absl import flags

from tfgen import bundle as bundles
from tfgen import errors, program, supernets, workdir
from tfgen.cost import cost_model
from tfgen.cost.budget import Budget
from tfgen.space.architecture import Architecture
from tfgen.space.layers import INPUT, LayerSpec, Size, slots_of
from tfgen.space.lowering import lower
from tfgen.training import boxes, datasets
from tfgen.training.datasets import Dataset
from tfgen.training.recipe import Recipe, initial_weights
from tools import reports
from tools.reports import Column, percent

_BUNDLE = flags.DEFINE_string("bundle", "cifar10", "Of the zoo, or a folder; with shared weights.")
_MACS = flags.DEFINE_float("macs", 4e6, "Of the network at most, on the bundle's own images.")
_DATASET = flags.DEFINE_string("dataset", None, "What is detected; needed.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where it goes; needed.")
_STEPS = flags.DEFINE_integer("steps", 1_000, "Of each training.", lower_bound=2)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Trainings of either kind.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws and of the first training.", lower_bound=0)

INHERITED, RANDOM = "of the supernet", "at random"
_DRAWS = 512
_HEAD = "detector"


@dataclasses.dataclass(frozen=True)
class Transferred:
    """One training.

    Attributes:
      weights: INHERITED or RANDOM, those that the backbone begins with.
      seed: of the training.
      validation: the metric, rounded as a file rounds.
      test: the same on the test split.
      params: of kernels and biases.
      macs: of one inference.
    """

    weights: str
    seed: int
    validation: float
    test: float
    params: float
    macs: float


def main(argv: Sequence[str]) -> None:
    """Trains both and writes the table."""
    del argv
    if None in (_DATASET.value, _OUTPUT_DIR.value):
        raise errors.UsageError("give --dataset and --output_dir")
    folder = workdir.user_path(_OUTPUT_DIR.value)
    dataset = datasets.load(_DATASET.value, _DATA_DIR.value)
    if dataset.task.name != "detection":
        raise errors.UsageError(f"--dataset={dataset.name}: has no objects to detect")
    named = bundles.ZOO / _BUNDLE.value
    bundle = bundles.load(named if named.is_dir() else workdir.user_path(_BUNDLE.value))
    rows = transfer(bundle, _MACS.value, dataset, _STEPS.value, _SEEDS.value, _SEED.value)
    folder.mkdir(parents=True, exist_ok=True)
    reports.write_csv(folder / "transfer.csv", rows)
    reports.write_markdown(folder / "transfer.md", reports.markdown(_COLUMNS, rows))
    print(reports.markdown(_COLUMNS, rows))


def transfer(
    bundle: bundles.Bundle, macs: float, dataset: Dataset, steps: int, count: int, seed: int
) -> list[Transferred]:
    """Trains detectors from shared weights and from none.

    Args:
      bundle: with shared weights.
      macs: see `chosen`.
      dataset: of detection.
      steps: of each training.
      count: of seeds.
      seed: the first.

    Raises:
      UsageError: the bundle has no shared weights, or no network within `macs`.
    """
    from tfgen.training import trainer  # not for --help

    if bundle.shared is None:
        raise errors.UsageError(f"bundle {bundle.name!r} has no shared weights to begin with")
    network = lower(bundle.space, chosen(bundle, macs, seed))
    outputs = int(dataset.train.y[..., 0].max()) + 1 + boxes.PLACE
    layers = detector(network, dataset.train.x.shape[1:3], outputs)
    found = supernets.inherited(bundle.space, bundle.shared, network)
    costs = cost_model.count(slots_of(layers))
    recipe = Recipe(
        steps=steps, batch_size=8, learning_rate=1e-3, warmup_steps=50, shift=8, flip=True
    )
    rows = []
    for own in range(seed, seed + count):
        ((kernel, bias),) = initial_weights(layers[-1:], own)
        weights = {layer.name: found[layer.name] for layer in layers[:-1] if layer.weighted}
        weights[_HEAD] = {"kernel": kernel, "bias": bias}
        for kind, begun in ((INHERITED, weights), (RANDOM, None)):
            trained = trainer.train(layers, dataset, recipe, own, weights=begun)
            tested = dataset.task.score(
                dataset.test.y, trainer.predict(trained.model, dataset.test.x)
            )
            params, total = (float(costs[metric][0]) for metric in ("params", "macs"))
            rows.append(Transferred(kind, own, trained.metric, tested, params, total))
            print(f"{kind}, seed {own}: {percent(tested)} % on test", file=sys.stderr, flush=True)
    return rows


def chosen(bundle: bundles.Bundle, macs: float, seed: int) -> Architecture:
    """The network within so many MACs, of those the bundle's first method draws, that scores best.

    Raises:
      UsageError: none of them is.
    """
    generator = next(iter(bundle.generators.values()))
    (drawn,) = generator.propose([Budget({"macs": macs})], _DRAWS, seed)
    choices = drawn.choices[bundle.cost_model.costs(drawn.choices)["macs"] <= macs]
    if not len(choices):
        raise errors.UsageError(f"bundle {bundle.name!r} draws no network within {macs:g} MACs")
    return bundle.space.architecture(choices[bundle.surrogate.predict(choices).metric.argmax()])


def detector(layers: Sequence[LayerSpec], size: Size, outputs: int) -> tuple[LayerSpec, ...]:
    """What stands before the mean over the image, on images of this size, and a head of its own."""
    sizes: dict[str, Size] = {INPUT: tuple(size)}
    made = []
    for layer in layers:
        if layer.op == "mean" and not layer.out_size:
            break
        before = sizes[layer.inputs[0]]
        sizes[layer.name] = tuple(-(-side // layer.stride) for side in before)
        made.append(dataclasses.replace(layer, in_size=before, out_size=sizes[layer.name]))
    last = made[-1]
    head = LayerSpec(
        name=_HEAD,
        op="dense",
        inputs=(last.name,),
        in_channels=last.out_channels,
        out_channels=outputs,
        in_size=last.out_size,
        out_size=last.out_size,
        weight_bits=8,
    )
    return (*made, head)


_COLUMNS = (
    Column("weights of the backbone", lambda row: row.weights),
    Column("seed", lambda row: str(row.seed)),
    Column("on validation, %", lambda row: percent(row.validation)),
    Column("on test, %", lambda row: percent(row.test)),
    Column("parameters", lambda row: f"{row.params:,.0f}"),
    Column("million MACs", lambda row: f"{row.macs / 1e6:.1f}"),
)


if __name__ == "__main__":
    program.run(main)
