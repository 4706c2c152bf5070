"""Our adapter beside torchreid's data set classes on the same small trees."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from zoo.domains.reid.fusion_reid import names
from zoo.domains.reid.fusion_reid.config import ReidData
from zoo.domains.reid.fusion_reid.layouts import find

from .trees import DUKE, MARKET, write_boxes, write_cuhk03, write_msmt17


@pytest.fixture(scope="module")
def sets() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its evaluator in Cython is not there
        return pytest.importorskip("torchreid.reid.data.datasets.image")


def theirs(made: Any) -> dict[str, set[tuple[str, int, int]]]:
    """Role -> file name, identity, camera from 0; training identities are renumbered there."""
    parts = {"train": made.train, "query": made.query, "gallery": made.gallery}
    return {role: {(Path(r[0]).name, *r[1:3]) for r in rows} for role, rows in parts.items()}


def ours(root: Path, layout: str, **data: Any) -> dict[str, set[tuple[str, int, int]]]:
    found = find(root, layout, ReidData.model_validate(data))
    assert not found.findings
    rows: dict[str, set[tuple[str, int, int]]] = {"train": set(), "query": set(), "gallery": set()}
    for entry in found.entries:
        person = 0 if entry.person == names.DISTRACTOR else int(entry.person.rpartition("_")[2])
        rows[entry.role].add((entry.path.name, person, int(entry.camera) - 1))
    return rows


def same(first: dict[str, set[tuple[str, int, int]]], second: Any) -> None:
    for role in first:
        if role == "train":
            # The same images, divided among people and cameras alike, under whatever numbers.
            assert grouped(first[role]) == grouped(second[role])
        else:
            assert first[role] == second[role]


def grouped(rows: set[tuple[str, int, int]]) -> set[frozenset[tuple[str, int]]]:
    people = {person for _, person, _ in rows}
    return {frozenset((n, c) for n, p, c in rows if p == person) for person in people}


def test_market1501(sets: Any, tmp_path: Path) -> None:
    write_boxes(tmp_path / "market1501" / "Market-1501-v15.09.15", MARKET)
    made = sets.market1501.Market1501(root=str(tmp_path), verbose=False)
    same(ours(tmp_path, "market1501"), theirs(made))


def test_dukemtmc(sets: Any, tmp_path: Path) -> None:
    write_boxes(tmp_path / "dukemtmc-reid" / "DukeMTMC-reID", DUKE)
    made = sets.dukemtmcreid.DukeMTMCreID(root=str(tmp_path), verbose=False)
    same(ours(tmp_path, "dukemtmc"), theirs(made))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("whole", [True, False])
def test_msmt17(sets: Any, tmp_path: Path, version: int, whole: bool) -> None:
    root = tmp_path / "msmt17" / f"MSMT17_V{version}"
    write_msmt17(root, version)
    made = sets.msmt17.MSMT17(root=str(tmp_path), verbose=False)
    if not whole:
        same(ours(tmp_path, "msmt17", msmt17_val=False), theirs(made))
        return
    # combineall of its base class would train on the test images too.
    rows = theirs(made)
    more = made.process_dir(
        str(root / "train" if version == 1 else root / "mask_train_v2"), str(root / "list_val.txt")
    )
    rows["train"] |= {(Path(r[0]).name, *r[1:3]) for r in more}
    same(ours(tmp_path, "msmt17"), rows)


@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_cuhk03_as_it_prepares_it(sets: Any, tmp_path: Path, boxes: str) -> None:
    root = tmp_path / "cuhk03"
    for kind in ("detected", "labeled"):
        write_cuhk03(root, kind)
        write_cuhk03(root, kind, "mat")
        (root / f"splits_classic_{kind}.json").write_text("[]")
        # Its paths are of the machine that prepared it.
        path = root / f"splits_new_{kind}.json"
        path.write_text(path.read_text().replace("/data/cuhk03", str(root)))
    (root / "cuhk03_release").mkdir()
    (root / "cuhk03_release" / "cuhk-03.mat").write_bytes(b"")
    made = sets.cuhk03.CUHK03(root=str(tmp_path), cuhk03_labeled=boxes == "labeled", verbose=False)
    rows = {role: {(n, 0, 0) for n, *_ in part} for role, part in theirs(made).items()}
    mine = {
        role: {(n, 0, 0) for n, *_ in part}
        for role, part in ours(tmp_path, "cuhk03", cuhk03=boxes).items()
    }
    assert mine == rows
