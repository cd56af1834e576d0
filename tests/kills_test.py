"""Kills while TensorFlow is at work: what is there in the end is what an undisturbed run makes.

Two kills of each stage, at moments that are drawn anew in every run; tools/bench_kills.py is the
long form. Kills of `collect` and of writers, twenty each, are in collect_test and surviving_test.
"""

import os
import subprocess
import sys

from absl.testing import absltest, parameterized

from tools import bench_kills

KILLS = 2


class KillsTest(parameterized.TestCase):
    @parameterized.parameters("train", "supernet", "deliver", "export")
    def test_ends_as_if_undisturbed(self, stage):
        # A process of its own: it forks before TensorFlow has threads.
        done = subprocess.run(
            [sys.executable, bench_kills.__file__, f"--stage={stage}", f"--kills={KILLS}"],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        self.assertIn(f'"kills": {KILLS}', done.stdout)


if __name__ == "__main__":
    absltest.main()
