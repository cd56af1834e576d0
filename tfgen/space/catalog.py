"""Named spaces; published networks as points in them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from tfgen import errors
from tfgen.space import bits, tabulated
from tfgen.space.architecture import Architecture
from tfgen.space.search_space import Chosen, Decision, SearchSpace, Stage, Value, When

_RUNTIME = "litert-2.3"
_MAX_HIDDEN = 4
_MAX_WIDTH = 128


def mlp(name: str, inputs: int, outputs: int, bit_policy: str = _RUNTIME) -> SearchSpace:
    """Multi-layer perceptrons: 1 to 4 hidden ReLU layers of 1 to 128 units, bits for each layer.

    The NAGAN paper gives only the size of its space ("more than 17 billions", section 5.1); this
    choice has 3 * sum over d = 1..4 of 384**d = 65,400,128,640 points.

    Widths are sampled by 1 / width: uniform widths would put 94 of 100 records above 8 units, and a
    generator would know nothing of the networks that small devices need.

    Args:
      name: the space's name.
      inputs: features of an example.
      outputs: units of the last, linear layer.
      bit_policy: the runtime whose weight bits for dense layers are offered.
    """
    menu = bits.load(bit_policy).weight_bits("dense")
    depths = tuple(range(1, _MAX_HIDDEN + 1))
    decisions = [Decision("depth", depths)]
    stages = []
    for layer in depths:
        when = When("depth", tuple(d for d in depths if d >= layer))
        widths = tuple(range(1, _MAX_WIDTH + 1))
        decisions.append(Decision(f"width_{layer}", widths, when, "log_uniform"))
        decisions.append(Decision(f"bits_{layer}", menu, when))
        options: dict[str, Value | Chosen] = {
            "units": Chosen(f"width_{layer}"),
            "weight_bits": Chosen(f"bits_{layer}"),
            "activation": "relu",
        }
        stages.append(Stage(f"hidden_{layer}", "dense", options, when))
    decisions.append(Decision("bits_output", menu))
    output: dict[str, Value | Chosen] = {
        "units": outputs,
        "weight_bits": Chosen("bits_output"),
        "activation": "linear",
    }
    stages.append(Stage("output", "dense", output))
    return SearchSpace(name, (inputs,), tuple(decisions), tuple(stages), bit_policy)


# --- image networks -----------------------------------------------------------------------------


def sub_blocks(kernels: Iterable[int], expansions: Iterable[int]) -> tuple[str, ...]:
    """Every different unified block: kernels ascending, skips at the higher indices only.

    Kernels 3, 5, 7 and expansions 2 to 6 give the sum of C(e + 2, 2) = 80 blocks of SGNAS.
    """
    digits = [str(kernel) for kernel in kernels]
    return tuple(
        "".join(chosen)
        for expansion in expansions
        for chosen in itertools.combinations_with_replacement(digits, expansion)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Unified blocks of one width, one after the other. A menu of one value leaves no choice.

    Attributes:
      depths: menu of the number of blocks; blocks beyond it are skipped whole.
      widths: menu of the blocks' output channels. Multiples of 4: low-bit kernels read fours.
      sub_blocks: menu of each block, as the "unified" block of `lowering.py` reads it.
      stride: of the first block.
      squeeze_excite: menu, 1 for squeeze-and-excitation in every block.
      activation: of every block.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    sub_blocks: tuple[str, ...]
    stride: int
    squeeze_excite: tuple[int, ...] = (0,)
    activation: str = "relu6"

    def __post_init__(self) -> None:
        if any(width % 4 for width in self.widths) or min(self.depths, default=0) < 1:
            raise ValueError(f"widths are multiples of 4, depths at least 1: {self}")


def mobile(
    name: str,
    input_shape: tuple[int, int, int],
    outputs: int,
    *,
    stem_widths: tuple[int, ...],
    stem_stride: int,
    groups: Sequence[Group],
    head_widths: tuple[int, ...] = (),
    weight_bits: tuple[int, ...] | None = None,
    bit_policy: str = _RUNTIME,
) -> SearchSpace:
    """Unified blocks between a 3x3 convolution and a classifier of the channels' means.

    Each dense layer has its own bits; the depthwise layers of a group share theirs. Since low bits
    may take convolutions to a slow kernel, a decision about the whole network allows them: in
    "compact" networks the bits of convolutions are chosen, in "fast" ones they are the widest.

    Args:
      name: the space's name.
      input_shape: height, width, channels.
      outputs: units of the last, linear layer.
      stem_widths: menu of the output channels of the first convolution.
      stem_stride: its stride.
      groups: the unified blocks.
      head_widths: menu of the output channels of a last 1x1 convolution; empty for none.
      weight_bits: menu of every layer; None for the menus of the runtime.
      bit_policy: the runtime.
    """
    draft = _Draft(bit_policy, weight_bits)
    draft.choose_kernels()
    draft.stem(stem_widths, stem_stride, "relu6")
    for number, group in enumerate(groups, 1):
        draft.group(number, group)
    if head_widths:
        draft.add(
            "head",
            "pointwise",
            channels=draft.choose("width_head", head_widths),
            weight_bits=draft.choose("bits_head", draft.dense_bits),
            activation="relu6",
        )
    draft.classifier(outputs)
    return draft.space(name, input_shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolution:
    """One layer of a plain CNN. A menu of one value leaves no choice.

    Attributes:
      widths: menu of the output channels, ascending. Multiples of 4: low-bit kernels read fours.
      kernels: menu of the kernel's side.
      strides: menu.
    """

    widths: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(width % 4 for width in self.widths) or not self.widths:
            raise ValueError(f"widths are multiples of 4, at least one: {self}")


def cnn(
    name: str,
    input_shape: tuple[int, int, int],
    outputs: int,
    convolutions: Sequence[Convolution],
    bit_policy: str = _RUNTIME,
) -> SearchSpace:
    """Plain CNNs: convolutions with ReLU, then a classifier of the channels' means.

    Depth; channels, kernel, stride, bits and pooling of each layer. Convolutions have a bias and no
    batch normalisation: small networks train in a few hundred steps, without statistics. Bits are
    each layer's own, as in NAGAN; with up to four convolutions many networks have 8 bits in all of
    them, which the runtime executes fastest.

    Args:
      name: the space's name.
      input_shape: height, width, channels.
      outputs: units of the last, linear layer.
      convolutions: the deepest network's; the others have the first 1, 2 ... of them.
      bit_policy: the runtime.
    """
    draft = _Draft(bit_policy)
    depths = tuple(range(1, len(convolutions) + 1))
    draft.choose("depth", depths)
    for layer, menus in zip(depths, convolutions, strict=True):
        draft.convolution(layer, menus, When("depth", depths[layer - 1 :]) if layer > 1 else None)
    draft.classifier(outputs)
    return draft.space(name, input_shape)


class _Draft:
    """A space of image networks in the making: what it has so far, and its menus of bits."""

    def __init__(self, bit_policy: str, weight_bits: tuple[int, ...] | None = None):
        self._decisions: list[Decision] = []
        self._stages: list[Stage] = []
        self._bit_policy = bit_policy
        policy = bits.load(bit_policy)
        self.dense_bits = weight_bits or policy.weight_bits("dense")
        # The widest first: a decision that is not active reads as its first value.
        self.conv_bits = weight_bits or policy.weight_bits("conv", compact=True)[::-1]
        self.depthwise_bits = weight_bits or policy.weight_bits("depthwise", compact=True)[::-1]
        self.compact: When | None = None

    def choose(self, name: str, menu: Sequence[Value], when: When | None = None) -> Value | Chosen:
        """An option: a decision over the menu, or its only value."""
        if len(menu) == 1:
            return menu[0]
        self._decisions.append(Decision(name, tuple(menu), when))
        return Chosen(name)

    def choose_kernels(self) -> None:
        """Decides, before any bits are chosen, whether convolutions may have low ones."""
        if max(len(self.conv_bits), len(self.depthwise_bits)) > 1:
            self.choose("convolutions", ("compact", "fast"))
            self.compact = When("convolutions", ("compact",))

    def add(
        self, name: str, block: str, when: When | None = None, **options: Value | Chosen
    ) -> None:
        self._stages.append(Stage(name, block, options, when))

    def space(self, name: str, input_shape: tuple[int, int, int]) -> SearchSpace:
        return SearchSpace(
            name, input_shape, tuple(self._decisions), tuple(self._stages), self._bit_policy
        )

    def stem(self, widths: tuple[int, ...], stride: int, activation: str) -> None:
        self.add(
            "stem",
            "conv",
            kernel=3,
            stride=stride,
            channels=self.choose("width_stem", widths),
            weight_bits=self.choose("bits_stem", self.conv_bits, self.compact),
            activation=activation,
        )

    def convolution(self, layer: int, menus: Convolution, when: When | None) -> None:
        """A convolution with a bias, and a 2x2 max pool after it where that is chosen."""
        self.add(
            f"conv_{layer}",
            "conv",
            when,
            kernel=self.choose(f"kernel_{layer}", menus.kernels, when),
            stride=self.choose(f"stride_{layer}", menus.strides, when),
            channels=self.choose(f"width_{layer}", menus.widths, when),
            weight_bits=self.choose(f"bits_{layer}", self.conv_bits, when),
            activation="relu",
            batch_norm=0,
        )
        pool = f"pool_{layer}"
        self.choose(pool, (0, 1), when)
        self.add(pool, "max_pool", When(pool, (1,)), kernel=2, stride=2)

    def group(self, number: int, group: Group) -> None:
        depth = f"depth_{number}"
        self.choose(depth, group.depths)
        shared = {
            "channels": self.choose(f"width_{number}", group.widths),
            "squeeze_excite": self.choose(f"squeeze_excite_{number}", group.squeeze_excite),
            "depthwise_bits": self.choose(
                f"bits_depthwise_{number}", self.depthwise_bits, self.compact
            ),
            "activation": group.activation,
        }
        expanding = tuple(kernels for kernels in group.sub_blocks if len(kernels) > 1)
        for block in range(1, max(group.depths) + 1):
            deep = tuple(d for d in group.depths if d >= block)
            when = When(depth, deep) if deep != group.depths else None
            key = f"{number}_{block}"
            chosen = self.choose(f"sub_blocks_{key}", group.sub_blocks, when)
            expanded = when
            if isinstance(chosen, Chosen) and expanding != group.sub_blocks:
                expanded = When(chosen.decision, expanding)
            self.add(
                f"block_{key}",
                "unified",
                when,
                sub_blocks=chosen,
                stride=group.stride if block == 1 else 1,
                # Without expansion there are no weights to choose bits for.
                expand_bits=self.choose(
                    f"bits_expand_{key}", self.dense_bits if expanding else (8,), expanded
                ),
                project_bits=self.choose(f"bits_project_{key}", self.dense_bits, when),
                **shared,
            )

    def classifier(self, outputs: int) -> None:
        self.add("mean", "mean")
        self.add(
            "output",
            "dense",
            units=outputs,
            weight_bits=self.choose("bits_output", self.dense_bits),
            activation="linear",
        )


def mnist_mobile() -> SearchSpace:
    """Networks for MNIST of 0.05 to 3 million MACs."""
    menu = sub_blocks((3, 5), range(1, 5))  # 2 + 3 + 4 + 5 = 14
    return mobile(
        "mnist_mobile",
        (28, 28, 1),
        10,
        stem_widths=(8, 12, 16),
        stem_stride=2,
        groups=(
            Group(depths=(1, 2), widths=(8, 12, 16, 20), sub_blocks=menu, stride=1),
            Group(depths=(1, 2), widths=(16, 24, 32, 40), sub_blocks=menu, stride=2),
        ),
    )


def cifar10_mobile(
    name: str = "cifar10_mobile",
    squeeze_excite: tuple[int, ...] = (0,),
    activation: str = "relu6",
) -> SearchSpace:
    """Networks for CIFAR-10 of 2 to 25 million MACs.

    Args:
      name: the space's name.
      squeeze_excite: menu of the second and third group.
      activation: of the second and third group.
    """
    menu = sub_blocks((3, 5, 7), range(2, 7))
    return mobile(
        name,
        (32, 32, 3),
        10,
        stem_widths=(12, 16),
        stem_stride=1,
        groups=(
            Group(depths=(1, 2, 3), widths=(16, 20, 24), sub_blocks=menu, stride=2),
            Group(
                depths=(1, 2, 3),
                widths=(32, 40, 48, 56),
                sub_blocks=menu,
                stride=2,
                squeeze_excite=squeeze_excite,
                activation=activation,
            ),
            Group(
                depths=(1, 2),
                widths=(64, 80, 96),
                sub_blocks=menu,
                stride=2,
                squeeze_excite=squeeze_excite,
                activation=activation,
            ),
        ),
        head_widths=(64, 96, 128),
    )


def cifar10_cnn() -> SearchSpace:
    """Networks for CIFAR-10 at 16x16 of 1 thousand to 0.7 million MACs, half below 50 thousand.

    The first two convolutions have stride 2, and 5x5 kernels are the first one's alone: the others
    see 8x8 pixels or fewer. Without that the widest network would take 26 million, and 20,000
    networks could not be trained in an hour.
    """
    widths = tuple(range(4, 37, 4))
    first = Convolution(widths=widths, kernels=(1, 3, 5), strides=(2,))
    second = Convolution(widths=widths, kernels=(1, 3), strides=(2,))
    other = Convolution(widths=widths, kernels=(1, 3), strides=(1, 2))
    return cnn("cifar10_cnn", (16, 16, 3), 10, (first, second, other, other))


SPACES: Mapping[str, Callable[[], SearchSpace]] = {
    "california_housing_mlp": lambda: mlp("california_housing_mlp", inputs=8, outputs=1),
    "cifar10_cnn": cifar10_cnn,
    "cifar10_mlp": lambda: mlp("cifar10_mlp", inputs=192, outputs=10),
    "cifar10_mobile": cifar10_mobile,
    "cifar10_mobile_v3": lambda: cifar10_mobile("cifar10_mobile_v3", (0, 1), "hard_swish"),
    "mnist14_mlp": lambda: mlp("mnist14_mlp", inputs=196, outputs=10),
    "mnist_mlp": lambda: mlp("mnist_mlp", inputs=784, outputs=10),
    "mnist_mobile": mnist_mobile,
    "quartic_mlp": lambda: mlp("quartic_mlp", inputs=1, outputs=1),
    "septic_mlp": lambda: mlp("septic_mlp", inputs=1, outputs=1),
}


def get(name: str) -> SearchSpace:
    """The space of that name, also one of `tabulated`; raises UsageError that names the known."""
    spaces = {**SPACES, **tabulated.TABULATED}
    if name not in spaces:
        raise errors.UsageError(f"unknown space {name!r}; known: {', '.join(sorted(spaces))}")
    return spaces[name]()


# --- published networks -------------------------------------------------------------------------


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
            Group(depths=(n,), widths=(c,), sub_blocks=("3" * t,), stride=s) for t, c, n, s in rows
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
    first = Group(depths=(1,), widths=(16,), sub_blocks=("3",), stride=1)
    unified = [Group(depths=(n,), widths=(c,), sub_blocks=menu, stride=s) for c, n, s in rows]
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
    draft = _Draft(_RUNTIME)
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
PUBLISHED = ("mobilenet_v2", "resnet8", *_SGNAS)


def published(name: str) -> tuple[SearchSpace, Architecture]:
    """A published network, at 8 bits, as a point of its space.

    Args:
      name: one of PUBLISHED.
    """
    if name in _SGNAS:
        space = sgnas_imagenet()
        # The first block, of group 1, is no choice.
        names = [decision.name for decision in space.decisions]
        return space, point(space, dict(zip(names, _SGNAS[name].split(), strict=True)))
    space = {"mobilenet_v2": mobilenet_v2, "resnet8": resnet8}[name]()
    return space, point(space, {})


def point(space: SearchSpace, values: Mapping[str, Value]) -> Architecture:
    """The architecture with these values; decisions that are not named take their last one."""
    choices = [
        d.values.index(values[d.name]) if d.name in values else len(d.values) - 1
        for d in space.decisions
    ]
    return space.architecture(choices)
