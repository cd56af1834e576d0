"""The stages in order, each a function of what it reads and where it writes.

collect -> records.db        fit -> bundle/        answer -> candidates
deliver -> trained/<network>/, deployments/<network>-<answer>/
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tfgen import bundle as bundles
from tfgen import errors, learning, making, seeds, supernets, workdir
from tfgen.cost import profiled_latency
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import LATENCY, CostModel
from tfgen.cost.latency import LatencyModel
from tfgen.cost.latency_table import NetworkTiming
from tfgen.deployment import benchmark, contract, delivered, devices, profiling, timing
from tfgen.deployment.measurement import Measurement
from tfgen.evidence import collect as collecting
from tfgen.evidence import surrogate as surrogates
from tfgen.evidence.insight import InsightSurrogate
from tfgen.evidence.local_surrogate import near
from tfgen.evidence.record import Record, RecordStore
from tfgen.experiment import Experiment
from tfgen.selection import Candidate, Selector
from tfgen.space import bits, catalog
from tfgen.space.architecture import Architecture
from tfgen.space.layers import WEIGHTED_OPS
from tfgen.space.lowering import ACTIVATION_BITS, lower, lower_batch
from tfgen.space.search_space import SearchSpace
from tfgen.training import cluster, datasets, population
from tfgen.training.recipe import Recipe

_PROBED = 64  # architectures, which have every kind of op of their space
GAP = "gap.json"
BENCHMARK, CONTRACT = "benchmark.json", "contract.json"
# How a delivery gets its weights: from the bundle's supernet; from there, trained; trained anew.
INHERIT, QAT, SCRATCH = STARTS = ("inherit", "qat", "scratch")


# --- evidence -----------------------------------------------------------------------------------


def collect(
    experiment: Experiment,
    work: workdir.WorkDir,
    data_dir: str | None,
    processes: int,
    *,
    limits: population.Limits | None = None,
    retry_failed: bool = False,
    ray: cluster.Place | None = None,
) -> tuple[int, int, Iterator[Record]]:
    """Plans the experiment's records and makes those that are not there yet.

    Args:
      experiment: whose records.
      work: where they lie.
      data_dir: of TFDS; None for the default.
      processes: trainings at a time.
      limits: of each training.
      retry_failed: whether trainings that failed are done again.
      ray: the cluster that trains; None for processes of this machine.

    Returns:
      How many are planned, how many are missing, and an iterator that makes them.

    Raises:
      UsageError: another process makes them.
    """
    space = catalog.get(experiment.space)
    dataset = datasets.load(experiment.dataset, data_dir)
    trainings = collecting.plan(space, experiment.records, experiment.seed)
    if experiment.supernet is not None:
        return _inherit(experiment, work, dataset, [t.architecture for t in trainings])
    recipe = experiment.recipe
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(RecordStore(work.records, space))
        stack.enter_context(store.owned())
        missing = collecting.pending(store, trainings, dataset, recipe, retry_failed=retry_failed)
        workers = stack.enter_context(_trainer(dataset, recipe, processes, limits, ray))
        owning = stack.pop_all()

    def made() -> Iterator[Record]:
        with owning:
            yield from collecting.train(store, missing, workers)

    return len(trainings), len(missing), made()


def _trainer(
    dataset: datasets.Dataset,
    recipe: Recipe,
    processes: int,
    limits: population.Limits | None,
    ray: cluster.Place | None,
) -> population.Trainer:
    """Who trains a population: processes of this machine, or a cluster."""
    if ray is not None:
        return cluster.Cluster(ray, dataset, recipe, limits=limits)
    return population.Workers(dataset, recipe, processes=processes, limits=limits)


def _inherit(
    experiment: Experiment,
    work: workdir.WorkDir,
    dataset: datasets.Dataset,
    planned: Sequence[Architecture],
) -> tuple[int, int, Iterator[Record]]:
    """The same where networks inherit their weights from a supernet."""
    supernet = supernets.load(experiment, work, dataset)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(RecordStore(work.records, supernet.space))
        stack.enter_context(store.owned())
        evaluate = supernets.evaluator(experiment, supernet, dataset, store)
        owning = stack.pop_all()
    networks = dict.fromkeys(planned)
    missing = [architecture for architecture in networks if architecture not in evaluate.known]

    def made() -> Iterator[Record]:
        with owning:
            for architecture in missing:
                yield from evaluate([architecture])

    return len(networks), len(missing), made()


def planned_records(
    experiment: Experiment, work: workdir.WorkDir, dataset: datasets.Dataset
) -> list[Record]:
    """The experiment's own records: a store may hold others, of a longer plan or another seed.

    Trainings that failed are left out: they are done.

    Raises:
      UsageError: some are still missing, or all failed.
    """
    space = catalog.get(experiment.space)
    plan = collecting.plan(space, experiment.records, experiment.seed)
    wanted = {(training.architecture, training.seed) for training in plan}
    with RecordStore(work.records, space) as store:
        of = dataset.fingerprint, experiment.recipe.fingerprint
        stored, failed = (
            [record for record in found if (record.architecture, record.seed) in wanted]
            for found in (store.read(*of), store.failed(*of))
        )
    _check_complete(work, len(stored) + len(failed), len(plan))
    if not stored:
        raise errors.UsageError(f"{work.records}: every training failed: {failed[0].failure}")
    return stored


def inherited_records(
    experiment: Experiment, work: workdir.WorkDir, known: Mapping[Architecture, Record]
) -> list[Record]:
    """Those of the experiment's plan, where networks inherit; raises UsageError if any is missing.

    Args:
      experiment: whose plan.
      work: where records lie.
      known: by network, what was scored.
    """
    plan = collecting.plan(catalog.get(experiment.space), experiment.records, experiment.seed)
    wanted = {training.architecture for training in plan}
    records = [record for architecture, record in known.items() if architecture in wanted]
    _check_complete(work, len(records), len(wanted))
    return records


def _check_complete(work: workdir.WorkDir, records: int, planned: int) -> None:
    if records < planned:
        raise errors.UsageError(
            f"{work.records}: {records:,} of the {planned:,} records of this config; run collect "
            "first"
        )


def fit(
    experiment: Experiment,
    work: workdir.WorkDir,
    data_dir: str | None,
    processes: int,
    say: learning.Say,
    device: str | None = None,
    *,
    limits: population.Limits | None = None,
    ray: cluster.Place | None = None,
) -> bundles.Bundle:
    """Fits the encoder and every method's generator to the records; writes the bundle.

    Args:
      experiment: what is fitted.
      work: where its records are.
      data_dir: of TFDS; None for the default.
      processes: trainings of proposals at a time.
      say: told what is done.
      device: that was profiled, for generators whose targets limit its latency.
      limits: of each training of a proposal.
      ray: the cluster that trains proposals; None for processes of this machine.

    Raises:
      UsageError: records are missing, or a device is given where no generator reads one, or the
        other way round.
    """
    space = catalog.get(experiment.space)
    latency = _targeted_latency(experiment, space, device)
    dataset = datasets.load(experiment.dataset, data_dir)
    if not work.records.is_file():
        raise errors.UsageError(f"{work.records}: no records; run collect first")
    path = work.root / learning.PROPOSALS
    metric, seed = dataset.task.metric, experiment.seed
    shared: bundles.SharedWeights | None = None
    reached: dict[str, float] = {}
    if experiment.supernet is None:
        records = planned_records(experiment, work, dataset)
        workers = _trainer(dataset, experiment.recipe, processes, limits, ray)
        with RecordStore(work.records, space) as store, store.owned(), workers:
            evaluate = collecting.Evaluator(store, workers)
            learned = learning.learn(
                experiment, records, metric, evaluate, seed, say, path, latency=latency
            )
            scored = records
    else:
        supernet = supernets.load(experiment, work, dataset)
        shared = supernets.shared(experiment, supernet, dataset)
        scores = supernets.end_scores(experiment, supernet, dataset)
        reached = {f"{metric} of the {n} network, inherited": s for n, s in scores.items()}
        with RecordStore(work.records, space) as store:
            score = supernets.evaluator(experiment, supernet, dataset, store)
            records = inherited_records(experiment, work, score.known)
            examples = supernets.searched(dataset)
            with store.owned():
                learned = learning.learn(
                    experiment,
                    records,
                    metric,
                    score,
                    seed,
                    say,
                    path,
                    supernet=supernet,
                    examples=examples,
                    latency=latency,
                )
            scored = list(score.known.values())  # what was proposed too
    surrogate = learned.surrogate
    if experiment.gap_networks:
        gap = _gap(experiment, work, records, dataset, surrogate, shared, say)
        surrogate = surrogate.with_gap(gap)
    bundle = bundles.Bundle(
        experiment.name,
        space,
        dataset.task,
        dataset.name,
        dataset.fingerprint,
        experiment.recipe,
        surrogate,
        learned.generators,
        shared=shared,
    )
    bundles.save(
        work.bundle,
        bundle,
        config=experiment.to_json(),
        seed=experiment.seed,
        reached={f"{metric} of the best record": max(r.metric for r in scored), **reached},
        parents={
            path.name: workdir.sha256(path)
            for path in (work.records, work.root / GAP, work.root / learning.PROPOSALS)
            if path.is_file()
        }
        | ({} if device is None else {f"{device}.json": workdir.sha256(devices.find(device))}),
    )
    return bundle


def _targeted_latency(
    experiment: Experiment, space: SearchSpace, device: str | None
) -> LatencyModel | None:
    """What tells the latency that generators' targets may limit; None where they do not."""
    read = [
        name
        for name, config in experiment.methods.items()
        if LATENCY in getattr(config, "costs", ())
    ]
    if not read and device is None:
        return None
    if device is None:
        raise errors.UsageError(f"the costs of method {read[0]!r} have {LATENCY}: give --device")
    if not read:
        raise errors.UsageError(
            f"--device={device}: no method of the config has {LATENCY} in costs"
        )
    if not devices.is_profiled(device):
        raise errors.UsageError(f"device {device!r} was not profiled: targets need its own table")
    return devices.latency_model(device, space)


def _gap(
    experiment: Experiment,
    work: workdir.WorkDir,
    records: Sequence[Record],
    dataset: datasets.Dataset,
    surrogate: surrogates.Surrogate,
    shared: bundles.SharedWeights | None,
    say: learning.Say,
) -> np.ndarray:
    """Delivers some of the records' networks as files: what the file scores less the record.

    Each is trained from its record's seed, or inherits its weights as its record did, so the gap is
    of activation quantization and of the other trainer's rounding; both are scored on validation
    data. Kept in a file, and resumed from it.

    Returns:
      Gaps in units of the encoder's scatter for that network [networks].
    """
    path = work.root / GAP
    known = workdir.read_json(path) if path.is_file() else {}
    if not isinstance(known, dict):
        raise errors.CorruptFileError(f"{path}: holds no gaps")
    random = seeds.stream(experiment.seed, "gap")
    rows = random.permutation(len(records))[: experiment.gap_networks]
    space = catalog.get(experiment.space)
    gaps = []
    for number, row in enumerate(rows, start=1):
        record = records[row]
        key = f"{record.architecture.fingerprint}-{record.seed}-{record.recipe}-{record.dataset}"
        if key not in known:
            layers = lower(space, record.architecture)
            with workdir.scratch() as folder:
                try:
                    ordered = making.Order(
                        space, tuple(layers), dataset, experiment.recipe, record.seed, shared=shared
                    )
                    # Not each in a child: fifty times TensorFlow's import.
                    file = making.make(ordered, folder)
                    score = delivered.score(file, dataset, dataset.validation)
                except (errors.ExportMismatchError, errors.TrainingFailedError):
                    score = None  # such a file is never delivered, so it has no gap
            known[key] = {"record": record.metric, "file": score}
            workdir.write_json(path, known)
            told = "refused" if score is None else f"{score - record.metric:+.4f}"
            say(f"gap {number}/{len(rows)}: {told}")
        if known[key]["file"] is not None:
            scatter = surrogate.predict(space.choices([record.architecture])).scatter[0]
            scatter *= surrogate.scale.high - surrogate.scale.low
            gaps.append((known[key]["file"] - known[key]["record"]) / scatter)
    return np.array(gaps)


# --- answers ------------------------------------------------------------------------------------


def cost_model(
    bundle: bundles.Bundle, budget: Budget, threads: int, tables_dir: pathlib.Path | None
) -> CostModel:
    """Costs of a bundle's networks, with the latency on the budget's device if it names one.

    Raises:
      UsageError: the device is not known, or not for this bundle's space.
      CorruptFileError: a file of the device is damaged.
    """
    if budget.device is None:
        return bundle.cost_model
    latency = devices.latency_model(
        budget.device,
        bundle.space,
        activation_bits=bundle.activation_bits,
        io=bundle.io,
        threads=threads,
        tables_dir=tables_dir,
    )
    return CostModel(bundle.space, bundle.activation_bits, bundle.io, latency)


def profile_missing(bundle: bundles.Bundle, confidence: float, say: learning.Say) -> None:
    """Profiles one thread of this machine for a bundle where nobody did; takes minutes.

    Args:
      bundle: whose networks a budget on this machine is for.
      confidence: that its intervals shall have.
      say: told what is done.

    Raises:
      UsageError: the table that is there is of another machine or runtime, or a new one would not
        tell such a confidence.
      CorruptFileError: it is damaged.
    """
    known_ms, path = None, workdir.user_path(devices.FOLDER / f"{devices.HOST}.json")
    if devices.HOST in devices.known():
        table, path = devices.table(devices.HOST), devices.find(devices.HOST)
        if table.timed(bundle.space, bundle.activation_bits, "random"):
            return  # too few of them are for `ProfiledLatency` to refuse
        known_ms = table.reference_ms
    if bundle.space.bit_policy == bits.SIMULATED:
        return  # the same
    highest = profiled_latency.highest_confidence(profiling.NETWORKS)
    if confidence > highest:
        raise errors.UsageError(
            f"--confidence={confidence:g}: a profile of {profiling.NETWORKS} networks tells up to "
            f"{highest:g}; run profile_device with more --networks first"
        )
    say(
        f"this machine was not profiled for {bundle.space.name}: that comes first and takes one to "
        "five minutes, once"
    )
    begin = time.monotonic()
    found = profiling.time_space(
        devices.this_machine(),
        bundle.space,
        activation_bits=bundle.activation_bits,
        known_ms=known_ms,
        say=say,
    )
    devices.add_profile(path, found)
    say(f"profiled in {time.monotonic() - begin:.0f} s; {path}")


def check_metric(bundle: bundles.Bundle, budget: Budget) -> None:
    """Raises UsageError for a quality that this bundle is not judged by."""
    if budget.quality is not None and budget.quality[0] != bundle.task.metric:
        raise errors.UsageError(
            f"bundle {bundle.name!r} is judged by {bundle.task.metric}, not by {budget.quality[0]}"
        )


def check_answerable(bundle: bundles.Bundle, budget: Budget, costs: CostModel) -> None:
    """Raises UsageError for a budget on metrics that this bundle does not tell."""
    check_metric(bundle, budget)
    strangers = [m for m in budget.limits if m not in costs.metrics]
    if strangers:
        raise errors.UsageError(
            f"{strangers[0]} cannot be told before the file is built; budgets of this bundle may "
            f"limit: {', '.join(costs.metrics)}"
        )


def check_executed(bundle: bundles.Bundle) -> None:
    """Raises UsageError for a width of activations at which a runtime lacks an op of the space."""
    if bundle.space.bit_policy == bits.SIMULATED:
        return  # no runtime is meant; export refuses such networks
    policy = bits.load(bundle.space.bit_policy)
    probes = bundle.space.sample(_PROBED, seeds.stream(0, "ops"))
    for slot in lower_batch(bundle.space, probes, bundle.activation_bits):
        if slot.op not in WEIGHTED_OPS and not policy.executes(slot.op, 0, bundle.activation_bits):
            raise errors.UsageError(
                f"{policy.name} does not execute {slot.op} with {bundle.activation_bits}-bit "
                f"activations, and networks of {bundle.space.name} have it"
            )


def answer(
    bundle: bundles.Bundle,
    budget: Budget,
    costs: CostModel,
    method: str,
    selector: Selector,
    seed: int,
    say: learning.Say,
) -> list[Candidate]:
    """Candidates for one budget, best first; needs no TensorFlow.

    Args:
      bundle: who answers.
      budget: what is asked.
      costs: the bundle's, with the latency on the budget's device.
      method: whose generator draws.
      selector: how candidates are judged.
      seed: of the draws.
      say: told what the user should know.

    Raises:
      UsageError: the budget speaks of a metric that this bundle does not tell.
      InfeasibleBudgetError: nothing fits.
    """
    check_answerable(bundle, budget, costs)
    # What is known best is a candidate too.
    known = bundle.surrogate.scored if isinstance(bundle.surrogate, InsightSurrogate) else None

    def select(asked: Budget) -> list[Candidate]:
        return selector.select(
            bundle.space,
            bundle.generator(method),
            functools.partial(near, bundle.surrogate, costs),
            costs,
            asked,
            method,
            seed,
            known,
        )

    try:
        remarks = costs.check(budget)
    except errors.InfeasibleBudgetError as error:
        # The space's minimum is one network; whether the rest of the budget fits it is for draws.
        nearest = error.nearest
        try:
            select(nearest)
        except errors.InfeasibleBudgetError as missed:
            nearest = missed.nearest
        raise errors.InfeasibleBudgetError(str(error), nearest=nearest) from None
    if costs.latency is not None and costs.latency.remark:
        remarks.append(costs.latency.remark)
    for remark in remarks:
        say(f"note: {remark}")
    return select(budget)


def timed_here(bundle: bundles.Bundle, candidates: Sequence[Candidate], device: str) -> list[float]:
    """What the untrained files of candidates take on this machine, ms [candidates].

    No kernel's time depends on the numbers, so a second of timing saves a training that would miss
    its contract. What was timed is kept for the next predictions.
    """
    timings = profiling.time_networks(
        bundle.space,
        [candidate.architecture for candidate in candidates],
        bundle.activation_bits,
        bundle.io,
        "selected",
        reference_ms=devices.table(device).reference_ms,
    )
    devices.add_networks(device, timings)
    return [timing.latency_ms for timing in timings]


def keeping_latency(
    bundle: bundles.Bundle, candidates: Sequence[Candidate], threads: int
) -> tuple[list[Candidate], int, float]:
    """Those whose untrained files keep their budget's latency on this machine.

    Where some leave room for what two timings of one file differ by, those alone.

    Args:
      bundle: whose candidates they are.
      candidates: for one budget, which limits latency.
      threads: of the runtime.

    Returns:
      The candidates, how many keep the limit without room, and what the fastest took, ms.
    """
    budget = candidates[0].budget
    assert budget.device is not None  # it limits latency
    times_ms = timed_here(bundle, candidates, budget.device)
    limit_ms = budget.limits[LATENCY]
    room_ms = limit_ms / (1 + devices.table(budget.device, threads).repeatability)
    timed = [c for c, ms in zip(candidates, times_ms, strict=True) if ms <= limit_ms]
    roomy = [c for c, ms in zip(candidates, times_ms, strict=True) if ms <= room_ms]
    return roomy or timed, len(timed), min(times_ms)


# --- deliveries ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Delivery:
    """A contract, the file that it is about, and how it was timed."""

    contract: contract.Contract
    path: pathlib.Path
    timed: Measurement


def order(
    bundle: bundles.Bundle,
    candidate: Candidate,
    dataset: datasets.Dataset,
    *,
    seed: int,
    start: str = SCRATCH,
) -> making.Order:
    """What `deliver` has made; arguments as there."""
    fingerprint = candidate.architecture.fingerprint
    return making.Order(
        bundle.space,
        tuple(lower(bundle.space, candidate.architecture, bundle.activation_bits)),
        dataset,
        bundle.recipe,
        seeds.derive(seed, "delivery", fingerprint),
        bundle.io,
        None if start == SCRATCH else bundle.shared,
        start == QAT,
    )


def deliver(
    bundle: bundles.Bundle,
    candidate: Candidate,
    work: workdir.WorkDir,
    dataset: datasets.Dataset,
    *,
    seed: int,
    threads: int = 1,
    start: str = SCRATCH,
    progress: making.Progress | None = None,
    maker: making.Maker | None = None,
) -> Delivery:
    """Trains, exports and measures one candidate; a deployment appears whole or not at all.

    Args:
      bundle: whose candidate it is.
      candidate: the network, and the budget that it is for.
      work: where everything goes.
      dataset: what it is trained and tested on.
      seed: of the training.
      threads: of the measured runtime.
      start: one of STARTS.
      progress: told the steps done and the loss.
      maker: who trains it; None for a child process with `making.default_limits`.

    Raises:
      TrainingFailedError: the training diverged, or took too much.
      ExportMismatchError: the file disagrees with the network.
    """
    fingerprint = candidate.architecture.fingerprint
    ordered = order(bundle, candidate, dataset, seed=seed, start=start)
    layers = ordered.layers
    if not ordered.trains:
        maker = making.make
    elif maker is None:
        maker = making.InChild()
    answer = f"{seeds.derive(seed, str(candidate.budget), bundle.io, bundle.name):016x}"[-6:]
    network = fingerprint if start == SCRATCH else f"{fingerprint}-{start}"
    if bundle.activation_bits != ACTIVATION_BITS:
        network += f"-a{bundle.activation_bits}"
    kept = work.trained(network)
    with workdir.writing_folder(work.deployment(network, answer)) as folder:
        path = maker(ordered, folder, trained=kept, progress=progress)
        reference_ms = None
        if candidate.budget.device is not None:
            reference_ms = devices.table(candidate.budget.device, threads).reference_ms
        timed = benchmark.measure(path, threads=threads, reference_ms=reference_ms)
        measured = {
            bundle.task.metric: delivered.score(path, dataset, dataset.test),
            **delivered.costs(path, folder / making.RECIPE),
            LATENCY: timed.latency_ms,
            "file_kb": timed.file_bytes / 1000,
        }
        predicted = {bundle.task.metric: candidate.metric}
        predicted |= {m: candidate.cost[m] for m in candidate.cost.quantities}
        if LATENCY not in predicted and threads == 1:
            shape, policy = bundle.space.input_shape, bits.load(bundle.space.bit_policy)
            (untrained,) = timing.measure_probes([layers], shape, policy, io=bundle.io)
            predicted[LATENCY] = untrained.latency_ms
        agreed = contract.draw_up(
            candidate.budget,
            fingerprint,
            predicted,
            measured,
            file_sha256=timed.sha256,
            file_bytes=timed.file_bytes,
            device=f"host ({platform.machine()}, {threads} thread{'s' * (threads > 1)})",
            runtime=timed.runtime,
            fully_accelerated=timed.fully_accelerated,
            tested_on=f"{len(dataset.test):,} examples of {dataset.name}",
        )
        if candidate.budget.device is not None:
            delivered_timing = NetworkTiming(
                architecture=candidate.architecture,
                activation_bits=bundle.activation_bits,
                io=bundle.io,
                origin="selected",
                latency_ms=timed.latency_ms,
                spread=timed.spread,
                quiet_windows=timed.quiet_windows,
            )
            devices.add_networks(candidate.budget.device, [delivered_timing])
        workdir.write_json(folder / BENCHMARK, timed.to_json())
        workdir.write_json(folder / CONTRACT, agreed.to_json())
        workdir.write_manifest(
            folder,
            config={
                "candidate": candidate.to_json(),
                "bundle": bundle.name,
                "activation_bits": bundle.activation_bits,
                "input_output": bundle.io,
            },
            seed=ordered.seed,
            data={dataset.name: dataset.fingerprint},
            parents={
                f"trained/{network}/{workdir.MANIFEST}": workdir.sha256(kept / workdir.MANIFEST),
                f"{bundle.name}/{workdir.MANIFEST}": bundle.manifest_sha256,
            },
        )
    return Delivery(agreed, work.deployment(network, answer) / making.MODEL, timed)
