"""A generator as a TF Serving model: BASE/VERSION, and what the server needs beside it.

BASE/1/saved_model.pb, variables/             the graph
BASE/1/assets.extra/served.json               what its arrays mean, for clients
BASE/1/assets.extra/tf_serving_warmup_requests  a request of each batch size, which the server runs
                                              when it loads a version: one that fails is not served
BASE/1/manifest.json                          what made it
BASE/models.config, batching.config, README.md  how to start the server

A server looks for new versions all the time, so one appears whole or not at all. The graph is a
tf.Module of constants: what Keras 3 saves loads in Python and not in the server.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import errors, seeds, workdir
from tfgen.cost.budget import QUALITY_METRICS
from tfgen.deployment.served import Answerer, Answers, Requests
from tfgen.deployment.serving import EXTRA, SERVED, SIGNATURE, Served, versions
from tfgen.nets import tensors
from tfgen.nets.keras_compat import quiet, tf

WARMUP = f"{EXTRA}/tf_serving_warmup_requests"
MODELS_CONFIG, BATCHING_CONFIG, README = "models.config", "batching.config", "README.md"
_SAMPLED = 512  # networks, between whose costs the limits of warm-up requests lie
_TOLERANCE = 1e-9  # of numbers, relative


def export(
    answerer: Answerer,
    served: Served,
    base: pathlib.Path,
    *,
    config: Mapping[str, Any],
    parents: Mapping[str, str],
) -> pathlib.Path:
    """Writes the next version of a model.

    Args:
      answerer: what is served.
      served: what clients are told of it.
      base: the model's folder.
      config: what made it, for the manifest.
      parents: name -> sha256 of the files that it was made from.

    Returns:
      The version's folder.

    Raises:
      UsageError: an extra package is missing.
      ExportMismatchError: the saved graph answers otherwise than the generator does.
    """
    protos = _protos()
    with workdir.owning(base):
        version = base / str(max(versions(base), default=0) + 1)
        with workdir.writing_folder(version) as folder:
            module = _module(answerer, served)
            with quiet():
                tf.saved_model.save(module, str(folder), signatures={SIGNATURE: module.answer})
            requests = [_requests(answerer, size) for size in served.batch_sizes]
            (folder / EXTRA).mkdir()
            with tf.io.TFRecordWriter(str(folder / WARMUP)) as writer:
                for one in requests:
                    writer.write(protos.warmup(served.name, one).SerializeToString())
            _compare(folder, answerer, requests)
            workdir.write_json(folder / SERVED, served.to_json())
            workdir.write_manifest(
                folder,
                config={**config, "served": served.to_json()},
                seed=0,
                data={},
                parents=parents,
            )
    name, sizes = served.name, served.batch_sizes
    for file, text in (
        (MODELS_CONFIG, _models_config(name)),
        (BATCHING_CONFIG, _batching_config(sizes)),
        (README, _readme(served)),
    ):
        workdir.write_bytes(base / file, text.encode())
    return version


# --- the graph ------------------------------------------------------------------------------------


def _module(answerer: Answerer, served: Served) -> Any:
    """A tf.Module whose `answer` is the signature."""
    columns, most = len(answerer.metrics), max(served.batch_sizes)
    texts = [
        tf.constant([f"{d.name}={value}" for value in d.values]) for d in answerer.space.decisions
    ]

    def described(choices: Any, valid: Any) -> Any:
        """Networks in words, the values of their active decisions [budgets, count]."""
        active = answerer.space.active(choices, tensors)
        words = [
            tf.where(active[..., number], tf.gather(text, choices[..., number]), "")
            for number, text in enumerate(texts)
        ]
        whole = tf.strings.reduce_join(tf.stack(words, axis=-1), axis=-1, separator=" ")
        whole = tf.strings.strip(tf.strings.regex_replace(whole, " +", " "))
        return tf.where(valid, whole, "")

    decisions = tf.TensorSpec([None, len(answerer.space.decisions)], tf.int64)
    counted = tf.function(functools.partial(answerer.counted, tensors), input_signature=[decisions])

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, columns], tf.float64, "limit"),
            tf.TensorSpec([None, columns], tf.bool, "has_limit"),
            tf.TensorSpec([None], tf.int64, "seed"),
        ]
    )
    def answer(limit, has_limit, seed):  # type: ignore[no-untyped-def]
        with tf.control_dependencies(_checks(answerer, limit, has_limit, seed, most)):
            # All of them: nothing is drawn for a request that is refused.
            limit, has_limit, seed = map(tf.identity, (limit, has_limit, seed))
        found = answerer(tensors, Requests(limit, has_limit, seed), counted)
        outputs = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        outputs["text"] = described(found.choices, found.valid)
        outputs["meaning"] = tf.fill(tf.shape(seed), served.meaning)
        return {name: tf.identity(value, name=name) for name, value in outputs.items()}

    module = tf.Module()
    module.answer = answer
    return module


def _checks(answerer: Answerer, limit: Any, has_limit: Any, seed: Any, most: int) -> list[Any]:
    """Assertions on a request: the server answers INVALID_ARGUMENT with their words."""
    *costs, quality = answerer.metrics
    top = tf.constant([np.inf] * len(costs) + [QUALITY_METRICS[quality]], tf.float64)
    above = tf.constant([True] * len(costs) + [False])
    low = tf.where(above, limit > 0, limit >= 0)

    def holds(condition: Any, words: str) -> Any:
        return tf.debugging.Assert(tf.reduce_all(condition), [words])

    rows = tf.shape(limit)[0]
    return [
        holds(tf.shape(has_limit)[0] == rows, "has_limit and limit are of as many budgets"),
        holds(tf.shape(seed)[0] == rows, "there is a seed for each budget"),
        holds((rows >= 1) & (rows <= most), f"a request has 1 to {most} budgets"),
        holds(tf.math.is_finite(limit), "a limit is a finite number"),
        holds(low | ~has_limit, "a limit on a cost lies above 0, one on quality at 0 or above"),
        holds((limit <= top) | ~has_limit, f"{quality} is at most {QUALITY_METRICS[quality]:g}"),
        holds(tf.reduce_any(has_limit, axis=1), "an empty budget: limit at least one metric"),
    ]


# --- what is checked before a version appears -----------------------------------------------------


def _requests(answerer: Answerer, size: int) -> Requests:
    """Budgets between the least and the most of each cost, and one on quality alone."""
    sample = answerer.space.sample(_SAMPLED, seeds.stream(0, "served", "sample"))
    costs = answerer.costs_of(sample)
    shape = (size, len(answerer.metrics))
    limit, has_limit = np.zeros(shape), np.zeros(shape, np.bool_)
    for row in range(size):
        column = row % len(answerer.metrics)
        if column < len(answerer.costs):
            share = (row + 0.5) / size
            limit[row, column] = np.quantile(costs[answerer.metrics[column]], share)
        has_limit[row, column] = True
    return Requests(limit, has_limit, np.arange(size, dtype=np.int64))


def _compare(folder: pathlib.Path, answerer: Answerer, requests: Sequence[Requests]) -> None:
    """Raises ExportMismatchError where a session on the saved graph answers otherwise."""
    for one, found in zip(requests, run_session(folder, requests), strict=True):
        expected = answerer(np, one)
        for field in dataclasses.fields(Answers):
            ours, theirs = getattr(expected, field.name), found[field.name]
            if ours.dtype.kind == "f":
                same = np.allclose(ours, theirs, rtol=_TOLERANCE, atol=0.0)
            else:
                same = np.array_equal(ours, theirs)
            if not same:
                raise errors.ExportMismatchError(
                    f"{folder}: the saved graph and the generator disagree on {field.name!r}"
                )


def run_session(folder: pathlib.Path, requests: Sequence[Requests]) -> list[dict[str, np.ndarray]]:
    """What the signature answers to each, in a session as the server's, by the outputs' names."""
    v1 = tf.compat.v1
    with quiet(), v1.Session(graph=tf.Graph()) as session:
        loaded = v1.saved_model.loader.load(session, [v1.saved_model.SERVING], str(folder))
        signature = loaded.signature_def[SIGNATURE]
        outputs = {name: info.name for name, info in signature.outputs.items()}
        return [
            session.run(outputs, {signature.inputs[n].name: v for n, v in one.inputs.items()})
            for one in requests
        ]


# --- what lies beside -----------------------------------------------------------------------------


def _protos() -> Any:
    """The module of TF Serving's messages; raises UsageError where packages are missing."""
    try:
        from tfgen.deployment import serving_messages
    except ImportError as error:
        raise errors.UsageError(
            f"{error.name} is not installed: pip install 'tfgen[serving]'"
        ) from error
    return serving_messages


def _models_config(name: str) -> str:
    return f"""model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
  }}
}}
"""


def _batching_config(sizes: Sequence[int]) -> str:
    """No request waits for others to come, and few queue before the rest is refused."""
    allowed = "\n".join(f"allowed_batch_sizes: {size}" for size in sizes)
    return f"""max_batch_size {{ value: {max(sizes)} }}
batch_timeout_micros {{ value: 0 }}
max_enqueued_batches {{ value: 4 }}
num_batch_threads {{ value: 2 }}
{allowed}
"""


def _readme(served: Served) -> str:
    name = served.name
    run = (
        "docker run --rm -p 127.0.0.1:8500:8500 -p 127.0.0.1:8501:8501 "
        f'--mount type=bind,source="$PWD",target=/models/{name}'
    )
    configured = (
        f"--model_config_file=/models/{name}/{MODELS_CONFIG} --enable_batching "
        f"--batching_parameters_file=/models/{name}/{BATCHING_CONFIG}"
    )
    return f"""# {name}: answers budgets with networks of {served.space}

Method {served.method}, {served.draws} draws and {served.count} answers a budget. In this folder:

    {run} -e MODEL_NAME={name} tensorflow/serving

    {run} tensorflow/serving {configured}

The second merges requests that come together; a request that is refused then fails those it was
merged with. `tfgen.deployment.serving.Client` checks budgets before it sends them.

Inputs of `{SIGNATURE}`, for each budget: `limit` float64 and `has_limit` bool, in the order
{", ".join(served.metrics)} (the most of a cost, the least of {served.metrics[-1]}; 0 for what is
not limited), and `seed` int64. Outputs, {served.count} for each budget, best first: `choices`,
`cost` and `cost_high` (in the order {", ".join(served.costs)}), `metric`, `metric_low`,
`metric_high`, `valid` and `text`.
"""
