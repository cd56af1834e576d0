"""Networks with channels added compute and learn what they did without."""

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import seeds
from tfgen.nets import aligned, network
from tfgen.nets.keras_compat import tf
from tfgen.space.layers import LayerSpec
from tfgen.training import datasets, float_training, trainer
from tfgen.training.recipe import FloatStage


def conv(name, source, channels, out, activation="relu", batch_norm=True):
    return other(name, "conv", [source], channels, out, kernel=3, weight_bits=8,
                 activation=activation, batch_norm=batch_norm)  # fmt: skip


def other(name, op, sources, channels, out, size=(8, 8), out_size=None, **more):
    return LayerSpec(
        name=name, op=op, inputs=tuple(sources), in_channels=channels, out_channels=out,
        in_size=size, out_size=size if out_size is None else out_size, **more,
    )  # fmt: skip


def dense(source, inputs):
    return other("logits", "dense", [source], inputs, 4, (), (), weight_bits=8)


# A sum, a depthwise layer, a concatenation of unequal parts, a slice, a flattened image.
MIXED = (
    conv("first", "input", 3, 12),
    conv("second", "first", 12, 12, activation="linear"),
    other("sum", "add", ["first", "second"], 12, 12, activation="relu"),
    other("each", "depthwise", ["sum"], 12, 12, kernel=3, weight_bits=8, batch_norm=True),
    conv("wide", "each", 12, 20),
    other("slim", "dense", ["each"], 12, 5, weight_bits=8, batch_norm=True, activation="relu"),
    other("both", "concat", ["wide", "slim"], 20, 25),
    conv("fewer", "both", 25, 18),
    other("some", "slice", ["fewer"], 18, 7, offset=4),
    other("switched", "hard_swish", ["some"], 7, 7),
    other("half", "max_pool", ["switched"], 7, 7, (8, 8), (4, 4), kernel=2, stride=2),
    other("flat", "flatten", ["half"], 7, 112, (4, 4), ()),
    dense("flat", 112),
)
GATED = (
    conv("first", "input", 3, 12),
    conv("gate", "first", 12, 12, batch_norm=False, activation="linear"),
    other("share", "sigmoid", ["gate"], 12, 12),
    other("gated", "multiply", ["first", "share"], 12, 12),
    other("mean", "mean", ["gated"], 12, 12, (8, 8), ()),
    dense("mean", 12),
)


def random_weights(layers, seed):
    """Of every part, statistics too."""
    model = network.build(layers, (8, 8, 3))
    random = seeds.stream(seed, "weights")
    return {
        name: {part: random.uniform(0.1, 0.5, value.shape).astype(np.float32)
               * (random.choice([-1, 1], value.shape) if part == "kernel" else 1.0)
               for part, value in own.items()}
        for name, own in network.weights_of(model, layers).items()
    }  # fmt: skip


class AlignedTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        random = seeds.stream(3, "images")
        x = random.normal(size=(96, 8, 8, 3)).astype(np.float32)
        split = datasets.Split(x, random.integers(4, size=96))
        self.dataset = datasets.Dataset("noise", datasets.tasks.CLASSIFICATION, *[split] * 3, {})

    def test_the_next_multiples_of_16(self):
        found = aligned.aligned(MIXED)
        channels = {layer.name: layer.out_channels for layer in found.layers}
        self.assertEqual(
            channels,
            {"first": 16, "second": 16, "sum": 16, "each": 16, "wide": 32, "slim": 16, "both": 48,
             "fewer": 32, "some": 7, "switched": 7, "half": 7, "flat": 112, "logits": 4},
        )  # fmt: skip
        places = found.tensors["both"].places
        np.testing.assert_array_equal(places, [*range(20), *range(32, 37)])

    def test_it_computes_and_learns_the_same(self):
        found, weights = aligned.aligned(MIXED), random_weights(MIXED, 1)
        for name, own in found.narrowed(found.widened(weights)).items():
            for part, value in own.items():
                np.testing.assert_array_equal(value, weights[name][part], f"{name}/{part}")
        stage = FloatStage(2, batch_size=16, learning_rate=0.05, shift=1, flip=True)
        models = []
        for layers, given in ((MIXED, weights), (found.layers, found.widened(weights))):
            model = network.with_weights(layers, (8, 8, 3), given)
            if models:
                x = tf.constant(self.dataset.train.x)
                np.testing.assert_allclose(models[0](x), model(x), rtol=1e-4, atol=1e-4)
            models.append(model)
        losses = []
        for model in models:
            training = float_training.FloatTraining(model, self.dataset, stage, 5)
            losses.append([training.run_epoch() for _ in range(2)])
        np.testing.assert_allclose(*losses, rtol=1e-3)
        narrow = network.weights_of(models[0], MIXED)
        wide = network.weights_of(models[1], found.layers)
        for name, own in found.narrowed(wide).items():
            for part, value in own.items():
                np.testing.assert_allclose(value, narrow[name][part], rtol=0.01, atol=0.002)
        # What was added is what it was, to the bit.
        back = found.widened(found.narrowed(wide))
        for name in ("second", "wide", "fewer"):
            for part in ("kernel", "gamma", "beta"):
                np.testing.assert_array_equal(back[name][part], wide[name][part])

    @parameterized.named_parameters(
        ("a_product_of_16_and_12_channels", GATED),
        ("an_output_of_16_channels_for_12", MIXED[:1]),
        (
            "half_for_nothing",
            (*MIXED[:1], other("shares", "sigmoid", ["first"], 12, 12), *MIXED[1:2]),
        ),
    )
    def test_what_does_not_fit_together_is_left_as_it_is(self, layers):
        self.assertEqual(aligned.aligned(layers).layers, layers)

    def test_a_training_in_16_bits_is_of_the_wider_network(self):
        stage = FloatStage(2, batch_size=16, learning_rate=0.05, bfloat16=True)
        start = trainer._random_weights(MIXED, 2)  # kernels alone: added scales are Keras's, 1
        training, wider = float_training.of_layers(MIXED, self.dataset, stage, 2, start)
        self.assertEqual(wider.told["channels"][0], 16)
        for _ in range(2):
            self.assertTrue(np.isfinite(training.run_epoch()))
        wide = network.weights_of(training.model, wider.layers)
        own = wider.narrowed(wide)
        self.assertEqual(own["wide"]["kernel"].shape, (3, 3, 12, 20))
        self.assertEqual(own["each"]["kernel"].shape, (3, 3, 12, 1))
        self.assertEqual(own["fewer"]["variance"].shape, (18,))
        moved = np.abs(own["fewer"]["kernel"] - start["fewer"]["kernel"]).max()
        self.assertGreater(moved, 0.01)
        # What was added is zero, to the bit, but for scales of what is zero.
        back = wider.widened(own)
        for name in ("second", "each", "wide", "fewer"):
            for part in ("kernel", "beta", "mean"):
                np.testing.assert_array_equal(back[name][part], wide[name][part], f"{name}/{part}")

    def test_a_training_in_32_bits_is_of_the_network_itself(self):
        stage = FloatStage(1, batch_size=16)
        start = trainer._random_weights(MIXED, 2)
        training, wider = float_training.of_layers(MIXED, self.dataset, stage, 2, start)
        self.assertEqual(wider.layers, MIXED)
        self.assertEqual(wider.told, {})
        found = network.weights_of(training.model, MIXED)
        np.testing.assert_array_equal(found["wide"]["kernel"], start["wide"]["kernel"])


if __name__ == "__main__":
    absltest.main()
