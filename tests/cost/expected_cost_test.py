"""The mean cost by shares is the mean over the networks that the shares draw."""

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import small_space
from tfgen import errors, seeds
from tfgen.cost.cost_model import CostModel
from tfgen.cost.expected_cost import METRICS, ExpectedCost
from tfgen.space import catalog


def some_shares(space, batch: int) -> list[np.ndarray]:
    random = seeds.stream(1, "shares")
    return [random.dirichlet(np.ones(len(d.values)), batch) for d in space.decisions]


class ExpectedCostTest(parameterized.TestCase):
    @parameterized.parameters(*METRICS)
    def test_the_mean_over_all_combinations(self, metric):
        # The small space has few enough combinations, inactive decisions counted, to sum them all.
        space = small_space()
        sizes = [len(d.values) for d in space.decisions]
        grid = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1)
        costs = CostModel(space).costs(space.canonical(grid))[metric]
        shares = some_shares(space, 3)
        weights = np.ones((3, len(grid)))
        for column, share in zip(grid.T, shares, strict=True):
            weights *= share[:, column]
        found = ExpectedCost(space, metric)(np, shares)
        np.testing.assert_allclose(found, weights @ costs, rtol=1e-9)

    def test_macs_of_two_widths_by_hand(self):
        # 4 inputs, one hidden layer of 1, 2 or 3 units, one output: 4 w + w = 5 w MACs.
        space = small_space()
        shares = [np.eye(len(d.values))[[0]] for d in space.decisions]
        shares[space.index["width_1"]] = np.array([[0.5, 0.0, 0.5]])
        self.assertAlmostEqual(ExpectedCost(space, "macs")(np, shares)[0], 10.0)

    def test_large_spaces_have_tables(self):
        space = catalog.get("mnist_mobile")
        for metric in ("macs", "storage_kb"):
            expected = ExpectedCost(space, metric)  # checks itself on 256 networks
            self.assertLess(sum(table.values.size for table in expected.tables), 200_000)
            # 20,000 draws of shares: the mean has an error of a 140th of the deviation.
            shares = some_shares(space, 1)
            random = seeds.stream(2, "draws")
            rows = [random.choice(len(s[0]), 20_000, p=s[0]) for s in shares]
            costs = CostModel(space).costs(space.canonical(np.stack(rows, axis=1)))[metric]
            error = 5 * costs.std() / np.sqrt(20_000)
            self.assertAlmostEqual(expected(np, shares)[0], costs.mean(), delta=error)

    def test_cells_of_a_table_by_hand(self):
        # Half a 3x3 convolution (35,389,440 MACs) on one edge, half a 1x1 (3,932,160); the others
        # are "none": 7,783,050 and half of both.
        space = catalog.get("nasbench201")
        shares = [np.eye(5)[[0]] for _ in range(6)]
        shares[2] = np.array([[0.0, 0.0, 0.5, 0.5, 0.0]])
        expected = 7_783_050 + (35_389_440 + 3_932_160) / 2
        self.assertAlmostEqual(ExpectedCost(space, "macs")(np, shares)[0], expected, delta=1e-3)
        with self.assertRaisesRegex(
            errors.UsageError, "storage_kb of 'nasbench201' is not counted"
        ):
            ExpectedCost(space, "storage_kb")

    def test_a_metric_that_is_no_sum_is_refused(self):
        with self.assertRaisesRegex(errors.UsageError, "peak_ram_kb is no sum over layers"):
            ExpectedCost(small_space(), "peak_ram_kb")


if __name__ == "__main__":
    absltest.main()
