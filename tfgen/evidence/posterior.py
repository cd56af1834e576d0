"""The encoder read backwards: networks that are expected to keep a condition.

For a condition c, networks are drawn from

  p(x | c) ~ p(x) exp(-E|P(x) - c| / T),   p(x) how often sampling draws x,

E|P - c| the distance that the encoder expects of a training. Markov chains make the draws
(Metropolis et al. 1953): a chain has a condition of its own; a step redraws a decision or two as
sampling does, so that p(x) cancels, and is taken with probability min(1, exp(-(d' - d) / T)). Which
decisions are redrawn does not depend on the network, or networks of more decisions would be found
more often. This takes seconds; a generator that is taught with the draws answers in milliseconds.

T is as low as it was asked for where many networks keep to the condition. Where few do, it rises
until chains of neighbouring conditions are no longer all at the same networks.
"""

from __future__ import annotations

import numpy as np

from tfgen import seeds
from tfgen.evidence.surrogate import Surrogate
from tfgen.space.search_space import Choices, SearchSpace

_BINS = 20  # of conditions; each has a temperature of its own
_BURN_IN = 150  # steps, the first half of them at a higher temperature
_START = 4.0  # times the temperature at first
_APART = 10  # steps between two states that are kept, and between changes of temperature
_UP, _DOWN, _WARMEST = 1.25, 0.8, 10.0


def sample(
    encoder: Surrogate, temperature: float, max_repeats: float, chains: int, kept: int, seed: int
) -> tuple[Choices, np.ndarray]:
    """Draws networks for conditions that are uniform on 0..1.

    Args:
      encoder: what is read backwards.
      temperature: T where many networks keep to a condition, in normalised performance.
      max_repeats: share of the chains of neighbouring conditions that may be at a network where
        another one is; beyond it T rises, to ten times `temperature` at most.
      chains: run side by side.
      kept: states kept of each.
      seed: of the chains.

    Returns:
      Canonical choices [chains * kept, decisions] and their conditions [chains * kept].
    """
    space, random = encoder.space, seeds.stream(seed, "posterior")
    conditions = (np.arange(chains) + random.random(chains)) / chains
    bins = (conditions * _BINS).astype(int)
    temperatures = np.full(_BINS, temperature * _START)
    states = space.sample(chains, random)
    distances = encoder.expected_distance(states, conditions)
    found = []
    for step in range(_BURN_IN + kept * _APART):
        if step % _APART == 0 and step >= _BURN_IN // 2:
            colder = np.maximum(temperatures * _DOWN, temperature)
            warmer = np.minimum(temperatures * _UP, temperature * _WARMEST)
            crowded = _repeats(states, bins) > max_repeats
            temperatures = np.where(crowded, warmer, colder)
        proposed = _proposed(space, states, random)
        after = encoder.expected_distance(proposed, conditions)
        worse = np.maximum(after - distances, 0.0)
        taken = random.random(chains) < np.exp(-worse / temperatures[bins])
        states = np.where(taken[:, None], proposed, states)
        distances = np.where(taken, after, distances)
        if step >= _BURN_IN and (step - _BURN_IN) % _APART == _APART - 1:
            found.append(states)
    return np.concatenate(found), np.tile(conditions, kept)


def _proposed(space: SearchSpace, states: Choices, random: np.random.Generator) -> Choices:
    """Each network with one decision redrawn, any of them, and others at one in their number."""
    rows, decisions = states.shape
    redrawn = random.random((rows, decisions)) < 1.0 / decisions
    redrawn[np.arange(rows), random.integers(decisions, size=rows)] = True
    # Decisions that are not active may become so: they are as good as drawn just now.
    fresh = space.draw(rows, random)
    return space.canonical(np.where(redrawn | ~space.active(states), fresh, states))


def _repeats(states: Choices, bins: np.ndarray) -> np.ndarray:
    """Of each bin's chains, the share that is at a network where another one is too [bins]."""
    networks = np.unique(np.concatenate([bins[:, None], states], axis=1), axis=0)[:, 0]
    chains = np.maximum(np.bincount(bins, minlength=_BINS), 1)
    return np.asarray(1.0 - np.bincount(networks, minlength=_BINS) / chains)
