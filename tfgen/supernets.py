"""A supernet in its work directory: trained epoch by epoch, read again, asked and shared."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfgen import errors, seeds, workdir
from tfgen.bundle import SharedWeights
from tfgen.evidence.record import RecordStore
from tfgen.experiment import Experiment
from tfgen.learning import Say
from tfgen.space import catalog
from tfgen.space.layers import LayerSpec
from tfgen.space.lowering import lower
from tfgen.space.search_space import SearchSpace
from tfgen.training import augmentation
from tfgen.training import kept as keeping
from tfgen.training.datasets import Dataset, Split, at_once

if TYPE_CHECKING:  # TensorFlow is imported where it is needed
    from tfgen.evidence.inherited import Inheritance
    from tfgen.nets.aligned import Aligned
    from tfgen.nets.keras_compat import tf
    from tfgen.nets.network import Weights
    from tfgen.nets.supernet import Supernet
    from tfgen.training.float_training import FloatTraining
    from tfgen.training.losses import Teacher
    from tfgen.training.supernet_training import Progress, SupernetTraining

CHECKPOINT = "checkpoint.npz"
PROTOTYPE_SPACE, PROTOTYPE_WEIGHTS = "space.json", "weights.npz"
_CALIBRATION = 512  # images, on which a network estimates its statistics
_CALIBRATION_SEED = 0  # of how they are moved: equal for all networks of all supernets
_SEARCHED = 2_000  # images of the search split, by which networks are compared
_SHIPPED = 1_000  # images of the test split that ship with a bundle
_SHIPPED_VALIDATION = 500


def train(
    experiment: Experiment,
    work: workdir.WorkDir,
    dataset: Dataset,
    max_epochs: int | None,
    say: Say,
    strategy: tf.distribute.Strategy | None = None,
) -> int:
    """Trains the epochs that are missing; each whole one is kept.

    Args:
      experiment: which supernet.
      work: where it lies.
      dataset: what it is trained on.
      max_epochs: stop after so many, to go on another time; None for all.
      say: told how far it is.
      strategy: see `distribution`; its processes have one work directory. None for one device.

    Returns:
      How many epochs are missing still.

    Raises:
      UsageError: the work directory holds the supernet of another config, another process trains
        it, or processes differ.
      TfgenError: the training diverged.
    """
    from tfgen.training import distribution

    chosen = strategy or distribution.strategy(distribution.ONE)
    # One writes; all of a strategy's processes read.
    own = workdir.owning(work.supernet) if distribution.leads(chosen) else contextlib.nullcontext()
    with own:
        return _train(experiment, work, dataset, max_epochs, say, chosen)


def _train(
    experiment: Experiment,
    work: workdir.WorkDir,
    dataset: Dataset,
    max_epochs: int | None,
    say: Say,
    chosen: tf.distribute.Strategy,
) -> int:
    from tfgen.nets.keras_compat import tf
    from tfgen.training import distribution

    done = _epochs_done(experiment, work, dataset)
    recipe = experiment.supernet
    assert recipe is not None  # `_epochs_done` said so
    lent = None
    if done < recipe.epochs:
        lent, trained, missing = _lent(experiment, work, dataset, max_epochs, say, chosen)
        if missing or trained == max_epochs:
            return missing + recipe.epochs - done
        max_epochs = None if max_epochs is None else max_epochs - trained
    with chosen.scope():
        teacher = None if lent is None else _teaching(space_of(experiment, work), lent)
        training = _begun(experiment, work, dataset, lent, teacher)
    config = json.dumps([_config(experiment, work), dataset.fingerprint], sort_keys=True)
    distribution.check_equal(chosen, config, "config or data")
    distribution.check_equal(chosen, str(training.epoch), "epochs that are done")
    epochs = recipe.epochs
    if training.epoch:
        say(f"{training.epoch} of {epochs} epochs are done")

    def tell(progress: Progress) -> None:
        say(
            f"epoch {progress.epoch + 1}/{epochs}, step {progress.step}/{progress.steps}: "
            f"loss {progress.loss:.3f}, {progress.images_per_second:.0f} images/s, "
            f"{progress.remaining_seconds / 60:.0f} min left"
        )

    last = min(epochs, training.epoch + (max_epochs or epochs))
    leads = distribution.leads(chosen)
    tensorboard = str(work.root / "tensorboard")
    writer = (
        tf.summary.create_file_writer(tensorboard) if leads else tf.summary.create_noop_writer()
    )
    while training.epoch < last:
        loss = training.run_epoch(tell if leads else None)
        if not np.isfinite(loss):
            raise errors.TfgenError(
                f"epoch {training.epoch} diverged; {work.supernet} has the epochs before it; lower "
                "the learning rate in another work directory"
            )
        if not leads:
            continue
        scores = end_scores(experiment, training.supernet, dataset)
        told = {"loss": loss} | {f"{dataset.task.metric}/{n}": s for n, s in scores.items()}
        with writer.as_default(step=training.epoch):
            for name, value in told.items():
                tf.summary.write(name, np.float32(value), metadata=_scalars())
        say(", ".join(f"{name} {value:.4f}" for name, value in told.items()))
        with workdir.writing_folder(work.supernet) as folder:
            workdir.write_arrays(folder / CHECKPOINT, training.state())
            workdir.write_manifest(
                folder,
                config=_config(experiment, work),
                seed=experiment.seed,
                data={dataset.name: dataset.fingerprint},
                parents={},
            )
    distribution.check_equal(chosen, str(training.epoch), "epochs that are done")
    return epochs - training.epoch


def _lent(
    experiment: Experiment,
    work: workdir.WorkDir,
    dataset: Dataset,
    max_epochs: int | None,
    say: Say,
    chosen: tf.distribute.Strategy,
) -> tuple[Weights | None, int, int]:
    """What the largest network has before the others are trained, statistics too; None for none.

    A prototype has it; else the largest network is trained by itself, where the recipe says so.

    Returns:
      The weights, how many epochs were trained for them now, and how many are missing.

    Raises:
      UsageError: epochs are missing, and several devices would train them.
    """
    from tfgen.nets import network
    from tfgen.training import trainer

    stage = None if experiment.supernet is None else experiment.supernet.largest_alone
    if work.prototype.is_dir():
        return _by_layer(prototype_weights(work)), 0, 0
    if stage is None:
        return None, 0, 0
    training, wider, kept = _largest_training(experiment, work, dataset)
    before = training.epoch
    if before < stage.epochs and chosen.num_replicas_in_sync > 1:
        raise errors.UsageError(
            f"{work.largest}: the largest network is trained by itself first, on one device: run "
            f"with --strategy=one --max_epochs={stage.epochs - before}"
        )
    losses = keeping.epochs(training, stage.epochs, kept)
    held = searched(dataset)
    begin = time.monotonic()
    for loss in itertools.islice(losses, max_epochs):
        score = dataset.task.score(held.y, trainer.predict(training.model, held.x))
        seconds = time.monotonic() - begin
        left = seconds * (stage.epochs - training.epoch) / 60
        say(
            f"the largest alone, epoch {training.epoch}/{stage.epochs}: loss {loss:.4f}, "
            f"{dataset.task.metric} {score:.4f}, {seconds:.0f} s, {left:.0f} min left"
        )
        begin = time.monotonic()
    weights = wider.narrowed(network.weights_of(training.model, wider.layers))
    return weights, training.epoch - before, stage.epochs - training.epoch


def _largest_training(
    experiment: Experiment, work: workdir.WorkDir, dataset: Dataset
) -> tuple[FloatTraining, Aligned, keeping.Kept]:
    """That of the largest network by itself after its last whole epoch, and where it is kept.

    And how the network's weights are had from what is trained.
    """
    from tfgen.nets.supernet import Supernet
    from tfgen.training import float_training

    recipe, space = experiment.supernet, space_of(experiment, work)
    assert recipe is not None and recipe.largest_alone is not None  # callers look
    largest = _largest(space)
    at_random = Supernet(space, seeds.derive(experiment.seed, "supernet"), recipe.switchable)
    seed = seeds.derive(experiment.seed, "largest")
    stage, start = recipe.largest_alone, at_random.weights(largest)
    training, wider = float_training.of_layers(largest, dataset, stage, seed, start)
    told = {"space": space.name, "stage": dataclasses.asdict(stage), **wider.told}
    kept = keeping.Kept(work.largest, told, seed, {dataset.name: dataset.fingerprint})
    kept.restore(training)
    return training, wider, kept


def _scalars() -> Any:
    """What makes TensorBoard draw a number; `tf.summary.scalar` needs the package to write it."""
    from tfgen.nets.keras_compat import tf

    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "scalars"
    return metadata


def space_of(experiment: Experiment, work: workdir.WorkDir) -> SearchSpace:
    """The experiment's space: that of the work directory's prototype, or of the catalogue."""
    if not (work.prototype / workdir.MANIFEST).is_file():
        return catalog.get(experiment.space)
    workdir.read_manifest(work.prototype)
    space = SearchSpace.from_json(workdir.read_json(work.prototype / PROTOTYPE_SPACE))
    if space.name != experiment.space:
        raise errors.UsageError(f"{work.prototype}: is of another space than {experiment.space!r}")
    return space


def _config(experiment: Experiment, work: workdir.WorkDir) -> dict[str, Any]:
    """What decides a supernet's weights beside its data."""
    taught = {"teacher": "prototype"} if work.prototype.is_dir() else {}
    return experiment.supernet_json() | taught


def prototype_weights(work: workdir.WorkDir) -> dict[str, np.ndarray]:
    """What the prototype in the work directory has, by "layer/part" (`nets.network`)."""
    return workdir.read_arrays(work.prototype / PROTOTYPE_WEIGHTS)


def _by_layer(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    weights: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        layer, _, part = name.rpartition("/")
        weights.setdefault(layer, {})[part] = array
    return weights


def load(experiment: Experiment, work: workdir.WorkDir, dataset: Dataset) -> Supernet:
    """The trained supernet; raises UsageError where epochs are missing."""
    training = _begun(experiment, work, dataset)
    assert experiment.supernet is not None
    if training.epoch < experiment.supernet.epochs:
        raise errors.UsageError(
            f"{work.supernet}: {training.epoch} of {experiment.supernet.epochs} epochs; run "
            "train_supernet first"
        )
    return training.supernet


def _begun(
    experiment: Experiment,
    work: workdir.WorkDir,
    dataset: Dataset,
    lent: Weights | None = None,
    teacher: Teacher | None = None,
) -> SupernetTraining:
    """The training after its last whole epoch, or at its beginning with what was lent."""
    from tfgen.nets.supernet import Supernet
    from tfgen.training.supernet_training import SupernetTraining

    kept = _kept_config(experiment, work, dataset)
    assert experiment.supernet is not None  # `_kept_config` said so
    space, seed = space_of(experiment, work), experiment.seed
    switchable = experiment.supernet.switchable
    supernet = Supernet(space, seeds.derive(seed, "supernet"), switchable)
    if lent is not None:
        supernet.take(_largest(space), lent)
    training = SupernetTraining(supernet, dataset, experiment.supernet, seed, teacher)
    if kept:
        training.restore(workdir.read_arrays(work.supernet / CHECKPOINT))
    return training


def _epochs_done(experiment: Experiment, work: workdir.WorkDir, dataset: Dataset) -> int:
    """How many epochs of all networks are kept; raises as `_kept_config`."""
    if not _kept_config(experiment, work, dataset):
        return 0
    return int(workdir.read_arrays(work.supernet / CHECKPOINT)["epoch"])


def _kept_config(experiment: Experiment, work: workdir.WorkDir, dataset: Dataset) -> bool:
    """Whether a supernet is kept.

    Raises:
      UsageError: the config has none, or what is kept is of another config or other data.
    """
    config = json.loads(json.dumps(_config(experiment, work)))
    workdir.recover(work.supernet)
    if not (work.supernet / workdir.MANIFEST).is_file():
        return False
    manifest = workdir.read_manifest(work.supernet)
    if (manifest["config"], manifest["data"]) != (config, {dataset.name: dataset.fingerprint}):
        raise errors.UsageError(
            f"{work.supernet}: holds a supernet of another config or other data; use another "
            "work directory"
        )
    return True


# --- a trained one ------------------------------------------------------------------------------


def calibration(experiment: Experiment, dataset: Dataset) -> Split:
    """The examples on which networks estimate their statistics, moved as in training.

    What normalised a network there is of such images: by the statistics of images as they are,
    networks of a supernet that was trained with shifts of 4 pixels lose 2 to 4 points of CIFAR-10.

    Args:
      experiment: whose supernet it is.
      dataset: of whose training split they are.
    """
    recipe, train = experiment.supernet, dataset.train
    assert recipe is not None  # it has a supernet
    count = at_once(train.x, _CALIBRATION)
    x, y = train.x[:count], train.y[:count]
    if recipe.augments:
        random = seeds.stream(_CALIBRATION_SEED, "calibration")
        x, y = augmentation.examples(x, y, recipe.shift, recipe.flip, random)
    return Split(x, y)


def searched(dataset: Dataset) -> Split:
    """The images by which networks are compared, none of which is for training or for test."""
    return Split(dataset.validation.x[:_SEARCHED], dataset.validation.y[:_SEARCHED])


def evaluator(
    experiment: Experiment, supernet: Supernet, dataset: Dataset, store: RecordStore
) -> Inheritance:
    """Scores networks of the experiment's supernet on the search split."""
    from tfgen.evidence.inherited import Inheritance

    return Inheritance(
        store,
        supernet,
        dataset.fingerprint,
        dataset.task,
        searched(dataset),
        calibration(experiment, dataset).x,
    )


def end_scores(experiment: Experiment, supernet: Supernet, dataset: Dataset) -> dict[str, float]:
    """What the largest and the smallest network score on the search split, weights inherited."""
    from tfgen.training import supernet_training

    space, images = supernet.space, calibration(experiment, dataset).x
    return {
        name: supernet_training.score(
            supernet,
            lower(space, space.architecture(row)),
            dataset.task,
            searched(dataset),
            images,
        )
        for name, row in zip(("largest", "smallest"), supernet_training.ends(space), strict=True)
    }


def shared(
    experiment: Experiment,
    supernet: Supernet,
    dataset: Dataset,
    teacher: Mapping[str, np.ndarray] | None = None,
) -> SharedWeights:
    """What a bundle needs for its networks to inherit their weights, without the data set.

    Args:
      experiment: has how the supernet was trained, and how a delivery goes on.
      supernet: whose weights they are.
      dataset: of which a few examples ship.
      teacher: see `SharedWeights`.
    """
    variables = {name: variable.numpy() for name, variable in supernet.variables.items()}

    def first(split: Split, most: int) -> Split:
        count = at_once(split.x, most)
        return Split(split.x[:count], split.y[:count])

    few = dataclasses.replace(
        dataset,
        name=f"{dataset.name}_shipped",
        train=calibration(experiment, dataset),
        validation=first(dataset.validation, _SHIPPED_VALIDATION),
        test=first(dataset.test, _SHIPPED),
    )
    assert experiment.fine_tuning is not None  # an experiment checks itself
    return SharedWeights(variables, few, experiment.fine_tuning, teacher)


def inherited(
    space: SearchSpace, own: SharedWeights, layers: Sequence[LayerSpec]
) -> dict[str, dict[str, np.ndarray]]:
    """By layer of a network, its part of the shared weights; see `Supernet.weights`.

    Raises:
      CorruptFileError: the weights are of another space.
    """
    return _assigned(space, own).weights(layers)


def teacher(space: SearchSpace, own: SharedWeights) -> Teacher:
    """Who teaches deliveries: the largest network, with weights of its own or with the shared ones.

    Raises:
      CorruptFileError: the weights are of another space.
    """
    if own.teacher is not None:
        return taught_by(space, own.teacher)
    return largest_of(_assigned(space, own))


def largest_of(supernet: Supernet) -> Teacher:
    """The largest network of a supernet, normalised by each batch's statistics as in training."""
    largest = _largest(supernet.space)
    return lambda x: supernet.outputs(largest, x, quantized=False)


def taught_by(space: SearchSpace, weights: Mapping[str, np.ndarray]) -> Teacher:
    """The largest network with weights and statistics of its own, by "layer/part" (`nets.network`).

    Raises:
      CorruptFileError: they are of another network.
    """
    try:
        return _teaching(space, _by_layer(weights))
    except (KeyError, ValueError) as error:
        raise errors.CorruptFileError(
            f"the teacher is not the largest network of {space.name!r} ({error})"
        ) from error


def _teaching(space: SearchSpace, weights: Weights) -> Teacher:
    """The same by layer; raises KeyError or ValueError."""
    from tfgen.nets import network
    from tfgen.nets.keras_compat import tf

    model = network.with_weights(_largest(space), space.input_shape, weights)
    return tf.function(lambda x: model(x, training=False))


def _largest(space: SearchSpace) -> list[LayerSpec]:
    from tfgen.training import supernet_training

    return lower(space, space.architecture(supernet_training.ends(space)[0]))


def _assigned(space: SearchSpace, own: SharedWeights) -> Supernet:
    """A supernet that has these weights; raises CorruptFileError."""
    from tfgen.nets.supernet import SCALE, Supernet

    scales = [own.variables[name] for name in own.variables if name.endswith(f"/{SCALE}")]
    supernet = Supernet(space, seed=0, switchable=any(len(scale) > 1 for scale in scales))
    supernet.assign(own.variables)
    return supernet
