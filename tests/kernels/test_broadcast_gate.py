from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.kernels.holding import close_to_float64, export_of_reference_is_aten_only
from zoo.kernels import BroadcastGate, broadcast_gate, legacy_resize
from zoo.kernels.broadcast_gate import reference, torch_path

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "medusa"
SIZES = [
    ((1, 1), (3, 4)),
    ((4, 3), (1, 1)),
    ((16, 16), (40, 36)),
    ((64, 48), (29, 29)),
    ((7, 5), (7, 5)),
    ((5, 9), (11, 3)),
    ((256, 17), (119, 119)),
    ((30, 31), (29, 30)),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def dense(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The resize as two products with matrices of weights."""
    for axis, out in ((2, size[0]), (3, size[1])):
        low, high, weight = reference.legacy_grid(out, x.shape[axis], x.device)
        matrix = torch.zeros(out, x.shape[axis], dtype=x.dtype)
        rows = torch.arange(out)
        matrix[rows, low] += (1 - weight).to(x.dtype)
        matrix[rows, high] += weight.to(x.dtype)
        x = torch.movedim(torch.movedim(x, axis, -1) @ matrix.T, -1, axis)
    return x


@pytest.mark.parametrize("name", ["head_upscale", "head_downscale", "head_odd_119"])
@pytest.mark.parametrize("path", ["reference", "torch"])
def test_recorded_heads(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not GOLDEN.is_dir():
        pytest.skip(f"the recorded cases are not at {GOLDEN}")
    from safetensors.torch import load_file

    monkeypatch.setenv("ZOO_KERNELS", path)
    case = load_file(GOLDEN / f"{name}.safetensors")
    kernel = next(k for k in case if k.startswith("state/") and k.endswith("kernel"))
    bias = kernel.replace("kernel", "bias")
    official = {"conv.weight": case[kernel].permute(3, 2, 0, 1), "conv.bias": case[bias]}
    module = BroadcastGate(case[kernel].shape[3])
    module.load_state_dict(official)
    maps = [case[f"input/{n}"].permute(0, 3, 1, 2).requires_grad_() for n in ("x", "body_map")]
    out = module(*maps)
    size = (out.shape[2], out.shape[3])

    def as_here(key: str) -> Tensor:
        return case[key].permute(0, 3, 1, 2)

    close = {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(out, as_here("output/y"), **close)
    torch.testing.assert_close(legacy_resize(maps[1], size), as_here("output/resized_map"), **close)
    torch.testing.assert_close(
        module.attention(maps[1], size), as_here("output/attention"), **close
    )
    wanted = [*maps, module.conv.weight, module.conv.bias]
    grads = torch.autograd.grad(out, wanted, as_here("input/cotangent"))
    grad_kernel, grad_bias = kernel.replace("state", "grad"), bias.replace("state", "grad")
    expected = [
        as_here("grad/x"),
        as_here("grad/body_map"),
        case[grad_kernel].permute(3, 2, 0, 1),
        case[grad_bias],
    ]
    for mine, other in zip(grads, expected, strict=True):
        assert float((mine - other).abs().max()) <= 1e-5 * float(other.abs().max())


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_resize_equals_its_matrices_and_the_definition(
    sizes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    of, size = sizes
    x = torch.randn(2, 3, *of, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(2, 3, *size, dtype=torch.float64)
    found = [form(x, size) for form in (legacy_resize, reference.legacy_resize, dense)]
    grads = [torch.autograd.grad(y, x, probe)[0] for y in found]
    for other in (1, 2):
        torch.testing.assert_close(found[0], found[other])
        torch.testing.assert_close(grads[0], grads[other])


def test_resize_is_not_that_of_half_pixels() -> None:
    ramp = torch.arange(4.0).view(1, 1, 1, 4)
    assert legacy_resize(ramp, (1, 8)).flatten().tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_resize_is_as_exact_as_the_definition(dtype: torch.dtype) -> None:
    for of, size in SIZES[2:6]:
        x = torch.randn(2, 1, *of).to(dtype)
        close_to_float64(
            lambda x, size=size: legacy_resize(x, size),
            lambda x, size=size: reference.legacy_resize(x, size),
            [x],
        )


def test_every_output_cell_is_read_back() -> None:
    for of in range(1, 40):
        for out in range(1, 40):
            _, share = torch_path.readers(out, of, torch.device("cpu"))
            assert float(share.sum()) == pytest.approx(out, abs=1e-3), (of, out)


def test_gradchecks() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: reference.legacy_resize(z, (3, 7)), [x])
    assert torch.autograd.gradcheck(lambda z: legacy_resize(z, (3, 7)), [x])
    assert torch.autograd.gradgradcheck(lambda z: legacy_resize(z, (3, 7)), [x])
    for shape in ((2, 1, 4, 5), (2, 3, 1, 1), (2, 3, 4, 5)):
        level = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for residual in (False, True):
            assert torch.autograd.gradcheck(
                lambda a, b, r=residual: broadcast_gate(a, b, r), [x, level]
            )
    gate = BroadcastGate(3, "channel", hidden=2).double()
    assert torch.autograd.gradcheck(gate, [x])


def test_channel_gate_is_squeeze_and_excitation() -> None:
    gate, x = BroadcastGate(32, "channel"), torch.randn(2, 32, 5, 6)
    hidden = (x.mean((2, 3)) @ gate.down.weight.T + gate.down.bias).relu()
    scale = (hidden @ gate.up.weight.T + gate.up.bias).sigmoid()
    torch.testing.assert_close(gate(x), x * scale[:, :, None, None])
    assert {k: tuple(v.shape) for k, v in gate.state_dict().items()} == {
        "down.weight": (2, 32),
        "down.bias": (2,),
        "up.weight": (32, 2),
        "up.bias": (32,),
    }
    keys = set(BroadcastGate(4, "map", bias=False).state_dict())
    assert keys == {"conv.weight"}


def test_two_runs_strides_and_expanded_gradients() -> None:
    x = torch.randn(2, 9, 8, 1).permute(0, 3, 1, 2).requires_grad_()
    whole = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    for size in ((5, 13), (20, 20)):
        grads = [torch.autograd.grad(legacy_resize(z, size).sum(), z)[0] for z in (x, x, whole)]
        assert torch.equal(grads[0], grads[1])
        assert torch.equal(grads[0], grads[2])


def test_opcheck() -> None:
    for grad in (True, False):
        x = torch.randn(2, 1, 5, 4, requires_grad=grad)
        torch.library.opcheck(torch.ops.zoo.legacy_resize.default, (x, 7, 3))
        torch.library.opcheck(torch.ops.zoo.legacy_resize_backward.default, (x, 7, 3))


def test_compiles_whole_and_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    module = BroadcastGate(3)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for side in (6, 11):
        x, level = torch.randn(2, 3, side, side), torch.randn(2, 1, 9, 9, requires_grad=True)
        torch._dynamo.mark_dynamic(x, 2)
        torch.testing.assert_close(compiled(x, level), module(x, level))
        mine, other = (torch.autograd.grad(f(x, level).sum(), level)[0] for f in (compiled, module))
        torch.testing.assert_close(mine, other)
    inputs = (torch.randn(1, 3, 6, 6), torch.randn(1, 1, 9, 9))
    with torch.no_grad():
        export_of_reference_is_aten_only(module, inputs, monkeypatch)


def test_autocast_does_not_lower_the_resize() -> None:
    x = torch.rand(1, 1, 9, 9)
    exact = legacy_resize(x, (5, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(legacy_resize(x, (5, 5)), exact)


def test_wrong_arguments_are_named() -> None:
    x, gate = torch.randn(1, 3, 4, 4), BroadcastGate(3)
    with pytest.raises(ValueError, match=r"needs a map \(1, 1, H, W\), got None"):
        gate(x)
    with pytest.raises(ValueError, match=r"got \(1, 3, 4, 4\)"):
        gate(x, x)
    with pytest.raises(ValueError, match="takes no map"):
        BroadcastGate(3, "channel")(x, x[:, :1])
    with pytest.raises(ValueError, match="level of 1 or the same size"):
        broadcast_gate(x, x[:, :2])
    with pytest.raises(ValueError, match="size above 0"):
        legacy_resize(x, (0, 3))
    with pytest.raises(ValueError, match="kernel is odd"):
        BroadcastGate(3, kernel=4)
    assert isinstance(gate.conv, nn.Conv2d)
