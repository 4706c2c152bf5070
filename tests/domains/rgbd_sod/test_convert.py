from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import resnet18, resnet34, resnet50

from zoo.domains.saliency.rgbd_sod.config import RgbdModel
from zoo.domains.saliency.rgbd_sod.convert import (
    convert_any,
    convert_pyramid,
    load_backbones,
    load_into,
    recognise,
    rename_pvt,
)
from zoo.domains.saliency.rgbd_sod.model import build_model
from zoo.domains.saliency.rgbd_sod.pvt import PvtPyramid
from zoo.errors import WeightsError

WIDTHS, HEADS, DEPTHS = (8, 12, 20, 16), (1, 2, 5, 4), (1, 2, 2, 1)
HIDDEN, RATIOS = (64, 96, 80, 64), (8, 4, 2, 1)
SETTINGS = RgbdModel(
    backbone="resnet18",
    fusion_channels=WIDTHS,
    heads=HEADS,
    depths=DEPTHS,
    decoder_channels=8,
    input_size=64,
)


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the official PVTv2 with these sizes, written down from its release."""
    shapes: dict[str, tuple[int, ...]] = {"head.weight": (1000, 16), "head.bias": (1000,)}

    def add(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    into = 3
    for i, (e, hidden, ratio, depth) in enumerate(zip(WIDTHS, HIDDEN, RATIOS, DEPTHS, strict=True)):
        size = 3 if i else 7
        add(f"patch_embed{i + 1}.proj", e, into, size, size)
        add(f"patch_embed{i + 1}.norm", e)
        add(f"norm{i + 1}", e)
        for j in range(depth):
            block = f"block{i + 1}.{j}"
            for norm in ("norm1", "norm2"):
                add(f"{block}.{norm}", e)
            add(f"{block}.attn.q", e, e)
            add(f"{block}.attn.kv", 2 * e, e)
            add(f"{block}.attn.proj", e, e)
            if ratio > 1:
                add(f"{block}.attn.sr", e, e, ratio, ratio)
                add(f"{block}.attn.norm", e)
            add(f"{block}.mlp.fc1", hidden, e)
            add(f"{block}.mlp.dwconv.dwconv", hidden, 1, 3, 3)
            add(f"{block}.mlp.fc2", e, hidden)
        into = e
    return shapes


def official() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {key: torch.randn(shape) for key, shape in official_shapes().items()}


def from_timm() -> dict[str, Tensor]:
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    torch.manual_seed(0)
    made = PyramidVisionTransformerV2(
        embed_dims=WIDTHS, num_heads=HEADS, depths=DEPTHS, mlp_ratios=(8, 8, 4, 4)
    )
    return dict(made.state_dict())


def resnet(whole: Any = resnet18) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(whole(weights=None).state_dict())


@pytest.mark.parametrize("old", [False, True])
def test_resnet_goes_into_both_encoders(old: bool) -> None:
    state = {k: v for k, v in resnet().items() if not (old and "num_batches" in k)}
    model = build_model(SETTINGS)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = load_into(model, state)
    after = model.state_dict()
    assert report.dropped.keys() == {"fc.weight", "fc.bias"}
    assert len(report.state) == 2 * (len(state) - 2)
    for key, value in state.items():
        for encoder in ("encoder_rgb", "encoder_depth"):
            if not key.startswith("fc."):
                assert torch.equal(after[f"{encoder}.{key}"], value), key
                assert f"{encoder}.{key}" in report.renamed[key]
    for key, value in after.items():
        if not key.startswith("encoder"):
            assert torch.equal(before[key], value), key
    assert not report.missing
    first, second = (report.state[f"{e}.conv1.weight"] for e in ("encoder_rgb", "encoder_depth"))
    assert first.data_ptr() != second.data_ptr()


def test_resnet_goes_into_a_shared_encoder() -> None:
    settings = SETTINGS.model_copy(update={"share_encoders": True})
    model, state = build_model(settings), resnet()
    report = load_into(model, state)
    assert len(report.state) == len(state) - 2
    assert torch.equal(model.encoder_rgb.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize("source", [official, from_timm])
def test_pvt_goes_into_blocks_and_norms(source: Any) -> None:
    model, state = build_model(SETTINGS), source()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = load_into(model, state)
    after = model.state_dict()
    inside = {k for k in after if k.startswith("transformer") and ".patch_embed." not in k}
    assert set(report.state) == inside
    assert {len(report.renamed), len(set(report.renamed.values()))} == {len(inside)}
    for theirs, ours in report.renamed.items():
        assert torch.equal(after[ours], state[theirs]), ours
    assert all("embed" in k or "downsample" in k or "head" in k for k in report.dropped)
    assert len(report.dropped) == 4 * 4 + 2
    assert all(torch.equal(before[k], v) for k, v in after.items() if k not in inside)


def test_whole_b2_of_timm_fits_the_paper_s_network() -> None:
    from timm.models.pvt_v2 import pvt_v2_b2

    with torch.device("meta"):
        state = pvt_v2_b2(pretrained=False).state_dict()
    report = convert_any(state)
    assert not report.missing
    assert sum(v.numel() for v in report.state.values()) / 1e6 == pytest.approx(22.92, abs=0.01)


def test_whole_resnet50_fits_the_paper_s_network() -> None:
    with torch.device("meta"):
        state = resnet50(weights=None).state_dict()
    report = convert_any({f"module.{key}": value for key, value in state.items()})
    assert not report.missing
    assert len(report.state) == 2 * (len(state) - 2)


def test_every_official_key_has_its_name() -> None:
    names = [rename_pvt(key, "pvt_official") for key in official_shapes()]
    assert [key for key, name in zip(official_shapes(), names, strict=True) if name is None] == [
        "head.weight",
        "head.bias",
    ]
    assert rename_pvt("block3.1.mlp.dwconv.dwconv.bias", "pvt_official") == (
        "transformer.2.blocks.1.mlp.dwconv.bias"
    )
    assert rename_pvt("norm4.weight", "pvt_official") == "transformer.3.norm.weight"
    assert rename_pvt("stages.2.blocks.1.attn.sr.weight", "pvt_timm") == (
        "transformer.2.blocks.1.attn.sr.weight"
    )


@pytest.mark.parametrize("source", [official, from_timm])
def test_whole_pyramid_takes_both_kinds(source: Any) -> None:
    PvtPyramid(WIDTHS, HEADS, DEPTHS).load_state_dict(convert_pyramid(source()), strict=True)


@pytest.mark.parametrize("key", ["block2.1.attn.sr.weight", "norm3.bias"])
def test_a_missing_block_key_fails(key: str) -> None:
    state = official()
    del state[key]
    ours = str(rename_pvt(key, "pvt_official"))
    assert convert_any(state, SETTINGS).missing == [ours]
    with pytest.raises(WeightsError, match=f"1 keys are missing, the first is '{ours}'"):
        load_into(build_model(SETTINGS), state)


def test_a_missing_encoder_key_fails() -> None:
    state = resnet()
    del state["layer3.0.bn1.running_var"]
    with pytest.raises(WeightsError, match=r"encoder_rgb\.layer3\.0\.bn1\.running_var"):
        load_into(build_model(SETTINGS), state)


@pytest.mark.parametrize(
    ("state", "change", "words"),
    [
        (lambda: {"weight": torch.zeros(1)}, {}, "none of the weights .* first key is 'weight'"),
        (lambda: resnet(resnet50), {}, "weights of resnet50 .* model.backbone is resnet18"),
        (lambda: resnet(resnet34), {}, "layer1.2.conv1.weight .* ours is absent"),
        (resnet, {"backbone": "small"}, "takes no ResNet weights; set model.backbone"),
        (official, {"transformer": "none"}, "the network has no transformer"),
        (official, {"depths": (1, 1, 1, 1)}, "ours is absent"),
        (official, {"fusion_channels": (8, 12, 20, 32)}, "of other sizes than the network's: "),
    ],
)
def test_what_does_not_fit_is_told(state: Any, change: dict[str, Any], words: str) -> None:
    settings = RgbdModel(**(SETTINGS.model_dump() | change))
    with pytest.raises(WeightsError, match=words):
        load_into(build_model(settings), state())


def test_recognises_all_three() -> None:
    found = [recognise(state) for state in (resnet(), official(), from_timm())]
    assert found == ["resnet", "pvt_official", "pvt_timm"]


# -- files ----------------------------------------------------------------------------------------


def with_files(resnet_file: Path | None, pvt_file: Path | None) -> RgbdModel:
    return SETTINGS.model_copy(update={"resnet_weights": resnet_file, "pvt_weights": pvt_file})


def test_files_named_in_the_configuration_are_loaded(tmp_path: Path) -> None:
    first, second = tmp_path / "resnet18.pth", tmp_path / "pvt.safetensors"
    torch.save(resnet(), first, _use_new_zipfile_serialization=False)  # as torchvision's oldest
    save_file(from_timm(), second)
    settings = with_files(first, second)
    model = build_model(settings)
    reports = load_backbones(model, settings)
    assert [len(report.missing) for report in reports] == [0, 0]
    assert torch.equal(model.encoder_depth.conv1.weight, resnet()["conv1.weight"])
    assert torch.equal(model.transformer[3].norm.bias, from_timm()["stages.3.norm.bias"])
    assert load_backbones(model, with_files(None, None)) == []


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_state_dicts_are_read(wrapper: str, tmp_path: Path) -> None:
    path = tmp_path / "pvt.pth"
    torch.save({wrapper: {f"module.{k}": v for k, v in official().items()}, "epoch": 3}, path)
    model = build_model(SETTINGS)
    load_backbones(model, with_files(None, path))
    assert torch.equal(model.transformer[0].norm.weight, official()["norm1.weight"])


def test_broken_files_are_one_line(tmp_path: Path) -> None:
    model, path = build_model(SETTINGS), tmp_path / "weights.pth"

    def told(words: str, option: str = "resnet_weights") -> None:
        files = (path, None) if option == "resnet_weights" else (None, path)
        with pytest.raises(WeightsError, match=words) as caught:
            load_backbones(model, with_files(*files))
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    told("no such file")
    path.write_bytes(b"not weights at all")
    told("not a readable checkpoint")
    torch.save(Path("x"), path)  # a pickle that would have to build an object
    told("refused, the pickle wants to load")
    torch.save([torch.zeros(1)], path)
    told("holds no state dict")
    torch.save({"conv1.weight": torch.zeros(1), "epoch": 3}, path)
    told("not tensors in the state dict: epoch")
    torch.save(official(), path)
    told("model.resnet_weights=.*weights of PVTv2 under its authors' names")
    torch.save(resnet(), path)
    told("model.pvt_weights=.*weights of a torchvision ResNet", "pvt_weights")
