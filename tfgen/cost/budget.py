"""Cost and Budget: what a network takes, and what a user allows."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfgen import errors

# Units live in the name; 1 kB is 1,000 bytes.
COST_METRICS = (
    "params",
    "macs",
    "storage_kb",
    "energy_uj",
    "peak_ram_kb",
    "latency_ms",
    "file_kb",
)
# The best value of each quality metric; all are 0 or more, and more is better.
QUALITY_METRICS = {"r2": 1.0, "accuracy": 1.0, "pixel_accuracy": 1.0, "map50": 1.0}
SOURCES = ("counted", "predicted", "measured")
MOST = 1e15  # that a budget may allow of anything
_MOST_CHARACTERS = 1_000  # of a budget as text
_TERM = re.compile(r"(?P<name>[^=<>]*)(?P<sign><=|>=|=)(?P<value>.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number and where it comes from: one of SOURCES."""

    value: float
    source: str

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source must be one of {SOURCES}, got {self.source!r}")
        if not math.isfinite(self.value) or self.value < 0:
            raise ValueError(f"a cost must be finite and not negative, got {self.value}")


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one network takes, by metric; a metric that nobody counted or measured is absent."""

    quantities: Mapping[str, Quantity]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.quantities) - set(COST_METRICS))
        if unknown:
            raise ValueError(f"unknown cost metrics {unknown}; known: {', '.join(COST_METRICS)}")

    def __getitem__(self, metric: str) -> float:
        return self.quantities[metric].value

    def __contains__(self, metric: object) -> bool:
        return metric in self.quantities

    def to_json(self) -> dict[str, Any]:
        return {m: dataclasses.asdict(q) for m, q in self.quantities.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cost:
        return cls({m: Quantity(**q) for m, q in data.items()})


@dataclasses.dataclass(frozen=True)
class Budget:
    """Upper limits on costs, a lower limit on the task's metric, a device when latency is limited.

    Attributes:
      limits: cost metric -> the most that is allowed, above 0.
      quality: (metric, the least that is asked), or None.
      device: where latency counts; set exactly when `latency_ms` is limited.
    """

    limits: Mapping[str, float]
    quality: tuple[str, float] | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        for metric, limit in self.limits.items():
            if metric not in COST_METRICS:
                raise errors.UsageError(_unknown(metric))
            if not (_is_number(limit) and 0 < limit <= MOST):  # NaN fails too
                raise errors.UsageError(
                    f"budget {metric}={_told(limit)}: a limit must be a finite number above 0, "
                    f"{MOST:g} at most"
                )
        if self.quality is not None:
            metric, least = self.quality
            if not isinstance(metric, str) or metric not in QUALITY_METRICS:
                raise errors.UsageError(_unknown(metric))
            if not (_is_number(least) and 0 <= least <= QUALITY_METRICS[metric]):
                raise errors.UsageError(
                    f"budget {metric}={_told(least)}: must lie in 0..{QUALITY_METRICS[metric]:g}"
                )
        if not self.limits and self.quality is None:
            raise errors.UsageError("an empty budget: name at least one limit")
        if not isinstance(self.device, str | None):
            raise errors.UsageError(f"a device is named by a text, got {self.device!r}")
        if (self.device is not None) != ("latency_ms" in self.limits):
            raise errors.UsageError(
                "latency needs a device and a device needs a latency: latency_ms=5@DEVICE"
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads `storage_kb=64,accuracy>=0.87,latency_ms=5@pixel3`; raises UsageError."""
        if len(text) > _MOST_CHARACTERS:
            raise errors.UsageError(
                f"a budget has {len(text):,} characters, {_MOST_CHARACTERS:,} are allowed"
            )
        limits: dict[str, float] = {}
        quality: tuple[str, float] | None = None
        device: str | None = None
        for term in text.split(","):
            match = _TERM.fullmatch(term.strip())
            if not match:
                raise errors.UsageError(
                    f"budget {term.strip()!r} is not of the form metric=number, as in "
                    "storage_kb=64,accuracy=0.87"
                )
            name, sign = match["name"].strip(), match["sign"]
            if name not in COST_METRICS and name not in QUALITY_METRICS:
                raise errors.UsageError(_unknown(name))
            if name in limits or (quality and quality[0] == name):
                raise errors.UsageError(f"budget names {name} twice: {text!r}")
            number, at, place = match["value"].partition("@")
            if at and (name != "latency_ms" or not place.strip()):
                raise errors.UsageError(f"budget {term.strip()!r}: only latency_ms takes @DEVICE")
            value = _number(name, number)
            if name in QUALITY_METRICS:
                if sign == "<=":
                    raise errors.UsageError(f"{name} is a lower limit: write {name}>={value:g}")
                if quality:
                    raise errors.UsageError(
                        f"budget names two quality metrics, {quality[0]} and {name}: give one"
                    )
                quality = (name, value)
            else:
                if sign == ">=":
                    raise errors.UsageError(f"{name} is an upper limit: write {name}<={value:g}")
                limits[name] = value
                device = place.strip() if at else device
        return cls(limits, quality, device)

    def __str__(self) -> str:
        terms = [
            f"{m}={v:.6g}" + (f"@{self.device}" if m == "latency_ms" else "")
            for m, v in self.limits.items()
        ]
        if self.quality:
            terms.append(f"{self.quality[0]}={self.quality[1]:.6g}")
        return ",".join(terms)

    def admits(self, cost: Mapping[str, float]) -> bool:
        """Whether no known cost is over its limit; raises KeyError for a limit without a cost."""
        return all(cost[metric] <= limit for metric, limit in self.limits.items())

    def headroom(self, cost: Mapping[str, float]) -> dict[str, float]:
        """What is left under each limit as a share of it; negative where the limit is exceeded."""
        return {m: (limit - cost[m]) / limit for m, limit in self.limits.items()}

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"limits": dict(self.limits)}
        if self.quality:
            data["quality"] = {"metric": self.quality[0], "least": self.quality[1]}
        if self.device:
            data["device"] = self.device
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Budget:
        quality = data.get("quality")
        pair = (quality["metric"], quality["least"]) if quality else None
        return cls(dict(data["limits"]), pair, data.get("device"))


def parse_all(texts: Sequence[str]) -> list[Budget]:
    """Parses each `--budget`; raises UsageError where there is none."""
    if not texts:
        raise errors.UsageError("give at least one --budget, as in --budget=storage_kb=64,r2=0.7")
    return [Budget.parse(text) for text in texts]


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _told(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _unknown(name: object) -> str:
    known = ", ".join((*COST_METRICS, *QUALITY_METRICS))
    return f"unknown metric {name!r}; known: {known}"


def _number(name: str, text: str) -> float:
    if not re.fullmatch(r"[-+.0-9a-zA-Z]+", text.strip()):  # float() also takes 1_0
        raise errors.UsageError(f"budget {name}={text.strip()!r}: not a number")
    try:
        return float(text)
    except ValueError:
        raise errors.UsageError(f"budget {name}={text.strip()!r}: not a number") from None


def rounded_up(value: float) -> float:
    """A cost rounded up to four digits, so that the printed budget admits it."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.4g}")
