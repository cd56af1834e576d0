"""The process in which a .tflite runs: a malformed file may end it, its parent reports that.

Run by `child`. Its folder holds for a prediction inputs_0.npy, inputs_1.npy ..., one for each of
the file's inputs; the answer goes to result.json and outputs.npy in it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import pathlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tfgen import child_process
from tfgen.deployment import energy_counters

STARTED, RESULT = "started", "result.json"
PROGRESS = "progress"  # holds the path of the file that a task of many files is at
INPUTS, OUTPUTS = "inputs_{}.npy", "outputs.npy"
RUNTIME = "ai-edge-litert"
_FEWEST, _MOST = 5, 300  # inferences in a window
_QUIET = 1.05  # times the reference's best: beyond it something else held the machine up
_MOST_TURNS = 400  # windows for each one that is wanted
_RETRY = 4  # times as long as the windows that are wanted take, or as patience lasts
_PAUSE_S = 0.01  # between windows that are repeated
_REFERENCE_WARMUP = 100
_ALIGNMENT = 64  # bytes, of tensors in the arena


def main(folder: pathlib.Path) -> None:
    request = child_process.begin(folder)
    import ai_edge_litert.interpreter  # noqa: F401  before the clock: no part of the model's cost

    (folder / STARTED).touch()
    if request["task"] == "compare":
        result = _compare(request, folder)
    elif request["task"] == "arena":
        result = _arenas(request, folder)
    else:
        result = _measure(request) if request["task"] == "measure" else _predict(request, folder)
    # A result that is there is whole: the parent takes its absence for a crash.
    (folder / RESULT).write_text(json.dumps(result))


def _open(model: str | bytes, request: dict[str, Any]) -> Any:
    """The interpreter of a file, given by its path or its content, with memory for its tensors."""
    from ai_edge_litert import interpreter

    kinds = interpreter.OpResolverType
    opened = interpreter.Interpreter(
        **{"model_content" if isinstance(model, bytes) else "model_path": model},
        num_threads=request["threads"],
        experimental_op_resolver_type=kinds.AUTO
        if request["xnnpack"]
        else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    opened.allocate_tensors()
    return opened


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    base_kb = _peak_rss_kb()
    start = time.perf_counter_ns()
    model = _open(request["model"], request)
    init_ns = time.perf_counter_ns() - start
    _set_inputs(model)
    for _ in range(request["warmup"]):
        model.invoke()
    runs = -(-request["runs"] // request["windows"])
    timed = _take_turns([model], [runs], _open_reference(request), _known_ms(request), request)
    quiet = np.argsort(~timed.quiet(0), kind="stable")[: request["windows"]]
    milliseconds = np.concatenate([timed.spans_ms[0][window] for window in quiet])
    peak_kb = _peak_rss_kb()
    counters = energy_counters.find()
    latency_ms, spread, quiet_windows = timed.latency(0)
    return {
        "latency_ms": latency_ms,
        "spread": spread,
        "quiet_windows": quiet_windows,
        "reference_ms": timed.reference_ms,
        "runs": len(milliseconds),
        "median_ms": float(np.median(milliseconds)),
        "mean_ms": float(milliseconds.mean()),
        "p90_ms": float(np.percentile(milliseconds, 90)),
        "p95_ms": float(np.percentile(milliseconds, 95)),
        "std_ms": float(milliseconds.std()),
        "min_ms": float(milliseconds.min()),
        "init_ms": init_ns / 1e6,
        "inference_mj": counters and energy_counters.of_a_run_mj(counters, model.invoke),
        "peak_rss_kb": peak_kb,
        "base_rss_kb": base_kb,
        "runtime": f"{RUNTIME} {importlib.metadata.version(RUNTIME)}",
        "fully_accelerated": _fully_accelerated(request["model"]),
    }


def _compare(request: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Times many files in windows that take turns: what else the host does meets them all."""
    files = sorted(pathlib.Path(request["model"]).glob("*.tflite"))
    reference = _open_reference(request)
    results: list[tuple[float, float, int]] = []
    reference_ms = _known_ms(request)
    for start in range(0, len(files), request["at_once"]):
        models = []
        some = files[start : start + request["at_once"]]
        for path in _telling(some, folder):
            models.append(_open(str(path), request))
            _set_inputs(models[-1])
        # The first run of a model prepares it.
        for _, model in zip(_telling(some, folder), models, strict=True):
            model.invoke()
        single_ms = [_spans_ms(model, _FEWEST).min() for model in models]
        runs = [int(np.clip(request["window_ms"] / ms, _FEWEST, _MOST)) for ms in single_ms]
        timed = _take_turns(models, runs, reference, reference_ms, request)
        results += [timed.latency(number) for number in range(len(models))]
        reference_ms = timed.reference_ms
    latency_ms, spread, quiet = zip(*results, strict=True)
    return {
        "latency_ms": latency_ms,
        "spread": spread,
        "quiet_windows": quiet,
        "reference_ms": reference_ms,
        "fully_accelerated": [_fully_accelerated(str(path)) for path in _telling(files, folder)],
        "file_bytes": [path.stat().st_size for path in files],
        "runtime": f"{RUNTIME} {importlib.metadata.version(RUNTIME)}",
    }


def _telling(paths: Iterable[pathlib.Path], folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files one by one; a crash leaves behind at which of them it was."""
    for path in paths:
        (folder / PROGRESS).write_text(str(path))
        yield path
    (folder / PROGRESS).unlink(missing_ok=True)


def _arenas(request: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Bytes of the arena of each of many files."""
    arena_bytes = []
    for path in _telling(map(pathlib.Path, request["models"]), folder):
        content = path.read_bytes()
        arena_bytes.append(_arena_bytes(_open(content, request), content))
    return {"arena_bytes": arena_bytes}


def _arena_bytes(model: Any, content: bytes) -> int:
    """What the tensors span that do not lie in the file's content.

    In an arena each tensor starts where another ends, but for the alignment; what lies farther
    away is another arena, that of tensors which outlive an inference.
    """
    first = np.frombuffer(content, np.uint8).__array_interface__["data"][0]
    spans = []
    for detail in model.get_tensor_details():
        try:
            tensor = model.tensor(detail["index"])()
        except ValueError:  # it has no memory: it gets some in an inference, or in a delegate
            continue
        start = tensor.__array_interface__["data"][0]
        if tensor.nbytes and not first <= start < first + len(content):
            spans.append((start, start + tensor.nbytes))
    total = reached = 0
    for start, end in sorted(spans):
        total += max(0, end - (reached if start - reached < _ALIGNMENT else start))
        reached = max(reached, end)
    return total


@dataclasses.dataclass
class _Timed:
    """What a few models took, window by window; and how slow the machine then was.

    Attributes:
      spans_ms: by model and window, single inferences [runs].
      slowness_ms: by model and window, what the reference took around it.
      reference_ms: the least that the reference took, or is known to take.
    """

    spans_ms: list[list[np.ndarray]]
    slowness_ms: list[list[float]]
    reference_ms: float

    def quiet(self, model: int) -> np.ndarray:
        """In which windows nothing else held the machine up [windows]."""
        return np.array(self.slowness_ms[model]) <= _QUIET * self.reference_ms

    def latency(self, model: int) -> tuple[float, float, int]:
        """The least median of quiet windows, by how much their middle one is over it, their number.

        Where no window was quiet, of the quietest ones.
        """
        medians = np.array([np.median(spans) for spans in self.spans_ms[model]])
        slowness_ms = np.array(self.slowness_ms[model])
        taken = medians[slowness_ms <= _QUIET * max(self.reference_ms, slowness_ms.min())]
        least = float(taken.min())
        return least, float(np.median(taken) / least - 1), int(self.quiet(model).sum())


def _take_turns(
    models: list[Any],
    runs: list[int],
    reference: Any,
    reference_ms: float,
    request: dict[str, Any],
) -> _Timed:
    """Times models in windows that take turns, until each has enough that were quiet.

    Other work on a core's other thread slows a window by half. A reference, timed before and after
    each, tells: such a window is repeated, a bounded number of times.
    `reference_ms` is the least that the reference took before.
    """
    patience_s = request["patience_s"] if request["reference_ms"] else 0.0
    start_s = time.monotonic()
    first_s = math.inf  # what the windows took that were asked for
    spans_ms: list[list[np.ndarray]] = [[] for _ in models]
    timed = _Timed(spans_ms, [[] for _ in models], reference_ms)
    missing = list(range(len(models)))
    for turn in range(request["windows"] * _MOST_TURNS):
        # A core that slept is slow for a while.
        _spans_ms(reference, _REFERENCE_WARMUP)
        before_ms = _spans_ms(reference, _FEWEST).min()
        for number in missing:
            spans_ms[number].append(_spans_ms(models[number], runs[number]))
            after_ms = _spans_ms(reference, _FEWEST).min()
            timed.slowness_ms[number].append(max(before_ms, after_ms))
            timed.reference_ms = min(timed.reference_ms, before_ms, after_ms)
            before_ms = after_ms
        if turn + 1 >= request["windows"]:
            spent_s, enough = time.monotonic() - start_s, request["windows"]
            first_s = min(first_s, spent_s)
            missing = [n for n in range(len(models)) if timed.quiet(n).sum() < enough]
            longest_s = min(max(_RETRY * first_s, patience_s), request["longest_s"])
            if not missing or spent_s > longest_s:
                break
            time.sleep(_PAUSE_S)
    return timed


def _known_ms(request: dict[str, Any]) -> float:
    """What the reference takes where nothing else runs, as far as anybody knows."""
    return request["reference_ms"] or math.inf


def _open_reference(request: dict[str, Any]) -> Any:
    model = _open(request["reference"], {**request, "threads": 1})
    _set_inputs(model)
    return model


def _set_inputs(model: Any) -> None:
    random = np.random.Generator(np.random.PCG64(0))
    for detail in model.get_input_details():
        model.set_tensor(detail["index"], _example(random, detail))


def _spans_ms(model: Any, runs: int) -> np.ndarray:
    """How long each of some inferences takes [runs]."""
    spans = np.empty(runs, np.int64)
    for run in range(runs):
        start = time.perf_counter_ns()
        model.invoke()
        spans[run] = time.perf_counter_ns() - start
    return spans / 1e6


def _example(random: np.random.Generator, detail: dict[str, Any]) -> np.ndarray:
    """A random input of the tensor's shape and type."""
    kind = np.dtype(detail["dtype"])
    if kind.kind == "f":
        return random.standard_normal(detail["shape"]).astype(kind)
    if kind.kind == "b":
        return random.integers(0, 2, detail["shape"]).astype(kind)
    limits = np.iinfo(kind)
    return random.integers(limits.min, limits.max, detail["shape"], kind, endpoint=True)


def _fully_accelerated(path: str) -> bool | None:
    """Whether XNNPACK took every op; None where the runtime cannot tell."""
    try:
        from ai_edge_litert import compiled_model
    except ImportError:
        return None
    return bool(compiled_model.CompiledModel.from_file(path).is_fully_accelerated())


def _peak_rss_kb() -> int:
    """The most memory that this process has held.

    Linux's ru_maxrss counts the parent's image up to exec, hundreds of MB after a training.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
        return int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def _predict(request: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Runs the examples one by one, as a device does: what a batch computes is another question."""
    model = _open(request["model"], request)
    inputs, outputs = model.get_input_details(), model.get_output_details()
    arrays = [
        np.load(folder / INPUTS.format(number), mmap_mode="r")
        for number in range(request["inputs"])
    ]
    if (len(inputs), len(outputs)) != (len(arrays), 1):
        return {
            "error": f"has {len(inputs)} inputs and {len(outputs)} outputs, {len(arrays)} and 1 "
            "are needed"
        }
    for taken, examples in zip(inputs, arrays, strict=True):
        shape = tuple(taken["shape"].tolist())
        if shape != (1, *examples.shape[1:]):
            return {"error": f"takes {shape}, one example is {examples.shape[1:]}"}
    given = outputs[0]
    results = np.empty((len(arrays[0]), *given["shape"][1:]), np.float32)
    for row in range(len(results)):
        for taken, examples in zip(inputs, arrays, strict=True):
            model.set_tensor(taken["index"], _to_tensor(examples[row : row + 1], taken))
        model.invoke()
        results[row] = _from_tensor(model.get_tensor(given["index"])[0], given)
    np.save(folder / OUTPUTS, results)
    return {}


def _to_tensor(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    kind = np.dtype(detail["dtype"])
    if kind.kind == "f":
        return values.astype(kind)
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(kind)
    # The runtime's own QUANTIZE rounds halves away from zero.
    steps = values / np.float32(scale)
    rounded = np.trunc(steps + np.copysign(np.float32(0.5), steps)) + zero_point
    return np.clip(rounded, limits.min, limits.max).astype(kind)


def _from_tensor(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    if values.dtype.kind == "f":
        return values
    scale, zero_point = detail["quantization"]
    return (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
