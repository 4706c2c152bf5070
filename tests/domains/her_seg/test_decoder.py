from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.domains.her_seg.comparing import agree, close, forced, stirred
from zoo.benchmarks.costs import multiply_adds, saved_megabytes
from zoo.domains.medical.her_seg.decoder import (
    MaskDecoder,
    TwoWayTransformer,
    meta_pool,
)
from zoo.domains.medical.her_seg.layers import as_maps
from zoo.domains.medical.her_seg.mask_head import low_resolution_masks
from zoo.domains.medical.her_seg.plain import plain_decoder, plain_layer_norm, plain_pool

DIM, HEADS = 32, 2


def seeded(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def decoder(masks: int = 3, pooling: bool = False, task_queries: bool = False) -> MaskDecoder:
    torch.manual_seed(0)
    transformer = TwoWayTransformer(2, DIM, HEADS, 24, pooling=pooling)
    return stirred(MaskDecoder(transformer, DIM, masks, task_queries))


def one_by_one(part: MaskDecoder, masks: int | None) -> Callable[..., Tensor]:
    """The published loop: every image of the batch alone."""

    def run(embedding: Tensor, pe: Tensor, sparse: Tensor, dense: Tensor) -> Tensor:
        made = []
        for i in range(len(embedding)):
            own = [x[i if len(x) > 1 else 0].unsqueeze(0) for x in (sparse, dense)]
            made.append(plain_decoder(part, embedding[i : i + 1], pe, *own)[:, :masks])
        return torch.cat(made)

    return run


def inputs(batch: int, prompts: int, sets: int = 1, grid: tuple[int, int] = (4, 5)) -> list[Tensor]:
    sparse, dense = seeded(sets, prompts, DIM), seeded(sets, DIM, *grid)
    return [seeded(batch, DIM, *grid), seeded(1, DIM, *grid), sparse, dense]


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("masks", [1, None])
@pytest.mark.parametrize("last", [True, False])
def test_a_batch_is_the_published_loop(fold: bool, masks: int | None, last: bool) -> None:
    given = inputs(3, 0)
    if last:
        given[0] = given[0].contiguous(memory_format=torch.channels_last)
    with forced(fold=fold, chunk=7):
        agree(
            lambda part: lambda *x: part(*x, masks),
            lambda part: one_by_one(part, masks),
            decoder(),
            given,
        )


@pytest.mark.parametrize("prompts", [1, 3, 5, 40])
@pytest.mark.parametrize("options", [{}, {"pooling": True}, {"task_queries": True}])
def test_prompts_of_each_image(prompts: int, options: dict[str, bool]) -> None:
    with forced(fold=True):
        agree(
            lambda part: part,
            lambda part: one_by_one(part, None),
            decoder(**options),
            inputs(2, prompts, sets=2),
        )


def test_several_sets_of_prompts_look_at_one_image() -> None:
    part = decoder()
    embedding, pe, sparse, dense = inputs(1, 2, sets=3)
    with torch.no_grad():
        made = part(embedding, pe, sparse, dense)
        assert made.shape == (3, 3, 16, 20)
        for i in range(3):
            alone = part(embedding, pe, sparse[i : i + 1], dense[i : i + 1])
            close(made[i : i + 1], alone)


def test_folding_does_less_work_and_keeps_less() -> None:
    part = MaskDecoder(TwoWayTransformer())
    x = torch.randn(1, 256, 16, 16)
    given = (x, torch.randn(1, 256, 16, 16), torch.zeros(1, 0, 256), torch.zeros(1, 256, 16, 16))

    def plain() -> Tensor:
        return plain_decoder(part, *given)[:, :1]

    def own() -> Tensor:
        made: Tensor = part(*given, 1)
        return made

    assert multiply_adds(own) < 0.6 * multiply_adds(plain)
    x.requires_grad_()
    with forced(fold=True):
        assert saved_megabytes(lambda: own().sum(), part) < 0.6 * saved_megabytes(
            lambda: plain().sum(), part
        )


def test_one_mask_asks_one_hyper_network() -> None:
    part = decoder()
    part(*inputs(1, 0), 1).sum().backward()
    with_gradient = {
        name.split(".")[1]
        for name, p in part.named_parameters()
        if name.startswith("output_hyper") and p.grad is not None
    }
    assert with_gradient == {"0"}


def test_masks_of_their_own_tokens_differ_from_those_of_the_first() -> None:
    first, own = decoder(), decoder(task_queries=True)
    own.load_state_dict(first.state_dict())
    with torch.no_grad():
        a, b = (part(*inputs(1, 0)) for part in (first, own))
    assert float((a - b).abs().amax(dim=(0, 2, 3)).min()) > 1e-3


# -- meta-pooling -------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(3, 4), (20, 17)])
def test_meta_pooling_is_its_windows(grid: tuple[int, int]) -> None:
    x = seeded(2, grid[0] * grid[1], 6)
    close(meta_pool(x, grid), plain_pool(x, grid))


def test_meta_pooling_leaves_a_flat_map_alone() -> None:
    x = torch.full((1, 30, 4), 2.5)
    close(meta_pool(x, (5, 6)), x, 1e-6)


# -- mask head ----------------------------------------------------------------------------------


def head() -> nn.Module:
    return stirred(decoder().output_upscaling)


def convolved(part: Any, grid: tuple[int, int]) -> Callable[[Tensor, Tensor], Tensor]:
    """The head with transposed convolutions on whole maps."""

    def run(cells: Tensor, hyper: Tensor) -> Tensor:
        x = part[2](plain_layer_norm(part[1], part[0](as_maps(cells, grid))))
        x = part[4](part[3](x))
        return torch.unflatten(hyper @ x.flatten(2), -1, x.shape[2:])

    return run


@pytest.mark.parametrize("chunk", [1, 7, 1024])
@pytest.mark.parametrize("masks", [1, 4])
def test_the_mask_head_is_its_convolutions(chunk: int, masks: int) -> None:
    grid = (3, 5)
    given = [seeded(2, 15, DIM), seeded(2, masks, DIM // 8)]
    with forced(chunk=chunk):
        agree(
            lambda part: lambda cells, hyper: low_resolution_masks(cells, grid, part, hyper),
            lambda part: convolved(part, grid),
            head(),
            given,
        )


def test_the_mask_head_keeps_the_first_map_alone() -> None:
    part = head()
    cells, hyper = seeded(1, 64, DIM).requires_grad_(), seeded(1, 1, DIM // 8)
    with forced():
        kept = saved_megabytes(lambda: low_resolution_masks(cells, (8, 8), part, hyper).sum(), part)
    maps = 2 * cells.numel() * 8 / 1e6  # what comes in, and the map of the first convolution
    assert kept < maps + 0.07  # copies of weights in another order
