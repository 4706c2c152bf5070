"""Finding data sets in a folder, and pairing image, depth and mask by the stem of their names.

The field hands its sets around in half a dozen arrangements:

    bbs       RGBD_for_train/{RGB,depth,GT}, RGBD_for_test/<set>/{RGB,depth,GT}; also TrainDataset,
              TestDataset (BBS-Net, SPNet, DFormer)
    vst       <set>/{trainset,testset}/{RGB,depth,GT}, <set>/{RGB,depth,GT}
    caver     <set>/{Image,Depth,Mask} and lists of stems; DUTLF-Depth/{Train,Test}/{RGB,depth,GT}
    author    train_2985/train_{images,depth,masks}, <set>/test_{images,depth,masks}
    come      COME-TR/{imgs_right,depths,gt_right}, COME-TE/COME-TE-{E,H}/{RGB,depths,GT}
    nlpr_raw  RGB, rawDepth/<stem>_Depth.mat, smoothedDepth/<stem>_Depth.{mat,png}, groundtruth
    plain     any folder with image, depth and mask folders

All are a folder whose children hold images, depth and masks, so that is what is looked for. What
a folder is for, and which set it belongs to, its path tells.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from zoo.data import plain_name
from zoo.domains.saliency.rgbd_sod.images import DEPTH_SUFFIXES, IMAGE_SUFFIXES
from zoo.errors import DataError

Role = Literal["train", "test", "any"]
Kind = Literal["rgb", "depth", "mask"]

# Folder names in lower case, in order of preference.
FOLDERS: Mapping[Kind, tuple[str, ...]] = {
    "rgb": ("rgb", "image", "images", "img", "imgs", "imgs_right", "train_images", "test_images"),
    "depth": ("depth", "depths", "smootheddepth", "rawdepth", "train_depth", "test_depth"),
    "mask": (
        *("gt", "gts", "mask", "masks", "gt_right", "groundtruth", "ground_truth"),
        *("train_masks", "test_masks"),
    ),
}
# The name a set is reported under -> other names its folder has, without punctuation.
SETS: Mapping[str, tuple[str, ...]] = {
    "NJU2K": (
        *("nju2k", "njud", "njuds2000", "nju2000", "njudfull", "nju2kfull"),
        *("njud500", "njud498", "njud485", "nju2ktrain", "nju2ktest"),
    ),
    "NLPR": ("nlpr", "rgbd1000", "nlprfull"),
    "STERE": ("stere", "stereo", "ssb", "stere797", "stere1000", "stereo797", "stereo1000"),
    "SIP": ("sip",),
    "DES": ("des", "rgbd135", "desrgbd135"),
    "LFSD": ("lfsd",),
    "SSD": ("ssd", "ssd80", "ssd100"),
    "DUT-RGBD": ("dutrgbd", "dutlfdepth", "dutlfd", "dut"),
    "ReDWeb-S": ("redwebs",),
    "COME15K": ("come15k", "come"),
}
_TRAIN = re.compile(r"rgbdfortrain|train(ing)?(set|data|dataset|s?\d{3,4})?|cometr")
_TEST = re.compile(r"rgbdfortest|test(ing)?(set|data|dataset)?|comete")
_BBS = re.compile(r"rgbdfor(train|test)|(train|test)dataset")
_JOINED = re.compile(r"rgbdfor(train|test)|(train|test)dataset|trains?\d{3,4}")
_DEEPEST = 4  # folders between the root and the images' folder
_NO_DATA = {"thumbs.db", ".ds_store", "desktop.ini"}
_TAIL = re.compile(r"_(depth|gt|mask)$", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """A folder with images, depth and masks.

    Attributes:
        path: The folder.
        set: Data set, under the field's usual name where it is known.
        folder: Data set as the folder is called.
        role: What the arrangement says it is for.
        layout: Which arrangement it is part of.
        rgb: Folder of the images.
        depth: Folder of the depth maps, None if there is none.
        mask: Folder of the annotations, None if there is none.
    """

    path: Path
    set: str
    folder: str
    role: Role
    layout: str
    rgb: Path
    depth: Path | None
    mask: Path | None

    @property
    def mixed(self) -> bool:
        """Whether the folder's name says no set: a training folder joined from several."""
        return canonical(self.folder) is None


@dataclass(frozen=True)
class Pair:
    """The files of one scene.

    Attributes:
        id: `<set>/<stem>`.
        set: Data set.
        stem: Name without suffixes.
        rgb: The image.
        depth: Its depth map, None where there is none.
        mask: Its annotation, None where there is none.
    """

    id: str
    set: str
    stem: str
    rgb: Path
    depth: Path | None
    mask: Path | None


def plain(text: str) -> str:
    """A name without case and punctuation, for comparing."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def canonical(name: str) -> str | None:
    """The usual name of a data set, None if it is not one of the field's.

    >>> canonical("DUTLF-Depth")
    'DUT-RGBD'
    """
    key = plain(name)
    return next((usual for usual, others in SETS.items() if key in others), None)


def slug(name: str) -> str:
    """A set's name as part of a split's name: lower case, letters, digits and `_`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "set"


def find_places(
    root: Path,
    layout: str = "auto",
    depth_from: Literal["smoothed", "raw"] = "smoothed",
    *,
    needed: bool = True,
) -> list[Place]:
    """Every folder with images below `root`, sorted by path.

    Args:
        root: The data folder.
        layout: One arrangement only, or `auto`. Folders in the plain arrangement below a set's
            name belong to `bbs`, `vst` and `caver` alike.
        depth_from: Which depth of a raw NLPR folder is read.
        needed: Finding nothing at all is an error.

    Raises:
        DataError: The folder is missing, nothing like a data set is in it, or two folders in it
            hold the same set.
    """
    if not root.is_dir():
        msg = f"data.root={root}: there is no such folder"
        raise DataError(msg)
    every = [_place(root, folder, found) for folder, found in _walk(root, root, depth_from)]
    wanted = {layout} if layout in ("author", "come", "nlpr_raw") else {layout, "plain"}
    places = every if layout == "auto" else [p for p in every if p.layout in wanted]
    if not places and (needed or every):
        have = ", ".join(sorted({p.layout for p in every}))
        msg = (
            f"data.layout={layout}: nothing in {root} is arranged so; found: {have}"
            if every
            else f"{root}: no data set found; looked for folders named RGB (or Image, imgs_right, "
            "train_images …) beside depth and GT, up to four levels down"
        )
        raise DataError(msg)
    return _told_apart(places)


def _walk(
    root: Path, folder: Path, depth_from: str
) -> Iterator[tuple[Path, dict[Kind, Path | None]]]:
    children = _children(folder)
    found = _kinds(children, depth_from)
    if found["rgb"] is not None:
        yield folder, found
    if len(folder.relative_to(root).parts) >= _DEEPEST:
        return
    known = {name for names in FOLDERS.values() for name in names}
    for child in children:
        if child.name.lower() not in known:
            yield from _walk(root, child, depth_from)


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        msg = f"{folder}: cannot be listed ({error.strerror})"
        raise DataError(msg) from None


def depth_folder(parent: Path, depth_from: str = "smoothed") -> Path | None:
    """The folder of depth maps in `parent`, if it has one."""
    return _kinds(_children(parent), depth_from)["depth"]


def _kinds(children: Sequence[Path], depth_from: str) -> dict[Kind, Path | None]:
    by_name: dict[str, Path] = {}
    for child in children:
        by_name.setdefault(child.name.lower(), child)
    found: dict[Kind, Path | None] = {}
    for kind, names in FOLDERS.items():
        if kind == "depth" and depth_from == "raw":
            names = ("rawdepth", *names)
        found[kind] = next((by_name[n] for n in names if n in by_name), None)
    return found


def _place(root: Path, path: Path, found: Mapping[Kind, Path | None]) -> Place:
    rgb = found["rgb"]
    assert rgb is not None
    parts = path.relative_to(root).parts
    role: Role = "any"
    for part in (rgb.name.partition("_")[0], *reversed(parts), root.name):
        if _TRAIN.fullmatch(plain(part)):
            role = "train"
            break
        if _TEST.fullmatch(plain(part)):
            role = "test"
            break
    name = _set_folder(root, parts)
    return Place(
        path,
        canonical(name) or name,
        name,
        role,
        _layout(parts or (root.name,), rgb, found),
        rgb,
        found["depth"],
        found["mask"],
    )


def _set_folder(root: Path, parts: Sequence[str]) -> str:
    """The folder that names the set: the deepest that does not merely say train or test.

    A folder such as `RGBD_for_train` or `train_2985` that holds images itself is joined from
    several sets, and its own name is all there is.
    """
    if parts and _JOINED.fullmatch(plain(parts[-1])):
        return parts[-1]
    for part in reversed(parts):
        if not (_TRAIN.fullmatch(plain(part)) or _TEST.fullmatch(plain(part))):
            return part
    for above in (root, root.parent):
        if canonical(above.name):
            return above.name
    return parts[-1] if parts else root.name or "data"


def _layout(parts: Sequence[str], rgb: Path, found: Mapping[Kind, Path | None]) -> str:
    names = [plain(part) for part in parts]
    depth = found["depth"].name.lower() if found["depth"] is not None else ""
    mask = found["mask"].name.lower() if found["mask"] is not None else ""
    if rgb.name.lower() in ("train_images", "test_images"):
        return "author"
    if rgb.name.lower() == "imgs_right" or any(n.startswith("come") for n in names):
        return "come"
    if depth in ("rawdepth", "smootheddepth"):
        return "nlpr_raw"
    if any(_BBS.fullmatch(n) for n in names):
        return "bbs"
    if names[-1] in ("trainset", "testset"):
        return "vst"
    if "dutlfdepth" in names or (rgb.name.lower(), mask) == ("image", "mask"):
        return "caver"
    return "plain"


def _told_apart(places: Sequence[Place]) -> list[Place]:
    """Sets that share a usual name (STERE-797 beside STERE-1000) keep their folders' names.

    Raises:
        DataError: Two folders hold the same part of a set under the same name.
    """
    made = list(places)
    for i, place in enumerate(places):
        if any(_clash(place, p) for j, p in enumerate(places) if i != j):
            made[i] = replace(place, set=place.folder)
    for i, place in enumerate(made):
        twin = next((p for p in made[:i] if _clash(place, p)), None)
        if twin is not None:
            msg = (
                f"{place.path} and {twin.path} both hold set '{place.set}'; set data.layout or "
                "point data.root at one of them"
            )
            raise DataError(msg)
    return made


def _clash(a: Place, b: Place) -> bool:
    return plain(a.set) == plain(b.set) and (a.role == b.role or "any" in (a.role, b.role))


# -- files --------------------------------------------------------------------------------------


def stem_of(name: str) -> str:
    """A file's name without the suffix of an image or matrix.

    >>> stem_of("10_03-31-22_Depth.mat")
    '10_03-31-22_Depth'
    """
    base, dot, suffix = name.rpartition(".")
    return base if dot and f".{suffix.lower()}" in DEPTH_SUFFIXES else name


def without_tail(stem: str) -> str:
    """The stem of a depth map or mask without `_Depth`, `_GT` or `_mask` at its end.

    >>> without_tail("10_03-31-22_Depth")
    '10_03-31-22'
    """
    return _TAIL.sub("", stem)


def files_of(folder: Path, kind: Kind) -> tuple[dict[str, Path], list[str]]:
    """The files of a folder by stem, and a line for each stem that two files share.

    Hidden files and those that file managers leave (`Thumbs.db`, `.DS_Store`) are passed over. Of
    a matrix and a picture of the same depth (raw NLPR) the matrix is taken, which is exact.
    """
    suffixes = DEPTH_SUFFIXES if kind == "depth" else IMAGE_SUFFIXES
    found: dict[str, Path] = {}
    twice = []
    for path in sorted(folder.iterdir()):
        name = path.name
        if name.startswith(".") or name.lower() in _NO_DATA or not path.is_file():
            continue
        if path.suffix.lower() not in suffixes:
            continue
        stem = stem_of(name)
        other = found.get(stem)
        exact = path.suffix.lower() == ".mat"
        if other is None or exact > (other.suffix.lower() == ".mat"):
            found[stem] = path
        elif exact == (other.suffix.lower() == ".mat"):
            twice.append(f"{path} and {other.name} have the same stem '{stem}'")
    return found, twice


def matched(files: Mapping[str, Path], stems: Collection[str]) -> tuple[dict[str, Path], list[str]]:
    """Depth maps or masks of images: those of the same stem, else those with a tail to it.

    Args:
        files: Maps or masks by stem, as `files_of` gives them.
        stems: Of the images.

    Returns:
        Image stem -> file, and the stems of files that belong to no image.
    """
    found: dict[str, Path] = {stem: path for stem, path in files.items() if stem in stems}
    idle = []
    for stem, path in files.items():
        short = without_tail(stem)
        if stem in found:
            continue
        if short in stems and short not in found:
            found[short] = path
        else:
            idle.append(stem)
    return found, idle


# -- lists --------------------------------------------------------------------------------------


def read_list(path: Path) -> list[str]:
    """The stems of a list: one a line, with or without folder and extension.

    Raises:
        DataError: The file is missing, is no text, names nothing or names a stem twice.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError  # a named pipe would be waited for
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        msg = f"{path}: there is no such list of stems"
        raise DataError(msg) from None
    except (OSError, UnicodeDecodeError):
        msg = f"{path}: cannot be read as a list, one stem a line"
        raise DataError(msg) from None
    stems: dict[str, None] = {}
    for line in lines:
        # Some lists name image and depth by their paths in one line; the first one counts.
        first = re.split(r"\t|\s+(?=\S*[/\\])", line.strip())[0]
        word = re.split(r"[/\\]", first)[-1]
        if not word or word.startswith("#"):
            continue
        stem = stem_of(plain_name(word, path))
        if stem in stems:
            msg = f"{path}: stem '{stem}' is listed twice"
            raise DataError(msg)
        stems[stem] = None
    if not stems:
        msg = f"{path}: the list is empty"
        raise DataError(msg)
    return list(stems)


def find_lists(root: Path) -> dict[tuple[str, Role], Path]:
    """Lists of stems that lie with the data: (set, train or test) -> file.

    A list is known by its name, which holds the set and the part: `njud_train_….lst`.
    """
    found: dict[tuple[str, Role], Path] = {}
    for path in sorted([*root.glob("*.lst"), *root.glob("*/*.lst")]):
        words = re.split(r"[_\-. ]+", path.stem.lower())
        name = next((c for w in words if (c := canonical(w))), None)
        roles: tuple[Role, ...] = ("train", "test")
        for role in roles:
            if name and role in words:
                found.setdefault((name, role), path)
    return found
