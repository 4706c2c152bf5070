"""The soak script: it kills, resumes, and would see a bit that differs."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.running import good, only_run
from zoo import checkpoint, registry
from zoo.benchmarks import soak
from zoo.benchmarks.killing import Lost, differences, survive
from zoo.runs import Run


def test_it_kills_resumes_compares_and_tells(
    stubs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--kills", "2", "--seed", "4", "--tasks", "stub_bags", "--workers", "0"]
    assert soak.main([*words, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "seed 4, 2 kills" in shown
    assert "SIGKILL at" in shown
    assert "the same bits" in shown
    row = next(line for line in shown.splitlines() if line.startswith("| all |"))
    runs, kills, wrong = (int(cell) for cell in row.split("|")[3:6])
    assert kills >= 2
    assert runs >= 1
    assert wrong == 0


def test_the_same_seed_gives_the_same_kills(stubs: None) -> None:
    case = soak.Case("stub_bags", 0, [], seconds=9.0)
    first, second = (soak.kills_of(case, random.Random("1/x"), 3) for _ in range(2))
    assert first == second
    assert first != soak.kills_of(case, random.Random("2/x"), 3)


@pytest.fixture
def pair(stubs: None, tmp_path: Path) -> tuple[Run, Run]:
    """A finished run and a copy of it."""
    words = ["task=stub_bags", "trainer.max_steps=3", "tracking.enabled=false"]
    good("train", *words, f"out={tmp_path / 'a'}")
    first = only_run(tmp_path / "a")
    shutil.copytree(first.path, tmp_path / "b" / first.name)
    return first, only_run(tmp_path / "b")


def test_differences_are_seen(pair: tuple[Run, Run]) -> None:
    first, second = pair
    assert differences(second, first) == []
    (second.path / ".records-abcdefgh").touch()
    assert differences(second, first) == ["left behind: .records-abcdefgh"]
    (second.path / ".records-abcdefgh").unlink()
    second.info["results"] = dict.fromkeys(second.results(), 0.25)
    assert differences(second, first) == ["the results differ"]
    second.refresh()
    rows = [json.loads(line) for line in second.metrics_file.read_text().splitlines()]
    next(r for r in rows if "train/loss" in r["values"])["values"]["train/loss"] = 1.25
    second.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    (line,) = differences(second, first)
    assert "metrics differ" in line
    shutil.copy(first.metrics_file, second.metrics_file)
    path = second.checkpoints / str(checkpoint.newest_name(second.checkpoints))
    weights = load_file(path / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1e-6
    save_file(weights, path / "model.safetensors")
    assert "the last weights differ" in differences(_trusting(second, path), first)
    second.metrics_file.write_text(first.metrics_file.read_text() * 2)
    with pytest.raises(Lost, match="twice at step"):
        differences(second, first)


def _trusting(run: Run, path: Path) -> Run:
    """With the hash of what the file holds now, as a training would have written it."""
    from zoo import files

    meta = json.loads((path / "meta.json").read_text())
    meta["sha256"]["model.safetensors"] = files.sha256(path / "model.safetensors")
    (path / "meta.json").write_text(json.dumps(meta))
    return run


def test_a_training_that_fails_is_lost(stubs: None, tmp_path: Path) -> None:
    with pytest.raises(Lost, match="unknown key"):
        survive(["task=stub_bags", "trainer.epoch=1"], tmp_path / "x", [])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("task", [n for n, e in registry.tasks().items() if e.built])
def test_every_task_survives_a_kill_at_a_random_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, workers: int
) -> None:
    words = ["--kills", "1", "--seed", "7", "--tasks", task, "--workers", str(workers)]
    code = soak.main([*words, "--steps", "6", "--out", str(tmp_path)])
    assert code == 0, capsys.readouterr().out
