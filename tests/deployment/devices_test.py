"""Which devices there are, which one this machine is, and what profiling it times."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import small_space
from tfgen import errors, seeds
from tfgen.cost import latency_table
from tfgen.cost.latency_table import Device, LatencyTable, NetworkTiming
from tfgen.cost.profiled_latency import ProfiledLatency
from tfgen.deployment import devices, profiling, timing
from tfgen.space import bits, catalog
from tfgen.space.layers import INPUT, check_network, layers_of
from tfgen.space.lowering import lower_batch

SPACE = small_space()
POLICY = bits.load("litert-2.3")


def network(latency_ms: float, row: int = 0, origin: str = "selected") -> NetworkTiming:
    drawn = SPACE.sample(40, seeds.stream(0))
    return NetworkTiming(
        architecture=SPACE.architecture(drawn[row]),
        activation_bits=8,
        io="float",
        origin=origin,
        latency_ms=latency_ms,
        spread=0.0,
        quiet_windows=5,
    )


def table_of(device: Device) -> LatencyTable:
    return LatencyTable(
        device=device, date="2026-11-22", reference_ms=0.01, repeatability=0.01, ops=(), networks=()
    )


class Standing(parameterized.TestCase):
    """The user stands in an empty folder."""

    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.root)

    def write(self, device: Device, name: str = devices.HOST) -> pathlib.Path:
        path = self.root / devices.FOLDER / f"{name}.json"
        table_of(device).save(path)
        return path


class DevicesTest(Standing):
    def test_devices_that_others_measured_are_known(self):
        self.assertIn("pixel3", devices.known())
        self.assertNotIn("host", devices.known())

    def test_an_unknown_device_names_the_known_and_what_to_do(self):
        with self.assertRaisesRegex(errors.UsageError, "unknown device 'pixel9'; known: .*pixel3"):
            devices.find("pixel9")
        with self.assertRaisesRegex(errors.UsageError, "run profile_device --device=host"):
            devices.find("host")

    def test_the_users_folder_comes_first(self):
        path = self.write(devices.this_machine("pixel3"), "pixel3")
        self.assertEqual(devices.find("pixel3"), path)
        devices.check_here("pixel3")

    @parameterized.parameters(
        ("runtime", "ai-edge-litert 1.0", "measured with runtime 'ai-edge-litert 1.0'"),
        ("processor", "x86_64, another", "measured with processor 'x86_64, another'"),
    )
    def test_a_table_of_another_machine_is_refused(self, field, value, message):
        self.write(dataclasses.replace(devices.this_machine(), **{field: value}))
        with self.assertRaisesRegex(errors.UsageError, message):
            devices.latency_model("host", SPACE)
        with self.assertRaisesRegex(errors.UsageError, "add --stop_after=candidates"):
            devices.check_here("host")

    def test_a_table_of_other_threads_is_refused(self):
        self.write(devices.this_machine())
        devices.check_here("host")
        with self.assertRaisesRegex(errors.UsageError, "measured with threads 1, here it is 2"):
            devices.latency_model("host", SPACE, threads=2)
        self.write(devices.this_machine("board"), "board")
        with self.assertRaisesRegex(errors.UsageError, "profiled with 1 threads, --threads=2"):
            devices.latency_model("board", SPACE, threads=2)

    def test_devices_of_others_need_their_tables_and_are_not_here(self):
        with self.assertRaisesRegex(errors.UsageError, "--tables_dir=DIR"):
            devices.latency_model("pixel3", catalog.get("nasbench201"))
        with self.assertRaisesRegex(errors.UsageError, "was measured by others"):
            devices.check_here("pixel3")

    def test_a_damaged_table_is_named(self):
        path = self.write(devices.this_machine())
        path.write_text(path.read_text()[:-40])
        with self.assertRaisesRegex(errors.CorruptFileError, "host.json"):
            devices.latency_model("host", SPACE)

    def test_no_measurement_is_lost_when_several_programs_add(self):
        path = self.write(devices.this_machine())
        script = (
            "import sys; from tests.deployment import devices_test as t\n"
            "from tfgen.deployment import devices\n"
            "for row in range(int(sys.argv[1]), 20, 4):\n"
            "    devices.add_networks('host', [t.network(1.0 + row, row)])"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        running = [
            subprocess.Popen([sys.executable, "-c", script, str(part)], env=environment)
            for part in range(4)
        ]
        self.assertEqual([process.wait(timeout=50) for process in running], [0] * 4)
        found = {t.architecture: t.latency_ms for t in latency_table.load(path).networks}
        # Of a network that was drawn twice the later timing counts.
        self.assertEqual(set(found), {network(1.0, row).architecture for row in range(20)})


class FragmentTest(parameterized.TestCase):
    @parameterized.parameters("mnist_mobile", "cifar10_mobile_v3", "california_housing_mlp")
    def test_every_layer_of_random_networks_comes_in_a_network_of_its_own(self, name):
        space = catalog.get(name)
        slots = lower_batch(space, space.sample(5, seeds.stream(0, name)))
        for row in range(5):
            layers = layers_of(slots, row)
            for position, layer in enumerate(layers):
                part = profiling.fragment(layers, position)
                check_network(part.layers, part.input_shape)
                self.assertEqual(part.layers[-1].name, layer.name)
                if len(layer.inputs) == 1:
                    self.assertLen(part.layers, 1)

    def test_a_residual_comes_with_what_it_is_added_to(self):
        space = catalog.get("mnist_mobile")
        slots = lower_batch(space, space.sample(50, seeds.stream(1)))
        networks = [layers_of(slots, row) for row in range(50)]
        added = [(n, p) for n in networks for p, layer in enumerate(n) if layer.op == "add"]
        self.assertNotEmpty(added)
        for layers, position in added:
            part = profiling.fragment(layers, position)
            self.assertEqual(part.layers[-1].inputs[1], INPUT)

    def test_parts_are_spread_over_kernels(self):
        space = catalog.get("mnist_mobile")
        parts = profiling.choose(space, POLICY, 8, 60, seeds.stream(0))
        ops = {part.layers[-1].op for part in parts}
        self.assertEqual(ops, {"add", "concat", "conv", "dense", "depthwise", "mean", "slice"})
        self.assertBetween(len(parts), 50, 120)  # three at least of each kernel


class ProfileTest(Standing):
    def test_a_space_is_profiled_and_predicted(self):
        said = []
        table = profiling.time_space(
            devices.this_machine(), SPACE, ops=10, networks=60, patience_s=0, say=said.append
        )
        # Of 84 networks, 60 draws meet more than the 20 that a model needs.
        self.assertNotEmpty([t for t in table.networks if t.origin == "selected"])
        model = ProfiledLatency(table, SPACE)
        drawn = SPACE.sample(84, seeds.stream(0))
        interval = model.predict(drawn, 0.5)
        self.assertTrue(np.isfinite(interval.high_ms).all())
        # A few microseconds on any machine that runs this.
        self.assertBetween(np.median(interval.ms), 1e-5, 1.0)
        again = profiling.time_space(
            devices.this_machine(), SPACE, ops=10, networks=60, patience_s=0, say=said.append
        )
        self.assertEqual(
            {t.architecture for t in again.networks if t.origin == "random"},
            {t.architecture for t in table.networks if t.origin == "random"},
        )

    def test_latencies_tell_a_busy_host(self):
        reference_ms = timing.measure_reference()
        files = [timing._reference()] * 3
        # Asked to wait for a host four times as fast, it gives up and says that none was quiet.
        found = timing.compare(files, reference_ms=reference_ms / 4, patience_s=0.2)
        self.assertEqual([time.quiet_windows for time in found], [0] * 3)
        self.assertGreater(min(time.latency_ms for time in found), reference_ms / 4)


if __name__ == "__main__":
    absltest.main()
