"""The unified supernet: weights that all networks of a space share (SGNAS paper, section 3.3).

Every network runs as itself, from its own LayerSpecs: a weighted layer takes its part of the
largest kernel of that name in the space. So the supernet, the stand-alone network, the counting and
the export walk the same list, and a network costs what it costs, not what the supernet would.

Which part: the first channels of a tensor, except inside a unified block. There the expanded tensor
is a row of sub-blocks, each as wide as the widest input; sub-block i of a narrower network is the
first channels of sub-block i, whichever other sub-blocks there are. A depthwise kernel of each side
exists for every sub-block; equal ones merge by lying side by side. Inverted blocks are such a row
too, with one depthwise kernel: a smaller one is its centre, through a matrix that all channels
share (Once-for-All, section 3.3; it begins as the identity).

The networks of a prototype (`space.prototype`) have the first channels of each group, which lie in
the order of their importance.

Normalisation is by the statistics of the batch. The scale and the shift of a block's normalisations
are its expansion rate's own (switchable batch normalisation, section 3.3.1). A stand-alone network
needs fixed statistics: they are estimated again, for that network, on a few hundred images
(`statistics`); departure: the paper keeps moving averages.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import errors, seeds
from tfgen.nets import blocks, depthwise, network, rounding
from tfgen.nets.keras_compat import keras, tf
from tfgen.space.layers import INPUT, WEIGHTED_OPS, LayerSlots, LayerSpec, range_owners
from tfgen.space.lowering import KERNELS, lower_batch
from tfgen.space.prototype import Prototype
from tfgen.space.search_space import Choices, SearchSpace

KERNEL, BIAS, SCALE, SHIFT = "kernel", "bias", "scale", "shift"
TRANSFORM = "transform"  # and the side of the smaller kernel that it makes
# By layer, mean and variance of what its normalisation reads, each [channels].
Statistics = Mapping[str, tuple[np.ndarray, np.ndarray]]
# By unified block, the supernet's sub-blocks in the order in which a network takes them. A block of
# a single one, which does not expand, always has the first.
Taken = Mapping[str, Sequence[int]]

# Layers of a unified or inverted block: whether they read and write the expanded tensor.
_PARTS = {
    "expand": (False, True),
    **{f"depthwise_{kernel}": (True, True) for kernel in KERNELS},
    "depthwise": (True, True),
    "reduce": (True, False),
    "excite": (False, True),
    "project": (True, False),
}
_LEAST_RANGE = 1e-3  # of activations: a dead layer still has one
ACTIVATIONS: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "linear": tf.identity,
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
}


@dataclasses.dataclass(frozen=True)
class _Part:
    """What a layer is to its unified or inverted block.

    Attributes:
      stage: name of the block.
      width: channels of a sub-block in the supernet.
      rates: the largest expansion.
      expanded_in: whether it reads the expanded tensor.
      expanded_out: whether it writes it.
    """

    stage: str
    width: int
    rates: int
    expanded_in: bool
    expanded_out: bool


class Supernet:
    """The shared weights of one space.

    Attributes:
      space: whose networks it runs.
      variables: by "layer/part".
    """

    def __init__(self, space: SearchSpace, seed: int, switchable: bool = True):
        """Weights at random (He et al. 2015).

        Args:
          space: of images, or of a prototype.
          seed: of the weights.
          switchable: whether each expansion rate has its own scales and shifts.

        Raises:
          UsageError: the space has layers that a supernet cannot share.
        """
        single = bool(space.stages) and all(stage.block == "layer" for stage in space.stages)
        self._prototype = Prototype.of(space) if single else None
        if len(space.input_shape) != 3 and not single:
            raise errors.UsageError(f"a supernet is of images; {space.name!r} takes vectors")
        self.space = space
        self._switchable = switchable
        slots = [slot for slot in lower_batch(space, _extremes(space)) if slot.present.any()]
        flattened = [slot.name for slot in slots if slot.op == "flatten"]
        if flattened and not single:
            raise errors.UsageError(
                f"space {space.name!r} flattens images ({flattened[0]}): which weights its "
                "networks would share is not defined"
            )
        self._parts = _unified_parts(space, slots)
        self._functions: dict[tuple[object, ...], Callable[..., Any]] = {}
        self.variables: dict[str, tf.Variable] = {}
        for slot in slots:
            if slot.op in WEIGHTED_OPS:
                random = seeds.stream(seed, "supernet", slot.name)
                for part, value in self._initial(slot, random).items():
                    name = f"{slot.name}/{part}"
                    self.variables[name] = tf.Variable(value, name=name)

    @property
    def sub_blocks(self) -> dict[str, int]:
        """By unified block, how many it has; by inverted block, its largest expansion."""
        return {part.stage: part.rates for part in self._parts.values()}

    def sort_channels(self) -> None:
        """Puts the channels that inverted blocks expand to in the order of their importance.

        That is the sum of the absolute weights by which the projection reads a channel. Narrower
        networks, which have the first channels, then have the best; the largest network stays what
        it is (Once-for-All, section 3.3, elastic width).
        """
        inverted = [stage.name for stage in self.space.stages if stage.block == "inverted"]
        for block in inverted:
            if f"{block}_expand/{KERNEL}" not in self.variables:
                continue
            weights = np.abs(self.variables[f"{block}_project/{KERNEL}"].numpy())
            order = np.argsort(-weights.sum(axis=(0, 1, 3)), kind="stable")
            for name, (expanded_in, expanded_out) in _PARTS.items():
                for own in (KERNEL, BIAS, SCALE, SHIFT):
                    variable = self.variables.get(f"{block}_{name}/{own}")
                    if variable is None:
                        continue
                    value = variable.numpy()
                    if own == KERNEL and expanded_in:
                        value = value[:, :, order]
                    if expanded_out and not (own == KERNEL and name == "depthwise"):
                        value = value[..., order]
                    variable.assign(value)

    def take(self, largest: Sequence[LayerSpec], weights: network.Weights) -> None:
        """Takes over what the largest network has, as Keras has it.

        A unified block's smaller kernels begin as the centres of the largest, and each expansion
        rate with its scales and shifts.

        Args:
          largest: that network, lowered from this space.
          weights: of each of its layers; what normalisations estimate is not read.
        """
        channels = self._channels(largest)
        for layer in largest:
            if layer.weighted:
                for name in [layer.name, *self._smaller(layer)]:
                    read, written = channels[layer.inputs[0]], channels[layer.name]
                    self._lend(name, layer, weights[layer.name], read, written)

    def _smaller(self, layer: LayerSpec) -> list[str]:
        """Layers of the same block whose kernels may begin as the centre of this one's."""
        part = self._parts.get(layer.name)
        if part is None or layer.op != "depthwise":
            return []
        names = [f"{part.stage}_depthwise_{kernel}" for kernel in KERNELS if kernel < layer.kernel]
        return [name for name in names if name in self._parts]

    def _lend(
        self,
        name: str,
        layer: LayerSpec,
        own: Mapping[str, np.ndarray],
        read: np.ndarray,
        written: np.ndarray,
    ) -> None:
        """Gives a layer of this name what a network's layer has for these channels."""
        ends = {BIAS: network.BIAS, SCALE: network.GAMMA, SHIFT: network.BETA}
        for part, theirs in ends.items():
            variable = self.variables.get(f"{name}/{part}")
            if variable is not None:
                value = variable.numpy()
                value[..., written] = own[theirs]  # of all expansion rates, where it has some
                variable.assign(value)
        variable = self.variables[f"{name}/{KERNEL}"]
        value = variable.numpy()
        kernel = own[network.KERNEL].reshape((layer.kernel, layer.kernel, len(read), -1))
        cut = (layer.kernel - len(value)) // 2
        kernel = kernel[cut : layer.kernel - cut, cut : layer.kernel - cut]
        if layer.op == "depthwise":
            value[:, :, read] = kernel
        else:
            value[:, :, read[:, None], written] = kernel
        variable.assign(value)

    def assign(self, values: Mapping[str, np.ndarray]) -> None:
        """Takes over the variables of a supernet that was trained; others may be among them.

        Raises:
          CorruptFileError: one is missing or of another shape.
        """
        for name, variable in self.variables.items():
            if name not in values or values[name].shape != tuple(variable.shape):
                raise errors.CorruptFileError(
                    f"shared weights are not of a supernet of {self.space.name!r}: {name}"
                )
        for name, variable in self.variables.items():
            variable.assign(values[name])

    def outputs(
        self,
        layers: Sequence[LayerSpec],
        x: tf.Tensor,
        *,
        quantized: bool,
        statistics: Statistics | None = None,
        seen: dict[str, tuple[tf.Tensor, tf.Tensor]] | None = None,
        taken: Taken | None = None,
    ) -> tf.Tensor:
        """What one network of the space makes of a batch.

        Args:
          layers: the network, lowered from this space.
          x: the batch [batch, *input_shape].
          quantized: whether weights are rounded to their bits, and activations to theirs over the
            range of this batch.
          statistics: of the normalisations; None for those of this batch.
          seen: takes the statistics of this batch, where it is given.
          taken: which sub-blocks; None for the first ones (forced sampling, section 3.3.2).
        """
        channels, rates = self._channels(layers, taken), self._rates(layers)
        for group in self._groups(layers):
            run = self._function(group, quantized, statistics is not None)
            weighted = [layer for layer in group if layer.weighted]
            columns = [(channels[one.inputs[0]], channels[one.name]) for one in weighted]
            tops = [rounding.top_level(one.weight_bits) for one in weighted]
            slices = [one.out_channels for one in group if one.op == "slice"]
            rate = self._rate(group[0], rates)
            normalised = [one.name for one in weighted if one.batch_norm]
            given = [np.stack(statistics[name]) for name in normalised] if statistics else []
            x, moments = run(x, columns, tops, slices, rate, given)
            if seen is not None:
                seen |= dict(zip(normalised, moments, strict=True))
        return x

    def statistics(
        self,
        layers: Sequence[LayerSpec],
        batches: Iterable[np.ndarray],
        *,
        quantized: bool,
        taken: Taken | None = None,
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """A network's statistics, as means over batches of equal size."""
        totals: dict[str, np.ndarray] = {}
        count = 0
        for batch in batches:
            seen: dict[str, tuple[tf.Tensor, tf.Tensor]] = {}
            x = tf.constant(batch)
            self.outputs(layers, x, quantized=quantized, seen=seen, taken=taken)
            for name, moments in seen.items():
                both = np.stack([moment.numpy() for moment in moments]).astype(np.float64)
                totals[name] = totals.get(name, 0.0) + both
            count += 1
        means = {name: (total / count).astype(np.float32) for name, total in totals.items()}
        return {name: (mean, variance) for name, (mean, variance) in means.items()}

    def weights(self, layers: Sequence[LayerSpec]) -> dict[str, dict[str, np.ndarray]]:
        """By layer of a network, its part of the weights, as Keras has them.

        `kernel`, and `gamma` and `beta` of its normalisation or a `bias`.
        """
        channels, rates = self._channels(layers), self._rates(layers)
        found = {}
        for layer in layers:
            if not layer.weighted:
                continue
            written = channels[layer.name]
            own = {"kernel": self._kernel(layer, channels[layer.inputs[0]], written)}
            if layer.batch_norm:
                ends = self._scale_and_shift(layer, written, self._rate(layer, rates))
                own |= dict(zip(("gamma", "beta"), ends, strict=True))
            else:
                own["bias"] = tf.gather(self.variables[f"{layer.name}/{BIAS}"], written)
            found[layer.name] = {name: tensor.numpy() for name, tensor in own.items()}
        return found

    def stand_alone(self, layers: Sequence[LayerSpec], statistics: Statistics) -> keras.Model:
        """The network by itself, with its part of the weights and these statistics."""
        own = self.weights(layers)
        for name, moments in statistics.items():
            own[name] |= dict(zip((network.MEAN, network.VARIANCE), moments, strict=True))
        return network.with_weights(layers, self.space.input_shape, own)

    # --- which weights --------------------------------------------------------------------------

    def _initial(self, slot: LayerSlots, random: np.random.Generator) -> dict[str, np.ndarray]:
        """A layer's largest variables."""
        present, part = slot.present, self._parts.get(slot.name)
        inputs, outputs = (int(c[present].max()) for c in (slot.in_channels, slot.out_channels))
        rates = 1
        if part is not None:
            expanded = part.rates * part.width
            inputs = expanded if part.expanded_in else inputs
            outputs = expanded if part.expanded_out else outputs
            rates = part.rates if self._switchable else 1
        side = int(slot.kernel[present].max())
        if slot.op == "depthwise":
            shape, fan_in = (side, side, inputs, 1), side**2
        else:
            shape, fan_in = (side, side, inputs, outputs), side**2 * inputs
        values = {KERNEL: random.normal(0.0, np.sqrt(2.0 / fan_in), shape)}
        if slot.op == "depthwise":
            smaller = {int(kernel) for kernel in slot.kernel[present]} - {side}
            values |= {f"{TRANSFORM}_{kernel}": np.eye(kernel**2) for kernel in sorted(smaller)}
        if slot.batch_norm:
            values |= {SCALE: np.ones((rates, outputs)), SHIFT: np.zeros((rates, outputs))}
        else:
            values[BIAS] = np.zeros(outputs)
        return {name: value.astype(np.float32) for name, value in values.items()}

    def _channels(
        self, layers: Sequence[LayerSpec], taken: Taken | None = None
    ) -> dict[str, np.ndarray]:
        """By tensor of one network, which of the supernet's channels it has."""
        if self._prototype is not None:
            return self._prototype.kept(layers)
        channels = {INPUT: np.arange(self.space.input_shape[-1])}
        for layer in layers:
            read = [channels[name] for name in layer.inputs]
            part = self._parts.get(layer.name)
            if layer.op == "concat":
                written = np.concatenate(read)
            elif layer.op == "slice":
                written = read[0][layer.offset : layer.offset + layer.out_channels]
            elif layer.op not in ("dense", "conv"):
                written = read[0]
            elif part is not None and layer.name == f"{part.stage}_expand":
                order = (taken or {}).get(part.stage, range(part.rates))
                sub_blocks = np.array(order[: layer.out_channels // layer.in_channels])
                written = (sub_blocks[:, None] * part.width + read[0]).ravel()
            elif part is not None and part.expanded_out:  # a gate for what was squeezed
                written = channels[f"{part.stage}_squeeze"]
            else:
                written = np.arange(layer.out_channels)
            channels[layer.name] = written
        return channels

    def _rates(self, layers: Sequence[LayerSpec]) -> dict[str, int]:
        """By unified block of one network that expands, how far."""
        return {
            self._parts[layer.name].stage: layer.out_channels // layer.in_channels
            for layer in layers
            if layer.name in self._parts and layer.name == f"{self._parts[layer.name].stage}_expand"
        }

    def _rate(self, layer: LayerSpec, rates: Mapping[str, int]) -> int:
        """Which row of scales and shifts the layers of a stage read."""
        part = self._parts.get(layer.name)
        return rates.get(part.stage, 1) - 1 if part is not None and self._switchable else 0

    # --- running --------------------------------------------------------------------------------

    def _groups(self, layers: Sequence[LayerSpec]) -> list[tuple[LayerSpec, ...]]:
        """The layers stage by stage: beyond its stage only a stage's last output is read.

        Those of a prototype, which read any others, all at once.
        """
        if self._prototype is not None:
            return [tuple(layers)]
        stages = sorted((s.name for s in self.space.stages), key=len, reverse=True)

        def stage_of(layer: LayerSpec) -> str:
            return next(s for s in stages if layer.name == s or layer.name.startswith(f"{s}_"))

        return [tuple(group) for _, group in itertools.groupby(layers, stage_of)]

    def _function(
        self, group: tuple[LayerSpec, ...], quantized: bool, fixed: bool
    ) -> Callable[..., Any]:
        """The traced function of a stage's layers.

        Run op by op, a step spends half its time between ops. Traced is what a stage's layers are,
        not how wide: a stage has a few variants, where a space has billions of networks.
        """
        names = {layer.name for layer in group}
        key = (
            quantized,
            fixed,
            *(
                (
                    layer.name,
                    *(name if name in names else INPUT for name in layer.inputs),
                    layer.kernel,
                    layer.stride,
                    layer.valid,
                    layer.offset if layer.op == "pad" else None,  # a slice's is told in each call
                    layer.activation_bits,
                    bool(layer.out_size),
                )
                for layer in group
            ),
        )
        if key not in self._functions:
            group = _apart(group)
            weighted = [layer for layer in group if layer.weighted]
            rank = 4 if group[0].in_size else 2
            owners = range_owners(group) if quantized else {}
            columns = tf.TensorSpec([None], tf.int32)
            moments = tf.TensorSpec([2, None], tf.float32)
            self._functions[key] = tf.function(
                lambda *inputs: self._run(group, owners, *inputs),
                input_signature=[
                    tf.TensorSpec([None] * rank, tf.float32),
                    [(columns, columns) for _ in weighted],
                    [tf.TensorSpec([], tf.float32) for _ in weighted],
                    [tf.TensorSpec([], tf.int32) for layer in group if layer.op == "slice"],
                    tf.TensorSpec([], tf.int32),
                    [moments for layer in weighted if layer.batch_norm] if fixed else [],
                ],
                autograph=False,
            )
        return self._functions[key]

    def _run(
        self,
        group: Sequence[LayerSpec],
        owners: Mapping[str, str],
        x: tf.Tensor,
        columns: Sequence[tuple[tf.Tensor, tf.Tensor]],
        tops: Sequence[tf.Tensor],
        slices: Sequence[tf.Tensor],
        rate: tf.Tensor,
        given: Sequence[tf.Tensor],
    ) -> tuple[tf.Tensor, list[tuple[tf.Tensor, tf.Tensor]]]:
        """A stage's layers.

        Args:
          group: the layers; their widths and bits are those of one network of many.
          owners: of the tensors that are rounded; empty where nothing is.
          x: what the stage reads.
          columns: of each layer with weights, the supernet's channels that it reads and writes.
          tops: of each of these, the largest level of its weights.
          slices: channels of each slice; a block's slices part a tensor, in their order.
          rate: row of the scales and shifts.
          given: of each normalisation its moments; empty for those of this batch.

        Returns:
          The last layer's output, and the moments of each normalisation.
        """
        weights, fixed = iter(zip(columns, tops, strict=True)), iter(given)
        tensors: dict[str, tf.Tensor] = {}
        cut: Iterator[tf.Tensor] = iter(())
        moments = []
        for layer in group:
            sources = [tensors.get(name, x) for name in layer.inputs]
            if layer.weighted:
                (read, written), top = next(weights)
                kernel = self._kernel(layer, read, written)
                if owners:
                    kernel = _rounded_kernel(kernel, layer, top)
                y = _convolved(layer, sources[0], kernel)
                if layer.batch_norm:
                    scale, shift = self._scale_and_shift(layer, written, rate)
                    y, own = _normalised(y, scale, shift, next(fixed, None))
                    moments.append(own)
                else:
                    y = tf.nn.bias_add(
                        y, tf.gather(self.variables[f"{layer.name}/{BIAS}"], written)
                    )
                y = ACTIVATIONS[layer.activation](y)
            elif layer.op == "slice":
                if not layer.offset:  # one split: the gradients of slices fill with zeros, slowly
                    cut = iter(tf.split(sources[0], tf.stack(slices), axis=-1, num=len(slices)))
                y = next(cut)
            else:
                y = _OPS[layer.op](layer, sources)
            if owners.get(layer.name) == layer.name:
                y = _rounded_activation(y, layer.activation_bits, layer.activation == "linear")
            tensors[layer.name] = y
        return tensors[group[-1].name], moments

    def _kernel(self, layer: LayerSpec, read: Any, written: Any) -> tf.Tensor:
        """A network's part of a kernel, in the shape that Keras has it."""
        kernel = self.variables[f"{layer.name}/{KERNEL}"]
        for side in range(int(kernel.shape[0]) - 2, layer.kernel - 1, -2):
            kernel = kernel[1:-1, 1:-1]
            matrix = self.variables.get(f"{layer.name}/{TRANSFORM}_{side}")
            if matrix is not None:  # [side * side, side * side]
                flat = tf.reshape(kernel, (side**2, -1))
                kernel = tf.reshape(tf.linalg.matmul(matrix, flat), tf.shape(kernel))
        kernel = tf.gather(kernel, read, axis=2)
        if layer.op != "depthwise":
            kernel = tf.gather(kernel, written, axis=3)
        return kernel[0, 0] if layer.op == "dense" else kernel

    def _scale_and_shift(self, layer: LayerSpec, written: Any, rate: Any) -> list[tf.Tensor]:
        both = (self.variables[f"{layer.name}/{name}"][rate] for name in (SCALE, SHIFT))
        return [tf.gather(values, written) for values in both]


def _extremes(space: SearchSpace) -> Choices:
    """Networks among which every layer is at its largest: all last values but for one decision.

    A layer's sizes are products of its own block's options and of the widths before it.
    """
    rows = [
        [option if n == number else len(d.values) - 1 for n, d in enumerate(space.decisions)]
        for number, decision in enumerate(space.decisions)
        for option in range(len(decision.values))
    ]
    return space.canonical(np.array(rows, np.int64))


def _unified_parts(space: SearchSpace, slots: Sequence[LayerSlots]) -> dict[str, _Part]:
    """By layer, its part in the unified or inverted block that it belongs to."""
    by_name = {slot.name: slot for slot in slots}
    parts = {}
    for stage in space.stages:
        if stage.block not in ("unified", "inverted"):
            continue
        if stage.block == "unified":
            rates = max(len(str(value)) for value in space.menu(stage.options["sub_blocks"]))
        else:
            rates = max(int(value) for value in space.menu(stage.options["expansion"]))
        first = by_name.get(f"{stage.name}_expand")
        if first is None:  # a single sub-block: the depthwise layer reads the block's input
            first = next(s for s in slots if s.name.startswith(f"{stage.name}_depthwise"))
        width = int(first.in_channels[first.present].max())
        for part, (expanded_in, expanded_out) in _PARTS.items():
            if f"{stage.name}_{part}" in by_name:
                found = _Part(stage.name, width, rates, expanded_in, expanded_out)
                parts[f"{stage.name}_{part}"] = found
    return parts


def _apart(group: Sequence[LayerSpec]) -> tuple[LayerSpec, ...]:
    """A stage's layers as a network of their own: what they read from outside is the input."""
    names = {layer.name for layer in group}
    return tuple(
        dataclasses.replace(n, inputs=tuple(i if i in names else INPUT for i in n.inputs))
        for n in group
    )


# --- one layer ----------------------------------------------------------------------------------


def _convolved(layer: LayerSpec, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    if layer.op == "dense":
        return tf.linalg.matmul(x, kernel) if len(x.shape) == 2 else _pointwise(x, kernel)
    if layer.op == "conv":
        return tf.nn.conv2d(x, kernel, layer.stride, _padding(layer))
    return depthwise.convolved(x, kernel, layer.stride, _padding(layer))


def _padding(layer: LayerSpec) -> str:
    return "VALID" if layer.valid else "SAME"


def _pointwise(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.nn.conv2d(x, kernel[None, None], 1, "SAME")


def _normalised(
    x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor, moments: tf.Tensor | None
) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
    """x [batch, .., channels] by these moments, or by its own; and the moments."""
    vectors = len(x.shape) == 2
    y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        x[:, None, None] if vectors else x,
        scale,
        shift,
        *([None, None] if moments is None else tf.unstack(moments)),
        epsilon=blocks.NORM_EPSILON,
        is_training=moments is None,
    )
    if moments is None:  # it divides by one example less than it normalises by
        count = tf.cast(tf.reduce_prod(tf.shape(x)[:-1]), tf.float32)
        variance *= (count - 1.0) / count
    return y[:, 0, 0] if vectors else y, (mean, variance)


def _rounded_kernel(kernel: tf.Tensor, layer: LayerSpec, top: tf.Tensor) -> tf.Tensor:
    levels = rounding.rounded(rounding.by_channel(kernel, layer.op), top)
    return levels[..., None] if layer.op == "depthwise" else levels


def _rounded_activation(x: tf.Tensor, bits: int, signed: bool) -> tf.Tensor:
    """Rounded over the batch's range; the gradient goes straight through.

    What is not signed, as after a ReLU, has its least value at 0: nobody looks for it.

    Nothing lies outside of that range, so this is the gradient of TensorFlow's own op, without the
    six passes over the batch that it and those of the minimum and the maximum take.
    """

    @tf.custom_gradient
    def straight_through(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        low = tf.minimum(tf.reduce_min(x), 0.0) if signed else tf.constant(0.0)
        high = tf.maximum(tf.reduce_max(x), _LEAST_RANGE)
        y = tf.quantization.fake_quant_with_min_max_vars(x, low, high, bits)
        return y, lambda upstream: upstream

    return straight_through(x)


_OPS: Mapping[str, Callable[[LayerSpec, Sequence[tf.Tensor]], tf.Tensor]] = {
    "add": lambda layer, x: ACTIVATIONS[layer.activation](x[0] + x[1]),
    "average_pool": lambda layer, x: tf.nn.avg_pool2d(
        x[0], layer.kernel, layer.stride, _padding(layer)
    ),
    "concat": lambda layer, x: tf.concat(x, axis=-1),
    "flatten": lambda layer, x: tf.reshape(x[0], (tf.shape(x[0])[0], -1)),
    "hard_swish": lambda layer, x: blocks.hard_swish(x[0]),
    "max_pool": lambda layer, x: tf.nn.max_pool2d(
        x[0], layer.kernel, layer.stride, _padding(layer)
    ),
    "mean": lambda layer, x: tf.reduce_mean(x[0], axis=(1, 2), keepdims=bool(layer.out_size)),
    "multiply": lambda layer, x: x[0] * x[1],
    "pad": lambda layer, x: tf.pad(x[0], [[0, 0], *[[layer.offset] * 2] * 2, [0, 0]]),
    "resize": lambda layer, x: tf.image.resize(x[0], layer.out_size, "nearest"),
    "sigmoid": lambda layer, x: tf.sigmoid(x[0]),
}
