"""Imports go only downward, and what must stay out of a module is out of it.

Reads the sources, runs none of them.
"""

import ast
import pathlib
from collections.abc import Iterator, Mapping

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("configs", "tests", "tfgen", "tools")

# Lowest first. A module belongs to the entry that names it, or else its nearest package, and may
# import from its own layer and those above it in this list.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("tfgen",),  # Only tfgen/__init__.py: every module of the package is named below.
    ("tfgen.errors",),
    ("tfgen.seeds",),
    ("tfgen.workdir",),
    ("tfgen.tables",),
    ("tfgen.child_process",),
    # What every program does around its main; programs below the top use it too.
    ("tfgen.program",),
    ("tfgen.space",),
    ("tfgen.cost",),
    # Importing the record imports its package, so the package's __init__.py is as low.
    ("tfgen.evidence.record", "tfgen.evidence.reactions", "tfgen.evidence.__init__"),
    ("tfgen.nets",),
    ("tfgen.training",),
    ("tfgen.evidence",),
    ("tfgen.generators",),
    ("tfgen.selection",),
    ("tfgen.experiment",),
    ("tfgen.learning",),
    ("tfgen.deployment",),
    ("tfgen.bundle",),
    ("tfgen.supernets",),
    ("tfgen.making",),
    ("tfgen.prototypes",),
    ("tfgen.pipeline",),
    ("tfgen.training_flags",),
    # The programs.
    (
        "tfgen.collect",
        "tfgen.export_generator",
        "tfgen.fit",
        "tfgen.generate",
        "tfgen.serve",
        "tfgen.train",
        "tfgen.train_supernet",
    ),
)

# Answers do not wait for TensorFlow: these import none of it, not even inside a function.
WITHOUT_TENSORFLOW = (
    "tfgen.__init__",
    "tfgen.errors",
    "tfgen.seeds",
    "tfgen.workdir",
    "tfgen.space",
    "tfgen.child_process",
    "tfgen.cost",
    "tfgen.deployment.android",
    "tfgen.deployment.benchmark_delegates",
    "tfgen.deployment.benchmark_output",
    "tfgen.deployment.benchmark_result",
    "tfgen.deployment.measurement",
    "tfgen.deployment.probe",
    "tfgen.deployment.served",
    "tfgen.deployment.tflite_file",
    "tfgen.deployment.tflite_writer",
    "tfgen.evidence.__init__",
    "tfgen.evidence.record",
    "tfgen.selection",
    "tfgen.tables",
    "tfgen.program",
)
TENSORFLOW = frozenset(
    {
        "keras",
        "keras_tuner",
        "tensorflow",
        "tensorflow_datasets",
        "tensorflow_model_optimization",
        "tf_keras",
    }
)

# One module decides which Keras is in use.
KERAS = frozenset({"keras", "tf_keras"})
KERAS_MODULE = "tfgen.nets.keras_compat"

# Loading such a file runs code out of it.
UNSAFE_MODULES = frozenset({"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"})
SAFE_ARGUMENTS = {"allow_pickle": False, "safe_mode": True}


def module_name(path: pathlib.PurePath) -> str:
    """tfgen/space/layers.py -> tfgen.space.layers; packages keep their `__init__`."""
    return ".".join(path.with_suffix("").parts)


def read_sources(root: pathlib.Path) -> dict[str, ast.Module]:
    return {
        module_name(path.relative_to(root)): ast.parse(path.read_text(), str(path))
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
    }


def nodes(tree: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    """All nodes below `tree`; with `at_import` only those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if at_import:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
        yield node
        yield from nodes(node, at_import)


def imports(module: str, tree: ast.Module, at_import: bool = False) -> Iterator[tuple[int, str]]:
    """Line and full name of all that a module imports; `from a import b` gives `a.b`."""
    for node in nodes(tree, at_import):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                package = module.split(".")[:-level] if level else []
                parts = [*package, *([source] if source else [])]
                yield from ((node.lineno, ".".join([*parts, alias.name])) for alias in names)
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                called = ast.unparse(function)
                if called == "__import__" or called.split(".")[-1] == "import_module":
                    yield node.lineno, name


def is_within(module: str, entry: str) -> bool:
    return module == entry or module.startswith(f"{entry}.")


def layer_of(module: str) -> int | None:
    """The index of a module's layer, by the longest entry that holds it; None where none does."""
    if module == "tfgen.__init__":
        return 0
    held = [
        (len(entry), index)
        for index, layer in enumerate(LAYERS)
        for entry in layer
        if entry != "tfgen" and is_within(module, entry)
    ]
    return max(held)[1] if held else None


def target_of(name: str, known: Mapping[str, ast.Module]) -> str:
    """The module that an imported name lives in: itself, its package, or the module around it."""
    while name:
        for candidate in (name, f"{name}.__init__"):
            if candidate in known:
                return candidate
        name = name.rpartition(".")[0]
    return ""


def unknown_modules(sources: Mapping[str, ast.Module]) -> list[str]:
    return [name for name in sources if is_within(name, "tfgen") and layer_of(name) is None]


def upward_imports(sources: Mapping[str, ast.Module]) -> list[str]:
    found = []
    for module, tree in sources.items():
        layer = layer_of(module) if is_within(module, "tfgen") else None
        if layer is None:
            continue
        for line, name in imports(module, tree):
            target = target_of(name, sources) if is_within(name, "tfgen") else ""
            target_layer = layer_of(target) if target else None
            if target_layer is not None and target_layer > layer:
                found.append(f"{module}:{line} imports {target}, which is in a layer above it")
    return found


def tensorflow_imports(sources: Mapping[str, ast.Module]) -> list[str]:
    """TensorFlow in modules that must not have it, of their own or through what they import."""
    found = []
    for start in sources:
        if not any(is_within(start, entry) for entry in WITHOUT_TENSORFLOW):
            continue
        pending, seen = [start], {start}
        while pending:
            module = pending.pop()
            for line, name in imports(module, sources[module], at_import=module != start):
                if name.partition(".")[0] in TENSORFLOW:
                    found.append(f"{start} imports {name} at {module}:{line}")
                target = target_of(name, sources) if is_within(name, "tfgen") else ""
                if target and target not in seen:
                    seen.add(target)
                    pending.append(target)
    return found


def keras_imports(sources: Mapping[str, ast.Module]) -> list[str]:
    return [
        f"{module}:{line} imports {name}: take keras from {KERAS_MODULE}"
        for module, tree in sources.items()
        if module != KERAS_MODULE
        for line, name in imports(module, tree)
        if name.partition(".")[0] in KERAS
    ]


def unsafe_loading(sources: Mapping[str, ast.Module]) -> list[str]:
    found = []
    for module, tree in sources.items():
        for line, name in imports(module, tree):
            if name.partition(".")[0] in UNSAFE_MODULES:
                found.append(f"{module}:{line} imports {name}")
        for node in ast.walk(tree):
            match node:
                case ast.keyword(arg=str(argument), value=value) if argument in SAFE_ARGUMENTS:
                    safe = SAFE_ARGUMENTS[argument]
                    if not (isinstance(value, ast.Constant) and value.value is safe):
                        found.append(f"{module}:{value.lineno} passes {argument} other than {safe}")
                case ast.Attribute(attr="enable_unsafe_deserialization", lineno=line):
                    found.append(f"{module}:{line} calls enable_unsafe_deserialization")
    return found


class ProjectTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.sources = read_sources(ROOT)

    def test_every_module_has_a_layer(self) -> None:
        self.assertIn("tests.layering_test", self.sources)
        self.assertEmpty(
            unknown_modules(self.sources),
            "add these to LAYERS in tests/layering_test.py, just above all that they import",
        )

    def test_imports_go_downward(self) -> None:
        self.assertEmpty(upward_imports(self.sources))

    def test_no_tensorflow_where_answers_are_made(self) -> None:
        self.assertEmpty(tensorflow_imports(self.sources))

    def test_one_module_chooses_keras(self) -> None:
        self.assertEmpty(keras_imports(self.sources))

    def test_loading_a_file_runs_no_code_from_it(self) -> None:
        self.assertEmpty(unsafe_loading(self.sources))


def parse(**modules: str) -> dict[str, ast.Module]:
    """`a__b="code"` is the module tfgen.a.b."""
    return {f"tfgen.{name.replace('__', '.')}": ast.parse(code) for name, code in modules.items()}


class RulesTest(parameterized.TestCase):
    """The rules above find what they are there to find."""

    def test_unknown_module(self) -> None:
        sources = parse(errors="", helpers="", space__extra="")
        sources["tfgen.__init__"] = ast.parse("")
        self.assertEqual(unknown_modules(sources), ["tfgen.helpers"])

    @parameterized.parameters(
        "import tfgen.cost.budget",
        "from tfgen.cost import budget",
        "from tfgen.cost.budget import Budget",
        "from ..cost import budget",
        "def f():\n  from tfgen.cost.budget import Budget",
        "import importlib\nimportlib.import_module('tfgen.cost.budget')",
    )
    def test_upward(self, code: str) -> None:
        sources = parse(space__layers=code, cost__budget="from tfgen.space import layers")
        self.assertLen(upward_imports(sources), 1)

    def test_the_record_is_below_the_rest_of_its_package(self) -> None:
        self.assertEmpty(
            upward_imports(parse(nets__network="import tfgen.evidence.record", evidence__record=""))
        )
        self.assertLen(
            upward_imports(parse(nets__network="import tfgen.evidence.fit", evidence__fit="")), 1
        )

    @parameterized.parameters(
        "import tensorflow as tf",
        "def f():\n  import tensorflow as tf",
        "from tensorflow.lite import python",
        "import tfgen.generators.base",
    )
    def test_tensorflow(self, code: str) -> None:
        sources = parse(selection=code, generators__base="import tensorflow")
        self.assertLen(tensorflow_imports(sources), 1)

    def test_tensorflow_that_waits_inside_another_module_is_allowed(self) -> None:
        sources = parse(
            selection="import tfgen.generators.base",
            generators__base="def fit():\n  import tensorflow",
        )
        self.assertEmpty(tensorflow_imports(sources))

    def test_keras(self) -> None:
        sources = parse(nets__blocks="import tf_keras", nets__keras_compat="import tf_keras")
        self.assertLen(keras_imports(sources), 1)

    @parameterized.parameters(
        ("import pickle", 1),
        ("numpy.load(f, allow_pickle=True)", 1),
        ("numpy.load(f, allow_pickle=x)", 1),
        ("numpy.load(f, allow_pickle=False)", 0),
        ("load_model(f, safe_mode=False)", 1),
        ("load_model(f)", 0),
        ("keras.config.enable_unsafe_deserialization()", 1),
    )
    def test_unsafe_loading(self, code: str, count: int) -> None:
        self.assertLen(unsafe_loading(parse(workdir=code)), count)


if __name__ == "__main__":
    absltest.main()
