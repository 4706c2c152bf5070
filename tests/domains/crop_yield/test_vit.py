from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from zoo.domains.remote_sensing.crop_yield import plain
from zoo.domains.remote_sensing.crop_yield.vit import PatchEmbedding, ViT, attend


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def vit(**settings: Any) -> ViT:
    sizes = {"patch": 4, "dim": 12, "depth": 2, "heads": 3, "head_size": 8, "mlp": 20}
    return ViT(3, 12, outputs=2, **(sizes | {"p": 0.0} | settings)).double()


@pytest.mark.parametrize("settings", [{}, {"pool": "mean"}, {"heads": 1, "head_size": 12}])
def test_equals_the_plain_form(settings: dict[str, Any]) -> None:
    net = vit(**settings)
    x = torch.randn(3, 3, 12, 16, dtype=torch.float64, requires_grad=True)
    ours, theirs = net(x), net.head(plain.plain_vit_features(net, x))
    torch.testing.assert_close(ours, theirs)
    over, probe = [x, *net.parameters()], torch.randn_like(ours)
    mine = torch.autograd.grad((ours * probe).sum(), over)
    other = torch.autograd.grad((theirs * probe).sum(), over)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)


def test_channel_runs_fastest_in_a_token() -> None:
    part: Any = PatchEmbedding(3, 2, 12)
    part.norm_in, part.norm_out = nn.Identity(), nn.Identity()
    part.linear = nn.Identity()
    x = torch.arange(3 * 4 * 6).view(1, 3, 4, 6).float()
    tokens = part(x)
    assert tokens.shape == (1, 6, 12)
    # Second row of patches, first column: rows 2 and 3, columns 0 and 1.
    assert torch.equal(tokens[0, 3], x[0, :, 2:, :2].permute(1, 2, 0).flatten())


def test_fewer_patches_take_the_first_positions() -> None:
    net = vit()
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    before = net(x)
    with torch.no_grad():
        net.positions[:, 7:] += torch.randn(12)
    assert torch.equal(net(x), before)
    with torch.no_grad():
        net.positions[:, 6] += torch.randn(12)
    assert not torch.allclose(net(x), before)


def test_attention_keeps_its_dropout() -> None:
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 400, 8)
    v = torch.ones(2, 3, 400, 8)
    whole = attend(q, k, v, 0.0)
    torch.testing.assert_close(whole, torch.ones_like(whole))
    dropped = attend(q, k, v, 0.5)
    assert float(dropped.std()) > 0.01
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.1)


def test_training_drops_within_blocks_and_evaluation_does_not() -> None:
    net, x = vit(p=0.5, embedding_p=0.1), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_wrong_sizes_are_told() -> None:
    with pytest.raises(ValueError, match="10 x 8 cannot be cut into patches of 4 x 4"):
        vit()(torch.randn(1, 3, 10, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="16 patches, but positions for 12"):
        vit()(torch.randn(1, 3, 16, 16, dtype=torch.float64))
