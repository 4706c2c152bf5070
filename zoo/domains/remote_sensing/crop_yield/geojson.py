"""Predicted yields as GeoJSON: one feature a county and year, for any GIS.

Longitude and latitude in degrees (WGS 84), as RFC 7946 has it; the `crs` member of the older form
says the same to programs that still read it. Units stand in the names of the properties. By the
numbers as written outer rings run counter-clockwise and holes clockwise (RFC 7946, section 3.1.6).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo import files

CRS = "urn:ogc:def:crs:OGC:1.3:CRS84"

Outline = Sequence[Sequence[NDArray[np.float64]]]
"""Polygons of a county: each a list of rings (N, 2) of degrees, the outer one first, then holes."""


def write_geojson(
    path: Path, rows: Sequence[Mapping[str, Any]], outlines: Mapping[str, Outline]
) -> int:
    """Write one feature a row.

    Args:
        path: The file.
        rows: With `id` and `fips`; `lon` and `lat` in degrees where they are known. All other
            scalar values become properties; what is not finite becomes null.
        outlines: County (five digits) -> its polygons. A county without one is a point at `lon` and
            `lat`, without those a feature with null geometry.

    Returns:
        The number of features that have an outline.
    """
    shapes = {fips: _geometry(outline) for fips, outline in outlines.items()}
    drawn = sum(shapes.get(str(row["fips"])) is not None for row in rows)

    def write(place: Path) -> None:
        head = {"type": "name", "properties": {"name": CRS}}
        with place.open("w", encoding="utf-8") as file:
            file.write(f'{{"type": "FeatureCollection", "crs": {json.dumps(head)}, "features": [')
            for i, row in enumerate(rows):
                feature = _feature(row, shapes.get(str(row["fips"])))
                file.write(("\n" if i == 0 else ",\n") + json.dumps(feature, allow_nan=False))
            file.write("\n]}\n")

    files.write_whole(path, write)
    return drawn


def _feature(row: Mapping[str, Any], shape: dict[str, Any] | None) -> dict[str, Any]:
    lon, lat = (float(row.get(k, np.nan)) for k in ("lon", "lat"))
    if shape is None and np.isfinite(lon) and np.isfinite(lat):
        shape = {"type": "Point", "coordinates": [round(lon, 6), round(lat, 6)]}
    return {
        "type": "Feature",
        "id": str(row["id"]),
        "geometry": shape,
        "properties": {k: _plain(v) for k, v in row.items() if k not in ("lon", "lat")},
    }


def _plain(value: Any) -> Any:
    """A value JSON has: numbers that are not finite are null."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


def _geometry(outline: Outline) -> dict[str, Any] | None:
    whole = [
        [_closed(ring, hole=i > 0) for i, ring in enumerate(polygon)]
        for polygon in outline
        if polygon and len(polygon[0]) >= 3
    ]
    if not whole:
        return None
    if len(whole) == 1:
        return {"type": "Polygon", "coordinates": whole[0]}
    return {"type": "MultiPolygon", "coordinates": whole}


def _closed(ring: NDArray[np.float64], hole: bool = False) -> list[list[float]]:
    """A ring whose last point is its first, counter-clockwise; a hole's runs clockwise."""
    points = np.asarray(ring, dtype=np.float64)
    if not np.array_equal(points[0], points[-1]):
        points = np.concatenate([points, points[:1]])
    x, y = (points - points[0]).T  # near the origin, where products lose no digits
    twice_area = float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())
    ordered = points[::-1] if (twice_area < 0) != hole else points
    return [[round(float(a), 6), round(float(b), 6)] for a, b in ordered]
