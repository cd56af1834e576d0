"""collect: trains networks of a space at random and records how well each does.

    collect --config=configs/california_housing_mlp.py --work_dir=DIR

Stopped or killed at any moment and started again, it goes on and ends with the same records. A
training that diverges, dies or takes too much is recorded as failed, and the others go on.
"""

from __future__ import annotations

import collections
import os
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from tfgen import pipeline, program, training_flags, workdir
from tfgen.experiment import Experiment
from tfgen.training import population

_REASONS = 5  # for which trainings failed, that are shown

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; see configs/.")
_WORK_DIR = flags.DEFINE_string("work_dir", None, "Where records.db is, or will be.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory, for data that does not ship.")
_PROCESSES = flags.DEFINE_integer(
    "processes", os.cpu_count() or 1, "Trainings at a time.", lower_bound=1
)
_TRAINING = training_flags.define(
    population.Limits.seconds,
    population.Limits.memory_bytes / 1e9,
    "a training beside its data",
    "processes of this machine",
)
_RETRY_FAILED = flags.DEFINE_bool("retry_failed", False, "Trains once more what failed before.")


def main(argv: Sequence[str]) -> int:
    """Makes the records that are missing; returns the exit code."""
    del argv
    import tqdm

    experiment = Experiment.from_config(program.config(_CONFIG))
    work = workdir.WorkDir(workdir.user_path(_WORK_DIR.value))
    if experiment.supernet is not None:
        program.prefer_onednn()
    planned, missing, made = pipeline.collect(
        experiment,
        work,
        _DATA_DIR.value,
        _PROCESSES.value,
        limits=_TRAINING.limits(population.Limits()),
        retry_failed=_RETRY_FAILED.value,
        ray=_TRAINING.place(),
    )
    progress = tqdm.tqdm(
        made, total=planned, initial=planned - missing, unit="networks", file=sys.stderr,
        mininterval=1.0,
    )  # fmt: skip
    failures = collections.Counter(record.failure for record in progress)
    del failures[None]
    for reason, count in failures.most_common(_REASONS):
        print(f"{count:,} trainings failed: {reason}", file=sys.stderr)
    print(f"{planned:,} records in {work.records}")
    return 0


def run() -> None:
    """The console script."""
    program.run(main)


if __name__ == "__main__":
    run()
