"""Stores that others made."""

import sqlite3

from absl.testing import absltest, parameterized

from tests.frugal import Frugal
from tests.space.small import small_space
from tfgen import errors
from tfgen.evidence import record as records
from tfgen.evidence.record import Record, RecordStore


class StoreTest(Frugal):
    def setUp(self):
        super().setUp()
        self.path = self.folder / "records.db"

    def crafted(self, script: str) -> None:
        """A store in which others did something."""
        with RecordStore(self.path, small_space()) as store:
            store.append([Record(small_space().point({}), "data", "recipe", 0, 0.5, 0.25)])
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.executescript(script)
        connection.close()

    def test_a_store_of_the_future_is_refused_and_left_alone(self):
        self.crafted("PRAGMA user_version=1000")
        content = self.path.read_bytes()
        with self.assertRaisesRegex(errors.NewerFileError, "records.db: .*schema 1000, .*a newer"):
            RecordStore(self.path, small_space())
        self.assertEqual(self.path.read_bytes(), content)

    @parameterized.parameters(
        (
            "CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records; END",
            "has a trigger 't'",
        ),
        (
            "CREATE TRIGGER t BEFORE INSERT ON spaces BEGIN DELETE FROM records; END",
            "a trigger 't'",
        ),
        (
            "DROP TABLE records; CREATE VIEW records AS WITH RECURSIVE n(space) AS (SELECT 'small' "
            "UNION ALL SELECT space FROM n) SELECT space FROM n",  # never ends
            "has a view 'records'",
        ),
        ("CREATE TABLE notes (text)", "has a table 'notes'"),
    )
    def test_what_would_run_is_refused(self, script, message):
        self.crafted(script)
        with self.assertRaisesRegex(errors.CorruptFileError, f"records.db: .*{message}"):
            RecordStore(self.path, small_space())

    @parameterized.parameters(
        {"architecture": "0,0,x"},
        {"architecture": "0,0"},
        {"architecture": "0,0,0,0,0,9"},
        {"architecture": b"0"},
        {"metric": "good"},
        {"seconds": b"\x00"},
        {"cost": "{"},
        {"cost": "[1]"},
        {"cost": '{"latency_ms": {"value": NaN, "source": "measured"}}'},
        {"cost": '{"speed": {"value": 1, "source": "measured"}}'},
        {"cost": 5},
    )
    def test_rows_with_the_right_checksum(self, **change):
        self.crafted("")
        row = {
            "space": "small",
            "architecture": "0,0,0,0,0,0",
            "dataset": "data",
            "recipe": "recipe",
            "seed": 7,
            "metric": 0.5,
            "seconds": 0.25,
            "cost": "{}",
        } | change
        connection = sqlite3.connect(self.path)
        values = (*row.values(), records._crc(tuple(row.values())))
        connection.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        # What the columns make of it is what the checksum must be of.
        stored = connection.execute("SELECT * FROM records WHERE seed = 7").fetchone()[:-1]
        connection.execute(
            "UPDATE records SET checksum = ? WHERE seed = 7", (records._crc(stored),)
        )
        connection.commit()
        connection.close()
        with (
            RecordStore(self.path, small_space()) as store,
            self.assertRaisesRegex(errors.CorruptFileError, "records.db: .*seed 7 is damaged"),
        ):
            store.read("data", "recipe")

    def test_numbers_of_other_kinds_come_back(self):
        import numpy as np

        point = small_space().point({})
        with RecordStore(self.path, small_space()) as store:
            for seed, metric in enumerate((-0.0, 1, np.float64(0.25), np.float32(0.5))):
                store.append([Record(point, "data", "recipe", seed, metric, 0)])
            self.assertEqual(
                [r.metric for r in store.read("data", "recipe")], [0.0, 1.0, 0.25, 0.5]
            )


if __name__ == "__main__":
    absltest.main()
