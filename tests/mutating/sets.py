"""Small data sets in the layouts that the adapters read, sound until something damages them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np


@dataclass(frozen=True)
class DataSet:
    """A data set to be damaged.

    Attributes:
        task: Whose adapter reads it.
        name: Of the layout.
        write: Writes it into an empty folder.
        words: Settings beside `data.root`.
        given: Patterns of what is predicted on, below the root; none: the root.
        unread: Patterns of files that the adapter has no use for.
        steps: What is done with it.
        like: Name of the data set a model to predict with was trained on; none: this one.
    """

    task: str
    name: str
    write: Callable[[Path], None]
    words: Sequence[str] = ("preset=sample",)
    given: Sequence[str] = ()
    unread: Sequence[str] = ()
    steps: Sequence[str] = ("quick", "check", "train", "predict")
    like: str = ""

    def __str__(self) -> str:
        return f"{self.task}/{self.name}"


@contextmanager
def _small(module: str, **values: Any) -> Iterator[Any]:
    """A sample writer's module that draws as many as given."""
    found = import_module(module)
    with mock.patch.multiple(found, **values):
        yield found


# -- rgbd_sod -----------------------------------------------------------------------------------


def _bbs(out: Path) -> None:
    import h5py

    from zoo.domains.saliency.rgbd_sod import sample

    train = sample.scenes(8, prefix="train")
    formats: Any = ("png", "jpg", "png16", "bmp", "png", "mat", "png16", "mat")
    masks: Any = ("png", "1bit", "01", "jpg", "palette", "rgb")
    sample.write_pairs(out / "RGBD_for_train", train, formats=formats, masks=masks)
    sample.write_pairs(out / "RGBD_for_test" / "SIP", sample.scenes(3, prefix="test"))
    # The last map as MATLAB 7.3 writes it: HDF5 behind a block of text.
    path = out / "RGBD_for_train" / "depth" / f"{train[-1].stem}.mat"
    path.unlink()
    with h5py.File(path, "w", userblock_size=512) as file:
        file["depth"] = (1000 * train[-1].depth.T).astype(np.uint16)
    with path.open("r+b") as body:
        body.write(b"MATLAB 7.3 MAT-file".ljust(128))


def _caver(out: Path) -> None:
    from tests.domains.rgbd_sod.writers import write_caver
    from zoo.domains.saliency.rgbd_sod import sample

    write_caver(out, sample.scenes(4, prefix="train"), sample.scenes(2, prefix="test"))


# -- wsi_mil ------------------------------------------------------------------------------------


def _slides() -> Any:
    from zoo.domains.medical.wsi_mil import sample

    return sample.slides(0, {"train": 4, "val": 2, "test": 2})


def _clam(out: Path) -> None:
    from zoo.domains.medical.wsi_mil import sample

    sample.write_clam(out, _slides())


def _acmil(out: Path) -> None:
    from tests.domains.wsi_mil.writers import write_acmil

    write_acmil(out, _slides())


def _trident(out: Path) -> None:
    from tests.domains.wsi_mil.writers import write_labels, write_trident

    write_trident(out, _slides())
    write_labels(out, _slides())


def _tensors(out: Path) -> None:
    from tests.domains.wsi_mil.writers import write_labels, write_tensors

    write_tensors(out, _slides())
    write_labels(out, _slides())


def _tiles(out: Path) -> None:
    from tests.domains.wsi_mil.slide_files import write_slides

    write_slides(out, 2, side=512)


# -- medusa -------------------------------------------------------------------------------------


def _covidx(out: Path) -> None:
    from zoo.domains.medical.medusa import sample

    sample.write_covidx(out, sample.images(0, {"train": 16, "val": 4, "test": 6}))


def _rsna(out: Path) -> None:
    from tests.domains.medusa.writers import write_rsna

    write_rsna(out, 12)


def _ricord(out: Path) -> None:
    from tests.domains.medusa.writers import write_ricord

    write_ricord(out)


# -- her_seg ------------------------------------------------------------------------------------


def _pictures(out: Path) -> None:
    patients = {"train": 6, "valid": 1, "test": 2}
    with _small("zoo.domains.medical.her_seg.sample", _PATIENTS=patients) as sample:
        sample.write_pictures(out)


def _nuclei(out: Path) -> None:
    counts = {"train": 5, "valid": 1, "test": 2}
    with _small("zoo.domains.medical.her_seg.sample", _NUCLEI=counts) as sample:
        sample.write_nuclei(out)


def _volumes(out: Path) -> None:
    with _small(
        "zoo.domains.medical.her_seg.sample_volumes", _TRAIN=4, _TEST=1, SHAPE=(24, 24, 6)
    ) as sample:
        drawn = sample.draw
        with mock.patch.object(sample, "draw", lambda rng: drawn(rng, sample.SHAPE)):
            sample.write_volumes(out)


def _clips(out: Path) -> None:
    with _small("zoo.domains.medical.her_seg.sample_video", _TRAIN=3, _TEST=1) as sample:
        drawn = sample.draw
        with mock.patch.object(
            sample, "draw", lambda rng, frames=4, side=64: drawn(rng, min(frames, 6), side)
        ):
            sample.write_clips(out)


# -- crop_yield ---------------------------------------------------------------------------------


def _modis(out: Path) -> None:
    from zoo.domains.remote_sensing.crop_yield import sample_modis
    from zoo.domains.remote_sensing.crop_yield.config import CropData
    from zoo.domains.remote_sensing.crop_yield.prepare import Preparation

    years = (2003, 2004, 2005)
    made = sample_modis.counties(0, years, ("17",), 5)
    for k, county in enumerate(made):
        rng = np.random.default_rng(k)
        sample_modis.write_county(out / "raw", county, rng, tiled=k == 0, band=k % 2 == 1)
    sample_modis.write_tables(out / "raw", made, np.random.default_rng(9), years)
    work = Preparation(out / "prepared", CropData(), out / "raw", tell=lambda line: None)
    for fips in work.exports:
        work.one(fips)
    work.conclude()
    shutil.rmtree(out / "raw")


def _published(out: Path) -> None:
    """The single file alone, as it was published, with the yields in it."""
    _modis(out / "made")
    (out / "made" / "prepared" / "histogram_all_full.npz").rename(out / "histogram_all_full.npz")
    shutil.rmtree(out / "made")


def _exports(out: Path) -> None:
    from tests.domains.crop_yield.writers import write_flat
    from zoo.domains.remote_sensing.crop_yield import sample_modis

    for k in range(2):
        write_flat(out, f"17_{2 * k + 1}", composites=46, place=(-89.5 + k, 40.0))
    made = sample_modis.counties(0, (2003, 2004), ("17",), 2)
    sample_modis.write_tables(out, made, np.random.default_rng(9), (2003, 2004))


def _sentinel(out: Path) -> None:
    from tests.domains.crop_yield.sentinel_writers import record, write_index, write_tree

    years, fips = (2020, 2021, 2022), ("01001", "17001")
    write_tree(out, years=years, fips=fips, side=32)
    train = [record(f, y) for y in years[:-1] for f in fips]
    write_index(out, train, [record(f, years[-1]) for f in fips])


# -- fusion_reid --------------------------------------------------------------------------------


def _market(out: Path) -> None:
    from zoo.domains.reid.fusion_reid import sample

    sample.write(out, train=3, test=3)


def _msmt17(out: Path) -> None:
    from tests.domains.fusion_reid.trees import write_msmt17

    write_msmt17(out / "MSMT17_V1")


def _cuhk03(out: Path) -> None:
    from tests.domains.fusion_reid.trees import write_cuhk03

    write_cuhk03(out / "cuhk03")


def _cuhk03_mat(out: Path) -> None:
    from tests.domains.fusion_reid.trees import write_cuhk03

    write_cuhk03(out / "cuhk03", division="mat")


_TILES = (
    *("data.slides={root}", "data.encoder=stats", "data.tiles.patch_size=64"),
    *("data.tiles.magnification=20", "data.tiles.workers=0"),
)
# What preparation leaves beside the histograms for itself and for other programs.
_BESIDE = ("county_histograms/*", "histogram_all_full.npz", "settings.json", "prepared.csv")
_REID = ("preset=sample", "trainer.batch_size=8", "model.camera=none")

SETS: Sequence[DataSet] = (
    DataSet("rgbd_sod", "bbs", _bbs),
    DataSet("rgbd_sod", "caver", _caver),
    DataSet("wsi_mil", "clam", _clam, given=("features",), unread=("*_bool.csv", "*.pt")),
    DataSet("wsi_mil", "acmil", _acmil, given=("*.h5",)),
    DataSet("wsi_mil", "trident", _trident, given=("20x*/features_*",)),
    DataSet("wsi_mil", "tensors", _tensors, given=("tensors",)),
    DataSet("wsi_mil", "slides", _tiles, _TILES, unread=("labels.csv",), steps=("prepare",)),
    DataSet("medusa", "covidx", _covidx, given=("te?t",)),
    DataSet("medusa", "rsna", _rsna, unread=("*detailed*",), given=("stage_2_train_images",)),
    DataSet("medusa", "ricord", _ricord, given=("MIDRC*",)),
    DataSet("her_seg", "pictures", _pictures, given=("images",)),
    DataSet("her_seg", "nuclei", _nuclei, given=("stage1_train/*",)),
    DataSet("her_seg", "volumes", _volumes, ("preset=sample_volumes",), given=("images*",)),
    DataSet("her_seg", "clips", _clips, ("preset=sample_video",), given=("*/*/frames", "*.mp4")),
    DataSet("crop_yield", "modis", _modis, unread=_BESIDE),
    DataSet("crop_yield", "published", _published),
    DataSet(
        *("crop_yield", "exports", _exports),
        ("preset=sample", "data.prepare_workers=1"),
        steps=("prepare", "predict"),
        like="modis",
    ),
    DataSet("crop_yield", "sentinel", _sentinel, ("preset=sample_s2",), given=("Sentinel*",)),
    DataSet(
        *(
            "fusion_reid",
            "market",
            _market,
            _REID,
            ("market1501/query",),
            ("*.db", "readme.txt", "-1_*"),
        )
    ),
    DataSet("fusion_reid", "msmt17", _msmt17, _REID),
    DataSet("fusion_reid", "cuhk03", _cuhk03, _REID),
    DataSet("fusion_reid", "cuhk03_mat", _cuhk03_mat, _REID),
)
