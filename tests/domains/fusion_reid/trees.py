"""Tiny copies of the layouts: true folders, names and lists, images of a few pixels."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from zoo.domains.reid.fusion_reid.config import Config

DATA = Path(__file__).parents[4] / "shared" / "data" / "reid"
REASON = f"{DATA.name} data folder is not there"
BOXES = ("bounding_box_train", "query", "bounding_box_test")

MARKET = {
    "bounding_box_train": [
        "0002_c1s1_000451_03.jpg",
        "0002_c2s1_000551_01.jpg",
        "0007_c3s1_000776_01.jpg",
        "0007_c1s2_000801_02.jpg",
    ],
    "query": ["0001_c1s1_001051_00.jpg", "0003_c3s3_045628_00.jpg"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "0000_c3s3_094992_04.jpg",
        "0001_c1s1_001051_01.jpg",
        "0001_c2s1_000301_00.jpg",
        "0003_c1s2_000401_00.jpg",
    ],
}
DUKE = {
    "bounding_box_train": ["0001_c2_f0046182.jpg", "0001_c1_f0044158.jpg", "0002_c8_f0175988.jpg"],
    "query": ["0005_c2_f0046985.jpg"],
    "bounding_box_test": ["0005_c5_f0051341.jpg", "7140_c8_f0175988.jpg"],
}
MSMT17 = {
    "list_train.txt": [
        "0000/0000_000_01_0303morning_0008_0.jpg 0",
        "0000/0000_001_14_0303noon_0023_1.jpg 0",
        "0001/0001_000_05_0303morning_0015_0.jpg 1",
    ],
    "list_val.txt": ["0001/0001_001_06_0303morning_0021_2.jpg 1"],
    "list_query.txt": ["0000/0000_000_01_0302morning_0005_1.jpg 0"],
    "list_gallery.txt": [
        "0000/0000_001_05_0302noon_0013_0.jpg 0",
        "0002/0002_000_15_0302noon_0020_0.jpg 2",
    ],
}
CUHK03 = {
    "train": ["1_001_1_01.png", "1_001_2_06.png", "2_007_1_02.png", "2_007_2_08.png"],
    "query": ["1_002_1_01.png"],
    "gallery": ["1_002_2_06.png", "1_002_2_07.png"],
}


def configure(root: Path, *, model: dict[str, Any] | None = None, **data: Any) -> Config:
    """Small input and batches; `root` is the data set."""
    return Config.model_validate(
        {
            "task": "fusion_reid",
            "preset": "paper",
            "data": {"root": root, "instances": 2, **data},
            "model": {"input_size": [16, 8], **(model or {})},
            "trainer": {"batch_size": 4},
        }
    )


def write_crop(path: Path, seed: int = 0) -> Path:
    """An image of 12 x 6 pixels, another one for every seed and name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *path.name.encode()])
    Image.fromarray(rng.integers(0, 256, (12, 6, 3), dtype=np.uint8)).save(path)
    return path


def write_boxes(root: Path, names: dict[str, Sequence[str]] | dict[str, list[str]]) -> Path:
    """Folders of crops, each with Windows' index of thumbnails."""
    for folder, files in names.items():
        for name in files:
            write_crop(root / folder / name)
        (root / folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    return root


def write_msmt17(root: Path, version: int = 1) -> Path:
    folders = ("train", "test") if version == 1 else ("mask_train_v2", "mask_test_v2")
    for list_, lines in MSMT17.items():
        part = folders[list_ in ("list_query.txt", "list_gallery.txt")]
        for line in lines:
            write_crop(root / part / line.split(" ")[0])
        (root / list_).write_text("\n".join(lines) + "\n")
    return root


def write_cuhk03(root: Path, boxes: str = "detected", division: str = "json") -> Path:
    """Images and one of the two forms the newer division comes in."""
    folder = root / f"images_{boxes}"
    for name in everything(CUHK03.values()):
        write_crop(folder / name)
    if division == "json":
        rows = {
            # As torchreid writes it: absolute paths of the machine it ran on.
            role: [[f"/data/cuhk03/images_{boxes}/{name}", i, 0] for i, name in enumerate(files)]
            for role, files in CUHK03.items()
        }
        (root / f"splits_new_{boxes}.json").write_text(json.dumps([rows]))
    else:
        files = everything(CUHK03.values())
        cells = np.empty((len(files), 1), object)
        cells[:, 0] = files
        places = {
            f"{role}_idx": np.array([[files.index(n) + 1] for n in names])
            for role, names in CUHK03.items()
        }
        labels = np.arange(1, len(files) + 1)[:, None]
        savemat(
            root / f"cuhk03_new_protocol_config_{boxes}.mat",
            {"filelist": cells, "labels": labels, **places},
        )
    return root


def everything(groups: Iterable[Sequence[str]]) -> list[str]:
    return [name for group in groups for name in group]
