"""What a runtime may execute of a NAS-Bench-201 cell, counted: features for latencies.

A cell is built with all its ops, and runtimes differ in which of them they compute. Five readings:

  0 everything: PyTorch runs ops that lead nowhere, and ops on zeros.
  1 what reaches the output: a converted graph has lost the ops whose result is not used.
  2 what lies on a path from input to output: ops on zeros are gone too.
  3, 4: readings 0 and 1 of the first cell with the same graph. Tables that time each graph once
    (as HW-NAS-Bench-360 does) have that cell's latency for all of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tfgen import errors
from tfgen.space.search_space import Choices
from tfgen.space.tabulated import NASBENCH201_EDGES, NASBENCH201_OPS

READINGS = ("all", "used", "live", "all_of_first", "used_of_first")
FEATURES = (
    *("runs", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    *("pooled_nodes", "inner_edges", "longest_path"),
)
_NONE, _SKIP, _POOL = (NASBENCH201_OPS.index(op) for op in ("none", "skip_connect", "avg_pool_3x3"))
# Of none, skip, 1x1, 3x3 and pool, in ops: a 3x3 convolution takes about as long as two others.
_PATH_LENGTHS = np.array([0.0, 0.0, 1.0, 2.0, 1.0])
_FROM, _TO = (np.array(ends) for ends in zip(*NASBENCH201_EDGES, strict=True))
_NODES = 4

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def nasbench201_readings(choices: Choices) -> Floats:
    """Features of cells in each reading [5, architectures, 8].

    READINGS and FEATURES name the axes: whether anything runs; how often each op does; nodes that
    are pooled (runtimes compute the pools of a node once); edges that start at an inner node; and
    the longest path, for runtimes that compute branches side by side.

    Args:
      choices: op codes in the order of NASBENCH201_OPS, edges in that of NASBENCH201_EDGES, rows in
        the benchmark's order, which says which cell of a graph is the first [architectures, 6].

    Raises:
      UsageError: choices of another shape or with other codes.
    """
    if choices.ndim != 2 or choices.shape[1] != len(NASBENCH201_EDGES):
        raise errors.UsageError(f"a cell has {len(NASBENCH201_EDGES)} edges, got {choices.shape}")
    if not ((choices >= 0) & (choices < len(NASBENCH201_OPS))).all():
        raise errors.UsageError(f"op codes lie in 0..{len(NASBENCH201_OPS) - 1}")
    present = choices != _NONE
    used = _used(present)
    connected = used[:, 0]
    readings = [
        _features(choices, present, np.ones(len(choices), np.bool_)),
        _features(choices, present & used[:, _TO], connected),
        live_features(choices),
    ]
    first = first_of_graph(choices)
    return np.stack([*readings, readings[0][first], readings[1][first]])


def live_edges(choices: Choices) -> Bools:
    """Which edges lie on a path from input to output [architectures, 6]."""
    present: Bools = choices != _NONE
    live: Bools = present & _used(present)[:, _TO] & _reached(present)[:, _FROM]
    return live


def live_features(choices: Choices) -> Floats:
    """What FEATURES names, of the edges on a path from input to output [architectures, 8]."""
    return _features(choices, live_edges(choices), _used(choices != _NONE)[:, 0])


def first_of_graph(choices: Choices) -> npt.NDArray[np.int64]:
    """The first row whose cell is the same graph [architectures].

    The same in the benchmark's sense (`to_unique_str` with zeros considered), 6,466 graphs in all:
    skips are wires, and an op on zeros gives zeros; but a sum of zeros is not seen to be zero.
    """
    names = dict(enumerate(NASBENCH201_OPS))
    seen: dict[str, int] = {}
    return np.array(
        [
            seen.setdefault(_graph(row, names), number)
            for number, row in enumerate(choices.tolist())
        ],
        np.int64,
    )


def _graph(cell: list[int], names: dict[int, str]) -> str:
    nodes = ["0"]
    for node in range(1, _NODES):
        terms = []
        for edge, (source, target) in enumerate(NASBENCH201_EDGES):
            if target == node:
                zero = cell[edge] == _NONE or nodes[source] == "#"
                through = f"({nodes[source]})@{names[cell[edge]]}"
                terms.append("#" if zero else nodes[source] if cell[edge] == _SKIP else through)
        nodes.append("+".join(sorted(terms)))
    return nodes[-1]


def _used(present: Bools) -> Bools:
    """Whether a path leads from each node to the output [architectures, nodes]."""
    used = np.zeros((len(present), _NODES), np.bool_)
    used[:, -1] = True
    for edge in np.argsort(-_FROM, kind="stable"):
        used[:, _FROM[edge]] |= used[:, _TO[edge]] & present[:, edge]
    return used


def _reached(present: Bools) -> Bools:
    """Whether a path leads from the input to each node [architectures, nodes]."""
    reached = np.zeros((len(present), _NODES), np.bool_)
    reached[:, 0] = True
    for edge in np.argsort(_TO, kind="stable"):
        reached[:, _TO[edge]] |= reached[:, _FROM[edge]] & present[:, edge]
    return reached


def _features(choices: Choices, executed: Bools, runs: Bools) -> Floats:
    """What FEATURES names, of the executed edges [architectures, 8]."""
    counts = [((choices == op) & executed).sum(axis=1) for op in range(_SKIP, len(NASBENCH201_OPS))]
    pools = (choices == _POOL) & executed
    pooled = [pools[:, node == _FROM].any(axis=1) for node in range(_NODES - 1)]
    inner = executed[:, _FROM > 0].sum(axis=1)
    lengths = np.where(executed, _PATH_LENGTHS[choices], -np.inf)
    ends = np.full((len(choices), _NODES), -np.inf)
    ends[:, 0] = 0.0
    for edge in np.argsort(_TO, kind="stable"):
        arrives = ends[:, _FROM[edge]] + lengths[:, edge]
        ends[:, _TO[edge]] = np.maximum(ends[:, _TO[edge]], arrives)
    columns = [runs, *counts, np.sum(pooled, axis=0), inner, ends.max(axis=1)]
    return np.stack(columns, axis=1).astype(np.float64)
