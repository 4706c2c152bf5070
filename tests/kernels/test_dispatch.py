from __future__ import annotations

import pytest
import torch

from zoo.kernels import GatedAttentionPool, _dispatch
from zoo.kernels.gated_attention_pool import op

CPU = torch.zeros(1)


class _Cuda:
    """What the rule asks of a tensor, said for a device that is not here."""

    is_cuda = True
    device = torch.device("cuda")


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(_dispatch, "triton_there", lambda: True)


@pytest.mark.parametrize(
    ("chosen", "there", "supported", "expected"),
    [
        ("auto", True, True, "triton"),
        ("auto", True, False, "torch"),
        ("auto", False, True, "torch"),
        ("triton", True, True, "triton"),
        ("torch", True, True, "torch"),
        ("reference", True, True, "reference"),
    ],
)
def test_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, chosen: str, there: bool, supported: bool, expected: str
) -> None:
    monkeypatch.setenv("ZOO_KERNELS", chosen)
    monkeypatch.setattr(_dispatch, "triton_there", lambda: there)
    assert _dispatch.path_for(_Cuda(), supported) == expected


@pytest.mark.parametrize("chosen", ["auto", "torch", "reference"])
def test_on_the_cpu(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setenv("ZOO_KERNELS", chosen)
    assert _dispatch.path_for(CPU) == ("torch" if chosen == "auto" else chosen)


def test_a_forced_choice_that_is_impossible_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KERNELS", "triton")
    with pytest.raises(RuntimeError, match="no kernel runs on cpu"):
        _dispatch.path_for(CPU)
    with pytest.raises(RuntimeError, match="heads are too wide"):
        _dispatch.path_for(_Cuda(), False, "heads are too wide")
    monkeypatch.setattr(_dispatch, "triton_there", lambda: False)
    with pytest.raises(RuntimeError, match="not installed"):
        _dispatch.path_for(_Cuda())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(_dispatch, "triton_there", lambda: True)
    assert _dispatch.path_for(CPU) == "triton"


def test_a_wrong_choice_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KERNELS", "cuda")
    with pytest.raises(ValueError, match="ZOO_KERNELS=cuda: should be one of auto, triton"):
        _dispatch.choice()


def test_bags_of_few_rows_keep_their_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    inner = op.scored_pool

    def counted(*arguments: object) -> object:
        called.append(True)
        return inner(*arguments)

    monkeypatch.setattr(op, "scored_pool", counted)
    monkeypatch.setattr(op, "SMALL_ROWS", 8)
    pool = GatedAttentionPool(4, 3, 2)
    few, many = torch.randn(7, 4), torch.randn(8, 4)
    pool(few)
    assert not called
    pool(many)
    assert called == [True]
    monkeypatch.setenv("ZOO_KERNELS", "torch")
    pool(few)
    assert called == [True, True]
