"""The CropNet tree: which file holds what, and the county-years of its json index.

Layout, names and index are those of CropNet (Lin et al. 2024), its small copy that DFYP trains
on, and MMST-ViT (Lin et al. 2023). They differ in folder names, in the case of crop names and in
whether a state's leading zero survived, so files are known by what their names say rather than by
where they lie:

    Sentinel-2 Imagery/data/{year}/{ST}/Agriculture_{SF}_{ST}_{year}-04-01_{year}-06-30.h5
    USDA/data/{Crop}/{year}/USDA_{Crop}_County_{year}.csv
    WRF-HRRR/data/{year}/{ST}/HRRR_{SF}_{ST}_{year}-{MM}.csv
    json/{crop}/{crop}_train.json, {crop}_test.json
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.data import LONGEST_NAME, read_json
from zoo.errors import DataError

# Quarters that DFYP and MMST-ViT look at, whatever the crop: April to September.
SEASON = (4, 7)
_IMAGERY = {"sentinel2imagery", "sentinelimagery", "sentinel2", "sentinel"}
_YIELDS = {"usda", "usdacropdataset"}
_WEATHER = {"wrfhrrr", "hrrr", "wrfhrrrcomputeddataset"}
_PICTURES = re.compile(r"Agriculture_\d{1,2}_([A-Z]{2})_(\d{4})-(\d\d)-\d\d_.*\.(h5|hdf5)", re.I)
_CSV = re.compile(r"USDA_(.+)_County_(\d{4})\.csv", re.I)
_HRRR = re.compile(r"HRRR_\d{1,2}_([A-Z]{2})_(\d{4})-(\d\d)\.csv", re.I)
_DEPTH = 6  # folders below a modality's; a loop of symbolic links ends here

PicturesKey = tuple[int, str, int]


def crop_key(name: str) -> str:
    """A crop's name without case, blanks and plural: `Soybeans` is `soybean`."""
    return re.sub(r"[^a-z]", "", name.lower()).removesuffix("s")


def padded_fips(value: object) -> str | None:
    """A county's five-digit FIPS code; None if `value` is none.

    A code that was read as a number has lost the leading zero of the states 01 to 09.
    """
    found = re.fullmatch(r"(\d{4,5})(\.0*)?", str(value).strip())
    return found[1].zfill(5) if found else None


@dataclass(frozen=True)
class Tree:
    """The files of a CropNet tree.

    Attributes:
        base: Folder that holds the modalities; paths in the index start here.
        pictures: (year, state's postal code, first month of the quarter) -> h5 file.
        yields: (crop, year) -> csv.
        weather: (year, state's postal code, month) -> csv.
        doubles: Files left out since another has the same meaning.
    """

    base: Path
    pictures: Mapping[PicturesKey, Path]
    yields: Mapping[tuple[str, int], Path]
    weather: Mapping[PicturesKey, Path] = field(default_factory=dict)
    doubles: Sequence[Path] = ()

    def picture_file(self, relative: str) -> Path | None:
        """The h5 file an index means by a path: there, or where this tree has it."""
        path = self.base / relative
        key = picture_key(path)
        return path if path.is_file() or key is None else self.pictures.get(key)

    def season(self, year: int, postal: str) -> list[Path]:
        """The files of a state's season, in order of time."""
        keys = [(year, postal, month) for month in SEASON]
        return [self.pictures[key] for key in keys if key in self.pictures]


@dataclass(frozen=True)
class Entry:
    """A county-year as the index or the folders name it.

    Attributes:
        fips: Five digits.
        year: Year of harvest.
        postal: Two letters of the state.
        county: Its name; empty if nobody told.
        files: h5 files of the season, in order of time.
        missing: Files the index names that are not there.
        where: Record of the index, or folder, that names it; for messages.
    """

    fips: str
    year: int
    postal: str
    county: str = ""
    files: tuple[Path, ...] = ()
    missing: tuple[str, ...] = ()
    where: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """County and year."""
        return self.fips, self.year


def picture_key(path: Path) -> PicturesKey | None:
    """(year, postal code, first month) that an h5 file's name tells; None for other names."""
    found = _PICTURES.fullmatch(path.name)
    return (int(found[2]), found[1].upper(), int(found[3])) if found else None


def find_tree(root: Path, yields: Path | None = None) -> Tree:
    """Look for CropNet's files below `root` or one folder deeper.

    Args:
        root: The folder.
        yields: Folder of the yield csv, or one of them, seen from the tree; None: its `USDA`.

    Raises:
        DataError: There is no such folder, or it holds no folder of pictures.
    """
    if not root.is_dir():
        msg = f"{root}: no such folder; set data.root to the CropNet folder"
        raise DataError(msg)
    for base in (root, *sorted(p for p in root.iterdir() if p.is_dir())):
        kinds = _modalities(base)
        if "imagery" in kinds:
            if yields is not None:
                kinds["yields"] = [base / yields.expanduser()]
            return _tree(base, kinds)
    have = ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"
    msg = f"{root}: no folder 'Sentinel-2 Imagery' of h5 files in it; it holds {have}"
    raise DataError(msg)


def _modalities(base: Path) -> dict[str, list[Path]]:
    """Imagery, yields, weather -> folders; several names may be there at once."""
    names = {"imagery": _IMAGERY, "yields": _YIELDS, "weather": _WEATHER}
    found: dict[str, list[Path]] = {}
    for folder in sorted(p for p in base.iterdir() if p.is_dir()):
        for kind, known in names.items():
            # A folder `sentinel2` may as well hold a whole tree.
            if _plain(folder) in known and not _is_tree(folder):
                found.setdefault(kind, []).append(folder)
    return found


def _is_tree(folder: Path) -> bool:
    return any(p.is_dir() and _plain(p) in _IMAGERY | _YIELDS for p in folder.iterdir())


def _plain(folder: Path) -> str:
    return re.sub(r"[^a-z0-9]", "", folder.name.lower())


def _tree(base: Path, kinds: Mapping[str, Sequence[Path]]) -> Tree:
    pictures: dict[PicturesKey, Path] = {}
    yields: dict[tuple[str, int], Path] = {}
    weather: dict[PicturesKey, Path] = {}
    doubles: list[Path] = []

    def put(table: dict[Any, Path], key: Any, path: Path) -> None:
        if table.setdefault(key, path) != path:
            doubles.append(path)

    for path in (f for folder in kinds.get("imagery", ()) for f in _files(folder)):
        key = picture_key(path)
        if key is not None:
            put(pictures, key, path)
    for path in (f for folder in kinds.get("yields", ()) for f in _files(folder)):
        if found := _CSV.fullmatch(path.name):
            put(yields, (crop_key(found[1]), int(found[2])), path)
    for path in (f for folder in kinds.get("weather", ()) for f in _files(folder)):
        if found := _HRRR.fullmatch(path.name):
            put(weather, (int(found[2]), found[1].upper(), int(found[3])), path)
    return Tree(base, pictures, yields, weather, tuple(doubles))


def _files(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Files below a folder in order of their names, through symbolic links; a file is its own.

    Raises:
        DataError: There is no such folder.
    """
    if folder.is_file():
        yield folder
        return
    if not folder.is_dir():
        msg = f"{folder}: no such file or folder"
        raise DataError(msg)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if depth:
                yield from _files(path, depth - 1)
        elif path.is_file():
            yield path


# -- the index ----------------------------------------------------------------------------------


def index_files(tree: Tree, crop: str, given: Path | None) -> dict[str, Path]:
    """`train` and `test` -> json files of a crop; empty if the tree has no index.

    MMST-ViT calls the second one `val`.

    Args:
        tree: The tree.
        crop: The crop.
        given: Folder of the index, seen from the tree; None looks in `json/{crop}` and `json`.

    Raises:
        DataError: `given` has no index of the crop.
    """
    top = tree.base / "json"
    places = [p for p in (_named(top, crop), top) if p.is_dir()]
    if given is not None:
        folder = tree.base / given.expanduser()
        places = [p for p in (_named(folder, crop), folder) if p.is_dir()]
    for place in places:
        found: dict[str, Path] = {}
        for path in sorted(place.glob("*.json")):
            name, _, part = path.stem.rpartition("_")
            if crop_key(name) == crop and part.lower() in ("train", "test", "val"):
                found.setdefault("train" if part.lower() == "train" else "test", path)
        if found:
            return found
    if given is not None:
        msg = f"{tree.base / given}: no {crop}_train.json in it; correct data.index"
        raise DataError(msg)
    return {}


def _named(folder: Path, crop: str) -> Path:
    """The folder of a crop, whatever the case of its name."""
    inner = [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    return next((p for p in sorted(inner) if crop_key(p.name) == crop), folder / crop)


def read_index(path: Path, tree: Tree) -> list[Entry]:
    """The county-years of a json file, in its order.

    What the index says of `state_ansi` and `county_ansi` is passed over: it is cut from the FIPS
    code, wrongly where that has lost its zero. Paths may lead below the tree only.

    Raises:
        DataError: The file is no such index, or a path in it leads elsewhere.
    """
    body = read_json(path)
    if not isinstance(body, list) or not body:
        msg = f"{path}: expected a list of records with FIPS, year and data"
        raise DataError(msg)
    return [_entry(record, f"{path}, record {i + 1}", tree) for i, record in enumerate(body)]


def _entry(record: Any, where: str, tree: Tree) -> Entry:
    if not isinstance(record, dict) or not isinstance(record.get("data"), dict):
        msg = f"{where}: expected FIPS, year and data"
        raise DataError(msg)
    fips = padded_fips(record.get("FIPS"))
    year = re.fullmatch(r"\d{4}", str(record.get("year")))
    pictures = record["data"].get("sentinel")
    if fips is None or year is None or not isinstance(pictures, list) or not pictures:
        what = "FIPS" if fips is None else "year" if year is None else "data.sentinel"
        msg = f"{where}: '{what}' is missing or no such value"
        raise DataError(msg)
    for text in _texts(record["data"]):
        _stays_below(text, where)
    files, missing = [], []
    for text in pictures:
        found = tree.picture_file(str(text))
        if found is None or not found.is_file():
            missing.append(str(text))
            continue
        key = picture_key(found)
        if key is not None and key[0] != int(year[0]):
            msg = f"{where}: the record is of {year[0]} but names pictures of {key[0]} ({text})"
            raise DataError(msg)
        files.append(found)
    county = str(record.get("county") or "")
    postal = str(record.get("state") or "").upper()
    return Entry(
        fips,
        int(year[0]),
        postal if re.fullmatch("[A-Z]{2}", postal) else "",
        county[:60] if county.isprintable() else "",
        tuple(files),
        tuple(missing),
        where,
    )


def _texts(node: Any) -> Iterator[str]:
    """Every path below a record's `data`: weather files lie two lists deep."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, (list, dict)):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _texts(inner)


def _stays_below(text: str, where: str) -> None:
    path = PurePosixPath(text)
    bad = not text.isprintable() or "\\" in text or ":" in text or path.is_absolute()
    if bad or ".." in path.parts:
        msg = f"{where}: {text[:80]!r} leads out of the data folder, which is refused"
        raise DataError(msg)
    if any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        msg = f"{where}: {text[:80]!r} … is longer than a file's name can be"
        raise DataError(msg)


def entries_of_folders(tree: Tree, counties: Mapping[Path, Iterable[str]]) -> list[Entry]:
    """The county-years whose pictures lie in the folders, by year, then county.

    Args:
        tree: The tree.
        counties: h5 file -> the five-digit codes in it.
    """
    found = []
    for year, postal in sorted({key[:2] for key in tree.pictures if key[2] in SEASON}):
        files = tree.season(year, postal)
        names = {fips for file in files for fips in counties.get(file, ())}
        where = str(files[0].parent) if files else str(tree.base)
        found += [Entry(fips, year, postal, files=tuple(files), where=where) for fips in names]
    return sorted(found, key=lambda e: (e.year, e.fips))
