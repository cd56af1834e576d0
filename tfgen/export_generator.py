"""export_generator: a bundle's generator as a model of TF Serving.

    export_generator --bundle=DIR/bundle --output=MODELS/tfgen

Writes the next version, MODELS/tfgen/1 at first, and beside it how to start the server. A request
holds budgets; the answer holds networks that are predicted to keep them, chosen in the graph.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from absl import flags

from tfgen import bundle as bundles
from tfgen import errors, pipeline, program, workdir
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CONFIDENCE, LATENCY
from tfgen.deployment.served import Answerer
from tfgen.deployment.serving import Served
from tfgen.selection import Ranking, Selector

_BUNDLE = flags.DEFINE_string(
    "bundle", None, "A trained bundle of the zoo, or the folder of one.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The model's folder; its name is the model's.", required=True
)
_METHOD = flags.DEFINE_string(
    "method", None, "Which method's generator answers. Default: the bundle's first."
)
_COUNT = flags.DEFINE_integer("count", 5, "Answers for a budget.", lower_bound=1)
_DRAWS = flags.DEFINE_integer("draws", 64, "Networks that they are chosen from.", lower_bound=1)
_BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", ["1", "8", "32", "128"], "Budgets in a request; larger ones are refused."
)
_CONFIDENCE = flags.DEFINE_float("confidence", CONFIDENCE, "Of each end of a predicted interval.")
_MAX_DISTANCE = flags.DEFINE_float(
    "max_distance", 0.1, "Most distance between a draw's predicted performance and its condition."
)
_RANK_BY = flags.DEFINE_string(
    "rank_by", "auto", "quality, distance, netscore or a cost metric; auto: quality under cost "
    "limits, else storage_kb."
)  # fmt: skip
_DEVICE = flags.DEFINE_string(
    "device", None, "A profiled device, whose latency budgets may limit then."
)
_MOST_PAIRS = 4_000_000  # of draws, that a request compares


def main(argv: Sequence[str]) -> int:
    """Exports a version; returns the exit code."""
    del argv
    sizes = _sizes(_BATCH_SIZES.value)
    selector = Selector(
        count=_COUNT.value,
        draws=_DRAWS.value,
        max_rounds=1,
        refinements=0,
        confidence=_CONFIDENCE.value,
        max_distance=_MAX_DISTANCE.value,
        ranking=Ranking(_RANK_BY.value),
    )
    if sizes[-1] * selector.draws**2 > _MOST_PAIRS:
        raise errors.UsageError(
            f"{sizes[-1]} budgets of {selector.draws} draws are too many for a request: budgets "
            f"times the square of draws may be {_MOST_PAIRS:,}"
        )
    base = workdir.user_path(_OUTPUT.value)
    path = bundles.find(_BUNDLE.value)
    bundle = bundles.load(path)
    method = _METHOD.value or bundle.default_method
    generator = bundle.generator(method)
    costs = bundle.cost_model
    if _DEVICE.value is not None:
        any_latency = Budget({LATENCY: 1.0}, device=_DEVICE.value)
        costs = pipeline.cost_model(bundle, any_latency, 1, None)
    answerer = Answerer(
        bundle.space, generator, bundle.surrogate, costs, bundle.task.metric, selector
    )
    served = Served(
        base.name,
        bundle.space.name,
        method,
        answerer.metrics,
        answerer.costs,
        selector.count,
        selector.draws,
        sizes,
        _DEVICE.value,
    )
    version = _export(answerer, served, base, path)
    print(f"version {version.name} of {served.name} in {base}; budgets may limit: ", end="")
    print(", ".join(served.metrics))
    return 0


def _export(
    answerer: Answerer, served: Served, base: pathlib.Path, bundle: pathlib.Path
) -> pathlib.Path:
    from tfgen.deployment import serving_export  # imports TensorFlow

    return serving_export.export(
        answerer,
        served,
        base,
        config={"bundle": bundle.name, "selector": dataclasses.asdict(answerer.selector)},
        parents={f"{bundle.name}/{workdir.MANIFEST}": workdir.sha256(bundle / workdir.MANIFEST)},
    )


def _sizes(texts: Sequence[str]) -> tuple[int, ...]:
    """Ascending sizes; raises UsageError."""
    try:
        sizes = tuple(sorted({int(text) for text in texts}))
    except ValueError:
        raise errors.UsageError(f"--batch_sizes={','.join(texts)}: not integers") from None
    if not sizes or sizes[0] < 1:
        raise errors.UsageError("--batch_sizes are at least 1")
    return sizes


def run() -> None:
    """The console script."""
    program.run(main)


if __name__ == "__main__":
    run()
