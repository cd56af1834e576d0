"""The population trainer: Keras's numbers, bit-equal repeats, and no hang when a process dies."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tests.space import small
from tfgen import errors
from tfgen.training import population, population_network, tasks
from tfgen.training.datasets import Dataset, Split
from tfgen.training.population import Member
from tfgen.training.recipe import Recipe

FEATURES = 6


def mlp(widths, bits):
    """Layers for widths [in, hidden..., out] and one bit-width for each layer."""
    return small.mlp(widths[1:], bits, widths[0])


def toy_dataset(task):
    """300 training and 100 other examples of a smooth function, or of its three levels."""
    random = np.random.default_rng(1)
    x = random.standard_normal((500, FEATURES)).astype(np.float32)
    value = np.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3]  # [examples, 1]
    if task is tasks.CLASSIFICATION:
        y = np.digitize(value[:, 0], [-0.5, 0.5]).astype(np.int64)  # [examples]
    else:
        y = value.astype(np.float32)
    parts = [Split(x[a:b], y[a:b]) for a, b in itertools.pairwise((0, 300, 400, 500))]
    return Dataset("toy", task, *parts, preprocessing={})


REGRESSION = toy_dataset(tasks.REGRESSION)
CLASSIFICATION = toy_dataset(tasks.CLASSIFICATION)
RECIPE = Recipe(steps=30, batch_size=32, warmup_steps=5)
LONG = Recipe(steps=100_000, batch_size=32)  # no training of this length may end in a test
MEMBERS = [
    Member(mlp((FEATURES, *hidden, 1), bits), seed)
    for seed, (hidden, bits) in enumerate(
        [
            ((), (8,)),
            ((5,), (2, 8)),
            ((33, 17), (4, 2, 8)),
            ((1, 1, 1, 1), (8, 8, 8, 8, 8)),
            ((20, 3, 64, 9), (8, 4, 2, 4, 8)),
        ]
    )
]


def run(members, dataset=REGRESSION, recipe=RECIPE, processes=1, **options):
    """Outcomes by index, without the time that they took."""
    found = population.train(members, dataset, recipe, processes=processes, **options)
    return {o.index: (o.metric, o.losses) for o in found}


class ArithmeticTest(parameterized.TestCase):
    def test_one_step_by_hand(self):
        # One linear layer of 3 bits: levels -3..3. Examples (1, 0) and (0, 2), both with target 1.
        #   kernel (0.4, -0.9): scale 0.9 / 3 = 0.3, levels (1.33, -3) -> (1, -3), so (0.3, -0.9)
        #   outputs 0.3, -1.8; errors -0.7, -2.8; loss (0.49 + 7.84) / 2 = 4.165
        # The gradients (-0.7, -5.6) and, of the bias, -3.5 are negative; Adam's first step is
        # learning_rate * g / |g|: kernel (0.5, -0.8), bias 0.1 at rate 0.1.
        #   scale 0.8 / 3, levels (1.875, -3) -> (2, -3), so (1.6 / 3, -0.8)
        #   outputs 1.6 / 3 + 0.1 = 0.63333, -1.5; loss (0.36667**2 + 2.5**2) / 2 = 3.192222
        x = np.array([[1, 0], [0, 2]], np.float32)
        split = Split(x, np.ones((2, 1), np.float32))
        scored = Split(x, np.array([[0], [1]], np.float32))
        dataset = Dataset("two", tasks.REGRESSION, split, scored, scored, preprocessing={})
        arrays = population._Arrays.of(dataset, "validation")
        # Two steps: the half cosine starts at 1, so the first one has the full rate.
        recipe = Recipe(steps=2, batch_size=2, learning_rate=0.1, warmup_steps=0)
        weights = [(np.array([[0.4], [-0.9]], np.float32), np.zeros(1, np.float32))]
        with mock.patch.object(population_network, "initial_weights", return_value=weights):
            outcome = population._train_one(0, Member(mlp((2, 1), (3,)), 0), arrays, recipe, True)
        # Keras's float32 powers make the first step's rate 2e-5 smaller.
        np.testing.assert_allclose(outcome.losses, [4.165, 3.192222], rtol=5e-6)

    @parameterized.named_parameters(
        ("regression", REGRESSION, 1, "mean_squared_error"),
        ("classification", CLASSIFICATION, 3, "softmax_cross_entropy"),
    )
    def test_losses_equal_keras(self, dataset, outputs, loss):
        # Small networks and a calm rate: where two float32 sums of different order fall on two
        # sides of a rounding threshold, a weight differs by a whole level from there on. With w
        # weights of scale s, 50 steps and errors of 1e-9 that is about 50 * w * 1e-9 / s: below
        # 1e-3 here.
        from tools import bench_population

        recipe = Recipe(steps=50, batch_size=32, learning_rate=1e-3, warmup_steps=10)
        hidden = [(), (12,), (7, 9), (10, 4, 8), (5, 6, 7, 8)]
        bits = [(8,), (2, 4), (8, 4, 2), (4, 8, 2, 8), (3, 2, 8, 4, 6)]
        members = [
            Member(mlp((FEATURES, *h, outputs), b), 10 + i)
            for i, (h, b) in enumerate(zip(hidden, bits, strict=True))
        ]
        ours = run(members, dataset, recipe, processes=2, keep_losses=True)
        for index, member in enumerate(members):
            model = bench_population.keras_twin(member, loss, recipe, bench_population.SETTINGS[0])
            theirs = [
                float(model.train_on_batch(dataset.train.x[rows], dataset.train.y[rows]))
                for rows in recipe.batches(len(dataset.train), member.seed)
            ]
            self.assertLen(ours[index][1], 50)
            np.testing.assert_allclose(ours[index][1], theirs, rtol=0, atol=1e-6)
            found = model(dataset.validation.x).numpy()
            score = dataset.task.score(dataset.validation.y, found)
            # Accuracy moves in steps of 1 / 100 examples.
            self.assertAlmostEqual(ours[index][0], score, delta=0.0101 if outputs == 3 else 1e-5)

    def test_learns(self):
        # Predicting the mean scores 0.
        member = Member(mlp((FEATURES, 32, 32, 1), (8, 8, 8)), 3)
        recipe = Recipe(steps=500, batch_size=32, warmup_steps=20)
        self.assertGreater(run([member], recipe=recipe)[0][0], 0.5)

    def test_dead_units_leave_no_denormals(self):
        layers = mlp((FEATURES, 4, 1), (8, 8))
        parameters = population_network.Parameters(layers, 1)
        parameters._m[:] = np.float32(1e-31)
        parameters._v[:] = np.float32(1e-31)
        parameters._m[3] = np.float32(1e-29)
        parameters.flush()
        np.testing.assert_array_equal(np.flatnonzero(parameters._m), [3])
        self.assertFalse(parameters._v.any())

    def test_starts_side_by_side_are_the_trainings_alone(self):
        layers, recipe = MEMBERS[4].layers, dataclasses.replace(RECIPE, starts=3)
        data = (REGRESSION.task, REGRESSION.train.x, REGRESSION.train.y, recipe, True)
        together = population_network.train(layers, [5, 6, 7], *data)
        for start, seed in enumerate((5, 6, 7)):
            alone = population_network.train(layers, [seed], *data)
            np.testing.assert_array_equal(together.losses[:, start], alone.losses[:, 0])

    def test_the_start_that_fits_best_is_kept(self):
        # Scored on the training split, the best fit is the best score.
        fitted = dataclasses.replace(REGRESSION, validation=REGRESSION.train)
        member = MEMBERS[3]
        recipe = dataclasses.replace(RECIPE, starts=3)
        one = [Member(member.layers, seed) for seed in recipe.start_seeds(member.seed)]
        alone = [metric for metric, _ in run(one, fitted).values()]
        self.assertLen(set(alone), 3)
        self.assertEqual(run([member], fitted, recipe)[0][0], max(alone))

    def test_diverging_member_scores_zero_and_disturbs_no_other(self):
        # At rate 1e8 the weights of the linear member stay near 1e8, within float32; five layers
        # multiply to 1e40, beyond it.
        recipe = Recipe(steps=30, batch_size=32, learning_rate=1e8, warmup_steps=0)
        linear, deep = MEMBERS[0], MEMBERS[4]
        together = run([linear, deep], recipe=recipe, keep_losses=True)
        self.assertEqual(together[1][0], 0.0)
        (outcome,) = population.train([deep], REGRESSION, recipe, processes=1)
        self.assertEqual(outcome.failure, population.DIVERGED)
        self.assertFalse(np.isfinite(together[1][1]).all())
        self.assertTrue(np.isfinite(together[0][1]).all())
        self.assertEqual(together[0], run([linear], recipe=recipe, keep_losses=True)[0])


class RepeatTest(absltest.TestCase):
    def test_equal_for_any_process_count_order_and_neighbours(self):
        expected = run(MEMBERS, keep_losses=True)
        self.assertEqual(run(MEMBERS, processes=3, keep_losses=True), expected)
        backwards = run(MEMBERS[::-1], processes=2, keep_losses=True)
        self.assertEqual({4 - i: result for i, result in backwards.items()}, expected)
        self.assertEqual(run(MEMBERS[2:3], keep_losses=True)[0], expected[2])

    def test_seed_and_split_matter(self):
        member = Member(MEMBERS[2].layers, 99)
        (metric, losses), (other, _) = run([MEMBERS[2], member]).values()
        self.assertNotEqual(metric, other)
        self.assertIsNone(losses)
        self.assertNotEqual(run([member], split="test")[0][0], other)


class ProcessesTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.started = []
        create = subprocess.Popen

        def remember(*args, **options):
            self.started.append(create(*args, **options))
            return self.started[-1]

        self.enter_context(mock.patch.object(subprocess, "Popen", remember))

    def test_outcomes_arrive_one_by_one_and_closing_ends_the_workers(self):
        # A million weights: seconds, where the other members take 0.02 s.
        slow = Member(mlp((FEATURES, 1000, 1000, 1), (8, 8, 8)), 0)
        recipe = Recipe(steps=500, batch_size=32)
        found = population.train([slow, *MEMBERS[:2]], REGRESSION, recipe, processes=2)
        self.assertEqual({next(found).index, next(found).index}, {1, 2})
        start = time.monotonic()
        found.close()
        self.assertLess(time.monotonic() - start, 5)
        self.assertEqual([p.returncode for p in self.started], [-signal.SIGKILL] * 2)

    def outcomes(self, before, members=MEMBERS, processes=2, **options):
        """By index, where `before(process, index)` happens before a member is handed out."""

        def send(worker, index, member):
            before(worker.process, index)
            original(worker, index, member)

        original = population._Worker.send
        with mock.patch.object(population._Worker, "send", send):
            found = population.train(
                members, REGRESSION, options.pop("recipe", RECIPE), processes=processes, **options
            )
            return {outcome.index: outcome for outcome in found}

    def test_what_a_killed_worker_had_is_trained_again(self):
        expected = run(MEMBERS)
        pids = []

        def kill_twice(process, index):
            if index == 2 and len(pids) < 2:
                pids.append(process.pid)
                process.kill()

        found = self.outcomes(kill_twice)
        self.assertLen(set(pids), 2)
        self.assertLen(self.started, 1 + 2 + 2)  # `run` has one worker
        self.assertEqual({i: (o.metric, o.losses) for i, o in found.items()}, expected)
        self.assertEqual({o.failure for o in found.values()}, {None})

    def test_what_ends_every_worker_has_failed_alone(self):
        expected = run(MEMBERS)

        def kill(process, index):
            if index == 2:
                process.kill()

        found = self.outcomes(kill)
        self.assertRegex(found.pop(2).failure, "ended 3 processes, the last with SIGKILL.*memory")
        del expected[2]
        self.assertEqual({i: (o.metric, o.losses) for i, o in found.items()}, expected)

    def test_a_worker_that_leaves_is_reported(self):
        # It reads the end of its work in place of a member.
        def leave(worker, index, member):
            worker.index, worker.member = index, member
            worker.deadline = time.monotonic() + 60
            worker.process.stdin.close()

        with mock.patch.object(population._Worker, "send", leave):
            (outcome,) = population.train(MEMBERS[:1], REGRESSION, RECIPE, processes=1)
        self.assertEqual(outcome.failure, "ended 3 processes, the last with exit code 0")
        self.assertEqual(outcome.metric, 0.0)

    def test_what_takes_too_long_has_failed_alone(self):
        # 100,000 steps take minutes, 30 steps a hundredth of a second; a worker starts in one.
        expected = run(MEMBERS[:1])
        limits = population.Limits(seconds=3.0)
        with population.Workers(REGRESSION, LONG, processes=2, limits=limits) as workers:
            late = next(workers.train([MEMBERS[4]]))
        self.assertEqual((late.failure, late.metric), ("took more than 3 s", 0.0))
        self.assertBetween(late.seconds, 3.0, 6.0)
        limits = population.Limits(seconds=60.0)
        self.assertEqual(run(MEMBERS[:1], limits=limits), expected)

    def test_what_takes_too_much_memory_has_failed_alone(self):
        # A kernel of 4 GB, in a process of 2.
        large = Member(mlp((FEATURES, 30_000, 33_000, 1), (8, 8, 8)), 0)
        limits = population.Limits(memory_bytes=2 << 30)
        found = self.outcomes(lambda process, index: None, [large, *MEMBERS], limits=limits)
        self.assertRegex(found.pop(0).failure, "MemoryError: Unable to allocate")
        self.assertLen(self.started, 2)  # the process is as good as before
        metrics = {index - 1: outcome.metric for index, outcome in found.items()}
        self.assertEqual(metrics, {i: metric for i, (metric, _) in run(MEMBERS).items()})

    def test_many_failures_in_a_row_stop_the_run(self):
        def found(members):
            outcomes = []
            with self.assertRaisesRegex(errors.TfgenError, "10 trainings in a row.*not finite"):
                for outcome in population.train(members, REGRESSION, recipe, processes=1):
                    outcomes.append(outcome.failure)
            return outcomes

        # As in the test of a member that diverges: the deep one does, the linear one does not.
        recipe = Recipe(steps=30, batch_size=32, learning_rate=1e8, warmup_steps=0)
        linear, deep = MEMBERS[0], MEMBERS[4]
        bad = population.DIVERGED
        self.assertEqual(found([deep] * 20), [bad] * 10)
        members = [*[deep] * 9, linear, *[deep] * 11]
        self.assertEqual(found(members), [*[bad] * 9, None, *[bad] * 10])

    def test_no_process_for_no_members(self):
        self.assertEmpty(list(population.train([], REGRESSION, RECIPE, processes=2)))
        self.assertEmpty(self.started)

    def test_workers_import_no_tensorflow(self):
        code = (
            "import sys; from tfgen.training import population; "
            "sys.exit(not {'tensorflow', 'tf_keras', 'keras'}.isdisjoint(sys.modules))"
        )
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=False
        )
        self.assertEqual(done.returncode, 0)


class RefusalTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("no_layers", (), "member 0 does not fit data set 'toy': no layers"),
        (
            "op",
            (dataclasses.replace(mlp((FEATURES, 1), (8,))[0], op="conv"),),
            "member 0, layer 'output'.*takes dense",
        ),
        ("inputs", mlp((FEATURES + 1, 1), (8,)), "takes 7 features, 'input' makes 6 features"),
        (
            "between",
            mlp((FEATURES, 4, 1), (8, 8))[:1] + mlp((3, 1), (8,)),
            "takes 3 features, 'input' makes 6",
        ),
        ("activation", mlp((FEATURES, 4, 1), (8, 8))[:1], "linear; got 'dense' with 'relu'"),
        ("bits", mlp((FEATURES, 1), (1,)), r"2\.\.16, got 1"),
        ("outputs", mlp((FEATURES, 2), (8,)), "has 2 outputs; data set 'toy' needs 1"),
    )
    def test_members(self, layers, message):
        with self.assertRaisesRegex(errors.UsageError, message):
            population.train([Member(layers, 0)], REGRESSION, RECIPE, processes=1)

    def test_too_few_classes(self):
        with self.assertRaisesRegex(errors.UsageError, "needs at least 3"):
            population.train(MEMBERS[:1], CLASSIFICATION, RECIPE, processes=1)

    def test_arguments(self):
        with self.assertRaisesRegex(errors.UsageError, "at least 1, got 0"):
            population.train(MEMBERS, REGRESSION, RECIPE, processes=0)
        with self.assertRaisesRegex(errors.UsageError, "known: train, validation, test"):
            population.train(MEMBERS, REGRESSION, RECIPE, processes=1, split="valid")


if __name__ == "__main__":
    absltest.main()
