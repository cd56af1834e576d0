"""Architecture: one index per decision, canonical, JSON both ways, fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

_FINGERPRINT_LENGTH = 12


@dataclasses.dataclass(frozen=True, order=True)
class Architecture:
    """A point of a search space.

    Built by `SearchSpace.architecture`, which sets inactive decisions to 0, so that `==` means the
    same network.

    Attributes:
      space: name of its space.
      choices: for each decision the index of its value.
    """

    space: str
    choices: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.space, str):
            raise ValueError(f"a space is named by a text, got {self.space!r}")
        if any(not isinstance(c, int) or isinstance(c, bool) or c < 0 for c in self.choices):
            raise ValueError(f"choices must be non-negative integers, got {self.choices}")

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that name the network; the name of its folders."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:_FINGERPRINT_LENGTH]

    def to_json(self) -> dict[str, Any]:
        return {"space": self.space, "choices": list(self.choices)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Architecture:
        return cls(data["space"], tuple(data["choices"]))
