"""The data adapter of `her_seg`: pictures, volumes and clips with masks, in the field's layouts.

Training sees pictures, slices and frames in the model's square; evaluation and prediction see whole
stacks at their own size.
"""

from __future__ import annotations

from typing import cast

from zoo.data import leakage, stop_on_errors
from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.inputs import inputs
from zoo.domains.medical.her_seg.split import EvalSplit, StackSplit, TrainSplit
from zoo.domains.medical.her_seg.survey import Survey, describe, survey
from zoo.errors import DataError
from zoo.surveying import errors_first
from zoo.task import Facts, Finding, Split

__all__ = [
    "EvalSplit",
    "StackSplit",
    "Survey",
    "TrainSplit",
    "check",
    "facts_of",
    "inputs",
    "open_splits",
    "survey",
]


def open_splits(config: Config, found: Survey | None = None) -> dict[str, Split]:
    """`train`, `val` if there is one, and `test` or `test_<set>` for each test set.

    Args:
        config: The configuration with `data.root` settled.
        found: A survey of the same configuration, to spare a second one.

    Raises:
        DataError: The data are not there, or a file that a split needs is missing or broken and
            `data.on_error` is not `skip`.
    """
    found = found or survey(config)
    stop_on_errors(found.findings)
    splits: dict[str, Split] = {}
    for name, cases in found.parts.items():
        if name == "train":
            train = TrainSplit(cases, config, found.digests)
            if found.skipped:
                train.notes.append(f"{len(found.skipped)} cases of the data were skipped")
            splits[name] = train
        else:
            keep = config.data.in_memory and name == "val"
            splits[name] = EvalSplit(cases, found.digests, keep)
    return splits


def check(config: Config, deep: bool = True, found: Survey | None = None) -> list[Finding]:
    """Everything worth knowing of the data set, errors first.

    Args:
        config: The configuration with `data.root` settled.
        deep: Read every file whole, where `found` is not given.
        found: A survey of the same configuration, to spare a second one.
    """
    try:
        found = found or survey(config, deep)
    except DataError as error:
        return [Finding("error", str(error))]
    whole = {name: EvalSplit(cases, found.digests) for name, cases in found.parts.items()}
    findings = [*found.findings, *leakage(cast("dict[str, Split]", whole)), *describe(found)]
    return errors_first(findings)


def facts_of(train: Split) -> Facts:
    """What travels with a model trained on a split, JSON only.

    Returns:
        `classes` (names, background left out), `values` (those of each class in mask files; empty
        for "above the threshold"), `kind` (`image`, `volume`, `clip`), `image_size`, `fit`.
    """
    split = cast("TrainSplit", train)
    classes = split.cases[0].classes
    return {
        "classes": list(classes.names),
        "values": [list(values) for values in classes.values],
        "kind": split.kind,
        "image_size": split.config.model.image_size,
        "fit": split.config.data.fit,
    }
