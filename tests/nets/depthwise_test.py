import numpy as np
from absl.testing import absltest, parameterized

from tfgen.nets import depthwise
from tfgen.nets.keras_compat import tf


def _gradients(run, x, kernel, upstream):
    with tf.GradientTape() as tape:
        tape.watch((x, kernel))
        y = run(x, kernel)
    return [y, *tape.gradient(y, (x, kernel), output_gradients=upstream)]


class ConvolvedTest(parameterized.TestCase):
    def test_gradient_by_hand(self):
        # One row of four pixels under a kernel of 1 x 5 that reads two to each side. Upstream is 1
        # at the second pixel alone, so the kernel's gradient is what lay under it there.
        x = tf.reshape(tf.constant([2.0, 3.0, 5.0, 7.0]), (1, 1, 4, 1))
        kernel = tf.reshape(tf.constant([1.0, 10.0, 100.0, 1000.0, 10000.0]), (1, 5, 1, 1))
        upstream = tf.reshape(tf.constant([0.0, 1.0, 0.0, 0.0]), (1, 1, 4, 1))
        y, of_x, of_kernel = _gradients(
            lambda x, kernel: depthwise.convolved(x, kernel, 1, "SAME"), x, kernel, upstream
        )
        np.testing.assert_array_equal(y.numpy().ravel(), [53200, 75320, 7532, 753])
        np.testing.assert_array_equal(of_x.numpy().ravel(), [10.0, 100.0, 1000.0, 10000.0])
        np.testing.assert_array_equal(of_kernel.numpy().ravel(), [0.0, 2.0, 3.0, 5.0, 7.0])

    @parameterized.product(
        kernel=[(3, 3), (5, 5), (7, 7), (4, 4), (3, 7), (1, 5)],
        stride=[1, 2],
        padding=["SAME", "VALID"],
    )
    def test_as_tensorflow_has_it(self, kernel, stride, padding):
        random = np.random.default_rng(0)
        x = tf.constant(random.normal(size=(3, 9, 11, 2)), tf.float32)
        weights = tf.constant(random.normal(size=(*kernel, 2, 1)), tf.float32)
        strides = [1, stride, stride, 1]
        shape = tf.nn.depthwise_conv2d(x, weights, strides, padding).shape
        upstream = tf.constant(random.normal(size=shape), tf.float32)

        def theirs(x, weights):
            return tf.nn.depthwise_conv2d(x, weights, strides, padding)

        def ours(x, weights):
            return depthwise.convolved(x, weights, stride, padding)

        expected = _gradients(theirs, x, weights, upstream)
        for run in (ours, tf.function(ours)):
            found = _gradients(run, x, weights, upstream)
            for a, b in zip(expected, found, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)

    def test_sizes_need_not_be_known(self):
        """Supernets trace a stage once for all widths."""

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None, None, None]),
                tf.TensorSpec([5, 5, None, 1]),
            ]
        )
        def of_kernel(x, kernel):
            with tf.GradientTape() as tape:
                tape.watch(kernel)
                y = depthwise.convolved(x, kernel, 1, "SAME")
            return tape.gradient(y, kernel)

        for channels in (2, 3):
            ones = tf.ones((1, 6, 6, channels)), tf.ones((5, 5, channels, 1))
            # Each of the kernel's columns sees 4, 5, 6, 5 and 4 of the six columns of pixels.
            seen = np.outer([4, 5, 6, 5, 4], [4, 5, 6, 5, 4])
            found = of_kernel(*ones).numpy()
            self.assertEqual(found.shape, (5, 5, channels, 1))
            np.testing.assert_array_equal(found[..., -1, 0], seen)


if __name__ == "__main__":
    absltest.main()
