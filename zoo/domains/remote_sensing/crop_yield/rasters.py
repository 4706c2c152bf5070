"""GeoTIFF and JPEG 2000 by content, read band by band and window by window with rasterio.

Only those two formats are opened, whatever a file is called, so that no other driver of GDAL (some
follow references to other files or hosts) ever sees a user's file. Everything that depends on where
a pixel lies goes through `Grid`: coordinate systems without an EPSG code, rotated transforms, tiles
of one raster and rasters of another pixel size.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import DataError
from zoo.extras import optional

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JP2 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
# A tile that ends short of a pixel of where the next one begins still belongs to it.
_EDGE = 1e-6


def _rasterio() -> Any:
    rasterio = optional("rasterio", "GeoTIFF and JPEG 2000 are read by", "remote")
    for part in ("errors", "warp", "windows"):
        import_module(f"rasterio.{part}")
    # GDAL's remarks reach the user as our errors; its own log lines would come on top.
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)
    return rasterio


def placed(transform: Any, column: Any, row: Any) -> tuple[Any, Any]:
    """Coordinates of (column, row) under an affine map; numbers or arrays alike."""
    t = transform
    return t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie.

    Attributes:
        crs: Coordinate system as rasterio has it, with or without an EPSG code; None if unknown.
        transform: Affine map from (column, row) of a pixel's corner to coordinates.
        height: Rows.
        width: Columns.
    """

    crs: Any
    transform: Any
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    @property
    def crs_name(self) -> str:
        """`EPSG:4326`, else the coordinate system as WKT; "" if there is none."""
        if not self.crs:
            return ""
        code = self.crs.to_epsg()
        return f"EPSG:{code}" if code else str(self.crs.to_wkt())

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Length of a pixel's sides along column and row, in units of the coordinate system."""
        t = self.transform
        return math.hypot(t.a, t.d), math.hypot(t.b, t.e)

    @property
    def rotated(self) -> bool:
        """Whether rows and columns do not run along the axes."""
        return bool(self.transform.b or self.transform.d)

    def window(self, row: int, column: int, height: int, width: int) -> Grid:
        """The part of `height` rows and `width` columns that begins at (row, column)."""
        t = self.transform
        x, y = placed(t, column, row)
        return Grid(self.crs, type(t)(t.a, t.b, x, t.d, t.e, y), height, width)

    def centre(self) -> tuple[float, float]:
        """Longitude and latitude of the middle in degrees (WGS 84).

        Raises:
            DataError: There is no coordinate system.
        """
        if not self.crs:
            msg = "has no coordinate system"
            raise DataError(msg)
        x, y = placed(self.transform, self.width / 2, self.height / 2)
        lon, lat = _rasterio().warp.transform(self.crs, "EPSG:4326", [x], [y])
        return float(lon[0]), float(lat[0])

    def same(self, other: Grid) -> bool:
        """Whether pixels of both lie at the same places."""
        near = self.transform.almost_equals(other.transform, _EDGE * max(self.pixel_size))
        return self.shape == other.shape and bool(near) and self.crs == other.crs


@dataclass(frozen=True)
class Image:
    """A raster that was read.

    Attributes:
        values: (bands, H, W) as stored.
        valid: (bands, H, W) bool, False at nodata and NaN.
        grid: Where the pixels lie.
        nodata: The nodata tag, None where there is none.
        driver: `GTiff` or `JP2OpenJPEG`, by content.
    """

    values: np.ndarray
    valid: np.ndarray
    grid: Grid
    nodata: float | None
    driver: str


def format_of(path: Path) -> str:
    """`GTiff` or `JP2OpenJPEG`, by the file's first bytes.

    Raises:
        DataError: The file is missing, or neither.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        msg = f"{path}: is no plain file"
        raise DataError(msg)
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise DataError(msg) from None
    if head[:4] in _TIFF:
        return "GTiff"
    if head[:12] == _JP2[0] or head[:4] == _JP2[1]:
        return "JP2OpenJPEG"
    kind = "an empty file" if not head else "neither GeoTIFF nor JPEG 2000"
    msg = f"{path}: {kind}; export or download it again"
    raise DataError(msg)


def is_raster(path: Path) -> bool:
    """Whether a file is GeoTIFF or JPEG 2000 by content."""
    try:
        format_of(path)
    except DataError:
        return False
    return True


@contextmanager
def _telling(path: Path) -> Iterator[Any]:
    """GDAL's errors as one line with the file's name."""
    rasterio = _rasterio()
    try:
        with warnings.catch_warnings():
            # A raster without georeference is something we tell ourselves.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            yield rasterio
    except (rasterio.errors.RasterioError, OSError) as error:
        cause = error.__cause__ or error
        first = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        msg = f"{path}: cannot be read ({first}); the file is damaged or cut off: fetch it again"
        raise DataError(msg) from None


def _grid(dataset: Any) -> Grid:
    return Grid(dataset.crs, dataset.transform, dataset.height, dataset.width)


def read_image(path: Path, indexes: Sequence[int] | None = None) -> Image:
    """Read a raster whole, or some of its bands.

    Args:
        path: GeoTIFF or JPEG 2000, by content.
        indexes: Bands from 1; none reads all.

    Raises:
        DataError: The file cannot be read, or has no such band.
        ConfigError: rasterio is missing.
    """
    driver = format_of(path)
    with _telling(path) as rasterio, rasterio.open(path, driver=driver) as dataset:
        bands = list(range(1, dataset.count + 1)) if indexes is None else list(indexes)
        _have(bands, dataset.count, path)
        values = dataset.read(bands)
        nodata = dataset.nodata
        return Image(values, _valid(values, nodata), _grid(dataset), nodata, driver)


def _valid(values: np.ndarray, nodata: float | None) -> np.ndarray:
    valid = np.ones(values.shape, bool)
    if np.issubdtype(values.dtype, np.floating):
        valid &= np.isfinite(values)
    if nodata is not None and not math.isnan(nodata):
        # The tag of a float32 raster is a double: both have to be compared as float32.
        stored = np.float64(nodata).astype(values.dtype)
        valid &= values != stored
    return valid


def _have(bands: Sequence[int], count: int, path: Path) -> None:
    missing = [b for b in bands if not 1 <= b <= count]
    if missing:
        msg = f"{path}: has {count} bands, band {missing[0]} is missing; export it again"
        raise DataError(msg)


class Raster:
    """One raster, or the tiles of one, open for reading; nodata and the outside are 0.

    Use it as a context manager. Tiles are put together by their transforms: each fills the pixels
    of the common grid whose centres it holds, a nonzero value before a zero.

    Args:
        paths: The file, or its tiles.

    Attributes:
        grid: Where the pixels of the whole lie.
        count: Bands.
        dtype: Of the values.
        pixel_interleaved: Whether all bands of a pixel are stored together, so that reading some
            costs as much as reading all.

    Raises:
        DataError: A file cannot be read; tiles differ in bands, type, pixel size or coordinate
            system, or do not lie on one grid.
        ConfigError: rasterio is missing.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            msg = "a raster needs at least one file"
            raise DataError(msg)
        self.paths = list(paths)
        self._stack = ExitStack()
        self._tiles: list[Any] = []
        try:
            for path in self.paths:
                driver = format_of(path)
                with _telling(path) as rasterio:
                    self._tiles.append(
                        self._stack.enter_context(rasterio.open(path, driver=driver))
                    )
            self._grids = [_grid(tile) for tile in self._tiles]
            first = self._tiles[0]
            self.count: int = first.count
            self.dtype = np.dtype(first.dtypes[0])
            how = getattr(first.interleaving, "name", None) or str(first.interleaving)
            self.pixel_interleaved = "pixel" in how.lower()
            self.grid = self._grids[0] if len(self._tiles) == 1 else self._whole()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _whole(self) -> Grid:
        """The smallest grid that holds all tiles."""
        first, grid = self._tiles[0], self._grids[0]
        boxes = []
        for path, tile, own in zip(self.paths, self._tiles, self._grids, strict=True):
            kind = (tile.count, tile.dtypes[0], own.crs)
            if kind != (first.count, first.dtypes[0], grid.crs):
                msg = (
                    f"{path}: {tile.count} bands of {tile.dtypes[0]} in {own.crs_name or 'no CRS'} "
                    f"do not go with {self.paths[0].name}: {first.count} of {first.dtypes[0]} in "
                    f"{grid.crs_name or 'no CRS'}; tiles of one county must be alike"
                )
                raise DataError(msg)
            column, row = placed(~grid.transform, *placed(own.transform, 0, 0))
            corner = placed(own.transform, own.width, own.height)
            right, low = placed(~grid.transform, *corner)
            sides = (right - column, low - row)
            if max(abs(sides[0] - own.width), abs(sides[1] - own.height)) > 0.5:
                msg = f"{path}: its pixels are not those of {self.paths[0].name}; export it again"
                raise DataError(msg)
            boxes.append((round(row), round(column), round(low), round(right)))
        top, left = min(b[0] for b in boxes), min(b[1] for b in boxes)
        low, right = max(b[2] for b in boxes), max(b[3] for b in boxes)
        return grid.window(top, left, low - top, right - left)

    def read(self, indexes: Sequence[int], target: Grid | None = None) -> np.ndarray:
        """Some bands on a grid, by the nearest pixel.

        Args:
            indexes: Bands from 1.
            target: Where to read, in any coordinate system; none is the raster's own grid.

        Returns:
            (bands, H, W) on `target`, 0 where the raster has nodata or does not reach.

        Raises:
            DataError: A band is missing, the file is cut off, or it has no coordinate system
                while the target has one.
        """
        target = self.grid if target is None else target
        bands = list(indexes)
        _have(bands, self.count, self.paths[0])
        out = np.zeros((len(bands), *target.shape), self.dtype)
        for path, tile, grid in zip(self.paths, self._tiles, self._grids, strict=True):
            try:
                rows, columns, inside = nearest(grid, target)
            except DataError as error:
                msg = f"{path}: {error}"
                raise DataError(msg) from None
            if not inside.any():
                continue
            top, left = int(rows[inside].min()), int(columns[inside].min())
            high, wide = int(rows[inside].max()) + 1 - top, int(columns[inside].max()) + 1 - left
            with _telling(path) as rasterio:
                window = rasterio.windows.Window(left, top, wide, high)
                block = tile.read(bands, window=window)
            block = np.where(_valid(block, tile.nodata), block, block.dtype.type(0))
            if inside.all() and block.shape[1:] == target.shape and _plain(rows, columns):
                out = np.where(block != 0, block, out)
                continue
            values = block[:, rows[inside] - top, columns[inside] - left]
            out[:, inside] = np.where(values != 0, values, out[:, inside])
        return out


def _plain(rows: np.ndarray, columns: np.ndarray) -> bool:
    """Whether source pixels are taken one by one in their own order."""
    return bool((np.diff(rows, axis=0) == 1).all() and (np.diff(columns, axis=1) == 1).all()) and (
        bool((np.diff(rows, axis=1) == 0).all() and (np.diff(columns, axis=0) == 0).all())
    )


def nearest(source: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The source pixel that holds the centre of each target pixel.

    Returns:
        Rows and columns of the source, (H, W) int64 each, and (H, W) bool: whether there is one.

    Raises:
        DataError: One of the grids has a coordinate system and the other none.
    """
    columns, rows = np.meshgrid(np.arange(target.width) + 0.5, np.arange(target.height) + 0.5)
    x, y = placed(target.transform, columns, rows)
    if bool(source.crs) != bool(target.crs):
        msg = "only one of two rasters has a coordinate system (CRS); export both with one"
        raise DataError(msg)
    if source.crs and source.crs != target.crs:
        moved = _rasterio().warp.transform(target.crs, source.crs, x.ravel(), y.ravel())
        x, y = (np.asarray(v, np.float64).reshape(target.shape) for v in moved)
    with np.errstate(invalid="ignore"):
        column, row = placed(~source.transform, x, y)
        inside = np.isfinite(column) & np.isfinite(row)
        # A centre on the line between two pixels belongs to the one behind it, despite rounding.
        row = np.floor(np.where(inside, row, -1) + _EDGE).astype(np.int64)
        column = np.floor(np.where(inside, column, -1) + _EDGE).astype(np.int64)
    inside &= (row >= 0) & (row < source.height) & (column >= 0) & (column < source.width)
    return row, column, inside


def class_share(path: Path, wanted: int, target: Grid) -> np.ndarray:
    """Share of each target pixel that a finer map of classes gives to one class.

    Only the part of the map below the target is read: national maps (the Cropland Data Layer, 30 m)
    are large.

    Args:
        path: A map of classes, its first band.
        wanted: The class.
        target: Where to read.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        DataError: The file cannot be read, has no coordinate system or lies elsewhere.
    """
    driver = format_of(path)
    with _telling(path) as rasterio, rasterio.open(path, driver=driver) as dataset:
        if not dataset.crs or not target.crs:
            msg = f"{path}: a map of classes needs a coordinate system (CRS), as the images do"
            raise DataError(msg)
        t, (high, wide) = target.transform, target.shape
        corners = [placed(t, *corner) for corner in ((0, 0), (wide, 0), (0, high), (wide, high))]
        xs, ys = zip(*corners, strict=True)
        box = rasterio.warp.transform_bounds(
            target.crs, dataset.crs, min(xs), min(ys), max(xs), max(ys)
        )
        rows, columns = dataset.shape
        window = rasterio.windows.from_bounds(*box, dataset.transform)
        window = window.round_offsets().round_lengths(op="ceil")
        whole = rasterio.windows.Window(0, 0, columns, rows)
        if not rasterio.windows.intersect(window, whole):
            msg = f"{path}: does not reach the county; is it the map of another state?"
            raise DataError(msg)
        window = window.intersection(whole)
        fine = (dataset.read(1, window=window) == wanted).astype(np.float32)
        share = np.zeros(target.shape, np.float32)
        rasterio.warp.reproject(
            fine,
            share,
            src_transform=dataset.window_transform(window),
            src_crs=dataset.crs,
            dst_transform=target.transform,
            dst_crs=target.crs,
            resampling=rasterio.warp.Resampling.average,
        )
        return share
