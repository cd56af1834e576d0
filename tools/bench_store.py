"""What the record store takes for how many records: seconds, bytes of the file, memory.

Records a second are by the clock on the wall, since a disk decides them; the rest are seconds of
one core, which other work on the machine hardly changes.

    python tools/bench_store.py --records=10000 --records=100000 --records=1000000

Records are of networks drawn from a space; all are made before the clock starts. One number of
records after the other, each in a fresh process, so that the peak of memory is its own.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import pathlib
import resource
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from tfgen import program, seeds
from tfgen.cost.metrics import PerformanceScale
from tfgen.evidence import collect
from tfgen.evidence.record import Record, RecordStore
from tfgen.space import catalog
from tfgen.training import datasets
from tfgen.training.recipe import Recipe

_RECORDS = flags.DEFINE_multi_integer("records", [10_000], "Numbers of records.", lower_bound=1000)
_BATCH = flags.DEFINE_integer("batch", 1000, "Records of a transaction.", lower_bound=1)
_SINGLE = flags.DEFINE_integer(
    "single", 200, "Records appended one by one, each durably.", lower_bound=1
)
_FIT = flags.DEFINE_bool("fit", False, "Fits the encoder too, as `train` does by default.")
SPACE, DATASET = "quartic_mlp", "quartic"


def measure(
    records: int, batch: int, single: int, folder: pathlib.Path, fit: bool = False
) -> dict[str, Any]:
    """Everything for one number of records.

    Args:
      records: how many.
      batch: how many of them in a transaction.
      single: of them, how many are appended alone, after the others.
      folder: for the store.
      fit: whether the encoder is fitted to them.
    """
    space, dataset, recipe = catalog.get(SPACE), datasets.load(DATASET), Recipe()
    wall, clock = time.perf_counter, time.process_time
    told: dict[str, Any] = {"records": records}
    begin = clock()
    plan = collect.plan(space, records, seed=0)
    told["plan_s"] = clock() - begin
    made = [
        Record(t.architecture, dataset.fingerprint, recipe.fingerprint, t.seed, 0.5, 0.1)
        for t in plan
    ]
    path = folder / "records.db"
    with RecordStore(path, space) as store:
        together = made[: records - single]
        begin = wall()
        for first in range(0, len(together), batch):
            store.append(together[first : first + batch])
        told["batched_per_s"] = len(together) / (wall() - begin)
        begin = wall()
        for record in made[len(together) :]:
            store.append([record])
        told["single_per_s"] = single / (wall() - begin)
    told["file_mb"] = path.stat().st_size / 1e6
    begin = clock()
    with RecordStore(path, space) as store:
        told["open_s"] = clock() - begin
        begin = clock()
        known = store.keys()
        told["keys_s"] = clock() - begin
        assert len(known) == records
        begin = clock()
        missing = collect.pending(store, plan, dataset, recipe)
        told["pending_s"] = clock() - begin
        assert not missing
        del known
        begin = clock()
        found = store.read(dataset.fingerprint, recipe.fingerprint)
        told["read_s"] = clock() - begin
        assert len(found) == records and {r.seed for r in found} == {r.seed for r in made}
    if fit:
        from tfgen.evidence import surrogate

        noise = seeds.stream(0, "metrics").normal(size=records)
        scored = [
            dataclasses.replace(r, metric=float(m)) for r, m in zip(found, noise, strict=True)
        ]
        scale = PerformanceScale.of([r.metric for r in scored])
        begin = clock()
        surrogate.fit(space, scored, scale, surrogate.SurrogateConfig(), seed=0)
        told["fit_s"] = clock() - begin
    told["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return told


def _measure_and_print(records: int, batch: int, single: int, folder: str, fit: bool) -> None:
    print(json.dumps(measure(records, batch, single, pathlib.Path(folder), fit)), flush=True)


def main(argv: Sequence[str]) -> int:
    """Prints a line of JSON for each number of records."""
    del argv
    context = multiprocessing.get_context("spawn")
    for records in _RECORDS.value:
        with tempfile.TemporaryDirectory() as folder:
            own = (records, _BATCH.value, _SINGLE.value, folder, _FIT.value)
            process = context.Process(target=_measure_and_print, args=own)
            process.start()
            process.join()
            if process.exitcode:
                return 1
    return 0


if __name__ == "__main__":
    program.run(main)
