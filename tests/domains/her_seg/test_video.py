"""Clips: order, sparse masks, video files without a lost frame, what is written."""

import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from zoo.domains.medical.her_seg import clip_stack, data, video_file
from zoo.domains.medical.her_seg.cases import natural, sorted_paths
from zoo.domains.medical.her_seg.clip_stack import ClipStack, matched
from zoo.domains.medical.her_seg.video import clip_cases, clip_layout, stacks_from
from zoo.domains.medical.her_seg.video_file import VideoFile, VideoWriter
from zoo.domains.medical.her_seg.writers import grey_levels, outlined
from zoo.errors import DataError

from .volume_files import configure, real

MS = Fraction(1, 1000)


def frames(count: int = 12, height: int = 32, width: int = 48) -> np.ndarray:
    """(T, H, W, 3) uint8: a bar whose width is the number of the frame, a white corner."""
    made = np.full((count, height, width, 3), 40, np.uint8)
    for i in range(count):
        made[i, :, : 3 * i + 3] = (180, 90, 60)
        made[i, :8, :8] = 250
    return made


def bar(picture: np.ndarray) -> int:
    """Which frame a picture is, by its bar."""
    return round(float((picture[-6, :, 0] > 110).sum()) / 3) - 1


def movie(path: Path, pictures: np.ndarray, stamps: list[int] | None = None, turn: int = 0) -> Path:
    """A video with B frames and few key frames, at given times in ms, to be turned for display."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", options={"crf": "12", "g": "5"})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = MS
        if turn:
            stream.set_display_rotation(turn)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (stamps[i] if stamps else 40 * i), MS
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def folder(path: Path, pictures: np.ndarray, first: int = 1, name: str = "frame{}.png") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / name.format(first + i))
    return path


def mask(value: int = 255, shape: tuple[int, int] = (32, 48)) -> np.ndarray:
    found = np.zeros(shape, np.uint8)
    found[10:20, 12:30] = value
    return found


def clip(case: object) -> ClipStack:
    stack = case.open()
    assert isinstance(stack, ClipStack)
    return stack


# -- order --------------------------------------------------------------------------------------


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    names = ["frame10", "frame2", "frame1", "Frame3", "frame02b", "a"]
    assert sorted(names, key=natural) == ["a", "frame1", "frame2", "frame02b", "Frame3", "frame10"]
    paths = [tmp_path / f"{n}.png" for n in ("10", "9", "100", "1")]
    assert [p.stem for p in sorted_paths(paths)] == ["1", "9", "10", "100"]


def test_frames_of_a_folder_keep_their_order_to_the_end(tmp_path: Path) -> None:
    folder(tmp_path / "clip" / "frames", frames(12))
    case = next(iter(clip_cases(tmp_path, configure(tmp_path, layout="frames"))))
    stack = clip(case)
    assert [bar(255 * stack.picture(i)) for i in range(12)] == list(range(12))
    written = stack.write(tmp_path / "out", lambda i: np.full((32, 48), i % 2, np.uint8))
    assert [p.name for p in written[:12]] == [f"frame{i}.png" for i in range(1, 13)]
    for i, path in enumerate(written[:12]):
        with Image.open(path) as image:
            assert np.asarray(image)[0, 0] == 255 * (i % 2)
    overlay = VideoFile(tmp_path / "out" / "clip_overlay.mp4")
    assert [bar(overlay.frame(i)) for i in range(len(overlay))] == list(range(12))


# -- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("{}/frames", "{}/masks"),
        ("images/{}", "masks/{}"),
        ("JPEGImages/480p/{}", "Annotations/480p/{}"),
        ("TrainDataset/Frame/{}", "TrainDataset/GT/{}"),
    ],
)
def test_frames_and_masks_are_found_in_parallel_folders(
    tmp_path: Path, images: str, masks: str
) -> None:
    for name in ("b10", "b9"):
        folder(tmp_path / images.format(name), frames(4))
        for i in (1, 3):
            place = tmp_path / masks.format(name)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask()).save(place / f"frame{i}.png")
    (tmp_path / "notes").mkdir()
    assert clip_layout(tmp_path) == "frames"
    cases = clip_cases(tmp_path, configure(tmp_path, layout="frames"))
    assert [c.name.rpartition("/")[2] for c in cases] == ["b9", "b10"]
    assert {c.part for c in cases} == {"train" if "Train" in images else None}
    stack = clip(cases[0])
    assert [stack.truth(i) is not None for i in range(4)] == [True, False, True, False]
    assert cases[0].slices() == [(0, True), (2, True)]
    assert cases[0].look(True) == []


def test_masks_in_the_folder_of_the_frames(tmp_path: Path) -> None:
    folder(tmp_path / "c" / "x", frames(3), name="{:03d}.png")
    Image.fromarray(mask()).save(tmp_path / "c" / "x" / "002_mask.png")
    (case,) = clip_cases(tmp_path, configure(tmp_path, layout="frames"))
    assert len(clip(case)) == 3
    assert case.slices() == [(1, True)]


def test_masks_belong_by_stem_tail_or_number(tmp_path: Path) -> None:
    names = ["f3", "f4", "f5"]

    def pairs(*stems: str, of: list[str] = names) -> dict[int, str]:
        masks = {stem: tmp_path / f"{stem}.png" for stem in stems}
        return {i: p.stem for i, p in matched(of, masks, tmp_path / "f.png").items()}

    assert pairs("f3", "f5") == {0: "f3", 2: "f5"}
    assert pairs("f4_mask", "f5-gt") == {1: "f4_mask", 2: "f5-gt"}
    assert pairs("mask_0004") == {1: "mask_0004"}
    numbers = [f"{i:06d}" for i in range(10)]
    assert pairs("m0", "m9", of=numbers) == {0: "m0", 9: "m9"}
    # ffmpeg counts from 1: the highest number is the count of frames.
    assert pairs("m1", "m10", of=numbers) == {0: "m1", 9: "m10"}
    with pytest.raises(DataError, match=r"m11.png: no frame of that name"):
        pairs("m11", of=numbers)
    with pytest.raises(DataError, match="are masks of one frame"):
        pairs("f3", "f3_mask")


def test_faults_of_clips_are_one_line_each(tmp_path: Path) -> None:
    for name in ("size", "masksize", "stray", "twins"):
        folder(tmp_path / name / "frames", frames(3))
        folder(tmp_path / name / "masks", np.stack([mask()] * 2))
    Image.new("RGB", (10, 10)).save(tmp_path / "size" / "frames" / "frame2.png")
    Image.new("L", (10, 10)).save(tmp_path / "masksize" / "masks" / "frame2.png")
    Image.new("L", (48, 32)).save(tmp_path / "stray" / "masks" / "other77.png")
    config = configure(tmp_path, layout="frames")
    told = {c.name: [f.line() for f in c.look(True)] for c in clip_cases(tmp_path, config)}
    assert told.pop("twins") == []
    assert all(len(lines) == 1 for lines in told.values())
    assert "10 x 10 pixels where the clip's frames have 32 x 48" in told["size"][0]
    assert "10 x 10 pixels where the frame has 32 x 48" in told["masksize"][0]
    assert "no frame of that name" in told["stray"][0]
    Image.new("RGB", (48, 32)).save(tmp_path / "twins" / "frames" / "frame2.jpg")
    with pytest.raises(DataError, match=r"have the same stem"):
        clip_cases(tmp_path, config)


def test_the_real_membranes_as_a_clip() -> None:
    root = real("isbi2012_membrane")
    (case,) = clip_cases(root, configure(root, layout="frames", invert=True))
    stack = clip(case)
    assert (case.name, len(stack)) == ("isbi2012_membrane", 6)
    assert stack.frames.names() == list("012345")
    assert 0.15 < np.mean([stack.truth(i).mean() for i in range(6)]) < 0.3
    assert len(case.slices()) == 6


def test_labels_of_frames_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "c" / "frames", frames(3))
    folder(tmp_path / "c" / "masks", np.stack([mask(), mask(0)]))
    (case,) = clip_cases(tmp_path, configure(tmp_path, layout="frames"))
    assert case.slices() == [(0, True), (1, False)]
    monkeypatch.setattr(clip_stack, "read_mask", None)
    (again,) = clip_cases(tmp_path, configure(tmp_path, layout="frames"))
    assert again.slices() == [(0, True), (1, False)]


# -- video files --------------------------------------------------------------------------------


def test_no_frame_of_a_video_is_lost_and_times_are_kept(tmp_path: Path) -> None:
    stamps = [0, 40, 80, 120, 133, 200, 350, 390, 500, 501, 700, 900]
    path = movie(tmp_path / "a.mp4", frames(12), stamps)
    video = VideoFile(path)
    assert len(video) == 12
    assert video.size == (32, 48)
    times, base = video.times()
    assert [round(1000 * t * base) for t in times] == stamps
    assert [bar(video.frame(i)) for i in range(12)] == list(range(12))


def test_frames_are_the_same_in_any_order(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mp4", frames(12))
    one, other = VideoFile(path), VideoFile(path)
    straight = [one.frame(i) for i in range(12)]
    for i in (7, 2, 11, 0, 3, 4, 10, 9, 1, 9, 11, 5):
        assert np.array_equal(other.frame(i), straight[i]), i
    assert len(other._kept) <= 4
    copy = pickle.loads(pickle.dumps(other))
    assert np.array_equal(copy.frame(6), straight[6])
    with pytest.raises(IndexError):
        other.frame(12)


@pytest.mark.parametrize(
    ("turn", "corner"), [(0, (0, 0)), (90, (1, 0)), (-90, (0, 1)), (180, (1, 1))]
)
def test_rotation_beside_the_pixels_is_applied(
    tmp_path: Path, turn: int, corner: tuple[int, int]
) -> None:
    """A turn counter-clockwise takes the white corner from the top left to the bottom left."""
    path = movie(tmp_path / "turned.mp4", frames(3), turn=turn)
    video = VideoFile(path)
    size = (48, 32) if turn in (90, -90) else (32, 48)
    assert video.size == size
    picture = video.frame(1)
    assert picture.shape[:2] == size
    row, column = (slice(-6, -2) if far else slice(2, 6) for far in corner)
    assert picture[row, column].mean() > 220
    assert (picture.mean(axis=2) > 220).mean() < 0.1


def test_a_stream_without_times_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "raw.mjpeg"
    with av.open(str(path), "w", format="mjpeg") as out:
        stream = out.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        for picture in frames(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    video = VideoFile(path)
    assert [bar(video.frame(i)) for i in (3, 0, 4)] == [3, 0, 4]
    assert len(video) == 5


def test_the_count_of_frames_is_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = movie(tmp_path / "a.mp4", frames(4))
    assert len(VideoFile(path)) == 4
    monkeypatch.setattr(VideoFile, "_scan", None)
    again = VideoFile(path)
    assert len(again) == 4
    assert bar(again.frame(2)) == 2


def test_broken_videos_are_told_in_one_line(tmp_path: Path) -> None:
    good = movie(tmp_path / "good.mp4", frames(6)).read_bytes()
    broken = {
        "cut.mp4": good[: len(good) // 2],
        "empty.mp4": b"",
        "text.avi": b"no video at all",
    }
    for name, body in broken.items():
        (tmp_path / name).write_bytes(body)
        with pytest.raises(DataError) as caught:
            len(VideoFile(tmp_path / name))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        out.mux(stream.encode(sound))
        out.mux(stream.encode(None))
    with pytest.raises(DataError, match="has no video stream"):
        len(VideoFile(tmp_path / "sound.mp4"))
    with pytest.raises(DataError, match="no such file"):
        len(VideoFile(tmp_path / "absent.mp4"))


def test_videos_with_sparse_mask_pictures_or_a_mask_video(tmp_path: Path) -> None:
    movie(tmp_path / "videos" / "a.mp4", frames(6))
    movie(tmp_path / "videos" / "b.mp4", frames(6))
    place = tmp_path / "masks" / "a"
    place.mkdir(parents=True)
    for i in (1, 3, 6):  # as ffmpeg numbers the frames of six
        Image.fromarray(mask()).save(place / f"out{i:04d}.png")
    grey = np.repeat(
        np.stack([mask() if i % 2 else mask(0) for i in range(6)])[..., None], 3, axis=3
    )
    movie(tmp_path / "masks" / "b_mask.mp4", grey)
    assert clip_layout(tmp_path) == "video"
    a, b = clip_cases(tmp_path, configure(tmp_path))
    assert a.slices() == [(0, True), (2, True), (5, True)]
    assert b.slices() == [(i, i % 2 == 1) for i in range(6)]
    wanted = mask() > 0
    assert (clip(b).truth(3) != wanted).mean() < 0.01
    movie(tmp_path / "masks" / "b_mask.mp4", grey[:4])
    with pytest.raises(DataError, match=r"b_mask.mp4: 4 frames .* where the video has 6"):
        clip_cases(tmp_path, configure(tmp_path))[1].slices()


# -- writing ------------------------------------------------------------------------------------


def test_predictions_of_a_video_keep_its_times(tmp_path: Path) -> None:
    stamps = [0, 40, 80, 180, 280, 380]
    path = movie(tmp_path / "turned.mp4", frames(6, 32, 46), stamps, turn=90)
    facts = {"classes": ["a", "b"], "kind": "clip"}
    (stack,) = stacks_from([path], configure(), facts)
    assert stack.picture(0).shape == (46, 32, 3)
    found = np.zeros((6, 46, 32), np.uint8)
    for i in range(6):
        found[i, 5:20, 4:14], found[i, 25:40, 4 + i : 20 + i] = 1, 2
    asked: list[int] = []

    def labels(index: int) -> np.ndarray:
        asked.append(index)
        return found[index]

    written = stack.write(tmp_path / "out", labels)
    assert asked == list(range(6))
    assert [p.name for p in written] == [
        *(f"{i:06d}.png" for i in range(6)),
        "turned_mask.mp4",
        "turned_overlay.mp4",
    ]
    with Image.open(written[4]) as image:
        assert np.array_equal(np.asarray(image), found[4])
    for path in written[-2:]:
        back = VideoFile(path)
        times, base = back.times()
        assert [round(1000 * t * base) for t in times] == stamps
        assert back.size == (46, 32)
        assert back.index().rotation == 0
    levels = grey_levels(2)
    shown = VideoFile(written[-2]).frame(3)[..., 0].astype(int)
    assert levels.tolist() == [0, 128, 255]
    assert np.abs(shown - levels[found[3]]).mean() < 6
    plain = stacks_from([path], configure(predict={"frames": False, "overlay": False}), facts)[0]
    only = plain.write(tmp_path / "less", lambda i: np.zeros(plain.frames.size, np.uint8))
    assert [p.name for p in only] == [f"{path.stem}_mask.mp4"]
    assert sorted(p.name for p in (tmp_path / "less").iterdir()) == [only[0].name]


def test_odd_sizes_are_padded_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "odd.mp4", (31, 47), MS) as video:
        for i, picture in enumerate(frames(3, 31, 47)):
            video.add(picture, 40 * i)
    assert VideoFile(tmp_path / "odd.mp4").size == (32, 48)
    folder(tmp_path / "clip" / "frames", frames(3))
    (case,) = clip_cases(tmp_path / "clip", configure(layout="frames"))

    def fails(index: int) -> np.ndarray:
        if index == 1:
            msg = "stop"
            raise RuntimeError(msg)
        return mask(1)

    with pytest.raises(RuntimeError, match="stop"):
        case.open().write(tmp_path / "out", fails)
    assert not list((tmp_path / "out").glob("*.mp4"))
    assert not list((tmp_path / "out").glob(".*"))


def test_outlines_lie_inside_and_have_a_colour_a_class() -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[5:15, 5:15], labels[20:38, 20:40] = 1, 2
    grey = np.full((40, 40, 3), 100, np.uint8)
    drawn = outlined(grey, labels)
    changed = (drawn != grey).any(axis=2)
    assert changed[5, 5:15].all()
    assert not changed[6:14, 6:14].any()
    # Where an object is cut by the picture's edge there is no line.
    assert not changed[21:37, 39].any()
    assert tuple(drawn[5, 5]) != tuple(drawn[20, 25])
    assert (grey == 100).all()


# -- the adapter --------------------------------------------------------------------------------


def test_the_adapter_trains_on_frames_with_masks(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 1), ("test", 1)):
        for number in range(count):
            folder(tmp_path / part / f"{part}{number}" / "frames", frames(4))
            folder(tmp_path / part / f"{part}{number}" / "masks", np.stack([mask()] * 2))
    splits = data.open_splits(configure(tmp_path, layout="frames"))
    assert {k: len(v.ids) for k, v in splits.items()} == {"train": 6, "val": 1, "test": 1}
    assert splits["train"].ids[:2] == ["train/train0/0", "train/train0/1"]
    facts = data.facts_of(splits["train"])
    assert facts["kind"] == "clip"
    given = data.inputs([tmp_path / "test" / "test0" / "frames"], facts, configure())
    assert [(s.kind, len(s)) for s in given.stacks] == [("clip", 4)]


def test_a_folder_is_a_clip_or_a_volume_as_the_model_was_trained(tmp_path: Path) -> None:
    folder(tmp_path / "x", frames(3))
    for kind in ("clip", "volume"):
        (stack,) = stacks_from([tmp_path / "x"], configure(), {"kind": kind})
        assert (stack.kind, stack.id, len(stack)) == (kind, "x", 3)
    folder(tmp_path / "y", frames(2))
    both = stacks_from([tmp_path], configure(), {"kind": "clip"})
    assert [s.id.rpartition("/")[2] for s in both] == ["x", "y"]
    text = tmp_path / "notes.txt"
    text.write_text("nothing")
    with pytest.raises(DataError, match="neither a picture, a NIfTI volume"):
        stacks_from([text], configure(), {})


def test_the_cache_of_a_video_is_no_secret_keeper(tmp_path: Path, cache: Path) -> None:
    path = movie(tmp_path / "John_Doe.mp4", frames(2))
    assert len(VideoFile(path)) == 2
    kept = list((cache / "her_seg" / "videos").iterdir())
    assert kept
    assert all("Doe" not in p.name and "Doe" not in p.read_text() for p in kept)
    assert video_file.USUAL_RATE == 10
