"""The benchmark on a file written by hand, on broken files, and the program around it."""

import json
import os
import pathlib
import subprocess
import sys
import types
from unittest import mock

import numpy as np
from absl.testing import absltest

from tfgen import errors
from tfgen.deployment import _litert_child, benchmark, child, tflite_file

# y = W x + b in integers. Input steps of 1/4, weight steps of 1/2 and 1/4 for the two units, so
# biases and accumulators count eighths and sixteenths; output steps of 1/8 around -3.
LEVELS = np.array([[1, -2, 3], [7, -7, 0]])
X = np.array([[1.0, -0.5, 0.25]], np.float32)  # 4, -2, 1
# 4 + 4 + 3 + bias 4 = 15 eighths; 28 + 14 + 0 + bias 0 = 42 sixteenths
Y = np.array([[1.875, 2.625]], np.float32)


def hand_written() -> bytes:
    """A dense layer 3 -> 2 named "unit": 4-bit weights, int8 input and output."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = schema.TensorType
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    graph.tensors = []

    def tensor(name: str, shape: list[int], kind: int, scale: list[float], zero: int) -> None:
        made, quantization = schema.TensorT(), schema.QuantizationParametersT()
        quantization.scale = np.array(scale, np.float32)
        quantization.zeroPoint = np.full(len(scale), zero, np.int64)
        made.name, made.shape, made.type = name.encode(), np.array(shape, np.int32), kind
        made.quantization, made.buffer = quantization, 0
        graph.tensors.append(made)

    def constant(data: bytes) -> None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        model.buffers.append(buffer)
        graph.tensors[-1].buffer = len(model.buffers) - 1

    tensor("input", [1, 3], kinds.INT8, [0.25], 0)
    tensor("unit/kernel", [2, 3], kinds.INT4, [0.5, 0.25], 0)
    # Two's complement in 4 bits, the first of each pair low: 1 e | 3 7 | 9 0
    constant(bytes([0xE1, 0x73, 0x09]))
    tensor("unit/bias", [2], kinds.INT32, [0.125, 0.0625], 0)
    constant(np.array([4, 0], np.int32).tobytes())
    tensor("unit", [1, 2], kinds.INT8, [0.125], -3)
    code, op = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 12
    model.operatorCodes, graph.operators = [code], [op]
    op.opcodeIndex = 0
    op.inputs, op.outputs = np.array([0, 1, 2], np.int32), np.array([3], np.int32)
    op.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    op.builtinOptions = schema.FullyConnectedOptionsT()
    graph.inputs, graph.outputs = np.array([0], np.int32), op.outputs
    return tflite_file.serialize(model)


class FileTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.content = hand_written()
        self.path = self.write("hand.tflite", self.content)

    def write(self, name: str, content: bytes) -> pathlib.Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def broken(self) -> dict[str, bytes]:
        half = self.content[: len(self.content) // 2]
        return {"empty": b"", "half": half, "text": b"not a model " * 50, "head": self.content[:8]}


class ReadTest(FileTest):
    def test_weights_by_hand(self) -> None:
        file = tflite_file.read(self.path)
        (op,) = file.ops
        self.assertEqual((op.name, op.op, op.container_bits), ("unit", "FULLY_CONNECTED", 4))
        np.testing.assert_array_equal(op.levels, LEVELS)
        np.testing.assert_array_equal(op.scales, np.array([0.5, 0.25], np.float32))
        self.assertEqual((op.bias_elements, op.output_elements), (2, 2))
        self.assertEqual(file.file_bytes, len(self.content))
        # 6 weights of 4 bits
        self.assertEqual(file.payload_bits, 24)

    def test_broken_files_are_named(self) -> None:
        for name, content in self.broken().items():
            path = self.write(name, content)
            with self.assertRaisesRegex(errors.CorruptFileError, str(path)):
                tflite_file.read(path)

    def test_any_damage_is_an_error_or_harmless(self) -> None:
        random = np.random.default_rng(0)
        for _ in range(300):
            damaged = bytearray(self.content[: random.integers(8, len(self.content) + 1)])
            damaged[random.integers(len(damaged))] = random.integers(256)
            try:
                tflite_file.read(bytes(damaged))
            except errors.CorruptFileError:
                continue

    def test_missing_file(self) -> None:
        with self.assertRaisesRegex(errors.CorruptFileError, "nowhere.tflite"):
            tflite_file.read(self.folder / "nowhere.tflite")


class BenchmarkTest(FileTest):
    def test_outputs_by_hand(self) -> None:
        np.testing.assert_array_equal(benchmark.predict(self.path, np.tile(X, (5, 1))), Y[[0] * 5])

    def test_outputs_without_xnnpack(self) -> None:
        # 15 eighths and 42 sixteenths are 15 and 21 output steps: no kernel has to round.
        np.testing.assert_array_equal(benchmark.predict(self.path, X, xnnpack=False), Y)

    def test_number_of_inputs(self) -> None:
        with self.assertRaisesRegex(errors.UsageError, "has 1 inputs and 1 outputs, 2 and 1 are"):
            benchmark.predict(self.path, X, X)

    def test_inputs_outside_the_range_are_clipped(self) -> None:
        # 127 + 254 + 3 * 127 + 4 = 766 eighths, which saturates at (127 + 3) eighths.
        given = benchmark.predict(self.path, np.array([[1e9, -1e9, 1e9]], np.float32))
        self.assertEqual(given[0, 0], 130 / 8)

    def test_measures(self) -> None:
        found = benchmark.measure(self.path, runs=200, warmup=5)
        self.assertEqual((found.runs, found.warmup, found.threads), (200, 5, 1))
        self.assertEqual(found.file_bytes, len(self.content))
        self.assertLen(found.sha256, 64)
        self.assertBetween(found.median_ms, found.min_ms, found.p90_ms)
        self.assertLessEqual(found.p90_ms, found.p95_ms)
        self.assertGreater(found.min_ms, 0)
        self.assertGreater(found.init_ms, 0)
        # Of the child alone: NumPy and the runtime.
        self.assertBetween(found.peak_rss_kb, found.base_rss_kb, 500_000)
        self.assertRegex(found.runtime, r"^ai-edge-litert \d")

    def test_broken_files_are_named(self) -> None:
        for name, content in self.broken().items():
            path = self.write(name, content)
            with self.assertRaisesRegex(errors.CorruptFileError, str(path)):
                benchmark.measure(path)

    def test_wrong_inputs(self) -> None:
        with self.assertRaisesRegex(errors.UsageError, r"takes \(1, 3\)"):
            benchmark.predict(self.path, np.zeros((2, 4), np.float32))
        with self.assertRaises(errors.UsageError):
            benchmark.measure(self.path, runs=0)

    def test_time_out(self) -> None:
        with self.assertRaisesRegex(errors.TfgenError, "hand.tflite.*within 1 s"):
            benchmark.measure(self.path, runs=benchmark.MAX_RUNS, timeout_seconds=1)

    def test_memory_limit(self) -> None:
        with self.assertRaises(errors.TfgenError):
            benchmark.measure(self.path, memory_bytes=32 << 20)

    def test_crash_is_an_error_that_names_the_file(self) -> None:
        crash = "import os, pathlib, signal, sys\n"
        crash += f"(pathlib.Path(sys.argv[1]) / {_litert_child.STARTED!r}).touch()\n"
        crash += "os.kill(os.getpid(), signal.SIGSEGV)\n"
        self.write("crashing_child.py", crash.encode())
        crashing = types.SimpleNamespace(**vars(_litert_child) | {"__name__": "crashing_child"})
        with (
            mock.patch.object(child, "_litert_child", crashing),
            mock.patch.object(sys, "path", [*sys.path, str(self.folder)]),
            self.assertRaisesRegex(errors.CorruptFileError, "hand.tflite.*SIGSEGV"),
        ):
            benchmark.measure(self.path)


class ProgramTest(FileTest):
    def run_program(self, *flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tfgen.deployment.benchmark_main", *flags],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_table_and_json(self) -> None:
        table = self.run_program(f"--model={self.path}", "--runs=20")
        self.assertEqual(table.returncode, 0, table.stderr)
        self.assertRegex(table.stdout, r"(?m)^median_ms +\d")
        parsed = json.loads(self.run_program(f"--model={self.path}", "--runs=20", "--json").stdout)
        self.assertEqual(parsed["runs"], 20)

    def test_errors_are_one_line(self) -> None:
        missing = self.folder / "nowhere.tflite"
        half = self.write("half.tflite", self.broken()["half"])
        for flags, words, code in (
            ([f"--model={missing}"], str(missing), 1),
            ([f"--model={half}"], str(half), 1),
            ([f"--model={self.path}", "--runs=0"], "runs", 2),
            ([], "--model", 2),
        ):
            done = self.run_program(*flags)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(words, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)


if __name__ == "__main__":
    absltest.main()
