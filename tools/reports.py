"""Rows of results as CSV for programs and as Markdown for readers."""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from tfgen import workdir


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a Markdown table.

    Attributes:
      header: above it.
      cell: what a row shows in it.
    """

    header: str
    cell: Callable[[Any], str]


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 in per cent without the sign, "-" for none: 0.0725 -> 7.2."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def interval(low: float, high: float) -> str:
    """Two shares of 1 in per cent."""
    return f"{percent(low)}–{percent(high)}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them, "-" for none: 0.25 s, 42 s, 5.2 min, 3.1 h."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def write_csv(path: pathlib.Path, rows: Sequence[Any]) -> None:
    """Writes dataclasses of one kind, a column for each field; numbers in six digits."""
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(rows[0])]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = [getattr(row, name) for name in names]
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
    workdir.write_bytes(path, text.getvalue().encode())


def markdown(columns: Sequence[Column], rows: Sequence[Any]) -> str:
    """A Markdown table."""
    lines = [[column.header for column in columns], ["---"] * len(columns)]
    lines += [[column.cell(row) for column in columns] for row in rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def write_markdown(path: pathlib.Path, *parts: str) -> None:
    """Writes paragraphs and tables with an empty line between them."""
    workdir.write_bytes(path, ("\n\n".join(part.strip("\n") for part in parts) + "\n").encode())
