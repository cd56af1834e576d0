"""What the gradient of a depthwise kernel takes, in strips and as TensorFlow has it.

    taskset -c 0 python tools/bench_depthwise.py

Both take turns; told are medians and their ratio, beside the forward pass.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from absl import flags

from tfgen import program

_BATCH = flags.DEFINE_integer("batch", 128, "Images.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 9, "Of each.", lower_bound=1)
_SIZES = ((16, 96), (8, 192), (4, 240))  # side of the images, channels
_KERNELS = (3, 5, 7)


def main(argv: Sequence[str]) -> int:
    del argv
    from tfgen.nets import depthwise
    from tfgen.nets.keras_compat import tf

    def theirs(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")

    def ours(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return depthwise.convolved(x, kernel, 1, "SAME")

    def gradient(run: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Callable[..., tf.Tensor]:
        @tf.function(autograph=False)
        def of_kernel(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(kernel)
                y = run(x, kernel)
            return tape.gradient(y, kernel, output_gradients=y)

        return of_kernel

    print("images      kernel  forward_ms  tensorflow_ms  strips_ms  ratio")
    for side, channels in _SIZES:
        for kernel in _KERNELS:
            x = tf.random.stateless_normal((_BATCH.value, side, side, channels), (0, 0))
            weights = tf.random.stateless_normal((kernel, kernel, channels, 1), (0, 1))
            runs = (tf.function(theirs, autograph=False), gradient(theirs), gradient(ours))
            seconds: list[list[float]] = [[] for _ in runs]
            for turn in range(_TURNS.value + 1):
                for own, run in zip(seconds, runs, strict=True):
                    begin = time.perf_counter()
                    run(x, weights)
                    if turn:  # the first one traces
                        own.append(time.perf_counter() - begin)
            forward, before, after = (1e3 * statistics.median(own) for own in seconds)
            print(
                f"{side:2} x {side:2} x {channels:3}  {kernel}  {forward:8.2f}  {before:8.2f}  "
                f"{after:8.2f}  {before / after:5.2f}"
            )
    return 0


if __name__ == "__main__":
    program.run(main)
