"""The process in which a foreign Keras model is read, by the Keras that wrote it.

Run by `keras_file`. The answer is a graph as JSON and the arrays of its layers: nothing of the file
comes back that could run. A file names classes and functions that Keras imports and calls while it
loads it, with `safe_mode` on too (CVE-2025-1550, CVE-2025-9905), so its description is looked
through before Keras sees it: what is not one of the layers that are read, or a plain part of them,
is refused.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import re
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfgen import child_process, workdir
from tfgen.nets import _keras_calls as calls
from tfgen.nets import python_file
from tfgen.nets._keras_calls import Refused
from tfgen.nets.keras_kinds import INPUT_NODE, KINDS

GRAPH, ARRAYS = "graph.json", "arrays.npz"
# What a description may name beside the layers of KINDS: models, and plain parts of layers.
_NESTED = ("Functional", "Sequential", "Model")
_MODELS = (*_NESTED, "InputLayer")
_OWN = ("keras", "tensorflow", "tf_keras")  # whose layers and activations are read
_LAYERS_OF = re.compile(r"(tf_)?keras(\.src)?(\.(layers|models|engine)[a-z0-9_.]*)?")
_PARTS_OF = re.compile(
    r"(tf_)?keras(\.src)?(\.(initializers|regularizers|constraints|dtype_policies|mixed_precision)"
    r"[a-z0-9_.]*)?"
)
# Of classes that a description names no others are imported: a name with a dot in it leads
# elsewhere, and what runs has many names.
_PARTS = (
    *("Constant", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "Identity"),
    *("IdentityInitializer", "LecunNormal", "LecunUniform", "Ones", "Orthogonal"),
    *("OrthogonalInitializer", "RandomNormal", "RandomUniform", "TruncatedNormal"),
    *("VarianceScaling", "Zeros"),
    *("L1", "L1L2", "L2", "OrthogonalRegularizer"),
    *("MaxNorm", "MinMaxNorm", "NonNeg", "RadialConstraint", "UnitNorm"),
    *("DTypePolicy", "FloatDTypePolicy", "Policy"),
)
_DATA = ("TensorShape", "__keras_tensor__", "__numpy__", "__tensor__", "__tuple__")
# Of the whole model Keras makes nothing of these, compile=False; of nested ones it does.
_UNREAD = ("compile_config", "build_config")
_NONE = (None, {}, [])
_START = "the model's input"  # the node before a model's first layer, where these are in a row
_CONFIG_BYTES = 16 << 20  # of a model's description
_QUOTED = 500  # characters of a refusal: names may have millions
_WEIGHTS = "model.weights.h5"  # of a .keras file
_MOST_ARRAYS = 100_000
_UNREADABLE = (KeyError, OSError, RuntimeError, TypeError, ValueError)  # h5py raises each of them
_UNZIPPED = (*_UNREADABLE, EOFError, zipfile.BadZipFile, zlib.error)


def main(folder: pathlib.Path) -> None:
    request = child_process.begin(folder)
    try:
        model = _model(request["model"], request["factory"], folder)
        graph = _graph(model)
        arrays = graph.pop("arrays")
        np.savez(folder / ARRAYS, **arrays)
        answer = graph
    except Refused as error:
        answer = {"error": str(error)[:_QUOTED]}
    (folder / GRAPH).write_text(json.dumps(answer))


# --- opening --------------------------------------------------------------------------------------


def _model(path: str, factory: str | None, folder: pathlib.Path) -> Any:
    if factory is not None:
        return _made(path, factory)
    is_h5 = path.endswith((".h5", ".hdf5"))
    version, written = _h5_config(path) if is_h5 else _zip_config(path)
    try:
        config = (
            written if version.startswith("2") or not is_h5 else calls.without_operations(written)
        )
        _check(config)
    except RecursionError:
        raise Refused("its description is nested too deeply") from None
    if config != written:
        path = _described_as(config, path, folder)
    keras = _keras(version)
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever its layers raise
        raise Refused(f"Keras {version} does not read it: {_first_line(error)}") from error


def _described_as(config: Any, path: str, folder: pathlib.Path) -> str:
    """A copy of an .h5 file with another description."""
    import h5py

    copy = folder / "described.h5"
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        file.attrs["model_config"] = json.dumps(config)
    return str(copy)


def _made(path: str, factory: str) -> Any:
    """The model that a function of the user's own Python file returns."""
    try:
        return getattr(python_file.load(path), factory)()
    except (Exception, SystemExit) as error:  # it is the user's code
        raise Refused(
            f"{factory}() failed: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _zip_config(path: str) -> tuple[str, Any]:
    """Version and description of a .keras file."""
    if not zipfile.is_zipfile(path):
        raise Refused("it is no .keras file: no zip archive")
    parts = {}
    try:
        with zipfile.ZipFile(path) as archive:
            workdir.check_archive(archive, os.path.getsize(path))
            _check_names(archive)
            for name in ("metadata.json", "config.json"):
                try:
                    info = archive.getinfo(name)
                except KeyError:
                    raise Refused(f"it is no .keras file: it has no {name}") from None
                if info.file_size > _CONFIG_BYTES:
                    raise Refused(f"its {name} has {info.file_size:,} bytes")
                parts[name] = _parsed(archive.read(info), name)
            if _WEIGHTS in archive.namelist():
                _check_weights(archive.open(_WEIGHTS), os.path.getsize(path))
    except _UNZIPPED as error:
        raise Refused(f"it is no whole .keras file: {_first_line(error)}") from error
    return _version(parts["metadata.json"]), parts["config.json"]


def _check_names(archive: zipfile.ZipFile) -> None:
    """Refuses an archive with members that would lie elsewhere, were it unpacked."""
    for info in archive.infolist():
        path = pathlib.PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(info.external_attr >> 16):
            raise Refused(f"its member {info.filename[:100]!r} leads out of it")


def _parsed(content: bytes | str, name: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refused(f"its {name} is no JSON: {_first_line(error)}") from error


def _version(metadata: Any) -> str:
    if not isinstance(metadata, Mapping):
        raise Refused("its metadata.json tells nothing")
    return str(metadata.get("keras_version", "3"))


def _h5_config(path: str) -> tuple[str, Any]:
    """The same of an .h5 file."""
    import h5py

    if not h5py.is_hdf5(path):
        raise Refused("it is no .h5 file")
    try:
        with h5py.File(path, "r") as file:
            config = _attribute(file, "model_config")
            version = _attribute(file, "keras_version")
        _check_weights(path, os.path.getsize(path))
    except _UNREADABLE as error:
        raise Refused(f"it is no whole .h5 file: {_first_line(error)}") from error
    if config is None:
        raise Refused("it holds weights alone, no model")
    return version or "2", _parsed(config, "model_config")


def _attribute(file: Any, name: str) -> str | None:
    """A text beside a file's data, refused unread where it is long; None where it has none.

    A text of no stated length takes no more memory than it has bytes in the file.
    """
    if name not in file.attrs:
        return None
    told = file.attrs.get_id(name)
    if told.shape != () or told.get_storage_size() > _CONFIG_BYTES:
        raise Refused(f"its {name} is no text of up to {_CONFIG_BYTES:,} bytes")
    value = file.attrs[name]
    text = value.decode() if isinstance(value, bytes) else value
    if not isinstance(text, str) or len(text) > _CONFIG_BYTES:
        raise Refused(f"its {name} is no text of up to {_CONFIG_BYTES:,} bytes")
    return text


def _check_weights(file: Any, file_bytes: int) -> None:
    """Refuses HDF5 whose arrays are far larger than it, or lie in other files of this machine.

    Args:
      file: a path, or what is open for reading.
      file_bytes: of the whole file.
    """
    import h5py

    unpacked_bytes = seen = 0
    with h5py.File(file, "r") as content:
        waiting: list[Any] = [content]
        while waiting:
            group = waiting.pop()
            for name in group:
                seen += 1
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise Refused(f"its {group.name}/{name} is a link")
                if seen > _MOST_ARRAYS:  # or groups that hold one another
                    raise Refused(f"it has more than {_MOST_ARRAYS:,} arrays")
                own = group[name]
                if isinstance(own, h5py.Group):
                    waiting.append(own)
                elif isinstance(own, h5py.Dataset):
                    if own.external or own.is_virtual:
                        raise Refused(f"its array {own.name} lies in another file")
                    unpacked_bytes += own.nbytes
    workdir.check_unpacked(unpacked_bytes, file_bytes)


def _check(config: Any, nested: bool = False, of: str = "it") -> None:
    """Refuses a description that names anything but layers that are read and their plain parts.

    Args:
      config: of the model, or a part of it.
      nested: whether it is a part.
      of: whose part, for the user.
    """
    if isinstance(config, list):
        for value in config:
            _check(value, True, of)
    elif config == calls.CONSTANT:
        raise Refused(f"{of} calls a layer with a constant, which is not read")
    if not isinstance(config, Mapping):
        return
    layers = config.get("layers", [])
    if not isinstance(layers, list):  # Keras makes layers of other forms too
        raise Refused(f"{of} has layers that are no list")
    for layer in layers:
        if not _is_layer(layer):
            raise Refused(f"layer {_described(layer)}: such layers are not read")
    kind, module, own = (config.get(name) for name in ("class_name", "module", "config"))
    if not nested and "class_name" in config and kind not in _NESTED:
        raise Refused(f"it is a {kind}; functional and sequential models are read")
    if kind in _MODELS and not isinstance(own, Mapping):
        raise Refused(f"{of} has a {kind} without a description")
    if kind in KINDS and isinstance(own, Mapping) and own.get("name"):
        of = f"layer {own['name']!r}"
    name = config.get("registered_name")
    if isinstance(name, str) and ">" in name:  # as Keras writes what users registered
        raise Refused(f"{of} names {name!r}, which is never imported or run")
    if "class_name" in config and not (_is_layer(config) or _is_part(kind, module)):
        raise Refused(f"{of} names {kind} {own or module!r}, which is never imported or run")
    if nested and config.get("compile_config") not in _NONE:
        raise Refused(f"it names how a part of it, {kind}, is compiled, which is never run")
    unread = () if nested else _UNREAD
    if calls.sign(config) is not None:
        calls.operands(config)  # all that its call may have
        unread = ("inbound_nodes",)
    for key, value in config.items():
        if key not in unread:
            _check(value, True, of)


def _is_layer(layer: Any) -> bool:
    """Whether a description is of a layer that is read, or of a model of such."""
    if not isinstance(layer, Mapping):
        return False
    if layer.get("module") == calls.OPERATIONS_OF:
        return calls.sign(layer) is not None
    known = layer.get("class_name") in (*KINDS, *_MODELS) or calls.sign(layer) is not None
    return known and _is_of(layer.get("module"), _LAYERS_OF)


def _is_part(kind: Any, module: Any) -> bool:
    """Whether a class is a plain part of layers, or data."""
    return kind in (*_PARTS, *_DATA) and _is_of(module, _PARTS_OF)


def _is_of(module: Any, home: re.Pattern[str]) -> bool:
    """Whether a module is of those, or none is named."""
    return module is None or home.fullmatch(str(module)) is not None


def _described(layer: Any) -> str:
    """A layer that is not read, for the user."""
    if not isinstance(layer, Mapping):
        return repr(layer)
    kind, own = layer.get("class_name"), layer.get("config")
    name = own.get("name") if isinstance(own, Mapping) else layer
    home = f" of {layer['module']}" if kind in KINDS else ""
    return f"{name!r} ({kind}{home})"


def _keras(version: str) -> Any:
    """The Keras that wrote a file: 3, or 2 under its present name."""
    old = version.startswith("2")
    if old:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    return importlib.import_module("tf_keras" if old else "keras")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


# --- reading --------------------------------------------------------------------------------------


def _graph(model: Any) -> dict[str, Any]:
    """Nodes in the order in which they run, each with its class, config, inputs and arrays."""
    kind = type(model).__name__
    if kind not in _NESTED or not hasattr(model, "layers"):
        raise Refused(f"it is a {kind}; functional and sequential models are read")
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise Refused("it was never built: give it an Input, or call it once")
    shapes = [tuple(one.shape) for one in model.inputs]
    if len(shapes) != 1 or len(model.outputs) != 1:
        raise Refused(f"it has {len(shapes)} inputs and {len(model.outputs)} outputs, not one each")
    if any(size is None for size in shapes[0][1:]):
        raise Refused(f"its input has no fixed size: {list(shapes[0])}")
    nodes: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    output = _walk(model, "", [INPUT_NODE], nodes, arrays)
    return {
        "input_shape": list(shapes[0][1:]),
        "output": output,
        "nodes": nodes,
        "arrays": arrays,
    }


def _walk(
    model: Any,
    prefix: str,
    inputs: Sequence[str],
    nodes: list[dict[str, Any]],
    arrays: dict[str, np.ndarray],
) -> str:
    """Adds a model's layers; returns the name of its output."""
    described = {"layers": []} if _in_a_row(model) else model.get_config()
    if _in_a_row(model):
        names = [layer.name for layer in model.layers if type(layer).__name__ != "InputLayer"]
        found, last = list(calls.row(names, _START)), names[-1] if names else _START
        made = {_START: inputs[0]}
    else:
        found, last = list(calls.links(described)), calls.output(described)
        starts = (name for name, _ in calls.read(described["input_layers"]))
        made = dict(zip(starts, inputs, strict=True))
    computed = calls.arithmetic(described)
    # Keras 3 knows operations that are no layers.
    layers = {layer.name: layer for layer in getattr(model, "operations", model.layers)}
    for link in calls.ordered(found):
        layer = layers[link.layer]
        reads = [made[source] for source in link.reads]
        if not link.layer:
            raise Refused("a layer has no name")
        own = f"{prefix}{link.node}"
        nested = type(layer).__name__ in _NESTED and hasattr(layer, "layers")
        if link.again and (nested or layer.get_weights()):
            raise Refused(calls.several(link.layer, sum(one.layer == link.layer for one in found)))
        if nested:
            made[link.node] = _walk(layer, f"{own}/", reads, nodes, arrays)
            continue
        if link.layer in computed:
            kind, config = computed[link.layer]
            weights = []
        else:
            _check_own(layer, own)
            kind, config = type(layer).__name__, _plain(layer.get_config())
            weights = layer.get_weights()
        for number, array in enumerate(weights):
            arrays[f"{len(nodes)}_{number}"] = np.asarray(array)
        nodes.append(
            {"name": own, "class": kind, "config": config, "inputs": reads, "arrays": len(weights)}
        )
        made[link.node] = own
    return made[last]


def _in_a_row(model: Any) -> bool:
    return type(model).__name__ == "Sequential"


def _check_own(layer: Any, name: str) -> None:
    """Refuses classes and activations of others, whatever they are called, and operations."""
    called, home = type(layer).__name__, type(layer).__module__
    if not hasattr(layer, "get_weights"):
        raise Refused(f"layer {name!r} ({called} of {home}): such layers are not read")
    for what in (type(layer), getattr(layer, "activation", None)):
        module = getattr(what, "__module__", "") or type(what).__module__
        if what is not None and module.split(".")[0] not in _OWN:
            called = getattr(what, "__name__", type(what).__name__)
            raise Refused(f"layer {name!r}: {called} of {module} is none of Keras's")


def _plain(value: Any) -> Any:
    """A config as JSON: what is no number, text or list of them becomes its name."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
