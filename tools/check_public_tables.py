"""How well the latencies of public tables are told, on networks that were held out.

    check_public_tables --tables_dir=DIR [--device=pixel3] [--markdown]

Prints a row for each device and space. Of a table that has not every network, each fifth is held
out once:
  * error: median and 95th percentile of |predicted / measured - 1|, and the share within 10 %;
  * covered: share of held-out networks that take no longer than their upper end;
  * chosen: the same for those that a limit chooses: of 50 held-out networks the one whose upper end
    is the largest within the limit; 1,000 limits, each the upper end of a random network.

With --sample_like=DEVICE full tables are fitted too, to the networks that were measured on DEVICE,
and all others are held out: what the fit owes to how such a sample was drawn.
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
from tfgen.space.search_space import Choices, SearchSpace
from tfgen.tables import table

_TABLES_DIR = flags.DEFINE_string("tables_dir", None, "Folder of public tables.", required=True)
_DEVICES = flags.DEFINE_multi_string("device", None, "Default: every device.")
_CONFIDENCE = flags.DEFINE_float("confidence", 0.95, "Of the upper ends.")
_SAMPLE = flags.DEFINE_string(
    "sample_like", None, "Fit full tables as well, to the networks that this device's table has."
)
_MARKDOWN = flags.DEFINE_bool("markdown", False, "Print Markdown.")
_SEED = flags.DEFINE_integer("seed", 1, "Of what is held out and chosen.")

_FOLDS, _LIMITS, _DRAWN = 5, 1_000, 50
_HEADERS = (
    *("device", "space", "held out", "median error", "95th percentile", "within 10 %"),
    *("covered", "chosen"),
)


def measured(device: str, space: SearchSpace) -> tuple[Choices, np.ndarray]:
    """The networks of a table [networks, decisions] and their latencies [networks]."""
    return public_tables.networks(device, space, workdir.user_path(_TABLES_DIR.value))


def held_out(device: str, space: SearchSpace) -> tuple[Interval, np.ndarray] | None:
    """Predictions of networks that the model has not seen, and what was measured [networks].

    None for a table that has every network, unless a sample of it is asked for.
    """
    choices, ms = measured(device, space)
    if len(ms) < space.size():
        order = seeds.stream(_SEED.value, "folds", device, space.name).permutation(len(ms))
        folds = [np.isin(np.arange(len(ms)), order[fold::_FOLDS]) for fold in range(_FOLDS)]
    elif _SAMPLE.value is not None:
        sample, _ = measured(_SAMPLE.value, space)
        known = {row.tobytes() for row in sample}
        folds = [np.array([row.tobytes() not in known for row in choices])]
    else:
        return None
    layout = table_layouts.NETWORKS[space.name]
    terms = Terms(space, layout.groups(space))
    predicted, high, truth = [], [], []
    for out in folds:
        model = NetworkTable(device, choices[~out], ms[~out], terms, layout.parts(space))
        found = model.predict(choices[out], _CONFIDENCE.value)
        predicted.append(found.ms)
        high.append(found.high_ms)
        truth.append(ms[out])
    return Interval(np.concatenate(predicted), np.concatenate(high)), np.concatenate(truth)


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
    space = catalog.get(space_name)
    if public_tables.read(device).entries[space_name].holds == "blocks":
        public_tables.load(device, space, workdir.user_path(_TABLES_DIR.value))
        return (device, space_name, "blocks", *["-"] * 5)
    found = held_out(device, space)
    if found is None:
        return (device, space_name, f"all {space.size():,}", *["-"] * 5)
    interval, ms = found
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
    devices = _DEVICES.value or sorted(public_tables.known())
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
