"""One training on several devices or machines: which strategy, and who writes its files.

Every process runs the same program. Of `MULTI_WORKER` each finds itself and the others in
TF_CONFIG, as TensorFlow documents it; the first one writes, and all read the same work directory. A
step's batch is dealt out to the replicas, gradients are their mean, and batch normalisation sees
what its own replica was dealt. A process that dies stops the others: all are started again, and go
on after the last whole epoch.
"""

from __future__ import annotations

import hashlib
import os

from tfgen import errors
from tfgen.nets.keras_compat import tf

ONE, MIRRORED, MULTI_WORKER = STRATEGIES = ("one", "mirrored", "multi_worker")


def strategy(name: str) -> tf.distribute.Strategy:
    """One of STRATEGIES: the default device, this machine's GPUs, or the machines of TF_CONFIG.

    MULTI_WORKER comes before anything else that TensorFlow does.

    Raises:
      UsageError: TF_CONFIG is missing or not what TensorFlow reads, or TensorFlow has begun.
    """
    if name == ONE:
        return tf.distribute.get_strategy()
    if name == MIRRORED:
        return tf.distribute.MirroredStrategy()
    if "TF_CONFIG" not in os.environ:
        raise errors.UsageError(
            'strategy multi_worker needs TF_CONFIG: {"cluster": {"worker": ["host:port", ..]}, '
            '"task": {"type": "worker", "index": 0}}'
        )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise errors.UsageError(f"strategy multi_worker: {error}") from error


def leads(chosen: tf.distribute.Strategy) -> bool:
    """Whether this process writes what all of them have made."""
    return bool(chosen.extended.should_checkpoint)


def check_equal(chosen: tf.distribute.Strategy, text: str, what: str) -> None:
    """Waits for all processes; raises UsageError in each where not all have the same text.

    Args:
      chosen: of the processes.
      text: of this one.
      what: it is, for the error.
    """
    # Digits of a hash whose squares are exact, and so their means over a few thousand replicas.
    number = int(hashlib.sha256(text.encode()).hexdigest()[:5], 16)

    def spread() -> tf.Tensor:
        own = tf.constant([number, number * number], tf.float64)
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.MEAN, own)

    if chosen.num_replicas_in_sync == 1:
        return
    mean, square = chosen.experimental_local_results(chosen.run(spread))[0].numpy()
    if square - mean * mean > 0.1 / chosen.num_replicas_in_sync:
        raise errors.UsageError(
            f"the processes differ in {what}: give all the same config, data and work directory"
        )
