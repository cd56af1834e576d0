"""Objects in images: how a grid is read, and mAP by hand."""

import numpy as np
from absl.testing import absltest

from tfgen.training import boxes, tasks

QUARTERS = np.array([[0.0, 0.0, 0.5, 0.5], [0.0, 0.5, 0.5, 1.0], [0.5, 0.0, 1.0, 0.5]])


def found(*scored: tuple[float, int]) -> boxes.Found:
    """Boxes of some sureness, each one of QUARTERS."""
    scores, places = zip(*scored, strict=True)
    return boxes.Found(np.array(scores), QUARTERS[list(places)])


class BoxesTest(absltest.TestCase):
    def test_corners_and_overlaps(self):
        np.testing.assert_allclose(boxes.corners([0.5, 0.4, 0.2, 0.4]), [0.4, 0.2, 0.6, 0.6])
        # Two squares of side 2 that share one of side 1: 1 / (4 + 4 - 1).
        one, other = np.array([[0.0, 0, 2, 2], [5, 5, 6, 6]]), np.array([[1.0, 1, 3, 3]])
        np.testing.assert_allclose(boxes.overlaps(one, other), [[1 / 7], [0]])
        np.testing.assert_allclose(boxes.overlaps(one, one), np.eye(2))

    def test_a_grid_is_read(self):
        outputs = np.zeros((2, 2, 2 + 4), np.float32)
        outputs[..., :2] = -5.0  # less than a hundredth
        # Below the middle of the lower left cell, which lies at (0.75, 0.25): (-0.5, 0.25) cells of
        # half the image on; one cell high, two wide.
        outputs[1, 0] = (-5.0, 2.0, -0.5, 0.25, 0.0, np.log(2.0))
        none, some = boxes.read(outputs)
        self.assertEmpty(none.scores)
        np.testing.assert_allclose(some.scores, [2.0])
        np.testing.assert_allclose(some.corners, [[0.25, -0.125, 0.75, 0.875]], atol=1e-6)

    def test_of_boxes_of_one_object_the_surest_is_kept(self):
        outputs = np.zeros((1, 3, 2 + 4), np.float32)
        # The first two cells tell of one place, half of a cell from either; the third of its own.
        outputs[0, :, 0] = (1.0, 3.0, 2.0)
        outputs[0, :, 1] = (-9.0, -9.0, 0.5)
        outputs[0, :2, 3] = (0.5, -0.5)
        first, second = boxes.read(outputs)
        np.testing.assert_allclose(first.scores, [3.0, 2.0])
        np.testing.assert_allclose(first.corners[:, 1], [1 / 6, 2 / 3])
        np.testing.assert_allclose(second.scores, [0.5])

    def test_average_precision(self):
        objects = [QUARTERS[:2], QUARTERS[2:]]
        # By sureness: right, wrong, right; the last is of an object that is taken. One is not
        # found. Precision at recall 1/3 is 1, at 2/3 it is 2/3: (1 + 2/3) / 3.
        made = [found((5, 0), (4, 2), (2, 0)), found((3, 2))]
        self.assertAlmostEqual(boxes.average_precision(objects, made), 5 / 9)
        # Wrong, right, right: 1/2 is raised to the 2/3 that a higher recall has.
        made = [found((5, 2), (4, 0)), found((3, 2))]
        self.assertAlmostEqual(boxes.average_precision(objects, made), 4 / 9)
        self.assertEqual(boxes.average_precision(objects, [found((1, 2)), found((1, 0))]), 0.0)

    def test_mean_over_classes_that_there_are(self):
        # Cells are quarters. Class 0 is in the first one and found; class 1 in the second and the
        # third, of which one is found: 1/2. Nothing is of class 2, wherever it is seen.
        targets = np.array([[[0, 0.25, 0.25, 0.5, 0.5], [1, 0.25, 0.75, 0.5, 0.5],
                             [1, 0.75, 0.25, 0.5, 0.5], [tasks.VOID, 0, 0, 0, 0]]])  # fmt: skip
        outputs = np.zeros((1, 2, 2, 3 + 4), np.float32)
        outputs[..., :3] = -9.0
        outputs[0, 0, 0, 0] = outputs[0, 0, 1, 1] = outputs[0, 1, 1, 2] = 4.0
        self.assertAlmostEqual(tasks.DETECTION.score(targets, outputs), 0.75)
        # A box of little more than half the height shares a half: right still. Of less: wrong.
        outputs[0, 0, 0, -2] = np.log(0.51)
        self.assertAlmostEqual(tasks.DETECTION.score(targets, outputs), 0.75)
        outputs[0, 0, 0, -2] = np.log(0.49)
        self.assertAlmostEqual(tasks.DETECTION.score(targets, outputs), 0.25)
        self.assertEqual(tasks.DETECTION.score(targets[:, 3:], outputs), 0.0)
        self.assertEqual(tasks.DETECTION.score(targets, np.full_like(outputs, np.nan)), 0.0)


if __name__ == "__main__":
    absltest.main()
