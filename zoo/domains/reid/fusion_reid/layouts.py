"""Finding a data set: the folders it is handed around in, and every crop in them.

Folders of Market-1501, DukeMTMC-reID and Occluded-Duke as the archives unpack, as FusionReID
expects them and as torchreid does; any folder of crops whose names tell person and camera.
MSMT17 and CUHK03 come with lists, see `lists.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from zoo.domains.reid.fusion_reid import names
from zoo.domains.reid.fusion_reid.config import LAYOUTS, ReidData
from zoo.errors import DataError
from zoo.task import Finding

Role = Literal["train", "query", "gallery"]
ROLES: tuple[Role, ...] = ("train", "query", "gallery")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
# Below data.root; the first that holds the layout is taken. "" is data.root itself.
PLACES: dict[str, tuple[str, ...]] = {
    "market1501": (
        "",
        "market1501/Market-1501-v15.09.15",
        "market1501",
        "Market-1501-v15.09.15",
        "Market-1501",
        "Market1501",
    ),
    "dukemtmc": (
        "",
        "dukemtmc-reid/DukeMTMC-reID",
        "dukemtmc",
        "dukemtmc-reid",
        "DukeMTMC-reID",
        "dukemtmcreid",
    ),
    "occluded_duke": (
        "",
        "Occluded_Duke",
        "occluded_duke",
        "Occluded-DukeMTMC-reID",
        "occluded-dukemtmc",
    ),
    "msmt17": (
        "",
        "msmt17/MSMT17_V1",
        "msmt17/MSMT17_V2",
        "msmt17",
        "MSMT17_V1",
        "MSMT17_V2",
        "MSMT17",
    ),
    "cuhk03": ("", "cuhk03", "CUHK03"),
}
_BOXES: dict[Role, str] = {
    "train": "bounding_box_train",
    "query": "query",
    "gallery": "bounding_box_test",
}
_FOLDERS: dict[Role, tuple[str, ...]] = {
    "train": ("train", "bounding_box_train"),
    "query": ("query", "queries"),
    "gallery": ("gallery", "bounding_box_test", "test"),
}


@dataclass(frozen=True)
class Entry:
    """One crop.

    Attributes:
        path: The file.
        name: The same below the data set's folder, with forward slashes.
        role: What it is there for.
        person: Identity, or `names.DISTRACTOR`.
        camera: Camera.
        space: The naming its identity belongs to: equal identities of unlike spaces are unlike.
        size: Bytes of the file.
    """

    path: Path
    name: str
    role: Role
    person: str
    camera: str
    space: str
    size: int

    @property
    def short(self) -> str:
        """The name without the folder of its role."""
        return self.name.partition("/")[2] or self.name


@dataclass(frozen=True)
class Found:
    """A data set.

    Attributes:
        layout: One of `config.LAYOUTS`.
        where: Its folder.
        entries: Every usable crop, sorted by role, then name.
        findings: Badly named and missing files, as errors.
        junk: Images left out since they are marked as junk, by role.
    """

    layout: str
    where: Path
    entries: Sequence[Entry]
    findings: Sequence[Finding] = ()
    junk: dict[Role, int] = field(default_factory=dict)


def parse_test(text: str) -> tuple[str, Path]:
    """One of `data.test`, PATH or LAYOUT:PATH, as layout and path."""
    layout, colon, rest = text.partition(":")
    if colon and layout in (*LAYOUTS, "auto"):
        return layout, Path(rest).expanduser()
    return "auto", Path(text).expanduser()


def find(root: Path, layout: str, data: ReidData) -> Found:
    """Find a data set and list its crops.

    Args:
        root: Where it lies, or the folder above.
        layout: One of `config.LAYOUTS`, or `auto`.
        data: `pattern`, `msmt17_val` and `cuhk03` are used.

    Raises:
        DataError: It is not there, or several are and one has to be chosen.
    """
    # Here, since lists.py needs the types of this module.
    from zoo.domains.reid.fusion_reid import lists

    if not root.is_dir():
        msg = f"{root}: there is no such folder; set data.root to the folder of the data set"
        raise DataError(msg)
    layout, place = locate(root, layout)
    if layout == "msmt17":
        return lists.msmt17(place, with_val=data.msmt17_val)
    if layout == "cuhk03":
        return lists.cuhk03(place, data.cuhk03)
    return _folders(place, layout, data)


# -- where --------------------------------------------------------------------------------------


def locate(root: Path, layout: str) -> tuple[str, Path]:
    """The layout in force and the folder it begins in.

    Raises:
        DataError: Nothing was found, or several data sets.
    """
    if layout == "folder":
        if not any(_existing(root, role) for role in ROLES):
            msg = (
                f"{root}: none of the folders train/, query/, gallery/ is in it; put the crops "
                "into these"
            )
            raise DataError(msg)
        return layout, root
    if layout != "auto":
        for place in PLACES[layout]:
            if _HOLDS[layout](root / place):
                return layout, root / place
        tried = ", ".join(str(root / p) for p in PLACES[layout])
        needs = {
            "msmt17": "list_train.txt or list_query.txt and train/ or mask_train_v2/",
            "cuhk03": "images_detected/ or images_labeled/",
        }.get(layout, "bounding_box_train/ or query/ and bounding_box_test/")
        msg = f"no {layout} data set: looked for {needs} in {tried}; set data.root"
        raise DataError(msg)
    found = {place: name for name, place in _candidates(root)}
    if len(found) == 1:
        (only, name), *_ = found.items()
        return name, only
    if found:
        told = ", ".join(sorted(found.values()))
        msg = f"{root}: several data sets ({told}); choose one with data.layout"
        raise DataError(msg)
    if any(_existing(root, role) for role in ROLES):
        return "folder", root
    kinds = ", ".join(LAYOUTS[:-1])
    msg = (
        f"{root}: no data set of a known layout ({kinds}) and no folders train/, query/, gallery/; "
        "set data.root to the folder that holds them"
    )
    raise DataError(msg)


def _candidates(root: Path) -> Iterator[tuple[str, Path]]:
    """Layouts below a folder; one place is of one layout."""
    for layout, places in PLACES.items():
        for place in places:
            folder = root / place
            if _HOLDS[layout](folder) and _guess(folder, layout) == layout:
                yield layout, folder.resolve() if not place else folder
                break


def _guess(folder: Path, layout: str) -> str:
    """Which of the three data sets with the same folders it is, by names of folder and files."""
    if layout not in ("market1501", "dukemtmc", "occluded_duke"):
        return layout
    name = next(_some_names(folder), "")
    if names.is_market(name):
        return "market1501"
    if names.is_duke(name):
        return "occluded_duke" if "occluded" in folder.resolve().name.lower() else "dukemtmc"
    return "folder"


def _some_names(folder: Path) -> Iterator[str]:
    for role in ROLES:
        for entry in _listing(folder / _BOXES[role]):
            if names.parse(entry.name, "market1501"):
                yield entry.name


def _has_boxes(folder: Path) -> bool:
    test = (folder / _BOXES["query"]).is_dir() and (folder / _BOXES["gallery"]).is_dir()
    return test or (folder / _BOXES["train"]).is_dir()


def _has_msmt17(folder: Path) -> bool:
    lists = any((folder / f"list_{part}.txt").is_file() for part in ("train", "query"))
    return lists and any(
        (folder / n).is_dir() for n in ("train", "test", "mask_train_v2", "mask_test_v2")
    )


def _has_cuhk03(folder: Path) -> bool:
    names_ = ("images_detected", "images_labeled", "cuhk03_release")
    return any((folder / n).is_dir() for n in names_)


_HOLDS: dict[str, Callable[[Path], bool]] = {
    "market1501": _has_boxes,
    "dukemtmc": _has_boxes,
    "occluded_duke": _has_boxes,
    "msmt17": _has_msmt17,
    "cuhk03": _has_cuhk03,
}


# -- folders ------------------------------------------------------------------------------------


def _existing(root: Path, role: Role) -> Path | None:
    return next((root / n for n in _FOLDERS[role] if (root / n).is_dir()), None)


def _listing(folder: Path) -> Iterable[os.DirEntry[str]]:
    """Image files of one folder, in any order; none if it is not there.

    Links that lead nowhere are among them: passed over, their images would be missing in silence.
    """
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_crop(entry.name) and not Path(entry.path).is_dir():
                yield entry


def _size(entry: os.DirEntry[str] | Path) -> int:
    """Bytes of a file, 0 of a link that leads nowhere."""
    try:
        return entry.stat().st_size
    except OSError:
        return 0


def is_crop(name: str) -> bool:
    """Whether a name is that of an image, not of `Thumbs.db`, a hidden file or a list."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _files(folder: Path, *, deep: bool) -> list[tuple[str, int]]:
    """Name below the folder and size of every image, sorted; `deep` looks into subfolders."""
    if not deep:
        return sorted((entry.name, _size(entry)) for entry in _listing(folder))
    found = (p for p in folder.rglob("*") if is_crop(p.name) and not p.is_dir())
    return sorted((p.relative_to(folder).as_posix(), _size(p)) for p in found)


def _folders(root: Path, layout: str, data: ReidData) -> Found:
    own = layout == "folder"
    pattern = names.compiled(data.pattern) if own else None
    entries: list[Entry] = []
    findings: list[Finding] = []
    junk: dict[Role, int] = {}
    for role in ROLES:
        folder = _existing(root, role) if own else root / _BOXES[role]
        if folder is None or not folder.is_dir():
            continue
        bad = []
        for name, size in _files(folder, deep=own):
            said = names.parse(name if pattern else name.rpartition("/")[2], layout, pattern)
            if said is None:
                bad.append(name)
            elif said.person == names.JUNK or (role != "gallery" and _nobody(said)):
                junk[role] = junk.get(role, 0) + 1
            else:
                whole = f"{folder.name}/{name}"
                entry = Entry(folder / name, whole, role, said.person, said.camera, layout, size)
                entries.append(entry)
        findings += _badly_named(folder, bad, layout, pattern, any(e.role == role for e in entries))
    return Found(layout, root, entries, findings, junk)


def _nobody(said: names.Name) -> bool:
    return said.person == names.DISTRACTOR


def _badly_named(
    folder: Path,
    bad: Sequence[str],
    layout: str,
    pattern: re.Pattern[str] | None,
    others: bool,
) -> list[Finding]:
    """One error a file, or one for all where not a single name fits."""
    form = f"data.pattern {pattern.pattern}" if pattern else names.expected(layout)
    remedy = "rename or remove it, or set data.on_error=skip"
    if bad and not others and len(bad) > 1:
        told = f"none of {len(bad)} file names is of the form {form}, '{bad[0]}' for instance"
        remedy = "set data.layout, or data.pattern with data.layout=folder"
        return [Finding("error", told, str(folder), remedy)]
    told = f"its name tells no person and camera; expected {form}"
    return [Finding("error", told, str(folder / name), remedy) for name in bad]
