"""From a Keras detector to the measured file of a smaller one, on images that are made here."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest

from tfgen import bundle as bundles
from tfgen import seeds, supernets
from tfgen.deployment import delivered
from tfgen.nets.keras_compat import keras, tf
from tfgen.training import augmentation, boxes, datasets, losses

SIZE, SLOT = (480, 640), 160
COLOURS = (230, 40, 40), (240, 240, 240)  # of class 0 and of class 1, which is larger
SIDES = 80, 120  # pixels


def examples(count: int) -> Iterator[dict[str, Any]]:
    """Dark images of 3x4 slots, each with a square of either class or none, for TFDS."""
    random = seeds.stream(5, "squares", count)
    for number in range(count):
        image = random.integers(0, 60, (*SIZE, 3)).astype(np.uint8)
        objects = []
        for slot in range(12):
            label = int(random.integers(3))
            if label == len(SIDES):
                continue
            side = SIDES[label]
            top, left = np.array(divmod(slot, 4)) * SLOT + random.integers(SLOT - side, size=2)
            image[top : top + side, left : left + side] = COLOURS[label]
            ends = (top / SIZE[0], left / SIZE[1], (top + side) / SIZE[0], (left + side) / SIZE[1])
            objects.append({"bbox": tfds.features.BBox(*ends), "label": label})
        yield {"image": image, "image/filename": f"{number}.jpg", "objects": objects}


def store(folder: pathlib.Path) -> None:
    """Writes such images under BCCD's name and with its features."""
    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "image/filename": tfds.features.Text(),
        "objects": tfds.features.Sequence(
            {
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(names=["RBC", "WBC", "Platelets"]),
            }
        ),
    }
    splits = {"train": 64, "validation": 24, "test": 25}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="bccd",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={name: enumerate(examples(count)) for name, count in splits.items()},
        data_dir=str(folder),
    )


def trained(data: datasets.Dataset) -> keras.Model:
    """A detector with cells of 8x8 pixels that has learned the squares."""
    keras.utils.set_random_seed(1)
    k = keras.layers
    model = keras.Sequential([keras.Input(data.train.x.shape[1:])])
    for width, stride in ((8, 2), (16, 2), (24, 2), (24, 1), (24, 1)):
        model.add(k.Conv2D(width, 3, stride, padding="same", use_bias=False))
        model.add(k.BatchNormalization(momentum=0.9))
        model.add(k.ReLU())
    model.add(k.Conv2D(2 + 4, 1))
    loss_of, optimizer = losses.of(data.task), keras.optimizers.Adam(4e-3)
    optimizer.build(model.trainable_variables)
    random = seeds.stream(6, "batches")

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    for _ in range(250):
        rows = random.integers(len(data.train), size=8)
        step(*augmentation.examples(data.train.x[rows], data.train.y[rows], 8, True, random))
    return model


class DetectionTest(absltest.TestCase):
    def test_from_a_detector_to_the_file_of_a_smaller_one(self):
        root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        store(root / "tfds")
        data = datasets.load("bccd", str(root / "tfds"))
        # TFDS gives back what it was given, in another order of images.
        given = [
            (one["label"], *np.rint(np.multiply(one["bbox"], SIZE * 2)).astype(int))
            for example in examples(len(data.test))
            for one in example["objects"]
        ]
        rows = data.test.y[data.test.y[..., 0] >= 0]
        pixels = np.rint(boxes.corners(rows[:, 1:]) * (SIZE * 2)).astype(int)
        self.assertCountEqual(given, [*zip(rows[:, 0], *pixels.T, strict=True)])
        model = trained(data)
        map50 = data.task.score(data.test.y, model.predict(data.test.x, verbose=0))
        self.assertGreater(map50, 0.8)
        model.save(root / "detector.keras")
        out, limit = root / "out", 6_000_000
        done = subprocess.run(
            [sys.executable, "-m", "tfgen.generate",
             f"--prototype={root / 'detector.keras'}", "--task=bccd",
             f"--data_dir={root / 'tfds'}", f"--require=map50=0.1,macs={limit}", "--count=1",
             "--adaptation_epochs=10", "--cycles=3", "--confidence=0.6", "--tuning_steps=60",
             "--distillation=1",
             f"--output_dir={out}"],
            capture_output=True, check=False, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(done.stdout.count("contract kept"), 1)
        (path,) = out.glob("deployments/*/contract.json")
        terms = {t["metric"]: t["measured"] for t in json.loads(path.read_text())["terms"]}
        self.assertGreaterEqual(terms["map50"], 0.1)
        # Of 3x3 windows on 60x80, 30x40 and 15x20 places and the head on the last.
        whole = 9 * (4800 * 3 * 8 + 1200 * 8 * 16 + 300 * (16 * 24 + 2 * 24 * 24)) + 300 * 24 * 6
        self.assertLess(limit, whole)
        self.assertLessEqual(terms["macs"], limit)
        # The prototype teaches as it is, whatever the batch that it sees.
        bundle = bundles.load(out / "bundle")
        x = data.test.x[:3]
        taught = supernets.teacher(bundle.space, bundle.shared)(tf.constant(x))
        np.testing.assert_allclose(taught, model.predict(x, verbose=0), rtol=1e-3, atol=1e-3)
        score = delivered.score(path.parent / "model.tflite", data, data.test)
        self.assertEqual(score, terms["map50"])


if __name__ == "__main__":
    absltest.main()
