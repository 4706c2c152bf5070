"""Seeds, splits, leakage, and folders that are written once."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from zoo.data import (
    ListSplit,
    cache_dir,
    fingerprint,
    group_folds,
    item_rng,
    leakage,
    order_rng,
    ordered_batches,
    plain_name,
    read_csv,
    shuffled_batches,
    split_rng,
    step_seed,
    stop_on_errors,
    stratified_parts,
    written_once,
)
from zoo.errors import DataError
from zoo.task import Finding

THIRDS = {"train": 0.6, "val": 0.2, "test": 0.2}


def _cohort(seed: int, groups: int, classes: int, largest: int) -> tuple[list[int], list[str]]:
    """Patients with one to `largest` slides of one class each."""
    rng = np.random.default_rng(seed)
    labels, names = [], []
    for g in range(groups):
        count = int(rng.integers(1, largest + 1))
        labels += [g % classes] * count
        names += [f"p{g:03d}"] * count
    order = rng.permutation(len(names))
    return [labels[i] for i in order], [names[i] for i in order]


def _holds(parts: list[list[int]], labels: list[int], groups: list[str]) -> None:
    """A partition with groups whole."""
    assert sorted(itertools.chain(*parts)) == list(range(len(labels)))
    owners = [{groups[i] for i in part} for part in parts]
    for a, b in itertools.combinations(owners, 2):
        assert not a & b


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("groups", "classes", "largest"), [(60, 2, 1), (60, 3, 4), (25, 2, 3)])
def test_parts_keep_groups_whole_and_shares_of_each_class(
    seed: int, groups: int, classes: int, largest: int
) -> None:
    labels, names = _cohort(seed, groups, classes, largest)
    parts = stratified_parts(labels, names, THIRDS, seed)
    assert list(parts) == list(THIRDS)
    _holds(list(parts.values()), labels, names)
    for part, share in THIRDS.items():
        counts = Counter(labels[i] for i in parts[part])
        for c in range(classes):
            # No part is off by more than the largest patient.
            assert abs(counts[c] - share * labels.count(c)) <= largest
    assert parts == stratified_parts(labels, names, THIRDS, seed)


def test_another_seed_gives_another_division() -> None:
    labels, names = _cohort(0, 60, 2, 2)
    divisions = {tuple(stratified_parts(labels, names, THIRDS, s)["test"]) for s in range(5)}
    assert len(divisions) == 5


def test_the_order_of_the_items_does_not_matter() -> None:
    labels, names = _cohort(0, 30, 2, 3)
    order = np.random.default_rng(1).permutation(len(names)).tolist()
    first = stratified_parts(labels, names, THIRDS, 3)
    second = stratified_parts([labels[i] for i in order], [names[i] for i in order], THIRDS, 3)
    for part in THIRDS:
        assert {names[i] for i in first[part]} == {names[order[i]] for i in second[part]}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rare", [3, 4, 5])
def test_a_rare_class_reaches_every_part_if_it_has_enough_patients(seed: int, rare: int) -> None:
    labels = [0] * 30 + [1] * rare
    names = [f"p{i}" for i in range(len(labels))]
    parts = stratified_parts(labels, names, {"train": 0.7, "val": 0.15, "test": 0.15}, seed)
    _holds(list(parts.values()), labels, names)
    for items in parts.values():
        assert {labels[i] for i in items} == {0, 1}


@pytest.mark.parametrize("seed", range(4))
def test_no_part_is_empty_if_there_are_enough_patients(seed: int) -> None:
    labels, names = list(range(5)), [f"p{i}" for i in range(5)]  # one patient a class
    parts = stratified_parts(labels, names, THIRDS, seed)
    _holds(list(parts.values()), labels, names)
    assert all(parts.values())


def test_a_part_without_share_is_empty() -> None:
    parts = stratified_parts([0, 1] * 5, list("abcdefghij"), {"train": 4, "val": 0, "test": 1}, 0)
    assert (len(parts["train"]), parts["val"], len(parts["test"])) == (8, [], 2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("groups", "classes", "folds"), [(40, 2, 5), (23, 3, 4), (6, 2, 3)])
def test_folds_are_a_partition_with_every_class_in_each(
    seed: int, groups: int, classes: int, folds: int
) -> None:
    labels, names = _cohort(seed, groups, classes, 3)
    parts = group_folds(labels, names, folds, seed)
    assert len(parts) == folds
    _holds(parts, labels, names)
    possible = {c for c in range(classes) if groups // classes >= folds}
    for part in parts:
        assert possible <= {labels[i] for i in part}
    sizes = [len(p) for p in parts]
    assert max(sizes) - min(sizes) <= 3 * classes


@pytest.mark.parametrize("seed", range(4))
def test_as_many_folds_as_patients(seed: int) -> None:
    labels, names = [0, 1, 2, 0], ["a", "b", "c", "a"]
    parts = group_folds(labels, names, 3, seed)
    assert all(parts)
    _holds(parts, labels, names)
    with pytest.raises(DataError, match=r"3 patients cannot make 4 folds; lower data\.folds"):
        group_folds(labels, names, 4, seed)


# -- chance -------------------------------------------------------------------------------------


def test_streams_are_independent_of_one_another() -> None:
    draws = [
        rng.integers(2**40)
        for rng in (
            order_rng(1, 2), order_rng(2, 1), order_rng(1, 3), split_rng(1),
            item_rng(1, 2, 0), item_rng(1, 2, 1), item_rng(1, 0, 2), item_rng(2, 1, 0),
        )
    ]  # fmt: skip
    assert len(set(draws)) == len(draws)
    seeds = {step_seed(s, n, r) for s in range(3) for n in range(20) for r in range(3)}
    assert len(seeds) == 180
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize("drop", [False, True])
def test_batches(drop: bool) -> None:
    made = shuffled_batches(10, 4, order_rng(0, 0), drop)
    assert [len(b) for b in made] == ([4, 4] if drop else [4, 4, 2])
    assert len({i for b in made for i in b}) == (8 if drop else 10)
    assert ordered_batches(range(3), 8, drop_last=True) == [[0, 1, 2]]  # never nothing at all
    assert ordered_batches([], 2) == []


# -- leakage ------------------------------------------------------------------------------------


def _split(*names: str) -> ListSplit:
    return ListSplit(names, [n.partition("-")[0] for n in names], "d")


def test_leakage_names_items_and_groups_in_two_splits() -> None:
    splits = {
        "train": _split("a-1", "b-1"),
        "val": _split("a-2", "c-1"),
        "test_x": _split("b-1", "d-1"),
        "test_y": _split("d-1"),
    }
    lines = [f.what for f in leakage(splits)]
    assert lines == [
        "1 groups are in both 'train' and 'val': a",
        "1 items are in both 'train' and 'test_x': b-1",
    ]
    with pytest.raises(DataError, match="are in both 'train' and 'val': a; a patient, identity"):
        stop_on_errors(leakage(splits))
    assert leakage({"train": _split("a-1"), "test": _split("b-1")}) == []


def test_findings_become_one_error_of_few_lines() -> None:
    stop_on_errors([Finding("warning", "odd"), Finding("info", "fine")])
    with pytest.raises(DataError) as caught:
        stop_on_errors([Finding("error", f"e{i}", f"file{i}", "mend it") for i in range(13)])
    lines = str(caught.value).splitlines()
    assert lines[0] == "file0: e0; mend it"
    assert len(lines) == 11
    assert "3 more; `zoo data check` lists all" in lines[-1]


def test_list_split_refuses_nothing_and_twice() -> None:
    with pytest.raises(DataError, match="no items"):
        ListSplit([], [], "d")
    with pytest.raises(DataError, match="'a' is listed twice"):
        ListSplit(["a", "b", "a"], ["a", "b", "a"], "d")
    split = ListSplit(["a", "b", "c"], ["a", "b", "c"], "d", batch_size=2, shuffle=True)
    assert sorted(i for b in split.batches(0, order_rng(0, 0)) for i in b) == [0, 1, 2]
    assert len(split) == 3


# -- small things -------------------------------------------------------------------------------


def test_fingerprint_depends_on_content_alone() -> None:
    first = fingerprint([{"a": 1, "b": 2}, "x"])
    assert first == fingerprint([{"b": 2, "a": 1}, "x"])
    assert first != fingerprint([{"a": 1, "b": 2}, "y"])
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
    assert len(first) == 16


@pytest.mark.parametrize("bad", ["", "../x", "a/b", "a\\b", "a\nb", "..", "/etc"])
def test_names_that_lead_elsewhere_are_refused(bad: str) -> None:
    with pytest.raises(DataError, match="is no plain name"):
        plain_name(bad, "index.csv")


def test_plain_names_pass() -> None:
    for name in ("a.h5", "tumor_001", "Fall 3 (links)", "é"):
        assert plain_name(name, "index.csv") == name


def test_csv_cells_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("\ufeff id , label\n007, NA\n8,\n")
    table = read_csv(path)
    assert list(table.columns) == ["id", "label"]
    assert table["id"].tolist() == ["007", "8"]
    assert table["label"].tolist() == ["NA", ""]
    for text, message in (("", "cannot be read as csv"), ("id\n", "no rows")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_csv(path)
    path.write_bytes(b"\xff\xfe\x00id")
    with pytest.raises(DataError, match="cannot be read as csv"):
        read_csv(path)
    with pytest.raises(DataError, match="no such file"):
        read_csv(tmp_path / "none.csv")


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_CACHE", "~/mine")
    assert cache_dir() == Path.home() / "mine"
    monkeypatch.delenv("ZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "zoo"


# -- written once -------------------------------------------------------------------------------


def test_threads_that_come_together_write_once(tmp_path: Path) -> None:
    folder, calls, found = tmp_path / "sample", [], []
    barrier = threading.Barrier(4)

    def write(fresh: Path) -> None:
        calls.append(fresh)
        assert not folder.exists()
        (fresh / "a").write_text("1")
        time.sleep(0.05)
        (fresh / "b").write_text("2")

    def come() -> None:
        barrier.wait()
        path = written_once(folder, write)
        found.append(sorted(p.name for p in path.iterdir()))

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["a", "b"]] * 4
    assert len(calls) == 1
    assert folder.stat().st_mode & 0o777 == 0o755


def test_processes_that_come_together_write_once(tmp_path: Path) -> None:
    folder = tmp_path / "sample"

    def write(fresh: Path) -> None:
        with (tmp_path / "calls").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.05)
        (fresh / "a").write_text("1")

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if (written_once(folder, write) / "a").read_text() == "1" else 2
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]
    assert codes == [0, 0, 0]
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_a_failure_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "sample"

    def fail(fresh: Path) -> None:
        (fresh / "half").write_text("1")
        raise RuntimeError(fresh.name)

    with pytest.raises(RuntimeError):
        written_once(folder, fail)
    assert [p.name for p in folder.parent.iterdir() if p.name != "sample.lock"] == []
    written_once(folder, lambda fresh: (fresh / "whole").touch())
    assert [p.name for p in folder.iterdir()] == ["whole"]
