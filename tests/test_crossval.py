"""`zoo cv`: folds and seeds as runs of their own, pooled, restartable, tracked under a parent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from tests.running import good, only_run, run_zoo
from zoo import checkpoint, crossval, evaluation
from zoo.errors import TrainingError
from zoo.runs import Run

WORDS = ["task=stub_years", "trainer.batch_size=4", "trainer.epochs=2"]
NO_TRACKING = "tracking.enabled=false"


@pytest.fixture(autouse=True)
def _known(stubs: None) -> None:
    """The stubs are known."""


def _children(parent: Run) -> list[Run]:
    found = [Run(p.parent) for p in (parent.path / "folds").glob("*/run.json")]
    return sorted(found, key=lambda r: (r.info["seed"], r.info["fold"]))


def test_folds_and_seeds_are_trained_averaged_and_pooled(out: Path) -> None:
    shown = good("cv", *WORDS, f"out={out}", NO_TRACKING, "--seeds", "3,4")
    parent = only_run(out)
    children = _children(parent)
    assert [(r.info["seed"], r.config()["data"]["year"]) for r in children] == [
        (3, 2003), (3, 2004), (4, 2003), (4, 2004),
    ]  # fmt: skip
    assert all(r.info["parent"] == parent.name for r in children)
    assert parent.status == "finished"
    scores = np.array([r.results()["test/rmse"] for r in children])
    results = parent.results()
    assert results["test/rmse_mean"] == pytest.approx(scores.mean())
    assert results["test/rmse_std"] == pytest.approx(scores.std(ddof=1))
    # Pooled: one score over the predictions of all folds, which is no mean of scores.
    for seed in (3, 4):
        own = [r for r in children if r.info["seed"] == seed]
        records = [x for r in own for x in evaluation.load_records(r.path / "records" / "test.npz")]
        off = np.array([x.values["predicted"] - x.values["yield"] for x in records], float)
        table = parent.info["tables"]["Pooled predictions by seed"]
        (row,) = [t for t in table if t["seed"] == seed]
        assert row["rmse"] == pytest.approx(np.sqrt((off**2).mean()))
    assert "mean over trainings" in shown.out
    assert "pooled predictions" in shown.out
    page = (parent.path / "report.html").read_text()
    assert all(r.name in page for r in children)
    assert (parent.path / "predictions" / "pooled_seed3" / "predictions.csv").is_file()


def test_an_interrupted_cv_goes_on_fold_by_fold(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, trained = crossval.train, []

    def train(start: object, *args: object, **options: object) -> Run:
        if len(trained) == 1:
            msg = "the power went off"
            raise TrainingError(msg)
        trained.append(inner(start, *args, **options))
        return trained[-1]

    monkeypatch.setattr(crossval, "train", train)
    result = run_zoo("cv", *WORDS, f"out={out}", NO_TRACKING)
    assert result.code == 1
    parent = only_run(out)
    assert parent.status == "interrupted"
    first = (trained[0].path / "run.json").read_bytes()
    # Another number of processes is the same experiment, though the next fold fails again here.
    result = run_zoo("cv", *WORDS, f"out={out}", NO_TRACKING, "resume=auto", "trainer.devices=2")
    assert f"{trained[0].name} is finished" in result.out
    assert only_run(out).name == parent.name
    monkeypatch.setattr(crossval, "train", inner)
    other = run_zoo("cv", *WORDS, f"out={out}", NO_TRACKING, f"resume={parent.name}", "seed=9")
    assert other.code == 2
    assert "not a cross-validation with these settings" in other.err
    shown = good("cv", *WORDS, f"out={out}", NO_TRACKING, "resume=auto")
    assert f"{trained[0].name} is finished" in shown.out
    assert only_run(out).status == "finished"
    assert len(_children(parent)) == 2
    assert (trained[0].path / "run.json").read_bytes() == first


@pytest.fixture
def halfway(tracked: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, list[str]]:
    """A cross-validation on data of the user's that stopped after its first fold, and its words.

    Afterwards a year changed that the first fold trained on.
    """
    data = tracked.parent / "data"
    good("data", "sample", "task=stub_years", f"out={data}")
    words = [*WORDS, f"data.root={data}", "preset=sample", f"out={tracked}"]
    inner, calls = crossval.train, []

    def train(*args: object, **options: object) -> Run:
        if calls:
            msg = "the power went off"
            raise TrainingError(msg)
        calls.append(args)
        return inner(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(crossval, "train", train)
        assert run_zoo("cv", *words).code == 1
    path = data / "yields.csv"
    head, first, *rows = path.read_text().splitlines()
    cells = first.split(",")
    path.write_text("\n".join([head, ",".join([*cells[:-1], "41.5"]), *rows]) + "\n")
    return only_run(tracked), words


def test_changed_data_are_refused_before_a_fold_is_trained(
    halfway: tuple[Run, list[str]],
) -> None:
    parent, words = halfway
    before = (parent.path / "run.json").read_bytes()
    refused = run_zoo("cv", *words, "resume=auto")
    assert refused.code == 2
    (line,) = [x for x in refused.err.splitlines() if x.startswith("error")]
    assert f"run {parent.name}: the data changed since it began (stub_years-" in line
    assert "of fold 1" in line
    assert "--force" in line
    assert (parent.path / "run.json").read_bytes() == before
    assert len(_children(parent)) == 1


def test_changed_data_are_gone_on_with_by_force_and_told(
    halfway: tuple[Run, list[str]], tracked: Path
) -> None:
    parent, words = halfway
    first = (_children(parent)[0].path / "run.json").read_bytes()
    shown = good("cv", *words, "resume=auto", "--force").out
    assert f"warning: the data changed since {parent.name} began (stub_years-" in shown
    parent.refresh()
    assert parent.status == "finished"
    assert len(_children(parent)) == 2
    assert (_children(parent)[0].path / "run.json").read_bytes() == first
    (change,) = parent.info["data_changes"]
    assert change["trainings"] == 1
    (name,) = change["splits"]
    assert name in ("stub_years-train of fold 1", "stub_years-val of fold 1")
    assert change["splits"][name]["was"] != change["splits"][name]["is"]
    client = MlflowClient(f"sqlite:///{tracked / 'mlflow.db'}")
    top = client.get_run(str(parent.mlflow_id))
    assert top.data.tags["zoo.data_changed"] == f"after 1 trainings: {name}"
    assert "no single data set gave these results" in (parent.path / "report.html").read_text()
    # Nothing is left to train, so nothing can be mixed any more.
    good("cv", *words, f"resume={parent.name}")


def test_two_processes_cannot_run_one_cv(out: Path) -> None:
    good("cv", *WORDS, f"out={out}", NO_TRACKING)
    parent = only_run(out)
    with parent.lock():
        result = run_zoo("cv", *WORDS, f"out={out}", NO_TRACKING, f"resume={parent.name}")
    assert result.code == 2
    assert "another process is working on it" in result.err


def test_folds_name_their_parent_in_mlflow(tracked: Path) -> None:
    good("cv", *WORDS, f"out={tracked}")
    parent = only_run(tracked)
    client = MlflowClient(f"sqlite:///{tracked / 'mlflow.db'}")
    for child in _children(parent):
        found = client.get_run(str(child.mlflow_id))
        assert found.data.tags["mlflow.parentRunId"] == parent.mlflow_id
        assert found.info.status == "FINISHED"
    top = client.get_run(str(parent.mlflow_id))
    assert top.info.status == "FINISHED"
    assert top.data.metrics["test/rmse_mean"] == pytest.approx(parent.results()["test/rmse_mean"])
    assert "report.html" in {a.path for a in client.list_artifacts(str(parent.mlflow_id))}
    listed = json.loads(good("runs", "--out", tracked, "--json").out)
    assert len(listed) == 3


def test_one_fold_and_one_seed_is_no_cross_validation(out: Path) -> None:
    result = run_zoo("cv", "task=stub_bags", f"out={out}")
    assert result.code == 2
    assert "nothing to cross-validate; set --seeds 1,2,3" in result.err
    result = run_zoo("cv", "task=stub_bags", f"out={out}", "--seeds", "1,x")
    assert result.code == 2
    assert "whole numbers" in result.err
    assert not out.exists()


def test_the_same_item_in_two_folds_is_not_pooled(out: Path) -> None:
    good("cv", "task=stub_bags", "trainer.epochs=1", f"out={out}", NO_TRACKING, "--seeds", "1,2")
    parent = only_run(out)
    assert not any(k.startswith("pooled/") for k in parent.results())
    assert parent.info["tables"]["Pooled predictions by seed"] == []
    assert set(parent.results()) == {
        f"test/{m}_{s}" for m in ("accuracy", "loss") for s in ("mean", "std")
    }


def test_what_one_fold_settled_is_no_fact_of_the_pool(out: Path) -> None:
    words = ["task=stub_alternating", "trainer.batch_size=4", "trainer.epochs=1"]
    good("train", *words, f"out={out}", NO_TRACKING)
    run = only_run(out)
    assert "threshold" in checkpoint.best(run.checkpoints).meta["facts"]
    assert run.info["settled"] == ["threshold"]
    assert "threshold" not in crossval._facts_of(run)
