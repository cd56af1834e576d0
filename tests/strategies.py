"""What tests draw at random: budgets, spaces and their points, JSON of any form, damaged files.

Drawn by Hypothesis from a fixed seed: every run has the same examples.
"""

import copy
import json
import string
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import strategies as st

from tfgen.cost.budget import COST_METRICS, MOST, QUALITY_METRICS, SOURCES, Budget, Cost, Quantity
from tfgen.evidence.record import Record
from tfgen.selection import Candidate
from tfgen.space.architecture import Architecture
from tfgen.space.search_space import Chosen, Decision, SearchSpace, Stage, When

_NAMES = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=8)
# What stands where a number should.
_ODD_NUMBERS = (
    *("nan", "inf", "-inf", "Infinity", "1e999", "-1", "0", "0.0", "-0", "1_000", "0x10", "", " "),
    *("１２", "٣", "²", "1e", "e1", "--1", "1..2", "1 2", "1\n2", "+5", "5.", ".5", "1e-400"),
    *("9" * 400, "1e15", "1e16", "5e-324", "true", "None", "\x00", "\ud800", "½", "1e308"),
)


def examples(count: int) -> Callable[[Any], Any]:
    """So many examples of a test, the same in every run, however long one takes."""
    return hypothesis.settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


# --- budgets and candidates -----------------------------------------------------------------------


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    limits = draw(
        st.dictionaries(
            st.sampled_from(COST_METRICS), st.floats(0, MOST, exclude_min=True), max_size=4
        )
    )
    least = st.tuples(st.sampled_from([*QUALITY_METRICS]), st.floats(0, 1))
    quality = draw(st.none() | least if limits else least)
    device = draw(_NAMES) if "latency_ms" in limits else None
    return Budget(limits, quality, device)


def budget_texts() -> st.SearchStrategy[str]:
    """Some of them budgets, most of them nearly."""
    metric = st.sampled_from([*COST_METRICS, *QUALITY_METRICS, "storage", "", "ACCURACY", "rаm"])
    sign = st.sampled_from(["=", "<=", ">=", "==", "<", "", "=<", "＝"])
    value = st.sampled_from(_ODD_NUMBERS) | st.floats().map(str) | st.integers().map(str)
    device = st.sampled_from(["", "", "@host", "@", "@@", "@../host", "@host@host"])
    term = st.tuples(metric, sign, value, device).map("".join)
    joined = st.lists(term, max_size=4).map(",".join)
    return joined | st.text(max_size=40) | st.tuples(joined, st.text(max_size=4)).map("".join)


def costs() -> st.SearchStrategy[Cost]:
    quantity = st.builds(Quantity, st.floats(0, 1e300), st.sampled_from(SOURCES))
    return st.dictionaries(st.sampled_from(COST_METRICS), quantity).map(Cost)


def candidates() -> st.SearchStrategy[Candidate]:
    finite = st.floats(allow_nan=False, allow_infinity=False)
    return st.builds(
        Candidate,
        architectures(),
        budgets(),
        costs(),
        st.dictionaries(st.sampled_from(COST_METRICS), finite),
        *(finite, finite, finite),
        st.none() | finite,
        _NAMES,
        st.integers(0, 2**64 - 1),
    )


# --- spaces and what is of them -------------------------------------------------------------------


def architectures() -> st.SearchStrategy[Architecture]:
    """Of no space that there is."""
    choices = st.lists(st.integers(0, 2**62), max_size=8).map(tuple)
    return st.builds(Architecture, st.text(st.characters(codec="utf-8"), max_size=8), choices)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Dense networks: some widths are chosen, some layers optional, some decisions idle."""
    decisions: list[Decision] = []
    stages: list[Stage] = []
    for number in range(draw(st.integers(1, 5))):
        widths = st.lists(st.integers(1, 64), min_size=1, max_size=12, unique=True).map(sorted)
        words = st.lists(_NAMES, min_size=1, max_size=4, unique=True)
        values = tuple(draw(widths | words))
        decisions.append(Decision(f"d{number}", values, draw(_conditions(decisions))))
        units = Chosen(f"d{number}") if not isinstance(values[0], str) else draw(st.integers(1, 9))
        options = {"units": units, "weight_bits": 8, "activation": "relu"}
        when = draw(_conditions(decisions[:-1]))
        stages.append(Stage(f"hidden_{number}", "dense", options, when))
    output = {"units": 1, "weight_bits": 8, "activation": "linear"}
    stages.append(Stage("output", "dense", output))
    return SearchSpace(draw(_NAMES), (3,), tuple(decisions), tuple(stages), "litert-2.3")


@st.composite
def _conditions(draw: st.DrawFn, earlier: list[Decision]) -> When | None:
    # Networks write no decision that hangs on one of many values.
    few = [decision for decision in earlier if len(decision.values) <= 8]
    if not few or draw(st.booleans()):
        return None
    decision = draw(st.sampled_from(few))
    values = draw(st.lists(st.sampled_from(decision.values), min_size=1, unique=True))
    return When(decision.name, tuple(values))


@st.composite
def points(draw: st.DrawFn, space: SearchSpace) -> Architecture:
    return space.architecture([draw(st.integers(0, len(d.values) - 1)) for d in space.decisions])


@st.composite
def records(draw: st.DrawFn, space: SearchSpace) -> Record:
    """Of few trainings, so that some are drawn twice."""
    return Record(
        draw(points(space)),
        draw(st.sampled_from(["data", "other"])),
        draw(st.sampled_from(["recipe", "other"])),
        draw(st.sampled_from([0, 1, 2**62])),
        draw(st.floats(-1e300, 1e300)),
        draw(st.floats(0, 1e6)),
        draw(costs()),
    )


# --- documents and files --------------------------------------------------------------------------


def documents() -> st.SearchStrategy[Any]:
    """What JSON can say, and what Python's writer says beside."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    large = st.sampled_from(
        [2**31, 2**63, 10**19, -1, 1e300, -1e300, "../x", "/etc/passwd", "x" * 300]
    )
    return st.recursive(
        leaves | large,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        ),
        max_leaves=8,
    )


@st.composite
def altered(draw: st.DrawFn, document: Any) -> Any:
    """A document of which one to three parts are gone, doubled or something else."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = None, None
        at = changed
        while isinstance(at, dict | list) and at and (holder is None or draw(st.booleans())):
            holder = at
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            at = at[key]
        if holder is None:
            return draw(documents())
        how = draw(st.sampled_from(["another", "gone", "doubled", "a neighbour's"]))
        if how == "gone":
            del holder[key]
        elif how == "doubled" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(at))
        elif how == "a neighbour's":
            parts = list(holder.values()) if isinstance(holder, dict) else holder
            holder[key] = copy.deepcopy(draw(st.sampled_from(parts)))
        else:
            holder[key] = draw(documents())
    return changed


def json_bytes(document: Any) -> bytes:
    """As Python writes it, with NaN and halves of characters where there are some."""
    return json.dumps(document).encode()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file's content with bits flipped, or parts gone, moved, doubled, or made up."""
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(made)))
        end = draw(st.integers(start, min(start + 64, len(made))))
        how = draw(st.sampled_from(["flip", "cut", "drop", "double", "replace", "swap"]))
        if how == "flip" and start < len(made):
            made[start] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del made[start:]
        elif how == "drop":
            del made[start:end]
        elif how == "double":
            made[start:start] = made[start:end]
        elif how == "swap":
            made = made[end:] + made[:end]
        else:
            made[start:end] = draw(st.binary(max_size=16))
    return bytes(made)
