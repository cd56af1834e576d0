"""Devices that others measured: what configs/devices/ says of their tables, and reading them.

The tables are not part of tfgen. A user has them in a folder; a device's entry says which file of
it, with which sha256, where its numbers come from, and under which licence.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import gzip
import hashlib
import io
import math
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfgen import errors, workdir
from tfgen.cost import table_layouts
from tfgen.cost.latency import Floats, LatencyModel
from tfgen.cost.table_latency import BlockTable, NetworkTable, Terms
from tfgen.space import tabulated
from tfgen.space.search_space import Choices, SearchSpace

KIND = "public"
HOLDS = ("networks", "blocks")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TABLE_BYTES = 256 << 20  # unpacked
_KEPT_FILES = 4  # parsed; what one space has
_SOURCE = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{8}")


@dataclasses.dataclass(frozen=True)
class TableFile:
    """A file in the user's folder, by name and content."""

    name: str
    sha256: str

    def __post_init__(self) -> None:
        if not self.name or pathlib.PurePath(self.name).name != self.name:
            raise ValueError(f"a table is named without its folder, got {self.name!r}")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 must have 64 hex digits, got {self.sha256!r}")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A device's latencies on one space.

    Attributes:
      file: the table.
      holds: one of HOLDS: a latency for each network, or one for each block.
      column: the table's column of milliseconds.
      source: public repository and commit of the numbers, as owner/name@commit.
      licence: of that repository; "none stated" where it states none.
      measured: what was measured, in words.
      architectures: the file that says which network each row is, where the table has only indices.
      rows: values that a row must have to be of this device, by column.
      rest_ms: of what every network has and the table has not.
    """

    file: TableFile
    holds: str
    column: str
    source: str
    licence: str
    measured: str
    architectures: TableFile | None = None
    rows: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rest_ms: float = 0.0

    def __post_init__(self) -> None:
        if self.holds not in HOLDS:
            raise ValueError(f"holds must be one of {HOLDS}, got {self.holds!r}")
        if not _SOURCE.fullmatch(self.source):
            raise ValueError(f"source must be owner/name@commit, got {self.source!r}")
        if not (self.column and self.licence and self.measured):
            raise ValueError("column, licence and measured must be said")
        if not (math.isfinite(self.rest_ms) and self.rest_ms >= 0):
            raise ValueError(f"rest_ms must be finite and not negative, got {self.rest_ms}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        """Raises KeyError, TypeError or ValueError where the data is malformed."""
        fields = dict(data)
        fields["file"] = TableFile(**fields["file"])
        if "architectures" in fields:
            fields["architectures"] = TableFile(**fields["architectures"])
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that others measured.

    Attributes:
      name: what budgets call it.
      description: the hardware, in words.
      entries: name of a space -> its table.
    """

    name: str
    description: str
    entries: Mapping[str, Entry]

    def __post_init__(self) -> None:
        strangers = sorted(set(self.entries) - set(tabulated.TABULATED))
        if strangers or not self.entries or not self.description:
            raise ValueError(f"a device has a description and tables of known spaces: {strangers}")


def known(folder: pathlib.Path | None = None) -> dict[str, tuple[str, ...]]:
    """Each device that others measured -> the spaces that its tables cover.

    Args:
      folder: of the devices' entries; None for the project's.
    """
    return {name: tuple(sorted(read(name, folder).entries)) for name in _names(folder)}


def read(device: str, folder: pathlib.Path | None = None) -> Device:
    """What is said of a device.

    Args:
      device: its name.
      folder: of the devices' entries; None for the project's.

    Raises:
      UsageError: nobody's table has that device; names the known ones.
      CorruptFileError: its file is malformed.
    """
    path = _folder(folder) / f"{device}.json"
    data = workdir.read_json(path) if path.is_file() else {}
    if not isinstance(data, dict) or data.get("kind") != KIND:
        known_names = ", ".join(_names(folder))
        raise errors.UsageError(f"no public table of device {device!r}; known: {known_names}")
    try:
        entries = {space: Entry.from_json(entry) for space, entry in data["tables"].items()}
        return Device(device, data["description"], entries)
    except errors.MALFORMED as error:
        raise errors.CorruptFileError(f"{path}: {error}") from error


def load(
    device: str,
    space: SearchSpace,
    tables_dir: pathlib.Path,
    folder: pathlib.Path | None = None,
    seed: int = 0,
) -> LatencyModel:
    """The latencies of a space on a device, from a table in the user's folder.

    Args:
      device: its name.
      space: whose networks are asked about.
      tables_dir: the folder of public tables.
      folder: of the devices' entries; None for the project's.
      seed: of the split of a table into fitted and calibrating networks.

    Raises:
      UsageError: the device or its table of this space is not known, or the file is not there.
      CorruptFileError: the file is not the one that the entry means, or has rows that it must not.
    """
    entry = _entry(device, space, folder)
    if entry.holds == "networks":
        choices, ms = networks(device, space, tables_dir, folder)
        layout = table_layouts.NETWORKS[space.name]
        terms = Terms(space, layout.groups(space))
        with _reading(entry, space):
            return NetworkTable(device, choices, ms, terms, layout.parts(space), seed)
    with _reading(entry, space):
        rows = _rows(entry, tables_dir)
        terms, term_ms, rest_ms = table_layouts.BLOCKS[space.name](space, rows, entry.column)
        return BlockTable(device, terms, term_ms, rest_ms + entry.rest_ms)


def networks(
    device: str, space: SearchSpace, tables_dir: pathlib.Path, folder: pathlib.Path | None = None
) -> tuple[Choices, Floats]:
    """The networks that were measured whole, and their latencies.

    Args:
      device: its name.
      space: of the networks.
      tables_dir: the folder of public tables.
      folder: of the devices' entries; None for the project's.

    Returns:
      Canonical choices [networks, decisions], and ms [networks].

    Raises:
      UsageError, CorruptFileError: as `load`; UsageError also for a table of blocks.
    """
    entry = _entry(device, space, folder)
    if entry.holds != "networks":
        raise errors.UsageError(f"the table of {device!r} on {space.name!r} has blocks only")
    with _reading(entry, space):
        # A blank: the device does not run that network.
        rows = [row for row in _rows(entry, tables_dir) if row[entry.column]]
        ms = np.array([float(row[entry.column]) for row in rows])
        return table_layouts.NETWORKS[space.name].choices(space, rows), ms


def numbered(
    space: SearchSpace, tables_dir: pathlib.Path, folder: pathlib.Path | None = None
) -> Choices:
    """All networks of a space in the order of their numbers in its benchmark [networks, decisions].

    Args:
      space: of the networks.
      tables_dir: the folder of public tables.
      folder: of the devices' entries; None for the project's.

    Raises:
      UsageError: no table numbers them, or the file is not there.
      CorruptFileError: the file is not the one that is meant, or does not number them all.
    """
    tables = [read(name, folder).entries.get(space.name) for name in _names(folder)]
    entry = next((table for table in tables if table and table.architectures), None)
    if entry is None or entry.architectures is None:
        raise errors.UsageError(f"networks of {space.name} have no numbers in a public table")
    with _reading(entry, space):
        rows = _read_csv(entry.architectures, entry, tables_dir)
        rows = sorted(rows, key=lambda row: int(row["index"]))
        if [int(row["index"]) for row in rows] != list(range(space.size())):
            raise ValueError("each network must have a number from 0")
        return table_layouts.NETWORKS[space.name].choices(space, rows)


# --- files --------------------------------------------------------------------------------------


def _folder(folder: pathlib.Path | None) -> pathlib.Path:
    return folder or workdir.package_root() / "configs" / "devices"


def _names(folder: pathlib.Path | None) -> list[str]:
    # What begins with a dot is being written.
    paths = sorted(path for path in _folder(folder).glob("*.json") if path.name[0] != ".")
    found = []
    for path in paths:
        with contextlib.suppress(errors.CorruptFileError, AttributeError):
            if workdir.read_json(path).get("kind") == KIND:
                found.append(path.stem)
    return found


def _entry(device: str, space: SearchSpace, folder: pathlib.Path | None) -> Entry:
    found = read(device, folder)
    if space.name not in found.entries:
        raise errors.UsageError(
            f"no public table has device {device!r} on space {space.name!r}; it is known on "
            f"{', '.join(sorted(found.entries))}"
        )
    return found.entries[space.name]


@contextlib.contextmanager
def _reading(entry: Entry, space: SearchSpace) -> Iterator[None]:
    """Rows that cannot be read are the file's fault."""
    try:
        yield
    except errors.MALFORMED as error:
        raise errors.CorruptFileError(
            f"{entry.file.name}: is no table of {space.name}: {error!r}"
        ) from error


def _rows(entry: Entry, tables_dir: pathlib.Path) -> list[dict[str, str]]:
    """The device's rows of a table, each with its architecture."""
    rows = _read_csv(entry.file, entry, tables_dir)
    rows = [row for row in rows if all(row[k] == v for k, v in entry.rows.items())]
    if entry.architectures is None:
        return rows
    texts = {
        row["index"]: row["arch_str"] for row in _read_csv(entry.architectures, entry, tables_dir)
    }
    return [{**row, "arch_str": texts[row["index"]]} for row in rows]


def _read_csv(file: TableFile, entry: Entry, tables_dir: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a table whose content is the expected one."""
    # A folder as it was unpacked has the tables in folders of their own.
    found = [tables_dir / file.name, *sorted(tables_dir.glob(f"*/{file.name}"))]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise errors.UsageError(
            f"{tables_dir} has no {file.name}: give the folder of public tables that has it "
            f"(numbers of {entry.source}, licence: {entry.licence})"
        )
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != file.sha256:
        raise errors.CorruptFileError(
            f"{path}: is not the table that is meant: its sha256 is {sha256}, not {file.sha256}"
        )
    return _parsed(data)


@functools.lru_cache(maxsize=_KEPT_FILES)
def _parsed(data: bytes) -> list[dict[str, str]]:
    """The rows of a table's file, for reading only: many devices share a table."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(_TABLE_BYTES + 1)
        if len(content) > _TABLE_BYTES:
            raise ValueError(f"it unpacks to more than {_TABLE_BYTES:,} bytes")
        return list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    except (EOFError, OSError, csv.Error, zlib.error) as error:
        raise ValueError(f"it is no table in gzip: {error}") from error
