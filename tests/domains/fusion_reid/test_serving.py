"""What is served gives the embeddings that `zoo predict predict.features=true` writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo.data import item_rng
from zoo.domains.reid.fusion_reid import sample
from zoo.domains.reid.fusion_reid.images import load
from zoo.domains.reid.fusion_reid.serving import ServedEmbedder
from zoo.exporting import prepared, traced
from zoo.task import Export

from .test_task import task_of

PLAIN = ("predict.cache=false",)
ONE = ("model.feature=0", "model.depth=1")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    sample.write(folder, train=6, test=4)
    return folder


def made_of(root: Path, *words: str) -> tuple[Any, nn.Module, dict[str, Any], Export]:
    task = task_of(root, *PLAIN, *words)
    facts = task.fit(task.splits()["train"])
    torch.manual_seed(0)
    network = task.model(facts).eval()
    return task, network, facts, prepared(task, network, facts)


def crop(path: Path) -> Tensor:
    return torch.from_numpy(load(path).astype(np.float32) / 255).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("model.camera=none",),
        ("predict.flip_average=true",),
        ("model.neck_feature=after", "model.feature=5"),
        ("model.transformer=none",),
        ("model.cnn=none",),
        ("model.transformer=t2t_vit_t_14",),
        pytest.param(
            ("model.cnn=osnet_x0_25", "model.transformer=none", "model.input_size=[64,32]"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["both", "no-camera", "mirrored", "after-neck", "cnn", "vit", "t2t", "osnet"],
)
def test_embeddings_are_those_of_records(root: Path, words: tuple[str, ...]) -> None:
    task, network, _, export = made_of(root, *words)
    split = task.splits()["test"]
    told = "camera" in export.inputs
    assert told == (words == () or words in WITH_CAMERAS)
    assert export.module is not None
    with torch.no_grad():
        batch = split.collate([split.item(i, item_rng(1, 0, i)) for i in range(6)])
        batch["camera_name"][0] = ""  # one whose camera nobody knows
        for i, record in enumerate(task.records(network, batch)):
            inputs = [crop(split.entries[i].path)]
            camera = int(record.values["embedded"])
            assert (camera == -1) == (i == 0)
            if told:
                inputs.append(torch.tensor([camera]))
            found = export.module(*inputs)
            expected = torch.from_numpy(record.values["feature"])[None]
            # Sample crops are small or as tall as twice the input: bit by bit the same picture.
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


WITH_CAMERAS = [
    ("predict.flip_average=true",),
    ("model.neck_feature=after", "model.feature=5"),
    ("model.cnn=none",),
    ("model.transformer=t2t_vit_t_14",),
]


def test_a_camera_beyond_the_known_ones_is_an_unknown_one(root: Path) -> None:
    _, _, facts, export = made_of(root)
    module, image = export.module, export.inputs["image"]
    assert isinstance(module, ServedEmbedder)
    with torch.no_grad():
        unknown = module(image, torch.tensor([-1, -1]))
        beyond = module(image, torch.tensor([len(facts["cameras"]), -7]))
        assert torch.equal(beyond, unknown)
        assert not torch.equal(module(image, torch.tensor([0, 1])), unknown)


def test_a_network_told_no_cameras_takes_none(root: Path) -> None:
    task, network, facts, _ = made_of(root, "model.transformer=none")
    assert list(task.export(network, facts).inputs) == ["image"]


def test_an_image_of_bytes_has_no_answer(root: Path) -> None:
    _, _, _, export = made_of(root, "model.camera=none")
    image = export.inputs["image"].clone()
    image[1] *= 255
    assert export.module is not None
    with torch.no_grad():
        found = export.module(image)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


def test_cameras_are_told_by_number_and_name(root: Path) -> None:
    _, _, facts, export = made_of(root)
    assert list(export.about) == ["image", "camera", "embedding"]
    assert f"0 {facts['cameras'][0]}, 1 {facts['cameras'][1]}" in export.about["camera"]
    assert export.inputs["camera"].tolist() == [-1, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [(), ("predict.flip_average=true",), ("model.cnn=none",)],
    ids=["both", "mirrored", "vit"],
)
def test_the_whole_network_can_be_traced(root: Path, words: tuple[str, ...]) -> None:
    _, _, _, export = made_of(root, *words)
    program = traced(export).module()
    assert export.module is not None
    with torch.no_grad():
        for inputs in (export.inputs, *export.others):
            (found,) = program(*inputs.values())
            torch.testing.assert_close(found, export.module(*inputs.values()), rtol=0, atol=1e-5)
