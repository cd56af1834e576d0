"""What is known of networks beside their decisions."""

import numpy as np
from absl.testing import absltest

from tests.space.small import small_space
from tfgen import seeds
from tfgen.evidence import traits
from tfgen.space import catalog


class TraitsTest(absltest.TestCase):
    def test_ops_that_lead_nowhere_do_not_count(self):
        # Edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3. A 3x3 convolution to node 1 and a 1x1 from there to
        # the output are the only open path. In the second cell node 2 is fed, and nothing leaves
        # it.
        space = catalog.get("nasbench201")
        open_path, more = traits.of(space, np.array([[3, 0, 0, 0, 2, 0], [3, 4, 1, 0, 2, 0]]))
        np.testing.assert_array_equal(open_path, more)
        one_hot = open_path[:30].reshape(6, 5)
        np.testing.assert_array_equal(one_hot.argmax(axis=1), [3, 0, 0, 0, 2, 0])
        # Of four paths, whether it is open and how many skips, 1x1, 3x3 and pools lie on it.
        paths = open_path[30:50].reshape(4, 5)
        np.testing.assert_array_equal(
            paths, [[0, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
        )

    def test_most_spaces_have_none(self):
        choices = small_space().sample(3, seeds.stream(1, "networks"))
        self.assertEqual(traits.of(small_space(), choices).shape, (3, 0))


if __name__ == "__main__":
    absltest.main()
