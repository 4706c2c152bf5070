"""Finding pictures and masks in the arrangements in which 2D data sets are handed around.

    her      image_1024, mask_1024 (or mask_1024_<target>), a split json: the official layout
    isic     ISIC…_Input or …_Data beside ISIC…_GroundTruth
    polyp    TrainDataset/{image,masks}, TestDataset/<set>/{images,masks}
    lungs    CXR_png beside masks, or ManualMask/{leftMask,rightMask} (Montgomery, Shenzhen)
    refuge   photographs .jpg, masks .bmp with grey codes
    busi     <name>.png beside <name>_mask.png (BUSI), or original beside GT (UDIAT)
    dsb2018  stage1_train/<id>/{images,masks}, a mask file a nucleus
    nnunet   imagesTr, labelsTr, dataset.json, of png, tif or bmp files
    folders  any folder of pictures beside one of masks

Facts are from the sets' own pages and papers, and from the official repository (`her`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from zoo.domains.medical.her_seg.cases import part_of
from zoo.domains.medical.her_seg.config import SegData
from zoo.domains.medical.her_seg.folders import child, find_beside, find_folders, plain, subfolders
from zoo.domains.medical.her_seg.found import Found, picture_of
from zoo.domains.medical.her_seg.her_layout import find_her
from zoo.domains.medical.her_seg.images import images_in, is_image, stems
from zoo.domains.medical.her_seg.nnunet2d import find_nnunet
from zoo.domains.medical.her_seg.pairing import Truth, matched, truths_in
from zoo.domains.medical.her_seg.pictures import Picture
from zoo.errors import DataError
from zoo.task import Finding

# REFUGE's grey codes: the rim is the disc without the cup.
_REFUGE: Mapping[str, Sequence[int]] = {"disc_rim": (128,), "cup": (0,), "background": (255,)}
_DISC: Mapping[str, Sequence[int]] = {"disc": (0, 128), "background": (255,)}
_ISIC = re.compile(r"(is(ic|bi)[-_ ]?\d{4}.*?)[-_](input|data|groundtruth)$", re.IGNORECASE)


def find_isic(root: Path, data: SegData) -> Found | None:
    """ISIC 2016 to 2018: a folder of photographs and one of masks for each part.

    Superpixel images, attribute masks and licence texts lie beside them and are passed over.
    """
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for folder in subfolders(root):
        told = _ISIC.fullmatch(folder.name)
        if told is None:
            continue
        side = masks if told[3].lower() == "groundtruth" else images
        side[_isic_part(told[1])] = folder
    if not images or not masks:
        return None
    found = Found("isic", root, [], thing="lesion")
    for part, folder in images.items():
        photographs = {
            stem: path
            for stem, path in stems(images_in(folder)).items()
            if not stem.lower().endswith("superpixels")
        }
        if part not in masks:
            told_ = f"{len(photographs)} photographs have no ground truth and are not used"
            found.findings.append(Finding("info", told_, str(folder)))
            continue
        _add(found, photographs, truths_in(masks[part]), masks[part], part)
    return found


def _isic_part(name: str) -> str:
    words = re.split(r"[-_ ]", name.lower())
    return next((p for w in words if (p := part_of(Path(w, "_"), Path()))), "train")


def find_polyp(root: Path, data: SegData) -> Found | None:
    """The bundle of Kvasir-SEG and CVC sets: one folder trains, each of several tests."""
    train, test = root / "TrainDataset", root / "TestDataset"
    if not (train.is_dir() and test.is_dir()):
        return None
    # Kvasir-SEG's masks were JPEG once.
    found = Found("polyp", root, [], thing="polyp", threshold=127)
    places = [(train, "train", "")]
    places += [(p, f"test_{_slug(p.name)}", f"{p.name}/") for p in subfolders(test)]
    for folder, part, prefix in places:
        images, masks = child(folder, ("images", "image")), child(folder, ("masks", "mask"))
        if images is None or masks is None:
            msg = f"{folder}: expected folders 'images' (or 'image') and 'masks' in it"
            raise DataError(msg)
        _add(found, stems(images_in(images)), truths_in(masks), masks, part, prefix)
    return found


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "set"


def find_lungs(root: Path, data: SegData) -> Found | None:
    """Montgomery and Shenzhen radiographs; many of them were never given a mask."""
    found = Found("lungs", root, [], thing="lungs", masks_optional=True)
    for folder in [root, *subfolders(root)]:
        images, masks = child(folder, ("cxrpng",)), child(folder, ("masks", "mask"))
        manual = child(folder, ("manualmask",))
        if images is None or (masks is None and manual is None):
            continue
        sides = [masks] if manual is None else subfolders(manual)
        truths: dict[str, Truth] = {}
        for side in filter(None, sides):
            for name, truth in truths_in(side).items():
                truths[name] = Truth(truths.get(name, Truth(())).files + truth.files)
        _add(found, stems(images_in(images)), truths, masks or manual or folder, None)
    return found if found.pictures else None


def find_refuge(root: Path, data: SegData) -> Found | None:
    """REFUGE as released: photographs `.jpg` and masks `.bmp` of the same name, in any folders."""
    masks: dict[tuple[str | None, str], Path] = {}
    files = sorted(path for path in root.rglob("*") if is_image(path))
    for path in (p for p in files if p.suffix.lower() == ".bmp"):
        masks[_refuge_part(path, root), path.stem] = path
    if not masks:
        return None
    usual = _DISC if data.target == "disc" else _REFUGE
    found = Found("refuge", root, [], usual=usual, masks_optional=True)
    seen: set[str] = set()
    for path in (p for p in files if p.suffix.lower() in (".jpg", ".jpeg")):
        part = _refuge_part(path, root)
        mask = masks.get((part, path.stem)) or masks.get((None, path.stem))
        name = path.stem if path.stem not in seen else f"{part or path.parent.name}/{path.stem}"
        seen.add(path.stem)
        found.pictures.append(picture_of(name, path, Truth((mask,)) if mask else None, part))
    return found if any(p.masks for p in found.pictures) else None


def _refuge_part(path: Path, root: Path) -> str | None:
    """Of folders such as `Annotation-Training400`, `REFUGE-Validation400`, `train`."""
    for name in path.relative_to(root).parts[:-1]:
        told = re.search(r"train|val|test", name, re.IGNORECASE)
        if told:
            return told[0].lower()
    return None


def find_busi(root: Path, data: SegData) -> Found | None:
    """Breast ultrasound: BUSI has masks beside the pictures, UDIAT in `GT` beside `original`."""
    original, truth = child(root, ("original",)), child(root, ("gt",))
    found = Found("busi", root, [], thing="lesion")
    if original is not None and truth is not None:
        _add(found, stems(images_in(original)), truths_in(truth), truth, None)
        return found
    kinds = [p for p in subfolders(root) if plain(p.name) in ("benign", "malignant", "normal")]
    if not kinds:
        return None
    for folder in kinds:
        for stem, (path, masks) in find_beside(folder).items():
            found.pictures.append(picture_of(stem, path, masks))
            if masks is None:
                found.lacking[stem] = f"{path}: no mask such as {stem}_mask.png beside it"
    return found if found.pictures else None


def find_dsb(root: Path, data: SegData) -> Found | None:
    """Data Science Bowl 2018: a folder for each picture with a mask file for each nucleus."""
    top = root / "stage1_train"
    top = top if top.is_dir() else root
    found = Found("dsb2018", root, [], thing="nucleus")
    for folder in subfolders(top):
        images, masks = folder / "images", folder / "masks"
        if not images.is_dir() or not masks.is_dir():
            continue
        files = images_in(images)
        if len(files) != 1 or files[0].stem != folder.name:
            if len(files) == 1 or top != root:
                told = f"expected one picture named {folder.name}; found {len(files)}"
                found.findings.append(Finding("error", told, str(images)))
            continue
        truth = Truth(tuple(images_in(masks)), objects=True)
        found.pictures.append(picture_of(folder.name, files[0], truth))
    return found if found.pictures else None


def _add(
    found: Found,
    images: Mapping[str, Path],
    truths: Mapping[str, Truth],
    masks: Path,
    part: str | None,
    prefix: str = "",
) -> None:
    """Add pictures with the masks that fit them, and a line for each that has none."""
    pairs = matched(images, truths)
    for stem, path in sorted(images.items()):
        name = f"{prefix}{stem}"
        found.pictures.append(picture_of(name, path, pairs.get(stem), part))
        if stem not in pairs:
            found.lacking[name] = f"{path}: no mask found for it in {masks}"


# In the order in which they are tried: the most particular arrangement first.
FINDERS: Mapping[str, Callable[[Path, SegData], Found | None]] = {
    "her": find_her,
    "nnunet": find_nnunet,
    "isic": find_isic,
    "polyp": find_polyp,
    "dsb2018": find_dsb,
    "lungs": find_lungs,
    "busi": find_busi,
    "folders": find_folders,
    "refuge": find_refuge,
}


def find_pictures(root: Path, data: SegData) -> Found | None:
    """The 2D data set in a folder.

    Args:
        root: The folder.
        data: `layout` (one of them, or `auto`), `images`, `masks`, `target` are used.

    Returns:
        None where nothing in it is arranged in such a way.

    Raises:
        DataError: It is, and incomplete beyond use.
    """
    names = list(FINDERS) if data.layout == "auto" else [data.layout]
    if data.layout == "auto" and (data.images or data.masks):
        names = ["folders"]
    for name in names:
        finder = FINDERS.get(name)
        found = finder(root, data) if finder is not None else None
        if found is not None:
            return found
    return None


def ids_of(pictures: Sequence[Picture]) -> dict[str, Picture]:
    """Pictures by id.

    Raises:
        DataError: Two pictures have one id.
    """
    found: dict[str, Picture] = {}
    for picture in pictures:
        other = found.setdefault(picture.id, picture)
        if other is not picture:
            msg = (
                f"{picture.image[0]} and {other.image[0]} would both be called '{picture.id}'; "
                "rename one of them"
            )
            raise DataError(msg)
    return found
