"""What the pictures of several tasks share: axes without a frame, colours, names as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1f5fa8", "#d1661b", "#3a8f4f", "#8a4fa3", "#a3303b", "#6b6f76", "#b59410")
"""One a class or state, in order."""


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """A picture of one axes without its upper and right border, sizes in inches."""
    # Not pyplot, which keeps every figure until it is closed and asks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def shortened(text: str, most: int, *, keep_end: bool = False) -> str:
    """At most so many characters of a text, with an ellipsis for what went.

    Args:
        text: A name.
        most: Characters.
        keep_end: Cut the beginning, for file names, whose numbers stand last.
    """
    if len(text) <= most:
        return text
    return "…" + text[1 - most :] if keep_end else text[: most - 1] + "…"


def plain(text: str) -> str:
    """Text that matplotlib shows as it is and not as a formula."""
    return text.replace("$", r"\$")


def short_name(text: str, most: int = 18, *, keep_end: bool = False) -> str:
    """A name for a legend or an axis: no formula, no hidden entry, not long.

    Matplotlib leaves out of a legend what begins with an underscore.
    """
    cut = shortened(text, most, keep_end=keep_end)
    return (" " if cut.startswith("_") else "") + plain(cut)
