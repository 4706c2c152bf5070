from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.domains.her_seg.comparing import close
from zoo.domains.medical.her_seg.config import SegModel
from zoo.domains.medical.her_seg.convert import (
    convert_official,
    convert_sam,
    infer_settings,
    load_pretrained,
    read_state,
    rename_official,
)
from zoo.domains.medical.her_seg.model import HerSegModel, build_model
from zoo.errors import WeightsError
from zoo.kernels import rotary_table

SMALL = {
    "dim": 24,
    "image_size": 64,
    "depths": (1, 1, 2, 1),
    "decoder_dim": 32,
    "decoder_heads": 2,
    "decoder_mlp": 40,
}
Shapes = dict[str, tuple[int, ...]]


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def both(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def encoder_shapes(c: int, grid: int, depths: tuple[int, ...]) -> Shapes:
    """Official names of the encoder, from the layout of the official code."""
    h, q = 2 * c, c // 4
    made: Shapes = {"patch_embed.proj.weight": (c, 3, 16, 16), "patch_embed.proj.bias": (c,)}
    for b in range(depths[0]):
        convs = {1: (h, c, 1, 1), 2: (h, 1, 3, 3), 3: (c, h, 1, 1)}
        for i, shape in convs.items():
            name = f"layers.0.blocks.{b}.conv{i}"
            made[f"{name}.c.weight"] = shape
            made |= both(f"{name}.bn", shape[0])
            made |= {f"{name}.bn.running_{s}": (shape[0],) for s in ("mean", "var")}
            made[f"{name}.bn.num_batches_tracked"] = ()
    for stage in (1, 2, 3):
        for b in range(depths[stage]):
            name = f"layers.{stage}.blocks.{b}"
            made |= both(f"{name}.norm1", c) | both(f"{name}.norm2", c)
            made |= linear(f"{name}.act_proj", c, c) | linear(f"{name}.out_proj", c, c)
            made |= linear(f"{name}.attn.qk", c, 2 * c) | linear(f"{name}.attn.up_proj", c, q)
            made |= linear(f"{name}.attn.down_proj", q, c)
            made[f"{name}.attn.lepe.weight"], made[f"{name}.attn.lepe.bias"] = (c, 1, 3, 3), (c,)
            made[f"{name}.attn.rope.rotations"] = (grid, grid, c // 2, 2)
            made |= linear(f"{name}.mlp.fc1", c, h) | linear(f"{name}.mlp.fc2", h, c)
    return {f"image_encoder.{key}": shape for key, shape in made.items()}


def neck_shapes(c: int, d: int) -> Shapes:
    made: Shapes = {"neck.0.weight": (d, c, 1, 1), "neck.2.weight": (d, d, 3, 3)}
    return made | both("neck.1", d) | both("neck.3", d)


def decoder_shapes(d: int, hidden: int, masks: int = 3) -> Shapes:
    """Prompt encoder and mask decoder, HER-Seg's and (with other sizes) Segment Anything's."""
    p, m, t = "prompt_encoder", "mask_decoder", "mask_decoder.transformer"
    made: Shapes = {f"{p}.pe_layer.positional_encoding_gaussian_matrix": (2, d // 2)}
    names = [f"point_embeddings.{i}" for i in range(4)] + ["not_a_point_embed", "no_mask_embed"]
    made |= {f"{p}.{name}.weight": (1, d) for name in names}
    for i, shape in {0: (4, 1, 2, 2), 3: (16, 4, 2, 2), 6: (d, 16, 1, 1)}.items():
        made[f"{p}.mask_downscaling.{i}.weight"] = shape
        made[f"{p}.mask_downscaling.{i}.bias"] = shape[:1]
    made |= both(f"{p}.mask_downscaling.1", 4) | both(f"{p}.mask_downscaling.4", 16)
    made |= {f"{m}.iou_token.weight": (1, d), f"{m}.mask_tokens.weight": (masks, d)}

    def attention(name: str, inner: int) -> Shapes:
        found: Shapes = {}
        for part in "qkv":
            found |= linear(f"{name}.{part}_proj", d, inner)
        return found | linear(f"{name}.out_proj", inner, d)

    for i in (0, 1):
        made |= attention(f"{t}.layers.{i}.self_attn", d)
        made |= attention(f"{t}.layers.{i}.cross_attn_token_to_image", d // 2)
        made |= attention(f"{t}.layers.{i}.cross_attn_image_to_token", d // 2)
        made |= linear(f"{t}.layers.{i}.mlp.lin1", d, hidden)
        made |= linear(f"{t}.layers.{i}.mlp.lin2", hidden, d)
        for norm in (1, 2, 3, 4):
            made |= both(f"{t}.layers.{i}.norm{norm}", d)
    made |= attention(f"{t}.final_attn_token_to_image", d // 2) | both(f"{t}.norm_final_attn", d)
    for i, (a, b) in {0: (d, d // 4), 3: (d // 4, d // 8)}.items():
        made[f"{m}.output_upscaling.{i}.weight"] = (a, b, 2, 2)
        made[f"{m}.output_upscaling.{i}.bias"] = (b,)
    made |= both(f"{m}.output_upscaling.1", d // 4)
    for i in range(masks):
        for j, width in enumerate((d, d, d // 8)):
            made |= linear(f"{m}.output_hypernetworks_mlps.{i}.layers.{j}", d, width)
    return made


def filled(shapes: Shapes) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    made = {}
    for key, shape in shapes.items():
        if key.endswith("rotations"):
            table = torch.stack(rotary_table((shape[0], shape[1]), 2 * shape[2]), dim=-1)
            made[key] = table.view(shape)
        elif key.endswith("tracked"):
            made[key] = torch.tensor(5)
        else:
            value = 0.1 * torch.randn(shape, generator=generator)
            made[key] = value.abs() + 0.5 if key.endswith("running_var") else value
    return made


def official(grid: int = 4) -> dict[str, Tensor]:
    shapes = encoder_shapes(24, grid, (1, 1, 2, 1)) | neck_shapes(24, 32) | decoder_shapes(32, 40)
    return filled(shapes)


def distilled() -> dict[str, Tensor]:
    return {k: v for k, v in official().items() if k.startswith(("image_encoder.", "neck."))}


def segment_anything(d: int = 32) -> dict[str, Tensor]:
    shapes = decoder_shapes(d, 320, masks=4) | {"image_encoder.pos_embed": (1, 4, 4, 8)}
    for j, width in enumerate((d, d, 4)):
        shapes |= linear(f"mask_decoder.iou_prediction_head.layers.{j}", d, width)
    return filled(shapes)


def small(**more: Any) -> HerSegModel:
    torch.manual_seed(1)
    return build_model(SegModel(**SMALL, **more)).eval()


# -- a trained model ----------------------------------------------------------------------------


def test_the_published_model_has_379_tensors() -> None:
    shapes = encoder_shapes(96, 64, (2, 2, 6, 2)) | neck_shapes(96, 256) | decoder_shapes(256, 256)
    assert len(shapes) == 379
    with torch.device("meta"):
        ours = build_model(SegModel()).state_dict()
    renamed = {rename_official(key): shape for key, shape in shapes.items()}
    assert renamed.pop(None)  # the rotary tables
    assert len(renamed) == 369
    extra = {"normalise.pixel_mean", "normalise.pixel_scale"}
    assert {k: tuple(v.shape) for k, v in ours.items() if k not in extra} == renamed


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_trained_model_loads_strictly(prefix: str) -> None:
    state = {prefix + key: value for key, value in official().items()}
    found = convert_official(state)
    assert not found.missing
    assert len(found.dropped) == 4
    assert all("rotations" in key for key in found.dropped)
    assert set(found.renamed) | set(found.dropped) == set(state)
    model = small()
    model.load_state_dict(found.state, strict=True)
    key = "image_encoder.layers.2.blocks.1."
    found_there = model.state_dict()[f"{key}attn.up.weight"]
    assert torch.equal(found_there, official()[f"{key}attn.up_proj.weight"])
    assert torch.equal(model.normalise.pixel_scale.flatten(), torch.tensor([0.229, 0.224, 0.225]))


def test_a_model_trained_at_another_size_loads() -> None:
    found = convert_official(official(grid=7))
    small().load_state_dict(found.state, strict=True)


def test_another_rotary_table_is_refused() -> None:
    state = official()
    key = "image_encoder.layers.1.blocks.0.attn.rope.rotations"
    state[key] = state[key].flip(0)
    with pytest.raises(WeightsError, match="rotary table"):
        convert_official(state)
    state[key] = torch.zeros(3)
    with pytest.raises(WeightsError, match=r"rotary table \(3,\)"):
        convert_official(state)


def test_tensors_that_contradict_each_other_are_refused() -> None:
    state = official()
    state["neck.1.weight"] = torch.zeros(31)
    with pytest.raises(WeightsError, match=r"neck.1.weight is \(31,\), here \(32,\)"):
        convert_official(state)


def test_unknown_tensors_are_dropped_and_absent_ones_told() -> None:
    state = official() | {"total_ops": torch.zeros(1)}
    del state["neck.3.bias"]
    found = convert_official(state)
    assert found.dropped["total_ops"] == "no such weight in this network"
    assert found.missing == ["neck.3.bias"]


def test_our_own_tensors_pass() -> None:
    model = small(normalisation="official_eval")
    found = convert_official(model.state_dict())
    assert not found.missing
    assert all(torch.equal(found.state[k], v) for k, v in model.state_dict().items())


def test_sizes_are_read_from_the_tensors() -> None:
    made = {"dim": 24, "depths": (1, 1, 2, 1), "decoder_dim": 32, "decoder_mlp": 40}
    assert infer_settings(official()) == made


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "not weights of HER-Seg"),
        ({"image_encoder.patch_embed.proj.weight": torch.zeros(25, 3, 16, 16)}, "that 24 divides"),
        ({"image_encoder.patch_embed.proj.weight": torch.zeros(24, 3, 16, 16)}, "0 stages"),
        ({"image_encoder.pos_embed": torch.zeros(1)}, "for model.sam_weights"),
    ],
)
def test_other_weights_are_refused(state: dict[str, Tensor], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        convert_official(state)


# -- the distilled encoder ----------------------------------------------------------------------


def test_the_distilled_encoder_brings_its_own_scaling() -> None:
    found = convert_official(distilled())
    assert all(key.startswith(("prompt_encoder.", "mask_decoder.")) for key in found.missing)
    assert torch.equal(found.state["normalise.pixel_scale"], found.state["normalise.pixel_mean"])


def test_a_distilled_encoder_sees_the_same_under_either_normalisation(tmp_path: Path) -> None:
    save_file(distilled(), tmp_path / "pfd.safetensors")
    image, found, told = torch.rand(2, 3, 64, 64), [], []
    for scaling in ("official_eval", "imagenet"):
        model = small(normalisation=scaling, encoder_weights=tmp_path / "pfd.safetensors")
        before = model.normalise.pixel_scale.clone()
        told += load_pretrained(model, model.settings)
        assert torch.equal(model.normalise.pixel_scale, before)
        with torch.no_grad():
            found.append(model.image_encoder(model.normalise(image)))
    close(found[1], found[0], 1e-5)
    assert "rescaled" not in told[0]
    assert "from pfd.safetensors: 100 tensors of encoder and neck; patch embedding rescaled" in (
        told[1].replace(str(len(convert_official(distilled()).renamed)), "100")
    )


def test_a_trained_model_serves_as_an_encoder(tmp_path: Path) -> None:
    torch.save({"state_dict": official()}, tmp_path / "model.pth")
    model = small(encoder_weights=tmp_path / "model.pth")
    other = model.mask_decoder.iou_token.weight.clone()
    (line,) = load_pretrained(model, model.settings)
    assert "rescaled" not in line
    assert torch.equal(model.neck.state_dict()["2.weight"], official()["neck.2.weight"])
    assert torch.equal(model.mask_decoder.iou_token.weight, other)


def test_an_encoder_of_other_sizes_is_told_what_to_set(tmp_path: Path) -> None:
    save_file(distilled(), tmp_path / "pfd.safetensors")
    settings = SegModel(**{**SMALL, "dim": 48}, encoder_weights=tmp_path / "pfd.safetensors")
    words = (
        r"model.encoder_weights=.*model.dim=24, model.depths=\[1, 1, 2, 1\], model.decoder_dim=32"
    )
    with pytest.raises(WeightsError, match=words):
        load_pretrained(build_model(settings), settings)


# -- Segment Anything ---------------------------------------------------------------------------


def test_segment_anything_gives_what_fits(tmp_path: Path) -> None:
    state = segment_anything()
    save_file(state, tmp_path / "sam.safetensors")
    model = small(sam_weights=tmp_path / "sam.safetensors")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (line,) = load_pretrained(model, model.settings)
    after = model.state_dict()
    found = convert_sam(state, before)
    assert f"{len(found.state)} tensors of prompt encoder and decoder; 8 of the decoder" in line
    assert all(".mlp.lin" in key for key in found.missing)
    assert len(found.missing) == 8
    assert found.dropped["image_encoder.pos_embed"] == "HER-Seg has its own encoder"
    assert found.dropped["mask_decoder.iou_prediction_head.layers.0.bias"].endswith("no quality")
    assert "mask_decoder.output_hypernetworks_mlps.3.layers.0.bias" in found.dropped
    tokens = "mask_decoder.mask_tokens.weight"
    assert torch.equal(after[tokens], state[tokens][:3])
    key = "mask_decoder.transformer.layers.1.cross_attn_image_to_token."
    assert torch.equal(after[f"{key}query.weight"], state[f"{key}q_proj.weight"])
    matrix = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert torch.equal(after[matrix], state[matrix])
    kept = [k for k in before if k.startswith(("image_encoder.", "neck."))]
    assert all(torch.equal(before[k], after[k]) for k in kept)


def test_more_classes_than_segment_anything_has_masks_keep_their_own() -> None:
    model = build_model(SegModel(**SMALL), classes=5)
    found = convert_sam(segment_anything(), model.state_dict())
    tokens = found.state["mask_decoder.mask_tokens.weight"]
    assert torch.equal(tokens[:4], segment_anything()["mask_decoder.mask_tokens.weight"])
    assert torch.equal(tokens[4:], model.mask_decoder.mask_tokens.weight[4:])
    assert "mask_decoder.output_hypernetworks_mlps.4.layers.0.bias" in found.missing


def test_wrong_segment_anything_weights_are_refused() -> None:
    with pytest.raises(WeightsError, match="not weights of Segment Anything"):
        convert_sam(official(), small().state_dict())
    with pytest.raises(WeightsError, match=r"set model\.decoder_dim=64"):
        convert_sam(segment_anything(64), small().state_dict())


# -- files --------------------------------------------------------------------------------------


def test_nothing_named_reads_nothing() -> None:
    model = small()
    assert load_pretrained(model, model.settings) == []


class Dangerous:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_files_that_hold_no_tensors_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Dangerous(), protocol=2))
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    expected = {
        "gone.pth": "no such file",
        "code.pth": "refused, the pickle wants to load",
        "cut.safetensors": "not a readable safetensors file",
        "numbers.pth": "not tensors in the state dict: a",
        "list.pth": "holds no state dict",
    }
    for name, words in expected.items():
        with pytest.raises(WeightsError, match=words):
            read_state(tmp_path / name)
    assert capsys.readouterr().out == ""


def test_a_missing_file_names_its_setting(tmp_path: Path) -> None:
    settings = SegModel(**SMALL, sam_weights=tmp_path / "gone.pth")
    with pytest.raises(WeightsError, match=r"model.sam_weights=.*gone.pth: no such file"):
        load_pretrained(build_model(settings), settings)


def test_every_module_of_ours_has_official_weights() -> None:
    """No parameter of the network is left out of the tables above."""
    found = convert_official(official()).state
    model: nn.Module = small()
    assert set(model.state_dict()) == set(found)
