"""Reads what `benchmark_model` says: TFLite's tool of 2018 to 2026, and LiteRT's two.

The tools print text for people, in microseconds or milliseconds, after prefixes of logcat, of the
log's level and of the source line. They also run on when a delegate takes nothing, so what is read
here is first of all whether the numbers are of what was asked.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tfgen import errors
from tfgen.deployment import benchmark_delegates
from tfgen.deployment.measurement import OpTime

_NUMBER = r"\d{1,15}(?:\.\d{1,15})?(?:e[-+]\d\d)?(?![\w.])"
_PREFIX = re.compile(
    r"(?:"
    # logcat -v threadtime, the default
    r"(?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d\.\d+ +\d+ +\d+ [VDIWEF] [^:]*: "
    # logcat -v time and -v brief
    r"|(?:(?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d\.\d+ )?[VDIWEF]/[^:(]*(?:\( *\d+\))?: "
    # Android Studio since 2022
    r"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ +\d+-\d+ +\S+ +\S+ +[VDIWEF]  "
    r")?"
    r"(?:(?:VERBOSE|INFO|WARN|WARNING|ERROR|FATAL): ?)?"
    r"(?:\[[\w./-]+:\d+\] ?)?"
)
_BLOCK = re.compile(r"(?:count|curr)=")
_FIELD = re.compile(rf"(\w+)=({_NUMBER})")
_TFLITE = re.compile(r"(?:Average i|I)nference timings in us: (.*)")
_NAMED = re.compile(rf"([^:,]+): ({_NUMBER})")
_TFLITE_TOOL, _LITERT_TOOL = "TFLite benchmark_model", "LiteRT benchmark_model"
_TFLITE_MEAN = ("Inference (avg)", "Inference", "no stats")  # newest first
_TFLITE_WARMUP = ("Warmup (avg)", "Warmup")
_LITERT = re.compile(
    rf"(Inference|Warmup) \((\w+)\): +({_NUMBER})(?: ms)?(?: \((\d{{1,9}}) runs\))?$"
)
_LITERT_INIT = re.compile(rf"Model initialization: +({_NUMBER}) ms$")
_LITERT_ROUNDED_MS = 0.01
_SIX_DIGITS = 6e-6  # relative: C++ prints doubles so

_KB = 1024.0  # in what the tools call a MB
_GROWN = re.compile(
    rf"(?:Peak memory footprint|Memory footprint delta from the start of the tool) \(MB\): "
    rf"init=-?{_NUMBER} overall=({_NUMBER})|Overall footprint: +({_NUMBER}) MB"
)
_PEAK = re.compile(
    rf"(?:Overall peak memory footprint \(MB\) via periodic monitoring: ({_NUMBER})"
    rf"|Peak memory: +({_NUMBER}) MB)"
)

_PROFILE = re.compile(r"=+ (.+?) =+$")
_CELL = re.compile(r"\t\s*|\s{2,}")

# What is fatal, and what to do about it.
_FAILURES = (
    (
        r"not executable: \d+-bit ELF|Exec format error|wrong ELF class|bad ELF magic"
        r"|unexpected e_machine|CANNOT LINK EXECUTABLE",
        "this benchmark_model is not for the phone's processor or Android version; give the one "
        "that was built for it",
    ),
    (
        r"Didn't find op for builtin opcode",
        "this benchmark_model is older than the file and lacks one of its ops; take a newer one",
    ),
    (
        r"Encountered unresolved custom op|Unresolved custom op",
        "the file has an op that no plain benchmark_model has",
    ),
    (
        r"Disallowed CPU fallback detected|Some ops are not accelerated",
        "the delegate does not take every op, and the rest would run on the CPU",
    ),
    (r"Failed to mmap model|Failed to load model", "benchmark_model cannot open the file"),
    (r"Benchmarking failed|Failed to invoke|^Run failed", "benchmark_model failed"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What one run of a tool says; fields as in `Measurement`.

    Attributes:
      tool: "TFLite benchmark_model" or "LiteRT benchmark_model".
      mean_ms: of the timed runs; always there.
    """

    tool: str
    mean_ms: float
    median_ms: float | None = None
    p95_ms: float | None = None
    std_ms: float | None = None
    min_ms: float | None = None
    init_ms: float | None = None
    runs: int | None = None
    warmup: int | None = None
    peak_memory_kb: int | None = None
    peak_rss_kb: int | None = None
    delegate: str = "none"
    fully_accelerated: bool | None = None
    ops: tuple[OpTime, ...] = ()

    @property
    def latency_ms(self) -> float:
        """The median where there is one; one of 0 is less than the tool's clock resolves."""
        return self.median_ms or self.mean_ms


def parse(text: str, *, delegate: str = "none", allow_partial: bool = False) -> Output:
    """Reads the output of one run.

    Args:
      text: all that the tool wrote, or its part of a logcat.
      delegate: what was asked for, one of `benchmark_delegates.ASKED`.
      allow_partial: whether the CPU may have run some ops beside an accelerator.

    Raises:
      DeviceError: the tool failed, timed nothing, was cut off, or did not run what was asked.
    """
    lines = [_PREFIX.sub("", line.lstrip(), count=1).strip() for line in text.split("\n")]
    failure = failure_in(lines)
    if failure is not None:
        raise errors.DeviceError(failure)
    summary = _summary(lines)
    ran, full = benchmark_delegates.ran(benchmark_delegates.read(lines), delegate, allow_partial)
    if ran is None:  # LiteRT's tool uses XNNPACK by itself and says so to logcat alone
        ran = "unknown" if summary.tool == _LITERT_TOOL else "none"
    return dataclasses.replace(
        summary,
        peak_memory_kb=_memory_kb(_GROWN, lines),
        peak_rss_kb=_memory_kb(_PEAK, lines),
        delegate=ran,
        fully_accelerated=full,
        ops=_profile(lines),
    )


def failure_in(lines: Iterable[str]) -> str | None:
    """What went wrong and the line that tells it; None where none does."""
    for line in lines:
        for pattern, meaning in _FAILURES:
            if re.search(pattern, line):
                return f"{meaning} ({line})"
    return None


def _summary(lines: Sequence[str]) -> Output:
    blocks = [_block(line) for line in lines if _BLOCK.match(line)]
    tflite = [match[1] for match in map(_TFLITE.match, lines) if match]
    litert = [match for match in map(_LITERT.match, lines) if match]
    if len(tflite) > 1 or sum(m.group(1, 2) == ("Inference", "avg") for m in litert) > 1:
        raise errors.DeviceError(
            "the output is of several runs; give that of one (adb logcat -c clears the log)"
        )
    if litert:
        inits = [float(m[1]) for m in map(_LITERT_INIT.match, lines) if m]
        return _litert_summary(litert, inits, blocks)
    if not tflite:
        raise errors.DeviceError(
            "benchmark_model wrote no summary: it was cut off, or its version is not understood; "
            f"its last line: {_last(lines)!r}"
        )
    return _tflite_summary(tflite[0], blocks)


def _tflite_summary(line: str, blocks: Sequence[dict[str, float]]) -> Output:
    named = {name.strip(): float(value) / 1e3 for name, value in _NAMED.findall(line)}
    mean_ms = next((named[name] for name in _TFLITE_MEAN if name in named), None)
    if mean_ms is None:
        raise errors.DeviceError(f"the summary is cut off: {line!r}")
    warmup_ms = next((named[name] for name in _TFLITE_WARMUP if name in named), None)
    init_ms = named.get("Init")
    return _with_blocks(
        Output(tool=_TFLITE_TOOL, mean_ms=mean_ms, init_ms=init_ms),
        blocks,
        warmup_ms,
        rounded_ms=0.0,
    )


def _litert_summary(
    found: Sequence[re.Match[str]], inits: Sequence[float], blocks: Sequence[dict[str, float]]
) -> Output:
    values = {match.group(1, 2): float(match[3]) for match in found}
    runs = {match.group(1, 2): int(match[4]) for match in found if match[4]}
    times = {name: value for (of, name), value in values.items() if of == "Inference"}
    if "avg" not in times:
        raise errors.DeviceError("the summary is cut off: it has no Inference (avg)")
    if runs.get(("Inference", "avg")) == 0:
        raise errors.DeviceError("benchmark_model timed no inference")
    summary = Output(
        tool=_LITERT_TOOL,
        mean_ms=times["avg"],
        median_ms=times.get("median"),
        p95_ms=times.get("p95"),
        std_ms=times.get("std"),
        min_ms=times.get("min"),
        init_ms=inits[0] if inits else None,
        runs=runs.get(("Inference", "avg")),
        warmup=runs.get(("Warmup", "avg")),
    )
    return _with_blocks(summary, blocks, values.get(("Warmup", "avg")), _LITERT_ROUNDED_MS)


def _with_blocks(
    summary: Output,
    blocks: Sequence[dict[str, float]],
    warmup_ms: float | None,
    rounded_ms: float,
) -> Output:
    """Adds what the last `count=` line knows, if it is of the timed runs."""

    def agree(left_ms: float, right_ms: float | None) -> bool:
        if right_ms is None:
            return False
        return math.isclose(left_ms, right_ms, rel_tol=_SIX_DIGITS, abs_tol=0.51 * rounded_ms)

    if blocks and blocks[-1].get("count") == 0:
        raise errors.DeviceError("benchmark_model timed no inference (count=0)")
    if blocks and "mean_ms" in blocks[-1] and agree(blocks[-1]["mean_ms"], summary.mean_ms):
        last = blocks[-1]
        names = ("mean_ms", "median_ms", "p95_ms", "std_ms", "min_ms")
        found: dict[str, Any] = {name: last[name] for name in names if name in last}
        found["runs"] = int(last["count"])
        if len(blocks) > 1 and agree(blocks[-2].get("mean_ms", math.nan), warmup_ms):
            found["warmup"] = int(blocks[-2]["count"])
        summary = dataclasses.replace(summary, **found)
    elif blocks and not agree(blocks[-1].get("mean_ms", math.nan), warmup_ms):
        # Only the warm-up's line may be there alone, as where users quote parts of an output.
        raise errors.DeviceError(
            f"the last count= line and the summary disagree ({blocks[-1]}, {summary.mean_ms:g} ms):"
            " the output is cut off or mixed with another"
        )
    if summary.mean_ms <= 0:
        raise errors.DeviceError("the mean is 0 ms: it is less than the tool's clock resolves")
    return summary


def _block(line: str) -> dict[str, float]:
    """A `count=` line, whose times are microseconds, as `count` and times in milliseconds.

    Where all runs took the same time it has `curr` alone; where a line lacks its end it has no
    `mean_ms` here.
    """
    fields = {name: float(value) for name, value in _FIELD.findall(line)}
    if "count" not in fields:
        return {}
    block = {"count": fields["count"]}
    if "min" not in fields and "first" not in fields and "curr" in fields:
        fields = {**fields, "min": fields["curr"], "avg": fields["curr"]}
        if fields["count"] > 1:
            fields["std"] = 0.0
    names = {"mean_ms": "avg", "median_ms": "median", "p95_ms": "p95", "std_ms": "std"}
    for ours, theirs in {**names, "min_ms": "min"}.items():
        if theirs in fields:
            block[ours] = fields[theirs] / 1e3
    return block


def _memory_kb(pattern: re.Pattern[str], lines: Iterable[str]) -> int | None:
    values = [float(next(filter(None, m.groups()))) for m in map(pattern.match, lines) if m]
    return round(values[-1] * _KB) if values else None


def _profile(lines: Sequence[str]) -> tuple[OpTime, ...]:
    """The table of the timed runs in the order of execution; () where there is none."""
    ops: list[OpTime] = []
    columns: list[str] = []
    title, of_start = "", False
    for line in lines:
        if "Profiling Info for" in line:
            of_start = "Initialization" in line
        elif match := _PROFILE.match(line):
            title, columns = match[1], []
        elif title == "Run Order" and not of_start:
            if "[node type]" in line and "[avg ms]" in line:
                columns, ops = re.findall(r"\[([^\]]+)\]", line), []
            elif not line:
                title = ""
            elif columns:
                op = _op(_CELL.split(line, maxsplit=len(columns) - 1), columns)
                ops += [op] if op else []
    return tuple(ops)


def _op(cells: Sequence[str], columns: Sequence[str]) -> OpTime | None:
    """A row of the table; None for a line of something else between its rows."""
    row = dict(zip(columns, cells, strict=False))
    try:
        name = re.fullmatch(r"\[(.*)\](?::\d+)?", row["Name"])
        return OpTime(
            name=name[1] if name else row["Name"],
            type=row["node type"],
            mean_ms=float(row["avg ms"]),
            calls=int(row["times called"]),
        )
    except (KeyError, ValueError):
        return None


def _last(lines: Sequence[str]) -> str:
    return next((line for line in reversed(lines) if line), "")[-200:]
