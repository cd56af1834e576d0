"""Trains one network in float: a prototype, or what is rounded afterwards.

Gradient descent (`descent`) over whole epochs of shuffled batches, images moved and mirrored. An
epoch draws its batches and moves from (seed, epoch): a training that is killed goes on after its
last whole epoch and ends where the undisturbed one would, unless the model draws numbers itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import errors, seeds
from tfgen.nets import aligned, network
from tfgen.nets.keras_compat import keras, tf
from tfgen.space.layers import LayerSpec
from tfgen.training import augmentation, descent, kept, losses
from tfgen.training.datasets import Dataset
from tfgen.training.recipe import FloatStage

_MOMENTUM = 0.9
_WARMUP_SHARE = 0.05  # of the steps
# Grappler casts what profits from it, and leaves variables and sums in 32 bits.
_BFLOAT16 = "auto_mixed_precision_onednn_bfloat16"


class FloatTraining:
    """A training of one Keras model that can be stopped after any epoch.

    Attributes:
      model: which.
      epoch: how many are done.
    """

    def __init__(
        self,
        model: keras.Model,
        dataset: Dataset,
        stage: FloatStage,
        seed: int,
        teacher: losses.Teacher | None = None,
    ):
        """Begins at epoch 0.

        Args:
          model: float, with the weights that it starts from; outputs are as the task has them.
          dataset: on its train split.
          stage: how.
          seed: of batches and moves.
          teacher: whose outputs it follows too, where the stage distils.

        Raises:
          UsageError: the stage moves what are no images, or distils and there is no teacher.
        """
        if stage.augments and dataset.train.x.ndim != 4:
            raise errors.UsageError(f"{dataset.name!r} has no images to move or mirror")
        if stage.distillation and teacher is None:
            raise errors.UsageError("the float stage distils, and there is no teacher")
        self.model = model
        self.epoch = 0
        self._dataset = dataset
        self._stage = stage
        self._seed = seed
        self._ends = (0.0, 1.0)
        if stage.light:
            self._ends = (float(dataset.train.x.min()), float(dataset.train.x.max()))
        self._teacher = teacher if stage.distillation else None
        self._weights = model.trainable_variables
        self._velocities = [tf.Variable(tf.zeros_like(weight)) for weight in self._weights]
        self._step = self._graph()

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self._stage.epoch_steps(len(self._dataset.train))

    def run_epoch(self) -> float:
        """Trains for one epoch; returns its mean loss."""
        stage, train, steps = self._stage, self._dataset.train, self.steps
        random = seeds.stream(self._seed, "float", self.epoch)
        size = min(stage.batch_size, len(train))
        order = random.permutation(len(train))[: steps * size].reshape(steps, size)
        total, whole = stage.epochs * steps, tf.zeros([])
        with _bfloat16(stage.bfloat16):
            for number, rows in enumerate(order):
                x, y = train.x[rows], train.y[rows]
                if stage.augments:
                    x, y = augmentation.examples(x, y, stage.shift, stage.flip, random, stage.zoom)
                if stage.light:
                    factors = augmentation.draw_light(stage.light, (len(x),), x.shape[-1], random)
                    x = augmentation.lit(np, x, factors, self._ends)
                done = self.epoch * steps + number
                rate = descent.half_cosine(
                    stage.learning_rate, done, total, int(_WARMUP_SHARE * total)
                )
                whole += self._step(tf.constant(x), tf.constant(y), tf.constant(rate))
        self.epoch += 1
        return float(whole) / steps

    def _graph(self) -> Any:
        """A function that trains on one batch and returns the loss."""
        task, stage = self._dataset.task, self._stage
        loss_of, distance = losses.of(task), losses.from_teacher(task, stage.temperature)

        @tf.function
        def step(x: tf.Tensor, y: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
            taught = None if self._teacher is None else self._teacher(x)
            with tf.GradientTape() as tape:
                outputs = self.model(x, training=True)
                loss = loss_of(y, outputs)
                if taught is not None:
                    loss += stage.distillation * distance(taught, outputs)
                if self.model.losses:  # regularisers of a user's own
                    loss += tf.add_n(self.model.losses)
            gradients = tape.gradient(loss, self._weights)
            for weight, velocity, gradient in zip(
                self._weights, self._velocities, gradients, strict=True
            ):
                decayed = "kernel" in weight.name.rpartition("/")[2]
                decay = stage.weight_decay if decayed else 0.0
                descent.step(
                    weight, velocity, tf.convert_to_tensor(gradient), rate, _MOMENTUM, decay
                )
            return loss

        return step

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs, as plain arrays."""
        arrays = {f"weight/{i}": w for i, w in enumerate(self.model.get_weights())}
        arrays |= {f"velocity/{i}": v.numpy() for i, v in enumerate(self._velocities)}
        return {**arrays, "epoch": np.array(self.epoch)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on where `state` was taken.

        Raises:
          CorruptFileError: the state is of another model.
        """
        kept.check_shapes(self, state, "the checkpoint is of another model")
        count = len(self.model.get_weights())
        self.model.set_weights([state[f"weight/{i}"] for i in range(count)])
        for i, velocity in enumerate(self._velocities):
            velocity.assign(state[f"velocity/{i}"])
        self.epoch = int(state["epoch"])


def of_layers(
    layers: Sequence[LayerSpec],
    dataset: Dataset,
    stage: FloatStage,
    seed: int,
    weights: network.Weights,
    teacher: losses.Teacher | None = None,
) -> tuple[FloatTraining, aligned.Aligned]:
    """A training of a network of layers, and how its weights are had from what is trained.

    In bfloat16 that is a wider one, see `nets.aligned`.

    Args:
      layers: the network.
      dataset: see `FloatTraining`.
      stage: see there.
      seed: see there.
      weights: it starts from; statistics are not needed.
      teacher: see there.

    Raises:
      UsageError: as `FloatTraining`, or the layers are no network.
    """
    wider = aligned.aligned(layers) if stage.bfloat16 else aligned.as_it_is(layers)
    model = network.build(wider.layers, dataset.train.x.shape[1:])
    for name, arrays in wider.widened(weights).items():
        network.assign(model, name, arrays)
    return FloatTraining(model, dataset, stage, seed, teacher), wider


@contextlib.contextmanager
def _bfloat16(wanted: bool) -> Iterator[None]:
    """Has graphs that are first run in the block computed in 16 bits, or not."""
    before = tf.config.optimizer.get_experimental_options().get(_BFLOAT16, False)
    tf.config.optimizer.set_experimental_options({_BFLOAT16: wanted})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({_BFLOAT16: before})
