from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.holding import (
    close_to_float64,
    export_of_reference_is_aten_only,
    loads_without_the_zoo,
    products_by,
)
from zoo.kernels import MutualAttention, signed_sqrt_attention, two_stream_attention
from zoo.kernels._moment import signed_sqrt
from zoo.kernels.mutual_attention import cpu_path, op, reference, torch_path

R = [[1.0, 0, 2], [0, 1, 1]]
D = [[0.0, 1, 1], [2, 0, 1]]
P = [[1.0, 1, 0], [0, 1, 2]]
EXPECTED = (
    [[0.192450, 0.544331, 0.816497], [0.244504, 0.590284, 0.769274]],
    [[0.751205, 0.220023, 0.622319], [0.451100, 0.451100, 0.770076]],
    [[0.475409, 0.417733, 0.774264], [0.538362, 0.405263, 0.738869]],
)
SHAPES = [(1, 1, 1), (2, 3, 7), (1, 8, 63), (1, 8, 64), (2, 5, 65), (1, 16, 130), (3, 4, 257)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def maps(shape: tuple[int, ...], sign: str = "signed", **options: object) -> list[Tensor]:
    made = [torch.randn(shape, **options) for _ in range(3)]  # type: ignore[call-overload]
    if sign == "rectified":
        made = [x.relu() for x in made]
        made[0][..., 0] = 0.0  # exact zeros among the similarities
    return [x.requires_grad_() for x in made]


@pytest.mark.parametrize("path", ["reference", "torch"])
def test_worked_example(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KERNELS", path)
    module = MutualAttention("signed_sqrt", eps=0.0, l2_scale=False)
    found = module(*(torch.tensor(x, dtype=torch.float64).unsqueeze(0) for x in (R, D, P)))
    for mine, expected in zip(found, EXPECTED, strict=True):
        torch.testing.assert_close(mine[0], torch.tensor(expected).double(), atol=1e-6, rtol=0)
    similar = torch.tensor(P).T @ torch.tensor(R)
    assert similar.tolist() == [[1, 0, 2], [1, 1, 3], [0, 2, 2]]


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_signed_sqrt_is_flat_at_zero(eps: float) -> None:
    x = torch.tensor([-4.0, 0.0, 9.0], dtype=torch.float64, requires_grad=True)
    y = signed_sqrt(x, eps)
    torch.testing.assert_close(y, torch.tensor([-2.0, 0.0, 3.0]).double(), atol=1e-6, rtol=0)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, torch.tensor([0.25, 0, 1 / 6]).double(), atol=1e-6, rtol=0)
    assert slope[1] == 0


@pytest.mark.parametrize("axis", ["map", "position"])
def test_gradcheck_of_the_definition(axis: str) -> None:
    inputs = [x.detach().double().requires_grad_() for x in maps((2, 3, 4))]

    def run(*xs: Tensor) -> tuple[Tensor, ...]:
        return reference.signed_sqrt_attention(*xs, 1e-6, axis)

    assert torch.autograd.gradcheck(run, inputs)


def test_gradcheck_of_the_softmax_definition() -> None:
    shapes = [(2, 4, 3), (2, 5, 3), (2, 5, 2), (2, 5, 4)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(reference.two_stream_attention, inputs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sign", ["signed", "rectified"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_chunked_path_is_as_exact_as_the_definition(
    shape: tuple[int, ...], sign: str, dtype: torch.dtype
) -> None:
    inputs = [x.detach().to(dtype) for x in maps(shape, sign)]
    close_to_float64(signed_sqrt_attention, reference.signed_sqrt_attention, inputs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sign", ["signed", "rectified"])
@pytest.mark.parametrize("onednn", [False, True])
def test_tiles_of_either_library_are_as_exact_as_the_definition(
    shape: tuple[int, ...], sign: str, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZOO_KERNELS", raising=False)
    monkeypatch.setattr(cpu_path, "_HIGH", 48)
    monkeypatch.setattr(cpu_path, "_WIDE", 20)
    inputs = [x.detach() for x in maps(shape, sign)]
    with products_by(onednn=onednn):
        close_to_float64(signed_sqrt_attention, reference.signed_sqrt_attention, inputs)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (3, 4, 257)], ids=str)
@pytest.mark.parametrize("sign", ["signed", "rectified"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_form_of_devices_is_as_exact_as_the_definition(
    shape: tuple[int, ...], sign: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op, "cpu_path", torch_path)
    monkeypatch.setattr(torch_path, "_CHUNK", 100)
    inputs = [x.detach().to(dtype) for x in maps(shape, sign)]
    exact = 1e-10 if dtype == torch.float64 else None
    close_to_float64(signed_sqrt_attention, reference.signed_sqrt_attention, inputs, exact=exact)


@pytest.mark.parametrize("axis", ["map", "position"])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_settings_agree_in_float64(axis: str, eps: float) -> None:
    inputs = [x.detach().double() for x in maps((2, 3, 70), "rectified")]

    def using(form: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *xs: form(*xs, eps, axis, False)

    close_to_float64(
        using(signed_sqrt_attention), using(reference.signed_sqrt_attention), inputs, exact=1e-10
    )


@pytest.mark.parametrize("second", [True, False])
def test_softmax_form_equals_two_attentions(second: bool) -> None:
    shapes = [(2, 3, 9, 8), (2, 3, 11, 8), (2, 3, 11, 4), (2, 3, 11, 6)]
    inputs = [torch.randn(s) for s in shapes[: 3 + second]]
    module = MutualAttention("softmax", scale=0.3)
    found = module(*inputs)
    assert len(found) == 1 + second
    for value, mine in zip(inputs[2:], found, strict=True):
        weights = (inputs[0] @ inputs[1].mT * 0.3).softmax(-1)
        torch.testing.assert_close(mine, weights @ value)

    def plain(*xs: Tensor) -> tuple[Tensor, ...]:
        return (
            reference.two_stream_attention(*xs)
            if second
            else (reference.two_stream_attention(*xs, None))
        )

    close_to_float64(two_stream_attention, plain, inputs)


def test_maps_and_flat_maps_are_the_same() -> None:
    inputs = [x.detach() for x in maps((2, 3, 4, 5))]
    module = MutualAttention("signed_sqrt")
    for one, other in zip(module(*inputs), module(*(x.flatten(2) for x in inputs)), strict=True):
        assert torch.equal(one.flatten(2), other)
        assert one.shape == (2, 3, 4, 5)


@pytest.mark.parametrize("shape", [(2, 8, 200), (1, 16, 1100)], ids=str)
def test_two_runs_agree_bit_by_bit(shape: tuple[int, ...]) -> None:
    inputs = maps(shape)
    runs = []
    for _ in range(2):
        out = signed_sqrt_attention(*inputs)
        runs.append([*out, *torch.autograd.grad(sum(x.square().sum() for x in out), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_batch_equals_its_items_bit_by_bit() -> None:
    inputs = maps((3, 8, 100))
    whole = signed_sqrt_attention(*inputs)
    for b in range(3):
        for one, all_of_them in zip(
            signed_sqrt_attention(*(x[b : b + 1] for x in inputs)), whole, strict=True
        ):
            assert torch.equal(one[0], all_of_them[b])


def test_strided_inputs_and_expanded_gradients() -> None:
    strided = [torch.randn(2, 70, 6).mT.requires_grad_() for _ in range(3)]
    whole = [x.detach().clone(memory_format=torch.contiguous_format) for x in strided]
    whole = [x.requires_grad_() for x in whole]
    one, other = signed_sqrt_attention(*strided), signed_sqrt_attention(*whole)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)
    ours = torch.autograd.grad(sum(x.sum() for x in one), strided)
    theirs = torch.autograd.grad(sum(x.sum() for x in other), whole)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    raw = torch.ops.zoo.moment_products(*whole, 1e-6)
    expanded = torch.autograd.grad(raw[1].sum(), whole, retain_graph=True)
    dense = torch.autograd.grad(raw[1], whole, torch.ones(2, 6, 70))
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


def test_one_output_alone_has_a_gradient() -> None:
    inputs = [x.detach().double().requires_grad_() for x in maps((1, 3, 9))]
    for index in range(3):
        mine = torch.autograd.grad(
            signed_sqrt_attention(*inputs)[index].cos().sum(), inputs, allow_unused=True
        )
        plain = torch.autograd.grad(
            reference.signed_sqrt_attention(*inputs)[index].cos().sum(), inputs, allow_unused=True
        )
        for a, b in zip(mine, plain, strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


def test_nan_stays_in_its_item() -> None:
    inputs = [x.detach() for x in maps((2, 3, 20))]
    clean = signed_sqrt_attention(*inputs)
    inputs[0][0, 1, 2] = float("nan")
    for spoilt, before in zip(signed_sqrt_attention(*inputs), clean, strict=True):
        assert torch.equal(spoilt[1], before[1])
    assert signed_sqrt_attention(*inputs)[0][0].isnan().any()


@pytest.mark.parametrize("form", [cpu_path, torch_path])
def test_nothing_of_the_size_of_similarities_is_made(form: Any) -> None:
    # The forms themselves, since what an operator calls is hidden from the mode around it.
    inputs = tuple(x.detach() for x in maps((1, 4, 3000)))
    out, grads = [torch.empty(1, 4, 3000) for _ in range(3)], [torch.randn(1, 4, 3000)] * 3
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, Tensor):
                    largest = max(largest, x.numel())
            return out

    with Watch():
        form.forward(*inputs, 1e-6, tuple(out))
        form.backward(tuple(grads), inputs, 1e-6, tuple(out))
    # The CPU asks for the memory of six tiles at once; devices take 1,024 columns of all rows.
    assert 3000 * 4 < largest <= (6 * 2048 * 256 if form is cpu_path else 1024 * 3000)


def test_opcheck() -> None:
    for sign in ("signed", "rectified"):
        inputs = maps((2, 3, 10), sign)
        torch.library.opcheck(torch.ops.zoo.moment_products.default, (*inputs, 1e-6))
    plain = [x.detach() for x in maps((2, 3, 10))]
    torch.library.opcheck(torch.ops.zoo.moment_products.default, (*plain, 1e-6))
    grads = [torch.randn(2, 3, 10) for _ in range(3)]
    torch.library.opcheck(
        torch.ops.zoo.moment_products_backward.default,
        (*grads, *plain, 1e-6),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compiles_whole_with_a_dynamic_size() -> None:
    module = torch.compile(MutualAttention("signed_sqrt"), backend="aot_eager", fullgraph=True)
    for positions in (20, 33, 70):
        inputs = maps((1, 3, positions))
        for x in inputs:
            torch._dynamo.mark_dynamic(x, 2)
        out, plain = module(*inputs), signed_sqrt_attention(*inputs)
        for a, b in zip(out, plain, strict=True):
            torch.testing.assert_close(a, b)
        ours = torch.autograd.grad(sum(x.square().sum() for x in out), inputs)
        theirs = torch.autograd.grad(sum(x.square().sum() for x in plain), inputs)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", ["signed_sqrt", "softmax"])
def test_exports_with_operators_of_torch_alone(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tuple(x.detach() for x in maps((1, 6, 20)))
    export_of_reference_is_aten_only(MutualAttention(form), inputs, monkeypatch)


def test_exported_file_loads_without_the_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_KERNELS", "reference")
    inputs = tuple(x.detach() for x in maps((1, 6, 20)))
    file = tmp_path / "attention.pt2"
    torch.export.save(torch.export.export(MutualAttention("signed_sqrt"), inputs), file)
    loads_without_the_zoo(file)


def test_forced_kernels_need_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="ZOO_KERNELS=triton"):
        signed_sqrt_attention(*maps((1, 2, 5)))


def test_no_second_derivative_is_said() -> None:
    inputs = maps((1, 2, 5))
    (first,) = torch.autograd.grad(
        signed_sqrt_attention(*inputs)[0].square().sum(), inputs[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="ZOO_KERNELS=reference"):
        first.sum().backward()
    assert op._products is not None


def test_wrong_arguments_are_named() -> None:
    x = torch.randn(1, 2, 5)
    with pytest.raises(ValueError, match=r"three maps of one shape .* \(1, 2, 4\)"):
        signed_sqrt_attention(x, x, x[..., :4])
    with pytest.raises(ValueError, match="three maps"):
        MutualAttention("signed_sqrt")(x, x, x, x)
    with pytest.raises(ValueError, match="l2_axis"):
        signed_sqrt_attention(x, x, x, l2_axis="channel")
    with pytest.raises(ValueError, match="form is one of softmax, signed_sqrt"):
        MutualAttention("linear")
    with pytest.raises(ValueError, match="values"):
        two_stream_attention(x, x, x[:, :1])
