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
from zoo import checkpoint, starting
from zoo.errors import WeightsError
from zoo.task import Conversion


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
    return taken, starting.lines(taken, origin, task.config)


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
