"""Tile encoders: hand-made statistics, CLAM's ResNet-50, timm models, weights."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50
from torchvision.transforms import functional as transforms

from zoo import files
from zoo.domains.medical.wsi_mil import encoders
from zoo.domains.medical.wsi_mil.encoders import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NetEncoder,
    TruncatedResNet50,
    build_encoder,
)
from zoo.domains.medical.wsi_mil.settings import EncoderSettings
from zoo.domains.medical.wsi_mil.stats import NAMES, WIDTH, tile_statistics
from zoo.errors import ConfigError, WeightsError

from .slide_files import picture

SMALL = "test_vit.r160_in1k"  # timm's own test model
RNG = np.random.default_rng(1)
TILES = RNG.integers(0, 255, (3, 96, 96, 3), dtype=np.uint8)


def one_line(kind: type[Exception], act: Callable[[], Any], *words: str) -> str:
    with pytest.raises(kind) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


# -- statistics ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    pixels = picture(tumour=True).pixels
    return np.stack([pixels[y : y + 128, x : x + 128] for x, y in ((250, 500), (470, 500))])


def column(name: str) -> int:
    return NAMES.index(name)


def test_statistics_have_a_name_each_and_are_finite() -> None:
    assert WIDTH == len(set(NAMES)) == 42
    assert tile_statistics(TILES).shape == (3, 42)
    assert tile_statistics(TILES).dtype == np.float32
    assert tile_statistics(TILES[:0]).shape == (0, 42)
    for value in (0, 128, 255):
        assert np.isfinite(tile_statistics(np.full((1, 32, 32, 3), value, np.uint8))).all()


def test_turning_and_mirroring_change_nothing(tissue: np.ndarray) -> None:
    straight = tile_statistics(tissue)
    for other in (np.rot90(tissue, axes=(1, 2)), tissue[:, ::-1], tissue[:, :, ::-1]):
        np.testing.assert_allclose(
            tile_statistics(np.ascontiguousarray(other)), straight, rtol=1e-3, atol=1e-4
        )


def test_the_same_tile_gives_the_same_bits_wherever_it_lies(tissue: np.ndarray) -> None:
    expected = tile_statistics(tissue)
    for offset in (1, 4, 16, 33):
        room = np.empty(tissue.nbytes + 64 * offset, np.uint8)
        moved = room[offset : offset + tissue.nbytes].reshape(tissue.shape)
        moved[:] = tissue
        assert (tile_statistics(moved) == expected).all()


def test_dense_nuclei_show_in_the_numbers(tissue: np.ndarray) -> None:
    plain, tumour = tile_statistics(tissue)
    for name in ("haematoxylin_mean", "haematoxylin_std", "nuclei_share", "band_4"):
        assert tumour[column(name)] > 1.3 * plain[column(name)], name


def test_stains_are_told_apart() -> None:
    # Beer-Lambert: a pixel of pure stain has the stain's colour at that density.
    blue, pink = (
        np.rint(255 * 10.0 ** -(0.5 * np.array(v) / np.linalg.norm(v))).astype(np.uint8)
        for v in ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))
    )
    found = tile_statistics(np.stack([np.full((32, 32, 3), c, np.uint8) for c in (blue, pink)]))
    amounts = found[:, [column("haematoxylin_mean"), column("eosin_mean")]]
    np.testing.assert_allclose(amounts, [[0.5, 0], [0, 0.5]], atol=0.02)


def test_patterns_are_a_histogram() -> None:
    found = tile_statistics(TILES)[:, column("lbp_0") : column("lbp_9") + 1]
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    flat = tile_statistics(np.full((1, 32, 32, 3), 90, np.uint8))[0]
    assert flat[column("lbp_8")] == 1  # every neighbour is as bright


def test_stats_take_no_weights(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"x")
    settings = EncoderSettings("stats", tmp_path / "w.pth")
    one_line(ConfigError, lambda: build_encoder(settings), "drop data.encoder_weights")
    encoder = build_encoder(EncoderSettings("stats"))
    assert encoder.plain
    assert (encoder(TILES) == tile_statistics(TILES)).all()


# -- networks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> torch.nn.Module:
    torch.manual_seed(0)
    return resnet50().eval()


def weights(folder: Path, state: dict[str, Any], name: str = "net.safetensors") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file({k: v.clone().contiguous() for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
def test_resnet50_ends_after_the_third_stage(
    tmp_path: Path, whole: torch.nn.Module, name: str
) -> None:
    path = weights(tmp_path, whole.state_dict(), name)
    encoder = build_encoder(EncoderSettings("resnet50", path))
    assert encoder.width == 1024
    found = encoder(TILES)
    # CLAM's transform: the shorter side to 224, ImageNet statistics.
    images = torch.from_numpy(TILES).permute(0, 3, 1, 2).float() / 255
    images = transforms.resize(images, [224, 224], antialias=True)
    images = transforms.normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    net: Any = whole
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        expected = net.layer3(net.layer2(net.layer1(x))).mean((2, 3)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert encoder.settings.sha256 == files.sha256(path)
    assert encoder.settings.size == 224


def test_random_weights_are_for_the_library_alone() -> None:
    encoder = build_encoder(EncoderSettings("resnet50"), random_weights=True)
    assert encoder(TILES[:1]).shape == (1, 1024)
    assert set(TruncatedResNet50.renamed({"fc.weight": torch.ones(1)})) == set()


def test_a_timm_model_brings_its_own_preprocessing(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = timm.create_model(SMALL, num_classes=0).eval()
    path = weights(tmp_path, net.state_dict())
    for name in (SMALL, f"timm:{SMALL}"):
        encoder = build_encoder(EncoderSettings(name, path))
        own = timm.data.resolve_model_data_config(net)
        assert encoder.settings.mean == tuple(own["mean"])
        assert encoder.settings.size == own["input_size"][-1] == 160
        images = encoder.prepared(torch.from_numpy(TILES).permute(0, 3, 1, 2))
        with torch.no_grad():
            expected = net(images).numpy()
        np.testing.assert_allclose(encoder(TILES), expected, rtol=1e-4, atol=1e-5)
    stated = EncoderSettings(SMALL, path, None, 160, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    images = build_encoder(stated).prepared(torch.full((1, 3, 160, 160), 255, dtype=torch.uint8))
    assert images[0, :, 0, 0].tolist() == pytest.approx([0.9 / 0.4, 0.8 / 0.5, 0.7 / 0.6])


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "teacher.backbone.", "module.encoder."])
def test_wrappers_and_heads_of_published_weights_are_taken_off(tmp_path: Path, prefix: str) -> None:
    net = timm.create_model(SMALL, num_classes=0).eval()
    state = {prefix + k: v for k, v in net.state_dict().items()}
    state |= {"head.weight": torch.ones(3, 2), prefix + "head.bias": torch.ones(3)}
    path = weights(tmp_path, {"state_dict": state, "epoch": 3}, "net.pth")
    encoder = build_encoder(EncoderSettings(SMALL, path))
    plain = build_encoder(EncoderSettings(SMALL, weights(tmp_path, net.state_dict())))
    assert (encoder(TILES) == plain(TILES)).all()


def missing(state: dict[str, Any]) -> None:
    del state["patch_embed.proj.weight"]


def reshaped(state: dict[str, Any]) -> None:
    state["norm.weight"] = torch.ones(7)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, ("no 'patch_embed.proj.weight'", "1 such keys")),
        (reshaped, ("another shape of 'norm.weight'", "data.encoder")),
        (dict.clear, ("holds no state dict",)),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], words: tuple[str, ...]
) -> None:
    state = dict(timm.create_model(SMALL, num_classes=0).state_dict())
    spoil(state)
    path = weights(tmp_path, state, "net.pth")
    settings = EncoderSettings(SMALL, path)
    one_line(WeightsError, lambda: build_encoder(settings), str(path), *words)


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pth"
    torch.save({"state_dict": Harmful()}, path)
    refused, broken = "plain containers", "not a readable checkpoint"
    bodies = [(path.read_bytes(), refused), (pickle.dumps(Harmful()), broken), (b"junk", broken)]
    for body, word in bodies:
        path.write_bytes(body)
        settings = EncoderSettings(SMALL, path)
        one_line(WeightsError, lambda s=settings: build_encoder(s), str(path), word)
    assert not (tmp_path / "harm").exists()


def test_features_need_the_weights_they_were_made_with(tmp_path: Path) -> None:
    told = EncoderSettings(SMALL, None, "ab" * 32)
    one_line(WeightsError, lambda: build_encoder(told), "data.encoder_weights", "abababab")
    path = weights(tmp_path, timm.create_model(SMALL, num_classes=0).state_dict())
    other = EncoderSettings(SMALL, path, "ab" * 32)
    one_line(WeightsError, lambda: build_encoder(other), str(path), "another file")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet49", ("no such encoder", "resnet50, stats")),
        ("vit_smal_patch16_224", ("no such encoder",)),
    ],
)
def test_an_unknown_encoder_is_told_with_those_there_are(name: str, words: tuple[str, ...]) -> None:
    one_line(ConfigError, lambda: build_encoder(EncoderSettings(name)), name, *words)


def test_options_reach_the_model_or_are_refused() -> None:
    settings = EncoderSettings(SMALL, options={"init_values": 1e-5, "dynamic_img_size": True})
    net = build_encoder(settings, random_weights=True)
    assert net.width == 64
    wrong = EncoderSettings(SMALL, options={"no_such_option": 1})
    one_line(ConfigError, lambda: build_encoder(wrong, random_weights=True), "data.encoder_options")
    own = EncoderSettings("resnet50", options={"a": 1})
    one_line(ConfigError, lambda: build_encoder(own), "data.encoder_options")


def test_a_model_that_gives_maps_is_refused() -> None:
    settings = EncoderSettings("x", None, None, 32, IMAGENET_MEAN, IMAGENET_STD)
    one_line(
        ConfigError,
        lambda: NetEncoder(torch.nn.Conv2d(3, 4, 3), settings, torch.device("cpu")),
        "not one vector",
    )


@pytest.mark.parametrize("name", ["resnet50", SMALL, "hf-hub:somebody/model"])
@pytest.mark.parametrize("offline", [True, False])
def test_without_network_one_line_names_the_key(
    name: str, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(encoders, "getproxies", dict)
    if offline:
        monkeypatch.setenv("ZOO_OFFLINE", "1")

    def unreachable(*_: Any, **__: Any) -> Any:
        assert not offline
        msg = "network is down"
        raise OSError(msg)

    monkeypatch.setattr(encoders.socket, "create_connection", unreachable)
    text = one_line(
        WeightsError, lambda: build_encoder(EncoderSettings(name)), name, "data.encoder_weights="
    )
    assert ("ZOO_OFFLINE" if offline else "network is down") in text


def test_weights_fetched_before_serve_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    torch.manual_seed(2)
    net = timm.create_model(SMALL).eval()  # with its head, as published
    where = tmp_path / "encoders" / f"models--timm--{SMALL}" / "snapshots" / "abc"
    where.mkdir(parents=True)
    weights(where, net.state_dict(), "model.safetensors")
    encoder = build_encoder(EncoderSettings(SMALL))
    images = encoder.prepared(torch.from_numpy(TILES).permute(0, 3, 1, 2))
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(images), pre_logits=True).numpy()
    np.testing.assert_allclose(encoder(TILES), expected, rtol=1e-4, atol=1e-5)
