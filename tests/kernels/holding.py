"""What tests of blocks share: the rule that holds a path to the definition, and export."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from zoo.kernels import products

EPS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 8e-4}
Form = Callable[..., Tensor | tuple[Tensor, ...]]


@contextmanager
def products_by(*, onednn: bool) -> Iterator[None]:
    """Sends every product of float32 rows to oneDNN, or none, whatever size and processor."""
    before = products.MANY, products.LEAST, products.onednn_is_faster
    there = onednn and torch.backends.mkldnn.is_available()
    products.MANY = products.LEAST = 0
    setattr(products, "onednn_is_faster", lambda: there)  # noqa: B010 # the type is that of a cache
    try:
        yield
    finally:
        products.MANY, products.LEAST, products.onednn_is_faster = before


def values_and_gradients(
    form: Form, inputs: Sequence[Tensor], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Outputs, then gradients of all inputs for fixed random gradients of the outputs."""
    own = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
    out = form(*own)
    outs = (out,) if isinstance(out, Tensor) else tuple(out)
    seeded = torch.Generator().manual_seed(1)
    probes = [torch.randn(x.shape, generator=seeded).to(x.dtype) for x in outs]
    grads = torch.autograd.grad(outs, own, probes, allow_unused=True)
    return [x.detach() for x in outs] + [
        torch.zeros_like(x) if g is None else g for x, g in zip(own, grads, strict=True)
    ]


def close_to_float64(
    form: Form,
    definition: Form,
    inputs: Sequence[Tensor],
    *,
    exact: float | None = None,
    scale: Callable[[Tensor], float] | None = None,
) -> None:
    """err(path) <= 3 err(definition in the same dtype) + eps * scale, for outputs and gradients.

    Args:
        form: The path.
        definition: Plain PyTorch.
        inputs: In the dtype under test; all have gradients.
        exact: Instead of the eps of the dtype.
        scale: Of a float64 tensor; None: its largest size.
    """
    truth = values_and_gradients(definition, inputs, torch.float64)
    plain = values_and_gradients(definition, inputs)
    found = values_and_gradients(form, inputs)
    eps = EPS[inputs[0].dtype] if exact is None else exact
    for index, (t, p, f) in enumerate(zip(truth, plain, found, strict=True)):
        assert f.dtype == p.dtype, index
        if not torch.isfinite(p).all():
            continue  # beyond the range of the dtype, whatever the form
        assert torch.isfinite(f).all(), index
        size = float(t.abs().max()) if scale is None else scale(t)
        allowed = 3 * float((p.double() - t).abs().max()) + eps * size
        error = float((f.double() - t).abs().max())
        assert error <= allowed, (index, error, allowed)


def export_of_reference_is_aten_only(
    module: nn.Module, inputs: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ZOO_KERNELS=reference the graph has no operator of the zoo, and gives the same."""
    expected = module(*inputs)
    monkeypatch.setenv("ZOO_KERNELS", "reference")
    program = torch.export.export(module, inputs)
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    strange = {t for t in targets if not t.startswith(("aten.", "<built-in function getitem>"))}
    assert not strange, strange
    found = program.module()(*inputs)
    pairs = (
        [(found, expected)]
        if isinstance(expected, Tensor)
        else list(zip(found, expected, strict=True))
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def loads_without_the_zoo(file: Path) -> None:
    """The exported program at `file` loads where only torch is imported."""
    code = (
        f"import sys, torch; torch.export.load({str(file)!r}); "
        "assert not any(m.split('.')[0] == 'zoo' for m in sys.modules)"
    )
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=file.parent, env=clean)
