from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.kernels.holding import close_to_float64, export_of_reference_is_aten_only
from zoo.kernels import GatedLinearAttention, gated_linear_attention, rotary_table, rotate
from zoo.kernels.gated_linear_attention import reference

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "her_seg"
CASES = [  # batch, grid, channels, heads
    (1, (1, 1), 4, 1),
    (2, (3, 5), 8, 2),
    (1, (7, 9), 24, 6),
    (2, (8, 8), 48, 12),
    (1, (5, 13), 96, 3),
]
NAMES = {"up_proj": "up", "down_proj": "down", "act_proj": "gate", "attn.": ""}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(case: tuple[int, tuple[int, int], int, int], gate: bool = True) -> list[Tensor]:
    batch, grid, channels, _ = case
    tokens = (batch, grid[0] * grid[1], channels)
    made = [torch.randn(tokens) for _ in range(4 if gate else 3)]
    return [*made, torch.randn(channels, 1, 3, 3) / 3, torch.randn(channels)]


def using(form: Any, case: tuple[int, tuple[int, int], int, int], gate: bool = True) -> Any:
    def run(*xs: Tensor) -> Tensor:
        rest = xs[3:] if gate else (None, *xs[3:])
        out: Tensor = form(*xs[:3], *rest, case[1], case[3])
        return out

    return run


def golden(name: str) -> dict[str, Tensor]:
    if not GOLDEN.is_dir():
        pytest.skip(f"the recorded cases are not at {GOLDEN}")
    from safetensors.torch import load_file

    return load_file(GOLDEN / f"{name}.safetensors")


def ours(key: str) -> str:
    for old, new in NAMES.items():
        key = key.replace(old, new)
    return key


def loss(out: Tensor) -> Tensor:
    return (out * torch.arange(out.numel()).float().cos().view(out.shape)).mean()


@pytest.mark.parametrize("path", ["reference", "torch"])
@pytest.mark.parametrize("name", ["linear_attention", "linear_attention_small_denominator"])
def test_recorded_attention(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden(name)
    monkeypatch.setenv("ZOO_KERNELS", path)
    state = {
        ours(k.removeprefix("state/")): v
        for k, v in case.items()
        if k.startswith("state/") and "rope" not in k
    }
    heads = 3 if name == "linear_attention" else 6
    module = GatedLinearAttention(state["up.weight"].shape[1], heads, gate=False)
    module.load_state_dict(state)
    x = case["input/x"].requires_grad_()
    out = module(x)
    rtol = 1e-5 if name == "linear_attention" else 1e-4
    torch.testing.assert_close(out, case["output/y"], atol=1e-5, rtol=rtol)
    parameters = dict(module.named_parameters())
    grads = torch.autograd.grad(loss(out), [x, *parameters.values()])
    expected = {ours(k): v for k, v in case.items()}
    for key, grad in zip(
        ["grad/input.x", *(f"grad/param.{p}" for p in parameters)], grads, strict=True
    ):
        torch.testing.assert_close(grad, expected[key], atol=1e-5, rtol=rtol)


class Block(nn.Module):
    """HER-Seg's token block around the attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = GatedLinearAttention(dim, heads)
        self.out_proj = nn.Linear(dim, dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 2 * dim), "fc2": nn.Linear(2 * dim, dim)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out_proj(self.attn(self.norm1(x)))
        hidden: Tensor = nn.functional.gelu(self.mlp["fc1"](self.norm2(x)))
        out: Tensor = x + self.mlp["fc2"](hidden)
        return out


@pytest.mark.parametrize("path", ["reference", "torch"])
def test_recorded_block(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden("lgvit_block")
    monkeypatch.setenv("ZOO_KERNELS", path)

    def here(key: str) -> str:
        key = key.replace("act_proj", "attn.gate")
        return key.replace("up_proj", "up").replace("down_proj", "down")

    module = Block(48, 12)
    module.load_state_dict(
        {
            here(k.removeprefix("state/")): v
            for k, v in case.items()
            if k.startswith("state/") and "rope" not in k
        }
    )
    x = case["input/x"].requires_grad_()
    out = module(x)
    torch.testing.assert_close(out, case["output/y"], atol=1e-5, rtol=1e-5)
    parameters = dict(module.named_parameters())
    grads = torch.autograd.grad(loss(out), [x, *parameters.values()])
    expected = {here(k): v for k, v in case.items()}
    for key, grad in zip(
        ["grad/input.x", *(f"grad/param.{p}" for p in parameters)], grads, strict=True
    ):
        torch.testing.assert_close(grad, expected[key], atol=1e-5, rtol=1e-5)


def test_recorded_rotation() -> None:
    case = golden("rope")
    cos, sin = rotary_table((12, 14), 96)
    table = torch.stack((cos, sin), -1).unflatten(0, (12, 14))
    torch.testing.assert_close(table, case["state/rotations"], atol=1e-5, rtol=1e-5)
    turned = rotate(case["input/x"].flatten(1, 2), cos, sin).unflatten(1, (12, 14))
    torch.testing.assert_close(turned, case["output/y"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_gradcheck_of_the_definition(case: Any, gate: bool) -> None:
    own = [x.double().requires_grad_() for x in inputs(case, gate)]
    run = using(reference.gated_linear_attention, case, gate)
    assert torch.autograd.gradcheck(run, own, fast_mode=True)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_path_is_as_exact_as_the_definition(case: Any, gate: bool, dtype: torch.dtype) -> None:
    own = [x.to(dtype) for x in inputs(case, gate)]
    close_to_float64(
        using(gated_linear_attention, case, gate),
        using(reference.gated_linear_attention, case, gate),
        own,
    )


def test_path_agrees_in_float64_and_without_bias() -> None:
    case = CASES[2]
    own = [x.double() for x in inputs(case)][:5]

    def bare(form: Any) -> Any:
        return lambda *xs: form(*xs, None, case[1], case[3])

    close_to_float64(
        bare(gated_linear_attention), bare(reference.gated_linear_attention), own, exact=1e-12
    )


def test_small_and_large_arguments_of_the_feature_map() -> None:
    case = (1, (4, 4), 8, 2)
    for shift in (-30.0, -12.0, 30.0):
        own = inputs(case)
        own[0], own[1] = own[0] + shift, own[1] + shift
        close_to_float64(
            using(gated_linear_attention, case),
            using(reference.gated_linear_attention, case),
            own,
        )


def test_rotation_keeps_lengths_and_turns_by_distance() -> None:
    cos, sin = rotary_table((4, 5), 8, dtype=torch.float64)
    x = torch.randn(8, dtype=torch.float64).expand(20, 8)
    turned = rotate(x, cos, sin)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    products = (turned @ turned.T).view(4, 5, 4, 5)
    torch.testing.assert_close(products[0, 0, 1, 2], products[2, 1, 3, 3])
    assert torch.equal(turned[0], x[0])


def test_no_table_is_stored_and_names_are_kept() -> None:
    names = {k.split(".")[0] for k in GatedLinearAttention(8, 2).state_dict()}
    assert names == {"qk", "up", "down", "lepe", "gate"}
    assert "gate.weight" not in GatedLinearAttention(8, 2, gate=False).state_dict()


def test_less_is_kept_for_backward_than_by_the_definition() -> None:
    case = CASES[3]

    def kept(form: Any) -> int:
        own, sizes = [x.requires_grad_() for x in inputs(case)], {}

        def note(x: Tensor) -> Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            using(form, case)(*own)
        return sum(sizes.values())

    assert kept(gated_linear_attention) < 0.6 * kept(reference.gated_linear_attention)


def test_two_runs_agree_bit_by_bit_and_items_do_not_meet() -> None:
    case = (2, (6, 7), 24, 6)
    own = [x.requires_grad_() for x in inputs(case)]
    run = using(gated_linear_attention, case)
    runs = [[y := run(*own), *torch.autograd.grad(y.square().sum(), own)] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    with torch.no_grad():
        own[1][0, 3] = float("nan")
        assert torch.equal(run(*own)[1], runs[0][0][1])


def test_strided_tokens_and_expanded_gradients() -> None:
    case = CASES[2]
    own = inputs(case)
    wide = torch.cat([torch.zeros_like(own[0]), own[0], own[1]], dim=-1)
    channels = case[2]
    strided = [wide[..., channels : 2 * channels], wide[..., 2 * channels :], *own[2:]]
    strided = [x.requires_grad_() for x in strided]
    whole = [x.detach().clone().requires_grad_() for x in own]
    run = using(gated_linear_attention, case)
    torch.testing.assert_close(run(*strided), run(*whole))
    for a, b in zip(
        torch.autograd.grad(run(*strided).sum(), strided),
        torch.autograd.grad(run(*whole).sum(), whole),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_frozen_inputs_have_no_gradient() -> None:
    case = CASES[1]
    own = inputs(case)
    own[2].requires_grad_()
    (grad,) = torch.autograd.grad(using(gated_linear_attention, case)(*own).sum(), own[2])
    assert torch.isfinite(grad).all()
    assert own[0].grad is None


@pytest.mark.parametrize("gate", [True, False])
def test_opcheck(gate: bool) -> None:
    case = CASES[1]
    for grad in (True, False):
        own: list[Any] = [x.requires_grad_(grad) for x in inputs(case, gate)]
        if not gate:
            own.insert(3, None)
        torch.library.opcheck(
            torch.ops.zoo.gated_linear_attention.default, (*own, *case[1], case[3])
        )


def test_compiles_whole_with_a_dynamic_grid() -> None:
    module = GatedLinearAttention(8, 2)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for grid in ((4, 5), (6, 3), (7, 7)):
        x = torch.randn(1, grid[0] * grid[1], 8, requires_grad=True)
        torch.testing.assert_close(compiled(x, grid), module(x, grid))
        mine, other = (torch.autograd.grad(f(x, grid).sum(), x)[0] for f in (compiled, module))
        torch.testing.assert_close(mine, other)


def test_compiles_whole_on_squares() -> None:
    module = GatedLinearAttention(8, 2)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for side in (3, 5, 8):
        x = torch.randn(1, side * side, 8)
        torch.testing.assert_close(compiled(x), module(x))


def test_exports_with_operators_of_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        export_of_reference_is_aten_only(
            GatedLinearAttention(8, 2), (torch.randn(1, 16, 8),), monkeypatch
        )


def test_no_second_derivative_is_said() -> None:
    case = CASES[1]
    own = [x.requires_grad_() for x in inputs(case)]
    out = using(gated_linear_attention, case)(*own)
    (first,) = torch.autograd.grad(out.sum(), own[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="ZOO_KERNELS=reference"):
        first.sum().backward()


def test_wrong_arguments_are_named() -> None:
    module, x = GatedLinearAttention(8, 2), torch.randn(1, 15, 8)
    with pytest.raises(ValueError, match=r"15 tokens do not fill a grid of 4 rows and 4 columns"):
        module(x)
    with pytest.raises(ValueError, match="multiple of 4"):
        GatedLinearAttention(6, 2)
    with pytest.raises(ValueError, match="multiple of 4"):
        GatedLinearAttention(8, 3)
    lepe = torch.randn(8, 1, 3, 3)
    with pytest.raises(ValueError, match="one shape"):
        gated_linear_attention(x, x, x[:, :2], None, lepe, None, (3, 5), 2)
    with pytest.raises(ValueError, match="a gate"):
        gated_linear_attention(x, x, x, x[:, :2], lepe, None, (3, 5), 2)
    with pytest.raises(ValueError, match="3 heads"):
        gated_linear_attention(x, x, x, None, lepe, None, (3, 5), 3)
