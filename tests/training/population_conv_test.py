"""Passes of image layers: TensorFlow's outputs and gradients, and whole CNNs against Keras."""

import dataclasses
import itertools

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import errors
from tfgen.nets.keras_compat import tf
from tfgen.space import catalog, lowering
from tfgen.space.layers import INPUT, LayerSpec
from tfgen.training import population, population_conv, tasks
from tfgen.training.datasets import Dataset, Split
from tfgen.training.population import Member
from tfgen.training.recipe import Recipe

STARTS, BATCH = 2, 3


def layer(op, size, kernel, stride, channels=(4, 5), **fields):
    out_size = () if op == "mean" else tuple(-(-side // stride) for side in size)
    return LayerSpec(
        name=op,
        op=op,
        inputs=(INPUT,),
        in_channels=channels[0],
        out_channels=channels[-1],
        in_size=size,
        out_size=out_size,
        kernel=kernel,
        stride=stride,
        **fields,
    )


def conv(size, kernel, stride, channels=(4, 5)):
    return layer("conv", size, kernel, stride, channels, weight_bits=8, activation="relu")


def batch_last(images):
    """[starts, batch, height, width, channels] -> [starts, channels, height, width, batch]."""
    return np.ascontiguousarray(images.transpose(0, 4, 2, 3, 1))


def batch_first(images):
    return images.transpose(0, 4, 2, 3, 1)


class ConvTest(parameterized.TestCase):
    def test_by_hand(self):
        # Ones under a kernel of ones, 3x3 and stride 2 on 4x4, bias -5. The second window ends one
        # beyond the image, and all of SAME's one row and column of padding comes after it: sums 9,
        # 6, 6 and 4; less 5, and ReLU makes the last one 0.
        one = population_conv.ConvPass(conv((4, 4), 3, 2, (1, 1)), 1, 1)
        matrix = np.ones((1, 10, 1), np.float32)
        matrix[0, -1] = -5
        outputs = one.forward(np.ones((1, 1, 4, 4, 1), np.float32), matrix.transpose(0, 2, 1))
        np.testing.assert_array_equal(outputs[0, 0, :, :, 0], [[4, 1], [1, 0]])
        # The gradient of their sum: three live outputs, so 3 for the bias; the kernel's corner
        # (2, 2) has the image under the first window alone, row 2 under the first two.
        gradient = np.empty_like(matrix)
        delta = np.ones((1, 1, 2, 2, 1), np.float32)
        below = one.backward(delta, matrix[:, :-1], gradient, True)
        np.testing.assert_array_equal(gradient[0, :, 0], [3, 3, 2, 3, 3, 2, 2, 2, 1, 3])
        # Pixel (2, 2) is under the first three windows; (3, 3) under the dead one alone.
        self.assertEqual(
            (below[0, 0, 0, 0, 0], below[0, 0, 2, 2, 0], below[0, 0, 3, 3, 0]), (1, 3, 0)
        )

    @parameterized.parameters(
        *itertools.product((1, 3, 5), (1, 2), ((8, 8), (7, 5), (2, 2), (1, 3)))
    )
    def test_tensorflow_has_the_same_outputs_and_gradients(self, kernel, stride, size):
        random = np.random.default_rng(kernel * 10 + stride)
        spec = conv(size, kernel, stride)
        x = random.standard_normal((STARTS, BATCH, *size, 4)).astype(np.float32)
        kernels = random.standard_normal((STARTS, kernel, kernel, 4, 5)).astype(np.float32)
        bias = random.standard_normal((STARTS, 5)).astype(np.float32)
        delta = random.standard_normal((STARTS, BATCH, *spec.out_size, 5)).astype(np.float32)
        matrix = np.concatenate([kernels.reshape(STARTS, -1, 5), bias[:, None]], axis=1)

        one = population_conv.ConvPass(spec, STARTS, BATCH)
        gradient = np.empty_like(matrix)
        for _ in range(2):  # buffers are used again
            outputs = one.forward(batch_last(x), matrix.transpose(0, 2, 1)).copy()
            below = one.backward(batch_last(delta), matrix[:, :-1], gradient, True)
        for start in range(STARTS):
            given = [tf.constant(v[start]) for v in (x, kernels, bias)]
            with tf.GradientTape() as tape:
                tape.watch(given)
                made = tf.nn.relu(tf.nn.conv2d(given[0], given[1], stride, "SAME") + given[2])
                loss = tf.reduce_sum(made * delta[start])
            by_x, by_kernel, by_bias = tape.gradient(loss, given)
            options = {"rtol": 1e-5, "atol": 1e-5}
            np.testing.assert_allclose(batch_first(outputs)[start], made, **options)
            np.testing.assert_allclose(batch_first(below)[start], by_x, **options)
            by_rows = np.reshape(by_kernel, (-1, 5))
            np.testing.assert_allclose(gradient[start, :-1], by_rows, **options)
            np.testing.assert_allclose(gradient[start, -1], by_bias, **options)

    def test_nothing_below_needs_no_gradient(self):
        one = population_conv.ConvPass(conv((4, 4), 3, 1), 1, 2)
        one.forward(np.zeros((1, 4, 4, 4, 2), np.float32), np.zeros((1, 5, 37), np.float32))
        delta, gradient = np.zeros((1, 5, 4, 4, 2), np.float32), np.empty((1, 37, 5), np.float32)
        self.assertIsNone(one.backward(delta, np.zeros((1, 36, 5), np.float32), gradient, False))


class PlainTest(parameterized.TestCase):
    @parameterized.parameters(
        ("max_pool", 2, (8, 8)),
        ("max_pool", 2, (5, 1)),
        ("max_pool", 3, (7, 8)),
        ("mean", 1, (4, 3)),
    )
    def test_tensorflow_has_the_same_outputs_and_gradients(self, op, kernel, size):
        random = np.random.default_rng(kernel)
        spec = layer(op, size, kernel, kernel, (4,))
        # Of few values, so that windows have ties; TensorFlow gives the first its gradient.
        x = random.integers(-1, 2, (STARTS, BATCH, *size, 4)).astype(np.float32)
        one = {"max_pool": population_conv.MaxPoolPass, "mean": population_conv.MeanPass}[op](
            spec, STARTS, BATCH
        )
        given = tf.constant(x.reshape(-1, *size, 4))
        with tf.GradientTape() as tape:
            tape.watch(given)
            if op == "mean":
                made = tf.reduce_mean(given, axis=(1, 2))[:, None, None]
            else:
                made = tf.nn.max_pool2d(given, kernel, kernel, "SAME")
            delta = random.standard_normal(made.shape).astype(np.float32)
            loss = tf.reduce_sum(made * delta)
        by_x = tape.gradient(loss, given)

        outputs = one.forward(batch_last(x))
        ours = batch_last(delta.reshape(STARTS, BATCH, *delta.shape[1:]))
        if op == "mean":
            np.testing.assert_array_equal(outputs[:, -1], np.ones((STARTS, BATCH)))
            outputs, ours = outputs[:, :-1, None, None], ours[:, :, 0, 0]
        found = batch_first(outputs).reshape(made.shape)
        np.testing.assert_allclose(found, made, rtol=0, atol=1e-6)
        below = batch_first(one.backward(ours)).reshape(by_x.shape)
        np.testing.assert_allclose(below, by_x, rtol=0, atol=1e-6)


def toy_images():
    """300 training and 100 other images of noise, whose class is where they are brightest."""
    random = np.random.default_rng(2)
    x = random.standard_normal((500, 16, 16, 3)).astype(np.float32)
    y = random.integers(3, size=500)
    for example, label in enumerate(y):
        x[example, 5 * label : 5 * label + 5, :, label] += 1
    parts = [Split(x[a:b], y[a:b]) for a, b in itertools.pairwise((0, 300, 400, 500))]
    return Dataset("toy images", tasks.CLASSIFICATION, *parts, preprocessing={})


IMAGES = toy_images()


def members():
    """CNNs of few weights that together have every kernel, stride and op."""
    space = catalog.get("cifar10_cnn")
    values = {"width_1": 4, "kernel_1": 5, "width_2": 4, "kernel_2": 3, "width_3": 4, "kernel_3": 1}
    values |= {"width_4": 8, "kernel_4": 3, "stride_3": 1, "stride_4": 2, "bits_2": 4, "pool_2": 0}
    points = [
        space.point({**values, "depth": depth, "pool_1": pool})
        for depth, pool in ((1, 0), (2, 1), (4, 0))
    ]
    return [Member(lowering.lower(space, point), i) for i, point in enumerate(points)]


class NetworkTest(parameterized.TestCase):
    def test_losses_equal_keras(self):
        # Small networks, few steps and a calm rate, as for MLPs: a weight that lies between two
        # levels falls on either by the last bit of a sum.
        from tools import bench_population

        recipe = Recipe(steps=15, batch_size=16, learning_rate=5e-4, warmup_steps=5)
        chosen = members()
        ops = {spec.op for member in chosen for spec in member.layers}
        self.assertEqual(ops, {"conv", "max_pool", "mean", "dense"})
        ours = {
            o.index: o
            for o in population.train(chosen, IMAGES, recipe, processes=2, keep_losses=True)
        }
        for index, member in enumerate(chosen):
            model = bench_population.keras_twin(
                member, IMAGES.task.loss, recipe, bench_population.SETTINGS[0]
            )
            theirs = [
                float(model.train_on_batch(IMAGES.train.x[rows], IMAGES.train.y[rows]))
                for rows in recipe.batches(len(IMAGES.train), member.seed)
            ]
            np.testing.assert_allclose(ours[index].losses, theirs, rtol=0, atol=1e-5)
            found = model(IMAGES.validation.x).numpy()
            score = IMAGES.task.score(IMAGES.validation.y, found)
            self.assertAlmostEqual(ours[index].metric, score, delta=0.0101)  # one image of 100

    def test_learns(self):
        # A third of the images are of each class.
        recipe = Recipe(steps=150, batch_size=32, learning_rate=5e-3, warmup_steps=10)
        (outcome,) = population.train(members()[:1], IMAGES, recipe, processes=1)
        self.assertGreater(outcome.metric, 0.6)

    @parameterized.named_parameters(
        ("norm", "conv_1", {"batch_norm": True}, "'conv' with 'relu', batch normalisation"),
        ("relu6", "conv_1", {"activation": "relu6"}, "'conv' with 'relu6'"),
        ("overlapping", "pool_1", {"kernel": 3}, "whose kernel is their stride"),
        ("bits", "conv_1", {"weight_bits": 1}, r"2\.\.16, got 1"),
    )
    def test_refuses(self, name, change, message):
        space = catalog.get("cifar10_cnn")
        layers = lowering.lower(space, space.point({"depth": 1}))
        changed = tuple(
            dataclasses.replace(spec, **change) if spec.name == name else spec for spec in layers
        )
        recipe = Recipe(steps=2, warmup_steps=0)
        with self.assertRaisesRegex(errors.UsageError, f"'{name}'.*{message}"):
            population.train([Member(changed, 0)], IMAGES, recipe, processes=1)


if __name__ == "__main__":
    absltest.main()
