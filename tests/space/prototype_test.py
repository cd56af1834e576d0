"""Spaces made of networks: which channels go together, and that every point is a network."""

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import branched, every_op, mlp, padded
from tfgen import seeds
from tfgen.space import bits, catalog, published
from tfgen.space.layers import INPUT, LayerSpec, check_network, range_owners
from tfgen.space.lowering import lower
from tfgen.space.prototype import Prototype


def network(name: str) -> tuple[tuple[LayerSpec, ...], tuple[int, ...]]:
    """Networks with everything that channels meet."""
    if name == "every_op":
        return every_op(), (8, 8, 1)
    if name == "branched":
        return branched(), (8, 8, 1)
    if name == "padded":
        return padded(), (8, 8, 1)
    if name == "mlp":
        return mlp([12, 16, 3], [8, 8, 8], 4), (4,)
    if name in published.NETWORKS:
        space, point = published.network(name)
    else:
        space = catalog.get(name)
        point = space.architecture(space.sample(1, seeds.stream(1, name))[0])
    return lower(space, point), space.input_shape


def image(
    name: str, op: str, inputs: str, channels: tuple[int, int], **fields: object
) -> LayerSpec:
    """A layer on 4x4 pixels."""
    sizes = {"in_size": (4, 4), "out_size": (4, 4), "weight_bits": 8 * (op in ("conv", "dense"))}
    return LayerSpec(
        name=name,
        op=op,
        inputs=tuple(inputs.split()),
        in_channels=channels[0],
        out_channels=channels[1],
        **{**sizes, **fields},
    )


def joined() -> tuple[LayerSpec, ...]:
    """Two convolutions side by side, flattened, a dense layer."""
    return (
        image("a", "conv", INPUT, (3, 8)),
        image("b", "conv", "a", (8, 12)),
        image("c", "concat", "a b", (8, 20)),
        image("d", "dense", "c", (20, 16)),
        image("f", "flatten", "d", (16, 256), out_size=()),
        image("out", "dense", "f", (256, 10), in_size=(), out_size=(), weight_bits=8),
    )


class PrototypeTest(parameterized.TestCase):
    @parameterized.parameters(
        "every_op", "mlp", "padded", "branched", "resnet8", "mobilenet_v2", "cifar10_mobile_v3",
        "cifar10_cnn", "cifar10_once_for_all",
    )  # fmt: skip
    def test_every_point_is_a_network_and_the_last_one_is_the_prototype(self, name):
        layers, shape = network(name)
        prototype = Prototype(layers, shape)
        space = prototype.space("p")
        largest = lower(space, space.point({}))
        self.assertEqual(
            [dataclasses.replace(l, weight_bits=8 if l.weighted else 0) for l in layers],
            list(largest),
        )
        policy = bits.load(space.bit_policy)
        channels = {layer.name: layer.out_channels for layer in layers}
        for row in space.sample(20, seeds.stream(2, name)):
            found = lower(space, space.architecture(row))
            check_network(found, shape)
            range_owners(found)
            for layer in found:
                self.assertTrue(policy.executes(layer.op, layer.weight_bits, 8))
                if layer.weighted and layer.out_channels % 4:  # cuts are to fours
                    self.assertEqual(layer.out_channels, channels[layer.name])

    def test_the_groups_of_resnet8(self):
        groups = Prototype(*network("resnet8")).groups
        self.assertEqual(
            [(group.channels, *group.layers) for group in groups],
            [
                (16, "stem", "block_1_conv_2"),
                (16, "block_1_conv_1"),
                (32, "block_2_conv_1"),
                (32, "block_2_conv_2", "block_2_shortcut"),
                (64, "block_3_conv_1"),
                (64, "block_3_conv_2", "block_3_shortcut"),
                (10, "output"),
            ],
        )
        self.assertEqual([bool(group.whole) for group in groups], [False] * 6 + [True])

    def test_menus_are_eighths_in_fours(self):
        space = Prototype(*network("resnet8")).space("p")
        menus = {d.name: d.values for d in space.decisions if d.name.startswith("width_")}
        # Eighths of 64 are eights. Of 16 they are twos, of which fours are left.
        self.assertEqual(menus["width_block_3_conv_1"], tuple(range(8, 65, 8)))
        self.assertEqual(menus["width_stem"], (4, 8, 12, 16))
        self.assertNotIn("width_output", menus)
        bits_of = {d.name: d.values for d in space.decisions if d.name.startswith("bits_")}
        self.assertEqual(bits_of["bits_output"], (2, 4, 8))
        self.assertEqual(space.decisions[space.index["bits_stem"]].when.decision, "convolutions")

    def test_which_channels_a_network_has(self):
        prototype = Prototype(joined(), (4, 4, 3))
        space = prototype.space("p")
        layers = lower(space, space.point({"width_a": 4, "width_b": 8, "width_d": 4}))
        order = {
            "a": np.array([5, 1, 7, 0, 2, 3, 4, 6]),
            "b": np.arange(12)[::-1],
            "d": np.array([9, 3, 8, 15, *(set(range(16)) - {9, 3, 8, 15})]),
            "out": np.arange(10),
        }
        kept = prototype.kept(layers, order)
        np.testing.assert_array_equal(kept[INPUT], [0, 1, 2])
        np.testing.assert_array_equal(kept["a"], [5, 1, 7, 0])
        np.testing.assert_array_equal(kept["b"], range(11, 3, -1))
        # Behind a's eight channels those of b.
        np.testing.assert_array_equal(kept["c"], [5, 1, 7, 0, *range(19, 11, -1)])
        # Sixteen positions of sixteen channels each.
        flat = [16 * position + channel for position in range(16) for channel in (9, 3, 8, 15)]
        np.testing.assert_array_equal(kept["f"], flat)
        self.assertEqual({l.name: l.out_channels for l in layers}["f"], 64)
        np.testing.assert_array_equal(prototype.kept(layers)["c"], [0, 1, 2, 3, *range(8, 16)])
        self.assertEqual(Prototype.of(space).groups, prototype.groups)

    def test_what_cannot_be_cut_says_why(self):
        whole = Prototype(every_op(), (8, 8, 1)).whole
        self.assertIn("takes a part of it", whole["expand"])
        self.assertIn("network's output", whole["output"])
        self.assertNotIn("stem", whole)  # what the residual adds is cut alike
        different = (
            *joined()[:3],
            image("d", "dense", "c", (20, 20)),
            image("e", "add", "c d", (20, 20)),
            image("out", "dense", "e", (20, 10)),
        )
        whole = Prototype(different, (4, 4, 3)).whole
        self.assertEqual(set(whole), {"a", "b", "d", "out"})
        self.assertIn("'e' reads tensors that are put together in different ways", whole["d"])
        # What is added to the input keeps the input's channels.
        added = (
            image("a", "conv", INPUT, (8, 8)),
            image("e", "add", f"a {INPUT}", (8, 8)),
            image("out", "dense", "e", (8, 10)),
        )
        self.assertIn("network's input", Prototype(added, (4, 4, 8)).whole["a"])

    def test_what_is_no_network_is_refused(self):
        with self.assertRaisesRegex(ValueError, "reads .'a'., which no earlier layer makes"):
            Prototype(joined()[1:], (4, 4, 8))


if __name__ == "__main__":
    absltest.main()
