"""Gradients of a small model are averaged in one message, those of a large one by DDP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.processes import BAGS, QUIET, Ended, Hook, all_of, at_call, trained
from tests.running import only_run, values
from zoo import averaging, checkpoint
from zoo.averaging import Averages, small
from zoo.errors import DataError, TrainingError
from zoo.stepping import Stepper


class Pair:
    """Two processes, of which the other one's part is known beforehand."""

    size, rank, first = 2, 0, True

    def __init__(self, numbers: Sequence[float], *messages: Tensor) -> None:
        self.numbers, self.messages = numbers, messages
        self.aligned: list[nn.Module] = []

    def align(self, model: nn.Module, weights: bool = False) -> None:
        assert weights
        self.aligned.append(model)

    def sums(self, numbers: Sequence[float], *beside: Tensor) -> list[float]:
        for mine, other in zip(beside, self.messages, strict=True):
            mine += other
        return [a + b for a, b in zip(numbers, self.numbers, strict=True)]


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.zeros(2, 3))
        self.here = nn.Parameter(torch.zeros(1))
        self.there = nn.Parameter(torch.zeros(2))
        self.nowhere = nn.Parameter(torch.zeros(4))
        self.frozen = nn.Parameter(torch.zeros(5), requires_grad=False)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_gradients_become_means_and_numbers_sums(kind: torch.dtype) -> None:
    model = Parts().to(kind)
    model.both.grad = torch.arange(6.0, dtype=kind).view(3, 2).T  # not contiguous
    model.here.grad = torch.tensor([8.0], dtype=kind)
    other = torch.tensor([*[2.0] * 6, 0.0, *[5.0, 7.0], *[0.0] * 4, 1, 0, 1, 0], dtype=kind)
    pair: Any = Pair([0.5, 2.0], other)
    averages = Averages(model, pair)
    assert pair.aligned == [model]
    assert averages.sums([1.0, 3.0]) == [1.5, 5.0]
    assert model.both.grad.tolist() == [[1.0, 2.0, 3.0], [1.5, 2.5, 3.5]]
    assert model.both.grad.stride() == (1, 2)
    assert model.here.grad.tolist() == [4.0]
    assert model.there.grad is not None
    assert model.there.grad.tolist() == [2.5, 3.5]
    assert model.there.grad.dtype == kind
    assert model.nowhere.grad is None  # an optimiser with decay or momentum passes it by
    assert model.frozen.grad is None


def test_a_model_at_rest_still_adds_its_numbers() -> None:
    model = Parts().requires_grad_(False)
    pair: Any = Pair([2.0])
    assert Averages(model, pair).sums([1.0]) == [3.0]


def test_what_is_small_is_counted_in_bytes_of_gradients() -> None:
    assert small(nn.Linear(1023, 256, dtype=torch.float32))
    assert not small(nn.Linear(1024, 256, dtype=torch.float32))
    assert not small(nn.Linear(1023, 256, dtype=torch.float64))
    assert small(nn.Linear(4096, 4096).requires_grad_(False))


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_with_different_models_are_told(rank: int) -> None:
    class Others(Pair):
        def every(self, value: Any) -> list[Any]:
            return [value, value | {"weight": (3, 2)}]

        def alike(self, error: Exception) -> Exception:
            return error

    pair: Any = Others([])
    pair.rank = rank
    with pytest.raises(TrainingError, match=r"process 1 .* 'weight' is \(3, 2\) and \(2, 2\)"):
        Stepper(None, nn.Linear(2, 2), pair)  # type: ignore[arg-type]


# -- in a training ------------------------------------------------------------------------------


def by_ddp(rank: int) -> None:
    averaging.MOST = 0


def counting(file: Path) -> Hook:
    """Count what the first process wraps in DDP and what it averages itself."""

    def hook(rank: int) -> None:
        def mark(word: str) -> Any:
            return lambda: file.write_text(file.read_text() + word if file.exists() else word)

        at_call(0, "zoo.stepping:DistributedDataParallel", 1, mark("ddp "))(rank)
        at_call(0, "zoo.stepping:Averages", 1, mark("one "))(rank)

    return hook


@pytest.mark.slow
@pytest.mark.parametrize("words", [BAGS, ["task=stub_alternating", "trainer.batch_size=2"]])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_both_ways_train_alike(
    stubs: None, tmp_path: Path, words: list[str], accumulate: int
) -> None:
    """Accumulation, phases with frozen halves and a short last group included."""
    words = [*words, *QUIET, f"trainer.accumulate={accumulate}", "trainer.epochs=2"]
    runs, used = [], []
    for name, hook in (("one", counting), ("ddp", lambda f: all_of(by_ddp, counting(f)))):
        said = tmp_path / f"said_{name}"
        ended = trained(tmp_path / name, said, *words, hook=hook(tmp_path / f"used_{name}"))
        assert ended.codes == [0, 0], ended.told()
        runs.append(only_run(tmp_path / name))
        used.append((tmp_path / f"used_{name}").read_text())
    assert used == ["one ", "ddp "]
    one, ddp = runs
    assert values(one) == pytest.approx(values(ddp), rel=1e-5, nan_ok=True)
    a, b = (checkpoint.best(r.checkpoints).model for r in runs)
    for key, weight in a.items():
        torch.testing.assert_close(weight, b[key], rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_a_backward_pass_is_told_once(
    stubs: None, out: Path, tmp_path: Path, rank: int
) -> None:
    def broken() -> None:
        msg = "no derivative today"
        raise DataError(msg)

    hook = at_call(rank, "lightning_fabric.fabric:Fabric.backward", 3, broken)
    ended: Ended = trained(out, tmp_path / "said", *BAGS, *QUIET, hook=hook)
    assert ended.codes == [2, 2], ended.told()
    assert ended.errors == ["error: no derivative today"]
    assert only_run(out).status == "failed"
