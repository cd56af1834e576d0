"""Recipe: everything that decides a training but the network, the data and the seed.

The population trainer and the Keras trainer read the same recipe, draw the same batches and start
from the same weights: a record's training and a delivery's differ by activation quantization only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import seeds
from tfgen.space.layers import LayerSpec

_RELU_BIAS = 0.1
DIMENSIONS = ("kernel", "depth", "width")  # in which networks of a supernet differ
# Fields that are not told where they have their defaults: files are older than these.
_YOUNGER = {
    "Recipe": (
        "float_share",
        "patience",
        "shift",
        "flip",
        "weight_decay",
        "distillation",
        "temperature",
        "float_stage",
        "light",
        "zoom",
    ),
    "SupernetRecipe": (
        "largest_share",
        "forced",
        "switchable",
        "phases",
        "distillation",
        "largest_alone",
    ),
}
LARGEST_SHIFT = 16  # pixels
LARGEST_ZOOM = 1.0  # a share
_LARGEST = 10**9  # a whole number of a recipe
FIT_EXAMPLES = 4096  # of the training split, by which starts are compared


@dataclasses.dataclass(frozen=True)
class FloatStage:
    """Gradient descent in float, along a half cosine with Nesterov's momentum.

    Attributes:
      epochs: over the training split.
      batch_size: examples a step.
      learning_rate: the peak.
      weight_decay: of kernels, as part of the loss.
      shift: pixels by which images are moved at most, in each direction.
      flip: whether half of the images are mirrored.
      light: see `Recipe`.
      zoom: see `Recipe`.
      distillation: weight of the distance from a teacher's outputs, beside the task's loss.
      temperature: see `Recipe`.
      bfloat16: whether layers compute in numbers of 16 bits, which is faster on processors that
        have them and slow on others.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    shift: int = 0
    flip: bool = False
    light: float = 0.0
    zoom: float = 0.0
    distillation: float = 0.0
    temperature: float = 1.0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        whole = (self.epochs, self.batch_size)
        if not all(isinstance(n, int) and 1 <= n <= _LARGEST for n in whole):
            raise ValueError(f"a float stage needs positive epochs and batches: {self}")
        if not (isinstance(self.shift, int) and 0 <= self.shift <= LARGEST_SHIFT):
            raise ValueError(f"a float stage needs a shift of 0..{LARGEST_SHIFT}: {self}")
        _check_rates(self, "a float stage")

    @property
    def augments(self) -> bool:
        """Whether it has images moved, mirrored, lit or scaled."""
        return bool(self.shift or self.flip or self.light or self.zoom)

    def epoch_steps(self, examples: int) -> int:
        """Steps of an epoch over so many examples: whole batches."""
        return max(1, examples // self.batch_size)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Adam with a learning rate that warms up linearly and falls to 0 along a half cosine.

    Attributes:
      steps: gradient steps.
      batch_size: examples a step.
      learning_rate: the peak.
      warmup_steps: steps of the linear rise.
      starts: trainings from different weights and batches, of which the one that fits the training
        split best is kept. Small networks often stop at a poor place; a second start halves what
        two trainings of one network differ by.
      float_share: of the steps, the first, in which weights are not rounded.
      patience: how many checks on the validation split in a row may be no better than the best one
        before training stops; the best weights are kept. 0 trains to the end and keeps the last.
        The population trainer checks nothing.
      shift: pixels by which images are moved at most, in each direction.
      flip: whether half of the images are mirrored.
      weight_decay: of kernels, beside the gradient and in units of the learning rate (Loshchilov
        and Hutter 2019). The population trainer refuses recipes that are not `plain`.
      distillation: weight of the distance from a teacher's outputs, beside the task's loss; what
        trains from scratch has none.
      temperature: by which logits are divided before they are compared with a teacher's (Hinton,
        Vinyals and Dean 2015); the distance is multiplied by its square.
      float_stage: what comes before, a training in float whose weights these steps round; None for
        none. Rounding costs more than half of a step, and what a network learns takes many.
      light: by how much images are brighter or darker, and their colours other, at most: a share.
      zoom: by how much things in images look larger or smaller, at most: a share.
    """

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-2
    warmup_steps: int = 500
    starts: int = 1
    float_share: float = 0.0
    patience: int = 0
    shift: int = 0
    flip: bool = False
    weight_decay: float = 0.0
    distillation: float = 0.0
    temperature: float = 1.0
    float_stage: FloatStage | None = None
    light: float = 0.0
    zoom: float = 0.0

    def __post_init__(self) -> None:
        whole = (self.steps, self.batch_size, self.warmup_steps, self.starts, self.patience)
        if not all(isinstance(n, int) and n <= _LARGEST for n in (*whole, self.shift)):
            raise ValueError(f"recipe needs whole numbers up to {_LARGEST:,}: {self}")
        if self.patience < 0 or not 0 <= self.shift <= LARGEST_SHIFT:
            raise ValueError(
                f"recipe needs a patience of at least 0, a shift of 0..{LARGEST_SHIFT}: {self}"
            )
        if (
            min(self.steps, self.batch_size, self.starts) < 1
            or not 0 <= self.warmup_steps <= self.steps
        ):
            raise ValueError(f"recipe needs positive steps, batch size and starts: {self}")
        if not 0 <= self.float_share < 1:
            raise ValueError(f"recipe needs a float share of at least 0 and below 1: {self}")
        _check_rates(self, "recipe")
        if not isinstance(self.float_stage, FloatStage | None):
            raise ValueError(f"a recipe's float stage is a FloatStage: {self}")
        if self.float_stage is not None and self.starts > 1:
            raise ValueError(f"a recipe with a float stage has one start: {self}")

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that name the recipe in records."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def learning_rates(self) -> np.ndarray:
        """The learning rate of every step, float32 [steps]."""
        step = np.arange(self.steps)
        rise = (step + 1) / max(self.warmup_steps, 1)
        progress = np.maximum(step - self.warmup_steps, 0) / max(self.steps - self.warmup_steps, 1)
        fall = 0.5 * (1 + np.cos(np.pi * progress))
        return (self.learning_rate * np.minimum(rise, 1.0) * fall).astype(np.float32)

    def batches(self, examples: int, seed: int) -> np.ndarray:
        """Rows of every step's batch, int32 [steps, batch]: epochs of shuffled whole batches."""
        size = min(self.batch_size, examples)
        random = seeds.stream(seed, "batches")
        per_epoch = examples // size
        epochs = [
            random.permutation(examples)[: per_epoch * size].reshape(per_epoch, size)
            for _ in range(math.ceil(self.steps / per_epoch))
        ]
        return np.concatenate(epochs)[: self.steps].astype(np.int32)

    def start_seeds(self, seed: int) -> list[int]:
        """The seed of every start; the first is the training's own."""
        return [seed, *(seeds.derive(seed, "start", number) for number in range(1, self.starts))]

    @property
    def float_steps(self) -> int:
        """Steps before weights are rounded."""
        return int(self.float_share * self.steps)

    @property
    def augments(self) -> bool:
        """Whether it has images moved, mirrored, lit or scaled."""
        return bool(self.shift or self.flip or self.light or self.zoom)

    @property
    def plain(self) -> bool:
        """Whether it has nothing that the population trainer refuses."""
        return not (
            self.augments or self.weight_decay or self.distillation or self.float_stage is not None
        )

    @property
    def distils(self) -> bool:
        """Whether any of its steps follows a teacher."""
        stage = self.float_stage
        return self.distillation > 0 or (stage is not None and stage.distillation > 0)

    def all_steps(self, examples: int) -> int:
        """Steps of all starts on so many examples, those in float too."""
        stage = self.float_stage
        floating = 0 if stage is None else stage.epochs * stage.epoch_steps(examples)
        return floating + self.starts * self.steps

    def to_json(self) -> dict[str, Any]:
        return _without_younger(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        values = dict(data)
        if values.get("float_stage") is not None:
            values["float_stage"] = FloatStage(**values["float_stage"])
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a training by progressive shrinking (Once-for-All, section 3.3).

    Attributes:
      adds: which decisions may be other than their largest value from here on: of DIMENSIONS, or
        "none" for the largest network alone. Bits go with the kernels.
      epochs: of the phase.
      learning_rate: the peak of the phase, which has a half cosine and a momentum of its own.
    """

    adds: str
    epochs: int
    learning_rate: float

    def __post_init__(self) -> None:
        if self.adds not in ("none", *DIMENSIONS):
            raise ValueError(f"a phase adds none, {', '.join(DIMENSIONS)}: {self}")
        if self.epochs < 1 or not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"a phase needs epochs and a positive learning rate: {self}")


@dataclasses.dataclass(frozen=True)
class SupernetRecipe:
    """How a supernet is trained: gradient descent along a half cosine (SGNAS, appendix A.2).

    Attributes:
      epochs: over the training split.
      batch_size: images a step.
      learning_rate: the peak.
      warmup_share: of the steps, in which the rate rises linearly.
      momentum: Nesterov's.
      weight_decay: of kernels, as part of the loss.
      label_smoothing: of the targets.
      float_share: of the steps, before weights and activations are rounded.
      shift: pixels by which images are moved at most, in each direction.
      flip: whether half of the images are mirrored.
      largest_share: of the steps, those that train the largest network instead of a drawn one.
      forced: whether skips are a block's last sub-blocks and kernels are sorted (section 3.3.2);
        else a network takes any sub-blocks in any order, as the paper's ablation does.
      switchable: whether each expansion rate has its own scales and shifts (section 3.3.1).
      phases: of progressive shrinking, which take `epochs` in all; empty where all decisions are
        free from the start. `learning_rate` is then not read.
      distillation: weight of the cross-entropy with the teacher's shares, beside that with the
        labels: the largest network's, for all others, or a prototype's, for all.
      largest_alone: how the largest network is trained by itself before `epochs`: it lends its
        weights to all others, and teaches all as a prototype does. None where all begin at once.
    """

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.1
    warmup_share: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = 0.0
    float_share: float = 0.3
    shift: int = 4
    flip: bool = True
    largest_share: float = 0.0
    forced: bool = True
    switchable: bool = True
    phases: tuple[Phase, ...] = ()
    distillation: float = 0.0
    largest_alone: FloatStage | None = None

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1 or self.weight_decay < 0:
            raise ValueError(f"a supernet needs positive epochs and batches: {self}")
        if not 0 <= self.shift <= LARGEST_SHIFT:
            raise ValueError(f"a supernet needs a shift of 0..{LARGEST_SHIFT}: {self}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"a supernet needs a positive learning rate: {self}")
        shares = (
            self.warmup_share,
            self.momentum,
            self.float_share,
            self.label_smoothing,
            self.largest_share,
        )
        if not all(0 <= share < 1 for share in shares):
            raise ValueError(f"shares lie in 0..1, 1 excluded: {self}")
        if not (self.distillation >= 0 and math.isfinite(self.distillation)):
            raise ValueError(f"a weight of distillation is at least 0: {self}")
        if self.largest_alone is not None and self.largest_alone.distillation:
            raise ValueError(f"nobody teaches the largest network: {self}")
        if self.phases and sum(phase.epochs for phase in self.phases) != self.epochs:
            raise ValueError(f"phases take {self.epochs} epochs in all: {self}")
        if self.phases and self.switchable:
            raise ValueError(
                "progressive shrinking has one set of scales for all expansions: those of narrower "
                "ones would not be trained before widths shrink; set switchable to False"
            )
        added = [phase.adds for phase in self.phases if phase.adds != "none"]
        if len(added) != len(set(added)):
            raise ValueError(f"each phase adds another dimension: {self}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SupernetRecipe:
        """Reads plain values, as `to_json` writes them."""
        values = dict(config)
        values["phases"] = tuple(Phase(**phase) for phase in config.get("phases", ()))
        if values.get("largest_alone") is not None:
            values["largest_alone"] = FloatStage(**values["largest_alone"])
        return cls(**values)

    @property
    def augments(self) -> bool:
        """Whether images are moved or mirrored."""
        return bool(self.shift or self.flip)

    def phase(self, epoch: int) -> tuple[int, Phase]:
        """The phase that an epoch is in, and the phase's first epoch.

        Without phases there is one, of all epochs, which leaves all decisions free.
        """
        first = 0
        for phase in self.phases:
            if epoch < first + phase.epochs:
                return first, phase
            first += phase.epochs
        if self.phases:
            raise ValueError(f"epoch {epoch} lies behind the last phase")
        return 0, Phase("none", self.epochs, self.learning_rate)

    def dimensions(self, epoch: int) -> frozenset[str]:
        """Which of DIMENSIONS are free in an epoch."""
        if not self.phases:
            return frozenset(DIMENSIONS)
        _, own = self.phase(epoch)
        known = self.phases[: self.phases.index(own) + 1]
        return frozenset(phase.adds for phase in known) - {"none"}

    def to_json(self) -> dict[str, Any]:
        return _without_younger(self)


def _check_rates(recipe: FloatStage | Recipe, what: str) -> None:
    """Raises ValueError for a rate or a weight that is none."""
    if not (recipe.learning_rate > 0 and math.isfinite(recipe.learning_rate)):
        raise ValueError(f"{what} needs a positive learning rate: {recipe}")
    if not (0 <= recipe.light < 1 and 0 <= recipe.zoom <= LARGEST_ZOOM):
        raise ValueError(f"{what} needs a light below 1 and a zoom of 0..1: {recipe}")
    least = min(recipe.distillation, recipe.weight_decay)
    most = max(recipe.distillation, recipe.weight_decay, recipe.temperature)
    if not (least >= 0 and recipe.temperature > 0 and most < math.inf):
        raise ValueError(
            f"{what} needs a weight decay and a distillation of at least 0, a temperature above 0: "
            f"{recipe}"
        )


def _without_younger(recipe: Recipe | SupernetRecipe) -> dict[str, Any]:
    """The fields, without those of _YOUNGER that have their defaults."""
    data = dataclasses.asdict(recipe)
    for field in dataclasses.fields(recipe):
        if field.name in _YOUNGER[type(recipe).__name__] and data[field.name] == field.default:
            del data[field.name]
    return data


def initial_weights(layers: Sequence[LayerSpec], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernel and bias [out] of each weighted layer: Glorot uniform, made so that units live.

    Kernels are [in, out], [side, side, in, out] for a convolution and [side, side, channels, 1] for
    a depthwise one. Under batch normalisation weights stay as drawn and there is no bias to set.

    Networks of one or two units a layer die at once where a unit's output is 0 for every example:
    with Keras's default weights one training in ten did, and that was most of what two trainings of
    one network differed by. So beyond the first layer, whose inputs have no sign, each unit's
    weights are negated where their sum is below 0 (its inputs are at least 0), and units with a
    ReLU start with a small positive bias.
    """
    random = seeds.stream(seed, "weights")
    weights = []
    for position, layer in enumerate(layer for layer in layers if layer.weighted):
        area = layer.kernel**2
        depthwise = layer.op == "depthwise"
        fans = 2 if depthwise else layer.in_channels + layer.out_channels
        limit = math.sqrt(6.0 / (area * fans))
        window = () if layer.op == "dense" else (layer.kernel, layer.kernel)
        ends = (layer.in_channels, 1 if depthwise else layer.out_channels)
        kernel = random.uniform(-limit, limit, (*window, *ends))
        bare_relu = layer.activation == "relu" and not layer.batch_norm
        if position and bare_relu and layer.op == "dense":
            kernel *= np.where(kernel.sum(axis=0) < 0, -1.0, 1.0)
        bias = _RELU_BIAS if bare_relu else 0.0
        weights.append((kernel.astype(np.float32), np.full(layer.out_channels, bias, np.float32)))
    return weights
