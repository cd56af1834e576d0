"""Searches networks for one budget by training them: what one would run instead of a generator.

    search --config=configs/quartic_mlp.py --method=genetic --budget=storage_kb=2 \\
        --max_evaluations=200 --work_dir=DIR

Prints the best networks that keep the budget's limits, by validation metric, best first. Trainings
are kept in DIR/search.db: a stopped search started again with the same flags goes on, and one with
a larger --max_evaluations may share no more than its first trainings.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from tfgen import errors, generators, program, workdir
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.evidence.collect import Evaluator
from tfgen.evidence.record import RecordStore
from tfgen.experiment import Experiment
from tfgen.generators import searching
from tfgen.generators.base import Evidence
from tfgen.space import catalog
from tfgen.tables import number, table
from tfgen.training import datasets, population

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; see configs/.")
_METHOD = flags.DEFINE_string(
    "method", "genetic", f"One of {', '.join(sorted(generators.SEARCHERS))}."
)
_BUDGET = flags.DEFINE_string("budget", None, "As in storage_kb=2,energy_uj=0.003.", required=True)
_MAX_EVALUATIONS = flags.DEFINE_integer(
    "max_evaluations", 200, "Trainings that may be made.", lower_bound=1
)
_WORK_DIR = flags.DEFINE_string("work_dir", None, "Where search.db is, or will be.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory, for data that does not ship.")
_SEED = flags.DEFINE_integer("seed", 1, "Of the search and its trainings.")
_COUNT = flags.DEFINE_integer("count", 10, "Networks to print.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for what was found.")
_PROCESSES = flags.DEFINE_integer(
    "processes", os.cpu_count() or 1, "Trainings at a time.", lower_bound=1
)


def main(argv: Sequence[str]) -> int:
    """Searches, prints and writes; returns the exit code."""
    del argv
    searcher = generators.get_searcher(_METHOD.value)
    budget = Budget.parse(_BUDGET.value)
    experiment = Experiment.from_config(program.config(_CONFIG))
    space = catalog.get(experiment.space)
    costs = CostModel(space)
    searching.check_limits(costs, budget)
    dataset = datasets.load(experiment.dataset, _DATA_DIR.value)
    task = dataset.task
    if budget.quality is not None and budget.quality[0] != task.metric:
        raise errors.UsageError(
            f"{experiment.name} is judged by {task.metric}, not by {budget.quality[0]}"
        )
    start = time.monotonic()
    work = workdir.WorkDir(workdir.user_path(_WORK_DIR.value))
    workers = population.Workers(dataset, experiment.recipe, processes=_PROCESSES.value)
    with RecordStore(work.root / "search.db", space) as store, store.owned(), workers:
        stored = len(store)
        evidence = Evidence(space, costs, evaluate=Evaluator(store, workers))
        found = searcher.search(
            evidence, budget, _MAX_EVALUATIONS.value, searcher.config(), _SEED.value
        )
        made = len(store) - stored
    seconds = time.monotonic() - start
    rows = []
    for record in found.best(_COUNT.value):
        counted = costs.cost(record.architecture)
        rows.append(
            {
                "network": record.architecture.to_json(),
                "values": space.values(record.architecture),
                task.metric: record.metric,
                "costs": {m: counted[m] for m in costs.metrics},
                "seed": record.seed,
            }
        )
    columns = list(budget.limits) or [m for m in costs.metrics if m == "storage_kb"]
    cells = [
        [
            f"{row[task.metric]:.4f}",
            *(number(row["costs"][m]) for m in columns),
            " ".join(f"{name}={value}" for name, value in row["values"].items()),
        ]
        for row in rows
    ]
    print(table([task.metric, *columns, "network"], cells))
    print(
        f"{len(found.records):,} trainings, {made:,} of them new, in {seconds:.0f} s by "
        f"{_METHOD.value}"
    )
    if budget.quality is not None and rows and rows[0][task.metric] < budget.quality[1]:
        print(f"note: none reached {task.metric}={budget.quality[1]:g}")
    if _OUTPUT.value is not None:
        result = {
            "config": experiment.to_json(),
            "method": _METHOD.value,
            "budget": budget.to_json(),
            "seed": _SEED.value,
            "trainings": len(found.records),
            "new_trainings": made,
            "seconds": seconds,
            "best": rows,
        }
        workdir.write_json(workdir.user_path(_OUTPUT.value), result)
    return 0


if __name__ == "__main__":
    program.run(main)
