"""LatencyTable: what files took on a device, kept as JSON; refuses a foreign device or runtime.

Ops are timed as small files, networks whole. The same type holds both: what `profile_device` timed
once, and the networks that each `generate` adds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfgen import errors, workdir
from tfgen.space.architecture import Architecture
from tfgen.space.layers import LayerSpec
from tfgen.space.search_space import SearchSpace

KIND = "profiled"
# A name stands in budgets and is a file's: no sign of either.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# How a network came to be timed: drawn at random, or as the answer to a budget.
ORIGINS = ("random", "selected")
_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(LayerSpec)
    if field.default is not dataclasses.MISSING
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """A processor and what runs files on it.

    Attributes:
      name: what budgets call it.
      processor: as its operating system describes it.
      runtime: with version.
      threads: of the runtime.
      delegate: what runs the ops that it can, such as "xnnpack".
      governor: of the processor's clock, as far as it can be read.
    """

    name: str
    processor: str
    runtime: str
    threads: int
    delegate: str = "xnnpack"
    governor: str = "unknown"

    def __post_init__(self) -> None:
        check_name(self.name)
        if not isinstance(self.threads, int) or self.threads < 1:
            raise ValueError(f"a device has a thread: {self}")
        texts = (self.processor, self.runtime, self.delegate, self.governor)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"a device is described in words: {self}")

    def check_same(self, found: Device) -> None:
        """Raises UsageError where latencies of this device say nothing about the one found."""
        for what in ("processor", "runtime", "threads", "delegate"):
            ours, theirs = getattr(self, what), getattr(found, what)
            if ours != theirs:
                raise errors.UsageError(
                    f"latencies of device {self.name!r} were measured with {what} {ours!r}, here "
                    f"it is {theirs!r}; profile it anew: profile_device --device=NAME --space=SPACE"
                )


def check_name(name: str) -> None:
    """Raises UsageError for what cannot be a device's name."""
    if not _NAME.fullmatch(name):
        raise errors.UsageError(
            "a device's name has letters, digits, '.', '-' and '_' and begins with one of the "
            f"first two, got {name!r}"
        )


def _check_times(latency_ms: float, spread: float) -> None:
    if not (math.isfinite(latency_ms) and latency_ms > 0):
        raise ValueError(f"a latency must be a finite number above 0, got {latency_ms}")
    if not (math.isfinite(spread) and spread >= 0):
        raise ValueError(f"a spread must be a finite number of at least 0, got {spread}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpTiming:
    """What a file of one op took, with the ops that make its inputs where it needs some.

    Attributes:
      layers: of the file; its input and output are integers, or floats where activations are.
      latency_ms: of one inference, the interpreter's own time included: the least of the windows.
      spread: by how much the middle window is over the least, as a share.
      quiet_windows: how many windows no other work disturbed; 0 for a doubtful latency.
    """

    layers: tuple[LayerSpec, ...]
    latency_ms: float
    spread: float
    quiet_windows: int

    def __post_init__(self) -> None:
        _check_times(self.latency_ms, self.spread)
        if not self.layers:
            raise ValueError("an op that was timed has a layer")

    @property
    def activation_bits(self) -> int:
        return self.layers[0].activation_bits

    def to_json(self) -> dict[str, Any]:
        layers = [
            {k: v for k, v in layer.to_json().items() if k not in _DEFAULTS or v != _DEFAULTS[k]}
            for layer in self.layers
        ]
        return {**dataclasses.asdict(self), "layers": layers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OpTiming:
        sizes = {"in_size": (), "out_size": ()}
        layers = tuple(LayerSpec.from_json({**sizes, **layer}) for layer in data["layers"])
        return cls(**{**data, "layers": layers})


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkTiming:
    """What a whole network took.

    Attributes:
      architecture: of the network.
      activation_bits: 32 for a network of float32.
      io: "float", or "int8" for integer input and output.
      origin: one of ORIGINS.
      latency_ms: of one inference: the least of the windows.
      spread: by how much the middle window is over the least, as a share.
      quiet_windows: how many windows no other work disturbed; 0 for a doubtful latency.
    """

    architecture: Architecture
    activation_bits: int
    io: str
    origin: str
    latency_ms: float
    spread: float
    quiet_windows: int

    def __post_init__(self) -> None:
        _check_times(self.latency_ms, self.spread)
        if self.origin not in ORIGINS:
            raise ValueError(f"origin must be one of {ORIGINS}, got {self.origin!r}")
        if not (isinstance(self.activation_bits, int) and isinstance(self.io, str)):
            raise ValueError(f"a network has bits and ends: {self}")

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "architecture": self.architecture.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NetworkTiming:
        return cls(**{**data, "architecture": Architecture.from_json(data["architecture"])})


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """All that was timed on a device.

    Attributes:
      device: where.
      date: of the last profile.
      reference_ms: the least that a fixed file took, to tell later how fast the device then is.
      repeatability: median difference between two timings of one file in one run, as a share; the
        worst of the profiles that the table holds.
      ops: timed alone.
      networks: timed whole.
    """

    device: Device
    date: str
    reference_ms: float
    repeatability: float
    ops: tuple[OpTiming, ...]
    networks: tuple[NetworkTiming, ...]

    def __post_init__(self) -> None:
        _check_times(self.reference_ms, self.repeatability)
        if not isinstance(self.date, str):
            raise ValueError(f"a date is a text, got {self.date!r}")

    def adding(
        self, ops: Sequence[OpTiming] = (), networks: Sequence[NetworkTiming] = ()
    ) -> LatencyTable:
        """This table and more timings; of what was timed twice the later counts."""
        by_layers = {timing.layers: timing for timing in (*self.ops, *ops)}
        by_network = {
            (timing.architecture, timing.activation_bits, timing.io, timing.origin): timing
            for timing in (*self.networks, *networks)
        }
        return dataclasses.replace(
            self, ops=tuple(by_layers.values()), networks=tuple(by_network.values())
        )

    def timed(self, space: SearchSpace, activation_bits: int, origin: str) -> list[NetworkTiming]:
        """The networks of a space and a width of activations that were timed for one reason."""
        return [
            timing
            for timing in self.networks
            if timing.architecture.space == space.name
            and (timing.activation_bits, timing.origin) == (activation_bits, origin)
            and len(timing.architecture.choices) == len(space.decisions)
        ]

    def joined(self, later: LatencyTable) -> LatencyTable:
        """This table and a later one of the same device; raises UsageError for another device."""
        self.device.check_same(later.device)
        both = self.adding(later.ops, later.networks)
        return dataclasses.replace(
            both,
            date=later.date,
            reference_ms=min(self.reference_ms, later.reference_ms),
            repeatability=max(self.repeatability, later.repeatability),
        )

    def save(self, path: pathlib.Path) -> None:
        """Writes the table, a timing a line."""
        head = {
            "kind": KIND,
            "device": dataclasses.asdict(self.device),
            "date": self.date,
            "reference_ms": self.reference_ms,
            "repeatability": self.repeatability,
        }
        text = json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
        for name, timings in (("ops", self.ops), ("networks", self.networks)):
            lines = ",\n".join(f"  {json.dumps(t.to_json(), allow_nan=False)}" for t in timings)
            text += f',\n "{name}": [\n{lines}\n ]' if timings else f',\n "{name}": []'
        workdir.write_bytes(path, f"{text}\n}}\n".encode())


def load(path: pathlib.Path) -> LatencyTable:
    """The table in a file; raises CorruptFileError that names the file."""
    data = workdir.read_json(path)
    try:
        return LatencyTable(
            device=Device(**data["device"]),
            date=data["date"],
            reference_ms=data["reference_ms"],
            repeatability=data["repeatability"],
            ops=tuple(map(OpTiming.from_json, data["ops"])),
            networks=tuple(map(NetworkTiming.from_json, data["networks"])),
        )
    except (*errors.MALFORMED, errors.UsageError) as error:
        raise errors.CorruptFileError(f"{path}: is no table of latencies ({error})") from error
