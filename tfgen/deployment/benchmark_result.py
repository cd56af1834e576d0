"""Reads the result file of `benchmark_model`: the numbers of a run, unrounded."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from tfgen import errors
from tfgen.deployment.benchmark_output import Output

_ROUNDED_MS = 0.01  # to which LiteRT's text is
# tflite.tools.benchmark.BenchmarkResult, which is what --result_file_path holds since 2025:
# message, its number there, its fields with number and type as in descriptor.proto.
_FLOAT, _INT64 = 2, 3
_RESULT = {
    "LatencyMetrics": (
        2,
        {
            "avg_ms": (1, _FLOAT),
            "min_ms": (2, _FLOAT),
            "max_ms": (3, _FLOAT),
            "stddev_ms": (4, _FLOAT),
            "median_ms": (5, _FLOAT),
            "p5_ms": (6, _FLOAT),
            "p95_ms": (7, _FLOAT),
            "init_ms": (8, _FLOAT),
            "first_inference_ms": (9, _FLOAT),
            "average_warm_up_ms": (10, _FLOAT),
        },
    ),
    "MemoryMetrics": (
        3,
        {
            "init_footprint_kb": (1, _INT64),
            "overall_footprint_kb": (2, _INT64),
            "peak_mem_mb": (3, _FLOAT),
        },
    ),
    "MiscMetrics": (
        4,
        {
            "model_size_mb": (1, _FLOAT),
            "num_runs": (2, _INT64),
            "num_warmup_runs": (3, _INT64),
            "model_throughput_in_mb_per_sec": (4, _FLOAT),
        },
    ),
}
_TIMES = {
    "avg_ms": "mean_ms",
    "min_ms": "min_ms",
    "stddev_ms": "std_ms",
    "median_ms": "median_ms",
    "p95_ms": "p95_ms",
    "init_ms": "init_ms",
}


def with_result(output: Output, data: bytes) -> Output:
    """The output with the unrounded numbers of the same run's result file.

    Args:
      output: what the run said.
      data: of the file that `--result_file_path` names.

    Raises:
      DeviceError: `data` is no such file, or is of another run.
    """
    from google.protobuf import message

    result = _result_class()()
    try:
        result.ParseFromString(data)
    except message.DecodeError:
        raise errors.DeviceError("the result file of benchmark_model is not readable") from None
    latency, memory, misc = result.latency_metrics, result.memory_metrics, result.misc_metrics
    found: dict[str, Any] = {
        ours: getattr(latency, theirs)
        for theirs, ours in _TIMES.items()
        if latency.HasField(theirs)
    }
    mean_ms = found.get("mean_ms", math.nan)
    if not math.isclose(mean_ms, output.mean_ms, rel_tol=1e-4, abs_tol=_ROUNDED_MS):
        raise errors.DeviceError(
            "the result file and the output disagree: "
            f"mean {mean_ms:g} ms and {output.mean_ms:g} ms"
        )
    if not all(math.isfinite(value) and value >= 0 for value in found.values()):
        raise errors.DeviceError(f"the result file of benchmark_model has times of {found}")
    if misc.num_runs > 0 and misc.num_warmup_runs >= 0:
        found |= {"runs": misc.num_runs, "warmup": misc.num_warmup_runs}
    if memory.HasField("overall_footprint_kb") and memory.overall_footprint_kb >= 0:
        found["peak_memory_kb"] = memory.overall_footprint_kb
    if 0 < memory.peak_mem_mb < math.inf:
        found["peak_rss_kb"] = round(memory.peak_mem_mb * 1024)
    return dataclasses.replace(output, **found)


@functools.cache
def _result_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    package = "tflite.tools.benchmark"
    file = descriptor_pb2.FileDescriptorProto(
        name="benchmark_result.proto", package=package, syntax="proto2"
    )
    field = descriptor_pb2.FieldDescriptorProto
    optional = field.LABEL_OPTIONAL
    whole = file.message_type.add(name="BenchmarkResult")
    whole.field.add(name="name", number=1, label=optional, type=field.TYPE_STRING)
    for name, (place, fields) in _RESULT.items():
        part = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            part.field.add(name=field_name, number=number, label=optional, type=kind)
        snake = name.replace("Metrics", "_metrics").lower()
        kind_name = f".{package}.{name}"
        whole.field.add(
            name=snake, number=place, label=optional, type=field.TYPE_MESSAGE, type_name=kind_name
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.BenchmarkResult"))
