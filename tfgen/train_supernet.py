"""train_supernet: trains the weights that all networks of a space share.

    train_supernet --config=configs/cifar10.py --work_dir=DIR --data_dir=TFDS

Stopped or killed at any moment and started again, it goes on after its last whole epoch.
TensorBoard shows DIR/tensorboard. Then `collect` scores networks that inherit these weights, and
`train` fits a generator to them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from tfgen import program, supernets, workdir
from tfgen.experiment import Experiment
from tfgen.training import datasets

_CONFIG = config_flags.DEFINE_config_file("config", None, "The supernet; see configs/.")
_WORK_DIR = flags.DEFINE_string("work_dir", None, "Where the supernet is, or will be.",
                                required=True)  # fmt: skip
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory, for data that does not ship.")
_MAX_EPOCHS = flags.DEFINE_integer(
    "max_epochs", None, "Stop after so many epochs, to go on another time.", lower_bound=1
)
_STRATEGY = flags.DEFINE_enum(
    "strategy", "one", ["one", "mirrored", "multi_worker"], "Where: the default device; all GPUs "
    "of this machine; the machines that TF_CONFIG names, each of which runs this program."
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Trains the epochs that are missing; returns the exit code."""
    del argv
    experiment = Experiment.from_config(program.config(_CONFIG))
    work = workdir.WorkDir(workdir.user_path(_WORK_DIR.value))

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    experiment.supernet_json()  # says so where there is none, before data are read
    program.prefer_onednn()
    from tfgen.training import distribution  # TensorFlow: not for --help

    strategy = distribution.strategy(_STRATEGY.value)  # before TensorFlow reads data
    dataset = datasets.load(experiment.dataset, _DATA_DIR.value)
    missing = supernets.train(experiment, work, dataset, _MAX_EPOCHS.value, say, strategy)
    print(f"supernet in {work.supernet}; {missing} epochs are missing")
    return 0


def run() -> None:
    """The console script."""
    program.run(main)


if __name__ == "__main__":
    run()
