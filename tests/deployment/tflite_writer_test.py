"""Files written without TensorFlow: their numbers against arithmetic in NumPy, and their layout."""

import dataclasses
from collections.abc import Mapping, Sequence
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tests.space.small import branched, encoder_decoder, every_op, mlp, padded
from tfgen.deployment import probe, tflite_file, tflite_writer
from tfgen.deployment.tflite_writer import Step, Weights
from tfgen.space import bits
from tfgen.space.layers import INPUT, LayerSpec

POLICY = bits.load("litert-2.3")


def run(content: bytes, x: np.ndarray, xnnpack: bool = True) -> np.ndarray:
    """The file's outputs as they lie in its output tensor, for inputs as they lie in its input."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kinds = OpResolverType
    kind = kinds.AUTO if xnnpack else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runtime = Interpreter(model_content=content, experimental_op_resolver_type=kind)
    runtime.allocate_tensors()
    (given,), (taken,) = runtime.get_output_details(), runtime.get_input_details()
    outputs = []
    for example in x:
        runtime.set_tensor(taken["index"], example[np.newaxis].astype(taken["dtype"]))
        runtime.invoke()
        outputs.append(runtime.get_tensor(given["index"])[0])
    return np.array(outputs)


def weights(layers: Sequence[LayerSpec], scale: float, biased: bool = True) -> dict[str, Weights]:
    """Random levels that keep the variance of their input, whose scale is `scale`."""
    random = np.random.default_rng(0)
    made = {}
    for layer in layers:
        if not layer.weighted:
            continue
        shape = tflite_writer.kernel_shape(layer)
        top = 2 ** (layer.weight_bits - 1) - 1
        levels = random.integers(-top, top, shape, endpoint=True)
        spread = (3 * layer.out_channels / levels.size) ** 0.5 / top
        scales = (spread * random.uniform(0.7, 1.3, layer.out_channels)).astype(np.float32)
        bias = np.rint(biased * random.normal(size=layer.out_channels) * 0.1 / (scale * scales))
        container = POLICY.container_bits(
            layer.op, layer.weight_bits, layer.activation_bits, layer.in_channels
        )
        made[layer.name] = Weights(levels, bias.astype(np.int64), scales, container)
    return made


def real(layer: LayerSpec, numbers: Weights, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias that a layer's integers mean; `scale` is its input's."""
    channels = -1 if layer.op == "depthwise" else 0
    shape = [1] * numbers.kernel.ndim
    shape[channels] = layer.out_channels
    scales = numbers.scales.astype(np.float64)
    return numbers.kernel * scales.reshape(shape), numbers.bias * (scale * scales)


def reals_of(
    layers: Sequence[LayerSpec], numbers: Mapping[str, Weights], scale: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {x.name: real(x, numbers[x.name], scale) for x in layers if x.weighted}


def compute(
    layers: Sequence[LayerSpec], numbers: Mapping[str, tuple[np.ndarray, np.ndarray]], x: np.ndarray
) -> dict[str, np.ndarray]:
    """Every tensor of the network in float64."""
    made = {INPUT: x.astype(np.float64)}
    for layer in layers:
        first, *others = (made[name] for name in layer.inputs)
        if layer.weighted:
            kernel, bias = numbers[layer.name]
            y = convolve(first, kernel, layer) + bias
        elif layer.op == "average_pool":
            y = np.nanmean(windows(first, layer, np.nan), axis=0)
        elif layer.op == "max_pool":
            y = np.max(windows(first, layer, -np.inf), axis=0)
        elif layer.op == "mean":
            y = first.mean((1, 2), keepdims=bool(layer.out_size))
        elif layer.op == "pad":
            around = (layer.offset, layer.offset)
            y = np.pad(first, [(0, 0), around, around, (0, 0)])
        elif layer.op == "resize":
            y = first.repeat(layer.stride, 1).repeat(layer.stride, 2)
        elif layer.op == "slice":
            y = first[..., layer.offset : layer.offset + layer.out_channels]
        else:
            y = {
                "add": lambda a, *b: a + sum(b),
                "concat": lambda *a: np.concatenate(a, axis=-1),
                "flatten": lambda a: a.reshape(len(a), -1),
                "hard_swish": lambda a: a * np.clip(a + 3, 0, 6) / 6,
                "multiply": lambda a, b: a * b,
                "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
            }[layer.op](first, *others)
        y = np.maximum(y, 0) if layer.activation != "linear" else y
        made[layer.name] = np.minimum(y, 6) if layer.activation == "relu6" else y
    return made


def windows(x: np.ndarray, layer: LayerSpec, padding: float) -> list[np.ndarray]:
    """For each place of the kernel what lies under it [examples, height, width, channels]."""
    pads, ends = [(0, 0)], []
    for size, steps in zip(layer.in_size, layer.out_size, strict=True):
        missing = max((steps - 1) * layer.stride + layer.kernel - size, 0)
        pads.append((missing // 2, missing - missing // 2))
        ends.append((steps - 1) * layer.stride + 1)
    x = np.pad(x, [*pads, (0, 0)], constant_values=padding)
    return [
        x[:, i : i + ends[0] : layer.stride, j : j + ends[1] : layer.stride]
        for i in range(layer.kernel)
        for j in range(layer.kernel)
    ]


def convolve(x: np.ndarray, kernel: np.ndarray, layer: LayerSpec) -> np.ndarray:
    if layer.op == "dense":
        return x @ kernel.T
    places = windows(x, layer, 0.0)
    if layer.op == "depthwise":
        return sum(p * k for p, k in zip(places, kernel[0].reshape(-1, x.shape[-1]), strict=True))
    kernels = kernel.reshape(len(kernel), -1, x.shape[-1])  # [out, places, in]
    return sum(p @ kernels[:, i].T for i, p in enumerate(places))


def observed_steps(
    layers: Sequence[LayerSpec], tensors: Mapping[str, np.ndarray], input_step: Step
) -> dict[str, Step]:
    """Steps of the ranges that the tensors have."""
    wide = layers[0].activation_bits == 16
    steps = {INPUT: input_step}
    for layer in layers:
        low, high = min(tensors[layer.name].min(), 0), max(tensors[layer.name].max(), 0.1)
        if wide:
            steps[layer.name] = float(max(high, -low)) / 32767, 0
        else:
            scale = float(high - low) / 255
            steps[layer.name] = scale, round(-128 - low / scale)
        if layer.op == "sigmoid":
            steps[layer.name] = (2.0**-15, 0) if wide else (2.0**-8, -128)
    return steps


def single_ops(activation_bits: int) -> dict[str, list[LayerSpec]]:
    """Networks of one op each, for 9x8x8 images; those of two inputs make them first."""
    size = (9, 8)

    def layer(name: str, op: str, *inputs: str, **fields: object) -> LayerSpec:
        defaults = {"in_channels": 8, "out_channels": 8, "in_size": size, "out_size": size}
        return LayerSpec(
            name=name, op=op, inputs=inputs, activation_bits=activation_bits, **defaults | fields
        )

    def dense(name: str, **fields: object) -> LayerSpec:
        return layer(name, "dense", INPUT, weight_bits=8, **fields)

    window = {"kernel": 3, "stride": 2, "out_size": (5, 4)}
    return {
        "add": [layer("pool", "max_pool", INPUT, kernel=3), layer("y", "add", "pool", INPUT)],
        "add_relu": [dense("a"), layer("y", "add", "a", INPUT, activation="relu")],
        "average_pool": [layer("y", "average_pool", INPUT, **window)],
        "concat": [dense("a"), dense("b"), layer("y", "concat", "a", "b", out_channels=16)],
        "conv": [layer("y", "conv", INPUT, weight_bits=8, out_channels=5, **window)],
        "conv_relu6": [layer("y", "conv", INPUT, weight_bits=6, kernel=5, activation="relu6")],
        "dense": [dense("y", out_channels=12, activation="relu")],
        "depthwise": [layer("y", "depthwise", INPUT, weight_bits=8, activation="relu", **window)],
        "depthwise_5": [layer("y", "depthwise", INPUT, weight_bits=8, kernel=5)],
        "flatten": [layer("y", "flatten", INPUT, out_size=(), out_channels=576)],
        "hard_swish": [layer("y", "hard_swish", INPUT)],
        "max_pool": [layer("y", "max_pool", INPUT, **window)],
        "mean": [layer("y", "mean", INPUT, out_size=())],
        "multiply": [
            layer("a", "mean", INPUT, out_size=(1, 1)),
            layer("y", "multiply", INPUT, "a"),
        ],
        "pad": [layer("y", "pad", INPUT, offset=2, out_size=(13, 12))],
        "resize": [layer("y", "resize", INPUT, stride=3, out_size=(27, 24))],
        "sigmoid": [layer("y", "sigmoid", INPUT)],
        "slice": [layer("y", "slice", INPUT, out_channels=3, offset=2)],
    }


class ArithmeticTest(parameterized.TestCase):
    @parameterized.parameters(2, 4, 8)
    def test_dense_layers_are_exact(self, weight_bits: int) -> None:
        # One layer of 64 units on 64 inputs: integers in, integers out, at one scale each.
        (layer,) = mlp((64,), (weight_bits,), 64)
        random = np.random.default_rng(weight_bits)
        top = 2 ** (weight_bits - 1) - 1
        levels = random.integers(-top, top, (64, 64), endpoint=True)
        bias = random.integers(-500, 500, 64)
        scales = random.uniform(0.001, 0.02, 64).astype(np.float32)
        steps = {INPUT: (0.05, 3), "output": (0.09, -7)}
        numbers = {"output": Weights(levels, bias, scales, weight_bits)}
        content = tflite_writer.write([layer], (64,), numbers, steps, io="int8")
        x = random.integers(-128, 127, (200, 64), endpoint=True)
        sums = (x - 3) @ levels.T + bias
        wanted = np.rint(sums * (np.float32(0.05) * scales / np.float32(0.09))) - 7
        np.testing.assert_array_equal(run(content, x), np.clip(wanted, -128, 127))

    @parameterized.product(op=list(single_ops(8)), runtime=[(8, True), (8, False), (16, False)])
    def test_every_op(self, op: str, runtime: tuple[int, bool]) -> None:
        activation_bits, xnnpack = runtime
        if (op, activation_bits) == ("hard_swish", 16):
            self.skipTest("the runtime has no hard-swish of 16 bits")
        layers = single_ops(activation_bits)[op]
        step = (6 / 255, 5) if activation_bits == 8 else (3 / 32767, 0)
        random = np.random.default_rng(0)
        x = np.rint(np.clip(random.normal(size=(20, 9, 8, 8)), -2, 2) / step[0]) * step[0]
        numbers = weights(layers, step[0])
        reals = reals_of(layers, numbers, step[0])
        tensors = compute(layers, reals, x)
        steps = observed_steps(layers, tensors, step)
        content = tflite_writer.write(layers, (9, 8, 8), numbers, steps)
        wanted = tensors["y"]
        # One step of 8 bits for the op's rounding, one for its input's; builtin kernels may add
        # another. 16 bits are 256 times as fine.
        unit = (wanted.max() - wanted.min()) / 255
        bound = {(8, True): 2.01, (8, False): 3.01, (16, False): 0.1}[runtime]
        difference = np.abs(run(content, x, xnnpack) - wanted).max() / unit
        self.assertLessEqual(difference, bound)

    @parameterized.parameters(True, False)
    def test_a_network_of_every_op(self, xnnpack: bool) -> None:
        layers = every_op()
        x = np.random.default_rng(1).normal(size=(50, 8, 8, 1)).astype(np.float32)
        numbers = weights(layers, 1.0, biased=False)
        reals = reals_of(layers, numbers, 1.0)
        tensors = compute(layers, reals, x)
        steps = observed_steps(layers, tensors, (8 / 255, 0))
        content = tflite_writer.write(layers, (8, 8, 1), numbers, steps)
        off = np.abs(run(content, x, xnnpack) - tensors["output"]) / steps["output"][0]
        # The roundings of 17 layers that keep the variance: up to one step each, at random.
        self.assertLess(off.mean(), 17**0.5)
        self.assertLess(off.max(), 17)

    @parameterized.parameters(True, False)
    def test_float_networks(self, xnnpack: bool) -> None:
        layers = every_op()
        x = np.random.default_rng(1).normal(size=(20, 8, 8, 1)).astype(np.float32)
        numbers = weights(layers, 0.05)
        reals = reals_of(layers, numbers, 0.05)
        none = np.empty(0, np.float32)
        floats = {
            name: Weights(*pair, none, tflite_writer.FLOAT_BITS) for name, pair in reals.items()
        }
        content = tflite_writer.write(layers, (8, 8, 1), floats, None)
        wanted = compute(layers, reals, x)["output"]
        np.testing.assert_allclose(run(content, x, xnnpack), wanted, atol=1e-4)


class LayoutTest(parameterized.TestCase):
    def test_reads_what_was_written(self) -> None:
        layers = mlp((6, 4, 3), (8, 4, 2), 7)
        numbers = weights(layers, 0.05)
        steps = dict.fromkeys((INPUT, "hidden_1", "hidden_2", "output"), (0.05, 3))
        file = tflite_file.read(tflite_writer.write(layers, (7,), numbers, steps))
        self.assertEqual([op.name for op in file.ops], ["hidden_1", "hidden_2", "output"])
        self.assertEqual([op.container_bits for op in file.ops], [8, 4, 2])
        for op in file.ops:
            np.testing.assert_array_equal(op.levels, numbers[op.name].kernel)
            np.testing.assert_array_equal(op.scales, numbers[op.name].scales)
            self.assertEqual(op.bias_elements, len(numbers[op.name].bias))

    def test_packing_by_hand(self) -> None:
        # 1, -1, 0, -2, 1 in two bits each, the first one lowest: 10 00 11 01, then 01.
        packed = tflite_writer.pack(np.array([1, -1, 0, -2, 1]), 2)
        self.assertEqual([bin(b) for b in packed], ["0b10001101", "0b1"])
        packed = tflite_writer.pack(np.array([[-8, 7, 3]]), 4)
        self.assertEqual([hex(b) for b in packed], ["0x78", "0x3"])

    def test_ops_stand_in_the_order_of_the_layers(self) -> None:
        layers = every_op()
        model = tflite_file.parse(probe.write_probe(layers, (8, 8, 1), POLICY))
        graph = model.subgraphs[0]
        names = [graph.tensors[op.outputs[0]].name for op in graph.operators]
        wanted = [layer.name.encode() for layer in layers]
        self.assertEqual(names, [None, *wanted, b"output_dequant"])

    def test_any_container_is_written(self) -> None:
        layers = every_op()
        named = {"stem": 2, "depthwise_3": 4, "reduce": 2}
        content = probe.write_probe(layers, (8, 8, 1), POLICY, containers=named)
        written = {op.name: op for op in tflite_file.read(content).ops}
        for name, container in named.items():
            self.assertEqual(written[name].container_bits, container)

    def test_constants_stand_at_multiples_of_16_bytes(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        content = probe.write_probe(every_op(), (8, 8, 1), POLICY)
        model = schema.Model.GetRootAs(content, 0)
        start = np.frombuffer(content, np.uint8).ctypes.data
        for index in range(1, model.BuffersLength()):
            place = model.Buffers(index).DataAsNumpy().ctypes.data - start
            self.assertEqual(place % 16, 0)

    def test_a_signature_is_there(self) -> None:
        from ai_edge_litert.interpreter import Interpreter

        layers = mlp((4, 2), (8, 8), 3)
        content = probe.write_probe(layers, (3,), POLICY)
        runner = Interpreter(model_content=content).get_signature_runner()
        x = np.ones((1, 3), np.float32)
        np.testing.assert_array_equal(runner(x=x)["output_0"], run(content, x))

    def test_refuses_numbers_that_do_not_fit(self) -> None:
        (layer,) = mlp((2,), (4,), 3)
        numbers = weights([layer], 1.0)
        steps = {INPUT: (0.1, 0), "output": (0.1, 0)}
        with self.assertRaisesRegex(ValueError, "'output'.*3.*not"):
            tflite_writer.write(mlp((2,), (4,), 4), (4,), numbers, steps)
        with self.assertRaisesRegex(ValueError, "float weights need float activations"):
            tflite_writer.write([layer], (3,), numbers, None)
        with self.assertRaisesRegex(ValueError, "levels -9 .. 7 in 4 bits"):
            Weights(np.array([[-9, 7]]), np.zeros(1), np.ones(1), 4)


class CanonicalTest(parameterized.TestCase):
    """What the converter and the quantizer make of a network is, in our layout, what we write."""

    @parameterized.parameters("float", "int8")
    def test_dense_networks(self, io: str) -> None:
        self.check(mlp((12, 9, 8, 8, 3), (8, 6, 4, 3, 2), 8), (8,), io)

    def test_a_network_of_every_op(self) -> None:
        self.check(every_op(), (8, 8, 1), "float")

    @parameterized.parameters("float", "int8")
    def test_images_come_out(self, io: str) -> None:
        self.check(encoder_decoder(), (8, 8, 1), io)

    def test_zeros_around_images(self) -> None:
        self.check(padded(), (8, 8, 1), "float")

    def test_vectors_are_joined(self) -> None:
        # The quantizer puts in what rounds a flattened tensor to the steps that it has.
        self.check(branched(), (8, 8, 1), "float")

    def check(self, layers: Sequence[LayerSpec], shape: tuple[int, ...], io: str) -> None:
        from tfgen.deployment import export
        from tfgen.training import quantize_aware

        model = quantize_aware.build(layers, shape)
        x = np.random.default_rng(0).normal(size=(200, *shape)).astype(np.float32)
        model(x, training=True)
        # Random networks have close decisions; here only the bytes count.
        with mock.patch.object(export, "MIN_AGREEMENT", 0.5):
            content = export.export(model, layers, x, POLICY, io=io).content
        layers = [dataclasses.replace(layer, batch_norm=False) for layer in layers]  # it is folded
        canonical = tflite_file.serialize(tflite_file.canonical(tflite_file.parse(content)))
        self.assertEqual(tflite_writer.write(layers, shape, *stored(content), io=io), canonical)
        again = tflite_file.serialize(tflite_file.canonical(tflite_file.parse(canonical)))
        self.assertEqual(again, canonical)
        x = x if io == "float" else np.clip(np.rint(x * 40), -128, 127)
        for xnnpack in (True, False):
            given, wanted = run(canonical, x, xnnpack), run(content, x, xnnpack)
            np.testing.assert_array_equal(given, wanted)


def stored(content: bytes) -> tuple[dict[str, Weights], dict[str, Step]]:
    """The numbers of a file whose ops' outputs have the layers' names."""
    model = tflite_file.parse(content)
    graph = model.subgraphs[0]
    numbers, steps = {}, {}

    def step(tensor: object) -> Step:
        return float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])

    for op in graph.operators:
        kind, output = tflite_file.op_name(model, op), graph.tensors[op.outputs[0]]
        if kind == "QUANTIZE" or INPUT not in steps:
            steps[INPUT] = step(output if kind == "QUANTIZE" else graph.tensors[op.inputs[0]])
        if kind in ("QUANTIZE", "DEQUANTIZE"):
            continue
        name = output.name.decode()
        steps[name] = step(output)
        if kind in tflite_file.WEIGHTED_OPS:
            kernel, bias = (graph.tensors[index] for index in op.inputs[1:3])
            levels, container = tflite_file.unpack(model, kernel)
            biases = np.asarray(model.buffers[bias.buffer].data).view(np.int32)
            numbers[name] = Weights(levels, biases, kernel.quantization.scale, container)
    return numbers, steps


if __name__ == "__main__":
    absltest.main()
