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


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Adam with a learning rate that warms up linearly and falls to 0 along a half cosine.

    Attributes:
      steps: gradient steps.
      batch_size: examples a step.
      learning_rate: the peak.
      warmup_steps: steps of the linear rise.
    """

    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 5e-3
    warmup_steps: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"recipe needs positive steps and batch size: {self}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"recipe needs a positive learning rate: {self}")

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that name the recipe in records."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
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

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        return cls(**data)


def initial_weights(layers: Sequence[LayerSpec], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernel [in, out] (Glorot uniform, Keras's default) and bias [out] of each dense layer."""
    random = seeds.stream(seed, "weights")
    weights = []
    for layer in layers:
        limit = math.sqrt(6.0 / (layer.in_channels + layer.out_channels))
        kernel = random.uniform(-limit, limit, (layer.in_channels, layer.out_channels))
        weights.append((kernel.astype(np.float32), np.zeros(layer.out_channels, np.float32)))
    return weights
