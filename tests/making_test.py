"""A network's file from a child process or a cluster: the same bytes, limits, and what ends it."""

import dataclasses
import importlib.util
import os
import pathlib
import signal
import tempfile
from unittest import mock

from absl.testing import absltest

from tests.space.small import mlp
from tfgen import errors, making, workdir
from tfgen.space import catalog
from tfgen.training import cluster, datasets, population, trainer
from tfgen.training.recipe import Recipe

RAY = importlib.util.find_spec("ray") is not None


class MakingTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.order = making.Order(
            catalog.get("california_housing_mlp"),
            mlp((6, 1), (4, 8), 8),
            datasets.california_housing(),
            Recipe(steps=60, batch_size=32, warmup_steps=5),
            seed=3,
        )

    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

    def in_child(self, order=None, **limits):
        limits = dataclasses.replace(making.default_limits(), **limits)
        return making.InChild(limits)(order or self.order, self.root)

    def check_same(self, here, there):
        for name in (making.MODEL, making.RECIPE):
            self.assertEqual((here / name).read_bytes(), (there / name).read_bytes())
        layers = workdir.read_manifest(there / making.TRAINED)["config"]["layers"]
        self.assertEqual([layer["name"] for layer in layers], ["hidden_1", "output"])

    def test_a_child_makes_the_same_file(self):
        here, there = self.root / "here", self.root / "there"
        steps = []
        making.make(self.order, here, trained=here / making.TRAINED)
        path = making.InChild()(
            self.order,
            there,
            trained=there / making.TRAINED,
            progress=lambda done, loss: steps.append(done),
        )
        self.assertEqual(path, there / making.MODEL)
        self.check_same(here, there)
        self.assertEqual(steps[-1], 60)

    def test_a_network_that_was_trained_is_not_trained_again(self):
        here, there, trained = self.root / "here", self.root / "there", self.root / "trained"
        making.make(self.order, here, trained=trained)
        with mock.patch.object(trainer, "train", side_effect=AssertionError):
            making.make(self.order, there, trained=trained)
            for name in (making.MODEL, making.RECIPE):
                self.assertEqual((here / name).read_bytes(), (there / name).read_bytes())
            with self.assertRaises(AssertionError):  # another one is
                making.make(dataclasses.replace(self.order, seed=4), there, trained=trained)
        # One that is damaged is replaced.
        written = (trained / workdir.MANIFEST).read_bytes()
        (trained / trainer.MODEL).write_bytes(b"nothing")
        making.make(self.order, there, trained=trained)
        self.assertNotEqual((trained / workdir.MANIFEST).read_bytes(), written)
        self.assertEqual((here / making.MODEL).read_bytes(), (there / making.MODEL).read_bytes())

    @absltest.skipUnless(RAY, "needs Ray: pip install tfgen[ray]")
    def test_a_cluster_makes_the_same_files(self):
        other = dataclasses.replace(self.order, seed=4)
        here, there = self.root / "here", self.root / "there"
        making.make(self.order, here, trained=here / making.TRAINED)
        home = self.create_tempdir().full_path  # where Ray writes a token
        self.enter_context(mock.patch.dict(os.environ, HOME=home, RAY_worker_niceness="0"))
        place = cluster.Place(cluster.LOCAL)
        limits = making.default_limits()
        with making.OnCluster(place, [other, self.order], limits) as maker:
            maker(self.order, there, trained=there / making.TRAINED)
            maker(other, self.root / "other")
        self.check_same(here, there)
        seed = workdir.read_json(self.root / "other" / making.RECIPE)["training"]["seed"]
        self.assertEqual(seed, 4)

    def test_limits(self):
        with self.assertRaisesRegex(errors.TrainingFailedError, r"took more than 0\.5 s"):
            self.in_child(seconds=0.5)
        # TensorFlow alone is more.
        with self.assertRaisesRegex(errors.TrainingFailedError, r"took more than 0\.05 GB"):
            self.in_child(memory_bytes=50_000_000)
        self.assertEmpty(os.listdir(self.root))

    def test_errors_are_those_of_the_child(self):
        recipe = dataclasses.replace(self.order.recipe, learning_rate=1e30, warmup_steps=0)
        with self.assertRaisesRegex(errors.TrainingFailedError, population.DIVERGED):
            self.in_child(dataclasses.replace(self.order, recipe=recipe))
        layers = mlp((6, 2), (4, 8), 8)
        with self.assertRaisesRegex(errors.UsageError, "2 outputs"):
            self.in_child(dataclasses.replace(self.order, layers=layers))

    def test_a_child_that_is_killed_is_started_again_once(self):
        killed = []

        def kill(pid, most):
            if pid not in killed and len(killed) < most:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)
            return 0

        with mock.patch.object(making, "_resident_bytes", lambda pid: kill(pid, 1)):
            self.assertTrue(self.in_child().is_file())
        self.assertLen(killed, 1)
        killed.clear()
        with (
            mock.patch.object(making, "_resident_bytes", lambda pid: kill(pid, 9)),
            self.assertRaisesRegex(errors.TrainingFailedError, "ended with SIGKILL"),
        ):
            self.in_child()
        self.assertLen(killed, 2)


if __name__ == "__main__":
    absltest.main()
