"""The spaces of Once-for-All, and the networks that its authors specialised to devices.

Cai, Gan, Wang, Zhang and Han, "Once-for-All: Train One Network and Specialize it for Efficient
Deployment", ICLR 2020, section 3.1: five units of two to four inverted residual blocks, kernels of
3, 5 or 7, expansions of 3, 4 or 6. NAG searches the one of MobileNetV3 (section 4.1). Departures:
each layer has bits besides; squeeze-and-excitation rounds its channels to multiples of 4, not 8,
and its gate is a sigmoid (`lowering`); the dense layer before the classifier has a bias. Resolution
is no decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfgen import errors
from tfgen.space.architecture import Architecture
from tfgen.space.image_spaces import InvertedGroup, mobile
from tfgen.space.layers import LayerSpec
from tfgen.space.lowering import lower
from tfgen.space.search_space import SearchSpace, Value

_KERNELS, _EXPANSIONS, _DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)
# What a convolution is told by: input and output channels, kernel, stride.
_Shape = tuple[int, int, int, int]


def mobilenet_v3(name: str, multiplier: float) -> SearchSpace:
    """Networks for ImageNet with the units of MobileNetV3.

    Args:
      name: the space's name.
      multiplier: of all widths: 1.0 or 1.2 in the authors' networks.
    """
    stem, first, *widths, head, mix = (
        _divisible(width * multiplier) for width in (16, 16, 24, 40, 80, 112, 160, 960, 1280)
    )
    return mobile(
        name,
        (224, 224, 3),
        1000,
        stem_widths=(stem,),
        stem_stride=2,
        groups=_units(first, widths, (2, 2, 2, 1, 2)),
        head_widths=(head,),
        mix_widths=(mix,),
        activation="hard_swish",
    )


def proxyless(name: str) -> SearchSpace:
    """Networks for ImageNet with the units of ProxylessNAS, 1.3 times as wide."""
    stem, first, *widths, last, head = (
        _divisible(width * 1.3) for width in (32, 16, 24, 40, 80, 96, 192, 320, 1280)
    )
    strides = (2, 2, 2, 1, 2)
    units = [_unit(width, stride, _DEPTHS) for width, stride in zip(widths, strides, strict=True)]
    return mobile(
        name,
        (224, 224, 3),
        1000,
        stem_widths=(stem,),
        stem_stride=2,
        groups=[_first(first, "relu6"), *units, _unit(last, 1, (1,))],
        head_widths=(head,),
    )


def cifar10(name: str) -> SearchSpace:
    """Networks for CIFAR-10 with the units of MobileNetV3, of 5 to 24 million MACs.

    Departure: ReLU6 where MobileNetV3 has hard-swish. LiteRT computes that in 8 bits with its
    built-in kernels alone, which are slow and round up to a quarter of the outputs up.
    """
    return mobile(
        name,
        (32, 32, 3),
        10,
        stem_widths=(16,),
        stem_stride=1,
        groups=_units(16, (16, 24, 32, 40, 56), (2, 2, 1, 2, 1), "relu6"),
        head_widths=(128,),
        activation="relu6",
    )


def _units(
    first: int, widths: Sequence[int], strides: Sequence[int], late: str = "hard_swish"
) -> list[InvertedGroup]:
    """MobileNetV3's: a first block that does not expand, then five units; `late` in three."""
    squeeze_excite = (0, 1, 0, 1, 1)
    activations = ("relu", "relu", *[late] * 3)
    units = zip(widths, strides, squeeze_excite, activations, strict=True)
    return [
        _first(first, "relu"),
        *(_unit(width, stride, _DEPTHS, squeeze, act) for width, stride, squeeze, act in units),
    ]


def _first(width: int, activation: str) -> InvertedGroup:
    return InvertedGroup(
        depths=(1,), widths=(width,), stride=1, activation=activation, kernels=(3,), expansions=(1,)
    )


def _unit(
    width: int,
    stride: int,
    depths: tuple[int, ...],
    squeeze_excite: int = 0,
    activation: str = "relu6",
) -> InvertedGroup:
    return InvertedGroup(
        depths=depths,
        widths=(width,),
        stride=stride,
        squeeze_excite=(squeeze_excite,),
        activation=activation,
        kernels=_KERNELS,
        expansions=_EXPANSIONS,
    )


def _divisible(width: float) -> int:
    """The multiple of 8 that is nearest, but no less than nine tenths of the width."""
    near = max(8, int(width + 4) // 8 * 8)
    return near + 8 if near < 0.9 * width else near


# --- the authors' networks ------------------------------------------------------------------------


def network(config: Mapping[str, Any]) -> tuple[SearchSpace, Architecture]:
    """A network as the authors' code writes it (`net.config`), at 8 bits, as a point of its space.

    Args:
      config: of a MobileNetV3 or ProxylessNASNets.

    Raises:
      CorruptFileError: it is neither, or has a layer that no network of the space has.
    """
    try:
        family, stem = config["name"], int(config["first_conv"]["out_channels"])
        space = _space(family, stem)
        found = space.point(_values(space, config["blocks"]))
        theirs = list(_their_shapes(config))
    except (KeyError, TypeError, ValueError, errors.UsageError) as error:
        raise errors.CorruptFileError(f"is no network of Once-for-All: {error!r}") from error
    ours = _shapes(lower(space, found))
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=False), 1):
        if mine != other:
            raise errors.CorruptFileError(
                f"layer {number} of {len(theirs)} with weights: input and output channels, kernel "
                f"and stride are {other}; in {space.name!r} they are {mine}"
            )
    if len(ours) != len(theirs):
        raise errors.CorruptFileError(
            f"{len(theirs)} layers with weights, where {space.name!r} has {len(ours)}"
        )
    return space, found


def _space(family: str, stem: int) -> SearchSpace:
    known = {
        ("MobileNetV3", 16): lambda: mobilenet_v3("once_for_all", 1.0),
        ("MobileNetV3", 24): lambda: mobilenet_v3("once_for_all_wide", 1.2),
        ("ProxylessNASNets", 40): lambda: proxyless("once_for_all_proxyless"),
    }
    if (family, stem) not in known:
        raise ValueError(f"{family!r} with {stem} channels after the first convolution")
    return known[family, stem]()


def _values(space: SearchSpace, blocks: Sequence[Mapping[str, Any]]) -> dict[str, Value]:
    """What the blocks choose of the space's decisions; a unit begins where channels change."""
    values: dict[str, Value] = {}
    unit = depth = 1  # the first unit is the block that does not expand
    for block in blocks[1:]:
        conv = block["mobile_inverted_conv"]
        begins = conv["in_channels"] != conv["out_channels"]
        unit, depth = (unit + 1, 1) if begins else (unit, depth + 1)
        values |= {
            f"depth_{unit}": depth,
            f"kernel_{unit}_{depth}": conv["kernel_size"],
            f"expansion_{unit}_{depth}": conv["expand_ratio"],
        }
    return {name: value for name, value in values.items() if name in space.index}


def _their_shapes(config: Mapping[str, Any]) -> Iterator[_Shape]:
    yield _convolution(config["first_conv"])
    for block in config["blocks"]:
        conv = block["mobile_inverted_conv"]
        wide = conv["in_channels"] * conv["expand_ratio"]
        if conv["expand_ratio"] > 1:
            yield conv["in_channels"], wide, 1, 1
        yield wide, wide, conv["kernel_size"], conv["stride"]
        if conv["use_se"]:
            yield from ((wide, 0, 1, 1), (0, wide, 1, 1))
        yield wide, conv["out_channels"], 1, 1
    for name in ("final_expand_layer", "feature_mix_layer"):
        if name in config:
            yield _convolution(config[name])
    yield config["classifier"]["in_features"], config["classifier"]["out_features"], 1, 1


def _convolution(layer: Mapping[str, Any]) -> _Shape:
    return layer["in_channels"], layer["out_channels"], layer["kernel_size"], layer["stride"]


def _shapes(layers: Sequence[LayerSpec]) -> list[_Shape]:
    """The same of our layers; what is between the layers of squeeze-and-excitation is left out."""
    shapes = []
    for layer in layers:
        if layer.weighted:
            squeezed = layer.name.endswith("_reduce"), layer.name.endswith("_excite")
            outputs = 0 if squeezed[0] else layer.out_channels
            inputs = 0 if squeezed[1] else layer.in_channels
            shapes.append((inputs, outputs, layer.kernel, layer.stride))
    return shapes
