"""Probes: sizes that counting tells exactly, kernels that XNNPACK takes, many timed at once."""

import pathlib
from collections.abc import Callable

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import branched, encoder_decoder, every_op, mlp, padded
from tfgen import errors, seeds
from tfgen.cost import file_size
from tfgen.deployment import benchmark, probe, tflite_file, timing
from tfgen.space import bits, catalog
from tfgen.space.layers import LayerSpec, layers_of, slots_of
from tfgen.space.lowering import lower_batch

POLICY = bits.load("litert-2.3")
NETWORKS = 200
SPACES = [name for name in sorted(catalog.SPACES) if catalog.get(name).bit_policy != bits.SIMULATED]


class SizeTest(parameterized.TestCase):
    @parameterized.parameters(*SPACES)
    def test_files_are_as_large_as_counted(self, name: str) -> None:
        space = catalog.get(name)
        policy = bits.load(space.bit_policy)
        slots = lower_batch(space, space.sample(NETWORKS, seeds.stream(0, name)))
        for io in ("float", "int8"):
            counted = file_size.file_bytes(slots, policy, io)
            for row in range(NETWORKS):
                layers = layers_of(slots, row)
                content = probe.write_probe(layers, space.input_shape, policy, io=io)
                self.assertEqual(len(content), counted[row], f"network {row}, {io}")

    @parameterized.parameters((8, "hard_swish"), (8, "relu"), (16, "relu"))
    def test_every_op_is_counted(self, activation_bits: int, activation: str) -> None:
        layers = every_op(activation_bits=activation_bits, activation=activation)
        content = probe.write_probe(layers, (8, 8, 1), POLICY)
        self.assertEqual(file_size.file_bytes(slots_of(layers), POLICY), len(content))

    @parameterized.product(
        make=(encoder_decoder, padded, branched), activation_bits=(8, 16), io=("float", "int8")
    )
    def test_images_come_out_are_padded_and_joined(
        self, make: Callable[[int], tuple[LayerSpec, ...]], activation_bits: int, io: str
    ) -> None:
        layers = make(activation_bits)
        content = probe.write_probe(layers, (8, 8, 1), POLICY, io=io)
        self.assertEqual(file_size.file_bytes(slots_of(layers), POLICY, io), len(content))

    def test_equal_zero_points_are_written_once(self) -> None:
        def size(*widths: int) -> int:
            return len(probe.write_probe(mlp(widths, (8,) * len(widths), 16), (16,), POLICY))

        # Eight more units: each has 16 weights, one in each of the next layer's 24 units, a bias of
        # 4 bytes and two scales. But 24 units share the next layer's zero points, and 16 had
        # theirs, of 8 + 8 * 16 bytes. Three constants and the file are rounded up to 16 bytes.
        wanted = 8 * (16 + 24 + 4 + 2 * 4) - (8 + 8 * 16)
        self.assertAlmostEqual(size(24, 24, 1) - size(16, 24, 1), wanted, delta=31)

    def test_integer_ends_take_fewer_bytes(self) -> None:
        layers = mlp((16, 4), (4, 4), 8)
        sizes = [len(probe.write_probe(layers, (8,), POLICY, io=io)) for io in ("float", "int8")]
        self.assertBetween(sizes[0] - sizes[1], 200, 300)


class ProbeTest(parameterized.TestCase):
    def test_equal_seeds_give_equal_files(self) -> None:
        layers = every_op()
        files = [probe.write_probe(layers, (8, 8, 1), POLICY, seed=seed) for seed in (1, 1, 2)]
        self.assertEqual(files[0], files[1])
        self.assertNotEqual(files[0], files[2])
        self.assertLen(files[2], len(files[0]))

    def test_outputs_are_neither_constant_nor_clipped(self) -> None:
        layers = mlp((64, 64, 64, 10), (8, 4, 2, 8), 32)
        content = probe.write_probe(layers, (32,), POLICY)
        path = pathlib.Path(self.create_tempfile(content=content, mode="wb").full_path)
        x = np.random.default_rng(0).normal(size=(100, 32)).astype(np.float32)
        outputs = benchmark.predict(path, x)
        # Ranges are -3 .. 3 for a unit variance: of normal numbers 0.3 % would be clipped.
        self.assertGreater(outputs.std(axis=0).min(), 0.05)
        self.assertLess((np.abs(outputs) > 2.95).mean(), 0.05)

    def test_float_networks(self) -> None:
        # 32 * 64 + 64 + 64 * 10 + 10 numbers of 4 bytes, and less than 2 kB of layout.
        layers = mlp((64, 10), (8, 8), 32)
        content = probe.write_probe(layers, (32,), None)
        self.assertBetween(len(content), 4 * 2762, 4 * 2762 + 2000)
        (found,) = timing.compare([content])
        self.assertTrue(found.fully_accelerated)

    def test_many_are_timed_in_one_process(self) -> None:
        small, large = mlp((64, 4), (4, 8), 64), mlp((1024, 1024, 4), (8, 8, 8), 64)
        found = timing.measure_probes([small, large], (64,), POLICY)
        self.assertEqual([x.fully_accelerated for x in found], [True, True])
        sizes = [int(file_size.file_bytes(slots_of(x), POLICY)[0]) for x in (small, large)]
        self.assertEqual([x.file_bytes for x in found], sizes)
        # A million multiplications against 4,096: more than ten times the time on any host.
        self.assertGreater(found[1].latency_ms, 3 * found[0].latency_ms)

    def test_slow_kernels_are_told(self) -> None:
        # XNNPACK reads INT4 only where the inputs are even.
        layers = mlp((9, 4), (8, 4), 64)
        content = probe.write_probe(layers, (64,), POLICY, containers={"output": 4})
        (found,) = timing.compare([content])
        self.assertFalse(found.fully_accelerated)

    def test_a_refused_file_is_named(self) -> None:
        layers = every_op()
        named = {"stem": 2}  # no kernel computes a convolution of 2 bits
        files = [
            probe.write_probe(layers, (8, 8, 1), POLICY),
            probe.write_probe(layers, (8, 8, 1), POLICY, containers=named),
        ]
        with self.assertRaisesRegex(errors.CorruptFileError, "0000001.tflite"):
            timing.compare(files)
        self.assertEqual(timing.compare([]), [])
        with self.assertRaisesRegex(errors.UsageError, "windows"):
            timing.compare(files, windows=0)

    def test_canonical_form_is_what_is_written(self) -> None:
        content = probe.write_probe(every_op(), (8, 8, 1), POLICY)
        again = tflite_file.serialize(tflite_file.canonical(tflite_file.parse(content)))
        self.assertEqual(again, content)


if __name__ == "__main__":
    absltest.main()
