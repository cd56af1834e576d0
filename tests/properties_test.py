"""Whatever is read ends as what was written or as one of tfgen's errors that names the file."""

import json
import math
import pathlib
from typing import Any

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests import strategies
from tests.frugal import Frugal
from tests.space.small import every_op, small_space
from tfgen import errors, seeds, workdir
from tfgen.cost import adapted_device, latency_table, public_tables
from tfgen.cost.budget import MOST, Budget, Cost, parse_all
from tfgen.cost.cost_model import CostModel
from tfgen.deployment.contract import Contract
from tfgen.deployment.measurement import Measurement
from tfgen.selection import Candidate
from tfgen.space import bits, catalog
from tfgen.space.architecture import Architecture
from tfgen.space.layers import LayerSpec
from tfgen.space.search_space import SearchSpace
from tfgen.training.recipe import Recipe

GOLDEN = pathlib.Path(__file__).parent / "testdata" / "golden" / "0.1.0-unversioned"
REFUSED = (*errors.MALFORMED, errors.UsageError)  # by what has no file yet


def json_of(value: Any) -> Any:
    """What a file would bring back."""
    return workdir.parse_json(json.dumps(value.to_json(), allow_nan=False).encode())


class BudgetTest(Frugal):
    @strategies.examples(600)
    @hypothesis.given(strategies.budget_texts())
    def test_a_text_is_a_budget_or_refused_in_a_line(self, text):
        try:
            (budget,) = parse_all([text])
        except errors.UsageError as error:
            self.assertNotIn("\n", str(error))
            return
        for limit in budget.limits.values():
            self.assertTrue(math.isfinite(limit) and 0 < limit <= MOST)
        self.assertEqual(Budget.from_json(json_of(budget)), budget)

    @strategies.examples(200)
    @hypothesis.given(strategies.budgets())
    def test_both_ways(self, budget):
        self.assertEqual(Budget.from_json(json_of(budget)), budget)
        read = Budget.parse(str(budget))  # has six digits
        self.assertEqual((read.device, [*read.limits]), (budget.device, [*budget.limits]))
        for metric, limit in budget.limits.items():
            self.assertTrue(math.isclose(read.limits[metric], limit, rel_tol=1e-5, abs_tol=5e-324))

    @strategies.examples(200)
    @hypothesis.given(strategies.budgets().flatmap(lambda b: strategies.altered(b.to_json())))
    def test_altered_json_is_a_budget_or_refused(self, document):
        try:
            budget = Budget.from_json(document)
        except REFUSED:
            return
        self.assertEqual(Budget.from_json(json_of(budget)), budget)


class BothWaysTest(Frugal):
    @strategies.examples(200)
    @hypothesis.given(strategies.candidates())
    def test_candidates(self, candidate):
        self.assertEqual(Candidate.from_json(json_of(candidate)), candidate)

    @strategies.examples(200)
    @hypothesis.given(strategies.costs(), strategies.architectures())
    def test_costs_and_architectures(self, cost, architecture):
        self.assertEqual(Cost.from_json(json_of(cost)), cost)
        self.assertEqual(Architecture.from_json(json_of(architecture)), architecture)

    @strategies.examples(200)
    @hypothesis.given(strategies.spaces(), st.integers(0, 2**64 - 1))
    def test_spaces_and_layers(self, space, seed):
        self.assertEqual(SearchSpace.from_json(json_of(space)), space)
        choices = space.sample(8, seeds.stream(seed))
        np.testing.assert_array_equal(space.canonical(choices), choices)
        for layer in every_op():
            self.assertEqual(LayerSpec.from_json(json_of(layer)), layer)

    @strategies.examples(100)
    @hypothesis.given(strategies.spaces())
    def test_a_space_has_as_many_points_as_are_counted(self, space):
        hypothesis.assume(space.size() <= 3_000)
        found = [architecture.choices for architecture in space.enumerate()]
        self.assertLen(set(found), space.size())
        self.assertLen(found, space.size())


class ArchitectureTest(Frugal):
    @strategies.examples(250)
    @hypothesis.given(
        strategies.architectures()
        .map(lambda a: {**a.to_json(), "space": "small"})
        .flatmap(lambda d: st.just(d) | strategies.altered(d))
    )
    def test_a_point_of_the_space_or_refused(self, document):
        space = small_space()
        try:
            choices = space.choices([Architecture.from_json(document)])
        except REFUSED:
            return
        self.assertLen(choices[0], len(space.decisions))
        CostModel(space).costs(choices)

    @strategies.examples(250)
    @hypothesis.given(st.lists(st.integers(-3, 4) | strategies.documents(), max_size=7))
    def test_indices_are_whole_numbers_within(self, choices):
        space = small_space()
        try:
            row = space.canonical(choices)
        except errors.UsageError:
            return
        self.assertTrue(all(type(c) is int or isinstance(c, list) for c in choices))
        self.assertTrue(((row >= 0) & (row < [len(d.values) for d in space.decisions])).all())


class JsonTest(Frugal):
    @strategies.examples(250)
    @hypothesis.given(
        strategies.documents()
        .map(strategies.json_bytes)
        .flatmap(lambda content: st.just(content) | strategies.damaged(content))
        | st.binary(max_size=40)
    )
    def test_json_is_what_python_reads_or_refused(self, content):
        try:
            value = workdir.parse_json(content)
        except ValueError:
            return
        self.assertEqual(value, json.loads(content))
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


class FilesTest(Frugal):
    """Files of devices, and of what was delivered."""

    @strategies.examples(250)
    @hypothesis.given(st.data())
    def test_tables_of_latencies(self, data):
        path = self.folder / "board.json"
        path.write_bytes(data.draw(_rewritten(GOLDEN / "board.json")))
        table = self.loaded(lambda: latency_table.load(path), path.name)
        if table is not None:
            table.adding(table.ops, table.networks).save(path)
            self.assertEqual(latency_table.load(path).networks, table.adding().networks)

    @strategies.examples(200)
    @hypothesis.given(st.data())
    def test_adapted_devices(self, data):
        path = self.folder / "adapted.json"
        path.write_bytes(data.draw(_rewritten(GOLDEN / "adapted.json")))
        device = self.loaded(lambda: adapted_device.load(path), path.name)
        if device is not None:
            device.save(path)
            self.assertEqual(adapted_device.load(path), device)

    @strategies.examples(200)
    @hypothesis.given(st.data())
    def test_devices_of_others(self, data):
        path = self.folder / "pixel3.json"
        source = workdir.package_root() / "configs" / "devices" / "pixel3.json"
        path.write_bytes(data.draw(_rewritten(source)))

        def load() -> object:
            device = public_tables.read("pixel3", self.folder)
            for space in device.entries:
                public_tables.load("pixel3", catalog.get(space), self.folder, self.folder)
            return device

        self.loaded(load, "")  # a table that is not there is the user's to bring

    @strategies.examples(200)
    @hypothesis.given(st.data())
    def test_runtimes(self, data):
        source = workdir.package_root() / "configs" / "runtimes" / "litert-2.3.json"
        path = self.folder / "r.json"
        path.write_bytes(data.draw(_rewritten(source)))
        self.loaded(lambda: bits.from_json("r", workdir.read_json(path), str(path)), path.name)

    @strategies.examples(200)
    @hypothesis.given(strategies.altered(Recipe(float_share=0.5).to_json()))
    def test_recipes(self, document):
        try:
            recipe = Recipe.from_json(document)
        except REFUSED:
            return
        self.assertLess(recipe.steps * recipe.starts, 1e18)
        self.assertEqual(Recipe.from_json(json_of(recipe)), recipe)

    @parameterized.parameters(
        ("candidates.json", lambda d: Candidate.from_json(d[0]["candidates"][0])),
        ("deployment/contract.json", Contract.from_json),
        ("deployment/benchmark.json", Measurement.from_json),
        ("deployment/recipe.json", lambda d: [LayerSpec.from_json(one) for one in d["layers"]]),
    )
    def test_what_was_delivered(self, name, read):
        @strategies.examples(100)
        @hypothesis.given(strategies.altered(workdir.read_json(GOLDEN / name)))
        def check(document):
            try:
                read(document)
            except REFUSED:
                return

        check()


def _rewritten(path: pathlib.Path) -> st.SearchStrategy[bytes]:
    """A file of JSON, altered or damaged."""
    content = path.read_bytes()
    document = json.loads(content)
    return strategies.altered(document).map(strategies.json_bytes) | strategies.damaged(content)


if __name__ == "__main__":
    absltest.main()
