"""How well ten measured networks tell a new device's latencies, on NAS-Bench-201.

    compare_adaptation --tables_dir=DIR

DIR is the folder of public tables: `nasbench201.csv.gz`, which names the cells, and any number of
`*.csv.gz` with a column `index` and columns of latencies that end in `_ms`. Every such column is a
new device in turn, and the others are known, but those of its hardware family (--hold_out=family)
or also those of its table (--hold_out=table). Columns that repeat another one are left out.

Printed for each device: Spearman's correlation of predicted and measured latencies over the
networks that were not among the ten, mean and least of the draws; how many of those networks take
no longer than the upper end at 95 %; and the correlation of a ridge regression on three principal
components of the known devices, from the same draws.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import io
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from absl import flags

from tfgen import errors, program, seeds, workdir
from tfgen.cost import adaptation, table_layouts
from tfgen.space import tabulated
from tfgen.space.nasbench201_readings import nasbench201_readings
from tfgen.tables import table

_TABLES_DIR = flags.DEFINE_string("tables_dir", None, "Folder of public tables.", required=True)
_DRAWS = flags.DEFINE_integer("draws", 20, "Draws for each device.", lower_bound=1)
_MEASURED = flags.DEFINE_integer("measured", 10, "Networks measured on it.", lower_bound=2)
_HOLD_OUT = flags.DEFINE_enum("hold_out", "family", ["family", "table"], "What is not known.")
_FEATURES = flags.DEFINE_enum(
    "features", "readings", ["readings", "one_hot"], "Of cells: what runs of them, or their ops."
)
_SEED = flags.DEFINE_integer("seed", 1, "Of the draws.")

_CELLS = "nasbench201.csv.gz"
# What hardware a column is of; one that is not here is a family of its own. NVIDIA's desktop GPUs
# by generation: GTX 1080 Ti, Titan X and Titan Xp are Pascal, RTX 2080 Ti and Titan RTX Turing.
# eagle_i7 is with eagle_gtx because the two columns differ by little more than noise (0.999).
_FAMILIES = {
    "adreno": r"eagle_gpu_855|true_6[34]0",
    "edge_tpu": r"\w*edgetpu|eagle_tpu",
    "eyeriss": r"\w*eyeriss",
    "fpga": r"\w*fpga",
    "jetson": r"\w*edgegpu|eagle_jetson\w*",
    "pascal": r"1080ti_\d+|titanxp?_\d+|eagle_gtx|eagle_i7",
    "pixel": r"\w*pixel\w*",
    "raspberry_pi": r"\w*raspi4|pi5_\w+",
    "turing": r"2080ti_\d+|titan_rtx_\d+",
    "xeon": r"(gold|silver)_\w+",
}
_UPPER_95 = 1.6449  # standard normal quantile
_COMPONENTS, _RIDGE = 3, 1.0

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Device:
    """A column: its table, hardware family and latencies, NaN where none [architectures]."""

    name: str
    table: str
    family: str
    ms: Floats

    @property
    def rows(self) -> Rows:
        """Which architectures have a latency."""
        return np.flatnonzero(np.isfinite(self.ms))


def main(argv: Sequence[str]) -> None:
    """Prints the correlations of each device and their mean."""
    del argv
    readings, devices = load(workdir.user_path(_TABLES_DIR.value))

    @functools.cache
    def prior(known: tuple[int, ...]) -> adaptation.DevicePrior:
        return adaptation.DevicePrior.fit(np.stack([devices[k].ms for k in known], 1), readings)

    lines, means = [], []
    for device in devices:
        known = tuple(k for k, other in enumerate(devices) if not _held_out(other, device))
        if len(known) < 2:
            raise errors.UsageError("fewer than two devices are known: give more tables")
        rows = device.rows
        ridge = _ridge(np.stack([devices[k].ms[rows] for k in known], 1))
        scores, baseline, below = [], [], []
        stream = seeds.stream(_SEED.value, "adaptation", device.table, device.name)
        for _ in range(_DRAWS.value):
            drawn = stream.choice(len(rows), _MEASURED.value, replace=False)
            rest = np.setdiff1d(np.arange(len(rows)), drawn)
            truth = device.ms[rows[rest]]
            adapted = prior(known).adapt(rows[drawn], device.ms[rows[drawn]])
            scores.append(spearman(adapted.ms[rows[rest]], truth))
            high_ms = adapted.ms * np.exp(_UPPER_95 * adapted.sigma)
            below.append(np.mean(truth <= high_ms[rows[rest]]))
            baseline.append(spearman(ridge(drawn, device.ms[rows[drawn]])[rest], truth))
        means.append(np.array([np.mean(scores), min(scores), np.mean(below), np.mean(baseline)]))
        lines.append(_line(device.name, device.family, f"{len(rows)}", *means[-1]))
    lines.append(_line("mean of devices", "", "", *np.mean(means, axis=0)))
    lines.append(_line("least device", "", "", *np.min(means, axis=0)))
    print(
        table(
            ["device", "family", "networks", "adapted", "worst draw", "below 95 %", "ridge"], lines
        )
    )


def load(folder: pathlib.Path) -> tuple[Floats, list[Device]]:
    """Features of the cells and the devices of a folder's tables, without repeated columns."""
    files = sorted([*folder.glob("*.csv.gz"), *folder.glob("*/*.csv.gz")])
    cells = next((file for file in files if file.name == _CELLS), None)
    if cells is None:
        raise errors.UsageError(f"{folder} has no {_CELLS}, which names the cells")
    rows = sorted(_read(cells), key=lambda row: int(row["index"]))
    if [int(row["index"]) for row in rows] != list(range(len(rows))):
        raise errors.CorruptFileError(f"{cells}: must have each index from 0 once")
    layout = table_layouts.NETWORKS["nasbench201"]
    choices = np.asarray(layout.choices(tabulated.nasbench201(), rows), np.int64)
    devices = []
    for file in (file for file in files if file.parent == cells.parent):
        devices += _devices(file, len(rows))
    # Of columns that repeat each other the one with the most networks stays.
    devices.sort(key=lambda device: -len(device.rows))
    kept: list[Device] = []
    for device in devices:
        if not any(_same(device, other) for other in kept):
            kept.append(device)
    kept.sort(key=lambda device: (device.family, device.name))
    if _FEATURES.value == "one_hot":
        one_hot = choices[:, :, None] == np.arange(1, len(tabulated.NASBENCH201_OPS))
        return one_hot.reshape(1, len(choices), -1).astype(np.float64), kept
    return nasbench201_readings(choices), kept


def spearman(first: Floats, second: Floats) -> float:
    """The correlation of ranks; equal values share their mean rank."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _ridge(known_ms: Floats) -> Callable[[Rows, Floats], Floats]:
    """A regression of log latency on principal components of known devices."""
    components = adaptation.principal_components(known_ms, _COMPONENTS)

    def predict(rows: Rows, measured_ms: Floats) -> Floats:
        logs, x = np.log(measured_ms), components[rows]
        centred = x - x.mean(axis=0)
        gram = centred.T @ centred + _RIDGE * np.eye(_COMPONENTS)
        return components @ np.linalg.solve(gram, centred.T @ (logs - logs.mean()))

    return predict


def _held_out(other: Device, device: Device) -> bool:
    same_table = _HOLD_OUT.value == "table" and other.table == device.table
    return other.family == device.family or same_table


def _same(first: Device, second: Device) -> bool:
    """Whether nearly all networks that both have are equal to a thousandth."""
    both = np.isfinite(first.ms) & np.isfinite(second.ms)
    return bool(both.any() and np.mean(np.abs(first.ms / second.ms - 1)[both] < 1e-3) > 0.99)


def _read(file: pathlib.Path) -> list[dict[str, str]]:
    text = gzip.decompress(file.read_bytes()).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _devices(file: pathlib.Path, count: int) -> list[Device]:
    rows = _read(file)
    found = []
    for column in (column for column in rows[0] if column.endswith("_ms")):
        ms = np.full(count, np.nan)
        for row in rows:
            if row[column]:
                ms[int(row["index"])] = float(row[column])
        name = column.removesuffix("_ms").removesuffix("_latency")
        families = (key for key, names in _FAMILIES.items() if re.fullmatch(names, name))
        found.append(Device(name, file.name, next(families, name), ms))
    return found


def _line(name: str, family: str, networks: str, *figures: float) -> list[str]:
    return [name, family, networks, *(f"{figure:.3f}" for figure in figures)]


if __name__ == "__main__":
    program.run(main)
