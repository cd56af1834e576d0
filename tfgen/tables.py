"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def number(value: float | None, digits: int = 4) -> str:
    """A number in `digits` significant digits, "-" for none."""
    if value is None:
        return "-"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.{digits}g}"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their headers; cells that look like numbers are aligned to the right."""
    columns = list(zip(headers, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(_numeric(cell) for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, (headers, ["-" * w for w in widths], *rows)))


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "-<>" or cell == ""
