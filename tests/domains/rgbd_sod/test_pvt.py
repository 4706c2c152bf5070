from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.domains.saliency.rgbd_sod import plain
from zoo.domains.saliency.rgbd_sod.convert import convert_pyramid
from zoo.domains.saliency.rgbd_sod.pvt import (
    PatchEmbed,
    PvtPyramid,
    PvtStage,
    ReducedAttention,
    as_map,
    as_tokens,
    make_stages,
)

SIZES = ((8, 16, 20, 24), (1, 2, 5, 4), (1, 2, 2, 1))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def stage(ratio: int, embed: bool, drop: float = 0.0) -> PvtStage:
    made = PvtStage(8, 2, ratio, 4, [drop, drop], PatchEmbed(6, 8) if embed else None)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made.double()


@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_stage_keeps_the_size_and_equals_the_plain_form(ratio: int, embed: bool) -> None:
    part = stage(ratio, embed)
    x = torch.randn(2, 6 if embed else 8, 8, 12, dtype=torch.float64, requires_grad=True)
    ours, theirs = part(x), plain.embed(part, x)
    assert ours.shape == (2, 8, 8, 12)
    torch.testing.assert_close(ours, theirs)
    over, probe = [x, *part.parameters()], torch.randn_like(ours)
    mine = torch.autograd.grad((ours * probe).sum(), over)
    other = torch.autograd.grad((theirs * probe).sum(), over)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def test_tokens_and_maps_are_views_of_each_other() -> None:
    tokens = torch.randn(2, 12, 5)
    grid = as_map(tokens, (3, 4))
    assert torch.equal(grid[1, :, 2, 3], tokens[1, 11])
    assert grid.data_ptr() == tokens.data_ptr() == as_tokens(grid).data_ptr()
    assert torch.equal(as_tokens(grid), tokens)


def test_rows_and_columns_beyond_a_multiple_make_no_keys() -> None:
    attn = ReducedAttention(8, 2, 4)
    x = torch.randn(1, 9 * 11, 8)
    kept = as_tokens(as_map(x, (9, 11))[:, :, :8, :8])
    assert attn.reduced(x, (9, 11)).shape == (1, 4, 8)
    torch.testing.assert_close(attn.reduced(x, (9, 11)), attn.reduced(kept, (8, 8)))
    assert attn(x, (9, 11)).shape == x.shape


@pytest.mark.parametrize("size", [(2, 3), (3, 8), (1, 1)])
def test_a_map_smaller_than_the_reduction_has_one_row_of_keys(size: tuple[int, int]) -> None:
    attn = ReducedAttention(8, 2, 4)
    x = torch.randn(1, size[0] * size[1], 8)
    padded = torch.zeros(1, 8, 4, max(4, size[1]))
    padded[:, :, : size[0], : size[1]] = as_map(x, size)
    expected = attn.norm(as_tokens(attn.sr(padded)))
    torch.testing.assert_close(attn.reduced(x, size), expected)
    assert torch.isfinite(attn(x, size)).all()


def test_epsilons_are_those_of_the_official_code() -> None:
    part = stage(2, True)
    eps = {n: m.eps for n, m in part.named_modules() if isinstance(m, nn.LayerNorm)}
    inner = {name for name in eps if name.endswith(("attn.norm", "patch_embed.norm"))}
    assert len(inner) == 3
    assert {eps.pop(name) for name in inner} == {1e-5}
    assert set(eps.values()) == {1e-6}


def test_drop_path_leaves_branches_out_in_training_only() -> None:
    part = stage(1, False, drop=0.5)
    x = torch.randn(16, 8, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(part.eval()(x), part(x))
    first, second = part.train()(x), part(x)
    assert not torch.allclose(first, second)
    for block in part.blocks:
        block.drop.p = 1.0
    torch.testing.assert_close(part(x), as_map(part.norm(as_tokens(x)), (4, 4)))


def test_drop_path_rises_from_block_to_block() -> None:
    stages = make_stages(*SIZES[:2], (1, 2, 2, 1), 0.5, [None] * 4)
    rates = [getattr(block.drop, "p", 0.0) for part in stages for block in part.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_width_has_to_be_a_multiple_of_the_heads() -> None:
    with pytest.raises(ValueError, match="token width 10 should be a multiple of the 4 heads"):
        ReducedAttention(10, 4, 1)


def test_pyramid_equals_timm() -> None:
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    # The first stage's depth and the deeper widths are PVTv2-B2's in kind.
    theirs = PyramidVisionTransformerV2(
        embed_dims=SIZES[0], num_heads=SIZES[1], depths=SIZES[2], mlp_ratios=(8, 8, 4, 4),
    ).eval()  # fmt: skip
    for name, parameter in theirs.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.3)
    ours = PvtPyramid(*SIZES).eval()
    ours.load_state_dict(convert_pyramid(theirs.state_dict()))
    x = torch.randn(2, 3, 96, 64)
    expected = theirs.patch_embed(x)
    for part, found in zip(theirs.stages, ours(x), strict=True):
        expected = part(expected)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
