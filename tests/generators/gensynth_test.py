"""Generative synthesis: the inquisitor finds what a cut costs, the generator uses it."""

import functools

import numpy as np
from absl.testing import absltest

from tests.space.small import mlp
from tfgen import errors, seeds
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.cost.metrics import PerformanceScale
from tfgen.cost.netscore import information_density, netscore
from tfgen.evidence.insight import Insight, InsightSurrogate, log_odds, summed
from tfgen.evidence.reactions import Reactions
from tfgen.evidence.record import Record
from tfgen.generators import gensynth, gensynth_training
from tfgen.generators.base import Evidence
from tfgen.generators.inquisitor import Inquisitor
from tfgen.nets import tensors
from tfgen.nets.keras_compat import tf
from tfgen.selection import Ranking, Selector
from tfgen.space import published
from tfgen.space.lowering import lower
from tfgen.space.prototype import Prototype

TOP = 0.9  # of the prototype
NOISE = 0.03  # log-odds


@functools.cache
def space():
    network, point = published.network("resnet8")
    return Prototype(lower(network, point), network.input_shape).space("p", compact=False)


def reactions() -> Reactions:
    """Every decision matters alike; a value loses what its width lacks."""
    lost = tuple(
        1.0 - np.array([int(v) for v in d.values]) / int(d.values[-1]) for d in space().decisions
    )
    return Reactions(np.ones(len(space().decisions)), lost)


# What halving what is left costs in truth; the second decision is free, the third dear.
TRUTH = np.array([0.5, 0.0, 1.5, 0.5, 0.4, 0.5, 0.1])


def truth(choices: np.ndarray) -> np.ndarray:
    left = [1.0 - lost[column] for lost, column in zip(reactions().lost, choices.T, strict=True)]
    odds = log_odds(TOP) + np.log2(np.stack(left, axis=1)) @ TRUTH
    return 1.0 / (1.0 + np.exp(-odds))


class Trials:
    """Scores networks and counts them."""

    def __init__(self):
        self.choices, self.metrics = [], []

    def __call__(self, architectures, seed):
        choices = space().choices(architectures)
        noise = NOISE * seeds.stream(seed, "noise").normal(size=len(choices))
        metrics = 1.0 / (1.0 + np.exp(-log_odds(truth(choices)) - noise))
        self.choices += list(choices)
        self.metrics += metrics.tolist()
        return [
            Record(architecture, "data", "recipe", 0, float(metric), 0.0)
            for architecture, metric in zip(architectures, metrics, strict=True)
        ]


def score(choices: np.ndarray, metrics: np.ndarray) -> np.ndarray:
    costs = CostModel(space()).costs(choices)
    return netscore(np, metrics, costs["params"], costs["macs"])


CONFIG = gensynth.GensynthConfig(cycles=6, networks=8, steps=150)


@functools.cache
def fitted() -> tuple[gensynth.GensynthGenerator, Trials]:
    trials = Trials()
    evidence = Evidence(
        space(),
        CostModel(space()),
        evaluate=trials,
        probe=lambda networks: [reactions() for _ in networks],
    )
    return gensynth.Gensynth().fit(evidence, CONFIG, 1), trials


class NetscoreTest(absltest.TestCase):
    def test_by_hand(self):
        # 20 log10(50^2 / (4^1/2 * 0.25^1/2)) = 20 log10(2500), and 50 % of 4 million parameters.
        self.assertAlmostEqual(float(netscore(np, 0.5, 4e6, 0.25e9)), 20 * np.log10(2500.0))
        self.assertEqual(information_density(0.5, 4e6), 12.5)


class InquisitorTest(absltest.TestCase):
    def test_finds_what_each_decision_costs(self):
        inquisitor = Inquisitor(space(), reactions(), TOP)
        before = inquisitor.insight()
        choices = space().sample(60, seeds.stream(2, "networks"))
        inquisitor.observe(choices, truth(choices), [])
        found = inquisitor.insight()
        # The first value of each decision costs log2 of what is left, times the truth.
        for number, (own, lost) in enumerate(zip(found.costs, reactions().lost, strict=True)):
            expected = -np.log2(1.0 - lost[0]) * TRUTH[number]
            self.assertAlmostEqual(own[0], expected, delta=0.1, msg=space().decisions[number].name)
            self.assertEqual(own[-1], 0.0)
        new = space().sample(200, seeds.stream(3, "networks"))
        errors_ = [np.abs(log_odds(truth(new)) - i.log_odds(new)).mean() for i in (before, found)]
        self.assertLess(errors_[1], 0.1 * errors_[0])
        # What it expected before is kept: the later half of sixty.
        self.assertLen(inquisitor.residuals, 30)

    def test_nothing_gains_by_losing(self):
        inquisitor = Inquisitor(space(), reactions(), TOP)
        choices = space().sample(30, seeds.stream(2, "networks"))
        inquisitor.observe(choices, seeds.stream(3, "metrics").uniform(0.2, 0.9, 30), [])
        for own in inquisitor.insight().costs:
            self.assertTrue((own >= 0).all())
            self.assertTrue((np.diff(own) <= 1e-12).all())  # less, the wider it is

    def test_finds_what_any_cut_costs(self):
        inquisitor = Inquisitor(space(), reactions(), TOP)
        choices = space().sample(400, seeds.stream(2, "networks"))
        choices = choices[truth(choices).argsort()][-60:]  # random networks are mostly cut a lot
        strain = summed(inquisitor.insight().strains, choices)
        odds = log_odds(truth(choices)) - 0.5 * strain / (strain + 0.1)
        inquisitor.observe(choices, 1.0 / (1.0 + np.exp(-odds)), [])
        insight = inquisitor.insight()
        self.assertAlmostEqual(insight.any_cut, 0.5, delta=0.1)
        self.assertLess(np.abs(insight.log_odds(choices) - odds).mean(), 0.05)
        whole = space().choices([space().point({})])
        self.assertAlmostEqual(insight.log_odds(whole)[0], log_odds(TOP))
        again = Insight.restored(space(), insight.state())
        np.testing.assert_array_equal(again.log_odds(choices), insight.log_odds(choices))
        surrogate = InsightSurrogate.of(space(), insight, np.zeros(3), PerformanceScale(0.4, 0.9))
        found = log_odds(surrogate.predict(choices).metric)
        np.testing.assert_allclose(found, insight.log_odds(choices))

    def test_what_caution_networks_would_have_needed(self):
        insight = Inquisitor(space(), reactions(), TOP).insight()
        whole = space().choices([space().point({})])
        cut = space().choices([space().point({space().decisions[0].name: 8})])
        choices = np.concatenate([whole, cut, cut, cut])
        expected = log_odds(TOP) - insight.log_odds(cut)[0]
        self.assertGreater(expected, 0.1)
        odds = log_odds(0.8) + np.array([0.0, 0.0, -0.3, 0.5])
        found = gensynth_training.needed_caution(
            insight, 0.1, choices, 1.0 / (1.0 + np.exp(-odds)), [0.8, 0.8, 0.8, np.nan]
        )
        # Nothing was expected to be lost of the whole; of the others twice that, up to 0.1 more.
        np.testing.assert_allclose(found, [0.0, 0.1, 0.4])

    def test_an_insight_of_another_space_is_refused(self):
        state = Inquisitor(space(), reactions(), TOP).insight().state()
        other = Prototype(mlp([16, 3], [8, 8], 4), (4,)).space("q")
        with self.assertRaisesRegex(ValueError, "another space"):
            Insight.restored(other, state)

    def test_intervals_and_gains(self):
        insight = Inquisitor(space(), reactions(), TOP).insight()
        residuals = np.array([-0.4, -0.2, 0.0, 0.2, 0.4])
        surrogate = InsightSurrogate.of(space(), insight, residuals, PerformanceScale(0.4, 0.9))
        whole = space().choices([space().point({})])
        found = surrogate.predict(whole, 0.75)
        self.assertAlmostEqual(found.metric[0], TOP)
        self.assertAlmostEqual(found.low[0], 1 / (1 + np.exp(0.2 - log_odds(TOP))))
        # 0.9 lies three quarters of the way from 0.6, which reached 0.8, to 1.0, which reached 1.0.
        self.assertFalse(surrogate.tuned)
        tuned = surrogate.with_gain(np.array([[1.0, 1.0], [0.6, 0.8]]))
        self.assertTrue(tuned.tuned)
        self.assertAlmostEqual(tuned.predict(whole).metric[0], 0.95)
        # Below the least it reaches in proportion: 0.9 / 0.95 of 0.95.
        low = surrogate.with_gain(np.array([[0.95, 0.95], [1.0, 1.0]])).predict(whole)
        self.assertAlmostEqual(low.metric[0], 0.9)
        # Above the most it gains as much; nothing reaches more than 1, or less than what scored
        # less did, so that an interval's ends stay in order.
        odd = surrogate.with_gain(np.array([[0.5, 0.7], [0.6, 0.65], [0.8, 0.95]])).predict(whole)
        self.assertEqual(odd.metric[0], 1.0)
        odd = surrogate.with_gain(np.array([[0.9, 0.7], [0.95, 0.65], [1.0, 0.95]])).predict(whole)
        self.assertAlmostEqual(odd.metric[0], 0.675)  # the mean of two that disagree
        steep = surrogate.with_gain(np.array([[0.74, 0.892], [0.84, 0.885]]))
        found = steep.predict(space().sample(200, seeds.stream(5, "networks")))
        self.assertTrue((found.low <= found.metric).all() and (found.metric <= found.high).all())
        self.assertLessEqual(found.high.max(), 1.0)

    def test_nothing_is_expected_to_gain_by_a_loss(self):
        # Networks surprised by 0.5 more than was expected; yet the whole one has what it has.
        insight = Inquisitor(space(), reactions(), TOP).insight()
        surprised = np.array([0.4, 0.5, 0.6])
        surrogate = InsightSurrogate.of(space(), insight, surprised, PerformanceScale(0.4, 0.9))
        networks = space().sample(50, seeds.stream(5, "networks"))
        networks = np.concatenate([space().choices([space().point({})]), networks])
        found = surrogate.predict(networks, 0.75)
        self.assertAlmostEqual(found.metric[0], TOP)
        self.assertLessEqual(found.metric.max(), TOP + 1e-12)
        self.assertTrue((found.low <= found.metric).all() and (found.metric <= found.high).all())
        odds = insight.log_odds(networks) + 0.5
        below = odds < log_odds(TOP)
        self.assertGreater(below.sum(), 10)
        np.testing.assert_allclose(found.metric[below], 1 / (1 + np.exp(-odds[below])))

    def test_trainings_scatter(self):
        insight = Inquisitor(space(), reactions(), TOP).insight()
        surrogate = InsightSurrogate.of(space(), insight, np.zeros(5), PerformanceScale(0.4, 0.9))
        tuned = surrogate.with_gain(np.array([[0.0, 0.0], [1.0, 1.0]]))
        whole = space().choices([space().point({})])
        # Nothing but what trainings differ by: 1.2816 deviations of 0.05 from the log-odds of 0.9.
        found = tuned.predict(whole, 0.9)
        odds = np.log(9.0) + np.array([-1.2816, 1.2816]) * 0.05
        np.testing.assert_allclose(
            [found.low[0], found.high[0]], 1 / (1 + np.exp(-odds)), atol=1e-5
        )
        np.testing.assert_array_equal(tuned.predict(whole, 0.5).low, tuned.predict(whole, 0.5).high)

    def test_a_score_is_known(self):
        insight = Inquisitor(space(), reactions(), TOP).insight()
        residuals = np.array([-0.4, -0.2, 0.0, 0.2, 0.4])
        surrogate = InsightSurrogate.of(space(), insight, residuals, PerformanceScale(0.4, 0.9))
        self.assertIsNone(surrogate.scored)
        networks = np.unique(space().sample(9, seeds.stream(3, "networks")), axis=0)
        knowing = surrogate.knowing(networks[1:3], np.array([0.7, 0.8]))
        np.testing.assert_array_equal(knowing.scored, networks[1:3])
        # A store has its records in another order.
        stored = surrogate.knowing(networks[2:0:-1], np.array([0.8, 0.7])).state()
        for name, array in knowing.state().items():
            np.testing.assert_array_equal(stored[name], array)
        found = knowing.predict(networks)
        for name in ("low", "metric", "high"):
            np.testing.assert_allclose(getattr(found, name)[1:3], [0.7, 0.8])
        graph = knowing.predict_in(tensors, tf.constant(networks), 0.95)
        np.testing.assert_allclose(graph.metric, found.metric)
        again = InsightSurrogate(space(), knowing.state()).predict(networks)
        np.testing.assert_array_equal(again.metric, found.metric)

    def test_neighbours_are_expected_to_surprise_alike(self):
        insight = Inquisitor(space(), reactions(), TOP).insight()
        surrogate = InsightSurrogate.of(space(), insight, np.zeros(3), PerformanceScale(0.4, 0.9))
        point = {"width_stem": 12, **{d.name: d.values[len(d.values) // 2]
                                      for d in space().decisions[1:]}}  # fmt: skip
        near, far = {**point, "width_stem": 8}, {d.name: d.values[0] for d in space().decisions}
        networks = space().choices([space().point(values) for values in (point, near, far)])
        expected = insight.log_odds(networks)
        knowing = surrogate.knowing(networks[:1], 1.0 / (1.0 + np.exp(-(expected[:1] - 0.3))))
        moved = expected - log_odds(knowing.predict(networks).metric)
        # Of the surprise, 0.15^2 / (0.15^2 + 0.08^2) = 0.7785 is believed. A third of the menu of
        # stems away it is exp(-(1/3)^2 / (2 * 0.8^2)) = 0.9169 of that.
        np.testing.assert_allclose(moved[:2], [0.3, 0.3 * 0.7785 * 0.9169], rtol=1e-3)
        self.assertLess(moved[2], 0.3 * 0.7785 * np.exp(-0.25 * 6 / (2 * 0.64)) + 1e-9)


class GeneratorTest(absltest.TestCase):
    def test_seeds_give_different_networks_that_meet_the_requirement(self):
        generator, _ = fitted()
        scores = []
        for place in (0.8, 0.5, 0.2):
            required = TOP - CONFIG.reach * (1.0 - place)
            networks = generator.sample(np.full(64, place), seed=7)
            self.assertGreater(len(np.unique(networks, axis=0)), 4)
            # Those that the inquisitor misjudges are a little below.
            self.assertGreater(np.mean(truth(networks) >= required - 0.01), 0.8)
            scores.append(score(networks, truth(networks)).mean())
        # U, of which accuracy is a part, is nearly flat here: what is asked less has no less of it.
        self.assertGreater(min(scores[1:]), scores[0] - 0.5)

    def test_at_equal_evaluations_it_beats_random_points_and_a_uniform_multiplier(self):
        generator, trials = fitted()
        evaluations = len(trials.metrics)
        self.assertEqual(evaluations, 1 + CONFIG.cycles * CONFIG.networks)
        drawn = space().sample(evaluations, seeds.stream(4, "random"))
        sizes = np.array([len(d.values) for d in space().decisions])
        uniform = np.array([np.ceil(sizes * step / 32).astype(int) - 1 for step in range(1, 33)])
        surrogate = generator.surrogate(PerformanceScale.of(trials.metrics))
        for required in (0.87, 0.82, 0.75):
            (answer,) = Selector(count=1, confidence=0.5, ranking=Ranking("netscore")).select(
                space(), generator, surrogate, CostModel(space()),
                Budget({}, ("accuracy", required)), "gensynth", 0,
            )  # fmt: skip
            own = space().choices([answer.architecture])
            self.assertGreater(truth(own)[0], required - 0.01)
            best = score(own, truth(own))[0]
            for others in (drawn, uniform):
                kept = others[truth(others) >= required]
                rivals = score(kept, truth(kept))
                self.assertGreater(best, rivals.max() if len(kept) else -np.inf, required)

    def test_a_prototype_that_knows_nothing_is_refused(self):
        evidence = Evidence(
            space(),
            CostModel(space()),
            evaluate=lambda networks, seed: [Record(networks[0], "d", "r", 0, 0.0, 0.0)],
            probe=lambda networks: [reactions()],
        )
        with self.assertRaisesRegex(errors.UsageError, "scores 0.0000: nothing to learn from"):
            gensynth.Gensynth().fit(evidence, CONFIG, 1)

    def test_wrong_configurations_are_refused(self):
        for wrong in ({"cycles": 0}, {"probed": 99}, {"reach": 0.0}, {"taste": -1.0}):
            with self.assertRaisesRegex(ValueError, "generative synthesis needs positive"):
                gensynth.GensynthConfig(**wrong)


if __name__ == "__main__":
    absltest.main()
