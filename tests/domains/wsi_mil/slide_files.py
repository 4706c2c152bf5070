"""Slides for tests: in memory with any canvas, and as files."""

from pathlib import Path

import numpy as np

from zoo.domains.medical.wsi_mil.sample_slides import SlideImage, draw, write_pyramid
from zoo.domains.medical.wsi_mil.slides import Slide

DATA = Path(__file__).parents[4] / "shared" / "data" / "wsi_mil"
CMU = DATA / "slides" / "CMU-1-Small-Region.svs"
UCSB = DATA / "ucsb_breast_tma"


class CanvasSlide(Slide):
    """A picture somewhere on a white canvas of any size, which is never held in memory."""

    def __init__(
        self,
        picture: np.ndarray,
        canvas: tuple[int, int],
        corner: tuple[int, int] = (0, 0),
        *,
        mpp: float | None = 0.25,
        bounded: bool = True,
        downsamples: tuple[int, ...] = (1,),
    ) -> None:
        super().__init__(Path("canvas.svs"))
        self.picture, self.corner = picture, corner
        self.dimensions = canvas
        self.level_downsamples = tuple(float(d) for d in downsamples)
        self.level_dimensions = tuple((canvas[0] // d, canvas[1] // d) for d in downsamples)
        self.mpp = mpp
        height, width = picture.shape[:2]
        self.bounds = (*corner, width, height) if bounded else (0, 0, *canvas)
        self.largest_read = 0

    def _read(self, x: int, y: int, level: int, size: tuple[int, int]) -> np.ndarray:
        self.largest_read = max(self.largest_read, size[0] * size[1])
        step = int(self.level_downsamples[level])
        out = np.full((size[1], size[0], 3), 255, np.uint8)
        rows = y + step * np.arange(size[1]) - self.corner[1]
        columns = x + step * np.arange(size[0]) - self.corner[0]
        good_rows = (rows >= 0) & (rows < self.picture.shape[0])
        good_columns = (columns >= 0) & (columns < self.picture.shape[1])
        part = self.picture[np.ix_(rows[good_rows], columns[good_columns])]
        out[np.ix_(good_rows, good_columns)] = part
        return out

    def close(self) -> None:
        pass


def picture(side: int = 1024, *, tumour: bool = False, edge: bool = False) -> SlideImage:
    return draw(np.random.default_rng(3), tumour, side=side, edge=edge)


def damage(path: Path, level: int, tile: int) -> None:
    """Overwrite one tile of a pyramid with zeros, which is no deflate stream."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        offset, size = page.dataoffsets[tile], page.databytecounts[tile]
    body = bytearray(path.read_bytes())
    body[offset : offset + size] = bytes(size)
    path.write_bytes(bytes(body))


def write_slides(folder: Path, count: int = 3, side: int = 1024, **options: object) -> Path:
    """A folder of small pyramids `s0.tif` … with labels, half of them with tumour."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = draw(np.random.default_rng([9, index]), index % 2 == 1, side=side)
        write_pyramid(folder / f"s{index}.tif", image.pixels, **options)
    rows = "".join(f"s{i}.tif,c{i},{i % 2},x\n" for i in range(count))
    (folder / "labels.csv").write_text("slide_id,case_id,label,note\n" + rows)
    return folder
