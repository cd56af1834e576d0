"""Networks in one line, as the table of candidates has them."""

from absl.testing import absltest

from tfgen import generate
from tfgen.space import catalog, published
from tfgen.space.layers import LayerSpec
from tfgen.space.prototype import Prototype


class DescribeTest(absltest.TestCase):
    def test_an_mlp_is_units_and_bits(self):
        space = catalog.get("mnist_mlp")
        values = {"depth": 2, "width_1": 30, "bits_1": 4, "width_2": 7, "bits_2": 2}
        network = space.point(values)
        self.assertEqual(generate.describe(space, network), "30:4 7:2 10:8")

    def test_an_image_network_has_kernels_and_each_layers_bits(self):
        # The first block has two kernels and bits of expansion, depthwise and projection; the last
        # has no expansion. A skipped block is not named.
        space = catalog.get("mnist_mobile")
        values = {
            "convolutions": "compact",
            "width_stem": 12,
            "bits_stem": 8,
            "depth_1": 1,
            "width_1": 16,
            "bits_depthwise_1": 4,
            "sub_blocks_1_1": "335",
            "bits_expand_1_1": 2,
            "depth_2": 1,
            "width_2": 24,
            "bits_depthwise_2": 8,
            "sub_blocks_2_1": "5",
            "bits_project_2_1": 2,
            "bits_output": 4,
        }
        network = space.point(values)
        self.assertEqual(generate.describe(space, network), "3>12:8 335>16:2,4,8 5>24:8,2 10:4")

    def test_layers_of_a_prototype_are_told_apart_by_their_whole_names(self):
        # Keras names them conv2d, conv2d_1 and so on.
        layers = tuple(
            LayerSpec(
                name=name,
                op="dense",
                inputs=(read,),
                in_channels=channels,
                out_channels=units,
                weight_bits=8,
            )
            for name, read, channels, units in (
                ("dense", "input", 4, 16),
                ("dense_1", "dense", 16, 8),
                ("dense_1_1", "dense_1", 8, 3),
            )
        )
        space = Prototype(layers, (4,)).space("p")
        self.assertEqual(generate.describe(space, space.point({"width_dense": 4})), "4:8 8:8 3:8")

    def test_squeeze_and_excitation_is_named(self):
        space = catalog.get("cifar10_mobile_v3")
        network = space.point({"squeeze_excite_2": 0, "depth_2": 1, "depth_3": 1})
        words = generate.describe(space, network).split()
        self.assertEqual([word.endswith("+se") for word in words[4:6]], [False, True])

    def test_residual_blocks(self):
        found = generate.describe(*published.network("resnet8"))
        self.assertEqual(found, "3>16:8 3,3>16:8 3,3>32:8 3,3>64:8 10:8")


if __name__ == "__main__":
    absltest.main()
