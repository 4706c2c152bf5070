from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import zoo.kernels.flops  # noqa: F401 (registers the formulas)
from tests.kernels.agreement import guarded, path
from tests.kernels.gated import Case, build, check, check_and_shrink, run
from zoo.kernels import GatedAttentionPool, pool_from_features, softmax_pool
from zoo.kernels.gated_attention_pool import torch_path

HALF = (torch.bfloat16, torch.float16)
USES = ("pool", "mask", "logits", "softmax", "rows", "bfloat16", "nothing", "half")
RAGGED = torch.tensor([0, 3, 3, 4, 60, 97])
CASES = [
    *(Case(use=use, dtype=dtype) for use in USES for dtype in (torch.float32, *HALF)),
    *(Case(use=use, dtype=torch.float64) for use in USES if use != "bfloat16"),
    *(Case(grads=g, use=u) for g, u in product(("pooled", "logits"), ("pool", "nothing"))),
    Case(bounds=None, rows=257, dim=33, branches=1, attn=7),
    Case(bounds=(0, 1, 2, 3), rows=3, branches=16),
    Case(bounds=(0, 0, 0), rows=0),
    Case(bounds=None, rows=0),
    Case(bounds=None, rows=1),
    *(Case(use=use, spread=1e4) for use in ("pool", "mask", "softmax")),
    *(Case(use=use, spread=0.0) for use in ("pool", "mask", "softmax")),
]


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_path, "_CHUNK_CPU", 16)
    monkeypatch.setenv("ZOO_KERNELS", "torch")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_path_agrees_with_the_definition(case: Case) -> None:
    with guarded():
        check(case, "torch")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_random_cases(seed: int) -> None:
    with guarded():
        check_and_shrink(random_case(seed), lambda case: check(case, "torch"))


def test_a_case_that_fails_is_halved_while_it_does() -> None:
    def fails(case: Case) -> None:
        assert case.rows < 10 or case.branches < 2, "wrong"

    smallest = (
        r"(?s)wrong.*; the smallest such case is Case\(.* rows=12, dim=1, attn=1, branches=2,"
    )
    with pytest.raises(AssertionError, match=smallest):
        check_and_shrink(Case(), fails)
    check_and_shrink(Case(rows=9, bounds=None), fails)


def random_case(seed: int) -> Case:
    random = torch.Generator(torch.get_default_device()).manual_seed(seed)

    def pick(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=random))]

    rows = pick(1, 15, 16, 17, 63, 64, 65, 257)
    inner = sorted(torch.randint(rows + 1, (pick(0, 1, 4),), generator=random).tolist())
    return Case(
        bounds=pick(None, (0, *inner, rows)),
        rows=rows,
        dim=pick(16, 40, 72, 129),
        attn=pick(16, 24, 64, 128),
        branches=pick(1, 3, 5, 16),
        dtype=pick(torch.float32, *HALF),
        use=pick(*USES),
        spread=pick(1.0, 1.0, 1.0, 0.0, 1e4),
        grads=pick("both", "pooled", "logits"),
        seed=seed,
    ).normal()


@pytest.mark.parametrize("use", ["pool", "mask", "nothing"])
def test_two_runs_agree_bit_by_bit(use: str) -> None:
    given = build(Case(use=use))
    first, second = (run(Case(use=use), given) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_packed_bags_equal_single_bags_bit_by_bit() -> None:
    given = build(Case())
    packed = given.module(given.x, RAGGED)
    for bag, (start, end) in enumerate(pairwise(RAGGED.tolist())):
        single = given.module(given.x[start:end])
        assert torch.equal(packed.pooled[bag], single.pooled[0])
        assert torch.equal(packed.logits[start:end], single.logits)
        assert torch.equal(packed.lse[bag], single.lse[0])


@pytest.mark.parametrize("shape", ["sum", "transposed"])
def test_incoming_gradients_may_be_expanded_or_transposed(shape: str) -> None:
    given = build(Case())
    x = given.x.clone().requires_grad_()
    inputs = [x, *given.module.parameters()]
    out = given.module(x, RAGGED)
    strange: list[Tensor] = []
    for value in out[:2]:
        probe = torch.ones(()).expand(value.shape)
        if shape == "transposed":
            probe = torch.randn(value.shape[::-1]).permute(*range(value.dim())[::-1])
        strange.append(probe)
    found = torch.autograd.grad(out[:2], inputs, strange, retain_graph=True)
    expected = torch.autograd.grad(out[:2], inputs, [probe.contiguous() for probe in strange])
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


def test_frozen_inputs_get_no_gradient_and_cost_nothing() -> None:
    given = build(Case())
    given.module.requires_grad_(False)
    x = given.x.clone().requires_grad_()
    given.module(x, RAGGED).pooled.sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in given.module.parameters())
    given.module.score.requires_grad_(True)
    given.module(given.x, RAGGED).logits.sum().backward()
    assert given.module.score.weight.grad is not None
    assert given.module.value.weight.grad is None


def test_nothing_wide_is_kept_for_the_backward_pass() -> None:
    rows, dim, attn = 400, 32, 16
    module, reduction = GatedAttentionPool(dim, attn, 2), torch.nn.Linear(48, dim)
    features = torch.randn(rows, 48)
    kept: dict[str | float, int] = {}
    for policy in ("rows", "bfloat16", "nothing", 0.25):
        total = [0]

        def note(tensor: Tensor, total: list[int] = total) -> Tensor:
            wide = tensor.shape[1:] in ((dim,), (2,)) and tensor.shape[0] > 16
            if wide and tensor.data_ptr() != features.data_ptr():
                total[0] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            module.from_features(features, reduction, keep=policy)
        kept[policy] = total[0]
    small = rows * 2 * 4  # the logits
    assert kept == {"rows": rows * dim * 4 + small, "bfloat16": rows * dim * 2 + small} | {
        "nothing": small,
        0.25: rows // 4 * dim * 4 + small,
    }


def test_second_derivative_is_refused_in_words() -> None:
    module, x = GatedAttentionPool(6, 4, 2), torch.randn(5, 6, requires_grad=True)
    (first,) = torch.autograd.grad(module(x).pooled.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative; set ZOO_KERNELS=reference"):
        first.sum().backward()
    with path("reference"):
        (first,) = torch.autograd.grad(module(x).pooled.square().sum(), x, create_graph=True)
        first.sum().backward()


def test_wrong_arguments_are_named() -> None:
    module, x = GatedAttentionPool(6, 4, 2), torch.randn(5, 6)
    with pytest.raises(ValueError, match="keep must be one of rows, bfloat16, nothing"):
        module.from_features(x, torch.nn.Linear(6, 6), keep="all")
    with pytest.raises(ValueError, match=r"a share from 0 to 1, got 1\.5"):
        module.from_features(x, torch.nn.Linear(6, 6), keep=1.5)
    with pytest.raises(ValueError, match="the reduction makes rows of 7, not 6"):
        module.from_features(x, torch.nn.Linear(6, 7))
    with pytest.raises(ValueError, match=r"instances must be \(N, 6\)"):
        module(torch.randn(5, 7))
    with pytest.raises(ValueError, match="rise from 0 to the 5 rows"):
        module(x, torch.tensor([0, 4]))


# -- registration -------------------------------------------------------------------------------


def calls() -> dict[str, Callable[[bool], tuple[Any, ...]]]:
    """Arguments of the operator in each of its uses."""

    def make(grad: bool, use: str) -> tuple[Any, ...]:
        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, requires_grad=grad)

        shapes = [(4, 6), (4,), (4, 6), (4,), (2, 4), (2,)]
        weights = [None] * 6 if use == "softmax" else [draw(*s) for s in shapes]
        features = use in ("rows", "nothing")
        reduction = (draw(6, 8), draw(6)) if features else (None, None)
        return (
            draw(9, 8 if features else 6),
            *weights,
            draw(9, 2) if use == "softmax" else None,
            *reduction,
            torch.tensor([0, 4, 4, 9]) if use != "pool" else None,
            use != "logits",
            use if features else "nothing",
            1000 if features else 0,
        )

    return {u: lambda grad, u=u: make(grad, u) for u in ("pool", "logits", "softmax", "rows")}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("use", ["pool", "logits", "softmax", "rows"])
def test_opcheck(use: str, grad: bool) -> None:
    torch.library.opcheck(torch.ops.zoo.scored_pool.default, calls()[use](grad))


def compiled(backend: str) -> None:
    torch._dynamo.reset()
    module, sizes = GatedAttentionPool(16, 8, 3), (50, 70, 90)
    seen: list[int] = []

    def step(x: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
        out = module(x, cu_seqlens)
        return out.pooled, out.logits

    def count(graph: Any, inputs: Any) -> Any:
        seen.append(1)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    fast = torch.compile(step, backend=count, fullgraph=True, dynamic=True)
    for rows in sizes:
        x = torch.randn(rows, 16, requires_grad=True)
        cu = torch.tensor([0, 10, 10, rows])
        for mine, other in zip(fast(x, cu), step(x, cu), strict=True):
            torch.testing.assert_close(mine, other)
        found = torch.autograd.grad(fast(x, cu)[0].square().sum(), [x, *module.parameters()])
        expected = torch.autograd.grad(step(x, cu)[0].square().sum(), [x, *module.parameters()])
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other)
    assert len(seen) == 1  # no recompilation for another N


def test_compile_whole_graph_with_dynamic_rows() -> None:
    compiled("aot_eager")


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    compiled("inductor")


class Plain(torch.nn.Module):
    """Outputs as a plain tuple, which a file can name without zoo."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = GatedAttentionPool(16, 8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(self.pool(x))


def test_export_with_the_reference_path_holds_aten_operators_only(tmp_path: Path) -> None:
    module, x, other = Plain(), torch.randn(20, 16), torch.randn(31, 16)
    rows = {"x": {0: torch.export.Dim("rows", min=2)}}
    for name, namespaces in (("reference", {"aten"}), ("torch", {"aten", "zoo"})):
        with path(name):
            exported = torch.export.export(module, (x,), dynamic_shapes=rows)
        operators = (node.target for node in exported.graph.nodes)
        assert {
            o.namespace for o in operators if isinstance(o, torch._ops.OpOverload)
        } == namespaces
        file = tmp_path / f"{name}.pt2"
        torch.export.save(exported, file)
        loaded = torch.export.load(file).module()
        for mine, expected in zip(loaded(other), module(other), strict=True):
            torch.testing.assert_close(mine, expected)
    code = (
        "import sys, torch; sys.modules['zoo'] = None; "
        "module = torch.export.load(sys.argv[1]).module(); "
        "assert module(torch.randn(31, 16))[0].shape == (1, 3, 16)"
    )
    file = tmp_path / "reference.pt2"
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, cwd=tmp_path)


def test_functional_call_and_pickle() -> None:
    module, x = GatedAttentionPool(16, 8, 2), torch.randn(50, 16)
    doubled = {name: 2 * p.detach() for name, p in module.named_parameters()}
    found = torch.func.functional_call(module, doubled, (x,))
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(x).pooled, module(x).pooled)
    again.load_state_dict(doubled)
    assert torch.equal(found.pooled, again(x).pooled)


def test_flops_are_counted() -> None:
    module, x = GatedAttentionPool(16, 8, 2), torch.randn(50, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        out = module(x)
    forward = 4 * 50 * 16 * 8 + 2 * 50 * 2 * (8 + 16)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        out.pooled.sum().backward()
    assert counter.get_total_flops() == 3 * forward


def test_policies_give_the_same_outputs_and_are_free_without_gradients() -> None:
    module, reduction, x = (
        GatedAttentionPool(16, 8, 2),
        torch.nn.Linear(24, 16),
        torch.randn(50, 24),
    )
    rows = reduction(x).relu()
    expected = module(rows)
    weights = module._weights()
    for keep in ("rows", "bfloat16", "nothing", 0.3):
        out = pool_from_features(x, reduction.weight, reduction.bias, weights, keep=keep)
        torch.testing.assert_close(out.pooled, expected.pooled)
    pooled, _ = softmax_pool(expected.logits, rows)
    torch.testing.assert_close(pooled, expected.pooled)
