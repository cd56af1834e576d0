"""The program that searches by training: it resumes, counts what is new, and refuses bad input."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "--config=configs/california_housing_mlp.py"
QUICK = ("--config.recipe.steps=30", "--config.recipe.starts=1", "--config.recipe.warmup_steps=5")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/search.py", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
    )


class SearchTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.work = pathlib.Path(folder.name)

    def test_trains_for_real_and_goes_on_where_it_stopped(self):
        output = self.work / "found.json"
        flags = [CONFIG, *QUICK, "--method=genetic", "--budget=storage_kb=0.5", "--processes=1"]
        flags += [f"--work_dir={self.work}", "--max_evaluations=8", "--count=3"]
        results = []
        for seed, new in ((1, 8), (1, 0), (2, 8)):
            done = run(*flags, f"--seed={seed}", f"--output={output}")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(f"8 trainings, {new} of them new", done.stdout)
            results.append(json.loads(output.read_text())["best"])
        first, again, other = results
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)
        self.assertLen(first, 3)
        for row in first:
            self.assertLessEqual(row["costs"]["storage_kb"], 0.5)

    @parameterized.parameters(
        (["--method=ga", "--budget=macs=100"], 2, "unknown search 'ga'; known: bayesian"),
        (["--budget=speed=1"], 2, "unknown metric 'speed'"),
        (["--budget=latency_ms=1@here"], 2, "latency_ms cannot be told"),
        (["--budget=accuracy=0.9"], 2, "judged by r2, not by accuracy"),
        (["--budget=macs=100", "--max_evaluations=0"], 2, "--max_evaluations=0"),
        ([], 2, "--budget"),
    )
    def test_bad_input_is_one_line(self, arguments, code, message):
        done = run(CONFIG, f"--work_dir={self.work / 'new'}", *arguments)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertIn(message, done.stderr)
        self.assertLen(done.stderr.strip().splitlines(), 1, done.stderr)
        self.assertFalse((self.work / "new").exists())

    def test_a_budget_below_every_network_names_the_nearest(self):
        done = run(CONFIG, f"--work_dir={self.work}", "--budget=macs=1")
        self.assertEqual(done.returncode, 3, done.stderr)
        # One layer of one unit: 8 weights, and 1 of the output.
        self.assertIn("nearest feasible: --budget=macs=9", done.stderr)


if __name__ == "__main__":
    absltest.main()
