from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.domains.remote_sensing.crop_yield.config import Config
from zoo.domains.remote_sensing.crop_yield.convert import (
    convert_official,
    load_official,
    recognise,
    rename_official,
)
from zoo.domains.remote_sensing.crop_yield.model import build_model
from zoo.domains.remote_sensing.crop_yield.plain import kernels
from zoo.errors import WeightsError


def vit_shapes(
    patch: int, channels: int, tokens: int, dim: int, depth: int, inner: int, mlp: int, out: int
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the released transformers, written down from the release."""
    vector = channels * patch * patch
    start, layers = "vit_model.", "vit_model.transformer.layers."
    norms = {f"{start}to_patch_embedding.1": vector, f"{start}to_patch_embedding.3": dim}
    norms[f"{start}transformer.norm"] = dim
    linears = {
        f"{start}to_patch_embedding.2": (dim, vector),
        f"{start}mlp_head": (out, dim),
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"{start}pos_embedding": (1, tokens + 1, dim),
        f"{start}cls_token": (1, 1, dim),
    }
    for i in range(depth):
        norms |= {f"{layers}{i}.0.norm": dim, f"{layers}{i}.1.net.0": dim}
        shapes[f"{layers}{i}.0.to_qkv.weight"] = (3 * inner, dim)
        linears[f"{layers}{i}.0.to_out.0"] = (dim, inner)
        linears |= {f"{layers}{i}.1.net.1": (mlp, dim), f"{layers}{i}.1.net.4": (dim, mlp)}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def official_shapes(sensor: str) -> dict[str, tuple[int, ...]]:
    if sensor == "modis":
        shapes = vit_shapes(4, 9, 64, 256, 4, 512, 512, 1)
        shapes |= {"a1": (), "a2": (), "cnn_model.operator_weight": ()}
        shapes |= {"se_block.fc.0.weight": (1, 9), "se_block.fc.2.weight": (9, 1)}
        learnable = "cnn_model.operator_router.operators.learnable"
        shapes |= {f"{learnable}.alpha": (), f"{learnable}.scale": (1,)}
        into = 9
        for i, out in enumerate((128, 256, 256, 512, 512, 512)):
            block = f"cnn_model.convblocks.{i}"
            shapes |= {f"{block}.conv.weight": (out, into, 3, 3), f"{block}.conv.bias": (out,)}
            names = ("weight", "bias", "running_mean", "running_var")
            shapes |= {f"{block}.batchnorm.{name}": (out,) for name in names}
            shapes[f"{block}.batchnorm.num_batches_tracked"] = ()
            into = out
        for i, shape in enumerate(((2048, 8192), (1, 2048))):
            dense = f"cnn_model.dense_layers.{i}"
            shapes |= {f"{dense}.weight": shape, f"{dense}.bias": shape[:1]}
        return shapes
    shapes = vit_shapes(16, 3, 196, 128, 6, 192, 256, 2)
    shapes |= {"a1": (2,), "a2": (2,), "cnn_model.operator_gate.operator_weight": ()}
    shapes |= {"se.fc.0.weight": (1, 3), "se.fc.2.weight": (3, 1)}
    pairs = {0: (32, 3), 4: (64, 32), 8: (128, 64), 12: (128, 128)}
    for i, (out, into) in pairs.items():
        shapes |= {
            f"cnn_model.cnn.{i}.weight": (out, into, 3, 3),
            f"cnn_model.cnn.{i}.bias": (out,),
        }
    for i, shape in {0: (128, 128), 3: (64, 128), 6: (2, 64)}.items():
        fusion = f"cnn_model.fusion.{i}"
        shapes |= {f"{fusion}.weight": shape, f"{fusion}.bias": shape[:1]}
    return shapes


def fixed(sensor: str) -> dict[str, Tensor]:
    """The kernels that a released state dict holds as buffers."""
    made = {}
    for name in ("sobel", "scharr"):
        for axis, kernel in zip("xy", kernels(name), strict=True):
            if sensor == "modis":
                start = "cnn_model.operator_router.operators"
                made[f"{start}.{name}.{name}_{axis}"] = kernel.expand(9, 1, 3, 3)
                made[f"{start}.learnable.{name}_{axis}"] = kernel
            else:
                made[f"cnn_model.operator_gate.{name}.kernel_{axis}"] = kernel.view(1, 1, 3, 3)
    return made


def official(sensor: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = official_shapes(sensor)
    made = {
        key: torch.tensor(3) if key.endswith("tracked") else torch.rand(shape) / 50
        for key, shape in shapes.items()
    }
    return made | fixed(sensor)


@pytest.mark.parametrize(("sensor", "entries"), [("modis", 117), ("sentinel2", 101)])
def test_released_keys_load_whole(sensor: str, entries: int) -> None:
    state = official(sensor)
    assert len(state) == entries
    assert recognise(state) == sensor
    made = convert_official({f"module.{k}": v for k, v in state.items()})
    config = Config(task="crop_yield", preset="paper", data={"sensor": sensor})
    net = build_model(config, {})
    told = net.load_state_dict(made.state, strict=False)
    assert told.unexpected_keys == []
    assert (
        set(told.missing_keys)
        == set(made.missing)
        == {"target", "band_mean"} - ({"band_mean"} if sensor == "sentinel2" else set())
    )
    assert set(made.dropped) == set(fixed(sensor))
    assert len(made.renamed) + len(made.dropped) == entries
    assert torch.equal(net.state_dict()[made.renamed["a1"]], state["a1"])


@pytest.mark.parametrize("sensor", ["modis", "sentinel2"])
def test_both_layouts_of_class_token_and_positions_load(sensor: str) -> None:
    state = official(sensor)
    flat = dict(state)
    for name in ("pos_embedding", "cls_token"):
        flat[f"vit_model.{name}"] = state[f"vit_model.{name}"][0]
    made, other = convert_official(state), convert_official(flat)
    for key in ("vit.positions", "vit.class_token"):
        assert made.state[key].dim() == 3
        assert torch.equal(made.state[key], other.state[key])


def test_short_season_is_recognised_by_its_dense_layer() -> None:
    state = official("modis")
    state["cnn_model.dense_layers.0.weight"] = torch.rand(2048, 512 * 2 * 4)
    made = convert_official(state)
    config = Config(task="crop_yield", preset="paper", data={"sensor": "modis", "steps": 16})
    build_model(config, {}).load_state_dict(made.state, strict=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("cnn_model.convblocks.0.conv.weight"), "not weights of DFYP"),
        (lambda s: s.pop("a1"), "incomplete weights of DFYP: cnn_share missing"),
        (lambda s: s.pop("vit_model.mlp_head.weight"), "vit.head.weight"),
        (
            lambda s: s.update({"cnn_model.convblocks.2.conv.bias": torch.zeros(7)}),
            r"convblocks.2.conv.bias is \(7,\), not \(256,\)",
        ),
        (
            lambda s: s.update(
                {"cnn_model.operator_router.operators.learnable.sobel_x": torch.ones(3, 3)}
            ),
            "not the kernel of the released sobel operator",
        ),
    ],
)
def test_wrong_weights_are_told(change: Any, words: str) -> None:
    state = official("modis")
    change(state)
    with pytest.raises(WeightsError, match=words):
        convert_official(state)


def test_what_has_no_place_is_dropped_with_a_reason() -> None:
    made = convert_official(official("modis") | {"gp.length": torch.zeros(1)})
    assert made.dropped["gp.length"] == "no place in this network"
    assert rename_official("cnn_model.cnn.2.weight", "sentinel2") is None


def test_released_file_with_arrays_is_read_without_running_it(tmp_path: Path) -> None:
    path = tmp_path / "2009.pth"
    content = {
        "state_dict": {"a1": torch.tensor(0.5)},
        "val_loss": [3.0, np.float64(2.5)],
        "test_pred": np.arange(3, dtype=np.float32),
        "test_years": np.array([2009, 2009, 2009]),
    }
    torch.save(content, path)
    found = load_official(path)
    assert found.state["a1"].item() == 0.5
    assert found.arrays["test_pred"].tolist() == [0, 1, 2]
    assert found.arrays["val_loss"].tolist() == [3.0, 2.5]


def test_bare_state_dict_is_read(tmp_path: Path) -> None:
    torch.save({"a1": torch.ones(2)}, tmp_path / "bare.pth")
    found = load_official(tmp_path / "bare.pth")
    assert found.state["a1"].tolist() == [1, 1]
    assert found.arrays == {}


class Harmful:
    pass


def test_what_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        load_official(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_official(tmp_path / "text.pth")
    torch.save({"state_dict": {}, "config": Harmful()}, tmp_path / "object.pth")
    with pytest.raises(WeightsError, match=r"refused, the pickle wants to load '.*Harmful'"):
        load_official(tmp_path / "object.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no weights"):
        load_official(tmp_path / "list.pth")
    torch.save({"state_dict": {"a1": 3.0}}, tmp_path / "number.pth")
    with pytest.raises(WeightsError, match="neither a state dict"):
        load_official(tmp_path / "number.pth")
