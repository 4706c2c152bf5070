"""The task as the engine sees it: optimisers, losses, records, ranking, files that are written."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.running import good, only_run, run_zoo
from zoo import checkpoint
from zoo.config import resolve
from zoo.data import item_rng, order_rng
from zoo.domains.reid.fusion_reid import sample
from zoo.domains.reid.fusion_reid.config import Config
from zoo.domains.reid.fusion_reid.features import read_embeddings
from zoo.domains.reid.fusion_reid.losses import CentreLoss, identity_loss, triplet_loss
from zoo.domains.reid.fusion_reid.split import ReidSplit
from zoo.domains.reid.fusion_reid.task import FusionReid
from zoo.engine import Trainer
from zoo.errors import ConfigError, DataError
from zoo.evaluation import load_records
from zoo.progress import Reporter
from zoo.task import Record

TINY = (
    "model.input_size=[32,16]",
    "model.stride=[8,8]",
    "model.width=4",
    "model.dim=24",
    "model.blocks=1",
    "model.mix=24",
    "data.instances=2",
    "trainer.batch_size=8",
)


def task_of(root: Path, *words: str) -> FusionReid:
    pairs = ["task=fusion_reid", "preset=sample", f"data.root={root}", *TINY, *words]
    config = resolve(pairs).config
    assert isinstance(config, Config)
    return FusionReid(config)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    sample.write(folder, train=10, test=6)
    return folder


def opened(task: FusionReid, part: str = "test", count: int = 12) -> tuple[nn.Module, Any]:
    """A fresh model in eval mode and a batch of a split."""
    splits = task.splits()
    torch.manual_seed(0)
    model = task.model(task.fit(splits["train"])).eval()
    split = splits[part]
    chosen = split.batches(0, order_rng(1, 0))[0] if part == "train" else range(count)
    return model, split.collate([split.item(i, item_rng(1, 0, i)) for i in chosen])


# -- optimisers and losses ----------------------------------------------------------------------


def test_every_parameter_that_trains_has_one_optimiser(root: Path) -> None:
    task = task_of(root, "optim.centre_weight=0.5")
    model, _ = opened(task)
    optims = task.optimisers(model)
    assert list(optims) == ["weights", "biases", "centres"]
    owned = [
        p for o in optims.values() for group in o.optimiser.param_groups for p in group["params"]
    ]
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(owned) == len(wanted)
    assert {id(p) for p in owned} == {id(p) for p in wanted.values()}
    (biases,) = optims["biases"].optimiser.param_groups
    assert {id(p) for p in biases["params"]} == {id(p) for n, p in wanted.items() if "bias" in n}
    assert biases["weight_decay"] == 1e-4
    assert not model.get_parameter("heads.cnn.neck.bias").requires_grad


def test_rates_are_the_official_ones_epoch_by_epoch(root: Path) -> None:
    task = task_of(root, "optim.lr=0.005", "optim.warmup=10", "trainer.epochs=180")
    model, _ = opened(task)
    optims = task.optimisers(model)
    rates = {n: o.optimiser.param_groups[0]["lr"] for n, o in optims.items()}
    assert rates == {"weights": 0.005, "biases": 0.01}

    def rate(name: str, epoch: int, step: int = 0) -> float:
        return rates[name] * optims[name].factor(epoch, step, 100)

    # Epoch 1 of the recipe: a tenth of the way from 1 % of the base rate.
    assert rate("weights", 0) == rate("weights", 0, 99) == pytest.approx(5.45e-4)
    assert rate("biases", 0) == pytest.approx(1.045e-3)
    middle = 1e-5 + 0.5 * (0.005 - 1e-5)
    assert rate("weights", 89) == pytest.approx(middle)
    assert rate("weights", 179) == rate("biases", 179) == pytest.approx(1e-5)


def test_rates_by_step_meet_the_official_ones_at_the_end_of_an_epoch(root: Path) -> None:
    task = task_of(root, "optim.schedule=steps")
    official = task_of(root).optimisers(opened(task)[0])["weights"].factor
    by_step = task.optimisers(opened(task)[0])["weights"].factor
    assert by_step(4, 9, 10) == pytest.approx(official(4, 0, 10))
    assert official(3, 0, 10) > by_step(4, 3, 10) > official(4, 0, 10)


def test_a_warm_up_that_never_ends_is_told(root: Path) -> None:
    findings = task_of(root, "trainer.epochs=2", "optim.warmup=5").check()
    assert [f.line() for f in findings if "warm-up never ends" in f.what]
    assert not [f for f in task_of(root).check() if "warm-up" in f.what]


def test_the_loss_is_the_sum_over_all_heads(root: Path) -> None:
    task = task_of(root, "optim.id_weight=0.5", "optim.triplet_weight=2", "optim.margin=0.3")
    model, batch = opened(task, "train")
    model.train()
    torch.manual_seed(3)
    found = task.loss(model, batch, torch.Generator())
    torch.manual_seed(3)
    heads = model(batch["image"], batch["camera"])
    labels = batch["label"]
    assert len(heads.scores) == 6
    identity = sum(identity_loss(s, labels) for s in heads.scores)
    triplet = sum(triplet_loss(f, labels, margin=0.3).loss for f in heads.features)
    torch.testing.assert_close(found["id"], identity)
    torch.testing.assert_close(found["triplet"], triplet)
    torch.testing.assert_close(found["loss"], 0.5 * identity + 2 * triplet)
    assert 0 <= float(found["accuracy"]) <= 1


def test_smoothing_weights_and_unit_length_reach_the_loss(root: Path) -> None:
    values = []
    for words in ((), ("optim.label_smoothing=0",), ("optim.head_weights=halves",)):
        task = task_of(root, *words)
        model, batch = opened(task, "train")
        torch.manual_seed(3)
        found = task.loss(model.train(), batch, torch.Generator())
        values.append((float(found["id"].detach()), float(found["triplet"].detach())))
    assert values[1][0] != values[0][0]
    assert values[1][1] == values[0][1]
    assert values[2][0] == pytest.approx(values[0][0] / 6, rel=0.2)
    unit = task_of(root, "optim.unit_triplet=true", "optim.hard_factor=0.1")
    model, batch = opened(unit, "train")
    torch.manual_seed(3)
    found = unit.loss(model.train(), batch, torch.Generator())
    assert float(found["triplet"].detach()) != values[0][1]


def test_centres_move_as_if_their_loss_had_no_weight(root: Path) -> None:
    task = task_of(root, "optim.centre_weight=0.01", "optim.centre_lr=0.5")
    model, batch = opened(task, "train")
    centres = model.get_submodule("centres")
    assert isinstance(centres, CentreLoss)
    parts = task.loss(model.train(), batch, torch.Generator())
    bare = parts["loss"] - 0.01 * parts["centre"]
    torch.testing.assert_close(bare, parts["id"] + parts["triplet"])
    (full,) = torch.autograd.grad(parts["centre"], [centres.centres], retain_graph=True)
    parts["loss"].backward()
    optim = task.optimisers(model)["centres"]
    assert centres.centres.grad is not None
    torch.testing.assert_close(centres.centres.grad * optim.grad_scale, full)
    assert optim.optimiser.param_groups[0]["lr"] == 0.5
    assert optim.factor(7, 0, 10) == 1.0


def test_the_last_epoch_is_the_result_unless_people_are_held_out(root: Path) -> None:
    assert task_of(root).selection() is None
    chosen = task_of(root, "optim.select=map", "data.val_fraction=0.3")
    assert chosen.selection() == ("map", "max")
    assert "val" in chosen.splits()
    with pytest.raises(ConfigError, match=r"data\.val_fraction=0 .*optim\.select=rank1"):
        task_of(root, "optim.select=rank1")


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_stay_whole_identities_over_processes(root: Path, processes: int) -> None:
    task = task_of(root, "trainer.workers=0")
    train = task.splits()["train"]
    batches = train.batches(0, order_rng(1, 0))
    groups = [batches[i : i + processes] for i in range(0, len(batches), processes)]
    seen: list[str] = []
    for rank in range(processes):
        engine = Trainer.__new__(Trainer)
        engine.__dict__ |= {
            "fabric": SimpleNamespace(device=torch.device("cpu")),
            "team": SimpleNamespace(rank=rank, size=processes),
            "reporter": Reporter(quiet=True),
            "config": task.config,
            "trainer": task.config.trainer,
            "at": SimpleNamespace(epoch=0),
        }
        for names, batch in engine._feed(train, groups):
            assert batch is not None
            people, counts = np.unique(batch["label"], return_counts=True)
            assert len(people) == 4
            assert counts.tolist() == [2] * 4
            seen += names
    assert {name for b in batches for name in (train.ids[i] for i in b)} == set(seen)


@pytest.mark.parametrize("words", [("data.instances=3",), ("trainer.batch_size=40",)])
def test_batches_that_cannot_be_made_leave_nothing_behind(
    root: Path, out: Path, words: tuple[str, ...]
) -> None:
    tiny = [w for w in TINY if w.partition("=")[0] != words[0].partition("=")[0]]
    command = ("train", "task=fusion_reid", "preset=sample", f"data.root={root}", *tiny, *words)
    result = run_zoo(*command, f"out={out}", "tracking.enabled=false")
    assert result.code == 2
    assert "trainer.batch_size" in result.err
    assert not out.exists()


# -- records ------------------------------------------------------------------------------------


def test_records_hold_what_ranking_needs(root: Path) -> None:
    task = task_of(root)
    model, batch = opened(task, count=40)
    with torch.no_grad():
        records = task.records(model, batch)
    width = model.width
    assert [r.id for r in records] == list(batch["id"])
    assert {r.values["feature"].shape for r in records} == {(width,)}
    assert {r.values["feature"].dtype for r in records} == {np.dtype(np.float32)}
    for name in ("person", "camera", "role", "path", "embedded", "colours"):
        # One dtype for all: otherwise each would be stored by itself.
        assert len({r.values[name].dtype.str for r in records}) == 1
    assert {str(r.values["role"]) for r in records} == {"query", "gallery"}
    pictured = [r for r in records if "preview" in r.values]
    assert len(pictured) == 12
    assert all(str(r.values["role"]) == "query" for r in pictured)
    for record in pictured:
        assert record.values["preview"].shape == (32, 16, 3)
        for name in ("cnn_map", "transformer_map"):
            assert record.values[name].sum() == pytest.approx(1, abs=1e-3)


def test_records_do_not_depend_on_the_batch(root: Path) -> None:
    task = task_of(root)
    model, batch = opened(task)
    split = task.splits()["test"]
    with torch.no_grad():
        together = task.records(model, batch)
        alone = task.records(model, split.collate([split.item(3, item_rng(1, 0, 3))]))
    np.testing.assert_allclose(alone[0].values["feature"], together[3].values["feature"], atol=2e-5)


def test_mirrored_images_have_one_feature_when_averaged(root: Path) -> None:
    task = task_of(root, "predict.flip_average=true", "predict.half=true")
    model, batch = opened(task)
    mirrored = batch | {"image": batch["image"].flip(-1)}
    with torch.no_grad():
        one, other = (task.records(model, b) for b in (batch, mirrored))
    for a, b in zip(one, other, strict=True):
        assert a.values["feature"].dtype == np.float16
        np.testing.assert_allclose(a.values["feature"], b.values["feature"], rtol=2e-3, atol=2e-3)
    plain = task_of(root)
    plain.model(task.fit(task.splits()["train"]))
    with torch.no_grad():
        lone = plain.records(model, batch)[0].values["feature"]
    assert np.abs(lone - one[0].values["feature"]).max() > 1e-3


def test_cameras_of_another_data_set_take_the_mean_embedding(root: Path) -> None:
    task = task_of(root)
    model, batch = opened(task)
    strange = batch | {"domain": ["elsewhere"] * len(batch["id"])}
    with torch.no_grad():
        own, other = task.records(model, batch), task.records(model, strange)
        mean = model(batch["image"], torch.full_like(batch["camera"], -1))
    assert {int(r.values["embedded"]) for r in other} == {-1}
    assert min(int(r.values["embedded"]) for r in own) >= 0
    found = np.stack([r.values["feature"] for r in other])
    np.testing.assert_allclose(found, mean.detach(), atol=1e-5)


def test_features_are_kept_only_while_weights_rest(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    task = task_of(root)
    model, batch = opened(task)
    bare = batch | {"id": [f"other/{i}" for i in range(len(batch["id"]))]}  # not pictured
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        task.records(model, bare)
        assert not list(tmp_path.rglob("*.sqlite"))
        task.serving = True
        first = task.records(model, bare)
        assert len(calls) == 2
        again = task.records(model, bare)
        assert len(calls) == 2
        moved = bare | {"domain": ["elsewhere"] * len(bare["id"])}
        other = task.records(model, moved)  # the same images under another camera embedding
        assert len(calls) == 3
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a.values["feature"], b.values["feature"])
        assert not np.array_equal(a.values["feature"], c.values["feature"])
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
        fresh = task_of(root)
        fresh.serving = True
        fresh.model(task.fit(task.splits()["train"]))
        fresh.records(model, bare)
    assert len(calls) == 4
    assert len(list(tmp_path.rglob("*.sqlite"))) == 2


# -- scores -------------------------------------------------------------------------------------


def record(name: str, person: str, camera: str, feature: list[float], **more: Any) -> Record:
    role = name.partition("/")[0]
    texts = {"person": person, "camera": camera, "role": role, "path": name}
    values = {k: np.array(v) for k, v in texts.items()}
    return Record(name, person, values | {"feature": np.array(feature, np.float32), **more})


def ranked() -> list[Record]:
    """Two queries that find someone at rank 1 and 2, one that has only its own camera's image."""
    return [
        record("query/a", "1", "c1", [1, 0, 0]),
        record("query/b", "2", "c1", [0, 1, 0]),
        record("query/c", "3", "c1", [0, 0, 1]),
        record("gallery/a1", "1", "c2", [1, 0.1, 0]),
        record("gallery/a0", "1", "c1", [1, 0, 0]),
        record("gallery/b1", "2", "c2", [0, 1, 1]),
        record("gallery/d1", "distractor", "c2", [0.1, 1, 0.2]),
        record("gallery/c0", "3", "c1", [0, 0, 1]),
    ]


def test_scores_follow_the_protocol(root: Path) -> None:
    task = task_of(root)
    found = task.score(ranked(), {})
    assert list(found)[:5] == ["rank1", "rank5", "rank10", "map", "minp"]
    assert found["rank1"] == 0.5
    assert found["rank5"] == 1.0
    assert found["map"] == pytest.approx(0.75)
    assert found["minp"] == pytest.approx(0.75)
    assert (found["queries"], found["queries_without_match"], found["gallery"]) == (3, 1, 5)
    assert not any("baseline" in k or "rerank" in k for k in found)


def test_a_query_that_is_a_distractor_matches_no_distractor(root: Path) -> None:
    records = [*ranked(), record("query/e", "distractor", "c1", [0.1, 1, 0.2])]
    assert task_of(root).score(records, {})["queries_without_match"] == 2


def test_nothing_to_score_is_one_line(root: Path) -> None:
    strangers = [r for r in ranked() if r.id not in ("gallery/a1", "gallery/b1")]
    with pytest.raises(DataError, match="none of the 3 queries has a gallery image"):
        task_of(root).score(strangers, {})
    queries = [r for r in ranked() if r.id.startswith("query")]
    with pytest.raises(DataError, match="the gallery is empty"):
        task_of(root).score(queries, {})


def test_baseline_and_reranking_stand_beside(root: Path) -> None:
    task = task_of(root, "predict.rerank=true", "predict.k1=3", "predict.k2=2")
    records = [
        Record(r.id, r.group, {**r.values, "colours": r.values["feature"][::-1].copy()})
        for r in ranked()
    ]
    found = task.score(records, {})
    assert {"rerank_rank1", "rerank_map", "baseline_rank1", "baseline_map"} <= set(found)
    # Reversed features are the same distances in this toy, so the baseline equals the model.
    assert found["baseline_map"] == found["map"]
    spans = task.intervals(records, {})
    assert spans.keys() <= found.keys()
    assert all(low <= found[name] <= high for name, (low, high) in spans.items())
    tables = dict(task.tables(records, {}))
    beside = tables["Beside the baseline"]
    assert [row["method"] for row in beside] == ["model", "re-ranked", "colour histogram"]
    assert tables["Queries that rank worst"][0]["query"] == "query/b"
    (protocol,) = tables["How it was scored"]
    assert (protocol["queries"], protocol["without a match"]) == (3, 1)
    assert protocol["distractors"] == 1


def test_pairs_of_cameras_are_ranked_alone(root: Path) -> None:
    records = [*ranked(), record("query/a2", "1", "c2", [1, 0, 0])]
    tables = dict(task_of(root).tables(records, {}))
    (name,) = [n for n in tables if "camera" in n]
    first, second = tables[name]
    assert first == {"camera": "c1", "c1": None, "c2": 0.5}
    assert second == {"camera": "c2", "c1": 1.0, "c2": None}


def test_figures_are_drawn_even_if_the_files_are_gone(root: Path) -> None:
    drawn = dict(task_of(root).figures(ranked(), {}))
    assert list(drawn) == ["cmc", "distances", "rank_lists"]


def test_rows_tell_the_nearest_and_the_rank(root: Path) -> None:
    rows = task_of(root).rows(ranked(), {})
    assert [row["id"] for row in rows] == ["query/a", "query/b", "query/c"]
    assert rows[0]["nearest"] == "gallery/a1"
    assert (rows[0]["ap"], rows[0]["first_match"], rows[0]["verdict"]) == (1.0, 1, "right")
    assert (rows[1]["nearest"], rows[1]["verdict"]) == ("gallery/d1", "wrong")
    assert (rows[2]["ap"], rows[2]["matches"]) == (None, 0)


def test_exported_model_gives_the_same_embedding_for_any_batch(root: Path) -> None:
    task = task_of(root)
    model, batch = opened(task)
    wanted = task.export(model, task.fit(task.splits()["train"]))
    assert list(wanted.inputs) == ["image", "camera"]
    shapes = tuple(
        dict.fromkeys(wanted.dynamic[name], torch.export.Dim.AUTO) for name in wanted.inputs
    )
    program = torch.export.export(model, tuple(wanted.inputs.values()), dynamic_shapes=shapes)
    cameras = batch["camera"].clone()
    cameras[0] = -1
    with torch.no_grad():
        torch.testing.assert_close(
            program.module()(batch["image"], cameras), model(batch["image"], cameras)
        )


def test_a_model_without_camera_takes_images_alone(root: Path) -> None:
    task = task_of(root, "model.camera=none")
    model, _ = opened(task)
    assert list(task.export(model, task.fit(task.splits()["train"])).inputs) == ["image"]


# -- command line -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    good(
        *("train", "task=fusion_reid", "preset=sample", f"data.root={root}", *TINY),
        *("trainer.epochs=2", "optim.warmup=1", "optim.centre_weight=0.001"),
        *(f"out={out}", "tracking.enabled=false"),
    )
    return only_run(out).path


def test_training_leaves_ranks_pictures_and_the_baseline(trained: Path) -> None:
    run = only_run(trained.parent)
    results = run.results()
    assert {"test/rank1", "test/map", "test/baseline_rank1"} <= set(results)
    assert {p.stem for p in run.pictures()} == {
        "test_cmc",
        "test_distances",
        "test_rank_lists",
        "test_attention",
    }
    facts = checkpoint.best(run.checkpoints).meta["facts"]
    assert len(facts["identities"]) == 10
    assert facts["cameras"] == sorted(facts["cameras"])
    stored = load_records(trained / "records" / "test.npz")
    with np.load(trained / "records" / "test.npz", allow_pickle=False) as body:
        alone = {key.split("/")[-1] for key in body.files if key.startswith("one/")}
    assert alone == {"preview", "cnn_map", "transformer_map"}
    assert {str(r.values["role"]) for r in stored} == {"query", "gallery"}


def test_evaluation_repeats_training_and_writes_rank_lists(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    for turn in ("fresh", "cached"):
        good("eval", f"weights={trained}", f"predict.out={tmp_path / turn}", "predict.pictures=1")
        again = json.loads((tmp_path / turn / "metrics.json").read_text())
        assert again == pytest.approx(only_run(trained.parent).results())
    with (tmp_path / "cached" / "test" / "rank_lists.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["rank"] for row in rows} == {str(k) for k in range(1, 11)}
    assert (tmp_path / "cached" / "test" / "rank_lists.png").is_file()


def test_prediction_ranks_a_gallery_and_writes_embeddings(
    trained: Path, root: Path, tmp_path: Path
) -> None:
    data = root / "market1501"
    told = good(
        *("predict", f"weights={trained}", f"input={data / 'query'}", "predict.features=true"),
        *(f"predict.gallery={data / 'bounding_box_test'}", f"predict.out={tmp_path / 'p'}"),
        *("predict.top=3", "predict.pictures=2", "predict.half=true"),
    )
    assert "12 queries ranked against" in told.out
    assert "12 of them have a match by name: rank-1" in told.out
    body = json.loads((tmp_path / "p" / "rank_lists.json").read_text())
    assert [len(one["places"]) for one in body["lists"]] == [3] * 12
    stored = read_embeddings(tmp_path / "p" / "embeddings.safetensors")
    assert stored.features.dtype == torch.float16
    assert set(stored.roles) == {"query", "gallery"}
    assert len(stored.ids) == body["about"]["queries"] + body["about"]["gallery"]
    pictures = sorted((tmp_path / "p" / "dense" / "attention").iterdir())
    queries = sorted(p.stem for p in (data / "query").glob("*.jpg"))
    assert [p.stem for p in pictures] == queries[:2]
    with Image.open(pictures[0]) as image:
        assert image.width > image.height
    # By rank lists and by the embeddings that were written, the same image is the nearest.
    unit = nn.functional.normalize(stored.features.float())
    first = stored.ids.index(body["lists"][0]["query"]["id"])
    place = body["lists"][0]["places"][0]
    gap = (unit[first] - unit[stored.ids.index(place["crop"]["id"])]).norm()
    assert float(gap) == pytest.approx(place["distance"], abs=2e-3)


def test_prediction_on_a_single_image_with_a_name_that_says_nothing(
    trained: Path, root: Path, tmp_path: Path
) -> None:
    image = tmp_path / "someone.jpg"
    image.write_bytes(next((root / "market1501" / "query").glob("*.jpg")).read_bytes())
    told = good("predict", f"weights={trained}", f"input={image}", f"predict.out={tmp_path / 'p'}")
    assert "mean camera embedding" in told.err + told.out
    assert "predict.gallery=DIR" in told.out
    with (tmp_path / "p" / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row == {"id": "query/someone.jpg", "person": "", "camera": ""}
    assert not (tmp_path / "p" / "rank_lists.csv").exists()


def test_a_camera_beyond_the_models_embeddings_is_one_line(
    trained: Path, root: Path, tmp_path: Path
) -> None:
    other = tmp_path / "market1501"
    for folder in ("query", "bounding_box_test"):
        (other / folder).mkdir(parents=True)
    source = next((root / "market1501" / "query").glob("*.jpg")).read_bytes()
    (other / "query" / "0001_c9s1_000001_00.jpg").write_bytes(source)
    (other / "bounding_box_test" / "0001_c1s1_000002_00.jpg").write_bytes(source)
    words = ("eval", f"weights={trained}", f"data.root={other}", f"predict.out={tmp_path / 'p'}")
    result = run_zoo(*words)
    assert result.code == 2
    assert "cameras 9 are beyond" in result.err
    assert not (tmp_path / "p").exists()


def test_another_data_set_is_a_test_of_its_own(trained: Path, root: Path, tmp_path: Path) -> None:
    duke = tmp_path / "dukemtmc-reid" / "DukeMTMC-reID"
    source = root / "market1501"
    for folder in ("query", "bounding_box_test"):
        (duke / folder).mkdir(parents=True)
        for n, path in enumerate(sorted((source / folder).glob("0*.jpg"))):
            person, camera = path.name.split("_")[0], path.name.split("_c")[1][0]
            if person != "0000":
                name = f"{person}_c{camera}_f{n:07d}.jpg"
                (duke / folder / name).write_bytes(path.read_bytes())
    told = good(
        *("eval", f"weights={trained}", f"data.test=['dukemtmc:{tmp_path}']"),
        *(f"predict.out={tmp_path / 'p'}", "predict.pictures=0"),
    )
    assert "take the mean camera embedding" in told.err + told.out
    found = json.loads((tmp_path / "p" / "metrics.json").read_text())
    assert found["test_dukemtmc/queries"] == found["test/queries"] == 12
    assert (tmp_path / "p" / "test_dukemtmc" / "rank_lists.csv").is_file()


def test_a_split_of_the_task_is_the_adapters(root: Path) -> None:
    assert all(isinstance(s, ReidSplit) for s in task_of(root).splits().values())


@pytest.mark.slow
def test_two_processes_train_on_whole_identities(root: Path, tmp_path: Path) -> None:
    """Batch norm and triplets see one process' batch each; gradients are those of both."""
    script = tmp_path / "program.py"  # started once more for the second process, by its path
    script.write_text("from zoo.cli.main import run\nrun()\n")
    words = ["train", "task=fusion_reid", "preset=sample", f"data.root={root}", *TINY]
    words += ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.epochs=2"]
    words += ["optim.warmup=1", "optim.centre_weight=0.001", f"out={tmp_path}"]
    done = subprocess.run(
        [sys.executable, str(script), *words, "tracking.enabled=false"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    one = task_of(root).splits()["train"].batches(0, order_rng(1, 0))
    assert run.info["steps"] == 2 * -(-len(one) // 2)
    assert run.results()["test/queries"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sample_data_are_learnt_far_above_the_colour_histogram(tmp_path: Path, seed: int) -> None:
    good("train", "task=fusion_reid", "tracking.enabled=false", f"out={tmp_path}", f"seed={seed}")
    results = only_run(tmp_path).results()
    assert results["test/queries"] >= 96
    assert results["test/rank1"] >= 0.9
    assert results["test/baseline_rank1"] <= results["test/rank1"] - 0.2
