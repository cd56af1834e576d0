"""Gradient descent with Nesterov's momentum along a half cosine: one step, and its rate."""

from __future__ import annotations

import math

from tfgen.nets.keras_compat import tf


def half_cosine(peak: float, done: int, steps: int, warmup_steps: int) -> float:
    """The rate of the step after `done` of so many: a linear rise to the peak, and down to 0."""
    cosine = 0.5 * (1.0 + math.cos(math.pi * done / steps))
    return peak * min(1.0, (done + 1) / max(warmup_steps, 1)) * cosine


def step(
    variable: tf.Variable,
    velocity: tf.Variable,
    gradient: tf.Tensor,
    rate: tf.Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    """Moves a variable; its decay is part of the gradient, as if it were of the loss.

    Args:
      variable: what is trained.
      velocity: of the same shape, zeros at first.
      gradient: of the loss, of the same shape.
      rate: scalar.
      momentum: share of the velocity that a step leaves.
      weight_decay: share of the variable that is added to the gradient.
    """
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=variable.handle,
        accum=velocity.handle,
        lr=rate,
        grad=gradient + weight_decay * variable if weight_decay else gradient,
        momentum=tf.constant(momentum),
        use_nesterov=True,
    )
