"""The module in front of the two forms of mutual attention."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zoo.kernels._moment import AXES, Axis, flat
from zoo.kernels.mutual_attention.op import signed_sqrt_attention, two_stream_attention

FORMS = ("softmax", "signed_sqrt")


class MutualAttention(nn.Module):
    """Dense attention in which two streams share what one of them would compute alone.

    It has no parameters: projections belong to the network around it.

    Args:
        form: `signed_sqrt`: GL-DMNet's position mutual fusion, called with maps of rgb, depth and
            both fused. `softmax`: one score matrix for two value streams, called with query, key,
            first value and (optionally) second value.
        eps: Of the signed square root.
        l2_axis: `map`: unit norm of each channel over positions; `position`: over channels.
        l2_scale: Whether to multiply by sqrt(N) after that norm.
        scale: Of the softmax form's scores; None: 1 / sqrt(E).

    Raises:
        ValueError: A setting is none of its values.
    """

    def __init__(
        self,
        form: Literal["softmax", "signed_sqrt"] = "softmax",
        *,
        eps: float = 1e-6,
        l2_axis: Axis = "map",
        l2_scale: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if form not in FORMS or l2_axis not in AXES or eps < 0:
            msg = (
                f"form is one of {', '.join(FORMS)}, l2_axis one of {', '.join(AXES)} and eps "
                f">= 0; got {form=}, {l2_axis=}, {eps=}"
            )
            raise ValueError(msg)
        self.form, self.eps, self.scale = form, eps, scale
        self.l2_axis: Axis = l2_axis
        self.l2_scale = l2_scale

    def forward(
        self, first: Tensor, second: Tensor, third: Tensor, fourth: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Attends.

        Args:
            first: `signed_sqrt`: rgb (B, C, N) or (B, C, H, W); `softmax`: query (..., N, E).
            second: depth of the same shape; or key (..., M, E).
            third: fused of the same shape; or the first value (..., M, V1).
            fourth: Only in the softmax form: the second value (..., M, V2).

        Returns:
            Attended rgb, depth and fused, shaped like them; or one tensor (..., N, V) a value.

        Raises:
            ValueError: Shapes do not fit.
        """
        if self.form == "softmax":
            return two_stream_attention(first, second, third, fourth, self.scale)
        if fourth is not None:
            msg = "the signed_sqrt form takes three maps: rgb, depth and fused"
            raise ValueError(msg)
        maps = flat(first), flat(second), flat(third)
        found = signed_sqrt_attention(*maps, self.eps, self.l2_axis, self.l2_scale)
        return tuple(x.view(first.shape) for x in found)

    def extra_repr(self) -> str:
        """Settings for printing."""
        return f"form={self.form!r}"
