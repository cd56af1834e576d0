"""LayerSpecs -> params, MACs, storage, energy, peak RAM: exact arithmetic over batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tfgen.space.layers import NETWORK, WEIGHTED_OPS, LayerSlots

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
    if slot.op not in WEIGHTED_OPS:
        return np.zeros_like(slot.kernel)
    area = slot.kernel * slot.kernel
    per_input = area * slot.out_channels
    return np.asarray(per_input if slot.op == "depthwise" else per_input * slot.in_channels)


def weight_elements(slot: LayerSlots) -> Counts:
    """W(i) of eq. 2: kernel and bias elements of a layer as it is stored [architectures].

    Batch normalisation is stored as a bias.
    """
    return np.asarray(kernel_elements(slot) + slot.out_channels * (slot.op in WEIGHTED_OPS))


def trained_elements(slot: LayerSlots) -> Counts:
    """Trained numbers of a layer: its kernel, and its bias or gamma and beta [architectures]."""
    return np.asarray(weight_elements(slot) + slot.out_channels * slot.batch_norm)


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
    """Trained numbers of each network [architectures]."""
    return _total(slots, [trained_elements(s) for s in slots])


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
    """The most that the tensors which are needed at one time hold, in bits [architectures].

    A tensor is held from the layer that makes it to the last layer that reads it; a layer's inputs
    and output are held together. The network's input has the bits of the first layer.
    """
    rows = np.arange(len(slots[0].present))
    # The last reader of the input and of each slot; what nobody reads is held to the end.
    last = np.full((len(slots) + 1, len(rows)), len(slots), np.int64)
    for position, slot in enumerate(slots):
        for source in slot.inputs.T:
            read = slot.present & (source >= NETWORK)
            last[source[read] + 1, rows[read]] = position
    sizes = [input_elements(slots[0]) * slots[0].activation_bits]
    sizes += [np.where(s.present, output_elements(s) * s.activation_bits, 0) for s in slots]
    freed = np.zeros((len(slots) + 1, len(rows)), np.int64)  # by each layer, once it is done
    for size, reader in zip(sizes, last, strict=True):
        freed[reader, rows] += size
    held, peak = sizes[0], np.zeros_like(sizes[0])
    for size, release in zip(sizes[1:], freed, strict=False):
        held = held + size
        peak = np.maximum(peak, held)
        held = held - release
    return np.asarray(peak)


def _total(slots: Sequence[LayerSlots], terms: Sequence[Counts]) -> Counts:
    present = np.stack([s.present for s in slots])  # [slots, architectures]
    return np.asarray(np.where(present, np.stack(terms), 0).sum(axis=0))
