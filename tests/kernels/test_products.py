from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.kernels.holding import products_by
from zoo.benchmarks.costs import multiply_adds
from zoo.kernels import products
from zoo.kernels.products import Dense, dilation, gram, linear, product

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN"
)


@pytest.fixture(autouse=True)
def _automatic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_KERNELS", raising=False)
    torch.manual_seed(0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """oneDNN is taken whatever size and processor; the operators it is asked for are noted."""
    seen: list[str] = []
    conv, backward = functional.conv2d, products.aten.convolution_backward

    class Noted:
        @staticmethod
        def convolution_backward(*args: object) -> object:
            seen.append("sum")
            return backward(*args)

    def noted(*args: Any, **options: Any) -> Tensor:
        assert options["dilation"] == 2
        seen.append("product")
        return conv(*args, **options)

    monkeypatch.setattr(functional, "conv2d", noted)
    monkeypatch.setattr(products, "aten", Noted)
    with products_by(onednn=True):
        yield seen


def pushed(form: Callable[..., Tensor], x: Tensor, layer: nn.Linear, how: str) -> list[Tensor]:
    """Result and all gradients."""
    y = form(x, layer.weight, layer.bias)
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    loss = y.sum() if how == "sum" else (y * probe).sum()
    return [y, *torch.autograd.grad(loss, [x, *layer.parameters()])]


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


# -- what is computed ---------------------------------------------------------------------------


@needs_onednn
@pytest.mark.parametrize("how", ["sum", "probe"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (3, 7, 24), (2, 3, 5, 24)])
def test_it_is_the_linear_layer(
    shape: tuple[int, ...], bias: bool, how: str, asked: list[str]
) -> None:
    layer = nn.Linear(24, 36, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    ours = pushed(linear, x, layer, how)
    assert asked == ["product", "product", "sum"]  # forward and both gradients
    same(ours, pushed(functional.linear, x, layer, how))


@needs_onednn
@pytest.mark.parametrize("sides", [(1, 1, 1), (7, 1, 3), (5, 3, 1), (1, 9, 4)])
def test_sides_of_one(sides: tuple[int, int, int], asked: list[str]) -> None:
    rows, inputs, outputs = sides
    layer, x = nn.Linear(inputs, outputs), torch.randn(rows, inputs, requires_grad=True)
    ours = pushed(linear, x, layer, "probe")
    assert len(asked) == 3
    same(ours, pushed(functional.linear, x, layer, "probe"))


def test_no_rows_and_no_columns() -> None:
    for shape in ((0, 5), (3, 0)):
        x, weight = torch.randn(shape), torch.randn(4, shape[1])
        with products_by(onednn=False):
            assert torch.equal(linear(x, weight), functional.linear(x, weight))
            assert gram(torch.randn(shape[0], 4), x).shape == (4, shape[1])


@needs_onednn
@pytest.mark.parametrize("inputs", [20, 40, 96])
def test_products_and_sums_are_those_of_float64(inputs: int, asked: list[str]) -> None:
    x, g = torch.randn(2, 300, inputs), torch.randn(2, 300, 40)
    weight, bias = torch.randn(40, inputs), torch.randn(40)
    exact = x.double() @ weight.double().mT + bias.double()
    summed = g.double().flatten(0, 1).mT @ x.double().flatten(0, 1)
    for ours, theirs in ((product(x, weight, bias), exact), (gram(g, x), summed)):
        assert float((ours.double() - theirs).abs().max()) <= 1e-6 * float(theirs.abs().max())
    assert asked == ["product", "sum"]


@needs_onednn
def test_rows_cut_out_of_a_sequence(asked: list[str]) -> None:
    layer, x = nn.Linear(24, 36), torch.randn(3, 9, 24)
    for part in (x[:, 1:], x.transpose(0, 1), x[:, :1].expand(-1, 4, -1), x[..., ::2].mT):
        own = layer if part.shape[-1] == 24 else nn.Linear(part.shape[-1], 5)
        part = part.detach().requires_grad_()
        same(pushed(linear, part, own, "probe"), pushed(functional.linear, part, own, "probe"))
    assert len(asked) == 12


@needs_onednn
def test_gradients_nobody_asks_for_are_not_computed(asked: list[str]) -> None:
    layer = Dense(24, 36)
    layer.weight.requires_grad_(False)
    layer(torch.randn(5, 24)).sum().backward()
    assert asked == ["product"]
    assert layer.bias.grad is not None
    torch.testing.assert_close(layer.bias.grad, torch.full((36,), 5.0))


@needs_onednn
@pytest.mark.parametrize("outputs", [4, 9])
def test_second_derivatives_are_those_of_the_linear_layer(outputs: int, asked: list[str]) -> None:
    layer, x = nn.Linear(6, outputs), torch.randn(5, 6, requires_grad=True)

    def twice(form: Callable[..., Tensor]) -> list[Tensor]:
        given = [x, layer.weight, layer.bias]
        y = form(x, layer.weight, layer.bias).tanh().sum()
        first = torch.autograd.grad(y, given, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), given))

    ours = twice(linear)
    assert asked
    same(ours, twice(functional.linear))


@needs_onednn
def test_two_runs_agree_bit_by_bit(asked: list[str]) -> None:
    layer, x = nn.Linear(70, 33), torch.randn(301, 70, requires_grad=True)
    first, second = (pushed(linear, x, layer, "probe") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(asked) == 6


@needs_onednn
def test_a_dilated_convolution_of_one_cell_is_the_convolution(asked: list[str]) -> None:
    x, weight = torch.randn(2, 5, 4, 3), torch.randn(7, 5, 1, 1)
    assert dilation(x, 1) == 2
    assert dilation(x, 9) == 1
    made = functional.conv2d(x, weight, dilation=dilation(x, 1))
    torch.testing.assert_close(made, torch.einsum("bchw,oc->bohw", x, weight[:, :, 0, 0]))


# -- where it is not taken ----------------------------------------------------------------------


@needs_onednn
@pytest.mark.parametrize("path", ["reference", "torch"])
def test_a_forced_path_leaves_the_choice_to_pytorch(
    path: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_KERNELS", path)
    x = torch.randn(5, 24, requires_grad=True)
    Dense(24, 36)(x).sum().backward()
    assert dilation(x.view(1, 5, 4, 6), 1) == 1
    assert not asked


@needs_onednn
def test_other_dtypes_and_autocast_are_left_alone(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Dense(24, 36).double()(torch.randn(5, 24).double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert Dense(24, 36)(torch.randn(5, 24)).dtype == torch.bfloat16
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    Dense(24, 36)(torch.randn(5, 24))
    assert not asked


@pytest.mark.parametrize("change", [lambda x: x.double(), lambda x: x[:, :10], lambda x: x.mT])
def test_products_of_any_rows(change: Callable[[Tensor], Tensor]) -> None:
    x = change(torch.randn(2, 600, 600))
    weight = torch.randn(30, 600, dtype=x.dtype)
    torch.testing.assert_close(linear(x, weight), functional.linear(x, weight), atol=1e-4, rtol=0)


@needs_onednn
def test_small_products_and_other_processors_are_left_alone(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> None:
        Dense(24, 36)(torch.randn(5, 24, requires_grad=True)).sum().backward()

    for name, value in (("MANY", 6), ("LEAST", 5 * 24 * 36 + 1)):
        with monkeypatch.context() as patch:
            patch.setattr(products, name, value)
            run()
    with products_by(onednn=False):
        run()
    assert not asked
    with monkeypatch.context() as patch:
        patch.setattr(products, "MANY", 5)
        run()  # enough rows for a product, too few for a sum over them
    assert asked == ["product", "product"]


@pytest.mark.parametrize(
    ("capability", "maker", "expected"),
    [
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),
        ("AVX2", "AuthenticAMD", False),
        ("AVX512", None, False),
    ],
)
@needs_onednn
def test_which_processor_it_is_for(
    capability: str,
    maker: str | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("proc") / "cpuinfo"
    if maker is not None:
        path.write_text(f"processor\t: 0\nvendor_id\t: {maker}\n")
    monkeypatch.setattr(products, "_PROCESSOR", path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    products.onednn_is_faster.cache_clear()
    try:
        assert products.onednn_is_faster() is expected
    finally:
        products.onednn_is_faster.cache_clear()


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx512f avx512_fp16 avx512_bf16x\n", False),
        ("", False),
        (None, False),
    ],
)
@needs_onednn
def test_which_processor_multiplies_bfloat16(
    page: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "cpuinfo"
    if page is not None:
        path.write_text(f"processor\t: 0\n{page}bogomips\t: 4800\n")
    monkeypatch.setattr(products, "_PROCESSOR", path)
    products.bfloat16_is_native.cache_clear()
    try:
        assert products.bfloat16_is_native() is expected
    finally:
        products.bfloat16_is_native.cache_clear()


# -- what else is done with a layer -------------------------------------------------------------


@needs_onednn
def test_its_work_is_counted(asked: list[str]) -> None:
    layer, x = Dense(24, 36), torch.randn(3, 7, 24)
    assert multiply_adds(lambda: layer(x)) == pytest.approx(3 * 7 * 24 * 36 / 1e9)
    assert asked


def test_it_can_be_traced() -> None:
    layer = Dense(2048, 2048)
    with products_by(onednn=True):
        made = torch.export.export(layer.eval(), (torch.randn(4, 2048),))
    names = {str(node.target) for node in made.graph.nodes}
    assert any("linear" in name for name in names)
    assert not any("conv" in name for name in names)
