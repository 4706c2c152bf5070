from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from zoo.domains.reid.fusion_reid import plain
from zoo.domains.reid.fusion_reid.resnet import DEPTHS, ResNet
from zoo.domains.reid.fusion_reid.t2t import T2TViT, sinusoids, token_grid
from zoo.domains.reid.fusion_reid.vit import (
    SelfAttention,
    Variant,
    VisionTransformer,
    patch_grid,
    resize_positions,
)

TINY = Variant(24, 2, 3)


def vit(size: tuple[int, int] = (48, 32), **more: int) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(TINY, size, (12, 12), **more).eval()


# -- ResNet ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("last", "size"), [(1, (4, 2)), (2, (2, 1))])
def test_resnet_keeps_a_sixteenth_or_a_thirty_second(last: int, size: tuple[int, int]) -> None:
    net = ResNet(DEPTHS["small"], 4, last).eval()
    assert net(torch.rand(2, 3, 64, 32)).shape == (2, 128, *size)
    assert net.channels == 128


def test_resnet_has_torchvision_names_without_its_classifier() -> None:
    from torchvision.models import resnet50

    with torch.device("meta"):
        theirs = {k: v.shape for k, v in resnet50().state_dict().items() if k[:3] != "fc."}
        ours = {k: v.shape for k, v in ResNet(DEPTHS["resnet50"]).state_dict().items()}
    assert ours == theirs


def test_the_stem_passes_negative_values_on() -> None:
    net = ResNet(DEPTHS["small"], 4).eval()
    x = torch.randn(1, 3, 32, 32)
    stem = functional.max_pool2d(net.bn1(net.conv1(x)), 2, 2)
    assert (stem < 0).any()
    seen: list[Tensor] = []
    net.get_submodule("layer1").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net(x)
    torch.testing.assert_close(seen[0], stem)


# -- transformer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [
        ((256, 128), (12, 12), (21, 10)),
        ((256, 128), (16, 16), (16, 8)),
        ((384, 128), (12, 12), (31, 10)),
        ((384, 128), (16, 16), (24, 8)),
        ((100, 70), (7, 5), (13, 11)),
        ((16, 16), (12, 12), (1, 1)),
    ],
)
def test_grid_of_patches(
    size: tuple[int, int], stride: tuple[int, int], grid: tuple[int, int]
) -> None:
    assert patch_grid(size, stride) == grid


def test_an_image_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="16 x 12 are smaller than a patch"):
        patch_grid((16, 12), (12, 12))


def test_attention_is_the_one_written_out() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(24, 4, bias=True, scale=0.3)
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(layer(x), plain.attention(layer, x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_the_first_token_alone_gets_what_it_gets_among_all(bias: bool) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(24, 4, bias=bias).double()
    x = torch.randn(3, 9, 24, dtype=torch.float64, requires_grad=True)
    made, weights = layer.first(x)
    torch.testing.assert_close(made, layer(x)[:, 0])
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, dtype=torch.float64))
    probe = torch.randn(3, 24, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad((y * probe).sum(), [x, *layer.parameters()])
        for y in (layer.first(x)[0], layer(x)[:, 0])
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


def test_heads_have_to_divide_the_width() -> None:
    with pytest.raises(ValueError, match="multiple of the 5 heads"):
        SelfAttention(24, 5, bias=True)


def test_drop_path_rises_from_zero() -> None:
    made = VisionTransformer(Variant(24, 3, 3), (16, 16), (16, 16), drop_path=0.2)
    rates = [getattr(block.drop, "p", 0.0) for block in made.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])


def test_class_attention_tells_shares_and_changes_nothing() -> None:
    encoder, x = vit(), torch.randn(2, 3, 48, 32)
    tokens, shares = encoder.attentive(x)
    torch.testing.assert_close(tokens, encoder(x))
    assert shares.shape == (2, 6)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))


def test_positions_are_resized_to_any_grid() -> None:
    table = torch.randn(1, 1 + 9, 4)
    torch.testing.assert_close(resize_positions(table, (3, 3)), table)
    found = resize_positions(table, (5, 2))
    assert found.shape == (1, 11, 4)
    torch.testing.assert_close(found[:, 0], table[:, 0])
    with_token = torch.cat([table[:, :1], torch.full((1, 1, 4), 9.0), table[:, 1:]], 1)
    torch.testing.assert_close(resize_positions(with_token, (5, 2), distilled=True), found)


def test_positions_that_are_no_square_are_refused() -> None:
    with pytest.raises(ValueError, match=r"10 position embeddings .* are no square"):
        resize_positions(torch.zeros(1, 11, 4), (2, 5))


# -- camera and view ------------------------------------------------------------------------------


def side(encoder: VisionTransformer, camera: list[int] | None, view: list[int] | None) -> Tensor:
    given = [None if x is None else torch.tensor(x) for x in (camera, view)]
    assert encoder.sie_embed is not None
    return encoder.side(encoder.sie_embed, *given, images=len(camera or view or [0]))


def test_an_unknown_camera_takes_the_mean_of_all() -> None:
    encoder = vit(cameras=3)
    assert encoder.sie_embed is not None
    table = encoder.sie_embed[:, 0]
    found = side(encoder, [2, -1, 0], None)
    expected = torch.stack([table[2], table.mean(0), table[0]]).unsqueeze(1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(side(encoder, None, None)[0], expected[1])


def test_camera_and_view_index_one_table() -> None:
    encoder = vit(cameras=3, views=2)
    assert encoder.sie_embed is not None
    assert encoder.sie_embed.shape == (6, 1, 24)
    table = encoder.sie_embed[:, 0]
    found = side(encoder, [1, 1, -1, -1], [0, -1, 1, -1])[:, 0]
    torch.testing.assert_close(found[0], table[2])
    torch.testing.assert_close(found[1], table[2:4].mean(0))
    torch.testing.assert_close(found[2], table[1::2].mean(0))
    torch.testing.assert_close(found[3], table.mean(0))


def test_one_camera_has_its_embedding() -> None:
    encoder = vit(cameras=1)
    x = torch.randn(2, 3, 48, 32)
    known = encoder(x, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(known, encoder(x))
    assert encoder.sie_embed is not None
    known.sum().backward()
    assert encoder.sie_embed.grad is not None
    assert encoder.sie_embed.grad.abs().sum() > 0


def test_an_encoder_without_side_information_takes_no_notice_of_cameras() -> None:
    encoder, x = vit(), torch.randn(2, 3, 48, 32)
    assert encoder.sie_embed is None
    torch.testing.assert_close(encoder(x, torch.tensor([5, 9])), encoder(x))


def test_a_camera_beyond_the_table_is_told() -> None:
    with pytest.raises(ValueError, match="camera 3 is beyond the 3 that the model has"):
        vit(cameras=3)(torch.randn(1, 3, 48, 32), torch.tensor([3]))


def test_labels_have_to_be_one_an_image() -> None:
    with pytest.raises(ValueError, match="one camera for each of the 2 images expected"):
        vit(cameras=3)(torch.randn(2, 3, 48, 32), torch.tensor([1]))


# -- T2T ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "grid"), [((256, 128), (16, 8)), ((384, 128), (24, 8)), ((70, 45), (5, 3))]
)
@pytest.mark.parametrize("kind", ["transformer", "performer"])
def test_t2t_takes_any_size(size: tuple[int, int], grid: tuple[int, int], kind: str) -> None:
    torch.manual_seed(0)
    encoder = T2TViT(TINY, size, 8, kind, cameras=2).eval()
    assert encoder.grid == token_grid(size) == grid
    if size == (70, 45):
        tokens = encoder(torch.randn(2, 3, *size), torch.tensor([0, -1]))
        assert tokens.shape == (2, 1 + grid[0] * grid[1], 24)
        assert tokens.isfinite().all()


def test_t2t_positions_are_fixed_sinusoids() -> None:
    encoder = T2TViT(TINY, (32, 32), 8)
    assert not encoder.pos_embed.requires_grad
    table = sinusoids(5, 24)
    torch.testing.assert_close(encoder.pos_embed.detach(), table)
    torch.testing.assert_close(table[0, 0], torch.tensor([0.0, 1.0] * 12))
    expected = torch.tensor([3 / 10000 ** (4 / 24)])
    torch.testing.assert_close(table[0, 3, 4:6], torch.cat([expected.sin(), expected.cos()]))


def test_a_performer_nears_softmax_attention() -> None:
    from zoo.domains.reid.fusion_reid.t2t import TokenPerformer

    torch.manual_seed(0)
    layer = TokenPerformer(6, 64).eval()
    features = torch.randn(20000, 64)
    layer.w = torch.nn.Parameter(features, requires_grad=False)  # many features: a close estimate
    x = torch.randn(1, 5, 64) * 0.1
    keys = layer._features(x)
    found = keys @ keys.mT
    torch.testing.assert_close(found, (x @ x.mT).exp(), atol=0.05, rtol=0.05)


def test_an_image_too_small_for_t2t_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x 2 are too small"):
        token_grid((2, 2))
