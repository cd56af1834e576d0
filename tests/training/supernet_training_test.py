"""The shared weights learn, fairly; a training that is stopped goes on as if it had not been."""

import dataclasses
import json
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import errors, seeds
from tfgen.nets.keras_compat import tf
from tfgen.nets.supernet import Supernet
from tfgen.space import catalog, image_spaces
from tfgen.space.lowering import lower
from tfgen.training import datasets, supernet_training, tasks
from tfgen.training import losses as losses_of
from tfgen.training.recipe import DIMENSIONS, Phase, SupernetRecipe
from tfgen.training.supernet_training import SupernetTraining

SPACE = image_spaces.mobile(
    "tiny",
    (8, 8, 1),
    4,
    stem_widths=(8, 12),
    stem_stride=1,
    groups=(
        image_spaces.UnifiedGroup(
            depths=(1, 2),
            widths=(8, 12),
            sub_blocks=image_spaces.sub_blocks((3, 5), (1, 2)),
            stride=2,
        ),
    ),
)
RECIPE = SupernetRecipe(epochs=8, batch_size=32, learning_rate=0.1, shift=0, flip=False)


def quarters(count: int, seed: int) -> datasets.Split:
    """Images with a bright quarter; the class is which."""
    random = seeds.stream(seed, "quarters")
    y = random.integers(4, size=count)
    x = random.normal(0.0, 0.3, (count, 8, 8, 1))
    for image, place in zip(x, y, strict=True):
        row, column = 4 * (place // 2), 4 * (place % 2)
        image[row : row + 4, column : column + 4] += 1.0
    return datasets.Split(x.astype(np.float32), y)


def dataset() -> datasets.Dataset:
    splits = (quarters(384, 1), quarters(64, 2), quarters(200, 3))
    return datasets.Dataset("quarters", tasks.CLASSIFICATION, *splits, {})


def begun(seed: int = 5) -> SupernetTraining:
    return SupernetTraining(Supernet(SPACE, seed=1), dataset(), RECIPE, seed)


class PixelsTest(absltest.TestCase):
    def test_the_loss_is_of_pixels_that_have_a_class(self):
        # Shares of 1/4 and 3/4: -log(3/4) = 0.287682, -log(1/4) = 1.386294.
        logits = tf.constant([[[[0.0, np.log(3.0)]] * 2]], tf.float32)  # [1, 1, 2, 2]
        loss = losses_of.of(tasks.SEGMENTATION)
        for y, expected in (((1, tasks.VOID), 0.287682), ((1, 0), 0.836988)):
            self.assertAlmostEqual(float(loss(tf.constant([[y]]), logits)), expected, places=5)
        self.assertEqual(float(loss(tf.constant([[[-1, -1]]]), logits)), 0.0)
        # Half of a label, of two classes: 0.75 of the right one and 0.25 of the other.
        smooth = losses_of.of(tasks.SEGMENTATION, 0.5)
        expected = 0.75 * 0.287682 + 0.25 * 1.386294
        self.assertAlmostEqual(float(smooth(tf.constant([[[1, -1]]]), logits)), expected, places=5)


class TrainingTest(absltest.TestCase):
    def test_networks_learn_and_a_stopped_training_goes_on(self):
        whole, told = begun(), []
        losses = [whole.run_epoch(told.append, every=5) for _ in range(3)]
        state = whole.state()
        again = begun()
        again.restore(state)
        self.assertEqual(again.epoch, 3)
        for training in (whole, again):
            while training.epoch < RECIPE.epochs:
                losses.append(training.run_epoch())
        # Equal to the last bit but for the order in which two threads add up.
        for name, value in whole.state().items():
            np.testing.assert_allclose(again.state()[name], value, atol=2e-3, err_msg=name)
        # 384 images make 12 steps: reports after 5, 10 and 12 of each epoch.
        self.assertEqual([p.step for p in told], [5, 10, 12] * 3)
        self.assertEqual({p.steps for p in told}, {12})
        self.assertGreater(told[0].remaining_seconds, told[-1].remaining_seconds * 0.5)
        self.assertLess(losses[7], 0.5 * losses[0])
        # Four classes by chance: 0.25. Any network of the space, with weights it never had alone.
        test = dataset().test
        rows = SPACE.sample(3, seeds.stream(9, "networks"))
        found = [
            supernet_training.score(
                whole.supernet,
                lower(SPACE, SPACE.architecture(row)),
                dataset().task,
                test,
                test.x[:100],
            )
            for row in rows
        ]
        self.assertGreater(min(found), 0.6)

    def test_some_steps_train_the_largest_network(self):
        recipe = dataclasses.replace(RECIPE, largest_share=0.25)
        training = SupernetTraining(Supernet(SPACE, seed=1), dataset(), recipe, seed=5)
        drawn = []

        def step(layers, x, y, done, taken, taught):
            del x, y, taken, taught
            drawn.append((done, layers))
            return 0.0

        with mock.patch.object(training, "_step", step):
            for _ in range(recipe.epochs):
                training.run_epoch()
        # 8 epochs of 12 steps, of which the fourth, the eighth and the twelfth are the largest's.
        self.assertEqual([done for done, _ in drawn], list(range(96)))
        largest = lower(SPACE, SPACE.architecture(supernet_training.ends(SPACE)[0]))
        self.assertTrue(all(layers == largest for _, layers in drawn[3::4]))
        # The other nine steps of an epoch have a whole deck of four and a half for two widths each.
        widths = [layers[0].out_channels for done, layers in drawn[:12] if done % 4 != 3]
        self.assertIn(widths.count(8), (4, 5))

    def test_a_teacher_of_its_own_teaches_every_network(self):
        # It is sure that all images show the first class; labels weigh a tenth.
        sure = tf.constant([[9.0, 0.0, 0.0, 0.0]])
        teacher = mock.Mock(side_effect=lambda x: tf.repeat(sure, len(x), axis=0))
        recipe = dataclasses.replace(
            RECIPE, epochs=3, largest_share=0.25, distillation=10.0, learning_rate=0.02
        )
        data = dataset()
        training = SupernetTraining(Supernet(SPACE, seed=1), data, recipe, 5, teacher)
        for _ in range(recipe.epochs):
            training.run_epoch()
        self.assertEqual(teacher.call_count, recipe.epochs * training.steps)
        for row in supernet_training.ends(SPACE):
            layers = lower(SPACE, SPACE.architecture(row))
            outputs = training.supernet.outputs(layers, tf.constant(data.test.x), quantized=False)
            self.assertGreater(float(tf.reduce_mean(tf.nn.softmax(outputs)[:, 0])), 0.7)

    def test_a_share_of_the_steps_is_spread_evenly(self):
        found = supernet_training.evenly(8, 0.25).tolist()
        self.assertEqual(found, [False, False, False, True] * 2)
        self.assertEqual(supernet_training.evenly(10, 0.3).sum(), 3)
        self.assertFalse(supernet_training.evenly(5, 0.0).any())

    def test_networks_that_are_not_forced_take_any_sub_blocks(self):
        drawn = []
        for forced in (True, False):
            recipe = dataclasses.replace(RECIPE, forced=forced)
            training = SupernetTraining(Supernet(SPACE, seed=1), dataset(), recipe, seed=5)
            with mock.patch.object(training, "_step", return_value=0.0) as step:
                training.run_epoch()
            drawn.append([call.args[4] for call in step.call_args_list])
        self.assertEqual(drawn[0], [None] * 12)
        # Two blocks of two sub-blocks: each step one of four ways to take them.
        blocks = {"block_1_1", "block_1_2"}
        self.assertTrue(all(set(taken) == blocks for taken in drawn[1]))
        ways = {tuple(tuple(order) for order in taken.values()) for taken in drawn[1]}
        self.assertLessEqual(ways, {(a, b) for a in ((0, 1), (1, 0)) for b in ((0, 1), (1, 0))})
        # All 12 alike has odds of 4 ** -11.
        self.assertGreater(len(ways), 1)
        training.run_epoch()  # such networks train

    def test_recipes_without_them_are_written_as_before(self):
        written = RECIPE.to_json()
        for name in ("largest_share", "forced", "switchable", "phases", "distillation"):
            self.assertNotIn(name, written)
        self.assertIn("largest_share", dataclasses.replace(RECIPE, largest_share=0.1).to_json())

    def test_a_checkpoint_of_another_supernet_is_refused(self):
        state = begun().state()
        other = {**state, "output/bias": np.zeros(5, np.float32)}
        with self.assertRaisesRegex(errors.CorruptFileError, "not of a supernet of 'tiny'"):
            begun().restore(other)

    def test_data_that_does_not_fit_is_refused(self):
        with self.assertRaisesRegex(errors.UsageError, "space 'tiny' does not fit"):
            SupernetTraining(
                Supernet(SPACE, 1), datasets.load("california_housing"), RECIPE, seed=1
            )


class ShrinkingTest(parameterized.TestCase):
    """Progressive shrinking: one epoch for the largest, and one each as kernels .. shrink."""

    SPACE = image_spaces.mobile(
        "shrinking",
        (8, 8, 1),
        4,
        stem_widths=(8,),
        stem_stride=1,
        groups=(
            image_spaces.InvertedGroup(
                depths=(1, 2), widths=(8,), stride=2, kernels=(3, 5), expansions=(2, 4)
            ),
        ),
    )
    RECIPE = dataclasses.replace(
        RECIPE,
        epochs=5,
        phases=(
            Phase("none", 1, 0.1),
            Phase("kernel", 2, 0.04),
            Phase("depth", 1, 0.04),
            Phase("width", 1, 0.02),
        ),
        switchable=False,
        distillation=0.5,
    )

    def begun(self) -> SupernetTraining:
        return SupernetTraining(Supernet(self.SPACE, 1, False), dataset(), self.RECIPE, seed=5)

    def test_what_differs_between_networks_in_each_epoch(self):
        training = self.begun()
        index = self.SPACE.index
        kernels, widths = ("kernel_1_1", "kernel_1_2"), ("expansion_1_1", "expansion_1_2")
        bits = [name for name in index if name.startswith("bits_")]
        free = [set(), {*kernels, *bits, "convolutions"}]
        free += [free[1], free[1] | {"depth_1"}, free[1] | {"depth_1", *widths}]
        self.assertEqual(free[4], set(index))
        for names in free:
            drawn = []
            with mock.patch.object(training, "_step", return_value=0.0) as step:
                training.run_epoch()
            drawn = [call.args[0] for call in step.call_args_list]
            taught = [call.args[5] for call in step.call_args_list]
            largest = lower(self.SPACE, self.SPACE.point({}))
            self.assertEqual(taught, [layers != largest for layers in drawn])
            kernel, width = (
                {next(getattr(l, field) for l in layers if l.op == "depthwise") for layers in drawn}
                for field in ("kernel", "out_channels")
            )
            deep = {sum(l.op == "depthwise" for l in layers) for layers in drawn}
            # The last block's kernels are drawn as often, though depths were not all drawn alike.
            if "kernel_1_1" in names and "depth_1" not in names:
                last = [next(l.kernel for l in layers[::-1] if l.op == "depthwise")
                        for layers in drawn]  # fmt: skip
                self.assertEqual((last.count(3), last.count(5)), (6, 6))
            # Decks of 12: each value is there.
            self.assertEqual(kernel, {3, 5} if "kernel_1_1" in names else {5})
            self.assertEqual(deep, {1, 2} if "depth_1" in names else {2})
            self.assertEqual(width, {16, 32} if "expansion_1_1" in names else {32})

    def test_a_phase_begins_without_momentum_and_widths_with_sorted_channels(self):
        training = self.begun()
        with mock.patch.object(training.supernet, "sort_channels") as sorting:
            for epoch, (begins, sorts) in enumerate(
                [(False, 0), (True, 0), (False, 0), (True, 0), (True, 1)]
            ):
                for momentum in training._momenta.values():
                    momentum.assign(tf.ones_like(momentum))
                with mock.patch.object(training, "_step", return_value=0.0):
                    training.run_epoch()
                kept = {float(tf.reduce_sum(m)) > 0 for m in training._momenta.values()}
                self.assertEqual(kept, {not begins}, epoch)
                self.assertEqual(sorting.call_count, sorts)

    def test_each_phase_has_its_own_half_cosine(self):
        # Ten steps an epoch and no warm-up to speak of: half way through a phase, half its peak.
        recipe = dataclasses.replace(self.RECIPE, warmup_share=0.0)
        rates = [supernet_training.learning_rate(recipe, done, 10) for done in range(50)]
        for step, expected in ((0, 0.1), (5, 0.05), (10, 0.04), (20, 0.02), (30, 0.04), (45, 0.01)):
            self.assertAlmostEqual(rates[step], expected)

    def test_the_largest_network_teaches_the_others(self):
        # With logits 0 and a teacher that is sure of one of four: log 4, for any teacher.
        found = losses_of.from_teacher(tasks.CLASSIFICATION)(50.0 * tf.eye(4)[:2], tf.zeros([2, 4]))
        self.assertAlmostEqual(float(found), np.log(4.0), places=5)
        smallest = lower(self.SPACE, self.SPACE.architecture([0] * len(self.SPACE.decisions)))
        data = dataset().train
        found = []
        x, y = data.x[:32], data.y[:32]
        for taught in (False, True):
            training = self.begun()
            found.append(float(training._step(smallest, x, y, 0, None, taught)))
        net = self.begun().supernet
        logits, teacher = (
            net.outputs(layers, tf.constant(x), quantized=False)
            for layers in (smallest, lower(self.SPACE, self.SPACE.point({})))
        )
        distance = float(losses_of.from_teacher(tasks.CLASSIFICATION)(teacher, logits))
        self.assertAlmostEqual(found[1] - found[0], 0.5 * distance, places=4)

    def test_networks_learn_and_a_stopped_training_goes_on(self):
        whole, losses = self.begun(), []
        for _ in range(4):
            losses.append(whole.run_epoch())
        again = self.begun()
        again.restore(whole.state())
        for training in (whole, again):  # which sorts the channels first
            losses.append(training.run_epoch())
        for name, value in whole.state().items():
            np.testing.assert_allclose(again.state()[name], value, atol=2e-3, err_msg=name)
        self.assertTrue(np.isfinite(losses).all())

    @parameterized.parameters(
        ({"epochs": 6}, "phases take 6 epochs"),
        ({"switchable": True}, "set switchable to False"),
        ({"distillation": -1.0}, "distillation is at least 0"),
        ({"phases": (Phase("width", 2, 0.1), Phase("width", 3, 0.1))}, "another dimension"),
    )
    def test_a_recipe_checks_itself(self, change, message):
        with self.assertRaisesRegex(ValueError, message):
            dataclasses.replace(self.RECIPE, **change)

    def test_recipes_both_ways(self):
        written = json.loads(json.dumps(self.RECIPE.to_json()))
        self.assertEqual(SupernetRecipe.from_config(written), self.RECIPE)
        with self.assertRaisesRegex(ValueError, "adds none, kernel, depth, width"):
            Phase("size", 1, 0.1)

    def test_a_space_whose_dimensions_are_not_known_is_refused(self):
        with self.assertRaisesRegex(errors.UsageError, "knows no 'sub_blocks', which"):
            supernet_training.free_decisions(SPACE, {"kernel"})
        self.assertTrue(supernet_training.free_decisions(SPACE, DIMENSIONS).all())


class FairnessTest(absltest.TestCase):
    def test_every_value_is_drawn_as_often(self):
        space = catalog.get("cifar10_mobile")
        count = 300
        networks = supernet_training.fair_networks(space, count, seeds.stream(1, "fair"))
        for number, decision in enumerate(space.decisions):
            if decision.when is None and not decision.name.startswith("sub_blocks"):
                drawn = np.bincount(networks[:, number], minlength=len(decision.values))
                # Whole decks, and a last one that may be cut.
                self.assertLessEqual(drawn.max() - drawn.min(), 1, decision.name)

    def test_expansions_are_drawn_as_often_and_kernels_ascend(self):
        space = catalog.get("cifar10_mobile")
        number = space.index["sub_blocks_1_1"]
        menu = space.decisions[number].values
        networks = supernet_training.fair_networks(space, 300, seeds.stream(1, "fair"))
        drawn = [menu[choice] for choice in networks[:, number]]
        self.assertEqual(
            np.bincount([len(value) for value in drawn]).tolist(), [0, 0, 60, 60, 60, 60, 60]
        )
        self.assertTrue(all(list(value) == sorted(value) for value in drawn))
        # Whole decks of the combinations of each expansion, and a last one that may be cut.
        for expansion, values in ((2, 6), (3, 10), (4, 15), (5, 21), (6, 28)):
            times = [drawn.count(value) for value in menu if len(value) == expansion]
            self.assertLen(times, values)
            self.assertEqual(sum(times), 60)
            self.assertLessEqual(max(times) - min(times), 1)

    def test_a_menu_may_lack_combinations(self):
        space = image_spaces.mobile(
            "odd",
            (8, 8, 1),
            4,
            stem_widths=(8,),
            stem_stride=1,
            groups=(
                image_spaces.UnifiedGroup(
                    depths=(1,), widths=(8,), sub_blocks=("3", "55"), stride=1
                ),
            ),
        )
        networks = supernet_training.fair_networks(space, 10, seeds.stream(1, "fair"))
        drawn = networks[:, space.index["sub_blocks_1_1"]]
        self.assertEqual(np.bincount(drawn).tolist(), [5, 5])


if __name__ == "__main__":
    absltest.main()
