"""Tables of a split's report: classes, operating point, sources, subgroups, lungs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.domains.medical.decisions import confusion_matrix
from zoo.domains.medical.medusa.metrics import (
    accuracy,
    at_point,
    auc,
    ppv,
    sensitivity,
    slugs,
    specificity,
    wilson,
)
from zoo.task import Record

Row = dict[str, Any]
_BANDS = ((40, "under 40"), (60, "40 to 59"), (80, "60 to 79"), (200, "80 and over"))
# The label guessed from the source alone must not be right this often.
_CONFOUNDED = 0.9


def all_tables(
    records: Sequence[Record],
    classes: Sequence[str],
    positive: int,
    point: Mapping[str, Any] | None,
) -> Iterator[tuple[str, list[Row]]]:
    """Every table that the records allow: a title and rows."""
    known = [r for r in records if int(r.values["label"]) >= 0]
    if not known:
        return
    warning = confound(known, classes)
    if warning:
        yield "Warning: the source predicts the label", [{"what this means": warning}]
    yield "Classes", class_rows(known, classes)
    if point is not None:
        yield "Operating point", point_rows(known, classes, positive, point)
    sources = group_rows(known, "source", positive)
    if sources:
        yield "By source", sources
    subgroups = [row for key in ("sex", "age", "view") for row in group_rows(known, key, positive)]
    if subgroups:
        yield "Subgroups", subgroups
    inside = lung_rows(known)
    if inside:
        yield "Is it looking at the lungs?", inside


def text(record: Record, key: str) -> str:
    """A text value of a record, "" where it is not known."""
    return str(record.values[key]) if key in record.values else ""


def patients(records: Sequence[Record]) -> int:
    """How many patients the records are of."""
    return len({r.group for r in records})


def labels_of(records: Sequence[Record]) -> np.ndarray:
    """(B,) classes."""
    return np.array([int(r.values["label"]) for r in records])


def probabilities_of(records: Sequence[Record]) -> np.ndarray:
    """(B, K) probabilities."""
    return np.stack([r.values["probabilities"] for r in records])


def trials(records: Sequence[Record], classes: Sequence[str], positive: int) -> dict[str, int]:
    """Patients behind each proportion among the metrics."""
    labels = labels_of(records)
    guesses = probabilities_of(records).argmax(axis=1)

    def count(chosen: np.ndarray) -> int:
        return patients([r for r, c in zip(records, chosen, strict=True) if c])

    hits, others = count(labels == positive), count(labels != positive)
    found = {
        "accuracy": count(labels >= 0),
        "sensitivity": hits,
        "specificity": others,
        "sensitivity_at_point": hits,
        "specificity_at_point": others,
    }
    for c, name in enumerate(slugs(classes)):
        found[f"sensitivity_{name}"] = count(labels == c)
        found[f"ppv_{name}"] = count(guesses == c)
    return found


def with_interval(share: float, trials: int) -> str:
    """A share with its Wilson interval; empty without a trial."""
    if not trials:
        return ""
    low, high = wilson(share, trials)
    return f"{share:.3f} ({low:.3f} to {high:.3f})"


def _chosen(records: Sequence[Record], mask: np.ndarray) -> list[Record]:
    return [r for r, m in zip(records, mask, strict=True) if m]


def class_rows(records: Sequence[Record], classes: Sequence[str]) -> list[Row]:
    """Radiographs, predictions, sensitivity and PPV of each class; intervals count patients."""
    labels, guesses = labels_of(records), probabilities_of(records).argmax(axis=1)
    counts = confusion_matrix(labels, guesses, len(classes))
    recalls, precisions = sensitivity(counts), ppv(counts)
    rows = []
    for c, name in enumerate(classes):
        of, said = _chosen(records, labels == c), _chosen(records, guesses == c)
        rows.append(
            {
                "class": name,
                "radiographs": len(of),
                "patients": patients(of),
                "predicted": len(said),
                "sensitivity": with_interval(float(recalls[c]), patients(of)),
                "PPV": with_interval(float(precisions[c]), patients(said)),
            }
        )
    return rows


def point_rows(
    records: Sequence[Record], classes: Sequence[str], positive: int, point: Mapping[str, Any]
) -> list[Row]:
    """The threshold, what it gave on validation, where it was chosen, and what it gives here."""
    true = labels_of(records) == positive
    here = at_point(true, probabilities_of(records)[:, positive], point["threshold"])
    trials = (patients(_chosen(records, true)), patients(_chosen(records, ~true)))
    there = (point["sensitivity"], point["specificity"])
    counted = (int(point["positive_patients"]), int(point["negative_patients"]))
    rule = f"p({classes[positive]}) at least {point['threshold']:.4f}"
    return [
        {
            "radiographs": place,
            "rule": rule,
            "sensitivity": with_interval(float(found[0]), count[0]),
            "specificity": with_interval(float(found[1]), count[1]),
        }
        for place, found, count in (
            ("validation, where it was chosen", there, counted),
            ("these", here, trials),
        )
    ]


def confound(records: Sequence[Record], classes: Sequence[str]) -> str:
    """A warning if the source alone tells the label; empty if it does not.

    In the COVIDx test list every positive is of RICORD and every negative of RSNA: a model that
    tells the two archives apart scores as well as one that sees the disease.
    """
    labels = labels_of(records)
    sources = np.array([text(r, "source") for r in records])
    names = sorted(set(sources.tolist()))
    if len(names) < 2 or len(set(labels.tolist())) < 2:
        return ""
    counts = {s: np.bincount(labels[sources == s], minlength=len(classes)) for s in names}
    guessed = sum(int(t.max()) for t in counts.values()) / len(labels)
    plain = float(np.bincount(labels).max()) / len(labels)
    if guessed < _CONFOUNDED or guessed - plain < 0.05:
        return ""
    told = ", ".join(f"{s or 'unknown'}: {classes[int(t.argmax())]}" for s, t in counts.items())
    return (
        f"the source alone gives the label of {guessed:.1%} of these radiographs ({told}); the "
        "scores may show that the archives can be told apart, not that the disease is seen"
    )


def age_band(age: str) -> str:
    """The band of an age in years, "" if it is not a number."""
    try:
        years = float(age)
    except ValueError:
        return ""
    if not 0 <= years < _BANDS[-1][0]:
        return ""
    return next(name for limit, name in _BANDS if years < limit)


def group_rows(records: Sequence[Record], key: str, positive: int) -> list[Row]:
    """One row for each value of a key, if at least one record has it.

    Args:
        records: With labels.
        key: `source`, `sex`, `age` (in bands) or `view`.
        positive: The class whose sensitivity is shown; intervals count patients.
    """
    values = [age_band(text(r, key)) if key == "age" else text(r, key) for r in records]
    if not any(values):
        return []
    order = [name for _, name in _BANDS]
    place = {v: order.index(v) if v in order else 0 for v in values}
    rows = []
    for name in sorted(set(values), key=lambda v: (v == "", place[v], v)):
        mine = _chosen(records, np.array([v == name for v in values]))
        labels, probabilities = labels_of(mine), probabilities_of(mine)
        counts = confusion_matrix(labels, probabilities.argmax(axis=1), probabilities.shape[1])
        hits, others = _chosen(mine, labels == positive), _chosen(mine, labels != positive)
        recall, kept = sensitivity(counts)[positive], specificity(counts)[positive]
        rows.append(
            {
                "group": key,
                "value": name or "unknown",
                "radiographs": len(mine),
                "patients": patients(mine),
                "positive": len(hits),
                "accuracy": with_interval(accuracy(counts), patients(mine)),
                "sensitivity": with_interval(float(recall), patients(hits)),
                "specificity": with_interval(float(kept), patients(others)),
                "AUC": auc(labels, probabilities, positive),
            }
        )
    return rows


def lung_rows(records: Sequence[Record]) -> list[Row]:
    """Share of the mass of Grad-CAM and of the body map inside the lungs, where masks are there.

    Beside it the share of the picture that the lungs take, which an even map would have.
    """
    rows = []
    for title, key in (("Grad-CAM", "cam_in_lungs"), ("body map", "map_in_lungs")):
        found = [r for r in records if key in r.values and np.isfinite(r.values[key])]
        if found:
            inside = float(np.mean([r.values[key] for r in found]))
            even = float(np.mean([r.values["lung_share"] for r in found]))
            rows.append(
                {
                    "map": title,
                    "radiographs": len(found),
                    "inside the lungs, mean share": inside,
                    "an even map would have": even,
                }
            )
    return rows
