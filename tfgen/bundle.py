"""Bundle: everything that answers budgets for one space and task, in one folder with a manifest.

manifest.json      config, seed, versions, data, parents, sha256 of each file below
space.json         the search space
surrogate.npz      the encoder
generators/*.npz   one trained generator for each method
supernet.npz       weights that its networks share, where they do
teacher.npz        of the largest of them, where others teach than it shares; see SharedWeights
examples.npz       images for the statistics of networks that inherit them; a few to score them
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfgen import errors, generators, seeds, workdir
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.evidence.insight import InsightSurrogate
from tfgen.evidence.surrogate import Surrogate
from tfgen.generators.base import Generator
from tfgen.space.lowering import ACTIVATION_BITS
from tfgen.space.search_space import SearchSpace
from tfgen.training import tasks
from tfgen.training.datasets import Dataset, Split
from tfgen.training.recipe import Recipe

ZOO = pathlib.Path(__file__).parent / "zoo"
_SPACE, _SURROGATE, _GENERATORS = "space.json", "surrogate.npz", "generators"
_SUPERNET, _TEACHER, _EXAMPLES = "supernet.npz", "teacher.npz", "examples.npz"
_FIRST = "cifar10"  # answers where several bundles could
_SPLITS = ("train", "validation", "test")
_PROBES = (3, 5)  # networks: arrays of another shape that fit to one number do not fit to the other


@dataclasses.dataclass(frozen=True)
class SharedWeights:
    """What a bundle's networks inherit, and what delivers them without the data set.

    Attributes:
      variables: of the supernet (`nets.supernet`), by name.
      examples: some of its data set: the train split has the images for statistics, the others a
        few to score a delivery on.
      fine_tuning: how a delivery goes on from inherited weights.
      teacher: weights with which the largest network teaches deliveries, where the recipe distils,
        by "layer/part" as `nets.network` has them: a prototype's own are better than those that it
        shares. None for `variables`.
    """

    variables: Mapping[str, np.ndarray]
    examples: Dataset
    fine_tuning: Recipe
    teacher: Mapping[str, np.ndarray] | None = None

    def save(self, folder: pathlib.Path) -> None:
        workdir.write_arrays(folder / _SUPERNET, self.variables)
        if self.teacher is not None:
            workdir.write_arrays(folder / _TEACHER, self.teacher)
        arrays = {}
        for name in _SPLITS:
            split = getattr(self.examples, name)
            arrays |= {f"{name}_x": _packed(split.x), f"{name}_y": _narrow(split.y)}
        workdir.write_arrays(folder / _EXAMPLES, arrays)

    @classmethod
    def load(
        cls, folder: pathlib.Path, dataset: str, task: tasks.Task, answers: Mapping[str, Any]
    ) -> SharedWeights:
        """Reads what `save` wrote, and of the manifest's answers what `answers` is about.

        Raises:
          CorruptFileError: a file is missing or damaged.
          LookupError: an array or an answer is missing.
          TypeError: an answer is of another kind.
          ValueError: arrays do not belong together.
        """
        arrays = _finite(folder / _EXAMPLES)
        splits = [
            Split(_unpacked(arrays[f"{name}_x"]), _wide(arrays[f"{name}_y"])) for name in _SPLITS
        ]
        examples = Dataset(f"{dataset}_shipped", task, *splits, dict(answers["preprocessing"]))
        tuning = Recipe.from_json(answers["fine_tuning"])
        variables = _finite(folder / _SUPERNET)
        teacher = _finite(folder / _TEACHER) if answers.get("teacher") else None
        if teacher is not None and _kernels(teacher) != _kernels(variables):
            raise ValueError(f"{_TEACHER} has not the kernels of {_SUPERNET}")
        return cls(variables, examples, tuning, teacher)

    def answers(self) -> dict[str, Any]:
        """What the manifest tells of it."""
        return {
            "preprocessing": dict(self.examples.preprocessing),
            "fine_tuning": self.fine_tuning.to_json(),
            **({} if self.teacher is None else {"teacher": True}),
        }


def _kernels(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Of layers, how many numbers their kernels have."""
    return {name: array.size for name, array in arrays.items() if name.endswith("/kernel")}


def _packed(x: np.ndarray) -> np.ndarray:
    """Images in 0..1 as the pixels that they were; others as they are."""
    pixels = np.rint(x * 255)
    exact = pixels.min() >= 0 and pixels.max() <= 255
    if exact and np.allclose(pixels / np.float32(255), x, rtol=0, atol=1e-6):
        return pixels.astype(np.uint8)
    return x


def _narrow(y: np.ndarray) -> np.ndarray:
    """Classes in as few bytes as they take; numbers as they are."""
    if y.dtype.kind != "i":
        return y
    return y.astype(np.promote_types(np.min_scalar_type(y.min()), np.min_scalar_type(y.max())))


def _wide(y: np.ndarray) -> np.ndarray:
    return y.astype(np.int64) if y.dtype.kind in "iu" else y


def _unpacked(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A trained answerer.

    Attributes:
      name: the folder's name.
      space: what is generated.
      task: what the networks are for.
      dataset: name of the data set that the evidence is of.
      dataset_fingerprint: of its arrays.
      recipe: how the records were trained, where there are no shared weights; deliveries from
        scratch are trained alike.
      surrogate: the encoder, or what was learned of a prototype in its place.
      generators: by method; the first answers where none is named.
      manifest_sha256: of the manifest it was read from; empty for one that is not written yet.
      activation_bits: of every network that is answered; 16 are computed by slow kernels.
      io: "float", or "int8" for files whose input and output are integers.
      shared: weights that its networks may inherit; None where each is trained by itself.
    """

    name: str
    space: SearchSpace
    task: tasks.Task
    dataset: str
    dataset_fingerprint: str
    recipe: Recipe
    surrogate: Surrogate | InsightSurrogate
    generators: Mapping[str, Generator]
    manifest_sha256: str = ""
    activation_bits: int = ACTIVATION_BITS
    io: str = "float"
    shared: SharedWeights | None = None

    @functools.cached_property
    def cost_model(self) -> CostModel:
        return CostModel(self.space, self.activation_bits, self.io)

    @property
    def default_method(self) -> str:
        """Whose generator answers where nobody names one."""
        return next(iter(self.generators))

    @property
    def tuned(self) -> bool:
        """Whether it predicts networks that go on from the weights which they inherit."""
        return isinstance(self.surrogate, InsightSurrogate) and self.surrogate.tuned

    def generator(self, method: str) -> Generator:
        """The method's generator; raises UsageError that names those of this bundle."""
        generators.get(method)
        if method not in self.generators:
            known = ", ".join(sorted(self.generators))
            raise errors.UsageError(
                f"bundle {self.name!r} has no generator of method {method!r}; it has: {known}"
            )
        return self.generators[method]


def save(
    path: pathlib.Path,
    bundle: Bundle,
    *,
    config: Mapping[str, Any],
    seed: int,
    parents: Mapping[str, str],
    reached: Mapping[str, float] | None = None,
) -> None:
    """Writes a bundle whole or not at all; an older one is replaced at the end.

    Args:
      path: the folder.
      bundle: what to write.
      config: what made it, kept in the manifest.
      seed: it was made with.
      parents: name -> sha256 of the files that it was made from.
      reached: what its networks score, by a name that says which; for who reads the manifest.
    """
    with workdir.writing_folder(path) as folder:
        workdir.write_json(folder / _SPACE, bundle.space.to_json())
        workdir.write_arrays(folder / _SURROGATE, bundle.surrogate.state(), compressed=True)
        for method, generator in bundle.generators.items():
            workdir.write_arrays(folder / _GENERATORS / f"{method}.npz", generator.state())
        if bundle.shared is not None:
            bundle.shared.save(folder)
        answers = {
            "task": bundle.task.name,
            "dataset": bundle.dataset,
            "recipe": bundle.recipe.to_json(),
            "methods": list(bundle.generators),
        }
        if bundle.shared is not None:
            answers |= bundle.shared.answers()
        if reached:
            answers["reached"] = {name: round(score, 6) for name, score in reached.items()}
        workdir.write_manifest(
            folder,
            config={**config, "answers": answers},
            seed=seed,
            data={bundle.dataset: bundle.dataset_fingerprint},
            parents=parents,
        )


def load(path: pathlib.Path) -> Bundle:
    """Reads a bundle, every file verified by its hash.

    Raises:
      CorruptFileError: a file is missing, damaged or not what the manifest lists.
      NewerFileError: a later tfgen wrote it.
    """
    manifest = workdir.read_manifest(path)
    where = path / workdir.MANIFEST
    try:
        answers = manifest["config"]["answers"]
        ((dataset, fingerprint),) = manifest["data"].items()
        task = tasks.get(answers["task"])
        recipe = Recipe.from_json(answers["recipe"])
        methods = {name: generators.get(name) for name in answers["methods"]}
        if not methods:
            raise ValueError("no method answers")
        needed = {_SPACE, _SURROGATE, *(f"{_GENERATORS}/{name}.npz" for name in methods)}
        if _SUPERNET in manifest["files"]:
            needed |= {_EXAMPLES, *([_TEACHER] if answers.get("teacher") else [])}
        if not needed <= set(manifest["files"]):
            raise KeyError(f"files {sorted(needed - set(manifest['files']))}")
        where = path / _SPACE
        space = SearchSpace.from_json(workdir.read_json(where, workdir.SMALL_JSON_BYTES))
        probes = [space.sample(count, seeds.stream(0, "probe")) for count in _PROBES]
        CostModel(space).costs(probes[-1])
        where = path / _SURROGATE
        surrogate = _predictor(space, _finite(where))
        for probe in probes:
            if not np.isfinite(surrogate.predict(probe).low).all():
                raise ValueError("predicts no number")
        restored = {}
        for name, method in methods.items():
            where = path / _GENERATORS / f"{name}.npz"
            restored[name] = method.restore(space, _finite(where))
            for count in _PROBES:
                restored[name].propose([Budget({"macs": 1.0})], count, 0)
        shared = None
        if _SUPERNET in manifest["files"]:
            where = path / _SUPERNET
            shared = SharedWeights.load(path, dataset, task, answers)
            where = path / _EXAMPLES
            _check_examples(space, shared.examples)
    except (*errors.MALFORMED, errors.UsageError) as error:
        raise errors.CorruptFileError(f"{where}: is no part of a bundle ({error})") from error
    return Bundle(
        path.name,
        space,
        task,
        dataset,
        fingerprint,
        recipe,
        surrogate,
        restored,
        workdir.sha256(path / workdir.MANIFEST),
        shared=shared,
    )


def _predictor(space: SearchSpace, state: Mapping[str, np.ndarray]) -> Surrogate | InsightSurrogate:
    """What `save` wrote the state of."""
    return InsightSurrogate(space, state) if "costs" in state else Surrogate(space, state)


def _check_examples(space: SearchSpace, examples: Dataset) -> None:
    """Raises ValueError for examples that networks of the space do not take, or not of the task."""
    for name in _SPLITS:
        split: Split = getattr(examples, name)
        targets = {  # of a task that is not here, anything
            tasks.REGRESSION: (split.y.dtype.kind == "f", (1,)),
            tasks.CLASSIFICATION: (split.y.dtype.kind == "i", ()),
            tasks.SEGMENTATION: (split.y.dtype.kind == "i", split.x.shape[1:-1]),
        }
        kind, shape = targets.get(examples.task, (True, split.y.shape[1:]))
        if split.x.shape[1:] != space.input_shape or not kind or split.y.shape[1:] != shape:
            raise ValueError(
                f"{name}: {split.x.shape[1:]} with {split.y.dtype} {split.y.shape[1:]} are no "
                f"examples of {examples.task.name} on {space.input_shape}"
            )


def _finite(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays of a .npz; raises ValueError for NaN and infinity among them."""
    arrays = workdir.read_arrays(path)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"array {name!r} of {path.name} has numbers that are not finite")
    return arrays


def default(metric: str | None) -> pathlib.Path:
    """The zoo's bundle for a quality that is asked for, or for none."""
    for name in sorted(_zoo(), key=lambda name: (name != _FIRST, name)):
        manifest = workdir.read_json(ZOO / name / workdir.MANIFEST)  # `load` verifies the one
        if metric in (None, tasks.get(manifest["config"]["answers"]["task"]).metric):
            return ZOO / name
    raise errors.UsageError(f"no bundle of the zoo is judged by {metric}: give --bundle")


def _zoo() -> list[str]:
    return sorted(path.parent.name for path in ZOO.glob(f"*/{workdir.MANIFEST}"))


def find(name: str) -> pathlib.Path:
    """The folder of a bundle of the zoo, or the folder itself; raises UsageError."""
    known = _zoo()
    if name in known:
        return ZOO / name
    folder = workdir.user_path(name)
    if (folder / workdir.MANIFEST).is_file():
        return folder
    raise errors.UsageError(
        f"unknown bundle {name!r}; known: {', '.join(known)}, or the folder of a bundle"
    )
