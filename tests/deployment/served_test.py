"""Many budgets at once are answered as selection answers each; needs no TensorFlow."""

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import small_space
from tfgen import bundle as bundles
from tfgen import errors, seeds
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.cost.metrics import PerformanceScale
from tfgen.deployment import served
from tfgen.deployment.served import Answerer, Requests
from tfgen.evidence.insight import Insight, InsightSurrogate
from tfgen.generators.baselines import RandomGenerator
from tfgen.selection import Ranking, Selector

ONE_ROUND = Selector(count=4, draws=64, max_rounds=1, refinements=0)
MNIST = ["storage_kb=20", "storage_kb=40,energy_uj=0.01", "accuracy=0.9", "params=900",
         "accuracy=0.9,macs=20000", "storage_kb=0.01"]  # fmt: skip
CIFAR = ["macs=8e6", "storage_kb=300,macs=1e7", "accuracy=0.6", "energy_uj=1.5", "params=1e5"]


def answerer(bundle, method: str, selector: Selector = ONE_ROUND) -> Answerer:
    generator = bundle.generators[method]
    return Answerer(
        bundle.space, generator, bundle.surrogate, bundle.cost_model, bundle.task.metric, selector
    )


def selected(bundle, method: str, budget: Budget, selector: Selector, seed: int):
    try:
        return selector.select(
            bundle.space,
            bundle.generators[method],
            bundle.surrogate,
            bundle.cost_model,
            budget,
            method,
            seed,
        )
    except errors.InfeasibleBudgetError:
        return []


class ServedTest(parameterized.TestCase):
    @parameterized.parameters(
        ("mnist_mlp", "nagan", MNIST),
        ("mnist_mlp", "nag", MNIST),
        ("mnist_mlp", "random", MNIST),
        ("cifar10", "sgnas", CIFAR),
    )
    def test_answers_are_those_of_one_round_of_selection(self, name, method, texts):
        # The two predict in float32, a ten-millionth apart: two of 64 draws that lie nearer to each
        # other would change places once in some thousand answers; seeds are fixed.
        bundle = bundles.load(bundles.ZOO / name)
        budgets, given = [Budget.parse(text) for text in texts], [2**40 + 7, 3, 5, 7, 9, -11]
        answer = answerer(bundle, method)
        found = answer(np, Requests.of(answer.metrics, budgets, given[: len(budgets)]))
        answered = 0
        for row, (budget, seed) in enumerate(zip(budgets, given, strict=False)):
            expected = selected(bundle, method, budget, ONE_ROUND, seed)
            self.assertEqual(found.valid[row].sum(), len(expected))
            answered += len(expected)
            for place, candidate in enumerate(expected):
                self.assertEqual(
                    tuple(found.choices[row, place]), candidate.architecture.choices, budget
                )
                for metric, cost in zip(answer.costs, found.cost[row, place], strict=True):
                    self.assertAlmostEqual(cost / candidate.cost[metric], 1.0, places=9)
                self.assertAlmostEqual(found.metric[row, place], candidate.metric, places=5)
                self.assertAlmostEqual(found.metric_low[row, place], candidate.low, places=5)
                self.assertAlmostEqual(found.metric_high[row, place], candidate.high, places=5)
            self.assertEqual(found.choices[row, len(expected) :].sum(), 0)
            self.assertEqual(found.cost[row, len(expected) :].sum(), 0)
        self.assertGreater(answered, 10)

    @parameterized.parameters("quality", "distance", "netscore", "macs")
    def test_every_ranking(self, by):
        bundle = bundles.load(bundles.ZOO / "mnist_mlp")
        selector = dataclasses.replace(ONE_ROUND, ranking=Ranking(by))
        answer = answerer(bundle, "nagan", selector)
        budget = Budget.parse("storage_kb=20,accuracy=0.6")
        found = answer(np, Requests.of(answer.metrics, [budget], [1]))
        expected = selected(bundle, "nagan", budget, selector, 1)
        self.assertEqual(
            found.choices[0].tolist(), [list(c.architecture.choices) for c in expected]
        )

    def test_an_answer_does_not_depend_on_its_neighbours(self):
        bundle = bundles.load(bundles.ZOO / "mnist_mlp")
        answer = answerer(bundle, "nagan")
        budgets = [Budget.parse(text) for text in MNIST]
        together = answer(np, Requests.of(answer.metrics, budgets, range(len(budgets))))
        for row, budget in enumerate(budgets):
            alone = answer(np, Requests.of(answer.metrics, [budget], [row]))
            np.testing.assert_array_equal(alone.choices[0], together.choices[row])

    def test_what_is_served_is_checked(self):
        bundle = bundles.load(bundles.ZOO / "mnist_mlp")
        for selector, words in (
            (Selector(count=2), "one round of draws"),
            (dataclasses.replace(ONE_ROUND, ranking=Ranking("file_kb")), "file_kb, which is not"),
        ):
            with self.assertRaisesRegex(errors.UsageError, words):
                answerer(bundle, "nagan", selector)
        answer = answerer(bundle, "nagan")
        with self.assertRaisesRegex(errors.UsageError, "file_kb is not served; budgets may limit"):
            Requests.of(answer.metrics, [Budget.parse("file_kb=9")], [1])

    def test_networks_in_several_words_keep_their_order(self):
        # Nine decisions of 1,000 values: six fit in 62 bits, three more in another word.
        words = served._words([1_000] * 9)
        self.assertEqual([(begin, end) for begin, end, _ in words], [(0, 6), (6, 9)])
        self.assertEqual(words[1][2], (10**6, 10**3, 1))

    def test_a_listed_space_limits_what_no_sum_tells(self):
        space = small_space()
        costs = tuple(np.zeros(len(d.values)) for d in space.decisions)
        told = InsightSurrogate.of(
            space, Insight(2.0, costs, costs, 0.0), np.zeros(3), PerformanceScale(0, 1)
        )
        model = CostModel(space)
        answer = Answerer(space, RandomGenerator(space), told, model, "r2", ONE_ROUND)
        limit = float(np.median(model.costs(space.sample(99, seeds.stream(1)))["peak_ram_kb"]))
        requests = Requests.of(answer.metrics, [Budget({"peak_ram_kb": limit})], [1])
        found = answer(np, requests)
        self.assertTrue(found.valid.all())
        ram = found.cost[0, :, answer.costs.index("peak_ram_kb")]
        self.assertLessEqual(ram.max(), limit)


if __name__ == "__main__":
    absltest.main()
