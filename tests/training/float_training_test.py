"""Gradient descent by hand; a training in float that goes on, and what is rounded after it."""

import dataclasses
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import mlp
from tfgen import errors
from tfgen.nets import network
from tfgen.nets.keras_compat import keras, tf
from tfgen.training import datasets, descent, float_training, kept, trainer
from tfgen.training.recipe import FloatStage, Recipe

STAGE = FloatStage(epochs=3, batch_size=64, learning_rate=0.05)
LAYERS = [
    dataclasses.replace(layer, batch_norm=layer.name != "output")
    for layer in mlp((6, 1), (8, 8), 8)
]


class DescentTest(parameterized.TestCase):
    def test_a_step_by_hand(self):
        # Gradient 0.5 + 0.2 * 1; velocity 0.9 * 0.1 - 0.1 * 0.7; Nesterov looks a step ahead.
        variable, velocity = tf.Variable([1.0]), tf.Variable([0.1])
        descent.step(variable, velocity, tf.constant([0.5]), tf.constant(0.1), 0.9, 0.2)
        np.testing.assert_allclose(velocity.numpy(), [0.02], rtol=1e-5)
        np.testing.assert_allclose(variable.numpy(), [1.0 + 0.9 * 0.02 - 0.07], rtol=1e-6)

    @parameterized.parameters((0, 0.025), (3, 0.1 * 0.9619398), (4, 0.1 * 0.9330127), (12, 0.05))
    def test_the_rate_rises_and_falls(self, done, expected):
        # Steps 0..3 of 24 rise; cos(pi / 8) = 0.9239, cos(pi / 6) = 0.8660, cos(pi / 2) = 0.
        self.assertAlmostEqual(descent.half_cosine(0.1, done, 24, 4), expected, places=7)


class FloatTrainingTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        data = datasets.california_housing()
        few = datasets.Split(data.train.x[:1_000], data.train.y[:1_000])
        cls.data = dataclasses.replace(data, train=few)

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / "kept"

    def training(self, stage=STAGE, seed=1):
        keras.utils.set_random_seed(5)
        model = network.build(LAYERS, (8,))
        return float_training.FloatTraining(model, self.data, stage, seed)

    def go_on(self, training, last, config=()):
        data = {self.data.name: self.data.fingerprint}
        place = kept.Kept(self.folder, dict(config), 1, data)
        place.restore(training)
        return list(kept.epochs(training, last, place))

    def test_it_learns_and_equal_seeds_are_equal(self):
        first, second, third = (self.training(seed=seed) for seed in (1, 1, 2))
        lost = [training.run_epoch() for training in (first, second, third)]
        self.assertEqual(lost[0], lost[1])
        self.assertNotEqual(lost[0], lost[2])
        self.assertLess(first.run_epoch(), lost[0])
        self.assertEqual(first.steps, 15)  # whole batches of 64 out of 1,000

    def test_what_is_killed_goes_on_and_ends_where_the_whole_one_does(self):
        whole = self.training()
        losses = [whole.run_epoch() for _ in range(3)]
        self.assertEqual(self.go_on(self.training(), 1), losses[:1])
        again = self.training()
        self.assertEqual(self.go_on(again, 3), losses[1:])
        for one, other in zip(whole.model.get_weights(), again.model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_another_training_begins_anew(self):
        self.go_on(self.training(), 2)
        self.assertLen(self.go_on(self.training(), 3, {"layers": "others"}), 3)

    def test_decay_is_of_kernels_alone(self):
        still = dataclasses.replace(STAGE, weight_decay=0.0)
        decayed = dataclasses.replace(STAGE, weight_decay=0.5)
        one, other = self.training(still), self.training(decayed)
        one.run_epoch()
        other.run_epoch()
        sizes = [
            np.abs(training.model.get_layer("hidden_1").weights[0].numpy()).sum()
            for training in (one, other)
        ]
        self.assertLess(sizes[1], 0.8 * sizes[0])

    def test_a_teacher_is_followed(self):
        stage = dataclasses.replace(STAGE, distillation=1.0)
        with self.assertRaisesRegex(errors.UsageError, "there is no teacher"):
            self.training(stage)
        model = network.build(LAYERS, (8,))
        taught = float_training.FloatTraining(
            model, self.data, stage, 1, lambda x: tf.zeros((len(x), 1))
        )
        self.assertGreater(taught.run_epoch(), 0.0)

    def test_it_says_that_it_diverged(self):
        with self.assertRaisesRegex(errors.TrainingFailedError, "epoch 1 diverged"):
            self.go_on(self.training(dataclasses.replace(STAGE, learning_rate=1e30)), 3)
        self.assertFalse(self.folder.exists())

    def test_16_bits_are_switched_off_again(self):
        training = self.training(dataclasses.replace(STAGE, bfloat16=True))
        training.run_epoch()
        self.assertFalse(tf.config.optimizer.get_experimental_options()[float_training._BFLOAT16])

    def test_it_moves_images_only(self):
        with self.assertRaisesRegex(errors.UsageError, "no images"):
            self.training(dataclasses.replace(STAGE, shift=2))

    # --- before rounding ------------------------------------------------------------------------

    def recipe(self, **stage):
        return Recipe(
            steps=4,
            batch_size=64,
            warmup_steps=0,
            learning_rate=1e-9,
            float_stage=dataclasses.replace(STAGE, **stage),
        )

    def test_what_is_rounded_is_what_was_trained_in_float(self):
        told = []
        trained = trainer.train(
            LAYERS,
            self.data,
            self.recipe(),
            7,
            kept=self.folder,
            progress=lambda done, loss: told.append(done),
        )
        # Three epochs of 15 steps, then four that round and hardly move.
        self.assertEqual(told, [15, 30, 45, 47, 49])
        self.assertEqual(self.recipe().all_steps(1_000), 49)
        training = self.training()
        training.restore(dict(np.load(self.folder / kept.CHECKPOINT, allow_pickle=False)))
        outputs = trainer.predict(training.model, self.data.validation.x)
        floating = self.data.task.score(self.data.validation.y, outputs)
        self.assertAlmostEqual(trained.metric, floating, delta=0.02)

    def test_it_is_gone_on_from_where_it_is_the_same(self):
        trainer.train(LAYERS, self.data, self.recipe(), 7, kept=self.folder)
        refused = mock.patch.object(
            float_training.FloatTraining, "run_epoch", side_effect=AssertionError
        )
        with refused:
            trainer.train(LAYERS, self.data, self.recipe(), 7, kept=self.folder)
        for seed, stage in ((8, {}), (7, {"epochs": 4})):
            with self.subTest(seed=seed), refused, self.assertRaises(AssertionError):
                trainer.train(LAYERS, self.data, self.recipe(**stage), seed, kept=self.folder)

    def test_recipes_are_told_and_read(self):
        recipe = self.recipe(distillation=1.0, temperature=4.0)
        self.assertEqual(Recipe.from_json(recipe.to_json()), recipe)
        self.assertNotIn("float_stage", Recipe().to_json())  # fingerprints are older than it
        self.assertTrue(recipe.distils)
        self.assertFalse(recipe.plain)

    def test_recipes_that_make_no_sense_are_refused(self):
        for wrong in ({"epochs": 0}, {"learning_rate": 0.0}, {"shift": 17}, {"weight_decay": -1.0}):
            with self.subTest(wrong), self.assertRaises(ValueError):
                dataclasses.replace(STAGE, **wrong)
        with self.assertRaisesRegex(ValueError, "one start"):
            Recipe(starts=2, float_stage=STAGE)


if __name__ == "__main__":
    absltest.main()
