"""What is served gives what `zoo predict` gives, whatever a picture's size and its fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.domains.her_seg.fakes import Bright, FakeStack, settings
from tests.domains.her_seg.test_task import task_of
from zoo.domains.medical.her_seg.geometry import place
from zoo.domains.medical.her_seg.inference import Segmenter, Way
from zoo.domains.medical.her_seg.serving import ServedSegmenter, inner_size, served
from zoo.exporting import prepared, traced, write_pt2
from zoo.onnx_file import write_onnx

# Smaller and larger than the model's 48 pixels, to either side.
SIZES = ((48, 48), (20, 31), (101, 60), (40, 130), (47, 49), (3, 180))
FACTS: dict[str, Any] = {"classes": ["foreground"], "kind": "image"}
SEVERAL: dict[str, Any] = {"classes": ["liver", "tumour"], "kind": "image"}


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random((*size, 3)).astype(np.float32) for size in SIZES]


def as_input(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous()


@pytest.mark.parametrize("mirrors", ["false", "true"])
@pytest.mark.parametrize("fit", ["squash", "letterbox", "tiles"])
@pytest.mark.parametrize("facts", [FACTS, SEVERAL], ids=["one", "several"])
def test_probabilities_are_those_of_prediction(
    facts: dict[str, Any], fit: str, mirrors: str, tmp_path: Path
) -> None:
    task = task_of(None, f"data.fit={fit}", f"predict.mirrors={mirrors}", "data.overlap=0.3")
    torch.manual_seed(0)
    network = task.model(facts).eval()
    for p in network.parameters():  # fresh weights say nearly the same everywhere
        p.data *= 1.5
    module = prepared(task, network, facts).module
    assert module is not None
    shown = pictures()
    with torch.no_grad():
        stack = FakeStack("a", shown)
        answers = Segmenter(network, Way.of(task.config)).answers(stack, lambda i: None)
        spread = 0.0
        for _, picture, answer in answers:
            found = module(as_input(picture))[0]
            logits = answer.native()
            expected = logits.sigmoid() if len(logits) == 1 else logits.softmax(0)
            assert found.shape == (len(logits), *picture.shape[:2])
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
            spread = max(spread, float(found[0].max() - found[0].min()))
        assert spread > 0.005
        for picture in shown[:2]:  # written masks
            (record,) = task.records(network, {"stacks": [FakeStack("b", [picture])]})
            assert record.write is not None
            (written, *_) = record.write(tmp_path)
            masks = np.load(written)[0]
            found = module(as_input(picture))[0]
            top = found[0] >= 0.5 if len(found) == 1 else found.argmax(0)
            assert np.array_equal(masks, top.numpy())


def test_images_of_a_batch_are_answered_one_by_one() -> None:
    module = ServedSegmenter(Bright(), Way.of(settings("model.image_size=48", "data.fit=tiles")))
    images = torch.rand(3, 3, 70, 50, generator=torch.Generator().manual_seed(0))
    each = torch.cat([module(image[None]) for image in images])
    torch.testing.assert_close(module(images), each, rtol=0, atol=1e-6)


def test_an_image_of_bytes_has_no_answer() -> None:
    module = ServedSegmenter(Bright(), Way.of(settings("model.image_size=48")))
    images = torch.rand(2, 3, 30, 40)
    images[0] *= 255
    found = module(images)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def test_a_letterbox_is_the_adapter_s_for_every_size() -> None:
    for height in range(1, 140, 3):
        for width in (1, 5, 47, 48, 63, 64, 96, 131):
            assert inner_size((height, width), 48) == place((height, width), 48, "letterbox").inner


class Told(nn.Module):
    """A network of few operators, so that tracing it is quick."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.mix(image)
        return made


@pytest.mark.parametrize("fit", ["letterbox", pytest.param("tiles", marks=pytest.mark.slow)])
def test_one_graph_serves_all_sizes(fit: str) -> None:
    config = settings("model.image_size=48", f"data.fit={fit}")
    made = served(Told().eval(), SEVERAL, config)
    program = traced(made).module()
    assert made.module is not None
    with torch.no_grad():
        for inputs in (
            *(made.inputs, *made.others),
            *({"image": as_input(picture)} for picture in pictures()),
        ):
            (found,) = program(*inputs.values())
            torch.testing.assert_close(found, made.module(*inputs.values()), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["squash", "letterbox", "tiles"])
def test_every_fit_becomes_both_kinds_of_file(fit: str, tmp_path: Path) -> None:
    made = served(Told().eval(), SEVERAL, settings("model.image_size=48", f"data.fit={fit}"))
    program = traced(made)
    assert write_pt2(program, made, tmp_path / "served.pt2", {}) < 1e-6
    assert write_onnx(program, made, tmp_path / "served.onnx", {}) < 1e-4


@pytest.mark.slow
def test_the_whole_network_can_be_traced() -> None:
    task = task_of(None, "data.fit=letterbox")
    torch.manual_seed(0)
    made = prepared(task, task.model(SEVERAL), SEVERAL)
    program = traced(made).module()
    assert made.module is not None
    with torch.no_grad():
        for inputs in (made.inputs, *made.others):
            (found,) = program(*inputs.values())
            torch.testing.assert_close(found, made.module(*inputs.values()), rtol=0, atol=1e-5)


def test_what_it_takes_and_gives_is_told() -> None:
    one = served(Told(), FACTS, settings("predict.threshold=0.4")).about
    assert "0 to 1" in one["image"]
    assert "1 map, of foreground; it counts from 0.4 on" in one["probabilities"]
    words = ["data.neighbours=true", "data.axis=coronal", "data.window=[-100,200]"]
    told = served(Told(), {**SEVERAL, "kind": "volume"}, settings(*words)).about
    assert "0 background, 1 liver, 2 tumour" in told["probabilities"]
    assert "coronal" in told["image"]
    assert "intensities -100 to 200 become 0 to 1" in told["image"]
