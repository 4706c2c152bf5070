"""Scored patches as GeoJSON that QuPath opens by dragging the file onto the slide.

Each patch is a Feature with a Polygon in level-0 pixels. QuPath reads `objectType`,
`classification` (name and RGB colour) and `measurements` (name -> number) from its properties, see
its class `PathObjectTypeAdapters`; as detections, patches can be coloured by any measurement
(Measure > Show measurement maps). Rings are closed and, by the numbers as written, run
counter-clockwise (RFC 7946, section 3.1.6).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo import files

ObjectType = Literal["detection", "annotation"]

BANDS = (
    (0.99, "attention: top 1 %", (165, 0, 38)),
    (0.95, "attention: top 5 %", (227, 74, 51)),
    (0.80, "attention: top 20 %", (253, 187, 106)),
    (0.50, "attention: upper half", (171, 217, 233)),
    (0.0, "attention: lower half", (69, 117, 180)),
)
"""Share of patches with less attention, from which on a class is given; its name and colour."""

# Names of objects follow from slide and patch, so that a second import replaces the first.
_NAMESPACE = uuid.UUID("6f1d2c1e-6f0b-5c7e-9d5a-2f4f0a3c7b11")


def write_geojson(
    path: Path,
    *,
    name: str,
    corners: np.ndarray,
    side: float,
    ranks: np.ndarray,
    measurements: Mapping[str, np.ndarray],
    origin: tuple[float, float] = (0.0, 0.0),
    object_type: ObjectType = "detection",
) -> None:
    """Write patches as a FeatureCollection, one after the other, so that memory stays small.

    Args:
        path: The file.
        name: Slide name, from which the objects' ids follow.
        corners: (N, 2) top-left corners in level-0 pixels.
        side: Edge of a patch in level-0 pixels.
        ranks: (N,) share of the slide's patches with less attention, 0 to 1; gives the class.
        measurements: Name -> (N,) numbers.
        origin: (x, y) in level-0 pixels from which QuPath counts: the corner of the scanned part
            where the slide states one (`openslide.bounds-x`).
        object_type: `detection` for measurement maps, `annotation` to be edited.
    """

    def write(place: Path) -> None:
        features = _features(name, corners - origin, side, ranks, measurements, object_type)
        with place.open("w", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "features": [')
            for i, feature in enumerate(features):
                file.write(("\n" if i == 0 else ",\n") + json.dumps(feature, allow_nan=False))
            file.write("\n]}\n")

    files.write_whole(path, write)


def _features(
    name: str,
    corners: np.ndarray,
    side: float,
    ranks: np.ndarray,
    measurements: Mapping[str, np.ndarray],
    object_type: ObjectType,
) -> Iterator[dict[str, Any]]:
    for i, (x, y) in enumerate(corners.tolist()):
        _, band, colour = next(b for b in BANDS if ranks[i] >= b[0] or b[0] == 0.0)
        x, y, right, bottom = (_plain(v) for v in (x, y, x + side, y + side))
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(_NAMESPACE, f"{name}/{i}")),
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]],
            },
            "properties": {
                "objectType": object_type,
                "classification": {"name": band, "color": list(colour)},
                "measurements": {k: float(f"{v[i]:.6g}") for k, v in measurements.items()},
            },
        }


def _plain(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)
