"""A Gaussian process, against formulas; who predicts near a budget, and how sure."""

import numpy as np
from absl.testing import absltest

from tests.evidence.scored import records
from tfgen import seeds
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.cost.metrics import PerformanceScale
from tfgen.evidence import gaussian_process, local_surrogate, surrogate
from tfgen.space import catalog
from tfgen.space.encoding import Encoding

SPACE = catalog.get("quartic_mlp")
COSTS = CostModel(SPACE)
BUDGET = Budget({"storage_kb": 1.0, "energy_uj": 0.01})


class GaussianProcessTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.random = np.random.default_rng(1)
        self.x = self.random.random((40, 3))
        self.y = np.sin(6 * self.x[:, 0]) + 0.1 * self.random.normal(size=40)

    def test_a_kernel_one_length_away(self):
        # (1 + sqrt 5 + 5 / 3) exp(-sqrt 5)
        distance = gaussian_process._distances(np.zeros((1, 2)), np.array([[0.6, 0.8]]))
        self.assertAlmostEqual(gaussian_process._matern(distance)[0, 0], 0.5239941, places=6)

    def test_the_gradient_is_that_of_the_likelihood(self):
        at = self.random.normal(size=5) * 0.3
        value, gradient = gaussian_process._negative_log_likelihood(at, self.x, self.y)
        for number in range(5):
            moved = at.copy()
            moved[number] += 1e-6
            other, _ = gaussian_process._negative_log_likelihood(moved, self.x, self.y)
            self.assertAlmostEqual((other - value) / 1e-6, gradient[number], delta=1e-3)

    def test_it_predicts_as_the_formula_says_and_leaves_out(self):
        process = gaussian_process.fit(self.x, self.y, np.arange(30))
        new = self.random.random((7, 3))
        mean, deviation = process.predict(new)
        expected, spread = self.conditioned(process, self.x, self.y, new)
        np.testing.assert_allclose(mean, expected, atol=1e-5)
        np.testing.assert_allclose(deviation, spread, atol=1e-5)
        errors, unsure = process.left_out()
        for number in (0, 17, 39):
            others = np.arange(40) != number
            expected, spread = self.conditioned(
                process, self.x[others], self.y[others], self.x[[number]]
            )
            self.assertAlmostEqual(errors[number], expected[0] - self.y[number], places=5)
            whole = np.hypot(spread[0], process.noise_deviation)
            self.assertAlmostEqual(unsure[number], whole, places=5)

    def conditioned(self, process, x, y, new):
        """Mean and deviation at new points, by inverting the covariance."""

        def kernel(a, b):
            apart = (a[:, None] - b[None]) / process.lengths
            r = np.sqrt(5 * np.square(apart).sum(axis=2))
            return process.amplitude * (1 + r + r**2 / 3) * np.exp(-r)

        inverse = np.linalg.inv(kernel(x, x) + process.noise * np.eye(len(x)))
        shared = kernel(new, x)
        mean = process.mean + shared @ inverse @ (y - process.mean)
        variance = process.amplitude - np.einsum("no,op,np->n", shared, inverse, shared)
        return mean, process.scale * np.sqrt(np.maximum(variance, 0))

    def test_it_finds_what_matters_and_the_noise(self):
        process = gaussian_process.fit(self.x, self.y, np.arange(40))
        self.assertLess(5 * process.lengths[0], process.lengths[1:].min())
        # Of 40 points with noise 0.1, to within a third: three standard errors.
        self.assertBetween(process.noise_deviation, 0.066, 0.134)


def scored(choices, random):
    """What networks are worth: wide ones are good; the step from 0.98 to 0.99 is one as any."""
    active, widths = SPACE.active(choices), [SPACE.index[f"width_{n}"] for n in (1, 2, 3, 4)]
    wide = (np.log1p(choices[:, widths]) * active[:, widths]).mean(axis=1)
    return 1.0 - np.exp(-(0.5 + wide + 0.1 * random.normal(size=len(choices))))


class LocalSurrogateTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.random = seeds.stream(1, "records")
        choices = SPACE.sample(3000, cls.random)
        metrics = scored(choices, cls.random)
        cls.scale = PerformanceScale.of(metrics.tolist())
        cls.config = surrogate.SurrogateConfig(members=1, units=8, steps=60)
        cls.encoder = surrogate.fit(
            SPACE, records(SPACE, choices, metrics), cls.scale, cls.config, 1
        )

    def within(self):
        choices = SPACE.sample(8000, self.random)
        costs = COSTS.costs(choices)
        kept = np.logical_and.reduce([costs[m] <= v for m, v in BUDGET.limits.items()])
        return choices[kept][:1000]

    def test_near_a_budget_it_is_better_than_the_encoder_and_as_sure_as_it_says(self):
        local = local_surrogate.near(self.encoder, COSTS, BUDGET)
        self.assertIsInstance(local, local_surrogate.LocalSurrogate)
        choices = self.within()
        self.assertLen(choices, 1000)
        metrics = scored(choices, self.random)
        told, before = local.predict(choices, 0.9), self.encoder.predict(choices, 0.9)
        self.assertLess(
            np.abs(told.metric - metrics).mean(), np.abs(before.metric - metrics).mean()
        )
        # A tenth lies beyond each end, +-0.009 of 1,000 networks and +-0.019 of the 256 records
        # that the ends are of: three of both together are 0.063.
        self.assertBetween((metrics < told.low).mean(), 0.037, 0.163)
        self.assertBetween((metrics > told.high).mean(), 0.037, 0.163)
        self.assertTrue((told.low <= told.metric).all() and (told.metric <= told.high).all())
        span = self.scale.high - self.scale.low
        np.testing.assert_allclose(told.performance, (told.metric - self.scale.low) / span)

    def test_ends_hold_where_a_network_has_many_coordinates(self):
        # 89 coordinates and 400 records: lengths fit what they were fitted to, and nothing else.
        space = catalog.get("mnist_mobile")
        choices = space.sample(1400, self.random)
        at = Encoding(space).coordinates(choices)
        self.assertEqual(at.shape[1], 89)
        slopes = self.random.normal(0.0, 0.2, 89)
        told = 1.5 + (at - at.mean(axis=0)) @ slopes + 0.2 * self.random.normal(size=len(at))
        metrics = 1.0 - np.exp(-told)
        scale = PerformanceScale.of(metrics.tolist())
        encoder = surrogate.fit(
            space, records(space, choices[:400], metrics[:400]), scale, self.config, 1
        )
        local = local_surrogate.near(encoder, CostModel(space), Budget({"macs": 1e9}))
        self.assertIsInstance(local, local_surrogate.LocalSurrogate)
        found = local.predict(choices[400:], 0.9)
        # As above, of 200 records that the ends are of: +-0.009 and +-0.021.
        self.assertBetween((metrics[400:] < found.low).mean(), 0.03, 0.17)
        self.assertBetween((metrics[400:] > found.high).mean(), 0.03, 0.17)

    def test_a_failed_training_is_only_bad(self):
        choices = self.within()[:50]
        plain = local_surrogate.near(self.encoder, COSTS, BUDGET).predict(choices).metric
        known = self.encoder.known
        metrics = np.where(known.metrics < self.encoder.floor, -1e9, known.metrics)
        worst = int(np.argmin(known.metrics))
        metrics[worst] = -1e9
        failed = surrogate.Known(known.choices, metrics, known.unseen)
        again = surrogate.Surrogate(SPACE, {**self.encoder.state(), **failed.state()})
        told = local_surrogate.near(again, COSTS, BUDGET).predict(choices).metric
        np.testing.assert_allclose(told, plain, atol=0.02)

    def test_optimism_adds_what_is_not_sure(self):
        choices = self.within()[:50]
        plain = local_surrogate.near(self.encoder, COSTS, BUDGET).predict(choices).metric
        hopeful = local_surrogate.near(self.encoder, COSTS, BUDGET, 1.0).predict(choices).metric
        self.assertTrue((hopeful > plain).all())

    def test_files_that_fall_short_of_records_widen_the_intervals(self):
        choices = self.within()[:50]
        plain = local_surrogate.near(self.encoder, COSTS, BUDGET).predict(choices)
        gap = self.encoder.with_gap(np.full(20, -2.0))
        told = local_surrogate.near(gap, COSTS, BUDGET).predict(choices)
        # Gaps are measured in the encoder's scatters.
        span = self.scale.high - self.scale.low
        scatter = self.encoder.predict(choices).scatter * span
        np.testing.assert_allclose(told.low, plain.low - 2.0 * scatter)
        np.testing.assert_allclose(told.high, plain.high)

    def test_the_encoder_answers_elsewhere(self):
        for name, budget, encoder in (
            ("no limit", Budget({}, ("r2", 0.5)), self.encoder),
            ("no network is so small", Budget({"storage_kb": 1e-6}), self.encoder),
            ("no records", BUDGET, surrogate.Surrogate(SPACE, self.without_records())),
        ):
            with self.subTest(name):
                self.assertIs(local_surrogate.near(encoder, COSTS, budget), encoder)

    def test_the_encoder_answers_where_it_is_better(self):
        knowing = Oracle(SPACE, self.encoder.state())
        self.assertIs(local_surrogate.near(knowing, COSTS, BUDGET), knowing)

    def without_records(self):
        return {k: v for k, v in self.encoder.state().items() if not k.startswith("known")}

    def test_records_are_known_from_the_state_and_further_ones_are_unseen(self):
        again = surrogate.Surrogate(SPACE, self.encoder.state())
        known = again.known
        self.assertEqual(known.choices.shape, (3000, len(SPACE.decisions)))
        self.assertEqual(known.unseen.sum(), 600)  # a fifth is held out
        self.assertEqual(again.state()["known"].dtype, np.uint8)
        choices = SPACE.sample(5, self.random)
        more = again.knowing(records(SPACE, choices, np.arange(5.0))).known
        np.testing.assert_array_equal(more.choices[-5:], choices)
        np.testing.assert_array_equal(more.metrics[-5:], np.arange(5.0))
        self.assertEqual(more.unseen.sum(), 605)


class Oracle(surrogate.Surrogate):
    """An encoder that is off by nothing."""

    def predict(self, choices, confidence=0.95):
        told = super().predict(choices, confidence)
        rows = {
            tuple(row): metric
            for row, metric in zip(self.known.choices, self.known.metrics, strict=True)
        }
        metric = np.array([rows[tuple(row)] for row in choices])
        return surrogate.Prediction(told.performance, told.scatter, metric, metric, metric)


if __name__ == "__main__":
    absltest.main()
