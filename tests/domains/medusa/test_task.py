"""The task as the engine sees it: records, scores, phases, resting maps, predictions, privacy."""

from __future__ import annotations

import itertools
import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests import killing
from tests.killing import Kill
from tests.running import good, only_run, run_zoo, series
from zoo import checkpoint
from zoo.config import resolve
from zoo.domains.medical.medusa import task as task_module
from zoo.domains.medical.medusa.config import Config
from zoo.domains.medical.medusa.metrics import wilson
from zoo.domains.medical.medusa.task import MedusaTask
from zoo.errors import ConfigError, DataError, WeightsError
from zoo.evaluation import load_records
from zoo.privacy import alias
from zoo.task import Record

RNG = np.random.default_rng(0)
TINY = [
    "preset=sample",
    "model.image_size=48",
    "model.body_size=32",
    "model.width=4",
    "model.body_width=2",
    "trainer.batch_size=4",
]
NO_TRACKING = "tracking.enabled=false"
FACTS: dict[str, Any] = {"classes": ["negative", "positive"], "positive": 1}


def words_of(root: Path | None, *words: str) -> list[str]:
    return ["task=medusa", *TINY, *([f"data.root={root}"] if root else []), *words]


def task_of(root: Path | None = None, *words: str) -> MedusaTask:
    config = resolve(words_of(root, *words)).config
    assert isinstance(config, Config)
    return MedusaTask(config)


def built(task: MedusaTask) -> tuple[Any, dict[str, Any], nn.Module]:
    splits = task.splits()
    facts = task.fit(splits["train"])
    torch.manual_seed(0)
    return splits, facts, task.model(facts)


def whole(split: Any) -> dict[str, Any]:
    collated: dict[str, Any] = split.collate([split.item(i, RNG) for i in range(len(split.ids))])
    return collated


def record(name: str, label: int, positive: float, group: str = "", **more: Any) -> Record:
    values = {"probabilities": np.array([1 - positive, positive]), "label": np.array(label)}
    values |= {"loss": np.array(0.5)} if label >= 0 else {}
    return Record(name, group or name, values | {k: np.asarray(v) for k, v in more.items()})


# -- records and scores -------------------------------------------------------------------------


def test_records_of_a_batch_are_those_of_single_radiographs(covidx: Path) -> None:
    task = task_of(covidx)
    splits, _, model = built(task)
    test = splits["test"]
    model.eval()
    with torch.no_grad():
        packed = task.records(model, whole(test))
        single = [
            task.records(model, test.collate([test.item(i, RNG)]))[0] for i in range(len(test.ids))
        ]
    for a, b in zip(packed, single, strict=True):
        assert (a.id, a.group, a.values.keys()) == (b.id, b.group, b.values.keys())
        for key in ("probabilities", "loss", "label"):
            np.testing.assert_allclose(a.values[key], b.values[key], atol=2e-6)
        for key in ("body_map", "scale_maps"):  # bytes: rounding may turn one over
            apart = a.values[key].astype(int) - b.values[key].astype(int)
            assert np.abs(apart).max() <= 1


def test_records_of_a_test_split_have_their_maps_and_of_validation_none(covidx: Path) -> None:
    pytest.importorskip("captum")
    task = task_of(covidx)
    splits, _, model = built(task)
    model.eval()
    with torch.no_grad():
        tested = task.records(model, whole(splits["test"]))
        validated = task.records(model, whole(splits["val"]))
    assert all("preview" not in r.values and "body_map" not in r.values for r in validated)
    for r, index in zip(tested, range(len(tested)), strict=True):
        item = splits["test"].item(index, RNG)
        values = r.values
        assert values["probabilities"].sum() == pytest.approx(1)
        assert values["preview"].shape == item["preview"].shape
        assert values["body_map"].shape == (32, 32)
        assert values["scale_maps"].shape == (4, 48, 48)
        assert values["gradcam"].min() >= 0
        assert str(values["sex"]) in "FM"
        assert int(values["label"]) == item["label"]
        assert ("lungs" in values) == ("cam_in_lungs" in values) == (item["mask"] is not None)
        if item["mask"] is not None:
            share = float(item["mask"].mean())
            assert values["lung_share"] == pytest.approx(share)
            # A body with fresh weights draws a nearly even map.
            assert values["map_in_lungs"] == pytest.approx(share, abs=0.1)
    assert {"lungs" in r.values for r in tested} == {True, False}


@pytest.mark.parametrize("variant", ["resnet2", "resnet0_R", "backbone_only"])
def test_every_variant_has_records(covidx: Path, variant: str) -> None:
    task = task_of(covidx, f"model.variant={variant}")
    splits, facts, model = built(task)
    with torch.no_grad():
        records = task.records(model.eval(), whole(splits["test"]))
    values = records[0].values
    assert ("body_map" in values) == (variant != "backbone_only")
    assert len(values.get("scale_maps", ())) == (0 if variant == "backbone_only" else 1)
    assert "attention" in dict(task.figures(records, facts))


def test_scores_and_their_intervals(covidx: Path) -> None:
    task = task_of(covidx)
    splits, facts, model = built(task)
    with torch.no_grad():
        records = task.records(model.eval(), whole(splits["test"]))
    facts = json.loads(json.dumps(facts | task.settle(records, facts)))
    score = task.score(records, facts)
    assert {
        "accuracy",
        "sensitivity",
        "specificity",
        "auc",
        "auprc",
        "calibration_error",
        "sensitivity_negative",
        "ppv_negative",
        "sensitivity_positive",
        "ppv_positive",
        "sensitivity_at_point",
        "specificity_at_point",
        "loss",
        "sensitivity_plus_accuracy",
    } <= set(score)
    assert score["loss"] == pytest.approx(np.mean([r.values["loss"] for r in records]))
    assert score["sensitivity_plus_accuracy"] == score["sensitivity"] + score["accuracy"]
    intervals = task.intervals(records, facts)
    assert set(intervals) <= set(score)
    assert {"auc", "accuracy", "ppv_positive", "sensitivity_at_point"} <= set(intervals)
    for name, (low, high) in intervals.items():
        assert low <= score[name] + 1e-12, name
        assert high >= score[name] - 1e-12, name
    patients = len({r.group for r in records})
    assert patients < len(records)
    assert intervals["accuracy"] == pytest.approx(wilson(score["accuracy"], patients))
    assert {"Classes", "Operating point", "Subgroups"} <= set(dict(task.tables(records, facts)))


@pytest.mark.parametrize(
    ("select", "name", "direction"),
    [
        ("sensitivity+accuracy", "sensitivity_plus_accuracy", "max"),
        ("auc", "auc", "max"),
        ("accuracy", "accuracy", "max"),
        ("loss", "loss", "min"),
    ],
)
def test_selection(select: str, name: str, direction: str) -> None:
    task = task_of(None, f"optim.select={select}")
    assert task.selection() == (name, direction)
    assert name in task.score([record("a", 0, 0.2), record("b", 1, 0.6)], FACTS)


def test_radiographs_without_labels_are_left_out_and_nothing_else() -> None:
    task = task_of()
    known = [record("a", 0, 0.2), record("b", 1, 0.6), record("c", 1, 0.3)]
    unknown = record("d", -1, 0.9)
    assert task.score([*known, unknown], FACTS) == task.score(known, FACTS)
    with pytest.raises(DataError, match="no radiograph of the split has a label"):
        task.score([unknown], FACTS)
    (row,) = task.rows([unknown], FACTS)
    assert (row["predicted"], row["label"], row["decision"]) == ("positive", "", "")


# -- operating point ----------------------------------------------------------------------------


def test_the_point_of_validation_decides_in_rows_scores_and_figures() -> None:
    task = task_of(None, "optim.sensitivity=0.6")
    val = [record(f"v{i}", 1, p, group=f"p{i // 2}") for i, p in enumerate((0.3, 0.4, 0.8))]
    val += [record(f"n{i}", 0, p) for i, p in enumerate((0.1, 0.35, 0.6, 0.2))]
    settled = task.settle(val, FACTS)
    point = settled["operating_point"]
    assert point["threshold"] == pytest.approx(0.375)
    assert (point["sensitivity"], point["specificity"]) == (pytest.approx(2 / 3), 0.75)
    assert (point["class"], point["positives"], point["positive_patients"]) == ("positive", 3, 2)
    facts = json.loads(json.dumps(FACTS | settled))
    test = [record("a", 1, 0.38), record("b", 1, 0.2), record("c", 0, 0.7), record("d", 0, 0.3)]
    score = task.score(test, facts)
    assert (score["sensitivity_at_point"], score["specificity_at_point"]) == (0.5, 0.5)
    assert "sensitivity_at_point" not in task.score(test, FACTS)
    rows = task.rows(test, facts)
    assert [r["decision"] for r in rows] == ["positive", "not positive"] * 2
    assert [r["predicted"] for r in rows] == ["negative", "negative", "positive", "negative"]
    assert "group" not in rows[0]
    assert rows[0]["alias"] == alias("a")


def test_without_a_positive_there_is_no_point() -> None:
    task = task_of()
    assert task.settle([record("a", 0, 0.3)], FACTS) == {}
    assert task.settle([record("a", -1, 0.3)], FACTS) == {}
    score = task.score([record("a", 0, 0.3)], FACTS)
    assert score["accuracy"] == 1.0
    assert np.isnan(score["auc"])


def test_the_point_is_stored_with_the_weights_and_used_by_eval(
    covidx: Path, out: Path, tmp_path: Path
) -> None:
    good("train", *words_of(covidx, "trainer.epochs=2", f"out={out}", NO_TRACKING))
    run = only_run(out)
    point = checkpoint.best(run.checkpoints).meta["facts"]["operating_point"]
    val = good("eval", f"weights={run.path}", "--split", "val", f"predict.out={tmp_path / 'v'}")
    assert "sensitivity_at_point" in val.out
    records = load_records(tmp_path / "v" / "val" / "records.npz")
    task = task_of(covidx)
    scored = task.score(records, FACTS | {"operating_point": point})
    assert scored["sensitivity_at_point"] == point["sensitivity"] >= 0.95
    assert scored["specificity_at_point"] == point["specificity"]
    rows = pd.read_csv(run.path / "predictions" / "test" / "predictions.csv")
    above = rows["p_positive"] >= point["threshold"]
    assert (above == (rows["decision"] == "positive")).all()
    assert "Operating point" in (run.path / "report.html").read_text()


# -- phases and losses --------------------------------------------------------------------------


def _moved(a: checkpoint.Checkpoint, b: checkpoint.Checkpoint, *prefixes: str) -> set[str]:
    return {
        k.split(".")[-1]
        for k in a.model
        if k.startswith(prefixes) and not torch.equal(a.model[k], b.model[k])
    }


def test_phases_move_their_half_and_batch_statistics_go_on(covidx: Path, out: Path) -> None:
    words = words_of(covidx, "trainer.epochs=4", "trainer.keep_last=9", "optim.alternate=3")
    good("train", *words, "model.head_init=he", f"out={out}", NO_TRACKING)
    run = only_run(out)
    saved = [checkpoint.load(p) for p in sorted(run.checkpoints.glob("step-*"))]
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    for before, after in itertools.pairwise(saved[:3]):  # epochs 1 and 2: the backbone
        assert _moved(before, after, "body.", "heads.") == set()
        assert _moved(before, after, "backbone.") == {"weight", "bias"} | statistics
    # Epoch 3: body and heads.
    assert _moved(saved[2], saved[3], "backbone.") == statistics
    assert _moved(saved[2], saved[3], "body.") == {"weight", "bias"}
    assert _moved(saved[2], saved[3], "heads.") == {"weight", "bias"}


@pytest.mark.parametrize(
    ("words", "resting"),
    [
        (["optim.alternate=3"], ["backbone", "body", "body", "backbone"]),
        (["optim.alternate=2"], ["backbone", "body", "backbone", "body"]),
        (["optim.alternate=0"], [None] * 4),
        (["model.variant=backbone_only"], [None] * 4),
        (["optim.objective=body", "optim.select=dice"], [None] * 4),
    ],
)
def test_who_rests_when(words: list[str], resting: Sequence[str | None]) -> None:
    task = task_of(None, *words)
    phases = [task.phase(epoch, step=1) for epoch in range(4)]
    assert [p and p.frozen[0] for p in phases] == resting
    assert all(p is None or p.still == () for p in phases)


def test_one_adam_as_published_over_everything(covidx: Path) -> None:
    task = task_of(covidx, "optim.lr=0.01", "optim.attention_lr=null")
    _, _, model = built(task)
    adam = task.optimisers(model)["adam"].optimiser
    (group,) = adam.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}
    assert (group["lr"], group["betas"], group["eps"]) == (0.01, (0.9, 0.999), 1e-8)
    assert not group["fused"]  # versions of parameters would stand still, see RestingMaps
    slow = task_of(covidx, "optim.lr=0.01", "optim.attention_lr=0.001").optimisers(model)["adam"]
    rates = {
        name: g["lr"]
        for g in slow.optimiser.param_groups
        for name, p in model.named_parameters()
        if any(p is q for q in g["params"])
    }
    assert len(rates) == len(list(model.parameters()))
    assert {n: 0.001 if n.startswith(("body.", "heads.")) else 0.01 for n in rates} == rates


def test_schedules() -> None:
    for words, expected in ((["constant"], [1, 1, 1]), (["cosine"], [1, 0.5, 0])):
        task = task_of(None, f"optim.schedule={words[0]}", "trainer.epochs=10")
        factor = task.optimisers(nn.Linear(1, 1))["adam"].factor
        found = [factor(0, 0, 7), factor(5, 0, 7), factor(9, 7, 7)]
        assert found == pytest.approx(expected)


def test_loss_weighs_classes_and_reaches_every_weight(covidx: Path) -> None:
    task = task_of(covidx, "optim.class_weights=[1,3]", "model.head_init=he")
    splits, _, model = built(task)
    batch = whole(splits["test"])
    parts = task.loss(model.eval(), batch, torch.Generator())
    logits = model(batch["image"], batch["semantic"])
    each = nn.functional.cross_entropy(logits, batch["label"], reduction="none")
    expected = (each * torch.tensor([1.0, 3.0])[batch["label"]]).mean()
    torch.testing.assert_close(parts["loss"], expected)
    right = (logits.argmax(1) == batch["label"]).float().mean()
    assert parts["accuracy"].item() == pytest.approx(right.item())
    parts["loss"].backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Biases in front of a batch normalisation in eval mode do move; a dead filter may not.
    assert not [n for n in still if not n.startswith("body.")]
    assert any(n.startswith("body.") and n not in still for n, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("optim.alternate=1", "never the backbone"),
        ("optim.select=dice", "objective=classify is selected by one of sensitivity+accuracy"),
        ("optim.objective=body", "objective=body is selected by one of dice, loss"),
    ],
)
def test_settings_that_make_no_sense(word: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        task_of(None, "optim.select=auc", word)


def test_weights_for_other_classes_are_refused(covidx: Path) -> None:
    task = task_of(covidx, "optim.class_weights=[1,2,3]")
    with pytest.raises(ConfigError, match="3 numbers for 2 classes"):
        built(task)


# -- maps of a body at rest ---------------------------------------------------------------------


def resting(task: MedusaTask, model: nn.Module, frozen: bool) -> nn.Module:
    body = model.get_submodule("body")
    for parameter in body.parameters():
        parameter.requires_grad_(not frozen)
    return model


@pytest.mark.parametrize("augment", ["none", "legacy"])
def test_maps_are_remembered_while_the_body_rests(covidx: Path, augment: str) -> None:
    task = task_of(covidx, f"data.augment={augment}", "model.head_init=he")
    splits, _, model = built(task)
    train = splits["train"]
    resting(task, model.eval(), frozen=True)
    generator = torch.Generator()
    for epoch in range(2):
        rng = np.random.default_rng(epoch)
        batch = train.collate([train.item(i, rng) for i in range(4)])
        found = task.loss(model, batch, generator)["loss"]
        plain = task_of(covidx, f"data.augment={augment}", "optim.cache_body=false")
        torch.testing.assert_close(found, plain.loss(model, batch, generator)["loss"])
        assert (task._resting.hits, task._resting.misses) == (4 * epoch, 4)
    with torch.no_grad():
        next(model.get_submodule("body").parameters()).add_(0.1)
    after = task.loss(model, batch, generator)["loss"]
    torch.testing.assert_close(after, plain.loss(model, batch, generator)["loss"])
    assert task._resting.misses == 8


@pytest.mark.parametrize(
    "words",
    [["data.augment=aligned"], ["data.augment=none", "optim.cache_body=false"], ["moving"]],
)
def test_maps_are_computed_where_they_could_differ(covidx: Path, words: list[str]) -> None:
    moving = words == ["moving"]
    task = task_of(covidx, *(["data.augment=none"] if moving else words))
    splits, _, model = built(task)
    resting(task, model, frozen=not moving)
    train = splits["train"]
    batch = train.collate([train.item(i, RNG) for i in range(4)])
    task.loss(model, batch, torch.Generator())
    assert task._resting.misses == 0


def test_a_resume_with_a_cold_memory_ends_with_the_same_bits(
    covidx: Path, out: Path, tmp_path: Path
) -> None:
    words = words_of(
        covidx, "data.augment=legacy", "trainer.epochs=3", "model.head_init=he", NO_TRACKING
    )
    reference, _ = killing.undisturbed(words, tmp_path / "whole")
    epoch = reference.info["steps"] // 3
    # In the second epoch the body rests: once at its beginning, once with half of it remembered.
    kills = [
        Kill(target="zoo.engine:Trainer._update", call=epoch + 2, number=signal.SIGTERM),
        Kill(target="zoo.engine:Trainer._update", call=1, number=signal.SIGTERM),
    ]
    run, hits = killing.survive(words, out, kills)
    assert hits == 2
    assert killing.outcome(run) == killing.outcome(reference)


# -- the body alone -----------------------------------------------------------------------------


def test_a_body_learns_lungs_and_a_classifier_starts_from_it(
    covidx: Path, out: Path, tmp_path: Path
) -> None:
    small = ["model.body_size=32", "model.body_width=2", "trainer.batch_size=4"]
    body = ["task=medusa", "preset=body", *small, "trainer.epochs=25", "optim.lr=0.02"]
    good("train", *body, f"data.root={covidx}", f"out={out}", NO_TRACKING)
    run = only_run(out)
    assert run.results()["test/dice"] > 0.7 > series(run, "val/dice")[0]
    assert set(run.info["intervals"]) == {"test/dice", "test/iou"}
    assert [p.name for p in run.pictures()] == ["test_masks.png"]
    rows = pd.read_csv(run.path / "predictions" / "test" / "predictions.csv")
    assert list(rows) == ["id", "lung_area", "dice", "iou"]

    kept = tmp_path / "body"
    run.path.rename(kept)
    task = task_of(covidx, f"model.body_init={kept}")
    splits, facts, model = built(task)
    assert task.pretrained(model)
    learnt = checkpoint.best(kept / "checkpoints").model
    for key, value in learnt.items():
        assert torch.equal(model.state_dict()[key], value), key
    # The map lies in the lungs from the beginning.
    with torch.no_grad():
        records = task.records(model.eval(), whole(splits["test"]))
    score = task.score(records, facts)
    shares = [float(r.values["lung_share"]) for r in records if "lung_share" in r.values]
    assert score["map_in_lungs"] > 1.5 * np.mean(shares)

    words = words_of(covidx, f"model.body_init={kept}", "trainer.epochs=1", NO_TRACKING)
    good("train", *words, f"out={tmp_path / 'next'}")
    trained = only_run(tmp_path / "next")
    kept.rename(tmp_path / "moved")  # weights hold all that is needed afterwards
    good("eval", f"weights={trained.path}", f"predict.out={tmp_path / 'e'}")
    failed = run_zoo("train", *words, f"out={tmp_path / 'none'}")
    assert failed.code == 2
    assert "body" in failed.err
    assert not (tmp_path / "none").exists()


def test_a_body_needs_masks(covidx: Path) -> None:
    task = task_of(covidx, "optim.objective=body", "optim.select=dice")
    splits = task.splits()
    model = task.model(task.fit(splits["train"]))
    batch = whole(splits["test"])
    assert batch["has_mask"].all()
    parts = task.loss(model, batch, torch.Generator())
    torch.testing.assert_close(parts["loss"], parts["bce"] + parts["dice_loss"])
    batch["has_mask"][0] = False
    with pytest.raises(DataError, match="has no lung mask"):
        task.loss(model, batch, torch.Generator())
    with torch.no_grad():
        records = task.records(model, batch)
    assert "dice" not in records[0].values
    assert "dice" in records[1].values
    with pytest.raises(DataError, match="no radiograph has a lung mask"):
        task.score(records[:1], {})


def test_a_body_of_another_width_is_refused(covidx: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    task = task_of(covidx, "optim.objective=body", "optim.select=dice", "model.body_width=4")
    model = task.model(task.fit(task.splits()["train"]))
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "b.safetensors"
    )
    other = task_of(covidx, f"model.body_init={tmp_path / 'b.safetensors'}")
    with pytest.raises(WeightsError, match=r"another model\.body_width"):
        other.pretrained(built(other)[2])


# -- use ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on a small data set, whose folder lies beside it."""
    from tests.domains.medusa.conftest import PARTS
    from zoo.domains.medical.medusa import sample

    base = tmp_path_factory.mktemp("trained")
    sample.write_covidx(base / "data", sample.images(0, PARTS))
    good("train", *words_of(base / "data", "trainer.epochs=1", f"out={base / 'runs'}", NO_TRACKING))
    return only_run(base / "runs").path


def test_predict_writes_pictures_and_decisions_and_no_patients(
    trained: Path, tmp_path: Path
) -> None:
    data = trained.parents[1] / "data"
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    files = sorted((data / "train").glob("*.dcm"))[:1] + sorted((data / "train").glob("*.png"))[:1]
    for i, path in enumerate(files):
        (mixed / f"x{i}{path.suffix}").write_bytes(path.read_bytes())
    done = good("predict", f"weights={trained}", f"input={mixed}", f"predict.out={tmp_path / 'p'}")
    assert "Not for diagnosis" in done.out
    rows = pd.read_csv(tmp_path / "p" / "predictions.csv")
    assert list(rows) == [
        "id",
        "alias",
        "predicted",
        "decision",
        "label",
        "p_negative",
        "p_positive",
    ]
    assert len(rows) == 2
    assert set(rows["decision"]) <= {"positive", "not positive"}
    pictures = sorted(p.name for p in (tmp_path / "p" / "dense").glob("*.png"))
    assert len(pictures) == 2
    key = pd.read_csv(tmp_path / "p" / "dense" / "files.csv")
    assert set(key["id"]) == set(rows["id"])
    assert sorted(key["file"]) == [str(p) for p in sorted(mixed.iterdir())]
    named = [p for p in (tmp_path / "p").rglob("*") if p.is_file() and p.name != "files.csv"]
    for path in named:
        assert not re.search(rb"sample-\d{3}|Sample\^", path.read_bytes()), path
        assert "sample-" not in path.name


def test_predict_without_pictures(trained: Path, tmp_path: Path) -> None:
    file = sorted((trained.parents[1] / "data" / "train").glob("*.png"))[0]
    words = ["predict", f"weights={trained}", f"input={file}"]
    good(*words, f"predict.out={tmp_path / 'a'}", "predict.dense=false")
    assert not (tmp_path / "a" / "dense").exists()
    good(*words, f"predict.out={tmp_path / 'b'}", "predict.maps=false", "predict.gradcam=false")
    assert [p.name for p in (tmp_path / "b" / "dense").iterdir()] == ["files.csv"]


def test_predict_says_once_that_gradcam_is_missing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_module, "have_captum", lambda: False)
    file = sorted((trained.parents[1] / "data" / "train").glob("*.png"))[0]
    words = ["predict", f"weights={trained}", f"input={file}"]
    done = good(*words, f"predict.out={tmp_path / 'a'}")
    told = done.out + done.err
    assert told.count("pip install '.[explain]'") == 1
    assert len(list((tmp_path / "a" / "dense").glob("*.png"))) == 1
    quiet = good(*words, f"predict.out={tmp_path / 'b'}", "predict.gradcam=false")
    assert "captum" not in quiet.out + quiet.err


def test_check_of_what_is_not_there(tmp_path: Path) -> None:
    (found,) = task_of(tmp_path / "none").check()
    assert found.level == "error"
    assert str(tmp_path / "none") in found.what


def test_folds(covidx: Path) -> None:
    assert task_of(covidx).folds() == [{}]
    assert task_of(covidx, "data.folds=3").folds() == [{"data.fold": str(n)} for n in range(3)]


def test_export_says_how_to_call_the_model(covidx: Path) -> None:
    task = task_of(covidx)
    _, facts, model = built(task)
    spec = task.export(model.eval(), facts)
    assert list(spec.inputs) == ["image", "semantic"]
    with torch.no_grad():
        assert model(**spec.inputs).shape == (2, 2)
    program = torch.export.export(
        model,
        (),
        kwargs=dict(spec.inputs),
        dynamic_shapes={k: {0: torch.export.Dim("batch")} for k in spec.inputs},
    )
    three = {k: torch.rand(3, *v.shape[1:]) for k, v in spec.inputs.items()}
    with torch.no_grad():
        torch.testing.assert_close(program.module()(**three), model(**three), atol=1e-5, rtol=1e-4)
    body = task_of(covidx, "optim.objective=body", "optim.select=dice")
    alone = body.model({}).eval()
    spec = body.export(alone, {})
    assert (list(spec.inputs), list(spec.outputs)) == (["semantic"], ["body_map"])
    with torch.no_grad():
        assert alone(**spec.inputs).shape == (2, 1, 32, 32)


# -- what leaves the run folder -----------------------------------------------------------------


def test_names_of_patients_stay_in_the_run_folder(covidx: Path, tracked: Path) -> None:
    words = words_of(covidx, "trainer.max_steps=1", f"out={tracked}")
    said = good("train", *words)
    run = only_run(tracked)
    private = re.compile(rb"sample-\d{3}|COVID ?\(?\d")
    page = (run.path / "report.html").read_bytes()
    assert not private.search(page)
    assert b"Not for diagnosis" in page
    sent = [p for p in (tracked / "artifacts").rglob("*") if p.is_file()]
    assert {"report.html", "config.yaml", "metrics.jsonl"} <= {p.name for p in sent}
    for path in [*sent, tracked / "mlflow.db", run.path / "run.json", run.metrics_file]:
        assert not private.search(path.read_bytes()), path
    assert not private.search((said.out + said.err).encode())
