"""What is known of a space's networks beside their decisions, for those that learn from records.

A cell of NAS-Bench-201 is a graph: an edge counts only if a path from input to output leads over
it, and what counts of a path is what lies on it. A few hundred records do not teach that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from tfgen.space.nasbench201_readings import live_edges, live_features
from tfgen.space.search_space import Choices, SearchSpace
from tfgen.space.tabulated import NASBENCH201_EDGES, NASBENCH201_OPS

_PATHS = (((0, 3),), ((0, 1), (1, 3)), ((0, 2), (2, 3)), ((0, 1), (1, 2), (2, 3)))
Floats = npt.NDArray[np.float64]


def of(space: SearchSpace, choices: Choices) -> Floats:
    """Traits of networks, each of the order of 1 [networks, traits]; none for most spaces."""
    known = _TRAITS.get(space.name)
    return np.zeros((len(choices), 0)) if known is None else known(choices)


def _nasbench201(choices: Choices) -> Floats:
    """Ops of live edges, counts, and for each path whether it is open and what lies on it."""
    live = live_edges(choices)
    ops = np.where(live, choices, NASBENCH201_OPS.index("none"))
    one_hot = np.eye(len(NASBENCH201_OPS))[ops].reshape(len(choices), -1)
    paths = []
    for path in _PATHS:
        columns = [NASBENCH201_EDGES.index(edge) for edge in path]
        is_open = live[:, columns].all(axis=1)
        on_it = [
            is_open * (choices[:, columns] == op).sum(axis=1)
            for op in range(1, len(NASBENCH201_OPS))
        ]
        paths += [is_open.astype(np.float64), *on_it]
    return np.concatenate([one_hot, np.stack(paths, axis=1), live_features(choices) / 4], axis=1)


_TRAITS: Mapping[str, Callable[[Choices], Floats]] = {"nasbench201": _nasbench201}
