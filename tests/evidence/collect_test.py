"""Collecting: a longer plan starts with the shorter one, and kills lose nothing."""

import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

import numpy as np
from absl.testing import absltest

from tests.space.small import small_space
from tfgen.evidence import collect
from tfgen.evidence.record import RecordStore
from tfgen.training import population, tasks
from tfgen.training.datasets import Dataset, Split
from tfgen.training.population import Workers
from tfgen.training.recipe import Recipe

RECORDS = 150
RECIPE = Recipe(steps=60, batch_size=16, warmup_steps=10)
KILLS = 20


def dataset() -> Dataset:
    """A noisy linear map of four features."""
    random_ = np.random.default_rng(0)
    x = random_.normal(size=(160, 4)).astype(np.float32)
    y = (x @ np.array([[1.0], [-2.0], [0.5], [0.0]], np.float32)).astype(np.float32)
    splits = [Split(x[i:j], y[i:j]) for i, j in ((0, 96), (96, 128), (128, 160))]
    return Dataset("linear", tasks.REGRESSION, *splits, {})


def collect_all(path: pathlib.Path) -> None:
    """What the killed process runs: names each record once it is acknowledged."""
    space = small_space()
    with RecordStore(path, space) as store, Workers(dataset(), RECIPE, processes=2) as workers:
        plan = collect.plan(space, RECORDS, seed=11)
        for record in collect.collect(store, plan, workers):
            print(record.seed, flush=True)


class CollectTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "records.db"

    def read(self, path: pathlib.Path) -> dict[tuple, float]:
        with RecordStore(path, small_space()) as store:
            found = store.read(dataset().fingerprint, RECIPE.fingerprint)
        return {record.key: record.metric for record in found}

    def test_a_longer_plan_starts_with_the_shorter_one(self):
        short = collect.plan(small_space(), 100, seed=5)
        long = collect.plan(small_space(), 700, seed=5)
        self.assertEqual(long[:100], short)
        self.assertLen({training.seed for training in long}, 700)

    def test_twenty_kills_at_random_moments_lose_no_acknowledged_record(self):
        whole = self.path.with_name("whole.db")
        collect_all(whole)
        command = [sys.executable, __file__, "--collect", str(self.path)]
        # A bad seed makes no failure: any moment must do. Moments cover start-up and work.
        moments = random.Random(time.time_ns())
        acknowledged: set[int] = set()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for _ in range(KILLS):
            with subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            ) as process:
                time.sleep(moments.uniform(0.2, 1.6))
                process.send_signal(signal.SIGKILL)
                out, _ = process.communicate(timeout=60)
            # The last line may be torn: only what ends in a newline was said.
            acknowledged |= {int(line) for line in out.split("\n")[:-1]}
            stored = {key[-1] for key in self.read(self.path)} if self.path.exists() else set()
            self.assertEqual(acknowledged - stored, set())
        self.assertNotEmpty(acknowledged)  # some kill hit the work, not only the start-up
        collect_all(self.path)
        self.assertLen(self.read(whole), RECORDS)
        self.assertEqual(self.read(self.path), self.read(whole))

    def test_twenty_killed_workers_change_nothing(self):
        whole = self.path.with_name("whole.db")
        space, plan = small_space(), collect.plan(small_space(), RECORDS, seed=11)
        with RecordStore(whole, space) as store, Workers(dataset(), RECIPE, processes=2) as workers:
            list(collect.collect(store, plan, workers))
        killed = set()
        moments = random.Random(time.time_ns())

        def send(worker, index, member):
            original(worker, index, member)
            if index % 7 == 0 and index not in killed and len(killed) < KILLS:
                time.sleep(moments.uniform(0, 0.02))  # what a training takes, or less
                worker.process.kill()
                killed.add(index)

        original = population._Worker.send
        with (
            mock.patch.object(population._Worker, "send", send),
            RecordStore(self.path, space) as store,
            Workers(dataset(), RECIPE, processes=2) as workers,
        ):
            made = list(collect.collect(store, plan, workers))
        self.assertEqual({record.failure for record in made}, {None})
        self.assertLen(killed, KILLS)
        self.assertEqual(self.read(self.path), self.read(whole))

    def test_failed_trainings_are_done_and_named(self):
        # Steps of 1e30 are squared beyond float32 in the first loss after them.
        recipe = dataclasses.replace(RECIPE, learning_rate=1e30, warmup_steps=0)
        plan = collect.plan(small_space(), 3, seed=11)
        with (
            RecordStore(self.path, small_space()) as store,
            Workers(dataset(), recipe, processes=2) as workers,
        ):
            made = list(collect.collect(store, plan, workers))
            self.assertEqual([r.failure for r in made], [population.DIVERGED] * 3)
            of = dataset().fingerprint, recipe.fingerprint
            self.assertEmpty(store.read(*of))
            self.assertCountEqual(store.failed(*of), made)
            self.assertEmpty(collect.pending(store, plan, dataset(), recipe))
            again = collect.pending(store, plan, dataset(), recipe, retry_failed=True)
            self.assertEqual(again, plan)
            evaluate = collect.Evaluator(store, workers)
            (record,) = evaluate([plan[0].architecture], seed=3)
            self.assertEqual((record.metric, record.failure), (0.0, population.DIVERGED))

    def test_the_evaluator_counts_stores_and_keeps_the_order(self):
        space = small_space()
        points = [space.architecture(row) for row in space.sample(4, np.random.default_rng(1))]
        points.append(points[0])
        workers = Workers(dataset(), RECIPE, processes=1)
        with RecordStore(self.path, space) as store, workers:
            evaluate = collect.Evaluator(store, workers)
            records = evaluate(points[:3], seed=3) + evaluate(points[3:], seed=3)
            self.assertEqual([r.architecture for r in records], points)
            self.assertEqual(evaluate.trainings, 5)
            self.assertLen(store, 5)  # the repeated network is trained again, with another seed
            again = collect.Evaluator(store, workers)
            with mock.patch.object(workers, "train", side_effect=iter):
                self.assertEqual(again(points, seed=3), records)  # nothing is trained again


if __name__ == "__main__":
    if sys.argv[1:2] == ["--collect"]:
        collect_all(pathlib.Path(sys.argv[2]))
    else:
        absltest.main()
