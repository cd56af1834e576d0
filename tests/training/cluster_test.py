"""Trainings on a local Ray cluster: the outcomes of one machine, whoever is killed."""

import importlib.util
import json
import os
import pathlib
import signal
import socket
import tempfile
from unittest import mock

from absl.testing import absltest

from tests.evidence import collect_test
from tests.space.small import small_space
from tests.training.population_test import MEMBERS, RECIPE, REGRESSION
from tfgen import errors
from tfgen.evidence import collect
from tfgen.evidence.record import RecordStore
from tfgen.training import cluster, population
from tfgen.training.recipe import Recipe

RAY = importlib.util.find_spec("ray") is not None
_PIXEL = "device:pixel8"


def dies_of_seed_2(job, arrays, members):
    """A task that a member of this seed ends, as a defect of the machine would."""
    if any(member["seed"] == 2 for member in json.loads(members)):
        os.kill(os.getpid(), signal.SIGKILL)
    return cluster._train_chunk(job, arrays, members)


def dies_once(folder, job, arrays, members):
    """A task whose worker is killed the first time: before its trainings, or after them."""
    seed = json.loads(members)[0]["seed"]
    killed = pathlib.Path(folder) / str(seed)
    first = not killed.exists()
    killed.touch()
    if first and seed:
        os.kill(os.getpid(), signal.SIGKILL)
    outcomes = cluster._train_chunk(job, arrays, members)
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    return outcomes


def by_index(outcomes):
    return {o.index: (o.metric, o.seed, o.failure) for o in outcomes}


@absltest.skipUnless(RAY, "needs Ray: pip install tfgen[ray]")
class ClusterTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        import ray

        # Ray gives its workers a low priority, with which they hardly run on a busy machine. It
        # writes a token into HOME, which a sandbox keeps as it is.
        home = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.enterClassContext(
            mock.patch.dict(
                os.environ, HOME=home, RAY_worker_niceness="0", RAY_USAGE_STATS_ENABLED="0"
            )
        )
        ray.init(
            address="local",
            num_cpus=2,
            resources={_PIXEL: 1},
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 << 20,
            _node_ip_address="127.0.0.1",
        )
        cls.addClassCleanup(ray.shutdown)

    def made(self, members, recipe=RECIPE, function=None, resources=None, **options):
        place = cluster.Place("auto", resources or {})
        with cluster.Cluster(place, REGRESSION, recipe, **options) as trainer:
            if function is not None:
                start = trainer._tasks.start
                trainer._tasks.start = lambda _, *arguments: start(function, *arguments)
            return by_index(trainer.train(members))

    def expected(self, members, recipe=RECIPE, **options):
        return by_index(population.train(members, REGRESSION, recipe, processes=1, **options))

    def test_outcomes_are_those_of_one_machine(self):
        members = MEMBERS * 4
        expected = self.expected(members)
        self.assertEqual(self.made(members), expected)
        self.assertEqual(self.made(members, resources={_PIXEL: 1}), expected)
        scored = {"split": "test"}
        self.assertEqual(self.made(MEMBERS, **scored), self.expected(MEMBERS, **scored))

    def test_failures_are_those_of_one_machine(self):
        # As in population_test: the deep one diverges, the linear one does not.
        recipe = Recipe(steps=30, batch_size=32, learning_rate=1e8, warmup_steps=0)
        members = [MEMBERS[0], MEMBERS[4], MEMBERS[0]]
        made = self.made(members, recipe)
        self.assertEqual(made, self.expected(members, recipe))
        self.assertEqual([made[i][2] for i in range(3)], [None, population.DIVERGED, None])
        with self.assertRaisesRegex(errors.TfgenError, "10 trainings in a row"):
            self.made([MEMBERS[4]] * 12, recipe)

    def test_killed_workers_change_nothing(self):
        folder = self.enter_context(tempfile.TemporaryDirectory())
        members = [population.Member(MEMBERS[4].layers, seed) for seed in range(8)]

        def dies(*arguments):
            return dies_once(folder, *arguments)

        with mock.patch.object(cluster, "_CHUNKS_EACH", 1):  # two of four members
            made = self.made(members, function=dies)
        self.assertCountEqual(os.listdir(folder), ["0", "4"])
        self.assertEqual(made, self.expected(members))

    def test_the_member_that_ends_its_task_fails_alone(self):
        members = [population.Member(MEMBERS[4].layers, seed) for seed in range(8)]
        with mock.patch.object(cluster, "_CHUNKS_EACH", 1):  # two of four members
            made = self.made(members, function=dies_of_seed_2)
        expected = self.expected(members)
        self.assertRegex(made.pop(2)[2], "ended 4 Ray tasks.*WorkerCrashed")
        del expected[2]
        self.assertEqual(made, expected)

    def test_what_no_machine_has_is_refused(self):
        with self.assertRaisesRegex(errors.TfgenError, "lacks .*pixel9"):
            cluster.Cluster(cluster.Place("auto", {"device:pixel9": 1}), REGRESSION, RECIPE)

    def test_records_are_those_of_one_machine(self):
        folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        dataset, recipe = collect_test.dataset(), collect_test.RECIPE
        space = small_space()
        plan = collect.plan(space, 60, seed=11)
        trainers = (
            population.Workers(dataset, recipe, processes=1),
            cluster.Cluster(cluster.Place("auto"), dataset, recipe),
        )
        stored = []
        for number, trainer in enumerate(trainers):
            with RecordStore(folder / f"{number}.db", space) as store, trainer:
                made = collect.collect(store, plan, trainer)
                next(made)
                made.close()  # stopped and started again
                list(collect.collect(store, plan, trainer))
                records = store.read(dataset.fingerprint, recipe.fingerprint)
                stored.append([(record.key, record.metric) for record in records])
        self.assertLen(stored[0], 60)
        self.assertEqual(stored[1], stored[0])


class RefusedTest(absltest.TestCase):
    def test_without_ray_it_is_said_what_to_install(self):
        with (
            mock.patch.dict("sys.modules", {"ray": None}),
            self.assertRaisesRegex(errors.UsageError, r"pip install tfgen\[ray\]"),
        ):
            cluster.Cluster(cluster.Place("auto"), REGRESSION, RECIPE)

    def test_an_address_where_nobody_listens_is_said_at_once(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
        with self.assertRaisesRegex(errors.TfgenError, f"no Ray cluster at {address}: .*refused"):
            cluster._check_reachable(address)
        for text in (cluster.LOCAL, "auto"):
            cluster._check_reachable(text)

    def test_resources_are_named_numbers(self):
        self.assertIsNone(cluster.named(None, []))
        place = cluster.named("host:6379", ["device:pixel8=1", "gpu_memory=0.5"])
        self.assertEqual(place.resources, {"device:pixel8": 1.0, "gpu_memory": 0.5})
        for text in ("device", "=1", "a=b", "a=-1", "a=nan"):
            with self.assertRaisesRegex(errors.UsageError, "NAME=NUMBER"):
                cluster.named("host:6379", [text])
        with self.assertRaisesRegex(errors.UsageError, "goes with --ray_address"):
            cluster.named(None, ["device:pixel8=1"])


if __name__ == "__main__":
    absltest.main()
