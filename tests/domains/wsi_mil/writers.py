"""The sample slides in the layouts of other tools."""

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch

from zoo.domains.medical.wsi_mil.sample import Slide

TRIDENT_FOLDER = "20x_256px_0px_overlap"


def write_acmil(out: Path, slides: Sequence[Slide], seeds: Sequence[int] = (1,)) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "patch_feats_pretrain_medical_ssl.h5"
    with h5py.File(path, "w") as file:
        for slide in slides:
            group = file.create_group(slide.id)
            group["feat"] = slide.features
            group["coords"] = slide.coords
            group.attrs["label"] = slide.label
    folder = out / "splits" / "camelyon"
    folder.mkdir(parents=True)
    for seed in seeds:
        names = {
            f"{p}_names": [s.id for s in slides if s.part == p] for p in ("train", "val", "test")
        }
        names["train_names"] = names["train_names"][seed:] + names["train_names"][:seed]
        (folder / f"split_{seed}.json").write_text(json.dumps(names))
    return path


def write_trident(out: Path, slides: Sequence[Slide], encoder: str = "uni_v1") -> Path:
    folder = out / TRIDENT_FOLDER
    features, patches = folder / f"features_{encoder}", folder / "patches"
    features.mkdir(parents=True)
    patches.mkdir(exist_ok=True)
    for slide in slides:
        with h5py.File(features / f"{slide.id}.h5", "w") as file:
            file["features"] = slide.features.astype(np.float32)
            file["coords"] = slide.coords
        with h5py.File(patches / f"{slide.id}_patches.h5", "w") as file:
            file["coords"] = slide.coords
            file["coords"].attrs.update(
                {
                    "patch_size": 256,
                    "patch_size_level0": 512,
                    "level0_magnification": 40,
                    "target_magnification": 20,
                    "overlap": 0,
                    "name": slide.id,
                    "savetodir": "/home/somebody",
                }
            )
    return features


def write_tensors(out: Path, slides: Sequence[Slide]) -> None:
    folder = out / "tensors"
    folder.mkdir(parents=True)
    for slide in slides:
        torch.save(torch.from_numpy(slide.features), folder / f"{slide.id}.pt")


def write_labels(out: Path, slides: Sequence[Slide], ending: str = "") -> Path:
    path = out / "labels.csv"
    pd.DataFrame(
        {
            "case_id": [s.patient for s in slides],
            "slide_id": [s.id + ending for s in slides],
            "label": [s.label for s in slides],
        }
    ).to_csv(path, index=False)
    return path


def write_bracs(out: Path, slides: Sequence[Slide]) -> Path:
    """BRACS' table, with an unnamed index and seven classes in turn."""
    folder = out / "dataset_csv"
    folder.mkdir(parents=True)
    path = folder / "bracs.csv"
    pd.DataFrame(
        {
            "case_id": [s.patient for s in slides],
            "slide_id": [s.id for s in slides],
            "split_info": [s.part for s in slides],
            "full_path": [f"/data/{s.id}.svs" for s in slides],
            "label": [i % 7 for i in range(len(slides))],
        }
    ).to_csv(path)
    return path
