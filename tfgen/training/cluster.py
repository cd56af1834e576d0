"""Trains members on a Ray cluster, as `population.Workers` does on one machine.

Ray only executes: a task takes a chunk of members and trains them by `population` in a child of its
own, under the same limits, so equal members give equal outcomes wherever they are trained (on
processors that round alike). What comes back is stored here, where the store's one owner is. Ray
repeats a task whose machine or process went away; a chunk that ends its task every time is tried in
halves, until the member that does it stands alone and has failed.

The machines of a cluster need the same tfgen. Who reaches Ray's ports can run code there: they
belong on a network that is trusted.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tfgen import errors
from tfgen.space.layers import LayerSpec
from tfgen.training import population, tasks
from tfgen.training.datasets import Dataset, Split
from tfgen.training.population import Limits, Member, Outcome, Workers
from tfgen.training.recipe import Recipe

LOCAL = "local"  # an address: a cluster of this machine that ends with this process
_RETRIES = 3  # of a task by Ray, and then in halves
_LARGEST_CHUNK = 16
_REACH_SECONDS = 10.0
_CHUNKS_EACH = 4  # for every core at least, where there are members enough


@dataclasses.dataclass(frozen=True)
class Place:
    """A cluster, and what of it is used.

    Attributes:
      address: as `ray.init` takes it, "host:6379", "auto" or LOCAL.
      resources: that a machine must have for a training, beside a core; {"device:pixel8": 1}.
    """

    address: str
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)


def named(address: str | None, resources: Sequence[str]) -> Place | None:
    """What the flags name, resources as NAME=NUMBER; None without an address.

    Raises:
      UsageError: a resource is something else, or there is no address.
    """
    told = {}
    for text in resources:
        name, _, number = text.rpartition("=")
        try:
            told[name] = float(number)
        except ValueError:
            name = ""
        if not name or not 0 < told[name] < float("inf"):
            raise errors.UsageError(f"--ray_resource is NAME=NUMBER, got {text!r}")
    if address is None and told:
        raise errors.UsageError("--ray_resource goes with --ray_address")
    return None if address is None else Place(address, told)


class Tasks:
    """Functions of modules that run on a cluster, a core each.

    Attributes:
      cores: of the cluster.
    """

    def __init__(self, place: Place):
        """Connects, unless this process is connected; raises UsageError and TfgenError."""
        ray = _ray()
        self._connected = _connect(place.address)
        self._resources = dict(place.resources)
        self._known: dict[Callable[..., Any], Any] = {}  # what the cluster has been sent
        has = ray.cluster_resources()
        lacking = {k: v for k, v in self._resources.items() if has.get(k, 0) < v}
        if lacking:
            self.close()
            raise errors.TfgenError(f"the Ray cluster at {place.address} lacks {lacking}")
        self.cores = max(1, int(has.get("CPU", 1)))

    def put(self, value: Any) -> Any:
        """Keeps a value where tasks can get it; a reference to it."""
        return _ray().put(value)

    def start(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Starts a task, which is repeated where its process or machine goes away."""
        if function not in self._known:
            options = {"num_cpus": 1, "max_retries": _RETRIES, "resources": self._resources}
            self._known[function] = _ray().remote(function).options(**options)
        return self._known[function].remote(*arguments)

    def first(self, running: Iterable[Any]) -> Any:
        """Waits for one of some tasks."""
        (ready,), _ = _ray().wait(list(running), num_returns=1)
        return ready

    def result(self, task: Any) -> Any:
        """Waits for a task and returns its result.

        Raises:
          TrainingFailedError: its process or machine went away each time.
          TfgenError: it raised, as where a machine has no tfgen.
        """
        ray = _ray()
        try:
            return ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise errors.TfgenError(f"a Ray task: {error.cause}") from error
        except ray.exceptions.RayError as error:
            raise errors.TrainingFailedError(
                f"ended {1 + _RETRIES} Ray tasks, the last with {type(error).__name__}"
            ) from error

    def give_up(self, running: Iterable[Any]) -> None:
        """Ends tasks, whatever they are doing."""
        for task in running:
            _ray().cancel(task, force=True)

    def close(self) -> None:
        """Ends the connection that was made here, and all tasks of it."""
        if self._connected:
            self._connected = False
            _ray().shutdown()


class Cluster:
    """Trains members on one data set with one recipe; a `population.Trainer`.

    A context manager: leaving it gives up what is under way, and the connection.

    Attributes:
      dataset: trains on its train split.
      recipe: what the trainings have in common.
    """

    def __init__(
        self,
        place: Place,
        dataset: Dataset,
        recipe: Recipe,
        *,
        split: str = "validation",
        limits: Limits | None = None,
    ):
        """Connects to the cluster, unless this process is connected.

        Args:
          place: the cluster.
          dataset: trains on its train split.
          recipe: what the trainings have in common.
          split: which of `population.SPLITS` is scored.
          limits: of each training.

        Raises:
          UsageError: Ray is not installed, or as `population.Workers`.
          TfgenError: there is no cluster at the address, or none with such resources.
        """
        limits = limits or Limits()
        Workers(dataset, recipe, processes=1, split=split, limits=limits)  # says what is wrong
        self.dataset = dataset
        self.recipe = recipe
        self._in_a_row = population.InARow(limits.failures)
        self._tasks = Tasks(place)
        self._job = json.dumps(
            {
                "task": dataset.task.name,
                "recipe": recipe.to_json(),
                "split": split,
                "limits": dataclasses.asdict(dataclasses.replace(limits, failures=0)),
            }
        )
        scored = getattr(dataset, split)
        self._arrays = self._tasks.put(
            [part for s in (dataset.train, scored) for part in (s.x, s.y)]
        )

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives up what is under way, and the connection where it was made here."""
        self._tasks.close()

    def train(self, members: Sequence[Member]) -> Iterator[Outcome]:
        """Trains the members and yields each outcome when its chunk is there, in no order.

        Raises:
          UsageError: a member does not fit the data set; raised before any training.
          TfgenError: too many trainings failed in a row, or a machine cannot run tfgen; outcomes
            already yielded are good.
        """
        for index, member in enumerate(members):
            population.check(member, self.dataset, f"member {index}")
        return self._run(list(members))

    def _run(self, members: list[Member]) -> Iterator[Outcome]:
        running: dict[Any, list[int]] = {}  # by task, its members

        def start(rows: list[int]) -> None:
            texts = [
                {"seed": members[i].seed, "layers": [x.to_json() for x in members[i].layers]}
                for i in rows
            ]
            # In a list, a reference goes to the task as such.
            task = self._tasks.start(_train_chunk, self._job, [self._arrays], json.dumps(texts))
            running[task] = rows

        most = len(members) // (_CHUNKS_EACH * self._tasks.cores)
        size = min(max(1, most), _LARGEST_CHUNK)
        try:
            for first in range(0, len(members), size):
                start(list(range(first, min(first + size, len(members)))))
            while running:
                ready = self._tasks.first(running)
                rows = running.pop(ready)
                try:
                    found = json.loads(self._tasks.result(ready))
                except errors.TrainingFailedError as error:
                    if len(rows) > 1:
                        start(rows[: len(rows) // 2])
                        start(rows[len(rows) // 2 :])
                        continue
                    found = [_failed(members[rows[0]], str(error))]
                for row, fields in zip(rows, found, strict=True):
                    outcome = Outcome(**(fields | {"index": row}))
                    yield outcome
                    self._in_a_row.count(outcome)
        finally:
            self._tasks.give_up(running)


def _connect(address: str) -> bool:
    """Connects this process to a cluster; whether it was not connected before.

    Raises:
      UsageError: Ray is not installed.
      TfgenError: there is no cluster.
    """
    ray = _ray()
    if ray.is_initialized():
        return False
    _check_reachable(address)
    own = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise errors.TfgenError(f"no Ray cluster at {address}: {error}") from error
    return True


def _check_reachable(address: str) -> None:
    """Raises TfgenError where nobody listens at host:port, which Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), _REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise errors.TfgenError(f"no Ray cluster at {address}: {error}") from error


def _ray() -> Any:
    """The package, an extra; raises UsageError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    try:
        import ray
    except ImportError as error:
        raise errors.UsageError(
            "--ray_address needs Ray: pip install tfgen[ray], here and on the cluster's machines"
        ) from error
    return ray


def _failed(member: Member, reason: str) -> dict[str, Any]:
    return dataclasses.asdict(Outcome(0, 0.0, member.seed, 0.0, failure=reason))


# --- in a task ----------------------------------------------------------------------------------


def _train_chunk(job: str, arrays: list[Any], members: str) -> str:
    """Trains members, JSON; returns their outcomes, JSON in the same order."""
    workers = _workers(job, arrays[0])
    chosen = [
        Member(tuple(LayerSpec.from_json(layer) for layer in data["layers"]), data["seed"])
        for data in json.loads(members)
    ]
    outcomes = sorted(workers.train(chosen), key=lambda outcome: outcome.index)
    return json.dumps([dataclasses.asdict(outcome) for outcome in outcomes])


@functools.lru_cache(maxsize=1)
def _workers(job: str, arrays: Any) -> Workers:
    """One training process, which stays for the next chunk and ends with this one."""
    import ray

    told = json.loads(job)
    x, y, score_x, score_y = ray.get(arrays)
    scored = Split(score_x, score_y)
    dataset = Dataset("of a task", tasks.get(told["task"]), Split(x, y), scored, scored, {})
    split = told["split"] if told["split"] != "train" else "validation"
    return Workers(
        dataset,
        Recipe.from_json(told["recipe"]),
        processes=1,
        split=split,
        limits=Limits(**told["limits"]),
    )
