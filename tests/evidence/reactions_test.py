"""What information is, by hand."""

import numpy as np
from absl.testing import absltest

from tfgen.evidence.reactions import NOISE, Reactions, information, rounded_information


class InformationTest(absltest.TestCase):
    def test_channels_apart_tell_alike_and_copies_tell_once(self):
        # Of variance 1 each, noise of 1/100: a channel tells 1/2 log2(1 + 100) bits.
        one = 0.5 * np.log2(1.0 + 1.0 / NOISE)
        np.testing.assert_allclose(information(np.eye(4), [1, 2, 4]), [one, 2 * one, 4 * one])
        # Two copies are one signal of twice the power: 1/2 log2(1 + 200).
        copies = np.ones((2, 2))
        twice = 0.5 * np.log2(1.0 + 2.0 / NOISE)
        np.testing.assert_allclose(information(copies, [1, 2]), [one, twice])

    def test_dead_channels_tell_nothing(self):
        np.testing.assert_array_equal(information(np.zeros((3, 3)), [1, 3]), [0.0, 0.0])

    def test_rounding(self):
        # No noise but the vertex's own leaves all; noise of the signal's power leaves little.
        self.assertEqual(float(rounded_information(0.0)), 1.0)
        left = np.log2(1.0 + 1.0 / 1.01) / np.log2(101.0)
        self.assertAlmostEqual(float(rounded_information(1.0)), left)

    def test_reactions_are_checked(self):
        with self.assertRaisesRegex(ValueError, "each decision"):
            Reactions(np.ones(2), (np.zeros(3),))
        for sensitivity, lost in (([-1.0], [0.0]), ([1.0], [1.5]), ([np.nan], [0.0])):
            with self.assertRaisesRegex(ValueError, "losses lie in 0..1"):
                Reactions(np.array(sensitivity), (np.array(lost),))


if __name__ == "__main__":
    absltest.main()
