"""Quantizers on hand-computed numbers, and the trainer that uses them."""

import dataclasses
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import mlp
from tfgen import errors
from tfgen.nets import rounding
from tfgen.nets.keras_compat import tf
from tfgen.space.layers import LayerSpec
from tfgen.training import datasets, quantize_aware, tasks, trainer
from tfgen.training.recipe import Recipe, initial_weights

LAYERS = mlp((6, 1), (4, 2), 8)


def quantized(kernel: np.ndarray, bits: int) -> np.ndarray:
    return quantize_aware.WeightQuantizer(bits)(tf.constant(kernel), False, {}).numpy()


class WeightsTest(parameterized.TestCase):
    def test_levels_by_hand(self) -> None:
        # 3 bits: levels -3 .. 3, scale = the column's largest / 3.
        kernel = np.array([[0.9, -0.02], [-0.4, 0.06], [0.14, 0.0]], np.float32)
        levels, scale = rounding.weight_levels(kernel, 3)
        np.testing.assert_allclose(scale, [0.3, 0.02], rtol=1e-6)
        np.testing.assert_array_equal(levels, [[3, -1], [-1, 3], [0, 0]])

    @parameterized.parameters(2, 3, 4, 6, 8)
    def test_graph_computes_the_same_levels(self, bits: int) -> None:
        kernel = np.random.default_rng(bits).normal(size=(100, 7)).astype(np.float32)
        levels, scale = rounding.weight_levels(kernel, bits)
        self.assertEqual(np.abs(levels).max(), 2 ** (bits - 1) - 1)
        np.testing.assert_allclose(quantized(kernel, bits), levels * scale, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(np.rint(quantized(kernel, bits) / scale), levels)

    def test_zeros_stay_zeros(self) -> None:
        np.testing.assert_array_equal(quantized(np.zeros((3, 2), np.float32), 2), np.zeros((3, 2)))

    def test_gradient_is_straight_through(self) -> None:
        kernel = tf.constant([[0.9, -0.02], [-0.4, 0.06]])
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            quantizer = quantize_aware.WeightQuantizer(2)
            total = tf.reduce_sum(quantizer(kernel, True, {"rounding": tf.constant(1.0)}))
        np.testing.assert_array_equal(tape.gradient(total, kernel), np.ones((2, 2)))


class RangesTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.ends = {name: tf.Variable(0.0) for name in ("min", "max", "rounding")}
        self.quantizer = quantize_aware.RangeQuantizer(8)

    def call(self, values: list[float], training: bool) -> np.ndarray:
        return self.quantizer(tf.constant(values), training, self.ends).numpy()

    def range(self) -> tuple[float, float]:
        return float(self.ends["min"]), float(self.ends["max"])

    def test_starts_from_the_first_batch_and_averages(self) -> None:
        self.call([-1.0, 3.0], training=True)
        self.assertEqual(self.range(), (-1.0, 3.0))
        self.call([1.0, 5.0], training=True)  # the range always holds 0
        np.testing.assert_allclose(self.range(), (-0.99, 0.99 * 3 + 0.01 * 5), rtol=1e-6)

    def test_does_not_learn_outside_training(self) -> None:
        self.call([0.0, 2.55], training=True)
        given = self.call([0.004, 0.006, 9.0], training=False)  # steps of 0.01
        np.testing.assert_allclose(given, [0.0, 0.01, 2.55], atol=1e-6)
        np.testing.assert_allclose(self.range(), (0.0, 2.55))

    def test_watches_until_it_is_told_to_round(self) -> None:
        given = [0.004, 0.006, 2.55]
        np.testing.assert_array_equal(self.call(given, training=True), np.float32(given))
        self.assertAlmostEqual(self.range()[1], 2.55, places=6)
        self.ends["rounding"].assign(1.0)
        np.testing.assert_allclose(self.call(given, training=True), [0.0, 0.01, 2.55], atol=1e-6)

    def test_rounding_is_switched_for_every_activation_of_a_model(self) -> None:
        layers = mlp((3, 1), (4, 8), 8)
        model = quantize_aware.build(layers, (8,))
        for weights, activations in ((True, False), (False, True)):
            quantize_aware.set_rounding(model, weights=weights, activations=activations)
            for part, on, count in (("kernel", weights, 2), ("output", activations, 3)):
                found = [v.numpy() for v in model.variables if f"{part}_rounding" in v.name]
                self.assertEqual(found, [float(on)] * count)  # two layers; the input's output too

    def test_16_bits_are_symmetric(self) -> None:
        self.quantizer = quantize_aware.RangeQuantizer(16)
        self.call([-0.5, 3.2767], training=True)  # levels -32767 .. 32767: steps of 1e-4
        np.testing.assert_allclose(self.range(), (-3.2767, 3.2767), rtol=1e-6)
        given = self.call([0.00014, -0.00016, 9.0], training=False)
        np.testing.assert_allclose(given, [1e-4, -2e-4, 3.2767], rtol=1e-4)

    def test_dead_layer_has_a_range(self) -> None:
        np.testing.assert_array_equal(self.call([0.0, 0.0], training=True), [0.0, 0.0])
        np.testing.assert_allclose(self.call([1.0], training=False), [1e-3], rtol=1e-5)
        self.call([0.0, 4.0], training=True)  # alive: starts from this batch
        self.assertEqual(self.range(), (0.0, 4.0))


class TrainerTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.data = datasets.california_housing()
        cls.seen: list[int] = []
        recipe = Recipe(steps=120, warmup_steps=10)
        cls.trained = trainer.train(
            LAYERS, cls.data, recipe, 7, progress=lambda step, loss: cls.seen.append(step)
        )

    def weights(self, trained: trainer.Trained) -> list[np.ndarray]:
        return [v.numpy() for v in trained.model.variables]

    def test_learns_and_reports(self) -> None:
        # Well above 0, the mean's score, after half an epoch.
        self.assertGreater(self.trained.metric, 0.2)
        self.assertEqual(self.trained.metric_name, "r2")
        # Every 50 steps, and where rounding starts: half of 120.
        self.assertEqual(self.seen, [50, 60, 100, 120])

    def test_layers_that_do_not_fit_the_data(self) -> None:
        layers = mlp((6, 2), (4, 2), 8)
        with self.assertRaises(errors.UsageError):
            trainer.train(layers, self.data, Recipe(steps=1, warmup_steps=0), 0)

    def test_a_training_that_diverges_says_so(self) -> None:
        # Steps of 1e30 are squared beyond float32 in the next loss.
        recipe = Recipe(steps=5, learning_rate=1e30, warmup_steps=0)
        with self.assertRaisesRegex(errors.TrainingFailedError, "diverged"):
            trainer.train(LAYERS, self.data, recipe, 7)

    def test_a_teacher_is_followed(self) -> None:
        # (y - 0)^2 + 3 (y - 2)^2 is least at 3 * 2 / (1 + 3).
        nothing = datasets.Split(self.data.train.x, np.zeros_like(self.data.train.y))
        data = dataclasses.replace(self.data, train=nothing, validation=nothing)
        recipe = Recipe(steps=300, warmup_steps=10, distillation=3.0)
        trained = trainer.train(LAYERS, data, recipe, 7, teacher=lambda x: tf.fill([128, 1], 2.0))
        outputs = trainer.predict(trained.model, data.train.x[:500])
        np.testing.assert_allclose(outputs.mean(), 1.5, atol=0.1)

    def test_kernels_decay_beside_the_gradient(self) -> None:
        # In the first step Adam moves by the sign of a gradient, whatever was taken off before.
        found = {}
        for decay in (0.0, 0.5):
            model = quantize_aware.build(LAYERS, (8,))
            quantize_aware.set_rounding(model, weights=False, activations=False)
            trainer._assign(model, trainer._random_weights(LAYERS, 7))
            recipe = Recipe(steps=1, learning_rate=0.01, warmup_steps=0, weight_decay=decay)
            trainer._steps(model, self.data, recipe, 7, None)(0, 1)
            found[decay] = quantize_aware.variables(model, LAYERS[0].name)
        kernel = initial_weights(LAYERS, 7)[0][0]
        kept, decayed = (found[decay]["kernel"].numpy() for decay in (0.0, 0.5))
        np.testing.assert_allclose(decayed - kept, -0.01 * 0.5 * kernel, rtol=0, atol=1e-6)
        self.assertGreater(np.abs(kept - kernel).max(), 0.009)
        kept, decayed = (found[decay]["bias"].numpy() for decay in (0.0, 0.5))
        np.testing.assert_array_equal(decayed, kept)

    def test_a_recipe_that_distils_needs_a_teacher(self) -> None:
        with self.assertRaisesRegex(errors.UsageError, "there is no teacher"):
            trainer.train(LAYERS, self.data, Recipe(distillation=1.0), 7)
        for wrong in ({"weight_decay": -1.0}, {"temperature": 0.0}, {"temperature": float("inf")}):
            with self.assertRaisesRegex(ValueError, "a temperature above"):
                Recipe(**wrong)

    def test_starts_from_the_recipes_weights(self) -> None:
        # A learning rate that float32 weights cannot see.
        recipe = Recipe(steps=1, learning_rate=1e-30, warmup_steps=0)
        trained = trainer.train(LAYERS, self.data, recipe, 7)
        for layer, (kernel, _) in zip(LAYERS, initial_weights(LAYERS, 7), strict=True):
            found = quantize_aware.variables(trained.model, layer.name)["kernel"].numpy()
            levels, scales = rounding.weight_levels(kernel, layer.weight_bits)
            np.testing.assert_array_equal(found, levels.astype(np.float32) * scales)

    def test_no_weight_is_left_between_two_levels(self) -> None:
        # 0.5 of the largest at 2 bits, a hair on either side: graphs that divide in other ways
        # disagree about such weights.
        layers = mlp((3, 1), (2, 2), 8)
        model = quantize_aware.build(layers, (8,))
        model(np.ones((4, 8), np.float32), training=True)
        kernel = np.full((8, 3), np.nextafter(np.float32(0.5), np.float32(1)), np.float32)
        kernel[0] = 1.0
        quantize_aware.variables(model, "hidden_1")["kernel"].assign(kernel)
        quantize_aware.settle(model, layers)
        found = quantize_aware.variables(model, "hidden_1")["kernel"].numpy()
        np.testing.assert_array_equal(found, np.ones((8, 3)))

    def test_training_stops_when_it_becomes_no_better(self) -> None:
        # Checked every 250 steps once everything is rounded, after half of 3,000: 0.7 at step 2,000
        # is the best, and neither 2,250 nor 2,500 is better.
        scores = iter([0.5, 0.7, 0.6, 0.7])

        class Scripted(tasks.Task):
            def score(self, targets: np.ndarray, outputs: np.ndarray) -> float:
                del targets, outputs
                return next(scores, 0.0)

        task = Scripted("regression", "r2", "mean_squared_error")
        data = dataclasses.replace(self.data, task=task)
        recipe = Recipe(steps=3000, batch_size=16, warmup_steps=0, patience=2)
        weights = {
            layer.name: {"kernel": kernel, "bias": bias}
            for layer, (kernel, bias) in zip(LAYERS, initial_weights(LAYERS, 1), strict=True)
        }
        steps: list[int] = []
        with mock.patch.object(
            trainer._Best, "restore", autospec=True, side_effect=trainer._Best.restore
        ) as kept:
            trainer.train(
                LAYERS, data, recipe, 7, weights=weights, progress=lambda n, _: steps.append(n)
            )
        self.assertEqual(steps[-1], 2500)
        (best,), _ = kept.call_args
        self.assertEqual(best._metric, 0.7)

    def test_equal_seeds_give_equal_networks(self) -> None:
        recipe = Recipe(steps=60, warmup_steps=10)
        first, second = (trainer.train(LAYERS, self.data, recipe, 3) for _ in range(2))
        for a, b in zip(self.weights(first), self.weights(second), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_biases_lie_on_the_files_grid(self) -> None:
        model = self.trained.model
        for layer, source in zip(LAYERS, ("input", "hidden_1"), strict=True):
            found = quantize_aware.variables(model, layer.name)
            _, scale = rounding.weight_levels(found["kernel"].numpy(), layer.weight_bits)
            low, high = quantize_aware.activation_ranges(model, LAYERS)[source]
            integers = found["bias"].numpy() / (scale * (high - low) / 255)
            np.testing.assert_allclose(integers, np.rint(integers), rtol=1e-5, atol=1e-3)

    def test_saved_model_loads_bit_identically(self) -> None:
        folder = pathlib.Path(self.create_tempdir().full_path)
        trainer.save(self.trained, folder)
        loaded = trainer.load(folder)
        self.assertEqual(loaded.layers, LAYERS)
        self.assertEqual(loaded.metric, self.trained.metric)
        x = self.data.validation.x
        given = trainer.predict(loaded.model, x)
        np.testing.assert_array_equal(given, trainer.predict(self.trained.model, x))

    def test_broken_model_is_named(self) -> None:
        folder = pathlib.Path(self.create_tempdir().full_path)
        trainer.save(self.trained, folder)
        path = folder / trainer.MODEL
        path.write_bytes(path.read_bytes()[:1000])
        with self.assertRaisesRegex(errors.CorruptFileError, str(path)):
            trainer.load(folder)


class StatisticsTest(absltest.TestCase):
    def test_they_are_of_images_as_training_shows_them(self) -> None:
        image = {"in_channels": 1, "out_channels": 1, "in_size": (8, 8)}
        vector = {"in_channels": 1, "out_channels": 1}
        layers = [
            LayerSpec(
                name="stem", op="conv", inputs=("input",), out_size=(8, 8), weight_bits=8,
                batch_norm=True, **image,
            ),
            LayerSpec(name="mean", op="mean", inputs=("stem",), **image),
            LayerSpec(name="output", op="dense", inputs=("mean",), weight_bits=8, **vector),
        ]  # fmt: skip
        white = datasets.Split(np.ones((64, 8, 8, 1), np.float32), np.ones((64, 1), np.float32))
        data = datasets.Dataset("white", tasks.REGRESSION, white, white, white, {})
        still = Recipe(steps=10, warmup_steps=1, batch_size=64)
        # All ones, through a kernel of 1: the mean is 1. Moved by -4 .. 4 pixels each way, on
        # average 8 - 20 / 9 rows and as many columns of eight are seen, the rest are zeros: a share
        # of 0.5216. A hundred batches take 1 - 0.97 ** 100 of the way there from 0. The mean of so
        # many images scatters by 0.002: ten deviations.
        for recipe, mean in ((still, 1.0), (dataclasses.replace(still, shift=4), 0.5216)):
            model = quantize_aware.build(layers, (8, 8, 1))
            quantize_aware.variables(model, "stem")["kernel"].assign([[[[1.0]]]])
            trainer._watch(model, data, recipe, 3)
            found = quantize_aware.variables(model, "stem")["moving_mean"].numpy()
            np.testing.assert_allclose(found, mean * (1 - 0.97**100), atol=0.02)


if __name__ == "__main__":
    absltest.main()
