"""What tools of 2018 to 2026 print, as people quoted it in public, and what may go wrong in it.

Above each text stands where it is from. Microseconds are divided by 1000 and megabytes multiplied
by 1024 in the expected numbers, and nothing else is done to them.
"""

import pathlib
import struct

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import errors
from tfgen.deployment import benchmark_output, benchmark_result
from tfgen.deployment.benchmark_output import Output, parse
from tfgen.deployment.measurement import OpTime

TFLITE = "TFLite benchmark_model"
LITERT = "LiteRT benchmark_model"

DATA = pathlib.Path(__file__).parents[1] / "testdata" / "benchmark_output"


def quoted(name: str) -> str:
    return (DATA / f"{name}.txt").read_text()


# https://github.com/yuenshome/yuenshome.github.io/issues/77
YUENSHOME_77 = quoted("tflite_2019")
# https://github.com/tensorflow/tensorflow/issues/42507
TENSORFLOW_42507 = quoted("tflite_2020")
# https://github.com/tensorflow/tensorflow/issues/43541
TENSORFLOW_43541 = quoted("tflite_2020_gpu")
# https://github.com/tensorflow/tensorflow/issues/56301
TENSORFLOW_56301 = quoted("tflite_2022_nnapi")
# https://github.com/google/XNNPACK/issues/999
XNNPACK_999 = quoted("tflite_xnnpack")
# https://github.com/tensorflow/tensorflow/issues/61946
TENSORFLOW_61946 = quoted("tflite_2023")
# https://github.com/mlcommons/mobile_app_open/issues/1134
MOBILE_APP_OPEN_1134 = quoted("litert_2026")
# litert-benchmark of ai-edge-litert 2.3.0 on x86
LITERT_HOST = quoted("litert_host")
# The tool of 2025, with percentiles, and a profile whose types have spaces and numbers: the format
# is of TensorFlow's stats_calculator.h and .cc of that year, the values are made up.
NEWEST = quoted("tflite_2025_gpu_profile")
# tensorflow/lite/tools/benchmark/README.md of 2019: the profile stands before the summary.
README_2019 = quoted("tflite_2019_profile")
SUMMARY = (
    "Inference timings in us: Init: 5, First inference: 9, Warmup (avg): 8, Inference (avg): 7\n"
)
ALL = (
    "Explicitly applied GPU delegate, and the model graph will be completely executed by the "
    "delegate.\n"
)
SOME = (
    "Replacing 54 out of 559 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 3 "
    "partitions for subgraph 0.\n"
)
NOTHING = (
    "Though GPU delegate is explicitly applied, the model graph will not be executed by the "
    "delegate.\n"
)


class GoldenTest(parameterized.TestCase):
    """Eight outputs that people quoted, whole and in the parts they are known by."""

    @parameterized.named_parameters(
        (
            "a_2019",
            YUENSHOME_77,
            "none",
            Output(
                tool=TFLITE,
                mean_ms=66.7676,
                std_ms=0.039,
                min_ms=66.699,
                init_ms=9.933,
                runs=15,
                warmup=7,
            ),
        ),
        (
            "b_2020",
            TENSORFLOW_42507,
            "none",
            Output(
                tool=TFLITE,
                mean_ms=33.2094,
                std_ms=0.45,
                min_ms=32.641,
                init_ms=0.855,
                runs=50,
                warmup=15,
                peak_memory_kb=13176,  # 12.8672 MB
            ),
        ),
        (
            "c_2020_gpu",
            TENSORFLOW_43541,
            "gpu",
            Output(
                tool=TFLITE,
                mean_ms=119.375,
                std_ms=1.948,
                min_ms=113.737,
                init_ms=870.557,
                runs=50,
                warmup=4,
                delegate="gpu",
                fully_accelerated=True,
            ),
        ),
        (
            "e_xnnpack",
            XNNPACK_999,
            "xnnpack",
            Output(
                tool=TFLITE,
                mean_ms=55.0432,
                std_ms=1.562,
                min_ms=53.077,
                init_ms=18.777,
                runs=50,
                warmup=9,
                peak_memory_kb=19172,  # 18.7227 MB
                delegate="xnnpack",
            ),
        ),
        (
            "f_2023",
            TENSORFLOW_61946,
            "none",
            Output(
                tool=TFLITE, mean_ms=116.066, std_ms=1.906, min_ms=111.222, init_ms=0.53, runs=50
            ),
        ),
        (
            "g_2026_milliseconds",
            MOBILE_APP_OPEN_1134,
            "none",
            Output(
                tool=LITERT,
                mean_ms=7430.2,
                std_ms=9.92,
                min_ms=7416.4,
                init_ms=23744.73,
                runs=10,
                warmup=1,
                peak_memory_kb=6545142,  # 6391.74 MB
                delegate="unknown",
            ),
        ),
        (
            "h_host",
            LITERT_HOST,
            "none",
            Output(
                tool=LITERT,
                mean_ms=0.02,
                p95_ms=0.02,
                runs=50,
                delegate="unknown",
                fully_accelerated=True,
            ),
        ),
    )
    def test_output(self, text: str, asked: str, expected: Output) -> None:
        found = parse(text, delegate=asked)
        for name in ("mean_ms", "std_ms", "min_ms", "init_ms", "p95_ms"):
            self.assertAlmostEqual(getattr(found, name) or 0, getattr(expected, name) or 0, 9, name)
        for name in ("tool", "runs", "warmup", "peak_memory_kb", "peak_rss_kb", "delegate"):
            self.assertEqual(getattr(found, name), getattr(expected, name), name)
        self.assertEqual(found.fully_accelerated, expected.fully_accelerated)
        self.assertIsNone(found.median_ms)
        self.assertEqual(found.latency_ms, found.mean_ms)
        self.assertEqual(found.ops, ())

    def test_d_logcat_and_a_part_of_the_ops(self) -> None:
        with self.assertRaisesRegex(errors.DeviceError, "NNAPI was asked for.*only a part.*44 del"):
            parse(TENSORFLOW_56301, delegate="nnapi")
        found = parse(TENSORFLOW_56301, delegate="nnapi", allow_partial=True)
        self.assertEqual((found.delegate, found.fully_accelerated), ("nnapi", False))
        self.assertAlmostEqual(found.mean_ms, 12.1676)
        self.assertAlmostEqual(found.init_ms, 126.059)
        self.assertEqual((found.runs, found.warmup), (75, 40))

    def test_parts_that_were_quoted_alone(self) -> None:
        """Without the timed runs' count= line the mean is known and nothing else of them."""
        only_warmup = "\n".join(YUENSHOME_77.splitlines()[i] for i in (5, 10, 0))
        found = parse(only_warmup)
        self.assertAlmostEqual(found.mean_ms, 66.7676)
        self.assertEqual((found.runs, found.std_ms, found.min_ms), (None, None, None))
        lines = TENSORFLOW_43541.splitlines()
        found = parse(lines[4] + "\n" + lines[-1], delegate="gpu")
        self.assertEqual((found.mean_ms, found.runs), (119.375, None))
        self.assertEqual(found.delegate, "gpu")


class NumbersTest(parameterized.TestCase):
    def test_newest(self) -> None:
        found = parse(NEWEST, delegate="gpu")
        self.assertAlmostEqual(found.latency_ms, 7.505)  # the median, not the mean
        self.assertAlmostEqual(found.mean_ms, 7.51234)
        self.assertAlmostEqual(found.p95_ms, 7.761)
        self.assertEqual((found.runs, found.warmup), (131, 50))
        self.assertEqual(found.peak_rss_kb, 61952)  # 60.5 MB
        self.assertEqual((found.delegate, found.fully_accelerated), ("gpu", True))

    def test_scientific_notation(self) -> None:
        """1234567 us and one run more print six digits of their mean."""
        text = "count=2 first=1234566 curr=1234568 min=1234566 max=1234568 avg=1.23457e+06 std=1\n"
        text += "Inference timings in us: Init: 1.5e+06, First inference: 2000000, "
        text += "Warmup (avg): 2e+06, Inference (avg): 1.23457e+06\n"
        found = parse(text)
        self.assertAlmostEqual(found.mean_ms, 1234.57)
        self.assertAlmostEqual(found.init_ms, 1500.0)
        self.assertAlmostEqual(found.min_ms, 1234.566)

    @parameterized.parameters(
        ("count=50 curr=7(all same)", 50, 0.0, None),
        ("count=50 curr=7(all same) p5=7 median=7 p95=7", 50, 0.0, 0.007),
        ("count=1 curr=7", 1, None, None),
        # 2018
        ("curr=7 count=3 min=6 max=8 avg=7 std=0", 3, 0.0, None),
    )
    def test_forms_of_the_count_line(
        self, line: str, runs: int, std_ms: float | None, median_ms: float | None
    ) -> None:
        found = parse(f"{line}\n{SUMMARY}")
        self.assertEqual((found.runs, found.std_ms), (runs, std_ms))
        self.assertEqual(found.median_ms, median_ms)
        self.assertEqual(found.min_ms, 0.006 if "min=6" in line else 0.007)

    def test_exact_microseconds_against_six_digits(self) -> None:
        """All runs of 1234567 us: `curr` has each digit, the summary six."""
        text = "count=3 curr=1234567(all same)\n" + SUMMARY.replace("avg): 7", "avg): 1.23457e+06")
        self.assertAlmostEqual(parse(text).mean_ms, 1234.567)

    def test_litert_takes_the_microseconds_of_its_count_line(self) -> None:
        text = (
            "INFO: count=90 first=19 curr=17 min=16 max=31 avg=17.43 std=2 p5=16 median=17 p95=21\n"
        )
        found = parse(text + LITERT_HOST.replace("(50 runs)", "(90 runs)"))
        self.assertAlmostEqual(found.mean_ms, 0.01743)
        self.assertAlmostEqual(found.latency_ms, 0.017)
        self.assertEqual(found.runs, 90)

    def test_a_median_below_the_clock_gives_way_to_the_mean(self) -> None:
        text = "count=9 first=1 curr=0 min=0 max=1 avg=0.4 std=0 p5=0 median=0 p95=1\n"
        found = parse(text + SUMMARY.replace("avg): 7", "avg): 0.4"))
        self.assertAlmostEqual(found.latency_ms, 0.0004)

    @parameterized.parameters(
        "05-30 15:16:44.857  3380  3380 I tflite  : ",
        "05-30 15:16:44.857 I/tflite  ( 3380): ",
        "I/tflite  ( 3380): ",
        "I/tflite: ",
        "2023-06-14 10:55:21.085 18088-18088 tflite                  "
        "org.tensorflow.lite.benchmark        I  ",  # ultralytics/ultralytics#3172
        "INFO: ",
        "  ",
        "05-30 15:16:44.857  3380  3380 I tflite  : INFO: ",
        "INFO: [benchmark_model.cc:96] ",
    )
    def test_prefixes(self, prefix: str) -> None:
        text = "".join(f"{prefix}{line}\r\n" for line in TENSORFLOW_42507.splitlines())
        self.assertEqual(parse(text), parse(TENSORFLOW_42507))

    def test_bytes_of_other_logs_between_the_lines(self) -> None:
        noise = b"\xff\xfe\x80 native \xe2\x28\n".decode(errors="replace")
        text = "".join(f"{line}\n{noise}" for line in TENSORFLOW_42507.splitlines())
        self.assertEqual(parse(text), parse(TENSORFLOW_42507))


class ProfileTest(parameterized.TestCase):
    def test_newest(self) -> None:
        self.assertEqual(
            parse(NEWEST, delegate="gpu").ops,
            (
                OpTime(
                    name="Delegate/convolution_2d 0 -> relu 1:0",
                    type="convolution_2d 0 -> relu 1",
                    mean_ms=0.318,
                    calls=1,
                ),
                OpTime(
                    name="Delegate/depth_to_space 5:3",
                    type="depth_to_space 5",
                    mean_ms=0.682,
                    calls=2,
                ),
            ),
        )

    def test_2019(self) -> None:
        found = parse(README_2019)
        self.assertAlmostEqual(found.mean_ms, 79.7609)  # not the profile's 79732
        self.assertEqual(found.runs, 50)
        first, second = found.ops
        self.assertEqual((first.type, first.mean_ms, first.calls), ("CONV_2D", 4.269, 0))
        self.assertEqual(second.name, "MobilenetV1/MobilenetV1/Conv2d_1_depthwise/Relu6")

    def test_tabs_that_became_spaces(self) -> None:
        """As in https://github.com/tensorflow/tensorflow/issues/25021."""
        self.assertEqual(parse(README_2019.expandtabs(8)).ops, parse(README_2019).ops)

    def test_the_start_has_a_table_too(self) -> None:
        start = NEWEST[: NEWEST.index("INFO: Operator-wise")]
        self.assertEqual(parse(start, delegate="gpu").ops, ())


class DelegateTest(parameterized.TestCase):
    @parameterized.parameters(
        # https://github.com/tensorflow/tensorflow/issues/56301 and /56482
        (NOTHING, "took no op"),
        (ALL.replace("completely", "partially"), "only a part"),
        (SOME, "only a part"),
        (ALL + SOME, "only a part"),
        (ALL + NOTHING, "took no op"),
        ("ERROR: Failed to apply GPU delegate.\n", "took no op"),
        ("INFO: Created 0 GPU delegate kernels.\n", "took no op"),
        (
            "97 operations will run on the GPU, and the remaining 200 operations will run on "
            "the CPU.\n",
            "only a part",
        ),
        # Made is not run.
        (
            "INFO: Created TensorFlow Lite delegate for GPU.\nGPU delegate created.\n",
            "nothing says",
        ),
        ("Applied GPU delegate.\n", "nothing says"),
        ("WARN: Unconsumed cmdline flags: --use_gpu=true\n", "does not know its flag"),
        ("", "nothing says so"),
        # XNNPACK is the CPU.
        ("INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n", "nothing says so"),
        (SOME.replace("TfLiteGpuDelegateV2", "TfLiteXNNPackDelegate"), "nothing says so"),
        # The host's tool says True of some files that the CPU ran, as its own source tells.
        ("Fully accelerated:     True\n", "nothing says so"),
    )
    def test_a_gpu_row_that_the_cpu_ran_is_an_error(self, line: str, words: str) -> None:
        with self.assertRaisesRegex(errors.DeviceError, f"GPU was asked for.*{words}"):
            parse(line + SUMMARY, delegate="gpu")

    @parameterized.parameters(
        ALL,
        # 2020
        ALL.replace("Explicitly a", "A").replace("by", "w/"),
        "VERBOSE: " + SOME.replace("54 out", "559 out").replace("3 part", "1 part"),
        "Replacing 12 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 1 partitions.\n",
        # LiteRT's names of its own
        "INFO: Replacing 366 out of 366 node(s) with delegate (LITERT_CL) node,\n",
        "Replacing 9 out of 9 node(s) with delegate (ML_DRIFT_CL) node\n",
        # XNNPACK beside it, for what is left of nothing
        ALL + "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n",
    )
    def test_a_gpu_row_that_the_gpu_ran(self, line: str) -> None:
        found = parse(line + SUMMARY, delegate="gpu")
        self.assertEqual((found.delegate, found.fully_accelerated), ("gpu", True))

    def test_a_part_is_told_where_it_is_allowed(self) -> None:
        found = parse(SOME + SUMMARY, delegate="gpu", allow_partial=True)
        self.assertEqual((found.delegate, found.fully_accelerated), ("gpu", False))
        with self.assertRaisesRegex(errors.DeviceError, "took no op"):
            parse(NOTHING + SUMMARY, delegate="gpu", allow_partial=True)

    @parameterized.parameters(
        "nnapi error: unable to open library libneuralnetworks.so\n",
        # Of Android itself, on the CPU.
        "NNAPI accelerators available: [nnapi-reference]\n" + ALL.replace("GPU", "NNAPI"),
    )
    def test_nnapi_on_the_cpu(self, line: str) -> None:
        with self.assertRaisesRegex(errors.DeviceError, "NNAPI was asked for and took no op"):
            parse(line + SUMMARY, delegate="nnapi")

    def test_nnapi(self) -> None:
        text = "NNAPI accelerators available: [qti-dsp,nnapi-reference]\n"
        text += ALL.replace("GPU", "NNAPI") + SUMMARY
        self.assertEqual(parse(text, delegate="nnapi").delegate, "nnapi")
        with self.assertRaisesRegex(errors.DeviceError, "GPU was asked for"):
            parse(text, delegate="gpu")

    @parameterized.parameters(
        ("xnnpack", ALL.replace("GPU", "XNNPACK"), "xnnpack", True),
        ("xnnpack", SOME.replace("TfLiteGpuDelegateV2", "TfLiteXNNPackDelegate"), "xnnpack", False),
        ("xnnpack", NOTHING.replace("GPU", "XNNPACK"), "none", None),
        ("none", "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n", "xnnpack", None),
        ("none", ALL, "gpu", True),
    )
    def test_rows_of_the_cpu_are_named_by_what_ran(
        self, asked: str, line: str, ran: str, full: bool | None
    ) -> None:
        found = parse(line + SUMMARY, delegate=asked)
        self.assertEqual((found.delegate, found.fully_accelerated), (ran, full))


class FailureTest(parameterized.TestCase):
    @parameterized.parameters(
        # https://github.com/tensorflow/tensorflow/issues/42956
        (
            "/system/bin/sh: ./benchmark_model: not executable: 64-bit ELF file",
            "not for the phone's processor.*64-bit ELF",
        ),
        # https://github.com/tensorflow/tensorflow/issues/50652
        (
            "ERROR: Didn't find op for builtin opcode 'CONV_2D' version '5'",
            "older than the file.*'CONV_2D' version '5'",
        ),
        ("ERROR: Encountered unresolved custom op: FlexErf.", "FlexErf"),
        (f"ERROR: Disallowed CPU fallback detected.\n{ALL}{SUMMARY}", "does not take every op"),
        (f"{SUMMARY}ERROR: Benchmarking failed.", "benchmark_model failed"),
        ("ERROR: Failed to mmap model /data/local/tmp/m.tflite", "cannot open the file"),
        ("", "no summary"),
        ("INFO: STARTING!\nINFO: Loaded model m.tflite\n", "no summary.*'Loaded model m.tflite'"),
        ("Inference timings in us: Init: 855, First inference: 49060, Warm", "cut off"),
        (f"count=0\n{SUMMARY}", "timed no inference"),
        (f"count=0 p5=0 median=0 p95=0\n{SUMMARY}", "timed no inference"),
        ("Inference (avg):      0.00 ms (0 runs)", "timed no inference"),
        ("Inference (avg):      0.00 ms (50 runs)", "clock resolves"),
        (SUMMARY.replace("avg): 7", "avg): 0"), "clock resolves"),
        (SUMMARY.replace("avg): 7", "avg): nan"), "cut off"),
        (SUMMARY * 2, "several runs"),
        # The summary of another run, and a line without its end.
        (f"count=5 first=1 curr=2 min=1 max=2 avg=1.5 std=0\n{SUMMARY}", "disagree"),
        (f"count=5 first=1 curr=7 min=\n{SUMMARY}", "disagree"),
    )
    def test_is_named(self, text: str, words: str) -> None:
        with self.assertRaisesRegex(errors.DeviceError, words):
            parse(text)

    def test_cut_off_anywhere(self) -> None:
        """The start of an output is an error or has the whole one's mean."""
        whole = parse(TENSORFLOW_42507)
        for end in range(len(TENSORFLOW_42507)):
            try:
                found = parse(TENSORFLOW_42507[:end])
            except errors.DeviceError:
                continue
            self.assertEqual((found.mean_ms, found.runs), (whole.mean_ms, whole.runs))

    def test_any_damage_is_a_number_or_an_error(self) -> None:
        random = np.random.default_rng(0)
        texts = [YUENSHOME_77, NEWEST, README_2019, MOBILE_APP_OPEN_1134, TENSORFLOW_56301]
        for number in range(2000):
            damaged = bytearray(texts[number % len(texts)].encode())
            for _ in range(random.integers(1, 8)):
                start = random.integers(len(damaged))
                damaged[start : start + random.integers(1, 9)] = random.bytes(random.integers(5))
            asked = benchmark_output.benchmark_delegates.ASKED[number % 4]
            try:
                found = parse(damaged.decode(errors="replace"), delegate=asked)
            except errors.DeviceError:
                continue
            self.assertGreater(found.latency_ms, 0)
            self.assertTrue(np.isfinite(found.latency_ms))


def field(number: int, kind: int, payload: bytes) -> bytes:
    """A field on the wire: its number and kind (0 varint, 2 with length, 5 four bytes)."""
    length = bytes([len(payload)]) if kind == 2 else b""
    return bytes([number << 3 | kind]) + length + payload


def real(number: int, value: float) -> bytes:
    return field(number, 5, struct.pack("<f", value))


class ResultTest(absltest.TestCase):
    """BenchmarkResult: 2 latencies, 3 memory, 4 the rest."""

    def setUp(self) -> None:
        super().setUp()
        self.output = parse(TENSORFLOW_42507)
        latencies = real(1, 33.25) + real(2, 32.5) + real(4, 0.5) + real(5, 33.125)
        latencies += real(7, 34.0) + real(8, 0.875)
        # 300 = 0b10_0101100: the low seven bits first
        memory = field(2, 0, b"\xac\x02") + real(3, 60.5)
        self.rest = field(2, 0, b"\x33") + field(3, 0, b"\x0f")  # 51 runs after 15
        self.data = field(1, 2, b"m") + field(2, 2, latencies) + field(3, 2, memory)
        self.data += field(4, 2, self.rest)

    def near(self, mean_ms: float) -> Output:
        text = TENSORFLOW_42507.replace("33209.4", f"{mean_ms * 1000:g}")
        return parse(text)

    def test_values(self) -> None:
        found = benchmark_result.with_result(self.near(33.25), self.data)
        self.assertEqual(
            (found.mean_ms, found.median_ms, found.latency_ms), (33.25, 33.125, 33.125)
        )
        self.assertEqual((found.min_ms, found.std_ms, found.p95_ms), (32.5, 0.5, 34.0))
        self.assertEqual((found.init_ms, found.runs, found.warmup), (0.875, 51, 15))
        self.assertEqual((found.peak_memory_kb, found.peak_rss_kb), (300, 61952))
        self.assertEqual(found.tool, TFLITE)

    def test_of_another_run(self) -> None:
        with self.assertRaisesRegex(errors.DeviceError, "disagree: mean 33.25 ms and 44"):
            benchmark_result.with_result(self.near(44.0), self.data)
        with self.assertRaisesRegex(errors.DeviceError, "disagree"):
            benchmark_result.with_result(self.output, b"")

    def test_times_that_are_none(self) -> None:
        for value in (float("nan"), float("inf"), -1.0):
            latencies = real(1, 33.25) + real(5, value)
            with self.assertRaisesRegex(errors.DeviceError, "has times of"):
                benchmark_result.with_result(self.near(33.25), field(2, 2, latencies))

    def test_broken(self) -> None:
        for end in range(1, len(self.data)):
            try:
                found = benchmark_result.with_result(self.near(33.25), self.data[:end])
            except errors.DeviceError:
                continue
            self.assertEqual(found.mean_ms, 33.25)


if __name__ == "__main__":
    absltest.main()
