"""Whether files compute what was trained: random networks of a space, trained briefly and exported.

    verify_export --space=mnist_mobile --dataset=mnist_images --data_dir=TFDS --output=FILE.json

Each network is drawn at random, with its bits, trained with quantization in the loop, exported
(which compares every stored level) and run over the whole test split, with XNNPACK and without,
against the network in Keras. Networks are kept in FILE, so a stopped run goes on.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from tfgen import errors, program, seeds, workdir
from tfgen.cost import counting, kernels
from tfgen.cost.cost_model import CostModel
from tfgen.space import bits, catalog
from tfgen.space.lowering import lower, lower_batch
from tfgen.tables import table
from tfgen.training import datasets
from tfgen.training.recipe import Recipe

_SPACE = flags.DEFINE_string("space", None, "Of the catalogue.", required=True)
_DATASET = flags.DEFINE_string("dataset", None, "Of the catalogue.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory, for data that does not ship.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.", required=True)
_NETWORKS = flags.DEFINE_integer("networks", 20, "How many.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 400, "Of each training.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Of each training.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-3, "Of each training.")
_FLOAT_SHARE = flags.DEFINE_float("float_share", 0.5, "Of the steps, before weights are rounded.")
_ACTIVATION_BITS = flags.DEFINE_integer("activation_bits", 8, "Of every network: 8 or 16.")
_FAST = flags.DEFINE_bool(
    "fast", False, "Only networks that need no slow kernel for their weights."
)
_MAX_MACS = flags.DEFINE_float("max_macs", 1e12, "Only networks of at most this many.")
_SEED = flags.DEFINE_integer("seed", 1, "Of draws and trainings.")

_DRAWN = 100  # for each network that is wanted


def main(argv: Sequence[str]) -> None:
    """Prints the figures of each network and writes them as JSON."""
    del argv
    space = catalog.get(_SPACE.value)
    dataset = datasets.load(_DATASET.value, _DATA_DIR.value)
    output = workdir.user_path(_OUTPUT.value)
    recipe = Recipe(
        steps=_STEPS.value,
        batch_size=_BATCH_SIZE.value,
        learning_rate=_LEARNING_RATE.value,
        warmup_steps=_STEPS.value // 10,
        float_share=_FLOAT_SHARE.value,
    )
    settings = {
        "space": space.name,
        "dataset": dataset.fingerprint,
        "recipe": recipe.to_json(),
        "activation_bits": _ACTIVATION_BITS.value,
        "seed": _SEED.value,
        "fast": _FAST.value,
        "max_macs": _MAX_MACS.value,
    }
    kept = workdir.read_json(output) if output.is_file() else {**settings, "networks": []}
    if {name: kept.get(name) for name in settings} != settings:
        raise errors.UsageError(f"{output}: holds networks of other settings; name another file")
    rows: list[dict[str, Any]] = kept["networks"]
    choices = space.sample(
        _DRAWN * _NETWORKS.value, seeds.stream(_SEED.value, "verify", space.name)
    )
    slots = lower_batch(space, choices)
    wanted = counting.macs(slots) <= _MAX_MACS.value
    if _FAST.value:
        wanted &= kernels.accelerated(slots, bits.load(space.bit_policy))
    choices = choices[wanted][: _NETWORKS.value]
    for number, row in enumerate(choices[len(rows) :], start=len(rows)):
        rows.append(_verified(space, row, dataset, recipe, seeds.derive(_SEED.value, "v", number)))
        workdir.write_json(output, kept)
        print(rows[-1], flush=True)
    print(_summary(rows))


def _verified(
    space: Any, choices: np.ndarray, dataset: datasets.Dataset, recipe: Recipe, seed: int
) -> dict[str, Any]:
    """Trains, exports and compares one network."""
    from tfgen.deployment import benchmark, export
    from tfgen.training import trainer

    architecture = space.architecture(choices)
    layers = lower(space, architecture, _ACTIVATION_BITS.value)
    costs = CostModel(space, _ACTIVATION_BITS.value).costs(choices[np.newaxis])
    result: dict[str, Any] = {
        "network": architecture.fingerprint,
        "layers": len(layers),
        "weight_bits": [layer.weight_bits for layer in layers if layer.weighted],
        "macs": int(costs["macs"][0]),
        "predicted_bytes": round(1000 * float(costs["file_kb"][0])),
    }
    trained = trainer.train(layers, dataset, recipe, seed)
    x, y = dataset.test.x, dataset.test.y
    start = time.monotonic()
    try:
        exported = export.export(trained.model, trained.layers, x, space.bit_policy)
    except errors.ExportMismatchError as error:
        return {**result, "refused": str(error)}
    expected = trainer.predict(trained.model, x)
    result |= {
        "export_seconds": round(time.monotonic() - start, 1),
        "file_bytes": len(exported.content),
        "keras": dataset.task.score(y, expected),
    }
    with tempfile.TemporaryDirectory(prefix="tfgen-") as folder:
        path = pathlib.Path(folder) / "model.tflite"
        path.write_bytes(exported.content)
        for name, xnnpack in (("file", True), ("builtin", False)):
            outputs = benchmark.predict(path, x, xnnpack=xnnpack, timeout_seconds=1000)
            result[name] = dataset.task.score(y, outputs)
            if expected.shape[-1] > 1:
                same = outputs.argmax(axis=-1) == expected.argmax(axis=-1)
                result[f"{name}_agreement"] = float(same.mean())
    return result


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    """The worst and the middle of each figure."""
    whole = [row for row in rows if "refused" not in row]
    figures = {
        "|score of the file - of Keras|": [abs(row["file"] - row["keras"]) for row in whole],
        "|score without XNNPACK - of Keras|": [abs(r["builtin"] - r["keras"]) for r in whole],
        "|predicted bytes / bytes - 1|": [
            abs(row["predicted_bytes"] / row["file_bytes"] - 1) for row in whole
        ],
    }
    for name in ("file", "builtin"):
        agreed = [1 - row[f"{name}_agreement"] for row in whole if f"{name}_agreement" in row]
        if agreed:
            figures[f"share of other decisions, {name}"] = agreed
    cells = [
        [name, f"{np.median(values):.5f}", f"{max(values):.5f}"] for name, values in figures.items()
    ]
    text = table([f"{len(whole)} networks", "median", "largest"], cells)
    return f"{text}\n{len(rows) - len(whole)} of {len(rows)} refused by export"


if __name__ == "__main__":
    program.run(main)
