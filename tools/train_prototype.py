"""train_prototype: trains a network for generative synthesis to start from, in float.

    train_prototype --model=tools/prototypes.py:resnet20 --dataset=cifar10 --data_dir=TFDS \\
        --output_dir=DIR

Stochastic gradient descent with Nesterov's momentum along a half cosine; images are moved and
mirrored. Stopped or killed and started again, it goes on after its last whole epoch, with the
batches of an undisturbed run. DIR/model.keras is the network, DIR/metrics.json what it reaches.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from tfgen import errors, program, seeds, workdir

_MODEL = flags.DEFINE_string("model", None, "FILE.py:FUNCTION that returns a Keras model; needed.")
_DATASET = flags.DEFINE_string("dataset", None, "What it is trained on; needed.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory, for data that does not ship.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where it goes; needed.")
_EPOCHS = flags.DEFINE_integer("epochs", 30, "Over the training split.", lower_bound=1)
_MAX_EPOCHS = flags.DEFINE_integer(
    "max_epochs", None, "Stop after so many epochs, to go on another time.", lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images a step.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.1, "The peak.", lower_bound=0.0)
_WEIGHT_DECAY = flags.DEFINE_float(
    "weight_decay", 5e-3, "Of kernels, beside the momentum: in a loss a tenth does as much.",
    lower_bound=0.0,
)  # fmt: skip
_SHIFT = flags.DEFINE_integer("shift", 4, "Pixels by which images are moved.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 2020, "Of weights and batches.", lower_bound=0)

MODEL, METRICS = "model.keras", "metrics.json"
_CONFIG, _CHECKPOINTS = "config.json", "checkpoints"
_DECIDING = (_EPOCHS, _BATCH_SIZE, _LEARNING_RATE, _WEIGHT_DECAY, _SHIFT, _SEED)
_WARMUP_SHARE = 0.05
_MOMENTUM = 0.9


def main(argv: Sequence[str]) -> int:
    """Trains what is missing; returns the exit code."""
    del argv
    if None in (_MODEL.value, _DATASET.value, _OUTPUT_DIR.value):
        raise errors.UsageError("give --model, --dataset and --output_dir")
    output = workdir.user_path(_OUTPUT_DIR.value)
    from tfgen.nets.keras_compat import keras, tf  # not for --help
    from tfgen.training import augmentation, datasets, losses, trainer

    dataset = datasets.load(_DATASET.value, _DATA_DIR.value)
    if dataset.task.name == "regression" or dataset.train.x.ndim != 4:
        raise errors.UsageError(f"--dataset={dataset.name}: what images show is learned")
    keras.utils.set_random_seed(_SEED.value)
    model = _made(_MODEL.value)
    told = {
        **{flag.name: flag.value for flag in _DECIDING},
        "model": hashlib.sha256(model.to_json().encode()).hexdigest(),
        "dataset": dataset.fingerprint,
    }
    if (output / _CONFIG).is_file() and workdir.read_json(output / _CONFIG) != told:
        raise errors.UsageError(f"{output}: has a training of other flags, model or data")
    size, batch_size = len(dataset.train), min(_BATCH_SIZE.value, len(dataset.train))
    steps = size // batch_size
    total = steps * _EPOCHS.value
    warmup = int(_WARMUP_SHARE * total)
    optimizer = keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(
            0.0, total - warmup, warmup_target=_LEARNING_RATE.value, warmup_steps=warmup
        ),
        momentum=_MOMENTUM,
        nesterov=True,
        weight_decay=_WEIGHT_DECAY.value,
    )
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    loss_of = losses.of(dataset.task)
    # Keras gives classes a dimension more.
    shape = dataset.train.y.shape[1:]
    model.compile(optimizer, lambda y, z: loss_of(tf.reshape(y, (-1, *shape)), z))
    optimizer.build(model.trainable_variables)
    done = tf.Variable(0, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, epochs=done)
    manager = tf.train.CheckpointManager(checkpoint, str(output / _CHECKPOINTS), max_to_keep=1)
    workdir.write_json(output / _CONFIG, told)
    if manager.latest_checkpoint:
        checkpoint.restore(manager.latest_checkpoint).assert_consumed()
    validation = dataset.validation
    end = min(_EPOCHS.value, int(done.numpy()) + (_MAX_EPOCHS.value or _EPOCHS.value))
    for epoch in range(int(done.numpy()), end):
        begin = time.monotonic()
        random = seeds.stream(_SEED.value, "prototype", epoch)
        loss = 0.0
        for rows in random.permutation(size)[: steps * batch_size].reshape(steps, -1):
            x, y = augmentation.examples(
                dataset.train.x[rows], dataset.train.y[rows], _SHIFT.value, True, random
            )
            loss += float(model.train_on_batch(x, y)) / steps
        done.assign(epoch + 1)
        manager.save()
        score = dataset.task.score(validation.y, trainer.predict(model, validation.x))
        seconds = time.monotonic() - begin
        left = seconds * (_EPOCHS.value - epoch - 1) / 60
        print(
            f"epoch {epoch + 1}: loss {loss:.4f}, {dataset.task.metric} {score:.4f} on validation, "
            f"{seconds:.0f} s, {left:.0f} min left",
            file=sys.stderr,
            flush=True,
        )
    if end < _EPOCHS.value:
        return 0
    # One that was never compiled: without the optimizer and the loss, which no reader needs.
    learned = _made(_MODEL.value)
    learned.set_weights(model.get_weights())
    with workdir.writing(output / MODEL) as path:
        learned.save(path)
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
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise errors.UsageError(f"--model={text}: give FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise errors.UsageError(f"--model={text}: {file} has no {function!r}")
    return getattr(module, function)()


def _file(text: str) -> pathlib.Path:
    """The file of a function; raises UsageError."""
    file = workdir.user_path(text.rpartition(":")[0])
    if not file.is_file():
        raise errors.UsageError(f"--model={text}: give FILE.py:FUNCTION")
    return file


if __name__ == "__main__":
    program.run(main)
