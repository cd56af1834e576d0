"""Devices that others measured: their entries, reading their tables, and what those tell."""

import dataclasses
import gzip
import hashlib
import itertools
import json
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from tfgen import errors, seeds
from tfgen.cost import public_tables, table_layouts
from tfgen.cost.table_latency import BlockTable, Fit, NetworkTable, Terms, upper_end
from tfgen.space import bits, catalog, tabulated
from tfgen.space.encoding import Encoding
from tfgen.space.search_space import Decision, SearchSpace, When

# Two widths and, in deep networks only, three kernels: 2 + 2 * 3 = 8 networks.
TINY = SearchSpace(
    "tiny",
    (4, 4, 1),
    (
        Decision("depth", (1, 2)),
        Decision("width", (8, 16)),
        Decision("kernel", (3, 5, 7), When("depth", (2,))),
    ),
    (),
    bits.SIMULATED,
)


def write_table(folder: pathlib.Path, name: str, lines: list[str]) -> dict[str, str]:
    """Writes a table and returns how an entry names it."""
    data = gzip.compress("\n".join([*lines, ""]).encode(), mtime=0)
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return {"name": name, "sha256": hashlib.sha256(data).hexdigest()}


class FolderCase(parameterized.TestCase):
    """Tests with a folder of tables and one of devices."""

    def setUp(self):
        super().setUp()
        self.tables = pathlib.Path(self.create_tempdir().full_path)
        self.devices = pathlib.Path(self.create_tempdir().full_path)

    def add(self, device: str, space: str, file: dict[str, str], **fields) -> None:
        """Writes a device's entry."""
        entry = {
            "file": file,
            "holds": "networks",
            "column": "ms",
            "source": "someone/something@01234567",
            "licence": "MIT",
            "measured": "in a test",
            **fields,
        }
        data = {"kind": "public", "description": "a device", "tables": {space: entry}}
        (self.devices / f"{device}.json").write_text(json.dumps(data))

    def load(self, device: str, space: str):
        return public_tables.load(device, catalog.get(space), self.tables, self.devices)


class SpacesTest(parameterized.TestCase):
    @parameterized.parameters(
        ("nasbench201", 5**6),
        ("fbnet", 9**22),
        # A unit has 9**2 + 9**3 + 9**4 = 7,371 settings of its blocks; 25 resolutions.
        ("ofa_mobilenet_v3", 25 * 7_371**5),
        # Five stages of a block of 6 kinds and three of 7, and the last block of 6.
        ("proxylessnas", (6 * 7**3) ** 5 * 6),
        ("single_path_nas", (4 * 5**3) ** 5),
    )
    def test_sizes(self, name, size):
        self.assertEqual(catalog.get(name).size(), size)

    @parameterized.parameters(*sorted(tabulated.TABULATED))
    def test_points_are_drawn_and_encoded_like_those_of_other_spaces(self, name):
        space = catalog.get(name)
        choices = space.sample(200, seeds.stream(1, name))
        np.testing.assert_array_equal(space.canonical(choices), choices)
        features = Encoding(space).features_of(choices)
        self.assertLen(np.unique(features, axis=0), len(np.unique(choices, axis=0)))
        self.assertEqual(SearchSpace.from_json(space.to_json()), space)
        self.assertEqual(space.bit_policy, bits.SIMULATED)

    def test_they_are_not_among_the_spaces_that_are_built(self):
        self.assertEmpty(set(catalog.SPACES) & set(tabulated.TABULATED))
        with self.assertRaisesRegex(errors.UsageError, "known: .*fbnet.*mnist_mlp"):
            catalog.get("nasbench301")


class EntriesTest(parameterized.TestCase):
    @parameterized.parameters(*sorted(public_tables.known()))
    def test_every_entry_is_well_formed(self, name):
        device = public_tables.read(name)
        for space, entry in device.entries.items():
            layouts = table_layouts.BLOCKS if entry.holds == "blocks" else table_layouts.NETWORKS
            self.assertIn(space, layouts)
            self.assertNotIn("shared", entry.source + entry.measured)
            if entry.architectures is not None:
                self.assertEqual(space, "nasbench201")

    def test_a_file_is_the_same_file_everywhere(self):
        hashes: dict[str, set[str]] = {}
        columns = []
        for name in public_tables.known():
            for entry in public_tables.read(name).entries.values():
                for file in filter(None, (entry.file, entry.architectures)):
                    hashes.setdefault(file.name, set()).add(file.sha256)
                columns.append((entry.file.name, entry.column, *entry.rows.values()))
        self.assertEqual({len(found) for found in hashes.values()}, {1})
        # Each column is one device's.
        self.assertLen(set(columns), len(columns))

    def test_the_devices_of_the_design_are_known(self):
        known = public_tables.known()
        self.assertEqual(known["pixel3"], ("fbnet", "nasbench201"))
        self.assertEqual(known["pixel1"], ("proxylessnas", "single_path_nas"))
        self.assertEqual(known["note10"], ("ofa_mobilenet_v3",))
        self.assertIn("1080ti_batch_32", known)

    @parameterized.parameters(
        ({"holds": "layers"}, "holds must be one of"),
        ({"source": "a folder"}, "owner/name@commit"),
        ({"licence": ""}, "must be said"),
        ({"rest_ms": -1.0}, "rest_ms"),
    )
    def test_an_entry_checks_itself(self, wrong, message):
        entry = public_tables.read("pixel1").entries["single_path_nas"]
        with self.assertRaisesRegex(ValueError, message):
            dataclasses.replace(entry, **wrong)

    @parameterized.parameters(("../a.csv.gz", "0" * 64), ("a.csv.gz", "0" * 63))
    def test_a_table_is_named_without_its_folder_and_with_its_hash(self, name, sha256):
        with self.assertRaises(ValueError):
            public_tables.TableFile(name, sha256)


class ReadingTest(FolderCase):
    def nasbench201(self, rows: int = 15_625, **fields) -> None:
        """Tables of 1, 2, 3 .. ms for the cells in the order of their codes."""
        texts, times = ["arch_str,index"], ["index,ms"]
        ops = tabulated.NASBENCH201_OPS
        for index, cell in enumerate(itertools.product(ops, repeat=6)):
            a, b, c, d, e, f = cell
            texts.append(f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|,{index}")
            if index < rows:
                times.append(f"{index},{index + 1}")
        file = write_table(self.tables, "times.csv.gz", times)
        cells = write_table(self.tables, "cells.csv.gz", texts)
        self.add("phone", "nasbench201", file, architectures=cells, **fields)

    def test_a_full_table_tells_what_was_measured(self):
        self.nasbench201()
        model = self.load("phone", "nasbench201")
        # Cell 1*5**5 + 2*5**4 + 3*5**3 + 4*5**2 + 0*5 + 1 = 4,851 took 4,852 ms.
        cells = np.array([[0] * 6, [1, 2, 3, 4, 0, 1], [4] * 6])
        found = model.predict(cells, 0.95)
        np.testing.assert_array_equal(found.ms, [1.0, 4_852.0, 15_625.0])
        np.testing.assert_array_equal(found.high_ms, found.ms)
        self.assertEqual(model.device, "phone")
        self.assertIn("every network", model.remark)

    def test_a_table_may_lie_in_a_folder_of_the_folder(self):
        file = write_table(self.tables / "b", "t.csv.gz", ["ops,ms", " ".join("0" * 22) + ",2"])
        self.add("phone", "fbnet", file)
        choices, ms = public_tables.networks(
            "phone", catalog.get("fbnet"), self.tables, self.devices
        )
        np.testing.assert_array_equal(choices, np.zeros((1, 22)))
        np.testing.assert_array_equal(ms, [2.0])

    def test_a_blank_is_a_network_that_the_device_does_not_run(self):
        rows = [f"{' '.join(code * 22)},{ms}" for code, ms in (("0", "2"), ("1", ""), ("8", "3"))]
        self.add("phone", "fbnet", write_table(self.tables, "t.csv.gz", ["ops,ms", *rows]))
        choices, ms = public_tables.networks(
            "phone", catalog.get("fbnet"), self.tables, self.devices
        )
        np.testing.assert_array_equal(choices[:, 0], [0, 8])
        np.testing.assert_array_equal(ms, [2.0, 3.0])

    def test_networks_of_once_for_all_are_read_canonically(self):
        # The third and fourth blocks of the first unit, of depth 2, are not there: 7 is ignored.
        ks, e = [3, 5, 7, 7] + [3] * 16, [6, 4, 6, 6] + [3] * 16
        network = json.dumps({"ks": ks, "e": e, "d": [2, 4, 4, 4, 4], "r": 132})
        row = '"' + network.replace('"', '""') + '",5'
        self.add("gpu", "ofa_mobilenet_v3", write_table(self.tables, "t.gz", ["arch,ms", row]))
        space = catalog.get("ofa_mobilenet_v3")
        choices, _ = public_tables.networks("gpu", space, self.tables, self.devices)
        values = space.values(space.architecture(choices[0]))
        self.assertEqual(values["resolution"], 132)
        self.assertEqual((values["kernel_1_2"], values["expansion_1_2"]), (5, 4))
        self.assertNotIn("kernel_1_3", values)
        # The resolution, 5 depths, and kernel and expansion of 2 + 4 * 4 blocks.
        self.assertLen(values, 1 + 5 + 2 * 18)

    def test_other_content_is_refused_with_both_hashes(self):
        self.nasbench201()
        meant = hashlib.sha256((self.tables / "times.csv.gz").read_bytes()).hexdigest()
        other = write_table(self.tables, "times.csv.gz", ["index,ms", "0,1"])["sha256"]
        with self.assertRaisesRegex(errors.CorruptFileError, f"{other}, not {meant}"):
            self.load("phone", "nasbench201")

    def test_an_absent_table_says_which_file_from_where(self):
        self.nasbench201()
        (self.tables / "cells.csv.gz").unlink()
        with self.assertRaisesRegex(
            errors.UsageError, "cells.csv.gz.*someone/something@01234567, licence: MIT"
        ):
            self.load("phone", "nasbench201")

    def test_unknown_devices_and_spaces_name_the_known(self):
        self.nasbench201()
        with self.assertRaisesRegex(errors.UsageError, "'phoen'; known: phone"):
            self.load("phoen", "nasbench201")
        with self.assertRaisesRegex(errors.UsageError, "'fbnet'; it is known on nasbench201"):
            self.load("phone", "fbnet")

    @parameterized.parameters("0 1 2,5", f"{'9 ' * 22},5", f"{'0 ' * 22},-5", f"{'0 ' * 22},x")
    def test_rows_that_are_no_networks_are_refused(self, row):
        self.add("phone", "fbnet", write_table(self.tables, "t.csv.gz", ["ops,ms", row]))
        with self.assertRaisesRegex(errors.CorruptFileError, "t.csv.gz: is no table of fbnet"):
            self.load("phone", "fbnet")

    def test_a_malformed_entry_is_refused_by_name(self):
        (self.devices / "phone.json").write_text('{"kind": "public", "tables": {"fbnet": {}}}')
        with self.assertRaisesRegex(errors.CorruptFileError, r"phone\.json"):
            self.load("phone", "fbnet")

    def test_profiled_devices_are_no_public_ones(self):
        (self.devices / "host.json").write_text('{"kind": "profiled"}')
        self.assertEmpty(public_tables.known(self.devices))


class BlocksTest(FolderCase):
    def test_single_path_nas_adds_its_blocks_to_the_rest(self):
        # Block b in choice c takes 10 * b + c ms; blocks 0 and 21 are in the rest.
        rows = [f"{b},{c},{10 * b + c}" for b in range(22) for c in range(4)]
        file = write_table(self.tables, "t.csv.gz", ["block,choice,ms", *rows])
        self.add("phone", "single_path_nas", file, holds="blocks", rest_ms=0.5)
        model = self.load("phone", "single_path_nas")
        # All k5_e6, choice 3: 10 * (1 + .. + 20) + 20 * 3 = 2,160. Then blocks 2 to 4 skipped,
        # which took 23 + 33 + 43 = 99.
        deep = [3] * 20
        shallow = [3, 4, 4, 4, *[3] * 16]
        found = model.predict(np.array([deep, shallow]), 0.95)
        np.testing.assert_allclose(found.ms, [2_160.5, 2_061.5], rtol=1e-12)
        np.testing.assert_array_equal(found.high_ms, found.ms)
        self.assertIn("not calibrated", model.remark)

    def test_proxylessnas_finds_its_blocks_by_their_shapes(self):
        # (input, output, stride, same shape and so a residual) as in the paper's table.
        shapes = [
            ("112x112x16", "56x56x24", 2, 0),
            ("56x56x24", "56x56x24", 1, 1),
            ("56x56x24", "28x28x40", 2, 0),
            ("28x28x40", "28x28x40", 1, 1),
            ("28x28x40", "14x14x80", 2, 0),
            ("14x14x80", "14x14x80", 1, 1),
            ("14x14x80", "14x14x96", 1, 0),
            ("14x14x96", "14x14x96", 1, 1),
            ("14x14x96", "7x7x192", 2, 0),
            ("7x7x192", "7x7x192", 1, 1),
            ("7x7x192", "7x7x320", 1, 0),
        ]
        rows = [
            f"pixel,expanded_conv-input:{a}-output:{b}-expand:{e}-kernel:{k}-stride:{s}-idskip:{i}"
            f",{10 * number + k + e / 10}"
            for number, (a, b, s, i) in enumerate(shapes, 1)
            for k in (3, 5, 7)
            for e in (3, 6)
        ]
        first = "input:112x112x32-output:112x112x16-expand:1-kernel:3-stride:1-idskip:0"
        rows += [
            f"pixel,expanded_conv-{first},1000",
            "pixel,Conv-x,2000",
            "pixel,Logits-y,4000",
            "other,z,9",
        ]
        file = write_table(self.tables, "t.csv.gz", ["table,op,ms", *rows])
        self.add("phone", "proxylessnas", file, holds="blocks", rows={"table": "pixel"})
        space = catalog.get("proxylessnas")
        deep = space.architecture([d.values.index("k7_e6") for d in space.decisions])
        skipping = space.architecture(
            [d.values.index("skip" if "skip" in d.values else "k3_e3") for d in space.decisions]
        )
        found = self.load("phone", "proxylessnas").predict(
            space.choices([deep, skipping]), confidence=0.95
        )
        # Deep: shapes 1, 3, 5, 7, 9 and 11 once, 2, 4, 6, 8 and 10 thrice, each with 7.6 more:
        # 10 * (36 + 3 * 30) + 21 * 7.6 = 1,419.6. Skipping: 360 + 6 * 3.3 = 379.8.
        np.testing.assert_allclose(found.ms, [7_000 + 1_419.6, 7_000 + 379.8], rtol=1e-12)

    def test_once_for_all_has_its_blocks_at_a_few_resolutions(self):
        # At resolution 160: unit, input of its first block, output, squeeze-and-excitation,
        # hard-swish. A block takes 1 ms with kernel 3, 2 with 5, 4 with 7.
        units = [
            ("80x80x24", "40x40x32", 2, 0, 0),
            ("40x40x32", "20x20x48", 2, 1, 0),
            ("20x20x48", "10x10x96", 2, 0, 1),
            ("10x10x96", "10x10x136", 1, 1, 1),
            ("10x10x136", "5x5x192", 2, 1, 1),
        ]
        rows = []
        for a, b, stride, se, hs in units:
            for shape, s, skip in (((a, b), stride, 0), ((b, b), 1, 1)):
                channels = int(shape[0].split("x")[2])
                rows += [
                    f"160,expanded_conv-input:{shape[0]}-output:{shape[1]}-expand:{channels * e}"
                    f"-kernel:{k}-stride:{s}-idskip:{skip}-se:{se}-hs:{hs},{ms}"
                    for e in (3, 4, 6)
                    for k, ms in ((3, 1), (5, 2), (7, 4))
                ]
        first = "input:80x80x24-output:80x80x24-expand:24-kernel:3-stride:1-idskip:1-se:0-hs:0"
        rows += [f"160,expanded_conv-{first},100", "160,Conv-x,200", "160,Logits-y,400"]
        file = write_table(self.tables, "t.csv.gz", ["resolution,op,ms", *rows])
        self.add("phone", "ofa_mobilenet_v3", file, holds="blocks")
        space = catalog.get("ofa_mobilenet_v3")
        small = {d.name: d.values[0] for d in space.decisions}
        points = [
            space.point({**small, "resolution": 160}),
            space.point({"resolution": 160}),
            space.point({"resolution": 164}),
        ]
        found = self.load("phone", "ofa_mobilenet_v3").predict(space.choices(points), 0.95)
        # 700 for all; 5 units of 2 blocks with kernel 3; 5 of 4 with kernel 7. The table has
        # nothing of 164: the largest it has stands for it, and nothing is promised.
        np.testing.assert_allclose(found.ms, [710.0, 780.0, 780.0], rtol=1e-12)
        np.testing.assert_array_equal(found.high_ms, [710.0, 780.0, np.inf])

    def test_a_missing_block_is_the_files_fault(self):
        file = write_table(self.tables, "t.csv.gz", ["block,choice,ms", "1,0,3"])
        self.add("phone", "single_path_nas", file, holds="blocks")
        with self.assertRaisesRegex(errors.CorruptFileError, r"t\.csv\.gz.*\('1', '1'\)"):
            self.load("phone", "single_path_nas")


class LatencyTest(parameterized.TestCase):
    def test_terms_of_inactive_decisions_are_one(self):
        terms = Terms(TINY, [("depth",), ("width", "kernel")])
        # Depth: terms 0 and 1. Width and kernel: 2 without a kernel, else 3 + 3 * width + kernel.
        choices = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 2]])
        np.testing.assert_array_equal(terms.positions(choices), [[0, 2], [0, 2], [1, 3], [1, 8]])
        self.assertEqual(terms.count, 9)
        self.assertIn((8, 1, (16, 7)), list(terms.settings()))

    def test_a_sum_of_terms_is_found_from_a_sample(self):
        # 10 ms, and 3 for each code of each block. The ridge counts as one more network beside the
        # 44 or so that share a term: it takes about 2 % of what a term differs from the mean.
        space = catalog.get("fbnet")
        choices = space.sample(400, seeds.stream(3, "sample"))
        ms = 10.0 + 3.0 * choices.sum(axis=1)
        fit = Fit(Terms(space, [(d.name,) for d in space.decisions]), [_plain], choices, ms)
        other = space.sample(400, seeds.stream(4, "sample"))
        found, _ = fit.predict(other)
        np.testing.assert_allclose(found, 10.0 + 3.0 * other.sum(axis=1), rtol=0.04)

    def test_measured_networks_are_told_as_measured(self):
        space = catalog.get("fbnet")
        choices = space.sample(100, seeds.stream(3, "sample"))
        ms = seeds.stream(3, "noise").uniform(10.0, 20.0, 100)
        model = NetworkTable("d", choices, ms, Terms(space, [("block_1",)]), [_plain])
        found = model.predict(choices, 0.9)
        np.testing.assert_array_equal(found.ms, ms)
        np.testing.assert_array_equal(found.high_ms, ms)
        self.assertIn("100 networks", model.remark)

    def test_a_rare_term_is_doubted_more(self):
        # Code 8 of the first block once among 200 networks, every other code 24 or 25 times.
        choices = np.zeros((200, 22), np.int64)
        choices[:, 0] = np.arange(200) % 8
        choices[0, 0] = 8
        fit = Fit(Terms(catalog.get("fbnet"), [("block_1",)]), [_plain], choices, np.full(200, 5.0))
        _, doubt = fit.predict(choices[:2])
        # 5 ms expected and 5 ms typical, times sqrt(1 / (1 + 1)) and sqrt(1 / (1 + 25)).
        np.testing.assert_allclose(doubt, [10 * np.sqrt(1 / 2), 10 * np.sqrt(1 / 26)], rtol=1e-12)

    def test_an_upper_end_is_the_conformal_rank(self):
        excess = np.arange(1.0, 20.0)  # 19 values: (19 + 1) * 0.95 = 19, the last
        self.assertEqual(upper_end(excess, 0.95), 19.0)
        self.assertEqual(upper_end(excess, 0.5), 10.0)
        self.assertEqual(upper_end(excess, 0.96), np.inf)
        with self.assertRaisesRegex(errors.UsageError, "confidence .* got 1"):
            upper_end(excess, 1.0)

    def test_upper_ends_hold_as_often_as_asked(self):
        # 1,000 networks in the table, 250 of them calibrate; 4,000 new ones. The share of new ones
        # within a 90 % end has standard deviation sqrt(0.9 * 0.1 * (1 / 251 + 1 / 4,000)) = 0.020:
        # below 0.82 less than once in 20,000.
        space = catalog.get("fbnet")
        choices = space.sample(5_000, seeds.stream(5, "networks"))
        noise = seeds.stream(5, "noise").lognormal(0.0, 0.1, 5_000)
        ms = (10.0 + choices.sum(axis=1)) * noise
        terms = Terms(space, [(d.name,) for d in space.decisions])
        model = NetworkTable("d", choices[:1_000], ms[:1_000], terms, [_plain])
        found = model.predict(choices[1_000:], 0.9)
        self.assertBetween(np.mean(ms[1_000:] <= found.high_ms), 0.82, 0.98)
        self.assertTrue((found.high_ms > found.ms).all())

    def test_the_same_seed_gives_the_same_latencies(self):
        space = catalog.get("fbnet")
        choices = space.sample(300, seeds.stream(6, "networks"))
        ms = 10.0 + choices[:, 0] * seeds.stream(6, "noise").uniform(0.9, 1.1, 300)
        terms = Terms(space, [("block_1",)])
        new = space.sample(50, seeds.stream(7, "networks"))
        one, same, other = (
            NetworkTable("d", choices, ms, terms, [_plain], seed).predict(new, 0.9)
            for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(one.high_ms, same.high_ms)
        self.assertFalse(np.array_equal(one.high_ms, other.high_ms))

    def test_edges_without_a_path_are_not_live(self):
        # Edges 0->1, 0->2, 1->2, 0->3, 1->3, 2->3. In the first cell node 1 gets nothing, so what
        # leaves it is dead; in the second node 2 leads nowhere, so what enters it is.
        cells = np.array([[0, 3, 3, 3, 3, 3], [3, 3, 3, 3, 3, 0]])
        part = table_layouts.NETWORKS["nasbench201"].parts(catalog.get("nasbench201"))[1]
        live, scale = part(cells)
        np.testing.assert_array_equal(live, [[0, 3, 0, 3, 0, 3], [3, 0, 0, 3, 3, 0]])
        np.testing.assert_array_equal(scale, [1.0, 1.0])

    def test_a_network_twice_in_a_table_is_refused(self):
        choices = np.zeros((2, 22), np.int64)
        with self.assertRaisesRegex(ValueError, "2 latencies for 1 different"):
            terms = Terms(catalog.get("fbnet"), [("block_1",)])
            NetworkTable("d", choices, np.ones(2), terms, [_plain])

    def test_a_sum_with_an_unknown_block_promises_nothing(self):
        terms = Terms(TINY, [("depth",), ("width", "kernel")])
        # Terms: depth 1 and 2; no kernel; width 8 with 3, 5, 7; width 16 with 3, 5, 7.
        term_ms = np.array([1.0, 2.0, 0.0, 10.0, 20.0, np.nan, 40.0, 50.0, 60.0])
        model = BlockTable("d", terms, term_ms, rest_ms=100.0)
        found = model.predict(np.array([[0, 1, 0], [1, 1, 2], [1, 0, 2]]), 0.95)
        np.testing.assert_array_equal(found.ms, [101.0, 162.0, 162.0])
        np.testing.assert_array_equal(found.high_ms, [101.0, 162.0, np.inf])


def _plain(choices):
    return choices, np.ones(len(choices))


if __name__ == "__main__":
    absltest.main()
