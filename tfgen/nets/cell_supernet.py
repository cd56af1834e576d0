"""A supernet of NAS-Bench-201's cells (Dong and Yang, ICLR 2020): every op of every edge, shared.

The benchmark's network has a 3x3 convolution, then three stages of N cells, each stage of twice the
channels on half the pixels behind a residual block of stride 2. A cell has four nodes; an edge's op
reads one node and adds to another. All cells of a network are alike, with weights of their own.
Here N and the channels are small: the supernet only has to rank.

Normalisation is by the statistics of the batch, in training and after it: a network is scored on
batches of hundreds of images, of whichever classes come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import errors, seeds
from tfgen.nets import blocks
from tfgen.nets.keras_compat import tf
from tfgen.space.search_space import SearchSpace
from tfgen.space.tabulated import NASBENCH201_EDGES, NASBENCH201_OPS

_STAGES = 3
_NODES = 4


class CellSupernet:
    """The shared weights.

    Attributes:
      space: whose cells it runs.
      variables: by name.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        *,
        channels: int = 8,
        cells: int = 1,
        classes: int = 10,
    ):
        """Weights at random (He et al. 2015).

        Args:
          space: NAS-Bench-201's.
          seed: of the weights.
          channels: of the first stage; the benchmark has 16.
          cells: of a stage; the benchmark has 5.
          classes: of the images.

        Raises:
          UsageError: another space.
        """
        if space.name != "nasbench201":
            raise errors.UsageError(f"a supernet of cells is of nasbench201, not of {space.name!r}")
        self.space = space
        self.variables: dict[str, tf.Variable] = {}
        self._seed = seed
        self._widths = [channels * 2**stage for stage in range(_STAGES)]
        self._cells = cells
        self._conv("stem", 3, 3, channels)
        for stage, width in enumerate(self._widths):
            if stage:
                self._conv(f"reduce_{stage}_1", 3, width // 2, width)
                self._conv(f"reduce_{stage}_2", 3, width, width)
                self._conv(f"reduce_{stage}_skip", 1, width // 2, width, normalised=False)
            for cell in range(cells):
                for edge in range(len(NASBENCH201_EDGES)):
                    for side in (1, 3):
                        self._conv(f"cell_{stage}_{cell}_{edge}_{side}", side, width, width)
        self._normalisation("last", self._widths[-1])
        random = seeds.stream(seed, "cell supernet", "output")
        kernel = random.normal(0.0, self._widths[-1] ** -0.5, (self._widths[-1], classes))
        self._variable("output/kernel", kernel)
        self._variable("output/bias", np.zeros(classes))

    def outputs(self, x: tf.Tensor, choices: tf.Tensor) -> tf.Tensor:
        """Logits of one cell [batch, classes].

        Args:
          x: images [batch, height, width, 3].
          choices: op of each edge, int32 [6]; only these ops are computed.
        """

        def edge(number: int, read: tf.Tensor, ops: Sequence[Callable[[], tf.Tensor]]) -> tf.Tensor:
            y = tf.switch_case(choices[number], list(ops))
            return tf.ensure_shape(y, read.shape)

        return self._run(x, edge)

    def soft_outputs(
        self, x: tf.Tensor, shares: Mapping[str, tf.Tensor], *, quantized: bool = False
    ) -> tf.Tensor:
        """Logits where an edge adds the mean of its ops (SGNAS paper, eq. 1).

        Args:
          x: images [batch, height, width, 3].
          shares: of each decision's values, each sums to 1.
          quantized: must be False: cells have no bits.
        """
        if quantized:
            raise errors.UsageError("cells of NAS-Bench-201 have no bits")

        def edge(number: int, read: tf.Tensor, ops: Sequence[Callable[[], tf.Tensor]]) -> tf.Tensor:
            del read
            own = tf.unstack(shares[self.space.decisions[number].name])
            return tf.add_n([share * op() for share, op in zip(own, ops, strict=True)])

        return self._run(x, edge)

    # --- the network ----------------------------------------------------------------------------

    def _run(self, x: tf.Tensor, edge: Callable[..., tf.Tensor]) -> tf.Tensor:
        x = self._normalised("stem", self._convolved("stem", x, 1))
        for stage in range(_STAGES):
            if stage:
                x = self._reduced(f"reduce_{stage}", x)
            for cell in range(self._cells):
                x = self._cell(f"cell_{stage}_{cell}", x, edge)
        x = tf.reduce_mean(tf.nn.relu(self._normalised("last", x)), axis=(1, 2))
        return x @ self.variables["output/kernel"] + self.variables["output/bias"]

    def _cell(self, name: str, x: tf.Tensor, edge: Callable[..., tf.Tensor]) -> tf.Tensor:
        nodes = [x]
        for node in range(1, _NODES):
            arriving = [
                edge(number, nodes[source], self._ops(f"{name}_{number}", nodes[source]))
                for number, (source, target) in enumerate(NASBENCH201_EDGES)
                if target == node
            ]
            nodes.append(tf.add_n(arriving))
        return nodes[-1]

    def _ops(self, name: str, x: tf.Tensor) -> list[Callable[[], tf.Tensor]]:
        """What each of NASBENCH201_OPS makes of a node."""
        by_name: dict[str, Callable[[], Any]] = {
            "none": lambda: tf.zeros_like(x),
            "skip_connect": lambda: tf.identity(x),
            "nor_conv_1x1": lambda: self._activated(f"{name}_1", x, 1),
            "nor_conv_3x3": lambda: self._activated(f"{name}_3", x, 1),
            "avg_pool_3x3": lambda: tf.nn.avg_pool2d(x, 3, 1, "SAME"),
        }
        return [by_name[op] for op in NASBENCH201_OPS]

    def _reduced(self, name: str, x: tf.Tensor) -> tf.Tensor:
        """The residual block between two stages."""
        y = self._activated(f"{name}_2", self._activated(f"{name}_1", x, 2), 1)
        return y + self._convolved(f"{name}_skip", tf.nn.avg_pool2d(x, 2, 2, "SAME"), 1)

    def _activated(self, name: str, x: tf.Tensor, stride: int) -> tf.Tensor:
        """ReLU, convolution, normalisation: the benchmark's order."""
        return self._normalised(name, self._convolved(name, tf.nn.relu(x), stride))

    def _convolved(self, name: str, x: tf.Tensor, stride: int) -> tf.Tensor:
        return tf.nn.conv2d(x, self.variables[f"{name}/kernel"], stride, "SAME")

    def _normalised(self, name: str, x: tf.Tensor) -> tf.Tensor:
        scale, shift = self.variables[f"{name}/scale"], self.variables[f"{name}/shift"]
        y, _, _ = tf.compat.v1.nn.fused_batch_norm(
            x, scale, shift, epsilon=blocks.NORM_EPSILON, is_training=True
        )
        return y

    # --- variables ------------------------------------------------------------------------------

    def _conv(
        self, name: str, side: int, inputs: int, outputs: int, normalised: bool = True
    ) -> None:
        random = seeds.stream(self._seed, "cell supernet", name)
        deviation = np.sqrt(2.0 / (side**2 * inputs))
        self._variable(
            f"{name}/kernel", random.normal(0.0, deviation, (side, side, inputs, outputs))
        )
        if normalised:
            self._normalisation(name, outputs)

    def _normalisation(self, name: str, channels: int) -> None:
        self._variable(f"{name}/scale", np.ones(channels))
        self._variable(f"{name}/shift", np.zeros(channels))

    def _variable(self, name: str, value: np.ndarray) -> None:
        self.variables[name] = tf.Variable(value.astype(np.float32), name=name)
