"""Training images that are moved and mirrored, in NumPy and in a graph."""

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import every_op, mlp
from tfgen import errors, seeds
from tfgen.nets.keras_compat import tf
from tfgen.training import augmentation, boxes, datasets, population, tasks, trainer
from tfgen.training.recipe import Recipe


class MovesTest(parameterized.TestCase):
    def test_images_move_by_at_most_the_shift(self):
        # One bright pixel in the middle: after a shift it lies within two of it, everywhere once.
        x = np.zeros((500, 9, 9, 1), np.float32)
        x[:, 4, 4] = 1.0
        moves = augmentation.draw(2, False, (500,), seeds.stream(1, "shift"))
        _, rows, columns, _ = np.nonzero(augmentation.moved(x, moves, 2))
        self.assertLen(rows, 500)
        self.assertEqual({*zip(rows, columns, strict=True)},
                         {(i, j) for i in range(2, 7) for j in range(2, 7)})  # fmt: skip

    def test_half_of_the_images_are_mirrored(self):
        # 1,000 images: 500 +- 16; five deviations are passed once in two million seeds.
        x = np.tile(np.arange(4.0, dtype=np.float32)[None, None, :, None], (1000, 2, 1, 1))
        moves = augmentation.draw(0, True, (1000,), seeds.stream(1, "flip"))
        seen = augmentation.moved(x, moves, 0)
        self.assertBetween((seen[:, 0, 0, 0] == 3).sum(), 420, 580)
        np.testing.assert_array_equal(np.sort(seen, axis=2), x)

    def test_things_look_larger_and_smaller(self):
        # Seven pixels in a row; the middle stays, at half and at twice the size.
        y = np.arange(7).reshape(1, 1, 7).repeat(7, axis=1)
        still = [np.array([0]), np.array([0]), np.array([False])]
        for scale, expected in ((2.0, [-1, -1, 1, 3, 5, -1, -1]), (0.5, [2, 2, 2, 3, 4, 4, 4])):
            moves = augmentation.Moves(*still, np.array([scale], np.float32))
            np.testing.assert_array_equal(augmentation.moved_classes(y, moves, 0)[0, 3], expected)
        # A thing of a fifth of the side, a fifth left of the middle: from -0.1 to 0.3 then.
        y = np.array([[[1, 0.5, 0.3, 0.2, 0.2]]], np.float32)
        found = augmentation.moved_objects(y, moves, 0, (10, 10))
        np.testing.assert_allclose(found[0, 0], [1, 0.5, 0.15, 0.4, 0.3], atol=1e-6)

    def test_light_scales_an_image_and_each_of_its_colours(self):
        # By up to 0.3, and each channel by up to 0.1 more: between 0.7 * 0.9 and 1.3 * 1.1.
        factors = augmentation.draw_light(0.3, (5, 400), 3, seeds.stream(1, "light"))
        self.assertEqual((factors.shape, factors.dtype), ((5, 400, 3), np.float32))
        self.assertBetween(factors.min(), 0.63, 0.66)
        self.assertBetween(factors.max(), 1.40, 1.43)
        colours = factors / factors.mean(axis=-1, keepdims=True)
        self.assertBetween(colours.max(), 1.05, 1.2)
        x = np.full((1, 2, 2, 3), 0.5, np.float32)
        own = np.array([[0.5, 1.0, 3.0]], np.float32)
        for xp, given in ((np, x), (tf, tf.constant(x))):
            seen = np.asarray(augmentation.lit(xp, given, own, (0.0, 1.0)))
            np.testing.assert_array_equal(seen[0, 1, 1], [0.25, 0.5, 1.0])  # too bright is white

    def test_classes_of_pixels_go_with_them(self):
        # Down by one, right by one and mirrored; outside of the image there are none.
        y = np.arange(9).reshape(1, 3, 3)
        moves = augmentation.Moves(np.array([0]), np.array([0]), np.array([True]))
        expected = [[-1, -1, -1], [1, 0, -1], [4, 3, -1]]
        np.testing.assert_array_equal(augmentation.moved_classes(y, moves, 1)[0], expected)

        y = seeds.stream(2, "classes").integers(-1, 4, (20, 8, 6))
        x = y[..., None].astype(np.float32) + 1.0
        seen_x, seen_y = augmentation.examples(x, y, 2, True, seeds.stream(1, "both"))
        np.testing.assert_array_equal(seen_x[..., 0] - 1.0, seen_y)

    def test_objects_go_with_them(self):
        # Of 10x10 pixels, two wide and high: one in the middle, one near the left end, and one that
        # leaves the image. Down by one and to the left by two.
        y = np.array([[[3, 0.5, 0.5, 0.2, 0.2], [1, 0.5, 0.25, 0.2, 0.2], [0, 0.5, 0.1, 0.2, 0.2],
                       [-1, 0, 0, 0, 0]]], np.float32)  # fmt: skip
        way = np.array([1], np.int8), np.array([4], np.int8)
        for mirrored, places in ((False, (0.3, 0.075)), (True, (0.7, 0.925))):
            moves = augmentation.Moves(*way, np.array([mirrored]))
            found = augmentation.moved_objects(y, moves, 2, (10, 10))
            self.assertEqual(found.dtype, np.float32)
            expected = [
                [3, 0.6, places[0], 0.2, 0.2],
                [1, 0.6, places[1], 0.2, 0.15],  # a quarter of it is out of sight
                [-1, 0, 0, 0, 0],
                [-1, 0, 0, 0, 0],
            ]
            np.testing.assert_allclose(found[0], expected, atol=1e-6)

    @parameterized.parameters(0.0, 0.4)
    def test_boxes_stay_around_what_they_are_around(self, zoom):
        random = seeds.stream(3, "objects")
        x, y = np.zeros((60, 24, 32, 1), np.float32), np.zeros((60, 1, 5), np.float32)
        for image, row in zip(x, y, strict=True):
            top, left, height, width = random.integers((0, 0, 2, 2), (18, 26, 6, 6))
            image[top : top + height, left : left + width] = 1.0
            row[0, 1:] = (top + height / 2) / 24, (left + width / 2) / 32, height / 24, width / 32
        seen_x, seen_y = augmentation.examples(x, y, 5, True, random, zoom)
        self.assertGreater((seen_y[:, 0, 0] == 0).sum(), 30)
        for image, (kind, *place) in zip(seen_x[..., 0], seen_y[:, 0], strict=True):
            if kind == tasks.VOID:
                continue
            rows, columns = np.nonzero(image)
            inner = boxes.corners(place) * (24, 32, 24, 32)
            ends = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
            np.testing.assert_allclose(inner, ends, atol=1.0 if zoom else 1e-4)

    @parameterized.parameters(0.0, 0.5)
    def test_a_graph_moves_as_numpy_does(self, zoom):
        # Down by one, right by one and mirrored: the window begins a pixel before the image.
        x = np.arange(1.0, 10.0, dtype=np.float32).reshape(1, 3, 3, 1)
        moves = augmentation.Moves(np.array([0]), np.array([0]), np.array([True]))
        expected = [[0, 0, 0], [2, 1, 0], [5, 4, 0]]
        np.testing.assert_array_equal(augmentation.moved(x, moves, 1)[0, ..., 0], expected)

        random = seeds.stream(1, "images")
        x = random.random((40, 8, 6, 3)).astype(np.float32)
        moves = augmentation.draw(3, True, (40,), random, zoom)
        tensors = augmentation.Moves(
            tf.constant(moves.down, tf.int32),
            tf.constant(moves.right, tf.int32),
            tf.constant(moves.mirrored),
            None if moves.scale is None else tf.constant(moves.scale),
        )
        np.testing.assert_array_equal(
            augmentation.moved_in_graph(tf, tf.constant(x), tensors, 3),
            augmentation.moved(x, moves, 3),
        )
        y = random.integers(-1, 4, (40, 8, 6))
        seen, classes = augmentation.examples_in_graph(
            tf, tf.constant(x), tf.constant(y), tensors, 3
        )
        np.testing.assert_array_equal(seen, augmentation.moved(x, moves, 3))
        np.testing.assert_array_equal(classes, augmentation.moved_classes(y, moves, 3))
        y = random.uniform(0.0, 1.0, (40, 7, 5)).astype(np.float32)
        _, objects = augmentation.examples_in_graph(tf, tf.constant(x), tf.constant(y), tensors, 3)
        expected = augmentation.moved_objects(y, moves, 3, (8, 6))
        np.testing.assert_allclose(objects, expected, atol=1e-6)


class TrainingTest(absltest.TestCase):
    def dataset(self, *shape: int) -> datasets.Dataset:
        random = seeds.stream(1, "data")
        x = random.random((64, *shape)).astype(np.float32)
        split = datasets.Split(x, random.integers(3, size=64))
        return datasets.Dataset("noise", tasks.CLASSIFICATION, *[split] * 3, {})

    def test_a_training_moves_its_images_and_repeats(self):
        recipe = Recipe(steps=4, batch_size=16, warmup_steps=1)
        moving = dataclasses.replace(recipe, shift=3, flip=True)
        found = [
            trainer.train(every_op(activation="relu"), self.dataset(8, 8, 1), own, seed=3).loss
            for own in (recipe, moving, moving)
        ]
        self.assertNotEqual(found[0], found[1])
        self.assertEqual(found[1], found[2])

    def test_what_cannot_be_moved_is_refused(self):
        moving = Recipe(steps=4, batch_size=16, warmup_steps=1, shift=3)
        vectors = self.dataset(9)
        with self.assertRaisesRegex(errors.UsageError, "'noise' has no images to move"):
            trainer.train(mlp((4, 3), (8, 8), 9), vectors, moving, seed=3)
        with self.assertRaisesRegex(errors.UsageError, "population trainer has no images moved"):
            population.Workers(vectors, moving, processes=1)
        with self.assertRaisesRegex(ValueError, "a shift of 0..16"):
            Recipe(shift=17)

    def test_recipes_without_it_are_known_by_their_old_names(self):
        self.assertEqual(Recipe().fingerprint, Recipe(shift=0, flip=False).fingerprint)
        self.assertNotIn("flip", Recipe().to_json())
        self.assertNotEqual(Recipe().fingerprint, Recipe(flip=True).fingerprint)
        self.assertEqual(Recipe.from_json(Recipe(shift=4).to_json()), Recipe(shift=4))


if __name__ == "__main__":
    absltest.main()
