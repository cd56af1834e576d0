"""Targets: where they lie, what of them is read, and which a budget asks for."""

import numpy as np
from absl.testing import absltest

from tests.space.small import small_space
from tfgen import seeds
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.generators.targets import Targets

COSTS = ("macs", "params", "latency_ms")


def made(knots: int = 33) -> Targets:
    return Targets(COSTS, np.array([[0.0, 2.0], [0.0, 2.0], [0.0, 0.0]]), knots)


class TargetsTest(absltest.TestCase):
    def test_targets_are_read_as_hats(self):
        # The middle of e**0..e**2 is e: hat 16 of 33. The other costs are free: all zeros.
        (read,) = made().features(np.array([[np.e, 0.0, 0.0]]))
        expected = np.zeros(3 * 34)
        expected[[16, 33]] = 1.0
        np.testing.assert_allclose(read, expected, atol=1e-6)

    def test_between_two_knots_is_a_mean_of_both(self):
        # Three knots at e**0, e**1 and e**2; e**0.75 is three quarters of the way to the second.
        (read,) = made(3).features(np.array([[np.e**0.75, 0.0, 0.0]]))
        np.testing.assert_allclose(read[:4], [0.25, 0.75, 0.0, 1.0], atol=1e-6)

    def test_beyond_the_range_the_last_knot_is_read(self):
        read = made(3).features(np.array([[100.0, 0.0, 0.0], [0.01, 0.0, 0.0]]))
        np.testing.assert_allclose(read[:, :4], [[0, 0, 1, 1], [1, 0, 0, 1]], atol=1e-6)

    def test_targets_lie_in_the_range_and_some_limit_several_costs(self):
        # 30 % of 2,000 targets: 600 +- 20; five deviations are passed once in two million seeds.
        random = np.exp(seeds.stream(1, "points").uniform(0, 2, (100, 2)))
        sampled = {"macs": random[:, 0], "params": random[:, 1]}
        targets = made().draw(2_000, sampled, 0.3, seeds.stream(2, "targets"))
        self.assertEqual(targets[:, 2].max(), 0.0)
        limited = (targets > 0).sum(axis=1)
        self.assertGreaterEqual(limited.min(), 1)
        # Of those that may limit several, half limit their own cost alone.
        self.assertBetween((limited > 1).sum(), 0.5 * 600 - 100, 0.5 * 600 + 100)
        single = targets[limited == 1]
        self.assertBetween(single.max(), np.e**1.9, np.e**2.4)
        self.assertGreater(single[single > 0].min(), np.e**-0.1)

    def test_a_budget_asks_for_the_limits_that_are_read(self):
        budget = Budget({"macs": 5.0, "file_kb": 3.0, "latency_ms": 2.0}, device="host")
        np.testing.assert_array_equal(made().asked(budget), [5, 0, 0])
        ranges = np.array([[0.0, 2.0]] * 3)
        known = Targets(COSTS, ranges, 33, "host")
        np.testing.assert_array_equal(known.asked(budget), [5, 0, 2])
        other = Targets(COSTS, ranges, 33, "pixel3")
        np.testing.assert_array_equal(other.asked(budget), [5, 0, 0])

    def test_what_networks_cost_as_shares_of_limits(self):
        limits = np.array([[4.0, 0.0, 2.0], [8.0, 10.0, 0.0]])
        costs = {"macs": np.array([2.0, 10.0]), "latency_ms": np.array([9.0, 9.0])}
        # Parameters are not told, and these targets never limit a latency.
        np.testing.assert_array_equal(made().shares(limits, costs), [[0.5, 0, 0], [1.25, 0, 0]])

    def test_a_sweep_goes_down_the_first_cost(self):
        np.testing.assert_allclose(
            made().sweep(3), [[np.e**2, 0, 0], [np.e, 0, 0], [1, 0, 0]], atol=1e-12
        )

    def test_a_space_has_the_range_of_its_extremes_and_state_restores_it(self):
        model = CostModel(small_space())
        sampled = model.costs(small_space().sample(50, seeds.stream(1, "networks")))
        targets = Targets.of(model, COSTS, ["params"], sampled, 5)
        self.assertEqual(targets.limited, ("params",))
        np.testing.assert_allclose(
            np.exp(targets.ranges[1]), [model.minimum("params"), model.maximum("params")]
        )
        restored = Targets.restored(COSTS, 5, targets.state())
        self.assertEqual((restored.limited, restored.device), (("params",), ""))
        with self.assertRaisesRegex(ValueError, "need as many ranges"):
            Targets.restored(COSTS[:2], 5, targets.state())


if __name__ == "__main__":
    absltest.main()
