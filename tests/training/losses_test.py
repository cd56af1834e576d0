"""What trainings minimise, by hand."""

import math

import numpy as np
from absl.testing import absltest

from tfgen.nets.keras_compat import tf
from tfgen.training import box_losses, losses, tasks

WHOLE = (0, 0.5, 0.5, 1.0, 1.0)
NONE = (tasks.VOID, 0.0, 0.0, 0.0, 0.0)


def objects(*rows: tuple[float, ...]) -> tf.Tensor:
    return tf.constant([rows], tf.float32)


class TeacherTest(absltest.TestCase):
    def test_shares_at_a_temperature(self):
        # At 2 the teacher's shares are 3/4 and 1/4; the network's, 1/2 each, are ln 2 from any.
        teacher, logits = tf.constant([[2 * math.log(3.0), 0.0]]), tf.zeros((1, 2))
        warm = losses.from_teacher(tasks.CLASSIFICATION, temperature=2.0)
        np.testing.assert_allclose(warm(teacher, logits), 4 * math.log(2.0), rtol=1e-6)
        own = 4 * -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))  # the least there is
        np.testing.assert_allclose(warm(teacher, teacher), own, rtol=1e-6)
        # At 1 they are 9/10 and 1/10.
        sharp = losses.from_teacher(tasks.CLASSIFICATION)
        own = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
        np.testing.assert_allclose(sharp(teacher, teacher), own, rtol=1e-6)

    def test_numbers_have_no_temperature(self):
        distance = losses.from_teacher(tasks.REGRESSION, temperature=4.0)
        np.testing.assert_allclose(distance(tf.constant([[3.0]]), tf.constant([[1.0]])), 4.0)


class AssignedTest(absltest.TestCase):
    def test_cells_of_objects(self):
        # In cells the middle of the whole image is at 2, half a cell from 1.5 and 2.5, and that of
        # a small object at 2.4: nearer to 2.5 down and across, and to no other cell.
        small = (2, 0.6, 0.6, 0.1, 0.1)
        shown, owners = box_losses.assigned(objects(WHOLE, NONE, small), tf.zeros((1, 4, 4, 7)))
        expected = np.zeros((4, 4))
        expected[1:3, 1:3] = 1.0
        np.testing.assert_array_equal(shown[0], expected)
        np.testing.assert_array_equal(owners[0, 2, 2], np.float32(small))
        np.testing.assert_array_equal(owners[0, 1, 2], WHOLE)

    def test_an_image_without_objects(self):
        shown, _ = box_losses.assigned(objects(NONE, NONE), tf.zeros((1, 4, 5, 7)))
        np.testing.assert_array_equal(shown, np.zeros((1, 4, 5)))


class LossTest(absltest.TestCase):
    def test_overlap(self):
        one = tf.constant([[0.25, 0.25, 0.5, 0.5], [0.5, 0.25, 1.0, 0.5], [0.5, 0.5, 1.0, 1.0]])
        other = tf.constant([[0.75, 0.75, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0]])
        # Two quarters share nothing and leave half of the image around them; a half of the image
        # and all of it; the same.
        np.testing.assert_allclose(box_losses.overlap(one, other), [-0.5, 0.5, 1.0], atol=1e-6)

    def test_one_cell(self):
        loss_of = losses.of(tasks.DETECTION)
        # Two classes at a logit of 0 lose ln 2 each; zeros are the place of the whole image.
        outputs = np.zeros((1, 1, 1, 6), np.float32)
        self.assertAlmostEqual(float(loss_of(objects(WHOLE), outputs)), 2 * math.log(2), places=6)
        # Half as high: the overlap is a half.
        outputs[..., -2] = math.log(0.5)
        expected = 2 * math.log(2) + 0.5
        self.assertAlmostEqual(float(loss_of(objects(WHOLE), outputs)), expected, places=6)
        # Nothing is there, and where it is does not count.
        self.assertAlmostEqual(float(loss_of(objects(NONE), outputs)), 2 * math.log(2), places=6)
        outputs[..., :2] = (30.0, -30.0)
        self.assertAlmostEqual(float(loss_of(objects(WHOLE), outputs)), 0.5, places=6)

    def test_divided_by_the_cells_that_show_an_object(self):
        # Two cells beside each other, an object in the first: ln 2 of both, for one.
        left = (0, 0.5, 0.25, 1.0, 0.5)
        loss = losses.of(tasks.DETECTION)(objects(left), tf.zeros((1, 1, 2, 5)))
        self.assertAlmostEqual(float(loss), 2 * math.log(2), places=6)
        # Objects in both: ln 2 of both, for two.
        right = (0, 0.5, 0.75, 1.0, 0.5)
        loss = losses.of(tasks.DETECTION)(objects(left, right), tf.zeros((1, 1, 2, 5)))
        self.assertAlmostEqual(float(loss), math.log(2), places=6)

    def test_a_teacher(self):
        distance = losses.from_teacher(tasks.DETECTION)
        teacher, outputs = np.zeros((2, 1, 1, 1, 5), np.float32)
        outputs[..., -2] = math.log(0.5)
        # Half sure of what is half as high: ln 2 + 0.5 * 0.5, for one cell at least.
        self.assertAlmostEqual(float(distance(teacher, outputs)), math.log(2) + 0.25, places=6)
        teacher[..., 0] = 30.0
        self.assertAlmostEqual(float(distance(teacher, outputs)), math.log(2) + 0.5, places=6)
        outputs = teacher.copy()
        self.assertAlmostEqual(float(distance(teacher, outputs)), 0.0, places=6)

    def test_outputs_that_are_far_off_have_gradients(self):
        outputs = tf.fill((1, 4, 4, 7), 90.0)
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            loss = losses.of(tasks.DETECTION)(objects(WHOLE, NONE), outputs)
        self.assertTrue(np.isfinite(loss))
        self.assertTrue(np.isfinite(tape.gradient(loss, outputs)).all())


if __name__ == "__main__":
    absltest.main()
