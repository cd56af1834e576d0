"""generate: from a budget to a measured .tflite.

    generate --budget=storage_kb=0.5,r2=0.72

    generate --prototype=my_model.keras --task=cifar10 --require=accuracy=0.89 --count=4

Prints the candidates, trains the best one with quantization in the loop, writes model.tflite,
recipe.json and contract.json, runs the file and prints the contract. Exit codes: 0 all contracts
hold, 2 bad usage, 3 infeasible, 4 a contract was missed after measuring, 1 anything else.

With --prototype the networks are smaller ones made of a network of yours: a generator is learned
first, which takes minutes to hours and is kept in --output_dir; then it answers as others do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from tfgen import bundle as bundles
from tfgen import errors, generators, making, pipeline, program, prototypes, training_flags, workdir
from tfgen.cost.budget import Budget, parse_all, rounded_up
from tfgen.cost.cost_model import CONFIDENCE, LATENCY, CostModel
from tfgen.cost.netscore import information_density, netscore
from tfgen.deployment import devices
from tfgen.selection import NETSCORE, Candidate, Ranking, Selector
from tfgen.space.architecture import Architecture
from tfgen.space.lowering import lower
from tfgen.space.search_space import SearchSpace
from tfgen.tables import number, table
from tfgen.training import datasets
from tfgen.training.recipe import LARGEST_ZOOM

_BUDGET = flags.DEFINE_multi_string(
    "budget", [], "What you can afford: storage_kb=64,accuracy=0.87. Costs are at most, the task's "
    "metric is at least. Repeat for several answers."
)  # fmt: skip
_PROTOTYPE = flags.DEFINE_string(
    "prototype", None, "A network of yours to make smaller ones of: a .keras or .h5 file, or "
    "FILE.py:FUNCTION that returns a model, which is run."
)  # fmt: skip
_TASK = flags.DEFINE_string(
    "task",
    None,
    "The data set that --prototype is for: cifar10; tfds:NAME is any of TFDS whose images "
    "have one size and a class each.",
)
_REQUIRE = flags.DEFINE_multi_string(
    "require", [], "With --prototype, what its networks must keep: accuracy=0.89. As --budget."
)
_ADAPTATION_EPOCHS = flags.DEFINE_integer(
    "adaptation_epochs", 4, "With --prototype: of training its weights for smaller networks.",
    lower_bound=1,
)  # fmt: skip
_CYCLES = flags.DEFINE_integer(
    "cycles", 12, "With --prototype: of generating, probing and learning.", lower_bound=1
)
_REACH = flags.DEFINE_float(
    "reach", 0.25, "With --prototype: how far below its score networks are written that inherit "
    "weights; training to the end makes up for it.", lower_bound=0.01, upper_bound=1.0,
)  # fmt: skip
_TUNING_STEPS = flags.DEFINE_integer(
    "tuning_steps", 2500, "With --prototype: of training one network to its end.", lower_bound=1
)
_DISTILLATION = flags.DEFINE_float(
    "distillation", 0.0, "With --prototype: weight of its outputs beside the labels, where a "
    "network is trained to its end.", lower_bound=0.0, upper_bound=100.0,
)  # fmt: skip
_FLOAT_EPOCHS = flags.DEFINE_integer(
    "float_epochs", 0, "With --prototype: of training one network in float, before --tuning_steps "
    "with its rounding.", lower_bound=0
)  # fmt: skip
_LIGHT = flags.DEFINE_float(
    "light", 0.0, "With --prototype: by how much images are brighter or darker at most, where a "
    "network is trained to its end: a share.", lower_bound=0.0, upper_bound=0.9,
)  # fmt: skip
_ZOOM = flags.DEFINE_float(
    "zoom", 0.0, "As --light: by how much things look larger or smaller.",
    lower_bound=0.0, upper_bound=LARGEST_ZOOM,
)  # fmt: skip
_BFLOAT16 = flags.DEFINE_bool(
    "bfloat16", False, "With --float_epochs: computes these in numbers of 16 bits, which is faster "
    "on processors that have them (avx512_bf16, amx_bf16) and slow on others."
)  # fmt: skip
_LOW_BITS = flags.DEFINE_bool(
    "low_bits", False, "With --prototype: offers convolutions of fewer than 8 bits, which are "
    "smaller and slower."
)  # fmt: skip
_BUNDLE = flags.DEFINE_string(
    "bundle", None, "A trained bundle of the zoo, or the folder of one. Default: the zoo's first "
    "for the quality that is asked for."
)  # fmt: skip
_METHOD = flags.DEFINE_string(
    "method", None, "Which method's generator answers. Default: the bundle's first."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "tfgen_output", "Where everything is written.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "TFDS directory, for trainings on data that do not ship (MNIST, CIFAR-10); "
    "inherited weights are tested on a few images without one.",
)
_TABLES_DIR = flags.DEFINE_string(
    "tables_dir", None, "Where public tables lie, for budgets on devices that others measured."
)
_SEED = flags.DEFINE_integer("seed", 0, "Equal seeds give equal answers.", lower_bound=0)
_COUNT = flags.DEFINE_integer(
    "count", None, "Candidates to show for a budget, 10 by default; with --prototype networks to "
    "deliver, 4 by default."
)  # fmt: skip
_DRAWS = flags.DEFINE_integer("draws", 4096, "Networks drawn in a round.")
_REFINEMENTS = flags.DEFINE_integer(
    "refinements", 10, "Steps in which neighbours of the best draws are tried."
)
_CONFIDENCE = flags.DEFINE_float("confidence", CONFIDENCE, "Of each end of a predicted interval.")
_MAX_DISTANCE = flags.DEFINE_float(
    "max_distance", 0.1, "Most distance between a draw's predicted performance and its condition."
)
_RANK_BY = flags.DEFINE_string(
    "rank_by", "auto", "quality, distance, netscore or a cost metric; auto: quality under cost "
    "limits, else netscore with --prototype, else storage_kb."
)  # fmt: skip
_MAX_TRAININGS = flags.DEFINE_integer(
    "max_trainings", 3, "Candidates to train until one keeps the contract, for each to deliver.",
    lower_bound=1,
)  # fmt: skip
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of the measured runtime.", lower_bound=1)
_IO = flags.DEFINE_enum("io", "float", ["float", "int8"], "The file's input and output.")
_ACTIVATION_BITS = flags.DEFINE_enum(
    "activation_bits", "8", ["8", "16"], "Of the whole network; 16 run on slow kernels."
)
_TRAIN = flags.DEFINE_enum(
    "train", None, pipeline.STARTS, "How a candidate gets its weights: inherited from the bundle's "
    "supernet in seconds, the default where there is one; fine-tuned from there; or trained from "
    "scratch, the default elsewhere."
)  # fmt: skip
_TRAINING = training_flags.define(
    making.SECONDS, None, "a training's whole process", "one candidate after the other, here"
)
_STOP_AFTER = flags.DEFINE_enum(
    "stop_after", "contract", ["candidates", "contract"], "Where to stop."
)

_SHOWN, _DELIVERED = 10, 4
_COSTS = (
    LATENCY,
    "file_kb",
    "storage_kb",
    "energy_uj",
    "macs",
)  # columns of the table of candidates
# What a stage is, by its block, options in braces; its bits follow.
_WORDS = {
    "conv": "{kernel}>{channels}",
    "dense": "{units}",
    "layer": "{channels}",
    "pointwise": "{channels}",
    "residual": "{kernel},{kernel}>{channels}",
    "unified": "{sub_blocks}>{channels}",
}


def main(argv: Sequence[str]) -> int:
    """Answers every budget; returns the exit code."""
    del argv
    try:
        return _answer_all()
    except errors.InfeasibleBudgetError as error:
        _complain(error)
        return error.exit_code


def _complain(error: errors.TfgenError) -> None:
    program.complain(error, "budget" if _PROTOTYPE.value is None else "require")


def _answer_all() -> int:
    start = time.monotonic()
    if _METHOD.value is not None:
        generators.get(_METHOD.value)
    _check_prototype_flags()
    _TRAINING.place()  # says what is wrong
    budgets = parse_all(_REQUIRE.value if _PROTOTYPE.value else _BUDGET.value)
    _check_devices(budgets)
    if _IO.value == "int8" and _ACTIVATION_BITS.value != "8":
        raise errors.UsageError("--io=int8 needs --activation_bits=8")
    selector = Selector(
        count=_wanted() * (_MAX_TRAININGS.value if _PROTOTYPE.value else 1),
        draws=_DRAWS.value,
        refinements=_REFINEMENTS.value,
        confidence=_CONFIDENCE.value,
        max_distance=_MAX_DISTANCE.value,
        ranking=Ranking(_RANK_BY.value),
    )
    bundle = dataclasses.replace(
        bundles.load(_bundle_path(budgets)) if _PROTOTYPE.value is None else _made(budgets),
        activation_bits=int(_ACTIVATION_BITS.value),
        io=_IO.value,
    )
    if _TRAIN.value in (pipeline.INHERIT, pipeline.QAT) and bundle.shared is None:
        raise errors.UsageError(
            f"--train={_TRAIN.value}: bundle {bundle.name!r} has no supernet; leave the flag out"
        )
    pipeline.check_executed(bundle)
    method = _METHOD.value or bundle.default_method
    bundle.generator(method)
    tables_dir = workdir.user_path(_TABLES_DIR.value) if _TABLES_DIR.value else None
    for budget in budgets:
        pipeline.check_metric(bundle, budget)
        if budget.device not in (None, devices.HOST):  # said before this machine is profiled
            pipeline.cost_model(bundle, budget, _THREADS.value, tables_dir)
    if _THREADS.value == 1 and any(budget.device == devices.HOST for budget in budgets):
        pipeline.profile_missing(bundle, _CONFIDENCE.value, _say)
    costs = [pipeline.cost_model(bundle, b, _THREADS.value, tables_dir) for b in budgets]
    for budget, model in zip(budgets, costs, strict=True):
        pipeline.check_answerable(bundle, budget, model)
    answers: list[list[Candidate]] = []
    for budget, model in zip(budgets, costs, strict=True):
        try:
            own = dataclasses.replace(selector, ranking=_ranking(budget))
            answer = pipeline.answer(bundle, budget, model, method, own, _SEED.value, _say)
        except errors.InfeasibleBudgetError as error:
            _complain(error)
            answers.append([])
            continue
        print(f"\nbudget {budget}: {len(answer)} candidates by {method}, best first")
        print(_candidates_table(bundle, answer))
        answers.append(answer)
    exit_code = 0 if all(answers) else errors.InfeasibleBudgetError.exit_code
    if not any(answers):
        return exit_code
    work = workdir.WorkDir(workdir.user_path(_OUTPUT_DIR.value))
    rows = [
        {
            "budget": str(budget),
            "activation_bits": bundle.activation_bits,
            "input_output": bundle.io,
            "candidates": [candidate.to_json() for candidate in answer],
        }
        for budget, answer in zip(budgets, answers, strict=True)
    ]
    workdir.write_json(work.candidates, rows)
    print(f"\n{time.monotonic() - start:.1f} s to the candidates; written to {work.candidates}")
    if _STOP_AFTER.value == "candidates":
        return exit_code
    sys.stdout.flush()
    codes = [_deliver(bundle, answer, work) for answer in answers if answer]
    print(f"\n{time.monotonic() - start:.0f} s in all")
    return max([exit_code, *codes])


def run() -> None:
    """The console script."""
    program.run(main)


def _wanted() -> int:
    """Candidates to show for a budget; with --prototype networks to deliver."""
    if _COUNT.value is not None:
        return _COUNT.value
    return _DELIVERED if _PROTOTYPE.value else _SHOWN


def _check_prototype_flags() -> None:
    """Raises UsageError for flags that do not go together with --prototype, or without it."""
    if _PROTOTYPE.value is None:
        for flag in (
            _TASK, _REQUIRE, _ADAPTATION_EPOCHS, _CYCLES, _REACH, _TUNING_STEPS, _DISTILLATION,
            _FLOAT_EPOCHS, _LIGHT, _ZOOM, _BFLOAT16, _LOW_BITS,
        ):  # fmt: skip
            if flag.present:
                raise errors.UsageError(f"--{flag.name} goes with --prototype")
        return
    if _BFLOAT16.value and not _FLOAT_EPOCHS.value:
        raise errors.UsageError("--bfloat16 goes with --float_epochs")
    if _TASK.value is None or _BUNDLE.value is not None:
        raise errors.UsageError("--prototype needs --task, and no --bundle")
    if _BUDGET.value or not _REQUIRE.value:
        raise errors.UsageError(
            "--prototype needs --require in place of --budget; it may limit costs too: "
            "--require=accuracy=0.89,macs=8e6"
        )
    if _METHOD.value not in (None, *prototypes.METHODS):
        raise errors.UsageError(
            f"--method={_METHOD.value}: a prototype's networks are of "
            f"{' or '.join(prototypes.METHODS)}"
        )


def _ranking(budget: Budget) -> Ranking:
    """How candidates are ordered; a prototype's by U, as the paper does."""
    if _PROTOTYPE.value and _RANK_BY.value == "auto" and not budget.limits:
        return Ranking(NETSCORE)
    return Ranking(_RANK_BY.value)


def _made(budgets: Sequence[Budget]) -> bundles.Bundle:
    """The bundle of a prototype, made where the output directory has none yet."""
    defaults = prototypes.PrototypeConfig()
    fine_tuning = dataclasses.replace(
        defaults.fine_tuning,
        steps=_TUNING_STEPS.value,
        warmup_steps=min(defaults.fine_tuning.warmup_steps, _TUNING_STEPS.value),
        distillation=_DISTILLATION.value,
        temperature=prototypes.TEMPERATURE if _DISTILLATION.value else 1.0,
        light=_LIGHT.value,
        zoom=_ZOOM.value,
    )
    if _FLOAT_EPOCHS.value:
        fine_tuning = prototypes.after_float(fine_tuning, _FLOAT_EPOCHS.value, _BFLOAT16.value)
    config = dataclasses.replace(
        defaults,
        adaptation=dataclasses.replace(defaults.adaptation, epochs=_ADAPTATION_EPOCHS.value),
        fine_tuning=fine_tuning,
        synthesis=dataclasses.replace(defaults.synthesis, cycles=_CYCLES.value, reach=_REACH.value),
        compact=_LOW_BITS.value,
    )
    metric = datasets.task_of(_TASK.value).metric
    for budget in budgets:
        if budget.quality is not None and budget.quality[0] != metric:
            raise errors.UsageError(
                f"{_TASK.value!r} is judged by {metric}, not by {budget.quality[0]}"
            )
    work = workdir.WorkDir(workdir.user_path(_OUTPUT_DIR.value))
    graph = prototypes.opened(_PROTOTYPE.value, work)  # says what is wrong before data are read
    dataset = datasets.load(_TASK.value, _DATA_DIR.value)

    def check(space: SearchSpace, tested: float) -> None:
        """Says what cannot be met; raises where that is every budget."""
        costs = CostModel(space, activation_bits=int(_ACTIVATION_BITS.value), io=_IO.value)
        missed = []
        for budget in budgets:
            if budget.quality is not None and budget.quality[1] > tested:
                _say(f"note: {budget} is more than the prototype's own {tested:.4f}")
            counted = {m: v for m, v in budget.limits.items() if m in costs.metrics}
            if not counted:
                continue
            try:
                costs.check(Budget(counted, budget.quality))
            except errors.InfeasibleBudgetError as error:
                missed.append(error)
        if len(missed) == len(budgets):
            raise missed[0]

    return prototypes.make(_PROTOTYPE.value, dataset, work, config, _say, check, graph)


def _bundle_path(budgets: Sequence[Budget]) -> pathlib.Path:
    if _BUNDLE.value is not None:
        return bundles.find(_BUNDLE.value)
    asked = [budget.quality[0] for budget in budgets if budget.quality is not None]
    path = bundles.default(asked[0] if asked else None)
    _say(f"bundle {path.name}")
    return path


def _check_devices(budgets: Sequence[Budget]) -> None:
    """Raises UsageError for devices that are not known, or cannot be measured and must be."""
    for device in {budget.device for budget in budgets if budget.device is not None}:
        if device == devices.HOST and device not in devices.known():
            if _THREADS.value > 1:
                raise errors.UsageError(
                    f"latencies on {device} are predicted for --threads=1, got {_THREADS.value}"
                )
            continue  # it will be profiled
        devices.find(device)
        if _STOP_AFTER.value == "contract":
            devices.check_here(device, _THREADS.value)


def _deliver(bundle: bundles.Bundle, candidates: Sequence[Candidate], work: workdir.WorkDir) -> int:
    """Trains candidates in order until one keeps the contract; the exit code of this answer."""
    start = pipeline.QAT if bundle.tuned else pipeline.INHERIT
    start = _TRAIN.value or (pipeline.SCRATCH if bundle.shared is None else start)
    if start == pipeline.INHERIT and _DATA_DIR.value is None:
        return _deliver_on(bundle, candidates, work, bundle.shared.examples, start)
    dataset = datasets.load(bundle.dataset, _DATA_DIR.value)
    if dataset.fingerprint != bundle.dataset_fingerprint:
        _say(
            f"note: this {dataset.name} is not the data that bundle {bundle.name!r} was fitted to "
            f"({dataset.fingerprint}, {bundle.dataset_fingerprint}); predictions may be off"
        )
    return _deliver_on(bundle, candidates, work, dataset, start)


def _deliver_on(
    bundle: bundles.Bundle,
    candidates: Sequence[Candidate],
    work: workdir.WorkDir,
    dataset: datasets.Dataset,
    start: str,
) -> int:
    if bundle.tuned and start == pipeline.INHERIT:
        _say("note: predictions are of trained networks; inherited weights are mostly worse")
    elif bundle.shared is not None and start != pipeline.INHERIT and not bundle.tuned:
        _say(
            "note: predictions are of inherited weights; a network that is trained is mostly better"
        )
    budget = candidates[0].budget
    if budget.device is not None:
        kept, timely, fastest_ms = pipeline.keeping_latency(bundle, candidates, _THREADS.value)
        print(f"\n{timely} of {len(candidates)} candidates keep {budget} untrained")
        if not kept:
            nearest = {**budget.limits, LATENCY: rounded_up(fastest_ms)}
            _complain(
                errors.InfeasibleBudgetError(
                    f"budget {budget}: every candidate took longer than was predicted",
                    nearest=dataclasses.replace(budget, limits=nearest),
                )
            )
            return errors.InfeasibleBudgetError.exit_code
        candidates = kept
    wanted = _wanted() if _PROTOTYPE.value else 1
    attempts = list(candidates[: wanted * _MAX_TRAININGS.value])
    with _maker(bundle, attempts, dataset, start) as maker:
        return _deliver_attempts(bundle, attempts, work, dataset, start, wanted, maker)


@contextlib.contextmanager
def _maker(
    bundle: bundles.Bundle, attempts: Sequence[Candidate], dataset: datasets.Dataset, start: str
) -> Iterator[making.Maker]:
    """Who trains the attempts: child processes of this machine, or a cluster, all at once there."""
    limits = _TRAINING.limits(making.default_limits())
    place = _TRAINING.place()
    if place is not None and start == pipeline.INHERIT:
        _say("note: --ray_address is for trainings, and inherited weights are taken here")
    if place is None or start == pipeline.INHERIT:
        yield making.InChild(limits)
        return
    orders = [pipeline.order(bundle, c, dataset, seed=_SEED.value, start=start) for c in attempts]
    with making.OnCluster(place, orders, limits) as maker:
        yield maker


def _deliver_attempts(
    bundle: bundles.Bundle,
    attempts: Sequence[Candidate],
    work: workdir.WorkDir,
    dataset: datasets.Dataset,
    start: str,
    wanted: int,
    maker: making.Maker,
) -> int:
    exit_code, asked = 0, wanted
    for number_, candidate in enumerate(attempts, start=1):
        what = "weights are inherited by" if start == pipeline.INHERIT else "training"
        print(f"\n{what} {candidate.architecture.fingerprint} ({number_} of {len(attempts)})")
        try:
            delivery = pipeline.deliver(
                bundle,
                candidate,
                work,
                dataset,
                seed=_SEED.value,
                threads=_THREADS.value,
                start=start,
                progress=_progress(_steps(bundle, start, len(dataset.train))),
                maker=maker,
            )
        except (errors.ExportMismatchError, errors.TrainingFailedError) as error:
            _say(f"not delivered: {error}")
            exit_code = max(exit_code, error.exit_code)
            continue
        print(_contract_text(delivery, candidate))
        if _PROTOTYPE.value:
            print(_efficiency(bundle, delivery))
        wanted -= delivery.contract.holds
        if not wanted:
            return 0
        if not delivery.contract.holds:
            exit_code = errors.ContractMissedError.exit_code
    if asked > 1:
        _say(f"{asked - wanted} of {asked} networks are delivered; there are no more candidates")
    return exit_code or errors.ContractMissedError.exit_code


def _steps(bundle: bundles.Bundle, start: str, examples: int) -> int:
    """Of a delivery's training on so many examples, at most."""
    recipe = bundle.shared.fine_tuning if start == pipeline.QAT else bundle.recipe
    return recipe.all_steps(examples)


def _candidates_table(bundle: bundles.Bundle, candidates: Sequence[Candidate]) -> str:
    metric = bundle.task.metric
    costs = [m for m in _COSTS if all(m in c.cost for c in candidates)]
    headers = ["#", "network", "architecture (units:bits)", metric, "interval", *costs, "distance"]
    rows = [
        [
            str(rank),
            c.architecture.fingerprint,
            describe(bundle.space, c.architecture),
            f"{c.metric:.4f}",
            f"{c.low:.4f}..{c.high:.4f}",
            *(_cost(c, m) for m in costs),
            "-" if c.distance is None else f"{c.distance:.3f}",
        ]
        for rank, c in enumerate(candidates, start=1)
    ]
    return table(headers, rows)


def _cost(candidate: Candidate, metric: str) -> str:
    """A cost, and the upper end of its interval where it is predicted."""
    told = number(candidate.cost[metric])
    upper = candidate.upper.get(metric)
    return told if upper is None else f"{told} (<= {number(upper)})"


def describe(space: SearchSpace, architecture: Architecture) -> str:
    """A network in one line: kernels, units and weight bits of each stage that has weights."""
    choices = space.choices([architecture])
    layers = [layer for layer in lower(space, architecture) if layer.weighted]
    words = []
    for stage in space.stages:
        several = stage.block != "layer"
        own = [
            layer
            for layer in layers
            if layer.name == stage.name or (several and layer.name.startswith(f"{stage.name}_"))
        ]
        if not own:
            continue
        options = {k: space.column(v, choices)[0] for k, v in stage.options.items()}
        runs = itertools.groupby(own, lambda layer: (layer.op, layer.weight_bits))
        bits = ",".join(str(weight_bits) for (_, weight_bits), _ in runs)
        excited = "+se" if options.get("squeeze_excite") else ""
        words.append(f"{_WORDS[stage.block].format(**options)}:{bits}{excited}")
    return " ".join(words)


def _contract_text(delivery: pipeline.Delivery, candidate: Candidate) -> str:
    agreed = delivery.contract
    rows = [
        [
            term.metric,
            number(term.asked, 6),
            number(term.predicted, 6),
            number(term.measured, 6),
            "" if term.asked is None else "pass" if term.holds else "FAIL",
        ]
        for term in agreed.terms
    ]
    return "\n".join(
        [
            table(["metric", "asked", "predicted", "measured", ""], rows),
            f"contract {'kept' if agreed.holds else 'MISSED'}: {delivery.path}, "
            f"{agreed.file_bytes:,} bytes, sha256 {agreed.file_sha256[:16]}..., "
            f"{agreed.runtime} on {agreed.device}, tested on {agreed.tested_on}",
            f"predicted interval {candidate.low:.4f}..{candidate.high:.4f}",
            f"latency: {delivery.timed.quiet_windows} quiet windows, the middle one "
            f"{delivery.timed.spread:.1%} over the least",
        ]
    )


def _efficiency(bundle: bundles.Bundle, delivery: pipeline.Delivery) -> str:
    """NetScore and information density of a delivered network, and what it takes beside."""
    measured = {term.metric: term.measured for term in delivery.contract.terms}
    metric, params, macs, energy_uj = (
        measured[m] for m in (bundle.task.metric, "params", "macs", "energy_uj")
    )
    whole = bundle.cost_model.cost(bundle.space.point({}))
    return (
        f"NetScore {float(netscore(np, max(metric, 1e-3), params, macs)):.1f}, "
        f"{information_density(metric, params):.0f} % per million parameters; "
        f"{params / whole['params']:.1%} of the prototype's parameters, "
        f"{macs / whole['macs']:.1%} of its MACs, "
        f"{whole['energy_uj'] / energy_uj:.1f} times its inferences per joule (by eq. 3, at 8 bits)"
        f"; {_per_joule(delivery.timed.inference_mj)}"
    )


def _per_joule(inference_mj: float | None) -> str:
    """Inferences per joule as they were measured."""
    if not inference_mj:
        return "no energy was measured: no counters can be read, or something else ran"
    return f"{number(1e3 / inference_mj)} per joule by this host's energy counters"


def _progress(steps: int) -> making.Progress:
    """Prints a line at every quarter of a training."""
    marks = [steps * quarter // 4 for quarter in (1, 2, 3, 4)]

    def report(done: int, loss: float) -> None:
        while marks and done >= marks[0]:
            marks.pop(0)
            print(f"  step {done:,} of {steps:,}, loss {loss:.4f}", flush=True)

    return report


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    run()
