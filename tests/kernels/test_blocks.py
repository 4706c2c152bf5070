"""What holds of every block: tracing, copies, export, work that is counted, operators in order."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import zoo.kernels.flops  # noqa: F401 (registers the formulas)
from tests.kernels.agreement import path
from tests.kernels.blocks import NAMES, build, outputs
from zoo.kernels import GatedAttentionPool, QueryPool
from zoo.kernels.gated_linear_attention import torch_path as linear
from zoo.kernels.gated_linear_attention.torch_path import Tokens


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KERNELS", "torch")
    torch.manual_seed(0)


def cast(low: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=low)


@pytest.mark.parametrize("low", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("name", NAMES)
def test_compiles_whole_once_for_all_sizes(name: str, low: bool) -> None:
    torch._dynamo.reset()
    module, make = build(name)
    graphs, seen = [], []

    def count(graph: Any, given: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, given)

    fast = torch.compile(module, backend=count, fullgraph=True, dynamic=True)
    for rows in (30, 45, 70):
        given = make(rows)
        wanted = [*module.parameters(), *(z for z in given if isinstance(z, Tensor))]
        found = []
        for form in (fast, module):
            with cast(low):
                parts = outputs(form(*given))[:3]
            total = sum(z.float().square().sum() for z in parts if z.requires_grad)
            found.append([*parts, *torch.autograd.grad(total, wanted, allow_unused=True)])
        for mine, other in zip(*found, strict=True):
            assert mine.dtype == other.dtype
            # A traced backward pass runs within autocast, and lowers what eager does not.
            bound = (3e-2 if low else 1e-5) * max(1.0, float(other.detach().abs().max()))
            torch.testing.assert_close(mine, other, atol=bound, rtol=0)
        seen.append(len(graphs))
    assert seen[2] == seen[1]  # the second number of rows was the last that compiled anything


class Whole(nn.Module):
    """A network that turns autocast on by itself, and whose outputs are a plain tuple."""

    def __init__(self, block: nn.Module, low: bool) -> None:
        super().__init__()
        self.block, self.low = block, low

    def forward(self, *given: Any) -> tuple[Tensor, ...]:
        if not self.low:
            return outputs(self.block(*given))
        with cast(True):
            return outputs(self.block(*given))


@pytest.mark.parametrize("low", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["reference", "torch"])
def test_exported_file_gives_the_same(which: str, name: str, low: bool, tmp_path: Path) -> None:
    block, make = build(name)
    module = Whole(block.requires_grad_(False), low)
    given = tuple(z.detach() if isinstance(z, Tensor) else z for z in make(30))
    with path(which):
        expected = module(*given)
        torch.export.save(torch.export.export(module, given), tmp_path / "block.pt2")
    found = torch.export.load(tmp_path / "block.pt2").module()(*given)
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("name", NAMES)
def test_functional_call_and_pickle(name: str) -> None:
    module, make = build(name)
    given, other = make(30), build(name)[0]
    again = pickle.loads(pickle.dumps(module))
    called = torch.func.functional_call(module, dict(other.named_parameters()), given)
    for mine, expected in zip(outputs(again(*given)), outputs(module(*given)), strict=True):
        assert torch.equal(mine, expected)
    for mine, expected in zip(outputs(called), outputs(other(*given)), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("which", ["reference", "torch"])
def test_lse_carries_no_gradient_and_bounds_may_be_of_32_bits(which: str) -> None:
    x, query = torch.randn(30, 16, requires_grad=True), torch.randn(2, 16)
    bounds = torch.tensor([0, 7, 7, 30])
    for call in (
        lambda cu: GatedAttentionPool(16, 8, 3)(x, cu),
        lambda cu: QueryPool(16, 4)(query, x, cu),
    ):
        with path(which):
            found = []
            for dtype in (torch.int32, torch.int64):
                torch.manual_seed(1)
                found.append(call(bounds.to(dtype)))
        assert found[0].logits.requires_grad
        assert not found[0].lse.requires_grad
        for mine, other in zip(*found, strict=True):
            assert torch.equal(mine, other)


# -- work that is counted -----------------------------------------------------------------------


def work(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_every_operator_has_a_formula() -> None:
    for name in NAMES:
        module, make = build(name)
        outputs(module(*make(30)))  # registers what is registered late
    ours = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("zoo::")]
    names = {n.removeprefix("zoo::") for n in ours}
    assert {"scored_pool", "query_pool", "moment_products", "gated_linear_attention"} <= names
    # PyTorch's counter has no formula for interpolation either.
    counted = {n for n in names if not n.startswith("legacy_resize")}
    missing = {n for n in counted if getattr(torch.ops.zoo, n) not in flop_registry}
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_counts_what_the_definition_does(name: str) -> None:
    module, make = build(name)
    given = make(30)
    with path("reference"):
        expected = work(lambda: module(*given))
    assert work(lambda: module(*given)) == expected > 0


@pytest.mark.parametrize("gate", [False, True])
def test_the_backward_pass_of_linear_attention_counts_what_it_does(gate: bool) -> None:
    given = [torch.randn(2, 30, 16) for _ in range(4)]
    lepe, bias = torch.randn(16, 1, 3, 3), torch.randn(16)
    q, k, v, g = given[0], given[1], given[2], given[3] if gate else None
    tokens = Tokens(q, k, v, g, lepe, bias, (5, 6), 4)
    out, state, mean = linear.forward(tokens)
    with FlopCounterMode(display=False) as counter:
        linear.backward(out, tokens, state, mean)
    done = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    # The counter takes the backward pass of a depthwise convolution for one of full width.
    done.pop("aten.convolution_backward")
    local = work(
        lambda: nn.functional.conv2d(q.mT.unflatten(2, (5, 6)), lepe, padding=1, groups=16)
    )
    call = torch.ops.zoo.gated_linear_attention_backward
    found = work(lambda: call(out, q, k, v, g, lepe, bias, 5, 6, 4, state, mean))
    assert found == sum(done.values()) + 2 * local > 0


# -- operators in order -------------------------------------------------------------------------

FUNCTIONAL = ("test_schema", "test_faketensor", "test_autograd_registration")


def recorded(name: str) -> list[tuple[Any, Any]]:
    """Calls of the operators, forward and backward, that a run of a block makes."""
    seen: list[tuple[Any, Any]] = []

    class Note(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
            if func.namespace == "zoo":
                seen.append((func, args))
            return func(*args, **(kwargs or {}))

    module, make = build(name)
    given = make(30)
    with Note():
        parts = [z for z in outputs(module(*given)) if z.requires_grad]
        sum(z.square().sum() for z in parts).backward()
    return seen


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck_of_what_a_block_calls(name: str, grad: bool) -> None:
    calls = recorded(name)
    assert {str(func).split(".")[1].endswith("_backward") for func, _ in calls} == {False, True}
    for func, args in calls:
        own = [z.detach().clone() if isinstance(z, Tensor) else z for z in args]
        backward = "_backward" in str(func)
        if grad and not backward:
            own = [
                z.requires_grad_() if isinstance(z, Tensor) and z.is_floating_point() else z
                for z in own
            ]
        # Gradients of gradients are refused, so those operators are not differentiated here.
        checks = FUNCTIONAL if backward else None
        torch.library.opcheck(func, tuple(own), **({"test_utils": checks} if checks else {}))
