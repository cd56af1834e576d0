"""Kills what tfgen does at random moments, again and again, and compares with an undisturbed run.

    python tools/bench_kills.py --stage=collect --kills=200

A stage is started, killed with SIGKILL at a moment drawn evenly over the time that it takes, and
started again where it was, until it ends by itself; then its result must be that of the run that
nobody killed, and it begins anew. What lies in the work directory after a kill must be whole. With
--stage=writers four processes append to one store until they are killed together, and every record
whose `append` returned must be there.

TensorFlow is imported once: each start is a fork, so kills hit the work and not the imports.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from tfgen import bundle as bundles
from tfgen import learning, pipeline, program, seeds, supernets, workdir
from tfgen.cost.budget import Budget
from tfgen.deployment.served import Answerer
from tfgen.deployment.serving import Served
from tfgen.evidence.record import Record, RecordStore
from tfgen.evidence.surrogate import SurrogateConfig
from tfgen.experiment import Experiment
from tfgen.generators.nagan import NaganConfig
from tfgen.selection import Selector
from tfgen.space import catalog
from tfgen.space.architecture import Architecture
from tfgen.space.search_space import SearchSpace
from tfgen.training import datasets, tasks
from tfgen.training.recipe import Recipe, SupernetRecipe

_STAGE = flags.DEFINE_enum(
    "stage",
    "collect",
    ["writers", "collect", "train", "supernet", "deliver", "export"],
    "What is killed.",
)
_KILLS = flags.DEFINE_integer("kills", 200, "How often.", lower_bound=1)
_PROCESSES = 2
_WRITERS = 4
_FIRST_ACKNOWLEDGED = 5.0  # seconds in which a writer stores its first record

SMALL = Experiment(
    name="killed",
    space="california_housing_mlp",
    dataset="california_housing",
    records=150,
    gap_networks=1,
    recipe=Recipe(steps=20, batch_size=32, warmup_steps=5),
    surrogate=SurrogateConfig(members=1, units=8, steps=40, batch_size=16),
    methods={
        "nagan": NaganConfig(
            units=4, teaching_chains=20, teaching_kept=2, teaching_steps=20, teaching_batch=16
        )
    },
    seed=7,
    rounds=1,
    round_networks=20,
)
SUPERNET = Experiment(
    name="killed",
    space="mnist_mobile",
    dataset="quarters",
    records=1,
    gap_networks=0,
    recipe=SMALL.recipe,
    surrogate=SMALL.surrogate,
    methods={},
    seed=7,
    fine_tuning=SMALL.recipe,
    supernet=SupernetRecipe(epochs=3, batch_size=50, learning_rate=0.1, shift=0, flip=False),
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is killed.

    Attributes:
      run: does all of it, or what is missing; tells each thing that is done for good.
      result: what the folder holds in the end, comparable by `==`.
      check: raises an AssertionError where something in the folder is not whole, given what was
        told so far.
    """

    run: Callable[[pathlib.Path, Callable[[str], Any]], None]
    result: Callable[[pathlib.Path], Any]
    check: Callable[[pathlib.Path, set[str]], None]


@dataclasses.dataclass(frozen=True)
class Survived:
    """What was seen.

    Attributes:
      kills: processes that were killed at work.
      runs: that came to their end after one or more kills, and were compared.
      told: things that were told to be done, none of which is lost.
      seconds: of the undisturbed run.
    """

    kills: int
    runs: int
    told: int
    seconds: float


def survive(stage: Stage, kills: int, folder: pathlib.Path) -> Survived:
    """Kills a stage so often; raises AssertionError where that can be seen.

    Args:
      stage: what is killed.
      kills: how often.
      folder: for its files.
    """
    # No seed: any moment must do.
    moments = random.Random(time.time_ns())
    begin = time.monotonic()
    _, ended = _attempt(stage, folder / "whole", None)
    assert ended == 0, f"the undisturbed run ended with {ended}"
    seconds = time.monotonic() - begin
    expected = stage.result(folder / "whole")
    done, runs, told = 0, 0, 0
    while done < kills:
        work = folder / f"killed_{runs}"
        known: set[str] = set()
        killed, ended = 0, -1
        while ended:
            wait = moments.uniform(0.0, seconds) if done + killed < kills else None
            new, ended = _attempt(stage, work, wait)
            known |= new
            assert ended in (0, -signal.SIGKILL), f"a run ended with {ended}"
            killed += ended != 0
            stage.check(work, known)
        assert stage.result(work) == expected, f"{work}: differs from {folder / 'whole'}"
        done, runs, told = done + killed, runs + (killed > 0), told + len(known)
    return Survived(done, runs, told, seconds)


def _attempt(stage: Stage, work: pathlib.Path, seconds: float | None) -> tuple[set[str], int]:
    """Runs a stage in a process that is killed after so long; what it told, and how it ended."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(reading)
            stage.run(work, lambda text: os.write(writing, f"{text}\n".encode()))
            code = 0
        except BaseException as error:  # a fork must not go on as its parent
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    os.close(writing)
    text = b""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reading], [], [], left)[0]:
            os.kill(pid, signal.SIGKILL)
            deadline = None  # what it told before is read to the end
            continue
        piece = os.read(reading, 1 << 16)
        if not piece:
            break
        text += piece
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    # The last line may be torn: only what ends in a newline was told.
    return set(text.decode().split("\n")[:-1]), os.waitstatus_to_exitcode(status)


# --- stages -------------------------------------------------------------------------------------


def stage(name: str) -> Stage:
    """The stage of that name; makes what all its runs read."""
    stages = {
        "collect": _collecting,
        "train": _training,
        "supernet": _supernet,
        "deliver": _delivery,
        "export": _export,
    }
    return stages[name]()


def _collected(work: pathlib.Path) -> dict[tuple[Any, ...], float]:
    """The metric of each record of `SMALL`."""
    data = datasets.load(SMALL.dataset)
    with RecordStore(workdir.WorkDir(work).records, catalog.get(SMALL.space)) as store:
        assert not store.failed(data.fingerprint, SMALL.recipe.fingerprint)
        records = store.read(data.fingerprint, SMALL.recipe.fingerprint)
    return {record.key: record.metric for record in records}


def _collecting() -> Stage:
    """Records: each that was told must be there after every kill."""

    def run(work: pathlib.Path, tell: Callable[[str], Any]) -> None:
        _, _, made = pipeline.collect(SMALL, workdir.WorkDir(work), None, _PROCESSES)
        for record in made:
            tell(str(record.seed))

    def check(work: pathlib.Path, told: set[str]) -> None:
        if told:
            lost = told - {str(key[-1]) for key in _collected(work)}
            assert not lost, f"acknowledged and lost: {lost}"

    return Stage(run, _collected, check)


def _training() -> Stage:
    """Records, a round of proposals, a gap and a bundle."""

    def run(work: pathlib.Path, tell: Callable[[str], Any]) -> None:
        del tell
        place = workdir.WorkDir(work)
        for _ in pipeline.collect(SMALL, place, None, _PROCESSES)[2]:
            pass
        pipeline.fit(SMALL, place, None, _PROCESSES, _say_nothing)

    def result(work: pathlib.Path) -> Any:
        place = workdir.WorkDir(work)
        proposals = workdir.read_json(work / learning.PROPOSALS)
        networks = {key: value["networks"] for key, value in proposals.items()}
        return (
            _collected(work),
            networks,
            workdir.read_json(work / pipeline.GAP),
            _files(place.bundle),
        )

    return Stage(run, result, lambda work, told: _check_folders(workdir.WorkDir(work).bundle))


def _supernet() -> Stage:
    """A checkpoint after each epoch."""
    data = quarters()

    def run(work: pathlib.Path, tell: Callable[[str], Any]) -> None:
        del tell
        supernets.train(SUPERNET, workdir.WorkDir(work), data, None, _say_nothing)

    def result(work: pathlib.Path) -> Any:
        return _files(workdir.WorkDir(work).supernet)

    def check(work: pathlib.Path, told: set[str]) -> None:
        del told
        _check_folders(workdir.WorkDir(work).supernet)

    return Stage(run, result, check)


def _delivery() -> Stage:
    """A network that is trained, exported and measured."""
    zoo = bundles.load(bundles.find(SMALL.space))
    bundle = dataclasses.replace(zoo, recipe=dataclasses.replace(SMALL.recipe, steps=200))
    budget = Budget({"storage_kb": 0.5})
    selector = Selector(count=1, draws=64, refinements=0)
    method = bundle.default_method
    (candidate,) = pipeline.answer(
        bundle, budget, bundle.cost_model, method, selector, 0, _say_nothing
    )
    data = datasets.load(bundle.dataset)

    def run(work: pathlib.Path, tell: Callable[[str], Any]) -> None:
        del tell
        pipeline.deliver(bundle, candidate, workdir.WorkDir(work), data, seed=0)

    def result(work: pathlib.Path) -> Any:
        (deployment,) = (work / "deployments").iterdir()  # what kills left is swept away
        agreed = workdir.read_json(deployment / pipeline.CONTRACT)
        files = _files(deployment)
        files.pop(pipeline.CONTRACT)
        files.pop(pipeline.BENCHMARK)  # times
        return agreed["file_sha256"], files

    def check(work: pathlib.Path, told: set[str]) -> None:
        del told
        for place in ("trained", "deployments"):
            if (work / place).is_dir():
                _check_folders(*(work / place).glob("[!.]*"))

    return Stage(run, result, check)


def _export() -> Stage:
    """A version of a served generator, and what lies beside it."""
    from tfgen.deployment import serving_export  # TensorFlow, which `main` imports in its own way

    bundle = bundles.load(bundles.find(SMALL.space))
    selector = Selector(count=2, draws=16, max_rounds=1, refinements=0)
    generator = bundle.generator(bundle.default_method)
    answerer = Answerer(
        bundle.space, generator, bundle.surrogate, bundle.cost_model, bundle.task.metric, selector
    )
    served = Served("tfgen", bundle.space.name, bundle.default_method, answerer.metrics,
                    answerer.costs, 2, 16, (1, 4))  # fmt: skip

    def run(work: pathlib.Path, tell: Callable[[str], Any]) -> None:
        del tell
        serving_export.export(answerer, served, work / served.name, config={}, parents={})

    def versions(work: pathlib.Path) -> list[pathlib.Path]:
        return sorted((work / served.name).glob("[0-9]*"), key=lambda path: int(path.name))

    def result(work: pathlib.Path) -> Any:
        files = _files(versions(work)[-1])
        files.pop("fingerprint.pb")  # has an identifier of the saving
        beside = (work / served.name).glob("[!0-9.]*")
        return files, {path.name: path.read_bytes() for path in beside}

    def check(work: pathlib.Path, told: set[str]) -> None:
        del told
        _check_folders(*versions(work))

    return Stage(run, result, check)


def _check_folders(*folders: pathlib.Path) -> None:
    """Raises CorruptFileError where an artefact that can be seen is not whole."""
    for folder in folders:
        if folder.exists():
            workdir.read_manifest(folder)


def _files(folder: pathlib.Path) -> dict[str, str]:
    """By name, the sha256 of an artefact's files."""
    files: dict[str, str] = workdir.read_manifest(folder)["files"]
    return dict(files)


def quarters() -> datasets.Dataset:
    """Images [28, 28, 1] with a bright quarter, whose number is the class."""
    made = seeds.stream(1, "quarters")
    y = made.integers(4, size=300)
    x = made.random((len(y), 28, 28, 1), np.float32) / 4
    for image, row, column in zip(x, *(14 * half for half in np.divmod(y, 2)), strict=True):
        image[row : row + 14, column : column + 14] += 0.6
    parts = [datasets.Split(x[a:b], y[a:b]) for a, b in ((0, 100), (100, 200), (200, 300))]
    return datasets.Dataset("quarters", tasks.CLASSIFICATION, *parts, {})


def _say_nothing(text: str) -> None:
    del text


# --- one store, many writers --------------------------------------------------------------------


def survive_writers(kills: int, folder: pathlib.Path) -> Survived:
    """Kills processes that append to one store, all of them at a time; as `survive`."""
    moments = random.Random(time.time_ns())
    space = catalog.get(SMALL.space)
    path = folder / "records.db"
    architecture = space.architecture(space.sample(1, seeds.stream(0, "writers"))[0])
    begin = time.monotonic()
    told: set[int] = set()
    done = 0
    while done < kills:
        writers = [_writer(path, space, architecture, done + i) for i in range(_WRITERS)]
        readers = [reading for _, reading in writers]
        assert select.select(readers, [], [], _FIRST_ACKNOWLEDGED)[0], "no record was stored"
        time.sleep(moments.uniform(0.0, 0.5))
        for pid, _ in writers:
            os.kill(pid, signal.SIGKILL)
        for pid, reading in writers:
            with open(reading, "rb") as file:
                told |= {int(line) for line in file.read().split(b"\n")[:-1]}
            os.waitpid(pid, 0)
        done += _WRITERS
        with RecordStore(path, space) as store:
            found = {record.seed: record.metric for record in store.read("data", "recipe")}
        lost = told - found.keys()
        assert not lost, f"acknowledged and lost: {lost}"
        assert all(metric == seed % 7 for seed, metric in found.items()), "a record is another"
    return Survived(done, done // _WRITERS, len(told), time.monotonic() - begin)


def _writer(
    path: pathlib.Path, space: SearchSpace, architecture: Architecture, number: int
) -> tuple[int, int]:
    """A process that appends until it is killed: its id, and where it tells the seeds."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        with RecordStore(path, space) as store:
            for seed in range(number << 32, (number + 1) << 32):
                store.append([Record(architecture, "data", "recipe", seed, float(seed % 7), 0.0)])
                os.write(writing, f"{seed}\n".encode())
    finally:
        os._exit(1)


# --- the program --------------------------------------------------------------------------------


def import_tensorflow() -> None:
    """Imports what stages need and starts none of TensorFlow's threads, which no fork would have.

    `keras_compat` leaves devices alone where TF_CONFIG is set.
    """
    os.environ["TF_CONFIG"] = "{}"
    try:
        for module in ("deployment.export", "training.trainer", "training.supernet_training"):
            importlib.import_module(f"tfgen.{module}")
    finally:
        del os.environ["TF_CONFIG"]


def main(argv: Sequence[str]) -> int:
    """Prints what was survived."""
    del argv
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if _STAGE.value == "writers":
            survived = survive_writers(_KILLS.value, folder)
        else:
            if _STAGE.value != "collect":
                import_tensorflow()
            survived = survive(stage(_STAGE.value), _KILLS.value, folder)
    seconds = time.monotonic() - begin
    print(json.dumps({"stage": _STAGE.value, **dataclasses.asdict(survived), "all": seconds}))
    return 0


if __name__ == "__main__":
    program.run(main)
