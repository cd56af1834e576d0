"""Record, one training and what came of it, and the durable store of records."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Sequence

from tfgen import errors, workdir
from tfgen.cost.budget import Cost
from tfgen.space.architecture import Architecture
from tfgen.space.search_space import SearchSpace

_SCHEMA_VERSION = 2
_APPLICATION_ID = 0x7466676E  # "tfgn"
_BUSY_TIMEOUT_MS = 60_000
_SCHEMA = """
CREATE TABLE spaces (name TEXT PRIMARY KEY, definition TEXT NOT NULL);
CREATE TABLE records (
  space TEXT NOT NULL,
  architecture TEXT NOT NULL,
  dataset TEXT NOT NULL,
  recipe TEXT NOT NULL,
  seed INTEGER NOT NULL,
  metric REAL NOT NULL,
  seconds REAL NOT NULL,
  cost TEXT NOT NULL,
  checksum INTEGER NOT NULL,
  PRIMARY KEY (space, architecture, dataset, recipe, seed)
) WITHOUT ROWID;
"""
# Since version 2.
_FAILURES = """
CREATE TABLE failures (
  space TEXT NOT NULL,
  architecture TEXT NOT NULL,
  dataset TEXT NOT NULL,
  recipe TEXT NOT NULL,
  seed INTEGER NOT NULL,
  seconds REAL NOT NULL,
  reason TEXT NOT NULL,
  checksum INTEGER NOT NULL,
  PRIMARY KEY (space, architecture, dataset, recipe, seed)
) WITHOUT ROWID;
"""
_TABLES = ("spaces", "records", "failures")
_KEY = "space = ? AND architecture = ? AND dataset = ? AND recipe = ? AND seed = ?"
_KEY_COLUMNS = "space, architecture, dataset, recipe, seed"
# What SQLite's short texts leave open, by the first part of its error's name.
_ADVICE = {
    "SQLITE_FULL": "make room and start again; what was acknowledged is stored",
    "SQLITE_IOERR": "the disk may be full or broken; what was acknowledged is stored",
    "SQLITE_CANTOPEN": "file and folder must be readable and writable",
    "SQLITE_READONLY": "file and folder must be writable",
}

Key = tuple[str, str, str, str, int]


@dataclasses.dataclass(frozen=True)
class Record:
    """One training of one architecture.

    Attributes:
      architecture: what was trained.
      dataset: fingerprint of the data.
      recipe: fingerprint of the recipe.
      seed: of the training.
      metric: on the validation split, in the task's own metric; 0 where the training failed, as of
        a network that learned nothing.
      seconds: wall time of the training.
      cost: what was measured beside; counted costs follow from the architecture and are left out.
      failure: why there is no metric; None where there is one.
    """

    architecture: Architecture
    dataset: str
    recipe: str
    seed: int
    metric: float
    seconds: float
    cost: Cost = dataclasses.field(default_factory=lambda: Cost({}))
    failure: str | None = None

    @property
    def key(self) -> Key:
        """What makes a training the same training."""
        choices = ",".join(map(str, self.architecture.choices))
        return (self.architecture.space, choices, self.dataset, self.recipe, self.seed)


class RecordStore:
    """Records in one SQLite file; what `append` returned for survives a kill and a power cut.

    The rollback journal with full synchronisation: slower than the write-ahead log, which before
    SQLite 3.51.3 can lose committed pages when two connections meet. Not for network file systems.

    Any number of processes may append, but only one should decide what is trained: `owned`.
    """

    def __init__(self, path: pathlib.Path, space: SearchSpace):
        """Opens or makes the store; one of an older schema becomes one of this.

        Raises:
          CorruptFileError: the file is not a store, or its content is damaged.
          UsageError: the store holds another definition of a space of this name.
        """
        self.path = path
        self.space = space
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        if path.is_file() and path.stat().st_size == 0:
            raise errors.CorruptFileError(f"{path}: is empty, not a record store")
        with self._naming_the_file():
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_MS / 1000, isolation_level=None
            )
            try:
                self._open()
            except BaseException:
                self._connection.close()
                raise

    def _open(self) -> None:
        run = self._connection.execute
        run(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        if run("PRAGMA integrity_check").fetchone() != ("ok",):
            raise errors.CorruptFileError(f"{self.path}: the record store is damaged")
        run("PRAGMA trusted_schema=OFF")
        run("PRAGMA journal_mode=DELETE")
        run("PRAGMA synchronous=FULL")
        with self._transaction():
            (application,) = run("PRAGMA application_id").fetchone()
            (version,) = run("PRAGMA user_version").fetchone()
            if application == _APPLICATION_ID and version > _SCHEMA_VERSION:
                raise errors.NewerFileError(
                    f"{self.path}: is a record store of schema {version}, this tfgen reads up to "
                    f"{_SCHEMA_VERSION}: take a newer tfgen"
                )
            if application != _APPLICATION_ID or version < 1:
                raise errors.CorruptFileError(
                    f"{self.path}: not a record store of schema 1..{_SCHEMA_VERSION} "
                    f"(application id {application:#x}, schema {version})"
                )
            # A trigger or a view of others would run, and may never end.
            found = run("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
            strangers = sorted(set(found) - {("table", name) for name in _TABLES})
            if strangers:
                raise errors.CorruptFileError(
                    f"{self.path}: has a {strangers[0][0]} {strangers[0][1]!r}, which no record "
                    "store has"
                )
            if version < _SCHEMA_VERSION:
                run(_FAILURES)
                run(f"PRAGMA user_version={_SCHEMA_VERSION}")
            definition = json.dumps(self.space.to_json(), sort_keys=True)
            run("INSERT OR IGNORE INTO spaces VALUES (?, ?)", (self.space.name, definition))
            (stored,) = run(
                "SELECT definition FROM spaces WHERE name = ?", (self.space.name,)
            ).fetchone()
            if stored != definition:
                raise errors.UsageError(
                    f"{self.path}: holds records of another definition of space "
                    f"{self.space.name!r}; use another file"
                )

    def owned(self) -> contextlib.AbstractContextManager[None]:
        """Makes this process the one that trains what is missing, while the block runs.

        Raises:
          UsageError: another process is that one.
        """
        return workdir.owning(self.path)

    def append(self, records: Sequence[Record]) -> None:
        """Stores records durably, all or none; a record that is already there is left as it is.

        A failure is kept only as long as there is no record of the same training.
        """
        made = [r for r in records if r.failure is None]
        failed = [r for r in records if r.failure is not None]
        with self._naming_the_file(), self._transaction():
            many = self._connection.executemany
            many(
                "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                [(*r.key, *_numbers(r), _cost_text(r), _checksum(r)) for r in made],
            )
            many(f"DELETE FROM failures WHERE {_KEY}", [r.key for r in made])
            many(
                "INSERT OR REPLACE INTO failures SELECT ?, ?, ?, ?, ?, ?, ?, ? "
                f"WHERE NOT EXISTS (SELECT 1 FROM records WHERE {_KEY})",
                [(*r.key, r.seconds, r.failure, _failure_checksum(r), *r.key) for r in failed],
            )

    def keys(self, *, failed: bool = True) -> set[Key]:
        """The keys of all records of the space, and those of failed trainings unless refused."""
        query = f"SELECT {_KEY_COLUMNS} FROM records WHERE space = :space"
        if failed:
            query += f" UNION ALL SELECT {_KEY_COLUMNS} FROM failures WHERE space = :space"
        with self._naming_the_file():
            return set(self._connection.execute(query, {"space": self.space.name}))

    def read(self, dataset: str, recipe: str) -> list[Record]:
        """All records of the space on this data with this recipe, in the order of their keys.

        Raises:
          CorruptFileError: a row's checksum is wrong.
        """
        query = (
            "SELECT architecture, seed, metric, seconds, cost, checksum FROM records "
            "WHERE space = ? AND dataset = ? AND recipe = ? ORDER BY architecture, seed"
        )
        with self._naming_the_file():
            rows = self._connection.execute(query, (self.space.name, dataset, recipe)).fetchall()
        records = []
        for choices, seed, metric, seconds, cost, checksum in rows:
            row = (self.space.name, choices, dataset, recipe, seed, metric, seconds, cost)
            try:
                if _crc(row) != checksum:
                    raise ValueError("the checksum is of something else")
                record = Record(
                    self.space.architecture(list(map(int, choices.split(",")))),
                    dataset,
                    recipe,
                    seed,
                    float(metric),
                    float(seconds),
                    Cost.from_json(workdir.parse_json(cost.encode())),
                )
            except (*errors.MALFORMED, errors.UsageError) as error:
                raise errors.CorruptFileError(
                    f"{self.path}: the record of architecture {str(choices)[:100]}, seed {seed} is "
                    f"damaged ({error})"
                ) from error
            records.append(record)
        return records

    def failed(self, dataset: str, recipe: str) -> list[Record]:
        """The trainings of the space on this data with this recipe that failed, as `read` does."""
        query = (
            "SELECT architecture, seed, seconds, reason, checksum FROM failures "
            "WHERE space = ? AND dataset = ? AND recipe = ? ORDER BY architecture, seed"
        )
        with self._naming_the_file():
            rows = self._connection.execute(query, (self.space.name, dataset, recipe)).fetchall()
        records = []
        for choices, seed, seconds, reason, checksum in rows:
            architecture = Architecture(self.space.name, tuple(map(int, choices.split(","))))
            record = Record(architecture, dataset, recipe, seed, 0.0, seconds, failure=reason)
            if _failure_checksum(record) != checksum:
                raise errors.CorruptFileError(
                    f"{self.path}: the failure of architecture {choices}, seed {seed} is damaged"
                )
            records.append(record)
        return records

    def __len__(self) -> int:
        """Records of the space, without failures."""
        query = "SELECT count(*) FROM records WHERE space = ?"
        with self._naming_the_file():
            (count,) = self._connection.execute(query, (self.space.name,)).fetchone()
        return int(count)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> RecordStore:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite ends it by itself when a disk is full
                self._connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        """Turns SQLite's errors, which never say which file, into ours."""
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.IntegrityError) as error:
            kind = "_".join(str(getattr(error, "sqlite_errorname", "")).split("_")[:2])
            advice = f" ({_ADVICE[kind]})" if kind in _ADVICE else ""
            raise errors.TfgenError(f"{self.path}: record store: {error}{advice}") from error
        except sqlite3.DatabaseError as error:
            raise errors.CorruptFileError(f"{self.path}: record store: {error}") from error


def _make(path: pathlib.Path) -> None:
    """Makes an empty store under another name and gives it its own when it is whole.

    SQLite makes a file of 0 bytes first: after a kill that would look like a truncated store.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        connection = sqlite3.connect(name, isolation_level=None)
        connection.executescript(_SCHEMA + _FAILURES)
        connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        connection.close()
        os.chmod(name, 0o644)
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(name, path)
    finally:
        os.unlink(name)


def _cost_text(record: Record) -> str:
    return json.dumps(record.cost.to_json(), sort_keys=True)


def _checksum(record: Record) -> int:
    """CRC-32 of everything a row holds; integrity_check does not look into values."""
    return _crc((*record.key, *_numbers(record), _cost_text(record)))


def _numbers(record: Record) -> tuple[float | None, float | None]:
    """Metric and seconds as SQLite gives them back: Python's floats, no zero below 0."""
    metric, seconds = (
        None if n is None else float(n) + 0.0 for n in (record.metric, record.seconds)
    )
    return metric, seconds


def _failure_checksum(record: Record) -> int:
    return _crc((*record.key, record.seconds, record.failure))


def _crc(row: tuple[object, ...]) -> int:
    return zlib.crc32(repr(row).encode())
