"""What every search must do, on made-up truths instead of trainings."""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import small_space
from tfgen import errors, generators, seeds
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.evidence.record import Record
from tfgen.generators import evolution, searching
from tfgen.generators.base import Evidence, Found
from tfgen.space import catalog

SMALL = small_space()
LARGE = catalog.mlp("large", inputs=8, outputs=1)
NOISE = 0.01


def small_truth(choices: np.ndarray) -> np.ndarray:
    """Wider is better, and 8-bit weights in the first layer [architectures]."""
    widths = choices[:, 1] + np.where(choices[:, 0] == 1, choices[:, 3] + 1, 0)
    return 0.1 * widths + 0.05 * choices[:, 2]


def large_truth(choices: np.ndarray) -> np.ndarray:
    """Units help by their logarithm, a narrow last layer and few bits anywhere hurt."""
    active = LARGE.active(choices)
    units = np.log2(1.0 + choices[:, 1:9:2]) * active[:, 1:9:2]  # [architectures, 4]
    bits = (choices[:, 2:9:2] * active[:, 2:9:2]).sum(1) / active[:, 2:9:2].sum(1)
    return np.tanh(units.sum(1) / 12) + 0.1 * bits - 0.02 * choices[:, 0]


class Trainings:
    """An `evaluate` that trains nothing, and remembers what it was asked for."""

    def __init__(self, space, truth, noise):
        self.space, self.truth, self.noise = space, truth, noise
        self.asked = []

    def __call__(self, architectures, seed):
        records = []
        for number, architecture in enumerate(architectures, len(self.asked)):
            random = seeds.stream(seed, "training", number)
            metric = self.truth(self.space.choices([architecture]))[0]
            metric += self.noise * random.normal()
            records.append(Record(architecture, "data", "recipe", number, float(metric), 0.0))
        self.asked += architectures
        return records


def search(name, budget, count, seed=0, space=SMALL, truth=small_truth, noise=0.0):
    """What a search found, and the trainings that it asked for."""
    searcher = generators.get_searcher(name)
    trainings = Trainings(space, truth, noise)
    evidence = Evidence(space, CostModel(space), evaluate=trainings)
    found = searcher.search(evidence, Budget.parse(budget), count, searcher.config(), seed)
    return found, trainings


@functools.cache
def optimum(budget: str) -> float:
    """The best that the small space holds within a budget, by enumeration."""
    choices = SMALL.choices(list(SMALL.enumerate()))
    costs = CostModel(SMALL).costs(choices)
    limits = Budget.parse(budget).limits
    admitted = np.all([costs[m] <= limit for m, limit in limits.items()], axis=0)
    return float(small_truth(choices[admitted]).max())


# How many trainings and seeds tell each search from drawing at random, 32 of them. By ten
# and more single searches of each, the difference is 4.6 of its standard deviations for the genetic
# algorithm, 5.3 for regularized evolution, 4.2 for NSGA-II, 5.1 for the Bayesian search and 3.8 for
# TPE: with other seeds one comparison in 10,000 would fail at worst.
ENOUGH = {"bayesian": (64, 3), "nsga2": (500, 8), "tpe": (64, 4)}


@functools.cache
def true_best(name: str, count: int, seeds_: range) -> float:
    """The truth of what a search calls its best of noisy trainings, mean of some seeds."""
    found = [search(name, "storage_kb=1", count, s, LARGE, large_truth, NOISE)[0] for s in seeds_]
    return float(large_truth(LARGE.choices([f.best(1)[0].architecture for f in found])).mean())


class ConformanceTest(parameterized.TestCase):
    @parameterized.parameters(*generators.SEARCHERS)
    def test_name_and_configuration(self, name):
        searcher = generators.get_searcher(name)
        self.assertEqual(searcher.name, name)
        searcher.config()  # has defaults for everything

    @parameterized.parameters(*generators.SEARCHERS)
    def test_trainings_are_counted_and_none_is_made_twice(self, name):
        for count in (1, 2, 7, 30):
            found, trainings = search(name, "storage_kb=0.02", count)
            self.assertLen(trainings.asked, count)
            self.assertLen(set(trainings.asked), count)
            self.assertEqual([r.architecture for r in found.records], trainings.asked)

    @parameterized.parameters(*generators.SEARCHERS)
    def test_nothing_over_a_limit_is_trained(self, name):
        budget = Budget.parse("storage_kb=0.012,macs=20")
        found, trainings = search(name, str(budget), 25)
        costs = CostModel(SMALL).costs(SMALL.choices(trainings.asked))
        self.assertLessEqual(costs["storage_kb"].max(), 0.012)
        self.assertLessEqual(costs["macs"].max(), 20)
        self.assertTrue(all(found.feasible))

    @parameterized.parameters(*generators.SEARCHERS)
    def test_equal_seeds_ask_for_equal_trainings_and_other_seeds_for_others(self, name):
        runs = [
            search(name, "storage_kb=2", 24, s, LARGE, large_truth, NOISE)[0] for s in (1, 1, 2)
        ]
        self.assertEqual(runs[0], runs[1])
        self.assertNotEqual(runs[0], runs[2])

    @parameterized.parameters(*generators.SEARCHERS)
    def test_the_known_optimum_of_a_small_space_is_found(self, name):
        # Every network within the limits is trained at last: there are fewer than trainings.
        for budget in ("storage_kb=0.012", "energy_uj=5e-6,r2=0.1"):
            found, trainings = search(name, budget, 100)
            self.assertLess(len(trainings.asked), 100)
            self.assertAlmostEqual(found.best(1)[0].metric, optimum(budget))

    @parameterized.parameters(*sorted(set(generators.SEARCHERS) - {"random_search"}))
    def test_better_than_random_at_equal_trainings(self, name):
        count, repeats = ENOUGH.get(name, (200, 8))
        ours = true_best(name, count, range(repeats))
        self.assertGreater(ours, true_best("random_search", count, range(32)))

    @parameterized.parameters(*generators.SEARCHERS)
    def test_a_limit_below_every_network_names_the_nearest(self, name):
        with self.assertRaises(errors.InfeasibleBudgetError) as caught:
            search(name, "storage_kb=0.0001,r2=0.5", 10)
        nearest = caught.exception.nearest
        self.assertEqual(nearest.quality, ("r2", 0.5))
        # The smallest network has one unit and 2-bit weights: 4 + 1 weights of 2 bits, and its
        # storage is the space's minimum.
        least = CostModel(SMALL).minimum("storage_kb")
        self.assertBetween(nearest.limits["storage_kb"], least, least * 1.001)
        search(name, str(nearest), 1)

    @parameterized.parameters(*generators.SEARCHERS)
    def test_limits_that_next_to_no_draw_keeps(self, name):
        # One unit in one layer of 2 bits: 4 of 10,000 draws at most are so small.
        budget = f"macs={CostModel(LARGE).minimum('macs'):g}"
        found, _ = search(name, budget, 5, space=LARGE, truth=large_truth)
        self.assertNotEmpty(found.best(1))

    @parameterized.parameters(*generators.SEARCHERS)
    def test_what_is_missing_or_wrong_is_named(self, name):
        searcher = generators.get_searcher(name)
        nothing = Evidence(SMALL, CostModel(SMALL))
        budget = Budget.parse("storage_kb=1")
        with self.assertRaisesRegex(errors.UsageError, f"'{name}' needs evaluate"):
            searcher.search(nothing, budget, 10, searcher.config(), 0)
        with self.assertRaisesRegex(errors.UsageError, "max_evaluations must be at least 1"):
            search(name, "storage_kb=1", 0)
        with self.assertRaisesRegex(errors.UsageError, "latency_ms cannot be told"):
            search(name, "latency_ms=1@here", 10)

    @parameterized.parameters(*generators.SEARCHERS)
    def test_trainings_that_diverge_are_no_answers(self, name):
        def truth(choices):
            return np.where(choices[:, 0] == 1, np.nan, small_truth(choices))

        found, _ = search(name, "storage_kb=9", 60, truth=truth)
        # One layer of width 3, its first layer in 8 bits: 0.1 * 2 + 0.05.
        self.assertAlmostEqual(found.best(1)[0].metric, 0.25)

    def test_an_unknown_search_names_the_known(self):
        with self.assertRaisesRegex(errors.UsageError, "unknown search 'ga'; known: bayesian, gen"):
            generators.get_searcher("ga")

    def test_a_missing_extra_says_how_to_install_it(self):
        with self.assertRaisesRegex(errors.UsageError, r"needs nothing_such .*tfgen\[baselines\]"):
            searching.extra("nothing_such.part")


class FoundTest(absltest.TestCase):
    def test_best_first_feasible_only_and_the_earlier_of_equals(self):
        rows = [SMALL.architecture([0, width, 0, 0, 0, 0]) for width in (0, 1, 2)]
        rows += [SMALL.architecture([0, 0, 1, 0, 0, 0])]
        metrics = (0.5, 0.9, 0.5, 0.7)
        records = tuple(
            Record(a, "d", "r", n, m, 0.0)
            for n, (a, m) in enumerate(zip(rows, metrics, strict=True))
        )
        found = Found(records, (True, False, True, True))
        self.assertEqual([r.seed for r in found.best(9)], [3, 0, 2])
        self.assertEqual([r.seed for r in found.best(1)], [3])
        with self.assertRaisesRegex(ValueError, "each record is feasible or not"):
            Found(records, (True,))
        with self.assertRaisesRegex(ValueError, "InfeasibleBudgetError"):
            Found(records[:1], (False,))


class CrossoverTest(absltest.TestCase):
    def test_decisions_come_from_a_parent_in_which_they_are_active(self):
        # depth, width_1, bits_1, width_2, bits_2, bits_output
        one = np.repeat(SMALL.canonical([0, 0, 0, 0, 0, 0]), 4000, axis=0)
        two = np.repeat(SMALL.canonical([1, 2, 1, 2, 1, 1]), 4000, axis=0)
        children = searching.crossover(SMALL, one, two, seeds.stream(0, "c"))
        np.testing.assert_array_equal(SMALL.canonical(children), children)
        deep = children[children[:, 0] == 1]
        # A second layer can only be the second parent's, whichever way round.
        np.testing.assert_array_equal(deep[:, 3:5], np.tile([2, 1], (len(deep), 1)))
        # Each other decision is either parent's in half of 4,000: six deviations are 190.
        for column, value in ((0, 1), (1, 2), (2, 1), (5, 1)):
            self.assertAlmostEqual((children[:, column] == value).sum(), 2000, delta=190)


class BarrierTest(absltest.TestCase):
    def test_the_barrier_by_hand(self):
        evidence = Evidence(SMALL, CostModel(SMALL), evaluate=Trainings(SMALL, small_truth, 0.0))
        one_unit = SMALL.canonical([0, 0, 0, 0, 0, 0])  # 4 + 1 multiplications
        wide = SMALL.canonical([0, 2, 0, 0, 0, 0])  # 12 + 3
        for limit, unit, three in (
            ("20", np.log(0.75), np.log(0.25)),
            ("10", np.log(0.5), -np.inf),
        ):
            run = searching.Run("genetic", evidence, Budget.parse(f"macs={limit}"), 1, 0)
            self.assertAlmostEqual(evolution.log_barrier(run, one_unit)[0], unit)
            self.assertAlmostEqual(evolution.log_barrier(run, wide)[0], three)
        # At the limit itself a network keeps it: a headroom of 1e-3 stands for none.
        run = searching.Run("genetic", evidence, Budget.parse("macs=5"), 1, 0)
        self.assertAlmostEqual(evolution.log_barrier(run, one_unit)[0], np.log(1e-3))


class QuietTest(absltest.TestCase):
    def test_importing_is_instant_and_nothing_is_left_behind(self):
        root = pathlib.Path(__file__).parents[2]
        code = (
            "import sys, tfgen.generators\n"
            "bad = {'optuna', 'pymoo', 'keras_tuner', 'sklearn', 'tensorflow'} & set(sys.modules)\n"
            "assert not bad, bad\n"
            "from tests.generators import searchers_test as s\n"
            "for name in s.generators.SEARCHERS: s.search(name, 'storage_kb=9', 40)\n"
        )
        with tempfile.TemporaryDirectory() as folder:
            path = os.pathsep.join([str(root), *filter(None, sys.path)])
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=folder,
                env={k: v for k, v in os.environ.items() if k[:3] != "TF_"} | {"PYTHONPATH": path},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual((done.stdout, done.stderr), ("", ""))
            self.assertEmpty(list(pathlib.Path(folder).iterdir()))


if __name__ == "__main__":
    absltest.main()
