"""A space that can be enumerated, and networks by hand, for tests."""

import functools
from collections.abc import Sequence

from tfgen.space.layers import INPUT, LayerSpec
from tfgen.space.search_space import Chosen, Decision, SearchSpace, Stage, When


def mlp(widths: Sequence[int], weight_bits: Sequence[int], inputs: int) -> tuple[LayerSpec, ...]:
    """Dense layers hidden_1, hidden_2 ... with ReLU, and a linear output of the last width."""
    layers: list[LayerSpec] = []
    for i, (units, bits) in enumerate(zip(widths, weight_bits, strict=True), 1):
        last = i == len(widths)
        layers.append(
            LayerSpec(
                name="output" if last else f"hidden_{i}",
                op="dense",
                inputs=(layers[-1].name if layers else INPUT,),
                in_channels=layers[-1].out_channels if layers else inputs,
                out_channels=units,
                weight_bits=bits,
                activation="linear" if last else "relu",
            )
        )
    return tuple(layers)


def _add(
    layers: list[LayerSpec],
    activation_bits: int,
    name: str,
    op: str,
    inputs: str,
    channels: int,
    size: int,
    **fields: object,
) -> None:
    """Adds a layer of a network for 8x8x1 images, as the layers that it reads are."""
    made = {layer.name: layer for layer in layers}
    source = made.get(inputs.split(maxsplit=1)[0])
    layers.append(
        LayerSpec(
            name=name,
            op=op,
            inputs=tuple(inputs.split()),
            in_channels=source.out_channels if source else 1,
            out_channels=channels,
            in_size=source.out_size if source else (8, 8),
            out_size=(size, size) if size else (),
            activation_bits=activation_bits,
            **fields,
        )
    )


def every_op(
    conv_bits: int = 8, activation_bits: int = 8, activation: str = "hard_swish"
) -> tuple[LayerSpec, ...]:
    """A network for 8x8x1 images and three classes that has each op once at least."""
    layers: list[LayerSpec] = []
    add = functools.partial(_add, layers, activation_bits)
    norm = {"batch_norm": True}
    depthwise = {"weight_bits": conv_bits, "activation": "relu", **norm}
    add("stem", "conv", INPUT, 8, 8, kernel=3, weight_bits=conv_bits, activation="relu6", **norm)
    add("pool", "max_pool", "stem", 8, 4, kernel=2, stride=2)
    if activation == "hard_swish":
        add("expand", "dense", "pool", 24, 4, weight_bits=4, **norm)
        add("swish", "hard_swish", "expand", 24, 4)
    else:
        add("swish", "dense", "pool", 24, 4, weight_bits=4, activation=activation, **norm)
    add("slice_3", "slice", "swish", 8, 4)
    add("depthwise_3", "depthwise", "slice_3", 8, 4, kernel=3, **depthwise)
    add("slice_5", "slice", "swish", 16, 4, offset=8)
    add("depthwise_5", "depthwise", "slice_5", 16, 4, kernel=5, **depthwise)
    add("concat", "concat", "depthwise_3 depthwise_5", 24, 4)
    add("squeeze", "mean", "concat", 24, 1)
    add("reduce", "dense", "squeeze", 8, 1, weight_bits=8, activation="relu")
    add("excite", "dense", "reduce", 24, 1, weight_bits=8)
    add("gate", "sigmoid", "excite", 24, 1)
    add("scale", "multiply", "concat gate", 24, 4)
    add("project", "dense", "scale", 8, 4, weight_bits=2, **norm)
    add("residual", "add", "project pool", 8, 4, activation="relu")
    add("flatten", "flatten", "residual", 128, 0)
    add("output", "dense", "flatten", 3, 0, weight_bits=4)
    return tuple(layers)


def encoder_decoder(activation_bits: int = 8) -> tuple[LayerSpec, ...]:
    """From 8x8x1 images to four numbers at each of their positions, with sums across."""
    layers: list[LayerSpec] = []
    add = functools.partial(_add, layers, activation_bits)

    def conv(name: str, inputs: str, channels: int, size: int, stride: int = 1) -> None:
        norm = {"activation": "relu", "batch_norm": True, "weight_bits": 8}
        add(name, "conv", inputs, channels, size, kernel=3, stride=stride, **norm)

    conv("stem", INPUT, 8, 4, 2)
    conv("down", "stem", 16, 2, 2)
    conv("deep", "down", 8, 2)
    add("up", "resize", "deep", 8, 4, stride=2)
    add("across", "add", "up stem", 8, 4, activation="relu")
    add("head", "dense", "across", 4, 4, weight_bits=8)
    add("logits", "resize", "head", 4, 8, stride=2)
    return tuple(layers)


def padded(activation_bits: int = 8) -> tuple[LayerSpec, ...]:
    """For 8x8x1 images and three classes, with zeros that no windows bring, and an average."""
    layers: list[LayerSpec] = []
    add = functools.partial(_add, layers, activation_bits)
    stem = {"weight_bits": 8, "activation": "relu", "batch_norm": True}
    add("stem", "conv", INPUT, 8, 8, kernel=3, **stem)
    add("zeros", "pad", "stem", 8, 10, offset=1)
    add("pool", "max_pool", "zeros", 8, 4, kernel=3, stride=2, valid=True)
    add("around", "pad", "pool", 8, 8, offset=2)
    add("apart", "conv", "around", 12, 2, kernel=3, stride=3, valid=True, weight_bits=8)
    add("smooth", "average_pool", "apart", 12, 2, kernel=3)
    add("again", "pad", "smooth", 12, 4, offset=1)
    add("flatten", "flatten", "again", 192, 0)
    add("output", "dense", "flatten", 3, 0, weight_bits=8)
    return tuple(layers)


def branched(activation_bits: int = 8) -> tuple[LayerSpec, ...]:
    """For 8x8x1 images and three classes, with vectors that are joined once they are flat."""
    layers: list[LayerSpec] = []
    add = functools.partial(_add, layers, activation_bits)
    add("stem", "conv", INPUT, 8, 8, kernel=3, weight_bits=8, activation="relu", batch_norm=True)
    add("left", "conv", "stem", 8, 4, kernel=3, stride=2, weight_bits=8)
    add("left_pool", "max_pool", "left", 8, 2, kernel=2, stride=2)
    add("left_flat", "flatten", "left_pool", 32, 0)
    add("right", "depthwise", "stem", 8, 4, kernel=5, stride=2, weight_bits=8)
    add("right_flat", "flatten", "right", 128, 0)
    add("concat", "concat", "left_flat right_flat", 160, 0)
    add("output", "dense", "concat", 3, 0, weight_bits=8)
    return tuple(layers)


def small_space() -> SearchSpace:
    """Two depths, widths 1..3 and two bit-widths: small enough to enumerate by hand.

    depth 1: width_1 (3) * bits_1 (2); depth 2: twice that; times the output's bits (2):
    2 * (6 + 6 * 6) = 84 points.
    """
    decisions = [Decision("depth", (1, 2))]
    stages = []
    for layer in (1, 2):
        when = When("depth", (1, 2)[layer - 1 :])
        decisions.append(Decision(f"width_{layer}", (1, 2, 3), when, "log_uniform"))
        decisions.append(Decision(f"bits_{layer}", (2, 8), when))
        options = {
            "units": Chosen(f"width_{layer}"),
            "weight_bits": Chosen(f"bits_{layer}"),
            "activation": "relu",
        }
        stages.append(Stage(f"hidden_{layer}", "dense", options, when))
    decisions.append(Decision("bits_output", (2, 8)))
    output = {
        "units": 1,
        "weight_bits": Chosen("bits_output"),
        "activation": "linear",
    }
    stages.append(Stage("output", "dense", output))
    return SearchSpace("small", (4,), tuple(decisions), tuple(stages), "litert-2.3")
