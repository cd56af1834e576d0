"""What networks of tabulated spaces cost where that follows from their ops alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from tfgen.space.search_space import Choices
from tfgen.space.tabulated import NASBENCH201_OPS

_Counter = Callable[[Choices], npt.NDArray[np.float64]]  # -> [architectures]

_CONVOLUTIONS = tuple(NASBENCH201_OPS.index(op) for op in ("nor_conv_1x1", "nor_conv_3x3"))
# Five cells at each of 16, 32 and 64 channels on 32x32, 16x16 and 8x8 pixels. A 1x1 convolution:
# 5 * 3 * 1024 * 16^2 MACs; 5 * (16^2 + 32^2 + 64^2) weights, 5 * 2 * 112 of normalisation.
_MACS = (5 * 3 * 1024 * 16**2, 9 * 5 * 3 * 1024 * 16**2)
_PARAMS = (5 * 5376 + 1120, 9 * 5 * 5376 + 1120)
# Of the rest, as the benchmark tells them.
_OTHER_MACS, _OTHER_PARAMS = 7_783_050, 73_306


def _of_cells(other: int, each: tuple[int, int]) -> _Counter:
    def count(choices: Choices) -> npt.NDArray[np.float64]:
        total = np.full(len(choices), float(other))
        for op, amount in zip(_CONVOLUTIONS, each, strict=True):
            total += amount * (choices == op).sum(axis=1)
        return total

    return count


# By space, by metric.
COUNTS: Mapping[str, Mapping[str, _Counter]] = {
    "nasbench201": {
        "params": _of_cells(_OTHER_PARAMS, _PARAMS),
        "macs": _of_cells(_OTHER_MACS, _MACS),
    }
}
