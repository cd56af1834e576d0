"""Trains thousands of small quantized networks, one process per core.

A worker is a fresh interpreter that speaks lines of JSON; it imports NumPy but not TensorFlow, and
its BLAS runs one thread. `population_network` is the arithmetic.

A worker has one member at a time and says when it is done, so a worker that dies names its member,
which is trained again by a new worker. What ends several workers, takes too long or too much memory
or becomes NaN has failed; the others go on.

A step of batch 128 takes 0.21 ms of one core for 12,000 weights, 60 % of it in matrix products, and
0.05 ms for 200 weights, which is Python's share. tools/bench_population.py compares with Keras: on
two idle cores 6.5 networks of 13,000 weights and 1,000 steps a second, 24 times a plain tf_keras
`fit` and 16 times the best of its settings; half that ratio where other work shares the cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from tfgen import child_process, errors
from tfgen.space.layers import LayerSpec
from tfgen.training import fitting, population_network, tasks
from tfgen.training.datasets import Dataset
from tfgen.training.population_network import laid_out
from tfgen.training.recipe import FIT_EXAMPLES, Recipe

SPLITS = ("train", "validation", "test")

DIVERGED = "outputs are not finite: the training diverged"
_DEATHS = 3  # of workers with one member before it has failed: others kill processes too
_LONGEST = 1e6  # seconds, beyond which the system's clocks overflow
_REASON = 300  # characters of an exception that are kept
_ARRAYS = ("x", "y", "fit_x", "score_x", "score_y")
_STOP_SECONDS = 5.0  # what an idle worker gets to leave by itself


@dataclasses.dataclass(frozen=True)
class Member:
    """One training to do: equal members give bit-equal outcomes.

    Attributes:
      layers: one after the other; dense layers, ReLU between them, the last one linear; before
        them, for images, convolutions with ReLU, max pools and a mean over the image.
      seed: of the initial weights and of the batches.
    """

    layers: tuple[LayerSpec, ...]
    seed: int


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one training may take; one that takes more has failed.

    Attributes:
      seconds: wall time, at most a million.
      memory_bytes: address space of its process, beside the data.
      failures: in a row, after which the run is stopped: then it is not the networks. 0 never stops
        it.
    """

    seconds: float = 3600.0
    memory_bytes: int = child_process.MEMORY_BYTES
    failures: int = 10

    def __post_init__(self) -> None:
        if not (0 < self.seconds <= _LONGEST and self.memory_bytes > 0 and self.failures >= 0):
            raise ValueError(f"a training needs up to {_LONGEST:g} s, and memory: {self}")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a member.

    Attributes:
      index: the member's position in what `train` was given.
      metric: the task's score on the split asked for; 0 for a training that failed.
      seed: of the start that was kept.
      seconds: wall-clock time of the training and the scoring in the worker.
      losses: the batch's loss before each step, where asked for.
      failure: why the training failed; None where it did not.
    """

    index: int
    metric: float
    seed: int
    seconds: float
    losses: tuple[float, ...] | None = None
    failure: str | None = None


def train(
    members: Sequence[Member],
    dataset: Dataset,
    recipe: Recipe,
    *,
    processes: int,
    split: str = "validation",
    keep_losses: bool = False,
    limits: Limits | None = None,
) -> Iterator[Outcome]:
    """Trains the members and yields each outcome when it is there, in no particular order.

    Closing the iterator ends the workers. An outcome depends on its member, the data set and the
    recipe, not on the number of processes, the order or the other members.

    Args:
      members: the networks.
      dataset: trains on its train split.
      recipe: what the trainings have in common.
      processes: workers; the number of cores is the best choice.
      split: which of SPLITS is scored.
      keep_losses: also report the losses of all steps.
      limits: of each training.

    Raises:
      UsageError: a member is no such network, or does not fit the data set; raised before any
        training.
      TfgenError: too many trainings failed in a row; outcomes already yielded are good.
    """
    workers = Workers(
        dataset,
        recipe,
        processes=processes,
        split=split,
        keep_losses=keep_losses,
        limits=limits,
    )
    outcomes = workers.train(members)  # refuses bad members now, not at the first outcome

    def closing() -> Iterator[Outcome]:
        with workers:
            yield from outcomes

    return closing()


def trains(layers: Sequence[LayerSpec], dataset: Dataset) -> bool:
    """Whether this trainer knows every layer of a network that fits the data set."""
    try:
        check(Member(tuple(layers), 0), dataset)
    except errors.UsageError:
        return False
    return True


def check(member: Member, dataset: Dataset, who: str = "the member") -> None:
    """Raises UsageError unless the member is a network of `Member` for the data set."""
    layers = member.layers
    for position, layer in enumerate(layers, 1):
        where = f"{who}, layer {layer.name!r}"
        if not population_network.trains(layer, last=position == len(layers)):
            norm = ", batch normalisation" if layer.batch_norm else ""
            place = " on an image" if layer.in_size else ""
            raise errors.UsageError(
                f"{where}: the population trainer takes dense layers, convolutions with relu and "
                "without batch normalisation, max pools whose kernel is their stride, and a mean "
                "over the image; dense ones have relu between them and read vectors, and the last "
                f"one is linear; got {layer.op!r} with {layer.activation!r}{norm}{place}"
            )
        if layer.weighted and not 2 <= layer.weight_bits <= 16:
            raise errors.UsageError(
                f"{where}: weight bits must be in 2..16, got {layer.weight_bits}"
            )
    fitting.check(layers, dataset, who)


# --- one member ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Arrays:
    """What a worker reads of a data set; examples of `fit_x` and `score_x` are laid out."""

    task: tasks.Task
    x: np.ndarray  # [examples, ..]
    y: np.ndarray  # [examples, outputs] or [examples]
    fit_x: np.ndarray  # [.., examples], the first of x
    score_x: np.ndarray  # [.., examples]
    score_y: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset, split: str) -> _Arrays:
        scored = getattr(dataset, split)
        x = dataset.train.x.astype(np.float32, copy=False)
        fit_x, score_x = (laid_out(part, x.ndim - 1) for part in (x[:FIT_EXAMPLES], scored.x))
        return cls(dataset.task, x, dataset.train.y, fit_x, score_x, scored.y)

    def save(self, folder: pathlib.Path) -> None:
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: pathlib.Path, task: str) -> _Arrays:
        """Maps the files, so that all workers share one copy in the page cache."""
        return cls(tasks.get(task), *(np.load(folder / f"{n}.npy", mmap_mode="r") for n in _ARRAYS))


def _train_one(
    index: int, member: Member, arrays: _Arrays, recipe: Recipe, keep_losses: bool
) -> Outcome:
    """Trains one member from each of the recipe's starts and scores the one that fits best."""
    begin = time.perf_counter()
    starts = recipe.start_seeds(member.seed)
    trained = population_network.train(
        member.layers, starts, arrays.task, arrays.x, arrays.y, recipe, keep_losses
    )
    best = 0
    if len(starts) > 1:
        fit_y = arrays.y[:FIT_EXAMPLES]
        fits = [trained.score(s, arrays.task, arrays.fit_x, fit_y) for s in range(len(starts))]
        best = int(np.argmax(fits))
    outputs = trained.outputs(best, arrays.score_x)
    metric = arrays.task.score(arrays.score_y, outputs)
    losses = tuple(trained.losses[:, best].tolist()) if keep_losses else None
    failure = None if np.isfinite(outputs).all() else DIVERGED
    return Outcome(index, metric, starts[best], time.perf_counter() - begin, losses, failure)


# --- many processes -----------------------------------------------------------------------------
#
# `multiprocessing` would import the caller's main module in each worker, TensorFlow with it, and
# leave it to the caller to limit BLAS.


class Trainer(Protocol):
    """Who trains members on one data set with one recipe; see `Workers`, and `cluster.Cluster`."""

    dataset: Dataset
    recipe: Recipe

    def train(self, members: Sequence[Member]) -> Iterator[Outcome]: ...

    def __enter__(self) -> Trainer: ...

    def __exit__(self, *unused: object) -> None: ...


class Workers:
    """Processes that train members on one data set with one recipe; they start when first needed.

    A context manager: leaving it ends the processes.

    Attributes:
      dataset: trains on its train split.
      recipe: what the trainings have in common.
    """

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        *,
        processes: int,
        split: str = "validation",
        keep_losses: bool = False,
        limits: Limits | None = None,
    ):
        """See `train`; raises UsageError."""
        if processes < 1:
            raise errors.UsageError(f"processes must be at least 1, got {processes}")
        if split not in SPLITS:
            raise errors.UsageError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        if not recipe.plain:
            raise errors.UsageError(
                "the population trainer has no images moved, mirrored, scaled or lit, no decay, no "
                f"teacher and no float stage: {recipe}"
            )
        self.dataset = dataset
        self.recipe = recipe
        self._processes = processes
        self._split = split
        self._keep_losses = keep_losses
        self._limits = limits or Limits()
        self._in_a_row = InARow(self._limits.failures)
        self._folder: pathlib.Path | None = None
        self._stack = contextlib.ExitStack()
        self._workers: list[_Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes, whatever they are doing; `train` starts others."""
        self._workers = []
        self._folder = None
        self._stack.close()

    @property
    def pids(self) -> list[int]:
        """Of the processes that are there."""
        return [worker.process.pid for worker in self._workers]

    def train(self, members: Sequence[Member]) -> Iterator[Outcome]:
        """Trains the members and yields each outcome when it is there, in no particular order.

        Raises:
          UsageError: a member does not fit the data set; raised before any training.
          TfgenError: too many trainings failed in a row; outcomes already yielded are good.
        """
        for index, member in enumerate(members):
            check(member, self.dataset, f"member {index}")
        return self._run(list(members))

    def _run(self, members: list[Member]) -> Iterator[Outcome]:
        """Gives each worker one member at a time until all are done."""
        waiting = iter(enumerate(members))
        done = False
        try:
            with selectors.DefaultSelector() as ready:

                def give(worker: _Worker, index: int, member: Member) -> None:
                    worker.send(index, member)
                    ready.register(worker.process.stdout, selectors.EVENT_READ, worker)

                for worker in self._started(min(self._processes, len(members))):
                    give(worker, *next(waiting))
                while ready.get_map():
                    worker, late = _first(ready)
                    ready.unregister(worker.process.stdout)
                    outcome = worker.stop_late() if late else worker.receive()
                    if outcome is None:
                        give(worker, worker.index, worker.member)
                        continue
                    yield outcome
                    self._in_a_row.count(outcome)
                    following = next(waiting, None)
                    if following:
                        give(worker, *following)
            done = True
        finally:
            if not done:  # workers are at work for nobody
                self.close()

    def _started(self, count: int) -> list[_Worker]:
        """That many idle workers."""
        if count and self._folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="tfgen-")
            self._folder = pathlib.Path(self._stack.enter_context(temporary))
            _Arrays.of(self.dataset, self._split).save(self._folder)
            job = {
                "task": self.dataset.task.name,
                "recipe": self.recipe.to_json(),
                "keep_losses": self._keep_losses,
                "memory_bytes": self._limits.memory_bytes,
                "parent": os.getpid(),
            }
            (self._folder / "job.json").write_text(json.dumps(job))
        while len(self._workers) < count:
            worker = _Worker(self._folder, self._limits.seconds)
            self._stack.callback(worker.close)
            self._workers.append(worker)
        return self._workers[:count]


def _first(ready: selectors.BaseSelector) -> tuple[_Worker, bool]:
    """The next worker that has said something or has ended, or else the one that is late."""
    workers: list[_Worker] = [key.data for key in ready.get_map().values()]
    hurried = min(workers, key=lambda worker: worker.deadline)
    found = ready.select(max(0.0, hurried.deadline - time.monotonic()))
    return (found[0][0].data, False) if found else (hurried, True)


class InARow:
    """Counts failures one after the other: a defect of the machine or the recipe is not recorded
    for thousands of networks."""

    def __init__(self, most: int):
        self._most = most
        self._failures = 0

    def count(self, outcome: Outcome) -> None:
        """Raises TfgenError at the last failure that is allowed."""
        self._failures = 0 if outcome.failure is None else self._failures + 1
        if self._most and self._failures >= self._most:
            self._failures = 0
            raise errors.TfgenError(
                f"{self._most} trainings in a row failed, the last one with: "
                f"{outcome.failure}. Outcomes so far are good; look at the recipe, the limits and "
                "this machine before the others are trained"
            )


class _Worker:
    """A process that trains one member at a time; another one when it has died.

    Attributes:
      index: of the member at hand.
      member: at hand.
      deadline: by `time.monotonic`, when the member has taken too long.
      process: that trains it.
    """

    def __init__(self, folder: pathlib.Path, seconds: float):
        self._folder = folder
        self._seconds = seconds
        self._begin = 0.0
        self._deaths = 0  # of processes that had this member
        self.index = -1
        self.member: Member | None = None
        self.deadline = 0.0
        self._start()

    def _start(self) -> None:
        environment = dict(os.environ)
        # The caller's own path: under Bazel, environment and working directory do not say it all.
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        # NumPy's BLAS reads these when it is loaded.
        for library in ("OPENBLAS", "MKL", "OMP", "BLIS", "VECLIB_MAXIMUM"):
            environment[f"{library}_NUM_THREADS"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tfgen.training.population", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def send(self, index: int, member: Member) -> None:
        if member is not self.member or index != self.index:
            self._deaths = 0
        self.index, self.member = index, member
        self._begin = time.monotonic()
        self.deadline = self._begin + self._seconds
        layers = [layer.to_json() for layer in member.layers]
        line = json.dumps({"index": index, "seed": member.seed, "layers": layers})
        with contextlib.suppress(BrokenPipeError):  # `receive` says what happened
            print(line, file=self.process.stdin, flush=True)

    def receive(self) -> Outcome | None:
        """What became of the member; None where a process died and the next one should try."""
        line = self.process.stdout.readline()
        if line.endswith("\n"):
            data = json.loads(line)
            losses = data.pop("losses")
            return Outcome(**data, losses=None if losses is None else tuple(losses))
        code = self.process.wait()  # the end of the stream: the process is gone
        self._restart()
        self._deaths += 1
        if self._deaths < _DEATHS:
            return None
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return self._failed(f"ended {_DEATHS} processes, the last with {how}{_WHY.get(code, '')}")

    def stop_late(self) -> Outcome:
        self._restart()
        return self._failed(f"took more than {self._seconds:g} s")

    def _failed(self, reason: str) -> Outcome:
        assert self.member is not None
        seconds = time.monotonic() - self._begin
        return Outcome(self.index, 0.0, self.member.seed, seconds, failure=reason)

    def _restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        """Ends the process, whatever it is doing: it owns nothing that could be left half done."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self.process.wait(_STOP_SECONDS)


_WHY = {-signal.SIGKILL: "; SIGKILL often means that memory ran out: use fewer processes"}


def _work(folder: pathlib.Path) -> None:
    """The worker: a member's JSON on each line of stdin, its outcome's on stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a parent that was killed reads no outcome
    job = json.loads((folder / "job.json").read_text())
    child_process.die_with(job["parent"])
    recipe = Recipe.from_json(job["recipe"])
    arrays = _Arrays.load(folder, job["task"])
    data_bytes = sum(file.stat().st_size for file in folder.iterdir())
    child_process.limit_memory(job["memory_bytes"] + data_bytes)
    for line in sys.stdin:
        data = json.loads(line)
        member = Member(tuple(LayerSpec.from_json(x) for x in data["layers"]), data["seed"])
        begin = time.perf_counter()
        try:
            outcome = _train_one(data["index"], member, arrays, recipe, job["keep_losses"])
        except Exception as error:  # whatever it is, it is this member's
            reason = f"{type(error).__name__}: {error}"[:_REASON]
            seconds = time.perf_counter() - begin
            outcome = Outcome(data["index"], 0.0, member.seed, seconds, failure=reason)
        print(json.dumps(dataclasses.asdict(outcome)), flush=True)


if __name__ == "__main__":
    _work(pathlib.Path(sys.argv[1]))
