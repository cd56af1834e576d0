"""Costs of image networks: by hand, of published networks, and their range over a space."""

import time

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import seeds
from tfgen.cost import counting, kernels
from tfgen.cost.cost_model import CostModel
from tfgen.space import bits, catalog, published
from tfgen.space.lowering import lower_batch
from tfgen.space.search_space import Decision, SearchSpace, Stage


def small_network(width: int) -> SearchSpace:
    """8x8x3, a convolution to 4x4x4, a unified block of 3x3 and 5x5, mean, two classes."""
    block = {
        "sub_blocks": "35",
        "channels": width,
        "stride": 1,
        "activation": "relu6",
        "squeeze_excite": 0,
        "expand_bits": 4,
        "depthwise_bits": 8,
        "project_bits": 2,
    }
    stem = {"kernel": 3, "stride": 2, "channels": 4, "weight_bits": 8, "activation": "relu6"}
    stages = (
        Stage("stem", "conv", stem),
        Stage("block", "unified", block),
        Stage("mean", "mean", {}),
        Stage("output", "dense", {"units": 2, "weight_bits": 4, "activation": "linear"}),
    )
    return SearchSpace("small", (8, 8, 3), (Decision("none", (0,)),), stages, "litert-2.3")


class SmallNetworkTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.slots = lower_batch(small_network(4), np.zeros((1, 1), np.int64))

    def test_macs(self):
        # 4x4 outputs everywhere but in the output layer. Stem 16*9*3*4 = 1,728; expansion
        # 16*4*8 = 512; 3x3 on 4 channels 16*9*4 = 576; 5x5 16*25*4 = 1,600; projection
        # 16*8*4 = 512; output 4*2 = 8.
        self.assertEqual(counting.macs(self.slots)[0], 1728 + 512 + 576 + 1600 + 512 + 8)

    def test_parameters_with_gamma_and_beta(self):
        # Stem 108 + 2*4, expansion 32 + 2*8, 36 + 2*4, 100 + 2*4, projection 32 + 2*4, last 8 + 2.
        self.assertEqual(counting.params(self.slots)[0], 116 + 48 + 44 + 108 + 40 + 10)

    def test_storage(self):
        # (kernel + bias + outputs) * bits, batch normalisation folded into the bias:
        # (108+4+64)*8 + (32+8+128)*4 + (36+4+64)*8 + (100+4+64)*8 + (32+4+64)*2 + (8+2+2)*4.
        by_hand = 176 * 8 + 168 * 4 + 104 * 8 + 168 * 8 + 100 * 2 + 12 * 4
        self.assertEqual(counting.storage_bits(self.slots)[0], by_hand)

    def test_peak_ram_with_a_residual(self):
        # Bytes: input 192, stem 64, expansion 128, each slice and depthwise part 64, concatenation
        # 128, projection 64. The stem's output is held for the addition. Stem: 192 + 64 = 256;
        # first depthwise: stem, expansion, slice, part = 64 + 128 + 64 + 64 = 320; second slice:
        # stem, expansion, part, slice = 320; concatenation: 64 + 64 + 64 + 128 = 320.
        self.assertEqual(counting.peak_ram_bits(self.slots)[0], 320 * 8)

    def test_peak_ram_without_one(self):
        # 8 output channels: nothing is added, the stem's output is free after the expansion.
        # First depthwise: 128 + 64 + 64 = 256, as input and stem; projection: 128 + 128.
        slots = lower_batch(small_network(8), np.zeros((1, 1), np.int64))
        self.assertEqual(counting.peak_ram_bits(slots)[0], 256 * 8)


class PublishedTest(parameterized.TestCase):
    @parameterized.parameters(
        # MobileNetV2's paper rounds to 300 M and 3.4 M.
        ("mobilenet_v2", 300_774_272, 3_504_872),
        # Counted on the networks that the code of SGNAS's authors builds; its paper's table 2 has
        # 373, 326 and 281 M.
        ("sgnas_a", 372_430_304, 3_962_240),
        ("sgnas_b", 325_600_416, 3_768_904),
        ("sgnas_c", 280_595_680, 3_403_000),
        # Kernels 432 + 2*2,304 + 4,608 + 9,216 + 512 + 18,432 + 36,864 + 2,048 + 640 = 77,360;
        # gamma and beta of 16 + 2*(16 + 32 + 64) channels 480; biases of the two shortcuts and the
        # output 32 + 64 + 10.
        ("resnet8", 12_501_632, 77_360 + 480 + 106),
    )
    def test_macs_and_parameters(self, name, macs, params):
        space, network = published.network(name)
        cost = CostModel(space).cost(network)
        self.assertEqual((cost["macs"], cost["params"]), (macs, params))

    def test_peak_ram_of_resnet8(self):
        # In the first block: its input for the addition, the second convolution's input and output,
        # 32*32*16 bytes each; what that convolution reads at each position, 9 * 16 bytes for it;
        # and the network's input, which is kept: 32*32*3 floats.
        space, network = published.network("resnet8")
        kept, tensor = 32 * 32 * 3, 32 * 32 * 16
        self.assertEqual(
            CostModel(space).cost(network)["peak_ram_kb"], (4 * kept + (3 + 9) * tensor) / 1000
        )
        integers = CostModel(space, io="int8").cost(network)
        self.assertEqual(integers["peak_ram_kb"], (kept + (3 + 9) * tensor) / 1000)

    def test_the_range_of_the_papers_space(self):
        # Every block "33" and every block "777777"; in M: 178.8 and 557.4.
        model = CostModel(published.sgnas_imagenet())
        self.assertEqual(model.minimum("macs"), 178_827_776)
        self.assertEqual(model.maximum("macs"), 557_405_696)


class ImageSpaceTest(parameterized.TestCase):
    @parameterized.parameters("mnist_mobile", "cifar10_mobile_v3")
    def test_no_sampled_network_is_outside_the_range(self, name):
        space = catalog.get(name)
        model = CostModel(space)
        for metric, values in model.costs(space.sample(5000, seeds.stream(1, name))).items():
            self.assertGreaterEqual(values.min(), model.minimum(metric), metric)
            self.assertLessEqual(values.max(), model.maximum(metric), metric)

    def test_the_ranges_are_what_the_spaces_promise(self):
        for name, least, most in (("mnist_mobile", 0.05, 3.2), ("cifar10_mobile", 1.3, 24.1)):
            model = CostModel(catalog.get(name))
            self.assertAlmostEqual(model.minimum("macs") / 1e6, least, delta=0.05)
            self.assertAlmostEqual(model.maximum("macs") / 1e6, most, delta=0.05)

    def test_the_widest_plain_cnn_is_affordable(self):
        # 64 positions * 25 * 3 * 36 = 172,800; three times 16 * 9 * 36 * 36 = 186,624; 36 * 10.
        space = catalog.get("cifar10_cnn")
        plain = {f"pool_{layer}": 0 for layer in range(1, 5)} | {"stride_3": 1, "stride_4": 1}
        widest = space.choices([space.point(plain)])
        found = counting.macs(lower_batch(space, widest))
        self.assertEqual(found[0], 172_800 + 3 * 186_624 + 360)

    def test_100_000_networks_are_lowered_in_moments(self):
        space = catalog.get("cifar10_mobile")
        choices = space.sample(100_000, seeds.stream(2, "s"))
        seconds = []
        for _ in range(3):
            start = time.process_time()
            lower_batch(space, choices)
            seconds.append(time.process_time() - start)
        self.assertLess(min(seconds), 2.0)  # 0.25 s alone, 0.8 s among ten busy processes


class KernelsTest(absltest.TestCase):
    def test_networks_with_4_bit_convolutions_are_not_fast(self):
        space = catalog.get("mnist_mobile")
        policy = bits.load(space.bit_policy)
        wide = {"convolutions": "compact", "bits_stem": 8, "bits_depthwise_1": 8}
        points = [
            space.point({"convolutions": "fast"}),
            space.point({"convolutions": "fast", "bits_output": 2, "bits_project_1_1": 4}),
            space.point({**wide, "bits_depthwise_2": 8}),  # compact in name only
            space.point({**wide, "bits_depthwise_2": 4}),
            space.point({"convolutions": "compact", "bits_stem": 4}),
        ]
        fast = kernels.accelerated(lower_batch(space, space.choices(points)), policy)
        self.assertEqual(fast.tolist(), [True, True, True, False, False])

    def test_half_of_the_draws_of_an_image_space_are_fast(self):
        # "fast" is drawn with 1/2; a compact network has 8 bits in all of its stem and three groups
        # with 1/16: 17/32 in all. 20,000 draws: standard deviation 0.0035, 5 of them fail once in
        # 1.7 million.
        space = catalog.get("cifar10_mobile")
        choices = space.sample(20_000, seeds.stream(3, "s"))
        fast = kernels.accelerated(lower_batch(space, choices), bits.load(space.bit_policy))
        self.assertAlmostEqual(fast.mean(), 17 / 32, delta=5 * 0.0035)

    def test_every_mlp_is_fast(self):
        space = catalog.get("mnist_mlp")
        choices = space.sample(1000, seeds.stream(4, "s"))
        fast = kernels.accelerated(lower_batch(space, choices), bits.load(space.bit_policy))
        self.assertTrue(fast.all())


if __name__ == "__main__":
    absltest.main()
