"""What trainings minimise: the loss of each task, and the distance from a teacher's outputs.

Plain means, which a `tf.distribute` strategy may run on each replica: Keras's losses refuse that.
"""

from __future__ import annotations

from collections.abc import Callable

from tfgen.nets.keras_compat import tf
from tfgen.training import box_losses
from tfgen.training.tasks import VOID, Task

Teacher = Callable[[tf.Tensor], tf.Tensor]  # its outputs of a batch
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # of targets and outputs: a mean over the batch


def of(task: Task, label_smoothing: float = 0.0) -> Loss:
    """The task's loss; smoothing is of the targets of classes that exclude each other."""
    if task.loss == "mean_squared_error":
        return _squares
    if task.loss == "boxes":
        return box_losses.loss

    def sharp(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)

    def smoothed(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        classes = logits.shape[-1]
        targets = tf.one_hot(y, classes) * (1.0 - label_smoothing) + label_smoothing / classes
        return tf.nn.softmax_cross_entropy_with_logits(targets, logits)

    each = smoothed if label_smoothing else sharp
    if task.name != "segmentation":
        return lambda y, logits: tf.reduce_mean(each(y, logits))

    def told(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """The mean over pixels that have a class, on each replica of a strategy over its own."""
        counts = tf.cast(tf.not_equal(y, VOID), logits.dtype)
        lost = each(tf.maximum(y, 0), logits) * counts
        return tf.reduce_sum(lost) / tf.maximum(tf.reduce_sum(counts), 1.0)

    return told


def from_teacher(task: Task, temperature: float = 1.0) -> Loss:
    """Of a teacher's outputs and a network's: for logits the cross-entropy with its shares.

    Args:
      task: what they are trained for.
      temperature: of both shares; what it takes from the gradients is given back (Hinton, Vinyals
        and Dean 2015, section 2). Only logits of classes that exclude each other have one.
    """
    if task.loss == "mean_squared_error":
        return _squares
    if task.loss == "boxes":
        return box_losses.distance

    def distance(teacher: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        targets = tf.nn.softmax(teacher / temperature)
        lost = tf.nn.softmax_cross_entropy_with_logits(targets, logits / temperature)
        return temperature**2 * tf.reduce_mean(lost)

    return distance


def _squares(targets: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(outputs - targets))
