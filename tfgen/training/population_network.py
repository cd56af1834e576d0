"""One small quantized network, trained from several starts at once, in NumPy.

Each network keeps its exact widths: on a CPU, padding networks to stack them costs more
multiplications than the stacking saves. What makes it fast:

- The starts of one training have equal shapes and are computed side by side, [starts, ...]: of a
  narrow network they take hardly longer than one.
- All parameters lie in one vector, so that Adam and the rounding are a few passes over it, not over
  each layer; the vector and all buffers are aligned to cache lines and made once.
- A bias is the last row of its kernel, and what a dense layer reads ends in a row of ones: one
  matrix product then gives both gradients, and every elementwise pass is over contiguous memory,
  examples last.

Layers of images are in `population_conv`.

The arithmetic is that of `quantize_aware`, less the rounding of activations, and a test compares
the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tfgen.space.layers import LayerSpec
from tfgen.training import tasks
from tfgen.training.buffers import aligned, padded
from tfgen.training.population_conv import ConvPass, MaxPoolPass, MeanPass
from tfgen.training.recipe import Recipe, initial_weights

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7  # Keras's Adam
_MIN_WEIGHT = np.float32(1e-8)  # a channel of zeros still has a scale
_ZERO = np.float32(0)
_GATHER = 1 << 20  # floats of batches gathered at a time
_FLUSH_STEPS = 64  # 0.9**64 = 1e-3: nothing above 1e-30 falls to denormals, near 1e-38, between two
_FLUSH = np.float32(1e-30)
_SCORE_ROWS = 1024  # examples scored at a time
_SCORE_IMAGES = 128  # images: more, and the windows of a convolution leave the cache


# --- parameters ---------------------------------------------------------------------------------


class Parameters:
    """The parameters of every start, rounded and not, with their gradients and Adam's moments.

    Attributes:
      rounded: matrices of the weighted layers, kernel above bias, each [starts, rows + 1, out].
      rounded_t: the same transposed, each [starts, out, rows + 1].
      kernels: the same without the bias, each [starts, rows, out].
      gradients: of the matrices, to be filled, each [starts, rows + 1, out].
    """

    def __init__(self, layers: Sequence[LayerSpec], starts: int):
        weighted = [layer for layer in layers if layer.weighted]
        shapes = [(layer.kernel**2 * layer.in_channels, layer.out_channels) for layer in weighted]
        # Layers start on cache lines; the gaps hold zeros and stay zeros.
        begins = np.cumsum([0, *(padded((rows + 1) * out) for rows, out in shapes)])
        flat = aligned(*[starts * int(begins[-1])] * 7)
        self._p, self._g, self._m, self._v, self._q, self._scratch, self._scales = flat

        def per_layer(vector: np.ndarray) -> list[np.ndarray]:
            rows_of = vector.reshape(starts, -1)  # [starts, parameters]
            return [
                rows_of[:, begin : begin + (rows + 1) * out].reshape(starts, rows + 1, out)
                for begin, (rows, out) in zip(begins, shapes, strict=False)
            ]

        self._matrices, self.gradients, self.rounded, scratch, scales = (
            per_layer(x) for x in (self._p, self._g, self._q, self._scratch, self._scales)
        )
        self._scales[:] = 1  # divides the biases and the gaps
        self._magnitudes = [x[:, :-1] for x in scratch]
        self._kernel_scales = [x[:, :-1] for x in scales]
        self.rounded_t = [x.transpose(0, 2, 1) for x in self.rounded]
        self.kernels = [x[:, :-1] for x in self.rounded]

        outs = [out for _, out in shapes]
        self._channel_scales = np.empty((starts, sum(outs)), np.float32)
        self._by_layer = np.split(self._channel_scales, np.cumsum(outs[:-1]), axis=1)
        top = [2 ** (layer.weight_bits - 1) - 1 for layer in weighted]
        self._top_levels = np.repeat(np.array(top, np.float32), outs)

    def load(self, start: int, weights: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Sets a start's parameters to a kernel [.., out] and a bias [out] for each layer."""
        for matrices, (kernel, bias) in zip(self._matrices, weights, strict=True):
            matrices[start, :-1] = kernel.reshape(-1, len(bias))
            matrices[start, -1] = bias

    def round(self, rounding: bool = True) -> None:
        """Rounds the kernels per output channel to -top .. top times a scale; biases are copied.

        Without `rounding` kernels are copied too.
        """
        if not rounding:
            np.copyto(self._q, self._p)
            return
        np.abs(self._p, out=self._scratch)
        for magnitude, scale in zip(self._magnitudes, self._by_layer, strict=True):
            np.maximum.reduce(magnitude, axis=1, out=scale)
        np.maximum(self._channel_scales, _MIN_WEIGHT, out=self._channel_scales)
        np.divide(self._channel_scales, self._top_levels, out=self._channel_scales)
        for scales, scale in zip(self._kernel_scales, self._by_layer, strict=True):
            np.copyto(scales, scale[:, None])
        np.divide(self._p, self._scales, out=self._q)
        np.rint(self._q, out=self._q)
        np.multiply(self._q, self._scales, out=self._q)
        for rounded, matrices in zip(self.rounded, self._matrices, strict=True):
            rounded[:, -1] = matrices[:, -1]

    def adam(self, step_size: np.float32, epsilon: np.float32) -> None:
        """Adam on sums instead of means: m is Keras's / (1 - beta_1), v is / (1 - beta_2).

        That saves a pass over the parameters for each; step_size and epsilon make up for it.
        """
        np.multiply(self._m, np.float32(_BETA_1), out=self._m)
        np.add(self._m, self._g, out=self._m)
        np.multiply(self._g, self._g, out=self._g)
        np.multiply(self._v, np.float32(_BETA_2), out=self._v)
        np.add(self._v, self._g, out=self._v)
        np.sqrt(self._v, out=self._scratch)
        np.add(self._scratch, epsilon, out=self._scratch)
        np.divide(self._m, self._scratch, out=self._scratch)
        np.multiply(self._scratch, step_size, out=self._scratch)
        np.subtract(self._p, self._scratch, out=self._p)

    def flush(self) -> None:
        """Sets moments near the denormals to 0: a dead unit's would slow every step down."""
        np.abs(self._m, out=self._scratch)
        self._m[self._scratch < _FLUSH] = 0
        self._v[self._v < _FLUSH] = 0


def _step_sizes(recipe: Recipe) -> np.ndarray:
    """The factor of m / (sqrt(v) + epsilon) for `Parameters.adam`, float32 [steps].

    Keras takes the powers in float32, which makes the first steps 2e-5 smaller or larger.
    """
    step = np.arange(1, recipe.steps + 1, dtype=np.float32)
    remaining = [1 - np.float32(beta) ** step for beta in (_BETA_1, _BETA_2)]
    sums = (1 - _BETA_1) / np.sqrt(1 - _BETA_2)
    return (recipe.learning_rates() * np.sqrt(remaining[1]) / remaining[0] * sums).astype(
        np.float32
    )


# --- passes -------------------------------------------------------------------------------------


class WeightedPass(Protocol):
    """A layer with weights: what it reads and makes in one step."""

    def forward(self, x: np.ndarray, matrix_t: np.ndarray) -> np.ndarray:
        """Outputs for x and the transposed rounded matrix [starts, out, rows + 1]."""
        ...

    def backward(
        self, delta: np.ndarray, kernel: np.ndarray, gradient: np.ndarray, need_input: bool
    ) -> np.ndarray | None:
        """Fills the matrix's gradient; returns the loss's gradient by x where it is needed.

        Args:
          delta: the loss's gradient by the outputs; overwritten.
          kernel: rounded, without the bias [starts, rows, out].
          gradient: to be filled [starts, rows + 1, out].
          need_input: whether anything below has weights.
        """
        ...


class DensePass:
    """A dense layer, ReLU or linear: reads [starts, in + 1, batch] that ends in ones.

    Its outputs [starts, out + 1, batch] end in ones too, those of a linear layer do not.
    """

    def __init__(self, layer: LayerSpec, starts: int, batch: int):
        self._relu = layer.activation == "relu"
        rows, out = layer.in_channels, layer.out_channels
        made, delta = aligned(starts * (out + self._relu) * batch, starts * rows * batch)
        self._outputs = made.reshape(starts, -1, batch)
        self._units = self._outputs[:, :out]
        self._outputs[:, out:] = 1
        self._delta = delta.reshape(starts, rows, batch)
        self._alive = np.empty(self._units.shape, np.bool_)
        self._x: np.ndarray | None = None

    def forward(self, x: np.ndarray, matrix_t: np.ndarray) -> np.ndarray:
        self._x = x
        np.matmul(matrix_t, x, out=self._units)
        if self._relu:
            np.maximum(self._units, _ZERO, out=self._units)
        return self._outputs

    def backward(
        self, delta: np.ndarray, kernel: np.ndarray, gradient: np.ndarray, need_input: bool
    ) -> np.ndarray | None:
        if self._relu:
            np.greater(self._units, _ZERO, out=self._alive)
            np.multiply(delta, self._alive, out=delta)
        np.matmul(self._x, delta.transpose(0, 2, 1), out=gradient)
        if not need_input:
            return None
        # BLAS is slow at outer products.
        product = np.multiply if delta.shape[1] == 1 else np.matmul
        product(kernel, delta, out=self._delta)
        return self._delta


class PlainPass(Protocol):
    """A layer without weights."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Outputs for x."""
        ...

    def backward(self, delta: np.ndarray) -> np.ndarray:
        """The loss's gradient by x, from that by the outputs; `delta` is overwritten."""
        ...


_WEIGHTED: Mapping[str, Callable[[LayerSpec, int, int], WeightedPass]] = {
    "conv": ConvPass,
    "dense": DensePass,
}
_PLAIN: Mapping[str, Callable[[LayerSpec, int, int], PlainPass]] = {
    "max_pool": MaxPoolPass,
    "mean": MeanPass,
}


def trains(layer: LayerSpec, last: bool) -> bool:
    """Whether there is a pass for the layer, the last one of its network or another."""
    if layer.op == "dense":
        activation = "linear" if last else "relu"
        return not layer.in_size and layer.activation == activation and not layer.batch_norm
    if not layer.in_size or last or layer.valid:
        return False
    if layer.op == "conv":
        return layer.activation == "relu" and not layer.batch_norm
    if layer.op == "max_pool":
        return layer.kernel == layer.stride
    return layer.op == "mean" and not layer.out_size


class Passes:
    """The layers of a network for batches of one size."""

    def __init__(self, layers: Sequence[LayerSpec], starts: int, batch: int):
        # Each pass with the position of its weights; None for a layer without.
        self._passes: list[tuple[Any, int | None]] = []
        weighted = 0
        for layer in layers:
            if layer.weighted:
                self._passes.append((_WEIGHTED[layer.op](layer, starts, batch), weighted))
                weighted += 1
            else:
                self._passes.append((_PLAIN[layer.op](layer, starts, batch), None))

    def forward(self, x: np.ndarray, matrices_t: Sequence[np.ndarray]) -> np.ndarray:
        """Outputs [starts, out, batch] for a laid-out batch; overwritten by the next."""
        for one, position in self._passes:
            x = one.forward(x) if position is None else one.forward(x, matrices_t[position])
        return x

    def backward(self, delta: np.ndarray, parameters: Parameters) -> None:
        """Fills the parameters' gradients; `delta` is the loss's gradient by the outputs."""
        for one, position in reversed(self._passes):
            if position is None:
                delta = one.backward(delta)
                continue
            kernel, gradient = parameters.kernels[position], parameters.gradients[position]
            delta = one.backward(delta, kernel, gradient, position > 0)
            if not position:  # nothing below has weights
                return


def laid_out(x: np.ndarray, rank: int) -> np.ndarray:
    """Examples [.., batch, *example] as passes read them, examples last.

    Args:
      x: the examples.
      rank: of an example: 1 for features, which get a last row of ones; 3 for images.

    Returns:
      [.., features + 1, batch] or [.., channels, height, width, batch].
    """
    if rank == 1:
        *outer, batch, features = x.shape
        result = np.ones((*outer, features + 1, batch), np.float32)
        result[..., :-1, :] = np.swapaxes(x, -1, -2)
        return result
    return np.ascontiguousarray(np.moveaxis(x, (-1, -4), (-4, -1)), np.float32)


# --- losses -------------------------------------------------------------------------------------


def _squared_error(outputs: np.ndarray, targets: np.ndarray, want_loss: bool) -> Any:
    """Mean squared error of [starts, out, batch]; leaves its gradient in `outputs`.

    Args:
      outputs: [starts, out, batch].
      targets: [starts, batch, out].
      want_loss: without it the result is 0.
    """
    np.subtract(outputs, targets.transpose(0, 2, 1), out=outputs)
    loss = np.mean(outputs * outputs, axis=(1, 2)) if want_loss else 0.0  # [starts]
    np.multiply(outputs, np.float32(2 / outputs[0].size), out=outputs)
    return loss


def _cross_entropy(outputs: np.ndarray, targets: np.ndarray, want_loss: bool) -> Any:
    """Mean softmax cross-entropy of logits; leaves its gradient in `outputs`.

    Args:
      outputs: logits [starts, out, batch].
      targets: labels [starts, batch].
      want_loss: without it the result is 0.
    """
    chosen = (np.arange(len(targets))[:, None], targets, np.arange(targets.shape[1]))
    np.subtract(outputs, np.maximum.reduce(outputs, axis=1)[:, None], out=outputs)
    taken = outputs[chosen] if want_loss else None  # [starts, batch]
    np.exp(outputs, out=outputs)
    total = np.add.reduce(outputs, axis=1)  # [starts, batch]
    loss = 0.0 if taken is None else np.mean(np.log(total) - taken, axis=1)  # [starts]
    np.divide(outputs, total[:, None], out=outputs)
    outputs[chosen] -= 1
    np.multiply(outputs, np.float32(1 / targets.shape[1]), out=outputs)
    return loss


_LOSSES = {"mean_squared_error": _squared_error, "softmax_cross_entropy": _cross_entropy}


# --- training -----------------------------------------------------------------------------------


class Trained:
    """A network after training: one set of rounded matrices for each start.

    Attributes:
      losses: the batch's loss before each step, [steps, starts]; empty unless asked for.
    """

    def __init__(self, layers: Sequence[LayerSpec], parameters: Parameters, losses: np.ndarray):
        self._layers = layers
        self._matrices_t = parameters.rounded_t
        self._passes: dict[int, Passes] = {}  # by number of rows: making buffers takes as long
        self.losses = losses

    def score(self, start: int, task: tasks.Task, x: np.ndarray, y: np.ndarray) -> float:
        """The task's metric of one start on laid-out examples x [.., examples], targets y."""
        return task.score(y, self.outputs(start, x))

    def outputs(self, start: int, x: np.ndarray) -> np.ndarray:
        """One start's outputs [examples, out] for laid-out examples x [.., examples]."""
        count = x.shape[-1]
        rows = min(count, _SCORE_ROWS if x.ndim == 2 else _SCORE_IMAGES)
        if rows not in self._passes:
            self._passes[rows] = Passes(self._layers, 1, rows)
        passes = self._passes[rows]
        matrices_t = [matrix[start : start + 1] for matrix in self._matrices_t]
        outputs = np.empty((count, matrices_t[-1].shape[1]), np.float32)
        with np.errstate(all="ignore"):
            for begin in range(0, count, rows):
                first = min(begin, count - rows)  # the last rows overlap those before
                found = passes.forward(x[None, ..., first : first + rows], matrices_t)
                outputs[first : first + rows] = found[0].T
        return outputs


def train(
    layers: Sequence[LayerSpec],
    seeds: Sequence[int],
    task: tasks.Task,
    x: np.ndarray,
    y: np.ndarray,
    recipe: Recipe,
    keep_losses: bool = False,
) -> Trained:
    """Trains a network from the weights and batches of each seed, side by side.

    Args:
      layers: of the network.
      seeds: one for each start.
      task: whose loss falls.
      x: examples [examples, ..].
      y: their targets.
      recipe: how; its number of starts is not read.
      keep_losses: whether the losses of all steps are kept.
    """
    rows = np.stack([recipe.batches(len(x), seed) for seed in seeds], axis=1)
    parameters = Parameters(layers, len(seeds))
    for start, seed in enumerate(seeds):
        parameters.load(start, initial_weights(layers, seed))
    passes = Passes(layers, *rows.shape[1:])
    gradient = _LOSSES[task.loss]
    step_sizes = _step_sizes(recipe)
    epsilon = np.float32(_EPSILON / np.sqrt(1 - _BETA_2))
    chunk = max(1, _GATHER // (rows[0].size * x[0].size))
    losses = []
    with np.errstate(all="ignore"):  # a start that diverges goes on in NaN and scores 0
        for step in range(recipe.steps):
            place = step % chunk
            if place == 0:
                taken = rows[step : step + chunk]  # [chunk, starts, batch]
                batches, targets = laid_out(x[taken], x.ndim - 1), y[taken]
            if step % _FLUSH_STEPS == 0:
                parameters.flush()
            parameters.round(step >= recipe.float_steps)
            outputs = passes.forward(batches[place], parameters.rounded_t)
            loss = gradient(outputs, targets[place], keep_losses)
            if keep_losses:
                losses.append(loss)
            passes.backward(outputs, parameters)
            parameters.adam(step_sizes[step], epsilon)
        parameters.round()
    return Trained(layers, parameters, np.array(losses))
