"""Named data sets in three splits; fitting uses train and validation, contracts use test."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfgen import errors, seeds
from tfgen.training import tasks

_CALIFORNIA = pathlib.Path(__file__).parent / "data" / "california_housing.csv.gz"
_CALIFORNIA_SHA256 = "fa6bbb3c6f7cb94a3e3e885c162c38e3b74cc0110daf9214ba74f9f7c0667f30"
_SPLIT_SEED = 20_640  # the 60/20/20 split is part of the data set, not of a run
_CLIP = 4.0  # standard deviations; one int8 input scale cannot carry the raw tails
_MNIST_VALIDATION = 10_000
_CIFAR10_VALIDATION = 5_000


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples and their targets.

    Attributes:
      x: float32 [examples, *input shape].
      y: float32 [examples, 1] for regression, int64 [examples] for classification.
    """

    x: np.ndarray
    y: np.ndarray

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not len(self.x):
            raise ValueError(f"a split needs equal, positive counts: {len(self.x)}, {len(self.y)}")

    def __len__(self) -> int:
        return len(self.x)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set, preprocessed; equal fingerprints mean equal arrays.

    Attributes:
      name: the catalogue's name.
      task: what is asked of a network.
      train: what weights are fitted to.
      validation: what records are scored on.
      test: what contracts are measured on.
      preprocessing: how a user turns raw numbers into the arrays and outputs back; JSON.
    """

    name: str
    task: tasks.Task
    train: Split
    validation: Split
    test: Split
    preprocessing: Mapping[str, Any]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over every array of every split, 16 hex digits."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for array in (split.x, split.y):
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def california_housing(data_dir: str | None = None) -> Dataset:
    """California Housing: 20,640 rows, 8 features, the house value in 100,000 USD.

    Split 60/20/20 by a fixed seed; features and target standardised on the training split, features
    clipped to +-4 standard deviations. The table ships with the package; `data_dir` is not used.

    Raises:
      CorruptFileError: the table is not the one that was shipped.
    """
    del data_dir
    try:
        packed = _CALIFORNIA.read_bytes()
    except OSError as error:
        raise errors.CorruptFileError(f"{_CALIFORNIA}: not readable ({error})") from error
    if hashlib.sha256(packed).hexdigest() != _CALIFORNIA_SHA256:
        raise errors.CorruptFileError(f"{_CALIFORNIA}: sha256 differs from the shipped table's")
    text = io.StringIO(gzip.decompress(packed).decode())
    table = np.loadtxt(text, delimiter=",", skiprows=1, dtype=np.float64)  # [rows, 9]
    table = table[seeds.stream(_SPLIT_SEED, "california_housing").permutation(len(table))]
    train = table[: len(table) * 6 // 10]
    standard = (table - train.mean(axis=0)) / train.std(axis=0)
    x = np.clip(standard[:, :-1], -_CLIP, _CLIP).astype(np.float32)
    y = standard[:, -1:].astype(np.float32)
    ends = (len(table) * 6 // 10, len(table) * 8 // 10)
    splits = [Split(*pair) for pair in zip(np.split(x, ends), np.split(y, ends), strict=True)]
    preprocessing = {
        "features": text.getvalue().partition("\n")[0].strip().split(",")[:-1],
        "input": f"(feature - mean) / std, clipped to +-{_CLIP:g}",
        "input_mean": train.mean(axis=0)[:-1].tolist(),
        "input_std": train.std(axis=0)[:-1].tolist(),
        "output": "value * std + mean, in 100,000 USD",
        "output_mean": float(train.mean(axis=0)[-1]),
        "output_std": float(train.std(axis=0)[-1]),
    }
    return Dataset("california_housing", tasks.REGRESSION, *splits, preprocessing)


def mnist(data_dir: str | None = None) -> Dataset:
    """MNIST through TFDS: 50,000 / 10,000 / 10,000 images as features [784] in 0..1, digits 0..9.

    Args:
      data_dir: the TFDS directory; None is TFDS's own default.

    Raises:
      UsageError: TFDS cannot provide the data set.
    """
    images = _images("mnist", "mnist", _MNIST_VALIDATION, data_dir)

    def flat(split: Split) -> Split:
        return Split(split.x.reshape(len(split), -1), split.y)

    return dataclasses.replace(
        images,
        train=flat(images.train),
        validation=flat(images.validation),
        test=flat(images.test),
        preprocessing={"input": "pixels / 255, rows of the image one after the other"},
    )


def mnist_images(data_dir: str | None = None) -> Dataset:
    """The examples of `mnist` as images [28, 28, 1]; arguments and errors are the same."""
    return _images("mnist_images", "mnist", _MNIST_VALIDATION, data_dir)


def cifar10(data_dir: str | None = None) -> Dataset:
    """CIFAR-10 through TFDS: images [32, 32, 3] in 0..1, classes 0..9; 10,000 for test.

    5,000 of the training images are for validation; the others, 45,000 of the public data set, are
    for training.

    Args:
      data_dir: the TFDS directory; None is TFDS's own default.

    Raises:
      UsageError: TFDS cannot provide the data set.
    """
    return _images("cifar10", "cifar10", _CIFAR10_VALIDATION, data_dir)


def _images(name: str, source: str, validation: int, data_dir: str | None) -> Dataset:
    """Images [height, width, channels] in 0..1 with classes, from TFDS.

    Args:
      name: the data set's.
      source: its name in TFDS.
      validation: how many images, the last of `train`, are for validation.
      data_dir: the TFDS directory.
    """
    x, y = _load_tfds(source, "train", data_dir)
    test_x, test_y = _load_tfds(source, "test", data_dir)
    x, test_x = (pixels.astype(np.float32) / np.float32(255) for pixels in (x, test_x))
    return Dataset(
        name,
        tasks.CLASSIFICATION,
        Split(x[:-validation], y[:-validation]),
        Split(x[-validation:], y[-validation:]),
        Split(test_x, test_y),
        {"input": "pixels / 255"},
    )


def _load_tfds(name: str, split: str, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    """A supervised TFDS split as arrays, in the order of each example's hash.

    The order in which TFDS stores examples depends on how a directory was made; this one does not.
    """
    import tensorflow_datasets as tfds
    from absl import logging

    import tfgen.nets.keras_compat  # noqa: F401  TensorFlow starts quietly from there

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)  # TFDS tells at length what it reads
    try:
        data = tfds.load(
            name,
            split=split,
            data_dir=data_dir,
            as_supervised=True,
            batch_size=-1,
            shuffle_files=False,
            download=False,  # a run reads what is there; it does not wait for a network
        )
        x, y = tfds.as_numpy(data)
    except Exception as error:  # TFDS raises its own and those of what it downloads with
        where = f", data_dir={data_dir!r}" if data_dir else ""
        raise errors.UsageError(
            f"data set {name!r} is not in {data_dir or 'the default directory'} of TFDS "
            f"({type(error).__name__}); give --data_dir, or fetch it once with python -c "
            f'"import tensorflow_datasets as tfds; tfds.load({name!r}{where})"'
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x]
    order = sorted(range(len(x)), key=digests.__getitem__)
    return np.asarray(x)[order], np.asarray(y)[order].astype(np.int64)


DATASETS = {
    "california_housing": california_housing,
    "cifar10": cifar10,
    "mnist": mnist,
    "mnist_images": mnist_images,
}


def load(name: str, data_dir: str | None = None) -> Dataset:
    """The data set of that name; raises UsageError that names the known ones."""
    if name not in DATASETS:
        raise errors.UsageError(f"unknown data set {name!r}; known: {', '.join(sorted(DATASETS))}")
    return DATASETS[name](data_dir)
