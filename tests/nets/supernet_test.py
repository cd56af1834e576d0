"""The shared weights: a network cut out of them is the network that ran in them."""

import numpy as np
from absl.testing import absltest, parameterized

from tests.nets.scattered import scattered
from tfgen import errors, seeds
from tfgen.nets import network as keras_network
from tfgen.nets.keras_compat import tf
from tfgen.nets.supernet import Supernet
from tfgen.space import catalog, image_spaces
from tfgen.space.lowering import lower
from tfgen.space.search_space import Chosen, Decision, SearchSpace, Stage

# Two inverted blocks: 8 channels, up to 32 of them inside.
INVERTED = image_spaces.mobile(
    "inverted",
    (8, 8, 1),
    4,
    stem_widths=(8,),
    stem_stride=1,
    groups=(
        image_spaces.InvertedGroup(
            depths=(1, 2),
            widths=(8,),
            stride=2,
            squeeze_excite=(0, 1),
            activation="hard_swish",
            kernels=(3, 5, 7),
            expansions=(2, 4),
        ),
    ),
    head_widths=(16,),
    mix_widths=(16,),
    activation="hard_swish",
)


def images(net: Supernet, count: int = 16) -> np.ndarray:
    shape = (count, *net.space.input_shape)
    return seeds.stream(3, "images").normal(size=shape).astype(np.float32)


def network(net: Supernet, **values):
    """The layers of the network with these values, the last ones elsewhere."""
    return lower(net.space, net.space.point(values))


class SupernetTest(parameterized.TestCase):
    @parameterized.parameters(
        "mnist_mobile", "cifar10_mobile", "cifar10_mobile_v3", "cifar10_cnn", INVERTED
    )
    def test_a_network_cut_out_gives_the_supernets_outputs(self, space):
        net = scattered(space)
        x = images(net)
        for row in net.space.sample(4, seeds.stream(4, "sample")):
            layers = lower(net.space, net.space.architecture(row))
            statistics = net.statistics(layers, [x], quantized=False)
            inside = net.outputs(layers, tf.constant(x), quantized=False, statistics=statistics)
            alone = net.stand_alone(layers, statistics)(x, training=False).numpy()
            largest = np.abs(alone).max()
            np.testing.assert_allclose(inside.numpy(), alone, atol=1e-5 * largest, rtol=0)

    @parameterized.parameters("mnist_mobile", "cifar10_mobile_v3", INVERTED)
    def test_it_takes_over_the_largest_network(self, space):
        net = scattered(space)
        layers, x = network(net), images(net)
        statistics = net.statistics(layers, [x], quantized=False)
        alone = net.stand_alone(layers, statistics)
        weights = keras_network.weights_of(alone, layers)
        fresh = Supernet(net.space, seed=99)
        fresh.take(layers, weights)
        found = fresh.outputs(layers, tf.constant(x), quantized=False, statistics=statistics)
        expected = alone(x, training=False).numpy()
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found.numpy(), expected, atol=atol, rtol=0)

    def test_smaller_kernels_begin_as_the_centre_of_the_largest(self):
        net = scattered("mnist_mobile")
        layers = network(net)
        statistics = net.statistics(layers, [images(net)], quantized=False)
        weights = keras_network.weights_of(net.stand_alone(layers, statistics), layers)
        fresh = Supernet(net.space, seed=99)
        fresh.take(layers, weights)
        large, small = (fresh.variables[f"block_1_1_depthwise_{k}/kernel"].numpy() for k in (5, 3))
        np.testing.assert_array_equal(small, large[1:4, 1:4])
        gamma = weights["block_1_1_depthwise_5"]["gamma"]
        scales = fresh.variables["block_1_1_depthwise_3/scale"].numpy()
        np.testing.assert_array_equal(scales, np.tile(gamma, (4, 1)))  # of each expansion

    def test_statistics_of_a_batch_are_what_training_normalises_by(self):
        net = scattered("mnist_mobile")
        layers, x = network(net), images(net)
        for quantized in (False, True):
            statistics = net.statistics(layers, [x], quantized=quantized)
            fixed = net.outputs(layers, tf.constant(x), quantized=quantized, statistics=statistics)
            own = net.outputs(layers, tf.constant(x), quantized=quantized)
            off = np.abs(fixed.numpy() - own.numpy())
            if quantized:  # what lies at the edge of a step may go to either side of it
                self.assertLess(off.mean(), 0.1 * np.ptp(own) / 255)
            else:
                self.assertLess(off.max(), 1e-4)

    def test_which_weights_a_network_takes(self):
        # Of mnist_mobile's first group the widest input is the stem's 16 channels, and a sub-block
        # is as wide. With a stem of 8 channels, "35" takes channels 0..7 and 16..23 of the expanded
        # tensor, which has 4 sub-blocks; 3x3 kernels for the first ones, 5x5 for the others.
        net = scattered("mnist_mobile")
        narrow = {"width_stem": 8, "width_1": 12, "sub_blocks_1_1": "35"}
        layers = network(net, **narrow)
        model = net.stand_alone(layers, net.statistics(layers, [images(net)], quantized=False))
        rows = [*range(8), *range(16, 24)]

        def shared(name, part="kernel"):
            return net.variables[f"block_1_1_{name}/{part}"].numpy()

        self.assertEqual(shared("expand").shape, (1, 1, 16, 64))
        for name, expected in (
            ("expand", shared("expand")[0, 0, :8][:, rows]),
            ("depthwise_3", shared("depthwise_3")[:, :, :8]),
            ("depthwise_5", shared("depthwise_5")[:, :, 16:24]),
            ("project", shared("project")[0, 0][rows, :12]),
        ):
            (found,) = model.get_layer(f"block_1_1_{name}").get_weights()
            np.testing.assert_array_equal(found, expected, name)
        # Expansion 2 has its own scales: the second row.
        scale, shift, *_ = model.get_layer("block_1_1_project_norm").get_weights()
        np.testing.assert_array_equal(scale, shared("project", "scale")[1, :12])
        np.testing.assert_array_equal(shift, shared("project", "shift")[1, :12])

    def test_a_smaller_kernel_is_the_centre_through_a_matrix(self):
        net = Supernet(INVERTED, seed=1)
        own = {
            name: net.variables[f"block_1_1_depthwise/{name}"]
            for name in ("kernel", "transform_5", "transform_3")
        }
        self.assertEqual(own["kernel"].shape, (7, 7, 32, 1))
        random = seeds.stream(1, "matrices")
        for side in (5, 3):
            np.testing.assert_array_equal(own[f"transform_{side}"], np.eye(side**2))
        for expected in ("centre", "transformed"):
            kernel = own["kernel"].numpy()[:, :, :16, 0]  # expansion 2 has the first 16 channels
            for side in (5, 3):
                kernel = kernel[1:-1, 1:-1]
                if expected == "transformed":
                    matrix = random.normal(size=(side**2, side**2)).astype(np.float32)
                    own[f"transform_{side}"].assign(matrix)
                    kernel = (matrix @ kernel.reshape(side**2, 16)).reshape(side, side, 16)
                layers = network(net, kernel_1_1=side, expansion_1_1=2)
                found = net.weights(layers)["block_1_1_depthwise"]["kernel"][..., 0]
                np.testing.assert_allclose(found, kernel, rtol=1e-5, atol=1e-4)

    def test_sorted_channels_leave_the_largest_network_as_it_is(self):
        net = scattered(INVERTED)
        x = tf.constant(images(net))
        largest, narrow = network(net), network(net, expansion_1_1=2)
        before = [net.outputs(layers, x, quantized=False) for layers in (largest, narrow)]
        net.sort_channels()
        after = [net.outputs(layers, x, quantized=False) for layers in (largest, narrow)]
        np.testing.assert_allclose(after[0], before[0], rtol=0, atol=1e-4)
        self.assertGreater(np.abs(after[1] - before[1]).max(), 0.01)
        for block in ("block_1_1", "block_1_2"):
            weights = np.abs(net.variables[f"{block}_project/kernel"]).sum(axis=(0, 1, 3))
            np.testing.assert_array_equal(weights, np.sort(weights)[::-1])

    def test_a_network_may_take_other_sub_blocks(self):
        # "35" of the third and the first sub-block is "35" of the first two, where those have what
        # the third and the first had: 16 channels of the expanded tensor each.
        net, moved = scattered("mnist_mobile"), scattered("mnist_mobile")
        channels = np.r_[32:48, 0:16, 16:32, 48:64]
        for name, variable in moved.variables.items():
            if name == "block_1_1_project/kernel" or (
                name.startswith("block_1_1_depthwise") and name.endswith("kernel")
            ):
                variable.assign(variable.numpy()[:, :, channels])
            elif name.startswith(("block_1_1_depthwise", "block_1_1_expand")):
                variable.assign(variable.numpy()[..., channels])
        layers, x = network(net, sub_blocks_1_1="35"), tf.constant(images(net))
        for quantized in (False, True):
            found = net.outputs(layers, x, quantized=quantized, taken={"block_1_1": (2, 0, 1, 3)})
            expected = moved.outputs(layers, x, quantized=quantized)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
            first = net.outputs(layers, x, quantized=quantized)
            self.assertGreater(np.abs(found - first).max(), 0.01)
            again = net.outputs(layers, x, quantized=quantized, taken={"block_1_1": (0, 1, 2, 3)})
            np.testing.assert_array_equal(again, first)

    def test_a_gradient_reaches_the_networks_own_weights_alone(self):
        net = scattered("mnist_mobile")
        layers = network(net, sub_blocks_1_1="3", depth_1=1)
        variables = net.variables
        with tf.GradientTape() as tape:
            y = net.outputs(layers, tf.constant(images(net)), quantized=True)
            loss = tf.reduce_sum(y * y)
        gradients = tape.gradient(loss, variables)
        self.assertIsNone(gradients["block_1_1_expand/kernel"])
        self.assertIsNone(gradients["block_1_1_depthwise_5/kernel"])
        self.assertIsNone(gradients["block_1_2_project/kernel"])
        reached = tf.convert_to_tensor(gradients["block_1_1_depthwise_3/kernel"]).numpy()
        self.assertGreater(np.abs(reached[:, :, :16]).min(), 0)
        self.assertEqual(np.abs(reached[:, :, 16:]).max(), 0)

    def test_bits_round_the_weights_to_their_levels(self):
        # Two bits: -1, 0 and 1 times the scale; a network whose weights lie on these levels already
        # gives the same outputs, but for the rounding of activations, one part in 255 of a range.
        net = scattered("mnist_mobile")
        layers = network(net, bits_output=2)
        kernel = net.variables["output/kernel"]
        before = net.outputs(layers, tf.constant(images(net)), quantized=True).numpy()
        largest = np.abs(kernel.numpy()).max(axis=2, keepdims=True)
        kernel.assign(np.rint(kernel.numpy() / largest) * largest)
        after = net.outputs(layers, tf.constant(images(net)), quantized=True).numpy()
        np.testing.assert_allclose(before, after, atol=1e-5)

    def test_networks_of_other_activation_bits_do_not_share_a_trace(self):
        net = scattered("mnist_mobile")
        row = net.space.point({})
        x = tf.constant(images(net))
        eight, two = (
            net.outputs(lower(net.space, row, bits), x, quantized=True).numpy() for bits in (8, 2)
        )
        self.assertGreater(np.abs(eight - two).max(), 1e-2)

    def test_switchable_normalisation_can_be_left_out(self):
        one = Supernet(catalog.get("mnist_mobile"), seed=1, switchable=False)
        self.assertEqual(one.variables["block_1_1_expand/scale"].shape, (1, 64))
        switchable = Supernet(catalog.get("mnist_mobile"), seed=1)
        self.assertEqual(switchable.variables["block_1_1_expand/scale"].shape, (4, 64))
        for key in one.variables:
            if key.endswith("/kernel"):
                np.testing.assert_array_equal(one.variables[key], switchable.variables[key])

    def test_a_space_without_shared_weights_is_refused(self):
        with self.assertRaisesRegex(errors.UsageError, "'mnist_mlp' takes vectors"):
            Supernet(catalog.get("mnist_mlp"), 1)
        options = {"units": 1, "weight_bits": Chosen("bits"), "activation": "linear"}
        stage, bits = Stage("output", "dense", options), Decision("bits", (4, 8))
        flat = SearchSpace("flat", (2, 2, 1), (bits,), (stage,), "litert-2.3")
        with self.assertRaisesRegex(errors.UsageError, "flattens images .output_flatten."):
            Supernet(flat, 1)


if __name__ == "__main__":
    absltest.main()
