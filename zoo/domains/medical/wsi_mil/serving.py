"""What people who load the model by name call: one bag in, probabilities and attention out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.task import Export, Facts

_SETTINGS = ("magnification", "target_mpp", "patch_level", "patch_size")


class ServedMil(nn.Module):
    """A MIL model with what `zoo predict` makes of its logits.

    Args:
        net: The model, with its standardisation if it has one.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """One slide.

        Args:
            features: (N, F) as stored, N at least 1.

        Returns:
            Probabilities (1, C), and the attention (N,) of each instance, the mean over heads and
            branches, which sums to 1. All are NaN where a feature is not finite: a bag that
            `zoo predict` refuses.
        """
        output = self.net(features)
        probabilities = output.logits.float().softmax(-1)
        attention = output.attention.float().softmax(-1).mean(dim=(0, 1))
        # Rectifiers turn an infinite feature into a finite prediction.
        sound = features.isfinite().all()
        nan = torch.full((), float("nan"), device=features.device)
        return torch.where(sound, probabilities, nan), torch.where(sound, attention, nan)


def served(model: nn.Module, facts: Facts) -> Export:
    """The model as it is served.

    Args:
        model: Of `WsiMil.model`.
        facts: Of its training: `width`, `classes`, `extraction`.
    """
    width = int(facts["width"])
    draw = torch.Generator().manual_seed(0)
    sizes = (16, 1, 2, 300)
    first, *others = ({"features": torch.randn(n, width, generator=draw)} for n in sizes)
    classes = ", ".join(map(str, facts["classes"]))
    return Export(
        inputs=first,
        outputs=("probabilities", "attention"),
        dynamic={"features": {0: "instances"}},
        module=ServedMil(model),
        others=others,
        about={
            "features": f"(N, {width}) float32: the tile features of one slide, N at least 1, "
            f"as the encoder gave them, not normalised{_made(facts)}; a value that is not finite "
            "makes every output NaN",
            "probabilities": f"(1, {len(facts['classes'])}) in [0, 1], summing to 1: {classes}; "
            "research software, not for diagnosis",
            "attention": "(N,) in [0, 1], summing to 1: where the model looked, a tile of average "
            "attention has 1 / N",
        },
    )


def _made(facts: Facts) -> str:
    """How the training features were made, as far as they said so."""
    known: dict[str, Any] = dict(facts.get("extraction") or {})
    parts = [f"encoder {known['encoder']}"] if known.get("encoder") else []
    parts += [f"{key} {known[key]}" for key in _SETTINGS if known.get(key) is not None]
    return f" (trained on: {', '.join(parts)})" if parts else ""
