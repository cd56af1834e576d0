"""From a budget to architectures: methods and searches, side by side behind two protocols."""

from __future__ import annotations

from tfgen import errors
from tfgen.generators import (
    baselines,
    bayesian,
    evolution,
    gensynth,
    nag,
    nagan,
    nsga2,
    sgnas,
    tpe,
)
from tfgen.generators.base import Method, Searcher

METHODS: dict[str, Method] = {
    "gensynth": gensynth.Gensynth(),
    "nag": nag.Nag(),
    "nagan": nagan.Nagan(),
    "random": baselines.Random(),
    "sgnas": sgnas.Sgnas(),
}

# What a user would run instead of a generator: they start anew for every budget.
SEARCHERS: dict[str, Searcher] = {
    "bayesian": bayesian.Bayesian(),
    "genetic": evolution.Genetic(),
    "nsga2": nsga2.Nsga2(),
    "random_search": baselines.RandomSearch(),
    "regularized_evolution": evolution.RegularizedEvolution(),
    "tpe": tpe.Tpe(),
}


def get(name: str) -> Method:
    """The method of that name; raises UsageError that names the known ones."""
    if name not in METHODS:
        raise errors.UsageError(f"unknown method {name!r}; known: {', '.join(sorted(METHODS))}")
    return METHODS[name]


def get_searcher(name: str) -> Searcher:
    """The search of that name; raises UsageError that names the known ones."""
    if name not in SEARCHERS:
        raise errors.UsageError(f"unknown search {name!r}; known: {', '.join(sorted(SEARCHERS))}")
    return SEARCHERS[name]
