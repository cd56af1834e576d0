"""Times a few hundred files that tell what every network of a space takes on this machine."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfgen import seeds
from tfgen.cost import counting, latency_features
from tfgen.cost.latency_table import Device, LatencyTable, NetworkTiming, OpTiming
from tfgen.cost.profiled_latency import ProfiledLatency
from tfgen.deployment import probe, timing
from tfgen.space import bits
from tfgen.space.architecture import Architecture
from tfgen.space.bits import BitPolicy
from tfgen.space.layers import INPUT, LayerSpec, layers_of, slots_of
from tfgen.space.lowering import ACTIVATION_BITS, lower_batch
from tfgen.space.search_space import SearchSpace

OPS, NETWORKS = 250, 150  # files of each kind
_REPEATED = 20  # files that are timed twice
_BUDGETS = (0.02, 0.98)  # quantiles of the random networks' latencies, between which budgets lie
_DRAWS = 2048  # networks that a budget's answer is chosen from
_POOLS = 32  # as many networks are drawn, for all budgets together
PATIENCE_S = 20.0  # for other work to end, for each lot of files
_BUSY = 0.05  # repeatability that makes a table doubtful
_SAMPLED = 400  # networks whose layers are looked at
_FEWEST = 3  # layers of a kernel, where it has so many


def time_space(
    device: Device,
    space: SearchSpace,
    *,
    activation_bits: int = ACTIVATION_BITS,
    ops: int = OPS,
    networks: int = NETWORKS,
    windows: int = timing.WINDOWS,
    patience_s: float = PATIENCE_S,
    known_ms: float | None = None,
    seed: int = 0,
    say: Callable[[str], None],
) -> LatencyTable:
    """Times ops of a space, random networks, and networks that are chosen for their latency.

    Args:
      device: this machine.
      space: whose ops and networks are timed.
      activation_bits: of the networks; 32 for networks of float32.
      ops: how many, about.
      networks: how many random ones, and as many chosen ones.
      windows: of each file.
      patience_s: how long to wait for other work to end, for each lot of files.
      known_ms: what the reference took here at an earlier time; None where nobody knows.
      seed: of what is timed.
      say: told how far it is.

    Raises:
      UsageError: the runtime does not execute the space at these bits.
    """
    policy = bits.load(space.bit_policy)
    parts = choose(space, policy, activation_bits, ops, seeds.stream(seed, "ops"))
    say(f"timing {len(parts)} ops of {space.name}")
    files = [_write(part.layers, part.input_shape, policy, io="int8") for part in parts]
    reference_ms = timing.measure_reference()
    if known_ms is not None:
        reference_ms = min(reference_ms, known_ms)
    found, repeatability = _time(files, windows, reference_ms, patience_s, seed)
    if repeatability > _BUSY:
        say(f"ops repeat within {repeatability:.1%} only: this machine is busy, profile it again")
    table = LatencyTable(
        device=device,
        date=datetime.date.today().isoformat(),
        reference_ms=reference_ms,
        repeatability=repeatability,
        ops=tuple(
            OpTiming(
                layers=part.layers,
                latency_ms=time.latency_ms,
                spread=time.spread,
                quiet_windows=time.quiet_windows,
            )
            for part, time in zip(parts, found, strict=True)
        ),
        networks=(),
    )

    def timed(architectures: Sequence[Architecture], origin: str) -> list[NetworkTiming]:
        return time_networks(
            space,
            architectures,
            activation_bits,
            "float",
            origin,
            windows=windows,
            reference_ms=reference_ms,
            patience_s=patience_s,
        )

    say(f"timing {networks} random networks; ops repeat within {repeatability:.1%}")
    drawn = space.sample(networks, seeds.stream(seed, "networks"))
    random = timed([space.architecture(row) for row in drawn], "random")
    table = table.adding(networks=random)
    chosen = answers(table, space, activation_bits, networks, seed)
    say(f"timing {len(chosen)} networks that were chosen for their latency")
    # A promise is to hold when somebody measures again: of two runs the slower one counts.
    runs = zip(timed(chosen, "selected"), timed(chosen, "selected"), strict=True)
    table = table.adding(networks=[_slower(first, second) for first, second in runs])
    model = ProfiledLatency(table, space, activation_bits)
    doubtful = sum(not t.quiet_windows for t in (*table.ops, *table.networks))
    if doubtful:
        say(f"{doubtful} files met no quiet moment of this machine: their times are doubtful")
    say(
        f"a call of the interpreter takes {model.call_ms * 1e3:.2f} us beside its ops; networks "
        f"are expected to within {model.relative_error:.1%} (one standard deviation)"
    )
    return table


def _slower(first: NetworkTiming, second: NetworkTiming) -> NetworkTiming:
    """The slower of two timings of a network; the less disturbed one where one was not quiet."""
    if (first.quiet_windows > 0) != (second.quiet_windows > 0):
        return first if first.quiet_windows > 0 else second
    return max(first, second, key=lambda timing: timing.latency_ms)


def answers(
    table: LatencyTable, space: SearchSpace, activation_bits: int, count: int, seed: int
) -> list[Architecture]:
    """Networks that a user would get for latency budgets all over the space's range.

    Of many draws that are expected within a budget the largest is taken, by multiplications: what a
    user wants is the best network, and networks at the limit are those that may miss it.
    """
    model = ProfiledLatency(table, space, activation_bits)
    random = seeds.stream(seed, "budgets")
    found = []
    pool = space.sample(_DRAWS * _POOLS, random)
    ms, macs = model.expected_ms(pool), counting.macs(lower_batch(space, pool))
    low, high = np.quantile(np.log(ms), _BUDGETS)
    for budget_ms in np.exp(random.uniform(low, high, count)):
        drawn = random.choice(len(pool), _DRAWS, replace=False)
        within = drawn[ms[drawn] <= budget_ms]
        if len(within):
            found.append(space.architecture(pool[within[macs[within].argmax()]]))
    return list(dict.fromkeys(found))


def time_networks(
    space: SearchSpace,
    architectures: Sequence[Architecture],
    activation_bits: int,
    io: str,
    origin: str,
    *,
    windows: int = timing.WINDOWS,
    reference_ms: float | None = None,
    patience_s: float = timing.PATIENCE_S,
) -> list[NetworkTiming]:
    """What whole networks take, which nobody trained: no kernel's time depends on the numbers.

    Args:
      space: of the networks.
      architectures: the networks.
      activation_bits: 32 for networks of float32.
      io: "float", or "int8" for integer input and output.
      origin: why these, see NetworkTiming.
      windows: of each file.
      reference_ms: see `timing.compare`.
      patience_s: see `timing.compare`.
    """
    policy = bits.load(space.bit_policy)
    slots = lower_batch(space, space.choices(architectures), activation_bits)
    files = [
        _write(layers_of(slots, row), space.input_shape, policy, io=io)
        for row in range(len(architectures))
    ]
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(files))
    found = timing.compare(
        [files[row] for row in order],
        windows=windows,
        reference_ms=reference_ms,
        patience_s=patience_s,
    )
    times = dict(zip(order.tolist(), found, strict=True))
    return [
        NetworkTiming(
            architecture=architecture,
            activation_bits=activation_bits,
            io=io,
            origin=origin,
            latency_ms=times[row].latency_ms,
            spread=times[row].spread,
            quiet_windows=times[row].quiet_windows,
        )
        for row, architecture in enumerate(architectures)
    ]


def _write(
    layers: Sequence[LayerSpec], input_shape: Sequence[int], policy: BitPolicy, *, io: str
) -> bytes:
    floats = layers[0].activation_bits == bits.FLOAT_ACTIVATIONS
    return probe.write_probe(layers, input_shape, None if floats else policy, io=io)


def _time(
    files: Sequence[bytes], windows: int, reference_ms: float, patience_s: float, seed: int
) -> tuple[list[timing.Latency], float]:
    """Times files in random order, some twice.

    Returns:
      What each took, and the median difference of two timings of one file, as a share.
    """
    random = seeds.stream(seed, "order")
    twice = random.choice(len(files), min(_REPEATED, len(files)), replace=False)
    order = random.permutation(np.concatenate([np.arange(len(files)), twice]))
    found = timing.compare(
        [files[row] for row in order],
        windows=windows,
        reference_ms=reference_ms,
        patience_s=patience_s,
    )
    times: list[list[timing.Latency]] = [[] for _ in files]
    for row, time in zip(order, found, strict=True):
        times[row].append(time)
    pairs = np.array([[time.latency_ms for time in times[row]] for row in twice])  # [files, 2]
    repeatability = float(np.median(np.abs(np.log(pairs[:, 0] / pairs[:, 1]))))
    return [time[0] for time in times], repeatability


@dataclasses.dataclass(frozen=True)
class Fragment:
    """A part of a network that reads one tensor: an op, with what makes its other inputs.

    Attributes:
      layers: the part, as a network of its own.
      input_shape: of the tensor that it reads.
    """

    layers: tuple[LayerSpec, ...]
    input_shape: tuple[int, ...]


def fragment(layers: Sequence[LayerSpec], position: int) -> Fragment:
    """The smallest part of a network that ends in one of its layers and reads one tensor."""
    places = {layer.name: place for place, layer in enumerate(layers)}
    taken = {position}
    for _ in layers:
        read = {name for place in taken for name in layers[place].inputs}
        outside = read - {layers[place].name for place in taken}
        if len(outside) == 1:
            break
        # The network's input is made before everything else.
        taken.add(max(places[name] for name in outside if name != INPUT))
    (source,) = outside
    part = [layers[place] for place in sorted(taken)]
    reader = next(layer for layer in part if layer.inputs[0] == source)
    renamed = [
        dataclasses.replace(
            layer, inputs=tuple(INPUT if name == source else name for name in layer.inputs)
        )
        for layer in part
    ]
    return Fragment(tuple(renamed), (*reader.in_size, reader.in_channels))


def choose(
    space: SearchSpace,
    policy: BitPolicy,
    activation_bits: int,
    count: int,
    random: np.random.Generator,
) -> list[Fragment]:
    """Parts of a space's networks, spread over what each of its kernels is asked to do.

    Args:
      space: whose layers are meant.
      policy: of the runtime.
      activation_bits: of the networks; 32 for networks of float32.
      count: of parts, about.
      random: what networks are looked at.
    """
    slots = lower_batch(space, space.sample(_SAMPLED, random), activation_bits)
    found: dict[str, dict[tuple[float, ...], Fragment]] = {}
    for row in range(_SAMPLED):
        layers = layers_of(slots, row)
        for position, layer in enumerate(layers):
            kernel, numbers = _work(layer, policy)
            if numbers not in found.setdefault(kernel, {}):
                found[kernel][numbers] = fragment(layers, position)
    return [
        part for kernel, share in _shares(found, count) for part in _spread(found[kernel], share)
    ]


def _work(layer: LayerSpec, policy: BitPolicy) -> tuple[str, tuple[float, ...]]:
    """The kernel that runs a layer and what it does."""
    alone = dataclasses.replace(layer, inputs=(INPUT,) * len(layer.inputs))
    described = latency_features.features(slots_of([alone]), policy, "int8")
    own = [
        (name, value)
        for name, value in zip(described.names, described.values[0].tolist(), strict=True)
        if "." in name and not name.startswith(latency_features.ENDS)
    ]
    return own[0][0].split(".")[0], tuple(value for _, value in own)


def _shares(
    found: Mapping[str, Mapping[tuple[float, ...], Fragment]], count: int
) -> list[tuple[str, int]]:
    """How many layers of each kernel: more of those that are of many kinds."""
    weights = {kernel: np.sqrt(len(layers)) for kernel, layers in found.items()}
    unit = count / sum(weights.values())
    return [
        (kernel, min(len(found[kernel]), max(_FEWEST, round(unit * weight))))
        for kernel, weight in weights.items()
    ]


def _spread(layers: Mapping[tuple[float, ...], Fragment], count: int) -> list[Fragment]:
    """Layers that lie far from each other: the most work, then always the farthest from all."""
    points = np.log1p(np.array(list(layers)))  # [layers, features]
    chosen = [int(points.sum(axis=1).argmax())]
    distance = np.full(len(points), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, np.abs(points - points[chosen[-1]]).sum(axis=1))
        chosen.append(int(distance.argmax()))
    parts = list(layers.values())
    return [parts[row] for row in chosen]
