"""What others measured of a space's networks: the truth that a search on it is judged by.

The table is not part of tfgen; a user brings it.
"""

from __future__ import annotations

import csv
import gzip
import io
import pathlib
import zlib
from collections.abc import Mapping

import numpy as np

from tfgen import errors
from tfgen.space.search_space import Choices
from tfgen.space.tabulated import NASBENCH201_EDGES, NASBENCH201_OPS, nasbench201_cell

_MAX_BYTES = 64_000_000  # of a table, unpacked


class NasBench201:
    """Accuracies of NAS-Bench-201's 15,625 cells, in per cent.

    Attributes:
      choices: every cell, in the table's order [cells, 6].
      accuracies: by the table's column, of each cell [cells].
    """

    def __init__(self, path: pathlib.Path, columns: tuple[str, ...]):
        """Reads a .csv.gz with a column `arch_str` as the benchmark writes cells.

        Raises:
          UsageError: there is no such file.
          CorruptFileError: it is no such table.
        """
        try:
            with gzip.open(path) as file:
                content = file.read(_MAX_BYTES + 1)
            if len(content) > _MAX_BYTES:
                raise errors.CorruptFileError(f"{path}: is larger than any such table")
            text = content.decode()
        except FileNotFoundError:
            raise errors.UsageError(f"{path}: no such table") from None
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise errors.CorruptFileError(f"{path}: not readable ({error})") from error
        try:
            rows = list(csv.DictReader(io.StringIO(text)))
            cells = [nasbench201_cell(row["arch_str"]) for row in rows]
            self.choices: Choices = np.array(cells, np.int64).reshape(
                len(cells), len(NASBENCH201_EDGES)
            )
            self.accuracies: Mapping[str, np.ndarray] = {
                name: np.array([float(row[name]) for row in rows]) for name in columns
            }
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise errors.CorruptFileError(f"{path}: no table of cells ({error})") from error
        self._rows = {cell: number for number, cell in enumerate(cells)}
        if len(self._rows) != len(NASBENCH201_OPS) ** len(NASBENCH201_EDGES):
            raise errors.CorruptFileError(f"{path}: has {len(self._rows):,} cells of 15,625")

    def rows(self, choices: Choices) -> np.ndarray:
        """Where these cells [cells, 6] are in the table [cells]."""
        return np.array([self._rows[tuple(row)] for row in choices.tolist()])
