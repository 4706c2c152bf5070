"""How the recorded losses and learning rates of `fusion_reid` are run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.parity.golden import Case
from zoo.domains.reid.fusion_reid.losses import CentreLoss, identity_loss, joined, triplet_loss
from zoo.domains.reid.fusion_reid.schedule import WarmupCosine

# What the records call the settings of the triplet loss.
_TRIPLETS: dict[str, dict[str, Any]] = {
    "triplet_m03": {"margin": 0.3},
    "triplet_m03_norm": {"margin": 0.3, "normalise": True},
    "triplet_soft": {},
    "triplet_soft_hard02": {"hard_factor": 0.2},
}
_INPUTS = {"s": "score", "s2": "score2", "f": "feat", "f2": "feat2"}


def losses_target(case: Case) -> None:
    smoothing = case.info["args"]["label_smoothing"]
    labels = case.tensors["input/target"]
    outputs = set(case.group("output"))
    for name in sorted(outputs - {"center", "dist_ap", "dist_an"}):
        if name in _TRIPLETS:
            settings = _TRIPLETS[name]
            compared(case, name, lambda x, s=settings: triplet_loss(x["f"], labels, **s).loss)
        elif name.startswith("total"):
            compared(case, name, total(name, labels, smoothing))
        else:
            eps = 0.0 if name == "xent" else smoothing
            compared(case, name, lambda x, e=eps: identity_loss(x["s"], labels, e))
    found = triplet_loss(case.tensors["input/feat"], labels)
    case.compare_if_recorded("output/dist_ap", lambda: found.positive)
    case.compare_if_recorded("output/dist_an", lambda: found.negative)
    if "center" in outputs:
        centres_compared(case, labels)


def total(name: str, labels: Tensor, smoothing: float) -> Callable[[dict[str, Tensor]], Tensor]:
    """Identity and triplet loss as `total_<triplet>_<smoothing>[_list]` names them."""
    _, triplet, smooth, *listed = name.split("_")
    settings = _TRIPLETS[f"triplet_{triplet}"]
    eps = {"ls": smoothing, "nols": 0.0}[smooth]

    def value(x: dict[str, Tensor]) -> Tensor:
        scores, features = [x["s"]], [x["f"]]
        if listed:
            scores.append(x["s2"])
            features.append(x["f2"])
        ids = [identity_loss(s, labels, eps) for s in scores]
        triplets = [triplet_loss(f, labels, **settings).loss for f in features]
        return joined(ids, "halves") + joined(triplets, "halves")

    return value


def compared(case: Case, name: str, value: Callable[[dict[str, Tensor]], Tensor]) -> None:
    """One loss and its gradients for every input that has one recorded."""
    inputs = {
        short: case.tensors[f"input/{long}"].clone().requires_grad_()
        for short, long in _INPUTS.items()
        if f"input/{long}" in case.tensors
    }
    loss = value(inputs)
    case.compare(f"output/{name}", loss)
    wanted = [k for k in inputs if f"grad/{name}.{k}" in case.tensors]
    assert wanted, f"{name} has no recorded gradient"
    grads = torch.autograd.grad(loss, [inputs[k] for k in wanted])
    for key, grad in zip(wanted, grads, strict=True):
        case.compare(f"grad/{name}.{key}", grad)


def centres_compared(case: Case, labels: Tensor) -> None:
    centres, features = case.tensors["input/centers"], case.tensors["input/feat"]
    module = CentreLoss(*centres.shape)
    module.load_state_dict({"centres": centres})
    loss = module(features, labels)
    case.compare("output/center", loss)
    (grad,) = torch.autograd.grad(loss, [module.centres])
    case.compare("grad/center.centers", grad)


def schedule_target(case: Case) -> None:
    for name, (base, epochs, warmup) in case.info["args"]["cases"].items():
        rows = len(case.tensors[f"output/{name}"])
        groups = [WarmupCosine(base, base * share, epochs, warmup) for share in (1.0, 2.0)]
        rates = [[group.rate(epoch) for group in groups] for epoch in range(rows)]
        case.compare(f"output/{name}", torch.tensor(rates, dtype=torch.float64))
        # Row e is epoch e, and the first epoch of a training is number 1.
        for epoch in range(1, rows):
            for column, group in enumerate(groups):
                rate = group.own * group.factor(epoch - 1, 3, 7)
                assert abs(rate - rates[epoch][column]) <= 1e-15


TARGETS = {"losses": losses_target, "lr_schedule": schedule_target}
