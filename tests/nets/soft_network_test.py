"""Shares of choices: at 0 and 1 the network itself, in between differentiable."""

from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tests.nets.scattered import scattered
from tfgen import errors, seeds
from tfgen.nets import supernet
from tfgen.nets.keras_compat import tf
from tfgen.nets.soft_network import SoftNetwork
from tfgen.nets.supernet import Supernet
from tfgen.space import catalog
from tfgen.space.lowering import lower


def images(space) -> tf.Tensor:
    x = seeds.stream(3, "images").normal(size=(8, *space.input_shape))
    return tf.constant(x.astype(np.float32))


class SoftNetworkTest(parameterized.TestCase):
    @parameterized.product(name=("mnist_mobile", "cifar10_mobile_v3"), quantized=(False, True))
    def test_shares_of_0_and_1_are_the_network(self, name, quantized):
        # Activations are not rounded in a soft network.
        self.enter_context(
            mock.patch.object(supernet, "_rounded_activation", lambda x, bits, signed: x)
        )
        net = scattered(name)
        space, x, soft = net.space, images(net.space), SoftNetwork(net)
        run = tf.function(lambda shares: soft.outputs(x, shares, quantized=quantized))
        for row in space.sample(3, seeds.stream(4, "sample")):
            shares = {
                decision.name: tf.one_hot(choice, len(decision.values))
                for decision, choice in zip(space.decisions, row, strict=True)
            }
            layers = lower(space, space.architecture(row))
            expected = net.outputs(layers, x, quantized=quantized).numpy()
            largest = np.abs(expected).max()
            np.testing.assert_allclose(run(shares).numpy(), expected, atol=1e-5 * largest, rtol=0)

    def test_every_decision_gets_a_gradient(self):
        net = scattered("mnist_mobile")
        space, x = net.space, images(net.space)
        shares = {
            d.name: tf.Variable(np.full(len(d.values), 1 / len(d.values), np.float32))
            for d in space.decisions
        }
        with tf.GradientTape() as tape:
            logits = SoftNetwork(net).outputs(x, shares, quantized=True)
            loss = tf.reduce_mean(tf.square(logits))
        for name, gradient in tape.gradient(loss, shares).items():
            self.assertTrue(np.isfinite(gradient).all(), name)
            self.assertGreater(np.abs(gradient).max(), 0, name)

    def test_a_block_that_is_half_there_is_half_added(self):
        # After the second group come the mean and the classifier, which are linear: with a share p
        # of depth 2 the logits are p times those of depth 2 and 1 - p times those of depth 1.
        net = scattered("mnist_mobile")
        space, x = net.space, images(net.space)
        shares = {d.name: tf.one_hot(len(d.values) - 1, len(d.values)) for d in space.decisions}
        one, two, half = (
            SoftNetwork(net)
            .outputs(x, {**shares, "depth_2": tf.constant([1 - p, p])}, quantized=False)
            .numpy()
            for p in (0.0, 1.0, 0.5)
        )
        np.testing.assert_allclose(half, (one + two) / 2, atol=1e-5)
        self.assertGreater(np.abs(one - two).max(), 1e-3)

    def test_a_space_without_such_a_form_is_refused(self):
        net = Supernet(catalog.get("cifar10_cnn"), 1)
        with self.assertRaisesRegex(errors.UsageError, "stage 'conv_1' has no share-weighted form"):
            SoftNetwork(net)


if __name__ == "__main__":
    absltest.main()
