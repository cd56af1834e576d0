"""Networks per second: the population trainer against one tf_keras `fit` at a time.

Both train the same architectures of one space with the same recipe, batches and weight rounding.
Rounds alternate between the two, so that whatever else the machine does slows both; a ratio is one
of the same round.

    bazel run -c opt //tools:bench_population -- --sampling=points --output=/tmp/population.json

CNNs: --space=cifar10_cnn --dataset=cifar10_16x16 --data_dir=TFDS --steps=400 --batch_size=48

Keras's times are what a user pays for a network: build, compile, trace and fit, with TensorFlow's
own threads; `fit` alone is that of a second fit of the same model, which is traced already. On a
busy machine look at the ratio of CPU times, which is what the ratio would be if Keras kept all
cores busy: about the least that an idle machine shows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags

from tfgen import seeds
from tfgen.space import catalog, lowering
from tfgen.space.layers import LayerSpec
from tfgen.training import datasets, population
from tfgen.training.recipe import Recipe, initial_weights

_SPACE = flags.DEFINE_string("space", "california_housing_mlp", "Name of the space.")
_DATASET = flags.DEFINE_string("dataset", "california_housing", "Name of the data set.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory; none is TFDS's own default.")
_SAMPLING = flags.DEFINE_enum(
    "sampling",
    "points",
    ["points", "parameters"],
    "points: every network is equally likely, most are deep and wide. parameters: every decision "
    "by its own distribution, as records are collected.",
)
_NETWORKS = flags.DEFINE_integer("networks", 200, "Networks of the population.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Alternations of the two.", lower_bound=1)
_KERAS_NETWORKS = flags.DEFINE_integer(
    "keras_networks", 2, "Networks a round that Keras trains with each setting.", lower_bound=1
)
_STEPS = flags.DEFINE_integer("steps", 1000, "Gradient steps of a training.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 128, "Examples a step.", lower_bound=1)
_PROCESSES = flags.DEFINE_integer("processes", os.cpu_count(), "Processes.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Decides architectures, weights and batches.")
_OUTPUT = flags.DEFINE_string("output", None, "A .json file for all numbers.")


@dataclasses.dataclass(frozen=True)
class Setting:
    """How Keras is asked to fit.

    Attributes:
      name: in the table.
      jit_compile: `compile`'s argument.
      steps_per_execution: `compile`'s argument.
      tf_data: batches come from a tf.data.Dataset, not from arrays.
    """

    name: str
    jit_compile: bool | None = None
    steps_per_execution: int | None = None
    tf_data: bool = False


SETTINGS = (
    Setting("fit(arrays)"),
    Setting("fit(tf.data)", tf_data=True),
    Setting("fit(tf.data), 100 steps per execution", steps_per_execution=100, tf_data=True),
    Setting("fit(tf.data), jit", jit_compile=True, tf_data=True),
    Setting("fit(tf.data), jit, 100 steps per execution", True, 100, True),
)


def keras_twin(member: population.Member, task_loss: str, recipe: Recipe, setting: Setting) -> Any:
    """The member as a compiled Keras model, at the member's initial weights.

    Args:
      member: the network.
      task_loss: `Task.loss`.
      recipe: its learning rates are the optimizer's.
      setting: how to compile.
    """
    from tfgen.nets.keras_compat import keras, tf

    def rounded(kernel: Any, bits: int) -> Any:
        """The kernel [.., out] on its levels, with a straight-through gradient."""
        kernel = tf.convert_to_tensor(kernel)
        largest = tf.reduce_max(tf.abs(kernel), list(range(kernel.shape.rank - 1)))
        scale = tf.maximum(largest, 1e-8) / (2 ** (bits - 1) - 1)
        return kernel + tf.stop_gradient(tf.round(kernel / scale) * scale - kernel)

    class RoundedDense(keras.layers.Dense):
        """A dense layer that rounds its kernel."""

        def __init__(self, bits: int, **options: Any):
            super().__init__(**options)
            self.bits = bits

        def call(self, inputs: Any) -> Any:
            return self.activation(tf.matmul(inputs, rounded(self.kernel, self.bits)) + self.bias)

    class RoundedConv(keras.layers.Conv2D):
        """A convolution that rounds its kernel."""

        def __init__(self, bits: int, **options: Any):
            super().__init__(padding="same", **options)
            self.bits = bits

        def call(self, inputs: Any) -> Any:
            kernel = rounded(self.kernel, self.bits)
            return self.activation(tf.nn.conv2d(inputs, kernel, self.strides, "SAME") + self.bias)

    class Rates(keras.optimizers.schedules.LearningRateSchedule):
        """The recipe's learning rates; the last one for steps beyond."""

        def __init__(self, rates: np.ndarray):
            self.rates = rates

        def __call__(self, step: Any) -> Any:
            return tf.gather(tf.constant(self.rates), tf.minimum(step, len(self.rates) - 1))

    def twin(layer: LayerSpec) -> Any:
        options = {"bits": layer.weight_bits, "activation": layer.activation}
        if layer.op == "dense":
            return RoundedDense(units=layer.out_channels, **options)
        if layer.op == "conv":
            window = {"kernel_size": layer.kernel, "strides": layer.stride}
            return RoundedConv(filters=layer.out_channels, **window, **options)
        if layer.op == "max_pool":
            return keras.layers.MaxPooling2D(layer.kernel, layer.stride, "same")
        return keras.layers.GlobalAveragePooling2D()

    first = member.layers[0]
    model = keras.Sequential(
        [keras.Input((*first.in_size, first.in_channels)), *map(twin, member.layers)]
    )
    model.set_weights([x for pair in initial_weights(member.layers, member.seed) for x in pair])
    loss = {
        "mean_squared_error": keras.losses.MeanSquaredError(),
        "softmax_cross_entropy": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }[task_loss]
    model.compile(
        keras.optimizers.Adam(Rates(recipe.learning_rates()), jit_compile=False),
        loss,
        jit_compile=setting.jit_compile,
        steps_per_execution=setting.steps_per_execution,
    )
    return model


def time_keras(
    member: population.Member, dataset: datasets.Dataset, recipe: Recipe, setting: Setting
) -> tuple[float, float, float]:
    """Seconds from build to fitted, seconds of a second fit alone, CPU seconds of the first."""
    from tfgen.nets.keras_compat import keras, tf

    keras.backend.clear_session()
    start, cpu = time.perf_counter(), time.process_time()
    rows = recipe.batches(len(dataset.train), member.seed)  # [steps, batch]
    x, y = dataset.train.x[rows], dataset.train.y[rows]
    model = keras_twin(member, dataset.task.loss, recipe, setting)
    if setting.tf_data:
        batches = tf.data.Dataset.from_tensor_slices((x, y)).prefetch(tf.data.AUTOTUNE)
        options: dict[str, Any] = {"x": batches}
    else:
        flat = {"x": x, "y": y}
        options = {k: v.reshape(-1, *v.shape[2:]) for k, v in flat.items()}
        options |= {"batch_size": rows.shape[1], "shuffle": False}
    model.fit(**options, epochs=1, verbose=0)
    fitted, cpu = time.perf_counter(), time.process_time() - cpu
    model.fit(**options, epochs=1, verbose=0)
    return fitted - start, time.perf_counter() - fitted, cpu


def _sample_members(count: int) -> list[population.Member]:
    space = catalog.get(_SPACE.value)
    random = seeds.stream(_SEED.value, "bench_population")
    draw = space.sample_points if _SAMPLING.value == "points" else space.sample
    return [
        population.Member(
            lowering.lower(space, space.architecture(row)), seeds.derive(_SEED.value, i)
        )
        for i, row in enumerate(draw(count, random))
    ]


def _children_cpu() -> float:
    """CPU seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _interval(ratios: Sequence[float]) -> str:
    return f"{np.median(ratios):7.1f}  ({min(ratios):.1f} .. {max(ratios):.1f})"


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    dataset = datasets.load(_DATASET.value, _DATA_DIR.value)
    recipe = Recipe(_STEPS.value, _BATCH.value, warmup_steps=min(50, _STEPS.value))
    members = _sample_members(_NETWORKS.value)
    weights = np.mean(
        [
            sum(s.kernel**2 * s.in_channels * s.out_channels for s in m.layers if s.weighted)
            for m in members
        ]
    )
    print(
        f"{len(members)} networks of {_SPACE.value} by {_SAMPLING.value}, on average "
        f"{weights:,.0f} weights; {len(dataset.train):,} examples, batch {recipe.batch_size}, "
        f"{recipe.steps} steps"
    )
    # TensorFlow's first model pays for more than itself.
    time_keras(members[0], dataset, recipe, SETTINGS[0])

    rounds = [list(part) for part in np.array_split(np.arange(len(members)), _ROUNDS.value)]
    ours: list[float] = []  # seconds a network, by round
    ours_cpu: list[float] = []
    theirs: dict[str, list[list[tuple[float, float, float]]]] = {s.name: [] for s in SETTINGS}
    for number, part in enumerate(rounds):
        start, cpu = time.perf_counter(), _children_cpu()
        chosen = [members[i] for i in part]
        outcomes = list(population.train(chosen, dataset, recipe, processes=_PROCESSES.value))
        ours.append((time.perf_counter() - start) / len(outcomes))
        ours_cpu.append((_children_cpu() - cpu) / len(outcomes))
        for setting in SETTINGS:
            theirs[setting.name].append(
                [time_keras(m, dataset, recipe, setting) for m in chosen[: _KERAS_NETWORKS.value]]
            )
        keras_seconds = [np.mean(times[-1], axis=0)[0] for times in theirs.values()]
        print(
            f"round {number + 1} of {len(rounds)}: {1 / ours[-1]:.2f} networks/s; Keras "
            + ", ".join(f"{1 / seconds:.2f}" for seconds in keras_seconds),
            flush=True,
        )

    table = {}
    for name, times in theirs.items():
        mean = np.mean(times, axis=1)  # [rounds, 3]
        table[name] = {
            "networks_per_second": float(1 / mean[:, 0].mean()),
            "second_fit_seconds": float(mean[:, 1].mean()),
            "ratios": (mean[:, 0] / ours).tolist(),
            "fit_only_ratios": (mean[:, 1] / ours).tolist(),
            "cpu_ratios": (mean[:, 2] / ours_cpu).tolist(),
            "seconds": times,
        }
    print(f"population, {_PROCESSES.value} processes: {1 / np.mean(ours):.2f} networks/s\n")
    print("ratio: median (min .. max) of the rounds")
    print(f"{'Keras, one at a time':43}{'networks/s':>10}   {'ratio':25}{'of CPU time':25}to fit")
    for name, row in table.items():
        ratios = [_interval(row[key]) for key in ("ratios", "cpu_ratios", "fit_only_ratios")]
        print(f"{name:43}{row['networks_per_second']:10.3f}{''.join(f'{r:25}' for r in ratios)}")
    best = max(table, key=lambda name: table[name]["networks_per_second"])
    print(f"best of Keras: {best}")
    if _OUTPUT.value:
        result = {
            "flags": {f.name: f.value for f in flags.FLAGS.get_key_flags_for_module(argv[0])},
            "average_weights": float(weights),
            "population_seconds_per_network": ours,
            "population_cpu_seconds_per_network": ours_cpu,
            "keras": table,
            "best_of_keras": best,
        }
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
