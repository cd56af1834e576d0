"""A damaged or altered bundle is refused by the name of a file, or answers."""

import json
import pathlib
import shutil
from typing import Any

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests import strategies
from tests.frugal import Frugal
from tfgen import bundle as bundles
from tfgen import seeds, workdir
from tfgen.cost.budget import Budget
from tfgen.space.encoding import Encoding

GOLDEN = pathlib.Path(__file__).parent / "testdata" / "golden" / "0.1.0-unversioned"


class BundleTest(Frugal):
    """Bundles of both kinds, of which a file is damaged."""

    BUNDLES = ("encoder", "prototype")

    def copy(self, name: str) -> pathlib.Path:
        folder = self.folder / name
        if not folder.exists():
            shutil.copytree(GOLDEN / name, folder, copy_function=shutil.copyfile)
        return folder

    @parameterized.parameters(*BUNDLES)
    def test_a_damaged_file_is_named(self, name):
        folder = self.copy(name)
        files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]

        @strategies.examples(120)
        @hypothesis.given(st.sampled_from(sorted(files)), st.data())
        def check(file, data):
            content = (GOLDEN / name / file).read_bytes()
            changed = data.draw(strategies.damaged(content))
            hypothesis.assume(changed != content)
            (folder / file).write_bytes(changed)
            try:
                if self.loaded(lambda: bundles.load(folder), str(file)) is not None:
                    # A manifest that reads the same: its blanks are not in its hash.
                    self.assertEqual(json.loads(changed), json.loads(content))
            finally:
                (folder / file).write_bytes(content)

        check()

    @parameterized.parameters(*BUNDLES)
    def test_altered_files_with_the_right_hash(self, name):
        folder = self.copy(name)
        manifest = json.loads((folder / workdir.MANIFEST).read_bytes())
        documents = {"space.json": json.loads((folder / "space.json").read_bytes())}
        documents["manifest.json"] = {k: manifest[k] for k in ("config", "data", "parents", "seed")}

        @strategies.examples(120)
        @hypothesis.given(st.sampled_from(sorted(documents)), st.data())
        def check(file, data):
            changed = data.draw(strategies.altered(documents[file]))
            told = documents["manifest.json"]
            if file == "manifest.json":
                hypothesis.assume(isinstance(changed, dict))
                told = changed
            else:
                (folder / file).write_bytes(strategies.json_bytes(changed))
            try:
                _seal(folder, told)
                self.usable(folder)
            finally:
                workdir.write_json(folder / "space.json", documents["space.json"])

        check()

    @parameterized.parameters(*BUNDLES)
    def test_altered_arrays_with_the_right_hash(self, name):
        folder = self.copy(name)
        manifest = json.loads((folder / workdir.MANIFEST).read_bytes())
        files = sorted(
            p.relative_to(folder) for p in folder.rglob("*.npz") if p.stat().st_size > 22
        )

        @strategies.examples(120)
        @hypothesis.given(st.sampled_from(files), st.data())
        def check(file, data):
            content = (GOLDEN / name / file).read_bytes()
            arrays = data.draw(_altered_arrays(workdir.read_arrays(GOLDEN / name / file)))
            np.savez(folder / file, **arrays)
            try:
                _seal(folder, manifest)
                self.usable(folder)
            finally:
                (folder / file).write_bytes(content)

        check()

    @strategies.examples(120)
    @hypothesis.given(st.data())
    def test_damaged_archives(self, data):
        path = self.folder / "a.npz"
        path.write_bytes(
            data.draw(strategies.damaged((GOLDEN / "encoder/surrogate.npz").read_bytes()))
        )
        self.loaded(lambda: workdir.read_arrays(path), path.name)

    def usable(self, folder: pathlib.Path) -> None:
        """A bundle that is loaded answers."""
        with np.errstate(all="ignore"):
            bundle = self.loaded(lambda: bundles.load(folder), str(folder))
            if bundle is None:
                return
            drawn = bundle.space.sample(16, seeds.stream(0))
            bundle.cost_model.costs(drawn)
            bundle.surrogate.predict(drawn)
            Encoding(bundle.space)
            for generator in bundle.generators.values():
                (proposals,) = generator.propose([Budget({"macs": 50.0})], 8, 0)
                bundle.space.canonical(proposals.choices)


def _seal(folder: pathlib.Path, told: dict[str, Any]) -> None:
    """Writes a manifest whose hashes are right, whatever it tells."""
    path = folder / workdir.MANIFEST
    files = (p for p in folder.rglob("*") if p.is_file() and p != path)
    manifest = {k: v for k, v in told.items() if k not in ("sha256", "files")}
    manifest["files"] = {p.relative_to(folder).as_posix(): workdir.sha256(p) for p in files}
    manifest["sha256"] = workdir._own_hash(manifest)
    path.write_text(json.dumps(manifest))


@st.composite
def _altered_arrays(draw: st.DrawFn, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of which one is gone, another's, of another shape or kind, or of odd numbers."""
    made = dict(arrays)
    name = draw(st.sampled_from(sorted(arrays)))
    array = made[name]
    how = draw(st.sampled_from(["gone", "another's", "cut", "grown", "kind", "number", "flat"]))
    if how == "gone":
        del made[name]
    elif how == "another's":
        made[name] = arrays[draw(st.sampled_from(sorted(arrays)))]
    elif how == "cut" and array.ndim:
        made[name] = array[: draw(st.integers(0, len(array)))]
    elif how == "grown":
        made[name] = np.stack([array] * draw(st.integers(1, 3)))
    elif how == "kind":
        kind = draw(st.sampled_from(["i1", "u8", "f2", "c16", "U8", "O", "b1"]))
        made[name] = array.astype(kind)
    elif how == "flat":
        made[name] = array.ravel()
    elif array.size:
        flat = array.astype(np.float64).ravel()
        number = draw(st.sampled_from([np.nan, np.inf, 1e300, -1e300, 0.0, -1.0, 2.0**40]))
        flat[draw(st.integers(0, flat.size - 1))] = number
        made[name] = flat.reshape(array.shape)
    return made


if __name__ == "__main__":
    absltest.main()
