"""How fast a served generator answers, through gRPC on this machine.

    bench_serving --base=MODELS/tfgen

Starts the loopback server in a process of its own. Throughput: requests of the largest batch, one
after the other from as many clients as asked. Latency: single budgets at a steady rate, timed from
when each was due, so that a server that stalls is not spared the wait of those behind.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags

from tfgen import errors, program, seeds, workdir
from tfgen.cost.budget import Budget
from tfgen.deployment.serving import Client, Served
from tfgen.tables import table

_BASE = flags.DEFINE_string("base", None, "The model's folder; export_generator writes it.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Of each measurement.", lower_bound=0.1)
_RATE = flags.DEFINE_float("rate", 200.0, "Requests a second, for latency.", lower_bound=0.1)
_CLIENTS = flags.DEFINE_integer("clients", 2, "At a time, for throughput.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "A JSON file for the figures.")
_THREADS = 16  # that send requests at a rate
_TIMEOUT_S = 30.0
_START_TIMEOUT_S = 120.0


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
      model: name and method.
      draws: of a budget.
      budgets_per_s: in requests of `batch` budgets.
      batch: budgets in such a request.
      rate: requests a second of the second measurement.
      p50_ms: median from when a request was due to its answer.
      p99_ms: of a hundred, the slowest but one.
      late: share of requests that were sent more than a millisecond late.
    """

    model: str
    draws: int
    budgets_per_s: float
    batch: int
    rate: float
    p50_ms: float
    p99_ms: float
    late: float


def budgets_of(served: Served, base: pathlib.Path, count: int) -> list[Budget]:
    """Limits on the first cost between those of the answers to wide budgets."""
    metric, quality = served.costs[0], served.metrics[-1]
    with running(base) as port:
        client = Client(f"127.0.0.1:{port}", served, timeout_s=_TIMEOUT_S)
        (found,) = client.answer([Budget({}, (quality, 0.0))], seed=1)
    middle = max(candidate.cost[metric] for candidate in found)
    limits = middle * np.exp(seeds.stream(1, "bench").uniform(-1.0, 2.0, count))
    return [Budget({metric: float(limit)}) for limit in limits]


class running:
    """A server in a process of its own; its gRPC port, while the block lasts."""

    def __init__(self, base: pathlib.Path):
        self._base = base

    def __enter__(self) -> int:
        command = [sys.executable, "-m", "tools.loopback_server", f"--base={self._base}"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [*command, "--port=0"], stdout=subprocess.PIPE, text=True, env=environment
        )
        timer = threading.Timer(_START_TIMEOUT_S, self._process.kill)
        timer.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            raise errors.TfgenError(f"the server did not start; exit {self._process.wait()}")
        return int(json.loads(line)["port"])

    def __exit__(self, *unused: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=30)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Runs work in as many threads; raises the first error of one."""
    raised: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def throughput(address: str, served: Served, budgets: Sequence[Budget]) -> float:
    """Budgets a second in requests of the largest batch."""
    batch = served.batch_sizes[-1]
    answered = [0] * _CLIENTS.value
    end = time.monotonic() + _SECONDS.value

    def work(number: int) -> None:
        client = Client(address, served, timeout_s=_TIMEOUT_S)
        turn = number
        while time.monotonic() < end:
            own = [budgets[(turn * batch + n) % len(budgets)] for n in range(batch)]
            client.answer(own, seed=turn)
            answered[number] += batch
            turn += _CLIENTS.value

    begin = time.monotonic()
    in_threads(_CLIENTS.value, work)
    return sum(answered) / (time.monotonic() - begin)


def latencies(
    address: str, served: Served, budgets: Sequence[Budget]
) -> tuple[np.ndarray, np.ndarray]:
    """From when each request was due to its answer, and how late it was sent, ms [requests]."""
    count = int(_SECONDS.value * _RATE.value)
    told, late = np.zeros(count), np.zeros(count)
    connected = threading.Barrier(_THREADS)
    begin = 0.0

    def work(number: int) -> None:
        nonlocal begin
        client = Client(address, served, timeout_s=_TIMEOUT_S)
        client.answer(budgets[:1], seed=0)
        if connected.wait() == 0:
            begin = time.monotonic() + 0.2
        connected.wait()
        for turn in range(number, count, _THREADS):
            due = begin + turn / _RATE.value
            time.sleep(max(due - time.monotonic(), 0.0))
            late[turn] = 1e3 * (time.monotonic() - due)
            client.answer([budgets[turn % len(budgets)]], seed=turn)
            told[turn] = 1e3 * (time.monotonic() - due)

    in_threads(_THREADS, work)
    return told, late


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns the exit code."""
    del argv
    if _BASE.value is None:
        raise errors.UsageError("give --base, the folder that export_generator wrote")
    base = workdir.user_path(_BASE.value)
    served = Served.read(base)
    budgets = budgets_of(served, base, 512)
    gc.collect()
    gc.freeze()  # as the server does: what the client waits for itself is not the server's time
    sys.setswitchinterval(2e-4)
    with running(base) as port:
        address = f"127.0.0.1:{port}"
        told, late = latencies(address, served, budgets)
        per_s = throughput(address, served, budgets)
    p50, p99 = np.quantile(told, [0.5, 0.99])
    figures = Figures(
        f"{served.name} ({served.method})", served.draws, per_s, served.batch_sizes[-1],
        _RATE.value, float(p50), float(p99), float((late > 1.0).mean()),
    )  # fmt: skip
    rows = [(name, f"{v:.4g}" if isinstance(v, float) else str(v))
            for name, v in dataclasses.asdict(figures).items()]  # fmt: skip
    print(table(("figure", "value"), rows))
    if _OUTPUT.value is not None:
        workdir.write_json(workdir.user_path(_OUTPUT.value), dataclasses.asdict(figures))
    return 0


if __name__ == "__main__":
    program.run(main)
