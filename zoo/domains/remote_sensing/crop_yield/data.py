"""The data adapter of `crop_yield`: MODIS histograms or Sentinel-2 pictures, by `data.sensor`.

What the two have in common is here: which folder is whose, what `zoo cv` varies, where counties
lie. Reading is in `modis_data` and `sentinel_data`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zoo.domains.remote_sensing.crop_yield import modis_data, sentinel_data
from zoo.domains.remote_sensing.crop_yield.config import CROPS, Config
from zoo.domains.remote_sensing.crop_yield.counties import is_county_table, load_counties
from zoo.domains.remote_sensing.crop_yield.geojson import Outline
from zoo.domains.remote_sensing.crop_yield.operators import OPERATORS, STENCILS, OperatorRouter
from zoo.domains.remote_sensing.crop_yield.prepare import prepare_modis
from zoo.domains.remote_sensing.crop_yield.sample import FOLDERS
from zoo.errors import ConfigError, DataError
from zoo.task import Facts, Finding, Split

__all__ = [
    "check",
    "folds",
    "inputs",
    "of_sensor",
    "open_splits",
    "outlines",
    "prepare",
    "survey",
    "unseen_operator",
]

# Years the published pipelines predict.
_PUBLISHED = range(2009, 2016)
_SEASONS = range(12, 33, 4)


def of_sensor(root: Path, sensor: str) -> Path:
    """The folder of one sensor where `root` holds both, as the sample data set does."""
    inner = root / FOLDERS[sensor]
    return inner if inner.is_dir() else root


def survey(config: Config, deep: bool = False) -> Any:
    """Which county-years can be used and what is wrong with the others.

    Args:
        config: The configuration with `data.root` settled.
        deep: Read every file whole.

    Raises:
        DataError: There is no data set of the sensor below `data.root`.
    """
    if config.data.sensor == "modis":
        return modis_data.survey_modis(config, deep)
    return sentinel_data.survey_sentinel(config, deep)


def check(config: Config, found: Any = None, deep: bool = True) -> list[Finding]:
    """Everything worth knowing of the data, errors first.

    Args:
        config: The configuration with `data.root` settled.
        found: A survey of the same data section, to spare a second one.
        deep: Read every file whole, where `found` is not given.
    """
    if config.data.sensor == "modis":
        findings = modis_data.check_modis(config, found, deep)
        return findings + ([] if found is None else unseen_operator(config, found))
    return sentinel_data.check_sentinel(config, found, deep)


def unseen_operator(config: Config, found: modis_data.ModisSurvey) -> list[Finding]:
    """A warning where the predicted year takes an edge operator that no training year takes.

    The released routing does so for 2009: all years before it take the default operator, whose
    edges are several times weaker, and errors grow by an order of magnitude.
    """
    if config.model.operator != "auto" or config.model.routing != "per_sample":
        return []
    router = OperatorRouter(unknown=config.model.unknown_year)
    trained = {router.operator_of(int(y)) for y in found.parts["train"]["year"].unique()}
    wanted = router.operator_of(found.year)
    if wanted in trained:
        return []
    what = f"{found.year} is predicted with the operator {wanted}, which no training year takes"
    return [Finding("warning", what, remedy="set model.routing=per_prediction_year")]


def open_splits(config: Config, found: Any = None) -> dict[str, Split]:
    """`train`, `val` if any is held out, and `test`, the predicted year.

    Raises:
        DataError: The data are not there, a year that is predicted trains as well, or something
            that a split needs is broken and `data.on_error` is not `skip`.
    """
    splits: dict[str, Any] = dict(
        modis_data.open_modis(config, found)
        if config.data.sensor == "modis"
        else sentinel_data.open_sentinel(config, found)
    )
    for split in splits.values():
        # A county trains with its past and is tested on its present, by the protocol. What must
        # not be in two splits is the county-year; intervals still resample whole counties.
        split.groups = list(split.ids)
    return splits


def prepare(out: Path, config: Config, shard: int, shards: int) -> None:
    """Histograms from raw MODIS exports.

    Raises:
        ConfigError: The sensor is Sentinel-2, whose files are read as they are.
        DataError: As `prepare_modis`.
    """
    if config.data.sensor != "modis":
        msg = "Sentinel-2 pictures are read as they are; `zoo data prepare` is for sensor=modis"
        raise ConfigError(msg)
    root = config.data.root
    assert root is not None
    prepare_modis(out, config, root, shard, shards)


def folds(config: Config, found: Any = None) -> list[dict[str, str]]:
    """Overrides of each training in `zoo cv`, as `data.folds_by` says.

    Args:
        config: The configuration with `data.root` settled.
        found: A survey, where years are varied.

    Raises:
        ConfigError: The sensor has no steps to vary.
        DataError: `data.cv_years` names a year that cannot be predicted.
    """
    settings = config.data
    if settings.folds_by == "crop":
        return [{"data.crop": crop} for crop in CROPS] if settings.sensor == "sentinel2" else [{}]
    if settings.folds_by == "operator":
        known = OPERATORS if settings.sensor == "modis" else tuple(STENCILS)
        return [{"model.operator": name} for name in known]
    if settings.folds_by == "steps":
        if settings.sensor != "modis":
            msg = "data.folds_by=steps: Sentinel-2 counties have no steps; use year or crop"
            raise ConfigError(msg)
        return [{"data.steps": str(steps)} for steps in _SEASONS]
    years = sorted(found.years if found is not None else survey(config).years)
    first = settings.first_year or years[0]
    usable = [y for y in years if settings.protocol != "past" or y > first]
    if settings.cv_years is not None:
        missing = sorted(set(settings.cv_years) - set(usable))
        if missing:
            told = ", ".join(map(str, usable)) or "none"
            msg = f"data.cv_years: {missing[0]} cannot be predicted; years that can: {told}"
            raise DataError(msg)
        return [{"data.year": str(y)} for y in sorted(settings.cv_years)]
    published = [y for y in usable if y in _PUBLISHED]
    return [{"data.year": str(y)} for y in (published or usable)] or [{}]


def inputs(paths: Sequence[Path], facts: Facts, config: Config) -> Split:
    """The items of `zoo predict`.

    Raises:
        DataError: Nothing the sensor's model takes is there, or a file is broken.
    """
    places = [of_sensor(Path(p), config.data.sensor) for p in paths]
    if config.data.sensor == "modis":
        split: Any = modis_data.modis_inputs(places, facts, config)
    else:
        split = sentinel_data.sentinel_inputs(places, facts, config)
    split.groups = list(split.ids)
    return split  # type: ignore[no-any-return]


def outlines(config: Config, places: Iterable[Path], wanted: Iterable[str]) -> dict[str, Outline]:
    """Outlines of counties, from `data.counties` or a table beside the imagery.

    Pictures are worth less than what they show, so a table that is missing or broken gives none;
    the check tells of it.

    Args:
        config: The configuration; `data.root` is searched.
        places: Files and folders of a prediction, searched first.
        wanted: Counties.
    """
    counties = set(wanted)
    for path in _county_tables(config, places):
        try:
            found = load_counties(path, outlines=counties).outlines
        except (ConfigError, DataError):
            continue
        if found:
            return dict(found)
    return {}


def _county_tables(config: Config, places: Iterable[Path]) -> list[Path]:
    root, named = config.data.root, config.data.counties
    tables = []
    if named is not None:
        named = named.expanduser()
        tables += [named] if root is None else [root / named, named]
    folders = [p if p.is_dir() else p.parent for p in places]
    folders = [of_sensor(f, config.data.sensor) for f in folders]
    folders += [folder.parent for folder in folders]
    folders += [] if root is None else [root]
    for folder in dict.fromkeys(folders):
        if folder.is_dir():
            tables += [p for p in sorted(folder.glob("*.csv")) if is_county_table(p)]
    return [t for t in tables if t.is_file()]
