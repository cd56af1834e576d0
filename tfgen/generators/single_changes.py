"""What a network would cost if one of its decisions were another: a local expectation's part.

Titsias and Lazaro-Gredilla 2015. A mean over drawn decisions is linear in the shares of each one:
one gradient at a network tells all its single changes, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tfgen.nets.keras_compat import tf


def single_changes(
    mean: Callable[[Sequence[Any]], Any], chosen: Sequence[Any]
) -> tuple[Any, list[Any]]:
    """A quantity of networks, and what it were with each decision at each of its values.

    Args:
      mean: of shares [batch, values] of all decisions, linear in those of each [batch].
      chosen: the networks, as shares of which one is 1.

    Returns:
      [batch], and of each decision [batch, values].
    """
    with tf.GradientTape() as tape:
        tape.watch(chosen)
        own = mean(chosen)
    changed = []
    for one, slope in zip(chosen, tape.gradient(own, chosen), strict=True):
        if slope is None:  # not every quantity knows every decision
            changed.append(own[:, None] + tf.zeros_like(one))
            continue
        at = tf.reduce_sum(slope * one, axis=1, keepdims=True)
        changed.append(own[:, None] + slope - at)
    return own, changed
