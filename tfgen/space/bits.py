"""BitPolicy: which (op, weight bits, activation bits) a runtime executes.

Read from configs/runtimes/, one file for each runtime and version.
"""

from __future__ import annotations

import dataclasses
import functools
import json

from tfgen import errors, workdir

SIMULATED = "simulated"  # a paper's bits, which no runtime executes; export refuses them


@dataclasses.dataclass(frozen=True)
class BitPolicy:
    """The bit-widths that a runtime executes.

    Attributes:
      name: the runtime and its version, the file's name.
      supported: (op, weight bits, activation bits) that run and pack.
    """

    name: str
    supported: frozenset[tuple[str, int, int]]

    def weight_bits(self, op: str, activation_bits: int = 8) -> tuple[int, ...]:
        """The menu of weight bits for an op, ascending."""
        return tuple(sorted(w for o, w, a in self.supported if (o, a) == (op, activation_bits)))

    def executes(self, op: str, weight_bits: int, activation_bits: int) -> bool:
        return (op, weight_bits, activation_bits) in self.supported


@functools.cache
def load(name: str) -> BitPolicy:
    """Reads the policy of that name; raises UsageError that names the known ones."""
    folder = workdir.package_root() / "configs" / "runtimes"
    path = folder / f"{name}.json"
    known = sorted(p.stem for p in folder.glob("*.json"))
    if name not in known:
        raise errors.UsageError(f"unknown runtime {name!r}; known: {', '.join(known)}")
    data = json.loads(path.read_bytes())
    rows = {(row["op"], row["weight_bits"], row["activation_bits"]) for row in data["supported"]}
    return BitPolicy(name, frozenset(rows))
