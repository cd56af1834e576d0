"""Costs off tables are those of the walk, of every space; what a served graph needs of them."""

import functools
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import small_space
from tfgen import errors, seeds
from tfgen.cost import counting, layer_tables
from tfgen.cost.cost_model import COUNTED, CostModel
from tfgen.cost.expected_cost import ExpectedCost
from tfgen.cost.layer_tables import LayerTables
from tfgen.cost.tabulated_cost import TabulatedCost
from tfgen.space import catalog
from tfgen.space.layers import INPUT, LayerSpec
from tfgen.space.prototype import Prototype
from tfgen.space.search_space import SearchSpace


def macs(slots) -> np.ndarray:
    return counting.macs(slots).astype(np.float64)[:, None]


def side_by_side(branches: int) -> SearchSpace:
    """Networks with some channels of so many convolutions, which one more reads at once."""
    conv = functools.partial(LayerSpec, op="conv", in_size=(4, 4), out_size=(4, 4), weight_bits=8)
    names = [f"branch_{number}" for number in range(branches)]
    layers = [
        *(conv(name=n, inputs=(INPUT,), in_channels=3, out_channels=16, kernel=3) for n in names),
        LayerSpec(
            name="joined",
            op="concat",
            inputs=tuple(names),
            in_channels=16,
            out_channels=16 * branches,
            in_size=(4, 4),
            out_size=(4, 4),
        ),
        conv(name="mix", inputs=("joined",), in_channels=16 * branches, out_channels=16),
        conv(name="output", inputs=("mix",), in_channels=16, out_channels=2),
    ]
    return Prototype(layers, (4, 4, 3)).space("side_by_side")


class LayerTablesTest(absltest.TestCase):
    def test_an_mlp_has_a_table_for_each_width_that_its_output_may_read(self):
        # One to four hidden layers: the output reads width_1 at one, width_2 at two ...
        space = catalog.get("mnist_mlp")
        found = LayerTables(space, 8, macs)
        depth = space.index["depth"]
        of_output = {
            table.decisions: dict(table.when)[depth]
            for table in found.tables
            if len(dict(table.when).get(depth, ())) == 1 and len(table.decisions) == 1
        }
        widths = {(space.index[f"width_{n}"],): (n - 1,) for n in (1, 2, 3, 4)}
        self.assertEqual(of_output | widths, of_output)

    def test_macs_by_hand(self):
        # 784 inputs, widths 3 and 5, ten classes.
        space = catalog.get("mnist_mlp")
        network = space.point({"depth": 2, "width_1": 3, "width_2": 5})
        found = LayerTables(space, 8, macs)(np, space.choices([network]))
        inputs = int(np.prod(space.input_shape))
        self.assertEqual(found[0, 0], inputs * 3 + 3 * 5 + 5 * 10)

    def test_the_mean_over_an_mlp_is_that_of_its_draws(self):
        # 20,000 draws: the mean has an error of a 140th of their deviation; five of these.
        space = catalog.get("mnist_mlp")
        random = seeds.stream(2, "draws")
        shares = [random.dirichlet(np.ones(len(d.values)), 1) for d in space.decisions]
        rows = [random.choice(len(s[0]), 20_000, p=s[0]) for s in shares]
        costs = CostModel(space).counted(space.canonical(np.stack(rows, axis=1)), ["macs"])["macs"]
        mean = ExpectedCost(space, "macs")(np, shares)[0]
        self.assertAlmostEqual(mean, costs.mean(), delta=5 * costs.std() / np.sqrt(20_000))

    def test_a_layer_that_reads_many_tensors_has_a_table_for_each(self):
        # Four convolutions of 4, 8, 12 or 16 channels side by side, and the layer's own width.
        space = side_by_side(4)
        for metric in ("macs", "params", "storage_kb", "energy_uj"):
            whole = LayerTables(space, 8, lambda s, m=metric: COUNTED[m](s)[:, None])
            with mock.patch.object(layer_tables, "_WIDE", 200):
                apart = LayerTables(space, 8, lambda s, m=metric: COUNTED[m](s)[:, None])
            self.assertGreaterEqual(max(table.values.size for table in whole.tables), 4**5)
            self.assertLessEqual(max(table.values.size for table in apart.tables), 200)
            choices = space.sample(200, seeds.stream(7, metric))
            np.testing.assert_allclose(apart(np, choices), whole(np, choices), rtol=1e-9)

    def test_a_layer_that_depends_on_too_much_is_named(self):
        with (
            mock.patch.object(layer_tables, "_LARGEST", 8),
            self.assertRaisesRegex(errors.UsageError, "layer 'hidden_2' depends on too much"),
        ):
            LayerTables(small_space(), 8, macs)


class TabulatedCostTest(parameterized.TestCase):
    @parameterized.parameters("mnist_mlp", "cifar10_mobile", "cifar10_cnn", "nasbench201")
    def test_costs_are_those_of_the_cost_model(self, name):
        space = catalog.get(name)
        model = CostModel(space)
        tables = TabulatedCost(model, 0.9)
        choices = space.sample(300, seeds.stream(5, "networks"))
        costs, upper = tables.bounds(np, tables.rows(np, choices))
        expected = model.counted(choices, tables.metrics)
        self.assertEqual(set(costs), set(tables.metrics))
        for metric, values in expected.items():
            np.testing.assert_allclose(costs[metric], values, rtol=1e-12)
            np.testing.assert_allclose(upper[metric], values, rtol=1e-12)

    def test_a_small_space_is_listed_with_every_metric(self):
        model = CostModel(small_space())
        tables = TabulatedCost(model, 0.9)
        self.assertEqual(tables.metrics, model.metrics)
        self.assertIn("peak_ram_kb", tables.metrics)

    def test_slow_kernels_are_those_of_the_runtime(self):
        # The policy has fast kernels for 8-bit convolutions alone, and for dense layers of 4.
        from tfgen.cost import kernels
        from tfgen.space import bits
        from tfgen.space.lowering import lower_batch

        space = catalog.get("cifar10_mobile")
        choices = space.sample(300, seeds.stream(6, "networks"))
        expected = kernels.accelerated(lower_batch(space, choices), bits.load(space.bit_policy))
        self.assertBetween(expected.mean(), 0.001, 0.999)
        tables = TabulatedCost(CostModel(space), 0.9)
        found = tables.accelerated(tables.rows(np, choices))
        np.testing.assert_array_equal(found, expected)


if __name__ == "__main__":
    absltest.main()
