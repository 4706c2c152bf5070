"""From stacks to masks: fitting, tiles, mirrors, smoothing, prompts, records."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.domains.her_seg.fakes import Bright, FakeStack, disc, painted, settings
from zoo.domains.medical.her_seg.geometry import place
from zoo.domains.medical.her_seg.inference import (
    Answer,
    LabelSpool,
    Segmenter,
    Way,
    labels_of,
    smoothed,
)
from zoo.domains.medical.her_seg.prompting import PromptSource, from_truth, to_batch
from zoo.domains.medical.her_seg.records import Looking, Unit
from zoo.domains.medical.her_seg.stacks import Prompts
from zoo.errors import ConfigError, DataError
from zoo.task import Record


def run(stack: FakeStack, *words: str, model: nn.Module | None = None, classes: int = 1) -> Record:
    config = settings("model.image_size=64", *words)
    names = [f"c{i}" for i in range(1, classes + 1)] if classes > 1 else ["thing"]
    looking = Looking(names, config, PromptSource(config.predict))
    model = model or Bright(1 if classes == 1 else classes + 1)
    with torch.no_grad():
        return Unit(stack, Segmenter(model, Way.of(config)), looking).record()


def written(record: Record, tmp_path: Path) -> np.ndarray:
    assert record.write is not None
    record.write(tmp_path)
    found: np.ndarray = np.load(tmp_path / f"{record.id}.npy")
    return found


# -- fitting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["squash", "letterbox", "tiles"])
@pytest.mark.parametrize("size", [(64, 64), (40, 100), (150, 90), (30, 20)])
def test_masks_come_back_at_the_picture_s_own_size(
    fit: str, size: tuple[int, int], tmp_path: Path
) -> None:
    mask = disc(size, (size[0] * 0.4, size[1] * 0.55), min(size) * 0.3)
    record = run(FakeStack("a", [painted(mask)], [mask]), f"data.fit={fit}")
    (found,) = written(record, tmp_path)
    assert (found.shape, found.dtype) == (size, np.uint8)
    assert float(record.values["dice"][0]) > (0.99 if fit == "tiles" else 0.93)
    assert (int(record.values["height"]), int(record.values["width"])) == size


def test_tiles_meet_the_network_at_their_own_resolution() -> None:
    mask = disc((100, 150), (40, 60), 30)
    model = Bright()
    record = run(FakeStack("a", [painted(mask)], [mask]), "data.fit=tiles", model=model)
    assert float(record.values["dice"][0]) == 1.0
    assert all(shape[2:] == (64, 64) for shape in model.seen)
    assert sum(shape[0] for shape in model.seen) == 2 * 3  # steps of 48 pixels


def test_overlapping_tiles_leave_no_seam() -> None:
    class Edgy(nn.Module):
        """Unsure near the border of what it sees, as convolutions with padding are."""

        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, image: Tensor, prompts: object = None) -> Tensor:
            found = torch.full_like(image[:, :1], 5.0)
            found[..., :4], found[..., -4:] = -5.0, -5.0
            return found * self.one

    mask = np.ones((64, 200), np.uint8)
    apart = run(FakeStack("a", [painted(mask)], [mask]), "data.fit=tiles", "data.overlap=0",
                model=Edgy())  # fmt: skip
    joined = run(FakeStack("a", [painted(mask)], [mask]), "data.fit=tiles", "data.overlap=0.5",
                 model=Edgy())  # fmt: skip
    assert float(apart.values["sensitivity"][0]) < 0.9
    assert float(joined.values["sensitivity"][0]) == pytest.approx(1 - 8 / 200, abs=0.01)


def test_several_classes_and_their_order(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:20], mask[30:50, 10:30] = 2, 1
    record = run(FakeStack("a", [painted(mask, 2)], [mask]), classes=2)
    assert np.array_equal(written(record, tmp_path)[0], mask)
    assert record.values["dice"].tolist() == [1, 1]
    assert record.values["share"] == pytest.approx([400 / 4096, 1280 / 4096])


def test_a_probability_of_one_half_is_foreground() -> None:
    logits = torch.tensor([[[0.0, -1e-6, 1e-6]]])
    assert labels_of(logits).tolist() == [[1, 0, 1]]
    assert labels_of(torch.tensor([[[1.2, 1.5]]]), threshold=0.8).tolist() == [[0, 1]]


def test_scores_on_the_square_are_those_of_the_official_evaluation() -> None:
    mask = disc((40, 160), (20, 80), 15)
    stack = FakeStack("a", [painted(mask)], [mask], spacing=(0.1, 0.1))
    native, square = run(stack), run(stack, "predict.native=false")
    assert int(native.values["truth_pixels"][0]) == int(mask.sum())
    truth = np.asarray(Image.fromarray(mask).resize((64, 64), Image.Resampling.NEAREST))
    assert int(square.values["truth_pixels"][0]) == int(truth.sum())
    assert "spacing" in native.values
    assert "spacing" not in square.values  # a stretched pixel has no size
    padded = run(stack, "predict.native=false", "data.fit=letterbox")
    assert int(padded.values["truth_pixels"][0]) == pytest.approx(mask.sum() * 0.16, rel=0.1)


def test_mirror_images_are_averaged() -> None:
    class Lopsided(nn.Module):
        """Sees the left half only."""

        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, image: Tensor, prompts: object = None) -> Tensor:
            found = torch.full_like(image[:, :1], -1.0)
            found[..., : image.shape[-1] // 2] = 3.0
            return found * self.one

    mask = np.ones((64, 64), np.uint8)
    plain = run(FakeStack("a", [painted(mask)], [mask]), model=Lopsided())
    both = run(FakeStack("a", [painted(mask)], [mask]), "predict.mirrors=true", model=Lopsided())
    assert float(plain.values["sensitivity"][0]) == 0.5
    assert float(both.values["sensitivity"][0]) == 1.0  # (3 - 1) / 2 everywhere


def test_loss_of_validation_is_that_of_training_on_the_picture_alone() -> None:
    from zoo.domains.medical.her_seg.losses import mask_loss

    mask = disc((64, 64), (30, 30), 20)
    picture = painted(mask)
    record = run(FakeStack("a", [picture], [mask]))
    logits = Bright()(torch.from_numpy(picture.transpose(2, 0, 1))[None])
    expected = mask_loss(logits, torch.from_numpy(mask.astype(np.int64))[None], weight=0.8)
    assert float(record.values["loss"]) == pytest.approx(expected.total.item(), rel=1e-5)


def test_small_objects_are_removed(tmp_path: Path) -> None:
    mask = disc((64, 64), (20, 20), 10)
    mask[50, 50:53] = 1
    record = run(FakeStack("a", [painted(mask)], [mask]), "predict.smallest=4")
    (found,) = written(record, tmp_path)
    assert found[50].sum() == 0
    assert found[20].sum() == 21


def test_truth_of_another_size_is_told() -> None:
    stack = FakeStack("a", [painted(np.zeros((64, 64), np.uint8))], [np.zeros((64, 60), np.uint8)])
    with pytest.raises(DataError, match="'a': the mask is 60 x 64 and the picture 64 x 64"):
        run(stack)


# -- volumes and clips --------------------------------------------------------------------------


def test_a_volume_is_one_unit_measured_in_millimetres() -> None:
    mask = np.zeros((6, 64, 64), np.uint8)
    mask[2:4, 20:40, 20:40] = 1
    seen = mask.copy()
    seen[5, 30:34, 30:34] = 1  # an island two slices away
    stack = FakeStack(
        "v", [painted(m) for m in seen], list(mask), kind="volume", spacing=(4.0, 1.0, 1.0)
    )
    record = run(stack)
    assert record.values["dice"] == pytest.approx([2 * 800 / (816 + 800)])
    assert int(record.values["pictures"]) == 6
    # All of its pixels are 8 mm from the block: more than 5 of 100 outline pixels are not.
    assert 0 <= float(record.values["hd95"][0]) <= 8
    cleaned = run(stack, "predict.smallest=100")
    assert cleaned.values["dice"] == pytest.approx([1.0])
    assert "steadiness" not in record.values


def test_objects_of_a_volume_reach_through_slices() -> None:
    mask = np.zeros((6, 64, 64), np.uint8)
    mask[:, 30:33, 30:33] = 1  # 9 pixels a slice, 54 in all
    stack = FakeStack("v", [painted(m) for m in mask], list(mask), kind="volume")
    assert run(stack, "predict.smallest=50").values["dice"] == pytest.approx([1.0])
    assert run(stack, "predict.smallest=55").values["dice"] == pytest.approx([0.0])


def test_frames_with_a_truth_are_scored_and_all_are_predicted(tmp_path: Path) -> None:
    masks = [disc((48, 64), (24, 12 + 5 * i), 8) for i in range(8)]
    truths = [m if i % 2 == 0 else None for i, m in enumerate(masks)]
    stack = FakeStack("c", [painted(m) for m in masks], truths, kind="clip")
    record = run(stack)
    assert int(record.values["frames"]) == 4
    assert float(record.values["dice"][0]) > 0.95
    assert len(written(record, tmp_path)) == 8
    assert 0.2 < float(record.values["steadiness"]) < 0.8
    assert "steadiness_single" not in record.values


def flickering() -> FakeStack:
    mask = disc((64, 64), (32, 32), 20)
    shown = [mask * (i % 3 != 1) for i in range(9)]
    return FakeStack("c", [painted(m) for m in shown], [mask] * 9, kind="clip")


def test_smoothing_steadies_a_clip_and_tells_its_effect() -> None:
    plain, smooth = run(flickering()), run(flickering(), "video.momentum=0.6")
    values = smooth.values
    assert float(values["steadiness_single"]) == pytest.approx(float(plain.values["steadiness"]))
    assert float(values["steadiness"]) > float(values["steadiness_single"]) + 0.3
    assert float(values["dice_single"][0]) == pytest.approx(float(plain.values["dice"][0]))
    assert float(values["dice"][0]) > float(plain.values["dice"][0]) + 0.2


def test_smoothing_is_for_clips_alone() -> None:
    mask = np.stack([disc((64, 64), (32, 32), 20) * (i % 2) for i in range(6)]).astype(np.uint8)
    volume = FakeStack("v", [painted(m) for m in mask], list(mask), kind="volume")
    assert run(volume, "video.momentum=0.9").values["dice"] == pytest.approx([1.0])


def test_the_moving_average_itself() -> None:
    placement = place((4, 4), 4, "squash")
    first, second = (Answer(torch.full((1, 4, 4), v), placement) for v in (1.0, -1.0))
    assert smoothed(first, None, 0.8) is first
    assert smoothed(second, first, 0.0) is second
    assert smoothed(second, first, 0.75).logits.unique().tolist() == [0.5]


def test_a_long_clip_is_read_once_in_order_and_kept_small() -> None:
    masks = [disc((64, 64), (32, 10 + i % 40), 8) for i in range(45)]
    stack = FakeStack("c", [painted(m) for m in masks], masks, kind="clip")
    model = Bright()
    record = run(stack, model=model)
    assert stack.read == list(range(45))
    assert max(shape[0] for shape in model.seen) <= 16
    assert len(record.values["panel_titles"]) == 5
    assert sum(v.nbytes for v in record.values.values()) < 300_000


def test_the_spool_gives_back_what_it_was_given() -> None:
    spool = LabelSpool()
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 5, (n, 7), dtype=np.uint8) for n in (3, 9)]
    for mask in masks:
        spool.append(mask)
    assert len(spool) == 2
    for i in (1, 0, 1):
        assert np.array_equal(spool(i), masks[i])


# -- prompts ------------------------------------------------------------------------------------


def given(*words: str) -> PromptSource:
    return PromptSource(settings(*words).predict)


def test_prompts_reach_the_network_in_pixels_of_its_square() -> None:
    mask = disc((32, 128), (16, 64), 10)
    model = Bright()
    run(FakeStack("a", [painted(mask)]), "predict.points=[[64,16,1],[0,0,0]]",
        "predict.boxes=[[32,8,96,24]]", model=model)  # fmt: skip
    (batch,) = model.prompts
    assert batch.points.tolist() == [[[32, 32], [0, 0]]]
    assert batch.labels.tolist() == [[1, 0]]
    assert batch.boxes.tolist() == [[[16, 16, 48, 48]]]
    run(FakeStack("a", [painted(mask)]), "predict.points=[[64,16,1]]", "data.fit=letterbox",
        model=model)  # fmt: skip
    assert model.prompts[-1].points.tolist() == [[[32, 8]]]
    assert model.prompts[-1].boxes is None


def test_a_mask_prompt_becomes_sure_logits_at_a_quarter(tmp_path: Path) -> None:
    rough = np.zeros((48, 96), np.uint8)
    rough[:, :48] = 255
    Image.fromarray(rough).save(tmp_path / "rough.png")
    prompts = given(f"predict.mask_prompt={tmp_path / 'rough.png'}").of(
        FakeStack("a", [painted(rough // 255)]), 0
    )
    assert prompts is not None
    batch = to_batch(prompts, place((48, 96), 64, "squash"))
    assert batch.mask is not None
    assert batch.mask.shape == (1, 1, 16, 16)
    assert (batch.mask[..., :7] > 7).all()
    assert (batch.mask[..., 9:] < -7).all()
    assert batch.points is None


def test_prompts_of_a_file_belong_to_stacks_and_single_pictures(tmp_path: Path) -> None:
    listed = {
        "scan": {"points": [[5, 6, 1]]},
        "scan/2": {"boxes": [[1, 2, 3, 4]]},
        "other": {"points": [[1, 1, 0]]},
    }
    path = tmp_path / "p.json"
    path.write_text(json.dumps(listed))
    source = given(f"predict.prompts={path}")
    stack = FakeStack("folder/scan.png", [painted(np.zeros((8, 8), np.uint8))] * 3, kind="volume")
    first, third = source.of(stack, 0), source.of(stack, 2)
    assert first is not None
    assert third is not None
    assert first.points.tolist() == [[5, 6, 1]]
    assert third.boxes.tolist() == [[1, 2, 3, 4]]
    assert source.unused == ["other"]
    assert source.of(FakeStack("none", []), 0) is None


def test_the_reader_s_prompts_come_last() -> None:
    own = Prompts(np.array([[1, 1, 1]], np.float32), np.zeros((0, 4), np.float32))
    stack = FakeStack("a", [], given={0: own})
    assert given().of(stack, 0) is own
    assert not given().any
    source = given("predict.points=[[2,2,1]]")
    found = source.of(stack, 0)
    assert found is not None
    assert found.points.tolist() == [[2, 2, 1]]
    assert source.any


def test_an_evaluation_of_a_prompted_model_hints_from_the_truth() -> None:
    mask = disc((64, 64), (20, 40), 12)
    model = Bright()
    stack = FakeStack("a", [painted(mask)], [mask])
    record = run(stack, "optim.prompts=boxes", model=model)
    assert model.prompts[0].boxes.tolist() == [[[28, 8, 53, 33]]]
    assert str(record.values["prompts"]) == "truth"
    empty = np.zeros((64, 64), np.uint8)
    record = run(FakeStack("a", [painted(empty)], [empty]), "optim.prompts=boxes", model=model)
    assert model.prompts[-1] is None
    assert str(record.values["prompts"]) == "none"


def test_hints_from_the_truth() -> None:
    mask = disc((40, 50), (12, 30), 9)
    mask[35:39, 2:5] = 1
    found = from_truth(mask, "points")
    assert found is not None
    assert found.points.tolist() == [[30.5, 12.5, 1]]
    box = from_truth(mask, "mixed")
    assert box is not None
    assert box.boxes.tolist() == [[2, 3, 40, 39]]
    assert from_truth(mask * 0, "points") is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["predict.points=[[70,2,1]]"], "x=70, y=2 lies outside of 'a', which is 64 pixels wide"),
        (["predict.boxes=[[9,2,5,8]]"], "predict.boxes: a box goes from left to right"),
        (["predict.points=[[7,2,3]]"], "predict.points: the third number is 1"),
        (["predict.points=[[7,2,1]]", "data.fit=tiles"], "prompts belong to a whole picture"),
    ],
)
def test_wrong_prompts_are_one_line(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        run(FakeStack("a", [painted(np.zeros((64, 64), np.uint8))]), *words)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("[1,2]", "should map file stems to points, boxes and mask"),
        ("{", "cannot be read as json"),
        ('{"a": {"point": [[1,1,1]]}}', "'point' is no prompt; prompts are points, boxes, mask"),
        ('{"a": {"points": [[1,1]]}}', "should be a list of [x, y, 1 or 0]"),
        ('{"a": {"boxes": [[1,1,2,"x"]]}}', "should be a list of [left, top, right, bottom]"),
        ('{"a": {"mask": "none.png"}}', "none.png"),
    ],
)
def test_wrong_prompt_files_are_one_line(body: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(body)
    with pytest.raises((ConfigError, DataError)) as error:
        given(f"predict.prompts={path}").of(FakeStack("a", []), 0)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_prompts_of_a_model_of_several_classes_are_refused() -> None:
    stack = FakeStack("a", [painted(np.zeros((64, 64), np.uint8))])
    with pytest.raises(ConfigError, match="the model has 2 classes"):
        run(stack, "predict.points=[[1,1,1]]", classes=2)


def test_a_mask_prompt_of_another_size_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 9), 255, np.uint8)).save(tmp_path / "m.png")
    stack = FakeStack("a", [painted(np.zeros((64, 64), np.uint8))])
    with pytest.raises(ConfigError, match="the mask prompt is 9 x 8, but 'a' is 64 x 64"):
        run(stack, f"predict.mask_prompt={tmp_path / 'm.png'}")


def test_pictures_without_prompts_are_answered_as_if_alone() -> None:
    """A picture with prompts in the same stack changes nothing for the others."""
    masks = [disc((64, 64), (32, 20 + 8 * i), 10) for i in range(4)]
    own = Prompts(np.array([[1, 1, 1]], np.float32), np.zeros((0, 4), np.float32))
    stack = FakeStack("c", [painted(m) for m in masks], masks, kind="clip", given={2: own})
    model = Bright()
    record = run(stack, model=model)
    assert [p is not None for p in model.prompts] == [False, True, False]
    assert [shape[0] for shape in model.seen] == [2, 1, 1]
    assert str(record.values["prompts"]) == "given"


def test_time_is_told_for_each_picture() -> None:
    mask = disc((64, 64), (32, 32), 10)
    record = run(FakeStack("a", [painted(mask)]))
    assert 0 < float(record.values["milliseconds"]) < 60_000
    assert "dice" not in record.values
    assert not math.isnan(float(record.values["share"][0]))
