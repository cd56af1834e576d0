"""Published networks as points of spaces; those of Once-for-All are in `once_for_all`."""

from __future__ import annotations

from tfgen.space.architecture import Architecture
from tfgen.space.image_spaces import RUNTIME, Draft, UnifiedGroup, mobile, sub_blocks
from tfgen.space.search_space import SearchSpace


def mobilenet_v2() -> SearchSpace:
    """MobileNetV2 at 224x224 (Sandler et al., CVPR 2018, table 2): only its bits are chosen."""
    rows = (  # expansion, width, depth, stride
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    return mobile(
        "mobilenet_v2",
        (224, 224, 3),
        1000,
        stem_widths=(32,),
        stem_stride=2,
        groups=[
            UnifiedGroup(depths=(n,), widths=(c,), sub_blocks=("3" * t,), stride=s)
            for t, c, n, s in rows
        ],
        head_widths=(1280,),
    )


def sgnas_imagenet() -> SearchSpace:
    """The space of SGNAS (table 6): 80**19 networks of 8 bits.

    As in the authors' code the last row of the table is a plain 1x1 convolution.
    """
    menu = sub_blocks((3, 5, 7), range(2, 7))
    # Width, depth, stride.
    rows = ((32, 2, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))
    first = UnifiedGroup(depths=(1,), widths=(16,), sub_blocks=("3",), stride=1)
    unified = [
        UnifiedGroup(depths=(n,), widths=(c,), sub_blocks=menu, stride=s) for c, n, s in rows
    ]
    return mobile(
        "sgnas_imagenet",
        (224, 224, 3),
        1000,
        stem_widths=(32,),
        stem_stride=2,
        groups=[first, *unified],
        head_widths=(1280,),
        weight_bits=(8,),
    )


def resnet8() -> SearchSpace:
    """ResNet8 of MLPerf Tiny (Banbury et al., 2021) for CIFAR-10: only its bits are chosen."""
    draft = Draft(RUNTIME)
    draft.choose_kernels()
    draft.stem((16,), 1, "relu")
    for number, (channels, stride) in enumerate(((16, 1), (32, 2), (64, 2)), 1):
        draft.add(
            f"block_{number}",
            "residual",
            kernel=3,
            stride=stride,
            channels=channels,
            weight_bits=draft.choose(f"bits_{number}", draft.conv_bits, draft.compact),
            activation="relu",
        )
    draft.classifier(10)
    return draft.space("resnet8", (32, 32, 3))


# Sub-blocks of the 19 unified blocks, from the generator that the authors of SGNAS released.
_SGNAS = {
    "sgnas_a": "333577 3337 335 35777 3357 55577 33777 33337 35577 3557 3557 3777 3357 3577 3337 "
    "33337 3377 777 33377",
    "sgnas_b": "3557 355 355 35555 33555 35555 35577 3557 5557 3555 55 555 355 3357 3337 3777 5577 "
    "355 33377",
    "sgnas_c": "3555 355 355 355 3555 355 3557 355 555 3555 55 555 355 555 333 57 3577 37 33337",
}
NETWORKS = ("mobilenet_v2", "resnet8", *_SGNAS)


def network(name: str) -> tuple[SearchSpace, Architecture]:
    """A published network, at 8 bits, as a point of its space.

    Args:
      name: one of NETWORKS.
    """
    if name in _SGNAS:
        space = sgnas_imagenet()
        # The first block, of group 1, is no choice.
        names = [decision.name for decision in space.decisions]
        return space, space.point(dict(zip(names, _SGNAS[name].split(), strict=True)))
    space = {"mobilenet_v2": mobilenet_v2, "resnet8": resnet8}[name]()
    return space, space.point({})
