"""The data adapter of `rgbd_sod`: colour images with depth, in the layouts the field uses.

Images are resized to a square input, depth is scaled to [0, 1] with near dark whatever its file
holds, masks are 0 or 1. Evaluation keeps the annotation at its own size.
"""

from __future__ import annotations

from zoo.data import leakage, stop_on_errors
from zoo.domains.saliency.rgbd_sod.config import Config
from zoo.domains.saliency.rgbd_sod.inputs import inputs
from zoo.domains.saliency.rgbd_sod.split import DEVIATION, MEAN, Reading, RgbdSplit
from zoo.domains.saliency.rgbd_sod.survey import Survey, describe, survey
from zoo.errors import DataError
from zoo.surveying import errors_first
from zoo.task import Facts, Finding

__all__ = [
    "Reading",
    "RgbdSplit",
    "Survey",
    "check",
    "facts_of",
    "inputs",
    "open_splits",
    "survey",
]


def open_splits(config: Config, found: Survey | None = None) -> dict[str, RgbdSplit]:
    """`train`, `val` if any is held out, and `test_<set>` for each test set.

    Args:
        config: The configuration with `data.root` settled.
        found: A survey of the same data section, to spare a second one.

    Raises:
        DataError: The data are not there, or a scene that a split needs is incomplete or broken
            and `data.on_error` is not `skip`.
    """
    found = found or survey(config)
    stop_on_errors(found.findings)
    return _splits(config, found)


def _splits(config: Config, found: Survey) -> dict[str, RgbdSplit]:
    reading = Reading.of(config, found.polarity, found.default)
    splits = {}
    for name, pairs in found.parts.items():
        split = RgbdSplit(
            pairs,
            found.digests,
            reading,
            "train" if name == "train" else "eval",
            augment=config.data.augment,
            depth_drop=config.data.depth_drop,
            batch_size=config.trainer.batch_size,
        )
        if found.skipped:
            split.notes.append(f"{len(found.skipped)} scenes of the data were skipped")
        splits[name] = split
    return splits


def check(config: Config, found: Survey | None = None, deep: bool = True) -> list[Finding]:
    """Everything worth knowing of the data, errors first.

    Args:
        config: The configuration with `data.root` settled.
        found: A survey of the same data section, to spare a second one.
        deep: Read every file whole, where `found` is not given.
    """
    try:
        found = found or survey(config, deep)
        splits = _splits(config, found)
    except DataError as error:
        return [Finding("error", str(error))]
    findings = [*found.findings, *leakage(splits), *describe(found, config.data)]
    return errors_first(findings)


def facts_of(train: RgbdSplit) -> Facts:
    """What travels with a model trained on `train`, JSON only.

    Returns:
        `input_size`; `polarity` of each training set and `default_polarity`; `depth`, `holes`,
        `hole_value` and `percentile` as read in training; `mean` and `deviation` of the image.
    """
    reading = train.reading
    sets = sorted({pair.set for pair in train.pairs})
    percentile = reading.rules.percentile
    return {
        "input_size": reading.size,
        "polarity": {s: reading.polarity.get(s, reading.default) for s in sets},
        "default_polarity": reading.default,
        "depth": reading.depth,
        "holes": reading.rules.holes,
        "hole_value": reading.rules.hole_value,
        "percentile": None if percentile is None else list(percentile),
        "mean": list(MEAN),
        "deviation": list(DEVIATION),
    }
