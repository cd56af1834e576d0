"""Exported files against the networks they were made from, on California Housing."""

import pathlib
from collections.abc import Sequence
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import mlp
from tfgen import errors
from tfgen.deployment import benchmark, export, tflite_file
from tfgen.nets import rounding
from tfgen.space import bits
from tfgen.space.layers import LayerSpec
from tfgen.training import datasets, quantize_aware, tasks, trainer
from tfgen.training.recipe import Recipe

ANY_BITS = bits.load("litert-2.3")
RECIPE = Recipe(steps=100, warmup_steps=10)


MIXED = mlp((12, 9, 8, 6, 1), (8, 6, 4, 3, 2), 8)


def stored(content: bytes) -> dict[str, tflite_file.WeightedOp]:
    return {op.name: op for op in tflite_file.read(content).ops}


class ExportTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.data = datasets.california_housing()
        cls.trained = trainer.train(MIXED, cls.data, RECIPE, 1)
        cls.exported = cls.export(cls.trained.model, MIXED)

    @classmethod
    def export(cls, model: object, layers: Sequence[LayerSpec], **options: str) -> export.Exported:
        return export.export(model, layers, cls.data.test.x, ANY_BITS, **options)

    def file(self, content: bytes) -> pathlib.Path:
        return pathlib.Path(self.create_tempfile(content=content, mode="wb").full_path)

    def test_every_level_is_the_trained_one(self) -> None:
        ops = stored(self.exported.content)
        for layer in MIXED:
            kernel = quantize_aware.variables(self.trained.model, layer.name)["kernel"].numpy()
            levels, scale = rounding.weight_levels(kernel, layer.weight_bits)
            np.testing.assert_array_equal(ops[layer.name].levels, levels.T)
            np.testing.assert_allclose(ops[layer.name].scales, scale, rtol=1e-6)
        containers = [ops[layer.name].container_bits for layer in MIXED]
        self.assertEqual(containers, [8, 8, 8, 4, 4])

    def test_agrees_with_the_network(self) -> None:
        self.assertEqual(self.exported.compared, 1000)
        self.assertIsNone(self.exported.agreement)
        # XNNPACK reads every layer: hidden_3 has 9 inputs and lies in INT8, output 6, in INT4.
        self.assertLessEqual(self.exported.max_steps, 1.01)
        self.assertLessEqual(self.exported.mean_steps, 3 / 1000)
        path = self.file(self.exported.content)
        metric = self.data.task.score(
            self.data.validation.y, benchmark.predict(path, self.data.validation.x)
        )
        self.assertAlmostEqual(metric, self.trained.metric, delta=0.01)

    def test_xnnpack_computes_what_was_trained(self) -> None:
        # Even widths for INT4, multiples of 4 for INT2.
        layers = mlp((12, 16, 1), (8, 4, 2), 8)
        trained = trainer.train(layers, self.data, RECIPE, 2)
        exported = self.export(trained.model, layers)
        # 1,000 outputs; XNNPACK differed on 0.02 % of them at most: 4 or more fail 1 run in 10**4.
        self.assertLessEqual(exported.mean_steps, 3 / 1000)
        self.assertLessEqual(exported.max_steps, 1.01)
        measured = benchmark.measure(self.file(exported.content), runs=20, warmup=2)
        self.assertTrue(measured.fully_accelerated)
        self.assertEqual(measured.file_bytes, len(exported.content))

    def test_equal_networks_give_equal_bytes(self) -> None:
        self.assertEqual(self.export(self.trained.model, MIXED), self.exported)
        again = trainer.train(MIXED, self.data, RECIPE, 1)
        self.assertEqual(self.export(again.model, MIXED).content, self.exported.content)

    def test_saved_network_exports_the_same_bytes(self) -> None:
        folder = pathlib.Path(self.create_tempdir().full_path)
        trainer.save(self.trained, folder)
        loaded = trainer.load(folder)
        exported = self.export(loaded.model, loaded.layers)
        self.assertEqual(exported.content, self.exported.content)

    def test_large_file(self) -> None:
        # 300,000 levels of 8 bits: from 262,144 bytes on the quantizer keeps them behind the tree.
        layers = mlp((600, 500, 1), (8, 8, 8), 8)
        trained = trainer.train(layers, self.data, RECIPE, 1)
        exported = self.export(trained.model, layers)
        self.assertEqual(stored(exported.content)["hidden_2"].levels.size, 300_000)
        self.assertGreater(len(exported.content), 300_000)

    def test_constants_behind_the_tree(self) -> None:
        model = tflite_file.parse(self.exported.content)
        number, buffer = max(
            enumerate(model.buffers),
            key=lambda item: 0 if item[1].data is None else len(item[1].data),
        )
        data, buffer.data = bytes(buffer.data), None
        buffer.offset, buffer.size = 1, len(data)
        buffer.offset = -(-len(tflite_file.serialize(model)) // 16) * 16
        tree = tflite_file.serialize(model)
        content = tree.ljust(buffer.offset, b"\0") + data
        found = tflite_file.parse(content)
        self.assertEqual(bytes(found.buffers[number].data), data)
        whole = tflite_file.parse(self.exported.content)
        self.assertEqual(tflite_file.serialize(found), tflite_file.serialize(whole))
        with self.assertRaisesRegex(errors.CorruptFileError, f"buffer {number} ends at byte"):
            tflite_file.read(content[:-1])

    def test_int8_file_answers_the_same(self) -> None:
        exported = self.export(self.trained.model, MIXED, io="int8")
        x = self.data.test.x[:300]
        np.testing.assert_allclose(
            benchmark.predict(self.file(exported.content), x),
            benchmark.predict(self.file(self.exported.content), x),
            atol=1e-5,
        )
        self.assertLess(len(exported.content), len(self.exported.content))

    def test_prediction_equals_the_runtimes(self) -> None:
        from ai_edge_litert.interpreter import Interpreter

        runtime = Interpreter(model_content=self.exported.content)
        runtime.allocate_tensors()
        wanted = []
        for example in self.data.test.x[:50]:
            runtime.set_tensor(runtime.get_input_details()[0]["index"], example[np.newaxis])
            runtime.invoke()
            wanted.append(runtime.get_tensor(runtime.get_output_details()[0]["index"])[0])
        path = self.file(self.exported.content)
        np.testing.assert_array_equal(benchmark.predict(path, self.data.test.x[:50]), wanted)

    def test_payload_by_hand(self) -> None:
        # 8-12-9-8-6-1 in containers of 8, 8, 8, 4 and 4 bits: (96 + 108 + 72) * 8 + (48 + 6) * 4.
        self.assertEqual(tflite_file.read(self.exported.content).payload_bits, 2424)

    @parameterized.parameters(
        ((1, 1, 1), (2, 2, 2)),
        ((1, 1), (8, 8)),
        ((1, 1, 1, 1), (4, 2, 8, 4)),
    )
    def test_single_units(self, widths: tuple[int, ...], weight_bits: tuple[int, ...]) -> None:
        # Units that never fire keep a bias of 0, which the converter would drop.
        layers = mlp(widths, weight_bits, 8)
        trained = trainer.train(layers, self.data, Recipe(steps=20, warmup_steps=5), 5)
        ops = stored(self.export(trained.model, layers).content)
        self.assertEqual([op.bias_elements for op in ops.values()], list(widths))

    def test_classes(self) -> None:
        # Quintiles of the value as classes.
        layers = mlp((16, 8, 5), (8, 4, 4), 8)
        model = quantize_aware.build(layers, (8,))
        x = self.data.train.x[:512]
        model(x, training=True)
        exported = self.export(model, layers)
        self.assertGreaterEqual(exported.agreement, 0.99)


class DegenerateTest(absltest.TestCase):
    """Networks that training may leave behind; equal weights of two layers share one constant."""

    def check(self, kernels: float, hidden_bias: float) -> None:
        layers = mlp((4, 4, 4, 1), (2, 2, 2, 2), 4)
        model = quantize_aware.build(layers, (4,))
        for layer in layers:
            found = quantize_aware.variables(model, layer.name)
            found["kernel"].assign(np.full(found["kernel"].shape, kernels))
            found["bias"].assign(np.full(found["bias"].shape, hidden_bias))
        quantize_aware.variables(model, "output")["bias"].assign([0.7])
        x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
        model(x, training=True)
        quantize_aware.settle(model, layers)
        exported = export.export(model, layers, x, ANY_BITS)
        file = tflite_file.read(exported.content)
        self.assertEqual([op.bias_elements for op in file.ops], [4, 4, 4, 1])
        self.assertLessEqual(exported.max_steps, 1.01)

    def test_zeros_everywhere(self) -> None:
        self.check(0.0, 0.0)

    def test_zero_weights_with_biases(self) -> None:
        self.check(0.0, 0.25)

    def test_dead_layers(self) -> None:
        self.check(0.5, -100.0)

    def test_equal_layers(self) -> None:
        self.check(0.5, 0.25)


class RefusalTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.layers = mlp((4, 1), (4, 4), 4)
        cls.model = quantize_aware.build(cls.layers, (4,))
        cls.x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
        cls.model(cls.x, training=True)

    def export(self, **options: str) -> export.Exported:
        return export.export(self.model, self.layers, self.x, ANY_BITS, **options)

    def test_simulated_bits(self) -> None:
        with self.assertRaisesRegex(errors.UsageError, "simulated"):
            export.export(self.model, self.layers, self.x, bits.SIMULATED)

    def test_bits_without_a_kernel(self) -> None:
        layers = mlp((4, 1), (4, 5), 4)
        with self.assertRaisesRegex(errors.UsageError, "'output'.*5-bit.*2, 4, 8"):
            export.export(self.model, layers, self.x, "litert-2.3")

    def test_unknown_io(self) -> None:
        with self.assertRaisesRegex(errors.UsageError, "float.*int8"):
            self.export(io="int4")

    def test_other_levels(self) -> None:
        pack = export._quantize

        def other(floats: bytes, layers: object, grids: dict, *rest: object) -> tuple[bytes, str]:
            doubled = {
                name: export._Grid(grid.levels, grid.scales * np.float32(2), grid.bias)
                for name, grid in grids.items()
            }
            return pack(floats, layers, doubled, *rest)

        with (
            mock.patch.object(export, "_quantize", other),
            self.assertRaisesRegex(errors.ExportMismatchError, "'hidden_1'.*other levels"),
        ):
            self.export()

    def test_other_outputs(self) -> None:
        for wrong in (1.0, np.nan):
            outputs = np.full((len(self.x), 1), wrong, np.float32) + self.x[:, :1] * 100
            with (
                mock.patch.object(benchmark, "predict", return_value=outputs),
                self.assertRaisesRegex(errors.ExportMismatchError, "steps from the network"),
            ):
                self.export()

    def test_close_decisions_may_fall_either_way(self) -> None:
        # Steps of 0.5. The file decides otherwise three times: where the network preferred its own
        # class by one step, by two, and by three. Of the two that are not close one is right.
        expected = np.array([[0.0, 0.5], [0.0, 1.0], [0.0, 1.5], [3.0, 0.0]])
        given = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        self.assertEqual(export._agreements(expected, given, 0.5), (0.25, 0.5))
        # Where all are close nothing is told by decisions.
        self.assertEqual(export._agreements(expected[:2], given[:2], 0.5), (0.0, None))
        self.assertEqual(export._agreements(expected[:, :1], given[:, :1], 0.5), (None, None))

    def test_other_decisions(self) -> None:
        layers = mlp((8, 3), (8, 8), 4)
        x = np.random.default_rng(1).normal(size=(600, 4)).astype(np.float32)
        split = datasets.Split(x, x[:, :3].argmax(axis=1))
        data = datasets.Dataset("largest", tasks.CLASSIFICATION, split, split, split, {})
        model = trainer.train(layers, data, RECIPE, 1).model
        x = x[:200]
        # The least likely class is far from close.
        wrong = -trainer.predict(model, x)
        with (
            mock.patch.object(benchmark, "predict", return_value=wrong),
            mock.patch.object(export, "MAX_STEPS_PER_LAYER", 1e9),
            self.assertRaisesRegex(errors.ExportMismatchError, "of those of 200 decisions that"),
        ):
            export.export(model, layers, x, ANY_BITS)

    def test_weights_that_are_not_finite(self) -> None:
        model = quantize_aware.build(self.layers, (4,))
        quantize_aware.variables(model, "output")["kernel"].assign(np.full((4, 1), np.nan))
        with self.assertRaisesRegex(errors.ExportMismatchError, "'output'.*not finite"):
            export.export(model, self.layers, self.x, ANY_BITS)


if __name__ == "__main__":
    absltest.main()
