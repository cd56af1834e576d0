"""Costs read from a file: those that were counted for its layers, or an error."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import encoder_decoder, every_op, mlp, padded
from tfgen import errors
from tfgen.cost import arena, cost_model
from tfgen.deployment import delivered, probe
from tfgen.space import bits
from tfgen.space.layers import LayerSpec, slots_of

POLICY = bits.load("litert-2.3")
MLP = mlp((6, 4, 3), (8, 4, 2), 5)


class CostsTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def costs(
        self,
        written: Sequence[LayerSpec],
        promised: Sequence[LayerSpec],
        shape: tuple[int, ...],
        **options: object,
    ) -> dict[str, float]:
        path, recipe = self.folder / "model.tflite", self.folder / "recipe.json"
        path.write_bytes(probe.write_probe(written, shape, POLICY, **options))
        recipe.write_text(json.dumps({"layers": [layer.to_json() for layer in promised]}))
        return delivered.costs(path, recipe)

    @parameterized.parameters("float", "int8")
    def test_as_counted(self, io: str) -> None:
        image = (8, 8, 1)
        networks = ((MLP, (5,)), (every_op(), image), (encoder_decoder(), image), (padded(), image))
        for layers, shape in networks:
            slots = slots_of(layers)
            counted = {m: values[0] for m, values in cost_model.count(slots).items()}
            counted["peak_ram_kb"] = arena.arena_bytes(slots, io)[0] / 1000
            self.assertEqual(self.costs(layers, layers, shape, io=io), counted)

    def test_by_hand(self) -> None:
        # 5-6-4-3: 36 + 28 + 15 parameters, 30 + 24 + 12 MACs.
        costs = self.costs(MLP, MLP, (5,))
        self.assertEqual((costs["params"], costs["macs"]), (79, 66))

    def test_other_networks_than_promised(self) -> None:
        wider = mlp((7, 4, 3), (8, 4, 2), 5)
        with self.assertRaisesRegex(errors.CorruptFileError, "'hidden_1' is not as in recipe"):
            self.costs(wider, MLP, (5,))
        fewer_bits = mlp((6, 4, 3), (8, 2, 2), 5)
        with self.assertRaisesRegex(errors.CorruptFileError, "'hidden_2'.*more than 2 bits"):
            self.costs(MLP, fewer_bits, (5,))
        short = [MLP[0], dataclasses.replace(MLP[2], inputs=("hidden_1",), in_channels=6)]
        with self.assertRaisesRegex(errors.CorruptFileError, "lacks layers.*'hidden_2'"):
            self.costs(short, [*short, MLP[1]], (5,))
        with self.assertRaisesRegex(errors.CorruptFileError, "'output' is not in the recipe"):
            self.costs(MLP, MLP[:2], (5,))

    def test_other_zeros_than_promised(self) -> None:
        layers = padded()
        two = {"zeros": {"offset": 2, "out_size": (12, 12)}, "pool": {"in_size": (12, 12)}}
        wider = [dataclasses.replace(layer, **two.get(layer.name, {})) for layer in layers]
        with self.assertRaisesRegex(errors.CorruptFileError, "'zeros' is not as in recipe"):
            self.costs(layers, wider, (8, 8, 1))
        content = bytearray(probe.write_probe(layers, (8, 8, 1), POLICY))
        alike = np.array([0, 0, 1, 1, 1, 1, 0, 0], np.int32).tobytes()
        self.assertEqual(content.count(alike), 1)  # two of three pads are alike
        content[content.index(alike) + 8] = 2  # two rows above
        path, recipe = self.folder / "model.tflite", self.folder / "recipe.json"
        path.write_bytes(content)
        recipe.write_text(json.dumps({"layers": [layer.to_json() for layer in layers]}))
        with self.assertRaisesRegex(errors.CorruptFileError, "not alike on each side"):
            delivered.costs(path, recipe)

    def test_other_graphs_than_promised(self) -> None:
        layers = every_op()
        for name, change in (
            ("slice_5", {"offset": 4}),
            ("stem", {"activation": "relu"}),
            ("depthwise_3", {"kernel": 5}),
            ("pool", {"kernel": 3}),
            ("residual", {"inputs": ("pool", "project")}),
        ):
            other = [dataclasses.replace(x, **change) if x.name == name else x for x in layers]
            with self.assertRaisesRegex(errors.CorruptFileError, f"{name!r} is not as in recipe"):
                self.costs(layers, other, (8, 8, 1))

    def test_damaged_files(self) -> None:
        self.costs(MLP, MLP, (5,))
        path = self.folder / "model.tflite"
        content = path.read_bytes()
        for broken in (b"", content[: len(content) // 2], b"no model at all"):
            path.write_bytes(broken)
            with self.assertRaisesRegex(errors.CorruptFileError, "model.tflite"):
                delivered.costs(path, self.folder / "recipe.json")


if __name__ == "__main__":
    absltest.main()
