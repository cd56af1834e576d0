"""Sends a .tflite to a process of its own, with limits, and brings back what became of it."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

from tfgen import errors
from tfgen.deployment import _litert_child

TIMEOUT_SECONDS = 120.0
MEMORY_BYTES = 8 << 30  # address space, most of which libraries reserve and never touch
CRASHED = "crashed the runtime"
_WRITTEN_BYTES = 1 << 30
_QUOTED = 300  # characters of the child's last words


def existing(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path, made absolute; raises CorruptFileError where no file is."""
    path = pathlib.Path(path).absolute()
    if not path.is_file():
        raise errors.CorruptFileError(f"{path}: file is missing")
    return path


def run(
    path: pathlib.Path,
    request: dict[str, Any],
    folder: pathlib.Path,
    timeout_seconds: float,
    memory_bytes: int,
) -> dict[str, Any]:
    """Sends a request to a child process and returns its result.

    Args:
      path: the file, or the folder of files, that the request is about.
      request: see `_litert_child`: the task, its threads, whether XNNPACK may be used ...
      folder: where the two leave each other files.
      timeout_seconds: wall time, after which the child is killed.
      memory_bytes: address space that it may take.

    Raises:
      CorruptFileError: the runtime refuses the file or crashes on it.
      UsageError: the file is fine and the request is not.
      TfgenError: it took too long, or LiteRT itself does not start.
    """
    request = {
        "model": str(path),
        "parent": os.getpid(),
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
            code: int | None = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                timeout=timeout_seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        words = _last_words(output)
    progress = folder / _litert_child.PROGRESS
    if progress.exists():
        path = pathlib.Path(progress.read_text())
    if code is None:
        raise errors.TfgenError(f"{path}: did not finish within {timeout_seconds:g} s")
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
