"""Costs by hand, budgets as text, and the distances of the NAGAN paper."""

import dataclasses
import json
import time

import numpy as np
from absl.testing import absltest, parameterized

from tests.space import small
from tfgen import errors, seeds
from tfgen.cost import counting, metrics, pareto
from tfgen.cost.budget import Budget, Cost, Quantity, parse_all
from tfgen.cost.cost_model import CostModel
from tfgen.space import bits, catalog

CALIFORNIA = catalog.get("california_housing_mlp")


def choices(*hidden: tuple[int, int], output_bits: int) -> np.ndarray:
    """Choices of a California network from (units, bits) of its hidden layers [1, decisions]."""
    menu = {2: 0, 4: 1, 8: 2}
    row = [len(hidden) - 1]
    for units, width in hidden:
        row += [units - 1, menu[width]]
    row += [0, 0] * (4 - len(hidden))
    return CALIFORNIA.canonical([*row, menu[output_bits]])


class CountingTest(absltest.TestCase):
    def test_8_16_16_1_at_4_bits(self):
        # Kernel and bias: 8*16+16 = 144, 16*16+16 = 272, 16+1 = 17; outputs 16, 16, 1.
        # Storage: (144+16 + 272+16 + 17+1) * 4 bits = 466 * 4 = 1,864 bits = 0.233 kB.
        # MACs: 128 + 256 + 16 = 400. A 4x8-bit product has half the bits of 8x8 and, with
        # g = ln 15.5 / ln 16 = 0.988549, 0.2 pJ * 0.5**g = 0.1007969 pJ; the addition 0.1:
        # 400 * 0.2007969 = 80.31875 pJ.
        # RAM: places are multiples of 64. The float input, 32 bytes, lies at 0 for all the time,
        # hidden_1 at 64; hidden_2, needed with both, at 128; the output, 1 byte, needed with
        # hidden_2 and with the float output at 64, behind them at 192.
        costs = CostModel(CALIFORNIA).costs(choices((16, 4), (16, 4), output_bits=4))
        self.assertEqual(costs["params"][0], 433)
        self.assertEqual(costs["macs"][0], 400)
        self.assertEqual(costs["storage_kb"][0], 0.233)
        self.assertAlmostEqual(costs["energy_uj"][0], 80.31875e-6, places=10)
        self.assertEqual(costs["peak_ram_kb"][0], 0.193)

    def test_8_3_5_1_with_mixed_bits(self):
        # (27+3)*2 + (20+5)*8 + (6+1)*4 = 60 + 200 + 28 = 288 bits = 0.036 kB; MACs 24 + 15 + 5.
        # Products: 2 bits 0.2*0.25**g = 0.0508001, 8 bits 0.2, 4 bits as above:
        # 24*0.1508001 + 15*0.3 + 5*0.2007969 = 3.6192024 + 4.5 + 1.0039845 = 9.1231869 pJ.
        # RAM: the float input at 0; the int8 input, 8 bytes, hidden_2 and the float output, which
        # are not needed together, at 64; hidden_1, 3 bytes, behind the two that it meets at 128.
        costs = CostModel(CALIFORNIA).costs(choices((3, 2), (5, 8), output_bits=4))
        self.assertEqual(costs["params"][0], 53)
        self.assertEqual(costs["macs"][0], 44)
        self.assertEqual(costs["storage_kb"][0], 0.036)
        self.assertAlmostEqual(costs["energy_uj"][0], 9.12319e-6, places=11)
        self.assertEqual(costs["peak_ram_kb"][0], 0.131)

    def test_what_a_layer_adds_to_the_file(self):
        # 8-16-1 and 8-16-16-1 at 4 bits. The layer's op: offset and table 28, 3 inputs 16, 1 output
        # 8, options 8 = 60. Its output: offset and table 28, shape 12, name of 8 letters 16, scale
        # 8, quantization 12 = 76; its zero point is that of every ReLU. Kernel: offset and table
        # 24, shape 12, quantization 12, scales 4 + 4 * 16, buffer 12, and 128 bytes of data with
        # their length at a multiple of 16: 144 = 272. Bias: the same with a shape of 8 and 64 bytes
        # of data, 80 = 204. Zero points of 16 channels are there already. Sum 612; files have
        # multiples of 16 bytes.
        model = CostModel(CALIFORNIA)
        one = model.costs(choices((16, 4), output_bits=4))["file_kb"][0]
        two = model.costs(choices((16, 4), (16, 4), output_bits=4))["file_kb"][0]
        self.assertIn(round((two - one) * 1000), (608, 624))

    def test_what_bits_add_to_the_file(self):
        # 16 * 16 weights of 4, 2 and 8 bits: 128, 64 and 256 bytes.
        model = CostModel(CALIFORNIA)
        sizes = {
            width: model.costs(choices((16, 4), (16, width), output_bits=4))["file_kb"][0] * 1000
            for width in (2, 4, 8)
        }
        self.assertEqual(round(sizes[4] - sizes[2]), 64)
        self.assertEqual(round(sizes[8] - sizes[4]), 128)

    def test_simulated_bits_come_to_no_file(self):
        space = dataclasses.replace(CALIFORNIA, bit_policy=bits.SIMULATED)
        self.assertNotIn("file_kb", CostModel(space).metrics)
        # Nor to an arena: 16 in and 16 out at 8 bits are what is held together.
        held = CostModel(space).costs(choices((16, 4), (16, 4), output_bits=4))["peak_ram_kb"]
        self.assertEqual(held[0], 0.032)
        self.assertNotIn("file_kb", CostModel(space).costs(choices((16, 4), output_bits=4)))
        self.assertIn("file_kb", CostModel(CALIFORNIA).metrics)

    def test_wide_activations_cost_more(self):
        # 16-bit activations: the last tensor of the arena, the output, has 2 bytes and not 1 (the
        # others fit between multiples of 64 as before), biases have 8 bytes instead of 4.
        narrow, wide = (
            CostModel(CALIFORNIA, width).costs(choices((16, 8), (16, 8), output_bits=8))
            for width in (8, 16)
        )
        self.assertEqual((narrow["peak_ram_kb"][0], wide["peak_ram_kb"][0]), (0.193, 0.194))
        self.assertGreater(wide["file_kb"][0], narrow["file_kb"][0])

    def test_the_largest_and_the_smallest_network(self):
        # Largest: 8*128+128 = 1,152; 3 * (128*128+128) = 49,536; 128+1 = 129: 50,817 parameters;
        # outputs 4*128+1 = 513; (50,817 + 513) * 8 bits = 51.33 kB. MACs 1,024 + 49,152 + 128.
        # Smallest: 8-1-1 at 2 bits: (9+1 + 2+1) * 2 = 26 bits = 0.00325 kB, 9 MACs.
        model = CostModel(CALIFORNIA)
        self.assertEqual(model.maximum("params"), 50_817)
        self.assertEqual(model.maximum("macs"), 50_304)
        self.assertEqual(model.maximum("storage_kb"), 51.33)
        self.assertAlmostEqual(model.maximum("energy_uj"), 50_304 * 0.3e-6, places=12)
        self.assertEqual(model.minimum("params"), 11)
        self.assertEqual(model.minimum("macs"), 9)
        self.assertEqual(model.minimum("storage_kb"), 0.00325)
        self.assertEqual(model.normalised("storage_kb", 51.33), 1.0)

    def test_extremes_agree_with_enumeration(self):
        space = small.small_space()
        every = CostModel(space).costs(space.choices(list(space.enumerate())))
        for metric, values in every.items():
            self.assertEqual(CostModel(space).maximum(metric), values.max(), metric)
            self.assertEqual(CostModel(space).minimum(metric), values.min(), metric)

    def test_published_energies(self):
        # Horowitz, ISSCC 2014: 8-bit multiply 0.2 pJ, 32-bit multiply 3.1 pJ, 32-bit add 0.1 pJ.
        self.assertAlmostEqual(float(counting.mac_energy_pj(8, 8)), 0.3)
        self.assertAlmostEqual(float(counting.mac_energy_pj(32, 32)), 3.2)

    def test_a_batch_is_exact_and_fast(self):
        model = CostModel(CALIFORNIA)
        drawn = CALIFORNIA.sample(100_000, seeds.stream(0, "s"))
        start = time.process_time()
        costs = model.costs(drawn)
        self.assertLess(time.process_time() - start, 1.0)
        for row in (0, 12_345, 99_999):
            single = model.cost(CALIFORNIA.architecture(drawn[row]))
            for metric, values in costs.items():
                self.assertEqual(single[metric], values[row])


class BudgetTest(parameterized.TestCase):
    def test_reads_every_form(self):
        budget = Budget.parse("latency_ms=5@pixel3, storage_kb<=64,accuracy>=0.87")
        self.assertEqual(budget.limits, {"latency_ms": 5.0, "storage_kb": 64.0})
        self.assertEqual(budget.quality, ("accuracy", 0.87))
        self.assertEqual(budget.device, "pixel3")
        self.assertEqual(str(budget), "latency_ms=5@pixel3,storage_kb=64,accuracy=0.87")
        self.assertEqual(Budget.parse(str(budget)), budget)
        self.assertEqual(Budget.from_json(json.loads(json.dumps(budget.to_json()))), budget)

    @parameterized.parameters(
        ("storage=3", "unknown metric 'storage'; known: params, macs, storage_kb"),
        ("storage_kb", "not of the form"),
        ("", "not of the form"),
        ("storage_kb=1,", "not of the form"),
        ("storage_kb=abc", "not a number"),
        ("storage_kb=", "not a number"),
        ("storage_kb=-1", "must be a finite number above 0"),
        ("storage_kb=0", "must be a finite number above 0"),
        ("storage_kb=nan", "must be a finite number above 0"),
        ("storage_kb=inf", "must be a finite number above 0"),
        ("storage_kb=1,storage_kb=2", "storage_kb twice"),
        ("storage_kb<=1,storage_kb>=2", "storage_kb twice"),
        ("r2=0.5,r2=0.6", "r2 twice"),
        ("r2=1.5", "must lie in 0..1"),
        ("r2=-0.1", "must lie in 0..1"),
        ("r2=nan", "must lie in 0..1"),
        ("r2<=0.5", "a lower limit: write r2>=0.5"),
        ("storage_kb>=5", "an upper limit: write storage_kb<=5"),
        ("r2=0.5,accuracy=0.5", "two quality metrics, r2 and accuracy"),
        ("latency_ms=5", "latency needs a device"),
        ("latency_ms=5@", "only latency_ms takes @DEVICE"),
        ("storage_kb=5@pixel3", "only latency_ms takes @DEVICE"),
        ("=5", "unknown metric ''"),
    )
    def test_refuses_in_one_line(self, text, message):
        with self.assertRaisesRegex(errors.UsageError, message) as caught:
            Budget.parse(text)
        self.assertNotIn("\n", str(caught.exception))

    def test_no_budget_is_refused(self):
        with self.assertRaisesRegex(errors.UsageError, "at least one --budget"):
            parse_all([])

    def test_admits_and_headroom(self):
        budget = Budget.parse("storage_kb=10,macs=100")
        self.assertTrue(budget.admits({"storage_kb": 10.0, "macs": 100.0}))
        self.assertFalse(budget.admits({"storage_kb": 10.1, "macs": 1.0}))
        self.assertEqual(
            budget.headroom({"storage_kb": 5.0, "macs": 150.0}), {"storage_kb": 0.5, "macs": -0.5}
        )

    def test_a_cost_checks_itself(self):
        with self.assertRaisesRegex(ValueError, "unknown cost metrics"):
            Cost({"size": Quantity(1.0, "counted")})
        with self.assertRaisesRegex(ValueError, "finite and not negative"):
            Quantity(float("nan"), "counted")
        cost = Cost({"macs": Quantity(9.0, "counted")})
        self.assertEqual(Cost.from_json(json.loads(json.dumps(cost.to_json()))), cost)


class CheckTest(absltest.TestCase):
    def test_below_the_minimum_is_infeasible_and_carries_the_nearest(self):
        with self.assertRaisesRegex(errors.InfeasibleBudgetError, "storage_kb 0.00325") as caught:
            CostModel(CALIFORNIA).check(Budget.parse("storage_kb=0.001,r2=0.5"))
        self.assertEqual(str(caught.exception.nearest), "storage_kb=0.00325,r2=0.5")

    def test_above_the_maximum_is_no_limit_and_says_so(self):
        (remark,) = CostModel(CALIFORNIA).check(Budget.parse("storage_kb=52"))
        self.assertEqual(
            remark,
            "storage_kb=52 is no limit: the largest network of california_housing_mlp has 51.33",
        )

    def test_the_nearest_budget_is_not_below_the_minimum_once_printed(self):
        with self.assertRaises(errors.InfeasibleBudgetError) as caught:
            CostModel(CALIFORNIA).check(Budget.parse("energy_uj=1e-12"))
        printed = Budget.parse(str(caught.exception.nearest))
        self.assertEqual(printed.limits, {"energy_uj": 1.358e-06})  # 9 MACs of 0.1508001 pJ
        self.assertEmpty(CostModel(CALIFORNIA).check(printed))


class ParetoTest(absltest.TestCase):
    cost = np.array([3.0, 1.0, 2.0, 2.0, 4.0])
    quality = np.array([0.5, 0.2, 0.6, 0.4, 0.6])

    def test_front(self):
        # 1 -> 0.2; 2 -> 0.6 beats 0.4 at the same cost, 0.5 at 3; 4 only equals it.
        self.assertEqual(pareto.front(self.cost, self.quality).tolist(), [1, 2])

    def test_hypervolume(self):
        # 0.2 from 1 to 2, 0.6 from 2 to 5; above 0.1 it is 0.1 and 3 times 0.5.
        for least, area in ((0.0, 2.0), (0.1, 1.6), (0.2, 1.2), (0.6, 0.0)):
            found = pareto.hypervolume(self.cost, self.quality, 5.0, least)
            self.assertAlmostEqual(found, area)
        self.assertAlmostEqual(pareto.hypervolume(self.cost, self.quality, 2.0, 0.0), 0.2)
        self.assertEqual(pareto.hypervolume(self.cost, self.quality, 1.0, 0.0), 0.0)


class MetricsTest(absltest.TestCase):
    def test_scale_is_the_1_and_99_percent_quantiles(self):
        scale = metrics.PerformanceScale.of(np.arange(101) / 100)  # 0, 0.01 .. 1
        self.assertAlmostEqual(scale.low, 0.01)
        self.assertAlmostEqual(scale.high, 0.99)
        np.testing.assert_allclose(scale.normalise([0.0, 0.01, 0.5, 0.99, 1.0]), [0, 0, 0.5, 1, 1])
        np.testing.assert_allclose(scale.metric([0.0, 0.5, 1.0]), [0.01, 0.5, 0.99])

    def test_mean_distance_does_not_cancel(self):
        self.assertAlmostEqual(metrics.mean_distance([0.2, 0.0], [0.1, 0.1]), 0.1)

    def test_bootstrap_interval_of_a_constant_is_the_constant(self):
        self.assertEqual(metrics.bootstrap_interval([0.25] * 10, seed=1), (0.25, 0.25))

    def test_bootstrap_interval_is_as_wide_as_the_standard_error(self):
        # Mean of 400 numbers of standard deviation 0.5: standard error 0.025, 95 % is 3.92 of them
        # wide, up to the resampling's noise (10,000 resamples: about 2 %).
        values = np.tile([0.0, 1.0], 200)
        low, high = metrics.bootstrap_interval(values, seed=1)
        self.assertAlmostEqual(high - low, 2 * 1.96 * 0.025, delta=0.006)


if __name__ == "__main__":
    absltest.main()
