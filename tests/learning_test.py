"""Learning in rounds: proposals are trained, known to the next fit, and kept for a stopped run."""

import dataclasses
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest

from tfgen import errors, learning, seeds, workdir
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.evidence.record import Record
from tfgen.evidence.surrogate import SurrogateConfig
from tfgen.experiment import Experiment
from tfgen.generators.base import Evidence
from tfgen.generators.baselines import Random, RandomConfig
from tfgen.space import catalog
from tfgen.training.recipe import Recipe

SPACE = catalog.get("quartic_mlp")


def experiment(rounds: int, portions: int, networks: int, share: float) -> Experiment:
    return Experiment(
        "learned",
        SPACE.name,
        "quartic",
        records=60,
        gap_networks=0,
        recipe=Recipe(),
        surrogate=SurrogateConfig(members=1, units=8, steps=20),
        methods={"random": RandomConfig()},
        seed=5,
        rounds=rounds,
        round_networks=networks,
        round_portions=portions,
        answer_share=share,
    )


def made_up(architectures, seed):
    """A record for each: deeper is better."""
    return [Record(a, "data", "recipe", seed + i, a.choices[0] / 10, 0.0)
            for i, a in enumerate(architectures)]  # fmt: skip


class LearningTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / "p.json"
        random = seeds.stream(1, "records")
        self.records = made_up([SPACE.architecture(row) for row in SPACE.sample(60, random)], 0)

    def learn(self, rounds, evaluate=made_up, *, portions=1, networks=11, share=0.5):
        told = []
        configured = experiment(rounds, portions, networks, share)
        learned = learning.learn(
            configured, self.records, "r2", evaluate, 5, told.append, self.path
        )
        return learned, told

    def test_without_rounds_nothing_is_trained(self):
        learned, _ = self.learn(0, evaluate=None)
        self.assertEqual(learned.records, self.records)
        self.assertEqual(list(learned.generators), ["random"])
        self.assertFalse(self.path.exists())

    def test_each_round_adds_its_proposals(self):
        learned, told = self.learn(2)
        self.assertLen(learned.records, 60 + 2 * 11)
        self.assertEqual(learned.records[:60], self.records)
        self.assertIn("round 2: 11 proposals trained", told)
        # Conditions are normalised by the random records, whatever is proposed.
        first, _ = self.learn(0)
        self.assertEqual(learned.surrogate.scale, first.surrogate.scale)

    def test_nothing_is_learned_from_what_failed(self):
        def fails(architectures, seed):
            first, *others = made_up(architectures, seed)
            return [dataclasses.replace(first, metric=0.0, failure="diverged"), *others]

        learned, told = self.learn(1, fails)
        self.assertLen(learned.records, 60 + 10)
        self.assertEqual({record.failure for record in learned.records}, {None})
        self.assertIn("round 1: 10 proposals trained", told)

    def test_a_stopped_run_goes_on_with_what_it_proposed(self):
        whole, _ = self.learn(1)
        with mock.patch.object(Random, "fit", autospec=True, side_effect=Random.fit) as fit:
            again, _ = self.learn(1)
            self.assertEqual(fit.call_count, 1)  # the last fit only
        self.assertEqual(again.records, whole.records)
        longer, _ = self.learn(2)
        self.assertEqual(longer.records[:71], whole.records)
        self.assertLen(workdir.read_json(self.path), 2)

    def test_half_of_a_round_are_answers_to_budgets(self):
        evidence = Evidence(SPACE, CostModel(SPACE), self.records, self.learn(0)[0].surrogate)
        generator = Random().fit(evidence, RandomConfig(), 1)
        proposed = learning.propose(generator, evidence, "r2", 40, 7)
        self.assertLen(proposed, 40)
        costs = CostModel(SPACE).costs(SPACE.choices(proposed))
        recorded = CostModel(SPACE).costs(SPACE.choices([r.architecture for r in self.records]))
        # At most ten answers to each of two budgets: a tenth of the way from the smallest of 60
        # records to the largest, and that of the largest. Random draws are none of them again.
        answers = 40 - self.draws(generator, proposed)
        self.assertBetween(answers, 11, 20)
        for metric in ("storage_kb", "energy_uj"):
            ordered = np.sort(recorded[metric])
            least = ordered[5] + 0.9 * (ordered[6] - ordered[5])  # 0.1 * 59 = 5.9
            self.assertTrue((costs[metric][: answers - 10] <= least * (1 + 1e-9)).all())
            self.assertTrue((costs[metric][:answers] <= ordered[-1]).all())

    def test_a_portion_knows_the_trainings_before_it(self):
        known = []

        def near(surrogate, costs, budget, optimism):
            known.append((len(surrogate.known.metrics), surrogate.known.unseen.sum()))
            return surrogate

        with (
            mock.patch.object(learning, "near", near),
            mock.patch.object(Random, "fit", autospec=True, side_effect=Random.fit) as fit,
        ):
            learned, told = self.learn(2, portions=3, networks=90, share=1.0)
            self.assertEqual(fit.call_count, 3)  # one for each round, one at the end
            # A run that was stopped within a round goes on within it, as it would have.
            kept = workdir.read_json(self.path)
            self.assertLen(kept, 6)
            (last,) = (key for key in kept if key.endswith("-2-2"))
            del kept[last]
            workdir.write_json(self.path, kept)
            before = len(known)
            again, _ = self.learn(2, portions=3, networks=90, share=1.0)
            self.assertEqual(known[before:], [(210, 90)] * 3)
            self.assertEqual(fit.call_count, 5)
            self.assertEqual(again.records, learned.records)
            del known[before:]
        self.assertLen(learned.records, 60 + 2 * 90)
        self.assertIn("round 2: 90 proposals trained", told)
        # Nine budgets in each round, three in a portion. Of 60 records the encoder has held back a
        # fifth; what was trained since, it has not seen either.
        first = [(60, 12)] * 3 + [(90, 42)] * 3 + [(120, 72)] * 3
        second = [(150, 30)] * 3 + [(180, 60)] * 3 + [(210, 90)] * 3
        self.assertEqual(known, first + second)
        # The same network is not proposed twice, but by draws.
        trained = [record.architecture for record in learned.records[60:]]
        self.assertLen(set(trained), 2 * 90)

    def test_a_round_may_be_all_draws(self):
        evidence = Evidence(SPACE, CostModel(SPACE), self.records, self.learn(0)[0].surrogate)
        generator = Random().fit(evidence, RandomConfig(), 1)
        proposed = learning.propose(generator, evidence, "r2", 40, 7, answer_share=0.0)
        self.assertEqual(self.draws(generator, proposed), 40)

    def draws(self, generator, proposed):
        """How many of the last proposals are what the generator draws."""
        for count in range(40, 0, -1):
            (drawn,) = generator.propose([Budget({"macs": 9.0})], count, seeds.derive(7, "draws"))
            if proposed[-count:] == [SPACE.architecture(row) for row in drawn.choices]:
                return count
        return 0

    def test_rounds_need_trainings(self):
        with self.assertRaisesRegex(errors.UsageError, "rounds need trainings"):
            self.learn(1, evaluate=None)


if __name__ == "__main__":
    absltest.main()
