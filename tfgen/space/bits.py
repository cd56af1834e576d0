"""BitPolicy: at which bit-widths a runtime executes each op, and in which containers.

Read from configs/runtimes/, one file for each runtime and version, which `//tools:probe_runtime`
writes: what became of single-op models there. What is executed, what is offered and which width a
weight takes in a file all derive from those rows, here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tfgen import errors, workdir
from tfgen.space.layers import OPS, WEIGHTED_OPS

SIMULATED = "simulated"  # a paper's bits, which no runtime executes; export refuses them
TRAINED = (2, 3, 4, 6, 8)  # weight bits that quantization-aware training knows
CONTAINERS = (2, 4, 8)  # INT2, INT4, INT8
ACTIVATIONS = (8, 16)
# Weights alone are quantized: no width of ours, but the files of others have it.
FLOAT_ACTIVATIONS = 32
SOUND = ("exact", "close")
OUTCOMES = (*SOUND, "wrong", "nan", "refused", "crashed")  # from the best to the worst
_UNSOUND = {
    "wrong": "is wrong by up to {:.5g} output steps",
    "nan": "gives NaN",
    "refused": "is refused by the runtime",
    "crashed": "crashes the runtime",
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What a kernel made of an op, against exact arithmetic on the same integers.

    Attributes:
      outcome: one of OUTCOMES; "close" differs by no more than roundings explain.
      max_steps: largest difference, in steps of the output; None without finite outputs.
      mean_steps: mean difference: what the kernel adds to every output.
      reason: the runtime's words, where it gave no output.
    """

    outcome: str
    max_steps: float | None = None
    mean_steps: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome must be one of {OUTCOMES}, got {self.outcome!r}")
        differences = (self.max_steps, self.mean_steps)
        measured = all(isinstance(d, int | float) and math.isfinite(d) for d in differences)
        if measured != (self.outcome in (*SOUND, "wrong")) or (
            measured and (self.outcome == "exact") != (self.max_steps == 0)
        ):
            raise ValueError(f"outcome {self.outcome!r} with differences {differences}")

    @property
    def sound(self) -> bool:
        return self.outcome in SOUND

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in dataclasses.asdict(self).items() if v not in (None, "")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What a runtime makes of an op in one container at one width of activations.

    Attributes:
      op: one of `layers.OPS`.
      container_bits: one of CONTAINERS; 0 for an op without weights.
      activation_bits: one of ACTIVATIONS, or FLOAT_ACTIVATIONS.
      xnnpack: what its fast kernel makes of it; None where it has none.
      builtin: what the kernel makes of it that runs where XNNPACK does not.
      channel_multiple: XNNPACK takes the op only where this divides its input channels.
      time_over_int8: time of the kernel that the runtime chooses, over that of the op with INT8
        weights and activations; None where it was not timed.
    """

    op: str
    container_bits: int
    activation_bits: int
    xnnpack: Result | None
    builtin: Result
    channel_multiple: int = 1
    time_over_int8: float | None = None

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"op must be one of {OPS}, got {self.op!r}")
        containers = CONTAINERS if self.op in WEIGHTED_OPS else (0,)
        if self.container_bits not in containers:
            raise ValueError(
                f"container_bits of {self.op} must be one of {containers}, "
                f"got {self.container_bits!r}"
            )
        widths = (*ACTIVATIONS, FLOAT_ACTIVATIONS)
        if self.activation_bits not in widths:
            raise ValueError(
                f"activation_bits must be one of {widths}, got {self.activation_bits!r}"
            )
        if not isinstance(self.channel_multiple, int) or self.channel_multiple < 1:
            raise ValueError(f"channel_multiple must be at least 1, got {self.channel_multiple!r}")
        time = self.time_over_int8
        if time is not None and not (isinstance(time, int | float) and 0 < time < math.inf):
            raise ValueError(f"time_over_int8 must be above 0, got {time!r}")

    @property
    def sound(self) -> bool:
        """Whether the op may be used: a file runs with XNNPACK or without, as its place has it."""
        return all(result.sound for result in (self.xnnpack, self.builtin) if result is not None)

    def to_json(self) -> dict[str, Any]:
        results = {
            name: result and result.to_json()
            for name, result in (("xnnpack", self.xnnpack), ("builtin", self.builtin))
        }
        return {**dataclasses.asdict(self), **results}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        results = {
            "xnnpack": None if data["xnnpack"] is None else Result(**data["xnnpack"]),
            "builtin": Result(**data["builtin"]),
        }
        return cls(**{**data, **results})


@dataclasses.dataclass(frozen=True)
class BitPolicy:
    """The bit-widths that a runtime executes.

    Attributes:
      name: the runtime and its version, the file's name.
      rows: at most one for each op, container and width of activations; what has none is not
        executed.
    """

    name: str
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        keys = [(row.op, row.container_bits, row.activation_bits) for row in self.rows]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"more than one row for {twice}")

    def weight_bits(
        self, op: str, activation_bits: int = 8, compact: bool = False
    ) -> tuple[int, ...]:
        """The menu of weight bits that a space offers for an op, ascending.

        Widths that fill their container: 3 and 6 bits take the bytes of 4 and 8.

        Args:
          op: one with weights.
          activation_bits: of the network.
          compact: whether bytes count more than time, so that containers narrower than INT8 are
            offered even where only a slow built-in kernel reads them.
        """
        return tuple(
            row.container_bits
            for row in self._sound(op, activation_bits)
            if row.container_bits == 8 or row.xnnpack is not None or compact
        )

    def executes(self, op: str, weight_bits: int, activation_bits: int) -> bool:
        """Whether the runtime soundly executes an op at these bits, offered or not.

        Args:
          op: one of `layers.OPS`.
          weight_bits: 0 for an op without weights.
          activation_bits: of the network.
        """
        return self._row(op, weight_bits, activation_bits) is not None

    def container_bits(
        self, op: str, weight_bits: int, activation_bits: int, in_channels: int
    ) -> int:
        """Width in the file of one weight; see `containers`."""
        return int(
            self.containers(op, weight_bits, activation_bits, np.array([in_channels], np.int64))[0]
        )

    def containers(
        self, op: str, weight_bits: int, activation_bits: int, in_channels: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Width in the file of one weight: the narrowest sound container that holds it [layers].

        Where XNNPACK reads a container for some numbers of input channels only, the others take the
        next wider one: built-in kernels round otherwise than training did, and what a few narrow
        layers add up to is another network.

        Args:
          op: one of `layers.OPS`.
          weight_bits: one of TRAINED; 0 for an op without weights.
          activation_bits: of the network.
          in_channels: of each layer [layers].

        Raises:
          UsageError: the runtime does not execute this; names the menu.
        """
        narrowest = self._executed(op, weight_bits, activation_bits).container_bits
        widths = np.full(len(in_channels), narrowest, np.int64)
        for row in reversed(self._sound(op, activation_bits)):
            if row.container_bits >= narrowest:
                fits = row.xnnpack is None or in_channels % row.channel_multiple == 0
                widths = np.where(fits, row.container_bits, widths)
        return widths

    def accelerated(self, op: str, weight_bits: int, activation_bits: int = 8) -> bool:
        """Whether XNNPACK, the runtime's fast kernels, takes the op at these bits.

        Raises:
          UsageError: the runtime does not execute this; names the menu.
        """
        return self._executed(op, weight_bits, activation_bits).xnnpack is not None

    def unsafe(self, op: str, container_bits: int, activation_bits: int) -> str | None:
        """Why an op must not be stored in a container; None where it may."""
        kind = "float" if activation_bits == FLOAT_ACTIVATIONS else f"{activation_bits}-bit"
        what = f"{container_bits}-bit {op}" if container_bits else op
        what += f" with {kind} activations"
        key = (op, container_bits, activation_bits)
        for row in self.rows:
            if (row.op, row.container_bits, row.activation_bits) != key:
                continue
            for result in (row.xnnpack, row.builtin):
                if result is not None and not result.sound:
                    return f"{what} {_UNSOUND[result.outcome].format(result.max_steps)}"
            return None
        return f"{what} was not tried"

    def _sound(self, op: str, activation_bits: int) -> list[Row]:
        """The rows of an op that tfgen uses, the narrowest container first."""
        rows = [row for row in self.rows if (row.op, row.activation_bits) == (op, activation_bits)]
        rows = [row for row in rows if row.sound and row.activation_bits in ACTIVATIONS]
        return sorted(rows, key=lambda row: row.container_bits)

    def _row(self, op: str, weight_bits: int, activation_bits: int) -> Row | None:
        """How the runtime executes an op at these bits; None where it does not."""
        if weight_bits not in (TRAINED if op in WEIGHTED_OPS else (0,)):
            return None
        rows = self._sound(op, activation_bits)
        return next((row for row in rows if row.container_bits >= weight_bits), None)

    def _executed(self, op: str, weight_bits: int, activation_bits: int) -> Row:
        row = self._row(op, weight_bits, activation_bits)
        if row is not None:
            return row
        if op not in WEIGHTED_OPS:
            raise errors.UsageError(
                f"{self.name} does not execute {op} with {activation_bits}-bit activations"
            )
        menu = ", ".join(map(str, self.weight_bits(op, activation_bits, compact=True))) or "no"
        raise errors.UsageError(
            f"{self.name} does not execute {op} with {weight_bits}-bit weights and "
            f"{activation_bits}-bit activations; weights may have {menu} bits"
        )


@functools.cache
def load(name: str) -> BitPolicy:
    """The policy of that name.

    Raises:
      UsageError: there is none; names the known ones.
      CorruptFileError: a row of its file is malformed; names the file and the row.
    """
    folder = workdir.package_root() / "configs" / "runtimes"
    path = folder / f"{name}.json"
    known = sorted(p.stem for p in folder.glob("*.json"))
    if name not in known:
        raise errors.UsageError(f"unknown runtime {name!r}; known: {', '.join(known)}")
    return from_json(name, workdir.read_json(path), str(path))


def from_json(name: str, data: Any, source: str) -> BitPolicy:
    """The policy in a file's content; raises CorruptFileError that names `source` and the row."""
    if not isinstance(data, dict) or not isinstance(data.get("rows"), list):
        raise errors.CorruptFileError(f"{source}: is no runtime's file: it has no rows")
    rows = []
    for number, row in enumerate(data["rows"], 1):
        try:
            rows.append(Row.from_json(row))
        except errors.MALFORMED as error:
            raise errors.CorruptFileError(f"{source}: row {number}: {error}") from error
    try:
        return BitPolicy(name, tuple(rows))
    except errors.MALFORMED as error:
        raise errors.CorruptFileError(f"{source}: {error}") from error
