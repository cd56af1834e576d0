r"""Measures a .tflite on this host.

benchmark_tflite --model=model.tflite --runs=1000 --json
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from absl import flags

from tfgen import program, workdir

_MODEL = flags.DEFINE_string("model", None, "The .tflite to measure.", required=True)
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of the runtime.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 1000, "Inferences timed.", lower_bound=1)
_WARMUP = flags.DEFINE_integer("warmup", 50, "Inferences before the clock starts.", lower_bound=0)
_TIMEOUT = flags.DEFINE_float("timeout", 120, "Seconds that all of it may take.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")


def main(argv: Sequence[str]) -> None:
    """Prints what was measured."""
    del argv
    from tfgen.deployment import benchmark

    measured = benchmark.measure(
        workdir.user_path(_MODEL.value),
        threads=_THREADS.value,
        warmup=_WARMUP.value,
        runs=_RUNS.value,
        timeout_seconds=_TIMEOUT.value,
    )
    if _JSON.value:
        print(json.dumps(measured.to_json(), indent=1))
    else:
        print(measured.to_text())


def run() -> None:
    """The program `tfgen-benchmark`."""
    program.run(main)


if __name__ == "__main__":
    run()
