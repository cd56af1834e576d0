r"""Checks a profiled device against files that were not part of its table.

    verify_latency --device=host --space=mnist_mobile --networks=200       expected against measured
    verify_latency --device=host --space=mnist_mobile --budgets=100        are budgets kept?

The first predicts random networks, 8-bit and float, that the device's table does not have, and
times those of a space and width in one run, in random order, some twice. The second answers unseen
budgets as `generate` does and times the answers with `time_files`, which has nothing of tfgen.
Where no bundle knows the space, the largest network stands for the best one. "best" is the first
candidate, by its interval alone; "checked" the first whose untrained file kept the budget.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

from tfgen import bundle as bundles
from tfgen import errors, pipeline, program, seeds, workdir
from tfgen.cost import counting
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import LATENCY, CostModel
from tfgen.deployment import devices, probe, profiling
from tfgen.evidence.local_surrogate import near
from tfgen.generators import baselines
from tfgen.selection import Predicted, Predictor, Proposer, Selector
from tfgen.space import bits, catalog
from tfgen.space.architecture import Architecture
from tfgen.space.lowering import ACTIVATION_BITS, lower, lower_batch
from tfgen.space.search_space import Choices, SearchSpace
from tfgen.tables import table

_DEVICE = flags.DEFINE_string("device", devices.HOST, "A device that was profiled: this machine.")
_SPACE = flags.DEFINE_multi_string("space", [], "Of which networks.")
_BUNDLE = flags.DEFINE_string("bundle", None, "Whose answers to budgets are checked.")
_NETWORKS = flags.DEFINE_integer("networks", 0, "Random networks to predict and time.")
_BUDGETS = flags.DEFINE_integer("budgets", 0, "Unseen latency budgets to answer and time.")
_ACTIVATION_BITS = flags.DEFINE_multi_enum(
    "activation_bits", ["8", "32"], ["8", "16", "32"], "Of random networks; 32 for float32."
)
_CONFIDENCE = flags.DEFINE_float("confidence", 0.95, "With which budgets are answered.")
_SEED = flags.DEFINE_integer("seed", 1, "Of networks and budgets.")
_OUTPUT = flags.DEFINE_string("output", None, "A JSON file for every network's numbers.")
_WITHIN = 0.1  # of the measured latency
_REPEATED = 20
_CANDIDATES = 10  # as `generate` has
_TIMEOUT_SECONDS = 600.0
_RANGE = (0.02, 0.98)  # quantiles of random networks' latencies, between which budgets lie


@dataclasses.dataclass(frozen=True)
class _Size:
    """Stands for an encoder: of two networks the one with more multiplications is the better."""

    space: SearchSpace

    def predict(self, choices: Choices, confidence: float) -> Predicted:
        del confidence
        macs = counting.macs(lower_batch(self.space, choices)).astype(np.float64)
        return _Quality(macs, macs, macs, macs)


@dataclasses.dataclass(frozen=True)
class _Quality:
    performance: np.ndarray
    metric: np.ndarray
    low: np.ndarray
    high: np.ndarray


def main(argv: Sequence[str]) -> None:
    """Prints a table; writes every number where it is asked to."""
    del argv
    if not _SPACE.value and not _BUNDLE.value:
        raise errors.UsageError("give --space or --bundle")
    devices.check_here(_DEVICE.value)
    kept: dict[str, object] = {}
    if _NETWORKS.value:
        rows = []
        for name in _SPACE.value:
            for activation_bits in map(int, _ACTIVATION_BITS.value):
                numbers = expected_and_measured(catalog.get(name), activation_bits)
                kept[f"{name}, {activation_bits} bits"] = numbers
                rows.append([name, str(activation_bits), *_described(**numbers)])
        headers = ["space", "bits", "networks", "within 10 %", "error p50", "p95", "worst"]
        print(table([*headers, "repeats p50", "p95"], rows))
    if _BUDGETS.value:
        rows = []
        for what, answerer in _answerers().items():
            numbers = budgets_and_measured(what, answerer)
            kept[f"{what}, budgets"] = numbers
            if not numbers["budget_ms"]:
                raise errors.TfgenError(f"{what} answered none of the budgets")
            for which in ("best", "checked"):
                ratio = np.array(numbers[f"{which}_ms"]) / np.array(numbers["budget_ms"])
                told = [f"{np.mean(ratio <= 1):.1%}", f"{np.median(ratio):.3f}"]
                counts = [str(_BUDGETS.value), str(len(ratio))]
                rows.append([what, which, *counts, *told, f"{ratio.max():.3f}"])
        headers = ["answers of", "candidate", "budgets", "answered", "kept", "measured/asked p50"]
        headers.append("worst")
        print(table(headers, rows))
    if _OUTPUT.value:
        workdir.write_json(workdir.user_path(_OUTPUT.value), kept)


def expected_and_measured(space: SearchSpace, activation_bits: int) -> dict[str, list[float]]:
    """Random networks that the table does not have: what is expected, and two timings of some."""
    model = devices.latency_model(_DEVICE.value, space, activation_bits=activation_bits)
    timed_before = {t.architecture for t in devices.table(_DEVICE.value).networks}
    drawn = space.sample(2 * _NETWORKS.value, seeds.stream(_SEED.value, "verify", space.name))
    fresh = [a for a in map(space.architecture, drawn) if a not in timed_before]
    architectures = fresh[: _NETWORKS.value]
    expected_ms = model.predict(space.choices(architectures), _CONFIDENCE.value).ms
    twice = [*architectures, *architectures[:_REPEATED]]
    reference_ms = devices.table(_DEVICE.value).reference_ms
    timed = profiling.time_networks(
        space,
        twice,
        activation_bits,
        "float",
        "random",
        reference_ms=reference_ms,
        patience_s=profiling.PATIENCE_S,
    )
    measured_ms = [timing.latency_ms for timing in timed]
    return {
        "expected_ms": expected_ms.tolist(),
        "measured_ms": measured_ms[: len(architectures)],
        "again_ms": measured_ms[len(architectures) :],
    }


def _described(
    expected_ms: list[float], measured_ms: list[float], again_ms: list[float]
) -> list[str]:
    measured = np.array(measured_ms)
    error = np.abs(np.array(expected_ms) / measured - 1)
    repeats = np.abs(np.array(again_ms) / measured[: len(again_ms)] - 1)
    shares = [np.mean(error <= _WITHIN), *np.quantile(error, (0.5, 0.95, 1))]
    return [str(len(error)), *(f"{s:.1%}" for s in (*shares, *np.quantile(repeats, (0.5, 0.95))))]


@dataclasses.dataclass(frozen=True)
class _Answerer:
    """Who answers budgets."""

    space: SearchSpace
    proposer: Proposer
    predictor: Predictor | Callable[[Budget], Predictor]
    costs: CostModel


def _answerers() -> dict[str, _Answerer]:
    found = {}
    for name in _SPACE.value:
        space = catalog.get(name)
        latency = devices.latency_model(_DEVICE.value, space)
        costs = CostModel(space, ACTIVATION_BITS, "float", latency)
        found[name] = _Answerer(space, baselines.RandomGenerator(space), _Size(space), costs)
    if _BUNDLE.value:
        bundle = bundles.load(bundles.find(_BUNDLE.value))
        costs = pipeline.cost_model(bundle, Budget({LATENCY: 1.0}, None, _DEVICE.value), 1, None)
        found[f"bundle {bundle.name}"] = _Answerer(
            bundle.space,
            bundle.generator("nagan"),
            functools.partial(near, bundle.surrogate, costs),
            costs,
        )
    return found


def budgets_and_measured(name: str, by: _Answerer) -> dict[str, list[float]]:
    """Answers to budgets all over the range of random networks, timed by the other program."""
    random = seeds.stream(_SEED.value, "budgets", name)
    logs = np.log(by.costs.costs(by.space.sample(1000, random))[LATENCY])
    limits_ms = np.exp(random.uniform(*np.quantile(logs, _RANGE), _BUDGETS.value))
    selector = Selector(count=_CANDIDATES, confidence=_CONFIDENCE.value)
    answers: list[list[Architecture]] = []
    asked_ms = []
    for number, limit_ms in enumerate(limits_ms.tolist()):
        budget = Budget({LATENCY: limit_ms}, None, _DEVICE.value)
        try:
            found = selector.select(
                by.space, by.proposer, by.predictor, by.costs, budget, name, number
            )
        except errors.InfeasibleBudgetError:
            continue
        answers.append([candidate.architecture for candidate in found])
        asked_ms.append(limit_ms)
    every = list(dict.fromkeys(a for answer in answers for a in answer))
    times = profiling.time_networks(by.space, every, ACTIVATION_BITS, "float", "selected")
    here_ms = {timing.architecture: timing.latency_ms for timing in times}
    # As `generate` does before it trains: the best candidate whose untrained file keeps the budget.
    checked = [
        next((a for a in answer if here_ms[a] <= limit_ms), answer[0])
        for answer, limit_ms in zip(answers, asked_ms, strict=True)
    ]
    best = [answer[0] for answer in answers]
    alone = list(dict.fromkeys([*best, *checked]))
    alone_ms = dict(zip(alone, _timed_alone(by.space, alone), strict=True))
    return {
        "budget_ms": asked_ms,
        "best_ms": [alone_ms[a] for a in best],
        "checked_ms": [alone_ms[a] for a in checked],
    }


def _timed_alone(space: SearchSpace, architectures: Sequence[Architecture]) -> list[float]:
    policy = bits.load(space.bit_policy)
    with workdir.scratch() as folder:
        names = []
        for number, architecture in enumerate(architectures):
            path = folder / f"{number:04}.tflite"
            layers = lower(space, architecture)
            path.write_bytes(probe.write_probe(layers, space.input_shape, policy))
            names.append(str(path))
        script = pathlib.Path(__file__).with_name("time_files.py")
        done = subprocess.run(
            [sys.executable, str(script)],
            input="\n".join(names),
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
    if done.returncode:
        raise errors.TfgenError(f"{script.name}: {done.stderr.strip().splitlines()[-1:]}")
    times = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    return [float(times[name]) for name in names]


if __name__ == "__main__":
    program.run(main)
