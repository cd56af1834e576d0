r"""Times ops and networks of a space on this machine, so that budgets can limit latency.

    profile_device --device=host --space=mnist_mobile

Writes configs/devices/<device>.json where you stand; a file that is there is added to, if it is of
this machine, runtime and number of threads. The machine should have nothing else to do.

Another device, from about ten networks that you measured on it and devices whose latencies are
known:

    profile_device --space=nasbench201 --suggest=10 > measured.csv
    profile_device --space=nasbench201 --device=my_phone --measured=measured.csv \
        --adapt_from=all --tables_dir=DIR

The first prints networks to measure; write what each took, in milliseconds, after its comma. A
network may also be written as its number in the benchmark, or as the numbers of its choices.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Sequence

from absl import flags

from tfgen import errors, program, workdir
from tfgen.cost import adapted_device, latency_table
from tfgen.cost.adapted_device import AdaptedDevice
from tfgen.cost.profiled_latency import FEWEST_NETWORKS
from tfgen.deployment import devices, profiling, timing
from tfgen.space import bits, catalog
from tfgen.space.search_space import SearchSpace

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
_SUGGEST = flags.DEFINE_integer(
    "suggest", None, "Only print so many networks to measure on another device.", lower_bound=1
)
_ADAPT_FROM = flags.DEFINE_list(
    "adapt_from", None, "Known devices to predict another one from; `all` for those of the space."
)
_MEASURED = flags.DEFINE_string(
    "measured", None, "With --adapt_from: CSV with what was measured, columns network and ms."
)
_TABLES_DIR = flags.DEFINE_string(
    "tables_dir", None, "With --adapt_from: where public tables lie, for devices of others."
)
_DESCRIPTION = flags.DEFINE_string("description", "", "With --adapt_from: of the hardware.")


def main(argv: Sequence[str]) -> None:
    """Writes the device's file, or prints what to measure for it."""
    del argv
    if not _SPACE.value:
        raise errors.UsageError(f"give --space; known: {', '.join(sorted(catalog.SPACES))}")
    spaces = [catalog.get(name) for name in _SPACE.value]
    if _SUGGEST.value is None and _ADAPT_FROM.value is None:
        _profile(spaces)
        return
    if len(spaces) > 1:
        raise errors.UsageError(f"give one --space, got {', '.join(_SPACE.value)}")
    if _ADAPT_FROM.value is not None:
        _adapt(spaces[0])
    else:
        networks = adapted_device.suggest(spaces[0], _SUGGEST.value, _SEED.value)
        print("\n".join(["network,ms", *(f"{network}," for network in networks)]))


def _adapt(space: SearchSpace) -> None:
    """Predicts a device from a few networks and known devices, and writes its file."""
    name = _DEVICE.value
    if name in ("", devices.HOST):
        raise errors.UsageError("give --device: what budgets shall call the new device")
    if name in devices.known() and devices.kind(name) != adapted_device.KIND:
        raise errors.UsageError(f"device {name!r} is known already: give another --device")
    if _MEASURED.value is None:
        raise errors.UsageError("give --measured; --suggest=10 prints networks to measure")
    tables_dir = workdir.user_path(_TABLES_DIR.value) if _TABLES_DIR.value else None
    networks = adapted_device.read_networks(
        workdir.user_path(_MEASURED.value), space, devices.numbered(space, tables_dir)
    )
    known = list(dict.fromkeys(_ADAPT_FROM.value))
    if known == ["all"]:
        known = devices.known_on(space, tables_dir)
    if len(known) < 2:
        raise errors.UsageError(
            f"two known devices or more are needed, got {', '.join(known) or 'none'}; public "
            "tables are looked for in --tables_dir"
        )
    device = AdaptedDevice(
        name=name,
        description=_DESCRIPTION.value,
        space=space.name,
        known=tuple(known),
        date=datetime.date.today().isoformat(),
        networks=networks,
    )
    model = devices.adapted(device, space, tables_dir=tables_dir)
    path = workdir.user_path(devices.FOLDER / f"{name}.json")
    device.save(path)
    print(f"known devices: {', '.join(known)}")
    print(f"{path}: {model.remark}")
    print(
        f"a network's latency is told with a standard deviation of {model.sigma:.0%}, the median "
        f"over {space.name}"
    )


def _profile(spaces: Sequence[SearchSpace]) -> None:
    """Times, and writes the device's file after each space."""
    name = _DEVICE.value
    latency_table.check_name(name)
    if name in devices.known() and devices.kind(name) != latency_table.KIND:
        raise errors.UsageError(f"device {name!r} is known already: give another --device")
    for space in spaces:
        if space.bit_policy == bits.SIMULATED:
            raise errors.UsageError(f"networks of {space.name} come to no file: nothing to time")
    device = devices.this_machine(name)
    path = workdir.user_path(devices.FOLDER / f"{name}.json")
    if path.is_file() and _REPLACE.value:
        path.unlink()
    start = time.monotonic()
    table = None
    if path.is_file():
        table = latency_table.load(path)
        table.device.check_same(device)
    for space in spaces:
        for activation_bits in map(int, _ACTIVATION_BITS.value):
            found = profiling.time_space(
                device,
                space,
                activation_bits=activation_bits,
                ops=_OPS.value,
                networks=_NETWORKS.value,
                windows=_WINDOWS.value,
                known_ms=None if table is None else table.reference_ms,
                seed=_SEED.value,
                say=_say,
            )
            table = devices.add_profile(path, found)
    assert table is not None  # there is a space and a width
    print(
        f"{path}: {len(table.ops):,} ops and {len(table.networks):,} networks on {device.processor}"
    )
    print(f"{time.monotonic() - start:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    program.run(main)
