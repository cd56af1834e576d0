"""From records to an encoder and generators, in rounds.

A generator finds what its encoder overrates, and selection prefers it; an encoder learns that only
from such networks. So a round trains what would be generated and answered, and all is fitted anew.
Fits take a minute, so a round may have portions: what is answered in one knows the trainings of
those before, by a process of the records near each budget (`evidence.local_surrogate`).
"""

from __future__ import annotations

import dataclasses
import itertools
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
from tfgen.evidence.local_surrogate import near
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
_BUDGETED = ("storage_kb", "energy_uj")  # what each budget of a round limits
_ANSWERS = 10  # to each of these budgets
_LOOKED_AT = 4  # times as many: some are known already
_SMALLEST = 0.1  # quantile of the records' costs where the budgets begin: few networks are smaller
_OPTIMISM = 0.5  # standard deviations: what the records do not tell is worth a training
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
        answerer: tuple[Evidence, Generator] | None = None
        begun = len(records)
        for portion in range(experiment.round_portions):
            key = f"{run}-{round_}" + (f"-{portion}" if portion else "")
            if isinstance(known.get(key), dict):  # older files have no seconds
                read_seconds += known[key]["seconds"]
            else:
                since = time.perf_counter()
                if answerer is None:
                    (name, config), *_ = experiment.methods.items()
                    evidence = fitted_to(records[:begun])
                    answerer = evidence, generators.get(name).fit(evidence, config, seed)
                proposed = propose(
                    answerer[1],
                    knowing(answerer[0], records),
                    metric,
                    experiment.round_networks,
                    seeds.derive(seed, "round", round_),
                    experiment.answer_share,
                    (portion, experiment.round_portions),
                    begun,
                )
                known[key] = {
                    "networks": [architecture.choices for architecture in proposed],
                    "seconds": time.perf_counter() - since,
                }
                if proposals is not None:
                    workdir.write_json(proposals, known)
            architectures = [space.architecture(np.array(row)) for row in known[key]["networks"]]
            own = seeds.derive(seed, "proposals", round_, *([portion] if portion else []))
            # Nothing is learned from a training that failed.
            records += [r for r in evaluate(architectures, own) if r.failure is None]
        say(f"round {round_}: {len(records) - begun:,} proposals trained")
    evidence = fitted_to(records)
    fitted = {}
    for name, config in experiment.methods.items():
        fitted[name] = generators.get(name).fit(evidence, config, seed)
        say(f"generator {name} fitted")
    assert evidence.surrogate is not None
    return Learned(records, evidence.surrogate, fitted, read_seconds)


def knowing(evidence: Evidence, records: Sequence[Record]) -> Evidence:
    """The evidence with all records, of which its encoder has learned from the first ones."""
    assert evidence.surrogate is not None and evidence.records is not None
    further = records[len(evidence.records) :]
    surrogate = evidence.surrogate.knowing(further)
    return dataclasses.replace(evidence, records=list(records), surrogate=surrogate)


def propose(
    generator: Generator,
    evidence: Evidence,
    metric: str,
    count: int,
    seed: int,
    answer_share: float = 0.5,
    portion: tuple[int, int] = (0, 1),
    begun: int | None = None,
) -> list[Architecture]:
    """What a portion of a round trains: answers to budgets, then draws of all conditions.

    Args:
      generator: that proposes.
      evidence: with the encoder and all records so far.
      metric: the task's.
      count: networks of the whole round.
      seed: of the round.
      answer_share: of the networks, how many are answers at most.
      portion: its number, and how many there are. Budgets from small to large are dealt out to
        them; a portion of fewer than ten answers has none.
      begun: records at the round's begin, by whose costs its budgets are; None for all.
    """
    space = evidence.space
    number, portions = portion
    own = seeds.derive(seed, "portion", number) if number else seed
    wanted = len(range(number, count, portions))
    each = int(answer_share * (count // portions)) // _ANSWERS
    budgets = _budgets(evidence, begun, each * portions)[number::portions]
    answers = _answers(generator, evidence, budgets, seeds.derive(own, "answers"))
    any_quality = Budget({}, (metric, 0.0))
    missing = wanted - len(answers)
    if not missing:
        return answers
    (drawn,) = generator.propose([any_quality], missing, seeds.derive(own, "draws"))
    return answers + [space.architecture(row) for row in drawn.choices]


def _budgets(evidence: Evidence, begun: int | None, count: int) -> list[Budget]:
    """Budgets from small to large, each cost by itself from a tenth of the records to all."""
    costs, records = evidence.cost_model, evidence.records
    limited = [metric for metric in _BUDGETED if metric in costs.metrics]
    if not limited:
        return []  # a table's networks have no size
    assert records is not None
    known = evidence.space.choices([r.architecture for r in records[:begun]])
    told = costs.counted(known, limited)
    limits = [
        np.geomspace(np.quantile(told[metric], _SMALLEST), told[metric].max(), count)
        for metric in limited
    ]
    return [
        Budget(dict(zip(limited, map(float, row), strict=True)))
        for row in zip(*limits, strict=True)
    ]


def _answers(
    generator: Generator, evidence: Evidence, budgets: Sequence[Budget], seed: int
) -> list[Architecture]:
    """Ten new networks, or fewer, that selection answers to each budget.

    Ranked by what is expected, a little optimistically: what is not sure is worth a training.
    """
    assert evidence.surrogate is not None and evidence.records is not None
    known = {record.architecture for record in evidence.records}
    found: dict[Architecture, None] = {}
    for number, budget in enumerate(budgets):
        try:
            candidates = Selector(count=_LOOKED_AT * _ANSWERS, confidence=0.5).select(
                evidence.space,
                generator,
                near(evidence.surrogate, evidence.cost_model, budget, _OPTIMISM),
                evidence.cost_model,
                budget,
                "round",
                seeds.derive(seed, number),
            )
        except errors.InfeasibleBudgetError:
            continue
        answers = (candidate.architecture for candidate in candidates)
        new = (answer for answer in answers if answer not in known and answer not in found)
        found |= dict.fromkeys(itertools.islice(new, _ANSWERS))
    return list(found)
