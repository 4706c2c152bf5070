"""One self-contained HTML page a run: no script, no link to fetch, everything escaped."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, select_autoescape

from zoo import files
from zoo.runs import Run
from zoo.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CURVES = 6
# One colour for training, one for validation, told apart in grey print and by the colour-blind.
_COLOURS = {"train": "#1f5fa8", "val": "#d1661b"}


def write(run: Run, task: Task[Any]) -> Path:
    """Write report.html of a run whose evaluation is done; returns its path."""
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            info=run.info,
            config=task.config.flat(),
            medical=task.medical,
            results=_results(run),
            curves=_curves(run),
            figures=_figures(run),
            chosen=task.selection(),
        )
    )
    path = run.path / "report.html"
    files.write_text(path, page)
    return path


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("zoo", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment


def number(value: Any) -> str:
    """A value as people read it: four significant digits, no noise."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)  # a year is no 2,011
    return f"{value:.4g}"


def _results(run: Run) -> list[dict[str, Any]]:
    """One row a metric; of a cross-validation pooled metrics first, deviations beside values."""
    intervals = run.info.get("intervals", {})
    values = run.results()
    rows = []
    for name in sorted(values, key=lambda n: not n.startswith("pooled/")):
        stem = name.removesuffix("_mean")
        if name.endswith("_std") and (
            name.removesuffix("_std") in values or f"{name[:-4]}_mean" in values
        ):
            continue
        low, high = intervals.get(name, (None, None))
        averaged = stem != name and f"{stem}_std" in values  # rmse_county_mean is no average
        stem = stem if averaged else name
        shown = f"{stem}, mean" if averaged else name
        rows.append(
            {
                "name": shown,
                "value": values[name],
                "deviation": values.get(f"{stem}_std"),
                "low": low,
                "high": high,
            }
        )
    return rows


def picture(path: Path) -> str:
    """A PNG file as a data address."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _figures(run: Run) -> list[dict[str, Any]]:
    """Pictures as data addresses; those much wider than high get the width of the page."""
    shown = []
    for path in sorted(run.pictures(), key=lambda p: p.stat().st_mtime_ns):
        # Width and height stand in the header of every PNG, bytes 16 to 24.
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        title = path.stem.replace("_", " ")
        shown.append({"title": title, "data": picture(path), "wide": width > 1.3 * height})
    return shown


def _series(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    series: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for name, value in row["values"].items():
            if value is not None and name.startswith(("train/", "val/")):
                steps, values = series.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return series


def _curves(run: Run) -> str:
    """Losses and validation metrics over steps as one picture, as a data address."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    series = _series(run.metrics())
    names = [n for n in series if n.startswith("val/") and len(series[n][0]) > 1]
    names = ["loss", *(n for n in names if n != "val/loss")][:_MOST_CURVES]
    if "train/loss" not in series and len(names) == 1:
        return ""
    columns = min(3, len(names))
    height = math.ceil(len(names) / columns)
    figure, grid = plt.subplots(
        height, columns, figsize=(4.2 * columns, 2.9 * height), squeeze=False
    )
    for axes, name in zip(grid.flat, names, strict=False):
        _draw(axes, name, series)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    figure.tight_layout()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _draw(axes: Axes, name: str, series: Mapping[str, tuple[list[int], list[float]]]) -> None:
    shown = {"train/loss": "train", "val/loss": "val"} if name == "loss" else {name: "val"}
    for key, label in shown.items():
        if key in series:
            steps, values = series[key]
            axes.plot(steps, values, color=_COLOURS[label], label=label, lw=1.5, marker=".", ms=4)
    axes.set_title(name.removeprefix("val/").replace("_", " "), fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
