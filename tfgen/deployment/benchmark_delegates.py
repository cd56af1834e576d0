"""Which delegate ran the ops, by what `benchmark_model` says: not always the one asked for."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable, Mapping

from tfgen import errors

ASKED = ("none", "xnnpack", "gpu", "nnapi")  # delegates that may be asked for
# Asked for, these must have run; what the CPU runs instead is another measurement.
ACCELERATORS = ("gpu", "nnapi")

_APPLIED = re.compile(
    r"(?:Explicitly a|A)pplied (.+?) delegate, and the model graph will be "
    r"(completely|partially) executed (?:by|w/)"
)
_REPLACING = re.compile(r"Replacing (\d+)(?: out of (\d+))? node\(s\) with delegate \(([^)]*)\)")
_PARTITIONS = re.compile(r"yielding (\d+) partitions")
_NOT_APPLIED = (
    re.compile(r"Though (.+?) delegate is explicitly applied, the model graph will not be"),
    re.compile(r"Failed to apply (.+?) delegate"),
    re.compile(r"Created 0 (.+?) delegate kernels"),
    re.compile(r"(nnapi) error: "),
    # Android's own NNAPI "accelerator" is the CPU.
    re.compile(r"(NNAPI) accelerators available: \[(?:nnapi-reference)?\]"),
)
_IN_PART = re.compile(r"operations will run on the (GPU), and the remaining [1-9]")
_XNNPACK_MADE = "Created TensorFlow Lite XNNPACK delegate for CPU"
_IGNORED = re.compile(r"Unconsumed cmdline flags:.*--use_(gpu|nnapi)")
_ALL_TAKEN = re.compile(r"Fully accelerated: +(True|False)")


class Share(enum.IntEnum):
    """How many of the ops a delegate took."""

    NONE = 0
    SOME = 1
    ALL = 2


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What an output says of delegates.

    Attributes:
      taken: each delegate's share of the ops, with the line that tells it; the least told is kept.
      xnnpack_made: whether there was one at all.
      ignored: accelerators whose flag the tool does not know.
      all_taken: LiteRT's word on all its accelerators together; it says True of some CPU runs.
    """

    taken: Mapping[str, tuple[Share, str]]
    xnnpack_made: bool
    ignored: frozenset[str]
    all_taken: bool | None


def read(lines: Iterable[str]) -> Evidence:
    """Finds what is said of delegates in lines without their prefixes."""
    taken: dict[str, tuple[Share, str]] = {}
    made, ignored, all_taken = False, set(), None
    for line in lines:
        told = [(match[1], Share.NONE) for p in _NOT_APPLIED if (match := p.search(line))]
        if match := _APPLIED.search(line):
            told.append((match[1], Share.ALL if match[2] == "completely" else Share.SOME))
        elif match := _REPLACING.search(line):
            told.append((match[3], _replaced(match, line)))
        elif match := _IN_PART.search(line):
            told.append((match[1], Share.SOME))
        elif match := _ALL_TAKEN.match(line):
            all_taken = match[1] == "True"
        elif match := _IGNORED.search(line):
            ignored.add(match[1])
        made |= _XNNPACK_MADE in line
        for name, share in told:
            kind = _kind(name)
            if kind is not None and (kind not in taken or share < taken[kind][0]):
                taken[kind] = share, line
    return Evidence(taken, made, frozenset(ignored), all_taken)


def ran(evidence: Evidence, asked: str, allow_partial: bool) -> tuple[str | None, bool | None]:
    """What ran the ops, one of ASKED, and whether it took them all; None where nothing tells.

    Args:
      evidence: of the output.
      asked: one of ASKED.
      allow_partial: whether the CPU may have run some ops beside an accelerator.

    Raises:
      DeviceError: an accelerator was asked for and is not shown to have run.
    """
    if asked in ACCELERATORS:
        share, line = evidence.taken.get(asked, (None, ""))
        if share == Share.ALL or (share == Share.SOME and allow_partial):
            return asked, share == Share.ALL
        raise errors.DeviceError(_why_not(evidence, asked, share, line))
    for kind in (*ACCELERATORS, "xnnpack"):
        share, _ = evidence.taken.get(kind, (Share.NONE, ""))
        if share != Share.NONE:
            return kind, share == Share.ALL
    if evidence.xnnpack_made and "xnnpack" not in evidence.taken:
        return "xnnpack", evidence.all_taken
    return None, evidence.all_taken


def _why_not(evidence: Evidence, asked: str, share: Share | None, line: str) -> str:
    name = asked.upper()
    if share == Share.SOME:
        return (
            f"{name} was asked for and took only a part of the ops, the CPU the rest ({line}); "
            "allow a part, or give a file that it takes whole"
        )
    if share == Share.NONE:
        return f"{name} was asked for and took no op: the CPU ran the file ({line})"
    why = "the tool does not know its flag" if asked in evidence.ignored else "nothing says so"
    return (
        f"{name} was asked for and is not shown to have run the file: {why}; take a "
        "benchmark_model that has this delegate and tells what it took"
    )


def _kind(name: str) -> str | None:
    """Which of ours a delegate's name means; None for others, such as Hexagon."""
    name = name.lower()
    if "gpu" in name or name.startswith(("litert_", "ml_drift_")):
        return "gpu"
    return next((kind for kind in ("nnapi", "xnnpack") if kind in name), None)


def _replaced(match: re.Match[str], line: str) -> Share:
    if match[1] == "0":
        return Share.NONE
    if match[2] is None:  # before 2021 it did not say of how many
        partitions = _PARTITIONS.search(line)
        return Share.ALL if partitions and partitions[1] == "1" else Share.SOME
    return Share.ALL if match[1] == match[2] else Share.SOME
