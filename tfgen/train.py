"""train: fits the encoder and the generators to collected records and writes a bundle.

    train --config=configs/california_housing_mlp.py --work_dir=DIR

The bundle lies in DIR/bundle afterwards; `generate --bundle=DIR/bundle` answers from it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from tfgen import pipeline, program, training_flags, workdir
from tfgen.experiment import Experiment
from tfgen.training import population

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; see configs/.")
_WORK_DIR = flags.DEFINE_string("work_dir", None, "Where records.db is.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory, for data that does not ship.")
_PROCESSES = flags.DEFINE_integer(
    "processes", os.cpu_count() or 1, "Trainings of proposals at a time.", lower_bound=1
)
_DEVICE = flags.DEFINE_string(
    "device", None, "A profiled device, for generators whose costs in the config have latency_ms."
)
_TRAINING = training_flags.define(
    population.Limits.seconds,
    population.Limits.memory_bytes / 1e9,
    "a training beside its data",
    "processes of this machine",
)


def main(argv: Sequence[str]) -> int:
    """Fits everything the config names; returns the exit code."""
    del argv
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - start:7.1f} s  {text}", file=sys.stderr)

    experiment = Experiment.from_config(program.config(_CONFIG))
    work = workdir.WorkDir(workdir.user_path(_WORK_DIR.value))
    if experiment.supernet is not None:
        program.prefer_onednn()
    pipeline.fit(
        experiment,
        work,
        _DATA_DIR.value,
        _PROCESSES.value,
        say,
        _DEVICE.value,
        limits=_TRAINING.limits(population.Limits()),
        ray=_TRAINING.place(),
    )
    print(f"bundle in {work.bundle}")
    return 0


def run() -> None:
    """The console script."""
    program.run(main)


if __name__ == "__main__":
    run()
