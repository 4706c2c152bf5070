"""How each recorded target of `rgbd_sod` is run."""

from __future__ import annotations

import pytest
import torch

from tests.parity import rgbd_sod_metrics
from tests.parity.golden import Case
from zoo.domains.saliency.rgbd_sod import losses
from zoo.domains.saliency.rgbd_sod.convert import convert_pyramid, rename_pvt
from zoo.domains.saliency.rgbd_sod.pvt import BLOCK_EPS, EXPANSIONS, RATIOS, PvtPyramid, PvtStage


def sizes(case: Case) -> tuple[list[int], list[int], list[int]]:
    """Widths, heads and depths of a recorded PVTv2; the rest has to be what ours always is."""
    args = dict(case.info["args"])
    assert case.info["norm_eps"] == BLOCK_EPS
    assert case.info["mode"] == "eval" if "mode" in case.info else True
    fixed = {name: args.pop(name) for name in ("in_chans", "num_classes", "qkv_bias")}
    assert fixed == {"in_chans": 3, "num_classes": 0, "qkv_bias": True}
    assert tuple(args.pop("mlp_ratios")) == EXPANSIONS
    assert tuple(args.pop("sr_ratios")) == RATIOS
    found = args.pop("embed_dims"), args.pop("num_heads"), args.pop("depths")
    assert not args
    return found


def stage_target(case: Case) -> None:
    widths, heads, depths = sizes(case)
    i, inputs = case.info["stage"] - 1, case.group("input")
    stage = PvtStage(widths[i], heads[i], RATIOS[i], EXPANSIONS[i], [0.0] * depths[i]).eval()
    renamed = {rename_pvt(key, "pvt_official"): t for key, t in case.group("state").items()}
    stage.load_state_dict({str(k).removeprefix(f"transformer.{i}."): t for k, t in renamed.items()})
    x = inputs["x"].requires_grad_()
    y = stage(x)
    case.compare("output/y", y)
    (y * inputs["loss_weight"]).sum().backward()
    assert x.grad is not None
    case.compare("grad/x", x.grad)


def pyramid_target(case: Case) -> None:
    pyramid = PvtPyramid(*sizes(case)).eval()
    pyramid.load_state_dict(convert_pyramid(case.group("state")))
    for number, found in enumerate(pyramid(case.group("input")["x"]), 1):
        case.compare(f"output/stage{number}", found)


def losses_target(case: Case) -> None:
    inputs, scalars = case.group("input"), dict(case.info["scalars"])
    mask = inputs["gt"]
    logits = [inputs[f"logit{level}"].requires_grad_() for level in (1, 2, 3, 4)]
    total = losses.deep_supervision(logits, mask, "bce+iou")
    total["loss"].backward()
    case.compare("output/total", total["loss"].reshape(1))
    case.compare("output/total", (total["bce"] + total["iou"]).reshape(1))
    names = case.info["order_of_output_level"]
    found = losses.level_terms(torch.stack([x[:, 0] for x in logits]), mask[:, 0], names)
    for level, logit in enumerate(logits, 1):
        values = torch.stack([found[name][level - 1] for name in names])
        case.compare(f"output/level{level}", values)
        close(case, dict(zip(names, values.tolist(), strict=True)), scalars.pop(f"level{level}"))
        assert logit.grad is not None
        case.compare(f"grad/logit{level}", logit.grad)
    close(case, total["loss"].item(), scalars.pop("total"))
    # The released form on a quarter of foreground everywhere, and where it is 0 / 0.
    quarter, full = torch.full((1, 1, 8, 8), 0.25), torch.ones(1, 8, 8)
    close(case, losses.iou(quarter, full).item(), scalars.pop("iou_full_gt"))
    close(case, losses.iou(quarter, full * 0).item(), scalars.pop("iou_empty_gt"))
    assert scalars.pop("iou_empty_gt_zero_pred") is None
    assert losses.iou(quarter * 0, full * 0).item() == 0
    assert not scalars


def close(case: Case, ours: float | dict[str, float], recorded: float | dict[str, float]) -> None:
    limits = case.info["tolerance"]
    assert ours == pytest.approx(recorded, rel=limits["rtol"], abs=limits["atol"])


TARGETS = {
    "losses": losses_target,
    "pvtv2_stage": stage_target,
    "pvtv2_pyramid": pyramid_target,
} | rgbd_sod_metrics.TARGETS
