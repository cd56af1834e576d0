"""A supernet's training that is dealt out to two processes of this machine."""

import json
import os
import pathlib
import socket
import subprocess
import sys

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
distribution.check_equal(chosen, 7, "nothing")
try:
    distribution.check_equal(chosen, 7 + index, "their index")
except errors.UsageError as error:
    assert "differ in their index" in str(error), error
else:
    raise AssertionError("not seen")
losses = [training.run_epoch() for _ in range({_EPOCHS})]
np.savez(sys.argv[1], losses=losses, **training.state())
"""


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
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "TF_CONFIG": json.dumps(
                    {"cluster": cluster, "task": {"type": "worker", "index": index}}
                ),
            }
            with (root / f"{index}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", _WORKER, str(root / f"{index}.npz")],
                        env=environment,
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


class StrategyTest(absltest.TestCase):
    def test_one_process_leads_and_agrees_with_itself(self):
        chosen = distribution.strategy(distribution.ONE)
        self.assertTrue(distribution.leads(chosen))
        distribution.check_equal(chosen, 3, "anything")

    def test_workers_need_to_be_named(self):
        self.assertNotIn("TF_CONFIG", os.environ)
        with self.assertRaisesRegex(errors.UsageError, "multi_worker needs TF_CONFIG"):
            distribution.strategy(distribution.MULTI_WORKER)


if __name__ == "__main__":
    absltest.main()
