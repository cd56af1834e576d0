"""Which networks have no layer with weights that a runtime executes with a slow kernel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tfgen.space.bits import BitPolicy
from tfgen.space.layers import WEIGHTED_OPS, LayerSlots


def accelerated(slots: Sequence[LayerSlots], policy: BitPolicy) -> npt.NDArray[np.bool_]:
    """Whether the runtime has a fast kernel for every layer with weights [architectures].

    Raises:
      UsageError: the runtime does not execute a layer.
    """
    fast = np.ones(len(slots[0].present), np.bool_)
    for slot in slots:
        if slot.op not in WEIGHTED_OPS:
            continue
        widths = (np.unique(b[slot.present]) for b in (slot.weight_bits, slot.activation_bits))
        for weight_bits, activation_bits in itertools.product(*widths):
            here = (slot.weight_bits == weight_bits) & (slot.activation_bits == activation_bits)
            here &= slot.present
            if here.any() and not policy.accelerated(slot.op, weight_bits, activation_bits):
                fast &= ~here
    return fast
