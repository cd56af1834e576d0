"""Whether bits for each layer pay: generated networks against uniform ones in files of one size.

    compare_bits --bundle=mnist_mlp --data_dir=TFDS --output=FILE.json --file_kb=4,8,16

For each file size: the generator's first answer; and for each uniform width the network that the
same encoder and the same selection find best among as many draws, all layers at that width; of its
first answers the one that trains best on validation data, so a uniform network has several tries
and the generated one has one. Each is trained with new seeds, exported and scored on the test
split, from the file. Deliveries are kept in FILE, so a stopped run goes on. With --figure=FILE.svg
it also draws them (needs matplotlib).
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from tfgen import bundle as bundles
from tfgen import errors, pipeline, program, seeds, workdir
from tfgen.cost.budget import Budget
from tfgen.evidence.local_surrogate import near
from tfgen.generators.base import Proposals
from tfgen.selection import Candidate, Selector
from tfgen.space.lowering import lower
from tfgen.space.search_space import SearchSpace
from tfgen.tables import table
from tfgen.training import datasets, population

_BUNDLE = flags.DEFINE_string("bundle", "mnist_mlp", "A trained bundle.")
_METHOD = flags.DEFINE_string("method", "nagan", "Which method's generator answers.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory, for data that does not ship.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.", required=True)
_FIGURE = flags.DEFINE_string("figure", None, "SVG or PNG file for a picture.")
_FILE_KB = flags.DEFINE_list("file_kb", ["4", "8", "16"], "Sizes of files.")
_UNIFORM = flags.DEFINE_list("uniform", ["8", "4"], "Widths of the uniform networks.")
_TRIES = flags.DEFINE_integer("tries", 5, "Uniform networks trained for each size.", lower_bound=1)
_DRAWS = flags.DEFINE_integer("draws", 50_000, "Networks drawn in a round, of each kind.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Deliveries of each network.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 1, "Of draws and trainings.")
_GENERATED = "generated"


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Draws networks at random whose layers all have one width of weights."""

    space: SearchSpace
    weight_bits: int

    def propose(self, budgets: Sequence[Budget], count: int, seed: int) -> list[Proposals]:
        """The same draws for every budget."""
        choices = self.space.sample(count, seeds.stream(seed, "uniform", self.weight_bits))
        for position, decision in enumerate(self.space.decisions):
            if decision.name.startswith("bits"):
                choices[:, position] = decision.values.index(self.weight_bits)
        return [Proposals(self.space.canonical(choices))] * len(budgets)


def main(argv: Sequence[str]) -> None:
    """Prints the accuracy of every network and writes it as JSON."""
    del argv
    bundle = bundles.load(bundles.find(_BUNDLE.value))
    dataset = datasets.load(bundle.dataset, _DATA_DIR.value)
    output = workdir.user_path(_OUTPUT.value)
    rows: list[dict[str, Any]] = workdir.read_json(output) if output.is_file() else []
    for size in map(float, _FILE_KB.value):
        budget = Budget({"file_kb": size})
        for kind in (_GENERATED, *(f"uniform {bits}" for bits in _UNIFORM.value)):
            if any((row["file_kb_asked"], row["kind"]) == (size, kind) for row in rows):
                continue
            try:
                candidate = _candidate(bundle, budget, kind, dataset)
            except errors.InfeasibleBudgetError:
                print(f"{kind}: nothing fits {budget}")
                continue
            rows.append(
                {
                    "file_kb_asked": size,
                    "kind": kind,
                    "network": [
                        [layer.out_channels, layer.weight_bits]
                        for layer in lower(bundle.space, candidate.architecture)
                    ],
                    "predicted": candidate.metric,
                    **_delivered(bundle, candidate, dataset),
                }
            )
            workdir.write_json(output, rows)
            print(rows[-1], flush=True)
    rows = sorted(rows, key=lambda row: row["file_kb_asked"])
    print(_table(rows))
    if _FIGURE.value:
        _draw(rows, workdir.user_path(_FIGURE.value), bundle)


def _candidate(
    bundle: bundles.Bundle, budget: Budget, kind: str, dataset: datasets.Dataset
) -> Candidate:
    """The generator's first answer, or the best of the first uniform ones."""
    selector = Selector(count=_TRIES.value, draws=_DRAWS.value)
    if kind == _GENERATED:
        return pipeline.answer(
            bundle, budget, bundle.cost_model, _METHOD.value, selector, _SEED.value, print
        )[0]
    found = selector.select(
        bundle.space,
        Uniform(bundle.space, int(kind.split()[1])),
        functools.partial(near, bundle.surrogate, bundle.cost_model),
        bundle.cost_model,
        budget,
        kind,
        _SEED.value,
    )
    members = [
        population.Member(lower(bundle.space, c.architecture), seeds.derive(_SEED.value, "try", i))
        for i, c in enumerate(found)
    ]
    scores = {o.index: o.metric for o in population.train(members, dataset, bundle.recipe,
                                                          processes=2)}  # fmt: skip
    return found[max(scores, key=scores.__getitem__)]


def _delivered(
    bundle: bundles.Bundle, candidate: Candidate, dataset: datasets.Dataset
) -> dict[str, Any]:
    """Bytes and test scores of the files of several trainings."""
    scores, sizes = [], []
    for number in range(_SEEDS.value):
        with tempfile.TemporaryDirectory(prefix="tfgen-") as folder:
            delivery = pipeline.deliver(
                bundle,
                candidate,
                workdir.WorkDir(Path(folder)),
                dataset,
                seed=seeds.derive(_SEED.value, "deliver", number),
            )
        terms = {term.metric: term.measured for term in delivery.contract.terms}
        scores.append(terms[bundle.task.metric])
        sizes.append(delivery.contract.file_bytes)
    return {"file_bytes": sizes, "scores": scores}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    cells = [
        [
            f"{row['file_kb_asked']:g}",
            row["kind"],
            " ".join(f"{units}:{bits}" for units, bits in row["network"]),
            str(max(row["file_bytes"])),
            f"{statistics.mean(row['scores']):.4f}",
            f"{min(row['scores']):.4f}..{max(row['scores']):.4f}",
        ]
        for row in rows
    ]
    return table(["file_kb", "", "units:bits", "bytes", "mean score", "range"], cells)


def _draw(rows: Sequence[dict[str, Any]], path: Path, bundle: bundles.Bundle) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for kind in dict.fromkeys(row["kind"] for row in rows):
        found = [row for row in rows if row["kind"] == kind]
        kb = [np.mean(row["file_bytes"]) / 1000 for row in found]
        middle = np.array([np.mean(row["scores"]) for row in found])
        ends = np.array([[min(row["scores"]), max(row["scores"])] for row in found]).T
        axes.errorbar(kb, middle, np.abs(ends - middle), marker="o", capsize=3, label=kind)
    axes.set_xscale("log")
    axes.set_xlabel("file, kB")
    axes.set_ylabel(f"{bundle.task.metric} of the file on the test split")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    program.run(main)
