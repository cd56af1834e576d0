"""The encoder where decisions have many values: it learns what values have in common."""

import numpy as np
from absl.testing import absltest

from tests.evidence.scored import records
from tests.space.small import small_space
from tfgen import seeds
from tfgen.cost.metrics import PerformanceScale
from tfgen.evidence import surrogate
from tfgen.space import catalog
from tfgen.space.encoding import Encoding

CONFIG = surrogate.SurrogateConfig(members=2, units=32, steps=600, batch_size=64, weight_decay=0.5)


class PartsTest(absltest.TestCase):
    def test_values_that_no_record_has_are_told_by_their_parts(self):
        # A network is worth the sub-blocks and the 5x5 kernels of its first block: of 14 values
        # half are never recorded.
        space = catalog.get("mnist_mobile")
        number = space.index["sub_blocks_1_1"]
        values = [str(value) for value in space.decisions[number].values]
        worth = np.array([0.1 * len(v) + 0.05 * v.count("5") for v in values])
        choices = space.sample(1200, seeds.stream(1, "records"))
        seen = choices[:, number] % 2 == 0
        told, asked = choices[seen], choices[~seen]
        metrics = worth[told[:, number]]
        scale = PerformanceScale.of(metrics.tolist())
        found = surrogate.fit(space, records(space, told, metrics), scale, CONFIG, 1)
        expected = worth[asked[:, number]]
        off = found.predict(asked).metric - expected
        # One that learned each value by itself would know nothing of these: the whole variance.
        self.assertLess(np.square(off).mean(), 0.5 * expected.var())

    def test_padding_has_no_weights(self):
        for space in (catalog.get("mnist_mobile"), small_space()):
            choices = space.sample(100, seeds.stream(2, "records"))
            metrics = seeds.stream(3, "metrics").random(100)
            scale = PerformanceScale.of(metrics.tolist())
            few = surrogate.SurrogateConfig(members=1, units=8, steps=3)
            state = surrogate.fit(space, records(space, choices, metrics), scale, few, 1).state()
            padding = Encoding(space).absent.ravel() != 0
            self.assertTrue(padding.any())
            self.assertEqual(np.abs(state["kernel_0"][:, padding]).max(), 0.0)
            self.assertNotIn("parts", state)


if __name__ == "__main__":
    absltest.main()
