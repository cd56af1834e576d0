r"""Times .tflite files with nothing of tfgen: a second opinion on every latency that tfgen states.

    time_files FILE.tflite ...           or the names on standard input, one a line

Prints, for each file, its name and the least of some windows' medians in milliseconds. Files take
turns. Needs ai-edge-litert and NumPy only.
"""

import argparse
import statistics
import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def open_file(name: str) -> Interpreter:
    model = Interpreter(name, num_threads=1)
    model.allocate_tensors()
    random = np.random.default_rng(0)
    for detail in model.get_input_details():
        kind = np.dtype(detail["dtype"])
        numbers = random.standard_normal(detail["shape"]) * (20 if kind.kind == "i" else 1)
        model.set_tensor(detail["index"], numbers.astype(kind))
    for _ in range(10):
        model.invoke()
    return model


def window_ms(model: Interpreter, seconds: float) -> float:
    """The median of single inferences in a window of time."""
    spans, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(spans) < 5:
        start = time.perf_counter_ns()
        model.invoke()
        spans.append(time.perf_counter_ns() - start)
    return statistics.median(spans) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--window_ms", type=float, default=2.0)
    options = parser.parse_args()
    names = options.files or sys.stdin.read().splitlines()
    models = [open_file(name) for name in names]
    windows = [
        [window_ms(m, options.window_ms / 1e3) for m in models] for _ in range(options.windows)
    ]
    for name, least in zip(names, np.min(windows, axis=0), strict=True):
        print(f"{name} {least:.6f}")


if __name__ == "__main__":
    main()
