"""From a Keras file to measured smaller networks, on data that ship."""

import csv
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import types
from unittest import mock

import numpy as np
from absl.testing import absltest

from tfgen import bundle as bundles
from tfgen import errors, prototypes, workdir
from tfgen.experiment import Experiment
from tfgen.nets.keras_compat import keras
from tfgen.training import datasets, tasks
from tfgen.training.datasets import Split
from tools import reproduce_synthesis

QUICK = [
    "--adaptation_epochs=2",
    "--cycles=2",
    "--tuning_steps=200",
    "--task=california_housing",
]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tfgen.generate", *arguments],
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


class PrototypesTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.temporary = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.temporary.name)
        cls.model = cls.root / "mine" / "model.keras"
        cls.model.parent.mkdir()
        keras.utils.set_random_seed(1)
        k = keras.layers
        model = keras.Sequential(
            [
                keras.Input((8,)),
                k.Dense(48, activation="relu"),
                k.Dense(48, activation="relu"),
                k.Dense(1),
            ]
        )
        model.compile(keras.optimizers.Adam(3e-3), "mse")
        data = datasets.california_housing()
        model.fit(data.train.x, data.train.y, 64, epochs=4, verbose=0)
        cls.r2 = data.task.score(data.test.y, np.asarray(model(data.test.x)))
        model.save(cls.model)
        told = {"dataset": data.fingerprint, "test": cls.r2}
        workdir.write_json(cls.model.parent / "metrics.json", told)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()
        super().tearDownClass()

    def test_smaller_networks_that_keep_the_requirement(self):
        self.assertGreater(self.r2, 0.7)
        out = self.root / "gensynth1"
        arguments = (
            f"--prototype={self.model}", "--require=r2=0.62", "--count=2", f"--output_dir={out}",
            *QUICK,
        )  # fmt: skip
        done = run(*arguments)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("layer 'dense_2' is left whole: it is the network's output", done.stderr)
        self.assertEqual(done.stdout.count("contract kept"), 2)
        self.assertEqual(done.stdout.count("NetScore"), 2)
        whole = 8 * 48 + 48 * 48 + 48  # MACs of the prototype
        for contract in out.glob("deployments/*/contract.json"):
            terms = {t["metric"]: t for t in json.loads(contract.read_text())["terms"]}
            self.assertGreaterEqual(terms["r2"]["measured"], 0.62)
            self.assertLess(terms["macs"]["measured"], whole / 2)
        manifest = workdir.read_manifest(out / "prototype")
        self.assertEqual(manifest["parents"], {self.model.name: workdir.sha256(self.model)})
        self.assertIsNone(bundles.load(out / "bundle").shared.teacher)

        # The figure has the prototype and both networks, and counts as we do.
        reproduce_synthesis.figure(1, self.root, None, 0, self.root / "results", lambda text: None)
        text = (self.root / "results" / "gensynth1.csv").read_text().splitlines()
        self.assertLen(text, 4)
        self.assertIn(f"mine,prototype,{self.r2:.6g},{whole + 97},{whole}", text[-1])
        rows = (self.root / "results" / "gensynth1_searched.csv").read_text().splitlines()
        self.assertLen(rows, 1 + 5 * 3)
        with (self.root / "results" / "gensynth1_seeds.csv").open() as file:
            of_seeds = list(csv.DictReader(file))
        self.assertLen(of_seeds, 5)
        for row in of_seeds:
            self.assertEqual(int(row["seeds"]), 20)
            self.assertBetween(int(row["networks"]), 1, 20)
            self.assertIn(20 * float(row["keeping"]), range(21))
        # The weaker the requirement, the more random points keep it.
        shares = [float(row["random_keeping"]) for row in of_seeds]
        self.assertEqual(shares, sorted(shares))
        self.assertTrue((self.root / "results" / "gensynth1.png").is_file())
        # Where nothing was delivered there is the comparison alone.
        delivered, alone, told = out / "deployments", self.root / "alone", []
        delivered.rename(out / "aside")
        reproduce_synthesis.figure(1, self.root, None, 0, alone, told.append)
        (out / "aside").rename(delivered)
        self.assertIn("nothing was delivered", told[-1])
        self.assertCountEqual(
            [path.name for path in alone.iterdir()],
            [
                f"gensynth1_{table}.{kind}"
                for table in ("searched", "seeds")
                for kind in ("csv", "md")
            ],
        )

        # Without the bundle the generator is read again: it answers as it did.
        candidates = (out / "candidates.json").read_text()
        (out / "bundle").rename(self.root / "older")
        resumed = run(*arguments, "--stop_after=candidates")
        self.assertEqual(resumed.returncode, 0, resumed.stderr)
        self.assertNotIn("are scored", resumed.stderr)
        self.assertIn("gain 1/3", resumed.stderr)
        self.assertEqual((out / "candidates.json").read_text(), candidates)

        # What was made is not made again; the bundle answers other requirements.
        again = run(*arguments[:1], "--require=r2=0.55", *arguments[2:], "--stop_after=candidates")
        self.assertEqual(again.returncode, 0, again.stderr)
        for made in ("epoch 1/2", "are scored", "gain 1/3"):
            self.assertIn(made, done.stderr)
            self.assertNotIn(made, again.stderr)
        # Its predictions are of trained networks, so by default they are trained.
        # The best below 0.25 kB has 0.70 to 0.73 on the file; the smallest that is predicted to
        # reach 0.55 has 2-bit weights and misses it now and then.
        budget = "--budget=r2=0.55,storage_kb=0.25"
        answer = run(budget, f"--bundle={out / 'bundle'}", f"--output_dir={out}")
        self.assertEqual(answer.returncode, 0, answer.stderr)
        self.assertIn("by gensynth", answer.stdout)
        self.assertIn("step 50 of 200", answer.stdout)

        # Another model needs another place.
        other = self.root / "other.keras"
        keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)]).save(other)
        refused = run(f"--prototype={other}", "--require=r2=0.5", f"--output_dir={out}", *QUICK)
        self.assertEqual(refused.returncode, 2)
        self.assertIn("is of another prototype (sha256 differ); use another", refused.stderr)

    def test_images_are_moved_by_an_eighth_of_their_side(self):
        data = datasets.california_housing()
        config = prototypes.PrototypeConfig(
            fine_tuning=dataclasses.replace(
                prototypes.PrototypeConfig().fine_tuning, distillation=1.0
            )
        )
        for shape, shift in (((32, 32, 3), 4), ((120, 160, 3), 15), ((480, 640, 3), 16), ((8,), 0)):
            space = mock.Mock(input_shape=shape)
            space.name = "s"
            experiment = config.experiment(space, data)
            for recipe in (experiment.supernet, experiment.fine_tuning):
                self.assertEqual((recipe.shift, recipe.flip), (shift, shift > 0))
            # Who trains from scratch has no teacher.
            self.assertEqual(experiment.recipe.distillation, 0.0)
            self.assertEqual(experiment.fine_tuning.distillation, 1.0)
        with self.assertRaisesRegex(ValueError, "has no teacher"):
            dataclasses.replace(experiment, recipe=experiment.fine_tuning)

    def test_a_float_stage_follows_the_size_of_images_and_data(self):
        # 366 images: batches of 8, a fiftieth of them, and 0.1 * sqrt(8 / 128).
        data = datasets.california_housing()
        few = datasets.Split(data.train.x[:366], data.train.y[:366])
        space = mock.Mock(input_shape=(32, 32, 3))
        space.name = "s"
        defaults = prototypes.PrototypeConfig().fine_tuning
        lit = dataclasses.replace(defaults, light=0.2, distillation=1.0)
        config = prototypes.PrototypeConfig(fine_tuning=prototypes.after_float(lit, 30, True))
        experiment = config.experiment(space, dataclasses.replace(data, train=few))
        stage = experiment.fine_tuning.float_stage
        self.assertEqual((stage.epochs, stage.batch_size, stage.bfloat16), (30, 8, True))
        self.assertEqual((stage.shift, stage.flip, stage.light), (4, True, 0.2))
        self.assertAlmostEqual(stage.learning_rate, 0.025)
        self.assertEqual(experiment.fine_tuning.learning_rate, 1e-5)
        self.assertFalse(experiment.recipe.distils)
        self.assertEqual(Experiment.from_config(experiment.to_json()), experiment)
        with self.assertRaisesRegex(errors.UsageError, "config: .*positive epochs"):
            told = experiment.to_json()
            told["fine_tuning"]["float_stage"]["epochs"] = -3
            Experiment.from_config(told)
        space.input_shape = (8,)
        with self.assertRaisesRegex(errors.UsageError, "no images to light"):
            config.experiment(space, data)

    def test_a_model_that_knows_nothing_of_the_data_is_refused(self):
        untrained = self.root / "untrained.keras"
        keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(1)]).save(
            untrained
        )
        out = self.root / "guesses"
        done = run(f"--prototype={untrained}", "--require=r2=0.5", f"--output_dir={out}", *QUICK)
        self.assertEqual(done.returncode, 2)
        self.assertIn("little more than guesses have; the inputs of 'california_h", done.stderr)
        self.assertFalse(out.exists())

    def test_what_cannot_be_met_is_said_before_anything_is_trained(self):
        out = self.root / "soon"
        requirement = "--require=r2=0.99,params=5"
        done = run(f"--prototype={self.model}", requirement, f"--output_dir={out}", *QUICK)
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn("is more than the prototype's own 0.", done.stderr)
        self.assertIn("has less than params", done.stderr)
        self.assertStartsWith(done.stderr.splitlines()[-1], "nearest feasible: --require=")
        self.assertNotIn("epoch 1/", done.stderr)
        # What can be neither cut nor have fewer bits makes no space.
        small = self.root / "small.keras"
        k = keras.layers
        layers = [keras.Input((4, 4, 3)), k.Conv2D(6, 3), k.Conv2D(1, 2), k.Flatten()]
        keras.Sequential(layers).save(small)
        images = self.enter_context(mock.patch.object(prototypes.fitting, "check"))
        self.enter_context(mock.patch.object(prototypes, "_guessed", return_value=-np.inf))
        data = types.SimpleNamespace(
            name="images",
            fingerprint="f",
            task=tasks.REGRESSION,
            preprocessing={},
            **dict.fromkeys(
                ("validation", "test"), Split(np.ones((4, 4, 4, 3), np.float32), np.eye(4)[:, :1])
            ),
        )
        work = workdir.WorkDir(self.root / "uncut")
        with self.assertRaisesRegex(errors.UsageError, "nothing of it can be cut or have fewer"):
            prototypes.read(str(small), data, work, prototypes.PrototypeConfig(), print)
        images.assert_called_once()
        self.assertFalse(work.prototype.exists())

    def test_bad_input_is_one_line(self):
        model = f"--prototype={self.model}"
        broken = self.root / "broken.keras"
        broken.write_bytes(self.model.read_bytes()[:1000])
        for arguments, message in (
            ([model, "--require=r2=0.5"], "--prototype needs --task"),
            ([model, "--require=r2=0.5", "--task=mars"], "unknown data set 'mars'"),
            ([model, "--require=r2=0.5", "--bfloat16", *QUICK], "--bfloat16 goes with --float_ep"),
            (["--budget=macs=9", "--light=0.2"], "--light goes with --prototype"),
            ([model, "--require=accuracy=0.5", *QUICK], "judged by r2, not by accuracy"),
            (["--require=r2=0.5"], "--require goes with --prototype"),
            (["--budget=macs=9", "--cycles=3"], "--cycles goes with --prototype"),
            ([model, "--budget=r2=0.5", *QUICK], "--require in place of --budget"),
            ([model, "--require=r2=0.5", "--method=nag", *QUICK], "are of gensynth or random"),
            (["--budget=macs=9", "--task=mnist"], "--task goes with --prototype"),
            (["--prototype=a.onnx", "--require=r2=0.5", *QUICK], "give a .keras, .h5, .hdf5 file"),
            (["--prototype=a.keras", "--require=r2=0.5", *QUICK], "a.keras: file is missing"),
            # Said before data are looked for, of which there are none here.
            ([model, "--require=r2=0.5", "--task=cifar10"], "judged by accuracy, not by r2"),
            ([f"--prototype={broken}", "--require=accuracy=0.5", "--task=cifar10"], "no zip arc"),
        ):
            out = self.root / "none"
            done = run(*arguments, f"--output_dir={out}")
            self.assertIn(done.returncode, (1, 2), done.stderr)
            self.assertIn(message, done.stderr)
            self.assertLen(done.stderr.strip().splitlines(), 1, done.stderr)
            self.assertFalse(out.exists())


if __name__ == "__main__":
    absltest.main()
