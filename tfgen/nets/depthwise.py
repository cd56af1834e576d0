"""A depthwise convolution whose kernel's gradient does not fall off a cliff.

oneDNN computes the gradient of a depthwise kernel fast where it is at most three columns wide and
the stride is 1, and about ten times as slowly where it is wider, which then is most of a training
step of a network with kernels of 5x5 and 7x7. So that gradient is computed in strips of three
columns, each of them of the images moved by as much (`tools/bench_depthwise.py` has the times).
"""

from __future__ import annotations

from collections.abc import Callable

from tfgen.nets.keras_compat import tf

_STRIP = 3  # columns of a kernel


def convolved(x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
    """`tf.nn.depthwise_conv2d` of one output a channel.

    Args:
      x: images [batch, height, width, channels].
      kernel: of known height and width [height, width, channels, 1].
      stride: of both directions.
      padding: SAME or VALID.
    """
    strides = [1, stride, stride, 1]
    height, width = (int(side) for side in kernel.shape[:2])
    if stride > 1 or width <= _STRIP:
        return tf.nn.depthwise_conv2d(x, kernel, strides, padding)

    @tf.custom_gradient
    def in_strips(
        x: tf.Tensor, kernel: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            shape = tf.shape(x)
            of_x = tf.nn.depthwise_conv2d_backprop_input(shape, kernel, upstream, strides, padding)
            padded = x
            if padding == "SAME":
                above, left = (height - 1) // 2, (width - 1) // 2
                below, right = height - 1 - above, width - 1 - left
                padded = tf.pad(x, [[0, 0], [above, below], [left, right], [0, 0]])
            channels, across = tf.shape(kernel)[2], tf.shape(upstream)[2]
            strips = []
            for column in range(0, width, _STRIP):
                wide = min(_STRIP, width - column)
                part = padded[:, :, column : column + across + wide - 1]
                strips.append(
                    tf.nn.depthwise_conv2d_backprop_filter(
                        part, [height, wide, channels, 1], upstream, strides, "VALID"
                    )
                )
            return of_x, tf.concat(strips, axis=1)

        return tf.nn.depthwise_conv2d(x, kernel, strides, padding), gradients

    return in_strips(x, kernel)
