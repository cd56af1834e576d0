r"""Times ops and networks of a space on this machine, so that budgets can limit latency.

    profile_device --device=host --space=mnist_mobile

Writes configs/devices/<device>.json where you stand; a file that is there is added to, if it is of
this machine, runtime and number of threads. The machine should have nothing else to do.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from absl import flags

from tfgen import errors, program, workdir
from tfgen.cost import latency_table
from tfgen.cost.profiled_latency import FEWEST_NETWORKS
from tfgen.deployment import devices, profiling, timing
from tfgen.space import bits, catalog

_DEVICE = flags.DEFINE_string("device", devices.HOST, "What budgets shall call this machine.")
_SPACE = flags.DEFINE_multi_string("space", [], "Spaces whose networks will be asked for.")
_ACTIVATION_BITS = flags.DEFINE_multi_enum(
    "activation_bits", ["8"], ["8", "16", "32"], "Of the networks; 32 for float32. Repeat for more."
)
_OPS = flags.DEFINE_integer("ops", profiling.OPS, "Ops to time, about.", lower_bound=50)
_NETWORKS = flags.DEFINE_integer(
    "networks", profiling.NETWORKS, "Networks to time: as many random ones as chosen ones.",
    lower_bound=FEWEST_NETWORKS,
)  # fmt: skip
_WINDOWS = flags.DEFINE_integer(
    "windows", timing.WINDOWS, "Windows of each file.", lower_bound=timing.WINDOWS
)
_SEED = flags.DEFINE_integer("seed", 0, "Of what is timed.", lower_bound=0)
_REPLACE = flags.DEFINE_bool("replace", False, "Start the device's file anew.")


def main(argv: Sequence[str]) -> None:
    """Times, and writes the device's file after each space."""
    del argv
    if not _SPACE.value:
        raise errors.UsageError(f"give --space; known: {', '.join(sorted(catalog.SPACES))}")
    spaces = [catalog.get(name) for name in _SPACE.value]
    for space in spaces:
        if space.bit_policy == bits.SIMULATED:
            raise errors.UsageError(f"networks of {space.name} come to no file: nothing to time")
    device = devices.this_machine(_DEVICE.value)
    path = workdir.user_path(devices.FOLDER / f"{_DEVICE.value}.json")
    table = None
    if path.is_file() and not _REPLACE.value:
        table = latency_table.load(path)
        table.device.check_same(device)
    start = time.monotonic()
    for space in spaces:
        for activation_bits in map(int, _ACTIVATION_BITS.value):
            table = profiling.time_space(
                table,
                device,
                space,
                activation_bits=activation_bits,
                ops=_OPS.value,
                networks=_NETWORKS.value,
                windows=_WINDOWS.value,
                seed=_SEED.value,
                say=_say,
            )
            table.save(path)
    print(
        f"{path}: {len(table.ops):,} ops and {len(table.networks):,} networks on {device.processor}"
    )
    print(f"{time.monotonic() - start:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    program.run(main)
