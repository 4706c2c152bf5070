"""Cases of gated attention pooling, and how they are run on any path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tests.kernels.agreement import hold, path, poisoned
from zoo.kernels import GatedAttentionPool, bag_bounds, softmax_pool

PARAMETERS = ("value.weight", "value.bias", "gate.weight", "gate.bias", "score.weight")


@dataclass(frozen=True)
class Case:
    """One run: sizes, dtype, what is special about the scores, and what gets a gradient."""

    bounds: tuple[int, ...] | None = (0, 3, 3, 4, 60, 97)
    rows: int = 97
    dim: int = 40
    attn: int = 16
    branches: int = 5
    dtype: torch.dtype = torch.float32
    use: str = (
        "pool"  # or mask, logits, softmax; rows, bfloat16, nothing, half: policies of features
    )
    spread: float = 1.0  # factor on the scores
    grads: str = "both"  # or pooled, logits
    seed: int = 0

    def __str__(self) -> str:
        parts = [self.use, f"{self.rows}x{self.dim}", f"A{self.attn}", f"K{self.branches}"]
        parts += [str(self.dtype).removeprefix("torch."), self.grads]
        parts += [] if self.bounds is None else [f"{len(self.bounds) - 1}bags"]
        return "-".join([*parts, *([f"spread{self.spread:g}"] if self.spread != 1 else [])])

    def normal(self) -> Case:
        """The same with a gradient that its outputs can have."""
        only = {"logits": "logits", "softmax": "pooled"}.get(self.use)
        return replace(self, grads="both" if only and self.grads != only else self.grads)

    @property
    def cu_seqlens(self) -> Tensor | None:
        return None if self.bounds is None else torch.tensor(self.bounds)


@dataclass
class Inputs:
    module: GatedAttentionPool
    reduction: torch.nn.Linear
    x: Tensor
    logits: Tensor
    mask: Tensor
    d_pooled: Tensor
    d_logits: Tensor


def build(case: Case) -> Inputs:
    """Inputs of a case, rounded to its dtype."""
    random = torch.Generator(torch.get_default_device()).manual_seed(case.seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    module = GatedAttentionPool(case.dim, case.attn, case.branches)
    width = case.dim if case.use in ("pool", "mask", "logits", "softmax") else 24
    reduction = torch.nn.Linear(width, case.dim)
    with torch.no_grad():
        for parameter in (*module.parameters(), *reduction.parameters()):
            parameter.copy_(draw(*parameter.shape) / parameter.shape[-1] ** 0.5)
        module.score.weight.mul_(case.spread)
    bags = 1 if case.bounds is None else len(case.bounds) - 1
    x = draw(case.rows, width).to(case.dtype)
    logits = draw(case.rows, case.branches) * case.spread
    mask = torch.rand(case.rows, case.branches, generator=random) < 0.3
    probes = draw(bags, case.branches, case.dim), draw(case.rows, case.branches)
    return Inputs(module, reduction, x, logits, mask, *probes)


def run(case: Case, given: Inputs, exact: bool = False, x: Tensor | None = None) -> dict[str, Any]:
    """Outputs and gradients; in float64 if `exact`, from `x` in place of the given rows if any."""
    dtype = torch.float64 if exact else None
    module = GatedAttentionPool(case.dim, case.attn, case.branches)
    module.load_state_dict(given.module.state_dict())
    reduction = torch.nn.Linear(given.reduction.in_features, case.dim)
    reduction.load_state_dict(given.reduction.state_dict())
    if exact:
        module.double()
        reduction.double()
    x = (given.x.to(dtype) if x is None else x).detach().requires_grad_()
    logits = given.logits.to(dtype or torch.float32).requires_grad_()
    cu, inputs = case.cu_seqlens, {"x": x, **dict(module.named_parameters())}
    if case.use == "logits":
        out = {"logits": module.gated_logits(x)}
    elif case.use == "softmax":
        pooled, lse = softmax_pool(logits, x, cu, given.mask)
        out, inputs = {"pooled": pooled, "lse": lse}, {"x": x, "given": logits}
    elif case.use in ("pool", "mask"):
        out = module(x, cu, given.mask if case.use == "mask" else None)._asdict()
    else:
        keep = 0.5 if case.use == "half" else case.use
        out = module.from_features(x, reduction, cu, keep)._asdict()
        inputs |= {f"reduction.{name}": p for name, p in reduction.named_parameters()}
    return {**out, **_gradients(case, given, out, inputs)}


def _gradients(
    case: Case, given: Inputs, out: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    pairs = {"pooled": given.d_pooled, "logits": given.d_logits}
    wanted = [n for n in pairs if n in out and case.grads in ("both", n)]
    probes = [pairs[n].to(out[n].dtype) for n in wanted]
    found = torch.autograd.grad(
        [out[n] for n in wanted], list(inputs.values()), probes, materialize_grads=True
    )
    return {f"d {name}": grad for name, grad in zip(inputs, found, strict=True)}


def scales(case: Case, given: Inputs) -> dict[str, float]:
    """Size of the terms of sums that may cancel: |dP| for rows and weights, sum |ds| for biases."""
    pooling = replace(case, use="pool")
    d_z, d_s = given.d_pooled.double(), given.d_logits.double()
    x = given.x.double()
    if case.use in ("rows", "bfloat16", "nothing", "half"):
        x = torch.relu(given.reduction.double()(x))
        given.reduction.float()
    largest, total = 0.0, d_s.abs().sum(dim=0)
    for bag, (start, end) in enumerate(bag_bounds(pooling.cu_seqlens, case.rows)):
        if start < end:
            through = x[start:end] @ d_z[bag].mT
            largest = max(largest, through.abs().max().item())
            total = total + 2 * through.abs().max(dim=0).values
    weight = given.module.score.weight.detach().double().abs()
    bias = (total @ weight).max().item()
    # dP - dZ . Z is zero up to the rounding of dP where one row takes all, and then meets w.
    steep = largest * max(1.0, case.spread)
    found = {f"d {name}": steep for name in ("x", *PARAMETERS, "given", "reduction.weight")}
    return found | {
        "d value.bias": bias,
        "d gate.bias": bias,
        "d score.bias": total.max().item(),
        "d reduction.bias": steep * case.rows**0.5,
    }


def check(case: Case, which: str, poison: bool = True) -> None:
    """Holds a path to the definition on one case."""
    given = build(case)
    with path("reference"):
        exact, plain = run(case, given, exact=True), run(case, given)
    with path(which):
        found = run(case, given, x=poisoned(given.x) if poison else None)
    dtype = torch.bfloat16 if case.use == "bfloat16" else case.dtype
    hold(found, plain, exact, dtype, scales(case, given))


def _halves(case: Case) -> Iterator[Case]:
    """Cases with one size half as large."""
    bounds = None if case.bounds is None else tuple(bound // 2 for bound in case.bounds)
    if case.rows > 1:
        yield replace(case, rows=case.rows // 2, bounds=bounds)
    for name in ("dim", "attn", "branches"):
        if getattr(case, name) > 1:
            yield replace(case, **{name: getattr(case, name) // 2})


def check_and_shrink(case: Case, check: Callable[[Case], None]) -> None:
    """Checks a random case; one that fails is halved while it still does, and named so."""
    try:
        check(case)
    except AssertionError as error:
        for smaller in _halves(case):
            check_and_shrink(smaller, check)
        msg = f"{error}; the smallest such case is {case!r}"
        raise AssertionError(msg) from None
