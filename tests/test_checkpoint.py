"""Checkpoints are whole or not there, verified before use, and need no pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.running import flip
from zoo import checkpoint, files
from zoo.errors import ResumeError, WeightsError, ZooError

MODEL = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
STATE = {"optimisers": {"x": {"state": {0: {"step": torch.tensor(3.0)}}}}, "position": {"step": 3}}
META = {"task": "toy", "facts": {"mean": [0.5]}, "config": {"task": "toy"}, "epoch": 1}


def _save(folder: Path, step: int, **model: torch.Tensor) -> Path:
    return checkpoint.save(folder, step, model or MODEL, STATE, META)


def _no_temporaries(folder: Path) -> bool:
    return not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = _save(tmp_path, 12)
    assert path == tmp_path / "step-00000012"
    assert sorted(p.name for p in path.iterdir()) == ["meta.json", "model.safetensors", "state.pt"]
    found = checkpoint.load(path)
    for key, value in MODEL.items():
        assert torch.equal(found.model[key], value)
        assert found.model[key].dtype == value.dtype
    assert found.state["position"] == {"step": 3}
    assert torch.equal(found.state["optimisers"]["x"]["state"][0]["step"], torch.tensor(3.0))
    assert {k: found.meta[k] for k in META} == META
    assert (found.meta["step"], found.meta["format"]) == (12, checkpoint.FORMAT)
    assert checkpoint.load(path, weights_only=True).state == {}
    assert _no_temporaries(tmp_path)


def test_others_may_read_a_checkpoint(tmp_path: Path) -> None:
    assert _save(tmp_path, 1).stat().st_mode & 0o055 == 0o055


def test_tied_and_strided_weights_are_stored_apart(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    base = torch.arange(12.0)
    extra = {"turned": base.reshape(3, 4).t(), "head": base[:4], "tail": base[4:]}
    path = checkpoint.save(tmp_path, 1, dict(model.state_dict()) | extra, {}, META)
    found = checkpoint.load(path).model
    for key, value in (dict(model.state_dict()) | extra).items():
        assert torch.equal(found[key], value), key
    again = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    again[1].weight = again[0].weight
    again.load_state_dict({k: found[k] for k in again.state_dict()})
    assert again[0].weight is again[1].weight
    assert torch.equal(again[0].weight, model[0].weight)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_damage_is_found_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    _save(tmp_path, 1)
    path = _save(tmp_path, 2) / name
    if damage == "flip":
        flip(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(WeightsError, match=rf"step-00000002: {name} is (damaged|missing)"):
        checkpoint.load(path.parent)
    found, notes = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.path.name == "step-00000001"
    assert len(notes) == 1
    assert name in notes[0]
    if name == "state.pt":  # the weights are sound and can be used
        assert checkpoint.load(path.parent, weights_only=True).model.keys() == MODEL.keys()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"step": 1}', '{"format": "1"}', '{"format": 1}']
)
def test_damaged_meta_is_found(tmp_path: Path, text: str) -> None:
    _save(tmp_path, 1)
    (_save(tmp_path, 2) / "meta.json").write_text(text)
    found, notes = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.path.name == "step-00000001"
    assert len(notes) == 1


def test_every_one_damaged_leaves_nothing(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(_save(tmp_path, step) / "state.pt")
    found, notes = checkpoint.newest(tmp_path)
    assert found is None
    assert len(notes) == 2
    checkpoint.mark(tmp_path, last="step-00000002", best=None)
    flip(tmp_path / "step-00000002" / "model.safetensors")
    with pytest.raises(WeightsError, match="damaged"):
        checkpoint.best(tmp_path)
    with pytest.raises(ResumeError, match="no checkpoint"):
        checkpoint.best(tmp_path / "nowhere")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"format": checkpoint.FORMAT + 1}))
    with pytest.raises(WeightsError, match=r"newer than this zoo; upgrade"):
        checkpoint.load(path)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["EVIL"],)


def test_a_pickle_that_needs_more_than_tensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    path = _save(tmp_path, 1)
    torch.save({"x": _Evil()}, path / "state.pt")
    meta = json.loads((path / "meta.json").read_text())
    meta["sha256"]["state.pt"] = files.sha256(path / "state.pt")  # even with a right hash
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(WeightsError, match="cannot be read"):
        checkpoint.load(path)
    assert not (tmp_path / "evil").exists()
    assert checkpoint.newest(tmp_path)[0] is None


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    (path / "model.safetensors").write_bytes(b"no tensors here")
    meta = json.loads((path / "meta.json").read_text())
    meta["sha256"]["model.safetensors"] = files.sha256(path / "model.safetensors")
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(WeightsError, match="cannot be read"):
        checkpoint.load(path)


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(tmp_path, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    monkeypatch.setattr(checkpoint, "save_file", lambda *_: pytest.fail("written all the same"))
    with pytest.raises(ZooError, match=r"MB are needed and 0 MB are free; make room and resume"):
        _save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_the_space_asked_for_covers_weights_and_optimiser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(files, "need_space", lambda folder, size: asked.append(size))
    big = {"w": torch.zeros(1_000_000)}
    state = {"optimisers": {"adam": {"state": {0: {"m": torch.zeros(1_000_000)}}}}}
    path = checkpoint.save(tmp_path, 1, big, state, META)
    written = sum(p.stat().st_size for p in path.iterdir())
    assert written <= asked[0] < 1.5 * written


STEPS = {
    "model": (checkpoint, "save_file"),
    "state": (torch, "save"),
    "sync": (files, "sync"),
    "hash": (files, "sha256"),
    "meta": (files, "write_json"),
}


@pytest.mark.parametrize("step", [*STEPS, "rename"])
@pytest.mark.parametrize("there", [False, True], ids=["new", "again"])
def test_a_failure_while_writing_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, there: bool
) -> None:
    _save(tmp_path, 1)
    if there:
        _save(tmp_path, 2)

    def fail(*_: Any, **__: Any) -> None:
        msg = "No space left on device"
        raise OSError(28, msg)

    with monkeypatch.context() as patch:
        if step == "rename":
            patch.setattr(Path, "rename", fail)
        else:
            patch.setattr(*STEPS[step], fail)
        with pytest.raises(OSError, match="No space left"):
            _save(tmp_path, 2, a=torch.zeros(2))
    found, notes = checkpoint.newest(tmp_path)
    assert found is not None
    assert notes == []
    assert torch.equal(found.model["a"], MODEL["a"])
    assert found.path.name == ("step-00000002" if there else "step-00000001")
    assert _no_temporaries(tmp_path)


@pytest.mark.parametrize("step", [*STEPS, "rename"])
def test_a_kill_while_writing_leaves_the_one_before_and_rubbish_that_is_cleaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    _save(tmp_path, 1)

    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)  # nothing tidies up
        if step == "rename":
            patch.setattr(Path, "rename", die)
        else:
            patch.setattr(*STEPS[step], die)
        with pytest.raises(Killed):
            _save(tmp_path, 2)
    assert not _no_temporaries(tmp_path)
    found, notes = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.path.name, notes) == ("step-00000001", [])
    checkpoint.clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_a_checkpoint_written_again_replaces_the_damaged_one(tmp_path: Path) -> None:
    flip(_save(tmp_path, 3) / "state.pt")
    _save(tmp_path, 3, a=torch.full((2,), 7.0))
    assert torch.equal(
        checkpoint.load(tmp_path / "step-00000003").model["a"], torch.full((2,), 7.0)
    )
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


def test_the_index_names_last_and_best(tmp_path: Path) -> None:
    assert checkpoint.marked(tmp_path) == {}
    for step in (1, 2, 3):
        _save(tmp_path, step, a=torch.tensor([float(step)]))
    checkpoint.mark(tmp_path, last="step-00000003", best="step-00000002")
    assert json.loads((tmp_path / "index.json").read_text()) == {
        "last": "step-00000003",
        "best": "step-00000002",
    }
    assert checkpoint.best(tmp_path).model["a"] == 2.0
    checkpoint.mark(tmp_path, last="step-00000003", best=None)
    assert checkpoint.best(tmp_path).model["a"] == 3.0
    (tmp_path / "index.json").write_text("{")
    assert checkpoint.marked(tmp_path) == {}
    assert checkpoint.best(tmp_path).model["a"] == 3.0
    checkpoint.mark(tmp_path, last="step-00000009", best="step-00000008")  # both removed by hand
    assert checkpoint.best(tmp_path).model["a"] == 3.0


def test_pruning_keeps_the_newest_the_best_and_what_is_yet_to_be_written_anew(
    tmp_path: Path,
) -> None:
    for step in range(1, 7):
        _save(tmp_path, step)
    checkpoint.prune(tmp_path, 2, "step-00000001", "step-00000004")
    names = [p.name[-1] for p in sorted(tmp_path.iterdir())]
    assert names == ["1", "3", "4", "5", "6"]  # 5 and 6 were damaged when training resumed at 3
    checkpoint.prune(tmp_path, 1, None)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000006"]
    assert checkpoint.newest_name(tmp_path) == "step-00000006"
    assert checkpoint.newest_name(tmp_path / "nowhere") is None


def test_weights_are_plain_safetensors(tmp_path: Path) -> None:
    loaded = load_file(_save(tmp_path, 1) / "model.safetensors")
    assert loaded.keys() == MODEL.keys()


def test_a_changed_fact_is_damage(tmp_path: Path) -> None:
    path = _save(tmp_path, 1, w=torch.ones(2))
    meta = path / "meta.json"
    changed = json.loads(meta.read_text())
    changed["facts"] = {"mean": [0.0]}
    meta.write_text(json.dumps(changed))
    with pytest.raises(WeightsError, match=r"meta\.json is damaged"):
        checkpoint.load(path)
