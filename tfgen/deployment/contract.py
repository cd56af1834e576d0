"""The contract: asked, predicted and measured per metric, pass or fail."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tfgen.cost.budget import QUALITY_METRICS, Budget


@dataclasses.dataclass(frozen=True)
class Term:
    """One line of a contract.

    Attributes:
      metric: what was limited; costs must be at most, the task's metric at least `asked`.
      asked: the user's limit; None for a number that nobody limited.
      predicted: before training.
      measured: on the delivered file.
    """

    metric: str
    asked: float | None
    predicted: float | None
    measured: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.measured):
            raise ValueError(f"{self.metric} was not measured: {self.measured}")

    @property
    def holds(self) -> bool:
        """Whether the measured value keeps what was asked; true where nothing was asked."""
        if self.asked is None:
            return True
        if self.metric in QUALITY_METRICS:
            return self.measured >= self.asked
        return self.measured <= self.asked

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "holds": self.holds}


@dataclasses.dataclass(frozen=True)
class Contract:
    """What was promised of one file and what was found.

    Attributes:
      budget: what was asked.
      fingerprint: of the architecture.
      terms: the asked metrics first.
      file_sha256: of model.tflite.
      file_bytes: its size.
      device: where it was measured.
      runtime: what ran it, with version.
      tested_on: the examples that the task's metric was measured on.
      fully_accelerated: whether the runtime's fast kernels took every op; None where the runtime
        cannot tell.
    """

    budget: Budget
    fingerprint: str
    terms: tuple[Term, ...]
    file_sha256: str
    file_bytes: int
    device: str
    runtime: str
    tested_on: str
    fully_accelerated: bool | None = None

    @property
    def holds(self) -> bool:
        """Whether every asked metric was kept."""
        return all(term.holds for term in self.terms)

    def to_json(self) -> dict[str, Any]:
        return {
            "budget": self.budget.to_json(),
            "fingerprint": self.fingerprint,
            "terms": [term.to_json() for term in self.terms],
            "file_sha256": self.file_sha256,
            "file_bytes": self.file_bytes,
            "device": self.device,
            "runtime": self.runtime,
            "tested_on": self.tested_on,
            "fully_accelerated": self.fully_accelerated,
            "holds": self.holds,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Contract:
        terms = tuple(
            Term(t["metric"], t["asked"], t["predicted"], t["measured"]) for t in data["terms"]
        )
        return cls(
            Budget.from_json(data["budget"]),
            data["fingerprint"],
            terms,
            data["file_sha256"],
            data["file_bytes"],
            data["device"],
            data["runtime"],
            data["tested_on"],
            data["fully_accelerated"],
        )


def draw_up(
    budget: Budget,
    fingerprint: str,
    predicted: Mapping[str, float],
    measured: Mapping[str, float],
    *,
    file_sha256: str,
    file_bytes: int,
    device: str,
    runtime: str,
    tested_on: str,
    fully_accelerated: bool | None = None,
) -> Contract:
    """Compares each measured metric with what was asked and predicted.

    Raises:
      KeyError: an asked metric was not measured.
    """
    asked = dict(budget.limits)
    if budget.quality is not None:
        asked[budget.quality[0]] = budget.quality[1]
    names = [*asked, *(m for m in measured if m not in asked)]
    terms = tuple(Term(m, asked.get(m), predicted.get(m), measured[m]) for m in names)
    return Contract(
        budget,
        fingerprint,
        terms,
        file_sha256,
        file_bytes,
        device,
        runtime,
        tested_on,
        fully_accelerated,
    )
