"""Spaces that exist here as tables of measurements only: they have decisions and no stages.

Nothing is built, counted or exported from them. They are what the latencies of public projects are
told for; see `cost/public_tables.py`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence

from tfgen.space import bits
from tfgen.space.search_space import Decision, SearchSpace, When

NASBENCH201_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
# (from, to) in the order in which an architecture's text names them.
NASBENCH201_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
# k: kernel, e: expansion, g: groups of the 1x1 convolutions; the codes 0..8 of HW-NAS-Bench.
FBNET_BLOCKS = (
    *("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6"),
    *("k5_e1", "k5_e1_g2", "k5_e3", "k5_e6"),
    "skip",
)
OFA_UNITS, OFA_DEPTHS = 5, (2, 3, 4)
OFA_KERNELS, OFA_EXPANSIONS = (3, 5, 7), (3, 4, 6)
OFA_RESOLUTIONS = tuple(range(128, 225, 4))
# Blocks of each stage; the first block changes width or resolution and cannot be skipped.
_MOBILE_DEPTHS = (4, 4, 4, 4, 4)


def nasbench201() -> SearchSpace:
    """NAS-Bench-201 (Dong and Yang, ICLR 2020): five ops on each of six edges, 15,625 cells."""
    decisions = [Decision(f"edge_{a}_{b}", NASBENCH201_OPS) for a, b in NASBENCH201_EDGES]
    return _space("nasbench201", (32, 32, 3), decisions)


def nasbench201_text(cell: Sequence[int]) -> str:
    """A cell's choices as that benchmark writes them: |op~0|+|op~0|op~1|+|op~0|op~1|op~2|."""
    ops = [f"{NASBENCH201_OPS[c]}~{a}" for c, (a, _) in zip(cell, NASBENCH201_EDGES, strict=True)]
    return f"|{ops[0]}|+|{'|'.join(ops[1:3])}|+|{'|'.join(ops[3:])}|"


@functools.lru_cache(maxsize=2**14)  # all 15,625: the tables of many devices name them
def nasbench201_cell(text: str) -> tuple[int, ...]:
    """The choices of a cell that `nasbench201_text` wrote; raises KeyError for an unknown op."""
    codes = {op: code for code, op in enumerate(NASBENCH201_OPS)}
    return tuple(codes[op] for op in re.findall(r"(\w+)~\d", text))


def fbnet() -> SearchSpace:
    """FBNet as in HW-NAS-Bench (Li et al., ICLR 2021): nine kinds for each of 22 blocks.

    By the size of their latencies the tables' networks are those for CIFAR-100; they do not say.
    """
    decisions = [Decision(f"block_{block}", FBNET_BLOCKS) for block in range(1, 23)]
    return _space("fbnet", (32, 32, 3), decisions)


def ofa_mobilenet_v3() -> SearchSpace:
    """Once-for-All's MobileNetV3 of width 1.2 (Cai et al., ICLR 2020), with the input's resolution.

    Five units of two to four blocks, each block with its kernel and expansion.
    """
    decisions = [Decision("resolution", OFA_RESOLUTIONS)]
    for unit in range(1, OFA_UNITS + 1):
        decisions.append(Decision(f"depth_{unit}", OFA_DEPTHS))
        for block in range(1, max(OFA_DEPTHS) + 1):
            deep = tuple(depth for depth in OFA_DEPTHS if depth >= block)
            when = When(f"depth_{unit}", deep) if deep != OFA_DEPTHS else None
            decisions.append(Decision(f"kernel_{unit}_{block}", OFA_KERNELS, when))
            decisions.append(Decision(f"expansion_{unit}_{block}", OFA_EXPANSIONS, when))
    return _space("ofa_mobilenet_v3", (224, 224, 3), decisions)


def proxylessnas() -> SearchSpace:
    """ProxylessNAS (Cai et al., ICLR 2019): kernel 3, 5 or 7 and expansion 3 or 6, or no block.

    Stages of 24, 40, 80, 96, 192 and 320 channels, the last of one block.
    """
    menu = tuple(f"k{kernel}_e{expansion}" for kernel in (3, 5, 7) for expansion in (3, 6))
    return _space("proxylessnas", (224, 224, 3), _mobile_blocks((*_MOBILE_DEPTHS, 1), menu))


def single_path_nas() -> SearchSpace:
    """Single-Path NAS (Stamoulis et al., 2019): kernel 3 or 5 and expansion 3 or 6, or no block.

    The first block (16 channels) and the last (320) are no choice there, so 20 of 22 are.
    """
    menu = tuple(f"k{kernel}_e{expansion}" for kernel in (3, 5) for expansion in (3, 6))
    return _space("single_path_nas", (224, 224, 3), _mobile_blocks(_MOBILE_DEPTHS, menu))


TABULATED: Mapping[str, Callable[[], SearchSpace]] = {
    "fbnet": fbnet,
    "nasbench201": nasbench201,
    "ofa_mobilenet_v3": ofa_mobilenet_v3,
    "proxylessnas": proxylessnas,
    "single_path_nas": single_path_nas,
}


def _space(name: str, input_shape: tuple[int, ...], decisions: list[Decision]) -> SearchSpace:
    return SearchSpace(name, input_shape, tuple(decisions), (), bits.SIMULATED)


def _mobile_blocks(depths: tuple[int, ...], menu: tuple[str, ...]) -> list[Decision]:
    """A decision for each block; all but a stage's first may be skipped."""
    return [
        Decision(f"block_{stage}_{block}", menu if block == 1 else (*menu, "skip"))
        for stage, depth in enumerate(depths, 1)
        for block in range(1, depth + 1)
    ]
