"""Official checkpoints of every task through `zoo weights convert`: recorded outputs still hold."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.domains.crop_yield.test_task import write_published
from tests.domains.medusa.bundles import write_bundle
from tests.parity import fusion_reid_official, her_seg, medusa
from tests.parity.fusion_reid_official import official_key
from tests.parity.golden import Case, roots
from tests.running import good, run_zoo
from zoo import conversion, portable
from zoo.checkpoint import Checkpoint
from zoo.config import resolve
from zoo.domains.saliency.rgbd_sod.convert import convert_pyramid
from zoo.domains.saliency.rgbd_sod.pvt import PvtPyramid
from zoo.errors import ConfigError, WeightsError
from zoo.states import read_state
from zoo.task import Facts, Task
from zoo.training import make


def golden(name: str) -> Case:
    """A recorded case, wherever it is kept."""
    for root in reversed(roots().values()):
        if (root / f"{name}.json").is_file():
            return Case(root / f"{name}.json")
    pytest.skip(f"the case {name} is not here: set ZOO_GOLDEN to the folder of all cases")


def converted(tmp_path: Path, source: Path, *words: str) -> portable.Portable:
    """The portable file that the conversion wrote, read again."""
    path = tmp_path / "made" / "ours.safetensors"
    conversion.convert(words, str(source), path, tmp_path / "runs", "sqlite:///none.db")
    read = portable.read(path)
    assert read is not None
    return read


def built(read: portable.Portable) -> tuple[Task[Any], nn.Module]:
    """The task and model that a portable file describes."""
    task = make(resolve([], read.config))
    model = task.model(read.facts)
    model.load_state_dict(read.state, strict=True)
    return task, model.eval()


def wrapped(path: Path, state: Mapping[str, Tensor], **more: Any) -> Path:
    """As official scripts save it: wrapper, optimiser, and what several processes leave."""
    whole = {f"module.{key}": value for key, value in state.items()}
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]).state_dict()
    torch.save({"model": whole, "optimizer": adam, "epoch": 3, **more}, path)
    return path


def near(case: Case, key: str, ours: Tensor, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours.detach(), case.tensors[key], rtol=rtol, atol=atol)


# -- golden outputs -----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["ga_eval_k4", "abmil_eval", "mha_single_eval"])
def test_wsi_mil_with_a_pickled_configuration(name: str, tmp_path: Path) -> None:
    case = golden(f"wsi_mil/{name}")
    kind = type("Struct", (), {"__module__": "utils.utils"})
    inner = types.ModuleType("utils.utils")
    inner.Struct = kind  # type: ignore[attr-defined]
    sys.modules |= {"utils": types.ModuleType("utils"), "utils.utils": inner}
    try:
        settings = kind()
        settings.lr = 1e-4
        source = wrapped(tmp_path / "checkpoint-best.pth", case.group("state"), config=settings)
    finally:
        for module in ("utils", "utils.utils"):
            del sys.modules[module]
    read = converted(tmp_path, source, "task=wsi_mil")
    features = case.group("input")["features"].squeeze(0)
    assert read.facts["width"] == features.shape[1]
    near(case, "output/slide_logits", built(read)[1](features).logits)
    original = read.about["original"]
    assert original["file"] == "checkpoint-best.pth"
    assert len(original["sha256"]) == 64


@torch.no_grad()
def test_her_seg(tmp_path: Path) -> None:
    case = golden("her_seg/whole_small_eval")
    source = wrapped(tmp_path / "modelvab.pth", case.group("state"))
    # How many heads divide the width is in no tensor.
    words = ["task=her_seg", "model.image_size=128", "model.decoder_heads=2"]
    read = converted(tmp_path, source, *words)
    assert read.facts["classes"] == ["foreground"]
    _, model = built(read)
    x = case.group("input")["x"]
    logits = model.segment(x) if "output/logits" not in case.tensors else her_logits(model, x)
    near(case, "output/logits", logits)


def her_logits(model: Any, normalised: Tensor) -> Tensor:
    low = model.segment(normalised)
    return nn.functional.interpolate(low, normalised.shape[2:], mode="bilinear")


@torch.no_grad()
def test_medusa_body_of_a_tensorflow_checkpoint(tmp_path: Path) -> None:
    case = golden("medusa/body_unet")
    values = {k: v.numpy() for k, v in medusa.regenerated(case).items()}
    values |= {"global_step": np.array(9), "sem/1/kernel/Adam": np.zeros((3, 3, 1, 32), "f4")}
    write_bundle(tmp_path / "model", values)
    read = converted(tmp_path, tmp_path / "model", "task=medusa")  # the files' common beginning
    _, model = built(read)
    semantic = case.group("input")["semantic"].permute(0, 3, 1, 2)
    found = cast(Any, model).body(semantic)
    near(case, "output/body_map", found.permute(0, 2, 3, 1))


@pytest.mark.slow
@torch.no_grad()
def test_medusa_whole_of_a_tensorflow_checkpoint(tmp_path: Path) -> None:
    case = golden("medusa/whole_resnet1_224_eval")
    values = {k: v.numpy() for k, v in medusa.regenerated(case).items()}
    index = write_bundle(tmp_path / "model", values)
    side = case.info["semantic_size"][0]
    words = ["task=medusa", "model.image_size=224", f"model.body_size={side}"]
    read = converted(tmp_path, Path(index), *words)
    assert read.facts["preprocessing"]["image_size"] == 224
    given = case.group("input")
    image = given["image_u8"].permute(0, 3, 1, 2).float() / 255
    logits = built(read)[1](image, given["semantic"].permute(0, 3, 1, 2))
    near(case, "output/logits", logits, rtol=1e-4, atol=2e-4)


@torch.no_grad()
def test_crop_yield_with_facts_of_a_training_set(tmp_path: Path) -> None:
    case = golden("crop_yield/modis_whole_narrow")
    source = tmp_path / "2012.pth"
    arrays = {"test_pred": np.ones(3), "val_loss": [1.0], "state_dict": case.group("state")}
    torch.save(arrays, source)
    with pytest.raises(ConfigError, match=r"data\.year.*from=FILE data\.root=DIR"):
        converted(tmp_path, source, "task=crop_yield")
    (tmp_path / "data").mkdir()
    write_published(tmp_path / "data")
    read = converted(tmp_path, source, "task=crop_yield", f"data.root={tmp_path / 'data'}")
    assert "root" not in read.config["data"]
    assert read.facts["year"] == 2012
    _, model = built(read)
    mean = cast(Tensor, model.band_mean)
    torch.testing.assert_close(mean, torch.tensor(read.facts["band_mean"]))
    given = case.group("input")
    # The recorded histograms have had their means taken off.
    shifted = given["x"] + mean.view(-1, 1, 1)
    near(case, "output/y_no_year", model(shifted)[:, None])


@torch.no_grad()
def test_crop_yield_sentinel(tmp_path: Path) -> None:
    case = golden("crop_yield/s2_whole_small")
    task = conversion.first_task(["task=crop_yield", "preset=official"])
    made, adoption = conversion.renamed(task, case.group("state"), "corn.pth")
    assert "data.input_scaling=official" in adoption.words
    words = ["task=crop_yield", "preset=official", *adoption.words, "model.heads=2"]
    task = make(resolve([*words, "data.crop=corn"]))
    facts: Facts = {"sensor": "sentinel2", "history": {"protocol": "past", "yields": {}}}
    facts["yield_mean"] = 1.0
    state, missing, added = conversion.completed(task, facts, made, "corn.pth")
    assert (missing, added) == ([], ["target"])
    model: Any = task.model(facts).eval()
    model.load_state_dict(state)
    raw = case.group("input")["raw_uint8"].flatten(0, 2).permute(0, 3, 1, 2).float()
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (CROP_MEAN, CROP_DEVIATION))
    counties, dates, grids = case.group("input")["raw_uint8"].shape[:3]
    bounds = torch.arange(counties + 1) * dates * grids
    near(case, "output/y", model((raw / 255 - mean) / deviation, bounds), 1e-4, 1e-4)


CROP_MEAN, CROP_DEVIATION = (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)


@torch.no_grad()
def test_fusion_reid_under_official_names(tmp_path: Path) -> None:
    sizes = ["model.input_size=[96,48]", "model.dim=24", "model.blocks=2", "model.mix=24"]
    task = make(resolve(["task=fusion_reid", "preset=sample", *sizes, "model.width=8"]))
    facts: Facts = {
        "identities": list("abcde"),
        "cameras": ["1", "2", "3"],
        "domain": "x",
        "input_size": [96, 48],
    }
    torch.manual_seed(0)
    ours = task.model(facts).eval()
    source = wrapped(
        tmp_path / "resnet_180.pth", {official_key(k): v for k, v in ours.state_dict().items()}
    )
    read = converted(tmp_path, source, "task=fusion_reid", "model.input_size=[96,48]")
    assert len(read.facts["identities"]) == 5
    assert len(read.facts["cameras"]) == 3
    image, camera = torch.rand(2, 3, 96, 48), torch.tensor([0, -1])
    assert torch.equal(built(read)[1](image, camera), ours(image, camera))


@pytest.mark.slow
@torch.no_grad()
def test_fusion_reid_at_official_size(tmp_path: Path) -> None:
    case = golden("reid/full_r50_only")
    info = case.info
    settings = fusion_reid_official.official_settings(info["args"])
    with torch.device("meta"):
        shapes = fusion_reid_official.build_model(settings, info["num_classes"], 1).state_dict()
    names = {official_key(k).removeprefix("resnet."): v.shape for k, v in shapes.items()}
    state = {k: fusion_reid_official.ruled(info["seed"], k, shape) for k, shape in names.items()}
    read = converted(tmp_path, wrapped(tmp_path / "r50.pth", state), "task=fusion_reid")
    shape = torch.Size([info["batch"], 3, *settings.input_size])
    x = torch.from_numpy(fusion_reid_official.uniform(info["seed"], "input/x", shape.numel()))
    near(case, "output/features", built(read)[1](x.view(shape) / 2 + 0.5))


@torch.no_grad()
def test_rgbd_sod_takes_a_transformer(tmp_path: Path) -> None:
    case = golden("rgbd_sod/pvtv2_pyramid")
    args, state = case.info["args"], case.group("state")
    words = ["task=rgbd_sod", "preset=sample"]
    words += [f"model.embed_dims={args['embed_dims']}", f"model.depths={args['depths']}"]
    read = converted(tmp_path, wrapped(tmp_path / "pvt.pth", state), *words)
    assert any(key.startswith("decoder.") for key in read.about["missing"])
    # Patch embeddings have no place in GL-DMNet; the recorded network's are put back here.
    parts = {k.replace("transformer.", "stages."): v for k, v in read.state.items()}
    pyramid = PvtPyramid(args["embed_dims"], args["num_heads"], args["depths"]).eval()
    embeds = {k: v for k, v in convert_pyramid(state).items() if ".patch_embed." in k}
    pyramid.load_state_dict(parts | embeds)
    for number, found in enumerate(pyramid(case.group("input")["x"]), 1):
        near(case, f"output/stage{number}", found)


# -- what is told and what is refused -----------------------------------------------------------


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A small official ACMIL checkpoint."""
    return wrapped(tmp_path / "ga.pth", golden("wsi_mil/ga_eval_k4").group("state"))


def test_the_command_lists_names(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = good("weights", "convert", "task=wsi_mil", f"from={official}")
    assert "wsi_mil-ga.safetensors: 17 tensors of wsi_mil, 17 renamed" in told.out
    assert "does not name its 3 classes" in told.out
    words = ["task=wsi_mil", f"from={official}", "to=b.safetensors", "data.classes=[x,y,z]"]
    lists = json.loads(good("weights", "convert", *words, "--json").out)
    assert lists["renamed"]["attention.attention_V.0.weight"] == "pool.value.weight"
    assert lists["missing"] == []
    read = portable.read(tmp_path / "b.safetensors")
    assert read is not None
    assert read.facts["classes"] == ["x", "y", "z"]
    assert str(tmp_path) not in json.dumps([read.config, read.about, read.facts])


def test_holes_are_told_and_a_missing_head_is_not_one(official: Path, tmp_path: Path) -> None:
    state = read_state(official)
    hole = {k: v for k, v in state.items() if k != "attention.attention_U.0.bias"}
    with pytest.raises(WeightsError, match=r"incomplete weights, 1 missing: pool\.gate\.bias"):
        converted(tmp_path, wrapped(tmp_path / "hole.pth", hole), "task=wsi_mil")
    headless = {k: v for k, v in state.items() if not k.startswith("classifier.1.")}
    read = converted(tmp_path, wrapped(tmp_path / "headless.pth", headless), "task=wsi_mil")
    assert read.about["missing"] == [
        "branch_classifiers.1.linear.weight",
        "branch_classifiers.1.linear.bias",
    ]
    with pytest.raises(WeightsError, match=r"2 weights are not in it .*zoo train weights="):
        conversion.trained([f"weights={read.path}"])


def test_weights_of_another_task_or_of_none(official: Path, tmp_path: Path) -> None:
    for task in ("medusa", "fusion_reid", "rgbd_sod", "her_seg", "crop_yield"):
        with pytest.raises(WeightsError, match=r"ga\.pth: "):
            converted(tmp_path, official, f"task={task}")
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"x\.safetensors: not an ACMIL state dict"):
        converted(tmp_path, tmp_path / "x.safetensors", "task=wsi_mil")
    with pytest.raises(ConfigError, match="add task=NAME"):
        converted(tmp_path, official)
    with pytest.raises(ConfigError, match="does not say which task"):
        conversion.trained([f"weights={official}"])
    assert "convert needs from=FILE" in run_zoo("weights", "convert", "task=medusa").err


def test_a_payload_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    source = tmp_path / "evil.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "config": Payload()}, source)
    for task in ("wsi_mil", "crop_yield", "medusa", "her_seg", "fusion_reid", "rgbd_sod"):
        with pytest.raises(WeightsError, match="refused, the pickle wants to load"):
            converted(tmp_path, source, f"task={task}")
    assert not (tmp_path / "ran").exists()


def test_plain_weights_are_used_without_conversion(official: Path) -> None:
    words = ["task=wsi_mil", f"weights={official}", "data.classes=[a,b,c]"]
    task, found, facts = conversion.trained(words)
    assert isinstance(found, Checkpoint)
    assert facts["classes"] == ["a", "b", "c"]
    assert task.config.preset == "paper"
    assert found.meta["told"][0].startswith("ga.pth has no settings; its tensors tell model.arch=")
    task.model(facts).load_state_dict(found.model, strict=True)


def test_her_seg_encoder_alone_starts_a_training_only(tmp_path: Path) -> None:
    state = {
        k: v
        for k, v in her_seg.build_model(
            her_seg.SegModel(dim=24, image_size=128, decoder_dim=32, decoder_mlp=32)
        )
        .state_dict()
        .items()
        if k.startswith(("image_encoder.", "neck."))
    }
    read = converted(tmp_path, wrapped(tmp_path / "PFD.pth", state), "task=her_seg")
    assert read.config["model"]["normalisation"] == "official_eval"
    assert {k.partition(".")[0] for k in read.about["missing"]} == {
        "prompt_encoder",
        "mask_decoder",
    }
    assert set(read.state) == {*state, "normalise.pixel_mean", "normalise.pixel_scale"}
