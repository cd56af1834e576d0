"""Pictures of series, each written twice: PNG by matplotlib, interactive HTML by plotly.

A chart is described once; both libraries draw that description. The HTML reads plotly.min.js, which
is written beside it once, so pages are small and need no network.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import pathlib
from collections.abc import Sequence

from tfgen import errors, workdir

PLOTLY_JS = "plotly.min.js"
STYLES = ("line", "points", "dots")
# Okabe and Ito's colours: told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#BBBBBB"
_INCHES = (6.4, 4.2)
_DPI = 120


@dataclasses.dataclass(frozen=True)
class Series:
    """Numbers under one name.

    Attributes:
      name: in the legend.
      x: [points].
      y: [points].
      style: one of STYLES: "line" joins its points, "points" does not, "dots" are a background.
      low: lower ends of intervals around y [points], or none.
      high: upper ends.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "points"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"style must be one of {STYLES}, got {self.style!r}")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"series {self.name!r}: low and high belong together")
        columns = [self.x, self.y, *(c for c in (self.low, self.high) if c is not None)]
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"series {self.name!r}: columns differ in length")

    @property
    def arms(self) -> tuple[list[float], list[float]] | None:
        """How far the intervals reach below and above y, each [points]."""
        if self.low is None or self.high is None:
            return None
        below = [y - low for y, low in zip(self.y, self.low, strict=True)]
        return below, [high - y for y, high in zip(self.y, self.high, strict=True)]


@dataclasses.dataclass(frozen=True)
class Chart:
    """What is drawn.

    Attributes:
      title: above the picture.
      x_label: with its unit.
      y_label: with its unit.
      series: drawn in order, the later ones on top.
      x_log: whether x is on a logarithmic axis.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_log: bool = False

    def colours(self) -> list[str]:
        """One for each series; backgrounds are grey."""
        numbers = iter(range(len(self.series)))
        return [
            _GREY if series.style == "dots" else _COLOURS[next(numbers) % len(_COLOURS)]
            for series in self.series
        ]


def check() -> None:
    """Raises UsageError unless both libraries are there: said before hours of training."""
    for package in ("matplotlib", "plotly"):
        if importlib.util.find_spec(package) is None:
            raise errors.UsageError(
                f"pictures need {package}, which is not installed: pip install tfgen[reports]"
            )


def write(chart: Chart, folder: pathlib.Path, stem: str) -> list[pathlib.Path]:
    """Writes `stem`.png and `stem`.html into the folder, and plotly.min.js where it is missing."""
    paths = [folder / f"{stem}.png", folder / f"{stem}.html"]
    with workdir.writing(paths[0]) as temporary:
        _draw_png(chart, temporary)
    workdir.write_bytes(paths[1], _html(chart, stem).encode())
    if not (folder / PLOTLY_JS).is_file():
        from plotly import offline

        workdir.write_bytes(folder / PLOTLY_JS, offline.get_plotlyjs().encode())
    return paths


def _draw_png(chart: Chart, path: pathlib.Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for series, colour in zip(chart.series, chart.colours(), strict=True):
        axes.errorbar(
            series.x,
            series.y,
            yerr=series.arms,
            linestyle="-" if series.style == "line" else "none",
            marker="." if series.style == "dots" else "o",
            markersize=2 if series.style == "dots" else 4,
            capsize=3,
            color=colour,
            label=series.name,
        )
    if chart.x_log:
        axes.set_xscale("log")
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Software": None})  # equal charts give equal bytes


def _html(chart: Chart, name: str) -> str:
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for series, colour in zip(chart.series, chart.colours(), strict=True):
        bars = None
        if series.arms is not None:
            below, above = series.arms
            bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
        figure.add_trace(
            graph_objects.Scatter(
                x=_rounded(series.x),
                y=_rounded(series.y),
                mode="lines+markers" if series.style == "line" else "markers",
                marker={"color": colour, "size": 3 if series.style == "dots" else 7},
                error_y=bars,
                name=series.name,
            )
        )
    figure.update_layout(
        title=chart.title,
        xaxis={"title": chart.x_label, "type": "log" if chart.x_log else "linear"},
        yaxis={"title": chart.y_label},
        template="plotly_white",
    )
    return str(figure.to_html(include_plotlyjs="directory", div_id=name))


def _rounded(values: Sequence[float]) -> list[float]:
    """Five significant digits: thousands of points stay a small page."""
    return [
        float(f"{value:.5g}") if math.isfinite(value) else value for value in map(float, values)
    ]
