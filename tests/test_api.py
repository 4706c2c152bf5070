from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo as package
from tests.running import Zoo, only_run
from zoo.errors import ConfigError


def test_tasks_and_their_aliases() -> None:
    assert "wsi_mil" in package.tasks()
    assert package.get_task("acmil", "seed=7").config.seed == 7
    with pytest.raises(ConfigError, match="did you mean 'wsi_mil'"):
        package.get_task("wsi_mill")


def test_load_gives_the_trained_model(zoo: Zoo, out: Path) -> None:
    words = ["task=wsi_mil", "trainer.max_steps=2", "tracking.enabled=false", f"out={out}"]
    assert zoo("train", *words).code == 0
    run = only_run(out)
    model = package.load("wsi_mil", str(run.path))
    assert not model.training
    stored = load_file(next(run.checkpoints.glob("step-*")) / "model.safetensors")
    own = model.state_dict()
    assert own.keys() == stored.keys()
    assert all(torch.equal(own[k], stored[k]) for k in own)
    logits = model(torch.zeros(3, 32)).logits
    assert logits.shape == (1, 2)


def test_bench_times_forms_and_refuses_what_is_not_there(zoo: Zoo, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert zoo("bench", "channel_attention", "--quick", "--json", file).code == 0
    assert '"block": "channel_attention"' in file.read_text().splitlines()[0]
    wrong = zoo("bench", "channel_atention")
    assert wrong.code == 2
    assert "no benchmark 'channel_atention'" in wrong.err
    if not torch.cuda.is_available():
        absent = zoo("bench", "channel_attention", "--device", "cuda")
        assert absent.code == 2
        assert "there is no such CUDA device here" in absent.err
