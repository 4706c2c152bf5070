"""How each recorded target of the losses and measures of `her_seg` is run."""

from __future__ import annotations

import math

import numpy as np
import torch

from tests.parity.golden import Case
from zoo.domains.medical.her_seg import losses, metrics

LOSS = "mask_loss_w"


def losses_and_metrics(case: Case) -> None:
    stems = case.names("input", "pred")
    assert stems, "nothing is recorded"
    for stem in stems:
        probabilities = case.tensors[f"input/{stem}.pred"].clone().requires_grad_()
        target = case.tensors[f"input/{stem}.target"]
        _losses(case, stem, probabilities, target)
        hard = (probabilities >= 0.5).numpy()
        truth = target.numpy() > 0
        counts = metrics.overlap(metrics.confusion(hard.astype("u1"), truth.astype("u1"), 1))
        for name in ("iou", "dice"):
            case.compare(f"output/{stem}.{name}_hard", float(counts[f"{name}_official"][0]))
        pairs = zip(hard[:, 0], truth[:, 0], strict=True)
        distances = [metrics.official_hausdorff(p, y) for p, y in pairs]
        case.compare(f"output/{stem}.hd", float(np.mean(distances)))
        recorded = case.info.get("hd_values", {}).get(stem)
        if recorded is not None and math.isfinite(recorded):
            assert math.isclose(float(np.mean(distances)), recorded, rel_tol=1e-5)


def _losses(case: Case, stem: str, probabilities: torch.Tensor, target: torch.Tensor) -> None:
    start = f"output/{stem}.{LOSS}"
    weights = [k.removeprefix(start) for k in case.tensors if k.startswith(start)]
    assert weights, f"{stem}: no loss is recorded"
    logits = torch.logit(probabilities.detach())
    for weight in weights:
        found = losses.probability_loss(probabilities, target, weight=float(weight))
        case.compare(f"{start}{weight}", found.total)
        # The form that training uses has the same value, from logits and from class indices.
        for form in (True, False):
            same = losses.mask_loss(
                logits, target[:, 0].long(), weight=float(weight), probability_form=form
            )
            torch.testing.assert_close(same.total, found.total, rtol=1e-5, atol=1e-5)
        if weight == "0.8":  # the one that training uses, of which the gradient is recorded
            case.compare(f"output/{stem}.iou_soft", found.iou)
            (gradient,) = torch.autograd.grad(found.total, probabilities)
            case.compare(f"grad/{stem}.pred", gradient)


TARGETS = {"losses_and_metrics": losses_and_metrics}
