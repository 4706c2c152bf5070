from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zoo.kernels import MASKED, GatedAttentionPool, bag_bounds, gated_logits, softmax_pool
from zoo.kernels.gated_attention_pool import gated_attention_pool

BOUNDS = torch.tensor([0, 3, 3, 4, 7])  # 3 rows, none, one, 3
ROOT = Path(__file__).parents[2]


def weights(dim: int = 5, attn: int = 4, branches: int = 3) -> list[Tensor]:
    shapes = [(attn, dim), (attn,), (attn, dim), (attn,), (branches, attn), (branches,)]
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def by_hand(x: Tensor, w: list[Tensor], mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One bag, row by row: an independent reading of the formula."""
    value, value_b, gate, gate_b, score, score_b = w
    logits = torch.stack(
        [score @ (torch.tanh(value @ r + value_b) / (1 + torch.exp(-gate @ r - gate_b))) for r in x]
    )
    logits = logits + score_b
    if mask is not None:
        logits = torch.where(mask, torch.full_like(logits, MASKED), logits)
    grown = torch.exp(logits - logits.amax(0))
    share = grown / grown.sum(0)
    return torch.stack([(share[:, k, None] * x).sum(0) for k in range(len(score))]), logits


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_gradcheck_of_the_definition_on_ragged_bags() -> None:
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(7, 3, dtype=torch.bool)
    mask[0, 1] = mask[5, 2] = True

    def pooled_and_logits(x: Tensor, *w: Tensor) -> tuple[Tensor, Tensor]:
        out = gated_attention_pool(x, *w, BOUNDS, mask)
        return out.pooled, out.logits.masked_fill(mask, 0.0)

    assert torch.autograd.gradcheck(pooled_and_logits, (x, *weights()))


@pytest.mark.parametrize("masked", [False, True])
def test_outputs_and_gradients_are_those_of_the_formula(masked: bool) -> None:
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    w = weights()
    mask = torch.rand(7, 3) < 0.3 if masked else None
    out = gated_attention_pool(x, *w, BOUNDS, mask)
    probe, probe_logits = torch.randn_like(out.pooled), torch.randn_like(out.logits)
    ours = torch.autograd.grad(
        (out.pooled * probe).sum() + (out.logits * probe_logits).sum(), [x, *w]
    )

    total = x.new_zeros(())
    for bag, (start, end) in enumerate(bag_bounds(BOUNDS, 7)):
        if start == end:
            continue
        part = None if mask is None else mask[start:end]
        pooled, logits = by_hand(x[start:end], w, part)
        torch.testing.assert_close(out.pooled[bag], pooled)
        torch.testing.assert_close(out.logits[start:end], logits)
        torch.testing.assert_close(out.lse[bag], logits.logsumexp(0))
        total = total + (pooled * probe[bag]).sum() + (logits * probe_logits[start:end]).sum()
    for mine, other in zip(ours, torch.autograd.grad(total, [x, *w]), strict=True):
        torch.testing.assert_close(mine, other)


def test_empty_bag_gives_zeros_and_minus_infinity() -> None:
    out = gated_attention_pool(torch.randn(7, 5, dtype=torch.float64), *weights(), BOUNDS)
    assert not out.pooled[1].any()
    assert torch.isneginf(out.lse[1]).all()
    assert torch.isfinite(out.lse[[0, 2, 3]]).all()


def test_masked_entries_are_the_official_value_and_get_no_gradient() -> None:
    logits = torch.randn(4, 2, requires_grad=True)
    mask = torch.tensor([[True, False]] * 3 + [[False, False]])
    pooled, _ = softmax_pool(logits, torch.randn(4, 3), mask=mask)
    pooled.square().sum().backward()
    assert logits.grad is not None
    assert not logits.grad[:3, 0].any()
    assert logits.grad[:, 1].all()
    module = GatedAttentionPool(3, 4, 2)
    assert (module(torch.randn(4, 3), mask=mask).logits[mask] == MASKED).all()


def test_a_bag_with_everything_masked_pools_uniformly() -> None:
    x = torch.randn(5, 3)
    pooled, _ = softmax_pool(torch.randn(5, 1), x, mask=torch.ones(5, 1, dtype=torch.bool))
    torch.testing.assert_close(pooled[0, 0], x.mean(0))


def test_module_equals_its_bags_one_by_one_with_gradients() -> None:
    module = GatedAttentionPool(6, 8, 3)
    x = torch.randn(7, 6, requires_grad=True)
    probe = torch.randn(4, 3, 6)
    packed = module(x, BOUNDS)
    grads = torch.autograd.grad((packed.pooled * probe).sum(), [x, *module.parameters()])
    single = [module(x[a:b]) for a, b in bag_bounds(BOUNDS, 7)]
    torch.testing.assert_close(packed.pooled, torch.cat([one.pooled for one in single]))
    torch.testing.assert_close(packed.logits, torch.cat([one.logits for one in single]))
    total = (torch.cat([one.pooled for one in single]) * probe).sum()
    others = torch.autograd.grad(total, [x, *module.parameters()])
    for mine, other in zip(grads, others, strict=True):
        torch.testing.assert_close(mine, other)


def test_nan_stays_in_its_bag_forward_and_backward() -> None:
    module = GatedAttentionPool(6, 8, 2)
    x = torch.randn(7, 6)
    clean = module(x, BOUNDS)
    x[1] = float("nan")
    x.requires_grad_()
    spoilt = module(x, BOUNDS)
    assert spoilt.pooled[0].isnan().all()
    assert torch.equal(spoilt.pooled[1:], clean.pooled[1:])
    (gradient,) = torch.autograd.grad(spoilt.pooled[2:].sum(), x)
    assert torch.isfinite(gradient[3:]).all()


def test_strided_rows_and_expanded_gradients() -> None:
    module = GatedAttentionPool(6, 8, 2)
    wide = torch.randn(7, 20)
    strided = wide[:, 3:9].requires_grad_()
    whole = wide[:, 3:9].clone().requires_grad_()
    one, other = module(strided, BOUNDS), module(whole, BOUNDS)
    torch.testing.assert_close(one.pooled, other.pooled)
    (a,) = torch.autograd.grad(one.pooled.sum(), strided)
    (b,) = torch.autograd.grad(other.pooled.sum(), whole)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_keep_logits_in_float32(dtype: torch.dtype) -> None:
    module = GatedAttentionPool(16, 8, 2)
    x = torch.randn(300, 16)
    exact, half = module(x), module(x.to(dtype))
    assert half.logits.dtype == half.lse.dtype == torch.float32
    assert half.pooled.dtype == dtype
    torch.testing.assert_close(half.pooled.float(), exact.pooled, atol=2e-2, rtol=0)


def test_dense_form_equals_packed_bags_of_equal_length() -> None:
    x, logits = torch.randn(2, 4, 3), torch.randn(2, 4, 5)
    dense, lse = softmax_pool(logits, x)
    packed, packed_lse = softmax_pool(
        logits.flatten(0, 1), x.flatten(0, 1), torch.tensor([0, 4, 8])
    )
    torch.testing.assert_close(dense, packed)
    torch.testing.assert_close(lse, packed_lse)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (torch.tensor([0, 3]), "rise from 0 to the 7 rows"),
        (torch.tensor([1, 7]), "rise from 0"),
        (torch.tensor([0, 5, 3, 7]), "rise from 0"),
        (torch.tensor([0.0, 7.0]), "int32 or int64"),
        (torch.tensor([[0, 7]]), "shape"),
        (torch.tensor([7]), "shape"),
    ],
)
def test_wrong_bounds_are_named(bounds: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        softmax_pool(torch.randn(7, 2), torch.randn(7, 3), bounds)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected; got \(6, 2\)"):
        softmax_pool(torch.randn(6, 2), torch.randn(7, 3))
    with pytest.raises(ValueError, match="batch axis already"):
        softmax_pool(torch.randn(1, 7, 2), torch.randn(1, 7, 3), torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="mask must be bool"):
        softmax_pool(torch.randn(7, 2), torch.randn(7, 3), mask=torch.ones(7, 2))
    with pytest.raises(ValueError, match=r"instances must be \(N, 5\)"):
        gated_logits(torch.randn(7, 4), *weights())
    with pytest.raises(ValueError, match="branches=0"):
        GatedAttentionPool(4, 4, 0)


def test_parameters_have_the_names_that_later_forms_keep() -> None:
    shapes = {k: tuple(v.shape) for k, v in GatedAttentionPool(6, 8, 3).state_dict().items()}
    assert shapes == {
        "value.weight": (8, 6),
        "value.bias": (8,),
        "gate.weight": (8, 6),
        "gate.bias": (8,),
        "score.weight": (3, 8),
        "score.bias": (3,),
    }


def test_kernels_need_torch_alone_and_no_door() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import zoo.kernels; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "assert new <= {'zoo', 'torch'}, new\n"
        "try:\n    import kernels\nexcept ImportError as e:\n    print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "import 'zoo.kernels' instead" in done.stdout
