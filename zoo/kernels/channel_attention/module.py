"""The module in front of the two forms of channel attention."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zoo.kernels._moment import AXES, Axis, flat
from zoo.kernels.channel_attention.reference import channel_attention, channel_mutual_attention

FORMS = ("softmax", "signed_sqrt")


class ChannelAttention(nn.Module):
    """Attention between channels; it has no parameters.

    Args:
        form: `softmax`: softmax(-x x^T) values, called with x and, if they differ, values.
            `signed_sqrt`: GL-DMNet's channel mutual fusion, called with rgb, depth and both fused.
        eps: Of the signed square root.
        l2_axis: `map`: unit norm of each channel over positions; `position`: over channels.
        l2_scale: Whether to multiply by sqrt(N) after that norm.

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
    ) -> None:
        super().__init__()
        if form not in FORMS or l2_axis not in AXES or eps < 0:
            msg = (
                f"form is one of {', '.join(FORMS)}, l2_axis one of {', '.join(AXES)} and eps "
                f">= 0; got {form=}, {l2_axis=}, {eps=}"
            )
            raise ValueError(msg)
        self.form, self.eps, self.l2_scale = form, eps, l2_scale
        self.l2_axis: Axis = l2_axis

    def forward(
        self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Attends.

        Args:
            first: x, or rgb: (B, C, N) or maps (B, C, H, W).
            second: values, or depth.
            third: fused; only in the signed_sqrt form.

        Returns:
            Mixed values shaped like them, or attended rgb, depth and fused.

        Raises:
            ValueError: Shapes or their number do not fit.
        """
        if self.form == "softmax" and third is None:
            values = first if second is None else second
            return channel_attention(flat(first), flat(values)).view(values.shape)
        if self.form == "softmax" or second is None or third is None:
            msg = (
                "channel attention: the softmax form takes x and values, the signed_sqrt form "
                "rgb, depth and fused"
            )
            raise ValueError(msg)
        maps = flat(first), flat(second), flat(third)
        found = channel_mutual_attention(*maps, self.eps, self.l2_axis, self.l2_scale)
        return tuple(x.view(first.shape) for x in found)

    def extra_repr(self) -> str:
        """Settings for printing."""
        return f"form={self.form!r}"
