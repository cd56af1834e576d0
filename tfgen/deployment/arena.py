"""The memory in which the interpreter keeps a file's tensors, read off the interpreter itself."""

from __future__ import annotations

import os
import pathlib
import tempfile

from tfgen.child_process import MEMORY_BYTES, TIMEOUT_SECONDS
from tfgen.deployment import child


def measure(
    *paths: str | os.PathLike[str],
    xnnpack: bool = False,
    timeout_seconds: float = TIMEOUT_SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> list[int]:
    """Bytes of each file's arena: inputs, outputs, what ops make and what they need meanwhile.

    As the built-in kernels of one thread need it. Constants stay in the file.

    Args:
      *paths: of the .tflite files, one at least.
      xnnpack: whether XNNPACK takes the ops that it knows: what they hand to each other is then in
        memory of its own, of which the interpreter knows nothing.
      timeout_seconds: for all of it.
      memory_bytes: address space that the process may take.

    Raises:
      CorruptFileError: a file is missing, the runtime refuses it or crashes on it.
      TfgenError: it took longer than the time-out, or LiteRT itself does not start.
    """
    files = [child.existing(path) for path in paths]
    request = {"task": "arena", "threads": 1, "xnnpack": xnnpack, "models": list(map(str, files))}
    with tempfile.TemporaryDirectory(prefix="tfgen-") as folder:
        result = child.run(files[0], request, pathlib.Path(folder), timeout_seconds, memory_bytes)
    return list(result["arena_bytes"])
