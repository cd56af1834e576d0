"""What a run of one file on one device took: the same type for this host and for a phone."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from tfgen import tables

# What ran the ops. "none" is the runtime's own kernels; "unknown" where the tool did not say.
DELEGATES = ("none", "xnnpack", "gpu", "nnapi", "unknown")

_TIMES = (
    "median_ms",
    "mean_ms",
    "p90_ms",
    "p95_ms",
    "std_ms",
    "min_ms",
    "init_ms",
    "inference_mj",
    "spread",
    "reference_ms",
)
_COUNTS = ("quiet_windows", "warmup", "peak_memory_kb", "peak_rss_kb", "base_rss_kb", "file_bytes")
_FROM_ONE = ("runs", "threads")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpTime:
    """One row of a per-op profile.

    Attributes:
      name: the op's output tensor, or what the delegate calls its part.
      type: of the op, such as CONV_2D; a delegate's own name for what it took.
      mean_ms: of one inference.
      calls: in one inference; some tools of 2019 write 0.
    """

    name: str
    type: str
    mean_ms: float
    calls: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean_ms) and self.mean_ms >= 0) or self.calls < 0:
            raise ValueError(f"op {self.name!r}: need mean_ms >= 0 and calls >= 0, got {self}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One file on one device; the spread is over single inferences of one example.

    Attributes:
      latency_ms: the number that contracts use. On this host the least of the windows' medians; on
        Android the median where the tool tells it, otherwise the mean.
      median_ms, mean_ms, p90_ms, p95_ms, std_ms, min_ms: of single inferences; None where the tool
        does not tell.
      spread: by how much the middle window's median is over the least, as a share; host only.
      quiet_windows: how many windows no other work disturbed; host only.
      reference_ms: what the reference of `timing` took: how fast the host was just then.
      init_ms: from the file to the first inference's start.
      inference_mj: what one takes beyond what the machine takes idle, by its energy counters; None
        where they cannot be read, or told nothing since something else ran.
      runs: inferences timed.
      warmup: inferences before them.
      threads: of the runtime; None where it chose.
      peak_memory_kb: by how much the process's peak grew from before it opened the file.
      peak_rss_kb: peak of the whole process, its interpreter and libraries included.
      base_rss_kb: of the same process before it opened the file.
      runtime: what ran the file, with version or hash.
      device: where.
      delegate: what really ran the ops, one of DELEGATES; not what was asked.
      fully_accelerated: whether that took every op; None where the runtime cannot tell.
      ops: the profile in the order of execution; () where none was asked.
      file_bytes: of the file.
      sha256: of the file, in hex.
    """

    latency_ms: float
    median_ms: float | None = None
    mean_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    std_ms: float | None = None
    min_ms: float | None = None
    spread: float | None = None
    quiet_windows: int | None = None
    reference_ms: float | None = None
    init_ms: float | None = None
    inference_mj: float | None = None
    runs: int | None = None
    warmup: int | None = None
    threads: int | None = None
    peak_memory_kb: int | None = None
    peak_rss_kb: int | None = None
    base_rss_kb: int | None = None
    runtime: str
    device: str
    delegate: str
    fully_accelerated: bool | None = None
    ops: tuple[OpTime, ...] = ()
    file_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_ms) and self.latency_ms > 0):
            raise ValueError(f"latency_ms must be a positive number, got {self.latency_ms}")
        for name in _TIMES:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be at least 0, got {value}")
        for names, least in ((_COUNTS, 0), (_FROM_ONE, 1)):
            for name in names:
                value = getattr(self, name)
                if value is not None and value < least:
                    raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.delegate not in DELEGATES:
            raise ValueError(f"delegate must be one of {DELEGATES}, got {self.delegate!r}")
        if not self.runtime or not self.device:
            raise ValueError(
                f"runtime and device need names, got {self.runtime!r}, {self.device!r}"
            )
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 must be 64 hex digits, got {self.sha256!r}")

    def to_json(self) -> dict[str, Any]:
        """Fields by name, `ops` as a list of them."""
        return {**dataclasses.asdict(self), "ops": [dataclasses.asdict(op) for op in self.ops]}

    def to_text(self) -> str:
        """A line for each field that is known, and the profile below them."""
        known = [(k, v) for k, v in vars(self).items() if k != "ops" and v is not None]
        lines = [f"{k:<20}{v:.6g}" if isinstance(v, float) else f"{k:<20}{v}" for k, v in known]
        if self.ops:
            rows = [(op.name, op.type, f"{op.mean_ms:.6g}", str(op.calls)) for op in self.ops]
            lines += ["", tables.table(("op", "type", "mean_ms", "calls"), rows)]
        return "\n".join(lines)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_json`; raises ValueError or TypeError where `data` is none."""
        return cls(**{**data, "ops": tuple(OpTime(**op) for op in data.get("ops", ()))})
