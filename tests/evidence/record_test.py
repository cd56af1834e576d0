"""The record store: durable, exactly once, and honest about damage."""

import contextlib
import dataclasses
import pathlib
import sqlite3
import tempfile

from absl.testing import absltest

from tests.space.small import small_space
from tfgen import errors
from tfgen.cost.budget import Cost, Quantity
from tfgen.evidence.record import Record, RecordStore
from tfgen.space import catalog


def record(seed: int, metric: float = 0.5) -> Record:
    architecture = small_space().architecture([1, 2, 0, 1, 1, 1])
    return Record(architecture, "data", "recipe", seed, metric, 0.25)


class RecordStoreTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "records.db"

    def open(self) -> RecordStore:
        store = RecordStore(self.path, small_space())
        self.addCleanup(store.close)
        return store

    def test_reads_back_what_was_appended(self):
        cost = Cost({"latency_ms": Quantity(0.125, "measured")})
        measured = Record(record(0).architecture, "data", "recipe", 2**62, -1.5, 0.1, cost)
        with self.open() as store:
            store.append([record(3), measured])
            self.assertEqual(store.read("data", "recipe"), [record(3), measured])
        with self.open() as store:
            self.assertEqual(store.read("data", "recipe"), [record(3), measured])
            self.assertEqual(store.read("data", "other"), [])
            self.assertEqual(store.keys(), {record(3).key, measured.key})

    def test_a_failed_training_is_known_and_not_read(self):
        failed = dataclasses.replace(record(1, 0.0), failure="MemoryError: too large")
        with self.open() as store:
            store.append([failed, record(2)])
            self.assertEqual(store.read("data", "recipe"), [record(2)])
            self.assertEqual(store.failed("data", "recipe"), [failed])
            self.assertEqual(store.failed("data", "other"), [])
            self.assertEqual(store.keys(), {record(1).key, record(2).key})
            self.assertEqual(store.keys(failed=False), {record(2).key})
            self.assertLen(store, 1)
            store.append([dataclasses.replace(failed, failure="took more than 3 s")])
            self.assertEqual(
                [r.failure for r in store.failed("data", "recipe")], ["took more than 3 s"]
            )

    def test_a_record_takes_the_place_of_a_failure_and_stays(self):
        failed = dataclasses.replace(record(1, 0.0), failure="killed")
        with self.open() as store:
            store.append([failed])
            store.append([record(1, 0.5)])
            store.append([failed])
            self.assertEqual(store.read("data", "recipe"), [record(1, 0.5)])
            self.assertEmpty(store.failed("data", "recipe"))

    def test_a_store_of_schema_1_is_read_and_upgraded(self):
        # What version 0.1.0 wrote: no table of failures.
        with self.open() as store:
            store.append([record(1), record(2)])
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("DROP TABLE failures")
            connection.execute("PRAGMA user_version=1")
        failed = dataclasses.replace(record(3, 0.0), failure="killed")
        with self.open() as store:
            self.assertEqual(store.read("data", "recipe"), [record(1), record(2)])
            store.append([failed])
        with self.open() as store:
            self.assertEqual(store.read("data", "recipe"), [record(1), record(2)])
            self.assertEqual(store.failed("data", "recipe"), [failed])

    def test_a_store_of_a_later_schema_is_refused_and_left_alone(self):
        self.open().close()
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("PRAGMA user_version=3")
        content = self.path.read_bytes()
        with self.assertRaisesRegex(errors.NewerFileError, "schema 3.*up to 2: take a newer"):
            self.open()
        self.assertEqual(self.path.read_bytes(), content)

    def test_the_first_record_of_a_training_stays(self):
        with self.open() as store:
            store.append([record(1, 0.5)])
            store.append([record(1, 0.75), record(2, 0.25)])
            self.assertEqual([r.metric for r in store.read("data", "recipe")], [0.5, 0.25])
            self.assertLen(store, 2)

    def test_appending_is_all_or_none(self):
        with self.open() as store:
            broken = Record(record(2).architecture, "data", "recipe", 2, None, 0.0)  # type: ignore
            with self.assertRaises(errors.TfgenError):
                store.append([record(1), broken])
            self.assertEmpty(store.read("data", "recipe"))

    def test_two_writers_share_a_store(self):
        with self.open() as first, self.open() as second:
            first.append([record(1)])
            second.append([record(1), record(2)])
            self.assertLen(first.read("data", "recipe"), 2)

    def test_a_file_that_is_no_store_is_refused_by_name_and_left_alone(self):
        content = b"not a database, but a user's notes\n" * 100
        self.path.write_bytes(content)
        with self.assertRaisesRegex(errors.CorruptFileError, "records.db"):
            self.open()
        self.assertEqual(self.path.read_bytes(), content)

    def test_an_empty_file_is_a_truncated_store(self):
        self.path.touch()
        with self.assertRaisesRegex(errors.CorruptFileError, "records.db: is empty"):
            self.open()
        self.assertEqual(self.path.read_bytes(), b"")

    def test_another_programs_database_is_refused_and_left_alone(self):
        connection = sqlite3.connect(self.path)
        connection.execute("CREATE TABLE notes (text)")
        connection.commit()
        connection.close()
        content = self.path.read_bytes()
        with self.assertRaisesRegex(errors.CorruptFileError, "records.db: not a record store"):
            self.open()
        self.assertEqual(self.path.read_bytes(), content)

    def test_a_truncated_store_is_refused_by_name(self):
        with self.open() as store:
            store.append([record(seed) for seed in range(2000)])
        content = self.path.read_bytes()
        self.path.write_bytes(content[: len(content) // 2])
        with self.assertRaisesRegex(errors.CorruptFileError, "records.db"):
            self.open()
        self.assertLen(self.path.read_bytes(), len(content) // 2)

    def test_a_flipped_value_is_found_by_its_checksum(self):
        with self.open() as store:
            store.append([record(1)])
        connection = sqlite3.connect(self.path)
        connection.execute("UPDATE records SET metric = 0.9")
        connection.commit()
        connection.close()
        with self.open() as store, self.assertRaisesRegex(errors.CorruptFileError, "seed 1 is dam"):
            store.read("data", "recipe")

    def test_a_flipped_failure_is_found_by_its_checksum(self):
        with self.open() as store:
            store.append([dataclasses.replace(record(1, 0.0), failure="killed")])
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("UPDATE failures SET reason = 'another'")
        with self.open() as store, self.assertRaisesRegex(errors.CorruptFileError, "seed 1 is dam"):
            store.failed("data", "recipe")

    def test_another_definition_of_a_space_is_refused(self):
        with self.open() as store:
            store.append([record(1)])
        other = catalog.mlp("small", inputs=4, outputs=1)
        with self.assertRaisesRegex(errors.UsageError, "another definition of space 'small'"):
            RecordStore(self.path, other)

    def test_a_folder_that_cannot_be_written_is_named(self):
        self.path.mkdir()
        with self.assertRaisesRegex(errors.TfgenError, "records.db"):
            self.open()


if __name__ == "__main__":
    absltest.main()
