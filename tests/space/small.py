"""A space that can be enumerated, and networks by hand, for tests."""

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
