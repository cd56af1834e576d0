"""Runs a .tflite on this host in a process of its own: timed, or over a whole split."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from tfgen import errors, workdir
from tfgen.deployment import _litert_child, child, timing
from tfgen.deployment.child import MEMORY_BYTES, TIMEOUT_SECONDS

WARMUP = 50
RUNS = 1000
MAX_RUNS = 10_000_000


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One measurement of one file; the spread is over single inferences of one example.

    Attributes:
      latency_ms: what contracts and tables speak of: the least of the windows' medians.
      spread: by how much the middle window's median is over the least, as a share.
      reference_ms: what the reference of `timing` took in the same process: how fast the host was.
      peak_rss_kb: of the whole process, interpreter and Python included.
      base_rss_kb: of the same process before it opened the file.
      fully_accelerated: whether XNNPACK took every op; None where the runtime cannot tell.
    """

    latency_ms: float
    spread: float
    reference_ms: float
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
      runs: inferences timed, rounded up to whole windows; each one for itself.
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
        "windows": timing.WINDOWS,
    }
    path = child.existing(path)
    with tempfile.TemporaryDirectory(prefix="tfgen-") as name:
        folder = pathlib.Path(name)
        request["reference"] = timing.write_reference(folder)
        result = child.run(path, request, folder, timeout_seconds, memory_bytes)
    return Benchmark(
        warmup=warmup,
        threads=threads,
        file_bytes=path.stat().st_size,
        sha256=workdir.sha256(path),
        **result,
    )


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
