"""The arena that counting promises is the one that the interpreter allocates, to the byte."""

import pathlib
from collections.abc import Callable

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import branched, encoder_decoder, every_op, mlp, padded
from tfgen import errors, seeds
from tfgen.cost import arena as counted
from tfgen.deployment import arena, probe
from tfgen.space import bits, catalog, published
from tfgen.space.layers import LayerSlots, LayerSpec, layers_of, slots_of
from tfgen.space.lowering import lower_batch

POLICY = bits.load("litert-2.3")
SPACES = [name for name in sorted(catalog.SPACES) if catalog.get(name).bit_policy != bits.SIMULATED]
NETWORKS = 12


class ArenaTest(parameterized.TestCase):
    def measured(self, *contents: bytes) -> list[int]:
        folder = pathlib.Path(self.create_tempdir().full_path)
        paths = [folder / f"{number}.tflite" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        return arena.measure(*paths)

    def compare(
        self,
        slots: list[LayerSlots],
        input_shape: tuple[int, ...],
        policy: bits.BitPolicy | None = POLICY,
        io: str = "float",
    ) -> None:
        networks = [layers_of(slots, row) for row in range(len(slots[0].present))]
        files = [probe.write_probe(layers, input_shape, policy, io=io) for layers in networks]
        np.testing.assert_array_equal(counted.arena_bytes(slots, io), self.measured(*files))

    @parameterized.product(name=SPACES, io=("float", "int8"))
    def test_random_networks(self, name: str, io: str) -> None:
        space = catalog.get(name)
        slots = lower_batch(space, space.sample(NETWORKS, seeds.stream(0, name)))
        self.compare(slots, space.input_shape, bits.load(space.bit_policy), io)

    @parameterized.parameters((16, POLICY), (32, None))
    def test_other_activations(self, width: int, policy: bits.BitPolicy | None) -> None:
        # 32 bits stand for floats, which are not wrapped in QUANTIZE and DEQUANTIZE.
        for name in ("mnist_mlp", "cifar10_mobile"):
            space = catalog.get(name)
            drawn = space.sample(NETWORKS, seeds.stream(1, name))
            self.compare(lower_batch(space, drawn, width), space.input_shape, policy)

    @parameterized.parameters("resnet8", "mobilenet_v2")
    def test_published_networks(self, name: str) -> None:
        space, network = published.network(name)
        self.compare(lower_batch(space, space.choices([network])), space.input_shape)

    @parameterized.product(activation=("hard_swish", "relu"), io=("float", "int8"))
    def test_every_op(self, activation: str, io: str) -> None:
        self.compare(slots_of(every_op(activation=activation)), (8, 8, 1), io=io)

    @parameterized.product(make=(encoder_decoder, padded, branched), io=("float", "int8"))
    def test_images_come_out_are_padded_and_joined(
        self, make: Callable[[], tuple[LayerSpec, ...]], io: str
    ) -> None:
        self.compare(slots_of(make()), (8, 8, 1), io=io)

    def test_by_hand(self) -> None:
        # 100-70-3 with integer ends. The input is kept, at 0 .. 100; hidden_1 is needed with it, at
        # 128 .. 198; the output is needed with both, at 256 .. 259.
        layers = mlp((70, 3), (8, 8), 100)
        content = probe.write_probe(layers, (100,), POLICY, io="int8")
        self.assertEqual(self.measured(content), [259])
        self.assertEqual(counted.arena_bytes(slots_of(layers), "int8"), [259])
        # With float ends 400 bytes are kept; behind them, at multiples of 64, lie the integer input
        # at 448 .. 548 and hidden_1 at 576 .. 646. The float output, 12 bytes at 448, is needed
        # when the integer input no longer is; the output with it and hidden_1, at 512 .. 515.
        content = probe.write_probe(layers, (100,), POLICY)
        self.assertEqual(self.measured(content), [646])
        self.assertEqual(counted.arena_bytes(slots_of(layers)), [646])

    def test_a_gap_is_taken(self) -> None:
        # Integer ends, widths 64, 640, 64, 320, 64: all multiples of 64, so nothing is lost.
        # Kept input 0 .. 64; hidden_1 64 .. 704; hidden_3, not needed with it, 64 .. 384; hidden_2
        # needed with both behind hidden_1 at 704 .. 768; the output behind hidden_3.
        layers = mlp((640, 64, 320, 64), (8,) * 4, 64)
        content = probe.write_probe(layers, (64,), POLICY, io="int8")
        self.assertEqual(self.measured(content), [768])
        self.assertEqual(counted.arena_bytes(slots_of(layers), "int8"), [768])

    def test_no_networks(self) -> None:
        space = catalog.get("mnist_mobile")
        slots = lower_batch(space, space.sample(0, seeds.stream(0, "none")))
        self.assertEqual(counted.arena_bytes(slots).shape, (0,))

    def test_refused_files_are_named(self) -> None:
        good = probe.write_probe(mlp((4,), (8,), 8), (8,), POLICY)
        with self.assertRaisesRegex(errors.CorruptFileError, "1.tflite: the runtime refuses"):
            self.measured(good, good[: len(good) // 2], good)
        with self.assertRaisesRegex(errors.CorruptFileError, "nowhere.tflite: file is missing"):
            arena.measure("nowhere.tflite")


if __name__ == "__main__":
    absltest.main()
