"""A plain single-path supernet, to compare the unified one with (SGNAS paper, section 5.2.1).

Every choice of a layer is an inverted bottleneck of its own, with one kernel and one expansion, as
in ProxylessNAS and FairNAS: kernels of 3, 5 and 7, half and whole of the largest expansion. Only
what the generator's training asks of it is here: the outputs for shares of the choices, as a mean
of the blocks' outputs (eq. 1), all of which are computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfgen import errors, seeds
from tfgen.nets import blocks
from tfgen.nets.keras_compat import tf
from tfgen.space.layers import LayerSpec
from tfgen.space.lowering import KERNELS, lower
from tfgen.space.search_space import SearchSpace
from tfgen.training import supernet_training


@dataclasses.dataclass(frozen=True)
class _Block:
    """What the blocks of one layer have in common.

    Attributes:
      name: of the layer.
      inputs: channels.
      outputs: channels.
      stride: of the depthwise convolution.
      expansions: that are offered, with each kernel.
    """

    name: str
    inputs: int
    outputs: int
    stride: int
    expansions: tuple[int, ...]


class SinglePath:
    """Weights of a block for each choice, in the largest macro-structure of a space.

    Attributes:
      choices: of each layer [layers].
    """

    def __init__(self, space: SearchSpace, seed: int):
        """Takes spaces as `image_spaces.mobile` makes them; raises UsageError for others.

        Nor may a block be one that cannot expand: it would have no choices here.
        """
        largest = space.architecture(supernet_training.ends(space)[0])
        layers = {layer.name: layer for layer in lower(space, largest)}
        self._random = seeds.stream(seed, "single path")
        self._plan: list[_Block | LayerSpec] = []
        for stage in space.stages:
            expand = layers.get(f"{stage.name}_expand")
            if stage.block != "unified":
                self._plan.append(layers[stage.name])
            elif expand is None:
                raise errors.UsageError(f"{space.name!r}: {stage.name!r} does not expand")
            else:
                rate = expand.out_channels // expand.in_channels
                project = layers[f"{stage.name}_project"]
                stride = int(stage.options["stride"])
                self._plan.append(
                    _Block(
                        stage.name,
                        expand.in_channels,
                        project.out_channels,
                        stride,
                        (rate // 2, rate),
                    )
                )
        self.choices = [
            len(KERNELS) * len(own.expansions) for own in self._plan if isinstance(own, _Block)
        ]
        self._variables: dict[str, tf.Variable] = {}
        even = [tf.fill([count], 1.0 / count) for count in self.choices]
        self.outputs(tf.zeros([2, *space.input_shape]), even)  # makes the variables

    def outputs(self, x: tf.Tensor, shares: Sequence[tf.Tensor]) -> tf.Tensor:
        """Logits of a batch by its own statistics.

        Args:
          x: the batch [batch, height, width, channels].
          shares: of each layer's choices, each [choices].
        """
        left = iter(shares)
        for own in self._plan:
            if isinstance(own, _Block):
                x = self._mixed(own, x, next(left))
            elif own.op == "mean":
                x = tf.reduce_mean(x, axis=(1, 2))
            elif own.batch_norm:
                kernel = self._weights(own.name, (own.kernel, own.kernel, x.shape[-1],
                                                  own.out_channels))  # fmt: skip
                x = tf.nn.relu6(self._normalised(own.name, tf.nn.conv2d(
                    x, kernel, own.stride, "SAME")))  # fmt: skip
            else:
                x = x @ self._weights(own.name, (x.shape[-1], own.out_channels))
        return x

    def _mixed(self, own: _Block, x: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
        outputs = []
        for kernel in KERNELS:
            for expansion in own.expansions:
                name, inner = f"{own.name}/{kernel}x{expansion}", own.inputs * expansion
                expand = self._weights(f"{name}/expand", (1, 1, own.inputs, inner))
                y = tf.nn.relu6(self._normalised(f"{name}/expand", tf.nn.conv2d(
                    x, expand, 1, "SAME")))  # fmt: skip
                depthwise = self._weights(f"{name}/depthwise", (kernel, kernel, inner, 1))
                strides = [1, own.stride, own.stride, 1]
                y = tf.nn.depthwise_conv2d(y, depthwise, strides, "SAME")
                y = tf.nn.relu6(self._normalised(f"{name}/depthwise", y))
                project = self._weights(f"{name}/project", (1, 1, inner, own.outputs))
                y = tf.nn.conv2d(y, project, 1, "SAME")
                outputs.append(self._normalised(f"{name}/project", y))
        mean = tf.add_n([share * y for share, y in zip(tf.unstack(shares), outputs, strict=True)])
        return mean + x if own.stride == 1 and own.inputs == own.outputs else mean

    def _weights(self, name: str, shape: tuple[int, ...]) -> tf.Variable:
        """He et al. 2015; made once."""
        if name not in self._variables:
            fan_in = np.prod(shape[:2]) if shape[-1] == 1 else np.prod(shape[:-1])
            values = self._random.normal(0.0, np.sqrt(2.0 / fan_in), shape)
            self._variables[name] = tf.Variable(values.astype(np.float32))
        return self._variables[name]

    def _normalised(self, name: str, x: tf.Tensor) -> tf.Tensor:
        scale = self._weights(f"{name}/scale", (1, x.shape[-1]))[0]
        y, _, _ = tf.compat.v1.nn.fused_batch_norm(
            x, scale, tf.zeros_like(scale), epsilon=blocks.NORM_EPSILON, is_training=True
        )
        return y
