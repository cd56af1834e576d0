"""From a supernet to a measured file: trained, scored, fitted, answered and delivered, in small."""

import collections
import dataclasses
import itertools
import pathlib
import shutil
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest

from tfgen import bundle as bundles
from tfgen import errors, pipeline, seeds, supernets, workdir
from tfgen.cost.budget import Budget
from tfgen.evidence import surrogate
from tfgen.evidence.inherited import Inheritance
from tfgen.evidence.record import RecordStore
from tfgen.evidence.surrogate import SurrogateConfig
from tfgen.experiment import Experiment
from tfgen.generators.baselines import RandomConfig
from tfgen.generators.sgnas import SgnasConfig
from tfgen.nets.keras_compat import tf
from tfgen.nets.supernet import Supernet
from tfgen.selection import Selector
from tfgen.space import catalog, published
from tfgen.space.lowering import lower
from tfgen.training import datasets, supernet_training, tasks, trainer
from tfgen.training.recipe import FloatStage, Recipe, SupernetRecipe
from tools import reproduce_supernet, reproduce_variants
from tools.single_path import SinglePath

EXPERIMENT = Experiment(
    name="quarters",
    space="mnist_mobile",
    dataset="mnist_images",
    records=10,
    gap_networks=1,
    recipe=Recipe(steps=20, batch_size=16, warmup_steps=2),
    surrogate=SurrogateConfig(members=1, units=8, steps=50, batch_size=8),
    methods={
        "sgnas": SgnasConfig(costs=("macs",), steps=20, batch_size=8, images=16),
        "random": RandomConfig(),
    },
    seed=5,
    fine_tuning=Recipe(steps=40, batch_size=16, warmup_steps=2, patience=2, distillation=0.5),
    supernet=SupernetRecipe(epochs=2, batch_size=64, learning_rate=0.1, shift=0, flip=False),
)


def quarters(name: str, split: str, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Images [28, 28, 1] with a bright quarter, of uint8; the class is which."""
    del name, data_dir
    random = seeds.stream(1, "quarters", split)
    y = random.integers(4, size=10_640 if split == "train" else 400)
    x = random.integers(0, 60, (len(y), 28, 28, 1))
    rows, columns = np.divmod(y, 2)
    for image, row, column in zip(x, 14 * rows, 14 * columns, strict=True):
        image[row : row + 14, column : column + 14] += 150
    return x.astype(np.uint8), y


class PipelineTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.work = workdir.WorkDir(self.root / reproduce_supernet.CONFIG)
        self.enter_context(mock.patch.object(datasets, "_load_tfds", quarters))
        self.enter_context(mock.patch.object(supernets, "_SEARCHED", 200))
        self.dataset = datasets.load("mnist_images")  # 640 to train, 10,000 to validate

    def test_targets_of_latency_need_a_device_and_the_other_way_round(self):
        costs = SgnasConfig(costs=("macs", "latency_ms"))
        targeted = dataclasses.replace(EXPERIMENT, methods={"sgnas": costs})
        with self.assertRaisesRegex(errors.UsageError, "'sgnas' have latency_ms: give --device"):
            pipeline.fit(targeted, self.work, None, 1, print)
        with self.assertRaisesRegex(errors.UsageError, "=host: no method of the config has"):
            pipeline.fit(EXPERIMENT, self.work, None, 1, print, "host")
        with self.assertRaisesRegex(errors.UsageError, "'pixel3' was not profiled"):
            pipeline.fit(targeted, self.work, None, 1, print, "pixel3")

    def test_the_largest_network_may_be_trained_first(self):
        recipe = dataclasses.replace(
            EXPERIMENT.supernet,
            largest_alone=FloatStage(epochs=3, batch_size=32, learning_rate=0.05),
            distillation=1.0,
            learning_rate=1e-6,
            float_share=0.9,
        )
        experiment = dataclasses.replace(EXPERIMENT, supernet=recipe)
        said = []
        left = supernets.train(experiment, self.work, self.dataset, 2, said.append)
        self.assertEqual(left, 3)  # one alone, two of all
        self.assertFalse(self.work.supernet.exists())
        self.assertEqual(supernets.train(experiment, self.work, self.dataset, 1, said.append), 2)
        self.assertFalse(self.work.supernet.exists())
        self.assertEqual(supernets.train(experiment, self.work, self.dataset, 1, said.append), 1)
        self.assertEqual(supernets.train(experiment, self.work, self.dataset, 5, said.append), 0)
        shutil.rmtree(self.work.largest)  # nothing is left to teach
        self.assertEqual(supernets.train(experiment, self.work, self.dataset, 5, said.append), 0)
        told = [words for words in said if words.startswith("the largest alone")]
        self.assertEqual(
            [words.partition(":")[0] for words in told],
            [f"the largest alone, epoch {n}/3" for n in (1, 2, 3)],
        )
        # What it learned in three epochs it lent: at this rate no other epoch teaches anything, and
        # by chance a quarter is right.
        supernet = supernets.load(experiment, self.work, self.dataset)
        space = supernet.space
        largest = lower(space, space.architecture(supernet_training.ends(space)[0]))
        inherited = supernet_training.score(
            supernet,
            largest,
            tasks.CLASSIFICATION,
            supernets.searched(self.dataset),
            supernets.calibration(experiment, self.dataset).x,
            quantized=False,
        )
        self.assertGreater(inherited, 0.7)
        self.assertEqual(Experiment.from_config(experiment.to_json()), experiment)

    def test_statistics_are_of_images_as_training_shows_them(self):
        count = 40
        still = supernets.calibration(EXPERIMENT, self.dataset)
        np.testing.assert_array_equal(still.x, self.dataset.train.x[:512])
        recipe = dataclasses.replace(EXPERIMENT.supernet, shift=2, flip=True)
        moving = dataclasses.replace(EXPERIMENT, supernet=recipe)
        found = supernets.calibration(moving, self.dataset)
        np.testing.assert_array_equal(found.x, supernets.calibration(moving, self.dataset).x)
        np.testing.assert_array_equal(found.y, still.y)
        padded = np.pad(still.x[:count], [(0, 0), (2, 2), (2, 2), (0, 0)])
        ways = collections.Counter()
        for own, image in zip(found.x[:count], padded, strict=True):
            for row, column, step in itertools.product(range(5), range(5), (1, -1)):
                if (own == image[row : row + 28, column : column + 28][:, ::step]).all():
                    ways[row, column, step] += 1
        # One way each; of 50 ways 40 draws take 27.7 in the mean, and fewer than 18 of them once in
        # 10,000 times.
        self.assertEqual(ways.total(), count)
        self.assertGreaterEqual(len(ways), 18)

    def test_the_configs_first_method_answers(self):
        experiment = reproduce_supernet.experiment()
        self.assertEqual(list(experiment.methods), ["sgnas", "random"])

    def test_from_a_supernet_to_a_file(self):
        with self.assertRaisesRegex(errors.UsageError, "0 of 2 epochs; run train_supernet first"):
            pipeline.collect(EXPERIMENT, self.work, None, 1)
        said = []
        # Stopped after an epoch, it goes on.
        self.assertEqual(supernets.train(EXPERIMENT, self.work, self.dataset, 1, said.append), 1)
        self.assertEqual(supernets.train(EXPERIMENT, self.work, self.dataset, None, said.append), 0)
        self.assertIn("1 of 2 epochs are done", said)
        other = dataclasses.replace(EXPERIMENT, seed=6)
        with self.assertRaisesRegex(errors.UsageError, "of another config or other data"):
            supernets.train(other, self.work, self.dataset, None, said.append)

        planned, missing, made = pipeline.collect(EXPERIMENT, self.work, None, 1)
        self.assertEqual(missing, planned)
        self.assertLessEqual(planned, 10)
        for _ in range(3):
            next(made)  # stopped, it goes on
        made.close()
        _, missing, made = pipeline.collect(EXPERIMENT, self.work, None, 1)
        self.assertEqual(missing, planned - 3)
        with self.assertRaisesRegex(errors.UsageError, f"3 of the {planned} records"):
            pipeline.fit(EXPERIMENT, self.work, None, 1, said.append)
        self.assertLen(list(made), planned - 3)
        pipeline.fit(EXPERIMENT, self.work, None, 1, said.append)

        bundle = bundles.load(self.work.bundle)
        self.assertEqual(bundle.default_method, "sgnas")
        told = workdir.read_manifest(self.work.bundle)["config"]["answers"]["reached"]
        self.assertIn("accuracy of the best record", told)
        shared = bundle.shared
        np.testing.assert_array_equal(shared.examples.train.x, self.dataset.train.x[:512])
        np.testing.assert_array_equal(shared.examples.validation.y, self.dataset.validation.y[:500])
        np.testing.assert_array_equal(shared.examples.test.y, self.dataset.test.y)
        budget = Budget({"macs": 1e6})
        selector = Selector(count=2, draws=64, refinements=0, max_distance=1.0)
        answers = pipeline.answer(
            bundle, budget, bundle.cost_model, "sgnas", selector, 0, said.append
        )
        delivery = pipeline.deliver(
            bundle, answers[0], self.work, shared.examples, seed=0, start=pipeline.INHERIT
        )
        terms = {term.metric: term for term in delivery.contract.terms}
        self.assertLessEqual(terms["macs"].measured, 1e6)
        self.assertEqual(delivery.contract.tested_on, "400 examples of mnist_images_shipped")
        # By chance a quarter; the file scores what the supernet does for that network.
        supernet = supernets.load(EXPERIMENT, self.work, self.dataset)
        scores = supernets.end_scores(EXPERIMENT, supernet, self.dataset)
        for name, score in scores.items():
            found = told[f"accuracy of the {name} network, inherited"]
            self.assertAlmostEqual(found, score, delta=0.01)  # two of 200
        expected = supernet_training.score(
            supernet,
            lower(bundle.space, answers[0].architecture),
            tasks.CLASSIFICATION,
            self.dataset.test,
            self.dataset.train.x[:512],
        )
        self.assertAlmostEqual(terms["accuracy"].measured, expected, delta=0.06)

        # Fine-tuned, it is no worse on so easy a problem, and a deployment of its own.
        tuned = pipeline.deliver(
            bundle, answers[0], self.work, self.dataset, seed=0, start=pipeline.QAT
        )
        self.assertNotEqual(tuned.path, delivery.path)
        (term,) = (t for t in tuned.contract.terms if t.metric == "accuracy")
        self.assertGreaterEqual(term.measured, terms["accuracy"].measured - 0.02)

        self.check_reproductions()

        # A shape that is not the space's.
        name = "output/bias"
        damaged = {**shared.variables, name: np.zeros(3, np.float32)}
        broken = dataclasses.replace(shared, variables=damaged)
        with self.assertRaisesRegex(errors.CorruptFileError, "not of a supernet of 'mnist_mobile'"):
            supernets.inherited(bundle.space, broken, [])

    def check_reproductions(self):
        folder = self.root / "results"
        with reproduce_supernet.Lab(self.root, None, EXPERIMENT) as lab:
            found = reproduce_supernet.table_1(lab, 4, 2, 1, 3, folder, lambda text: None)
            self.assertEqual([row.method for row in found], ["sgnas", "random", "evolution"])
            self.assertEqual([row.evaluations for row in found][1:], [4, 4])
            for row in found:
                self.assertLessEqual(row.macs, row.limit_macs)
                self.assertGreater(row.seconds, 0)
            # The least work of a search is what its networks took, however often it is asked.
            again = reproduce_supernet.table_1(lab, 4, 2, 1, 3, folder, lambda text: None)
            self.assertEqual(again[1:], found[1:])
            (met,) = reproduce_supernet.figure_7(
                lab, 1, 6, 1, None, 3, folder, say=lambda text: None
            )
            self.assertEqual((met.prior, met.metric), (0, "macs"))
            self.assertBetween(met.different, 1, 6)
            config = dataclasses.replace(EXPERIMENT.methods["sgnas"], teacher="encoder")
            first, _ = lab.generator(config, 1)
            with mock.patch.object(surrogate, "fit", side_effect=AssertionError):
                again, _ = lab.generator(config, 1)  # kept
            for name, value in first.state().items():
                np.testing.assert_array_equal(again.state()[name], value, name)
            rows = reproduce_supernet.bits(lab, 1, 3, folder, lambda text: None)
            self.assertEqual([row.bits for row in rows], [8, 4, 2])
            self.assertGreater(rows[0].file_kb, rows[2].file_kb)
            _, rows = reproduce_supernet.tuned(lab, 2, 3, folder, lambda text: None)
            for row in rows:  # so easy a problem is no worse after more training
                self.assertGreaterEqual(row.tuned, row.inherited - 0.02)
            _, kept = reproduce_supernet.tuned(lab, 2, 3, folder, lambda text: None)
            self.assertEqual(kept, rows)
        self.check_a_variant(folder)
        written = {path.name for path in folder.iterdir()}
        self.assertContainsSubset(
            {
                "sgnas6a.csv",
                "sgnas6a.png",
                "sgnas1.csv",
                "sgnas1.md",
                "sgnas7.md",
                "sgnas7a_macs.png",
                "sgnas7b.html",
            },
            written,
        )

    def check_a_variant(self, folder):
        asked = (self.root / "variants", self.dataset, 3, 4, folder)
        variant = reproduce_variants.VARIANTS[0]
        self.assertFalse(variant.forced or variant.switchable)
        said = []
        drawn = supernet_training.any_sub_blocks
        with mock.patch.object(supernet_training, "any_sub_blocks", side_effect=drawn) as taken:
            (row,) = reproduce_variants.figure_6a(
                EXPERIMENT, *asked, said.append, variants=[variant]
            )
        self.assertEqual(taken.call_count, 10 + 3)  # steps, and networks that are scored
        self.assertTrue(any(text.startswith("epoch 1/1, step 10/10") for text in said))
        said.clear()  # what is kept is neither trained nor scored again
        with mock.patch.object(supernet_training, "score", side_effect=AssertionError):
            again = reproduce_variants.figure_6a(
                EXPERIMENT, *asked, said.append, variants=[variant]
            )
        self.assertEqual(again, [row])


class InheritanceTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        random = seeds.stream(2, "images")
        x = random.normal(size=(96, 28, 28, 1)).astype(np.float32)
        self.examples = datasets.Split(x, random.integers(10, size=96))
        self.supernet = Supernet(catalog.get("mnist_mobile"), seed=1)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = pathlib.Path(folder.name) / "records.db"
        self.store = self.enter_context(RecordStore(path, self.supernet.space))

    def evaluator(self) -> Inheritance:
        x = self.examples.x[:64]
        return Inheritance(
            self.store, self.supernet, "data", tasks.CLASSIFICATION, self.examples, x
        )

    def test_a_network_is_scored_once_and_counted_each_time(self):
        space = self.supernet.space
        first, second = (
            space.architecture(row) for row in space.sample(2, seeds.stream(3, "networks"))
        )
        evaluate = self.evaluator()
        with mock.patch.object(
            supernet_training, "score", side_effect=supernet_training.score
        ) as scored:
            records = evaluate([first, second, first], seed=9)
            self.assertEqual(scored.call_count, 2)
            self.assertEqual(records[0], records[2])
            self.assertEqual(self.evaluator()([first])[0].metric, records[0].metric)
            self.assertEqual(scored.call_count, 2)  # read from the store
        self.assertEqual(evaluate.trainings, 3)
        layers = lower(space, first)
        expected = supernet_training.score(
            self.supernet, layers, tasks.CLASSIFICATION, self.examples, self.examples.x[:64]
        )
        self.assertEqual(records[0].metric, expected)

    def test_weights_without_switchable_normalisation_are_inherited_too(self):
        net = Supernet(catalog.get("mnist_mobile"), seed=1, switchable=False)
        variables = {name: variable.numpy() for name, variable in net.variables.items()}
        shared = bundles.SharedWeights(variables, None, None)
        layers = lower(net.space, net.space.point({}))
        found = supernets.inherited(net.space, shared, layers)
        for layer, own in net.weights(layers).items():
            for name, values in own.items():
                np.testing.assert_array_equal(found[layer][name], values)

    def test_steps_of_both_kinds_of_supernet_are_measured(self):
        for kind, choices in (
            (reproduce_variants.SINGLE_PATH, 6),
            (reproduce_variants.UNIFIED, 14),
        ):
            step = reproduce_variants.step(kind, "mnist_mobile", 2)
            self.assertEqual((step.choices, step.batch_size), (choices, 2))
            self.assertGreater(step.seconds, 0.0)
        with self.assertRaisesRegex(errors.UsageError, "'block_1_1' does not expand"):
            SinglePath(published.sgnas_imagenet(), 1)

    def test_other_weights_make_other_records(self):
        before = self.evaluator().recipe
        self.supernet.variables["output/bias"].assign_add(np.ones(10, np.float32))
        self.assertNotEqual(self.evaluator().recipe, before)

    def test_inherited_weights_compute_what_the_supernet_computes(self):
        # Ranges of activations are the calibration's, not the batch's: the logits differ by a few
        # steps of 1/255 of their range.
        space = self.supernet.space
        layers = lower(space, space.point({"convolutions": "fast"}))
        dataset = datasets.Dataset("noise", datasets.tasks.CLASSIFICATION, *[self.examples] * 3, {})
        trained = trainer.inherit(layers, self.supernet.weights(layers), self.examples.x, dataset)
        found = trainer.predict(trained.model, self.examples.x)
        statistics = self.supernet.statistics(layers, [self.examples.x], quantized=True)
        expected = self.supernet.outputs(
            layers, tf.constant(self.examples.x), quantized=True, statistics=statistics
        ).numpy()
        spread = np.ptp(expected)
        self.assertLess(np.abs(found - expected).mean(), 0.05 * spread)


if __name__ == "__main__":
    absltest.main()
