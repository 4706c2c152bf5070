"""Our systems against numbers recorded from the official ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor

from tests.parity import (
    crop_yield,
    crop_yield_data,
    fusion_reid,
    fusion_reid_data,
    fusion_reid_ranking,
    fusion_reid_training,
    her_seg,
    medusa,
    rgbd_sod,
    wsi_mil,
    wsi_tiling,
)
from tests.parity.golden import OWN, Case

RUNNERS = {
    "crop_yield": crop_yield.TARGETS | crop_yield_data.TARGETS,
    "her_seg": her_seg.TARGETS,
    "medusa": medusa.TARGETS,
    "reid": fusion_reid.TARGETS
    | fusion_reid_data.TARGETS
    | fusion_reid_ranking.TARGETS
    | fusion_reid_training.TARGETS,
    "rgbd_sod": rgbd_sod.TARGETS,
    "wsi_mil": wsi_mil.TARGETS | wsi_tiling.TARGETS,
}

ALL = "*"
NOT_BUILT_YET: dict[tuple[str, str], str] = {}


def test_case(case_file: Path) -> None:
    case = Case(case_file)
    task, target = case.info["task"], case.info["target"]
    reason = NOT_BUILT_YET.get((task, target)) or NOT_BUILT_YET.get((task, ALL))
    if reason:
        pytest.skip(f"not built yet: {reason}")
    if target not in RUNNERS.get(task, {}):
        pytest.fail(f"{case_file}: nobody runs target '{target}' of task '{task}'")
    RUNNERS[task][target](case)
    assert not case.open, f"{case_file}: recorded but not compared: {sorted(case.open)}"


def test_folder_belongs_to_a_task(case_folder: Path) -> None:
    waiting = {task for task, target in NOT_BUILT_YET if target == ALL}
    assert case_folder.name in RUNNERS.keys() | waiting, f"nobody runs the cases in {case_folder}"


def test_what_is_waiting_is_not_there_already() -> None:
    done = [
        (task, target)
        for task, target in NOT_BUILT_YET
        if target in RUNNERS.get(task, {}) or (target == ALL and task in RUNNERS)
    ]
    assert not done, f"built, but still listed as not built: {done}"


def test_kept_cases_are_few() -> None:
    size = sum(path.stat().st_size for path in OWN.rglob("*") if path.is_file())
    assert 0 < size <= 6_000_000


def rewritten(folder: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> Path:
    """A copy of a kept case with something wrong in it."""
    case = Case(OWN / "wsi_mil" / "abmil_eval.json")
    info, tensors = dict(case.info), {key: value.clone() for key, value in case.tensors.items()}
    change(info, tensors)
    path = folder / "changed.json"
    path.write_text(json.dumps(info))
    save_file(tensors, path.with_suffix(".safetensors"))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda info, _: info.update(target="abmill"), "nobody runs target 'abmill'"),
        (lambda info, _: info.update(task="other"), "of task 'other'"),
        (lambda _, t: t.update({"output/more": t["output/loss_total"] + 0}), "not compared"),
        (lambda _, t: t["output/slide_logits"].add_(1e-3), "output/slide_logits"),
        (lambda _, t: t["grad/features"].mul_(1.01), "grad/features"),
        (lambda _, t: t.pop("grad/classifier.fc.bias"), "does not have"),
    ],
)
def test_a_wrong_case_fails(
    change: Callable[[dict[str, Any], dict[str, Tensor]], object], words: str, tmp_path: Path
) -> None:
    test_case(rewritten(tmp_path, lambda *_: None))
    with pytest.raises((AssertionError, pytest.fail.Exception), match=words):
        test_case(rewritten(tmp_path, change))
