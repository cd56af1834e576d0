"""A supernet for tests."""

import numpy as np

from tfgen import seeds
from tfgen.nets.supernet import Supernet
from tfgen.space import catalog
from tfgen.space.search_space import SearchSpace


def scattered(space: str | SearchSpace) -> Supernet:
    """A supernet of a space, or of that name, whose scales, shifts and biases are not all alike."""
    net = Supernet(catalog.get(space) if isinstance(space, str) else space, seed=1)
    for key, variable in net.variables.items():
        if not key.endswith("/kernel"):
            noise = seeds.stream(2, key).normal(0.0, 0.3, variable.shape)
            variable.assign_add(noise.astype(np.float32))
    return net
