"""Sends a .tflite to a process of its own, with limits, and brings back what became of it."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from tfgen import child_process, errors
from tfgen.deployment import _litert_child

CRASHED = "crashed the runtime"


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
    ended = child_process.run(
        _litert_child.__name__,
        folder,
        {"model": str(path), **request},
        timeout_seconds=timeout_seconds,
        memory_bytes=memory_bytes,
        threads=request["threads"],
    )
    progress = folder / _litert_child.PROGRESS
    if progress.exists():
        path = pathlib.Path(progress.read_text())
    if ended.code is None:
        raise errors.TfgenError(f"{path}: did not finish within {timeout_seconds:g} s")
    if not (folder / _litert_child.STARTED).exists():
        raise errors.TfgenError(f"LiteRT does not start ({ended.last_words})")
    result = folder / _litert_child.RESULT
    if ended.signal:
        raise errors.CorruptFileError(f"{path}: {CRASHED} ({ended.signal})")
    if ended.code or not result.is_file():
        raise errors.CorruptFileError(f"{path}: the runtime refuses it ({ended.last_words})")
    answer = json.loads(result.read_text())
    if "error" in answer:
        raise errors.UsageError(f"{path}: {answer['error']}")
    return answer
