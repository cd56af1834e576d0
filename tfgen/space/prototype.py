"""Spaces made of a network: how many channels each layer keeps, and the bits of its weights.

Generative synthesis (Wong, Shafiee, Chwyl and Li 2018) starts from a prototype network and
generates smaller ones. Every point of the space is a valid network, because channels are chosen by
groups: what is added, multiplied, normalised or filtered channel by channel keeps the same ones.
Inputs and outputs stay whole, and so does what cannot be told apart, for which `Prototype.whole`
gives the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tfgen.space.image_spaces import RUNTIME, Draft
from tfgen.space.layers import INPUT, POOLS, LayerSpec, check_network
from tfgen.space.lowering import lower
from tfgen.space.search_space import Chosen, SearchSpace, Value

_STEPS = 8  # of a group's menu: eighths of its channels
_CHANNEL_STEP = 4  # low-bit kernels read channels in fours
_LEAST_CUT = 8  # channels: fewer are left whole
# Ops that keep channels apart.
_SAME = ("depthwise", *POOLS, "hard_swish", "mean", "pad", "resize", "sigmoid")
Rows = npt.NDArray[np.int64]  # [channels that are kept]


@dataclasses.dataclass(frozen=True)
class Group:
    """Channels that are kept or cut together, in all tensors that have them.

    Attributes:
      name: of the first layer that makes them.
      channels: of the prototype.
      layers: that make them: convolutions and dense layers.
      whole: why none can be cut; empty where they can.
    """

    name: str
    channels: int
    layers: tuple[str, ...]
    whole: str


class Prototype:
    """A network whose channels are grouped.

    Attributes:
      layers: of the network, at the widest bits.
      input_shape: of one example.
      groups: in the order of their first layers.
    """

    def __init__(self, layers: Sequence[LayerSpec], input_shape: tuple[int, ...]):
        """Raises ValueError where the layers are no network of that input."""
        check_network(layers, input_shape)
        self.layers = tuple(layers)
        self.input_shape = input_shape
        self._parts, unions = _parts_of(layers, input_shape)
        self._roots = [unions.find(number) for number in range(len(unions.sizes))]
        members = unions.members()
        self.groups = tuple(
            Group(names[0], unions.sizes[root], tuple(names), _whole(unions, root))
            for root, names in members.items()
        )
        self._numbers = {root: number for number, root in enumerate(members)}

    @classmethod
    def of(cls, space: SearchSpace) -> Prototype:
        """The largest network of a space that `space` made."""
        return cls(lower(space, space.point({})), space.input_shape)

    @property
    def whole(self) -> dict[str, str]:
        """By layer whose outputs cannot be cut, the reason."""
        return {
            layer: group.whole for group in self.groups if group.whole for layer in group.layers
        }

    def space(self, name: str, bit_policy: str = RUNTIME, compact: bool = True) -> SearchSpace:
        """All networks that keep some of the channels of each group.

        Args:
          name: the space's name.
          bit_policy: the runtime whose bits are offered.
          compact: whether bits are offered that only slow kernels read.

        Raises:
          ValueError: the input is no image and no vector.
        """
        draft = Draft(bit_policy, compact=compact)
        if {layer.op for layer in self.layers} & {"conv", "depthwise"}:
            draft.choose_kernels()
        widths: dict[str, Value | Chosen] = {}
        menus = {"conv": draft.conv_bits, "depthwise": draft.depthwise_bits}
        for group in self.groups:
            width = draft.choose(f"width_{group.name}", _menu(group))
            widths |= dict.fromkeys(group.layers, width)
        for layer in self.layers:
            options: dict[str, Value | Chosen] = {
                "op": layer.op,
                "inputs": " ".join(layer.inputs),
                "kernel": layer.kernel,
                "stride": layer.stride,
                "valid": int(layer.valid),
                "activation": layer.activation,
                "vector": int(not layer.out_size),
                "channels": widths.get(layer.name, layer.out_channels),
                "offset": layer.offset,
                "batch_norm": int(layer.batch_norm),
                "weight_bits": 0,
            }
            if layer.weighted:
                when = draft.compact if layer.op in menus else None
                options["weight_bits"] = draft.choose(
                    f"bits_{layer.name}", menus.get(layer.op, draft.dense_bits), when
                )
            draft.add(layer.name, "layer", None, **options)
        return draft.space(name, self.input_shape)

    def kept(
        self, layers: Sequence[LayerSpec], order: Mapping[str, Rows] | None = None
    ) -> dict[str, Rows]:
        """By tensor of a network of the space, which of the prototype's channels it has.

        Args:
          layers: of the network.
          order: by group, its channels by their importance, the most important one first; None
            where they lie in this order. Groups that are left whole keep theirs.
        """
        widths = {layer.name: layer.out_channels for layer in layers}
        rows: dict[str, Rows] = {}
        for group in self.groups:
            own = np.arange(group.channels)
            if order is not None and not group.whole:
                own = order[group.name]
            rows[group.name] = own[: widths[group.name]]
        kept: dict[str, Rows] = {}
        for tensor, parts in self._parts.items():
            begin, found = 0, []
            for number, size in parts:
                place = self._numbers.get(self._roots[number])
                chosen = np.arange(size) if place is None else rows[self.groups[place].name]
                found.append(begin + chosen)
                begin += size
            kept[tensor] = np.concatenate(found)
        return kept


def _whole(unions: _Unions, root: int) -> str:
    """Why none of a set's channels can be cut; empty where they can."""
    few = f"fewer than {_LEAST_CUT} channels are not cut" if unions.sizes[root] < _LEAST_CUT else ""
    return unions.reason(root) or few


def _menu(group: Group) -> tuple[int, ...]:
    """How many channels may be kept, ascending; the last is all of them."""
    whole = group.channels
    if group.whole:
        return (whole,)
    steps = {
        max(_CHANNEL_STEP, round(whole * step / _STEPS / _CHANNEL_STEP) * _CHANNEL_STEP)
        for step in range(1, _STEPS)
    }
    return (*sorted(step for step in steps if step < whole), whole)


# --- which channels belong together ---------------------------------------------------------------

_Part = tuple[int, int]  # a set of channels by its number, and how many they are


class _Unions:
    """Sets of channels that are found to be one."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._parents: list[int] = []
        self._names: list[str | None] = []
        self._reasons: list[str] = []

    def add(self, size: int, name: str | None, whole: str = "") -> _Part:
        """A set of its own; of the network's input or of a slice where it has no name."""
        self.sizes.append(size)
        self._parents.append(len(self._parents))
        self._names.append(name)
        self._reasons.append(whole)
        return len(self.sizes) - 1, size

    def find(self, number: int) -> int:
        while self._parents[number] != number:
            number = self._parents[number]
        return number

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.find(one), self.find(other)))
        self._parents[second] = first

    def hold(self, parts: Sequence[_Part], reason: str) -> None:
        """Leaves channels whole."""
        for number, _ in parts:
            self._reasons[number] = self._reasons[number] or reason

    def reason(self, root: int) -> str:
        """Why a set is left whole; empty where it is not."""
        own = [r for number, r in enumerate(self._reasons) if self.find(number) == root]
        return next((reason for reason in own if reason), "")

    def members(self) -> dict[int, list[str]]:
        """By set that layers make, these layers."""
        found: dict[int, list[str]] = {}
        for number, name in enumerate(self._names):
            if name is not None:
                found.setdefault(self.find(number), []).append(name)
        return found


def _parts_of(
    layers: Sequence[LayerSpec], input_shape: Sequence[int]
) -> tuple[dict[str, tuple[_Part, ...]], _Unions]:
    """Of what sets of channels each tensor is made, side by side."""
    unions = _Unions()
    inputs = unions.add(input_shape[-1], None, "it is the network's input")
    parts: dict[str, tuple[_Part, ...]] = {INPUT: (inputs,)}
    for layer in layers:
        read = [parts[name] for name in layer.inputs]
        if layer.op in ("add", "multiply"):
            parts[layer.name] = _together(unions, layer, read)
        elif layer.op == "concat":
            parts[layer.name] = tuple(part for one in read for part in one)
        elif layer.op == "flatten":
            positions = layer.out_channels // layer.in_channels
            parts[layer.name] = read[0] * positions
        elif layer.op == "slice":
            unions.hold(read[0], f"layer {layer.name!r} takes a part of it")
            part = unions.add(layer.out_channels, None, "it is a part")
            parts[layer.name] = (part,)
        elif layer.op in _SAME:
            parts[layer.name] = read[0]
        else:
            parts[layer.name] = (unions.add(layer.out_channels, layer.name),)
    unions.hold(parts[layers[-1].name], "it is the network's output")
    return parts, unions


def _together(
    unions: _Unions, layer: LayerSpec, read: Sequence[tuple[_Part, ...]]
) -> tuple[_Part, ...]:
    """What is added or multiplied keeps the same channels."""
    first, second = read
    if [size for _, size in first] != [size for _, size in second]:
        reason = f"layer {layer.name!r} reads tensors that are put together in different ways"
        for parts in read:
            unions.hold(parts, reason)
        return first
    for (one, _), (other, _) in zip(first, second, strict=True):
        unions.join(one, other)
    return first
