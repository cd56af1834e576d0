"""Files of image networks with every op against the networks they were made from."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import every_op
from tfgen import errors
from tfgen.cost import file_size
from tfgen.deployment import benchmark, export, tflite_file
from tfgen.nets import rounding
from tfgen.space import bits
from tfgen.space.layers import LayerSpec, slots_of
from tfgen.training import datasets, quantize_aware, tasks, trainer
from tfgen.training.recipe import Recipe

POLICY = bits.load("litert-2.3")
RECIPE = Recipe(steps=120, batch_size=32, learning_rate=3e-3, warmup_steps=10)


def bars(count: int, seed: int) -> datasets.Split:
    """8x8 images of noise with a bar that is horizontal, vertical or diagonal: three classes."""
    random = np.random.default_rng(seed)
    x = random.uniform(0, 0.5, (count, 8, 8, 1)).astype(np.float32)
    y = random.integers(0, 3, len(x))
    place = random.integers(0, 8, len(x))
    steps = np.arange(8)
    for image, label, at in zip(x, y, place, strict=True):
        rows = np.where(label == 1, steps, at) if label < 2 else steps
        columns = np.where(label == 0, steps, at) if label < 2 else (steps + at) % 8
        image[rows, columns, 0] += 0.5
    return datasets.Split(x, y)


def images() -> datasets.Dataset:
    drawn = bars(2400, 0)
    splits = [
        datasets.Split(drawn.x[a:b], drawn.y[a:b])
        for a, b in ((0, 1200), (1200, 1400), (1400, 2400))
    ]
    return datasets.Dataset("bars", tasks.CLASSIFICATION, *splits, preprocessing={})


class ImagesTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.data = images()
        cls.trained = trainer.train(every_op(), cls.data, RECIPE, 1)
        cls.exported = cls.export(cls.trained.model, cls.trained.layers)

    @classmethod
    def export(cls, model: object, layers: Sequence[LayerSpec], **options: str) -> export.Exported:
        return export.export(model, layers, cls.data.test.x, POLICY, **options)

    def predict(
        self, exported: export.Exported, x: np.ndarray | None = None, **options: bool
    ) -> np.ndarray:
        path = self.create_tempfile(content=exported.content, mode="wb").full_path
        return benchmark.predict(path, self.data.test.x if x is None else x, **options)

    def test_every_level_is_the_trained_one(self) -> None:
        stored = {op.name: op for op in tflite_file.read(self.exported.content).ops}
        weighted = [layer for layer in self.trained.layers if layer.weighted]
        self.assertEqual(list(stored), [layer.name for layer in weighted])
        for layer in weighted:
            kernel = quantize_aware.variables(self.trained.model, layer.name)["kernel"].numpy()
            kernel = rounding.by_channel(kernel, layer.op)
            levels, scale = rounding.weight_levels(kernel, layer.weight_bits)
            # dense [out, in], convolution [out, side, side, in], depthwise [1, side, side, out]
            order = levels[np.newaxis] if layer.op == "depthwise" else np.moveaxis(levels, -1, 0)
            np.testing.assert_array_equal(stored[layer.name].levels, order)
            np.testing.assert_allclose(stored[layer.name].scales, scale, rtol=1e-6)
        containers = [stored[layer.name].container_bits for layer in weighted]
        self.assertEqual(containers, [8, 4, 8, 8, 8, 8, 2, 4])

    def test_decides_as_the_network(self) -> None:
        self.assertEqual(self.exported.compared, 1000)
        self.assertGreaterEqual(self.exported.agreement, 0.99)
        y, outputs = self.data.test.y, self.predict(self.exported)
        keras = self.data.task.score(y, trainer.predict(self.trained.model, self.data.test.x))
        self.assertGreater(keras, 0.7)  # it has learned: chance is 0.33
        self.assertAlmostEqual(self.data.task.score(y, outputs), keras, delta=0.003)
        builtin = self.predict(self.exported, xnnpack=False)
        self.assertGreaterEqual((builtin.argmax(-1) == outputs.argmax(-1)).mean(), 0.99)

    def test_saved_network_exports_the_same_bytes(self) -> None:
        folder = pathlib.Path(self.create_tempdir().full_path)
        trainer.save(self.trained, folder)
        loaded = trainer.load(folder)
        given = trainer.predict(loaded.model, self.data.test.x)
        np.testing.assert_array_equal(given, trainer.predict(self.trained.model, self.data.test.x))
        self.assertEqual(self.export(loaded.model, loaded.layers), self.exported)

    def test_int8_file_answers_the_same(self) -> None:
        exported = self.export(self.trained.model, self.trained.layers, io="int8")
        np.testing.assert_allclose(self.predict(exported), self.predict(self.exported), atol=1e-5)

    def test_is_as_large_as_counted(self) -> None:
        for io in ("float", "int8"):
            exported = self.export(self.trained.model, self.trained.layers, io=io)
            counted = file_size.file_bytes(slots_of(self.trained.layers), POLICY, io)
            self.assertEqual(len(exported.content), counted[0])

    @parameterized.parameters((8, 1e-9), (16, 1e-6))
    def test_tiny_gammas_keep_their_biases(self, activation_bits: int, gamma: float) -> None:
        # The grid is about gamma * 1e-2 at 8 bits, 256 times finer at 16: 32 bits of it do not
        # reach a bias of 1.
        layers = every_op(8, activation_bits, "relu")
        model = quantize_aware.build(layers, (8, 8, 1))
        found = quantize_aware.variables(model, "project")
        found["gamma"].assign([gamma] * 4 + [1.0] * 4)
        found["beta"].assign(np.ones(8))
        for _ in range(3):
            model(self.data.train.x[:64], training=True)
        folded, plain = quantize_aware.fold(model, layers)
        quantize_aware.settle(folded, plain)
        found = quantize_aware.variables(folded, "project")
        np.testing.assert_allclose(found["bias"].numpy()[:4], 1.0, rtol=1e-3)
        self.assertFalse(found["kernel"].numpy()[:, :4].any())
        self.assertTrue(found["kernel"].numpy()[:, 4:].any())
        self.assertGreaterEqual(self.export(folded, plain).agreement, 0.99)

    def test_recipe_names_every_layer(self) -> None:
        recipe = json.loads(self.exported.recipe_json)
        self.assertEqual(
            [entry["regex"] for entry in recipe],
            [f"^{layer.name};?$" for layer in self.trained.layers],
        )

    def test_batch_norm_is_folded_without_moving_a_level(self) -> None:
        layers = every_op()
        model = quantize_aware.build(layers, (8, 8, 1))
        random = np.random.default_rng(1)
        for layer in layers:
            found = quantize_aware.variables(model, layer.name)
            if layer.batch_norm:  # negative and tiny gammas too
                found["gamma"].assign(random.normal(size=layer.out_channels))
                found["beta"].assign(random.normal(size=layer.out_channels))
        for _ in range(20):
            model(self.data.train.x[:64], training=True)
        folded, plain = quantize_aware.fold(model, layers)
        self.assertFalse(any(layer.batch_norm for layer in plain))
        for layer in layers:
            if not layer.weighted:
                continue
            levels = []
            for network in (model, folded):
                kernel = quantize_aware.variables(network, layer.name)["kernel"].numpy()
                kernel = rounding.by_channel(kernel, layer.op)
                levels.append(np.abs(rounding.weight_levels(kernel, layer.weight_bits)[0]))
            np.testing.assert_array_equal(levels[0], levels[1])
        x = self.data.test.x[:200]
        step = quantize_aware.step(quantize_aware.activation_ranges(folded, plain)["output"], 8)
        apart = np.abs(trainer.predict(model, x) - trainer.predict(folded, x)) / step
        # Sums in another order: a rounding here and there goes the other way.
        self.assertLess(apart.mean(), 0.2)
        self.assertLessEqual(apart.max(), 4.01)
        # Export folds what is not folded.
        exported = self.export(model, layers)
        self.assertGreaterEqual(exported.agreement, 0.99)

    @parameterized.parameters((4, 8, "hard_swish"), (8, 16, "relu"))
    def test_other_bits(self, conv_bits: int, activation_bits: int, activation: str) -> None:
        layers = every_op(conv_bits, activation_bits, activation)
        trained = trainer.train(layers, self.data, RECIPE, 2)
        exported = self.export(trained.model, trained.layers)
        stored = {op.name: op for op in tflite_file.read(exported.content).ops}
        self.assertEqual(stored["depthwise_5"].container_bits, conv_bits)
        self.assertGreaterEqual(exported.agreement, 0.99)
        # Of 10,000 decisions at most some hundred differ, and these cancel each other: the scores
        # differ by 0.001 (one standard deviation). Of 1,000 it would be as much as is allowed.
        many = bars(10_000, 1)
        score = self.data.task.score(many.y, self.predict(exported, many.x))
        keras = trainer.predict(trained.model, many.x)
        self.assertAlmostEqual(score, self.data.task.score(many.y, keras), delta=0.003)

    def test_what_the_runtime_does_wrong_is_refused(self) -> None:
        layers = every_op(8, 16, "hard_swish")  # no 16-bit kernel
        with self.assertRaisesRegex(errors.UsageError, "'swish'.*hard_swish.*16-bit"):
            export.check_bits(layers, "litert-2.3")


if __name__ == "__main__":
    absltest.main()
