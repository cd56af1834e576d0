"""Trains one network, as the population trainer trains hundreds; saves and loads it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfgen import errors, seeds, workdir
from tfgen.nets import network
from tfgen.nets.keras_compat import keras, tf
from tfgen.space.layers import LayerSpec
from tfgen.training import (
    augmentation,
    fitting,
    float_training,
    losses,
    population,
    quantize_aware,
)
from tfgen.training import kept as keeping
from tfgen.training.datasets import Dataset, at_once
from tfgen.training.recipe import FIT_EXAMPLES, FloatStage, Recipe, initial_weights

MODEL = "model.keras"
METRICS = "metrics.json"
_STEPS_PER_CALL = 50
_WATCHED_SHARE = 0.5  # of the steps, before activations are rounded
# Of what a training makes of equal arguments: to be raised with every change of that, so that what
# was trained before is not taken for it; not where only the order of sums changes (3 was never
# shipped).
VERSION = 2
_STATISTICS_BATCHES = 100
_STEPS_PER_CHECK = 250
_EVALUATED_AT_ONCE = 2048

Progress = Callable[[int, float], None]  # steps done, training loss of the last batch
# By layer, `kernel` and `bias`, or `kernel`, `gamma` and `beta`, with or without statistics.
Weights = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
      model: quantization-aware; outputs are float, rounded as the file rounds them.
      layers: what it was built from, batch normalisation folded.
      metric_name: the task's metric.
      metric: on the validation split, like a record's.
      loss: of the last training batch.
      seconds: what the training took.
    """

    model: keras.Model
    layers: tuple[LayerSpec, ...]
    metric_name: str
    metric: float
    loss: float
    seconds: float


def train(
    layers: Sequence[LayerSpec],
    dataset: Dataset,
    recipe: Recipe,
    seed: int,
    *,
    weights: Weights | None = None,
    teacher: losses.Teacher | None = None,
    kept: pathlib.Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Trains the network of `layers` on the training split; equal arguments give equal weights.

    Args:
      layers: the network.
      dataset: what it is trained on.
      recipe: how.
      seed: of its weights and batches.
      weights: where it starts from, see `inherit`; None for weights at random.
      teacher: whose outputs it follows too, where the recipe distils.
      kept: the folder where a float stage is kept after each epoch, and gone on from; None keeps
        nothing.
      progress: told the steps done and the loss.

    Raises:
      UsageError: the layers do not fit the data set, the recipe moves what are no images, or it
        distils and there is no teacher.
      TrainingFailedError: the training diverged.
    """
    fitting.check(layers, dataset)
    if recipe.augments and dataset.train.x.ndim != 4:
        raise errors.UsageError(f"{dataset.name!r} has no images to move or mirror")
    if recipe.distillation and teacher is None:
        raise errors.UsageError("the recipe distils, and there is no teacher")
    start = time.monotonic()
    before = 0  # steps in float
    if recipe.float_stage is not None:
        weights = _floated(
            layers, dataset, recipe.float_stage, seed, weights, teacher, kept, progress
        )
        before = recipe.all_steps(len(dataset.train)) - recipe.steps
    best: tuple[float, keras.Model, tuple[LayerSpec, ...], float] | None = None
    starts = [seed] if weights is not None else _start_seeds(layers, dataset, recipe, seed)
    for number, start_seed in enumerate(starts):
        done = before + number * recipe.steps
        model, folded, loss = _train_from(
            layers, dataset, recipe, start_seed, weights, teacher, done, progress
        )
        outputs = predict(model, dataset.train.x[:FIT_EXAMPLES])
        fit = dataset.task.score(dataset.train.y[:FIT_EXAMPLES], outputs)
        if best is None or fit > best[0]:
            best = (fit, model, folded, loss)
    assert best is not None  # a recipe has a start
    _, model, folded, loss = best
    outputs = predict(model, dataset.validation.x)
    # Where activations are rounded, outputs of weights that are no numbers may be some.
    if not all(np.isfinite(array).all() for array in (outputs, *model.get_weights())):
        raise errors.TrainingFailedError(population.DIVERGED)
    metric = dataset.task.score(dataset.validation.y, outputs)
    seconds = time.monotonic() - start
    return Trained(model, folded, dataset.task.metric, metric, loss, seconds)


def inherit(
    layers: Sequence[LayerSpec],
    weights: Weights,
    images: np.ndarray,
    dataset: Dataset,
) -> Trained:
    """The network with weights that were trained elsewhere, rounded to its bits; no steps.

    What it lacks are statistics of normalisations and ranges of activations: they follow from
    images of the training split, a few hundred of which are enough. They are to be moved as the
    weights saw them, see `supernets.calibration`.

    Args:
      layers: the network.
      weights: of each layer that has any.
      images: [images, ..].
      dataset: on whose validation split the metric is told.

    Raises:
      UsageError: the layers do not fit the data set.
    """
    fitting.check(layers, dataset)
    start = time.monotonic()
    model = quantize_aware.build(layers, dataset.train.x.shape[1:])
    _assign(model, weights)
    quantize_aware.set_rounding(model, weights=True, activations=True)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # statistics are those of all images at once, as ranges are
    model(tf.constant(images), training=True)  # one batch: a trace would take longer
    model, folded = quantize_aware.fold(model, layers)
    quantize_aware.settle(model, folded)
    metric = dataset.task.score(dataset.validation.y, predict(model, dataset.validation.x))
    seconds = time.monotonic() - start
    return Trained(model, folded, dataset.task.metric, metric, float("nan"), seconds)


def _assign(model: keras.Model, weights: Weights) -> None:
    for name, arrays in weights.items():
        variables = quantize_aware.variables(model, name)
        for part, value in arrays.items():
            variables[network.NORM_PARTS.get(part, part)].assign(value)


def _floated(
    layers: Sequence[LayerSpec],
    dataset: Dataset,
    stage: FloatStage,
    seed: int,
    weights: Weights | None,
    teacher: losses.Teacher | None,
    kept: pathlib.Path | None,
    progress: Progress | None,
) -> Weights:
    """What `train` goes on with: the weights after the float stage, statistics among them."""
    start = _random_weights(layers, seed) if weights is None else weights
    training, wider = float_training.of_layers(layers, dataset, stage, seed, start, teacher)
    config = {
        "stage": dataclasses.asdict(stage),
        "layers": [layer.to_json() for layer in layers],
        "start": network.digest(start),
        **wider.told,
    }
    place = None
    if kept is not None:
        data = {dataset.name: dataset.fingerprint}
        place = keeping.Kept(kept, config, seed, data)
        place.restore(training)
    for loss in keeping.epochs(training, stage.epochs, place):
        if progress is not None:
            progress(training.epoch * training.steps, loss)
    return wider.narrowed(network.weights_of(training.model, wider.layers))


def _random_weights(layers: Sequence[LayerSpec], seed: int) -> Weights:
    """What a training from scratch starts from; normalisations start as Keras has them."""
    weighted = [layer for layer in layers if layer.weighted]
    return {
        layer.name: {"kernel": kernel} | ({} if layer.batch_norm else {"bias": bias})
        for layer, (kernel, bias) in zip(weighted, initial_weights(layers, seed), strict=True)
    }


def _start_seeds(
    layers: Sequence[LayerSpec], dataset: Dataset, recipe: Recipe, seed: int
) -> list[int]:
    """The starts to train: the one that the population trainer keeps, where it can tell.

    It takes a second where a training here takes five, and differs by the rounding of activations.
    """
    if recipe.starts == 1 or not (recipe.plain and population.trains(layers, dataset)):
        return recipe.start_seeds(seed)
    member = population.Member(tuple(layers), seed)
    (outcome,) = population.train([member], dataset, recipe, processes=1)
    return [outcome.seed]


def _train_from(
    layers: Sequence[LayerSpec],
    dataset: Dataset,
    recipe: Recipe,
    seed: int,
    weights: Weights | None,
    teacher: losses.Teacher | None,
    done: int,
    progress: Progress | None,
) -> tuple[keras.Model, tuple[LayerSpec, ...], float]:
    """The model trained from these weights and this seed's batches, its layers, its last loss."""
    model = quantize_aware.build(layers, dataset.train.x.shape[1:])
    _assign(model, _random_weights(layers, seed) if weights is None else weights)
    loss = float("nan")
    steps = _steps(model, dataset, recipe, seed, teacher)
    watched = int(_WATCHED_SHARE * recipe.steps)
    changes = {0, recipe.float_steps, watched} - {recipe.steps}
    starts = sorted({*range(0, recipe.steps, _STEPS_PER_CALL), *changes})
    best = _Best(model, dataset, recipe.patience)
    for first, last in itertools.pairwise([*starts, recipe.steps]):
        if first in changes:
            quantize_aware.set_rounding(
                model, weights=first >= recipe.float_steps, activations=first >= watched
            )
        loss = float(steps(first, last))
        if progress is not None:
            progress(done + last, loss)
        # Before everything is rounded, a score is that of another network.
        rounded = first >= max(recipe.float_steps, watched)
        due = last == recipe.steps or last % _STEPS_PER_CHECK < last - first
        if recipe.patience and rounded and due and best.stops():
            break
    best.restore()
    if any(layer.batch_norm for layer in layers):
        _estimate_statistics(model, dataset, recipe, seed)
    model, folded = quantize_aware.fold(model, layers)
    quantize_aware.settle(model, folded)
    return model, folded, loss


class _Best:
    """The weights of the best check so far."""

    def __init__(self, model: keras.Model, dataset: Dataset, patience: int):
        self._model = model
        self._dataset = dataset
        self._patience = patience
        self._metric = -np.inf
        self._weights: list[np.ndarray] | None = None
        self._worse = 0  # checks since the best

    @functools.cached_property
    def _forward(self) -> Callable[[np.ndarray], tf.Tensor]:
        return _forward(self._model)

    def stops(self) -> bool:
        """Checks the model; whether it has not become better for too long."""
        validation = self._dataset.validation
        metric = self._dataset.task.score(validation.y, _predicted(self._forward, validation.x))
        if metric > self._metric:
            self._metric, self._weights, self._worse = metric, self._model.get_weights(), 0
        else:
            self._worse += 1
        return self._worse >= self._patience

    def restore(self) -> None:
        """Gives the model its best weights; those of its last step where nothing was checked."""
        if self._weights is not None:
            self._model.set_weights(self._weights)


def _estimate_statistics(model: keras.Model, dataset: Dataset, recipe: Recipe, seed: int) -> None:
    """Lets batch normalisation's statistics and the ranges follow the weights as they are now.

    A weight of few levels moves by a whole level at a time, to the last step of training: with
    statistics of the way there, 2-bit networks lost 6 to 18 points of accuracy on MNIST, all of
    which comes back; at 4 and 8 bits nothing moves.
    """
    quantize_aware.set_rounding(model, weights=True, activations=True)
    _watch(model, dataset, recipe, seed)


def _watch(model: keras.Model, dataset: Dataset, recipe: Recipe, seed: int) -> None:
    """Runs the model on batches of the training split, as in training but for the steps.

    Images are moved and lit as in training: what normalised them there is of such images. By the
    statistics of images as they are, a ResNet-20 that was trained with shifts of 4 pixels lost two
    points of accuracy on CIFAR-10.
    """
    random = seeds.stream(seed, "statistics")
    rows = random.integers(len(dataset.train), size=(_STATISTICS_BATCHES, recipe.batch_size))
    shown = _shown(dataset, recipe, rows, seeds.derive(seed, "statistics"))

    @tf.function
    def run(x: tf.Tensor, y: tf.Tensor) -> None:
        for batch in tf.range(_STATISTICS_BATCHES):
            model(shown(x, y, batch)[0], training=True)

    run(tf.constant(dataset.train.x), tf.constant(dataset.train.y))


# A step's images and targets, of all of the split.
_Shown = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def _shown(dataset: Dataset, recipe: Recipe, rows: np.ndarray, seed: int) -> _Shown:
    """What a step shows of these rows of the training split [steps, batch]: moved, lit.

    Rows, moves and light are constants of the graph that calls it.
    """
    batches = tf.constant(rows)
    moves = augmentation.draw(
        recipe.shift, recipe.flip, rows.shape, seeds.stream(seed, "augmentation"), recipe.zoom
    )
    down, right = tf.constant(moves.down), tf.constant(moves.right)  # each [steps, batch]
    mirrored = tf.constant(moves.mirrored)
    scale = None if moves.scale is None else tf.constant(moves.scale)
    factors, ends = None, (0.0, 1.0)
    if recipe.light:
        channels, random = dataset.train.x.shape[-1], seeds.stream(seed, "light")
        factors = tf.constant(augmentation.draw_light(recipe.light, rows.shape, channels, random))
        ends = (float(dataset.train.x.min()), float(dataset.train.x.max()))

    def shown(x: tf.Tensor, y: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch, targets = tf.gather(x, batches[step]), tf.gather(y, batches[step])
        if not recipe.augments:
            return batch, targets
        own = augmentation.Moves(
            tf.cast(down[step], tf.int32),
            tf.cast(right[step], tf.int32),
            mirrored[step],
            None if scale is None else scale[step],
        )
        batch, targets = augmentation.examples_in_graph(tf, batch, targets, own, recipe.shift)
        if factors is not None:
            batch = augmentation.lit(tf, batch, factors[step], ends)
        return batch, targets

    return shown


def _steps(
    model: keras.Model, dataset: Dataset, recipe: Recipe, seed: int, teacher: losses.Teacher | None
) -> Callable[[int, int], tf.Tensor]:
    """A graph that runs steps first .. last - 1 and returns the last one's loss.

    Batches, moves and learning rates are constants of the graph: Python is left alone between
    steps. Data are an argument, since Keras keeps graphs, with all constants, longer than their
    training.
    """
    loss_of = losses.of(dataset.task)
    distance = losses.from_teacher(dataset.task, recipe.temperature)
    x, y = tf.constant(dataset.train.x), tf.constant(dataset.train.y)
    shown = _shown(dataset, recipe, recipe.batches(len(dataset.train), seed), seed)
    rates = tf.constant(recipe.learning_rates())  # [steps]
    weights = model.trainable_variables
    optimizer = keras.optimizers.Adam(weight_decay=recipe.weight_decay or None)
    spared = [w for w in weights if "kernel" not in w.name.rpartition("/")[2]]
    optimizer.exclude_from_weight_decay(spared)
    optimizer.build(weights)

    @tf.function
    def run(first: tf.Tensor, last: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        loss = tf.constant(0.0)
        for step in tf.range(first, last):
            batch, targets = shown(x, y, step)
            taught = teacher(batch) if teacher is not None and recipe.distillation else None
            with tf.GradientTape() as tape:
                outputs = model(batch, training=True)
                loss = loss_of(targets, outputs)
                if taught is not None:
                    loss += recipe.distillation * distance(taught, outputs)
            optimizer.learning_rate.assign(rates[step])
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    return lambda first, last: run(tf.constant(first), tf.constant(last), x, y)


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """The network's outputs, float32 [examples, units]."""
    if len(x) <= at_once(x, _EVALUATED_AT_ONCE):  # a trace would take longer
        return np.asarray(model(tf.constant(x), training=False))
    return _predicted(_forward(model), x)


def _forward(model: keras.Model) -> Callable[[np.ndarray], tf.Tensor]:
    """What runs the model on a batch; the model has to live as long."""
    examples = tf.TensorSpec(model.input_shape, tf.float32)
    # Traced here, once: TensorFlow warns of a function that each model traces at its first call.
    traced = tf.function(lambda batch: model(batch, training=False), [examples])
    run = traced.get_concrete_function()
    return lambda batch: run(tf.constant(batch))


def _predicted(forward: Callable[[np.ndarray], tf.Tensor], x: np.ndarray) -> np.ndarray:
    size = at_once(x, _EVALUATED_AT_ONCE)
    return np.concatenate([forward(x[i : i + size]).numpy() for i in range(0, len(x), size)])


def save(trained: Trained, folder: pathlib.Path) -> None:
    """Writes the model and its metrics into `folder`, each file whole or not at all."""
    with workdir.writing(folder / MODEL) as path:
        trained.model.save(path)
    metrics = {
        "metric": {trained.metric_name: trained.metric},
        "split": "validation",
        "loss": trained.loss if np.isfinite(trained.loss) else None,
        "seconds": round(trained.seconds, 3),
        "layers": [layer.to_json() for layer in trained.layers],
    }
    workdir.write_json(folder / METRICS, metrics)


def load(folder: pathlib.Path) -> Trained:
    """Reads what `save` wrote; raises CorruptFileError that names the file."""
    data = workdir.read_json(folder / METRICS)
    path = folder / MODEL
    if not path.is_file():
        raise errors.CorruptFileError(f"{path}: file is missing")
    try:
        model = keras.models.load_model(path, compile=False)  # safe_mode is on by default
    except Exception as error:  # zipfile, json, h5py and Keras each raise their own
        text = (str(error).splitlines() or [""])[0]
        raise errors.CorruptFileError(f"{path}: not readable as a Keras model ({text})") from error
    try:
        ((name, metric),) = data["metric"].items()
        layers = tuple(LayerSpec.from_json(layer) for layer in data["layers"])
        loss = float("nan") if data["loss"] is None else data["loss"]
        return Trained(model, layers, name, metric, loss, data["seconds"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise errors.CorruptFileError(f"{folder / METRICS}: lacks a field ({error})") from error
