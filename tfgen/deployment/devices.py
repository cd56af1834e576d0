"""Which devices are known, one file each in configs/devices/, and which of them this machine is.

A file is looked for in the folder `configs/devices` where the user stands, where `profile_device`
writes, then in the project's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import pathlib
import platform
from collections.abc import Iterator, Sequence

from tfgen import errors, workdir
from tfgen.cost import adapted_device, adapted_latency, latency_table, public_tables
from tfgen.cost.adapted_device import AdaptedDevice
from tfgen.cost.adapted_latency import AdaptedLatency
from tfgen.cost.latency import LatencyModel
from tfgen.cost.latency_table import Device, LatencyTable, NetworkTiming
from tfgen.cost.profiled_latency import ProfiledLatency
from tfgen.deployment import _litert_child
from tfgen.deployment.timing import WINDOWS
from tfgen.space.lowering import ACTIVATION_BITS
from tfgen.space.search_space import Choices, SearchSpace

FOLDER = pathlib.Path("configs") / "devices"
HOST = "host"  # what the machine in front of the user is called, unless he calls it otherwise
_CPU_FACTS = ("model name", "cpu family", "model", "stepping", "Hardware", "CPU part")
_GOVERNOR = pathlib.Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def folders() -> list[pathlib.Path]:
    """Where devices are described, the user's folder first."""
    return [workdir.user_path(FOLDER), workdir.package_root() / FOLDER]


def known() -> list[str]:
    """Names of the devices that are described."""
    paths = [path for folder in folders() for path in folder.glob("*.json")]
    return sorted({path.stem for path in paths if path.name[0] != "."})  # others are being written


def find(name: str) -> pathlib.Path:
    """The file that describes a device; raises UsageError that names the known ones."""
    if name in known():
        places = (folder / f"{name}.json" for folder in folders())
        return next(path for path in places if path.is_file())
    hint = ""
    if name == HOST:
        hint = "; this machine was not profiled: run profile_device --device=host --space=SPACE"
    raise errors.UsageError(f"unknown device {name!r}; known: {', '.join(known())}{hint}")


def this_machine(name: str = HOST, threads: int = 1) -> Device:
    """What this machine is, as a device of that name."""
    version = importlib.metadata.version(_litert_child.RUNTIME)
    return Device(
        name=name,
        processor=_processor(),
        runtime=f"{_litert_child.RUNTIME} {version}",
        threads=threads,
        governor=_GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else "unknown",
    )


def is_profiled(name: str) -> bool:
    """Whether a device's file holds timings, not where to find those of others."""
    return kind(name) == latency_table.KIND


def kind(name: str) -> str:
    """How a device's latencies are known: by its own profile, a few networks, or public tables."""
    data = workdir.read_json(find(name))
    return str(data.get("kind")) if isinstance(data, dict) else "none"


def table(name: str, threads: int = 1) -> LatencyTable:
    """The timings of a device that was profiled.

    Args:
      name: of the device.
      threads: that the file will run with.

    Raises:
      UsageError: nobody profiled it, or it was profiled with other threads, or it has this
        machine's name and was profiled on another machine or runtime.
      CorruptFileError: its file is damaged.
    """
    path = find(name)
    found = latency_table.load(path)
    if name == HOST:
        found.device.check_same(this_machine(name, threads))
    if threads != found.device.threads:
        raise errors.UsageError(
            f"device {name!r} was profiled with {found.device.threads} threads, --threads={threads}"
        )
    return found


def check_here(name: str, threads: int = 1) -> None:
    """Raises UsageError unless a device is this machine, so that its latencies can be measured."""
    otherwise = "; its latency cannot be measured here: add --stop_after=candidates"
    if not is_profiled(name):
        whose = (
            "was measured by others" if kind(name) == public_tables.KIND else "is no profiled one"
        )
        raise errors.UsageError(f"device {name!r} {whose}{otherwise}")
    try:
        table(name, threads).device.check_same(this_machine(name, threads))
    except errors.UsageError as error:
        raise errors.UsageError(f"{error}{otherwise}") from None


def latency_model(
    name: str,
    space: SearchSpace,
    *,
    activation_bits: int = ACTIVATION_BITS,
    io: str = "float",
    threads: int = 1,
    tables_dir: pathlib.Path | None = None,
) -> LatencyModel:
    """What predicts latencies of a space's networks on a device.

    Args:
      name: of the device.
      space: of the networks.
      activation_bits: of every network; 32 for networks of float32.
      io: "float", or "int8" for integer input and output.
      threads: of the runtime.
      tables_dir: where the tables lie that others measured; None for nowhere.

    Raises:
      UsageError: the device is not known, or not for this space, or it needs `tables_dir`.
      CorruptFileError: a file is damaged.
    """
    if is_profiled(name):
        return ProfiledLatency(table(name, threads), space, activation_bits, io)
    if kind(name) == adapted_device.KIND:
        device = adapted_device.load(find(name))
        return adapted(
            device,
            space,
            activation_bits=activation_bits,
            io=io,
            threads=threads,
            tables_dir=tables_dir,
        )
    if tables_dir is None:
        raise errors.UsageError(
            f"device {name!r} was measured by others: say where their tables lie, --tables_dir=DIR"
        )
    return public_tables.load(name, space, tables_dir, find(name).parent)


def adapted(
    device: AdaptedDevice,
    space: SearchSpace,
    *,
    activation_bits: int = ACTIVATION_BITS,
    io: str = "float",
    threads: int = 1,
    tables_dir: pathlib.Path | None = None,
) -> AdaptedLatency:
    """What predicts latencies on a device of which a few networks were measured.

    Args:
      device: the device.
      space: and what follows, as for `latency_model`.

    Raises:
      UsageError: the networks are of another space, or a known device is none for this purpose.
      CorruptFileError: a file is damaged.
    """
    if space.name != device.space:
        raise errors.UsageError(
            f"device {device.name!r} was adapted on {device.space}, not on {space.name}"
        )
    models = {}
    for name in device.known:
        if kind(name) == adapted_device.KIND:
            raise errors.UsageError(f"device {name!r} is adapted itself: adapt from measured ones")
        models[name] = latency_model(
            name,
            space,
            activation_bits=activation_bits,
            io=io,
            threads=threads,
            tables_dir=tables_dir,
        )
    order = numbered(space, tables_dir)
    return AdaptedLatency(device.name, space, models, device.choices, device.ms, order)


def known_on(space: SearchSpace, tables_dir: pathlib.Path | None) -> list[str]:
    """Devices whose own latencies are known for all of a space, from what is at hand."""
    found = []
    for name in known():
        if kind(name) != adapted_device.KIND:
            with contextlib.suppress(errors.UsageError):
                model = latency_model(name, space, tables_dir=tables_dir)
                if adapted_latency.tells_all(space, model):
                    found.append(name)
    return found


def numbered(space: SearchSpace, tables_dir: pathlib.Path | None) -> Choices | None:
    """A space's networks in the order of its benchmark's numbers; None where it has none."""
    if tables_dir is None or space.name not in adapted_latency.READINGS:
        return None
    return public_tables.numbered(space, tables_dir)


def add_networks(name: str, timings: Sequence[NetworkTiming]) -> None:
    """Keeps what networks took on a profiled device, for the next predictions.

    Only what other work did not disturb: a busy hour must not widen the intervals of later ones.
    Several programs may add at once.
    """
    quiet = [timing for timing in timings if timing.quiet_windows >= WINDOWS]
    path = find(name)
    with _locked(path):
        latency_table.load(path).adding(networks=quiet).save(path)


def add_profile(path: pathlib.Path, profile: LatencyTable) -> LatencyTable:
    """Adds a new profile to a device's file; returns all that is then in it.

    Raises:
      UsageError: the file is of another device.
      CorruptFileError: it is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if path.is_file():
            profile = latency_table.load(path).joined(profile)
        profile.save(path)
    return profile


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Holds other writers of a file off."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _processor() -> str:
    """What the operating system says of the first processor."""
    facts = {}
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    told = [facts[name] for name in _CPU_FACTS if name in facts] or [platform.processor()]
    return f"{platform.machine()}, {', '.join(told)}"
