"""The sources pass the linter, the formatter and the type checker, as pyproject.toml sets them up.

`ruff check --fix . && ruff format .` in the repository's root mends most of what this finds.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

from absl.testing import absltest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("configs", "tests", "tfgen", "tools")


def python_files(root: pathlib.Path) -> set[pathlib.Path]:
    """The project's Python files below `root`, as paths relative to it."""
    return {path.relative_to(root) for folder in FOLDERS for path in (root / folder).rglob("*.py")}


class StyleTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        # A copy, since Bazel hands the sources over as links, which ruff passes over.
        self.copy = pathlib.Path(self.create_tempdir().full_path)
        for path in {pathlib.Path("pyproject.toml"), *python_files(ROOT)}:
            (self.copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, self.copy / path)

    def assert_passes(self, *command: str) -> None:
        environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-m", *command],
            check=False,
            cwd=self.copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.assertEqual(done.returncode, 0, f"{' '.join(command)}:\n{done.stdout}")

    def test_linter(self) -> None:
        self.assert_passes("ruff", "check", "--no-cache", "--output-format=concise", ".")

    def test_formatter(self) -> None:
        self.assert_passes("ruff", "format", "--no-cache", "--diff", ".")

    def test_types(self) -> None:
        settings = tomllib.loads((self.copy / "pyproject.toml").read_text())["tool"]["mypy"]
        present = [path for path in settings["files"] if (self.copy / path).exists()]
        if not present:
            self.skipTest("none of the type-checked files exists yet")
        self.assert_passes("mypy", "--cache-dir", str(self.copy / ".mypy_cache"), *present)

    def test_no_source_is_left_out(self) -> None:
        # Bazel's link to pyproject.toml leads to the checkout, where a package that tests/BUILD
        # does not list can be seen.
        checkout = (ROOT / "pyproject.toml").resolve().parent
        missing = sorted({str(path.parent) for path in python_files(checkout) - python_files(ROOT)})
        self.assertEmpty(missing, "add //FOLDER:sources of these to ALL_SOURCES in tests/BUILD")


if __name__ == "__main__":
    absltest.main()
