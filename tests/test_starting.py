"""`weights=` of a training: what fits is taken, the rest begins anew, and both are told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.running import good, only_run, run_zoo
from tests.toys import Toy, config
from zoo import checkpoint, origins, portable, starting
from zoo.config import resolve
from zoo.errors import TrackingError, WeightsError
from zoo.task import Conversion
from zoo.training import make


def net(classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))


class Converting(Toy):
    """Official files carry `net.` before every name, and a scale nobody needs."""

    def convert(self, state: Mapping[str, Tensor]) -> Conversion:
        ours = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
        dropped = {k: "not ours" for k in state if not k.startswith("net.")}
        return Conversion(ours, {f"net.{k}": k for k in ours}, dropped, [])


@pytest.fixture
def task(tmp_path: Path) -> Converting:
    return Converting(config(tmp_path / "runs"))


def started(task: Toy, word: str, model: nn.Module) -> tuple[Any, list[str]]:
    origin = starting.origin_of(word, task, model.state_dict())
    taken = starting.take(model, origin)
    return taken, starting.lines(taken, origin, task, {})


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_our_names_or_of_official_ones(
    task: Converting, tmp_path: Path, official: bool, suffix: str
) -> None:
    source, model = net(), net()
    state = {("net." if official else "") + k: v for k, v in source.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    taken, told = started(task, str(path), model)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in source.state_dict().items())
    assert taken.share == 1.0
    assert told == [f"weights w{suffix}: 100.0% of the parameters taken"]


def test_a_head_for_other_classes_begins_anew(task: Converting, tmp_path: Path) -> None:
    source, model = net(2), net(9)
    fresh = model[2].weight.detach().clone()
    state = {f"net.{k}": v for k, v in source.state_dict().items()} | {"scale": torch.ones(1)}
    del state["net.1.running_var"]
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"only 3\d% .* in the file, 9"):
        started(task, str(tmp_path / "w.pth"), model)
    wide = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    taken, told = started(task, str(tmp_path / "w.pth"), wide)
    assert torch.equal(wide[0].weight, source[0].weight)
    assert not torch.equal(model[2].weight, source[2].weight[:1].expand(9, -1))
    assert torch.equal(model[2].weight, fresh)
    assert list(taken.reshaped) == ["2.weight", "2.bias"]
    assert told[1:] == [
        "  begins anew: 2.weight is 3 x 8, was 2 x 8",
        "  begins anew: 2.bias is 3, was 2",
        "  not in the file: 1.running_var",
        "  not used: scale",
    ]


@pytest.mark.parametrize("word", ["absent.pth", "absent.safetensors"])
def test_a_file_that_is_not_there(task: Converting, word: str) -> None:
    with pytest.raises(WeightsError, match=f"weights={word}: no such file"):
        starting.origin_of(word, task, ())


def test_a_training_starts_from_another_and_says_what_differs(
    stubs: None, out: Path, tmp_path: Path
) -> None:
    words = ["task=stub_bags", f"out={out}", "tracking.enabled=false", "trainer.max_steps=1"]
    good("train", *words)
    first = only_run(out)
    model = checkpoint.best(first.checkpoints).model
    save_file(model, tmp_path / "mine.safetensors")
    told = good("train", *words, f"weights={tmp_path / 'mine.safetensors'}", "optim.lr=1e-9")
    assert "weights mine.safetensors: 100.0% of the parameters taken" in told.out
    named = good("train", *words, f"weights={first.name}", "optim.lr=1e-9", "seed=4")
    assert f"weights {first.name}: 100.0%" in named.out
    other = run_zoo(
        "train", "task=stub_volumes", f"out={out}", "tracking.enabled=false",
        f"weights={first.name}",
    )  # fmt: skip
    assert other.code == 2
    assert f"weights={first.name} are of task 'stub_bags', not 'stub_volumes'" in other.err


def test_how_inputs_are_prepared_is_told_where_a_file_does_not_say(tmp_path: Path) -> None:
    words = ["task=wsi_mil", "preset=sample", "data.standardise=true", f"out={tmp_path / 'runs'}"]
    task = make(resolve(words))
    facts = {"width": 8, "classes": ["a", "b"], "mean": [0.5] * 8, "deviation": [2.0] * 8}
    model, other = task.model(facts), task.model(facts | {"mean": [0.25] * 8})
    torch.save(other.state_dict(), tmp_path / "ours.pth")
    origin = starting.origin_of(str(tmp_path / "ours.pth"), task, model.state_dict())
    told = starting.lines(starting.take(model, origin), origin, task, facts)
    assert "  kept as in the file: mean" in told
    assert any(
        "does not say how inputs were prepared; in force: features standardised" in line
        for line in told
    )
    # The mean that the weights were trained with is the one in force.
    assert torch.equal(model.state_dict()["mean"], torch.full((8,), 0.25))

    plain = make(resolve([*words, "data.standardise=false"]))
    bare = {"width": 8, "classes": ["a", "b"]}
    net = plain.model(bare)
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    wide = make(resolve([*words, "data.standardise=false", "model.branches=2"]))
    fresh = wide.model(bare)
    origin = starting.origin_of(str(tmp_path / "bare.pth"), wide, fresh.state_dict())
    told = starting.lines(starting.take(fresh, origin), origin, wide, bare)
    assert "  the file looks like model.branches=5, in force: 2" in told
    assert any("in force: features as stored" in line for line in told)


def test_a_portable_file_tells_settings_and_facts_that_were_others(tmp_path: Path) -> None:
    task = make(resolve(["task=wsi_mil", "preset=sample", f"out={tmp_path / 'runs'}"]))
    facts = {"width": 8, "classes": ["a", "b"], "extraction": {"patch_size": 256}}
    model = task.model(facts)
    config = resolve(["task=wsi_mil", "preset=sample", "model.dropout=0.3"]).config.stored()
    path = portable.write(
        tmp_path / "w.safetensors", model.state_dict(), task="wsi_mil", config=config,
        facts=facts, about={},
    )  # fmt: skip
    now = facts | {"classes": ["x", "y"], "extraction": {"patch_size": 512}}
    origin = starting.origin_of(str(path), task, model.state_dict())
    told = starting.lines(starting.take(model, origin), origin, task, now)
    assert told == [
        "weights w.safetensors: 100.0% of the parameters taken",
        "  trained with model.dropout=0.3, now 0.1",
        '  trained with classes ["a", "b"], now ["x", "y"]',
        '  trained with extraction {"patch_size": 256}, now {"patch_size": 512}',
    ]
    other = make(resolve(["task=medusa"]))
    with pytest.raises(WeightsError, match="are of task 'wsi_mil', not 'medusa'"):
        starting.origin_of(str(path), other, ())


def test_a_checkpoints_own_file_stands_for_it(stubs: None, out: Path) -> None:
    words = ["task=stub_bags", f"out={out}", "tracking.enabled=false", "trainer.max_steps=1"]
    good("train", *words)
    (file,) = only_run(out).checkpoints.glob("*/model.safetensors")
    found = origins.find(str(file), out, "")
    assert found.task == "stub_bags"
    assert not found.plain


def test_weights_out_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered model by version and alias, a run's checkpoint, a payload, and what is not."""
    client, uri, run_id = stored_in_mlflow(tmp_path)
    for word, where in {
        "models:/zoo-x/1": "models:/zoo-x/1",
        "models:/zoo-x/latest": "models:/zoo-x/1",
        "models:/zoo-x@champion": "models:/zoo-x@champion (version 1)",
        f"runs:/{run_id}/model": f"runs:/{run_id}/model",
    }.items():
        found = origins.find(word, tmp_path / "runs", uri)
        assert (found.where, found.task, found.facts) == (where, "medusa", {"classes": ["a"]})
        assert torch.equal(found.state["a"], torch.ones(3))
    (other,) = {r.info.run_id for r in client.search_runs(["1"])} - {run_id}
    kept = origins.find(f"runs:/{other}", tmp_path / "runs", uri)
    assert (kept.task, kept.about["step"]) == ("wsi_mil", 3)
    for word, words in {
        "models:/zoo-y/1": "zoo-y",
        "models:/zoo-x@other": "alias other not found",
        "models:/zoo-x/7": "version=7",
        "models:/zoo-x": "write models:/NAME/VERSION",
        "runs:/nothing": "nothing not found",
        f"runs:/{run_id}/notes": "neither weights.safetensors nor a checkpoint",
    }.items():
        with pytest.raises(WeightsError, match=words):
            origins.find(word, tmp_path / "runs", uri)
    with pytest.raises(WeightsError, match=f"^runs:/{run_id}/evil: refused, the pickle wants"):
        origins.find(f"runs:/{run_id}/evil", tmp_path / "runs", uri)
    assert not (tmp_path / "ran").exists()
    gone = "http://user:secret@127.0.0.1:9/x"
    with pytest.raises(TrackingError, match="models:/zoo-x/1") as error:
        origins.find("models:/zoo-x/1", tmp_path / "runs", gone)
    assert "secret" not in str(error.value)
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(WeightsError, match="ZOO_OFFLINE is set"):
        origins.find("models:/zoo-x/1", tmp_path / "runs", gone)


def stored_in_mlflow(folder: Path) -> tuple[Any, str, str]:
    """A store with a registered model, a checkpoint and a pickle; not the one of the process."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("x", (folder / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    path = portable.write(
        folder / "weights.safetensors", {"a": torch.ones(3)}, task="medusa",
        config={"task": "medusa"}, facts={"classes": ["a"]}, about={},
    )  # fmt: skip
    client.log_artifact(run_id, str(path), "model/artifacts")
    client.create_registered_model("zoo-x")
    artifacts = client.get_run(run_id).info.artifact_uri
    client.create_model_version("zoo-x", f"{artifacts}/model", run_id)
    client.set_registered_model_alias("zoo-x", "champion", "1")
    saved = checkpoint.save(
        folder / "checkpoints", 3, {"w": torch.zeros(1)}, {}, {"task": "wsi_mil", "facts": {}}
    )
    other = client.create_run(experiment).info.run_id
    client.log_artifacts(other, str(saved), "checkpoints/step-00000003")
    client.log_artifact(run_id, str(saved / "meta.json"), "notes")

    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder / "ran",))

    torch.save({"model": Payload()}, folder / "model.pth")
    client.log_artifact(run_id, str(folder / "model.pth"), "evil")
    return client, uri, run_id


def test_a_part_of_a_model_is_taken_whatever_its_share(task: Converting, tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 90))
    torch.save({f"net.0.{k}": v for k, v in net()[0].state_dict().items()}, tmp_path / "w.pth")
    taken, _ = started(task, str(tmp_path / "w.pth"), wide)
    assert taken.loaded == ["0.bias", "0.weight"]
    assert taken.share < 0.1
