"""The task as the engine sees it: phases, records, maps on disk, export."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.running import Result, good, only_run, run_zoo
from zoo import checkpoint
from zoo.config import resolve
from zoo.data import item_rng, order_rng
from zoo.domains.saliency.rgbd_sod import sample
from zoo.domains.saliency.rgbd_sod import task as module
from zoo.domains.saliency.rgbd_sod.config import Config
from zoo.domains.saliency.rgbd_sod.task import RgbdSod
from zoo.evaluation import load_records

from .writers import write_bbs

TINY = (
    "model.input_size=64",
    "model.width=8",
    "model.fusion_channels=[8,8,8,8]",
    "model.embed_dims=[8,8,10,8]",
    "model.decoder_channels=8",
    "trainer.batch_size=4",
)


def task_of(root: Path, *words: str) -> RgbdSod:
    config = resolve(["task=rgbd_sod", "preset=sample", f"data.root={root}", *TINY, *words]).config
    assert isinstance(config, Config)
    return RgbdSod(config)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = sample.scenes(16, 0, "task")
    folder = tmp_path_factory.mktemp("pairs")
    write_bbs(folder, made[:12], made[12:])
    return folder


def batch_of(task: RgbdSod, part: str, count: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    splits = task.splits()
    torch.manual_seed(0)
    model = task.model(task.fit(splits["train"])).eval()
    split = splits[part]
    items = [split.item(i, item_rng(1, 0, i)) for i in range(count)]
    return model, split.collate(items)


# -- phases and optimiser -----------------------------------------------------------------------


def test_encoders_rest_first_then_the_transformer(root: Path) -> None:
    task = task_of(root, "optim.frozen_encoders=2", "optim.frozen_transformer=3")
    phases = [task.phase(epoch, 0) for epoch in range(6)]
    assert phases[0] == phases[1]
    assert phases[0] is not None
    assert phases[0].frozen == phases[0].still == ("encoder_rgb", "encoder_depth")
    assert phases[2] == phases[4]
    assert phases[2] is not None
    assert "transformer.3.blocks" in phases[2].frozen
    assert not any("patch_embed" in name for name in phases[2].frozen)
    assert phases[5] is not None
    assert phases[5].frozen == ()


def test_phases_follow_what_the_network_has(root: Path) -> None:
    shared = task_of(root, "optim.frozen_encoders=1", "model.share_encoders=true").phase(0, 0)
    assert shared is not None
    assert shared.frozen == ("encoder_rgb",)
    bare = task_of(root, "optim.frozen_transformer=1", "model.transformer=none").phase(0, 0)
    assert bare is not None
    assert bare.frozen == ()


def test_learning_rate_decays_by_epoch_after_the_warm_up(root: Path) -> None:
    task = task_of(root, "optim.decay=0.5", "optim.warmup_steps=4")
    model, _ = batch_of(task, "train", 1)
    factor = task.optimisers(model)["adam"].factor
    assert [factor(0, step, 8) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor(3, 0, 8) == factor(3, 7, 8) == 0.125


def test_what_rests_is_bit_identical_after_training(root: Path, tmp_path: Path) -> None:
    words = ["optim.frozen_encoders=1", "optim.frozen_transformer=1", "trainer.epochs=3"]
    good(
        *("train", "task=rgbd_sod", "preset=sample", f"data.root={root}", *TINY, *words),
        *(f"out={tmp_path}", "tracking.enabled=false", "trainer.keep_last=9"),
    )
    run = only_run(tmp_path)
    saved = [checkpoint.load(p) for p in sorted(run.checkpoints.glob("step-*"))]
    assert len(saved) == 3
    torch.manual_seed(0)
    moved = [
        {k for k in a.model if not torch.equal(a.model[k], b.model[k])} for a, b in pairwise(saved)
    ]
    encoders = {k for k in saved[0].model if k.startswith("encoder_")}
    blocks = {k for k in saved[0].model if ".blocks." in k and k.startswith("transformer")}
    assert int(saved[0].model["encoder_rgb.stages.0.0.bn.num_batches_tracked"]) == 0
    assert encoders & moved[0]
    assert not blocks & moved[0]
    assert any("patch_embed" in k for k in moved[0])
    assert blocks & moved[1]
    assert "test_stere/mae" in run.results()


# -- records ------------------------------------------------------------------------------------


def test_records_hold_scores_at_the_annotations_size(root: Path) -> None:
    task = task_of(root)
    model, batch = batch_of(task, "test_stere", 4)
    with torch.no_grad():
        records = task.records(model, batch)
    assert [r.id for r in records] == list(batch["id"])
    for record, truth in zip(records, batch["truth"], strict=True):
        assert record.values["fm"].shape == (256,)
        assert 0 <= record.values["mae"] <= 1
        assert record.values["preview_maps"].shape[0] == 4
        assert "milliseconds" not in record.values
        assert truth.shape[:2] != (64, 64)
    scores = task.score(records, {})
    assert scores["images"] == 4
    assert set(task.intervals(records, {})) >= {"mae", "iou"}


def test_only_some_images_of_a_large_split_keep_small_pictures(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PICTURED", 2)
    task = task_of(root)
    model, batch = batch_of(task, "test_stere", 4)
    with torch.no_grad():
        kept = ["preview_rgb" in r.values for r in task.records(model, batch)]
    assert kept == [True, False, True, False]


def test_scores_do_not_depend_on_the_batch(root: Path) -> None:
    task = task_of(root)
    model, batch = batch_of(task, "test_stere", 4)
    split = task.splits()["test_stere"]
    with torch.no_grad():
        together = task.records(model, batch)
        alone = [
            task.records(model, split.collate([split.item(i, item_rng(1, 0, i))]))[0]
            for i in range(4)
        ]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.values["mae"], b.values["mae"], atol=1e-4)
        assert b.values["milliseconds"] > 0


def test_evaluation_at_256_scores_at_256(root: Path) -> None:
    task = task_of(root, "data.eval_size=256")
    _, batch = batch_of(task, "test_stere", 1)
    assert batch["truth"][0].shape == (256, 256)


def test_loss_has_its_parts_and_a_gradient(root: Path) -> None:
    task = task_of(root)
    model, batch = batch_of(task, "train", 4)
    losses = task.loss(model.train(), batch, torch.Generator())
    assert losses["loss"].item() == pytest.approx((losses["bce"] + losses["iou"]).item())
    losses["loss"].backward()
    assert model.get_parameter("encoder_depth.stages.0.0.conv.weight").grad is not None


def test_training_order_drops_the_incomplete_batch(root: Path) -> None:
    train = task_of(root).splits()["train"]
    batches = train.batches(0, order_rng(1, 0))
    assert {len(b) for b in batches} == {4}


# -- command line -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    good(
        *("train", "task=rgbd_sod", "preset=sample", f"data.root={root}", *TINY, f"out={out}"),
        *("trainer.epochs=1", "tracking.enabled=false"),
    )
    return only_run(out).path


def test_prediction_writes_maps_of_the_images_size_that_can_be_scored_again(
    trained: Path, root: Path, tmp_path: Path
) -> None:
    folder = root / "RGBD_for_test" / "STERE"
    told = good("predict", f"weights={trained}", f"input={folder}", f"predict.out={tmp_path / 'p'}")
    assert "latency at batch 1" in told.out
    maps = sorted((tmp_path / "p" / "dense").rglob("*.png"))
    images = sorted((folder / "RGB").glob("*.jpg"))
    assert [p.stem for p in maps] == [p.stem for p in images]
    for found, image in zip(maps, images, strict=True):
        with Image.open(found) as a, Image.open(image) as b:
            assert (a.mode, a.size) == ("L", b.size)
    good(
        *("eval", "task=rgbd_sod", "preset=sample", f"data.root={root}"),
        *(f"predict.foreign={tmp_path / 'p' / 'dense'}", f"predict.out={tmp_path / 'again'}"),
    )
    good("eval", f"weights={trained}", f"predict.out={tmp_path / 'own'}")
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    own = json.loads((tmp_path / "own" / "metrics.json").read_text())
    # Batches of four and of one may round a pixel to another of the 256 levels.
    assert own == pytest.approx({k: again[k] for k in own}, abs=1e-4)
    assert (tmp_path / "again" / "comparison.tex").is_file()


def test_prediction_on_one_pair(trained: Path, root: Path, tmp_path: Path) -> None:
    folder = root / "RGBD_for_test" / "STERE"
    image = sorted((folder / "RGB").iterdir())[0]
    depth = sorted((folder / "depth").iterdir())[0]
    good(
        *("predict", f"weights={trained}", f"input=[{image},{depth}]"),
        f"predict.out={tmp_path / 'p'}",
    )
    assert [p.stem for p in (tmp_path / "p" / "dense").rglob("*.png")] == [image.stem]


def test_an_image_without_depth_is_refused_unless_asked_for(
    trained: Path, root: Path, tmp_path: Path
) -> None:
    image = tmp_path / "alone.jpg"
    image.write_bytes(sorted((root / "RGBD_for_test" / "STERE" / "RGB").iterdir())[0].read_bytes())
    words = ("predict", f"weights={trained}", f"input={image}", f"predict.out={tmp_path / 'p'}")
    refused: Result = run_zoo(*words)
    assert refused.code == 2
    assert "data.depth=zeros" in refused.err
    assert not (tmp_path / "p").exists()
    good(*words, "data.depth=zeros")
    assert (tmp_path / "p" / "dense" / "alone.png").is_file()


def test_stretched_maps_use_the_whole_range(trained: Path, root: Path, tmp_path: Path) -> None:
    folder = root / "RGBD_for_test" / "STERE"
    good(
        *("predict", f"weights={trained}", f"input={folder}", f"predict.out={tmp_path / 'p'}"),
        "predict.minmax=true",
    )
    for path in (tmp_path / "p" / "dense").rglob("*.png"):
        with Image.open(path) as image:
            assert image.getextrema() == (0, 255)


def test_polarity_of_training_travels_with_the_weights(trained: Path) -> None:
    facts = checkpoint.best(trained / "checkpoints").meta["facts"]
    assert facts["default_polarity"] == "near_dark"
    records = load_records(trained / "records" / "test_stere.npz")
    assert len(records) == 4


@pytest.mark.slow
def test_sample_data_are_learnt_and_need_both_inputs(tmp_path: Path) -> None:
    words = ("task=rgbd_sod", "tracking.enabled=false")
    good("train", *words, f"out={tmp_path / 'both'}")
    good("train", *words, "data.depth=zeros", f"out={tmp_path / 'blind'}")
    both = only_run(tmp_path / "both").results()["test_sample/iou"]
    blind = only_run(tmp_path / "blind").results()["test_sample/iou"]
    assert both >= 0.8
    assert blind <= both - 0.15
