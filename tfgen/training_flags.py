"""Flags of the programs that train many networks: the limits of a training, and who trains."""

from __future__ import annotations

import dataclasses

from absl import flags

from tfgen.training import cluster
from tfgen.training.population import Limits

flags.disclaim_key_flags()  # help shows them as the program's own


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """What `define` defined; each is read after the command line was."""

    seconds: flags.FlagHolder[float]
    memory_gb: flags.FlagHolder[float | None]
    ray_address: flags.FlagHolder[str | None]
    ray_resources: flags.FlagHolder[list[str]]

    def limits(self, default: Limits) -> Limits:
        """Those of the default with what the flags say."""
        memory_gb = self.memory_gb.value
        memory_bytes = default.memory_bytes if memory_gb is None else int(memory_gb * 1e9)
        return dataclasses.replace(default, seconds=self.seconds.value, memory_bytes=memory_bytes)

    def place(self) -> cluster.Place | None:
        """The cluster that trains; None for this machine. Raises UsageError."""
        return cluster.named(self.ray_address.value, self.ray_resources.value)


def define(seconds: float, memory_gb: float | None, memory_of: str, here: str) -> TrainingFlags:
    """Defines the flags of the module that calls, once.

    Args:
      seconds: of a training, by default.
      memory_gb: of a training, by default; None for what the machine has.
      memory_of: what a training has of it.
      here: how this machine trains, where no cluster does.
    """
    memory = " Default: what the machine has." if memory_gb is None else ""
    return TrainingFlags(
        flags.DEFINE_float(
            "training_seconds", seconds, "Wall time of a training, beyond which it has failed.",
            lower_bound=0.1,
        ),
        flags.DEFINE_float(
            "training_memory_gb", memory_gb, f"Memory of {memory_of}, beyond which it has failed."
            f"{memory}", lower_bound=0.1,
        ),
        flags.DEFINE_string(
            "ray_address", None, "A Ray cluster that trains, as host:6379, or local; needs "
            f"tfgen[ray]. Default: {here}."
        ),
        flags.DEFINE_multi_string(
            "ray_resource", [], "What a machine of the cluster must have for a training, as "
            "NAME=NUMBER; repeat for several."
        ),
    )  # fmt: skip
