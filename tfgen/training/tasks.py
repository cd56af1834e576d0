"""Task: what a network is asked to do, and the metric by which it is judged."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfgen import errors
from tfgen.training import boxes


@dataclasses.dataclass(frozen=True)
class Task:
    """A kind of problem.

    Attributes:
      name: "regression", "classification", "segmentation": the class of each pixel, or "detection":
        objects and where they are, see `boxes`.
      metric: name of the quality metric, more is better; the name that budgets use.
      loss: name of the training loss: mean squared error, softmax cross-entropy from logits, or
        that of `box_losses`.
    """

    name: str
    metric: str
    loss: str

    def score(self, targets: np.ndarray, outputs: np.ndarray) -> float:
        """The metric of outputs [examples, units] against targets.

        Args:
          targets: float [examples, 1] for regression, int [examples] for classification, int
            [examples, height, width] for segmentation, VOID where a pixel has no class and counts
            for nothing; float [examples, objects, 5] for detection.
          outputs: the network's outputs in the targets' own scale, or logits; for segmentation
            [examples, height, width, classes]; for detection
            [examples, rows, columns, classes + 4].

        R² is 1 - residual sum of squares / total sum of squares, the total taken around the mean of
        these targets; outputs that are not finite score 0, like a network that learned nothing.
        """
        if not np.isfinite(outputs).all():
            return 0.0
        if self.name == "classification":
            return float((outputs.argmax(axis=-1) == targets).mean())
        if self.name == "segmentation":
            told = targets != VOID
            return float((outputs.argmax(axis=-1) == targets)[told].mean()) if told.any() else 0.0
        if self.name == "detection":
            return boxes.mean_average_precision(targets, outputs)
        targets = targets.astype(np.float64)
        residual = ((targets - outputs.astype(np.float64)) ** 2).sum()
        total = ((targets - targets.mean()) ** 2).sum()
        return float(1.0 - residual / total)


REGRESSION = Task("regression", "r2", "mean_squared_error")
CLASSIFICATION = Task("classification", "accuracy", "softmax_cross_entropy")
SEGMENTATION = Task("segmentation", "pixel_accuracy", "softmax_cross_entropy")
DETECTION = Task("detection", "map50", "boxes")
TASKS = {task.name: task for task in (REGRESSION, CLASSIFICATION, SEGMENTATION, DETECTION)}
VOID = -1  # the class of a pixel that has none, and of no object


def get(name: str) -> Task:
    """The task of that name; raises UsageError that names the known ones."""
    if name not in TASKS:
        raise errors.UsageError(f"unknown task {name!r}; known: {', '.join(sorted(TASKS))}")
    return TASKS[name]
