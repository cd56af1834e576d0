"""From a budget to architectures: the methods, side by side behind one protocol."""

from __future__ import annotations

from tfgen import errors
from tfgen.generators import baselines, nagan
from tfgen.generators.base import Method

METHODS: dict[str, Method] = {
    "nagan": nagan.Nagan(),
    "random": baselines.Random(),
}


def get(name: str) -> Method:
    """The method of that name; raises UsageError that names the known ones."""
    if name not in METHODS:
        raise errors.UsageError(f"unknown method {name!r}; known: {', '.join(sorted(METHODS))}")
    return METHODS[name]
