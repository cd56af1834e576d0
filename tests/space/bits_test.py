"""What a runtime executes, derived from rows: the shipped file's and rows by hand."""

from typing import Any

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import errors
from tfgen.space import bits

EXACT = bits.Result("exact", 0, 0)
NAN = bits.Result("nan")


def row(op: str, container: int, builtin: bits.Result = EXACT, **fields: Any) -> bits.Row:
    fields = {"activation_bits": 8, "xnnpack": None, **fields}
    return bits.Row(op=op, container_bits=container, builtin=builtin, **fields)


class LiteRt23Test(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.policy = bits.load("litert-2.3")

    @parameterized.parameters(
        ("dense", False, (2, 4, 8)),
        ("dense", True, (2, 4, 8)),
        ("conv", False, (8,)),
        ("conv", True, (4, 8)),
        ("depthwise", False, (8,)),
        ("depthwise", True, (4, 8)),
    )
    def test_menu(self, op: str, compact: bool, menu: tuple[int, ...]) -> None:
        self.assertEqual(self.policy.weight_bits(op, compact=compact), menu)

    @parameterized.parameters(
        # Containers of 2, 3, 4, 6 and 8 bits. No convolution is sound in INT2; with 16-bit
        # activations no depthwise one is in INT4.
        ("dense", 8, (2, 4, 4, 8, 8)),
        ("dense", 16, (2, 4, 4, 8, 8)),
        ("conv", 8, (4, 4, 4, 8, 8)),
        ("conv", 16, (4, 4, 4, 8, 8)),
        ("depthwise", 8, (4, 4, 4, 8, 8)),
        ("depthwise", 16, (8, 8, 8, 8, 8)),
    )
    def test_containers(self, op: str, activation_bits: int, containers: tuple[int, ...]) -> None:
        found = [self.policy.container_bits(op, b, activation_bits, 8) for b in (2, 3, 4, 6, 8)]
        self.assertSequenceEqual(found, containers)

    def test_what_xnnpack_would_not_read_is_stored_wider(self) -> None:
        # It reads INT2 where 4 divides the input channels, INT4 where 2 does.
        for channels, containers in ((4, (2, 4, 8)), (6, (4, 4, 8)), (7, (8, 8, 8))):
            found = [self.policy.container_bits("dense", b, 8, channels) for b in (2, 4, 8)]
            self.assertSequenceEqual(found, containers)
        # No fast kernel to lose: INT4 convolutions, and everything with 16-bit activations.
        self.assertEqual(self.policy.container_bits("conv", 4, 8, 7), 4)
        self.assertEqual(self.policy.container_bits("dense", 2, 16, 7), 2)
        found = self.policy.containers("dense", 2, 8, np.array([1, 2, 4, 6, 8, 9]))
        np.testing.assert_array_equal(found, [8, 4, 2, 4, 2, 8])

    def test_trained_widths_are_executed_and_not_offered(self) -> None:
        for op in ("dense", "conv", "depthwise"):
            for weight_bits in (3, 6):
                self.assertTrue(self.policy.executes(op, weight_bits, 8))
                self.assertNotIn(weight_bits, self.policy.weight_bits(op, compact=True))
        for weight_bits in (0, 1, 5, 7, 16):
            self.assertFalse(self.policy.executes("dense", weight_bits, 8))

    def test_xnnpack_runs_narrow_dense_layers_only(self) -> None:
        for op, accelerated in (("dense", (2, 4, 8)), ("conv", (8,)), ("depthwise", (8,))):
            found = tuple(b for b in (2, 4, 8) if self.policy.accelerated(op, b))
            self.assertEqual(found, accelerated)
            self.assertFalse(self.policy.accelerated(op, 8, 16))

    def test_what_is_unsafe(self) -> None:
        self.assertRegex(self.policy.unsafe("conv", 2, 32), "^2-bit conv with float .*gives NaN")
        self.assertRegex(self.policy.unsafe("conv", 2, 8), "^2-bit conv with 8-bit .*is refused")
        self.assertRegex(self.policy.unsafe("depthwise", 4, 16), "^4-bit depthwise .*is wrong by")
        self.assertIsNone(self.policy.unsafe("depthwise", 4, 8))
        self.assertIsNone(self.policy.unsafe("dense", 2, 8))

    def test_ops_without_weights(self) -> None:
        for op in (
            "add",
            "average_pool",
            "concat",
            "flatten",
            "max_pool",
            "mean",
            "multiply",
            "pad",
            "resize",
            "sigmoid",
            "slice",
        ):
            self.assertTrue(self.policy.executes(op, 0, 8), op)
            self.assertTrue(self.policy.executes(op, 0, 16), op)
            self.assertFalse(self.policy.executes(op, 8, 8), op)
        self.assertTrue(self.policy.executes("hard_swish", 0, 8))
        self.assertFalse(self.policy.executes("hard_swish", 0, 16))  # no kernel

    def test_what_is_not_executed_names_the_menu(self) -> None:
        with self.assertRaisesRegex(errors.UsageError, "litert-2.3.*conv with 5-bit.* 4, 8 bits"):
            self.policy.container_bits("conv", 5, 8, 3)

    def test_an_unknown_runtime_names_the_known(self) -> None:
        with self.assertRaisesRegex(errors.UsageError, "'tflm'; known: litert-2.3"):
            bits.load("tflm")


class RowsTest(parameterized.TestCase):
    @parameterized.parameters(
        bits.Result("wrong", 230.0, -3.0), NAN, bits.Result("refused"), bits.Result("crashed")
    )
    def test_what_is_unsound_is_not_offered(self, result: bits.Result) -> None:
        for xnnpack, builtin in ((result, EXACT), (EXACT, result), (None, result)):
            narrow = row("conv", 2, builtin, xnnpack=xnnpack)
            policy = bits.BitPolicy("by hand", (narrow, row("conv", 4), row("conv", 8)))
            self.assertEqual(policy.weight_bits("conv", compact=True), (4, 8))
            self.assertEqual(policy.container_bits("conv", 2, 8, 3), 4)
            self.assertIn("2-bit conv", policy.unsafe("conv", 2, 8))

    def test_nothing_sound(self) -> None:
        policy = bits.BitPolicy("by hand", (row("conv", 8, NAN), row("hard_swish", 0, NAN)))
        self.assertEqual(policy.weight_bits("conv"), ())
        self.assertFalse(policy.executes("hard_swish", 0, 8))
        with self.assertRaisesRegex(errors.UsageError, "conv with 8-bit.*no bits"):
            policy.container_bits("conv", 8, 8, 3)
        with self.assertRaisesRegex(errors.UsageError, "hard_swish with 8-bit activations"):
            policy.container_bits("hard_swish", 0, 8, 3)

    def test_only_fast_containers_are_offered_unless_bytes_count(self) -> None:
        close = bits.Result("close", 1, 0.25)
        fast, slow = row("conv", 2, close, xnnpack=EXACT), row("conv", 4, close)
        policy = bits.BitPolicy("by hand", (row("conv", 8, close), slow, fast))
        self.assertEqual(policy.weight_bits("conv"), (2, 8))
        self.assertEqual(policy.weight_bits("conv", compact=True), (2, 4, 8))
        self.assertEqual([policy.accelerated("conv", b) for b in (2, 4, 8)], [True, False, False])

    def test_float_activations_are_known_and_not_executed(self) -> None:
        policy = bits.BitPolicy("by hand", (row("dense", 8, activation_bits=32),))
        self.assertFalse(policy.executes("dense", 8, 32))
        self.assertEqual(policy.weight_bits("dense", 32), ())
        self.assertIsNone(policy.unsafe("dense", 8, 32))

    def test_what_was_not_tried_is_not_executed(self) -> None:
        policy = bits.BitPolicy("by hand", (row("dense", 8),))
        self.assertFalse(policy.executes("dense", 8, 16))
        self.assertFalse(policy.executes("conv", 8, 8))
        self.assertIn("not tried", policy.unsafe("dense", 8, 16))

    def test_two_rows_for_one_container(self) -> None:
        with self.assertRaisesRegex(ValueError, "more than one row.*'dense', 8, 8"):
            bits.BitPolicy("by hand", (row("dense", 8), row("dense", 8)))


class FileTest(parameterized.TestCase):
    def test_reads_what_a_row_writes(self) -> None:
        rows = (row("dense", 4, channel_multiple=2, time_over_int8=0.5), row("conv", 2, NAN))
        data = {"rows": [r.to_json() for r in rows]}
        self.assertEqual(bits.from_json("by hand", data, "x.json").rows, rows)

    @parameterized.parameters(
        ({"op": "lstm"}, "'lstm'"),
        ({"container_bits": 3}, "container_bits of dense must be one of .2, 4, 8."),
        ({"activation_bits": 4}, "activation_bits must be one of .8, 16"),
        ({"builtin": {"outcome": "fine"}}, "'fine'"),
        ({"builtin": {"outcome": "close"}}, "'close' with differences"),
        ({"builtin": {"outcome": "exact", "max_steps": 3, "mean_steps": 0}}, "'exact' with"),
        ({"xnnpack": {"outcome": "wrong", "max_steps": float("nan"), "mean_steps": 0}}, "wrong"),
        ({"builtin": None}, "NoneType"),
        ({"channel_multiple": 0}, "at least 1, got 0"),
        ({"time_over_int8": -1.0}, "above 0, got -1.0"),
        ({"speed": 1.0}, "'speed'"),
    )
    def test_a_malformed_row_is_named(self, change: dict[str, Any], reason: str) -> None:
        rows = [row("dense", 8).to_json(), {**row("dense", 4).to_json(), **change}]
        with self.assertRaisesRegex(errors.CorruptFileError, f"x.json: row 2: .*{reason}"):
            bits.from_json("by hand", {"rows": rows}, "x.json")

    @parameterized.parameters([[]], [{}], [{"rows": 3}], [None])
    def test_a_file_without_rows(self, data: Any) -> None:
        with self.assertRaisesRegex(errors.CorruptFileError, "x.json.*no rows"):
            bits.from_json("by hand", data, "x.json")

    def test_a_row_that_is_none(self) -> None:
        for wrong in (3, [], "row", {"op": "dense"}):
            with self.assertRaisesRegex(errors.CorruptFileError, "x.json: row 1"):
                bits.from_json("by hand", {"rows": [wrong]}, "x.json")


if __name__ == "__main__":
    absltest.main()
