"""From records to an encoder and generators, in rounds.

A generator finds what its encoder overrates, and selection prefers it; an encoder learns that only
from such networks. So a round trains what would be generated and answered, and all is fitted anew.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfgen import errors, generators, seeds, workdir
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.cost.latency import LatencyModel
from tfgen.cost.metrics import PerformanceScale
from tfgen.evidence import surrogate as surrogates
from tfgen.evidence.record import Record
from tfgen.experiment import Experiment
from tfgen.generators.base import Evaluate, Evidence, Generator
from tfgen.selection import Selector
from tfgen.space import catalog
from tfgen.space.architecture import Architecture

if TYPE_CHECKING:  # only fits need TensorFlow
    from tfgen.nets.supernet import Supernet
    from tfgen.training.datasets import Split

PROPOSALS = "proposals.json"
_BUDGETED = "storage_kb"  # what the budgets of a round limit
_ANSWERS = 10  # to each of these budgets
_EXTREME = 0.002  # quantile of the records' costs where the budgets begin
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Learned:
    """What was learned from records.

    Attributes:
      records: those that were given and those that the generator proposed.
      surrogate: the encoder.
      generators: by method.
      read_seconds: what rounds took whose proposals were read, when they were made.
    """

    records: Sequence[Record]
    surrogate: surrogates.Surrogate
    generators: Mapping[str, Generator]
    read_seconds: float = 0.0


def learn(
    experiment: Experiment,
    records: Sequence[Record],
    metric: str,
    evaluate: Evaluate | None,
    seed: int,
    say: Say,
    proposals: pathlib.Path | None = None,
    *,
    supernet: Supernet | None = None,
    examples: Split | None = None,
    latency: LatencyModel | None = None,
) -> Learned:
    """Fits the encoder and every method's generator; trains what generators propose in between.

    Args:
      experiment: how.
      records: at random points of the space; their scale is that of all conditions.
      metric: the task's.
      evaluate: trains networks; not needed without rounds.
      seed: of fits, draws and trainings.
      say: told what is done.
      proposals: JSON file that keeps what was proposed. A stopped run goes on with it: two fits of
        a generator may differ in the last bits, and would propose others.
      supernet: whose weights the records' networks inherit, for methods that learn from it.
      examples: on which it is asked.
      latency: of the space's networks on a device, for methods whose targets may limit it.

    Raises:
      UsageError: there are rounds, and `evaluate` is None.
      CorruptFileError: the file is not one of proposals.
    """
    if experiment.rounds and evaluate is None:
        raise errors.UsageError("rounds need trainings: give evaluate")
    space = catalog.get(experiment.space)
    scale = PerformanceScale.of([r.metric for r in records])
    say(f"{len(records):,} records, {metric} {scale.low:.4f}..{scale.high:.4f}")
    known = workdir.read_json(proposals) if proposals and proposals.is_file() else {}
    if not isinstance(known, dict):
        raise errors.CorruptFileError(f"{proposals}: holds no proposals")
    records = list(records)
    costs = CostModel(space, latency=latency)
    read_seconds = 0.0

    def fitted_to(known_records: list[Record]) -> Evidence:
        fitted = surrogates.fit(space, known_records, scale, experiment.surrogate, seed)
        say("encoder fitted")
        return Evidence(space, costs, known_records, fitted, None, supernet, examples)

    # What a round proposes does not depend on how many follow.
    same = dataclasses.replace(experiment, rounds=0, gap_networks=0).to_json()
    made_of = [same, [(*record.key, record.metric) for record in records]]
    run = f"{seeds.derive(seed, json.dumps(made_of, sort_keys=True)):016x}"
    for round_ in range(1, experiment.rounds + 1):
        assert evaluate is not None
        key = f"{run}-{round_}"
        if isinstance(known.get(key), dict):  # older files have no seconds
            read_seconds += known[key]["seconds"]
        else:
            since = time.perf_counter()
            (name, config), *_ = experiment.methods.items()
            evidence = fitted_to(records)
            generator = generators.get(name).fit(evidence, config, seed)
            own = seeds.derive(seed, "round", round_)
            proposed = propose(
                generator,
                evidence,
                metric,
                experiment.round_networks,
                own,
                experiment.answer_share,
            )
            known[key] = {
                "networks": [architecture.choices for architecture in proposed],
                "seconds": time.perf_counter() - since,
            }
            if proposals is not None:
                workdir.write_json(proposals, known)
        architectures = [space.architecture(np.array(row)) for row in known[key]["networks"]]
        records += evaluate(architectures, seeds.derive(seed, "proposals", round_))
        say(f"round {round_}: {len(architectures):,} proposals trained")
    evidence = fitted_to(records)
    fitted = {}
    for name, config in experiment.methods.items():
        fitted[name] = generators.get(name).fit(evidence, config, seed)
        say(f"generator {name} fitted")
    assert evidence.surrogate is not None
    return Learned(records, evidence.surrogate, fitted, read_seconds)


def propose(
    generator: Generator,
    evidence: Evidence,
    metric: str,
    count: int,
    seed: int,
    answer_share: float = 0.5,
) -> list[Architecture]:
    """What a round trains: answers to budgets, up to a share of it, and draws of all conditions."""
    space = evidence.space
    wanted = int(answer_share * count)
    answers = _answers(generator, evidence, wanted, seeds.derive(seed, "answers"))
    any_quality = Budget({}, (metric, 0.0))
    missing = count - len(answers)
    (drawn,) = generator.propose([any_quality], missing, seeds.derive(seed, "draws"))
    return answers + [space.architecture(row) for row in drawn.choices]


def _answers(generator: Generator, evidence: Evidence, count: int, seed: int) -> list[Architecture]:
    """At most `count` different networks that selection answers to budgets from small to large.

    Ranked by what is expected: what the encoder is not sure of is worth a training.
    """
    costs, records = evidence.cost_model, evidence.records
    if _BUDGETED not in costs.metrics:
        return []  # a table's networks have no size
    assert records is not None and evidence.surrogate is not None
    sizes = costs.costs(evidence.space.choices([r.architecture for r in records]))[_BUDGETED]
    limits = np.geomspace(np.quantile(sizes, _EXTREME), sizes.max(), count // _ANSWERS)
    found: dict[Architecture, None] = {}
    for number, limit in enumerate(limits):
        try:
            candidates = Selector(count=_ANSWERS, confidence=0.5).select(
                evidence.space,
                generator,
                evidence.surrogate,
                costs,
                Budget({_BUDGETED: float(limit)}),
                "round",
                seeds.derive(seed, number),
            )
        except errors.InfeasibleBudgetError:
            continue
        found |= dict.fromkeys(candidate.architecture for candidate in candidates)
    return list(found)
