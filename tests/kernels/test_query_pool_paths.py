from __future__ import annotations

import pickle
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.agreement import guarded, hold, path, poisoned
from zoo.kernels import QueryPool
from zoo.kernels.query_pool import torch_path
from zoo.kernels.query_pool.op import attend

HALF = (torch.bfloat16, torch.float16)
DIM, HEADS = 24, 4
BOUNDS = torch.tensor([0, 3, 3, 4, 60, 97])


@dataclass(frozen=True)
class Case:
    bounds: tuple[int, ...] | None = (0, 3, 3, 4, 60, 97)
    rows: int = 97
    queries: int = 2
    dense: int = 0  # bags of a batch axis
    norm: bool = True
    dtype: torch.dtype = torch.float32
    spread: float = 1.0
    shift: float = 0.0  # common offset of all channels, which LayerNorm takes away
    grads: str = "both"

    def __str__(self) -> str:
        words = [f"{name}{value}" for name, value in vars(self).items()]
        return "-".join(words).replace("torch.", "").replace(" ", "")


CASES = [
    *(Case(dtype=d, norm=n) for d in (torch.float32, torch.float64, *HALF) for n in (True, False)),
    *(Case(dense=5, bounds=None, queries=q) for q in (1, 3)),
    Case(dense=5, bounds=None, norm=False, dtype=torch.bfloat16),
    *(Case(grads=g) for g in ("pooled", "logits")),
    Case(bounds=None, rows=1),
    Case(bounds=None, rows=0),
    Case(bounds=(0, 0, 0), rows=0),
    Case(spread=1e3),
    Case(spread=0.0),
    Case(shift=30.0),
]


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_path, "_CHUNK", 16)
    monkeypatch.setenv("ZOO_KERNELS", "torch")
    torch.manual_seed(0)


def build(case: Case) -> tuple[QueryPool, Tensor, Tensor]:
    module = QueryPool(DIM, HEADS, key_norm=case.norm)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    lead = (case.dense,) if case.dense else ()
    queries = torch.randn(*lead, case.queries, DIM) * case.spread
    rows = case.rows // case.dense if case.dense else case.rows
    return module, queries, (torch.randn(*lead, rows, DIM) + case.shift).to(case.dtype)


def run(
    case: Case, module: QueryPool, queries: Tensor, kv: Tensor, exact: bool = False
) -> dict[str, Tensor]:
    again = QueryPool(DIM, HEADS, key_norm=case.norm)
    again.load_state_dict(module.state_dict())
    if exact or case.dtype == torch.float64:
        again, queries = again.double(), queries.double()
    kv = kv.double() if exact else kv
    queries, kv = (z.detach().requires_grad_() for z in (queries, kv))
    cu = None if case.bounds is None else torch.tensor(case.bounds)
    out = again(queries, kv, cu)
    inputs = {"queries": queries, "kv": kv, **dict(again.named_parameters())}
    random = torch.Generator().manual_seed(1)
    probes = {
        name: torch.randn(getattr(out, name).shape, generator=random)
        for name in ("features", "logits")
        if case.grads in ("both", "pooled" if name == "features" else name)
    }
    values = [getattr(out, name) for name in probes]
    grads = torch.autograd.grad(
        values,
        list(inputs.values()),
        [p.to(v.dtype) for p, v in zip(probes.values(), values, strict=True)],
        materialize_grads=True,
    )
    named = {f"d {name}": grad for name, grad in zip(inputs, grads, strict=True)}
    return {**out._asdict(), **named}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_path_agrees_with_the_definition(case: Case) -> None:
    module, queries, kv = build(case)
    with path("reference"):
        exact = run(case, module, queries, kv, exact=True)
        plain = run(case, module, queries, kv)
    inside = kv if case.dense else poisoned(kv)
    with guarded():
        found = run(case, module, queries, inside)
    # A key bias moves all scores alike: its gradient is a sum that cancels.
    scales = {"d key.bias": float(case.rows), "d kv": 1.0, "d key_norm.bias": 10.0}
    scales |= {"d queries": 1.0, "d query.weight": 1.0, "d query.bias": 1.0, "d key.weight": 1.0}
    scales |= {"d key_norm.weight": 1.0}
    factor = 1e3 if case.spread > 1 else 1.0
    scales = {name: factor * value for name, value in scales.items() if name in exact}
    hold(found, plain, exact, case.dtype, scales)


def test_two_runs_agree_bit_by_bit_and_bags_with_single_ones() -> None:
    case = Case()
    module, queries, kv = build(case)
    first, second = run(case, module, queries, kv), run(case, module, queries, kv)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for bag, (start, end) in enumerate(pairwise(BOUNDS.tolist())):
        single = module(queries, kv[start:end])
        assert torch.equal(single.logits, first["logits"][start:end])
        assert torch.equal(single.lse[0], first["lse"][bag])
    pooled = attend(kv, *module.absorb(queries), BOUNDS, module.key_norm)[0]
    alone = attend(kv[4:60], *module.absorb(queries), None, module.key_norm)[0]
    assert torch.equal(pooled[3], alone[0])


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("shape", ["sum", "transposed"])
def test_incoming_gradients_may_be_expanded_or_transposed(shape: str, which: int) -> None:
    module, queries, kv = build(Case())
    kv.requires_grad_()
    out = attend(kv, *module.absorb(queries), BOUNDS, module.key_norm)[which]
    strange = torch.ones(()).expand(out.shape)
    if shape == "transposed":
        strange = torch.randn(out.shape[::-1]).permute(*range(out.dim())[::-1])
    (one,) = torch.autograd.grad(out, kv, strange, retain_graph=True)
    (other,) = torch.autograd.grad(out, kv, strange.contiguous())
    assert torch.equal(one, other)


def test_nan_stays_in_its_bag() -> None:
    module, queries, kv = build(Case())
    clean = module(queries, kv, BOUNDS)
    kv[1] = float("nan")
    kv.requires_grad_()
    spoilt = module(queries, kv, BOUNDS)
    assert spoilt.features[0].isnan().all()
    assert torch.equal(spoilt.features[1:], clean.features[1:])
    (gradient,) = torch.autograd.grad(spoilt.features[2:].sum() + spoilt.logits[3:].sum(), kv)
    assert torch.isfinite(gradient[3:]).all()


def arguments(grad: bool, dense: bool, eps: float | None) -> tuple[Any, ...]:
    bags = 3 if dense else 1
    shapes = [(9, 6), (bags, 4, 6), (bags, 4)]
    tensors = [torch.randn(*shape, requires_grad=grad) for shape in shapes]
    return (*tensors, None if dense else torch.tensor([0, 4, 4, 9]), eps)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_opcheck(grad: bool, dense: bool, eps: float | None) -> None:
    torch.library.opcheck(torch.ops.zoo.query_pool.default, arguments(grad, dense, eps))


def test_compile_export_functional_call_and_pickle() -> None:
    torch._dynamo.reset()
    module, queries = QueryPool(16, 4, key_norm=True), torch.randn(2, 16)
    fast = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (30, 50):
        kv = torch.randn(rows, 16, requires_grad=True)
        torch.testing.assert_close(fast(queries, kv).features, module(queries, kv).features)
        (mine,) = torch.autograd.grad(fast(queries, kv).features.sum(), kv)
        (other,) = torch.autograd.grad(module(queries, kv).features.sum(), kv)
        torch.testing.assert_close(mine, other)
    with path("reference"):
        exported = torch.export.export(module, (queries, torch.randn(20, 16)))
    operators = (node.target for node in exported.graph.nodes)
    assert {o.namespace for o in operators if isinstance(o, torch._ops.OpOverload)} == {"aten"}
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(queries, kv).features, module(queries, kv).features)
    zeros = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    assert not torch.func.functional_call(module, zeros, (queries, kv)).features.any()


def test_second_derivative_is_refused_in_words() -> None:
    module, queries, kv = build(Case())
    kv.requires_grad_()
    out = module(queries, kv).features.square().sum()
    (first,) = torch.autograd.grad(out, kv, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; set ZOO_KERNELS=reference"):
        first.sum().backward()
