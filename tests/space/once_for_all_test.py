"""The spaces of Once-for-All by hand, and networks that its authors published."""

import collections
import copy
import dataclasses
import gzip
import json
import pathlib

from absl.testing import absltest, parameterized

from tfgen import errors
from tfgen.cost.cost_model import CostModel
from tfgen.space import catalog, once_for_all
from tfgen.space.lowering import lower

_NETWORKS = pathlib.Path(__file__).parents[1] / "testdata" / "once_for_all_networks.json.gz"


def networks():
    """The authors' configs by name, all 50, without what a reader of shapes does not need."""
    return json.loads(gzip.decompress(_NETWORKS.read_bytes()))


class SpaceTest(absltest.TestCase):
    def test_the_size_of_once_for_all_without_bits(self):
        # A block: 3 kernels, 3 expansions: 9. A unit of 2, 3 or 4: 81 + 729 + 6,561 = 7,371. Five
        # units: 2.2e19, as section 3.1 says (2 * 10**19).
        space = once_for_all.mobilenet_v3("o", 1.0)
        chosen = tuple(
            d for d in space.decisions if d.name.split("_")[0] in ("depth", "kernel", "expansion")
        )
        bare = dataclasses.replace(space, decisions=chosen, stages=())
        self.assertEqual(bare.size(), 7_371**5)
        self.assertAlmostEqual(bare.size() / 1e19, 2.2, delta=0.05)

    def test_the_layers_of_a_block(self):
        space = catalog.get("cifar10_once_for_all")
        values = {"depth_3": 2, "kernel_3_2": 5, "expansion_3_2": 4, "bits_expand_3_2": 4}
        found = [l for l in lower(space, space.point(values)) if l.name.startswith("block_3_2")]
        self.assertEqual(
            [(l.name.removeprefix("block_3_2_"), l.op, l.kernel, l.out_channels) for l in found],
            [
                ("expand", "dense", 1, 96),  # four times 24
                ("depthwise", "depthwise", 5, 96),
                ("squeeze", "mean", 1, 96),
                ("reduce", "dense", 1, 24),
                ("excite", "dense", 1, 96),
                ("gate", "sigmoid", 1, 96),
                ("scale", "multiply", 1, 96),
                ("project", "dense", 1, 24),
                ("add", "add", 1, 24),
            ],
        )
        self.assertEqual([l.activation for l in found[:2]], ["relu", "relu"])
        self.assertEqual([l.weight_bits for l in found if l.weighted], [4, 8, 8, 8, 8])

    def test_the_first_block_does_not_expand(self):
        space = catalog.get("cifar10_once_for_all")
        found = lower(space, space.point({}))
        self.assertEqual(
            [l.name for l in found if l.name.startswith("block_1_")],
            ["block_1_1_depthwise", "block_1_1_project", "block_1_1_add"],
        )
        self.assertNotIn("bits_expand_1_1", space.index)

    def test_later_units_have_hard_swish_or_what_stands_for_it(self):
        space = once_for_all.mobilenet_v3("as_published", 1.0)
        swished = {l.name for l in lower(space, space.point({})) if l.op == "hard_swish"}
        self.assertIn("block_4_1_depthwise_hard_swish", swished)
        self.assertNotIn("block_3_1_depthwise_hard_swish", swished)
        space = catalog.get("cifar10_once_for_all")
        activations = {l.name: l.activation for l in lower(space, space.point({}))}
        self.assertEqual(activations["block_3_1_depthwise"], "relu")
        self.assertEqual(activations["block_4_1_depthwise"], "relu6")

    def test_the_range_of_the_space_for_cifar_10(self):
        space = catalog.get("cifar10_once_for_all")
        model = CostModel(space)
        smallest = space.architecture([0] * len(space.decisions))
        self.assertEqual(model.cost(smallest)["macs"], 4_882_432)
        self.assertEqual(model.cost(space.point({}))["macs"], 24_411_904)


class NetworkTest(parameterized.TestCase):
    # The name tells millions of MACs; the side of the images, where it is not 224, is not published
    # with a network: 236 is the one multiple of 4 that gives the name's number.
    @parameterized.parameters(
        ("flops-389M_top1-79.1_finetune-75", 224, 389),
        ("flops-482M_top1-79.6_finetune-75", 224, 482),
        ("flops-595M_top1-80.0_finetune-75", 236, 595),
    )
    def test_macs_are_those_of_the_name(self, name, side, millions):
        space, network = once_for_all.network(networks()[name])
        sized = dataclasses.replace(space, input_shape=(side, side, 3))
        self.assertEqual(round(CostModel(sized).cost(network)["macs"] / 1e6), millions)

    def test_all_that_were_published_are_points_of_three_spaces(self):
        # `network` compares each layer with the config: channels, kernel and stride.
        read = [once_for_all.network(config) for config in networks().values()]
        found = collections.Counter(space.name for space, _ in read)
        # By the configs' names and first widths, 16 and 24; ten differ in nothing that is read.
        self.assertEqual(
            found, {"once_for_all": 24, "once_for_all_wide": 10, "once_for_all_proxyless": 16}
        )
        self.assertLen({(space.name, network.fingerprint) for space, network in read}, 40)

    def test_what_is_read(self):
        space, network = once_for_all.network(networks()["pixel1_lat-20ms_top1-71.4_finetune-25"])
        self.assertEqual(space.name, "once_for_all")
        blocks = networks()["pixel1_lat-20ms_top1-71.4_finetune-25"]["blocks"]
        values = space.values(network)
        depths = [values[f"depth_{unit}"] for unit in range(2, 7)]
        self.assertLen(blocks, 1 + sum(depths))
        conv = blocks[1]["mobile_inverted_conv"]
        self.assertEqual(values["kernel_2_1"], conv["kernel_size"])
        self.assertEqual(values["expansion_2_1"], conv["expand_ratio"])
        self.assertEqual({l.weight_bits for l in lower(space, network) if l.weighted}, {8})

    def test_proxyless_units(self):
        space, network = once_for_all.network(networks()["v100_gpu64-11ms_top1-76.1_finetune-25"])
        self.assertEqual(space.name, "once_for_all_proxyless")
        self.assertNotIn("depth_7", space.index)  # one block of 416 channels
        found = {l.name: l for l in lower(space, network)}
        self.assertEqual(found["block_7_1_project"].out_channels, 416)
        self.assertEqual(found["head"].out_channels, 1664)

    @parameterized.parameters(
        (lambda c: c.pop("classifier"), "classifier"),
        (lambda c: c.update(name="ResNet"), "'ResNet' with 24"),
        (
            lambda c: c["blocks"][3]["mobile_inverted_conv"].update(kernel_size=9),
            "kernel_3_1.* takes 3, 5, 7, got 9",
        ),
        (lambda c: c["blocks"][5]["mobile_inverted_conv"].update(use_se=False), "layer 22 of"),
        (lambda c: c["blocks"].pop(2), "depth_2"),
        (lambda c: c.update(blocks="none"), "TypeError"),
    )
    def test_what_is_no_such_network_is_refused(self, change, message):
        config = copy.deepcopy(networks()["flops-389M_top1-79.1_finetune-75"])
        change(config)
        with self.assertRaisesRegex(errors.CorruptFileError, message):
            once_for_all.network(config)


if __name__ == "__main__":
    absltest.main()
