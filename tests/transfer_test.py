"""A network for small images becomes a detector on larger ones."""

from absl.testing import absltest

from tfgen.cost import cost_model
from tfgen.space import catalog
from tfgen.space.layers import check_network, slots_of
from tfgen.space.lowering import lower
from tools import transfer


class DetectorTest(absltest.TestCase):
    def test_what_stands_before_the_mean_goes_with_the_image(self):
        space = catalog.get("cifar10_mobile")
        network = lower(space, space.point({}))
        made = transfer.detector(network, (120, 160), 7)
        check_network(made, (120, 160, 3))
        self.assertEqual(
            [layer.name for layer in made[:-1]], [layer.name for layer in network[:-2]]
        )
        # Of 32x32 pixels 4x4 are left, so of 120x160 there are 15x20, 18.75 times as many, as there
        # are at every layer before. Ten classes of 128 channels go; seven outputs a cell come.
        before, after = (cost_model.count(slots_of(n))["macs"][0] for n in (network, made))
        self.assertEqual(made[-1].out_size, (15, 20))
        self.assertEqual(after, 18.75 * (before - 128 * 10) + 300 * 128 * 7)


if __name__ == "__main__":
    absltest.main()
