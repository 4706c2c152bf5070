"""Outlines that somebody drew on slides, and which patches lie inside them.

Read are ASAP's XML (CAMELYON) and GeoJSON as QuPath writes it; see QuPath's documentation,
"Exporting annotations", and its class `PathObjectTypeAdapters` for the fields. All positions are
level-0 pixels, x to the right, y down.

Which outlines count follows their class (QuPath) or group (ASAP): lesions add, holes cut out, and
the rest is left alone. A point that lies on the left or upper edge of an outline is inside, one on
the right or lower edge is not, so that outlines which share an edge never both hold it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.domains.medical.wsi_mil.bags import reason
from zoo.domains.medical.wsi_mil.extras import need
from zoo.domains.medical.wsi_mil.layouts import slide_name
from zoo.errors import DataError

Rule = Literal["centre", "share"]

HOLES = ("_2", "exclusion", "normal", "hole", "non-tumor", "non-tumour")
"""Groups and classes that cut out: CAMELYON16's `_2` and CAMELYON17's `normal` among them."""

_ENDINGS = (".xml", ".geojson", ".json")
# What ASAP draws around an area; a dot or a ruler has none.
_AREAS = {"polygon", "spline", "rectangle"}
# QuPath's other objects: computed, or the frame around all.
_NOT_DRAWN = {"detection", "cell", "tile", "tmacore", "root"}
# Points a side of the lattice that measures which share of a patch is annotated.
_LATTICE = 32
# Heights that are looked at together.
_BLOCK = 32


@dataclass(frozen=True, eq=False)
class Outline:
    """One drawn area.

    Attributes:
        names: Its class or group and what that is part of, as written; may be empty.
        rings: Closed curves, each (n, 2) float64 without the repeated last point; what lies
            inside an odd number of them is inside the area.
    """

    names: tuple[str, ...]
    rings: tuple[np.ndarray, ...]
    _edges: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ends = [np.roll(ring, -1, axis=0) for ring in self.rings]
        edges = np.concatenate([np.hstack(pair) for pair in zip(self.rings, ends, strict=True)])
        object.__setattr__(self, "_edges", edges[edges[:, 1] != edges[:, 3]])

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        points = np.concatenate(self.rings)
        low, high = points.min(0), points.max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    def edges(self, low: float, high: float) -> np.ndarray:
        """(E, 4) edges x0, y0, x1, y1 that a line at a height from `low` to `high` may cross."""
        y0, y1 = self._edges[:, 1], self._edges[:, 3]
        found: np.ndarray = self._edges[(np.minimum(y0, y1) <= high) & (np.maximum(y0, y1) > low)]
        return found


@dataclass(frozen=True, eq=False)
class Annotation:
    """The outlines of one slide.

    Attributes:
        where: The file.
        lesions: Areas that are lesion.
        holes: Areas cut out of them.
        unused: Class or group -> outlines of it that count as neither.
    """

    where: Path
    lesions: tuple[Outline, ...]
    holes: tuple[Outline, ...] = ()
    unused: Mapping[str, int] = field(default_factory=dict)

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """Left, top, right and bottom of all lesions; None without one."""
        if not self.lesions:
            return None
        boxes = np.array([outline.box for outline in self.lesions])
        low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    def rows(self, ys: np.ndarray, xs: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """For each height in `ys` (m,), ascending, which of the points at its `xs` are lesion."""
        for start in range(0, len(ys), _BLOCK):
            block = ys[start : start + _BLOCK]
            low, high = float(block[0]), float(block[-1])
            # A few heights at a time see few edges, however finely an outline was drawn.
            kinds = [
                [found for o in outlines if len(found := o.edges(low, high))]
                for outlines in (self.lesions, self.holes)
            ]
            for y, at in zip(block, xs[start : start + _BLOCK], strict=True):
                lesion, hole = (_any_inside(edges, float(y), at) for edges in kinds)
                yield lesion & ~hole

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Which points are lesion.

        Args:
            points: (N, 2) (x, y) in level-0 pixels.

        Returns:
            (N,) bool.
        """
        points = np.asarray(points, dtype=np.float64)
        found = np.zeros(len(points), dtype=bool)
        ys, groups = _by_height(points)
        for rows, hit in zip(groups, self.rows(ys, [points[g, 0] for g in groups]), strict=True):
            found[rows] = hit
        return found

    def share(self, corners: np.ndarray, side: float) -> np.ndarray:
        """Which share of each patch is lesion, counted on a lattice of 32 x 32 points.

        Args:
            corners: (N, 2) top-left corners of the patches in level-0 pixels.
            side: Edge of a patch in level-0 pixels.

        Returns:
            (N,) float64 in [0, 1].
        """
        corners = np.asarray(corners, dtype=np.float64)
        counts = np.zeros(len(corners))
        box = self.box
        if box is None:
            return counts
        near = np.flatnonzero(
            (corners < np.array(box[2:])).all(1) & (corners + side > np.array(box[:2])).all(1)
        )
        steps = (np.arange(_LATTICE) + 0.5) / _LATTICE * side
        ys, groups = _by_height(corners[near])
        for y, rows in zip(ys, groups, strict=True):
            members = near[rows]
            xs = (corners[members, :1] + steps).ravel()
            for hit in self.rows(y + steps, [xs] * _LATTICE):
                counts[members] += hit.reshape(len(members), _LATTICE).sum(1)
        return counts / _LATTICE**2


def _any_inside(outlines: Sequence[np.ndarray], y: float, xs: np.ndarray) -> np.ndarray:
    """Which of the points (xs, y) lie inside at least one outline, given as edges."""
    inside = np.zeros(len(xs), dtype=bool)
    for edges in outlines:
        x0, y0, x1, y1 = edges.T
        cut = (np.minimum(y0, y1) <= y) & (y < np.maximum(y0, y1))
        if cut.any():
            x0, y0, x1, y1 = x0[cut], y0[cut], x1[cut], y1[cut]
            crossings = np.sort(x0 + (y - y0) * ((x1 - x0) / (y1 - y0)))
            inside |= np.searchsorted(crossings, xs, side="right") % 2 == 1
    return inside


def _by_height(points: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Distinct y, and the indices of the points at each: tiles on a grid share their rows."""
    order = np.argsort(points[:, 1], kind="stable")
    ys, starts = np.unique(points[order, 1], return_index=True)
    return ys, np.split(order, starts[1:]) if len(ys) else []


def patch_labels(
    annotation: Annotation, corners: np.ndarray, side: float, rule: Rule = "centre"
) -> np.ndarray:
    """Labels of patches from the outlines of their slide.

    Args:
        annotation: The outlines.
        corners: (N, 2) top-left corners of the patches in level-0 pixels.
        side: Edge of a patch in level-0 pixels.
        rule: `centre`: a patch is positive if its centre is lesion (as ACMIL's tiling has it);
            `share`: if more than half of its area is (as torchmil has it).

    Returns:
        (N,) int64, 1 for lesion and 0 elsewhere.
    """
    if rule == "centre":
        positive = annotation.inside(np.asarray(corners, dtype=np.float64) + side / 2)
    else:
        positive = annotation.share(corners, side) > 0.5
    return positive.astype(np.int64)


def find_annotations(folder: Path) -> dict[str, Path]:
    """Slide name -> its annotation file: `<slide>.xml`, `<slide>.geojson` or `<slide>.json`.

    Raises:
        DataError: There is no such folder, no such file in it, or two files for one slide.
    """
    if not folder.is_dir():
        msg = f"{folder}: no such folder of annotations; correct data.annotations"
        raise DataError(msg)
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _ENDINGS or path.name.startswith("."):
            continue
        name = slide_name(path.stem)
        if name in found:
            msg = f"{path}: slide '{name}' has a second annotation file, {found[name].name}"
            raise DataError(msg)
        found[name] = path
    if not found:
        msg = f"{folder}: no annotations found; expected <slide>.xml or <slide>.geojson"
        raise DataError(msg)
    return found


def read_annotation(
    path: Path,
    *,
    lesions: Sequence[str] | None = None,
    holes: Sequence[str] = HOLES,
    origin: tuple[float, float] = (0.0, 0.0),
) -> Annotation:
    """Read one annotation file.

    Args:
        path: ASAP's XML or GeoJSON.
        lesions: Classes or groups that are lesion; None: every one that is no hole. Capitals do
            not matter. As in QuPath, a class whose name ends in `*` never counts unless named.
        holes: Classes or groups that cut out.
        origin: (x, y) of the GeoJSON's origin in level-0 pixels. QuPath counts from the corner of
            the scanned part where a slide states one (`openslide.bounds-x`); ASAP does not.

    Raises:
        DataError: The file is missing, damaged, unsafe, or in another format.
    """
    if not path.is_file():
        msg = f"{path}: no such annotation file"
        raise DataError(msg)
    if path.suffix.lower() == ".xml":
        outlines = _asap(path)
    else:
        outlines = _geojson(path, np.asarray(origin, dtype=np.float64))
    wanted = None if lesions is None else {name.casefold() for name in lesions}
    cutting = {name.casefold() for name in holes}
    areas: list[Outline] = []
    cut: list[Outline] = []
    unused: dict[str, int] = {}
    for outline in outlines:
        names = {name.casefold() for name in outline.names}
        if wanted is not None and names & wanted:
            areas.append(outline)
        elif names & cutting:
            cut.append(outline)
        elif wanted is None and not any(name.endswith("*") for name in names):
            areas.append(outline)
        else:
            told = outline.names[0] if outline.names else "(none)"
            unused[told] = unused.get(told, 0) + 1
    return Annotation(path, tuple(areas), tuple(cut), unused)


def _ring(points: Iterable[Sequence[Any]], path: Path) -> np.ndarray | None:
    """(n, 2) float64 without the repeated last point; None for what encloses nothing."""
    try:
        ring = np.array([(float(p[0]), float(p[1])) for p in points], dtype=np.float64)
    except (TypeError, ValueError, IndexError, KeyError):
        msg = f"{path}: an outline holds something that is no pair of coordinates"
        raise DataError(msg) from None
    ring = ring.reshape(-1, 2)
    if not np.isfinite(ring).all():
        msg = f"{path}: an outline holds coordinates that are not finite"
        raise DataError(msg)
    if len(ring) > 1 and (ring[0] == ring[-1]).all():
        ring = ring[:-1]
    return ring if len(ring) > 2 else None


# -- ASAP ---------------------------------------------------------------------------------------


def _asap(path: Path) -> Iterator[Outline]:
    etree = need("defusedxml.ElementTree")
    try:
        root = etree.parse(path).getroot()
    except (SyntaxError, ValueError, OSError) as error:  # defusedxml's refusals are ValueErrors
        msg = f"{path}: cannot be read as XML ({reason(error)}); export the annotation again"
        raise DataError(msg) from None
    if root.tag != "ASAP_Annotations":
        msg = (
            f"{path}: the XML holds <{str(root.tag)[:40]}>, not ASAP's annotations; "
            "save it from ASAP, or as GeoJSON from QuPath"
        )
        raise DataError(msg)
    parents = {
        str(group.get("Name")): str(group.get("PartOfGroup")) for group in root.iter("Group")
    }
    for drawn in root.iter("Annotation"):
        if str(drawn.get("Type", "Polygon")).lower() not in _AREAS:
            continue
        points = sorted(drawn.iter("Coordinate"), key=lambda c: _order(c.get("Order")))
        # Some locales write a decimal comma.
        ring = _ring([[str(c.get(axis)).replace(",", ".") for axis in "XY"] for c in points], path)
        if ring is not None:
            yield Outline(_lineage(drawn.get("PartOfGroup"), parents), (ring,))


def _order(text: str | None) -> float:
    try:
        value = float(text or 0)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _lineage(group: str | None, parents: Mapping[str, str]) -> tuple[str, ...]:
    """A group, the group it is part of, and so on."""
    names: list[str] = []
    while group and group != "None" and group not in names:
        names.append(group)
        group = parents.get(group)
    return tuple(names)


# -- GeoJSON ------------------------------------------------------------------------------------


def _geojson(path: Path, origin: np.ndarray) -> Iterator[Outline]:
    try:
        body = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path}: cannot be read as GeoJSON ({reason(error)}); export the annotation again"
        raise DataError(msg) from None
    features = body.get("features") if isinstance(body, dict) else body
    if isinstance(body, dict) and body.get("type") == "Feature":
        features = [body]
    if not isinstance(features, list):
        msg = f"{path}: is JSON but no GeoJSON; expected a FeatureCollection or a list of Features"
        raise DataError(msg)
    for feature in features:
        yield from _feature(feature, path, origin)


def _feature(feature: Any, path: Path, origin: np.ndarray) -> Iterator[Outline]:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        msg = f"{path}: an entry is no GeoJSON Feature"
        raise DataError(msg)
    properties = feature.get("properties") or {}
    geometry = feature.get("geometry") or {}
    if not isinstance(properties, dict) or not isinstance(geometry, dict):
        msg = f"{path}: a Feature's properties or geometry are no GeoJSON object"
        raise DataError(msg)
    kind = str(properties.get("objectType", properties.get("object_type", ""))).lower()
    if kind not in _NOT_DRAWN:
        names = _class_names(properties.get("classification"))
        for polygon in _polygons(geometry, path):
            rings = [_ring(ring, path) for ring in polygon]
            if rings and rings[0] is not None:
                whole = [ring + origin for ring in rings if ring is not None]
                yield Outline(names, tuple(whole))
    for child in properties.get("childObjects") or ():
        yield from _feature(child, path, origin)


def _polygons(geometry: Mapping[str, Any], path: Path) -> list[Any]:
    """The polygons of a geometry, each a list of rings; points and lines have none."""
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind == "GeometryCollection":
        parts = geometry.get("geometries") or []
        return [p for part in parts if isinstance(part, dict) for p in _polygons(part, path)]
    if kind not in ("Polygon", "MultiPolygon"):
        return []
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list) or not all(
        isinstance(p, list) and all(isinstance(r, list) for r in p) for p in polygons
    ):
        msg = f"{path}: the coordinates of a {kind} are no lists of rings"
        raise DataError(msg)
    return polygons


def _class_names(given: Any) -> tuple[str, ...]:
    """A QuPath class and the parts of a derived one: `Tumor: Positive` is also `Tumor`."""
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict):
        return ()
    parts = given.get("names")
    names = [str(p) for p in parts] if isinstance(parts, list) else []
    whole = given.get("name")
    if isinstance(whole, str):
        names = [whole, *(names or whole.split(": "))]
    return tuple(dict.fromkeys(names))
