"""Trains a supernet of cells: one cell a step, uniform over each edge's ops.

As in `supernet_training` the draws are strictly fair, the order, the shifts and the cells of an
epoch follow from (seed, epoch), and the rate falls along a half cosine. Departure: a step has one
graph for all cells, so the weights of ops that it does not draw follow their momentum and decay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfgen import seeds
from tfgen.nets.cell_supernet import CellSupernet
from tfgen.nets.keras_compat import tf
from tfgen.training import augmentation, descent, kept
from tfgen.training.datasets import Dataset, Split
from tfgen.training.recipe import SupernetRecipe
from tfgen.training.supernet_training import fair_networks, learning_rate

_EVALUATED_AT_ONCE = 500
_VELOCITY_SUFFIX = "/velocity"


class CellTraining:
    """A training of one supernet that can be stopped after any epoch.

    Attributes:
      supernet: whose weights are trained.
      epoch: how many are done.
    """

    def __init__(self, supernet: CellSupernet, dataset: Dataset, recipe: SupernetRecipe, seed: int):
        """Begins at epoch 0.

        Args:
          supernet: whose weights are trained.
          dataset: images and classes.
          recipe: how; nothing is rounded or smoothed, and no share of the steps is another kind.
          seed: of order, shifts and cells.
        """
        self.supernet = supernet
        self.epoch = 0
        self._images = dataset.train
        self._recipe = recipe
        self._seed = seed
        self._velocities = {
            name: tf.Variable(tf.zeros_like(v)) for name, v in supernet.variables.items()
        }
        self._step = self._graph()

    def run_epoch(self) -> float:
        """Trains for one epoch; returns its mean loss."""
        recipe, images = self._recipe, self._images
        steps = max(1, len(images) // recipe.batch_size)
        random = seeds.stream(self._seed, "cell supernet", "epoch", self.epoch)
        order = random.permutation(len(images))
        cells = fair_networks(self.supernet.space, steps, random)
        losses = []
        for number in range(steps):
            rows = order[number * recipe.batch_size : (number + 1) * recipe.batch_size]
            x, y = augmentation.examples(
                images.x[rows], images.y[rows], recipe.shift, recipe.flip, random
            )
            rate = learning_rate(recipe, self.epoch * steps + number, steps)
            losses.append(
                self._step(
                    tf.constant(x),
                    tf.constant(y, tf.int32),
                    tf.constant(cells[number], tf.int32),
                    tf.constant(rate, tf.float32),
                )
            )
        self.epoch += 1
        return float(np.mean(losses))

    def _graph(self) -> Callable[..., Any]:
        """A function that trains one cell on one batch and returns the loss."""
        variables, recipe = self.supernet.variables, self._recipe

        @tf.function
        def step(x, y, choices, rate):  # type: ignore[no-untyped-def]
            with tf.GradientTape() as tape:
                logits = self.supernet.outputs(x, choices)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
            gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
            for name, gradient in gradients.items():
                decay = recipe.weight_decay if name.endswith("kernel") else 0.0
                whole = tf.convert_to_tensor(gradient)
                velocity = self._velocities[name]
                descent.step(variables[name], velocity, whole, rate, recipe.momentum, decay)
            return loss

        return step

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs, as plain arrays."""
        arrays = {name: variable.numpy() for name, variable in self.supernet.variables.items()}
        arrays |= {name + _VELOCITY_SUFFIX: v.numpy() for name, v in self._velocities.items()}
        return {**arrays, "epoch": np.array(self.epoch)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on where `state` was taken.

        Raises:
          CorruptFileError: the state is of another supernet.
        """
        kept.check_shapes(self, state, "the checkpoint is not of this supernet of cells")
        for name, variable in self.supernet.variables.items():
            variable.assign(state[name])
            self._velocities[name].assign(state[name + _VELOCITY_SUFFIX])
        self.epoch = int(state["epoch"])


def scorer(supernet: CellSupernet, examples: Split) -> Callable[[np.ndarray], float]:
    """What tells the share of examples that a cell [6] classifies rightly with shared weights.

    Of more than 500 examples, whole batches of 500 are looked at.
    """
    x, y = tf.constant(examples.x), tf.constant(examples.y, tf.int32)
    size = min(_EVALUATED_AT_ONCE, len(examples))

    @tf.function
    def right(choices):  # type: ignore[no-untyped-def]
        total = 0
        for begin in range(0, len(examples) - size + 1, size):
            logits = supernet.outputs(x[begin : begin + size], choices)
            found = tf.argmax(logits, axis=1, output_type=tf.int32)
            total += tf.reduce_sum(tf.cast(found == y[begin : begin + size], tf.int32))
        return total

    counted = len(examples) // size * size
    return lambda choices: int(right(tf.constant(choices, tf.int32))) / counted
