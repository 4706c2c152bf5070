"""Losses of ACMIL, the monitor of its attention, and the scores a heat map is drawn of.

Everything takes packed slides as the models do. Letters: B slides, N instances of all slides,
K branches, C classes, M attention maps (1 for gated attention, 8 heads for multi-head).
Source: arXiv 2311.07125 (branch supervision and diversity loss), the official training script.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zoo.domains.medical.wsi_mil.model import MilOutput
from zoo.kernels import bag_bounds, full_precision


class MilLosses(NamedTuple):
    """Scalar losses of a batch of slides, each the mean over the slides.

    Attributes:
        total: slide + branch + diversity, weighted.
        diversity: Similarity of the branches' attention, in [0, 1]; 0 for one branch.
        branch: Cross entropy of the branches' predictions; 0 for one branch.
        slide: Cross entropy of the slide prediction.
    """

    total: Tensor
    diversity: Tensor
    branch: Tensor
    slide: Tensor


def mil_losses(
    output: MilOutput,
    labels: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    diversity_weight: float = 1.0,
    branch_weight: float = 1.0,
) -> MilLosses:
    """All losses of a batch of slides; with unit weights the mean of the official loss.

    Args:
        output: What the model returned.
        labels: (B,) int64 slide classes.
        cu_seqlens: (B + 1,) integer bounds of the slides; None: one slide.
        diversity_weight: Weight of the diversity loss in the total.
        branch_weight: Weight of the branch loss in the total.

    Raises:
        ValueError: The bounds are wrong.
    """
    slide = functional.cross_entropy(output.logits, labels)
    branch = branch_loss(output.branch_logits, labels)
    diversity = diversity_loss(output.attention, cu_seqlens)
    total = diversity_weight * diversity + branch_weight * branch + slide
    return MilLosses(total, diversity, branch, slide)


def branch_loss(branch_logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of branch_logits (B, K, C) against labels (B,); 0 if K = 1."""
    slides, branches, _ = branch_logits.shape
    if branches == 1:
        return branch_logits.new_zeros(())
    repeated = labels.unsqueeze(1).expand(slides, branches)
    return functional.cross_entropy(branch_logits.flatten(0, 1), repeated.flatten())


def diversity_loss(attention: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Mean cosine between the attention distributions of every two branches of a slide.

    The rows are normalised once and compared in one product; the mean runs over the pairs of
    branches, the maps and the slides.

    Args:
        attention: (M, K, N) attention logits.
        cu_seqlens: (B + 1,) integer bounds of the slides; None: one slide.

    Returns:
        Scalar in [0, 1]: 1 if all branches attend alike, 0 if K = 1.

    Raises:
        ValueError: The bounds are wrong.
    """
    branches = attention.shape[1]
    if branches == 1:
        return attention.new_zeros(())
    first, second = torch.triu_indices(branches, branches, 1, device=attention.device)
    slides = []
    with full_precision(attention):
        for start, end in bag_bounds(cu_seqlens, attention.shape[-1]):
            weights = attention[..., start:end].softmax(dim=-1)
            unit = functional.normalize(weights, dim=-1, eps=1e-8)
            slides.append((unit @ unit.mT)[:, first, second].mean())
    return torch.stack(slides).mean()


def neg_entropy(attention: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Negative entropy of the attention of each slide: how concentrated it is.

    Args:
        attention: (M, K, N) attention logits.
        cu_seqlens: (B + 1,) integer bounds of the slides; None: one slide.

    Returns:
        (B,) sum of p log p over maps, branches and instances, divided by K, in nats. It is 0 or
        less; -log n times the number of maps at uniform attention over n instances.

    Raises:
        ValueError: The bounds are wrong.
    """
    slides = []
    for start, end in bag_bounds(cu_seqlens, attention.shape[-1]):
        log_weights = attention[..., start:end].log_softmax(dim=-1)
        slides.append((log_weights.exp() * log_weights).sum() / attention.shape[1])
    return torch.stack(slides)


def heatmap_scores(
    attention: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    zoom: float = 1.0,
    first_map_only: bool = False,
) -> Tensor:
    """Attention of each instance in units of the slide's average attention.

    Args:
        attention: (M, K, N) attention logits.
        cu_seqlens: (B + 1,) integer bounds of the slides; None: one slide.
        zoom: Factor in (0, 1]; with 1 a score of 1 is average attention.
        first_map_only: Use map 0 alone, as the official script does. By default the heads of
            multi-head attention are averaged; for gated attention there is no difference.

    Returns:
        (N,) mean softmax weight over branches and maps, times n of the slide, times zoom.

    Raises:
        ValueError: The bounds are wrong.
    """
    maps = attention[:1] if first_map_only else attention
    scores = [
        maps[..., start:end].softmax(dim=-1).mean(dim=(0, 1)) * ((end - start) * zoom)
        for start, end in bag_bounds(cu_seqlens, attention.shape[-1])
    ]
    return torch.cat(scores)
