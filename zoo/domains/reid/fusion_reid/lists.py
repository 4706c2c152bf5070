"""Data sets whose parts are told by lists: MSMT17 and CUHK03."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from zoo import matlab
from zoo.data import read_json, read_text
from zoo.domains.reid.fusion_reid import names
from zoo.domains.reid.fusion_reid.layouts import Entry, Found, Role
from zoo.errors import DataError
from zoo.task import Finding

# Version 2 has blurred faces and other folders; the lists are the same.
_MSMT17_FOLDERS = {
    "train": ("train", "mask_train_v2"),
    "test": ("test", "mask_test_v2"),
}
_NAMED = 3


@dataclass
class _Gathered:
    """What lists name, as it is gathered.

    Attributes:
        root: The data set's folder.
        entries: Listed images that are there, each once.
        findings: What is wrong with the lists.
    """

    root: Path
    entries: list[Entry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    _seen: set[tuple[Role, Path]] = field(default_factory=set)

    def add(
        self, rows: Iterable[tuple[Path, str, str]], role: Role, space: str, where: Path
    ) -> None:
        """Take the (file, identity, camera) rows of the list `where`."""
        gone, twice, total = [], [], 0
        for path, person, camera in rows:
            total += 1
            if (role, path) in self._seen:
                twice.append(path)
                continue
            self._seen.add((role, path))
            try:
                size = path.stat().st_size
            except OSError:
                gone.append(path)
                continue
            name = path.relative_to(self.root).as_posix()
            self.entries.append(Entry(path, name, role, person, camera, space, size))
        if gone:
            told = f"listed images are not in {gone[0].parent}"
            self._tell(gone, total, told, where, "add them")
        if twice:
            self._tell(
                twice, total, f"images of '{role}' are listed twice", where, "list them once"
            )

    def _tell(self, paths: Sequence[Path], total: int, what: str, where: Path, remedy: str) -> None:
        shown = ", ".join(p.name for p in paths[:_NAMED]) + " …" * (len(paths) > _NAMED)
        told = f"{len(paths)} of {total} {what}: {shown}"
        remedy += ", or set data.on_error=skip"
        self.findings.append(Finding("error", told, str(where), remedy))


def msmt17(root: Path, *, with_val: bool) -> Found:
    """MSMT17 by its four lists, lines `<path below train/ or test/> <identity>`.

    Identities of training and test both start at 0 and are different people.

    Args:
        root: Folder of the lists.
        with_val: Train on `list_val.txt` as well.

    Raises:
        DataError: A list is missing or a line cannot be read.
    """
    plan: list[tuple[Role, str, str]] = [("train", "train", "list_train.txt")]
    if with_val:
        plan.append(("train", "train", "list_val.txt"))
    plan += [("query", "test", "list_query.txt"), ("gallery", "test", "list_gallery.txt")]
    found = _Gathered(root)
    for role, part, file in plan:
        path = root / file
        if not path.is_file():
            # Half of the data set serves too: for training alone, or for testing.
            if any((root / other).is_file() for _, p, other in plan if p == part):
                remedy = "copy it, or set data.msmt17_val=false" if "val" in file else "copy it"
                found.findings.append(Finding("error", "the list is missing", str(path), remedy))
            continue
        folder = _first(root, _MSMT17_FOLDERS[part], path)
        rows = [_msmt17_row(line, f"{path}:{n}") for n, line in _lines(path)]
        if not rows:
            told = Finding("error", "the list is empty", str(path), "copy it again")
            found.findings.append(told)
        files = ((folder / name, person, camera) for name, person, camera in rows)
        found.add(files, role, f"msmt17-{part}", path)
    return Found("msmt17", root, _sorted(found.entries), found.findings)


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    return ((n, line) for n, line in enumerate(read_text(path).splitlines(), 1) if line.strip())


def _msmt17_row(line: str, where: str) -> tuple[str, str, str]:
    """Path, identity, camera of a list's line."""
    name, _, pid = line.strip().rpartition(" ")
    inside = PurePosixPath(name)
    if not name or not pid.isdecimal():
        msg = f"{where}: expected '<path> <identity>', found {line.strip()[:80]!r}"
        raise DataError(msg)
    if inside.is_absolute() or ".." in inside.parts:
        msg = f"{where}: {name[:80]!r} leads out of the data folder"
        raise DataError(msg)
    said = names.parse(inside.name, "msmt17")
    if said is None:
        msg = f"{where}: '{inside.name}' is not of the form {names.expected('msmt17')}"
        raise DataError(msg)
    # The list's number, as the official code takes it, not the name's.
    return name, f"{int(pid):04d}", said.camera


def _first(root: Path, folders: Sequence[str], needed_by: Path) -> Path:
    for name in folders:
        if (root / name).is_dir():
            return root / name
    msg = f"{needed_by}: its images are not there; looked for {' and '.join(folders)} in {root}"
    raise DataError(msg)


def _sorted(entries: Iterable[Entry]) -> list[Entry]:
    rank = {"train": 0, "query": 1, "gallery": 2}
    return sorted(entries, key=lambda e: (rank[e.role], e.name))


# -- CUHK03 -------------------------------------------------------------------------------------


def cuhk03(root: Path, boxes: Literal["labeled", "detected"]) -> Found:
    """CUHK03 with the newer division (767 identities to train, 700 to test).

    Images must be files, `images_detected/` or `images_labeled/`, as torchreid extracts them from
    the release's `cuhk-03.mat`. The division is read from `splits_new_<boxes>.json` (torchreid) or
    from `cuhk03_new_protocol_config_<boxes>.mat` (its authors). Who is seen is told by the file
    names, pair of cameras and number, so identities agree between training and test.

    Args:
        root: Folder of the two.
        boxes: Drawn by people or by a detector.

    Raises:
        DataError: Images or division are missing, or cannot be read.
    """
    images = root / f"images_{boxes}"
    if not images.is_dir():
        msg = (
            f"{images}: not there; torchreid's CUHK03 class writes this folder from cuhk-03.mat "
            "(or set data.cuhk03 to the other kind of boxes)"
        )
        raise DataError(msg)
    told = root / f"splits_new_{boxes}.json"
    matrix = root / f"cuhk03_new_protocol_config_{boxes}.mat"
    if told.is_file():
        parts, where = _json_division(told), told
    elif matrix.is_file():
        parts, where = _matlab_division(matrix), matrix
    else:
        msg = f"{root}: neither {told.name} nor {matrix.name} is there to tell training from test"
        raise DataError(msg)
    found = _Gathered(root)
    for role, files in parts.items():
        rows = [(images / name, *_cuhk03_name(name, where)) for name in files]
        found.add(rows, role, "cuhk03", where)
    return Found("cuhk03", root, _sorted(found.entries), found.findings)


def _cuhk03_name(name: str, where: Path) -> tuple[str, str]:
    said = names.parse(name, "cuhk03")
    if said is None:
        msg = f"{where}: '{name[:80]}' is not of the form {names.expected('cuhk03')}"
        raise DataError(msg)
    return said.person, said.camera


def _json_division(path: Path) -> dict[Role, list[str]]:
    """Role -> file names; paths in the list are those of the machine that made it."""
    made = read_json(path)
    try:
        first = made[0]
        rows: dict[Role, list[str]] = {
            "train": [str(row[0]) for row in first["train"]],
            "query": [str(row[0]) for row in first["query"]],
            "gallery": [str(row[0]) for row in first["gallery"]],
        }
    except (KeyError, IndexError, TypeError) as error:
        msg = f"{path}: no division of torchreid's form ({type(error).__name__}: {error})"
        raise DataError(msg) from None
    return {role: [_last(f) for f in files] for role, files in rows.items()}


def _last(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _matlab_division(path: Path) -> dict[Role, list[str]]:
    """Role -> file names, by one-based places in a list of names (Zhong et al., CVPR 2017)."""
    held = matlab.variables(path)
    try:
        files = [_last(str(np.asarray(cell).item())) for cell in held["filelist"].values().ravel()]
        places = {
            role: held[f"{role}_idx"].values().ravel().astype(int) - 1
            for role in ("train", "query", "gallery")
        }
        if any((at < 0).any() or (at >= len(files)).any() for at in places.values()):
            msg = "a place outside of filelist"
            raise IndexError(msg)
    except DataError:
        raise
    except (AttributeError, ValueError, KeyError, IndexError, TypeError) as error:
        told = " ".join(str(error).split())[:120]
        msg = f"{path}: no division of the new protocol ({type(error).__name__}: {told})"
        raise DataError(msg) from None
    return {
        "train": [files[i] for i in places["train"]],
        "query": [files[i] for i in places["query"]],
        "gallery": [files[i] for i in places["gallery"]],
    }
