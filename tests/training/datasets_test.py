"""Data sets: how they are made and split, and what is said where they are missing."""

import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import errors
from tfgen.training import datasets, tasks


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

    @parameterized.parameters(
        ("mnist_14x14", 28, 1, (196,)),
        ("cifar10_8x8", 32, 3, (192,)),
        ("cifar10_16x16", 32, 3, (16, 16, 3)),
    )
    def test_small_images_are_centred(self, name, side, channels, shape):
        with stored(side, channels, 11_000):
            data = datasets.load(name)
        self.assertEqual([s.x.shape[1:] for s in (data.train, data.validation, data.test)],
                         [shape] * 3)  # fmt: skip
        self.assertEqual(data.train.x.dtype, np.float32)
        # Image 255 is white, image 0 black; 255 / 127.5 - 1 = 1.
        np.testing.assert_array_equal(data.train.x[255], np.ones(shape))
        np.testing.assert_array_equal(data.train.x[0], -np.ones(shape))
        self.assertIn("pixels / 127.5 - 1", data.preprocessing["input"])
        self.assertEqual(data.name, name)

    def test_means_of_blocks(self):
        # Two channels, the second 100 above the first. Blocks of the first: (1 + 2 + 5 + 6) / 4 =
        # 3.5, (3 + 4 + 7 + 9) / 4 = 5.75; the second row of blocks has zeros and one 255.
        first = np.array([[1, 2, 3, 4], [5, 6, 7, 9], [0, 0, 0, 0], [0, 0, 0, 155]], np.uint8)
        found = datasets.block_means(np.stack([first, first + 100], axis=-1)[None], 2)
        self.assertEqual(found.dtype, np.float32)
        np.testing.assert_array_equal(found[0, :, :, 0], [[3.5, 5.75], [0, 38.75]])
        np.testing.assert_array_equal(found[0, :, :, 1], [[103.5, 105.75], [100, 138.75]])

    def test_rows_of_flat_images_follow_one_another(self):
        pixels = np.arange(11_000 * 8 * 4, dtype=np.uint32).reshape(-1, 8, 4, 1) % 251
        labels = np.zeros(11_000, np.int64)
        with mock.patch.object(datasets, "_load_tfds", lambda *_: (pixels, labels)):
            data = datasets.load("mnist_14x14")
        # Pixels 0, 1, 4, 5 -> 2.5; 2, 3, 6, 7 -> 4.5; the next row of blocks 8 more.
        expected = np.array([2.5, 4.5, 10.5, 12.5], np.float32) / np.float32(127.5) - 1
        np.testing.assert_allclose(data.train.x[0, :4], expected, rtol=0, atol=1e-7)

    @parameterized.parameters("cifar10", "mnist", "mnist_images", "mnist_14x14", "cifar10_8x8")
    def test_missing_data_says_how_to_fetch_it(self, name):
        with (
            tempfile.TemporaryDirectory() as folder,
            self.assertRaisesRegex(errors.UsageError, "give --data_dir, or fetch it") as caught,
        ):
            datasets.load(name, folder)
        source = name.partition("_")[0]
        self.assertIn(f"tfds.load('{source}', data_dir='{folder}')", str(caught.exception))

    def test_an_unknown_data_set_names_the_known(self):
        with self.assertRaisesRegex(
            errors.UsageError, "bccd, california_housing, camvid, cifar10, .*, and tfds:NAME"
        ):
            datasets.load("imagenet")


class OfTfdsTest(parameterized.TestCase):
    """Directories as TFDS writes them, of builders that nothing else knows."""

    def made(self, *, shape=(4, 6, 3), label=None, keys=("image", "label"), **splits):
        """A directory: pixel values are the example's number, its class is that modulo 3."""
        import tensorflow_datasets as tfds

        class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # as of others
            name = "own"
            pkg_dir_path = pathlib.Path(__file__).parent
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=shape),
                    "label": label or tfds.features.ClassLabel(num_classes=3),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    description="Numbers.",
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=keys,
                )

            def _split_generators(self, dl_manager):
                del dl_manager
                return {split: self._generate_examples(n) for split, n in splits.items()}

            def _generate_examples(self, count):
                size = [side or 5 for side in shape]
                for number in range(count):
                    yield number, {
                        "image": np.full(size, number, np.uint8), "label": number % 3
                    }  # fmt: skip

        folder = self.create_tempdir().full_path
        Own(data_dir=folder).download_and_prepare()
        return folder

    @parameterized.parameters(
        ({"train": 25, "test": 4}, (23, 2, 4)),
        ({"train": 25, "validation": 4}, (23, 2, 4)),
        ({"train": 25, "validation": 3, "test": 4}, (25, 3, 4)),
    )
    def test_splits(self, splits, sizes):
        folder = self.made(**splits)
        data = datasets.load("tfds:own", folder)
        found = [data.train, data.validation, data.test]
        self.assertEqual(tuple(map(len, found)), sizes)
        self.assertEqual((data.name, data.task), ("tfds:own", tasks.CLASSIFICATION))
        for split in found:
            self.assertEqual((split.x.dtype, split.x.shape[1:]), (np.float32, (4, 6, 3)))
            numbers = np.rint(split.x[:, 0, 0, 0] * 255).astype(np.int64)
            np.testing.assert_array_equal(split.y, numbers % 3)
        # Each of the training images is in one split.
        both = np.concatenate([data.train.x, data.validation.x])[: splits["train"]]
        self.assertLen(np.unique(both[:, 0, 0, 0]), splits["train"])
        self.assertEqual(datasets.load("tfds:own", folder).fingerprint, data.fingerprint)

    @parameterized.parameters(
        ({"train": 4}, "needs splits train and test or validation, has .'train'."),
        ({"train": 4, "test": 1, "shape": (None, None, 3)}, "not bytes of one size"),
        ({"train": 4, "test": 1, "label": np.int64}, "no images with a class each"),
    )
    def test_what_is_of_another_kind_says_so(self, made, message):
        folder = self.made(**made)
        with self.assertRaisesRegex(errors.UsageError, f"'tfds:own': .*{message}"):
            datasets.load("tfds:own", folder)

    def test_what_tells_no_pair_has_an_image_and_a_label(self):
        data = datasets.load("tfds:own", self.made(keys=None, train=10, test=4))
        self.assertEqual([*map(len, (data.train, data.validation, data.test))], [9, 1, 4])

    def test_more_than_memory_has(self):
        folder = self.made(train=4, test=1)
        with (
            mock.patch.object(datasets, "_LARGEST_BYTES", 1000),
            self.assertRaisesRegex(errors.UsageError, "take 0.0 GB of memory"),  # 5 * 72 * 4 bytes
        ):
            datasets.load("tfds:own", folder)

    def test_missing_data_says_how_to_fetch_it(self):
        with self.assertRaisesRegex(errors.UsageError, "fetch it once .*tfds.load.'fashion_mnist'"):
            datasets.load("tfds:fashion_mnist", self.create_tempdir().full_path)


class SegmentationTest(absltest.TestCase):
    def test_pixels_without_a_class_count_for_nothing(self):
        # Four pixels, of which the first has none; of the others two are right.
        targets = np.array([[[tasks.VOID, 0], [1, 2]]])
        outputs = np.eye(3)[np.array([[[0, 0], [1, 0]]])]
        self.assertAlmostEqual(tasks.SEGMENTATION.score(targets, outputs), 2 / 3)
        self.assertEqual(tasks.SEGMENTATION.score(np.full((1, 2, 2), tasks.VOID), outputs), 0.0)
        self.assertEqual(tasks.SEGMENTATION.score(targets, np.full((1, 2, 2, 3), np.nan)), 0.0)

    def test_camvid(self):
        masks = np.arange(12).reshape(1, 3, 4, 1)  # 11 is unlabelled
        images = np.full((1, 3, 4, 3), 51, np.uint8)

        def load(*arguments):
            self.assertEqual(arguments[0], "camvid")
            self.assertEqual(arguments[2:], ("nowhere", ("image", "segmentation_mask")))
            return images, masks

        with mock.patch.object(datasets, "_load_tfds", load):
            data = datasets.load("camvid", "nowhere")
        self.assertEqual(data.task.metric, "pixel_accuracy")
        np.testing.assert_allclose(data.test.x, 0.2)
        np.testing.assert_array_equal(data.train.y[0], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, -1]])

    def test_large_images_are_computed_fewer_at_a_time(self):
        # 2**23 numbers: 8,388,608 / (120 * 160 * 3) = 145.6.
        self.assertEqual(datasets.at_once(np.zeros((1, 120, 160, 3)), 512), 145)
        self.assertEqual(datasets.at_once(np.zeros((1, 32, 32, 3)), 2048), 2048)


class DetectionTest(absltest.TestCase):
    def test_bccd(self):
        # The second image has one object, and TFDS fills its rows up.
        found = {
            "bbox": np.array([[[0.1, 0.2, 0.5, 0.4], [0, 0, 1, 1]], [[0, 0.5, 1, 1], [0] * 4]]),
            "label": np.array([[2, 1], [0, 0]]),
        }
        images = np.full((2, 480, 640, 3), 51, np.uint8)
        images[0, 0, 0] = 255  # of 16 pixels: (255 - 51) / 16 = 12.75 more

        def load(*arguments):
            self.assertEqual(arguments[0], "bccd")
            self.assertEqual(arguments[2:], ("nowhere", ("image", "objects")))
            return images, found

        with mock.patch.object(datasets, "_load_tfds", load):
            data = datasets.load("bccd", "nowhere")
        self.assertEqual(data.task.metric, "map50")
        self.assertEqual(data.test.x.shape, (2, 120, 160, 3))
        self.assertEqual(data.test.x.dtype, np.float32)
        np.testing.assert_allclose(data.test.x[0, 0, :2, 0], [0.25, 0.2])
        self.assertEqual((data.train.y.shape, data.train.y.dtype), ((2, 32, 5), np.float32))
        np.testing.assert_allclose(
            data.train.y[0, :2], [[2, 0.3, 0.3, 0.4, 0.2], [1, 0.5, 0.5, 1, 1]], atol=1e-6
        )
        np.testing.assert_array_equal(data.train.y[1, 0], [0, 0.5, 0.75, 1, 0.5])
        np.testing.assert_array_equal((data.train.y[..., 0] == tasks.VOID).sum(axis=1), [30, 31])


class PolynomialTest(parameterized.TestCase):
    @parameterized.parameters(
        ("quartic", 2.0, lambda x: -2 * x**4 - 8 * x**3 + 5 * x**2 + 15),
        ("septic", 1.5, lambda x: -2 * x**7 + 2 * x**5 - 4 * x**3 + 15),
    )
    def test_the_function_explains_all_but_a_noise_of_5_percent(self, name, end, function):
        data = datasets.load(name)
        # 2,048 * 0.6 = 1,228.8 and 2,048 * 0.8 = 1,638.4, rounded down.
        parts = (data.train, data.validation, data.test)
        self.assertEqual([part.x.shape for part in parts], [(1228, 1), (410, 1), (410, 1)])
        self.assertEqual([part.y.shape for part in parts], [(1228, 1), (410, 1), (410, 1)])
        told = data.preprocessing
        x = np.concatenate([p.x for p in parts])[:, 0] * told["input_std"] + told["input_mean"]
        y = np.concatenate([p.y for p in parts])[:, 0] * told["output_std"] + told["output_mean"]
        # P(no sample in the outer hundredth of an end) = 0.995**2048 = 3e-5.
        self.assertBetween(x.max(), 0.99 * end, end)
        self.assertBetween(x.min(), -end, -0.99 * end)
        value = function(x)
        # The standard deviation of 2,048 normal numbers scatters by 1 / sqrt(4096) = 1.6 %; five of
        # them fail once in 1.7 million seeds.
        noise = (y - value).std() / value.std()
        self.assertBetween(noise, 0.05 * (1 - 5 / 64), 0.05 * (1 + 5 / 64))
        # 0.0025 / 1.0025 = 0.0025 is left; on 410 samples that scatters by 1 / sqrt(205) = 7 %, and
        # the targets' variance, flat or heavy at the ends, by about as much: +-0.001 is 5 of both.
        validation = slice(1228, 1638)
        explained = (value[validation] - told["output_mean"]) / told["output_std"]
        score = data.task.score(data.validation.y, explained[:, None])
        self.assertAlmostEqual(score, 0.9975, delta=0.001)

    def test_standardised_on_the_training_split_and_the_same_every_time(self):
        data = datasets.load("quartic")
        for values in (data.train.x, data.train.y):
            np.testing.assert_allclose([values.mean(), values.std()], [0, 1], rtol=0, atol=1e-5)
        self.assertEqual(data.fingerprint, datasets.load("quartic", "nowhere").fingerprint)
        self.assertNotEqual(data.fingerprint, datasets.load("septic").fingerprint)

    def test_california_housing_is_what_it_was(self):
        # Records name the data set by this.
        data = datasets.load("california_housing")
        self.assertEqual(data.fingerprint, "22a20cb74fad22e4")
        self.assertEqual(data.preprocessing["output"], "value * std + mean, in 100,000 USD")


if __name__ == "__main__":
    absltest.main()
