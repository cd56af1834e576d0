"""Writes the bit policy of the installed LiteRT: what it makes of single ops.

    bazel run -c opt //tools:probe_runtime -- --output=configs/runtimes/litert-2.4.json

Every op is written as a file of its own, for each container of its weights and each width of its
activations, and run with XNNPACK and without in processes that may crash. What comes out is
compared with exact arithmetic on the same integers; what is sound is timed against the same op with
8-bit weights and activations. The file lies beside the older ones then, and a space uses it by its
name without .json: `catalog.mlp(..., bit_policy="litert-2.4")`.

Two runs on one machine differ in the times and the date alone, and where a kernel reads memory that
nobody wrote. On two idle cores it takes about three minutes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import datetime
import json
import pathlib
import platform
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import flags

from tfgen import errors, program, seeds, workdir
from tfgen.deployment import benchmark, child, tflite_file, tflite_writer, timing
from tfgen.space import bits
from tfgen.space.layers import (
    INPUT,
    OPS,
    POOLS,
    SAME_RANGE_OPS,
    WEIGHTED_OPS,
    WINDOWED_OPS,
    LayerSpec,
)

_OUTPUT = flags.DEFINE_string("output", None, "The .json file to write.")
_OPS = flags.DEFINE_multi_enum("op", list(OPS), list(OPS), "Ops to probe; a policy needs them all.")

EXAMPLES = 50
# Sound kernels round up to twice: no output is more than two steps from the exact one.
CLOSE_STEPS = 2
# Steps by which float32 multipliers may miss the middle between two integers.
_TIE = 1e-3
CHANNELS = (5, 6, 12, 16)  # multiples of 1, 2, 4 and 8: kernels of narrow weights read several
_OUTPUT_CHANNELS = 8
_CLIPPED = 0.9  # of the outputs' range is representable: kernels clip the rest
_OPERANDS = ("left", "right")
_BINARY = ("add", "concat", "multiply")
# Ranges of operands: sigmoid and hard-swish are anything from nearly linear to nearly constant.
_RANGES = (1.0, 32.0)
_ZERO_POINTS = (-7, 5)  # of both operands in int8
_SIGMOID_STEPS = {8: (1 / 256, -128), 16: (1 / 32768, 0)}  # the format demands them
_WINDOWS, _WINDOW_MS = 9, 20.0  # of timing


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeFile:
    """A file with one op, and what it should answer.

    Attributes:
      content: the .tflite.
      operands: float32 [examples, ...] for each of its inputs, multiples of their steps.
      wanted: the exact outputs in steps, not rounded [examples, ...].
      scale: of an output step; of float outputs, 1/255 of their range before any activation.
      zero_point: of the output.
    """

    content: bytes
    operands: tuple[np.ndarray, ...]
    wanted: np.ndarray
    scale: float
    zero_point: int


def layers(op: str, container_bits: int, activation_bits: int) -> list[LayerSpec]:
    """The layers that are probed for a row: what decides which kernel runs varies among them."""

    def layer(channels: int, side: int, **fields: Any) -> LayerSpec:
        return _layer(op, channels, side, container_bits, activation_bits, **fields)

    if op == "dense":
        images = [layer(channels, 3, activation="relu") for channels in (5, 16)]
        return [layer(channels, 0) for channels in CHANNELS] + images
    if op in WEIGHTED_OPS:
        strided = layer(16, 7, kernel=5, stride=2, activation="relu6")
        return [layer(channels, 7, kernel=3) for channels in CHANNELS] + [strided]
    fields: list[dict[str, Any]] = {
        "add": [{}, {"activation": "relu"}],
        **{pool: [{"kernel": 2, "stride": 2}, {"kernel": 3}] for pool in POOLS},
        "mean": [{"out_size": ()}, {"out_size": (1, 1)}],
        "pad": [{"offset": 1}, {"offset": 2}],
        "resize": [{"stride": 2}, {"stride": 3}],
        "slice": [{"offset": 1, "out_channels": 3}],
    }.get(op, [{}])
    return [layer(channels, 6, **chosen) for channels in (5, 16) for chosen in fields]


def timed_layer(op: str, container_bits: int, activation_bits: int) -> LayerSpec:
    """The layer that a row's time is that of: large enough that arithmetic is most of it."""
    channels, side = {"dense": (512, 0), "conv": (32, 16)}.get(op, (64, 16))
    fields = {"dense": {"out_channels": channels}, "conv": {"out_channels": channels}}.get(op, {})
    if op in WINDOWED_OPS:
        fields["kernel"] = 3
    if op == "pad":
        fields["offset"] = 1
    if op == "resize":
        fields["stride"] = 2
    return _layer(op, channels, side, container_bits, activation_bits, **fields)


def _layer(
    op: str, channels: int, side: int, container_bits: int, activation_bits: int, **fields: Any
) -> LayerSpec:
    """A layer that reads images of a side, or vectors where that is 0."""
    size = (side, side) if side else ()
    steps = fields.get("stride", 1)
    out = side * steps if op == "resize" else -(-side // steps)
    if op == "pad":
        out += 2 * fields["offset"]
    made = {"depthwise": channels, "concat": 2 * channels, "flatten": side * side * channels}
    defaults: dict[str, Any] = {
        "out_channels": made.get(op, _OUTPUT_CHANNELS if op in WEIGHTED_OPS else channels),
        "out_size": (out, out) if side and op not in ("flatten", "mean") else (),
    }
    return LayerSpec(
        name=op,
        op=op,
        inputs=_OPERANDS[: 2 if op in _BINARY else 1],
        in_channels=channels,
        in_size=size,
        weight_bits=container_bits,
        # The writer knows no layer of float activations: they are made floats afterwards.
        activation_bits=8 if activation_bits == bits.FLOAT_ACTIVATIONS else activation_bits,
        **{**defaults, **fields},
    )


def write(
    layer: LayerSpec, random: np.random.Generator, *, floats: bool = False, examples: int = EXAMPLES
) -> ProbeFile:
    """A file with the layer alone, random numbers in it and random examples for it.

    Args:
      layer: what `layers` or `timed_layer` gives; its weights take containers of their own width.
      random: all numbers come from it.
      floats: whether the operands, the bias and the output are floats.
      examples: how many.
    """
    image = (*layer.in_size, layer.in_channels)
    shapes = (image, (1, 1, layer.in_channels) if layer.op == "multiply" else image)
    steps = [
        (np.exp(random.uniform(*np.log(_RANGES))) / 2**layer.activation_bits, zero_point)
        for zero_point in (_ZERO_POINTS if layer.activation_bits == 8 else (0, 0))
    ]
    if layer.op == "concat":
        steps[1] = steps[0]
    low, high = (-(2 ** (layer.activation_bits - 1)), 2 ** (layer.activation_bits - 1) - 1)
    values = [
        random.integers(low, high, (examples, *shape), endpoint=True) - zero_point
        for shape, (_, zero_point), _ in zip(shapes, steps, layer.inputs, strict=False)
    ]
    scales = [float(np.float32(scale)) for scale, _ in steps]
    weights = _weights(layer, values[0], random) if layer.weighted else None
    reals = exact(layer, values, scales, weights)
    scale, zero_point = _output_step(layer, reals, steps[0])
    content = _alone(_network(layer, shapes, steps, (scale, zero_point), weights), floats)
    if floats:
        low, high, zero_point = -np.inf, np.inf, 0
        unclipped = dataclasses.replace(layer, activation="linear")
        scale = float(np.ptp(exact(unclipped, values, scales, weights))) / 255
    return ProbeFile(
        content,
        tuple((v * s).astype(np.float32) for v, s in zip(values, scales, strict=False)),
        np.clip(reals / float(np.float32(scale)) + zero_point, low, high),
        float(np.float32(scale)),
        zero_point,
    )


def _weights(
    layer: LayerSpec, values: np.ndarray, random: np.random.Generator
) -> tflite_writer.Weights:
    channels, shape = layer.out_channels, tflite_writer.kernel_shape(layer)
    top = 2 ** (layer.weight_bits - 1) - 1
    kernel = random.integers(-top, top, shape, endpoint=True)
    scales = (random.uniform(0.5, 1.5, channels) / top).astype(np.float32)
    # About the size of the sums that it is added to.
    spread = values.std() * kernel.std() * np.sqrt(kernel.size / channels)
    bias = np.rint(random.normal(0, spread / 3, channels)).astype(np.int64)
    return tflite_writer.Weights(kernel, bias, scales, layer.weight_bits)


def exact(
    layer: LayerSpec,
    values: Sequence[np.ndarray],
    scales: Sequence[float],
    weights: tflite_writer.Weights | None = None,
) -> np.ndarray:
    """What the layer should make of its operands, as real numbers [examples, ...].

    Args:
      layer: the layer.
      values: of each operand, integers above its zero point [examples, ...].
      scales: of each operand.
      weights: of a weighted layer.
    """
    if weights is not None:
        sums = _sums(layer, values[0], weights.kernel) + weights.bias  # integers: no rounding
        reals = sums * (scales[0] * weights.scales.astype(np.float64))
    else:
        reals = _unweighted(layer, [v * s for v, s in zip(values, scales, strict=False)])
    if layer.activation == "linear":
        return reals
    return np.clip(reals, 0, 6 if layer.activation == "relu6" else np.inf)


def _sums(layer: LayerSpec, values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    if layer.op == "dense":
        return values @ kernel.T
    windows = _windows(layer, values, 0)
    if layer.op == "conv":
        return np.einsum("nhwcij,oijc->nhwo", windows, kernel, optimize=True)
    return np.einsum("nhwcij,ijc->nhwc", windows, kernel[0], optimize=True)


def _unweighted(layer: LayerSpec, reals: Sequence[np.ndarray]) -> np.ndarray:
    x = reals[0]
    match layer.op:
        case "add":
            return x + reals[1]
        case "multiply":
            return x * reals[1]
        case "concat":
            return np.concatenate(reals, axis=-1)
        case "flatten":
            return x.reshape(len(x), -1)
        case "pad":
            around = (layer.offset, layer.offset)
            return np.pad(x, [(0, 0), around, around, (0, 0)])
        case "resize":
            return x.repeat(layer.stride, 1).repeat(layer.stride, 2)
        case "slice":
            return x[..., layer.offset : layer.offset + layer.out_channels]
        case "average_pool":
            return np.nanmean(_windows(layer, x, np.nan), (-2, -1))
        case "max_pool":
            return _windows(layer, x, -np.inf).max((-2, -1))
        case "mean":
            return x.mean((1, 2), keepdims=bool(layer.out_size))
        case "sigmoid":
            return 1 / (1 + np.exp(-x))
        case "hard_swish":
            return x * np.clip(x + 3, 0, 6) / 6
    raise ValueError(f"no arithmetic for {layer.op}")


def _windows(layer: LayerSpec, x: np.ndarray, fill: float) -> np.ndarray:
    """What each output of a convolution or pool sees [examples, height, width, channels, k, k]."""
    pads = [(0, 0)]
    for side, out in zip(layer.in_size, layer.out_size, strict=True):
        total = max((out - 1) * layer.stride + layer.kernel - side, 0)
        pads.append((total // 2, total - total // 2))
    padded = np.pad(x, [*pads, (0, 0)], constant_values=fill)
    kernel = (layer.kernel, layer.kernel)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, (1, 2))
    return windows[:, :: layer.stride, :: layer.stride]


def _output_step(
    layer: LayerSpec, reals: np.ndarray, operand: tflite_writer.Step
) -> tflite_writer.Step:
    """Scale and zero point under which the outputs fill their type, and some are clipped."""
    if layer.op in (*SAME_RANGE_OPS, "concat"):
        return operand
    if layer.op == "sigmoid":
        return _SIGMOID_STEPS[layer.activation_bits]
    low, high = _CLIPPED * min(reals.min(), 0), _CLIPPED * max(reals.max(), 0)
    if layer.activation_bits == 16:
        return max(high, -low) / 32767, 0
    scale = (high - low) / 255
    return scale, round(-128 - low / scale)


def _network(
    layer: LayerSpec,
    shapes: Sequence[tuple[int, ...]],
    steps: Sequence[tflite_writer.Step],
    output: tflite_writer.Step,
    weights: tflite_writer.Weights | None,
) -> bytes:
    """The layer behind layers that make its operands, since a network has one input."""
    feeders = [
        LayerSpec(
            name=name,
            op="sigmoid" if shape == shapes[0] else "mean",
            inputs=(INPUT,),
            in_channels=layer.in_channels,
            out_channels=layer.in_channels,
            in_size=layer.in_size,
            out_size=shape[:-1],
            activation_bits=layer.activation_bits,
        )
        for name, shape in zip(layer.inputs, shapes, strict=False)
    ]
    known = {**dict(zip(_OPERANDS, steps, strict=True)), INPUT: steps[0], layer.name: output}
    numbers = {} if weights is None else {layer.name: weights}
    return tflite_writer.write([*feeders, layer], shapes[0], numbers, known, io="int8")


def _alone(content: bytes, floats: bool) -> bytes:
    """The file's last op alone; its operands are the file's inputs."""
    from ai_edge_litert import schema_py_generated as schema

    model = tflite_file.parse(content)
    graph, model.signatureDefs = model.subgraphs[0], None
    graph.inputs = np.array([op.outputs[0] for op in graph.operators[:-1]], np.int32)
    graph.operators = graph.operators[-1:]
    if floats:
        for index in (*graph.inputs, *graph.outputs):
            graph.tensors[index].type = schema.TensorType.FLOAT32
            graph.tensors[index].quantization = None
        bias = graph.tensors[graph.operators[0].inputs[2]]
        buffer = model.buffers[bias.buffer]
        reals = buffer.data.view(np.int32) * bias.quantization.scale.astype(np.float64)
        buffer.data = np.frombuffer(reals.astype(np.float32).tobytes(), np.uint8)
        bias.type, bias.quantization = schema.TensorType.FLOAT32, None
    return tflite_file.serialize(tflite_file.canonical(model))


def probe(chosen: Sequence[LayerSpec], *, floats: bool = False) -> bits.Row:
    """What the installed runtime makes of an op, not timed.

    Args:
      chosen: layers of one row, as `layers` gives them.
      floats: whether to run them with float activations.
    """
    op, container_bits = chosen[0].op, chosen[0].weight_bits
    activation_bits = bits.FLOAT_ACTIVATIONS if floats else chosen[0].activation_bits
    files = []
    for number, layer in enumerate(chosen):
        random = seeds.stream(0, "probe", op, container_bits, activation_bits, number)
        files.append(write(layer, random, floats=floats))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        default = list(pool.map(lambda file: _run(file, xnnpack=True), files))
        builtin = list(pool.map(lambda file: _run(file, xnnpack=False), files))
    ran = [number for number, result in enumerate(default) if result.max_steps is not None]
    taken = {n for n, fast in zip(ran, _accelerated([files[n] for n in ran]), strict=True) if fast}

    def takes_multiples_of(channels: int) -> bool:
        numbers = [n for n, layer in enumerate(chosen) if layer.in_channels % channels == 0]
        return bool(numbers) and taken.issuperset(numbers)

    multiple = next((m for m in (1, 2, 4, 8) if takes_multiples_of(m)), None)
    fast, slow = [], list(builtin)
    for layer, result in zip(chosen, default, strict=True):
        by_xnnpack = multiple is not None and layer.in_channels % multiple == 0
        (fast if by_xnnpack else slow).append(result)
    return bits.Row(
        op=op,
        container_bits=container_bits,
        activation_bits=activation_bits,
        xnnpack=_worst(fast) if fast else None,
        builtin=_worst(slow),
        channel_multiple=multiple or 1,
    )


def _accelerated(files: Sequence[ProbeFile]) -> list[bool]:
    """Whether XNNPACK takes the op of each of files that run."""
    try:
        found = timing.compare([file.content for file in files], windows=1)
    except errors.CorruptFileError:
        return [False] * len(files)
    return [bool(latency.fully_accelerated) for latency in found]


def _run(file: ProbeFile, *, xnnpack: bool) -> bits.Result:
    with workdir.scratch() as folder:
        path = folder / "probe.tflite"
        path.write_bytes(file.content)
        try:
            return compare(benchmark.predict(path, *file.operands, xnnpack=xnnpack), file)
        except errors.UsageError:
            raise  # the file is not what `write` says
        except errors.TfgenError as error:
            reason = str(error).removeprefix(f"{path}: ")
            refused = isinstance(error, errors.CorruptFileError) and child.CRASHED not in reason
    # `main` has seen that the runtime starts: what did not end in time was this file's fault.
    return bits.Result("refused" if refused else "crashed", reason=reason)


def compare(given: np.ndarray, file: ProbeFile) -> bits.Result:
    """Judges a file's outputs, float32 [examples, ...]."""
    if not np.isfinite(given).all():
        return bits.Result("nan")
    steps = np.rint(given.astype(np.float64) / file.scale + file.zero_point)
    differences = steps - np.rint(file.wanted)
    differences[np.abs(steps - file.wanted) <= 0.5 + _TIE] = 0
    largest = float(np.abs(differences).max())
    outcome = "exact" if largest == 0 else "close" if largest <= CLOSE_STEPS else "wrong"
    return bits.Result(outcome, largest, round(float(differences.mean()), 4))


def _worst(results: Sequence[bits.Result]) -> bits.Result:
    """The worst outcome with the largest differences."""
    worst = max(results, key=lambda r: (bits.OUTCOMES.index(r.outcome), r.max_steps or 0))
    if worst.max_steps is None:
        return worst
    biases = [result.mean_steps for result in results if result.mean_steps is not None]
    return dataclasses.replace(worst, mean_steps=max(biases, key=abs))


def timed(rows: Sequence[bits.Row]) -> list[bits.Row]:
    """The rows with their times, where they are sound and not of float activations."""
    chosen = [r for r in rows if r.sound and r.activation_bits in bits.ACTIVATIONS]
    contents = []
    for row in chosen:
        layer = timed_layer(row.op, row.container_bits, row.activation_bits)
        contents.append(write(layer, seeds.stream(0, "timed", *_key(row)), examples=1).content)
    latencies = timing.compare(contents, windows=_WINDOWS, window_ms=_WINDOW_MS)
    found = {_key(row): given.latency_ms for row, given in zip(chosen, latencies, strict=True)}
    done = []
    for row in rows:
        time = found.get(_key(row))
        int8 = found.get((row.op, 8 if row.op in WEIGHTED_OPS else 0, 8))
        ratio = float(f"{time / int8:.2g}") if time and int8 else None
        done.append(dataclasses.replace(row, time_over_int8=ratio))
    return done


def _key(row: bits.Row) -> tuple[str, int, int]:
    return row.op, row.container_bits, row.activation_bits


def widths(op: str) -> Iterable[tuple[int, int]]:
    """The containers and widths of activations in which an op is probed."""
    floats = (bits.FLOAT_ACTIVATIONS,) if op in WEIGHTED_OPS else ()
    for activation_bits in (*bits.ACTIVATIONS, *floats):
        for container_bits in bits.CONTAINERS if op in WEIGHTED_OPS else (0,):
            yield container_bits, activation_bits


def _machine() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    model = platform.processor()
    with contextlib.suppress(OSError):
        named = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = named[0].partition(":")[2].strip() if named else model
    return f"{platform.system()} {platform.machine()}, {model}"


def save(path: pathlib.Path, runtime: str, rows: Sequence[bits.Row]) -> None:
    """Writes a runtime's file, a row a line."""
    head = {
        "runtime": runtime,
        "machine": _machine(),
        "measured": datetime.date.today().isoformat(),
        "command": f"bazel run -c opt //tools:probe_runtime -- --output={path.name}",
    }
    lines = ",\n".join(f"  {json.dumps(row.to_json(), allow_nan=False)}" for row in rows)
    text = json.dumps({**head, "rows": []}, indent=1).replace("[]", f"[\n{lines}\n ]")
    workdir.write_bytes(path, f"{text}\n".encode())


def main(argv: Sequence[str]) -> None:
    """Prints the rows as they are found, then the menus; writes the file."""
    del argv
    if not _OUTPUT.value:
        raise errors.UsageError("give --output, as in --output=configs/runtimes/litert-2.4.json")
    output, runtime = workdir.user_path(_OUTPUT.value), _runtime()
    rows = []
    for op in _OPS.value:
        for container_bits, activation_bits in widths(op):
            floats = activation_bits == bits.FLOAT_ACTIVATIONS
            rows.append(probe(layers(op, container_bits, activation_bits), floats=floats))
            print(_described(rows[-1]), flush=True)
    rows = timed(rows)
    if set(_OPS.value) == set(OPS):
        save(output, runtime, rows)
    else:
        print(f"{output} is not written: a policy needs every op")
    policy = bits.BitPolicy(output.stem, tuple(rows))
    for op in _OPS.value:
        for activation_bits in bits.ACTIVATIONS:
            if op in WEIGHTED_OPS:
                fast = policy.weight_bits(op, activation_bits)
                compact = policy.weight_bits(op, activation_bits, compact=True)
                print(f"{op}, {activation_bits}-bit activations: {fast}, compact {compact}")


def _runtime() -> str:
    """The runtime and its version, as it says of itself."""
    content = write(timed_layer("dense", 8, 8), seeds.stream(0), examples=1).content
    return timing.compare([content], windows=1)[0].runtime


def _described(row: bits.Row) -> str:
    results = (("XNNPACK", row.xnnpack), ("built-in", row.builtin))
    said = [f"{name} {result.outcome}" for name, result in results if result is not None]
    weights = f"INT{row.container_bits} " if row.container_bits else ""
    return f"{weights}{row.op}, {row.activation_bits}-bit activations: {', '.join(said)}"


if __name__ == "__main__":
    program.run(main)
