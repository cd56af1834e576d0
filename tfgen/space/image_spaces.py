"""How spaces of image networks are made: menus of a network's parts become decisions and stages.

`mobile` makes MobileNet's descendants of unified or of inverted blocks, `cnn` plain convolutions.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

from tfgen.space import bits
from tfgen.space.search_space import Chosen, Decision, SearchSpace, Stage, Value, When

RUNTIME = "litert-2.3"


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
class Group(abc.ABC):
    """Blocks of one kind and width, one after the other. A menu of one value leaves no choice.

    Attributes:
      depths: menu of the number of blocks; blocks beyond it are skipped whole.
      widths: menu of the blocks' output channels. Multiples of 4: low-bit kernels read fours.
      stride: of the first block.
      squeeze_excite: menu, 1 for squeeze-and-excitation in every block.
      activation: of every block.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stride: int
    squeeze_excite: tuple[int, ...] = (0,)
    activation: str = "relu6"

    def __post_init__(self) -> None:
        if any(width % 4 for width in self.widths) or min(self.depths, default=0) < 1:
            raise ValueError(f"widths are multiples of 4, depths at least 1: {self}")

    @abc.abstractmethod
    def expanding(self, draft: Draft, key: str, when: When | None) -> Expanding:
        """Chooses how one block expands and filters.

        Args:
          draft: takes the decisions.
          key: of the block.
          when: it is there.
        """


@dataclasses.dataclass(frozen=True)
class Expanding:
    """How a block expands and filters.

    Attributes:
      block: its kind.
      options: of the block.
      when: it expands; None for always.
      ever: whether there is a network in which it does.
    """

    block: str
    options: Mapping[str, Value | Chosen]
    when: When | None
    ever: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnifiedGroup(Group):
    """Unified blocks (SGNAS).

    Attributes:
      sub_blocks: menu of each block, as the "unified" block of `lowering.py` reads it.
    """

    sub_blocks: tuple[str, ...]

    def expanding(self, draft: Draft, key: str, when: When | None) -> Expanding:
        chosen = draft.choose(f"sub_blocks_{key}", self.sub_blocks, when)
        wide = tuple(kernels for kernels in self.sub_blocks if len(kernels) > 1)
        if isinstance(chosen, Chosen) and wide and wide != self.sub_blocks:
            when = When(chosen.decision, wide)
        return Expanding("unified", {"sub_blocks": chosen}, when, bool(wide))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InvertedGroup(Group):
    """Inverted residual blocks (MobileNetV3), whose kernels and expansions are chosen apart.

    Attributes:
      kernels: menu of the depthwise kernel's side, of each block.
      expansions: menu of each block, all above 1 or 1 alone.
    """

    kernels: tuple[int, ...]
    expansions: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.expansions, default=0) < 1 or 1 in self.expansions[1:]:
            raise ValueError(f"expansions are at least 1, ascending: {self}")
        if 1 in self.expansions and len(self.expansions) > 1:
            raise ValueError(f"a block expands in all networks or in none: {self}")

    def expanding(self, draft: Draft, key: str, when: When | None) -> Expanding:
        options = {
            "kernel": draft.choose(f"kernel_{key}", self.kernels, when),
            "expansion": draft.choose(f"expansion_{key}", self.expansions, when),
        }
        return Expanding("inverted", options, when, self.expansions != (1,))


def mobile(
    name: str,
    input_shape: tuple[int, int, int],
    outputs: int,
    *,
    stem_widths: tuple[int, ...],
    stem_stride: int,
    groups: Sequence[Group],
    head_widths: tuple[int, ...] = (),
    mix_widths: tuple[int, ...] = (),
    activation: str = "relu6",
    weight_bits: tuple[int, ...] | None = None,
    bit_policy: str = RUNTIME,
) -> SearchSpace:
    """Groups of blocks between a 3x3 convolution and a classifier of the channels' means.

    Each dense layer has its own bits; the depthwise layers of a group share theirs. Since low bits
    may take convolutions to a slow kernel, a decision about the whole network allows them: in
    "compact" networks the bits of convolutions are chosen, in "fast" ones they are the widest.

    Args:
      name: the space's name.
      input_shape: height, width, channels.
      outputs: units of the last, linear layer.
      stem_widths: menu of the output channels of the first convolution.
      stem_stride: its stride.
      groups: the blocks.
      head_widths: menu of the output channels of a last 1x1 convolution; empty for none.
      mix_widths: menu of the units of a dense layer before the classifier; empty for none.
      activation: of the first and the last convolution, and of that dense layer.
      weight_bits: menu of every layer; None for the menus of the runtime.
      bit_policy: the runtime.
    """
    draft = Draft(bit_policy, weight_bits)
    draft.choose_kernels()
    draft.stem(stem_widths, stem_stride, activation)
    for number, group in enumerate(groups, 1):
        draft.group(number, group)
    if head_widths:
        draft.add(
            "head",
            "pointwise",
            channels=draft.choose("width_head", head_widths),
            weight_bits=draft.choose("bits_head", draft.dense_bits),
            activation=activation,
        )
    draft.classifier(outputs, mix_widths, activation)
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
    bit_policy: str = RUNTIME,
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
    draft = Draft(bit_policy)
    depths = tuple(range(1, len(convolutions) + 1))
    draft.choose("depth", depths)
    for layer, menus in zip(depths, convolutions, strict=True):
        draft.convolution(layer, menus, When("depth", depths[layer - 1 :]) if layer > 1 else None)
    draft.classifier(outputs)
    return draft.space(name, input_shape)


class Draft:
    """A space of image networks in the making: what it has so far, and its menus of bits."""

    def __init__(
        self, bit_policy: str, weight_bits: tuple[int, ...] | None = None, compact: bool = True
    ):
        self._decisions: list[Decision] = []
        self._stages: list[Stage] = []
        self._bit_policy = bit_policy
        policy = bits.load(bit_policy)
        self.dense_bits = weight_bits or policy.weight_bits("dense")
        # The widest first: a decision that is not active reads as its first value.
        self.conv_bits = weight_bits or policy.weight_bits("conv", compact=compact)[::-1]
        self.depthwise_bits = weight_bits or policy.weight_bits("depthwise", compact=compact)[::-1]
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

    def space(self, name: str, input_shape: tuple[int, ...]) -> SearchSpace:
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
        for block in range(1, max(group.depths) + 1):
            deep = tuple(d for d in group.depths if d >= block)
            when = When(depth, deep) if deep != group.depths else None
            key = f"{number}_{block}"
            expanding = group.expanding(self, key, when)
            self.add(
                f"block_{key}",
                expanding.block,
                when,
                stride=group.stride if block == 1 else 1,
                # Without expansion there are no weights to choose bits for.
                expand_bits=self.choose(
                    f"bits_expand_{key}",
                    self.dense_bits if expanding.ever else (8,),
                    expanding.when,
                ),
                project_bits=self.choose(f"bits_project_{key}", self.dense_bits, when),
                **expanding.options,
                **shared,
            )

    def classifier(
        self, outputs: int, mix_widths: tuple[int, ...] = (), activation: str = "linear"
    ) -> None:
        """The channels' means, a dense layer of them where there is one, and the outputs."""
        self.add("mean", "mean")
        if mix_widths:
            self.add(
                "mix",
                "dense",
                units=self.choose("width_mix", mix_widths),
                weight_bits=self.choose("bits_mix", self.dense_bits),
                activation=activation,
            )
        self.add(
            "output",
            "dense",
            units=outputs,
            weight_bits=self.choose("bits_output", self.dense_bits),
            activation="linear",
        )
