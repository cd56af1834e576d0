"""A supernet's training that is dealt out to two processes of this machine."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
from absl.testing import absltest

from tfgen import errors
from tfgen.training import distribution

_EPOCHS = 3
_WORKER = f"""
import sys
from tfgen.training import distribution
chosen = distribution.strategy("multi_worker")
import numpy as np
from tests.training.supernet_training_test import begun
from tfgen import errors
with chosen.scope():
    training = begun()
index = chosen.cluster_resolver.task_id
assert distribution.leads(chosen) == (index == 0)
distribution.check_equal(chosen, "the same", "nothing")
try:
    distribution.check_equal(chosen, str(index), "their index")
except errors.UsageError as error:
    assert "differ in their index" in str(error), error
else:
    raise AssertionError("not seen")
losses = [training.run_epoch() for _ in range({_EPOCHS})]
np.savez(sys.argv[1], losses=losses, **training.state())
"""
_SUPERNET = """
import dataclasses, pathlib, sys
from tfgen.training import distribution
chosen = distribution.strategy("multi_worker")
from tfgen import supernets, workdir
from tools import bench_kills
recipe = dataclasses.replace(bench_kills.SUPERNET.supernet, epochs=2)
experiment = dataclasses.replace(bench_kills.SUPERNET, supernet=recipe)
work = workdir.WorkDir(pathlib.Path(sys.argv[1]))
assert not supernets.train(experiment, work, bench_kills.quarters(), None, print, chosen)
"""
# Two devices of one process; keras_compat leaves them alone where TF_CONFIG is set.
_MIRRORED = f"""
import numpy as np
from tfgen.nets.keras_compat import tf
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
from tests.training.supernet_training_test import SPACE, begun, dataset
from tfgen.space.lowering import lower
from tfgen.training import distribution, supernet_training
chosen = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert chosen.num_replicas_in_sync == 2 and distribution.leads(chosen)
with chosen.scope():
    training = begun()
losses = [training.run_epoch() for _ in range({_EPOCHS})]
for name, variable in training.supernet.variables.items():
    first, second = (value.numpy() for value in variable.values)
    np.testing.assert_array_equal(first, second, err_msg=name)
assert losses[-1] < 1.2 and losses[-1] < losses[0], losses
largest = lower(SPACE, SPACE.architecture(supernet_training.ends(SPACE)[0]))
test = dataset().test
task = dataset().task
accuracy = supernet_training.score(training.supernet, largest, task, test, test.x[:100])
assert accuracy > 0.4, accuracy
"""
# The program with data that TensorFlow reads: its strategy comes first.
_PROGRAM = """
from unittest import mock
from tfgen import supernets, train_supernet
from tfgen.training import datasets

def load(name, data_dir):
    from tfgen.nets.keras_compat import tf
    return tf.constant(1.0) + 1.0

def train(experiment, work, dataset, max_epochs, say, strategy):
    print("with", type(strategy).__name__)
    return 0

with mock.patch.object(datasets, "load", load), mock.patch.object(supernets, "train", train):
    train_supernet.run()
"""


def environment(**others: str) -> dict[str, str]:
    """Of a child process that imports what this one imports."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **others}


def ran(code: str, *arguments: str, config: object) -> subprocess.CompletedProcess:
    """A program that was run to its end, with this TF_CONFIG."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(TF_CONFIG=json.dumps(config)),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class TwoWorkersTest(absltest.TestCase):
    def test_two_workers_train_one_supernet(self):
        root = pathlib.Path(self.create_tempdir().full_path)
        cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
        processes = []
        for index in range(2):
            task = {"type": "worker", "index": index}
            own = environment(TF_CONFIG=json.dumps({"cluster": cluster, "task": task}))
            with (root / f"{index}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", _WORKER, str(root / f"{index}.npz")],
                        env=own,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        for index, process in enumerate(processes):
            self.addCleanup(process.kill)
            code = process.wait(timeout=240)
            self.assertEqual(code, 0, (root / f"{index}.log").read_text()[-2000:])
        first, second = (dict(np.load(root / f"{index}.npz")) for index in range(2))
        self.assertEqual(first["epoch"], _EPOCHS)
        self.assertEqual(first.keys(), second.keys())
        for name, value in first.items():
            np.testing.assert_array_equal(second[name], value, err_msg=name)
        # Four classes: a guess costs log 4 = 1.386.
        self.assertLess(first["losses"][-1], 1.2)
        self.assertLess(first["losses"][-1], first["losses"][0])


class RestartTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path)

    def started(self, name: str, run: int) -> list[subprocess.Popen]:
        """Two workers that train one supernet in a work directory of this name."""
        cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
        processes = []
        for index in range(2):
            task = {"type": "worker", "index": index}
            with (self.root / f"{name}_{run}_{index}.log").open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-c", _SUPERNET, str(self.root / name)],
                    env=environment(TF_CONFIG=json.dumps({"cluster": cluster, "task": task})),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            self.addCleanup(process.kill)
            processes.append(process)
        return processes

    def finish(self, name: str, run: int) -> dict[str, np.ndarray]:
        """Trains it to the end; what is kept."""
        for index, process in enumerate(self.started(name, run)):
            code = process.wait(timeout=240)
            said = (self.root / f"{name}_{run}_{index}.log").read_text()
            self.assertEqual(code, 0, said[-2000:])
        return dict(np.load(self.root / name / "supernet" / "checkpoint.npz"))

    def test_a_killed_worker_ends_the_other_and_both_go_on(self):
        whole = self.finish("whole", 0)
        first, second = self.started("killed", 0)
        checkpoint = self.root / "killed" / "supernet" / "manifest.json"
        deadline = time.monotonic() + 120
        while not checkpoint.exists():  # the first epoch is kept
            self.assertLess(time.monotonic(), deadline)
            self.assertEqual((first.poll(), second.poll()), (None, None))
            time.sleep(0.01)
        second.kill()
        self.assertNotEqual(first.wait(timeout=240), 0)  # it notices within half a minute
        found = self.finish("killed", 1)
        log = (self.root / "killed_1_0.log").read_text()
        self.assertRegex(log, "1 of 2 epochs are done")
        self.assertEqual(found.keys(), whole.keys())
        for name, value in whole.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


class StrategyTest(absltest.TestCase):
    def test_one_process_leads_and_agrees_with_itself(self):
        chosen = distribution.strategy(distribution.ONE)
        self.assertTrue(distribution.leads(chosen))
        distribution.check_equal(chosen, "3", "anything")

    def test_two_devices_of_a_process_hold_equal_weights(self):
        done = ran(_MIRRORED, config={})
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])

    def test_the_program_finds_its_workers_before_it_reads_data(self):
        (port,) = free_ports(1)
        cluster = {"worker": [f"127.0.0.1:{port}"]}
        path = pathlib.Path(__file__).parents[2] / "configs" / "cifar10.py"
        done = ran(
            _PROGRAM,
            f"--config={path}",
            f"--work_dir={self.create_tempdir().full_path}",
            "--strategy=multi_worker",
            config={"cluster": cluster, "task": {"type": "worker", "index": 0}},
        )
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        self.assertIn("with CollectiveAllReduceStrategy", done.stdout)

    def test_workers_need_to_be_named(self):
        self.assertNotIn("TF_CONFIG", os.environ)
        with self.assertRaisesRegex(errors.UsageError, "multi_worker needs TF_CONFIG"):
            distribution.strategy(distribution.MULTI_WORKER)


if __name__ == "__main__":
    absltest.main()
