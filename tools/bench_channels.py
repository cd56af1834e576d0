"""What a training step takes by the number of channels: in 32 bits, in 16, in 16 with zeros added.

    taskset -c 0 python tools/bench_channels.py

Batches of 128 images through eight normalised 3x3 convolutions of so many channels at 16x16 pixels.
All take turns; told are medians. Why `nets/aligned.py` adds channels: oneDNN normalises in 16 bits
ten times as slowly where they are no multiple of 16.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from tfgen import program, seeds
from tfgen.space.layers import INPUT, LayerSpec

_TURNS = flags.DEFINE_integer("turns", 7, "Of each.", lower_bound=1)
_CHANNELS = (4, 8, 12, 16, 24, 28, 32, 40, 48, 56)
_BATCH, _SIDE, _DEEP, _CLASSES = 128, 16, 8, 10
_STEPS = 3  # of a turn


def main(argv: Sequence[str]) -> int:
    del argv
    from tfgen.nets import aligned, network
    from tfgen.training import datasets, float_training
    from tfgen.training.recipe import FloatStage

    random = seeds.stream(0, "images")
    x = random.normal(size=(_STEPS * _BATCH, _SIDE, _SIDE, 3)).astype(np.float32)
    split = datasets.Split(x, random.integers(_CLASSES, size=len(x)))
    dataset = datasets.Dataset("noise", datasets.tasks.CLASSIFICATION, split, split, split, {})

    def training(channels: int, bfloat16: bool, wider: bool) -> float_training.FloatTraining:
        own = layers(channels)
        shown = aligned.aligned(own) if wider else aligned.as_it_is(own)
        model = network.build(shown.layers, x.shape[1:])
        stage = FloatStage(_TURNS.value + 1, _BATCH, learning_rate=0.01, bfloat16=bfloat16)
        return float_training.FloatTraining(model, dataset, stage, 0)

    ways = {"float32": (False, False), "bfloat16": (True, False), "with zeros": (True, True)}
    print("channels  " + "  ".join(f"{name:>10}" for name in ways) + "  ms a step")
    for channels in _CHANNELS:
        runs = [training(channels, *way) for way in ways.values()]
        seconds: list[list[float]] = [[] for _ in runs]
        for turn in range(_TURNS.value + 1):
            for own, run in zip(seconds, runs, strict=True):
                begin = time.perf_counter()
                run.run_epoch()
                if turn:  # the first one traces
                    own.append(time.perf_counter() - begin)
        told = [1e3 * statistics.median(own) / _STEPS for own in seconds]
        print(f"{channels:8}  " + "  ".join(f"{ms:10.1f}" for ms in told))
    return 0


def layers(channels: int) -> list[LayerSpec]:
    """The network."""
    image = {"in_size": (_SIDE, _SIDE), "out_size": (_SIDE, _SIDE)}
    normal = {"kernel": 3, "weight_bits": 8, "activation": "relu", "batch_norm": True, **image}
    names = [f"conv_{number}" for number in range(_DEEP)]
    found = [
        LayerSpec(
            name=name,
            op="conv",
            inputs=(before,),
            in_channels=3 if before == INPUT else channels,
            out_channels=channels,
            **normal,
        )
        for before, name in zip([INPUT, *names[:-1]], names, strict=True)
    ]
    ends = {"in_channels": channels, "out_channels": channels, "in_size": (_SIDE, _SIDE)}
    mean = LayerSpec(name="mean", op="mean", inputs=(names[-1],), **ends)
    logits = LayerSpec(
        name="logits",
        op="dense",
        inputs=("mean",),
        in_channels=channels,
        out_channels=_CLASSES,
        weight_bits=8,
    )
    return [*found, mean, logits]


if __name__ == "__main__":
    program.run(main)
