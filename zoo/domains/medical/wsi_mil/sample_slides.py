"""Synthetic slides: small pyramids with the traits that make real ones awkward.

Each is a tiled TIFF of three levels: white background, two pieces of tissue with a hole, pink and
violet texture with dark nuclei. Tumour slides have a region where nuclei are larger and denser, and
an outline of it in ASAP's XML. Some stay without resolution, without tissue, or run over the edge:
those are written on request, as defects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import pandas as pd

from zoo.data import written_once
from zoo.domains.medical.wsi_mil.extras import need

SIDE = 2048
LEVELS = 3
MPP = 0.25
CLASSES = ("normal_tissue", "tumor_tissue")
FOLDER = "slides"
_SLIDES = 12
_COARSE = 4
_TILE = 256
_PINK, _VIOLET, _NUCLEUS = (232, 170, 196), (196, 140, 196), (92, 58, 132)


@dataclass(frozen=True, eq=False)
class SlideImage:
    """A synthetic slide in memory.

    Attributes:
        pixels: (SIDE, SIDE, 3) uint8.
        tissue: (SIDE, SIDE) bool.
        tumour: Corners (M, 2) of the tumour's outline in level-0 pixels, None without one.
    """

    pixels: np.ndarray
    tissue: np.ndarray
    tumour: np.ndarray | None


def draw(
    rng: np.random.Generator, tumour: bool, *, side: int = SIDE, edge: bool = False
) -> SlideImage:
    """Draw one slide.

    Args:
        rng: All chance.
        tumour: Whether it has a tumour region.
        side: Pixels of level 0.
        edge: Let the tissue run over the right and lower edge.
    """
    # Regions and fibres change slowly: every fourth pixel is computed.
    y, x = np.mgrid[0:side:_COARSE, 0:side:_COARSE].astype(np.float32) / side
    shift = 0.35 if edge else 0.0
    large = _blob(x, y, (0.42 + shift, 0.45 + shift), 0.3, rng)
    small = _blob(x, y, (0.86, 0.14), 0.08, rng)
    hole = _blob(x, y, (0.33 + shift, 0.36 + shift), 0.07, rng)
    coarse = (large | small) & ~hole
    stroma = _waves(x, y, rng)[..., None]
    colour = (1 - stroma) * np.asarray(_PINK, np.float32) + stroma * np.asarray(_VIOLET, np.float32)
    # Few shades, so that the file stays small.
    shades = np.where(coarse[..., None], np.round(colour / 8) * 8, 255).astype(np.uint8)
    pixels, tissue = _enlarged(shades), _enlarged(coarse)
    outline = None
    if tumour:
        centre = (0.52 + shift, 0.55 + shift)
        outline = _outline(centre, 0.13, rng) * side
    _stamp(pixels, tissue, _points(rng, side, 1 / 900), (3, 5), rng)
    if outline is not None:
        region = tissue & _enlarged(_filled(outline / side, x, y))
        _stamp(pixels, region, _points(rng, side, 1 / 160), (5, 8), rng)
    return SlideImage(pixels, tissue, outline)


def write(out: Path, seed: int = 0, defects: bool = False, count: int = _SLIDES) -> None:
    """Write slides, their labels, and the outlines of tumours.

    Written are `<slide>.tif`, `<slide>.xml` for tumours, and `labels.csv` (slide_id, case_id,
    label).

    Args:
        out: Folder; it is made if need be.
        seed: Seeds everything.
        defects: Add slides `odd_…`, unlabelled: without resolution, without tissue, of one level,
            with tissue at the edge, with a transparent border, and a truncated one.
        count: Slides, half of them with tumour.

    Raises:
        ConfigError: tifffile is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        name, tumour = f"slide_{index:02d}", index % 2 == 1
        image = draw(rng, tumour)
        write_pyramid(out / f"{name}.tif", image.pixels)
        if image.tumour is not None:
            write_outline(out / f"{name}.xml", [image.tumour])
        rows.append(
            {"slide_id": name, "case_id": f"case_{index // 2}", "label": CLASSES[int(tumour)]}
        )
    pd.DataFrame(rows).to_csv(out / "labels.csv", index=False)
    if defects:
        _write_defects(out, seed)


def write_pyramid(
    path: Path, pixels: np.ndarray, mpp: float | None = MPP, levels: int = LEVELS
) -> None:
    """Write (h, w, 3) uint8 as a tiled TIFF whose levels halve twice from one to the next.

    Args:
        path: The file.
        pixels: Level 0; with a fourth channel it is alpha.
        mpp: Micrometres per pixel for the resolution tags; None leaves them out.
        levels: Levels of the pyramid.

    Raises:
        ConfigError: tifffile is missing.
    """
    tifffile = need("tifffile")
    with tifffile.TiffWriter(path) as writer:
        level = pixels
        for number in range(levels):
            density = None if mpp is None else 1e4 / (mpp * 4**number)
            writer.write(
                level,
                tile=(_TILE, _TILE),
                photometric="rgb",
                extrasamples=["unassalpha"] if level.shape[2] == 4 else None,
                compression="adobe_deflate",
                predictor=True,
                subfiletype=1 if number else 0,
                resolution=None if density is None else (density, density),
                resolutionunit="NONE" if density is None else "CENTIMETER",
                metadata=None,
                software=False,
            )
            height, width = (s // 4 * 4 for s in level.shape[:2])
            quarter = level[:height, :width].reshape(height // 4, 4, width // 4, 4, -1)
            level = np.ascontiguousarray(quarter[:, 1:3, :, 1:3].mean((1, 3)).astype(np.uint8))


def write_outline(path: Path, polygons: Sequence[np.ndarray], group: str = "_0") -> None:
    """Write polygons of (M, 2) level-0 pixels as ASAP does."""
    parts = []
    for number, polygon in enumerate(polygons):
        corners = "".join(
            f'<Coordinate Order="{i}" X="{x:.2f}" Y="{y:.2f}" />'
            for i, (x, y) in enumerate(polygon.tolist())
        )
        parts.append(
            f'<Annotation Name="Annotation {number}" Type="Polygon" PartOfGroup={quoteattr(group)} '
            f'Color="#F4FA58"><Coordinates>{corners}</Coordinates></Annotation>'
        )
    path.write_text(
        '<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>'
        + "".join(parts)
        + f"</Annotations><AnnotationGroups><Group Name={quoteattr(group)} "
        'PartOfGroup="None" Color="#00ff00"><Attributes /></Group></AnnotationGroups>'
        "</ASAP_Annotations>\n",
        encoding="utf-8",
    )


def folder_in(root: Path) -> Path:
    """The sample slides in a sample data set; they are written where they are not there yet.

    Raises:
        ConfigError: tifffile is missing.
    """
    return written_once(root / FOLDER, write)


def _write_defects(out: Path, seed: int) -> None:
    rng = np.random.default_rng([seed, 1000])
    image = draw(rng, False, side=1024)
    write_pyramid(out / "odd_no_mpp.tif", image.pixels, mpp=None)
    write_pyramid(out / "odd_no_tissue.tif", np.full_like(image.pixels, 255))
    write_pyramid(out / "odd_one_level.tif", image.pixels, levels=1)
    write_pyramid(out / "odd_edge.tif", draw(rng, False, side=1024, edge=True).pixels)
    alpha = np.full((1024, 1024, 1), 255, np.uint8)
    alpha[:128] = alpha[-128:] = 0
    black = np.where(alpha == 0, 0, image.pixels)
    write_pyramid(out / "odd_border.tif", np.concatenate([black, alpha], axis=2))
    cut = out / "odd_truncated.tif"
    write_pyramid(cut, image.pixels)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])


def _outline(centre: tuple[float, float], radius: float, rng: np.random.Generator) -> np.ndarray:
    """(64, 2) corners of a wavy circle."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = rng.uniform(0.03, 0.08, 3) @ np.sin(
        np.arange(2, 5)[:, None] * angle + rng.uniform(0, 6, (3, 1))
    )
    reach = radius * (1 + waves)
    return np.stack([centre[0] + reach * np.cos(angle), centre[1] + reach * np.sin(angle)], axis=1)


def _blob(
    x: np.ndarray,
    y: np.ndarray,
    centre: tuple[float, float],
    radius: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Where a wavy disc lies."""
    dx, dy = x - centre[0], y - centre[1]
    angle = np.arctan2(dy, dx)
    reach = np.full_like(x, radius)
    for k, size, phase in zip(
        (2, 3, 5), rng.uniform(0.03, 0.1, 3), rng.uniform(0, 6, 3), strict=True
    ):
        reach += radius * float(size) * np.sin(k * angle + float(phase), dtype=np.float32)
    found: np.ndarray = dx * dx + dy * dy < reach * reach
    return found


def _waves(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooth fibres in [0, 1]."""
    found = np.zeros_like(x)
    for _ in range(3):
        fx, fy = (float(f) for f in rng.uniform(-60, 60, 2))
        found += np.sin(fx * x + fy * y + float(rng.uniform(0, 6)), dtype=np.float32)
    return np.clip(found / 6 + 0.5, 0, 1)


def _points(rng: np.random.Generator, side: int, density: float) -> np.ndarray:
    """(M, 2) positions, `density` a pixel."""
    return rng.integers(0, side, (int(side * side * density), 2))


def _stamp(
    pixels: np.ndarray,
    where: np.ndarray,
    points: np.ndarray,
    radii: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    """Draw a dark disc at each point that lies in a region."""
    side = len(pixels)
    inner = points[where[points[:, 1], points[:, 0]]]
    sizes = rng.integers(radii[0], radii[1] + 1, len(inner))
    for radius in range(radii[0], radii[1] + 1):
        offsets = np.arange(-radius, radius + 1)
        dy, dx = (o.ravel() for o in np.meshgrid(offsets, offsets, indexing="ij"))
        disc = dx * dx + dy * dy <= radius * radius
        mine = inner[sizes == radius]
        xs = np.clip(mine[:, :1] + dx[disc], 0, side - 1)
        ys = np.clip(mine[:, 1:] + dy[disc], 0, side - 1)
        pixels[ys, xs] = _NUCLEUS


def _enlarged(coarse: np.ndarray) -> np.ndarray:
    return coarse.repeat(_COARSE, axis=0).repeat(_COARSE, axis=1)


def _filled(outline: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which positions are inside an outline that is star-shaped about its centre."""
    centre = outline.mean(axis=0)
    reach = np.hypot(*(outline - centre).T)
    angle = np.arctan2(*(outline - centre).T[::-1])
    order = np.argsort(angle)
    dx, dy = x - centre[0], y - centre[1]
    limit = np.interp(np.arctan2(dy, dx), angle[order], reach[order], period=2 * np.pi)
    found: np.ndarray = dx * dx + dy * dy < limit * limit
    return found
