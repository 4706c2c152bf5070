"""The synthetic volumes and clips: real layouts, seeded, not told by a threshold."""

import json
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from zoo.domains.medical.her_seg import data, sample_video, sample_volumes
from zoo.domains.medical.her_seg.video import clip_cases, stacks_from
from zoo.domains.medical.her_seg.volumes import volume_cases

from .volume_files import configure


def files_of(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def dice(found: np.ndarray, wanted: np.ndarray) -> float:
    return 2 * float((found & wanted).sum()) / max(1.0, float(found.sum() + wanted.sum()))


def best_threshold(values: np.ndarray, wanted: np.ndarray) -> float:
    return max(dice(values > level, wanted) for level in np.quantile(values, np.linspace(0, 1, 60)))


def test_volumes_are_nnunet_folders_of_mixed_files(tmp_path: Path) -> None:
    sample_volumes.write_volumes(tmp_path)
    assert json.loads((tmp_path / "dataset.json").read_text())["labels"] == sample_volumes.LABELS
    images = sorted(tmp_path.glob("images*/*.nii.gz"))
    assert len(images) == 12
    heads = [nibabel.load(p) for p in images]
    codes = {"".join(nibabel.aff2axcodes(h.affine)) for h in heads}
    assert {"LPS", "RAS", "PIR"} <= codes
    assert {str(h.get_data_dtype()) for h in heads} == {"int16", "float32"}
    assert all(np.allclose(sorted(h.header.get_zooms()), [1.6, 1.6, 3.5]) for h in heads)
    labels = [nibabel.load(p) for p in sorted(tmp_path.glob("labels*/*.nii.gz"))]
    assert {str(h.get_data_dtype()) for h in labels} == {"uint8", "float32"}
    assert all(set(np.unique(h.dataobj)) == {0, 1, 2} for h in labels)
    # Written again they are the same, to the byte.
    sample_volumes.write_volumes(tmp_path / "again")
    again = files_of(tmp_path / "again")
    assert {k: v for k, v in files_of(tmp_path).items() if not k.startswith("again")} == again
    assert sum(map(len, again.values())) < 3e6


def test_volumes_look_alike_in_whatever_orientation_they_lie(tmp_path: Path) -> None:
    """The same phantom in two orientations gives the same pictures."""
    rng = np.random.default_rng(0)
    made, affine = sample_volumes.draw(rng), sample_volumes.affine_of(rng)
    shown = []
    for code in ("LPS", "PIR"):
        path = tmp_path / code / "a.nii.gz"
        sample_volumes.write_nifti(path, made.image, affine, code)
        (case,) = volume_cases(path.parent, configure())
        stack = case.open()
        shown.append(np.stack([stack.picture(i) for i in range(len(stack))]))
    assert np.array_equal(*shown)
    assert shown[0].shape == (24, 48, 48, 3)


def test_volumes_are_not_told_by_a_threshold(tmp_path: Path) -> None:
    sample_volumes.write_volumes(tmp_path)
    scores = []
    for case in volume_cases(tmp_path, configure())[-3:]:
        stack = case.open()
        shown = np.stack([stack.picture(i)[..., 0] for i in range(len(stack))])
        wanted = np.stack([stack.truth(i) for i in range(len(stack))]) > 0
        scores.append(best_threshold(shown, wanted))
        assert 0.01 < wanted.mean() < 0.15
    assert np.mean(scores) < 0.85


def test_clips_have_sparse_masks_and_numbers_without_zeros(tmp_path: Path) -> None:
    sample_video.write_clips(tmp_path)
    cases = clip_cases(tmp_path, configure())
    assert [c.part for c in cases].count("train") == 10
    assert [c.part for c in cases].count("test") == 3
    for case in cases:
        stack = case.open()
        assert stack.frames.names() == [f"frame{i}" for i in range(3, 11)]
        assert case.slices() == [(i, True) for i in (0, 2, 4, 6)]
    scores = []
    for case in cases[:4]:
        stack = case.open()
        grey = np.stack([stack.picture(i).mean(axis=2) for i in (0, 2, 4, 6)])
        wanted = np.stack([stack.truth(i) for i in (0, 2, 4, 6)]) > 0
        scores.append(best_threshold(grey, wanted))
    assert np.mean(scores) < 0.8
    (video,) = stacks_from([tmp_path / "drifting.mp4"], configure(), {"kind": "clip"})
    assert len(video) == 24
    # Written again they are the same; a video's bytes are its encoder's affair.
    sample_video.write_clips(tmp_path / "again")
    for path in (tmp_path / "again").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / path.relative_to(tmp_path / "again")).read_bytes()


def test_a_drawn_body_moves_from_frame_to_frame() -> None:
    made = sample_video.draw(np.random.default_rng(3))
    assert made.frames.shape == (8, 96, 96, 3)
    centres = [np.argwhere(m).mean(axis=0) for m in made.masks]
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    assert 0 < steps.max() < 8
    assert all(0.02 < m.mean() < 0.4 for m in made.masks)


def test_every_defect_of_the_clips_is_told(tmp_path: Path) -> None:
    sample_video.write_clips(tmp_path, defects=True)
    found = data.check(configure(tmp_path))
    errors = [f.line() for f in found if f.level == "error"]
    names = ("broken_frame", "other_size", "mask_size", "mask_without_frame", "broken_mask")
    assert len(errors) == len(names)
    for name in names:
        assert any(f"defect_{name}" in line for line in errors), name
    with Image.open(tmp_path / "train" / "clip1" / "masks" / "frame3.png") as image:
        assert image.mode == "L"


def test_every_defect_of_the_volumes_is_told(tmp_path: Path) -> None:
    sample_volumes.write_volumes(tmp_path, defects=True)
    found = data.check(configure(tmp_path))
    errors = [f.line() for f in found if f.level == "error"]
    assert len(errors) == 12
    assert all("defect_" in line and "\n" not in line for line in errors)
