"""Memory over many small trainings: that of the collecting process and of its workers.

    python tools/bench_trials.py --trials=10000

Each trial is a training of a few steps that is recorded durably, as `collect` does it. Resident
sets are read from /proc as the trials go on; they should be flat.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Sequence

from absl import flags

from tfgen import program
from tfgen.evidence import collect
from tfgen.evidence.record import RecordStore
from tfgen.space import catalog
from tfgen.training import datasets, population
from tfgen.training.recipe import Recipe

_TRIALS = flags.DEFINE_integer("trials", 10_000, "Trainings.", lower_bound=100)
_PROCESSES = flags.DEFINE_integer("processes", os.cpu_count() or 1, "Workers.", lower_bound=1)
SPACE = "quartic_mlp"
RECIPE = Recipe(steps=4, batch_size=16, warmup_steps=0)
_SAMPLES = 20


@dataclasses.dataclass(frozen=True)
class Memory:
    """Resident sets after some trials.

    Attributes:
      trials: so far.
      seconds: since the first trial began.
      parent_mb: of the process that collects.
      workers_mb: of each worker.
    """

    trials: int
    seconds: float
    parent_mb: float
    workers_mb: tuple[float, ...]


def measure(trials: int, processes: int, folder: pathlib.Path) -> list[Memory]:
    """Resident sets at `_SAMPLES` moments, evenly spread.

    Args:
      trials: trainings to do.
      processes: workers.
      folder: for the store.
    """
    space, dataset = catalog.get(SPACE), datasets.load("quartic")
    plan = collect.plan(space, trials, seed=0)
    found: list[Memory] = []
    with (
        RecordStore(folder / "records.db", space) as store,
        population.Workers(dataset, RECIPE, processes=processes) as workers,
    ):
        begin = time.perf_counter()
        for number, _ in enumerate(collect.collect(store, plan, workers), start=1):
            if number % (trials // _SAMPLES) == 0:
                seconds = time.perf_counter() - begin
                own = tuple(resident_mb(pid) for pid in workers.pids)
                found.append(Memory(number, seconds, resident_mb(os.getpid()), own))
    return found


def resident_mb(pid: int) -> float:
    """A process's resident set, in units of 1,000,000 bytes."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(argv: Sequence[str]) -> int:
    """Prints a line of JSON for each moment."""
    del argv
    with tempfile.TemporaryDirectory() as name:
        for memory in measure(_TRIALS.value, _PROCESSES.value, pathlib.Path(name)):
            print(json.dumps(dataclasses.asdict(memory)))
    return 0


if __name__ == "__main__":
    program.run(main)
