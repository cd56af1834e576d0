"""Damaged Keras models end in an error that names the file, or in a model."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import errors
from tfgen.nets import keras_file

LIMITS = {"timeout_seconds": 60, "memory_bytes": 6 << 30}
TRUNCATED, FLIPPED = 2, 5
WRITE = """
import sys, keras
from tests.nets import keras_models
model = keras_models.plain(keras)
model.save(sys.argv[1] + "/model.keras")
model.save(sys.argv[1] + "/model.h5")
"""


def mutants(content: bytes) -> dict[str, bytes]:
    """Damaged copies by name: half as flips of what stands first, where the description is."""
    random = np.random.default_rng(0)
    made = {"empty": b""}
    for number, length in enumerate(random.integers(1, len(content), TRUNCATED)):
        made[f"truncated_{number}"] = content[:length]
    for number in range(FLIPPED):
        damaged = bytearray(content)
        for place in random.integers(len(content) if number % 2 else 4096, size=4):
            damaged[place] ^= 1 << random.integers(8)
        made[f"flipped_{number}"] = bytes(damaged)
    return made


class KerasMutantsTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        subprocess.run(
            [sys.executable, "-c", WRITE, str(cls.folder)],
            check=True,
            env=environment,
            capture_output=True,
        )

    @parameterized.parameters("keras", "h5")
    def test_an_error_or_a_model(self, suffix):
        content = (self.folder / f"model.{suffix}").read_bytes()
        refused = []
        for name, damaged in mutants(content).items():
            path = self.folder / f"{name}.{suffix}"
            path.write_bytes(damaged)
            start = time.monotonic()
            try:
                keras_file.read(path, **LIMITS)
            except errors.TfgenError as error:
                self.assertIn(path.name, str(error))
                self.assertLess(len(str(error)), 1000)
                refused.append(name)
            self.assertLess(time.monotonic() - start, LIMITS["timeout_seconds"] + 10)
        # What is short is refused; a flipped weight of HDF5 is as good as another one.
        self.assertContainsSubset({"empty", "truncated_0", "truncated_1"}, refused)
        # Archives know their content; of the first 4,096 bytes some 200 are of headers that nobody
        # reads, so one in 10**5 of these is missed.
        if suffix == "keras":
            self.assertContainsSubset({"flipped_0", "flipped_2", "flipped_4"}, refused)


if __name__ == "__main__":
    absltest.main()
