"""Runs a .tflite on this host in a process of its own: timed, or over a whole split."""

from __future__ import annotations

import os
import pathlib
import platform
import tempfile

import numpy as np

from tfgen import errors, workdir
from tfgen.child_process import MEMORY_BYTES, TIMEOUT_SECONDS
from tfgen.deployment import _litert_child, child, timing
from tfgen.deployment.measurement import Measurement

WARMUP = 50
RUNS = 1000
MAX_RUNS = 10_000_000


def measure(
    path: str | os.PathLike[str],
    *,
    threads: int = 1,
    warmup: int = WARMUP,
    runs: int = RUNS,
    reference_ms: float | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> Measurement:
    """Times single inferences on random inputs.

    Args:
      path: the .tflite.
      threads: of the runtime.
      warmup: inferences before the clock starts.
      runs: inferences timed, rounded up to whole windows; each one for itself.
      reference_ms: what the reference takes when nothing else runs here, to wait a little for that;
        None where nobody knows.
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
        "reference_ms": reference_ms,
        "patience_s": timing.PATIENCE_S,
        "longest_s": timeout_seconds / 2,
    }
    path = child.existing(path)
    with tempfile.TemporaryDirectory(prefix="tfgen-") as name:
        folder = pathlib.Path(name)
        request["reference"] = timing.write_reference(folder)
        result = child.run(path, request, folder, timeout_seconds, memory_bytes)
    accelerated = result["fully_accelerated"]
    return Measurement(
        warmup=warmup,
        threads=threads,
        device=f"host ({platform.machine()})",
        # Where it takes not all, nobody can tell whether it takes any.
        delegate="xnnpack" if accelerated else "unknown",
        peak_memory_kb=result["peak_rss_kb"] - result["base_rss_kb"],
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
