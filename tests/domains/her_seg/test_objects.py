from pathlib import Path

import numpy as np
import pytest

from tests.domains.her_seg.picture_files import REAL, needs_real, save
from zoo.domains.medical.her_seg.objects import merge, numbered, relabelled, without_small
from zoo.errors import DataError


def block(*where: tuple[slice, slice], size: tuple[int, int] = (12, 10)) -> np.ndarray:
    made = np.zeros(size, bool)
    for part in where:
        made[part] = True
    return made


def test_one_mask_a_object_is_merged_in_the_order_of_files(tmp_path: Path) -> None:
    a = save(tmp_path / "a.png", block(np.s_[1:4, 1:4]))
    b = save(tmp_path / "b.png", block(np.s_[6:9, 2:9]).astype(np.uint8))
    merged = merge([a, b], (12, 10))
    assert merged.objects.dtype == np.int32
    assert np.bincount(merged.objects.reshape(-1)).tolist() == [120 - 9 - 21, 9, 21]
    assert (merged.overlapping, merged.empty) == (0, ())


def test_overlap_and_empty_masks_are_told(tmp_path: Path) -> None:
    a = save(tmp_path / "a.png", block(np.s_[1:4, 1:4]))
    b = save(tmp_path / "b.png", block(np.s_[3:6, 1:4]))
    c = save(tmp_path / "c.png", block())
    merged = merge([a, b, c], (12, 10))
    assert merged.overlapping == 3
    assert merged.empty == (c,)
    assert (merged.objects == 1).sum() == 9
    assert (merged.objects == 2).sum() == 6


def test_no_mask_at_all_is_a_picture_without_objects() -> None:
    assert not merge([], (5, 4)).objects.any()


def test_mask_of_another_size_is_one_line(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", block())
    with pytest.raises(
        DataError, match=r"a\.png: the mask is 10 x 12 pixels and its picture 9 x 12"
    ):
        merge([path], (12, 9))


def test_objects_of_a_mask_touch_at_corners() -> None:
    mask = block(np.s_[0:2, 0:2], np.s_[2:4, 2:4], np.s_[8:10, 0:2])
    assert numbered(mask).max() == 2
    assert numbered(mask)[3, 3] == numbered(mask)[0, 0]


def test_objects_of_two_classes_are_apart_and_numbers_have_no_gaps() -> None:
    labels = np.zeros((6, 9), np.uint8)
    labels[1:3, 1:3], labels[1:3, 3:5], labels[5, 8] = 1, 2, 1
    found = numbered(labels)
    assert sorted(np.unique(found)) == [0, 1, 2, 3]
    assert len({found[1, 1], found[1, 3], found[5, 8]}) == 3
    assert sorted(np.unique(numbered(labels, smallest=2))) == [0, 1, 2]


def test_small_objects_are_removed_and_classes_kept() -> None:
    labels = np.zeros((6, 9), np.uint8)
    labels[1:3, 1:3], labels[5, 8] = 2, 1
    kept = without_small(labels, 3)
    assert kept.dtype == np.uint8
    assert kept.sum() == 8
    np.testing.assert_array_equal(without_small(labels, 0), labels)


def test_relabelled_numbers_are_consecutive() -> None:
    assert relabelled(np.array([[0, 7], [3, 7]])).tolist() == [[0, 2], [1, 2]]
    assert relabelled(np.array([[7, 3]])).tolist() == [[2, 1]]


@needs_real
def test_real_nuclei_do_not_overlap() -> None:
    folder = sorted((REAL / "dsb2018" / "stage1_train").iterdir())[3]
    paths = sorted((folder / "masks").glob("*.png"))
    from zoo.domains.medical.her_seg.images import head

    merged = merge(paths, head(paths[0]).size)
    assert merged.objects.max() == len(paths)
    assert merged.overlapping == 0
