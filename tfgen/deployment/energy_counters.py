"""What an inference takes by the processor's own energy counters, where they can be read.

Linux shows one for each package of processors of Intel, and of AMD since Zen, in its powercap
folder. They count all that a package does, so what it takes idle is measured too and taken off; a
number says something where nothing else runs. Since 2020 only root may read them (CVE-2020-8694),
and virtual machines rarely have any.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path("/sys/class/powercap")
_PACKAGES = "intel-rapl:*"  # those of AMD too; intel-rapl:0:1 is a part of intel-rapl:0
_PACKAGE = "package"
_SECONDS = 1.0  # a thousand times what a counter takes to move


@dataclasses.dataclass(frozen=True)
class Counters:
    """One for each package.

    Attributes:
      files: where each is read, in microjoules.
      ends_uj: after which each begins again.
    """

    files: tuple[pathlib.Path, ...]
    ends_uj: tuple[int, ...]

    def read(self) -> tuple[int, ...] | None:
        """What they say, in microjoules; None where one cannot be read."""
        try:
            return tuple(int(file.read_text()) for file in self.files)
        except (OSError, ValueError):
            return None

    def spent_uj(self, before: Sequence[int], after: Sequence[int]) -> int:
        """What all of them counted between two readings, in which none began again twice."""
        rows = zip(before, after, self.ends_uj, strict=True)
        return sum(b - a if b >= a else b - a + end for a, b, end in rows)


def find(root: pathlib.Path = ROOT) -> Counters | None:
    """The counters of this machine's packages; None where there are none or they cannot be read."""
    files, ends_uj = [], []
    try:
        for zone in sorted(root.glob(_PACKAGES)):
            if (zone / "name").read_text().startswith(_PACKAGE):
                files.append(zone / "energy_uj")
                ends_uj.append(int((zone / "max_energy_range_uj").read_text()))
    except (OSError, ValueError):
        return None
    counters = Counters(tuple(files), tuple(ends_uj))
    return counters if files and counters.read() is not None else None


def of_a_run_mj(
    counters: Counters,
    run: Callable[[], object],
    *,
    clock: Callable[[], float] = time.monotonic,
    rest: Callable[[float], object] = time.sleep,
) -> float | None:
    """What a run takes beyond what the machine takes idle, in millijoules; a second of each.

    Returns:
      None where that is nothing or less, since something else ran or a counter stands still; or
      where a counter cannot be read any more.
    """
    readings, times = [counters.read()], [clock()]
    rest(_SECONDS)
    readings.append(counters.read())
    times.append(clock())
    runs = 0
    while clock() - times[1] < _SECONDS:
        run()
        runs += 1
    readings.append(counters.read())
    times.append(clock())
    before, idle, after = readings
    if before is None or idle is None or after is None:
        return None
    idle_w = counters.spent_uj(before, idle) / 1e6 / (times[1] - times[0])
    spent_j = counters.spent_uj(idle, after) / 1e6 - idle_w * (times[2] - times[1])
    return 1e3 * spent_j / runs if spent_j > 0 else None
