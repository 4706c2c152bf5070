"""The task as the engine sees it, and from the command line: train, evaluate, predict, prompts."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from tests import killing
from tests.domains.her_seg.fakes import FakeStack, settings, write_folders, write_frames
from tests.killing import Kill
from tests.running import Result, good, only_run, run_zoo
from zoo import registry
from zoo.config import resolve
from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.losses import mask_loss
from zoo.domains.medical.her_seg.task import HerSeg
from zoo.errors import ConfigError, DataError
from zoo.evaluation import load_records
from zoo.runs import Run
from zoo.task import Record

RNG = np.random.default_rng(0)
TINY = ["preset=sample", "model.image_size=48", "model.dim=24", "model.decoder_dim=32"]
TINY += ["model.decoder_mlp=16", "model.depths=[1,1,1,1]", "trainer.batch_size=3"]
TINY += ["trainer.eval_every=1"]
NO_TRACKING = "tracking.enabled=false"
FACTS: dict[str, Any] = {"classes": ["foreground"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("folders") / "set")


@pytest.fixture(scope="module")
def trained(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs")
    good("train", *words_of(folders, "trainer.epochs=2", f"out={out}", NO_TRACKING))
    return only_run(out)


def words_of(root: Path | None, *words: str) -> list[str]:
    return ["task=her_seg", *TINY, *([f"data.root={root}"] if root else []), *words]


def task_of(root: Path | None = None, *words: str) -> HerSeg:
    config = resolve(words_of(root, *words)).config
    assert isinstance(config, Config)
    return HerSeg(config)


def built(task: HerSeg) -> tuple[Any, dict[str, Any], nn.Module]:
    splits = task.splits()
    facts = json.loads(json.dumps(task.fit(splits["train"])))
    torch.manual_seed(0)
    return splits, facts, task.model(facts)


def batch_of(split: Any, count: int = 3) -> dict[str, Any]:
    made: dict[str, Any] = split.collate([split.item(i, RNG) for i in range(count)])
    return made


def records_of(task: HerSeg, model: nn.Module, split: Any) -> list[Record]:
    model.eval()
    with torch.no_grad():
        return [
            record
            for i in range(len(split.ids))
            for record in task.records(model, split.collate([split.item(i, RNG)]))
        ]


# -- settings -----------------------------------------------------------------------------------


def test_the_paper_s_preset_is_the_official_recipe() -> None:
    config = resolve(["task=her_seg", "preset=paper", "data.root=x"]).config
    assert isinstance(config, Config)
    assert (config.model.dim, config.model.image_size, config.model.decoder_dim) == (96, 1024, 256)
    assert (config.optim.lr, config.optim.optimiser, config.optim.weight_decay) == (1e-3, "adam", 0)
    assert (config.optim.schedule, config.optim.decay) == ("exponential", 0.98)
    assert (config.trainer.epochs, config.trainer.batch_size) == (200, 16)
    assert (config.optim.dice_weight, config.optim.dice) == (0.8, "batch")
    assert (config.data.augment, config.data.fit, config.predict.native) == (
        "official", "squash", False,
    )  # fmt: skip
    assert config.optim.select == "loss"
    assert config.trainer.clip_norm is None
    assert config.video.momentum == 0


@pytest.mark.parametrize("preset", list(registry.tasks()["her_seg"].presets))
def test_every_preset_is_valid_and_the_samples_are_small(preset: str) -> None:
    config = resolve(["task=her_seg", f"preset={preset}", "data.root=x"]).config
    task = HerSeg(config)
    count = sum(p.numel() for p in task.model(FACTS).parameters())
    assert count <= (2_000_000 if preset.startswith("sample") else 3_526_364)
    assert config.model.image_size % 16 == 0


@pytest.mark.parametrize(("select", "direction"), [("dice", "max"), ("loss", "min")])
def test_selection(select: str, direction: str) -> None:
    assert task_of(None, f"optim.select={select}").selection() == (select, direction)


def test_adam_as_published_and_adamw_without_decay_of_norms() -> None:
    model = task_of().model(FACTS)
    task = task_of(None, "optim.optimiser=adam", "optim.lr=0.01", "optim.weight_decay=0")
    adam = task.optimisers(model)["adam"].optimiser
    (group,) = adam.param_groups
    assert type(adam) is torch.optim.Adam
    assert len(group["params"]) == len(list(model.parameters()))
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.01, (0.9, 0.999), 0)
    task = task_of(None, "optim.optimiser=adamw", "optim.weight_decay=0.1")
    first, second = task.optimisers(model)["adamw"].optimiser.param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.1, 0)
    assert {p.ndim for p in second["params"]} == {1}
    assert min(p.ndim for p in first["params"]) == 2
    assert len(first["params"]) + len(second["params"]) == len(list(model.parameters()))


def test_schedules() -> None:
    model = nn.Linear(1, 1)
    task = task_of(None, "optim.schedule=exponential", "optim.decay=0.98", "optim.warmup_steps=0")
    factor = next(iter(task.optimisers(model).values())).factor
    assert [factor(e, 3, 7) for e in (0, 1, 10)] == pytest.approx([1, 0.98, 0.98**10])
    task = task_of(None, "optim.schedule=cosine", "optim.warmup_steps=10", "trainer.epochs=10")
    factor = next(iter(task.optimisers(model).values())).factor
    assert factor(0, 0, 10) == pytest.approx(0.1)
    assert factor(0, 4, 10) == pytest.approx(0.5, abs=0.01)
    assert factor(5, 0, 10) == pytest.approx(0.5)
    assert 0 < factor(9, 9, 10) < 0.001


def test_a_pretrained_encoder_may_rest_first(folders: Path) -> None:
    task = task_of(folders, "optim.frozen_encoder=2")
    phases = [task.phase(epoch, 0) for epoch in range(3)]
    assert phases[0] == phases[1]
    assert phases[0] is not None
    assert phases[0].frozen == phases[0].still == ("image_encoder", "neck")
    assert phases[2] is None
    assert set(phases[0].step) == set(task.optimisers(nn.Linear(1, 1)))
    model = task.model(FACTS)
    assert {"image_encoder", "neck"} <= {n for n, _ in model.named_children()}


# -- losses -------------------------------------------------------------------------------------


def test_loss_is_that_of_the_settings(folders: Path) -> None:
    task = task_of(folders, "optim.dice_weight=0.6", "optim.dice=batch")
    splits, _, model = built(task)
    batch = batch_of(splits["train"])
    model.eval()
    found = task.loss(model, batch, torch.Generator())
    logits = model(batch["image"])
    expected = mask_loss(logits, batch["mask"], weight=0.6)
    torch.testing.assert_close(found["loss"], expected.total)
    parts = 0.6 * found["dice_loss"] + 0.4 * found["focal_loss"]
    torch.testing.assert_close(found["loss"], parts)
    assert not found["soft_iou"].requires_grad
    image = task_of(folders, "optim.dice_weight=0.6", "optim.dice=image")
    per_image = mask_loss(logits, batch["mask"], weight=0.6, per_image=True)
    torch.testing.assert_close(image.loss(model, batch, torch.Generator())["loss"], per_image.total)


def test_every_part_that_is_used_learns(folders: Path) -> None:
    task = task_of(folders)
    splits, _, model = built(task)
    for name, p in model.named_parameters():
        if name.endswith("conv3.bn.weight"):  # zero at first, which hides what lies before it
            nn.init.ones_(p)
    task.loss(model.train(), batch_of(splits["train"]), torch.Generator())["loss"].backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    unused = ("point_embeddings", "not_a_point_embed", "mask_downscaling", "hypernetworks_mlps.1",
              "hypernetworks_mlps.2")  # fmt: skip
    # The key's bias cancels in a softmax.
    assert not [n for n in still if not any(u in n for u in unused) and "k_proj.bias" not in n]
    assert any("mask_downscaling" in n for n in still)


def test_padding_of_a_letterbox_is_not_learnt(folders: Path) -> None:
    task = task_of(folders, "data.fit=letterbox", "data.augment=none")
    splits, _, model = built(task)
    batch = batch_of(splits["train"])
    assert not batch["valid"].all()
    before = task.loss(model.eval(), batch, torch.Generator())["loss"]
    batch["mask"][~batch["valid"]] = 1
    torch.testing.assert_close(task.loss(model, batch, torch.Generator())["loss"], before)


@pytest.mark.parametrize("kind", ["points", "boxes", "mixed"])
def test_prompts_are_drawn_in_training_and_teach_their_encoder(folders: Path, kind: str) -> None:
    task = task_of(folders, f"optim.prompts={kind}")
    splits, _, model = built(task)
    model.train()
    for _ in range(3):  # mixed ones may miss a kind in one batch
        task.loss(model, batch_of(splits["train"], 6), torch.Generator())["loss"].backward()
    moved = {
        n.split(".")[2]
        for n, p in model.named_parameters()
        if "point_embeddings" in n and p.grad is not None and p.grad.any()
    }
    expected = {"points": {"0", "1"}, "boxes": {"2", "3"}, "mixed": {"0", "1", "2", "3"}}[kind]
    assert expected - {"0"} <= moved <= expected  # outside points are drawn now and then


def test_prompts_of_several_classes_are_refused(tmp_path: Path) -> None:
    task = task_of(None, "optim.prompts=boxes")
    with pytest.raises(ConfigError, match="there are 2 \\(cup, disc\\)"):
        task.model({"classes": ["cup", "disc"]})


# -- records and scores -------------------------------------------------------------------------


def test_records_scores_and_intervals(folders: Path) -> None:
    task = task_of(folders)
    splits, facts, model = built(task)
    records = records_of(task, model, splits["test"])
    assert [r.id for r in records] == list(splits["test"].ids)
    score = task.score(records, facts)
    expected = {"dice", "iou", "dice_official", "iou_official", "sensitivity", "specificity"}
    expected |= {"hd95", "asd", "boundary_f", "loss", "units", "both_empty", "truth_empty"}
    assert expected <= set(score)
    assert score["units"] == 2
    intervals = task.intervals(records, facts)
    assert set(intervals) <= set(score)
    low, high = intervals["dice"]
    assert low <= score["dice"] <= high
    assert task.intervals(records[:1], facts) == {}  # of a single patient nothing is known
    assert {t for t, _ in task.tables(records, facts)} >= {"How it was scored"}
    assert [n for n, _ in task.figures(records, facts)] == ["examples", "scores"]


def test_validation_in_training_is_quick_and_evaluation_is_whole(folders: Path) -> None:
    task = task_of(folders)
    splits, facts, model = built(task)
    (first, _) = records_of(task, model, splits["val"])
    assert "dice" in first.values
    assert "hd95" not in first.values
    assert "panel_titles" not in first.values
    serving = task_of(folders)
    serving.serving = True
    splits = serving.splits()
    (first, _) = records_of(serving, model, splits["val"])
    assert {"hd95", "panel_titles"} <= set(first.values)
    assert task.score([first], facts)["units"] == 1


def test_several_classes_have_names_in_scores(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "set", classes=2)
    task = task_of(root, "data.labels={cup: 1, disc: 2}")
    splits, facts, model = built(task)
    assert facts["classes"] == ["cup", "disc"]
    assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 3, 48, 48)
    score = task.score(records_of(task, model, splits["test"]), facts)
    assert score["dice"] == pytest.approx((score["dice_cup"] + score["dice_disc"]) / 2)
    assert {"hd95_cup", "iou_disc"} <= set(score)
    loss = task.loss(model, batch_of(splits["train"]), torch.Generator())["loss"]
    loss.backward()
    assert "Classes" in dict(task.tables(records_of(task, model, splits["test"]), facts))


def test_without_masks_nothing_is_scored() -> None:
    with pytest.raises(DataError, match="nothing of the split has a mask"):
        task_of().score([Record("a", "a", {})], FACTS)


def test_export_has_the_square_and_any_number_of_pictures(folders: Path) -> None:
    task = task_of(folders)
    _, facts, model = built(task)
    export = task.export(model, facts)
    (image,) = export.inputs.values()
    assert model.eval()(image).shape == (2, 1, 48, 48)
    assert export.dynamic == {"image": {0: "batch"}}
    assert not export.why_not


def test_the_official_form_of_weights_comes_back(folders: Path) -> None:
    task = task_of(folders)
    _, _, model = built(task)
    official = {f"module.{k}": v for k, v in model.state_dict().items() if "normalise" not in k}
    found = task.convert(official)
    fresh = task.model(FACTS)
    fresh.load_state_dict(found.state, strict=False)
    for key, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


# -- the command line ---------------------------------------------------------------------------


def test_a_run_leaves_scores_pictures_and_a_notice(trained: Run) -> None:
    results = trained.results()
    assert {"test/dice", "test/hd95", "test/boundary_f"} <= set(results)
    names = {p.name for p in (trained.path / "figures").iterdir()}
    assert {"test_examples.png", "test_scores.png"} <= names
    report = (trained.path / "report.html").read_text()
    assert "How it was scored" in report
    assert "Not for diagnosis" in report
    assert "p8.png" not in report
    logged = {name for row in trained.metrics() for name in row["values"]}
    assert {"train/soft_iou", "train/dice_loss", "train/focal_loss", "val/dice"} <= logged


def test_evaluation_gives_the_run_s_scores_again(trained: Run, tmp_path: Path) -> None:
    good("eval", f"weights={trained.path}", f"predict.out={tmp_path / 'e'}")
    assert json.loads((tmp_path / "e" / "metrics.json").read_text()) == trained.results()
    good("eval", f"weights={trained.path}", "--split", "val", f"predict.out={tmp_path / 'v'}")
    assert "val/hd95" in json.loads((tmp_path / "v" / "metrics.json").read_text())
    assert len(load_records(tmp_path / "v" / "val" / "records.npz")) == 2


def predicted(trained: Run, source: Path, out: Path, *words: str) -> Result:
    return good("predict", f"weights={trained.path}", f"input={source}", f"predict.out={out}",
                *words)  # fmt: skip


def test_masks_are_written_at_the_image_s_size(trained: Run, folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    shown = predicted(trained, folders / "images", out, "predict.instances=true")
    rows = pd.read_csv(out / "predictions.csv")
    assert len(rows) == 10
    assert set(rows["kind"]) == {"image"}
    for name in ("p0", "p1"):
        with Image.open(folders / "images" / f"{name}.png") as image:
            size = image.size
        (mask,) = [p for p in out.rglob(f"{name}*.png") if "-" not in p.stem]
        written = Image.open(mask)
        assert (written.size, written.mode) == (size, "L")
        assert set(np.unique(np.asarray(written))) <= {0, 255}
        (overlay,) = out.rglob(f"{name}*-overlay.png")
        assert Image.open(overlay).size == size
        assert len(list(out.rglob(f"{name}*-objects.png"))) == 1
    assert "each picture was stretched to 48 x 48" in shown.out
    assert "Not for diagnosis" in shown.out
    assert (out / "NOTICE.txt").is_file()


@pytest.mark.parametrize("fit", ["letterbox", "tiles"])
def test_the_fit_can_be_chosen_at_prediction(
    trained: Run, folders: Path, tmp_path: Path, fit: str
) -> None:
    image = folders / "images" / "p1.png"
    shown = predicted(trained, image, tmp_path / "p", f"data.fit={fit}")
    word = {"letterbox": "fitted into 48 x 48", "tiles": "cut into tiles of 48 x 48"}[fit]
    assert word in shown.out


def test_prompts_from_the_command_line_change_the_answer_and_are_warned_of(
    trained: Run, folders: Path, tmp_path: Path
) -> None:
    image = folders / "images" / "p0.png"
    words = ["predict.points=[[20,20,1],[2,2,0]]", "predict.boxes=[[5,5,40,40]]"]
    shares = []
    for i, given in enumerate(([], words)):
        shown = predicted(trained, image, tmp_path / str(i), *given)
        row = pd.read_csv(tmp_path / str(i) / "predictions.csv").iloc[0]
        shares.append(row["share_foreground"])
        assert ("never learnt what they mean" in shown.out) == bool(given)
        assert row["prompts"] == ("given" if given else "none")
    listed = {"p0": {"points": [[20, 20, 1]]}, "none": {"points": [[1, 1, 1]]}}
    (tmp_path / "p.json").write_text(json.dumps(listed))
    shown = predicted(trained, image, tmp_path / "j", f"predict.prompts={tmp_path / 'p.json'}")
    assert "'none' is none of the inputs" in shown.out


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("predict.points=[[500,2,1]]", "x=500, y=2 lies outside of"),
        ("predict.mask_prompt=nowhere.png", "nowhere.png"),
        ("predict.prompts=nowhere.json", "predict.prompts=nowhere.json: cannot be read as json"),
        ("predict.points=[[1,2]]", "predict.points"),
    ],
)
def test_wrong_prompts_end_in_one_line(
    trained: Run, folders: Path, tmp_path: Path, word: str, told: str
) -> None:
    image = folders / "images" / "p0.png"
    result = run_zoo(
        "predict", f"weights={trained.path}", f"input={image}", f"predict.out={tmp_path}", word
    )
    assert result.code == 2
    assert told in result.err
    assert "Traceback" not in result.err


def test_a_clip_is_smoothed_if_asked_and_the_effect_told(trained: Run, tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "clip")
    row = "data.layout=frames"  # otherwise a folder of pictures is as many pictures
    plain = predicted(trained, frames, tmp_path / "plain", row)
    assert "smoothed with" not in plain.out
    shown = predicted(trained, frames, tmp_path / "smooth", row, "video.momentum=0.7")
    (line,) = [t for t in shown.out.splitlines() if "smoothed with momentum 0.7" in t]
    single, smooth = (float(v) for v in re.findall(r"\b\d\.\d{3}\b", line)[:2])
    rows = [pd.read_csv(tmp_path / n / "predictions.csv").iloc[0] for n in ("plain", "smooth")]
    assert (rows[0]["kind"], rows[0]["pictures"]) == ("clip", 6)
    assert rows[1]["steadiness_single"] == pytest.approx(rows[0]["steadiness"])
    assert smooth == pytest.approx(rows[1]["steadiness"], abs=1e-3)
    assert single == pytest.approx(rows[0]["steadiness"], abs=1e-3)
    masks = [p for p in (tmp_path / "plain").rglob("*.png") if "overlay" not in p.name]
    assert {p.stem.split("_")[0] for p in masks} >= {f"frame{i}" for i in range(6)}


def test_a_volume_is_predicted_in_its_own_geometry(trained: Run, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    affine = np.array([[-2.0, 0, 0, 10], [0, 0, 1, -5], [0, -1.5, 0, 7], [0, 0, 0, 1]])
    values = np.random.default_rng(0).normal(size=(20, 24, 6)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "scan.nii.gz")
    predicted(trained, tmp_path / "scan.nii.gz", tmp_path / "p")
    (path,) = (tmp_path / "p").rglob("scan*.nii.gz")
    found = nibabel.load(path)
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    assert found.shape == values.shape
    assert set(np.unique(np.asarray(found.dataobj))) <= {0, 1}
    row = pd.read_csv(tmp_path / "p" / "predictions.csv").iloc[0]
    assert row["kind"] == "volume"
    assert len(list((tmp_path / "p").rglob("*-overlay.png"))) == 1


@pytest.fixture
def broken(folders: Path, tmp_path: Path) -> Path:
    root = tmp_path / "broken"
    shutil.copytree(folders, root)
    return root


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ("size", "p2.png"),
        ("missing", "p2"),
        ("corrupt", "p2.png"),
        ("range", "p2.png"),
    ],
)
def test_broken_data_end_a_training_in_one_line(
    broken: Path, out: Path, spoil: str, told: str
) -> None:
    mask = broken / "masks" / "p2.png"
    words = []
    if spoil == "size":
        Image.open(mask).resize((30, 30)).save(mask)
    elif spoil == "missing":
        mask.unlink()
    elif spoil == "corrupt":
        image = broken / "images" / "p2.png"
        image.write_bytes(image.read_bytes()[:60])
    else:
        words = ["data.labels={thing: 255}"]
        Image.fromarray(np.full((48, 48), 7, np.uint8)).save(mask)
    words = words_of(broken, "trainer.epochs=1", f"out={out}", NO_TRACKING, *words)
    result = run_zoo("train", *words)
    assert result.code == 2, result.err
    assert told in result.err
    assert "Traceback" not in result.err
    assert len([t for t in result.err.splitlines() if t.startswith("error")]) == 1


def test_what_cannot_be_read_is_skipped_and_told_if_asked(
    trained: Run, folders: Path, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    shutil.copytree(folders / "images", root)
    body = (root / "p3.png").read_bytes()
    (root / "p3.png").write_bytes(body[: len(body) // 2])
    words = [f"weights={trained.path}", f"input={root}", f"predict.out={tmp_path / 'p'}"]
    result = run_zoo("predict", *words)
    assert result.code == 2
    assert "p3.png" in result.err
    shown = good("predict", *words, "data.on_error=skip")
    assert [t for t in shown.out.splitlines() if "skipped" in t and "p3.png" in t]
    assert len(pd.read_csv(tmp_path / "p" / "predictions.csv")) == 9


def test_a_stack_that_breaks_while_it_is_read_is_left_out_if_asked(folders: Path) -> None:
    class Broken(FakeStack):
        def picture(self, index: int) -> np.ndarray:
            msg = "a.png: is broken"
            raise DataError(msg)

    good_one = FakeStack("b", [np.zeros((48, 48, 3), np.float32)], [np.zeros((48, 48), np.uint8)])
    batch = {"stacks": [Broken("a", [np.zeros((48, 48, 3))]), good_one]}
    task = task_of(folders)
    model = task.model(FACTS).eval()
    with pytest.raises(DataError, match="is broken"):
        task.records(model, batch)
    task = task_of(folders, "data.on_error=skip")
    with torch.no_grad():
        records = task.records(model, batch)
    assert [r.id for r in records] == ["b"]
    assert "skipped a.png: is broken" in task.remarks(records, FACTS)
    assert len(dict(task.tables(records, FACTS))["Left out, since a file cannot be read"]) == 1


def test_a_killed_training_ends_with_the_same_weights(folders: Path, tmp_path: Path) -> None:
    words = words_of(folders, "trainer.epochs=2", "trainer.checkpoint_every=1", NO_TRACKING)
    whole, _ = killing.undisturbed(words, tmp_path / "whole")
    kill = Kill(target="zoo.engine:Trainer._update", call=3, number=signal.SIGTERM)
    run, hits = killing.survive(words, tmp_path / "killed", [kill])
    assert hits == 1
    assert killing.outcome(run) == killing.outcome(whole)


@pytest.mark.slow
def test_a_few_epochs_learn(folders: Path, out: Path) -> None:
    words = words_of(folders, "trainer.epochs=30", "trainer.eval_every=30", f"out={out}")
    good("train", *words, "model.decoder_dim=64", "model.depths=[2,2,2,2]", NO_TRACKING)
    assert only_run(out).results()["test/dice"] > 0.6


def test_settings_helper_uses_the_sample_preset() -> None:
    assert settings().preset == "sample"
