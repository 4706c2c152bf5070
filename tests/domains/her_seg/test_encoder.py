from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.domains.her_seg.comparing import agree, close, forced, stirred
from zoo.benchmarks.costs import saved_megabytes
from zoo.domains.medical.her_seg import recompute
from zoo.domains.medical.her_seg.encoder import Encoder, TokenBlock
from zoo.domains.medical.her_seg.layers import DropPath, LayerNorm2d, MBConv, as_maps, as_tokens
from zoo.domains.medical.her_seg.plain import plain_block, plain_encoder, plain_mbconv
from zoo.domains.medical.her_seg.recompute import GELU, SILU, act_linear, norm_linears


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# -- layers -------------------------------------------------------------------------------------


def test_layer_norm_2d_normalises_the_channels_of_each_pixel() -> None:
    norm, x = LayerNorm2d(6).double(), seeded(2, 6, 3, 5) * 1e-3
    expected = (x - x.mean(1, keepdim=True)) / (
        x.var(1, unbiased=False, keepdim=True) + 1e-6
    ).sqrt()
    close(norm(x), expected)
    last = x.contiguous(memory_format=torch.channels_last)
    close(norm(last), expected)


def test_maps_and_tokens_are_views_of_each_other() -> None:
    x = seeded(2, 12, 5)
    maps = as_maps(x, (3, 4))
    assert maps.shape == (2, 5, 3, 4)
    assert torch.equal(maps[1, :, 2, 1], x[1, 9])
    assert as_tokens(maps).data_ptr() == x.data_ptr()
    assert torch.equal(as_tokens(maps), x)


@pytest.mark.parametrize("training", [True, False])
def test_mbconv_is_its_layers(training: bool) -> None:
    block = stirred(MBConv(6, 6, 2.0)).train(training)
    with forced():
        agree(
            lambda part: part,
            lambda part: lambda x: plain_mbconv(part, x),
            block,
            [seeded(2, 6, 4, 5)],
        )


def test_mbconv_starts_as_gelu_of_its_input() -> None:
    block, x = MBConv(6, 6), torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        close(block(x), functional.gelu(x), 1e-6)


def test_mbconv_with_drop_path_draws_like_the_plain_form() -> None:
    block = stirred(MBConv(6, 6, drop_path=0.5)).train()
    with forced():
        agree(
            lambda part: part,
            lambda part: lambda x: plain_mbconv(part, x),
            block,
            [seeded(8, 6, 3, 3)],
        )


def test_mbconv_keeps_its_width() -> None:
    with pytest.raises(ValueError, match="keeps its width, got 6 and 8"):
        MBConv(6, 8)


def test_batch_statistics_of_one_value_are_refused() -> None:
    with forced(), pytest.raises(ValueError, match="more than one value"):
        MBConv(6, 6)(torch.randn(1, 6, 1, 1))


def test_drop_path_leaves_samples_out_and_scales_the_rest() -> None:
    drop, x = DropPath(0.25).train(), torch.zeros(4000, 2, 3)
    kept = drop.add(x, torch.ones_like(x))
    share = kept[:, 0, 0]
    assert torch.equal(kept, share.view(-1, 1, 1).expand_as(kept))  # a sample as a whole
    assert share.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert abs(float((share > 0).float().mean()) - 0.75) < 0.03
    assert torch.equal(drop.eval().add(x, torch.ones_like(x)), torch.ones_like(x))


# -- what is computed again ---------------------------------------------------------------------


@pytest.mark.parametrize("act", [GELU, SILU])
def test_an_activation_and_a_layer_keep_their_input_alone(act: recompute.Activation) -> None:
    layer, x = nn.Linear(5, 7).double(), seeded(2, 11, 5)
    with forced():
        agree(
            lambda part: lambda x: act_linear(x, part, act),
            lambda part: lambda x: part(act.forward(x)),
            layer,
            [x],
        )
        hidden = x.requires_grad_() * 1
        kept = saved_megabytes(lambda: act_linear(hidden, layer, act).sum(), layer)
    assert kept == hidden.numel() * 8 / 1e6


def test_layers_of_one_norm_keep_its_input_alone() -> None:
    parts = stirred(nn.ModuleList([nn.LayerNorm(5), nn.Linear(5, 7), nn.Linear(5, 3)]))
    x = seeded(2, 11, 5)
    with forced():
        agree(
            lambda p: lambda x: torch.cat(norm_linears(x, p[0], [p[1], p[2]]), -1),
            lambda p: lambda x: torch.cat([p[1](p[0](x)), p[2](p[0](x))], -1),
            parts,
            [x],
        )


def test_frozen_layers_get_no_gradient() -> None:
    block = TokenBlock(24, 6).double()
    for name, parameter in block.named_parameters():
        parameter.requires_grad_("qk" not in name and "fc2" not in name)
    with forced():
        block(seeded(1, 9, 24).requires_grad_()).sum().backward()
    without = {n for n, p in block.named_parameters() if p.grad is None}
    assert without == {"attn.qk.weight", "attn.qk.bias", "mlp.fc2.weight", "mlp.fc2.bias"}


# -- token blocks -------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [6, 12, 24])
@pytest.mark.parametrize("own", [True, False])
def test_a_token_block_is_its_formula(heads: int, own: bool) -> None:
    block, grid = stirred(TokenBlock(24, heads)), (4, 5)

    def run(part: TokenBlock) -> Callable[[Tensor], Tensor]:
        return lambda x: part(x, grid)

    def plain(part: TokenBlock) -> Callable[[Tensor], Tensor]:
        return lambda x: plain_block(part, x, grid)

    if own:
        with forced():
            agree(run, plain, block, [seeded(2, 20, 24)])
    else:
        agree(run, plain, block, [seeded(2, 20, 24)])


def test_branches_of_a_token_block_are_dropped_independently() -> None:
    block = stirred(TokenBlock(24, 6, drop_path=0.5)).train()
    agree(
        lambda part: lambda x: part(x, (3, 3)),
        lambda part: lambda x: plain_block(part, x, (3, 3)),
        block,
        [seeded(16, 9, 24)],
    )
    x = seeded(64, 9, 24)
    with torch.no_grad():
        out = block(x, (3, 3))
        alone = block.eval()(x, (3, 3))
    same = (out == x).flatten(1).all(1)
    assert 0 < int(same.sum()) < 40  # both left out: a quarter
    assert not (out == alone).flatten(1).all(1).any()  # what stays is scaled


def test_a_token_block_keeps_less_than_half() -> None:
    block, x = TokenBlock(24, 6), torch.randn(1, 64, 24, requires_grad=True)
    with forced():
        own = saved_megabytes(lambda: block(x, (8, 8)).sum(), block)
    plain = saved_megabytes(lambda: plain_block(block, x, (8, 8)).sum(), block)
    assert own < 0.5 * plain


# -- the whole encoder --------------------------------------------------------------------------


def test_the_encoder_is_its_blocks_on_any_grid() -> None:
    encoder = stirred(Encoder(24, (1, 1, 1, 1), drop_path=0.0)).train()
    with forced():
        agree(
            lambda part: part,
            lambda part: lambda x: plain_encoder(part, x),
            encoder,
            [seeded(2, 3, 48, 32)],
        )


def test_drop_path_rises_over_all_blocks_and_spares_the_first_stage() -> None:
    encoder = Encoder(24)
    rates = [m.rate for m in encoder.modules() if isinstance(m, DropPath)]
    assert rates[:2] == [0, 0]
    assert rates[2:] == pytest.approx([k / 11 * 0.1 for k in range(2, 12)])


def test_linear_layers_start_small() -> None:
    encoder = Encoder(48)
    layers = [m for m in encoder.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 10 * 7
    assert not any(m.bias.any() for m in layers)
    assert 0.018 < float(torch.cat([m.weight.detach().flatten() for m in layers]).std()) < 0.022


def test_checkpointing_gives_the_same_gradients_and_keeps_less() -> None:
    found, kept = [], []
    for checkpointing in (False, True):
        torch.manual_seed(2)
        encoder = Encoder(24, checkpointing=checkpointing).train()
        x = torch.randn(2, 3, 64, 64)
        torch.manual_seed(4)
        kept.append(saved_megabytes(lambda e=encoder, x=x: e(x).sum(), encoder))
        encoder.zero_grad()
        torch.manual_seed(4)
        encoder(x).square().sum().backward()
        found.append([p.grad for p in encoder.parameters()])
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-5)
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 1, 32, 32), r"\(B, 3, H, W\), got \(1, 1, 32, 32\)"),
        ((3, 32, 32), "got"),
        ((1, 3, 32, 40), "multiples of 16 pixels, got 32 x 40"),
        ((1, 3, 0, 32), "got 0 x 32"),
    ],
)
def test_images_of_no_whole_patches_are_refused(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Encoder(24, (1, 0, 0, 1))(torch.zeros(shape))


@pytest.mark.parametrize("own", [True, False])
def test_bfloat16_autocast_stays_near(own: bool) -> None:
    encoder = Encoder(24, (1, 1, 1, 1), drop_path=0.0)
    x = torch.rand(2, 3, 64, 64)
    exact = encoder(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if own:
            with forced():
                low = encoder(x)
        else:
            low = encoder(x)
    low.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    close(low.detach(), exact.detach(), 0.03)
