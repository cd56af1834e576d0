"""What is refused of files of others, row by row of docs/untrusted_input.md, and what it takes."""

import contextlib
import gzip
import hashlib
import io
import json
import pathlib
import shutil
import sqlite3
import tracemalloc
import zipfile
from typing import Any
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tests.frugal import Frugal
from tests.space.small import small_space
from tfgen import bundle as bundles
from tfgen import errors, program, workdir
from tfgen.cost import adapted_device, public_tables
from tfgen.cost.budget import Budget
from tfgen.evidence.record import RecordStore
from tfgen.space import catalog, search_space
from tfgen.space.architecture import Architecture
from tfgen.space.encoding import Encoding
from tfgen.space.search_space import Decision, SearchSpace, When

GOLDEN = pathlib.Path(__file__).parent / "testdata" / "golden" / "0.1.0-unversioned"
LITTLE_BYTES = 32 << 20  # what refusing may take


class JsonTest(Frugal):
    @parameterized.parameters(
        ('{"a": NaN}', "NaN is no finite number"),
        ("[Infinity]", "Infinity is no finite number"),
        ("[-Infinity]", "-Infinity is no finite number"),
        ("[1e999]", "1e999 is no finite number"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "'c' is there twice"),
        (lambda: "[" * 100_000, "nested too deeply"),
        (lambda: '{"a":' * 100_000, "nested too deeply"),
        (lambda: "9" * 5000, "a whole number has 5,000 digits"),
        ("-99999999999999999999", "a whole number has 21 digits"),
        ('"\\ud800"', "surrogates not allowed"),
        ('{"\\uDfff": 1}', "surrogates not allowed"),
        ("１", "Expecting value"),
        ("", "Expecting value"),
    )
    def test_refused(self, text, message):
        path = self.folder / "a.json"
        path.write_text(text if isinstance(text, str) else text())
        with self.assertRaisesRegex(errors.CorruptFileError, f"a.json: not .* JSON .*({message})"):
            workdir.read_json(path)

    def test_what_is_read(self):
        path = self.folder / "a.json"
        path.write_text(
            '{"seed": 18446744073709551615, "b": [1e308, -0.5], "\\ud83d\\ude00": null}'
        )
        self.assertEqual(
            workdir.read_json(path), {"seed": 2**64 - 1, "b": [1e308, -0.5], "\U0001f600": None}
        )

    def test_a_file_without_end_is_not_read(self):
        path = self.folder / "a.json"
        with path.open("wb") as file:
            file.truncate(1 << 33)  # of which nothing lies on the disk
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        with self.assertRaisesRegex(errors.CorruptFileError, "has more than 1,048,576 bytes"):
            workdir.read_json(path, workdir.SMALL_JSON_BYTES)
        with self.assertRaisesRegex(errors.CorruptFileError, "has more than 16,777,216 bytes"):
            workdir.read_json(path)
        self.assertLess(tracemalloc.get_traced_memory()[1], LITTLE_BYTES)


class ArraysTest(Frugal):
    def refused(self, message: str) -> None:
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        with self.assertRaisesRegex(
            errors.CorruptFileError, f"a.npz: not readable as .npz .*{message}"
        ):
            workdir.read_arrays(self.folder / "a.npz")
        self.assertLess(tracemalloc.get_traced_memory()[1], LITTLE_BYTES)

    def write(self, header: bytes, content: bytes, times: int = 1) -> None:
        """An archive with one array, its content repeated and packed."""
        path = self.folder / "a.npz"
        packed = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        with packed as archive, archive.open("x.npy", "w") as file:
            file.write(header)
            for _ in range(times):
                file.write(content)

    def header(self, shape: tuple[int, ...], kind: str = "<f4") -> bytes:
        text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
        return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n"

    def test_a_few_bytes_that_unpack_to_many(self):
        self.write(self.header((100 << 18,)), bytes(1 << 20), times=100)
        self.assertLess((self.folder / "a.npz").stat().st_size, 1 << 18)
        self.refused(r"\d{6} bytes unpack to 104,857,\d\d\d|\d\d\d,\d\d\d bytes unpack to 104,857")

    @parameterized.parameters(
        ((1 << 40,), "<f4", "has not the bytes of .1099511627776,. of float32"),
        ((3,), "<f4", "has not the bytes of .3,. of float32"),
        ((-1, -4), "<f4", ""),
        ((4,), "|O", "holds object, no numbers"),
        ((4,), "<U1", "holds <U1, no numbers"),
        ((2,), "<c8", "holds complex64, no numbers"),
        ((0, 1 << 60), "<f4", "has not the bytes"),
    )
    def test_headers_that_are_not_true(self, shape, kind, message):
        self.write(self.header(shape, kind), bytes(16))
        self.refused(message)

    def test_a_true_header(self):
        self.write(self.header((2, 2)), bytes(16))
        np.testing.assert_array_equal(
            workdir.read_arrays(self.folder / "a.npz")["x"], np.zeros((2, 2), np.float32)
        )

    def test_members_of_other_kinds(self):
        self.write(b"", b"no array")
        self.refused("magic string")
        with self.assertWarns(UserWarning), zipfile.ZipFile(self.folder / "a.npz", "w") as archive:
            for _ in range(2):
                archive.writestr("x.npy", self.header((0,)))
        self.refused("a member is there twice")


class ManifestTest(Frugal):
    def written(self) -> dict[str, Any]:
        (self.folder / "a").mkdir(exist_ok=True)
        (self.folder / "a" / "inside").write_text("x")
        return workdir.write_manifest(self.folder / "a", config={}, seed=0, data={}, parents={})

    def listing(self, name: str, sha256: str) -> pathlib.Path:
        """A manifest that lists a file, its own hash right."""
        manifest = {**self.written(), "files": {name: sha256}}
        manifest["sha256"] = workdir._own_hash(manifest)
        workdir.write_json(self.folder / "a" / workdir.MANIFEST, manifest)
        return self.folder / "a"

    @parameterized.parameters(
        "../outside", "a/../../outside", "/etc/hostname", "", ".", "./inside", "a//b", "a/", ".."
    )
    def test_names_that_lead_out(self, name):
        (self.folder / "outside").write_text("x")
        folder = self.listing(name, workdir.sha256(self.folder / "outside"))
        with self.assertRaisesRegex(
            errors.CorruptFileError, "manifest.json: lists .* no file with"
        ):
            workdir.read_manifest(folder)

    @parameterized.parameters("x" * 5000, "\x00", "in\nside")
    def test_names_that_no_file_has(self, name):
        with self.assertRaisesRegex(errors.CorruptFileError, "a/"):
            workdir.read_manifest(self.listing(name, "0"))

    def test_a_link_brings_no_other_content(self):
        secret = self.folder / "secret"
        secret.write_text("y")
        folder = self.listing("inside", hashlib.sha256(b"x").hexdigest())
        (folder / "inside").unlink()
        (folder / "inside").symlink_to(secret)
        with self.assertRaisesRegex(errors.CorruptFileError, "inside: sha256 differs"):
            workdir.read_manifest(folder)
        (folder / "inside").unlink()
        (folder / "inside").symlink_to("/dev/zero")  # would never end
        with self.assertRaisesRegex(errors.CorruptFileError, "inside: file is missing"):
            workdir.read_manifest(folder)

    def test_what_it_lacks_is_said(self):
        for name in ("config", "data", "parents", "files"):
            manifest = self.written()
            manifest[name] = [1]
            manifest["sha256"] = workdir._own_hash(manifest)
            workdir.write_json(self.folder / "a" / workdir.MANIFEST, manifest)
            with self.assertRaisesRegex(errors.CorruptFileError, "manifest.json: is no manifest"):
                workdir.read_manifest(self.folder / "a")


class SpaceTest(Frugal):
    """Spaces that would take more memory or time than there is."""

    def space(self, *decisions: Decision) -> SearchSpace:
        return SearchSpace("s", (3,), decisions, (), "litert-2.3")

    def test_many_decisions_values_and_conditions(self):
        many = [Decision(f"d{n}", (1,)) for n in range(search_space.MOST_DECISIONS + 1)]
        with self.assertRaisesRegex(ValueError, "4,001 decisions and 0 stages, 4,000 and"):
            self.space(*many)
        with self.assertRaisesRegex(ValueError, "1,025 values, 1,024 are allowed"):
            Decision("d", tuple(range(1025)))
        chain = [Decision("d0", (1, 2))]
        chain += [Decision(f"d{n}", (1, 2), When(f"d{n - 1}", (1, 2))) for n in range(1, 34)]
        with self.assertRaisesRegex(ValueError, "'d33': stands upon 33 conditions, 32 are allowed"):
            self.space(*chain)
        # Counted in a moment, not one by one: each of two values has two below, 2**33 in all.
        self.assertEqual(self.space(*chain[:33]).size(), 2**33)

    def test_rows_that_are_too_long(self):
        words = tuple(map(str, range(1024)))
        wide = self.space(*[Decision(f"d{n}", words) for n in range(33)])
        with self.assertRaisesRegex(
            ValueError, "too large to be encoded: 33 decisions of up to 1,"
        ):
            Encoding(wide)

    @parameterized.parameters(
        ({"input_shape": [0]}, "an example has features"),
        ({"input_shape": [1, 2]}, "an example has features"),
        ({"input_shape": [True]}, None),
        ({"name": 5}, "are texts"),
        ({"decisions": [{"name": "d", "values": [True]}]}, "values are numbers or texts"),
        ({"decisions": [{"name": "d", "values": [[1]]}]}, "values are numbers or texts"),
        ({"decisions": [{"name": "d", "values": [None]}]}, "values are numbers or texts"),
        (
            {"stages": [{"name": "s", "block": "dense", "options": {"units": [1]}}]},
            "option 'units'",
        ),
        ({"decisions": "d"}, None),
        ({"stages": 3}, None),
    )
    def test_other_kinds(self, change, message):
        document = {**small_space().to_json(), **change}
        with self.assertRaisesRegex(errors.MALFORMED, message or ""):
            SearchSpace.from_json(document)

    def test_a_bundle_with_such_a_space_names_the_file(self):
        folder = self.folder / "bundle"
        shutil.copytree(GOLDEN / "encoder", folder, copy_function=shutil.copyfile)
        manifest = json.loads((folder / workdir.MANIFEST).read_bytes())
        space = small_space().to_json()
        space["decisions"] = [{"name": f"d{n}", "values": [1, 2]} for n in range(9_000)]
        for told, message in ((space, "9,000 decisions"), ("x" * (1 << 20), "more than 1,048,576")):
            workdir.write_json(folder / "space.json", told)
            named = {"config": manifest["config"], "data": manifest["data"]}
            workdir.write_manifest(folder, **named, seed=0, parents={})
            with self.assertRaisesRegex(errors.CorruptFileError, f"space.json: .*{message}"):
                bundles.load(folder)


class ExamplesTest(Frugal):
    @parameterized.parameters(
        ({"train_x": np.zeros((8, 5), np.float32)}, r"train: \(5,\) with float32 \(1,\) are no"),
        ({"test_y": np.zeros((8, 1), np.int8)}, r"test: \(4,\) with int64 \(1,\) are no examples"),
        ({"validation_y": np.zeros(8, np.float32)}, r"validation: \(4,\) with float32 \(\) are no"),
        ({"train_y": np.zeros((7, 1), np.float32)}, "a split needs equal, positive counts: 8, 7"),
    )
    def test_examples_of_something_else(self, change, message):
        folder = self.folder / "bundle"
        shutil.copytree(GOLDEN / "prototype", folder, copy_function=shutil.copyfile)
        manifest = json.loads((folder / workdir.MANIFEST).read_bytes())
        arrays = workdir.read_arrays(folder / "examples.npz")
        workdir.write_arrays(folder / "examples.npz", {**arrays, **change})
        named = {"config": manifest["config"], "data": manifest["data"]}
        workdir.write_manifest(folder, **named, seed=0, parents={})
        with self.assertRaisesRegex(
            errors.CorruptFileError, f"(examples|supernet).npz: .*{message}"
        ):
            bundles.load(folder)


class TeacherTest(Frugal):
    @parameterized.parameters(
        ({}, True, "teacher.npz has not the kernels of supernet.npz"),
        ({"hidden_1/kernel": np.zeros((4, 1))}, True, "teacher.npz has not the kernels"),
        ({"hidden_1/kernel": np.full((4, 8), np.nan)}, True, "of teacher.npz has numbers that are"),
        ({}, False, None),  # what the manifest does not tell of is not read
    )
    def test_teachers_of_something_else(self, change, told, message):
        folder = self.folder / "bundle"
        shutil.copytree(GOLDEN / "prototype", folder, copy_function=shutil.copyfile)
        manifest = json.loads((folder / workdir.MANIFEST).read_bytes())
        named = {"config": manifest["config"], "data": manifest["data"]}
        if told:
            named["config"]["answers"]["teacher"] = True
            with self.assertRaisesRegex(errors.CorruptFileError, "files .'teacher.npz'"):
                workdir.write_manifest(folder, **named, seed=0, parents={})
                bundles.load(folder)
        workdir.write_arrays(folder / "teacher.npz", {"other": np.zeros(1), **change})
        workdir.write_manifest(folder, **named, seed=0, parents={})
        if message is None:
            self.assertIsNone(bundles.load(folder).shared.teacher)
            return
        with self.assertRaisesRegex(errors.CorruptFileError, message):
            bundles.load(folder)


class ComplaintTest(Frugal):
    def test_a_name_without_end_is_a_line(self):
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            program.complain(errors.CorruptFileError("x.json: " + "y" * 10**6))
        self.assertEqual(told.getvalue(), f"error: x.json: {'y' * 1992}...\n")


class ArchitectureTest(Frugal):
    @parameterized.parameters(
        ([0, 0, 0, 0, 0, 9], "decision 'bits_output' of space 'small': index 9 is not in 0..1"),
        ([0, 0, 0, 0, 0, -1], "index -1 is not in 0..1"),
        ([0, 0, 0], "has 6 decisions, got 3"),
        ([0, 0, 0, 0, 0, True], None),
        ([0.0] * 6, "choices are whole numbers below 2..63, got float64"),
        ([True] * 6, "choices are whole numbers below 2..63, got bool"),
        ([2**70] * 6, "choices are whole numbers below 2..63, got object"),
        ([[0], [0, 0]], "choices are no table"),
        (["0"] * 6, "choices are whole numbers"),
    )
    def test_choices(self, choices, message):
        if message is None:  # NumPy makes whole numbers of both; a point itself is stricter
            with self.assertRaisesRegex(ValueError, "non-negative integers"):
                Architecture("small", tuple(choices))
            return
        with self.assertRaisesRegex(errors.UsageError, message):
            small_space().canonical(choices)

    def test_points(self):
        space = small_space()
        for choices, message in (((0,) * 5, "got 5"), ((2**70,) * 6, "below 2..63")):
            with self.assertRaisesRegex(errors.UsageError, message):
                space.choices([Architecture("small", choices)])
        with self.assertRaisesRegex(errors.UsageError, "no table"):
            space.choices([Architecture("small", (0,) * 6), Architecture("small", (0,))])


class BudgetTest(Frugal):
    @parameterized.parameters(
        ("storage_kb=nan", "finite number above 0, 1e[+]15 at most"),
        ("storage_kb=inf", "finite number above 0"),
        ("storage_kb=1e999", "finite number above 0"),
        ("storage_kb=1e16", "1e[+]16: a limit must be .* 1e[+]15 at most"),
        ("storage_kb=0", "above 0"),
        ("storage_kb=-1", "above 0"),
        ("storage_kb=٣", "'٣': not a number"),
        ("storage_kb=1_0", "'1_0': not a number"),
        ("storage_kb=0x10", "not a number"),
        ("storage_kb=1,storage_kb=1", "names storage_kb twice"),
        ("accuracy>=0.5,accuracy<=0.9", "names accuracy twice"),
        ("accuracy<=0.9", "a lower limit: write accuracy>=0.9"),
        ("storage_kb>=1", "an upper limit: write storage_kb<=1"),
        ("r2=0.5,accuracy=0.5", "two quality metrics"),
        ("accuracy=1.5", "must lie in 0..1"),
        ("storage_mb=1", "unknown metric 'storage_mb'; known: params, macs, storage_kb"),
        ("storage_kb=1kb", "not a number"),
        ("latency_ms=1", "latency needs a device"),
        ("macs=1@host", "only latency_ms takes @DEVICE"),
        ("", "not of the form metric=number"),
    )
    def test_texts(self, text, message):
        with self.assertRaisesRegex(errors.UsageError, message):
            Budget.parse(text)

    def test_a_text_without_end(self):
        text = "macs=" + "1" * 10**6
        with self.assertRaisesRegex(errors.UsageError, "has 1,000,005 characters, 1,000 are"):
            Budget.parse(text)

    @parameterized.parameters(
        ({"limits": {"macs": True}},),
        ({"limits": {"macs": "9"}},),
        ({"limits": {"macs": None}},),
        ({"limits": {"macs": 10**40}},),
        ({"limits": {}, "quality": {"metric": "r2", "least": False}},),
        ({"limits": {}, "quality": {"metric": ["r2"], "least": 0.5}},),
        ({"limits": {"latency_ms": 1.0}, "device": 5},),
    )
    def test_json(self, document):
        with self.assertRaises(errors.UsageError):
            Budget.from_json(document)


class TablesTest(Frugal):
    """Of devices that others measured, or the user."""

    ENTRY = public_tables.read("pixel1").entries

    def device(self, content: bytes) -> SearchSpace:
        """A device on a table with that content, whose hash is right."""
        space, entry = next((s, e) for s, e in self.ENTRY.items() if e.holds == "blocks")
        table = self.folder / "table.csv.gz"
        table.write_bytes(content)
        file = {"name": table.name, "sha256": workdir.sha256(table)}
        told = {
            "holds": "blocks",
            "column": "ms",
            "source": entry.source,
            "licence": "none stated",
            "measured": "here",
            "file": file,
        }
        document = {"kind": public_tables.KIND, "description": "d", "tables": {space: told}}
        workdir.write_json(self.folder / "mine.json", document)
        return catalog.get(space)

    @parameterized.parameters(b"no gzip", b"\x1f\x8b\x08\x00" + bytes(10), b"")
    def test_tables_that_are_none(self, content):
        space = self.device(content)
        with self.assertRaisesRegex(errors.CorruptFileError, "table.csv.gz: is no table of"):
            public_tables.load("mine", space, self.folder, self.folder)

    def test_a_table_that_unpacks_to_too_much(self):
        space = self.device(gzip.compress(bytes(1 << 20)))
        self.enter_context(mock.patch.object(public_tables, "_TABLE_BYTES", 1 << 19))
        with self.assertRaisesRegex(errors.CorruptFileError, "unpacks to more than 524,288 bytes"):
            public_tables.load("mine", space, self.folder, self.folder)

    def test_a_table_elsewhere(self):
        for name in ("../table.csv.gz", "/etc/passwd", ""):
            with self.assertRaisesRegex(ValueError, "a table is named without its folder"):
                public_tables.TableFile(name, "0" * 64)

    @parameterized.parameters(
        (lambda: "1,1\x00", "line 2"),
        (lambda: "[" * 120_000 + ",1", r"'\[{100}' is no network of ofa_mobilenet_v3"),
        (lambda: "9" * 6000 + ",1", "'9{100}' is no network"),
        (lambda: "9" * 200_000 + ",1", "field larger than field limit"),
        (lambda: "1,2,3", "line 2: has more than two columns"),
        (lambda: "1 1 1,nan", "line 2: '1 1 1' is no network"),
    )
    def test_measured_networks(self, line, message):
        path = self.folder / "mine.csv"
        path.write_text(f"network,ms\n{line()}\n")
        with self.assertRaisesRegex(errors.UsageError, f"mine.csv: .*{message}"):
            adapted_device.read_networks(path, catalog.get("ofa_mobilenet_v3"))


class StoreTest(Frugal):
    """`record_test` has what is no store at all."""

    def test_a_store_of_the_future_is_refused_and_left_alone(self):
        path = self.folder / "records.db"
        RecordStore(path, small_space()).close()
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version=1000")
        connection.close()
        content = path.read_bytes()
        with self.assertRaisesRegex(errors.TfgenError, "records.db: .*schema 1000"):
            RecordStore(path, small_space())
        self.assertEqual(path.read_bytes(), content)


if __name__ == "__main__":
    absltest.main()
