"""Named spaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tfgen import errors
from tfgen.space import bits, once_for_all, tabulated
from tfgen.space.image_spaces import RUNTIME, Convolution, UnifiedGroup, cnn, mobile, sub_blocks
from tfgen.space.search_space import Chosen, Decision, SearchSpace, Stage, Value, When

_MAX_HIDDEN = 4
_MAX_WIDTH = 128


def mlp(name: str, inputs: int, outputs: int, bit_policy: str = RUNTIME) -> SearchSpace:
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
            UnifiedGroup(depths=(1, 2), widths=(8, 12, 16, 20), sub_blocks=menu, stride=1),
            UnifiedGroup(depths=(1, 2), widths=(16, 24, 32, 40), sub_blocks=menu, stride=2),
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
            UnifiedGroup(depths=(1, 2, 3), widths=(16, 20, 24), sub_blocks=menu, stride=2),
            UnifiedGroup(
                depths=(1, 2, 3),
                widths=(32, 40, 48, 56),
                sub_blocks=menu,
                stride=2,
                squeeze_excite=squeeze_excite,
                activation=activation,
            ),
            UnifiedGroup(
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
    "cifar10_once_for_all": lambda: once_for_all.cifar10("cifar10_once_for_all"),
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
