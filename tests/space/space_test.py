"""Spaces as data: sizes, canonical points, sampling, the one walk, the encoding."""

import dataclasses
import math

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import small_space
from tfgen import errors, seeds
from tfgen.space import catalog, layers, lowering
from tfgen.space.architecture import Architecture
from tfgen.space.encoding import Encoding
from tfgen.space.search_space import Chosen, Decision, SearchSpace, Stage, When


class SizeTest(absltest.TestCase):
    def test_mlp_space_has_the_size_that_its_docstring_says(self):
        # Each hidden layer: 128 widths * 3 bits = 384. Depth d has 384**d; the output 3 bits.
        by_hand = 3 * (384 + 384**2 + 384**3 + 384**4)
        self.assertEqual(by_hand, 65_400_128_640)
        self.assertEqual(catalog.get("california_housing_mlp").size(), by_hand)
        self.assertEqual(catalog.get("mnist_mlp").size(), by_hand)

    def test_enumeration_agrees_with_the_size(self):
        space = small_space()
        points = list(space.enumerate())
        self.assertLen(points, 84)
        self.assertLen(set(points), 84)
        self.assertEqual(space.size(), 84)
        for point in points:
            self.assertEqual(space.architecture(point.choices), point)

    def test_a_large_space_is_not_enumerated(self):
        with self.assertRaisesRegex(errors.UsageError, "65,400,128,640 points"):
            next(catalog.get("mnist_mlp").enumerate())


class PointTest(parameterized.TestCase):
    def test_inactive_decisions_are_zero_and_do_not_distinguish(self):
        space = small_space()
        one = space.architecture([0, 1, 1, 2, 1, 0])  # depth 1: width_2 and bits_2 are inactive
        other = space.architecture([0, 1, 1, 0, 0, 0])
        self.assertEqual(one, other)
        self.assertEqual(one.choices, (0, 1, 1, 0, 0, 0))
        self.assertEqual(one.fingerprint, other.fingerprint)
        self.assertEqual(
            space.values(one), {"depth": 1, "width_1": 2, "bits_1": 8, "bits_output": 2}
        )

    def test_fingerprints_differ_between_networks_and_last(self):
        space = small_space()
        prints = {point.fingerprint for point in space.enumerate()}
        self.assertLen(prints, 84)
        # sha256 of {"choices":[0,0],"space":"s"} begins so; folders are named by it.
        self.assertEqual(Architecture("s", (0, 0)).fingerprint, "785fa88d5cac")

    @parameterized.parameters(
        ([0, 0, 0, 0, 0], "has 6 decisions, got 5"),
        ([2, 0, 0, 0, 0, 0], "'depth' of space 'small': index 2 is not in 0..1"),
        ([0, -1, 0, 0, 0, 0], "'width_1' of space 'small': index -1"),
    )
    def test_wrong_choices_are_refused(self, choices, message):
        with self.assertRaisesRegex(errors.UsageError, message):
            small_space().architecture(choices)

    def test_a_point_by_its_values(self):
        space = small_space()
        point = space.point({"depth": 1, "width_1": 2})
        self.assertEqual(
            space.values(point), {"depth": 1, "width_1": 2, "bits_1": 8, "bits_output": 8}
        )
        with self.assertRaisesRegex(errors.UsageError, "has no decision 'width'"):
            space.point({"width": 2})
        with self.assertRaisesRegex(errors.UsageError, "small' takes 1, 2, got 3"):
            space.point({"depth": 3})

    def test_points_of_another_space_are_refused(self):
        with self.assertRaisesRegex(errors.UsageError, "'other' given to 'small'"):
            small_space().choices([Architecture("other", (0, 0, 0, 0, 0, 0))])

    def test_json_both_ways(self):
        space = catalog.get("california_housing_mlp")
        self.assertEqual(SearchSpace.from_json(space.to_json()), space)
        point = space.architecture([3, 100, 1, 5, 0, 17, 2, 3, 1, 2])
        self.assertEqual(Architecture.from_json(point.to_json()), point)

    def test_a_space_checks_itself(self):
        space = small_space()
        later = (Decision("a", (1, 2), When("b", (1,))), Decision("b", (1, 2)))
        with self.assertRaisesRegex(ValueError, "not an earlier decision"):
            dataclasses.replace(space, decisions=later, stages=())
        with self.assertRaisesRegex(ValueError, "occurs twice"):
            dataclasses.replace(space, decisions=space.decisions[:1] * 2, stages=())
        with self.assertRaisesRegex(ValueError, "unknown decision 'nothing'"):
            stage = Stage("s", "dense", {"units": Chosen("nothing")})
            dataclasses.replace(space, stages=(stage,))
        with self.assertRaisesRegex(ValueError, "distinct"):
            Decision("d", (1, 1))

    def test_an_unknown_space_names_the_known(self):
        with self.assertRaisesRegex(errors.UsageError, "known: california_housing_mlp, cifar10"):
            catalog.get("mnst")


class SamplingTest(absltest.TestCase):
    def test_equal_seeds_give_equal_points(self):
        space = small_space()
        first = space.sample(50, seeds.stream(7, "s"))
        second = space.sample(50, seeds.stream(7, "s"))
        np.testing.assert_array_equal(first, second)

    def test_monte_carlo_weighs_widths_by_their_inverse(self):
        # P(width 1, 2, 3) = (1, 1/2, 1/3) / (11/6) = 6/11, 3/11, 2/11. With 20,000 draws a share's
        # standard deviation is below 0.0036; 5 of them fail once in 1.7 million runs of a new seed.
        drawn = small_space().sample(20_000, seeds.stream(1, "s"))
        shares = np.bincount(drawn[:, 1], minlength=3) / len(drawn)
        np.testing.assert_allclose(shares, [6 / 11, 3 / 11, 2 / 11], atol=5 * 0.0036)

    def test_sample_points_draws_every_network_alike(self):
        # 84 networks, 84,000 draws: 1,000 each, standard deviation 31.4; all within 6 of them (the
        # largest of 84 normal deviates is beyond 6 once in 6 million).
        drawn = small_space().sample_points(84_000, seeds.stream(2, "s"))
        _, counts = np.unique(drawn, axis=0, return_counts=True)
        self.assertLen(counts, 84)
        self.assertLess(np.abs(counts - 1000).max(), 6 * math.sqrt(1000 * 83 / 84))

    def test_a_mutation_redraws_active_decisions_and_stays_canonical(self):
        space = small_space()
        parents = space.sample(2000, seeds.stream(3, "s"))
        children = space.mutate(parents, seeds.stream(4, "s"))
        np.testing.assert_array_equal(space.canonical(children), children)
        same = (children == parents).all(axis=1).mean()
        # A redraw may hit the old value, so some children equal their parents; most do not.
        self.assertBetween(same, 0.05, 0.7)

    def test_a_mutation_draws_the_decisions_that_it_switches_on(self):
        space = small_space()
        parents = np.repeat(space.canonical([0, 0, 0, 0, 0, 0]), 12_000, axis=0)  # one layer
        children = space.mutate(parents, seeds.stream(4, "s"))
        widths = children[children[:, 0] == 1, 3]
        # Four decisions are active: depth is redrawn in a quarter at least, to two layers in half
        # of those. Of 1,500, widths 1, 2, 3 by 1/width: 818, 409, 273, within six deviations of
        # sqrt(1500 / 4) = 19.
        self.assertGreater(len(widths), 1_350)
        share = np.bincount(widths, minlength=3) / len(widths)
        np.testing.assert_allclose(share, np.array([6, 3, 2]) / 11, atol=6 * 0.5 / 1_350**0.5)


class LowerTest(absltest.TestCase):
    def test_layers_of_one_network(self):
        space = small_space()
        found = lowering.lower(space, space.architecture([1, 2, 0, 1, 1, 1]))
        shape = [(l.name, l.in_channels, l.out_channels, l.weight_bits) for l in found]
        self.assertEqual(shape, [("hidden_1", 4, 3, 2), ("hidden_2", 3, 2, 8), ("output", 2, 1, 8)])
        self.assertEqual([l.activation for l in found], ["relu", "relu", "linear"])
        self.assertEqual(layers.LayerSpec.from_json(found[0].to_json()), found[0])

    def test_an_absent_layer_passes_the_signal_on(self):
        space = small_space()
        found = lowering.lower(space, space.architecture([0, 2, 0, 0, 0, 1]))
        self.assertEqual([(l.in_channels, l.out_channels) for l in found], [(4, 3), (3, 1)])

    def test_one_walk_for_one_and_for_many(self):
        space = catalog.get("mnist_mlp")
        choices = space.sample(200, seeds.stream(5, "s"))
        slots = lowering.lower_batch(space, choices)
        for row in range(0, 200, 17):
            single = lowering.lower(space, space.architecture(choices[row]))
            self.assertEqual(single, layers.layers_of(slots, row))

    def test_slots_of_layers_give_the_layers_back(self):
        space = small_space()
        found = lowering.lower(space, space.architecture([1, 2, 0, 1, 1, 1]))
        self.assertEqual(layers.layers_of(layers.slots_of(found), 0), found)

    def test_an_unknown_block_names_the_known(self):
        space = dataclasses.replace(small_space(), stages=(Stage("x", "dnese", {}),))
        with self.assertRaisesRegex(ValueError, "one of .*'dense'.*, got 'dnese'"):
            lowering.lower_batch(space, np.zeros((1, 6), np.int64))


class EncodingTest(absltest.TestCase):
    def test_features_are_linear_between_octaves(self):
        # width_1 = 3 lies between the knots 2 and 4: log2(3) = 1.58496.
        encoding = Encoding(catalog.get("california_housing_mlp"))
        choices = encoding.space.canonical([[0, 2, 0, 0, 0, 0, 0, 0, 0, 0]])
        features = encoding.features_of(choices).reshape(10, 8)
        np.testing.assert_allclose(
            features[1], [0, 0.41504, 0.58496, 0, 0, 0, 0, 0], rtol=0, atol=1e-5
        )
        np.testing.assert_array_equal(features[0], [1, 0, 0, 0, 0, 0, 0, 0])  # depth 1
        np.testing.assert_array_equal(features[3], np.zeros(8))  # width_2 is inactive

    def test_parts_of_unified_blocks_and_of_numbers(self):
        encoding = Encoding(catalog.get("mnist_mobile"))
        parts = encoding.parts()
        space = encoding.space
        number = space.index["sub_blocks_1_1"]
        values = [str(value) for value in space.decisions[number].values]
        begin = number * encoding.knots
        columns = np.flatnonzero(parts[begin : begin + encoding.knots].any(axis=0))
        # Of at most four sub-blocks "335" has three: two of 3x3 and one of 5x5.
        row = parts[begin + values.index("335"), columns]
        np.testing.assert_allclose(row, [3 / 4, 2 / 4, 1 / 4])
        # Bits of 2, 4 and 8 lie evenly by their logarithm.
        begin = space.index["bits_output"] * encoding.knots
        (column,) = np.flatnonzero(parts[begin : begin + encoding.knots].any(axis=0))
        np.testing.assert_allclose(parts[begin : begin + 3, column], [0.0, 0.5, 1.0])
        self.assertEqual(Encoding(small_space()).parts().shape[1], 0)

    def test_what_a_generator_writes_reads_like_the_architecture(self):
        # Rows written with all decisions filled in: inactive ones must vanish by the depth alone.
        encoding = Encoding(catalog.get("california_housing_mlp"))
        choices = encoding.space.sample(300, seeds.stream(7, "s"))
        filled = np.where(encoding.space.active(choices), choices, 1)
        rows, activities = [], []
        for decision in range(len(encoding.long)):
            activity = encoding.activity(np, decision, rows, activities) * np.ones(300)
            rows.append(encoding.rows[decision, filled[:, decision]] * activity[:, None])
            activities.append(activity)
        np.testing.assert_allclose(
            np.concatenate(rows, axis=1), encoding.features_of(choices), atol=1e-5
        )

    def test_a_knot_stands_for_the_choices_under_its_hat(self):
        # Widths 1..9 lie at 7 log(w) / log(9) on knots 0..7: 1 at 0, 2 at 2.208, 3 at 3.5, 4 at
        # 4.416. Knot 3 reaches 2 and 3, with hats of heights 0.208 and 0.5. Knot 1 reaches none,
        # and 1 is the nearest.
        widths = tuple(range(1, 10))
        stage = Stage("output", "dense", {"units": 1, "weight_bits": 8, "activation": "linear"})
        decision = Decision("width", widths, sampling="uniform")
        space = SearchSpace("one", (1,), (decision,), (stage,), "litert-2.3")
        (spread,) = Encoding(space).spread
        np.testing.assert_allclose(spread.sum(axis=1), 1.0, rtol=1e-6)
        np.testing.assert_array_equal(spread[0], np.eye(9)[0])
        np.testing.assert_array_equal(spread[1], np.eye(9)[0])
        heights = [7 * np.log(2) / np.log(9) - 2, 0.5]
        np.testing.assert_allclose(spread[3, 1:3], heights / np.sum(heights), rtol=1e-5)
        self.assertEqual(spread[3, 3:].max(), 0)

    def test_knots_that_do_not_exist_are_ruled_out(self):
        absent = Encoding(small_space()).absent
        np.testing.assert_array_equal((absent > -1).sum(axis=1), [2, 3, 2, 3, 2, 2])


class SeedsTest(absltest.TestCase):
    def test_threefry_gives_the_published_words(self):
        # Known answers of Random123's kat_vectors for threefry2x32 with 20 rounds.
        known = [
            ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
            ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
            ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
        ]
        for key, counter, words in known:
            arrays = [np.array([v], np.uint32) for v in (*key, *counter)]
            found = seeds.threefry2x32(np, tuple(arrays[:2]), tuple(arrays[2:]))
            self.assertEqual(tuple(int(w[0]) for w in found), words)

    def test_a_row_of_words_depends_on_its_number_alone(self):
        low, high = seeds.key_of(9), seeds.key_of(10)
        both = tuple(np.concatenate(words) for words in zip(low, high, strict=True))
        nine, ten = seeds.counter_words(np, both, 1000, 10)
        np.testing.assert_array_equal(seeds.counter_words(np, low, 100, 10)[0], nine[:100])
        np.testing.assert_array_equal(seeds.counter_words(np, high, 900, 10)[0], ten[:900])
        self.assertFalse(np.array_equal(nine, ten))

    def test_forks_of_different_names_differ(self):
        key = seeds.key_of(2**40 + 3)
        self.assertEqual([int(word[0]) for word in key], [3, 2**8])
        forks = {seeds.forked(2**40 + 3, *names) for names in (("ab",), ("a", "b"), ("a",))}
        self.assertLen(forks, 3)

    def test_streams_of_different_names_differ(self):
        drawn = {seeds.stream(1, *name).integers(2**60) for name in (("a",), ("b",), ("a", "b"))}
        self.assertLen(drawn, 3)
        self.assertNotEqual(seeds.derive(1, "ab"), seeds.derive(1, "a", "b"))


if __name__ == "__main__":
    absltest.main()
