"""The same scenes in every arrangement the field uses."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from zoo.domains.saliency.rgbd_sod.sample import SampleScene, write_pairs

Scenes = Sequence[SampleScene]


def write_bbs(out: Path, train: Scenes, test: Scenes) -> None:
    write_pairs(out / "RGBD_for_train", train, formats=("png", "bmp", "jpg"))
    write_pairs(out / "RGBD_for_test" / "STERE", test)
    (out / "RGBD_for_train" / "RGB" / "Thumbs.db").write_bytes(b"\xd0\xcf")


def write_spnet(out: Path, train: Scenes, test: Scenes) -> None:
    write_pairs(out / "Data" / "TrainDataset", train, depth="Depth")
    write_pairs(out / "Data" / "TestDataset" / "STERE", test, depth="Depth")


def write_vst(out: Path, train: Scenes, test: Scenes) -> None:
    for part, scenes in (("trainset", train), ("testset", test)):
        write_pairs(out / "NJUD" / part, scenes)
        (out / "NJUD" / part / "contour").mkdir()
    write_pairs(out / "STERE", test)


def write_caver(out: Path, train: Scenes, test: Scenes) -> None:
    folders = {"rgb": "Image", "depth": "Depth", "mask": "Mask"}
    write_pairs(out / "NJUD_FULL", [*train, *test], **folders)
    for part, scenes in (("train", train), ("test", test)):
        write_list(out / f"njud_{part}_jw_name_list.lst", scenes)
    write_pairs(out / "STEREO1000", test, **folders)
    write_pairs(out / "DUTLF-Depth" / "Train", train)
    write_pairs(out / "DUTLF-Depth" / "Test", renamed(test, train))


def write_author(out: Path, train: Scenes, test: Scenes) -> None:
    for folder, part, scenes in (("train_2185", "train", train), ("STERE-797", "test", test)):
        write_pairs(
            out / folder,
            scenes,
            rgb=f"{part}_images",
            depth=f"{part}_depth",
            mask=f"{part}_masks",
        )
    (out / "train_2185" / "train_edges").mkdir()


def write_come(out: Path, train: Scenes, test: Scenes) -> None:
    base = out / "COME15K"
    write_pairs(base / "COME-TR", train, rgb="imgs_right", depth="depths", mask="gt_right")
    for name in ("COME-TE-E", "COME-TE-H"):
        write_pairs(base / "COME-TE" / name, test, depth="depths")


def write_nlpr_raw(out: Path, train: Scenes, test: Scenes) -> None:
    scenes = [*train, *test]
    for depth, formats in (("rawDepth", ["mat"]), ("smoothedDepth", ["mat", "png"])):
        for kind in formats:
            whole = [replace(s, holes=np.zeros_like(s.holes)) for s in scenes]
            write_pairs(
                out,
                scenes if depth == "rawDepth" else whole,
                depth=depth,
                mask="groundtruth",
                formats=(kind,),
                masks=("jpg",),
                tail="_Depth",
            )
    for part, chosen in (("train", train), ("test", test)):
        write_list(out / f"nlpr_{part}.lst", chosen)


def write_plain(out: Path, train: Scenes, test: Scenes) -> None:
    write_pairs(out / "mine" / "train", train, rgb="images", mask="masks", tail="_depth")
    write_pairs(out / "mine" / "test", test, rgb="images", mask="masks")


WRITERS: dict[str, Callable[[Path, Scenes, Scenes], None]] = {
    "bbs": write_bbs,
    "spnet": write_spnet,
    "vst": write_vst,
    "caver": write_caver,
    "author": write_author,
    "come": write_come,
    "nlpr_raw": write_nlpr_raw,
    "plain": write_plain,
}


def write_list(path: Path, scenes: Scenes) -> Path:
    path.write_text("".join(f"{scene.stem}\n" for scene in scenes))
    return path


def renamed(scenes: Scenes, like: Scenes) -> list[SampleScene]:
    """Other scenes under the stems of `like`: sets that number their images alike."""
    return [replace(scene, stem=other.stem) for scene, other in zip(scenes, like, strict=False)]
