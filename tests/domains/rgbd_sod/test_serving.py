"""What is served gives what `zoo predict` gives on the same files, whatever they look like."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from zoo.data import item_rng
from zoo.domains.saliency.rgbd_sod import sample
from zoo.domains.saliency.rgbd_sod.depth import DepthRules
from zoo.domains.saliency.rgbd_sod.filling import filled_by_nearest
from zoo.domains.saliency.rgbd_sod.images import RawDepth
from zoo.domains.saliency.rgbd_sod.sample import write_pairs
from zoo.domains.saliency.rgbd_sod.serving import ServedSalience, served
from zoo.domains.saliency.rgbd_sod.split import Reading
from zoo.domains.saliency.rgbd_sod.task import RgbdSod
from zoo.exporting import prepared, traced
from zoo.task import Export

from .test_task import task_of

# Of a written map: half a level, and what arithmetic in another order comes to.
LEVEL = 0.5 / 255 + 2e-5
FACTS = {"input_size": 64, "holes": "nearest", "hole_value": None, "percentile": None}


class Split(nn.Module):
    """A network that shows both inputs."""

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        return rgb.mean(1, keepdim=True) + 4 * depth


def given(raw: RawDepth, near_bright: bool = False) -> Tensor:
    """Depth as a user of the served model gives it: any unit, near small, holes marked."""
    values = raw.values.astype(np.float32) / np.float32(np.iinfo(raw.values.dtype).max)
    values = 1 - values if near_bright else values
    marked = np.where((raw.values == 0) & raw.zero_is_hole, np.float32(-1), values)
    return torch.from_numpy(marked)[None, None]


def answers(
    task: RgbdSod, paths: list[Path], facts: dict[str, Any], out: Path, near_bright: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Served and predicted map of every scene, both in [0, 1]."""
    torch.manual_seed(0)
    network = task.model(facts).eval()
    split: Any = task.inputs(paths, facts)
    module = prepared(task, network, facts).module
    assert module is not None
    made = []
    with torch.no_grad():
        for i in range(len(split.ids)):
            batch = split.collate([split.item(i, item_rng(1, 0, i))])
            (record,) = task.records(network, batch)
            assert record.write is not None
            (path,) = record.write(out)
            scene = split.scene(i)
            rgb = torch.from_numpy(scene.rgb.astype(np.float32) / 255).permute(2, 0, 1)[None]
            inputs = (rgb,) if scene.depth is None else (rgb, given(scene.depth, near_bright))
            given_back = module(*inputs)[0, 0].numpy()
            made.append((given_back, np.asarray(Image.open(path)) / 255))
    assert made
    return made


def apart(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in pairs)


@pytest.mark.parametrize("near_bright", [False, True])
def test_maps_are_those_of_prediction_for_either_polarity(
    tmp_path: Path, near_bright: bool
) -> None:
    made = [replace(s, holes=np.zeros_like(s.holes)) for s in sample.scenes(3, 0, "plain")]
    # Landscape, portrait, and larger and smaller than the network's input.
    write_pairs(tmp_path / "set", made, near_bright=near_bright)
    facts = {**FACTS, "default_polarity": "near_bright" if near_bright else "near_dark"}
    found = answers(task_of(tmp_path), [tmp_path / "set"], facts, tmp_path / "out", near_bright)
    assert len({one.shape for one, _ in found}) == 3
    assert apart(found) < LEVEL
    assert min(np.ptp(one) for one, _ in found) > 0.01


@pytest.mark.parametrize("holes", ["nearest", "far"])
def test_holes_are_filled_as_in_prediction(tmp_path: Path, holes: str) -> None:
    write_pairs(tmp_path / "set", sample.scenes(3, 0, "holes"), formats=("png16",))
    facts = {**FACTS, "default_polarity": "near_dark", "holes": holes}
    found = answers(task_of(tmp_path), [tmp_path / "set"], facts, tmp_path / "out")
    # A hole in the middle of two measured pixels may take the other one's depth.
    assert apart(found) < (LEVEL if holes == "far" else LEVEL + 1e-3)


@pytest.mark.parametrize(
    "words", [("data.depth=zeros",), ("predict.minmax=true",)], ids=["blind", "minmax"]
)
def test_settings_count(tmp_path: Path, words: tuple[str, ...]) -> None:
    write_pairs(tmp_path / "set", sample.scenes(2, 0, "set"))
    facts = {**FACTS, "default_polarity": "near_dark", "percentile": [2, 90]}
    task = task_of(tmp_path, *words)
    found = answers(task, [tmp_path / "set"], facts, tmp_path / "out")
    assert apart(found) < LEVEL
    blind = "depth" not in prepared(task, task.model(facts), facts).inputs
    assert blind == ("zeros" in words[0])
    if not blind:
        assert all(np.ptp(one) == 1 for one, _ in found)


# -- depth alone --------------------------------------------------------------------------------


def shown(depth: Tensor, **rules: Any) -> Tensor:
    return ServedSalience(Split(), 8, DepthRules(**rules)).canonical(depth)


def test_any_unit_of_depth_is_the_same() -> None:
    metres = 0.4 + 7 * torch.rand(2, 1, 9, 11, generator=torch.Generator().manual_seed(0))
    unit = shown(metres)
    assert (float(unit.min()), float(unit.max())) == (0, 1)
    torch.testing.assert_close(shown(metres * 1000), unit)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_map_that_says_nothing_is_zero(value: float) -> None:
    assert not shown(torch.full((1, 1, 5, 4), 0.7)).any()
    assert not shown(torch.full((1, 1, 5, 4), value)).any()
    some = torch.rand(1, 1, 5, 4)
    some[..., 2, 2] = value
    assert shown(some).isfinite().all()


def test_percentiles_are_numpy_s_over_measured_pixels() -> None:
    depth = torch.rand(2, 1, 30, 20, generator=torch.Generator().manual_seed(0))
    depth[0, 0, :10] = -1
    low, high = np.percentile(depth[0][depth[0] >= 0].double().numpy(), (3, 95))
    expected = ((depth[0, 0, 10:] - low) / (high - low)).clamp(0, 1)
    torch.testing.assert_close(
        shown(depth, percentile=(3, 95))[0, 0, 10:], expected.float(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
def test_holes_take_the_nearest_measured_depth_as_opencv_finds_it(share: float) -> None:
    rng = np.random.default_rng(0)
    holes = rng.random((120, 90)) < share
    holes[40:80, 10:50] = True
    values = rng.random(holes.shape).astype(np.float32)
    distances, labels = cv2.distanceTransformWithLabels(
        holes.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    value_of = np.zeros(int(labels.max()) + 1, np.float32)
    value_of[labels[~holes]] = values[~holes]
    asked = (torch.from_numpy(x)[None, None] for x in (values, holes))
    found = filled_by_nearest(*asked)
    filled = found[0, 0].numpy()
    assert np.array_equal(filled[~holes], values[~holes])
    # Another measured pixel is taken in ties alone: its distance is the same.
    rows, columns = np.nonzero(holes & (filled != value_of[labels]))
    assert len(rows) < 0.03 * holes.sum()
    known = {float(v): (y, x) for (y, x), v in np.ndenumerate(values) if not holes[y, x]}
    for y, x in zip(rows[:200], columns[:200], strict=True):
        at = known[float(filled[y, x])]
        near, far = sorted((abs(at[0] - y), abs(at[1] - x)))
        steps = max(far + 0.1969 * near, 0.7969 * far + 0.6031 * near)
        assert steps == pytest.approx(distances[y, x], abs=0.25)


# -- range, graph -------------------------------------------------------------------------------


def test_an_image_of_bytes_has_no_answer() -> None:
    module = ServedSalience(Split(), 8, DepthRules())
    rgb, depth = torch.rand(2, 3, 9, 9), torch.rand(2, 1, 9, 9)
    rgb[1] *= 255
    found = module(rgb, depth)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


def agrees(made: Export) -> None:
    """One graph gives what the module gives, at every size."""
    program = traced(made).module()
    assert made.module is not None
    with torch.no_grad():
        for inputs in (made.inputs, *made.others):
            (found,) = program(*inputs.values())
            expected = made.module(*inputs.values())
            assert found.shape[2:] == inputs["rgb"].shape[2:]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_one_graph_serves_all_sizes() -> None:
    reading = Reading(32, DepthRules(holes="far"))
    made = served(Split(), {}, reading, minmax=False)
    assert set(made.about) == {"rgb", "depth", "salience"}
    agrees(made)


@pytest.mark.slow
def test_the_whole_network_can_be_traced(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    facts = {**FACTS, "default_polarity": "near_dark"}
    agrees(prepared(task, task.model(facts), facts))


# -- real files ---------------------------------------------------------------------------------


def test_real_scenes(real: Path, tmp_path: Path) -> None:
    """Colour is bit by bit what the adapter makes of it unless Pillow takes columns first."""
    facts = {**FACTS, "default_polarity": "near_dark"}
    task = task_of(tmp_path)
    shown = sorted((real / "DES_sample" / "RGB").iterdir())[:2]
    assert apart(answers(task, shown, facts, tmp_path / "des")) < LEVEL
    task = task_of(tmp_path, "data.depth_from=raw")
    found = answers(task, [real / "NLPR_raw_sample"], facts, tmp_path / "nlpr")
    assert apart(found) < LEVEL + 3e-3
