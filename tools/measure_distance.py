"""How well generated networks keep to their condition: mDist of the NAGAN paper, really trained.

    measure_distance --config=configs/california_housing_mlp.py --work_dir=DIR --output=FILE.json

For each condition 0.1, 0.2 .. 1.0 it trains, once and with a new seed each:
  * networks straight from the generator, without any selection, for several generator seeds;
  * networks that also pass the confidence stage;
  * the records nearest to the condition: the look-up floor, which is training noise and what the
    nearest record owes to luck.
The distance is the mean of |p - c|, p the normalised performance clipped to 0..1. Trainings are
kept in DIR/distance.db, so a stopped run goes on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from absl import flags
from ml_collections import config_flags

from tfgen import bundle as bundles
from tfgen import generators, pipeline, program, seeds, workdir
from tfgen.cost import metrics
from tfgen.evidence.collect import Evaluator
from tfgen.evidence.record import RecordStore
from tfgen.generators.base import Evidence
from tfgen.selection import Selector, confidence_distance
from tfgen.tables import table
from tfgen.training import datasets, population

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; see configs/.")
_WORK_DIR = flags.DEFINE_string(
    "work_dir", None, "Where records.db and bundle/ are.", required=True
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory, for data that does not ship.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.", required=True)
_GENERATORS = flags.DEFINE_integer("generators", 3, "Generator seeds.", lower_bound=1)
_NETWORKS = flags.DEFINE_integer("networks", 20, "Networks a condition.", lower_bound=1)
_FLOOR_NETWORKS = flags.DEFINE_integer("floor_networks", 10, "Records a condition.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 1, "Of draws and trainings.")
_PROCESSES = flags.DEFINE_integer(
    "processes", os.cpu_count() or 1, "Trainings at a time.", lower_bound=1
)

CONDITIONS = np.arange(1, 11) / 10


def main(argv: Sequence[str]) -> None:
    """Prints the distances as a table and writes them as JSON."""
    del argv
    experiment = pipeline.Experiment.from_config(program.config(_CONFIG))
    work = workdir.WorkDir(workdir.user_path(_WORK_DIR.value))
    bundle = bundles.load(work.bundle)
    dataset = datasets.load(experiment.dataset, _DATA_DIR.value)
    records = pipeline.planned_records(experiment, work, dataset)
    scale = bundle.surrogate.scale
    evidence = Evidence(bundle.space, bundle.cost_model, records, bundle.surrogate)
    rows = []
    workers = population.Workers(dataset, experiment.recipe, processes=_PROCESSES.value)
    with RecordStore(work.root / "distance.db", bundle.space) as store, workers:
        evaluate = Evaluator(store, workers)

        def measure(name: str, choices: np.ndarray, conditions: np.ndarray) -> None:
            """Trains each row of choices once and adds the distances to the table."""
            architectures = [bundle.space.architecture(row) for row in choices]
            trained = evaluate(architectures, seeds.derive(_SEED.value, "distance", name))
            real = np.abs(scale.normalise([r.metric for r in trained]) - conditions)
            told = np.clip(bundle.surrogate.predict(choices).performance, 0, 1)
            rows.append(
                {
                    "networks": name,
                    "trained": len(real),
                    "different": len(np.unique(choices, axis=0)),
                    "mdist_f": metrics.mean_distance(told, conditions),
                    "mdist_r": float(real.mean()),
                    "interval": metrics.bootstrap_interval(real, _SEED.value),
                    "by_condition": [float(real[conditions == c].mean()) for c in CONDITIONS],
                }
            )
            print(f"{name}: mDist_r {100 * real.mean():.1f} %", flush=True)

        for number in range(_GENERATORS.value):
            config = experiment.methods["nagan"]
            generator = generators.get("nagan").fit(evidence, config, experiment.seed + number)
            conditions = np.repeat(CONDITIONS, _NETWORKS.value)
            draw_seed = seeds.derive(_SEED.value, "draw", number)
            measure(f"generator {number}", generator.draw(conditions, draw_seed), conditions)
            # The same generator after the confidence stage: more draws, of which those are kept
            # whose predicted performance is within the default distance.
            many = np.repeat(CONDITIONS, 40 * _NETWORKS.value)
            drawn = generator.draw(many, seeds.derive(_SEED.value, "selected", number))
            told = bundle.surrogate.predict(drawn).performance
            kept = confidence_distance(told, many) <= Selector().max_distance
            first = [np.flatnonzero(kept & (many == c))[: _NETWORKS.value] for c in CONDITIONS]
            chosen = np.concatenate(first)
            measure(f"generator {number}, confident", drawn[chosen], many[chosen])
        performance = scale.normalise([r.metric for r in records])
        nearest = [
            np.argsort(np.abs(performance - c), kind="stable")[: _FLOOR_NETWORKS.value]
            for c in CONDITIONS
        ]
        floor = bundle.space.choices([records[i].architecture for i in np.concatenate(nearest)])
        measure("look-up floor", floor, np.repeat(CONDITIONS, _FLOOR_NETWORKS.value))
    workdir.write_json(workdir.user_path(_OUTPUT.value), {"scale": scale.to_json(), "rows": rows})
    headers = ["networks", "trained", "different", "mDist_f %", "mDist_r %", "95 % interval"]
    cells = [
        [
            row["networks"],
            str(row["trained"]),
            str(row["different"]),
            f"{100 * row['mdist_f']:.1f}",
            f"{100 * row['mdist_r']:.1f}",
            "{:.1f}..{:.1f}".format(*(100 * end for end in row["interval"])),
        ]
        for row in rows
    ]
    print(table(headers, cells))


if __name__ == "__main__":
    program.run(main)
