"""LatencyModel: what predicts the latency of architectures on a device, and how sure it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tfgen.space.layers import LayerSlots
from tfgen.space.search_space import Choices

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Interval:
    """Predicted latencies, each [architectures].

    Attributes:
      ms: of one inference of one example: the expected value.
      high_ms: the upper end of a one-sided interval.
    """

    ms: Floats
    high_ms: Floats

    def __post_init__(self) -> None:
        if self.ms.shape != self.high_ms.shape or self.ms.ndim != 1:
            raise ValueError(f"shapes {self.ms.shape} and {self.high_ms.shape}")
        if not (np.isfinite(self.ms).all() and (self.ms > 0).all()):
            raise ValueError("a latency must be a finite number above 0")
        if not (self.high_ms >= self.ms).all():  # infinity: nothing is promised
            raise ValueError("an upper end must not lie below the expected value")


class LatencyModel(Protocol):
    """What a source of latencies must be able to do.

    Attributes:
      device: the name that budgets use.
      remark: what a user should know of its intervals; empty where they are what they seem.
    """

    @property
    def device(self) -> str: ...
    @property
    def remark(self) -> str: ...

    def predict(self, choices: Choices, confidence: float) -> Interval:
        """Latencies of canonical choices [architectures, decisions].

        Args:
          choices: the architectures.
          confidence: with what probability a network that is chosen for its predicted latency
            takes no longer than `high_ms`.
        """
        ...


@runtime_checkable
class LayerLatency(LatencyModel, Protocol):
    """A source whose expected latencies are sums over layers, and a constant beside.

    Attributes:
      outside_ms: what one inference takes beside its layers, the same for every network.
    """

    @property
    def outside_ms(self) -> float: ...

    def layers_ms(self, slots: Sequence[LayerSlots]) -> Floats:
        """What these layers take, without what is outside them [architectures]."""
        ...
