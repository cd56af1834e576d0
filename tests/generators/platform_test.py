"""Who is the better answer to a budget; what is read of devices."""

import numpy as np
from absl.testing import absltest

from tests.space.small import small_space
from tfgen import errors
from tfgen.cost.cost_model import CostModel
from tfgen.cost.latency import Interval
from tfgen.generators.platform import Platform, device_features, dominance, overshoot
from tfgen.space.search_space import Choices

SPACE = small_space()


class Device:
    """A device on which a network takes a millisecond for each MAC, times a factor."""

    device = "toy"
    remark = ""

    def __init__(self, factor: float):
        self._factor = factor

    def predict(self, choices: Choices, confidence: float) -> Interval:
        del confidence
        ms = self._factor * CostModel(SPACE).costs(choices)["macs"]
        return Interval(ms, ms)


class DominanceTest(absltest.TestCase):
    def test_the_rules_of_equation_6(self):
        # Four networks of accuracies 0.6, 0.9, 0.8 and 0.8 at 0.5, 0.9, 1.2 and 1.5 of the budget.
        # Within it the second is the better one; beyond it the cheaper one is, whatever its
        # accuracy; and what is within it dominates what is not.
        quality, over = np.array([0.6, 0.9, 0.8, 0.8]), np.array([0.5, 0.9, 1.2, 1.5])
        np.testing.assert_array_equal(
            dominance(quality, over),
            [[0, -1, 1, 1], [1, 0, 1, 1], [-1, -1, 0, 1], [-1, -1, -1, 0]],
        )

    def test_without_the_accuracy_constraint_the_cheapest_dominates(self):
        found = dominance(np.array([0.6, 0.9]), np.array([0.5, 0.9]), by_quality=False)
        np.testing.assert_array_equal(found, [[0, 1], [-1, 0]])

    def test_what_equation_6_ranks_both_ways_is_a_tie(self):
        np.testing.assert_array_equal(dominance(np.full(2, 0.5), np.array([0.2, 0.3])), 0)
        np.testing.assert_array_equal(dominance(np.array([0.5, 0.6]), np.full(2, 1.3)), 0)

    def test_for_each_budget_by_itself(self):
        quality, over = np.array([[0.1, 0.2], [0.1, 0.2]]), np.array([[0.5, 0.6], [1.5, 1.6]])
        found = dominance(quality, over)
        np.testing.assert_array_equal(found[:, 0, 1], [-1, 1])
        np.testing.assert_array_equal(found, -found.transpose(0, 2, 1))

    def test_the_tightest_limit_counts(self):
        costs = np.array([[2.0, 3.0], [2.0, 3.0], [2.0, 3.0]])
        targets = np.array([[4.0, 2.0], [4.0, 0.0], [0.0, 0.0]])
        np.testing.assert_allclose(overshoot(costs, targets), [1.5, 0.5, 0.0])


class PlatformTest(absltest.TestCase):
    def test_a_predicted_cost_is_its_upper_end(self):
        class Unsure(Device):
            def predict(self, choices: Choices, confidence: float) -> Interval:
                ms = super().predict(choices, confidence).ms
                return Interval(ms, ms * (2.0 if confidence == 0.95 else 1.0))

        model = CostModel(SPACE, latency=Unsure(1.0))
        own = Platform.of(model, ("macs", "latency_ms"), 4)
        networks = self.references()
        macs, ms = own.costs(networks).T
        np.testing.assert_allclose(ms, 2.0 * macs)
        np.testing.assert_allclose(own.sampled["latency_ms"], 2.0 * own.sampled["macs"])

    def references(self) -> Choices:
        return SPACE.choices(list(SPACE.enumerate()))[::20]

    def test_a_device_is_known_by_how_references_compare_on_it(self):
        # e, e**2 and e**3 milliseconds: one less than their mean, as much, one more.
        np.testing.assert_allclose(device_features(np.exp([1.0, 2.0, 3.0])), [-1, 0, 1])
        slow, fast = (
            Platform.of(
                CostModel(SPACE, latency=Device(factor)), ["latency_ms"], 5, self.references()
            )
            for factor in (1.0, 0.1)
        )
        np.testing.assert_allclose(slow.features, fast.features, atol=1e-12)
        # Half of each one's range is the same to a policy.
        halves = [np.exp(p.targets.ranges.mean(axis=1))[None] for p in (slow, fast)]
        np.testing.assert_allclose(
            slow.conditions(halves[0]), fast.conditions(halves[1]), atol=1e-6
        )
        self.assertEqual(slow.conditions(halves[0]).shape, (1, 5 + 1 + len(self.references())))

    def test_costs_are_in_the_order_of_targets(self):
        model = CostModel(SPACE, latency=Device(2.0))
        platform = Platform.of(model, ["params", "latency_ms"], 5)
        choices = self.references()
        found = platform.costs(choices)
        np.testing.assert_allclose(found[:, 0], model.costs(choices)["params"])
        np.testing.assert_allclose(found[:, 1], 2.0 * model.costs(choices)["macs"])
        np.testing.assert_array_equal(platform.unlimited, [[0.0, 0.0]])

    def test_a_cost_that_is_not_known_is_named(self):
        with self.assertRaisesRegex(errors.UsageError, "latency_ms is not known of networks of"):
            Platform.of(CostModel(SPACE), ["latency_ms"], 5)


if __name__ == "__main__":
    absltest.main()
