"""T2T-ViT: tokens joined with their neighbours twice before the transformer.

Source: Yuan et al., "Tokens-to-Token ViT" (arXiv 2101.11986) and its release, as FusionReID uses
it. The official code fixes the grid of a 256 x 128 image; here it follows the image. Letters: B
images, N tokens, D token width, T width of the tokens that are joined.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.reid.fusion_reid.vit import Mlp, TokenEncoder, Variant, initialise
from zoo.kernels.products import Dense

VARIANTS = {
    "t2t_vit_t_14": Variant(384, 14, 6, 3.0, bias=False, eps=1e-5),
    "t2t_vit_t_24": Variant(512, 24, 8, 3.0, bias=False, eps=1e-5),
}
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
"""Window, stride and padding of the three soft splits."""
TOKEN_DIM = 64


class TokenAttention(nn.Module):
    """One head of attention between windows.

    Args:
        dim: Width of a window's values.
        inner: Width T of what comes out.
    """

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.inner, self.scale = inner, dim**-0.5
        self.qkv = Dense(dim, 3 * inner, bias=False)
        self.proj = Dense(inner, inner)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, N, dim) to (B, N, T): values plus what they attend to."""
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        made = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        mixed: Tensor = v.squeeze(1) + self.proj(made.squeeze(1))
        return mixed


class TokenTransformer(nn.Module):
    """Attention between windows, then an MLP with a shortcut.

    Args:
        dim: Width of a window's values.
        inner: Width T of what comes out.
    """

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = TokenAttention(dim, inner)
        self.norm2 = nn.LayerNorm(inner)
        self.mlp = Mlp(inner, inner)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, N, dim) to (B, N, T)."""
        x = self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class TokenPerformer(nn.Module):
    """The same with attention by positive random features, linear in the number of windows.

    Source: Choromanski et al., "Rethinking attention with performers" (arXiv 2009.14794), with
    phi(x) = exp(w x - |x|^2 / 2) / sqrt(m) and m = T / 2 fixed orthogonal features w.

    Args:
        dim: Width of a window's values.
        inner: Width T of what comes out.
        dropout: In training, after the projection and after the MLP.
    """

    EPS = 1e-8

    def __init__(self, dim: int, inner: int, dropout: float = 0.1) -> None:
        super().__init__()
        features = inner // 2
        self.kqv = Dense(dim, 3 * inner)
        self.proj = Dense(inner, inner)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(inner)
        self.drop = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.Linear(inner, inner), nn.GELU(), nn.Linear(inner, inner), nn.Dropout(dropout)
        )
        w = nn.init.orthogonal_(torch.empty(features, inner)) * math.sqrt(features)
        self.w = nn.Parameter(w, requires_grad=False)

    def _features(self, x: Tensor) -> Tensor:
        """(B, N, m) positive features of (B, N, T)."""
        exponent = x @ self.w.mT - x.square().sum(-1, keepdim=True) / 2
        made: Tensor = exponent.exp() / math.sqrt(self.w.shape[0])
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, N, dim) to (B, N, T)."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        keys, queries = self._features(k), self._features(q)
        mass = (queries * keys.sum(1, keepdim=True)).sum(-1, keepdim=True)
        made = queries @ (keys.mT @ v) / (mass + self.EPS)
        y: Tensor = v + self.drop(self.proj(made))
        y = y + self.mlp(self.norm2(y))
        return y


class TokensToToken(nn.Module):
    """Three soft splits with attention after the first two, then the projection to D.

    Args:
        dim: Token width D.
        inner: Width T of the tokens that are joined.
        kind: `transformer` or `performer`.
    """

    def __init__(self, dim: int, inner: int = TOKEN_DIM, kind: str = "transformer") -> None:
        super().__init__()
        make = TokenTransformer if kind == "transformer" else TokenPerformer
        channels = zip((3, inner, inner), SPLITS, strict=True)
        widths = [count * split[0] ** 2 for count, split in channels]
        self.attention1 = make(widths[0], inner)
        self.attention2 = make(widths[1], inner)
        self.project = Dense(widths[2], dim)

    def forward(self, image: Tensor) -> Tensor:
        """Tokens (B, N, D) of an image (B, 3, H, W)."""
        x, size = image, (image.shape[2], image.shape[3])
        for split, attention in zip(SPLITS[:2], (self.attention1, self.attention2), strict=True):
            window, stride, padding = split
            tokens = functional.unfold(x, window, 1, padding, stride).transpose(1, 2)
            size = (_count(size[0], split), _count(size[1], split))
            x = torch.unflatten(attention(tokens).transpose(1, 2), 2, size)
        window, stride, padding = SPLITS[2]
        tokens = functional.unfold(x, window, 1, padding, stride).transpose(1, 2)
        made: Tensor = self.project(tokens)
        return made


def _count(side: int, split: tuple[int, int, int]) -> int:
    """Windows along a side."""
    window, stride, padding = split
    return (side + 2 * padding - window) // stride + 1


def token_grid(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tokens of an image of `size`.

    Raises:
        ValueError: Nothing is left of so small an image.
    """
    rows, columns = size
    for split in SPLITS:
        rows, columns = _count(rows, split), _count(columns, split)
    if min(rows, columns) < 1:
        msg = f"images of {size[0]} x {size[1]} are too small for T2T-ViT"
        raise ValueError(msg)
    return rows, columns


def sinusoids(tokens: int, dim: int) -> Tensor:
    """Fixed position embeddings (1, tokens, dim): sine on even channels, cosine on odd ones."""
    channel = torch.arange(dim, dtype=torch.float64)
    rate = 10000 ** (-2 * (channel // 2) / dim)
    angle = torch.arange(tokens, dtype=torch.float64).unsqueeze(1) * rate
    table = torch.where(channel % 2 == 0, angle.sin(), angle.cos())
    return table.float().unsqueeze(0)


class T2TViT(TokenEncoder):
    """T2T-ViT with the embedding of camera and view.

    Args:
        variant: Its sizes.
        size: Height and width of the image in pixels.
        inner: Width T of the tokens that are joined.
        kind: `transformer` or `performer`: how they are joined.
        more: Arguments of `TokenEncoder`.

    Raises:
        ValueError: The image is too small.
    """

    def __init__(
        self,
        variant: Variant,
        size: tuple[int, int],
        inner: int = TOKEN_DIM,
        kind: str = "transformer",
        **more: Any,
    ) -> None:
        super().__init__(variant, token_grid(size), **more)
        self.tokens_to_token = TokensToToken(variant.dim, inner, kind)
        initialise(self)
        table = sinusoids(self.pos_embed.shape[1], variant.dim)
        self.pos_embed = nn.Parameter(table, requires_grad=False)

    def patches(self, image: Tensor) -> Tensor:
        """Tokens (B, N, D) of an image (B, 3, H, W)."""
        made: Tensor = self.tokens_to_token(image)
        return made
