"""Networks of others: they react, learn together, inherit and become files."""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from tests.nets import keras_models
from tfgen import seeds
from tfgen.cost.cost_model import CostModel
from tfgen.deployment import export
from tfgen.nets import keras_file, prototype_network, pruning
from tfgen.nets.supernet import SCALE, SHIFT, Supernet
from tfgen.space.lowering import lower
from tfgen.space.prototype import Prototype
from tfgen.training import probing, supernet_training, tasks, trainer
from tfgen.training.datasets import Dataset, Split
from tfgen.training.recipe import SupernetRecipe
from tfgen.training.supernet_training import SupernetTraining

RECIPE = SupernetRecipe(
    epochs=1, batch_size=32, learning_rate=0.01, float_share=0.0, switchable=False,
    distillation=1.0, largest_share=0.25,
)  # fmt: skip


def dataset(task: tasks.Task = tasks.CLASSIFICATION) -> Dataset:
    random = seeds.stream(1, "images")
    size = keras_models.SHAPE[:2] if task == tasks.SEGMENTATION else ()

    def split(count: int) -> Split:
        x = random.uniform(0.0, 1.0, (count, *keras_models.SHAPE)).astype(np.float32)
        least = tasks.VOID if task == tasks.SEGMENTATION else 0
        return Split(x, random.integers(least, 10, size=(count, *size)))

    return Dataset("noise", task, split(128), split(64), split(64), {})


class PrototypesOfOthersTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name)
        subprocess.run(
            [sys.executable, "-m", "tests.nets.keras_models", "2", cls.folder],
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            capture_output=True,
        )

    def supernet(self, name: str) -> Supernet:
        """With the weights of the model."""
        path = self.folder / f"{name}.keras"
        found = prototype_network.read(keras_file.read(path), name)
        prototype = Prototype(found.layers, found.input_shape)
        supernet = Supernet(prototype.space(name), seed=1, switchable=False)
        order = pruning.importance(prototype, found.weights)
        kept = pruning.pruned(prototype, found.weights, found.layers, order)
        supernet.take(found.layers, kept)
        return supernet

    @parameterized.parameters(*keras_models.MODELS)
    def test_from_the_model_to_the_file_of_a_smaller_one(self, name):
        task = tasks.SEGMENTATION if name == "segmenting" else tasks.CLASSIFICATION
        supernet, data = self.supernet(name), dataset(task)
        space = supernet.space
        training = SupernetTraining(supernet, data, RECIPE, seed=2)
        self.assertTrue(np.isfinite(training.run_epoch()))
        for row in space.sample(2, seeds.stream(3, name)):
            layers = lower(space, space.architecture(row))
            reactions = probing.probe(supernet, layers, data.train, data.task)
            self.assertGreater(reactions.sensitivity.max(), 0.0)
            metric = supernet_training.score(
                supernet, layers, data.task, data.validation, data.train.x[:64]
            )
            self.assertBetween(metric, 0.0, 1.0)
        layers = lower(space, space.point({}))  # 8 bits: the files of others are exact
        own = supernet.weights(layers)
        trained = trainer.inherit(layers, own, data.train.x, data)
        exported = export.export(trained.model, trained.layers, data.test.x, space.bit_policy)
        # Counted to the byte, windows that stay within the image among them; a ReLU whose range
        # does not begin at 0 costs 16 bytes.
        counted = CostModel(space).cost(space.point({}))["file_kb"] * 1000
        self.assertBetween(len(exported.content) - counted, 0, 64)
        self.assertEqual((len(exported.content) - counted) % 16, 0)

    def test_what_is_lost(self):
        supernet, data = self.supernet("plain"), dataset()
        space = supernet.space
        layers = lower(space, space.point({}))
        # A layer whose scales and shifts are zero has no say; what reads it has none either.
        silent = next(layer for layer in layers if layer.batch_norm)
        before = probing.probe(supernet, layers, data.train, data.task)
        for part in (SCALE, SHIFT):
            variable = supernet.variables[f"{silent.name}/{part}"]
            variable.assign(np.zeros(variable.shape, np.float32))
        after = probing.probe(supernet, layers, data.train, data.task)
        width = space.index[f"width_{silent.name}"]
        self.assertGreater(before.sensitivity[width], 0.0)
        self.assertEqual(after.sensitivity[width], 0.0)
        for decision, lost in zip(space.decisions, before.lost, strict=True):
            if decision.name.startswith("width_"):
                self.assertEqual(lost[-1], 0.0)
                self.assertTrue((np.diff(lost) <= 0.0).all(), decision.name)
            if decision.name.startswith("bits_"):
                order = np.argsort([int(value) for value in decision.values])
                self.assertTrue((np.diff(lost[order]) < 0.0).all(), decision.name)
                self.assertLess(lost[order][-1], 0.05)  # 8 bits are nearly all


if __name__ == "__main__":
    absltest.main()
