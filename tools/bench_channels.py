"""What a step of batch normalisation takes by the number of channels, in 32 bits and in 16.

    taskset -c 0 python tools/bench_channels.py

Forward pass and gradient, as a training has them. All take turns; told are medians by channel. Why
`nets/aligned.py` adds channels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from absl import flags

from tfgen import program

_BATCH = flags.DEFINE_integer("batch", 128, "Images of 16x16 pixels.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 15, "Of each.", lower_bound=1)
_CHANNELS = (4, 8, 12, 16, 24, 32, 40, 48, 56, 64)


def main(argv: Sequence[str]) -> int:
    del argv
    from tfgen.nets.keras_compat import tf

    def normalising(dtype: tf.DType, channels: int) -> Callable[[], tf.Tensor]:
        shape = (_BATCH.value, 16, 16, channels)
        x, dy = (tf.cast(tf.random.stateless_normal(shape, (0, n)), dtype) for n in range(2))
        scale, shift = tf.ones(channels), tf.zeros(channels)

        @tf.function(autograph=False)
        def step(x: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y, _, _ = tf.compat.v1.nn.fused_batch_norm(x, scale, shift, is_training=True)
            return tape.gradient(y, x, output_gradients=dy)

        return lambda: step(x, dy)

    dtypes = (tf.float32, tf.bfloat16)
    runs = {(c, dtype.name): normalising(dtype, c) for c in _CHANNELS for dtype in dtypes}
    seconds: dict[tuple[int, str], list[float]] = {key: [] for key in runs}
    for turn in range(_TURNS.value + 1):
        for key, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn:  # the first one traces
                seconds[key].append(time.perf_counter() - begin)
    print("channels  float32_us_a_channel  bfloat16_us_a_channel")
    for channels in _CHANNELS:
        found = [1e6 * statistics.median(seconds[channels, d.name]) / channels for d in dtypes]
        print(f"{channels:8}  {found[0]:20.0f}  {found[1]:21.0f}")
    return 0


if __name__ == "__main__":
    program.run(main)
