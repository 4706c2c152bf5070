"""What is served of a radiograph model: the adapter's inputs and the records' numbers, in torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo.config import resolve
from zoo.domains.medical.medusa.config import Config
from zoo.domains.medical.medusa.images import (
    Preprocessing,
    Raster,
    as_input,
    is_image,
    load,
    prepare,
    standardised,
)
from zoo.domains.medical.medusa.serving import ServedLungs, resize_bytes
from zoo.domains.medical.medusa.task import MedusaTask
from zoo.exporting import compared, prepared, traced
from zoo.task import Facts

from .conftest import DATA

RNG = np.random.default_rng(0)
TINY = (
    "preset=sample",
    "model.image_size=48",
    "model.body_size=32",
    "model.width=4",
    "model.body_width=2",
    "predict.gradcam=false",
)
HOW = {"image_size": 48, "body_size": 32, "crop_top": 0.0, "square": False}
POINT = {"threshold": 0.5095}  # of the random weights below: some radiographs lie on either side
FACTS: Facts = {
    "classes": ["negative", "positive"],
    "positive": 1,
    "preprocessing": HOW,
    "operating_point": POINT,
}
BODY = ("optim.objective=body", "optim.select=dice")


def task_of(*words: str) -> MedusaTask:
    config = resolve(["task=medusa", *TINY, *words]).config
    assert isinstance(config, Config)
    return MedusaTask(config)


def built(*words: str, facts: Facts = FACTS) -> tuple[MedusaTask, nn.Module, Any]:
    task = task_of(*words)
    torch.manual_seed(0)
    model = task.model(facts).eval()
    return task, model, prepared(task, model, facts)


def as_served(grey: np.ndarray) -> Tensor:
    """(1, H, W) in [0, 1], as a consumer reads a file."""
    return torch.from_numpy(grey[None].astype(np.float32) / 255)


# -- inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("crops", [(0.0, False), (0.08, False), (0.08, True), (0.0, True)])
@pytest.mark.parametrize(
    "shape", [(97, 64), (64, 97), (48, 48), (96, 96), (24, 24), (5, 300), (301, 7), (2, 2)]
)
def test_both_inputs_are_the_adapters_bit_by_bit(
    shape: tuple[int, int], crops: tuple[float, bool]
) -> None:
    grey = np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)
    grey[0, 0] = 255
    how = Preprocessing(48, 32, *crops)
    wanted = prepare(Raster(grey), how)
    served = ServedLungs(nn.Identity(), how)
    levels, sound = served.levels(as_served(grey))
    assert sound.all()
    assert np.array_equal(resize_bytes(levels, 32, how)[0], wanted.semantic)
    assert np.array_equal(served.image(levels)[0], as_input(wanted.image))
    np.testing.assert_allclose(
        served.semantic(levels)[0], standardised(wanted.semantic), rtol=0, atol=1e-6
    )


def test_an_even_picture_has_no_deviation_to_divide_by() -> None:
    served = ServedLungs(nn.Identity(), Preprocessing(48, 32))
    levels, _ = served.levels(torch.full((1, 60, 50), 0.5))
    assert not served.semantic(levels).any()


# -- outputs ------------------------------------------------------------------------------------


def real() -> list[Path]:
    """Real radiographs stored in grey: PNG, JPEG and DICOM, of many sizes."""
    if not DATA.is_dir():
        pytest.skip(f"no real radiographs: {DATA} is not there")
    images = [p for p in sorted(DATA.rglob("*")) if is_image(p) and "lung_masks" not in p.parts]
    return [p for p in images if load(p).colour is None]


@pytest.mark.parametrize(
    "words", [(), ("model.variant=resnet0_R",), ("model.variant=backbone_only",)]
)
def test_real_radiographs_give_what_prediction_gives(words: tuple[str, ...]) -> None:
    chosen = real()[:: 16 if words else 4]
    task, model, export = built(*words)
    split = task.inputs(chosen, FACTS)
    worst, decisions = 0.0, set()
    for index, path in enumerate(chosen):
        with torch.no_grad():
            (record,) = task.records(model, split.collate([split.item(index, RNG)]))
            found = dict(
                zip(export.outputs, export.module(as_served(load(path).grey)), strict=True)
            )
        (row,) = task.rows([record], FACTS)
        probabilities = found["probabilities"][0].numpy()
        worst = max(worst, float(np.abs(probabilities - record.values["probabilities"]).max()))
        assert row["decision"] == ("positive" if found["positive"][0] else "not positive")
        decisions.add(row["decision"])
        if "body_map" in found:
            drawn = np.asarray(record.values["body_map"], np.float32) / 255
            np.testing.assert_allclose(found["body_map"][0, 0], drawn, atol=0.503 / 255)
    assert ("body_map" in export.outputs) == ("model.variant=backbone_only" not in words)
    assert worst < 1e-6
    assert words or decisions == {"positive", "not positive"}


def test_the_body_alone_gives_lungs() -> None:
    facts = {"classes": [], "positive": -1, "preprocessing": HOW}
    _, model, export = built(*BODY, facts=facts)
    grey = np.random.default_rng(1).integers(0, 256, (70, 90), dtype=np.uint8)
    semantic = standardised(prepare(Raster(grey), Preprocessing(**HOW)).semantic)
    with torch.no_grad():
        wanted = model(torch.from_numpy(semantic)[None])
        torch.testing.assert_close(export.module(as_served(grey)), wanted, rtol=0, atol=1e-6)
    assert list(export.outputs) == ["body_map"]
    assert "probability of lung" in export.about["body_map"]


def test_a_decision_needs_an_operating_point() -> None:
    facts = {k: v for k, v in FACTS.items() if k != "operating_point"}
    _, _, export = built(facts=facts)
    assert list(export.outputs) == ["probabilities", "body_map"]
    _, _, export = built()
    assert list(export.outputs) == ["probabilities", "positive", "body_map"]
    assert set(export.about) == {"radiograph", *export.outputs}


def test_what_is_no_radiograph_gives_no_number() -> None:
    _, _, export = built()
    good = torch.rand(6, 40, 50, generator=torch.Generator().manual_seed(0))
    bad = good.clone()
    bad[1] *= 255  # 8-bit levels
    bad[2, 3, 3] = float("nan")
    bad[3] -= 0.5  # standardised already
    bad[4] /= 255  # divided twice
    bad[5, 0, 0] = 1 + 1e-6  # rounding
    with torch.no_grad():
        found = dict(zip(export.outputs, export.module(bad), strict=True))
        sound = dict(zip(export.outputs, export.module(good), strict=True))
    refused = [False, True, True, True, True, False]
    assert found["probabilities"].isnan().all(1).tolist() == refused
    assert found["body_map"].isnan().flatten(1).any(1).tolist() == refused
    assert (found["positive"] == -1).tolist() == refused
    torch.testing.assert_close(found["probabilities"][0], sound["probabilities"][0])
    assert all(value.isfinite().all() for value in sound.values())


# -- graph --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), BODY])
def test_the_traced_model_takes_radiographs_of_any_size(words: tuple[str, ...]) -> None:
    facts = FACTS | {"preprocessing": HOW | {"crop_top": 0.08, "square": True}}
    _, _, export = built(*words, facts=facts)
    program = traced(export).module()
    sizes = {tuple(inputs["radiograph"].shape[1:]) for inputs in export.others}
    assert len(sizes) == len(export.others) > 1
    with torch.no_grad():
        assert compared(export, lambda i: program(*i.values()), 1e-6, "the graph") < 1e-6
