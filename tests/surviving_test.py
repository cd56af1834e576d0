"""Full disks, folders that cannot be written, two coordinators, kills: an error and whole files."""

import ctypes
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from absl.testing import absltest

from tests.space.small import small_space
from tfgen import errors, workdir
from tfgen.evidence.record import Record, RecordStore
from tools import bench_kills, bench_store, bench_trials

_COLLECT = (
    "--config=configs/california_housing_mlp.py",
    "--config.records=400",
    "--config.recipe.steps=200",
    "--config.recipe.warmup_steps=10",
    "--config.recipe.starts=1",
    "--processes=2",
)


def record(seed: int) -> Record:
    architecture = small_space().architecture([1, 2, 0, 1, 1, 1])
    return Record(architecture, "data", "recipe", seed, 0.5, 0.25)


def told_by(run: Callable[[Callable[[object], None]], None]) -> list[str]:
    """What `run(tell)` tells in a fork, the error that ends it as its last line."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)

        def tell(what: object) -> None:
            os.write(writing, f"{what}\n".encode())

        try:
            run(tell)
        except BaseException as error:
            tell(f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as file:
        lines = file.read().splitlines()
    os.waitpid(pid, 0)
    return lines


def give_up_roots_rights() -> None:
    """From here on permissions bind root too; a sandbox may have no other user to become."""
    version_3 = 0x20080522
    header, none = (ctypes.c_uint32 * 2)(version_3, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


class DiskTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.path = self.root / "records.db"

    def stored(self) -> list[int]:
        with RecordStore(self.path, small_space()) as store:
            return [r.seed for r in store.read("data", "recipe")]

    def test_a_full_disk_keeps_what_was_acknowledged(self):
        # No file may become larger than 64 KiB, in a process of its own.
        def fill(tell):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
            with RecordStore(self.path, small_space()) as store:
                for first in range(0, 10_000, 50):
                    store.append([record(seed) for seed in range(first, first + 50)])
                    tell(first + 50)

        *acknowledged, last = told_by(fill)
        self.assertRegex(last, "TfgenError: .*records.db: .*the disk may be full or broken")
        # A record takes some 70 bytes.
        self.assertBetween(int(acknowledged[-1]), 300, 1000)
        self.assertEqual(self.stored(), list(range(int(acknowledged[-1]))))

    def test_a_full_data_base_says_what_to_do(self):
        with RecordStore(self.path, small_space()) as store:
            store.append([record(0)])
            store._connection.execute("PRAGMA max_page_count=10")
            with self.assertRaisesRegex(errors.TfgenError, "is full .make room and start again"):
                store.append([record(seed) for seed in range(1, 10_000)])
            self.assertLen(store, 1)
        self.assertEqual(self.stored(), [0])

    def test_a_full_disk_leaves_the_old_files(self):
        folder = self.root / "bundle"
        with workdir.writing_folder(folder) as fresh:
            workdir.write_json(fresh / "a.json", "old")

        def write(tell):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
            for run in (self.large_file, self.large_folder):
                try:
                    run()
                except OSError as error:
                    tell(error.strerror)

        workdir.write_json(self.root / "large.npz", "old")
        self.assertEqual(told_by(write), ["File too large"] * 2)
        self.assertEqual(workdir.read_json(self.root / "large.npz"), "old")
        self.assertEqual(workdir.read_json(folder / "a.json"), "old")
        self.assertEqual(sorted(os.listdir(self.root)), ["bundle", "large.npz"])

    def large_file(self):
        workdir.write_arrays(self.root / "large.npz", {"x": np.zeros(1 << 16)})

    def large_folder(self):
        with workdir.writing_folder(self.root / "bundle") as fresh:
            workdir.write_arrays(fresh / "large.npz", {"x": np.zeros(1 << 16)})

    def test_a_folder_that_cannot_be_written_is_named(self):
        def as_nobody(tell):
            if not os.geteuid():
                give_up_roots_rights()
            for path in (self.path, self.root / "new.db"):
                try:
                    RecordStore(path, small_space()).append([record(2)])
                except (errors.TfgenError, OSError) as error:
                    tell(f"{type(error).__name__}: {error}")

        with RecordStore(self.path, small_space()) as store:
            store.append([record(1)])
        self.path.chmod(0o444)
        self.root.chmod(0o555)
        try:
            old, new = told_by(as_nobody)
        finally:
            self.root.chmod(0o755)
        self.assertRegex(old, "TfgenError: .*records.db: .*must be .*writable")
        self.assertRegex(new, "PermissionError: .*new.db")
        self.assertEqual(self.stored(), [1])


class TwoCoordinatorsTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.work = pathlib.Path(folder.name) / "work"

    def started(self) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "tfgen.collect", *_COLLECT, f"--work_dir={self.work}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=pathlib.Path(__file__).parents[1],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def test_the_second_is_refused_and_the_first_goes_on(self):
        first = self.started()
        self.addCleanup(first.kill)
        lock = self.work / ".records.db.lock"
        deadline = time.monotonic() + 60
        while not (lock.is_file() and lock.read_text()):
            self.assertLess(time.monotonic(), deadline)
            self.assertIsNone(first.poll())
            time.sleep(0.05)
        second = self.started()
        _, said = second.communicate(timeout=60)
        self.assertEqual(second.returncode, 2, said)
        self.assertRegex(said, f"^error: .*records.db: process {first.pid} is at work on it")
        out, said = first.communicate(timeout=60)
        self.assertEqual(first.returncode, 0, said)
        self.assertTrue(re.search("400 records in ", out), out)


class KillsTest(absltest.TestCase):
    def test_writers_of_one_store_lose_nothing_that_was_acknowledged(self):
        folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        survived = bench_kills.survive_writers(20, folder)
        self.assertEqual(survived.kills, 20)
        self.assertGreaterEqual(survived.told, 5)  # a round begins when a record was acknowledged


class GrowthTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

    def test_memory_does_not_grow_with_trials(self):
        found = bench_trials.measure(200, 2, self.folder)
        self.assertEqual(found[-1].trials, 200)
        half, last = found[len(found) // 2 - 1], found[-1]
        # 20 kB that each of a hundred trainings leaves would be seen; 40,000 are in docs/scale.md.
        self.assertLess(last.parent_mb - half.parent_mb, 2.0)
        for before, after in zip(half.workers_mb, last.workers_mb, strict=True):
            self.assertLess(after - before, 2.0)

    def test_ten_thousand_records(self):
        told = bench_store.measure(10_000, 1000, 10, self.folder)
        # Some 120 bytes a record: three fingerprints of text, a choice of each decision, numbers.
        self.assertBetween(told["file_mb"], 0.5, 3.0)
        self.assertLess(told["peak_mb"], 400)


if __name__ == "__main__":
    absltest.main()
