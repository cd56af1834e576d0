"""Trains the shared weights of a supernet, one network of the space at a time (SGNAS, eq. 5).

A step draws a network and trains the variables that it has a part in. Of these, weights that are
not its own decay and follow their momentum; layers that it does not have stay as they are.
Draws are strictly fair (appendix A.2): the values of a decision lie in shuffled decks, so that in
an epoch each is drawn as often as every other, to within one. A unified block's expansions have a
deck, and each expansion one of its combinations of kernels, which are sorted, so that skips come
last and no network is drawn under two names (forced sampling, section 3.3.2). Beyond the paper, a
share of the steps may train the largest network, which lends its weights to all others (Yu et al.
2020, BigNAS, section 3.1); the decks are for the other steps. It may be trained by itself before
(`SupernetRecipe.largest_alone`), as Once-for-All's is: a fixed network is one graph.

Progressive shrinking (Once-for-All, section 3.3) trains the largest network first, then lets
kernels, depths and widths shrink in turn. Where widths begin to, channels are put in the order of
their importance. The other networks learn from the largest one too; departure: it teaches with the
weights that it has at that step, where the paper keeps those of the first phase (in-place
distillation, BigNAS, section 3.1).

Bits are a decision like any other. After `float_share` of the steps each layer's weights are
rounded to the bits of the network that is drawn, and activations over the batch's range; before
that, a supernet learns faster.

Each epoch draws its order, its images' shifts and its networks from (seed, epoch): a run that is
killed goes on from its last epoch and ends where the whole one would. Made within the scope of a
`tf.distribute` strategy, a training deals each batch out to its replicas; see `distribution`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from tfgen import errors, seeds
from tfgen.nets.keras_compat import tf
from tfgen.nets.supernet import KERNEL, Supernet, Taken
from tfgen.space.layers import LayerSpec
from tfgen.space.lowering import lower
from tfgen.space.search_space import Choices, Chosen, Decision, SearchSpace
from tfgen.training import augmentation, descent, fitting, kept, losses
from tfgen.training.datasets import Dataset, Split, at_once
from tfgen.training.recipe import DIMENSIONS, SupernetRecipe
from tfgen.training.tasks import Task

_MOMENTUM_SUFFIX = "/momentum"
_EVALUATED_AT_ONCE = 500
# Which dimension of a network an option is; bits go with the kernels.
_DIMENSION_OF = {
    "kernel": "kernel",
    "squeeze_excite": "kernel",
    "depth": "depth",
    "expansion": "width",
    "channels": "width",
    "units": "width",
}


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
      epoch: that are done.
      step: of the next one, that are done.
      steps: of an epoch.
      loss: mean since the last report.
      images_per_second: since the last report.
      remaining_seconds: to the end of the training, at this speed.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    images_per_second: float
    remaining_seconds: float


class SupernetTraining:
    """A training of one supernet that can be stopped after any epoch.

    Attributes:
      supernet: whose weights are trained.
      epoch: how many are done.
    """

    def __init__(
        self,
        supernet: Supernet,
        dataset: Dataset,
        recipe: SupernetRecipe,
        seed: int,
        teacher: losses.Teacher | None = None,
    ):
        """Begins at epoch 0.

        Args:
          supernet: whose weights are trained.
          dataset: on its train split.
          recipe: how.
          seed: of orders, moves and networks.
          teacher: of all networks, where the recipe distils; None for the largest network as it is
            at that step, which teaches the others.

        Raises:
          UsageError: the space's networks do not fit the data set, or a batch cannot be dealt out.
        """
        space = supernet.space
        first = space.architecture(np.zeros(len(space.decisions), np.int64))
        fitting.check(lower(space, first), dataset, f"space {space.name!r}")
        if recipe.augments and dataset.train.x.ndim != 4:
            raise errors.UsageError(f"{dataset.name!r} has no images to move or mirror")
        self._strategy = tf.distribute.get_strategy()
        if recipe.batch_size % self._strategy.num_replicas_in_sync:
            raise errors.UsageError(
                f"a batch of {recipe.batch_size} cannot be dealt out evenly to "
                f"{self._strategy.num_replicas_in_sync} replicas"
            )
        self.supernet = supernet
        self.epoch = 0
        self._largest = lower(space, space.architecture(ends(space)[0]))
        self._dataset = dataset
        self._recipe = recipe
        self._seed = seed
        self._loss = losses.of(dataset.task, recipe.label_smoothing)
        self._distance = losses.from_teacher(dataset.task)
        self._teacher = teacher
        self._momenta = {
            name: tf.Variable(tf.zeros_like(variable))
            for name, variable in supernet.variables.items()
        }

    @property
    def steps(self) -> int:
        """Of an epoch: whole batches."""
        return max(1, len(self._dataset.train) // self._recipe.batch_size)

    def run_epoch(
        self, progress: Callable[[Progress], None] | None = None, every: int = 20
    ) -> float:
        """Trains for one epoch; returns its mean loss.

        Args:
          progress: told how far it is, every so many steps.
          every: steps.
        """
        recipe, train = self._recipe, self._dataset.train
        self._begin_phase()
        random = seeds.stream(self._seed, "supernet", "epoch", self.epoch)
        order = random.permutation(len(train))
        networks, teaches = self._networks(random)
        total, since, begin = 0.0, tf.zeros([]), time.perf_counter()
        for step in range(self.steps):
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            x, y = train.x[rows], train.y[rows]
            if recipe.augments:
                x, y = augmentation.examples(x, y, recipe.shift, recipe.flip, random)
            done = self.epoch * self.steps + step
            layers = lower(self.supernet.space, self.supernet.space.architecture(networks[step]))
            taken = None if recipe.forced else any_sub_blocks(self.supernet, random)
            since += self._step(layers, x, y, done, taken, teaches[step])
            if (step + 1) % every == 0 or step + 1 == self.steps:
                count = step % every + 1
                lost = float(since)
                seconds = time.perf_counter() - begin
                total += lost
                if progress is not None:
                    left = recipe.epochs * self.steps - done - 1
                    speed = count * recipe.batch_size / seconds
                    progress(
                        Progress(
                            self.epoch,
                            step + 1,
                            self.steps,
                            lost / count,
                            speed,
                            left * seconds / count,
                        )
                    )
                since, begin = tf.zeros([]), time.perf_counter()
        self.epoch += 1
        return total / self.steps

    def _begin_phase(self) -> None:
        """What a phase of progressive shrinking begins with: no momentum, and sorted channels."""
        first, phase = self._recipe.phase(self.epoch)
        if self.epoch != first or not self.epoch:
            return
        for momentum in self._momenta.values():
            momentum.assign(tf.zeros_like(momentum))
        if phase.adds == "width":
            self.supernet.sort_channels()

    def _networks(self, random: np.random.Generator) -> tuple[Choices, np.ndarray]:
        """Of an epoch's steps [steps, decisions], and which are not the largest's [steps]."""
        space = self.supernet.space
        largest = evenly(self.steps, self._recipe.largest_share)
        networks = np.repeat(ends(space)[:1], self.steps, axis=0)
        whole = networks.copy()
        # Not canonical: a depth that is held opens blocks whose values were drawn fairly too.
        drawn = fair_draws(space, int((~largest).sum()), random)
        free = free_decisions(space, self._recipe.dimensions(self.epoch))
        networks[~largest] = np.where(free, drawn, whole[~largest])
        networks = space.canonical(networks)
        return networks, (networks != whole).any(axis=1)

    def _step(
        self,
        layers: Sequence[LayerSpec],
        x: np.ndarray,
        y: np.ndarray,
        done: int,
        taken: Taken | None,
        taught: bool,
    ) -> tf.Tensor:
        """Trains one network on one batch; returns the loss."""
        recipe = self._recipe
        quantized = done >= recipe.float_share * recipe.epochs * self.steps
        rate = tf.constant(learning_rate(recipe, done, self.steps))
        taught = (taught or self._teacher is not None) and recipe.distillation > 0
        variables = self.supernet.variables

        def dealt() -> tf.Tensor:
            """The same on this replica's part of the batch."""
            context = tf.distribute.get_replica_context()
            replicas = context.num_replicas_in_sync
            part = slice(int(context.replica_id_in_sync_group), None, replicas)
            teacher = self._taught(x[part], quantized) if taught else None
            with tf.GradientTape() as tape:
                outputs = self.supernet.outputs(
                    layers, tf.constant(x[part]), quantized=quantized, taken=taken
                )
                loss = self._loss(tf.constant(y[part]), outputs)
                if teacher is not None:
                    loss += recipe.distillation * self._distance(teacher, outputs)
            gradients = {
                name: tf.convert_to_tensor(found)
                for name, found in tape.gradient(loss, variables).items()
                if found is not None  # else it is not of this network
            }
            if replicas > 1:
                both = (loss, gradients)
                loss, gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, both)
            for name, own in gradients.items():
                decay = recipe.weight_decay if name.endswith(KERNEL) else 0.0
                descent.step(
                    variables[name], self._momenta[name], own, rate, recipe.momentum, decay
                )
            return loss

        return self._strategy.experimental_local_results(self._strategy.run(dealt))[0]

    def _taught(self, x: np.ndarray, quantized: bool) -> tf.Tensor:
        """What the teacher makes of a batch."""
        if self._teacher is not None:
            return self._teacher(tf.constant(x))
        return self.supernet.outputs(self._largest, tf.constant(x), quantized=quantized)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs, as plain arrays."""
        arrays = {name: variable.numpy() for name, variable in self.supernet.variables.items()}
        arrays |= {
            name + _MOMENTUM_SUFFIX: momentum.numpy() for name, momentum in self._momenta.items()
        }
        return {**arrays, "epoch": np.array(self.epoch)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on where `state` was taken.

        Raises:
          CorruptFileError: the state is of another supernet.
        """
        name = self.supernet.space.name
        kept.check_shapes(self, state, f"the checkpoint is not of a supernet of {name!r}")
        self.supernet.assign(state)
        for name, momentum in self._momenta.items():
            momentum.assign(state[name + _MOMENTUM_SUFFIX])
        self.epoch = int(state["epoch"])


def learning_rate(recipe: SupernetRecipe, done: int, epoch_steps: int) -> float:
    """The rate of the step after `done`, where an epoch has so many."""
    first, phase = recipe.phase(done // epoch_steps)
    done, steps = done - first * epoch_steps, phase.epochs * epoch_steps
    warmup = int(recipe.warmup_share * steps)
    return descent.half_cosine(phase.learning_rate, done, steps, warmup)


# --- networks -----------------------------------------------------------------------------------


def fair_networks(space: SearchSpace, count: int, random: np.random.Generator) -> Choices:
    """Networks that have each value of a decision equally often [count, decisions]."""
    return space.canonical(fair_draws(space, count, random))


def fair_draws(space: SearchSpace, count: int, random: np.random.Generator) -> Choices:
    """The same with decisions that are not active drawn too [count, decisions]."""
    columns = [
        _kernels(decision, count, random)
        if decision.name in space.unified
        else _deck(len(decision.values), count, random)
        for decision in space.decisions
    ]
    return np.stack(columns, axis=1)


def _kernels(decision: Decision, count: int, random: np.random.Generator) -> np.ndarray:
    """Of a block's sub-blocks: a deck of expansions, and of each a deck of its own values.

    Drawn each by itself and sorted, the kernels of the last sub-blocks would be the largest nearly
    always: six of 3x3 once in 729 networks, here once in 28.
    """
    expansions: dict[int, list[int]] = {}
    for number, value in enumerate(decision.values):
        expansions.setdefault(len(str(value)), []).append(number)
    own = [np.array(numbers) for numbers in expansions.values()]
    drawn = np.empty(count, np.int64)
    turns = _deck(len(own), count, random)
    for expansion, numbers in enumerate(own):
        mine = turns == expansion
        if mine.any():
            drawn[mine] = numbers[_deck(len(numbers), int(mine.sum()), random)]
    return drawn


def any_sub_blocks(supernet: Supernet, random: np.random.Generator) -> Taken:
    """Sub-blocks in any order, as a network takes them that is not forced to the first ones."""
    return {
        block: random.permutation(count).tolist() for block, count in supernet.sub_blocks.items()
    }


def free_decisions(space: SearchSpace, dimensions: Collection[str]) -> np.ndarray:
    """Which decisions may be other than their last value, bool [decisions].

    Args:
      space: of inverted blocks, unless all dimensions are free.
      dimensions: of `recipe.DIMENSIONS`, those that are free.

    Raises:
      UsageError: a stage has an option of which it is not known which dimension it is.
    """
    if set(dimensions) == set(DIMENSIONS):
        return np.ones(len(space.decisions), np.bool_)
    # What no stage reads allows others to have fewer bits.
    free = np.full(len(space.decisions), "kernel" in dimensions)
    for stage in space.stages:
        chosen = {k: v.decision for k, v in stage.options.items() if isinstance(v, Chosen)}
        if stage.when is not None:
            chosen["depth"] = stage.when.decision
        for option, decision in chosen.items():
            dimension = "kernel" if option.endswith("bits") else _DIMENSION_OF.get(option)
            if dimension is None:
                raise errors.UsageError(
                    f"progressive shrinking knows no {option!r}, which {decision!r} of space "
                    f"{space.name!r} decides"
                )
            free[space.index[decision]] = dimension in dimensions
    return free


def evenly(count: int, share: float) -> np.ndarray:
    """Which of so many steps are a share of them, evenly spread, bool [count]."""
    passed = np.floor(np.arange(count + 1) * share + 1e-9)
    return np.diff(passed) > 0


def _deck(values: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Shuffled decks of 0..values-1, one after the other [count]."""
    decks = [random.permutation(values) for _ in range(-(-count // values))]
    return np.concatenate(decks)[:count]


def ends(space: SearchSpace) -> Choices:
    """The largest network of a space and the smallest, by the values of its decisions [2, ..].

    Where values are not ascending, as with bits of convolutions, the last is taken as the largest.
    """
    last = [len(decision.values) - 1 for decision in space.decisions]
    return space.canonical(np.array([last, [0] * len(last)]))


# --- evaluation ---------------------------------------------------------------------------------


def score(
    supernet: Supernet,
    layers: Sequence[LayerSpec],
    task: Task,
    examples: Split,
    calibration: np.ndarray,
    *,
    quantized: bool = True,
    taken: Taken | None = None,
) -> float:
    """The metric of a network of the supernet, with inherited weights.

    Args:
      supernet: trained.
      layers: of the network.
      task: whose metric.
      examples: which.
      calibration: images on which its statistics are estimated [images, h, w, channels].
      quantized: whether weights and activations are rounded to their bits.
      taken: which sub-blocks of its unified blocks; None for the first ones.
    """
    statistics = supernet.statistics(layers, [calibration], quantized=quantized, taken=taken)
    made = []
    size = at_once(examples.x, _EVALUATED_AT_ONCE)
    for begin in range(0, len(examples), size):
        x = tf.constant(examples.x[begin : begin + size])
        outputs = supernet.outputs(
            layers, x, quantized=quantized, statistics=statistics, taken=taken
        )
        made.append(outputs.numpy())
    return task.score(examples.y, np.concatenate(made))
