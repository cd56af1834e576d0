"""The unified and the residual block layer by layer, and what holds for every space."""

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import seeds
from tfgen.space import bits, catalog, image_spaces, layers, lowering, published
from tfgen.space.encoding import Encoding
from tfgen.space.search_space import Chosen, Decision, SearchSpace, Stage, When

SPACES = {
    **catalog.SPACES,
    "mobilenet_v2": published.mobilenet_v2,
    "resnet8": published.resnet8,
    "sgnas_imagenet": published.sgnas_imagenet,
}


def block(kind, input_shape, **options):
    """The layers of a single block, as (name, op, inputs, in channels, out channels)."""
    decision = Decision("stride", (options.pop("stride", 1),))  # a space has at least one
    stage = Stage("b", kind, {**options, "stride": Chosen("stride")})
    space = SearchSpace("one", input_shape, (decision,), (stage,), "litert-2.3")
    found = lowering.lower(space, space.architecture([0]))
    layers.check_network(found, input_shape)
    return found


def unified(sub_blocks, input_shape=(6, 6, 4), **options):
    given = {
        "channels": 4,
        "activation": "relu6",
        "squeeze_excite": 0,
        "expand_bits": 2,
        "depthwise_bits": 8,
        "project_bits": 4,
    }
    return block("unified", input_shape, sub_blocks=sub_blocks, **{**given, **options})


def shapes(found):
    return [(l.name, l.op, l.inputs, l.in_channels, l.out_channels) for l in found]


class UnifiedTest(parameterized.TestCase):
    def test_two_kernels_split_the_channels_and_are_concatenated(self):
        # 4 channels expanded by 3; two sub-blocks of 3x3, one of 5x5.
        found = unified("335")
        self.assertEqual(
            shapes(found),
            [
                ("b_expand", "dense", ("input",), 4, 12),
                ("b_slice_3", "slice", ("b_expand",), 12, 8),
                ("b_depthwise_3", "depthwise", ("b_slice_3",), 8, 8),
                ("b_slice_5", "slice", ("b_expand",), 12, 4),
                ("b_depthwise_5", "depthwise", ("b_slice_5",), 4, 4),
                ("b_concat", "concat", ("b_depthwise_3", "b_depthwise_5"), 8, 12),
                ("b_project", "dense", ("b_concat",), 12, 4),
                ("b_add", "add", ("b_project", "input"), 4, 4),
            ],
        )
        self.assertEqual([l.kernel for l in found], [1, 1, 3, 1, 5, 1, 1, 1])
        self.assertEqual([l.offset for l in found], [0, 0, 0, 8, 0, 0, 0, 0])
        self.assertEqual([l.weight_bits for l in found], [2, 0, 8, 0, 8, 0, 4, 0])
        self.assertEqual([l.batch_norm for l in found], [l.weighted for l in found])
        self.assertEqual(
            [l.activation for l in found if l.weighted], ["relu6", "relu6", "relu6", "linear"]
        )
        self.assertEqual(found[-1].activation, "linear")

    def test_three_kernels(self):
        found = {l.name: l for l in unified("35777")}
        self.assertEqual(
            [(found[f"b_slice_{k}"].offset, found[f"b_slice_{k}"].out_channels) for k in (3, 5, 7)],
            [(0, 4), (4, 4), (8, 12)],
        )
        parts = ("b_depthwise_3", "b_depthwise_5", "b_depthwise_7")
        self.assertEqual(found["b_concat"].inputs, parts)
        self.assertEqual(found["b_concat"].out_channels, 20)

    def test_a_missing_first_kernel_leaves_the_others(self):
        found = {l.name: l for l in unified("57")}
        self.assertEqual(found["b_concat"].inputs, ("b_depthwise_5", "b_depthwise_7"))
        self.assertNotIn("b_slice_3", found)

    def test_equal_kernels_merge_into_one_layer(self):
        self.assertEqual(
            shapes(unified("777")),
            [
                ("b_expand", "dense", ("input",), 4, 12),
                ("b_depthwise_7", "depthwise", ("b_expand",), 12, 12),
                ("b_project", "dense", ("b_depthwise_7",), 12, 4),
                ("b_add", "add", ("b_project", "input"), 4, 4),
            ],
        )

    def test_a_single_sub_block_is_no_expansion(self):
        self.assertEqual(
            shapes(unified("5")),
            [
                ("b_depthwise_5", "depthwise", ("input",), 4, 4),
                ("b_project", "dense", ("b_depthwise_5",), 4, 4),
                ("b_add", "add", ("b_project", "input"), 4, 4),
            ],
        )

    @parameterized.parameters(
        ({"stride": 2}, 3),  # ceil(5 / 2) of a 5x5 image
        ({"channels": 8}, 5),
        ({"stride": 2, "channels": 8}, 3),
    )
    def test_a_residual_needs_stride_1_and_equal_channels(self, options, side):
        found = unified("35", input_shape=(5, 5, 4), **options)
        self.assertEqual(found[-1].op, "dense")
        self.assertEqual(found[-1].out_size, (side, side))
        sizes = {l.name: l.out_size for l in found}
        self.assertEqual(sizes["b_slice_5"], (5, 5))  # the depthwise layers take the steps
        self.assertEqual(sizes["b_depthwise_5"], (side, side))

    def test_hard_swish_is_an_op_after_the_expansion_and_once_after_the_parts(self):
        found = unified("35", activation="hard_swish")
        self.assertEqual(
            [(l.op, l.inputs) for l in found if l.op == "hard_swish"],
            [("hard_swish", ("b_expand",)), ("hard_swish", ("b_concat",))],
        )
        self.assertEqual({l.activation for l in found}, {"linear"})
        inputs = {l.name: l.inputs for l in found}
        self.assertEqual(inputs["b_slice_3"], ("b_expand_hard_swish",))
        self.assertEqual(inputs["b_project"], ("b_hard_swish",))

    def test_squeeze_and_excitation(self):
        # 8 channels expanded by 5 are 40; a quarter is 10, up to fours 12.
        found = unified("33355", input_shape=(6, 6, 8), squeeze_excite=1)
        start = [l.name for l in found].index("b_squeeze")
        self.assertEqual(
            shapes(found[start : start + 6]),
            [
                ("b_squeeze", "mean", ("b_concat",), 40, 40),
                ("b_reduce", "dense", ("b_squeeze",), 40, 12),
                ("b_excite", "dense", ("b_reduce",), 12, 40),
                ("b_gate", "sigmoid", ("b_excite",), 40, 40),
                ("b_scale", "multiply", ("b_concat", "b_gate"), 40, 40),
                ("b_project", "dense", ("b_scale",), 40, 4),
            ],
        )
        gate = found[start : start + 4]
        self.assertEqual([l.out_size for l in gate], [(1, 1)] * 4)
        self.assertEqual([l.activation for l in gate], ["linear", "relu", "linear", "linear"])
        self.assertEqual([l.weight_bits for l in gate], [0, 4, 4, 0])  # those of the projection
        self.assertEqual(found[start + 4].out_size, (6, 6))

    def test_a_skipped_block_passes_the_signal_on(self):
        given = {
            "sub_blocks": "33",
            "channels": 4,
            "stride": 1,
            "activation": "relu",
            "squeeze_excite": 0,
            "expand_bits": 8,
            "depthwise_bits": 8,
            "project_bits": 8,
        }
        space = SearchSpace(
            "two",
            (6, 6, 4),
            (Decision("depth", (1, 2)),),
            (
                Stage("first", "unified", given),
                Stage("second", "unified", given, When("depth", (2,))),
                Stage("mean", "mean", {}),
            ),
            "litert-2.3",
        )
        short, long = (lowering.lower(space, space.architecture([i])) for i in (0, 1))
        self.assertEqual([l.name for l in long[4:7]], [
            "second_expand", "second_depthwise_3", "second_project",
        ])  # fmt: skip
        self.assertEqual(long[4].inputs, ("first_add",))
        self.assertEqual(short[:4], long[:4])
        self.assertEqual(shapes(short[4:]), [("mean", "mean", ("first_add",), 4, 4)])

    @parameterized.parameters("53", "9", "34")
    def test_other_sub_blocks_are_refused(self, sub_blocks):
        with self.assertRaisesRegex(ValueError, "digits of .3, 5, 7., ascending, got"):
            unified(sub_blocks)


def residual(input_shape, stride=1):
    options = {"kernel": 3, "channels": 8, "weight_bits": 4, "activation": "relu"}
    return block("residual", input_shape, stride=stride, **options)


class ResidualTest(absltest.TestCase):
    def test_equal_shapes_are_added_as_they_are(self):
        found = residual((6, 6, 8))
        self.assertEqual(
            shapes(found),
            [
                ("b_conv_1", "conv", ("input",), 8, 8),
                ("b_conv_2", "conv", ("b_conv_1",), 8, 8),
                ("b_add", "add", ("b_conv_2", "input"), 8, 8),
            ],
        )
        self.assertEqual([l.activation for l in found], ["relu", "linear", "relu"])
        self.assertEqual([l.batch_norm for l in found], [True, True, False])

    def test_a_shortcut_takes_the_input_to_another_shape(self):
        found = residual((6, 6, 4), stride=2)
        self.assertEqual(
            shapes(found)[2:],
            [
                ("b_shortcut", "conv", ("input",), 4, 8),
                ("b_add", "add", ("b_conv_2", "b_shortcut"), 8, 8),
            ],
        )
        shortcut = found[2]
        self.assertEqual((shortcut.kernel, shortcut.stride, shortcut.batch_norm), (1, 2, False))
        self.assertEqual([l.stride for l in found], [2, 1, 2, 1])
        self.assertEqual({l.out_size for l in found}, {(3, 3)})


class EverySpaceTest(parameterized.TestCase):
    @parameterized.parameters(*SPACES)
    def test_points_are_networks_that_can_be_quantized(self, name):
        space = SPACES[name]()
        policy = bits.load(space.bit_policy)
        slots = lowering.lower_batch(space, space.sample(200, seeds.stream(1, name)))
        for row in range(200):
            found = layers.layers_of(slots, row)
            layers.check_network(found, space.input_shape)
            layers.range_owners(found)
            for layer in found:
                if layer.weighted:
                    self.assertIn(layer.weight_bits, policy.weight_bits(layer.op, compact=True))
            self.assertEqual((found[-1].op, found[-1].activation), ("dense", "linear"))

    @parameterized.parameters(*SPACES)
    def test_one_walk_for_one_and_for_many(self, name):
        space = SPACES[name]()
        choices = space.sample(200, seeds.stream(2, name))
        slots = lowering.lower_batch(space, choices)
        for row in range(0, 200, 13):
            single = lowering.lower(space, space.architecture(choices[row]))
            self.assertEqual(single, layers.layers_of(slots, row))

    @parameterized.parameters(*SPACES)
    def test_different_networks_read_differently(self, name):
        encoding = Encoding(SPACES[name]())
        choices = encoding.space.sample(100, seeds.stream(3, name))
        features = encoding.features_of(choices)
        self.assertLen(np.unique(features, axis=0), len(np.unique(choices, axis=0)))

    @parameterized.parameters(*SPACES)
    def test_json_both_ways(self, name):
        space = SPACES[name]()
        self.assertEqual(SearchSpace.from_json(space.to_json()), space)

    def test_an_image_networks_low_bit_layers_read_channels_in_fours(self):
        for name in ("mnist_mobile", "cifar10_mobile", "cifar10_mobile_v3", "mobilenet_v2"):
            space = SPACES[name]()
            for slot in lowering.lower_batch(space, space.sample(500, seeds.stream(4, name))):
                if slot.op == "dense":
                    odd = slot.present & (slot.in_channels % 4 > 0)
                    self.assertFalse(odd.any(), f"{name}: {slot.name}")

    def test_activation_bits_are_the_networks(self):
        space = catalog.get("mnist_mobile")
        found = lowering.lower(space, space.architecture([0] * len(space.decisions)), 16)
        self.assertEqual({l.activation_bits for l in found}, {16})

    def test_no_networks_have_no_costs(self):
        space = catalog.get("cifar10_mobile")
        empty = np.zeros((0, len(space.decisions)), np.int64)
        self.assertEqual({len(s.present) for s in lowering.lower_batch(space, empty)}, {0})

    def test_a_slot_that_no_row_has_is_left_out(self):
        space = catalog.get("cifar10_mobile")
        slots = lowering.lower_batch(space, space.sample(50, seeds.stream(5, "s")))
        self.assertTrue(all(slot.present.any() for slot in slots))
        self.assertNotIn("block_1_1_squeeze", [slot.name for slot in slots])


class ImageSpaceTest(absltest.TestCase):
    def test_sub_blocks_are_the_80_of_the_paper(self):
        # Multisets of 3 kernels: C(e+2, 2) = 6, 10, 15, 21, 28 for e = 2..6.
        menu = image_spaces.sub_blocks((3, 5, 7), range(2, 7))
        self.assertLen(menu, 80)
        self.assertEqual(menu[:7], ("33", "35", "37", "55", "57", "77", "333"))
        self.assertEqual(menu[-1], "777777")
        counts = [sum(len(b) == e for b in menu) for e in range(2, 7)]
        self.assertEqual(counts, [6, 10, 15, 21, 28])

    def test_the_size_of_mnist_mobile(self):
        # A block: 2 sub-blocks without expansion have 3 bits of the projection; 3 + 4 + 5 with it
        # 3 * 3: 6 + 108 = 114. A group: 4 widths, one or two blocks. Convolutions: stem and two
        # groups at 4 or 8 bits, or fast. 3 widths of the stem, 3 bits of the output.
        group = 4 * (114 + 114**2)
        self.assertEqual(catalog.get("mnist_mobile").size(), (2**3 + 1) * 3 * group**2 * 3)

    def test_the_size_of_cifar10_mobile(self):
        # A block: 80 sub-blocks, 3 * 3 bits: 720. Groups of up to 3, 3 and 2 blocks with 3, 4 and 3
        # widths; convolutions: stem and three groups at 4 or 8 bits, or fast; 2 widths of the stem;
        # head: 3 widths, 3 bits; output: 3 bits.
        three, two = 720 + 720**2 + 720**3, 720 + 720**2
        size = (2**4 + 1) * 2 * (3 * three) * (4 * three) * (3 * two) * 9 * 3
        self.assertEqual(catalog.get("cifar10_mobile").size(), size)
        # Squeeze-and-excitation or not in two groups.
        self.assertEqual(catalog.get("cifar10_mobile_v3").size(), 4 * size)

    def test_the_size_of_cifar10_cnn(self):
        # A layer: 9 widths, 2 bits, pool or not: 36. The first has 3 kernels, others 2; the third
        # and fourth 2 strides. Depth 1 to 4; 3 bits of the output.
        first, second, other = 36 * 3, 36 * 2, 36 * 2 * 2
        size = 3 * first * (1 + second * (1 + other * (1 + other)))
        self.assertEqual(catalog.get("cifar10_cnn").size(), size)

    def test_the_layers_of_a_plain_cnn(self):
        space = catalog.get("cifar10_cnn")
        values = {"depth": 3, "width_1": 8, "kernel_1": 5, "bits_1": 4, "pool_1": 1}
        values |= {"width_2": 36, "kernel_2": 1, "bits_2": 8, "pool_2": 0}
        values |= {"width_3": 12, "kernel_3": 3, "bits_3": 8, "stride_3": 1, "pool_3": 0}
        found = lowering.lower(space, space.point({**values, "bits_output": 2}))
        layers.check_network(found, (16, 16, 3))
        expected = [
            # op, kernel, stride, channels, size, weight bits
            ("conv", 5, 2, 8, (8, 8), 4),
            ("max_pool", 2, 2, 8, (4, 4), 0),
            ("conv", 1, 2, 36, (2, 2), 8),
            ("conv", 3, 1, 12, (2, 2), 8),
            ("mean", 1, 1, 12, (), 0),
            ("dense", 1, 1, 10, (), 2),
        ]
        shape = [
            (l.op, l.kernel, l.stride, l.out_channels, l.out_size, l.weight_bits) for l in found
        ]
        self.assertEqual(shape, expected)
        convolutions = [l for l in found if l.op == "conv"]
        self.assertEqual({(l.activation, l.batch_norm) for l in convolutions}, {("relu", False)})

    def test_a_convolution_checks_itself(self):
        for widths in ((8, 10), ()):
            with self.assertRaisesRegex(ValueError, "multiples of 4, at least one"):
                image_spaces.Convolution(widths=widths, kernels=(3,), strides=(1,))

    def test_the_size_of_the_papers_space(self):
        self.assertEqual(published.sgnas_imagenet().size(), 80**19)

    def test_a_group_checks_itself(self):
        for wrong in ({"widths": (8, 10)}, {"depths": (0, 1)}, {"depths": ()}):
            group = {"depths": (1,), "widths": (8,), "sub_blocks": ("33",), "stride": 1, **wrong}
            with self.assertRaisesRegex(ValueError, "multiples of 4, depths at least 1"):
                image_spaces.UnifiedGroup(**group)

    def test_a_fast_network_has_8_bit_convolutions(self):
        space = catalog.get("mnist_mobile")
        fast = space.point({"convolutions": "fast"})
        self.assertNotIn("bits_stem", space.values(fast))
        found = [l for l in lowering.lower(space, fast) if l.op in ("conv", "depthwise")]
        self.assertEqual({l.weight_bits for l in found}, {8})
        compact = space.point({"convolutions": "compact"})
        found = [l for l in lowering.lower(space, compact) if l.op in ("conv", "depthwise")]
        self.assertEqual({l.weight_bits for l in found}, {4})  # the last of (8, 4)

    def test_bits_of_an_expansion_are_a_decision_only_where_there_is_one(self):
        space = catalog.get("mnist_mobile")
        values = space.values(space.point({"sub_blocks_1_1": "5"}))
        self.assertNotIn("bits_expand_1_1", values)
        self.assertIn("bits_expand_1_2", values)

    def test_published_networks(self):
        for name in published.NETWORKS:
            space, network = published.network(name)
            found = lowering.lower(space, network)
            layers.check_network(found, space.input_shape)
            self.assertEqual({l.weight_bits for l in found if l.weighted}, {8}, name)


if __name__ == "__main__":
    absltest.main()
