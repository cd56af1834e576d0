"""The reproduction's pure parts: arithmetic, tables and pictures, with numbers made by hand."""

import dataclasses
import functools
import gzip
import itertools
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import types
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import small_space
from tfgen import bundle as bundles
from tfgen import errors, generators, pipeline
from tfgen.cost.cost_model import CostModel
from tfgen.cost.metrics import PerformanceScale
from tfgen.evidence import surrogate
from tfgen.evidence.collect import Evaluator
from tfgen.evidence.record import Record, RecordStore
from tfgen.experiment import Experiment
from tfgen.generators import nag
from tfgen.seeds import stream
from tfgen.space import catalog, published, tabulated
from tfgen.space.lowering import lower
from tfgen.training import datasets, population, tasks
from tfgen.training.recipe import Recipe
from tools import (
    charts,
    reports,
    reproduce_cells,
    reproduce_distance,
    reproduce_host,
    reproduce_search,
    reproduce_setting,
    reproduce_supernet,
)
from tools.reproduce_search import A_TENTH, EQUAL_TRAININGS, INAG, TEN, Answer

ROOT = pathlib.Path(__file__).parents[1]


class SupernetTest(parameterized.TestCase):
    def test_parameters_of_a_supernet_by_hand(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        found = reproduce_supernet.figure_6b(folder, lambda text: None)
        self.assertEqual([row.choices for row in found], list(range(1, 81)))
        space = published.sgnas_imagenet()
        smallest = CostModel(space).costs(np.zeros((1, len(space.decisions)), np.int64))["params"]
        self.assertEqual((found[0].unified, found[0].single_path), (smallest[0], smallest[0]))
        # Each of 19 blocks: to six times its input and back, with depthwise kernels of 3, 5 and 7
        # for all of it; beside a weight a channel has a scale and a shift.
        widths = [32] * 2 + [40] * 4 + [80] * 4 + [96] * 4 + [192] * 4 + [320]
        blocks = 0
        for inputs, outputs in itertools.pairwise([16, *widths]):
            wide = 6 * inputs
            blocks += wide * (inputs + 2) + wide * (9 + 25 + 49 + 3 * 2) + outputs * (wide + 2)
        # A stem of 32, a first block without a choice, a head of 1,280 and 1,000 classes.
        fixed = 32 * (27 + 2) + 32 * (9 + 2) + 16 * (32 + 2) + 1280 * (320 + 2) + 1000 * 1281
        self.assertEqual(found[-1].unified, fixed + blocks)
        # The paper: a thirty-fifth of what a block for each choice takes.
        self.assertBetween(found[-1].single_path / found[-1].unified, 34, 38)

    @parameterized.parameters((8, {8}, {8}), (4, {4}, {4}), (2, {4}, {2}))
    def test_the_same_network_at_other_bits(self, width, convolutions, others):
        space = catalog.get("cifar10_mobile")
        drawn = space.sample(5, stream(1, "bits"))
        changed = reproduce_supernet.at_bits(space, drawn, width)
        for before, after in zip(drawn, changed, strict=True):
            layers = lower(space, space.architecture(after))
            self.assertEqual(
                [(layer.name, layer.out_channels) for layer in layers],
                [(n.name, n.out_channels) for n in lower(space, space.architecture(before))],
            )
            weighted = [layer for layer in layers if layer.weighted]
            dense = {layer.weight_bits for layer in weighted if layer.op == "dense"}
            self.assertEqual(dense, others)
            self.assertEqual(
                {layer.weight_bits for layer in weighted if layer.op != "dense"}, convolutions
            )


class DistanceTest(parameterized.TestCase):
    def test_two_trainings_that_straddle_their_condition(self):
        # 0.2 apart: E|p - E p| = 0.2 / sqrt(2). The variance is 0.2^2 / 2 = 0.02, the mean squared
        # distance 0.1^2: an estimated share may pass 1.
        conditions = np.array([0.3, 0.7])
        noise = reproduce_distance.training_noise(conditions - 0.1, conditions + 0.1, conditions)
        self.assertAlmostEqual(noise.distance, 0.2 / np.sqrt(2))
        self.assertAlmostEqual(noise.share, 2.0)

    def test_no_noise(self):
        first = np.array([0.2, 0.9])
        noise = reproduce_distance.training_noise(first, first, np.array([0.4, 0.4]))
        self.assertEqual((noise.distance, noise.share), (0.0, 0.0))

    def test_noise_of_many_networks(self):
        # Networks miss their condition by 0.3 and scatter by 0.1: of 0.09 + 0.01 a tenth is noise;
        # E|p - E p| = 0.1 sqrt(2 / pi) = 0.0798. With 40,000 networks both have a standard error
        # below 0.8 %, so 5 % fail less than once in 10^9 seeds.
        random = np.random.default_rng(0)
        first, second = 0.3 + 0.1 * random.standard_normal((2, 40_000))
        noise = reproduce_distance.training_noise(first, second, np.zeros(40_000))
        self.assertAlmostEqual(noise.share, 0.1, delta=0.005)
        self.assertAlmostEqual(noise.distance, 0.0798, delta=0.004)

    def test_a_fit_of_another_scale_is_asked_for_the_same_metric(self):
        # Condition 0.5 of 0..2 is the metric 1, which is 0.25 of 0.5..2.5; a distance of 0.1 of
        # 0.5..2.5 is 0.2, which is 0.1 of 0..2. Of 0.5..4.5 the condition is 0.125, the distance
        # twice as much.
        for high, condition, distance in ((2.5, 0.25, 0.1), (4.5, 0.125, 0.2)):
            asked = []
            fit = types.SimpleNamespace(
                surrogate=types.SimpleNamespace(
                    scale=PerformanceScale(0.5, high),
                    expected_distance=lambda _, c, asked=asked: asked.append(c) or np.array([0.1]),
                ),
                generator=types.SimpleNamespace(draw=lambda c, _, asked=asked: asked.append(c)),
            )
            setting = types.SimpleNamespace(scale=PerformanceScale(0.0, 2.0))
            conditions = np.array([0.5])
            reproduce_distance.draw(setting, fit, conditions, seed=0)
            found = reproduce_distance.expected_distances(setting, fit, None, conditions)
            np.testing.assert_allclose(asked, [[condition]] * 2)
            np.testing.assert_allclose(found, [distance])

    def test_of_records_beyond_the_scale_the_floor_takes_any(self):
        # 40 records at least as good as the scale's end, in the store's order: small ones first.
        records = [
            types.SimpleNamespace(architecture=number, metric=metric, seconds=0.0)
            for number, metric in enumerate([*np.linspace(1.0, 2.0, 40), *np.linspace(0, 0.9, 60)])
        ]
        trained = []
        setting = types.SimpleNamespace(
            scale=PerformanceScale(0.0, 1.0),
            records=records,
            space=types.SimpleNamespace(choices=np.array, architecture=int),
            train=lambda networks, _: (
                trained.extend(networks) or [records[number] for number in networks]
            ),
        )
        distances = reproduce_distance.floor(setting, 10, seed=0)
        self.assertLen(distances, 100)
        best = trained[-10:]
        self.assertTrue(all(number < 40 for number in best), best)
        # That the ten are the first ten has odds of 1 in C(40, 10), 8 in 10^8.
        self.assertGreater(max(best), 9)

    @parameterized.parameters((0.0, 0.05), (0.039, 0.05), (0.06, 0.07))
    def test_the_aim_is_the_bar_or_a_point_above_the_floor(self, floor, aim):
        self.assertAlmostEqual(row("Reg.C", floor=floor).aim(reproduce_setting.published("Reg.C")),
                               aim)  # fmt: skip

    def test_table_4_has_the_papers_numbers_beside_ours(self):
        text = reports.markdown(reproduce_distance.TABLE_4, [row("Cls.C")])
        self.assertEqual(
            text.splitlines()[-1],
            "| Cls.C | 1.0 | 2.0 | 3.0 | 2.5–3.5 | 2.8–3.2 | 4.0 | 0.0–0.0 | 5.0 | 4.8 | 8.7 |",
        )


def row(name, **changes):
    values = {field.name: 0.0 for field in dataclasses.fields(reproduce_distance.Row)}
    values |= {"name": name, "trained": 600, "distinct": 997, "floor": 0.04}
    values |= {"mdist_f": 0.01, "expected": 0.02, "mdist_r": 0.03, "low": 0.025, "high": 0.035}
    values |= {"seed_low": 0.028, "seed_high": 0.032}
    return reproduce_distance.Row(**{**values, **changes})


class AblationTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        path = ROOT / "configs" / "california_housing_mlp.py"
        config = runpy.run_path(str(path))["get_config"]()
        self.experiment = Experiment.from_config(config.to_dict())

    def test_every_variant_has_what_it_says(self):
        for overrides in reproduce_distance.VARIANTS.values():
            made = reproduce_distance.variant(self.experiment, overrides)
            parts = {"experiment": made, "surrogate": made.surrogate, **made.methods}
            for part, values in overrides.items():
                for name, value in values.items():
                    self.assertEqual(getattr(parts[part], name), value)
            self.assertEqual(made.methods.keys(), self.experiment.methods.keys())

    def test_a_misspelt_field(self):
        for overrides in ({"surrogate": {"memberz": 1}}, {"nagin": {}}, {"nagan": {"steps": -1}}):
            with self.assertRaisesRegex(errors.UsageError, "variant"):
                reproduce_distance.variant(self.experiment, overrides)


def answer(method, seed, part=A_TENTH, **changes):
    values = {"trainings": 8, "prepared_seconds": 0.0, "answer_seconds": 2.0}
    values |= {"confirm_seconds": 1.0, "validation": 0.9, "test": 0.8, "storage": 0.1}
    values |= {"energy": 0.2, "holds": True, "storage_limit": 0.21, "energy_limit": 0.21}
    return Answer(part, method, seed, tuned=True, **{**values, **changes})


class SearchTest(absltest.TestCase):
    def test_summary_of_two_seeds(self):
        rows = [
            answer(INAG, 0, test=0.9, again=0.6),
            answer(INAG, 1, test=0.8, again=0.7),
            answer("genetic", 0, test=0.7),
            answer("genetic", 1, test=None, storage=None, energy=None, holds=False),
        ]
        ours, theirs = reproduce_search.summarise(rows)
        self.assertAlmostEqual(ours.test, 0.85)
        self.assertAlmostEqual(ours.again, 0.65)
        self.assertIsNone(theirs.again)
        self.assertIsNone(ours.behind)
        self.assertEqual((theirs.answers, theirs.asked), (1, 2))
        self.assertAlmostEqual(theirs.behind, 0.15)
        self.assertAlmostEqual(theirs.storage, 0.1)
        self.assertTrue(theirs.holds)  # of the answers that were given
        self.assertEqual(theirs.new_seconds, 3.0)

    def test_parts_and_constraints_stay_apart(self):
        rows = [
            answer(INAG, 0),
            answer(INAG, 0, EQUAL_TRAININGS),
            answer(INAG, 0, storage_limit=0.1),
        ]
        self.assertLen(reproduce_search.summarise(rows), 3)

    def test_ten_constraints_are_prepared_for_once(self):
        limits = [(c.storage, c.energy) for c in TEN]
        rows = [
            answer(INAG, 0, prepared_seconds=100.0, storage_limit=s, energy_limit=e)
            for s, e in limits
        ]
        self.assertEqual(reproduce_search.ten_seconds(rows, INAG), 100 + 10 * 3)
        self.assertIsNone(reproduce_search.ten_seconds(rows[1:], INAG))
        self.assertIsNone(reproduce_search.ten_seconds(rows, "genetic"))

    def test_constraints(self):
        self.assertLen(set(TEN), 10)
        self.assertNoCommonElements(TEN, reproduce_search.UNTUNED)
        self.assertIn(reproduce_search.PAPERS, TEN)

    def test_a_metered_search_pays_for_what_it_reads(self):
        # Two processes share 4 s and 6 s of training: 2 s and 5 s, the second over the limit.
        records = [types.SimpleNamespace(seconds=4.0), types.SimpleNamespace(seconds=6.0)]
        metered = reproduce_setting.Metered(lambda _, __: [records.pop(0)], 2, limit_seconds=4.5)
        self.assertLen(metered(["network"], 0), 1)
        with self.assertRaises(reproduce_setting.OutOfTime):
            metered(["network"], 0)
        self.assertLen(metered.records, 2)
        np.testing.assert_allclose(metered.seconds, [2, 5], rtol=0, atol=0.5)

    def test_a_large_request_is_trained_in_portions(self):
        asked = []

        def evaluate(networks, seed):
            asked.append(len(networks))
            return [types.SimpleNamespace(seconds=1.0, network=n, seed=seed) for n in networks]

        metered = reproduce_setting.Metered(evaluate, 1, limit_seconds=200)
        records = metered(list(range(130)), 7)
        self.assertEqual(asked, [64, 64, 2])
        self.assertEqual([r.network for r in records], list(range(130)))
        with self.assertRaises(reproduce_setting.OutOfTime):
            metered(list(range(1000)), 7)
        # 130 s are spent; 64 more are 194, the next 64 pass the limit.
        self.assertEqual(asked[3:], [64, 64])


class AnswersTest(absltest.TestCase):
    """Real searches in a space of 84 points, trained for 40 steps."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.space = small_space()
        x = np.random.default_rng(0).normal(size=(160, 4)).astype(np.float32)
        y = x @ np.array([[1.0], [-2.0], [0.5], [0.0]], np.float32)
        splits = [datasets.Split(x[i:j], y[i:j]) for i, j in ((0, 96), (96, 128), (128, 160))]
        self.dataset = datasets.Dataset("linear", tasks.REGRESSION, *splits, {})
        self.recipe = Recipe(steps=40, batch_size=16, warmup_steps=10)
        workers = population.Workers(self.dataset, self.recipe, processes=2)
        self.addCleanup(workers.close)
        self.setting = types.SimpleNamespace(
            space=self.space,
            dataset=self.dataset,
            experiment=types.SimpleNamespace(recipe=self.recipe),
            costs=CostModel(self.space),
            workers=workers,
            processes=2,
            store=lambda name: RecordStore(pathlib.Path(folder.name) / f"{name}.db", self.space),
            train=self.trained,
        )

    def trained(self, architectures, seed: int) -> list[Record]:
        with self.setting.store("trainings") as store:
            return Evaluator(store, self.setting.workers)(architectures, seed)

    def searched(self, evaluations: int, seconds: float) -> Answer:
        # The largest network has widths 3, 3 and 8 bits; half of its storage leaves many others.
        constraint = reproduce_search.Constraint(0.5, 0.6)
        limits = reproduce_search.Limits(A_TENTH, constraint, evaluations, seconds)
        return reproduce_search.search_answer(self.setting, "random_search", limits, 0, seed=3)

    def test_the_answer_is_the_best_on_validation_told_on_test(self):
        found = self.searched(12, 1000.0)
        self.assertEqual((found.trainings, found.method), (12, "random_search"))
        self.assertTrue(found.holds)
        self.assertLessEqual(found.storage, 0.5)
        self.assertLessEqual(found.energy, 0.6)
        with self.setting.store("search/random_search-0.5-0.6-0") as store:
            records = store.read(self.dataset.fingerprint, self.recipe.fingerprint)
        self.assertLen(records, 12)
        best = max(records, key=lambda record: record.metric)
        self.assertEqual(found.validation, best.metric)
        member = population.Member(lower(self.space, best.architecture), best.seed)
        (outcome,) = population.train(
            [member], self.dataset, self.recipe, processes=1, split="test"
        )
        self.assertEqual(found.test, outcome.metric)
        self.assertNotEqual(found.test, found.validation)
        self.assertGreater(found.answer_seconds, sum(r.seconds for r in records) / 2)

    def test_inag_answers_with_the_best_of_all_that_it_trained(self):
        constraint = reproduce_search.Constraint(0.5, 0.6)
        within = self.trained(
            [self.space.architecture(row) for row in self.space.sample(6, stream(1, "within"))], 7
        )
        lucky = max(within, key=lambda record: record.metric)
        largest = self.trained([self.space.point({})], 8)
        encoder = surrogate.fit(
            self.space,
            within,
            PerformanceScale(0.0, 1.0),
            surrogate.SurrogateConfig(members=1, units=8, steps=5),
            seed=1,
        )
        generator = generators.get("random").restore(self.space, {})
        # The largest network is over the limits, however good; the best record within is better
        # than any of ten new trainings can be.
        records = [
            dataclasses.replace(largest[0], metric=9.0),
            *(dataclasses.replace(r, metric=2.0 if r == lucky else r.metric) for r in within),
        ]
        kept = reproduce_search._within(
            self.setting, records, reproduce_search.budget_of(self.setting, constraint)
        )
        self.assertFalse(kept[0])
        fit = reproduce_setting.Fit(encoder, generator, records, seconds=5.0)
        found = reproduce_search.inag_answer(self.setting, fit, constraint, 0, seed=3)
        self.assertEqual(found.validation == 2.0, bool(kept[1 + within.index(lucky)]))
        self.assertBetween(found.trainings, 8, 7 + reproduce_search.CANDIDATES)
        self.assertTrue(found.holds)
        self.assertLessEqual(found.storage, 0.5)

    def test_three_quarters_of_inags_trainings_are_its_own_answers(self):
        experiment = reproduce_setting.configured("quartic_mlp")
        own = reproduce_search.inag_experiment(experiment, number=3)
        self.assertEqual((own.records, own.rounds, own.round_networks), (2_000, 3, 2_000))
        self.assertEqual(own.seed, 2023)
        shipped = reproduce_setting.configured("quartic_mlp_answers")
        self.assertEqual(
            dataclasses.replace(shipped, name=experiment.name),
            reproduce_search.inag_experiment(experiment),
        )
        few = types.SimpleNamespace(experiment=dataclasses.replace(experiment, records=30))
        with self.assertRaisesRegex(errors.UsageError, "at least 40 records, got 30"):
            reproduce_search.table_3(few, reproduce_search.Sizes(), 1, pathlib.Path("nowhere"))
        odd = reproduce_search.inag_experiment(dataclasses.replace(experiment, records=43))
        self.assertEqual(odd.records + odd.rounds * odd.round_networks, 43)

    def test_answers_are_kept_each_in_a_file(self):
        folder = pathlib.Path(self.create_tempdir().full_path) / "answers"
        found = reproduce_search.Answer(A_TENTH, INAG, 0, 0.1, 0.1, True, 3, 1.0, 2.0, 3.0)
        answers = reproduce_search._Answers(folder)
        self.assertEqual(answers.get("first", lambda: found), found)
        self.assertTrue(answers.changed)
        # Another process has answered meanwhile, and nothing of either is lost.
        other = dataclasses.replace(found, seed=1)
        reproduce_search._Answers(folder).get("second", lambda: other)
        again = reproduce_search._Answers(folder)
        for key, answer in (("first", found), ("second", other)):
            self.assertEqual(again.get(key, lambda: self.fail("answered anew")), answer)
        self.assertFalse(again.changed)

    def test_a_search_without_time_has_no_answer(self):
        found = self.searched(12, 0.0)
        self.assertEqual((found.trainings, found.test, found.holds), (0, None, False))

    def test_nothing_fits(self):
        limits = reproduce_search.Limits(
            A_TENTH, reproduce_search.Constraint(1e-6, 1e-6), 12, 1000.0
        )
        found = reproduce_search.search_answer(self.setting, "random_search", limits, 0, seed=3)
        self.assertEqual((found.trainings, found.test, found.holds), (0, None, False))


class HostTest(absltest.TestCase):
    def row(self, method, limit_ms, latency_ms, accuracy):
        return reproduce_host.Delivered(
            method, limit_ms, latency_ms, latency_ms, accuracy, accuracy, 0.0, 0.1
        )

    def test_the_area_of_a_front_by_hand(self):
        rows = [
            self.row(reproduce_host.NAG, 1.0, 0.8, 0.6),
            self.row(reproduce_host.NAG, 2.0, 1.6, 0.8),
            self.row(reproduce_host.INDEPENDENT, 1.0, 1.1, 0.7),  # over its budget
            self.row(reproduce_host.INDEPENDENT, 2.0, 1.6, 0.7),
        ]
        # From 0.8 ms 0.5 above a guess, from 1.6 ms 0.7, up to 2 ms: (0.4 + 0.28) / 2.
        areas = reproduce_host.covered(rows)
        self.assertAlmostEqual(areas[reproduce_host.NAG], 0.34)
        self.assertAlmostEqual(areas[reproduce_host.INDEPENDENT], 0.12)

    def test_five_budgets_are_answered_in_three_ways(self):
        """What takes hours is left out: policies, timing and files."""
        folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        space = small_space()
        costs = types.SimpleNamespace(
            costs=lambda choices: {"latency_ms": 1.0 + np.arange(len(choices)) / len(choices)}
        )
        bundle = bundles.Bundle(
            "small",
            space,
            tasks.CLASSIFICATION,
            "data",
            "print",
            Recipe(),
            None,
            {"nag": "one for all"},
        )
        asked = []

        def answer(answering, budget, costs, method, selector, seed, say):
            who = answering.generators[method], selector.refinements > 0
            asked.append((*who, budget.limits["latency_ms"]))
            if len(asked) == 15:
                raise errors.InfeasibleBudgetError("nothing fits")
            return [types.SimpleNamespace(cost=budget.limits, metric=0.7)]

        lab = mock.create_autospec(reproduce_host.Lab, instance=True)
        lab.bundle, lab.config = bundle, nag.NagConfig(steps=1_000)
        lab.costs.return_value = costs
        lab.independent.side_effect = lambda costs, budget, config, seed: (config.steps, 2.0)
        lab.deliver.side_effect = lambda candidate, seed: (candidate.cost["latency_ms"] / 2, 0.6)
        patch = functools.partial(mock.patch.object, pipeline)
        with (
            patch("answer", answer),
            patch("keeping_latency", lambda bundle, found, threads: (found, 1, 1.0)),
        ):
            rows = reproduce_host.host(lab, 5, 1, folder, lambda text: None)
        # A tenth to nine tenths of 4,000 latencies between 1 and 2 ms.
        np.testing.assert_allclose(
            [limit for *_, limit in asked[::3]], [1.1, 1.3, 1.5, 1.7, 1.9], atol=1e-3
        )
        # An independent policy has a fifth of the steps.
        ways = [("one for all", False), ("one for all", True), (200, False)]
        self.assertEqual([tuple(who) for *who, _ in asked], ways * 5)
        self.assertEqual([row.holds for row in rows], [True] * 14 + [False])
        self.assertIn("| no |", (folder / "nag_host.md").read_text())


class CellsTest(absltest.TestCase):
    """NAS-Bench-201: a table of all cells whose accuracy is made up."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / reproduce_cells.TABLE
        cells = list(itertools.product(range(5), repeat=6))
        # A point for each 3x3 convolution; others do nothing.
        lines = [
            ",".join([tabulated.nasbench201_text(cell), *[str(50.0 + cell.count(3))] * 6])
            for cell in cells
        ]
        header = ",".join(["arch_str", *reproduce_cells.ACCURACIES])
        self.path.write_bytes(gzip.compress("\n".join([header, *lines]).encode()))

    def test_the_best_cell_within_a_target(self):
        truth = reproduce_cells.Truth(self.path.parent)
        # 100 million MACs leave 92.2 beside the rest: two 3x3 convolutions of 35.4 each, and of
        # 21.4 more at most four 1x1 of 3.9: 7,783,050 + 2 * 35,389,440 + 4 * 3,932,160.
        self.assertEqual(truth.best(100e6), 52.0)
        rows = truth.most_macs(100e6)
        self.assertEqual(set(truth.macs[rows]), {94_290_570.0})
        self.assertLen(rows, 15)  # which two of six edges have the 3x3
        answer = truth.answer(0, reproduce_cells.MOST, 100e6, rows)
        self.assertEqual((answer.regret, answer.c10_valid), (0.0, 52.0))
        skips = truth.table.rows(np.ones((1, 6), np.int64))
        self.assertEqual(truth.answer(0, reproduce_cells.SGNAS, 100e6, skips).regret, 2.0)

    def test_published_costs_of_cells(self):
        # Indices 0, 1 and 2 of the benchmark: million MACs and million parameters.
        space = catalog.get("nasbench201")
        cells = np.array([[4, 2, 1, 2, 1, 1], [3, 3, 4, 1, 3, 1], [4, 3, 3, 4, 4, 4]])
        costs = CostModel(space).costs(cells)
        np.testing.assert_allclose(costs["macs"] / 1e6, [15.64737, 113.95137, 78.56193])
        np.testing.assert_allclose(costs["params"] / 1e6, [0.129306, 0.802426, 0.559386])
        ends = [f(m) for m in ("macs", "params") for f in (CostModel(space).minimum,
                                                          CostModel(space).maximum)]  # fmt: skip
        np.testing.assert_allclose(ends, [7.78305e6, 220.11969e6, 73_306, 1_531_546])

    def test_a_table_that_is_none(self):
        with self.assertRaisesRegex(errors.UsageError, "no such table"):
            reproduce_cells.Truth(self.path.parent / "nowhere")
        whole = self.path.read_bytes()
        # Cut short, and with bytes that no deflate stream has.
        for damaged in (whole[:1000], whole[:500] + b"\xff" * 500 + whole[1000:]):
            self.path.write_bytes(damaged)
            with self.assertRaisesRegex(errors.CorruptFileError, "nasbench201.csv.gz"):
                reproduce_cells.Truth(self.path.parent)
        self.path.write_bytes(gzip.compress(b"arch_str,c10_valid\n"))
        with self.assertRaisesRegex(errors.CorruptFileError, "0 cells of 15,625"):
            reproduce_cells.Truth(self.path.parent)

    def test_a_summary_is_the_mean_of_targets_and_seeds(self):
        def answer(seed, target, regret, score):
            return reproduce_cells.Answer(
                seed, reproduce_cells.SGNAS, target, target, score, regret, *[90.0 - regret] * 6
            )

        rows = [answer(0, 1e7, 3.0, 0.5), answer(0, 2e7, 1.0, 0.6), answer(1, 1e7, 0.5, 0.7),
                answer(1, 2e7, 1.5, 0.4)]  # fmt: skip
        (summary,) = reproduce_cells.summarise(rows)
        self.assertEqual((summary.regret, summary.low, summary.high), (1.5, 1.0, 2.0))
        # Of seed 0 the second scored best, of seed 1 the first: 89 and 89.5.
        self.assertEqual(summary.best[0], 89.25)


class WritingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    @parameterized.parameters((None, "-"), (0.04, "0.04 s"), (42.4, "42 s"), (312, "5.2 min"),
                              (11_160, "3.1 h"))  # fmt: skip
    def test_durations(self, seconds, text):
        self.assertEqual(reports.duration(seconds), text)

    def test_csv(self):
        rows = [
            reproduce_distance.FrontRow(0.5, 0.25, 0.125, 1 / 3, None),
            reproduce_distance.FrontRow(1.0, 0.25, 0.125, 0.5, 0.75),
        ]
        reports.write_csv(self.folder / "x.csv", rows)
        self.assertEqual(
            (self.folder / "x.csv").read_text(),
            "condition,storage,energy,predicted,trained\n"
            "0.5,0.25,0.125,0.333333,\n1,0.25,0.125,0.5,0.75\n",
        )

    def test_markdown(self):
        columns = (reports.Column("a", str), reports.Column("%", reports.percent))
        reports.write_markdown(self.folder / "x.md", "Words.", reports.markdown(columns, [0.25]))
        self.assertEqual(
            (self.folder / "x.md").read_text(),
            "Words.\n\n| a | % |\n| --- | --- |\n| 0.25 | 25.0 |\n",
        )

    def test_pictures(self):
        chart = charts.Chart(
            "Title",
            "records",
            "mDist_r, %",
            (
                charts.Series("cloud", [1, 2, 3], [3, 1, 2], "dots"),
                charts.Series("joined", [1, 10], [5, 4], "line", low=[4, 3], high=[7, 4.5]),
            ),
            x_log=True,
        )
        png, html = charts.write(chart, self.folder, "picture")
        first = png.read_bytes()
        self.assertEqual(first[:8], b"\x89PNG\r\n\x1a\n")
        # Big-endian width and height in the header: 6.4 x 4.2 inches of 120 dots.
        self.assertEqual([int.from_bytes(first[i : i + 4], "big") for i in (16, 20)], [768, 504])
        page = html.read_text()
        self.assertLess(len(page), 50_000)
        for piece in ("joined", "mDist_r, %", '"arrayminus":[1,1]', charts.PLOTLY_JS):
            self.assertIn(piece, page)
        self.assertGreater((self.folder / charts.PLOTLY_JS).stat().st_size, 1_000_000)
        charts.write(chart, self.folder, "picture")
        self.assertEqual(png.read_bytes(), first)
        self.assertEqual(html.read_text(), page)

    def test_series_refuse_what_cannot_be_drawn(self):
        for arguments in (([1, 2], [1]), ([1], [1], "stars"), ([1], [1], "line", [0])):
            with self.assertRaises(ValueError):
                charts.Series("x", *arguments)


class ProgramTest(parameterized.TestCase):
    @parameterized.parameters(
        (["--table=nagan5"], "nagan3|nagan4|ablation"),
        ([], "give one of --table and --figure"),
        (["--table=nagan4", "--figure=nagan4a"], "give one of --table and --figure"),
        (["--table=nagan4", "--experiments=Reg.Z"], "known: Reg.A, Reg.B"),
        (["--table=nagan4", "--experiments=Reg.C"], "run collect first"),
        (["--figure=nagan4a"], "run collect first"),
        (["--table=nagan3", "--records=30"], "run collect first"),
        (["--table=sgnas3"], "give --tables_dir"),
        (["--table=sgnas3", "--tables_dir=nowhere"], "nasbench201.csv.gz: no such table"),
    )
    def test_bad_input_is_one_line_and_exit_code_2(self, arguments, message):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-m", "tools.reproduce", *arguments,
                 f"--work_dir={folder}/work", f"--output_dir={folder}/out"],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
            self.assertEmpty(list(pathlib.Path(folder).iterdir()))
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(message, done.stderr)
        self.assertLen(done.stderr.strip().splitlines(), 1, done.stderr)


if __name__ == "__main__":
    absltest.main()
