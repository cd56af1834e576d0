"""From a user's own network to a bundle whose networks are smaller ones (generative synthesis).

prototype/      the model as it was read: its space, its weights
supernet/       its weights, trained a little so that networks with some of its channels work
records.db      networks that were generated and scored
generator/      the generator that learned from them
gains.json      what training to the end adds to inherited weights
gains/          these trainings in float, after their last epoch
bundle/         what answers, as any other bundle does
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfgen import bundle as bundles
from tfgen import errors, generators, seeds, supernets, workdir
from tfgen.cost.cost_model import CostModel
from tfgen.cost.expected_cost import ExpectedCost
from tfgen.cost.metrics import PerformanceScale
from tfgen.evidence.reactions import Reactions
from tfgen.evidence.record import Record, RecordStore
from tfgen.evidence.surrogate import SurrogateConfig
from tfgen.experiment import Experiment
from tfgen.generators.base import Evidence
from tfgen.generators.gensynth import COSTS, GensynthConfig, GensynthGenerator
from tfgen.learning import Say
from tfgen.nets import keras_file
from tfgen.space.architecture import Architecture
from tfgen.space.lowering import lower
from tfgen.space.prototype import Prototype
from tfgen.space.search_space import SearchSpace
from tfgen.training import fitting
from tfgen.training.datasets import Dataset, Split, at_once
from tfgen.training.recipe import LARGEST_SHIFT, FloatStage, Recipe, SupernetRecipe
from tfgen.training.tasks import VOID

if TYPE_CHECKING:  # TensorFlow is imported where it is needed
    from tfgen.evidence.inherited import Inheritance
    from tfgen.nets.supernet import Supernet

GAINS = "gains.json"
_GENERATOR, _STATE = "generator", "state.npz"
_CYCLES = 1  # version of what a generator learns: to be raised where a kept one is to be forgotten
_GAIN_TRAININGS = "gains"
METHODS = METHOD, _BASELINE = ("gensynth", "random")
_KNOWN = 1.5  # times the share of the most frequent class, of a network that knows something
_LITTLE = 0.05  # R2 or mAP of a network that knows hardly anything
_STEPS_AN_EPOCH, _SMALLEST_BATCH = 50, 8
_MOVED = 1 / 8  # of an image's shorter side: the 4 of 32 pixels of He et al. (2016, section 4.2)
# Of Adam, where weights were trained in float before: there is little to move. A ResNet-20 has
# 90.7 % in float and rounded to 8 bits, 90.5 after 300 steps at 3e-5.
_ROUNDING_RATE = 1e-5
TEMPERATURE = 4.0  # of distillation, as it was measured on CIFAR-10 and CamVid
_STIMULI = 256  # examples by which networks are probed
_GAIN_PLACES = (0.75, 0.25)  # in the range of requirements, where gains are measured
_SPACE, _WEIGHTS = supernets.PROTOTYPE_SPACE, supernets.PROTOTYPE_WEIGHTS
# Told a space and what its prototype scores; raises what is to end everything.
Check = Callable[[SearchSpace, float], None]


@dataclasses.dataclass(frozen=True)
class PrototypeConfig:
    """How a prototype becomes a bundle.

    Attributes:
      adaptation: trains the prototype's weights for all networks that have some of its channels,
        taught by the prototype.
      fine_tuning: trains one of these networks to its end; where it distils, the prototype teaches.
        By how much images are moved in both follows from their size, see `experiment`.
      synthesis: how generator and inquisitor learn.
      compact: whether convolutions may have weights of fewer than 8 bits, on slow kernels.
      seed: of everything.
    """

    adaptation: SupernetRecipe = dataclasses.field(
        default_factory=lambda: SupernetRecipe(
            epochs=4,
            learning_rate=0.02,
            weight_decay=1e-4,
            float_share=0.0,
            largest_share=0.25,
            switchable=False,
            distillation=1.0,
            shift=0,
        )
    )
    fine_tuning: Recipe = dataclasses.field(
        default_factory=lambda: Recipe(
            steps=2_500,
            learning_rate=2e-3,
            warmup_steps=100,
            flip=True,
        )
    )
    synthesis: GensynthConfig = dataclasses.field(default_factory=GensynthConfig)
    compact: bool = False
    seed: int = 2018

    def experiment(self, space: SearchSpace, dataset: Dataset) -> Experiment:
        """The same as an experiment's.

        Images are moved by an eighth of their shorter side, 16 pixels at most; others are not. Few
        examples are shown a few at a time, so that an epoch has its steps; the rate of gradient
        descent falls with the batch (Goyal et al. 2017), that of a float stage, which ends at 0
        wherever it began, with its root (Krizhevsky 2014).
        """
        adaptation, fine_tuning = self.adaptation, self.fine_tuning
        if len(space.input_shape) == 3:
            moved = {"shift": min(round(min(space.input_shape[:2]) * _MOVED), LARGEST_SHIFT)}
        elif fine_tuning.light or fine_tuning.zoom:
            raise errors.UsageError(f"{dataset.name!r} has no images to light or to scale")
        else:
            moved = {"shift": 0, "flip": False}
        adaptation = dataclasses.replace(adaptation, **moved)
        fine_tuning = dataclasses.replace(fine_tuning, **moved)
        most = max(len(dataset.train) // _STEPS_AN_EPOCH, _SMALLEST_BATCH)
        if adaptation.batch_size > most:
            rate = adaptation.learning_rate * most / adaptation.batch_size
            adaptation = dataclasses.replace(adaptation, batch_size=most, learning_rate=rate)
        fine_tuning = dataclasses.replace(fine_tuning, batch_size=min(fine_tuning.batch_size, most))
        stage = scratch = fine_tuning.float_stage
        if stage is not None:
            size = min(stage.batch_size, most)
            rate = stage.learning_rate * math.sqrt(size / stage.batch_size)
            stage = dataclasses.replace(stage, batch_size=size, learning_rate=rate, **moved)
            fine_tuning = dataclasses.replace(fine_tuning, float_stage=stage)
            scratch = dataclasses.replace(stage, distillation=0.0)  # there is no teacher then
        return Experiment(
            space.name,
            space.name,
            dataset.name,
            self.synthesis.cycles * self.synthesis.networks,
            0,
            dataclasses.replace(fine_tuning, distillation=0.0, float_stage=scratch),
            SurrogateConfig(),  # none is fitted
            {METHOD: self.synthesis, _BASELINE: generators.get(_BASELINE).config()},
            self.seed,
            supernet=adaptation,
            fine_tuning=fine_tuning,
        )


def after_float(fine_tuning: Recipe, epochs: int, bfloat16: bool) -> Recipe:
    """The same steps after so many epochs in float, from which rounding has little to move."""
    stage = FloatStage(
        epochs,
        flip=fine_tuning.flip,
        light=fine_tuning.light,
        zoom=fine_tuning.zoom,
        distillation=fine_tuning.distillation,
        temperature=fine_tuning.temperature,
        bfloat16=bfloat16,
    )
    return dataclasses.replace(fine_tuning, learning_rate=_ROUNDING_RATE, float_stage=stage)


def make(
    source: str,
    dataset: Dataset,
    work: workdir.WorkDir,
    config: PrototypeConfig,
    say: Say,
    check: Check | None = None,
    graph: keras_file.KerasGraph | None = None,
) -> bundles.Bundle:
    """Everything from a model to a bundle; what is in the work directory is not made again.

    Args:
      source: see `keras_file.read`.
      dataset: what the networks are for.
      work: of this prototype alone.
      config: how.
      say: told what is done.
      check: told the space and what the prototype scores on the test split, before the hours that
        networks take; raises what is to end that.
      graph: of the source, where it was read already (`opened`).

    Raises:
      UsageError: the model does not fit the data, nothing of it can be cut, or the work directory
        is of another one.
      CorruptFileError: the model cannot be read; says why and names the layer.
    """
    space = read(source, dataset, work, config, say, graph)
    if check is not None:
        check(space, float(workdir.read_manifest(work.prototype)["config"]["test"]))
    experiment = config.experiment(space, dataset)
    made = _made(experiment, dataset, work)
    if made is not None:
        return made
    for metric in COSTS:
        ExpectedCost(space, metric)  # says so where it cannot, before hours of work
    supernets.train(experiment, work, dataset, None, say)
    supernet = supernets.load(experiment, work, dataset)
    with RecordStore(work.records, space) as store, store.owned():
        score = supernets.evaluator(experiment, supernet, dataset, store)
        generator = _generator(experiment, work, supernet, dataset, score, say)
        gains = _gains(experiment, work, supernet, dataset, score, generator, say)
        records = list(score.known.values())
    scale = PerformanceScale.of([record.metric for record in records])
    scored = space.choices([record.architecture for record in records])
    surrogate = generator.surrogate(scale).with_gain(gains)
    surrogate = surrogate.knowing(scored, np.array([record.metric for record in records]))
    tuning = experiment.fine_tuning
    assert tuning is not None  # a prototype's has it
    teacher = supernets.prototype_weights(work) if tuning.distils else None
    bundle = bundles.Bundle(
        space.name,
        space,
        dataset.task,
        dataset.name,
        dataset.fingerprint,
        experiment.recipe,
        surrogate,
        {METHOD: generator, _BASELINE: generators.get(_BASELINE).restore(space, {})},
        shared=supernets.shared(experiment, supernet, dataset, teacher),
    )
    bundles.save(
        work.bundle,
        bundle,
        config=experiment.to_json(),
        seed=config.seed,
        reached={
            f"{dataset.task.metric} of the prototype, trained again, on test": gains[0, 1],
            f"{dataset.task.metric} of a smaller network on test": gains[1:, 1].max(),
        },
        parents={
            path.name: workdir.sha256(path)
            for path in (work.prototype / workdir.MANIFEST, work.records, work.root / GAINS)
        },
    )
    return bundles.load(work.bundle)


def _made(experiment: Experiment, dataset: Dataset, work: workdir.WorkDir) -> bundles.Bundle | None:
    """The bundle that was made of the same prototype, with the same config and data."""
    if not (work.bundle / workdir.MANIFEST).is_file():
        return None
    manifest = workdir.read_manifest(work.bundle)
    config = {k: v for k, v in manifest["config"].items() if k != "answers"}
    prototype = workdir.sha256(work.prototype / workdir.MANIFEST)
    same = (
        config == json.loads(json.dumps(experiment.to_json()))
        and manifest["data"] == {dataset.name: dataset.fingerprint}
        and manifest["parents"].get(workdir.MANIFEST) == prototype
    )
    if not same:
        return None
    bundle = bundles.load(work.bundle)
    assert bundle.shared is not None  # a prototype's
    # Older ones know what networks score by the statistics of other images.
    images, known = supernets.calibration(experiment, dataset).x, bundle.shared.examples.train.x
    alike = images.shape == known.shape and np.allclose(images, known, rtol=0, atol=1e-6)
    return bundle if alike else None


def opened(source: str, work: workdir.WorkDir) -> keras_file.KerasGraph | None:
    """A model as it was read; None of a file whose reading the work directory has already."""
    file = keras_file.file_of(source)
    known = file.suffix != ".py" and (work.prototype / workdir.MANIFEST).is_file()
    return None if known else keras_file.read(source)


def read(
    source: str,
    dataset: Dataset,
    work: workdir.WorkDir,
    config: PrototypeConfig,
    say: Say,
    graph: keras_file.KerasGraph | None = None,
) -> SearchSpace:
    """Reads a model into `work.prototype`, or what is there; arguments and errors as in `make`."""
    file = keras_file.file_of(source)
    sha256 = workdir.sha256(file)
    function = source.rpartition(":")[2] if file.suffix == ".py" else ""
    told = {"sha256": sha256, "function": function, "compact": config.compact}
    if function:  # what it returns may be another model than before
        graph = graph or keras_file.read(source)
        told["returned"] = graph.digest
    if (work.prototype / workdir.MANIFEST).is_file():
        known = workdir.read_manifest(work.prototype)
        own = known["config"]
        differ = [name for name in told if own.get(name) != told[name]]
        if "returned" not in own and differ == ["returned"]:
            differ = []  # of an older tfgen
        if known["data"] != {dataset.name: dataset.fingerprint}:
            differ.append("data")
        if "test" not in known["config"]:  # of an older tfgen
            differ.append("what was scored")
        if differ:
            raise errors.UsageError(
                f"{work.root}: is of another prototype ({', '.join(differ)} differ); use another "
                "--output_dir"
            )
        return SearchSpace.from_json(workdir.read_json(work.prototype / _SPACE))
    from tfgen.deployment import export
    from tfgen.nets import network, prototype_network, pruning
    from tfgen.training import supernet_training, trainer

    found = prototype_network.read(graph or keras_file.read(source), source)
    for remark in found.remarks:
        say(f"note: {remark}")
    fitting.check(found.layers, dataset, source)
    searched = supernets.searched(dataset)
    model = network.with_weights(found.layers, found.input_shape, found.weights)
    score, tested = (
        dataset.task.score(split.y, trainer.predict(model, split.x))
        for split in (searched, dataset.test)
    )
    say(
        f"{source} has {dataset.task.metric} {score:.4f} on the search split of {dataset.name}, "
        f"{tested:.4f} on its test split"
    )
    if score < _guessed(dataset):
        raise errors.UsageError(
            f"{source}: has {dataset.task.metric} {score:.4f}, little more than guesses have; the "
            f"inputs of {dataset.name!r} are {dataset.preprocessing.get('input', 'as they are')}"
        )
    prototype = Prototype(found.layers, found.input_shape)
    for layer, reason in prototype.whole.items():
        say(f"note: layer {layer!r} is left whole: {reason}")
    name = re.sub(r"\W", "_", function or file.stem)
    space = prototype.space(f"{name}_{sha256[:8]}", compact=config.compact)
    if not space.decisions:
        raise errors.UsageError(f"{source}: nothing of it can be cut or have fewer bits")
    for row in supernet_training.ends(space):  # a file refuses what no runtime executes
        export.check_bits(lower(space, space.architecture(row)), space.bit_policy)
    order = pruning.importance(prototype, found.weights)
    weights = pruning.pruned(prototype, found.weights, found.layers, order)
    with workdir.writing_folder(work.prototype) as folder:
        workdir.write_json(folder / _SPACE, space.to_json())
        workdir.write_arrays(
            folder / _WEIGHTS,
            {f"{layer}/{part}": v for layer, own in weights.items() for part, v in own.items()},
        )
        workdir.write_manifest(
            folder,
            config={**told, "score": score, "test": tested},
            seed=config.seed,
            data={dataset.name: dataset.fingerprint},
            parents={file.name: sha256},
        )
    say(
        f"{source}: {len(found.layers)} layers, {len(space.decisions)} decisions, "
        f"{space.size():.2g} networks"
    )
    return space


def _guessed(dataset: Dataset) -> float:
    """A score that a network reaches which knows hardly anything of the data."""
    if dataset.task.loss != "softmax_cross_entropy":
        return _LITTLE
    told = dataset.train.y[dataset.train.y != VOID]
    share = float(np.bincount(told).max()) / told.size
    return min(_KNOWN * share, 0.5 * (1.0 + share))


def _generator(
    experiment: Experiment,
    work: workdir.WorkDir,
    supernet: Supernet,
    dataset: Dataset,
    score: Inheritance,
    say: Say,
) -> GensynthGenerator:
    """Runs the cycles of generative synthesis, or reads what they ended with.

    Kept, because the cycles of another machine, or of as many threads as it has, end with another
    one: reactions are sums in float. Gains and deliveries are of the networks that this one makes.
    """
    config = dataclasses.asdict(experiment.methods[METHOD])
    told = {"cycles": _CYCLES, "method": config, "recipe": score.recipe}
    folder, data = work.root / _GENERATOR, {dataset.name: dataset.fingerprint}
    workdir.recover(folder)
    if score.known and (folder / workdir.MANIFEST).is_file():
        known = workdir.read_manifest(folder)
        if workdir.is_made_by(known, config=told, seed=experiment.seed, data=data):
            with contextlib.suppress(*errors.MALFORMED):  # an older tfgen's is made again
                return GensynthGenerator(supernet.space, workdir.read_arrays(folder / _STATE))
    generator = _learned(experiment, supernet, dataset, score, say)
    with workdir.writing_folder(folder) as fresh:
        workdir.write_arrays(fresh / _STATE, generator.state())
        workdir.write_manifest(fresh, config=told, seed=experiment.seed, data=data, parents={})
    return generator


def _learned(
    experiment: Experiment, supernet: Supernet, dataset: Dataset, score: Inheritance, say: Say
) -> GensynthGenerator:
    """Runs the cycles of generative synthesis."""
    from tfgen.training import probing

    space = supernet.space
    count = at_once(dataset.train.x, _STIMULI)
    stimuli = Split(dataset.train.x[:count], dataset.train.y[:count])

    def evaluate(architectures: Sequence[Architecture], seed: int) -> list[Record]:
        records = score(architectures, seed)
        say(f"{len(score.known)} networks are scored, the last {records[-1].metric:.4f}")
        return records

    whole = probing.probe(supernet, lower(space, space.point({})), stimuli, dataset.task)

    def probe(architectures: Sequence[Architecture]) -> list[Reactions]:
        return [
            probing.probe(supernet, lower(space, one), stimuli, dataset.task, whole.lost)
            for one in architectures
        ]

    evidence = Evidence(space, CostModel(space), evaluate=evaluate, probe=probe)
    method = generators.get(METHOD)
    generator = method.fit(evidence, experiment.methods[METHOD], experiment.seed)
    say(f"generator {METHOD} fitted")
    assert isinstance(generator, GensynthGenerator)
    return generator


def _gains(
    experiment: Experiment,
    work: workdir.WorkDir,
    supernet: Supernet,
    dataset: Dataset,
    score: Inheritance,
    generator: GensynthGenerator,
    say: Say,
) -> np.ndarray:
    """What networks score with inherited weights, and what they reach trained [networks, 2].

    Of the prototype, trained and rounded as all others are: what it has itself is of a training
    that may know more or less. And of networks for requirements within the range. Kept in a file,
    and resumed from it.

    Contracts are measured on the test split, which may be harder than the search split, and not
    alike for all: on CamVid's the prototype loses 9 points and a quarter of it 6. So what is
    reached is told for the test split. None of these trainings is delivered, and no other network
    is scored there before its contract.
    """
    from tfgen.evidence import inherited
    from tfgen.training import trainer

    assert experiment.fine_tuning is not None  # a prototype's has it
    path = work.root / GAINS
    known = workdir.read_json(path) if path.is_file() else {}
    if not isinstance(known, dict):
        raise errors.CorruptFileError(f"{path}: holds no gains")
    space = supernet.space
    rows = generator.sample(np.array(_GAIN_PLACES), experiment.seed)
    networks = [space.point({}), *map(space.architecture, rows)]
    gains = []
    distils = experiment.fine_tuning.distils
    teacher = supernets.taught_by(space, supernets.prototype_weights(work)) if distils else None
    # What these trainings start from, and how they go on.
    common = (
        f"{inherited.of_weights(supernet)}-{experiment.fine_tuning.fingerprint}-{trainer.VERSION}"
    )
    for number, architecture in enumerate(networks, start=1):
        key = f"{architecture.fingerprint}-{common}"
        (record,) = score([architecture])
        if key not in known:
            layers = lower(space, architecture)
            trained = trainer.train(
                layers,
                dataset,
                experiment.fine_tuning,
                seeds.derive(experiment.seed, "gain", architecture.fingerprint),
                weights=supernet.weights(layers),
                teacher=teacher,
                kept=work.root / _GAIN_TRAININGS / architecture.fingerprint,
            )
            outputs = trainer.predict(trained.model, dataset.test.x)
            known[key] = {
                "validation": trained.metric,
                "test": dataset.task.score(dataset.test.y, outputs),
            }
            workdir.write_json(path, known)
        reached = known[key]["test"]
        say(
            f"gain {number}/{len(networks)}: {record.metric:.4f} inherited, {reached:.4f} on test "
            "when trained"
        )
        gains.append([record.metric, reached])
    return np.array(gains)
