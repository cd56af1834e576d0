"""Latency tables and what is predicted from them, on devices whose costs the test has made up."""

import dataclasses
import json
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import every_op, mlp
from tfgen import errors, seeds
from tfgen.cost import latency_table, profiled_latency
from tfgen.cost.cost_model import CostModel
from tfgen.cost.expected_cost import ExpectedCost
from tfgen.cost.latency import Interval
from tfgen.cost.latency_features import features, stack
from tfgen.cost.latency_table import Device, LatencyTable, NetworkTiming, OpTiming
from tfgen.cost.profiled_latency import ProfiledLatency
from tfgen.cost.tabulated_cost import TabulatedCost
from tfgen.space import bits, catalog
from tfgen.space.layers import layers_of, slots_of
from tfgen.space.lowering import lower, lower_batch

POLICY = bits.load("litert-2.3")
DEVICE = Device(name="board", processor="a board", runtime="runtime 1.0", threads=1)
SPACE = catalog.get("mnist_mobile")
NOISE = 0.02


def made_up_ms(slots, io: str, noise: float, random: np.random.Generator) -> np.ndarray:
    """Latencies of a device: 0.01 ms a call, 0.0005 an op, a nanosecond for 20 bytes, 50 MACs."""
    told = features(slots, POLICY, io)
    ms = np.zeros(len(told.values))
    for name, column in zip(told.names, told.values.T, strict=True):
        kernel, _, feature = name.partition(".")
        slow = 4.0 if "@4/8" in kernel and kernel.startswith(("conv", "depthwise")) else 1.0
        costs = {"": 0.01, "calls": 5e-4, "macs": 2e-8 * slow, "outputs": 5e-8}
        ms += column * (0.0 if kernel == "ends" else costs.get(feature, 0.0))
    return ms * np.exp(noise * random.standard_normal(len(ms)))


def made_up_table(random_networks: int, selected: int = 0, noise: float = NOISE) -> LatencyTable:
    random = seeds.stream(0, "made up")
    drawn = SPACE.sample(random_networks + selected, random)
    slots = lower_batch(SPACE, drawn)
    ms = made_up_ms(slots, "float", noise, random)
    ops = []
    for row in range(min(10, len(drawn))):
        for layer in layers_of(slots, row):
            alone = dataclasses.replace(layer, inputs=("input",) * len(layer.inputs))
            (op_ms,) = made_up_ms(slots_of([alone]), "int8", noise, random)
            ops.append(OpTiming(layers=(alone,), latency_ms=op_ms, spread=0.01, quiet_windows=5))
    networks = [
        NetworkTiming(
            architecture=SPACE.architecture(row),
            activation_bits=8,
            io="float",
            origin="random" if number < random_networks else "selected",
            latency_ms=float(ms[number]),
            spread=0.01,
            quiet_windows=5,
        )
        for number, row in enumerate(drawn)
    ]
    empty = LatencyTable(
        device=DEVICE, date="2026-11-22", reference_ms=0.01, repeatability=0.01, ops=(), networks=()
    )
    return empty.adding(ops, networks)


class FeaturesTest(absltest.TestCase):
    def test_two_dense_layers_by_hand(self):
        # 8 -> 20 -> 1, one position: a row of outputs counts as four; 8 inputs are a multiple of 4
        # and of 8, 20 outputs are two sixteens; 20 inputs are five fours and three eights (24).
        # 4 divides 8 and 20: 4-bit weights stay in 4 bits.
        told = features(slots_of(mlp((20, 1), (8, 4), 8)), POLICY, "float")
        found = dict(zip(told.names, told.values[0], strict=True))
        self.assertEqual((found["call"], found["ends.calls"], found["ends.elements"]), (1, 2, 9))
        first, second = "dense_vector@8/8", "dense_vector@4/8"
        self.assertEqual((found[f"{first}.macs"], found[f"{second}.macs"]), (160, 20))
        self.assertEqual(found[f"{first}.macs_of_16"], 4 * 8 * 32)
        self.assertEqual(found[f"{second}.macs_of_16"], 4 * 20 * 16)
        self.assertEqual(found[f"{second}.macs_of_32"], 4 * 24 * 32)
        self.assertEqual((found[f"{first}.weights"], found[f"{second}.inputs"]), (160, 20))

    def test_integer_ends_are_not_converted(self):
        told = features(slots_of(mlp((20, 1), (8, 4), 8)), POLICY, "int8")
        for name in ("ends.calls", "ends.elements"):
            self.assertEqual(told.values[0, told.names.index(name)], 0)

    def test_a_batch_is_its_networks(self):
        drawn = SPACE.sample(30, seeds.stream(1))
        slots = lower_batch(SPACE, drawn)
        batch = features(slots, POLICY, "float")
        single = stack(
            [features(slots_of(layers_of(slots, r)), POLICY, "float") for r in range(30)]
        )
        np.testing.assert_array_equal(batch.columns(single.names), single.values)

    def test_networks_with_an_op_that_nobody_timed_are_told(self):
        told = features(slots_of(every_op()), POLICY, "float")
        names = [name for name in told.names if "hard_swish" not in name]
        self.assertEqual(told.known(told.names).tolist(), [True])
        self.assertEqual(told.known(names).tolist(), [False])


class TabulatedTest(absltest.TestCase):
    def test_tables_tell_what_it_predicts(self):
        # With and without kernels that nobody timed, whose networks have no upper end.
        drawn = SPACE.sample(200, seeds.stream(3))
        for networks in (120, 25):
            latency = ProfiledLatency(made_up_table(networks), SPACE)
            tables = TabulatedCost(CostModel(SPACE, latency=latency), 0.8)
            costs, upper = tables.bounds(np, tables.rows(np, drawn))
            expected = latency.predict(drawn, 0.8)
            np.testing.assert_allclose(costs["latency_ms"], expected.ms, rtol=1e-9)
            np.testing.assert_allclose(upper["latency_ms"], expected.high_ms, rtol=1e-9)


class PredictTest(parameterized.TestCase):
    def test_random_networks_are_predicted(self):
        # Measured with 2 % noise, fitted to 100: within 10 % but for a chance below 1e-5 each.
        model = ProfiledLatency(made_up_table(100), SPACE)
        drawn = SPACE.sample(500, seeds.stream(2))
        slots = lower_batch(SPACE, drawn)
        ms = made_up_ms(slots, "float", 0.0, seeds.stream(0))
        np.testing.assert_allclose(model.expected_ms(drawn), ms, rtol=0.1)

    def test_latencies_are_sums_over_layers(self):
        # So their mean by shares is exact; with a share of 1 it is the network's own.
        model = ProfiledLatency(made_up_table(60), SPACE)
        choices = SPACE.sample(20, seeds.stream(8, "networks"))
        shares = [
            np.eye(len(decision.values))[column]
            for decision, column in zip(SPACE.decisions, choices.T, strict=True)
        ]
        found = ExpectedCost(SPACE, "latency_ms", latency=model)(np, shares)
        np.testing.assert_allclose(found, model.expected_ms(choices), rtol=1e-9)

    def test_upper_ends_cover(self):
        # Of a table of 100 the margin is the second largest residual, which covers 0.98 of networks
        # on average and, over tables, less than 0.93 in 1 of 100; of 1,000 networks.
        model = ProfiledLatency(made_up_table(100, 100), SPACE)
        drawn = SPACE.sample(1000, seeds.stream(3))
        ms = made_up_ms(lower_batch(SPACE, drawn), "float", NOISE, seeds.stream(4))
        interval = model.predict(drawn, 0.95)
        self.assertGreaterEqual((ms <= interval.high_ms).sum(), 930)
        # Margins are of the noise's size, not of the latency's.
        self.assertLess(np.median(interval.high_ms / interval.ms), np.exp(4 * NOISE))

    def test_networks_that_were_chosen_set_the_margin(self):
        table = made_up_table(60, 60)
        slower = [
            dataclasses.replace(t, latency_ms=t.latency_ms * 1.5)
            for t in table.networks
            if t.origin == "selected"
        ]
        drawn = SPACE.sample(5, seeds.stream(5))
        plain, wide = (ProfiledLatency(t, SPACE).predict(drawn, 0.95) for t in
                       (table, table.adding(networks=slower)))  # fmt: skip
        np.testing.assert_array_equal(plain.ms, wide.ms)
        self.assertGreater(np.min(wide.high_ms / wide.ms), 1.4)
        self.assertLess(np.max(plain.high_ms / plain.ms), 1.2)

    def test_a_large_batch_is_its_parts(self):
        model = ProfiledLatency(made_up_table(60), SPACE)
        drawn = SPACE.sample(5000, seeds.stream(6))
        whole = model.predict(drawn, 0.9)
        part = model.predict(drawn[4990:], 0.9)
        np.testing.assert_allclose(whole.high_ms[4990:], part.high_ms, rtol=1e-12)

    @parameterized.parameters(
        # 0.95**45 = 0.0994 < 0.1 <= 0.95**44: only from 45 on does the largest residual bound 95 %.
        (44, 0.95, None),
        (45, 0.95, 44),
        # Of 100 draws with chance 0.95: P(at most 96) = 0.742, P(at most 97) = 0.882,
        # P(at most 98) = 0.963.
        (100, 0.95, 98),
        # Of ten with chance one half: P(at most 6) = 848 / 1024, P(at most 7) = 968 / 1024.
        (10, 0.5, 7),
        (0, 0.95, None),
    )
    def test_which_residual_bounds(self, count, confidence, rank):
        self.assertEqual(profiled_latency._rank(count, confidence), rank)

    def test_too_few_networks(self):
        with self.assertRaisesRegex(errors.UsageError, "has 19 of its networks, 20 are needed"):
            ProfiledLatency(made_up_table(19), SPACE)
        drawn = SPACE.sample(1, seeds.stream(0))
        # 30 networks: 0.1 ** (1 / 30) = 0.926
        model = ProfiledLatency(made_up_table(30), SPACE)
        with self.assertRaisesRegex(
            errors.UsageError, "up to a confidence of 0.926, 0.95 is asked"
        ):
            model.predict(drawn, 0.95)
        model.predict(drawn, 0.92)

    def test_a_network_with_a_kernel_that_nobody_timed_keeps_no_budget(self):
        def compact(layers) -> bool:
            return any(x.op in ("conv", "depthwise") and x.weight_bits == 4 for x in layers)

        table = made_up_table(100)
        slow = [compact(lower(SPACE, t.architecture)) for t in table.networks]
        fast = [t for t, is_slow in zip(table.networks, slow, strict=True) if not is_slow]
        ops = [t for t in table.ops if not compact(t.layers)]
        timed = dataclasses.replace(table, ops=tuple(ops), networks=tuple(fast))
        drawn = SPACE.choices([t.architecture for t in table.networks])
        interval = ProfiledLatency(timed, SPACE).predict(drawn, 0.5)
        np.testing.assert_array_equal(np.isinf(interval.high_ms), slow)

    def test_another_width_of_activations_was_not_profiled(self):
        with self.assertRaisesRegex(errors.UsageError, "with 16-bit activations: it has 0"):
            ProfiledLatency(made_up_table(30), SPACE, activation_bits=16)

    @parameterized.parameters(
        ([1.0], [0.9], "below"), ([0.0], [1.0], "above 0"), ([np.nan], [1.0], "finite")
    )
    def test_intervals_are_checked(self, ms, high_ms, message):
        with self.assertRaisesRegex(ValueError, message):
            Interval(np.array(ms), np.array(high_ms))


class TableTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.create_tempdir().full_path) / "board.json"
        self.table = made_up_table(3)

    def test_written_and_read(self):
        self.table.save(self.path)
        self.assertEqual(latency_table.load(self.path), self.table)
        rows = self.path.read_text().splitlines()
        self.assertLen([row for row in rows if '"origin"' in row], 3)

    def test_of_what_was_timed_twice_the_later_counts(self):
        again = dataclasses.replace(self.table.networks[1], latency_ms=7.0)
        more = self.table.adding(self.table.ops, [again])
        self.assertEqual(more.ops, self.table.ops)
        self.assertEqual([t.latency_ms == 7 for t in more.networks], [False, True, False])

    def test_a_later_profile_joins(self):
        later = dataclasses.replace(
            self.table, date="2026-12-01", reference_ms=0.02, repeatability=0.03, ops=()
        )
        both = self.table.joined(later)
        self.assertEqual(both.ops, self.table.ops)
        told = (both.date, both.reference_ms, both.repeatability)
        self.assertEqual(told, ("2026-12-01", 0.01, 0.03))

    def test_names_that_stand_in_no_budget(self):
        for name in ("", "../host", "a,b", "a@b", ".hidden", "a=b", "a b"):
            with self.assertRaisesRegex(errors.UsageError, "a device's name has letters"):
                dataclasses.replace(DEVICE, name=name)

    def test_another_device_is_refused(self):
        for field, value in (("runtime", "runtime 1.1"), ("threads", 2), ("processor", "another")):
            found = dataclasses.replace(DEVICE, **{field: value})
            with self.assertRaisesRegex(errors.UsageError, f"measured with {field} .* here it is"):
                DEVICE.check_same(found)
        DEVICE.check_same(dataclasses.replace(DEVICE, name="other", governor="powersave"))

    def test_damaged_files_are_named(self):
        self.table.save(self.path)
        whole = json.loads(self.path.read_text())
        for damage in (
            {"ops": 3},
            {"device": {"name": "x"}},
            {"networks": [{**whole["networks"][0], "latency_ms": -1}]},
            {"ops": [{**whole["ops"][0], "layers": []}]},
        ):
            self.path.write_text(json.dumps({**whole, **damage}))
            with self.assertRaisesRegex(errors.CorruptFileError, "board.json: is no table"):
                latency_table.load(self.path)


if __name__ == "__main__":
    absltest.main()
