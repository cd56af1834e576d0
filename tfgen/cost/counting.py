"""LayerSpecs -> params, MACs, storage, energy, peak RAM: exact arithmetic over batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tfgen.space.layers import LayerSlots

Counts = npt.NDArray[np.int64]  # [architectures]

# Energy of one operation in 45 nm at 0.9 V (Horowitz, ISSCC 2014, figure 1.1.9), in pJ.
_INT8_MULTIPLY_PJ = 0.2
_INT32_MULTIPLY_PJ = 3.1
_INT32_ADD_PJ = 0.1
# Horowitz gives 8x8 and 32x32 bit products. A multiplier's partial products grow with the product
# of its operands' widths; the power law through the two points has this exponent (0.98855).
_MULTIPLY_EXPONENT = math.log(_INT32_MULTIPLY_PJ / _INT8_MULTIPLY_PJ) / math.log(32 * 32 / (8 * 8))


def mac_energy_pj(
    weight_bits: npt.ArrayLike, activation_bits: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Energy of one multiply-accumulate in pJ: f of eq. 3 of the NAGAN paper, for one MAC.

    A product of a weight and an activation, interpolated between the published 8 and 32 bits (and
    continued below 8), and a 32-bit addition into the accumulator. Memory traffic is left out, as
    in the paper (section 4.2: "the MACs dominates the operating energy").
    """
    product = np.asarray(weight_bits, np.float64) * np.asarray(activation_bits, np.float64)
    return np.asarray(_INT8_MULTIPLY_PJ * (product / 64.0) ** _MULTIPLY_EXPONENT + _INT32_ADD_PJ)


def kernel_elements(slot: LayerSlots) -> Counts:
    """Weights of a layer without its bias [architectures]."""
    area = slot.kernel * slot.kernel
    per_input = area * slot.out_channels
    return np.asarray(per_input if slot.op == "depthwise" else per_input * slot.in_channels)


def weight_elements(slot: LayerSlots) -> Counts:
    """W(i) of eq. 2: kernel and bias elements of a layer [architectures]."""
    return np.asarray(kernel_elements(slot) + slot.out_channels)


def output_elements(slot: LayerSlots) -> Counts:
    """F(i) of eq. 2: output elements of a layer for one example [architectures]."""
    return np.asarray(slot.out_channels * slot.out_height * slot.out_width)


def input_elements(slot: LayerSlots) -> Counts:
    """Input elements of a layer for one example [architectures]."""
    return np.asarray(slot.in_channels * slot.in_height * slot.in_width)


def layer_macs(slot: LayerSlots) -> Counts:
    """Multiply-accumulates of a layer for one example [architectures]."""
    return np.asarray(kernel_elements(slot) * slot.out_height * slot.out_width)


def params(slots: Sequence[LayerSlots]) -> Counts:
    """Trained numbers of each network: kernels and biases [architectures]."""
    return _total(slots, [weight_elements(s) for s in slots])


def macs(slots: Sequence[LayerSlots]) -> Counts:
    """Multiply-accumulates of one inference [architectures]."""
    return _total(slots, [layer_macs(s) for s in slots])


def storage_bits(slots: Sequence[LayerSlots]) -> Counts:
    """Storage = sum of [W(i) + F(i)] * B(i), eq. 2 of the NAGAN paper, in bits [architectures]."""
    elements = [(weight_elements(s) + output_elements(s)) * s.weight_bits for s in slots]
    return _total(slots, elements)


def energy_pj(slots: Sequence[LayerSlots]) -> npt.NDArray[np.float64]:
    """Energy = sum of f(MAC(i), BIT(i)), eq. 3 of the NAGAN paper, in pJ [architectures]."""
    terms = [layer_macs(s) * mac_energy_pj(s.weight_bits, s.activation_bits) for s in slots]
    return np.asarray(sum(np.where(s.present, t, 0.0) for s, t in zip(slots, terms, strict=True)))


def peak_ram_bits(slots: Sequence[LayerSlots]) -> Counts:
    """The largest input and output that one layer holds at once, in bits [architectures].

    An input has the bits of the layer before it; the network's own input those of the first layer.
    """
    peak = np.zeros(len(slots[0].present), np.int64)
    before = np.zeros_like(peak)
    for slot in slots:
        bits_in = np.where(before > 0, before, slot.activation_bits)
        held = input_elements(slot) * bits_in + output_elements(slot) * slot.activation_bits
        peak = np.maximum(peak, np.where(slot.present, held, 0))
        before = np.where(slot.present, slot.activation_bits, before)
    return peak


def _total(slots: Sequence[LayerSlots], terms: Sequence[Counts]) -> Counts:
    present = np.stack([s.present for s in slots])  # [slots, architectures]
    return np.asarray(np.where(present, np.stack(terms), 0).sum(axis=0))
