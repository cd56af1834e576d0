"""Compares .tflite files side by side: bytes, accuracy on a test split, time of an inference.

    compare_files --dataset=cifar10 --data_dir=TFDS --files=ours.tflite --pixels=theirs.tflite

Files take turns on the clock, in one process. Files given by --pixels read pixels of 0..255, the
others what tfgen's data sets hold. The first one of all is what the others are compared with.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from tfgen import errors, program, workdir
from tfgen.deployment import benchmark, child, timing
from tfgen.tables import table
from tfgen.training import datasets
from tfgen.training.datasets import Dataset
from tools import reports
from tools.reports import percent

_DATASET = flags.DEFINE_string("dataset", None, "Whose test split; needed.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory, for data that does not ship.")
_FILES = flags.DEFINE_list("files", [], "Files that read what tfgen's data set holds.")
_PIXELS = flags.DEFINE_list("pixels", [], "Files that read pixels of 0..255.")
_WINDOWS = flags.DEFINE_integer("windows", 40, "On the clock, of each file.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "CSV file for the numbers.")
_PIXELS_OF = {"pixels / 255": 255.0}  # factors, by what a data set says of its inputs


@dataclasses.dataclass(frozen=True)
class Compared:
    """One file.

    Attributes:
      file: as it was given.
      file_bytes: its size.
      accuracy: on the test split, as a share; the task's metric where it is another one.
      latency_ms: of one inference on one thread.
      times_the_first: the latency over that of the first file.
    """

    file: str
    file_bytes: int
    accuracy: float
    latency_ms: float
    times_the_first: float


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    del argv
    own, pixels = _FILES.value, _PIXELS.value
    if _DATASET.value is None or not (own or pixels):
        raise errors.UsageError("give --dataset, and --files or --pixels")
    dataset = datasets.load(_DATASET.value, _DATA_DIR.value)
    found = compare(own, pixels, dataset, _WINDOWS.value)
    if _OUTPUT.value:
        reports.write_csv(workdir.user_path(_OUTPUT.value), found)
    rows = [
        [
            one.file,
            f"{one.file_bytes:,}",
            percent(one.accuracy, 2),
            f"{one.latency_ms:.4f}",
            f"{one.times_the_first:.2f}",
        ]
        for one in found
    ]
    print(table(["file", "bytes", "accuracy, %", "ms", "times the first"], rows))


def compare(
    own: Sequence[str], pixels: Sequence[str], dataset: Dataset, windows: int
) -> list[Compared]:
    """Tests and times files.

    Args:
      own: files that read what the data set holds.
      pixels: files that read pixels of 0..255.
      dataset: whose test split.
      windows: of each file, on the clock.

    Raises:
      UsageError: the data set is not of such pixels, or a file takes other inputs.
      CorruptFileError: a file is missing, or the runtime refuses it.
    """
    factor = _PIXELS_OF.get(str(dataset.preprocessing.get("input")))
    if pixels and factor is None:
        raise errors.UsageError(f"data set {dataset.name!r} does not hold pixels")
    paths = [child.existing(workdir.user_path(name)) for name in (*own, *pixels)]
    factors = [1.0] * len(own) + [factor or 1.0] * len(pixels)
    scores = [_score(path, dataset, times) for path, times in zip(paths, factors, strict=True)]
    clock = timing.compare([path.read_bytes() for path in paths], windows=windows)
    return [
        Compared(
            name,
            told.file_bytes,
            score,
            told.latency_ms,
            told.latency_ms / clock[0].latency_ms,
        )
        for name, score, told in zip((*own, *pixels), scores, clock, strict=True)
    ]


def _score(path: pathlib.Path, dataset: Dataset, factor: float) -> float:
    """The task's metric of the file on the test split."""
    outputs = benchmark.predict(path, np.asarray(dataset.test.x * np.float32(factor)))
    return dataset.task.score(dataset.test.y, outputs)


if __name__ == "__main__":
    program.run(main)
