"""AdaptedDevice: a new device's file, with the networks measured on it and who is to tell the rest.

A network is written as the numbers of its choices, separated by blanks. Users may also give its
number in the space's benchmark, or its text as public tables have it.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from tfgen import errors, seeds, workdir
from tfgen.cost import table_layouts
from tfgen.cost.adapted_latency import FEWEST_NETWORKS
from tfgen.cost.latency import Floats
from tfgen.cost.latency_table import check_name
from tfgen.space import catalog, tabulated
from tfgen.space.search_space import Choices, SearchSpace

KIND = "adapted"
_COLUMNS = ["network", "ms"]
_QUOTED = 100  # characters of what a user wrote
_TRIES = 10  # draws for a network that was not drawn yet

Network = tuple[int, ...]  # canonical choices


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptedDevice:
    """A device of which a few networks were measured.

    Attributes:
      name: what budgets call it.
      description: the hardware, in words.
      space: the name of that of the networks.
      known: names of the devices that the others are predicted from.
      date: when this was written.
      networks: what was measured, in ms.
    """

    name: str
    description: str
    space: str
    known: tuple[str, ...]
    date: str
    networks: Mapping[Network, float]

    def __post_init__(self) -> None:
        check_name(self.name)
        if not all(isinstance(name, str) for name in self.known):
            raise ValueError(f"known devices are named, got {self.known}")
        if len(set(self.known)) != len(self.known):
            raise ValueError(f"known devices must be distinct, got {self.known}")
        _check_networks(self.networks)
        space = catalog.get(self.space)
        if not np.array_equal(space.canonical(self.choices), self.choices):
            raise ValueError(f"choices must be canonical points of {self.space}")

    @property
    def choices(self) -> Choices:
        """Of the measured networks [networks, decisions]."""
        return np.array(list(self.networks), np.int64)

    @property
    def ms(self) -> Floats:
        """What they took [networks]."""
        return np.array(list(self.networks.values()), np.float64)

    def save(self, path: pathlib.Path) -> None:
        data = {
            "kind": KIND,
            "description": self.description,
            "space": self.space,
            "from": list(self.known),
            "date": self.date,
            "networks": {_written(network): ms for network, ms in self.networks.items()},
        }
        workdir.write_json(path, data)


def load(path: pathlib.Path) -> AdaptedDevice:
    """The device in a file; raises CorruptFileError that names the file."""
    data = workdir.read_json(path)
    try:
        return AdaptedDevice(
            name=path.stem,
            description=data["description"],
            space=data["space"],
            known=tuple(data["from"]),
            date=data["date"],
            networks={tuple(map(int, text.split())): ms for text, ms in data["networks"].items()},
        )
    except (*errors.MALFORMED, errors.UsageError) as error:
        raise errors.CorruptFileError(f"{path}: describes no device ({error})") from error


def read_networks(
    path: pathlib.Path, space: SearchSpace, numbered: Choices | None = None
) -> dict[Network, float]:
    """What a user measured: CSV with the columns `network` and `ms`.

    Args:
      path: of the file.
      space: of the networks.
      numbered: the space's networks in the order of their numbers [architectures, decisions]; None
        where they have none.

    Raises:
      UsageError: a line that is no such network with a latency above 0, a network that is there
        twice, or fewer than FEWEST_NETWORKS.
    """
    found: dict[Network, float] = {}
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        try:
            if reader.fieldnames != _COLUMNS:
                raise errors.UsageError(f"{path}: the first line must be {','.join(_COLUMNS)}")
            for row in reader:
                if None in row:
                    raise ValueError("has more than two columns")
                network = _read(row["network"] or "", space, numbered)
                if network in found:
                    raise ValueError(f"network {row['network'][:_QUOTED]} is there twice")
                found[network] = _milliseconds(row["ms"] or "")
        except (csv.Error, ValueError) as error:
            raise errors.UsageError(f"{path}: line {reader.line_num}: {error}") from None
    try:
        _check_networks(found)
    except ValueError as error:
        raise errors.UsageError(f"{path}: {error}") from None
    return found


def suggest(space: SearchSpace, count: int, seed: int) -> list[str]:
    """Networks to measure on a new device, drawn at random, as users write them.

    Raises:
      UsageError: the space has hardly as many.
    """
    tried = space.sample(_TRIES * count, seeds.stream(seed, "suggest", space.name))
    drawn = list(dict.fromkeys(map(tuple, tried.tolist())))
    if len(drawn) < count:
        raise errors.UsageError(
            f"{len(drawn)} networks of {space.name} were drawn, asked were {count:,}: ask for fewer"
        )
    write = tabulated.nasbench201_text if space.name == "nasbench201" else _written
    return [write(network) for network in drawn[:count]]


def _written(network: Network) -> str:
    return " ".join(map(str, network))


def _read(text: str, space: SearchSpace, numbered: Choices | None) -> Network:
    """The network that a user means; raises ValueError."""
    text = text.strip()
    try:
        if text.isdecimal() and numbered is not None:
            if int(text) >= len(numbered):
                raise ValueError(f"numbers lie in 0..{len(numbered) - 1}")
            choices = numbered[int(text)]
        elif re.fullmatch(r"[\d ]+", text):
            choices = space.canonical([int(number) for number in text.split()])[0]
        else:
            layout = table_layouts.NETWORKS.get(space.name)
            if layout is None:
                raise ValueError("write its choices as numbers separated by blanks")
            choices = layout.choices(space, [{layout.column: text}])[0]
    except KeyError as error:
        raise ValueError(
            f"{text[:_QUOTED]!r} is no network of {space.name}: it has no {error}"
        ) from None
    except (*errors.MALFORMED, errors.UsageError) as error:
        raise ValueError(f"{text[:_QUOTED]!r} is no network of {space.name}: {error}") from None
    return tuple(choices.tolist())


def _milliseconds(text: str) -> float:
    try:
        ms = float(text)
    except ValueError:
        raise ValueError(f"ms must be a number, got {text[:_QUOTED]!r}") from None
    _check_ms(ms)
    return ms


def _check_ms(ms: float) -> None:
    if not (math.isfinite(ms) and ms > 0):
        raise ValueError(f"a latency must be a finite number above 0, got {ms}")


def _check_networks(networks: Mapping[Network, float]) -> None:
    if len(networks) < FEWEST_NETWORKS:
        raise ValueError(
            f"{len(networks)} networks were measured, {FEWEST_NETWORKS} are needed and about ten "
            "are advised"
        )
    for ms in networks.values():
        _check_ms(ms)
