"""The sample data sets of both sensors, each in the files and layout its users have.

`modis/` holds Earth Engine's GeoTIFF exports with the csv tables and what `zoo data prepare` makes
of them; `sentinel2/` a small CropNet tree.
"""

from __future__ import annotations

from pathlib import Path

from zoo.domains.remote_sensing.crop_yield import sample_modis, sample_sentinel

VERSION = sample_modis.VERSION + sample_sentinel.VERSION - 1
FOLDERS = {"modis": "modis", "sentinel2": "sentinel2"}


def write(out: Path, seed: int = 0, defects: bool = False) -> None:
    """Write both sample data sets into the folder `out`.

    Args:
        out: The folder; it exists.
        seed: Seeds everything.
        defects: Add the broken files and rows that the checks must find.
    """
    sample_modis.write_modis(out / FOLDERS["modis"], seed=seed, defects=defects)
    sample_sentinel.write_sentinel(out / FOLDERS["sentinel2"], seed=seed, defects=defects)
