"""How well the latencies of public tables are told, on networks that were held out.

    check_public_tables --tables_dir=DIR [--device=pixel3] [--markdown]

Prints a row for each device and space. Of a table that has not every network, each fifth is held
out once:
  * error: median and 95th percentile of |predicted / measured - 1|, and the share within 10 %;
  * covered: share of held-out networks that take no longer than their upper end;
  * chosen: the same for those that a limit chooses: of 50 held-out networks the one whose upper end
    is the largest within the limit; 1,000 limits, each the upper end of a random network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from absl import flags

from tfgen import program, seeds, workdir
from tfgen.cost import public_tables, table_layouts
from tfgen.cost.latency import Interval
from tfgen.cost.table_latency import NetworkTable, Terms
from tfgen.space import catalog
from tfgen.tables import table

_TABLES_DIR = flags.DEFINE_string("tables_dir", None, "Folder of public tables.", required=True)
_DEVICES = flags.DEFINE_multi_string("device", None, "Default: every device.")
_CONFIDENCE = flags.DEFINE_float("confidence", 0.95, "Of the upper ends.")
_MARKDOWN = flags.DEFINE_bool("markdown", False, "Print Markdown.")
_SEED = flags.DEFINE_integer("seed", 1, "Of what is held out and chosen.")

_FOLDS, _LIMITS, _DRAWN = 5, 1_000, 50
_HEADERS = (
    *("device", "space", "networks", "median error", "95th percentile", "within 10 %"),
    *("covered", "chosen"),
)


def held_out(device: str, space_name: str) -> tuple[Interval, np.ndarray]:
    """Predictions of networks that the model has not seen, and what was measured [networks]."""
    space = catalog.get(space_name)
    tables_dir = workdir.user_path(_TABLES_DIR.value)
    choices, ms = public_tables.networks(device, space, tables_dir)
    layout = table_layouts.NETWORKS[space_name]
    terms = Terms(space, layout.groups(space))
    order = seeds.stream(_SEED.value, "folds", device, space_name).permutation(len(ms))
    predicted, high = np.empty(len(ms)), np.empty(len(ms))
    for fold in range(_FOLDS):
        out = np.isin(np.arange(len(ms)), order[fold::_FOLDS])
        model = NetworkTable(device, choices[~out], ms[~out], terms, layout.parts(space))
        found = model.predict(choices[out], _CONFIDENCE.value)
        predicted[out], high[out] = found.ms, found.high_ms
    return Interval(predicted, high), ms


def chosen(high: np.ndarray, ms: np.ndarray, random: np.random.Generator) -> float:
    """Share of chosen networks that meet the limit they were chosen for."""
    met = []
    for _ in range(_LIMITS):
        limit = random.choice(high)
        drawn = random.choice(len(ms), _DRAWN, replace=False)
        within = drawn[high[drawn] <= limit]
        if len(within):
            met.append(ms[within[high[within].argmax()]] <= limit)
    return float(np.mean(met))


def row(device: str, space_name: str) -> tuple[str, ...]:
    """The figures of one table."""
    entry = public_tables.read(device).entries[space_name]
    space = catalog.get(space_name)
    if entry.holds == "blocks":
        public_tables.load(device, space, workdir.user_path(_TABLES_DIR.value))
        return (device, space_name, "blocks", *["-"] * 5)
    _, ms = public_tables.networks(device, space, workdir.user_path(_TABLES_DIR.value))
    if len(ms) == space.size():
        return (device, space_name, f"all {len(ms):,}", *["-"] * 5)
    interval, ms = held_out(device, space_name)
    error = np.abs(interval.ms / ms - 1)
    random = seeds.stream(_SEED.value, "limits", device, space_name)
    return (
        *(device, space_name, f"{len(ms):,}"),
        *(f"{np.median(error):.1%}", f"{np.percentile(error, 95):.1%}"),
        *(f"{np.mean(error <= 0.1):.1%}", f"{np.mean(ms <= interval.high_ms):.1%}"),
        f"{chosen(interval.high_ms, ms, random):.1%}",
    )


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    del argv
    known = public_tables.known()
    devices = _DEVICES.value or sorted(known)
    rows = [
        row(device, space) for device in devices for space in public_tables.read(device).entries
    ]
    if _MARKDOWN.value:
        for cells in (_HEADERS, ["---"] * len(_HEADERS), *rows):
            print(f"| {' | '.join(cells)} |")
    else:
        print(table(_HEADERS, rows))


if __name__ == "__main__":
    program.run(main)
