"""A supernet that is asked for shares of choices instead of choices (SGNAS paper, eq. 1 and 12).

Every choice is a share m of each of its values, in one graph that is differentiable by all of them:

  * the kernels of a sub-block: its output is the mean of theirs, weighted by m; a sub-block that is
    skipped has the share of the longer expansions;
  * beyond the paper: a width is the share with which each channel is read; a block that is skipped
    whole is a mean of its input and its output; bits are a mean of the kernel's roundings; the
    scales and shifts of switchable normalisation are means over the rates.

Where all shares are 0 or 1 the result is the network's own (tested). Channels that nothing reads
are computed anyway: a soft network costs what the largest one does, with every depthwise kernel.

A decision that is not active stands at its first value, as it does in an architecture, where its
stage reads it all the same: bits of convolutions in networks that allow no low ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfgen import errors
from tfgen.nets import blocks, rounding
from tfgen.nets.keras_compat import tf
from tfgen.nets.supernet import ACTIVATIONS, BIAS, KERNEL, SCALE, SHIFT, Supernet
from tfgen.space.lowering import KERNELS, squeezed_channels
from tfgen.space.search_space import Chosen, Decision, Stage, Value, When

Shares = Mapping[str, tf.Tensor]  # by decision, [values]
_ACTIVATIONS: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = {
    **ACTIVATIONS,
    "hard_swish": blocks.hard_swish,  # an op of its own among layers
}
_LEAST_SHARE = 1e-6


@dataclasses.dataclass(frozen=True)
class _Menu:
    """An option's values and their shares.

    Attributes:
      values: what may be chosen.
      shares: of each; sums to 1 [values].
      decision: that chooses; None for a plain value.
    """

    values: tuple[Value, ...]
    shares: tf.Tensor
    decision: str | None

    def expect(self, number: Callable[[Value], float]) -> tf.Tensor:
        """The mean of a number read off the values."""
        return tf.reduce_sum(self.shares * np.array([number(v) for v in self.values], np.float32))

    def above(self, channels: int) -> tf.Tensor:
        """With which share a width is more than 0, 1 .. channels - 1 [channels]."""
        widths = np.array([int(value) for value in self.values])
        return tf.linalg.matvec(
            (widths[None] > np.arange(channels)[:, None]).astype(np.float32), self.shares
        )


@dataclasses.dataclass(frozen=True)
class _Signal:
    """A tensor between stages; its first channels are those that a network has."""

    x: tf.Tensor
    widths: _Menu

    @property
    def channels(self) -> int:
        return int(self.x.shape[-1])


class SoftNetwork:
    """Networks of a supernet, by shares of their choices."""

    def __init__(self, supernet: Supernet):
        """Takes spaces as `image_spaces.mobile` makes them.

        Raises:
          UsageError: plain convolutions vary in kernel or stride, or lack batch normalisation; a
            stage is optional that is no unified block.
        """
        self._supernet = supernet
        self._space = supernet.space
        for stage in self._space.stages:
            fixed = [name for name in ("kernel", "stride") if name in stage.options]
            varying = [name for name in fixed if isinstance(stage.options[name], Chosen)]
            optional = stage.when is not None and stage.block != "unified"
            bare = not stage.options.get("batch_norm", 1)
            if stage.block not in _STAGES or varying or optional or bare:
                raise errors.UsageError(
                    f"space {self._space.name!r}: stage {stage.name!r} has no share-weighted form"
                )

    def outputs(self, x: tf.Tensor, shares: Shares, *, quantized: bool) -> tf.Tensor:
        """Logits of a batch, by the statistics of the batch.

        Args:
          x: the batch [batch, height, width, channels].
          shares: of each decision's values, each sums to 1.
          quantized: whether weights are rounded; activations are not.
        """
        walk = _Walk(self._supernet, shares, quantized)
        channels = int(x.shape[-1])
        signal = _Signal(x, _Menu((channels,), tf.ones([1]), None))
        for stage in self._space.stages:
            after = _STAGES[stage.block](walk, stage, signal)
            if stage.when is not None:
                present = walk.present(stage.when)
                mixed = present * after.x + (1.0 - present) * signal.x
                after = dataclasses.replace(after, x=mixed)
            signal = after
        return signal.x


class _Walk:
    """What stages ask for: menus, kernels, normalisation."""

    def __init__(self, supernet: Supernet, shares: Shares, quantized: bool):
        self._supernet = supernet
        self._shares = shares
        self._quantized = quantized

    def has(self, layer: str) -> bool:
        return f"{layer}/{KERNEL}" in self._supernet.variables

    def variable(self, layer: str, part: str) -> tf.Tensor:
        return self._supernet.variables[f"{layer}/{part}"]

    def menu(self, stage: Stage, option: str) -> _Menu:
        value = stage.options[option]
        if not isinstance(value, Chosen):
            return _Menu((value,), tf.ones([1]), None)
        decision = self._decision(value.decision)
        shares = self._shares[decision.name]
        own = [v.decision for v in stage.options.values() if isinstance(v, Chosen)]
        if stage.when is not None:
            own.append(stage.when.decision)
        if decision.when is not None and decision.when.decision not in own:
            active = self.present(decision.when)
            first = np.eye(len(decision.values), dtype=np.float32)[0]
            shares = active * shares + (1.0 - active) * first
        return _Menu(decision.values, shares, decision.name)

    def present(self, when: When | None) -> tf.Tensor:
        """With which share a condition holds."""
        if when is None:
            return tf.ones([])
        decision = self._decision(when.decision)
        allowed = np.array([value in when.values for value in decision.values], np.float32)
        holds = tf.reduce_sum(self._shares[decision.name] * allowed)
        return self.present(decision.when) * holds

    def _decision(self, name: str) -> Decision:
        return self._supernet.space.decisions[self._supernet.space.index[name]]

    def kernel(self, layer: str, bits: _Menu, rows: tf.Tensor | None = None) -> tf.Tensor:
        """A kernel whose rows are read with these shares, rounded to a mean of bits."""
        kernel = tf.convert_to_tensor(self.variable(layer, KERNEL))
        if rows is not None:
            kernel = kernel * rows[:, None]
        if not self._quantized:
            return kernel
        by_channel = kernel[..., 0] if rows is None else kernel  # a depthwise one
        rounded = [rounding.rounded(by_channel, rounding.top_level(int(b))) for b in bits.values]
        mean = tf.add_n([share * k for share, k in zip(tf.unstack(bits.shares), rounded,
                                                       strict=True)])  # fmt: skip
        return mean[..., None] if rows is None else mean

    def normalised(self, layer: str, x: tf.Tensor, rates: tf.Tensor | None = None) -> tf.Tensor:
        """By the batch's statistics, with the mean of the rates' scales and shifts."""
        scale, shift = (self.variable(layer, part) for part in (SCALE, SHIFT))
        if rates is None or scale.shape[0] == 1:
            scale, shift = scale[0], shift[0]
        else:
            scale, shift = (tf.linalg.matvec(v, rates, transpose_a=True) for v in (scale, shift))
        y, _, _ = tf.compat.v1.nn.fused_batch_norm(
            x, scale, shift, epsilon=blocks.NORM_EPSILON, is_training=True
        )
        return y


def _conv(walk: _Walk, stage: Stage, signal: _Signal) -> _Signal:
    """A convolution, also one of 1x1, normalisation, activation."""
    rows = signal.widths.above(signal.channels)
    kernel = walk.kernel(stage.name, walk.menu(stage, "weight_bits"), rows)
    x = tf.nn.conv2d(signal.x, kernel, int(stage.options.get("stride", 1)), "SAME")
    x = _ACTIVATIONS[str(stage.options["activation"])](walk.normalised(stage.name, x))
    return _Signal(x, walk.menu(stage, "channels"))


def _mean(walk: _Walk, stage: Stage, signal: _Signal) -> _Signal:
    del walk, stage
    return dataclasses.replace(signal, x=tf.reduce_mean(signal.x, axis=(1, 2)))


def _dense(walk: _Walk, stage: Stage, signal: _Signal) -> _Signal:
    """A layer on a vector, with a bias."""
    rows = signal.widths.above(signal.channels)
    kernel = walk.kernel(stage.name, walk.menu(stage, "weight_bits"), rows)[0, 0]
    x = signal.x @ kernel + walk.variable(stage.name, BIAS)
    return _Signal(_ACTIVATIONS[str(stage.options["activation"])](x), walk.menu(stage, "units"))


def _unified(walk: _Walk, stage: Stage, signal: _Signal) -> _Signal:
    """The unified block (section 3.3): see `lowering` for the same as layers."""
    name, width = stage.name, signal.channels
    blocks_menu = walk.menu(stage, "sub_blocks")
    activate = _ACTIVATIONS[str(stage.options["activation"])]
    values = [str(value) for value in blocks_menu.values]
    longest = max(map(len, values))
    lengths = np.array([len(v) for v in values])
    rates = tf.linalg.matvec(
        (lengths[None] == np.arange(1, longest + 1)[:, None]).astype(np.float32), blocks_menu.shares
    )  # [rates]
    alive = tf.cumsum(rates, reverse=True)  # of each sub-block: expansions beyond it [sub-blocks]
    channel_read = signal.widths.above(width)
    x = signal.x
    if walk.has(f"{name}_expand"):
        kernel = walk.kernel(f"{name}_expand", walk.menu(stage, "expand_bits"), channel_read)
        y = tf.nn.conv2d(x, kernel, 1, "SAME")
        y = activate(walk.normalised(f"{name}_expand", y, rates))
        narrow = tf.pad(x, [[0, 0], [0, 0], [0, 0], [0, (longest - 1) * width]])
        y = (1.0 - rates[0]) * y + rates[0] * narrow if lengths.min() == 1 else y
    else:
        y = x
    stride, bits = int(stage.options["stride"]), walk.menu(stage, "depthwise_bits")
    mixed = tf.zeros([])
    for side in KERNELS:
        layer = f"{name}_depthwise_{side}"
        if not walk.has(layer):
            continue
        at = np.array([[v[i : i + 1] == str(side) for v in values] for i in range(longest)])
        share = tf.linalg.matvec(at.astype(np.float32), blocks_menu.shares)  # [sub-blocks]
        share /= tf.maximum(alive, _LEAST_SHARE)
        z = tf.nn.depthwise_conv2d(y, walk.kernel(layer, bits), [1, stride, stride, 1], "SAME")
        mixed += activate(walk.normalised(layer, z, rates)) * tf.repeat(share, width)
    rows = tf.repeat(alive, width) * tf.tile(channel_read, [longest])
    project_bits = walk.menu(stage, "project_bits")
    if walk.has(f"{name}_excite"):
        share = walk.menu(stage, "squeeze_excite").expect(lambda v: float(int(v) > 0))
        gate = _gate(walk, name, mixed, rows, project_bits, signal.widths, rates)
        mixed *= 1.0 - share + share * gate
    kernel = walk.kernel(f"{name}_project", project_bits, rows)
    out = walk.normalised(f"{name}_project", tf.nn.conv2d(mixed, kernel, 1, "SAME"), rates)
    widths = walk.menu(stage, "channels")
    if stride == 1:
        out += _same_width(signal.widths, widths) * _fitted(signal.x, int(out.shape[-1]))
    return _Signal(out, widths)


def _gate(
    walk: _Walk,
    name: str,
    x: tf.Tensor,
    rows: tf.Tensor,
    bits: _Menu,
    widths: _Menu,
    rates: tf.Tensor,
) -> tf.Tensor:
    """Squeeze-and-excitation's weights of channels [batch, 1, 1, channels]."""
    mean = tf.reduce_mean(x, axis=(1, 2))
    gate = mean @ walk.kernel(f"{name}_reduce", bits, rows)[0, 0]
    gate = tf.nn.relu(gate + walk.variable(f"{name}_reduce", BIAS))
    squeezed = np.array(
        [
            [squeezed_channels(int(width) * rate) for width in widths.values]
            for rate in range(1, len(rates) + 1)
        ]
    )  # [rates, widths]
    beyond = squeezed[..., None] > np.arange(gate.shape[-1])
    read = tf.einsum("r,w,rwc->c", rates, widths.shares, beyond.astype(np.float32))
    gate = gate @ walk.kernel(f"{name}_excite", bits, read)[0, 0]
    return tf.sigmoid(gate + walk.variable(f"{name}_excite", BIAS))[:, None, None]


def _same_width(before: _Menu, after: _Menu) -> tf.Tensor:
    """With which share a block does not change the channels, so that its input is added."""
    if before.decision == after.decision and before.values == after.values:
        return tf.ones([])
    pairs: Sequence[tuple[int, int]] = [
        (i, after.values.index(v)) for i, v in enumerate(before.values) if v in after.values
    ]
    return tf.add_n([tf.zeros([]), *(before.shares[i] * after.shares[j] for i, j in pairs)])


def _fitted(x: tf.Tensor, channels: int) -> tf.Tensor:
    """x with so many channels: the others are cut, or 0."""
    more = max(0, channels - int(x.shape[-1]))
    return tf.pad(x[..., :channels], [[0, 0], [0, 0], [0, 0], [0, more]])


_STAGES: Mapping[str, Callable[[_Walk, Stage, _Signal], _Signal]] = {
    "conv": _conv,
    "dense": _dense,
    "mean": _mean,
    "pointwise": _conv,
    "unified": _unified,
}
