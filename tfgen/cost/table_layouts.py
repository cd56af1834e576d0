"""How public tables write networks and blocks, space by space, and what of them takes time."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tfgen import errors
from tfgen.cost.latency import Floats
from tfgen.cost.table_latency import Part, Terms
from tfgen.space import tabulated
from tfgen.space.search_space import Choices, SearchSpace, Value

Rows = Sequence[Mapping[str, str]]

# --- tables of whole networks -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NetworkLayout:
    """How a space's networks stand in tables, and what of them takes time.

    Attributes:
      column: which says what network a row is of.
      read: the choices of rows [networks, decisions].
      groups: of the decisions whose joint values are a term of the fit.
      parts: of the fit.
    """

    column: str
    read: Callable[[SearchSpace, Rows], npt.ArrayLike]
    groups: Callable[[SearchSpace], list[tuple[str, ...]]]
    parts: Callable[[SearchSpace], list[Part]]

    def choices(self, space: SearchSpace, rows: Rows) -> Choices:
        """Canonical choices of rows [networks, decisions]; raises ValueError or KeyError."""
        try:
            return space.canonical(self.read(space, rows))
        except errors.UsageError as error:
            raise ValueError(str(error)) from error


def _nasbench201(space: SearchSpace, rows: Rows) -> npt.ArrayLike:
    """`arch_str`, as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|: each node's inputs in order."""
    return [tabulated.nasbench201_cell(row["arch_str"]) for row in rows]


def _fbnet(space: SearchSpace, rows: Rows) -> npt.ArrayLike:
    """`ops`: the code of each block."""
    return [[int(code) for code in row["ops"].split()] for row in rows]


def _ofa(space: SearchSpace, rows: Rows) -> npt.ArrayLike:
    """`arch`: JSON with ks and e of 20 blocks, d of 5 units, and the resolution r."""
    networks = [json.loads(row["arch"]) for row in rows]
    blocks = list(itertools.product(range(1, 6), range(1, 5)))
    columns: dict[str, list[Value]] = {"resolution": [n["r"] for n in networks]}
    for unit in range(1, 6):
        columns[f"depth_{unit}"] = [n["d"][unit - 1] for n in networks]
    for number, (unit, block) in enumerate(blocks):
        columns[f"kernel_{unit}_{block}"] = [n["ks"][number] for n in networks]
        columns[f"expansion_{unit}_{block}"] = [n["e"][number] for n in networks]
    chosen = [[d.values.index(v) for v in columns[d.name]] for d in space.decisions]
    return np.array(chosen).T


def _each(space: SearchSpace) -> list[tuple[str, ...]]:
    return [(decision.name,) for decision in space.decisions]


def _ofa_blocks(*joint: str) -> list[tuple[str, ...]]:
    """Kernel and expansion of each block, with the decisions `joint`."""
    return [
        (*joint, f"kernel_{unit}_{block}", f"expansion_{unit}_{block}")
        for unit, block in itertools.product(range(1, 6), range(1, 5))
    ]


def _as_chosen(choices: Choices) -> tuple[Choices, Floats]:
    return choices, np.ones(len(choices))


def _live(choices: Choices) -> tuple[Choices, Floats]:
    """NAS-Bench-201's edges, "none" where no path from input to output leads through them.

    Some runtimes compute such an edge and some do not, so the fit has a part for either.
    """
    on = choices != 0
    reached = {0: np.ones(len(choices), np.bool_)}
    for node in range(1, 4):
        into = [(edge, a) for edge, (a, b) in enumerate(tabulated.NASBENCH201_EDGES) if b == node]
        reached[node] = np.any([on[:, edge] & reached[a] for edge, a in into], axis=0)
    used = {3: np.ones(len(choices), np.bool_)}
    for node in (2, 1, 0):
        out = [(edge, b) for edge, (a, b) in enumerate(tabulated.NASBENCH201_EDGES) if a == node]
        used[node] = np.any([on[:, edge] & used[b] for edge, b in out], axis=0)
    live = [reached[a] & used[b] for a, b in tabulated.NASBENCH201_EDGES]
    return choices * np.stack(live, axis=1), np.ones(len(choices))


def _resolution_squared(space: SearchSpace) -> Part:
    """Work grows with the square of the resolution, overhead does not: a part for either."""
    column = space.index["resolution"]
    scales = np.square(np.array(space.decisions[column].values, np.float64) / 224)
    return lambda choices: (choices, scales[choices[:, column]])


NETWORKS: Mapping[str, NetworkLayout] = {
    "fbnet": NetworkLayout("ops", _fbnet, _each, lambda space: [_as_chosen]),
    "nasbench201": NetworkLayout(
        "arch_str", _nasbench201, _each, lambda space: [_as_chosen, _live]
    ),
    "ofa_mobilenet_v3": NetworkLayout(
        "arch",
        _ofa,
        lambda space: [("resolution",), *_ofa_blocks()],
        lambda space: [_as_chosen, _resolution_squared(space)],
    ),
}


# --- tables of blocks ---------------------------------------------------------------------------

# The terms of a sum, the ms of each (NaN where the table has none), and the ms of the rest.
TermsMs = tuple[Terms, Floats, float]


def _single_path_nas(space: SearchSpace, rows: Rows, column: str) -> TermsMs:
    """Blocks 1 to 20 of 22, choices in the order of the decisions' values; a skip is free."""
    table = {(row["block"], row["choice"]): float(row[column]) for row in rows}
    terms = Terms(space, _each(space))
    term_ms = np.zeros(terms.count)
    for position, group, (value,) in terms.settings():
        if value != "skip":
            choice = space.decisions[group].values.index(value)
            term_ms[position] = table[str(group + 1), str(choice)]
    return terms, term_ms, 0.0


def _proxylessnas(space: SearchSpace, rows: Rows, column: str) -> TermsMs:
    """Blocks by shape; the rest is the first convolution and block and all after the last block."""
    table = {row["op"]: float(row[column]) for row in rows}
    terms = Terms(space, _each(space))
    term_ms = np.zeros(terms.count)
    for position, group, (value,) in terms.settings():
        if value != "skip":
            stage, block = map(int, space.decisions[group].name.split("_")[1:])
            kernel, expansion = re.findall(r"\d", str(value))
            shape, stride = _block_shape(_PROXYLESS_STAGES, 112, stage, block)
            term_ms[position] = table[
                f"expanded_conv-{shape}-expand:{expansion}-kernel:{kernel}-stride:{stride}"
                f"-idskip:{int(block > 1)}"
            ]
    first = "expanded_conv-input:112x112x32-output:112x112x16-expand:1-kernel:3-stride:1-idskip:0"
    return terms, term_ms, _ends(table) + table[first]


def _ofa_mobilenet_v3(space: SearchSpace, rows: Rows, column: str) -> TermsMs:
    """Blocks by shape at a few resolutions; others are not in the table."""
    table: dict[int, dict[str, float]] = {}
    for row in rows:
        table.setdefault(int(row["resolution"]), {})[row["op"]] = float(row[column])
    terms = Terms(space, [("resolution",), *_ofa_blocks("resolution")])
    term_ms = np.zeros(terms.count)
    for position, group, (resolution, *block_values) in terms.settings():
        ops = table.get(int(resolution))
        if ops is None:
            term_ms[position] = np.nan
        elif not block_values:
            size = int(resolution) // 2
            first = f"input:{size}x{size}x24-output:{size}x{size}x24-expand:24"
            first = f"expanded_conv-{first}-kernel:3-stride:1-idskip:1-se:0-hs:0"
            term_ms[position] = _ends(ops) + ops[first]
        else:
            kernel, expansion = block_values
            unit, block = divmod(group - 1, 4)
            shape, stride = _block_shape(_OFA_STAGES, int(resolution) // 2, unit + 1, block + 1)
            mid = int(expansion) * _OFA_STAGES[unit + int(block > 0)][0]
            squeeze, hard_swish = _OFA_FLAGS[unit]
            term_ms[position] = ops[
                f"expanded_conv-{shape}-expand:{mid}-kernel:{kernel}-stride:{stride}"
                f"-idskip:{int(block > 0)}-se:{squeeze}-hs:{hard_swish}"
            ]
    return terms, term_ms, 0.0


def _ends(table: Mapping[str, float]) -> float:
    """What lies before and after the blocks [ms]."""
    return sum(ms for op, ms in table.items() if not op.startswith("expanded_conv"))


# (channels, stride of the first block), the first row before the first stage.
_PROXYLESS_STAGES = ((16, 1), (24, 2), (40, 2), (80, 2), (96, 1), (192, 2), (320, 1))
_OFA_STAGES = ((24, 1), (32, 2), (48, 2), (96, 2), (136, 1), (192, 2))
_OFA_FLAGS = ((0, 0), (1, 0), (0, 1), (1, 1), (1, 1))  # squeeze-and-excitation, hard-swish


def _block_shape(
    stages: tuple[tuple[int, int], ...], size: int, stage: int, block: int
) -> tuple[str, int]:
    """A block's shapes as tables write them, and its stride; stages and blocks count from 1."""
    for _, stride in stages[1:stage]:
        size = (size - 1) // stride + 1
    (before, _), (channels, stride) = stages[stage - 1 : stage + 1]
    out_size = (size - 1) // stride + 1
    if block > 1:
        before, size, stride = channels, out_size, 1
    return f"input:{size}x{size}x{before}-output:{out_size}x{out_size}x{channels}", stride


BLOCKS: Mapping[str, Callable[[SearchSpace, Rows, str], TermsMs]] = {
    "ofa_mobilenet_v3": _ofa_mobilenet_v3,
    "proxylessnas": _proxylessnas,
    "single_path_nas": _single_path_nas,
}
