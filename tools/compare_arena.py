"""Whether the arena that is counted is the one that the interpreter allocates.

    compare_arena --networks=200

For every space, random networks as files of int8 (with float and with integer ends), int16 and
float32 activations: how many of the arenas agree to the byte, their range, and what the interpreter
still allocates when XNNPACK takes the ops that it knows.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
from absl import flags

from tfgen import program, seeds
from tfgen.cost import arena as counted
from tfgen.deployment import arena, probe
from tfgen.space import bits, catalog
from tfgen.space.layers import layers_of
from tfgen.space.lowering import lower_batch
from tfgen.space.search_space import SearchSpace
from tfgen.tables import number, table

_NETWORKS = flags.DEFINE_integer("networks", 200, "Of each space.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the networks.")
_KINDS = (
    ("int8, float ends", 8, "float"),
    ("int8", 8, "int8"),
    ("int16, float ends", 16, "float"),
    ("float32", 32, "float"),
)


def main(argv: Sequence[str]) -> None:
    """Prints the table, a line as soon as it is known."""
    del argv
    rows = []
    for name in sorted(catalog.SPACES):
        space = catalog.get(name)
        if space.bit_policy == bits.SIMULATED:
            continue
        for kind, width, io in _KINDS:
            rows.append([name, kind, *_compare(space, width, io)])
            print(*rows[-1], sep="\t", flush=True)
    headers = ["space", "activations", "networks", "equal", "least, B", "most, B", "left, B"]
    print(table(headers, rows))


def _compare(space: SearchSpace, width: int, io: str) -> list[str]:
    policy = None if width == 32 else bits.load(space.bit_policy)
    drawn = space.sample(_NETWORKS.value, seeds.stream(_SEED.value, space.name))
    slots = lower_batch(space, drawn, width)
    with tempfile.TemporaryDirectory(prefix="tfgen-") as folder:
        paths = [pathlib.Path(folder, f"{row}.tflite") for row in range(len(drawn))]
        for row, path in enumerate(paths):
            layers = layers_of(slots, row)
            path.write_bytes(probe.write_probe(layers, space.input_shape, policy, io=io))
        measured = np.array(arena.measure(*paths))
        left = arena.measure(*paths, xnnpack=True)
    equal = int((counted.arena_bytes(slots, io) == measured).sum())
    numbers = (len(drawn), equal, measured.min(), measured.max(), int(np.mean(left)))
    return [number(float(value)) for value in numbers]


if __name__ == "__main__":
    program.run(main)
