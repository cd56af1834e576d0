"""Files side by side: what each is fed, its score, its time."""

import dataclasses

import numpy as np
from absl.testing import absltest

from tests.space.small import every_op
from tfgen import errors, seeds
from tfgen.deployment import benchmark, probe
from tfgen.space import bits
from tfgen.training import tasks
from tfgen.training.datasets import Dataset, Split
from tools import compare_files


class CompareFilesTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.create_tempdir()
        content = probe.write_probe(every_op(), (8, 8, 1), bits.load("litert-2.3"))
        self.own, self.pixels = (
            folder.create_file(name, content, mode="wb").full_path for name in ("a", "b")
        )
        self.bytes = len(content)
        x = seeds.stream(1, "images").random((50, 8, 8, 1)).astype(np.float32)
        # The classes are what the file says of pixels.
        y = benchmark.predict(self.own, 255.0 * x).argmax(axis=1)
        self.as_they_are = float((benchmark.predict(self.own, x).argmax(axis=1) == y).mean())
        split = Split(x, y)
        told = {"input": "pixels / 255"}
        self.data = Dataset("toy", tasks.CLASSIFICATION, split, split, split, told)

    def test_each_file_gets_what_it_reads(self):
        first, second = compare_files.compare([self.own], [self.pixels], self.data, windows=3)
        self.assertEqual([first.accuracy, second.accuracy], [self.as_they_are, 1.0])
        self.assertEqual([first.file_bytes, second.file_bytes], [self.bytes] * 2)
        self.assertEqual(first.times_the_first, 1.0)
        self.assertAlmostEqual(second.times_the_first, second.latency_ms / first.latency_ms)

    def test_what_cannot_be_compared_is_refused(self):
        other = dataclasses.replace(self.data, preprocessing={"input": "standardised"})
        with self.assertRaisesRegex(errors.UsageError, "'toy' does not hold pixels"):
            compare_files.compare([self.own], [self.pixels], other, windows=3)
        with self.assertRaisesRegex(errors.CorruptFileError, "nowhere: file is missing"):
            compare_files.compare(["nowhere"], [], self.data, windows=3)


if __name__ == "__main__":
    absltest.main()
