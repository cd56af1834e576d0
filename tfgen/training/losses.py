"""What trainings minimise: the loss of each task, and the distance from a teacher's outputs."""

from __future__ import annotations

from collections.abc import Callable

from tfgen.nets.keras_compat import keras, tf
from tfgen.training.tasks import Task

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # of targets and outputs: a mean over the batch


def of(task: Task, label_smoothing: float = 0.0) -> Loss:
    """The task's loss; smoothing is of the targets of a classification."""
    if task.loss == "mean_squared_error":
        return keras.losses.MeanSquaredError()
    if not label_smoothing:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def smoothed(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        classes = logits.shape[-1]
        targets = tf.one_hot(y, classes) * (1.0 - label_smoothing) + label_smoothing / classes
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))

    return smoothed


def from_teacher(task: Task) -> Loss:
    """Of a teacher's outputs and a network's: for logits the cross-entropy with its shares."""
    if task.loss == "mean_squared_error":
        return keras.losses.MeanSquaredError()

    def distance(teacher: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        targets = tf.nn.softmax(teacher)
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))

    return distance
