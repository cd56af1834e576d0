"""The supernet of NAS-Bench-201's cells: the benchmark's network, shared, and by shares."""

import numpy as np
from absl.testing import absltest

from tfgen import errors, seeds
from tfgen.nets.cell_supernet import CellSupernet
from tfgen.nets.keras_compat import tf
from tfgen.space import catalog
from tfgen.training import cell_training, datasets, tasks
from tfgen.training.recipe import SupernetRecipe

SPACE = catalog.get("nasbench201")
NONE, SKIP, CONV_1, CONV_3, POOL = range(5)


def images(count: int = 8) -> tf.Tensor:
    x = seeds.stream(3, "images").normal(size=(count, 16, 16, 3))
    return tf.constant(x.astype(np.float32))


def quarters(count: int, seed: int) -> datasets.Split:
    """Images with a bright quarter; the class is which."""
    random = seeds.stream(seed, "quarters")
    y = random.integers(4, size=count)
    x = random.normal(0.0, 0.5, (count, 8, 8, 3))
    for image, place in zip(x, y, strict=True):
        row, column = 4 * (place // 2), 4 * (place % 2)
        image[row : row + 4, column : column + 4] += 1.0
    return datasets.Split(x.astype(np.float32), y)


class CellSupernetTest(absltest.TestCase):
    def test_it_has_the_benchmarks_parameters(self):
        # 73,306 beside the cells, 28,000 for a 1x1 convolution of an edge and 243,040 for a 3x3.
        net = CellSupernet(SPACE, 1, channels=16, cells=5)
        sizes = {name: int(tf.size(variable)) for name, variable in net.variables.items()}
        cells = {name: size for name, size in sizes.items() if name.startswith("cell_")}
        self.assertEqual(sum(sizes.values()) - sum(cells.values()), 73_306)
        for side, expected in ((1, 28_000), (3, 243_040)):
            own = [s for name, s in cells.items() if name.partition("/")[0].endswith(f"_{side}")]
            self.assertEqual(sum(own), 6 * expected)

    def test_shares_of_0_and_1_are_the_cell(self):
        net, x = CellSupernet(SPACE, 1, channels=4, cells=2), images()
        hard = tf.function(net.outputs)
        soft = tf.function(net.soft_outputs)
        for row in SPACE.sample(8, seeds.stream(4, "cells")):
            shares = {
                decision.name: tf.one_hot(choice, 5)
                for decision, choice in zip(SPACE.decisions, row, strict=True)
            }
            expected = hard(x, tf.constant(row, tf.int32)).numpy()
            np.testing.assert_allclose(soft(x, shares).numpy(), expected, atol=1e-4)

    def test_a_cell_without_a_path_says_the_same_of_every_image(self):
        net = CellSupernet(SPACE, 1, channels=4)
        y = net.outputs(images(), tf.constant([CONV_3, POOL, SKIP, NONE, NONE, NONE])).numpy()
        np.testing.assert_allclose(y, y[:1] + np.zeros_like(y), atol=1e-5)

    def test_a_gradient_reaches_the_drawn_ops_alone(self):
        net, x = CellSupernet(SPACE, 1, channels=4), images()
        cell = tf.constant([CONV_3, CONV_1, SKIP, POOL, CONV_3, CONV_1])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(net.outputs(x, cell)))
        gradients = tape.gradient(loss, net.variables)
        reached = {
            name
            for name, gradient in gradients.items()
            if name.startswith("cell_0") and gradient is not None and np.abs(gradient).max() > 0
        }
        drawn = {"cell_0_0_0_3", "cell_0_0_1_1", "cell_0_0_4_3", "cell_0_0_5_1"}
        self.assertEqual({name.partition("/")[0] for name in reached}, drawn)

    def test_another_space_is_refused(self):
        with self.assertRaisesRegex(errors.UsageError, "not of 'fbnet'"):
            CellSupernet(catalog.get("fbnet"), 1)

    def test_cells_learn(self):
        splits = (quarters(512, 1), quarters(64, 2), quarters(256, 3))
        data = datasets.Dataset("quarters", tasks.CLASSIFICATION, *splits, {})
        net = CellSupernet(SPACE, 1, channels=4, classes=4)
        recipe = SupernetRecipe(epochs=6, batch_size=32, learning_rate=0.1, shift=0, flip=False)
        training = cell_training.CellTraining(net, data, recipe, 5)
        losses = [training.run_epoch() for _ in range(4)]
        state = training.state()
        losses += [training.run_epoch() for _ in range(2)]
        # Killed after four epochs, it goes on and ends where the undisturbed one does.
        again = CellSupernet(SPACE, 2, channels=4, classes=4)
        resumed = cell_training.CellTraining(again, data, recipe, 5)
        resumed.restore(state)
        self.assertEqual([resumed.run_epoch() for _ in range(2)], losses[4:])
        with self.assertRaisesRegex(errors.CorruptFileError, "not of this supernet"):
            resumed.restore({"epoch": np.array(1)})
        self.assertLen(losses, 6)
        self.assertLess(losses[-1], 0.7 * losses[0])
        score = cell_training.scorer(net, data.test)
        # By chance 0.25. Convolutions everywhere, and no path at all.
        self.assertGreater(score(np.full(6, CONV_3)), 0.7)
        self.assertLess(score(np.full(6, NONE)), 0.5)


if __name__ == "__main__":
    absltest.main()
