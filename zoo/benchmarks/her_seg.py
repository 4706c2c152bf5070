"""HER-Seg: a token block, the decoder and a whole training pass, beside the plain form.

The plain form is the network as published on the same weights (`plain.py` of the task). In the
columns of memory stand the megabytes (MB) that a forward pass saves for the backward pass: every
tensor storage once, parameters left out. The case of the whole network names its parameters and
the multiply-adds of one image, counted in two ways.

As the paper counts them: the tool `thop` visits modules, so a linear layer or convolution counts
its products, a transposed convolution as many as if every output pixel saw its whole kernel (the
square of the stride too many), batch and layer normalisations four for each value; products that
are no module, which is all of the attention, count nothing. That gives the published 9.39 G "FLOPs"
of a 1024 x 1024 image, which are multiply-adds. The other way counts all convolutions and matrix
products that are done, those of the attention included, and nothing else.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.benchmarks.costs import multiply_adds
from zoo.benchmarks.harness import Row, on_path
from zoo.benchmarks.whole import Run, part_of, passes

TASK = "her_seg"
QUICK = {
    "dim": 24,
    "image_size": 128,
    "decoder_dim": 64,
    "decoder_heads": 4,
    "decoder_mlp": 64,
}

part = partial(part_of, TASK)


def counted_by_modules(model: nn.Module, run: Run) -> float:
    """Multiply-adds (10^9) as `thop` counts those of the modules that are called in a run.

    Args:
        model: Whose modules are watched.
        run: Calls them.
    """
    total = 0

    def count(module: Any, _: Any, out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += out.numel() * module.in_features
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            total += out.numel() * module.in_channels // module.groups * kernel
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            total += 4 * out.numel()

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return total / 1e9


def token_block(model: Any, grid: tuple[int, int], device: torch.device, rounds: int) -> list[Row]:
    """Rows of one token block on one image.

    Args:
        model: The network.
        grid: Of its tokens.
        device: Where to run.
        rounds: How often each form is timed.
    """
    block = model.image_encoder.layers[2].blocks[0]
    width, heads = block.out_proj.in_features, block.attn.heads
    x = torch.randn(1, grid[0] * grid[1], width, device=device, requires_grad=True)
    runs: dict[str, Run] = {
        "plain": partial(part("plain").plain_block, block, x, grid),
        "zoo": partial(block, x, grid),
    }
    case = f"token block, 1 x {x.shape[1]} x {width}, {heads} heads, MB saved"
    return passes(TASK, case, runs, block, device, rounds)


def decoder(model: Any, grid: tuple[int, int], device: torch.device, rounds: int) -> list[Row]:
    """Rows of the decoder without prompts on one image.

    Args:
        model: The network.
        grid: Of its cells.
        device: Where to run.
        rounds: How often each form is timed.
    """
    width = model.settings.decoder_dim
    embedding = torch.randn(1, width, *grid, device=device)
    embedding = embedding.contiguous(memory_format=torch.channels_last)
    prompts = model.prompt_encoder
    with torch.no_grad():
        sparse, dense = prompts(None, (grid[0] * 16, grid[1] * 16), grid)
        pe = prompts.dense_pe(grid)
    plain, own = part("plain").plain_decoder, model.mask_decoder
    runs: dict[str, Run] = {
        "plain": lambda: plain(own, embedding, pe, sparse, dense)[:, :1],
        "zoo": partial(own, embedding, pe, sparse, dense, 1),
    }
    work = [multiply_adds(on_path("reference", run)) for run in runs.values()]
    embedding.requires_grad_()
    case = (
        f"decoder, 1 x {width} x {grid[0]} x {grid[1]}, MB saved; {work[0]:.3f} GMAC plain, "
        f"{work[1]:.3f} ours"
    )
    return passes(TASK, case, runs, own, device, rounds)


def whole(model: Any, side: int, device: torch.device, rounds: int) -> list[Row]:
    """Rows of the network with its loss on one image.

    Args:
        model: The network.
        side: Of the image in pixels.
        device: Where to run.
        rounds: How often each form is timed.
    """
    plain, losses, small = part("plain").plain_her_seg, part("losses"), part("enlarged")
    image = torch.rand(1, 3, side, side, device=device)
    target = (torch.rand(1, side, side, device=device) > 0.8).long()
    runs: dict[str, Run] = {
        "plain": lambda: losses.mask_loss(plain(model, image), target).total,
        "zoo": lambda: small.low_resolution_loss(model.low_resolution(image), target).total,
    }
    size = sum(p.numel() for p in model.parameters()) / 1e6
    by_modules = counted_by_modules(model, partial(plain, model, image))
    forms = (partial(plain, model, image), partial(model, image))
    work = [multiply_adds(on_path("reference", form)) for form in forms]
    case = (
        f"network and loss, 1 x {side} px, MB saved; {size:.3f} M parameters, {by_modules:.2f} G "
        f"as the paper counts, {work[0]:.2f} GMAC plain, {work[1]:.2f} ours"
    )
    return passes(TASK, case, runs, model, device, rounds)


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Times both forms.

    Args:
        device: Where to run.
        quick: A small network on small images, and fewer rounds.
    """
    torch.manual_seed(0)
    settings = part("config").SegModel(**(QUICK if quick else {}))
    model = part("model").build_model(settings).to(device)
    rounds = 20 if device.type == "cuda" else 3 if quick else 7
    grid = (settings.image_size // 16, settings.image_size // 16)
    found = token_block(model, grid, device, rounds)
    found += decoder(model, grid, device, rounds)
    return found + whole(model, settings.image_size, device, rounds)
