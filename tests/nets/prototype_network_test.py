"""Keras models of others: read, refused, cut."""

import dataclasses
import json
import os
import pathlib
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable

import h5py
import numpy as np
from absl.testing import absltest, parameterized

from tests.nets import keras_models
from tfgen import errors, seeds
from tfgen.deployment import export
from tfgen.nets import keras_file, network, prototype_network, pruning
from tfgen.nets.keras_compat import tf
from tfgen.nets.keras_file import KerasGraph, Node
from tfgen.nets.keras_kinds import INPUT_NODE as IN
from tfgen.nets.supernet import Supernet
from tfgen.space.lowering import lower
from tfgen.space.prototype import Prototype
from tfgen.training import supernet_training

SOFTMAX = ("residual", "plain", "segmenting", "habits")
# Of each model a file of either version in either format, in turn.
FILES = [
    (version, name, suffixes[place % 2])
    for place, name in enumerate(keras_models.MODELS)
    for version, suffixes in (("2", ("keras", "h5")), ("3", ("h5", "keras")))
]


class ReadingTest(parameterized.TestCase):
    """Models that both Keras versions wrote."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        for version in "23":
            (cls.folder / version).mkdir()
            subprocess.run(
                [sys.executable, "-m", "tests.nets.keras_models", version, cls.folder / version],
                check=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                capture_output=True,
            )

    # Keras 3 does not read from .h5 what it writes there of x + y.
    @parameterized.parameters(*FILES, ("3", "arithmetic", "h5"))
    def test_a_network_computes_what_the_model_does(self, version, name, suffix):
        path = self.folder / version / f"{name}.{suffix}"
        found = prototype_network.read(keras_file.read(path), str(path))
        model = network.with_weights(found.layers, found.input_shape, found.weights)
        outputs = model(keras_models.images(), training=False).numpy()
        expected = np.load(self.folder / version / f"{name}.npy")
        if name in SOFTMAX:
            self.assertIn("softmax is left out", " ".join(found.remarks))
            outputs = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
            outputs /= outputs.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        # Only the outputs cannot be cut, and what is small.
        prototype = Prototype(found.layers, found.input_shape)
        large = [group.whole for group in prototype.groups if group.channels >= 8 and group.whole]
        self.assertEqual(large, ["it is the network's output"])
        self.assertTrue(all(group.whole for group in prototype.groups if group.channels < 8))
        space = prototype.space("networks")
        for row in supernet_training.ends(space):
            export.check_bits(lower(space, space.architecture(row)), space.bit_policy)
        self.cut(prototype, found)

    def cut(self, prototype, found):
        """A cut network computes what the whole one does where cut channels are zero."""
        space = prototype.space("p")
        order = pruning.importance(prototype, found.weights)
        layers = lower(space, space.architecture(space.sample(1, seeds.stream(1, "cut"))[0]))
        sliced = pruning.pruned(prototype, found.weights, layers, order)
        small = network.with_weights(layers, found.input_shape, sliced)
        kept = prototype.kept(layers, order)
        zeroed = {}
        depthwise = {layer.name: layer.op == "depthwise" for layer in found.layers}
        for name, own in found.weights.items():
            gone = np.setdiff1d(np.arange(own["kernel"].shape[-1 - depthwise[name]]), kept[name])
            zeroed[name] = {part: value.copy() for part, value in own.items()}
            for part in ("gamma", "beta", "bias"):
                if part in own:
                    zeroed[name][part][gone] = 0.0
            if "gamma" not in own:
                kernel = zeroed[name]["kernel"]
                kernel[(..., gone, 0) if depthwise[name] else (..., gone)] = 0.0
        whole = network.with_weights(found.layers, found.input_shape, zeroed)
        x = keras_models.images()
        expected = whole(x, training=False).numpy()
        np.testing.assert_allclose(
            small(x, training=False), expected, rtol=0, atol=1e-4 * np.abs(expected).max()
        )
        # So does the same network of a supernet that has the prototype's weights.
        supernet = Supernet(space, seed=1, switchable=False)
        kept = pruning.pruned(prototype, found.weights, prototype.layers, order)
        supernet.take(prototype.layers, kept)
        statistics = {
            layer.name: (sliced[layer.name]["mean"], sliced[layer.name]["variance"])
            for layer in layers
            if layer.batch_norm
        }
        outputs = supernet.outputs(layers, tf.constant(x), quantized=False, statistics=statistics)
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    def test_a_function_that_returns_a_model(self):
        file = self.folder / "mine.py"
        file.write_text(
            "import keras\n"
            "def make():\n"
            "  return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name='only')])\n"
            "def fail():\n  raise OSError('no such network')\n"
            "class Dense(keras.layers.Dense):\n  pass\n"
            "def relu(x):\n  return x\n"
            "def foreign():\n"
            "  return keras.Sequential([keras.Input((4,)), Dense(3, name='mine')])\n"
            "def leave():\n  raise SystemExit(0)\n"
            "class Net(keras.Model):\n  pass\n"
            "def shared():\n"
            "  one, x = keras.layers.Dense(4, name='twice'), keras.Input((4,))\n"
            "  return keras.Model(x, keras.layers.Dense(3)(one(one(x))))\n"
            "def unbuilt():\n"
            "  return keras.Sequential([keras.layers.Dense(3)])\n"
            "def signs(last=lambda x, y: y - 1):\n"
            "  x = keras.Input((4,))\n"
            "  y = 2 - keras.layers.Dense(4)(x / 4)\n"
            "  return keras.Model(x, keras.layers.Dense(3)(last(x, y)))\n"
            "def difference():\n"
            "  return signs(lambda x, y: x - y)\n"
            "def inverse():\n"
            "  return signs(lambda x, y: 1 / y)\n"
            "def endless():\n"
            "  return signs(lambda x, y: y * float('inf'))\n"
            "def square():\n"
            "  return signs(lambda x, y: y ** 2)\n"
            "def nameless():\n"
            "  return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name='')])\n"
            "def reshaped():\n"
            "  x = keras.Input((4,))\n"
            "  return keras.Model(x, keras.ops.reshape(keras.layers.Dense(4)(x), (-1, 4)))\n"
            "def other_axis():\n"
            "  x = keras.Input((4, 4, 2))\n"
            "  y = keras.layers.Conv2D(2, 3)(x)\n"
            "  return keras.Model(x, keras.layers.Softmax(axis=1)(y))\n"
            "def odd():\n"
            "  one = keras.layers.Dense(3, activation=relu, name='odd')\n"
            "  return keras.Sequential([keras.Input((4,)), one])\n"
        )
        (node,) = keras_file.read(f"{file}:make").nodes
        self.assertEqual((node.name, node.kind, node.inputs), ("only", "Dense", (IN,)))
        with self.assertRaisesRegex(errors.CorruptFileError, r"fail\(\) failed: OSError: no such"):
            keras_file.read(f"{file}:fail")
        with self.assertRaisesRegex(errors.CorruptFileError, r"leave\(\) failed: SystemExit"):
            keras_file.read(f"{file}:leave")
        with self.assertRaisesRegex(errors.CorruptFileError, "it is a Net; functional and"):
            keras_file.read(f"{file}:Net")
        with self.assertRaisesRegex(errors.CorruptFileError, "'twice' is called 2 times: shared"):
            keras_file.read(f"{file}:shared")
        with self.assertRaisesRegex(errors.CorruptFileError, "was never built"):
            keras_file.read(f"{file}:unbuilt")
        # x / 4, 2 - y and y - 1, each as scale and offset.
        nodes = [n.config for n in keras_file.read(f"{file}:signs").nodes if n.kind == "Rescaling"]
        self.assertEqual(
            [(config["scale"], config["offset"]) for config in nodes],
            [(0.25, 0.0), (-1.0, 2.0), (1.0, -1.0)],
        )
        for function, message in (
            ("difference", "'subtract.*': - of two layers"),
            ("inverse", "'true_divide.*': a division by a layer"),
            ("endless", "'multiply.*' is called with what is no number"),
            ("square", "'power.*' .Power of keras"),
        ):
            with self.assertRaisesRegex(errors.CorruptFileError, message):
                keras_file.read(f"{file}:{function}")
        with self.assertRaisesRegex(errors.CorruptFileError, "a layer has no name"):
            keras_file.read(f"{file}:nameless")
        with self.assertRaisesRegex(errors.CorruptFileError, "'reshape.*' .Reshape of keras"):
            keras_file.read(f"{file}:reshaped")
        graph = keras_file.read(f"{file}:other_axis")
        with self.assertRaisesRegex(errors.CorruptFileError, "softmax over another axis"):
            prototype_network.read(graph, "other_axis")
        # What others call as Keras calls its own computes something else.
        for function, message in (("foreign", "'mine': Dense of"), ("odd", "'odd': relu of")):
            with self.assertRaisesRegex(errors.CorruptFileError, f"{message} .* none of Keras's"):
                keras_file.read(f"{file}:{function}")


class RefusalTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def zipped(self, **files: object) -> pathlib.Path:
        path = self.folder / "model.keras"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(f"{name}.json", json.dumps(content))
        return path

    def h5(self, config: object, write: Callable[[h5py.File], None] | None = None) -> pathlib.Path:
        """A file with that description, and what is written beside it."""
        path = self.folder / "model.h5"
        with h5py.File(path, "w", libver="latest") as file:
            if config is not None:
                file.attrs["model_config"] = config
            if write is not None:
                write(file)
        return path

    def refused(self, path: object, message: str) -> None:
        with self.assertRaisesRegex(errors.CorruptFileError, message):
            keras_file.read(path)

    def test_files_that_are_none(self):
        self.refused(self.folder / "nowhere.keras", "file is missing")
        (self.folder / "folder.keras").mkdir()
        self.refused(self.folder / "folder.keras", "is a folder, no file with a model")
        for version in "23":  # what a user made a class of
            own = {"class_name": "Net", "registered_name": "my>Net", "config": {}}
            path = self.zipped(metadata={"keras_version": version}, config=own)
            self.refused(path, "it is a Net; functional and sequential models are read")
        for suffix, message in (("keras", "no zip archive"), ("h5", "no .h5 file")):
            path = self.folder / f"text.{suffix}"
            path.write_text("words")
            self.refused(path, message)
        self.refused(self.zipped(metadata={}), "it has no config.json")
        with self.assertRaisesRegex(errors.UsageError, "give a .keras, .h5, .hdf5 file, or FILE"):
            keras_file.read("model.onnx")

    @parameterized.parameters(
        ({"class_name": "Lambda", "config": {"name": "x"}}, "'x' .Lambda.: such layers are not"),
        # CVE-2025-1550: a "layer" that is a function of any module, called on a constant.
        (
            {"class_name": "function", "module": "os", "config": "system", "name": "x"},
            "'os'.* .function.: such layers are not read",
        ),
        ({"class_name": "TFOpLambda", "config": {"function": "io.write_file"}}, "TFOpLambda"),
        (
            {"class_name": "Dense", "config": {"activation": {
                "class_name": "TFOpLambda", "config": {"function": "io.write_file"}}}},
            "names TFOpLambda .*write_file.*, which is never",
        ),
        # Other classes that call what they name, and names that lead elsewhere.
        (
            {"class_name": "Dense", "config": {"activation": {
                "class_name": "SlicingOpLambda", "config": {"function": "io.gfile.makedirs"}}}},
            "names SlicingOpLambda .*makedirs.*, which is never",
        ),
        (
            {"class_name": "Dense", "inbound_nodes": [{"args": [], "kwargs": {"training": {
                "module": "keras", "class_name": "layers.StringLookup",
                "config": {"vocabulary": "/etc/hostname"}}}}]},
            "names layers.StringLookup .*hostname.*, which is never",
        ),
        ({"class_name": "Dense", "config": {"activation": {"class_name": ["Dense"]}}},
         r"names \['Dense'\]"),
        # Keras makes layers of lists and tuples too.
        ({"class_name": "Functional", "config": {"layers": {
            "class_name": "__tuple__", "items": []}}}, "has layers that are no list"),
        ({"class_name": "Sequential", "config": [{"class_name": "Lambda"}]},
         "a Sequential without a description"),
        # Keras makes an object of whatever a call has.
        *(
            (
                {"class_name": "TFOpLambda", "config": {"name": "sum", "function": "math.add"},
                 "inbound_nodes": call},
                "'sum' is called with what is no number and no layer",
            )
            for call in (
                [["x", 0, 0, {"y": {"class_name": "Lambda", "config": {}}, "name": None}]],
                [["_CONSTANT_VALUE", -1, "ls", {"y": ["x", 0, 0], "name": None}]],
                [["x", 0, 0, {"y": 1.0, "name": None, "z": {"class_name": "Lambda"}}]],
                [["x", 0, 0, {"y": True}]],
                [["x", 0, 0, {"y": 10**400}]],
                [{"args": [1.0], "kwargs": {"y": {"class_name": "Lambda"}}}],
                None,
            )
        ),
        (
            {"class_name": "Dense", "config": {"activation": {
                "module": "os", "class_name": "function", "config": "system"}}},
            "names function 'system', which is never",
        ),
        (
            {"class_name": "Dense", "config": {"kernel_initializer": {
                "module": "subprocess", "class_name": "Popen", "config": {}}}},
            "names Popen 'subprocess', which is never",
        ),
        (
            {"class_name": "Dense", "config": {"name": "d", "kernel_regularizer": {
                "module": None, "class_name": "Mine", "registered_name": "my>Mine", "config": {}}}},
            "layer 'd' names 'my>Mine', which is never imported or run",
        ),
        ({"class_name": "Dense", "module": "mine", "config": {}}, "Dense of mine"),
        (
            {"class_name": "Dense", "inbound_nodes": [[["_CONSTANT_VALUE", -1, "ls", {}]]]},
            "a layer with a constant",
        ),
        # A part that Keras would compile: of the whole model it would not.
        (
            {"class_name": "Sequential", "config": {"layers": []}, "compile_config": {"loss": {
                "module": "keras.layers", "class_name": "Lambda", "config": {}}}},
            "a part of it, Sequential, is compiled",
        ),
    )  # fmt: skip
    def test_what_could_run_is_refused_before_keras_sees_it(self, layer, message):
        config = {"class_name": "Functional", "config": {"layers": [layer]}}
        for version in ("2.15.0", "3.8.0"):
            path = self.zipped(metadata={"keras_version": version}, config=config)
            self.refused(path, message)

    def test_a_factory_may_have_dataclasses(self):
        path = self.folder / "mine.py"
        path.write_text(
            "from __future__ import annotations\n"
            "import dataclasses, keras\n"
            "@dataclasses.dataclass\n"
            "class Widths:\n"
            "    first: int = 4\n"
            "def make():\n"
            "    k = keras.layers\n"
            "    return keras.Sequential([k.Input((3,)), k.Dense(Widths().first)])\n"
        )
        graph = keras_file.read(f"{path}:make")
        self.assertEqual([node.kind for node in graph.nodes], ["Dense"])
        self.assertNotEqual(graph.digest, keras_file.read(f"{path}:make").digest)  # other weights

    def test_a_description_without_end(self):
        path = self.zipped(metadata={}, config="x" * (17 << 20))
        self.refused(path, "config.json has 17,825,794 bytes")
        self.refused(self.h5(np.bytes_(b"x" * (17 << 20))), "model_config is no text of up to 16,")
        # Many texts that are one: each is an address in the file.
        self.refused(self.h5(np.full(1000, "{}", h5py.string_dtype())), "model_config is no text")

    def test_descriptions_that_are_none(self):
        self.refused(self.h5(None), "it holds weights alone, no model")
        self.refused(self.h5("{"), "its model_config is no JSON")
        self.refused(self.h5("[" * 30_000), "its model_config is no JSON")
        self.refused(self.zipped(metadata=[], config={}), "its metadata.json tells nothing")
        path = self.zipped(metadata={}, config={"a": 1})
        content = bytearray(path.read_bytes())
        content[content.index(b'{"a"')] ^= 1  # zip archives know their content by CRC-32
        path.write_bytes(content)
        self.refused(path, "it is no whole .keras file: Bad CRC-32")
        path = self.h5("{}")
        path.write_bytes(path.read_bytes()[:-100])
        self.refused(path, "it is no whole .h5 file")

    def test_what_unpacks_to_far_more(self):
        path = self.zipped(metadata={}, config={})
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("assets/zeros", bytes(100 << 20))
        self.assertLess(path.stat().st_size, 1 << 20)
        self.refused(path, r"it is no whole .keras file: \d+,\d+ bytes unpack to 104,857,")

    def test_arrays_that_are_not_there(self):
        def promised(file: h5py.File) -> None:
            file.create_dataset("zeros", (1 << 40,), np.float32, chunks=(1 << 20,))

        path = self.h5("{}", promised)
        self.refused(path, r"bytes unpack to 4,398,046,511,104")
        inner = path.read_bytes()
        path = self.zipped(metadata={}, config={})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("model.weights.h5", inner)
        self.refused(path, r"bytes unpack to 4,398,046,511,104")

    def test_arrays_that_lie_elsewhere(self):
        secret = self.folder / "secret"
        secret.write_bytes(bytes(8))

        def external(file: h5py.File) -> None:
            file.create_dataset("w", (8,), np.uint8, external=[(str(secret), 0, 8)])

        def linked(file: h5py.File) -> None:
            file["group/w"] = h5py.ExternalLink("other.h5", "w")

        def virtual(file: h5py.File) -> None:
            layout = h5py.VirtualLayout((8,), np.uint8)
            layout[:] = h5py.VirtualSource("other.h5", "w", (8,))
            file.create_virtual_dataset("w", layout)

        def circular(file: h5py.File) -> None:
            file["group/again"] = file.create_group("group")

        for write, message in (
            (external, "array /w lies in another file"),
            (linked, "group/w is a link"),
            (virtual, "array /w lies in another file"),
            (circular, "more than 100,000 arrays"),
        ):
            self.refused(self.h5("{}", write), message)

    def test_members_that_lead_out_of_it(self):
        for name in ("../out", "/etc/out", "a\\..\\..\\out"):
            path = self.zipped(metadata={}, config={})
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(name, "x")
            self.refused(path, "its member .* leads out of it")
        path = self.zipped(metadata={}, config={})
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(link, "/etc/passwd")
        self.refused(path, "its member 'link' leads out of it")


def graph(*nodes: Node, shape: tuple[int, ...] = (8, 8, 4)) -> KerasGraph:
    return KerasGraph(shape, nodes, nodes[-1].name)


def conv(name: str = "c", read: str = IN, channels: int = 4, **config: object) -> Node:
    kernel = int(config.get("kernel_size", 3))
    arrays = (np.ones((kernel, kernel, 4, channels)), np.zeros(channels))
    given = {"kernel_size": kernel, "strides": 1, "padding": "same", **config}
    return Node(name, "Conv2D", given, (read,), arrays)


class FormTest(parameterized.TestCase):
    @parameterized.parameters(
        (lambda: conv(dilation_rate=[2, 2]), "a dilated kernel"),
        (lambda: conv(data_format="channels_first"), "channels come first"),
        (lambda: conv(strides=[1, 2]), "stride that is not square"),
        (lambda: conv(padding="valid", kernel_size=9), "larger than the image"),
        (lambda: conv(activation="tanh"), "activation 'tanh' is not read"),
        (lambda: conv(groups=2), "in 2 groups"),
        (lambda: dataclasses.replace(conv(), arrays=(np.ones(3, np.int8),)), "no floats"),
        (lambda: Node("d", "Dense", {}, (IN,), (np.ones((3, 2)), np.ones(2))), "4 channels"),
        (lambda: Node("d", "Dense", {}, (IN,), (np.ones((4, 2)),) * 4), "4 arrays"),
        (lambda: Node("f", "Flatten", {"data_format": "channels_first"}, (IN,), ()), "first"),
        (lambda: Node("r", "LSTM", {}, (IN,), ()), "such layers are not read"),
        (lambda: Node("r", "ReLU", {"negative_slope": 0.1}, (IN,), ()), "a slope"),
        (lambda: Node("r", "ReLU", {"max_value": 1.0}, (IN,), ()), "ends at 1.0"),
        (lambda: Node("r", "Reshape", {"target_shape": [16, 16]}, (IN,), ()), "shape to"),
        (lambda: Node("a", "Concatenate", {"axis": 1}, (IN, IN), ()), "another axis"),
        (lambda: conv(activation={"class_name": "PReLU", "config": {}}), "'PReLU' is not read"),
        (lambda: conv(activation={"class_name": "ReLU", "config": {"max_value": 1}}), "ends at 1"),
    )  # fmt: skip
    def test_what_has_no_form_is_named(self, make, message):
        node = make()
        with self.assertRaisesRegex(
            errors.CorruptFileError, f"m.keras: layer '{node.name}' .{node.kind}.: .*{message}"
        ):
            prototype_network.read(graph(node), "m.keras")

    def test_an_activation_that_others_do_not_see_is_a_layer(self):
        # The sum reads the convolution before its ReLU.
        nodes = (
            conv(),
            Node("r", "ReLU", {}, ("c",), ()),
            Node("a", "Add", {}, ("c", "r"), ()),
        )
        found = prototype_network.read(graph(*nodes), "m")
        self.assertEqual(
            [(layer.name, layer.op, layer.activation) for layer in found.layers],
            [("c", "conv", "linear"), ("r_relu", "depthwise", "relu"), ("a", "add", "linear")],
        )
        np.testing.assert_array_equal(found.weights["r_relu"]["kernel"], np.ones((1, 1, 4, 1)))
        # Behind a dropout it is the same.
        late = (nodes[0], Node("d", "Dropout", {}, ("c",), ()),
                dataclasses.replace(nodes[1], inputs=("d",)), nodes[2])  # fmt: skip
        self.assertEqual(prototype_network.read(graph(*late), "m").layers, found.layers)
        vector = (
            Node("g", "GlobalAveragePooling2D", {}, (IN,), ()),
            Node("r", "ReLU", {}, ("g",), ()),
        )
        with self.assertRaisesRegex(
            errors.CorruptFileError, "'r' .ReLU.: relu of a vector follows"
        ):
            prototype_network.read(graph(*vector), "m")

    def test_zeros_where_a_file_has_them_too(self):
        # Of 8 pixels and stride 2 a 3x3 kernel sees none before and one behind.
        pad = Node("p", "ZeroPadding2D", {"padding": [[0, 1], [0, 1]]}, (IN,), ())
        nodes = (pad, conv(read="p", strides=2, padding="valid"))
        (layer,) = prototype_network.read(graph(*nodes), "m").layers
        self.assertEqual((layer.op, layer.stride, layer.out_size), ("conv", 2, (4, 4)))
        around = dataclasses.replace(pad, config={"padding": [[1, 1], [1, 1]]})
        # One before and one behind: of 7 pixels so does a file, of 8 there is a pad.
        (layer,) = prototype_network.read(graph(around, nodes[1], shape=(7, 7, 4)), "m").layers
        self.assertEqual((layer.valid, layer.out_size), (False, (4, 4)))
        zeros, layer = prototype_network.read(graph(around, nodes[1]), "m").layers
        self.assertEqual((zeros.op, zeros.offset, zeros.out_size), ("pad", 1, (10, 10)))
        self.assertEqual((layer.kernel, layer.valid, layer.out_size), (3, True, (4, 4)))
        far = dataclasses.replace(pad, config={"padding": [[3, 0], [3, 0]]})
        with self.assertRaisesRegex(errors.CorruptFileError, "'c' .*before it than .*: 3, 0, 3, 0"):
            prototype_network.read(graph(far, nodes[1]), "m")
        with self.assertRaisesRegex(errors.CorruptFileError, "'f' .*before it than .*: 0, 1, 0, 1"):
            prototype_network.read(graph(pad, Node("f", "Flatten", {}, ("p",), ())), "m")

    def test_zeros_that_lie_otherwise_are_a_pad(self):
        pad = Node("p", "ZeroPadding2D", {"padding": [[2, 2], [2, 2]]}, (IN,), ())
        pool = Node(
            "m", "MaxPooling2D", {"pool_size": 3, "strides": 2, "padding": "valid"}, ("p",), ()
        )
        # 8 pixels and four zeros are 12: windows of 3 have 5 places by steps of 2 and 4 by steps of
        # 3. Without a pad a file has 4 and 3.
        apart = conv(read="p", strides=3, padding="valid")
        same = conv(read="p")
        for node, op, size in ((pool, "max_pool", 5), (apart, "conv", 4), (same, "conv", 12)):
            found = prototype_network.read(graph(pad, node), "m")
            zeros, windows = found.layers
            self.assertEqual((zeros.op, zeros.offset, zeros.out_size), ("pad", 2, (12, 12)))
            self.assertEqual((windows.op, windows.kernel, windows.out_size), (op, 3, (size, size)))
        # What both read is padded once: the converter makes one of equal ops.
        both = (pad, dataclasses.replace(pool, config={**pool.config, "strides": 1}),
                conv(read="p", padding="valid"), Node("a", "Add", {}, ("m", "c"), ()))  # fmt: skip
        ops = [layer.op for layer in prototype_network.read(graph(*both), "m").layers]
        self.assertEqual(ops, ["pad", "max_pool", "conv", "add"])
        last = dataclasses.replace(pad, inputs=("c",))
        ends = prototype_network.read(graph(conv(), last), "m").layers[-1]
        self.assertEqual((ends.op, ends.out_size), ("pad", (12, 12)))

    def test_averages_of_zeros_and_without(self):
        pool = {"pool_size": 3, "strides": 1}
        around = Node("p", "ZeroPadding2D", {"padding": [[1, 1], [1, 1]]}, (IN,), ())
        # Windows that see all zeros count them, as those of a convolution that pads do.
        valid = Node("m", "AveragePooling2D", {**pool, "padding": "valid"}, ("p",), ())
        (layer,) = prototype_network.read(graph(around, valid), "m").layers
        self.assertEqual((layer.op, layer.out_size), ("depthwise", (8, 8)))
        # Beyond 10x10 pixels, of which the zeros are a part, nothing counts.
        same = dataclasses.replace(valid, config={**pool, "padding": "same"})
        ops = [layer.op for layer in prototype_network.read(graph(around, same), "m").layers]
        self.assertEqual(ops, ["pad", "average_pool"])

    def test_what_says_all_may_be_reshaped(self):
        first = conv(kernel_size=8, padding="valid", activation="softmax")  # of one pixel
        nodes = (first, Node("r", "Reshape", {"target_shape": [4]}, ("c",), ()))
        self.assertLen(prototype_network.read(graph(*nodes), "m").layers, 2)
        larger = (conv(activation="softmax"), Node("f", "Flatten", {}, ("c",), ()))
        with self.assertRaisesRegex(errors.CorruptFileError, "'c' .*'softmax' is not read"):
            prototype_network.read(graph(*larger), "m")

    def test_vectors_that_cannot_be_joined_are_named(self):
        dense = (np.ones((4, 4)), np.zeros(4))
        nodes = (
            Node("d", "Dense", {"activation": "sigmoid"}, (IN,), dense),
            Node("e", "Dense", {}, (IN,), dense),
            Node("a", "Concatenate", {}, ("d", "e"), ()),
            Node("o", "Dense", {}, ("a",), (np.ones((8, 2)), np.zeros(2))),
        )
        with self.assertRaisesRegex(
            errors.CorruptFileError, "'a' .Concatenate.: joins 'd_sigmoid', a vector with a range"
        ):
            prototype_network.read(graph(*nodes, shape=(4,)), "m")
        images = prototype_network.read(graph(*nodes), "m").layers  # are copied there
        self.assertEqual([layer.op for layer in images if layer.op != "dense"],
                         ["sigmoid", "depthwise", "concat"])  # fmt: skip

    def test_inputs_are_images_or_vectors(self):
        with self.assertRaisesRegex(errors.CorruptFileError, r"m: its inputs are \(8, 4\)"):
            prototype_network.read(graph(conv(), shape=(8, 4)), "m")
        # Matrices that are reshaped first are images of a channel, as MNIST's are in many examples.
        drop = Node("d", "Dropout", {}, (IN,), ())
        flat = Node("f", "Flatten", {}, ("d",), ())
        read = prototype_network.read(graph(drop, flat, shape=(8, 4)), "m")
        self.assertEqual((read.input_shape, read.layers[0].out_channels), ((8, 4, 1), 32))
        image = Node("r", "Reshape", {"target_shape": [8, 4, 1]}, (IN,), ())
        pool = Node("p", "MaxPooling2D", {"pool_size": 2, "padding": "valid"}, ("r",), ())
        read = prototype_network.read(graph(image, pool, shape=(8, 4)), "m")
        self.assertEqual([layer.out_size for layer in read.layers], [(4, 2)])

    def test_a_vector_has_no_gates(self):
        # Keras would multiply each example's vector with every other's image.
        vector = Node("g", "GlobalAveragePooling2D", {}, (IN,), ())
        image = Node("k", "GlobalAveragePooling2D", {"keepdims": True}, (IN,), ())
        product = Node("q", "Multiply", {}, ("g", "k"), ())
        with self.assertRaisesRegex(errors.CorruptFileError, "'q' .* differ in shape"):
            prototype_network.read(graph(vector, image, product), "m")

    def test_a_single_channel_is_convolved(self):
        # A dense layer of one input has no file.
        node = Node(
            "c", "Conv2D", {"kernel_size": 1, "strides": 1, "padding": "same"}, (IN,),
            (np.ones((1, 1, 1, 4)), np.zeros(4)),
        )  # fmt: skip
        (layer,) = prototype_network.read(graph(node, shape=(8, 8, 1)), "m").layers
        self.assertEqual((layer.op, layer.kernel), ("conv", 1))

    def test_windows_that_stay_within_the_image(self):
        # (8 - 3) // 2 + 1 = 3 of 8 pixels; a 1x1 kernel of stride 2 takes every second one.
        for kernel, stride, size, valid in ((3, 2, 3, True), (3, 1, 6, True), (1, 2, 4, False)):
            node = conv(padding="valid", strides=stride, kernel_size=kernel)
            (layer,) = prototype_network.read(graph(node), "m").layers
            self.assertEqual((layer.out_size, layer.valid), ((size, size), valid))

    def test_an_output_in_the_middle_is_refused(self):
        nodes = (conv("c"), conv("d", "c"))
        with self.assertRaisesRegex(errors.CorruptFileError, "of 'c', is not made by the last"):
            prototype_network.read(KerasGraph((8, 8, 4), nodes, "c"), "m")

    def test_the_heaviest_channels_come_first(self):
        kernel = np.zeros((3, 3, 4, 4))
        kernel[0, 0, 0] = [1.0, -3.0, 2.0, 0.5]
        node = dataclasses.replace(conv(), arrays=(kernel, np.zeros(4)))
        end = Node("f", "Flatten", {}, ("c",), ())
        dense = Node("o", "Dense", {}, ("f",), (np.ones((256, 2)), np.zeros(2)))
        found = prototype_network.read(graph(node, end, dense), "m")
        prototype = Prototype(found.layers, found.input_shape)
        order = pruning.importance(prototype, found.weights)
        np.testing.assert_array_equal(order["c"], [1, 2, 0, 3])


if __name__ == "__main__":
    absltest.main()
