"""NAG: an evaluator that ranks as Pareto dominance does, and a policy that keeps budgets."""

import dataclasses
import functools
import gzip
import itertools
import math
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tests.generators.conformance_test import RANKED, SPACE, evidence, fitted, true_metric
from tests.generators.platform_test import Device
from tfgen import errors, seeds, workdir
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.cost.latency import Interval
from tfgen.deployment import devices
from tfgen.generators import nag, nag_training
from tfgen.generators.base import Evidence
from tfgen.generators.nag_evaluator import ExpectedAccuracies
from tfgen.nets.keras_compat import tf
from tfgen.space import tabulated
from tfgen.space.encoding import Encoding
from tools import reproduce_front, reproduce_nag, reproduce_setting

ALL = SPACE.choices(list(SPACE.enumerate()))
COSTS = CostModel(SPACE).costs(ALL)


def best_within(budget: Budget) -> float:
    """The truth of the best network within a budget."""
    within = np.all([COSTS[m] <= limit for m, limit in budget.limits.items()], axis=0)
    return float(true_metric(ALL)[within].max())


class Uneven(Device):
    """A device on which a network takes a millisecond for each parameter."""

    device = "uneven"

    def predict(self, choices, confidence):
        macs = CostModel(SPACE).costs(choices)["macs"]
        params = CostModel(SPACE).costs(choices)["params"]
        found = super().predict(choices, confidence)
        return dataclasses.replace(found, ms=found.ms * params / macs,
                                   high_ms=found.high_ms * params / macs)  # fmt: skip


class CellDevice:
    """A device on which a cell takes so long for each operation, beside the rest of its network."""

    remark = ""

    def __init__(self, device: str, ms: tuple[float, ...]):
        self.device = device
        self._ms = np.array(ms)  # [operations]

    def predict(self, choices, confidence):
        del confidence
        ms = 1.0 + self._ms[choices].sum(axis=1)
        return Interval(ms, ms)


class AdvantageTest(absltest.TestCase):
    def test_dominance_over_the_other_samples(self):
        # Three samples: the first is over the budget, the third the better of the other two. The
        # second dominates one of two and is dominated by one.
        quality, over = np.array([[0.9, 0.5, 0.6]]), np.array([[1.1, 0.9, 0.8]])
        found = nag_training.advantages("pareto", quality, over)
        np.testing.assert_allclose(found, [[-1.0, 0.0, 1.0]])

    def test_without_the_accuracy_constraint_the_cheapest_gains(self):
        quality, over = np.array([[0.9, 0.5, 0.6]]), np.array([[0.7, 0.9, 0.8]])
        found = nag_training.advantages("cheapest", quality, over)
        np.testing.assert_allclose(found, [[1.0, -1.0, 0.0]])

    def test_rewards_that_are_compared_are_centred(self):
        # MnasNet's: 0.8 * 2 ** -0.07 = 0.762 and 0.8; TuNAS's: 0.8 - 0.07 and 0.8. Two samples
        # that differ are one deviation off their mean, the second above.
        quality, over = np.array([[0.8, 0.8]]), np.array([[2.0, 1.0]])
        for reward in ("multi_objective", "absolute"):
            found = nag_training.advantages(reward, quality, over)
            np.testing.assert_allclose(found, [[-1.0, 1.0]], atol=1e-6)
        np.testing.assert_allclose(
            nag_training.advantages("learned", np.array([[3.0, 1.0]]), over), [[1.0, -1.0]],
            atol=1e-6,
        )  # fmt: skip


class EvaluatorTest(absltest.TestCase):
    def test_it_ranks_held_out_records_as_dominance_does(self):
        # Records have noise of 0.02 where steps of the truth are 0.1, so nearly all pairs could be
        # told; by chance it would be a half.
        self.assertGreater(fitted("nag").evaluator.ranking_accuracy, 0.8)
        self.assertGreater(fitted("nag").evaluator.accuracy_ranking, 0.8)

    def test_budgets_side_by_side_are_ranked_as_each_by_itself(self):
        generator = fitted("nag")
        evaluator, platform = generator.evaluator, generator.platform
        choices = np.concatenate([ALL[:7], ALL[20:27]])
        targets = np.array([[9.0, 0.0], [0.0, 0.02]])
        costs = platform.costs(choices)
        both = evaluator.rewards(platform, choices, costs, targets)
        self.assertEqual(both.shape, (2, 2, 7))  # [members, targets, networks]
        for number, rows in enumerate((slice(0, 7), slice(7, 14))):
            alone = evaluator.rewards(platform, choices[rows], costs[rows], targets[[number]])
            np.testing.assert_allclose(both[:, [number]], alone, atol=1e-5)

    def test_what_ranks_as_a_record_has_its_accuracy(self):
        generator = fitted("nag")
        accuracies = true_metric(ALL)
        expected = ExpectedAccuracies(generator.evaluator, generator.platform, ALL, accuracies)
        mean, deviation = expected.of(ALL, generator.platform.costs(ALL))
        # Each member gives the records their own accuracies, in its own order; of records that it
        # ranks alike one stands for all.
        self.assertAlmostEqual(mean.mean(), accuracies.mean(), delta=0.02)
        self.assertGreater(np.corrcoef(mean, accuracies)[0, 1], 0.9)
        self.assertGreaterEqual(deviation.min(), 0.0)

    def test_too_few_records_are_refused(self):
        few = dataclasses.replace(evidence(), records=evidence().records[:10])
        with self.assertRaisesRegex(errors.UsageError, "8 records .* 32 are compared"):
            nag.Nag().fit(few, RANKED, 1)

    def test_a_cost_that_is_not_known_is_named(self):
        config = dataclasses.replace(RANKED, costs=("latency_ms",))
        with self.assertRaisesRegex(errors.UsageError, "latency_ms is not known"):
            nag.Nag().fit(evidence(), config, 1)


class PolicyTest(parameterized.TestCase):
    def test_draws_keep_budgets_that_training_has_not_seen(self):
        for text in ("macs=20", "macs=45", "storage_kb=0.02", "macs=60,storage_kb=0.03"):
            budget = Budget.parse(text)
            (drawn,) = fitted("nag").propose([budget], 1_000, seed=3)
            costs = CostModel(SPACE).costs(drawn.choices)
            within = np.all([costs[m] <= limit for m, limit in budget.limits.items()], axis=0)
            self.assertGreaterEqual(within.mean(), 0.9, text)
            # The truth has steps of 0.1, from 0.1 to 0.6.
            self.assertGreaterEqual(
                true_metric(drawn.choices[within]).max(), best_within(budget) - 0.11, text
            )

    def test_a_policy_that_writes_too_much_is_asked_for_less(self):
        # A made-up one, whose networks have up to 1.3 times the MACs that it is asked for.
        networks = SPACE.choices(list(SPACE.enumerate()))
        macs = CostModel(SPACE).costs(networks)["macs"]
        asked = []

        def drawn(self, xp, targets, key):
            asked.append(targets[0, 0, 0])
            largest = np.where(macs <= 1.3 * targets[..., :1], macs, 0).argmax(axis=-1)
            return networks[largest]

        with mock.patch.object(nag.NagGenerator, "_drawn", drawn):
            for limit in (12.0, 16.0, 20.0):
                first = len(asked)
                (found,) = fitted("nag").propose([Budget({"macs": limit})], 10, seed=1)
                self.assertEqual(asked[first], limit)
                self.assertLessEqual(CostModel(SPACE).costs(found.choices)["macs"].max(), limit)
                self.assertBetween(asked[-1], limit / 1.7, limit)
            self.assertLess(asked[-1], limit)

    def test_more_budget_gives_better_networks(self):
        targets = np.array([[10.0, 0.0], [60.0, 0.0]]).repeat(300, axis=0)
        drawn = true_metric(fitted("nag").draw(targets, seed=4))
        self.assertGreater(drawn[300:].mean(), drawn[:300].mean() + 0.05)

    def test_choices_are_drawn_as_often_as_their_shares_say(self):
        # 20,000 draws: a share is off by more than 0.018 (five deviations) once in a million seeds.
        encoding, state = Encoding(SPACE), fitted("nag").state()
        targets = np.repeat([[30.0, 0.0]], 20_000, axis=0)
        conditions = fitted("nag").platform.conditions(targets)
        uniform = seeds.stream(5, "uniform").random((20_000, len(SPACE.decisions)))
        first, *_ = nag.write(np, encoding, state, conditions, nag.drawn_by(np, SPACE, uniform))
        for choice, share in enumerate(first.shares[0]):
            self.assertAlmostEqual((first.choice == choice).mean(), share, delta=0.018)
        np.testing.assert_allclose(first.shares.sum(axis=1), 1.0, atol=1e-5)

    def test_numpy_and_tensorflow_write_alike(self):
        encoding, state = Encoding(SPACE), fitted("nag").state()
        conditions = fitted("nag").platform.conditions(np.repeat([[30.0, 0.0]], 50, axis=0))
        choices = SPACE.sample(50, seeds.stream(6, "networks"))

        def chosen(decision, shares):
            del shares
            return choices[:, decision]

        own = nag.write(np, encoding, state, conditions, chosen)
        kernels = {k: tf.constant(v) for k, v in state.items() if v.dtype == np.float32}
        theirs = nag.write(
            tf.experimental.numpy, encoding, kernels, tf.constant(conditions, tf.float32), chosen
        )
        for ours, other in zip(own, theirs, strict=True):
            np.testing.assert_allclose(ours.shares, other.shares, atol=1e-5)
            np.testing.assert_allclose(ours.active, other.active)

    @parameterized.parameters("learned", "multi_objective", "absolute")
    def test_the_other_rewards_fit(self, reward):
        config = dataclasses.replace(RANKED, reward=reward, steps=10, evaluator_steps=10)
        for name, array in nag.Nag().fit(evidence(), config, 4).state().items():
            self.assertTrue(np.isfinite(array).all(), (reward, name))

    def test_without_the_accuracy_constraint_networks_are_cheap(self):
        config = dataclasses.replace(RANKED, reward="cheapest", costs=("macs",), steps=200)
        generator = nag.Nag().fit(evidence(), config, 4)
        (drawn,) = generator.propose([Budget({"macs": 60.0})], 300, seed=1)
        macs = CostModel(SPACE).costs(drawn.choices)["macs"]
        self.assertLess(macs.mean(), 20.0)

    def test_configurations_that_cannot_work_are_refused(self):
        for wrong in (
            {"reward": "money"},
            {"costs": ()},
            {"costs": "macs"},
            {"costs": ("latency",)},
            {"budgets": 1},
            {"samples": 1},
            {"end_entropy": 0.0},
            {"held_out_share": 1.0},
            {"learning_rate": float("nan")},
            {"evaluator_rate": float("inf")},
            {"weight_decay": -3.0},
            {"costs": ("macs", "macs")},
        ):
            with self.assertRaises(ValueError):
                nag.NagConfig(**wrong)

    def test_a_state_of_another_space_is_refused(self):
        with self.assertRaisesRegex(ValueError, "of another space or version"):
            state = {**fitted("nag").state(), "head": np.zeros((1, 16, 8), np.float32)}
            nag.Nag().restore(SPACE, state)

    def test_a_policy_of_one_budget(self):
        config = dataclasses.replace(RANKED, costs=("macs",), steps=200)
        budget = Budget({"macs": 30.0})
        generator = nag.Nag().fit_budget(evidence(), budget, config, 4)
        (drawn,) = generator.propose([budget], 500, seed=1)
        within = CostModel(SPACE).costs(drawn.choices)["macs"] <= 30.0
        self.assertGreater(within.mean(), 0.9)
        best = true_metric(drawn.choices[within]).max()
        self.assertGreaterEqual(best, best_within(budget) - 0.11)
        # A restored one still knows that there is no other budget to ask it for.
        again = nag.Nag().restore(SPACE, generator.state())
        np.testing.assert_array_equal(
            again.propose([budget], 500, seed=1)[0].choices, drawn.choices
        )
        np.testing.assert_array_equal(again.platform.only, [30.0])
        np.testing.assert_array_equal(again.on(CostModel(SPACE)).platform.only, [30.0])
        with self.assertRaisesRegex(errors.UsageError, "limits none of macs"):
            nag.Nag().fit_budget(evidence(), Budget({"storage_kb": 1.0}), config, 4)


class DevicesTest(absltest.TestCase):
    @functools.cached_property
    def generator(self) -> nag.NagGenerator:
        models = [CostModel(SPACE, latency=d) for d in (Device(1.0), Uneven(0.1), Device(3.0))]
        config = dataclasses.replace(RANKED, costs=("latency_ms",), steps=600)
        told = Evidence(SPACE, CostModel(SPACE), evidence().records)
        return nag.Nag().fit_devices(told, models, config, 3)

    def test_one_policy_keeps_budgets_on_devices_that_it_was_not_trained_for(self):
        for device in (Device(1.0), Uneven(0.1), Device(10.0), Uneven(7.0)):
            model = CostModel(SPACE, latency=device)
            own = self.generator.on(model)
            ms = model.costs(ALL)["latency_ms"]
            for share in (0.3, 0.6):
                limit = float(np.quantile(ms, share))
                budget = Budget({"latency_ms": limit}, None, device.device)
                (drawn,) = own.propose([budget], 500, seed=2)
                within = model.costs(drawn.choices)["latency_ms"] <= limit
                self.assertGreater(within.mean(), 0.9)
                best = true_metric(ALL)[ms <= limit].max()
                self.assertGreaterEqual(true_metric(drawn.choices[within]).max(), best - 0.11)
        restored = nag.Nag().restore(SPACE, own.state())
        np.testing.assert_array_equal(
            restored.propose([budget], 50, seed=2)[0].choices, drawn.choices[:50]
        )

    def test_a_policy_of_one_device_says_so(self):
        with self.assertRaisesRegex(errors.UsageError, "was trained for one device"):
            fitted("nag").on(CostModel(SPACE, latency=Device(1.0)))
        # A policy that reads no latency is the same everywhere where none is limited.
        self.assertIs(type(fitted("nag").on(CostModel(SPACE))), nag.NagGenerator)
        with self.assertRaisesRegex(errors.UsageError, "needs at least one"):
            nag.Nag().fit_devices(evidence(), [], RANKED, 1)
        with self.assertRaisesRegex(errors.UsageError, "needs latency_ms in its costs"):
            nag.Nag().fit_devices(evidence(), [CostModel(SPACE)], RANKED, 1)


class ReproductionTest(absltest.TestCase):
    def test_cells_are_revealed_in_rounds_and_budgets_are_kept(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        # A point for each 3x3 convolution and half of one for each 1x1; on the test split less.
        lines = [
            f"{tabulated.nasbench201_text(c)},{50.0 + c.count(3) + 0.5 * c.count(2)},{40 - c[0]}"
            for c in itertools.product(range(5), repeat=6)
        ]
        table = "\n".join([f"arch_str,{reproduce_nag.VALID},c10_test", *lines])
        (folder / reproduce_nag.TABLE).write_bytes(gzip.compress(table.encode()))
        cells = np.array(list(itertools.product(range(5), repeat=6)))
        toys = {
            "gold_1": CellDevice("gold_1", (0.0, 0.1, 1.0, 2.0, 0.5)),
            "flat": CellDevice("flat", (0.0, 0.1, 1.0, 1.5, 1.0)),
            "steep": CellDevice("steep", (0.0, 0.1, 0.5, 4.0, 0.5)),
        }
        config = dataclasses.replace(RANKED, costs=("latency_ms",), steps=150, evaluator_steps=150)
        sizes = reproduce_nag.Sizes(
            seeds=1,
            first=40,
            rounds=1,
            revealed=60,
            round_budgets=2,
            budgets=3,
            round_config=config,
            config=config,
            alone_config=config,
            draws=64,
            answer_draws=64,
        )
        with (
            mock.patch.object(devices, "known_on", return_value=list(toys)),
            mock.patch.object(devices, "latency_model", side_effect=lambda n, *_, **__: toys[n]),
            mock.patch.object(devices, "numbered", return_value=cells),
        ):
            bench = reproduce_nag.Bench(folder)
            self.assertEqual(bench.trained, ["flat", "steep"])
            out, work = folder / "out", folder / "work"
            real, opened, while_fitting = reproduce_nag.NasBench201, [], []

            def opening(path, columns):
                opened.append((path.name, columns))
                return real(path, columns)

            def training(*arguments):
                before = len(opened)
                made = train(*arguments)
                while_fitting.extend(opened[before:])
                return made

            train = nag_training.train
            with (
                mock.patch.object(reproduce_nag, "NasBench201", opening),
                mock.patch.object(nag_training, "train", training),
            ):
                found = reproduce_nag.nag_devices(folder, work, sizes, 1, out, lambda text: None)
            # The judge and who reveals read one column of one table, a fit none.
            self.assertEqual(set(opened), {(reproduce_nag.TABLE, (reproduce_nag.VALID,))})
            self.assertEqual(while_fitting, [])
            self.assertEqual([(s.method, s.answers) for s in found[:2]], [("nag", 6), ("nag", 3)])
            (measured,) = (s for s in found if s.method == reproduce_nag.MEASURED)
            self.assertEqual(measured.devices, "kept out")
            for summary in found:  # of two devices for training and one other, three budgets each
                whole = 6 if summary.devices == "trained for" else 3
                self.assertEqual(summary.answers + summary.unanswered, whole)
            alone = [s.answers for s in found if s.method == reproduce_nag.ALONE]
            self.assertEqual(alone, [6, 3])
            for summary in found:
                if summary is not measured:
                    self.assertEqual(summary.over, 0)
            # Of what was revealed nothing is answered that is worse; what was not may be expected
            # to be better and have a 1x1 convolution less, here at one of six budgets at most.
            self.assertLessEqual(found[0].regret, found[2].regret + 0.5 / 6 + 1e-9)
            # Half a point is a 1x1 convolution.
            self.assertLess(found[0].regret, 0.6)
            (kept,) = work.glob("seed_0-*")
            self.assertLen(workdir.read_json(kept / "revealed.json"), 60)
            # Nothing is revealed or fitted again; answers are the same.
            with mock.patch.object(nag_training, "train", side_effect=AssertionError):
                again = reproduce_nag.nag_devices(folder, work, sizes, 1, out, lambda text: None)
            self.assertEqual(repr(again), repr(found))  # some are not a number
            # The first ones are random: each op is on the first edge, but for 5 * 0.8 ** 60.
            only = dataclasses.replace(sizes, first=60, rounds=0)
            path = folder / "first.json"
            reveal = reproduce_nag.Revealer(folder, bench.space, 60)
            first = reproduce_nag.revealed_in_rounds(bench, reveal, only, 1, path, lambda _: None)
            self.assertEqual({record.architecture.choices[0] for record in first}, set(range(5)))
            # Whatever rounds and fits do, no more is told: not one cell above what may be.
            short = dataclasses.replace(config, steps=1, evaluator_steps=1)
            few = dataclasses.replace(sizes, revealed=61, rounds=2, round_config=short)
            told = reproduce_nag.Revealer(folder, bench.space, 60)
            path = folder / "more.json"
            with (
                self.assertRaisesRegex(errors.TfgenError, "61 cells asked for, 60 may be"),
                mock.patch.object(reproduce_nag, "Judge", side_effect=AssertionError),
            ):
                reproduce_nag.revealed_in_rounds(bench, told, few, 1, path, lambda _: None)
            # The bench, which rounds and fits are given beside it, knows no accuracy.
            held = [v for v in vars(bench).values() if isinstance(v, np.ndarray | dict)]
            self.assertLen(held, 4)
            self.assertEqual(set(held[1].values()), set(range(5**6)))  # where which cell is
            self.assertEqual(set(held[2]), set(toys))
            self.assertEqual(set(held[3]), set(toys))
            rows = reproduce_nag.nag_variants(
                "nag5",
                {"K = 2": dataclasses.replace(config, budgets=2)},
                folder,
                work,
                sizes,
                "steep",
                1,
                out,
                lambda text: None,
            )
            front = reproduce_front.front(folder, work, sizes, ["steep"], 1, out, lambda text: None)
            with mock.patch.object(nag_training, "train", side_effect=AssertionError):
                again = reproduce_front.front(
                    folder, work, sizes, ["steep"], 1, out, lambda text: None
                )
        self.assertEqual(repr(again), repr(front))
        self.assertEqual([s.method for s in front], list(reproduce_front.METHODS))
        for summary in front:
            self.assertEqual(summary.over, 0, summary.method)
            # Policies of one budget have 50 steps here, and none of their answers is refined.
            long = summary.method in (reproduce_front.NAG, reproduce_front.REFINED)
            self.assertLess(summary.regret.value, 1.5 if long else 3.0, summary.method)
            self.assertLen(summary.budgets, 3)
            for asked in summary.budgets:
                self.assertLessEqual(asked.latency_ms.high, asked.limit_ms)
            # Nobody lowers targets but the policy for all budgets, and evolution draws nothing.
            self.assertEqual(math.isnan(summary.held.value), not long, summary.method)
            drawing = summary.method != reproduce_front.EVOLUTION
            self.assertEqual(math.isnan(summary.within.value), not drawing, summary.method)
        for name in (
            "nag1.md",
            "nag3.md",
            "nag4.md",
            "nag3_steep.png",
            "nag5_steep.html",
            "nag_front.csv",
        ):
            self.assertTrue((out / name).is_file(), name)
        self.assertEqual([row.variant for row in rows], ["K = 2"])
        self.assertBetween(rows[0].within, 0.5, 1.0)
        self.assertTrue((out / "nag5.md").is_file())

    def test_its_devices_are_there(self):
        for name in reproduce_front.DEVICES:
            self.assertTrue(devices.find(name).is_file(), name)

    def test_the_shipped_config_can_answer_latencies(self):
        experiment = reproduce_setting.configured("cifar10_once_for_all")
        self.assertIn("latency_ms", experiment.methods["nag"].costs)
        self.assertEqual(experiment.records, 4_000)

    def test_variants_are_those_of_the_tables(self):
        base = nag.NagConfig()
        self.assertEqual(
            [c.reward for c in reproduce_nag.rewards_compared(base).values()], list(nag.REWARDS)
        )
        self.assertEqual(
            [c.budgets for c in reproduce_nag.budgets_compared(base).values()], [2, 5, 10, 30]
        )


if __name__ == "__main__":
    absltest.main()
