"""Measuring on a phone, with a stand-in for adb: no phone is needed, and none was used."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import signal
import stat
import struct
import subprocess
import sys
import time
from unittest import mock

from absl.testing import absltest, parameterized

from tests.space.small import mlp
from tfgen import errors
from tfgen.deployment import android, probe
from tfgen.deployment.measurement import Measurement, OpTime
from tfgen.space import bits

DATA = pathlib.Path(__file__).parents[1] / "testdata" / "benchmark_output"

# Writes down how it was called, then answers with the file of that name, a piece of shell: `push`,
# `getprop`, `rm` ..., and `run` for the benchmark. There "$2" is the command on the phone.
STAND_IN = r"""#!/bin/sh
{ printf '%s\037' "$@"; echo; } >> "$STAND_IN/calls"
if [ "$1" = -s ]; then shift 2; fi
key=$1
if [ "$key" = shell ]; then
  case $2 in *--graph=*) key=run ;; *) key=${2%% *} ;; esac
fi
if [ -e "$STAND_IN/$key" ]; then . "$STAND_IN/$key"; fi
"""
ANSWERS = {
    "devices": r"printf 'List of devices attached\nPHONE1\tdevice\n\n'",
    "get-state": "echo device",
    "getprop": """case $2 in
  *cpu.abi) echo arm64-v8a ;;
  *manufacturer) echo Google ;;
  *model) echo 'Pixel 3' ;;
  *release) echo 12 ;;
esac""",
    "push": 'echo "$2: 1 file pushed."',
    "pull": "echo \"adb: error: failed to stat remote object '$2': No such file\" >&2; exit 1",
    "run": f"cat {shlex.quote(str(DATA / 'tflite_2020.txt'))}",
}
LOST = "echo \"error: device 'PHONE1' not found\" >&2; exit 1"


class AndroidTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.adb = self.folder / "bin" / "adb"
        self.adb.parent.mkdir()
        self.adb.write_text(STAND_IN)
        self.adb.chmod(self.adb.stat().st_mode | stat.S_IXUSR)
        self.answers = self.folder / "answers"
        self.answers.mkdir()
        for name, shell in ANSWERS.items():
            self.answer(name, shell)
        self.model = self.folder / "a model's.tflite"
        self.model.write_bytes(b"TFL3 in name")
        self.tool = self.folder / "tools" / "arm64-v8a" / "benchmark_model"
        self.tool.parent.mkdir(parents=True)
        self.tool.write_bytes(b"\x7fELF in name")
        environment = {
            **os.environ,
            "PATH": f"{self.adb.parent}{os.pathsep}{os.environ['PATH']}",
            "STAND_IN": str(self.answers),
        }
        environment.pop("ANDROID_SERIAL", None)
        self.enter_context(mock.patch.dict(os.environ, environment, clear=True))

    def tearDown(self) -> None:
        self.assertEmpty(self.running())
        super().tearDown()

    def answer(self, name: str, shell: str) -> None:
        (self.answers / name).write_text(shell + "\n")

    def calls(self) -> list[list[str]]:
        """The words of each call of adb, the command on the phone split into its own."""
        file = self.answers / "calls"
        lines = file.read_text().split("\x1f\n")[:-1] if file.exists() else []
        found = []
        for words in (line.split("\x1f") for line in lines):
            at = words.index("shell") + 1 if "shell" in words else len(words)
            found.append([*words[:at], *shlex.split(" ".join(words[at:]))])
        return found

    def on_phone(self, program: str) -> list[list[str]]:
        """The commands on the phone that begin with a word."""
        return [c[3:] for c in self.calls() if c[2:3] == ["shell"] and c[3] == program]

    def running(self) -> list[int]:
        """Processes that the stand-in left, and which have not ended a second later."""
        mark = f"STAND_IN={self.answers}".encode()
        for _ in range(20):
            found = [pid for pid in _processes() if mark in _environment(pid)]
            if not found:
                break
            time.sleep(0.05)
        return found

    def measure(self, **options) -> Measurement:
        return android.measure(self.model, **{"tools_dir": self.folder / "tools"} | options)

    def assert_cleaned(self, ended: bool = False) -> None:
        """The folder that was made on the phone is removed last, and was nobody else's."""
        ((_, made),) = self.on_phone("mkdir")
        self.assertRegex(made, r"^/data/local/tmp/tfgen-[0-9a-f]{32}$")
        self.assertEqual(self.calls()[-1], ["-s", "PHONE1", "shell", "rm", "-rf", made])
        kills = [["pkill", "-9", "-f", made.replace("/data/local/tmp/t", "[t]")]]
        self.assertEqual(self.on_phone("pkill"), kills if ended else [])

    def assert_fails(self, words: str, ended: bool = True, **options) -> None:
        with self.assertRaisesRegex(errors.DeviceError, words):
            self.measure(**options)
        self.assert_cleaned(ended=ended)


class MeasureTest(AndroidTest):
    def test_measurement(self) -> None:
        found = self.measure(threads=4)
        self.assertAlmostEqual(found.latency_ms, 33.2094)
        self.assertAlmostEqual(found.mean_ms, 33.2094)
        self.assertIsNone(found.median_ms)
        self.assertEqual((found.runs, found.warmup, found.threads), (50, 15, 4))
        self.assertEqual(found.device, "Google Pixel 3, Android 12, arm64-v8a")
        # sha256 of the 12 bytes of the tool
        self.assertRegex(found.runtime, "^TFLite benchmark_model [0-9a-f]{12}$")
        self.assertEqual((found.delegate, found.fully_accelerated), ("none", None))
        self.assertEqual((found.peak_memory_kb, found.file_bytes), (13176, 12))
        self.assertEqual(Measurement.from_json(json.loads(json.dumps(found.to_json()))), found)
        self.assert_cleaned()

    def test_what_is_done_on_the_phone(self) -> None:
        self.measure(threads=2, runs=70, warmup=3, taskset="0xF0", profile=True)
        made = self.on_phone("mkdir")[0][1]
        tool, model = f"{made}/benchmark_model", f"{made}/model.tflite"
        pushed = [call[3:] for call in self.calls() if call[2:3] == ["push"]]
        self.assertEqual(pushed, [[str(self.tool), tool], [str(self.model), model]])
        self.assertEqual(self.on_phone("chmod"), [["chmod", "755", tool]])
        self.assertEqual(
            self.on_phone("taskset"),
            [
                [
                    *("taskset", "F0", tool, f"--graph={model}"),
                    f"--result_file_path={made}/result.pb",
                    *("--num_threads=2", "--num_runs=70", "--warmup_runs=3", "--use_xnnpack=true"),
                    "--enable_op_profiling=true",
                ]
            ],
        )

    def test_each_run_has_a_folder_of_its_own(self) -> None:
        self.measure()
        self.measure()
        self.assertLen({made for _, made in self.on_phone("mkdir")}, 2)

    @parameterized.parameters(
        ("none", False, {"--use_xnnpack=false"}),
        ("gpu", False, {"--use_gpu=true", "--require_full_delegation=true", "--use_cpu=false"}),
        ("gpu", True, {"--use_gpu=true"}),
        ("nnapi", True, {"--use_nnapi=true", "--disable_nnapi_cpu=true"}),
    )
    def test_flags_of_delegates(self, delegate: str, partial: bool, flags: set[str]) -> None:
        nnapi = f"grep Explicitly {DATA}/tflite_2022_nnapi.txt"
        self.answer("run", f"cat {DATA}/tflite_2020_gpu.txt; {nnapi}")
        self.measure(delegate=delegate, allow_partial=partial)
        (run,) = [call for call in self.calls() if any("--graph" in word for word in call)]
        known = ("--use_", "--require", "--disable")
        self.assertEqual({word for word in run if word.startswith(known)}, flags)

    def test_binary_itself(self) -> None:
        self.measure(tools_dir=None, binary=self.tool)
        self.assert_cleaned()

    def test_libraries_beside_the_tool(self) -> None:
        (self.tool.parent / "libLiteRtGpu.so").write_bytes(b"")
        self.measure(taskset="f")
        made = self.on_phone("mkdir")[0][1]
        self.assertIn(f"{made}/libLiteRtGpu.so", [call[-1] for call in self.calls()])
        (run,) = self.on_phone("taskset")
        words = ["taskset", "f", "env", f"LD_LIBRARY_PATH={made}", f"{made}/benchmark_model"]
        self.assertEqual(run[:5], words)
        self.assert_cleaned()

    def test_result_file(self) -> None:
        values = {1: 33.25, 5: 33.125, 7: 34.0}
        latencies = b"".join(bytes([n << 3 | 5]) + struct.pack("<f", v) for n, v in values.items())
        (self.answers / "result.pb").write_bytes(bytes([2 << 3 | 2, len(latencies)]) + latencies)
        self.answer("pull", 'cp "$STAND_IN/result.pb" "$3"')
        self.answer("run", ANSWERS["run"] + " | sed s/33209.4/33250/")
        found = self.measure()
        self.assertEqual((found.latency_ms, found.median_ms, found.p95_ms), (33.125, 33.125, 34.0))
        self.assertEqual((found.mean_ms, found.runs), (33.25, 50))

    def test_profile(self) -> None:
        self.answer("run", f"cat {DATA}/tflite_2025_gpu_profile.txt")
        found = self.measure(delegate="gpu", profile=True)
        self.assertLen(found.ops, 2)
        self.assertIsInstance(found.ops[0], OpTime)
        self.assertEqual(found.ops[1].type, "depth_to_space 5")
        self.assertAlmostEqual(found.latency_ms, 7.505)
        self.assertEqual((found.delegate, found.fully_accelerated), ("gpu", True))
        self.assertIn("depth_to_space 5", found.to_text())
        self.assertEqual(Measurement.from_json(json.loads(json.dumps(found.to_json()))), found)

    def test_both_streams_and_bytes_that_are_no_text(self) -> None:
        run = r"printf '\377\376 native\n'; " + ANSWERS["run"] + r" >&2; printf '\200\n' >&2"
        self.answer("run", run)
        self.assertAlmostEqual(self.measure().latency_ms, 33.2094)


class DevicesTest(AndroidTest):
    def assert_untouched(self, words: str, **options) -> None:
        with self.assertRaisesRegex(errors.DeviceError, words):
            self.measure(**options)
        self.assertEmpty([c for c in self.calls() if "shell" in c or "push" in c])

    def test_no_adb(self) -> None:
        with mock.patch.dict(os.environ, PATH=str(self.folder)):
            self.assert_untouched("adb is not on PATH; install")

    def test_none(self) -> None:
        self.answer("devices", r"printf '* daemon started successfully *\nList of devices\n\n'")
        self.assert_untouched("no phone; connect one with USB debugging on")

    def test_adb_fails(self) -> None:
        self.answer("devices", "echo 'adb: cannot bind' >&2; exit 1")
        self.assert_untouched("adb failed: adb: cannot bind")

    def test_several(self) -> None:
        self.answer("devices", r"printf 'List of devices attached\nA\tdevice\nB:5\toffline\n'")
        self.assert_untouched(r"2 phones: A \(device\), B:5 \(offline\); name one with --serial")

    def test_one_of_several(self) -> None:
        self.answer("devices", r"printf 'List of devices attached\nA\tdevice\nPHONE1\tdevice\n'")
        self.measure(serial="PHONE1")
        self.assertEqual({tuple(call[:2]) for call in self.calls()}, {("-s", "PHONE1")})
        with mock.patch.dict(os.environ, ANDROID_SERIAL="PHONE1"):
            self.measure()
        self.assertEqual({tuple(call[:2]) for call in self.calls()}, {("-s", "PHONE1")})

    def test_the_only_one_is_named_in_all_calls(self) -> None:
        """So that a second phone that is plugged in meanwhile changes nothing."""
        self.measure()
        first, *others = self.calls()
        self.assertEqual(first, ["devices"])
        self.assertEqual({tuple(call[:2]) for call in others}, {("-s", "PHONE1")})

    @parameterized.parameters(
        ("echo offline", "PHONE1: offline; plug the phone in again"),
        ("echo 'error: device offline' >&2; exit 1", "PHONE1: offline"),
        ("echo unauthorized", "PHONE1: unauthorized; unlock the phone and allow"),
        (
            "echo 'error: device unauthorized.' >&2; echo 'This adb server needs it.' >&2; exit 1",
            "PHONE1: unauthorized; unlock",
        ),
        ("echo 'error: no devices/emulators found' >&2; exit 1", "no devices; `adb devices`"),
        (LOST, "PHONE1: not found; `adb devices` lists"),
        ("echo recovery", "in state 'recovery', must be in state 'device'"),
        ("echo 'adb: no server' >&2; exit 1", "PHONE1: adb failed: adb: no server"),
    )
    def test_state(self, shell: str, words: str) -> None:
        self.answer("get-state", shell)
        self.assert_untouched(words)


class FailureTest(AndroidTest):
    def test_no_tool_for_the_processor(self) -> None:
        self.answer("getprop", "echo armeabi-v7a")
        with self.assertRaisesRegex(errors.UsageError, "ABI 'armeabi-v7a'; .* for: arm64-v8a$"):
            self.measure()
        self.assertEmpty(self.on_phone("mkdir"))

    def test_tool_of_another_processor(self) -> None:
        # https://github.com/tensorflow/tensorflow/issues/42956
        said = "/system/bin/sh: ./benchmark_model: not executable: 64-bit ELF file"
        self.answer("run", f"echo '{said}' >&2; exit 126")
        self.assert_fails("PHONE1: this benchmark_model is not for the phone's processor")

    @parameterized.parameters(0, 1)
    def test_no_space(self, code: int) -> None:
        said = "adb: error: failed to copy 'm' to 'n': remote No space left on device"
        self.answer("push", f'echo "{said}" >&2; exit {code}')
        self.assert_fails("PHONE1: no space in /data/local/tmp for .*benchmark_model; free some")

    @parameterized.parameters(0, 1)
    def test_copy_fails(self, code: int) -> None:
        # https://github.com/Genymobile/scrcpy/issues/4876: adb said "1 file pushed" all the same.
        said = "adb: error: failed to copy 'm' to 'n': remote couldn't create file: Is a directory"
        self.answer("push", f'echo "{said}" >&2; exit {code}')
        self.assert_fails("cannot be copied to it: .*Is a directory")

    def test_connection_breaks_while_copying(self) -> None:
        self.answer("push", "echo 'adb: error: failed to read copy response: EOF' >&2; exit 1")
        self.assert_fails("the connection broke.*check the cable")

    def test_connection_breaks_while_running(self) -> None:
        self.answer("run", f"{ANSWERS['run']} | head -5; touch $STAND_IN/gone; {LOST}")
        for name in ("rm", "pkill"):
            self.answer(name, LOST)
        with mock.patch.object(sys, "stderr") as stderr:
            self.assert_fails("PHONE1: the connection broke .*'PHONE1' not found")
        warned = "".join(call.args[0] for call in stderr.write.call_args_list)
        self.assertRegex(warned, "may be left on phone PHONE1; .*adb -s PHONE1 shell rm -rf /data/")

    def test_old_phones_send_no_exit_code(self) -> None:
        self.answer("run", f"{ANSWERS['run']} | head -5")
        self.assert_fails("wrote no summary: it was cut off.*Graph")

    def test_cpu_in_place_of_an_accelerator(self) -> None:
        said = (
            "Though GPU delegate is explicitly applied, the model graph will not be executed by "
            "the delegate."
        )
        self.answer("run", f"echo '{said}'; {ANSWERS['run']}")
        self.assert_fails("GPU was asked for and took no op: the CPU ran the file", delegate="gpu")

    @parameterized.parameters(
        (
            "echo 'ERROR: Something.'; exit 1",
            r"benchmark_model failed \(exit code 1\): ERROR: Some",
        ),
        ("echo Segmentation fault; exit 139", r"ended by SIGSEGV \(exit code 139\): Segmentation"),
        ("exit 255", "not seen to end; check the cable: no word"),
        (
            "echo \"ERROR: Didn't find op for builtin opcode 'CONV_2D' version '5'\"; exit 1",
            "older than the file and lacks one of its ops; take a newer one",
        ),
        # The numbers of a run that failed at its end are none.
        (f"{ANSWERS['run']}; exit 1", r"failed \(exit code 1\)"),
    )
    def test_tool_fails(self, shell: str, words: str) -> None:
        self.answer("run", shell)
        self.assert_fails(words)

    def test_time_out(self) -> None:
        self.answer("run", "sleep 1000 & wait")
        start = time.monotonic()
        self.assert_fails("did not finish within 0.5 s; raise the time-out", timeout_seconds=0.5)
        self.assertLess(time.monotonic() - start, 30)

    def test_time_out_of_a_copy(self) -> None:
        self.answer("push", "sleep 1000")
        self.assert_fails("push.*did not finish within 0.5 s", timeout_seconds=0.5)

    def test_interrupted(self) -> None:
        def interrupt(*arguments, **options):
            raise KeyboardInterrupt

        with (
            mock.patch.object(android.benchmark_output, "parse", interrupt),
            self.assertRaises(KeyboardInterrupt),
        ):
            self.measure()
        self.assert_cleaned(ended=True)

    @parameterized.parameters(
        ({"threads": 0}, "threads >= 1"),
        ({"runs": 0}, "runs >= 1"),
        ({"warmup": -1}, "warmup >= 0"),
        ({"timeout_seconds": 0}, "timeout > 0"),
        ({"delegate": "hexagon"}, "one of none, xnnpack, gpu, nnapi, got 'hexagon'"),
        ({"taskset": "f0; reboot"}, "hexadecimal mask"),
        ({"taskset": "0"}, "hexadecimal mask"),
        ({"tools_dir": None}, "either benchmark_model itself or a folder"),
        ({"binary": "/nowhere/benchmark_model", "tools_dir": None}, "/nowhere/benchmark_model"),
    )
    def test_usage(self, options: dict[str, object], words: str) -> None:
        with self.assertRaisesRegex(errors.UsageError, words):
            self.measure(**options)
        self.assertEmpty(self.on_phone("mkdir"))

    def test_no_model(self) -> None:
        with self.assertRaisesRegex(errors.CorruptFileError, "nothing.tflite: file is missing"):
            android.measure(self.folder / "nothing.tflite", binary=self.tool)


class ProgramTest(AndroidTest):
    def setUp(self) -> None:
        super().setUp()
        content = probe.write_probe(mlp((2, 1), (8, 8), 4), (4,), bits.load("litert-2.3"))
        self.model.write_bytes(content)

    def start(self, *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tools.benchmark_android", *flags],
            cwd=pathlib.Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run_program(self, *flags: str) -> tuple[int, str, str]:
        with self.start(*flags) as process:
            output, said = process.communicate(timeout=60)
        return process.returncode, output, said

    def test_json_and_table(self) -> None:
        flags = [f"--model={self.model}", f"--tools_dir={self.folder / 'tools'}"]
        code, output, said = self.run_program(*flags, "--json", "--threads=3")
        self.assertEqual((code, said), (0, ""))
        found = Measurement.from_json(json.loads(output))
        self.assertAlmostEqual(found.latency_ms, 33.2094)
        self.assertEqual(found.threads, 3)
        code, output, said = self.run_program(
            f"--model={self.model}", "--benchmark_binary", self.tool
        )
        self.assertEqual((code, said), (0, ""))
        self.assertRegex(output, r"(?m)^latency_ms +33\.2094$")

    def test_a_damaged_file_reaches_no_phone(self) -> None:
        self.model.write_bytes(self.model.read_bytes()[:200])
        flags = [f"--model={self.model}", f"--benchmark_binary={self.tool}"]
        code, output, said = self.run_program(*flags)
        self.assertEqual((code, output), (1, ""), said)
        self.assertIn(str(self.model), said)
        self.assertEmpty(self.calls())
        code, _, said = self.run_program(*flags, "--noverify")
        self.assertEqual((code, said), (0, ""))

    def test_help(self) -> None:
        code, output, _ = self.run_program("--help")
        self.assertEqual(code, 0)
        self.assertIn("--taskset", output)

    def test_errors_are_one_line(self) -> None:
        model = f"--model={self.model}"
        self.answer("get-state", "echo offline")
        for flags, words, code in (
            ([], "--model", 2),
            ([model], "either --benchmark_binary or --tools_dir", 2),
            ([model, "--delegate=hexagon"], "hexagon", 2),
            ([model, f"--benchmark_binary={self.tool}", "--taskset=big"], "mask of cores", 2),
            ([model, f"--benchmark_binary={self.tool}"], "PHONE1: offline", 1),
        ):
            done, output, said = self.run_program(*flags)
            self.assertEqual((done, output), (code, ""), said)
            self.assertIn(words, said)
            self.assertEqual(said.count("\n"), 1, said)

    @parameterized.parameters(signal.SIGINT, signal.SIGTERM)
    def test_interrupted(self, number: signal.Signals) -> None:
        self.answer("run", "touch $STAND_IN/runs; sleep 1000 & wait")
        with self.start(f"--model={self.model}", f"--benchmark_binary={self.tool}") as process:
            for _ in range(600):
                if (self.answers / "runs").exists():
                    break
                time.sleep(0.1)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        self.assertEqual((process.returncode, said), (130, "interrupted\n"))
        self.assert_cleaned(ended=True)


class MeasurementTest(parameterized.TestCase):
    good = Measurement(
        latency_ms=1.5, runtime="r", device="d", delegate="none", file_bytes=3, sha256="0a" * 32
    )

    @parameterized.parameters(
        {"latency_ms": 0.0},
        {"latency_ms": float("nan")},
        {"std_ms": -1.0},
        {"p95_ms": float("inf")},
        {"runs": 0},
        {"threads": 0},
        {"peak_rss_kb": -1},
        {"delegate": "npu"},
        {"device": ""},
        {"sha256": "0a"},
    )
    def test_is_checked(self, **change) -> None:
        with self.assertRaisesRegex(ValueError, next(iter(change))):
            dataclasses.replace(self.good, **change)

    def test_text_has_what_is_known(self) -> None:
        text = self.good.to_text()
        self.assertRegex(text, r"(?m)^latency_ms +1\.5$")
        self.assertNotIn("median_ms", text)


def _processes() -> list[int]:
    return [int(p.name) for p in pathlib.Path("/proc").iterdir() if re.fullmatch(r"\d+", p.name)]


def _environment(pid: int) -> bytes:
    try:
        return pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    absltest.main()
