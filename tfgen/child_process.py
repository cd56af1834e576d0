"""Work on foreign files in a process of its own, with limits: what both ends of it share.

The parent calls `run` with the name of a module, which runs as `python -m MODULE FOLDER` and begins
with `begin`. What else the two tell each other lies in the folder.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
from typing import Any

TIMEOUT_SECONDS = 120.0
MEMORY_BYTES = 8 << 30  # address space, most of which libraries reserve and never touch
REQUEST = "request.json"
_WRITTEN_BYTES = 1 << 30
_QUOTED = 300  # characters of the child's last words


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
      code: its exit status, below 0 for a signal; None where it did not finish in time.
      last_words: the last line that it wrote: its exception, if Python raised one.
    """

    code: int | None
    last_words: str

    @property
    def signal(self) -> str | None:
        """Name of the signal that ended it; None where none did."""
        if self.code is None or self.code >= 0:
            return None
        try:
            return signal.Signals(-self.code).name
        except ValueError:
            return f"signal {-self.code}"


def run(
    module: str,
    folder: pathlib.Path,
    request: dict[str, Any],
    *,
    timeout_seconds: float,
    memory_bytes: int,
    threads: int = 1,
) -> Ended:
    """Runs a module until it ends.

    Args:
      module: its full name; it calls `begin`.
      folder: where the two leave each other files.
      request: JSON for the child.
      timeout_seconds: wall time, after which the child is killed.
      memory_bytes: address space that it may take.
      threads: that may be busy all the time.
    """
    request = {
        "parent": os.getpid(),
        "memory_bytes": memory_bytes,
        "cpu_seconds": int(timeout_seconds * threads) + 1,
        "written_bytes": _WRITTEN_BYTES,
        **request,
    }
    (folder / REQUEST).write_text(json.dumps(request))
    # The parent's path, so that the child finds tfgen in Bazel's runfiles as in site-packages.
    # -P: not the folder where the user stands.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-P", "-m", module, str(folder)]
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
    return Ended(code, last_words(folder / "output"))


def begin(folder: pathlib.Path) -> dict[str, Any]:
    """In the child: takes its limits, ends when the parent ends, and returns the request."""
    request: dict[str, Any] = json.loads((folder / REQUEST).read_text())
    die_with(request["parent"])
    _limit(request)
    return request


def last_words(output: pathlib.Path) -> str:
    """The last line of what a child wrote."""
    with output.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no reason")[-_QUOTED:]


def die_with(parent: int) -> None:
    """In the child: ends it when its parent ends, however that does."""
    if sys.platform == "linux":
        set_signal_of_parents_death = 1
        ctypes.CDLL(None).prctl(set_signal_of_parents_death, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        sys.exit(1)


def _limit(request: dict[str, Any]) -> None:
    """Limits this process: between fork and exec, a threaded parent may run nothing."""
    limit_memory(request["memory_bytes"])
    for what, amount in (
        (resource.RLIMIT_CPU, request["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, request["written_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        _set(what, amount)


def limit_memory(memory_bytes: int) -> None:
    """In the child: limits its address space, so that too large a request is a MemoryError."""
    _set(resource.RLIMIT_AS, memory_bytes)


def _set(what: int, amount: int) -> None:
    _, hard = resource.getrlimit(what)
    soft = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(what, (soft, hard))
