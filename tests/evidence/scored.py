"""Records of given scores."""

import numpy as np

from tfgen.evidence.record import Record
from tfgen.space.search_space import Choices, SearchSpace


def records(space: SearchSpace, choices: Choices, metrics: np.ndarray) -> list[Record]:
    """One of each network [records, decisions] with its score [records]."""
    return [
        Record(space.architecture(row), "d", "r", 0, float(metric), 0.0)
        for row, metric in zip(choices, metrics, strict=True)
    ]
