"""Makes the file of one network: here, in a child process with limits, or on a Ray cluster.

A child that takes too long or too much memory is ended and the network has failed; one that others
kill is started again. Equal orders make equal files wherever that is done (on processors that round
alike).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfgen import child_process, errors, supernets, workdir
from tfgen.bundle import SharedWeights
from tfgen.space.layers import LayerSpec
from tfgen.space.search_space import SearchSpace
from tfgen.training import cluster, tasks
from tfgen.training.datasets import Dataset, Split
from tfgen.training.population import Limits
from tfgen.training.recipe import Recipe

if TYPE_CHECKING:
    from tfgen.training.trainer import Trained

MODEL, RECIPE = "model.tflite", "recipe.json"
TRAINED = "trained"
SECONDS = 86_400.0
_ATTEMPTS = 2  # of children that a signal ended
_LOOKS_EVERY = 0.2  # seconds
_ORDER, _DONE, _PROGRESS, _OUTPUT = "order.json", "done.json", "progress", "output"
_SPLITS = ("train", "validation", "test")
Progress = Callable[[int, float], None]  # steps done, loss


@dataclasses.dataclass(frozen=True)
class Order:
    """A file to make, and all that decides it.

    With shared weights the network inherits them, rounded: that is all, unless they are to be
    tuned.

    Attributes:
      space: whose bit policy the file must keep.
      layers: the network.
      dataset: what it is trained on.
      recipe: how.
      seed: of its weights and batches.
      io: "float", or "int8" for integer input and output.
      shared: what it inherits; None trains it from scratch.
      tune: whether what was inherited is trained by `shared.fine_tuning`.
    """

    space: SearchSpace
    layers: tuple[LayerSpec, ...]
    dataset: Dataset
    recipe: Recipe
    seed: int
    io: str = "float"
    shared: SharedWeights | None = None
    tune: bool = False

    @property
    def trains(self) -> bool:
        """Whether it takes more than seconds."""
        return self.shared is None or self.tune

    @property
    def training(self) -> dict[str, Any]:
        """What is told of its training, as JSON can."""
        if self.shared is None:
            return self.recipe.to_json()
        return {"inherited": True, **(self.shared.fine_tuning.to_json() if self.tune else {})}

    @property
    def network(self) -> str:
        """What tells it from the other orders of a bundle, in hex."""
        text = json.dumps([self.seed, *(layer.to_json() for layer in self.layers)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Maker(Protocol):
    """Who makes files; raises TrainingFailedError, ExportMismatchError and what `make` raises."""

    def __call__(
        self,
        order: Order,
        folder: pathlib.Path,
        *,
        trained: pathlib.Path | None = None,
        progress: Progress | None = None,
    ) -> pathlib.Path: ...


def make(
    order: Order,
    folder: pathlib.Path,
    *,
    trained: pathlib.Path | None = None,
    progress: Progress | None = None,
) -> pathlib.Path:
    """Trains a network with quantization in the loop and writes model.tflite and recipe.json.

    Args:
      order: the network.
      folder: where the file goes.
      trained: where the Keras model is kept, and beside it a float stage that is under way; None
        keeps neither. One that is there and was trained so is not trained again.
      progress: told the steps done and the loss.

    Returns:
      The path of model.tflite.

    Raises:
      UsageError: the network does not fit the data or the bit policy.
      TrainingFailedError: the training diverged.
      ExportMismatchError: the file disagrees with the network.
    """
    from tfgen.deployment import export

    space, layers, dataset = order.space, order.layers, order.dataset
    export.check_bits(layers, space.bit_policy)  # a minute before export would
    result = _trained(order, trained, progress)
    examples = dataset.test.x
    exported = export.export(result.model, result.layers, examples, space.bit_policy, io=order.io)
    path = folder / MODEL
    workdir.write_bytes(path, exported.content)
    workdir.write_json(
        folder / RECIPE,
        {
            "layers": [layer.to_json() for layer in layers],
            "training": {**order.training, "seed": order.seed, "dataset": dataset.fingerprint},
            "preprocessing": dict(dataset.preprocessing),
            "input_output": order.io,
            "quantizer": json.loads(exported.recipe_json),
            "checked": {
                "examples": exported.compared,
                "agreement": exported.agreement,
                "max_steps": exported.max_steps,
                "mean_steps": exported.mean_steps,
            },
        },
    )
    return path


def _trained(order: Order, trained: pathlib.Path | None, progress: Progress | None) -> Trained:
    """The network after its training, or as it was trained before; arguments as `make` has them."""
    from tfgen.nets import network
    from tfgen.training import trainer

    layers, dataset, shared, seed = order.layers, order.dataset, order.shared, order.seed
    # All that decides what it becomes, beside the seed and the data.
    config = {
        "trainer": trainer.VERSION,
        "recipe": order.training,
        "layers": [layer.to_json() for layer in layers],
        "shared": None if shared is None else network.digest(
            {
                "variables": shared.variables,
                "teacher": shared.teacher or {},
                "examples": {"x": shared.examples.train.x},
            }
        ),
    }  # fmt: skip
    data = {dataset.name: dataset.fingerprint}
    if trained is not None and _is_of(trained, config, seed, data):
        return trainer.load(trained)
    own = None if shared is None else supernets.inherited(order.space, shared, layers)
    if order.trains:
        recipe = order.recipe if shared is None else shared.fine_tuning
        distils = shared is not None and recipe.distils
        result = trainer.train(
            layers,
            dataset,
            recipe,
            seed,
            weights=own,
            teacher=supernets.teacher(order.space, shared) if distils else None,
            kept=None if trained is None else trained.with_name(f"{trained.name}-float"),
            progress=progress,
        )
    else:
        result = trainer.inherit(layers, own, shared.examples.train.x, dataset)
    if trained is not None:
        with workdir.writing_folder(trained) as fresh:
            trainer.save(result, fresh)
            workdir.write_manifest(fresh, config=config, seed=seed, data=data, parents={})
    return result


def _is_of(
    trained: pathlib.Path, config: Mapping[str, Any], seed: int, data: Mapping[str, str]
) -> bool:
    """Whether a network lies there whole that would become the same if it was trained again."""
    if not (trained / workdir.MANIFEST).is_file():
        return False
    try:
        known = workdir.read_manifest(trained)
    except errors.CorruptFileError:
        return False  # it is replaced
    own = workdir.is_made_by(known, config=config, seed=seed, data=data)
    return own and known.get("versions") == workdir.versions()


# --- in a child ---------------------------------------------------------------------------------


def default_limits() -> Limits:
    """A day, and the memory that this machine has."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Limits(SECONDS, memory_bytes)


@dataclasses.dataclass(frozen=True)
class InChild:
    """Makes each file in a process of its own; a `Maker`.

    Attributes:
      limits: `memory_bytes` are of its resident set: TensorFlow reserves more than it uses.
    """

    limits: Limits = dataclasses.field(default_factory=default_limits)

    def __call__(
        self,
        order: Order,
        folder: pathlib.Path,
        *,
        trained: pathlib.Path | None = None,
        progress: Progress | None = None,
    ) -> pathlib.Path:
        with workdir.scratch() as job:
            _save(order, job, folder, trained)
            for _ in range(_ATTEMPTS):
                code = self._run(job, progress)
                if code >= 0:
                    break
            if not (job / _DONE).is_file():
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                words = child_process.last_words(job / _OUTPUT)
                raise errors.TrainingFailedError(f"the training ended with {how}: {words}")
            _raise(workdir.read_json(job / _DONE))
        return folder / MODEL

    def _run(self, job: pathlib.Path, progress: Progress | None) -> int:
        """The exit status of a child that does the job; raises TrainingFailedError at a limit."""
        deadline = time.monotonic() + self.limits.seconds
        (job / _PROGRESS).write_bytes(b"")
        told = 0  # bytes of it
        with (job / _OUTPUT).open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tfgen.making", str(job)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(_LOOKS_EVERY)
                    _tell(job, told, progress)
                    return code
                told = _tell(job, told, progress)
                if time.monotonic() > deadline:
                    raise errors.TrainingFailedError(
                        f"the training took more than {self.limits.seconds:g} s"
                    )
                if _resident_bytes(process.pid) > self.limits.memory_bytes:
                    raise errors.TrainingFailedError(
                        f"the training took more than {self.limits.memory_bytes / 1e9:g} GB"
                    )
        finally:
            process.kill()
            process.wait()


def _resident_bytes(pid: int) -> int:
    """Memory that a process has; 0 where it has ended."""
    try:
        pages = pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _tell(job: pathlib.Path, told: int, progress: Progress | None) -> int:
    """Tells what a child added after so many bytes; how many there are then."""
    text = (job / _PROGRESS).read_bytes()
    whole = text.rfind(b"\n") + 1  # the last line may still be written
    for line in text[told:whole].splitlines() if progress is not None else ():
        done, loss = line.split()
        progress(int(done), float(loss))
    return whole


def _save(
    order: Order, job: pathlib.Path, folder: pathlib.Path, trained: pathlib.Path | None
) -> None:
    """Writes an order for a child."""
    data = order.dataset
    for name in _SPLITS:
        split = getattr(data, name)
        np.save(job / f"{name}_x.npy", split.x, allow_pickle=False)
        np.save(job / f"{name}_y.npy", split.y, allow_pickle=False)
    if order.shared is not None:
        order.shared.save(job)
    told = {
        "parent": os.getpid(),
        "folder": str(folder.absolute()),
        "trained": None if trained is None else str(trained.absolute()),
        "space": order.space.to_json(),
        "layers": [layer.to_json() for layer in order.layers],
        "recipe": order.recipe.to_json(),
        "seed": order.seed,
        "io": order.io,
        "tune": order.tune,
        "dataset": data.name,
        "task": data.task.name,
        "preprocessing": dict(data.preprocessing),
        "shared": None if order.shared is None else order.shared.answers(),
    }
    workdir.write_json(job / _ORDER, told)


def _load(job: pathlib.Path, told: dict[str, Any]) -> Order:
    """The order that `_save` wrote."""
    task = tasks.get(told["task"])
    splits = [
        Split(*(np.load(job / f"{name}_{part}.npy", mmap_mode="r") for part in "xy"))
        for name in _SPLITS
    ]
    shared = told["shared"]
    return Order(
        SearchSpace.from_json(told["space"]),
        tuple(LayerSpec.from_json(layer) for layer in told["layers"]),
        Dataset(told["dataset"], task, *splits, told["preprocessing"]),
        Recipe.from_json(told["recipe"]),
        told["seed"],
        told["io"],
        None if shared is None else SharedWeights.load(job, told["dataset"], task, shared),
        told["tune"],
    )


def _raise(error: Mapping[str, str] | None) -> None:
    """Raises what went wrong in a child, where something did."""
    if error is not None:
        raise getattr(errors, error["class"])(error["message"])


def _work(job: pathlib.Path) -> None:
    """The child: makes the file, and tells how far it is and what went wrong."""
    told = workdir.read_json(job / _ORDER)
    child_process.die_with(told["parent"])

    def progress(done: int, loss: float) -> None:
        with (job / _PROGRESS).open("a") as file:  # no more than news: it may be lost
            file.write(f"{done} {loss}\n")

    trained = None if told["trained"] is None else pathlib.Path(told["trained"])
    error = None
    try:
        folder = pathlib.Path(told["folder"])
        make(_load(job, told), folder, trained=trained, progress=progress)
    except errors.TfgenError as raised:
        error = {"class": type(raised).__name__, "message": str(raised)}
    except MemoryError as raised:
        error = {"class": "TrainingFailedError", "message": f"MemoryError: {raised}"}
    workdir.write_json(job / _DONE, error)


# --- on a cluster -------------------------------------------------------------------------------


class OnCluster:
    """Makes files on a Ray cluster, all at once; hands out each when it is asked for. A `Maker`.

    A context manager: leaving it gives up what is under way.
    """

    def __init__(self, place: cluster.Place, orders: Sequence[Order], limits: Limits):
        """Starts all orders.

        Args:
          place: the cluster.
          orders: of one data set.
          limits: of each.

        Raises:
          UsageError: Ray is not installed.
          TfgenError: there is no cluster.
        """
        self._tasks = cluster.Tasks(place)
        self._orders = {order.network: order for order in orders}
        self._limits = limits
        self._running: dict[str, Any] = {}

    def __enter__(self) -> OnCluster:
        told = json.dumps(dataclasses.asdict(self._limits))
        kept: dict[int, Any] = {}  # by data set, which all orders share
        for network, order in self._orders.items():
            with workdir.scratch() as job:
                _save(order, job, job, None)
                files = {f.name: f.read_bytes() for f in job.iterdir()}
            own = {_ORDER: files.pop(_ORDER)}
            if id(order.dataset) not in kept:
                kept[id(order.dataset)] = self._tasks.put(files)
            self._running[network] = self._tasks.start(
                _make_there, told, own, [kept[id(order.dataset)]]
            )
        return self

    def __exit__(self, *unused: object) -> None:
        self._tasks.give_up(self._running.values())
        self._tasks.close()

    def __call__(
        self,
        order: Order,
        folder: pathlib.Path,
        *,
        trained: pathlib.Path | None = None,
        progress: Progress | None = None,
    ) -> pathlib.Path:
        del progress  # it is somewhere else
        error, files = self._tasks.result(self._running[order.network])
        _raise(error)
        for name, content in files.items():
            if not name.startswith(f"{TRAINED}/"):
                workdir.write_bytes(folder / name, content)
        if trained is not None:
            with workdir.writing_folder(trained) as fresh:
                for name, content in files.items():
                    if name.startswith(f"{TRAINED}/"):
                        workdir.write_bytes(fresh / name.partition("/")[2], content)
        return folder / MODEL


def _make_there(
    limits: str, own: dict[str, bytes], shared: list[Any]
) -> tuple[dict[str, str] | None, dict[str, bytes]]:
    """The task: what went wrong, or the files."""
    import ray

    with workdir.scratch() as job, workdir.scratch() as made, workdir.scratch() as kept:
        for name, content in {**ray.get(shared[0]), **own}.items():
            (job / name).write_bytes(content)
        order = _load(job, workdir.read_json(job / _ORDER))
        try:
            InChild(Limits(**json.loads(limits)))(order, made, trained=kept / TRAINED)
        except errors.TfgenError as raised:
            return {"class": type(raised).__name__, "message": str(raised)}, {}
        trained = {f"{TRAINED}/{name}": file for name, file in _contents(kept / TRAINED)}
        return None, dict(_contents(made)) | trained


def _contents(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file below a folder, those of unfinished writes left out."""
    for path in sorted(folder.rglob("[!.]*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


if __name__ == "__main__":
    _work(pathlib.Path(sys.argv[1]))
