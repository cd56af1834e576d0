"""The only module that decides which Keras is in use: tf_keras, the Keras that tfmot quantizes.

Importing it imports TensorFlow (4 to 8 s), so only training and export do.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back what C++ writes to stderr; shows it after all if the block fails.

    TensorFlow's first lines come before its logging reads TF_CPP_MIN_LOG_LEVEL, and the converter's
    and the runtime's do not read it. A user who sets that variable sees everything.
    """
    if _level_is_set:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


_level_is_set = "TF_CPP_MIN_LOG_LEVEL" in os.environ
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# tfmot rewrites this on import; `tf.keras` touched before that would be Keras 3 for good.
os.environ["TF_USE_LEGACY_KERAS"] = "1"

with quiet():
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras as keras

    if "TF_CONFIG" not in os.environ:  # several workers find each other before devices are there
        tf.config.list_logical_devices()  # looks for GPUs, which has its own chatter

if not _level_is_set:
    # Python's half: that several networks are traced in one process is no news here.
    tf.get_logger().setLevel("ERROR")

__all__ = ["keras", "quiet", "tf", "tfmot"]
