"""Trains thousands of small quantized networks, one process per core, in NumPy.

Each network keeps its exact widths: on a CPU, padding networks to stack them in one graph costs
more multiplications than the stacking saves. What makes it fast:

- All parameters of a network lie in one vector, so that Adam and the rounding are a few passes over
  it, not over each layer; the vector and all buffers are aligned to cache lines and made once.
- A bias is the last row of its kernel, and activations [units + 1, batch] end in a row of ones: one
  matrix product then gives both gradients, and every elementwise pass is over contiguous memory.
- BLAS runs one thread, and the processes import NumPy but not TensorFlow.

A step of batch 128 takes 0.21 ms of one core for 12,000 weights, 60 % of it in matrix products, and
0.05 ms for 200 weights, which is Python's share. tools/bench_population.py compares with Keras: on
two idle cores 6.5 networks of 13,000 weights and 1,000 steps a second, 24 times a plain tf_keras
`fit` and 16 times the best of its settings; half that ratio where other work shares the cores.

The arithmetic is that of `quantize_aware`, less the rounding
of activations, and a test compares the two.
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
from typing import Any

import numpy as np

from tfgen import errors
from tfgen.space.layers import LayerSpec
from tfgen.training import fitting, tasks
from tfgen.training.datasets import Dataset
from tfgen.training.recipe import FIT_EXAMPLES, Recipe, initial_weights

SPLITS = ("train", "validation", "test")

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7  # Keras's Adam
_MIN_WEIGHT = np.float32(1e-8)  # a channel of zeros still has a scale
_ZERO = np.float32(0)
_ALIGN = 16  # floats in a cache line; unaligned vectors are 2 to 3 times slower with AVX-512
_GATHER = 1 << 20  # floats of batches gathered at a time
_FLUSH_STEPS = 64  # 0.9**64 = 1e-3: nothing above 1e-30 falls to denormals, near 1e-38, between two
_FLUSH = np.float32(1e-30)
_SCORE_ROWS = 1024  # examples scored at a time
_STOP_SECONDS = 5.0  # what an idle worker gets to leave by itself


@dataclasses.dataclass(frozen=True)
class Member:
    """One training to do: equal members give bit-equal outcomes.

    Attributes:
      layers: dense layers, ReLU between them, the last one linear.
      seed: of the initial weights and of the batches.
    """

    layers: tuple[LayerSpec, ...]
    seed: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a member.

    Attributes:
      index: the member's position in what `train` was given.
      metric: the task's score on the split asked for; 0 for a training that diverged.
      seconds: wall-clock time of the training and the scoring in the worker.
      losses: the batch's loss before each step, where asked for.
    """

    index: int
    metric: float
    seconds: float
    losses: tuple[float, ...] | None = None


def train(
    members: Sequence[Member],
    dataset: Dataset,
    recipe: Recipe,
    *,
    processes: int,
    split: str = "validation",
    keep_losses: bool = False,
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

    Raises:
      UsageError: a member is not an MLP that fits the data set; raised before any training.
      TfgenError: a worker died; outcomes already yielded are good.
    """
    if processes < 1:
        raise errors.UsageError(f"processes must be at least 1, got {processes}")
    if split not in SPLITS:
        raise errors.UsageError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    for index, member in enumerate(members):
        check(member, dataset, f"member {index}")
    return _run_workers(list(members), dataset, recipe, processes, split, keep_losses)


def check(member: Member, dataset: Dataset, who: str = "the member") -> None:
    """Raises UsageError unless the member is an MLP for the data set."""
    layers = member.layers
    for position, layer in enumerate(layers, 1):
        where = f"{who}, layer {layer.name!r}"
        activation = "linear" if position == len(layers) else "relu"
        if (layer.op, layer.activation, layer.batch_norm) != ("dense", activation, False):
            raise errors.UsageError(
                f"{where}: the population trainer takes dense layers, relu between them and the "
                f"last one linear; got {layer.op!r} with {layer.activation!r}"
            )
        if not 2 <= layer.weight_bits <= 16:
            raise errors.UsageError(
                f"{where}: weight bits must be in 2..16, got {layer.weight_bits}"
            )
    fitting.check(layers, dataset, who)


# --- one network --------------------------------------------------------------------------------


def _aligned(*sizes: int) -> list[np.ndarray]:
    """Zeroed float32 vectors of these sizes, each aligned to cache lines.

    Not left to the allocator: neither speed nor the rounding of BLAS may depend on where it puts
    an array.
    """
    starts = np.cumsum([0, *map(_padded, sizes)])
    block = np.zeros((starts[-1] + _ALIGN) * 4, np.uint8)
    shift = -block.ctypes.data % (_ALIGN * 4)
    floats = block[shift : shift + starts[-1] * 4].view(np.float32)
    return [floats[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def _padded(size: int) -> int:
    """The next multiple of _ALIGN."""
    return -(-size // _ALIGN) * _ALIGN


class _Network:
    """The buffers of one training, and the three passes of a step."""

    def __init__(self, layers: Sequence[LayerSpec], batch: int):
        self.widths = [layers[0].in_channels, *(layer.out_channels for layer in layers)]
        self.depth = len(layers)
        pairs = list(zip(self.widths[:-1], self.widths[1:], strict=True))
        # Layers start on cache lines; the gaps hold zeros and stay zeros.
        starts = np.cumsum([0, *(_padded((i + 1) * o) for i, o in pairs)])
        flat = _aligned(*[int(starts[-1])] * 7)
        self.p, self.g, self.m, self.v, self.q, self.scratch, self.scales = flat

        def per_layer(vector: np.ndarray) -> list[np.ndarray]:  # [in + 1, out] each
            return [
                vector[start : start + (i + 1) * o].reshape(i + 1, o)
                for start, (i, o) in zip(starts, pairs, strict=False)
            ]

        self.parameters, self.gradients, self.rounded, scratch, scales = (
            per_layer(x) for x in (self.p, self.g, self.q, self.scratch, self.scales)
        )
        self.scales[:] = 1  # divides the biases and the gaps
        self.magnitudes = [x[:-1] for x in scratch]  # [in, out]
        self.kernel_scales = [x[:-1] for x in scales]  # [in, out]
        self.rounded_t = [x.T for x in self.rounded]  # [out, in + 1]
        self.kernels = [x[:-1] for x in self.rounded]  # [in, out]

        self.channel_scales = np.empty(sum(self.widths[1:]), np.float32)
        self.by_layer = np.split(self.channel_scales, np.cumsum(self.widths[1:-1]))
        top = [2 ** (layer.weight_bits - 1) - 1 for layer in layers]
        self.top_levels = np.repeat(np.array(top, np.float32), self.widths[1:])

        hidden = self.widths[1:-1]
        memory = _aligned(*[(w + 1) * batch for w in hidden], *[w * batch for w in self.widths[1:]])
        self.inputs: list[Any] = [None]  # of each layer, [in + 1, batch]; the batch itself is set
        self.inputs += [x.reshape(-1, batch) for x in memory[: len(hidden)]]
        self.activations = [None, *(x[:-1] for x in self.inputs[1:])]  # [units, batch]
        for ones in self.inputs[1:]:
            ones[-1] = 1
        self.deltas = [x.reshape(-1, batch) for x in memory[len(hidden) :]]  # [out, batch]
        self.deltas_t = [x.T for x in self.deltas]  # [batch, out]
        self.alive = [None, *(np.empty((w, batch), np.bool_) for w in hidden)]

    def load(self, weights: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        for parameters, (kernel, bias) in zip(self.parameters, weights, strict=True):
            parameters[:-1] = kernel
            parameters[-1] = bias

    def round(self, rounding: bool = True) -> None:
        """Rounds the kernels per output channel to -top .. top times a scale; biases are copied.

        Without `rounding` kernels are copied too.
        """
        if not rounding:
            np.copyto(self.q, self.p)
            return
        np.abs(self.p, out=self.scratch)
        for magnitude, scale in zip(self.magnitudes, self.by_layer, strict=True):
            np.maximum.reduce(magnitude, axis=0, out=scale)
        np.maximum(self.channel_scales, _MIN_WEIGHT, out=self.channel_scales)
        np.divide(self.channel_scales, self.top_levels, out=self.channel_scales)
        for scales, scale in zip(self.kernel_scales, self.by_layer, strict=True):
            np.copyto(scales, scale)
        np.divide(self.p, self.scales, out=self.q)
        np.rint(self.q, out=self.q)
        np.multiply(self.q, self.scales, out=self.q)
        for rounded, parameters in zip(self.rounded, self.parameters, strict=True):
            rounded[-1] = parameters[-1]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Outputs [out, batch] for x [in + 1, batch] that ends in ones; overwritten by the next."""
        self.inputs[0] = x
        for layer in range(self.depth - 1):
            activation = self.activations[layer + 1]
            np.matmul(self.rounded_t[layer], self.inputs[layer], out=activation)
            np.maximum(activation, _ZERO, out=activation)
        np.matmul(self.rounded_t[-1], self.inputs[-1], out=self.deltas[-1])
        return self.deltas[-1]

    def backward(self) -> None:
        """Gradients from the loss's gradient by the outputs, which is in the last `deltas`."""
        for layer in range(self.depth - 1, -1, -1):
            np.matmul(self.inputs[layer], self.deltas_t[layer], out=self.gradients[layer])
            if layer:
                delta, above = self.deltas[layer - 1], self.deltas[layer]
                # BLAS is slow at outer products.
                product = np.multiply if len(above) == 1 else np.matmul
                product(self.kernels[layer], above, out=delta)
                np.greater(self.activations[layer], _ZERO, out=self.alive[layer])
                np.multiply(delta, self.alive[layer], out=delta)

    def adam(self, step_size: np.float32, epsilon: np.float32) -> None:
        """Adam on sums instead of means: m is Keras's / (1 - beta_1), v is / (1 - beta_2).

        That saves a pass over the parameters for each; step_size and epsilon make up for it.
        """
        np.multiply(self.m, np.float32(_BETA_1), out=self.m)
        np.add(self.m, self.g, out=self.m)
        np.multiply(self.g, self.g, out=self.g)
        np.multiply(self.v, np.float32(_BETA_2), out=self.v)
        np.add(self.v, self.g, out=self.v)
        np.sqrt(self.v, out=self.scratch)
        np.add(self.scratch, epsilon, out=self.scratch)
        np.divide(self.m, self.scratch, out=self.scratch)
        np.multiply(self.scratch, step_size, out=self.scratch)
        np.subtract(self.p, self.scratch, out=self.p)

    def flush(self) -> None:
        """Sets moments near the denormals to 0: a dead unit's would slow every step down."""
        np.abs(self.m, out=self.scratch)
        self.m[self.scratch < _FLUSH] = 0
        self.v[self.v < _FLUSH] = 0


def _step_sizes(recipe: Recipe) -> np.ndarray:
    """The factor of m / (sqrt(v) + epsilon) for `_Network.adam`, float32 [steps].

    Keras takes the powers in float32, which makes the first steps 2e-5 smaller or larger.
    """
    step = np.arange(1, recipe.steps + 1, dtype=np.float32)
    remaining = [1 - np.float32(beta) ** step for beta in (_BETA_1, _BETA_2)]
    sums = (1 - _BETA_1) / np.sqrt(1 - _BETA_2)
    return (recipe.learning_rates() * np.sqrt(remaining[1]) / remaining[0] * sums).astype(
        np.float32
    )


def _with_ones(x: np.ndarray) -> np.ndarray:
    """Examples [..., batch, features] -> [..., features + 1, batch] that end in a row of ones."""
    *outer, batch, features = x.shape
    result = np.ones((*outer, features + 1, batch), np.float32)
    result[..., :-1, :] = np.swapaxes(x, -1, -2)
    return result


def _squared_error(outputs: np.ndarray, targets: np.ndarray, want_loss: bool) -> float:
    """Mean squared error of [out, batch]; leaves its gradient in `outputs`.

    Args:
      outputs: [out, batch].
      targets: [batch, out].
      want_loss: without it the result is 0.
    """
    np.subtract(outputs, targets.T, out=outputs)
    loss = float(np.mean(outputs * outputs)) if want_loss else 0.0
    np.multiply(outputs, np.float32(2 / outputs.size), out=outputs)
    return loss


def _cross_entropy(outputs: np.ndarray, targets: np.ndarray, want_loss: bool) -> float:
    """Mean softmax cross-entropy of logits [out, batch]; leaves its gradient in `outputs`.

    Args:
      outputs: logits [out, batch].
      targets: labels [batch].
      want_loss: without it the result is 0.
    """
    batch = np.arange(len(targets))
    np.subtract(outputs, np.maximum.reduce(outputs, axis=0), out=outputs)
    chosen = outputs[targets, batch] if want_loss else None
    np.exp(outputs, out=outputs)
    total = np.add.reduce(outputs, axis=0)  # [batch]
    loss = 0.0 if chosen is None else float(np.mean(np.log(total) - chosen))
    np.divide(outputs, total, out=outputs)
    outputs[targets, batch] -= 1
    np.multiply(outputs, np.float32(1 / len(targets)), out=outputs)
    return loss


_LOSSES = {"mean_squared_error": _squared_error, "softmax_cross_entropy": _cross_entropy}


def _train_one(
    index: int,
    member: Member,
    arrays: _Arrays,
    recipe: Recipe,
    keep_losses: bool,
) -> Outcome:
    """Trains one member from each of the recipe's starts and scores the one that fits best."""
    start = time.perf_counter()
    kept: tuple[float, float, list[float]] | None = None
    for seed in recipe.start_seeds(member.seed):
        network, losses = _train_from(member.layers, seed, arrays, recipe, keep_losses)
        with np.errstate(all="ignore"):
            fit = _score(network, arrays.task, arrays.x[:FIT_EXAMPLES], arrays.y[:FIT_EXAMPLES])
            if kept is None or fit > kept[0]:
                metric = _score(network, arrays.task, arrays.score_x, arrays.score_y)
                kept = (fit, metric, losses)
    assert kept is not None  # a recipe has a start
    seconds = time.perf_counter() - start
    return Outcome(index, kept[1], seconds, tuple(kept[2]) if keep_losses else None)


def _train_from(
    layers: Sequence[LayerSpec], seed: int, arrays: _Arrays, recipe: Recipe, keep_losses: bool
) -> tuple[_Network, list[float]]:
    """The network trained from the weights and batches of this seed, and its losses if wanted."""
    rows = recipe.batches(len(arrays.x), seed)  # [steps, batch]
    network = _Network(layers, rows.shape[1])
    network.load(initial_weights(layers, seed))
    gradient = _LOSSES[arrays.task.loss]
    step_sizes = _step_sizes(recipe)
    epsilon = np.float32(_EPSILON / np.sqrt(1 - _BETA_2))
    chunk = max(1, _GATHER // (rows.shape[1] * arrays.x.shape[1]))
    losses = []
    with np.errstate(all="ignore"):  # a member that diverges goes on in NaN and scores 0
        for step in range(recipe.steps):
            place = step % chunk
            if place == 0:
                taken = rows[step : step + chunk]
                x = _with_ones(arrays.x[taken])  # [chunk, features + 1, batch]
                y = arrays.y[taken]  # [chunk, batch, ...]
            if step % _FLUSH_STEPS == 0:
                network.flush()
            network.round(step >= recipe.float_steps)
            loss = gradient(network.forward(x[place]), y[place], keep_losses)
            if keep_losses:
                losses.append(loss)
            network.backward()
            network.adam(step_sizes[step], epsilon)
        network.round()
    return network, losses


def _score(network: _Network, task: tasks.Task, x: np.ndarray, y: np.ndarray) -> float:
    return task.score(y, _predict(network, x))


def _predict(network: _Network, x: np.ndarray) -> np.ndarray:
    """Outputs [examples, out] for x [examples, features]."""
    outputs = []
    for start in range(0, len(x), _SCORE_ROWS):
        h = _with_ones(x[start : start + _SCORE_ROWS])  # [features + 1, rows]
        for weights in network.rounded_t[:-1]:
            h = np.maximum(weights @ h, _ZERO)
            h = np.concatenate([h, np.ones_like(h[:1])])
        outputs.append((network.rounded_t[-1] @ h).T)
    return np.concatenate(outputs)


# --- many processes -----------------------------------------------------------------------------
#
# A worker is a fresh interpreter that speaks lines of JSON. `multiprocessing` would import the
# caller's main module in each worker, TensorFlow with it, and leave it to the caller to limit BLAS.


@dataclasses.dataclass(frozen=True)
class _Arrays:
    """What a worker reads of a data set."""

    task: tasks.Task
    x: np.ndarray  # [examples, features]
    y: np.ndarray  # [examples, outputs] or [examples]
    score_x: np.ndarray
    score_y: np.ndarray

    def save(self, folder: pathlib.Path) -> None:
        for name in ("x", "y", "score_x", "score_y"):
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: pathlib.Path, task: str) -> _Arrays:
        """Maps the files, so that all workers share one copy in the page cache."""
        names = ("x", "y", "score_x", "score_y")
        return cls(tasks.get(task), *(np.load(folder / f"{n}.npy", mmap_mode="r") for n in names))


def _run_workers(
    members: list[Member],
    dataset: Dataset,
    recipe: Recipe,
    processes: int,
    split: str,
    keep_losses: bool,
) -> Iterator[Outcome]:
    """Gives each worker one member at a time until all are done."""
    scored = getattr(dataset, split)
    flat = [part.x.reshape(len(part), -1).astype(np.float32, copy=False)
            for part in (dataset.train, scored)]  # fmt: skip
    arrays = _Arrays(dataset.task, flat[0], dataset.train.y, flat[1], scored.y)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tfgen-")))
        arrays.save(folder)
        job = {"task": dataset.task.name, "recipe": recipe.to_json(), "keep_losses": keep_losses}
        (folder / "job.json").write_text(json.dumps(job))
        ready = stack.enter_context(selectors.DefaultSelector())
        waiting = iter(enumerate(members))
        for _ in range(min(processes, len(members))):
            worker = _Worker(folder)
            stack.callback(worker.close)
            ready.register(worker.process.stdout, selectors.EVENT_READ, worker)
            worker.send(*next(waiting))
        for _ in range(len(members)):
            worker = ready.select()[0][0].data
            yield worker.receive()
            following = next(waiting, None)
            if following:
                worker.send(*following)


class _Worker:
    """A process that trains one member at a time."""

    def __init__(self, folder: pathlib.Path):
        environment = dict(os.environ)
        # The caller's own path: under Bazel, environment and working directory do not say it all.
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        # NumPy's BLAS reads these when it is loaded.
        for library in ("OPENBLAS", "MKL", "OMP", "BLIS", "VECLIB_MAXIMUM"):
            environment[f"{library}_NUM_THREADS"] = "1"
        self.index: int | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tfgen.training.population", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def send(self, index: int, member: Member) -> None:
        self.index = index
        layers = [layer.to_json() for layer in member.layers]
        line = json.dumps({"index": index, "seed": member.seed, "layers": layers})
        with contextlib.suppress(BrokenPipeError):  # `receive` says what happened
            print(line, file=self.process.stdin, flush=True)

    def receive(self) -> Outcome:
        line = self.process.stdout.readline()
        if not line.endswith("\n"):  # the end of the stream: the process is gone
            code = self.process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise errors.TfgenError(
                f"a training process ended with {how} at member {self.index}; outcomes so far are "
                "good, train the others again" + _WHY.get(code, "")
            )
        data = json.loads(line)
        losses = data.pop("losses")
        return Outcome(**data, losses=None if losses is None else tuple(losses))

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
    job = json.loads((folder / "job.json").read_text())
    recipe = Recipe.from_json(job["recipe"])
    arrays = _Arrays.load(folder, job["task"])
    for line in sys.stdin:
        data = json.loads(line)
        member = Member(tuple(LayerSpec.from_json(x) for x in data["layers"]), data["seed"])
        outcome = _train_one(data["index"], member, arrays, recipe, job["keep_losses"])
        print(json.dumps(dataclasses.asdict(outcome)), flush=True)


if __name__ == "__main__":
    _work(pathlib.Path(sys.argv[1]))
