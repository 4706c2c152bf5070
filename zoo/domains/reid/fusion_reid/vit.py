"""Transformer blocks, and the vision transformer in the form TransReID gave it.

Source: He et al., "TransReID: Transformer-based object re-identification" (arXiv 2102.04378), as
FusionReID uses it: overlapping patches, an embedding of camera and view (side information) on
every token, no jigsaw. Letters: B images, N patches, D token width.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from zoo.kernels.products import Dense

PATCH = 16


class Variant(NamedTuple):
    """Sizes of a transformer.

    Attributes:
        dim: Token width D.
        depth: Blocks.
        heads: Attention heads.
        ratio: Hidden width of the MLPs over D.
        bias: Whether queries, keys and values have biases.
        scale: Factor on the logits; None: 1 / sqrt(D / heads).
        eps: Of the layer norms.
    """

    dim: int
    depth: int
    heads: int
    ratio: float = 4.0
    bias: bool = True
    scale: float | None = None
    eps: float = 1e-6


VARIANTS = {
    "vit_base_patch16_224": Variant(768, 12, 12),
    "deit_base_patch16_224": Variant(768, 12, 12),
    "vit_small_patch16_224": Variant(768, 8, 8, 3.0, bias=False, scale=768**-0.5),
    "deit_small_patch16_224": Variant(384, 12, 6),
}


class SelfAttention(nn.Module):
    """Multi-head self-attention; queries, keys and values come from one layer, in that order.

    Args:
        dim: Token width D.
        heads: Attention heads; they divide D.
        bias: Whether queries, keys and values have biases.
        scale: Factor on the logits; None: 1 / sqrt(D / heads).

    Raises:
        ValueError: The heads do not divide D.
    """

    def __init__(self, dim: int, heads: int, bias: bool, scale: float | None = None) -> None:
        super().__init__()
        if dim % heads:
            msg = f"token width {dim} should be a multiple of the {heads} heads"
            raise ValueError(msg)
        self.heads = heads
        self.scale = (dim // heads) ** -0.5 if scale is None else scale
        self.qkv = Dense(dim, 3 * dim, bias=bias)
        self.proj = Dense(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attends over tokens (B, N, D); returns the same shape."""
        q, k, v = self._heads(self.qkv(x))
        made = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        mixed: Tensor = self.proj(made.transpose(1, 2).flatten(2))
        return mixed

    def first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What token 0 alone gets, without keys and values of the others being formed.

        The key projection moves to the query and the value projection behind the sum over tokens,
        which is exact. Biases of keys shift all logits alike and drop out.

        Args:
            x: (B, N, D) tokens.

        Returns:
            (B, D), and the attention (B, heads, N) of token 0 to all tokens.
        """
        wide = (self.heads, -1, x.shape[2])
        query, key, value = (w.view(wide) for w in self.qkv.weight.chunk(3))
        q = torch.einsum("bd,hed->bhe", x[:, 0], query)
        biases = None if self.qkv.bias is None else self.qkv.bias.chunk(3)
        if biases is not None:
            q = q + biases[0].view(self.heads, -1)
        vectors = torch.einsum("bhe,hed->bhd", q * self.scale, key)
        weights = (vectors @ x.mT).softmax(-1)
        made = torch.einsum("bhd,hed->bhe", weights @ x, value)
        if biases is not None:
            made = made + biases[2].view(self.heads, -1)
        mixed: Tensor = self.proj(made.flatten(1))
        return mixed, weights

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values (B, heads, N, D / heads) of (B, N, 3 D)."""
        parts: Tensor = torch.unflatten(x, 2, (3, self.heads, -1))
        return parts.permute(2, 0, 3, 1, 4).unbind(0)


class Mlp(nn.Module):
    """Linear, GELU (by the error function), Linear.

    Args:
        dim: Token width D.
        hidden: Hidden width.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Dense(dim, hidden)
        self.fc2 = Dense(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., D) to the same shape."""
        made: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return made


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)).

    Args:
        dim: Token width D.
        heads: Attention heads.
        ratio: Hidden width of the MLP over D.
        bias: Whether queries, keys and values have biases.
        scale: Factor on the logits; None: 1 / sqrt(D / heads).
        eps: Of the layer norms.
        drop_path: Chance that a branch is left out for an image in training.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        ratio: float = 4.0,
        bias: bool = False,
        scale: float | None = None,
        eps: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = SelfAttention(dim, heads, bias, scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * ratio))
        self.drop = StochasticDepth(drop_path, "row") if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens (B, N, D) to the same shape."""
        x = x + self.drop(self.attn(self.norm1(x)))
        x = x + self.drop(self.mlp(self.norm2(x)))
        return x

    def first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Token 0 of the result (B, D), and its attention (B, heads, N)."""
        made, weights = self.attn.first(self.norm1(x))
        token = x[:, 0] + self.drop(made)
        return token + self.drop(self.mlp(self.norm2(token))), weights


class TokenEncoder(nn.Module):
    """A transformer over patches, a class token in front; what makes the patches is a subclass.

    Args:
        variant: Its sizes.
        grid: Rows and columns of patches.
        drop_path: Of the last block; it rises linearly from 0.
        cameras: Number of cameras embedded; 0: none.
        views: Number of views embedded; 0: none.
        side_scale: Factor on the embedding of camera and view.
        local: Stop before the last block and leave out the final norm.
    """

    def __init__(
        self,
        variant: Variant,
        grid: tuple[int, int],
        drop_path: float = 0.1,
        cameras: int = 0,
        views: int = 0,
        side_scale: float = 3.0,
        local: bool = False,
    ) -> None:
        super().__init__()
        self.grid, self.dim, self.local = grid, variant.dim, local
        self.cameras, self.views, self.side_scale = cameras, views, side_scale
        self.cls_token = nn.Parameter(torch.zeros(1, 1, variant.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], variant.dim))
        self.sie_embed: nn.Parameter | None = None
        if cameras or views:
            table = torch.zeros(max(cameras, 1) * max(views, 1), 1, variant.dim)
            self.sie_embed = nn.Parameter(table)
        last = max(1, variant.depth - 1)
        self.blocks = nn.ModuleList(
            Block(
                variant.dim,
                variant.heads,
                variant.ratio,
                variant.bias,
                variant.scale,
                variant.eps,
                drop_path * number / last,
            )
            for number in range(variant.depth)
        )
        self.norm = nn.LayerNorm(variant.dim, eps=variant.eps)

    def patches(self, image: Tensor) -> Tensor:
        """Tokens (B, N, D) of an image (B, 3, H, W)."""
        raise NotImplementedError

    def forward(
        self, image: Tensor, camera: Tensor | None = None, view: Tensor | None = None
    ) -> Tensor:
        """Class token and patch tokens.

        Args:
            image: (B, 3, H, W), in [-1, 1], of the size it was built for.
            camera: (B,) int64 from 0, -1 or None where unknown.
            view: (B,) int64 likewise.

        Returns:
            (B, 1 + N, D).

        Raises:
            ValueError: A camera or view beyond those embedded.
        """
        x = self.embed(image, camera, view)
        for block in self.blocks[:-1] if self.local else self.blocks:
            x = block(x)
        return x if self.local else self.norm(x)

    def attentive(
        self, image: Tensor, camera: Tensor | None = None, view: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same, and the last block's attention (B, N) of the class token to the patches."""
        x = self.embed(image, camera, view)
        for block in self.blocks[:-1]:
            x = block(x)
        last = cast(Block, self.blocks[-1])
        _, weights = last.first(x)
        shares = weights.mean(1)[:, 1:]
        x = x if self.local else self.norm(last(x))
        return x, shares / shares.sum(1, keepdim=True)

    def embed(self, image: Tensor, camera: Tensor | None, view: Tensor | None) -> Tensor:
        """Tokens with position, camera and view, before the first block."""
        x = self.patches(image)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.pos_embed
        if self.sie_embed is not None:
            x = x + self.side_scale * self.side(self.sie_embed, camera, view, x.shape[0])
        return x

    def side(
        self, table: Tensor, camera: Tensor | None, view: Tensor | None, images: int
    ) -> Tensor:
        """Embedding (B or 1, 1, D) of camera and view; unknown ones take the mean of all."""
        cells = table.view(max(self.cameras, 1), max(self.views, 1), -1)
        cells = torch.cat([cells, cells.mean(0, keepdim=True)])
        cells = torch.cat([cells, cells.mean(1, keepdim=True)], dim=1)
        row = _index(camera, self.cameras, "camera", images, table)
        column = _index(view, self.views, "view", images, table)
        return cells[row, column].unsqueeze(1)


def _index(label: Tensor | None, count: int, name: str, images: int, like: Tensor) -> Tensor:
    """Rows of the table of side information; its last row is the mean.

    Raises:
        ValueError: A label beyond the table, or not one for each image.
    """
    last = max(count, 1)
    if label is None or not count:
        return torch.full((1,), last, dtype=torch.long, device=like.device)
    if label.shape != (images,):
        msg = f"one {name} for each of the {images} images expected, got {tuple(label.shape)}"
        raise ValueError(msg)
    # On a device the look would cost a wait, and in a trace it would be a constant.
    if label.device.type == "cpu" and not torch.compiler.is_compiling():
        top = int(label.max()) if images else 0
        if top >= count:
            msg = f"{name} {top} is beyond the {count} that the model has embeddings for"
            raise ValueError(msg)
    return torch.where(label < 0, last, label)


class PatchEmbed(nn.Module):
    """Square patches at any stride.

    Args:
        dim: Token width D.
        stride: Rows and columns between patches.
        patch: Side of a patch in pixels.
    """

    def __init__(self, dim: int, stride: tuple[int, int], patch: int = PATCH) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride)

    def forward(self, image: Tensor) -> Tensor:
        """Tokens (B, N, D) of an image (B, 3, H, W)."""
        made: Tensor = self.proj(image)
        return made.flatten(2).transpose(1, 2)


class VisionTransformer(TokenEncoder):
    """ViT and DeiT with overlapping patches.

    Args:
        variant: Its sizes.
        size: Height and width of the image in pixels.
        stride: Rows and columns between patches.
        patch: Side of a patch in pixels.
        more: Arguments of `TokenEncoder`.

    Raises:
        ValueError: The image is smaller than a patch.
    """

    def __init__(
        self,
        variant: Variant,
        size: tuple[int, int],
        stride: tuple[int, int],
        patch: int = PATCH,
        **more: Any,
    ) -> None:
        super().__init__(variant, patch_grid(size, stride, patch), **more)
        self.patch_embed = PatchEmbed(variant.dim, stride, patch)
        initialise(self)
        proj = self.patch_embed.proj
        nn.init.normal_(proj.weight, std=math.sqrt(2 / (patch * patch * variant.dim)))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def patches(self, image: Tensor) -> Tensor:
        """Tokens (B, N, D) of an image (B, 3, H, W)."""
        made: Tensor = self.patch_embed(image)
        return made


def patch_grid(
    size: tuple[int, int], stride: tuple[int, int], patch: int = PATCH
) -> tuple[int, int]:
    """Rows and columns of patches in an image of `size`.

    Raises:
        ValueError: The image is smaller than a patch.
    """
    if min(size) < patch:
        msg = f"images of {size[0]} x {size[1]} are smaller than a patch of {patch} x {patch}"
        raise ValueError(msg)
    return (size[0] - patch) // stride[0] + 1, (size[1] - patch) // stride[1] + 1


def initialise(encoder: TokenEncoder) -> None:
    """Linear layers, class token and side information: truncated normal 0.02; biases 0."""
    nn.init.trunc_normal_(encoder.cls_token, std=0.02)
    if encoder.sie_embed is not None:
        nn.init.trunc_normal_(encoder.sie_embed, std=0.02)
    for part in encoder.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def resize_positions(table: Tensor, grid: tuple[int, int], distilled: bool = False) -> Tensor:
    """Position embeddings of a square image for another grid, as TransReID and DeiT do it.

    Bilinear between cell centres, without antialiasing.

    Args:
        table: (1, 1 + n * n, D), or (1, 2 + n * n, D) if distilled.
        grid: Rows and columns wanted.
        distilled: Whether token 1 is DeiT's distillation token; it is left out.

    Returns:
        (1, 1 + rows * columns, D).

    Raises:
        ValueError: The tokens are no square.
    """
    if distilled:
        table = torch.cat([table[:, :1], table[:, 2:]], dim=1)
    side = math.isqrt(table.shape[1] - 1)
    if side * side != table.shape[1] - 1:
        msg = f"{table.shape[1] - 1} position embeddings beside the class token are no square"
        raise ValueError(msg)
    cells = torch.unflatten(table[:, 1:].transpose(1, 2), 2, (side, side))
    cells = functional.interpolate(cells, grid, mode="bilinear", align_corners=False)
    return torch.cat([table[:, :1], cells.flatten(2).transpose(1, 2)], dim=1)
