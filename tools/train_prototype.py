"""train_prototype: trains a network for generative synthesis to start from, in float.

    train_prototype --model=tools/prototypes.py:resnet20 --dataset=cifar10 --data_dir=TFDS \\
        --output_dir=DIR

Stochastic gradient descent with Nesterov's momentum along a half cosine; images are moved and
mirrored. Stopped or killed and started again, it goes on after its last whole epoch, with the
batches of an undisturbed run. DIR/model.keras is the network, DIR/metrics.json what it reaches.
"""

from __future__ import annotations

import hashlib
import itertools
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from tfgen import errors, program, workdir
from tfgen.nets import python_file
from tfgen.training.recipe import LARGEST_SHIFT, LARGEST_ZOOM, FloatStage

_MODEL = flags.DEFINE_string("model", None, "FILE.py:FUNCTION that returns a Keras model; needed.")
_DATASET = flags.DEFINE_string("dataset", None, "What it is trained on; needed.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory, for data that does not ship.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where it goes; needed.")
_EPOCHS = flags.DEFINE_integer("epochs", 30, "Over the training split.", lower_bound=1)
_MAX_EPOCHS = flags.DEFINE_integer(
    "max_epochs", None, "Stop after so many epochs, to go on another time.", lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images a step.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.1, "The peak.", lower_bound=1e-9)
_WEIGHT_DECAY = flags.DEFINE_float(
    "weight_decay", 5e-4, "Of kernels, as part of the loss.", lower_bound=0.0
)
_SHIFT = flags.DEFINE_integer("shift", 4, "Pixels by which images are moved.", lower_bound=0,
    upper_bound=LARGEST_SHIFT,
)  # fmt: skip
_LIGHT = flags.DEFINE_float(
    "light", 0.0, "By how much images are brighter or darker at most: a share.",
    lower_bound=0.0, upper_bound=0.9,
)  # fmt: skip
_ZOOM = flags.DEFINE_float(
    "zoom", 0.0, "By how much things look larger or smaller at most: a share.",
    lower_bound=0.0, upper_bound=LARGEST_ZOOM,
)  # fmt: skip
_BFLOAT16 = flags.DEFINE_bool(
    "bfloat16", False, "Computes in numbers of 16 bits: faster on processors that have them, slow "
    "on others."
)  # fmt: skip
_SEED = flags.DEFINE_integer("seed", 2020, "Of weights and batches.", lower_bound=0)

MODEL, METRICS = "model.keras", "metrics.json"
_CONFIG, _CHECKPOINT = "config.json", "checkpoint"
_DECIDING = (
    _EPOCHS,
    _BATCH_SIZE,
    _LEARNING_RATE,
    _WEIGHT_DECAY,
    _SHIFT,
    _LIGHT,
    _ZOOM,
    _BFLOAT16,
    _SEED,
)


def main(argv: Sequence[str]) -> int:
    """Trains what is missing; returns the exit code."""
    del argv
    if None in (_MODEL.value, _DATASET.value, _OUTPUT_DIR.value):
        raise errors.UsageError("give --model, --dataset and --output_dir")
    _file(_MODEL.value)  # says what is wrong before data are read
    output = workdir.user_path(_OUTPUT_DIR.value)
    from tfgen.nets.keras_compat import keras  # not for --help
    from tfgen.training import datasets, float_training, kept, trainer

    dataset = datasets.load(_DATASET.value, _DATA_DIR.value)
    if dataset.task.name == "regression" or dataset.train.x.ndim != 4:
        raise errors.UsageError(f"--dataset={dataset.name}: what images show is learned")
    stage = FloatStage(
        _EPOCHS.value,
        _BATCH_SIZE.value,
        _LEARNING_RATE.value,
        _WEIGHT_DECAY.value,
        _SHIFT.value,
        flip=True,
        light=_LIGHT.value,
        zoom=_ZOOM.value,
        bfloat16=_BFLOAT16.value,
    )
    keras.utils.set_random_seed(_SEED.value)
    model = _made(_MODEL.value)
    told = {
        **{flag.name: flag.value for flag in _DECIDING},
        "model": hashlib.sha256(model.to_json().encode()).hexdigest(),
        "dataset": dataset.fingerprint,
    }
    if (output / _CONFIG).is_file() and workdir.read_json(output / _CONFIG) != told:
        raise errors.UsageError(f"{output}: has a training of other flags, model or data")
    workdir.write_json(output / _CONFIG, told)
    training = float_training.FloatTraining(model, dataset, stage, _SEED.value)
    validation = dataset.validation
    begin = time.monotonic()
    data = {dataset.name: dataset.fingerprint}
    place = kept.Kept(output / _CHECKPOINT, told, _SEED.value, data)
    place.restore(training)
    losses = kept.epochs(training, _EPOCHS.value, place)
    for loss in itertools.islice(losses, _MAX_EPOCHS.value):
        score = dataset.task.score(validation.y, trainer.predict(model, validation.x))
        seconds = time.monotonic() - begin
        left = seconds * (_EPOCHS.value - training.epoch) / 60
        print(
            f"epoch {training.epoch}: loss {loss:.4f}, {dataset.task.metric} {score:.4f} on "
            f"validation, {seconds:.0f} s, {left:.0f} min left",
            file=sys.stderr,
            flush=True,
        )
        begin = time.monotonic()
    if training.epoch < _EPOCHS.value:
        return 0
    with workdir.writing(output / MODEL) as path:
        model.save(path)
    scores = {
        name: dataset.task.score(split.y, trainer.predict(model, split.x))
        for name, split in (("validation", validation), ("test", dataset.test))
    }
    workdir.write_json(
        output / METRICS,
        {
            "metric": dataset.task.metric,
            **scores,
            "parameters": model.count_params(),
            "epochs": _EPOCHS.value,
            "seed": _SEED.value,
            "dataset": dataset.fingerprint,
        },
    )
    print(f"{output / MODEL}: {scores}")
    return 0


def _made(text: str) -> Any:
    """The model that a function of a file returns; raises UsageError."""
    file, function = _file(text), text.rpartition(":")[2]
    module = python_file.load(file)
    if not hasattr(module, function):
        raise errors.UsageError(f"--model={text}: {file} has no {function!r}")
    return getattr(module, function)()


def _file(text: str) -> pathlib.Path:
    """The file of a function; raises UsageError."""
    file = workdir.user_path(text.rpartition(":")[0])
    if not file.is_file() or file.suffix != ".py":
        raise errors.UsageError(f"--model={text}: give FILE.py:FUNCTION")
    return file


if __name__ == "__main__":
    program.run(main)
