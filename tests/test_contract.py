"""Six stub tasks, one for each hard kind of system, through the same commands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import zoo
from tests.running import STUBS, good, histories, only_run, run_zoo, series, values
from zoo import checkpoint
from zoo.data import item_rng, order_rng
from zoo.evaluation import load_records
from zoo.loader import reseed
from zoo.runs import Run

KINDS = {
    "stub_bags": (),
    "stub_volumes": ("trainer.batch_size=4",),
    "stub_alternating": ("trainer.batch_size=4", "trainer.keep_last=9", "trainer.epochs=4"),
    "stub_years": ("trainer.batch_size=4",),
    "stub_identities": ("trainer.batch_size=6",),
    "stub_testsets": ("trainer.batch_size=4", "trainer.keep_last=9"),
}
NO_TRACKING = "tracking.enabled=false"


@dataclass(frozen=True)
class Trained:
    """A stub trained by the command line."""

    name: str
    data: Path
    out: Path
    run: Run

    @property
    def words(self) -> list[str]:
        return [f"task={self.name}", f"data.root={self.data}", f"out={self.out}", *KINDS[self.name]]

    def checkpoints(self) -> list[checkpoint.Checkpoint]:
        return [checkpoint.load(p) for p in sorted(self.run.checkpoints.glob("step-*"))]

    def log(self, name: str) -> list[float]:
        return series(self.run, name)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> Iterator[dict[str, Trained]]:
    """Each stub trained once, on a data set written by the command line, tracked in MLflow."""
    base = tmp_path_factory.mktemp("contract")
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_REGISTRY", str(STUBS))
        for name, words in KINDS.items():
            data, out = base / f"{name}-data", base / name
            out.mkdir()
            (out / "mlflow.db").write_bytes(empty_store.read_bytes())
            good("data", "sample", f"task={name}", f"out={data}")
            good(
                "train", f"task={name}", "preset=sample", f"data.root={data}", f"out={out}", *words
            )
            made[name] = Trained(name, data, out, only_run(out))
        yield made


@pytest.fixture(params=list(KINDS))
def each(request: pytest.FixtureRequest, trained: dict[str, Trained]) -> Trained:
    return trained[request.param]


def _predictable(each: Trained) -> Path:
    """A file or folder `zoo predict` takes."""
    if each.name == "stub_years":
        return each.data / "yields.csv"
    return sorted(each.data.glob("test*/*.npz"))[0]


def test_stubs_live_outside_the_package_and_are_reached_through_the_registry_file(
    stubs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Path(zoo.__file__).parent not in STUBS.parents
    listed = good("list").out
    assert all(name in listed for name in KINDS)
    monkeypatch.delenv("ZOO_REGISTRY")
    result = run_zoo("train", "task=stub_bags")
    assert result.code == 2
    assert "unknown task 'stub_bags'" in result.err


def test_training_leaves_a_finished_run_with_report_records_and_weights(each: Trained) -> None:
    run = each.run
    assert run.status == "finished"
    assert run.results()
    assert all(k.startswith("test") for k in run.results())
    assert {f"train/{k}" for k in ("loss", "epoch", "epoch_loss")} <= {n for n, _ in values(run)}
    page = (run.path / "report.html").read_text()
    assert each.name in page
    for name, value in run.results().items():
        split = name.partition("/")[0]
        assert name in page
        assert values(run)[name, run.info["steps"]] == value
        records = load_records(run.path / "records" / f"{split}.npz")
        rows = pd.read_csv(run.path / "predictions" / split / "predictions.csv")
        assert [r.id for r in records] == rows["id"].tolist()
    found = checkpoint.best(run.checkpoints)
    assert found.meta["task"] == each.name
    assert found.meta["config"]["task"] == each.name


def test_mlflow_has_what_the_run_folder_has(each: Trained) -> None:
    assert each.run.mlflow_id is not None
    known = histories(f"sqlite:///{each.out / 'mlflow.db'}", each.run.mlflow_id)
    here = values(each.run, timed=True)
    assert {k: {v} for k, v in here.items()} == known


def test_eval_of_the_run_gives_the_numbers_of_the_training(
    each: Trained, stubs: None, tmp_path: Path
) -> None:
    good("eval", f"weights={each.run.path}", f"predict.out={tmp_path / 'eval'}")
    again = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert again == each.run.results()
    several = {k.partition("/")[0] for k in again}
    assert (tmp_path / "eval" / "splits.csv").exists() == (len(several) > 1)
    if each.name == "stub_testsets":
        assert all((tmp_path / "eval" / name / "all.txt").read_text() for name in several)
    result = run_zoo("eval", f"weights={each.run.path}", "--split", "exam")
    assert result.code == 2
    assert "no such split" in result.err


def test_predict_reads_files_and_writes_one_row_each(
    each: Trained, stubs: None, tmp_path: Path
) -> None:
    folder = tmp_path / "predicted"
    good(
        "predict",
        f"weights={each.run.path}",
        f"input={_predictable(each)}",
        f"predict.out={folder}",
    )
    rows = pd.read_csv(folder / "predictions.csv")
    as_json = json.loads((folder / "predictions.json").read_text())
    assert len(rows) == len(as_json) == (32 if each.name == "stub_years" else 1)
    assert [r["id"] for r in as_json] == rows["id"].tolist()
    assert (folder / "NOTICE.txt").exists() == (each.name == "stub_bags")
    if each.name == "stub_testsets":
        assert (folder / "all.txt").read_text().splitlines() == rows["id"].tolist()


def test_runs_and_compare_show_a_second_run(each: Trained, stubs: None) -> None:
    good("train", *each.words, "preset=sample", "optim.lr=0.01", "trainer.max_steps=1", NO_TRACKING)
    rows = json.loads(good("runs", "--out", each.out, "--json").out)
    assert [r["state"] for r in rows] == ["finished", "finished"]
    names = [r["run"] for r in rows]
    shown = json.loads(good("compare", *names, "--out", each.out, "--json").out)
    settings = {row["setting"]: (row[names[0]], row[names[1]]) for row in shown["settings"]}
    assert set(settings["optim.lr"]) == {"0.05", "0.01"}
    assert settings.keys() == {"optim.lr", "trainer.max_steps", "tracking.enabled"}
    assert [row["metric"] for row in shown["results"]] == list(each.run.results())
    other = next(n for n in names if n != each.run.name)
    for path in sorted((each.out / other).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (each.out / other).rmdir()


def test_data_check_passes_a_clean_set_and_names_a_broken_file(
    each: Trained, stubs: None, tmp_path: Path
) -> None:
    clean = good("data", "check", f"task={each.name}", f"data.root={each.data}")
    assert "0 errors" in clean.out
    good("data", "sample", f"task={each.name}", f"out={tmp_path / 'bad'}", "defects=true")
    broken = run_zoo("data", "check", f"task={each.name}", f"data.root={tmp_path / 'bad'}")
    assert broken.code == 2
    assert "1 errors" in broken.out
    assert str(tmp_path / "bad") in broken.out


def test_same_seed_same_weights_other_seed_other_weights(
    each: Trained, stubs: None, tmp_path: Path
) -> None:
    weights = []
    for n, seed in enumerate((1, 1, 2)):
        words = [*each.words, "preset=sample", f"seed={seed}", f"out={tmp_path / str(n)}"]
        good("train", *words, "trainer.max_steps=2", NO_TRACKING)
        best = checkpoint.best(only_run(tmp_path / str(n)).checkpoints)
        weights.append((best.path / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


# -- (a) packed ragged bags ---------------------------------------------------------------------


def test_bags_are_packed_to_a_number_of_instances_and_each_is_used_once_an_epoch(
    trained: dict[str, Trained],
) -> None:
    bags = trained["stub_bags"]
    instances, packed = bags.log("train/instances"), bags.log("train/bags")
    assert max(instances) <= 60
    assert len(set(packed)) > 1
    ends = [step for (name, step), _ in values(bags.run).items() if name == "train/epoch"]
    assert sum(packed) == 3 * 16
    assert sum(packed[: ends[0]]) == 16


# -- (b) slices in training, volumes in evaluation ----------------------------------------------


def test_volumes_train_on_slices_and_score_each_volume_once(trained: dict[str, Trained]) -> None:
    volumes = trained["stub_volumes"]
    assert set(volumes.log("train/dimensions")) == {3.0}  # (B, H, W)
    assert volumes.run.results()["test/volumes"] == 3
    assert set(volumes.log("val/volumes")) == {2.0}
    records = load_records(volumes.run.path / "records" / "test.npz")
    assert [r.id for r in records] == ["test0-ct", "test1-ct", "test2-ct"]
    assert [r.group for r in records] == ["test0", "test1", "test2"]


def test_volumes_are_written_as_the_model_gives_them(
    trained: dict[str, Trained], stubs: None, tmp_path: Path
) -> None:
    volumes = trained["stub_volumes"]
    inputs = sorted((volumes.data / "test").glob("*.npz"))
    words = [f"weights={volumes.run.path}", f"predict.out={tmp_path / 'all'}"]
    good("predict", *words, f"input=[{','.join(map(str, inputs))}]")
    found = checkpoint.best(volumes.run.checkpoints)
    model = zoo.get_task("stub_volumes").model(found.meta["facts"])
    model.load_state_dict(found.model)
    assert len(list((tmp_path / "all" / "dense").iterdir())) == len(inputs)
    for path in inputs:
        with np.load(path) as body, torch.no_grad():
            slices = [model(torch.from_numpy(z[None])) for z in body["volume"]]
        written = np.load(tmp_path / "all" / "dense" / f"{path.stem}.npy")
        np.testing.assert_array_equal(written, (torch.cat(slices) > 0).numpy())
    words = [f"weights={volumes.run.path}", f"predict.out={tmp_path / 'none'}"]
    good("predict", *words, f"input={inputs[0]}", "predict.dense=false")
    assert not (tmp_path / "none" / "dense").exists()


# -- (c) alternating phases, balanced epochs ----------------------------------------------------


def _changed(a: checkpoint.Checkpoint, b: checkpoint.Checkpoint, prefix: str) -> list[str]:
    same = {k for k in a.model if torch.equal(a.model[k], b.model[k])}
    return [k for k in a.model if k.startswith(prefix) and k not in same]


def test_only_the_half_of_the_phase_moves_and_the_other_keeps_its_statistics(
    trained: dict[str, Trained],
) -> None:
    saved = trained["stub_alternating"].checkpoints()
    assert len(saved) == 4
    # Checkpoint n is written after epoch n; even epochs move the body, odd ones the heads.
    for epoch in (1, 2, 3):
        before, after = saved[epoch - 1], saved[epoch]
        moving, resting = ("body", "heads") if epoch % 2 == 0 else ("heads", "body")
        assert _changed(before, after, resting) == []
        changed = _changed(before, after, moving)
        assert any("running_mean" in k for k in changed)
        assert any("num_batches_tracked" in k for k in changed)
        assert any(k.endswith("0.weight") for k in changed)
    assert torch.all(saved[0].model["heads.1.running_mean"] == 0)
    assert int(saved[0].model["heads.1.num_batches_tracked"]) == 0


def test_a_balanced_epoch_has_the_length_and_mix_of_its_batches(
    trained: dict[str, Trained],
) -> None:
    run = trained["stub_alternating"].run
    steps = [step for (name, step) in values(run) if name == "train/epoch"]
    assert steps == [6, 12, 18, 24]  # 22 negatives in batches of 4, whatever the 6 positives
    assert series(run, "train/items")[:6] == [4, 4, 4, 4, 4, 2]
    assert set(series(run, "train/positives")) == {0.5}


def test_optimisers_step_only_in_their_phase(trained: dict[str, Trained]) -> None:
    saved = trained["stub_alternating"].checkpoints()
    counts = [
        {half: int(s["state"][0]["step"]) if s["state"] else 0
         for half, s in c.state["optimisers"].items()}
        for c in saved
    ]  # fmt: skip
    assert counts == [
        {"body": 6, "heads": 0},
        {"body": 6, "heads": 6},
        {"body": 12, "heads": 6},
        {"body": 12, "heads": 12},
    ]


def test_what_is_chosen_on_validation_travels_with_the_weights(
    trained: dict[str, Trained], stubs: None, tmp_path: Path
) -> None:
    alternating = trained["stub_alternating"]
    best = checkpoint.best(alternating.run.checkpoints)
    threshold = best.meta["facts"]["threshold"]
    records = load_records(alternating.run.path / "records" / "test.npz")
    assert 0 < threshold < 1
    assert alternating.run.results()["test/threshold"] == threshold
    right = [(r.values["p"] > threshold) == bool(r.values["label"]) for r in records]
    assert alternating.run.results()["test/accuracy"] == np.mean(right)
    # Validations during training did not have it.
    assert "val/threshold" not in {name for name, _ in values(alternating.run)}
    others = [c for c in alternating.checkpoints() if c.path != best.path]
    assert others
    assert all("threshold" not in c.meta["facts"] for c in others)
    # Nor did amending touch the weights' hash, and evaluation finds it again.
    good("eval", f"weights={alternating.run.path}", f"predict.out={tmp_path / 'eval'}")
    again = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert again["test/threshold"] == threshold


# -- (d) one training a year, facts from training rows ------------------------------------------


def test_cv_trains_each_year_on_the_years_before_it(
    trained: dict[str, Trained], stubs: None, tmp_path: Path
) -> None:
    years = trained["stub_years"]
    words = [f"task={years.name}", f"data.root={years.data}", *KINDS[years.name]]
    good("cv", *words, "preset=sample", f"out={tmp_path}", NO_TRACKING)
    parent = only_run(tmp_path)
    table = pd.read_csv(years.data / "yields.csv")
    facts = {}
    for file in (parent.path / "folds").glob("*/run.json"):
        fold = Run(file.parent)
        year = fold.config()["data"]["year"]
        facts[year] = checkpoint.best(fold.checkpoints).meta["facts"]
        train = zoo.get_task("stub_years", f"data.root={years.data}", f"data.year={year}")
        own = table[[f"{c}-{y}" in set(train.splits()["train"].ids)
                     for c, y in zip(table["county"], table["year"], strict=True)]]  # fmt: skip
        assert own["year"].max() < year
        assert facts[year]["mean"] == pytest.approx(own[["b0", "b1", "b2"]].mean().tolist())
        assert facts[year]["history"] == pytest.approx(
            own.groupby("county")["yield"].mean().to_dict()
        )
    assert sorted(facts) == [2003, 2004]
    assert facts[2003] != facts[2004]
    rows = parent.info["tables"]["Trainings"]
    mean = np.mean([r["test/rmse"] for r in rows])
    assert parent.results()["test/rmse_mean"] == pytest.approx(mean)
    assert parent.info["tables"]["Pooled predictions by seed"][0]["seed"] == 1


def test_evaluation_uses_the_stored_facts_and_never_the_data_at_hand(
    trained: dict[str, Trained], stubs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    years = trained["stub_years"]
    table = pd.read_csv(years.data / "yields.csv")
    past = table["year"] < 2004
    table.loc[past, ["b0", "b1", "b2", "yield"]] += 1000.0
    other = tmp_path / "other"
    other.mkdir()
    table.to_csv(other / "yields.csv", index=False)
    kind = type(zoo.get_task("stub_years"))
    monkeypatch.setattr(kind, "fit", lambda *_: pytest.fail("facts were learnt again"))
    words = [f"weights={years.run.path}", f"data.root={other}", f"predict.out={tmp_path / 'e'}"]
    good("eval", *words)
    assert json.loads((tmp_path / "e" / "metrics.json").read_text()) == years.run.results()
    good("predict", f"weights={years.run.path}", f"input={other / 'yields.csv'}",
         f"predict.out={tmp_path / 'p'}")  # fmt: skip
    rows = pd.read_csv(tmp_path / "p" / "predictions.csv").set_index("id")["predicted"]
    stored = {r.id: r for r in load_records(years.run.path / "records" / "test.npz")}
    for name, record in stored.items():
        assert rows[name] == pytest.approx(float(record.values["predicted"]), abs=1e-4)


# -- (e) P x K, whole-set evaluation, centre loss -----------------------------------------------


def test_batches_stay_p_times_k(trained: dict[str, Trained]) -> None:
    reid = trained["stub_identities"]
    assert len(reid.log("train/p")) >= 6
    for name, count in (("p", 3), ("k_least", 2), ("k_most", 2)):
        assert set(reid.log(f"train/{name}")) == {count}


def test_without_a_monitor_the_last_epoch_is_the_result(trained: dict[str, Trained]) -> None:
    reid = trained["stub_identities"]
    index = checkpoint.marked(reid.run.checkpoints)
    last = checkpoint.newest_name(reid.run.checkpoints)
    assert index == {"last": last, "best": None}
    assert checkpoint.best(reid.run.checkpoints).path.name == last
    assert checkpoint.best(reid.run.checkpoints).meta["epoch"] == 3
    assert not any(name.startswith("val/") for name, _ in values(reid.run))
    assert "the last checkpoint" in (reid.run.path / "report.html").read_text()


def test_the_whole_test_set_is_ranked_at_once(trained: dict[str, Trained]) -> None:
    reid = trained["stub_identities"]
    records = load_records(reid.run.path / "records" / "test.npz")
    assert len(records) == 24  # several batches of 5
    scored = zoo.get_task("stub_identities").score(records, {})
    results = reid.run.results()
    assert {f"test/{k}": v for k, v in scored.items()} == pytest.approx(results)
    assert results["test/rank1"] > 0.5


def test_centres_move_by_their_own_rate_on_the_rescaled_gradient(
    trained: dict[str, Trained], stubs: None, tmp_path: Path
) -> None:
    reid = trained["stub_identities"]
    words = [*reid.words, "preset=sample", "trainer.max_steps=1", NO_TRACKING]
    good("train", *words, f"out={tmp_path}", "seed=5")
    after = checkpoint.best(only_run(tmp_path).checkpoints).model
    task = zoo.get_task("stub_identities", f"data.root={reid.data}")
    split = task.splits()["train"]
    reseed(5)
    model = task.model(task.fit(split))
    indices = split.batches(0, order_rng(5, 0))[0]
    batch = split.collate([split.item(i, item_rng(5, 0, i)) for i in indices])
    model.centres(model(batch["x"]), batch["label"]).backward()
    # The loss has weight 0.01 and the gradient is multiplied by 1 / 0.01: lr 0.5 is what is left.
    expected = model.centres.centres - 0.5 * model.centres.centres.grad
    torch.testing.assert_close(after["centres.centres"], expected, rtol=1e-5, atol=1e-6)
    rest = sorted(set(range(7)) - set(batch["label"].tolist()))
    assert torch.equal(after["centres.centres"][rest], model.centres.centres[rest])
    assert not torch.equal(after["net.0.weight"], model.net[0].weight)


# -- (f) several test sets, predictions of others -----------------------------------------------


def test_every_test_set_is_evaluated_under_its_name(trained: dict[str, Trained]) -> None:
    sod = trained["stub_testsets"]
    assert sorted(sod.run.results()) == ["test_a/mae", "test_b/mae"]
    for name, count in (("test_a", 4), ("test_b", 3)):
        assert len(load_records(sod.run.path / "records" / f"{name}.npz")) == count
    contexts = {d["name"]: d["context"] for d in sod.run.info["inputs"]}
    assert contexts["stub_testsets-test_b"] == "evaluation"


def test_a_frozen_encoder_rests_and_trains_again_afterwards(trained: dict[str, Trained]) -> None:
    first, second, third = trained["stub_testsets"].checkpoints()
    assert int(first.model["encoder.1.num_batches_tracked"]) == 0
    assert torch.all(first.model["encoder.1.running_mean"] == 0)
    assert torch.all(first.model["encoder.1.weight"] == 1)
    assert int(third.model["encoder.1.num_batches_tracked"]) == 4
    for name in ("encoder.0.weight", "encoder.1.weight", "encoder.1.running_mean"):
        assert name in _changed(first, second, "encoder")
    assert _changed(first, second, "decoder")


def test_predictions_of_others_are_scored_without_a_model(
    trained: dict[str, Trained], stubs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sod = trained["stub_testsets"]
    kind = type(zoo.get_task("stub_testsets"))
    monkeypatch.setattr(kind, "model", lambda *_: pytest.fail("a model was built"))
    expected = {}
    for name in ("a", "b"):
        (tmp_path / "maps" / name).mkdir(parents=True)
        errors = []
        for i, path in enumerate(sorted((sod.data / f"test_{name}").glob("*.npz"))):
            with np.load(path) as body:
                mask = body["mask"]
            guess = np.full(mask.shape, 0.25 * i, np.float32)
            np.save(tmp_path / "maps" / name / f"{path.stem}.npy", guess)
            errors.append(np.abs(guess - mask).mean())
        expected[f"test_{name}/mae"] = pytest.approx(float(np.mean(errors)))
    words = ["task=stub_testsets", f"data.root={sod.data}", f"predict.foreign={tmp_path / 'maps'}"]
    shown = good("eval", *words, f"predict.out={tmp_path / 'scored'}").out
    assert "test_a/mae" in shown
    assert json.loads((tmp_path / "scored" / "metrics.json").read_text()) == expected
    good("eval", *words, "--split", "test_b", f"predict.out={tmp_path / 'one'}")
    assert list(json.loads((tmp_path / "one" / "metrics.json").read_text())) == ["test_b/mae"]
    (tmp_path / "empty").mkdir()
    result = run_zoo("eval", *words[:2], f"predict.foreign={tmp_path / 'empty'}")
    assert result.code == 2
    assert "no prediction fits" in result.err


def _maps(sod: Trained, folder: Path, guess: float, sets: str = "ab") -> Path:
    """Somebody's maps of test sets, the same value in every pixel."""
    for name in sets:
        (folder / name).mkdir(parents=True)
        for path in sorted((sod.data / f"test_{name}").glob("*.npz")):
            np.save(folder / name / f"{path.stem}.npy", np.full((8, 8), guess, np.float32))
    return folder


def test_several_methods_are_scored_and_compared_in_one_call(
    trained: dict[str, Trained], stubs: None, tmp_path: Path
) -> None:
    sod = trained["stub_testsets"]
    low, high = _maps(sod, tmp_path / "low", 0.1), _maps(sod, tmp_path / "high", 0.9, "b")
    out = tmp_path / "scored"
    words = ["task=stub_testsets", f"data.root={sod.data}", f"predict.foreign=[{low},{high}]"]
    shown = good("eval", *words, f"predict.out={out}").out
    assert "low" in shown
    assert "high" in shown
    results = json.loads((out / "metrics.json").read_text())
    assert list(results) == ["low/test_a/mae", "low/test_b/mae", "high/test_b/mae"]
    table = pd.read_csv(out / "comparison.csv")
    assert table.columns.tolist() == ["method", "split", "mae"]
    keys = [f"{row.method}/{row.split}/mae" for row in table.itertuples()]
    assert dict(zip(keys, table["mae"], strict=True)) == pytest.approx(results)
    for name in ("low/test_a", "low/test_b", "high/test_b"):
        assert (out / name / "predictions.csv").is_file()
        assert (out / name / "records.npz").is_file()
    assert not (out / "test_b").exists()


def test_one_method_is_compared_over_its_sets(
    trained: dict[str, Trained], stubs: None, tmp_path: Path
) -> None:
    sod = trained["stub_testsets"]
    low = _maps(sod, tmp_path / "low", 0.1)
    words = ["task=stub_testsets", f"data.root={sod.data}", f"predict.foreign={low}"]
    good("eval", *words, f"predict.out={tmp_path / 'out'}")
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert table["split"].tolist() == ["test_a", "test_b"]
    assert set(table["method"]) == {"low"}
    assert (tmp_path / "out" / "test_a" / "predictions.csv").is_file()


def test_notes_on_predictions_of_others_are_told(
    trained: dict[str, Trained], stubs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sod = trained["stub_testsets"]
    kind = type(zoo.get_task("stub_testsets"))
    plain = kind.foreign

    class Noted(dict[str, object]):
        notes = ("two maps were resized",)

    monkeypatch.setattr(kind, "foreign", lambda self, folder: Noted(plain(self, folder)))
    words = ["task=stub_testsets", f"data.root={sod.data}", f"predict.out={tmp_path / 'out'}"]
    shown = good("eval", *words, f"predict.foreign={_maps(sod, tmp_path / 'low', 0.1)}").out
    assert "warning: low: two maps were resized" in shown


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("[low,none]", "predict.foreign=none: there is no such file or folder"),
        ("[low,empty]", "predict.foreign=empty: no prediction fits an item of the data"),
        ("[low,other/low]", "are both called 'low'; rename one"),
        ("[]", "predict.foreign: should name at least one folder"),
        ("", "predict.foreign= names no folder"),
    ],
)
def test_wrong_folders_of_predictions_are_one_line_and_nothing_is_written(
    trained: dict[str, Trained], stubs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    given: str, told: str,
) -> None:  # fmt: skip
    sod = trained["stub_testsets"]
    monkeypatch.chdir(tmp_path)
    _maps(sod, tmp_path / "low", 0.1)
    _maps(sod, tmp_path / "other" / "low", 0.2)
    (tmp_path / "empty").mkdir()
    words = ["task=stub_testsets", f"data.root={sod.data}", f"predict.foreign={given}"]
    result = run_zoo("eval", *words, f"predict.out={tmp_path / 'out'}")
    assert result.code == 2
    assert result.err.count("error: ") == 1
    assert told in result.err
    assert not (tmp_path / "out").exists()


def test_a_task_that_cannot_score_predictions_of_others_says_so(
    trained: dict[str, Trained], stubs: None, tmp_path: Path
) -> None:
    result = run_zoo("eval", "task=stub_bags", f"predict.foreign={tmp_path}")
    assert result.code == 2
    assert "cannot score foreign predictions" in result.err


def test_sample_data_are_written_once_into_the_cache(
    stubs: None, out: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "task=stub_bags", f"out={out}", NO_TRACKING, "trainer.max_steps=1"]
    first = good(*words)
    assert "preset sample, the sample data set" in first.out
    kind = type(zoo.get_task("stub_bags"))
    monkeypatch.setattr(kind, "write_sample", lambda *_: pytest.fail("written twice"))
    good(*words)
    assert [p for p in os.listdir(cache / "samples") if p.startswith("stub_bags")]
