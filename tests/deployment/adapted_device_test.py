"""A new device from few measurements, as users meet it: its program, its budget, its answers."""

import gzip
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import errors, seeds
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.deployment import devices
from tfgen.generators.baselines import RandomGenerator
from tfgen.selection import Selector
from tfgen.space import catalog

SPACE = catalog.get("fbnet")
NETWORKS = SPACE.sample(300, seeds.stream(1, "networks"))
MS = 10.0 + NETWORKS.sum(axis=1)  # about 98


class Alike:
    """Predicts 0.5 for every network."""

    def predict(self, choices, confidence):
        del confidence
        half = np.full(len(choices), 0.5)
        return types.SimpleNamespace(performance=half, metric=half, low=half, high=half)


def texts(choices):
    return [" ".join(map(str, row)) for row in choices.tolist()]


class AdaptedDeviceTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.user = pathlib.Path(self.create_tempdir().full_path)
        self.addCleanup(os.chdir, pathlib.Path.cwd())
        os.chdir(self.user)
        (self.user / "configs" / "devices").mkdir(parents=True)
        # Two devices, the second twice as slow; the new one takes 7 times the first's time.
        lines = ["ops,a_ms,b_ms"]
        lines += [f"{t},{ms},{2 * ms}" for t, ms in zip(texts(NETWORKS), MS, strict=True)]
        data = gzip.compress("\n".join([*lines, ""]).encode(), mtime=0)
        (self.user / "tables").mkdir()
        (self.user / "tables" / "t.csv.gz").write_bytes(data)
        for name in ("made_up_a", "made_up_b"):
            entry = {
                "file": {"name": "t.csv.gz", "sha256": hashlib.sha256(data).hexdigest()},
                "holds": "networks",
                "column": f"{name[-1]}_ms",
                "source": "someone/something@01234567",
                "licence": "MIT",
                "measured": "in a test",
            }
            self.write(name, {"kind": "public", "description": "x", "tables": {"fbnet": entry}})
        measured = zip(texts(NETWORKS[:10]), 7 * MS[:10], strict=True)
        lines = ["network,ms", *(f"{network},{ms}" for network, ms in measured)]
        (self.user / "measured.csv").write_text("\n".join(lines))

    def write(self, name, data):
        (self.user / "configs" / "devices" / f"{name}.json").write_text(json.dumps(data))

    def profile(self, *arguments):
        return subprocess.run(
            [sys.executable, "-m", "tools.profile_device", "--space=fbnet", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.user,
            env={
                **os.environ,
                "BUILD_WORKING_DIRECTORY": str(self.user),
                "PYTHONPATH": os.pathsep.join(
                    [str(pathlib.Path(__file__).parents[2]), *filter(None, sys.path)]
                ),
            },
        )

    def adapt(self, known, *arguments):
        return self.profile(
            f"--adapt_from={known}", "--measured=measured.csv", "--tables_dir=tables", *arguments
        )

    def test_from_measurements_to_candidates(self):
        done = self.adapt("all", "--device=new", "--description=a phone")
        self.assertEqual(done.returncode, 0, done.stderr)
        # Devices of others on this space are known too, but their tables are not there.
        self.assertIn("known devices: made_up_a, made_up_b\n", done.stdout)
        self.assertIn("10 networks measured on new and 2 known devices", done.stdout)

        model = devices.latency_model("new", SPACE, tables_dir=self.user / "tables")
        # Known devices differ in speed only, so the new one is 7 times the first; their fit's ridge
        # takes a thousandth.
        found = model.predict(NETWORKS, 0.95)
        np.testing.assert_allclose(found.ms, 7 * MS, rtol=0.01)

        # "7 * 80 ms on the new device": the networks with the least sums of codes.
        limit = 7 * 80.0
        chosen = Selector(count=5, confidence=0.95).select(
            SPACE,
            RandomGenerator(SPACE),
            Alike(),
            CostModel(SPACE, latency=model),
            Budget.parse(f"latency_ms={limit}@new"),
            "random",
            seed=0,
        )
        self.assertLen(chosen, 5)
        choices = SPACE.choices([candidate.architecture for candidate in chosen])
        self.assertTrue((model.predict(choices, 0.95).high_ms <= limit).all())

        with self.assertRaisesRegex(errors.UsageError, "'new' .*--stop_after=candidates"):
            devices.check_here("new")
        with self.assertRaisesRegex(errors.UsageError, "adapted on fbnet, not on nasbench201"):
            devices.latency_model("new", catalog.get("nasbench201"))
        with self.assertRaisesRegex(errors.UsageError, "--tables_dir"):
            devices.latency_model("new", SPACE)

    def test_adapted_devices_are_not_adapted_from(self):
        measured = dict.fromkeys(texts(NETWORKS[:3]), 7.0)
        data = {"kind": "adapted", "description": "", "space": "fbnet", "date": "2026-11-22"}
        self.write("old", {**data, "from": ["made_up_a", "old"], "networks": measured})
        with self.assertRaisesRegex(errors.UsageError, "'old' is adapted itself"):
            devices.latency_model("old", SPACE, tables_dir=self.user / "tables")
        self.assertEqual(devices.known_on(SPACE, self.user / "tables"), ["made_up_a", "made_up_b"])

    @parameterized.parameters(
        ("made_up_a,made_up_b", ["--device=made_up_a"], "is known already"),
        ("made_up_a,made_up_b", [], "give --device"),
        ("made_up_a,made_up_x", ["--device=new"], "unknown device 'made_up_x'; known: "),
        ("made_up_a", ["--device=new"], "two known devices or more"),
        ("all", ["--device=new", "--tables_dir=configs"], "got none; public tables"),
        ("all", ["--device=new", "--space=mnist_mlp"], "give one --space"),
    )
    def test_one_line_and_nothing_written(self, known, arguments, message):
        before = sorted(self.user.rglob("*.json"))
        done = self.adapt(known, *arguments)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(message, done.stderr)
        self.assertLen(done.stderr.strip().splitlines(), 1, done.stderr)
        self.assertEqual(sorted(self.user.rglob("*.json")), before)

    def test_suggestions_are_a_file_to_fill_in(self):
        done = self.profile("--suggest=4", "--seed=3")
        self.assertEqual(done.returncode, 0, done.stderr)
        first, *lines = done.stdout.splitlines()
        self.assertEqual(first, "network,ms")
        self.assertLen(set(lines), 4)
        for line in lines:
            self.assertRegex(line, r"^[0-8]( [0-8]){21},$")


if __name__ == "__main__":
    absltest.main()
