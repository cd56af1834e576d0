"""Trains a supernet of cells: one cell a step, uniform over each edge's ops.

As in `supernet_training` the draws are strictly fair, the order, the shifts and the cells of an
epoch follow from (seed, epoch), and the rate falls along a half cosine. Departure: a step has one
graph for all cells, so the weights of ops that it does not draw follow their momentum and decay.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tfgen import seeds
from tfgen.nets.cell_supernet import CellSupernet
from tfgen.nets.keras_compat import tf
from tfgen.training import augmentation
from tfgen.training.datasets import Dataset, Split
from tfgen.training.recipe import SupernetRecipe
from tfgen.training.supernet_training import fair_networks, learning_rate

_EVALUATED_AT_ONCE = 500


def train(
    supernet: CellSupernet,
    dataset: Dataset,
    recipe: SupernetRecipe,
    seed: int,
    report: Callable[[int, float], None],
) -> None:
    """Trains all epochs.

    Args:
      supernet: whose weights are trained.
      dataset: images and classes.
      recipe: how; nothing is rounded or smoothed, and no share of the steps is another kind.
      seed: of order, shifts and cells.
      report: told each epoch's number and mean loss.
    """
    variables = list(supernet.variables.values())
    kernels = [v for name, v in supernet.variables.items() if name.endswith("kernel")]
    momenta = [tf.Variable(tf.zeros_like(v)) for v in variables]

    @tf.function
    def step(x, y, choices, rate):  # type: ignore[no-untyped-def]
        with tf.GradientTape() as tape:
            logits = supernet.outputs(x, choices)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
            decay = tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])
            total = loss + recipe.weight_decay * decay
        for variable, momentum, gradient in zip(
            variables, momenta, tape.gradient(total, variables), strict=True
        ):
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=variable.handle,
                accum=momentum.handle,
                lr=rate,
                grad=gradient,
                momentum=recipe.momentum,
                use_nesterov=True,
            )
        return loss

    images = dataset.train
    steps = max(1, len(images) // recipe.batch_size)
    for epoch in range(recipe.epochs):
        random = seeds.stream(seed, "cell supernet", "epoch", epoch)
        order = random.permutation(len(images))
        cells = fair_networks(supernet.space, steps, random)
        losses = []
        for number in range(steps):
            rows = order[number * recipe.batch_size : (number + 1) * recipe.batch_size]
            x, y = augmentation.examples(
                images.x[rows], images.y[rows], recipe.shift, recipe.flip, random
            )
            rate = learning_rate(recipe, epoch * steps + number, steps)
            losses.append(
                step(
                    tf.constant(x),
                    tf.constant(y, tf.int32),
                    tf.constant(cells[number], tf.int32),
                    tf.constant(rate, tf.float32),
                )
            )
        report(epoch, float(np.mean(losses)))


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
