"""FusionReID: its fusion units, all of transmission, and the whole model beside the plain form.

The plain form is the published one on the same weights (`plain.py` of the task): keys and values
of every token, attention in single steps, a grouped convolution for the 1 x 1 depthwise one. Rows
are a forward and backward pass at the paper's sizes: 128 and 210 tokens of 768, 12 heads, two
layers. In the columns of memory stand the megabytes (MB) that a forward pass saves for the
backward pass: every tensor storage once, parameters left out. Cases name the multiply-adds of one
image, plain and ours. Transmission's encoding units are dense layers over all tokens, which both
forms have in common: they bound what the fusion units can gain of the whole.

Ours stands there twice: with PyTorch's own products (`zoo, torch`), which shows what the algebra
gives, and with products by the library that is faster on the processor (`zoo`; see
`zoo/kernels/products.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.benchmarks.costs import multiply_adds, saved_megabytes
from zoo.benchmarks.harness import Form, Row, on_path, rows
from zoo.benchmarks.whole import part_of

TASK = "fusion_reid"
CLASSES, CAMERAS = 751, 6  # Market-1501
QUICK = {
    "cnn": "small",
    "transformer": "small",
    "mix": 96,
    "input_size": (64, 32),
}
TOKENS = (128, 210)

Run = Callable[[], Any]

part = partial(part_of, TASK)


def _both(run: Run, leaves: list[Tensor]) -> None:
    torch.autograd.backward(torch.stack([x.float().sum() for x in run()]).sum())
    for leaf in leaves:
        leaf.grad = None


def compared(
    case: str,
    forms: dict[str, Run],
    model: nn.Module,
    leaves: list[Tensor],
    device: torch.device,
    rounds: int,
) -> list[Row]:
    """Rows of forward and backward; the forms return tuples of tensors.

    Args:
        case: In words; multiply-adds of one image are added by the caller.
        forms: Name -> run; the first is the plain form.
        model: Whose parameters are left out of memory.
        leaves: Inputs that take gradients.
        device: Where to run.
        rounds: How often each form is timed.
    """
    given = [*leaves, *model.parameters()]
    plain, ours = (partial(_both, run, given) for run in forms.values())
    name, _ = forms
    timed: dict[str, Form] = {name: plain, "zoo, torch": on_path("torch", ours), "zoo": ours}
    saved = {n: saved_megabytes(run, model) for n, run in forms.items()}
    saved["zoo, torch"] = saved["zoo"]
    return rows(TASK, case, "fwd+bwd", timed, device, rounds=rounds, memory=saved)


def work(forms: dict[str, Run], images: int) -> str:
    """Multiply-adds of an image in words, plain and ours."""
    each = [multiply_adds(run) / images for run in forms.values()]
    return f"{each[0]:.2f} GMAC plain, {each[-1]:.2f} ours"


def fusion_parts(
    model: Any, batch: int, tokens: tuple[int, int], device: torch.device, rounds: int
) -> list[Row]:
    """Rows of both fusion units of a layer, and of the whole transmission.

    Args:
        model: The whole model.
        batch: Images.
        tokens: Of the convolutional branch and of the transformer.
        device: Where to run.
        rounds: How often each form is timed.
    """
    plain, transmission = part("plain"), model.transmission
    mix = model.refine_cnn.pointwise.out_channels
    queries = tuple(torch.randn(batch, mix, device=device, requires_grad=True) for _ in tokens)
    many = tuple(torch.randn(batch, n, mix, device=device, requires_grad=True) for n in tokens)
    first = transmission.layers[0]
    units = [first.fuse_cnn, first.fuse_transformer]
    crossed = list(zip(units, queries, many[::-1], strict=True))
    leaves = [*queries, *many]
    size = f"{batch} x {tokens[0]} and {tokens[1]} tokens of {mix}"
    found = []
    forms: dict[str, Run] = {
        "key/value": lambda: tuple(plain.fusion(*given) for given in crossed),
        "zoo": lambda: tuple(unit(query, own)[0] for unit, query, own in crossed),
    }
    case = f"both fusion units, {size}, MB saved; {work(forms, batch)}"
    found += compared(case, forms, model, leaves, device, rounds)
    forms = {
        "key/value": lambda: plain.transmission(transmission, queries, many),
        "zoo": lambda: transmission(queries, many)[:2],
    }
    layers = len(transmission.layers)
    case = f"transmission of {layers} layers, {size}, MB saved; {work(forms, batch)}"
    return found + compared(case, forms, model, leaves, device, rounds)


def refinement(
    model: Any, batch: int, tokens: tuple[int, int], device: torch.device, rounds: int
) -> list[Row]:
    """Rows of both refinement units and their pooling, in training mode."""
    plain = part("plain")
    units = (model.refine_cnn, model.refine_transformer)
    pools = (model.pool_refined_cnn, model.pool_refined_transformer)
    columns = (8, 10) if tokens == TOKENS else (2, 2)
    maps = [
        torch.randn(batch, unit.depthwise.in_channels, count // wide, wide, device=device)
        for unit, count, wide in zip(units, tokens, columns, strict=True)
    ]
    usual = [x.requires_grad_() for x in maps]
    last = [x.detach().contiguous(memory_format=torch.channels_last) for x in maps]
    last = [x.requires_grad_() for x in last]

    def published() -> tuple[Tensor, ...]:
        made = [plain.refine(unit, x) for unit, x in zip(units, usual, strict=True)]
        pooled = [plain.pool(pool, x) for pool, x in zip(pools, made, strict=True)]
        return (*made, *pooled)

    def ours() -> tuple[Tensor, ...]:
        made = [unit(x) for unit, x in zip(units, last, strict=True)]
        return (*made, *(pool(x) for pool, x in zip(pools, made, strict=True)))

    forms: dict[str, Run] = {"plain": published, "zoo": ours}
    wide = " and ".join(str(x.shape[1]) for x in maps)
    case = f"refinement and pooling, {batch} x {wide} channels, MB saved; {work(forms, batch)}"
    return compared(case, forms, model, [*usual, *last], device, rounds)


def whole(model: Any, batch: int, device: torch.device, rounds: int) -> list[Row]:
    """Rows of the whole model, from the image to the features of all heads."""
    plain = part("plain")
    image = torch.rand(batch, 3, *model.size, device=device)
    camera = torch.arange(batch, device=device) % CAMERAS
    forms: dict[str, Run] = {
        "plain": lambda: tuple(plain.forward(model, image, camera).values()),
        "zoo": lambda: tuple(model.features(2 * image - 1, camera)[0].values()),
    }
    size = sum(p.numel() for p in model.parameters()) / 1e6
    case = (
        f"model, {batch} x {model.size[0]} x {model.size[1]}, MB saved; {size:.2f} M parameters, "
        f"{work(forms, batch)}"
    )
    return compared(case, forms, model, [], device, rounds)


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Times both forms.

    Args:
        device: Where to run.
        quick: A small network on small images, and fewer rounds.
    """
    torch.manual_seed(0)
    settings = part("config").ReidModel(**(QUICK if quick else {}))
    model: Any = part("model").build_model(settings, CLASSES, CAMERAS).to(device).train()
    # Chance would differ between the forms.
    model.transformer.eval()
    cuda = device.type == "cuda"
    tokens = (8, 10) if quick else TOKENS
    batch = 64 if cuda else 8
    found = fusion_parts(model, batch, tokens, device, 20 if cuda else 5)
    found += refinement(model, batch, tokens, device, 20 if cuda else 5)
    return found + whole(model, batch if cuda else 2, device, 20 if cuda else 3)
