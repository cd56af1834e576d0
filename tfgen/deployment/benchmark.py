"""Runs a .tflite on this host in a process of its own: timed, or over a whole split."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfgen import errors, workdir
from tfgen.deployment import _litert_child, child
from tfgen.deployment.child import MEMORY_BYTES, TIMEOUT_SECONDS

WARMUP = 50
RUNS = 1000
MAX_RUNS = 10_000_000
WINDOWS, WINDOW_MS = 5, 2.0  # of each of many files
_AT_ONCE = 64  # files that are open and take turns


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One measurement of one file; the spread is over single inferences of one example.

    Attributes:
      peak_rss_kb: of the whole process, interpreter and Python included.
      base_rss_kb: of the same process before it opened the file.
      fully_accelerated: whether XNNPACK took every op; None where the runtime cannot tell.
    """

    median_ms: float
    mean_ms: float
    p90_ms: float
    p95_ms: float
    std_ms: float
    min_ms: float
    init_ms: float
    runs: int
    warmup: int
    threads: int
    peak_rss_kb: int
    base_rss_kb: int
    runtime: str
    fully_accelerated: bool | None
    file_bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def measure(
    path: str | os.PathLike[str],
    *,
    threads: int = 1,
    warmup: int = WARMUP,
    runs: int = RUNS,
    timeout_seconds: float = TIMEOUT_SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> Benchmark:
    """Times single inferences on random inputs.

    Args:
      path: the .tflite.
      threads: of the runtime.
      warmup: inferences before the clock starts.
      runs: inferences timed, each one for itself.
      timeout_seconds: for all of it.
      memory_bytes: address space that the process may take.

    Raises:
      UsageError: a number is out of range.
      CorruptFileError: the file is missing, the runtime refuses it or crashes on it.
      TfgenError: it took longer than the time-out, or LiteRT itself does not start.
    """
    if threads < 1 or not 1 <= runs <= MAX_RUNS or warmup < 0:
        raise errors.UsageError(
            f"need threads >= 1, runs in 1 .. {MAX_RUNS}, warmup >= 0; "
            f"got {threads}, {runs}, {warmup}"
        )
    request = {
        "task": "measure",
        "threads": threads,
        "xnnpack": True,
        "warmup": warmup,
        "runs": runs,
    }
    path = child.existing(path)
    with tempfile.TemporaryDirectory(prefix="tfgen-") as folder:
        result = child.run(path, request, pathlib.Path(folder), timeout_seconds, memory_bytes)
    return Benchmark(
        runs=runs,
        warmup=warmup,
        threads=threads,
        file_bytes=path.stat().st_size,
        sha256=workdir.sha256(path),
        **result,
    )


@dataclasses.dataclass(frozen=True)
class Latency:
    """What one of many files took.

    Attributes:
      latency_ms: of one inference of one example by one thread: the least of the windows' medians.
      fully_accelerated: whether XNNPACK took every op; None where the runtime cannot tell.
      file_bytes: the file's size.
      runtime: what ran it, with version.
    """

    latency_ms: float
    fully_accelerated: bool | None
    file_bytes: int
    runtime: str


def compare(
    contents: Sequence[bytes],
    *,
    windows: int = WINDOWS,
    window_ms: float = WINDOW_MS,
    timeout_seconds: float | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Latency]:
    """Times many files, one thread each, in one process.

    Files take turns in windows of a few milliseconds; a window is told by its median, a file by its
    best window. A host's clock and other work change over seconds, which then meet all files alike.

    Args:
      contents: of the files.
      windows: of each file.
      window_ms: of inferences in a window; 5 inferences at least, 300 at most.
      timeout_seconds: for all of it; None for what files of 100 ms an inference would take.
      memory_bytes: address space that the process may take.

    Raises:
      UsageError: a number is out of range.
      CorruptFileError: the runtime refuses a file, which is named by its position, or crashes.
      TfgenError: it took longer than the time-out, or LiteRT itself does not start.
    """
    if windows < 1 or not window_ms > 0:
        raise errors.UsageError(f"need windows >= 1, window_ms > 0; got {windows}, {window_ms}")
    if not contents:
        return []
    request = {
        "task": "compare",
        "threads": 1,
        "xnnpack": True,
        "windows": windows,
        "window_ms": window_ms,
        "at_once": _AT_ONCE,
    }
    if timeout_seconds is None:
        timeout_seconds = TIMEOUT_SECONDS + len(contents) * windows * 0.5
    with tempfile.TemporaryDirectory(prefix="tfgen-") as name:
        folder = pathlib.Path(name)
        files = folder / "files"
        files.mkdir()
        for number, content in enumerate(contents):
            (files / f"{number:07}.tflite").write_bytes(content)
        result = child.run(files, request, folder, timeout_seconds, memory_bytes)
    columns = (result["latency_ms"], result["fully_accelerated"], result["file_bytes"])
    return [Latency(*row, result["runtime"]) for row in zip(*columns, strict=True)]


def predict(
    path: str | os.PathLike[str],
    *inputs: np.ndarray,
    xnnpack: bool = True,
    timeout_seconds: float = TIMEOUT_SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> np.ndarray:
    """The file's outputs, float32 [examples, *output shape], one inference an example.

    Integer inputs and outputs are converted by the file's own scales and zero points.

    Args:
      path: a .tflite with one output.
      *inputs: float32 [examples, *input shape], for each of its inputs in order.
      xnnpack: whether the runtime may use its fast kernels, as it does by itself.
      timeout_seconds: for all of it.
      memory_bytes: address space that the process may take.

    Raises:
      UsageError: the file takes other inputs.
      CorruptFileError: the file is missing, the runtime refuses it or crashes on it.
      TfgenError: it took longer than the time-out, or LiteRT itself does not start.
    """
    path = child.existing(path)
    with tempfile.TemporaryDirectory(prefix="tfgen-") as name:
        folder = pathlib.Path(name)
        for number, array in enumerate(inputs):
            file = folder / _litert_child.INPUTS.format(number)
            np.save(file, np.asarray(array, np.float32), allow_pickle=False)
        request = {"task": "predict", "threads": 1, "xnnpack": xnnpack, "inputs": len(inputs)}
        child.run(path, request, folder, timeout_seconds, memory_bytes)
        return np.load(folder / _litert_child.OUTPUTS, allow_pickle=False)
