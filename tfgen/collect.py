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

from tfgen import pipeline, program, workdir
from tfgen.experiment import Experiment
from tfgen.training import cluster, population

_REASONS = 5  # for which trainings failed, that are shown

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; see configs/.")
_WORK_DIR = flags.DEFINE_string("work_dir", None, "Where records.db is, or will be.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory, for data that does not ship.")
_PROCESSES = flags.DEFINE_integer(
    "processes", os.cpu_count() or 1, "Trainings at a time.", lower_bound=1
)
_SECONDS = flags.DEFINE_float(
    "training_seconds", population.Limits.seconds, "Wall time of a training, beyond which it has "
    "failed.", lower_bound=0.1,
)  # fmt: skip
_MEMORY_GB = flags.DEFINE_float(
    "training_memory_gb", population.Limits.memory_bytes / 1e9, "Memory of a training beside its "
    "data, beyond which it has failed.", lower_bound=0.1,
)  # fmt: skip
_RETRY_FAILED = flags.DEFINE_bool("retry_failed", False, "Trains once more what failed before.")
_RAY_ADDRESS = flags.DEFINE_string(
    "ray_address", None, "A Ray cluster that trains, as host:6379, or local; needs tfgen[ray]. "
    "Default: processes of this machine."
)  # fmt: skip
_RAY_RESOURCES = flags.DEFINE_multi_string(
    "ray_resource", [], "What a machine of the cluster must have for a training, as NAME=NUMBER; "
    "repeat for several."
)  # fmt: skip


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
        limits=population.Limits(_SECONDS.value, int(_MEMORY_GB.value * 1e9)),
        retry_failed=_RETRY_FAILED.value,
        ray=cluster.named(_RAY_ADDRESS.value, _RAY_RESOURCES.value),
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
