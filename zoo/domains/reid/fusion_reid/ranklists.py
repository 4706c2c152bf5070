"""Rank lists: the nearest gallery images of each query as table, JSON and pictures."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zoo import files
from zoo.domains.reid.fusion_reid.ranking import (
    IntArray,
    Sides,
    Words,
    codes,
    refuse_bad,
    sides,
    take,
)
from zoo.domains.reid.fusion_reid.rerank import Reranked, Reranker
from zoo.domains.reid.fusion_reid.search import (
    Distance,
    Engine,
    nearest,
    nearest_by,
    same_view,
)
from zoo.drawing import plain, shortened
from zoo.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Verdict = Literal["right", "wrong", "unknown"]
_COLUMNS = (
    "query", "query_person", "query_camera", "rank", "distance", "verdict",
    "image", "person", "camera", "path",
)  # fmt: skip


@dataclass(frozen=True)
class Crop:
    """An image of a person.

    Attributes:
        id: Unique name.
        person: Identity, empty where unknown.
        camera: Camera, empty where unknown.
        path: File, relative to the data folder.
    """

    id: str
    person: str
    camera: str
    path: str


@dataclass(frozen=True)
class Place:
    """A gallery image in a rank list.

    Attributes:
        rank: From 1.
        crop: The image.
        distance: To the query.
        verdict: Whether it shows the query's person; unknown where one of the two is.
    """

    rank: int
    crop: Crop
    distance: float
    verdict: Verdict


@dataclass(frozen=True)
class RankList:
    """A query and its nearest gallery images, nearest first."""

    query: Crop
    places: Sequence[Place]

    @property
    def first_right(self) -> int | None:
        """Rank of the first right image in the list, None where there is none."""
        return next((p.rank for p in self.places if p.verdict == "right"), None)


@dataclass(frozen=True)
class Crops:
    """Images as columns; rows belong together.

    Attributes:
        ids: (N,) unique names.
        persons: (N,) identities, empty where unknown.
        cameras: (N,) cameras, empty where unknown.
        roles: (N,) `query` or `gallery`.
        paths: (N,) files, relative to the data folder.
    """

    ids: Words
    persons: Words
    cameras: Words
    roles: Words
    paths: Words

    def at(self, row: int) -> Crop:
        """One of them."""
        columns = (self.ids, self.persons, self.cameras, self.paths)
        return Crop(*(str(column[row]) for column in columns))


def verdict(query: Crop, found: Crop) -> Verdict:
    """Whether two images show one person."""
    if not query.person or not found.person:
        return "unknown"
    return "right" if query.person == found.person else "wrong"


def rank_lists(
    features: Tensor,
    crops: Crops,
    *,
    top: int = 10,
    same_camera: bool = False,
    distance: Distance = "euclidean",
    rerank: Reranker | Reranked | None = None,
    engine: Engine = "auto",
    rows: IntArray | None = None,
) -> list[RankList]:
    """The nearest gallery images of each query.

    Gallery images of the query's own file are never listed, junk is not either.

    Args:
        features: (N, D) embeddings of queries and gallery.
        crops: What they were extracted from.
        top: Images a list; fewer where the gallery has fewer.
        same_camera: Whether images of the query's person from the query's camera are listed.
        distance: What is reported, of unit-length embeddings.
        rerank: Order by k-reciprocal distances, and report those; as in `ranking.evaluate`.
        engine: As in `search.nearest`.
        rows: Row numbers of the queries wanted; none: all.

    Raises:
        DataError: No query, an empty gallery, or an embedding that is not finite.
        ConfigError: faiss is wanted and missing.
    """
    refuse_bad(features, [str(i) for i in crops.ids])
    every = sides(crops.persons, crops.roles)
    wanted = every if rows is None else Sides(np.asarray(rows), every.gallery)
    paths = np.asarray(crops.paths, dtype=str)
    own = set(paths[wanted.query]) & set(paths[every.gallery]) - {""}
    asked = top + bool(own)
    gallery = take(features, every.gallery)
    if rerank is None:
        found = nearest(
            take(features, wanted.query), gallery, asked, distance=distance,
            left_out=_left_out(crops, wanted, same_camera), engine=engine,
        )  # fmt: skip
    else:
        # Re-ranking looks at the neighbours of all, so all queries take part in it.
        near = rerank
        if isinstance(near, Reranker):
            near = near.fit(take(features, every.query), gallery)
        found = nearest_by(
            near.rows, len(every.query), asked, left_out=_left_out(crops, every, same_camera)
        )
        kept = np.searchsorted(every.query, wanted.query)
        found = found._replace(items=found.items[kept], distances=found.distances[kept])
    items, distances = found.items.cpu().numpy(), found.distances.cpu().numpy()
    return [
        _listed(crops, int(row), every.gallery, items[i], distances[i], top)
        for i, row in enumerate(wanted.query)
    ]


def _left_out(crops: Crops, rows: Sides, same_camera: bool) -> Any:
    if same_camera:
        return None
    return same_view(codes(crops.persons, rows), codes(crops.cameras, rows))


def _listed(
    crops: Crops,
    row: int,
    gallery: IntArray,
    items: IntArray,
    distances: NDArray[np.float32],
    top: int,
) -> RankList:
    query = crops.at(row)
    places: list[Place] = []
    for item, far in zip(items, distances, strict=True):
        if item < 0 or len(places) == top:
            break
        crop = crops.at(int(gallery[item]))
        if crop.path and crop.path == query.path:
            continue
        places.append(Place(len(places) + 1, crop, round(float(far), 6), verdict(query, crop)))
    return RankList(query, places)


# -- tables -------------------------------------------------------------------------------------


def table(lists: Sequence[RankList]) -> list[dict[str, Any]]:
    """One row a listed image."""
    return [
        dict(
            zip(
                _COLUMNS,
                (
                    one.query.id, one.query.person, one.query.camera, place.rank, place.distance,
                    place.verdict, place.crop.id, place.crop.person, place.crop.camera,
                    place.crop.path,
                ),
                strict=True,
            )
        )
        for one in lists
        for place in one.places
    ]  # fmt: skip


def write_csv(path: Path, lists: Sequence[RankList]) -> None:
    """Writes `table` as csv, with its header even if no image is listed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table(lists))
    files.write_text(path, text.getvalue())


def write_json(path: Path, lists: Sequence[RankList], about: Mapping[str, Any]) -> None:
    """Writes the lists as JSON: `about` (settings, counts) and one entry a query."""
    body = [
        {"query": asdict(one.query), "first_right": one.first_right,
         "places": [asdict(place) for place in one.places]}
        for one in lists
    ]  # fmt: skip
    files.write_json(path, {"about": dict(about), "lists": body})


# -- pictures -----------------------------------------------------------------------------------

Load = Callable[[Crop], NDArray[np.uint8]]

# Told apart by line as well as by colour.
_FRAMES: dict[Verdict, tuple[str, str]] = {
    "right": ("#2e8b57", "-"),
    "wrong": ("#c0392b", (0, (4, 1.5))),  # type: ignore[dict-item]
    "unknown": ("#8a8f98", ":"),
}
_CELL = (1.0, 2.0)  # width and height of a crop's place; crops are about twice as high as wide
_GAP, _LINE, _AFTER_QUERY = 0.16, 0.42, 0.3
_INCH = 0.78  # inches a unit
_MOST_LINES = 24


def picture(lists: Sequence[RankList], load: Load, title: str = "") -> Figure:
    """Queries left, their gallery images in order to the right, one line a query.

    Green, drawn through: the query's person; red, dashed: another one; grey, dotted: unknown.

    Args:
        lists: Up to 24 are drawn.
        load: Reads a crop as (h, w, 3) uint8; what it cannot read (DataError) stays blank.
        title: Above the picture.
    """
    from matplotlib.figure import Figure

    shown = lists[:_MOST_LINES]
    columns = max((len(one.places) for one in shown), default=0)
    width = (columns + 1) * (_CELL[0] + _GAP) + _AFTER_QUERY + _GAP
    height = max(1, len(shown)) * (_CELL[1] + _LINE) + 0.35
    top = 0.4 if title else 0.05
    size = (max(2.5, width * _INCH), (height + top) * _INCH)
    figure = Figure(figsize=size)
    axes = figure.add_axes((0.0, 0.0, 1.0, height / (height + top)))
    axes.set(xlim=(-_GAP, size[0] / _INCH - _GAP), ylim=(height, 0))
    axes.axis("off")
    for line, one in enumerate(shown):
        _line(axes, one, load, 0.1 + line * (_CELL[1] + _LINE))
    legend = "query | green: same person, red dashed: another one, grey dotted: unknown"
    more = f" | {len(lists) - len(shown)} more queries" if len(lists) > len(shown) else ""
    axes.text(0, height - 0.06, legend + more, fontsize=6, color="#6b6f76", va="bottom")
    if title:
        figure.suptitle(plain(title), fontsize=9, y=1 - 0.08 / (height + top), va="top")
    return figure


def _line(axes: Axes, one: RankList, load: Load, y: float) -> None:
    _crop(axes, one.query, load, 0.0, y, ("#222222", "-"))
    _words(axes, 0.0, y, f"{_person(one.query)}\n{_camera(one.query)}")
    for place in one.places:
        x = place.rank * (_CELL[0] + _GAP) + _AFTER_QUERY
        _crop(axes, place.crop, load, x, y, _FRAMES[place.verdict])
        _words(
            axes, x, y,
            f"{place.rank}: {place.distance:.3f}\n{_person(place.crop)} {_camera(place.crop)}",
        )  # fmt: skip
    if not one.places:
        text = "no gallery image left to rank"
        axes.text(_CELL[0] + _GAP + _AFTER_QUERY, y + 1, text, fontsize=7, color="#6b6f76")


def _crop(axes: Axes, crop: Crop, load: Load, x: float, y: float, frame: tuple[Any, Any]) -> None:
    """One crop in its place, as large as it goes there, with a frame around."""
    from matplotlib.patches import Rectangle

    try:
        pixels = load(crop)
        height, width = pixels.shape[:2]
    except (DataError, OSError):
        pixels, height, width = None, 2, 1
    scale = min(_CELL[0] / width, _CELL[1] / height)
    left, bottom = x + (_CELL[0] - width * scale) / 2, y + _CELL[1]
    right, top = left + width * scale, bottom - height * scale
    if pixels is None:
        axes.text(x + 0.5, y + 1, "cannot\nbe read", fontsize=6, ha="center", color="#6b6f76")
    else:
        axes.imshow(pixels, extent=(left, right, bottom, top), aspect="auto", clip_on=False)
    colour, style = frame
    box = (left, top)
    edge = {"edgecolor": colour, "linestyle": style, "linewidth": 2.0, "facecolor": "none"}
    axes.add_patch(Rectangle(box, right - left, bottom - top, clip_on=False, **edge))


def _words(axes: Axes, x: float, y: float, text: str) -> None:
    place = (x + _CELL[0] / 2, y + _CELL[1] + 0.05)
    axes.text(*place, text, fontsize=5.5, ha="center", va="top", linespacing=1.1)


def _person(crop: Crop) -> str:
    return plain(f"id {shortened(crop.person, 8)}") if crop.person else "id ?"


def _camera(crop: Crop) -> str:
    return plain(f"cam {shortened(crop.camera, 8)}") if crop.camera else "cam ?"


def write(
    out: Path,
    lists: Sequence[RankList],
    load: Load,
    *,
    pictures: int = 16,
    about: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Writes rank_lists.csv, rank_lists.json and pictures: each query's and all of them together.

    Args:
        out: Folder.
        lists: All of them stand in the tables.
        load: Reads a crop as (h, w, 3) uint8.
        pictures: How many of the first queries are drawn.
        about: Settings for the JSON file.

    Returns:
        The files.
    """
    written = [out / "rank_lists.csv", out / "rank_lists.json"]
    write_csv(written[0], lists)
    write_json(written[1], lists, about or {})
    drawn = lists[:pictures]
    if drawn:
        _save(out / "rank_lists.png", picture(drawn, load))
        written.append(out / "rank_lists.png")
    for number, one in enumerate(drawn, start=1):
        stem = re.sub(r"[^\w.\-]", "_", Path(one.query.id).stem)[:80]
        path = out / "rank_lists" / f"{number:04d}_{stem}.png"
        _save(path, picture([one], load))
        written.append(path)
    return written


def _save(path: Path, figure: Figure) -> None:
    files.write_whole(path, partial(figure.savefig, dpi=120))
