"""Named spaces; published networks as points in them."""

from __future__ import annotations

from tfgen import errors
from tfgen.space import bits
from tfgen.space.search_space import Chosen, Decision, SearchSpace, Stage, Value, When

_MAX_HIDDEN = 4
_MAX_WIDTH = 128


def mlp(name: str, inputs: int, outputs: int, bit_policy: str = "litert-2.3") -> SearchSpace:
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


SPACES = {
    "california_housing_mlp": lambda: mlp("california_housing_mlp", inputs=8, outputs=1),
    "mnist_mlp": lambda: mlp("mnist_mlp", inputs=784, outputs=10),
}


def get(name: str) -> SearchSpace:
    """The space of that name; raises UsageError that names the known ones."""
    if name not in SPACES:
        raise errors.UsageError(f"unknown space {name!r}; known: {', '.join(sorted(SPACES))}")
    return SPACES[name]()
