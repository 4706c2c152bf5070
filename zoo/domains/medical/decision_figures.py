"""Pictures of classification that several tasks draw: ROC curves and the confusion matrix.

Letters: B cases, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from zoo.domains.medical.decisions import binary_auc, confusion_matrix
from zoo.drawing import COLOURS, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Share of a row from which on its cell is so dark that black numbers cannot be read.
_DARK = 0.55


class Curve(NamedTuple):
    """A ROC curve: one point a threshold, thresholds falling.

    Attributes:
        false: Share of negatives at or above each threshold.
        true: Share of positives at or above it.
        cuts: The thresholds.
        colour: In which it is drawn.
    """

    false: NDArray[np.float64]
    true: NDArray[np.float64]
    cuts: NDArray[np.float64]
    colour: str


def draw_roc(
    axes: Axes,
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    classes: Sequence[str],
    number: int,
    *,
    every: bool = False,
) -> Curve | None:
    """Draw the ROC curve of one class against the rest, with its area in the legend.

    Args:
        axes: Is drawn on.
        labels: (B,) class numbers.
        probabilities: (B, K).
        classes: K names.
        number: The class.
        every: Keep points that lie on the line between their neighbours.

    Returns:
        The curve; None where all cases are of the class, or none is: nothing is drawn then.
    """
    positive, scores = labels == number, probabilities[:, number]
    if positive.all() or not positive.any():
        return None
    false, true, cuts = roc_curve(positive, scores, drop_intermediate=not every)
    colour = COLOURS[number % len(COLOURS)]
    words = f"{short_name(classes[number])}, AUC {binary_auc(positive, scores):.3f}"
    axes.plot(false, true, color=colour, label=words)
    return Curve(false, true, cuts, colour)


def draw_chance(axes: Axes) -> None:
    """The diagonal: what guessing gives, or what a calibrated model would."""
    axes.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls="--")


def finish_roc(axes: Axes, title: str, *, false: str, true: str, size: int = 9) -> None:
    """The diagonal, the names of both axes, title and legend.

    Args:
        axes: With the curves there are.
        title: Above them.
        false: Name of the horizontal axis.
        true: Name of the vertical axis.
        size: Of the legend's letters, in points.
    """
    draw_chance(axes)
    axes.set(xlabel=false, ylabel=true, aspect="equal")
    axes.set_title(title, fontsize=11)
    if axes.get_legend_handles_labels()[0]:  # cases of one class have no curve
        axes.legend(loc="lower right", fontsize=size, frameon=False)


def draw_confusion(
    axes: Axes, labels: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[str]
) -> None:
    """Counts of true (rows) against predicted classes (columns), shaded by share of the row.

    Args:
        axes: Is drawn on.
        labels: (B,) class numbers.
        probabilities: (B, K); the largest is the prediction.
        classes: K names.
    """
    counts = confusion_matrix(labels, probabilities.argmax(1), len(classes))
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i in range(len(classes)):
        for j in range(len(classes)):
            colour = "white" if share[i, j] > _DARK else "black"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour)
    ticks, names = range(len(classes)), [short_name(c) for c in classes]
    axes.set_xticks(ticks, names, rotation=30, ha="right", fontsize=9)
    axes.set_yticks(ticks, names, fontsize=9)
