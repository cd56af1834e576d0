"""Times many files side by side on this host: how latencies are measured, here and everywhere.

A latency is the least, over at least five windows that take turns with those of other files, of the
window's median, of one inference of one example by one warm thread.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Iterable, Sequence

from tfgen import errors
from tfgen.child_process import MEMORY_BYTES, TIMEOUT_SECONDS
from tfgen.deployment import child, probe
from tfgen.space import bits
from tfgen.space.bits import BitPolicy
from tfgen.space.layers import INPUT, LayerSpec

WINDOWS, WINDOW_MS = 5, 2.0  # of each file
PATIENCE_S = 3.0  # for other work to end
_AT_ONCE = 64  # files that are open and take turns
_SECONDS_A_WINDOW = 0.5  # what a file of 100 ms an inference takes
_REFERENCE = "reference.tflite"
_REFERENCE_COPIES, _REFERENCE_WINDOWS = 4, 200  # some two seconds


@dataclasses.dataclass(frozen=True)
class Latency:
    """What one of many files took.

    Attributes:
      latency_ms: the least of the windows' medians.
      spread: by how much the middle window's median is over the least, as a share.
      quiet_windows: how many windows nothing else disturbed; where there are fewer than were asked
        for, the host was busy.
      reference_ms: what the reference took in the same process: how fast the host was.
      fully_accelerated: whether XNNPACK took every op; None where the runtime cannot tell.
      file_bytes: the file's size.
      runtime: what ran it, with version.
    """

    latency_ms: float
    spread: float
    quiet_windows: int
    reference_ms: float
    fully_accelerated: bool | None
    file_bytes: int
    runtime: str


def compare(
    contents: Sequence[bytes],
    *,
    windows: int = WINDOWS,
    window_ms: float = WINDOW_MS,
    reference_ms: float | None = None,
    patience_s: float = PATIENCE_S,
    timeout_seconds: float | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Latency]:
    """Times many files, one thread each, in one process.

    Files take turns in windows of a few milliseconds; a window is told by its median, a file by its
    best window. A host's clock and other work change over seconds, which then meet all files alike.
    Where a reference says that other work slowed a window, the window is repeated for a while.

    Args:
      contents: of the files.
      windows: of each file.
      window_ms: of inferences in a window; 5 inferences at least, 300 at most.
      reference_ms: what the reference takes when nothing else runs here, to wait a little for that;
        None where nobody knows.
      patience_s: how long to wait for that, for each lot of files.
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
        "reference_ms": reference_ms,
        "patience_s": patience_s,
    }
    if timeout_seconds is None:
        timeout_seconds = TIMEOUT_SECONDS + len(contents) * windows * 5 * _SECONDS_A_WINDOW
        timeout_seconds += patience_s * -(-len(contents) // _AT_ONCE)
    request["longest_s"] = timeout_seconds / 2 / -(-len(contents) // _AT_ONCE)
    with tempfile.TemporaryDirectory(prefix="tfgen-") as name:
        folder = pathlib.Path(name)
        files = folder / "files"
        files.mkdir()
        for number, content in enumerate(contents):
            (files / f"{number:07}.tflite").write_bytes(content)
        request["reference"] = write_reference(folder)
        result = child.run(files, request, folder, timeout_seconds, memory_bytes)
    names = ("latency_ms", "spread", "quiet_windows", "fully_accelerated", "file_bytes")
    rows = zip(*(result[name] for name in names), strict=True)
    same = {name: result[name] for name in ("reference_ms", "runtime")}
    return [Latency(**dict(zip(names, row, strict=True)), **same) for row in rows]


def measure_probes(
    networks: Iterable[Sequence[LayerSpec]],
    input_shape: Sequence[int],
    policy: BitPolicy | None,
    *,
    io: str = "float",
) -> list[Latency]:
    """Size and latency of networks that nobody trained, timed side by side in one process.

    Raises:
      UsageError: the runtime does not execute a layer at its bits.
      CorruptFileError: the runtime refuses a file.
    """
    return compare([probe.write_probe(layers, input_shape, policy, io=io) for layers in networks])


def write_reference(folder: pathlib.Path) -> str:
    """Writes the file that tells how fast the host is just now; returns its path."""
    path = folder / _REFERENCE
    path.write_bytes(_reference())
    return str(path)


def measure_reference() -> float:
    """What the reference takes here when nothing else runs, ms: the least of a few seconds."""
    contents = [_reference()] * _REFERENCE_COPIES
    return min(found.latency_ms for found in compare(contents, windows=_REFERENCE_WINDOWS))


@functools.cache
def _reference() -> bytes:
    """A convolution that a core computes, and half a megabyte of weights that it reads."""
    sizes = {"in_channels": 16, "out_channels": 16, "in_size": (16, 16), "out_size": (16, 16)}
    layers = [
        LayerSpec(name="conv", op="conv", inputs=(INPUT,), kernel=3, weight_bits=8, **sizes),
        LayerSpec(
            name="flatten",
            op="flatten",
            inputs=("conv",),
            in_channels=16,
            in_size=(16, 16),
            out_channels=4096,
        ),
        LayerSpec(
            name="dense",
            op="dense",
            inputs=("flatten",),
            in_channels=4096,
            out_channels=128,
            weight_bits=8,
        ),
    ]
    return probe.write_probe(layers, (16, 16, 16), bits.load("litert-2.3"), io="int8")
