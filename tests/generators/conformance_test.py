"""What every method must do, and what NAGAN must do beside; the encoder that teaches it."""

import dataclasses
import functools
import io
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from tests.deployment import c_loader
from tests.space.small import small_space
from tfgen import errors, generators, seeds
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.cost.metrics import PerformanceScale
from tfgen.deployment.served import Answerer, Requests
from tfgen.deployment.serving import SIGNATURE, Served
from tfgen.evidence import posterior, surrogate
from tfgen.evidence.reactions import Reactions
from tfgen.evidence.record import Record
from tfgen.generators import gensynth, nag, nagan, sgnas
from tfgen.generators.base import Asked, Evidence
from tfgen.selection import Selector
from tfgen.space import catalog

SPACE = small_space()
NOISE = 0.02
# Small enough for a test; a method without an entry runs with its defaults.
TAUGHT = nagan.NaganConfig(
    units=16, teaching_chains=1000, teaching_kept=5, teaching_steps=600, teaching_rate=1e-2
)
RANKED = nag.NagConfig(
    costs=("macs", "storage_kb"),
    budgets=5,
    embedding=16,
    units=16,
    steps=400,
    samples=16,
    learning_rate=1e-2,
    evaluator_members=2,
    evaluator_units=32,
    evaluator_steps=300,
    evaluator_records=32,
)
CONFIGS = {
    # Of so few networks the best one is far better than others, whatever the taste.
    "gensynth": gensynth.GensynthConfig(cycles=3, networks=6, steps=100, taste=3.0),
    "nag": RANKED,
    "nagan": TAUGHT,
    "sgnas": sgnas.SgnasConfig(costs=("macs", "storage_kb"), steps=200),
}
ENCODER = surrogate.SurrogateConfig(members=2, units=32, steps=1500, batch_size=64)
BUDGETS = [Budget.parse("storage_kb=0.02"), Budget.parse("r2=0.3"), Budget.parse("r2=0.3,macs=9")]


def true_metric(choices: np.ndarray) -> np.ndarray:
    """A made-up truth: wider and deeper is better, from 0.1 to 0.6."""
    widths = choices[:, 1] + np.where(choices[:, 0] == 1, choices[:, 3] + 1, 0)
    return 0.1 + 0.1 * widths


def records(count: int, seed: int) -> list[Record]:
    random = seeds.stream(seed, "records")
    choices = SPACE.sample(count, random)
    metrics = true_metric(choices) + NOISE * random.normal(size=count)
    return [
        Record(SPACE.architecture(row), "data", "recipe", number, float(metric), 0.0)
        for number, (row, metric) in enumerate(zip(choices, metrics, strict=True))
    ]


@functools.cache
def evidence() -> Evidence:
    made = records(800, seed=1)
    scale = PerformanceScale.of([r.metric for r in made])
    encoder = surrogate.fit(SPACE, made, scale, ENCODER, seed=2)
    return Evidence(SPACE, CostModel(SPACE), made, encoder, evaluate, probe=probe)


def evaluate(architectures, seed: int) -> list[Record]:
    metrics = true_metric(SPACE.choices(architectures))
    return [
        Record(architecture, "data", "recipe", seed + number, float(metric), 0.0)
        for number, (architecture, metric) in enumerate(zip(architectures, metrics, strict=True))
    ]


def probe(architectures) -> list[Reactions]:
    """Every decision matters alike, and its values lose what they lack."""
    lost = tuple(np.linspace(1.0, 0.0, len(d.values)) for d in SPACE.decisions)
    return [Reactions(np.ones(len(SPACE.decisions)), lost) for _ in architectures]


@functools.cache
def fitted(method: str, seed: int = 3):
    chosen = generators.get(method)
    return chosen.fit(evidence(), CONFIGS.get(method, chosen.config()), seed)


class ConformanceTest(parameterized.TestCase):
    @parameterized.parameters(*generators.METHODS)
    def test_name_and_configuration(self, name):
        method = generators.get(name)
        self.assertEqual(method.name, name)
        method.config()  # has defaults for everything

    @parameterized.parameters(*generators.METHODS)
    def test_missing_evidence_is_named_before_any_work(self, name):
        method = generators.get(name)
        if method.needs:
            with self.assertRaisesRegex(errors.UsageError, f"{name}.*{min(method.needs)}"):
                method.fit(Evidence(SPACE, CostModel(SPACE)), method.config(), 0)

    @parameterized.parameters(*generators.METHODS)
    def test_proposals_are_canonical_points_as_many_as_asked(self, name):
        for count in (1, 7, 300):
            answers = fitted(name).propose(BUDGETS, count, seed=5)
            self.assertLen(answers, len(BUDGETS))
            for answer in answers:
                self.assertEqual(answer.choices.shape, (count, len(SPACE.decisions)))
                np.testing.assert_array_equal(SPACE.canonical(answer.choices), answer.choices)

    @parameterized.parameters(*generators.METHODS)
    def test_equal_seeds_give_equal_proposals_and_other_seeds_others(self, name):
        first = fitted(name).propose(BUDGETS[:1], 50, seed=5)[0].choices
        again = fitted(name).propose(BUDGETS[:1], 50, seed=5)[0].choices
        other = fitted(name).propose(BUDGETS[:1], 50, seed=6)[0].choices
        np.testing.assert_array_equal(first, again)
        self.assertFalse(np.array_equal(first, other))

    @parameterized.parameters(*generators.METHODS)
    def test_an_answer_does_not_depend_on_its_neighbours(self, name):
        together = fitted(name).propose(BUDGETS, 40, seed=5)
        for budget, answer in zip(BUDGETS, together, strict=True):
            alone = fitted(name).propose([budget], 40, seed=5)[0]
            np.testing.assert_array_equal(alone.choices, answer.choices)

    @parameterized.parameters(*generators.METHODS)
    def test_a_restored_generator_proposes_the_same(self, name):
        buffer = io.BytesIO()
        np.savez(buffer, **fitted(name).state())
        buffer.seek(0)
        with np.load(buffer) as archive:
            state = {key: archive[key] for key in archive.files}
        restored = generators.get(name).restore(SPACE, state)
        for before, after in zip(
            fitted(name).propose(BUDGETS, 64, seed=9),
            restored.propose(BUDGETS, 64, seed=9),
            strict=True,
        ):
            np.testing.assert_array_equal(before.choices, after.choices)

    @parameterized.parameters(*generators.METHODS)
    def test_a_graph_draws_what_numpy_draws(self, name):
        # Sums in float64 differ by 1e-15 of a share: 2,000 draws of six decisions fall on another
        # side once in a hundred million runs.
        from tfgen.nets import tensors
        from tfgen.nets.keras_compat import tf

        generator, costs = fitted(name), evidence().cost_model
        asked = [Asked.of(budget, seed) for budget in BUDGETS for seed in (5, 2**40 + 7)]

        def counted(choices):
            found = costs.costs(choices.numpy())
            return {metric: tf.constant(values) for metric, values in found.items()}

        def joined(parts):
            return tf.constant(np.concatenate(parts))

        together = Asked(
            joined([a.limits for a in asked]),
            joined([a.least for a in asked]),
            joined([a.has_least for a in asked]),
            tuple(joined([a.key[word] for a in asked]) for word in range(2)),
        )
        found = generator.draws(tensors, together, 300, counted)
        for number, one in enumerate(asked):
            own = generator.draws(np, one, 300, costs.costs)
            np.testing.assert_array_equal(found.choices[number].numpy(), own.choices[0])
            if own.conditions is not None:
                np.testing.assert_allclose(found.conditions[number].numpy(), own.conditions[0])

    @parameterized.parameters(*generators.METHODS)
    def test_what_is_served_answers_as_it_does(self, name):
        from tfgen.deployment import serving_export

        selector = Selector(count=3, draws=16, max_rounds=1, refinements=0)
        told = evidence()
        answer = Answerer(SPACE, fitted(name), told.surrogate, told.cost_model, "r2", selector)
        served = Served("tfgen", SPACE.name, name, answer.metrics, answer.costs, 3, 16, (1, 9))
        base = pathlib.Path(self.create_tempdir().full_path) / "tfgen"
        # Compares the saved graph's answers with the generator's own, and raises where they differ.
        version = serving_export.export(answer, served, base, config={}, parents={})
        self.assertEqual(Served.read(version), served)
        requests = Requests.of(answer.metrics, BUDGETS, [5, 2**40 + 7, -3])
        expected = answer(np, requests)
        found = c_loader.Session(version).run(SIGNATURE, requests.inputs)
        np.testing.assert_array_equal(found["choices"], expected.choices)
        np.testing.assert_allclose(found["metric_low"], expected.metric_low, rtol=1e-9)
        # And selection with one round answers alike.
        for row, (budget, seed) in enumerate(zip(BUDGETS, (5, 2**40 + 7, -3), strict=True)):
            try:
                selected = selector.select(
                    SPACE, fitted(name), told.surrogate, told.cost_model, budget, name, seed
                )
            except errors.InfeasibleBudgetError:
                selected = []
            answered = expected.choices[row][expected.valid[row]].tolist()
            self.assertEqual(answered, [list(c.architecture.choices) for c in selected])

    @parameterized.parameters(*generators.METHODS)
    def test_equal_seeds_fit_equal_generators(self, name):
        method = generators.get(name)
        few = {"units": 8, "teaching_chains": 100, "teaching_kept": 1, "teaching_steps": 20}
        small = {
            "gensynth": gensynth.GensynthConfig(cycles=1, networks=4, steps=20),
            "nag": dataclasses.replace(RANKED, steps=20, evaluator_steps=20),
            "nagan": nagan.NaganConfig(**few, steps=20),
            "sgnas": sgnas.SgnasConfig(costs=("macs",), steps=20, batch_size=8),
        }
        config = small.get(name, method.config())
        states = [method.fit(evidence(), config, 4).state() for _ in range(2)]
        self.assertEqual(states[0].keys(), states[1].keys())
        for key, value in states[0].items():
            np.testing.assert_array_equal(value, states[1][key], key)

    def test_an_unknown_method_names_the_known(self):
        with self.assertRaisesRegex(
            errors.UsageError, "unknown method 'ngan'; known: gensynth, nag, nagan"
        ):
            generators.get("ngan")


class NaganTest(absltest.TestCase):
    def test_networks_perform_as_conditioned(self):
        # The truth takes six values over 0.1..0.6: steps of 0.2 in normalised performance, so a
        # perfect generator of single networks is off by 0.05 on average over conditions on a grid
        # of 0.1; random draws are off by about 0.35.
        conditions = np.repeat(np.arange(1, 11) / 10, 100)
        choices = fitted("nagan").draw(conditions, seed=7)
        scale = evidence().surrogate.scale
        distance = np.abs(scale.normalise(true_metric(choices)) - conditions)
        random = SPACE.sample(1000, seeds.stream(8, "s"))
        random_distance = np.abs(scale.normalise(true_metric(random)) - conditions)
        self.assertLess(distance.mean(), 0.12)
        self.assertGreater(random_distance.mean(), 0.25)

    def test_a_condition_beyond_the_scale_is_its_nearer_end(self):
        draw = fitted("nagan").draw
        for beyond, end in ((-0.1, 0.0), (-7.0, 0.0), (1.1, 1.0), (5.0, 1.0)):
            found, expected = draw(np.full(50, beyond), seed=7), draw(np.full(50, end), seed=7)
            np.testing.assert_array_equal(found, expected)

    def test_networks_differ_at_one_condition(self):
        choices = fitted("nagan").draw(np.full(200, 0.5), seed=7)
        self.assertGreater(len(np.unique(choices, axis=0)), 10)

    def test_algorithm_1_alone_keeps_conditions_too(self):
        # Nearer than random draws, at 0.35, however little of it there is in a test.
        # Six performances in all leave little room for entropy: most others perform differently.
        config = nagan.NaganConfig(
            teaching_steps=0,
            units=16,
            steps=600,
            generator_rate=1e-2,
            entropy_weight=0.0,
            least_entropy=2.0,
        )
        generator = nagan.Nagan().fit(evidence(), config, 3)
        conditions = np.repeat(np.arange(1, 11) / 10, 100)
        performance = evidence().surrogate.scale.normalise(
            true_metric(generator.draw(conditions, seed=7))
        )
        self.assertLess(np.abs(performance - conditions).mean(), 0.2)

    def test_a_configuration_that_teaches_nothing_is_refused(self):
        for wrong in (
            {"teaching_steps": 0},
            {"teaching_rate": 0.0},
            {"teaching_repeats": 1.5},
            {"batch_size": 1, "diversity_weight": 0.1},
        ):
            with self.assertRaises(ValueError):
                nagan.NaganConfig(**wrong)

    def test_every_variant_fits(self):
        few = {"units": 8, "teaching_steps": 0, "steps": 20, "batch_size": 9}
        for changed in (
            {"straight_through": False},
            {"diversity_weight": 0.1},
            {"spectral_norm": True},
            {"condition_noise": 0.05},
        ):
            config = nagan.NaganConfig(**few, **changed)
            generator = nagan.Nagan().fit(evidence(), config, 4)
            for name, array in generator.state().items():
                self.assertTrue(np.isfinite(array).all(), (changed, name))

    def test_conditions_fall_to_the_users_limit_and_never_below(self):
        scale = evidence().surrogate.scale
        for text, least in (("r2=0.4", scale.normalise(0.4)), ("storage_kb=1", 0.0)):
            (answer,) = fitted("nagan").propose([Budget.parse(text)], 110, seed=1)
            self.assertAlmostEqual(answer.conditions.max(), 1.0)
            self.assertAlmostEqual(answer.conditions.min(), float(least))
            self.assertLen(np.unique(answer.conditions), 11)

    def test_no_uniform_number_draws_a_choice_that_does_not_exist(self):
        encoding = evidence().surrogate.encoding
        state = fitted("nagan").state()
        for u in (0.0, 0.5, 1.0 - 2**-24, 1.0):
            uniform = np.full((64, len(SPACE.decisions)), u, np.float32)
            c = np.full(64, 0.5, np.float32)
            choices = nagan.draw(np, encoding, state, c, uniform)
            SPACE.canonical(choices)  # refuses an index out of range


class PosteriorTest(absltest.TestCase):
    def test_chains_draw_as_often_as_the_posterior_says(self):
        # All 84 networks can be listed, so p(x | c) is known: how often sampling draws each, times
        # exp(-d / T). 4,000 chains of conditions in 0.6..0.7, three states of each: with 12,000
        # states, were they independent, half the summed differences would be some
        # sqrt(84 / 12,000) / 2.5 = 0.033; the same without the last factor is 0.3 away.
        encoder, temperature = evidence().surrogate, 0.1
        networks = SPACE.choices(list(SPACE.enumerate()))
        choices, conditions = posterior.sample(encoder, temperature, 1.0, 40_000, 3, seed=1)
        own = (conditions >= 0.6) & (conditions < 0.7)
        rank = {tuple(row): number for number, row in enumerate(networks.tolist())}

        def shares(rows):
            counts = np.bincount([rank[tuple(row)] for row in rows.tolist()], minlength=84)
            return counts / counts.sum()

        prior = shares(SPACE.sample(200_000, seeds.stream(2, "prior")))
        expected = np.zeros(84)
        for c in np.linspace(0.6, 0.7, 11):
            distance = encoder.expected_distance(networks, np.full(84, c))
            weights = prior * np.exp(-distance / temperature)
            expected += weights / weights.sum() / 11
        found = shares(choices[own])
        self.assertLess(np.abs(found - expected).sum() / 2, 0.06)
        self.assertGreater(np.abs(found - prior).sum() / 2, 0.2)

    def test_without_a_condition_chains_draw_as_sampling_does(self):
        # A temperature at which every step is taken: each depth of four is drawn by a quarter,
        # +- 0.008 of 3,000 chains, were they independent of their start; five deviations.
        space = catalog.get("california_housing_mlp")
        random = seeds.stream(1, "chains")
        states = space.sample(3000, random)
        for _ in range(100):
            states = posterior._proposed(space, states, random)
        shares = np.bincount(states[:, 0], minlength=4) / 3000
        np.testing.assert_allclose(shares, 0.25, atol=0.04)

    def test_conditions_are_spread_evenly(self):
        _, conditions = posterior.sample(evidence().surrogate, 0.01, 0.25, 100, 2, seed=1)
        self.assertLen(conditions, 200)
        np.testing.assert_array_equal(np.floor(conditions[:100] * 100 + 1e-9), np.arange(100))


class SurrogateTest(absltest.TestCase):
    def test_predicts_the_truth(self):
        choices = SPACE.choices(list(SPACE.enumerate()))
        prediction = evidence().surrogate.predict(choices)
        # All 84 networks from 800 noisy records: most are seen about ten times, some never.
        self.assertLess(np.abs(prediction.metric - true_metric(choices)).mean(), 0.02)

    def test_intervals_cover_new_records_as_often_as_they_say(self):
        # 2,000 new records; calibrated on 160, a 95 % end covers 0.95 with standard deviation
        # sqrt(0.95 * 0.05 * (1/160 + 1/2000)) = 0.018: below 0.88 once in 10,000 seeds.
        fresh = records(2000, seed=99)
        choices = SPACE.choices([r.architecture for r in fresh])
        metrics = np.array([r.metric for r in fresh])
        prediction = evidence().surrogate.predict(choices, confidence=0.95)
        self.assertGreater((metrics >= prediction.low).mean(), 0.88)
        self.assertGreater((metrics <= prediction.high).mean(), 0.88)
        # And they are not trivially wide: 90 % of normal noise lies within 3.3 deviations.
        width = np.median(prediction.high - prediction.low)
        self.assertBetween(width, 2 * NOISE, 8 * NOISE)

    def test_the_expected_distance_is_that_of_new_records(self):
        # The mean of 2,000 distances, each below 1, near 0.3, has a standard error below 0.006;
        # what the encoder is wrong by adds less than its error of 0.02 / 0.5 in performance.
        fresh = records(2000, seed=98)
        choices = SPACE.choices([r.architecture for r in fresh])
        encoder = evidence().surrogate
        conditions = np.tile(np.arange(10) / 10, 200)
        performance = encoder.scale.normalise([r.metric for r in fresh])
        real = np.abs(performance - conditions).mean()
        expected = encoder.expected_distance(choices, conditions)
        self.assertAlmostEqual(expected.mean(), real, delta=0.03)
        # At its own mean a network's distance is its noise: E|x| = 0.8 deviations, 0.02 / 0.5 wide.
        mean = np.clip(encoder.predict(choices).performance, 0.2, 0.8)
        inside = mean == encoder.predict(choices).performance
        noise = encoder.expected_distance(choices, mean)[inside].mean()
        self.assertBetween(noise, 0.02, 0.06)

    def test_the_gap_widens_intervals_in_units_of_scatter(self):
        encoder = evidence().surrogate
        choices = SPACE.choices(list(SPACE.enumerate()))[:5]
        before = encoder.predict(choices)
        after = encoder.with_gap(np.array([-2.0, -2.0, 1.0, 1.0])).predict(choices)
        spread = before.scatter * (encoder.scale.high - encoder.scale.low)
        np.testing.assert_allclose(before.low - after.low, 2 * spread, rtol=1e-6)
        np.testing.assert_allclose(after.high - before.high, 1 * spread, rtol=1e-6)

    def test_numpy_and_tensorflow_agree(self):
        from tfgen.nets.keras_compat import tf

        encoder = evidence().surrogate
        features = encoder.encoding.features_of(SPACE.sample(100, seeds.stream(3, "s")))
        state = {k: v for k, v in encoder.state().items() if v.dtype == np.float32}
        for ours, theirs in zip(
            surrogate.moments(np, state, features),
            surrogate.moments(tf, state, tf.constant(features)),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


if __name__ == "__main__":
    absltest.main()
