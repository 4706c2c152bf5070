"""Annotated slides among the bags: labels and lesion numbers of their patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.domains.medical.wsi_mil.annotations import (
    HOLES,
    Annotation,
    Rule,
    find_annotations,
    patch_labels,
    read_annotation,
)
from zoo.domains.medical.wsi_mil.config import Config
from zoo.domains.medical.wsi_mil.froc import CAMELYON16_MPP, lesion_mask
from zoo.domains.medical.wsi_mil.slides import magnification_of, open_slide
from zoo.errors import DataError
from zoo.task import Finding


class Marks(NamedTuple):
    """What an annotation says of the patches of a slide.

    Attributes:
        labels: (N,) int64, 1 for lesion.
        lesion: (N,) int32, the lesion a patch's centre lies in once lesions are grown: 0 for
            none, -1 for isolated tumour cells; see `froc.LesionMask.at`.
        lesions: How many there are to find.
        where: The annotation file.
        origin: (x, y) from which it counts, if it is GeoJSON.
    """

    labels: np.ndarray
    lesion: np.ndarray
    lesions: int
    where: Path
    origin: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Marking:
    """Where annotations are and how they are read; small, so that it travels to workers.

    Attributes:
        paths: Slide name -> annotation file.
        rule: Which patches are positive.
        lesion_classes: Classes that are lesion; None: all that are no hole.
        hole_classes: Classes that cut out.
        mpp: Micrometres per level-0 pixel where the features do not say; None: CAMELYON16's.
        patch_size: Edge of a patch in level-0 pixels where the features do not say; None: the
            smallest step of the grid.
        origins: Slide name -> (x, y) from which GeoJSON counts, where that is not (0, 0).
    """

    paths: Mapping[str, Path] = field(default_factory=dict)
    rule: Rule = "centre"
    lesion_classes: Sequence[str] | None = None
    hole_classes: Sequence[str] = HOLES
    mpp: float | None = None
    patch_size: int | None = None
    origins: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def read(self, name: str) -> Annotation | None:
        """The annotation of a slide, None if it has none.

        Raises:
            DataError: The file is damaged; the message names it.
        """
        path = self.paths.get(name)
        if path is None:
            return None
        return read_annotation(
            path,
            lesions=self.lesion_classes,
            holes=self.hole_classes,
            origin=self.origins.get(name, (0, 0)),
        )

    def marks(
        self, name: str, coords: np.ndarray | None, settings: Mapping[str, Any]
    ) -> Marks | None:
        """What the annotation of a slide says of its patches; None if it has none.

        Raises:
            DataError: The annotation is damaged, or the features have no positions.
        """
        annotation = self.read(name)
        if annotation is None:
            return None
        if coords is None:
            msg = (
                f"{annotation.where}: slide '{name}' has features without coordinates, so its "
                "outlines cannot be laid over them; extract it again with coordinates"
            )
            raise DataError(msg)
        side = patch_side(coords, settings, self.patch_size)
        mask = lesion_mask(annotation, level0_mpp(settings, self.mpp))
        return Marks(
            patch_labels(annotation, coords, side, self.rule),
            mask.at(coords + side / 2),
            len(mask.lesions),
            annotation.where,
            self.origins.get(name, (0, 0)),
        )


def marking(
    config: Config, folder: Path | None, slides: Mapping[str, Path] | None = None
) -> Marking | None:
    """How annotations below `folder` are read; None without a folder.

    Args:
        config: Rule, classes and what stands in for figures the features lack.
        folder: Where the files are.
        slides: Slide name -> slide file, as far as known. QuPath counts from the corner of the
            scanned part, which only the slide tells.

    Raises:
        DataError: There is no such folder or nothing in it, or a slide cannot be opened.
    """
    if folder is None:
        return None
    data = config.data
    paths = find_annotations(folder.expanduser())
    origins = {}
    for name, path in paths.items():
        slide = (slides or {}).get(name)
        if slide is not None and path.suffix.lower() != ".xml":
            with open_slide(slide) as opened:
                origins[name] = opened.bounds[:2]
    return Marking(
        paths,
        data.annotation_rule,
        data.lesion_classes,
        _holes(config),
        data.mpp,
        data.patch_size_level0,
        origins,
    )


def outlines_of(marks: Marks, config: Config) -> Annotation:
    """The outlines that marks were made of.

    Raises:
        DataError: The file is damaged by now.
    """
    return read_annotation(
        marks.where,
        lesions=config.data.lesion_classes,
        holes=_holes(config),
        origin=marks.origin,
    )


def _holes(config: Config) -> Sequence[str]:
    given = config.data.hole_classes
    return HOLES if given is None else given


def patch_side(coords: np.ndarray, settings: Mapping[str, Any], given: int | None = None) -> float:
    """Edge of a patch in level-0 pixels.

    It is what the features say, else what is given, else the smallest step of the grid.

    Args:
        coords: (N, 2) top-left corners in level-0 pixels.
        settings: Extraction settings.
        given: What the user says.
    """
    told = settings.get("patch_size_level0", given)
    if isinstance(told, (int, float)) and told > 0:
        return float(told)
    steps = np.concatenate([np.diff(np.unique(coords[:, axis])) for axis in (0, 1)])
    return float(steps.min()) if len(steps) else 1.0


def level0_mpp(settings: Mapping[str, Any], given: float | None = None) -> float:
    """Micrometres per level-0 pixel: as stated, as given, or CAMELYON16's.

    A figure that contradicts the magnification beside it is that of the patches, not of level 0.
    """
    stated, power = settings.get("mpp"), settings.get("level0_magnification")
    if isinstance(stated, (int, float)) and stated > 0:
        own = magnification_of(float(stated))
        if power is None or own is None or own == power:
            return float(stated)
    if given is None and isinstance(power, (int, float)) and power > 0:
        return 10.0 / float(power)
    return CAMELYON16_MPP if given is None else given


def check_annotations(found: Marking, slides: Sequence[str], skip: bool = False) -> list[Finding]:
    """Every annotation of these slides that cannot be read, and what the others hold.

    Args:
        found: Where they are.
        slides: Slides that are used.
        skip: Slides with a broken one are left out, so that it is a warning.
    """
    findings = []
    used = sorted(set(slides) & found.paths.keys())
    lesions = holes = 0
    unused: dict[str, int] = {}
    for name in used:
        try:
            annotation = found.read(name)
        except DataError as error:
            findings.append(Finding("warning" if skip else "error", str(error)))
            continue
        if annotation is not None:
            lesions += len(annotation.lesions)
            holes += len(annotation.holes)
            for key, count in annotation.unused.items():
                unused[key] = unused.get(key, 0) + count
    where = str(next(iter(found.paths.values())).parent)
    told = f"{len(used)} annotated slides, {lesions} lesion outlines, {holes} holes"
    if not used:
        remedy = "annotation files must be named as the slides are"
        findings.append(Finding("warning", "no annotation fits a slide of the data", where, remedy))
    else:
        findings.append(Finding("info", told, where))
    if unused:
        shown = ", ".join(f"'{k}' ({n})" for k, n in sorted(unused.items())[:6])
        told = f"outlines of these classes are not used: {shown}"
        findings.append(Finding("info", told, where, "data.lesion_classes chooses"))
    return findings
