"""Image data sets: how they are split, and what is said where they are missing."""

import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import errors
from tfgen.training import datasets


def stored(height, channels, train):
    """A stand-in for TFDS: every pixel of example i has the value i % 256, its class is i % 10."""

    def load(name, split, data_dir):
        del name, data_dir
        number = np.arange(train if split == "train" else 100)
        pixels = (number % 256).astype(np.uint8)[:, None, None, None]
        return np.broadcast_to(pixels, (len(number), height, height, channels)), number % 10

    return mock.patch.object(datasets, "_load_tfds", load)


class ImagesTest(parameterized.TestCase):
    @parameterized.parameters((40_000, 35_000), (50_000, 45_000))
    def test_the_last_5000_training_images_of_cifar10_are_for_validation(self, stored_, trained):
        with stored(4, 3, stored_):
            data = datasets.load("cifar10")
        self.assertEqual([len(s) for s in (data.train, data.validation, data.test)],
                         [trained, 5000, 100])  # fmt: skip
        self.assertEqual(data.train.x.shape, (trained, 4, 4, 3))
        self.assertEqual(data.train.x.dtype, np.float32)
        self.assertEqual(data.validation.y[0], trained % 10)
        self.assertEqual(data.validation.x[0, 0, 0, 0], np.float32(trained % 256) / np.float32(255))
        self.assertEqual((data.train.x.min(), data.train.x.max()), (0.0, 1.0))

    def test_mnist_images_are_mnist_with_its_split(self):
        with stored(28, 1, 60_000):
            images, flat = datasets.load("mnist_images"), datasets.load("mnist")
        for name, count in (("train", 50_000), ("validation", 10_000), ("test", 100)):
            image_split, flat_split = getattr(images, name), getattr(flat, name)
            self.assertEqual(image_split.x.shape, (count, 28, 28, 1))
            np.testing.assert_array_equal(image_split.x.reshape(count, 784), flat_split.x)
            np.testing.assert_array_equal(image_split.y, flat_split.y)
        self.assertEqual((images.name, flat.name), ("mnist_images", "mnist"))
        self.assertNotEqual(images.fingerprint, flat.fingerprint)

    @parameterized.parameters("cifar10", "mnist", "mnist_images")
    def test_missing_data_says_how_to_fetch_it(self, name):
        with (
            tempfile.TemporaryDirectory() as folder,
            self.assertRaisesRegex(errors.UsageError, "give --data_dir, or fetch it") as caught,
        ):
            datasets.load(name, folder)
        source = name.removesuffix("_images")
        self.assertIn(f"tfds.load('{source}', data_dir='{folder}')", str(caught.exception))

    def test_an_unknown_data_set_names_the_known(self):
        with self.assertRaisesRegex(errors.UsageError, "california_housing, cifar10, mnist, mnist"):
            datasets.load("imagenet")


if __name__ == "__main__":
    absltest.main()
