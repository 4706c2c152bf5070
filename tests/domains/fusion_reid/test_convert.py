from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from zoo.domains.reid.fusion_reid.backbones import load_backbones
from zoo.domains.reid.fusion_reid.config import ReidModel
from zoo.domains.reid.fusion_reid.convert import convert_official, rename_official
from zoo.domains.reid.fusion_reid.model import FusionReID, build_model
from zoo.domains.reid.fusion_reid.resnet import DEPTHS, ResNet
from zoo.domains.reid.fusion_reid.t2t import T2TViT
from zoo.domains.reid.fusion_reid.vit import Variant, VisionTransformer
from zoo.errors import WeightsError

D, C, MIX, CLASSES, CAMERAS = 24, 128, 36, 5, 3
VIT = Variant(D, 2, 3)
SIZE = (48, 32)


# -- official checkpoints -------------------------------------------------------------------------


def official_shapes(sharing: int = 1, depth: int = 2) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a small official checkpoint, written down from the specification."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    def norm(name: str, width: int) -> None:
        add(name, width)
        shapes[f"{name}.running_mean"] = shapes[f"{name}.running_var"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def block(name: str, width: int, bias: bool) -> None:
        add(f"{name}.norm1", width)
        add(f"{name}.attn.qkv", 3 * width, width, bias=bias)
        add(f"{name}.attn.proj", width, width)
        add(f"{name}.norm2", width)
        add(f"{name}.mlp.fc1", 4 * width, width)
        add(f"{name}.mlp.fc2", width, 4 * width)

    def head(neck: str, classifier: str, width: int) -> None:
        norm(neck, width)
        add(classifier, CLASSES, width, bias=False)

    add("resnet.base.conv1", 4, 3, 7, 7, bias=False)
    norm("resnet.base.bn1", 4)
    into = 4
    for stage in range(4):
        inner, root = 4 << stage, f"resnet.base.layer{stage + 1}.0"
        for number, shape in enumerate(
            [(inner, into, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)], 1
        ):
            add(f"{root}.conv{number}", *shape, bias=False)
            norm(f"{root}.bn{number}", shape[0])
        add(f"{root}.downsample.0", 4 * inner, into, 1, 1, bias=False)
        norm(f"{root}.downsample.1", 4 * inner)
        into = 4 * inner
    shapes |= {"resnet.gap.p": (1,), "gap_r.p": (1,), "gap_f.p": (1,)}
    head("resnet.bottleneck", "resnet.classifier", C)
    shapes["transformer.base.cls_token"] = (1, 1, D)
    shapes["transformer.base.pos_embed"] = (1, 7, D)
    shapes["transformer.base.sie_embed"] = (CAMERAS, 1, D)
    add("transformer.base.patch_embed.proj", D, 3, 16, 16)
    for number in range(2):
        block(f"transformer.base.blocks.{number}", D, bias=True)
    add("transformer.base.norm", D)
    add("transformer.base.fc", 1000, D)
    head("transformer.bottleneck", "transformer.classifier", D)
    for name, width in (("res_LRU", C), ("former_LRU", D)):
        add(f"{name}.dwconv", width, 1, 1, 1)
        norm(f"{name}.bn1", width)
        add(f"{name}.ptconv", MIX, width, 1, 1)
        norm(f"{name}.bn2", MIX)
        shapes[f"{name}.act1.weight"] = shapes[f"{name}.act2.weight"] = (1,)
    encoders = ["SEU"] if sharing in (0, 3) else ["SEU1", "SEU2"]
    fusions = ["MFU"] if sharing in (2, 3) else ["MUF_RES", "MFU_FORMER"]
    for layer in range(depth):
        for name in encoders:
            add(f"HTM.blocks.{layer}.{name}.norm", MIX)
            block(f"HTM.blocks.{layer}.{name}.blocks.0", MIX, bias=False)
        for name in fusions:
            root = f"HTM.blocks.{layer}.{name}.blocks.0"
            add(f"{root}.norm1", MIX)
            add(f"{root}.attn.norm", MIX)
            for part in "qkv":
                add(f"{root}.attn.{part}", MIX, MIX, bias=False)
            add(f"{root}.attn.proj", MIX, MIX)
            add(f"{root}.norm2", MIX)
            add(f"{root}.mlp.fc1", 4 * MIX, MIX)
            add(f"{root}.mlp.fc2", MIX, 4 * MIX)
    for number in (1, 2, 3, 4):
        head(f"bottleneck_{number}", f"classifier_{number}", MIX)
    return shapes


def official(sharing: int = 1, depth: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        key: torch.zeros((), dtype=torch.long) if key.endswith("tracked") else torch.rand(shape)
        for key, shape in official_shapes(sharing, depth).items()
    }


def ours(sharing: int = 1, depth: int = 2, classes: int = CLASSES) -> FusionReID:
    encoder = VisionTransformer(VIT, SIZE, (12, 12), cameras=CAMERAS)
    net = ResNet(DEPTHS["small"], 4)
    return FusionReID(net, encoder, classes, SIZE, mix=MIX, depth=depth, sharing=sharing)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("sharing", [0, 1, 2, 3])
def test_a_checkpoint_fills_the_model(sharing: int, prefix: str) -> None:
    state = {prefix + key: value for key, value in official(sharing, 1).items()}
    made = convert_official(state)
    assert not made.missing
    assert list(made.dropped) == ["transformer.base.fc.weight", "transformer.base.fc.bias"]
    assert len(made.renamed) + 2 == len(state)
    model = ours(sharing, 1)
    model.load_state_dict(made.state, strict=True)
    unit = "HTM.blocks.0.MUF_RES" if sharing in (0, 1) else "HTM.blocks.0.MFU"
    name = "fuse_cnn" if sharing in (0, 1) else "fuse"
    found = model.get_parameter(f"transmission.layers.0.{name}.attn.value.weight")
    torch.testing.assert_close(found.detach(), state[f"{prefix}{unit}.blocks.0.attn.v.weight"])


def test_each_head_gets_its_own_weights() -> None:
    state = official()
    made = convert_official(state).state
    pairs = {
        "heads.refined_cnn": "_1",
        "heads.refined_transformer": "_2",
        "heads.fused_cnn": "_3",
        "heads.fused_transformer": "_4",
    }
    for name, number in pairs.items():
        assert made[f"{name}.classifier.weight"] is state[f"classifier{number}.weight"]
        assert made[f"{name}.neck.running_mean"] is state[f"bottleneck{number}.running_mean"]
    assert made["pool_refined_cnn.p"] is state["gap_r.p"]
    assert made["pool_refined_transformer.p"] is state["gap_f.p"]


def test_the_older_name_of_transmission_is_known() -> None:
    state = {key.replace("HTM.", "mix."): value for key, value in official().items()}
    assert not convert_official(state).missing


@pytest.mark.parametrize("branch", ["resnet", "transformer"])
def test_a_branch_alone(branch: str) -> None:
    start = f"{branch}."
    state = {k.removeprefix(start): v for k, v in official().items() if k.startswith(start)}
    made = convert_official(state)
    assert not made.missing
    alone = FusionReID(
        ResNet(DEPTHS["small"], 4) if branch == "resnet" else None,
        VisionTransformer(VIT, SIZE, (12, 12), cameras=CAMERAS) if branch != "resnet" else None,
        CLASSES,
        SIZE,
    )
    alone.load_state_dict(made.state, strict=True)


def test_what_is_left_out_is_told_as_missing() -> None:
    state = {k: v for k, v in official().items() if "classifier" not in k and "sie_embed" not in k}
    made = convert_official(state)
    assert sorted(made.missing) == sorted(
        key for key in ours().state_dict() if key.endswith("classifier.weight")
    )
    model = ours(classes=9)
    missing, unexpected = model.load_state_dict(made.state, strict=False)
    assert sorted(missing) == sorted([*made.missing, "transformer.sie_embed"])
    assert not unexpected


def test_old_files_count_no_batches() -> None:
    state = {k: v for k, v in official().items() if not k.endswith("num_batches_tracked")}
    assert not convert_official(state).missing


def test_what_has_no_place_is_dropped() -> None:
    state = official() | {"centers": torch.zeros(3, 4), "resnet.base.fc.weight": torch.zeros(2)}
    made = convert_official(state)
    assert made.dropped["centers"] == made.dropped["resnet.base.fc.weight"] == "no such weight here"
    assert rename_official("HTM.blocks.0.OTHER.norm.weight") is None


def test_tensors_that_contradict_each_other() -> None:
    state = official() | {"former_LRU.ptconv.bias": torch.zeros(MIX + 1)}
    words = r"former_LRU.ptconv.bias is \(37,\) instead of \(36,\)"
    with pytest.raises(WeightsError, match=words):
        convert_official(state)


def test_another_model_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint of FusionReID.*'encoder.weight'"):
        convert_official({"encoder.weight": torch.zeros(2)})
    short = {k: v for k, v in official().items() if not k.startswith("res_LRU.ptconv")}
    with pytest.raises(WeightsError, match=r"no tensor for our 'refine_cnn.pointwise.weight'"):
        convert_official(short)


# -- ImageNet -------------------------------------------------------------------------------------


def settings(**more: Any) -> ReidModel:
    given = {"cnn": "small", "transformer": "small", "input_size": SIZE, "mix": MIX}
    return ReidModel.model_validate(given | {"width": 4, "dim": D, "blocks": 2} | more)


def imagenet_resnet() -> dict[str, Tensor]:
    torch.manual_seed(1)
    state = dict(ResNet(DEPTHS["small"], 4).state_dict())
    return state | {"fc.weight": torch.zeros(1000, C), "fc.bias": torch.zeros(1000)}


def imagenet_vit(distilled: bool = False) -> dict[str, Tensor]:
    """A square 5 x 5 grid under timm's names."""
    torch.manual_seed(2)
    encoder = VisionTransformer(Variant(D, 2, 6), (64, 64), (12, 12))
    state = dict(encoder.state_dict())
    state |= {"head.weight": torch.zeros(1000, D), "head.bias": torch.zeros(1000)}
    if distilled:
        state["dist_token"] = torch.zeros(1, 1, D)
        state["head_dist.weight"] = torch.zeros(1000, D)
        positions = state["pos_embed"]
        between = torch.full((1, 1, D), 9.0)
        state["pos_embed"] = torch.cat([positions[:, :1], between, positions[:, 1:]], 1)
    return state


def test_a_torchvision_file(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    state = imagenet_resnet()
    torch.save({f"base.{k}": v for k, v in state.items()}, path)
    model = build_model(settings(cnn_weights=path), CLASSES, CAMERAS)
    line = load_backbones(model, model_settings := settings(cnn_weights=path))[0]
    assert model_settings.cnn_weights == path
    assert "from resnet.pth" in line
    assert "2 have no place here (fc.weight" in line
    for key, value in model.cnn.state_dict().items():
        torch.testing.assert_close(value, state[key])


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "state_dict_ema"])
@pytest.mark.parametrize("distilled", [False, True])
def test_a_vit_file(tmp_path: Path, distilled: bool, wrapper: str | None) -> None:
    path, state = tmp_path / "vit.pth", imagenet_vit(distilled)
    torch.save({wrapper: state} if wrapper else state, path)
    chosen = settings(transformer_weights=path)
    model = build_model(chosen, CLASSES, CAMERAS)
    side = model.transformer.sie_embed
    assert side is not None
    before = side.detach().clone()
    (line,) = load_backbones(model, chosen)
    assert "positions resized to 3 x 2" in line
    torch.testing.assert_close(side.detach(), before)  # no file has cameras
    positions = model.transformer.pos_embed.detach()
    assert positions.shape == (1, 7, D)
    assert positions.max() < 5  # the distillation token's position is left out
    torch.testing.assert_close(
        model.transformer.blocks[1].mlp.fc1.weight.detach(),  # type: ignore[union-attr]  # a block
        state["blocks.1.mlp.fc1.weight"],
    )


def test_patch_weights_stored_as_a_matrix(tmp_path: Path) -> None:
    path, state = tmp_path / "vit.safetensors", imagenet_vit()
    kernel = state["patch_embed.proj.weight"]
    save_file(state | {"patch_embed.proj.weight": kernel.flatten(1).clone()}, path)
    chosen = settings(transformer_weights=path)
    model = build_model(chosen, CLASSES, CAMERAS)
    load_backbones(model, chosen)
    torch.testing.assert_close(model.transformer.state_dict()["patch_embed.proj.weight"], kernel)


def test_a_t2t_file() -> None:
    from zoo.domains.reid.fusion_reid.backbones import fitted

    torch.manual_seed(3)
    theirs = T2TViT(Variant(D, 1, 3, bias=False), (64, 64), 8)
    state = dict(theirs.state_dict()) | {"head.weight": torch.zeros(10, D)}
    encoder = T2TViT(Variant(D, 1, 3, bias=False), (64, 32), 8)
    made, words = fitted(state, encoder)
    assert words == ", positions resized to 4 x 2"
    encoder.load_state_dict(made, strict=True)


def test_branches_without_a_file_are_told() -> None:
    small = settings()
    assert load_backbones(build_model(small, CLASSES, CAMERAS), small) == []
    with torch.device("meta"):
        model = build_model(ReidModel(), CLASSES, CAMERAS)
    lines = load_backbones(model, ReidModel())
    assert [line.split()[0] for line in lines] == ["resnet50", "vit_base_patch16_224"]
    assert all("random numbers" in line for line in lines)


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("option", "content", "words"),
    [
        ("cnn_weights", None, "no such file"),
        ("cnn_weights", b"nothing", "not a readable checkpoint"),
        ("cnn_weights", {}, "holds no state dict"),
        ("cnn_weights", {"epoch": 3, "state_dict": 4}, "not tensors in the state dict: epoch"),
        ("cnn_weights", "vit", "weights of another network than model.cnn: 'conv1.weight' is mis"),
        ("transformer_weights", "resnet", "weights of another network than model.transformer"),
        ("transformer_weights", "narrow", r"cls_token is \(1, 1, 12\), here \(1, 1, 24\)"),
        ("transformer_weights", "oblong", "no square"),
    ],
)
def test_a_wrong_file_is_one_line(option: str, content: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    states: dict[object, dict[str, Tensor]] = {
        "vit": imagenet_vit(),
        "resnet": imagenet_resnet(),
        "oblong": imagenet_vit() | {"pos_embed": torch.zeros(1, 12, D)},
        "narrow": dict(VisionTransformer(Variant(12, 2, 6), SIZE, (12, 12)).state_dict()),
    }
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save(path, states[content] if isinstance(content, str) else content)
    chosen = settings(**{option: path})
    with pytest.raises(WeightsError, match=words) as caught:
        load_backbones(build_model(chosen, CLASSES, CAMERAS), chosen)
    assert str(caught.value).startswith(f"model.{option}={path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_for_a_branch_that_is_not_there(tmp_path: Path) -> None:
    chosen = settings(cnn="none", cnn_weights=tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"no such branch \(model.cnn=none\)"):
        load_backbones(build_model(chosen, CLASSES, CAMERAS), chosen)
