"""The name of every file that a run reads or writes; atomic writes; the manifest."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import tfgen
from tfgen import errors

MANIFEST = "manifest.json"
_TRIES = 10  # to make a folder that others sweep away
_VERSIONED = ("numpy", "tensorflow", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert")
SCHEMA = 1  # of manifests; the oldest ones do not say it
JSON_BYTES = 16 << 20  # of a file that grows, as a device's does with every timed network
SMALL_JSON_BYTES = 1 << 20  # of a manifest, of a space
_DIGITS = 20  # of a whole number: a seed has 64 bits
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# An archive may unpack to so much, or to so many times what it has itself.
_UNPACKED_BYTES, _UNPACKED_RATIO = 64 << 20, 20
_ARRAY_KINDS = "biuf"


class WorkDir:
    """Where each stage of a run finds its parents' files and writes its own."""

    def __init__(self, root: str | os.PathLike[str]):
        self.root = pathlib.Path(root)

    @property
    def records(self) -> pathlib.Path:
        return self.root / "records.db"

    @property
    def supernet(self) -> pathlib.Path:
        """Weights and momenta after the last epoch, and their manifest."""
        return self.root / "supernet"

    @property
    def largest(self) -> pathlib.Path:
        """The largest network of a supernet, where it is trained by itself before all others."""
        return self.root / "largest"

    @property
    def prototype(self) -> pathlib.Path:
        """A user's model as it was read: its space and its weights."""
        return self.root / "prototype"

    @property
    def bundle(self) -> pathlib.Path:
        return self.root / "bundle"

    @property
    def candidates(self) -> pathlib.Path:
        return self.root / "candidates.json"

    def trained(self, network: str) -> pathlib.Path:
        return self.root / "trained" / network

    def deployment(self, network: str, answer: str) -> pathlib.Path:
        """Of a network as the answer to one budget, seed and kind of file."""
        return self.root / "deployments" / f"{network}-{answer}"


def package_root() -> pathlib.Path:
    """The folder that holds `tfgen/` and `configs/`."""
    return pathlib.Path(__file__).resolve().parent.parent


def user_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path as the user wrote it, made absolute."""
    return pathlib.Path(path).expanduser().absolute()


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes `data` whole or not at all: a reader sees the old file or the new one."""
    with writing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary name beside `path`; syncs and renames it when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        # mkstemp makes private files; an artefact is as readable as the umask allows.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def owning(path: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from owning the same path while the block runs.

    The kernel takes the lock back when this process ends, however it does; the small file stays.

    Raises:
      UsageError: another process owns it; says which.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another"
            raise errors.UsageError(
                f"{path}: process {owner} is at work on it; wait until it has ended, or take "
                "another work directory"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def recover(path: pathlib.Path) -> None:
    """Brings back the older folder after a crash in the middle of `writing_folder`."""
    old = _old(path)
    if old.is_dir() and not path.exists():
        old.rename(path)


def _old(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def writing_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder; when the block ends well it takes the place of `path`.

    An older folder of that name stays whole until the new one is, and comes back if the swap fails;
    what a crash between the two renames left as `.NAME.old` comes back with `recover`. What killed
    writers of the same folder left is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    _sweep(path)
    temporary, descriptor = _locked_folder(path)
    old = _old(path)
    try:
        temporary.chmod(0o755)
        yield temporary
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


def _locked_folder(path: pathlib.Path) -> tuple[pathlib.Path, int]:
    """A new folder beside `path`, and the descriptor whose lock keeps it from being swept away."""
    for _ in range(_TRIES):
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        with contextlib.suppress(FileNotFoundError):  # swept away before it was locked
            descriptor = os.open(temporary, os.O_RDONLY)
            with contextlib.suppress(OSError):  # no locks on this file system, and no sweeping
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if temporary.exists():
                return temporary, descriptor
            os.close(descriptor)
    raise errors.TfgenError(f"{path.parent}: folders vanish as soon as they are made")


def _sweep(path: pathlib.Path) -> None:
    """Removes the folders of writers of this path that were killed."""
    for left in path.parent.glob(f".{path.name}.*"):
        if left == _old(path) or not left.is_dir():
            continue
        with contextlib.suppress(OSError):  # its writer is at work, or another one sweeps too
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def scratch() -> Iterator[pathlib.Path]:
    """A folder that is gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="tfgen-") as name:
        yield pathlib.Path(name)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes indented JSON with sorted keys; NaN and infinity are refused."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: pathlib.Path, most_bytes: int = JSON_BYTES) -> Any:
    """Reads JSON as `parse_json` does; raises CorruptFileError that names the file."""
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise ValueError(f"it has more than {most_bytes:,} bytes")
        return parse_json(content)
    except FileNotFoundError:
        raise errors.CorruptFileError(f"{path}: file is missing") from None
    except (ValueError, OSError) as error:
        raise errors.CorruptFileError(f"{path}: not readable as JSON ({error})") from error


def parse_json(content: bytes) -> Any:
    """JSON of others; raises ValueError.

    Refused is also what Python's parser takes: numbers that are not finite, names that stand twice
    in an object, whole numbers of more than 64 bits, halves of characters, endless nesting.
    """
    try:
        text = content.decode()
        value = json.loads(
            text,
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_once,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_DIGITS]} is no finite number")
    return value


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a whole number has {len(text):,} digits")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:100]!r} is there twice")
        found[name] = value
    return found


def write_arrays(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], compressed: bool = False
) -> None:
    """Writes named arrays as a .npz; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    write = np.savez_compressed if compressed else np.savez
    write(buffer, allow_pickle=False, **{n: np.asarray(arrays[n]) for n in sorted(arrays)})
    write_bytes(path, buffer.getvalue())


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a .npz of numbers; raises CorruptFileError that names the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path.stat().st_size)
            return {
                member.filename.removesuffix(".npy"): _read_array(archive, member)
                for member in archive.infolist()
            }
    except FileNotFoundError:
        raise errors.CorruptFileError(f"{path}: file is missing") from None
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise errors.CorruptFileError(f"{path}: not readable as .npz ({error})") from error


def check_unpacked(unpacked_bytes: int, file_bytes: int) -> None:
    """Raises ValueError where a file of so many bytes unpacks to far more."""
    if unpacked_bytes > max(_UNPACKED_BYTES, _UNPACKED_RATIO * file_bytes):
        raise ValueError(f"{file_bytes:,} bytes unpack to {unpacked_bytes:,}")


def check_archive(archive: zipfile.ZipFile, file_bytes: int) -> None:
    """Raises ValueError for a zip archive that unpacks to far more than it has, before it is read.

    What a member has beyond its stated size is never read.

    Args:
      archive: the archive.
      file_bytes: of its file.
    """
    members = archive.infolist()
    check_unpacked(sum(member.file_size for member in members), file_bytes)
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a member is there twice")


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array whose header is true of its size; raises ValueError for another."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, kind = read(file)
        if kind.kind not in _ARRAY_KINDS:
            raise ValueError(f"{member.filename} holds {kind}, no numbers")
        if math.prod(shape) * kind.itemsize != member.file_size - file.tell():
            raise ValueError(f"{member.filename} has not the bytes of {shape} of {kind}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def sha256(path: pathlib.Path) -> str:
    """The file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(
    folder: pathlib.Path,
    *,
    config: Mapping[str, Any],
    seed: int,
    data: Mapping[str, str],
    parents: Mapping[str, str],
) -> dict[str, Any]:
    """Writes `manifest.json`, last of all files of an artefact, and returns it.

    Args:
      folder: the artefact; every file in it is listed with its sha256.
      config: what made it.
      seed: the seed it was made with.
      data: name of each data set -> its fingerprint.
      parents: name of each file it was made from -> sha256.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    manifest = {
        "schema": SCHEMA,
        "tfgen": tfgen.__version__,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": dict(config),
        "seed": seed,
        "data": dict(data),
        "parents": dict(parents),
        "versions": versions(),
        "files": {p.relative_to(folder).as_posix(): sha256(p) for p in files},
    }
    manifest["sha256"] = _own_hash(manifest)
    write_json(folder / MANIFEST, manifest)
    return manifest


def is_made_by(
    manifest: Mapping[str, Any], *, config: Mapping[str, Any], seed: int, data: Mapping[str, str]
) -> bool:
    """Whether what a manifest tells of was made so; arguments as `write_manifest` has them."""
    made = (manifest["config"], manifest["seed"], manifest["data"])
    return made == (json.loads(json.dumps(dict(config))), seed, dict(data))


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Reads `manifest.json` and verifies every file it lists.

    Raises:
      CorruptFileError: the manifest, or a file that it lists, is missing or damaged; by name.
      NewerFileError: a later tfgen wrote it.
    """
    where = folder / MANIFEST
    manifest: dict[str, Any] = read_json(where, SMALL_JSON_BYTES)
    try:
        schema = manifest.get("schema", 1)
        if type(schema) is not int or schema < 1:
            raise ValueError(f"schema {schema!r}")
        if schema > SCHEMA:
            raise errors.NewerFileError(
                f"{where}: is of schema {schema}, this tfgen {tfgen.__version__} reads up to "
                f"{SCHEMA}: take a newer tfgen"
            )
        intact = manifest["sha256"] == _own_hash(manifest)
        files = dict(manifest["files"])
        if not all(isinstance(manifest[n], dict) for n in ("config", "data", "parents")):
            raise TypeError("config, data and parents are objects")
    except errors.MALFORMED:
        raise errors.CorruptFileError(f"{where}: is no manifest") from None
    if not intact:
        raise errors.CorruptFileError(f"{where}: differs from its own sha256")
    for name, expected in files.items():
        _check_within(where, name)
        path = folder / name
        try:
            if not path.is_file():
                raise errors.CorruptFileError(f"{path}: file is missing")
            found = sha256(path)
        except OSError as error:
            raise errors.CorruptFileError(f"{path}: {error.strerror or error}") from error
        if found != expected:
            raise errors.CorruptFileError(f"{path}: sha256 differs from {MANIFEST}")
    return manifest


def _check_within(where: pathlib.Path, name: str) -> None:
    """Raises CorruptFileError for a name that leads out of the manifest's folder.

    A link may lead anywhere: below Bazel all files are links, and its content is that of the hash.
    """
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or path.as_posix() != name:
        raise errors.CorruptFileError(f"{where}: lists {name[:100]!r}, which is no file within")


def _own_hash(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest's other fields."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of what results depend on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
