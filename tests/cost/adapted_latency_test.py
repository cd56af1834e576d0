"""A new device among known ones: worlds whose latencies are known, its file, what users write."""

import dataclasses
import json
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import errors, seeds
from tfgen.cost import adapted_device
from tfgen.cost.adapted_device import AdaptedDevice
from tfgen.cost.adapted_latency import AdaptedLatency, tells_all
from tfgen.cost.latency import Interval
from tfgen.space import bits, catalog, tabulated
from tfgen.space.nasbench201_readings import live_edges
from tfgen.space.search_space import Decision, SearchSpace

# Three decisions of five values: 125 networks.
SPACE = SearchSpace(
    "tiny", (4, 4, 1), tuple(Decision(n, (0, 1, 2, 3, 4)) for n in "abc"), (), bits.SIMULATED
)
ALL = np.array(list(np.ndindex(5, 5, 5)))
TEN = ALL[[3, 17, 30, 42, 58, 66, 79, 91, 104, 120]]


@dataclasses.dataclass
class Sums:
    """A device on which a network takes a constant and so much for each choice."""

    costs: tuple[float, ...]
    device: str = "known"

    def ms(self, choices):
        return self.costs[0] + choices @ np.array(self.costs[1:])

    def predict(self, choices, confidence):
        del confidence
        return Interval(self.ms(choices), self.ms(choices))


A, B = Sums((1.0, 0.1, 0.2, 0.9)), Sums((2.0, 0.9, 0.3, 0.1))

CONSTANT = Sums((1.0, 0.0, 0.0, 0.0))


def scaled(device, speed):
    return Sums(tuple(speed * cost for cost in device.costs))


class AdaptedLatencyTest(parameterized.TestCase):
    def test_a_faster_device_of_the_same_kind(self):
        # All known devices are one at other speeds, and the new one takes 7 times the first's time.
        # The known devices' fit gives up a thousandth of a cost to its ridge.
        known = {"a": A, "b": scaled(A, 2), "c": scaled(A, 5)}
        model = AdaptedLatency("new", SPACE, known, TEN[:3], 7 * A.ms(TEN[:3]))
        np.testing.assert_allclose(model.predict(ALL, 0.5).ms, 7 * A.ms(ALL), rtol=0.01)
        self.assertEqual(model.device, "new")
        self.assertIn("3 networks measured on new and 3 known devices", model.remark)

    def test_a_mixture_of_known_devices(self):
        # 3 ms of A and 2 of B: three unknowns and ten exact measurements. What remains is the
        # noise that is assumed, 2 % of the mean latency or more.
        truth = 3 * A.ms(ALL) + 2 * B.ms(ALL)
        measured = 3 * A.ms(TEN) + 2 * B.ms(TEN)
        model = AdaptedLatency("new", SPACE, {"a": A, "b": B}, TEN, measured)
        off = np.abs(model.predict(ALL, 0.5).ms - truth)
        self.assertLess(off.max() / truth.mean(), 0.04)

    def test_upper_ends_are_normal_quantiles_of_the_logarithm(self):
        # Phi(1) = 0.8413447, Phi(2) = 0.9772499; below the median the latency itself.
        model = AdaptedLatency("new", SPACE, {"a": A, "b": B}, TEN, A.ms(TEN))
        one, two, low = (model.predict(ALL, c) for c in (0.8413447, 0.9772499, 0.3))
        sigma = np.log(one.high_ms / one.ms)
        np.testing.assert_allclose(np.log(two.high_ms / two.ms), 2 * sigma, rtol=1e-5)
        np.testing.assert_array_equal(low.high_ms, low.ms)
        self.assertTrue((sigma > 0.0).all())
        # The median over 2,000 draws of these 125 networks.
        self.assertBetween(model.sigma, np.quantile(sigma, 0.4), np.quantile(sigma, 0.6))

    def test_many_are_told_as_one_by_one(self):
        model = AdaptedLatency("new", SPACE, {"a": A, "b": B}, TEN, A.ms(TEN))
        many = np.tile(ALL, (170, 1))  # 21,250: three batches
        np.testing.assert_allclose(
            model.predict(many, 0.9).high_ms, np.tile(model.predict(ALL, 0.9).high_ms, 170)
        )
        self.assertEmpty(model.predict(ALL[:0], 0.9).ms)

    def test_cells_are_read_in_the_order_of_their_numbers(self):
        # All devices compute live convolutions only; the new one has costs between the others'.
        space = catalog.get("nasbench201")
        cells = np.array(list(np.ndindex(*(5,) * 6)))
        live = cells * live_edges(cells)
        counts = np.stack([(live == op).sum(axis=1) for op in (2, 3)], axis=1)
        rows = np.ravel_multi_index(tuple(cells.T), (5,) * 6)
        self.assertTrue((rows == np.arange(15_625)).all())

        class Live(Sums):
            def ms(self, choices):
                return super().ms(counts[np.ravel_multi_index(tuple(choices.T), (5,) * 6)])

        known = {"a": Live((1.0, 0.1, 0.9)), "b": Live((1.0, 0.5, 1.1)), "c": Live((0.5, 0.1, 2.0))}
        new = Live((3.0, 1.0, 4.0))
        stream = seeds.stream(1, "order")
        numbered = cells[stream.permutation(len(cells))]
        measured = cells[stream.choice(len(cells), 30, replace=False)]
        model = AdaptedLatency("new", space, known, measured, new.ms(measured), numbered)
        off = np.abs(model.predict(cells, 0.5).ms - new.ms(cells))
        print(
            "XX",
            model._new.evidence,
            off.max() / new.ms(cells).mean(),
            np.quantile(off / new.ms(cells).mean(), [0.5, 0.9, 0.99]),
        )
        self.assertLess(off.max() / new.ms(cells).mean(), 0.02)

    def test_who_tells_not_all_is_no_known_device(self):
        class Half(Sums):
            def predict(self, choices, confidence):
                ms = self.ms(choices)
                return Interval(ms, np.where(choices[:, 0] > 1, np.inf, ms))

        half = Half(A.costs)
        self.assertTrue(tells_all(SPACE, A))
        self.assertFalse(tells_all(SPACE, half))
        with self.assertRaisesRegex(errors.UsageError, "'half' does not tell every network"):
            AdaptedLatency("new", SPACE, {"a": A, "half": half}, TEN, A.ms(TEN))

    @parameterized.named_parameters(
        ("one_device", {"a": A}, TEN, A.ms(TEN), "two known devices or more, got 1"),
        ("two_networks", {"a": A, "b": B}, TEN[:2], A.ms(TEN[:2]), "measure 3 networks, got 2"),
        ("lengths", {"a": A, "b": B}, TEN, A.ms(TEN)[:9], "one latency for each network"),
        ("negative", {"a": A, "b": B}, TEN, -A.ms(TEN), "above 0"),
        ("constant", {"a": A, "b": CONSTANT}, TEN, A.ms(TEN), "take the same time"),
    )
    def test_refused(self, known, choices, ms, message):
        with self.assertRaisesRegex(errors.UsageError, message):
            AdaptedLatency("new", SPACE, known, choices, ms)

    def test_a_confidence_is_a_probability(self):
        model = AdaptedLatency("new", SPACE, {"a": A, "b": B}, TEN, A.ms(TEN))
        with self.assertRaisesRegex(errors.UsageError, "confidence .* got 1"):
            model.predict(ALL, 1.0)


CELLS = {(0, 1, 2, 3, 4, 0): 1.5, (1, 1, 1, 1, 1, 1): 2.0, (4, 0, 0, 0, 0, 2): 3.25}
DEVICE = AdaptedDevice(
    name="new",
    description="a phone",
    space="nasbench201",
    known=("pixel3", "raspi4"),
    date="2026-11-22",
    networks=CELLS,
)


class FileTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.create_tempdir().full_path) / "new.json"

    def test_is_read_as_it_was_written(self):
        DEVICE.save(self.path)
        self.assertEqual(adapted_device.load(self.path), DEVICE)
        self.assertEqual(json.loads(self.path.read_text())["networks"]["0 1 2 3 4 0"], 1.5)

    @parameterized.parameters(
        ({"networks": {"0 1 2 3 4 0": 1.0}}, "1 networks were measured, 3 are needed"),
        ({"networks": {"0 1": 1.0, "1 1": 1.0, "2 2": 1.0}}, "6 decisions"),
        ({"networks": {f"0 1 2 3 4 {i}": ms for i, ms in enumerate((1, 2, 0))}}, "above 0"),
        ({"networks": {f"0 1 2 3 4 {i}": "x" for i in range(3)}}, "new.json"),
        ({"networks": ["0 1 2 3 4 0"]}, "new.json"),
        ({"space": "mars"}, "unknown space 'mars'"),
        ({"from": ["pixel3", "pixel3"]}, "distinct"),
        ({"from": None}, "new.json"),
    )
    def test_damage_is_told_with_the_files_name(self, wrong, message):
        DEVICE.save(self.path)
        self.path.write_text(json.dumps({**json.loads(self.path.read_text()), **wrong}))
        with self.assertRaisesRegex(errors.CorruptFileError, message):
            adapted_device.load(self.path)

    def test_choices_that_do_not_matter_are_0(self):
        # A resolution, then depth 2, whose third block has no kernel.
        space = catalog.get("ofa_mobilenet_v3")
        odd = [0] * len(space.decisions)
        odd[space.index["kernel_1_3"]] = 1
        networks = {(code, *odd[1:]): 1.0 for code in range(3)}
        with self.assertRaisesRegex(ValueError, "canonical"):
            dataclasses.replace(DEVICE, space="ofa_mobilenet_v3", networks=networks)


class ReadNetworksTest(parameterized.TestCase):
    def read(self, text, space="nasbench201", numbered=None):
        path = pathlib.Path(self.create_tempdir().full_path) / "measured.csv"
        path.write_text(text)
        return adapted_device.read_networks(path, catalog.get(space), numbered)

    def test_a_network_is_a_number_a_text_or_choices(self):
        numbered = np.array([[0] * 6, [4, 3, 2, 1, 0, 4]])
        text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|nor_conv_1x1~1|avg_pool_3x3~2|"
        found = self.read(f"network,ms\n1,2.5\n{text},3\n1 1 1 0 0 0,1e1\n", numbered=numbered)
        self.assertEqual(
            found, {(4, 3, 2, 1, 0, 4): 2.5, (3, 0, 1, 0, 2, 4): 3.0, (1, 1, 1, 0, 0, 0): 10.0}
        )
        self.assertEqual(tabulated.nasbench201_text((3, 0, 1, 0, 2, 4)), text)

    def test_a_spreadsheets_mark_and_line_ends(self):
        lines = [f"{' '.join([str(code)] * 22)},5" for code in range(3)]
        found = self.read("\ufeff" + "\r\n".join(["network,ms", *lines]), "fbnet")
        self.assertEqual(found, {(code,) * 22: 5.0 for code in range(3)})

    @parameterized.parameters(
        ("arch,ms\n", "first line must be network,ms"),
        ("", "first line must be network,ms"),
        ("network,ms\n1 1 1 1 1 1,2\n", "1 networks were measured, 3 are needed"),
        ("network,ms\n1 1 1 1 1 1,2\n1 1 1 1 1 1,3\n", "line 3: .* is there twice"),
        ("network,ms\n1 1 1 1 1 1,0\n", "line 2: .* above 0, got 0"),
        ("network,ms\n1 1 1 1 1 1,inf\n", "line 2: .* above 0, got inf"),
        ("network,ms\n1 1 1 1 1 1,2 ms\n", "line 2: ms must be a number, got '2 ms'"),
        ("network,ms\n1 1 1 1 1 1,2,5\n", "line 2: has more than two columns"),
        ("network,ms\n1 1 1 1 1 1\n", "line 2: ms must be a number, got ''"),
        ("network,ms\n1 1 1 1 1 5,2\n", "line 2: '1 1 1 1 1 5' is no network .*0..4"),
        ("network,ms\n2,2\n", "line 2: '2' is no network .* numbers lie in 0..1"),
        ("network,ms\n|conv~0|,2\n", "line 2: .* it has no 'conv'"),
        ("network,ms\n|none~0|,2\n", "line 2: .* 6 decisions, got 1"),
    )
    def test_what_is_refused(self, text, message):
        with self.assertRaisesRegex(errors.UsageError, message):
            self.read(text, numbered=np.array([[0] * 6, [1] * 6]))


class SuggestTest(parameterized.TestCase):
    @parameterized.parameters("nasbench201", "fbnet", "ofa_mobilenet_v3")
    def test_suggestions_are_distinct_and_read_back(self, name):
        found = adapted_device.suggest(catalog.get(name), 10, seed=1)
        path = pathlib.Path(self.create_tempdir().full_path) / "measured.csv"
        path.write_text("\n".join(["network,ms", *(f"{network},1" for network in found)]))
        self.assertLen(adapted_device.read_networks(path, catalog.get(name)), 10)
        self.assertEqual(adapted_device.suggest(catalog.get(name), 10, seed=1), found)
        self.assertNotEqual(adapted_device.suggest(catalog.get(name), 10, seed=2), found)

    def test_more_than_there_are(self):
        with self.assertRaisesRegex(errors.UsageError, "125 networks of tiny .* asked were 126"):
            adapted_device.suggest(SPACE, 126, seed=1)


if __name__ == "__main__":
    absltest.main()
