r"""Measures a .tflite on a phone through adb.

    benchmark_android --model=model.tflite --tools_dir=tools_by_abi --delegate=gpu --json

It needs adb on PATH and `benchmark_model`, the benchmark program of TensorFlow Lite or LiteRT,
built for the phone's processor; docs/android.md tells what is read of its output.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence

from absl import flags

from tfgen import errors, program, workdir
from tfgen.deployment import android, arena
from tfgen.deployment.benchmark_delegates import ASKED

_MODEL = flags.DEFINE_string("model", None, "The .tflite to measure.", required=True)
_BINARY = flags.DEFINE_string("benchmark_binary", None, "benchmark_model for the phone.")
_TOOLS_DIR = flags.DEFINE_string(
    "tools_dir", None, "Folder with benchmark_model by ABI: arm64-v8a/benchmark_model."
)
_SERIAL = flags.DEFINE_string("serial", None, "The phone, as `adb devices` names it.")
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of the runtime.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", android.RUNS, "Inferences timed, at least.", lower_bound=1)
_WARMUP = flags.DEFINE_integer(
    "warmup", android.WARMUP, "Inferences before the clock starts, at least.", lower_bound=0
)
_DELEGATE = flags.DEFINE_enum(
    "delegate", "xnnpack", list(ASKED), "What shall run the ops. gpu and nnapi must run them all."
)
_ALLOW_PARTIAL = flags.DEFINE_bool(
    "allow_partial", False, "Let the CPU run what gpu or nnapi does not take."
)
_TASKSET = flags.DEFINE_string("taskset", None, "Mask of the cores to run on, such as f0.")
_PROFILE = flags.DEFINE_bool("profile", False, "Time single ops too, which slows the whole.")
_TIMEOUT = flags.DEFINE_float(
    "timeout", android.TIMEOUT_SECONDS, "Seconds for the run, and for each copy.", lower_bound=1
)
_VERIFY = flags.DEFINE_bool(
    "verify", True, "Open the file here first, in a child process: a damaged one reaches no phone."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")


def main(argv: Sequence[str]) -> None:
    """Prints what was measured."""
    del argv
    signal.signal(signal.SIGTERM, _interrupt)
    if (_BINARY.value is None) == (_TOOLS_DIR.value is None):
        raise errors.UsageError("give either --benchmark_binary or --tools_dir")
    model = workdir.user_path(_MODEL.value)
    if _VERIFY.value:
        arena.measure(model)
    measured = android.measure(
        model,
        binary=_BINARY.value and workdir.user_path(_BINARY.value),
        tools_dir=_TOOLS_DIR.value and workdir.user_path(_TOOLS_DIR.value),
        serial=_SERIAL.value,
        threads=_THREADS.value,
        runs=_RUNS.value,
        warmup=_WARMUP.value,
        delegate=_DELEGATE.value,
        allow_partial=_ALLOW_PARTIAL.value,
        taskset=_TASKSET.value,
        profile=_PROFILE.value,
        timeout_seconds=_TIMEOUT.value,
    )
    print(json.dumps(measured.to_json(), indent=1) if _JSON.value else measured.to_text())


def _interrupt(number: int, frame: object) -> None:
    """Ends as Ctrl-C does: what was copied to the phone is removed first."""
    del number, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    program.run(main)
