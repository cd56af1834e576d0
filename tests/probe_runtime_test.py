"""The probe of a runtime: its arithmetic by hand, how it judges, and some ops really run."""

import dataclasses
import json
import pathlib
import types
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import errors, seeds
from tfgen.deployment import benchmark, child, tflite_file, tflite_writer, timing
from tfgen.space import bits
from tfgen.space.layers import OPS, WEIGHTED_OPS
from tools import probe_runtime

IMAGE = np.array([[[1, 10], [2, 20]], [[3, 30], [4, 40]]])[np.newaxis]  # [1, 2, 2, 2]


def layer(op: str, channels: int = 2, side: int = 2, weight_bits: int = 0, **fields: object):
    return probe_runtime._layer(op, channels, side, weight_bits, 8, **fields)


def weights(kernel: np.ndarray, bias: list[int], scales: list[float]) -> tflite_writer.Weights:
    return tflite_writer.Weights(kernel, np.array(bias), np.array(scales, np.float32), 8)


class ExactTest(parameterized.TestCase):
    def test_dense(self) -> None:
        # (3*1 - 2*2 + 5) * 0.5 * 2 = 4 and (3*0 + 2*1 - 8) * 0.5 * 4 = -12, which relu cuts.
        numbers = weights(np.array([[1, -2], [0, 1]]), [5, -8], [2.0, 4.0])
        x = np.array([[3, 2]])
        for activation, wanted in (("linear", [[4, -12]]), ("relu", [[4, 0]])):
            dense = layer("dense", 2, 0, 8, out_channels=2, activation=activation)
            np.testing.assert_array_equal(probe_runtime.exact(dense, [x], [0.5], numbers), wanted)

    def test_convolutions_pad_as_same_does(self) -> None:
        # Stride 2 over 2x2 with a 3x3 kernel: one output, whose window has the image in its upper
        # left and zeros below and to the right.
        kernel = np.arange(9).reshape(1, 3, 3, 1) * np.array([1, 1])
        fields = {"kernel": 3, "stride": 2, "weight_bits": 8}
        # Of a channel: 0*1 + 1*2 + 3*3 + 4*4 = 27; ten times that in the other.
        numbers = weights(kernel, [0, 1], [1.0, 1.0])
        given = probe_runtime.exact(layer("depthwise", **fields), [IMAGE], [1.0], numbers)
        np.testing.assert_array_equal(given, [[[[27, 271]]]])
        numbers = weights(kernel, [3], [0.5])
        conv = layer("conv", **fields, out_channels=1)
        given = probe_runtime.exact(conv, [IMAGE], [1.0], numbers)
        np.testing.assert_array_equal(given, [[[[(27 + 270 + 3) / 2]]]])

    @parameterized.parameters(
        ("add", {}, [[[2, 20], [4, 40]], [[6, 60], [8, 80]]]),
        ("add", {"activation": "relu6"}, [[[2, 6], [4, 6]], [[6, 6], [6, 6]]]),
        ("multiply", {}, [[[1, 100], [4, 400]], [[9, 900], [16, 1600]]]),
        ("concat", {}, [[[1, 10, 1, 10], [2, 20, 2, 20]], [[3, 30, 3, 30], [4, 40, 4, 40]]]),
        ("flatten", {}, [1, 10, 2, 20, 3, 30, 4, 40]),
        ("slice", {"offset": 1, "out_channels": 1}, [[[10], [20]], [[30], [40]]]),
        ("average_pool", {"kernel": 2, "stride": 2}, [[[2.5, 25]]]),
        # Windows of 2x2 begin at each pixel, and the last ones have one or two within the image.
        ("average_pool", {"kernel": 2}, [[[2.5, 25], [3, 30]], [[3.5, 35], [4, 40]]]),
        ("max_pool", {"kernel": 2, "stride": 2}, [[[4, 40]]]),
        ("max_pool", {"kernel": 3}, [[[4, 40]] * 2] * 2),
        ("mean", {}, [2.5, 25]),
        ("mean", {"out_size": (1, 1)}, [[[2.5, 25]]]),
        # x * relu6(x + 3) / 6: 1 * 4 / 6, 2 * 5 / 6, 3 * 6 / 6, and x from there on.
        ("hard_swish", {}, [[[2 / 3, 10], [5 / 3, 20]], [[3, 30], [4, 40]]]),
    )
    def test_without_weights(self, op: str, fields: dict, wanted: list) -> None:
        given = probe_runtime.exact(layer(op, **fields), [IMAGE, IMAGE], [1.0, 1.0])
        np.testing.assert_allclose(given, [wanted], rtol=1e-12)

    def test_sigmoid(self) -> None:
        given = probe_runtime.exact(layer("sigmoid"), [np.zeros_like(IMAGE)], [1.0])
        np.testing.assert_array_equal(given, np.full((1, 2, 2, 2), 0.5))


class CompareTest(parameterized.TestCase):
    @parameterized.parameters(
        # Steps of 1/2 around 10; wanted 12.4 and -3.5 steps, which are 12 and either neighbour.
        ([12, -4], bits.Result("exact", 0, 0)),
        ([12, -3], bits.Result("exact", 0, 0)),
        ([13, -3], bits.Result("close", 1, 0.5)),
        ([12, -6], bits.Result("close", 2, -1)),
        ([112, -4], bits.Result("wrong", 100, 50)),
        ([2.0**100, -4], bits.Result("wrong", 2.0**100, 2.0**99)),
        ([112, np.nan], bits.Result("nan")),
        ([np.inf, -4], bits.Result("nan")),
    )
    def test_judges(self, steps: list[float], wanted: bits.Result) -> None:
        file = probe_runtime.ProbeFile(b"", (), np.array([[12.4, -3.5]]), 0.5, 10)
        given = ((np.array([steps]) - 10) * 0.5).astype(np.float32)
        self.assertEqual(probe_runtime.compare(given, file), wanted)


class WriteTest(parameterized.TestCase):
    @parameterized.parameters(*OPS)
    def test_one_op_and_its_operands(self, op: str) -> None:
        chosen = probe_runtime.layers(op, 4 if op in WEIGHTED_OPS else 0, 8)[0]
        file = probe_runtime.write(chosen, seeds.stream(1))
        again = probe_runtime.write(chosen, seeds.stream(1))
        self.assertEqual(file.content, again.content)
        model = tflite_file.parse(file.content)
        graph = model.subgraphs[0]
        self.assertLen(graph.operators, 1)
        self.assertLen(graph.inputs, 2 if op in ("add", "concat", "multiply") else 1)
        # The outputs are spread over the integers: they tell kernels apart.
        self.assertGreater(file.wanted.max() - file.wanted.min(), 50)

    def test_some_outputs_are_clipped(self) -> None:
        file = probe_runtime.write(probe_runtime.layers("dense", 8, 8)[0], seeds.stream(1))
        self.assertEqual((file.wanted.min(), file.wanted.max()), (-128, 127))


class ProbeTest(absltest.TestCase):
    """The installed runtime, two layers of a row at most."""

    def test_dense_in_int8_is_exact(self) -> None:
        row = probe_runtime.probe(probe_runtime.layers("dense", 8, 8)[:1])
        self.assertEqual(row.xnnpack, bits.Result("exact", 0, 0))
        self.assertTrue(row.builtin.sound)
        self.assertEqual(row.channel_multiple, 1)

    def test_dense_in_int4_is_accelerated_for_even_channels(self) -> None:
        row = probe_runtime.probe(probe_runtime.layers("dense", 4, 8)[:2])  # 5 and 6 channels
        self.assertEqual(row.channel_multiple, 2)
        self.assertEqual(row.xnnpack, bits.Result("exact", 0, 0))
        self.assertEqual(row.builtin.outcome, "close")

    def test_convolutions_in_int2_are_not_sound(self) -> None:
        chosen = probe_runtime.layers("conv", 2, 8)[:1]
        row = probe_runtime.probe(chosen)
        self.assertFalse(row.sound)
        self.assertIsNone(row.xnnpack)
        self.assertEqual(row.builtin.outcome, "refused")
        self.assertIn("CONV_2D", row.builtin.reason)
        # The kernel reads memory that nobody wrote: NaN in most files, some number in others.
        self.assertIn(probe_runtime.probe(chosen, floats=True).builtin.outcome, ("nan", "wrong"))

    def test_two_operands(self) -> None:
        row = probe_runtime.probe(probe_runtime.layers("add", 0, 8)[:1])
        self.assertEqual(row.xnnpack, bits.Result("exact", 0, 0))

    def test_a_crash_is_a_result(self) -> None:
        def crash(path: pathlib.Path, *operands: np.ndarray, xnnpack: bool) -> np.ndarray:
            del operands
            if xnnpack:
                raise errors.CorruptFileError(f"{path}: {child.CRASHED} (SIGSEGV)")
            raise errors.TfgenError(f"{path}: did not finish within 120 s")

        with mock.patch.object(benchmark, "predict", crash):
            row = probe_runtime.probe(probe_runtime.layers("dense", 8, 8)[:1])
        self.assertEqual(row.builtin.outcome, "crashed")
        self.assertFalse(row.sound)


class TimedTest(absltest.TestCase):
    def test_sound_rows_over_int8(self) -> None:
        close = bits.Result("close", 1, 0.1)

        def row(container_bits: int, activation_bits: int, result: bits.Result = close) -> bits.Row:
            return bits.Row(
                op="dense",
                container_bits=container_bits,
                activation_bits=activation_bits,
                xnnpack=None,
                builtin=result,
            )

        rows = [row(2, 8, bits.Result("nan")), row(4, 8), row(8, 8), row(8, 16), row(8, 32)]
        latencies = [types.SimpleNamespace(latency_ms=ms) for ms in (2.0, 4.0, 40.0)]
        with mock.patch.object(timing, "compare", return_value=latencies) as compare:
            given = [row.time_over_int8 for row in probe_runtime.timed(rows)]
        self.assertLen(compare.call_args.args[0], 3)
        self.assertEqual(given, [None, 0.5, 1.0, 10.0, None])


class FileTest(absltest.TestCase):
    def test_what_is_saved_is_a_policy(self) -> None:
        rows = [dataclasses.replace(r, time_over_int8=None) for r in bits.load("litert-2.3").rows]
        path = pathlib.Path(self.create_tempdir().full_path) / "new-1.0.json"
        probe_runtime.save(path, "new 1.0", rows)
        data = json.loads(path.read_text())
        self.assertEqual(data["runtime"], "new 1.0")
        self.assertEqual(bits.from_json("new-1.0", data, str(path)).rows, tuple(rows))

    def test_the_shipped_file_has_all_rows_in_order(self) -> None:
        found = [probe_runtime._key(row) for row in bits.load("litert-2.3").rows]
        self.assertEqual(found, [(op, *w) for op in OPS for w in probe_runtime.widths(op)])


if __name__ == "__main__":
    absltest.main()
