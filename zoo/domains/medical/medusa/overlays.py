"""What `zoo predict` writes beside the table: a picture of each radiograph, and their files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from zoo import files
from zoo.domains.medical.medusa.figures import draw_panels, panels
from zoo.privacy import alias
from zoo.task import NOTICE

_DPI = 120
# Inches: a panel's width, and what stands above and below the panels.
_PANEL, _ABOVE, _BELOW = 2.6, 0.5, 0.25


def write_dense(
    folder: Path,
    *,
    name: str,
    values: Mapping[str, Any],
    said: str,
    alpha: float,
    key: Mapping[str, Path],
) -> list[Path]:
    """Write the picture of a radiograph, if it has one, and `files.csv`, if given its content.

    Args:
        folder: Where to.
        name: Id of the radiograph.
        values: See `figures.panels`; without `preview` no picture is drawn.
        said: One line on the prediction.
        alpha: Strength of the colour.
        key: Id of every radiograph of the prediction -> its file. It stands in a table of its
            own, to be kept apart: names of DICOM files often name a patient.

    Returns:
        The files written.
    """
    written = []
    if "preview" in values:
        written += write_overlay(folder, name=name, values=values, said=said, alpha=alpha)
    if key:
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerows([("id", "file"), *((i, str(p)) for i, p in key.items())])
        files.write_text(folder / "files.csv", table.getvalue())
        written.append(folder / "files.csv")
    return written


def write_overlay(
    folder: Path, *, name: str, values: Mapping[str, Any], said: str, alpha: float
) -> list[Path]:
    """Draw a radiograph with its maps side by side as `<name>.png`.

    Args:
        folder: Where to.
        name: Id of the radiograph.
        values: See `figures.panels`.
        said: One line on the prediction.
        alpha: Strength of the colour.

    Returns:
        The file written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(panels(values))
    height, width = values["preview"].shape
    tall = min(_PANEL * height / width, 3 * _PANEL)
    high = tall + _ABOVE + _BELOW
    figure = Figure(figsize=(_PANEL * count, high))
    FigureCanvasAgg(figure)
    # Placed by hand: matplotlib's own layouts take longer than a prediction.
    edges = (_BELOW / high, tall / high)
    row = [figure.add_axes((i / count, edges[0], 0.96 / count, edges[1])) for i in range(count)]
    for axes in row:
        axes.axis("off")
    draw_panels(row, values, alpha)
    figure.text(0.5, 1 - 0.08 / high, said, ha="center", va="top", fontsize=9)
    figure.text(0.5, 0.06 / high, NOTICE, ha="center", fontsize=8)
    path = folder / f"{file_stem(name)}.png"
    files.write_whole(path, partial(figure.savefig, dpi=_DPI))
    return [path]


def file_stem(name: str) -> str:
    """An id as the name of a file; one that had to be changed stays unique by its alias."""
    plain = re.sub(r"[^\w.() -]", "_", name).strip(". ")[:150]
    return plain if plain == name else f"{plain}-{alias(name)}".lstrip("-")
