"""Runs a .tflite on this host in a process of its own: timed, or over a whole split."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfgen import errors, workdir
from tfgen.deployment import _litert_child

WARMUP = 50
RUNS = 1000
MAX_RUNS = 10_000_000
TIMEOUT_SECONDS = 120.0
MEMORY_BYTES = 8 << 30  # address space, most of which libraries reserve and never touch
CRASHED = "crashed the runtime"
WINDOWS, WINDOW_MS = 5, 2.0  # of each of many files
_AT_ONCE = 64  # files that are open and take turns
_WRITTEN_BYTES = 1 << 30
_QUOTED = 300  # characters of the child's last words


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
    path = _existing(path)
    with tempfile.TemporaryDirectory(prefix="tfgen-") as folder:
        result = _run(path, request, pathlib.Path(folder), timeout_seconds, memory_bytes)
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
        result = _run(files, request, folder, timeout_seconds, memory_bytes)
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
    path = _existing(path)
    with tempfile.TemporaryDirectory(prefix="tfgen-") as name:
        folder = pathlib.Path(name)
        for number, array in enumerate(inputs):
            file = folder / _litert_child.INPUTS.format(number)
            np.save(file, np.asarray(array, np.float32), allow_pickle=False)
        request = {"task": "predict", "threads": 1, "xnnpack": xnnpack, "inputs": len(inputs)}
        _run(path, request, folder, timeout_seconds, memory_bytes)
        return np.load(folder / _litert_child.OUTPUTS, allow_pickle=False)


def _existing(path: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(path).absolute()
    if not path.is_file():
        raise errors.CorruptFileError(f"{path}: file is missing")
    return path


def _run(
    path: pathlib.Path,
    request: dict[str, Any],
    folder: pathlib.Path,
    timeout_seconds: float,
    memory_bytes: int,
) -> dict[str, Any]:
    """Sends a request to a child process and returns its result."""
    request = {
        "model": str(path),
        "memory_bytes": memory_bytes,
        "cpu_seconds": int(timeout_seconds * request["threads"]) + 1,
        "written_bytes": _WRITTEN_BYTES,
        **request,
    }
    (folder / _litert_child.REQUEST).write_text(json.dumps(request))
    # The parent's path, so that the child finds tfgen in Bazel's runfiles as in site-packages.
    # -P: not the folder where the user stands.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-P", "-m", _litert_child.__name__, str(folder)]
    with (folder / "output").open("w+b") as output:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                timeout=timeout_seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise errors.TfgenError(
                f"{path}: did not finish within {timeout_seconds:g} s"
            ) from None
        words = _last_words(output)
    if not (folder / _litert_child.STARTED).exists():
        raise errors.TfgenError(f"LiteRT does not start ({words})")
    result = folder / _litert_child.RESULT
    if code < 0:
        raise errors.CorruptFileError(f"{path}: {CRASHED} ({_signal(-code)})")
    if code or not result.is_file():
        raise errors.CorruptFileError(f"{path}: the runtime refuses it ({words})")
    answer = json.loads(result.read_text())
    if "error" in answer:
        raise errors.UsageError(f"{path}: {answer['error']}")
    return answer


def _last_words(output: Any) -> str:
    """The end of the last line that the child wrote: its exception, if Python raised one."""
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - 4096))
    lines = output.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no reason")[-_QUOTED:]


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
