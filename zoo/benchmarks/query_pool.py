"""Few-query attention against the form that projects every token to a key and a value.

Shapes: FusionReID's fusion unit (64 images, 210 tokens of 768, one query of 12 heads), HER-Seg's
mask decoder (8 images, 4096 tokens of 256, 4 queries of 8 heads at inner width 128), and the
latter's opposite direction, from the tokens to the four queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.benchmarks.harness import Form, Row, can_compile, on_path, peak_cpu, peak_cuda, rows
from zoo.kernels import FewKeyAttention, QueryPool
from zoo.kernels.few_key_attention import explicit_attention

SHAPES = {
    "FusionReID": (64, 210, 768, 768, 12, 1, True),
    "HER-Seg": (8, 4096, 256, 128, 8, 4, False),
}
"""Name -> bags, tokens, width, inner width, heads, queries, LayerNorm before the keys."""


def plain_pool(module: QueryPool, queries: Tensor, kv: Tensor) -> Tensor:
    """Attention with keys and values of all tokens, by PyTorch's own attention."""
    tokens = kv if module.key_norm is None else module.key_norm(kv)
    parts = module.query(queries), module.key(tokens), module.value(kv)
    q, k, v = (torch.unflatten(z, -1, (module.heads, -1)).transpose(1, 2) for z in parts)
    merged = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    found: Tensor = module.out(merged)
    return found


def plain_few(module: FewKeyAttention, tokens: Tensor, keys: Tensor) -> Tensor:
    """Attention with queries of all tokens."""
    query = (module.query.weight, module.query.bias)
    merged = explicit_attention(tokens, module.key(keys), module.value(keys), query, module.heads)
    found: Tensor = module.out(merged)
    return found


def _run(compute: Callable[[], Tensor], inputs: Sequence[Tensor], mode: str, probe: Tensor) -> Form:
    if mode == "fwd":

        def forward() -> Tensor:
            with torch.no_grad():
                return compute()

        return forward
    return lambda: torch.autograd.grad((compute() * probe).sum(), inputs)


def make(
    block: str, name: str, form: str, mode: str, device: str = "cpu", quick: bool = False
) -> Form:
    """A run of `query_pool` or `few_key_attention` in one form at a shape."""
    torch.manual_seed(0)
    bags, count, width, inner, heads, few, norm = SHAPES[name]
    bags = max(1, bags // 8) if quick else bags
    many = torch.randn(bags, count, width, device=device, requires_grad=True)
    short = torch.randn(bags, few, width, device=device, requires_grad=True)
    module: nn.Module
    compute: Callable[[], Tensor]
    if block == "query_pool":
        pool = QueryPool(width, heads, inner=inner, key_norm=norm).to(device)
        module, probe = pool, torch.randn(bags, few, width, device=device)
        if form in ("key/value", "compile"):
            plain: Callable[..., Tensor] = plain_pool
            if form == "compile":
                torch._dynamo.reset()
                plain = torch.compile(plain_pool, dynamic=False)
            compute = lambda: plain(pool, short, many)  # noqa: E731
        else:
            compute = lambda: pool(short, many).features  # noqa: E731
    else:
        fold = FewKeyAttention(width, heads, inner=inner).to(device)
        module, probe = fold, torch.randn_like(many)
        if form == "key/value":
            compute = lambda: plain_few(fold, many, short)  # noqa: E731
        else:
            compute = lambda: fold(many, short)  # noqa: E731
    run = _run(compute, [many, short, *module.parameters()], mode, probe)
    return run if form in ("key/value", "compile") else on_path(form, run)


def run(device: str | torch.device, quick: bool = False) -> list[Row]:
    """Times both blocks at their shapes.

    Args:
        device: Where to run.
        quick: An eighth of the bags; no memory on the CPU.
    """
    where, found = torch.device(device), []
    names = ("key/value", "reference", "torch")
    cases = [("query_pool", "FusionReID"), ("query_pool", "HER-Seg")]
    for block, name in [*cases, ("few_key_attention", "HER-Seg")]:
        forms_of: tuple[str, ...] = names if block == "query_pool" else ("key/value", "torch")
        if block == "query_pool" and not quick and can_compile(where):
            forms_of = (*names, "compile")
        for mode in ("fwd", "fwd+bwd"):
            forms = {f: make(block, name, f, mode, str(where), quick) for f in forms_of}
            memory: dict[str, float] = {}
            if where.type == "cuda":
                memory = {f: peak_cuda(form) for f, form in forms.items()}
            elif not quick:  # a process a form, whose start takes longer than what it measures
                plain = [f for f in forms if f != "compile"]  # its compiler's memory is not its own
                memory = {f: peak_cpu(make, block, name, f, mode, "cpu", quick) for f in plain}
            shape = " x ".join(str(size) for size in SHAPES[name][:3])
            turns = 30 if where.type == "cuda" else 5
            found += rows(
                block, f"{name}, {shape}", mode, forms, where, rounds=turns, memory=memory
            )
    return found
