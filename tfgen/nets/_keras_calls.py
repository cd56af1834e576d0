"""What the layers of a Keras model read: their calls, as either Keras writes them.

Both write the calls of a layer under `inbound_nodes`, each with the layer, call and tensor that it
reads. A layer that is called several times, as one without weights may be, is as many nodes here.
`x + y`, `x / 255` and the like are calls too: of operations in Keras 3, of functions in Keras 2.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgen.nets.keras_kinds import SKIPPED

# Operations of Keras 3; of Keras 2 layers that call a function by its name, of which no other may
# be named.
OPERATIONS_OF = "keras.src.ops.numpy"
_OPERATIONS = {"Add": "+", "Multiply": "*", "Subtract": "-", "Divide": "/", "TrueDivide": "/"}
_CALLING = "TFOpLambda"
_FUNCTIONS = {
    "__operators__.add": "+",
    "math.add": "+",
    "math.divide": "/",
    "math.multiply": "*",
    "math.subtract": "-",
    "math.truediv": "/",
}
_OF_LAYERS = {"+": "Add", "*": "Multiply"}  # the layers that do the same with two
CONSTANT = "_CONSTANT_VALUE"  # in place of a layer that a call reads
_SAYING_NOTHING = (None, False)

_Call = tuple[str, int]  # a layer's name, and which of its calls


class Refused(Exception):
    """What the user is told."""


@dataclasses.dataclass(frozen=True)
class Link:
    """A call of a layer.

    Attributes:
      node: a name of its own: the layer's, for its only or first call.
      layer: which is called.
      reads: the nodes.
      again: whether the layer is called otherwise too.
    """

    node: str
    layer: str
    reads: tuple[str, ...]
    again: bool = False


# --- arithmetic -----------------------------------------------------------------------------------


def sign(layer: Any) -> str | None:
    """Which arithmetic a layer of a description is, "+" for a sum; None of other layers."""
    if not isinstance(layer, Mapping):
        return None
    kind, config = layer.get("class_name"), layer.get("config")
    if kind == _CALLING:
        function = config.get("function") if isinstance(config, Mapping) else None
        return _FUNCTIONS.get(function) if isinstance(function, str) else None
    return _OPERATIONS.get(str(kind)) if layer.get("module") == OPERATIONS_OF else None


def operands(layer: Mapping[str, Any]) -> tuple[_Call | float, _Call | float]:
    """The two that an arithmetic is of: a layer's call, or a number; refuses all else."""
    calls = layer.get("inbound_nodes")
    found: list[Any] = []
    match calls:
        case [{"args": [*values], "kwargs": {}, **rest}] if not rest and not calls[0]["kwargs"]:
            found = values
        case [[str() as name, -1, value, {"y": y, **rest}]] if name == CONSTANT:
            found = [value, y] if _is_unnamed(rest) else []
        case [[str(), int(), int(), {"y": y, **rest}]]:
            found = [calls[0][:3], y] if _is_unnamed(rest) else []
    told = [_operand(value) for value in found]
    if len(told) != 2 or told[0] is None or told[1] is None:
        own = layer.get("config")
        name = own.get("name") if isinstance(own, Mapping) else None
        raise Refused(f"layer {name!r} is called with what is no number and no layer")
    return told[0], told[1]


def _is_unnamed(rest: Mapping[str, Any]) -> bool:
    """Whether a call has no more than a name."""
    return not rest or (list(rest) == ["name"] and isinstance(rest["name"], str | None))


def _operand(value: Any) -> _Call | float | None:
    if isinstance(value, np.generic):  # of a model that was not read from a file
        value = value.item()
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) <= sys.float_info.max else math.inf
        return number if math.isfinite(number) else None
    match value:
        case [str() as name, int(), int()] if name != CONSTANT:
            return _read(value)
        case {"class_name": "__keras_tensor__", "config": {"keras_history": [*history]}}:
            return _read(history) if len(history) == 3 else None
    return None


def arithmetic(config: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, float]]]:
    """By layer that is `x + y` and the like, the class and config of a layer that computes it."""
    return {
        layer["name"]: _computed(layer["name"], own, *operands(layer))
        for layer in config["layers"]
        if (own := sign(layer)) is not None
    }


def _computed(
    name: str, own: str, left: _Call | float, right: _Call | float
) -> tuple[str, dict[str, float]]:
    """The same, of one or two layers."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        if own not in _OF_LAYERS:
            raise Refused(f"layer {name!r}: {own} of two layers is not read")
        return _OF_LAYERS[own], {}
    scale, offset = 1.0, 0.0
    number = left if isinstance(right, tuple) else right
    assert isinstance(number, float)  # layers, or a layer and a number, were told apart
    if own == "+":
        offset = number
    elif own == "*":
        scale = number
    elif own == "-":
        scale, offset = (1.0, -number) if isinstance(left, tuple) else (-1.0, number)
    elif isinstance(right, tuple) or not number:
        raise Refused(f"layer {name!r}: a division by a layer or by 0 is not read")
    else:
        scale = 1.0 / number
    return "Rescaling", {"scale": scale, "offset": offset}


def without_operations(config: Any) -> Any:
    """A description in an .h5 file of Keras 3, with layers in place of its operations.

    Keras takes them for layers of the same names there, and does not read what it wrote.
    """
    if isinstance(config, list):
        return [without_operations(value) for value in config]
    if not isinstance(config, Mapping):
        return config
    own = config.get("config")
    operation = {**config, "module": OPERATIONS_OF}
    # What is a layer has a type too.
    bare = isinstance(own, Mapping) and list(own) == ["name"] and "module" not in config
    kind = sign(operation) if bare else None
    if kind is None:
        return {key: without_operations(value) for key, value in config.items()}
    found = operands(operation)
    name = str(own["name"])
    made, told = _computed(name, kind, *found)
    (call,) = config["inbound_nodes"]
    if not isinstance(call, Mapping) or not any(isinstance(one, tuple) for one in found):
        raise Refused(f"layer {name!r} is called with what is no layer")
    tensors = [
        value for value, one in zip(call["args"], found, strict=True) if isinstance(one, tuple)
    ]
    args = [tensors] if len(tensors) > 1 else tensors
    return {
        **config,
        "class_name": made,
        "config": {"name": name, **told},
        "inbound_nodes": [{"args": args, "kwargs": {}}],
    }


# --- links ----------------------------------------------------------------------------------------


def row(names: Sequence[str], start: str) -> Iterator[Link]:
    """Of layers that each read the one before, the first of them the node `start`."""
    for name, before in zip(names, [start, *names], strict=False):
        yield Link(name, name, (before,))


def links(config: Mapping[str, Any]) -> Iterator[Link]:
    """All calls of layers that are no inputs."""
    inputs = {name for name, _ in read(config["input_layers"])}
    calls = {layer["name"]: len(layer["inbound_nodes"]) for layer in config["layers"]}
    for layer in config["layers"]:
        name, told = layer["name"], layer["inbound_nodes"]
        if name in inputs:
            continue
        if sign(layer) is not None:
            if len(told) != 1:
                raise Refused(several(name, len(told)))
            reads = [operand for operand in operands(layer) if isinstance(operand, tuple)]
            if not reads:
                raise Refused(f"layer {name!r} is called with numbers alone")
            yield Link(name, name, _nodes(reads, calls))
            continue
        given = _arguments(told)
        if layer["class_name"] in SKIPPED:  # whatever they do in training, networks have none
            given = [argument for argument in given if argument != "training"]
        if given:
            raise Refused(f"layer {name!r} is called with {', '.join(given)}")
        for number, call in enumerate(told):
            (node,) = _nodes([(name, number)], calls)
            yield Link(node, name, _nodes(read(call), calls), len(told) > 1)


def output(config: Mapping[str, Any]) -> str:
    """The node that makes a model's output."""
    calls = {layer["name"]: len(layer["inbound_nodes"]) for layer in config["layers"]}
    (node,) = _nodes(read(config["output_layers"]), calls)
    return node


def several(name: str, calls: int) -> str:
    """Why a layer is not read."""
    return f"layer {name!r} is called {calls} times: shared layers are not read"


def _nodes(called: Sequence[_Call], calls: Mapping[str, int]) -> tuple[str, ...]:
    """Names of nodes. Models within models begin to count calls at 1; they have a single one."""
    return tuple(
        f"{name}:{number}" if number and calls.get(name, 1) > 1 else name for name, number in called
    )


def _arguments(calls: Any) -> list[str]:
    """Names of what calls give beside tensors, where it says anything."""
    found: list[str] = []
    if isinstance(calls, Mapping):
        found += [k for k, v in calls.get("kwargs", {}).items() if _says(v)]
    elif isinstance(calls, list | tuple):
        if len(calls) == 4 and isinstance(calls[3], Mapping):  # Keras 2: name, call, tensor, these
            return [k for k, v in calls[3].items() if _says(v)]
        for call in calls:
            found += _arguments(call)
    return found


def _says(argument: Any) -> bool:
    """Whether an argument changes anything; a model within has a mask for each of its inputs."""
    told = argument if isinstance(argument, list | tuple) else [argument]
    return any(value not in _SAYING_NOTHING for value in told)


def read(call: Any) -> list[_Call]:
    """The calls of layers whose outputs a call takes, as either Keras writes it."""
    found: list[_Call] = []
    if isinstance(call, Mapping):
        history = call.get("config", {}).get("keras_history") if "class_name" in call else None
        if history is not None:
            found = [_read(history)]
        else:
            for value in call.values():
                found += read(value)
    elif isinstance(call, list | tuple):
        if len(call) >= 3 and isinstance(call[0], str) and isinstance(call[1], int):
            found = [_read(call)]
        else:
            for value in call:
                found += read(value)
    return found


def _read(history: Sequence[Any]) -> _Call:
    name, number, tensor = history[:3]
    if tensor:
        raise Refused(f"layer {name!r} has several outputs")
    return str(name), int(number)


def ordered(found: Sequence[Link]) -> list[Link]:
    """Calls after all that they read."""
    order: list[Link] = []
    waiting = {link.node: link for link in found}
    while waiting:
        ready = [link for link in waiting.values() if not waiting.keys() & set(link.reads)]
        if not ready:
            raise Refused(f"layer {next(iter(waiting))!r} reads itself")
        order += ready
        for link in ready:
            del waiting[link.node]
    return order
