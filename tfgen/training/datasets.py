"""Named data sets in three splits; fitting uses train and validation, contracts use test."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import io
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import errors, seeds
from tfgen.training import boxes, tasks

_CALIFORNIA = pathlib.Path(__file__).parent / "data" / "california_housing.csv.gz"
_CALIFORNIA_SHA256 = "fa6bbb3c6f7cb94a3e3e885c162c38e3b74cc0110daf9214ba74f9f7c0667f30"
_SPLIT_SEED = 20_640  # the 60/20/20 split is part of the data set, not of a run
_CLIP = 4.0  # standard deviations; one int8 input scale cannot carry the raw tails
_MNIST_VALIDATION = 10_000
_CIFAR10_VALIDATION = 5_000
_NUMBERS_AT_ONCE = 1 << 23  # of inputs; layers make some ten times as many
_CAMVID_CLASSES = 11
_BCCD_BLOCK = 4  # of 640x480 pixels
_BCCD_OBJECTS = 32  # in an image at most; there are 30
OF_TFDS = "tfds:"  # before the name of any that TFDS has
_LARGEST_BYTES = 8e9  # of a data set's images in memory
_POLYNOMIAL_SAMPLES = 2_048
_POLYNOMIAL_SEED = 2_020
_POLYNOMIAL_NOISE = 0.05  # of the function's standard deviation


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples and their targets.

    Attributes:
      x: float32 [examples, *input shape].
      y: float32 [examples, 1] for regression, int64 [examples] for classification, int64
        [examples, height, width] for segmentation, float32 [examples, objects, 5] for detection.
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
    features = text.getvalue().partition("\n")[0].strip().split(",")[:-1]
    return _standardised("california_housing", table, features, ", in 100,000 USD")


def quartic(data_dir: str | None = None) -> Dataset:
    """Data_a of the NAGAN paper (section 5.1): f(x) = -2x^4 - 8x^3 + 5x^2 + 15 with noise.

    2,048 samples by a fixed seed, split 60/20/20; x and the target standardised on the training
    split. The paper gives neither the range of x nor the noise: ours are x ~ U(-2, 2) and a
    Gaussian of 5 % of the standard deviation of f over the samples, beyond which no network
    explains the targets: R² ends near 1 - 0.05² / (1 + 0.05²) = 0.9975. `data_dir` is not used.
    """
    del data_dir
    return _polynomial("quartic", (-2, -8, 5, 0, 15), 2.0)


def septic(data_dir: str | None = None) -> Dataset:
    """Data_b of the NAGAN paper: f(x) = -2x^7 + 2x^5 - 4x^3 + 15, x ~ U(-1.5, 1.5).

    The rest is as in `quartic`.
    """
    del data_dir
    return _polynomial("septic", (-2, 0, 2, 0, -4, 0, 0, 15), 1.5)


def _polynomial(name: str, coefficients: Sequence[float], end: float) -> Dataset:
    """Noisy samples of a polynomial, the highest power first, of x ~ U(-end, end)."""
    random = seeds.stream(_POLYNOMIAL_SEED, name)
    x = random.uniform(-end, end, _POLYNOMIAL_SAMPLES)
    value = np.polyval(coefficients, x)
    noise = random.normal(0.0, _POLYNOMIAL_NOISE * value.std(), len(x))
    return _standardised(name, np.stack([x, value + noise], axis=1), ["x"], "")


def _standardised(name: str, table: np.ndarray, features: Sequence[str], unit: str) -> Dataset:
    """A regression of a table's last column, split 60/20/20 in the order of its rows.

    Args:
      name: the data set's.
      table: float64 [rows, features + 1].
      features: their names.
      unit: of the target, as the end of a sentence.
    """
    ends = (len(table) * 6 // 10, len(table) * 8 // 10)
    mean, std = table[: ends[0]].mean(axis=0), table[: ends[0]].std(axis=0)
    standard = (table - mean) / std
    x = np.clip(standard[:, :-1], -_CLIP, _CLIP).astype(np.float32)
    y = standard[:, -1:].astype(np.float32)
    splits = [Split(*pair) for pair in zip(np.split(x, ends), np.split(y, ends), strict=True)]
    preprocessing = {
        "features": list(features),
        "input": f"(feature - mean) / std, clipped to +-{_CLIP:g}",
        "input_mean": mean[:-1].tolist(),
        "input_std": std[:-1].tolist(),
        "output": f"value * std + mean{unit}",
        "output_mean": float(mean[-1]),
        "output_std": float(std[-1]),
    }
    return Dataset(name, tasks.REGRESSION, *splits, preprocessing)


def mnist(data_dir: str | None = None) -> Dataset:
    """MNIST through TFDS: 50,000 / 10,000 / 10,000 images as features [784] in 0..1, digits 0..9.

    Args:
      data_dir: the TFDS directory; None is TFDS's own default.

    Raises:
      UsageError: TFDS cannot provide the data set.
    """
    return _flat(_images("mnist", "mnist", _MNIST_VALIDATION, data_dir))


def mnist_14x14(data_dir: str | None = None) -> Dataset:
    """MNIST with every 2x2 block averaged: features [196] in -1..1; otherwise as `mnist`."""
    return _flat(_images("mnist_14x14", "mnist", _MNIST_VALIDATION, data_dir, block=2))


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


def cifar10_16x16(data_dir: str | None = None) -> Dataset:
    """CIFAR-10 with every 2x2 block averaged: images [16, 16, 3] in -1..1; else as `cifar10`."""
    return _images("cifar10_16x16", "cifar10", _CIFAR10_VALIDATION, data_dir, block=2)


def cifar10_8x8(data_dir: str | None = None) -> Dataset:
    """CIFAR-10 with every 4x4 block averaged: features [192] in -1..1; otherwise as `cifar10`."""
    return _flat(_images("cifar10_8x8", "cifar10", _CIFAR10_VALIDATION, data_dir, block=4))


def camvid(data_dir: str | None = None) -> Dataset:
    """CamVid through TFDS: images [120, 160, 3] in 0..1, each pixel's class 0..10.

    Street scenes from a car: sky, building, pole, road, pavement, tree, sign, fence, car,
    pedestrian, bicyclist; what is none of these has no class (Brostow et al. 2009). The splits are
    those of SegNet: 367, 101 and 233 images.

    Args:
      data_dir: the TFDS directory; None is TFDS's own default.

    Raises:
      UsageError: TFDS cannot provide the data set.
    """
    splits = []
    for split in ("train", "validation", "test"):
        x, y = _load_tfds("camvid", split, data_dir, ("image", "segmentation_mask"))
        y = np.where(y[..., 0] < _CAMVID_CLASSES, y[..., 0], tasks.VOID)
        splits.append(Split(x.astype(np.float32) / np.float32(255), y))
    return Dataset("camvid", tasks.SEGMENTATION, *splits, {"input": "pixels / 255"})


def bccd(data_dir: str | None = None) -> Dataset:
    """BCCD through TFDS: images [120, 160, 3] in 0..1 and the cells in them (`boxes`).

    Blood under a microscope: red cells (0), white cells (1) and platelets (2). Images are 640x480
    pixels of which every 4x4 block is averaged; the splits are the authors': 205, 87 and 72 images.

    Args:
      data_dir: the TFDS directory; None is TFDS's own default.

    Raises:
      UsageError: TFDS cannot provide the data set.
    """
    splits = []
    for split in ("train", "validation", "test"):
        x, found = _load_tfds("bccd", split, data_dir, ("image", "objects"))
        splits.append(Split(block_means(x, _BCCD_BLOCK) / np.float32(255), _objects(found)))
    preprocessing = {
        "input": f"means of {_BCCD_BLOCK}x{_BCCD_BLOCK} pixels / 255",
        "output": "a grid of cells: logits of red cells, white cells and platelets; the centre's "
        "distance from the cell's (y, x) and the logarithms of height and width, in cells",
    }
    return Dataset("bccd", tasks.DETECTION, *splits, preprocessing)


def _objects(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """TFDS's objects as rows of `boxes`: float32 [images, _BCCD_OBJECTS, 5].

    Args:
      found: "bbox", as top, left, bottom, right [images, objects, 4], and "label" [images,
        objects], filled up with boxes of no size.
    """
    low, high = np.split(np.asarray(found["bbox"], np.float32), 2, axis=-1)
    size = high - low
    kinds = np.where((size > 0).all(axis=-1), found["label"], tasks.VOID)
    rows = np.concatenate([kinds[..., None], (low + high) / 2, size], axis=-1)
    result = np.zeros((len(rows), _BCCD_OBJECTS, boxes.FIELDS), np.float32)
    result[..., 0] = tasks.VOID
    result[:, : rows.shape[1]] = rows
    return result


def _images(
    name: str, source: str, validation: int, data_dir: str | None, block: int | None = None
) -> Dataset:
    """Images [height, width, channels] with classes, from TFDS.

    Args:
      name: the data set's.
      source: its name in TFDS.
      validation: how many images, the last of `train`, are for validation.
      data_dir: the TFDS directory.
      block: side of the blocks of pixels that are averaged, the means in -1..1; None leaves the
        pixels, in 0..1.
    """
    x, y = _load_tfds(source, "train", data_dir)
    test_x, test_y = _load_tfds(source, "test", data_dir)
    if block is None:
        x, test_x = (pixels.astype(np.float32) / np.float32(255) for pixels in (x, test_x))
        told = "pixels / 255"
    else:
        x, test_x = (
            block_means(pixels, block) / np.float32(127.5) - np.float32(1) for pixels in (x, test_x)
        )
        told = f"means of {block}x{block} pixels / 127.5 - 1"
    return Dataset(
        name,
        tasks.CLASSIFICATION,
        *_parted(x, y, validation),
        Split(test_x, test_y),
        {"input": told},
    )


def block_means(pixels: np.ndarray, side: int) -> np.ndarray:
    """Means of side x side blocks: float32 [images, height / side, width / side, channels].

    Args:
      pixels: [images, height, width, channels]; `side` divides height and width.
      side: of a block.
    """
    count, height, width, channels = pixels.shape
    blocks = pixels.reshape(count, height // side, side, width // side, side, channels)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


def _flat(images: Dataset) -> Dataset:
    """Images as features, the rows of an image one after the other."""

    def flat(split: Split) -> Split:
        return Split(split.x.reshape(len(split), -1), split.y)

    told = f"{images.preprocessing['input']}, rows of the image one after the other"
    return dataclasses.replace(
        images,
        train=flat(images.train),
        validation=flat(images.validation),
        test=flat(images.test),
        preprocessing={"input": told},
    )


def _load_tfds(
    name: str, split: str, data_dir: str | None, features: tuple[str, str] | None = None
) -> tuple[np.ndarray, Any]:
    """A TFDS split as arrays, in the order of each example's hash.

    The order in which TFDS stores examples depends on how a directory was made; this one does not.
    The features are inputs and targets; None for those that the data set itself calls so. Targets
    are classes, or a dict of arrays.
    """
    with _reading_tfds(name, data_dir) as tfds:
        data = tfds.load(
            name,
            split=split,
            data_dir=data_dir,
            as_supervised=features is None,
            batch_size=-1,
            shuffle_files=False,
            download=False,  # a run reads what is there; it does not wait for a network
        )
        found = tfds.as_numpy(data)
        x, y = found if features is None else (found[feature] for feature in features)
    digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x]
    order = sorted(range(len(x)), key=digests.__getitem__)
    if isinstance(y, dict):
        return np.asarray(x)[order], {part: np.asarray(values)[order] for part, values in y.items()}
    return np.asarray(x)[order], np.asarray(y)[order].astype(np.int64)


@contextlib.contextmanager
def _reading_tfds(name: str, data_dir: str | None) -> Iterator[Any]:
    """TFDS as a module; raises UsageError, which says how to fetch the data, for what it raises."""
    import tensorflow_datasets as tfds
    from absl import logging

    import tfgen.nets.keras_compat  # noqa: F401  TensorFlow starts quietly from there

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)  # TFDS tells at length what it reads
    try:
        yield tfds
    except Exception as error:  # TFDS raises its own and those of what it downloads with
        where = f", data_dir={data_dir!r}" if data_dir else ""
        raise errors.UsageError(
            f"data set {name!r} is not in {data_dir or 'the default directory'} of TFDS "
            f"({type(error).__name__}); give --data_dir, or fetch it once with python -c "
            f'"import tensorflow_datasets as tfds; tfds.load({name!r}{where})"'
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def of_tfds(source: str, data_dir: str | None = None) -> Dataset:
    """Any images with classes that TFDS has: pixels in 0..1, all of one size.

    Its split `test` is for test, else `validation`. What is left of these is for validation, else
    the last tenth of `train`.

    Args:
      source: its name in TFDS; a directory that others made needs no code of theirs.
      data_dir: the TFDS directory; None is TFDS's own default.

    Raises:
      UsageError: TFDS cannot provide it, or it is of another kind; says which.
    """
    with _reading_tfds(source, data_dir) as tfds:
        info = tfds.builder(source, data_dir=data_dir).info
        keys, features = info.supervised_keys, dict(info.features)
        splits = {name: split.num_examples for name, split in info.splits.items()}
        if not splits:  # known to TFDS, and not there
            raise FileNotFoundError(source)
    name = f"{OF_TFDS}{source}"
    pair = ("image", "label") if keys is None else tuple(keys[:2])  # a third one weighs examples
    image, label = (features.get(key) for key in pair)
    kinds = tfds.features.Image, tfds.features.ClassLabel
    if not (isinstance(image, kinds[0]) and isinstance(label, kinds[1])):
        raise errors.UsageError(f"data set {name!r}: has no images with a class each")
    if None in image.shape or image.np_dtype != np.uint8:
        raise errors.UsageError(
            f"data set {name!r}: its images are {image.np_dtype} of shape {image.shape}, not bytes "
            "of one size"
        )
    test = next((split for split in ("test", "validation") if splits.get(split)), None)
    if splits.get("train", 0) < 2 or test is None:  # one is for validation
        raise errors.UsageError(
            f"data set {name!r}: needs splits train and test or validation, has {[*splits]}"
        )
    own = "validation" if test == "test" and splits.get("validation") else None
    read = [split for split in ("train", own, test) if split]
    needed = sum(splits[split] for split in read) * math.prod(image.shape) * 4
    if needed > _LARGEST_BYTES:
        raise errors.UsageError(
            f"data set {name!r}: its images take {needed / 1e9:.1f} GB of memory as numbers, more "
            f"than the {_LARGEST_BYTES / 1e9:g} GB that are read"
        )
    found = {}
    for split in read:
        x, y = _load_tfds(source, split, data_dir, pair)
        found[split] = Split(x.astype(np.float32) / np.float32(255), y)
    train, validation = found["train"], found.get("validation")
    if own is None:
        train, validation = _parted(train.x, train.y, max(len(train) // 10, 1))
    return Dataset(
        name, tasks.CLASSIFICATION, train, validation, found[test], {"input": "pixels / 255"}
    )


def _parted(x: np.ndarray, y: np.ndarray, last: int) -> tuple[Split, Split]:
    """What is for training, and so many last examples, which are for validation."""
    return Split(x[:-last], y[:-last]), Split(x[-last:], y[-last:])


DATASETS = {
    "bccd": bccd,
    "california_housing": california_housing,
    "camvid": camvid,
    "cifar10": cifar10,
    "cifar10_16x16": cifar10_16x16,
    "cifar10_8x8": cifar10_8x8,
    "mnist": mnist,
    "mnist_14x14": mnist_14x14,
    "mnist_images": mnist_images,
    "quartic": quartic,
    "septic": septic,
}


_OTHER_TASKS = {
    "bccd": tasks.DETECTION,
    "california_housing": tasks.REGRESSION,
    "camvid": tasks.SEGMENTATION,
    "quartic": tasks.REGRESSION,
    "septic": tasks.REGRESSION,
}


def at_once(x: np.ndarray, most: int) -> int:
    """How many of the examples to compute at a time: `most`, or fewer of large images."""
    return max(1, min(most, _NUMBERS_AT_ONCE // max(1, math.prod(x.shape[1:]))))


def load(name: str, data_dir: str | None = None) -> Dataset:
    """The data set of that name; raises UsageError that names the known ones."""
    task = task_of(name)
    own = name.removeprefix(OF_TFDS)
    found = of_tfds(own, data_dir) if own != name else DATASETS[name](data_dir)
    assert found.task == task  # as was said before it was read
    return found


def task_of(name: str) -> tasks.Task:
    """What the data set of that name asks, before it is read; raises as `load`."""
    if name not in DATASETS and not name.startswith(OF_TFDS):
        raise errors.UsageError(
            f"unknown data set {name!r}; known: {', '.join(sorted(DATASETS))}, and {OF_TFDS}NAME "
            "for one of TFDS"
        )
    return _OTHER_TASKS.get(name, tasks.CLASSIFICATION)
